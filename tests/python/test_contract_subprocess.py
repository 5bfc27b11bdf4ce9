"""The contract of asyncio.SubprocessTransport: every method, its errors, and what does nothing."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import support
from support import eventually

CAT = ("cat",)


class Protocol(asyncio.SubprocessProtocol):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("connection_made")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("connection_lost")
        self.lost.set()


async def start(*command: str, **options: Any) -> tuple[Any, Protocol]:
    loop = asyncio.get_running_loop()
    options = {"stderr": None, **options}
    return await loop.subprocess_exec(Protocol, *(command or CAT), **options)


async def finish(transport: Any, protocol: Protocol) -> None:
    """End the child by closing its standard input, and wait for the transport's own end."""
    stdin = transport.get_pipe_transport(0)
    if stdin is not None:
        stdin.close()
    await protocol.lost.wait()
    transport.close()


def test_type_and_methods(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start()
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert isinstance(transport, asyncio.BaseTransport)
        for name, method in inspect.getmembers(asyncio.SubprocessTransport, inspect.isfunction):
            if not name.startswith("_"):
                ours = inspect.signature(getattr(transport, name))
                asyncios = list(inspect.signature(method).parameters)[1:]
                assert list(ours.parameters) == asyncios, name
        transport.attribute = "settable"
        assert transport.attribute == "settable"
        await finish(transport, protocol)

    run(main)


def test_get_pid(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start()
        pid = transport.get_pid()
        assert support.living_children()[pid] in "RSD"
        assert pid == transport.get_extra_info("subprocess").pid
        await finish(transport, protocol)
        assert transport.get_pid() == pid

    run(main)


def test_get_returncode(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start("/bin/sh", "-c", "read line; exit 3")
        assert transport.get_returncode() is None
        await finish(transport, protocol)
        assert transport.get_returncode() == 3

        transport, protocol = await start("sleep", "60")
        transport.send_signal(signal.SIGINT)
        await finish(transport, protocol)
        assert transport.get_returncode() == -signal.SIGINT

    run(main)


def test_get_pipe_transport(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stdin, stdout = transport.get_pipe_transport(0), transport.get_pipe_transport(1)
        assert isinstance(stdin, asyncio.WriteTransport)
        assert isinstance(stdout, asyncio.ReadTransport)
        # Not a PIPE, and no such descriptor at all.
        assert transport.get_pipe_transport(2) is None
        for fd in (3, -1, 10**6, "1", None):
            assert transport.get_pipe_transport(fd) is None
        assert transport.get_pipe_transport(0) is stdin
        await finish(transport, protocol)
        # They can be had after the end, closed.
        assert transport.get_pipe_transport(0) is stdin
        assert stdin.is_closing()

    run(main)


@pytest.mark.parametrize("kind", [None, subprocess.DEVNULL, "fd"], ids=["None", "DEVNULL", "fd"])
def test_no_pipe_transport(run: Any, kind: Any) -> None:
    async def main() -> None:
        devnull = os.open(os.devnull, os.O_RDWR)
        try:
            given = devnull if kind == "fd" else kind
            transport, protocol = await start("true", stdin=given, stdout=given, stderr=given)
            assert [transport.get_pipe_transport(fd) for fd in range(3)] == [None] * 3
            await finish(transport, protocol)
        finally:
            os.close(devnull)

    run(main)


def test_stderr_with_stdout(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start(stderr=subprocess.STDOUT)
        assert transport.get_pipe_transport(1) is not None
        assert transport.get_pipe_transport(2) is None
        await finish(transport, protocol)

    run(main)


def test_get_extra_info(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start()
        popen = transport.get_extra_info("subprocess")
        assert type(popen) is subprocess.Popen
        assert popen.args == CAT
        assert transport.get_extra_info("missing") is None
        assert transport.get_extra_info("missing", "default") == "default"
        assert transport.get_extra_info("pipe") is None
        await finish(transport, protocol)
        assert transport.get_extra_info("subprocess") is popen
        assert popen.returncode == 0

    run(main)


SIGNALS: dict[str, tuple[Callable[[Any], None], int]] = {
    "send_signal": (lambda transport: transport.send_signal(signal.SIGUSR1), -signal.SIGUSR1),
    "send_signal by number": (lambda transport: transport.send_signal(10), -10),
    "send_signal by name": (lambda transport: transport.send_signal(signal=15), -15),
    "terminate": (lambda transport: transport.terminate(), -signal.SIGTERM),
    "kill": (lambda transport: transport.kill(), -signal.SIGKILL),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_signals(run: Any, name: str) -> None:
    """Each arrives, may be repeated, and raises ProcessLookupError once the transport has ended."""
    send, code = SIGNALS[name]

    async def main() -> None:
        transport, protocol = await start()
        transport.send_signal(0)
        assert send(transport) is None  # type: ignore[func-returns-value]
        send(transport)
        await protocol.lost.wait()
        assert transport.get_returncode() == code
        assert not transport.is_closing()
        for _ in range(2):
            with pytest.raises(ProcessLookupError) as caught:
                send(transport)
            assert caught.value.args == ()
        transport.close()
        with pytest.raises(ProcessLookupError):
            send(transport)

    run(main)


def test_signals_between_exit_and_end(run: Any) -> None:
    """The child has exited and a pipe is still held: nothing is sent, nothing is raised."""

    async def main() -> None:
        held, holder = os.pipe()
        transport, protocol = await start(
            "/bin/sh", "-c", f"(head -c1 /proc/self/fd/{held} >/dev/null; true) &", pass_fds=[held]
        )
        os.close(held)
        await eventually(lambda: transport.get_returncode() == 0)
        transport.send_signal(signal.SIGTERM)
        transport.terminate()
        transport.kill()
        await asyncio.sleep(0.01)
        assert transport.get_returncode() == 0
        assert "connection_lost" not in protocol.calls
        os.close(holder)
        await protocol.lost.wait()
        transport.close()

    run(main)


def test_close_of_a_living_child(run: Any) -> None:
    """close() closes the pipes and kills; is_closing() says so; again it does nothing."""

    async def main() -> None:
        transport, protocol = await start("sleep", "60")
        assert transport.is_closing() is False
        assert transport.close() is None
        assert transport.is_closing() is True
        assert transport.get_returncode() is None
        assert transport.get_pipe_transport(0).is_closing()
        assert transport.get_pipe_transport(1).is_closing()
        transport.close()
        await protocol.lost.wait()
        assert transport.get_returncode() == -signal.SIGKILL
        transport.close()
        assert protocol.calls == ["connection_made", "connection_lost"]

    run(main)


def test_close_after_the_end(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start("true")
        transport.get_pipe_transport(0).close()
        await protocol.lost.wait()
        assert transport.is_closing() is False
        transport.close()
        assert transport.is_closing() is True
        transport.close()
        assert transport.get_returncode() == 0

    run(main)


def test_close_at_once(run: Any) -> None:
    """Before connection_made() was called."""

    async def main() -> None:
        transport, protocol = await start("sleep", "60")
        transport.close()
        await protocol.lost.wait()
        assert protocol.calls == ["connection_made", "connection_lost"]
        assert transport.get_returncode() == -9

    run(main)


def test_protocols(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start()
        assert transport.get_protocol() is protocol
        second = Protocol()
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        await finish(transport, second)
        assert transport.get_protocol() is None

    run(main)


def test_repr(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start("sleep", "60", stdin=None, stdout=None)
        pid = transport.get_pid()
        assert repr(transport) == f"<_UnixSubprocessTransport pid={pid} running>"
        transport.close()
        assert repr(transport) == f"<_UnixSubprocessTransport closed pid={pid} running>"
        await protocol.lost.wait()
        assert repr(transport) == f"<_UnixSubprocessTransport closed pid={pid} returncode=-9>"

    run(main)


def test_unclosed_transport_warns(run: Any) -> None:
    """A transport dropped without close() warns, as asyncio's does."""

    async def main() -> None:
        with pytest.warns(ResourceWarning) as caught:
            transport, protocol = await start("true", stdin=None, stdout=None)
            await protocol.lost.wait()
            del transport, protocol
            import gc

            await support.turns(2)
            gc.collect()
        texts = [support.normalise(str(one.message)) for one in caught]
        assert "unclosed transport <_UnixSubprocessTransport pid=… returncode=0>" in texts

    run(main, check_warnings=False)


# What any of the others is called with, to find those that would crash on odd arguments.
ODD: dict[str, Callable[[Any], Any]] = {
    "send_signal()": lambda transport: transport.send_signal(),
    "send_signal(1, 2)": lambda transport: transport.send_signal(1, 2),
    "terminate(1)": lambda transport: transport.terminate(1),
    "kill(None)": lambda transport: transport.kill(None),
    "get_pid(1)": lambda transport: transport.get_pid(1),
    "get_returncode(1)": lambda transport: transport.get_returncode(1),
    "get_pipe_transport()": lambda transport: transport.get_pipe_transport(),
    "get_pipe_transport([])": lambda transport: transport.get_pipe_transport([]),
    "close(1)": lambda transport: transport.close(1),
    "is_closing(1)": lambda transport: transport.is_closing(1),
    "get_extra_info()": lambda transport: transport.get_extra_info(),
    "set_protocol()": lambda transport: transport.set_protocol(),
}


@pytest.mark.parametrize("call", ODD)
def test_wrong_arguments(call: str) -> None:
    async def scenario(env: support.Env) -> None:
        transport, protocol = await start()
        try:
            ODD[call](transport)
        except TypeError as exc:
            # The class that is named is the one that has the method.
            env.log("raised", str(exc).rpartition(".")[2])
        await finish(transport, protocol)

    assert support.compare(scenario)[0][0] == "raised"


def test_python_child_sees_its_end_of_input(run: Any) -> None:
    async def main() -> None:
        transport, protocol = await start(
            sys.executable, "-c", "input()", stderr=subprocess.DEVNULL
        )
        await finish(transport, protocol)
        # EOFError, which ends the interpreter with status 1.
        assert transport.get_returncode() == 1

    run(main)
