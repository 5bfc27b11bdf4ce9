"""asyncio.Transport: what reading and writing on one connection promise each other, both loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import support
from contract import DUPLEX, attempt, opened
from support import BufferedRecorder, Env, Recorder, turns


@pytest.fixture(params=DUPLEX)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_class_itself() -> None:
    """A Transport is both halves and adds nothing; what a subclass leaves out is refused."""
    assert asyncio.Transport.__mro__[1:3] == (asyncio.ReadTransport, asyncio.WriteTransport)

    class Half(asyncio.Transport):
        def write(self, data: Any) -> None:
            pass

    half = Half({"key": 1})
    half.write(b"")
    assert half.get_extra_info("key") == 1
    for name in ("pause_reading", "resume_reading", "abort", "close", "is_closing"):
        with pytest.raises(NotImplementedError):
            getattr(half, name)()


def test_both_ways_at_once(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = Recorder()
        data = bytes(range(256)) * 4096
        async with opened(kind, rec, certs) as (transport, peer):
            transport.write(data)
            sending = asyncio.ensure_future(peer.send(data[::-1]))
            assert await peer.recv(len(data)) == data
            await sending
            assert await rec.until_received(len(data)) == data[::-1]

    run(main)


def test_order_of_callbacks(certs: Any, kind: str) -> None:
    """connection_made, data, the end, connection_lost: in this order, each at its time."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            await peer.send(b"hello")
            await rec.until_received(5)
            transport.write(b"answer")
            env.log("peer", await peer.recv(6))
            await peer.end()
            await rec.until("connection_lost")
            env.log(transport.is_closing())

    trace = support.compare(scenario)
    names = [entry[0] for entry in trace if isinstance(entry[0], str)]
    assert names.index("connection_made") < names.index("data_received")
    assert names.index("eof_received") < names.index("connection_lost")


def test_eof_received_keeps_the_connection(certs: Any, kind: str) -> None:
    """True from eof_received keeps the writing side open; TLS closes, with a warning."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env, on={"eof_received": lambda rec: True})
        async with opened(kind, rec, certs) as (transport, peer):
            await peer.end()
            await rec.until("eof_received")
            await turns(5)
            if kind == "tls":
                await rec.until("connection_lost")
                return
            env.log("closing", transport.is_closing(), "reading", transport.is_reading())
            transport.write(b"still here")
            env.log(await peer.recv(10))
            attempt(env, "pause", transport.pause_reading)
            attempt(env, "resume", transport.resume_reading)
            transport.close()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_half_close_and_the_answer_to_it(run: Any, certs: Any, kind: str) -> None:
    """After write_eof() the answer is still received."""

    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            if kind == "tls":
                assert not transport.can_write_eof()
                with pytest.raises(NotImplementedError):
                    transport.write_eof()
                return
            transport.write(b"question")
            transport.write_eof()
            assert await peer.recv_to_end() == b"question"
            await peer.send(b"answer")
            assert await rec.until_received(6) == b"answer"
            assert not transport.is_closing()

    run(main)


def test_pausing_to_read_does_not_stop_writing(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            transport.pause_reading()
            transport.write(b"x" * 100_000)
            assert await peer.recv(100_000) == b"x" * 100_000
            await peer.send(b"unread")
            transport.close()
            await rec.until("connection_lost")
            assert rec.received == b""

    run(main)


def test_nothing_is_received_after_close(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            transport.close()
            await peer.send(b"too late")
            await rec.until("connection_lost")
            env.log(bytes(rec.received))

    support.compare(scenario)


def test_exceptions_in_callbacks(certs: Any, kind: str) -> None:
    """data_received that raises ends the connection, with a report and with the exception."""

    async def scenario(env: Env) -> None:
        def fail(rec: Any, data: bytes) -> None:
            raise LookupError("on purpose")

        rec = Recorder(env, on={"data_received": fail})
        async with opened(kind, rec, certs) as (_, peer):
            await peer.send(b"x")
            await rec.until("connection_lost")
            env.log(type(rec.exc))

    trace = support.compare(scenario)
    assert [entry for entry in trace if entry[0] == "exception handler"]


def test_everything_is_refused_or_a_no_op_after_the_end(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, _):
            transport.abort()
            await rec.until("connection_lost")
            await turns(2)
            for name in (
                "is_closing",
                "is_reading",
                "pause_reading",
                "resume_reading",
                "get_write_buffer_size",
                "get_write_buffer_limits",
                "can_write_eof",
                "close",
                "abort",
            ):
                attempt(env, name, getattr(transport, name))
            attempt(env, "write", transport.write, b"x")
            if support.asyncio_writelines_has("_conn_lost"):
                attempt(env, "writelines", transport.writelines, [b"x"])
            attempt(env, "limits", transport.set_write_buffer_limits, high=5)
            attempt(env, "peername", transport.get_extra_info, "nothing", 5)

    support.compare(scenario)


def test_echo_with_a_buffered_protocol(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = BufferedRecorder(size=512)
        rec.on["buffer_updated"] = lambda rec, count: rec.transport.write(rec.memory[:count])
        async with opened(kind, rec, certs) as (_, peer):
            data = bytes(range(256)) * 64
            sending = asyncio.ensure_future(peer.send(data))
            assert await peer.recv(len(data)) == data
            await sending

    run(main)


def test_a_transport_is_held_by_its_loop(run: Any, certs: Any, kind: str) -> None:
    """Its owner may forget it: the protocol goes on hearing."""
    import gc

    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (_, peer):
            rec.transport = None
            gc.collect()
            await peer.send(b"still heard")
            await rec.until_received(11)

    run(main)
