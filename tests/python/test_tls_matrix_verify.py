"""TLS: certificates that are good, bad, missing or wrong, on either side."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
import support
from support import Env, Recorder
from tls_support import (
    KINDS,
    SIDES,
    VERSIONS,
    Peer,
    Pki,
    connect,
    echo,
    endpoint,
    establish,
    outcome,
    serving,
    settle,
    unconnected,
)

# Which certificate the server shows, which name the client wants, whether the client knows the
# authority.
BAD_SERVERS = {
    "unknown authority": ("server", "localhost", False),
    "self-signed": ("selfsigned", "localhost", True),
    "expired": ("expired", "localhost", True),
    "wrong name": ("other", "localhost", True),
    "wrong address": ("other", "127.0.0.1", True),
}


def bad_client_context(pki: Pki, known: bool, version: str | None = None) -> ssl.SSLContext:
    context = pki.client_context(version=version)
    if known:
        return context
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki.path("stranger-ca"))
    return context


@pytest.mark.parametrize("case", BAD_SERVERS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_client_refuses_the_server(
    tls_compare: Any, pki: Pki, case: str, version: str, debug: bool
) -> None:
    """The client's exception with code and message; no callback is ever called at the client."""
    cert, name, known = BAD_SERVERS[case]

    async def scenario(env: Env) -> None:
        context = bad_client_context(pki, known, version)
        rec = Recorder()
        sock, other = support.tcp_pair()
        peer_context = pki.server_context(cert, version)
        peer = Peer(other, peer_context, server_side=True)
        shaking = asyncio.ensure_future(peer.handshake())
        made = establish(env, "client", sock, rec, context, server_hostname=name)
        with pytest.raises(ssl.SSLCertVerificationError) as info:
            await made
        env.log(info.value.verify_code, info.value.verify_message, info.value)
        # It ends for the peer, too, be it with an alert or without.
        with contextlib.suppress(ssl.SSLError):
            await shaking
        await settle()
        env.log("calls", rec.calls, "open", sock.fileno() != -1)
        peer.close()

    tls_compare(scenario, debug=debug)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", BAD_SERVERS)
def test_server_and_client_of_the_loop(tls_compare: Any, pki: Pki, case: str, kind: str) -> None:
    """Both ends are the loop's; the server goes on and serves who trusts it."""
    cert, name, known = BAD_SERVERS[case]

    async def scenario(env: Env) -> None:
        servers: list[Recorder] = []

        def factory() -> Recorder:
            servers.append(echo())
            return servers[-1]

        async with serving(env, factory, pki.server_context(cert), kind=kind) as address:
            rec = Recorder(env, "client")
            context = bad_client_context(pki, known)
            env.log(await outcome(connect(env, address, context, rec, server_hostname=name)))
            rec = Recorder()
            lax = pki.client_context(verify=False)
            transport = await connect(env, address, lax, rec, server_hostname=name)
            transport.write(b"ping")
            await rec.until_received(4)
            transport.close()
            await rec.until("connection_lost")
            env.log("lax client", rec.calls)

    tls_compare(scenario)


def test_streams_raise_the_same(tls_compare: Any, pki: Pki) -> None:
    """open_connection() raises; the server's callback is never called with a refused client."""

    async def scenario(env: Env) -> None:
        called = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            called.append(1)
            # In TLS 1.3 the server is done before the client judges it, in 1.2 it is not.
            writer.close()

        context = pki.server_context("expired", "TLSv1.2")
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        for _ in range(2):
            with pytest.raises(ssl.SSLCertVerificationError) as info:
                await asyncio.open_connection(
                    *server.sockets[0].getsockname(),
                    ssl=pki.client_context(),
                    server_hostname="localhost",
                )
            env.log(info.value.verify_code, info.value)
        await asyncio.sleep(0.02)
        env.log("called", called)
        server.close()
        await server.wait_closed()

    tls_compare(scenario)


def test_name_needed(tls_compare: Any, pki: Pki) -> None:
    """Without a name to check the call fails; whose the socket is then is as on asyncio."""

    async def scenario(env: Env) -> None:
        options: dict[str, Any]
        for options in ({}, {"server_hostname": ""}, {"server_hostname": None}):
            sock, other = support.tcp_pair()
            rec = Recorder(env)
            peer = Peer(other, pki.server_context(), server_side=True)
            shaking = asyncio.ensure_future(peer.handshake())
            made = env.loop.create_connection(
                lambda rec=rec: rec, sock=sock, ssl=pki.client_context(), **options
            )
            env.log(options, await outcome(made))
            if rec.transport is not None:
                rec.transport.abort()
            await settle()
            shaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ssl.SSLError):
                await shaking
            sock.close()
            other.close()
        # A context that does not check needs none.
        rec = Recorder()
        lax = pki.client_context(verify=False)
        async with unconnected(env, pki, "client", rec, context=lax, server_hostname="") as (
            task,
            peer,
        ):
            shaking = asyncio.ensure_future(peer.handshake())
            transport = await task
            await shaking
            env.log(transport.get_extra_info("ssl_object").server_hostname)

    tls_compare(scenario, check_warnings=False)


# --------------------------------------------------------------------------- client certificates

CLIENT_CERTS = {
    "good": "client",
    "missing": None,
    "of a stranger": "stranger",
    "self-signed": "selfsigned",
    "expired": "expired",
}


@pytest.mark.parametrize(
    "mode", [ssl.CERT_OPTIONAL, ssl.CERT_REQUIRED], ids=["optional", "required"]
)
@pytest.mark.parametrize("cert", CLIENT_CERTS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_client_certificate_at_the_server(
    tls_compare: Any, pki: Pki, cert: str, mode: ssl.VerifyMode, version: str, debug: bool
) -> None:
    """The server's outcome, its peercert, its callbacks, its exception handler."""

    async def scenario(env: Env) -> None:
        context = pki.server_context(version=version)
        pki.want_client_cert(context, mode)
        rec = Recorder()
        async with unconnected(
            env,
            pki,
            "server",
            rec,
            context=context,
            peer_context=pki.client_context(CLIENT_CERTS[cert], version),
        ) as (task, peer):
            shaking = asyncio.ensure_future(peer.handshake())
            result = await outcome(task)
            env.log(result)
            with contextlib.suppress(ssl.SSLError):
                await shaking
            if result == "done":
                transport = task.result()
                peercert = transport.get_extra_info("peercert")
                env.log(sorted(peercert) if peercert else peercert)
                await peer.write(b"ping")
                env.log(await rec.until_received(4))
            env.log(rec.calls)

    tls_compare(scenario, debug=debug)


@pytest.mark.parametrize("cert", ["good", "missing", "of a stranger"])
@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificate_at_the_client(
    tls_compare: Any, pki: Pki, cert: str, version: str
) -> None:
    """With TLS 1.3 the client is connected before the server refuses it: it then loses it."""

    async def scenario(env: Env) -> None:
        peer_context = pki.server_context(version=version)
        pki.want_client_cert(peer_context, ssl.CERT_REQUIRED)
        rec = Recorder()
        async with unconnected(
            env,
            pki,
            "client",
            rec,
            context=pki.client_context(CLIENT_CERTS[cert], version),
            peer_context=peer_context,
        ) as (task, peer):
            shaking = asyncio.ensure_future(peer.handshake())
            env.log(await outcome(task))
            try:
                await shaking
            except ssl.SSLError as exc:
                env.log("refused", exc)
            if cert == "good":
                env.log(bool(peer.tls.getpeercert()))
                await peer.write(b"ping")
                await rec.until_received(4)
            elif rec.calls:
                await rec.until("connection_lost")
            env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
def test_certificate_asked_for_later(tls_run: Any, pki: Pki, side: str) -> None:
    """T9: TLS 1.3 authentication after the handshake, at both ends."""

    async def main(env: Env) -> None:
        server_context = pki.server_context(version="TLSv1.3")
        pki.want_client_cert(server_context, ssl.CERT_REQUIRED)
        client_context = pki.client_context("client", "TLSv1.3")
        server_context.post_handshake_auth = client_context.post_handshake_auth = True
        ours, theirs = server_context, client_context
        if side == "client":
            ours, theirs = theirs, ours
        rec = echo()
        async with endpoint(env, pki, side, rec, context=ours, peer_context=theirs) as (
            transport,
            peer,
        ):
            await peer.write(b"ping")
            assert await peer.read_exactly(4) == b"ping"
            sslobj = transport.get_extra_info("ssl_object")
            server_object = sslobj if side == "server" else peer.tls
            assert server_object.getpeercert() is None
            server_object.verify_client_post_handshake()
            # The request goes out with the next write, and the answer comes with a read.
            if side == "server":
                transport.write(b"please")
                assert await peer.read_exactly(6) == b"please"
                await peer.write(b"here")
                await rec.until_received(8)
            else:
                await peer.write(b"please")
                assert await peer.read_exactly(6) == b"please"
            assert server_object.getpeercert()

    tls_run(main)
