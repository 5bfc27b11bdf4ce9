"""create_connection, connect_accepted_socket: addresses, happy eyeballs, errors, arguments."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import support
from support import Env, Recorder, eventually, turns


@contextlib.asynccontextmanager
async def sink_server(env: Env, host: Any = "127.0.0.1") -> Any:
    """A server that keeps its recorders; yields (port, recorders)."""
    recorders: list[Recorder] = []

    def factory() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    server = await env.loop.create_server(factory, host, 0)
    try:
        yield server.sockets[0].getsockname()[1], recorders
    finally:
        server.close()
        for rec in recorders:
            if rec.transport is not None and not rec.count("connection_lost"):
                rec.transport.abort()
        await turns(3)
        await server.wait_closed()


async def close(rec: Recorder) -> None:
    rec.transport.close()
    await rec.until("connection_lost")
    await turns(1)


def patch_getaddrinfo(env: Env, addresses: list[tuple[Any, ...]]) -> None:
    """Make the loop resolve every name to ADDRESSES: (host, port) or IPv6 4-tuples."""

    async def getaddrinfo(host: Any, port: Any, **kwargs: Any) -> list[Any]:
        env.log("getaddrinfo", host, sorted(kwargs))
        return [
            (
                socket.AF_INET if len(address) == 2 else socket.AF_INET6,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                address,
            )
            for address in addresses
        ]

    env.loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]


def watch_connects(env: Env) -> None:
    """Trace the addresses that the loop connects to, in order, by host."""
    original = env.loop.sock_connect

    async def sock_connect(sock: Any, address: Any) -> Any:
        env.log("connect", address[0])
        return await original(sock, address)

    env.loop.sock_connect = sock_connect  # type: ignore[method-assign]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", b"127.0.0.1", "::1"])
def test_connect(run: Any, host: Any) -> None:
    if host == "::1" and not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def main(env: Env) -> None:
        async with sink_server(env, "::1" if host == "::1" else "127.0.0.1") as (port, recorders):
            rec = Recorder()
            transport, protocol = await env.loop.create_connection(
                lambda: rec, host, port, family=0 if host == "::1" else socket.AF_INET
            )
            assert protocol is rec
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.write(b"hello")
            await eventually(lambda: recorders and recorders[0].received == b"hello")
            await close(rec)

    run(main)


@pytest.mark.parametrize("port_form", [int, str])
def test_port_forms(port_form: Callable[[int], Any]) -> None:
    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            rec = Recorder(env)
            await env.loop.create_connection(lambda: rec, "127.0.0.1", port_form(port))
            await close(rec)

    support.compare(scenario)


def test_refused() -> None:
    async def scenario(env: Env) -> None:
        holder, port = support.refused_port()
        with holder:
            for kwargs in ({}, {"all_errors": True}, {"happy_eyeballs_delay": 0.1}):
                if "all_errors" in kwargs and sys.version_info < (3, 12):
                    continue
                try:
                    await env.loop.create_connection(Recorder, "127.0.0.1", port, **kwargs)
                except OSError as exc:
                    env.log(type(exc), exc.errno, str(exc).replace(str(port), "PORT"))
                except BaseExceptionGroup as group:
                    env.log(group.message, [type(exc) for exc in group.exceptions])

    support.compare(scenario)


def test_second_address_is_tried() -> None:
    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            patch_getaddrinfo(env, [("127.0.0.2", port), ("127.0.0.1", port)])
            watch_connects(env)
            rec = Recorder(env)
            transport, _ = await env.loop.create_connection(lambda: rec, "name.test", port)
            env.log(transport.get_extra_info("peername")[0])
            await close(rec)

    support.compare(scenario)


@pytest.mark.parametrize("all_errors", [False, True])
def test_all_addresses_refuse(all_errors: bool) -> None:
    if all_errors and sys.version_info < (3, 12):
        pytest.skip("all_errors came with Python 3.12")

    async def scenario(env: Env) -> None:
        holder, port = support.refused_port()
        with holder:
            patch_getaddrinfo(env, [("127.0.0.1", port), ("127.0.0.2", port)])
            try:
                await env.loop.create_connection(
                    Recorder, "name.test", port, **({"all_errors": True} if all_errors else {})
                )
            except OSError as exc:
                env.log(type(exc), str(exc).replace(str(port), "PORT"))
            except BaseExceptionGroup as group:
                env.log(type(group), group.message, [type(exc) for exc in group.exceptions])
        gc.collect()

    support.compare(scenario)


def test_resolution_fails_or_is_empty() -> None:
    async def scenario(env: Env) -> None:
        patch_getaddrinfo(env, [])
        try:
            await env.loop.create_connection(Recorder, "name.test", 80)
        except OSError as exc:
            env.log(type(exc), exc)

        async def fails(*args: Any, **kwargs: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")

        env.loop.getaddrinfo = fails  # type: ignore[method-assign]
        try:
            await env.loop.create_connection(Recorder, "name.test", 80)
        except OSError as exc:
            env.log(type(exc), exc.args)

    support.compare(scenario)


# --------------------------------------------------------------------------- happy eyeballs


@pytest.mark.parametrize("delay", [0.05, 0.0])
def test_happy_eyeballs_goes_round_a_blackhole(delay: float) -> None:
    """uv#406"""

    async def scenario(env: Env) -> None:
        held, dead = support.blackhole()
        try:
            async with sink_server(env) as (port, _recorders):
                patch_getaddrinfo(env, [dead, ("127.0.0.1", port)])
                watch_connects(env)
                rec = Recorder(env)
                start = env.loop.time()
                transport, _ = await env.loop.create_connection(
                    lambda: rec, "name.test", port, happy_eyeballs_delay=delay
                )
                env.log("in time", env.loop.time() - start < 1.0 * support.TIME_SCALE)
                env.log("waited", env.loop.time() - start >= delay * 0.9)
                assert transport.get_extra_info("peername")[1] == port
                await close(rec)
        finally:
            for sock in held:
                sock.close()

    support.compare(scenario)


def test_happy_eyeballs_all_fail() -> None:
    """uv#406"""

    async def scenario(env: Env) -> None:
        holder, port = support.refused_port()
        with holder:
            patch_getaddrinfo(env, [("127.0.0.1", port), ("127.0.0.2", port)])
            try:
                await env.loop.create_connection(
                    Recorder, "name.test", port, happy_eyeballs_delay=0.01
                )
            except OSError as exc:
                env.log(type(exc), str(exc).replace(str(port), "PORT"))

    support.compare(scenario)


@pytest.mark.parametrize("kwargs", [{}, {"interleave": 1}, {"interleave": 2}, {"interleave": 0}])
@pytest.mark.parametrize("eyeballs", [False, True])
def test_interleave(kwargs: dict[str, Any], eyeballs: bool) -> None:
    """The order in which addresses of both families are tried (uv#406)."""
    if not support.has_ipv6():
        pytest.skip("no IPv6 here")
    if eyeballs:
        kwargs = {**kwargs, "happy_eyeballs_delay": 5}

    async def scenario(env: Env) -> None:
        holder, port = support.refused_port()
        with holder:
            v4 = [(f"127.0.0.{number}", port) for number in (1, 2, 3)]
            v6 = [("::1", port, 0, 0)] * 3
            patch_getaddrinfo(env, [*v4, *v6])
            watch_connects(env)
            try:
                await env.loop.create_connection(Recorder, "name.test", port, **kwargs)
            except OSError as exc:
                env.log(type(exc))

    support.compare(scenario)


# --------------------------------------------------------------------------- local_addr


def test_local_addr() -> None:
    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, recorders):
            local = support.free_port()
            rec = Recorder(env)
            transport, _ = await env.loop.create_connection(
                lambda: rec, "127.0.0.1", port, local_addr=("127.0.0.1", local)
            )
            assert transport.get_extra_info("sockname") == ("127.0.0.1", local)
            await eventually(lambda: recorders)
            await recorders[0].until("connection_made")
            assert recorders[0].transport.get_extra_info("peername") == ("127.0.0.1", local)
            transport.abort()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_local_addr_that_cannot_be_bound() -> None:
    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                local = taken.getsockname()
                for address in (local, ("192.0.2.1", 0)):
                    try:
                        await env.loop.create_connection(
                            Recorder, "127.0.0.1", port, local_addr=address
                        )
                    except OSError as exc:
                        env.log(type(exc), exc.errno, str(exc).replace(str(local[1]), "PORT"))

    support.compare(scenario)


def test_local_addr_of_the_other_family() -> None:
    if not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            try:
                await env.loop.create_connection(Recorder, "127.0.0.1", port, local_addr=("::1", 0))
            except OSError as exc:
                env.log(type(exc), exc.errno, exc)

    support.compare(scenario)


# --------------------------------------------------------------------------- arguments


def bad_arguments(loop: Any, sock: Any, udp: Any, certs: Any) -> list[Callable[[], Any]]:
    connect = loop.create_connection
    return [
        lambda: connect(Recorder),
        lambda: connect(Recorder, "127.0.0.1", 80, sock=sock),
        lambda: connect(Recorder, sock=udp),
        lambda: connect(Recorder, "127.0.0.1", 80, server_hostname="x"),
        lambda: connect(Recorder, "127.0.0.1", 80, ssl_handshake_timeout=1),
        lambda: connect(Recorder, "127.0.0.1", 80, ssl_shutdown_timeout=1),
        lambda: connect(Recorder, sock=sock, ssl=True),
        lambda: connect(Recorder, None, 80, ssl=True),
        lambda: connect(Recorder, "127.0.0.1", 80, unknown=1),
        lambda: connect(Recorder, "127.0.0.1", 1 << 20),
        lambda: connect(Recorder, "127.0.0.1", "no such service"),
        lambda: connect(None, sock=sock),
        lambda: connect(Recorder, 5, 80),
        lambda: loop.connect_accepted_socket(Recorder, udp),
        lambda: loop.connect_accepted_socket(Recorder, sock, ssl_handshake_timeout=1),
        lambda: loop.connect_accepted_socket(Recorder, sock, ssl_shutdown_timeout=1),
        lambda: loop.connect_accepted_socket(Recorder, sock, ssl=True),
    ]


@pytest.mark.parametrize("number", range(17))
def test_arguments_that_do_not_fit(number: int) -> None:
    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await bad_arguments(env.loop, sock, udp, None)[number]()
        except Exception as exc:
            env.log(type(exc), str(exc).split("<")[0])
        # A socket that was refused is still its owner's, or closed, as asyncio does it.
        env.log("socket open", sock.fileno() != -1)
        for one in (sock, peer, udp):
            one.close()

    # Older asyncios leave a socket behind when the transport cannot be made.
    support.compare(scenario, check_warnings=False)


@pytest.mark.parametrize("value", [0, -1, "1"])
@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_tls_timeouts_that_make_no_sense(
    name: str, value: Any, certs: support.Certificates
) -> None:
    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            try:
                await env.loop.create_connection(
                    Recorder,
                    "127.0.0.1",
                    port,
                    ssl=certs.client_context(),
                    **{name: value},
                )
            except Exception as exc:
                env.log(type(exc), exc)

    support.compare(scenario, check_warnings=False, check_fds=False)


def test_protocol_factory_that_raises() -> None:
    async def scenario(env: Env) -> None:
        def factory() -> Any:
            raise LookupError("on purpose")

        sock, peer = support.tcp_pair()
        try:
            await env.loop.create_connection(factory, sock=sock)
        except LookupError as exc:
            env.log(exc)
        env.log("socket open", sock.fileno() != -1)
        sock.close()
        peer.close()

    support.compare(scenario)


# --------------------------------------------------------------------------- cancellation


def test_cancelled_while_connecting(run: Any) -> None:
    """The half-made socket is closed at once."""

    async def main(env: Env) -> None:
        held, dead = support.blackhole()
        before = support.open_fds()
        try:
            task = asyncio.ensure_future(env.loop.create_connection(Recorder, *dead))
            await asyncio.sleep(0.02)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await turns(2)
            assert support.new_fds(before) == {}
        finally:
            for sock in held:
                sock.close()

    run(main)


def test_cancelled_while_resolving() -> None:
    async def scenario(env: Env) -> None:
        async def never(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(3600)

        env.loop.getaddrinfo = never  # type: ignore[method-assign, assignment]
        task = asyncio.ensure_future(env.loop.create_connection(Recorder, "name.test", 80))
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    support.compare(scenario)


@pytest.mark.parametrize("after", range(4))
def test_cancelled_over_a_socket_handed_in(after: int) -> None:
    """C1: cancelled at every await point, the socket ends as asyncio leaves it, closed once.

    Who has the number next keeps it, whatever is collected or closed afterwards.
    """

    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        fd = sock.fileno()
        rec = Recorder(env)
        task = asyncio.ensure_future(env.loop.create_connection(lambda: rec, sock=sock))
        await turns(after)
        task.cancel()
        try:
            transport, _ = await task
            env.log("connected")
            transport.close()
        except asyncio.CancelledError:
            env.log("cancelled")
        await turns(4)
        env.log("open", sock.fileno() != -1)
        theirs: list[socket.socket] = []
        if sock.fileno() == -1:
            env.log("peer", await support.recv_exactly(peer, 1))
            theirs += support.unix_pair()
            assert fd in [end.fileno() for end in theirs]
        rec.transport = transport = None
        del task
        gc.collect()
        await turns(2)
        sock.close()
        for end, other in zip(theirs, reversed(theirs), strict=True):
            assert end.send(b"theirs") == 6
            assert support.recv_now(other) == b"theirs"
        for end in (*theirs, peer):
            end.close()

    trace = support.compare(scenario)
    assert sum(entry[0] == "connection_lost" for entry in trace) <= 1


# --------------------------------------------------------------------------- accepted sockets


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_connect_accepted_socket(kind: str) -> None:
    async def scenario(env: Env) -> None:
        accepted, peer = support.PAIRS[kind]()
        rec = Recorder(env, on={"data_received": lambda rec, data: rec.transport.write(data)})
        transport, protocol = await env.loop.connect_accepted_socket(lambda: rec, accepted)
        env.log(protocol is rec, transport.is_closing())
        peer.send(b"ping")
        env.log(await support.recv_exactly(peer, 4))
        peer.close()
        await rec.until("connection_lost")
        await turns(1)
        env.log(accepted.fileno())

    support.compare(scenario)


def test_connect_accepted_socket_over_tls(run: Any, certs: support.Certificates) -> None:
    async def main(env: Env) -> None:
        accepted, client = support.tcp_pair()
        server_side = Recorder(on={"data_received": lambda rec, data: rec.transport.write(data)})
        client_side = Recorder()
        (_, _), (transport, _) = await asyncio.gather(
            env.loop.connect_accepted_socket(
                lambda: server_side,
                accepted,
                ssl=certs.server_context(),
                ssl_handshake_timeout=10,
                ssl_shutdown_timeout=10,
            ),
            env.loop.create_connection(
                lambda: client_side,
                sock=client,
                ssl=certs.client_context(),
                server_hostname="localhost",
            ),
        )
        transport.write(b"ping")
        await client_side.until_received(4)
        transport.close()
        await client_side.until("connection_lost")
        await server_side.until("connection_lost")
        await asyncio.sleep(0.02)

    run(main)


def test_blocking_socket_handed_in_becomes_non_blocking(run: Any) -> None:
    async def main(env: Env) -> None:
        sock, peer = support.tcp_pair()
        sock.setblocking(True)
        rec = Recorder()
        transport, _ = await env.loop.create_connection(lambda: rec, sock=sock)
        assert transport.get_extra_info("socket").gettimeout() == 0
        await close(rec)
        peer.close()

    run(main)


# --------------------------------------------------------------------------- addresses written out


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", int),
        ("::1", int),
        ("127.1", int),
        ("127.0.0.1", str),
        (b"127.0.0.1", int),
        ("::ffff:127.0.0.1", int),
    ],
)
def test_what_a_literal_host_is_connected_to(host: Any, port: Callable[[int], Any]) -> None:
    """The socket's kind and the address that sock_connect() is given, which a loop may replace."""
    if ":" in str(host) and not support.has_ipv6():
        pytest.skip("no IPv6 here")

    async def scenario(env: Env) -> None:
        original = env.loop.sock_connect

        async def sock_connect(sock: Any, address: Any) -> Any:
            plain = (address[0], type(address[1]), *address[2:])
            env.log(sock.family, sock.type, sock.proto, sock.gettimeout(), plain)
            return await original(sock, address)

        env.loop.sock_connect = sock_connect  # type: ignore[method-assign]
        async with sink_server(env, "::1" if host == "::1" else "127.0.0.1") as (number, _):
            rec = Recorder(env)
            transport, _protocol = await env.loop.create_connection(lambda: rec, host, port(number))
            env.log(transport.get_extra_info("peername")[0])
            await close(rec)

    support.compare(scenario)


@pytest.mark.parametrize("port", [-1, 65536, 1 << 70, True, 1.5, None])
def test_ports_that_are_none(port: Any) -> None:
    async def scenario(env: Env) -> None:
        try:
            await env.loop.create_connection(Recorder, "127.0.0.1", port)
        except (OSError, OverflowError, TypeError) as exc:
            env.log(type(exc), str(exc))

    support.compare(scenario)


@pytest.mark.parametrize(
    "name",
    [
        "_ensure_resolved",
        "_connect_sock",
        "sock_connect",
        "_create_connection_transport",
        "_make_socket_transport",
        "create_future",
    ],
)
@pytest.mark.parametrize("on_class", [False, True])
def test_replaced_steps_are_taken(name: str, on_class: bool) -> None:
    """What create_connection() asks its loop for may be replaced, and is asked as often."""

    async def scenario(env: Env) -> None:
        # Not of the loop's, which would be asked for the other end, too.
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            target: Any = type(env.loop) if on_class else env.loop
            original = getattr(target, name)

            def replaced(*args: Any, **kwargs: Any) -> Any:
                env.log(name)
                return original(*args, **kwargs)

            rec = Recorder()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(target, name, replaced)
                await env.loop.create_connection(lambda: rec, "127.0.0.1", port)
                env.log("made")
            await close(rec)

    support.compare(scenario)


@pytest.mark.parametrize("name", ["_ipaddr_info", "socket.inet_pton"])
def test_replaced_parsers_of_addresses_are_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests patch them in asyncio's module: then the name server's answer is what counts."""

    def refuses(*args: Any) -> Any:
        if name == "_ipaddr_info":
            return None
        raise OSError("on purpose")

    monkeypatch.setattr(f"asyncio.base_events.{name}", refuses)

    async def scenario(env: Env) -> None:
        async with sink_server(env) as (port, _recorders):
            patch_getaddrinfo(env, [("127.0.0.1", port)])
            rec = Recorder()
            await env.loop.create_connection(lambda: rec, "127.0.0.1", port)
            await close(rec)
            with socket.socket() as sock:
                sock.setblocking(False)
                await env.loop.sock_connect(sock, ("127.0.0.1", port))

    support.compare(scenario)


def test_asyncios_method_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards and tracers put themselves in its place, for every kind of host."""
    original = asyncio.BaseEventLoop.create_connection

    async def scenario(env: Env) -> None:
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            env.log("asked", args[1:2])
            return original(self, *args, **kwargs)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            rec = Recorder()
            with monkeypatch.context() as patch:
                patch.setattr(asyncio.BaseEventLoop, "create_connection", guarded)
                await env.loop.create_connection(lambda: rec, "127.0.0.1", port)
            await close(rec)

    support.compare(scenario)


def test_overridden_beside_the_loop(loop_factory: Any) -> None:
    asked: list[Any] = []

    class Beside(asyncio.SelectorEventLoop):
        async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args[1])
            return await super().create_connection(*args, **kwargs)

    probe = loop_factory()
    base = type(probe)
    probe.close()
    bases = (Beside,) if issubclass(Beside, base) else (base, Beside)
    loop = type("Joined", bases, {})()
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host, port = listener.getsockname()
            rec = Recorder()
            loop.run_until_complete(loop.create_connection(lambda: rec, host, port))
            loop.run_until_complete(close(rec))
    finally:
        loop.close()
    assert asked == ["127.0.0.1"]


@pytest.mark.parametrize("error", [ConnectionRefusedError, asyncio.CancelledError])
def test_a_socket_that_fails_to_close_does_not_hide_why(
    run: Any, loop_name: str, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    is_asyncio_of_old = loop_name == "asyncio" and sys.version_info < (3, 14)
    if is_asyncio_of_old and error is asyncio.CancelledError:
        pytest.skip("before 3.14 asyncio lets the one error take the other's place")

    class Stubborn(socket.socket):
        def close(self) -> None:
            super().close()
            raise OSError("on purpose")

    async def main(env: Env) -> None:
        async def connect(*args: Any) -> None:
            raise error

        env.loop.sock_connect = connect
        # Not for asyncio's own sockets, which are closed when its loop is.
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(socket, "socket", Stubborn)
            await env.loop.create_connection(Recorder, "127.0.0.1", 9)

    run(main)


def test_refused_literal_host_leaves_nothing_behind(run: Any) -> None:
    async def main(env: Env) -> None:
        holder, port = support.refused_port()
        with holder:
            before = support.open_fds()
            with pytest.raises(ConnectionRefusedError) as caught:
                await env.loop.create_connection(Recorder, "127.0.0.1", port)
            assert caught.value.__context__ is None
            assert support.new_fds(before) == {}

    run(main)


def test_it_is_a_coroutine_function_that_checks_its_arguments_when_called(run: Any) -> None:
    async def main(env: Env) -> None:
        create: Any = env.loop.create_connection
        # Before 3.12 only asyncio can be told that a function which is none counts as one.
        asks: Any = inspect if sys.version_info >= (3, 12) else asyncio
        assert asks.iscoroutinefunction(create)
        for args, kwargs in (
            ((), {}),
            ((Recorder, "127.0.0.1", 1, 2), {}),
            ((Recorder,), {"no": 1}),
        ):
            with pytest.raises(TypeError, match=r"create_connection\(\)"):
                create(*args, **kwargs)
        coroutine = create(Recorder, "127.0.0.1", 1)
        assert asyncio.iscoroutine(coroutine)
        assert coroutine.__qualname__ == "BaseEventLoop.create_connection"
        coroutine.close()

    run(main)


def test_audit_events(loop_name: str) -> None:
    """Sockets made and connected are told to audit hooks with the arguments of asyncio's."""
    source = """
import asyncio, socket, sys

events = []

def note(name, args):
    if name in ("socket.__new__", "socket.connect") and noting:
        events.append((name, *map(int, args[1:4])) if name == "socket.__new__" else (name, args[1]))

noting = False
sys.addaudithook(note)

async def main():
    global noting
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    noting = True
    transport, _ = await loop.create_connection(asyncio.Protocol, *address)
    noting = False
    transport.close()
    server.close()
    await asyncio.sleep(0.01)
    return address

with asyncio.Runner(loop_factory=factory) as runner:
    address = runner.run(main())
made = ("socket.__new__", socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
assert events[:2] == [made, ("socket.connect", address)], events
"""
    support.run_script(source, loop=loop_name)


def test_an_audit_hook_that_refuses(loop_name: str) -> None:
    source = """
import asyncio, sys

def refuse(name, args):
    if name == "socket.connect":
        raise PermissionError("on purpose")

async def main():
    sys.addaudithook(refuse)
    loop = asyncio.get_running_loop()
    try:
        await loop.create_connection(asyncio.Protocol, "127.0.0.1", 9)
    except PermissionError as exc:
        assert str(exc) == "on purpose"
    else:
        raise AssertionError("connected")

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
    done = support.run_script(source, loop=loop_name, flags=("-W", "error"))
    assert not done.stderr, done.stderr
