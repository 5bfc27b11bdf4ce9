"""Transports of every kind with a peer, for the tests of asyncio's transport contract.

Each kind is opened in the same way, so that one test asks all of them; what the peer does goes past
the loop, or over TLS through a transport of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import support
from support import Env, Recorder

DUPLEX = ["tcp", "unix", "tls"]
READERS = [*DUPLEX, "read pipe"]
WRITERS = [*DUPLEX, "write pipe"]
ALL = [*DUPLEX, "read pipe", "write pipe"]


class Peer:
    """The other end: a non-blocking socket or pipe."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    async def send(self, data: bytes) -> None:
        await support.send_all(self._sock, data)

    async def recv(self, size: int) -> bytes:
        return await support.recv_exactly(self._sock, size)

    async def recv_to_end(self) -> bytes:
        return await support.recv_to_end(self._sock)

    async def end(self) -> None:
        """Nothing more is sent."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._sock.close()


class _PipeEnd:
    """A pipe's descriptor with the methods of a socket that Peer uses."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def send(self, data: Any) -> int:
        return os.write(self._fd, data)

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def shutdown(self, how: int) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _TlsPeer(Peer):
    """The server's side of a TLS connection on the same loop."""

    def __init__(self, rec: Recorder) -> None:
        self._rec = rec
        self._taken = 0

    async def send(self, data: bytes) -> None:
        self._rec.transport.write(data)

    async def recv(self, size: int) -> bytes:
        await self._rec.until_received(self._taken + size)
        taken = bytes(self._rec.received[self._taken : self._taken + size])
        self._taken += size
        return taken

    async def recv_to_end(self) -> bytes:
        await self._rec.until("connection_lost")
        taken = bytes(self._rec.received[self._taken :])
        self._taken += len(taken)
        return taken

    async def end(self) -> None:
        self._rec.transport.close()

    def close(self) -> None:
        self._rec.transport.abort()


@contextlib.asynccontextmanager
async def opened(
    kind: str, protocol: Any, certs: support.Certificates, **sizes: int
) -> AsyncIterator[tuple[Any, Peer]]:
    """(a transport of KIND that speaks to PROTOCOL, its peer); both are gone at the end."""
    opener = {"read pipe": _open_read_pipe, "write pipe": _open_write_pipe, "tls": _open_tls}
    if kind in opener:
        transport, peer = await opener[kind](protocol, certs)
    else:
        sock, other = support.PAIRS[kind](**sizes)
        transport, _ = await support.attach(sock, protocol)
        peer = Peer(other)
    try:
        yield transport, peer
    finally:
        peer.close()
        if not transport.is_closing():
            # A read pipe has no abort().
            getattr(transport, "abort", transport.close)()
        current = None
        # asyncio's TLS transport forgets its protocol when it is closed a second time.
        with contextlib.suppress(AttributeError):
            current = transport.get_protocol()
        if isinstance(current, Recorder):
            await current.until("connection_lost")
        await support.turns(5)


async def _open_read_pipe(protocol: Any, certs: support.Certificates) -> tuple[Any, Peer]:
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0))
    return transport, Peer(_PipeEnd(write_end))


async def _open_write_pipe(protocol: Any, certs: support.Certificates) -> tuple[Any, Peer]:
    read_end, write_end = os.pipe()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_write_pipe(lambda: protocol, os.fdopen(write_end, "wb", 0))
    return transport, Peer(_PipeEnd(read_end))


async def _open_tls(protocol: Any, certs: support.Certificates) -> tuple[Any, Peer]:
    first, second = support.unix_pair()
    loop = asyncio.get_running_loop()
    server = Recorder()
    accepted = asyncio.ensure_future(
        loop.connect_accepted_socket(lambda: server, second, ssl=certs.server_context())
    )
    transport, _ = await support.attach(
        first, protocol, ssl=certs.client_context(), server_hostname="localhost"
    )
    await accepted
    return transport, _TlsPeer(server)


def attempt(env: Env, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call FUNCTION and put what came of it into the trace."""
    try:
        result = function(*args, **kwargs)
    except Exception as exc:
        env.log(what, "raised", type(exc), str(exc))
        return None
    env.log(what, "returned", result)
    return result
