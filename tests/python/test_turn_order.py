"""What runs when within the loop's turns, compared with asyncio step by step.

A turn: poll; queue the poll's I/O events, then the due timers, behind what was ready; run exactly
that many.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_sleep_zero_takes_turns() -> None:
    async def scenario(env: support.Env) -> None:
        async def worker(name: str, steps: int) -> None:
            for step in range(steps):
                env.log(name, step)
                await asyncio.sleep(0)

        await asyncio.gather(worker("a", 5), worker("b", 3), worker("c", 4))

    trace = support.compare(scenario)
    assert trace[:6] == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("c", 1)]


def test_sleep_zero_against_call_soon_and_futures() -> None:
    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        future.add_done_callback(lambda _: env.log("done callback"))

        async def waiter(name: str) -> None:
            env.log(name, await asyncio.shield(future))

        tasks = [asyncio.create_task(waiter("one")), asyncio.create_task(waiter("two"))]
        await asyncio.sleep(0)
        loop.call_soon(env.log, "before the result")
        future.set_result("result")
        loop.call_soon(env.log, "after the result")
        loop.call_soon_threadsafe(env.log, "threadsafe")
        for number in range(4):
            env.log("main", number)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    support.compare(scenario)


def test_events_before_timers(loop: Any) -> None:
    """I/O that is ready and a timer that is due in the same turn: the I/O runs first."""
    order: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        second.send(b"x")
        loop.add_reader(first, order.append, "reader")
        loop.call_at(loop.time() - 1, order.append, "timer")
        loop.call_soon(order.append, "ready")
        run_once(loop)
        assert order == ["ready", "reader", "timer"]
        loop.remove_reader(first)


def test_a_reader_runs_while_callbacks_keep_coming(loop: Any) -> None:
    """Ready callbacks starve neither descriptors nor timers."""
    order: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        loop.add_reader(first, lambda: (first.recv(10), order.append("reader")))
        loop.call_later(0.005, order.append, "timer")
        turns = 0

        def busy() -> None:
            nonlocal turns
            turns += 1
            if turns == 3:
                second.send(b"x")
            if len(order) < 2 and turns < 2_000_000:
                loop.call_soon(busy)
            else:
                loop.stop()

        loop.call_soon(busy)
        loop.run_forever()
        loop.remove_reader(first)
    assert order == ["reader", "timer"]


def test_a_threads_call_runs_while_callbacks_keep_coming(loop: Any) -> None:
    """The poll may be skipped while nothing is registered, but the inbox is looked at."""
    arrived = threading.Event()
    stop_at = time.monotonic() + 20

    def busy() -> None:
        if arrived.is_set() or time.monotonic() > stop_at:
            loop.stop()
        else:
            loop.call_soon(busy)

    timer = threading.Timer(0.02, lambda: loop.call_soon_threadsafe(arrived.set))
    timer.start()
    loop.call_soon(busy)
    loop.run_forever()
    timer.join()
    assert arrived.is_set()


def test_exactly_as_many_as_were_ready(loop: Any) -> None:
    order: list[Any] = []

    def schedule(name: str) -> None:
        order.append(name)
        loop.call_soon(order.append, f"{name} again")

    loop.call_soon(schedule, "a")
    loop.call_soon(schedule, "b")
    run_once(loop)
    order.append("next turn")
    run_once(loop)
    assert order == ["a", "b", "next turn", "a again", "b again"]


def test_stop_lets_events_and_timers_of_the_turn_run() -> None:
    def attempt(factory: support.LoopFactory) -> list[str]:
        order: list[str] = []
        first, second = support.unix_pair()
        with open_loop(factory) as loop, first, second:
            second.send(b"x")
            loop.add_reader(first, lambda: (first.recv(1), order.append("reader")))
            loop.call_at(loop.time() - 1, order.append, "timer")
            loop.call_soon(loop.stop)
            loop.call_soon(order.append, "ready")
            loop.call_soon(loop.call_soon, order.append, "left for the next run")
            loop.run_forever()
            order.append("stopped")
            run_once(loop)
            loop.remove_reader(first)
        return order

    assert same_on_both(attempt) == [
        "ready",
        "reader",
        "timer",
        "stopped",
        "left for the next run",
    ]


def test_a_reader_removed_by_an_earlier_callback_of_the_turn(loop: Any) -> None:
    """An event whose registration died in the turn is dropped (C4)."""
    called: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        second.send(b"x")
        loop.add_reader(first, called.append, "reader")
        loop.call_soon(loop.remove_reader, first)
        run_once(loop, 2)
        assert called == []


def test_the_second_of_two_readers_removed_by_the_first() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        called: list[str] = []
        pairs = [support.unix_pair() for _ in range(2)]
        with open_loop(factory) as loop:

            def on_ready(index: int) -> None:
                called.append("reader")
                loop.remove_reader(pairs[1 - index][0])

            for index, (first, second) in enumerate(pairs):
                second.send(b"x")
                loop.add_reader(first, on_ready, index)
            run_once(loop)
            for first, second in pairs:
                loop.remove_reader(first)
                first.close()
                second.close()
        return called

    assert same_on_both(attempt) == ["reader"]


def test_a_timer_cancelled_by_an_event_of_the_same_turn(loop: Any) -> None:
    order: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        second.send(b"x")
        timer = loop.call_at(loop.time() - 1, order.append, "timer")
        loop.add_reader(first, lambda: (first.recv(1), timer.cancel(), order.append("reader")))
        run_once(loop, 2)
        loop.remove_reader(first)
    assert order == ["reader"]


def test_reader_and_writer_of_one_descriptor(loop: Any) -> None:
    order: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        second.send(b"x")
        loop.add_writer(first, order.append, "writer")
        loop.add_reader(first, order.append, "reader")
        run_once(loop)
        assert order == ["reader", "writer"]
        loop.remove_reader(first)
        loop.remove_writer(first)


def test_tasks_done_callbacks_and_exceptions() -> None:
    async def scenario(env: support.Env) -> None:
        async def fail(name: str) -> None:
            await asyncio.sleep(0)
            env.log(name, "raises")
            raise ValueError(name)

        async def succeed(name: str) -> str:
            await asyncio.sleep(0)
            env.log(name, "returns")
            return name

        tasks = [
            asyncio.create_task(fail("one")),
            asyncio.create_task(succeed("two")),
            asyncio.create_task(fail("three")),
        ]
        for task in tasks:
            task.add_done_callback(lambda done: env.log("done", done.exception()))
        env.log("gathered", await asyncio.gather(*tasks, return_exceptions=True))

    support.compare(scenario)


def test_queues_locks_and_events() -> None:
    async def scenario(env: support.Env) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(2)
        lock = asyncio.Lock()
        event = asyncio.Event()

        async def producer() -> None:
            for number in range(6):
                await queue.put(number)
                env.log("put", number)
            event.set()

        async def consumer(name: str) -> None:
            for _ in range(3):
                number = await queue.get()
                async with lock:
                    env.log(name, number)
                    await asyncio.sleep(0)
            await event.wait()
            env.log(name, "ends")

        await asyncio.gather(producer(), consumer("a"), consumer("b"))

    support.compare(scenario)


def test_cancellation_order() -> None:
    async def scenario(env: support.Env) -> None:
        async def inner(name: str) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as exc:
                env.log(name, "cancelled", str(exc))
                await asyncio.sleep(0)
                env.log(name, "cleaned")
                raise

        async def outer() -> None:
            async with asyncio.TaskGroup() as group:
                # One only: in which order a group cancels its tasks depends on their addresses.
                group.create_task(inner("a"))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                raise LookupError("ends the group")

        try:
            await outer()
        except* LookupError as group:
            env.log("group", [repr(exc) for exc in group.exceptions])
        try:
            async with asyncio.timeout(0.01):
                await inner("timed out")
        except TimeoutError:
            env.log("timeout")

    support.compare(scenario)


def test_random_programs_take_the_same_steps() -> None:
    """Many little tasks that sleep, signal and cancel each other, by a fixed choice of numbers."""
    import random

    async def scenario(env: support.Env) -> None:
        generator = random.Random(7)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(20)]
        tasks: list[asyncio.Task[None]] = []

        async def actor(number: int) -> None:
            try:
                for _ in range(12):
                    choice = generator.randrange(6)
                    target = generator.randrange(20)
                    env.log(number, choice, target)
                    if choice == 0:
                        await asyncio.sleep(0)
                    elif choice == 1 and not futures[target].done():
                        futures[target].set_result(number)
                    elif choice == 2:
                        loop.call_soon(env.log, "callback of", number)
                    elif choice == 3:
                        await asyncio.wait([futures[target]], timeout=0)
                    elif choice == 4 and target % 4 == 0:
                        tasks[target].cancel()
                    else:
                        handle = loop.call_soon(env.log, "never")
                        handle.cancel()
                        await asyncio.sleep(0)
            except asyncio.CancelledError:
                env.log(number, "was cancelled")

        tasks += [asyncio.create_task(actor(number)) for number in range(20)]
        await asyncio.wait(tasks)

    assert len(support.compare(scenario)) > 100


def test_pipe_and_socket_events_of_one_poll_all_run(loop: Any) -> None:
    """More descriptors become ready at once than one poll may report."""
    count = 700
    seen: set[int] = set()
    pairs = [socket.socketpair() for _ in range(count)]
    try:
        for index, (first, second) in enumerate(pairs):
            first.setblocking(False)
            loop.add_reader(first, seen.add, index)
            second.send(b"x")
        run_once(loop, 5)
        assert seen == set(range(count))
    finally:
        for first, second in pairs:
            loop.remove_reader(first)
            first.close()
            second.close()


def test_fair_between_busy_descriptors(loop: Any) -> None:
    """Two descriptors that are always ready are served alternately."""
    reads: list[str] = []
    pipes = {name: os.pipe() for name in "ab"}
    try:
        for name, (reader, _) in pipes.items():
            loop.add_reader(reader, reads.append, name)
        for _, writer in pipes.values():
            os.write(writer, b"data that nobody reads")
        run_once(loop, 50)
        assert reads.count("a") == reads.count("b") == 50
        assert all(set(reads[i : i + 2]) == {"a", "b"} for i in range(0, 100, 2))
    finally:
        for reader, writer in pipes.values():
            loop.remove_reader(reader)
            os.close(reader)
            os.close(writer)


def test_order_of_eager_and_ordinary_tasks() -> None:
    factory: Callable[..., Any] | None = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("this Python has no eager tasks")

    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()

        async def step(name: str) -> str:
            env.log(name, "starts")
            await asyncio.sleep(0)
            env.log(name, "ends")
            return name

        ordinary = loop.create_task(step("ordinary"))
        loop.set_task_factory(factory)
        eager = loop.create_task(step("eager"))
        env.log("both made")
        await asyncio.gather(ordinary, eager)
        loop.set_task_factory(None)

    trace = support.compare(scenario)
    assert trace[:3] == [("eager", "starts"), ("both made",), ("ordinary", "starts")]
