"""Debug mode: how it is turned on, and what it checks and reports."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import logged, open_loop, outcome, plain, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


# --------------------------------------------------------------------------- turning it on


SWITCHES: dict[str, tuple[list[str], dict[str, str], bool]] = {
    "nothing": ([], {}, False),
    "-X dev": (["-X", "dev"], {}, True),
    "PYTHONASYNCIODEBUG=1": ([], {"PYTHONASYNCIODEBUG": "1"}, True),
    "PYTHONASYNCIODEBUG empty": ([], {"PYTHONASYNCIODEBUG": ""}, False),
    "PYTHONDEVMODE=1": ([], {"PYTHONDEVMODE": "1"}, True),
    "ignored environment": (["-E"], {"PYTHONASYNCIODEBUG": "1"}, False),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches(loop_name: str, switch: str) -> None:
    flags, extra, expected = SWITCHES[switch]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE")
    }
    if "-E" in flags and "PYTHONPATH" in environment:
        pytest.skip("-E ignores the PYTHONPATH that cpploop may be found by")
    source = f"""
        import asyncio, sys
        sys.path.insert(0, {os.path.dirname(support.__file__)!r})
        import support
        loop = support.factory({loop_name!r})()
        print(loop.get_debug())
        loop.close()
        """
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(source)],
        env={**environment, **extra},
        capture_output=True,
        text=True,
        timeout=30 * support.TIME_SCALE,
    )
    assert done.stdout == f"{expected}\n", done.stderr


def test_set_debug(loop: Any) -> None:
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 5
    assert loop.slow_callback_duration == 5


def test_runner_debug(loop_factory: support.LoopFactory) -> None:
    for debug in (True, False):
        with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
            assert runner.get_loop().get_debug() is debug


def test_set_debug_while_running(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert sys.get_coroutine_origin_tracking_depth() == 0
        loop.set_debug(True)
        await asyncio.sleep(0)
        assert sys.get_coroutine_origin_tracking_depth() > 0
        loop.set_debug(False)
        await asyncio.sleep(0)
        assert sys.get_coroutine_origin_tracking_depth() == 0

    run(main)


def test_coroutine_origin_tracking_only_while_running(loop: Any) -> None:
    depths: list[int] = []
    loop.set_debug(True)
    assert sys.get_coroutine_origin_tracking_depth() == 0
    loop.call_soon(lambda: depths.append(sys.get_coroutine_origin_tracking_depth()))
    run_once(loop)
    assert depths == [10]
    assert sys.get_coroutine_origin_tracking_depth() == 0


def test_coroutine_origin_tracking_depth_is_put_back(loop: Any) -> None:
    loop.set_debug(True)
    sys.set_coroutine_origin_tracking_depth(3)
    try:
        run_once(loop)
        assert sys.get_coroutine_origin_tracking_depth() == 3
    finally:
        sys.set_coroutine_origin_tracking_depth(0)


def test_a_coroutine_never_awaited_tells_where_it_was_made(run: Callable[..., Any]) -> None:
    async def forgotten() -> None:
        pass

    async def main() -> None:
        forgotten()
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(main, debug=True)
    text = "\n".join(str(item.message) for item in caught)
    assert "was never awaited" in text and "Coroutine created at" in text


# --------------------------------------------------------------------------- slow callbacks


def slow_reports(factory: support.LoopFactory, kind: str, debug: bool = True) -> list[Any]:
    def slow_function(*args: Any) -> None:
        time.sleep(0.03)

    async def slow_coroutine() -> None:
        time.sleep(0.03)

    first, second = support.unix_pair()
    with open_loop(factory) as loop, first, second, logged() as records:
        loop.set_debug(debug)
        loop.slow_callback_duration = 0.02
        if kind == "callback":
            loop.call_soon(slow_function, 1)
        elif kind == "timer":
            loop.call_later(0.001, slow_function)
        elif kind == "task":
            loop.create_task(slow_coroutine(), name="slow")
        elif kind == "reader":
            second.send(b"x")
            loop.add_reader(first, lambda: (loop.remove_reader(first), slow_function()))
        elif kind == "fast":
            loop.call_soon(int)
        else:
            loop.call_soon(loop.call_exception_handler, {"message": "unused"})
            loop.call_soon(slow_function)
        loop.call_later(0.01, loop.stop)
        loop.run_forever()
        loop.set_debug(False)
        gc.collect()
    # Where asyncio says that a reader was made in its own add_reader, the caller's line is as good.
    texts = [(level, re.sub(r" created at [^>]*", "", plain(text))) for level, text in records]
    return [
        (level, re.sub(r":\d+", ":…", re.sub(r"when=[\d.]+", "when=…", text)))
        for level, text in texts
    ]


@pytest.mark.parametrize("kind", ["callback", "timer", "task", "reader", "fast"])
def test_slow_callbacks_are_logged(kind: str) -> None:
    """The text names the handle, or the task, and the time it took: exactly asyncio's.

    uv#103, uv#33.
    """
    records = same_on_both(lambda factory: slow_reports(factory, kind))
    assert len(records) == (0 if kind == "fast" else 1)
    if records:
        level, text = records[0]
        assert level == "WARNING" and text.startswith("Executing <") and text.endswith("seconds")


def test_without_debug_nothing_is_logged() -> None:
    assert same_on_both(lambda factory: slow_reports(factory, "callback", debug=False)) == []


def test_slow_callback_duration_as_an_attribute(loop: Any) -> None:
    with logged() as records:
        loop.set_debug(True)
        loop.slow_callback_duration = 1000
        loop.call_soon(time.sleep, 0.01)
        run_once(loop)
        assert records == []
        loop.slow_callback_duration = 0.001
        loop.call_soon(time.sleep, 0.01)
        run_once(loop)
    assert len(records) == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_a_slow_poll_is_logged_at_debug_level(loop: Any, quiet: bool) -> None:
    """asyncio logs 'poll ... took ... seconds' in debug mode where it is slow; older ones do."""
    with logged(logging.DEBUG) as records:
        loop.set_debug(not quiet)
        loop.run_until_complete(asyncio.sleep(0.01))
    assert not [text for level, text in records if level not in ("DEBUG", "INFO")]


# --------------------------------------------------------------------------- thread checks

THREAD_CHECKS: dict[str, Callable[[Any], Any]] = {
    "call_soon": lambda loop: loop.call_soon(int),
    "call_later": lambda loop: loop.call_later(1, int),
    "call_at": lambda loop: loop.call_at(1, int),
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe(int),
    "stop": lambda loop: None,
    "time": lambda loop: loop.time() > 0,
}


@pytest.mark.parametrize("name", THREAD_CHECKS)
def test_calls_from_another_thread(name: str) -> None:
    """In debug mode a call that is not thread-safe says so (zuv#160)."""

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            loop.set_debug(True)

            async def main() -> Any:
                return await asyncio.to_thread(
                    lambda: outcome(lambda: THREAD_CHECKS[name](loop) and None)
                )

            return loop.run_until_complete(main())

    result = same_on_both(attempt)
    if name in ("call_soon", "call_later", "call_at"):
        assert result == (
            "raised",
            "RuntimeError",
            "Non-thread-safe operation invoked on an event loop other than the current one",
        )
    else:
        assert result[0] == "returned"


@pytest.mark.skipif(support.FREE_THREADED, reason="free-threaded builds check always")
def test_without_debug_the_thread_is_not_checked() -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:

            async def main() -> Any:
                return await asyncio.to_thread(
                    lambda: outcome(lambda: loop.call_later(1, int).cancel())
                )

            return loop.run_until_complete(main())

    assert same_on_both(attempt) == ("returned", None)


def test_a_loop_that_does_not_run_may_be_filled_from_any_thread(loop: Any) -> None:
    called: list[int] = []
    loop.set_debug(True)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            loop.call_soon(called.append, 1)
        except BaseException as exc:
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    run_once(loop)
    if not support.FREE_THREADED:
        assert errors == [] and called == [1]


# --------------------------------------------------------------------------- tracebacks


def test_handles_know_where_they_were_made(loop: Any) -> None:
    loop.set_debug(True)
    for handle in (
        loop.call_soon(print),
        loop.call_later(1, print),
        loop.call_at(1, print),
        loop.call_soon_threadsafe(print),
    ):
        frame = handle._source_traceback[-1]
        assert frame.name == "test_handles_know_where_they_were_made"
        assert frame.filename == __file__
        handle.cancel()
    loop.set_debug(False)
    assert loop.call_soon(print)._source_traceback is None


def test_handles_made_through_a_subclass_know_too(loop_factory: support.LoopFactory) -> None:
    def attempt(factory: support.LoopFactory) -> list[str]:
        probe = factory()
        base: Any = type(probe)
        probe.close()

        class Own(base):  # type: ignore[misc]
            def call_soon(self, *args: Any, **kwargs: Any) -> Any:
                return super().call_soon(*args, **kwargs)

        with open_loop(Own) as loop:
            loop.set_debug(True)
            handle = loop.call_soon(print)
            frames = handle._source_traceback
            handle.cancel()
            return [frame.name for frame in frames[-2:]]

    same_on_both(attempt)


def test_future_and_task_reports_say_where(loop: Any) -> None:
    loop.set_debug(True)
    with reported(loop) as contexts:
        future = loop.create_future()
        future.set_exception(ValueError("not retrieved"))
        del future
        gc.collect()
        run_once(loop)
    # create_future may or may not be a Python frame of its own.
    frames = [frame.name for frame in contexts[0]["source_traceback"][-2:]]
    assert "test_future_and_task_reports_say_where" in frames


def test_cancelled_handle_in_debug_mode_keeps_its_repr(loop: Any) -> None:
    loop.set_debug(True)
    handle = loop.call_soon(test_set_debug, 1, 2)
    before = repr(handle)
    handle.cancel()
    assert "test_set_debug" in before and "test_set_debug" in repr(handle)
    assert "cancelled" in repr(handle)


# --------------------------------------------------------------------------- other checks


def test_blocking_sockets_are_refused_in_debug_mode() -> None:
    import socket

    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = socket.socketpair()
        with open_loop(factory) as loop, first, second:
            results = []
            for debug in (True,):
                loop.set_debug(debug)
                for make in (
                    lambda: loop.sock_recv(first, 1),
                    lambda: loop.sock_recv_into(first, bytearray(1)),
                    lambda: loop.sock_sendall(first, b"x"),
                    lambda: loop.sock_connect(first, "x"),
                    lambda: loop.sock_accept(first),
                ):
                    results.append(outcome(lambda make=make: loop.run_until_complete(make())))
            return results

    for result in same_on_both(attempt):
        assert result == ("raised", "ValueError", "the socket must be non-blocking")


def test_debug_mode_of_a_whole_program() -> None:
    """A program with transports, timers, executors and errors logs the same, line for line."""

    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()
        first, second = support.unix_pair()
        with second:
            recorder = support.Recorder(env, "transport")
            transport, _ = await support.attach(first, recorder)
            transport.write(b"hello")
            env.log(await support.recv_exactly(second, 5))
            transport.close()
            await support.turns(3)
        await loop.run_in_executor(None, int)
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0.001)

    support.compare(scenario, debug=True)
