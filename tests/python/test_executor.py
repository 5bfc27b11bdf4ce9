"""run_in_executor, the default executor and its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_results_and_exceptions(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 7, 0)
        with pytest.raises(SystemExit):
            future = loop.run_in_executor(None, sys.exit, 3)
            await asyncio.wait([future])
            raise future.exception()  # type: ignore[misc]

    run(main)


def test_runs_in_another_thread(run: Callable[..., Any]) -> None:
    async def main() -> None:
        name = await asyncio.get_running_loop().run_in_executor(
            None, lambda: threading.current_thread().name
        )
        assert name.startswith("asyncio_")

    run(main)


def test_many_at_once(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.run_in_executor(None, abs, -number) for number in range(500))
        )
        assert results == list(range(500))

    run(main)


def test_an_executor_given(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="given") as pool:
            name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
            assert name.startswith("given")

    run(main)


def test_set_default_executor(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="default")
        loop.set_default_executor(pool)
        name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
        assert name.startswith("default")

    run(main)


def test_something_else_as_default_executor() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            results = [outcome(loop.set_default_executor, bad)[:2] for bad in (None, 1, object())]
            with concurrent.futures.ProcessPoolExecutor(1) as pool:
                results.append(outcome(loop.set_default_executor, pool)[:2])
            return results

    same_on_both(attempt)


def test_cancelling_the_wait(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        future = loop.run_in_executor(None, release.wait, 10)
        await asyncio.sleep(0.01)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future
        release.set()

    run(main)


def test_cancelled_before_it_starts(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ran: list[int] = []
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            release = threading.Event()
            blocker = loop.run_in_executor(pool, release.wait, 10)
            queued = loop.run_in_executor(pool, ran.append, 1)
            queued.cancel()
            await asyncio.sleep(0)
            release.set()
            await blocker
        await asyncio.sleep(0.01)
        assert ran == [] and queued.cancelled()

    run(main)


def test_after_shutdown() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            loop.run_until_complete(loop.run_in_executor(None, int))
            results = [outcome(loop.run_until_complete, loop.shutdown_default_executor())]
            results.append(outcome(loop.run_in_executor, None, int))
            results.append(outcome(loop.run_until_complete, loop.shutdown_default_executor()))
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                own = loop.run_in_executor(pool, int)
                results.append(outcome(loop.run_until_complete, own))
            return results

    result = same_on_both(attempt)
    assert result[1] == ("raised", "RuntimeError", "Executor shutdown has been called")


def test_shutdown_without_an_executor(loop: Any) -> None:
    assert loop.run_until_complete(loop.shutdown_default_executor()) is None


def test_shutdown_waits_for_what_runs(loop: Any) -> None:
    done: list[int] = []

    def work() -> None:
        time.sleep(0.05)
        done.append(1)

    async def main() -> None:
        loop.run_in_executor(None, work)
        await loop.shutdown_default_executor()
        assert done == [1]

    loop.run_until_complete(main())


@pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="new in 3.12, whose first releases wait for the threads anyway",
)
def test_shutdown_with_a_timeout() -> None:
    release = threading.Event()

    def attempt(factory: support.LoopFactory) -> Any:
        release.clear()
        with open_loop(factory) as loop, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.run_in_executor(None, release.wait, 10)
            started = time.monotonic()
            loop.run_until_complete(loop.shutdown_default_executor(0.05))
            assert time.monotonic() - started < 5
            texts = [f"{item.category.__name__}: {item.message}" for item in caught]
            release.set()
        return texts

    assert len(same_on_both(attempt)) == 1


def test_close_does_not_wait(loop_factory: support.LoopFactory) -> None:
    release = threading.Event()
    loop = loop_factory()
    loop.run_in_executor(None, release.wait, 10)
    started = time.monotonic()
    loop.close()
    assert time.monotonic() - started < 5
    release.set()


def test_a_result_that_comes_after_close(loop_factory: support.LoopFactory) -> None:
    """The thread's report meets a closed loop: nothing is raised in it, nothing crashes."""
    errors: list[Any] = []
    hook, threading.excepthook = threading.excepthook, errors.append
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            release = threading.Event()
            loop = loop_factory()
            loop.run_in_executor(pool, release.wait, 10)
            loop.close()
            release.set()
    finally:
        threading.excepthook = hook
    assert errors == []


def test_private_names_asyncio_and_libraries_read(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        assert loop._default_executor is None
        await loop.run_in_executor(None, int)
        assert isinstance(loop._default_executor, concurrent.futures.ThreadPoolExecutor)

    run(main)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_wrong_calls(debug: bool) -> None:
    async def coroutine_function() -> None:
        pass

    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            loop.set_debug(debug)
            results = []
            for call in (
                lambda: loop.run_in_executor(),
                lambda: loop.run_in_executor(None),
                lambda: loop.run_in_executor(1, int),
                lambda: loop.run_in_executor(None, int, key=1),
            ):
                results.append(outcome(call)[:2])
            if debug:
                results.append(outcome(loop.run_in_executor, None, coroutine_function)[:2])
            return results

    same_on_both(attempt)


def test_a_process_pool(run: Callable[..., Any]) -> None:
    import multiprocessing

    async def main() -> None:
        loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            assert await loop.run_in_executor(pool, divmod, 9, 4) == (2, 1)

    # The resource tracker's pipe stays open for the life of the process.
    run(main, check_fds=False)


def test_the_loop_stays_responsive(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        blocked = [loop.run_in_executor(None, release.wait, 10) for _ in range(4)]
        started = time.monotonic()
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert time.monotonic() - started < 2 * support.TIME_SCALE
        release.set()
        await asyncio.gather(*blocked)

    with contextlib.nullcontext():
        run(main)
