"""What happens to an exception that a callback does not handle."""

from __future__ import annotations

import asyncio
import gc
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import logged, open_loop, outcome, plain, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def fail(*args: Any) -> None:
    raise ValueError("from the callback")


def without_traceback_details(text: str) -> str:
    text = re.sub(r'File ".*?", line \d+', 'File "…", line …', plain(text))
    return re.sub(r":\d+>?", ":…", text)


# --------------------------------------------------------------------------- the default handler


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "call_soon": lambda loop: loop.call_soon(fail, 1),
    "call_later": lambda loop: loop.call_later(0, fail),
    "call_at": lambda loop: loop.call_at(loop.time(), fail),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(fail),
}


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_logged(name: str, debug: bool) -> None:
    """One record at ERROR with asyncio's text; the traceback is in exc_info."""

    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop, logged() as records:
            loop.set_debug(debug)
            loop.slow_callback_duration = 60
            SCHEDULERS[name](loop)
            loop.call_later(0.01, loop.stop)
            loop.run_forever()
            texts = [(level, without_traceback_details(text)) for level, text in records]
            return [
                (level, re.sub(r"when=[\d.…]+", "when=…", text).splitlines()[:2])
                for level, text in texts
            ]

    records = same_on_both(attempt)
    assert len(records) == 1
    level, lines = records[0]
    assert level == "ERROR" and lines[0].startswith("Exception in callback fail(")


def test_exc_info_of_the_record(loop: Any) -> None:
    import logging

    seen: list[Any] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.exc_info)

    logger = logging.getLogger("asyncio")
    capture = Capture()
    logger.addHandler(capture)
    propagate, logger.propagate = logger.propagate, False
    try:
        loop.call_soon(fail)
        run_once(loop)
    finally:
        logger.removeHandler(capture)
        logger.propagate = propagate
    kind, value, traceback = seen[0]
    assert kind is ValueError and str(value) == "from the callback"
    names = []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "fail"


def test_the_loop_goes_on(loop: Any) -> None:
    order: list[int] = []
    with logged() as records:
        for number in range(10):
            loop.call_soon(order.append, number)
            loop.call_soon(fail)
        run_once(loop)
    assert order == list(range(10)) and len(records) == 10


# --------------------------------------------------------------------------- custom handlers


def test_a_handler_gets_loop_and_context(loop: Any) -> None:
    calls: list[Any] = []
    loop.set_exception_handler(lambda *args: calls.append(args))
    handle = loop.call_soon(fail)
    run_once(loop)
    ((given, context),) = calls
    assert given is loop
    assert context["message"].startswith("Exception in callback fail()")
    assert isinstance(context["exception"], ValueError)
    assert context["handle"] is handle
    assert set(context) == {"message", "exception", "handle"}


def test_source_traceback_in_debug_mode(loop: Any) -> None:
    with reported(loop) as contexts:
        loop.set_debug(True)
        loop.call_soon(fail)
        run_once(loop)
    assert contexts[0]["source_traceback"][-1].name == "test_source_traceback_in_debug_mode"


def test_setting_and_getting(loop: Any) -> None:
    def handler(loop: Any, context: Any) -> None:
        pass

    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None
    for bad in (1, "text", object()):
        with pytest.raises(TypeError, match=r"A callable object or None is expected, got "):
            loop.set_exception_handler(bad)


def test_a_handler_that_raises() -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        def handler(loop: Any, context: Any) -> None:
            raise LookupError("from the handler")

        with open_loop(factory) as loop, logged() as records:
            loop.set_exception_handler(handler)
            loop.call_soon(fail)
            loop.call_soon(lambda: records.append(("", "next callback")))
            run_once(loop)
            return [
                (level, without_traceback_details(text).splitlines()) for level, text in records
            ]

    records = same_on_both(attempt)
    assert records[0][1][0] == "Unhandled error in exception handler"
    assert records[-1] == ("", ["next callback"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_handler_may_leave_the_loop(loop: Any, kind: type[BaseException]) -> None:
    def handler(loop: Any, context: Any) -> None:
        raise kind("from the handler")

    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    with pytest.raises(kind):
        run_once(loop)
    loop.set_exception_handler(None)
    run_once(loop)


def test_an_overridden_default_handler_that_raises() -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        probe = factory()
        base: Any = type(probe)
        probe.close()

        class Broken(base):  # type: ignore[misc]
            def default_exception_handler(self, context: Any) -> None:
                raise LookupError("from the default handler")

        with open_loop(Broken) as loop, logged() as records:
            loop.call_soon(fail)
            run_once(loop)
            return [(level, text.splitlines()[0]) for level, text in records]

    records = same_on_both(attempt)
    assert records == [("ERROR", "Exception in default exception handler")]


def test_overridden_call_exception_handler(loop_factory: support.LoopFactory) -> None:
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()
    seen: list[Any] = []

    class Quiet(base):  # type: ignore[misc]
        def call_exception_handler(self, context: Any) -> None:
            seen.append(context["exception"])

    with open_loop(Quiet) as loop:
        loop.call_soon(fail)
        run_once(loop)
    assert [type(exc) for exc in seen] == [ValueError]


def test_a_handler_runs_in_the_callbacks_context() -> None:
    """From 3.12 on the handler runs in the context of what failed."""
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")

    def attempt(factory: support.LoopFactory) -> list[str]:
        seen: list[str] = []
        context = contextvars.copy_context()
        context.run(variable.set, "inside")
        with open_loop(factory) as loop:
            loop.set_exception_handler(lambda *_: seen.append(variable.get()))
            loop.call_soon(fail, context=context)
            loop.call_later(0, fail, context=context)
            loop.call_later(0.005, loop.stop)
            loop.run_forever()
        return seen

    result = same_on_both(attempt)
    assert result == ["inside" if sys.version_info >= (3, 12) else "outside"] * 2


CONTEXTS: list[dict[str, Any]] = [
    {"message": "a message"},
    {},
    {"message": ""},
    {"message": "with extras", "zeta": 1, "alpha": "two"},
    {"message": "with an exception", "exception": ValueError("x")},
    {"exception": KeyboardInterrupt()},
    {"message": "with a future", "future": "stand-in"},
    {"message": "with a broken exception", "exception": None},
]


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_default_exception_handler_texts(context: dict[str, Any]) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop, logged() as records:
            direct = outcome(loop.default_exception_handler, context)
            through = outcome(loop.call_exception_handler, context)
            return direct, through, records

    same_on_both(attempt)


# --------------------------------------------------------------------------- kinds of exceptions


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("name", ["call_soon", "call_later", "reader", "task", "done callback"])
def test_leaves_run_forever(loop: Any, kind: type[BaseException], name: str) -> None:
    """The loop can be run again, and what was ready has not been lost (uv#335)."""
    order: list[str] = []

    def leave(*args: Any) -> None:
        raise kind("leave")

    async def leaving() -> None:
        raise kind("leave")

    first, second = support.unix_pair()
    with first, second, reported(loop) as contexts:
        if name == "reader":
            second.send(b"x")
            loop.add_reader(first, lambda: (loop.remove_reader(first), leave()))
        elif name == "task":
            task = loop.create_task(leaving())
        elif name == "done callback":
            future = loop.create_future()
            future.add_done_callback(leave)
            future.set_result(None)
        elif name == "call_later":
            loop.call_later(0.001, leave)
        else:
            loop.call_soon(leave)
        # Late enough not to be due beside the one that leaves, on a busy machine either.
        loop.call_later(0.1, order.append, "timer")
        with pytest.raises(kind, match="leave"):
            loop.run_forever()
        assert not loop.is_running() and asyncio._get_running_loop() is None
        loop.call_soon(order.append, "soon")
        loop.call_later(0.12, loop.stop)
        loop.run_forever()
        assert order == ["soon", "timer"]
        assert contexts == []
        if name == "task":
            assert isinstance(task.exception(), kind)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_was_ready_behind_it_runs_later(loop: Any, kind: type[BaseException]) -> None:
    order: list[str] = []

    def leave() -> None:
        raise kind

    loop.call_soon(order.append, "before")
    loop.call_soon(leave)
    loop.call_soon(order.append, "behind")
    with pytest.raises(kind):
        loop.run_forever()
    assert order == ["before"]
    run_once(loop)
    assert order == ["before", "behind"]


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError, StopIteration])
def test_other_base_exceptions_go_to_the_handler(kind: type[BaseException]) -> None:
    class Own(BaseException):
        pass

    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop, reported(loop) as contexts:
            for each in (kind, Own):

                def callback(each: Any = each) -> None:
                    raise each("x")

                loop.call_soon(callback)
            run_once(loop)
            return [type(context["exception"]).__name__ for context in contexts]

    assert same_on_both(attempt) == [kind.__name__, "Own"]


def test_run_until_complete_and_keyboard_interrupt() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        results: list[Any] = []
        with open_loop(factory) as loop, logged() as records:

            async def leaving() -> None:
                raise KeyboardInterrupt("in the coroutine")

            async def forever() -> None:
                await asyncio.sleep(60)

            results.append(outcome(loop.run_until_complete, leaving()))

            def interrupt() -> None:
                raise KeyboardInterrupt("beside it")

            task = loop.create_task(forever())
            loop.call_later(0.001, interrupt)
            results.append(outcome(loop.run_until_complete, task))
            results.append(task.done())
            task.cancel()
            results.append(outcome(loop.run_until_complete, task))
            gc.collect()
            results.append(records)
        return results

    same_on_both(attempt)


def test_an_exception_nobody_retrieved() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        async def broken() -> None:
            raise LookupError("never retrieved")

        with open_loop(factory) as loop, reported(loop) as contexts:
            loop.create_task(broken(), name="broken")
            future = loop.create_future()
            future.set_exception(ValueError("nor this"))
            del future
            run_once(loop, 3)
            gc.collect()
            return [
                (
                    context["message"],
                    repr(context["exception"]),
                    sorted(key for key in context if key not in ("message", "exception")),
                )
                for context in contexts
            ]

    assert len(same_on_both(attempt)) == 2


def test_pending_task_destroyed() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        async def waits() -> None:
            await asyncio.get_running_loop().create_future()

        loop = factory()
        with reported(loop) as contexts:
            loop.create_task(waits(), name="waits")
            run_once(loop, 2)
            gc.collect()
            messages = [context["message"] for context in contexts]
            contexts.clear()
        loop.close()
        return messages

    assert same_on_both(attempt) == ["Task was destroyed but it is pending!"]


def test_an_exception_whose_str_fails(loop: Any) -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise TypeError("no text")

    def callback() -> None:
        raise Bad

    with logged() as records:
        loop.call_soon(callback)
        loop.call_soon(lambda: records.append(("", "next")))
        run_once(loop)
    assert records[-1] == ("", "next")


def test_a_callback_whose_repr_fails_still_lets_the_loop_go_on() -> None:
    class Bad:
        def __call__(self) -> None:
            raise ValueError("from the callback")

        def __repr__(self) -> str:
            raise LookupError("no repr")

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop, logged():
            order: list[str] = []
            loop.call_soon(Bad())
            loop.call_soon(order.append, "next")
            result = outcome(run_once, loop)
            run_once(loop)
            return result, order

    same_on_both(attempt)


def test_reports_from_readers_and_signals() -> None:
    import os
    import signal

    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = support.unix_pair()
        with open_loop(factory) as loop, first, second, reported(loop) as contexts:
            second.send(b"x")

            def on_readable() -> None:
                first.recv(1)
                fail()

            loop.add_reader(first, on_readable)
            loop.add_signal_handler(signal.SIGUSR1, fail)
            loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
            loop.call_later(0.02, loop.stop)
            loop.run_forever()
            loop.remove_reader(first)
            loop.remove_signal_handler(signal.SIGUSR1)
            return sorted(
                (without_traceback_details(context["message"]), sorted(context))
                for context in contexts
            )

    assert len(same_on_both(attempt)) == 2
