"""System calls that fail at random: needs a cpploop that was built with CPPLOOP_FAULTS.

    scripts/venv.sh --define CPPLOOP_FAULTS=ON newest build/venvs/faults
    build/venvs/faults/bin/python -m pytest tests/python/test_faults.py

What must hold, whatever the kernel answers: no crash and no hang, bytes that are a prefix of what
was sent, exactly one connection_lost(), every descriptor closed once, and a loop that rests when
there is nothing to do. ``CPPLOOP_LONG=1`` tries many more seeds. asyncio makes its system calls
itself and has no faults, so these run on cpploop alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from support import Env

try:
    from cpploop import _native
except ImportError:
    _native = None  # type: ignore[assignment]

pytestmark = [
    pytest.mark.skipif(
        not hasattr(_native, "_set_faults"), reason="cpploop was built without CPPLOOP_FAULTS"
    ),
    pytest.mark.skipif(
        "cpploop" not in support.selected_loops(), reason="about cpploop, which is not selected"
    ),
]

native: Any = _native
SEEDS = range(200 if support.LONG else 4)
ROUNDS = 25
# Of all system calls. A connection makes some twenty.
HARD = 0.04
QUIET = {"benign": 0.1, "pressure": 0.1}


@contextlib.contextmanager
def faults(seed: int, **rates: float) -> Iterator[None]:
    kinds = [rates.get(name, 0.0) for name in ("benign", "pressure", "hard")]
    native._set_faults(seed, *kinds)
    try:
        yield
    finally:
        native._set_faults(0)


@contextlib.contextmanager
def refused(call: str, error: int) -> Iterator[None]:
    native._refuse_call(call, error)
    try:
        yield
    finally:
        native._refuse_call(call, 0)


def cpploop_run(scenario: Any, **options: Any) -> None:
    """support.run, and an account of descriptors that comes out even."""
    owned = native._ledger_figures()["owned"]
    support.run(support.factory("cpploop"), scenario, **options)
    assert native._ledger_figures()["owned"] == owned


def only_os_errors(env: Env) -> None:
    """What the handler was told of is what the kernel answered."""
    errors, env.errors = env.errors, []
    for context in errors:
        assert isinstance(context.get("exception"), OSError), context
    for text in env.take_logs():
        assert text == "socket.send() raised exception.", text


def was_refused(env: Env) -> bool:
    """Whether epoll took no more descriptors: as on asyncio, a pipe is not watched then."""
    errors = [context.get("exception") for context in env.errors]
    return any(getattr(exc, "errno", 0) in (errno.ENOMEM, errno.ENOSPC) for exc in errors)


class Peer:
    """The far end of a connection, without faults: counts what comes and sends what it has."""

    def __init__(self, sock: socket.socket, sends: bytes) -> None:
        self.sock = sock
        self.received = bytearray()
        self._left = memoryview(sends)
        self._ended = False

    def step(self) -> None:
        """As much as goes without waiting."""
        with contextlib.suppress(OSError):
            while self._left:
                self._left = self._left[self.sock.send(self._left) :]
            if not self._ended:
                self._ended = True
                self.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while data := self.sock.recv(1 << 16):
                self.received += data


class Protocol(asyncio.Protocol):
    """Sends, receives, and counts its end."""

    def __init__(self, rng: random.Random, sends: bytes) -> None:
        self.rng = rng
        self.sends = sends
        self.received = bytearray()
        self.calls: list[str] = []
        self.resume = asyncio.Event()
        self.resume.set()

    def connection_made(self, transport: Any) -> None:
        self.calls.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        # TLS knows no half that is left open, and says so.
        return self.transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self.resume.clear()

    def resume_writing(self) -> None:
        self.resume.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        assert exc is None or isinstance(exc, OSError), exc
        self.calls.append("lost")
        self.resume.set()

    async def send_all(self, *, close: bool = True) -> None:
        view = memoryview(self.sends)
        while view and not self.transport.is_closing():
            size = self.rng.choice((1, 10, 5000, 100_000))
            if self.rng.random() < 0.3:
                self.transport.writelines([view[:size], b"", view[size : 2 * size]])
                size *= 2
            else:
                self.transport.write(view[:size])
            view = view[size:]
            await self.resume.wait()
        if close:
            self.transport.close()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("rates", [{**QUIET, "hard": HARD}, QUIET], ids=["hard", "quiet"])
def test_streams(kind: str, seed: int, rates: dict[str, float]) -> None:
    rng = random.Random(seed)

    async def one(number: int) -> None:
        ours, theirs = support.PAIRS[kind]()
        with theirs:
            up, down = (rng.randbytes(rng.choice((1, 700, 300_000))) for _ in range(2))
            peer, protocol = Peer(theirs, down), Protocol(rng, up)
            try:
                await support.attach(ours, protocol)
            except OSError:
                ours.close()
                return
            sending = asyncio.ensure_future(protocol.send_all())
            deadline = time.monotonic() + 10 * support.TIME_SCALE
            while "lost" not in protocol.calls:
                peer.step()
                assert time.monotonic() < deadline, f"connection {number} hangs: {protocol.calls}"
                await asyncio.sleep(0)
            await sending
            peer.step()
            await support.turns(3)
            assert protocol.calls.count("lost") == 1
            assert down.startswith(protocol.received)
            assert up.startswith(peer.received)
            if "hard" not in rates:
                # Reading ends when the transport closes, and not before everything is sent.
                assert peer.received == up

    async def main(env: Env) -> None:
        with faults(seed, **rates):
            for number in range(ROUNDS):
                await one(number)
        await support.assert_idle()
        only_os_errors(env)

    cpploop_run(main, timeout=60)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rates", [{**QUIET, "hard": HARD / 4}, QUIET], ids=["hard", "quiet"])
def test_tls(seed: int, rates: dict[str, float], certs: support.Certificates) -> None:
    """Faults below TLS: both ends hear of a hard one once, and neither of a wrong byte."""
    rng = random.Random(seed)

    async def connect(env: Env, client: Protocol, address: Any) -> bool:
        try:
            async with asyncio.timeout(10 * support.TIME_SCALE):
                await env.loop.create_connection(
                    lambda: client,
                    *address,
                    ssl=certs.client_context(),
                    server_hostname="localhost",
                    ssl_shutdown_timeout=1,
                )
        except OSError as exc:
            assert "hard" in rates
            # The kernel's time-out has a number; ours is a handshake that hangs.
            assert not isinstance(exc, TimeoutError) or exc.errno
            return False
        return True

    async def one(env: Env) -> None:
        up, down = (rng.randbytes(rng.choice((1, 700, 100_000))) for _ in range(2))
        client, served = Protocol(rng, up), Protocol(rng, down)
        server = await env.loop.create_server(
            lambda: served, "127.0.0.1", 0, ssl=certs.server_context(), ssl_shutdown_timeout=1
        )
        with faults(rng.randrange(1 << 40), **rates):
            if await connect(env, client, server.sockets[0].getsockname()):
                await exchange(client, served)
                client.transport.close()
            await support.eventually(lambda: _is_over(client) and _is_over(served))
        await support.turns(3)
        for end, sent in ((client, down), (served, up)):
            assert end.calls.count("made") == end.calls.count("lost") <= 1
            assert sent.startswith(end.received)
            if "hard" not in rates:
                assert end.received == sent
        server.close()
        await server.wait_closed()

    async def main(env: Env) -> None:
        for _ in range(ROUNDS // 2):
            await one(env)
        await support.assert_idle()
        only_os_errors(env)

    cpploop_run(main, timeout=60)


async def exchange(client: Protocol, served: Protocol) -> None:
    """Both send all they have; ends when both have everything, or one has lost the other."""
    ends = (client, served)
    # The client's half of the handshake is over first.
    await support.eventually(lambda: "made" in served.calls or "lost" in client.calls)
    if "made" in served.calls:
        sending = asyncio.gather(*(end.send_all(close=False) for end in ends))
        await asyncio.wait_for(sending, 10 * support.TIME_SCALE)
    await support.eventually(
        lambda: (
            any("lost" in end.calls for end in ends)
            or (len(client.received), len(served.received))
            == (len(served.sends), len(client.sends))
        )
    )


def _is_over(end: Protocol) -> bool:
    return end.calls.count("lost") == end.calls.count("made")


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.errors: list[BaseException] = []
        self.losses = 0

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received.append(data)

    def error_received(self, exc: BaseException) -> None:
        self.errors.append(exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.losses += 1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["udp", "connected", "unix"])
def test_datagrams(kind: str, seed: int) -> None:
    """What arrives was sent, in that order and once; errors are told, the endpoint goes on."""
    rng = random.Random(seed)

    def pair() -> tuple[socket.socket, socket.socket]:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        ends = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(2)]
        for end in ends:
            # An empty name of a Unix socket: the kernel chooses one.
            end.bind("" if kind == "unix" else ("127.0.0.1", 0))
        ends[1].connect(ends[0].getsockname())
        if kind != "udp":
            ends[0].connect(ends[1].getsockname())
        return ends[0], ends[1]

    async def main(env: Env) -> None:
        ours, theirs = pair()
        theirs.setblocking(False)
        with theirs:
            transport, protocol = await env.loop.create_datagram_endpoint(Datagrams, sock=ours)
            to = theirs.getsockname() if kind == "udp" else None
            down: list[bytes] = []
            up: list[bytes] = []
            with faults(seed, **QUIET, hard=HARD):
                for index in range(200):
                    down.append(b"%d" % index * rng.choice((1, 100)))
                    with contextlib.suppress(BlockingIOError):
                        theirs.send(down[-1])
                    transport.sendto(b"%d" % index, to)
                    await asyncio.sleep(0)
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            up.append(theirs.recv(1000))
            await asyncio.sleep(0.02)
            assert _is_subsequence(protocol.received, down) and len(protocol.received) > 100
            assert _is_subsequence(up, [b"%d" % index for index in range(200)]) and len(up) > 100
            assert protocol.errors and all(isinstance(exc, OSError) for exc in protocol.errors)
            transport.close()
            await support.turns(3)
            assert protocol.losses == 1
        await support.assert_idle()
        only_os_errors(env)

    cpploop_run(main)


def _is_subsequence(part: list[bytes], whole: list[bytes]) -> bool:
    rest = iter(whole)
    return all(item in rest for item in part)


@pytest.mark.parametrize("seed", SEEDS)
def test_sock_calls(seed: int) -> None:
    """An operation ends with its result or with the kernel's error, and takes no byte twice."""
    rng = random.Random(seed)

    async def main(env: Env) -> None:
        loop = env.loop
        completed = 0
        for _ in range(ROUNDS):
            ours, theirs = support.tcp_pair()
            sent = rng.randbytes(rng.choice((1, 5000, 250_000)))
            got = bytearray()
            memory = bytearray(3000)

            async def receive(ours: Any = ours, got: Any = got, memory: Any = memory) -> None:
                while True:
                    if rng.random() < 0.5:
                        data = await loop.sock_recv(ours, rng.choice((1, 1000, 100_000)))
                    else:
                        data = memory[: await loop.sock_recv_into(ours, memory)]
                    if not data:
                        return
                    got += data

            with ours, theirs, faults(rng.randrange(1 << 40), **QUIET, hard=HARD):
                try:
                    async with asyncio.timeout(10 * support.TIME_SCALE), asyncio.TaskGroup() as two:
                        two.create_task(receive())
                        await loop.sock_sendall(theirs, sent)
                        theirs.shutdown(socket.SHUT_WR)
                    completed += 1
                    assert got == sent
                except* OSError as group:
                    assert not group.subgroup(TimeoutError) or errno.ETIMEDOUT in _errnos(group)
                assert sent.startswith(got)
        assert completed
        await support.assert_idle()

    cpploop_run(main, timeout=60)


def _errnos(group: BaseExceptionGroup[BaseException]) -> set[int | None]:
    return {getattr(exc, "errno", None) for exc in group.exceptions}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rates", [{**QUIET, "hard": HARD}, QUIET], ids=["hard", "quiet"])
def test_pipes(seed: int, rates: dict[str, float]) -> None:
    rng = random.Random(seed)

    async def main(env: Env) -> None:
        for _ in range(ROUNDS):
            reader, writer = os.pipe()
            sent = rng.randbytes(rng.choice((1, 4000, 300_000)))
            receiving, sending = Protocol(rng, b""), Protocol(rng, sent)
            with faults(rng.randrange(1 << 40), **rates):
                with contextlib.ExitStack() as files:
                    ends = [os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)]
                    for end in ends:
                        files.enter_context(end)
                    await env.loop.connect_read_pipe(lambda end=receiving: end, ends[0])  # type: ignore[misc]
                    await env.loop.connect_write_pipe(lambda end=sending: end, ends[1])  # type: ignore[misc]
                    files.pop_all()
                task = asyncio.ensure_future(sending.send_all())
                both = (receiving, sending)
                await support.eventually(
                    lambda both=both: all("lost" in end.calls for end in both) or was_refused(env)
                )
                if was_refused(env):
                    env.take_errors()
                    receiving.transport.close()
                    sending.transport.abort()
                await task
            assert sent.startswith(receiving.received)
            if "hard" not in rates:
                assert receiving.received == sent
            await support.turns(2)
            assert receiving.calls.count("lost") == sending.calls.count("lost") == 1
        await support.assert_idle()
        only_os_errors(env)

    cpploop_run(main, timeout=60)


@pytest.mark.parametrize("seed", SEEDS)
def test_servers(seed: int) -> None:
    """Accepting that fails is told or tried again; who got through is served."""
    rng = random.Random(seed)

    async def main(env: Env) -> None:
        protocols: list[Protocol] = []

        def serve() -> Protocol:
            protocols.append(Protocol(rng, b""))
            return protocols[-1]

        server = await env.loop.create_server(serve, "127.0.0.1", 0, backlog=100)
        address = server.sockets[0].getsockname()
        with faults(seed, **QUIET, hard=HARD):
            clients = [socket.create_connection(address) for _ in range(60)]
            await asyncio.sleep(0.1)
        # What the system was out of it has again after a second.
        await asyncio.sleep(1.1)
        for client in clients:
            client.close()
        last = socket.create_connection(address)
        last.sendall(b"x")
        await support.eventually(lambda: any(end.received == b"x" for end in protocols))
        last.close()
        server.close()
        for end in protocols:
            end.transport.abort()
        await server.wait_closed()
        await support.turns(3)
        assert all(end.calls.count("lost") == 1 for end in protocols)
        await support.assert_idle()
        errors, env.errors = env.errors, []
        for context in errors:
            assert isinstance(context["exception"], OSError), context
        env.take_logs()

    cpploop_run(main)


@pytest.mark.parametrize("call", ["eventfd", "epoll_create1", "epoll_ctl"])
@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENOMEM], ids=["EMFILE", "ENOMEM"])
def test_a_loop_that_cannot_be_made(call: str, error: int) -> None:
    before = support.open_fds()
    owned = native._ledger_figures()["owned"]
    with refused(call, error):
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                support.factory("cpploop")()
            assert caught.value.errno == error
    assert native._ledger_figures()["owned"] == owned
    assert support.new_fds(before) == {}
    support.factory("cpploop")().close()


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOSPC], ids=["ENOMEM", "ENOSPC"])
def test_watching_that_is_refused(error: int) -> None:
    """epoll that takes no new descriptor: callers are told, connections work and none spins."""

    async def main(env: Env) -> None:
        ours, theirs = support.tcp_pair()
        with theirs:
            with refused("epoll_ctl", error):
                with pytest.raises(OSError):
                    env.loop.add_reader(theirs, print)
                protocol = Protocol(random.Random(1), b"")
                transport, _ = await support.attach(ours, protocol)
                theirs.send(b"first")
                await support.eventually(lambda: protocol.received == b"first")
                # It asks again now and then, and does not ask all the time.
                calls = native._fault_figures()["calls"]
                await asyncio.sleep(0.2)
                assert native._fault_figures()["calls"] - calls < 1000
            theirs.send(b"second")
            await support.eventually(lambda: protocol.received == b"firstsecond")
            await support.assert_idle()
            transport.close()
            await support.turns(3)
            assert protocol.calls == ["made", "lost"]

    cpploop_run(main)


def test_a_descriptor_closed_for_somebody_else_is_noticed() -> None:
    """The account ends the process; its message names who took the descriptor, and who closes."""
    script = """
    import asyncio, os, socket

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        number = transport.get_extra_info("socket").fileno()
        # A bug of the program's: it closes a number that it does not own, and gets it again.
        os.close(number)
        other, another = socket.socketpair()
        assert number in (other.fileno(), another.fileno())
        transport.abort()
        await asyncio.sleep(0.1)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    result = support.run_script(script, loop="cpploop", check=False)
    assert result.returncode != 0
    assert "cpploop ledger: descriptor" in result.stderr
    assert "binding/stream_transport.cc:" in result.stderr
    assert "core/os/unique_fd.h:" in result.stderr or "unique_fd" in result.stderr
    assert "its number stands for another file" in result.stderr


def test_the_same_seed_brings_the_same_faults() -> None:
    def some() -> list[str]:
        answers = []
        first, second = socket.socketpair()
        first.setblocking(False)
        second.setblocking(False)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            for _ in range(100):
                try:
                    await loop.sock_sendall(first, b"0123456789")
                    got = b""
                    while len(got) < 10:
                        got += await loop.sock_recv(second, 10)
                        answers.append(str(len(got)))
                except OSError as exc:
                    answers.append(errno.errorcode[exc.errno or 0])

        with first, second, asyncio.Runner(loop_factory=support.factory("cpploop")) as runner:
            runner.get_loop()
            with faults(7, benign=0.2, hard=0.05):
                with contextlib.suppress(TimeoutError):
                    runner.run(asyncio.wait_for(main(), 5))
        return answers

    once = some()
    assert once == some()
    assert len(once) > 20


def test_what_this_file_has_injected(figure: Callable[[str], None]) -> None:
    """Last in its file, and so in its process: the tests before have met faults."""
    counted = native._fault_figures()
    figure(", ".join(f"{name} {count:,}" for name, count in counted.items()))
    figure(", ".join(f"{name} {count:,}" for name, count in native._ledger_figures().items()))
    assert counted["calls"] > 0
