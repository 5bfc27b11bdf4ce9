"""Peers that mean harm or are merely broken: each with a bound on memory, time or work.

What is measured belongs to this process: CPU time while nothing should happen, resident memory
while somebody does not read, how long a neighbour waits while somebody sends one byte at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from support import Env

# Thousands of connections take their time on a busy machine.
until = functools.partial(support.eventually, timeout=20.0)

RST = struct.pack("ii", 1, 0)
IDLE = 10_000 if support.LONG else 1_000


class Counting(asyncio.Protocol):
    """Counts what a server of the tests sees."""

    open_now = 0
    received = 0
    lost = 0

    def __init__(self) -> None:
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        type(self).open_now += 1

    def data_received(self, data: bytes) -> None:
        type(self).received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        type(self).open_now -= 1
        type(self).lost += 1


def counting() -> type[Counting]:
    """A class of its own, so that tests do not share counters."""
    return type("Counting", (Counting,), {})


async def serve(protocol: Any) -> tuple[asyncio.Server, Any]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
    return server, server.sockets[0].getsockname()


@contextlib.contextmanager
def at_most(cpu_s: float, memory_kib: int) -> Iterator[None]:
    """Fails when the block has cost this thread, or the process's memory, more than that."""
    cpu, memory = time.thread_time(), support.rss_kib()
    yield
    cpu, memory = time.thread_time() - cpu, support.rss_kib() - memory
    assert cpu < cpu_s * support.TIME_SCALE
    assert memory < memory_kib


async def end(server: asyncio.Server, protocol: type[Counting]) -> None:
    server.close()
    await until(lambda: protocol.open_now == 0)
    await server.wait_closed()


# Connects so many times, sends a byte on each, and then nothing until it is told to end.
IDLE_CLIENTS = """
import socket, sys
address, clients = (sys.argv[1], int(sys.argv[2])), []
for _ in range(int(sys.argv[3])):
    clients.append(socket.create_connection(address))
    clients[-1].send(b"G")
sys.stdin.read()
"""


@contextlib.contextmanager
def descriptors_for(count: int) -> Iterator[int]:
    """Lets this process and its children have so many more, or as many as the system allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 200
    if limit[1] != resource.RLIM_INFINITY:
        wanted = min(wanted, limit[1])
    # Never less than it was.
    if limit[0] != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, limit[0]), limit[1]))
    try:
        yield min(count, wanted - 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_idle_connections_cost_no_cpu(run: Any, figure: Callable[[str], None]) -> None:
    """Slow loris: many clients that send a byte and then nothing. A second costs next to none.

    Nor does their number cost much: eight kilobytes for each. The clients are in a process of their
    own, because no process may have the descriptors of both sides of ten thousand connections.
    """

    async def main(env: Env) -> None:
        protocol = counting()
        server, address = await serve(protocol)
        with descriptors_for(IDLE) as count:
            memory = support.rss_kib()
            program = [sys.executable, "-c", IDLE_CLIENTS, *map(str, address), str(count)]
            clients = subprocess.Popen(program, stdin=subprocess.PIPE)
            try:
                await support.eventually(
                    lambda: protocol.received == count, timeout=60 * support.TIME_SCALE
                )
                memory = support.rss_kib() - memory
                assert memory < 8 * count + 4 * 1024
                before = time.process_time()
                await asyncio.sleep(1)
                cpu_s = time.process_time() - before
                assert cpu_s < 0.2 * support.TIME_SCALE
                assert protocol.open_now == count
            finally:
                assert clients.stdin is not None
                clients.stdin.close()
                clients.wait()
            await end(server, protocol)
        figure(f"{count} connections, {memory} KiB, {cpu_s * 1000:.1f} ms of CPU in a second")

    run(main, timeout=150 if support.LONG else 60)


def test_one_byte_at_a_time(run: Any) -> None:
    """A client that sends single bytes gets no more than its share: a neighbour is answered."""

    async def main(env: Env) -> None:
        protocol = counting()
        server, address = await serve(protocol)
        stop = threading.Event()

        def drip() -> None:
            with socket.create_connection(address) as client:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while not stop.is_set():
                    client.send(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            await until(lambda: protocol.received > 1000)
            echo = await asyncio.start_server(_echo_once, "127.0.0.1", 0)
            async with echo:
                for _ in range(20):
                    started = time.monotonic()
                    reader, writer = await asyncio.open_connection(*echo.sockets[0].getsockname())
                    writer.write(b"hello")
                    assert await reader.read() == b"hello"
                    writer.close()
                    assert time.monotonic() - started < 1 * support.TIME_SCALE
        finally:
            stop.set()
            await asyncio.get_running_loop().run_in_executor(None, thread.join)
            await end(server, protocol)

    run(main, timeout=60)


async def _echo_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(100))
    writer.close()


def test_a_peer_that_never_reads_holds_little_memory(run: Any) -> None:
    """drain() stops the writer at the watermark, however much it wants to say."""

    async def main(env: Env) -> None:
        stuck = []

        async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            block = bytes(64 * 1024)
            try:
                while True:
                    writer.write(block)
                    stuck.append(writer.transport.get_write_buffer_size())
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(pour, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            before = support.rss_kib()
            clients = [socket.create_connection(address) for _ in range(50)]
            await asyncio.sleep(1)
            assert max(stuck) < 64 * 1024 + 2 * 64 * 1024
            # 50 x (watermark + one block), and the allocator's slack.
            assert support.rss_kib() - before < 50 * 192 + 16 * 1024
            for client in clients:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                client.close()
            await asyncio.sleep(0.1)

    run(main, timeout=60)


def test_a_paused_reader_is_not_filled(run: Any) -> None:
    """What a paused transport's peer sends stays in the kernel and stops there."""

    async def main(env: Env) -> None:
        transports = []

        class Paused(asyncio.Protocol):
            received = 0

            def connection_made(self, transport: Any) -> None:
                transport.pause_reading()
                transports.append(transport)

            def data_received(self, data: bytes) -> None:
                Paused.received += len(data)

        server, address = await serve(Paused)
        client = socket.create_connection(address)
        client.setblocking(False)
        await until(lambda: bool(transports))
        before, sent = support.rss_kib(), 0
        with contextlib.suppress(BlockingIOError):
            while sent < 256 << 20:
                sent += client.send(bytes(1 << 20))
        assert sent < 64 << 20
        await asyncio.sleep(0.2)
        assert Paused.received == 0
        assert support.rss_kib() - before < 8 * 1024
        transports[0].abort()
        client.close()
        server.close()
        await asyncio.sleep(0.05)

    run(main)


def test_a_storm_of_resets(run: Any) -> None:
    """Two thousand connections that are reset at once: every one ends, nothing is reported.

    Nor is anything kept for one that has ended.
    """

    async def main(env: Env) -> None:
        protocol = counting()
        server, address = await serve(protocol)
        rounds, each = 20, 100

        def storm() -> None:
            for _ in range(rounds):
                clients = [socket.create_connection(address) for _ in range(each)]
                for client in clients:
                    client.send(b"data")
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                    client.close()

        with at_most(cpu_s=4, memory_kib=16 * 1024):
            await asyncio.get_running_loop().run_in_executor(None, storm)
            # Some are gone before they could be accepted.
            await until(lambda: protocol.open_now == 0)
            await asyncio.sleep(0.1)
        assert 0 < protocol.lost <= rounds * each
        assert env.take_errors() == []
        await end(server, protocol)

    run(main, timeout=60)


def test_half_open_handshakes_do_not_stop_the_others(
    run: Any, loop_name: str, certs: support.Certificates
) -> None:
    """A flood of clients that connect to a TLS port and say nothing, or something else."""
    # asyncio has a quarter of a megabyte for each connection to read into.
    count, each_kib = 200, 1000 if loop_name == "asyncio" else 64

    async def main(env: Env) -> None:
        server = await asyncio.start_server(
            _echo_once,
            "127.0.0.1",
            0,
            ssl=certs.server_context(),
            ssl_handshake_timeout=2 * support.TIME_SCALE,
            backlog=1024,
        )
        address = server.sockets[0].getsockname()
        context = certs.client_context()
        with contextlib.closing(server):
            memory = support.rss_kib()
            silent = [socket.create_connection(address) for _ in range(count)]
            for client in silent[::2]:
                client.send(b"GET / HTTP/1.1\r\n\r\n")
            started = time.monotonic()
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            writer.write(b"still there")
            assert await reader.read(100) == b"still there"
            assert time.monotonic() - started < 2 * support.TIME_SCALE
            assert support.rss_kib() - memory < each_kib * count + 4 * 1024
            writer.close()
            for client in silent:
                client.close()
            await asyncio.sleep(0.3)
            env.take_errors()
            env.take_logs()

    run(main, timeout=60)


def client_hello(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def test_a_flood_of_handshakes(run: Any, loop_name: str, certs: support.Certificates) -> None:
    """Clients that begin a handshake and never go on: each costs a bounded piece of memory.

    Somebody else is served meanwhile, and the time-out ends them all.
    """
    # asyncio has a quarter of a megabyte for each connection to read into.
    count, each_kib = 300, 400 if loop_name == "asyncio" else 160

    async def main(env: Env) -> None:
        server = await asyncio.start_server(
            _echo_once,
            "127.0.0.1",
            0,
            ssl=certs.server_context(),
            ssl_handshake_timeout=2 * support.TIME_SCALE,
            backlog=1024,
        )
        address = server.sockets[0].getsockname()
        hello, context = client_hello(certs.client_context()), certs.client_context()
        memory, before = support.rss_kib(), support.open_fds()
        flood = []
        for _ in range(count):
            client = socket.create_connection(address)
            client.sendall(hello)
            client.setblocking(False)
            flood.append(client)
        started = time.monotonic()
        reader, writer = await asyncio.open_connection(
            *address, ssl=context, server_hostname="localhost"
        )
        writer.write(b"still there")
        assert await reader.read(100) == b"still there"
        assert time.monotonic() - started < 2 * support.TIME_SCALE
        writer.close()
        assert support.rss_kib() - memory < each_kib * count + 4 * 1024
        for client in flood:
            # The server's side of the handshake, and then the end or a reset.
            with contextlib.suppress(ConnectionResetError):
                await support.recv_to_end(client)
            client.close()
        await until(lambda: support.new_fds(before) == {})
        server.close()
        await asyncio.sleep(0.05)
        env.take_errors()
        env.take_logs()

    run(main, timeout=60)


def test_a_peer_that_reads_a_byte_at_a_time(run: Any) -> None:
    """All of it arrives, in order, and the loop does not work for every byte that is read."""
    size = 200_000

    async def main(env: Env) -> None:
        first, second = support.tcp_pair(sndbuf=8192, rcvbuf=8192)
        second.setblocking(True)
        data = bytes(range(250)) * (size // 250)

        def read_slowly() -> bytes:
            received = bytearray()
            while byte := second.recv(1):
                received += byte
            return bytes(received)

        with second:
            _, writer = await asyncio.open_connection(sock=first)
            reading = asyncio.get_running_loop().run_in_executor(None, read_slowly)
            before = time.thread_time()
            for at in range(0, size, 1000):
                writer.write(data[at : at + 1000])
                await writer.drain()
            writer.close()
            assert await reading == data
            assert time.thread_time() - before < 0.5 * support.TIME_SCALE

    run(main, timeout=60)


def test_huge_writelines_to_a_peer_that_does_not_read(run: Any, loop_name: str) -> None:
    """What is queued is held by reference: a quarter of a gigabyte of it costs next to nothing."""
    if sys.version_info < (3, 12) or not support.asyncio_writelines_has("if data"):
        support.needs_cpploop(loop_name, "this Python's joins the pieces, which copies them")

    async def main(env: Env) -> None:
        piece = bytes(1 << 20)
        first, second = support.unix_pair()
        transport, _ = await support.attach(first, asyncio.Protocol())
        with second:
            before = support.rss_kib()
            started = time.monotonic()
            transport.writelines([piece] * 256)
            assert transport.get_write_buffer_size() > 250 << 20
            assert support.rss_kib() - before < 8 * 1024
            assert time.monotonic() - started < 2 * support.TIME_SCALE
            transport.abort()
            await asyncio.sleep(0.01)

    run(main, timeout=60)


def test_writelines_of_very_many_pieces(run: Any) -> None:
    """More pieces than one system call takes (IOV_MAX), in one call and in order."""

    async def main(env: Env) -> None:
        pieces = [b"%06d" % number for number in range(60_000)]

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.writelines(pieces)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        async with server:
            with at_most(cpu_s=2, memory_kib=64 * 1024):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                assert await reader.read() == b"".join(pieces)
                writer.close()

    run(main, timeout=60)


def test_callbacks_that_call_the_transport_again_and_again(run: Any) -> None:
    """resume_writing that writes more than the kernel takes, and so is paused and resumed again."""

    async def main(env: Env) -> None:
        done = asyncio.get_running_loop().create_future()

        class Endless(asyncio.Protocol):
            calls = 0

            def connection_made(self, transport: Any) -> None:
                self.transport = transport
                transport.set_write_buffer_limits(high=0)
                transport.write(bytes(8 << 20))

            def resume_writing(self) -> None:
                Endless.calls += 1
                if Endless.calls == 50:
                    # Not from within: asyncio before 3.14 stumbles over that.
                    asyncio.get_running_loop().call_soon(self.transport.close)
                    return
                # More than the kernel takes at once, so that writing pauses again.
                self.transport.write(bytes(8 << 20))

            def connection_lost(self, exc: Exception | None) -> None:
                done.set_result(exc)

        server, address = await serve(Endless)
        received = 0
        with at_most(cpu_s=4, memory_kib=64 * 1024):
            reader, writer = await asyncio.open_connection(*address, limit=1 << 22)
            while data := await reader.read(1 << 22):
                received += len(data)
            assert await done is None
        assert received == Endless.calls * (8 << 20)
        writer.close()
        server.close()

    run(main, timeout=60)


class Restless(asyncio.Protocol):
    """Writes whenever it is paused or resumed, and makes room for it first."""

    def __init__(self, peer: socket.socket, how: str, limit: int) -> None:
        self.peer = peer
        self.how = how
        self.limit = limit
        self.calls = self.depth = self.deepest = 0
        self.sent = self.received = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        self.write(b"x")

    def resume_writing(self) -> None:
        # More than the kernel takes, so that writing pauses again, and from within.
        self.write(bytes(16 * 1024))

    def write(self, data: bytes) -> None:
        self.calls += 1
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        if self.calls < self.limit:
            self.read_all()
            self.sent += len(data)
            if self.how == "write":
                self.transport.write(data)
            else:
                self.transport.writelines([data])
        self.depth -= 1

    def read_all(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.peer.recv(1 << 16):
                self.received += len(data)


@pytest.mark.parametrize("how", ["write", "writelines"])
def test_pause_and_resume_that_write_do_not_nest(run: Any, loop_name: str, how: str) -> None:
    """With a high mark of zero and a peer that has read everything by then, thousands of times."""
    if how == "writelines" and not support.asyncio_writelines_has("_maybe_pause_protocol"):
        support.needs_cpploop(loop_name, "its writelines() pauses nobody")

    async def main() -> None:
        ours, peer = support.unix_pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        protocol = Restless(peer, how, limit=5000)
        with peer:
            await support.attach(ours, protocol)
            protocol.resume_writing()
            while protocol.calls < protocol.limit or protocol.received < protocol.sent:
                protocol.read_all()
                await asyncio.sleep(0)
            assert protocol.received == protocol.sent
            # One may call the other, and that is all.
            assert protocol.deepest == 2
            protocol.transport.abort()
            await support.turns(3)

    run(main, timeout=60)


def test_a_chain_of_callbacks_lets_others_in(run: Any) -> None:
    """A callback that schedules itself for ever does not keep I/O and timers out."""

    async def main(env: Env) -> None:
        loop = asyncio.get_running_loop()
        running = True

        def again() -> None:
            if running:
                loop.call_soon(again)

        for _ in range(100):
            again()
        started = time.monotonic()
        server = await asyncio.start_server(_echo_once, "127.0.0.1", 0)
        async with server:
            for _ in range(20):
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"hello")
                assert await reader.read() == b"hello"
                writer.close()
        await asyncio.sleep(0.01)
        running = False
        assert time.monotonic() - started < 5 * support.TIME_SCALE

    run(main, timeout=60)


def test_out_of_descriptors_for_a_while(
    run: Any, loop_name: str, figure: Callable[[str], None]
) -> None:
    """C12: under EMFILE the loop neither spins nor drops the listener; afterwards it goes on.

    Accepting rests for a second at a time, and cpploop tells of each rest once.
    """
    seconds = 60.0 if support.LONG else 2.5
    # asyncio tries for as many as its backlog has room, every time.
    share = 0.5 if loop_name == "asyncio" else 0.05

    async def main(env: Env) -> None:
        protocol = counting()
        server, address = await serve(protocol)
        clients = [socket.socket() for _ in range(30)]
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limit[1]))
        holes, begun = [], time.monotonic()
        try:
            with contextlib.suppress(OSError):
                while True:
                    holes.append(os.dup(0))
            for client in clients:
                client.setblocking(False)
                client.connect_ex(address)
            before = time.process_time()
            await asyncio.sleep(seconds)
            assert protocol.open_now == 0
            cpu_s = time.process_time() - before
            assert cpu_s < share * seconds * support.TIME_SCALE
        finally:
            for hole in holes:
                os.close(hole)
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        await until(lambda: protocol.open_now == len(clients))
        # asyncio has one more try to accept under way, which must not meet a closed server.
        await asyncio.sleep(1.1)
        reports = env.take_errors()
        assert reports
        assert all("out of system resource" in message for message, _ in reports)
        assert loop_name == "asyncio" or len(reports) <= time.monotonic() - begun + 1
        env.take_logs()
        for client in clients:
            client.close()
        await end(server, protocol)
        figure(f"{seconds} s without descriptors, {cpu_s:.3f} s of CPU, {len(reports)} reports")

    run(main, timeout=60 + 2 * seconds)


@pytest.mark.skipif(support.SANITIZED, reason="AddressSanitizer keeps freed memory for a while")
def test_memory_after_ten_thousand_short_connections_is_flat(run: Any) -> None:
    async def main(env: Env) -> None:
        protocol = counting()
        server, address = await serve(protocol)

        def many(count: int) -> None:
            for _ in range(count):
                with socket.create_connection(address) as client:
                    client.send(b"x" * 100)

        loop = asyncio.get_running_loop()
        count = 10_000 if support.LONG else 2_000
        await loop.run_in_executor(None, many, count)
        await until(lambda: protocol.lost == count)
        gc.collect()
        before = support.rss_kib()
        await loop.run_in_executor(None, many, count)
        await until(lambda: protocol.lost == 2 * count)
        gc.collect()
        assert support.rss_kib() - before < 2048
        await end(server, protocol)

    run(main, timeout=120)
