"""The native data path of TLS on both of its tiers: parity record by record, gates, gathering.

Every behaviour is compared with asyncio's, once with each tier forced by the environment. The peer
is an ssl.SSLObject on a plain socket, so that its records are in the test's hands.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import support
from support import Certificates, Env, Recorder, eventually, turns

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(params=["direct", "bio"], autouse=True)
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tier in force for cpploop; asyncio, the oracle, does not look at it."""
    name: str = request.param
    monkeypatch.setenv("CPPLOOP_TLS", name)
    if name == "direct" and "cpploop" in support.selected_loops():
        import cpploop

        used = cpploop.build_info()["tls"]
        if used[0] != "direct":  # type: ignore[index]
            pytest.skip(f"not on this Python: {used[1]}")  # type: ignore[index]
    return name


class BufferedRecorder(support.BufferedRecorder):
    """Its memory is a view: of a bytearray, asyncio's TLS would fill a copy of the rest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory = memoryview(self.memory)


class Peer:
    """The other end of a connection: TLS by hand over a socket."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=None if server_side else "localhost",
        )

    async def step(self, method: Any, *args: Any) -> Any:
        """Call a method of the SSLObject until it has what it needs."""
        while True:
            try:
                result = method(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                chunk = await asyncio.wait_for(support_recv(self.sock), 10 * support.TIME_SCALE)
                if not chunk:
                    self.incoming.write_eof()
                self.incoming.write(chunk)
            else:
                await self.flush()
                return result

    async def flush(self) -> None:
        if self.outgoing.pending:
            await support.send_all(self.sock, self.outgoing.read())

    def seal(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    async def read(self, size: int) -> bytes:
        result = b""
        while len(result) < size:
            chunk = await self.step(self.tls.read, size - len(result))
            assert chunk
            result += chunk
        return result


async def support_recv(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(1 << 18)
        except BlockingIOError:
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def connected(
    env: Env,
    certs: Certificates,
    rec: Any,
    version: ssl.TLSVersion = V13,
    *,
    server_side: bool = True,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Any, Peer]]:
    """A transport of the loop's and the peer at its other end."""
    sock, other = support.tcp_pair()
    ours = context or (certs.server_context() if server_side else certs.client_context())
    theirs = certs.client_context() if server_side else certs.server_context()
    theirs.minimum_version = theirs.maximum_version = version
    peer = Peer(other, theirs, not server_side)
    handshake = asyncio.ensure_future(peer.step(peer.tls.do_handshake))
    if server_side:
        transport, _ = await env.loop.connect_accepted_socket(lambda: rec, sock, ssl=ours)
    else:
        transport, _ = await env.loop.create_connection(
            lambda: rec, sock=sock, ssl=ours, server_hostname="localhost"
        )
    del sock  # Who holds it could close it, so that nothing would be gathered.
    await handshake
    try:
        yield transport, peer
    finally:
        other.close()
        transport.abort()
        await asyncio.sleep(0.01)


def wreck_record(sealed: bytes) -> bytes:
    return sealed[:-3] + bytes([sealed[-3] ^ 0x55]) + sealed[-2:]


WIRE = {
    "wrecked": lambda peer: wreck_record(peer.seal(b"hello")),
    "garbage": lambda peer: b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "good, then wrecked": lambda peer: peer.seal(b"good") + wreck_record(peer.seal(b"hello")),
    "good, then garbage": lambda peer: peer.seal(b"good") + b"garbage that is no record at all",
    "too long": lambda peer: b"\x17\x03\x03\xff\xff" + bytes(100),
    "plain alert": lambda peer: b"\x15\x03\x03\x00\x02\x02\x28",
    "unknown type": lambda peer: b"\x63\x03\x03\x00\x10" + bytes(16),
    "two records": lambda peer: peer.seal(b"one") + peer.seal(b"two"),
    "half a record": lambda peer: peer.seal(b"never complete")[:-4],
    "nothing": lambda peer: b"",
}
# What ends no connection.
GOES_ON = ("two records", "half a record", "nothing")


@pytest.mark.parametrize("then", ["closes", "stays"])
@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("version", [V12, V13])
def test_what_a_peer_may_send(
    certs: Certificates, version: ssl.TLSVersion, protocol: Any, then: str
) -> None:
    """T6, T9: the callbacks, the exceptions and their texts, the reports: all as asyncio's."""

    async def scenario(env: Env) -> None:
        for name, wire in WIRE.items():
            env.log(name)
            rec = protocol(env)
            async with connected(env, certs, rec, version) as (transport, peer):
                await support.send_all(peer.sock, wire(peer))
                if then == "closes":
                    peer.sock.shutdown(socket.SHUT_WR)
                    await rec.until("connection_lost")
                elif name in GOES_ON:
                    await asyncio.sleep(0.02)
                else:
                    await rec.until("connection_lost")
                env.log("closing", transport.is_closing())
                if rec.exc is not None:
                    env.log(type(rec.exc), str(rec.exc), getattr(rec.exc, "reason", None))

    # Debug mode says the same, on one of the versions.
    support.compare(scenario, debug=version is V12)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("how", ["notify", "notify then data", "notify then close", "unwrap"])
def test_close_notify(certs: Certificates, version: ssl.TLSVersion, how: str) -> None:
    """T3: the peer says goodbye."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with connected(env, certs, rec, version) as (transport, peer):
            wire = peer.seal(b"last words")
            extra = peer.seal(b"too late") if how == "notify then data" else b""
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.unwrap()
            await support.send_all(peer.sock, wire + peer.outgoing.read() + extra)
            if how == "notify then close":
                peer.sock.close()
            elif how == "unwrap":
                with contextlib.suppress(ssl.SSLError):
                    await peer.step(peer.tls.unwrap)
            await rec.until("connection_lost")
            env.log("closing", transport.is_closing())

    support.compare(scenario)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("answer", ["notify", "data", "garbage", "nothing", "close"])
def test_our_close(certs: Certificates, version: ssl.TLSVersion, answer: str) -> None:
    """T3: what comes after close() is not delivered; the peer's answer ends it."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with connected(env, certs, rec, version) as (transport, peer):
            transport.write(b"bye")
            transport.close()
            env.log("closing", transport.is_closing())
            env.log("read", await peer.read(3))
            if answer == "notify":
                await peer.step(peer.tls.unwrap)
            elif answer == "data":
                await support.send_all(peer.sock, peer.seal(b"more and more"))
            elif answer == "garbage":
                await support.send_all(peer.sock, b"garbage that is no record at all")
            elif answer == "close":
                peer.sock.close()
            else:
                await asyncio.sleep(0.01)
                transport.abort()
            await rec.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
def test_records_cut_at_every_byte(run: Any, certs: Certificates, protocol: Any) -> None:
    async def main(env: Env) -> None:
        rec = protocol()
        async with connected(env, certs, rec) as (_transport, peer):
            wire = peer.seal(b"abc") + peer.seal(b"defgh") + peer.seal(b"ij")
            for i in range(len(wire)):
                await support.send_all(peer.sock, wire[i : i + 1])
                await turns(2)
            await rec.until_received(10)
            assert rec.received == b"abcdefghij"

    run(main)


@pytest.mark.parametrize("size", [1, 100, 1000, 16384, 70000])
def test_buffers_smaller_than_what_comes(run: Any, certs: Certificates, size: int) -> None:
    """A BufferedProtocol's buffer that fills is given again until nothing is left."""

    async def main(env: Env) -> None:
        data = os.urandom(60_000 if size > 1 else 3_000)
        rec = BufferedRecorder(size=size)
        async with connected(env, certs, rec) as (_transport, peer):
            await support.send_all(peer.sock, peer.seal(data))
            await rec.until_received(len(data))
            assert rec.received == data

    run(main, timeout=40)


def test_odd_buffers(certs: Certificates) -> None:
    """An empty buffer is asyncio's end of stream; one that cannot be written to is an error."""

    async def scenario(env: Env) -> None:
        for memory in (bytearray(), b"cannot be written to", 17):
            rec = BufferedRecorder(env)
            async with connected(env, certs, rec) as (_transport, peer):
                rec.on["get_buffer"] = lambda rec, hint, memory=memory: memory
                await support.send_all(peer.sock, peer.seal(b"data"))
                await eventually(lambda rec=rec: rec.calls[-1][0] != "connection_made")

    support.compare(scenario, check_warnings=False)


def test_protocols_of_either_kind_at_any_time(run: Any, certs: Certificates) -> None:
    async def main(env: Env) -> None:
        first, second, third = Recorder(), BufferedRecorder(), Recorder()
        async with connected(env, certs, first) as (transport, peer):
            first.on["data_received"] = lambda rec, data: transport.set_protocol(second)
            await support.send_all(peer.sock, peer.seal(b"one"))
            await first.until_received(3)
            assert transport.get_protocol() is second
            await support.send_all(peer.sock, peer.seal(b"two"))
            await second.until_received(3)
            reader = asyncio.StreamReader()
            transport.set_protocol(asyncio.StreamReaderProtocol(reader))
            await support.send_all(peer.sock, peer.seal(b"three"))
            assert await reader.readexactly(5) == b"three"
            transport.set_protocol(third)
            await support.send_all(peer.sock, peer.seal(b"four"))
            await third.until_received(4)
        assert (first.received, second.received, third.received) == (b"one", b"two", b"four")

    run(main)


@pytest.mark.parametrize("action", ["close", "abort", "pause", "write", "raise", "interrupt"])
@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
def test_from_within_a_data_callback(certs: Certificates, action: str, protocol: Any) -> None:
    """T6: whatever a protocol does with its transport while it is given data."""

    async def scenario(env: Env) -> None:
        def act(rec: Any, *_: Any) -> None:
            transport = rec.transport
            if action == "close":
                transport.write(b"goodbye")
                transport.close()
            elif action == "abort":
                transport.abort()
            elif action == "pause":
                transport.pause_reading()
                env.loop.call_later(0.01, transport.resume_reading)
            elif action == "write":
                transport.writelines([b"x" * 40000, bytearray(b"y" * 40000)])
            elif action == "raise":
                raise ValueError("from data_received")

        rec = protocol(env, on={"data_received": act})
        async with connected(env, certs, rec) as (transport, peer):
            wire = peer.seal(b"first") + peer.seal(b"second")
            await support.send_all(peer.sock, wire)
            if action == "write":
                env.log("echoed", (await peer.read(80000)) == b"x" * 40000 + b"y" * 40000)
            elif action == "close":
                env.log("read", await peer.read(7))
            await rec.until_received(11)
            await asyncio.sleep(0.03)
            env.log("closing", transport.is_closing(), rec.count("connection_lost"))

    support.compare(scenario)


class Context(ssl.SSLContext):
    pass


@pytest.mark.parametrize("loop_name", ["cpploop"])
@pytest.mark.parametrize("which", ["subclass", "object class", "message callback", "plain"])
def test_what_a_connection_needs_for_the_direct_tier(
    run: Any, loop_name: str, certs: Certificates, tier: str, which: str
) -> None:
    if loop_name not in support.selected_loops():
        pytest.skip("cpploop is not under test")
    seen: list[Any] = []

    async def main(env: Env) -> None:
        make = Context if which == "subclass" else ssl.SSLContext
        context = make(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certs.server)
        if which == "object class":

            class Object(ssl.SSLObject):
                def read(self, *args: Any) -> Any:
                    seen.append("read")
                    return super().read(*args)

            context.sslobject_class = Object
        elif which == "message callback":
            context._msg_callback = lambda *args: seen.append(args[1])  # type: ignore[attr-defined]
        rec = Recorder(on={"data_received": lambda rec, data: rec.transport.write(data)})
        async with connected(env, certs, rec, context=context) as (transport, peer):
            used, reason = transport.get_extra_info("cpploop.tls")
            if which == "plain" and tier == "direct":
                assert (used, reason) == ("direct", "")
            else:
                assert used == "bio"
                assert reason.startswith("CPPLOOP_TLS=bio" if tier == "bio" else "context: ")
            data = os.urandom(50_000)
            peer.tls.write(data)
            await peer.flush()
            assert await peer.read(len(data)) == data
            assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        assert bool(seen) == (which in ("object class", "message callback"))

    run(main)


def test_writing_from_a_message_callback(run: Any, loop_name: str, certs: Certificates) -> None:
    """A callback of OpenSSL's that writes on the very connection, and on another one."""
    support.needs_cpploop(loop_name, "asyncio calls into the busy connection, which crashes")

    async def main(env: Env) -> None:
        context = certs.server_context()
        targets: list[Any] = []
        busy = False

        def on_message(*args: Any) -> None:
            nonlocal busy
            if targets and not busy:
                busy = True
                for transport in targets:
                    transport.write(b"from within")
                busy = False

        context._msg_callback = on_message  # type: ignore[attr-defined]
        async with (
            connected(env, certs, Recorder(), context=context) as (transport, peer),
            connected(env, certs, Recorder()) as (other, other_peer),
        ):
            targets += [transport, other]
            transport.write(b"outer" * 10_000)
            targets.clear()
            received = await peer.read(50_000)
            assert received == b"outer" * 10_000
            assert await peer.read(11) == b"from within"
            assert await other_peer.read(11) == b"from within"

    run(main)


# ---- writing ----


def data_segments_sent(sock: Any) -> int:
    """How many segments with data the kernel has sent: one per small send with TCP_NODELAY."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int(struct.unpack_from("I", info, 156)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's tcp_info")
@pytest.mark.parametrize("loop_name", ["cpploop"])
@pytest.mark.parametrize("how", ["one", "lines", "header and body"])
def test_one_send_per_callback(run: Any, loop_name: str, certs: Certificates, how: str) -> None:
    if loop_name not in support.selected_loops():
        pytest.skip("cpploop is not under test")

    def answer(rec: Any, data: bytes) -> None:
        if how == "one":
            rec.transport.write(b"r" * 1100)
        elif how == "lines":
            rec.transport.writelines([b"r" * 50, memoryview(b"r" * 50), b"r" * 1000])
        else:
            rec.transport.write(b"r" * 100)
            rec.transport.write(b"r" * 1000)

    async def main(env: Env) -> None:
        rec = Recorder(on={"data_received": answer})
        async with connected(env, certs, rec) as (transport, peer):
            sock = transport.get_extra_info("socket")
            for turn in range(12):
                if turn == 2:  # The habit of two writes is learned.
                    before = data_segments_sent(sock)
                peer.tls.write(b"request")
                await peer.flush()
                assert await peer.read(1100) == b"r" * 1100
            assert data_segments_sent(sock) - before == 10

    run(main)


@pytest.mark.parametrize("how", ["abort", "raise"])
def test_what_was_written_before_an_abort(run: Any, certs: Certificates, how: str) -> None:
    """asyncio sends at once; what was gathered goes out before the end all the same."""

    def answer(rec: Any, data: bytes) -> None:
        rec.transport.write(b"one")
        rec.transport.write(b"two")
        if how == "abort":
            rec.transport.abort()
        else:
            raise ValueError

    async def main(env: Env) -> None:
        rec = Recorder(on={"data_received": answer})
        async with connected(env, certs, rec) as (_transport, peer):
            peer.tls.write(b"request")
            await peer.flush()
            assert await peer.read(6) == b"onetwo"
            await rec.until("connection_lost")
            assert bool(env.take_errors()) == (how == "raise")

    run(main)


def test_what_can_be_written(run: Any, certs: Certificates) -> None:
    """C10: mutable buffers may change after the call; views of any shape are taken whole."""

    async def main(env: Env) -> None:
        view, view_bytes = support.multidimensional_view()
        numbers = array.array("i", range(1000))
        changing = bytearray(b"m" * 100_000)
        big = os.urandom(400_000)
        async with connected(env, certs, Recorder()) as (transport, peer):
            transport.write(b"")
            transport.write(view)
            transport.write(memoryview(numbers))
            transport.write(changing)
            changing[:] = b"z" * 100_000
            changing.extend(b"not exported any more")
            transport.writelines([b"", b"a", bytearray(b"b"), memoryview(b"c")])
            transport.writelines(iter([big, b"end"]))
            expected = view_bytes + numbers.tobytes() + b"m" * 100_000 + b"abc" + big + b"end"
            assert await peer.read(len(expected)) == expected

    run(main, timeout=40)


def test_what_cannot_be_written(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        for call in (
            lambda t: t.write("text"),
            lambda t: t.write(None),
            lambda t: t.write(),
            lambda t: t.writelines(None),
            lambda t: t.writelines([1]),
            lambda t: t.writelines(["text"]),
            lambda t: t.write_eof(),
            lambda t: t.set_write_buffer_limits(1, 2),
        ):
            rec = Recorder(env)
            async with connected(env, certs, rec) as (transport, _peer):
                try:
                    env.log(call(transport))
                except Exception as exc:
                    env.log(type(exc), "argument" in str(exc) or str(exc))
                await asyncio.sleep(0.005)
                env.log(transport.is_closing(), transport.can_write_eof())

    support.compare(scenario)


def test_watermarks(run: Any, loop_name: str, certs: Certificates) -> None:
    """C11: what the transport below does not take is counted, and resumes when it is gone."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with connected(env, certs, rec) as (transport, peer):
            transport.set_write_buffer_limits(high=100_000, low=10_000)
            assert transport.get_write_buffer_limits() == (10_000, 100_000)
            total = 0
            while not rec.count("pause_writing"):
                transport.write(b"w" * 50_000)
                total += 50_000
                assert total < 1 << 26
            size = transport.get_write_buffer_size()
            assert size >= 100_000
            if loop_name == "cpploop":
                # Not more than one write above the mark, whatever it was.
                assert size < 151_000
            assert rec.count("resume_writing") == 0
            assert await peer.read(total) == b"w" * total
            await rec.until("resume_writing")
            assert transport.get_write_buffer_size() <= 10_000
            assert rec.count("pause_writing") == rec.count("resume_writing") == 1

    run(main, timeout=40)


def test_close_sends_what_is_queued(run: Any, certs: Certificates) -> None:
    async def main(env: Env) -> None:
        rec = Recorder()
        async with connected(env, certs, rec) as (transport, peer):
            data = os.urandom(3_000_000)
            transport.write(data)
            transport.writelines([b"the ", b"end"])
            transport.close()
            transport.write(b"dropped")
            assert await peer.read(len(data)) == data
            assert await peer.read(7) == b"the end"
            with contextlib.suppress(ssl.SSLError):
                await peer.step(peer.tls.unwrap)
            await rec.until("connection_lost")
            assert rec.exc is None

    run(main, timeout=40)


def test_python_objects_beside_the_transport(certs: Certificates) -> None:
    """What is put into the BIOs, or made by the SSLObject, by hand keeps its place."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with connected(env, certs, rec) as (transport, peer):
            await support.send_all(peer.sock, peer.seal(b"first,"))
            transport.write(b"ours,")
            assert await peer.read(5) == b"ours,"
            await rec.until_received(6)
            transport.get_extra_info("ssl_object").write(b"by hand,")
            transport.write(b"ours again")
            env.log(await peer.read(18))

            protocol = transport._ssl_protocol
            incoming = protocol._incoming
            incoming.write(peer.seal(b"second,"))
            protocol._do_read()
            env.log(bytes(rec.received))
            incoming.write(peer.seal(b"third,"))
            await support.send_all(peer.sock, peer.seal(b"fourth"))
            await rec.until_received(25)
            env.log(bytes(rec.received))

    support.compare(scenario)


def test_writes_after_the_end(certs: Certificates) -> None:
    """C8: dropped, and warned about from the sixth on."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with connected(env, certs, rec) as (transport, peer):
            peer.sock.close()
            await rec.until("connection_lost")
            for _ in range(8):
                transport.write(b"x")
            transport.writelines([b"y"])
            env.log(transport.is_closing(), transport._ssl_protocol._conn_lost)

    support.compare(scenario)


# ---- the protocol by itself ----


class Plain(asyncio.Transport):
    """A transport of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closed: Any = "open"

    def write(self, data: Any) -> None:
        self.sent += data

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self.closed != "open"

    def close(self) -> None:
        self.closed = None

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        self.closed = exc


def test_over_a_transport_of_somebody_elses(run: Any, loop_name: str, certs: Certificates) -> None:
    """get_buffer() and buffer_updated() alone, as any asyncio transport uses them."""
    support.needs_cpploop(loop_name, "the class is cpploop's")

    async def main(env: Env) -> None:
        from cpploop._tls import SSLProtocol

        rec = Recorder()
        loop: Any = env.loop
        waiter = loop.create_future()
        server = SSLProtocol(loop, rec, certs.server_context(), waiter, True)
        below = Plain()
        server.connection_made(below)
        peer = Peer(socket.socket(), certs.client_context(), False)

        def exchange() -> None:
            wire = peer.outgoing.read()
            while wire:
                view = server.get_buffer(-1)
                count = min(len(view), len(wire), 700)
                view[:count] = wire[:count]
                server.buffer_updated(count)
                wire = wire[count:]
            peer.incoming.write(bytes(below.sent))
            below.sent.clear()

        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            exchange()
            await asyncio.sleep(0)
        await waiter
        data = os.urandom(100_000)
        peer.tls.write(data)
        exchange()
        assert rec.received == data
        rec.transport.write(data)
        exchange()
        received = b""
        while len(received) < len(data):
            received += peer.tls.read(1 << 16)
        assert received == data
        for nonsense in (1, -1, 1 << 70):
            server.buffer_updated(nonsense)
        rec.transport.abort()
        assert below.closed is None
        peer.sock.close()
        server.connection_lost(None)
        await rec.until("connection_lost")

    run(main)


def test_nothing_that_python_can_do_to_it_crashes(run: Any, loop_name: str) -> None:
    """C6: attributes unset, deleted, of other types; methods in any state."""
    support.needs_cpploop(loop_name, "the class is cpploop's")

    async def main(env: Env) -> None:
        from cpploop import _native
        from cpploop._tls import SSLProtocol, _SSLProtocolTransport

        methods = ["_do_read", "_do_write", "_process_outgoing", "_encrypt_backlog"]
        bare: Any = SSLProtocol.__new__(SSLProtocol)
        for name in [*methods, "_get_write_buffer_size", "_get_read_buffer_size"]:
            with pytest.raises(RuntimeError):
                getattr(bare, name)()
        with pytest.raises(TypeError):
            bare._loop = object()
        with pytest.raises(AttributeError):
            _ = bare._sslobj
        for text in ("high", None):
            with pytest.raises(TypeError):
                bare._outgoing_high_water = text
        with pytest.raises(TypeError):
            bare._write_buffer_size = "many"
        bare._loop = env.loop
        with pytest.raises(AttributeError):
            bare._open_session(True)
        bare.buffer_updated(5)
        transport: Any = _SSLProtocolTransport(env.loop, bare)
        for state in (None, *_states()):
            bare._state = state
            for name in methods:
                with contextlib.suppress(AttributeError):
                    getattr(bare, name)()
            with contextlib.suppress(AttributeError):
                transport.write(b"data")
        with pytest.raises(TypeError):
            _native._tls_register(int)
        loop: Any = env.loop
        real: Any = SSLProtocol(
            loop, Recorder(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), None, True
        )
        for name in ("_sslobj", "_incoming", "_outgoing", "_write_backlog", "_transport"):
            delattr(real, name)
            delattr(real, name)
            for method in methods:
                with contextlib.suppress(AttributeError, RuntimeError):
                    getattr(real, method)()
        transport._ssl_protocol = real
        transport._ssl_protocol = None
        with pytest.raises(AttributeError):
            transport.write(b"data")
        transport._closed = True
        # The loop is what a method under way goes on with.
        with pytest.raises(AttributeError, match="stays with its loop"):
            del real._loop
        with contextlib.closing(type(loop)()) as another:
            with pytest.raises(AttributeError, match="stays with its loop"):
                real._loop = another
        real._loop = loop
        del bare, real

    run(main, check_warnings=False)


def test_an_error_in_what_was_put_off_ends_the_connection(
    run: Any, loop_name: str, certs: Certificates
) -> None:
    """asyncio encrypts within write(); what waits is encrypted when writing is resumed."""
    support.needs_cpploop(loop_name, "what waits there is encrypted already")

    class Failing(ssl.SSLObject):
        fails = False

        def write(self, data: Any) -> int:
            if Failing.fails:
                raise ZeroDivisionError("in write")
            return super().write(data)

    async def main(env: Env) -> None:
        rec = Recorder()
        context = certs.client_context()
        context.sslobject_class = Failing
        connection = connected(env, certs, rec, server_side=False, context=context)
        async with connection as (transport, peer):
            transport.write(bytes(4_000_000))
            assert transport.get_write_buffer_size() > 1_000_000
            Failing.fails = True
            with contextlib.suppress(ssl.SSLError, OSError, AssertionError):
                await peer.read(4_000_000)
            await rec.until("connection_lost")
            assert type(rec.exc) is ZeroDivisionError
            ((message, exception),) = env.take_errors()
            assert message == "Fatal error on SSL protocol"
            assert exception.startswith("ZeroDivisionError")

    run(main, timeout=40)


def _states() -> Iterator[Any]:
    from asyncio.sslproto import SSLProtocolState

    yield from SSLProtocolState


def test_objects_that_only_look_like_ssl(run: Any, loop_name: str) -> None:
    """A session over objects of other types: their methods are called, their answers checked."""
    support.needs_cpploop(loop_name, "the class is cpploop's")

    class Object:
        def __init__(self, *answers: Any) -> None:
            self.answers = list(answers)

        def read(self, size: int) -> Any:
            answer = self.answers.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    async def main(env: Env) -> None:
        from cpploop._tls import SSLProtocol

        loop: Any = env.loop
        for answer, reported in (
            (b"x" * (1 << 20), ValueError),
            (None, TypeError),
            (ZeroDivisionError(), ZeroDivisionError),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            protocol: Any = SSLProtocol(loop, Recorder(), context, None, True)
            protocol._sslobj = Object(b"first", answer)
            protocol._state = list(_states())[2]
            protocol._transport = Plain()
            protocol._incoming.write(b"something")
            protocol._app_transport._closed = True
            protocol._do_read()
            (report,) = env.take_contexts()
            assert type(report["exception"]) is reported
            assert report["message"] == "Fatal error on SSL protocol"

    run(main)


def test_freed_without_the_collector(run: Any, loop_name: str, certs: Certificates) -> None:
    """T1: nothing of a connection that ended waits for the garbage collector."""
    import weakref

    support.needs_cpploop(loop_name, "asyncio leaves cycles on some versions")

    async def main(env: Env) -> None:
        gc.collect()
        gc.disable()
        try:
            refs = []
            for _ in range(3):
                rec = Recorder()
                async with connected(env, certs, rec) as (transport, peer):
                    peer.tls.write(b"data")
                    await peer.flush()
                    await rec.until_received(4)
                    refs += [weakref.ref(transport), weakref.ref(transport._ssl_protocol)]
                rec.transport = transport = None
            await asyncio.sleep(0.01)
            assert [ref() for ref in refs] == [None] * len(refs)
        finally:
            gc.enable()

    run(main)
