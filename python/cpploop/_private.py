"""asyncio's private names for a loop's queues, as views of the engine's own.

Programs read ``loop._ready``, ``loop._scheduled``, ``loop._transports`` and ``loop._selector``;
docs/private-habits.md says which and what they are given. A view answers what can be answered and
raises for the rest: nothing that is done to it is lost without a word.
"""

from __future__ import annotations

import selectors
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import asyncio

    from ._loop import Loop


class ReadyView:
    """``loop._ready``: what is ready to run.

    Its length and truth are those of the queue, I/O events included; iterating gives the handles
    in their order. ``append()`` queues a handle of any loop's.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        return self._loop._ready_count()

    def __iter__(self) -> Iterator[asyncio.Handle]:
        return iter(self._loop._ready_handles())

    def __getitem__(self, index: int) -> asyncio.Handle:
        return self._loop._ready_handles()[index]

    def __contains__(self, handle: object) -> bool:
        return handle in self._loop._ready_handles()

    def __repr__(self) -> str:
        return f"<ready {self._loop._ready_handles()!r}>"

    def append(self, handle: asyncio.Handle) -> None:
        self._loop._append_ready(handle)

    def extend(self, handles: Iterable[asyncio.Handle]) -> None:
        for handle in handles:
            self._loop._append_ready(handle)

    def clear(self) -> None:
        self._loop._clear_ready()


class ScheduledView(Sequence["asyncio.TimerHandle"]):
    """``loop._scheduled``: the timers that wait, the earliest first.

    Cancelled ones are in it until they are swept out, as in asyncio's list. Timers are added by
    call_at() and taken away by cancel(); heapq refuses this object.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def __len__(self) -> int:
        return self._loop._scheduled_count()

    def __iter__(self) -> Iterator[asyncio.TimerHandle]:
        return iter(self._loop._scheduled_handles())

    def __getitem__(self, index: Any) -> Any:
        return self._loop._scheduled_handles()[index]

    def __repr__(self) -> str:
        return f"<scheduled {self._loop._scheduled_handles()!r}>"

    def clear(self) -> None:
        self._loop._clear_scheduled()


class SelectorView:
    """``loop._selector``: which descriptors are watched by callbacks, and for what.

    There is no selector behind it, so it can neither wait nor watch.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        loop = self._loop()
        mask = 0 if loop is None or loop.is_closed() else loop._watched(fileobj)
        if not mask:
            raise KeyError(f"{fileobj!r} is not registered")
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return selectors.SelectorKey(fileobj, fd, mask, None)

    def get_map(self) -> Mapping[int, selectors.SelectorKey]:
        loop = self._loop()
        if loop is None or loop.is_closed():
            return {}
        return {fd: self.get_key(fd) for fd in loop._watched_descriptors()}

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            "cpploop's loop has no selector: watch descriptors with add_reader() and "
            "add_writer(), and run single turns with loop._run_once()"
        )

    select = register = unregister = modify = _refuse
