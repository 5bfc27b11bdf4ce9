"""The loop's life: made, run, stopped, closed."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import logged, open_loop, outcome, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


# --------------------------------------------------------------------------- open


def test_a_new_loop(loop: Any) -> None:
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert not loop.is_running()
    assert not loop.is_closed()
    assert loop.get_debug() is False
    assert loop.get_task_factory() is None
    assert loop.get_exception_handler() is None
    assert hash(loop) == hash(loop) and loop == loop and loop != object()


def test_making_a_loop_makes_nothing_current(loop_factory: support.LoopFactory) -> None:
    with open_loop(loop_factory):
        assert asyncio._get_running_loop() is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop(None)
            with pytest.raises(RuntimeError):
                asyncio.get_event_loop()


def test_time_is_monotonic_time(loop: Any) -> None:
    """uv#359, uv#29"""
    before = time.monotonic()
    now = loop.time()
    after = time.monotonic()
    assert isinstance(now, float) and before <= now <= after


def test_repr_tells_the_state(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    texts = [repr(loop)]
    loop.set_debug(True)
    loop.call_soon(lambda: texts.append(repr(loop)))
    run_once(loop)
    loop.close()
    texts.append(repr(loop))
    assert "running=False closed=False debug=False" in texts[0]
    assert "running=True closed=False debug=True" in texts[1]
    assert "running=False closed=True debug=True" in texts[2]
    assert all(text.startswith("<") and text.endswith(">") for text in texts)


def test_cpploop_says_its_name() -> None:
    """Users must see which loop they run, in repr as elsewhere (aegis-stack#1200)."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("cpploop is not selected")
    with open_loop(support.factory("cpploop")) as loop:
        assert "cpploop" in repr(loop).lower()


def test_many_loops_one_after_another_leave_no_descriptors(
    loop_factory: support.LoopFactory,
) -> None:
    loop_factory().close()
    before = support.open_fds()
    for _ in range(50):
        loop = loop_factory()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    loops = [loop_factory() for _ in range(20)]
    for loop in loops:
        loop.close()
    assert support.new_fds(before) == {}


# --------------------------------------------------------------------------- running


def test_run_forever_until_stop(loop: Any) -> None:
    seen: list[Any] = []

    def check() -> None:
        seen.append((loop.is_running(), asyncio.get_running_loop() is loop))
        loop.stop()

    loop.call_soon(check)
    assert loop.run_forever() is None
    assert seen == [(True, True)]
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None


def test_stop_before_run_forever_runs_one_turn(loop: Any) -> None:
    order: list[Any] = []
    loop.call_soon(order.append, 1)
    loop.call_soon(lambda: loop.call_soon(order.append, "next turn"))
    loop.call_soon(order.append, 2)
    loop.stop()
    loop.run_forever()
    assert order == [1, 2]
    loop.stop()
    loop.run_forever()
    assert order == [1, 2, "next turn"]


def test_stop_counts_once(loop: Any) -> None:
    order: list[int] = []
    loop.stop()
    loop.stop()
    loop.run_forever()
    loop.call_soon(order.append, 1)
    started = time.monotonic()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert order == [1] and time.monotonic() - started >= 0.01


def test_stop_lets_the_turn_finish(loop: Any) -> None:
    order: list[Any] = []
    loop.call_soon(loop.stop)
    loop.call_soon(order.append, "same turn")
    loop.call_soon(lambda: loop.call_soon(order.append, "later"))
    loop.run_forever()
    assert order == ["same turn"]
    run_once(loop)
    assert order == ["same turn", "later"]


def test_run_until_complete_takes_anything_awaitable(loop: Any) -> None:
    class Awaitable:
        def __await__(self) -> Iterator[Any]:
            yield
            return "awaitable"

    async def coroutine() -> str:
        await asyncio.sleep(0)
        return "coroutine"

    future = loop.create_future()
    future.set_result("future")
    assert loop.run_until_complete(coroutine()) == "coroutine"
    assert loop.run_until_complete(future) == "future"
    assert loop.run_until_complete(Awaitable()) == "awaitable"
    task = loop.create_task(coroutine())
    assert loop.run_until_complete(task) == "coroutine"
    assert loop.run_until_complete(task) == "coroutine"


@pytest.mark.parametrize(
    "value",
    [None, 1, "text", print, lambda: None],
    ids=["None", "int", "str", "builtin", "lambda"],
)
def test_run_until_complete_of_something_else(value: Any) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            return loop.run_until_complete(value)

    assert same_on_both(attempt)[:2] == ("raised", "TypeError")


def test_run_until_complete_raises_what_the_coroutine_raised(loop: Any) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    with logged() as records, pytest.raises(LookupError, match="mine"):
        loop.run_until_complete(fail())
    gc.collect()
    assert records == []
    assert loop.run_until_complete(asyncio.sleep(0, "usable again")) == "usable again"


def test_run_until_complete_of_a_cancelled_task(loop: Any) -> None:
    async def main() -> None:
        await asyncio.sleep(10)

    task = loop.create_task(main())
    loop.call_soon(task.cancel, "reason")
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)


def test_stopped_before_the_future_completed() -> None:
    def attempt(factory: support.LoopFactory) -> None:
        with open_loop(factory) as loop:
            loop.call_soon(loop.stop)
            loop.run_until_complete(loop.create_future())

    assert same_on_both(attempt) == (
        "raised",
        "RuntimeError",
        "Event loop stopped before Future completed.",
    )


def test_stop_in_the_turn_in_which_the_future_completes(loop: Any) -> None:
    async def main() -> str:
        loop.stop()
        return "result"

    # The task is done before its callback stops the loop: as asyncio, which is where it matters.
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:

            async def main() -> str:
                await asyncio.sleep(0)
                loop.stop()
                return "result"

            return loop.run_until_complete(main())

    same_on_both(attempt)
    loop.run_until_complete(asyncio.sleep(0))


def test_a_stopped_run_leaves_no_callback_on_the_future(loop: Any) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError):
        loop.run_until_complete(future)
    future.set_result(None)
    ticks: list[int] = []
    loop.call_later(0.02, ticks.append, 1)
    loop.call_later(0.03, loop.stop)
    loop.run_forever()
    assert ticks == [1], "the first run's callback stopped the second run"


def test_future_of_another_loop() -> None:
    def attempt(factory: support.LoopFactory) -> None:
        with open_loop(factory) as loop, open_loop(factory) as other:
            loop.run_until_complete(other.create_future())

    assert same_on_both(attempt)[:2] == ("raised", "ValueError")


def test_running_twice(loop_name: str, loop_factory: support.LoopFactory) -> None:
    seen: list[Any] = []
    nested = ("raised", "RuntimeError", "This event loop is already running")
    second = (
        "raised",
        "RuntimeError",
        "Cannot run the event loop while another loop is running",
    )

    async def never() -> None:
        pass

    def check() -> None:
        try:
            attempt()
        finally:
            loop.stop()

    def attempt() -> None:
        seen.append(outcome(loop.run_forever))
        if loop_name == "asyncio" and not loop.is_running():
            # The first releases of 3.12 and 3.13 forget that the loop runs once they refused.
            return
        seen.append(outcome(other.run_forever))
        for candidate in (loop, other):
            coroutine = never()
            seen.append(outcome(candidate.run_until_complete, coroutine))
            coroutine.close()
        seen.append((loop.is_running(), other.is_running()))
        seen.append(outcome(loop.close))
        seen.append(asyncio.get_running_loop() is loop)

    with open_loop(loop_factory) as loop, open_loop(loop_factory) as other:
        loop.call_soon(check)
        loop.run_forever()
        assert asyncio._get_running_loop() is None
        # A refused run leaves nothing behind in the second loop.
        other.run_until_complete(asyncio.sleep(0))
    gc.collect()
    assert seen[0] == nested
    if len(seen) == 1:
        pytest.skip("this Python forgets that the loop runs")
    assert seen[1:4] == [second, nested, second]
    assert seen[4] == (True, False)
    assert seen[5] == ("raised", "RuntimeError", "Cannot close a running event loop")
    assert seen[6] is True


def test_a_loop_runs_in_any_thread_and_in_several_at_once(
    loop_factory: support.LoopFactory,
) -> None:
    results: list[Any] = []

    def work(number: int) -> None:
        with open_loop(loop_factory) as loop:
            assert loop.run_until_complete(asyncio.sleep(0.02, number)) == number
            results.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(8))


def test_a_thread_has_no_running_loop_of_another_thread(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, asyncio._get_running_loop) is None

    run(main)


def test_an_idle_loop_does_not_spin(run: Callable[..., Any]) -> None:
    """C14, zuv#70"""

    async def main() -> None:
        await support.assert_idle()

    run(main)


# --------------------------------------------------------------------------- closed


def test_close(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    called: list[int] = []
    loop.call_soon(called.append, 1)
    loop.call_later(0, called.append, 2)
    assert loop.close() is None
    assert loop.is_closed() and not loop.is_running()
    loop.close()
    assert called == []


CLOSED_CALLS: dict[str, Callable[[Any, socket.socket], Any]] = {
    "call_soon": lambda loop, sock: loop.call_soon(print),
    "call_soon_threadsafe": lambda loop, sock: loop.call_soon_threadsafe(print),
    "call_later": lambda loop, sock: loop.call_later(1, print),
    "call_later past": lambda loop, sock: loop.call_later(-1, print),
    "call_at": lambda loop, sock: loop.call_at(loop.time(), print),
    "run_forever": lambda loop, sock: loop.run_forever(),
    "run_until_complete": lambda loop, sock: loop.run_until_complete(loop.create_future()),
    "run_in_executor": lambda loop, sock: loop.run_in_executor(None, print),
    "add_reader": lambda loop, sock: loop.add_reader(sock, print),
    "add_writer": lambda loop, sock: loop.add_writer(sock, print),
    "remove_reader": lambda loop, sock: loop.remove_reader(sock),
    "remove_writer": lambda loop, sock: loop.remove_writer(sock),
    "add_signal_handler": lambda loop, sock: loop.add_signal_handler(10, print),
    "remove_signal_handler": lambda loop, sock: loop.remove_signal_handler(10),
    "stop": lambda loop, sock: loop.stop(),
    "time": lambda loop, sock: loop.time() > 0,
    "is_running": lambda loop, sock: loop.is_running(),
    "create_future": lambda loop, sock: loop.create_future().done(),
    "set_debug": lambda loop, sock: loop.set_debug(True),
    "set_exception_handler": lambda loop, sock: loop.set_exception_handler(print),
    "default_exception_handler": lambda loop, sock: loop.default_exception_handler(
        {"message": "after close"}
    ),
    "call_exception_handler": lambda loop, sock: loop.call_exception_handler(
        {"message": "after close"}
    ),
    "set_task_factory": lambda loop, sock: loop.set_task_factory(None),
    "close": lambda loop, sock: loop.close(),
}
CLOSED_ERROR = ("raised", "RuntimeError", "Event loop is closed")
CLOSED_RAISES = {
    "call_soon",
    "call_soon_threadsafe",
    "call_later",
    "call_later past",
    "call_at",
    "run_forever",
    "run_until_complete",
    "run_in_executor",
    "add_reader",
    "add_writer",
    "add_signal_handler",
}


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("name", CLOSED_CALLS)
def test_calls_on_a_closed_loop(name: str, debug: bool) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        loop: Any = factory()
        loop.set_debug(debug)
        loop.close()
        first, second = support.unix_pair()
        with first, second, logged() as records:
            result = outcome(CLOSED_CALLS[name], loop, first)
        return result, records

    result, _ = same_on_both(attempt)
    assert (result == CLOSED_ERROR) == (name in CLOSED_RAISES)


def test_create_task_on_a_closed_loop() -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        loop = factory()
        loop.close()

        async def main() -> None:
            pass

        coroutine = main()
        try:
            return outcome(loop.create_task, coroutine)
        finally:
            coroutine.close()

    assert same_on_both(attempt) == CLOSED_ERROR


CLOSED_COROUTINES: dict[str, Callable[[Any, socket.socket], Any]] = {
    "getaddrinfo": lambda loop, sock: loop.getaddrinfo("localhost", 1),
    "getnameinfo": lambda loop, sock: loop.getnameinfo(("127.0.0.1", 1)),
    "create_connection": lambda loop, sock: loop.create_connection(
        asyncio.Protocol, "localhost", 1
    ),
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("name", CLOSED_COROUTINES)
def test_coroutines_of_a_closed_loop(name: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        loop = factory()
        loop.close()
        first, second = support.unix_pair()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        with first, second, listener:
            sock = listener if name == "sock_accept" else first
            return outcome(CLOSED_COROUTINES[name](loop, sock).send, None)

    assert same_on_both(attempt) == CLOSED_ERROR


# --------------------------------------------------------------------------- asyncio.run


def shutdown_trace(factory: support.LoopFactory, fail: bool = False) -> list[Any]:
    trace: list[Any] = []
    loops: list[Any] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            trace.append("cancelled")
            await asyncio.sleep(0)
            trace.append("cleaned up after it")
            raise

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            trace.append("stubborn")
            raise ValueError("in cleanup") from None

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            trace.append("generator closed")

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        loop.set_exception_handler(
            lambda _, context: trace.append((context["message"], repr(context.get("exception"))))
        )
        held.append(asyncio.create_task(stubborn() if fail else straggler()))
        generator = numbers()
        held.append(generator)
        await anext(generator)
        await loop.run_in_executor(None, trace.append, "executor used")
        executor = loop._default_executor  # type: ignore[attr-defined]
        inner = executor.shutdown

        def shutdown(*args: Any, **kwargs: Any) -> Any:
            trace.append("executor shut down")
            return inner(*args, **kwargs)

        executor.shutdown = shutdown
        trace.append("main ends")
        if fail:
            raise LookupError("from main")
        return "result"

    held: list[Any] = []
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            trace.append(runner.run(main()))
    except LookupError as exc:
        trace.append(repr(exc))
    trace.append((loops[0].is_closed(), loops[0].is_running()))
    return trace


@pytest.mark.parametrize("fail", [False, True])
def test_order_of_asyncio_runs_shutdown(fail: bool) -> None:
    """Tasks are cancelled, then generators closed, then the executor, then the loop."""
    trace = same_on_both(lambda factory: shutdown_trace(factory, fail))
    cancelled = "stubborn" if fail else "cancelled"
    wanted = ["main ends", cancelled, "generator closed", "executor shut down"]
    # close() shuts the executor down once more, which does nothing any more.
    assert [step for step in trace if step in wanted][:4] == wanted
    assert trace[-1] == (True, False)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run has loop_factory from 3.12 on")
def test_asyncio_run_with_the_factory(loop_factory: support.LoopFactory) -> None:
    async def main() -> Any:
        return asyncio.get_running_loop()

    loop = asyncio.run(main(), loop_factory=loop_factory)
    assert loop.is_closed()
    loop = asyncio.run(main(), loop_factory=loop_factory, debug=True)
    assert loop.get_debug()


def test_runner_keeps_its_loop_between_runs(loop_factory: support.LoopFactory) -> None:
    async def main() -> Any:
        return asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loops = {runner.run(main()) for _ in range(3)} | {runner.get_loop()}
        assert len(loops) == 1
    assert loops.pop().is_closed()
