"""Streams over socket classes with methods of their own, as proxies and test doubles have them.

websockets' own suite asks for it: asyncio's transport calls the socket's recv() and send().
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import tls_support
from support import Env, compare

SECRET = bytes(byte ^ 0x55 for byte in range(256))


class Scrambling(socket.socket):
    """What it sends and receives is scrambled on the way, so that a way past it is noticed."""

    def recv(self, *args: Any) -> bytes:
        return super().recv(*args).translate(SECRET)

    def send(self, data: Any, *args: Any) -> int:
        return super().send(bytes(data).translate(SECRET), *args)

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        return super().sendmsg([bytes(data).translate(SECRET) for data in buffers], *args)


class Child(socket.socket):
    """Replaces nothing that asyncio calls."""

    tag = 0


@contextlib.asynccontextmanager
async def connected(kind: type[socket.socket], **kwargs: Any) -> AsyncIterator[Any]:
    """A reader and a writer over a socket of KIND, and the plain socket at its other end."""
    first, theirs = socket.socketpair()
    ours = kind(fileno=first.detach())
    ours.setblocking(False)
    theirs.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours, **kwargs)
    with theirs:
        try:
            yield reader, writer, theirs
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def test_methods_of_a_socket_class_are_called() -> None:
    async def scenario(env: Env) -> None:
        async with connected(Scrambling) as (reader, writer, theirs):
            writer.write(b"hello")
            env.log((await env.loop.sock_recv(theirs, 100)).translate(SECRET))
            writer.writelines([b"a", b"list"])
            env.log((await env.loop.sock_recv(theirs, 100)).translate(SECRET))
            await env.loop.sock_sendall(theirs, b"answer".translate(SECRET))
            env.log(await reader.read(100))
            # More than the kernel takes at once: the rest goes the same way.
            writer.write(b"x" * 1_000_000)
            received = bytearray()
            while len(received) < 1_000_000:
                received += await env.loop.sock_recv(theirs, 1 << 16)
            env.log(received.translate(SECRET) == b"x" * 1_000_000)
            theirs.shutdown(socket.SHUT_WR)
            env.log(await reader.read(), type(writer.get_extra_info("socket")).__name__)
        env.log(theirs.fileno())

    compare(scenario)


def test_an_instances_own_methods_are_called() -> None:
    async def scenario(env: Env) -> None:
        calls: list[int] = []
        first, theirs = socket.socketpair()
        ours = Child(fileno=first.detach())

        def recv(size: int) -> bytes:
            calls.append(size)
            return socket.socket.recv(ours, size)

        ours.recv = recv  # type: ignore[method-assign, assignment]
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        with theirs:
            theirs.send(b"data")
            env.log(await reader.readexactly(4), bool(calls))
            writer.close()
            await writer.wait_closed()
        del ours.recv

    compare(scenario)


def test_its_descriptor_is_the_transports() -> None:
    async def scenario(env: Env) -> None:
        async with connected(Scrambling) as (reader, writer, theirs):
            fd = writer.get_extra_info("socket").fileno()
            for watch in (env.loop.add_reader, env.loop.add_writer):
                try:
                    watch(fd, print)
                except RuntimeError as exc:
                    env.log(str(exc).partition(" is used")[0].replace(str(fd), "FD"))
            theirs.send(b"data".translate(SECRET))
            env.log(await reader.readexactly(4))

    compare(scenario)


def test_a_child_class_that_replaces_nothing_is_driven_natively(run: Any) -> None:
    async def main(env: Env) -> None:
        async with connected(Child) as (reader, writer, theirs):
            theirs.send(b"data")
            assert await reader.readexactly(4) == b"data"
            if type(env.loop).__module__.startswith("cpploop"):
                assert type(writer.transport).__module__.startswith("cpploop")

    run(main)


def test_sendfile_goes_past_the_methods_as_on_asyncio() -> None:
    async def scenario(env: Env) -> None:
        async with connected(Scrambling) as (_, writer, theirs):
            with tempfile.TemporaryFile() as file:
                file.write(b"file's content")
                file.flush()
                env.log(await env.loop.sendfile(writer.transport, file))
            env.log(await env.loop.sock_recv(theirs, 100))

    compare(scenario)


def test_tls_over_a_socket_class(tls_compare: Any, pki: tls_support.Pki) -> None:
    """The records go through the socket's methods, and a start_tls() finds its way, too."""

    async def scenario(env: Env) -> None:
        async def serve(reader: Any, writer: Any) -> None:
            writer.write((await reader.readline()).upper())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=pki.server_context())
        for upgraded in (False, True):
            sock = Counting(socket.AF_INET, socket.SOCK_STREAM)
            sock.connect(server.sockets[0].getsockname())
            sock.setblocking(False)
            settings: Any = {
                "ssl": pki.client_context(),
                "server_hostname": "localhost",
            }
            reader, writer = await asyncio.open_connection(
                sock=sock, **({} if upgraded else settings)
            )
            if upgraded:
                await writer.start_tls(settings["ssl"], server_hostname=settings["server_hostname"])
            writer.write(b"hello\n")
            env.log(upgraded, await reader.readline(), sorted(sock.used))
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    tls_compare(scenario)


class Counting(socket.socket):
    """Notes which of its methods were called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: set[str] = set()

    def recv(self, *args: Any) -> bytes:
        self.used.add("reads")
        return super().recv(*args)

    def recv_into(self, *args: Any) -> int:
        self.used.add("reads")
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.used.add("writes")
        return super().send(*args)

    def sendmsg(self, *args: Any) -> int:
        self.used.add("writes")
        return super().sendmsg(*args)
