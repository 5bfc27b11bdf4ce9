"""What loop.sock_*() return: a coroutine in all that asyncio, await and inspection ask of one."""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import contextvars
import gc
import inspect
import io
import os
import socket
import subprocess
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
import support


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, ...]]:
    first, second = support.unix_pair()
    with first, second:
        yield first, second


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    loop = loop_factory()
    yield loop
    loop.close()


Sockets = tuple[socket.socket, socket.socket]
Loop = asyncio.AbstractEventLoop


def never_awaited(body: Callable[[], Any]) -> list[str]:
    """The RuntimeWarnings that BODY and what it drops give rise to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        body()
        gc.collect()
    return [str(warning.message) for warning in caught]


# --------------------------------------------------------------------------- what it is


def test_is_a_coroutine(loop: Loop, sockets: Sockets) -> None:
    operation = loop.sock_recv(sockets[0], 10)
    assert asyncio.iscoroutine(operation)
    assert inspect.isawaitable(operation)
    assert isinstance(operation, collections.abc.Coroutine)
    assert isinstance(operation, collections.abc.Awaitable)
    assert not asyncio.isfuture(operation)
    operation.close()


def test_names(loop: Loop, sockets: Sockets) -> None:
    operation: Any = loop.sock_recv(sockets[0], 10)
    assert operation.__name__ == "sock_recv"
    assert operation.__qualname__.endswith("Loop.sock_recv")
    assert repr(operation).startswith("<coroutine object ")
    assert "Loop.sock_recv at 0x" in repr(operation)
    operation.close()


def test_native_operations_are_native(loop_name: str, loop: Loop, sockets: Sockets) -> None:
    """The usual call is not asyncio's Python."""
    support.needs_cpploop(loop_name, "it has no native ones")
    operation = loop.sock_recv(sockets[0], 10)
    assert not isinstance(operation, types.CoroutineType)
    operation.close()
    loop.set_debug(True)
    operation = loop.sock_recv(sockets[0], 10)
    assert isinstance(operation, types.CoroutineType)
    operation.close()
    with pytest.raises(TypeError):
        type(operation)()


def test_has_weak_references(loop: Loop, sockets: Sockets) -> None:
    operation = loop.sock_recv(sockets[0], 10)
    reference = weakref.ref(operation)
    assert reference() is operation
    operation.close()
    del operation
    gc.collect()
    assert reference() is None


# --------------------------------------------------------------------------- before the first send


def test_nothing_happens_before_it_is_sent_to(loop: Loop, sockets: Sockets) -> None:
    ours, peer = sockets
    peer.send(b"abc")
    operation = loop.sock_recv(ours, 2)
    assert ours.recv(1) == b"a"
    with pytest.raises(StopIteration) as stop:
        operation.send(None)
    assert stop.value.value == b"bc"


def test_never_awaited(loop: Loop, sockets: Sockets) -> None:
    def drop() -> None:
        loop.sock_recv(sockets[0], 10)

    messages = never_awaited(drop)
    assert len(messages) == 1
    assert messages[0].endswith("Loop.sock_recv' was never awaited")


def test_never_awaited_as_an_error(loop: Loop, sockets: Sockets) -> None:
    env = support.Env("never awaited")
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: env.log(args.exc_type)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            loop.sock_recv(sockets[0], 10)
            gc.collect()
    finally:
        sys.unraisablehook = hook
    assert env.trace == [("RuntimeWarning",)]


def test_closed_before_it_began(loop: Loop, sockets: Sockets) -> None:
    ours, peer = sockets
    peer.send(b"abc")

    def body() -> None:
        operation = loop.sock_recv(ours, 10)
        operation.close()
        operation.close()
        with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
            operation.send(None)

    assert never_awaited(body) == []
    assert ours.recv(10) == b"abc"


def test_thrown_into_before_it_began(loop: Loop, sockets: Sockets) -> None:
    ours, peer = sockets
    peer.send(b"abc")

    def body() -> None:
        for what in (KeyError("x"), KeyError, asyncio.CancelledError(), GeneratorExit()):
            operation = loop.sock_recv(ours, 10)
            with pytest.raises(type(what) if isinstance(what, BaseException) else what) as caught:
                operation.throw(what)
            assert not isinstance(what, BaseException) or caught.value is what
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                operation.throw(what)

    assert never_awaited(body) == []
    assert ours.recv(10) == b"abc"


def test_a_value_sent_too_early(loop: Loop, sockets: Sockets) -> None:
    sockets[1].send(b"abc")
    operation = loop.sock_recv(sockets[0], 10)
    with pytest.raises(TypeError, match="can't send non-None value to a just-started coroutine"):
        operation.send(5)
    with pytest.raises(StopIteration):
        operation.send(None)


# --------------------------------------------------------------------------- while it waits


def test_yields_a_future_of_the_loop(loop: Loop, sockets: Sockets) -> None:
    ours, _ = sockets
    operation: Any = loop.sock_recv(ours, 10)
    future = operation.send(None)
    assert isinstance(future, asyncio.Future)
    assert future.get_loop() is loop
    assert future._asyncio_future_blocking is True
    assert operation.cr_running is False
    assert operation.cr_suspended is True
    with pytest.raises(RuntimeError, match="await wasn't used with future"):
        operation.send(None)


@pytest.mark.parametrize("how", ["close", "throw", "cancel"])
def test_the_watcher_goes_at_once(loop_name: str, loop: Any, sockets: Sockets, how: str) -> None:
    """When the coroutine is left there is no watcher any more, and nothing was read."""
    support.needs_cpploop(loop_name, "it stays until the future is done and a turn went by")
    ours, peer = sockets
    operation: Any = loop.sock_recv(ours, 10)
    future = operation.send(None)
    assert loop._watched(ours) == 1
    peer.send(b"abc")
    if how == "close":
        operation.close()
    elif how == "throw":
        with pytest.raises(KeyError):
            operation.throw(KeyError())
    else:
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            operation.send(None)
    assert loop._watched(ours) == 0
    loop.run_until_complete(asyncio.sleep(0))
    assert ours.recv(10) == b"abc"


def test_awaited_twice(run: Any) -> None:
    async def main(env: support.Env) -> None:
        ours, peer = support.unix_pair()
        with ours, peer:
            operation = env.loop.sock_recv(ours, 10)

            async def awaits() -> Any:
                return await operation

            first = asyncio.ensure_future(awaits())
            await support.turns(2)
            with pytest.raises(RuntimeError, match="coroutine is being awaited already"):
                await operation
            peer.send(b"abc")
            assert await first == b"abc"
            with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
                await operation

    run(main)


def test_entered_while_it_runs(loop_name: str, loop: Any, sockets: Sockets) -> None:
    """Code that runs inside of it cannot go on with it."""
    ours, peer = sockets
    errors = []

    class Nosy:
        def __len__(self) -> int:
            for enter in (lambda: operation.send(None), operation.close):
                try:
                    enter()
                except ValueError as exc:
                    errors.append(str(exc))
            return 0

    operation = loop.sock_recvfrom_into(ours, Nosy())
    with pytest.raises(TypeError):
        operation.send(None)
    # asyncio's own asks once, the native one asks it again.
    assert set(errors) == {"coroutine already executing"}
    assert peer.fileno() >= 0


def test_throw_with_the_old_arguments(loop: Loop, sockets: Sockets) -> None:
    def outcome(*arguments: Any) -> str:
        operation = loop.sock_recv(sockets[0], 10)
        operation.send(None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeprecationWarning)
            try:
                operation.throw(*arguments)
            except BaseException as exc:
                operation.close()
                # asyncio's throws in the same way into the future's iterator, and warns anew.
                notes = sorted({str(warning.message) for warning in caught})
                return f"{type(exc).__name__} {exc.args} {notes}"
        return "returned"

    old = sys.version_info < (3, 12)
    note = (
        []
        if old
        else [
            "the (type, exc, tb) signature of throw() is deprecated, "
            "use the single-arg signature instead."
        ]
    )
    assert outcome(KeyError, "x", None) == f"KeyError ('x',) {note}"
    assert outcome(KeyError, KeyError("y")) == f"KeyError ('y',) {note}"
    assert outcome(KeyError, ("a", "b")) == f"KeyError ('a', 'b') {note}"
    assert outcome(KeyError("z")) == "KeyError ('z',) []"
    assert outcome(5).startswith("TypeError")
    assert outcome().startswith("TypeError")
    assert outcome(KeyError("z"), KeyError("z")).startswith("TypeError")
    assert outcome(KeyError, None, 5).startswith("TypeError")


def test_stop_iteration_thrown_in(loop_name: str, loop: Loop, sockets: Sockets) -> None:
    support.needs_cpploop(loop_name, "before it began, CPython lets it through as if it returned")
    operation = loop.sock_recv(sockets[0], 10)
    with pytest.raises(RuntimeError, match="coroutine raised StopIteration") as caught:
        operation.throw(StopIteration(5))
    assert isinstance(caught.value.__cause__, StopIteration)


# --------------------------------------------------------------------------- ways to drive it


@pytest.mark.parametrize("ready", [True, False])
def test_ways_to_await(run: Any, ready: bool) -> None:
    async def main(env: support.Env) -> None:
        loop = env.loop
        ours, peer = support.unix_pair()

        async def direct() -> Any:
            return await loop.sock_recv(ours, 3)

        class Wrapped:
            def __await__(self) -> Generator[Any, Any, Any]:
                return (yield from loop.sock_recv(ours, 3).__await__())

        class Handed:
            def __await__(self) -> Generator[Any, Any, Any]:
                return loop.sock_recv(ours, 3).__await__()

        @types.coroutine
        def generator() -> Any:
            return (yield from loop.sock_recv(ours, 3))  # type: ignore[misc]

        async def awaits(what: Any) -> Any:
            return await what

        ways: list[Callable[[], Any]] = [
            direct,
            lambda: awaits(Wrapped()),
            lambda: awaits(Handed()),
            lambda: awaits(generator()),
            lambda: loop.create_task(loop.sock_recv(ours, 3)),
            lambda: asyncio.wait_for(loop.sock_recv(ours, 3), 5),
            lambda: asyncio.shield(loop.sock_recv(ours, 3)),
            lambda: asyncio.ensure_future(loop.sock_recv(ours, 3)),
            lambda: asyncio.gather(loop.sock_recv(ours, 3)),
        ]
        if sys.version_info >= (3, 12):
            ways.append(lambda: asyncio.eager_task_factory(loop, loop.sock_recv(ours, 3)))
        with ours, peer:
            for way in ways:
                if ready:
                    peer.send(b"abc")
                task = asyncio.ensure_future(way())
                await support.turns(3)
                assert task.done() == ready or asyncio.isfuture(task)
                if not ready:
                    assert not task.done()
                    peer.send(b"abc")
                assert await task in (b"abc", [b"abc"])

    run(main)


def test_run_until_complete(loop: Loop, sockets: Sockets) -> None:
    ours, peer = sockets
    loop.call_later(0.01, peer.send, b"abc")
    assert loop.run_until_complete(loop.sock_recv(ours, 10)) == b"abc"


def test_results_that_are_tuples_and_exceptions(loop: Loop, sockets: Sockets) -> None:
    """A tuple is one value, not the arguments of StopIteration."""
    ours, peer = sockets
    peer.send(b"abc")
    with pytest.raises(StopIteration) as stop:
        loop.sock_recvfrom(ours, 10).send(None)
    assert stop.value.value == (b"abc", None)
    with pytest.raises(StopIteration) as stop:
        loop.sock_sendall(ours, b"x").send(None)
    assert stop.value.value is None


def test_an_unusual_socket_inside_a_native_operation(run: Any) -> None:
    """What asyncio's own coroutine does instead is awaited, cancelled and closed through it."""

    async def main(env: support.Env) -> None:
        loop = env.loop
        held, nobody_accepts = support.blackhole()
        with contextlib.ExitStack() as stack:
            for one in held:
                stack.enter_context(one)
            ours = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            ours.setblocking(False)
            entered = []

            async def never(*args: Any, **kwargs: Any) -> Any:
                entered.append(True)
                try:
                    await loop.create_future()
                finally:
                    entered.append(False)

            any_loop: Any = loop
            any_loop._ensure_resolved = never
            try:
                task = asyncio.ensure_future(loop.sock_connect(ours, ("nowhere.invalid", 1)))
                await support.turns(2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert entered == [True, False]
                operation = loop.sock_connect(ours, ("nowhere.invalid", 1))
                operation.send(None)
                operation.close()
                assert entered == [True, False, True, False]

                async def catches(*args: Any, **kwargs: Any) -> Any:
                    try:
                        await loop.create_future()
                    except KeyError:
                        return [(0, 0, 0, "", nobody_accepts)]

                any_loop._ensure_resolved = catches
                operation = loop.sock_connect(ours, ("nowhere.invalid", 1))
                operation.send(None)
                future = operation.throw(KeyError())
                assert asyncio.isfuture(future)
                operation.close()
            finally:
                del any_loop._ensure_resolved

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1"])
def test_over_loopback_the_two_are_connected_at_once(loop: Loop, loop_name: str, host: str) -> None:
    support.needs_cpploop(loop_name, "it waits for a turn")
    if host == "::1" and not support.has_ipv6():
        pytest.skip("no IPv6 here")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener, socket.socket(family) as ours:
        ours.setblocking(False)
        with pytest.raises(StopIteration):
            loop.sock_connect(ours, listener.getsockname()).send(None)
        assert ours.getpeername() == listener.getsockname()


# --------------------------------------------------------------------------- inspection


@pytest.mark.parametrize("debug", [False, True])
def test_tasks_show_it(run: Any, debug: bool) -> None:
    async def main(env: support.Env) -> None:
        ours, peer = support.unix_pair()
        with ours, peer:
            task = asyncio.ensure_future(env.loop.sock_recv(ours, 10))
            await support.turns(2)
            assert "Loop.sock_recv()" in repr(task)
            assert "wait_for=<Future pending" in repr(task)
            task.get_stack()
            out = io.StringIO()
            task.print_stack(file=out)
            assert "Loop.sock_recv" in out.getvalue()
            if sys.version_info >= (3, 14):
                # typeshed knows them from 3.14 on only.
                any_asyncio: Any = asyncio
                assert any_asyncio.capture_call_graph(task) is not None
                assert "Task" in any_asyncio.format_call_graph(task)
            peer.send(b"abc")
            assert await task == b"abc"
            assert "Loop.sock_recv()" in repr(task)

    run(main, debug=debug)


def test_state_as_inspect_sees_it(loop: Loop, sockets: Sockets) -> None:
    operation: Any = loop.sock_recv(sockets[0], 10)
    if sys.version_info >= (3, 15) or type(operation) is types.CoroutineType:
        # Before, inspect takes whatever has no frame for closed.
        assert inspect.getcoroutinestate(operation) == inspect.CORO_CREATED
    operation.send(None)
    assert inspect.getcoroutinestate(operation) == inspect.CORO_SUSPENDED
    assert inspect.getcoroutinelocals(operation) is not None
    operation.close()
    assert inspect.getcoroutinestate(operation) == inspect.CORO_CLOSED


@pytest.mark.skipif(sys.version_info < (3, 14), reason="python -m asyncio came with 3.14")
def test_asyncio_ps(run: Any) -> None:
    """The tool that reads tasks out of another process's memory is not confused."""

    async def main(env: support.Env) -> None:
        ours, peer = support.unix_pair()
        with ours, peer:
            memory = bytearray(10)
            tasks = [
                env.loop.create_task(env.loop.sock_recv_into(ours, memory), name="receiver"),
                env.loop.create_task(env.loop.sock_sendall(ours, bytes(1_000_000)), name="sender"),
            ]
            await support.turns(2)
            ps = [sys.executable, "-m", "asyncio", "ps", str(os.getpid())]
            done = await env.loop.run_in_executor(
                None, lambda: subprocess.run(ps, capture_output=True, text=True, check=False)
            )
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if "ermission" in done.stderr or "not permitted" in done.stderr:
                pytest.skip("reading another process's memory is not allowed here")
            assert done.returncode == 0, done.stderr
            assert "receiver" in done.stdout
            assert "sender" in done.stdout

    run(main)


# --------------------------------------------------------------------------- memory


@pytest.mark.parametrize("stage", ["created", "waiting", "finished"])
def test_no_reference_is_kept(loop_factory: support.LoopFactory, stage: str) -> None:
    ours, peer = support.unix_pair()
    with ours, peer:
        loop = loop_factory()
        memory = bytearray(10)
        before = sys.getrefcount(ours), sys.getrefcount(memory)
        for _ in range(100):
            operation = loop.sock_recv_into(ours, memory)
            if stage == "finished":
                peer.send(b"x")
                with pytest.raises(StopIteration):
                    operation.send(None)
            elif stage == "waiting":
                operation.send(None)
            if stage != "waiting":
                operation.close()
        del operation
        loop.close()
        gc.collect()
        assert (sys.getrefcount(ours), sys.getrefcount(memory)) == before


def test_cycles_through_it_are_collected(loop_factory: support.LoopFactory) -> None:
    class Data(bytearray):
        pass

    ours, peer = support.unix_pair()
    with ours, peer:
        loop = loop_factory()
        data = Data(1_000_000)
        operation = loop.sock_sendall(ours, data)
        operation.send(None)
        data.operation = operation  # type: ignore[attr-defined]
        data.loop = loop  # type: ignore[attr-defined]
        reference = weakref.ref(data)
        loop.close()
        del data, operation, loop
        gc.collect()
        assert reference() is None


def test_a_loop_closed_under_it(loop_factory: support.LoopFactory) -> None:
    ours, peer = support.unix_pair()
    with ours, peer:
        loop = loop_factory()
        operation = loop.sock_recv(ours, 10)
        operation.send(None)
        loop.close()
        operation.close()
        operation = None  # type: ignore[assignment]
        gc.collect()
        assert ours.fileno() >= 0


def test_the_context_of_the_task_is_kept(run: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")

    async def main(env: support.Env) -> None:
        ours, peer = support.unix_pair()
        with ours, peer:

            async def receives(number: int) -> tuple[bytes, int]:
                variable.set(number)
                return await env.loop.sock_recv(ours, 10), variable.get()

            for number in range(3):
                task = asyncio.ensure_future(receives(number))
                await support.turns(2)
                peer.send(b"x")
                assert await task == (b"x", number)

    run(main)
