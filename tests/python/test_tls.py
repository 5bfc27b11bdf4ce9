"""ssl= and start_tls over our transport: handshakes, bulk, closing, failures, upgrades."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import support
from support import BufferedRecorder, Certificates, Env, Recorder, eventually, turns


def echo(env: Env | None = None, name: str = "") -> Recorder:
    return Recorder(env, name, on={"data_received": lambda rec, data: rec.transport.write(data)})


@contextlib.asynccontextmanager
async def tls_server(
    env: Env, certs: Certificates, factory: Any = echo, **kwargs: Any
) -> AsyncIterator[tuple[str, int]]:
    server = await env.loop.create_server(
        factory, "127.0.0.1", 0, ssl=certs.server_context(), **kwargs
    )
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        # Both ends need some turns for the closing handshake.
        await asyncio.sleep(0.02)
        await server.wait_closed()


async def connect(env: Env, address: Any, context: ssl.SSLContext, rec: Any, **kwargs: Any) -> Any:
    kwargs.setdefault("server_hostname", "localhost")
    transport, _ = await env.loop.create_connection(lambda: rec, *address, ssl=context, **kwargs)
    return transport


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
def test_trace_of_a_client(certs: Certificates, protocol: Any) -> None:
    async def scenario(env: Env) -> None:
        rec = protocol(env)
        async with tls_server(env, certs) as address:
            transport = await connect(env, address, certs.client_context(), rec)
            transport.write(b"ping")
            await rec.until_received(4)
            env.log(transport.can_write_eof(), transport.is_closing(), transport.is_reading())
            transport.close()
            env.log(transport.is_closing())
            await rec.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_bulk_both_ways(run: Any, certs: Certificates, version: ssl.TLSVersion) -> None:
    async def main(env: Env) -> None:
        data = random.Random(4).randbytes(1_500_000)
        context = certs.client_context()
        context.maximum_version = context.minimum_version = version
        rec = Recorder()
        async with tls_server(env, certs) as address:
            transport = await connect(env, address, context, rec)
            for start in range(0, len(data), 100_000):
                transport.write(data[start : start + 100_000])
            await rec.until_received(len(data))
            assert rec.received == data
            assert transport.get_extra_info("ssl_object").version() == version.name.replace(
                "_", "."
            )
            transport.close()
            await rec.until("connection_lost")

    run(main)


def test_flow_control(run: Any, certs: Certificates) -> None:
    """C11 over TLS: a reader that pauses makes the writer pause, and both go on."""

    async def main(env: Env) -> None:
        sink = Recorder()
        rec = Recorder()
        async with tls_server(env, certs, lambda: sink) as address:
            transport = await connect(env, address, certs.client_context(), rec)
            await sink.until("connection_made")
            sink.transport.pause_reading()
            total = 0
            while not rec.count("pause_writing"):
                transport.write(bytes(262144))
                total += 262144
                await asyncio.sleep(0)
                assert total < 1 << 28
            sink.transport.resume_reading()
            await sink.until_received(total)
            await rec.until("resume_writing")
            transport.close()
            await rec.until("connection_lost")

    run(main, timeout=40)


def test_verification_failure(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        async with tls_server(env, certs, lambda: Recorder(env, "server")) as address:
            with pytest.raises(ssl.SSLCertVerificationError) as info:
                await connect(env, address, context, Recorder(env, "client"))
            env.log(info.value.verify_code)
            with pytest.raises(ssl.SSLCertVerificationError) as info:
                await connect(
                    env,
                    address,
                    certs.client_context(),
                    Recorder(env, "client"),
                    server_hostname="other.test",
                )
            env.log(info.value.verify_code)
            await asyncio.sleep(0.02)

    support.compare(scenario)


def test_plain_client_on_a_tls_server(certs: Certificates) -> None:
    """Garbage instead of a ClientHello: dropped, reported in debug mode only, server goes on."""

    async def scenario(env: Env) -> None:
        async with tls_server(env, certs, lambda: echo(env, "server")) as address:
            with socket.create_connection(address) as client:
                client.setblocking(False)
                client.send(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    await support.recv_to_end(client)
            rec = Recorder()
            transport = await connect(env, address, certs.client_context(), rec)
            transport.write(b"ping")
            await rec.until_received(4)
            transport.abort()
            await rec.until("connection_lost")
            await asyncio.sleep(0.02)

    support.compare(scenario)


@pytest.mark.parametrize("when", ["at once", "after some bytes"])
def test_client_that_goes_away_during_the_handshake(
    run: Any, certs: Certificates, when: str
) -> None:
    async def main(env: Env) -> None:
        async with tls_server(env, certs) as address:
            for how in ("close", "reset"):
                client = socket.create_connection(address)
                if when != "at once":
                    client.send(b"\x16\x03\x01\x02\x00\x01")
                await asyncio.sleep(0.01)
                support.reset(client) if how == "reset" else client.close()
            await asyncio.sleep(0.03)

    run(main)


def test_handshake_timeout(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            try:
                await connect(
                    env,
                    silent.getsockname(),
                    certs.client_context(),
                    Recorder(env),
                    ssl_handshake_timeout=0.05,
                )
            except OSError as exc:
                env.log(type(exc), exc)
        async with tls_server(env, certs, ssl_handshake_timeout=0.05) as address:
            with socket.create_connection(address) as client:
                client.setblocking(False)
                try:
                    env.log("server said", await support.recv_to_end(client))
                except ConnectionResetError:
                    env.log("reset")

    support.compare(scenario)


def test_cancelled_during_the_handshake(run: Any, certs: Certificates) -> None:
    """C1: the descriptor is closed at once, exactly once."""

    async def main(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            before = support.open_fds()
            task = asyncio.ensure_future(
                connect(env, silent.getsockname(), certs.client_context(), Recorder())
            )
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await asyncio.sleep(0.02)
            assert support.new_fds(before) == {}

    run(main)


@pytest.mark.parametrize("after", range(6))
def test_cancelled_at_every_turn_over_a_socket_handed_in(certs: Certificates, after: int) -> None:
    """C1: whatever moment the cancellation hits, the socket ends closed and once."""

    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        task = asyncio.ensure_future(
            env.loop.create_connection(
                lambda: Recorder(env),
                sock=sock,
                ssl=certs.client_context(),
                server_hostname="localhost",
            )
        )
        await turns(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        await asyncio.sleep(0.02)
        env.log("open", sock.fileno() != -1)
        sock.close()
        peer.close()

    support.compare(scenario, check_warnings=False)


def test_shutdown_timeout(run: Any, certs: Certificates) -> None:
    """T3: a peer that never answers close_notify cannot hold a closing transport for long."""

    async def main(env: Env) -> None:
        import threading

        done = threading.Event()
        ready: list[Any] = []

        with socket.create_server(("127.0.0.1", 0)) as listener:

            def peer() -> None:
                sock, _ = listener.accept()
                with certs.server_context().wrap_socket(sock, server_side=True) as secure:
                    ready.append(secure)
                    done.wait(20)
                    # Closed without reading: close_notify is never answered.
                    secure.detach()

            thread = threading.Thread(target=peer)
            thread.start()
            rec = Recorder()
            try:
                transport = await connect(
                    env,
                    listener.getsockname(),
                    certs.client_context(),
                    rec,
                    ssl_shutdown_timeout=0.1,
                )
                start = env.loop.time()
                transport.close()
                await rec.until("connection_lost")
                assert env.loop.time() - start < 3 * support.TIME_SCALE
            finally:
                done.set()
                while thread.is_alive():
                    await asyncio.sleep(0.005)
        assert [message for message, _ in env.take_errors()] in (
            [],
            ["Error occurred during shutdown"],
        )

    run(main, check_fds=False, check_warnings=False)


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_ends(certs: Certificates, side: str, how: str) -> None:
    """Which callbacks both ends get when one of them closes or aborts."""

    async def scenario(env: Env) -> None:
        # Two traces, because the order between the two ends is the kernel's.
        traces = {name: Recorder() for name in ("client", "server")}
        async with tls_server(env, certs, lambda: traces["server"]) as address:
            transport = await connect(env, address, certs.client_context(), traces["client"])
            await traces["server"].until("connection_made")
            # The session tickets of TLS 1.3 are still on their way: let them arrive.
            transport.write(b"x")
            await traces["server"].until_received(1)
            getattr(traces[side].transport, how)()
            for rec in traces.values():
                await rec.until("connection_lost")
        for name, rec in traces.items():
            env.log(name, rec.calls)

    support.compare(scenario)


def test_writes_in_one_callback_arrive(run: Any, certs: Certificates) -> None:
    async def main(env: Env) -> None:
        rec = Recorder()
        async with tls_server(env, certs) as address:
            transport = await connect(env, address, certs.client_context(), rec)
            pieces = [b"a" * size for size in (1, 10, 1000, 20_000)]
            for _ in range(3):
                for piece in pieces:
                    transport.write(piece)
                transport.writelines(pieces)
            expected = b"".join(pieces) * 6
            await rec.until_received(len(expected))
            assert rec.received == expected
            transport.close()
            await rec.until("connection_lost")

    run(main)


def test_protocol_errors_over_tls(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        for callback in ("data_received", "eof_received", "connection_lost"):
            rec = Recorder(env, on={callback: lambda rec, *args: 1 / 0})
            server_side = echo()
            async with tls_server(env, certs, lambda one=server_side: one) as address:
                transport = await connect(env, address, certs.client_context(), rec)
                transport.write(b"ping")
                await rec.until("data_received")
                if not transport.is_closing():
                    server_side.transport.close()
                await rec.until("connection_lost")

    support.compare(scenario)


def test_set_protocol_over_tls(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        one, two = Recorder(env, "one"), BufferedRecorder(env, "two")
        async with tls_server(env, certs) as address:
            transport = await connect(env, address, certs.client_context(), one)
            transport.write(b"1")
            await one.until_received(1)
            transport.set_protocol(two)
            env.log(transport.get_protocol() is two)
            transport.write(b"2")
            await two.until_received(1)
            transport.close()
            await two.until("connection_lost")

    support.compare(scenario)


def test_pause_reading_over_tls(run: Any, certs: Certificates) -> None:
    async def main(env: Env) -> None:
        rec = Recorder()
        async with tls_server(env, certs) as address:
            transport = await connect(env, address, certs.client_context(), rec)
            transport.pause_reading()
            transport.write(b"ping")
            await asyncio.sleep(0.03)
            assert rec.received == b""
            transport.resume_reading()
            await rec.until_received(4)
            transport.close()
            await rec.until("connection_lost")

    run(main)


def test_alpn_sni_and_client_certificates(run: Any, certs: Certificates) -> None:
    """CPython's own SSLObject is used: everything a context can do works."""

    async def main(env: Env) -> None:
        seen = []
        server_context = certs.server_context()
        server_context.set_alpn_protocols(["h2", "http/1.1"])
        server_context.sni_callback = lambda obj, name, context: seen.append(name)
        server_context.verify_mode = ssl.CERT_REQUIRED
        server_context.load_verify_locations(certs.ca)
        client_context = certs.client_context()
        client_context.set_alpn_protocols(["http/1.1"])
        client_context.load_cert_chain(certs.server)
        server_side, client_side = Recorder(), Recorder()
        server = await env.loop.create_server(
            lambda: server_side, "127.0.0.1", 0, ssl=server_context
        )
        address = server.sockets[0].getsockname()
        transport = await connect(env, address, client_context, client_side)
        await server_side.until("connection_made")
        for side in (transport, server_side.transport):
            assert side.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            assert side.get_extra_info("peercert")["subject"] is not None
        assert seen == ["localhost"]
        transport.close()
        await server_side.until("connection_lost")
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()

    run(main)


def test_many_connections(run: Any, certs: Certificates) -> None:
    async def main(env: Env) -> None:
        context = certs.client_context()
        async with tls_server(env, certs) as address:

            async def client(number: int) -> None:
                rec = Recorder()
                transport = await connect(env, address, context, rec)
                tag = b"%d;" % number * 500
                transport.write(tag)
                await rec.until_received(len(tag))
                assert rec.received == tag
                (transport.close if number % 2 else transport.abort)()
                await rec.until("connection_lost")

            await asyncio.gather(*(client(number) for number in range(16)))

    run(main, timeout=40)


# --------------------------------------------------------------------------- start_tls


async def upgraded_pair(
    env: Env,
    certs: Certificates,
    server_protocol: Any,
    client_protocol: Any,
    kind: str = "tcp",
) -> tuple[Any, Any]:
    """Two plain transports over a pair of sockets, both upgraded; returns the TLS transports."""
    first, second = support.PAIRS[kind]()
    server, _ = await env.loop.connect_accepted_socket(lambda: server_protocol, first)
    client, _ = await env.loop.create_connection(lambda: client_protocol, sock=second)
    return await asyncio.gather(
        env.loop.start_tls(server, server_protocol, certs.server_context(), server_side=True),
        env.loop.start_tls(
            client, client_protocol, certs.client_context(), server_hostname="localhost"
        ),
    )


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
def test_start_tls_both_sides(certs: Certificates, kind: str, protocol: Any) -> None:
    async def scenario(env: Env) -> None:
        server_side, client_side = Recorder(), protocol(env)
        server, client = await upgraded_pair(env, certs, server_side, client_side, kind)
        server_side.on["data_received"] = lambda rec, data: server.write(data)
        env.log("protocol", client.get_protocol() is client_side)
        client.write(b"ping")
        await client_side.until_received(4)
        client.close()
        await client_side.until("connection_lost")
        await server_side.until("connection_lost")
        env.log(server_side.calls)
        await asyncio.sleep(0.01)

    support.compare(scenario)


def test_start_tls_after_plain_talk(run: Any, certs: Certificates) -> None:
    """STARTTLS as SMTP does it: some plain lines, then the upgrade."""

    async def main(env: Env) -> None:
        upgraded = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            writer.write(b"go ahead\n")
            await writer.drain()
            await writer.start_tls(certs.server_context())
            upgraded.set()
            writer.write((await reader.readline()).upper())
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"go ahead\n"
        await writer.start_tls(certs.client_context(), server_hostname="localhost")
        assert writer.get_extra_info("ssl_object") is not None
        writer.write(b"secret\n")
        assert await reader.readline() == b"SECRET\n"
        assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ssl.SSLError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main)


def start_tls_keeps_buffered_bytes() -> bool:
    """Whether the running asyncio moves a StreamReader's bytes to the TLS layer (cpy#142352)."""
    import inspect

    return "_stream_reader" in inspect.getsource(asyncio.base_events.BaseEventLoop.start_tls)


def test_client_hello_in_the_segment_of_the_header(
    run: Any, loop_name: str, certs: Certificates
) -> None:
    """T4: PROXY header and ClientHello in one segment; the bytes are not lost.

    On cpploop with any Python; asyncio learned it in 3.14.3.
    """
    if loop_name == "asyncio" and not start_tls_keeps_buffered_bytes():
        pytest.skip("the running asyncio's start_tls loses them")

    async def main(env: Env) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"PROXY TCP4\r\n"
            await writer.start_tls(certs.server_context())
            writer.write(await reader.readline())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.setblocking(False)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = certs.client_context().wrap_bio(
                incoming, outgoing, server_hostname="localhost"
            )
            with pytest.raises(ssl.SSLWantReadError):
                session.do_handshake()
            client.send(b"PROXY TCP4\r\n" + outgoing.read())
            for step in (session.do_handshake, lambda: session.write(b"secret\n"), session.read):
                while True:
                    try:
                        result = step()
                        break
                    except ssl.SSLWantReadError:
                        if outgoing.pending:
                            await support.send_all(client, outgoing.read())
                        incoming.write(await support.recv_exactly(client, 1))
                        incoming.write(support.recv_now(client))
                if outgoing.pending:
                    await support.send_all(client, outgoing.read())
            assert result == b"secret\n"
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()

    run(main)


def test_start_tls_while_writing_is_paused(run: Any, loop_name: str, certs: Certificates) -> None:
    """T5: bytes queued before the upgrade go out first, and writing is resumed, once.

    asyncio's own protocol does not know that it was paused (cpy#109051).
    """
    if loop_name == "asyncio":
        pytest.skip("the running asyncio fails here (cpy#109051)")

    async def main(env: Env) -> None:
        first, second = support.unix_pair()
        server_side, client_side = Recorder(), Recorder()
        server, _ = await env.loop.connect_accepted_socket(lambda: server_side, first)
        client, _ = await env.loop.create_connection(lambda: client_side, sock=second)
        server.pause_reading()
        plain = 0
        while not client_side.count("pause_writing"):
            client.write(b"p" * 65536)
            plain += 65536
        upgrade = asyncio.ensure_future(
            env.loop.start_tls(
                client, client_side, certs.client_context(), server_hostname="localhost"
            )
        )
        await turns(3)
        server.resume_reading()
        await eventually(lambda: len(server_side.received) >= plain, timeout=10)
        # The ClientHello may have come with the last plain bytes, and is then lost to us.
        hello = bytes(server_side.received[plain:])
        assert server_side.received[:plain] == b"p" * plain
        server.abort()
        with pytest.raises(OSError):
            await upgrade
        await server_side.until("connection_lost")
        assert hello[:1] in (b"", b"\x16")
        await asyncio.sleep(0.01)
        assert client_side.count("pause_writing") == client_side.count("resume_writing") == 1

    run(main, check_warnings=False)


def test_start_tls_fails_and_connection_lost_comes_once(certs: Certificates) -> None:
    """T5: a failed upgrade ends with one connection_lost at most, as on asyncio."""

    async def scenario(env: Env) -> None:
        for garbage in (b"not TLS at all\n" * 20, b""):
            sock, peer = support.tcp_pair()
            rec = Recorder(env)
            transport, _ = await env.loop.create_connection(lambda rec=rec: rec, sock=sock)
            task = asyncio.ensure_future(
                env.loop.start_tls(
                    transport, rec, certs.client_context(), server_hostname="localhost"
                )
            )
            await turns(4)
            if garbage:
                peer.send(garbage)
            else:
                peer.close()
            try:
                await task
            except (ssl.SSLError, ConnectionError) as exc:
                env.log(type(exc))
            await asyncio.sleep(0.02)
            env.log(rec.count("connection_lost"), sock.fileno() != -1)
            peer.close()

    support.compare(scenario)


@pytest.mark.parametrize("after", range(5))
def test_start_tls_cancelled(certs: Certificates, after: int) -> None:
    """C1, T5: cancelled at each step, the transport is closed and its descriptor with it."""

    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        rec = Recorder(env)
        transport, _ = await env.loop.create_connection(lambda: rec, sock=sock)
        task = asyncio.ensure_future(
            env.loop.start_tls(transport, rec, certs.client_context(), server_hostname="localhost")
        )
        await turns(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.02)
        env.log("closing", transport.is_closing(), "lost", rec.count("connection_lost"))
        if not transport.is_closing():
            transport.abort()
        await asyncio.sleep(0.01)
        env.log("open", sock.fileno() != -1)
        peer.close()

    support.compare(scenario, check_warnings=False)


def test_start_tls_arguments(certs: Certificates) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, _peer):
            for args, kwargs in (
                ((transport, rec, None), {}),
                ((transport, rec, True), {}),
                ((object(), rec, certs.client_context()), {}),
                ((transport, rec, certs.client_context()), {"ssl_handshake_timeout": 0}),
                ((transport, rec, certs.client_context()), {"ssl_shutdown_timeout": -1}),
            ):
                try:
                    await env.loop.start_tls(*args, **kwargs)
                except Exception as exc:
                    env.log(type(exc), str(exc).split("<")[0])

    support.compare(scenario, check_warnings=False)


def test_tls_inside_tls(run: Any, certs: Certificates) -> None:
    """start_tls over a TLS transport (a proxy's CONNECT through https)."""

    async def main(env: Env) -> None:
        server_side, client_side = Recorder(), Recorder()
        server, client = await upgraded_pair(env, certs, server_side, client_side)
        inner_server, inner_client = await asyncio.gather(
            env.loop.start_tls(server, server_side, certs.server_context(), server_side=True),
            env.loop.start_tls(
                client, client_side, certs.client_context(), server_hostname="localhost"
            ),
        )
        server_side.on["data_received"] = lambda rec, data: inner_server.write(data)
        inner_client.write(b"nested")
        await client_side.until_received(6)
        assert client_side.received == b"nested"
        inner_client.abort()
        await client_side.until("connection_lost")
        await server_side.until("connection_lost")
        await asyncio.sleep(0.02)

    run(main, check_warnings=False)


def test_connections_leave_no_cycles(run: Any, certs: Certificates) -> None:
    """T1: the objects of a closed TLS connection are freed (with the collector's help at most)."""
    import gc
    import weakref

    async def main(env: Env) -> None:
        context = certs.client_context()
        refs: list[Any] = []
        async with tls_server(env, certs) as address:
            for _ in range(5):
                rec = Recorder()
                transport = await connect(env, address, context, rec)
                refs += [weakref.ref(rec), weakref.ref(transport)]
                transport.close()
                await rec.until("connection_lost")
                rec.transport = None
                del rec, transport
            await asyncio.sleep(0.02)
            gc.collect()
            assert [ref() for ref in refs] == [None] * len(refs)

    run(main)
