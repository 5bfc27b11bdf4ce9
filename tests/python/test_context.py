"""Context variables: each callback runs in the context it was scheduled with."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, reported, run_once, same_on_both

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def context_with(value: str) -> contextvars.Context:
    context = contextvars.copy_context()
    context.run(variable.set, value)
    return context


SCHEDULERS: dict[str, Callable[..., Any]] = {
    "call_soon": lambda loop, *args, **kwargs: loop.call_soon(*args, **kwargs),
    "call_soon_threadsafe": lambda loop, *args, **kwargs: loop.call_soon_threadsafe(
        *args, **kwargs
    ),
    "call_later": lambda loop, *args, **kwargs: loop.call_later(0, *args, **kwargs),
    "call_at": lambda loop, *args, **kwargs: loop.call_at(loop.time(), *args, **kwargs),
}
every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


def settle(loop: Any) -> None:
    loop.call_later(0.005, loop.stop)
    loop.run_forever()


@every_scheduler
def test_the_context_given(loop: Any, name: str) -> None:
    seen: list[str] = []
    context = context_with("given")
    SCHEDULERS[name](loop, lambda: seen.append(variable.get()), context=context)
    settle(loop)
    assert seen == ["given"]


@every_scheduler
def test_the_context_at_the_time_of_scheduling(loop: Any, name: str) -> None:
    seen: list[str] = []

    def schedule() -> None:
        token = variable.set("when scheduled")
        SCHEDULERS[name](loop, lambda: seen.append(variable.get()))
        SCHEDULERS[name](loop, lambda: seen.append(variable.get()), context=None)
        variable.reset(token)

    contextvars.copy_context().run(schedule)
    settle(loop)
    assert seen == ["when scheduled"] * 2


@every_scheduler
def test_changes_stay_in_the_context(loop: Any, name: str) -> None:
    seen: list[str] = []
    context = context_with("first")

    def change() -> None:
        seen.append(variable.get())
        variable.set("changed")

    SCHEDULERS[name](loop, change, context=context)
    settle(loop)
    SCHEDULERS[name](loop, change, context=context)
    settle(loop)
    assert seen == ["first", "changed"]
    assert context[variable] == "changed"
    assert variable.get() == "default"


def test_a_callback_without_a_context_gets_a_copy(loop: Any) -> None:
    loop.call_soon(variable.set, "lost")
    run_once(loop)
    assert variable.get() == "default"


@every_scheduler
def test_callbacks_scheduled_in_one_context_have_a_copy_each(loop: Any, name: str) -> None:
    seen: list[str] = []

    def change(to: str) -> None:
        seen.append(variable.get())
        variable.set(to)

    for number in range(3):
        SCHEDULERS[name](loop, lambda: seen.append(variable.get()))
        SCHEDULERS[name](loop, lambda number=number: change(f"changed by {number}"))
    settle(loop)
    assert seen == ["default"] * 6


def test_a_change_that_is_taken_back_leaves_the_next_its_own(loop: Any) -> None:
    seen: list[Any] = []
    tokens: list[Any] = []

    def set_and_keep_the_token() -> None:
        tokens.append(variable.set("default"))

    def reset_it_elsewhere() -> None:
        try:
            variable.reset(tokens[0])
        except ValueError:
            seen.append("of another context")

    loop.call_soon(set_and_keep_the_token)
    loop.call_soon(reset_it_elsewhere)
    run_once(loop)
    assert seen == ["of another context"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="get_context() came with 3.12")
def test_a_handles_context_is_the_one_it_runs_in(loop: Any) -> None:
    seen: list[Any] = []

    def change(handles: list[Any]) -> None:
        variable.set("changed")
        seen.append(handles[0].get_context()[variable])

    handles: list[Any] = []
    handles.append(loop.call_soon(change, handles))
    before = handles[0].get_context()
    kept: list[Any] = []
    kept.append(loop.call_soon(change, kept))
    run_once(loop)
    assert seen == ["changed", "changed"]
    assert handles[0].get_context() is before
    assert before[variable] == kept[0].get_context()[variable] == "changed"
    assert kept[0].get_context() is not before


@pytest.mark.skipif(sys.version_info < (3, 12), reason="get_context() came with 3.12")
def test_the_handle_of_an_error_report_has_the_context_it_failed_in(loop: Any) -> None:
    def fail() -> None:
        variable.set("set before it failed")
        raise ValueError

    with reported(loop) as contexts:
        loop.call_soon(fail)
        run_once(loop)
    assert contexts[0]["handle"].get_context()[variable] == "set before it failed"


def test_values_end_with_the_last_callback_that_could_see_them(loop: Any) -> None:
    class Value:
        pass

    value = Value()
    ended = weakref.ref(value)
    context = contextvars.copy_context()
    objects: contextvars.ContextVar[Any] = contextvars.ContextVar("objects")
    context.run(objects.set, value)
    for _ in range(3):
        context.run(loop.call_soon, lambda: None)
    context.run(loop.call_later, 0, lambda: None)
    del value, context
    settle(loop)
    gc.collect()
    assert ended() is None


@pytest.mark.parametrize("how", ["kept", "raises", "sleeps"])
def test_values_end_also_with_handles_that_are_kept(loop: Any, how: str) -> None:
    """A later callback in another context must not be what ends them."""

    class Value:
        pass

    def fail() -> None:
        raise ValueError

    objects: contextvars.ContextVar[Any] = contextvars.ContextVar("objects")
    kept: list[Any] = []

    async def sleep() -> None:
        objects.set(Value())
        ended.append(weakref.ref(objects.get()))
        await asyncio.sleep(0.001)

    ended: list[weakref.ref[Value]] = []
    with reported(loop) as contexts:
        if how == "sleeps":
            loop.run_until_complete(sleep())
        else:
            value = Value()
            ended.append(weakref.ref(value))
            context = contextvars.copy_context()
            context.run(objects.set, value)
            callback = fail if how == "raises" else len
            handle = context.run(loop.call_soon, callback, *(() if how == "raises" else ("",)))
            if how == "kept":
                kept.append(handle)
            del value, context, handle
            run_once(loop)
            assert len(contexts) == (how == "raises")
            contexts.clear()
            kept.clear()
    gc.collect()
    assert ended[0]() is None


def test_a_handle_that_is_run_by_hand_keeps_its_context(loop: Any) -> None:
    handle = loop.call_soon(variable.set, "changed")
    loop._ready.clear()
    handle._run()
    assert handle.get_context()[variable] == "changed"


def test_contexts_that_differ_each_run_in_their_own(loop: Any) -> None:
    seen: list[str] = []
    for number in range(4):
        for _ in range(1 + number % 2):
            context_with(str(number)).run(
                loop.call_soon, lambda: (seen.append(variable.get()), variable.set("changed"))
            )
    run_once(loop)
    assert seen == ["0", "1", "1", "2", "3", "3"]


def test_the_context_is_left_when_the_callback_raises(loop: Any) -> None:
    context = context_with("inside")

    def fail() -> None:
        variable.set("set before it failed")
        raise ValueError

    with reported(loop) as contexts:
        loop.call_soon(fail, context=context)
        run_once(loop)
    assert len(contexts) == 1
    assert variable.get() == "default"
    assert context.run(variable.get) == "set before it failed"


@pytest.mark.parametrize("bad", [1, "text", {}, object()], ids=["int", "str", "dict", "object"])
def test_something_else_as_context(bad: Any) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop, reported(loop) as contexts:
            called: list[int] = []
            result = outcome(lambda: loop.call_soon(called.append, 1, context=bad).cancelled())
            if result[0] == "raised":
                # Refused at once or when it would run: either is a TypeError or the like.
                return "refused"
            try:
                run_once(loop)
            except BaseException:
                return "refused"
            return "refused" if contexts and not called else "called"

    assert same_on_both(attempt) == "refused"


def test_a_context_that_is_already_entered() -> None:
    """Entering a context twice fails; the loop reports that and goes on."""

    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop, reported(loop) as contexts:
            called: list[str] = []
            context = contextvars.copy_context()

            def body() -> None:
                loop.call_soon(called.append, "in the entered context", context=context)
                loop.call_soon(called.append, "after it")
                try:
                    run_once(loop)
                except RuntimeError as exc:
                    called.append(type(exc).__name__)
                    run_once(loop)

            context.run(body)
            return [called, [type(item["exception"]).__name__ for item in contexts]]

    same_on_both(attempt)


def test_tasks_have_their_own(run: Callable[..., Any]) -> None:
    async def child(value: str) -> str:
        before = variable.get()
        variable.set(value)
        await asyncio.sleep(0)
        return f"{before}>{variable.get()}"

    async def main() -> None:
        variable.set("parent")
        results = await asyncio.gather(child("a"), child("b"))
        assert results == ["parent>a", "parent>b"]
        assert variable.get() == "parent"

    run(main)


def test_create_task_with_a_context(run: Callable[..., Any]) -> None:
    async def child() -> str:
        seen = variable.get()
        variable.set("by the task")
        await asyncio.sleep(0)
        return seen

    async def main() -> None:
        context = context_with("given")
        assert await asyncio.get_running_loop().create_task(child(), context=context) == "given"
        assert context[variable] == "by the task"

    run(main)


def test_done_callbacks(run: Callable[..., Any]) -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        seen: list[str] = []
        future.add_done_callback(lambda _: seen.append(variable.get()), context=context_with("x"))
        token = variable.set("y")
        future.add_done_callback(lambda _: seen.append(variable.get()))
        variable.reset(token)
        future.set_result(None)
        await asyncio.sleep(0)
        assert seen == ["x", "y"]

    run(main)


def test_readers_and_writers(loop: Any) -> None:
    """add_reader's callback runs in the context of the add_reader call."""
    seen: list[str] = []
    first, second = support.unix_pair()
    with first, second:
        second.send(b"x")

        def register() -> None:
            variable.set("registered")
            loop.add_reader(first, lambda: seen.append("r " + variable.get()))
            loop.add_writer(first, lambda: seen.append("w " + variable.get()))

        contextvars.copy_context().run(register)
        run_once(loop)
        loop.remove_reader(first)
        loop.remove_writer(first)
    assert seen == ["r registered", "w registered"]


def test_signal_handlers(loop: Any) -> None:
    import os
    import signal

    seen: list[str] = []

    def register() -> None:
        variable.set("registered")
        loop.add_signal_handler(signal.SIGUSR1, lambda: seen.append(variable.get()))

    contextvars.copy_context().run(register)
    loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    settle(loop)
    loop.remove_signal_handler(signal.SIGUSR1)
    assert seen == ["registered"]


def test_threads(run: Callable[..., Any]) -> None:
    async def main() -> None:
        variable.set("of the caller")
        assert await asyncio.to_thread(variable.get) == "of the caller"
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, variable.get) == "default"

    run(main)


def test_call_soon_threadsafe_takes_the_calling_threads_context(loop: Any) -> None:
    seen: list[str] = []

    def work() -> None:
        variable.set("of the thread")
        loop.call_soon_threadsafe(lambda: seen.append(variable.get()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    run_once(loop, 2)
    assert seen == ["of the thread"]


def test_protocol_callbacks_compare() -> None:
    """In which context connection_made, data_received and connection_lost run."""

    async def scenario(env: support.Env) -> None:
        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                env.log("connection_made", variable.get())

            def data_received(self, data: bytes) -> None:
                env.log("data_received", variable.get())
                variable.set(variable.get() + "+")

            def connection_lost(self, exc: BaseException | None) -> None:
                env.log("connection_lost", variable.get())
                lost.set()

        lost = asyncio.Event()
        variable.set("at creation")
        first, second = support.unix_pair()
        with second:
            transport, _ = await support.attach(first, Protocol())
            variable.set("later")
            for _ in range(3):
                second.send(b"x")
                await asyncio.sleep(0.01)
            transport.close()
            await lost.wait()

    support.compare(scenario)


def test_run_uses_one_context_for_the_main_task(loop_factory: support.LoopFactory) -> None:
    async def first() -> None:
        variable.set("kept by the runner")

    async def second() -> str:
        return variable.get()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(first())
        assert runner.run(second()) == "kept by the runner"
    assert variable.get() == "default"
