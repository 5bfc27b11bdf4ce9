"""Reports a callback that blocks the loop while it still blocks it.

asyncio's debug mode says afterwards how long a callback took. This says, from a thread beside the
loop, where in the program the callback is, while it is there.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType
    from typing import Self

    from ._loop import Loop

logger = logging.getLogger("cpploop")

# How often the loop is looked at while a callback may become too slow.
_LOOKS_PER_THRESHOLD = 4

# How many seconds late a busy machine may run the thread before an idle loop is taken for one that
# keeps the lock.
_LATENESS = 0.5


@dataclass(frozen=True, slots=True)
class SlowCallback:
    """A callback that has blocked the loop for `seconds` so far, and does so still."""

    seconds: float
    #: Where the loop's thread is, the innermost frame last.
    stack: traceback.StackSummary
    #: The task that runs, or None for a plain callback or a protocol's method.
    task_name: str | None
    #: The qualified name of the task's coroutine.
    coroutine: str | None

    def __str__(self) -> str:
        who = f"task {self.task_name!r} ({self.coroutine})" if self.task_name else "a callback"
        return (
            f"{who} has blocked the loop for {self.seconds:.3f} s, and is at\n"
            + "".join(self.stack.format()).rstrip()
        )


def _log(slow: SlowCallback) -> None:
    logger.warning("%s", slow)


class Watchdog:
    """A thread that watches one loop; made by loop.watch_slow_callbacks()."""

    def __init__(
        self,
        loop: Loop,
        threshold: float,
        report: Callable[[SlowCallback], object] | None,
        dump: bool,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold must be positive seconds, not {threshold!r}")
        self._loop = loop
        self._threshold = threshold
        self._report = _log if report is None else report
        self._dump = dump
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cpploop-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. A second call does nothing."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _watch(self) -> None:
        interval = self._threshold / _LOOKS_PER_THRESHOLD
        watched, since, reported = -1, 0.0, False
        try:
            while not self._stopped.wait(interval) and not self._loop.is_closed():
                busy, callback = self._loop._progress()
                now = time.monotonic()
                if not busy or callback != watched:
                    watched, since, reported = callback, now, False
                elif not reported and now - since >= self._threshold:
                    # The report takes what time it likes: this thread looks no more meanwhile.
                    self._disarm()
                    reported = self._look(now - since, callback)
                self._arm(busy)
        finally:
            self._disarm()

    def _arm(self, busy: bool) -> None:
        """Have the stacks dumped unless there is another look in time.

        While somebody keeps the interpreter's lock this thread cannot look; then the dump comes,
        from a thread that needs no lock. An idle loop's timer runs, too, for a callback that takes
        the lock takes it at once and leaves no look in which the loop is busy; but it has to
        allow for this thread's being late for other reasons.
        """
        if self._dump:
            faulthandler.dump_traceback_later(2 * self._threshold + (0 if busy else _LATENESS))

    def _disarm(self) -> None:
        if self._dump:
            faulthandler.cancel_dump_traceback_later()

    def _look(self, seconds: float, callback: int) -> bool:
        """True once the callback was reported; it may have returned in the meantime."""
        thread = self._loop._thread_id
        frame = None if thread is None else sys._current_frames().get(thread)
        task = asyncio.current_task(self._loop)
        if frame is None or self._loop._progress() != (True, callback):
            return False
        slow = SlowCallback(seconds, _stack_of(frame), *_describe(task))
        del frame
        try:
            self._report(slow)
        except Exception:
            logger.exception("the report of a slow callback failed: %s", slow)
        return True


def _stack_of(frame: FrameType) -> traceback.StackSummary:
    return traceback.StackSummary.extract(reversed(list(traceback.walk_stack(frame))))


def _describe(task: asyncio.Task[Any] | None) -> tuple[str | None, str | None]:
    if task is None:
        return None, None
    coroutine: Any = task.get_coro()
    return task.get_name(), getattr(coroutine, "__qualname__", repr(coroutine))
