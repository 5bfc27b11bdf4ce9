"""TLS: nothing CPython's contexts can do is lost. SNI, keylog, ALPN, subclasses, extra info."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
from pathlib import Path
from typing import Any

import pytest
import support
import tls_support
from parity import logged
from support import Env, Recorder
from tls_support import (
    KINDS,
    PROTOCOLS,
    SIDES,
    VERSIONS,
    Peer,
    Pki,
    connect,
    describe,
    echo,
    endpoint,
    linked,
    other_side,
    outcome,
    recorder,
    serving,
    settle,
    unconnected,
)

# --------------------------------------------------------------------------- SNI


def common_name(cert: Any) -> str:
    names = dict(pair for group in cert["subject"] for pair in group)
    return str(names["commonName"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
def test_sni_callback_sees_the_name(tls_run: Any, pki: Pki, kind: str, version: str) -> None:
    """T8: called once, with the connection's own SSLObject, the name, and the server's context."""

    async def main(env: Env) -> None:
        seen: list[Any] = []
        context = pki.server_context(version=version)
        context.sni_callback = lambda *args: seen.append(args)
        rec = Recorder()
        async with endpoint(env, pki, "server", rec, kind=kind, context=context) as (
            transport,
            peer,
        ):
            await peer.write(b"ping")
            await rec.until_received(4)
            ((sslobj, name, given),) = seen
            assert name == "localhost"
            assert given is context
            assert isinstance(sslobj, ssl.SSLObject)
            assert sslobj is transport.get_extra_info("ssl_object")

    tls_run(main)


def test_sni_callback_without_a_name(tls_run: Any, pki: Pki) -> None:
    """A client that connects to an address sends no name: the callback gets None."""

    async def main(env: Env) -> None:
        names: list[Any] = []
        context = pki.server_context()
        context.sni_callback = lambda sslobj, name, context: names.append(name)
        async with linked(
            env,
            pki,
            Recorder(),
            Recorder(),
            server_context=context,
            client_context=pki.client_context(),
        ):
            pass
        async with serving(env, Recorder, context) as address:
            rec = Recorder()
            transport = await connect(
                env, address, pki.client_context(), rec, server_hostname="127.0.0.1"
            )
            transport.close()
            await rec.until("connection_lost")
        assert names == ["localhost", None]

    tls_run(main)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["localhost", "other.test"])
def test_sni_callback_switches_the_context(tls_run: Any, pki: Pki, version: str, name: str) -> None:
    """T8: the certificate is that of the context the callback chose; ALPN works over both."""

    async def main(env: Env) -> None:
        first, second = (pki.server_context(cert, version) for cert in ("server", "other"))
        for context in (first, second):
            context.set_alpn_protocols(["h2"])

        def choose(sslobj: ssl.SSLObject, given: str, context: ssl.SSLContext) -> None:
            if given == "other.test":
                sslobj.context = second

        first.sni_callback = choose
        client_context = pki.client_context(version=version)
        client_context.set_alpn_protocols(["h2"])
        server_side = echo()
        async with serving(env, lambda: server_side, first) as address:
            rec = Recorder()
            transport = await connect(env, address, client_context, rec, server_hostname=name)
            cert = transport.get_extra_info("peercert")
            assert common_name(cert) == ("other" if name == "other.test" else "server")
            transport.write(b"ping")
            assert await rec.until_received(4) == b"ping"
            server_object = server_side.transport.get_extra_info("ssl_object")
            assert server_object.context is (second if name == "other.test" else first)
            assert server_object.selected_alpn_protocol() == "h2"
            assert server_side.transport.get_extra_info("sslcontext") is first
            transport.close()
            await rec.until("connection_lost")

    tls_run(main)


def test_sni_switch_with_streams(tls_run: Any, pki: Pki) -> None:
    async def main(env: Env) -> None:
        first, second = pki.server_context("server"), pki.server_context("other")
        first.sni_callback = lambda sslobj, name, context: setattr(sslobj, "context", second)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=first)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(),
            ssl=pki.client_context(),
            server_hostname="other.test",
        )
        writer.write(b"line\n")
        assert await reader.read() == b"line\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    tls_run(main)


def _raise(*args: Any) -> None:
    raise ZeroDivisionError("the callback's own")


@pytest.mark.parametrize(
    "answer",
    [
        _raise,
        lambda *args: ssl.ALERT_DESCRIPTION_ACCESS_DENIED,
        lambda *args: ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME,
        lambda *args: "not a number",
    ],
    ids=["raises", "access denied", "unrecognised name", "wrong type"],
)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_sni_callback_refuses(
    tls_compare: Any, pki: Pki, answer: Any, version: str, debug: bool
) -> None:
    """The handshake fails with the error of an alert; what the callback raised is unraisable."""

    async def scenario(env: Env) -> None:
        context = pki.server_context(version=version)
        context.sni_callback = answer
        rec = Recorder()
        async with unconnected(env, pki, "server", rec, context=context, version=version) as (
            task,
            peer,
        ):
            shaking = asyncio.ensure_future(peer.handshake())
            env.log("server", await outcome(task))
            try:
                await shaking
            except ssl.SSLError as exc:
                # Whether the alert arrives before the end of the connection is not promised.
                env.log("peer fails", isinstance(exc, ssl.SSLError))
            env.log(rec.calls)
        env.log("unraisable", len(env.unraisable))
        env.log([text.partition(": ")[2] for text in env.unraisable])
        env.unraisable.clear()

    tls_compare(scenario, debug=debug)


# --------------------------------------------------------------------------- keys and messages


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_keylog_file(tls_run: Any, pki: Pki, tmp_path: Path, side: str, version: str) -> None:
    """The secrets of both directions are written, and the connection works as before."""

    async def main(env: Env) -> None:
        context = pki.context(side, version)
        context.keylog_filename = str(tmp_path / "keys")
        rec = echo()
        async with endpoint(env, pki, side, rec, context=context, version=version) as (_, peer):
            await peer.write(b"ping" * 5000)
            assert await peer.read_exactly(20000) == b"ping" * 5000
            assert peer.tls.version() == version
        labels = {line.split()[0] for line in (tmp_path / "keys").read_text().splitlines()[1:]}
        wanted = {"CLIENT_RANDOM"}
        if version == "TLSv1.3":
            wanted = {"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "EXPORTER_SECRET"}
        assert wanted <= labels

    tls_run(main)


@pytest.mark.parametrize("how", ["context", "ssl=True"])
def test_sslkeylogfile(
    tls_run: Any, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """T8: SSLKEYLOGFILE in the environment crashed a loop that made its own SSL from a context."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.path("ca")))

    async def main(env: Env) -> None:
        server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server_context.load_cert_chain(pki.path("server"))
        client_context: Any = True if how == "ssl=True" else ssl.create_default_context()
        async with serving(env, echo, server_context) as address:
            rec = Recorder()
            transport = await connect(env, address, client_context, rec)
            transport.write(b"ping")
            await rec.until_received(4)
            if how == "ssl=True":
                assert isinstance(transport.get_extra_info("sslcontext"), ssl.SSLContext)
            transport.close()
            await rec.until("connection_lost")
        lines = (tmp_path / "keys").read_text().splitlines()
        # Both ends wrote theirs.
        assert sum(line.startswith("CLIENT_TRAFFIC_SECRET_0") for line in lines) == 2

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_message_callback(tls_compare: Any, pki: Pki, side: str, version: str) -> None:
    """Every message of the handshake, the data and the end is seen, in asyncio's order."""

    async def scenario(env: Env) -> None:
        seen: list[Any] = []
        context = pki.context(side, version)

        def callback(conn: Any, direction: str, *rest: Any) -> None:
            assert isinstance(conn, ssl.SSLObject)
            spoken, content, kind, data = rest
            assert isinstance(data, bytes)
            if direction in ("read", "write"):
                seen.append((direction, int(spoken), int(content), int(kind)))

        context._msg_callback = callback  # type: ignore[attr-defined]
        rec = echo()
        async with endpoint(env, pki, side, rec, context=context, version=version) as (
            transport,
            peer,
        ):
            await peer.write(b"ping")
            await peer.read_exactly(4)
            transport.close()
            await peer.read_to_end()
            await peer.close_notify()
            await rec.until("connection_lost")
        # What is read and what is written are two streams: their order is not one.
        for direction in ("read", "write"):
            for entry in [entry for entry in seen if entry[0] == direction]:
                env.log(entry)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("when", ["handshake", "data"])
def test_message_callback_raises(tls_compare: Any, pki: Pki, side: str, when: str) -> None:
    """The callback's exception ends the connection and is reported as asyncio reports it."""

    async def scenario(env: Env) -> None:
        context = pki.context(side, "TLSv1.3")
        armed = [when == "handshake"]

        def callback(conn: Any, direction: str, *rest: Any) -> None:
            if armed[0] and direction == "read":
                armed[0] = False
                raise ZeroDivisionError("the callback's own")

        context._msg_callback = callback  # type: ignore[attr-defined]
        rec = Recorder()
        async with unconnected(env, pki, side, rec, context=context, version="TLSv1.3") as (
            task,
            peer,
        ):
            shaking = asyncio.ensure_future(peer.handshake())
            try:
                await task
            except ZeroDivisionError as exc:
                env.log("raised", exc)
            except OSError as exc:
                env.log("raised", describe(exc))
            if when == "data":
                await shaking
                # The session tickets have to be read before: they are no data.
                await peer.write(b"first")
                await rec.until_received(5)
                armed[0] = True
                await peer.write(b"second")
                await rec.until("connection_lost")
            shaking.cancel()
            with contextlib.suppress(asyncio.CancelledError, ssl.SSLError):
                await shaking
            env.log(rec.calls)

    tls_compare(scenario)


def test_message_callback_set_later(tls_run: Any, pki: Pki) -> None:
    """Set on the context of a live connection, replaced and removed: nothing breaks."""

    async def main(env: Env) -> None:
        context = pki.server_context()
        rec = echo()
        async with endpoint(env, pki, "server", rec, context=context) as (_, peer):
            for callback in (lambda *args: None, None, lambda *args: None):
                context._msg_callback = callback  # type: ignore[attr-defined]
                await peer.write(b"ping")
                assert await peer.read_exactly(4) == b"ping"

    tls_run(main)


# --------------------------------------------------------------------------- ALPN, ciphers, PSK


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("offered", "served", "chosen"),
    [
        (["h2", "http/1.1"], ["http/1.1", "h2"], "http/1.1"),
        (["http/1.1"], ["h2", "http/1.1"], "http/1.1"),
        (["spdy"], ["h2"], None),
        ([], ["h2"], None),
    ],
)
def test_alpn(
    tls_run: Any, pki: Pki, side: str, offered: list[str], served: list[str], chosen: str | None
) -> None:
    async def main(env: Env) -> None:
        ours, theirs = pki.context(side), pki.context(other_side(side))
        for context, at in ((ours, side), (theirs, other_side(side))):
            protocols = served if at == "server" else offered
            if protocols:
                context.set_alpn_protocols(protocols)
        rec = Recorder()
        made: list[Any] = []
        rec.on["connection_made"] = lambda rec, transport: made.append(
            transport.get_extra_info("ssl_object").selected_alpn_protocol()
        )
        async with endpoint(env, pki, side, rec, context=ours, peer_context=theirs) as (_, peer):
            assert made == [chosen]
            assert peer.tls.selected_alpn_protocol() == chosen

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_encrypted_key_and_chosen_cipher(tls_run: Any, pki: Pki, side: str) -> None:
    """T9: a key behind a password, a single cipher, options: what the context says holds."""

    async def main(env: Env) -> None:
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(pki.path("locked"), password=lambda: Pki.PASSWORD)
        server_context.set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
        server_context.maximum_version = ssl.TLSVersion.TLSv1_2
        server_context.options |= ssl.OP_NO_TICKET
        client_context = pki.client_context()
        ours, theirs = server_context, client_context
        if side == "client":
            ours, theirs = theirs, ours
        rec = echo()
        async with endpoint(env, pki, side, rec, context=ours, peer_context=theirs) as (
            transport,
            peer,
        ):
            assert transport.get_extra_info("cipher") == (
                "ECDHE-ECDSA-AES256-GCM-SHA384",
                "TLSv1.2",
                256,
            )
            await peer.write(b"ping")
            assert await peer.read_exactly(4) == b"ping"

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_preshared_keys(tls_run: Any, pki: Pki, side: str, version: str) -> None:
    """T9: callbacks for pre-shared keys are the context's own and are called in the handshake."""
    if not hasattr(ssl.SSLContext, "set_psk_client_callback"):
        pytest.skip("the ssl module has no pre-shared keys before Python 3.13")

    async def main(env: Env) -> None:
        client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_context.check_hostname = False
        client_context.verify_mode = ssl.CERT_NONE
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        for context in (client_context, server_context):
            tls_support.pinned(context, version)
            if version == "TLSv1.2":
                context.set_ciphers("PSK")
        asked: list[Any] = []

        def find(identity: str | None) -> bytes:
            asked.append(identity)
            return b"secret"

        client_context.set_psk_client_callback(lambda hint: ("me", b"secret"))
        server_context.set_psk_server_callback(find)
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
            assert "me" in asked
            assert not transport.get_extra_info("peercert")

    tls_run(main)


# --------------------------------------------------------------------------- extra information


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_extra_info(tls_compare: Any, pki: Pki, side: str, kind: str, version: str) -> None:
    """T8: every key asyncio knows, with its value; what is unknown gives the default."""

    async def scenario(env: Env) -> None:
        context = pki.context(side, version)
        rec = Recorder()

        def look(when: str, transport: Any) -> None:
            info = transport.get_extra_info
            env.log(when, "sslcontext", info("sslcontext") is context)
            sslobj = info("ssl_object")
            env.log(when, "ssl_object", type(sslobj).__name__, isinstance(sslobj, ssl.SSLObject))
            env.log(sslobj.version(), sslobj.server_side, sslobj.server_hostname)
            env.log(sslobj.context is context, sslobj.compression(), sslobj.session_reused)
            env.log("cipher", info("cipher"), info("cipher") == sslobj.cipher())
            env.log("peercert", info("peercert") == sslobj.getpeercert(), bool(info("peercert")))
            env.log("compression", info("compression"), info("compression", 1))
            env.log("unknown", info("nothing"), info("nothing", "default"))
            sock = info("socket")
            env.log(sock is not None, info("peername") is None, info("sockname") is None)
            if sock is not None:
                env.log(int(sock.family), sock.getsockname() == info("sockname"))

        rec.on["connection_made"] = lambda rec, transport: look("made", transport)
        async with endpoint(env, pki, side, rec, kind=kind, context=context, version=version) as (
            transport,
            peer,
        ):
            look("connected", transport)
            env.log(transport.get_extra_info("ssl_object").version() == peer.tls.version())
            transport.abort()
            await rec.until("connection_lost")
            # Without the plain transport only what TLS found out is left.
            info = transport.get_extra_info
            env.log(info("socket"), info("peername"), info("cipher") is not None)
            env.log(isinstance(info("ssl_object"), ssl.SSLObject), info("nothing", 5))

    tls_compare(scenario)


def test_which_tls_is_in_use(tls_run: Any, tls_name: str, pki: Pki) -> None:
    """A forced Tier 0 is Tier 0; asyncio's own says nothing."""

    async def main(env: Env) -> None:
        async with linked(env, pki, Recorder(), Recorder()) as (server, client):
            for transport in (server, client):
                said = transport.get_extra_info("cpploop.tls")
                if tls_name == "asyncio":
                    assert said is None
                elif tls_name == "cpploop-bio":
                    assert "bio" in str(said)
                elif tls_name == "cpploop-direct":
                    # Where a gate is closed it says why and takes Tier 0; on the Pythons that
                    # everything is tested on none is.
                    assert said.tier == "direct" or (said.tier == "bio" and said.reason)
                    assert said.tier == "direct" or not tls_support.direct_expected(), said

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_ssl_object_answers(tls_run: Any, pki: Pki, side: str) -> None:
    """T8: the methods of the SSLObject work on the live connection: it is the real one."""

    async def main(env: Env) -> None:
        rec = echo()
        async with endpoint(env, pki, side, rec, version="TLSv1.2") as (transport, peer):
            await peer.write(b"ping")
            assert await peer.read_exactly(4) == b"ping"
            sslobj = transport.get_extra_info("ssl_object")
            assert sslobj.get_channel_binding("tls-unique") == peer.tls.get_channel_binding(
                "tls-unique"
            )
            assert sslobj.pending() == 0
            assert isinstance(sslobj.session, ssl.SSLSession)
            assert sslobj.server_side is (side == "server")
            if side == "server":
                assert sslobj.shared_ciphers()
                assert sslobj.getpeercert(binary_form=True) is None
            else:
                assert sslobj.getpeercert(binary_form=True)[:1] == b"\x30"
            with pytest.raises(ValueError):
                sslobj.get_channel_binding("nonsense")
            # Its own use does not end the connection.
            await peer.write(b"more")
            assert await peer.read_exactly(4) == b"more"

    tls_run(main)


# --------------------------------------------------------------------------- subclasses


class CountingObject(ssl.SSLObject):
    """Counts what goes through the methods that a loop calls."""

    calls: dict[str, int]

    def _count(self, name: str) -> None:
        self.__dict__.setdefault("calls", {}).setdefault(name, 0)
        self.calls[name] += 1

    def do_handshake(self) -> None:
        self._count("do_handshake")
        super().do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        self._count("read")
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        self._count("write")
        return super().write(data)

    def unwrap(self) -> None:
        self._count("unwrap")
        super().unwrap()


class CountingContext(ssl.SSLContext):
    sslobject_class = CountingObject


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("how", ["class", "instance"])
def test_sslobject_class(tls_run: Any, pki: Pki, side: str, protocol: Any, how: str) -> None:
    """A context's own SSLObject class is used, and its overrides are called."""

    async def main(env: Env) -> None:
        if how == "class":
            context = pki.context(side, cls=CountingContext)
        else:
            context = pki.context(side)
            context.sslobject_class = CountingObject  # type: ignore[misc]
        rec = echo(kind=protocol)
        async with endpoint(env, pki, side, rec, context=context) as (transport, peer):
            await peer.write(b"ping")
            assert await peer.read_exactly(4) == b"ping"
            sslobj = transport.get_extra_info("ssl_object")
            assert type(sslobj) is CountingObject
            transport.close()
            await peer.read_to_end()
            await peer.close_notify()
            await rec.until("connection_lost")
            assert set(sslobj.calls) == {"do_handshake", "read", "write", "unwrap"}
            assert sslobj.calls["write"] == 1

    tls_run(main)


class ShoutingObject(ssl.SSLObject):
    """An override that changes the data, which only a loop that calls it can show."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data).upper())


@pytest.mark.parametrize("side", SIDES)
def test_override_of_write_changes_the_data(tls_run: Any, pki: Pki, side: str) -> None:
    async def main(env: Env) -> None:
        context = pki.context(side)
        context.sslobject_class = ShoutingObject  # type: ignore[misc]
        async with endpoint(env, pki, side, Recorder(), context=context) as (transport, peer):
            transport.write(b"quiet ")
            transport.writelines([b"one ", bytearray(b"two")])
            assert await peer.read_exactly(13) == b"QUIET ONE TWO"

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["subclass", "instance", "duck"])
def test_own_wrap_bio(tls_run: Any, pki: Pki, side: str, how: str) -> None:
    """wrap_bio() is asked wherever it is defined: in a subclass, on the instance, on a proxy."""

    async def main(env: Env) -> None:
        asked: list[Any] = []

        class Own(ssl.SSLContext):
            def wrap_bio(self, *args: Any, **kwargs: Any) -> Any:
                asked.append(kwargs)
                return super().wrap_bio(*args, **kwargs)

        class Duck:
            def __init__(self, context: ssl.SSLContext) -> None:
                self.context = context

            def wrap_bio(self, *args: Any, **kwargs: Any) -> Any:
                asked.append(kwargs)
                return self.context.wrap_bio(*args, **kwargs)

        context: Any = pki.context(side, cls=Own if how == "subclass" else ssl.SSLContext)
        if how == "instance":
            original = context.wrap_bio

            def patched(*args: Any, **kwargs: Any) -> Any:
                asked.append(kwargs)
                return original(*args, **kwargs)

            context.wrap_bio = patched
        elif how == "duck":
            context = Duck(context)
        rec = echo()
        async with endpoint(env, pki, side, rec, context=context) as (transport, peer):
            await peer.write(b"ping")
            assert await peer.read_exactly(4) == b"ping"
            assert transport.get_extra_info("sslcontext") is context
        assert asked == [
            {
                "server_side": side == "server",
                "server_hostname": None if side == "server" else "localhost",
            }
        ]

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_wrap_bio_raises(tls_compare: Any, pki: Pki, side: str) -> None:
    """C1: nothing is left open when the context refuses to make an SSLObject."""

    async def scenario(env: Env) -> None:
        context = pki.context(side)
        context.wrap_bio = lambda *args, **kwargs: 1 / 0  # type: ignore[method-assign,assignment]
        sock, other = support.tcp_pair()
        rec = Recorder(env)
        try:
            await tls_support.establish(env, side, sock, rec, context)
        except ZeroDivisionError as exc:
            env.log("raised", exc)
            exc.__traceback__ = None
        await settle()
        sock.close()
        other.close()

    tls_compare(scenario, check_warnings=False)


# --------------------------------------------------------------------------- transport methods


@pytest.mark.parametrize("side", SIDES)
def test_what_the_transport_answers(tls_compare: Any, pki: Pki, side: str) -> None:
    """Limits, write_eof, types that write() refuses: the same answers and exceptions."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            env.log(transport.can_write_eof(), transport.is_closing(), transport.is_reading())
            env.log(transport.get_write_buffer_size(), transport.get_write_buffer_limits())
            env.log(isinstance(transport, asyncio.Transport), transport.get_protocol() is rec)
            calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
                ("write_eof", (), {}),
                ("write", ("text",), {}),
                ("write", (None,), {}),
                ("write", (5,), {}),
                ("write", (), {}),
                ("write", (b"",), {}),
                ("writelines", ([],), {}),
                ("writelines", (None,), {}),
                ("set_write_buffer_limits", (), {"high": 1000}),
                ("get_write_buffer_limits", (), {}),
                ("set_write_buffer_limits", (), {"low": 1000}),
                ("get_write_buffer_limits", (), {}),
                ("set_write_buffer_limits", (), {"high": 1, "low": 2}),
                ("set_write_buffer_limits", (), {"high": -1}),
                ("get_write_buffer_limits", (), {}),
                ("set_write_buffer_limits", (), {"high": 0}),
                ("get_write_buffer_limits", (), {}),
                ("set_write_buffer_limits", (), {}),
                ("get_write_buffer_limits", (), {}),
                ("pause_reading", (), {}),
                ("pause_reading", (), {}),
                ("is_reading", (), {}),
                ("resume_reading", (), {}),
                ("resume_reading", (), {}),
                ("is_reading", (), {}),
            ]
            for name, args, kwargs in calls:
                try:
                    result = getattr(transport, name)(*args, **kwargs)
                except Exception as exc:
                    message = str(exc).replace("_SSLProtocolTransport.", "")
                    env.log(name, kwargs, type(exc), "argument" in message or message)
                else:
                    env.log(name, kwargs, result)
            transport.write(memoryview(b"still here"))
            env.log(await peer.read_exactly(10))
            env.log(rec.calls)

    tls_compare(scenario)


def test_read_buffer_limits(tls_compare: Any, pki: Pki) -> None:
    """asyncio's TLS transport has limits for reading, too."""

    async def scenario(env: Env) -> None:
        async with endpoint(env, pki, "server", Recorder()) as (transport, _):
            env.log(transport.get_read_buffer_limits(), transport.get_read_buffer_size())
            transport.set_read_buffer_limits(high=4096)
            env.log(transport.get_read_buffer_limits())
            transport.set_read_buffer_limits()
            env.log(transport.get_read_buffer_limits())
            with pytest.raises(ValueError) as info:
                transport.set_read_buffer_limits(high=1, low=2)
            env.log(info.value)

    tls_compare(scenario)


def test_sendfile_falls_back(tls_run: Any, pki: Pki, tmp_path: Path) -> None:
    """loop.sendfile() over TLS reads the file and writes it."""

    async def main(env: Env) -> None:
        content = os.urandom(700_000)
        (tmp_path / "file").write_bytes(content)
        async with endpoint(env, pki, "server", Recorder()) as (transport, peer):
            with open(tmp_path / "file", "rb") as file:
                receiving = asyncio.ensure_future(peer.read_exactly(len(content) - 1000))
                assert await env.loop.sendfile(transport, file, 1000) == len(content) - 1000
                assert await receiving == content[1000:]
                with pytest.raises(RuntimeError, match="fallback is disabled"):
                    await env.loop.sendfile(transport, file, fallback=False)

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_debug_messages(tls_compare: Any, pki: Pki, side: str) -> None:
    """Debug mode logs what asyncio's TLS logs: the start, the length and the end."""

    async def scenario(env: Env) -> None:
        with logged(logging.DEBUG) as records:
            rec = Recorder()
            async with endpoint(env, pki, side, rec) as (_, peer):
                await peer.write(b"x")
                await rec.until_received(1)
                peer.close()
                await rec.until("connection_lost")
        for level, text in records:
            found = re.search(r"starts SSL handshake|SSL handshake took|received EOF", text)
            if found:
                env.log(level, found[0])

    tls_compare(scenario, debug=True)


def test_peer_is_used_only_as_a_peer(pki: Pki) -> None:
    """The helper itself: two Peers without any transport understand each other."""

    async def main() -> None:
        first, second = support.unix_pair()
        server = Peer(first, pki.server_context(), server_side=True)
        client = Peer(second, pki.client_context())
        await asyncio.gather(server.handshake(), client.handshake())
        await client.write(b"ping")
        assert await server.read_exactly(4) == b"ping"
        await server.close_notify()
        server.close()
        assert await client.read_to_end() == (b"", "close_notify")
        client.close()

    support.run(support.factory("asyncio"), main)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_trace_of_a_connection(
    tls_compare: Any, pki: Pki, side: str, kind: str, version: str, protocol: Any
) -> None:
    """The plain course of things, for every kind of protocol, socket and version."""

    async def scenario(env: Env) -> None:
        rec = echo(kind=protocol)
        async with endpoint(env, pki, side, rec, kind=kind, version=version) as (transport, peer):
            for size in (1, 1000, 100_000):
                await peer.write(b"x" * size)
                env.log(await peer.read_exactly(size) == b"x" * size)
            transport.close()
            env.log(transport.is_closing())
            env.log(await peer.read_to_end())
            await peer.close_notify()
            await rec.until("connection_lost")
        env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_streams(tls_run: Any, pki: Pki, kind: str) -> None:
    """Streams at both ends, over TCP and Unix sockets, with all their ways of reading."""

    async def main(env: Env) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while line := await reader.readline():
                    size = int(line)
                    writer.write((await reader.readexactly(size))[::-1])
                    await writer.drain()
            finally:
                writer.close()

        with support.short_directory() as directory:
            context, client_context = pki.server_context(), pki.client_context()
            if kind == "tcp":
                server: Any = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
                opened = asyncio.open_connection(
                    *server.sockets[0].getsockname(),
                    ssl=client_context,
                    server_hostname="localhost",
                )
            else:
                path = str(directory / "s")
                server = await asyncio.start_unix_server(serve, path, ssl=context)
                opened = asyncio.open_unix_connection(
                    path, ssl=client_context, server_hostname="localhost"
                )
            reader, writer = await opened
            for size in (1, 500, 70_000, 300_000):
                data = os.urandom(size)
                writer.write(b"%d\n" % size + data)
                await writer.drain()
                assert await reader.readexactly(size) == data[::-1]
            assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.02)
            server.close()
            await server.wait_closed()

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_recorder_kinds_get_the_same(tls_run: Any, pki: Pki, side: str) -> None:
    """A BufferedProtocol and a plain one get the same bytes of the same stream."""

    async def main(env: Env) -> None:
        data = os.urandom(400_000)
        for kind in PROTOCOLS:
            rec = recorder(kind)
            async with endpoint(env, pki, side, rec) as (_, peer):
                await peer.write(data)
                assert await rec.until_received(len(data)) == data

    tls_run(main)
