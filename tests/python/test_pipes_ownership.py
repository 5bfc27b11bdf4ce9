"""Pipe transports and descriptors: closed once, by their file, whoever has the number then (C2)."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import random
import socket
import textwrap
import threading
import warnings
import weakref
from pipes import pipe_files, read_now, reader, terminal_files, writer
from typing import Any

import pytest
import support
from forking import script
from support import Env, Recorder, compare, turns
from thief import fd_thief


class CountingFile:
    """A file that counts how often its descriptor is closed."""

    def __init__(self, fd: int) -> None:
        self.file = os.fdopen(fd, "rb+", 0)
        self.closings = 0

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.closings += 1
        self.file.close()


def give_number(number: int) -> int:
    """Make NUMBER the writing end of a new pipe; returns the reading end."""
    reading, writing = os.pipe()
    if reading == number:
        reading = os.dup(reading)
    if writing != number:
        os.dup2(writing, number)
        os.close(writing)
    return reading


# --------------------------------------------------------------------------- one closer


@pytest.mark.parametrize("end", ["close", "peer", "abort", "error", "dropped"])
def test_the_file_is_closed_once(run: Any, end: str) -> None:
    """C2, uv#763: the Python file is the only closer, and is asked once."""

    async def main(env: Env) -> None:
        near, far = socket.socketpair()
        reading, writing = CountingFile(near.detach()), CountingFile(far.detach())
        source, read = await reader(reading)
        sink, write = await writer(writing)
        match end:
            case "close" | "dropped":
                source.close()
                sink.close()
            case "peer":
                sink.close()
            case "abort":
                sink.write(bytes(1 << 20))
                sink.abort()
                source.close()
            case "error":
                read.on["connection_lost"] = lambda *_: 1 / 0
                source.close()
        if end != "dropped":
            await read.until("connection_lost")
            await write.until("connection_lost")
        await turns(3)
        del source, sink
        read.transport = write.transport = None
        gc.collect()
        assert (reading.closings, writing.closings) == (1, 1)
        env.take_errors()

    run(main)


def test_every_way_of_dying_with_a_thief(run: Any, loop_name: str, seed: int) -> None:
    """C2: a second thread takes each number at once and finds its own file there, always."""
    support.needs_cpploop(loop_name, "it reads and writes whatever has a closed file's number")

    async def main(env: Env) -> None:
        rng = random.Random(seed)
        with fd_thief():
            for number in range(200 if not support.LONG else 5000):
                files = pipe_files() if number % 2 else socket.socketpair()
                if rng.random() < 0.2:
                    files[0].close()
                    files = files[1], os.fdopen(os.open("/dev/null", os.O_RDWR), "wb", 0)
                    _, rec = await writer(files[0])
                else:
                    source, rec = await reader(files[0])
                    sink, _ = await writer(files[1])
                    match rng.randrange(6):
                        case 0:
                            sink.abort()
                        case 1:
                            source.close()
                        case 2:
                            sink.write(bytes(1 << 20))
                            source.close()
                        case 3:
                            source.pause_reading()
                            sink.write(b"x")
                            sink.close()
                            source.close()
                        case 4:
                            # Behind the transport's back, and the thief has the number.
                            files[0].close()
                            source.close()
                            sink.close()
                        case 5:
                            files[1].close()
                            sink.write(b"nowhere")
                            source.close()
                await rec.until("connection_lost")
                rec.transport = None
                if number % 25 == 0:
                    gc.collect()
                files[1].close()
            await turns(5)

    run(main, timeout=50, check_warnings=False)


def test_a_file_closed_behind_our_back_is_not_read(run: Any, loop_name: str) -> None:
    """The number belongs to another file by then: its bytes are nobody's but its owner's."""
    support.needs_cpploop(loop_name, "it reads and writes whatever has the number")

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        # A duplicate keeps the kernel's registration of the first file alive.
        duplicate = os.dup(reading.fileno())
        _, rec = await reader(reading)
        number = reading.fileno()
        reading.close()
        foreign, other = os.pipe()
        if foreign != number:
            os.dup2(foreign, number)
            os.close(foreign)
        os.write(other, b"secret")
        writing.write(b"stale")
        await rec.until("connection_lost")
        assert rec.received == b"" and isinstance(rec.exc, OSError)
        assert env.take_errors()[0][0] == "Fatal read error on pipe transport"
        assert os.read(number, 100) == b"secret"
        for fd in (number, other, duplicate):
            os.close(fd)
        writing.close()

    run(main)


def test_a_file_closed_behind_our_back_is_not_written(run: Any, loop_name: str) -> None:
    support.needs_cpploop(loop_name, "it reads and writes whatever has the number")

    async def main() -> None:
        reading, writing = pipe_files()
        sink, rec = await writer(writing)
        waiting, pending = pipe_files()
        late, lost = await writer(pending)
        late.write(bytes(1 << 20))
        files = [(writing, sink), (pending, late)]
        taken = []
        for file, _ in files:
            number = file.fileno()
            file.close()
            taken.append((give_number(number), number))
        sink.write(b"for the first file")
        await rec.until("connection_lost")
        read_now(waiting)
        await turns(2)
        late.abort()
        await lost.until("connection_lost")
        assert [read_now(mine) for mine, _ in taken] == [b"", b""]
        for pair in taken:
            for fd in pair:
                os.close(fd)
        reading.close()
        waiting.close()

    run(main)


def test_a_reused_number_keeps_its_registration(run: Any, loop_name: str) -> None:
    """The end of a transport whose file is gone does not deregister who has the number now."""
    support.needs_cpploop(loop_name, "it removes whoever is registered under the number")

    async def main() -> None:
        reading, writing = pipe_files()
        source, _ = await reader(reading)
        number = reading.fileno()
        reading.close()
        near, far = support.unix_pair()
        sock = near
        if near.fileno() != number:
            os.dup2(near.fileno(), number)
            sock = socket.socket(fileno=number)
            near.close()
        sock.setblocking(False)
        connection, rec = await support.attach(sock, Recorder())
        source.close()
        await turns(3)
        far.send(b"still heard")
        await rec.until_received(11)
        connection.close()
        await turns(3)
        far.close()
        writing.close()

    run(main)


# --------------------------------------------------------------------------- shared numbers


def test_the_same_file_twice() -> None:
    """uv#262: each transport closes the file it was given; the second close finds it closed."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        first, one = await writer(writing, Recorder(env, "1"))
        second, two = await writer(writing, Recorder(env, "2"))
        first.write(b"a")
        second.write(b"b")
        env.log(read_now(reading), first is second)
        env.log(second.get_extra_info("pipe") is writing)
        first.close()
        await one.until("connection_lost")
        env.log(writing.closed)
        second.close()
        await two.until("connection_lost")
        reading.close()

    compare(main)


def test_both_directions_of_one_terminal() -> None:
    """One descriptor, one reader and one writer, as a terminal's user has them."""

    async def main(env: Env) -> None:
        master, slave = terminal_files()
        source, read = await reader(master, Recorder(env, "r"))
        sink, write = await writer(master, Recorder(env, "w"))
        far, echo = await reader(slave)
        sink.write(b"ping")
        await echo.until_received(4)
        slave.write(b"pong")
        await read.until_received(4)
        # More than a terminal holds: the writer waits beside the reader.
        sink.write(bytes(100_000))
        env.log(sink.get_write_buffer_size() > 0)
        await echo.until_received(100_004)
        slave.write(b"again")
        await read.until_received(9)
        env.log(repr(source), repr(sink))
        sink.close()
        await write.until("connection_lost")
        env.log(master.closed)
        source.close()
        far.close()
        await turns(3)

    compare(main)


def test_both_directions_on_duplicates() -> None:
    async def main(env: Env) -> None:
        near, far = socket.socketpair()
        copy = near.dup()
        source, read = await reader(near, Recorder(env, "r"))
        sink, _ = await writer(copy, Recorder(env, "w"))
        source.pause_reading()
        sink.write(b"out")
        env.log(read_now(far))
        source.resume_reading()
        sink.close()
        await turns(3)
        far.send(b"in")
        await read.until_received(2)
        source.close()
        await turns(3)
        far.close()

    compare(main)


def test_add_reader_beside_a_transport() -> None:
    """It takes the transport's place, and the transport takes it back, as on asyncio."""

    async def main(env: Env) -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading, Recorder(env))
        fd = reading.fileno()
        env.loop.add_reader(fd, lambda: env.log("mine", os.read(fd, 10)))
        writing.write(b"a")
        await turns(3)
        source.pause_reading()
        source.resume_reading()
        writing.write(b"b")
        await rec.until_received(1)
        env.log(env.loop.remove_reader(fd))
        source.close()
        await turns(3)
        writing.close()

    compare(main)


# --------------------------------------------------------------------------- being dropped


def test_an_open_transport_is_held_by_its_loop(run: Any, loop_name: str) -> None:
    support.needs_cpploop(loop_name, "it forgets what it does not watch")

    async def main() -> None:
        reading, writing = pipe_files()
        source, rec = await reader(reading)
        source.pause_reading()
        alive = weakref.ref(source)
        del source
        rec.transport = None
        gc.collect()
        assert alive() is not None
        writing.write(b"x")
        alive().resume_reading()  # type: ignore[union-attr]
        await rec.until_received(1)
        writing.close()
        await rec.until("connection_lost")
        rec.transport = None
        await turns(3)
        gc.collect()
        assert alive() is None

    run(main)


@pytest.mark.parametrize("queued", [False, True])
def test_left_open_when_the_loop_closes(loop_factory: Any, queued: bool) -> None:
    """The hold ends with the loop: a warning, and the file is closed once."""
    loop = loop_factory()
    near, far = socket.socketpair()
    reading, writing = CountingFile(near.detach()), CountingFile(far.detach())

    async def main() -> None:
        await reader(reading)
        sink, _ = await writer(writing)
        if queued:
            sink.write(bytes(1 << 20))

    with warnings.catch_warnings(record=True) as caught, fd_thief():
        warnings.simplefilter("always")
        loop.run_until_complete(main())
        loop.close()
        gc.collect()
        assert (reading.closings, writing.closings) == (1, 1)
    texts = sorted(
        str(item.message) for item in caught if "unclosed transport" in str(item.message)
    )
    assert len(texts) == 2
    assert all(item.category is ResourceWarning for item in caught)
    texts.clear()
    caught.clear()


def test_methods_after_the_loop_closed() -> None:
    def attempt(name: str) -> list[Any]:
        loop = support.factory(name)()
        reading, writing = pipe_files()
        source, _ = loop.run_until_complete(reader(reading))
        sink, _ = loop.run_until_complete(writer(writing))
        loop.close()
        seen: list[Any] = [support.normalise(repr(source)), support.normalise(repr(sink))]
        for call in (
            source.pause_reading,
            source.resume_reading,
            functools.partial(sink.write, b"x"),
            functools.partial(sink.write, bytes(1 << 20)),
            sink.get_write_buffer_size,
            source.close,
            sink.close,
            source.is_closing,
            sink.is_closing,
        ):
            try:
                seen.append(call())
            except RuntimeError as exc:
                seen.append(str(exc))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del source, sink, call
            gc.collect()
        seen += [reading.closed, writing.closed]
        reading.close()
        writing.close()
        return seen

    names = support.selected_loops()
    traces = [attempt(name) for name in (names * 2)[:2]]
    assert traces[0] == traces[1]


def test_cycles_through_everything_are_collected(loop_factory: Any) -> None:
    """C7: loop, transports, protocols and files in one cycle."""

    class File(CountingFile):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for closed in (True, False):
            loop = loop_factory()
            near, far = socket.socketpair()
            files = File(near.detach()), File(far.detach())

            async def main(files: Any = files, loop: Any = loop) -> None:
                source, read = await reader(files[0])
                sink, write = await writer(files[1])
                sink.write(bytes(1 << 20))
                sink.me = sink
                source.all = [source, sink, read, write, files, loop]
                files[0].transports = (source, sink)

            loop.run_until_complete(main())
            alive = [weakref.ref(thing) for thing in (*files, loop)]
            if closed:
                loop.close()
            del loop, files, main
            gc.collect()
            gc.collect()
            assert [ref() for ref in alive] == [None] * 3


def test_many_pipes_leave_nothing(run: Any) -> None:
    async def round_trip() -> None:
        reading, writing = pipe_files()
        _, rec = await reader(reading)
        sink, _ = await writer(writing)
        sink.write(bytes(100_000))
        sink.close()
        await rec.until("connection_lost")

    async def main() -> None:
        for _ in range(20):
            await round_trip()
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(100):
            await round_trip()
        gc.collect()
        assert len(gc.get_objects()) < before + 50

    run(main)


# --------------------------------------------------------------------------- other threads


def test_wrong_thread(run: Any, loop_name: str) -> None:
    """On free-threaded builds another thread is refused always."""
    support.needs_cpploop(loop_name, "it checks threads in debug mode, and not here")
    if not support.FREE_THREADED:
        pytest.skip("with a GIL nobody is refused, as on asyncio")

    async def main() -> None:
        reading, writing = pipe_files()
        source, _ = await reader(reading)
        sink, _ = await writer(writing)
        failures: list[str] = []

        def elsewhere() -> None:
            for call in (source.pause_reading, source.close, lambda: sink.write(b"x"), sink.abort):
                try:
                    call()
                except RuntimeError as exc:
                    failures.append(str(exc))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(failures) == 4 and "Non-thread-safe" in failures[0]
        sink.close()
        await turns(4)

    run(main)


def test_loops_in_many_threads(loop_factory: Any) -> None:
    """Pipes between loops of several threads at once."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        async def main() -> None:
            for size in (10, 100_000, 1_000_000):
                reading, writing = pipe_files()
                _, rec = await reader(reading)
                sink, _ = await writer(writing)
                block = bytes([number]) * size
                sink.write(block)
                sink.close()
                await rec.until("connection_lost")
                assert rec.received == block

        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                for _ in range(5):
                    runner.run(main())
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --------------------------------------------------------------------------- forks and ends


def test_a_forked_child_leaves_the_parents_pipes_alone(loop_name: str) -> None:
    """The child's copies refuse to be used; dropping them closes the child's descriptors only."""
    support.needs_cpploop(loop_name, "a forked asyncio loop shares its parent's epoll set")
    source = """
        class P(asyncio.Protocol):
            received = b""
            def data_received(self, data):
                self.received += data

        async def main():
            loop = asyncio.get_running_loop()
            reading, writing = os.pipe()
            reading, writing = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
            source, p = await loop.connect_read_pipe(P, reading)
            sink, _ = await loop.connect_write_pipe(P, writing)
            sink.write(bytes(200_000))

            def child():
                print(attempt(lambda: sink.write(b"child")), attempt(source.close))
                loop.close()
                gc.collect()

            print(in_child(child)[0].count("inherited through fork"))
            sink.write(b"parent")
            sink.close()
            while not source.is_closing():
                await asyncio.sleep(0.001)
            print(len(p.received), p.received[-6:])

        loop = factory()
        loop.run_until_complete(main())
        loop.close()
        """
    assert script(source, loop_name) == "2\n200006 b'parent'\n"


ENDS = {
    "open at the end": """
        loop = factory()
        source, sink = loop.run_until_complete(main())
        """,
    "in a cycle": """
        loop = factory()
        loop.transports = loop.run_until_complete(main())
        """,
    "daemon thread that is busy": """
        import threading, time

        def work():
            loop = factory()
            source, sink = loop.run_until_complete(main())

            def busy():
                sink.write(bytes(100_000))
                loop.call_soon(busy)

            loop.call_soon(busy)
            loop.run_forever()

        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05)
        """,
}


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_the_interpreter(loop_name: str, name: str) -> None:
    source = """
import asyncio, os, warnings
warnings.simplefilter("ignore")

async def main():
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    source, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(reading, "rb", 0))
    sink, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(writing, "wb", 0))
    sink.write(bytes(1 << 20))
    return source, sink
"""
    for _ in range(3):
        result = support.run_script(
            source + textwrap.dedent(ENDS[name]) + "\nprint('end')\n", loop=loop_name, timeout=60
        )
        assert result.stdout == "end\n"
        assert result.returncode == 0, result.stderr


def test_keyboard_interrupt_leaves_from_data_received(loop_factory: Any) -> None:
    loop = loop_factory()
    reading, writing = pipe_files()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    async def main() -> Any:
        return await reader(reading, Recorder(on={"data_received": interrupted}))

    source, rec = loop.run_until_complete(main())
    writing.write(b"x")
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    rec.on.clear()
    writing.write(b"y")
    loop.run_until_complete(asyncio.wait_for(rec.until_received(2), 5))
    source.close()
    writing.close()
    loop.run_until_complete(asyncio.sleep(0))
    with contextlib.suppress(RuntimeError):
        loop.close()
