"""The way to the kernel: how it is chosen, and what happens when the kernel refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import fence
import portable
import pytest
import support
from support import Recorder, eventually

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="about cpploop's own arrangements"
)
DEFAULT = "kqueue" if portable.is_portable() else "epoll"
CHOICES = "auto, kqueue" if portable.is_portable() else "auto, epoll, io_uring"
only_linux = pytest.mark.skipif(portable.is_portable(), reason="about epoll and io_uring")

SHOW = """
import cpploop
info = cpploop.build_info()
loop = cpploop.new_event_loop()
print(info["backend"], loop._backend, info["io_uring"], sep="|")
loop.close()
"""


def shown(source: str = SHOW, **env: str) -> list[str]:
    return support.run_script(source, env=env).stdout.strip().split("|")


def has_io_uring() -> bool:
    return shown(CPPLOOP_BACKEND="io_uring")[0] == "io_uring"


@pytest.fixture
def ring_loop() -> Iterator[Any]:
    import cpploop

    if portable.is_portable():
        pytest.skip("about io_uring")
    loop = cpploop.new_event_loop(backend="io_uring")
    if loop._backend != "io_uring":
        loop.close()
        pytest.skip(f"no io_uring here: {cpploop.build_info()['io_uring']}")
    yield loop
    loop.close()


@pytest.mark.parametrize("choice", ["", "auto", DEFAULT])
def test_the_default(choice: str) -> None:
    name, used, reason = shown(CPPLOOP_BACKEND=choice)
    assert name == used == DEFAULT
    assert reason


def test_io_uring_by_environment_and_by_argument(ring_loop: Any) -> None:
    import cpploop

    assert shown(CPPLOOP_BACKEND="io_uring") == ["io_uring", "io_uring", ""]
    for backend in ("auto", "epoll"):
        loop = cpploop.new_event_loop(backend=backend)
        assert loop._backend == "epoll"
        loop.close()


@only_linux
def test_the_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import cpploop

    monkeypatch.setenv("CPPLOOP_BACKEND", "io_uring")
    loop = cpploop.new_event_loop(backend="epoll")
    assert loop._backend == "epoll"
    loop.close()


def test_a_choice_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import cpploop

    with pytest.raises(ValueError) as info:
        cpploop.new_event_loop(backend="iocp")
    assert str(info.value) == f"backend must be one of {CHOICES}, not 'iocp'"
    monkeypatch.setenv("CPPLOOP_BACKEND", "fast")
    with pytest.raises(ValueError) as info:
        cpploop.new_event_loop()
    assert str(info.value) == f"CPPLOOP_BACKEND must be one of {CHOICES}, not 'fast'"


def test_a_child_class_keeps_its_own_constructor() -> None:
    import cpploop

    class Mine(cpploop.Loop):
        def __init__(self, name: str, *, size: int) -> None:
            super().__init__()
            self.name, self.size = name, size

    loop = Mine("io_uring", size=3)
    assert (loop.name, loop.size) == ("io_uring", 3)
    with pytest.raises(AttributeError):
        loop._backend = "other"  # type: ignore[misc]
    loop.close()


# As container runtimes do it: a filter answers the three calls of io_uring with an errno.
REFUSE = """
import fence, sys
fence.refuse(["io_uring_setup", "io_uring_enter", "io_uring_register"], int(sys.argv[1]))
"""

ECHO = """
import asyncio, cpploop
async def serve(reader, writer):
    while data := await reader.read(100):
        writer.write(data)
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for _ in range(20):
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
    writer.close()
    await writer.wait_closed()
    server.close()
with asyncio.Runner(loop_factory=cpploop.new_event_loop) as runner:
    loop = runner.get_loop()
    runner.run(main())
    info = cpploop.build_info()
    print(info["backend"], loop._backend, info["io_uring"], sep="|")
"""


@only_linux
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS", "ENOMEM"])
def test_refused_by_the_kernel_means_epoll(error: str) -> None:
    """Silently, with the reason in build_info(): Docker's default profile refuses (moby#46762)."""
    import errno

    number = getattr(errno, error)
    result = support.run_script(
        REFUSE + ECHO,
        str(number),
        env={"CPPLOOP_BACKEND": "io_uring"},
        loop="cpploop",
        check=False,
    )
    if result.returncode == fence.CANNOT:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    name, used, reason = result.stdout.strip().split("|")
    assert name == used == "epoll"
    assert reason in (
        f"io_uring refused: io_uring_setup: {os.strerror(number)}",
        "io_uring not built in: liburing was missing",
    )
    assert result.stderr == ""


def test_a_loop_made_here_and_run_there(ring_loop: Any) -> None:
    """A ring has one submitter. The loop goes on where it is run, with what was going on."""
    loop = ring_loop
    rec = Recorder()
    near, far = socket.socketpair()
    near.setblocking(False)

    async def connect() -> Any:
        transport, _ = await loop.create_connection(lambda: rec, sock=near)
        for i in range(20):
            far.send(b".")
            await rec.until_received(i + 1)
        return transport

    transport = loop.run_until_complete(connect())
    far.send(b"for the thread")
    outcome = []

    def elsewhere() -> None:
        async def main() -> None:
            await rec.until_received(34)
            transport.write(b"seen")
            await asyncio.sleep(0.01)

        loop.run_until_complete(main())
        outcome.append(bytes(rec.received))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(20)
    assert outcome == [b"." * 20 + b"for the thread"]
    assert far.recv(100) == b"seen"

    async def back() -> None:
        far.send(b"home")
        await rec.until_received(38)
        transport.close()
        await rec.until("connection_lost")

    loop.run_until_complete(back())
    assert far.recv(1) == b""
    far.close()


async def ringed(loop: Any, rec: Recorder, far: socket.socket, near: socket.socket) -> Any:
    """A transport over NEAR that the ring receives for, because its messages are small."""
    near.setblocking(False)
    transport, _ = await loop.create_connection(lambda: rec, sock=near)
    for i in range(20):
        far.send(b".")
        await rec.until_received(i + 1)
    return transport


def in_a_thread(loop: Any, main: Any) -> None:
    thread = threading.Thread(target=lambda: loop.run_until_complete(main))
    thread.start()
    thread.join(20 * support.TIME_SCALE)
    assert not thread.is_alive()


def test_threads_one_after_the_other(ring_loop: Any) -> None:
    """The next thread is given the identifier of one that has ended; to the kernel they are two."""
    loop = ring_loop
    rec = Recorder()
    near, far = socket.socketpair()
    made = loop.run_until_complete(ringed(loop, rec, far, near))
    for i in range(3):
        far.send(b"next")
        cpu = time.process_time()
        in_a_thread(loop, asyncio.wait_for(rec.until_received(24 + 4 * i), 5 * support.TIME_SCALE))
        in_a_thread(loop, asyncio.sleep(0.2))
        assert time.process_time() - cpu < 0.15 * support.TIME_SCALE
        assert loop._backend == "io_uring"

    async def end() -> None:
        made.close()
        await rec.until("connection_lost")

    loop.run_until_complete(end())
    far.close()


LATE_FILTER = """
import asyncio, errno, socket, sys, time
import cpploop, fence
from support import Recorder
from test_backends import ringed

async def main(what):
    loop = asyncio.get_running_loop()
    assert loop._backend == "io_uring"
    rec = Recorder()
    near, far = socket.socketpair()
    transport = await ringed(loop, rec, far, near)
    one, other = socket.socketpair()
    one.setblocking(False)
    if what == "set":
        # So often in a row that the loop waits in the set.
        for _ in range(30):
            loop.call_later(0.001, other.send, b"w")
            assert await loop.sock_recv(one, 10) == b"w"
    fence.refuse(["io_uring_enter"], errno.EPERM)
    cpu = time.process_time()
    transport.write(b"held, or not")
    far.send(b"through the filter")
    await asyncio.wait_for(rec.until_received(38), 5)
    assert far.recv(100) == b"held, or not"
    other.send(b"w")
    assert await asyncio.wait_for(loop.sock_recv(one, 10), 5) == b"w"
    await asyncio.sleep(0.3)
    assert time.process_time() - cpu < 0.2, "the loop spins"
    print(loop._backend)
    transport.close()
    await rec.until("connection_lost")

with asyncio.Runner(loop_factory=cpploop.new_event_loop) as runner:
    runner.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("what", ["ring", "set"])
def test_a_filter_that_comes_later(ring_loop: Any, what: str) -> None:
    """The loop goes on with epoll, and says so; nothing is lost, nothing spins."""
    result = support.run_script(
        LATE_FILTER, what, env={"CPPLOOP_BACKEND": "io_uring"}, loop="cpploop", check=False
    )
    if result.returncode == fence.CANNOT:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "epoll\n"


def test_a_server_closed_by_another_thread_refuses_at_once(ring_loop: Any) -> None:
    """What the ring has under way holds the listener open until its thread ends it."""
    loop = ring_loop

    async def main() -> None:
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        refused = loop.run_in_executor(None, close_and_try, server, address)
        assert await refused

    def close_and_try(server: Any, address: Any) -> bool:
        # The loop has nothing to do but to wait.
        time.sleep(0.1 * support.TIME_SCALE)
        server.close()
        deadline = time.monotonic() + 5 * support.TIME_SCALE
        while time.monotonic() < deadline:
            try:
                socket.create_connection(address, timeout=1).close()
            except ConnectionRefusedError:
                return True
            except (ConnectionResetError, TimeoutError):
                # It was in the listener's queue when that closed, or found it full.
                continue
            time.sleep(0.001)
        return False

    loop.run_until_complete(main())


def test_a_number_lost_to_its_owner_is_told_of(ring_loop: Any) -> None:
    """The caller closes the socket it gave; the transport hears of that when it reads again."""
    loop = ring_loop
    rec = Recorder()
    near, far = socket.socketpair()

    async def main() -> int:
        transport = await ringed(loop, rec, far, near)
        transport.pause_reading()
        await asyncio.sleep(0.01)
        near.close()
        transport.resume_reading()
        await asyncio.wait_for(rec.until("connection_lost"), 5 * support.TIME_SCALE)
        turns = int(loop.metrics().turns)
        await asyncio.sleep(0.3)
        return int(loop.metrics().turns) - turns

    assert loop.run_until_complete(main()) < 20
    far.close()


def test_a_signal_is_heard_while_the_ring_waits_without_end(ring_loop: Any) -> None:
    """A wait that also submitted does not say that a signal ended it."""
    loop = ring_loop
    far: list[socket.socket] = []

    async def main() -> None:
        near, other = socket.socketpair()
        far.append(other)
        transport, _ = await loop.create_connection(Recorder, sock=near)
        # Two callbacks of one turn: their writes go out with the wait that the signal ends.
        loop.call_soon(transport.write, b"a")
        loop.call_soon(transport.write, b"b")
        try:
            await loop.create_future()
        finally:
            transport.close()

    def interrupt() -> None:
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    task = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    assert time.monotonic() - started < 10
    thread.join()
    assert far[0].recv(10) == b"ab"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(asyncio.sleep(0))
    far[0].close()


def test_many_connections_one_call(ring_loop: Any) -> None:
    """Each gets its own bytes back, whatever the size, small and large by turns."""
    loop = ring_loop

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(4)
                writer.write(head)
                writer.write(await reader.readexactly(int.from_bytes(head, "big")))
                await writer.drain()
        writer.close()

    async def client(address: Any, number: int) -> None:
        reader, writer = await asyncio.open_connection(*address)
        for i, size in enumerate([1] * 12 + [300_000, 1, 5000] + [70] * 12 + [4096, 8192, 100_000]):
            tag = f"{number}:{i};".encode()
            body = (tag * (size // len(tag) + 1))[:size]
            writer.write(size.to_bytes(4, "big") + body)
            assert await reader.readexactly(4 + size) == size.to_bytes(4, "big") + body
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        await asyncio.gather(*(client(address, number) for number in range(100)))
        server.close()
        await asyncio.sleep(0.05)

    loop.run_until_complete(asyncio.wait_for(main(), 30 * support.TIME_SCALE))


def test_closing_without_reading_lets_the_peer_know(ring_loop: Any) -> None:
    """What the ring has under way holds a file open; nobody may have to wait for that."""
    loop = ring_loop
    near, far = socket.socketpair()

    async def main() -> None:
        rec = Recorder()
        transport, _ = await loop.create_connection(lambda: rec, sock=near)
        for i in range(20):
            far.send(b".")
            await rec.until_received(i + 1)
        transport.pause_reading()
        transport.abort()
        await eventually(lambda: "connection_lost" in rec.names())

    loop.run_until_complete(main())
    far.settimeout(5 * support.TIME_SCALE)
    assert far.recv(1) == b""
    far.close()
