"""Methods of the loop and of its transports that docs/api-table.md names no better test for.

Each is called for what it is there for and with its errors, on both loops, and the traces are
compared.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from contract import attempt
from support import Env, Recorder, turns


def sockets() -> tuple[socket.socket, ...]:
    return support.unix_pair()


# ---- sock_*


def test_sock_recv_and_sendall() -> None:
    async def scenario(env: Env) -> None:
        first, second = sockets()
        loop = env.loop
        with first, second:
            waiting = asyncio.ensure_future(loop.sock_recv(second, 100))
            await turns(2)
            env.log(waiting.done())
            env.log(await loop.sock_sendall(first, b"hello"))
            env.log(await waiting)
            data = bytes(range(256)) * 8192
            sending = asyncio.ensure_future(loop.sock_sendall(first, data))
            received = bytearray()
            while len(received) < len(data):
                received += await loop.sock_recv(second, 1 << 16)
            await sending
            env.log(received == data)
            first.close()
            env.log(await loop.sock_recv(second, 1))

    support.compare(scenario)


def test_sock_recv_into() -> None:
    async def scenario(env: Env) -> None:
        first, second = sockets()
        with first, second:
            buffer = bytearray(8)
            await env.loop.sock_sendall(first, b"into it")
            env.log(await env.loop.sock_recv_into(second, buffer), buffer)
            first.close()
            env.log(await env.loop.sock_recv_into(second, buffer))

    support.compare(scenario)


def test_sock_connect_and_accept() -> None:
    async def scenario(env: Env) -> None:
        loop = env.loop
        with socket.socket() as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            env.log(await loop.sock_connect(client, listener.getsockname()))
            accepted, address = await accepting
            with accepted:
                env.log(address == client.getsockname(), accepted.gettimeout())
        refused, port = support.refused_port()
        with refused, socket.socket() as client:
            client.setblocking(False)
            try:
                await loop.sock_connect(client, ("127.0.0.1", port))
            except ConnectionRefusedError:
                env.log("refused")

    support.compare(scenario)


def test_sock_sendto_and_recvfrom() -> None:
    async def scenario(env: Env) -> None:
        loop = env.loop
        kind = (socket.AF_INET, socket.SOCK_DGRAM)
        with socket.socket(*kind) as first, socket.socket(*kind) as second:
            for sock in (first, second):
                sock.setblocking(False)
                sock.bind(("127.0.0.1", 0))
            env.log(await loop.sock_sendto(first, b"datagram", second.getsockname()))
            data, address = await loop.sock_recvfrom(second, 100)
            env.log(data, address == first.getsockname())
            env.log(await loop.sock_sendto(second, b"answer", first.getsockname()))
            buffer = bytearray(10)
            size, address = await loop.sock_recvfrom_into(first, buffer)
            env.log(size, bytes(buffer[:size]), address == second.getsockname())

    support.compare(scenario)


def test_sock_sendfile(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)

    async def scenario(env: Env) -> None:
        first, second = support.tcp_pair()
        with first, second, (tmp_path / "file").open("rb") as file:
            env.log(await env.loop.sock_sendfile(first, file, 10, 1000), file.tell())
            data = await support.recv_exactly(second, 1000)
            env.log(data == (tmp_path / "file").read_bytes()[10:1010])

    support.compare(scenario)


def test_sendfile(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 100)

    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            with (tmp_path / "file").open("rb") as file:
                transport.write(b"before ")
                env.log(await env.loop.sendfile(transport, file, 10, 1000), file.tell())
            data = await support.recv_exactly(peer, 1007)
            env.log(data == b"before " + (tmp_path / "file").read_bytes()[10:1010])

    support.compare(scenario)


# ---- datagrams


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


def test_datagram_transport() -> None:
    """Every method of a DatagramTransport's."""

    async def scenario(env: Env) -> None:
        loop = env.loop
        server, first = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
        address = server.get_extra_info("sockname")
        client, second = await loop.create_datagram_endpoint(Datagrams, remote_addr=address)
        # asyncio's is one from 3.12 on.
        is_one = sys.version_info < (3, 12) or isinstance(client, asyncio.DatagramTransport)
        env.log(is_one, client.get_protocol() is second)
        env.log(client.get_extra_info("peername") == address, client.get_extra_info("no", 5))
        client.sendto(b"question")
        data, sender = await first.received.get()
        env.log(data, sender == client.get_extra_info("sockname"))
        server.sendto(b"answer", sender)
        env.log((await second.received.get())[0])
        attempt(env, "elsewhere", client.sendto, b"x", ("127.0.0.2", 1))
        third = Datagrams()
        client.set_protocol(third)
        env.log(client.get_protocol() is third)
        server.sendto(b"to the third", sender)
        env.log((await third.received.get())[0])
        env.log(client.is_closing())
        client.close()
        env.log(client.is_closing(), await third.lost)
        client.close()
        server.abort()
        env.log(server.is_closing(), await first.lost)

    support.compare(scenario)


# ---- pipes


def test_pipes() -> None:
    async def scenario(env: Env) -> None:
        read_end, write_end = os.pipe()
        reader, writer = Recorder(env, "reader"), Recorder(env, "writer")
        await env.loop.connect_read_pipe(lambda: reader, os.fdopen(read_end, "rb", 0))
        await env.loop.connect_write_pipe(lambda: writer, os.fdopen(write_end, "wb", 0))
        writer.transport.write(b"through the pipe")
        await reader.until_received(16)
        writer.transport.close()
        await reader.until("connection_lost")
        await writer.until("connection_lost")

    # The two ends are told in the order in which their events come.
    trace = support.compare(scenario)
    assert ("reader", "data_received", b"through the pipe") in trace


# ---- children


class Child(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.output = bytearray()
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output += data

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


SLEEPER = "import sys, time; print('up', flush=True); time.sleep(60)"


@pytest.mark.parametrize("method", ["terminate", "kill", "send_signal"])
def test_subprocess_transport(method: str) -> None:
    """Every method of a SubprocessTransport's."""

    async def scenario(env: Env) -> None:
        transport, protocol = await env.loop.subprocess_exec(
            Child, sys.executable, "-c", SLEEPER, stdin=None, stderr=None
        )
        env.log(isinstance(transport, asyncio.SubprocessTransport))
        env.log(transport.get_protocol() is protocol, transport.is_closing())
        popen = transport.get_extra_info("subprocess")
        env.log(transport.get_pid() == popen.pid > 0, transport.get_returncode())
        env.log(transport.get_pipe_transport(0), transport.get_pipe_transport(7))
        env.log(isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport))
        await support.eventually(lambda: protocol.output == b"up\n", 20)
        # Not SIGINT, for which Python's own handler would print a traceback.
        arguments = (signal.SIGUSR1,) if method == "send_signal" else ()
        attempt(env, method, getattr(transport, method), *arguments)
        await protocol.lost
        await protocol.exited
        env.log("status", transport.get_returncode())
        attempt(env, "after the end", getattr(transport, method), *arguments)
        other = Child()
        transport.set_protocol(other)
        env.log(transport.get_protocol() is other)
        transport.close()
        env.log(transport.is_closing())
        transport.close()

    support.compare(scenario, timeout=60)


def test_subprocess_shell() -> None:
    async def scenario(env: Env) -> None:
        transport, protocol = await env.loop.subprocess_shell(Child, "echo $((6 * 7)); exit 3")
        await protocol.lost
        env.log(bytes(protocol.output), transport.get_returncode())
        transport.close()

    support.compare(scenario, timeout=60)


# ---- handlers, factories, executors


def test_get_and_set() -> None:
    """The getters give what the setters were given, and refuse what asyncio refuses."""

    async def scenario(env: Env) -> None:
        loop = env.loop

        def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
            return asyncio.Task(coro, loop=loop, **kwargs)

        env.log(loop.get_task_factory())
        loop.set_task_factory(factory)
        env.log(loop.get_task_factory() is factory)
        loop.set_task_factory(None)
        attempt(env, "factory", loop.set_task_factory, 5)
        before = loop.get_exception_handler()
        loop.set_exception_handler(None)
        env.log(loop.get_exception_handler())
        loop.set_exception_handler(before)
        attempt(env, "handler", loop.set_exception_handler, 5)
        loop.call_exception_handler({"message": "for the handler"})
        loop.default_exception_handler({"message": "for the log"})
        attempt(env, "executor", loop.set_default_executor, 5)
        for debug in (True, False):
            loop.set_debug(debug)
            env.log(loop.get_debug())

    support.compare(scenario)


def test_getaddrinfo_and_getnameinfo() -> None:
    async def scenario(env: Env) -> None:
        addresses = await env.loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        env.log(len(addresses), addresses[0][4])
        flags = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        env.log(*await env.loop.getnameinfo(("127.0.0.1", 80), flags))
        env.log(await env.loop.run_in_executor(None, sum, (1, 2)))
        await env.loop.shutdown_default_executor()
        await env.loop.shutdown_asyncgens()

    support.compare(scenario)


def test_handles() -> None:
    """Every method of Handle's and TimerHandle's."""

    async def scenario(env: Env) -> None:
        loop = env.loop
        when = loop.time() + 1000
        for handle in (loop.call_soon(print), loop.call_at(when, print)):
            env.log(isinstance(handle, asyncio.Handle), handle.cancelled())
            if sys.version_info >= (3, 12):
                env.log(type(handle.get_context()))
            if isinstance(handle, asyncio.TimerHandle):
                env.log(handle.when() == when)
            handle.cancel()
            handle.cancel()
            env.log(handle.cancelled())

    support.compare(scenario)
