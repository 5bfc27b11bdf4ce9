"""The servers that the connections of a stress run go to."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from pathlib import Path
from typing import Any

from tagged import REQUEST, RESPONSE, Account, Receiver, payload

LOCALHOST = "127.0.0.1"
UPGRADE = b"upgrade\n"


def answer_size(rng: random.Random) -> int:
    """Mostly small, now and then more than the kernel takes at once."""
    return rng.choice(
        (16, 17, 100, 1000, 1460, 20_000, 70_000, 400_000 if rng.random() < 0.2 else 64)
    )


class Answering(asyncio.Protocol):
    """Checks a request and answers it; the answer goes out in pieces, then the connection ends."""

    def __init__(self, servers: Servers, receiver: Receiver | None = None) -> None:
        self._servers = servers
        self._receiver = receiver or Receiver(servers.account, REQUEST)
        self._transport: Any = None
        self.losses = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop, or by hand after start_tls(): data may have come before that."""
        if self.losses:
            return
        self._transport = transport
        self._servers.open.add(self)
        if self._receiver.done:
            self._answer()

    def data_received(self, data: bytes) -> None:
        self._servers.checked(self._receiver.feed, data)
        if self._receiver.done and self._transport is not None:
            self._answer()

    def _answer(self) -> None:
        rng = self._servers.random
        number = self._receiver.number
        assert number is not None
        data = payload(number, RESPONSE, answer_size(rng))
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(4)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            self._transport.write(data[start:end])
        if rng.random() < 0.5:
            self._transport.close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._servers.open.discard(self)
        self.losses += 1
        if self.losses != 1:
            self._servers.account.problem(f"a server's connection was lost {self.losses} times")
        self._servers.account.ended_by(exc, f"server of connection {self._receiver.number}")


class Upgrading(asyncio.Protocol):
    """Waits for one line in the clear, then goes over to TLS."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._line = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._line += data
        if self._line == UPGRADE:
            self._servers.spawn(self._upgrade())
        elif not UPGRADE.startswith(self._line):
            self._servers.account.problem(f"in the clear: {bytes(self._line[:40])!r}")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._servers.account.ended_by(exc, "a server's connection in the clear")

    async def _upgrade(self) -> None:
        loop = asyncio.get_running_loop()
        protocol = Answering(self._servers)
        self._transport.pause_reading()
        self._transport.write(UPGRADE)
        try:
            transport = await loop.start_tls(
                self._transport, protocol, self._servers.server_tls, server_side=True
            )
        except OSError as exc:
            self._servers.account.ended_by(exc, "a server's start_tls()")
            self._transport.abort()
            return
        except asyncio.CancelledError:
            self._transport.abort()
            return
        if transport is None:
            # asyncio's answer when the peer is gone already.
            self._transport.abort()
            return
        # It is told by hand: start_tls() does not.
        protocol.connection_made(transport)


class Servers:
    """One server of each kind on the running loop."""

    def __init__(
        self, account: Account, rng: random.Random, folder: Path, server_tls: ssl.SSLContext
    ) -> None:
        self.account = account
        self.random = rng
        self.server_tls = server_tls
        self.unix_path = str(folder / "s")
        self.open: set[Any] = set()
        self.addresses: dict[str, Any] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._accepting: socket.socket | None = None

    def spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def checked(self, feed: Any, data: Any) -> None:
        try:
            feed(data)
        except AssertionError as exc:
            self.account.problem(str(exc))
            raise

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def answering() -> Answering:
            return Answering(self)

        async def add(name: str, server: asyncio.Server) -> None:
            self._servers.append(server)
            self.addresses[name] = server.sockets[0].getsockname()

        await add("tcp", await loop.create_server(answering, LOCALHOST, 0))
        await add("tls", await loop.create_server(answering, LOCALHOST, 0, ssl=self.server_tls))
        await add("starttls", await loop.create_server(lambda: Upgrading(self), LOCALHOST, 0))
        await add("unix", await loop.create_unix_server(answering, self.unix_path))
        await add("streams", await asyncio.start_server(self._serve_stream, LOCALHOST, 0))
        listener = socket.socket()
        listener.setblocking(False)
        listener.bind((LOCALHOST, 0))
        listener.listen(100)
        self._accepting = listener
        self.addresses["sock"] = listener.getsockname()
        self.spawn(self._accept(listener))

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._accepting is not None:
            self._accepting.close()

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: Any) -> None:
        receiver = Receiver(self.account, REQUEST)
        try:
            while not receiver.done:
                data = await reader.read(self.random.choice((1, 100, 65536)))
                if not data:
                    return
                self.checked(receiver.feed, data)
            assert receiver.number is not None
            writer.write(payload(receiver.number, RESPONSE, answer_size(self.random)))
            await writer.drain()
        except OSError as exc:
            self.account.ended_by(exc, f"streams of connection {receiver.number}")
        finally:
            writer.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as exc:
                self.account.ended_by(exc, "sock_accept()")
                await asyncio.sleep(0.001)
                continue
            if self.random.random() < 0.5:
                self.spawn(self._serve_sock(sock))
            else:
                self.spawn(self._adopt(sock))

    async def _adopt(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: Answering(self), sock)
        except BaseException as exc:
            sock.close()
            if not isinstance(exc, OSError):
                raise
            self.account.ended_by(exc, "connect_accepted_socket()")

    async def _serve_sock(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        receiver = Receiver(self.account, REQUEST)
        memory = bytearray(4096)
        with sock:
            try:
                while not receiver.done:
                    count = await loop.sock_recv_into(sock, memory)
                    if not count:
                        return
                    self.checked(receiver.feed, memory[:count])
                assert receiver.number is not None
                data = payload(receiver.number, RESPONSE, answer_size(self.random))
                await loop.sock_sendall(sock, data)
            except OSError as exc:
                self.account.ended_by(exc, f"sock_*() of connection {receiver.number}")
