"""What nobody holds any more is collected, and says so where asyncio would (C7)."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, plain, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


class Thing:
    """Something whose end can be watched."""


def collect() -> None:
    for _ in range(3):
        gc.collect()


# --------------------------------------------------------------------------- loops


def test_a_loop_dropped_without_close_warns_and_goes() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop = factory()
            alive = weakref.ref(loop)
            del loop
            collect()
            texts = [
                (item.category.__name__, plain(str(item.message)))
                for item in caught
                if "socket.socket" not in str(item.message)
            ]
            # A warning's source is the very object.
            caught.clear()
            collect()
            return [alive() is None, texts]

    gone, texts = same_on_both(attempt)
    assert gone
    assert len(texts) == 1 and texts[0][0] == "ResourceWarning"
    assert texts[0][1].startswith("unclosed event loop <")


def test_the_warnings_source_is_the_loop(loop_factory: support.LoopFactory) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = loop_factory()
        text = repr(loop)
        del loop
        collect()
    sources = [repr(item.source) for item in caught if "unclosed event loop" in str(item.message)]
    assert sources == [text] or sources == [text.replace("closed=False", "closed=True")]


def test_a_closed_loop_does_not_warn(loop_factory: support.LoopFactory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = loop_factory()
        loop.call_later(100, print)
        loop.close()
        alive = weakref.ref(loop)
        del loop
        collect()
    assert alive() is None


def callbacks_of(loop: Any, thing: Thing) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """A callback and a coroutine function that refer to both."""

    def callback(*args: Any) -> tuple[Any, ...]:
        return loop, thing

    async def waits() -> None:
        await loop.create_future()
        callback()

    return callback, waits


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "dropped"])
@pytest.mark.parametrize(
    "kind",
    ["call_soon", "call_later", "threadsafe", "reader", "signal", "attribute", "handler", "task"],
)
def test_cycles_through_the_loop_are_collected(
    loop_factory: support.LoopFactory, kind: str, closed: bool
) -> None:
    """A pending callback that refers to its loop: the cycle must not outlive the last reference."""
    import signal

    thing = Thing()
    alive = weakref.ref(thing)
    first, second = support.unix_pair()
    with warnings.catch_warnings(), first, second:
        warnings.simplefilter("ignore", ResourceWarning)
        loop: Any = loop_factory()
        callback, waits = callbacks_of(loop, thing)
        if kind == "call_soon":
            loop.call_soon(callback, loop, thing)
        elif kind == "call_later":
            loop.call_later(100, callback, loop, thing)
        elif kind == "threadsafe":
            loop.call_soon_threadsafe(callback, loop, thing)
        elif kind == "reader":
            loop.add_reader(first, callback, thing)
            loop.add_writer(second, callback, thing)
        elif kind == "signal":
            loop.add_signal_handler(signal.SIGUSR1, callback)
        elif kind == "attribute":
            loop.own = [loop, thing]
        elif kind == "handler":
            loop.set_exception_handler(callback)
            loop.set_task_factory(callback)
        else:
            loop.set_exception_handler(lambda *args: None)
            task = loop.create_task(waits())
            run_once(loop)
            del task
        if closed or kind == "signal":
            # asyncio's signal handlers hold their loop from outside until they are removed.
            loop.close()
        del loop, callback, waits, thing
        collect()
        assert alive() is None
        # Whatever the loop did, the descriptors belong to the test.
        second.send(b"x")
        assert first.recv(1) == b"x"


def test_handles_and_loop_refer_to_each_other(loop_factory: support.LoopFactory) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop: Any = loop_factory()
        loop.handles = [loop.call_soon(print), loop.call_later(50, print)]
        alive = [weakref.ref(handle) for handle in loop.handles]
        alive.append(weakref.ref(loop))
        del loop
        collect()
    assert [reference() for reference in alive] == [None, None, None]


def test_collecting_while_the_loop_runs(loop: Any) -> None:
    """The collector sees everything the loop holds, at any moment."""
    count = 0

    def callback(thing: Thing) -> None:
        nonlocal count
        count += 1
        gc.collect()

    for _ in range(20):
        loop.call_soon(callback, Thing())
        loop.call_later(0.001, callback, Thing())
        loop.call_soon_threadsafe(callback, Thing())
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert count == 60


def test_the_loop_is_tracked_and_its_referents_are_visible(loop: Any) -> None:
    thing = Thing()
    loop.call_soon(print, thing)
    loop.call_later(100, print, thing)
    assert gc.is_tracked(loop)
    seen: set[int] = set()
    queue: list[Any] = [loop]
    found = False
    while queue and not found:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        found = item is thing
        if len(seen) < 20_000:
            queue.extend(gc.get_referents(item))
    assert found


def test_many_loops_do_not_grow_the_process(loop_factory: support.LoopFactory) -> None:
    def lives(count: int) -> None:
        for _ in range(count):
            loop = loop_factory()
            loop.run_until_complete(asyncio.sleep(0))
            loop.call_later(100, print)
            loop.close()
        collect()

    lives(50)
    before, objects = support.rss_kib(), len(gc.get_objects())
    lives(300)
    assert len(gc.get_objects()) - objects < 200
    assert support.rss_kib() - before < 6000


# --------------------------------------------------------------------------- handles


def test_a_finished_handle_lets_go(loop: Any) -> None:
    thing = Thing()
    alive = weakref.ref(thing)
    handle = loop.call_soon(lambda value: None, thing)
    timer = loop.call_later(0, lambda value: None, thing)
    del thing
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    del handle, timer
    collect()
    assert alive() is None


def test_a_handle_that_refers_to_itself(loop: Any) -> None:
    thing = Thing()
    alive = weakref.ref(thing)
    box: list[Any] = [thing]
    box.append(loop.call_soon(print, box))
    box[1].cancel()
    box2: list[Any] = [thing]
    box2.append(loop.call_later(0, lambda value: None, box2))
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    del box, box2, thing
    collect()
    assert alive() is None


@pytest.mark.parametrize("how", ["runs", "is cancelled", "is cancelled last"])
def test_a_handle_made_by_a_running_loop_refers_to_itself(loop: Any, how: str) -> None:
    """The collector may learn of a queued handle late, but of none too late."""
    alive = []

    def make(schedule: Callable[..., Any]) -> None:
        box: list[Any] = [Thing()]
        alive.append(weakref.ref(box[0]))
        context = contextvars.copy_context()
        context.run(variable.set, box)  # A cancelled handle has lost all but its context.
        box.append(schedule(lambda value: None, box, context=context))
        if how == "is cancelled last":
            box[1].cancel()
        elif how == "is cancelled":
            box.append(schedule(print))
            box[1].cancel()
            box[2].cancel()

    async def main() -> None:
        for schedule in (loop.call_soon, functools.partial(loop.call_later, 0.001)):
            make(schedule)
        await asyncio.sleep(0.01)
        collect()
        assert [reference() for reference in alive] == [None, None]

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    loop.run_until_complete(main())


def test_what_a_running_loop_has_queued_is_collected_with_it(
    loop_factory: support.LoopFactory,
) -> None:
    async def main(loop: Any, thing: Thing) -> None:
        loop.kept = [loop.call_later(100, print, loop), loop.call_soon(loop.stop)]
        loop.kept.append(loop.call_soon(loop.call_soon, print, loop.kept, loop, thing))
        await asyncio.sleep(0)
        loop.kept.append(loop.call_soon(print, loop.kept, loop, thing))
        await loop.create_future()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop: Any = loop_factory()
        thing = Thing()
        alive = weakref.ref(thing)
        loop.set_exception_handler(lambda *args: None)
        task = loop.create_task(main(loop, thing))
        loop.run_forever()
        del loop, thing, task
        collect()
    assert alive() is None


def test_destructors_that_use_the_loop(loop: Any) -> None:
    """What is dropped by cancel, by a finished callback or by close may call back into the loop."""
    order: list[str] = []

    class Meddler:
        def __init__(self, name: str) -> None:
            self.name = name

        def __del__(self) -> None:
            order.append(self.name)
            if not loop.is_closed():
                loop.call_soon(order.append, f"scheduled by {self.name}")
                loop.call_later(50, print).cancel()

    loop.call_soon(lambda value: None, Meddler("ran"))
    loop.call_soon(print, Meddler("cancelled")).cancel()
    loop.call_later(100, print, Meddler("timer")).cancel()
    run_once(loop, 3)
    collect()
    run_once(loop)
    assert {"ran", "cancelled", "timer"} <= set(order)
    loop.call_soon(print, Meddler("pending at close"))
    loop.call_later(100, print, Meddler("timer at close"))
    loop.close()
    collect()
    assert {"pending at close", "timer at close"} <= set(order)


def test_a_destructor_that_closes_or_stops(loop_factory: support.LoopFactory) -> None:
    class Stopper:
        def __init__(self, loop: Any) -> None:
            self.loop = loop

        def __del__(self) -> None:
            self.loop.stop()
            if not self.loop.is_running():
                self.loop.close()

    with open_loop(loop_factory) as loop:
        loop.call_soon(lambda value: None, Stopper(loop))
        guard = loop.call_later(10, loop.stop)
        loop.run_forever()
        guard.cancel()
        loop.call_soon(print, Stopper(loop))


def test_last_references_that_die_on_other_threads(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        things = [Thing() for _ in range(200)]
        alive = [weakref.ref(thing) for thing in things]
        handles = [loop.call_later(100, print, thing) for thing in things]
        handles += [loop.call_soon(print, thing) for thing in things]
        del things
        for handle in handles:
            handle.cancel()
        thread = threading.Thread(target=handles.clear)
        thread.start()
        thread.join()
        await asyncio.sleep(0.01)
        collect()
        assert all(reference() is None for reference in alive)

    run(main)


# --------------------------------------------------------------------------- transports


def test_a_transport_dropped_without_close() -> None:
    """The loop holds it while it is open; closing the loop lets it go, with a warning."""

    def attempt(factory: support.LoopFactory) -> Any:
        first, second = support.unix_pair()

        async def main() -> Any:
            transport, _ = await support.attach(first, asyncio.Protocol())
            return weakref.ref(transport)

        with second, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop = factory()
            alive = loop.run_until_complete(main())
            collect()
            held = alive() is not None
            loop.close()
            del loop
            collect()
            texts = [str(item.message) for item in caught]
            caught.clear()
            collect()
            return (
                held,
                alive() is None,
                any(text.startswith("unclosed transport") for text in texts),
            )

    # The socket belongs to the transport, which closes it, whoever notices first.
    held, gone, _ = same_on_both(attempt)
    assert held and gone


def test_an_open_transport_survives_collection(run: Callable[..., Any]) -> None:
    """A protocol that stores nothing keeps its connection."""

    async def main() -> None:
        received: list[bytes] = []

        class Forgetful(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                received.append(data)

        first, second = support.unix_pair()
        with second:
            alive = weakref.ref((await support.attach(first, Forgetful()))[0])
            collect()
            assert alive() is not None
            second.send(b"still there")
            await support.eventually(lambda: received)
            assert received == [b"still there"]
            alive().close()  # type: ignore[union-attr]
        await support.turns(3)

    run(main)


def test_a_closed_transport_is_collected_with_its_protocol(run: Callable[..., Any]) -> None:
    async def main() -> None:
        protocol = support.Recorder()
        protocol.cycle = protocol  # type: ignore[attr-defined]
        first, second = support.unix_pair()
        with second:
            transport = (await support.attach(first, protocol))[0]
            alive = [weakref.ref(transport), weakref.ref(protocol)]
            transport.close()
            await support.turns(3)
            del transport, protocol
            collect()
            assert [reference() for reference in alive] == [None, None]

    run(main)


def test_a_server_dropped_without_close(loop_factory: support.LoopFactory) -> None:
    async def main() -> Any:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        reference = weakref.ref(server)
        del server
        collect()
        # The loop listens on, as asyncio's does.
        with socket.create_connection(address):
            await asyncio.sleep(0.01)
        return reference

    before = support.open_fds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        loop = loop_factory()
        reference = loop.run_until_complete(main())
        loop.close()
        del loop
        collect()
    assert reference() is None
    assert support.new_fds(before) == {}


def test_reports_while_collecting(loop: Any) -> None:
    """A task destroyed while pending reports through the loop, during a collection."""

    async def waits() -> None:
        await loop.create_future()

    with reported(loop) as contexts:
        for _ in range(10):
            loop.create_task(waits())
        run_once(loop)
        collect()
        assert [context["message"] for context in contexts] == [
            "Task was destroyed but it is pending!"
        ] * 10
        contexts.clear()


def test_reference_count_of_the_loop_is_stable(loop: Any) -> None:
    run_once(loop, 3)
    before = sys.getrefcount(loop)
    for _ in range(300):
        loop.call_soon(int)
        loop.call_later(0, int)
        loop.call_later(100, int).cancel()
        loop.call_soon_threadsafe(int)
        loop.create_future()
        loop.run_until_complete(asyncio.sleep(0))
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    collect()
    assert sys.getrefcount(loop) - before < 5
