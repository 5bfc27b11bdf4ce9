"""What docs/differences-from-seeds.md claims, one test for each of its rows.

Texts about asyncio are sometimes wrong about it. Each test here states what the asyncio of the
running interpreter really does, proves it there, and holds cpploop to the same; the few places
where cpploop does better than asyncio on purpose say so.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import sys
import warnings
import weakref
from typing import Any

import pytest
import support
from support import Recorder, attach, eventually, transport_pair, turns


class Answer(Recorder):
    """A protocol whose eof_received() returns what it was made with."""

    def __init__(self, keep_open: Any) -> None:
        super().__init__()
        self.keep_open = keep_open

    def eof_received(self) -> Any:
        super().eof_received()
        return self.keep_open


@pytest.mark.parametrize("answer", [None, False, True])
def test_eof_received_true_keeps_the_connection(run: Any, answer: Any) -> None:
    """A true value keeps our direction open; the default closes. One seed has it reversed."""

    async def main() -> None:
        protocol = Answer(answer)
        async with transport_pair(protocol) as (transport, peer):
            peer.shutdown(socket.SHUT_WR)
            await eventually(lambda: "eof_received" in protocol.names())
            assert transport.is_closing() is (not answer)
            await turns(3)
            assert ("connection_lost" in protocol.names()) is (not answer)
            if answer:
                transport.write(b"still here")
                assert await support.recv_exactly(peer, 10) == b"still here"

    run(main)


async def tls_pair(
    certs: support.Certificates, server_protocol: Any, client_protocol: Any
) -> tuple[Any, Any, Any]:
    """A server object and both ends' transports of one TLS connection over TCP."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: server_protocol, "127.0.0.1", 0, ssl=certs.server_context()
    )
    transport, _ = await loop.create_connection(
        lambda: client_protocol,
        *server.sockets[0].getsockname(),
        ssl=certs.client_context(),
        server_hostname="localhost",
    )
    await eventually(lambda: server_protocol.names())
    return server, server_protocol.transport, transport


def test_tls_has_no_half_close(run: Any, certs: support.Certificates) -> None:
    """Under TLS there is no write_eof(), and the value of eof_received() has no effect."""

    async def main(env: Any) -> None:
        near, far = Recorder(), Answer(True)
        server, server_transport, transport = await tls_pair(certs, near, far)
        for side in (transport, server_transport):
            assert side.can_write_eof() is False
            with pytest.raises(NotImplementedError):
                side.write_eof()
        server_transport.close()
        # True was returned, and the connection closes all the same.
        await eventually(lambda: "connection_lost" in far.names())
        await eventually(lambda: "connection_lost" in near.names())
        assert "eof_received" in far.names()
        assert env.take_logs() == [
            "returning true from eof_received() has no effect when using ssl"
        ]
        server.close()
        await server.wait_closed()

    run(main)


def test_sslcontext_is_known_on_both_sides_of_tls_only(
    run: Any, certs: support.Certificates
) -> None:
    """The raw transport knows no sslcontext; the TLS transport does, on either side."""

    async def main() -> None:
        near, far = Recorder(), Recorder()
        server, server_transport, transport = await tls_pair(certs, near, far)
        for side in (transport, server_transport):
            assert isinstance(side.get_extra_info("sslcontext"), ssl.SSLContext)
            assert isinstance(side.get_extra_info("ssl_object"), ssl.SSLObject)
        transport.close()
        await eventually(lambda: "connection_lost" in far.names())
        await eventually(lambda: "connection_lost" in near.names())
        server.close()
        await server.wait_closed()
        async with transport_pair(Recorder()) as (plain, _):
            assert plain.get_extra_info("sslcontext") is None
            assert plain.get_extra_info("sslcontext", "default") == "default"

    run(main)


def test_tls_marks_are_its_own(run: Any, certs: support.Certificates) -> None:
    """64 KiB and 16 KiB are a plain transport's marks; TLS has larger ones of its own."""

    async def main() -> None:
        near, far = Recorder(), Recorder()
        server, _, transport = await tls_pair(certs, near, far)
        assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
        transport.abort()
        await eventually(lambda: "connection_lost" in far.names())
        await eventually(lambda: "connection_lost" in near.names())
        server.close()
        await server.wait_closed()
        async with transport_pair(Recorder()) as (plain, _):
            assert plain.get_write_buffer_limits() == (16 * 1024, 64 * 1024)

    run(main)


def test_write_sends_inside_the_call(run: Any) -> None:
    """An idle transport's write() sends before it returns: nothing waits for a later turn (C9)."""

    async def main() -> None:
        async with transport_pair(Recorder()) as (transport, peer):
            transport.write(b"now")
            assert support.recv_now(peer) == b"now"
            assert transport.get_write_buffer_size() == 0

    run(main)


@pytest.mark.parametrize(
    "data", [b"x", bytearray(b"x"), memoryview(b"x")], ids=lambda d: str(type(d))
)
def test_write_takes_bytes_like_objects(run: Any, data: Any) -> None:
    async def main() -> None:
        async with transport_pair(Recorder()) as (transport, peer):
            transport.write(data)
            assert await support.recv_exactly(peer, 1) == b"x"
            with pytest.raises(TypeError):
                transport.write("x")

    run(main)


def test_writelines_is_one_vectored_write(run: Any) -> None:
    """Python 3.12 gave asyncio's socket transport a writelines() of its own; before, it joined."""
    own = "writelines" in vars(asyncio.selector_events._SelectorSocketTransport)
    assert own is (sys.version_info >= (3, 12))

    async def main() -> None:
        async with transport_pair(Recorder()) as (transport, peer):
            transport.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
            assert support.recv_now(peer) == b"abc"

    run(main)


def test_write_after_close_raises_nothing(run: Any) -> None:
    """After close() with an empty queue a write is dropped, and after the fifth logged (C8)."""

    async def main(env: Any) -> None:
        async with transport_pair(Recorder()) as (transport, peer):
            transport.close()
            for _ in range(4):
                transport.write(b"dropped")
            assert env.take_logs() == []
            transport.write(b"dropped")
            assert env.take_logs() == ["socket.send() raised exception."]
            await turns(3)
            assert support.recv_now(peer) == b""

    run(main)


def test_write_after_close_is_sent_while_data_is_queued(run: Any) -> None:
    """close() does not end writing while data is still queued: what is added is sent too."""

    async def main() -> None:
        async with transport_pair(Recorder()) as (transport, peer):
            written = await support.fill(transport)
            transport.close()
            transport.write(b"the end")
            received = await support.recv_to_end(peer)
            assert len(received) == written + len(b"the end")
            assert received.endswith(b"the end")

    run(main)


def test_abort_is_told_in_a_later_turn(run: Any) -> None:
    """abort() ends the connection with None, but no protocol method runs inside the call."""

    async def main() -> None:
        protocol = Recorder()
        async with transport_pair(protocol) as (transport, _):
            await support.fill(transport)
            transport.abort()
            assert transport.get_write_buffer_size() == 0
            assert "connection_lost" not in protocol.names()
            await eventually(lambda: "connection_lost" in protocol.names())

    run(main)


class Marks(asyncio.Protocol):
    """Notes the buffer's size at each call of the transport's flow control."""

    transport: Any

    def __init__(self) -> None:
        self.paused_at: list[int] = []
        self.resumed_at: list[int] = []
        self.inside_write = False
        self.paused_inside_write: list[bool] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def pause_writing(self) -> None:
        self.paused_at.append(self.transport.get_write_buffer_size())
        self.paused_inside_write.append(self.inside_write)

    def resume_writing(self) -> None:
        self.resumed_at.append(self.transport.get_write_buffer_size())

    def write(self, data: bytes) -> None:
        self.inside_write = True
        self.transport.write(data)
        self.inside_write = False


def test_marks_are_above_and_at_or_below(run: Any) -> None:
    """Pausing is the transport's act, above the high mark; resuming is at the low mark or below."""

    async def main() -> None:
        protocol = Marks()
        async with transport_pair(protocol) as (transport, peer):
            await support.fill(transport)
            full = transport.get_write_buffer_size()
            transport.set_write_buffer_limits(high=full + 1000, low=100)
            protocol.write(b"x" * 1000)
            # Exactly at the mark is not above it.
            assert transport.get_write_buffer_size() == full + 1000
            assert protocol.paused_at == []
            protocol.write(b"x")
            assert protocol.paused_at == [full + 1001]
            while not protocol.resumed_at:
                support.recv_now(peer, 1 << 16)
                await asyncio.sleep(0)
            assert protocol.resumed_at[0] <= 100
            assert protocol.paused_inside_write == [True]

    run(main)


def test_who_pauses_alone_is_never_resumed(run: Any) -> None:
    """resume_writing() follows the transport's own pause_writing() and nothing else.

    A protocol that pauses itself as soon as anything is buffered, below the mark, waits for ever.
    """

    async def main() -> None:
        protocol = Marks()
        async with transport_pair(protocol) as (transport, peer):
            transport.set_write_buffer_limits(high=1 << 30)
            await support.fill(transport)
            assert transport.get_write_buffer_size() > 0
            while transport.get_write_buffer_size():
                support.recv_now(peer)
                await asyncio.sleep(0)
            await turns(3)
            assert protocol.paused_at == []
            assert protocol.resumed_at == []

    run(main)


def test_closing_in_resume_writing(run: Any, loop_name: str) -> None:
    """close() inside resume_writing(), as one seed's program does at its end.

    asyncio's older patch releases then call connection_lost twice, the second time without a
    protocol, which is reported to the exception handler; cpploop calls it once.
    """

    async def main(env: Any) -> None:
        def close(recorder: Recorder) -> None:
            recorder.transport.close()

        protocol = Recorder(on={"resume_writing": close})
        async with transport_pair(protocol) as (transport, peer):
            transport.set_write_buffer_limits(high=0)
            await support.fill(transport)
            while "connection_lost" not in protocol.names():
                support.recv_now(peer)
                await asyncio.sleep(0)
            await turns(3)
            assert protocol.count("resume_writing") == 1
            if loop_name == "asyncio":
                env.take_errors()
            assert protocol.count("connection_lost") == 1

    run(main)


def test_nobody_hangs_up_by_itself(run: Any) -> None:
    """An echo client that waits for connection_lost and closes nothing waits for ever."""

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        client = Recorder()
        transport, _ = await loop.create_connection(
            lambda: client, *server.sockets[0].getsockname()
        )
        transport.write(b"Hello World!")
        await client.until_received(12)
        await asyncio.sleep(0.2)
        assert "connection_lost" not in client.names()
        transport.close()
        await eventually(lambda: "connection_lost" in client.names())
        server.close()
        await server.wait_closed()

    run(main)


def test_the_factory_may_return_any_protocol(run: Any) -> None:
    """The factory is called once a connection; what it returns need not be new."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        shared, calls = Recorder(), []

        def factory() -> Recorder:
            calls.append(1)
            return shared

        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [await loop.create_connection(Recorder, *address) for _ in range(2)]
        await eventually(lambda: shared.names().count("connection_made") == 2)
        assert len(calls) == 2
        for transport, _ in clients:
            transport.close()
        await eventually(lambda: shared.names().count("connection_lost") == 2)
        server.close()
        await server.wait_closed()

    run(main)


def test_base_classes_hold_no_contract() -> None:
    """The classes of asyncio.transports are abstract: flow control and protocols are not theirs."""
    base, writer = asyncio.BaseTransport(), asyncio.WriteTransport()
    assert not hasattr(base, "_protocol")
    assert not hasattr(base, "_closing")
    for call in (
        base.is_closing,
        base.get_protocol,
        lambda: base.set_protocol(asyncio.Protocol()),
        base.close,
        writer.set_write_buffer_limits,
        writer.get_write_buffer_limits,
        writer.get_write_buffer_size,
    ):
        with pytest.raises(NotImplementedError):
            call()
    # One seed dates get_write_buffer_limits() to 3.12; it is in every Python cpploop runs on.
    assert "get_write_buffer_limits" in vars(asyncio.WriteTransport)


def test_pause_and_resume_reading_are_idempotent(run: Any) -> None:
    async def main() -> None:
        protocol = Recorder()
        async with transport_pair(protocol) as (transport, peer):
            assert transport.is_reading()
            transport.resume_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            peer.send(b"later")
            await turns(5)
            assert protocol.received == b""
            transport.resume_reading()
            await protocol.until_received(5)
            transport.close()
            transport.pause_reading()
            transport.resume_reading()
            assert not transport.is_reading()

    run(main)


def test_connection_made_is_scheduled(run: Any) -> None:
    """The protocol is the transport's before connection_made, which runs in a turn of its own."""

    async def main() -> None:
        events: list[str] = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                assert transport.get_protocol() is self
                transport.write(b"at once")
                events.append("made")

            def data_received(self, data: bytes) -> None:
                events.append("data")

        ours, peer = support.tcp_pair()
        peer.send(b"already there")
        connecting = asyncio.ensure_future(attach(ours, Protocol()))
        await asyncio.sleep(0)
        # The transport is made by now; the protocol hears of it in a later turn.
        events.append("turn")
        transport, _ = await connecting
        await eventually(lambda: "data" in events)
        assert events == ["turn", "made", "data"]
        assert support.recv_now(peer) == b"at once"
        transport.abort()
        peer.close()
        await turns(3)

    run(main)


def test_close_stops_receiving_within_the_turn(run: Any) -> None:
    """close() takes effect at once, also for data that the same poll has already announced."""

    async def main() -> None:
        heard: list[str] = []
        transports: dict[str, Any] = {}

        class ClosesTheOther(asyncio.Protocol):
            def __init__(self, name: str, other: str) -> None:
                self.name, self.other = name, other

            def connection_made(self, transport: Any) -> None:
                transports[self.name] = transport

            def data_received(self, data: bytes) -> None:
                heard.append(self.name)
                transports[self.other].close()

        peers = []
        for name, other in (("a", "b"), ("b", "a")):
            ours, peer = support.tcp_pair()
            await attach(ours, ClosesTheOther(name, other))
            peers.append(peer)
        await turns(3)
        for peer in peers:
            peer.send(b"both are readable in one poll")
        await asyncio.sleep(0.05)
        assert len(heard) == 1
        for transport in transports.values():
            transport.abort()
        for peer in peers:
            peer.close()
        await turns(3)

    run(main)


def test_paused_transport_is_held(run: Any, loop_name: str) -> None:
    """asyncio holds a transport through its selector and lets a paused one go; cpploop does not."""
    lost: list[Any] = []

    class Forgetful(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()

        def connection_lost(self, exc: Any) -> None:
            lost.append(exc)

    async def main() -> None:
        ours, peer = support.tcp_pair()
        transport, _ = await attach(ours, Forgetful())
        reference = weakref.ref(transport)
        del transport, ours, _
        await turns(3)
        with warnings.catch_warnings():
            # On asyncio the transport warns as it goes, and a warning that is kept keeps it.
            warnings.simplefilter("ignore")
            gc.collect()
            gc.collect()
        held = reference()
        if held is not None:
            held.abort()
            await turns(3)
        peer.close()
        assert lost == ([None] if loop_name == "cpploop" else [])

    run(main)


def test_shutdown_asyncgens_is_no_placeholder(run: Any) -> None:
    """A generator left half-way is finished by shutdown_asyncgens(), and its finally runs."""

    async def main() -> None:
        steps: list[str] = []

        async def generator() -> Any:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                steps.append("finally")

        left = generator()
        assert await left.__anext__() == 1
        await asyncio.get_running_loop().shutdown_asyncgens()
        assert steps == ["finally"]
        with pytest.raises(StopAsyncIteration):
            await left.__anext__()

    with warnings.catch_warnings():
        # asyncio.Runner shuts them down once more, after ours.
        warnings.simplefilter("ignore")
        run(main)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_closed_loop_refuses_new_work(loop_factory: support.LoopFactory) -> None:
    """Every way to give a closed loop work raises; create_server() too, which is a coroutine."""
    loop = loop_factory()
    loop.close()

    async def nothing() -> None:
        pass

    async def serve() -> None:
        await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)

    with socket.socket() as sock:
        for call in (
            lambda: loop.call_soon(print),
            lambda: loop.call_soon_threadsafe(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
            lambda: loop.add_reader(sock, print),
            lambda: loop.add_writer(sock, print),
            lambda: loop.run_in_executor(None, print),
            loop.run_forever,
            # Driven by another loop: a closed one runs nothing.
            lambda: asyncio.run(serve()),
        ):
            with pytest.raises(RuntimeError, match="Event loop is closed"):
                call()
    coroutine = nothing()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coroutine)
    coroutine.close()
    gc.collect()


def test_abandoned_loop_is_collected(loop_factory: support.LoopFactory) -> None:
    """A loop dropped without close(), callbacks pending, is collected and warns: no leak (C7)."""
    before = support.open_fds()
    loop = loop_factory()
    loop.call_soon(print, loop)
    loop.call_later(1000, print, loop)
    reference = weakref.ref(loop)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del loop
        gc.collect()
        texts = [str(warning.message) for warning in caught]
        # A warning that is kept keeps the loop.
        caught.clear()
        gc.collect()
    assert reference() is None
    assert any("unclosed event loop" in text for text in texts)
    assert support.new_fds(before) == {}


def test_stopping_does_not_forget_callbacks(loop_factory: support.LoopFactory) -> None:
    """Pending callbacks outlive stop(); only close() drops them."""
    loop = loop_factory()
    ran: list[int] = []
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.call_soon(ran.append, 1)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == [1]
    loop.call_soon(ran.append, 2)
    loop.close()
    assert ran == [1]
