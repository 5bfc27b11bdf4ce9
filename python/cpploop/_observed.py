"""The loop's own methods for looking into it; what they need is imported when they are called."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._metrics import LoopMetrics
    from ._trace import Trace
    from ._watchdog import SlowCallback, Watchdog


class ObservedLoop(asyncio.SelectorEventLoop):
    """The part of the loop that tells what it does."""

    _trace: Trace | None = None

    def _trace_if_asked_for(self) -> None:
        if os.environ.get("CPPLOOP_TRACE"):
            from ._trace import trace_from_environment

            this: Any = self
            trace_from_environment(this)

    def metrics(self) -> LoopMetrics:
        """What the loop has counted, and how it stands. No asyncio loop has this.

        It may be called from any thread, also while a callback blocks the loop. RuntimeError on
        free-threaded builds when another thread is running the loop: use call_soon_threadsafe()
        there.
        """
        from ._metrics import look

        this: Any = self
        return look(this)

    def watch_slow_callbacks(
        self,
        threshold: float = 0.1,
        report: Callable[[SlowCallback], object] | None = None,
        *,
        dump: bool = False,
    ) -> Watchdog:
        """Report callbacks that block the loop, while they do. No asyncio loop has this.

        threshold: seconds; a callback that takes longer is reported once, by a thread that looks a
            few times as often.
        report: called in that thread with a SlowCallback; by default it is logged as a warning by
            the logger "cpploop".
        dump: have faulthandler print every thread's stack when even that thread cannot run,
            because a C function keeps the interpreter's lock. There is one such timer a process.

        Returns a Watchdog: a context manager with stop(). ValueError unless threshold is positive.
        """
        from ._watchdog import Watchdog as Thread

        this: Any = self
        return Thread(this, threshold, report, dump)
