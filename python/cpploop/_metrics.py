"""What a loop counts of its own work, for dashboards and for looking into a running program."""

from __future__ import annotations

import collections
import contextlib
import threading
from asyncio import selector_events, sslproto
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from ._loop import Loop

# How long a loop may take to answer where only its own thread may ask it.
ANSWER_S = 0.4

_asyncio: Any = selector_events
# asyncio's transports, over sockets that the engine leaves to them.
_FALLBACKS = (_asyncio._SelectorSocketTransport, _asyncio._SelectorDatagramTransport)
_KINDS: dict[type, str] = {
    _native.StreamTransport: "stream",
    _native.DatagramTransport: "datagram",
    _native.ReadPipeTransport: "read_pipe",
    _native.WritePipeTransport: "write_pipe",
    _FALLBACKS[0]: "stream",
    _FALLBACKS[1]: "datagram",
}


@dataclass(frozen=True, slots=True)
class LoopMetrics:
    """One look at a loop: counters since it was made, and how things stand. All times in seconds.

    A busy period lasts from one look at the kernel to the next. Nothing that happens in it can be
    noticed before it ends, so its length bounds how late the loop is for any event.
    """

    #: Turns of the loop, each of which runs what was ready when it began.
    turns: int
    #: Polls of the kernel that were allowed to block.
    waits: int
    #: Wake-ups by other threads.
    wake_ups: int
    #: Events that the kernel reported.
    events: int
    #: Callbacks run, the loop's own handling of I/O included.
    callbacks: int
    #: Timers that became due.
    timers_fired: int
    #: The most callbacks that were ready at the beginning of a turn.
    ready_peak: int
    #: Connections accepted by servers.
    accepted: int
    #: Bytes that native transports received and sent, as the kernel counts them (of TLS:
    #: ciphertext). Those of asyncio's own transports, of files that the kernel sends by sendfile(),
    #: and of the loop's sock_ methods are not among them.
    bytes_received: int
    bytes_sent: int
    #: Time in polls that were allowed to block, and between polls; measured from the first call of
    #: metrics() on. Time outside of run_forever() is neither.
    waited: float
    busy: float
    #: How many busy periods were shorter than each bound in seconds; the last bound is infinite.
    #: Each counts those of the bounds before it, too (a cumulative histogram).
    busy_periods: tuple[tuple[float, int], ...]
    #: Callbacks that are ready to run now, and timers that wait.
    ready: int
    timers: int
    #: Open transports by kind: stream, datagram, read_pipe, write_pipe. Those of sockets that keep
    #: asyncio's own transport are among them; a subprocess counts by its pipes. tls counts those of
    #: the streams that carry TLS, whoever encrypts it.
    transports: dict[str, int]

    @property
    def utilisation(self) -> float:
        """The share of its running time that the loop was busy, from 0 to 1."""
        total = self.busy + self.waited
        return self.busy / total if total else 0.0

    def lag(self, quantile: float) -> float:
        """A bound in seconds that this share of the busy periods stayed below.

        quantile: from 0 to 1; 0.99 asks how late the loop is for all but one event in a hundred.
        ValueError outside of that. Infinite when it was 4.194304 seconds or more, which is the last
        finite bound of busy_periods; 0 when the loop has not run.
        """
        if not 0.0 <= quantile <= 1.0:
            raise ValueError(f"quantile must be between 0 and 1, not {quantile!r}")
        total = self.busy_periods[-1][1]
        if total == 0:
            return 0.0
        return next(bound for bound, count in self.busy_periods if count >= quantile * total)


def _cumulative(counts: Iterable[int]) -> tuple[tuple[float, int], ...]:
    """The engine's buckets, each twice as wide as the one before it, the first a microsecond."""
    totals: list[tuple[float, int]] = []
    total = 0
    for power, count in enumerate(counts):
        total += count
        totals.append((2.0**power * 1e-6, total))
    totals[-1] = (float("inf"), total)
    return tuple(totals)


def look_from_any_thread(loop: Loop | None) -> LoopMetrics | None:
    """The metrics of a loop that may run in another thread; None where they cannot be had.

    On a free-threaded Python only the loop's own thread may look, and is asked to. None for a loop
    that does not answer within ANSWER_S, that is closed, or that is gone.
    """
    if loop is None or loop.is_closed():
        return None
    with contextlib.suppress(RuntimeError):
        return look(loop)
    answers: list[LoopMetrics] = []
    answered = threading.Event()

    def ask() -> None:
        answers.append(look(loop))
        answered.set()

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(ask)
        answered.wait(ANSWER_S)
    return answers[0] if answers else None


def look(loop: Loop) -> LoopMetrics:
    """What loop.metrics() answers."""
    counters = loop._counters()
    transports: collections.Counter[str] = collections.Counter()
    for transport in _open_transports(loop):
        transports[_kind(transport)] += 1
        if isinstance(getattr(transport, "_protocol", None), sslproto.SSLProtocol):
            transports["tls"] += 1
    return LoopMetrics(
        waited=counters.pop("waited_ns") / 1e9,
        busy=counters.pop("busy_ns") / 1e9,
        busy_periods=_cumulative(counters.pop("busy_periods")),
        ready=loop._ready_count(),
        timers=loop._timer_count(),
        transports=dict(transports),
        **counters,
    )


def _open_transports(loop: Loop) -> Iterator[Any]:
    yield from loop._open_transports()
    # asyncio's enter themselves here, and are not taken out when they are closed. This list, unlike
    # values(), is made in one step, which other threads need.
    for reference in loop._known_transports.valuerefs():
        transport = reference()
        if isinstance(transport, _FALLBACKS) and transport._sock is not None:
            yield transport


def _kind(transport: object) -> str:
    for native, kind in _KINDS.items():
        if isinstance(transport, native):
            return kind
    return "other"
