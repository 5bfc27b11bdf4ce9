"""Reading: delivery, pausing, the end of the stream, resets, fairness."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from typing import Any

import pytest
import support
from support import BufferedRecorder, Env, Recorder, attach, recv_exactly, turns

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])
protocols = pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])


@kinds
@protocols
def test_large_input_arrives(run: Any, kind: str, protocol: Any) -> None:
    async def main() -> None:
        data = random.Random(2).randbytes(3_000_000)
        rec = protocol()
        async with support.transport_pair(rec, kind) as (_transport, peer):
            await support.send_all(peer, data)
            await rec.until_received(len(data))
            assert rec.received == data

    run(main)


def test_data_is_exact_bytes(run: Any) -> None:
    async def main() -> None:
        types = []
        rec = Recorder(on={"data_received": lambda rec, data: types.append((type(data), data))})
        async with support.transport_pair(rec) as (_transport, peer):
            for size in (1, 2, 100, 5000, 70_000):
                await support.send_all(peer, bytes(size))
                await rec.until_received(size)
                rec.received.clear()
        assert {kind for kind, _ in types} == {bytes}
        # A small message does not pin the large buffer it was read into.
        assert types[0][1] == b"\0" and types[0][1].__sizeof__() < 100

    run(main)


def test_received_objects_stay_what_they_were(run: Any) -> None:
    """Kept bytes never change when the next read reuses memory."""

    async def main() -> None:
        kept: list[bytes] = []
        rec = Recorder(on={"data_received": lambda rec, data: kept.append(data)})
        async with support.transport_pair(rec) as (_transport, peer):
            for number in range(50):
                peer.send(b"%03d" % number * 10)
                await rec.until_received(30 * (number + 1))
        assert b"".join(kept) == b"".join(b"%03d" % number * 10 for number in range(50))

    run(main)


# --------------------------------------------------------------------------- pausing


@kinds
@protocols
def test_pause_and_resume_reading(kind: str, protocol: Any) -> None:
    async def scenario(env: Env) -> None:
        rec = protocol(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            transport.pause_reading()
            env.log("reading", transport.is_reading())
            peer.send(b"while paused")
            await turns(5)
            env.log("still paused")
            transport.resume_reading()
            env.log("reading", transport.is_reading())
            await rec.until_received(12)
            # Calls that change nothing.
            transport.resume_reading()
            transport.pause_reading()
            transport.pause_reading()
            env.log("reading", transport.is_reading())
            transport.resume_reading()
            transport.resume_reading()
            peer.send(b"again")
            await rec.until_received(17)

    support.compare(scenario)


def test_pause_takes_effect_inside_the_turn() -> None:
    """Data that is already readable in this turn is not delivered after pause_reading."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            for number in range(5):
                peer.send(b"x")
                assert support.readable(transport.get_extra_info("socket"), 2)
                # Runs before the read event that the next poll finds.
                env.loop.call_soon(transport.pause_reading)
                await turns(4)
                env.log("paused", number, len(rec.received) <= number + 1)
                transport.resume_reading()
                await rec.until_received(number + 1)

    support.compare(scenario)


def test_pause_inside_data_received(run: Any) -> None:
    async def main() -> None:
        def pause(rec: Recorder, data: bytes) -> None:
            rec.transport.pause_reading()

        rec = Recorder(on={"data_received": pause})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"one")
            await rec.until_received(3)
            peer.send(b"two")
            await asyncio.sleep(0.02)
            assert rec.received == b"one"
            transport.resume_reading()
            await rec.until_received(6)
            assert rec.received == b"onetwo"

    run(main)


@pytest.mark.parametrize("callback", ["connection_made", "data_received"])
@pytest.mark.parametrize("action", ["pause", "pause and resume", "resume", "close", "abort"])
def test_reading_state_changed_in_callbacks(callback: str, action: str) -> None:
    async def scenario(env: Env) -> None:
        def act(rec: Recorder, *args: Any) -> None:
            transport = rec.transport
            if "pause" in action:
                transport.pause_reading()
            if "resume" in action:
                transport.resume_reading()
            if action in ("close", "abort"):
                getattr(transport, action)()
            env.log(action, transport.is_reading(), transport.is_closing())

        rec = Recorder(env, on={callback: act})
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"one")
            if callback == "data_received":
                await rec.until("data_received")
            await asyncio.sleep(0.02)
            env.log("later", transport.is_reading(), rec.count("connection_lost"))

    support.compare(scenario)


@protocols
def test_paused_transport_and_a_reset(run: Any, protocol: Any) -> None:
    """A paused transport whose peer resets neither spins nor reports before it resumes."""

    async def main() -> None:
        rec = protocol()
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            support.reset(peer)
            await support.assert_idle(0.15)
            assert rec.names() == ["connection_made"]
            assert not transport.is_closing()
            transport.resume_reading()
            await rec.until("connection_lost")
            assert isinstance(rec.exc, ConnectionResetError)
            assert rec.names() == ["connection_made", "connection_lost"]

    run(main)


@kinds
def test_paused_transport_and_the_end(run: Any, kind: str) -> None:
    """The same for an orderly end, with data still unread."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec, kind) as (transport, peer):
            transport.pause_reading()
            peer.send(b"last words")
            peer.close()
            await support.assert_idle(0.15)
            assert rec.names() == ["connection_made"]
            transport.resume_reading()
            await rec.until("connection_lost")
            assert rec.calls[1:] == [
                ("data_received", b"last words"),
                ("eof_received",),
                ("connection_lost", None),
            ]

    run(main)


def test_paused_while_writing_and_the_peer_resets() -> None:
    """With data queued the fd stays polled for writing: the write error ends the connection."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            await support.fill(transport)
            support.reset(peer)
            await rec.until("connection_lost")
            env.log(type(rec.exc))

    support.compare(scenario)


def test_closing_while_flushing_to_a_peer_that_sends(run: Any) -> None:
    """After close() nothing is received, and unread input does not make the loop spin."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            filled = await support.fill(transport)
            transport.close()
            peer.send(b"ignored")
            await support.assert_idle(0.1)
            assert rec.count("data_received") == 0
            # The kernel answers the unread input with a reset, which may overtake the data.
            with contextlib.suppress(ConnectionResetError):
                await recv_exactly(peer, filled)
            await rec.until("connection_lost")
            assert rec.exc is None and rec.count("data_received") == 0

    run(main)


@pytest.mark.parametrize("how", ["close", "abort"])
def test_end_of_a_paused_transport(how: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            peer.send(b"unread")
            getattr(transport, how)()
            transport.resume_reading()
            env.log(transport.is_reading())
            await rec.until("connection_lost")

    support.compare(scenario)


def test_paused_and_resumed_many_times_under_load(run: Any) -> None:
    async def main() -> None:
        data = random.Random(3).randbytes(400_000)

        def pause(rec: Recorder, _: bytes) -> None:
            rec.transport.pause_reading()
            asyncio.get_running_loop().call_soon(rec.transport.resume_reading)

        rec = Recorder(on={"data_received": pause})
        async with support.transport_pair(rec) as (_transport, peer):
            await support.send_all(peer, data)
            await rec.until_received(len(data))
            assert rec.received == data

    run(main)


# --------------------------------------------------------------------------- the end


@kinds
@protocols
@pytest.mark.parametrize("answer", [None, False, True, 0, 1, "yes"], ids=repr)
def test_eof_received_answers(kind: str, protocol: Any, answer: Any) -> None:
    """A true answer keeps the connection open for writing, a false one closes it."""

    async def scenario(env: Env) -> None:
        rec = protocol(env, on={"eof_received": lambda rec: answer})
        async with support.transport_pair(rec, kind) as (transport, peer):
            peer.send(b"data")
            peer.shutdown(socket.SHUT_WR)
            await rec.until("eof_received")
            env.log("closing", transport.is_closing(), transport.is_reading())
            if answer:
                await turns(3)
                transport.write(b"still writing")
                env.log("peer got", await recv_exactly(peer, 13))
                transport.close()
            await rec.until("connection_lost")
            env.log("rest", await recv_exactly(peer, 1))

    support.compare(scenario)


def test_eof_with_data_queued() -> None:
    """The queue is flushed after the peer's end of stream."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport)
            peer.shutdown(socket.SHUT_WR)
            await rec.until("eof_received")
            env.log("closing", transport.is_closing())
            env.log(len(await support.recv_to_end(peer)) - filled)
            await rec.until("connection_lost")

    support.compare(scenario)


@kinds
def test_kept_open_after_eof_does_not_spin(run: Any, kind: str) -> None:
    """After eof_received() gave True the fd is not polled, whatever the peer does."""

    async def main() -> None:
        rec = Recorder(on={"eof_received": lambda rec: True})
        async with support.transport_pair(rec, kind) as (transport, peer):
            peer.shutdown(socket.SHUT_WR)
            await rec.until("eof_received")
            await support.assert_idle(0.1)
            peer.close()
            await support.assert_idle(0.1)
            assert rec.names() == ["connection_made", "eof_received"]
            for _ in range(20):
                transport.write(b"x")
                if transport.is_closing():
                    break
                await asyncio.sleep(0.005)
            await rec.until("connection_lost")
            assert isinstance(rec.exc, ConnectionError)

    run(main)


def test_resume_after_eof() -> None:
    """pause and resume after a kept-open end of stream: what asyncio reports, nothing else."""

    async def scenario(env: Env) -> None:
        answers = [True, True, False]
        rec = Recorder(env, on={"eof_received": lambda rec: answers.pop(0)})
        async with support.transport_pair(rec) as (transport, peer):
            peer.shutdown(socket.SHUT_WR)
            await rec.until("eof_received")
            env.log(transport.is_reading())
            transport.pause_reading()
            transport.resume_reading()
            await rec.until("eof_received", 2)
            transport.pause_reading()
            transport.resume_reading()
            await rec.until("connection_lost")

    support.compare(scenario)


@protocols
def test_reset_while_reading(protocol: Any) -> None:
    """An RST becomes connection_lost(ConnectionResetError); no eof_received, no report."""

    async def scenario(env: Env) -> None:
        rec = protocol(env)
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"data")
            await rec.until_received(4)
            support.reset(peer)
            await rec.until("connection_lost")
            env.log(type(rec.exc), getattr(rec.exc, "errno", None))

    support.compare(scenario)


def test_reset_is_logged_in_debug_mode_only_at_debug_level(run: Any) -> None:
    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (_transport, peer):
            support.reset(peer)
            await rec.until("connection_lost")

    run(main, debug=True)


def test_reset_with_unread_data() -> None:
    """The kernel drops what was unread: the reset is told, the data may not be."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            peer.send(b"lost?")
            support.reset(peer)
            await turns(3)
            transport.resume_reading()
            await rec.until("connection_lost")
            env.log(type(rec.exc))

    support.compare(scenario)


def test_close_with_unread_input_does_not_report_it() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            peer.send(b"never seen")
            assert support.readable(transport.get_extra_info("socket"), 2)
            transport.close()
            await rec.until("connection_lost")
            await turns(3)

    support.compare(scenario)


def test_half_close_from_our_side() -> None:
    """write_eof: the peer sees the end and can still talk to us."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.write_eof()
            env.log("peer", await support.recv_to_end(peer))
            for word in (b"one", b"two"):
                peer.send(word)
                await turns(3)
            await rec.until_received(6)
            env.log(transport.is_closing())
            peer.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")

    support.compare(scenario)


# --------------------------------------------------------------------------- fairness


def test_a_flooding_peer_does_not_starve_the_loop(run: Any) -> None:
    """One read per readiness: callbacks and other connections get their turns (aiofastnet#62)."""

    async def main() -> None:
        import threading

        flooded, quiet = Recorder(), Recorder()
        stop = threading.Event()

        async with (
            support.transport_pair(flooded) as (_t1, flooder),
            support.transport_pair(quiet) as (_t2, peer),
        ):
            flooder.setblocking(True)
            flooder.settimeout(0.5)

            def flood() -> None:
                block = bytes(1 << 18)
                while not stop.is_set():
                    try:
                        flooder.send(block)
                    except OSError:
                        return

            thread = threading.Thread(target=flood)
            thread.start()
            try:
                await flooded.until("data_received")
                flooded.received.clear()
                worst = 0.0
                for number in range(30):
                    start = time.monotonic()
                    peer.send(b"x")
                    await quiet.until_received(number + 1)
                    worst = max(worst, time.monotonic() - start)
                assert worst < 0.5 * support.TIME_SCALE
            finally:
                stop.set()
                flooded.on["data_received"] = lambda rec, data: rec.received.clear()
                while thread.is_alive():
                    await asyncio.sleep(0.005)
                thread.join()

    run(main)


def test_one_read_per_readiness(run: Any, loop_name: str) -> None:
    """A callback scheduled by data_received runs before the same connection is read again.

    aiofastnet#62.
    """

    async def main() -> None:
        order: list[str] = []

        def received(rec: Recorder, data: bytes) -> None:
            order.append("data")
            asyncio.get_running_loop().call_soon(order.append, "callback")

        rec = Recorder(on={"data_received": received})
        async with support.transport_pair(rec) as (_transport, peer):
            data = bytes(2_000_000)
            await support.send_all(peer, data)
            await rec.until_received(len(data))
            await turns(2)
        assert order == ["data", "callback"] * (len(order) // 2)

    run(main)


def test_transport_attached_to_a_socket_the_peer_already_closed() -> None:
    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        peer.send(b"bye")
        peer.close()
        rec = Recorder(env)
        await attach(sock, rec)
        await rec.until("connection_lost")

    support.compare(scenario)
