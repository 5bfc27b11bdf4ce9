"""C15: a protocol that raises, in every callback; exits that leave the loop."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from typing import Any

import pytest
import support
from support import Env, Recorder, attach, turns

CALLBACKS = [
    "connection_made",
    "data_received",
    "eof_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
]

# Module level, so that every run of a test sees the same variable.
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


async def provoke(callback: str, rec: Recorder, sock: socket.socket, peer: socket.socket) -> None:
    """Make the transport call CALLBACK of REC once."""
    transport, _ = await attach(sock, rec)
    match callback:
        case "data_received":
            peer.send(b"data")
        case "eof_received":
            peer.shutdown(socket.SHUT_WR)
        case "connection_lost":
            transport.close()
        case "pause_writing":
            transport.write(bytes(1 << 20))
        case "resume_writing":
            transport.write(bytes(1 << 20))
            await support.recv_exactly(peer, 1 << 20)


@pytest.mark.parametrize("exc", [ZeroDivisionError, OSError, ConnectionResetError, GeneratorExit])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_callback_that_raises(callback: str, exc: type[BaseException]) -> None:
    """Reported, or not, and the connection closed, or not, exactly as on asyncio (C15, zuv#23)."""

    async def scenario(env: Env) -> None:
        def fail(rec: Recorder, *args: Any) -> Any:
            raise exc("on purpose")

        rec = Recorder(env, on={callback: fail})
        sock, peer = support.unix_pair()
        await provoke(callback, rec, sock, peer)
        await asyncio.sleep(0.01)
        transport = rec.transport
        env.log("closing", transport.is_closing())
        rec.on.clear()
        if not transport.is_closing():
            # A connection that survives still works.
            support.recv_now(peer, 1 << 22)
            peer.send(b"more")
            await rec.until("data_received")
            transport.close()
        await asyncio.sleep(0.01)
        peer.close()
        env.log("open", sock.fileno() != -1)

    support.compare(scenario)


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callback_that_raises_in_debug_mode(callback: str) -> None:
    async def scenario(env: Env) -> None:
        def fail(rec: Recorder, *args: Any) -> Any:
            raise LookupError("on purpose")

        rec = Recorder(env, on={callback: fail})
        sock, peer = support.unix_pair()
        await provoke(callback, rec, sock, peer)
        await asyncio.sleep(0.01)
        rec.transport.abort()
        await turns(3)
        peer.close()

    support.compare(scenario, debug=True)


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("callback", CALLBACKS)
def test_exits_leave_the_loop(
    callback: str, exc: type[BaseException], loop_factory: support.LoopFactory
) -> None:
    """KeyboardInterrupt and SystemExit come out of run_forever, and the loop can run again."""
    loop = loop_factory()
    reports: list[Any] = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))
    try:
        sock, peer = support.unix_pair()

        def fail(rec: Recorder, *args: Any) -> Any:
            raise exc("on purpose")

        rec = Recorder(on={callback: fail})

        def start() -> None:
            # A task would carry the exception away from writes made inside it.
            match callback:
                case "data_received":
                    peer.send(b"data")
                case "eof_received":
                    peer.shutdown(socket.SHUT_WR)
                case "connection_lost":
                    rec.transport.close()
                case "pause_writing":
                    rec.transport.write(bytes(1 << 20))

        task = loop.create_task(loop.create_connection(lambda: rec, sock=sock))
        if callback == "connection_made":
            with pytest.raises(exc):
                loop.run_forever()
            loop.run_until_complete(task)
        else:
            loop.run_until_complete(task)
            if callback == "resume_writing":
                rec.transport.write(bytes(1 << 20))
                loop.call_soon(asyncio.ensure_future, support.recv_exactly(peer, 1 << 20))
            loop.call_soon(start)
            loop.call_later(5 * support.TIME_SCALE, loop.stop)
            asyncio.set_event_loop(loop)
            with pytest.raises(exc):
                loop.run_forever()
        assert rec.count(callback) == 1
        rec.on.clear()
        rec.transport.abort()
        loop.run_until_complete(asyncio.sleep(0.01))
        assert rec.count("connection_lost") == 1
        assert reports == []
        peer.close()
    finally:
        asyncio.set_event_loop(None)
        for leftover in asyncio.all_tasks(loop):
            leftover.cancel()
            loop.run_until_complete(asyncio.gather(leftover, return_exceptions=True))
        loop.close()


def test_contexts_of_the_callbacks() -> None:
    """The context each callback runs in, and the one the exception handler runs in."""

    async def scenario(env: Env) -> None:
        def note(name: str) -> Any:
            def callback(rec: Recorder, *args: Any) -> None:
                env.log(f"context of {name}", VARIABLE.get())
                VARIABLE.set(f"set by {name}")

            return callback

        names = ["connection_made", "data_received", "eof_received", "connection_lost"]
        rec = Recorder(env, on={name: note(name) for name in names})
        sock, peer = support.tcp_pair()
        VARIABLE.set("at create_connection")
        transport, _ = await attach(sock, rec)
        VARIABLE.set("after create_connection")
        peer.send(b"one")
        await rec.until("data_received")
        peer.send(b"two")
        await rec.until_received(6)
        VARIABLE.set("at close")
        peer.shutdown(socket.SHUT_WR)
        await rec.until("connection_lost")
        env.log("the task sees", VARIABLE.get())
        peer.close()

        rec = Recorder(env, on={"connection_lost": note("connection_lost")})
        sock, peer = support.tcp_pair()
        transport, _ = await attach(sock, rec)
        VARIABLE.set("at explicit close")
        transport.close()
        VARIABLE.set("after explicit close")
        await rec.until("connection_lost")
        peer.close()

    support.compare(scenario)


def test_context_of_resumed_reading_and_writing() -> None:
    async def scenario(env: Env) -> None:
        def note(name: str) -> Any:
            return lambda rec, *args: env.log(f"context of {name}", VARIABLE.get())

        names = ["data_received", "pause_writing", "resume_writing"]
        rec = Recorder(env, on={name: note(name) for name in names})
        VARIABLE.set("at creation")
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.pause_reading()
            VARIABLE.set("at resume")
            transport.resume_reading()
            VARIABLE.set("later")
            peer.send(b"x")
            await rec.until_received(1)
            VARIABLE.set("at write")
            transport.write(bytes(1 << 20))
            VARIABLE.set("after write")
            await support.recv_exactly(peer, 1 << 20)
            await rec.until("resume_writing")

    support.compare(scenario)


def test_context_of_accepted_connections() -> None:
    async def scenario(env: Env) -> None:
        def note(name: str) -> Any:
            return lambda rec, *args: env.log(f"context of {name}", VARIABLE.get())

        names = ["connection_made", "data_received", "connection_lost"]
        rec = Recorder(env, on={name: note(name) for name in names})

        def factory() -> Recorder:
            env.log("factory sees", VARIABLE.get())
            return rec

        VARIABLE.set("at create_server")
        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        VARIABLE.set("later")
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.send(b"x")
            await rec.until_received(1)
        await rec.until("connection_lost")
        server.close()
        await server.wait_closed()

    support.compare(scenario)


@pytest.mark.parametrize("missing", ["connection_made", "data_received", "connection_lost"])
def test_protocol_without_a_method(missing: str) -> None:
    """An object that lacks a callback: the same report, the same end."""

    async def scenario(env: Env) -> None:
        class Partial:
            def __getattr__(self, name: str) -> Any:
                if name in ("connection_made", "data_received", "eof_received", "connection_lost"):
                    if name != missing:
                        return lambda *args: env.log(name)
                raise AttributeError(name)

        sock, peer = support.tcp_pair()
        try:
            transport, _ = await attach(sock, Partial())  # type: ignore[arg-type]
        except AttributeError:
            env.log("create_connection raised AttributeError")
            peer.close()
            return
        peer.send(b"data")
        await asyncio.sleep(0.01)
        peer.close()
        await asyncio.sleep(0.01)
        env.log("closing", transport.is_closing(), "open", sock.fileno() != -1)

    if missing == "connection_made":
        # asyncio's transport fails half-made there and leaves its socket to the collector.
        support.compare(scenario, check_fds=False, check_warnings=False)
    else:
        support.compare(scenario)


def test_error_in_one_connection_leaves_the_others_alone(run: Any) -> None:
    async def main(env: Env) -> None:
        good, bad = Recorder(), Recorder(on={"data_received": lambda rec, data: 1 / 0})
        async with (
            support.transport_pair(good) as (_t1, peer1),
            support.transport_pair(bad) as (_t2, peer2),
        ):
            peer2.send(b"x")
            peer1.send(b"x")
            await bad.until("connection_lost")
            peer1.send(b"y")
            await good.until_received(2)
            assert good.count("connection_lost") == 0
        assert len(env.take_errors()) == 1

    run(main)


def test_default_exception_handler_prints_the_connection(run: Any) -> None:
    """Without a handler of the user's, asyncio's logger gets message, transport and protocol."""

    async def main(env: Env) -> None:
        env.loop.set_exception_handler(None)
        rec = Recorder(on={"data_received": lambda rec, data: 1 / 0})
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"x")
            await rec.until("connection_lost")
        (text,) = env.take_logs()
        lines = text.splitlines()
        assert lines[0] == "Fatal error: protocol.data_received() call failed."
        assert any(line.startswith("protocol: <support.Recorder") for line in lines)
        assert any(line.startswith("transport: <") for line in lines)

    run(main)
