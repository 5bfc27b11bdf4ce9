"""Rows for the loop's sock_*() methods. Both ends run in one process on one loop."""

from __future__ import annotations

import socket
import struct

from in_process import Batch, Loop


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, non-blocking and without Nagle's delay."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        first = socket.create_connection(listener.getsockname())
        second, _ = listener.accept()
    for sock in (first, second):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return first, second


def sock_ping_pong(loop: Loop) -> Batch:
    """Two tasks answer each other with sock_recv and sock_sendall: every receive has to wait.

    Counted in round trips.
    """
    first, second = connected_pair()
    message = bytes(100)

    async def answer(count: int) -> None:
        for _ in range(count):
            await loop.sock_sendall(second, await loop.sock_recv(second, 4096))

    async def batch() -> int:
        answering = loop.create_task(answer(1000))
        for _ in range(1000):
            await loop.sock_sendall(first, message)
            received = await loop.sock_recv(first, 4096)
        assert received == message
        await answering
        return 1000

    return batch


def sock_ready(loop: Loop) -> Batch:
    """sock_sendall and then sock_recv of what was sent: nothing has to wait."""
    first, second = connected_pair()
    message = bytes(100)

    async def batch() -> int:
        for _ in range(1000):
            await loop.sock_sendall(first, message)
            received = await loop.sock_recv(second, 4096)
        assert received == message
        return 1000

    return batch


def sock_connect_accept(loop: Loop) -> Batch:
    """A connection made and accepted, without transports."""
    listener = socket.socket()
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    address = listener.getsockname()

    async def batch() -> int:
        for _ in range(100):
            with socket.socket() as sock:
                sock.setblocking(False)
                # Reset at the end: closed in the usual way, ports would run out.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                await loop.sock_connect(sock, address)
                accepted, _ = await loop.sock_accept(listener)
                accepted.close()
        return 100

    return batch


def sock_datagrams(loop: Loop) -> Batch:
    """sock_sendto and sock_recvfrom between two UDP sockets; uvloop has neither."""
    socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in socks:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
    sender, receiver = socks
    address = receiver.getsockname()
    message = bytes(100)

    async def batch() -> int:
        for _ in range(1000):
            await loop.sock_sendto(sender, message, address)
            received, _ = await loop.sock_recvfrom(receiver, 2048)
        assert received == message
        return 1000

    return batch
