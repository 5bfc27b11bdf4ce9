"""Rows that go through the kernel: datagrams, pipes, files, children, connections.

Both ends run in one process on the loop that is measured, except where a thread stands for the
other side: it does blocking socket calls on large blocks, which give up the GIL.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from in_process import Batch, Loop

LOCALHOST = "127.0.0.1"
PACKETS = 2_000
PACKETS_IN_FLIGHT = 32
PACKET = b"p" * 64
BLOCK = bytes(64 * 1024)
PIPE_BLOCKS = 128
BULK_BLOCK = bytes(256 * 1024)
BULK_BLOCKS = 32
FILE_SIZE = 8 * 1024 * 1024
LINE = b"x" * 63 + b"\n"
LINES = 10_000
CONNECTIONS = 50
CHILDREN = 5


class UdpEcho(asyncio.DatagramProtocol):
    """Sends every packet back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


class UdpClient(asyncio.DatagramProtocol):
    """Keeps a number of packets in flight until as many answers came as were asked for."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.done: asyncio.Future[None] | None = None
        self.to_send = self.to_receive = 0

    def start(self, loop: Loop) -> asyncio.Future[None]:
        self.done = loop.create_future()
        self.to_send = self.to_receive = PACKETS
        for _ in range(PACKETS_IN_FLIGHT):
            self.send()
        return self.done

    def send(self) -> None:
        if self.to_send:
            self.to_send -= 1
            self.transport.sendto(PACKET)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        assert data == PACKET
        self.to_receive -= 1
        if self.to_receive:
            self.send()
        else:
            assert self.done is not None
            self.done.set_result(None)


def udp_echo(loop: Loop) -> Batch:
    """Round trips of 64-byte packets, 32 in flight, from a connected socket to one that is not."""
    client: UdpClient | None = None

    async def batch() -> int:
        nonlocal client
        if client is None:
            server, _ = await loop.create_datagram_endpoint(UdpEcho, (LOCALHOST, 0))
            address = server.get_extra_info("sockname")
            _, client = await loop.create_datagram_endpoint(UdpClient, remote_addr=address)
        await client.start(loop)
        return PACKETS

    return batch


class Writer(asyncio.streams.FlowControlMixin):
    """A protocol that only writes; FlowControlMixin is what asyncio gives a pipe's StreamWriter."""


def pipe_throughput(loop: Loop) -> Batch:
    """64 KiB blocks through a pipe, read by a protocol that counts."""

    class Reader(asyncio.Protocol):
        expected = 0
        done: asyncio.Future[None]

        def data_received(self, data: bytes) -> None:
            self.expected -= len(data)
            if self.expected == 0:
                self.done.set_result(None)

    reader: Reader | None = None
    writer: asyncio.StreamWriter | None = None

    async def batch() -> int:
        nonlocal reader, writer
        if reader is None or writer is None:
            read_end, write_end = os.pipe()
            _, reader = await loop.connect_read_pipe(Reader, os.fdopen(read_end, "rb", 0))
            transport, protocol = await loop.connect_write_pipe(
                lambda: Writer(loop=loop), os.fdopen(write_end, "wb", 0)
            )
            writer = asyncio.StreamWriter(transport, protocol, None, loop)
        reader.expected = PIPE_BLOCKS * len(BLOCK)
        reader.done = loop.create_future()
        for _ in range(PIPE_BLOCKS):
            writer.write(BLOCK)
            await writer.drain()
        await reader.done
        return PIPE_BLOCKS

    return batch


def _swallow(sock: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    while sock.recv_into(buffer):
        pass


async def _connect_to_thread(
    loop: Loop, factory: Callable[[], Any], work: Callable[[socket.socket], None]
) -> tuple[Any, Any]:
    """A connection of the loop's whose other side is served by a thread."""
    with socket.create_server((LOCALHOST, 0)) as listener:
        made = await loop.create_connection(factory, *listener.getsockname())
        other, _ = listener.accept()
    threading.Thread(target=work, args=(other,), daemon=True).start()
    return made


def sendfile_8m(loop: Loop) -> Batch:
    """An 8 MiB file to a TCP connection, without fallback."""
    transport: Any = None
    file = tempfile.TemporaryFile()
    file.write(os.urandom(FILE_SIZE))
    file.flush()

    async def batch() -> int:
        nonlocal transport
        if transport is None:
            transport, _ = await _connect_to_thread(loop, asyncio.Protocol, _swallow)
        sent = await loop.sendfile(transport, file, 0, FILE_SIZE, fallback=False)
        assert sent == FILE_SIZE
        return 1

    return batch


def bulk_write(loop: Loop) -> Batch:
    """256 KiB writes one way, each drained."""
    writer: asyncio.StreamWriter | None = None

    async def batch() -> int:
        nonlocal writer
        if writer is None:
            transport, protocol = await _connect_to_thread(
                loop, lambda: Writer(loop=loop), _swallow
            )
            writer = asyncio.StreamWriter(transport, protocol, None, loop)
        for _ in range(BULK_BLOCKS):
            writer.write(BULK_BLOCK)
            await writer.drain()
        return BULK_BLOCKS

    return batch


def readline_64(loop: Loop) -> Batch:
    """StreamReader.readline() on lines of 64 bytes that come in large segments."""
    reader: asyncio.StreamReader | None = None
    go = threading.Semaphore(0)

    def send(sock: socket.socket) -> None:
        lines = LINE * LINES
        while True:
            go.acquire()
            sock.sendall(lines)

    async def batch() -> int:
        nonlocal reader
        if reader is None:
            reader = asyncio.StreamReader(loop=loop)
            protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
            await _connect_to_thread(loop, lambda: protocol, send)
        go.release()
        for _ in range(LINES):
            line = await reader.readline()
        assert line == LINE
        return LINES

    return batch


class Closing(asyncio.Protocol):
    """Tells when its connection is over."""

    def __init__(self, loop: Loop) -> None:
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


def connect_close(loop: Loop) -> Batch:
    """Connections made, accepted and closed, one after the other, both ends on the loop."""
    address: Any = None

    async def batch() -> int:
        nonlocal address
        if address is None:
            server = await loop.create_server(asyncio.Protocol, LOCALHOST, 0, backlog=1000)
            address = server.sockets[0].getsockname()
        for _ in range(CONNECTIONS):
            transport, protocol = await loop.create_connection(lambda: Closing(loop), *address)
            transport.close()
            await protocol.lost
        return CONNECTIONS

    return batch


def spawn_wait(loop: Loop) -> Batch:
    """Children that do nothing, spawned and waited for, one after the other."""
    program = shutil.which("true")
    assert program is not None

    async def batch() -> int:
        for _ in range(CHILDREN):
            child = await asyncio.create_subprocess_exec(program)
            assert await child.wait() == 0
        return CHILDREN

    return batch


def spawn_communicate(loop: Loop) -> Batch:
    """The same with a pipe for the child's output."""
    program = shutil.which("echo")
    assert program is not None

    async def batch() -> int:
        for _ in range(CHILDREN):
            child = await asyncio.create_subprocess_exec(
                program, "done", stdout=asyncio.subprocess.PIPE
            )
            output, _ = await child.communicate()
            assert output == b"done\n"
        return CHILDREN

    return batch
