"""Each difference that docs/guide/uvloop.md states is looked for, on cpploop and on uvloop.

A row of the page's table begins with the key of its look here. Where uvloop is not installed (it
has no wheel for every Python), cpploop's half still has to be true.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "uvloop.md"

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="the page compares cpploop with uvloop"
)

Look = Callable[[], Awaitable[object]]


@dataclass
class Row:
    """A look that tells the loops apart, and what each answers."""

    look: Look
    ours: object
    uvloops: object
    since: tuple[int, int, int] = (3, 11, 0)


ROWS: dict[str, Row] = {}


def row(
    key: str, ours: object, uvloops: object, since: tuple[int, int, int] = (3, 11, 0)
) -> Callable[[Look], Look]:
    def note(look: Look) -> Look:
        ROWS[key] = Row(look, ours, uvloops, since)
        return look

    return note


def loop_() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def outcome(call: Look) -> object:
    """The name of what is raised, or "works"."""
    try:
        await call()
    except Exception as error:
        return type(error).__name__
    return "works"


async def connected(
    factory: Callable[[], asyncio.BaseProtocol] = asyncio.Protocol,
) -> tuple[Any, socket.socket]:
    """A transport on one end of a pair of sockets, and the other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    transport, _ = await loop_().create_connection(factory, sock=ours)
    return transport, theirs


async def finish(transport: Any, *sockets: socket.socket) -> None:
    transport.abort()
    for sock in sockets:
        sock.close()
    await asyncio.sleep(0.01)


@row("`sock_recvfrom()`", "works", "NotImplementedError")
async def sock_recvfrom() -> object:
    return await outcome(sock_round_trip)


async def sock_round_trip() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        await loop_().sock_sendto(sock, b"to myself", sock.getsockname())
        data, _ = await loop_().sock_recvfrom(sock, 100)
        assert data == b"to myself"


@row("`sendfile()`", "works", "NotImplementedError")
async def sendfile() -> object:
    transport, theirs = await connected()
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 1000)
        file.seek(0)
        result = await outcome(lambda: loop_().sendfile(transport, file, fallback=False))
    await finish(transport, theirs)
    return result


@row("`happy_eyeballs_delay=`", "ConnectionRefusedError", "TypeError")
async def happy_eyeballs() -> object:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        return await outcome(
            lambda: loop_().create_connection(
                asyncio.Protocol, "127.0.0.1", port, happy_eyeballs_delay=0.25
            )
        )


@row("`keep_alive=`", "works", "TypeError", since=(3, 13, 0))
async def keep_alive() -> object:
    async def serve() -> None:
        server = await loop_().create_server(asyncio.Protocol, "127.0.0.1", 0, **option)
        server.close()

    option: dict[str, Any] = {"keep_alive": True}
    return await outcome(serve)


@row("`Server.close_clients()`", True, False, since=(3, 13, 0))
async def close_clients() -> object:
    server = await loop_().create_server(asyncio.Protocol, "127.0.0.1", 0)
    server.close()
    return hasattr(server, "close_clients")


@row("`Server.wait_closed()`", "waits", "returns", since=(3, 12, 1))
async def wait_closed() -> object:
    server = await loop_().create_server(asyncio.Protocol, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        await asyncio.sleep(0.05)
        server.close()
        waiting = asyncio.ensure_future(server.wait_closed())
        await asyncio.sleep(0.05)
        result = "returns" if waiting.done() else "waits"
        client.close()
        await waiting
    return result


@row("`umask=`, `user=`", "works", "ValueError")
async def subprocess_options() -> object:
    async def spawn() -> None:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", "", umask=0o22)
        await child.wait()

    return await outcome(spawn)


@row("a child's standard input", "pipe", "socket")
async def child_stdin() -> object:
    program = "import os, stat; print(int(stat.S_ISSOCK(os.fstat(0).st_mode)))"
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    return "socket" if output.strip() == b"1" else "pipe"


@row("`isinstance(transport, asyncio.Transport)`", True, False)
async def transport_type() -> object:
    transport, theirs = await connected()
    await finish(transport, theirs)
    return isinstance(transport, asyncio.Transport)


@row("`isinstance(handle, asyncio.Handle)`", True, False)
async def handle_type() -> object:
    return isinstance(loop_().call_soon(int), asyncio.Handle)


@row('`get_extra_info("socket")`', "TransportSocket", "PseudoSocket")
async def socket_type() -> object:
    transport, theirs = await connected()
    sock = transport.get_extra_info("socket")
    await finish(transport, theirs)
    return type(sock).__name__


@row("`remove_reader()`", "bool", "NoneType")
async def remove_reader() -> object:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop_().add_reader(ours, int)
        return type(loop_().remove_reader(ours)).__name__


@row("`loop.time()`", "nanoseconds", "milliseconds")
async def time_unit() -> object:
    times = [loop_().time() * 1000 for _ in range(10)]
    whole = all(abs(time - round(time)) < 1e-6 for time in times)
    return "milliseconds" if whole else "nanoseconds"


@row("the low mark", 16 * 1024, 16)
async def low_mark() -> object:
    transport, theirs = await connected()
    low, high = transport.get_write_buffer_limits()
    await finish(transport, theirs)
    assert high == 64 * 1024
    return low


@row("a regular file as a pipe", "ValueError", "SIGABRT")
async def regular_file() -> object:
    async def connect() -> None:
        transport, _ = await loop_().connect_read_pipe(asyncio.Protocol, file)
        transport.close()
        await asyncio.sleep(0.01)

    with tempfile.TemporaryFile() as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return await outcome(connect)


@row("a handler for SIGCHLD", "works", "RuntimeError")
async def sigchld() -> object:
    async def handle() -> None:
        loop_().add_signal_handler(signal.SIGCHLD, int)
        loop_().remove_signal_handler(signal.SIGCHLD)

    return await outcome(handle)


@row("empty datagrams", b"", b"second", since=(3, 13, 0))
async def empty_datagram() -> object:
    """The first datagram that arrives when an empty one and another were sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(("127.0.0.1", 0))
        transport, _ = await loop_().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=sock.getsockname()
        )
        transport.sendto(b"")
        transport.sendto(b"second")
        await asyncio.sleep(0.05)
        data = sock.recv(100)
        transport.close()
        await asyncio.sleep(0.01)
    return data


@row("the scope of an IPv6 literal", 1, 0)
async def ipv6_scope() -> object:
    found = await loop_().getaddrinfo("fe80::1%1", 80, type=socket.SOCK_STREAM)
    return found[0][4][3]


@row("a write on a closed transport", "works", "RuntimeError")
async def write_after_close() -> object:
    async def write() -> None:
        transport.close()
        await asyncio.sleep(0.01)
        transport.write(b"too late")

    transport, theirs = await connected()
    result = await outcome(write)
    theirs.close()
    return result


@row("a `bytearray` that changes after `write()`", {ord("a")}, {ord("a"), ord("b")})
async def changed_buffer() -> object:
    """The bytes that arrive of a buffer that was too large for the kernel to take at once."""
    transport, theirs = await connected()
    buffer = bytearray(b"a" * 1_000_000)
    transport.write(buffer)
    buffer[:] = b"b" * len(buffer)
    arrived: set[int] = set()
    count = 0
    while count < len(buffer):
        data = await loop_().sock_recv(theirs, 1 << 20)
        arrived.update(data)
        count += len(data)
    await finish(transport, theirs)
    return arrived


@row("`transport.anything = …`", "works", "AttributeError")
async def attributes() -> object:
    async def set_one() -> None:
        transport.anything = 1

    transport, theirs = await connected()
    result = await outcome(set_one)
    await finish(transport, theirs)
    return result


@row("`isinstance(transport, asyncio.DatagramTransport)`", True, False)
async def datagram_type() -> object:
    transport, _ = await loop_().create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    transport.close()
    await asyncio.sleep(0.01)
    return isinstance(transport, asyncio.DatagramTransport)


@row("`call_later(0, …)`", "TimerHandle", "Handle")
async def timer_of_no_delay() -> object:
    return type(loop_().call_later(0, int)).__name__


@row("a timer of a fraction of a millisecond", "never early", "early")
async def early_timer() -> object:
    for _ in range(100):
        started = time.monotonic()
        await asyncio.sleep(0.0011)
        if time.monotonic() - started < 0.0011:
            return "early"
    return "never early"


@row("the name of a peer that has left already", "known", "unknown")
async def peer_that_left() -> object:
    name = loop_().create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            name.set_result(transport.get_extra_info("peername"))
            transport.close()

    server = await loop_().create_server(Server, "127.0.0.1", 0)
    with socket.socket() as client:
        # Closing resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.connect(server.sockets[0].getsockname())
    found = await name
    server.close()
    await asyncio.sleep(0.01)
    return "unknown" if found is None else "known"


def factory_of(package: str) -> Callable[[], asyncio.AbstractEventLoop]:
    module: Any = importlib.import_module(package)
    factory: Callable[[], asyncio.AbstractEventLoop] = module.new_event_loop
    return factory


def ask(package: str, look: Look) -> object:
    with asyncio.Runner(loop_factory=factory_of(package)) as runner:
        return runner.run(asyncio.wait_for(look(), 20 * support.TIME_SCALE))


@pytest.mark.parametrize("key", ROWS)
def test_cpploop_is_as_the_page_says(key: str) -> None:
    if sys.version_info < ROWS[key].since:
        pytest.skip("asyncio's own from a later Python on")
    assert ask("cpploop", ROWS[key].look) == ROWS[key].ours


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", ROWS)
def test_uvloop_is_as_the_page_says(key: str) -> None:
    pytest.importorskip("uvloop")
    if sys.version_info < ROWS[key].since:
        pytest.skip("asyncio's own from a later Python on")
    if ROWS[key].uvloops == "SIGABRT":
        # Not in this process.
        call = f"test_uvloop_page.ask('uvloop', test_uvloop_page.ROWS[{key!r}].look)"
        program = f"import test_uvloop_page; {call}"
        here = Path(__file__).resolve().parent
        done = subprocess.run([sys.executable, "-c", program], cwd=here, capture_output=True)
        assert signal.Signals(-done.returncode).name == ROWS[key].uvloops
    else:
        assert ask("uvloop", ROWS[key].look) == ROWS[key].uvloops


def test_every_row_of_the_page_is_looked_at() -> None:
    table = PAGE.read_text().partition("## What behaves differently")[2].partition("\n## ")[0]
    cells = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    rows = [cell for cell in cells[1:] if not re.fullmatch("-+", cell)]
    assert [key for key in ROWS if not any(cell.startswith(key) for cell in rows)] == []
    assert [cell for cell in rows if not any(cell.startswith(key) for key in ROWS)] == []
