"""cpploop: the asyncio event loop with a modern C++ engine.

    asyncio.run(main(), loop_factory=cpploop.new_event_loop)   # Python 3.12 and later
    cpploop.run(main())                                        # any Python
    uvicorn app:app --loop cpploop:new_event_loop              # any server that takes a factory
    python -m cpploop app.py                                   # any program, unchanged

Importing this package changes nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from . import _backend, _native, _tls
from ._loop import Loop
from ._policy import EventLoopPolicy, install
from ._run import new_event_loop, run

if TYPE_CHECKING:
    from ._expose import Exposure, expose
    from ._metrics import LoopMetrics
    from ._trace import Trace, trace
    from ._watchdog import SlowCallback, Watchdog

EventLoop = Loop

__version__: str = _native.__version__

__all__ = (
    "EventLoop",
    "EventLoopPolicy",
    "Exposure",
    "Loop",
    "LoopMetrics",
    "SlowCallback",
    "Trace",
    "Watchdog",
    "__version__",
    "build_info",
    "expose",
    "install",
    "new_event_loop",
    "run",
    "trace",
)


_LATER = {
    "Exposure": "_expose",
    "LoopMetrics": "_metrics",
    "SlowCallback": "_watchdog",
    "Trace": "_trace",
    "Watchdog": "_watchdog",
    "expose": "_expose",
    "trace": "_trace",
}


def __getattr__(name: str) -> object:
    # What few programs need costs the others nothing at import.
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)


def build_info() -> dict[str, object]:
    """What this build is and what it has settled on in this process, for bug reports.

    Keys: version, compiler, build_type, lto, pgo, python (built for), free_threaded, backend,
    io_uring, timed_wait, tls, running_python, platform. lto says whether the build was optimised
    while linking, and pgo is "use" where that was by a profile. backend is what a loop made now
    waits with, and io_uring says why that is not io_uring. tls is a pair: the tier (direct, bio or
    asyncio), and what stands against a faster one.
    """
    import platform  # Not for everybody at import.

    backend = _backend.chosen_backend()
    return {
        **_native.build_info(),
        "backend": backend.name,
        "io_uring": backend.reason,
        "tls": _tls.chosen_tier(),
        "running_python": sys.version,
        "platform": platform.platform(),
    }
