"""asyncio.WriteTransport, method by method, over every kind that writes and both loops."""

from __future__ import annotations

import array
import asyncio
from typing import Any

import pytest
import support
from contract import WRITERS, attempt, opened
from support import Env, Recorder, turns


@pytest.fixture(params=WRITERS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def fill(transport: Any) -> int:
    """Write until something has to wait; over TLS until much does, for it counts otherwise."""
    written = 0
    while transport.get_write_buffer_size() < 1 << 20 and written < 1 << 26:
        transport.write(bytes(1 << 18))
        written += 1 << 18
    return written


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("set_write_buffer_limits", ()),
        ("get_write_buffer_size", ()),
        ("get_write_buffer_limits", ()),
        ("write", (b"",)),
        ("write_eof", ()),
        ("can_write_eof", ()),
        ("abort", ()),
    ],
)
def test_the_base_class_itself(method: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(NotImplementedError):
        getattr(asyncio.WriteTransport(), method)(*args)


def test_writelines_of_the_base_class_joins() -> None:
    written: list[bytes] = []

    class Joined(asyncio.WriteTransport):
        def write(self, data: Any) -> None:
            written.append(data)

    Joined().writelines([b"a", bytearray(b"b"), memoryview(b"c")])
    assert written == [b"abc"]


def test_write_takes_bytes_like_objects(run: Any, certs: Any, kind: str) -> None:
    """What is sent is what the object held at the call, in the order of the calls."""

    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, peer):
            changing = bytearray(b"bytearray ")
            assert transport.write(b"bytes ") is None
            transport.write(changing)
            changing[:] = b"X" * len(changing)
            transport.write(memoryview(b"view "))
            transport.write(data=b"keyword ")
            transport.write(b"")
            transport.write(b"end")
            assert await peer.recv(32) == b"bytes bytearray view keyword end"

    run(main)


@pytest.mark.parametrize(
    "data",
    ["text", None, 5, [b"x"], object(), array.array("i", [1, 2])],
    ids=["str", "None", "int", "list", "object", "array"],
)
def test_write_of_anything_else(certs: Any, kind: str, data: Any) -> None:
    """TypeError or AssertionError as the kind's own code raises; nothing is sent."""

    async def scenario(env: Env) -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            try:
                transport.write(data)
            except (TypeError, AssertionError, ValueError) as exc:
                env.log(type(exc))
            env.log("queued", transport.get_write_buffer_size())
            env.log("closing", transport.is_closing())

    support.compare(scenario)


def test_writelines(run: Any, certs: Any, kind: str) -> None:
    """Lists, tuples and generators of pieces, empty ones among them, in one stream."""

    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, peer):
            transport.writelines([b"one ", bytearray(b"two "), memoryview(b"three ")])
            transport.writelines(())
            transport.writelines((b"", b"four ", b""))
            transport.writelines(piece for piece in (b"five ", b"six"))
            assert await peer.recv(27) == b"one two three four five six"

    run(main)


def test_writelines_of_wrong_things(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            # Something false is nothing to write for newer asyncios, whatever it is.
            for pieces in (5, ["text"], [b"a", 5]):
                try:
                    transport.writelines(pieces)
                except Exception as exc:
                    env.log("raised", isinstance(exc, TypeError))
            env.log(transport.is_closing())

    support.compare(scenario)


def test_much_data_arrives_whole(run: Any, certs: Any, kind: str) -> None:
    async def main() -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            data = bytes(range(256)) * 16384
            transport.write(data[: 1 << 20])
            transport.writelines([data[1 << 20 : 3 << 20], data[3 << 20 :]])
            transport.close()
            assert await peer.recv_to_end() == data
            await rec.until("connection_lost")

    run(main)


def test_get_write_buffer_size(certs: Any, kind: str) -> None:
    """Nothing while the peer keeps up, more than nothing when it does not, nothing at the end."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            env.log("new", transport.get_write_buffer_size())
            transport.write(b"small")
            env.log("small", transport.get_write_buffer_size())
            await peer.recv(5)
            written = await fill(transport)
            env.log("full", transport.get_write_buffer_size() > 0)
            await peer.recv(written)
            await support.eventually(lambda: transport.get_write_buffer_size() == 0)
            env.log("read", transport.get_write_buffer_size())

    support.compare(scenario)


def test_write_buffer_limits(certs: Any, kind: str) -> None:
    """The defaults, what follows from one limit alone, and what is refused."""

    async def scenario(env: Env) -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            env.log("default", transport.get_write_buffer_limits())
            for options in (
                {"high": 1000},
                {"low": 1000},
                {"high": 1000, "low": 10},
                {"high": 0},
                {"low": 0},
                {"high": 0, "low": 0},
                {"high": 5, "low": 5},
                {},
            ):
                attempt(env, str(options), transport.set_write_buffer_limits, **options)
                env.log("now", transport.get_write_buffer_limits())
            attempt(env, "positional", transport.set_write_buffer_limits, 300, 20)
            env.log("now", transport.get_write_buffer_limits())
            for options in (
                {"high": 5, "low": 6},
                {"high": -1},
                {"low": -1},
                {"high": 1, "low": -1},
            ):
                attempt(env, str(options), transport.set_write_buffer_limits, **options)
                env.log("unchanged", transport.get_write_buffer_limits())
            transport.close()
            attempt(env, "closing", transport.set_write_buffer_limits, high=7)
            env.log("now", transport.get_write_buffer_limits())

    support.compare(scenario)


def test_pause_and_resume_writing(certs: Any, kind: str) -> None:
    """Once each, at the marks, in turns."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, peer):
            transport.set_write_buffer_limits(high=1 << 19, low=1 << 16)
            written = await fill(transport)
            env.log("paused", rec.count("pause_writing"), rec.count("resume_writing"))
            transport.write(b"more")
            env.log("still", rec.count("pause_writing"))
            await peer.recv(written + 4)
            await rec.until("resume_writing")
            env.log("resumed", rec.count("pause_writing"), rec.count("resume_writing"))

    support.compare(scenario)


def test_limits_lowered_under_what_is_queued(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, _):
            transport.set_write_buffer_limits(high=1 << 26)
            await fill(transport)
            env.log("not paused", rec.count("pause_writing"))
            transport.set_write_buffer_limits(high=1000)
            env.log("lowered", rec.count("pause_writing"))
            transport.abort()

    support.compare(scenario)


def test_can_write_eof(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            attempt(env, "open", transport.can_write_eof)
            transport.close()
            attempt(env, "closing", transport.can_write_eof)

    support.compare(scenario)


def test_write_eof(certs: Any, kind: str) -> None:
    """Behind what is queued; again a no-op; writing then refused. TLS has no such thing."""

    async def scenario(env: Env) -> None:
        # asyncio's TLS does not count what it has handed down, and so pauses later.
        rec = Recorder(None if kind == "tls" else env)
        async with opened(kind, rec, certs) as (transport, peer):
            data = bytes(1 << 20)
            transport.write(data)
            attempt(env, "eof", transport.write_eof)
            if kind == "tls":
                return
            attempt(env, "eof again", transport.write_eof)
            if kind != "write pipe":
                attempt(env, "write behind it", transport.write, b"x")
                attempt(env, "writelines behind it", transport.writelines, [b"x"])
            env.log("whole", await peer.recv_to_end() == data)
            transport.close()
            attempt(env, "eof while closing", transport.write_eof)

    support.compare(scenario)


def test_abort(certs: Any, kind: str) -> None:
    """What is queued is dropped, connection_lost(None) is told once and later."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, _):
            transport.set_write_buffer_limits(high=1 << 26)
            await fill(transport)
            attempt(env, "abort", transport.abort)
            env.log("closing", transport.is_closing(), "lost", rec.count("connection_lost"))
            # asyncio's pipes fail at a second abort(), and forget their loop before a third.
            if kind != "write pipe":
                attempt(env, "abort again", transport.abort)
            attempt(env, "close", transport.close)
            await rec.until("connection_lost")
            if kind != "tls":  # asyncio's forgets its protocol when it is closed twice.
                env.log("queued", transport.get_write_buffer_size())
            if kind != "write pipe":
                attempt(env, "abort after the end", transport.abort)
            await turns(3)

    trace = support.compare(scenario)
    assert trace.count(("connection_lost", None)) == 1


def test_abort_while_closing(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with opened(kind, rec, certs) as (transport, _):
            transport.set_write_buffer_limits(high=1 << 26)
            await fill(transport)
            transport.close()
            await turns(2)
            env.log("lost", rec.count("connection_lost"))
            transport.abort()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_writing_after_the_end(certs: Any, kind: str) -> None:
    """Dropped, and from the fifth on with asyncio's warning in the log."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, _):
            transport.abort()
            await rec.until("connection_lost")
            for number in range(7):
                attempt(env, f"write {number}", transport.write, b"late")
            env.log("queued", transport.get_write_buffer_size())

    support.compare(scenario)


def test_writing_while_closing(certs: Any, kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            transport.write(b"before ")
            transport.close()
            for number in range(3):
                attempt(env, f"write {number}", transport.write, b"late")
            if kind != "tls":
                env.log("arrived", await peer.recv_to_end())
            await rec.until("connection_lost")

    support.compare(scenario)


def test_the_peer_goes_away(certs: Any, kind: str) -> None:
    """Writing into a connection whose peer is gone ends it; the write itself raises nothing."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with opened(kind, rec, certs) as (transport, peer):
            transport.pause_reading() if kind in ("tcp", "unix") else None
            peer.close()
            await turns(3)
            for _ in range(100):
                transport.write(bytes(1 << 16))
                if transport.is_closing():
                    break
                await asyncio.sleep(0.001)
            await rec.until("connection_lost")
            env.log("lost", rec.count("connection_lost"))
            env.log("closing", transport.is_closing())

    support.compare(scenario)


@pytest.mark.parametrize(
    "method",
    ["get_write_buffer_size", "get_write_buffer_limits", "write_eof", "can_write_eof", "abort"],
)
def test_wrong_arguments(run: Any, certs: Any, kind: str, method: str) -> None:
    async def main() -> None:
        async with opened(kind, Recorder(), certs) as (transport, _):
            with pytest.raises(TypeError):
                getattr(transport, method)(1)
            with pytest.raises(TypeError):
                getattr(transport, method)(unknown=1)
            for name in ("write", "writelines"):
                with pytest.raises(TypeError):
                    getattr(transport, name)()
                with pytest.raises(TypeError):
                    getattr(transport, name)(b"a", b"b")
            with pytest.raises(TypeError):
                transport.set_write_buffer_limits(1, 2, 3)
            assert not transport.is_closing()

    run(main)
