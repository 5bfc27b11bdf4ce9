"""Subclassing the loop, and patching an instance: overrides are called where asyncio calls them."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, run_once, same_on_both

# The methods whose overrides are promised to be honoured.
WATCHED = (
    "time",
    "call_soon",
    "call_at",
    "call_later",
    "create_task",
    "create_future",
    "getaddrinfo",
    "run_in_executor",
    "add_reader",
    "call_exception_handler",
    "is_closed",
    "stop",
)
# How often these are called is an implementation's own business; that they can be is not.
OFTEN = {"time", "call_soon", "is_closed"}


@pytest.fixture
def base(loop_factory: support.LoopFactory) -> Any:
    return base_of(loop_factory)


def base_of(factory: support.LoopFactory) -> Any:
    probe = factory()
    probe.close()
    return type(probe)


def recording_class(factory: support.LoopFactory, names: tuple[str, ...] = WATCHED) -> Any:
    """A subclass that notes which of its methods were called while ``recording`` is set."""
    base = base_of(factory)

    def override(name: str) -> Any:
        inherited = getattr(base, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.recording is not None:
                self.recording.append(name)
            return inherited(self, *args, **kwargs)

        return method

    body: dict[str, Any] = {name: override(name) for name in names}
    return type("Recording", (base,), {**body, "recording": None})


def patched_instance(factory: support.LoopFactory, names: tuple[str, ...] = WATCHED) -> Any:
    """A plain loop whose instance attributes shadow its methods."""
    loop: Any = type("Plain", (base_of(factory),), {"recording": None})()

    def patch(name: str) -> Any:
        inherited = getattr(loop, name)

        def function(*args: Any, **kwargs: Any) -> Any:
            if loop.recording is not None:
                loop.recording.append(name)
            return inherited(*args, **kwargs)

        return function

    for name in names:
        setattr(loop, name, patch(name))
    return loop


def steps(loop: Any) -> dict[str, Callable[[], Any]]:
    async def sleeper() -> None:
        await asyncio.sleep(0.001)

    async def timed() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(0)

    async def nested() -> None:
        await asyncio.create_task(asyncio.sleep(0))

    async def future_callbacks() -> None:
        future = loop.create_future()
        future.add_done_callback(lambda _: None)
        future.set_result(None)
        await future

    async def resolving() -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        _, writer = await asyncio.open_connection("localhost", listener.getsockname()[1])
        writer.close()
        await writer.wait_closed()
        listener.close()

    async def executor() -> None:
        await loop.run_in_executor(None, int)

    async def failing_callback() -> None:
        loop.call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    async def wait_for() -> None:
        await asyncio.wait_for(asyncio.sleep(0), 10)

    async def threadsafe() -> None:
        future = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, None)
        await future

    def run(function: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: loop.run_until_complete(function())

    return {
        "call_later": lambda: loop.call_later(1, print).cancel(),
        "call_at": lambda: loop.call_at(1, print).cancel(),
        "sleep": run(sleeper),
        "timeout": run(timed),
        "task": run(nested),
        "future callbacks": run(future_callbacks),
        "name resolution": run(resolving),
        "executor": run(executor),
        "exception": run(failing_callback),
        "wait_for": run(wait_for),
        "threadsafe": run(threadsafe),
    }


STEP_NAMES = sorted(steps(None))


def called(loop: Any, step: str) -> list[Any]:
    loop.set_exception_handler(lambda *args: None)
    loop.recording = []
    steps(loop)[step]()
    recording, loop.recording = loop.recording, None
    return [sorted(set(recording)), [name for name in recording if name not in OFTEN]]


@pytest.mark.parametrize("step", STEP_NAMES)
def test_overrides_are_called_where_asyncio_calls_them(step: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(recording_class(factory)) as loop:
            return [name for name in called(loop, step)[1] if name != "create_future"]

    same_on_both(attempt)


@pytest.mark.parametrize("step", STEP_NAMES)
def test_instance_patches_are_called_where_asyncio_calls_them(step: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(lambda: patched_instance(factory)) as loop:
            return [name for name in called(loop, step)[1] if name != "create_future"]

    same_on_both(attempt)


@pytest.mark.parametrize("how", ["subclass", "instance"])
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("time", "call_later"),
        ("call_at", "call_later"),
        ("time", "sleep"),
        ("call_soon", "task"),
        ("call_soon", "future callbacks"),
        ("create_task", "task"),
        ("call_later", "sleep"),
        ("getaddrinfo", "name resolution"),
        ("call_exception_handler", "exception"),
    ],
)
def test_one_override_alone(
    loop_factory: support.LoopFactory, name: str, step: str, how: str
) -> None:
    """With nothing else overridden, when the rest takes the fast ways."""
    make = (
        recording_class(loop_factory, (name,))
        if how == "subclass"
        else lambda: patched_instance(loop_factory, (name,))
    )
    with open_loop(make) as loop:
        assert called(loop, step)[0] == [name]


def test_a_patch_set_and_taken_away_while_running(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        seen: list[Any] = []
        inherited = loop.call_soon

        def patched(*args: Any, **kwargs: Any) -> Any:
            seen.append(args[0])
            return inherited(*args, **kwargs)

        await asyncio.sleep(0)
        loop.call_soon = patched
        await asyncio.sleep(0)
        assert seen
        del loop.call_soon
        count = len(seen)
        await asyncio.sleep(0)
        assert len(seen) == count

    run(main)


def test_a_method_of_the_class_replaced_later(base: Any) -> None:
    """mock.patch.object(Loop, ...) on a subclass after instances exist."""

    class Own(base):  # type: ignore[misc]
        pass

    with open_loop(Own) as loop:
        seen: list[float] = []
        original = base.time

        def time(self: Any) -> float:
            seen.append(1.0)
            return original(self)  # type: ignore[no-any-return]

        Own.time = time
        loop.call_later(1, print).cancel()
        assert seen
        del Own.time
        seen.clear()
        loop.call_later(1, print).cancel()
        assert not seen


def test_patched_time_moves_deadlines(loop_factory: support.LoopFactory) -> None:
    """aiohttp's keep-alive test patches loop.time on the instance."""
    with open_loop(loop_factory) as loop:
        loop.time = lambda: 123.0
        assert loop.call_later(1.5, print).when() == 124.5
        del loop.time
        assert loop.call_later(0, print).when() != 123.0


def test_cooperative_super_calls(base: Any) -> None:
    order: list[str] = []

    class First(base):  # type: ignore[misc]
        def call_soon(self, *args: Any, **kwargs: Any) -> Any:
            order.append("First")
            return super().call_soon(*args, **kwargs)

    class Second(First):
        def call_soon(self, *args: Any, **kwargs: Any) -> Any:
            order.append("Second")
            return super().call_soon(*args, **kwargs)

    with open_loop(Second) as loop:
        handle = loop.call_soon(print)
        assert isinstance(handle, asyncio.Handle)
        handle.cancel()
    assert order == ["Second", "First"]


def test_attributes_slots_and_init_arguments(base: Any) -> None:
    class Own(base):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.before = "set before super().__init__"
            super().__init__()
            self.name = name

    loop = Own("mine")
    try:
        assert (loop.name, loop.before) == ("mine", "set before super().__init__")
        loop.extra = [loop]
        assert vars(loop)["extra"] == [loop]
        del loop.extra
        assert not hasattr(loop, "extra")
        assert weakref.ref(loop)() is loop
    finally:
        loop.close()


def test_a_mixin_before_and_behind(base: Any) -> None:
    class Before:
        def time(self) -> float:
            return 7.0

    class Behind:
        def helper(self) -> str:
            return "helper"

    class Own(Before, base, Behind):  # type: ignore[misc]
        pass

    with open_loop(Own) as loop:
        assert loop.time() == 7.0 and loop.helper() == "helper"
        assert loop.call_later(1, print).when() == 8.0


def test_overridden_close_and_stop(base: Any) -> None:
    seen: list[str] = []

    class Own(base):  # type: ignore[misc]
        def close(self) -> None:
            seen.append("close")
            super().close()

        def stop(self) -> None:
            seen.append("stop")
            super().stop()

    with asyncio.Runner(loop_factory=Own) as runner:
        runner.run(asyncio.sleep(0))
    assert "close" in seen


def test_a_subclass_is_collected(base: Any) -> None:
    class Own(base):  # type: ignore[misc]
        pass

    alive = weakref.ref(Own)
    loop = Own()
    loop.me = loop
    loop.close()
    instance = weakref.ref(loop)
    del loop, Own
    gc.collect()
    gc.collect()
    assert instance() is None
    # Free-threaded builds keep classes alive in caches of their own for a while.
    assert alive() is None or support.FREE_THREADED


def test_debug_set_in_init_and_by_override(base: Any) -> None:
    class Own(base):  # type: ignore[misc]
        def get_debug(self) -> bool:
            return True

    with open_loop(Own) as loop:
        assert loop.get_debug() is True
        loop.run_until_complete(asyncio.sleep(0))


def test_wrong_calls_of_the_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    # asyncio's loop stumbles over itself when it is deleted half-made.
    monkeypatch.setattr(sys, "unraisablehook", lambda args: None)

    def attempt(factory: support.LoopFactory) -> Any:
        base = base_of(factory)
        result = [outcome(lambda: base(1, 2, 3))[:2], outcome(lambda: base(unknown=1))[:2]]
        gc.collect()
        return result

    assert same_on_both(attempt) == [("raised", "TypeError")] * 2


def test_reinitialising_is_harmless() -> None:
    """__init__ called again must not crash or leak, whatever else it does."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("asyncio's own loop leaks its descriptors then")
    base = base_of(support.factory("cpploop"))
    before = support.open_fds()
    loop = base()
    try:
        loop.__init__()
    except RuntimeError:
        pass
    run_once(loop)
    loop.close()
    del loop
    gc.collect()
    assert support.new_fds(before) == {}


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    gc.collect()
