"""What the soak does, each as an endless coroutine that counts what it finished.

Payloads are tagged with a serial number, so a byte that reaches another connection is noticed by
the one that receives it. Every activity cleans up after itself at the end of each round: what then
still grows is a leak of the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOCALHOST = "127.0.0.1"
MESSAGE = 512
RST = struct.pack("ii", 1, 0)


class WrongBytes(AssertionError):
    """Bytes came back that were never sent on this connection."""


@dataclass
class Soak:
    """What the activities share."""

    random: random.Random
    folder: Path
    new_loop: Callable[[], asyncio.AbstractEventLoop]
    server_tls: ssl.SSLContext
    client_tls: ssl.SSLContext
    done: Counter[str] = field(default_factory=Counter)
    serial: int = 0
    bytes_checked: int = 0

    def payload(self, size: int) -> bytes:
        """Bytes that no other message has."""
        self.serial += 1
        stamp = b"%016x" % self.serial
        return (stamp * (size // len(stamp) + 1))[:size]

    def check(self, sent: bytes, received: bytes) -> None:
        if sent != received:
            raise WrongBytes(f"sent {sent[:32]!r}..., got {received[:32]!r}...")
        self.bytes_checked += len(received)


Activity = Callable[[Soak], Awaitable[None]]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _talk(
    soak: Soak, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, messages: int
) -> None:
    for _ in range(messages):
        sent = soak.payload(soak.random.choice((1, MESSAGE, 5_000, 100_000)))
        writer.write(sent)
        soak.check(sent, await reader.readexactly(len(sent)))


async def _part(soak: Soak, writer: asyncio.StreamWriter) -> None:
    """Ends a connection in one of the ways there are."""
    way = soak.random.randrange(4)
    if way == 0:
        writer.transport.abort()
    elif way == 1 and writer.get_extra_info("ssl_object") is None:
        sock = writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        writer.close()
    elif way == 2 and writer.can_write_eof():
        writer.write_eof()
        writer.close()
    else:
        writer.write(b"unread")
        writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def tcp(soak: Soak) -> None:
    server = await asyncio.start_server(_echo, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await _talk(soak, reader, writer, 5)
        await _part(soak, writer)
        server.close()


async def tls(soak: Soak) -> None:
    server = await asyncio.start_server(_echo, LOCALHOST, 0, ssl=soak.server_tls)
    async with server:
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=soak.client_tls, server_hostname="localhost"
        )
        await _talk(soak, reader, writer, 3)
        await _part(soak, writer)
        server.close()


async def start_tls(soak: Soak) -> None:
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(5)
            writer.write(b"ready")
            await writer.start_tls(soak.server_tls)
            await _echo(reader, writer)

    server = await asyncio.start_server(serve, LOCALHOST, 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"start")
        assert await reader.readexactly(5) == b"ready"
        await writer.start_tls(soak.client_tls, server_hostname="localhost")
        await _talk(soak, reader, writer, 2)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
    assert loop.is_running()


async def unix(soak: Soak) -> None:
    soak.serial += 1
    path = soak.folder / f"{soak.serial}.sock"
    server = await asyncio.start_unix_server(_echo, path)
    async with server:
        reader, writer = await asyncio.open_unix_connection(path)
        await _talk(soak, reader, writer, 3)
        await _part(soak, writer)
        server.close()
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class _UdpClient(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)


async def udp(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(_UdpEcho, local_addr=(LOCALHOST, 0))
    address = server.get_extra_info("sockname")
    client, protocol = await loop.create_datagram_endpoint(_UdpClient, remote_addr=address)
    for size in (0, 1, MESSAGE, 9_000):
        sent = soak.payload(size)
        client.sendto(sent)
        soak.check(sent, await protocol.received.get())
    client.close()
    server.close()


async def pipes(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    reader = asyncio.StreamReader()
    receiving, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", 0)
    )
    sending, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(write_end, "wb", 0))
    sent = soak.payload(200_000)
    sending.write(sent)
    sending.close()
    soak.check(sent, await reader.read(-1))
    receiving.close()


async def raw_sockets(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((LOCALHOST, 0)) as listener:
        listener.setblocking(False)
        with socket.socket() as client:
            client.setblocking(False)
            accepting = loop.create_task(loop.sock_accept(listener))
            await loop.sock_connect(client, listener.getsockname())
            accepted, _ = await accepting
            with accepted:
                waiting = loop.create_task(loop.sock_recv(accepted, 10))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting])
                sent = soak.payload(MESSAGE)
                await loop.sock_sendall(client, sent)
                received = b""
                while len(received) < len(sent):
                    received += await loop.sock_recv(accepted, 4096)
                soak.check(sent, received)


async def cancelled_connections(soak: Soak) -> None:
    server = await asyncio.start_server(_echo, LOCALHOST, 0, ssl=soak.server_tls)
    address = server.sockets[0].getsockname()
    async with server:
        for _ in range(3):
            connecting = asyncio.ensure_future(
                asyncio.open_connection(*address, ssl=soak.client_tls, server_hostname="localhost")
            )
            await asyncio.sleep(soak.random.choice((0, 0, 0.0005, 0.002)))
            connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                _, writer = await connecting
                writer.transport.abort()
        server.close()


async def children(soak: Soak) -> None:
    program = shutil.which("cat")
    assert program is not None
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(program, stdin=pipe, stdout=pipe)
    if soak.random.randrange(3) == 0:
        child.kill()
        await child.communicate()
        return
    sent = soak.payload(100_000)
    output, _ = await child.communicate(sent)
    soak.check(sent, output)
    assert child.returncode == 0


async def signals(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    came = loop.create_future()

    def note() -> None:
        if not came.done():
            came.set_result(None)

    loop.add_signal_handler(signal.SIGUSR1, note)
    os.kill(os.getpid(), signal.SIGUSR1)
    await came
    loop.remove_signal_handler(signal.SIGUSR1)


async def timers(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    handles = [loop.call_later(soak.random.uniform(0, 0.01), int) for _ in range(200)]
    for handle in soak.random.sample(handles, 100):
        handle.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.005):
            await asyncio.sleep(1)
    await asyncio.sleep(0.01)


async def executors(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    found = await asyncio.gather(*(loop.run_in_executor(None, abs, -n) for n in range(20)))
    assert found == list(range(20))
    await loop.getaddrinfo("localhost", 80)


async def other_loops(soak: Soak) -> None:
    """A loop in a thread of its own: made, used, hammered from here, closed."""

    async def short_life() -> int:
        server = await asyncio.start_server(_echo, LOCALHOST, 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.close()
            server.close()
        await asyncio.sleep(0.005)
        return 1

    def run() -> None:
        with asyncio.Runner(loop_factory=soak.new_loop) as runner:
            assert runner.run(short_life()) == 1

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.002)
    thread.join()


ACTIVITIES: dict[str, Activity] = {
    activity.__name__: activity
    for activity in (
        tcp,
        tls,
        start_tls,
        unix,
        udp,
        pipes,
        raw_sockets,
        cancelled_connections,
        children,
        signals,
        timers,
        executors,
        other_loops,
    )
}
