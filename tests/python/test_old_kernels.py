"""Old and fenced kernels: system calls that are refused, and what stands in for them.

RHEL 8's 4.18 knows neither pidfd_open nor epoll_pwait2; filters of containers and gVisor refuse
what they do not know, with ENOSYS or with EPERM. Each call is taken away for real (see fence.py),
alone and with all the others.
"""

from __future__ import annotations

import errno
import textwrap

import fence
import pytest
import support

ERRORS = {"ENOSYS": errno.ENOSYS, "EPERM": errno.EPERM}

PRELUDE = """
import asyncio, fcntl, os, signal, socket, sys, time
import fence

calls, error = sys.argv[1].split(","), int(sys.argv[2])
fence.refuse(calls, error)
# And those that Python itself makes, where it knows them.
for module, name in ((os, "pidfd_open"), (signal, "pidfd_send_signal")):
    if name in calls and hasattr(module, name):
        try:
            getattr(module, name)(0, 0)
        except OSError as exc:
            assert exc.errno == error, exc
        else:
            raise AssertionError(f"{name} is not refused")

def run(main):
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())
"""

TIMERS = """
async def main():
    loop = asyncio.get_running_loop()
    for delay in (0.0003, 0.001, 0.0105, 0.05):
        begun = loop.time()
        due = loop.create_future()
        loop.call_later(delay, due.set_result, None)
        await due
        took = loop.time() - begun
        assert delay <= took < delay + 1, (delay, took)
    # Nothing is due for long: the wait is for a wake-up.
    cpu = time.thread_time()
    await asyncio.sleep(0.2)
    assert time.thread_time() - cpu < 0.1, "it spins"

run(main)
"""

SERVER = """
async def main():
    loop = asyncio.get_running_loop()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            fd = transport.get_extra_info("socket").fileno()
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK

        def data_received(self, data):
            self.transport.write(data)

        def eof_received(self):
            pass

    for _ in range(2):
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()

        async def call(number):
            reader, writer = await asyncio.open_connection(*address)
            sent = b"%d " % number * 20_000
            writer.write(sent)
            writer.write_eof()
            assert await reader.read() == sent
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*map(call, range(20)))
        server.close()
        await server.wait_closed()

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    accepting = asyncio.ensure_future(loop.sock_accept(listener))
    await asyncio.sleep(0)
    client = socket.create_connection(listener.getsockname())
    accepted, peer = await accepting
    assert peer == client.getsockname()
    assert not accepted.getblocking() and not accepted.get_inheritable()
    client.sendall(b"hello")
    assert await loop.sock_recv(accepted, 100) == b"hello"
    for sock in (listener, accepted, client):
        sock.close()

run(main)
"""

DATAGRAMS = """
async def main():
    loop = asyncio.get_running_loop()

    class Collect(asyncio.DatagramProtocol):
        def __init__(self):
            self.got = []

        def datagram_received(self, data, address):
            self.got.append((data, address))

        def error_received(self, exc):
            raise exc

    transport, protocol = await loop.create_datagram_endpoint(
        Collect, local_addr=("127.0.0.1", 0)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sent = [b"", b"x", b"y" * 60_000] + [b"%d" % index for index in range(40)]
        for data in sent:
            sender.sendto(data, transport.get_extra_info("sockname"))
        while len(protocol.got) < len(sent):
            await asyncio.sleep(0.001)
        assert protocol.got == [(data, sender.getsockname()) for data in sent]
    transport.close()

run(main)
"""

CHILDREN = """
async def main():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print(input() * 2); raise SystemExit(3)",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(b"ab\\n")
    assert (output, process.returncode) == (b"abab\\n", 3)
    for method, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
        process = await asyncio.create_subprocess_exec("sleep", "60")
        getattr(process, method)()
        assert await process.wait() == -number
    processes = [await asyncio.create_subprocess_exec("true") for _ in range(5)]
    assert [await process.wait() for process in processes] == [0] * 5

run(main)
"""

SCRIPTS = {
    "epoll_pwait2": TIMERS,
    "accept4": SERVER,
    "recvmmsg": DATAGRAMS,
    "pidfd_open": CHILDREN,
    "pidfd_send_signal": CHILDREN,
}


def fenced(loop: str, script: str, calls: list[str], error: str) -> str:
    if loop == "asyncio" and error == "EPERM" and script is SERVER:
        pytest.skip("Python's socket.accept() knows no way around EPERM, only around ENOSYS")
    result = support.run_script(
        PRELUDE + script, ",".join(calls), str(ERRORS[error]), loop=loop, check=False
    )
    if result.returncode == fence.CANNOT:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", fence.CALLS)
def test_one_call_is_refused(loop_name: str, call: str, error: str) -> None:
    fenced(loop_name, SCRIPTS[call], [call], error)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("what", ["epoll_pwait2", "accept4", "recvmmsg", "pidfd_open"])
def test_all_of_them_are_refused(loop_name: str, what: str, error: str) -> None:
    """The oldest kernel there is, seen from each thing that a loop does."""
    fenced(loop_name, SCRIPTS[what], list(fence.CALLS), error)


@pytest.mark.parametrize("error", ERRORS)
def test_the_build_info_tells(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The ring waits with a deadline of its own.
    monkeypatch.setenv("CPPLOOP_BACKEND", "epoll")
    if "cpploop" not in support.selected_loops():
        pytest.skip("about cpploop alone, which is not selected")
    script = """
    import cpploop

    print(cpploop.build_info()["timed_wait"])
    async def main():
        await asyncio.sleep(0.001)
    run(main)
    print(cpploop.build_info()["timed_wait"])
    """
    output = fenced("cpploop", textwrap.dedent(script), ["epoll_pwait2"], error)
    assert output.splitlines() == ["epoll_pwait2", "epoll_wait, whole milliseconds"]
