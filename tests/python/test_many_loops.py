"""One loop per thread: many of them serve at once, and threads meddle with each other's loops.

On a free-threaded Python the threads really run at the same time, and what is not protected is
damaged; elsewhere the same holds with less chance to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop

SECONDS = 20.0 if support.LONG else 1.0


@contextlib.contextmanager
def threads(*functions: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    """Run the functions in threads of their own while the block runs; their errors are raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    try:
        yield running
    finally:
        for thread in running:
            thread.join(60 * support.TIME_SCALE)
            assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


class Serving:
    """A loop in a thread of its own, with an echo server on a port that others listen on, too."""

    def __init__(self, factory: support.LoopFactory, port: int) -> None:
        self.factory = factory
        self.port = port
        self.answered = 0
        self.loop: Any = None
        self.ready = threading.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self.factory) as runner:
            self.loop = runner.get_loop()
            runner.run(self.serve())

    async def serve(self) -> None:
        self.over = asyncio.Event()
        server = await asyncio.start_server(
            self.echo, "127.0.0.1", self.port, reuse_port=True, backlog=256
        )
        self.ready.set()
        async with server:
            await self.over.wait()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert asyncio.get_running_loop() is self.loop
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
                self.answered += 1
        writer.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
def test_loops_in_threads_share_a_port(loop_factory: support.LoopFactory) -> None:
    """Every loop answers some of the connections, and each of them gets its own bytes only."""
    count, each = 4, 60

    def clients(who: int) -> None:
        for number in range(each):
            with socket.create_connection(("127.0.0.1", port), 20 * support.TIME_SCALE) as sock:
                tag = b"%d-%d;" % (who, number) * 50
                sock.sendall(tag)
                received = b""
                while len(received) < len(tag):
                    chunk = sock.recv(4096)
                    assert chunk, "the server hung up"
                    received += chunk
                assert received == tag

    with socket.socket() as holder:
        # Bound and not listening: it reserves the port and takes no connection.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        serving = [Serving(loop_factory, port) for _ in range(count)]
        with threads(*(one.run for one in serving)):
            for one in serving:
                assert one.ready.wait(20 * support.TIME_SCALE)
            try:
                with threads(*(lambda who=who: clients(who) for who in range(count))):
                    pass
            finally:
                for one in serving:
                    one.stop()
    assert sum(one.answered for one in serving) >= count * each
    assert all(one.answered for one in serving)


def test_handles_are_scheduled_and_cancelled_by_all_threads(
    loop_factory: support.LoopFactory,
) -> None:
    """What nobody cancelled runs once, what somebody cancelled runs once at most."""
    each = 5000
    ran: list[int] = []
    cancelled: set[int] = set()

    def schedule(first: int, step: int) -> None:
        mine: list[tuple[int, asyncio.Handle]] = []
        for number in range(first, first + each):
            mine.append((number, loop.call_soon_threadsafe(ran.append, number)))
            if number % step == 0:
                victim, handle = mine[len(mine) // 2]
                cancelled.add(victim)
                handle.cancel()

    def work() -> None:
        with threads(*(lambda w=who: schedule(w * each, 3 + w) for who in range(4))):
            pass
        loop.call_soon_threadsafe(loop.stop)

    with open_loop(loop_factory) as loop, threads(work):
        loop.run_forever()
    assert len(ran) == len(set(ran))
    assert set(range(4 * each)) - cancelled <= set(ran)


def test_a_loop_is_stopped_and_fed_by_all_threads(loop_factory: support.LoopFactory) -> None:
    """run_forever() again and again, while others stop it, post to it and await its results."""
    until = time.monotonic() + SECONDS
    over = threading.Event()
    turns: list[int] = []
    posted = [0, 0]

    async def answer(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def stops() -> None:
        while not over.is_set():
            loop.call_soon_threadsafe(loop.stop)
            time.sleep(0.0005)

    def posts(who: int) -> None:
        while not over.is_set():
            loop.call_soon_threadsafe(turns.append, who)
            posted[who] += 1
            if posted[who] % 100 == 0:
                time.sleep(0.0005)  # A loop that only ever drains its inbox gets nowhere.

    def awaits() -> None:
        number = 0
        while not over.is_set():
            future = asyncio.run_coroutine_threadsafe(answer(number), loop)
            if number % 7 == 0:
                future.cancel()
            else:
                assert future.result(20 * support.TIME_SCALE) == number + 1
            number += 1

    def some_turns() -> None:
        loop.call_later(0.01, loop.stop)
        loop.run_forever()

    with open_loop(loop_factory) as loop:
        with threads(stops, lambda: posts(0), lambda: posts(1), awaits, awaits) as workers:
            runs = 0
            while time.monotonic() < until:
                loop.run_forever()
                runs += 1
            over.set()
            # Whoever waits for a result needs the loop until then.
            while any(thread.is_alive() for thread in workers):
                some_turns()
        some_turns()
    assert runs > 10
    assert [turns.count(who) for who in (0, 1)] == posted


# --------------------------------------------------------------------------- the wrong thread


def wrong_calls(loop: Any, transport: Any, sock: socket.socket) -> dict[str, Callable[[], Any]]:
    """What only the loop's own thread may do."""
    return {
        "call_soon": lambda: loop.call_soon(int).cancel(),
        "call_later": lambda: loop.call_later(100, int).cancel(),
        "call_at": lambda: loop.call_at(loop.time() + 100, int).cancel(),
        "add_reader": lambda: loop.add_reader(sock, int),
        "remove_reader": lambda: loop.remove_reader(sock),
        "run_forever": loop.run_forever,
        "write": lambda: transport.write(b"from another thread"),
        "writelines": lambda: transport.writelines([b"from", b"elsewhere"]),
        "pause_reading": transport.pause_reading,
        "resume_reading": transport.resume_reading,
        "set_write_buffer_limits": transport.set_write_buffer_limits,
        "set_protocol": lambda: transport.set_protocol(asyncio.Protocol()),
        "close": transport.close,
        "abort": transport.abort,
    }


# What asyncio checks in debug mode, on every Python.
CHECKED_IN_DEBUG = ("call_soon", "call_later", "call_at")


def test_the_wrong_thread_is_refused_and_does_no_harm(loop_name: str, run: Any) -> None:
    """Threads that call what is not theirs, all the time: a connection goes on, unharmed.

    On free-threaded Pythons every call is refused, elsewhere those that asyncio checks in debug
    mode; the others, which asyncio does not check and which would really do what they say, are
    left out there.
    """
    support.needs_cpploop(loop_name, "its transports do not look at the thread")
    over = threading.Event()
    refused: dict[str, int] = {}
    allowed: list[str] = []

    def meddle(calls: dict[str, Callable[[], Any]]) -> None:
        while not over.is_set():
            for name, call in calls.items():
                try:
                    call()
                except RuntimeError:
                    refused[name] = refused.get(name, 0) + 1
                else:
                    allowed.append(name)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = support.unix_pair()
        third, fourth = support.unix_pair()
        protocol = support.Recorder()
        transport, _ = await support.attach(first, protocol)
        calls = wrong_calls(loop, transport, third)
        if not support.FREE_THREADED:
            calls = {name: calls[name] for name in CHECKED_IN_DEBUG}
        with second, third, fourth, threads(*[lambda: meddle(calls)] * 3):
            try:
                until = time.monotonic() + SECONDS
                number = 0
                while time.monotonic() < until:
                    sent = b"%08d" % number
                    await loop.sock_sendall(second, sent)
                    await protocol.until_received(8 * (number + 1))
                    assert protocol.received[-8:] == sent
                    transport.write(sent)
                    assert await loop.sock_recv(second, 100) == sent
                    number += 1
            finally:
                over.set()
        assert number > 10
        assert allowed == []
        assert refused.keys() == calls.keys()
        assert protocol.names() == ["connection_made", "data_received"]
        transport.close()
        await support.turns(3)

    run(main, debug=True)


def test_loops_made_and_closed_by_many_threads(loop_factory: support.LoopFactory) -> None:
    """Types, free lists and caches of the module are shared by all loops of the process."""
    until = time.monotonic() + SECONDS
    made: list[int] = []

    async def work() -> int:
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        handles = [loop.call_soon(int) for _ in range(50)]
        handles += [loop.call_later(50, int) for _ in range(50)]
        for handle in handles[::2]:
            handle.cancel()
        first, second = support.unix_pair()
        reader, writer = await asyncio.open_connection(sock=first)
        with second:
            writer.write(b"out")
            assert await loop.sock_recv(second, 10) == b"out"
            await loop.sock_sendall(second, b"back")
            assert await reader.readexactly(4) == b"back"
            writer.close()
            await writer.wait_closed()
        loop.call_later(0.0005, called.set_result, 1)
        return int(await called)

    def lives() -> None:
        while time.monotonic() < until:
            with open_loop(loop_factory) as loop:
                made.append(loop.run_until_complete(work()))

    before = support.open_fds()
    with threads(*[lives] * 4):
        pass
    assert len(made) > 4
    assert support.new_fds(before) == {}
