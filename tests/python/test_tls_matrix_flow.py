"""TLS: flow control, bulk, many writes, odd buffers, protocols swapped, re-entrancy, errors."""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
import time
from typing import Any

import pytest
import support
import tls_support
from support import BufferedRecorder, Env, Recorder, eventually, turns
from tls_support import (
    KINDS,
    PROTOCOLS,
    SIDES,
    VERSIONS,
    Pki,
    connect,
    echo,
    endpoint,
    linked,
    recorder,
    serving,
    settle,
    unconnected,
)

MIB = 1 << 20

# --------------------------------------------------------------------------- writing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_watermarks(tls_run: Any, pki: Pki, side: str, kind: str) -> None:
    """C11: a peer that does not read: paused once, the size counts; read: resumed once, empty."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, kind=kind) as (transport, peer):
            assert transport.get_write_buffer_size() == 0
            assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
            written = 0
            while not rec.count("pause_writing"):
                transport.write(bytes(65536))
                written += 65536
                assert written < 64 * MIB
            assert transport.get_write_buffer_size() >= 512 * 1024
            # What is beyond the mark is not paused for again.
            transport.write(bytes(65536))
            written += 65536
            await asyncio.sleep(0.01)
            assert rec.names().count("pause_writing") == 1
            assert rec.count("resume_writing") == 0
            assert transport.get_write_buffer_size() <= written
            assert len(await peer.read_exactly(written)) == written
            await rec.until("resume_writing")
            await eventually(lambda: transport.get_write_buffer_size() == 0)
            assert rec.names().count("resume_writing") == 1

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_own_watermarks(tls_run: Any, pki: Pki, side: str) -> None:
    """Limits set on a full transport are judged at once; zero means paused while not empty."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            transport.set_write_buffer_limits(high=64 * MIB)
            written = 0
            while transport.get_write_buffer_size() < MIB:
                transport.write(bytes(65536))
                written += 65536
            assert rec.count("pause_writing") == 0
            transport.set_write_buffer_limits(high=MIB // 2)
            assert rec.count("pause_writing") == 1
            transport.set_write_buffer_limits(high=64 * MIB)
            assert rec.count("resume_writing") == 1
            transport.set_write_buffer_limits(high=0)
            assert rec.count("pause_writing") == 2
            assert len(await peer.read_exactly(written)) == written
            await rec.until("resume_writing", 2)
            assert transport.get_write_buffer_size() == 0

    tls_run(main)


def test_drain_waits(tls_run: Any, pki: Pki) -> None:
    """A stream's drain() waits for a slow reader and the process does not swell."""

    async def main(env: Env) -> None:
        total = 8 * MIB

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(total // 65536):
                writer.write(bytes(65536))
                largest.append(writer.transport.get_write_buffer_size())
                await writer.drain()
            writer.close()

        largest: list[int] = []
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=pki.server_context())
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=pki.client_context(), server_hostname="localhost"
        )
        received = 0
        while data := await reader.read(100_000):
            received += len(data)
            if received < MIB:
                await asyncio.sleep(0.001)
        assert received == total
        assert max(largest) < 2 * MIB
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    tls_run(main)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("side", SIDES)
def test_many_small_writes(tls_run: Any, pki: Pki, side: str, version: str) -> None:
    """Thousands of writes of few bytes, some in one callback, arrive whole and in order."""

    async def main(env: Env) -> None:
        chooser = random.Random(3)
        async with endpoint(env, pki, side, Recorder(), version=version) as (transport, peer):
            sent = bytearray()
            receiving = asyncio.ensure_future(peer.read_exactly(10_000_000))
            for number in range(4000):
                data = chooser.randbytes(chooser.randrange(1, 60))
                sent += data
                if number % 3:
                    transport.write(data)
                else:
                    transport.writelines([data[:1], bytearray(data[1:2]), memoryview(data)[2:]])
                if number % 50 == 0:
                    await asyncio.sleep(0)
            transport.close()
            assert await receiving == sent

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_what_can_be_written(tls_compare: Any, pki: Pki, side: str) -> None:
    """Every kind of buffer, changed right after the call; what is refused is refused the same."""

    async def scenario(env: Env) -> None:
        table, content = support.multidimensional_view()
        mutable = bytearray(b"before")
        for data, wanted in (
            (b"bytes", b"bytes"),
            (mutable, b"before"),
            (memoryview(b"view"), b"view"),
            (memoryview(array.array("i", [1, 2])).cast("B"), array.array("i", [1, 2]).tobytes()),
            (table, content),
            (array.array("b", b"array"), b""),
            (b"x" * 70_000, b"x" * 70_000),
        ):
            for method in ("write", "writelines"):
                rec = Recorder()
                async with endpoint(env, pki, side, rec) as (transport, peer):
                    try:
                        getattr(transport, method)([data] if method == "writelines" else data)
                    except TypeError as exc:
                        env.log(method, type(data), exc)
                        continue
                    if data is mutable:
                        mutable[:] = b"behind"
                    transport.close()
                    got, _ = await peer.read_to_end()
                    env.log(method, type(data), got == wanted, len(got))
                    await peer.close_notify()
                    peer.close()
                    await rec.until("connection_lost")
                    env.log(rec.exc)
                mutable[:] = b"before"

    tls_compare(scenario)


def test_writelines_takes_what_asyncio_takes(tls_compare: Any, pki: Pki) -> None:
    """Generators, empty pieces, pieces of wrong types in the middle."""

    async def scenario(env: Env) -> None:
        cases: list[Any] = [
            lambda: (piece for piece in (b"a", b"", b"b")),
            lambda: [b"", b""],
            lambda: ["text"],
            lambda: [b"good", 5],
            lambda: [b"good", None, b"more"],
            lambda: b"bytes are integers",
            lambda: 5,
        ]
        for case in cases:
            rec = Recorder()
            async with endpoint(env, pki, "server", rec) as (transport, _):
                try:
                    transport.writelines(case())
                except (TypeError, ValueError, AttributeError) as exc:
                    env.log("raised", type(exc))
                env.log("closing", transport.is_closing())
                transport.abort()
                await rec.until("connection_lost")
                env.log(type(rec.exc))

    tls_compare(scenario)


# --------------------------------------------------------------------------- reading


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("side", SIDES)
def test_pause_reading_with_megabytes(tls_run: Any, pki: Pki, side: str, protocol: Any) -> None:
    """Paused: nothing is delivered and the peer is held up. Resumed: every byte, in order."""

    async def main(env: Env) -> None:
        data = random.Random(5).randbytes(6 * MIB)
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec) as (transport, peer):
            # Else the kernel itself may grow to take all of it.
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
            await peer.write(b"!")
            await rec.until_received(1)
            transport.pause_reading()
            sending = asyncio.ensure_future(peer.write(data))
            await asyncio.sleep(0.05)
            assert not transport.is_reading()
            assert len(rec.received) == 1
            assert not sending.done(), "all of it was taken in while reading was paused"
            await support.assert_idle(0.1)
            transport.resume_reading()
            assert await rec.until_received(1 + len(data)) == b"!" + data
            await sending

    tls_run(main)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_paused_in_each_callback(tls_run: Any, pki: Pki, protocol: Any) -> None:
    """pause_reading() inside data_received() holds from the next call on."""

    async def main(env: Env) -> None:
        data = random.Random(6).randbytes(MIB)
        rec = recorder(protocol)
        paused = [False]

        def received(rec: Any, chunk: bytes) -> None:
            assert not paused[0], "data while reading is paused"
            paused[0] = True
            rec.transport.pause_reading()
            env.loop.call_later(0.0005, resume)

        def resume() -> None:
            paused[0] = False
            rec.transport.resume_reading()

        rec.on["data_received"] = received
        async with endpoint(env, pki, "server", rec) as (_, peer):
            sending = asyncio.ensure_future(peer.write(data))
            assert await rec.until_received(len(data)) == data
            await sending
            rec.on.clear()
            await asyncio.sleep(0.005)

    tls_run(main)


@pytest.mark.parametrize("size", [1, 7, 1000, 16384, 100_000])
@pytest.mark.parametrize("side", SIDES)
def test_buffers_of_any_size(tls_run: Any, pki: Pki, side: str, size: int) -> None:
    """A BufferedProtocol's memory of one byte or of more than a record."""

    async def main(env: Env) -> None:
        rec = recorder(BufferedRecorder, size=size)
        async with endpoint(env, pki, side, rec) as (_, peer):
            data = random.Random(8).randbytes(min(300_000, 2000 * size))
            sending = asyncio.ensure_future(peer.write(data))
            assert await rec.until_received(len(data)) == data
            await sending
            assert all(hint >= -1 for hint in rec.hints)

    tls_run(main)


def test_memory_that_is_no_view(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """get_buffer() may return a bytearray; asyncio's TLS loses all but its first record."""
    if not tls_support.is_native(tls_name):
        pytest.skip("asyncio.sslproto slices the bytearray, and a slice is a copy")

    async def main(env: Env) -> None:
        for memory in (bytearray(50_000), array.array("B", bytes(50_000))):
            rec = BufferedRecorder()
            rec.memory = memory
            async with endpoint(env, pki, "server", rec) as (_, peer):
                data = random.Random(9).randbytes(200_000)
                await peer.write(data)
                assert await rec.until_received(len(data)) == data

    tls_run(main)


@pytest.mark.parametrize("answer", ["raises", "none", "read-only", "released", "text"])
def test_senseless_buffers(tls_compare: Any, pki: Pki, answer: str) -> None:
    """get_buffer() that raises or answers nonsense ends the connection as on asyncio."""

    async def scenario(env: Env) -> None:
        rec = recorder(BufferedRecorder)
        released = memoryview(bytearray(10))
        released.release()

        def get_buffer(rec: Any, hint: int) -> Any:
            if answer == "raises":
                raise ZeroDivisionError("get_buffer's own")
            return {
                "none": None,
                "read-only": memoryview(bytes(100)),
                "released": released,
                "text": "text",
            }[answer]

        async with endpoint(env, pki, "server", rec) as (_, peer):
            rec.on["get_buffer"] = get_buffer
            await peer.write(b"data")
            await rec.until("connection_lost")
            env.log(rec.names(), type(rec.exc))

    tls_compare(scenario)


def test_empty_buffer_does_not_spin(tls_run: Any, pki: Pki) -> None:
    """An empty buffer has no meaning: whatever comes of it, it comes to an end once."""

    async def main(env: Env) -> None:
        rec = recorder(BufferedRecorder)
        async with endpoint(env, pki, "server", rec, ssl_shutdown_timeout=0.2) as (_, peer):
            rec.on["get_buffer"] = lambda rec, hint: memoryview(bytearray())
            await peer.write(b"data")
            await peer.close_notify()
            peer.close()
            await rec.until("connection_lost")
            await settle()
            assert rec.count("connection_lost") == 1
        env.take_errors()

    tls_run(main)


@pytest.mark.parametrize("first", PROTOCOLS)
@pytest.mark.parametrize("second", PROTOCOLS)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_set_protocol_in_the_middle(
    tls_run: Any, pki: Pki, first: Any, second: Any, inside: bool
) -> None:
    """From either kind to either, between messages or from within the callback; no byte is lost."""

    async def main(env: Env) -> None:
        data = random.Random(10).randbytes(800_000)
        one, two = recorder(first), recorder(second)
        async with endpoint(env, pki, "server", one) as (transport, peer):
            if inside:
                one.on["data_received"] = lambda rec, chunk: transport.set_protocol(two)
            else:
                await peer.write(data[:1])
                await one.until_received(1)
                transport.set_protocol(two)
                assert transport.get_protocol() is two
            sending = asyncio.ensure_future(peer.write(data if inside else data[1:]))
            await eventually(lambda: len(one.received) + len(two.received) == len(data))
            await sending
            assert one.received + two.received == data
            assert one.received
            assert two.received
            await peer.close_notify()
            await two.until("connection_lost")
            assert one.count("connection_lost") == 0
            assert two.names()[-2:] == ["eof_received", "connection_lost"]

    tls_run(main)


def test_set_protocol_gets_the_flow_control(tls_run: Any, pki: Pki) -> None:
    """resume_writing goes to the protocol that is set by then."""

    async def main(env: Env) -> None:
        one, two = Recorder(), Recorder()
        async with endpoint(env, pki, "server", one) as (transport, peer):
            written = 0
            while not one.count("pause_writing"):
                transport.write(bytes(65536))
                written += 65536
            transport.set_protocol(two)
            await peer.read_exactly(written)
            await two.until("resume_writing")
            assert one.count("resume_writing") == 0

    tls_run(main)


# --------------------------------------------------------------------------- bulk


async def bulk(env: Env, pki: Pki, protocol: Any, kind: str, version: str, size: int) -> None:
    """SIZE bytes each way at the same time, checked by their digests."""
    block = random.Random(12).randbytes(MIB)
    wanted = hashlib.sha256()
    for _ in range(size // MIB):
        wanted.update(block)
    sides = []
    for _ in range(2):
        rec = recorder(protocol, **({"size": 200_000} if protocol is BufferedRecorder else {}))
        rec.digest, rec.total = hashlib.sha256(), 0
        rec.writable = asyncio.Event()
        rec.writable.set()

        def take(rec: Any, data: Any) -> None:
            rec.digest.update(data)
            rec.total += len(data)
            # Megabytes in a bytearray are not what is measured here.
            rec.received.clear()

        rec.on["data_received"] = take
        rec.on["pause_writing"] = lambda rec: rec.writable.clear()
        rec.on["resume_writing"] = lambda rec: rec.writable.set()
        sides.append(rec)

    async def send(transport: Any, rec: Any) -> None:
        for number in range(size // MIB):
            view = memoryview(block)
            step = (MIB, 65536, 10_000)[number % 3]
            for start in range(0, MIB, step):
                transport.write(view[start : start + step])
                await rec.writable.wait()

    async with linked(env, pki, *sides, kind=kind, version=version) as transports:
        await asyncio.gather(*map(send, transports, sides))
        await eventually(lambda: all(rec.total == size for rec in sides), timeout=60)
        for rec in sides:
            assert rec.digest.digest() == wanted.digest()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_bulk_both_ways(tls_run: Any, pki: Pki, protocol: Any, kind: str) -> None:
    async def main(env: Env) -> None:
        await bulk(env, pki, protocol, kind, "TLSv1.3", 4 * MIB)

    tls_run(main, timeout=40)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_fifty_megabytes_both_ways(tls_run: Any, pki: Pki, protocol: Any, version: str) -> None:
    """T7: no byte is lost, doubled or out of place in 50 MiB each way."""

    async def main(env: Env) -> None:
        await bulk(env, pki, protocol, "tcp", version, 50 * MIB)

    tls_run(main, timeout=60)


# --------------------------------------------------------------------------- errors in callbacks

FAILING = (
    "connection_made",
    "data_received",
    "eof_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("callback", FAILING)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exceptions_in_callbacks(
    tls_compare: Any, pki: Pki, side: str, callback: str, protocol: Any
) -> None:
    """What the exception handler is told, and what becomes of the connection."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        rec.on[callback] = lambda rec, *args: 1 / 0
        async with unconnected(env, pki, side, rec) as (task, peer):
            shaking = asyncio.ensure_future(peer.handshake())
            try:
                transport = await task
            except ZeroDivisionError as exc:
                env.log("raised", exc)
                exc.__traceback__ = None
                transport = None
            # A client that fails in connection_made may never have sent its last flight.
            with contextlib.suppress(ssl.SSLError):
                await shaking
            if transport is not None:
                if callback in ("pause_writing", "resume_writing"):
                    transport.set_write_buffer_limits(high=10)
                    written = 0
                    while transport.get_write_buffer_size() <= 10:
                        transport.write(bytes(65536))
                        written += 65536
                    await peer.read_exactly(written)
                    await eventually(lambda: transport.get_write_buffer_size() == 0)
                    await turns(2)
                    env.log(rec.names())
                await peer.write(b"data")
                if callback == "data_received":
                    await rec.until("connection_lost")
                else:
                    await rec.until_received(4)
                await peer.close_notify()
            await rec.until("connection_lost")
            await settle()
            env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("callback", ["data_received", "eof_received", "connection_lost"])
def test_exceptions_that_leave_the_loop(
    tls_name: str, pki: Pki, leaving: Any, callback: str
) -> None:
    """KeyboardInterrupt and SystemExit leave run_forever(); the loop can be run again."""
    loop = support.factory(tls_name)()
    env = Env(tls_name)
    env.loop = loop
    rec = Recorder()

    def leave(rec: Any, *args: Any) -> None:
        rec.on.clear()
        raise leaving("the callback's own")

    rec.on[callback] = leave
    keep: list[Any] = []

    async def main() -> None:
        manager = endpoint(env, pki, "server", rec)
        keep.append(manager)
        _, peer = await manager.__aenter__()
        await peer.send_raw(peer.seal(b"data") + peer.seal_close_notify())
        await asyncio.sleep(10)

    task = loop.create_task(main())
    try:
        with pytest.raises(leaving, match="the callback's own"):
            loop.run_until_complete(task)
        # What follows is asyncio's own business; it must come to an end.
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, leaving):
            loop.run_until_complete(task)
        loop.run_until_complete(keep[0].__aexit__(None, None, None))
        assert rec.count("connection_lost") <= 1
    finally:
        loop.close()


# --------------------------------------------------------------------------- re-entrancy

OPERATIONS = (
    "write",
    "write",
    "write",
    "big",
    "lines",
    "pause",
    "resume",
    "limits",
    "swap",
    "look",
    "close",
    "abort",
)


def fuzzer(chooser: random.Random, name: str) -> Any:
    """A recorder whose callbacks do any of OPERATIONS to their own transport."""
    rec = recorder(chooser.choice(PROTOCOLS), None, name)
    transports: list[Any] = []

    def act(rec: Any, *args: Any) -> None:
        transport = transports[0]
        for _ in range(chooser.randrange(3)):
            operation = chooser.choice(OPERATIONS)
            if operation == "write":
                transport.write(bytes(chooser.randrange(1, 3000)))
            elif operation == "big":
                transport.write(bytes(300_000))
            elif operation == "lines":
                transport.writelines([b"a", b"b" * 20_000, b"c"])
            elif operation == "pause":
                # Not for ever: a paused end would not notice that the other has gone.
                transport.pause_reading()
                asyncio.get_running_loop().call_later(0.001, transport.resume_reading)
            elif operation == "resume":
                transport.resume_reading()
            elif operation == "limits":
                transport.set_write_buffer_limits(high=chooser.choice((0, 1000, 1 << 20)))
            elif operation == "swap":
                # A protocol over another: the counting stays with the recorder.
                transport.set_protocol(rec)
            elif operation == "look":
                transport.get_write_buffer_size()
                transport.get_extra_info("cipher")
            elif chooser.random() < 0.2 and not transport.is_closing():
                getattr(transport, operation)()

    def made(rec: Any, transport: Any) -> None:
        transports.append(transport)
        act(rec)
        # asyncio holds a client's last flight back when reading is paused here: see below.
        transport.resume_reading()

    rec.on["connection_made"] = made
    for callback in ("data_received", "eof_received", "pause_writing", "resume_writing"):
        rec.on[callback] = act
    return rec


@pytest.mark.parametrize("version", VERSIONS)
def test_reading_paused_from_the_start(tls_run: Any, tls_name: str, pki: Pki, version: str) -> None:
    """pause_reading() in connection_made() must not hold the handshake's last flight back."""
    if not tls_support.is_native(tls_name) and version == "TLSv1.3":
        pytest.skip("asyncio.sslproto sends what is in its BIO only where it reads or writes")

    async def main(env: Env) -> None:
        rec = Recorder(on={"connection_made": lambda rec, transport: transport.pause_reading()})
        async with endpoint(env, pki, "client", rec, version=version) as (transport, peer):
            await peer.write(b"wait")
            await asyncio.sleep(0.02)
            assert rec.received == b""
            transport.resume_reading()
            assert await rec.until_received(4) == b"wait"

    tls_run(main, timeout=5)


@pytest.mark.parametrize("seed", range(40 if support.LONG else 8))
def test_any_operation_in_any_callback(tls_run: Any, pki: Pki, seed: int) -> None:
    """T6: writes, closes, aborts in every callback, with peers that reset: one loss, no crash."""

    async def main(env: Env) -> None:
        chooser = random.Random(seed)
        for _ in range(6):
            server_side, client_side = fuzzer(chooser, "server"), fuzzer(chooser, "client")
            kind, version = chooser.choice(KINDS), chooser.choice(VERSIONS)
            manager = linked(
                env,
                pki,
                server_side,
                client_side,
                kind=kind,
                version=version,
                ssl_shutdown_timeout=0.3,
            )
            try:
                async with manager as transports:
                    transports[0].write(b"go")
                    transports[1].write(b"go")
                    await asyncio.sleep(chooser.choice((0, 0.002, 0.02)))
            except OSError:
                # Closed or aborted in connection_made: the other's handshake fails.
                for rec in (server_side, client_side):
                    if rec.transport is not None:
                        rec.transport.abort()
                await settle()
            for rec in (server_side, client_side):
                assert rec.count("connection_made") == rec.count("connection_lost")
                assert rec.count("connection_made") <= 1
                if rec.calls:
                    assert rec.names()[-1] == "connection_lost"
        # "SSL connection is closed" is asyncio's warning about writes that were dropped.
        assert set(env.take_logs()) <= {"SSL connection is closed"}

    tls_run(main, timeout=40, check_warnings=False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("when", ["connection_made", "data_received", "pause_writing"])
def test_peer_resets_while_we_write(tls_run: Any, pki: Pki, side: str, when: str) -> None:
    """T6: writes from within callbacks, the peer gone: dropped, one connection_lost."""

    async def main(env: Env) -> None:
        rec = Recorder()
        depth = [0]

        def write(rec: Any, *args: Any) -> None:
            depth[0] += 1
            if depth[0] < 50:
                for _ in range(20):
                    rec.transport.write(bytes(10_000))
            depth[0] -= 1

        rec.on[when] = write
        async with endpoint(env, pki, side, rec) as (transport, peer):
            await peer.write(b"go")
            transport.write(b"x" * 1_000_000)
            await asyncio.sleep(0.01)
            support.reset(peer.sock)
            for _ in range(20):
                transport.write(b"x" * 50_000)
                await asyncio.sleep(0)
            await rec.until("connection_lost")
            transport.write(b"late")
            await settle()
            assert rec.count("connection_lost") == 1
            assert isinstance(rec.exc, (OSError, type(None)))
        assert set(env.take_logs()) <= {
            "SSL connection is closed",
            "socket.send() raised exception.",
        }

    tls_run(main)


# --------------------------------------------------------------------------- many at once


def test_handshake_storm(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """300 clients shake hands at once while a plain neighbour is still answered in time."""

    async def main(env: Env) -> None:
        count = 300
        plain = await env.loop.create_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*plain.sockets[0].getsockname())
        client_context = pki.client_context()
        answered: list[float] = []
        storming = True

        async def neighbour() -> None:
            while storming:
                start = time.monotonic()
                writer.write(b"x")
                await reader.readexactly(1)
                answered.append(time.monotonic() - start)

        async def client(address: Any) -> None:
            rec = Recorder()
            transport = await connect(env, address, client_context, rec)
            transport.write(b"ping")
            await rec.until_received(4)
            transport.close()
            await rec.until("connection_lost")

        async with serving(env, echo, pki.server_context(), backlog=512) as address:
            asking = asyncio.ensure_future(neighbour())
            began = time.monotonic()
            await asyncio.gather(*(client(address) for _ in range(count)))
            storm = time.monotonic() - began
            storming = False
            await asking
        # A turn serves what is ready, so the neighbour waits for a turn and not for the storm.
        # asyncio's own TLS has no budget: most of the storm may be one turn.
        assert len(answered) >= 5
        if not tls_name.endswith("asyncio"):
            assert max(answered) < max(storm / 2, 0.5)
        writer.close()
        await writer.wait_closed()
        plain.close()
        await plain.wait_closed()

    tls_run(main, timeout=40)


@pytest.mark.parametrize("kind", KINDS)
def test_tagged_connections(tls_run: Any, pki: Pki, kind: str) -> None:
    """C1: many connections at once, each with its own bytes; none gets another's."""

    async def main(env: Env) -> None:
        context = pki.client_context()

        async def client(address: Any, number: int) -> None:
            rec = recorder(PROTOCOLS[number % 2])
            transport = await connect(env, address, context, rec)
            tag = b"%05d;" % number * 3000
            transport.write(tag)
            assert await rec.until_received(len(tag)) == tag
            (transport.abort if number % 3 == 0 else transport.close)()
            await rec.until("connection_lost")

        async with serving(env, echo, pki.server_context(), kind=kind) as address:
            for _ in range(2):
                await asyncio.gather(*(client(address, number) for number in range(40)))

    tls_run(main, timeout=40)


@pytest.mark.parametrize("side", SIDES)
def test_idle_connection_does_not_spin(tls_run: Any, pki: Pki, side: str) -> None:
    async def main(env: Env) -> None:
        async with endpoint(env, pki, side, Recorder()):
            await support.assert_idle(0.1)

    tls_run(main)


def test_view_with_gaps(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """asyncio loses the connection over a buffer that is not contiguous; the engine sends it."""

    async def main(env: Env) -> None:
        view, content = support.noncontiguous_view()
        rec = Recorder()
        async with endpoint(env, pki, "server", rec) as (transport, peer):
            transport.write(view)
            if tls_support.is_native(tls_name):
                assert await peer.read_exactly(len(content)) == content
            else:
                await rec.until("connection_lost")
                assert isinstance(rec.exc, BufferError)
                assert {message for message, _ in env.take_errors()} == {
                    "Fatal error on SSL protocol"
                }

    tls_run(main)
