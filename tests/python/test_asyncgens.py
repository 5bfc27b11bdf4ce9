"""Asynchronous generators: hooks while the loop runs, and their end."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def test_hooks_only_while_running(loop: Any) -> None:
    seen: list[Any] = []
    before = sys.get_asyncgen_hooks()
    assert before.firstiter is None and before.finalizer is None
    loop.call_soon(lambda: seen.append(sys.get_asyncgen_hooks()))
    run_once(loop)
    assert callable(seen[0].firstiter) and callable(seen[0].finalizer)
    assert sys.get_asyncgen_hooks() == before


def test_the_hooks_found_are_put_back(loop: Any) -> None:
    def firstiter(generator: Any) -> None:
        pass

    def finalizer(generator: Any) -> None:
        pass

    sys.set_asyncgen_hooks(firstiter=firstiter, finalizer=finalizer)
    try:
        run_once(loop)
        assert sys.get_asyncgen_hooks() == (firstiter, finalizer)

        def leave() -> None:
            raise KeyboardInterrupt

        loop.call_soon(leave)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert sys.get_asyncgen_hooks() == (firstiter, finalizer)
    finally:
        sys.set_asyncgen_hooks(firstiter=None, finalizer=None)


def generator_steps(factory: support.LoopFactory, how: str) -> list[Any]:
    trace: list[Any] = []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            trace.append((name, "closed"))

    async def main() -> None:
        if how == "dropped":
            async for number in numbers("dropped"):
                if number == 2:
                    break
            gc.collect()
            await support.turns(4)
        elif how == "held":
            generator = numbers("held")
            held.append(generator)
            await anext(generator)
        elif how == "never started":
            held.append(numbers("never started"))
        else:
            async for number in numbers("run to the end"):
                trace.append(number)
        trace.append("main ends")

    held: list[Any] = []
    with open_loop(factory) as loop:
        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        trace.append("shut down")
    return trace


@pytest.mark.parametrize("how", ["dropped", "held", "never started", "exhausted"])
def test_generators_end(how: str) -> None:
    trace = same_on_both(lambda factory: generator_steps(factory, how))
    if how in ("dropped", "held"):
        assert (how, "closed") in trace
        assert trace.index((how, "closed")) < trace.index("shut down")


def test_a_generator_that_fails_to_close() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                raise LookupError("in the generator's cleanup")

        async def main() -> None:
            generator = numbers()
            held.append(generator)
            await anext(generator)

        held: list[Any] = []
        with open_loop(factory) as loop, reported(loop) as contexts:
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
            return [
                (
                    str(context["message"]).partition(" at 0x")[0].partition("<async")[0],
                    repr(context["exception"]),
                    sorted(context),
                )
                for context in contexts
            ]

    assert len(same_on_both(attempt)) == 1


def test_shutdown_when_there_are_none(loop: Any) -> None:
    assert loop.run_until_complete(loop.shutdown_asyncgens()) is None
    assert loop.run_until_complete(loop.shutdown_asyncgens()) is None


def test_a_generator_started_after_shutdown_warns() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        async def numbers() -> AsyncIterator[int]:
            yield 1

        async def main() -> None:
            generator = numbers()
            await anext(generator)
            await generator.aclose()  # type: ignore[attr-defined]

        with open_loop(factory) as loop, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(main())
            return [
                (item.category.__name__, str(item.message).partition("<async_generator")[0])
                for item in caught
            ]

    result = same_on_both(attempt)
    assert result and result[0][0] == "ResourceWarning"


def test_finalised_on_another_thread(run: Callable[..., Any]) -> None:
    """The last reference dies in a thread: the loop closes the generator on its own."""
    closed: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            closed.append(asyncio.get_running_loop())

    async def main() -> None:
        box = [numbers()]
        await anext(box[0])
        await asyncio.to_thread(box.clear)
        gc.collect()
        await support.eventually(lambda: closed)
        assert closed == [asyncio.get_running_loop()]

    run(main)


def test_dropped_after_the_loop_is_closed(loop_factory: support.LoopFactory) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async def main() -> Any:
        generator = numbers()
        await anext(generator)
        return generator

    loop = loop_factory()
    generator = loop.run_until_complete(main())
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del generator
        gc.collect()


def test_many_generators(run: Callable[..., Any]) -> None:
    closed = 0

    async def numbers() -> AsyncIterator[int]:
        nonlocal closed
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            closed += 1

    async def main() -> None:
        held = [numbers() for _ in range(200)]
        for generator in held:
            await anext(generator)
        await asyncio.get_running_loop().shutdown_asyncgens()
        assert closed == 200

    run(main)


def test_nested_hooks_belong_to_the_thread(loop_factory: support.LoopFactory) -> None:
    import threading

    hooks: list[Any] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: hooks.append(sys.get_asyncgen_hooks()))
        thread.start()
        thread.join()

    with open_loop(loop_factory) as loop:
        loop.run_until_complete(main())
    assert hooks == [(None, None)]
