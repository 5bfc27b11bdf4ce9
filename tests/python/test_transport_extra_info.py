"""get_extra_info: complete, and true also when the peer is gone."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import pytest
import support
from support import Env, Recorder, attach, turns

KEYS = [
    "socket",
    "sockname",
    "peername",
    "sslcontext",
    "ssl_object",
    "peercert",
    "cipher",
    "compression",
    "pipe",
    "subprocess",
    "addr",
    "something else",
    "",
    None,
    5,
]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_keys_of_a_plain_transport(kind: str) -> None:
    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(), kind) as (transport, _peer):
            for key in KEYS:
                value = transport.get_extra_info(key)
                if key in ("sockname", "peername") and kind == "tcp":
                    value = (value[0], type(value[1]).__name__)
                env.log(key, value, type(value))
                env.log(key, "with default", transport.get_extra_info(key, "default") == "default")
            env.log(transport.get_extra_info("nothing", default=3))
            for wrong in ((), ("a", "b", "c")):
                with pytest.raises(TypeError):
                    transport.get_extra_info(*wrong)
            with pytest.raises(TypeError):
                transport.get_extra_info([])

    support.compare(scenario)


def test_addresses(run: Any) -> None:
    async def main() -> None:
        sock, peer = support.tcp_pair()
        addresses = sock.getsockname(), sock.getpeername()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        assert transport.get_extra_info("sockname") == addresses[0]
        assert transport.get_extra_info("peername") == addresses[1]
        assert type(transport.get_extra_info("peername")) is tuple
        transport.close()
        await rec.until("connection_lost")
        await turns(1)
        # They are remembered after the end.
        assert transport.get_extra_info("sockname") == addresses[0]
        assert transport.get_extra_info("peername") == addresses[1]
        peer.close()

    run(main)


def test_addresses_of_ipv6() -> None:
    if not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def scenario(env: Env) -> None:
        server_side = Recorder()
        server = await env.loop.create_server(lambda: server_side, "::1", 0)
        address = server.sockets[0].getsockname()
        client_side = Recorder()
        transport, _ = await env.loop.create_connection(lambda: client_side, *address[:2])
        await server_side.until("connection_made")
        accepted = server_side.transport
        for side in (transport, accepted):
            for key in ("sockname", "peername"):
                value = side.get_extra_info(key)
                env.log(key, value[0], len(value), value[2:])
        assert transport.get_extra_info("sockname") == accepted.get_extra_info("peername")
        assert transport.get_extra_info("peername") == accepted.get_extra_info("sockname")
        transport.close()
        await server_side.until("connection_lost")
        server.close()
        await server.wait_closed()

    support.compare(scenario)


def test_socket_is_a_transport_socket(run: Any) -> None:
    """A TransportSocket with the whole of its interface, and nothing that moves bytes.

    niquests#166.
    """

    async def main() -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            sock = transport.get_extra_info("socket")
            assert type(sock) is asyncio.trsock.TransportSocket
            assert transport.get_extra_info("socket") is sock
            assert sock.family == socket.AF_INET and isinstance(sock.family, socket.AddressFamily)
            assert sock.type == socket.SOCK_STREAM and isinstance(sock.type, socket.SocketKind)
            assert sock.proto == socket.IPPROTO_TCP
            assert sock.fileno() >= 0
            assert sock.getsockname() == peer.getpeername()
            assert sock.getpeername() == peer.getsockname()
            assert sock.gettimeout() == 0
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            copy = sock.dup()
            assert copy.fileno() != sock.fileno()
            copy.close()
            assert not hasattr(sock, "recv") and not hasattr(sock, "close")
            with pytest.raises(ValueError):
                sock.setblocking(True)
            sock.shutdown(socket.SHUT_WR)
            assert await support.recv_exactly(peer, 1) == b""

    run(main)


def test_socket_after_the_end() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, _peer):
            sock = transport.get_extra_info("socket")
            transport.close()
            await rec.until("connection_lost")
            await turns(1)
            env.log(sock.fileno(), transport.get_extra_info("socket") is sock)

    support.compare(scenario)


def test_server_side_socket_names(run: Any) -> None:
    """Accepted sockets have TCP_NODELAY, family, type and proto as asyncio's."""

    async def main(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            await rec.until("connection_made")
            sock = rec.transport.get_extra_info("socket")
            assert type(sock) is asyncio.trsock.TransportSocket
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert rec.transport.get_extra_info("peername") == client.getsockname()
            assert rec.transport.get_extra_info("sockname") == client.getpeername()
            rec.transport.abort()
            await rec.until("connection_lost")
        server.close()
        await server.wait_closed()

    run(main)


def test_peername_although_the_peer_is_gone(run: Any) -> None:
    """uv#560: the address comes from accept4, so a reset before that does not lose it."""

    async def main(env: Env) -> None:
        recorders: list[Recorder] = []

        def factory() -> Recorder:
            recorders.append(Recorder())
            return recorders[-1]

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        names = []
        for how in ("reset", "close", "reset"):
            client = socket.create_connection(server.sockets[0].getsockname())
            names.append(client.getsockname())
            support.reset(client) if how == "reset" else client.close()
        await support.eventually(lambda: len(recorders) == 3)
        for rec in recorders:
            await rec.until("connection_lost")
        assert [rec.transport.get_extra_info("peername") for rec in recorders] == names
        server.close()
        await server.wait_closed()

    run(main)


def test_keys_over_tls(run: Any, certs: support.Certificates) -> None:
    async def main(env: Env) -> None:
        server_context, client_context = certs.server_context(), certs.client_context()
        server_side, client_side = Recorder(), Recorder()
        server = await env.loop.create_server(
            lambda: server_side, "127.0.0.1", 0, ssl=server_context
        )
        transport, _ = await env.loop.create_connection(
            lambda: client_side,
            *server.sockets[0].getsockname(),
            ssl=client_context,
            server_hostname="localhost",
        )
        await server_side.until("connection_made")
        accepted = server_side.transport
        assert transport.get_extra_info("sslcontext") is client_context
        assert accepted.get_extra_info("sslcontext") is server_context
        for side in (transport, accepted):
            assert isinstance(side, asyncio.Transport)
            assert isinstance(side.get_extra_info("ssl_object"), ssl.SSLObject)
            assert side.get_extra_info("cipher") == side.get_extra_info("ssl_object").cipher()
            assert side.get_extra_info("compression") is None
            assert type(side.get_extra_info("socket")) is asyncio.trsock.TransportSocket
            assert side.get_extra_info("unknown", 7) == 7
        peercert = transport.get_extra_info("peercert")
        assert ("DNS", "localhost") in peercert["subjectAltName"]
        assert not accepted.get_extra_info("peercert")
        assert transport.get_extra_info("sockname") == accepted.get_extra_info("peername")
        assert transport.get_extra_info("peername") == accepted.get_extra_info("sockname")
        transport.close()
        await server_side.until("connection_lost")
        await client_side.until("connection_lost")
        server.close()
        await server.wait_closed()

    run(main)
