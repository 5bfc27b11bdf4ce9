"""Rows of users' troubles about transports (C5, C8, C11, C15), and tools that look from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import support
from support import Env, Recorder, turns

# --------------------------------------------------------------------------- C8: writes too late


@contextlib.asynccontextmanager
async def connected(
    env: Env, kind: str, rec: Recorder, certs: support.Certificates
) -> AsyncIterator[Any]:
    """A transport of KIND whose far end reads what comes."""
    loop = env.loop
    if kind == "pipe":
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb", 0):
            transport, _ = await loop.connect_write_pipe(lambda: rec, os.fdopen(writing, "wb", 0))
            yield transport
            return
    first, second = (support.unix_pair if kind == "unix" else support.tcp_pair)()
    if kind != "tls":
        try:
            transport, _ = await support.attach(first, rec)
            yield transport
        finally:
            second.close()
        return
    far = Recorder()
    (transport, _), _ = await asyncio.gather(
        loop.create_connection(
            lambda: rec, sock=first, ssl=certs.client_context(), server_hostname="localhost"
        ),
        loop.connect_accepted_socket(lambda: far, second, ssl=certs.server_context()),
    )
    yield transport
    await far.until("connection_lost")


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("kind", ["tcp", "unix", "tls", "pipe"])
def test_writes_after_the_end(certs: support.Certificates, kind: str, end: str) -> None:
    """C8, uv#506, uv#685: dropped without an exception, and asyncio's warning after the fifth."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with connected(env, kind, rec, certs) as transport:
            transport.write(b"in time")
            getattr(transport, end)()
            for number in range(4):
                env.log(number, transport.write(b"late"), transport.is_closing())
            await rec.until("connection_lost")
            for number in range(4):
                # Older asyncios take a lost TLS transport apart, and then its write() fails.
                with contextlib.suppress(AttributeError):
                    transport.write(b"later")
                env.log(number, transport.is_closing())
            await turns(2)

    trace = support.compare(scenario)
    assert sum(entry[0] == "connection_lost" for entry in trace) == 1
    if kind != "tls":
        assert any(entry[0] == "log" for entry in trace)


# --------------------------------------------------------------------------- C11: ways to write


def write_paths(transport: Any) -> dict[str, Any]:
    return {
        "write bytes": lambda data: transport.write(data),
        "write bytearray": lambda data: transport.write(bytearray(data)),
        "write view": lambda data: transport.write(memoryview(data)),
        "writelines": lambda data: transport.writelines([data[:1000], b"", data[1000:]]),
        "writelines of one": lambda data: transport.writelines([data]),
    }


@pytest.mark.parametrize("path", write_paths(None))
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_every_way_to_write_obeys_the_marks(run: Any, loop_name: str, kind: str, path: str) -> None:
    """C11, cpy#127655: paused exactly while more than the high mark is buffered, by every way."""
    if loop_name == "asyncio" and not support.asyncio_writelines_has("_maybe_pause_protocol"):
        pytest.skip("the running asyncio has the bug")

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec, kind) as (transport, peer):
            write = write_paths(transport)[path]
            high = transport.get_write_buffer_limits()[1]
            sent = bytearray()
            for number in range(200):
                data = bytes([number]) * (10_000 + number)
                write(data)
                sent += data
                size = transport.get_write_buffer_size()
                paused = rec.count("pause_writing") > rec.count("resume_writing")
                assert paused == (size > high), (number, size)
                if paused:
                    break
                if number % 3 == 0:
                    await turns(1)
            assert rec.count("pause_writing") == 1
            assert bytes(await support.recv_exactly(peer, len(sent))) == bytes(sent)
            await support.eventually(lambda: rec.count("resume_writing") == 1)

    run(main)


def test_a_file_sent_behind_a_full_buffer_obeys_the_marks(run: Any, tmp_path: Any) -> None:
    """C11: sendfile waits for the buffer and adds nothing to it."""
    (tmp_path / "file").write_bytes(b"f" * 300_000)

    async def main(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            written = await support.fill(transport)
            level = transport.get_write_buffer_size()
            with (tmp_path / "file").open("rb") as file:
                sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                await turns(5)
                assert transport.get_write_buffer_size() <= level
                got = await support.recv_exactly(peer, written + 300_000)
                assert await sending == 300_000
            assert got.count(b"f") == 300_000
            assert got.endswith(b"f" * 300_000)
            assert rec.count("pause_writing") == rec.count("resume_writing")

    run(main)


# --------------------------------------------------------------------------- C15: order and reasons


@pytest.mark.parametrize("answer", [True, False, None])
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_writing_inside_eof_received(answer: bool | None, size: int) -> None:
    """C15, zuv#67: a write from inside eof_received() goes out, and the end is told once."""

    async def scenario(env: Env) -> None:
        def ended(rec: Recorder) -> bool | None:
            rec.transport.write(b"x" * size)
            env.log("reading", rec.transport.is_reading(), rec.transport.is_closing())
            return answer

        rec = Recorder(env, on={"eof_received": ended})
        async with support.transport_pair(rec, "unix") as (transport, peer):
            peer.shutdown(socket.SHUT_WR)
            env.log("got", len(await support.recv_exactly(peer, size)))
            await turns(3)
            env.log(transport.is_closing(), rec.count("eof_received"))
            # Resuming after the end must not find it a second time where asyncio does not.
            transport.resume_reading()
            await turns(3)
            env.log(rec.count("eof_received"))

    support.compare(scenario)


@pytest.mark.parametrize("then", ["nothing", "close", "abort", "write"])
def test_the_first_reason_stays(then: str) -> None:
    """C15, zuv#16: what is done to a connection that failed does not change why it was lost."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            await support.fill(transport)
            support.reset(peer)
            await support.eventually(transport.is_closing)
            if then == "write":
                transport.write(b"more")
            elif then != "nothing":
                getattr(transport, then)()
            await rec.until("connection_lost")
            await turns(2)

    trace = [entry for entry in support.compare(scenario) if entry[0] == "connection_lost"]
    assert len(trace) == 1
    assert "Error" in str(trace[0][1])


def test_a_protocol_that_raises_hears_nothing_more() -> None:
    """C15, zuv#23: after data_received() raised, nothing but connection_lost() is called."""

    async def scenario(env: Env) -> None:
        def fail(rec: Recorder, data: bytes) -> None:
            raise ValueError("no more")

        rec = Recorder(env, on={"data_received": fail})
        async with support.transport_pair(rec, "unix") as (transport, peer):
            peer.send(b"first")
            await rec.until("data_received")
            with contextlib.suppress(OSError):
                peer.send(b"second")
            await rec.until("connection_lost")
            await turns(3)
            env.log(rec.count("data_received"), transport.is_closing())

    trace = support.compare(scenario)
    assert trace[-2][1:] == (1, True) or trace[-2] == (1, True)


# --------------------------------------------------------------------------- C5: what a user can do


def test_descriptors_closed_behind_the_loops_back(run: Any) -> None:
    """C5, uv#311, aiohttp#925: numbers that are closed while they are watched, in every order, and
    taken again: an error at the most, never the end of the process."""

    async def main(env: Env) -> None:
        loop = env.loop
        for number in range(40):
            first, second = support.unix_pair()
            fd = first.fileno()
            loop.add_reader(fd, lambda: None)
            if number % 2:
                loop.add_writer(fd, lambda: None)
            first.close()
            if number % 4 < 2:
                await turns(1)
            newcomer, far = support.unix_pair()
            assert fd in (newcomer.fileno(), far.fileno())
            seen: list[bytes] = []

            def read(sock: Any = newcomer, to: Any = seen) -> None:
                to.append(sock.recv(100))

            # asyncio keeps the dead registration and may refuse to change it.
            with contextlib.suppress(OSError, ValueError, KeyError):
                loop.remove_reader(fd)
            with contextlib.suppress(OSError, ValueError, KeyError):
                loop.remove_writer(fd)
            loop.add_reader(newcomer, read)
            far.send(b"alive")
            await support.eventually(lambda seen=seen: seen)
            assert seen == [b"alive"]
            loop.remove_reader(newcomer)
            for sock in (second, newcomer, far):
                sock.close()
            await turns(1)

    run(main)


# --------------------------------------------------------------------------- seeing tasks


@pytest.mark.skipif(sys.version_info < (3, 14), reason="python -m asyncio ps came with 3.14")
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_python_m_asyncio_sees_the_tasks(loop_name: str, command: str) -> None:
    """Section 5: the tools that look into a process from outside find its tasks on this loop.

    They read a task's coroutine as if it were Python's own, which sock_recv()'s is not.
    """
    source = """
        import asyncio, socket

        async def waiting_inside():
            await asyncio.sleep(3600)

        async def receiving_inside(sock):
            await asyncio.get_running_loop().sock_recv(sock, 1)

        async def main():
            loop = asyncio.get_running_loop()
            first, second = socket.socketpair()
            first.setblocking(False)
            second.setblocking(False)
            tasks = [
                asyncio.create_task(waiting_inside(), name="the one to find"),
                asyncio.create_task(loop.sock_recv(first, 1), name="the one that receives"),
                asyncio.create_task(receiving_inside(second), name="the one that awaits it"),
            ]
            await asyncio.sleep(0)
            print("ready", flush=True)
            await asyncio.wait(tasks)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
    """
    with subprocess.Popen(
        support.script_command(source, loop_name), stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            found = subprocess.run(
                [sys.executable, "-m", "asyncio", command, str(child.pid)],
                capture_output=True,
                text=True,
                timeout=30 * support.TIME_SCALE,
            )
        finally:
            child.kill()
    # 3.14 prints this to the one, 3.15 to the other.
    if "cannot be attached to due to insufficient permissions" in found.stdout + found.stderr:
        pytest.skip("this machine lets no process look into another")
    assert found.returncode == 0, found.stdout + found.stderr
    for name in ("the one to find", "the one that receives", "the one that awaits it"):
        assert name in found.stdout
    for coroutine in ("waiting_inside", "receiving_inside"):
        assert coroutine in found.stdout
