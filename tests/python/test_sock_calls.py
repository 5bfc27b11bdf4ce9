"""loop.sock_*(): what each does, its errors, and which sockets and arguments it takes.

uvloop has no sock_sendto, sock_recvfrom and sock_recvfrom_into (uv#561, #655).
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support


@contextlib.contextmanager
def pair(kind: str = "unix") -> Iterator[tuple[socket.socket, ...]]:
    first, second = support.PAIRS[kind]()
    with first, second:
        yield first, second


@contextlib.contextmanager
def udp(count: int = 2, family: int = socket.AF_INET) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.setblocking(False)
            sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            socks.append(sock)
        yield socks


@contextlib.contextmanager
def listening(family: int = socket.AF_INET, backlog: int = 100) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(backlog)
        yield sock


def client(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


def without_ports(value: Any) -> Any:
    """VALUE with the port of every address taken out."""
    if isinstance(value, tuple):
        if len(value) >= 2 and value[0] in ("127.0.0.1", "::1"):
            return (value[0], "port", *value[2:])
        return tuple(without_ports(item) for item in value)
    return support.summarise(value)


async def result_of(call: Callable[..., Awaitable[Any]], *args: Any) -> tuple[Any, ...]:
    """What making a call and awaiting it came to, as something comparable."""
    try:
        return ("returned", without_ports(await asyncio.wait_for(call(*args), 5)))
    except Exception as exc:
        args = tuple(support.summarise(arg) for arg in exc.args)
        return ("raised", type(exc).__name__, args)


# --------------------------------------------------------------------------- what they do


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("waits", [False, True])
def test_recv(run: Any, kind: str, waits: bool) -> None:
    async def main(env: support.Env) -> None:
        with pair(kind) as (ours, peer):
            if waits:
                receiving = asyncio.ensure_future(env.loop.sock_recv(ours, 5))
                await support.turns(3)
                assert not receiving.done()
                peer.send(b"hello world")
                assert await receiving == b"hello"
            else:
                peer.send(b"hello world")
                assert await env.loop.sock_recv(ours, 5) == b"hello"
            assert await env.loop.sock_recv(ours, 100) == b" world"
            assert await env.loop.sock_recv(ours, 0) == b""
            peer.close()
            assert await env.loop.sock_recv(ours, 10) == b""

    run(main)


@pytest.mark.parametrize("size", [1, 4096, 32768, 65536, 262144, 262145, 1 << 20])
def test_recv_sizes(run: Any, size: int) -> None:
    """Whatever the size asked for, the bytes are those that were sent, and of their own length."""
    payload = os.urandom(700_000)

    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            sending = asyncio.ensure_future(env.loop.sock_sendall(peer, payload))
            received = bytearray()
            while len(received) < min(len(payload), size * 200):
                chunk = await env.loop.sock_recv(ours, size)
                assert type(chunk) is bytes
                assert 0 < len(chunk) <= size
                assert sys.getsizeof(chunk) <= sys.getsizeof(b"") + len(chunk) + 16
                received += chunk
            assert received == payload[: len(received)]
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(main)


@pytest.mark.parametrize(
    "make",
    [bytearray, lambda n: memoryview(bytearray(n)), lambda n: array.array("b", bytes(n))],
    ids=["bytearray", "memoryview", "array"],
)
@pytest.mark.parametrize("waits", [False, True])
def test_recv_into(run: Any, make: Any, waits: bool) -> None:
    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            memory = make(8)
            if not waits:
                peer.send(b"abc")
            receiving = asyncio.ensure_future(env.loop.sock_recv_into(ours, memory))
            if waits:
                await support.turns(3)
                peer.send(b"abc")
            assert await receiving == 3
            assert bytes(memory) == b"abc\0\0\0\0\0"

    run(main)


def test_recv_into_holds_no_export_while_it_waits(run: Any) -> None:
    """The buffer may be resized meanwhile, and the bytes land where it is by then."""

    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            memory = bytearray(2)
            receiving = asyncio.ensure_future(env.loop.sock_recv_into(ours, memory))
            await support.turns(2)
            memory.extend(bytes(100_000))
            peer.send(b"0123456789")
            assert await receiving == 10
            assert memory[:10] == b"0123456789"
            memory.extend(b"x")

    run(main)


def test_recv_into_of_a_buffer_that_goes_away() -> None:
    async def scenario(env: support.Env) -> None:
        with pair() as (ours, peer):
            view = memoryview(bytearray(8))
            receiving = asyncio.ensure_future(env.loop.sock_recv_into(ours, view))
            await support.turns(2)
            view.release()
            peer.send(b"abc")
            with pytest.raises(TypeError) as caught:
                await receiving
            env.log("raised", str(caught.value))
            env.log("left", await env.loop.sock_recv(ours, 10))

    support.compare(scenario)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("waits", [False, True])
def test_datagrams(run: Any, family: int, waits: bool) -> None:
    if family == socket.AF_INET6 and not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def main(env: support.Env) -> None:
        loop = env.loop
        with udp(2, family) as (ours, peer):
            for call in ("recvfrom", "recvfrom_into"):
                memory = bytearray(6)

                operation: Any
                if call == "recvfrom":
                    operation = loop.sock_recvfrom(ours, 100)
                else:
                    operation = loop.sock_recvfrom_into(ours, memory)
                if waits:
                    operation = asyncio.ensure_future(operation)
                    await support.turns(3)
                assert await loop.sock_sendto(peer, b"four", ours.getsockname()) == 4
                what, address = await operation
                assert address == peer.getsockname()
                assert what == (b"four" if call == "recvfrom" else 4)
                assert call == "recvfrom" or memory == b"four\0\0"
            # A part of a datagram; the rest of it is gone.
            await loop.sock_sendto(peer, b"longer", ours.getsockname())
            await loop.sock_sendto(peer, b"", ours.getsockname())
            memory = bytearray(6)
            assert await loop.sock_recvfrom_into(ours, memory, 2) == (2, peer.getsockname())
            assert memory == b"lo\0\0\0\0"
            assert await loop.sock_recvfrom(ours, 10) == (b"", peer.getsockname())

    run(main)


def test_datagram_larger_than_the_shared_buffer(run: Any) -> None:
    """A Unix datagram is not cut short by how the loop reads."""

    async def main(env: support.Env) -> None:
        ours, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with ours, peer:
            ours.setblocking(False)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            size = min(300_000, peer.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - 1000)
            payload = os.urandom(size)
            for _ in range(3):
                peer.send(payload)
                assert await env.loop.sock_recv(ours, 1 << 20) == payload

    run(main)


def test_addresses_of_every_kind(short_tmp: Path) -> None:
    """recvfrom() and accept() show addresses as the socket module does."""

    async def scenario(env: support.Env) -> None:
        loop = env.loop
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
            ours.setblocking(False)
            path = str(short_tmp / f"d-{env.name}")
            ours.bind(path)
            for index, name in enumerate([None, f"\0abstract-{os.getpid()}", str(short_tmp / "p")]):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
                    peer.setblocking(False)
                    if name is not None:
                        peer.bind(name)
                    await loop.sock_sendto(peer, b"x", path)
                    env.log(index, *(await loop.sock_recvfrom(ours, 10)))
            (short_tmp / "p").unlink()
        with pair() as (ours, peer):
            peer.send(b"12")
            env.log("pair", await loop.sock_recvfrom(ours, 1))
            env.log("pair", await loop.sock_recvfrom_into(ours, bytearray(1)))
        with pair("tcp") as (ours, peer):
            peer.send(b"1")
            env.log("tcp", await loop.sock_recvfrom(ours, 1))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(str(short_tmp / f"l-{env.name}"))
            listener.listen()
            with client(socket.AF_UNIX) as ours:
                await loop.sock_connect(ours, listener.getsockname())
                conn, address = await loop.sock_accept(listener)
                conn.close()
                env.log("accepted", address)

    support.compare(scenario)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_sendall_more_than_fits(run: Any, kind: str) -> None:
    payload = os.urandom(3_000_000)

    async def main(env: support.Env) -> None:
        with pair(kind) as (ours, peer):
            for make in (bytes, bytearray, memoryview, lambda data: array.array("b", data)):
                sending = asyncio.ensure_future(env.loop.sock_sendall(ours, make(payload)))
                received = bytearray()
                while len(received) < len(payload):
                    received += await env.loop.sock_recv(peer, 1 << 18)
                assert await sending is None
                assert received == payload

    run(main)


def test_sendall_keeps_its_export_while_it_waits() -> None:
    """A bytearray cannot be resized under it, and can be again afterwards."""

    async def scenario(env: support.Env) -> None:
        with pair() as (ours, peer):
            data = bytearray(1_000_000)
            sending = asyncio.ensure_future(env.loop.sock_sendall(ours, data))
            await support.turns(2)
            with pytest.raises(BufferError):
                data.append(1)
            assert len(await support.recv_exactly(peer, len(data))) == len(data)
            await sending
            await support.turns(2)
            data.append(1)
            sending = asyncio.ensure_future(env.loop.sock_sendall(ours, data))
            await support.turns(2)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            del sending
            data.append(1)
            env.log("ended", len(data))

    support.compare(scenario)


def test_sendall_of_wide_items(loop_factory: support.LoopFactory) -> None:
    """Every byte goes out. asyncio counts items and bytes alike, and would spin for ever."""
    if loop_factory is asyncio.SelectorEventLoop:
        pytest.skip("asyncio never ends here: it compares bytes sent with the number of items")

    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            data = array.array("i", range(1000))
            await asyncio.wait_for(env.loop.sock_sendall(ours, data), 5)
            assert support.recv_now(peer) == data.tobytes()

    support.run(loop_factory, main)


def test_sendall_nothing() -> None:
    async def scenario(env: support.Env) -> None:
        with pair() as (ours, peer), client() as unconnected:
            for data in (b"", bytearray(), memoryview(b"")):
                env.log("sent", await env.loop.sock_sendall(ours, data))
                env.log(await result_of(env.loop.sock_sendall, unconnected, data))
            assert not support.readable(peer)

    support.compare(scenario)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("waits", [False, True])
def test_accept_and_connect(run: Any, family: int, waits: bool) -> None:
    if family == socket.AF_INET6 and not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def main(env: support.Env) -> None:
        loop = env.loop
        with listening(family) as listener, client(family) as ours:
            if waits:
                accepting = asyncio.ensure_future(loop.sock_accept(listener))
                await support.turns(3)
            assert await loop.sock_connect(ours, listener.getsockname()) is None
            if not waits:
                accepting = asyncio.ensure_future(loop.sock_accept(listener))
            conn, address = await accepting
            with conn:
                assert type(conn) is socket.socket
                assert address == ours.getsockname() == conn.getpeername()
                assert (conn.family, conn.type, conn.proto) == (family, socket.SOCK_STREAM, 0)
                assert conn.gettimeout() == 0.0
                assert not os.get_blocking(conn.fileno())
                assert not os.get_inheritable(conn.fileno())
                await loop.sock_sendall(conn, b"hello")
                assert await loop.sock_recv(ours, 10) == b"hello"

    run(main)


def test_accept_ignores_the_default_timeout(run: Any) -> None:
    async def main(env: support.Env) -> None:
        with listening() as listener, client() as ours:
            await env.loop.sock_connect(ours, listener.getsockname())
            socket.setdefaulttimeout(3)
            try:
                conn, _ = await env.loop.sock_accept(listener)
            finally:
                socket.setdefaulttimeout(None)
            with conn:
                assert conn.gettimeout() == 0.0
                assert not os.get_blocking(conn.fileno())

    run(main)


def test_connect_by_name(run: Any) -> None:
    """Names are looked up by the loop, through whatever overrides that."""

    async def main(env: support.Env) -> None:
        with listening() as listener:
            for host in ("localhost", "127.0.0.1"):
                with client() as ours:
                    await env.loop.sock_connect(ours, (host, listener.getsockname()[1]))
                    assert ours.getpeername() == listener.getsockname()
                    (await env.loop.sock_accept(listener))[0].close()

    run(main)


def test_connect_failures(short_tmp: Path) -> None:
    async def scenario(env: support.Env) -> None:
        loop = env.loop
        refused, port = support.refused_port()
        with refused, client() as ours:
            env.log(await result_of(loop.sock_connect, ours, ("127.0.0.1", port)))
        with client(socket.AF_UNIX) as ours:
            missing = str(short_tmp / "missing")
            env.log(await result_of(loop.sock_connect, ours, missing))
            env.log(await result_of(loop.sock_connect, ours, "x" * 200))
            env.log(await result_of(loop.sock_connect, ours, 5))
        with client() as ours, listening() as listener:
            for address in (("127.0.0.1",), 5, None, "abc", ("127.0.0.1", "no such port"), ()):
                env.log(await result_of(loop.sock_connect, ours, address))
            await loop.sock_connect(ours, listener.getsockname())
            env.log(await result_of(loop.sock_connect, ours, listener.getsockname()))
            (await loop.sock_accept(listener))[0].close()

    # Which function of the socket module complains is part of the text.
    support.compare(scenario)


def test_connection_reset_while_waiting() -> None:
    async def scenario(env: support.Env) -> None:
        for call in (
            lambda sock: env.loop.sock_recv(sock, 10),
            lambda sock: env.loop.sock_recv_into(sock, bytearray(10)),
            lambda sock: env.loop.sock_sendall(sock, bytes(10_000_000)),
        ):
            ours, peer = support.tcp_pair()
            with ours:
                waiting = asyncio.ensure_future(call(ours))
                await support.turns(3)
                support.reset(peer)
                env.log(await result_of(asyncio.shield, waiting))

    support.compare(scenario)


def test_icmp_error_of_a_connected_datagram_socket() -> None:
    async def scenario(env: support.Env) -> None:
        with udp(2) as (ours, gone):
            address = gone.getsockname()
            gone.close()
            await env.loop.sock_connect(ours, address)
            await env.loop.sock_sendall(ours, b"x")
            env.log(await result_of(env.loop.sock_recv, ours, 10))

    support.compare(scenario)


# --------------------------------------------------------------------------- errors


CALLS: dict[str, tuple[Any, ...]] = {
    "sock_recv": (10,),
    "sock_recv_into": (bytearray(10),),
    "sock_recvfrom": (10,),
    "sock_recvfrom_into": (bytearray(10),),
    "sock_sendall": (b"data",),
    "sock_sendto": (b"data", ("127.0.0.1", 9)),
    "sock_connect": (("127.0.0.1", 9),),
    "sock_accept": (),
}
WRONG: dict[str, list[tuple[Any, ...]]] = {
    "sock_recv": [(-1,), (1.5,), ("1",), (None,), (1 << 80,), (b"",), (True,)],
    "sock_recv_into": [(b"bytes",), (5,), (None,), ("text",), (memoryview(b"x"),), (bytearray(),)],
    "sock_recvfrom": [(-1,), (1.5,), (None,), (1 << 80,), (True,)],
    "sock_recvfrom_into": [
        (b"bytes",),
        (5,),
        (bytearray(4), 5),
        (bytearray(4), -1),
        (bytearray(4), 2.5),
        (bytearray(4), None),
        (bytearray(),),
        (bytearray(4), True),
    ],
    "sock_sendall": [("text",), (5,), (None,), ([1],), (support.noncontiguous_view()[0],)],
    "sock_sendto": [
        ("text", ("127.0.0.1", 9)),
        (b"x", 5),
        (b"x", ("127.0.0.1",)),
        (b"x", ("127.0.0.1", 70000)),
        (b"x", ("127.0.0.1", -1)),
        (b"x", None),
        (b"x", ("127.0.0.1", "9")),
    ],
}


@pytest.mark.parametrize("call", WRONG)
def test_arguments_of_wrong_kinds(call: str) -> None:
    async def scenario(env: support.Env) -> None:
        for index, arguments in enumerate(WRONG[call]):
            with udp(2) as (ours, peer):
                ours.connect(peer.getsockname())
                peer.sendto(b"data", ours.getsockname())
                method = getattr(env.loop, call)
                env.log(index, await result_of(method, ours, *arguments))

    support.compare(scenario)


@pytest.mark.parametrize("call", CALLS)
def test_wrong_numbers_of_arguments(call: str) -> None:
    """Refused when the method is called, with asyncio's words."""

    async def scenario(env: support.Env) -> None:
        method = getattr(env.loop, call)
        with pair() as (ours, _):
            full = (ours, *CALLS[call])
            for arguments in ((), full[:-1], (*full, 1, 2)):
                with pytest.raises(TypeError) as caught:
                    method(*arguments)
                env.log(str(caught.value))
            with pytest.raises(TypeError) as caught:
                method(*full, nonsense=1)
            env.log(str(caught.value))

    support.compare(scenario)


def test_arguments_by_keyword(run: Any) -> None:
    async def main(env: support.Env) -> None:
        loop = env.loop
        with pair() as (ours, peer):
            await loop.sock_sendall(sock=peer, data=b"abcdefgh")
            assert await loop.sock_recv(sock=ours, n=1) == b"a"
            assert await loop.sock_recv(ours, n=1) == b"b"
            assert await loop.sock_recv_into(ours, buf=bytearray(1)) == 1
            assert (await loop.sock_recvfrom(ours, bufsize=1))[0] == b"d"
            assert (await loop.sock_recvfrom_into(ours, bytearray(3), nbytes=2))[0] == 2

    run(main)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("debug", [False, True])
def test_closed_sockets(call: str, debug: bool) -> None:
    async def scenario(env: support.Env) -> None:
        sock = client()
        sock.close()
        env.log(await result_of(getattr(env.loop, call), sock, *CALLS[call]))

    support.compare(scenario, debug=debug)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", [None, 5, object(), "text"])
def test_things_that_are_no_sockets(call: str, what: Any) -> None:
    async def scenario(env: support.Env) -> None:
        env.log(await result_of(getattr(env.loop, call), what, *CALLS[call]))

    support.compare(scenario)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("timeout", [None, 3.0])
def test_blocking_sockets_in_debug_mode(call: str, timeout: float | None) -> None:
    async def scenario(env: support.Env) -> None:
        with pair() as (ours, _):
            ours.settimeout(timeout)
            method = getattr(env.loop, call)
            with pytest.raises(ValueError, match="the socket must be non-blocking") as caught:
                await method(ours, *CALLS[call])
            env.log(str(caught.value))

    support.compare(scenario, debug=True)


def test_blocking_sockets(run: Any) -> None:
    """Outside of debug mode they are used as they are; nobody waits here."""

    async def main(env: support.Env) -> None:
        loop = env.loop
        with pair() as (ours, peer), listening() as listener:
            ours.setblocking(True)
            peer.send(b"hello")
            assert await loop.sock_recv(ours, 10) == b"hello"
            ours.settimeout(0.05)
            with pytest.raises(TimeoutError):
                await loop.sock_recv(ours, 10)
            with socket.socket() as blocking:
                await loop.sock_connect(blocking, listener.getsockname())
            listener.setblocking(True)
            conn, _ = await loop.sock_accept(listener)
            assert conn.gettimeout() == 0.0
            conn.close()

    run(main)


def test_a_descriptor_made_blocking_behind_the_socket(loop_factory: support.LoopFactory) -> None:
    """A duplicate made blocking changes the file both share; cpploop waits all the same."""
    if loop_factory is asyncio.SelectorEventLoop:
        pytest.skip("asyncio blocks for ever in recv()")

    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            os.set_blocking(ours.fileno(), True)
            assert ours.gettimeout() == 0.0
            receiving = asyncio.ensure_future(env.loop.sock_recv(ours, 10))
            await support.turns(3)
            peer.send(b"x")
            assert await receiving == b"x"
            sending = asyncio.ensure_future(env.loop.sock_sendall(ours, bytes(1_000_000)))
            assert len(await support.recv_exactly(peer, 1_000_000)) == 1_000_000
            await sending

    support.run(loop_factory, main)


@pytest.mark.parametrize("call", CALLS)
def test_tls_sockets_are_refused(call: str, certs: support.Certificates) -> None:
    async def scenario(env: support.Env) -> None:
        with pair("tcp") as (ours, _):
            context = certs.client_context(verify=False)
            wrapped = context.wrap_socket(ours, do_handshake_on_connect=False)
            with wrapped:
                assert isinstance(wrapped, ssl.SSLSocket)
                method = getattr(env.loop, call)
                with pytest.raises(TypeError) as caught:
                    await method(wrapped, *CALLS[call])
                env.log(str(caught.value))

    support.compare(scenario)


@pytest.mark.parametrize("call", CALLS)
def test_sockets_of_a_transport(call: str) -> None:
    """Refused, unless the call needs not wait."""

    async def scenario(env: support.Env) -> None:
        recorder = support.Recorder()
        async with support.transport_pair(recorder) as (transport, _):
            transport.pause_reading()
            inner = transport.get_extra_info("socket")._sock
            outcome = await result_of(getattr(env.loop, call), inner, *CALLS[call])
            env.log(outcome[0], outcome[1])
            if call in ("sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"):
                assert "is used by transport" in str(outcome)

    support.compare(scenario)


@pytest.mark.parametrize("call", CALLS)
def test_closed_loops(call: str) -> None:
    """A call that needs not wait still works; one that would have to is refused."""

    def outcome(name: str) -> list[Any]:
        loop = support.factory(name)()
        loop.close()
        results = []
        with udp(2) as (ours, peer), listening() as listener:
            ours.connect(peer.getsockname())
            for ready in (False, True):
                if ready:
                    peer.sendto(b"data", ours.getsockname())
                sock = listener if call == "sock_accept" else ours
                coroutine = getattr(loop, call)(sock, *CALLS[call])
                try:
                    coroutine.send(None)
                except StopIteration as stop:
                    results.append(("returned", without_ports(stop.value)))
                except Exception as exc:
                    results.append((type(exc).__name__, str(exc)))
                else:
                    coroutine.close()
                    results.append(("suspended",))
        return results

    expected = outcome("asyncio")
    assert outcome(support.selected_loops()[-1]) == expected


# --------------------------------------------------------------------------- other kinds of sockets


class CountingSocket(socket.socket):
    """A child that overrides what it is asked to, and counts."""

    calls = 0

    def recv(self, *args: Any) -> bytes:
        type(self).calls += 1
        return super().recv(*args).upper()


def test_overridden_methods_are_called(run: Any) -> None:
    async def main(env: support.Env) -> None:
        first, second = socket.socketpair()
        with CountingSocket(fileno=first.detach()) as ours, second:
            ours.setblocking(False)
            second.send(b"abc")
            assert await env.loop.sock_recv(ours, 10) == b"ABC"
            receiving = asyncio.ensure_future(env.loop.sock_recv(ours, 10))
            await support.turns(2)
            second.send(b"def")
            assert await receiving == b"DEF"
            assert CountingSocket.calls >= 3

    run(main)


class ChildSocket(socket.socket):
    """A child that overrides nothing."""


def test_children_and_instance_attributes(run: Any) -> None:
    async def main(env: support.Env) -> None:
        first, second = socket.socketpair()
        with ChildSocket(fileno=first.detach()) as ours, second:
            ours.setblocking(False)
            second.send(b"abcdef")
            assert await env.loop.sock_recv(ours, 3) == b"abc"
            ours.recv = lambda n: b"replaced"  # type: ignore[method-assign]
            assert await env.loop.sock_recv(ours, 3) == b"replaced"
            del ours.recv
            assert await env.loop.sock_recv(ours, 3) == b"def"

    run(main)


def test_patched_class(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            peer.send(b"abcdef")
            assert await env.loop.sock_recv(ours, 3) == b"abc"
            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "recv", lambda self, n: b"patched", raising=False)
                assert await env.loop.sock_recv(ours, 3) == b"patched"
            assert await env.loop.sock_recv(ours, 3) == b"def"

    run(main)


class PretendSocket:
    """What asyncio asks of a socket, and no more."""

    family = socket.AF_UNIX
    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls: list[str] = []

    def fileno(self) -> int:
        return self.sock.fileno()

    def gettimeout(self) -> float:
        return 0.0

    def recv(self, n: int) -> bytes:
        self.calls.append("recv")
        return self.sock.recv(n)

    def send(self, data: Any) -> int:
        self.calls.append("send")
        return self.sock.send(data)


@pytest.mark.parametrize("debug", [False, True])
def test_objects_that_act_as_sockets(run: Any, debug: bool) -> None:
    async def main(env: support.Env) -> None:
        with pair() as (sock, peer):
            ours: Any = PretendSocket(sock)
            receiving = asyncio.ensure_future(env.loop.sock_recv(ours, 10))
            await support.turns(2)
            peer.send(b"abc")
            assert await receiving == b"abc"
            await env.loop.sock_sendall(ours, b"def")
            assert peer.recv(10) == b"def"
            assert ours.calls == ["recv", "recv", "send"]

    run(main, debug=debug)


def test_other_families(run: Any) -> None:
    """Sockets of families the binding cannot show addresses of go asyncio's way."""

    async def main(env: support.Env) -> None:
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        except OSError as exc:
            pytest.skip(f"no netlink here: {exc}")
        with sock:
            sock.setblocking(False)
            sock.bind((0, 0))
            # RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP
            request = (20).to_bytes(4, sys.byteorder) + (18).to_bytes(2, sys.byteorder)
            request += (0x301).to_bytes(2, sys.byteorder) + bytes(12)
            assert await env.loop.sock_sendto(sock, request, (0, 0)) == 20
            data, address = await env.loop.sock_recvfrom(sock, 65536)
            assert data
            assert address == (0, 0)

    run(main)


# --------------------------------------------------------------------------- overridden loops


def test_overridden_watchers_are_asked(loop_name: str) -> None:
    """A loop that replaces what asyncio's sock_*() call is asked, as asyncio's would be."""
    added = []
    base = asyncio.SelectorEventLoop
    if loop_name == "cpploop":
        import cpploop

        base = cpploop.Loop

    class Watching(base):  # type: ignore[valid-type, misc]
        def _add_reader(self, fd: int, callback: Any, *args: Any) -> Any:
            added.append("reader")
            return super()._add_reader(fd, callback, *args)

        def remove_reader(self, fd: int) -> Any:
            added.append("removed")
            return super().remove_reader(fd)

        def create_future(self) -> Any:
            added.append("future")
            return super().create_future()

    async def main(env: support.Env) -> None:
        with pair() as (ours, peer):
            added.clear()
            receiving = asyncio.ensure_future(env.loop.sock_recv(ours, 10))
            await support.turns(2)
            peer.send(b"abc")
            assert await receiving == b"abc"
            await support.turns(2)
            assert added == ["future", "reader", "removed"]

    support.run(Watching, main)


def test_methods_replaced_on_the_instance(run: Any) -> None:
    async def main(env: support.Env) -> None:
        loop: Any = env.loop
        seen = []
        original = loop._ensure_resolved

        async def ensure_resolved(address: Any, **options: Any) -> Any:
            seen.append(address)
            return await original(listener.getsockname(), **options)

        loop._ensure_resolved = ensure_resolved
        try:
            with listening() as listener, client() as ours:
                await loop.sock_connect(ours, ("nowhere.invalid", 1))
                assert seen == [("nowhere.invalid", 1)]
                assert ours.getpeername() == listener.getsockname()
                (await loop.sock_accept(listener))[0].close()
        finally:
            del loop._ensure_resolved

        async def sock_sendall(sock: Any, data: Any) -> None:
            seen.append("sendall")

        loop.sock_sendall = sock_sendall
        try:
            await loop.sock_sendall(None, b"")
        finally:
            del loop.sock_sendall
        assert seen[-1] == "sendall"

    run(main)


# --------------------------------------------------------------------------- the rest


def test_audit_events(loop_name: str) -> None:
    """Connecting and sending to an address are told to audit hooks, as the socket module tells."""
    source = f"""
import asyncio, socket, sys
sys.path[:0] = {sys.path!r}
import support

events = []
sys.addaudithook(lambda name, args: events.append((name, args[1:]))
                 if name in ("socket.connect", "socket.sendto") else None)

async def main():
    loop = asyncio.get_running_loop()
    with socket.socket() as listener, socket.socket() as ours:
        listener.bind(("127.0.0.1", 0)); listener.listen()
        ours.setblocking(False)
        await loop.sock_connect(ours, listener.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            await loop.sock_sendto(sock, b"x", ("127.0.0.1", 9))
        return listener.getsockname()

with asyncio.Runner(loop_factory=support.factory({loop_name!r})) as runner:
    address = runner.run(main())
assert events == [("socket.connect", (address,)), ("socket.sendto", (("127.0.0.1", 9),))], events
"""
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ready_calls_do_not_suspend(run: Any) -> None:
    async def main(env: support.Env) -> None:
        order = []
        with pair() as (ours, peer):
            env.loop.call_soon(order.append, "callback")
            await env.loop.sock_sendall(peer, b"abc")
            await env.loop.sock_recv(ours, 10)
            order.append("both calls")
            await asyncio.sleep(0)
            assert order == ["both calls", "callback"]

    run(main)


def test_from_another_thread_while_the_loop_runs(loop_name: str) -> None:
    """Free-threaded builds refuse it."""
    if not support.FREE_THREADED:
        pytest.skip("with the GIL it behaves as asyncio's")
    support.needs_cpploop(loop_name, "threads are checked outside of debug mode")

    async def main(env: support.Env) -> None:
        with pair() as (ours, _):
            operation = env.loop.sock_recv(ours, 10)
            with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
                await env.loop.run_in_executor(None, operation.send, None)
            operation.close()

    support.run(support.factory(loop_name), main, check_warnings=False)
