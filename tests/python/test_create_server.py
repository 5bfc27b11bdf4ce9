"""create_server: where it listens, with which options, and what accepting does when it fails."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest
import support
from support import Env, Recorder, eventually, turns


def echo() -> Recorder:
    return Recorder(on={"data_received": lambda rec, data: rec.transport.write(data)})


async def talk(loop: Any, address: Any) -> None:
    rec = Recorder()
    transport, _ = await loop.create_connection(lambda: rec, *address[:2])
    transport.write(b"ping")
    await rec.until_received(4)
    transport.close()
    await rec.until("connection_lost")


async def shut(server: Any) -> None:
    server.close()
    await turns(3)
    await server.wait_closed()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "",
        None,
        ["127.0.0.1"],
        ["127.0.0.1", "127.0.0.2"],
        ("127.0.0.1", "127.0.0.1"),
        ["127.0.0.1", "localhost"],
        {"127.0.0.1"},
        iter(["127.0.0.1"]),
        b"127.0.0.1",
    ],
    ids=lambda host: "iterator" if hasattr(host, "__next__") else repr(host),
)
def test_hosts(host: Any) -> None:
    """Which addresses a host argument means; repeated ones are bound once."""
    if not isinstance(host, (str, bytes, list, tuple, set, type(None))):
        host_of = lambda: iter(["127.0.0.1"])  # noqa: E731
    else:
        host_of = lambda: host  # noqa: E731

    async def scenario(env: Env) -> None:
        try:
            server = await env.loop.create_server(
                echo, host_of(), 0, family=socket.AF_INET if isinstance(host, bytes) else 0
            )
        except Exception as exc:
            env.log(type(exc), exc)
            return
        env.log(sorted((sock.family.name, sock.getsockname()[0]) for sock in server.sockets))
        if host is None or host == "":
            address = server.sockets[0].getsockname()
            family = server.sockets[0].family
            await talk(env.loop, ("::1" if family == socket.AF_INET6 else "127.0.0.1", address[1]))
        else:
            for sock in server.sockets:
                await talk(env.loop, sock.getsockname())
        await shut(server)

    support.compare(scenario)


def test_ipv6_server_is_v6_only(run: Any) -> None:
    if not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def main(env: Env) -> None:
        server = await env.loop.create_server(echo, "::", 0)
        port = server.sockets[0].getsockname()[1]
        await talk(env.loop, ("::1", port))
        with pytest.raises(ConnectionRefusedError):
            await env.loop.create_connection(Recorder, "127.0.0.1", port)
        await shut(server)

    run(main)


def test_options_of_the_listening_socket() -> None:
    async def scenario(env: Env) -> None:
        variants: list[dict[str, Any]] = [
            {},
            {"reuse_address": False},
            {"reuse_address": True},
            {"reuse_port": True},
            {"reuse_port": False},
        ]
        if sys.version_info >= (3, 13):
            variants += [{"keep_alive": True}, {"keep_alive": False}]
        for kwargs in variants:
            server = await env.loop.create_server(echo, "127.0.0.1", 0, **kwargs)
            (sock,) = server.sockets
            env.log(
                kwargs,
                *(
                    bool(sock.getsockopt(socket.SOL_SOCKET, option))
                    for option in (
                        socket.SO_REUSEADDR,
                        socket.SO_REUSEPORT,
                        socket.SO_KEEPALIVE,
                    )
                ),
                sock.gettimeout(),
            )
            await shut(server)

    support.compare(scenario)


def test_keep_alive_is_inherited_by_connections(run: Any) -> None:
    """zuv#27"""
    if sys.version_info < (3, 13):
        pytest.skip("keep_alive came with Python 3.13")

    async def main(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0, keep_alive=True)
        with socket.create_connection(server.sockets[0].getsockname()):
            await rec.until("connection_made")
            sock = rec.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await rec.until("connection_lost")
        await shut(server)

    run(main)


def test_two_servers_share_a_port(run: Any) -> None:
    """reuse_port: the kernel balances between them (skypilot#10016)."""

    async def main(env: Env) -> None:
        counts = [0, 0]

        def counting(index: int) -> Any:
            def factory() -> Recorder:
                counts[index] += 1
                return echo()

            return factory

        first = await env.loop.create_server(counting(0), "127.0.0.1", 0, reuse_port=True)
        address = first.sockets[0].getsockname()
        second = await env.loop.create_server(counting(1), *address, reuse_port=True)
        for _ in range(40):
            await talk(env.loop, address)
        assert sum(counts) == 40 and min(counts) > 0
        await shut(first)
        await shut(second)

    run(main)


def test_address_in_use() -> None:
    async def scenario(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for host in ("127.0.0.1", ["127.0.0.2", "127.0.0.1"]):
                try:
                    await env.loop.create_server(echo, host, port)
                except OSError as exc:
                    env.log(type(exc), exc.errno, str(exc).replace(str(port), "PORT"))

    support.compare(scenario)


def test_address_that_is_not_here() -> None:
    async def scenario(env: Env) -> None:
        try:
            server = await env.loop.create_server(echo, "192.0.2.1", 0)
            env.log("accepted", len(server.sockets))
            await shut(server)
        except OSError as exc:
            env.log(type(exc), exc.errno, exc)

    support.compare(scenario)


def test_socket_handed_in(run: Any) -> None:
    """A bound socket, blocking or not, listening or not."""

    async def main(env: Env) -> None:
        for prepare in (lambda sock: None, lambda sock: sock.listen(5)):
            sock = socket.socket()
            sock.bind(("127.0.0.1", 0))
            prepare(sock)
            server = await env.loop.create_server(echo, sock=sock)
            assert sock.gettimeout() == 0
            await talk(env.loop, sock.getsockname())
            await shut(server)
            assert sock.fileno() == -1

    run(main)


def test_start_serving_later(run: Any) -> None:
    async def main(env: Env) -> None:
        server = await env.loop.create_server(echo, "127.0.0.1", 0, start_serving=False)
        assert not server.is_serving()
        address = server.sockets[0].getsockname()
        with pytest.raises(ConnectionRefusedError):
            await env.loop.create_connection(Recorder, *address)
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        await talk(env.loop, address)
        await shut(server)

    run(main)


@pytest.mark.parametrize("backlog", [1, 2, 100, 4096])
def test_backlog(run: Any, backlog: int) -> None:
    """More clients than backlog connect in the end: accepting goes on, turn after turn."""
    # The kernel drops what does not fit and the client tries again a second later: few at a time.
    at_once = min(backlog, 20)

    async def main(env: Env) -> None:
        server = await env.loop.create_server(echo, "127.0.0.1", 0, backlog=backlog)
        address = server.sockets[0].getsockname()
        for _ in range(40 // at_once):
            await asyncio.gather(*(talk(env.loop, address) for _ in range(at_once)))
        await shut(server)

    run(main)


@pytest.mark.parametrize("number", range(12))
def test_arguments_that_do_not_fit(number: int) -> None:
    async def scenario(env: Env) -> None:
        create = env.loop.create_server
        sock = socket.socket()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        calls: list[Any] = [
            lambda: create(echo),
            lambda: create(echo, "127.0.0.1", 0, sock=sock),
            lambda: create(echo, sock=udp),
            lambda: create(echo, "127.0.0.1", 0, ssl=True),
            lambda: create(echo, "127.0.0.1", 0, ssl=False),
            lambda: create(echo, "127.0.0.1", 0, ssl_handshake_timeout=1),
            lambda: create(echo, "127.0.0.1", 0, ssl_shutdown_timeout=1),
            lambda: create(echo, "127.0.0.1", 0, unknown=1),
            lambda: create(echo, "127.0.0.1", 1 << 20),
            lambda: create(echo, "127.0.0.1", -1),
            lambda: create(echo, 5, 0),
            lambda: create(echo, "127.0.0.1", 0, backlog="many"),
        ]
        try:
            server = await calls[number]()
        except Exception as exc:
            env.log(type(exc), str(exc).split("<")[0])
        else:
            env.log("accepted")
            await shut(server)
        sock.close()
        udp.close()

    support.compare(scenario, check_warnings=False)


# --------------------------------------------------------------------------- accepting


def test_factory_that_raises(run: Any) -> None:
    """The connection is dropped, the server goes on; only debug mode reports."""

    async def main(env: Env) -> None:
        fail = [True]

        def factory() -> Recorder:
            if fail:
                fail.pop()
                raise LookupError("on purpose")
            return echo()

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as client:
            client.setblocking(False)
            await eventually(lambda: not fail)
            await turns(2)
        await talk(env.loop, address)
        await shut(server)

    # Older asyncios leave the accepted socket to the garbage collector, with its warning.
    run(main, check_warnings=False)


@pytest.mark.parametrize("debug", [False, True])
def test_factory_that_raises_is_reported_in_debug_mode_only(debug: bool) -> None:
    async def scenario(env: Env) -> None:
        def factory() -> Recorder:
            raise LookupError("on purpose")

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await asyncio.sleep(0.02)
        await shut(server)

    support.compare(scenario, debug=debug, check_warnings=False)


def test_order_of_turns_from_accept() -> None:
    """Factory, connection_made and first data of an accepted connection, turn by turn."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)

        def factory() -> Recorder:
            env.log("factory")
            return rec

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            client.send(b"early")
            await asyncio.sleep(0.01)
            for turn in range(4):
                env.log("turn", turn)
                await asyncio.sleep(0)
            await rec.until_received(5)
        await rec.until("connection_lost")
        await shut(server)

    support.compare(scenario)


def test_many_connections_waiting_at_once(run: Any) -> None:
    """A burst in one poll: all are accepted and each keeps its own bytes."""

    async def main(env: Env) -> None:
        server = await env.loop.create_server(echo, "127.0.0.1", 0)
        clients = [socket.create_connection(server.sockets[0].getsockname()) for _ in range(50)]
        for number, client in enumerate(clients):
            client.setblocking(False)
            client.send(b"%03d" % number)
        for number, client in enumerate(clients):
            assert await support.recv_exactly(client, 3) == b"%03d" % number
            client.close()
        await shut(server)

    run(main)


def test_client_gone_before_accept(run: Any) -> None:
    async def main(env: Env) -> None:
        recorders: list[Recorder] = []

        def factory() -> Recorder:
            recorders.append(echo())
            return recorders[-1]

        server = await env.loop.create_server(factory, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(5):
            support.reset(socket.create_connection(address))
        await eventually(lambda: len(recorders) == 5)
        for rec in list(recorders):
            await rec.until("connection_lost")
            assert rec.names() == ["connection_made", "connection_lost"]
        await talk(env.loop, address)
        await shut(server)

    run(main)


def test_out_of_descriptors(loop_name: str) -> None:
    """C12: EMFILE stops accepting for a second and reports once; nothing spins.

    asyncio itself reports once per attempt of its accept loop, which is why it is not compared.
    """
    result = support.run_script(
        """
        import asyncio, resource, socket, time
        from support import Recorder, eventually, turns

        reports = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reports.append(context))
            recorders = []
            def make():
                recorders.append(Recorder())
                return recorders[-1]
            server = await loop.create_server(make, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            clients = [socket.socket() for _ in range(8)]
            for client in clients:
                client.setblocking(False)
            # Take every descriptor but three.
            limit = 64
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            spare = []
            while True:
                try:
                    spare.append(socket.socket())
                except OSError:
                    break
            for _ in range(3):
                spare.pop().close()
            for client in clients:
                client.connect_ex(address)
            cpu, start = time.thread_time(), time.monotonic()
            await asyncio.sleep(0.5)
            cpu, wall = time.thread_time() - cpu, time.monotonic() - start
            assert cpu < 0.5 * wall, (cpu, wall)
            assert len(recorders) == 3, len(recorders)
            assert {c["message"] for c in reports} == {
                "socket.accept() out of system resource"}, reports
            assert len(reports) == 1 or sys.argv[1] == "asyncio", reports
            assert isinstance(reports[0]["exception"], OSError)
            assert isinstance(reports[0]["socket"], asyncio.trsock.TransportSocket)
            while spare:
                spare.pop().close()
            # After the second the others are accepted.
            await eventually(lambda: len(recorders) == 8, timeout=10)
            assert len(reports) == 1 or sys.argv[1] == "asyncio", reports
            assert time.monotonic() - start >= 0.9
            for client in clients:
                client.close()
            for rec in recorders:
                await rec.until("connection_lost")
            server.close()
            await server.wait_closed()
            print("ok")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """,
        loop_name,
        loop=loop_name,
    )
    assert result.stdout == "ok\n"


def test_server_closed_while_accepting_is_paused(loop_name: str) -> None:
    """Closing during the back-off: the retry must not revive or crash anything (C12)."""
    result = support.run_script(
        """
        import asyncio, resource, socket
        from support import Recorder

        reports = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reports.append(context["message"]))
            server = await loop.create_server(Recorder, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            client = socket.socket()
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
            spare = []
            while True:
                try:
                    spare.append(socket.socket())
                except OSError:
                    break
            client.connect_ex(address)
            await asyncio.sleep(0.1)
            assert set(reports) == {"socket.accept() out of system resource"}, reports
            del reports[1:]
            server.close()
            for sock in spare:
                sock.close()
            await asyncio.sleep(1.2)
            # asyncio retries on the closed socket and reports that; quiet is better.
            assert len(reports) == 1 or sys.argv[1] == "asyncio", reports
            client.close()
            await server.wait_closed()
            print("ok")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """,
        loop_name,
        loop=loop_name,
    )
    assert result.stdout == "ok\n"


def test_server_without_references(run: Any) -> None:
    """A server nobody keeps serves on: the loop holds the listening socket."""
    import gc

    async def main(env: Env) -> None:
        address = (await env.loop.create_server(echo, "127.0.0.1", 0)).sockets[0].getsockname()
        gc.collect()
        await talk(env.loop, address)

    run(main, check_warnings=False, check_fds=False)
    gc.collect()
