"""What a loop does in a server's life, in a few seconds: the training of a profile-guided build.

    python scripts/pgo.py FOLDER

builds a cpploop that counts, and has it run main(). Nothing is measured here. What matters is the
proportion: what servers do most must be most of what is counted. Only the standard library is
needed, because wheels are built where nothing else is.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

import cpploop
from protocols import EchoBufferedProtocol, EchoProtocol, echo_stream

Loop = asyncio.AbstractEventLoop
SMALL = bytes(1024)
LARGE = bytes(100 * 1024)
REQUEST = b"GET /things/1 HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\n"


def nothing(*_: object) -> None:
    """A callback that does nothing."""


# ---- the schedule -------------------------------------------------------------------------------


async def callbacks() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(60):
        for _ in range(200):
            loop.call_soon(nothing)
            loop.call_soon(nothing, 1, 2, 3)
        loop.call_soon(nothing).cancel()
        await asyncio.sleep(0)
    done = loop.create_future()

    def again(left: int) -> None:
        if left:
            loop.call_soon(again, left - 1)
        else:
            done.set_result(None)

    again(10_000)
    await done


async def timers() -> None:
    loop = asyncio.get_running_loop()
    pending = [loop.call_later(60, nothing) for _ in range(500)]
    for number in range(10_000):
        pending[number % 500].cancel()
        pending[number % 500] = loop.call_later(60, nothing)
    for handle in pending:
        handle.cancel()
    now = loop.time()
    for number in range(5_000):
        loop.call_at(now + (number * 7919 % 5_000) * 1e-6, nothing)
    await asyncio.sleep(0.02)
    for _ in range(200):
        async with asyncio.timeout(10):
            await asyncio.sleep(0.0001)


async def tasks() -> None:
    for _ in range(5_000):
        await asyncio.sleep(0)
    for _ in range(40):
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(100)))
    queue: asyncio.Queue[int] = asyncio.Queue(10)

    async def produce() -> None:
        for number in range(3_000):
            await queue.put(number)

    producer = asyncio.ensure_future(produce())
    for _ in range(3_000):
        await queue.get()
    await producer


async def threads() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(300):
        await loop.run_in_executor(None, nothing)

    def post() -> None:
        for _ in range(5_000):
            loop.call_soon_threadsafe(nothing)

    poster = threading.Thread(target=post)
    poster.start()
    while poster.is_alive():
        await asyncio.sleep(0.001)
    poster.join()


# ---- servers and their clients ------------------------------------------------------------------


class Http(EchoProtocol):
    """Answers as servers do: a head and a body, a time-out for each request, in parts of a turn."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.loop = asyncio.get_running_loop()
        self.idle = self.loop.call_later(30, nothing)

    def connection_lost(self, exc: Exception | None) -> None:
        self.idle.cancel()

    def data_received(self, data: bytes) -> None:
        self.idle.cancel()
        for _ in range(data.count(b"\r\n\r\n")):
            self.loop.create_task(self.answer())

    async def answer(self) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(HEAD)
        self.transport.write(b"Hello, world!")
        self.idle.cancel()
        self.idle = self.loop.call_later(30, nothing)


class Client(asyncio.Protocol):
    """Sends a message and waits for as many bytes as it expects back, some times."""

    def __init__(self, message: bytes, expected: int, rounds: int) -> None:
        self.message, self.expected, self.rounds = message, expected, rounds
        self.missing = expected
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.missing -= len(data)
        if self.missing > 0:
            return
        self.rounds -= 1
        if not self.rounds:
            self.transport.close()
            return
        self.missing += self.expected
        self.transport.write(self.message)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and not self.rounds:
            self.done.set_result(None)
        else:
            self.done.set_exception(exc or ConnectionResetError("the server hung up"))


Context = ssl.SSLContext | None
Contexts = tuple[Context, Context]
PLAIN: Contexts = (None, None)


async def rounds(
    protocol: Callable[[], asyncio.BaseProtocol],
    message: bytes,
    expected: int,
    shape: tuple[int, int],
    contexts: Contexts = PLAIN,
) -> None:
    """So many connections, each with so many messages, all at the same time."""
    connections, messages = shape
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=contexts[0])
    async with server:
        address = server.sockets[0].getsockname()[:2]
        clients = []
        for _ in range(connections):
            _, client = await loop.create_connection(
                lambda: Client(message, expected, messages), *address, ssl=contexts[1]
            )
            clients.append(client)
        await asyncio.gather(*(client.done for client in clients))


async def protocols(contexts: Contexts = PLAIN) -> None:
    for factory in (EchoProtocol, EchoBufferedProtocol):
        await rounds(factory, SMALL, len(SMALL), (1, 1_000), contexts)
        await rounds(factory, SMALL, len(SMALL), (32, 100), contexts)
        await rounds(factory, LARGE, len(LARGE), (4, 30), contexts)
    await rounds(Http, REQUEST, len(HEAD) + 13, (32, 150), contexts)
    await rounds(Http, REQUEST * 8, 8 * (len(HEAD) + 13), (4, 50), contexts)


async def streams(contexts: Contexts = PLAIN) -> None:
    server = await asyncio.start_server(echo_stream, "127.0.0.1", 0, ssl=contexts[0])

    async def client(message: bytes, count: int) -> None:
        address = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(*address, ssl=contexts[1])
        for _ in range(count):
            writer.write(message)
            await reader.readexactly(len(message))
        writer.writelines([b"a line of some length\n"] * 500)
        for _ in range(500):
            await reader.readline()
        writer.close()
        await writer.wait_closed()

    async with server:
        await client(SMALL, 500)
        await asyncio.gather(*(client(SMALL, 60) for _ in range(32)))
        await asyncio.gather(*(client(LARGE, 20) for _ in range(4)))


async def bulk(contexts: Contexts = PLAIN) -> None:
    """More than the peer reads at once: flow control, on both sides."""
    received: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        total = 0
        while data := await reader.read(64 * 1024):
            total += len(data)
            await asyncio.sleep(0)
        writer.close()
        received.set_result(total)

    server = await asyncio.start_server(read, "127.0.0.1", 0, ssl=contexts[0], limit=64 * 1024)
    async with server:
        address = server.sockets[0].getsockname()[:2]
        _, writer = await asyncio.open_connection(*address, ssl=contexts[1])
        for _ in range(100):
            writer.write(LARGE)
            await writer.drain()
        writer.close()
        await received


async def connections(contexts: Contexts = PLAIN) -> None:
    for _ in range(20 if contexts[0] else 300):
        await rounds(EchoProtocol, b"ping", 4, (1, 1), contexts)


# ---- what is not a stream -----------------------------------------------------------------------


async def sockets() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)

        async def echo() -> None:
            while data := await loop.sock_recv(theirs, 64 * 1024):
                await loop.sock_sendall(theirs, data)

        task = asyncio.ensure_future(echo())
        buffer = bytearray(64 * 1024)
        for number in range(2_000):
            await loop.sock_sendall(ours, SMALL)
            if number % 2:
                await loop.sock_recv(ours, 64 * 1024)
            else:
                await loop.sock_recv_into(ours, buffer)
        ours.shutdown(socket.SHUT_WR)
        await task


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, left: int) -> None:
        self.left = left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.left -= 1
        if self.left > 0:
            self.transport.sendto(data, addr)
        elif not self.done.done():
            self.done.set_result(None)


async def datagrams() -> None:
    loop = asyncio.get_running_loop()
    here = ("127.0.0.1", 0)
    ours, _ = await loop.create_datagram_endpoint(lambda: Datagrams(1_500), local_addr=here)
    theirs, last = await loop.create_datagram_endpoint(lambda: Datagrams(1_500), local_addr=here)
    for _ in range(4):
        ours.sendto(SMALL, theirs.get_extra_info("sockname"))
    # A full buffer may have lost all of them.
    await asyncio.wait([last.done], timeout=5)
    ours.close()
    theirs.close()


async def children() -> None:
    for _ in range(5):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-c", "print(input())"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        await child.communicate(b"hello\n")


# ---- all of it ----------------------------------------------------------------------------------


def anonymous() -> Contexts:
    """Contexts that need no certificate; past the handshake TLS is the same with one.

    Raises ssl.SSLError where the TLS library has been built without what that takes.
    """
    contexts = []
    for purpose in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(purpose)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AECDH:@SECLEVEL=0")
        contexts.append(context)
    return contexts[0], contexts[1]


def steps() -> Iterator[Callable[[], Awaitable[None]]]:
    yield from (callbacks, timers, tasks, threads)
    yield from (protocols, streams, bulk, connections)
    yield from (sockets, datagrams, children)
    try:
        contexts = anonymous()
    except ssl.SSLError as error:
        print(f"cpploop: the profile is without TLS: {error}", file=sys.stderr)
        return
    for step in (protocols, streams, bulk, connections):
        yield lambda step=step: step(contexts)


def main() -> None:
    """Runs every step, each on a loop of its own."""
    if cpploop.build_info()["pgo"] != "generate":
        sys.exit(f"training is for a build that counts; {cpploop.__file__} does not")
    for step in steps():

        async def run(step: Callable[[], Awaitable[None]] = step) -> None:
            await asyncio.wait_for(step(), 120)

        cpploop.run(run())
