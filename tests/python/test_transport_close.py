"""The end of a connection: flushing, dropping, order, re-entrancy, loops that stop or close."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import support
from support import BufferedRecorder, Env, Recorder, attach, recv_exactly, recv_to_end, turns

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@kinds
def test_close_flushes(kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            filled = await support.fill(transport)
            transport.write(b"the end")
            transport.close()
            env.log("closing", transport.is_closing())
            await turns(5)
            env.log("not lost while it flushes", rec.count("connection_lost"))
            got = await recv_to_end(peer)
            env.log(got[filled:])
            await rec.until("connection_lost")

    support.compare(scenario)


@kinds
def test_abort_drops_the_queue(kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            filled = await support.fill(transport)
            transport.write(b"the end" * 1000)
            env.log("queued", transport.get_write_buffer_size() > 0)
            transport.abort()
            env.log("queued", transport.get_write_buffer_size(), transport.is_closing())
            await rec.until("connection_lost")
            got = await recv_exactly(peer, 1 << 30)
            env.log("all", len(got) >= filled + 7000)

    support.compare(scenario)


@pytest.mark.parametrize("calls", ["close", "abort", "close abort", "abort close", "close close"])
@pytest.mark.parametrize("queued", [False, True])
def test_connection_lost_comes_once_and_later(calls: str, queued: bool) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport) if queued else 0
            for call in calls.split():
                getattr(transport, call)()
                env.log("after", call, rec.count("connection_lost"))
            for turn in range(3):
                await asyncio.sleep(0)
                env.log("turn", turn)
            if queued and "abort" not in calls:
                await recv_exactly(peer, filled)
            await rec.until("connection_lost")
            await turns(3)

    trace = support.compare(scenario)
    assert sum(entry[0] == "connection_lost" for entry in trace) == 1


def test_abort_while_close_flushes() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, _peer):
            await support.fill(transport)
            transport.close()
            await turns(3)
            transport.abort()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_peer_resets_while_close_flushes() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            await support.fill(transport)
            transport.close()
            await turns(3)
            support.reset(peer)
            await rec.until("connection_lost")
            env.log(type(rec.exc))

    support.compare(scenario)


CALLBACKS = ["connection_made", "data_received", "eof_received", "connection_lost"]
ACTIONS: dict[str, Callable[[Recorder], Any]] = {
    "close": lambda rec: rec.transport.close(),
    "abort": lambda rec: rec.transport.abort(),
    "close abort": lambda rec: (rec.transport.close(), rec.transport.abort())[0],
    "write": lambda rec: rec.transport.write(b"from inside"),
    "write close": lambda rec: (rec.transport.write(b"bye"), rec.transport.close())[0],
    "write abort": lambda rec: (rec.transport.write(b"bye"), rec.transport.abort())[0],
    "write_eof": lambda rec: rec.transport.write_eof(),
    "pause_reading": lambda rec: rec.transport.pause_reading(),
    "set_protocol": lambda rec: rec.transport.set_protocol(Recorder(rec.env, "next")),
    "set_protocol close": lambda rec: (
        rec.transport.set_protocol(Recorder(rec.env, "next")),
        rec.transport.close(),
    )[0],
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("callback", CALLBACKS)
def test_reentrancy(callback: str, action: str) -> None:
    """C15: any use of the transport from inside any callback has asyncio's outcome."""

    async def scenario(env: Env) -> None:
        def act(rec: Recorder, *args: Any) -> None:
            try:
                env.log(action, "returned", ACTIONS[action](rec))
            except Exception as exc:
                env.log(action, "raised", type(exc))

        rec = Recorder(env, "first", on={callback: act})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"data")
            await asyncio.sleep(0.01)
            with contextlib.suppress(OSError):  # The connection may be gone already.
                peer.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.01)
            try:
                env.log("peer got", await recv_exactly(peer, 12) if "write" in action else None)
            except ConnectionError as exc:
                env.log("peer", type(exc))
            env.log("closing", transport.is_closing())
            if not transport.is_closing():
                transport.close()
            await asyncio.sleep(0.01)

    support.compare(scenario)


def test_lost_is_told_to_the_protocol_set_when_it_runs() -> None:
    """connection_lost goes to the protocol of that moment, not of close()."""

    async def scenario(env: Env) -> None:
        one, two = Recorder(env, "one"), Recorder(env, "two")
        async with support.transport_pair(one) as (transport, _peer):
            transport.close()
            transport.set_protocol(two)
            env.log("closed and switched")
            await two.until("connection_lost")
            await turns(2)

    support.compare(scenario)


def test_upgrade_as_uvicorn_does_it() -> None:
    """The HTTP protocol hands over to a websocket in data_received, and both write."""

    async def scenario(env: Env) -> None:
        websocket = Recorder(env, "websocket")

        def upgrade(rec: Recorder, data: bytes) -> None:
            transport = rec.transport
            websocket.connection_made(transport)
            transport.set_protocol(websocket)
            transport.write(b"101 ")
            transport.write(b"Switching\r\n")
            env.loop.call_soon(websocket.data_received, b"left over")

        http = Recorder(env, "http", on={"data_received": upgrade})
        async with support.transport_pair(http) as (transport, peer):
            peer.send(b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
            env.log("peer", await recv_exactly(peer, 15))
            peer.send(b"frame")
            await websocket.until_received(14)
            transport.close()
            await websocket.until("connection_lost")

    support.compare(scenario)


def test_set_protocol_to_a_buffered_one_while_closing() -> None:
    async def scenario(env: Env) -> None:
        one, two = Recorder(env, "one"), BufferedRecorder(env, "two")
        async with support.transport_pair(one, "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.close()
            peer.send(b"ignored")
            transport.set_protocol(two)
            await recv_exactly(peer, filled)
            await two.until("connection_lost")

    support.compare(scenario)


def test_closing_in_the_turn_in_which_data_is_ready(run: Any) -> None:
    """A read event of this very turn is dropped when an earlier callback closed the transport."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        recorders = [Recorder() for _ in range(2)]
        async with (
            support.transport_pair(recorders[0]) as (first, peer1),
            support.transport_pair(recorders[1]) as (second, peer2),
        ):
            for rec, other in zip(recorders, (second, first), strict=True):
                rec.on["data_received"] = lambda rec, data, other=other: other.abort()
            peer1.send(b"one")
            peer2.send(b"two")
            for transport in (first, second):
                assert support.readable(transport.get_extra_info("socket"), 2)
            await asyncio.sleep(0.02)
            # Whichever came first aborted the other, whose data was never delivered.
            assert sorted(len(rec.received) for rec in recorders) == [0, 3]
            assert loop.is_running()

    run(main)


def test_the_fd_is_closed_after_connection_lost(run: Any) -> None:
    """In connection_lost the socket is still open, one moment later it is not."""

    async def main() -> None:
        seen = []
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            sock = transport.get_extra_info("socket")
            rec.on["connection_lost"] = lambda rec, exc: seen.append(sock.fileno() != -1)
            transport.close()
            await rec.until("connection_lost")
            await turns(1)
            assert seen == [True]
            assert sock.fileno() == -1
            assert await recv_exactly(peer, 1) == b""

    run(main)


# --------------------------------------------------------------------------- stop() and close()


@pytest.mark.parametrize(
    "callback",
    ["connection_made", "data_received", "eof_received", "connection_lost", "pause_writing"],
)
def test_stop_inside_a_callback(callback: str, loop_factory: support.LoopFactory) -> None:
    """stop() lets the turn finish; the next run goes on where this one ended."""
    loop = loop_factory()
    try:
        sock, peer = support.tcp_pair()
        rec = Recorder(on={callback: lambda rec, *args: loop.stop()})
        task = loop.create_task(loop.create_connection(lambda: rec, sock=sock))
        if callback == "connection_made":
            loop.run_forever()
            assert rec.names() == ["connection_made"]
        transport, _ = loop.run_until_complete(task)
        match callback:
            case "data_received":
                peer.send(b"x")
            case "eof_received":
                peer.shutdown(socket.SHUT_WR)
            case "connection_lost":
                transport.close()
            case "pause_writing":
                loop.call_soon(transport.write, bytes(1 << 22))
        if callback != "connection_made":
            loop.run_forever()
            assert rec.names()[-1] == callback
        rec.on.clear()
        transport.abort()
        loop.run_until_complete(rec.until("connection_lost"))
        loop.run_until_complete(asyncio.sleep(0))
        assert rec.count("connection_lost") == 1
        peer.close()
    finally:
        loop.close()


def test_bytes_wait_while_the_loop_is_stopped(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    try:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        transport, _ = loop.run_until_complete(loop.create_connection(lambda: rec, sock=sock))
        peer.send(b"while stopped")
        assert rec.received == b""
        loop.run_until_complete(rec.until_received(13))
        transport.close()
        loop.run_until_complete(rec.until("connection_lost"))
        loop.run_until_complete(asyncio.sleep(0))
        peer.close()
    finally:
        loop.close()


@pytest.mark.parametrize("queued", [False, True])
def test_loop_closed_under_an_open_transport(
    loop_factory: support.LoopFactory, queued: bool
) -> None:
    """Closing the loop breaks the hold: the fd is closed and a ResourceWarning says so (C7)."""
    before = support.open_fds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        loop = loop_factory()
        sock, peer = support.unix_pair()
        rec = Recorder()
        transport, _ = loop.run_until_complete(loop.create_connection(lambda: rec, sock=sock))
        if queued:
            loop.run_until_complete(support.fill(transport))
        transport_ref = weakref.ref(transport)
        loop.close()
        rec.transport = None
        del transport, sock, _
        gc.collect()
        messages = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
        # The record of the warning keeps its source.
        caught.clear()
        gc.collect()
        assert transport_ref() is None
        assert any(message.startswith("unclosed transport <") for message in messages), messages
        assert support.recv_now(peer).strip(b"\0") == b""
        peer.close()
        del peer, loop
        gc.collect()
    assert rec.count("connection_lost") == 0
    assert support.new_fds(before) == {}


def test_closed_loop_and_the_transport_is_used(loop_factory: support.LoopFactory) -> None:
    """No call on a transport whose loop is closed crashes; close() says that it is closed."""
    loop = loop_factory()
    sock, peer = support.tcp_pair()
    transport, _ = loop.run_until_complete(loop.create_connection(Recorder, sock=sock))
    loop.close()
    for name, args in (
        ("get_write_buffer_size", ()),
        ("is_closing", ()),
        ("is_reading", ()),
        ("write", (b"x",)),
        ("writelines", ([b"x"],)),
        ("get_extra_info", ("peername",)),
        ("set_protocol", (Recorder(),)),
        ("set_write_buffer_limits", ()),
    ):
        try:
            getattr(transport, name)(*args)
        except RuntimeError as exc:
            assert "Event loop is closed" in str(exc)
    repr(transport)
    try:
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            transport.close()
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del transport, _, sock
            gc.collect()
        peer.close()


def test_last_reference_dies_on_another_thread(loop_factory: support.LoopFactory) -> None:
    """With the loop gone, a transport freed by a foreign thread just closes its fd (C5, uv#706)."""
    before = support.open_fds()
    loop = loop_factory()
    sock, peer = support.tcp_pair()
    rec = Recorder()
    holder = [loop.run_until_complete(loop.create_connection(lambda: rec, sock=sock))[0]]
    loop.close()
    rec.transport = None
    del sock, loop
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread = threading.Thread(target=lambda: (holder.clear(), gc.collect()))
        thread.start()
        thread.join()
    peer.close()
    del peer
    gc.collect()
    assert support.new_fds(before) == {}


def test_closed_transport_dropped_on_another_thread_while_the_loop_runs(run: Any) -> None:
    async def main() -> None:
        for _ in range(10):
            rec = Recorder()
            sock, peer = support.tcp_pair()
            holder = [(await attach(sock, rec))[0]]
            peer.close()
            await rec.until("connection_lost")
            await turns(1)
            rec.transport = None
            del rec
            thread = threading.Thread(target=holder.clear)
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0)
            thread.join()

    run(main)


def test_many_transports_closed_at_once(run: Any) -> None:
    async def main() -> None:
        recorders = []
        peers = []
        for _ in range(50):
            sock, peer = support.unix_pair()
            rec = Recorder()
            await attach(sock, rec)
            recorders.append(rec)
            peers.append(peer)
        for rec in recorders[::2]:
            rec.transport.close()
        for peer in peers:
            peer.close()
        for rec in recorders:
            await rec.until("connection_lost")
            assert rec.count("connection_lost") == 1

    run(main)
