"""What the datagram tests share: a recorder, endpoints, and a pair whose kernel queue fills up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import support


class DatagramRecorder(support._RecorderBase, asyncio.DatagramProtocol):
    """A support.Recorder for datagrams; logs the data, and the address only if asked to."""

    def __init__(self, *args: Any, addresses: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.addresses = addresses
        self.datagrams: list[bytes] = []
        self.senders: list[Any] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.datagrams.append(data)
        self.senders.append(addr)
        if self.addresses:
            self._call("datagram_received", data, addr)
        else:
            self._call("datagram_received", data)

    def error_received(self, exc: Exception) -> None:
        self._call("error_received", exc)


class Echo(asyncio.DatagramProtocol):
    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def endpoint(
    protocol: Any = None, **arguments: Any
) -> AsyncIterator[tuple[Any, DatagramRecorder]]:
    """(transport, protocol); on 127.0.0.1 unless arguments say otherwise, aborted at the end."""
    loop = asyncio.get_running_loop()
    if not arguments:
        arguments = {"local_addr": ("127.0.0.1", 0)}
    recorder = protocol or DatagramRecorder()
    transport, _ = await loop.create_datagram_endpoint(lambda: recorder, **arguments)
    try:
        yield transport, recorder
    finally:
        # Older asyncios fail in abort() after a close that had to flush first.
        if transport.get_protocol() is not None:
            transport.abort()
        await support.turns(3)


def address_of(transport: Any) -> Any:
    return transport.get_extra_info("sockname")


def plain_socket(family: int = socket.AF_INET, name: Any = None) -> socket.socket:
    """A peer's datagram socket, non-blocking, bound to loopback or to NAME."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if name is not None:
        sock.bind(name)
    elif family == socket.AF_INET:
        sock.bind(("127.0.0.1", 0))
    elif family == socket.AF_INET6:
        sock.bind(("::1", 0))
    return sock


def abstract_name(what: str = "peer") -> str:
    return f"\0cpploop-test-{os.getpid()}-{what}"


@contextlib.asynccontextmanager
async def narrow_pair(
    protocol: Any = None, *, connected: bool = True
) -> AsyncIterator[tuple[Any, DatagramRecorder, socket.socket]]:
    """(transport, protocol, the peer's socket) whose kernel queue is full after a few datagrams.

    Unix sockets, because the kernel counts the datagrams that a peer has not read; UDP drops them.
    """
    name = abstract_name()
    with plain_socket(socket.AF_UNIX, name) as peer:
        sock = plain_socket(socket.AF_UNIX, abstract_name("near"))
        if connected:
            sock.connect(name)
        async with endpoint(protocol, sock=sock) as (transport, recorder):
            yield transport, recorder, peer


def fill(transport: Any, address: Any = None) -> int:
    """Send one-byte datagrams until one has to be queued; how many went out."""
    sent = 0
    while transport.get_write_buffer_size() == 0:
        transport.sendto(b"f", address)
        sent += 1
        assert sent < 100_000, "the kernel's queue seems endless"
    return sent - 1


def receive_all(sock: socket.socket) -> list[bytes]:
    """The datagrams that are in SOCK's queue now."""
    datagrams = []
    with contextlib.suppress(BlockingIOError):
        while True:
            datagrams.append(sock.recv(1 << 18))
    return datagrams


async def receive_count(sock: socket.socket, count: int) -> list[bytes]:
    """COUNT datagrams, reading as they come."""
    datagrams: list[bytes] = []

    def enough() -> bool:
        datagrams.extend(receive_all(sock))
        return len(datagrams) >= count

    await support.eventually(enough)
    return datagrams
