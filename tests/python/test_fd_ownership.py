"""Descriptors: each closed exactly once, never somebody else's, never one connection's bytes to
another. The first thing this loop promises not to do wrong (C1 to C4)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest
import support
from datagrams import DatagramRecorder
from support import Env, Recorder, attach, turns
from thief import fd_thief


def udp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected UDP sockets that do not block."""
    first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (first, second):
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
    first.connect(second.getsockname())
    second.connect(first.getsockname())
    return first, second


def test_connections_in_every_way_of_dying_with_a_thief(run: Any, seed: int) -> None:
    """C2: no descriptor is closed twice, whatever ends the connection."""

    async def main(env: Env) -> None:
        rng = random.Random(seed)
        raised = 0
        with fd_thief():
            for number in range(150 if not support.LONG else 5000):
                sock, peer = (support.tcp_pair, support.unix_pair)[number % 2]()
                rec = Recorder()
                task = asyncio.ensure_future(attach(sock, rec))
                match rng.randrange(7):
                    case 0:
                        await turns(rng.randrange(4))
                        task.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            (await task)[0].abort()
                    case 1:
                        (await task)[0].abort()
                    case 2:
                        (await task)[0].close()
                    case 3:
                        await task
                        peer.close()
                        await rec.until("connection_lost")
                    case 4:
                        transport = (await task)[0]
                        transport.write(bytes(1 << 20))
                        transport.close()
                        transport.abort()
                    case 5:
                        transport = (await task)[0]
                        transport.pause_reading()
                        peer.close()
                        transport.abort()
                    case 6:
                        raised += 1
                        rec.on["connection_lost"] = lambda rec, exc: 1 / 0
                        (await task)[0].close()
                peer.close()
                rec.transport = None
                del task, sock
                if number % 25 == 0:
                    gc.collect()
            await asyncio.sleep(0.02)
        # Only what was raised on purpose.
        report = ("Exception in callback …", "ZeroDivisionError(division by zero)")
        assert env.take_errors() == [report] * raised

    # A cancelled create_connection leaves its socket to older asyncios' collector.
    run(main, timeout=50, check_warnings=False)


def test_no_connection_gets_the_bytes_of_another(run: Any, seed: int) -> None:
    """C1, C4: tagged payloads under churn and random cancellation; any cross-delivery fails."""

    async def main(env: Env) -> None:
        rng = random.Random(seed)
        wrong: list[Any] = []

        def served(rec: Recorder, data: bytes) -> None:
            # A line "tag" is answered with "tag" a random number of times; one tag per
            # connection, ever.
            rec.buffer = getattr(rec, "buffer", b"") + data  # type: ignore[attr-defined]
            *lines, rec.buffer = rec.buffer.split(b"\n")  # type: ignore[attr-defined]
            for line in lines:
                tag = getattr(rec, "tag", line)
                rec.tag = tag  # type: ignore[attr-defined]
                if tag != line:
                    wrong.append(("server", tag, line))
                for _ in range(rng.randrange(1, 4)):
                    rec.transport.write(line + b"\n")
            if rng.random() < 0.05:
                rng.choice((rec.transport.close, rec.transport.abort))()

        server = await env.loop.create_server(
            lambda: Recorder(on={"data_received": served}), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()
        stop = env.loop.time() + (3.0 if not support.LONG else 60.0)

        async def one_connection(tag: bytes) -> None:
            def received(rec: Recorder, data: bytes) -> None:
                if rec.received.replace(tag + b"\n", b"") not in (
                    tag[:length] for length in range(len(tag) + 1)
                ):
                    wrong.append(("client", tag, bytes(rec.received[-100:])))

            rec = Recorder(on={"data_received": received})
            sock = None
            if rng.random() < 0.4:
                sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                sock.setblocking(False)
                try:
                    await env.loop.sock_connect(sock, address)
                    transport, _ = await env.loop.create_connection(lambda: rec, sock=sock)
                except BaseException:
                    # C1: after a cancellation closing again must not hit anybody.
                    sock.close()
                    raise
            else:
                transport, _ = await env.loop.create_connection(lambda: rec, *address)
            try:
                for _ in range(rng.randrange(1, 8)):
                    transport.write(tag)
                    transport.write(b"\n")
                    await asyncio.sleep(rng.choice((0, 0, 0.001)))
            finally:
                rng.choice((transport.close, transport.abort))()
            await rec.until("connection_lost")

        async def client(number: int) -> None:
            round_ = 0
            while env.loop.time() < stop and not wrong:
                round_ += 1
                tag = b"<%d.%d>" % (number, round_)
                task = asyncio.ensure_future(one_connection(tag))
                if rng.random() < 0.4:
                    await asyncio.sleep(rng.choice((0, 0, 0, 0.0005, 0.002)))
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await task

        await asyncio.gather(*(client(number) for number in range(24)))
        assert wrong == []
        server.close()
        await asyncio.sleep(0.05)
        await server.wait_closed()
        # Writing to what was aborted meanwhile is warned about, and meant to be.
        assert set(env.take_logs()) <= {"socket.send() raised exception."}

    run(main, timeout=30 if not support.LONG else 120, check_warnings=False)


def test_close_and_reuse_inside_one_poll_batch(run: Any) -> None:
    """C4: events of a closed descriptor, whose number is taken again in the turn, are dropped."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(20):
            pairs = [support.unix_pair() for _ in range(6)]
            recorders = [Recorder() for _ in pairs]
            for (sock, _), rec in zip(pairs, recorders, strict=True):
                await attach(sock, rec)
            numbers = {sock.fileno() for sock, _ in pairs}
            fresh: list[Any] = []
            stale: list[int] = []

            def first_event(
                rec: Recorder,
                data: bytes,
                pairs: Any = pairs,
                recorders: Any = recorders,
                fresh: Any = fresh,
                stale: Any = stale,
            ) -> None:
                if fresh:
                    return
                # Everybody else dies in this very turn, and their numbers live again, watched.
                for (sock, _), other in zip(pairs, recorders, strict=True):
                    if other is not rec:
                        other.transport.abort()
                        sock.close()
                fresh.extend(support.unix_pair() for _ in range(6))
                for sock, _ in fresh:
                    loop.add_reader(sock, stale.append, sock.fileno())

            for rec in recorders:
                rec.on["data_received"] = first_event
            for number, (_, peer) in enumerate(pairs):
                peer.send(b"to %d" % number)
            await asyncio.sleep(0.005)
            assert numbers & {sock.fileno() for sock, _ in fresh}
            delivered = [(n, bytes(rec.received)) for n, rec in enumerate(recorders)]
            delivered = [item for item in delivered if item[1]]
            assert len(delivered) == 1
            assert delivered[0][1] == b"to %d" % delivered[0][0]
            assert stale == []
            for sock, _ in fresh:
                assert loop.remove_reader(sock)
            # The newcomers are untouched: nobody read from them.
            late = [Recorder() for _ in fresh]
            for (sock, peer), rec in zip(fresh, late, strict=True):
                peer.send(b"new")
                await attach(sock, rec)
            for rec in late:
                await rec.until_received(3)
                assert rec.received == b"new"
            for rec in (*recorders, *late):
                if rec.transport.get_protocol() is not None:
                    rec.transport.abort()
            for _, peer in (*pairs, *fresh):
                peer.close()
            await turns(3)

    run(main)


def test_transport_closed_and_its_number_watched_in_the_same_turn(run: Any) -> None:
    """C4: add_reader on a number that a transport has just given back gets its own events only."""

    async def main(env: Env) -> None:
        for _ in range(10):
            sock, peer = support.unix_pair()
            rec = Recorder()
            await attach(sock, rec)
            fd = sock.fileno()
            peer.send(b"old")
            rec.transport.abort()
            sock.close()
            reading, writing = os.pipe()
            events: list[bytes] = []
            if reading != fd:
                reading, old = os.dup2(reading, fd), reading
                os.close(old)
            env.loop.add_reader(fd, lambda fd=fd, to=events: to.append(os.read(fd, 100)))
            await asyncio.sleep(0.002)
            assert events == []
            os.write(writing, b"new")
            await support.eventually(lambda events=events: events)
            assert events == [b"new"]
            assert env.loop.remove_reader(fd)
            os.close(fd)
            os.close(writing)
            peer.close()
            assert rec.received == b""

    run(main)


def test_foreign_descriptor_survives_churn(run: Any) -> None:
    """C3: a socket that a library registers and unregisters itself, in the midst of heavy churn."""

    async def main(env: Env) -> None:
        ours, theirs = support.unix_pair()
        stat = os.fstat(ours.fileno())
        for number in range(60):
            seen: list[bytes] = []
            env.loop.add_reader(ours, lambda seen=seen: seen.append(ours.recv(100)))
            theirs.send(b"%d" % number)
            await support.eventually(lambda seen=seen: seen)
            assert seen == [b"%d" % number]
            env.loop.remove_reader(ours)
            for _ in range(3):
                sock, peer = support.unix_pair()
                rec = Recorder()
                transport, _ = await attach(sock, rec)
                transport.abort()
                peer.close()
            await turns(2)
            # A psycopg-like second look while it is not registered at all.
            assert os.fstat(ours.fileno()).st_ino == stat.st_ino
        ours.close()
        theirs.close()

    run(main)


def test_socket_object_handed_in(run: Any) -> None:
    """What the caller's socket object says while the transport is open, and after."""

    async def main() -> None:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        # Dropping it does not close the connection.
        fd = sock.fileno()
        assert fd == transport.get_extra_info("socket").fileno()
        del sock
        gc.collect()
        os.fstat(fd)
        peer.send(b"still here")
        await rec.until_received(10)
        transport.close()
        await rec.until("connection_lost")
        await turns(1)
        peer.close()

    run(main)


@pytest.mark.parametrize("how", ["close", "abort", "pause"])
@pytest.mark.parametrize("newcomer", ["add_reader", "sock_connect", "transport"])
def test_callers_socket_closed_beside_the_transport(run: Any, how: str, newcomer: str) -> None:
    """C1: the caller closes its socket object while the transport is closing, as clients do after
    a cancelled connect; whoever gets the number next keeps its registration and its descriptor.
    """

    async def main(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for _ in range(5):
                sock, peer = support.unix_pair()
                rec = Recorder()
                transport, _ = await attach(sock, rec)
                fd = sock.fileno()
                if how == "pause":
                    transport.pause_reading()
                getattr(transport, "abort" if how == "pause" else how)()
                sock.close()
                if newcomer == "sock_connect":
                    fresh, other = socket.socket(), None
                    fresh.setblocking(False)
                    connecting = env.loop.sock_connect(fresh, listener.getsockname())
                    await asyncio.wait_for(connecting, 5 * support.TIME_SCALE)
                else:
                    fresh, other = support.unix_pair()
                    second = Recorder()
                    if newcomer == "transport":
                        await attach(fresh, second)
                        other.send(b"new")
                        await asyncio.wait_for(second.until_received(3), 5 * support.TIME_SCALE)
                        assert second.received == b"new"
                        second.transport.abort()
                    else:
                        seen: list[bytes] = []
                        env.loop.add_reader(
                            fresh, lambda fresh=fresh, seen=seen: seen.append(fresh.recv(100))
                        )
                        await turns(3)
                        other.send(b"new")
                        await support.eventually(lambda seen=seen: seen)
                        assert seen == [b"new"]
                        env.loop.remove_reader(fresh)
                await turns(3)
                if newcomer != "transport":
                    assert os.fstat(fresh.fileno()), fd
                    fresh.close()
                if other is not None:
                    other.close()
                peer.close()
                await turns(2)

    run(main)


@pytest.mark.parametrize("how", ["write", "gather", "write_eof", "read", "pause"])
def test_callers_socket_closed_under_a_living_transport(run: Any, how: str) -> None:
    """C1: the number goes to somebody else at once, who gets none of the transport's bytes, and
    whose bytes the transport does not get. Nobody holds the socket object any more, either."""

    async def main(env: Env) -> None:
        ours, peer = support.unix_pair()
        holders = [ours]
        rec = Recorder()
        transport, _ = await attach(ours, rec)
        fd = ours.fileno()
        del ours
        theirs: list[socket.socket] = []

        def closed_and_taken() -> None:
            holders.pop().close()
            theirs.extend(support.unix_pair())
            assert theirs[0].fileno() == fd

        expected = b""
        if how == "write":
            transport.write(b"before")
            closed_and_taken()
            transport.write(b"after")
            expected = b"before"
        elif how == "gather":

            def several() -> None:
                for piece in (b"one", b"two", b"three"):
                    transport.write(piece)
                closed_and_taken()

            env.loop.call_soon(several)
            expected = b"onetwothree"
        elif how == "write_eof":
            closed_and_taken()
            with pytest.raises(OSError, match="Bad file descriptor"):
                transport.write_eof()
        elif how == "pause":
            for _ in range(12):
                peer.send(b"p")
                await turns(2)
            rec.received.clear()
            transport.pause_reading()
            await turns(2)
            closed_and_taken()
        else:
            peer.send(b"too late")
            closed_and_taken()
            theirs[1].send(b"for somebody else")
        await turns(3)
        if how == "pause":
            if env.name == "cpploop":  # asyncio watches the number, whosever it is.
                transport.resume_reading()
            await turns(2)
            theirs[1].send(b"for somebody else")
            await turns(3)
        if how != "read":  # What the peer sent there was not read, so it meets a reset.
            assert support.recv_now(peer) == expected
        theirs_bytes = b"for somebody else" if how in ("read", "pause") else b""
        assert support.recv_now(theirs[0]) == theirs_bytes
        assert support.recv_now(theirs[1]) == b""
        assert rec.received == b""
        transport.abort()
        await rec.until("connection_lost")
        for end in (peer, *theirs):
            os.fstat(end.fileno())
            end.close()

    run(main)


def test_callers_socket_closed_while_a_file_is_sent(
    run: Any, loop_name: str, tmp_path: Path
) -> None:
    """C1: aborting does not shut the next user of the number down."""
    support.needs_cpploop(loop_name, "its sendfile() ends in an InvalidStateError")

    async def main(env: Env) -> None:
        path = tmp_path / "large"
        path.write_bytes(bytes(16 << 20))
        sock, peer = support.unix_pair()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        with path.open("rb") as file:
            sending = env.loop.create_task(env.loop.sendfile(transport, file))
            await asyncio.sleep(0.05)
            fd = sock.fileno()
            sock.close()
            theirs = support.unix_pair()
            assert theirs[0].fileno() == fd
            transport.abort()
            await rec.until("connection_lost")
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        assert theirs[0].send(b"x") == 1
        for end in (peer, *theirs):
            end.close()

    run(main)


def test_callers_datagram_socket_closed_between_two_datagrams(run: Any) -> None:
    """C1: what waits behind the first of them at the same number is not the endpoint's."""

    async def main(env: Env) -> None:
        first, peer = support.unix_pair(socket.SOCK_DGRAM)
        theirs: list[socket.socket] = []
        fd = first.fileno()

        def taken(_: Any, *__: Any) -> None:
            if not theirs:
                first.close()
                theirs.extend(support.unix_pair(socket.SOCK_DGRAM))
                assert theirs[0].fileno() == fd
                theirs[1].send(b"for somebody else")

        rec = DatagramRecorder(on={"datagram_received": taken})
        transport, _ = await env.loop.create_datagram_endpoint(lambda: rec, sock=first)
        for _ in range(2):
            peer.send(b"ours")
        await rec.until("datagram_received")
        await turns(3)
        assert support.recv_now(theirs[0]) == b"for somebody else"
        transport.abort()
        await rec.until("connection_lost")
        for end in (peer, *theirs):
            end.close()

    run(main)


def test_the_rest_goes_out_although_somebody_asks_to_watch(run: Any, loop_name: str) -> None:
    """A transport that closes with bytes to send keeps its registration."""
    support.needs_cpploop(
        loop_name, "it lets both watch, and takes the writer away with the reader"
    )

    async def main(env: Env) -> None:
        sock, peer = support.unix_pair()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        transport.write(bytes(4 << 20))
        transport.close()
        with pytest.raises(RuntimeError, match="is used by transport"):
            env.loop.add_reader(sock, print)
        assert len(await support.recv_to_end(peer)) == 4 << 20
        await rec.until("connection_lost")
        peer.close()

    run(main)


@pytest.mark.parametrize("then", ["pause_reading", "close"])
def test_nothing_is_read_for_one_who_paused_when_told_that_the_kernel_is_full(
    run: Any, then: str
) -> None:
    """What a callback has written is sent before the connection is read from; that may pause it."""

    async def main(env: Env) -> None:
        sock, peer = support.unix_pair()
        rec = Recorder(on={"pause_writing": lambda r: getattr(r.transport, then)()})
        transport, _ = await attach(sock, rec)
        transport.set_write_buffer_limits(0)
        peer.send(b"later")

        def write() -> None:
            for _ in range(64):
                transport.write(bytes(60_000))

        env.loop.call_soon(write)
        await turns(3)
        assert rec.count("pause_writing") == 1
        assert rec.received == b""
        transport.abort()
        await rec.until("connection_lost")
        peer.close()

    run(main)


def test_callers_datagram_socket_closed_under_a_living_transport(run: Any) -> None:
    """C1: as above, for datagrams, whose errors the protocol is told."""

    async def main(env: Env) -> None:
        peer, other = udp_pair()
        ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ours.setblocking(False)
        ours.connect(peer.getsockname())
        rec = DatagramRecorder()
        transport, _ = await env.loop.create_datagram_endpoint(lambda: rec, sock=ours)
        await turns(2)
        fd = ours.fileno()
        ours.close()
        theirs = udp_pair()
        assert theirs[0].fileno() == fd
        theirs[1].send(b"for somebody else")
        transport.sendto(b"lost")
        await turns(3)
        assert "error_received" in rec.names()
        assert support.recv_now(theirs[0]) == b"for somebody else"
        assert support.recv_now(theirs[1]) == b""
        transport.abort()
        await rec.until("connection_lost")
        for end in (peer, other, *theirs):
            end.close()

    run(main)


def test_listener_closed_by_a_cancelled_create_server(run: Any, loop_name: str) -> None:
    """The next user of the number keeps its registration when the forgotten server sets its own."""
    support.needs_cpploop(loop_name, "its selector takes the two for one")

    async def main(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as somewhere:
            for _ in range(5):
                listener = socket.socket()
                listener.setblocking(False)
                listener.bind(("127.0.0.1", 0))
                starting = env.loop.create_server(asyncio.Protocol, sock=listener)
                assert starting.send(None) is None  # Waits for its turn: it listens already.
                fd = listener.fileno()
                listener.close()
                starting.close()
                fresh = socket.socket()
                fresh.setblocking(False)
                assert fresh.fileno() == fd
                connecting = env.loop.sock_connect(fresh, somewhere.getsockname())
                await asyncio.wait_for(connecting, 5 * support.TIME_SCALE)
                fresh.close()

    run(main)


def test_duplicated_socket_is_independent(run: Any) -> None:
    """A dup of the transport's socket outlives it, and closing the transport leaves it alone."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            copy = transport.get_extra_info("socket").dup()
            transport.close()
            await rec.until("connection_lost")
            await turns(1)
            copy.setblocking(False)
            copy.send(b"from the copy")
            assert await support.recv_exactly(peer, 13) == b"from the copy"
            copy.close()
            assert await support.recv_exactly(peer, 1) == b""

    run(main)


def test_failed_setups_leave_no_descriptor(run: Any, certs: support.Certificates) -> None:
    """Every way of failing to connect or to serve, many times: no descriptor is left."""

    async def main(env: Env) -> None:
        holder, port = support.refused_port()
        with holder, support.short_directory() as directory:
            (directory / "plain").write_text("x")
            for _ in range(5):
                for attempt in (
                    env.loop.create_connection(Recorder, "127.0.0.1", port),
                    env.loop.create_connection(
                        Recorder, "127.0.0.1", port, happy_eyeballs_delay=0.01
                    ),
                    env.loop.create_connection(
                        Recorder, "127.0.0.1", port, local_addr=("192.0.2.1", 0)
                    ),
                    env.loop.create_server(Recorder, "192.0.2.1", 0),
                    env.loop.create_server(Recorder, ["127.0.0.1", "192.0.2.1"], 0),
                    env.loop.create_unix_connection(Recorder, directory / "missing"),
                    env.loop.create_unix_server(Recorder, directory / "plain"),
                ):
                    try:
                        result = await attempt
                    except OSError:
                        continue
                    # Newer Pythons serve on the addresses that can be bound.
                    assert isinstance(result, asyncio.Server)
                    result.close()
                    await result.wait_closed()

    run(main)


def test_loop_life_cycles_leave_no_descriptor(loop_factory: support.LoopFactory) -> None:
    """Fifty loops with a connection each: the process's descriptors are what they were."""
    gc.collect()
    before = support.open_fds()

    async def one() -> None:
        sock, peer = support.unix_pair()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        transport.write(b"x")
        assert await support.recv_exactly(peer, 1) == b"x"
        transport.close()
        peer.close()
        await rec.until("connection_lost")

    for _ in range(50):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(one())
    gc.collect()
    assert support.new_fds(before) == {}


def test_transport_inherited_through_fork(loop_name: str) -> None:
    """A child that exits with the loop and its transports open does not disturb the parent."""
    result = support.run_script(
        """
        import asyncio, gc, os, warnings
        from support import Recorder, attach, recv_exactly, tcp_pair, turns
        warnings.simplefilter("ignore")

        async def main():
            loop = asyncio.get_running_loop()
            sock, peer = tcp_pair()
            rec = Recorder()
            transport, _ = await attach(sock, rec)
            peer.send(b"before")
            await rec.until_received(6)
            pid = os.fork()
            if pid == 0:
                # Dropping everything in the child, whatever order the collector likes.
                try:
                    del transport, rec, sock
                    gc.collect()
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            peer.send(b"after")
            await asyncio.wait_for(rec.until_received(11), 10)
            transport.write(b"answer")
            assert await recv_exactly(peer, 6) == b"answer"
            transport.close()
            await rec.until("connection_lost")
            await turns(1)
            assert await recv_exactly(peer, 1) == b""
            peer.close()
            print("ok")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """,
        loop=loop_name,
    )
    assert result.stdout == "ok\n"


def test_inherited_loop_refuses_to_work(loop_name: str) -> None:
    """In another process every call raises, and close() only closes."""
    support.needs_cpploop(loop_name, "a forked asyncio loop shares its parent's epoll set")
    result = support.run_script(
        """
        import asyncio, os, warnings
        from support import Recorder, attach, recv_exactly, recv_now, tcp_pair
        warnings.simplefilter("ignore")

        loop = factory()
        sock, peer = tcp_pair()
        rec = Recorder()
        transport, _ = loop.run_until_complete(attach(sock, rec))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                failures = []
                for name, call in {
                    "call_soon": lambda: loop.call_soon(print),
                    "call_later": lambda: loop.call_later(0, print),
                    "add_reader": lambda: loop.add_reader(0, print),
                    "run_forever": lambda: loop.run_forever(),
                    "write": lambda: transport.write(b"from the child"),
                    "writelines": lambda: transport.writelines([b"from the child"]),
                    "close": lambda: transport.close(),
                    "abort": lambda: transport.abort(),
                }.items():
                    try:
                        call()
                        failures.append(name)
                    except RuntimeError:
                        pass
                loop.close()
                assert loop.is_closed()
                assert not failures, failures
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert recv_now(peer) == b""
        peer.send(b"to the parent")
        loop.run_until_complete(asyncio.wait_for(rec.until_received(13), 10))
        transport.write(b"from the parent")
        got = loop.run_until_complete(recv_exactly(peer, 15))
        assert got == b"from the parent", got
        transport.close()
        loop.run_until_complete(rec.until("connection_lost"))
        loop.close()
        peer.close()
        print("ok")
        """,
        loop=loop_name,
    )
    assert result.stdout == "ok\n"
