"""Writing: at once, gathered, bounded, flow control, buffers that change, errors."""

from __future__ import annotations

import array
import asyncio
import hashlib
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import support
from support import Env, Recorder, attach, recv_exactly, recv_now, turns

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])

# What a loopback peer can read shows up at once; the time-out only bounds a failure.
SOON_S = 2.0


def train(transport: Any, peer: socket.socket, rounds: int = 4) -> Callable[[], Any]:
    """A coroutine function that shows TRANSPORT the header-then-body habit for some rounds."""

    async def rounds_of_two() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            done = loop.create_future()

            def two_writes(done: Any = done) -> None:
                transport.write(b"header;")
                transport.write(b"body;")
                done.set_result(None)

            loop.call_soon(two_writes)
            await done
            assert await recv_exactly(peer, 12) == b"header;body;"

    return rounds_of_two


# --------------------------------------------------------------------------- when bytes leave


@kinds
def test_first_write_is_sent_while_the_callback_still_runs(run: Any, kind: str) -> None:
    """C9: the peer can read the first write although the callback blocks."""

    async def main() -> None:
        async with support.transport_pair(Recorder(), kind) as (transport, peer):
            transport.write(b"now")
            assert support.readable(peer, SOON_S)
            assert recv_now(peer) == b"now"

    run(main)


def test_first_write_of_each_callback_is_sent_at_once(run: Any) -> None:
    """C9: single writes, callback after callback, never teach the transport to wait."""

    async def main() -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            for number in range(10):
                transport.write(b"%d" % number)
                assert support.readable(peer, SOON_S)
                assert recv_now(peer) == b"%d" % number
                await asyncio.sleep(0)

    run(main)


def test_write_inside_data_received_while_it_blocks(run: Any) -> None:
    async def main() -> None:
        seen = []

        def answer(rec: Recorder, data: bytes) -> None:
            rec.transport.write(b"answer")
            seen.append(support.readable(peer, SOON_S))

        rec = Recorder(on={"data_received": answer})
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"question")
            await rec.until("data_received")
            assert seen == [True]

    run(main)


@kinds
def test_a_callback_that_blocks_keeps_its_peer_waiting_once_at_most(
    run: Any, loop_name: str, kind: str
) -> None:
    """C9, on a busy loop: writes of a quick connection are held for the turn, of a slow one not."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: list[Any] = []

        def dot() -> None:
            transport.write(b".")
            # Sleeping would give the processor away, and may come back late.
            until = time.perf_counter() + 0.0001
            while time.perf_counter() < until:
                pass

        def answer() -> None:
            transport.write(b"x")
            seen.append(support.readable(peer, 0.03))

        async def quick_writes_then_two_slow_answers() -> None:
            for _ in range(10):  # Quick, and yet far from each other.
                loop.call_soon(dot)
                loop.call_soon(dot)
                await turns(2)
            assert await recv_exactly(peer, 20) == b"." * 20
            seen.clear()
            for _ in range(2):
                loop.call_soon(answer)
                loop.call_soon(lambda: seen.append("next"))
                await turns(2)
                assert await recv_exactly(peer, 1) == b"x"

        held = loop_name == "cpploop"
        async with support.transport_pair(Recorder(), kind) as (transport, peer):
            # A machine that takes the processor away for long makes quick callbacks slow.
            for _ in range(50):
                await quick_writes_then_two_slow_answers()
                if seen[0] is not held:
                    break
        assert seen == [not held, "next", True, "next"]

    run(main)


def test_holding_is_switched_off_by_the_environment(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CPPLOOP_WRITES", "at-once")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with support.transport_pair(Recorder()) as (transport, peer):
            for _ in range(20):
                seen = []
                loop.call_soon(transport.write, b"x")
                loop.call_soon(lambda seen=seen: seen.append(support.readable(peer, SOON_S)))
                await turns(2)
                assert seen == [True]
                assert recv_now(peer) == b"x"

    run(main)


def test_a_word_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPPLOOP_WRITES", "later")
    with pytest.raises(ValueError) as info:
        support.factory("cpploop")()
    assert str(info.value) == "CPPLOOP_WRITES must be one of together, at-once, not 'later'"


@kinds
def test_writes_of_one_callback_arrive_whole_and_in_order(run: Any, kind: str) -> None:
    async def main() -> None:
        rng = random.Random(5)
        async with support.transport_pair(Recorder(), kind) as (transport, peer):
            for _ in range(20):
                pieces = [rng.randbytes(rng.choice([0, 1, 7, 300, 5000])) for _ in range(12)]
                for piece in pieces:
                    transport.write(piece)
                whole = b"".join(pieces)
                assert await recv_exactly(peer, len(whole)) == whole

    run(main)


@kinds
def test_gathered_writes_leave_at_the_end_of_the_callback(run: Any, kind: str) -> None:
    """The very next callback of the same turn finds everything sent."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with support.transport_pair(Recorder(), kind) as (transport, peer):
            seen = []

            def writes() -> None:
                for piece in (b"one ", b"two ", b"three"):
                    transport.write(piece)

            loop.call_soon(writes)
            loop.call_soon(lambda: seen.append(recv_now(peer)))
            await turns(2)
            assert seen == [b"one two three"]

    run(main)


def test_gathered_writes_of_a_protocol_call_leave_when_it_returns(run: Any) -> None:
    """A callback is one Handle or one protocol call: data_received ends, the bytes are out."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen = []

        def answer(rec: Recorder, data: bytes) -> None:
            for piece in (b"header;", b"body;", b"trailer"):
                rec.transport.write(piece)
            loop.call_soon(lambda: seen.append(recv_now(peer)))

        rec = Recorder(on={"data_received": answer})
        async with support.transport_pair(rec) as (_transport, peer):
            for _ in range(5):
                peer.send(b"question")
                await support.eventually(lambda: seen)
                assert seen == [b"header;body;trailer"]
                seen.clear()

    run(main)


def test_the_habit_never_outlives_the_turn(run: Any) -> None:
    """A transport used to header-then-body may hold the header, but not past the turn."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with support.transport_pair(Recorder()) as (transport, peer):
            await train(transport, peer)()
            for _ in range(4):
                loop.call_soon(transport.write, b"header only")
                await turns(2)
                assert recv_now(peer) == b"header only"
            # The habit is gone after single writes: at once again, within the callback.
            transport.write(b"alone")
            assert support.readable(peer, SOON_S)
            assert recv_now(peer) == b"alone"

    run(main)


def test_the_habit_across_tasks(run: Any) -> None:
    """Header and body written by a task step each: sent at the end of each step."""

    async def main() -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            await train(transport, peer)()
            for _ in range(4):
                transport.write(b"header;")
                await asyncio.sleep(0)
                assert recv_now(peer) == b"header;"
                transport.write(b"body;")
                await asyncio.sleep(0)
                assert recv_now(peer) == b"body;"

    run(main)


def test_64_kib_are_sent_at_once(run: Any) -> None:
    """Gathering is bounded: with 64 KiB together, they go although the callback still runs."""

    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            await train(transport, peer)()
            got = 0
            for _ in range(3):
                transport.write(b"1")
                for _ in range(9):
                    transport.write(bytes(8192))
                    got += len(recv_now(peer))
                assert got >= 65536
                got -= 65536

            await turns(1)
            recv_now(peer)

    run(main)


OTHER_CALLS: dict[str, Callable[[Any], Any]] = {
    "get_write_buffer_size": lambda t: t.get_write_buffer_size(),
    "set_write_buffer_limits": lambda t: t.set_write_buffer_limits(1000),
    "set_protocol": lambda t: t.set_protocol(t.get_protocol()),
    "is_closing": lambda t: t.is_closing(),
    "get_extra_info": lambda t: t.get_extra_info("socket"),
    "close": lambda t: t.close(),
    "write_eof": lambda t: t.write_eof(),
}


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_other_calls_first_send_what_is_gathered(run: Any, name: str) -> None:
    """Between callbacks gathering shows only in segment counts: other calls find all sent."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with support.transport_pair(Recorder()) as (transport, peer):
            await train(transport, peer)()
            seen = []

            def callback() -> None:
                transport.write(b"header;")
                transport.write(b"body;")
                OTHER_CALLS[name](transport)
                support.readable(peer, SOON_S)
                seen.append(recv_now(peer))

            loop.call_later(0, callback)  # Alone in its turn.
            await asyncio.sleep(0.01)
            assert seen == [b"header;body;"]

    run(main)


def test_abort_after_gathered_writes() -> None:
    """asyncio had sent both writes before abort(): so the peer has them."""

    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, peer):
            await train(transport, peer)()
            transport.write(b"header;")
            transport.write(b"body;")
            transport.abort()
            env.log("peer got", await recv_exactly(peer, 100))

    support.compare(scenario)


def test_writes_outside_callbacks_go_at_once(loop_factory: support.LoopFactory) -> None:
    """C9: with the loop not running, write() sends; nothing waits for a next run."""
    loop = loop_factory()
    try:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        transport, _ = loop.run_until_complete(loop.create_connection(lambda: rec, sock=sock))
        for _ in range(3):
            transport.write(b"one,")
            assert support.readable(peer, SOON_S)
            transport.write(b"two")
            support.readable(peer, SOON_S)
            assert recv_now(peer) == b"one,two"
        transport.close()
        loop.run_until_complete(asyncio.sleep(0))
        peer.close()
    finally:
        loop.close()


def test_write_then_the_loop_stops(loop_factory: support.LoopFactory) -> None:
    """C9: what a callback wrote is out when run_forever returns, corked or not."""
    loop = loop_factory()
    try:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        transport, _ = loop.run_until_complete(loop.create_connection(lambda: rec, sock=sock))
        for _ in range(5):

            def writes_and_stops() -> None:
                transport.write(b"header;")
                transport.write(b"body")
                loop.stop()

            loop.call_soon(writes_and_stops)
            loop.run_forever()
            support.readable(peer, SOON_S)
            assert recv_now(peer) == b"header;body"
        transport.close()
        loop.run_until_complete(asyncio.sleep(0))
        peer.close()
    finally:
        loop.close()


def test_callback_that_raises_after_writing(run: Any) -> None:
    async def main(env: Env) -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            await train(transport, peer)()

            def writes_and_raises() -> None:
                transport.write(b"header;")
                transport.write(b"body")
                raise ValueError("on purpose")

            env.loop.call_soon(writes_and_raises)
            await turns(2)
            assert recv_now(peer) == b"header;body"
            assert [exc for _, exc in env.take_errors()] == ["ValueError(on purpose)"]

    run(main)


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
def test_gathered_writes_survive_an_exit_from_the_loop(
    loop_factory: support.LoopFactory, exc: type[BaseException]
) -> None:
    loop = loop_factory()
    try:
        sock, peer = support.tcp_pair()
        transport, _ = loop.run_until_complete(loop.create_connection(Recorder, sock=sock))

        def writes_and_leaves() -> None:
            transport.write(b"header;")
            transport.write(b"body")
            raise exc

        for _ in range(3):
            loop.call_soon(writes_and_leaves)
            with pytest.raises(exc):
                loop.run_forever()
            support.readable(peer, SOON_S)
            assert recv_now(peer) == b"header;body"
        transport.close()
        loop.run_until_complete(asyncio.sleep(0))
        peer.close()
    finally:
        loop.close()


def test_fork_inside_a_callback_sends_once(loop_name: str) -> None:
    """Gathered bytes are sent before a fork and never a second time by the child."""
    result = support.run_script(
        """
        import asyncio, os, warnings
        from support import Recorder, attach, recv_exactly, recv_now, tcp_pair, turns
        warnings.simplefilter("ignore", DeprecationWarning)

        async def main():
            sock, peer = tcp_pair()
            transport, _ = await attach(sock, Recorder())
            def callback():
                transport.write(b"header;")
                transport.write(b"body;")
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
                transport.write(b"trailer")
            for _ in range(4):
                asyncio.get_running_loop().call_soon(callback)
                await turns(2)
                assert await recv_exactly(peer, 19) == b"header;body;trailer"
            await asyncio.sleep(0.02)
            assert recv_now(peer) == b""
            transport.close()
            await turns(2)
            peer.close()
            print("ok")

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """,
        loop=loop_name,
    )
    assert result.stdout == "ok\n"


# --------------------------------------------------------------------------- bulk


@kinds
def test_large_write_arrives(run: Any, kind: str) -> None:
    async def main() -> None:
        data = random.Random(1).randbytes(3_000_000)
        async with support.transport_pair(Recorder(), kind) as (transport, peer):
            transport.write(data)
            got = await recv_exactly(peer, len(data))
            assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
            assert transport.get_write_buffer_size() == 0

    run(main)


@kinds
def test_random_writes_against_a_slow_reader(run: Any, kind: str) -> None:
    """Order and content survive partial sends, whatever mixture of calls wrote them."""

    async def main() -> None:
        rng = random.Random(7)
        expected = bytearray()
        async with support.transport_pair(Recorder(), kind) as (transport, peer):

            async def write() -> None:
                for _ in range(150):
                    piece = rng.randbytes(rng.choice([1, 10, 1000, 70_000]))
                    match rng.randrange(5):
                        case 0:
                            transport.write(bytearray(piece))
                        case 1:
                            transport.write(memoryview(piece))
                        case 2:
                            cut = rng.randrange(len(piece) + 1)
                            transport.writelines([piece[:cut], piece[cut:]])
                        case _:
                            transport.write(piece)
                    expected.extend(piece)
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
                transport.write_eof()

            writer = asyncio.ensure_future(write())
            got = await support.recv_to_end(peer)
            await writer
            assert len(got) == len(expected)
            assert got == expected

    run(main)


def test_more_pieces_than_one_vectored_send_takes(run: Any) -> None:
    """More queued pieces than IOV_MAX: all of them, in order."""

    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport)
            pieces = [b"%06d" % number for number in range(5000)]
            for piece in pieces:
                transport.write(piece)
            got = await recv_exactly(peer, filled + 30_000)
            assert got[filled:] == b"".join(pieces)

    run(main)


def test_memory_of_a_drained_queue_is_counted_down(run: Any) -> None:
    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport)
            held = transport.get_write_buffer_size()
            assert 0 < held <= 65536
            transport.write(b"x" * 1000)
            assert transport.get_write_buffer_size() == held + 1000
            transport.writelines([b"y" * 10, b"z" * 20])
            assert transport.get_write_buffer_size() <= held + 1030
            await recv_exactly(peer, filled + 1030)
            await support.eventually(lambda: transport.get_write_buffer_size() == 0)

    run(main)


# --------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "value", ["text", 5, None, [b"x"], 1.5, object(), array.array("B", b"xy"), (b"x",)]
)
def test_write_refuses_other_types(value: Any) -> None:
    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, peer):
            with pytest.raises(TypeError) as info:
                transport.write(value)
            env.log("raised", info.value)
            transport.write(b"fine")
            env.log(await recv_exactly(peer, 4), transport.is_closing())
            with pytest.raises(TypeError):
                transport.write()
            with pytest.raises(TypeError):
                transport.write(b"a", b"b")

    support.compare(scenario)


def test_write_by_keyword_and_subclasses() -> None:
    class MyBytes(bytes):
        pass

    class MyArray(bytearray):
        pass

    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder()) as (transport, peer):
            transport.write(data=b"keyword ")
            transport.write(MyBytes(b"bytes "))
            transport.write(MyArray(b"array "))
            transport.write(memoryview(b"view ")[1:])
            transport.write(b"")
            transport.write(bytearray())
            transport.write(memoryview(b""))
            transport.writelines(list_of_data=[b"list"])
            env.log(await recv_exactly(peer, 28))

    trace = support.compare(scenario)
    assert trace[0] == (b"keyword bytes array iew list",)


def test_empty_writes_change_nothing() -> None:
    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, peer):
            transport.write(b"")
            transport.writelines([])
            transport.writelines(())
            transport.writelines([b"", b""])
            env.log("size", transport.get_write_buffer_size())
            await turns(2)
            transport.write(b"x")
            env.log(await recv_exactly(peer, 1))
            await support.assert_idle(0.05)

    async def closing(env: Env) -> None:
        # Empty pieces behind queued data never keep a closing transport from its end.
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.write(b"")
            transport.writelines([b"tail", b""])
            transport.close()
            got = await support.recv_to_end(peer)
            env.log(len(got) - filled, got[-4:])
            await rec.until("connection_lost")

    support.compare(scenario)
    if support.asyncio_writelines_has("if data"):
        support.compare(closing)
    elif "cpploop" in support.selected_loops():
        support.run(support.factory("cpploop"), closing)


# --------------------------------------------------------------------------- buffers that change


def mutable_buffers() -> dict[str, Callable[[], tuple[Any, Callable[[], None]]]]:
    """Per kind: the buffer, and what its owner does to it after write() returned."""

    def over_bytearray() -> tuple[Any, Callable[[], None]]:
        data = bytearray(b"A" * 100_000)

        def change() -> None:
            data[:] = b"?" * len(data)
            data.clear()  # BufferError if somebody still holds an export.

        return data, change

    def over_view() -> tuple[Any, Callable[[], None]]:
        data = bytearray(b"A" * 100_000)
        view = memoryview(data)

        def change() -> None:
            data[:] = b"?" * len(data)
            view.release()
            data.clear()

        return view, change

    def over_array() -> tuple[Any, Callable[[], None]]:
        data = array.array("H", b"A" * 100_000)
        view = memoryview(data)

        def change() -> None:
            for index in range(len(data)):
                data[index] = 0
            view.release()
            data.append(0)

        return view, change

    def over_ndim() -> tuple[Any, Callable[[], None]]:
        data = bytearray(b"A" * 100_000)
        view = memoryview(data).cast("I", (100, 250))

        def change() -> None:
            data[:] = b"?" * len(data)
            view.release()

        return view, change

    return {
        "bytearray": over_bytearray,
        "memoryview": over_view,
        "array.array": over_array,
        "two dimensions": over_ndim,
    }


@pytest.mark.parametrize("how", ["write", "writelines"])
@pytest.mark.parametrize("kind", mutable_buffers())
def test_buffer_changed_after_write(run: Any, loop_name: str, kind: str, how: str) -> None:
    """C10: what cannot be sent at once is copied, and no export outlives the call."""
    support.needs_cpploop(loop_name, "since 3.12 it keeps a view of the caller's memory")

    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport)
            data, change = mutable_buffers()[kind]()
            if how == "write":
                transport.write(data)
            else:
                transport.writelines([data, b"!"])
            change()
            got = await recv_exactly(peer, filled + 100_000)
            assert got[filled:] == b"A" * 100_000

    run(main)


@pytest.mark.parametrize("kind", mutable_buffers())
def test_buffer_changed_between_gathered_writes(run: Any, loop_name: str, kind: str) -> None:
    """C10: the second write of a callback is gathered, not sent: it must be a copy."""
    if kind == "two dimensions":
        support.needs_cpploop(loop_name, "it cannot slice a view of two dimensions")

    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            await train(transport, peer)()
            for first in (b"header;", b""):
                data, change = mutable_buffers()[kind]()
                transport.write(first)
                transport.write(data)
                if loop_name == "cpploop":
                    change()
                got = await recv_exactly(peer, len(first) + 100_000)
                assert got == first + b"A" * 100_000

    run(main)


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("size", [8, 100_000])
def test_multidimensional_view(run: Any, loop_name: str, size: int, queued: bool) -> None:
    """C10, cpy#135974: a view of two dimensions is its bytes, also when sent in parts."""
    support.needs_cpploop(loop_name, "it cannot slice a view of two dimensions")

    async def main() -> None:
        view, data = support.multidimensional_view(2, size)
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport) if queued else 0
            transport.write(view)
            transport.writelines([view])
            got = await recv_exactly(peer, filled + 2 * len(data))
            assert got[filled:] == data * 2

    run(main)


def test_noncontiguous_view(run: Any, loop_name: str) -> None:
    """C10: a view with gaps is either sent as its bytes or refused as asyncio refuses it."""

    async def main(env: Env) -> None:
        rec = Recorder()
        view, data = support.noncontiguous_view()
        async with support.transport_pair(rec) as (transport, peer):
            try:
                transport.write(view)
            except BufferError:
                return
            await turns(2)
            if errors := env.take_errors():
                assert errors[0][0] == "Fatal write error on socket transport"
                assert rec.count("connection_lost") == 1
            else:
                assert await recv_exactly(peer, len(data)) == data

    run(main)


def test_bytes_are_not_kept_after_they_are_sent(run: Any, loop_name: str) -> None:
    """Exact bytes are kept by reference only while they are queued."""
    if loop_name == "asyncio" and sys.version_info < (3, 12):
        pytest.skip("3.11 copies everything")

    async def main() -> None:
        data = bytes(bytearray(b"k" * 200_000))
        idle = sys.getrefcount(data)
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.write(data)
            assert transport.get_write_buffer_size() >= 200_000
            await recv_exactly(peer, filled + 200_000)
            await support.eventually(lambda: transport.get_write_buffer_size() == 0)
            assert sys.getrefcount(data) == idle

    run(main)


# --------------------------------------------------------------------------- writelines


@pytest.mark.parametrize("queued", [False, True])
def test_writelines_takes_any_iterable_and_mixed_types(queued: bool) -> None:
    """C11"""

    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env), "unix") as (transport, peer):
            filled = await support.fill(transport) if queued else 0
            transport.writelines([b"bytes ", bytearray(b"array "), memoryview(b"view ")])
            transport.writelines((b"tu", b"", b"ple "))
            transport.writelines(piece for piece in (b"gene", b"rator "))
            transport.writelines(iter([b"iter"]))
            transport.writelines({b"a": 1, b"b": 2})
            transport.writelines(memoryview(b"x").tobytes() for _ in range(3))
            got = await recv_exactly(peer, filled + 42)
            env.log(got[filled:])

    trace = support.compare(scenario)
    assert (b"bytes array view tuple generator iterabxxx",) in trace


@pytest.mark.parametrize("value", [5, "text", b"bytes", ["text"], [b"fine", 5], [object()]])
def test_writelines_of_other_types(value: Any) -> None:
    """What raises on the running asyncio raises, and then nothing was sent."""

    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, peer):
            try:
                transport.writelines(value)
                env.log("accepted")
            except Exception as exc:
                env.log("raised", type(exc))
            await turns(2)
            env.log(recv_now(peer), transport.is_closing())

    support.compare(scenario)


def test_writelines_whose_iterable_raises(run: Any, loop_name: str) -> None:
    """The exception comes out, and the transport works on: nothing is stuck in its queue."""
    if loop_name == "asyncio" and sys.version_info >= (3, 15):
        pytest.skip("the running asyncio queues what came before and then never sends anything")

    async def main() -> None:
        def pieces() -> Any:
            yield b"one"
            raise LookupError("on purpose")

        async with support.transport_pair(Recorder()) as (transport, peer):
            with pytest.raises(LookupError):
                transport.writelines(pieces())
            transport.write(b"two")
            got = await recv_exactly(peer, 3)
            assert got == b"two" or got + await recv_exactly(peer, 3) == b"onetwo"
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_writelines_whose_iterable_uses_the_transport(run: Any) -> None:
    """Writing, and closing, from inside the iterable: no crash, nothing lost or doubled."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):

            def pieces() -> Any:
                yield b"b"
                transport.write(b"a")
                yield b"c"

            transport.writelines(pieces())
            assert await recv_exactly(peer, 3) in (b"abc", b"bac")

            def closing() -> Any:
                yield b"d"
                transport.abort()
                yield b"e"

            transport.writelines(closing())
            await rec.until("connection_lost")
            assert rec.count("connection_lost") == 1

    run(main)


@kinds
def test_writelines_obeys_the_watermarks(run: Any, loop_name: str, kind: str) -> None:
    """C11 (cpy#127655): writelines pauses the protocol like write."""
    if loop_name == "asyncio" and not support.asyncio_writelines_has("_maybe_pause_protocol"):
        pytest.skip("the running asyncio has the bug")

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec, kind) as (transport, peer):
            total = 0
            for _ in range(1000):
                transport.writelines([bytes(65536), bytes(65536)])
                total += 131072
                if rec.count("pause_writing"):
                    break
            assert rec.names() == ["connection_made", "pause_writing"]
            await recv_exactly(peer, total)
            await rec.until("resume_writing")
            assert rec.names() == ["connection_made", "pause_writing", "resume_writing"]

    run(main)


# --------------------------------------------------------------------------- flow control


LIMITS: list[dict[str, Any]] = [
    {},
    {"high": None, "low": None},
    {"high": 0},
    {"high": 100},
    {"high": 100, "low": 100},
    {"low": 50},
    {"low": 0},
    {"high": 101, "low": 7},
    {"high": 10, "low": 11},
    {"high": -1},
    {"low": -1},
    {"high": 5, "low": -1},
    {"high": "100"},
    {"low": "1"},
    {"high": b""},
    {"high": [], "low": 1},
    {"high": True},
    {"high": 1 << 40},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_set_write_buffer_limits(limits: dict[str, Any]) -> None:
    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, _peer):
            try:
                env.log("returned", transport.set_write_buffer_limits(**limits))
            except Exception as exc:
                env.log("raised", type(exc), str(exc) if isinstance(exc, ValueError) else "")
            env.log("limits", transport.get_write_buffer_limits())

    support.compare(scenario)


def test_set_write_buffer_limits_positional_and_huge() -> None:
    async def scenario(env: Env) -> None:
        async with support.transport_pair(Recorder(env)) as (transport, _peer):
            transport.set_write_buffer_limits(20, 10)
            env.log(transport.get_write_buffer_limits())
            transport.set_write_buffer_limits(10**30)
            env.log(transport.get_write_buffer_limits())
            with pytest.raises(TypeError):
                transport.set_write_buffer_limits(1, 2, 3)
            with pytest.raises(TypeError):
                transport.set_write_buffer_limits(middle=1)

    support.compare(scenario)


@kinds
def test_pause_and_resume_writing(kind: str) -> None:
    """Paused above high, resumed at or below low, each once."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            transport.set_write_buffer_limits(high=1 << 30)
            filled = await support.fill(transport)
            held = transport.get_write_buffer_size()
            transport.set_write_buffer_limits(high=held + 100, low=50)
            transport.write(b"x" * 100)
            env.log("at high")
            transport.write(b"x")
            env.log("above high")
            transport.write(b"x")
            env.log("more")
            await recv_exactly(peer, filled + 102)
            await rec.until("resume_writing")
            env.log("drained", transport.get_write_buffer_size())
            filled = await support.fill(transport, bytes(1 << 20))
            transport.write(bytes(1 << 20))
            await recv_exactly(peer, filled + (1 << 20))
            await rec.until("resume_writing", 2)
            # The first fill above may or may not have been judged in its last write.

    trace = support.compare(scenario)
    assert [entry[0] for entry in trace[:8]] == [
        "connection_made",
        "at high",
        "pause_writing",
        "above high",
        "more",
        "resume_writing",
        "drained",
        "pause_writing",
    ]


def test_high_water_of_zero() -> None:
    """Zero pauses on anything that stays queued; what goes out at once does not pause."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.set_write_buffer_limits(0)
            transport.write(b"small")
            env.log("sent", await recv_exactly(peer, 5))
            filled = await support.fill(transport)
            env.log("filled")
            await recv_exactly(peer, filled)
            await rec.until("resume_writing")
            env.log("empty", transport.get_write_buffer_size())

    support.compare(scenario)


def test_small_gathered_writes_never_pause(run: Any) -> None:
    """pause_writing is judged after the gathered bytes were tried, not before."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.set_write_buffer_limits(high=10)
            for _ in range(5):
                for _ in range(10):
                    transport.write(b"x" * 100)
                assert await recv_exactly(peer, 1000) == b"x" * 1000
            assert rec.names() == ["connection_made"]

    run(main)


def test_set_limits_does_not_call_back_at_once() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.set_write_buffer_limits(1 << 30)
            filled = await support.fill(transport)
            env.log("lowering")
            transport.set_write_buffer_limits(0)
            env.log("lowered")
            transport.write(b"x")
            env.log("raising")
            transport.set_write_buffer_limits(1 << 30, 1 << 29)
            env.log("raised")
            await recv_exactly(peer, filled + 1)
            await rec.until("resume_writing")

    support.compare(scenario)


def test_pause_writing_is_called_inside_write() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env, on={"pause_writing": lambda rec: env.log("inside")})
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport, bytes(1 << 20))
            env.log("after write")
            await recv_exactly(peer, filled)
            await rec.until("resume_writing")

    trace = support.compare(scenario)
    assert ("inside",) in trace and trace.index(("inside",)) < trace.index(("after write",))


REENTRANT: dict[str, Callable[[Recorder], Any]] = {
    "write": lambda rec: rec.transport.write(b"R" * 10),
    "write much": lambda rec: rec.transport.write(bytes(1 << 20)),
    "writelines": lambda rec: rec.transport.writelines([b"R" * 10]),
    "close": lambda rec: rec.transport.close(),
    "abort": lambda rec: rec.transport.abort(),
    "write_eof": lambda rec: rec.transport.write_eof(),
    "set_protocol": lambda rec: rec.transport.set_protocol(Recorder(rec.env, "next")),
    "set_write_buffer_limits": lambda rec: rec.transport.set_write_buffer_limits(1 << 20),
    "pause_reading": lambda rec: rec.transport.pause_reading(),
    "raise": lambda rec: 1 / 0,
}


@pytest.mark.parametrize("action", REENTRANT)
@pytest.mark.parametrize("callback", ["pause_writing", "resume_writing"])
def test_reentrant_flow_control(callback: str, action: str) -> None:
    """C15: whatever pause_writing and resume_writing do to the transport, as on asyncio."""

    async def scenario(env: Env) -> None:
        remaining = [1]

        def act(rec: Recorder) -> None:
            if remaining[0]:
                remaining[0] -= 1
                env.log(action)
                REENTRANT[action](rec)

        rec = Recorder(env, on={callback: act})
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.write(b"S" * (1 << 20))
            if not transport.is_closing():
                try:
                    transport.write(b"T")
                except RuntimeError as exc:
                    env.log("raised", exc)
            got = bytearray()
            # Read until nothing comes any more: some actions end the stream, some extend it.
            silent = 0
            while silent < 5:
                try:
                    piece = peer.recv(1 << 18)
                except BlockingIOError:
                    silent += 1
                    await asyncio.sleep(0.002)
                    continue
                except ConnectionError as exc:
                    env.log("peer", type(exc))
                    break
                if not piece:
                    env.log("peer", "end")
                    break
                silent = 0
                got += piece
                await asyncio.sleep(0)
            tail = bytes(got).lstrip(b"S")
            if action != "abort":
                env.log("peer got", got.count(b"S"), len(tail), tail[:20])

    if callback == "resume_writing" and action in ("close", "abort"):
        if not support.asyncio_flushes_soundly():
            if "cpploop" in support.selected_loops():
                env = Env("cpploop")
                env.tracing = True
                support.run(support.factory("cpploop"), scenario, env=env)
                assert [entry[0] for entry in env.trace].count("connection_lost") == 1
                assert not any(entry[0] == "exception handler" for entry in env.trace)
            return
    support.compare(scenario)


def test_resume_writing_is_not_called_after_close_or_abort() -> None:
    """C15 (zuv#33)"""

    async def scenario(env: Env) -> None:
        for action in ("close", "abort"):
            rec = Recorder(env, action)
            async with support.transport_pair(rec, "unix") as (transport, peer):
                filled = await support.fill(transport, bytes(1 << 20))
                getattr(transport, action)()
                if action == "close":
                    await recv_exactly(peer, filled)
                await rec.until("connection_lost")

    support.compare(scenario)


# --------------------------------------------------------------------------- the end of writing


@kinds
def test_write_eof(kind: str) -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            transport.write(b"last words")
            transport.write_eof()
            transport.write_eof()
            for name, args in (("write", b"x"), ("writelines", [b"x"]), ("write", b"")):
                with pytest.raises(RuntimeError) as info:
                    getattr(transport, name)(args)
                env.log(name, info.value)
            with pytest.raises(TypeError):
                transport.write("text")
            env.log("peer got", await support.recv_to_end(peer))
            peer.send(b"answer")
            await rec.until_received(6)
            peer.close()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_write_eof_waits_for_the_queue() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.write(b"last")
            transport.write_eof()
            got = await support.recv_to_end(peer)
            env.log(len(got) - filled, got[-4:])
            env.log("still open", transport.is_closing())
            peer.send(b"answer")
            await rec.until_received(6)

    support.compare(scenario)


def test_write_eof_after_close_and_close_after_write_eof() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            transport.close()
            transport.write_eof()
            env.log(await support.recv_to_end(peer))
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.write_eof()
            transport.close()
            env.log(len(await support.recv_to_end(peer)) - filled)
            await rec.until("connection_lost")

    support.compare(scenario)


def test_write_eof_on_a_connection_the_peer_reset() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            support.reset(peer)
            try:
                env.log("returned", transport.write_eof())
            except OSError as exc:
                env.log("raised", type(exc))
            await turns(2)

    support.compare(scenario)


@kinds
@pytest.mark.parametrize("how", ["close", "abort"])
def test_writes_after_the_end_warn_after_the_fifth(kind: str, how: str) -> None:
    """C8: dropped silently, then with asyncio's warning; never an exception."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            getattr(transport, how)()
            for number in range(4):
                env.log("before the loss", number)
                transport.write(b"x")
            await rec.until("connection_lost")
            for number in range(4):
                env.log("after the loss", number)
                transport.write(b"x")
                if support.asyncio_writelines_has("_conn_lost"):
                    transport.writelines([b"x", b"y"])
            env.log("size", transport.get_write_buffer_size())
            env.log("peer got", await recv_exactly(peer, 1))

    trace = support.compare(scenario)
    assert any(entry[0] == "log" for entry in trace)


def test_write_after_close_while_data_is_queued() -> None:
    """A closing transport that still flushes takes more, as on asyncio."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, "unix") as (transport, peer):
            filled = await support.fill(transport)
            transport.close()
            transport.write(b"one")
            if support.asyncio_writelines_has("_conn_lost"):
                transport.writelines([b"two", b"three"])
            env.log("closing", transport.is_closing())
            got = await support.recv_to_end(peer)
            env.log(got[filled:])
            await rec.until("connection_lost")

    support.compare(scenario)


@kinds
def test_writing_to_a_peer_that_is_gone(kind: str) -> None:
    """The write error ends the connection, with no report to the exception handler."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, peer):
            transport.pause_reading()
            peer.close()
            for _ in range(50):
                transport.write(b"x" * 100)
                if transport.is_closing():
                    break
                await asyncio.sleep(0.001)
            await rec.until("connection_lost")
            env.log("lost with", type(rec.exc))

    support.compare(scenario)


def test_queued_data_and_the_peer_resets() -> None:
    """The queue is dropped and connection_lost tells the error (C15, zuv#16)."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            await support.fill(transport)
            transport.write(b"queued")
            support.reset(peer)
            await rec.until("connection_lost")
            env.log("lost with", type(rec.exc), transport.get_write_buffer_size())

    support.compare(scenario)


def test_no_error_escapes_from_write(run: Any) -> None:
    """A failed send inside write() is told by connection_lost, later, and never raised."""

    async def main() -> None:
        rec = Recorder()
        sock, peer = support.unix_pair()
        transport, _ = await attach(sock, rec)
        transport.pause_reading()
        peer.close()
        transport.write(b"x")
        transport.write(b"y")
        # Gathered bytes are tried by is_closing() at the latest.
        assert transport.is_closing()
        assert rec.count("connection_lost") == 0
        await rec.until("connection_lost")
        assert isinstance(rec.exc, BrokenPipeError)

    run(main)


def test_many_small_writes_are_quick(run: Any, loop_name: str) -> None:
    """A queue of many pieces drains in linear time, and each write costs the same."""
    support.needs_cpploop(loop_name, "it sums up its queue at each write")

    async def main() -> None:
        async with support.transport_pair(Recorder(), "unix") as (transport, peer):
            filled = await support.fill(transport)
            start = time.monotonic()
            for _ in range(50_000):
                transport.write(b"ab")
            got = await recv_exactly(peer, filled + 100_000)
            assert got[filled:] == b"ab" * 50_000
            assert time.monotonic() - start < 5 * support.TIME_SCALE

    run(main)


def test_nodelay_where_the_socket_does_not_name_its_protocol(
    loop_factory: support.LoopFactory,
) -> None:
    """asyncio leaves Nagle's delay on for a socket made without a protocol number, which is how
    most programs make one; cpploop knows a TCP socket by its family (docs/differences.md)."""

    async def main(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
            sock.connect(listener.getsockname())
            rec = Recorder(env)
            transport, _ = await attach(sock, rec)
            inner = transport.get_extra_info("socket")
            delay_is_off = bool(inner.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            assert delay_is_off == (type(env.loop).__module__.split(".")[0] == "cpploop")
            transport.abort()
            await rec.until("connection_lost")

    support.run(loop_factory, main)


@pytest.mark.parametrize("proto", [socket.IPPROTO_TCP])
def test_nodelay(proto: int) -> None:
    """TCP_NODELAY as asyncio sets it."""

    async def scenario(env: Env) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, proto)
            sock.connect(listener.getsockname())
            rec = Recorder(env)
            transport, _ = await attach(sock, rec)
            inner = transport.get_extra_info("socket")
            env.log(bool(inner.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            transport.abort()
            await rec.until("connection_lost")

    support.compare(scenario)


def test_sendfile_in_progress_refuses_writes(run: Any) -> None:
    """Writes during loop.sendfile raise asyncio's RuntimeError."""

    async def main(env: Env) -> None:
        rec = Recorder()
        with support.short_directory() as path:
            (path / "file").write_bytes(bytes(1 << 20))
            with open(path / "file", "rb") as file:
                async with support.transport_pair(rec) as (transport, peer):
                    # The queue is full, so sendfile has to wait for it first.
                    filled = await support.fill(transport)
                    task = asyncio.ensure_future(env.loop.sendfile(transport, file))
                    await turns(2)
                    with pytest.raises(RuntimeError, match="sendfile is in progress"):
                        transport.write(b"x")
                    with pytest.raises(RuntimeError, match="sendfile is in progress"):
                        transport.writelines([b"x"])
                    got = await recv_exactly(peer, filled + (1 << 20))
                    assert await task == 1 << 20
                    assert len(got) == filled + (1 << 20)
                    transport.write(b"after")
                    assert await recv_exactly(peer, 5) == b"after"

    run(main)
