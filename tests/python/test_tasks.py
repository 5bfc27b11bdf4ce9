"""create_task, create_future, task factories, eager tasks, names."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, run_once, same_on_both

EAGER = getattr(asyncio, "eager_task_factory", None)
needs_eager = pytest.mark.skipif(EAGER is None, reason="this Python has no eager tasks")


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


async def nothing() -> None:
    pass


def finish(loop: Any, *tasks: Any) -> list[Any]:
    return loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))  # type: ignore[no-any-return]


# --------------------------------------------------------------------------- plain


def test_exactly_asyncios_types(loop: Any) -> None:
    task = loop.create_task(nothing())
    future = loop.create_future()
    assert type(task) is asyncio.Task
    assert type(future) is asyncio.Future
    assert task.get_loop() is loop and future.get_loop() is loop
    finish(loop, task)


def test_names(loop: Any) -> None:
    named = loop.create_task(nothing(), name="a name")
    number = loop.create_task(nothing(), name=7)
    unnamed = loop.create_task(nothing())
    none = loop.create_task(nothing(), name=None)
    assert named.get_name() == "a name"
    assert number.get_name() == "7"
    assert unnamed.get_name().startswith("Task-") and none.get_name().startswith("Task-")
    assert unnamed.get_name() != none.get_name()
    finish(loop, named, number, unnamed, none)


def test_all_tasks_and_current_task(run: Callable[..., Any]) -> None:
    async def main() -> None:
        this = asyncio.current_task()
        other = asyncio.create_task(asyncio.sleep(0.01), name="other")
        assert {this, other} == asyncio.all_tasks()
        await other
        assert asyncio.all_tasks() == {this}

    run(main)


BAD_CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "nothing": lambda loop, coroutine: loop.create_task(),
    "not a coroutine": lambda loop, coroutine: loop.create_task(1),
    "a function": lambda loop, coroutine: loop.create_task(nothing),
    "a future": lambda loop, coroutine: loop.create_task(loop.create_future()),
    "two positional": lambda loop, coroutine: loop.create_task(coroutine, "name"),
    "unknown keyword": lambda loop, coroutine: loop.create_task(coroutine, unknown=1),
    "eager_start": lambda loop, coroutine: loop.create_task(coroutine, eager_start=False),
    "create_future with one": lambda loop, coroutine: loop.create_future(1),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls(name: str) -> None:
    """uv#754: what this Python's create_task does not know it refuses, and nothing else."""

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            coroutine = nothing()
            result = outcome(BAD_CALLS[name], loop, coroutine)[:2]
            run_once(loop, 2)
            coroutine.close()
            return result if result[0] == "raised" else "accepted"

    same_on_both(attempt)


def test_something_else_as_context(loop: Any) -> None:
    """asyncio's task takes it and can then never run; refusing it is as good."""
    ran: list[int] = []

    async def body() -> None:
        ran.append(1)

    coroutine = body()
    loop.set_exception_handler(lambda *args: None)
    try:
        task = loop.create_task(coroutine, context=1)
    except TypeError:
        pass
    else:
        run_once(loop, 2)
        assert not task.done()
        del task
    coroutine.close()
    gc.collect()
    assert ran == []


def test_a_generator_based_coroutine() -> None:
    """Accepted by 3.11, refused since."""
    import types

    @types.coroutine
    def steps() -> Any:
        yield
        return "done"

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            return outcome(lambda: finish(loop, loop.create_task(steps())))[:2]

    same_on_both(attempt)


def test_a_coroutine_like_object(loop: Any) -> None:
    from collections.abc import Coroutine

    class Custom(Coroutine):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.sent = 0

        def send(self, value: Any) -> Any:
            self.sent += 1
            if self.sent == 3:
                raise StopIteration("custom")
            return None

        def throw(self, *args: Any) -> Any:
            raise args[0]

        def close(self) -> None:
            pass

        def __await__(self) -> Iterator[Any]:
            return iter(())

    assert finish(loop, loop.create_task(Custom())) == ["custom"]


def test_many_tasks(loop: Any) -> None:
    async def step(number: int) -> int:
        await asyncio.sleep(0)
        return number

    results = finish(loop, *(loop.create_task(step(number)) for number in range(5000)))
    assert results == list(range(5000))


def test_tasks_are_collected(loop: Any) -> None:
    task = loop.create_task(nothing())
    alive = weakref.ref(task)
    finish(loop, task)
    del task
    run_once(loop, 2)
    gc.collect()
    assert alive() is None


# --------------------------------------------------------------------------- factories


def test_task_factory(loop: Any) -> None:
    calls: list[Any] = []

    class Own(asyncio.Task):  # type: ignore[type-arg]
        pass

    def factory(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        calls.append((loop, coroutine, kwargs))
        return Own(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    coroutine = nothing()
    context = contextvars.copy_context()
    task = loop.create_task(coroutine, name="made", context=context)
    assert type(task) is Own and task.get_name() == "made"
    assert calls[0][0] is loop and calls[0][1] is coroutine and calls[0][2]["context"] is context
    finish(loop, task)
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None
    task = loop.create_task(nothing())
    assert type(task) is asyncio.Task
    finish(loop, task)


def keywords_seen(factory: support.LoopFactory) -> list[Any]:
    seen: list[Any] = []

    def make(loop: Any, coroutine: Any, **kwargs: Any) -> Any:
        seen.append(sorted(kwargs))
        return asyncio.Task(coroutine, loop=loop)

    with open_loop(factory) as loop:
        loop.set_task_factory(make)
        tasks = [
            loop.create_task(nothing()),
            loop.create_task(nothing(), name="n"),
            loop.create_task(nothing(), context=contextvars.copy_context()),
            loop.create_task(nothing(), name="n", context=None),
        ]
        for keywords in ({"eager_start": True}, {"own": 1}):
            coroutine = nothing()
            try:
                tasks.append(loop.create_task(coroutine, **keywords))
            except TypeError:
                seen.append("TypeError")
                coroutine.close()
        seen.append([task.get_name().partition("-")[0] for task in tasks])
        finish(loop, *tasks)
    return seen


def test_which_keywords_a_factory_gets() -> None:
    """uv#754: they pass through as this Python's asyncio passes them, a factory's own included."""
    same_on_both(keywords_seen)


def test_a_factory_that_takes_no_keywords() -> None:
    """Factories from before Python 3.11 take (loop, coroutine)."""

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
            coroutine = nothing()
            result = outcome(lambda: loop.create_task(coroutine))[:2]
            run_once(loop, 2)
            coroutine.close()
            return result if result[0] == "raised" else "accepted"

    same_on_both(attempt)


def test_a_factory_that_raises_or_returns_something_else() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        results = []
        with open_loop(factory) as loop:
            for make in (lambda *args, **kwargs: 1 / 0, lambda *args, **kwargs: "not a task"):
                loop.set_task_factory(make)
                coroutine = nothing()
                results.append(outcome(loop.create_task, coroutine))
                results.append(outcome(functools.partial(loop.create_task, coroutine, name="n")))
                coroutine.close()
        return results

    same_on_both(attempt)


@pytest.mark.parametrize("bad", [1, "text", object()], ids=["int", "str", "object"])
def test_something_else_as_factory(bad: Any) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            return outcome(loop.set_task_factory, bad), loop.get_task_factory() is None

    assert same_on_both(attempt) == (
        ("raised", "TypeError", "task factory must be a callable or None"),
        True,
    )


# --------------------------------------------------------------------------- eager tasks


@needs_eager
def test_eager_factory() -> None:
    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(EAGER)

        async def immediate() -> str:
            env.log("immediate", asyncio.current_task() is not main_task)
            return "at once"

        async def waits() -> str:
            env.log("waits: starts")
            await asyncio.sleep(0)
            env.log("waits: goes on")
            return "later"

        async def fails() -> None:
            raise LookupError("at once")

        main_task = asyncio.current_task()
        first = loop.create_task(immediate())
        env.log("first done", first.done())
        second = loop.create_task(waits(), name="second")
        env.log("second done", second.done(), second.get_name())
        third = loop.create_task(fails())
        env.log("third done", third.done(), third.exception())
        env.log(await first, await second, asyncio.current_task() is main_task)
        loop.set_task_factory(None)

    support.compare(scenario)


@needs_eager
def test_eager_before_the_loop_runs(loop: Any) -> None:
    """Without a running loop an eager task starts like any other."""
    loop.set_task_factory(EAGER)
    order: list[str] = []

    async def body() -> None:
        order.append("body")

    task = loop.create_task(body())
    assert order == []
    finish(loop, task)
    assert order == ["body"]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="eager_start is new in 3.14")
def test_eager_start_keyword(run: Callable[..., Any]) -> None:
    """uv#746, uv#754: loop.create_task(coro, eager_start=True) without any factory."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        order: list[str] = []

        async def body() -> None:
            order.append("body")

        task = loop.create_task(body(), eager_start=True)
        assert order == ["body"] and task.done()
        task = loop.create_task(body(), eager_start=False)
        assert order == ["body"]
        await task

    run(main)


def test_create_task_signature_is_asyncios() -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            try:
                parameters = inspect.signature(loop.create_task).parameters
            except ValueError:
                return "no signature"
            return "coro" in parameters

    assert same_on_both(attempt)


# --------------------------------------------------------------------------- debug


def test_source_traceback_ends_at_the_caller(loop: Any) -> None:
    loop.set_debug(True)
    task = loop.create_task(nothing())
    future = loop.create_future()
    finish(loop, task)
    assert task._source_traceback[-1].name == "test_source_traceback_ends_at_the_caller"
    # create_future may or may not be a Python frame of its own.
    frames = [frame.name for frame in future._source_traceback[-2:]]
    assert "test_source_traceback_ends_at_the_caller" in frames


def test_closed_loop_leaves_the_coroutine_alone(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    loop.close()
    coroutine = nothing()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    coroutine.close()
