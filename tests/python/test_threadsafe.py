"""call_soon_threadsafe: from any thread, in order, in time, and never onto a closed loop."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, run_once


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_from_the_loops_own_thread(loop: Any) -> None:
    order: list[Any] = []
    loop.call_soon_threadsafe(order.append, 1)
    loop.call_soon(order.append, 2)
    loop.call_soon_threadsafe(order.append, 3)
    run_once(loop, 3)
    assert sorted(order) == [1, 2, 3]
    assert order.index(1) < order.index(3)


def test_first_in_first_out_per_thread(loop: Any) -> None:
    """Each thread's callbacks run in the order it scheduled them."""
    threads_count, each = 8, 2000
    seen: list[tuple[int, int]] = []

    def received(who: int, number: int) -> None:
        seen.append((who, number))
        if len(seen) == threads_count * each:
            loop.stop()

    def work(who: int) -> None:
        for number in range(each):
            loop.call_soon_threadsafe(received, who, number)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(threads_count)]
    for thread in threads:
        thread.start()
    loop.run_forever()
    for thread in threads:
        thread.join()
    for who in range(threads_count):
        assert [number for other, number in seen if other == who] == list(range(each))


def test_order_across_threads_that_take_turns(loop: Any) -> None:
    """What happened first is run first, whichever thread it came from."""
    order: list[int] = []
    lock = threading.Lock()
    counter = iter(range(4000))

    def work() -> None:
        while True:
            with lock:
                number = next(counter, None)
                if number is None:
                    return
                loop.call_soon_threadsafe(order.append, number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_once(loop, 3)
    assert order == list(range(4000))


def test_wakes_a_sleeping_loop(loop: Any) -> None:
    """A loop without anything to do blocks in the kernel; a call from outside ends that."""
    latencies: list[float] = []

    def work() -> None:
        for _ in range(50):
            time.sleep(0.002)
            sent = time.perf_counter()
            done = threading.Event()
            loop.call_soon_threadsafe(
                lambda sent=sent, done=done: (
                    latencies.append(time.perf_counter() - sent),
                    done.set(),
                )
            )
            assert done.wait(10)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    thread.start()
    loop.run_forever()
    thread.join()
    assert sorted(latencies)[len(latencies) // 2] < 0.02 * support.TIME_SCALE


def test_wakes_a_loop_that_waits_for_a_timer(loop: Any) -> None:
    started = time.monotonic()
    handle = loop.call_later(30, loop.stop)
    timer = threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,))
    timer.start()
    loop.run_forever()
    timer.join()
    handle.cancel()
    assert time.monotonic() - started < 10


def test_before_the_loop_runs(loop: Any) -> None:
    called: list[int] = []
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.append, 1))
    thread.start()
    thread.join()
    assert called == []
    run_once(loop, 2)
    assert called == [1]


def test_burst(loop: Any) -> None:
    """A burst far beyond what a pipe could hold, while the loop is busy."""
    count = 200_000
    seen: list[int] = []

    def work() -> None:
        for number in range(count):
            loop.call_soon_threadsafe(seen.append, number)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=work)
    loop.call_soon(time.sleep, 0.05)
    thread.start()
    loop.run_forever()
    thread.join()
    assert seen == list(range(count))


def test_scheduling_from_a_callback_that_came_from_a_thread(loop: Any) -> None:
    """A wake-up that arrives while the inbox is being drained is not lost."""
    hops = 0

    def hop() -> None:
        nonlocal hops
        hops += 1
        if hops == 500:
            loop.stop()
        else:
            threading.Thread(target=loop.call_soon_threadsafe, args=(hop,)).start()

    loop.call_soon_threadsafe(hop)
    loop.run_forever()
    assert hops == 500


def test_ping_pong_between_two_loops(loop_factory: support.LoopFactory) -> None:
    rounds = 2000
    with open_loop(loop_factory) as here, open_loop(loop_factory) as there:

        def ping(number: int) -> None:
            if number == rounds:
                there.call_soon_threadsafe(there.stop)
                here.stop()
            else:
                there.call_soon_threadsafe(pong, number)

        def pong(number: int) -> None:
            here.call_soon_threadsafe(ping, number + 1)

        thread = threading.Thread(target=there.run_forever)
        thread.start()
        here.call_soon(ping, 0)
        here.run_forever()
        thread.join()


def test_onto_a_closed_loop(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            loop.call_soon_threadsafe(print)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(type(exc), str(exc)) for exc in errors] == [(RuntimeError, "Event loop is closed")]


def test_racing_with_close(loop_factory: support.LoopFactory) -> None:
    """Either it is accepted or it raises; it never crashes or hangs, and no descriptor leaks."""
    loop_factory().close()
    before = support.open_fds()
    for _ in range(100):
        loop = loop_factory()
        barrier = threading.Barrier(3)

        def work(loop: Any = loop, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            while True:
                try:
                    loop.call_soon_threadsafe(int)
                except RuntimeError as exc:
                    assert str(exc) == "Event loop is closed"
                    return

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait()
        run_once(loop, 3)
        loop.close()
        for thread in threads:
            thread.join()
    assert support.new_fds(before) == {}


def test_run_coroutine_threadsafe(loop: Any) -> None:
    results: list[Any] = []

    async def work(value: int) -> int:
        await asyncio.sleep(0.001)
        if value == 3:
            raise LookupError(value)
        return value * 2

    def ask() -> None:
        futures = [asyncio.run_coroutine_threadsafe(work(value), loop) for value in range(5)]
        for future in futures:
            try:
                results.append(future.result(10))
            except LookupError as exc:
                results.append(repr(exc))
        cancelled = asyncio.run_coroutine_threadsafe(asyncio.sleep(60), loop)
        cancelled.cancel()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=ask)
    thread.start()
    loop.run_forever()
    thread.join()
    run_once(loop, 3)
    assert results == [0, 2, 4, "LookupError(3)", 8]


def test_stop_from_another_thread_needs_the_wake_up(loop: Any) -> None:
    thread = threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,))
    started = time.monotonic()
    thread.start()
    loop.run_forever()
    thread.join()
    assert 0.04 < time.monotonic() - started < 10


def test_handles_cancelled_by_the_scheduling_thread(loop: Any) -> None:
    called: list[int] = []

    def work() -> None:
        for number in range(3000):
            handle = loop.call_soon_threadsafe(called.append, number)
            if number % 3:
                handle.cancel()
        loop.call_soon_threadsafe(loop.stop)

    # The loop is not running yet, so that every cancel comes before its callback's turn.
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    loop.run_forever()
    assert called == list(range(0, 3000, 3))


@pytest.mark.skipif(sys.platform == "win32", reason="needs setitimer")
def test_from_a_signal_handler(loop: Any) -> None:
    """A Python signal handler may interrupt any code of the loop, also its own locks."""
    count = 0

    def on_signal(signum: int, frame: Any) -> None:
        loop.call_soon_threadsafe(tick)

    def tick() -> None:
        nonlocal count
        count += 1
        if count >= 200:
            loop.stop()

    def busy() -> None:
        loop.call_soon_threadsafe(busy)

    previous = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        loop.call_soon(busy)
        loop.run_forever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert count >= 200


def test_results_of_threads_in_a_coroutine(run: Callable[..., Any]) -> None:
    async def main() -> None:
        results = await asyncio.gather(
            *(asyncio.to_thread(lambda n=number: n * n) for number in range(100))
        )
        assert results == [number * number for number in range(100)]

    run(main)
