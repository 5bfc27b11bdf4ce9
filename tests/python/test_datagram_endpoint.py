"""create_datagram_endpoint() and what comes in: every argument, every kind of address and size."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import support
from datagrams import (
    DatagramRecorder,
    Echo,
    abstract_name,
    address_of,
    endpoint,
    plain_socket,
)
from support import Env, eventually, turns

needs_ipv6 = pytest.mark.skipif(not support.has_ipv6(), reason="this machine has no ::1")


# --------------------------------------------------------------------------- making one


def test_it_is_a_datagram_transport(run: Any, loop_name: str) -> None:
    """C10: isinstance, attributes of one's own and weak references work."""
    import weakref

    async def main() -> None:
        async with endpoint() as (transport, recorder):
            assert isinstance(transport, asyncio.BaseTransport)
            # Before Python 3.12 asyncio's own is none.
            assert isinstance(transport, asyncio.DatagramTransport) or loop_name == "asyncio"
            assert isinstance(transport, asyncio.Transport)  # asyncio's is one as well.
            transport.note = "mine"
            assert weakref.ref(transport)().note == "mine"
            assert recorder.transport is transport

    run(main)


def test_connection_made_comes_before_the_endpoint_is_returned() -> None:
    async def scenario(env: Env) -> None:
        loop = env.loop
        loop.call_soon(env.log, "callback before")
        task = asyncio.ensure_future(
            loop.create_datagram_endpoint(
                lambda: DatagramRecorder(env), local_addr=("127.0.0.1", 0)
            )
        )
        transport, _ = await task
        env.log("returned")
        transport.close()
        transport.close()
        env.log("closed", transport.is_closing())
        await turns(2)

    assert support.compare(scenario)[:-1] == [
        ("callback before",),
        ("connection_made", "<transport>"),
        ("returned",),
        ("closed", True),
        ("connection_lost", None),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"local_addr": "127.0.0.1"},
        {"local_addr": ("127.0.0.1", 0, 0)},
        {"local_addr": ("127.0.0.1", 0), "family": socket.AF_INET6},
        {"local_addr": ("127.0.0.1", 0), "remote_addr": ("::1", 1)},
        {"local_addr": ("127.0.0.1", "no such service")},
        {"local_addr": b"/tmp/x", "family": socket.AF_UNIX},
        {"local_addr": ("203.0.113.1", 0)},
        {"remote_addr": ("127.0.0.1", 70000)},
        {"family": socket.AF_INET, "reuse_port": True, "proto": 99},
    ],
    ids=repr,
)
def test_arguments_that_are_refused(arguments: dict[str, Any]) -> None:
    async def scenario(env: Env) -> None:
        try:
            await env.loop.create_datagram_endpoint(DatagramRecorder, **arguments)
        except Exception as exc:
            env.log("refused", exc)

    assert support.compare(scenario)[0][0] == "refused"


@pytest.mark.parametrize(
    "argument",
    [
        {"local_addr": ("127.0.0.1", 0)},
        {"remote_addr": ("127.0.0.1", 1)},
        {"family": socket.AF_INET},
        {"proto": 17},
        {"flags": 1},
        {"reuse_port": True},
        {"allow_broadcast": True},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_a_socket_takes_no_other_argument(argument: dict[str, Any]) -> None:
    async def scenario(env: Env) -> None:
        with plain_socket() as sock:
            with pytest.raises(ValueError) as caught:
                await env.loop.create_datagram_endpoint(DatagramRecorder, sock=sock, **argument)
            env.log("refused", caught.value)

    support.compare(scenario)


def test_a_stream_socket_is_refused(run: Any) -> None:
    async def main(env: Env) -> None:
        with socket.socket() as sock, pytest.raises(ValueError, match=r"(?i)socket was expected"):
            await env.loop.create_datagram_endpoint(DatagramRecorder, sock=sock)

    run(main)


def test_a_socket_of_a_transport_is_refused(run: Any, loop_name: str) -> None:
    async def main(env: Env) -> None:
        sock = plain_socket()
        async with endpoint(sock=sock) as (transport, _):
            # asyncio of 3.11 makes a second transport.
            if sys.version_info >= (3, 12) or loop_name == "cpploop":
                with pytest.raises(RuntimeError, match="is used by transport"):
                    await env.loop.create_datagram_endpoint(DatagramRecorder, sock=sock)
            with pytest.raises(RuntimeError, match="is used by transport"):
                env.loop.add_reader(sock, print)
            with pytest.raises(RuntimeError, match="is used by transport"):
                await env.loop.sock_recvfrom(sock, 10)
            assert not transport.is_closing()

    run(main)


def test_a_failing_factory_leaves_nothing_open() -> None:
    async def scenario(env: Env) -> None:
        def factory() -> Any:
            raise ZeroDivisionError("no protocol")

        sock = plain_socket()
        with pytest.raises(ZeroDivisionError):
            await env.loop.create_datagram_endpoint(factory, sock=sock)
        env.log("still open", sock.fileno() >= 0)
        sock.close()

    support.compare(scenario)


def test_cancelled_while_it_is_made(run: Any) -> None:
    async def main(env: Env) -> None:
        recorder = DatagramRecorder()
        task = asyncio.ensure_future(
            env.loop.create_datagram_endpoint(lambda: recorder, sock=plain_socket())
        )
        await turns(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turns(3)
        assert recorder.names() == ["connection_made", "connection_lost"]

    run(main)


def test_a_failing_connection_made_is_reported_and_the_endpoint_lives() -> None:
    async def scenario(env: Env) -> None:
        def fails(_: Any, transport: Any) -> None:
            raise ZeroDivisionError("not now")

        recorder = DatagramRecorder(env, on={"connection_made": fails})
        async with endpoint(recorder) as (transport, _):
            with plain_socket() as peer:
                peer.sendto(b"hello", address_of(transport))
                await recorder.until("datagram_received")

    support.compare(scenario)


def test_reuse_port(run: Any) -> None:
    async def main() -> None:
        arguments = {"local_addr": ("127.0.0.1", 0), "reuse_port": True}
        async with endpoint(**arguments) as (first, _):
            async with endpoint(local_addr=address_of(first), reuse_port=True) as (second, _):
                assert address_of(first) == address_of(second)
            with pytest.raises(OSError):
                async with endpoint(local_addr=address_of(first)):
                    pass

    run(main)


def test_address_lists_are_tried_in_order(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """local_addr and remote_addr may each stand for several addresses of several families."""

    async def main(env: Env) -> None:
        def many(host: str, port: int, **rest: Any) -> list[Any]:
            kind, name = socket.SOCK_DGRAM, ""
            return [
                (socket.AF_INET, kind, 17, name, ("203.0.113.1", port)),
                (socket.AF_INET, kind, 6, name, ("127.0.0.1", port)),
                (socket.AF_INET, kind, 0, name, ("127.0.0.1", port)),
            ]

        async def getaddrinfo(host: Any, port: Any, **rest: Any) -> Any:
            return many(host, port, **rest)

        monkeypatch.setattr(env.loop, "getaddrinfo", getaddrinfo)
        async with endpoint(local_addr=("several.test", 0)) as (transport, _):
            assert address_of(transport)[0] == "127.0.0.1"
            assert transport.get_extra_info("socket").proto == 0

    run(main)


def test_a_protocol_number_of_its_own(run: Any) -> None:
    async def main() -> None:
        arguments = {"family": socket.AF_INET, "proto": socket.IPPROTO_UDP, "flags": 0}
        async with endpoint(local_addr=("127.0.0.1", 0), **arguments) as (transport, _):
            assert transport.get_extra_info("socket").proto == socket.IPPROTO_UDP

    run(main)


def test_without_any_address_but_a_family(run: Any) -> None:
    async def main() -> None:
        async with (
            endpoint() as (server, recorder),
            endpoint(family=socket.AF_INET) as (client, _),
        ):
            client.sendto(b"x", address_of(server))
            await recorder.until("datagram_received")
            assert recorder.senders[0] == (
                "127.0.0.1",
                client.get_extra_info("socket").getsockname()[1],
            )

    run(main)


# --------------------------------------------------------------------------- what comes in


@pytest.mark.parametrize("size", [0, 1, 1472, 8192, 16384, 65506, 65507])
def test_sizes_come_whole(run: Any, size: int) -> None:
    async def main() -> None:
        data = os.urandom(size)
        async with endpoint() as (transport, recorder):
            with plain_socket() as peer:
                for datagram in (b"before", data, b"after"):
                    peer.sendto(datagram, address_of(transport))
                await recorder.until("datagram_received", 3)
                assert recorder.datagrams == [b"before", data, b"after"]
                assert [type(item) for item in recorder.datagrams] == [bytes] * 3

    run(main)


def test_many_large_ones_at_once(run: Any) -> None:
    """A whole batch of the largest datagrams, which no memory of one read would hold."""

    async def main() -> None:
        sock = plain_socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        count = min(40, sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 140_000)
        assert count > 1
        datagrams = [bytes([number]) * (65507 - number) for number in range(count)]
        with plain_socket() as peer:
            for datagram in datagrams:
                peer.sendto(datagram, sock.getsockname())
            async with endpoint(sock=sock) as (_, recorder):
                await recorder.until("datagram_received", count)
                assert recorder.datagrams == datagrams

    run(main)


def test_senders_are_told_apart(run: Any) -> None:
    """More senders than any cache of addresses holds, in turns."""

    async def main() -> None:
        peers = [plain_socket() for _ in range(40)]
        async with endpoint() as (transport, recorder):
            for turn in range(3):
                for number, peer in enumerate(peers):
                    peer.sendto(b"%d %d" % (turn, number), address_of(transport))
                await recorder.until("datagram_received", (turn + 1) * len(peers))
        expected = [peer.getsockname() for peer in peers] * 3
        assert recorder.senders == expected
        for peer in peers:
            peer.close()

    run(main)


@needs_ipv6
def test_ipv6_addresses_have_four_parts(run: Any) -> None:
    """IPv6 flow info and scope."""

    async def main() -> None:
        async with endpoint(local_addr=("::1", 0)) as (transport, recorder):
            with plain_socket(socket.AF_INET6) as peer:
                peer.sendto(b"x", address_of(transport))
                await recorder.until("datagram_received")
                assert recorder.senders == [peer.getsockname()]
                assert len(recorder.senders[0]) == 4
                for address in (
                    peer.getsockname(),
                    peer.getsockname()[:2],
                    (*peer.getsockname()[:2], 5),
                ):
                    transport.sendto(b"back", address)
                    assert support.readable(peer, 5)
                    assert peer.recv(10) == b"back"

    run(main)


def link_local() -> tuple[str, int] | None:
    """A link-local address of this machine and its interface's number."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, index, _, scope, *_ = line.split()
        if scope == "20":
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(number)), int(index, 16)
    return None


@pytest.mark.skipif(link_local() is None, reason="this machine has no link-local address")
def test_ipv6_scope(run: Any) -> None:
    async def main(env: Env) -> None:
        found = link_local()
        assert found is not None
        host, index = found
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer:
            peer.bind((host, 0, 0, index))
            async with endpoint(local_addr=("::", 0)) as (transport, recorder):
                port = address_of(transport)[1]
                peer.sendto(b"x", (host, port, 0, index))
                await recorder.until("datagram_received")
                assert recorder.senders[0][3] == index
                transport.sendto(b"back", recorder.senders[0])
                assert support.readable(peer, 5)
                assert peer.recvfrom(10)[1][3] == index

    run(main)


def test_an_ipv4_sender_on_a_dual_stack_socket(run: Any) -> None:
    if not support.has_ipv6():
        pytest.skip("this machine has no ::1")

    async def main() -> None:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        async with endpoint(sock=sock) as (transport, recorder):
            with plain_socket() as peer:
                peer.sendto(b"x", ("127.0.0.1", address_of(transport)[1]))
                await recorder.until("datagram_received")
                assert recorder.senders == [("::ffff:127.0.0.1", peer.getsockname()[1], 0, 0)]
                transport.sendto(b"back", recorder.senders[0])
                assert support.readable(peer, 5)

    run(main)


# --------------------------------------------------------------------------- Unix


def test_unix_datagrams_between_paths(run: Any, short_tmp: Path) -> None:
    """uv#196: AF_UNIX through create_datagram_endpoint()."""

    async def main() -> None:
        names = str(short_tmp / "a"), str(short_tmp / "b")
        family = {"family": socket.AF_UNIX}
        async with (
            endpoint(local_addr=names[0], **family) as (first, recorder),
            endpoint(local_addr=names[1], remote_addr=names[0], **family) as (second, answers),
        ):
            assert first.get_extra_info("sockname") == names[0]
            assert first.get_extra_info("peername") is None
            assert second.get_extra_info("peername") == names[0]
            second.sendto(b"hello")
            await recorder.until("datagram_received")
            assert recorder.senders == [names[1]]
            first.sendto(b"hello back", names[1])
            await answers.until("datagram_received")
            assert answers.senders == [names[0]]

    run(main)


def test_a_stale_path_is_removed(run: Any, short_tmp: Path) -> None:
    async def main() -> None:
        name = str(short_tmp / "stale")
        plain_socket(socket.AF_UNIX, name).close()
        assert os.path.exists(name)
        async with endpoint(local_addr=name, family=socket.AF_UNIX) as (transport, _):
            assert address_of(transport) == name

    run(main)


def test_abstract_names_are_bytes(run: Any) -> None:
    """uv#304: abstract names, with their exact length."""

    async def main() -> None:
        name = abstract_name("server")
        async with endpoint(local_addr=name, family=socket.AF_UNIX) as (transport, recorder):
            assert address_of(transport) == name.encode()
            with plain_socket(socket.AF_UNIX, abstract_name("client")) as peer:
                peer.sendto(b"x", name)
                await recorder.until("datagram_received")
                assert recorder.senders == [abstract_name("client").encode()]
                transport.sendto(b"back", recorder.senders[0])
                assert support.readable(peer, 5)
                assert peer.recvfrom(10) == (b"back", name.encode())

    run(main)


def test_an_unnamed_unix_sender(run: Any) -> None:
    async def main() -> None:
        name = abstract_name("server")
        async with endpoint(local_addr=name, family=socket.AF_UNIX) as (_, recorder):
            with plain_socket(socket.AF_UNIX) as peer, plain_socket(socket.AF_UNIX) as check:
                peer.sendto(b"x", name)
                await recorder.until("datagram_received")
                check.bind("\0" + "check" + name[1:])
                peer.sendto(b"x", check.getsockname())
                assert recorder.senders == [check.recvfrom(10)[1]] == [None]

    run(main)


def test_a_socketpair(run: Any) -> None:
    """uv#269, uv#286: both ends of socket.socketpair(); they have no names, so only one receives.

    asyncio cannot send on such a socket: it takes the empty peer name for none.
    """

    async def main(env: Env) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            async with endpoint(sock=ours) as (transport, recorder):
                assert transport.get_extra_info("peername") == ""
                theirs.send(b"x")
                theirs.send(b"")
                await recorder.until("datagram_received", 2)
                assert recorder.datagrams == [b"x", b""]
                assert recorder.senders == [None, None]
                transport.sendto(b"answer")
                [(message, exception)] = env.take_errors()
                assert message == "Fatal write error on datagram transport"
                assert exception.startswith("TypeError")
                await recorder.until("connection_lost")

    run(main)


def test_large_unix_datagrams(run: Any) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
            datagrams = [os.urandom(100_000), os.urandom(150_000), b"x"]
            async with endpoint(sock=ours) as (_, recorder):
                for datagram in datagrams:
                    theirs.send(datagram)
                    await eventually(lambda: not support.readable(ours))
                assert recorder.datagrams == datagrams

    run(main)


# --------------------------------------------------------------------------- sockets not ours


class OwnSocket(socket.socket):
    """Somebody's socket class with a sendto() of its own, as proxies have it."""

    sent: ClassVar[list[Any]] = []

    def sendto(self, *args: Any) -> int:  # type: ignore[override]
        self.sent.append(args)
        return super().sendto(*args)


def test_a_socket_class_of_ones_own_is_asked(run: Any) -> None:
    async def main() -> None:
        sock = OwnSocket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        async with endpoint(sock=sock) as (transport, recorder):
            transport.sendto(b"to myself", sock.getsockname())
            await recorder.until("datagram_received")
            assert OwnSocket.sent == [(b"to myself", sock.getsockname())]
        OwnSocket.sent.clear()

    run(main)


def test_a_patched_socket_method_is_asked(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        seen = []

        def recvfrom(self: socket.socket, size: int) -> Any:
            seen.append(size)
            return super(socket.socket, self).recvfrom(size)

        monkeypatch.setattr(socket.socket, "recvfrom", recvfrom, raising=False)
        async with endpoint(Echo()) as (transport, _):
            with plain_socket() as peer:
                peer.sendto(b"x", address_of(transport))
                await eventually(lambda: support.readable(peer))
        assert seen

    run(main)


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="Linux only")
def test_other_families_keep_asyncios_own_transport(run: Any) -> None:
    async def main() -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
        sock.bind((0, 0))
        async with endpoint(sock=sock) as (transport, _):
            assert type(transport).__module__ == "asyncio.selector_events"
            assert transport.get_extra_info("sockname")[0] != 0
            await turns(2)

    run(main)
