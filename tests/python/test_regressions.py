"""Bugs that once were, each with the program that showed it. On asyncio and on cpploop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

import pytest
import support
from support import Env, recv_exactly, turns


def script(loop_name: str, source: str, **options: Any) -> str:
    result = support.run_script(source, loop=loop_name, **options)
    return result.stdout


@pytest.mark.parametrize("allocator", ["default", "debug"])
def test_a_timer_that_outlives_the_module(loop_name: str, allocator: str) -> None:
    """A handle still referred to when the interpreter takes modules apart: its memory and its
    module's must go in the right order."""
    source = """
    import asyncio

    class Client:
        def __init__(self):
            self.loop = asyncio.get_running_loop()
            self.timer = self.loop.call_later(100, self.tick)
            self.soon = self.loop.call_soon_threadsafe(self.tick)

        def tick(self):
            pass

    async def main():
        global client
        client = Client()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    print("done")
    """
    assert script(loop_name, source, env={"PYTHONMALLOC": allocator}) == "done\n"


def test_a_loop_that_runs_in_a_finaliser_at_exit(loop_name: str) -> None:
    """The thread that finalises the interpreter may wait in a loop; only others must not return."""
    source = """
    import asyncio

    class Resource:
        def __init__(self):
            self.loop = factory()
            self.sleep = asyncio.sleep

        def __del__(self):
            self.loop.run_until_complete(self.sleep(0.02))
            self.loop.close()
            print("closed")

    resource = Resource()
    """
    # A free-threaded build does not come to finalise the object at all.
    assert script(loop_name, source) == script("asyncio", source)


def test_a_daemon_thread_that_ends_inside_a_finaliser(loop_name: str) -> None:
    source = """
    import threading, time

    class Slow:
        def __del__(self):
            while True:
                time.sleep(0.001)

    def run():
        loop = factory()
        loop.call_soon(lambda slow: None, Slow())
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    time.sleep(0.2)
    print("main ends")
    """
    assert script(loop_name, source) == "main ends\n"


def test_a_long_chain_of_handles(loop_name: str) -> None:
    """Freeing one frees the next: that must not use up the stack."""
    source = """
    loop = factory()
    handle = None
    for number in range(200_000):
        handle = loop.call_later(10_000 + number, print, handle)
    loop.close()
    del handle
    print("survived")
    """
    assert script(loop_name, source) == "survived\n"


def test_a_native_callback_that_queues_itself_does_not_shut_out_signals(loop_name: str) -> None:
    source = """
    import functools, os, signal, threading, time

    def interrupt():
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    loop = factory()
    # A callable without a line of Python in it that queues itself.
    again = functools.partial(loop.call_soon)
    again.__setstate__((loop.call_soon, (again,), {}, None))
    loop.call_soon(again)
    threading.Thread(target=interrupt).start()
    try:
        loop.run_forever()
    except KeyboardInterrupt:
        print("interrupted")
    """
    assert script(loop_name, source, timeout=20) == "interrupted\n"


def test_a_cancelled_sendfile_does_not_end_the_loop(loop_factory: support.LoopFactory) -> None:
    async def main(env: Env) -> None:
        reports: list[Any] = []
        env.loop.set_exception_handler(lambda _, context: reports.append(context))
        rec = support.Recorder()
        with support.short_directory() as path:
            (path / "file").write_bytes(b"y" * 10)
            with open(path / "file", "rb") as file:
                async with support.transport_pair(rec) as (transport, peer):
                    filled = await support.fill(transport)
                    sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                    await turns(2)
                    sending.cancel()
                    await turns(2)
                    await recv_exactly(peer, filled)
                    await turns(5)
        env.loop.set_exception_handler(None)
        assert all("invalid state" in repr(c.get("exception")).lower() for c in reports)

    support.run(loop_factory, main)


def test_reading_resumed_during_sendfile(loop_factory: support.LoopFactory) -> None:
    """Both wait for the same connection: neither must take the other's events."""

    async def main(env: Env) -> None:
        rec = support.Recorder()
        size = 3_000_000
        with support.short_directory() as path:
            (path / "file").write_bytes(bytes(size))
            with open(path / "file", "rb") as file:
                async with support.transport_pair(rec) as (transport, peer):
                    sending = asyncio.ensure_future(env.loop.sendfile(transport, file))
                    await turns(5)
                    transport.resume_reading()
                    peer.send(b"while it sends")
                    await rec.until("data_received")
                    assert len(await recv_exactly(peer, size)) == size
                    assert await sending == size

    support.run(loop_factory, main)


def test_sendfile_of_an_accepted_connection_in_debug_mode(
    loop_factory: support.LoopFactory,
) -> None:
    async def main(env: Env) -> None:
        sent: asyncio.Future[int] = env.loop.create_future()
        with support.short_directory() as path:
            (path / "file").write_bytes(b"z" * 100)

            class Sender(asyncio.Protocol):
                def connection_made(self, transport: Any) -> None:
                    task = asyncio.ensure_future(self.send(transport))
                    task.add_done_callback(lambda done: sent.set_result(done.result()))

                async def send(self, transport: Any) -> int:
                    with open(path / "file", "rb") as file:
                        result = await env.loop.sendfile(transport, file, fallback=False)
                    transport.close()
                    return result

            server = await env.loop.create_server(Sender, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b"z" * 100
            assert await sent == 100
            writer.close()
            await writer.wait_closed()
            server.close()
            await server.wait_closed()

    support.run(loop_factory, main, debug=True)


def test_a_timer_that_is_due_exactly_now(loop_name: str) -> None:
    """With a clock that stands still the deadline and the time must round alike."""
    plain = support.factory(loop_name)()
    plain.close()
    base: Any = type(plain)

    class Standing(base):  # type: ignore[misc]
        now = 0.1 + 0.2

        def time(self) -> float:
            return self.now

    loop = Standing()
    try:
        fired: list[int] = []
        loop.call_later(0, fired.append, 1)
        for _ in range(5):
            loop.run_until_complete(asyncio.sleep(0))
        assert fired == [1]
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ is new in 3.12")
def test_writelines_of_a_list_that_changes_meanwhile(loop_factory: support.LoopFactory) -> None:
    async def main(env: Env) -> None:
        pieces: list[Any] = []

        class Evil(bytearray):
            def __buffer__(self, flags: int) -> memoryview:
                pieces.clear()
                return memoryview(b"abc")

        pieces.append(Evil(b"x"))
        pieces.extend(bytes([number % 256]) * 300 for number in range(3000))
        rec = support.Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            transport.writelines(pieces)
            transport.write(b"end")
            assert (await recv_exactly(peer, 6))[:3] == b"abc"

    support.run(support.factory("cpploop"), main)


def test_the_socket_sends_behind_what_was_written(loop_factory: support.LoopFactory) -> None:
    """get_extra_info('socket') sends what was gathered, each time it is asked."""

    async def main(env: Env) -> None:
        rec = support.Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            transport.get_extra_info("socket")
            done = env.loop.create_future()

            def write() -> None:
                transport.write(b"1")
                transport.write(b"2")
                os.write(transport.get_extra_info("socket").fileno(), b"3")
                done.set_result(None)

            env.loop.call_soon(write)
            await done
            assert await recv_exactly(peer, 3) == b"123"

    support.run(loop_factory, main)


def test_an_interrupt_in_pause_writing_is_raised_by_write(
    loop_factory: support.LoopFactory,
) -> None:
    async def main(env: Env) -> None:
        class Interrupting(support.Recorder):
            def pause_writing(self) -> None:
                raise KeyboardInterrupt

        rec = Interrupting()
        async with support.transport_pair(rec) as (transport, _):
            seen = False
            try:
                for _ in range(200):
                    transport.write(bytes(1 << 20))
            except KeyboardInterrupt:
                seen = True
            assert seen
            transport.abort()
            await rec.until("connection_lost")

    support.run(loop_factory, main)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("how", ["raise", "_force_close"])
def test_what_a_failing_callback_wrote_is_sent(kind: str, how: str) -> None:
    """Bytes gathered in a callback that then raises had been sent on asyncio: they go out."""

    async def scenario(env: Any) -> None:
        def received(rec: Any, data: bytes) -> None:
            for piece in (b"one ", b"two ", b"three"):
                rec.transport.write(piece)
            if how == "raise":
                raise ValueError("after writing")
            # asyncio's TLS ends its transport with this.
            rec.transport._force_close(None)

        rec = support.Recorder(env, on={"data_received": received})
        async with support.transport_pair(rec, kind) as (_, peer):
            peer.send(b"go")
            await rec.until("connection_lost")
            await support.turns(1)
            env.log("peer", await support.recv_to_end(peer))

    trace = support.compare(scenario)
    assert ("peer", b"one two three") in trace


def test_writelines_too_late_counts_before_its_pieces_are_looked_at(
    loop_name: str, run: Any
) -> None:
    """On a lost connection nothing but the list's truth is asked, and every call is counted."""
    if loop_name == "asyncio" and not support.asyncio_writelines_has("_conn_lost"):
        pytest.skip("the running asyncio has no such check")

    async def main(env: Any) -> None:
        rec = support.Recorder()
        async with support.transport_pair(rec) as (transport, _):
            transport.abort()
            for _ in range(4):
                transport.writelines([b""] if sys.version_info >= (3, 12) else [b"x"])
            assert env.take_logs() == []
            transport.writelines([])
            transport.writelines([b"x"])
            assert env.take_logs() == ["socket.send() raised exception."]
            if sys.version_info >= (3, 12):
                transport.writelines([object()])
                assert env.take_logs() == ["socket.send() raised exception."]

    run(main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="writelines() was write() of all before")
def test_writelines_tries_the_kernel_again(run: Any) -> None:
    """With a full buffer it sends at once when the peer has read, and hears when it has gone."""

    async def main() -> None:
        rec = support.Recorder()
        async with support.transport_pair(rec, "unix") as (transport, peer):
            await support.fill(transport)
            queued = transport.get_write_buffer_size()
            while support.recv_now(peer):
                pass
            transport.writelines([b"x"])
            assert transport.get_write_buffer_size() < queued + 1
            assert rec.count("pause_writing") == rec.count("resume_writing")
        async with support.transport_pair(support.Recorder(), "unix") as (transport, peer):
            await support.fill(transport)
            peer.close()
            transport.writelines([b"x"])
            assert transport.is_closing()

    run(main)


def test_is_closing_is_answered_in_any_thread(run: Any) -> None:
    """A StreamWriter's finaliser asks it, and runs in whichever thread the collector is in."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        stream, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        read_end, write_end = os.pipe()
        pipe, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(read_end, "rb", 0))
        answers: list[bool] = []
        thread = threading.Thread(
            target=lambda: answers.extend([stream.is_closing(), pipe.is_closing()])
        )
        thread.start()
        thread.join()
        assert answers == [False, False]
        os.close(write_end)
        stream.close()
        server.close()
        await asyncio.sleep(0.05)
        assert pipe.is_closing()

    run(main)
