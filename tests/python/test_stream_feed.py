"""The short way of bytes into asyncio.StreamReader, and when it must not be taken.

Every test runs on asyncio and on cpploop: what a program sees is the same on both ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import gc
import socket
from typing import Any

import pytest
import support
from support import Env, stream_pair, turns


async def first_bytes(reader: asyncio.StreamReader, peer: Any) -> None:
    """Get something through, so that the transport has settled on its way."""
    for _ in range(2):
        peer.send(b"x")
        assert await reader.readexactly(1) == b"x"


def ways_to_attributes(reader: asyncio.StreamReader) -> list[str]:
    """What the interpreter has made of two look-ups by now, in code that nobody else has run."""
    namespace: dict[str, Any] = {}
    exec("def look(reader): return reader._buffer, reader._eof", namespace)
    look = namespace["look"]
    for _ in range(100):
        look(reader)
    return [step.opname for step in dis.get_instructions(look, adaptive=True)]


def test_attributes_of_a_reader_stay_fast(run: Any) -> None:
    """An object that was asked for its __dict__ is slower in every access from then on."""

    async def main() -> None:
        untouched = ways_to_attributes(asyncio.StreamReader())
        async with stream_pair() as (reader, _, peer):
            await first_bytes(reader, peer)
            assert ways_to_attributes(reader) == untouched

    run(main)


@pytest.mark.parametrize("settled", [False, True])
def test_feed_data_of_the_instance_is_heard(run: Any, settled: bool) -> None:
    """A program that replaces reader.feed_data before the first bytes gets every chunk."""

    async def main() -> None:
        async with stream_pair() as (reader, _, peer):
            if settled:
                await first_bytes(reader, peer)
                # Later than that only a new protocol is looked at again.
                return
            seen: list[bytes] = []
            original = reader.feed_data

            def feed_data(data: bytes) -> None:
                seen.append(bytes(data))
                original(data)

            reader.feed_data = feed_data
            peer.send(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert b"".join(seen) == b"hello"

    run(main)


def test_feed_data_of_the_class_is_heard(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch of the class is noticed at any time."""

    async def main() -> None:
        async with stream_pair() as (reader, _, peer):
            await first_bytes(reader, peer)
            seen: list[bytes] = []
            original = asyncio.StreamReader.feed_data

            def feed_data(self: Any, data: bytes) -> None:
                seen.append(bytes(data))
                original(self, data)

            monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed_data)
            peer.send(b"patched")
            assert await reader.readexactly(7) == b"patched"
            assert b"".join(seen) == b"patched"
            monkeypatch.undo()
            peer.send(b"plain")
            assert await reader.readexactly(5) == b"plain"
            assert b"".join(seen) == b"patched"

    run(main)


def test_subclasses_are_called(run: Any) -> None:
    async def main() -> None:
        seen: list[bytes] = []

        class Reader(asyncio.StreamReader):
            def feed_data(self, data: Any) -> None:
                seen.append(bytes(data))
                super().feed_data(data)

        sock, peer = support.PAIRS["tcp"]()
        loop = asyncio.get_running_loop()
        reader = Reader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        peer.send(b"to a subclass")
        assert await reader.readexactly(13) == b"to a subclass"
        assert b"".join(seen) == b"to a subclass"
        transport.abort()
        peer.close()
        await turns(3)

    run(main)


def test_a_reader_that_was_dropped(run: Any) -> None:
    """The protocol holds its reader weakly: what comes for a dead one goes nowhere."""

    async def main() -> None:
        sock, peer = support.PAIRS["tcp"]()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        await first_bytes(reader, peer)
        del reader
        gc.collect()
        for _ in range(3):
            peer.send(b"to nobody")
            await turns(3)
        assert not transport.is_closing()
        transport.abort()
        peer.close()
        await turns(3)

    run(main)


def test_an_exported_buffer_is_an_error_as_asyncio_says_it() -> None:
    """A memoryview of the reader's buffer: extend() cannot grow it."""

    async def scenario(env: Env) -> None:
        # The writer's wait_closed() tells the error once more.
        with contextlib.suppress(BufferError):
            await break_it(env)

    async def break_it(env: Env) -> None:
        async with stream_pair() as (reader, writer, peer):
            await first_bytes(reader, peer)
            view = memoryview(reader._buffer)
            contexts: list[Any] = []
            env.loop.set_exception_handler(lambda _, context: contexts.append(context))
            peer.send(b"y" * 1000)
            await turns(20)
            env.loop.set_exception_handler(None)
            view.release()
            env.log([type(context["exception"]).__name__ for context in contexts])
            env.log([context["message"] for context in contexts])
            env.log(writer.transport.is_closing())

    support.compare(scenario)


def test_data_after_the_end_is_an_error_as_asyncio_says_it() -> None:
    async def scenario(env: Env) -> None:
        with contextlib.suppress(AssertionError):
            await break_it(env)

    async def break_it(env: Env) -> None:
        async with stream_pair() as (reader, writer, peer):
            await first_bytes(reader, peer)
            contexts: list[Any] = []
            env.loop.set_exception_handler(lambda _, context: contexts.append(context))
            reader.feed_eof()
            peer.send(b"too late")
            await turns(20)
            env.loop.set_exception_handler(None)
            env.log([type(context["exception"]).__name__ for context in contexts])
            env.log(writer.transport.is_closing())

    support.compare(scenario)


def test_the_limit_pauses_the_transport(run: Any) -> None:
    async def main() -> None:
        async with stream_pair(limit=1000) as (reader, writer, peer):
            await first_bytes(reader, peer)
            peer.send(b"a" * 2000)
            while len(reader._buffer) < 2000:
                await asyncio.sleep(0)
            assert writer.transport.is_reading()
            peer.send(b"b")
            while len(reader._buffer) < 2001:
                await asyncio.sleep(0)
            assert not writer.transport.is_reading()
            assert await reader.readexactly(2001) == b"a" * 2000 + b"b"
            assert writer.transport.is_reading()

    run(main)


@pytest.mark.parametrize(("limit", "ours"), [(1, 64), (64 * 1024, 128), (1 << 20, 256)])
def test_a_read_brings_what_the_reader_may_have(
    run: Any, loop_name: str, limit: int, ours: int
) -> None:
    """At most: asyncio's own transport always takes up to 256 KiB, which is a lot to keep."""

    async def main() -> None:
        async with stream_pair("unix", limit=limit) as (reader, _, peer):
            await first_bytes(reader, peer)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sent = peer.send(bytes(1 << 20))
            assert sent > 64 * 1024
            while not reader._buffer:
                await asyncio.sleep(0)
            at_once = 256 * 1024 if loop_name == "asyncio" else ours * 1024
            assert len(reader._buffer) <= at_once
            assert len(await reader.readexactly(sent)) == sent

    run(main)


@pytest.mark.parametrize("limit", [1, 2**70])
def test_odd_limits(run: Any, limit: int) -> None:
    async def main() -> None:
        async with stream_pair(limit=limit) as (reader, _, peer):
            sent = bytes(range(256)) * 100
            got = bytearray()
            peer.send(sent)
            while len(got) < len(sent):
                got += await reader.read(777)
            assert got == sent

    run(main)


def test_a_cancelled_reader_wakes_nobody(run: Any) -> None:
    async def main() -> None:
        async with stream_pair() as (reader, _, peer):
            await first_bytes(reader, peer)
            waiting = asyncio.ensure_future(reader.read(10))
            await turns(2)
            waiting.cancel()
            peer.send(b"kept")
            await turns(10)
            assert waiting.cancelled()
            assert await reader.readexactly(4) == b"kept"

    run(main)


def test_the_protocol_is_exchanged_in_between(run: Any) -> None:
    """Bytes go to whom the transport belongs when they come."""

    async def main() -> None:
        async with stream_pair() as (reader, writer, peer):
            await first_bytes(reader, peer)
            recorder = support.Recorder()
            old = writer.transport.get_protocol()
            writer.transport.set_protocol(recorder)
            peer.send(b"to the recorder")
            await recorder.until("data_received")
            writer.transport.set_protocol(old)
            peer.send(b"to the reader")
            assert await reader.readexactly(13) == b"to the reader"

    run(main)


def test_debug_mode(run: Any) -> None:
    async def main() -> None:
        async with stream_pair() as (reader, _, peer):
            await first_bytes(reader, peer)
            peer.send(b"in debug mode")
            assert await reader.readexactly(13) == b"in debug mode"

    run(main, debug=True)
