"""The connections of a stress run, each a coroutine that may be cancelled at any of its awaits.

Whatever comes, each leaves nothing behind: it closes what it has got, and only that.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from tagged import REQUEST, RESPONSE, Account, Receiver, payload

from servers import LOCALHOST, UPGRADE, Answering, Servers


class Asking(asyncio.Protocol):
    """Sends a request in pieces and checks the answer."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self._receiver = Receiver(clients.account, RESPONSE, number)
        self.number = number
        self.lost = asyncio.get_running_loop().create_future()
        self.answered = asyncio.get_running_loop().create_future()
        self.losses = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self.losses:
            self._clients.living.add(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._receiver.feed(data)
        except AssertionError as exc:
            self._clients.account.problem(str(exc))
            raise
        if self._receiver.done and not self.answered.done():
            self.answered.set_result(True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._clients.living.discard(self)
        self.losses += 1
        if self.losses != 1:
            self._clients.account.problem(f"a connection was lost {self.losses} times")
        self._clients.account.ended_by(exc, f"connection {self.number}")
        for future in (self.answered, self.lost):
            if not future.done():
                future.set_result(False)

    async def ask(self, transport: Any) -> bool:
        """Whether the whole answer came."""
        for piece in self._clients.request(self.number):
            transport.write(piece)
            if self._clients.random.random() < 0.3:
                await asyncio.sleep(0)
        return bool(await self.answered)


class Clients:
    """Every way to a connection, by name."""

    def __init__(
        self, account: Account, rng: random.Random, servers: Servers, client_tls: ssl.SSLContext
    ) -> None:
        self.account = account
        self.random = rng
        self.servers = servers
        self.client_tls = client_tls
        self.living: set[Asking] = set()
        self.ways: dict[str, Callable[[int], Awaitable[bool]]] = {
            "tcp": self.tcp,
            "unix": self.unix,
            "tls": self.tls,
            "start_tls": self.start_tls,
            "sock_*": self.sock,
            "create_connection(sock=)": self.connected_sock,
            "streams": self.streams,
            "create_server(sock=)": self.own_server,
        }

    def request(self, number: int) -> list[bytes]:
        rng = self.random
        size = rng.choice((16, 20, 300, 4000, 30_000, 300_000 if rng.random() < 0.2 else 50))
        data = payload(number, REQUEST, size)
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(4)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]

    async def _over(self, connect: Any, protocol: Asking) -> bool:
        transport, _ = await connect
        return await self._exchange(transport, protocol)

    async def _exchange(self, transport: Any, protocol: Asking) -> bool:
        try:
            return await protocol.ask(transport)
        finally:
            self.random.choice((transport.close, transport.abort))()
            if self.random.random() < 0.5:
                await protocol.lost

    async def tcp(self, number: int) -> bool:
        protocol = Asking(self, number)
        loop = asyncio.get_running_loop()
        address = self.servers.addresses["tcp"]
        return await self._over(loop.create_connection(lambda: protocol, *address), protocol)

    async def unix(self, number: int) -> bool:
        protocol = Asking(self, number)
        connect = asyncio.get_running_loop().create_unix_connection
        return await self._over(connect(lambda: protocol, self.servers.unix_path), protocol)

    async def tls(self, number: int) -> bool:
        protocol = Asking(self, number)
        connect = asyncio.get_running_loop().create_connection
        address = self.servers.addresses["tls"]
        options = {"ssl": self.client_tls, "server_hostname": "localhost"}
        return await self._over(connect(lambda: protocol, *address, **options), protocol)

    async def start_tls(self, number: int) -> bool:
        loop = asyncio.get_running_loop()
        plain = _Line(self.account)
        transport, _ = await loop.create_connection(
            lambda: plain, *self.servers.addresses["starttls"]
        )
        upgraded = None
        try:
            transport.write(UPGRADE)
            if not await plain.came:
                return False
            protocol = Asking(self, number)
            upgraded = await loop.start_tls(
                transport, protocol, self.client_tls, server_hostname="localhost"
            )
            if upgraded is None:
                return False
            protocol.connection_made(upgraded)
            return await self._exchange(upgraded, protocol)
        finally:
            if upgraded is None:
                transport.abort()

    async def _connected(self, address: Any) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    async def sock(self, number: int) -> bool:
        loop = asyncio.get_running_loop()
        receiver = Receiver(self.account, RESPONSE, number)
        with await self._connected(self.servers.addresses["sock"]) as sock:
            for piece in self.request(number):
                await loop.sock_sendall(sock, piece)
            while not receiver.done:
                data = await loop.sock_recv(sock, self.random.choice((1, 1000, 100_000)))
                if not data:
                    return False
                try:
                    receiver.feed(data)
                except AssertionError as exc:
                    self.account.problem(str(exc))
                    raise
        return True

    async def connected_sock(self, number: int) -> bool:
        sock = await self._connected(self.servers.addresses[self.random.choice(("tcp", "sock"))])
        protocol = Asking(self, number)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
        except BaseException:
            # The habit that made other loops close a number that was somebody else's by then.
            sock.close()
            raise
        return await self._exchange(transport, protocol)

    async def streams(self, number: int) -> bool:
        receiver = Receiver(self.account, RESPONSE, number)
        reader, writer = await asyncio.open_connection(*self.servers.addresses["streams"])
        try:
            for piece in self.request(number):
                writer.write(piece)
                await writer.drain()
            while not receiver.done:
                data = await reader.read(self.random.choice((1, 1000, 65536)))
                if not data:
                    return False
                self.servers.checked(receiver.feed, data)
            return True
        finally:
            writer.close()

    async def own_server(self, number: int) -> bool:
        """A server over a socket of ours, for one connection."""
        loop = asyncio.get_running_loop()
        listener = socket.socket()
        listener.setblocking(False)
        listener.bind((LOCALHOST, 0))
        try:
            server = await loop.create_server(lambda: Answering(self.servers), sock=listener)
        except BaseException:
            listener.close()
            raise
        try:
            protocol = Asking(self, number)
            connect = loop.create_connection(lambda: protocol, *listener.getsockname())
            return await self._over(connect, protocol)
        finally:
            server.close()
            if self.random.random() < 0.3:
                # C1: once more, which must not hit anybody.
                listener.close()


class _Line(asyncio.Protocol):
    """Waits for the word that the peer is ready for TLS."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self.came = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        self._got = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._got == UPGRADE and not self.came.done():
            self._transport.pause_reading()
            self.came.set_result(True)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._account.ended_by(exc, "a connection in the clear")
        if not self.came.done():
            self.came.set_result(False)
