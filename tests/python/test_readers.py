"""add_reader and add_writer on sockets, pipes, terminals and everything else with a descriptor."""

from __future__ import annotations

import asyncio
import gc
import os
import pty
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
from parity import open_loop, outcome, reported, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = support.unix_pair()
    with first, second:
        yield first, second


Pair = tuple[socket.socket, socket.socket]


# --------------------------------------------------------------------------- basics


def test_reader(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[Any] = []
    loop.add_reader(first, lambda *args: seen.append((args, first.recv(10))), 1, 2)
    run_once(loop)
    assert seen == []
    second.send(b"x")
    run_once(loop)
    assert seen == [((1, 2), b"x")]
    run_once(loop)
    assert len(seen) == 1
    assert loop.remove_reader(first) is True
    second.send(b"y")
    run_once(loop)
    assert len(seen) == 1


def test_writer(loop: Any, pair: Pair) -> None:
    first, _ = pair
    seen: list[Any] = []
    loop.add_writer(first, lambda *args: seen.append(args), "w")
    run_once(loop, 3)
    assert seen == [("w",)] * 3
    assert loop.remove_writer(first) is True
    run_once(loop)
    assert len(seen) == 3


def test_a_writer_waits_for_room(loop: Any, pair: Pair) -> None:
    first, second = pair
    try:
        while True:
            first.send(bytes(65536))
    except BlockingIOError:
        pass
    seen: list[int] = []
    loop.add_writer(first, seen.append, 1)
    run_once(loop, 3)
    assert seen == []
    try:
        while True:
            second.recv(1 << 20)
    except BlockingIOError:
        pass
    run_once(loop)
    assert seen == [1]
    loop.remove_writer(first)


def test_level_triggered(loop: Any, pair: Pair) -> None:
    """What is not read is reported again: libpq and others read only part of it."""
    first, second = pair
    seen: list[bytes] = []
    second.send(b"abc")
    loop.add_reader(first, lambda: seen.append(first.recv(1)))
    run_once(loop, 5)
    assert seen == [b"a", b"b", b"c"]
    loop.remove_reader(first)


def test_what_is_returned() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = support.unix_pair()
        with open_loop(factory) as loop, first, second:
            return [
                type(loop.add_reader(first, print)).__name__,
                type(loop.add_reader(first, print)).__name__,
                type(loop.add_writer(first, print)).__name__,
                loop.remove_reader(first),
                loop.remove_reader(first),
                loop.remove_writer(first),
                loop.remove_writer(first),
                loop.remove_reader(second),
            ]

    assert same_on_both(attempt)[3:] == [True, False, True, False, False]


def test_a_second_add_replaces_the_first(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[str] = []
    second.send(b"x")
    loop.add_reader(first, seen.append, "old")
    loop.add_reader(first, seen.append, "new")
    loop.add_writer(first, seen.append, "old writer")
    loop.add_writer(first, seen.append, "new writer")
    run_once(loop)
    assert seen == ["new", "new writer"]
    loop.remove_reader(first)
    loop.remove_writer(first)


def test_replaced_in_the_turn_in_which_it_is_ready(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[str] = []
    second.send(b"x")
    loop.add_reader(first, seen.append, "old")
    loop.call_soon(loop.add_reader, first, seen.append, "new")
    run_once(loop, 2)
    assert "old" not in seen and "new" in seen
    loop.remove_reader(first)


def test_reader_and_writer_are_independent(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[str] = []
    loop.add_reader(first, lambda: seen.append("r"))
    loop.add_writer(first, lambda: seen.append("w"))
    run_once(loop)
    assert seen == ["w"]
    loop.remove_writer(first)
    second.send(b"x")
    run_once(loop)
    assert seen == ["w", "r"]
    loop.remove_reader(first)
    loop.add_writer(first, lambda: seen.append("w2"))
    run_once(loop)
    assert seen == ["w", "r", "w2"]
    loop.remove_writer(first)


def test_removing_itself_and_adding_again_from_the_callback(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[int] = []

    def on_readable(left: int) -> None:
        seen.append(left)
        loop.remove_reader(first)
        if left:
            loop.add_reader(first, on_readable, left - 1)

    second.send(b"x")
    loop.add_reader(first, on_readable, 3)
    run_once(loop, 8)
    assert seen == [3, 2, 1, 0]


def test_many_adds_and_removes(loop: Any, pair: Pair) -> None:
    """zuv#74 (C3): drivers add and remove for every query; the descriptor survives."""
    first, second = pair
    seen = 0

    def on_readable() -> None:
        nonlocal seen
        seen += len(first.recv(1))
        loop.remove_reader(first)

    for _ in range(2000):
        loop.add_reader(first, on_readable)
        loop.add_writer(first, loop.remove_writer, first)
        second.send(b"x")
        run_once(loop)
    assert seen == 2000
    assert first.fileno() >= 0
    second.send(b"still open")
    assert first.recv(100) == b"still open"


def test_unregistered_descriptors_survive_churn(loop: Any) -> None:
    """zuv#74 (C3): an idle, unregistered socket while hundreds of others come and go."""
    idle, peer = support.unix_pair()
    with idle, peer:
        loop.add_reader(idle, print)
        loop.remove_reader(idle)
        for _ in range(60):
            others = [support.unix_pair() for _ in range(10)]
            for first, second in others:
                second.send(b"x")
                loop.add_reader(first, lambda first=first: first.recv(1))
            run_once(loop)
            for first, second in others:
                loop.remove_reader(first)
                first.close()
                second.close()
        gc.collect()
        peer.send(b"alive")
        assert idle.recv(10) == b"alive"
        seen: list[int] = []
        loop.add_reader(idle, seen.append, 1)
        peer.send(b"x")
        run_once(loop)
        assert seen == [1]
        loop.remove_reader(idle)


# --------------------------------------------------------------------------- kinds of arguments


class WithFileno:
    def __init__(self, number: int) -> None:
        self.number = number

    def fileno(self) -> int:
        return self.number


def test_anything_with_a_descriptor(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[str] = []
    second.send(b"x")
    for candidate in (first, first.fileno(), WithFileno(first.fileno())):
        loop.add_reader(candidate, seen.append, type(candidate).__name__)
        run_once(loop)
        # Added by one form, removed by another: it is the number that counts.
        assert loop.remove_reader(first.fileno()) is True
    assert seen == ["socket", "int", "WithFileno"]


class FilenoRaises:
    def fileno(self) -> int:
        raise LookupError("no descriptor")


class FilenoNone:
    def fileno(self) -> None:
        return None


BAD_DESCRIPTORS: dict[str, Any] = {
    "minus one": -1,
    "very negative": -(2**40),
    "too large": 2**40,
    "text": "0",
    "none": None,
    "float": 1.5,
    "object": object(),
    "fileno raises": FilenoRaises(),
    "fileno gives none": FilenoNone(),
    "fileno gives -1": WithFileno(-1),
}


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
@pytest.mark.parametrize("name", BAD_DESCRIPTORS)
def test_what_is_no_descriptor(name: str, method: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        args = (print,) if method.startswith("add") else ()
        with open_loop(factory) as loop:
            result = outcome(getattr(loop, method), BAD_DESCRIPTORS[name], *args)
            return result[:2] if result[0] == "raised" else result

    same_on_both(attempt)


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_closed_descriptor_is_refused(method: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            reader, writer = os.pipe()
            os.close(reader)
            os.close(writer)
            results = [outcome(getattr(loop, method), writer, print)[:2]]
            # Refused means not registered: there is nothing to remove.
            results.append(getattr(loop, method.replace("add", "remove"))(writer))
            run_once(loop)
        return results

    assert same_on_both(attempt) == [("raised", "OSError"), False]


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_regular_files_cannot_be_watched(method: str, tmp_path: Path) -> None:
    """epoll refuses them with EPERM, and the loop is as before (C7: registration is all or
    nothing)."""
    (tmp_path / "file").write_text("data")

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop, open(tmp_path / "file", "r+") as file:
            results: list[Any] = [outcome(getattr(loop, method), file, print)[:2]]
            try:
                getattr(loop, method)(file, print)
            except OSError as exc:
                results.append(exc.errno)
            results.append(getattr(loop, method.replace("add", "remove"))(file))
            run_once(loop)
            return results

    result = same_on_both(attempt)
    import errno

    assert result == [("raised", "PermissionError"), errno.EPERM, False]


def test_a_refused_registration_keeps_nothing_alive(loop: Any, tmp_path: Path) -> None:
    import weakref

    class Thing:
        def __call__(self) -> None:
            pass

    thing = Thing()
    alive = weakref.ref(thing)
    with open(tmp_path / "file", "w") as file, pytest.raises(OSError):
        loop.add_reader(file, thing)
    del thing
    gc.collect()
    assert alive() is None


async def coroutine_function() -> None:
    pass


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_callbacks_of_wrong_types(debug: bool) -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = support.unix_pair()
        with open_loop(factory) as loop, first, second:
            loop.set_debug(debug)
            results = []
            for args in ((), (first,), (first, coroutine_function), (first, None), (first, 1)):
                result = outcome(loop.add_reader, *args)
                results.append(result[:2] if result[0] == "raised" else "accepted")
                loop.remove_reader(first)
            return results

    same_on_both(attempt)


# --------------------------------------------------------------------------- errors and ends


def test_end_of_file_wakes_the_reader(loop: Any, pair: Pair) -> None:
    first, second = pair
    seen: list[bytes] = []
    second.close()
    loop.add_reader(first, lambda: seen.append(first.recv(10)))
    run_once(loop)
    assert seen == [b""]
    loop.remove_reader(first)


def test_hangup_and_error_reach_both(loop: Any) -> None:
    """EPOLLHUP and EPOLLERR are reported to whoever is registered, and keep being (C14).

    zuv#45.
    """
    seen: list[str] = []
    reader, writer = os.pipe()
    os.close(reader)
    try:
        loop.add_writer(writer, seen.append, "writer")
        run_once(loop, 2)
        assert seen == ["writer", "writer"]
        loop.remove_writer(writer)
    finally:
        os.close(writer)
    reader, writer = os.pipe()
    os.close(writer)
    try:
        seen.clear()
        loop.add_reader(reader, seen.append, "reader")
        run_once(loop, 2)
        assert seen == ["reader", "reader"]
        loop.remove_reader(reader)
    finally:
        os.close(reader)


def test_a_reset_connection(loop: Any) -> None:
    first, second = support.tcp_pair()
    seen: list[Any] = []

    def on_readable() -> None:
        seen.append(outcome(first.recv, 10)[:2])
        loop.remove_reader(first)
        loop.stop()

    with first:
        loop.add_reader(first, on_readable)
        support.reset(second)
        guard = loop.call_later(10, loop.stop)
        loop.run_forever()
        guard.cancel()
    assert seen == [("raised", "ConnectionResetError")]


def test_a_callback_that_raises_stays_registered() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = support.unix_pair()
        with open_loop(factory) as loop, first, second, reported(loop) as contexts:
            second.send(b"xyz")

            def on_readable() -> None:
                first.recv(1)
                raise LookupError("in the reader")

            loop.add_reader(first, on_readable)
            run_once(loop, 5)
            loop.remove_reader(first)
            return [str(context["exception"]) for context in contexts]

    assert same_on_both(attempt) == ["in the reader"] * 3


def test_idle_registrations_do_not_spin(run: Callable[..., Any]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = support.unix_pair()
        with first, second:
            loop.add_reader(first, print)
            await support.assert_idle()
            loop.remove_reader(first)
            # With the peer gone and nobody registered there is nothing to report either.
            second.close()
            await support.assert_idle()

    run(main)


# --------------------------------------------------------------------------- numbers used again


def test_dup_of_a_registered_descriptor(loop: Any, pair: Pair) -> None:
    """C13: two numbers for one socket are two registrations."""
    first, second = pair
    copy = os.dup(first.fileno())
    seen: list[str] = []
    try:
        loop.add_reader(first, seen.append, "original")
        loop.add_reader(copy, seen.append, "copy")
        second.send(b"x")
        run_once(loop)
        assert sorted(seen) == ["copy", "original"]
        loop.remove_reader(first)
        seen.clear()
        run_once(loop)
        assert seen == ["copy"]
        assert loop.remove_reader(copy) is True
    finally:
        os.close(copy)


def test_reader_on_one_and_writer_on_the_other_number(loop: Any, pair: Pair) -> None:
    """aiohttp#1412: sendfile registered a dup'd descriptor and the loop spun."""
    first, second = pair
    copy = os.dup(first.fileno())
    seen: list[str] = []
    try:
        loop.add_reader(first, seen.append, "reader")
        loop.add_writer(copy, lambda: (seen.append("writer"), loop.remove_writer(copy)))
        run_once(loop, 3)
        assert seen == ["writer"]
        second.send(b"x")
        run_once(loop)
        assert seen == ["writer", "reader"]
        loop.remove_reader(first)
    finally:
        os.close(copy)


def register_again(loop: Any, number: int, *callback: Any) -> None:
    """add_reader where the loop may still hold a registration that died with its descriptor.

    asyncio takes it for alive unless it is removed first.
    """
    loop.remove_reader(number)
    loop.add_reader(number, *callback)


def test_closed_without_removing_and_the_number_used_again(loop: Any) -> None:
    """C4: the old registration must not speak for the new descriptor of the same number.

    C5, uv#311.
    """
    seen: list[str] = []
    new, new_peer = support.unix_pair()
    old, old_peer = support.unix_pair()
    number = old.fileno()
    loop.add_reader(number, seen.append, "old")
    old.close()
    os.dup2(new.fileno(), number)
    try:
        new_peer.send(b"x")
        run_once(loop, 2)
        assert seen == []
        register_again(loop, number, seen.append, "new")
        run_once(loop)
        assert seen == ["new"]
        assert loop.remove_reader(number) is True
        run_once(loop)
        assert seen == ["new"]
    finally:
        os.close(number)
        for sock in (old_peer, new, new_peer):
            sock.close()


@pytest.mark.parametrize("removes", [True, False], ids=["removed", "not removed"])
def test_closed_and_reused_inside_one_turn(loop: Any, removes: bool) -> None:
    """C4: an event fetched for the old descriptor must not run the new one's callback."""
    seen: list[str] = []
    new, new_peer = support.unix_pair()
    first, first_peer = support.unix_pair()
    other, other_peer = support.unix_pair()
    number = other.fileno()

    def on_first() -> None:
        # Runs before the other's event of the same poll: closes it and reuses its number.
        if removes:
            loop.remove_reader(number)
        loop.remove_reader(first)
        other.close()
        os.dup2(new.fileno(), number)
        register_again(loop, number, seen.append, "new owner was woken")

    loop.add_reader(first, on_first)
    loop.add_reader(other, seen.append, "old owner")
    # Ready in this order, so that first comes first.
    first_peer.send(b"x")
    other_peer.send(b"x")
    run_once(loop, 4)
    assert "new owner was woken" not in seen
    new_peer.send(b"x")
    run_once(loop)
    assert seen[-1] == "new owner was woken"
    loop.remove_reader(number)
    os.close(number)
    for sock in (first, first_peer, other_peer, new, new_peer):
        sock.close()


def test_removing_after_close(loop: Any) -> None:
    """Careless programs close first; removing by number then still works and never fails."""
    first, second = support.unix_pair()
    number = first.fileno()
    loop.add_reader(number, print)
    first.close()
    second.close()
    assert loop.remove_reader(number) is True
    assert loop.remove_reader(number) is False
    run_once(loop)


def test_removing_by_a_closed_socket() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        first, second = support.unix_pair()
        with open_loop(factory) as loop, second:
            loop.add_reader(first, print)
            number = first.fileno()
            first.close()
            results = [outcome(loop.remove_reader, first)]
            results.append(outcome(loop.remove_reader, number))
            return [str(results[0][:2]), str(results[1])]

    same_on_both(attempt)


def test_close_leaves_the_users_descriptors_open(loop_factory: support.LoopFactory) -> None:
    first, second = support.unix_pair()
    with first, second:
        loop = loop_factory()
        loop.add_reader(first, print)
        loop.add_writer(second, print)
        loop.close()
        second.send(b"x")
        assert first.recv(1) == b"x"


# --------------------------------------------------------------------------- transports


def test_a_transports_descriptor_is_refused() -> None:
    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()
        first, second = support.unix_pair()
        with second:
            transport, _ = await support.attach(first, asyncio.Protocol())
            number = first.fileno()
            for method in ("add_reader", "add_writer", "remove_reader", "remove_writer"):
                args = (print,) if method.startswith("add") else ()
                try:
                    env.log(method, getattr(loop, method)(number, *args))
                except RuntimeError as exc:
                    env.log(method, type(exc).__name__, str(exc).partition(" is used by")[2][:10])
            second.send(b"still works")
            transport.close()
            await support.turns(3)
            # Free again once the transport is closed.
            third, fourth = support.unix_pair()
            with third, fourth:
                loop.add_reader(third, print)
                env.log(loop.remove_reader(third))

    support.compare(scenario)


# --------------------------------------------------------------------------- other descriptors


def test_terminal(loop: Any) -> None:
    master, slave = pty.openpty()
    seen: list[bytes] = []
    try:
        loop.add_reader(slave, lambda: seen.append(os.read(slave, 100)))
        os.write(master, b"line\n")
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            run_once(loop)
        assert seen == [b"line\n"]
        loop.remove_reader(slave)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="needs eventfd")
def test_eventfd_and_epoll_inside_epoll(loop: Any) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    poller = select.epoll()
    seen: list[str] = []
    try:
        poller.register(event, select.EPOLLIN)
        loop.add_reader(event, lambda: (seen.append("event"), os.eventfd_read(event)))
        loop.add_reader(poller, seen.append, "poller")
        os.eventfd_write(event, 1)
        run_once(loop, 3)
        assert "event" in seen and "poller" in seen
        loop.remove_reader(event)
        loop.remove_reader(poller)
    finally:
        poller.close()
        os.close(event)


def test_a_datagram_socket_and_a_listener(loop: Any) -> None:
    seen: list[str] = []
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as listener,
        socket.socket() as client,
    ):
        for sock in (datagram, listener):
            sock.bind(("127.0.0.1", 0))
        listener.listen()
        loop.add_reader(datagram, lambda: (seen.append("datagram"), datagram.recv(10)))
        loop.add_reader(listener, lambda: (seen.append("listener"), listener.accept()[0].close()))
        datagram.sendto(b"x", datagram.getsockname())
        client.connect(listener.getsockname())
        run_once(loop, 3)
        assert sorted(seen) == ["datagram", "listener"]
        loop.remove_reader(datagram)
        loop.remove_reader(listener)


def test_high_descriptor_numbers(loop: Any) -> None:
    """Well above 1024, where select() would give up, and with holes between."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = min(soft - 1, 60000)
    first, second = support.unix_pair()
    with first, second:
        os.dup2(first.fileno(), number)
        try:
            seen: list[int] = []
            loop.add_reader(number, seen.append, 1)
            second.send(b"x")
            run_once(loop)
            assert seen == [1]
            assert loop.remove_reader(number)
        finally:
            os.close(number)


def test_readiness_from_a_thread(loop: Any, pair: Pair) -> None:
    first, second = pair
    loop.add_reader(first, loop.stop)
    timer = threading.Timer(0.05, second.send, (b"x",))
    timer.start()
    started = time.monotonic()
    guard = loop.call_later(10, loop.stop)
    loop.run_forever()
    guard.cancel()
    timer.join()
    loop.remove_reader(first)
    assert time.monotonic() - started < 5


def test_tagged_traffic_never_crosses(loop: Any) -> None:
    """C4 at large: sockets are closed and replaced all the time; every byte carries its owner."""
    import random

    generator = random.Random(11)
    wrong: list[Any] = []
    received = 0
    alive: dict[int, tuple[socket.socket, socket.socket, bytes]] = {}
    tags = iter(range(1_000_000))

    def on_readable(sock: socket.socket, tag: bytes) -> None:
        nonlocal received
        try:
            data = sock.recv(100)
        except (BlockingIOError, OSError) as exc:
            wrong.append(exc)
            return
        if data.replace(tag, b""):
            wrong.append((tag, data))
        received += 1
        if generator.random() < 0.3:
            replace(generator.choice(list(alive)))

    def open_one() -> None:
        first, second = support.unix_pair()
        tag = b"%08d" % next(tags)
        alive[first.fileno()] = first, second, tag
        loop.add_reader(first, on_readable, first, tag)

    def replace(number: int) -> None:
        first, second, _ = alive.pop(number)
        loop.remove_reader(first)
        first.close()
        second.close()
        open_one()

    for _ in range(40):
        open_one()
    for _ in range(300):
        for _, second, tag in list(alive.values()):
            if generator.random() < 0.5 and second.fileno() >= 0:
                second.send(tag)
        run_once(loop)
    for first, second, _ in alive.values():
        loop.remove_reader(first)
        first.close()
        second.close()
    assert wrong == []
    assert received > 1000


@pytest.mark.parametrize("what", ["reader", "writer"])
def test_a_cancelled_handle_ends_the_watching(loop: Any, pair: Pair, what: str) -> None:
    """What _add_reader() returns: the descriptor stays ready, and the loop is to rest."""
    first, second = pair
    second.send(b"x")
    handle = getattr(loop, f"_add_{what}")(first, lambda: None)
    handle.cancel()
    run_once(loop)
    cpu = time.process_time()
    loop.run_until_complete(asyncio.sleep(0.3))
    assert time.process_time() - cpu < 0.15 * support.TIME_SCALE
    assert getattr(loop, f"remove_{what}")(first) is False
    # The number can be watched again.
    seen: list[int] = []
    getattr(loop, f"add_{what}")(first, lambda: (seen.append(1), loop.stop()))
    loop.call_later(5 * support.TIME_SCALE, loop.stop)
    loop.run_forever()
    assert seen == [1]
    assert getattr(loop, f"remove_{what}")(first) is True
