"""BufferedProtocol: straight into the protocol's memory, and what a wrong get_buffer does."""

from __future__ import annotations

import array
import asyncio
import mmap
import socket
from typing import Any

import pytest
import support
from support import BufferedRecorder, Env, Recorder, turns

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@kinds
def test_trace(kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = BufferedRecorder(env)
        async with support.transport_pair(rec, kind) as (_transport, peer):
            peer.send(b"hello")
            await rec.until_received(5)
            peer.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
        env.log("hints", sorted(set(rec.hints)))

    trace = support.compare(scenario)
    assert ("hints", [-1]) in trace


def test_zero_copy(run: Any) -> None:
    """The bytes are in the very memory get_buffer gave, at its start, and nothing behind them."""

    async def main() -> None:
        rec = BufferedRecorder(size=64)
        async with support.transport_pair(rec) as (_transport, peer):
            memory = rec.memory
            peer.send(b"hello")
            await rec.until_received(5)
            assert rec.memory is memory
            assert memory == b"hello" + bytes(59)

    run(main)


def test_small_buffer_gets_everything_in_pieces(run: Any) -> None:
    async def main() -> None:
        rec = BufferedRecorder(size=7)
        sizes = []
        async with support.transport_pair(rec) as (_transport, peer):
            original = rec.buffer_updated
            rec.buffer_updated = (  # type: ignore[method-assign]
                lambda nbytes: (sizes.append(nbytes), original(nbytes))[1]
            )
            peer.send(bytes(range(100)))
            await rec.until_received(100)
            assert rec.received == bytes(range(100))
            assert all(1 <= size <= 7 for size in sizes)

    run(main)


def writable_buffers() -> dict[str, Any]:
    return {
        "bytearray": lambda: bytearray(1000),
        "memoryview": lambda: memoryview(bytearray(1000)),
        "slice": lambda: memoryview(bytearray(1000))[100:900],
        "array B": lambda: array.array("B", bytes(1000)),
        "array I": lambda: array.array("I", bytes(1000)),
        "two dimensions": lambda: memoryview(bytearray(1000)).cast("B", (10, 100)),
        "mmap": lambda: mmap.mmap(-1, 4096),
        "bytearray subclass": lambda: type("Mine", (bytearray,), {})(1000),
    }


@pytest.mark.parametrize("kind", writable_buffers())
def test_kinds_of_buffers(kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = BufferedRecorder(env)
        rec.memory = writable_buffers()[kind]()

        def updated(rec: BufferedRecorder, nbytes: int) -> None:
            env.log("updated", nbytes, bytes(memoryview(rec.memory).cast("B")[:nbytes]))
            rec.transport.close()

        rec.on["buffer_updated"] = updated
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"some data")
            await rec.until("connection_lost")
            if isinstance(rec.memory, mmap.mmap):
                rec.memory.close()

    support.compare(scenario)


def wrong_buffers() -> dict[str, Any]:
    return {
        "None": lambda: None,
        "int": lambda: 5,
        "str": lambda: "x" * 10,
        "bytes": lambda: bytes(10),
        "read-only view": lambda: memoryview(bytes(10)),
        "empty bytearray": bytearray,
        "empty view": lambda: memoryview(bytearray()),
        "list": lambda: [0] * 10,
        "empty list": list,
        "gaps": lambda: memoryview(bytearray(10))[::2],
        "released view": lambda: _released(),
        "object": object,
    }


def _released() -> memoryview:
    view = memoryview(bytearray(10))
    view.release()
    return view


@pytest.mark.parametrize("kind", wrong_buffers())
def test_wrong_buffers(kind: str) -> None:
    """What get_buffer must not return: reported as on asyncio, and the connection ends."""

    async def scenario(env: Env) -> None:
        rec = BufferedRecorder(env, on={"get_buffer": lambda rec, hint: wrong_buffers()[kind]()})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"data")
            await rec.until("connection_lost")
            env.log("closing", transport.is_closing(), type(rec.exc))

    trace = support.compare(scenario)
    # The words of a TypeError are the interpreter's own; the message of the report is asyncio's.
    assert [entry[1] for entry in trace if entry[0] == "exception handler"]


@pytest.mark.parametrize("callback", ["get_buffer", "buffer_updated"])
@pytest.mark.parametrize("exc", [ValueError, OSError, asyncio.CancelledError, MemoryError])
def test_callbacks_that_raise(callback: str, exc: type[BaseException]) -> None:
    """C15"""

    async def scenario(env: Env) -> None:
        def fail(rec: BufferedRecorder, argument: int) -> Any:
            raise exc("on purpose")

        rec = BufferedRecorder(env, on={callback: fail})
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"data")
            await rec.until("connection_lost")
            env.log(type(rec.exc))
            peer.close()

    support.compare(scenario)


@pytest.mark.parametrize("action", ["close", "abort", "pause_reading", "set_protocol", "write"])
@pytest.mark.parametrize("callback", ["get_buffer", "buffer_updated"])
def test_transport_used_inside_the_callbacks(callback: str, action: str) -> None:
    async def scenario(env: Env) -> None:
        other = Recorder(env, "other")

        def act(rec: BufferedRecorder, argument: int) -> Any:
            env.log(callback)
            rec.on.clear()
            match action:
                case "set_protocol":
                    rec.transport.set_protocol(other)
                case "write":
                    rec.transport.write(b"written inside")
                case _:
                    getattr(rec.transport, action)()
            return rec.memory

        rec = BufferedRecorder(env, "first", on={callback: act})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"data")
            await asyncio.sleep(0.02)
            if action == "pause_reading":
                transport.resume_reading()
            peer.send(b"more") if not transport.is_closing() else None
            await asyncio.sleep(0.02)
            env.log("peer got", support.recv_now(peer))

    support.compare(scenario)


def test_no_export_outlives_the_call(run: Any) -> None:
    """In buffer_updated, and later, the protocol may resize its bytearray."""

    async def main() -> None:
        rec = BufferedRecorder(size=10)
        got = bytearray()

        def updated(rec: BufferedRecorder, nbytes: int) -> None:
            got.extend(rec.memory[:nbytes])
            rec.memory.clear()
            rec.memory.extend(bytes(20))
            rec._call("updated")

        rec.on["buffer_updated"] = updated
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"one")
            await rec.until("updated")
            rec.memory.clear()
            rec.memory.extend(bytes(5))
            peer.send(b"two")
            await rec.until("updated", 2)
            assert got == b"onetwo"

    run(main)


def test_a_fresh_buffer_for_each_read(run: Any) -> None:
    """get_buffer may hand out other memory every time; old memory is never written again."""

    async def main() -> None:
        kept: list[bytearray] = []

        def give(rec: BufferedRecorder, hint: int) -> bytearray:
            rec.memory = bytearray(100)
            kept.append(rec.memory)
            return rec.memory

        rec = BufferedRecorder(on={"get_buffer": give})
        async with support.transport_pair(rec) as (_transport, peer):
            for number in range(10):
                peer.send(b"%d" % number)
                await rec.until_received(number + 1)
        whole = b"".join(bytes(memory).rstrip(b"\0") for memory in kept)
        assert whole == b"0123456789" == bytes(rec.received)

    run(main)


def test_get_buffer_is_not_called_without_need(run: Any) -> None:
    """Paused, or idle: no get_buffer call."""

    async def main() -> None:
        rec = BufferedRecorder()
        async with support.transport_pair(rec) as (transport, peer):
            await turns(5)
            transport.pause_reading()
            peer.send(b"x")
            await turns(5)
            assert rec.hints == []
            transport.resume_reading()
            await rec.until_received(1)
            assert rec.hints == [-1]

    run(main)


def test_buffer_memory_released_while_reading_is_paused(run: Any) -> None:
    """A protocol that drops its buffer between reads is safe: nothing points into it."""

    async def main() -> None:
        rec = BufferedRecorder(size=1 << 16)
        async with support.transport_pair(rec) as (_transport, peer):
            for number in range(20):
                peer.send(bytes(1000))
                await rec.until_received(1000 * (number + 1))
                rec.memory = bytearray(1 << 16)
            assert len(rec.received) == 20_000

    run(main)


def test_eof_received_and_half_close_with_buffered(run: Any) -> None:
    async def main() -> None:
        rec = BufferedRecorder(on={"eof_received": lambda rec: True})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"data")
            peer.shutdown(socket.SHUT_WR)
            await rec.until("eof_received")
            transport.write(b"answer")
            assert await support.recv_exactly(peer, 6) == b"answer"

    run(main)
