"""TLS: resumed sessions, renegotiation, key updates: what comes after or instead of a handshake."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
import support
from support import Env, Recorder
from tls_support import (
    PROTOCOLS,
    Pki,
    connect,
    echo,
    endpoint,
    serving,
    tool,
)

# Not among the ssl module's names.
OP_ALLOW_CLIENT_RENEGOTIATION = 1 << 8


class ResumingContext(ssl.SSLContext):
    """asyncio has no parameter for a session: a subclass hands it to wrap_bio()."""

    session: ssl.SSLSession | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return super().wrap_bio(*args, session=self.session, **kwargs)


def with_tickets(context: ssl.SSLContext, tickets: bool) -> ssl.SSLContext:
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    return context


SESSIONS = {
    "1.2 session id": ("TLSv1.2", False),
    "1.2 ticket": ("TLSv1.2", True),
    "1.3 ticket": ("TLSv1.3", True),
}


@pytest.mark.parametrize("case", SESSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_server_resumes(tls_run: Any, pki: Pki, case: str, protocol: Any) -> None:
    """A client that comes with its session gets a short handshake; the server says so."""
    version, tickets = SESSIONS[case]

    async def main(env: Env) -> None:
        context = with_tickets(pki.server_context(version=version), tickets)
        client_context = with_tickets(pki.client_context(version=version), tickets)
        session = None
        for reused in (False, True, True):
            rec = echo(kind=protocol)
            async with endpoint(
                env,
                pki,
                "server",
                rec,
                context=context,
                peer_context=client_context,
                session=session,
            ) as (transport, peer):
                assert transport.get_extra_info("ssl_object").session_reused is reused
                assert peer.tls.session_reused is reused
                await peer.write(b"ping")
                assert await peer.read_exactly(4) == b"ping"
                session = peer.tls.session
                transport.close()
                await peer.read_to_end()
                await peer.close_notify()
                await rec.until("connection_lost")
        assert context.session_stats()["hits"] == 2

    tls_run(main)


@pytest.mark.parametrize("case", SESSIONS)
@pytest.mark.parametrize("how", ["subclass", "instance"])
def test_client_resumes(tls_run: Any, pki: Pki, case: str, how: str) -> None:
    """The session of one connection, taken from ssl_object, opens the next."""
    version, tickets = SESSIONS[case]

    async def main(env: Env) -> None:
        server_context = with_tickets(pki.server_context(version=version), tickets)
        if how == "subclass":
            context: Any = pki.client_context(version=version, cls=ResumingContext)
        else:
            context = pki.client_context(version=version)
        with_tickets(context, tickets)
        plain = context.wrap_bio
        servers: list[Recorder] = []

        def factory() -> Recorder:
            servers.append(echo())
            return servers[-1]

        async with serving(env, factory, server_context) as address:
            for reused in (False, True):
                rec = Recorder()
                transport = await connect(env, address, context, rec)
                sslobj = transport.get_extra_info("ssl_object")
                assert sslobj.session_reused is reused
                transport.write(b"ping")
                assert await rec.until_received(4) == b"ping"
                server_object = servers[-1].transport.get_extra_info("ssl_object")
                assert server_object.session_reused is reused
                session = sslobj.session
                assert session is not None
                if version == "TLSv1.3" or tickets:
                    assert session.has_ticket
                if how == "subclass":
                    context.session = session
                else:

                    def resume(*args: Any, session: Any = session, **kwargs: Any) -> Any:
                        return plain(*args, session=session, **kwargs)

                    context.wrap_bio = resume
                transport.close()
                await rec.until("connection_lost")

    tls_run(main)


def test_session_of_an_aborted_connection(tls_run: Any, pki: Pki) -> None:
    """A TLS 1.3 session of a connection that was aborted resumes all the same."""

    async def main(env: Env) -> None:
        context = pki.server_context(version="TLSv1.3")
        client_context = pki.client_context(version="TLSv1.3")
        session = None
        for reused in (False, True):
            rec = echo()
            async with endpoint(
                env,
                pki,
                "server",
                rec,
                context=context,
                peer_context=client_context,
                session=session,
            ) as (transport, peer):
                assert peer.tls.session_reused is reused
                await peer.write(b"ping")
                assert await peer.read_exactly(4) == b"ping"
                session = peer.tls.session
                transport.abort()

    tls_run(main)


# --------------------------------------------------------------------------- openssl as the peer


def client_args(address: Any, pki: Pki, version: str) -> list[str]:
    return [
        "s_client",
        "-connect",
        f"127.0.0.1:{address[1]}",
        "-servername",
        "localhost",
        "-CAfile",
        str(pki.path("ca")),
        "-tls1_2" if version == "TLSv1.2" else "-tls1_3",
        "-quiet",
        "-no_ign_eof",
    ]


async def talk(process: Any, word: bytes) -> None:
    process.send(word + b"\n")
    await process.expect(word)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("command", [b"K", b"k"], ids=["both ways", "one way"])
def test_key_update_by_the_client(tls_run: Any, pki: Pki, protocol: Any, command: bytes) -> None:
    """T9: TLS 1.3 key updates, answered where an answer is asked for; data goes on."""

    async def main(env: Env) -> None:
        context = pki.server_context(version="TLSv1.3")
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(echo(kind=protocol))
            return made[-1]

        async with serving(env, factory, context) as address:
            with tool(*client_args(address, pki, "TLSv1.3")) as client:
                await talk(client, b"first")
                for number in range(5):
                    client.send(command + b"\n")
                    # The command is one only when it is what the tool reads at once.
                    await asyncio.sleep(0.03)
                    await talk(client, b"after %d" % number)
                # Its keys are new, ours too.
                made[0].transport.write(b"unasked")
                await client.expect(b"unasked")
            await made[0].until("connection_lost")
            received = bytes(made[0].received)
            assert received == b"first\n" + b"".join(b"after %d\n" % n for n in range(5))

    tls_run(main, timeout=30)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_renegotiation_by_the_client(tls_run: Any, pki: Pki, protocol: Any) -> None:
    """T9: a TLS 1.2 client renegotiates where the context allows it; data goes on."""

    async def main(env: Env) -> None:
        context = pki.server_context(version="TLSv1.2")
        context.options |= OP_ALLOW_CLIENT_RENEGOTIATION
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(echo(kind=protocol))
            return made[-1]

        async with serving(env, factory, context) as address:
            with tool(*client_args(address, pki, "TLSv1.2")) as client:
                await talk(client, b"first")
                for number in range(3):
                    client.send(b"R\n")
                    await asyncio.sleep(0.03)
                    await talk(client, b"after %d" % number)
            await made[0].until("connection_lost")
        assert context.session_stats()["accept_renegotiate"] == 3

    tls_run(main, timeout=30)


def test_renegotiation_refused(tls_run: Any, pki: Pki) -> None:
    """A context without the option refuses; the connection ends, once, and without a report."""

    async def main(env: Env) -> None:
        context = pki.server_context(version="TLSv1.2")
        context.options |= ssl.OP_NO_RENEGOTIATION
        rec = echo()
        async with serving(env, lambda: rec, context) as address:
            with tool(*client_args(address, pki, "TLSv1.2")) as client:
                await talk(client, b"first")
                client.send(b"R\n")
                # The refusal is a warning; openssl's client takes it for an error and goes.
                await rec.until("connection_lost")
        assert rec.count("connection_lost") == 1
        assert rec.received == b"first\n"

    tls_run(main, timeout=30)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("version", "command"),
    [("TLSv1.2", b"r"), ("TLSv1.3", b"K"), ("TLSv1.3", b"k")],
    ids=["renegotiation", "keys both ways", "keys one way"],
)
def test_changes_by_the_server(
    tls_run: Any, pki: Pki, version: str, command: bytes, protocol: Any
) -> None:
    """T9: the same asked for by a server, with our transport as the client."""

    async def main(env: Env) -> None:
        port = support.free_port()
        args = [
            "s_server",
            "-accept",
            f"127.0.0.1:{port}",
            "-cert",
            str(pki.path("server")),
            "-tls1_2" if version == "TLSv1.2" else "-tls1_3",
        ]
        with tool(*args) as server:
            await server.expect(b"ACCEPT")
            rec = Recorder() if protocol is Recorder else echo(kind=protocol)
            rec.on.clear()
            context = pki.client_context(version=version)
            transport = await connect(env, ("127.0.0.1", port), context, rec)
            for number in range(3):
                transport.write(b"up %d\n" % number)
                await server.expect(b"up %d" % number)
                server.send(command + b"\n")
                await asyncio.sleep(0.03)
                server.send(b"down %d\n" % number)
                await rec._until(lambda number=number: b"down %d\n" % number in rec.received)
            transport.close()
            with contextlib.suppress(OSError):
                await rec.until("connection_lost")

    tls_run(main, timeout=30)


def test_openssl_and_a_megabyte(tls_run: Any, pki: Pki) -> None:
    """An implementation that is not Python's at the other end, a megabyte towards it."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with serving(env, lambda: rec, pki.server_context()) as address:
            with tool(*client_args(address, pki, "TLSv1.3")) as client:
                client.send(b"go\n")
                await rec.until_received(3)
                rec.transport.write(b"." * 1_000_000 + b"end")
                await client.expect(b"." * 1000 + b"end")
            await rec.until("connection_lost")

    tls_run(main, timeout=30)
