"""asyncio.Server: closing, waiting, serving for ever, counting connections."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest
import support
from support import Env, Recorder, eventually, turns


def test_attributes() -> None:
    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        env.log(isinstance(server, asyncio.AbstractServer), isinstance(server, asyncio.Server))
        env.log(server.get_loop() is env.loop)
        env.log(type(server.sockets), len(server.sockets), type(server.sockets[0]))
        env.log(server.sockets[0].fileno() >= 0, server.sockets[0].family)
        env.log(server.is_serving())
        env.log(repr(server).startswith("<Server sockets=("))
        server.close()
        env.log(server.sockets, server.is_serving())
        server.close()
        await server.wait_closed()
        await server.wait_closed()
        try:
            await server.start_serving()
        except Exception as exc:
            # An accident of asyncio's: what matters is that it does not serve again.
            env.log("raised", type(exc))
        env.log(server.is_serving())

    support.compare(scenario)


def test_close_stops_listening_and_keeps_connections(run: Any) -> None:
    async def main(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as client:
            await rec.until("connection_made")
            server.close()
            await turns(2)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            client.send(b"still here")
            await rec.until_received(10)
        await rec.until("connection_lost")
        await server.wait_closed()

    run(main)


def test_wait_closed_with_connections_open() -> None:
    """Whether wait_closed waits for connections is the running interpreter's business.

    uvicorn#2145.
    """

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await rec.until("connection_made")
            early = asyncio.ensure_future(server.wait_closed())
            await turns(3)
            env.log("before close", early.done())
            server.close()
            late = asyncio.ensure_future(server.wait_closed())
            await turns(3)
            env.log("after close", early.done(), late.done())
            rec.transport.abort()
            await rec.until("connection_lost")
            await turns(3)
            env.log("after the last connection", early.done(), late.done())
            for task in (early, late):
                task.cancel()
            await asyncio.gather(early, late, return_exceptions=True)

    support.compare(scenario)


def test_serve_forever_is_ended_by_cancelling() -> None:
    """zuv#156, cpy#124689"""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0, start_serving=False)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(2)
        env.log("serving", server.is_serving())
        with pytest.raises(RuntimeError):
            await server.serve_forever()
        client = socket.create_connection(server.sockets[0].getsockname())
        await rec.until("connection_made")
        task.cancel()
        await turns(4)
        env.log("sockets", len(server.sockets), "done", task.done())
        client.close()
        await rec.until("connection_lost")
        try:
            await task
        except asyncio.CancelledError:
            env.log("cancelled")
        await server.wait_closed()

    support.compare(scenario)


def test_serve_forever_is_ended_by_close() -> None:
    """uv#602"""

    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(2)
        server.close()
        try:
            await task
        except BaseException as exc:
            env.log("raised", type(exc))
        await server.wait_closed()
        try:
            await server.serve_forever()
        except RuntimeError as exc:
            env.log("raised", str(exc).split("<")[0])

    support.compare(scenario)


def test_context_manager() -> None:
    async def scenario(env: Env) -> None:
        async with await env.loop.create_server(Recorder, "127.0.0.1", 0) as server:
            env.log(type(server), server.is_serving())
        env.log(server.is_serving(), server.sockets)
        with pytest.raises(LookupError):
            async with await env.loop.create_server(Recorder, "127.0.0.1", 0) as server:
                raise LookupError("on purpose")
        env.log(server.is_serving())

    support.compare(scenario)


@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_close_and_abort_clients(method: str) -> None:
    """uv#683"""
    if sys.version_info < (3, 13):
        pytest.skip("came with Python 3.13")

    async def scenario(env: Env) -> None:
        recorders: list[Recorder] = []

        def factory() -> Recorder:
            recorders.append(Recorder(env))
            return recorders[-1]

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = []
        for number in range(3):
            clients.append(socket.create_connection(address))
            await eventually(lambda number=number: len(recorders) == number + 1)
            await recorders[number].until("connection_made")
        queued = recorders[0].transport
        queued.write(bytes(8 << 20))
        env.log("queued", queued.get_write_buffer_size() > 0)
        server.close()
        getattr(server, method)()
        await turns(3)
        env.log([rec.count("connection_lost") for rec in recorders])
        clients[0].setblocking(False)
        try:
            got = await support.recv_to_end(clients[0])
            env.log("all", len(got) == 8 << 20)
        except ConnectionResetError:
            env.log("reset")
        for rec in recorders:
            await rec.until("connection_lost")
        await server.wait_closed()
        for client in clients:
            client.close()

    support.compare(scenario)


def test_close_clients_without_clients_and_twice() -> None:
    if sys.version_info < (3, 13):
        pytest.skip("came with Python 3.13")

    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        server.close_clients()
        server.abort_clients()
        server.close()
        server.close_clients()
        await server.wait_closed()

    support.compare(scenario)


def test_connections_that_come_and_go_are_counted(run: Any) -> None:
    """wait_closed ends although connections were lost in every way there is."""

    async def main(env: Env) -> None:
        recorders: list[Recorder] = []

        def factory() -> Recorder:
            recorders.append(Recorder())
            return recorders[-1]

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        clients = [socket.create_connection(address) for _ in range(6)]
        await eventually(lambda: len(recorders) == 6)
        for rec in recorders:
            await rec.until("connection_made")
        support.reset(clients[0])
        clients[1].close()
        recorders[2].transport.abort()
        recorders[3].transport.close()
        recorders[4].on["data_received"] = lambda rec, data: 1 / 0
        by_name = {rec.transport.get_extra_info("peername"): rec for rec in recorders}
        for client in clients[2:]:
            rec = by_name[client.getsockname()]
            if not rec.transport.is_closing():
                client.send(b"x")
        await asyncio.sleep(0.02)
        server.close()
        for client in clients:
            client.close()
        await asyncio.wait_for(server.wait_closed(), 5 * support.TIME_SCALE)
        for rec in recorders:
            await rec.until("connection_lost")
        assert len(env.take_errors()) <= 1

    run(main)


def test_server_cannot_be_crashed_from_python(run: Any) -> None:
    """C6 (uv#760): Server(None) and friends raise, and using one half made does too."""

    async def main(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        cls = type(server)
        for args in ((), (None,), (None,) * 3, (None,) * 7, (5,) * 8):
            try:
                half = cls(*args)
            except (TypeError, ValueError):
                continue
            for name in ("close", "is_serving", "get_loop"):
                try:
                    getattr(half, name)()
                except Exception:
                    pass
            repr(half)
        server.close()
        await server.wait_closed()

    run(main)


def test_server_is_closed_inside_connection_made(run: Any) -> None:
    async def main(env: Env) -> None:
        holder: list[Any] = []
        rec = Recorder(on={"connection_made": lambda rec, transport: holder[0].close()})
        holder.append(await env.loop.create_server(lambda: rec, "127.0.0.1", 0))
        with socket.create_connection(holder[0].sockets[0].getsockname()):
            await rec.until("connection_made")
            assert not holder[0].is_serving()
        await rec.until("connection_lost")
        await holder[0].wait_closed()

    run(main)


def test_listening_socket_closed_with_pending_connections(run: Any) -> None:
    """Connections in the backlog of a closed server are reset, nothing is accepted any more."""

    async def main(env: Env) -> None:
        made = []
        server = await env.loop.create_server(lambda: made.append(1) or Recorder(), "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        server.close()
        await asyncio.sleep(0.02)
        assert made == []
        await server.wait_closed()
        client.close()

    run(main)


# ---- kinds of servers: TCP, Unix, TLS


async def _serve(env: Env, kind: str, certs: Any, path: Any, factory: Any, **options: Any) -> Any:
    if kind == "unix":
        return await env.loop.create_unix_server(factory, str(path / "socket"), **options)
    context = certs.server_context() if kind == "tls" else None
    return await env.loop.create_server(factory, "127.0.0.1", 0, ssl=context, **options)


async def _connect(env: Env, kind: str, certs: Any, server: Any, protocol: Any) -> Any:
    address = server.sockets[0].getsockname()
    if kind == "unix":
        transport, _ = await env.loop.create_unix_connection(lambda: protocol, address)
        return transport
    options: Any = (
        {"ssl": certs.client_context(), "server_hostname": "localhost"} if kind == "tls" else {}
    )
    transport, _ = await env.loop.create_connection(lambda: protocol, *address, **options)
    return transport


KINDS = ["tcp", "unix", "tls"]


def test_start_serving() -> None:
    """A server that is to start later listens from start_serving() on; a second call is nothing."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0, start_serving=False)
        address = server.sockets[0].getsockname()
        env.log(server.is_serving())
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            env.log("refused")
        env.log(await server.start_serving(), server.is_serving())
        env.log(await server.start_serving(), server.is_serving())
        with socket.create_connection(address):
            await rec.until("connection_made")
        await rec.until("connection_lost")
        server.close()
        await server.wait_closed()

    support.compare(scenario)


def test_repr_and_states() -> None:
    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
        for step in ("new", "serving", "closed"):
            if step == "serving":
                await server.start_serving()
            elif step == "closed":
                server.close()
            text = repr(server)
            env.log(step, text.startswith("<Server sockets=("), text.count("AF_INET"))
            env.log(server.is_serving(), len(server.sockets), type(server.sockets))
            env.log(server.get_loop() is env.loop)
        try:
            server.sockets = ()
        except AttributeError:
            env.log("sockets cannot be set")
        await server.wait_closed()
        env.log(server.get_loop() is env.loop)

    support.compare(scenario)


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("ending", ["cancel", "close", "close_clients", "abort_clients"])
def test_how_serve_forever_ends(ending: str, connected: bool) -> None:
    """By cancelling it or by close(), with a connection open or none, as the running Python's."""
    if "clients" in ending and sys.version_info < (3, 13):
        pytest.skip("came with Python 3.13")

    async def scenario(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(2)
        client = None
        if connected:
            client = socket.create_connection(server.sockets[0].getsockname())
            await rec.until("connection_made")
        if ending == "cancel":
            task.cancel()
        elif ending == "close":
            server.close()
        else:
            getattr(server, ending)()
            env.log("serving", server.is_serving())
            await turns(3)
            env.log("done", task.done())
            server.close()
        await turns(5)
        env.log("serving", server.is_serving(), "done", task.done())
        if client is not None:
            client.close()
            await rec.until("connection_lost")
        try:
            env.log("returned", await task)
        except BaseException as exc:
            env.log("raised", type(exc))
        env.log(task.cancelled())
        await server.wait_closed()

    support.compare(scenario)


def test_serve_forever_refuses() -> None:
    """A second one at the same time, and one of a closed server, with asyncio's words."""

    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        task = asyncio.ensure_future(server.serve_forever())
        await turns(2)
        for step in ("running", "closed"):
            if step == "closed":
                server.close()
                await asyncio.gather(task, return_exceptions=True)
            try:
                await server.serve_forever()
            except RuntimeError as exc:
                env.log(step, str(exc).split(" ", 1)[0], str(exc).rsplit(">", 1)[-1])
        await server.wait_closed()

    support.compare(scenario)


def test_serve_forever_may_be_called_again_before_the_close() -> None:
    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0, start_serving=False)
        task = asyncio.ensure_future(server.serve_forever())
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            env.log("cancelled before it began")
        env.log(server.is_serving(), len(server.sockets))
        server.close()
        await server.wait_closed()

    support.compare(scenario)


def test_many_wait_for_the_close() -> None:
    """Each waiter is woken; one that is cancelled leaves the others waiting."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        await rec.until("connection_made")
        waiters = [asyncio.ensure_future(server.wait_closed()) for _ in range(3)]
        await turns(2)
        env.log([waiter.done() for waiter in waiters])
        server.close()
        await turns(2)
        waiters[1].cancel()
        await turns(2)
        env.log([waiter.done() for waiter in waiters])
        client.close()
        await rec.until("connection_lost")
        await turns(3)
        env.log([waiter.done() for waiter in waiters])
        await asyncio.gather(*waiters, return_exceptions=True)

    support.compare(scenario)


def test_context_manager_with_a_connection_open() -> None:
    """Whether leaving waits for the connection is the running Python's business."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        left: list[str] = []

        async def serve() -> None:
            async with await env.loop.create_server(lambda: rec, "127.0.0.1", 0) as server:
                client.append(socket.create_connection(server.sockets[0].getsockname()))
                await rec.until("connection_made")
            left.append("left")

        client: list[socket.socket] = []
        task = asyncio.ensure_future(serve())
        await rec.until("connection_made")
        await turns(4)
        env.log(left)
        client[0].close()
        await rec.until("connection_lost")
        await task
        env.log(left)

    support.compare(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_close_clients_of_every_kind(kind: str, certs: Any, short_tmp: Any) -> None:
    """close_clients() flushes, abort_clients() does not; the server serves on until close()."""
    if sys.version_info < (3, 13):
        pytest.skip("came with Python 3.13")

    async def scenario(env: Env) -> None:
        recorders: list[Recorder] = []

        def factory() -> Recorder:
            recorders.append(Recorder())
            return recorders[-1]

        server = await _serve(env, kind, certs, short_tmp, factory)
        for method in ("close_clients", "abort_clients"):
            peers = [Recorder(), Recorder()]
            for peer in peers:
                await _connect(env, kind, certs, server, peer)
            await eventually(lambda: len(recorders) == 2)
            for rec in recorders:
                await rec.until("connection_made")
            recorders[0].transport.write(b"last words")
            getattr(server, method)()
            env.log(method, "serving", server.is_serving())
            for rec in [*recorders, *peers]:
                await rec.until("connection_lost")
            env.log("told", [rec.count("connection_lost") for rec in recorders])
            if method == "close_clients":
                env.log(bytes(peers[0].received))
            recorders.clear()
        server.close_clients()
        server.abort_clients()
        server.close()
        await server.wait_closed()
        env.log("serving", server.is_serving())

    support.compare(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_life_of_a_server_of_every_kind(kind: str, certs: Any, short_tmp: Any) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()
        server = await _serve(env, kind, certs, short_tmp, lambda: rec, start_serving=False)
        env.log(server.is_serving(), len(server.sockets))
        await server.start_serving()
        peer = Recorder()
        transport = await _connect(env, kind, certs, server, peer)
        await rec.until("connection_made")
        transport.write(b"hello")
        await rec.until_received(5)
        server.close()
        env.log(server.is_serving(), server.sockets)
        waiting = asyncio.ensure_future(server.wait_closed())
        await turns(3)
        env.log("waiting", not waiting.done())
        rec.transport.write(b"still answered")
        await peer.until_received(14)
        transport.close()
        await rec.until("connection_lost")
        await peer.until("connection_lost")
        await waiting
        env.log((short_tmp / "socket").exists())
        (short_tmp / "socket").unlink(missing_ok=True)

    support.compare(scenario)


def test_server_of_several_sockets() -> None:
    """One Server over several addresses: closed together, waited for together."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, ["127.0.0.1", "127.0.0.2"], 0)
        env.log(len(server.sockets))
        addresses = [sock.getsockname() for sock in server.sockets]
        with socket.create_connection(addresses[1]):
            await rec.until("connection_made")
        await rec.until("connection_lost")
        server.close()
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
        await server.wait_closed()

    support.compare(scenario)


def test_wrong_calls() -> None:
    async def scenario(env: Env) -> None:
        server = await env.loop.create_server(Recorder, "127.0.0.1", 0)
        for name in ("close", "is_serving", "get_loop", "close_clients", "abort_clients"):
            method = getattr(server, name, None)
            try:
                method(1)
            except TypeError:
                env.log(name, "TypeError", method is not None)
        server.close()
        await server.wait_closed()

    support.compare(scenario)
