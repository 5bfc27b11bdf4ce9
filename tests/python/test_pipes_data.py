"""Bytes through pipes: megabytes, slow readers, terminals, streams, children."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from pipes import PAIRS, pipe_files, read_now, reader, writer
from typing import Any

import pytest
import support
from support import Env, Recorder, compare, turns

MEGABYTES = 64 if support.LONG else 8


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket", "terminal slave"])
def test_megabytes_arrive_as_sent(run: Any, kind: str, short_tmp: Any) -> None:
    async def main() -> None:
        size = (MEGABYTES << 20) if "terminal" not in kind else 1 << 19
        reading, writing = PAIRS[kind](short_tmp)
        source, read = await reader(reading)
        sink, write = await writer(writing)
        sent, received = hashlib.sha256(), hashlib.sha256()
        read.data_received = lambda data: (received.update(data), counts.append(len(data)))
        counts: list[int] = []
        left, step = size, 0
        while left:
            step += 1
            block = os.urandom(min(left, (1, 700, 65_536, 300_000)[step % 4]))
            left -= len(block)
            sent.update(block)
            sink.write((block, bytearray(block), memoryview(block))[step % 3])
            if write.count("pause_writing") > write.count("resume_writing"):
                await write.until("resume_writing", write.count("pause_writing"))
        while sum(counts) < size:
            await turns(1)
        sink.close()
        source.close()
        await turns(4)
        assert received.digest() == sent.digest()
        assert max(counts) <= 256 * 1024

    run(main)


def test_a_slow_reader_bounds_the_memory(run: Any) -> None:
    """A writer that heeds pause_writing() queues what one write brings, and no more."""

    async def main() -> None:
        reading, writing = pipe_files()
        sink, write = await writer(writing)
        block = bytes(100_000)
        written = received = largest = 0
        before = support.rss_kib()
        while written < (MEGABYTES << 20):
            if write.count("pause_writing") == write.count("resume_writing"):
                sink.write(block)
                written += len(block)
            largest = max(largest, sink.get_write_buffer_size())
            try:
                received += len(os.read(reading.fileno(), 20_000)) if largest else 0
            except BlockingIOError:
                pass
            await turns(1)
        assert largest <= 65536 + len(block)
        assert support.rss_kib() - before < 4096
        sink.abort()
        await turns(3)
        reading.close()

    run(main)


def test_a_reader_in_another_thread(run: Any) -> None:
    async def main() -> None:
        reading, writing = pipe_files()
        total = []

        def consume() -> None:
            count = 0
            while chunk := reading.read(50_000):
                count += len(chunk)
            total.append(count)

        thread = threading.Thread(target=consume)
        thread.start()
        sink, write = await writer(writing)
        for _ in range(100):
            sink.write(bytes(100_000))
            if write.count("pause_writing") > write.count("resume_writing"):
                await write.until("resume_writing", write.count("pause_writing"))
        sink.close()
        await write.until("connection_lost")
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        assert total == [10_000_000]
        reading.close()

    run(main)


def test_small_writes_stay_in_one_piece(run: Any) -> None:
    """Several writers of one pipe: what one write() gets in at once is not cut apart, and nothing
    is held back until the end of the callback."""

    async def main() -> None:
        reading, writing = pipe_files()
        other = os.fdopen(os.dup(writing.fileno()), "wb", 0)
        one, _ = await writer(writing)
        two, _ = await writer(other)
        for number in range(50):
            one.write(b"one %3d\n" % number)
            two.writelines([b"two ", b"%3d\n" % number])
        lines = read_now(reading).splitlines()
        assert lines == [b"%s %3d" % (who, n) for n in range(50) for who in (b"one", b"two")]
        one.close()
        two.close()
        await turns(3)
        reading.close()

    run(main)


def test_datagrams_and_records_keep_their_bounds() -> None:
    """One write is one datagram, one read another, of any size the kernel carries."""

    async def main(env: Env) -> None:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            near, far = socket.socketpair(socket.AF_UNIX, kind)
            sizes: list[int] = []

            def note(_: Recorder, data: bytes, sizes: list[int] = sizes) -> None:
                sizes.append(len(data))

            source, rec = await reader(near, Recorder(on={"data_received": note}))
            sink, _ = await writer(far)
            for size in (5, 20_000, 100_000, 1, 90_000):
                sink.write(bytes(size))
                await rec.until_received(sum(sizes) + size)
            env.log(sizes)
            sink.abort()
            source.close()
            await turns(3)

    compare(main)


def test_a_terminals_line_discipline() -> None:
    """Not raw: input comes by the line, and is echoed."""
    import pty

    async def main(env: Env) -> None:
        master, slave = pty.openpty()
        near, far = os.fdopen(master, "rb+", 0), os.fdopen(slave, "rb+", 0)
        source, rec = await reader(far, Recorder(env, "far"))
        near.write(b"half")
        await turns(5)
        env.log(rec.names())
        near.write(b" a line\nnext\n")
        await rec.until_received(17)
        env.log(read_now(near))
        source.close()
        await turns(3)
        near.close()

    compare(main)


# --------------------------------------------------------------------------- streams


async def stream_reader(pipe: Any, limit: int = 65536) -> tuple[asyncio.StreamReader, Any]:
    stream = asyncio.StreamReader(limit)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), pipe
    )
    return stream, transport


def test_a_stream_reader_over_a_pipe(run: Any) -> None:
    """The short way into the reader's buffer: every way of reading, and the pause at its limit."""

    async def main() -> None:
        reading, writing = pipe_files()
        stream, transport = await stream_reader(reading, limit=1000)
        sink, _ = await writer(writing)
        sink.write(b"line one\nline two\n0123456789rest")
        assert await stream.readline() == b"line one\n"
        assert await stream.readuntil(b"two\n") == b"line two\n"
        assert await stream.readexactly(10) == b"0123456789"
        assert await stream.read(100) == b"rest"
        block = os.urandom(1_000_000)
        sink.write(block)
        await turns(20)
        # Paused at twice the limit, give or take one read.
        assert not transport.is_reading()
        assert len(stream._buffer) <= 2000 + 256 * 1024  # type: ignore[attr-defined]
        assert await stream.readexactly(len(block)) == block
        sink.write(b"last")
        sink.close()
        assert await stream.read() == b"last"
        assert stream.at_eof()
        await turns(3)
        assert reading.closed

    run(main)


@pytest.mark.parametrize("change", ["instance", "class", "subclass", "debug", "dropped"])
def test_whatever_is_replaced_is_called(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replacing a method of the stream's classes takes the ordinary way."""
    seen: list[bytes] = []
    original = asyncio.StreamReader.feed_data

    def feed_data(self: Any, data: bytes) -> None:
        seen.append(bytes(data))
        original(self, data)

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        stream, transport = await stream_reader(reading)
        if change == "instance":
            stream.feed_data = feed_data.__get__(stream)  # type: ignore[method-assign]
        elif change == "class":
            monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed_data)
        elif change == "subclass":
            kind = type("Own", (asyncio.StreamReader,), {"feed_data": feed_data})
            stream = kind()
            transport.set_protocol(asyncio.StreamReaderProtocol(stream))
            stream.set_transport(transport)
        writing.write(b"abc")
        if change == "dropped":
            del stream
            await turns(4)
            env.log(transport.is_closing())
        else:
            env.log(await stream.readexactly(3))
        env.log(b"".join(seen))
        seen.clear()
        writing.close()
        await turns(4)
        monkeypatch.undo()

    compare(main, debug=change == "debug")


def test_a_stream_writer_over_a_pipe() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        loop = env.loop
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, writing
        )
        out = asyncio.StreamWriter(transport, protocol, None, loop)
        out.write(b"x")
        await out.drain()
        out.write(bytes(300_000))
        drained = loop.create_task(out.drain())
        await turns(2)
        env.log(drained.done(), out.is_closing(), out.can_write_eof())
        total = 0
        while not drained.done():
            total += len(read_now(reading))
            await turns(1)
        out.close()
        await turns(3)
        env.log(total + len(read_now(reading)), out.get_extra_info("pipe") is writing)
        reading.close()

    compare(main)


# --------------------------------------------------------------------------- children


def test_a_child_over_pipes(run: Any) -> None:
    """Subprocesses use the same transports: more than a pipe holds, both ways at once."""

    async def main() -> None:
        child = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        block = os.urandom(1_000_000)
        out, _ = await child.communicate(block)
        assert out == block and child.returncode == 0

    run(main, check_warnings=False)


def test_a_child_that_does_not_read(run: Any) -> None:
    async def main() -> None:
        child = await asyncio.create_subprocess_exec(
            "true", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate(bytes(1_000_000))
        assert out == b"" and child.returncode == 0

    run(main, check_warnings=False)
