"""Making a loop and running a program on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from cpploop._loop import Loop

__all__ = ("new_event_loop", "run")

_T = TypeVar("_T")


def new_event_loop(*, backend: str | None = None) -> Loop:
    """Create a cpploop event loop and return it.

    This is the loop factory for whatever takes one: ``asyncio.Runner(loop_factory=...)``, from
    Python 3.12 on ``asyncio.run(..., loop_factory=...)``, and the servers and test frameworks
    built on them. Like every loop factory it makes nothing current.

    *backend* is the way to the kernel: ``"epoll"``, ``"io_uring"`` (epoll where the kernel refuses
    it), on systems other than Linux ``"kqueue"``, or ``"auto"``; without it, the environment's
    CPPLOOP_BACKEND.
    """
    from cpploop._loop import Loop

    return Loop() if backend is None else Loop(backend=backend)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    debug: bool | None = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> _T:
    """Execute the coroutine *main* on a new cpploop event loop and return its result.

    It is asyncio.run() with another loop, on every Python cpploop runs on: the same checks, the
    same treatment of Ctrl-C, the same shutdown. *loop_factory* serves those who subclass Loop.

    As with asyncio's own loop_factory, the loop is the running one while *main* runs but is not
    set as the thread's current event loop.
    """
    factory = new_event_loop if loop_factory is None else loop_factory
    if sys.version_info >= (3, 12):
        return asyncio.run(main, debug=debug, loop_factory=factory)
    else:
        # 3.11 has the Runner with its loop_factory, but its run() cannot be told one. The check
        # is made first, as asyncio.run() does, so that no loop is made in vain.
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("asyncio.run() cannot be called from a running event loop")
        with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
            return runner.run(main)
