"""Handle: cancel, cancelled, repr, get_context."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import re
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, plain, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_cancel(loop: Any) -> None:
    called: list[int] = []
    handle = loop.call_soon(called.append, 1)
    assert handle.cancelled() is False
    assert handle.cancel() is None
    assert handle.cancelled() is True
    assert handle.cancel() is None
    run_once(loop)
    assert called == []
    assert handle.cancelled() is True


def test_cancel_after_it_ran(loop: Any) -> None:
    called: list[int] = []
    handle = loop.call_soon(called.append, 1)
    run_once(loop)
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()
    run_once(loop)
    assert called == [1]


def test_cancelled_by_an_earlier_callback_of_the_same_turn(loop: Any) -> None:
    called: list[str] = []
    handles: list[Any] = []
    loop.call_soon(lambda: [handle.cancel() for handle in handles])
    handles += [loop.call_soon(called.append, number) for number in range(10)]
    loop.call_soon(called.append, "after")
    run_once(loop)
    assert called == ["after"]


def test_cancelling_itself_while_it_runs(loop: Any) -> None:
    called: list[bool] = []

    def callback(value: object) -> None:
        handle.cancel()
        gc.collect()
        called.append(value is token)

    token = object()
    handle = loop.call_soon(callback, token)
    run_once(loop)
    assert called == [True]


def test_cancelled_from_another_thread(loop: Any) -> None:
    import threading

    called: list[int] = []
    handle = loop.call_soon_threadsafe(called.append, 1)
    timer = loop.call_later(0.02, called.append, 2)

    def cancel() -> None:
        handle.cancel()
        timer.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    thread.join()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert called == [] and handle.cancelled() and timer.cancelled()


def test_get_context(loop: Any) -> None:
    if not hasattr(asyncio.Handle, "get_context"):
        pytest.skip("this Python's handles have no get_context")
    context = contextvars.copy_context()
    assert loop.call_soon(print, context=context).get_context() is context
    assert loop.call_later(1, print, context=context).get_context() is context
    assert loop.call_at(1, print, context=context).get_context() is context
    assert loop.call_soon_threadsafe(print, context=context).get_context() is context
    implicit = loop.call_soon(print).get_context()
    assert isinstance(implicit, contextvars.Context) and implicit is not context


def test_handles_take_weak_references(loop: Any) -> None:
    for handle in (loop.call_soon(print), loop.call_later(1, print)):
        assert weakref.ref(handle)() is handle
        handle.cancel()


def test_handles_of_equal_calls_differ(loop: Any) -> None:
    first, second = loop.call_soon(print), loop.call_soon(print)
    assert first != second and first == first and hash(first) != hash(second)
    first.cancel()
    second.cancel()


# --------------------------------------------------------------------------- repr


def named_function(*args: Any) -> None:
    pass


class WithMethods:
    def method(self) -> None:
        pass

    def __repr__(self) -> str:
        return "<WithMethods>"


def representations(factory: support.LoopFactory, debug: bool) -> list[str]:
    texts = []
    with open_loop(factory) as loop:
        loop.set_debug(debug)
        partial = functools.partial(named_function, 1, key="value")
        callbacks: list[tuple[Any, ...]] = [
            (named_function,),
            (named_function, 1, "two"),
            (named_function, "x" * 500),
            (WithMethods().method,),
            (partial, 2),
            (functools.partial(functools.partial(named_function, "a"), "b"),),
            (print, 1),
            ([].append, 2),
            (lambda: None,),
            (WithMethods,),
        ]
        for callback in callbacks:
            handle = loop.call_soon(*callback)
            texts.append(repr(handle))
            handle.cancel()
            texts.append(repr(handle))
            timer = loop.call_at(12.5, *callback)
            texts.append(repr(timer))
            timer.cancel()
            texts.append(repr(timer))
        handle = loop.call_soon(named_function, 3)
        run_once(loop)
        texts.append(repr(handle))
        texts.append(repr(loop.call_later(1, named_function)))
    return [re.sub(r"when=\d+\.\d{4,}", "when=…", plain(text)) for text in texts]


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_repr(debug: bool) -> None:
    texts = same_on_both(lambda factory: representations(factory, debug))
    assert texts[0].startswith("<Handle ") and "named_function" in texts[0]
    assert texts[1].startswith("<Handle cancelled")
    assert texts[2].startswith("<TimerHandle when=12.5")
    assert ("created at" in texts[0]) == debug


def test_repr_of_a_callback_whose_repr_fails(loop: Any) -> None:
    class Bad:
        def __call__(self) -> None:
            pass

        def __repr__(self) -> str:
            raise ValueError("no repr")

    handle = loop.call_soon(Bad())
    with pytest.raises(ValueError, match="no repr"):
        repr(handle)
    handle.cancel()
    repr(handle)


# --------------------------------------------------------------------------- from Python


def test_types() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            handle, timer = loop.call_soon(print), loop.call_later(1, print)
            threadsafe = loop.call_soon_threadsafe(print)
            return [
                isinstance(item, kind)
                for item in (handle, timer, threadsafe)
                for kind in (asyncio.Handle, asyncio.TimerHandle)
            ]

    assert same_on_both(attempt) == [True, False, True, True, True, False]


def test_wrong_arguments_of_the_methods() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            handle, timer = loop.call_soon(print), loop.call_later(1, print)
            results = []
            for item in (handle, timer):
                results += [
                    outcome(lambda item=item: item.cancel(1))[:2],
                    outcome(lambda item=item: item.cancelled(1))[:2],
                    outcome(lambda item=item: item.cancel(x=1))[:2],
                ]
            results.append(outcome(lambda: timer.when(1))[:2])
            results.append(outcome(lambda: handle.when())[:2])
            return results

    same_on_both(attempt)


def test_a_handle_run_by_hand(loop: Any) -> None:
    """Some libraries (and asyncio's own proactor code) call Handle._run themselves."""
    called: list[int] = []
    handle = loop.call_soon(called.append, 1)
    handle._run()
    assert called == [1]
    handle.cancel()


def test_a_plain_asyncio_handle_made_for_this_loop(loop: Any) -> None:
    """asyncio.Handle(callback, args, loop) works with any loop, errors reported included."""
    reports: list[Any] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    handle = asyncio.Handle(lambda: 1 / 0, (), loop)
    handle._run()
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    assert reports[0]["handle"] is handle
    handle.cancel()


def test_handles_outlive_their_loop(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    handles = [loop.call_soon(print), loop.call_later(5, print), loop.call_at(1, print)]
    loop.close()
    del loop
    gc.collect()
    for handle in handles:
        repr(handle)
        handle.cancel()
        assert handle.cancelled()
        repr(handle)


def test_many_handles_cancelled_in_random_order(loop: Any) -> None:
    import random

    called: list[int] = []
    handles = [loop.call_soon(called.append, number) for number in range(2000)]
    order = list(range(2000))
    random.Random(2).shuffle(order)
    gone = set(order[:1500])
    for number in order[:1500]:
        handles[number].cancel()
    run_once(loop)
    assert called == [number for number in range(2000) if number not in gone]


def test_time_spent_in_a_turn_is_not_charged_to_cancelled_handles(loop: Any) -> None:
    """A turn over many cancelled handles is quick, and the next one starts clean."""
    for _ in range(100_000):
        loop.call_soon(print).cancel()
    started = time.perf_counter()
    run_once(loop)
    assert time.perf_counter() - started < 1.0 * support.TIME_SCALE


def test_arguments_exchanged_through_asyncios_own_slot(loop: Any) -> None:
    """What is no tuple there is an error, which older Pythons cannot even name; and no crash."""
    called: list[int] = []
    handle = loop.call_soon(print, 1, 2, 3, 4)
    asyncio.Handle._args.__set__(handle, 5)  # type: ignore[attr-defined]
    loop.call_soon(called.append, 1)
    with reported(loop), contextlib.suppress(TypeError):
        run_once(loop)
    if not called:
        run_once(loop)
    assert called == [1]
