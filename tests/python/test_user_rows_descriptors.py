"""C1, C2: connecting over a socket handed in, cancelled at every await point.

A second thread takes every freed descriptor number at once. No byte may reach a connection that is
not its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import support
from support import Env, Recorder, turns
from thief import fd_thief

MAX_TURNS = 80
KINDS = ("tcp", "unix", "tls", "unix-tls", "start_tls")


class Tagged:
    """Servers that send every line back, and a note of each line on the wrong connection."""

    def __init__(self, env: Env, certs: support.Certificates, directory: Path) -> None:
        self.env = env
        self.certs = certs
        self.path = str(directory / "s")
        self.wrong: list[Any] = []
        self.addresses: dict[str, Any] = {}

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        context = self.certs.server_context()
        servers = {
            "tcp": await asyncio.start_server(self.serve, "127.0.0.1", 0),
            "tls": await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=context),
            "unix": await asyncio.start_unix_server(self.serve, self.path),
            "unix-tls": await asyncio.start_unix_server(self.serve, self.path + "t", ssl=context),
        }
        for kind, server in servers.items():
            self.addresses[kind] = server.sockets[0].getsockname()
        self.addresses["start_tls"] = self.addresses["tcp"]
        try:
            yield
        finally:
            for server in servers.values():
                server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = None
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                if line == b"STARTTLS\n":
                    writer.write(b"+")
                    await writer.start_tls(self.certs.server_context())
                    continue
                first = first or line
                if line != first:
                    self.wrong.append(("server", first, line))
                writer.write(line)
        except OSError as exc:
            # The client went, in the middle of a handshake perhaps.
            if not support.peer_is_gone(exc):
                self.wrong.append(("server", first, exc))
        finally:
            # Not waited for: a client that was cancelled says no goodbye.
            writer.transport.abort()

    def socket(self, kind: str) -> socket.socket:
        family = socket.AF_UNIX if kind.startswith("unix") else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    def recorder(self, tag: bytes) -> Recorder:
        def received(rec: Recorder, data: bytes) -> None:
            got = bytes(rec.received).removeprefix(b"+")
            if not (tag * (len(got) // len(tag) + 1)).startswith(got):
                self.wrong.append(("client", tag, got[-60:]))

        return Recorder(on={"data_received": received})

    async def connect(self, kind: str, sock: socket.socket, rec: Recorder) -> Any:
        """A transport of KIND over SOCK, which is connected."""
        loop = self.env.loop
        options: dict[str, Any] = {}
        if kind.endswith("tls") and kind != "start_tls":
            options = {"ssl": self.certs.client_context(), "server_hostname": "localhost"}
        if kind.startswith("unix"):
            transport, _ = await loop.create_unix_connection(lambda: rec, sock=sock, **options)
        else:
            transport, _ = await loop.create_connection(lambda: rec, sock=sock, **options)
        if kind == "start_tls":
            transport.write(b"STARTTLS\n")
            try:
                await rec.until_received(1)
            except asyncio.CancelledError:
                transport.abort()
                raise
            return await loop.start_tls(
                transport, rec, self.certs.client_context(), server_hostname="localhost"
            )
        return transport

    async def attempt(self, kind: str, tag: bytes, cancel_after: int) -> bool:
        """One connection, cancelled after some turns; whether it was finished before that."""
        sock = self.socket(kind)
        await self.env.loop.sock_connect(sock, self.addresses[kind])
        rec = self.recorder(tag)
        begun: list[bool] = []

        async def connect() -> Any:
            begun.append(True)
            return await self.connect(kind, sock, rec)

        task = asyncio.ensure_future(connect())
        await turns(cancel_after)
        finished = task.done()
        task.cancel()
        try:
            transport = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.write(tag)
            transport.write(tag)
            if finished:
                await rec.until_received(2 * len(tag))
            transport.abort()
        # Whoever still held it would be one of the garbage.
        del task
        if begun:
            await support.eventually(lambda: sock.fileno() == -1)
            # asyncio does not tell the protocol when start_tls() is cancelled in its first turn.
            if rec.count("connection_made") and kind != "start_tls":
                await rec.until("connection_lost")
            await turns(2)
            assert rec.count("connection_lost") <= 1
            if not support.peer_is_gone(rec.exc):
                self.wrong.append(("client", tag, rec.exc))
        # As clients do after a failed connect; the number may be anybody's by now.
        sock.close()
        assert rec.names().count("connection_made") <= 1
        return finished


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_every_await_point(
    run: Any, certs: support.Certificates, short_tmp: Path, kind: str
) -> None:
    """C1: after each number of turns the cancelled socket is closed, once, and nobody else's.

    The numbers go up until the connection is made before the cancellation comes.
    """

    async def main(env: Env) -> None:
        tagged = Tagged(env, certs, short_tmp)
        async with tagged.serving():
            with fd_thief():
                for after in range(MAX_TURNS):
                    tag = b"<%s %d>\n" % (kind.encode(), after)
                    if await tagged.attempt(kind, tag, after):
                        break
                else:
                    raise AssertionError("the connection is never made")
            assert after > 1
            assert tagged.wrong == []
            await asyncio.sleep(0.02)

    run(main, timeout=30, check_warnings=False)


def test_tagged_connections_of_every_kind_cancelled_at_random(
    run: Any, certs: support.Certificates, short_tmp: Path, seed: int
) -> None:
    """C1, C2: many at once over TCP, Unix sockets, TLS and start_tls; any cross-delivery fails."""

    async def main(env: Env) -> None:
        rng = random.Random(seed)
        tagged = Tagged(env, certs, short_tmp)
        finished = cancelled = 0

        async def client(number: int, stop: float) -> None:
            nonlocal finished, cancelled
            turn = 0
            while env.loop.time() < stop and not tagged.wrong:
                turn += 1
                kind = rng.choice(KINDS)
                after = rng.choice((0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40))
                if await tagged.attempt(kind, b"<%d.%d>\n" % (number, turn), after):
                    finished += 1
                else:
                    cancelled += 1

        async with tagged.serving():
            with fd_thief():
                stop = env.loop.time() + (2.5 if not support.LONG else 60)
                await asyncio.gather(*(client(number, stop) for number in range(12)))
            assert tagged.wrong == []
            assert cancelled > 10
            await asyncio.sleep(0.05)

    run(main, timeout=40 if not support.LONG else 120, check_warnings=False)


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
def test_connecting_fails_over_a_socket_handed_in(certs: support.Certificates, kind: str) -> None:
    """C1: what raises inside leaves the socket as asyncio leaves it, and the number is not closed
    a second time when the caller closes it as well."""

    def broken() -> Any:
        raise ValueError("no protocol")

    async def scenario(env: Env) -> None:
        loop = env.loop
        for how in ("factory", "hang up"):
            sock, peer = support.unix_pair() if kind == "unix" else support.tcp_pair()
            options: dict[str, Any] = {"sock": sock}
            if kind == "tls":
                options |= {"ssl": certs.client_context(), "server_hostname": "localhost"}
            make = loop.create_unix_connection if kind == "unix" else loop.create_connection
            if how == "hang up":
                peer.close()
            try:
                transport, _ = await make(broken if how == "factory" else Recorder, **options)
                transport.abort()
                env.log(how, "connected")
            except (ValueError, OSError, ssl.SSLError) as exc:
                env.log(how, type(exc))
            await asyncio.sleep(0.01)
            fd = sock.fileno()
            env.log("open", fd != -1)
            # Somebody takes the number at once.
            other, far = support.unix_pair()
            sock.close()
            peer.close()
            other.send(b"mine")
            assert far.recv(10) == b"mine"
            other.close()
            far.close()

    support.compare(scenario, check_warnings=False)
