"""Every method of the pipe transports: what it does, what it refuses, when it does nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import socket
import tempfile
from pathlib import Path
from pipes import PAIRS, pipe_files, read_now, reader, terminal_files, writer
from typing import Any

import pytest
import support
from parity import logged
from support import BufferedRecorder, Env, Recorder, compare, turns

# --------------------------------------------------------------------------- making one


@pytest.mark.parametrize("kind", PAIRS)
def test_bytes_and_the_end_through_every_kind(kind: str) -> None:
    async def main(env: Env) -> None:
        with tempfile.TemporaryDirectory() as tmp:
            reading, writing = PAIRS[kind](Path(tmp))
            source, read = await reader(reading, Recorder(env, "r"))
            sink, _ = await writer(writing, Recorder(env, "w"))
            env.log(os.get_blocking(reading.fileno()), os.get_blocking(writing.fileno()))
            env.log(
                source.get_extra_info("pipe") is reading, sink.get_extra_info("pipe") is writing
            )
            sink.write(b"first ")
            sink.write(b"second")
            await read.until_received(12)
            sink.close()
            await read.until("connection_lost")
            await turns(3)
            env.log(reading.fileno() if kind == "socket" else reading.closed)

    compare(main)


CONNECTS = pytest.mark.parametrize("connect", ["connect_read_pipe", "connect_write_pipe"])


@CONNECTS
@pytest.mark.parametrize("kind", ["regular file", "directory", "bad number"])
def test_what_is_refused(connect: str, kind: str) -> None:
    """The error is asyncio's, and the file is left open where asyncio leaves it."""

    class Bad:
        closings = 0

        def fileno(self) -> int:
            return 10_000_000

        def close(self) -> None:
            self.closings += 1

    async def main(env: Env) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            if kind == "directory":
                directory = os.open("/", os.O_RDONLY)
                os.dup2(directory, file.fileno())
                os.close(directory)
            pipe: Any = Bad() if kind == "bad number" else file
            rec = Recorder(env)
            try:
                await getattr(env.loop, connect)(lambda: rec, pipe)
            except (ValueError, OSError) as exc:
                env.log(type(exc).__name__, exc)
            gc.collect()
            # asyncio closes what the kernel does not know, and leaves open what is no pipe.
            env.log(pipe.closings if kind == "bad number" else pipe.closed)
            await turns(3)

    trace = compare(main, check_warnings=False)
    assert trace[-2:] == [(1 if kind == "bad number" else False,), ("result", None)]


@CONNECTS
def test_what_has_no_descriptor(run: Any, connect: str) -> None:
    async def main(env: Env) -> None:
        pipe, other = pipe_files()
        pipe.close()
        other.close()
        with pytest.raises(ValueError, match="closed file"):
            await getattr(env.loop, connect)(Recorder, pipe)
        with pytest.raises(AttributeError, match="fileno"):
            await getattr(env.loop, connect)(Recorder, 7)
        await turns(2)
        gc.collect()
        # asyncio's half-made objects fail once more in their __del__().
        assert env.unraisable == [] or env.name.startswith("asyncio")
        env.unraisable.clear()

    run(main)


def test_a_device_that_epoll_refuses() -> None:
    """/dev/null: the write end works; the read end is made, and watching it is reported."""

    async def main(env: Env) -> None:
        source, _ = await reader(open("/dev/null", "rb", 0), Recorder(env, "r"))
        env.log(repr(source), source.is_reading())
        source.pause_reading()
        try:
            source.resume_reading()
        except OSError as exc:
            env.log("resume", exc)
        source.close()
        sink, _ = await writer(open("/dev/null", "wb", 0), Recorder(env, "w"))
        sink.write(bytes(1 << 20))
        env.log(repr(sink), sink.get_write_buffer_size())
        sink.close()
        await turns(3)

    compare(main)


def test_a_full_device() -> None:
    async def main(env: Env) -> None:
        sink, rec = await writer(open("/dev/full", "wb", 0), Recorder(env))
        sink.write(b"x")
        env.log(sink.is_closing(), rec.names())
        await rec.until("connection_lost")

    compare(main)


def test_the_types(run: Any) -> None:
    async def main() -> None:
        reading, writing = pipe_files()
        source, _ = await reader(reading)
        sink, _ = await writer(writing)
        assert isinstance(source, asyncio.ReadTransport)
        assert not isinstance(source, asyncio.WriteTransport)
        assert isinstance(sink, asyncio.WriteTransport)
        for transport in (source, sink):
            transport.note = "attributes and weak references work"
            transport.close()
        await turns(3)

    run(main)


def test_the_types_cannot_be_made_by_hand() -> None:
    """C6: an object that was never opened refuses everything and crashes nothing."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("about cpploop's own types")
    from cpploop import _native

    for kind in (_native.ReadPipeTransport, _native.WritePipeTransport):
        with pytest.raises(TypeError):
            kind()
        with pytest.raises(TypeError):
            object.__new__(kind)


def test_wrong_arguments(loop_factory: support.LoopFactory, loop_name: str) -> None:
    """C6: the native hooks check what they are called with."""
    support.needs_cpploop(loop_name, "its half-made objects fail once more in their __del__()")
    loop: Any = loop_factory()
    try:
        for make in (loop._make_read_pipe_transport, loop._make_write_pipe_transport):
            for arguments in ((), (1,), (1, 2, 3, 4, 5)):
                with pytest.raises(TypeError):
                    make(*arguments)
            with pytest.raises(TypeError):
                make(1, 2, unknown=3)
            with pytest.raises(AttributeError):
                make(1, Recorder())
            reading, writing = pipe_files()
            with reading, writing, pytest.warns(ResourceWarning):
                # No connection_made(): the half-made transport takes its file with it.
                with pytest.raises(AttributeError):
                    make(reading, object())
                gc.collect()
            assert reading.closed
    finally:
        loop.close()


def test_extra_is_the_dictionary_given() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        loop: Any = env.loop
        extra = {"mine": 1}
        source = loop._make_read_pipe_transport(reading, Recorder(env, "r"), None, extra)
        sink = loop._make_write_pipe_transport(pipe=writing, protocol=Recorder(env, "w"))
        env.log(sorted(extra), source.get_extra_info("mine"), sink.get_extra_info("mine", "none"))
        env.log(sink.get_extra_info("nothing"), source.get_extra_info(default=2, name="nothing"))
        sink.close()
        await turns(4)
        env.log(source.get_extra_info("pipe") is reading)

    compare(main)


def test_the_order_of_the_beginning() -> None:
    """connection_made, then reading, then the waiter."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        writing.write(b"early")
        rec = Recorder(
            env, "r", {"connection_made": lambda *_: env.loop.call_soon(env.log, "soon")}
        )
        loop: Any = env.loop
        waiter = loop.create_future()
        waiter.add_done_callback(lambda _: env.log("waiter"))
        source = loop._make_read_pipe_transport(reading, rec, waiter)
        env.log("made", rec.names())
        await rec.until("data_received")
        writing.close()
        await rec.until("connection_lost")
        env.log(repr(source))

    compare(main)


@pytest.mark.parametrize("what", ["close", "pause_reading", "abort"])
def test_ended_inside_connection_made(what: str) -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        on = {"connection_made": lambda rec, transport: getattr(transport, what)()}
        if what == "abort":
            sink, _ = await writer(writing, Recorder(env, "w", on))
            env.log(repr(sink))
        else:
            writing.write(b"x")
            source, _ = await reader(reading, Recorder(env, "r", on))
            env.log(repr(source))
            await turns(3)
            source.close()
        await turns(3)
        reading.close()
        writing.close()

    compare(main)


def test_connection_made_that_raises() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        on = {"connection_made": lambda *_: 1 / 0}
        source, _ = await reader(reading, Recorder(env, "r", on))
        sink, _ = await writer(writing, Recorder(env, "w", on))
        sink.write(b"goes on")
        await turns(3)
        sink.close()
        await turns(4)
        env.log(repr(source), repr(sink))

    compare(main)


def test_a_cancelled_connect_closes_the_pipe() -> None:
    async def main(env: Env) -> None:
        for connect, index in ((env.loop.connect_read_pipe, 0), (env.loop.connect_write_pipe, 1)):
            files = pipe_files()
            rec = Recorder(env)
            task = env.loop.create_task(connect(lambda rec=rec: rec, files[index]))
            await turns(1)
            task.cancel()
            await turns(5)
            env.log(task.cancelled(), files[index].closed)
            files[1 - index].close()

    compare(main)


# --------------------------------------------------------------------------- reading


def test_pause_resume_is_reading() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, Recorder(env))
        env.log(source.is_reading(), repr(source))
        source.pause_reading()
        source.pause_reading()
        env.log(source.is_reading(), repr(source))
        writing.write(b"waits")
        await turns(4)
        env.log(rec.names())
        source.resume_reading()
        source.resume_reading()
        env.log(source.is_reading(), repr(source))
        await rec.until_received(5)
        source.close()
        env.log(source.is_reading(), source.is_closing(), repr(source))
        source.pause_reading()
        source.resume_reading()
        env.log(source.is_reading())
        await turns(2)
        env.log(source.is_reading(), source.is_closing(), repr(source))
        source.pause_reading()
        source.resume_reading()
        source.close()
        env.log(source.get_protocol())
        writing.close()

    compare(main)


def test_eof_received_cannot_keep_a_pipe_open() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, Recorder(env, on={"eof_received": lambda _: True}))
        writing.close()
        await rec.until("eof_received")
        env.log(source.is_closing())
        await rec.until("connection_lost")
        await turns(2)
        env.log(reading.closed, repr(source))

    compare(main)


def test_one_read_brings_256_kib() -> None:
    """asyncio's max_size, also when the reads before were small and the pipe is large."""
    import fcntl

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        fcntl.fcntl(writing.fileno(), 1031, 1 << 20)  # F_SETPIPE_SZ
        sizes: list[int] = []
        source, rec = await reader(
            reading, Recorder(on={"data_received": lambda _, data: sizes.append(len(data))})
        )
        expected = bytearray()
        for size in (1, 5, 300_000, 300_000, 70_000, 20_000, 1 << 20, 3, 262_144, 16_384, 16_384):
            block = os.urandom(size)
            expected += block
            source.pause_reading()
            env.log(writing.write(block))
            source.resume_reading()
            await rec.until_received(len(expected))
        env.log(sizes)
        assert rec.received == expected
        source.close()
        writing.close()
        await turns(2)

    compare(main)


def test_data_received_that_raises_keeps_reading() -> None:
    """As asyncio's: unlike a socket's, a pipe's transport survives its protocol's errors."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        rec = Recorder(env, on={"data_received": lambda *_: 1 / 0})
        source, _ = await reader(reading, rec)
        writing.write(b"one")
        await turns(3)
        writing.write(b"two")
        await turns(3)
        env.log(source.is_closing(), bytes(rec.received))
        rec.on["eof_received"] = lambda *_: 1 / 0
        rec.on["connection_lost"] = lambda *_: 1 / 0
        writing.close()
        await rec.until("connection_lost")
        await turns(2)
        env.log(reading.closed)

    compare(main)


def test_a_buffered_protocol_is_an_error_each_time() -> None:
    """Pipes know no get_buffer(): asyncio calls data_received(), which is not there."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, BufferedRecorder(env))
        writing.write(b"one")
        await turns(3)
        source.set_protocol(Recorder(env))
        writing.write(b"two")
        await turns(3)
        env.log(rec.hints, source.is_closing())
        writing.close()
        await turns(4)

    compare(main)


def test_set_protocol() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        first, second = Recorder(env, "first"), Recorder(env, "second")
        source, _ = await reader(reading, first)
        sink, _ = await writer(writing, Recorder(env, "w"))
        sink.write(b"a")
        await first.until("data_received")
        source.set_protocol(second)
        sink.set_protocol(second)
        env.log(source.get_protocol() is second, sink.get_protocol() is second)
        sink.write(b"b")
        await second.until("data_received")
        # Told is whoever is there when it happens, not when it was asked for.
        sink.close()
        sink.set_protocol(protocol=first)
        await second.until("connection_lost")
        await turns(2)

    compare(main)


def test_the_protocols_method_is_looked_up_each_time() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, Recorder(env))
        writing.write(b"a")
        await rec.until_received(1)
        rec.data_received = lambda data: env.log("patched", data)
        writing.write(b"b")
        await turns(3)
        source.close()
        writing.close()
        await turns(2)

    compare(main)


def test_a_reader_that_fails() -> None:
    """The number leads to a directory: read() fails with EISDIR, which is reported."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, Recorder(env))
        source.pause_reading()
        directory = os.open("/", os.O_RDONLY)
        os.dup2(directory, reading.fileno())
        os.close(directory)
        loop: Any = env.loop
        loop.call_soon(source._read_ready)
        await rec.until("connection_lost")
        env.log(type(rec.exc).__name__)
        writing.close()

    compare(main)


def test_the_other_end_of_a_terminal_goes() -> None:
    """EIO is how a terminal ends: connection_lost has it, and nobody is told otherwise."""

    async def main(env: Env) -> None:
        master, slave = terminal_files()
        source, rec = await reader(master, Recorder(env))
        slave.write(b"x")
        await rec.until_received(1)
        slave.close()
        await rec.until("connection_lost")
        env.log(type(rec.exc).__name__, source.is_closing())

    compare(main)


# --------------------------------------------------------------------------- writing


def test_write_takes_what_asyncio_takes() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        sink, _ = await writer(writing, Recorder(env))
        for data in (b"bytes ", bytearray(b"array "), memoryview(b"view "), b"", bytearray()):
            env.log(sink.write(data))
        for data in ("text", None, 5, [b"x"]):
            try:
                sink.write(data)
            except AssertionError as exc:
                env.log("refused", exc)
        sink.writelines([b"a", bytearray(b"b"), memoryview(b"c")])
        sink.writelines([])
        try:
            sink.writelines([b"never", "text"])
        except TypeError as exc:
            env.log(exc)
        env.log(read_now(reading), sink.can_write_eof(), sink.get_write_buffer_size())
        sink.close()
        await turns(2)
        reading.close()

    compare(main)


def test_a_view_of_items_counts_in_bytes(run: Any, loop_name: str) -> None:
    """C10: asyncio takes the count of bytes written for one of items."""
    support.needs_cpploop(loop_name, "it compares bytes written with the view's length")

    async def main() -> None:
        reading, writing = pipe_files()
        sink, _ = await writer(writing)
        sink.write(memoryview(bytes(range(64))).cast("I"))
        view, expected = support.noncontiguous_view()
        sink.write(view)
        view, rows = support.multidimensional_view()
        sink.write(view)
        assert sink.get_write_buffer_size() == 0
        assert read_now(reading) == bytes(range(64)) + expected + rows
        sink.close()
        await turns(2)
        reading.close()

    run(main)


def test_a_buffer_may_be_changed_after_write(run: Any) -> None:
    """C10: what waits is a copy, and no export of the caller's memory outlives the call."""

    async def main() -> None:
        reading, writing = pipe_files()
        sink, _ = await writer(writing)
        block = bytearray(os.urandom(200_000))
        expected = bytes(block)
        sink.write(block)
        assert 0 < sink.get_write_buffer_size() < len(block)
        block[:] = bytes(len(block))
        block.append(0)
        more = bytearray(b"more")
        sink.write(memoryview(more))
        more.clear()
        received = bytearray()
        while len(received) < len(expected) + 4:
            received += read_now(reading)
            await turns(1)
        assert received == expected + b"more"
        sink.close()
        await turns(2)
        reading.close()

    run(main)


def test_watermarks() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        sink, rec = await writer(writing, Recorder(env))
        env.log(sink.get_write_buffer_limits())
        sink.set_write_buffer_limits(high=1000)
        env.log(sink.get_write_buffer_limits())
        sink.set_write_buffer_limits(low=10)
        env.log(sink.get_write_buffer_limits())
        try:
            sink.set_write_buffer_limits(high=1, low=2)
        except ValueError as exc:
            env.log(exc)
        sink.set_write_buffer_limits(high=1000)
        sink.write(bytes(65536))
        sink.write(bytes(1000))
        env.log(rec.names(), sink.get_write_buffer_size(), repr(sink))
        sink.write(b"x")
        env.log(rec.names())
        sink.write(bytes(500))
        env.log(rec.names())
        received = 0
        while received < 65536 + 1501:
            received += len(read_now(reading))
            await turns(1)
        await turns(2)
        env.log(rec.names(), repr(sink))
        # At once, when the new limit is below what waits already.
        sink.write(bytes(65536 + 100))
        env.log(rec.names())
        sink.set_write_buffer_limits(high=50)
        env.log(rec.names())
        sink.set_write_buffer_limits(0)
        sink.abort()
        await turns(2)
        reading.close()

    compare(main)


def test_pause_and_resume_that_raise() -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        on = {"pause_writing": lambda _: 1 / 0, "resume_writing": lambda _: 1 / 0}
        sink, rec = await writer(writing, Recorder(env, on=on))
        sink.write(bytes(300_000))
        while rec.count("resume_writing") == 0:
            read_now(reading)
            await turns(1)
        sink.write(b"still alive")
        env.log(read_now(reading), sink.is_closing())
        sink.close()
        await turns(2)
        reading.close()

    compare(main)


@pytest.mark.parametrize("what", ["write", "close", "abort", "write_eof"])
def test_reentered_from_resume_writing(what: str) -> None:
    """Whatever the protocol does when there is room again, exactly one connection_lost follows."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()

        def resumed(rec: Recorder) -> None:
            if what == "write" and rec.count("resume_writing") == 1:
                rec.transport.write(bytes(200_000))
            elif what != "write":
                getattr(rec.transport, what)()

        sink, rec = await writer(writing, Recorder(env, on={"resume_writing": resumed}))
        sink.write(bytes(300_000))
        total = 0
        for _ in range(60):
            total += len(read_now(reading))
            await turns(1)
        env.log(total)
        sink.close()
        await turns(3)
        env.log(rec.names(), writing.closed)
        reading.close()

    if what == "write":
        compare(main)
        return
    # asyncio schedules a second end, which fails on what the first has taken down.
    for name in support.selected_loops():
        env = Env(name)
        support.run(support.factory(name), lambda env: tolerating(env, main), env=env)
        assert [entry for entry in env.trace if entry[0] == "connection_lost"] == [
            ("connection_lost", None)
        ]


async def tolerating(env: Env, main: Any) -> None:
    try:
        await main(env)
    finally:
        if env.name == "asyncio":
            env.take_errors()


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("how", ["close", "write_eof"])
def test_close_flushes(how: str, queued: bool) -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        sink, rec = await writer(writing, Recorder(env))
        size = 300_000 if queued else 10
        sink.write(bytes(size))
        getattr(sink, how)()
        getattr(sink, how)()
        env.log(sink.is_closing(), repr(sink), rec.names())
        sink.write(b"dropped")
        total = 0
        for _ in range(40):
            total += len(read_now(reading))
            await turns(1)
        env.log(total, writing.closed, sink.is_closing(), repr(sink), sink.get_protocol())
        sink.close()
        sink.write_eof()
        env.log(sink.get_write_buffer_size())
        reading.close()

    compare(main)


@pytest.mark.parametrize("queued", [False, True])
def test_abort_drops_what_waits(queued: bool) -> None:
    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        sink, rec = await writer(writing, Recorder(env))
        if queued:
            sink.write(bytes(300_000))
            sink.close()
        sink.abort()
        env.log(sink.is_closing(), sink.get_write_buffer_size(), repr(sink), rec.names())
        await rec.until("connection_lost")
        env.log(len(read_now(reading)), writing.closed)
        reading.close()

    compare(main)


def test_abort_of_what_ends_already(run: Any, loop_name: str) -> None:
    support.needs_cpploop(loop_name, "a second end fails on what the first has taken down")

    async def main() -> None:
        reading, writing = pipe_files()
        sink, rec = await writer(writing)
        sink.close()
        sink.abort()
        sink.abort()
        await turns(3)
        sink.abort()
        assert rec.names() == ["connection_made", "connection_lost"]
        reading.close()

    run(main)


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
def test_the_reader_goes(kind: str, queued: bool) -> None:
    """Noticed without a write; a BrokenPipeError when something was still to be written."""

    async def main(env: Env) -> None:
        with tempfile.TemporaryDirectory() as tmp:
            reading, writing = PAIRS[kind](Path(tmp))
            sink, rec = await writer(writing, Recorder(env))
            if queued:
                sink.write(bytes(1_000_000))
            reading.close()
            await rec.until("connection_lost")
            env.log(sink.is_closing(), type(rec.exc).__name__, repr(sink))

    compare(main)


def test_bytes_for_a_writing_socket_mean_its_end() -> None:
    """asyncio takes readable for gone."""

    async def main(env: Env) -> None:
        peer, sock = socket.socketpair()
        sink, rec = await writer(sock, Recorder(env))
        peer.send(b"hello")
        await rec.until("connection_lost")
        env.log(sink.is_closing())
        peer.close()

    compare(main)


def test_a_write_into_nothing() -> None:
    """EPIPE from the write itself, then C8: silence, and a warning after the fifth."""

    async def main(env: Env) -> None:
        master, slave = terminal_files()
        slave.close()
        sink, _ = await writer(master, Recorder(env))
        reading, writing = pipe_files()
        broken, lost = await writer(writing, Recorder(env))
        reading.close()
        broken.write(b"x")
        env.log(broken.is_closing(), lost.names())
        for _ in range(8):
            broken.write(b"x")
            broken.write(b"")
        await lost.until("connection_lost")
        broken.write(b"x")
        sink.close()
        await turns(2)
        for number in range(8):
            sink.write(b"x")
            env.log(number)

    trace = compare(main)
    text = "pipe closed by peer or os.write(pipe, data) raised exception."
    assert trace.count(("log", "WARNING", text)) >= 5


# --------------------------------------------------------------------------- debugging, contexts


def test_what_debug_mode_logs() -> None:
    def attempt(name: str) -> list[Any]:
        async def main(env: Env) -> None:
            reading, writing = pipe_files()
            source, read = await reader(reading)
            sink, _ = await writer(writing)
            source.pause_reading()
            source.resume_reading()
            sink.close()
            await read.until("connection_lost")
            master, slave = terminal_files()
            _, read = await reader(master)
            slave.close()
            await read.until("connection_lost")
            sink, lost = await writer(open("/dev/full", "wb", 0))
            sink.write(b"x")
            await lost.until("connection_lost")
            reading, writing = pipe_files()
            sink, lost = await writer(writing)
            reading.close()
            await lost.until("connection_lost")

        with logged(logging.DEBUG) as records:
            support.run(support.factory(name), main, debug=True)
        return [
            (level, re.sub(r"pipe \d+", "pipe …", support.normalise(message)))
            for level, message in records
            if "pipe transport" in support.normalise(message)
        ]

    names = support.selected_loops()
    traces = [attempt(name) for name in (names * 2)[:2]]
    assert traces[0] == traces[1]
    assert any("pauses reading" in text for _, text in traces[0])
    assert any("was closed by peer" in text for _, text in traces[0])
    assert any("Fatal write error on pipe transport" in text for _, text in traces[0])


def test_contexts() -> None:
    """Reading runs in the context of its start or resume, resume_writing in that of the write."""
    import contextvars

    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    async def main(env: Env) -> None:
        def note(name: str) -> Any:
            return lambda *_: env.log(name, var.get())

        names = ("connection_made", "data_received", "eof_received", "connection_lost")
        on = {name: note(name) for name in (*names, "pause_writing", "resume_writing")}
        reading, writing = pipe_files()
        var.set("made")
        source, read = await reader(reading, Recorder(on=on))
        sink, write = await writer(writing, Recorder(on=on))
        writing.write(b"1")
        await read.until_received(1)
        source.pause_reading()
        var.set("resumed")
        source.resume_reading()
        writing.write(b"2")
        await read.until_received(2)
        source.pause_reading()
        var.set("written")
        sink.write(bytes(200_000))
        var.set("later")
        sink.write(bytes(200_000))
        source.resume_reading()
        await write.until("resume_writing")
        var.set("closed")
        sink.close()
        await read.until("connection_lost")

    trace = compare(main)
    merged = list(dict.fromkeys(trace))
    assert ("data_received", "resumed") in merged and ("resume_writing", "written") in merged


def test_call_soon_of_a_subclass_is_asked(loop_factory: support.LoopFactory) -> None:
    asked: list[str] = []
    probe = loop_factory()
    probe.close()

    class Own(type(probe)):  # type: ignore[misc, valid-type]
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            asked.append(getattr(callback, "__name__", "?"))
            return super().call_soon(callback, *args, context=context)

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        _, rec = await reader(reading)
        sink, _ = await writer(writing)
        sink.close()
        await rec.until("connection_lost")

    support.run(Own, main, check_warnings=False)
    assert asked.count("connection_made") == 2
    assert asked.count("eof_received") == 1
    assert asked.count("_call_connection_lost") == 2
