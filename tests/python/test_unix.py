"""Unix stream sockets: servers, clients, abstract names, and whose file it is to remove."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import support
from support import Env, Recorder, turns

HAS_CLEANUP = sys.version_info >= (3, 13)


async def talk(loop: asyncio.AbstractEventLoop, path: Any, rec: Recorder) -> None:
    """One round trip with the echo server at PATH."""
    transport, _ = await loop.create_unix_connection(lambda: rec, path)
    transport.write(b"ping")
    await rec.until_received(4)
    transport.close()
    await rec.until("connection_lost")


def echo() -> Recorder:
    return Recorder(on={"data_received": lambda rec, data: rec.transport.write(data)})


@pytest.mark.parametrize("form", ["str", "Path", "bytes", "abstract", "abstract bytes"])
def test_round_trip(run: Any, short_tmp: Path, form: str) -> None:
    async def main(env: Env) -> None:
        path: Any = {
            "str": str(short_tmp / "s"),
            "Path": short_tmp / "s",
            "bytes": os.fsencode(short_tmp / "s"),
            "abstract": f"\0cpploop-test-{os.getpid()}",
            "abstract bytes": f"\0cpploop-test-b-{os.getpid()}".encode(),
        }[form]
        server = await env.loop.create_unix_server(echo, path)
        assert server.sockets[0].family == socket.AF_UNIX
        await talk(env.loop, path, Recorder())
        await turns(3)
        server.close()
        await server.wait_closed()

    run(main)


def test_names_on_both_sides() -> None:
    """uv#28"""

    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            path = str(directory / "s")
            rec, client = Recorder(), Recorder()
            server = await env.loop.create_unix_server(lambda: rec, path)
            transport, _ = await env.loop.create_unix_connection(lambda: client, path)
            await rec.until("connection_made")
            for name, side in (("client", transport), ("server", rec.transport)):
                for key in ("sockname", "peername"):
                    value = side.get_extra_info(key)
                    env.log(name, key, "the path" if value == path else value)
                env.log(type(side.get_extra_info("socket")))
            transport.close()
            await rec.until("connection_lost")
            server.close()
            await server.wait_closed()

    support.compare(scenario)


def test_stale_socket_is_replaced_and_other_files_are_not() -> None:
    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            stale = directory / "stale"
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(stale))
            server = await env.loop.create_unix_server(echo, stale)
            await talk(env.loop, str(stale), Recorder())
            await turns(3)
            server.close()
            await server.wait_closed()

            plain = directory / "plain"
            plain.write_text("precious")
            try:
                await env.loop.create_unix_server(echo, plain)
            except OSError as exc:
                env.log(type(exc), exc.errno)
            env.log(plain.read_text())

            missing = directory / "missing" / "s"
            try:
                await env.loop.create_unix_server(echo, missing)
            except OSError as exc:
                env.log(type(exc), exc.errno)

    support.compare(scenario)


@pytest.mark.parametrize("cleanup", [None, True, False])
def test_cleanup_socket(cleanup: bool | None) -> None:
    """The file is removed at close, on the Pythons that do so, unless told otherwise.

    uv#623, cpy#121252.
    """
    if cleanup is not None and not HAS_CLEANUP:
        pytest.skip("cleanup_socket came with Python 3.13")
    kwargs = {} if cleanup is None else {"cleanup_socket": cleanup}

    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            path = directory / "s"
            server = await env.loop.create_unix_server(echo, path, **kwargs)
            env.log("exists", path.exists())
            server.close()
            await server.wait_closed()
            await turns(2)
            env.log("exists after close", path.exists())
            # A second life at the same place.
            server = await env.loop.create_unix_server(echo, path, **kwargs)
            server.close()
            server.close()
            await server.wait_closed()
            env.log("exists after close", path.exists())

    support.compare(scenario)


def test_cleanup_socket_is_unknown_to_older_pythons() -> None:
    if HAS_CLEANUP:
        pytest.skip("this Python knows it")

    async def scenario(env: Env) -> None:
        with support.short_directory() as directory, pytest.raises(TypeError):
            await env.loop.create_unix_server(echo, directory / "s", cleanup_socket=True)

    support.compare(scenario)


def test_a_socket_that_is_not_ours_is_not_removed() -> None:
    """Replaced by somebody else, or already gone: left alone (cpy#133354)."""

    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            path = directory / "s"
            server = await env.loop.create_unix_server(echo, path)
            os.unlink(path)
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
                server.close()
                await server.wait_closed()
                env.log("foreign socket exists", path.exists())

            path = directory / "t"
            server = await env.loop.create_unix_server(echo, path)
            os.unlink(path)
            server.close()
            await server.wait_closed()

            path = directory / "u"
            server = await env.loop.create_unix_server(echo, path)
            os.unlink(path)
            path.write_text("precious")
            server.close()
            await server.wait_closed()
            env.log("foreign file exists", path.exists())

    support.compare(scenario)


def test_socket_handed_in() -> None:
    """A bound socket passed by sock=: serves, and its file is treated as on asyncio."""

    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            path = directory / "s"
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(str(path))
            server = await env.loop.create_unix_server(echo, sock=sock)
            await talk(env.loop, str(path), Recorder())
            await turns(3)
            server.close()
            await server.wait_closed()
            env.log("exists", path.exists(), sock.fileno())

    support.compare(scenario)


def test_permissions_are_the_callers(run: Any, short_tmp: Path) -> None:
    """The umask decides, and nobody changes it (uvicorn#339)."""

    async def main(env: Env) -> None:
        before = os.umask(0o077)
        try:
            server = await env.loop.create_unix_server(echo, short_tmp / "s")
            assert stat.S_IMODE(os.stat(short_tmp / "s").st_mode) & 0o077 == 0
            assert os.umask(0o077) == 0o077
        finally:
            os.umask(before)
        server.close()
        await server.wait_closed()

    run(main)


def test_backlog_and_start_serving(run: Any, short_tmp: Path) -> None:
    """uv#205"""

    async def main(env: Env) -> None:
        path = str(short_tmp / "s")
        server = await env.loop.create_unix_server(echo, path, backlog=1, start_serving=False)
        assert not server.is_serving()
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(path)
        await server.start_serving()
        assert server.is_serving()
        await talk(env.loop, path, Recorder())
        await turns(3)
        server.close()
        await server.wait_closed()

    run(main)


@pytest.mark.parametrize("number", range(11))
def test_arguments_that_do_not_fit(number: int) -> None:
    async def scenario(env: Env) -> None:
        loop = env.loop
        sock = socket.socket(socket.AF_INET)
        udp = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        unix = socket.socket(socket.AF_UNIX)
        calls: list[Any] = [
            lambda: loop.create_unix_server(echo),
            lambda: loop.create_unix_server(echo, "/tmp/x", sock=unix),
            lambda: loop.create_unix_server(echo, sock=sock),
            lambda: loop.create_unix_server(echo, sock=udp),
            lambda: loop.create_unix_server(echo, "/tmp/x", ssl=True),
            lambda: loop.create_unix_server(echo, "/tmp/x", ssl_handshake_timeout=1),
            lambda: loop.create_unix_connection(Recorder),
            lambda: loop.create_unix_connection(Recorder, "/tmp/x", sock=unix),
            lambda: loop.create_unix_connection(Recorder, sock=sock),
            lambda: loop.create_unix_connection(Recorder, "/tmp/x", server_hostname="x"),
            lambda: loop.create_unix_connection(Recorder, "/tmp/x", ssl_shutdown_timeout=1),
        ]
        try:
            result = await calls[number]()
        except Exception as exc:
            # The repr of the socket inside the text differs.
            env.log(type(exc), str(exc).split("<")[0])
        else:
            env.log("accepted", type(result))
        for one in (sock, udp, unix):
            one.close()

    support.compare(scenario)


def test_connection_to_nobody() -> None:
    async def scenario(env: Env) -> None:
        with support.short_directory() as directory:
            for path in (directory / "missing", directory / ("x" * 200)):
                try:
                    await env.loop.create_unix_connection(Recorder, path)
                except OSError as exc:
                    env.log(type(exc), exc.errno)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(directory / "refuses"))
                try:
                    await env.loop.create_unix_connection(Recorder, directory / "refuses")
                except OSError as exc:
                    env.log(type(exc), exc.errno)

    support.compare(scenario)


def test_connection_over_a_socket_handed_in(run: Any) -> None:
    async def main(env: Env) -> None:
        sock, peer = support.unix_pair()
        rec = Recorder()
        transport, _ = await env.loop.create_unix_connection(lambda: rec, sock=sock)
        transport.write(b"hello")
        assert await support.recv_exactly(peer, 5) == b"hello"
        transport.close()
        await rec.until("connection_lost")
        peer.close()
        await turns(1)
        assert sock.fileno() == -1

    run(main)


def test_many_clients(run: Any, short_tmp: Path) -> None:
    async def main(env: Env) -> None:
        path = str(short_tmp / "s")
        server = await env.loop.create_unix_server(echo, path)
        await asyncio.gather(*(talk(env.loop, path, Recorder()) for _ in range(60)))
        await turns(3)
        server.close()
        await server.wait_closed()

    run(main)


def test_tls_over_unix(run: Any, short_tmp: Path, certs: support.Certificates) -> None:
    async def main(env: Env) -> None:
        path = str(short_tmp / "s")
        server = await env.loop.create_unix_server(echo, path, ssl=certs.server_context())
        rec = Recorder()
        transport, _ = await env.loop.create_unix_connection(
            lambda: rec, path, ssl=certs.client_context(), server_hostname="localhost"
        )
        transport.write(b"ping")
        await rec.until_received(4)
        transport.close()
        await rec.until("connection_lost")
        await asyncio.sleep(0.02)
        server.close()
        await server.wait_closed()

    run(main)
