"""TLS: how connections end, on every side and by every means, and how long that may take."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from typing import Any

import pytest
import support
import tls_support
from support import Env, Recorder, turns
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
    establish,
    events,
    linked,
    other_side,
    outcome,
    recorder,
    serving,
    settle,
    unconnected,
)

MATRIX = [
    pytest.mark.parametrize("side", SIDES),
    pytest.mark.parametrize("version", VERSIONS),
    pytest.mark.parametrize("protocol", PROTOCOLS),
]


def everywhere(test: Any) -> Any:
    for mark in MATRIX:
        test = mark(test)
    return test


async def tickets_read(rec: Any, peer: Peer) -> None:
    """One byte to and fro: the session tickets of TLS 1.3 are behind both ends then."""
    await peer.write(b"!")
    await rec.until_received(1)
    rec.transport.write(b"!")
    await peer.read_exactly(1)


# --------------------------------------------------------------------------- orderly ends


@everywhere
@pytest.mark.parametrize("pending", [0, 3_000_000])
def test_close_by_us(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any, pending: int
) -> None:
    """What is queued goes out, then close_notify; the end comes when the peer has answered."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):
            await tickets_read(rec, peer)
            transport.write(b"x" * pending)
            transport.close()
            transport.close()
            env.log(transport.is_closing(), rec.count("connection_lost"))
            data, end = await peer.read_to_end()
            env.log(len(data), end)
            await turns(3)
            env.log("lost before the answer", rec.count("connection_lost"))
            await peer.close_notify()
            env.log(await peer.until_socket_end())
            await rec.until("connection_lost")
        env.log(events(rec))

    tls_compare(scenario)


@everywhere
def test_close_notify_by_the_peer(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any
) -> None:
    """eof_received, our close_notify in answer, connection_lost(None)."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):
            await tickets_read(rec, peer)
            await peer.close_notify()
            env.log(await peer.read_to_end())
            env.log(await peer.until_socket_end())
            await rec.until("connection_lost")
            env.log(transport.is_closing())
        env.log(rec.calls)

    tls_compare(scenario)


@everywhere
@pytest.mark.parametrize("how", ["half-closed", "closed", "reset"])
@pytest.mark.parametrize("last", [b"", b"last words"])
def test_ragged_end(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any, how: str, last: bytes
) -> None:
    """The connection ends without close_notify: asyncio takes it for an ordinary end."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (_, peer):
            await tickets_read(rec, peer)
            if last:
                # A reset may destroy what was sent before: let it arrive.
                await peer.write(last)
                await rec.until_received(1 + len(last))
            if how == "half-closed":
                peer.sock.shutdown(socket.SHUT_WR)
                env.log(await peer.read_to_end())
            elif how == "closed":
                peer.close()
            else:
                support.reset(peer.sock)
            await rec.until("connection_lost")
        env.log(rec.calls)

    tls_compare(scenario)


@everywhere
@pytest.mark.parametrize("ragged", [False, True], ids=["close_notify", "ragged"])
def test_data_and_end_in_one_segment(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any, ragged: bool
) -> None:
    """Nothing of the data is lost, however much comes together with the end."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (_, peer):
            await tickets_read(rec, peer)
            records = b"".join(peer.seal(b"%06d" % number) for number in range(1500))
            if not ragged:
                records += peer.seal_close_notify()
            await peer.send_raw(records)
            peer.sock.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
            env.log(rec.received[1:] == b"".join(b"%06d" % number for number in range(1500)))
        env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("answer", [True, False, 5, "raise"])
@pytest.mark.parametrize("ragged", [False, True], ids=["close_notify", "ragged"])
def test_what_eof_received_returns(
    tls_compare: Any, pki: Pki, side: str, answer: Any, ragged: bool
) -> None:
    """A true value has no effect over TLS but for asyncio's warning."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        rec.on["eof_received"] = lambda rec: 1 / 0 if answer == "raise" else answer
        async with endpoint(env, pki, side, rec) as (_, peer):
            await tickets_read(rec, peer)
            if not ragged:
                await peer.close_notify()
            peer.sock.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
        env.log(rec.calls)

    tls_compare(scenario)


@everywhere
def test_half_closed_peer_still_gets_what_was_written(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any
) -> None:
    """Written in the callback of the last data or before: it reaches a half-closed peer."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):
            await tickets_read(rec, peer)
            rec.on["data_received"] = lambda rec, data: transport.write(b"answer")
            rec.on["eof_received"] = lambda rec: transport.write(b"too late?")
            await peer.send_raw(peer.seal(b"question") + peer.seal_close_notify())
            env.log(await peer.read_to_end())
            await rec.until("connection_lost")
        env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", [10, 400_000, 5_000_000])
def test_end_while_reading_is_paused(tls_compare: Any, pki: Pki, side: str, size: int) -> None:
    """The end waits for resume_reading(), and so does the data before it."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            await tickets_read(rec, peer)
            transport.pause_reading()

            async def send() -> None:
                await peer.write(b"x" * size)
                await peer.close_notify()
                peer.sock.shutdown(socket.SHUT_WR)

            sending = asyncio.ensure_future(send())
            await asyncio.sleep(0.05)
            env.log(rec.calls)
            transport.resume_reading()
            await rec.until("connection_lost")
            await sending
            env.log(len(rec.received))
        env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["close", "abort"])
def test_end_by_us_while_reading_is_paused(tls_compare: Any, pki: Pki, side: str, how: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            await tickets_read(rec, peer)
            transport.pause_reading()
            await peer.write(b"never read")
            await asyncio.sleep(0.02)
            getattr(transport, how)()
            _, end = await peer.read_to_end()
            env.log(end in ("close_notify", "eof", "reset"))
            await peer.close_notify()
            peer.close()
            await turns(5)
            env.log(rec.count("connection_lost"))
            if not rec.count("connection_lost"):
                transport.resume_reading()
                await rec.until("connection_lost")
        env.log(rec.names(), type(rec.exc))

    tls_compare(scenario)


# --------------------------------------------------------------------------- after the end


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["close", "abort", "peer"])
def test_use_after_the_end(tls_compare: Any, pki: Pki, side: str, how: str) -> None:
    """Writes are dropped with asyncio's warning after the fifth; nothing else raises anew."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            await tickets_read(rec, peer)
            if how == "peer":
                peer.close()
            else:
                getattr(transport, how)()
            if how == "close":
                env.log(await peer.read_to_end())
                await peer.close_notify()
            await rec.until("connection_lost")
            for _ in range(7):
                transport.write(b"dropped")
            transport.writelines([b"dropped", b"too"])
            env.log(transport.is_closing(), transport.get_write_buffer_size())
            for name in ("abort", "close"):
                getattr(transport, name)()
            await settle()
        env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
def test_writes_behind_close_are_dropped(tls_compare: Any, pki: Pki, side: str) -> None:
    """asyncio drops a write after close(), even while earlier bytes are still queued."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec) as (transport, peer):
            await tickets_read(rec, peer)
            transport.write(b"x" * 3_000_000)
            transport.close()
            for _ in range(7):
                transport.write(b"dropped")
            data, end = await peer.read_to_end()
            env.log(data == b"x" * 3_000_000, end)
            await peer.close_notify()
            await rec.until("connection_lost")
        env.log(events(rec))

    tls_compare(scenario)


CALLBACKS = ("connection_made", "data_received", "eof_received", "pause_writing", "connection_lost")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_ended_inside_a_callback(
    tls_compare: Any, pki: Pki, side: str, how: str, callback: str
) -> None:
    """C1, T6: exactly one connection_lost, and never inside the call."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        inside: list[Any] = []

        def end(rec: Any, *args: Any) -> None:
            before = rec.count("connection_lost")
            getattr(rec.transport, how)()
            inside.append(rec.count("connection_lost") - before)

        rec.on[callback] = end
        async with unconnected(env, pki, side, rec) as (task, peer):

            async def play() -> None:
                with contextlib.suppress(ssl.SSLError):
                    await peer.handshake()
                    await peer.write(b"data")
                    if callback == "pause_writing":
                        await rec.until("pause_writing")
                    await peer.close_notify()
                    await peer.read_to_end()
                peer.close()

            playing = asyncio.ensure_future(play())
            env.log(await outcome(task))
            if callback == "pause_writing":
                rec.transport.set_write_buffer_limits(high=1000)
                for _ in range(400):
                    rec.transport.write(bytes(65536))
            await rec.until("connection_lost")
            await playing
            await settle()
        env.log(inside)
        # What was received before an abort, and which error a write met, is a matter of luck.
        names = rec.names()
        env.log(names.count("connection_made"), names.count("connection_lost"), names[-1])
        if callback in ("eof_received", "connection_lost"):
            env.log(rec.calls)

    tls_compare(scenario)


# --------------------------------------------------------------------------- T3


@everywhere
def test_close_while_the_peer_keeps_sending(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any
) -> None:
    """T3: close() does not go on downloading; how it ends, and how fast, is as on asyncio."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):

            async def send() -> None:
                while peer.end is None:
                    await peer.write(bytes(16384))
                    await asyncio.sleep(0)

            sending = asyncio.ensure_future(send())
            await rec.until_received(200_000)
            start = time.monotonic()
            transport.close()
            received = len(rec.received)
            await rec.until("connection_lost")
            env.log("soon", time.monotonic() - start < 2)
            # asyncio reads once more in close(); nothing comes after that.
            env.log("received later", len(rec.received) - received)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, ssl.SSLError):
                await sending
            env.log(rec.names()[-1], describe(rec.exc))
            env.log(rec.count("eof_received"))

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_abort_is_immediate(tls_compare: Any, pki: Pki, side: str, kind: str) -> None:
    """T3: nothing is flushed, no close_notify, connection_lost(None) in the next turns."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, kind=kind) as (transport, peer):
            await tickets_read(rec, peer)
            for _ in range(100):
                transport.write(bytes(100_000))
            transport.abort()
            env.log(transport.is_closing(), rec.count("connection_lost"))
            await turns(4)
            env.log(rec.count("connection_lost"), rec.exc)
            data, end = await peer.read_to_end()
            env.log(len(data) < 10_000_000, end in ("eof", "reset"))
            transport.abort()
            await settle()
            env.log(rec.count("connection_lost"), transport.get_write_buffer_size())

    tls_compare(scenario)


# --------------------------------------------------------------------------- time-outs

SHORT_S = 0.1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_handshake_timeout(tls_compare: Any, pki: Pki, side: str, kind: str, debug: bool) -> None:
    """The waiter gets asyncio's ConnectionAbortedError with its text."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec, kind=kind, ssl_handshake_timeout=SHORT_S) as (
            task,
            peer,
        ):
            start = time.monotonic()
            env.log(await outcome(task))
            env.log(time.monotonic() - start >= SHORT_S)
            env.log(await peer.until_socket_end() in ("eof", "reset"))
            env.log(rec.calls)

    tls_compare(scenario, debug=debug)


@pytest.mark.parametrize("side", SIDES)
def test_shutdown_timeout(tls_compare: Any, pki: Pki, side: str) -> None:
    """T3: a peer that never answers close_notify: connection_lost with asyncio's TimeoutError."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, ssl_shutdown_timeout=SHORT_S) as (
            transport,
            peer,
        ):
            await tickets_read(rec, peer)
            start = time.monotonic()
            transport.close()
            await rec.until("connection_lost")
            env.log(SHORT_S <= time.monotonic() - start < 5 * support.TIME_SCALE)
            env.log(rec.calls)
            env.log(await peer.read_to_end())

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
def test_shutdown_timeout_covers_the_flush(tls_compare: Any, pki: Pki, side: str) -> None:
    """T3: a peer that does not even read what is queued is given up, too."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, ssl_shutdown_timeout=SHORT_S) as (
            transport,
            peer,
        ):
            await tickets_read(rec, peer)
            for _ in range(100):
                transport.write(bytes(100_000))
            transport.close()
            await rec.until("connection_lost")
            env.log(rec.names()[-1], rec.exc)

    tls_compare(scenario)


BAD_TIMEOUTS = [0, -1, -0.5, 0.0, "1"]


@pytest.mark.parametrize("which", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("value", BAD_TIMEOUTS, ids=repr)
def test_odd_timeouts(tls_compare: Any, pki: Pki, which: str, value: Any) -> None:
    """T3: 0, negative and senseless values, wherever a time-out can be given."""

    async def scenario(env: Env) -> None:
        for side in SIDES:
            sock, other = support.tcp_pair()
            other.close()
            rec = Recorder(env)
            made = establish(env, side, sock, rec, pki.context(side), **{which: value})
            env.log(side, await outcome(made))
            await settle()
            sock.close()
        first, second = support.tcp_pair()
        rec = Recorder(env)
        transport, _ = await env.loop.create_connection(lambda: rec, sock=first)
        second.close()
        made = env.loop.start_tls(
            transport, rec, pki.client_context(), server_hostname="localhost", **{which: value}
        )
        env.log("start_tls", await outcome(made))
        transport.abort()
        await settle()
        # A server takes it, and meets it at the first connection.
        try:
            server = await env.loop.create_server(
                lambda: Recorder(env), "127.0.0.1", 0, ssl=pki.server_context(), **{which: value}
            )
        except (ValueError, TypeError) as exc:
            env.log("create_server", exc)
        else:
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.setblocking(False)
                if not isinstance(value, str):
                    with contextlib.suppress(ConnectionResetError):
                        env.log("server", await support.recv_to_end(client))
            await asyncio.sleep(0.01)
            server.close()
            await server.wait_closed()

    tls_compare(scenario, check_warnings=False)


def test_timeouts_without_tls(tls_compare: Any, pki: Pki) -> None:
    """A time-out without ssl= is an error everywhere."""

    async def scenario(env: Env) -> None:
        for which in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
            options = {which: 1.0}
            sock, other = support.tcp_pair()
            for made in (
                env.loop.create_connection(Recorder, sock=sock, **options),
                env.loop.connect_accepted_socket(Recorder, sock, **options),
                env.loop.create_server(Recorder, "127.0.0.1", 0, **options),
                env.loop.create_unix_connection(Recorder, sock=sock, **options),
                env.loop.create_unix_server(Recorder, "/nowhere/s", **options),
            ):
                env.log(which, await outcome(made))
            sock.close()
            other.close()

    tls_compare(scenario, check_warnings=False)


def test_server_timeouts(tls_run: Any, pki: Pki) -> None:
    """The time-outs given to a server hold for each of its connections."""

    async def main(env: Env) -> None:
        rec = Recorder()
        context = pki.server_context()
        options = {"ssl_handshake_timeout": SHORT_S, "ssl_shutdown_timeout": SHORT_S}
        async with serving(env, lambda: rec, context, **options) as address:
            silent = [socket.create_connection(address) for _ in range(3)]
            for sock in silent:
                sock.setblocking(False)
                with contextlib.suppress(ConnectionResetError):
                    assert await support.recv_to_end(sock) == b""
                sock.close()
            with socket.create_connection(address) as sock:
                sock.setblocking(False)
                peer = Peer(sock, pki.client_context())
                await peer.handshake()
                await rec.until("connection_made")
                rec.transport.close()
                await rec.until("connection_lost")
                assert isinstance(rec.exc, TimeoutError)

    tls_run(main)


# --------------------------------------------------------------------------- cancelled, aborted


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("after", range(12))
def test_cancelled_at_each_step(tls_run: Any, pki: Pki, side: str, after: int) -> None:
    """C1, T5: wherever the cancellation hits, made and lost come in pairs, the socket is closed."""

    async def main(env: Env) -> None:
        rec = Recorder()
        sock, other = support.unix_pair()
        peer = Peer(other, pki.context(other_side(side)), server_side=side == "client")
        shaking = asyncio.ensure_future(peer.handshake())
        task = asyncio.ensure_future(establish(env, side, sock, rec, pki.context(side)))
        for _ in range(after):
            await asyncio.sleep(0)
            # The peer's own pace is a sleep: without it no step of the handshake would come.
            if after > 6:
                await asyncio.sleep(0.0007)
        task.cancel()
        try:
            transport = await task
        except asyncio.CancelledError:
            pass
        else:
            transport.abort()
        shaking.cancel()
        with contextlib.suppress(asyncio.CancelledError, ssl.SSLError):
            await shaking
        peer.close()
        del task
        await asyncio.sleep(0.005)
        if after == 0:
            # Nobody has looked at the socket yet: it is still the caller's.
            sock.close()
        assert rec.count("connection_lost") == rec.count("connection_made")
        assert rec.count("connection_made") <= 1
        if rec.transport is not None:
            assert rec.transport.is_closing()
        assert sock.fileno() == -1

    tls_run(main, check_warnings=False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("size", [0, 1, 5, 100, 10_000])
def test_peer_goes_during_the_handshake(
    tls_compare: Any, pki: Pki, side: str, how: str, size: int
) -> None:
    """T6: after SIZE bytes of the peer's first flight. The waiter gets the same error."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec) as (task, peer):
            if side == "client":
                await peer.pull()
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await peer.send_raw(peer.outgoing.read()[:size])
            await asyncio.sleep(0.01)
            if how == "reset":
                # What is in the way would be lost and the error would be another.
                support.recv_now(peer.sock)
                support.reset(peer.sock)
            else:
                support.recv_now(peer.sock)
                peer.close()
            env.log(await outcome(task))
            env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_at_once(tls_run: Any, pki: Pki, kind: str) -> None:
    """Both ends close, or one closes while the other aborts: one connection_lost for each."""

    async def main(env: Env) -> None:
        for first in ("close", "abort"):
            for second in ("close", "abort"):
                server_side, client_side = Recorder(), Recorder()
                async with linked(env, pki, server_side, client_side, kind=kind) as pair:
                    pair[0].write(b"last")
                    getattr(pair[0], first)()
                    getattr(pair[1], second)()
                    await server_side.until("connection_lost")
                    await client_side.until("connection_lost")
                await settle()
                assert server_side.count("connection_lost") == 1
                assert client_side.count("connection_lost") == 1

    tls_run(main)


def test_connection_refused_and_reset_at_accept(tls_compare: Any, pki: Pki) -> None:
    """create_connection(ssl=) where nobody listens, and where the listener resets at once."""

    async def scenario(env: Env) -> None:
        holder, port = support.refused_port()
        rec = Recorder(env)
        result = await outcome(connect(env, ("127.0.0.1", port), pki.client_context(), rec))
        env.log(type(result).__name__, "refused" in str(result))
        holder.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            task = asyncio.ensure_future(
                connect(env, listener.getsockname(), pki.client_context(), rec)
            )
            listener.setblocking(False)
            accepted, _ = await env.loop.sock_accept(listener)
            await env.loop.sock_recv(accepted, 65536)
            support.reset(accepted)
            env.log(await outcome(task))
            env.log(rec.calls)

    tls_compare(scenario)


def test_stream_writer_wait_closed(tls_run: Any, pki: Pki) -> None:
    """wait_closed() returns after the closing handshake; is_closing() from close() on."""

    async def main(env: Env) -> None:
        rec = echo()
        async with serving(env, lambda: rec, pki.server_context()) as address:
            reader, writer = await asyncio.open_connection(
                *address, ssl=pki.client_context(), server_hostname="localhost"
            )
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.close()
            assert writer.is_closing()
            await writer.wait_closed()
            await rec.until("connection_lost")
            assert rec.exc is None
            assert rec.names()[-2:] == ["eof_received", "connection_lost"]

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
def test_loop_closed_with_an_open_connection(tls_name: str, pki: Pki, side: str) -> None:
    """Nothing crashes, the descriptor is closed, and what is forgotten is warned about."""
    import gc
    import warnings

    before = support.open_fds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop = support.factory(tls_name)()
        rec = Recorder()
        env = Env(tls_name)
        env.loop = loop

        async def main(env: Env, rec: Any) -> Any:
            sock, other = support.tcp_pair()
            peer = Peer(other, pki.context(other_side(side)), server_side=side == "client")
            made = establish(env, side, sock, rec, pki.context(side))
            transport, _ = await asyncio.gather(made, peer.handshake())
            transport.write(b"x")
            return peer

        peer = loop.run_until_complete(main(env, rec))
        loop.close()
        rec.transport.write(b"into the void") if tls_support.is_native(tls_name) else None
        rec.transport = None
        del rec, loop, env
        gc.collect()
        peer.close()
        del peer
        gc.collect()
    assert support.new_fds(before) == {}
    unclosed = [str(w.message) for w in caught if "unclosed transport" in str(w.message)]
    assert unclosed
    assert {w.category for w in caught} <= {ResourceWarning}
