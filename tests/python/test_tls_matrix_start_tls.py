"""start_tls at both ends, with bytes before it, while writing is paused, cut short; TLS in TLS."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import socket
import ssl
from typing import Any

import pytest
import support
import tls_support
from support import Env, Recorder, eventually, turns
from tls_support import (
    KINDS,
    PROTOCOLS,
    SIDES,
    VERSIONS,
    Peer,
    Pki,
    describe,
    echo,
    other_side,
    outcome,
    recorder,
    settle,
)


def keeps_buffered_bytes(name: str) -> bool:
    """Whether start_tls at a server moves a StreamReader's bytes to TLS (cpy#142352)."""
    source = inspect.getsource(asyncio.base_events.BaseEventLoop.start_tls)
    return tls_support.is_native(name) or "_stream_reader" in source


async def plain(env: Env, side: str, sock: Any, protocol: Any) -> Any:
    """A plain transport over SOCK."""
    if side == "server":
        made = env.loop.connect_accepted_socket(lambda: protocol, sock)
    else:
        made = env.loop.create_connection(lambda: protocol, sock=sock)
    transport, _ = await made
    return transport


def upgrade(env: Env, pki: Pki, side: str, transport: Any, protocol: Any, **kwargs: Any) -> Any:
    """loop.start_tls() for SIDE."""
    context = kwargs.pop("context", None) or pki.context(side, kwargs.pop("version", None))
    if side == "server":
        return env.loop.start_tls(transport, protocol, context, server_side=True, **kwargs)
    kwargs.setdefault("server_hostname", "localhost")
    return env.loop.start_tls(transport, protocol, context, **kwargs)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_trace_of_an_upgrade(
    tls_compare: Any, pki: Pki, side: str, kind: str, version: str, protocol: Any
) -> None:
    """Plain talk, the upgrade, secret talk, the end; connection_made only once."""

    async def scenario(env: Env) -> None:
        sock, other = support.PAIRS[kind]()
        rec = recorder(protocol)
        transport = await plain(env, side, sock, rec)
        transport.write(b"plain")
        env.log(await support.recv_exactly(other, 5))
        await support.send_all(other, b"plain too")
        await rec.until_received(9)
        context = pki.context(other_side(side), version)
        peer = Peer(other, context, server_side=side == "client")
        secure, _ = await asyncio.gather(
            upgrade(env, pki, side, transport, rec, version=version), peer.handshake()
        )
        env.log(secure is transport, secure.get_protocol() is rec)
        env.log(isinstance(secure.get_extra_info("ssl_object"), ssl.SSLObject))
        env.log(transport.get_extra_info("ssl_object"), secure.get_extra_info("socket") is not None)
        secure.write(b"secret")
        env.log(await peer.read_exactly(6))
        await peer.write(b"secret too")
        await rec.until_received(19)
        secure.close()
        env.log(await peer.read_to_end())
        await peer.close_notify()
        await rec.until("connection_lost")
        peer.close()
        env.log(rec.calls, transport.is_closing())

    tls_compare(scenario)


# --------------------------------------------------------------------------- T4


@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("version", VERSIONS)
def test_client_hello_behind_a_header(
    tls_run: Any, tls_name: str, pki: Pki, segments: int, version: str
) -> None:
    """T4: PROXY header and ClientHello in one segment, or the hello before start_tls is called."""
    if not keeps_buffered_bytes(tls_name):
        pytest.skip("the running asyncio's start_tls loses what the StreamReader has")

    async def main(env: Env) -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"PROXY TCP4\r\n"
            if segments == 2:
                await asyncio.sleep(0.02)
            await writer.start_tls(pki.server_context(version=version))
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            ended.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as sock:
            sock.setblocking(False)
            peer = Peer(sock, pki.client_context(version=version))
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            hello = peer.outgoing.read()
            if segments == 1:
                await peer.send_raw(b"PROXY TCP4\r\n" + hello)
            else:
                await peer.send_raw(b"PROXY TCP4\r\n")
                await peer.send_raw(hello)
            await peer.handshake()
            await peer.write(b"secret\n")
            assert await peer.read_to_end() == (b"SECRET\n", "close_notify")
            await peer.close_notify()
            await ended.wait()
        server.close()
        await server.wait_closed()

    tls_run(main)


def test_half_a_client_hello_behind_a_header(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """T4: the hello is cut in two: a part is in the reader, the rest comes later."""
    if not keeps_buffered_bytes(tls_name):
        pytest.skip("the running asyncio's start_tls loses what the StreamReader has")

    async def main(env: Env) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            await writer.start_tls(pki.server_context())
            writer.write(await reader.readexactly(5))
            await writer.drain()
            writer.close()

        sock, other = support.tcp_pair()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, serve)
        await env.loop.connect_accepted_socket(lambda: protocol, sock)
        peer = Peer(other, pki.client_context())
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        hello = peer.outgoing.read()
        await peer.send_raw(b"HEADER\n" + hello[:100])
        await asyncio.sleep(0.01)
        await peer.send_raw(hello[100:])
        await peer.handshake()
        await peer.write(b"hello")
        assert await peer.read_to_end() == (b"hello", "close_notify")
        await peer.close_notify()
        await peer.until_socket_end()
        peer.close()
        await settle()

    tls_run(main)


def test_plaintext_before_the_upgrade_at_a_client(tls_compare: Any, pki: Pki) -> None:
    """What a client's reader had before start_tls is treated as by asyncio."""

    async def scenario(env: Env) -> None:
        sock, other = support.tcp_pair()
        reader, writer = await asyncio.open_connection(sock=sock)
        await support.send_all(other, b"220 ready\n250 injected\n")
        env.log(await reader.readline())
        peer = Peer(other, pki.server_context(), server_side=True)
        await asyncio.gather(
            writer.start_tls(pki.client_context(), server_hostname="localhost"),
            peer.handshake(),
        )
        await peer.write(b"secret\n")
        env.log(await reader.readline())
        env.log(len(await reader.readline()) if env.trace[-1] != (b"secret\n",) else 0)
        writer.close()
        await peer.read_to_end()
        await peer.close_notify()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        peer.close()

    tls_compare(scenario, check_warnings=False)


# --------------------------------------------------------------------------- T5


@pytest.mark.parametrize("side", SIDES)
def test_upgrade_while_writing_is_paused(tls_run: Any, tls_name: str, pki: Pki, side: str) -> None:
    """T5: what was queued goes out first; the upgrade works; writing is resumed.

    asyncio's SSLProtocol meets a resume_writing() it knows nothing of (cpy#109051): an
    AssertionError for the exception handler, and the protocol stays paused.
    """

    async def main(env: Env) -> None:
        sock, other = support.tcp_pair()
        rec = Recorder()
        transport = await plain(env, side, sock, rec)
        queued = 0
        while not rec.count("pause_writing"):
            transport.write(b"p" * 65536)
            queued += 65536
        peer = Peer(other, pki.context(other_side(side)), server_side=side == "client")
        task = asyncio.ensure_future(upgrade(env, pki, side, transport, rec))
        await turns(3)
        assert await support.recv_exactly(other, queued) == b"p" * queued
        await peer.handshake()
        secure = await task
        await peer.write(b"secret")
        assert await rec.until_received(6) == b"secret"
        if tls_support.is_native(tls_name):
            await rec.until("resume_writing")
            assert env.take_errors() == []
        secure.write(b"x" * 100_000)
        assert await peer.read_exactly(100_000) == b"x" * 100_000
        for message, _ in env.take_errors():
            assert message == "protocol.resume_writing() failed"
        # A pause over TLS is known to the end, too.
        before = rec.count("pause_writing")
        secure.set_write_buffer_limits(high=1000)
        written = 0
        while secure.get_write_buffer_size() < 1000:
            secure.write(bytes(65536))
            written += 65536
        if tls_support.is_native(tls_name):
            assert rec.count("pause_writing") == before + 1
        await peer.read_exactly(written)
        await eventually(lambda: secure.get_write_buffer_size() == 0)
        assert rec.count("resume_writing") == rec.count("pause_writing") or (
            not tls_support.is_native(tls_name)
        )
        secure.abort()
        peer.close()
        await settle()

    tls_run(main)


def test_upgrade_right_behind_writes_that_pause(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """T5: what the same callback wrote goes out with the upgrade, and may be what pauses."""
    if not tls_support.is_native(tls_name):
        pytest.skip("asyncio's SSLProtocol meets a resume_writing() it knows nothing of")

    async def main(env: Env) -> None:
        sock, other = support.unix_pair()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        rec = Recorder()
        transport = await plain(env, "client", sock, rec)
        del sock  # Who holds it could close it, so that nothing would be gathered.
        transport.set_write_buffer_limits(high=1000)
        peer = Peer(other, pki.context("server"), server_side=True)

        async def answer() -> None:
            assert await support.recv_exactly(other, 50_100) == b"p" * 50_100
            await peer.handshake()

        answering = asyncio.ensure_future(answer())
        await turns(2)
        # In one callback: the first is sent at once, the second waits for the callback's end, and
        # the upgrade comes before that.
        transport.write(b"p" * 100)
        transport.write(b"p" * 50_000)
        assert not rec.count("pause_writing")
        secure = await upgrade(env, pki, "client", transport, rec)
        await answering
        assert rec.count("pause_writing") == 1
        await rec.until("resume_writing")
        assert rec.count("resume_writing") == rec.count("pause_writing")
        assert env.take_errors() == []
        secure.write(b"hello")
        assert await peer.read_exactly(5) == b"hello"
        secure.abort()
        peer.close()
        await settle()

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("after", range(10))
@pytest.mark.parametrize("how", ["cancel", "abort plain", "peer resets", "peer closes", "garbage"])
def test_upgrade_cut_short(tls_run: Any, pki: Pki, side: str, after: int, how: str) -> None:
    """T5: at each step: the waiter ends, connection_lost at most once, the descriptor is closed."""

    async def main(env: Env) -> None:
        sock, other = support.unix_pair()
        rec = Recorder()
        transport = await plain(env, side, sock, rec)
        peer = Peer(other, pki.context(other_side(side)), server_side=side == "client")
        task = asyncio.ensure_future(upgrade(env, pki, side, transport, rec))
        shaking = asyncio.ensure_future(peer.handshake())
        for _ in range(after):
            await asyncio.sleep(0.0004 if after > 5 else 0)
        finished = task.done()
        if how == "cancel":
            task.cancel()
        elif how == "abort plain":
            transport.abort()
        else:
            shaking.cancel()
            if how == "garbage":
                await peer.send_raw(b"garbage" * 20)
            elif how == "peer resets":
                support.reset(other)
            await asyncio.sleep(0)
            peer.close()
        try:
            secure = await task
        except (asyncio.CancelledError, OSError):
            secure = None
        if secure is not None:
            secure.abort()
        shaking.cancel()
        with contextlib.suppress(asyncio.CancelledError, ssl.SSLError, OSError):
            await shaking
        peer.close()
        del task
        await asyncio.sleep(0.003)
        # asyncio does not call it when the handshake was still going on.
        assert rec.count("connection_lost") <= 1
        if finished:
            assert rec.count("connection_lost") == 1
        assert transport.is_closing()
        assert sock.fileno() == -1

    tls_run(main, check_warnings=False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", ["http", "eof", "reset", "timeout"])
def test_failed_upgrade(tls_compare: Any, pki: Pki, side: str, case: str) -> None:
    """T5: which exception, and whether connection_lost is called, is as on asyncio."""

    async def scenario(env: Env) -> None:
        sock, other = support.tcp_pair()
        rec = Recorder()
        transport = await plain(env, side, sock, rec)
        options = {"ssl_handshake_timeout": 0.05} if case == "timeout" else {}
        task = asyncio.ensure_future(upgrade(env, pki, side, transport, rec, **options))
        await turns(4)
        if case == "http":
            await support.send_all(other, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        elif case == "eof":
            support.recv_now(other)
            other.close()
        elif case == "reset":
            support.recv_now(other)
            support.reset(other)
        env.log(await outcome(task))
        await settle()
        env.log(rec.calls, transport.is_closing(), sock.fileno() != -1)
        other.close()

    tls_compare(scenario)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_upgrade_verifies(tls_compare: Any, pki: Pki, debug: bool) -> None:
    async def scenario(env: Env) -> None:
        for cert, name in (("expired", "localhost"), ("server", "other.test")):
            sock, other = support.tcp_pair()
            rec = Recorder()
            transport = await plain(env, "client", sock, rec)
            peer = Peer(other, pki.server_context(cert, "TLSv1.2"), server_side=True)
            shaking = asyncio.ensure_future(peer.handshake())
            try:
                await upgrade(env, pki, "client", transport, rec, server_hostname=name)
            except ssl.SSLCertVerificationError as exc:
                env.log(describe(exc), exc.verify_code)
            with contextlib.suppress(ssl.SSLError):
                await shaking
            peer.close()
            await settle()
            env.log(rec.calls)

    tls_compare(scenario, debug=debug)


def test_arguments(tls_compare: Any, pki: Pki) -> None:
    """TypeErrors and ValueErrors of start_tls, and that the transport survives the first kind."""

    async def scenario(env: Env) -> None:
        sock, other = support.tcp_pair()
        rec = Recorder()
        transport = await plain(env, "client", sock, rec)
        context = pki.client_context()
        for args, kwargs in (
            ((transport, rec, None), {}),
            ((transport, rec, True), {}),
            ((transport, rec, "context"), {}),
            ((None, rec, context), {}),
            ((object(), rec, context), {}),
            ((asyncio.Transport(), rec, context), {}),
            ((transport, rec, context), {"ssl_handshake_timeout": 0}),
            ((transport, rec, context), {"ssl_handshake_timeout": -1}),
            ((transport, rec, context), {"ssl_shutdown_timeout": 0}),
            ((transport, rec, context), {"server_side": True}),
        ):
            made = env.loop.start_tls(*args, **kwargs)
            if kwargs == {"server_side": True}:
                # A client's context at a server: OpenSSL's own error.
                task = asyncio.ensure_future(made)
                await turns(3)
                await support.send_all(other, b"\x16\x03\x01\x00\x01\x01")
                other.close()
                env.log(type(await outcome(task)))
            else:
                result = await outcome(made)
                env.log(type(result), str(result).partition("<")[0])
                env.log(transport.is_closing())
        transport.abort()
        await settle()

    tls_compare(scenario, check_warnings=False)


# --------------------------------------------------------------------------- streams, protocols


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_streams_at_both_ends(tls_run: Any, pki: Pki, kind: str, version: str) -> None:
    """STARTTLS as SMTP does it, then megabytes through drain() and readexactly()."""

    async def main(env: Env) -> None:
        data = os.urandom(1_500_000)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go ahead\n")
            await writer.drain()
            await writer.start_tls(pki.server_context(version=version))
            # A client that sends much before this is the next test.
            writer.write(b"ready\n")
            writer.write((await reader.readexactly(len(data)))[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        with support.short_directory() as directory:
            if kind == "tcp":
                server: Any = await asyncio.start_server(serve, "127.0.0.1", 0)
                opened = asyncio.open_connection(*server.sockets[0].getsockname())
            else:
                server = await asyncio.start_unix_server(serve, str(directory / "s"))
                opened = asyncio.open_unix_connection(str(directory / "s"))
            reader, writer = await opened
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go ahead\n"
            await writer.start_tls(pki.client_context(), server_hostname="localhost")
            assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
            assert await reader.readline() == b"ready\n"
            writer.write(data)
            await writer.drain()
            assert await reader.readexactly(len(data)) == data[::-1]
            assert await reader.read() == b""
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()
            server.close()
            await server.wait_closed()

    tls_run(main)


def test_much_data_in_the_last_flight(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """More than the reader's limit comes before the server's start_tls() has returned.

    asyncio's reader then pauses the plain transport, which nobody resumes: its user hangs.
    """
    if not tls_support.is_native(tls_name):
        pytest.skip("asyncio's StreamReader still has the plain transport, and pauses that one")

    async def main(env: Env) -> None:
        data = os.urandom(900_000)
        got: asyncio.Future[bytes] = env.loop.create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            await writer.start_tls(pki.server_context(version="TLSv1.3"))
            got.set_result(await reader.readexactly(len(data)))
            writer.close()

        sock, other = support.unix_pair()
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(), serve)
        await env.loop.connect_accepted_socket(lambda: protocol, sock)
        peer = Peer(other, pki.client_context(version="TLSv1.3"))
        await peer.send_raw(b"STARTTLS\n")
        await asyncio.sleep(0.01)
        while True:
            try:
                peer.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await peer.flush()
                await peer.pull()
        # The handshake's last bytes and the data go out as fast as the socket takes them.
        for start in range(0, len(data), 16384):
            peer.tls.write(data[start : start + 16384])
        await peer.flush()
        assert await got == data
        await peer.read_to_end()
        await peer.close_notify()
        await peer.until_socket_end()
        peer.close()
        await settle()

    tls_run(main, timeout=10)


@pytest.mark.parametrize("before", PROTOCOLS)
@pytest.mark.parametrize("behind", PROTOCOLS)
def test_another_protocol_for_the_secret_part(
    tls_run: Any, pki: Pki, before: Any, behind: Any
) -> None:
    """start_tls with a protocol that is not the plain transport's, of either kind."""

    async def main(env: Env) -> None:
        first, second = support.tcp_pair()
        one, two = recorder(before), recorder(behind)
        transport = await plain(env, "server", first, one)
        peer = Peer(second, pki.client_context())
        secure, _ = await asyncio.gather(
            upgrade(env, pki, "server", transport, two), peer.handshake()
        )
        data = os.urandom(300_000)
        await peer.write(data)
        assert await two.until_received(len(data)) == data
        assert one.names() == ["connection_made"]
        await peer.close_notify()
        await two.until("connection_lost")
        assert two.names() == ["data_received", "eof_received", "connection_lost"]
        assert one.names() == ["connection_made"]
        assert secure.is_closing()
        peer.close()

    tls_run(main)


def test_reading_was_paused_before(tls_run: Any, pki: Pki) -> None:
    """A plain transport paused by its user is upgraded all the same, and reads then."""

    async def main(env: Env) -> None:
        first, second = support.tcp_pair()
        rec = Recorder()
        transport = await plain(env, "server", first, rec)
        transport.pause_reading()
        peer = Peer(second, pki.client_context())
        _, secure = await asyncio.gather(
            peer.handshake(), upgrade(env, pki, "server", transport, rec)
        )
        await peer.write(b"data")
        assert await rec.until_received(4) == b"data"
        secure.abort()
        peer.close()
        await settle()

    tls_run(main)


# --------------------------------------------------------------------------- TLS in TLS


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("end", ["close", "abort"])
def test_tls_in_tls(tls_run: Any, pki: Pki, protocol: Any, end: str) -> None:
    """A second layer over the first at both ends: bulk both ways, and the end of both layers."""

    async def main(env: Env) -> None:
        sides = {"server": recorder(protocol), "client": recorder(protocol)}
        async with tls_support.linked(env, pki, sides["server"], sides["client"]) as outer:
            inner = dict(
                zip(
                    SIDES,
                    await asyncio.gather(
                        upgrade(env, pki, "server", outer[0], sides["server"]),
                        upgrade(env, pki, "client", outer[1], sides["client"]),
                    ),
                    strict=True,
                )
            )
            data = random.Random(1).randbytes(1_000_000)
            for side in SIDES:
                assert inner[side].get_extra_info("ssl_object").version() == "TLSv1.3"
                inner[side].write(data)
            for side in SIDES:
                assert await sides[side].until_received(len(data)) == data
            getattr(inner["client"], end)()
            for side in SIDES:
                await sides[side].until("connection_lost")
                assert sides[side].count("connection_lost") == 1
            await asyncio.sleep(0.01)

    tls_run(main, check_warnings=False)


def test_tls_in_tls_with_streams(tls_run: Any, pki: Pki) -> None:
    """A proxy's CONNECT through https: start_tls of a StreamWriter that speaks TLS already."""

    async def main(env: Env) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"CONNECT\n"
            writer.write(b"200\n")
            await writer.drain()
            await writer.start_tls(pki.server_context())
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=pki.server_context())
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=pki.client_context(), server_hostname="localhost"
        )
        writer.write(b"CONNECT\n")
        assert await reader.readline() == b"200\n"
        await writer.start_tls(pki.client_context(), server_hostname="localhost")
        writer.write(b"through two layers\n")
        assert await reader.readline() == b"through two layers\n"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await asyncio.sleep(0.01)
        server.close()
        await server.wait_closed()

    tls_run(main, check_warnings=False)


@pytest.mark.parametrize("layer", ["inner", "outer"])
def test_a_layer_fails(tls_run: Any, pki: Pki, layer: str) -> None:
    """The inner handshake fails, or the outer connection is aborted under the inner one."""
    from asyncio import sslproto

    if layer == "inner" and "exc" not in inspect.signature(sslproto.SSLProtocol._abort).parameters:
        pytest.skip("the running asyncio's TLS transport cannot be closed by force: a TypeError")

    async def main(env: Env) -> None:
        server_side, client_side = Recorder(), Recorder()
        async with tls_support.linked(env, pki, server_side, client_side) as (server, client):
            if layer == "inner":
                results = await asyncio.gather(
                    upgrade(env, pki, "server", server, server_side),
                    upgrade(env, pki, "client", client, client_side, server_hostname="other.test"),
                    return_exceptions=True,
                )
                assert isinstance(results[1], ssl.SSLCertVerificationError)
            else:
                await asyncio.gather(
                    upgrade(env, pki, "server", server, server_side),
                    upgrade(env, pki, "client", client, client_side),
                )
                client.abort()
                await server_side.until("connection_lost")
                await client_side.until("connection_lost")
            await asyncio.sleep(0.01)
            assert server_side.count("connection_lost") <= 1
            assert client_side.count("connection_lost") <= 1

    tls_run(main, check_warnings=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_connect_accepted_socket(tls_run: Any, pki: Pki, kind: str, protocol: Any) -> None:
    """A socket that somebody else accepted, with ssl=: the server's side of it."""

    async def main(env: Env) -> None:
        sock, other = support.PAIRS[kind]()
        rec = echo(kind=protocol)
        peer = Peer(other, pki.client_context())
        (transport, made), _ = await asyncio.gather(
            env.loop.connect_accepted_socket(
                lambda: rec,
                sock,
                ssl=pki.server_context(),
                ssl_handshake_timeout=5,
                ssl_shutdown_timeout=5,
            ),
            peer.handshake(),
        )
        assert made is rec
        assert transport is rec.transport
        assert transport.get_extra_info("ssl_object").server_side
        await peer.write(b"ping" * 10_000)
        assert await peer.read_exactly(40_000) == b"ping" * 10_000
        transport.close()
        assert await peer.read_to_end() == (b"", "close_notify")
        await peer.close_notify()
        await rec.until("connection_lost")
        peer.close()

    tls_run(main)


@pytest.mark.parametrize("bad", [True, "context", 5])
def test_server_side_contexts(tls_compare: Any, pki: Pki, bad: Any) -> None:
    """ssl=True at a server, and what is no context at all."""

    async def scenario(env: Env) -> None:
        sock, other = support.tcp_pair()
        made = env.loop.connect_accepted_socket(Recorder, sock, ssl=bad)
        try:
            env.log(await outcome(made))
        except AttributeError as exc:
            env.log(exc)
        made = env.loop.create_server(Recorder, "127.0.0.1", 0, ssl=bad)
        env.log(await outcome(made) if bad is True else made.close())
        await settle()
        sock.close()
        other.close()

    tls_compare(scenario, check_warnings=False)
