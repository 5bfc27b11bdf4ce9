"""What the TLS tests share: certificates good and bad, peers that misbehave on cue, openssl.

The usual shapes of a test:

    @pytest.mark.parametrize("side", SIDES)
    def test_something(tls_compare, pki, side):         # traces of asyncio and of each tier
        async def scenario(env):
            rec = Recorder()
            async with endpoint(env, pki, side, rec) as (transport, peer):
                await peer.write(b"ping")               # a peer that no event loop takes part in
                await rec.until_received(4)
            env.log(rec.calls)
        tls_compare(scenario)

    def test_something_else(tls_run, pki):              # once on asyncio, once per tier
        async def main(env):
            async with linked(env, pki, Recorder(), Recorder()) as (server, client):
                ...                                     # both ends are the loop's
        tls_run(main)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import select
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import support
from support import BufferedRecorder, Env, Recorder

SIDES = ("server", "client")
VERSIONS = ("TLSv1.2", "TLSv1.3")
KINDS = ("tcp", "unix")
PROTOCOLS = (Recorder, BufferedRecorder)


def recorder(kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A recorder of KIND; a buffered one offers a memoryview.

    asyncio's TLS slices what get_buffer() returned, and a slice of a bytearray is a copy.
    """
    rec = kind(*args, **kwargs)
    if isinstance(rec, BufferedRecorder):
        rec.memory = memoryview(rec.memory)
    return rec


def direct_expected() -> bool:
    """Whether every gate of the direct tier has to be open here."""
    import _ssl

    newest = (3, 13) if support.FREE_THREADED else (3, 15)
    return (
        sys.implementation.name == "cpython"
        and sys.version_info[:2] <= newest
        and not hasattr(sys, "gettotalrefcount")  # Debug builds lay their objects out otherwise.
        and platform.machine() in ("x86_64", "aarch64")
        and bool(getattr(_ssl, "__file__", None))
        and ssl.OPENSSL_VERSION.startswith("OpenSSL ")
    )


def is_native(name: str) -> bool:
    """Whether the loop NAME does TLS in the engine."""
    return name in ("cpploop-bio", "cpploop-direct")


def events(rec: Any) -> list[Any]:
    """REC's callbacks without those of writing's flow control.

    asyncio's TLS does not count what it has handed to the plain transport, the engine does.
    """
    assert rec.count("resume_writing") <= rec.count("pause_writing")
    return [call for call in rec.calls if call[0] not in ("pause_writing", "resume_writing")]


# --------------------------------------------------------------------------- certificates


@dataclass
class Pki:
    """A directory of certificates, each file a key and what it is signed with.

    ca: the authority. server: localhost and the loopback addresses. other: other.test. client:
    for a client. stranger: like client, from another authority (stranger-ca). expired: localhost,
    no longer valid. selfsigned: localhost. locked: server with an encrypted key, see PASSWORD.
    """

    directory: Path

    PASSWORD = "open sesame"

    def path(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def server_context(
        self,
        cert: str = "server",
        version: str | None = None,
        cls: type[ssl.SSLContext] = ssl.SSLContext,
    ) -> ssl.SSLContext:
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path(cert))
        return pinned(context, version)

    def client_context(
        self,
        cert: str | None = None,
        version: str | None = None,
        verify: bool = True,
        cls: type[ssl.SSLContext] = ssl.SSLContext,
    ) -> ssl.SSLContext:
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        if verify:
            context.load_verify_locations(self.path("ca"))
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if cert is not None:
            context.load_cert_chain(self.path(cert))
        return pinned(context, version)

    def context(self, side: str, version: str | None = None, **options: Any) -> ssl.SSLContext:
        """The context of an endpoint at SIDE."""
        make = self.server_context if side == "server" else self.client_context
        return make(version=version, **options)

    def want_client_cert(self, context: ssl.SSLContext, mode: int) -> None:
        context.load_verify_locations(self.path("ca"))
        context.verify_mode = ssl.VerifyMode(mode)


def pinned(context: ssl.SSLContext, version: str | None) -> ssl.SSLContext:
    """CONTEXT, speaking VERSION only."""
    if version is not None:
        chosen = ssl.TLSVersion[version.replace(".", "_")]
        context.minimum_version = context.maximum_version = chosen
    return context


def other_side(side: str) -> str:
    return "client" if side == "server" else "server"


def make_pki(directory: Path) -> Pki:
    """Make the certificates with the openssl command."""
    needs_openssl()
    pki = Pki(directory)
    _make_authority(directory, "ca")
    _make_authority(directory, "stranger-ca")
    loopback = "DNS:localhost,IP:127.0.0.1,IP:::1"
    _make_leaf(directory, "server", "ca", loopback)
    _make_leaf(directory, "other", "ca", "DNS:other.test")
    _make_leaf(directory, "client", "ca", "DNS:client.test")
    _make_leaf(directory, "stranger", "stranger-ca", "DNS:client.test")
    _make_leaf(directory, "expired", "ca", loopback, expired=True)
    _make_self_signed(directory, "selfsigned", loopback)
    _lock(directory, "locked", "server", pki.PASSWORD)
    return pki


def needs_openssl() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")


def _openssl(directory: Path, *args: str) -> None:
    done = subprocess.run(["openssl", *args], capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, f"openssl {args}: {done.stderr}"


_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _make_authority(directory: Path, name: str) -> None:
    _openssl(
        directory, "req", "-x509", *_EC_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem",
        "-subj", f"/O=cpploop tests/CN={name}", "-days", "30",
        "-addext", "keyUsage=critical,keyCertSign,cRLSign",
    )  # fmt: skip


def _make_leaf(
    directory: Path, name: str, authority: str, alternatives: str, *, expired: bool = False
) -> None:
    (directory / f"{name}.ext").write_text(
        f"subjectAltName={alternatives}\n"
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    _openssl(
        directory, "req", *_EC_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr",
        "-subj", f"/O=cpploop tests/CN={name}",
    )  # fmt: skip
    signing = (
        "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem",
        "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", f"{name}.ext",
        "-out", f"{name}.crt",
    )  # fmt: skip
    if expired:
        _sign_expired(directory, signing)
    else:
        _openssl(directory, *signing, "-days", "30")
    _join(directory, name)


def _sign_expired(directory: Path, signing: tuple[str, ...]) -> None:
    """Newer openssl commands take both dates, older ones a number of days in the past."""
    try:
        dates = ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z")
        _openssl(directory, *signing, *dates)
    except AssertionError:
        _openssl(directory, *signing, "-days", "-1")


def _make_self_signed(directory: Path, name: str, alternatives: str) -> None:
    _openssl(
        directory, "req", "-x509", *_EC_KEY, "-keyout", f"{name}.key", "-out", f"{name}.crt",
        "-subj", f"/O=cpploop tests/CN={name}", "-days", "30",
        "-addext", f"subjectAltName={alternatives}",
    )  # fmt: skip
    _join(directory, name)


def _lock(directory: Path, name: str, original: str, password: str) -> None:
    _openssl(
        directory, "pkcs8", "-topk8", "-in", f"{original}.key", "-out", f"{name}.key",
        "-passout", f"pass:{password}",
    )  # fmt: skip
    shutil.copy(directory / f"{original}.crt", directory / f"{name}.crt")
    _join(directory, name)


def _join(directory: Path, name: str) -> None:
    parts = [(directory / f"{name}.{end}").read_bytes() for end in ("key", "crt")]
    (directory / f"{name}.pem").write_bytes(b"".join(parts))


# --------------------------------------------------------------------------- peers


class Peer:
    """The other end of a connection: TLS over a non-blocking socket, by hand and byte by byte.

    No event loop takes part but for its timers (short sleeps), so what it sees and sends is the
    same whatever the loop under test does.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        hostname: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=server_side,
            server_hostname=None if server_side else hostname,
            session=session,
        )
        # How the socket ended, as far as it has: "eof" or "reset".
        self.end: str | None = None

    async def do(self, call: Any, *args: Any) -> Any:
        """CALL(*ARGS) of the SSLObject, moving bytes until it has what it wants."""
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                await self.pull()
            except ssl.SSLError:
                await self.flush()
                raise
            else:
                await self.flush()
                return result

    async def handshake(self) -> None:
        await self.do(self.tls.do_handshake)

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.do(self.tls.write, view[:65536]) :]

    async def read(self, size: int = 65536) -> bytes:
        data: bytes = await self.do(self.tls.read, size)
        return data

    async def read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size and (chunk := await self.read(size - len(data))):
            data += chunk
        return bytes(data)

    async def read_to_end(self) -> tuple[bytes, str]:
        """Everything, and how it ended: "close_notify", "eof", "reset" or an error's reason."""
        data = bytearray()
        try:
            while chunk := await self.read():
                data += chunk
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLEOFError:
            return bytes(data), self.end or "eof"
        except ssl.SSLError as exc:
            return bytes(data), str(exc.reason)
        return bytes(data), "close_notify"

    def seal(self, data: bytes) -> bytes:
        """The records DATA becomes, not sent."""
        self.tls.write(data)
        return self.outgoing.read()

    def seal_close_notify(self) -> bytes:
        """close_notify's record, not sent."""
        # What unwrap() finds to read, or does not find, is no matter: it has written by then.
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        return self.outgoing.read()

    async def close_notify(self) -> None:
        await self.send_raw(self.seal_close_notify())

    async def send_raw(self, data: bytes) -> None:
        try:
            await support.send_all(self.sock, data)
        except (BrokenPipeError, ConnectionResetError):
            self.end = "reset"

    async def flush(self) -> None:
        if self.outgoing.pending:
            await self.send_raw(self.outgoing.read())

    async def pull(self) -> None:
        """Take in what the socket has, at least one byte or its end."""
        while True:
            try:
                data = self.sock.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0.0005)
                continue
            except ConnectionResetError:
                self.end, data = "reset", b""
            if data:
                self.incoming.write(data)
            else:
                self.end = self.end or "eof"
                self.incoming.write_eof()
            return

    async def until_socket_end(self) -> str:
        """Drop what comes until the socket's own end, and say which: "eof" or "reset"."""
        while self.end is None:
            await self.pull()
            self.incoming.read()
        return self.end

    def close(self) -> None:
        self.sock.close()


async def establish(
    env: Env, side: str, sock: socket.socket, protocol: Any, context: Any, **kwargs: Any
) -> Any:
    """A TLS transport of the loop at SIDE of the connected socket SOCK."""
    if side == "server":
        made = env.loop.connect_accepted_socket(lambda: protocol, sock, ssl=context, **kwargs)
    else:
        kwargs.setdefault("server_hostname", "localhost")
        made = env.loop.create_connection(lambda: protocol, sock=sock, ssl=context, **kwargs)
    transport, _ = await made
    return transport


@contextlib.asynccontextmanager
async def unconnected(
    env: Env,
    pki: Pki,
    side: str,
    protocol: Any,
    *,
    kind: str = "tcp",
    context: Any = None,
    peer_context: ssl.SSLContext | None = None,
    version: str | None = None,
    session: ssl.SSLSession | None = None,
    pair_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> AsyncIterator[tuple[asyncio.Task[Any], Peer]]:
    """(the task that makes the transport, the Peer), with the handshake still to do."""
    sock, other = support.PAIRS[kind](**(pair_options or {}))
    peer = Peer(
        other,
        peer_context or pki.context(other_side(side), version),
        server_side=side == "client",
        session=session,
    )
    context = context if context is not None else pki.context(side, version)
    task = asyncio.ensure_future(establish(env, side, sock, protocol, context, **kwargs))
    try:
        yield task, peer
    finally:
        peer.close()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            (await task).abort()
        del task
        await settle()


@contextlib.asynccontextmanager
async def endpoint(
    env: Env, pki: Pki, side: str, protocol: Any, **kwargs: Any
) -> AsyncIterator[tuple[Any, Peer]]:
    """(a TLS transport of the loop at SIDE, the Peer at the other side), handshake done."""
    async with unconnected(env, pki, side, protocol, **kwargs) as (task, peer):
        shaking = asyncio.ensure_future(peer.handshake())
        try:
            transport = await task
            await shaking
        finally:
            shaking.cancel()
        yield transport, peer


@contextlib.asynccontextmanager
async def linked(
    env: Env,
    pki: Pki,
    server_protocol: Any,
    client_protocol: Any,
    *,
    kind: str = "tcp",
    server_context: Any = None,
    client_context: Any = None,
    version: str | None = None,
    **kwargs: Any,
) -> AsyncIterator[tuple[Any, Any]]:
    """(server, client): both ends of a connection, TLS transports of the loop."""
    first, second = support.PAIRS[kind]()
    server_context = server_context or pki.server_context(version=version)
    client_context = client_context or pki.client_context(version=version)
    server, client = await asyncio.gather(
        establish(env, "server", first, server_protocol, server_context, **kwargs),
        establish(env, "client", second, client_protocol, client_context, **kwargs),
    )
    try:
        yield server, client
    finally:
        server.abort()
        client.abort()
        await settle()


async def settle() -> None:
    """Let what was aborted come to its end."""
    await support.turns(8)


def echo(*args: Any, kind: Any = Recorder, **kwargs: Any) -> Any:
    """A recorder that sends back what it gets."""
    rec = recorder(kind, *args, **kwargs)
    rec.on["data_received"] = lambda rec, data: rec.transport.write(data)
    return rec


@contextlib.asynccontextmanager
async def serving(
    env: Env, factory: Any, context: Any, *, kind: str = "tcp", **kwargs: Any
) -> AsyncIterator[Any]:
    """A server of the loop; yields what connect() takes."""
    with contextlib.ExitStack() as stack:
        if kind == "tcp":
            server = await env.loop.create_server(factory, "127.0.0.1", 0, ssl=context, **kwargs)
            address: Any = server.sockets[0].getsockname()[:2]
        else:
            address = str(stack.enter_context(support.short_directory()) / "s")
            server = await env.loop.create_unix_server(factory, address, ssl=context, **kwargs)
        try:
            yield address
        finally:
            server.close()
            await asyncio.sleep(0.01)
            await server.wait_closed()


async def connect(env: Env, address: Any, context: Any, protocol: Any, **kwargs: Any) -> Any:
    """A TLS transport to the server at ADDRESS."""
    kwargs.setdefault("server_hostname", "localhost")
    if isinstance(address, str):
        made = env.loop.create_unix_connection(lambda: protocol, address, ssl=context, **kwargs)
    else:
        made = env.loop.create_connection(lambda: protocol, *address, ssl=context, **kwargs)
    transport, _ = await made
    return transport


def describe(exc: BaseException | None) -> Any:
    """What of an exception must be the same on both loops."""
    if isinstance(exc, ssl.SSLError):
        return type(exc), exc.library, exc.reason, getattr(exc, "verify_message", None), exc
    return exc


async def outcome(awaitable: Any) -> Any:
    """What AWAITABLE came to: "done" or the description of its exception."""
    try:
        await awaitable
    except (OSError, ValueError, TypeError, RuntimeError) as exc:
        described = describe(exc)
        exc.__traceback__ = None
        return described
    return "done"


# --------------------------------------------------------------------------- openssl's tools


class Tool:
    """openssl s_client or s_server as a child, talked to through its pipes.

    A line's first letter is a command: R renegotiates, K updates the keys both ways.
    """

    def __init__(self, *args: str) -> None:
        needs_openssl()
        self.output = b""
        self.process = subprocess.Popen(
            ["openssl", *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    async def expect(self, wanted: bytes, timeout: float = 10.0) -> None:
        """Wait until the output contains WANTED behind what was expected before."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + timeout * support.TIME_SCALE
        while wanted not in self.output:
            if poller.poll(0):
                chunk = os.read(fd, 65536)
                assert chunk, f"openssl ended; not found: {wanted!r} in {self.output!r}"
                self.output += chunk
            else:
                assert time.monotonic() < deadline, f"no {wanted!r} in {self.output!r}"
                await asyncio.sleep(0.002)
        _, _, self.output = self.output.partition(wanted)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def tool(*args: str) -> Iterator[Tool]:
    running = Tool(*args)
    try:
        yield running
    finally:
        running.stop()
