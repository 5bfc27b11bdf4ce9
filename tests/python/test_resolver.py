"""getaddrinfo and getnameinfo."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import loop_names, open_loop, outcome


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def libc(*args: Any, **kwargs: Any) -> Any:
    """What socket.getaddrinfo itself says: the result, or the exception with its code."""
    try:
        return socket.getaddrinfo(*args, **kwargs)
    except (OSError, UnicodeError, TypeError, OverflowError) as exc:
        return type(exc).__name__, getattr(exc, "errno", None)


async def looped(*args: Any, **kwargs: Any) -> Any:
    try:
        return await asyncio.get_running_loop().getaddrinfo(*args, **kwargs)
    except (OSError, UnicodeError, TypeError, OverflowError) as exc:
        return type(exc).__name__, getattr(exc, "errno", None)


HOSTS: list[Any] = [
    "127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "127.1",
    "0x7f.1",
    "017700000001",
    "2130706433",
    "1.2.3",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%lo",
    "fe80::1%1",
    "::ffff:127.0.0.1",
    "localhost",
    "",
    None,
    b"127.0.0.1",
    b"::1",
    "127.0.0.1\0x",
]
# These are names, not addresses; that they are is asked of libc without asking any name server.
NO_LITERALS = [
    "1.2.3.4.5",
    "256.1.1.1",
    "fe80::1%no-such-interface",
    "[::1]",
    "1::2::3",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1.",
    "::1%lo",
    "0x100000000",
    "\u0661.2.3.4",
    "x" * 64,
]
PORTS: list[Any] = [80, 0, "80", "http", "", None, b"80", 65535, 65536, -1, "no-such-service"]


@pytest.mark.parametrize("host", HOSTS, ids=repr)
def test_literals_as_libc_answers(run: Callable[..., Any], host: Any) -> None:
    """Answers for literals equal libc's: order, flags, scope ids, errors (uv#596)."""

    async def main() -> None:
        wrong = []
        for port in PORTS:
            for kind in (0, socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for family in (0, socket.AF_INET, socket.AF_INET6):
                    expected = libc(host, port, family=family, type=kind)
                    actual = await looped(host, port, family=family, type=kind)
                    if actual != expected:
                        wrong.append((host, port, kind, family, expected, actual))
        assert wrong == []

    run(main)


def test_answers_for_literals_are_the_callers_own(run: Callable[..., Any]) -> None:
    """They are remembered; what one caller does to its list is nothing to the next."""

    async def main() -> None:
        expected = libc("127.0.0.1", 80, type=socket.SOCK_STREAM)
        for number in range(600):  # More than are remembered.
            await looped("127.0.0.1", number)
            found = await looped("127.0.0.1", 80, type=socket.SOCK_STREAM)
            assert found == expected
            found.clear()
        assert await looped("127.0.0.1", True) == libc("127.0.0.1", True)
        assert await looped("127.0.0.1", 1) == libc("127.0.0.1", 1)

    run(main)


@pytest.mark.parametrize("host", NO_LITERALS, ids=ascii)
def test_what_only_looks_like_a_literal(run: Callable[..., Any], host: str) -> None:
    async def main() -> None:
        for kind in (0, socket.SOCK_STREAM):
            for family in (0, socket.AF_INET, socket.AF_INET6):
                keywords = {"type": kind, "family": family, "flags": socket.AI_NUMERICHOST}
                assert await looped(host, 80, **keywords) == libc(host, 80, **keywords)

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo", "127.1", None])
def test_flags_and_protocols(run: Callable[..., Any], host: Any) -> None:
    flags = [
        socket.AI_PASSIVE,
        socket.AI_CANONNAME,
        socket.AI_NUMERICHOST,
        socket.AI_NUMERICSERV,
        socket.AI_V4MAPPED | socket.AI_ALL,
        socket.AI_ADDRCONFIG,
        socket.AI_PASSIVE | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        1 << 20,
    ]
    protocols = [0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, 200]
    kinds = [0, socket.SOCK_STREAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, 77]

    async def main() -> None:
        wrong = []
        for flag in flags:
            for protocol in protocols:
                for kind in kinds:
                    for port in (80, "http"):
                        keywords = {"type": kind, "proto": protocol, "flags": flag}
                        expected = libc(host, port, **keywords)
                        actual = await looped(host, port, **keywords)
                        if actual != expected:
                            wrong.append((port, keywords, expected, actual))
        assert wrong == []

    run(main)


def test_enumeration_members(run: Callable[..., Any]) -> None:
    """The results are the very types socket gives: AddressFamily and SocketKind members."""

    async def main() -> None:
        for host in ("127.0.0.1", "localhost"):
            for family, kind, protocol, name, address in await looped(
                host, 80, type=socket.SOCK_STREAM
            ):
                assert isinstance(family, socket.AddressFamily)
                assert isinstance(kind, socket.SocketKind)
                assert type(protocol) is int and type(name) is str and type(address) is tuple

    run(main)


def test_a_patched_socket_getaddrinfo_is_called(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up at each call: test suites and eventlet-like tools replace it."""
    calls: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 99))]

    monkeypatch.setattr(socket, "getaddrinfo", fake)

    async def main() -> None:
        for host in ("127.0.0.1", "example.invalid"):
            result = await asyncio.get_running_loop().getaddrinfo(host, 99)
            assert result[0][4] == ("192.0.2.1", 99)

    run(main)
    assert len(calls) == 2


def test_an_overridden_getaddrinfo_is_used_by_connect(loop_factory: support.LoopFactory) -> None:
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]

    class Own(base):  # type: ignore[misc]
        async def getaddrinfo(self, host: Any, port: Any, **kwargs: Any) -> Any:
            assert host == "made.up"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def main() -> None:
        _, writer = await asyncio.open_connection("made.up", port)
        writer.close()
        await writer.wait_closed()

    with listener, asyncio.Runner(loop_factory=Own) as runner:
        runner.run(main())


def test_errors_carry_their_code(run: Callable[..., Any]) -> None:
    """zuv#14: a real socket.gaierror with the real code."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(socket.gaierror) as caught:
            await loop.getaddrinfo("127.0.0.1", "no-such-service")
        try:
            socket.getaddrinfo("127.0.0.1", "no-such-service")
        except socket.gaierror as exc:
            assert caught.value.args == exc.args
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("name.invalid.", 80, flags=socket.AI_NUMERICHOST)

    run(main)


def test_a_saturated_default_executor() -> None:
    """cpy#112191, uv#43: on cpploop names resolve although every worker is taken."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("asyncio's own loop does starve then")
    release = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        blocked = [loop.run_in_executor(None, release.wait, 20) for _ in range(64)]
        try:
            async with asyncio.timeout(10 * support.TIME_SCALE):
                assert await loop.getaddrinfo("localhost", 80)
        finally:
            release.set()
            await asyncio.gather(*blocked)

    support.run(support.factory("cpploop"), main)


def test_a_default_executor_set_by_the_user_is_honoured(run: Callable[..., Any]) -> None:
    submitted: list[Any] = []

    class Pool(concurrent.futures.ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            submitted.append(args)
            return super().submit(*args, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Pool(1))
        await loop.getaddrinfo("localhost", 80)
        await loop.getnameinfo(("127.0.0.1", 80))
        assert len(submitted) >= 1

    run(main)


def test_cancelling(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """cpy#112191"""
    release = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        release.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def main() -> None:
        task = asyncio.create_task(asyncio.get_running_loop().getaddrinfo("slow.example", 80))
        await asyncio.sleep(0.01)
        task.cancel()
        started = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 5
        release.set()

    run(main)


def test_many_at_once(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *(loop.getaddrinfo("localhost", port) for port in range(1, 101))
        )
        assert [result[0][4][1] for result in results] == list(range(1, 101))

    run(main)


def test_getnameinfo(run: Callable[..., Any]) -> None:
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.getnameinfo(("127.0.0.1", 80), numeric) == ("127.0.0.1", "80")
        assert await loop.getnameinfo(("::1", 80, 0, 0), numeric) == ("::1", "80")
        expected = socket.getnameinfo(("127.0.0.1", 80), 0)
        assert await loop.getnameinfo(("127.0.0.1", 80)) == expected
        assert await loop.getnameinfo(sockaddr=("127.0.0.1", 80), flags=numeric) == (
            "127.0.0.1",
            "80",
        )

    run(main)


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "name as address": lambda loop: loop.getnameinfo(("localhost", 80)),
    "no address": lambda loop: loop.getnameinfo(()),
    "text": lambda loop: loop.getnameinfo("127.0.0.1"),
    "port out of range": lambda loop: loop.getnameinfo(("127.0.0.1", 70000)),
    "host of a wrong type": lambda loop: loop.getaddrinfo(1, 80),
    "port of a wrong type": lambda loop: loop.getaddrinfo("127.0.0.1", 1.5),
    "keyword unknown": lambda loop: loop.getaddrinfo("127.0.0.1", 80, unknown=1),
    "no port": lambda loop: loop.getaddrinfo("127.0.0.1"),
    "family text": lambda loop: loop.getaddrinfo("127.0.0.1", 80, family="inet"),
    "family unknown": lambda loop: loop.getaddrinfo("127.0.0.1", 80, family=999),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls(name: str) -> None:
    results = []
    for loop_name in loop_names():
        with open_loop(support.factory(loop_name)) as loop:
            results.append(
                outcome(lambda loop=loop: loop.run_until_complete(BAD_CALLS[name](loop)))[:2]
            )
    assert results[0] == results[1]


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_debug_mode_answers_the_same(run: Callable[..., Any], debug: bool) -> None:
    async def main() -> None:
        assert await looped("127.0.0.1", 80) == libc("127.0.0.1", 80)
        assert await looped("localhost", 80) == libc("localhost", 80)

    run(main, debug=debug)


def test_audit_events(loop_name: str) -> None:
    """A hook that wants to know about name resolution is told, literals included."""
    source = """
        import asyncio, sys
        seen = []

        def hook(event, args):
            if event == "socket.getaddrinfo":
                seen.append(args[0])

        sys.addaudithook(hook)

        async def main():
            loop = asyncio.get_running_loop()
            await loop.getaddrinfo("127.0.0.1", 80)
            await loop.getaddrinfo("127.0.0.1", 80)
            await loop.getaddrinfo("localhost", 80)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        print(seen)
        """
    result = support.run_script(source, loop=loop_name)
    assert result.stdout == "['127.0.0.1', '127.0.0.1', 'localhost']\n"


def test_the_end_of_the_default_executor_is_that_of_look_ups(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited for it finds no thread of the loop's, and may ask for no name any more."""
    begun = threading.Event()
    over: list[bool] = []

    def slowly(*args: Any) -> Any:
        begun.set()
        time.sleep(0.1)
        over.append(True)
        return []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = threading.active_count()
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        asking = asyncio.ensure_future(loop.getaddrinfo("slow.invalid", 80))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        await loop.shutdown_default_executor()
        assert over == [True]
        assert await asking == []
        assert threading.active_count() == before
        monkeypatch.undo()
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
                await loop.getaddrinfo(host, 80)

    run(main)
