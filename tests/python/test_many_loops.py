"""One loop per thread: many of them serve at once, and threads meddle with each other's loops.

On a free-threaded Python the threads really run at the same time, and what is not protected is
damaged; elsewhere the same holds with less chance to fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from datagrams import DatagramRecorder
from parity import open_loop

SECONDS = 20.0 if support.LONG else 1.0


@contextlib.contextmanager
def threads(*functions: Callable[[], None]) -> Iterator[list[threading.Thread]]:
    """Run the functions in threads of their own while the block runs; their errors are raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in running:
        thread.start()
    try:
        yield running
    finally:
        for thread in running:
            thread.join(60 * support.TIME_SCALE)
            assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


class Serving:
    """A loop in a thread of its own, with an echo server on a port that others listen on, too."""

    def __init__(self, factory: support.LoopFactory, port: int) -> None:
        self.factory = factory
        self.port = port
        self.answered = 0
        self.loop: Any = None
        self.ready = threading.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self.factory) as runner:
            self.loop = runner.get_loop()
            runner.run(self.serve())

    async def serve(self) -> None:
        self.over = asyncio.Event()
        server = await asyncio.start_server(
            self.echo, "127.0.0.1", self.port, reuse_port=True, backlog=256
        )
        self.ready.set()
        async with server:
            await self.over.wait()

    async def echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert asyncio.get_running_loop() is self.loop
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
                self.answered += 1
        writer.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="needs SO_REUSEPORT")
def test_loops_in_threads_share_a_port(loop_factory: support.LoopFactory) -> None:
    """Every loop answers some of the connections, and each of them gets its own bytes only."""
    count, each = 4, 60

    def clients(who: int) -> None:
        for number in range(each):
            with socket.create_connection(("127.0.0.1", port), 20 * support.TIME_SCALE) as sock:
                tag = b"%d-%d;" % (who, number) * 50
                sock.sendall(tag)
                received = b""
                while len(received) < len(tag):
                    chunk = sock.recv(4096)
                    assert chunk, "the server hung up"
                    received += chunk
                assert received == tag

    with socket.socket() as holder:
        # Bound and not listening: it reserves the port and takes no connection.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        serving = [Serving(loop_factory, port) for _ in range(count)]
        with threads(*(one.run for one in serving)):
            for one in serving:
                assert one.ready.wait(20 * support.TIME_SCALE)
            try:
                with threads(*(lambda who=who: clients(who) for who in range(count))):
                    pass
            finally:
                for one in serving:
                    one.stop()
    assert sum(one.answered for one in serving) >= count * each
    assert all(one.answered for one in serving)


def test_handles_are_scheduled_and_cancelled_by_all_threads(
    loop_factory: support.LoopFactory,
) -> None:
    """What nobody cancelled runs once, what somebody cancelled runs once at most."""
    each = 5000
    ran: list[int] = []
    cancelled: set[int] = set()

    def schedule(first: int, step: int) -> None:
        mine: list[tuple[int, asyncio.Handle]] = []
        for number in range(first, first + each):
            mine.append((number, loop.call_soon_threadsafe(ran.append, number)))
            if number % step == 0:
                victim, handle = mine[len(mine) // 2]
                cancelled.add(victim)
                handle.cancel()

    def work() -> None:
        with threads(*(lambda w=who: schedule(w * each, 3 + w) for who in range(4))):
            pass
        loop.call_soon_threadsafe(loop.stop)

    with open_loop(loop_factory) as loop, threads(work):
        loop.run_forever()
    assert len(ran) == len(set(ran))
    assert set(range(4 * each)) - cancelled <= set(ran)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_handles_and_timers_are_cancelled_by_threads_that_did_not_make_them(
    loop_name: str, loop_factory: support.LoopFactory, debug: bool
) -> None:
    """Each thread cancels what its neighbours made, and often two do so at the same time.

    The loop calls them meanwhile. What nobody cancels runs once; what is cancelled runs once at
    most, and not at all if it was not yet due.
    """
    support.needs_cpploop(loop_name, "its handles may be caught half cancelled")
    count, each = 4, 40_000 if support.LONG else 4_000
    kinds = ("threadsafe", "soon", "timer", "far")
    made: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(count)]
    ran: list[tuple[str, int]] = []
    after_cancel: list[tuple[str, int]] = []
    cancelled: set[tuple[str, int]] = set()
    reports: list[Any] = []

    def call(kind: str, number: int) -> None:
        ran.append((kind, number))
        if (kind, number) in cancelled:
            after_cancel.append((kind, number))

    def to_neighbours(who: int, kind: str, number: int, handle: Any) -> None:
        made[(who + 1) % count].put((kind, number, handle))
        made[(who + 2) % count].put((kind, number, handle))

    def make_in_the_loop(who: int, numbers: range) -> None:
        for number in numbers:
            to_neighbours(who, "soon", number, loop.call_soon(call, "soon", number))
            timer = loop.call_later(number % 5 * 0.0002, call, "timer", number)
            to_neighbours(who, "timer", number, timer)
            to_neighbours(who, "far", number, loop.call_later(1000, call, "far", number))

    def cancel_some(who: int) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                kind, number, handle = made[who].get_nowait()
                if number % 3:
                    handle.cancel()
                    assert handle.cancelled()
                    cancelled.add((kind, number))

    def work(who: int) -> None:
        for number in range(who, each, count):
            handle = loop.call_soon_threadsafe(call, "threadsafe", number)
            to_neighbours(who, "threadsafe", number, handle)
            if number % 20 < count:
                numbers = range(number, min(number + 20, each), count)
                loop.call_soon_threadsafe(make_in_the_loop, who, numbers)
            cancel_some(who)

    def work_and_finish() -> None:
        with threads(*(lambda who=who: work(who) for who in range(count))):
            pass
        # The last that the loop makes are called by now, or due soon.
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result(20 * support.TIME_SCALE)
        with threads(*(lambda who=who: cancel_some(who) for who in range(count))):
            pass
        loop.call_soon_threadsafe(loop.stop)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with open_loop(loop_factory) as loop:
            loop.set_debug(debug)
            loop.set_exception_handler(lambda _, context: reports.append(context))
            with threads(work_and_finish):
                loop.run_forever()
    finally:
        sys.setswitchinterval(interval)
    assert reports == []
    everything = {(kind, number) for kind in kinds for number in range(each)}
    to_cancel = {(kind, number) for kind, number in everything if number % 3}
    assert cancelled == to_cancel
    assert len(ran) == len(set(ran))
    far = {("far", number) for number in range(each)}
    assert everything - to_cancel - far <= set(ran) <= everything - far
    if sys.version_info >= (3, 14):
        # There cancel() waits for a callback that is under way.
        assert not [item for item in after_cancel if item[0] == "threadsafe"]


def test_a_loop_is_stopped_and_fed_by_all_threads(loop_factory: support.LoopFactory) -> None:
    """run_forever() again and again, while others stop it, post to it and await its results."""
    until = time.monotonic() + SECONDS
    over = threading.Event()
    turns: list[int] = []
    posted = [0, 0]

    async def answer(value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    def stops() -> None:
        while not over.is_set():
            loop.call_soon_threadsafe(loop.stop)
            time.sleep(0.0005)

    def posts(who: int) -> None:
        while not over.is_set():
            loop.call_soon_threadsafe(turns.append, who)
            posted[who] += 1
            if posted[who] % 100 == 0:
                time.sleep(0.0005)  # A loop that only ever drains its inbox gets nowhere.

    def awaits() -> None:
        number = 0
        while not over.is_set():
            future = asyncio.run_coroutine_threadsafe(answer(number), loop)
            if number % 7 == 0:
                future.cancel()
            else:
                assert future.result(20 * support.TIME_SCALE) == number + 1
            number += 1

    def some_turns() -> None:
        loop.call_later(0.01, loop.stop)
        loop.run_forever()

    with open_loop(loop_factory) as loop:
        with threads(stops, lambda: posts(0), lambda: posts(1), awaits, awaits) as workers:
            runs = 0
            while time.monotonic() < until:
                loop.run_forever()
                runs += 1
            over.set()
            # Whoever waits for a result needs the loop until then.
            while any(thread.is_alive() for thread in workers):
                some_turns()
        some_turns()
    assert runs > 10
    assert [turns.count(who) for who in (0, 1)] == posted


# --------------------------------------------------------------------------- the wrong thread


Calls = dict[str, Callable[[], Any]]


def scheduling(loop: Any, sock: socket.socket) -> Calls:
    return {
        "call_soon": lambda: loop.call_soon(int).cancel(),
        "call_later": lambda: loop.call_later(100, int).cancel(),
        "call_at": lambda: loop.call_at(loop.time() + 100, int).cancel(),
        "add_reader": lambda: loop.add_reader(sock, int),
        "remove_reader": lambda: loop.remove_reader(sock),
        "add_writer": lambda: loop.add_writer(sock, int),
        "remove_writer": lambda: loop.remove_writer(sock),
        "run_forever": loop.run_forever,
    }


def of_transports(stream: Any, tls: Any, datagrams: Any) -> Calls:
    writing = {"write": [b"from another thread"], "writelines": [[b"from", b"elsewhere"]]}
    flow = {"pause_reading": [], "resume_reading": [], "set_write_buffer_limits": []}
    others = {"set_protocol": [asyncio.Protocol()], "close": [], "abort": []}
    methods: tuple[tuple[str, Any, dict[str, list[Any]]], ...] = (
        ("stream", stream, {**writing, "write_eof": [], **flow, **others}),
        ("tls", tls, {**writing, **flow, **others}),
        ("datagrams", datagrams, {"sendto": [b"x", ("127.0.0.1", 9)], **flow, **others}),
    )
    return {
        f"{kind}.{name}": functools.partial(getattr(transport, name), *arguments)
        for kind, transport, calls in methods
        for name, arguments in calls.items()
    }


def socket_operations(loop: Any, sock: socket.socket, udp: socket.socket) -> dict[str, Any]:
    """Coroutines, none of them begun."""
    memory, address = bytearray(10), udp.getsockname()
    return {
        "sock_recv": loop.sock_recv(sock, 10),
        "sock_recv_into": loop.sock_recv_into(sock, memory),
        "sock_recvfrom": loop.sock_recvfrom(udp, 10),
        "sock_recvfrom_into": loop.sock_recvfrom_into(udp, memory),
        "sock_sendall": loop.sock_sendall(sock, b"from another thread"),
        "sock_sendto": loop.sock_sendto(udp, b"from another thread", address),
        "sock_accept": loop.sock_accept(sock),
    }


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_the_wrong_thread_is_refused_and_does_no_harm(
    loop_name: str, run: Any, certs: support.Certificates, debug: bool
) -> None:
    """Threads that call what is not theirs, all the time: connections go on, unharmed.

    On free-threaded Pythons what is native is refused always, and in debug mode sock_*() is not.
    Elsewhere scheduling, readers and writers are refused, in debug mode; the others would really do
    what they say, and are left out.
    """
    support.needs_cpploop(loop_name, "its transports do not look at the thread")
    if not (support.FREE_THREADED or debug):
        pytest.skip("with a GIL and without debug mode nobody is refused, as on asyncio")
    over = threading.Event()
    refused: dict[str, int] = {}
    allowed: list[str] = []

    def meddle(calls: Calls) -> None:
        while not over.is_set():
            for name, call in calls.items():
                try:
                    call()
                except RuntimeError:
                    refused[name] = refused.get(name, 0) + 1
                else:
                    allowed.append(name)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        first, second = support.unix_pair()
        third, fourth = support.unix_pair()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setblocking(False)
        udp.bind(("127.0.0.1", 0))
        protocol, secret, datagrams = support.Recorder(), support.Recorder(), DatagramRecorder()
        transport, _ = await support.attach(first, protocol)
        tls, far_tls = await tls_pair(loop, secret, certs)
        endpoint, _ = await loop.create_datagram_endpoint(
            lambda: datagrams, local_addr=("127.0.0.1", 0)
        )
        calls = scheduling(loop, third)
        if support.FREE_THREADED:
            calls["stop"] = loop.stop
            calls |= of_transports(transport, tls, endpoint)
        operations = {}
        if support.FREE_THREADED and not debug:
            operations = socket_operations(loop, third, udp)
            calls |= {name: lambda o=one: o.send(None) for name, one in operations.items()}
        with second, third, fourth, udp, threads(*[lambda: meddle(calls)] * 3):
            try:
                until = time.monotonic() + SECONDS
                number = 0
                while time.monotonic() < until or number < 10:
                    sent = b"%08d" % number
                    number += 1
                    await loop.sock_sendall(second, sent)
                    await protocol.until_received(8 * number)
                    assert protocol.received[-8:] == sent
                    transport.write(sent)
                    assert await loop.sock_recv(second, 100) == sent
                    far_tls.write(sent)
                    await secret.until_received(8 * number)
                    assert secret.received[-8:] == sent
                    endpoint.sendto(sent, udp.getsockname())
                    assert await loop.sock_recv(udp, 100) == sent
            finally:
                over.set()
        for operation in operations.values():
            operation.close()
        assert allowed == []
        assert refused.keys() == calls.keys()
        assert protocol.names() == secret.names() == ["connection_made", "data_received"]
        assert datagrams.names() == ["connection_made"]
        for one in (transport, tls, far_tls, endpoint):
            one.abort()
        await support.turns(3)

    run(main, debug=debug)


async def tls_pair(
    loop: Any, protocol: asyncio.Protocol, certs: support.Certificates
) -> tuple[Any, Any]:
    """The transport of PROTOCOL, and the one at the other end."""
    near, far = support.tcp_pair()
    accepting = loop.connect_accepted_socket(asyncio.Protocol, far, ssl=certs.server_context())
    connecting = loop.create_connection(
        lambda: protocol, sock=near, ssl=certs.client_context(), server_hostname="localhost"
    )
    (one, _), (other, _) = await asyncio.gather(connecting, accepting)
    return one, other


def test_loops_made_and_closed_by_many_threads(loop_factory: support.LoopFactory) -> None:
    """Types, free lists and caches of the module are shared by all loops of the process."""
    until = time.monotonic() + SECONDS
    made: list[int] = []

    async def work() -> int:
        loop = asyncio.get_running_loop()
        called = loop.create_future()
        handles = [loop.call_soon(int) for _ in range(50)]
        handles += [loop.call_later(50, int) for _ in range(50)]
        for handle in handles[::2]:
            handle.cancel()
        first, second = support.unix_pair()
        reader, writer = await asyncio.open_connection(sock=first)
        with second:
            writer.write(b"out")
            assert await loop.sock_recv(second, 10) == b"out"
            await loop.sock_sendall(second, b"back")
            assert await reader.readexactly(4) == b"back"
            writer.close()
            await writer.wait_closed()
        loop.call_later(0.0005, called.set_result, 1)
        return int(await called)

    def lives() -> None:
        while time.monotonic() < until:
            with open_loop(loop_factory) as loop:
                made.append(loop.run_until_complete(work()))

    before = support.open_fds()
    with threads(*[lives] * 4):
        pass
    assert len(made) > 4
    assert support.new_fds(before) == {}


def test_a_server_is_closed_by_another_thread(run: Any) -> None:
    """It is closed, whoever asks, and so are its sockets: the loop's thread does the work."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        socket.create_connection(address).close()
        await asyncio.to_thread(server.close)
        assert not server.is_serving()
        await asyncio.wait_for(server.wait_closed(), 10)

        def refused() -> bool:
            try:
                socket.create_connection(address).close()
            except ConnectionRefusedError:
                return True
            return False

        await support.eventually(refused)

    run(main)
