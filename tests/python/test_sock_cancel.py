"""loop.sock_*() cancelled, replaced, many at once: no byte is lost, read twice or misdelivered.

C13, uv#378: thousands of concurrent sock_connect ended in a storm of InvalidStateError.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import resource
import socket
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import support


async def ended(task: asyncio.Future[Any]) -> Any:
    """What a task came to: its result, or the class of its exception."""
    try:
        return await task
    except (asyncio.CancelledError, Exception) as exc:
        return type(exc)


def is_watched(loop: Any, sock: socket.socket) -> bool:
    try:
        loop._selector.get_key(sock)
    except KeyError:
        return False
    return True


# --------------------------------------------------------------------------- cancelling one


@pytest.mark.parametrize("moment", ["before it began", "waiting", "when ready", "after a turn"])
@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvfrom_into"])
def test_cancelled_reads_leave_the_bytes(run: Any, moment: str, call: str) -> None:
    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        with ours, peer:
            memory = bytearray(10)
            operation: Any = {
                "recv": lambda: loop.sock_recv(ours, 10),
                "recv_into": lambda: loop.sock_recv_into(ours, memory),
                "recvfrom": lambda: loop.sock_recvfrom(ours, 10),
                "recvfrom_into": lambda: loop.sock_recvfrom_into(ours, memory),
            }[call]()
            task = asyncio.ensure_future(operation)
            if moment != "before it began":
                await support.turns(2)
            if moment in ("when ready", "after a turn"):
                peer.send(b"abc")
            if moment == "after a turn":
                # The bytes are the task's by now: it must get them.
                await support.turns(1)
            task.cancel()
            outcome = await ended(task)
            if outcome is asyncio.CancelledError and moment != "after a turn":
                if moment != "when ready":
                    peer.send(b"abc")
                assert support.recv_now(ours) == b"abc"
                assert memory == bytes(10)
            assert not is_watched(loop, ours)

    run(main)


def test_cancelled_writes(run: Any) -> None:
    """A cancelled sock_sendall sends no more, and sock_accept and sock_connect take nothing."""

    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.tcp_pair()
        with ours, peer:
            sending = asyncio.ensure_future(loop.sock_sendall(ours, bytes(5_000_000)))
            await support.turns(3)
            sending.cancel()
            assert await ended(sending) is asyncio.CancelledError
            assert not is_watched(loop, ours)
            sent = 0
            while data := support.recv_now(peer):
                sent += len(data)
                await asyncio.sleep(0.01)
            assert 0 < sent < 5_000_000
            ours.send(b"end")
            assert await support.recv_exactly(peer, 3) == b"end"
        with socket.socket() as listener, socket.socket() as late:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            listener.setblocking(False)
            late.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(listener))
            await support.turns(2)
            accepting.cancel()
            await loop.sock_connect(late, listener.getsockname())
            assert await ended(accepting) is asyncio.CancelledError
            assert not is_watched(loop, listener)
            conn, address = await loop.sock_accept(listener)
            conn.close()
            assert address == late.getsockname()

    run(main)


def test_cancelled_connect(run: Any) -> None:
    """A listener with a full queue leaves a connect under way; cancelling ends the watching."""

    async def main(env: support.Env) -> None:
        loop = env.loop
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            waiting: list[tuple[socket.socket, asyncio.Future[None]]] = []
            for _ in range(6):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                task = asyncio.ensure_future(loop.sock_connect(sock, listener.getsockname()))
                waiting.append((sock, task))
            await asyncio.sleep(0.05)
            assert any(not task.done() for _, task in waiting)
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
            assert not any(is_watched(loop, sock) for sock, _ in waiting)

    run(main)


def test_wait_for_keeps_the_stream_whole(run: Any) -> None:
    """Short time-outs around sock_recv lose nothing as long as the time-out wins cleanly."""

    async def main(env: support.Env) -> None:
        ours, peer = support.unix_pair()
        with ours, peer:
            for number in range(20):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(env.loop.sock_recv(ours, 100), 0.001)
                peer.send(b"%d," % number)
                assert await asyncio.wait_for(env.loop.sock_recv(ours, 100), 5) == b"%d," % number

    run(main)


# --------------------------------------------------------------------------- two on one socket


def test_a_second_reader_replaces_the_first() -> None:
    """As asyncio: the first stays pending, and cancelling it does not disturb the second."""

    async def scenario(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        with ours, peer:
            first = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            second = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            peer.send(b"abc")
            env.log("second", await asyncio.wait_for(second, 5))
            peer.send(b"def")
            await support.turns(5)
            env.log("first", first.done())
            third = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            env.log("third", third.done() and third.result())
            fourth = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            first.cancel()
            env.log("first", await ended(first))
            peer.send(b"ghi")
            env.log("fourth", await asyncio.wait_for(fourth, 5))
            env.log("watched", is_watched(loop, ours))

    support.compare(scenario)


def test_add_reader_replaces_an_operation_and_the_reverse() -> None:
    async def scenario(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        with ours, peer:
            waiting = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            loop.add_reader(ours, lambda: env.log("reader", ours.recv(10)))
            peer.send(b"abc")
            await support.turns(4)
            env.log("waiting", waiting.done())
            operation = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            peer.send(b"def")
            env.log("operation", await asyncio.wait_for(operation, 5))
            env.log("removed", loop.remove_reader(ours))
            waiting.cancel()
            env.log("waiting", await ended(waiting))
            waiting = asyncio.ensure_future(loop.sock_recv(ours, 10))
            await support.turns(2)
            env.log("removed", loop.remove_reader(ours), loop.remove_reader(ours))
            peer.send(b"ghi")
            await support.turns(4)
            env.log("waiting", waiting.done(), ours.recv(10))
            waiting.cancel()
            env.log("waiting", await ended(waiting))

    support.compare(scenario)


def test_both_directions_at_once(run: Any) -> None:
    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        payload = os.urandom(1_000_000)
        with ours, peer:
            receiving = asyncio.ensure_future(loop.sock_recv(ours, 10))
            sending = asyncio.ensure_future(loop.sock_sendall(ours, payload))
            await support.turns(2)
            assert not receiving.done()
            assert not sending.done()
            assert await support.recv_exactly(peer, len(payload)) == payload
            await sending
            peer.send(b"abc")
            assert await receiving == b"abc"

    run(main)


# --------------------------------------------------------------------------- closed sockets


def test_a_closed_socket_whose_number_is_used_again(run: Any) -> None:
    """A waiting sock_recv never reads from the file that has its number now (C13).

    A duplicate keeps the old file alive in the kernel's set, so that it goes on reporting it.
    """

    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        number = ours.fileno()
        kept = os.dup(number)
        receiving = asyncio.ensure_future(loop.sock_recv(ours, 100))
        await support.turns(2)
        ours.close()
        other, other_peer = support.unix_pair()
        try:
            assert number in (other.fileno(), other_peer.fileno())
            taken, giver = (other, other_peer) if other.fileno() == number else (other_peer, other)
            giver.send(b"somebody else's")
            peer.send(b"for the closed one")
            with pytest.raises(OSError, match="Bad file descriptor"):
                await asyncio.wait_for(receiving, 5)
            assert support.recv_now(taken) == b"somebody else's"
            assert os.read(kept, 100) == b"for the closed one"
        finally:
            os.close(kept)
            for sock in (peer, other, other_peer):
                sock.close()

    run(main)


def test_tagged_payloads_over_numbers_used_again(run: Any, seed: int) -> None:
    """Connections come and go, their numbers are used again, and nobody gets another's bytes."""
    rounds = 400 if support.LONG else 60

    async def main(env: support.Env) -> None:
        loop = env.loop
        chance = random.Random(seed)
        serial = 0

        async def one(tag: bytes) -> None:
            ours, peer = support.unix_pair()
            with ours, peer:
                receiving = asyncio.ensure_future(loop.sock_recv(ours, 100))
                if chance.random() < 0.5:
                    await support.turns(chance.randrange(3))
                if chance.random() < 0.3:
                    receiving.cancel()
                    await ended(receiving)
                    receiving = asyncio.ensure_future(loop.sock_recv(ours, 100))
                await loop.sock_sendall(peer, tag)
                assert await receiving == tag

        for _ in range(rounds):
            tags = [struct.pack("!Q", serial + index) for index in range(20)]
            serial += len(tags)
            await asyncio.gather(*map(one, tags))

    run(main)


# --------------------------------------------------------------------------- random scheduling


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_cancelled_at_random(run: Any, kind: str, seed: int) -> None:
    """A stream of numbered bytes survives readers that are cancelled at random moments.

    A reader that was cancelled when its bytes had come loses these with it, in asyncio as well:
    here such a reader is asked for its result first, so every byte has to turn up in order.
    """
    size = 400_000 if support.LONG else 60_000

    async def main(env: support.Env) -> None:
        loop = env.loop
        chance = random.Random(seed)
        ours, peer = support.PAIRS[kind]()
        payload = bytes(chance.randrange(256) for _ in range(size))

        async def feed() -> None:
            start = 0
            while start < size:
                step = chance.randrange(1, 900)
                await loop.sock_sendall(peer, payload[start : start + step])
                start += step
                await support.turns(chance.randrange(4))

        with ours, peer:
            feeding = asyncio.ensure_future(feed())
            received = bytearray()
            cancelled = 0
            while len(received) < size:
                task: asyncio.Future[bytes] = asyncio.ensure_future(
                    loop.sock_recv(ours, chance.randrange(1, 700))
                )
                await support.turns(chance.randrange(4))
                waiter = getattr(task, "_fut_waiter", None)
                if not task.done() and chance.random() < 0.5:
                    if waiter is None or not waiter.done():
                        task.cancel()
                outcome = await ended(task)
                if outcome is asyncio.CancelledError:
                    cancelled += 1
                else:
                    received += outcome
            await feeding
            assert received == payload
            assert cancelled > 10

    run(main)


# --------------------------------------------------------------------------- many


@contextlib.contextmanager
def many_descriptors(wanted: int) -> Any:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    try:
        yield max(soft, limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("cancel", [False, True])
def test_thousands_of_connects_at_once(run: Any, cancel: bool) -> None:
    """C13, uv#378."""

    async def main(env: support.Env) -> None:
        loop = env.loop
        with many_descriptors(11_000) as limit, contextlib.ExitStack() as stack:
            count = min(5000, (limit - 200) // 2)
            listener = stack.enter_context(socket.socket())
            listener.setblocking(False)
            listener.bind(("127.0.0.1", 0))
            listener.listen(4096)
            accepted = 0

            # By hand: a cancelled sock_accept() may drop a connection that it already had.
            def accept() -> None:
                nonlocal accepted
                for _ in range(64):
                    try:
                        conn, _ = listener.accept()
                    except BlockingIOError:
                        return
                    stack.callback(conn.close)
                    accepted += 1

            loop.add_reader(listener, accept)
            stack.callback(loop.remove_reader, listener)
            socks = []
            for _ in range(count):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                socks.append(sock)
            connecting = [
                asyncio.ensure_future(loop.sock_connect(sock, listener.getsockname()))
                for sock in socks
            ]
            if cancel:
                await support.turns(1)
                for task in connecting[::2]:
                    task.cancel()
            outcomes = await asyncio.gather(*map(ended, connecting))
            kinds = set(outcomes)
            assert kinds <= ({None, asyncio.CancelledError} if cancel else {None}), kinds
            assert not any(is_watched(loop, sock) for sock in socks)
            if not cancel:
                await support.eventually(lambda: accepted == count, 30)

    run(main, timeout=60)


def test_many_waiting_at_once(run: Any) -> None:
    async def main(env: support.Env) -> None:
        loop = env.loop
        with many_descriptors(2500), contextlib.ExitStack() as stack:
            pairs = []
            for _ in range(500):
                ours, peer = support.unix_pair()
                stack.enter_context(ours)
                stack.enter_context(peer)
                pairs.append((ours, peer))
            tasks = [asyncio.ensure_future(loop.sock_recv(ours, 100)) for ours, _ in pairs]
            await support.turns(2)
            for index, (_, peer) in reversed(list(enumerate(pairs))):
                peer.send(b"%d" % index)
            assert await asyncio.gather(*tasks) == [b"%d" % index for index in range(500)]

    run(main)


def test_tasks_dropped_while_they_wait(loop_factory: support.LoopFactory) -> None:
    """A loop that is closed over waiting tasks leaves no reference behind."""

    class Marker(bytearray):
        pass

    references = []
    socks = []
    loop = loop_factory()
    # Not the reports themselves: they name the tasks.
    reports: list[str] = []
    loop.set_exception_handler(lambda loop, context: reports.append(context["message"]))

    async def wait(sock: socket.socket, memory: Marker) -> None:
        await asyncio.get_running_loop().sock_recv_into(sock, memory)

    for _ in range(10):
        ours, peer = support.unix_pair()
        socks += [ours, peer]
        memory = Marker(10)
        references.append(weakref.ref(memory))
        loop.create_task(wait(ours, memory))
    del memory
    loop.run_until_complete(support.turns(3))
    loop.close()
    del loop
    for _ in range(3):
        gc.collect()
    for sock in socks:
        sock.close()
    assert [reference() for reference in references] == [None] * 10
    assert reports == ["Task was destroyed but it is pending!"] * 10


def test_keyboard_interrupt_while_a_socket_is_asked(
    loop_factory: support.LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the loop, and the loop goes on afterwards."""

    class Interrupting(socket.socket):
        armed = False

        def recv(self, *args: Any) -> bytes:
            if Interrupting.armed:
                Interrupting.armed = False
                raise KeyboardInterrupt
            return super().recv(*args)

    loop = loop_factory()
    first, peer = socket.socketpair()
    ours = Interrupting(fileno=first.detach())
    ours.setblocking(False)
    with ours, peer:
        task = loop.create_task(loop.sock_recv(ours, 10))
        loop.run_until_complete(asyncio.sleep(0))
        Interrupting.armed = True
        peer.send(b"abc")
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.sleep(5))
        assert loop.run_until_complete(task) == b"abc"
    loop.close()


def test_fork_while_waiting(loop_name: str) -> None:
    """In the child the coroutine can be ended; the parent's goes on undisturbed."""
    support.needs_cpploop(loop_name, "its epoll set is shared with the child")

    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()
        with ours, peer:
            operation: Any = loop.sock_recv(ours, 10)
            task = asyncio.ensure_future(operation)
            await support.turns(2)
            with support_warnings():
                child = os.fork()
            if child == 0:
                status = 1
                try:
                    operation.close()
                    try:
                        loop.sock_recv(ours, 10).send(None)
                    except RuntimeError as exc:
                        status = 0 if "fork" in str(exc) else 2
                finally:
                    os._exit(status)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            peer.send(b"abc")
            assert await asyncio.wait_for(task, 5) == b"abc"

    support.run(support.factory(loop_name), main)


@contextlib.contextmanager
def support_warnings() -> Any:
    """Without 3.12's warning about fork() in a process that has threads."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


Call = Callable[[Any, socket.socket], Any]


@pytest.mark.skipif(sys.platform != "linux", reason="counts system calls by epoll's list")
def test_nothing_is_registered_afterwards(run: Any) -> None:
    """After every kind of end the kernel's set has what it had before."""

    async def main(env: support.Env) -> None:
        loop: Any = env.loop
        ours, peer = support.unix_pair()
        with ours, peer:
            calls: list[Call] = [
                lambda loop, sock: loop.sock_recv(sock, 10),
                lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
                lambda loop, sock: loop.sock_recvfrom(sock, 10),
                lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
            ]
            for call in calls:
                task = asyncio.ensure_future(call(loop, ours))
                await support.turns(2)
                assert is_watched(loop, ours)
                peer.send(b"x")
                await task
                await support.turns(1)
                assert not is_watched(loop, ours)

    run(main)
