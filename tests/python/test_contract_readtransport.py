"""asyncio.ReadTransport, method by method, over every kind that reads and both loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import support
from contract import READERS, attempt, opened
from support import BufferedRecorder, Env, Recorder, turns


@pytest.fixture(params=READERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("method", ["is_reading", "pause_reading", "resume_reading"])
def test_the_base_class_itself(method: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(asyncio.ReadTransport(), method)()


def test_is_reading(certs: Any, kind: str) -> None:
    """True between connection_made and the close, but for pauses."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        rec.on["connection_made"] = lambda rec, transport: attempt(
            env, "made", transport.is_reading
        )
        rec.on["connection_lost"] = lambda rec, exc: attempt(env, "lost", rec.transport.is_reading)
        async with opened(kind, rec, certs) as (transport, _):
            await turns(2)
            attempt(env, "open", transport.is_reading)
            transport.pause_reading()
            attempt(env, "paused", transport.is_reading)
            transport.resume_reading()
            attempt(env, "resumed", transport.is_reading)
            transport.close()
            attempt(env, "closing", transport.is_reading)
            await rec.until("connection_lost")
            attempt(env, "closed", transport.is_reading)

    support.compare(scenario)


def test_pause_keeps_data_back_and_resume_delivers_it(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            await peer.send(b"before ")
            await rec.until_received(7)
            transport.pause_reading()
            await peer.send(b"while paused ")
            await asyncio.sleep(0.02)
            assert rec.received == b"before "
            transport.resume_reading()
            assert await rec.until_received(20) == b"before while paused "

    run(main)


def test_pausing_and_resuming_again_is_a_no_op(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            attempt(env, "resume, never paused", transport.resume_reading)
            attempt(env, "pause", transport.pause_reading)
            attempt(env, "pause again", transport.pause_reading)
            attempt(env, "resume", transport.resume_reading)
            attempt(env, "resume again", transport.resume_reading)
            await peer.send(b"data")
            await rec.until_received(4)

    support.compare(scenario)


def test_pause_and_resume_of_a_closing_transport(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            await peer.send(b"too late")
            transport.close()
            attempt(env, "pause", transport.pause_reading)
            attempt(env, "resume", transport.resume_reading)
            await rec.until("connection_lost")
            attempt(env, "pause after the end", transport.pause_reading)
            attempt(env, "resume after the end", transport.resume_reading)
            await turns(2)

    trace = support.compare(scenario)
    assert not [entry for entry in trace if entry[0] == "data_received"]


def test_close_while_paused(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            transport.pause_reading()
            await peer.send(b"never read")
            await turns(3)
            transport.close()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_pause_in_connection_made(run: Any, certs: Any, kind: str) -> None:
    if kind == "tls":
        pytest.skip("asyncio's TLS client does not finish the handshake then")

    async def main() -> None:
        rec = Recorder(on={"connection_made": lambda rec, transport: transport.pause_reading()})
        async with opened(kind, rec, certs) as (transport, peer):
            await peer.send(b"data")
            await asyncio.sleep(0.02)
            assert rec.received == b"" and not transport.is_reading()
            transport.resume_reading()
            await rec.until_received(4)

    run(main)


def test_pause_in_data_received(run: Any, certs: Any, kind: str) -> None:
    """Nothing is delivered behind the pause, however much has come; nothing is lost by it."""

    async def main() -> None:
        pauses: list[int] = []

        def pause(rec: Any, data: bytes) -> None:
            rec.transport.pause_reading()
            pauses.append(len(data))

        rec = Recorder(on={"data_received": pause})
        data = bytes(range(256)) * 1024
        async with opened(kind, rec, certs) as (transport, peer):
            sending = asyncio.ensure_future(peer.send(data))
            while len(rec.received) < len(data):
                await rec.until("data_received", rec.count("data_received") + (not pauses))
                seen = len(rec.received)
                await turns(3)
                assert len(rec.received) == seen
                pauses.clear()
                transport.resume_reading()
                while len(rec.received) == seen:
                    await asyncio.sleep(0.0005)
            await sending
            assert rec.received == data

    run(main)


def test_end_while_paused(certs: Any, kind: str) -> None:
    """The end is told when reading goes on, behind the data in front of it."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            transport.pause_reading()
            await peer.send(b"last words")
            await peer.end()
            await asyncio.sleep(0.02)
            env.log("resume")
            transport.resume_reading()
            await rec.until("connection_lost")

    trace = support.compare(scenario)
    assert trace[-1] == ("result", None)


def test_buffered_protocol(run: Any, certs: Any, kind: str) -> None:
    if kind == "read pipe":
        pytest.skip("asyncio's pipes know no BufferedProtocol")

    async def main() -> None:
        rec = BufferedRecorder(size=1000)
        async with opened(kind, rec, certs) as (transport, peer):
            data = bytes(range(256)) * 64
            await peer.send(data[:5000])
            await rec.until_received(5000)
            transport.pause_reading()
            await peer.send(data[5000:])
            await asyncio.sleep(0.02)
            assert len(rec.received) == 5000
            transport.resume_reading()
            assert await rec.until_received(len(data)) == data

    run(main)


@pytest.mark.parametrize("method", ["is_reading", "pause_reading", "resume_reading"])
def test_wrong_arguments(run: Any, certs: Any, kind: str, method: str) -> None:
    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            with pytest.raises(TypeError):
                getattr(transport, method)(1)
            with pytest.raises(TypeError):
                getattr(transport, method)(unknown=1)

    run(main)
