"""The private names of loops, handles and transports that other programs read.

docs/private-habits.md lists them with who reads them; each of its rows names a test of this file,
and test_every_row_has_its_test() checks that it does.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import heapq
import os
import re
import selectors
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import support
from parity import open_loop, reported, run_once
from support import Env, Recorder, needs_cpploop, turns

PAGE = Path(__file__).resolve().parents[2] / "docs" / "private-habits.md"


def nothing() -> None:
    pass


# ---- what is queued


def test_ready(loop_factory: Any) -> None:
    """How many callbacks wait, and which: asynctest, diagnostics, load shedders."""
    with open_loop(loop_factory) as loop:
        assert not loop._ready and len(loop._ready) == 0
        first = loop.call_soon(nothing)
        second = loop.call_soon_threadsafe(nothing)
        assert loop._ready and len(loop._ready) == 2
        assert list(loop._ready) == [first, second]
        assert first in loop._ready and loop._ready[1] is second
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(nothing,))
        thread.start()
        thread.join()
        assert len(loop._ready) == 3
        seen: list[int] = []
        loop.call_soon(lambda: seen.append(len(loop._ready)))
        loop.call_soon(nothing)
        run_once(loop)
        # asyncio's loop finds its own wake-up there too.
        assert seen[0] in (1, 2)
        assert not loop._ready
        loop.call_soon(nothing)
    assert len(loop._ready) == 0


def test_ready_append(loop_factory: Any) -> None:
    """A handle that is put there is run in its turn, and a cancelled one is not."""
    with open_loop(loop_factory) as loop, reported(loop) as reports:
        ran: list[Any] = []
        variable = contextvars.ContextVar("variable", default=0)
        context = contextvars.copy_context()
        context.run(variable.set, 7)
        loop.call_soon(ran.append, "before")
        foreign = asyncio.Handle(lambda: ran.append(variable.get()), (), loop, context)
        loop._ready.append(foreign)
        loop.call_soon(ran.append, "after")
        cancelled = asyncio.Handle(ran.append, ("cancelled",), loop)
        loop._ready.append(cancelled)
        cancelled.cancel()
        timer = loop.call_later(1000, ran.append, "early")
        loop._ready.append(timer)
        loop._ready.append(asyncio.Handle(lambda: 1 / 0, (), loop))
        loop._ready.extend([asyncio.Handle(ran.append, ("extended",), loop)])
        run_once(loop)
        assert ran == ["before", 7, "after", "early", "extended"]
        assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
        timer.cancel()


def test_ready_clear(loop_factory: Any) -> None:
    """Test harnesses empty or exchange the queue between two runs."""
    with open_loop(loop_factory) as loop:
        ran: list[str] = []
        loop.call_soon(ran.append, "cleared")
        loop._ready.clear()
        loop.call_soon(ran.append, "exchanged")
        kept = asyncio.Handle(ran.append, ("kept",), loop)
        loop._ready = collections.deque([kept])
        assert len(loop._ready) == 1
        run_once(loop)
        assert ran == ["kept"]


def test_scheduled(loop_factory: Any) -> None:
    """The timers that wait: Home Assistant's tests move time by them."""
    with open_loop(loop_factory) as loop:
        assert not loop._scheduled and len(loop._scheduled) == 0
        timers = [loop.call_later(1000 + delay, nothing) for delay in (5, 1, 3, 1, 9)]
        assert len(loop._scheduled) == 5
        assert loop._scheduled[0] is timers[1]
        assert loop._scheduled[0]._when == timers[1].when()
        assert set(loop._scheduled) == set(timers) and timers[4] in loop._scheduled
        assert all(isinstance(timer, asyncio.TimerHandle) for timer in list(loop._scheduled))
        timers[0].cancel()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == [
            timer for timer in loop._scheduled if timer is not timers[0]
        ]
        assert heapq.nsmallest(1, loop._scheduled)[0] is timers[1]
        loop._scheduled.clear()
        assert not loop._scheduled
    assert len(loop._scheduled) == 0


def test_scheduled_in_order(loop_factory: Any, loop_name: str) -> None:
    needs_cpploop(loop_name, "a heap is in order at its top only")
    with open_loop(loop_factory) as loop:
        timers = [loop.call_at(1e6 + when % 7, nothing) for when in range(50)]
        expected = sorted(timers, key=lambda timer: (timer.when(), timers.index(timer)))
        assert list(loop._scheduled) == expected
        assert loop._scheduled[-1] is expected[-1]


def test_scheduled_refuses_to_be_changed(loop_factory: Any, loop_name: str) -> None:
    needs_cpploop(loop_name, "asyncio's is a list, and broken by what it is not told of")
    with open_loop(loop_factory) as loop:
        timer = loop.call_later(1000, nothing)
        with pytest.raises(TypeError):
            heapq.heappop(loop._scheduled)
        with pytest.raises(TypeError):
            heapq.heappush(loop._scheduled, timer)
        with pytest.raises(AttributeError):
            loop._scheduled.append(timer)
        with pytest.raises(AttributeError, match="call_at"):
            loop._scheduled = [timer]
        loop._scheduled = []
        assert not loop._scheduled


def test_timer_cancelled_count(loop_factory: Any) -> None:
    with open_loop(loop_factory) as loop:
        assert loop._timer_cancelled_count == 0
        timers = [loop.call_later(1000 + delay, nothing) for delay in range(10)]
        timers[3].cancel()
        timers[4].cancel()
        assert loop._timer_cancelled_count == 2
        timers[0].cancel()
        run_once(loop)
        assert loop._timer_cancelled_count == 2
        assert len(loop._scheduled) == 9
        loop._timer_handle_cancelled(asyncio.TimerHandle(1.0, nothing, (), loop))
        assert loop._timer_cancelled_count == 2


# ---- turns


def test_run_once(loop_factory: Any) -> None:
    """Programs with a loop of their own around it: IPython's hooks, hosts of plug-ins."""
    with open_loop(loop_factory) as loop:
        ran: list[str] = []
        loop.call_soon(lambda: loop.call_soon(ran.append, "second"))
        loop.call_soon(ran.append, "first")
        loop._run_once()
        assert ran == ["first"]
        loop._run_once()
        assert ran == ["first", "second"]
        loop.call_later(0.001, ran.append, "timer")
        while loop._scheduled:
            loop._run_once()
        assert ran[2:] == ["timer"]
        # With nothing to do a turn waits, unless the loop is to stop.
        loop._stopping = True
        loop._run_once()
        loop._stopping = False
        future = loop.create_future()

        async def wait() -> str:
            return f"got {await future}"

        task = loop.create_task(wait())
        loop.call_later(0.001, future.set_result, "it")
        # Python 3.14's tasks run in no other loop than the running one.
        asyncio._set_running_loop(loop)
        try:
            while not task.done():
                loop._run_once()
        finally:
            asyncio._set_running_loop(None)
        assert task.result() == "got it"
        assert not loop.is_running()
    with pytest.raises((RuntimeError, AttributeError)):
        loop._run_once()


def test_run_once_in_a_callback(loop_factory: Any) -> None:
    """pulumi awaits so from synchronous code that a callback runs."""
    with open_loop(loop_factory) as loop:
        ran: list[str] = []

        def nested() -> None:
            ran.append("nested")
            inner = loop.create_task(asyncio.sleep(0.001, "inner"))
            while not inner.done():
                loop._run_once()
            ran.append(inner.result())
            # What its turns took, the turn around them may not miss (as pulumi does it).
            for _ in range(3):
                empty = asyncio.Handle(nothing, (), loop)
                empty._cancelled = True
                loop._ready.append(empty)

        loop.call_soon(nested)
        loop.call_soon(ran.append, "taken")
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert ran == ["nested", "taken", "inner"]


def test_run_once_in_a_callback_sends_what_is_gathered(loop_factory: Any) -> None:
    with open_loop(loop_factory) as loop:
        sock, peer = support.tcp_pair()
        rec = Recorder()

        def talk() -> None:
            for piece in (b"a", b"b", b"c"):
                rec.transport.write(piece)
            answer: list[bytes] = []
            peer.setblocking(True)
            thread = threading.Thread(
                target=lambda: answer.append(peer.recv(3, socket.MSG_WAITALL))
            )
            thread.start()
            waker = loop.call_later(5, nothing)
            while not answer and thread.is_alive():
                loop._ready.append(asyncio.Handle(nothing, (), loop))
                loop._run_once()
            thread.join(5)
            assert answer == [b"abc"]
            waker.cancel()

        async def main() -> None:
            await support.attach(sock, rec)
            done = loop.create_future()
            loop.call_soon(lambda: (talk(), done.set_result(None)))
            await done
            rec.transport.abort()
            await rec.until("connection_lost")

        loop.run_until_complete(main())
        peer.close()


def test_run_once_lets_what_must_leave_pass(loop_factory: Any) -> None:
    with open_loop(loop_factory) as loop, reported(loop) as reports:

        def interrupt() -> None:
            raise KeyboardInterrupt

        loop.call_soon(interrupt)
        ran: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            loop._run_once()
        loop.call_soon(ran.append, 1)
        loop._run_once()
        assert ran == [1] and reports == []

        def nested() -> None:
            loop.call_soon(interrupt)
            with pytest.raises(KeyboardInterrupt):
                loop._run_once()
            ran.append(2)

        loop.call_soon(nested)
        loop._run_once()
        assert ran == [1, 2]


def test_run_once_belongs_to_one_thread(loop_factory: Any, loop_name: str) -> None:
    """A second thread is refused also when nobody says that the loop runs."""
    needs_cpploop(loop_name, "two threads wait in one selector there")
    with open_loop(loop_factory) as loop:
        started, release = threading.Event(), threading.Event()
        loop.call_soon(started.set)
        loop.call_soon(release.wait, 10)
        thread = threading.Thread(target=loop._run_once)
        thread.start()
        assert started.wait(10)
        with pytest.raises(RuntimeError, match="another thread"):
            loop._run_once()
        release.set()
        thread.join(10)
        loop.call_soon(nothing)
        loop._run_once()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="came with Python 3.13")
def test_run_forever_setup(loop_factory: Any) -> None:
    """How 3.13 lets a program run the turns itself."""
    with open_loop(loop_factory) as loop:
        seen: list[Any] = []

        async def main() -> None:
            seen.append(asyncio.get_running_loop())
            await asyncio.sleep(0)

            async def numbers() -> Any:
                yield 1

            async for _ in numbers():
                seen.append(len(loop._asyncgens))
                break

        loop._run_forever_setup()
        try:
            assert loop.is_running() and asyncio.get_running_loop() is loop
            task = loop.create_task(main())
            while not task.done():
                loop._run_once()
        finally:
            loop._run_forever_cleanup()
        assert not loop.is_running()
        assert seen == [loop, 1]
        loop.run_until_complete(loop.shutdown_asyncgens())


def test_process_events(loop_factory: Any) -> None:
    with open_loop(loop_factory) as loop:
        ran: list[str] = []
        reader = asyncio.Handle(ran.append, ("read",), loop)
        writer = asyncio.Handle(ran.append, ("written",), loop)
        key = selectors.SelectorKey(0, 0, selectors.EVENT_READ, (reader, writer))
        loop._process_events([(key, selectors.EVENT_READ)])
        loop._process_events([(key, selectors.EVENT_WRITE)])
        run_once(loop)
        assert ran == ["read", "written"]


def test_call_soon_and_add_callback(loop_factory: Any) -> None:
    """The ways past call_soon(), as subclasses and signal handlers take them."""
    with open_loop(loop_factory) as loop:
        ran: list[str] = []
        handle = loop._call_soon(ran.append, ("called",), None)
        assert isinstance(handle, asyncio.Handle) and not handle.cancelled()
        loop._add_callback(asyncio.Handle(ran.append, ("added",), loop))
        loop._add_callback_signalsafe(asyncio.Handle(ran.append, ("signalled",), loop))
        cancelled = loop._call_soon(ran.append, ("cancelled",), contextvars.copy_context())
        cancelled.cancel()
        loop._add_callback(cancelled)
        run_once(loop)
        assert ran == ["called", "added", "signalled"]


def test_overriding_call_soon_may_call_the_private_one(loop_factory: Any) -> None:
    with open_loop(loop_factory) as plain:
        base = type(plain)

    class Counting(base):  # type: ignore[misc,valid-type]
        counted = 0

        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            self.counted += 1
            return self._call_soon(callback, args, context)

    with open_loop(Counting) as loop:
        assert loop.run_until_complete(asyncio.sleep(0, "done")) == "done"
        assert loop.counted > 0


def test_write_to_self(loop_factory: Any) -> None:
    """Called from threads that put something where a callback of the loop's looks."""
    with open_loop(loop_factory) as loop:
        queue: list[str] = []

        async def main() -> str:
            thread = threading.Thread(target=lambda: (queue.append("item"), loop._write_to_self()))
            thread.start()
            while not queue:
                await asyncio.sleep(0.001)
            thread.join()
            return queue.pop()

        assert loop.run_until_complete(main()) == "item"


# ---- state


def test_state(loop_factory: Any) -> None:
    """_thread_id, _debug, _stopping, _closed, _task_factory, _exception_handler and their like."""
    with open_loop(loop_factory) as loop:
        assert loop._thread_id is None

        async def main() -> None:
            assert loop._thread_id == threading.get_ident()
            assert loop._stopping is False
            loop.stop()
            assert loop._stopping is True
            loop._stopping = False
            await asyncio.sleep(0)

        loop.run_until_complete(main())
        assert loop._thread_id is None
        assert loop._debug is False
        loop._debug = True
        assert loop.get_debug() is True
        loop.set_debug(False)
        assert loop._debug is False
        assert loop._closed is False
        assert loop._task_factory is None

        def factory(loop: Any, coro: Any, **kwargs: Any) -> Any:
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(factory)
        assert loop._task_factory is factory
        assert loop._exception_handler is None
        loop.set_exception_handler(lambda loop, context: None)
        assert loop._exception_handler is loop.get_exception_handler()
        loop._exception_handler = None
        assert loop.get_exception_handler() is None
        assert loop._clock_resolution > 0
        assert loop.slow_callback_duration == 0.1
        assert loop._internal_fds == 1
    assert loop._closed is True
    assert loop._internal_fds == 0
    assert loop._selector is None
    assert loop._csock is None and loop._ssock is None


def test_closed_cannot_be_claimed(loop_factory: Any, loop_name: str) -> None:
    needs_cpploop(loop_name, "asyncio believes it")
    with open_loop(loop_factory) as loop:
        with pytest.raises(AttributeError, match="close"):
            loop._closed = True
        assert not loop.is_closed()


def test_current_handle(loop_factory: Any) -> None:
    """Debug mode: error reports name the handle that is being run."""
    with open_loop(loop_factory) as loop:
        seen: list[Any] = []
        assert loop._current_handle is None
        loop.set_debug(True)
        handle = loop.call_soon(lambda: seen.append(loop._current_handle))
        run_once(loop)
        assert seen == [handle] and loop._current_handle is None


def test_checks(loop_factory: Any) -> None:
    """_check_closed() and its like, called by libraries before they do something of their own."""
    loop = loop_factory()
    try:
        loop._check_closed()
        loop._check_running()
        loop._check_callback(nothing, "call_soon")
        with pytest.raises(TypeError, match="a callable object was expected"):
            loop._check_callback(None, "call_soon")

        async def main() -> None:
            with pytest.raises(RuntimeError, match="already running"):
                loop._check_running()
            loop._check_thread()
            errors: list[BaseException] = []

            def check() -> None:
                try:
                    loop._check_thread()
                except RuntimeError as exc:
                    errors.append(exc)

            await loop.run_in_executor(None, check)
            assert len(errors) == 1

        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop._check_closed()


def test_default_executor(loop_factory: Any) -> None:
    """Looked at by metrics, shut down by frameworks that are older than the method for it."""
    with open_loop(loop_factory) as loop:
        assert loop._default_executor is None
        loop.run_until_complete(loop.run_in_executor(None, nothing))
        assert isinstance(loop._default_executor, concurrent.futures.ThreadPoolExecutor)
        loop._default_executor.shutdown(wait=True)
        loop._default_executor = None
        own = concurrent.futures.ThreadPoolExecutor(1)
        loop.set_default_executor(own)
        assert loop._default_executor is own
        assert loop._executor_shutdown_called is False
        loop.run_until_complete(loop.shutdown_default_executor())
        assert loop._executor_shutdown_called is True


def test_asyncgens(loop_factory: Any) -> None:
    """Counted by leak detectors at the end of a test."""
    with open_loop(loop_factory) as loop:

        async def numbers() -> Any:
            yield 1
            yield 2

        kept = numbers()

        async def main() -> None:
            assert len(loop._asyncgens) == 0
            await anext(kept)
            assert list(loop._asyncgens) == [kept]

        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_asyncgens())
        assert loop._asyncgens_shutdown_called is True
        assert len(loop._asyncgens) == 0


def test_signal_handlers(loop_factory: Any) -> None:
    """Job queues keep the handler that was there and put it back."""
    with open_loop(loop_factory) as loop:
        assert not loop._signal_handlers
        loop.add_signal_handler(signal.SIGUSR1, nothing)
        handle = loop._signal_handlers[signal.SIGUSR1]
        assert handle._callback is nothing and handle._args == ()
        assert loop._csock.fileno() >= 0 and loop._ssock.fileno() >= 0
        loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.SIGUSR1 not in loop._signal_handlers


def test_handle_signal(loop_factory: Any) -> None:
    with open_loop(loop_factory) as loop:
        ran: list[str] = []
        loop.add_signal_handler(signal.SIGUSR1, ran.append, "signal")
        loop._handle_signal(signal.SIGUSR1)
        loop._handle_signal(signal.NSIG + 1)
        run_once(loop)
        assert ran == ["signal"]
        loop.remove_signal_handler(signal.SIGUSR1)


# ---- descriptors


def test_selector(loop_factory: Any) -> None:
    """Diagnostics list what is watched."""
    with open_loop(loop_factory) as loop:
        read_end, write_end = os.pipe()
        loop.add_reader(read_end, nothing)
        loop.add_writer(write_end, nothing)
        try:
            key = loop._selector.get_key(read_end)
            assert (key.fd, key.events) == (read_end, selectors.EVENT_READ)
            watched = loop._selector.get_map()
            assert watched[write_end].events == selectors.EVENT_WRITE
            assert {read_end, write_end} <= set(watched)
            loop.remove_reader(read_end)
            with pytest.raises(KeyError):
                loop._selector.get_key(read_end)
            assert read_end not in loop._selector.get_map()
        finally:
            loop.remove_writer(write_end)
            os.close(read_end)
            os.close(write_end)


def test_selector_refuses_to_wait(loop_factory: Any, loop_name: str) -> None:
    """nest_asyncio's loop asks the selector: it is told, instead of waiting for nothing."""
    needs_cpploop(loop_name, "asyncio has one")
    with open_loop(loop_factory) as loop:
        for method in ("select", "register", "unregister", "modify"):
            with pytest.raises(RuntimeError, match="has no selector"):
                getattr(loop._selector, method)(0)


def test_private_readers_and_writers(run: Any) -> None:
    """asyncio's own transports use these, and so do those of other libraries."""

    async def main(env: Env) -> None:
        first, second = support.unix_pair()
        loop: Any = env.loop
        ran = asyncio.Event()
        handle = loop._add_reader(first.fileno(), ran.set)
        assert isinstance(handle, asyncio.Handle) and handle._callback == ran.set
        second.send(b"x")
        await ran.wait()
        assert loop._remove_reader(first.fileno()) is True
        assert loop._remove_reader(first.fileno()) is False
        writable = asyncio.Event()
        loop._add_writer(first, writable.set)
        await writable.wait()
        assert loop._remove_writer(first) is True
        loop._ensure_fd_no_transport(first)
        first.close()
        second.close()

    run(main)


def test_transports(run: Any) -> None:
    """Shutdown code closes what is in there; SNI callbacks look for their connection."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, _):
            loop: Any = env.loop
            assert loop._transports[transport._sock_fd] is transport
            assert transport in list(loop._transports.values())

    run(main)


# ---- hooks


@pytest.mark.parametrize("tls", [False, True])
def test_make_transport_hooks(loop_factory: Any, certs: support.Certificates, tls: bool) -> None:
    """A subclass that replaces a hook is asked wherever asyncio would ask it."""
    with open_loop(loop_factory) as plain:
        base = type(plain)
    made: list[str] = []

    class Hooked(base):  # type: ignore[misc,valid-type]
        def _make_socket_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("socket")
            return super()._make_socket_transport(*args, **kwargs)

        def _make_ssl_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("ssl")
            return super()._make_ssl_transport(*args, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = socket.socketpair()
        ssl_server = certs.server_context() if tls else None
        options: Any = (
            {"ssl": certs.client_context(), "server_hostname": "localhost"} if tls else {}
        )
        server = Recorder()
        accepted = asyncio.ensure_future(
            loop.connect_accepted_socket(lambda: server, second, ssl=ssl_server)
        )
        client = Recorder()
        transport, _ = await loop.create_connection(lambda: client, sock=first, **options)
        await accepted
        transport.close()
        await client.until("connection_lost")
        await server.until("connection_lost")

    with open_loop(Hooked) as loop:
        loop.run_until_complete(main())
    assert made == ["ssl" if tls else "socket"] * 2


def test_make_datagram_pipe_and_subprocess_hooks(loop_factory: Any) -> None:
    """The hooks of the other transports have asyncio's names and are asked too."""
    with open_loop(loop_factory) as plain:
        base = type(plain)
    made: list[str] = []

    class Hooked(base):  # type: ignore[misc,valid-type]
        def _make_datagram_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("datagram")
            return super()._make_datagram_transport(*args, **kwargs)

        def _make_read_pipe_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("read")
            return super()._make_read_pipe_transport(*args, **kwargs)

        def _make_write_pipe_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("write")
            return super()._make_write_pipe_transport(*args, **kwargs)

        async def _make_subprocess_transport(self, *args: Any, **kwargs: Any) -> Any:
            made.append("subprocess")
            return await super()._make_subprocess_transport(*args, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        datagram, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        datagram.close()
        reader, writer = (
            os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        )
        ends = [Recorder(), Recorder()]
        await loop.connect_read_pipe(lambda: ends[0], reader)
        await loop.connect_write_pipe(lambda: ends[1], writer)
        ends[1].transport.close()
        for end in ends:
            await end.until("connection_lost")
        process, _ = await loop.subprocess_exec(
            asyncio.SubprocessProtocol, "true", stdin=None, stdout=None, stderr=None
        )
        await process._wait()
        process.close()
        await turns(3)

    with open_loop(Hooked) as loop:
        loop.run_until_complete(main())
    assert made == ["datagram", "read", "write", "subprocess"]


def test_serving_hooks(loop_factory: Any) -> None:
    with open_loop(loop_factory) as plain:
        base = type(plain)
    asked: list[str] = []

    class Hooked(base):  # type: ignore[misc,valid-type]
        def _start_serving(self, *args: Any, **kwargs: Any) -> None:
            asked.append("start")
            super()._start_serving(*args, **kwargs)

        def _stop_serving(self, *args: Any, **kwargs: Any) -> None:
            asked.append("stop")
            super()._stop_serving(*args, **kwargs)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        server.close()
        await server.wait_closed()

    with open_loop(Hooked) as loop:
        loop.run_until_complete(main())
    assert asked == ["start", "stop"]


# ---- handles


def test_handles(loop_factory: Any) -> None:
    """_callback, _args, _context, _cancelled, _when, _scheduled, _loop, _source_traceback, _run."""
    with open_loop(loop_factory) as loop:
        ran: list[int] = []
        context = contextvars.copy_context()
        handle = loop.call_soon(ran.append, 1, context=context)
        assert handle._callback == ran.append
        assert handle._args == (1,)
        assert handle._context is context
        assert handle._loop is loop
        assert handle._cancelled is False
        assert handle._source_traceback is None
        assert handle._repr_info()[0] == "Handle"
        handle._run()
        assert ran == [1]
        handle.cancel()
        assert handle._cancelled is True and handle._callback is None and handle._args is None
        timer = loop.call_at(loop.time() + 1000, nothing)
        assert timer._when == timer.when() and timer._scheduled is True
        timer.cancel()
        loop.set_debug(True)
        assert loop.call_soon(nothing)._source_traceback


def test_handle_of_ones_own(loop_factory: Any) -> None:
    """asyncio.Handle and TimerHandle of this loop, made by hand."""
    with open_loop(loop_factory) as loop, reported(loop) as reports:
        ran: list[int] = []
        asyncio.Handle(ran.append, (1,), loop)._run()
        assert ran == [1]
        asyncio.Handle(lambda: 1 / 0, (), loop)._run()
        assert len(reports) == 1
        timer = asyncio.TimerHandle(5.0, ran.append, (2,), loop)
        timer.cancel()
        assert timer.cancelled()


# ---- transports


def test_transport_attributes(run: Any) -> None:
    """_sock, _sock_fd, _loop, _protocol, _extra, _conn_lost, _closing and their like."""

    async def main(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            assert transport._loop is env.loop
            assert transport._protocol is rec
            assert transport._sock.getpeername() == peer.getsockname()
            assert transport._sock_fd == transport._sock.fileno() >= 0
            assert transport._extra["peername"] == peer.getsockname()
            assert transport._conn_lost == 0
            assert transport._closing is False
            assert transport._eof is False
            assert transport._paused is False
            assert transport._protocol_paused is False
            assert (transport._low_water, transport._high_water) == (16384, 65536)
            assert transport._server is None
            transport.pause_reading()
            assert transport._paused is True
            other = Recorder()
            transport._protocol = other
            assert transport.get_protocol() is other
            transport._protocol = rec
            transport.write_eof()
            assert transport._eof is True
            transport._force_close(None)
            assert transport._conn_lost == 1 and transport._closing is True
            await rec.until("connection_lost")
        assert transport._sock is None

    run(main)


def test_transport_of_a_server(run: Any) -> None:
    async def main(env: Env) -> None:
        rec = Recorder()
        server = await env.loop.create_server(lambda: rec, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            await rec.until("connection_made")
            assert rec.transport._server is server
        await rec.until("connection_lost")
        server.close()
        await server.wait_closed()

    run(main)


def test_tls_transport_attributes(run: Any, certs: support.Certificates) -> None:
    """_ssl_protocol and what is behind it: certificate pinning, tests."""

    async def main(env: Env) -> None:
        first, second = socket.socketpair()
        server, client = Recorder(), Recorder()
        accepted = asyncio.ensure_future(
            env.loop.connect_accepted_socket(lambda: server, second, ssl=certs.server_context())
        )
        transport, _ = await env.loop.create_connection(
            lambda: client, sock=first, ssl=certs.client_context(), server_hostname="localhost"
        )
        await accepted
        secure: Any = transport
        assert secure._ssl_protocol._app_protocol is client
        assert secure._ssl_protocol._sslcontext is transport.get_extra_info("sslcontext")
        assert secure._loop is env.loop
        assert secure._start_tls_compatible is True
        transport.close()
        await client.until("connection_lost")
        await server.until("connection_lost")

    run(main)


# ---- asyncio itself


@pytest.mark.parametrize(
    ("pattern", "subject"),
    [
        (r"(?:\b|_)loop\.(_[a-z]\w*)", "loop"),
        (r"\b(?:handle|reader|writer)\.(_[a-z]\w*)", "handle"),
    ],
)
def test_names_that_asyncio_reads(loop_factory: Any, pattern: str, subject: str) -> None:
    """What the running asyncio reads of a loop or a handle that is not its own is all there."""
    read: dict[str, set[str]] = {}
    for module in Path(asyncio.__file__).parent.glob("*.py"):
        if not module.name.startswith(("windows", "proactor")):
            for found in re.finditer(pattern, module.read_text(encoding="utf-8")):
                read.setdefault(found[1], set()).add(module.name)
    with open_loop(loop_factory) as loop:
        owner = loop if subject == "loop" else loop.call_later(1000, nothing)
        # Of other handles than the loop's: a stream reader's and a generator's.
        own = {name for name, modules in read.items() if not modules <= {"streams.py"}}
        missing = {name: read[name] for name in own if not hasattr(owner, name)}
        assert not missing and len(own) >= (5 if subject == "loop" else 2)


# ---- the page


def rows() -> list[list[str]]:
    """The page's tables of what there is."""
    lines = PAGE.read_text(encoding="utf-8").partition("## What is not there")[0].splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line[:1] == "|"
    ]
    return [row for row in cells if row[0].startswith("`")]


def test_every_row_has_its_test() -> None:
    """Each row of the page names a test of this file, which mentions the row's names."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(rows()) > 25
    for row in rows():
        names = re.findall(r"`(_\w+)", row[0])
        tests = re.findall(r"test_\w+", row[-1])
        assert tests, f"no test in the row of {row[0]}"
        for test in tests:
            assert f"def {test}(" in source, f"{test} is not here"
        text = "".join(
            re.search(rf"def {test}\(.*?(?=\n(?:def|@|# ----))", source, re.DOTALL)[0]
            for test in tests
        )
        missing = [name for name in names if name not in text]
        assert not missing, f"{tests} mention nothing of {missing}"
