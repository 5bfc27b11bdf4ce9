"""Every native type is collected in a cycle, abandoned without harm, and leaks nothing over rounds.

The types are found by walking the interpreter's own tree of classes, so that a new one fails here
by its name until somebody writes down how to make it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import support
from parity import open_loop, same_on_both

ROUNDS = 400 if support.LONG else 60
ATTEMPTS = 10


class Thing:
    """Something whose end can be watched."""


@dataclass
class Place:
    """What a case may use: a thing to put into its cycle, certificates, the kind of loop."""

    thing: Thing
    certs: support.Certificates
    factory: support.LoopFactory


@dataclass
class Made:
    """An object in use, in a cycle with the place's thing, and what ends its use in order."""

    made: Any
    finish: Callable[[], Awaitable[None]]


CASES: dict[str, Callable[[Place], Coroutine[Any, Any, Made]]] = {}
# What only cpploop has: the oracle's loop cannot make it.
OURS_ALONE: set[str] = set()


def case(name: str) -> Callable[[Any], Any]:
    def register(make: Any) -> Any:
        CASES[name] = make
        return make

    return register


class Keeping(asyncio.Protocol):
    """A protocol in a cycle with its transport and a thing; knows when the connection is over."""

    def __init__(self, place: Place) -> None:
        self.thing = place.thing
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        pass

    error_received = datagram_received


async def closed(protocol: Keeping, *others: Any) -> None:
    protocol.transport.close()
    for other in others:
        other.close()
    await protocol.over
    await support.turns(2)


@case("Handle")
async def make_handle(place: Place) -> Made:
    box: list[Any] = [place.thing]
    box.append(asyncio.get_running_loop().call_soon(len, box))
    return Made(box[1], support.turns)


@case("_ThreadSafeHandle")
async def make_threadsafe_handle(place: Place) -> Made:
    box: list[Any] = [place.thing]
    box.append(asyncio.get_running_loop().call_soon_threadsafe(len, box))
    return Made(box[1], lambda: support.turns(2))


@case("TimerHandle")
async def make_timer_handle(place: Place) -> Made:
    loop = asyncio.get_running_loop()
    fired = loop.create_future()
    box: list[Any] = [place.thing]
    box.append(loop.call_later(0.001, lambda box: fired.set_result(None), box))

    async def finish() -> None:
        await fired

    return Made(box[1], finish)


@case("StreamTransport")
async def make_stream_transport(place: Place) -> Made:
    first, second = support.unix_pair()
    protocol = Keeping(place)
    transport, _ = await support.attach(first, protocol)
    transport.write(b"some bytes")
    return Made(transport, lambda: closed(protocol, second))


@case("DatagramTransport")
async def make_datagram_transport(place: Place) -> Made:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Keeping(place), local_addr=("127.0.0.1", 0)
    )
    transport.sendto(b"to itself", transport.get_extra_info("sockname"))
    return Made(transport, lambda: closed(protocol))


def pipe_files() -> tuple[Any, Any]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


@case("ReadPipeTransport")
async def make_read_pipe_transport(place: Place) -> Made:
    reader, writer = pipe_files()
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(
        lambda: Keeping(place), reader
    )
    return Made(transport, lambda: closed(protocol, writer))


@case("WritePipeTransport")
async def make_write_pipe_transport(place: Place) -> Made:
    reader, writer = pipe_files()
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(
        lambda: Keeping(place), writer
    )
    transport.write(b"some bytes")
    return Made(transport, lambda: closed(protocol, reader))


@case("Listener")
async def make_listener(place: Place) -> Made:
    loop: Any = asyncio.get_running_loop()
    box: list[Any] = [place.thing]
    server = await loop.create_server(lambda: box and Keeping(place), "127.0.0.1", 0)
    listener = loop._listeners[server.sockets[0].fileno()] if hasattr(loop, "_listeners") else None
    box += [server, listener]

    async def finish() -> None:
        server.close()
        await server.wait_closed()
        await support.turns(2)

    return Made(listener or server, finish)


class Buffer(bytearray):
    """Memory that can be part of a cycle."""

    cycle: Any = None


@case("SockOperation")
async def make_sock_operation(place: Place) -> Made:
    loop = asyncio.get_running_loop()
    first, second = support.unix_pair()
    buffer = Buffer(10)
    operation = loop.sock_recv_into(first, buffer)
    task = loop.create_task(operation)
    buffer.cycle = [place.thing, operation, task]
    await support.turns(2)

    async def finish() -> None:
        second.send(b"some bytes")
        assert await task == 10
        first.close()
        second.close()
        await support.turns(2)

    return Made(operation, finish)


async def make_tls(place: Place) -> tuple[Any, Callable[[], Awaitable[None]]]:
    """A client's transport over TLS whose protocol is in a cycle with the thing."""
    first, second = support.unix_pair()
    accepting = asyncio.get_running_loop().connect_accepted_socket(
        asyncio.Protocol, second, ssl=place.certs.server_context()
    )
    protocol = Keeping(place)
    connecting = support.attach(
        first, protocol, ssl=place.certs.client_context(), server_hostname="localhost"
    )
    (transport, _), (other, _) = await asyncio.gather(connecting, accepting)
    transport.write(b"some bytes")

    async def finish() -> None:
        await closed(protocol)
        other.abort()
        await support.turns(3)

    return transport, finish


@case("TlsTransport")
async def make_tls_transport(place: Place) -> Made:
    return Made(*await make_tls(place))


@case("TlsProtocol")
async def make_tls_protocol(place: Place) -> Made:
    transport, finish = await make_tls(place)
    return Made(transport._ssl_protocol, finish)


@case("Loop")
async def make_loop(place: Place) -> Made:
    loop: Any = place.factory()
    loop.cycle = [loop, place.thing, loop.call_soon(print, loop), loop.call_later(9, print, loop)]

    async def finish() -> None:
        loop.close()

    return Made(loop, finish)


@case("trace")
async def make_trace(place: Place) -> Made:
    """Not a type: what the loop keeps for a trace, and whom it asks for the names of tasks."""
    loop: Any = asyncio.get_running_loop()
    box: list[Any] = [place.thing, loop]

    def name_of(task: Any) -> str:
        return str(len(box))

    box.append(name_of)
    loop._trace_start(name_of, 100)
    await support.turns(2)

    async def finish() -> None:
        loop._trace_stop()

    return Made(name_of, finish)


OURS_ALONE.add("trace")


def run_in(factory: support.LoopFactory, main: Coroutine[Any, Any, Any]) -> Any:
    with open_loop(factory) as loop:
        return loop.run_until_complete(main)


@pytest.fixture(params=sorted(CASES))
def name(request: pytest.FixtureRequest, loop_name: str) -> str:
    chosen: str = request.param
    if chosen in OURS_ALONE:
        support.needs_cpploop(loop_name, f"its loop has no {chosen}")
    return chosen


def collect() -> None:
    for _ in range(3):
        gc.collect()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


@pytest.mark.parametrize("type_name", sorted(support.native_types()))
def test_the_type_has_a_case_that_makes_it(type_name: str, certs: support.Certificates) -> None:
    make = CASES.get(type_name.removesuffix("Base"))
    assert make is not None, f"no case of this file makes a {type_name}"
    factory = support.factory("cpploop")

    async def main() -> None:
        made = await make(Place(Thing(), certs, factory))
        kind = support.native_types()[type_name]
        assert issubclass(type(made.made), kind)
        # A heap type is among what its instances hold.
        assert type(made.made) in gc.get_referents(made.made)
        await made.finish()

    run_in(factory, main())


# --------------------------------------------------------------------------- cycles


def test_a_cycle_is_collected_after_its_use(
    name: str, loop_factory: support.LoopFactory, certs: support.Certificates
) -> None:
    async def main() -> None:
        place = Place(Thing(), certs, loop_factory)
        alive = weakref.ref(place.thing)
        made = await CASES[name](place)
        del place
        collect()
        assert alive() is not None
        await made.finish()
        del made
        await support.turns(2)
        collect()
        assert alive() is None

    run_in(loop_factory, main())


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_cycle_is_collected_when_its_loop_is_abandoned(
    name: str, certs: support.Certificates
) -> None:
    """What is in use when its loop is dropped goes with it, and warns as asyncio's does."""

    def attempt(factory: support.LoopFactory) -> Any:
        before = support.open_fds()
        place = Place(Thing(), certs, factory)
        alive = weakref.ref(place.thing)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ResourceWarning)
            loop: Any = factory()
            loop.set_exception_handler(lambda *args: None)
            loop.run_until_complete(CASES[name](place))
            del loop, place
            collect()
            texts = {" ".join(str(item.message).split()[:2]) for item in caught}
            # A warning's source is the very object.
            caught.clear()
            collect()
        return [
            alive() is None,
            sorted(texts - {"unclosed <socket.socket"}),
            support.new_fds(before),
        ]

    with quiet():
        if name not in OURS_ALONE:
            gone, texts, left = same_on_both(attempt)
        elif "cpploop" in support.selected_loops():
            gone, texts, left = attempt(support.factory("cpploop"))
        else:
            pytest.skip(f"asyncio's loop has no {name}")
    assert gone
    assert "unclosed event" in texts
    assert left == {}


# --------------------------------------------------------------------------- rounds


@dataclass
class Footprint:
    blocks: int
    objects: int
    loop_references: int
    type_references: int
    descriptors: int

    @classmethod
    def now(cls, kind: type) -> Footprint:
        collect()
        loop = asyncio.get_running_loop()
        counts = (
            sys.getallocatedblocks(),
            len(gc.get_objects()),
            sys.getrefcount(loop),
            # Instances of a heap type hold their type: one that is left shows even when the
            # collector does not know of it.
            sys.getrefcount(kind),
            len(support.open_fds()),
        )
        return cls(*counts)

    def leaks_since(self, before: Footprint) -> dict[str, int]:
        """What there is more of than chance would have it, after so many rounds."""
        grown = {name: count - getattr(before, name) for name, count in vars(self).items()}
        return {
            name: count
            for name, count in grown.items()
            if count >= (ROUNDS if name == "blocks" else ROUNDS // 4)
        }


def test_rounds_leave_nothing(
    name: str, loop_factory: support.LoopFactory, certs: support.Certificates
) -> None:
    """Less than one block for each round, after as many to warm up, and next to nothing else.

    The interpreter's caches fill for a while, and cancelled timers, which hold their loop, wait for
    the next compaction. A leak is in the same figure every time it is looked for.
    """

    async def rounds() -> type:
        kind: type = object
        for _ in range(ROUNDS):
            made = await CASES[name](Place(Thing(), certs, loop_factory))
            kind = type(made.made)
            await made.finish()
        del made
        await support.turns(3)
        return kind

    async def main() -> dict[str, int]:
        kind = await rounds()
        leaking: dict[str, int] = {}
        for attempt in range(ATTEMPTS):
            before = Footprint.now(kind)
            await rounds()
            grown = Footprint.now(kind).leaks_since(before)
            leaking = {name: grown[name] for name in grown if attempt == 0 or name in leaking}
            if not leaking:
                break
        return leaking

    assert run_in(loop_factory, main()) == {}
