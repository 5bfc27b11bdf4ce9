"""TLS: garbage, torn and forged records, before, during and after the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from typing import Any

import pytest
import support
from support import Env, Recorder, turns
from tls_support import (
    PROTOCOLS,
    SIDES,
    VERSIONS,
    Peer,
    Pki,
    connect,
    echo,
    endpoint,
    outcome,
    recorder,
    serving,
    unconnected,
)

RANDOM = random.Random(7).randbytes(300)

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "http post": b"POST /x HTTP/1.1\r\n\r\n",
    "proxy": b"CONNECT localhost:443 HTTP/1.1\r\n\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(300),
    "ones": b"\xff" * 300,
    "random": RANDOM,
    "one byte": b"\x00",
    "header only": b"\x16\x03\x01",
    "bad version": b"\x16\x09\x09\x00\x10" + bytes(16),
    "too long": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "empty record": b"\x16\x03\x01\x00\x00" * 40,
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "warning alert": b"\x15\x03\x03\x00\x02\x01\x5a",
    "data": b"\x17\x03\x03\x00\x10" + bytes(16),
    "empty hello": b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    "long hello": b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
    "close_notify": b"\x15\x03\x03\x00\x02\x01\x00",
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_garbage_before_the_handshake(
    tls_compare: Any, pki: Pki, side: str, garbage: str, debug: bool
) -> None:
    """Instead of the first flight; then the connection's end, where it was not noticed."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec) as (task, peer):
            if side == "client":
                await peer.pull()
            await peer.send_raw(GARBAGE[garbage])
            await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
            env.log(await outcome(task))
            env.log(rec.calls)

    tls_compare(scenario, debug=debug)


@pytest.mark.parametrize("garbage", ["http", "random", "alert", "too long"])
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_garbage_at_a_server(tls_compare: Any, pki: Pki, garbage: str, debug: bool) -> None:
    """The same at a listening server, whose other clients do not notice."""

    async def scenario(env: Env) -> None:
        made: list[Recorder] = []

        def factory() -> Recorder:
            made.append(echo())
            return made[-1]

        async with serving(env, factory, pki.server_context()) as address:
            rec = Recorder()
            transport = await connect(env, address, pki.client_context(), rec)
            for _ in range(3):
                with socket.create_connection(address) as client:
                    client.setblocking(False)
                    await support.send_all(client, GARBAGE[garbage])
                    with contextlib.suppress(ConnectionError):
                        await support.recv_to_end(client)
            transport.write(b"ping")
            env.log(await rec.until_received(4))
            transport.close()
            await rec.until("connection_lost")
            await asyncio.sleep(0.01)
        env.log([one.names() for one in made])

    tls_compare(scenario, debug=debug)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "garbage", ["http", "random", "alert", "data", "too long", "warning alert"]
)
def test_garbage_during_the_handshake(
    tls_compare: Any, pki: Pki, side: str, version: str, garbage: str
) -> None:
    """Behind a good first flight, in a segment of its own."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec, version=version) as (task, peer):
            if side == "client":
                await peer.pull()
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            flight = peer.outgoing.read()
            # Of a server's flight only the first record, lest the client be done with it.
            size = 5 + int.from_bytes(flight[3:5], "big")
            await peer.send_raw(flight[:size])
            await asyncio.sleep(0.01)
            await peer.send_raw(GARBAGE[garbage])
            await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
            env.log(await outcome(task))
            env.log(rec.calls)

    tls_compare(scenario)


def corrupted(record: bytes) -> bytes:
    return record[:-1] + bytes([record[-1] ^ 1])


AFTER: dict[str, Any] = {
    "http": lambda peer: GARBAGE["http"],
    "random": lambda peer: RANDOM,
    "zeros": lambda peer: bytes(100),
    "plain alert": lambda peer: GARBAGE["alert"],
    "plain close_notify": lambda peer: GARBAGE["close_notify"],
    "plain data": lambda peer: GARBAGE["data"],
    "bad tag": lambda peer: corrupted(peer.seal(b"secret")),
    "unknown type": lambda peer: b"\x63" + peer.seal(b"secret")[1:],
    "too long": lambda peer: b"\x17\x03\x03\x48\x01" + bytes(0x4801),
    "longest": lambda peer: b"\x17\x03\x03\xff\xff" + bytes(65535),
    "empty": lambda peer: b"\x17\x03\x03\x00\x00",
    "new hello": lambda peer: b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
    "truncated": lambda peer: peer.seal(b"half of it is missing")[:-10],
    "truncated header": lambda peer: peer.seal(b"all of it is missing")[:3],
    "truncated after good": lambda peer: peer.seal(b"good") + peer.seal(b"x" * 5000)[:2000],
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", AFTER)
def test_garbage_after_the_handshake(
    tls_compare: Any, pki: Pki, side: str, version: str, case: str
) -> None:
    """The same callbacks with the same exception, and the exception handler hears the same."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):
            await peer.write(b"first")
            await rec.until_received(5)
            await peer.send_raw(AFTER[case](peer))
            # A truncated record says nothing until the connection ends; the others end it.
            for _ in range(50):
                if rec.count("connection_lost"):
                    break
                await asyncio.sleep(0.01)
            env.log(rec.calls)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
            env.log(rec.calls)
            env.log(transport.is_closing())

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("replayed", [False, True], ids=["forged", "replayed"])
def test_bad_record_behind_a_good_one(
    tls_compare: Any, pki: Pki, side: str, version: str, protocol: Any, replayed: bool
) -> None:
    """In one segment. Whether the good one is still delivered differs: asyncio's join drops it."""

    async def scenario(env: Env) -> None:
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec, version=version) as (_, peer):
            await peer.write(b"first")
            await rec.until_received(5)
            good = peer.seal(b"good")
            await peer.send_raw(good + (good if replayed else corrupted(peer.seal(b"bad!"))))
            await rec.until("connection_lost")
            assert rec.received in (b"first", b"firstgood")
            env.log([call for call in rec.calls if call[0] != "data_received"])

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("case", ["bad tag", "truncated", "truncated after good"])
def test_garbage_to_a_buffered_protocol(tls_compare: Any, pki: Pki, side: str, case: str) -> None:
    async def scenario(env: Env) -> None:
        rec = recorder(PROTOCOLS[1])
        async with endpoint(env, pki, side, rec) as (_, peer):
            await peer.write(b"first")
            await rec.until_received(5)
            await peer.send_raw(AFTER[case](peer))
            await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
            env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("case", ["bad tag", "truncated", "plain close_notify"])
def test_garbage_to_a_stream(tls_compare: Any, pki: Pki, case: str) -> None:
    """The reader gets the data before it, then the error or the end."""

    async def scenario(env: Env) -> None:
        sock, other = support.tcp_pair()
        peer = Peer(other, pki.server_context(), server_side=True)
        (reader, writer), _ = await asyncio.gather(
            asyncio.open_connection(
                sock=sock, ssl=pki.client_context(), server_hostname="localhost"
            ),
            peer.handshake(),
        )
        await peer.write(b"good")
        env.log(await reader.readexactly(4))
        await peer.send_raw(AFTER[case](peer))
        peer.sock.shutdown(socket.SHUT_WR)
        try:
            env.log(await reader.read())
        except ssl.SSLError as exc:
            env.log(exc)
        writer.close()
        try:
            await writer.wait_closed()
        except OSError as exc:
            env.log(exc)
        peer.close()

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("together", [True, False], ids=["one segment", "two segments"])
@pytest.mark.parametrize("what", ["data", "garbage", "close_notify"])
def test_more_after_close_notify(
    tls_compare: Any, pki: Pki, side: str, version: str, together: bool, what: str
) -> None:
    """T6: application data after close_notify (uvloop: AttributeError) ends as on asyncio."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, version=version) as (_, peer):
            await peer.write(b"first")
            await rec.until_received(5)
            more = {
                "data": peer.seal(b"late"),
                "garbage": RANDOM,
                "close_notify": b"",
            }[what]
            if what == "data":
                # Sealed before, sent after: its number is out of order and its tag is wrong.
                pass
            end = peer.seal_close_notify()
            if what == "close_notify":
                more = end
            if together:
                await peer.send_raw(end + more)
            else:
                await peer.send_raw(end)
                await turns(1)
                await peer.send_raw(more)
            await rec.until("connection_lost")
            # How the plain connection ends when unread bytes are left is the kernel's affair.
            env.log(rec.names(), isinstance(rec.exc, (OSError, type(None))))

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_data_while_we_wait_for_close_notify(
    tls_compare: Any, pki: Pki, side: str, version: str
) -> None:
    """T3, T6: we closed, the peer sends data and only then close_notify."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with endpoint(env, pki, side, rec, version=version) as (transport, peer):
            await peer.write(b"first")
            await rec.until_received(5)
            transport.write(b"bye")
            transport.close()
            env.log(await peer.read_to_end())
            await peer.send_raw(peer.seal(b"late") + peer.seal_close_notify())
            await rec.until("connection_lost")
            env.log(rec.calls)

    tls_compare(scenario)


# --------------------------------------------------------------------------- odd, but good


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_byte_by_byte(tls_run: Any, pki: Pki, side: str, version: str, protocol: Any) -> None:
    """Handshake, data and end arrive one byte at a time."""

    class Slow(Peer):
        async def send_raw(self, data: bytes) -> None:
            for start in range(len(data)):
                await super().send_raw(data[start : start + 1])
                await asyncio.sleep(0)

    async def main(env: Env) -> None:
        rec = echo(kind=protocol)
        async with unconnected(env, pki, side, rec, version=version) as (task, peer):
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.__class__ = Slow
            shaking = asyncio.ensure_future(peer.handshake())
            await task
            await shaking
            await peer.write(b"slow but sure")
            assert await peer.read_exactly(13) == b"slow but sure"
            await peer.close_notify()
            await rec.until("connection_lost")
            assert rec.exc is None

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_records_cut_anywhere(tls_run: Any, pki: Pki, side: str, protocol: Any) -> None:
    """Segments that end anywhere in a record; records from one byte to the longest."""

    async def main(env: Env) -> None:
        chooser = random.Random(11)
        rec = recorder(protocol)
        async with endpoint(env, pki, side, rec) as (_, peer):
            sent = bytearray()
            stream = bytearray()
            for _ in range(200):
                data = chooser.randbytes(chooser.choice((1, 2, 100, 5000, 16384)))
                sent += data
                stream += peer.seal(data)
            while stream:
                size = chooser.choice((1, 3, 6, 500, 16389, 40_000))
                await peer.send_raw(bytes(stream[:size]))
                del stream[:size]
                if chooser.random() < 0.3:
                    await asyncio.sleep(0)
            assert await rec.until_received(len(sent)) == sent

    tls_run(main)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("version", VERSIONS)
def test_data_in_the_last_flight(tls_compare: Any, pki: Pki, side: str, version: str) -> None:
    """Data in one segment with the end of the handshake comes after connection_made, at once."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec, version=version) as (task, peer):
            while True:
                try:
                    peer.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await peer.flush()
                    await peer.pull()
            # What completes the handshake is not sent yet: the data goes with it.
            if peer.outgoing.pending:
                peer.tls.write(b"early bird")
                await peer.flush()
            else:
                await peer.write(b"early bird")
            await task
            await rec.until_received(10)
            env.log(rec.calls)

    tls_compare(scenario)


@pytest.mark.parametrize("side", SIDES)
def test_data_and_end_in_the_last_flight(tls_compare: Any, pki: Pki, side: str) -> None:
    """The whole conversation of the peer is over before our callback runs."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with unconnected(env, pki, side, rec, version="TLSv1.3") as (task, peer):
            while True:
                try:
                    peer.tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await peer.flush()
                    await peer.pull()
            peer.tls.write(b"hello and goodbye")
            with contextlib.suppress(ssl.SSLWantReadError):
                peer.tls.unwrap()
            await peer.flush()
            peer.sock.shutdown(socket.SHUT_WR)
            env.log(await outcome(task))
            await rec.until("connection_lost")
            env.log(rec.calls)

    tls_compare(scenario)
