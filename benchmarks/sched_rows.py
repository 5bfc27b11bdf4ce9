"""Rows about scheduling: callbacks, timers, tasks, threads. See in_process.py for how they run."""

from __future__ import annotations

import asyncio
import collections
import queue
import random
import socket
import threading

from in_process import Batch, Loop

BATCH = 10_000
TIMERS = 100_000
BURST = 1_000
PENDING_TIMEOUTS = 1_000


class Counter:
    """A callback that counts its calls and ends the batch with the last one."""

    def __init__(self, loop: Loop, expected: int) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._left = expected

    def __call__(self, *args: object) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.set_result(None)
        assert self._left >= 0, "a callback ran twice"


def nothing(*args: object) -> None:
    """A callback that does nothing."""


async def nothing_async() -> None:
    """A task that does nothing."""


def call_soon(loop: Loop) -> Batch:
    async def batch() -> int:
        schedule = loop.call_soon
        for _ in range(BATCH):
            schedule(nothing)
        await _behind(loop)
        return BATCH

    return batch


def call_soon_3_args(loop: Loop) -> Batch:
    async def batch() -> int:
        schedule = loop.call_soon
        for _ in range(BATCH):
            schedule(nothing, 1, 2, 3)
        await _behind(loop)
        return BATCH

    return batch


async def _behind(loop: Loop) -> None:
    """Wait for what is ready now: a callback queued last runs last."""
    done: asyncio.Future[None] = loop.create_future()
    loop.call_soon(done.set_result, None)
    await done


def call_soon_chained(loop: Loop) -> Batch:
    async def batch() -> int:
        done: asyncio.Future[None] = loop.create_future()
        schedule = loop.call_soon

        def step(left: int) -> None:
            if left:
                schedule(step, left - 1)
            else:
                done.set_result(None)

        schedule(step, BATCH)
        await done
        return BATCH

    return batch


def call_later_cancel(loop: Loop) -> Batch:
    """The life of time-outs: each is cancelled long before it is due, a thousand are pending."""
    pending: collections.deque[asyncio.TimerHandle] = collections.deque()

    async def batch() -> int:
        schedule = loop.call_later
        while len(pending) < PENDING_TIMEOUTS:
            pending.append(schedule(60.0, nothing))
        for _ in range(BATCH):
            pending.popleft().cancel()
            pending.append(schedule(60.0, nothing))
        await asyncio.sleep(0)
        return BATCH

    return batch


def timers_100k(loop: Loop) -> Batch:
    """Scheduling and firing, with deadlines in no order that are all past when firing begins."""
    rng = random.Random(42)
    delays = [rng.uniform(0, 0.005) for _ in range(TIMERS)]

    async def batch() -> int:
        counter = Counter(loop, TIMERS)
        schedule = loop.call_later
        for delay in delays:
            schedule(delay, counter)
        await counter.done
        return TIMERS

    return batch


def call_soon_threadsafe(loop: Loop) -> Batch:
    """Bursts from another thread, as a pool delivers its results."""
    orders: queue.SimpleQueue[Counter] = queue.SimpleQueue()

    def work() -> None:
        schedule = loop.call_soon_threadsafe
        while True:
            counter = orders.get()
            for _ in range(BURST):
                schedule(counter)

    threading.Thread(target=work, daemon=True).start()

    async def batch() -> int:
        counter = Counter(loop, BURST)
        orders.put(counter)
        await counter.done
        return BURST

    return batch


def sleep_0(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(BATCH):
            await asyncio.sleep(0)
        return BATCH

    return batch


def gather_100(loop: Loop) -> Batch:
    """Counted in tasks."""

    async def batch() -> int:
        for _ in range(10):
            await asyncio.gather(*[nothing_async() for _ in range(100)])
        return 1000

    return batch


def run_in_executor(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(100):
            await loop.run_in_executor(None, nothing)
        return 100

    return batch


def getaddrinfo_literal(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(100):
            found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert tuple(found[0][4]) == ("127.0.0.1", 80), found
        return 100

    return batch
