"""asyncio.streams over our transports: readers, writers, limits, errors."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from typing import Any

import pytest
import support
from support import Env, stream_pair, turns


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_echo_server(run: Any, kind: str) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100_000):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        data = random.Random(8).randbytes(700_000)
        with support.short_directory() as directory:
            if kind == "tcp":
                server = await asyncio.start_server(serve, "127.0.0.1", 0)
                connecting = asyncio.open_connection(*server.sockets[0].getsockname())
            else:
                server = await asyncio.start_unix_server(serve, directory / "s")
                connecting = asyncio.open_unix_connection(directory / "s")
            reader, writer = await connecting
            for start in range(0, len(data), 70_000):
                writer.write(data[start : start + 70_000])
            writer.write_eof()
            assert await reader.read() == data
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()

    run(main)


def test_reads() -> None:
    """Every way of reading, with the pieces of input cut anywhere."""

    async def scenario(env: Env) -> None:
        async with stream_pair() as (reader, _writer, peer):
            peer.send(b"line one\nline ")
            env.log(await reader.readline())
            asyncio.get_running_loop().call_soon(peer.send, b"two\nexactly")
            env.log(await reader.readline())
            env.log(await reader.readexactly(7))
            env.log(await reader.read(0))
            peer.send(b"until;rest")
            env.log(await reader.readuntil(b";"))
            env.log(await reader.read(2))
            env.log(await reader.readexactly(2))
            peer.send(b"partial")
            peer.shutdown(socket.SHUT_WR)
            try:
                await reader.readexactly(100)
            except asyncio.IncompleteReadError as exc:
                env.log(exc.partial, exc.expected)
            env.log(reader.at_eof(), await reader.read(), await reader.readline())

    support.compare(scenario)


def test_iteration_and_eof() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair() as (reader, writer, peer):
            peer.send(b"one\ntwo\nthree")
            peer.shutdown(socket.SHUT_WR)
            async for line in reader:
                env.log(line)
            env.log(reader.at_eof(), writer.is_closing())
            # Half open: the writer still writes after the reader's end.
            writer.write(b"answer")
            await writer.drain()
            env.log(await support.recv_exactly(peer, 6))

    support.compare(scenario)


def test_limit() -> None:
    """Above twice the limit the transport is paused; lines over the limit raise."""

    async def scenario(env: Env) -> None:
        async with stream_pair("unix", limit=64) as (reader, writer, peer):
            peer.send(b"x" * 100)
            await asyncio.sleep(0.01)
            env.log("reading", writer.transport.is_reading())
            peer.send(b"x" * 100)
            await asyncio.sleep(0.01)
            env.log("reading", writer.transport.is_reading())
            try:
                await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as exc:
                env.log(exc, exc.consumed)
            try:
                await reader.readline()
            except ValueError as exc:
                env.log(exc)
            env.log("reading", writer.transport.is_reading())
            peer.send(b"\n")
            env.log(await reader.readline())

    support.compare(scenario)


def test_backpressure_to_the_peer(run: Any) -> None:
    """A reader that does not read stops the peer, and gets everything in the end."""

    async def main() -> None:
        async with stream_pair("unix", limit=1024) as (reader, _writer, peer):
            data = random.Random(9).randbytes(3_000_000)
            sending = asyncio.ensure_future(support.send_all(peer, data))
            await asyncio.sleep(0.05)
            assert not sending.done()
            assert len(reader._buffer) < 1_000_000  # type: ignore[attr-defined]
            assert await reader.readexactly(len(data)) == data
            await sending

    run(main)


def test_drain_waits_for_the_peer() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair("unix") as (_reader, writer, peer):
            writer.write(bytes(1 << 20))
            drains = [asyncio.ensure_future(writer.drain()) for _ in range(2)]
            await turns(3)
            env.log([task.done() for task in drains])
            await support.recv_exactly(peer, 1 << 20)
            await asyncio.gather(*drains)
            writer.writelines([b"a", b"b"])
            await writer.drain()
            env.log(await support.recv_exactly(peer, 2))

    support.compare(scenario)


def test_drain_after_the_peer_is_gone() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair("unix") as (reader, writer, peer):
            writer.write(bytes(1 << 20))
            drain = asyncio.ensure_future(writer.drain())
            await turns(2)
            peer.close()
            try:
                await drain
            except ConnectionError as exc:
                env.log("drain", type(exc))
            try:
                env.log("read", await reader.read())
            except ConnectionError as exc:
                env.log("read", type(exc))
            try:
                await writer.drain()
            except ConnectionError as exc:
                env.log("drain", type(exc))
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError as exc:
                env.log("wait_closed", type(exc))

    support.compare(scenario)


def test_reset_wakes_the_reader() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair() as (reader, writer, peer):
            reading = asyncio.ensure_future(reader.readline())
            await turns(2)
            support.reset(peer)
            try:
                await reading
            except ConnectionError as exc:
                env.log(type(exc), reader.exception() is exc)
            try:
                await writer.wait_closed()
            except ConnectionError as exc:
                env.log("wait_closed", type(exc))

    support.compare(scenario)


def test_close_and_wait_closed() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair("unix") as (reader, writer, peer):
            writer.write(bytes(1 << 20))
            writer.close()
            env.log(writer.is_closing())
            waiting = asyncio.ensure_future(writer.wait_closed())
            await turns(3)
            env.log(waiting.done())
            env.log(len(await support.recv_to_end(peer)))
            await waiting
            env.log(await reader.read())

    support.compare(scenario)


def test_handler_that_raises(run: Any) -> None:
    """The report goes to the exception handler, the connection is closed."""

    async def main(env: Env) -> None:
        async def serve(reader: Any, writer: Any) -> None:
            raise LookupError("on purpose")

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        if sys.version_info >= (3, 12):
            assert await reader.read() == b""
        else:
            await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()
        await turns(3)
        server.close()
        await server.wait_closed()
        ((message, exc),) = env.take_errors()
        assert exc == "LookupError(on purpose)"
        assert message in (
            "Unhandled exception in client_connected_cb",
            "Task exception was never retrieved",
        )

    run(main, check_warnings=False)


def test_two_readers_at_once() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair() as (reader, _writer, peer):
            first = asyncio.ensure_future(reader.read(10))
            await turns(1)
            with pytest.raises(RuntimeError, match="another coroutine is already waiting"):
                await reader.read(10)
            peer.send(b"data")
            env.log(await first)

    support.compare(scenario)


def test_cancelled_read_loses_nothing() -> None:
    async def scenario(env: Env) -> None:
        async with stream_pair() as (reader, _writer, peer):
            reading = asyncio.ensure_future(reader.readexactly(4))
            await turns(1)
            peer.send(b"da")
            await asyncio.sleep(0.01)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
            peer.send(b"ta")
            env.log(await reader.readexactly(4))

    support.compare(scenario)


def test_patched_reader_sees_its_data(run: Any) -> None:
    """A method that a subclass or a patch replaces is called, as asyncio calls it."""

    async def main(env: Env) -> None:
        fed: list[bytes] = []

        class Reader(asyncio.StreamReader):
            def feed_data(self, data: bytes) -> None:
                fed.append(data)
                super().feed_data(data)

        sock, peer = support.tcp_pair()
        reader = Reader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await env.loop.create_connection(lambda: protocol, sock=sock)
        peer.send(b"one")
        assert await reader.readexactly(3) == b"one"
        original = protocol.data_received
        protocol.data_received = lambda data: (  # type: ignore[method-assign, assignment]
            fed.append(b"protocol"),
            original(data),
        )
        transport.set_protocol(protocol)
        peer.send(b"two")
        assert await reader.readexactly(3) == b"two"
        assert fed == [b"one", b"protocol", b"two"]
        transport.abort()
        peer.close()
        await turns(3)

    run(main)


def test_reader_buffer_exported(run: Any) -> None:
    """A caller who holds a view of the reader's buffer: nothing is corrupted, no crash."""

    async def main() -> None:
        async with stream_pair() as (reader, _writer, peer):
            peer.send(b"one")
            await asyncio.sleep(0.01)
            view = memoryview(reader._buffer)
            assert bytes(view) == b"one"
            view.release()
            peer.send(b"two")
            assert await reader.readexactly(6) == b"onetwo"

    run(main)


def test_forgotten_writer() -> None:
    """A StreamWriter dropped without close: warned of where the running asyncio warns."""
    import gc

    async def scenario(env: Env) -> None:
        async def serve(reader: Any, writer: Any) -> None:
            env.log(await reader.read())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x")
        transport = writer.transport
        del reader, writer
        gc.collect()
        transport.close()
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()

    support.compare(scenario, check_warnings=False)


def test_context_of_the_client_callback(run: Any) -> None:
    async def main() -> None:
        tasks = []

        async def serve(reader: Any, writer: Any) -> None:
            tasks.append(asyncio.current_task())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert isinstance(tasks[0], asyncio.Task)
        server.close()
        await server.wait_closed()

    run(main)


def test_many_streams_at_once(run: Any) -> None:
    async def main() -> None:
        async def serve(reader: Any, writer: Any) -> None:
            while line := await reader.readline():
                writer.write(line)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection(*address)
            for round_ in range(10):
                line = b"%d:%d\n" % (number, round_)
                writer.write(line)
                assert await reader.readline() == line
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client(number) for number in range(30)))
        await turns(5)
        server.close()
        await server.wait_closed()

    run(main)
