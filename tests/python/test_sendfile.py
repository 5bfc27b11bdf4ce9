"""loop.sendfile and loop.sock_sendfile.

uv#228 and #549 (missing in uvloop), aiohttp#5149 (files cut short), #1093 (out
of order with earlier writes), C13 (aiohttp#1412, a duplicated descriptor made the loop spin).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import support

SIZE = 300_000
CONTENT = bytes(index * 7 % 251 for index in range(SIZE))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sendfile") / "file"
    path.write_bytes(CONTENT)
    return path


@contextlib.contextmanager
def counting_sendfile(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What os.sendfile was asked for and gave, call by call."""
    sent: list[int] = []
    original = os.sendfile

    def sendfile(*args: Any) -> int:
        count = original(*args)
        sent.append(count)
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "sendfile", sendfile)
        yield sent


async def outcome_of(awaitable: Any) -> tuple[Any, ...]:
    try:
        return ("returned", await asyncio.wait_for(awaitable, 10))
    except Exception as exc:
        return ("raised", type(exc).__name__, support.normalise(str(exc)))


async def collect(peer: socket.socket, into: bytearray) -> None:
    """Read from PEER until its end, or until cancelled."""
    with contextlib.suppress(ConnectionError):
        while True:
            try:
                chunk = peer.recv(1 << 16)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not chunk:
                return
            into += chunk
            await asyncio.sleep(0)


async def came(received: bytearray, size: int) -> None:
    await support.eventually(lambda: len(received) >= size)


@contextlib.asynccontextmanager
async def reading(peer: socket.socket) -> AsyncIterator[bytearray]:
    """Reads what comes to PEER beside what the block does."""
    received = bytearray()
    task = asyncio.ensure_future(collect(peer, received))
    try:
        yield received
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --------------------------------------------------------------------------- over a transport


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_zero_copy(run: Any, path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel sends, and every byte of the file comes out once."""

    async def main(env: support.Env) -> None:
        async with support.transport_pair(support.Recorder(), kind) as (transport, peer):
            with path.open("rb") as file, counting_sendfile(monkeypatch) as sent:
                async with reading(peer) as received:
                    assert await env.loop.sendfile(transport, file, fallback=False) == SIZE
                    await support.eventually(lambda: len(received) >= SIZE)
                assert received == CONTENT
                assert sum(sent) == SIZE
                assert file.tell() == SIZE

    run(main)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_behind_earlier_writes_and_before_later_ones(run: Any, path: Path, kind: str) -> None:
    """aiohttp#1093: the head of an answer comes before the file, also when it was still queued."""

    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder, kind) as (transport, peer):
            head = os.urandom(2_000_000)
            with path.open("rb") as file:
                transport.write(head)
                assert transport.get_write_buffer_size() > 0
                async with reading(peer) as received:
                    assert await env.loop.sendfile(transport, file) == SIZE
                    transport.write(b"tail one ")
                    assert await env.loop.sendfile(transport, file, 10, 20) == 20
                    transport.writelines([b"tail", b" two"])
                    transport.close()
                    await recorder.until("connection_lost")
                    await support.eventually(lambda: received.endswith(b"tail two"))
                    expected = head + CONTENT + b"tail one " + CONTENT[10:30] + b"tail two"
                    assert received == expected

    run(main)


EDGES: list[tuple[Any, Any]] = [
    (0, None),
    (0, SIZE),
    (0, SIZE + 1),
    (0, 10 * SIZE),
    (100, None),
    (100, 1000),
    (SIZE - 1, None),
    (SIZE, None),
    (SIZE + 100, None),
    (SIZE + 100, 10),
    (SIZE - 10, 100),
    (0, 1),
    (0, 0),
    (0, -1),
    (-1, None),
    (-1, 10),
    (0, 2.5),
    (1.5, None),
    ("0", None),
    (None, None),
    (0, "10"),
]


@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "sock"])
@pytest.mark.parametrize("fallback", [True, False])
def test_offsets_and_counts(
    path: Path, kind: str, fallback: bool, certs: support.Certificates
) -> None:
    """aiohttp#5149: count=None is the whole rest; result, bytes and tell() are asyncio's."""

    async def scenario(env: support.Env) -> None:
        for offset, count in EDGES:
            async with target(env, kind, certs) as (call, received):
                with path.open("rb") as file:
                    file.seek(7)
                    outcome = await outcome_of(call(file, offset, count, fallback=fallback))
                    env.log(offset, count, *outcome)
                    env.log("position", file.tell())
                expected = outcome[1] if outcome[0] == "returned" else 0
                await came(received, expected)
                env.log("received", len(received), hashlib.sha256(received).hexdigest())
                if kind == "tcp" and outcome[0] == "returned":
                    assert received == CONTENT[offset or 0 :][:expected]

    support.compare(scenario, timeout=60)


@contextlib.asynccontextmanager
async def target(
    env: support.Env, kind: str, certs: support.Certificates
) -> AsyncIterator[tuple[Callable[..., Any], bytearray]]:
    """(loop.sendfile or loop.sock_sendfile bound to something to send to, what came out)."""
    loop = env.loop
    if kind == "sock":
        ours, peer = support.tcp_pair()
        with ours, peer:
            async with reading(peer) as received:

                def sock_call(*args: Any, **kwargs: Any) -> Any:
                    return loop.sock_sendfile(ours, *args, **kwargs)

                yield sock_call, received
        return
    if kind != "tls":
        async with support.transport_pair(support.Recorder(), kind) as (transport, peer):
            async with reading(peer) as received:

                def call(*args: Any, **kwargs: Any) -> Any:
                    return loop.sendfile(transport, *args, **kwargs)

                yield call, received
        return
    server_side = support.Recorder()
    server = await loop.create_server(
        lambda: server_side, "127.0.0.1", 0, ssl=certs.server_context()
    )
    address = server.sockets[0].getsockname()
    client_side = support.Recorder()
    transport, _ = await loop.create_connection(
        lambda: client_side, *address, ssl=certs.client_context(), server_hostname="localhost"
    )

    def tls_call(*args: Any, **kwargs: Any) -> Any:
        return loop.sendfile(transport, *args, **kwargs)

    try:
        yield tls_call, server_side.received
    finally:
        await server_side.until("connection_made")
        transport.abort()
        server_side.transport.abort()
        await client_side.until("connection_lost")
        await server_side.until("connection_lost")
        server.close()
        await server.wait_closed()


def files_of_other_kinds() -> dict[str, Callable[[Path], Any]]:
    def pipe(path: Path) -> Any:
        reader, writer = os.pipe()
        os.write(writer, b"piped bytes")
        os.close(writer)
        return os.fdopen(reader, "rb")

    def closed(path: Path) -> Any:
        file = path.open("rb")
        file.close()
        return file

    return {
        "text": lambda path: path.open(encoding="latin-1"),
        "empty": lambda path: open(os.devnull, "rb"),
        "bytesio": lambda path: io.BytesIO(b"bytes in memory"),
        "stringio": lambda path: io.StringIO("text in memory"),
        "pipe": pipe,
        "directory": lambda path: _Directory(path.parent),
        "closed": closed,
        "none": lambda path: contextlib.nullcontext(None),
        "number": lambda path: contextlib.nullcontext(5),
        "unbuffered": lambda path: path.open("rb", buffering=0),
        "written to": lambda path: path.open("r+b"),
    }


class _Directory:
    """A directory's descriptor with the methods of a file."""

    mode = "rb"

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def fileno(self) -> int:
        return self.fd

    def readinto(self, buffer: Any) -> int:
        return os.readv(self.fd, [buffer])

    def seek(self, offset: int) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        os.close(self.fd)


@pytest.mark.parametrize("what", files_of_other_kinds())
@pytest.mark.parametrize("kind", ["tcp", "tls", "sock"])
@pytest.mark.parametrize("fallback", [True, False])
def test_files_of_other_kinds(
    path: Path, what: str, kind: str, fallback: bool, certs: support.Certificates
) -> None:
    async def scenario(env: support.Env) -> None:
        file = files_of_other_kinds()[what](path)
        context = contextlib.nullcontext(file) if what == "closed" else file
        with context as opened:
            async with target(env, kind, certs) as (call, received):
                outcome = await outcome_of(call(opened, 0, None, fallback=fallback))
                env.log(*outcome)
                expected = outcome[1] if outcome[0] == "returned" else 0
                await came(received, expected)
                env.log("received", bytes(received))

    support.compare(scenario)


def test_file_position_without_offset(run: Any, path: Path) -> None:
    """The offset counts from the start of the file, wherever the file stands."""

    async def main(env: support.Env) -> None:
        async with support.transport_pair(support.Recorder()) as (transport, peer):
            with path.open("rb") as file:
                file.seek(1000)
                async with reading(peer) as received:
                    assert await env.loop.sendfile(transport, file, count=50) == 50
                    await support.eventually(lambda: len(received) >= 50)
                    assert received == CONTENT[:50]
                assert file.tell() == 50
                assert file.read(5) == CONTENT[50:55]

    run(main)


# --------------------------------------------------------------------------- refusals


def test_a_closing_transport() -> None:
    async def scenario(env: support.Env) -> None:
        for end in ("close", "abort"):
            async with support.transport_pair(support.Recorder()) as (transport, _):
                getattr(transport, end)()
                file: Any = io.BytesIO(b"x")
                env.log(*await outcome_of(env.loop.sendfile(transport, file)))

    support.compare(scenario)


def test_transports_that_cannot(run: Any) -> None:
    async def main(env: support.Env) -> None:
        class Other(asyncio.Transport):
            def is_closing(self) -> bool:
                return False

        file: Any = io.BytesIO(b"x")
        for fallback in (True, False):
            with pytest.raises(RuntimeError, match="sendfile is not supported for transport"):
                await env.loop.sendfile(Other(), file, fallback=fallback)

    run(main)


def test_not_available(run: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without os.sendfile: SendfileNotAvailableError, or the fallback."""
    monkeypatch.delattr(os, "sendfile")

    async def main(env: support.Env) -> None:
        async with support.transport_pair(support.Recorder()) as (transport, peer):
            with path.open("rb") as file:
                with pytest.raises(asyncio.SendfileNotAvailableError):
                    await env.loop.sendfile(transport, file, fallback=False)
                async with reading(peer) as received:
                    assert await env.loop.sendfile(transport, file) == SIZE
                    await support.eventually(lambda: len(received) >= SIZE)
                    assert received == CONTENT
        ours, peer = support.tcp_pair()
        with ours, peer, path.open("rb") as file:
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await env.loop.sock_sendfile(ours, file, fallback=False)
            async with reading(peer) as received:
                assert await env.loop.sock_sendfile(ours, file) == SIZE
                await support.eventually(lambda: len(received) >= SIZE)
                assert received == CONTENT

    run(main)


def test_sockets_that_cannot() -> None:
    async def scenario(env: support.Env) -> None:
        loop = env.loop
        file: Any = io.BytesIO(b"x")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            env.log(*await outcome_of(loop.sock_sendfile(sock, file)))
        with socket.socket() as sock:
            sock.setblocking(False)
            env.log(*await outcome_of(loop.sock_sendfile(sock, file)))
        env.log(*await outcome_of(loop.sock_sendfile(sock, file)))

    support.compare(scenario)


def test_debug_mode_refuses_blocking_sockets() -> None:
    async def scenario(env: support.Env) -> None:
        ours, peer = support.tcp_pair()
        with ours, peer:
            ours.setblocking(True)
            env.log(*await outcome_of(env.loop.sock_sendfile(ours, io.BytesIO(b"x"))))

    support.compare(scenario, debug=True)


# --------------------------------------------------------------------------- what goes on meanwhile


def test_writing_meanwhile_is_refused(path: Path) -> None:
    async def scenario(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            await support.fill(transport)
            with path.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await support.turns(2)
                for write in (
                    lambda: transport.write(b"x"),
                    lambda: transport.writelines([b"x"]),
                    lambda: transport.write(b""),
                ):
                    try:
                        write()
                    except RuntimeError as exc:
                        env.log("refused", str(exc))
                async with reading(peer):
                    env.log("sent", await sending)
                    transport.write(b"again")

    support.compare(scenario)


def test_cancelled_before_it_began(loop_name: str, run: Any, path: Path) -> None:
    """Cancelled while earlier writes go out, it leaves a transport that works."""
    support.needs_cpploop(loop_name, "its transport refuses every write from then on")

    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            filled = await support.fill(transport)
            with path.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await support.turns(2)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            assert transport.is_reading()
            async with reading(peer) as received:
                transport.write(b"again")
                await support.eventually(lambda: len(received) == filled + 5)
                assert received.endswith(b"again")
            peer.send(b"x")
            await recorder.until_received(1)

    run(main)


def test_data_that_comes_meanwhile_waits(run: Any, path: Path) -> None:
    """Reading is paused while a file is sent, and what came is delivered afterwards."""

    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            with path.open("rb") as file:
                await support.fill(transport)
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await support.turns(2)
                peer.send(b"meanwhile")
                await asyncio.sleep(0.02)
                assert recorder.received == b""
                async with reading(peer):
                    assert await sending == SIZE
                    await recorder.until_received(9)
                assert recorder.received == b"meanwhile"
                assert transport.is_reading()

    run(main)


def test_a_paused_transport_stays_paused(run: Any, path: Path) -> None:
    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            transport.pause_reading()
            with path.open("rb") as file:
                async with reading(peer):
                    assert await env.loop.sendfile(transport, file) == SIZE
            assert not transport.is_reading()
            peer.send(b"x")
            await asyncio.sleep(0.02)
            assert recorder.received == b""
            transport.resume_reading()
            await recorder.until_received(1)

    run(main)


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_watermarks(run: Any, path: Path, kind: str, certs: support.Certificates) -> None:
    """A peer that does not read: pause_writing before the file, resume_writing in the end."""

    async def main(env: support.Env) -> None:
        if kind == "tls":
            async with target(env, kind, certs) as (call, received):
                with path.open("rb") as file:
                    for _ in range(3):
                        file.seek(0)
                        assert await call(file) == SIZE
                    await support.eventually(lambda: len(received) >= 3 * SIZE)
            return
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            transport.set_write_buffer_limits(high=1000, low=100)
            transport.write(bytes(5_000_000))
            assert recorder.names().count("pause_writing") == 1
            with path.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await asyncio.sleep(0.02)
                assert not sending.done()
                async with reading(peer):
                    assert await sending == SIZE
                    await recorder.until("resume_writing")
            assert recorder.names().count("resume_writing") == 1

    run(main)


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_goes_in_the_middle(run: Any, how: str, queued: bool, tmp_path: Path) -> None:
    """ConnectionError or the count so far, one connection_lost, and no spinning loop."""
    large = tmp_path / "large"
    large.write_bytes(bytes(8_000_000))

    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            with large.open("rb") as file:
                if queued:
                    await support.fill(transport)
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await asyncio.sleep(0.02)
                assert not sending.done()
                if how == "close":
                    peer.close()
                else:
                    support.reset(peer)
                with pytest.raises((ConnectionError, asyncio.SendfileNotAvailableError, OSError)):
                    await asyncio.wait_for(sending, 10)
            transport.abort()
            await recorder.until("connection_lost")
            await support.assert_idle()
            assert recorder.count("connection_lost") == 1
        env.take_logs()
        env.take_errors()

    run(main)


@pytest.mark.parametrize("end", ["close", "abort"])
def test_a_transport_closed_in_the_middle(
    loop_name: str, run: Any, end: str, tmp_path: Path
) -> None:
    """The sending ends with it. On asyncio it may wait for ever."""
    large = tmp_path / "large"
    large.write_bytes(bytes(8_000_000))

    async def main(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, peer):
            with large.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await asyncio.sleep(0.02)
                getattr(transport, end)()
                async with reading(peer) as received:
                    limit = 5 if loop_name == "cpploop" else 0.1
                    outcome = await outcome_of(asyncio.wait_for(sending, limit))
                    assert outcome[1] != "TimeoutError" or loop_name == "asyncio", outcome
                    await recorder.until("connection_lost")
                    assert bytes(received) == bytes(len(received))
                assert recorder.count("connection_lost") == 1
        env.take_logs()
        env.take_errors()

    run(main)


@pytest.mark.parametrize("over", ["transport", "sock"])
def test_cancelled_in_the_middle(run: Any, over: str, tmp_path: Path) -> None:
    """Afterwards the connection works, nothing spins, and the file stands where it stopped."""
    large = tmp_path / "large"
    large.write_bytes(bytes(8_000_000))

    async def main(env: support.Env) -> None:
        if over == "sock":
            ours, peer = support.tcp_pair()
            with ours, peer, large.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sock_sendfile(ours, file))
                await asyncio.sleep(0.02)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                await support.assert_idle()
                async with reading(peer) as received:
                    # The kernel's last answer comes in a callback that finds it cancelled.
                    await env.loop.sock_sendall(ours, b"end")
                    await support.eventually(lambda: received.endswith(b"end"))
                assert 0 < len(received) < 8_000_000
            return
        async with support.transport_pair(support.Recorder()) as (transport, peer):
            with large.open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await asyncio.sleep(0.02)
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                await support.assert_idle()
                async with reading(peer) as received:
                    transport.write(b"end")
                    await support.eventually(lambda: received.endswith(b"end"))
                assert 0 < len(received) < 8_000_000

    run(main)


def test_many_files_one_after_another_and_at_once(run: Any, path: Path) -> None:
    """Descriptors are duplicated for each and given back: no leak, no mix-up (C13)."""

    async def main(env: support.Env) -> None:
        async def one(number: int) -> None:
            async with support.transport_pair(support.Recorder()) as (transport, peer):
                with path.open("rb") as file:
                    async with reading(peer) as received:
                        start = number * 100
                        for _ in range(3):
                            transport.write(b"%04d" % number)
                            await env.loop.sendfile(transport, file, start, 5000)
                        await support.eventually(lambda: len(received) >= 15012)
                        expected = b"%04d" % number + CONTENT[start : start + 5000]
                        assert received == expected * 3

        await asyncio.gather(*map(one, range(20)))
        await support.assert_idle()

    run(main)


def test_two_at_once_over_one_transport(run: Any, path: Path) -> None:
    """The second is refused and does not disturb the first."""

    async def main(env: support.Env) -> None:
        async with support.transport_pair(support.Recorder()) as (transport, peer):
            filled = await support.fill(transport)
            with path.open("rb") as one, path.open("rb") as two:
                first = asyncio.ensure_future(env.loop.sendfile(transport, one, 0, 100))
                await support.turns(2)
                # asyncio's own table of transports misses it by then: KeyError.
                with pytest.raises((RuntimeError, KeyError)):
                    await env.loop.sendfile(transport, two, 0, 100)
                with pytest.raises(RuntimeError, match="sendfile is in progress"):
                    transport.write(b"x")
                async with reading(peer) as received:
                    assert await first == 100
                    await support.eventually(lambda: len(received) == filled + 100)
            assert transport.is_reading()

    run(main)
