"""call_soon: order, arguments, refusals."""

from __future__ import annotations

import asyncio
import functools
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_first_in_first_out(loop: Any) -> None:
    order: list[int] = []
    for number in range(5000):
        loop.call_soon(order.append, number)
    run_once(loop)
    assert order == list(range(5000))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 50, 300])
def test_any_number_of_arguments(loop: Any, count: int) -> None:
    seen: list[Any] = []
    loop.call_soon(lambda *args: seen.append(args), *range(count))
    run_once(loop)
    assert seen == [tuple(range(count))]


def test_every_kind_of_callable(loop: Any) -> None:
    seen: list[Any] = []

    class Callable_:
        def __call__(self, *args: Any) -> None:
            seen.append(("instance", args))

        def method(self, *args: Any) -> None:
            seen.append(("method", args))

        @classmethod
        def of_class(cls, *args: Any) -> None:
            seen.append(("class method", args))

        @staticmethod
        def static(*args: Any) -> None:
            seen.append(("static method", args))

    class Made:
        def __init__(self, *args: Any) -> None:
            seen.append(("class", args))

    instance = Callable_()
    loop.call_soon(instance, 1)
    loop.call_soon(instance.method, 2)
    loop.call_soon(Callable_.of_class, 3)
    loop.call_soon(Callable_.static, 4)
    loop.call_soon(Made, 5)
    loop.call_soon(functools.partial(instance.method, 6), 7)
    loop.call_soon(seen.append, "built-in method")
    loop.call_soon(list.append, seen, "method descriptor")
    loop.call_soon(functools.partial(seen.append), "partial")
    run_once(loop)
    assert seen == [
        ("instance", (1,)),
        ("method", (2,)),
        ("class method", (3,)),
        ("static method", (4,)),
        ("class", (5,)),
        ("method", (6, 7)),
        "built-in method",
        "method descriptor",
        "partial",
    ]


def test_result_is_a_handle(loop: Any) -> None:
    handle = loop.call_soon(print)
    assert isinstance(handle, asyncio.Handle)
    assert not isinstance(handle, asyncio.TimerHandle)
    assert not handle.cancelled()
    handle.cancel()


def test_what_a_callback_schedules_runs_next_turn(loop: Any) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_soon(order.append, "scheduled by first")

    loop.call_soon(first)
    loop.call_soon(order.append, "second")
    run_once(loop)
    assert order == ["first", "second"]
    run_once(loop)
    assert order == ["first", "second", "scheduled by first"]


def test_ready_queue_grows_while_it_is_drained(loop: Any) -> None:
    """A callback that schedules many makes the queue grow under the turn that runs it."""
    seen: list[int] = []

    def burst(level: int) -> None:
        seen.append(level)
        if level:
            for _ in range(3):
                loop.call_soon(burst, level - 1)

    loop.call_soon(burst, 7)
    run_once(loop, 9)
    assert len(seen) == sum(3**level for level in range(8))
    assert seen == sorted(seen, reverse=True)


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda loop: loop.call_soon(),
    "keyword": lambda loop: loop.call_soon(print, unknown=1),
    "callback by keyword": lambda loop: loop.call_soon(callback=None, nonsense=2),
    "context of a wrong type": lambda loop: loop.call_later(1, print, context=1, more=2),
    "call_later nothing": lambda loop: loop.call_later(),
    "call_later only delay": lambda loop: loop.call_later(1),
    "call_at only when": lambda loop: loop.call_at(1),
    "call_later None": lambda loop: loop.call_later(None, print),
    "call_at None": lambda loop: loop.call_at(None, print),
    "call_later text": lambda loop: loop.call_later("1", print),
    "call_soon_threadsafe nothing": lambda loop: loop.call_soon_threadsafe(),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls_raise_what_asyncio_raises(name: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            # The wording of argument errors differs between C and Python functions.
            return outcome(BAD_CALLS[name], loop)[:2]

    assert same_on_both(attempt) == ("raised", "TypeError")


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_at"])
def test_callbacks_that_are_none(method: str, debug: bool) -> None:
    """Debug mode refuses coroutines and what cannot be called; without it the call fails later."""

    async def coroutine_function() -> None:
        pass

    def attempt(factory: support.LoopFactory) -> list[Any]:
        results = []
        with open_loop(factory) as loop, reported(loop) as contexts:
            loop.set_debug(debug)
            for callback in (coroutine_function, None, 1, "text"):
                args = (loop.time(), callback) if method == "call_at" else (callback,)
                result = outcome(getattr(loop, method), *args)
                results.append(result if result[0] == "raised" else "accepted")
            if not debug:
                loop.call_later(0.01, loop.stop)
                with pytest.warns(RuntimeWarning, match="never awaited"):
                    loop.run_forever()
                    gc.collect()
                results += [type(context["exception"]).__name__ for context in contexts]
        return results

    result = same_on_both(attempt)
    if debug:
        assert [entry[:2] for entry in result] == [("raised", "TypeError")] * 4
    else:
        assert result == ["accepted"] * 4 + ["TypeError"] * 3


def test_arguments_are_kept_until_called_and_no_longer(loop: Any) -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    seen: list[bool] = []
    loop.call_soon(lambda value: seen.append(value is alive()), thing)
    del thing
    gc.collect()
    assert alive() is not None
    run_once(loop)
    gc.collect()
    assert seen == [True] and alive() is None


def test_cancel_lets_go_of_the_arguments_at_once(loop: Any) -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    handle = loop.call_soon(print, thing)
    timer = loop.call_later(60, print, thing)
    del thing
    handle.cancel()
    timer.cancel()
    gc.collect()
    assert alive() is None


def test_reference_counts_balance(loop: Any) -> None:
    marker = object()
    before = sys.getrefcount(marker)
    for _ in range(200):
        loop.call_soon(id, marker)
        loop.call_soon(lambda *args: None, marker, marker)
        loop.call_soon(id, marker).cancel()
        loop.call_later(0, id, marker)
        loop.call_later(60, id, marker).cancel()
        loop.call_soon_threadsafe(id, marker)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    gc.collect()
    assert sys.getrefcount(marker) == before


def test_close_lets_go_of_what_is_pending(loop_factory: support.LoopFactory) -> None:
    class Thing:
        pass

    thing = Thing()
    alive = weakref.ref(thing)
    loop = loop_factory()
    loop.call_soon(print, thing)
    loop.call_later(60, print, thing)
    loop.call_soon_threadsafe(print, thing)
    del thing
    loop.close()
    gc.collect()
    assert alive() is None


def test_call_soon_in_the_shape_the_task_uses(loop: Any) -> None:
    """Tasks call call_soon(callback, *args, context=...), whose keyword comes last."""
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
    context = contextvars.copy_context()
    context.run(variable.set, "inside")
    seen: list[str] = []
    loop.call_soon(lambda: seen.append(variable.get()), context=context)
    loop.call_soon(lambda x: seen.append(variable.get() + x), "!", context=context)
    loop.call_soon(lambda: seen.append(variable.get()), context=None)
    loop.call_soon(callback=lambda: seen.append(variable.get()))
    run_once(loop)
    assert seen == ["inside", "inside!", "outside", "outside"]
