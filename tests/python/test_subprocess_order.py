"""The order of a subprocess protocol's callbacks, traced on both loops and compared.

Where the kernel decides what comes first (a child's end or that of its pipes), the children here
are made to wait, so that there is one order to expect.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import support
from support import eventually


class Recorder(asyncio.SubprocessProtocol):
    """Logs each callback, pieces of one pipe joined; ON says what else happens in a callback."""

    def __init__(self, env: support.Env, on: dict[str, Callable[..., Any]] | None = None) -> None:
        self.env = env
        self.on = on or {}
        self.lost = asyncio.Event()
        self.exited = asyncio.Event()
        self.received: dict[int, bytes] = {0: b"", 1: b"", 2: b""}

    def _call(self, name: str, *args: Any) -> None:
        self.env.log(name, *args)
        if name in self.on:
            self.on[name](self, *args)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._call("connection_made", type(transport).__name__)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.received[fd] += data
        last = self.env.trace[-1]
        if last[:2] == ("pipe_data_received", fd):
            self.env.trace[-1] = (*last[:2], support.summarise(self.received[fd]))
        else:
            self._call("pipe_data_received", fd, self.received[fd])

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._call("pipe_connection_lost", fd, exc)

    def process_exited(self) -> None:
        self._call("process_exited", self.transport.get_returncode())
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._call("connection_lost", exc)
        self.lost.set()

    def pause_writing(self) -> None:
        self._call("pause_writing")

    def resume_writing(self) -> None:
        self._call("resume_writing")


async def start(env: support.Env, script: str, on: Any = None, **options: Any) -> Any:
    transport, protocol = await asyncio.get_running_loop().subprocess_shell(
        lambda: Recorder(env, on), script, **options
    )
    # connection_made() is called in a later turn than this returns, or in an earlier one.
    env.log("started")
    return transport, protocol


def names(trace: list[Any]) -> list[str]:
    return [entry[0] for entry in trace]


def test_child_ends_before_its_pipes() -> None:
    """process_exited() while a grandchild holds the pipes, connection_lost() after them."""

    async def scenario(env: support.Env) -> None:
        held, holder = os.pipe()
        transport, protocol = await start(
            env,
            f"(head -c1 /proc/self/fd/{held} >/dev/null; echo late) & echo early; exit 3",
            stdin=None,
            stderr=subprocess.DEVNULL,
            pass_fds=[held],
        )
        os.close(held)
        await protocol.exited.wait()
        await eventually(lambda: protocol.received[1] == b"early\n")
        env.trace.sort(key=str)
        env.log("waiting")
        os.close(holder)
        await protocol.lost.wait()
        transport.close()

    trace = support.compare(scenario)
    after = trace[trace.index(("waiting",)) + 1 :]
    assert names(after) == [
        "pipe_data_received",
        "pipe_connection_lost",
        "connection_lost",
        "result",
    ]


def test_pipes_end_before_the_child() -> None:
    async def scenario(env: support.Env) -> None:
        transport, protocol = await start(
            env, "echo out; exec >&-; echo err >&2; exec 2>&-; read line; exit 5"
        )
        await eventually(lambda: names(env.trace).count("pipe_connection_lost") == 2)
        # Two pipes: which of them the kernel reports first is nobody's promise.
        env.trace.sort(key=str)
        env.log("waiting")
        transport.get_pipe_transport(0).write(b"end\n")
        await protocol.lost.wait()
        # So are the child and the pipe that it reads from.
        waiting = env.trace.index(("waiting",)) + 1
        env.trace[waiting:-1] = sorted(env.trace[waiting:-1], key=str)
        transport.close()

    trace = support.compare(scenario)
    assert names(trace).count("connection_lost") == 1
    assert names(trace)[-2:] == ["connection_lost", "result"]
    assert ("process_exited", 5) in trace


@pytest.mark.parametrize(
    "stdio", [{"stdin": None, "stdout": None, "stderr": None}, {"stdin": None, "stderr": None}]
)
def test_short_life(stdio: dict[str, Any]) -> None:
    """connection_made() comes first however short the child's life was."""

    async def scenario(env: support.Env) -> None:
        transport, protocol = await start(env, "exit 0", **stdio)
        await protocol.lost.wait()
        assert names(env.trace)[-1] == "connection_lost"
        # The end of a child and that of its pipe come in one turn or in two.
        env.trace[1:-1] = sorted(env.trace[1:-1], key=str)
        transport.close()

    trace = support.compare(scenario)
    assert trace[0][0] in ("connection_made", "started")


def test_closed_by_the_protocol() -> None:
    """close() in connection_made(): the child is killed, every callback still comes."""

    async def scenario(env: support.Env) -> None:
        def close(protocol: Recorder, *_: Any) -> None:
            protocol.transport.close()
            protocol.transport.close()
            env.log("closing", protocol.transport.is_closing())

        _, protocol = await start(env, "exec cat", {"connection_made": close})
        await protocol.lost.wait()
        assert names(env.trace)[-1] == "connection_lost"
        env.trace.sort(key=str)

    trace = support.compare(scenario)
    assert ("process_exited", -9) in trace
    assert names(trace).count("pipe_connection_lost") == 3


def test_flow_control() -> None:
    """pause_writing() and resume_writing() of the pipe are called on the subprocess protocol."""

    async def scenario(env: support.Env) -> None:
        transport, protocol = await start(
            env, "read go; exec cat >/dev/null", stdout=None, stderr=None
        )
        stdin = transport.get_pipe_transport(0)
        stdin.set_write_buffer_limits(high=1000, low=100)
        stdin.write(bytes(200_000))
        env.log("buffered", stdin.get_write_buffer_size() > 0)
        stdin.write(b"\n")
        await eventually(lambda: stdin.get_write_buffer_size() == 0)
        stdin.close()
        await protocol.lost.wait()
        transport.close()

    trace = support.compare(scenario)
    order = names(trace)
    assert order.index("pause_writing") < order.index("resume_writing")


@pytest.mark.parametrize("callback", ["process_exited", "pipe_connection_lost", "connection_made"])
def test_exceptions_in_callbacks(callback: str) -> None:
    """They go to the exception handler, and what follows comes all the same."""

    async def scenario(env: support.Env) -> None:
        def fail(protocol: Recorder, *_: Any) -> None:
            if callback == "process_exited":
                protocol.exited.set()
            raise ZeroDivisionError("in the callback")

        _, protocol = await start(env, "read line", {callback: fail}, stdout=None, stderr=None)
        await support.turns(2)
        env.log("before the end")
        protocol.transport.get_pipe_transport(0).close()
        await protocol.lost.wait()
        # The pipe is lost by our close(), before the child can end.
        protocol.transport.close()

    trace = support.compare(scenario)
    assert "exception handler" in names(trace)
    assert names(trace)[-2:] == ["connection_lost", "result"]


def test_protocol_changed() -> None:
    """set_protocol(): the callbacks that come later go to the new protocol."""

    async def scenario(env: support.Env) -> None:
        transport, protocol = await start(env, "read line", stdout=None, stderr=None)
        await support.turns(2)
        second = Recorder(env)
        second.transport = transport
        env.log("was", transport.get_protocol() is protocol)
        transport.set_protocol(second)
        env.log("is", transport.get_protocol() is second)
        transport.get_pipe_transport(0).close()
        await second.lost.wait()
        env.log("old one lost", protocol.lost.is_set())
        transport.close()

    trace = support.compare(scenario)
    assert ("old one lost", False) in trace
