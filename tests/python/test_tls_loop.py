"""TLS and the loop as a whole: which tier is in use and why, handshakes per turn, memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import support
import tls_support
from support import BufferedRecorder, Certificates, Env, Recorder, eventually

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="about cpploop's own arrangements"
)

SHOW = "import cpploop; print(*cpploop.build_info()['tls'], sep='|')"


def shown(source: str = SHOW, **env: str) -> list[str]:
    return support.run_script(source, env=env).stdout.strip().split("|")


def direct_here() -> bool:
    return shown(CPPLOOP_TLS="direct")[0] == "direct"


@pytest.mark.parametrize("choice", ["asyncio", "bio"])
def test_a_tier_by_environment(choice: str) -> None:
    assert shown(CPPLOOP_TLS=choice) == [choice, f"CPPLOOP_TLS={choice}"]


def test_auto_is_the_default_and_the_best_allowed() -> None:
    assert shown(CPPLOOP_TLS="") == shown(CPPLOOP_TLS="auto") == shown(CPPLOOP_TLS="direct")


def test_a_choice_that_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import cpploop

    monkeypatch.setenv("CPPLOOP_TLS", "fast")
    with pytest.raises(ValueError) as info:
        cpploop.new_event_loop()
    expected = "CPPLOOP_TLS must be one of asyncio, bio, direct, auto, not 'fast'"
    assert str(info.value) == expected


GATES = {
    "switch": ("", {"CPPLOOP_TLS_GATE": "switch"}),
    "library": ("import ssl; ssl.OPENSSL_VERSION = 'LibreSSL 4.0'\n", {}),
    "symbols": ("import _ssl; del _ssl.__file__\n", {}),
    "symbols ": ("import _ssl, cpploop; _ssl.__file__ = cpploop._native.__file__\n", {}),
    "symbols  ": ("import _ssl; _ssl.__file__ = '/nowhere/_ssl.so'\n", {}),
    "layout": (
        "import ssl\n"
        "class Other:\n"
        "    _sslobj = object()\n"
        "ssl.SSLContext.wrap_bio = lambda *args: Other()\n",
        {},
    ),
}


@pytest.mark.parametrize("gate", GATES)
def test_every_closed_gate_means_the_other_tier(gate: str) -> None:
    """Quietly, and with its name in build_info()."""
    if not direct_here():
        pytest.skip("the direct tier is closed on this Python")
    before, env = GATES[gate]
    tier, reason = shown(before + SHOW, CPPLOOP_TLS="direct", **env)
    assert tier == "bio"
    assert reason.startswith(f"{gate.strip()}: ")


@pytest.mark.skipif(sys.version_info < (3, 13), reason="needs _interpreters")
def test_a_subinterpreter_takes_the_other_tier() -> None:
    code = (
        "import sys, _interpreters\n"
        "own = _interpreters.create('legacy')\n"
        f"failed = _interpreters.run_string(own, {f'import sys; sys.path[:] = PATH; {SHOW}'!r}"
        ".replace('PATH', repr(sys.path)))\n"
        "assert failed is None, failed.formatted\n"
    )
    tier, reason = shown(code, CPPLOOP_TLS="direct")
    assert tier == "bio"
    assert reason.startswith(("interpreter: ", "layout: "))


@pytest.mark.parametrize("choice", ["asyncio", "bio", "direct"])
def test_what_a_connection_says(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """T8: asyncio's attributes, a real ssl.SSLObject, and the tier."""
    from asyncio import sslproto

    monkeypatch.setenv("CPPLOOP_TLS", choice)

    async def main(env: Env) -> None:
        server_rec, rec = Recorder(), Recorder()
        server = await env.loop.create_server(
            lambda: server_rec, "127.0.0.1", 0, ssl=certs.server_context()
        )
        context = certs.client_context()
        transport, _ = await env.loop.create_connection(
            lambda: rec,
            *server.sockets[0].getsockname(),
            ssl=context,
            server_hostname="localhost",
        )
        protocol = transport._ssl_protocol
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, sslproto._SSLProtocolTransport)
        assert isinstance(protocol, sslproto.SSLProtocol)
        assert isinstance(protocol, asyncio.BufferedProtocol)
        assert protocol._app_transport is transport
        assert transport._loop is env.loop
        assert protocol._state is sslproto.SSLProtocolState.WRAPPED
        ssl_object = transport.get_extra_info("ssl_object")
        assert type(ssl_object) is ssl.SSLObject
        assert ssl_object.version() == "TLSv1.3"
        assert transport.get_extra_info("sslcontext") is context
        assert transport.get_extra_info("peercert") == ssl_object.getpeercert()
        assert transport.get_extra_info("cipher") == ssl_object.cipher()
        assert transport.get_extra_info("compression", 1) is None
        assert transport.get_extra_info("peername") == server.sockets[0].getsockname()
        assert transport.get_extra_info("socket").fileno() > 0
        assert transport.get_extra_info("nothing", 7) == 7
        tier = transport.get_extra_info("cpploop.tls")
        assert tier is None if choice == "asyncio" else tier.tier in ("bio", choice)
        transport.abort()
        await rec.until("connection_lost")
        await server_rec.until("connection_lost")
        server.close()

    support.run(support.factory("cpploop"), main)


def client_hellos(certs: Certificates, count: int) -> tuple[list[Any], list[Any]]:
    """Sockets to accept, and clients who have said hello on their other ends."""
    accepted, clients = [], []
    for _ in range(count):
        sock, other = support.tcp_pair()
        other.setblocking(False)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = certs.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        other.send(outgoing.read())
        accepted.append(sock)
        clients.append((other, client, incoming, outgoing))
    return accepted, clients


def who_waits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The protocols whose handshakes were put off to a later turn, from now on."""
    from cpploop._tls import HandshakeQueue

    waiting: list[Any] = []
    admit = HandshakeQueue.admit

    def watched(queue: HandshakeQueue, protocol: Any) -> bool:
        admitted = admit(queue, protocol)
        if not admitted:
            waiting.append(protocol)
        return admitted

    monkeypatch.setattr(HandshakeQueue, "admit", watched)
    return waiting


def test_handshakes_per_turn(certs: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storm of new clients is served a few a turn, all of them in the end."""
    from asyncio import sslproto

    from cpploop._tls import HandshakeQueue

    monkeypatch.setenv("CPPLOOP_TLS", "auto")
    steps: dict[int, int] = {}
    turn = 0
    original = sslproto.SSLProtocol._do_handshake

    def counting(protocol: Any) -> None:
        if protocol._server_side and protocol._get_read_buffer_size():
            steps[turn] = steps.get(turn, 0) + 1
        original(protocol)

    monkeypatch.setattr(sslproto.SSLProtocol, "_do_handshake", counting)

    async def main(env: Env) -> None:
        count = 3 * HandshakeQueue.PER_TURN
        recs = [Recorder() for _ in range(count)]
        accepted, clients = client_hellos(certs, count)

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            if running:
                env.loop.call_soon(next_turn)

        running = True
        next_turn()
        tasks = [
            asyncio.ensure_future(
                env.loop.connect_accepted_socket(
                    lambda rec=rec: rec, sock, ssl=certs.server_context()
                )
            )
            for rec, sock in zip(recs, accepted, strict=True)
        ]
        for peer, client, incoming, outgoing in clients:
            while True:
                await eventually(lambda peer=peer: support.readable(peer))
                incoming.write(support.recv_now(peer))
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    pass
            client.write(b"all in one segment")
            with contextlib.suppress(ssl.SSLWantReadError):
                client.unwrap()
            peer.send(outgoing.read())
        # The last flight, a request, close_notify and the end together: nothing gets lost.
        for peer, *_ in clients:
            peer.close()
        await asyncio.gather(*tasks)
        for rec in recs:
            await rec.until("connection_lost")
            assert rec.received == b"all in one segment"
        running = False
        assert sum(steps.values()) >= 2 * count
        assert max(steps.values()) <= HandshakeQueue.PER_TURN

    support.run(support.factory("cpploop"), main, timeout=40, check_warnings=False)


LEAKS = """
import asyncio, contextlib, gc, socket, ssl, sys
certificate, authority, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_context.load_cert_chain(certificate)
trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
trusting.load_verify_locations(authority)
strict = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
    def connection_lost(self, exc):
        self.transport = None

async def connect(address, context=trusting):
    return await asyncio.open_connection(*address, ssl=context, server_hostname="localhost")

async def full(address):
    reader, writer = await connect(address)
    writer.write(b"x" * 1000)
    await reader.readexactly(1000)
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()

async def aborted(address):
    _, writer = await connect(address)
    writer.transport.abort()
    await asyncio.sleep(0)

async def refused(address):
    with contextlib.suppress(ssl.SSLError):
        await connect(address, strict)

async def half(address):
    with socket.create_connection(address) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            trusting.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        sock.send(outgoing.read())
        await asyncio.sleep(0.001)

async def garbage(address):
    with socket.create_connection(address) as sock:
        sock.send(b"GET / HTTP/1.1\\r\\n\\r\\n")
        await asyncio.sleep(0.0005)

async def nothing(address):
    socket.create_connection(address).close()
    await asyncio.sleep(0.0005)

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server_context)
    address = server.sockets[0].getsockname()
    kinds = full, aborted, refused, half, garbage, nothing
    async def some(count):
        for _ in range(count):
            for kind in kinds:
                await kind(address)
        await asyncio.sleep(0.05)
    await some(30)
    gc.collect()
    gc.disable()
    before = resident()
    await some(rounds)
    grown = resident() - before
    names = "SSLProtocol", "_SSLProtocolTransport", "StreamTransport", "SSLObject"
    left = [type(o).__name__ for o in gc.get_objects() if type(o).__name__ in names]
    server.close()
    print(len(left), grown)

asyncio.Runner(loop_factory=factory).run(main())
"""


@pytest.mark.skipif(support.SANITIZED, reason="AddressSanitizer keeps what is freed")
@pytest.mark.parametrize("choice", ["direct", "bio"])
def test_connections_that_came_and_went_leave_nothing(certs: Certificates, choice: str) -> None:
    """T1: 3,000 of all kinds with the collector off; resident memory stays flat."""
    result = support.run_script(
        LEAKS,
        str(certs.server),
        str(certs.ca),
        "500" if choice == "direct" else "100",
        loop="cpploop",
        timeout=60,
        env={"CPPLOOP_TLS": choice},
    )
    left, grown_kib = map(int, result.stdout.split())
    assert left == 0
    assert grown_kib < 2048


IDLE = """
import asyncio, os, socket, ssl, sys
certificate, secure = sys.argv[1], sys.argv[2] == "tls"
count, size = int(sys.argv[3]), int(sys.argv[4])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
listener = socket.create_server(("127.0.0.1", 0), backlog=200)
to_parent, to_child = os.pipe(), os.pipe()

if os.fork() == 0:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    held = []
    for _ in range(2):
        for _ in range(count):
            sock = socket.create_connection(listener.getsockname())
            sock = client.wrap_socket(sock) if secure else sock
            sock.sendall(b"x" * size)
            left = size
            while left:
                left -= len(sock.recv(left))
            held.append(sock)
        os.write(to_parent[1], b"x")
        os.read(to_child[0], 1)
    os._exit(0)

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

def resident():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

async def main():
    loop = asyncio.get_running_loop()
    await loop.create_server(Echo, sock=listener, ssl=context if secure else None)
    reading = []
    for _ in range(2):
        said = loop.create_future()
        loop.add_reader(to_parent[0], lambda: (os.read(to_parent[0], 1), said.set_result(None)))
        await said
        loop.remove_reader(to_parent[0])
        reading.append(resident())
        os.write(to_child[1], b"x")
    print((reading[1] - reading[0]) / count, flush=True)
    os._exit(0)

asyncio.Runner(loop_factory=factory).run(main())
"""


@pytest.mark.skipif(support.SANITIZED, reason="AddressSanitizer's memory says nothing")
@pytest.mark.parametrize("size", [100, 100_000])
def test_an_idle_connection_is_small(certs: Certificates, size: int) -> None:
    """T2: at most 40 KiB beyond plain TCP, OpenSSL's own included; also after it was busy."""

    def measured(kind: str, choice: str) -> float:
        result = support.run_script(
            IDLE,
            str(certs.server),
            kind,
            "150",
            str(size),
            loop="cpploop",
            timeout=40,
            env={"CPPLOOP_TLS": choice},
        )
        return float(result.stdout)

    def fits(choice: str, limit: float) -> bool:
        # How the connections' lives fall together decides how well the heap packs: on a busy
        # machine one measurement in ten is a tenth higher.
        return any(measured("tls", choice) - plain <= limit for _ in range(3))

    plain = measured("plain", "")
    assert fits("direct", 40 if direct_here() or size < 1000 else 140)
    # Through the MemoryBIO's methods its buffers cannot be given back once they have grown.
    assert fits("bio", 40 if size < 1000 else 140)


def test_the_shipped_module_is_the_one_that_is_used() -> None:
    """The edge's class takes the short way: its data path is the native one."""
    from cpploop import _native, _tls

    for name in ("get_buffer", "buffer_updated", "_do_read", "_do_write", "_process_outgoing"):
        assert getattr(_tls.SSLProtocol, name) is getattr(_native.TlsProtocolBase, name)
    for name in ("write", "writelines"):
        assert getattr(_tls._SSLProtocolTransport, name) is getattr(_native.TlsTransportBase, name)
    assert Path(_native.__file__).suffix == ".so"


# ------------------------------------------------------------------------ what is kept in between


def ssl_protocol_of(transport: Any) -> Any:
    return transport._ssl_protocol


@pytest.mark.parametrize("tier", ["bio", "direct"])
def test_a_long_rest_is_not_copied(
    pki: tls_support.Pki, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One write of megabytes to a peer that reads slowly takes time by its length."""
    monkeypatch.setenv("CPPLOOP_TLS", tier)
    data = random.Random(1).randbytes(8 << 20)

    async def main(env: Env) -> None:
        async with tls_support.endpoint(env, pki, "client", Recorder()) as (transport, peer):
            transport.write(data)
            transport.write(b"behind it")
            backlog = ssl_protocol_of(transport)._write_backlog
            rest = backlog[0]
            assert isinstance(rest, memoryview) and rest.obj is data
            assert transport.get_write_buffer_size() >= len(rest) > 1 << 20
            received = await peer.read_exactly(1 << 20)
            # Still the very same bytes behind it, and not a copy of what is left.
            await eventually(lambda: len(backlog[0]) < len(rest))
            assert backlog[0].obj is data
            received += await peer.read_exactly(len(data) - (1 << 20))
            assert received == data
            assert await peer.read_exactly(9) == b"behind it"
            await eventually(lambda: transport.get_write_buffer_size() == 0)

    support.run(support.factory("cpploop"), main)


@pytest.mark.parametrize("tier", ["bio", "direct"])
@pytest.mark.parametrize("view", [False, True], ids=["bytearray", "memoryview"])
def test_a_long_rest_of_what_may_change_is_copied(
    pki: tls_support.Pki, view: bool, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPPLOOP_TLS", tier)
    size = 4 << 20

    async def main(env: Env) -> None:
        async with tls_support.endpoint(env, pki, "client", Recorder()) as (transport, peer):
            data = bytearray(b"x" * size)
            transport.write(memoryview(data) if view else data)
            data[:] = b"y" * size
            data.clear()  # Nobody looks into it any more.
            assert await peer.read_exactly(size) == b"x" * size

    support.run(support.factory("cpploop"), main)


def test_who_waits_for_a_handshake_reads_no_more(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many who wait for their turn and send without end do not fill the memory."""
    from cpploop._tls import HandshakeQueue

    monkeypatch.setenv("CPPLOOP_TLS", "auto")
    monkeypatch.setattr(HandshakeQueue, "PER_TURN", 0)
    waiting = who_waits(monkeypatch)

    async def main(env: Env) -> None:
        env.loop._handshakes = HandshakeQueue()
        rec = Recorder()
        [sock], [(other, *_)] = client_hellos(certs, 1)
        task = asyncio.ensure_future(
            env.loop.connect_accepted_socket(lambda: rec, sock, ssl=certs.server_context())
        )
        await eventually(lambda: len(waiting) > 0)
        [protocol] = waiting
        sent = 0
        with contextlib.suppress(BlockingIOError):
            for _ in range(200):
                sent += other.send(bytes(1 << 16))
                await asyncio.sleep(0.001)
        assert sent < 100 << 16  # It came to a stop, in the kernel.
        assert protocol._get_read_buffer_size() < 1 << 19
        assert not protocol._transport.is_reading()
        # Its turn comes: what was sent is no TLS, and the connection ends by that.
        env.loop._handshakes.PER_TURN = 12
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await task
        other.close()

    support.run(support.factory("cpploop"), main, check_warnings=False)


def test_an_exception_in_a_step_that_waited_ends_its_connection(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """connection_made() that raises, in a storm of clients: whoever waits for it hears of it."""
    from cpploop._tls import HandshakeQueue

    monkeypatch.setenv("CPPLOOP_TLS", "auto")
    monkeypatch.setattr(HandshakeQueue, "PER_TURN", 1)
    count = 8
    waited = who_waits(monkeypatch)

    class Raising(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            raise ZeroDivisionError("in connection_made")

    async def main(env: Env) -> None:
        accepted, clients = client_hellos(certs, count)
        tasks = [
            asyncio.ensure_future(
                env.loop.connect_accepted_socket(Raising, sock, ssl=certs.server_context())
            )
            for sock in accepted
        ]
        for other, *_ in clients:
            await eventually(lambda other=other: support.readable(other))
        waited.clear()
        # The second flights of all of them, at once.
        for other, client, incoming, outgoing in clients:
            incoming.write(support.recv_now(other))
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            other.send(outgoing.read())
        done, pending = await asyncio.wait(tasks, timeout=10 * support.TIME_SCALE)
        assert not pending
        assert [type(task.exception()) for task in done] == [ZeroDivisionError] * count
        assert len(waited) >= count // 2
        messages = {message for message, _ in env.take_errors()}
        assert messages == {"Fatal error: protocol.buffer_updated() call failed."}
        for other, *_ in clients:
            await eventually(lambda other=other: support.readable(other))
            other.close()

    support.run(support.factory("cpploop"), main, check_warnings=False)


def test_handshakes_go_on_after_the_loop_had_no_memory_for_a_turn(
    certs: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """call_soon() that fails once where the next turn is asked for fails one connection."""
    from cpploop._tls import HandshakeQueue

    monkeypatch.setenv("CPPLOOP_TLS", "auto")

    async def main(env: Env) -> None:
        loop = env.loop
        real = loop.call_soon

        def failing(callback: Any, *args: Any, **options: Any) -> Any:
            if getattr(callback, "__name__", "") == "_next_turn":
                del loop.call_soon
                raise MemoryError
            return real(callback, *args, **options)

        loop.call_soon = failing
        served = 0
        for _ in range(2 * HandshakeQueue.PER_TURN):
            [sock], [(other, client, incoming, outgoing)] = client_hellos(certs, 1)
            task = asyncio.ensure_future(
                loop.connect_accepted_socket(Recorder, sock, ssl=certs.server_context())
            )
            while not task.done():
                if support.readable(other):
                    incoming.write(support.recv_now(other))
                    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLEOFError):
                        client.do_handshake()
                    if outgoing.pending:
                        other.send(outgoing.read())
                await asyncio.sleep(0)
            other.close()
            if task.exception() is None:
                served += 1
                task.result()[0].abort()
        assert served == 2 * HandshakeQueue.PER_TURN - 1
        env.take_errors()

    support.run(support.factory("cpploop"), main, check_warnings=False)


def test_receiving_while_ciphertext_is_read(pki: tls_support.Pki) -> None:
    """The loop has one piece of memory for what comes, and code that runs in between asks, too."""

    async def main(env: Env) -> None:
        near, far = support.unix_pair()
        near.setblocking(False)
        taken: list[bytes] = []

        class Nosy(BufferedRecorder):
            def get_buffer(self, sizehint: int) -> Any:
                # A task that starts eagerly comes to this: what is there is received at once.
                far.send(b"between" * 1000)
                try:
                    env.loop.sock_recv(near, 65536).send(None)
                except StopIteration as done:
                    taken.append(done.value)
                return super().get_buffer(sizehint)

        rec = Nosy()
        data = random.Random(2).randbytes(200_000)
        async with tls_support.endpoint(env, pki, "client", rec) as (_, peer):
            await peer.write(data)
            await eventually(lambda: len(rec.received) == len(data))
            assert rec.received == data
        assert taken and set(taken) == {b"between" * 1000}
        near.close()
        far.close()

    support.run(support.factory("cpploop"), main)


def test_records_that_are_sealed_are_sent(pki: tls_support.Pki) -> None:
    """Ctrl-C within a write: what comes later is not behind a gap in the records' numbers."""
    strikes = iter([False, False, True])

    class Interrupted(ssl.SSLObject):
        def write(self, data: Any) -> int:
            if next(strikes, False):
                raise KeyboardInterrupt
            return super().write(data)

    async def main(env: Env) -> None:
        nonlocal strikes
        context = pki.context("client")
        context.sslobject_class = Interrupted
        async with tls_support.endpoint(env, pki, "client", Recorder(), context=context) as (
            transport,
            peer,
        ):
            assert transport.get_extra_info("cpploop.tls").tier == "bio"
            with pytest.raises(KeyboardInterrupt):
                transport.write(bytes(40_000))
            transport.write(b"later")
            # Nothing was lost, as on asyncio, which keeps what it was about to encrypt.
            assert await peer.read_exactly(40_000) == bytes(40_000)
            assert (await peer.read_exactly(5)) == b"later"
            # And nothing goes out twice that is encrypted from where it waits.
            data = random.Random(3).randbytes(100_000)
            protocol = transport._ssl_protocol
            protocol._ssl_writing_paused = True
            transport.write(data)
            protocol._ssl_writing_paused = False
            strikes = iter([False, False, True])
            with pytest.raises(KeyboardInterrupt):
                protocol._do_write()
            assert 0 < transport.get_write_buffer_size() < len(data)
            transport.write(b"and later")
            assert await peer.read_exactly(len(data)) == data
            assert await peer.read_exactly(9) == b"and later"
            assert transport.get_write_buffer_size() == 0

    support.run(support.factory("cpploop"), main)


@pytest.mark.skipif(not support.FREE_THREADED, reason="with a GIL nobody is refused, as on asyncio")
def test_calls_from_another_thread(pki: tls_support.Pki) -> None:
    """They are refused before they have done anything: the connection goes on."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with tls_support.endpoint(env, pki, "client", rec) as (transport, peer):
            calls: dict[str, Any] = {
                "abort": transport.abort,
                "close": transport.close,
                "get_protocol": transport.get_protocol,
                "get_write_buffer_size": transport.get_write_buffer_size,
                "is_reading": transport.is_reading,
                "pause_reading": transport.pause_reading,
                "resume_reading": transport.resume_reading,
                "set_protocol": lambda: transport.set_protocol(rec),
                "set_write_buffer_limits": transport.set_write_buffer_limits,
                "write": lambda: transport.write(b"no"),
                "writelines": lambda: transport.writelines([b"no"]),
            }
            refused = []

            def meddle() -> None:
                for name, call in calls.items():
                    try:
                        call()
                    except RuntimeError:
                        refused.append(name)

            await asyncio.to_thread(meddle)
            assert refused == list(calls)
            assert not transport.is_closing() and transport.is_reading()
            transport.write(b"yes")
            assert await peer.read_exactly(3) == b"yes"
            await peer.write(b"heard")
            await eventually(lambda: rec.received == b"heard")

    support.run(support.factory("cpploop"), main)


@pytest.mark.skipif(not support.FREE_THREADED, reason="with a GIL there is no race")
def test_what_is_known_of_a_connection_is_asked_while_it_ends(pki: tls_support.Pki) -> None:
    """get_extra_info() in another thread beside connection_lost(): an answer or a refusal."""

    async def main(env: Env) -> None:
        asked: list[Any] = []
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                for transport in asked[-1:]:
                    with contextlib.suppress(RuntimeError, AttributeError):
                        transport.get_extra_info("peername")
                        transport.get_extra_info("cipher")

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(30):
                async with tls_support.linked(env, pki, Recorder(), Recorder()) as (one, two):
                    asked.append(one)
                    await asyncio.sleep(0.002)
                    two.close()
                    await asyncio.sleep(0.002)
        finally:
            over.set()
            for thread in threads:
                thread.join()

    support.run(support.factory("cpploop"), main)
