"""The connected stream transport: life cycle, order of callbacks, ownership, attributes."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import types
import weakref
from typing import Any

import pytest
import support
from support import BufferedRecorder, Env, Recorder, attach, eventually, recv_exactly, turns

kinds = pytest.mark.parametrize("kind", ["tcp", "unix"])


@kinds
def test_echo_trace(kind: str) -> None:
    """made, data, eof, lost in this order, and each exactly once."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env, on={"data_received": lambda rec, data: rec.transport.write(data)})
        async with support.transport_pair(rec, kind) as (_transport, peer):
            peer.send(b"ping")
            assert await recv_exactly(peer, 4) == b"ping"
            peer.shutdown(socket.SHUT_WR)
            await rec.until("connection_lost")
            assert await recv_exactly(peer, 1) == b""

    trace = support.compare(scenario)
    assert [entry[0] for entry in trace] == [
        "connection_made",
        "data_received",
        "eof_received",
        "connection_lost",
        "result",
    ]


def test_connection_made_comes_before_data_that_is_already_there(run: Any) -> None:
    async def main() -> None:
        sock, peer = support.tcp_pair()
        peer.send(b"early")
        assert support.readable(sock, 5)
        rec = Recorder()
        transport, protocol = await attach(sock, rec)
        assert protocol is rec and rec.transport is transport
        await rec.until_received(5)
        assert rec.calls == [("connection_made", "<transport>"), ("data_received", b"early")]
        transport.close()
        peer.close()
        await rec.until("connection_lost")

    run(main)


def test_connection_made_has_run_when_create_connection_returns(run: Any) -> None:
    async def main() -> None:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        task = asyncio.ensure_future(attach(sock, rec))
        await asyncio.sleep(0)
        # The waiter is woken by the loop after connection_made, never from inside it.
        assert not task.done()
        transport, _ = await task
        assert rec.names() == ["connection_made"]
        transport.abort()
        peer.close()
        await rec.until("connection_lost")

    run(main)


def test_order_of_turns_until_connected() -> None:
    """connection_made and the waiter fall into the same turns as on asyncio."""

    async def scenario(env: Env) -> None:
        sock, peer = support.tcp_pair()
        rec = Recorder(env)

        async def connect() -> None:
            await attach(sock, rec)
            env.log("connected")

        task = asyncio.ensure_future(connect())
        for turn in range(6):
            env.log("turn", turn)
            await asyncio.sleep(0)
        await task
        rec.transport.close()
        for turn in range(3):
            env.log("closing turn", turn)
            await asyncio.sleep(0)
        peer.close()

    support.compare(scenario)


@kinds
def test_types_attributes_and_weakrefs(run: Any, kind: str) -> None:
    """A transport is a real asyncio.Transport that takes attributes and weak references."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec, kind) as (transport, _peer):
            assert isinstance(transport, asyncio.Transport)
            assert isinstance(transport, asyncio.ReadTransport)
            assert isinstance(transport, asyncio.WriteTransport)
            transport.custom = 3
            assert transport.custom == 3 and transport.__dict__["custom"] == 3
            assert weakref.ref(transport)() is transport
            assert hash(transport) == hash(transport) and transport == transport
            assert transport.get_protocol() is rec
            assert transport.can_write_eof() is True
            assert transport.is_reading() is True
            assert transport.is_closing() is False
            assert transport.get_write_buffer_size() == 0
            assert transport.get_write_buffer_limits() == (16384, 65536)
            assert f"fd={transport.get_extra_info('socket').fileno()}" in repr(transport)
        assert transport.is_closing() is True
        assert transport.is_reading() is False
        assert "closed" in repr(transport)

    run(main)


def test_repr_states() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder()

        def show(step: str, transport: Any) -> None:
            words = repr(transport).strip("<>").split()[1:]
            env.log(step, " ".join(words))

        async with support.transport_pair(rec) as (transport, _peer):
            show("open", transport)
            transport.pause_reading()
            show("paused", transport)
            transport.resume_reading()
            await support.fill(transport)
            env.log("polls for writing", "write=<polling" in repr(transport))
            transport.close()
            env.log("closing", "closing" in repr(transport))
        show("closed", transport)

    support.compare(scenario)


def test_no_reference_needed(run: Any) -> None:
    """The loop holds an open transport: a protocol that stores nothing keeps its connection."""

    class Forgetful(asyncio.Protocol):
        alive = 0

        def connection_made(self, transport: Any) -> None:
            Forgetful.alive += 1
            transport.write(b"hello")

        def data_received(self, data: bytes) -> None:
            Forgetful.alive += 10

        def connection_lost(self, exc: Any) -> None:
            Forgetful.alive += 100

    async def main() -> None:
        sock, peer = support.tcp_pair()
        await attach(sock, Forgetful())
        del sock
        for _ in range(3):
            gc.collect()
            await asyncio.sleep(0)
        assert await recv_exactly(peer, 5) == b"hello"
        peer.send(b"x")
        await eventually(lambda: Forgetful.alive == 11)
        gc.collect()
        peer.close()
        await eventually(lambda: Forgetful.alive == 111)

    run(main)


def test_paused_transport_without_references(run: Any) -> None:
    """A paused transport is in no poll set: asyncio forgets it, a caller's reference keeps it."""

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, peer):
            transport.pause_reading()
            ref = weakref.ref(transport)
            gc.collect()
            assert ref() is transport
            peer.send(b"later")
            await turns(3)
            assert rec.names() == ["connection_made"]
            transport.resume_reading()
            await rec.until_received(5)

    run(main)


def test_objects_are_freed_after_connection_lost(run: Any) -> None:
    """Neither transport nor protocol outlives the connection (no cycle through the loop)."""

    async def main() -> None:
        rec = Recorder()
        sock, peer = support.tcp_pair()
        transport = (await attach(sock, rec))[0]
        refs = [weakref.ref(transport), weakref.ref(rec)]
        peer.close()
        await rec.until("connection_lost")
        await turns(2)
        del transport, rec, sock
        gc.collect()
        assert [ref() for ref in refs] == [None, None]

    run(main)


def test_transport_keeps_protocol_until_lost_and_then_drops_it() -> None:
    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec) as (transport, _peer):
            transport.close()
            env.log("protocol before", transport.get_protocol() is rec)
        env.log("protocol after", transport.get_protocol())

    support.compare(scenario)


@kinds
def test_calls_on_a_closed_transport(kind: str) -> None:
    """Every method of a transport whose connection is lost behaves as on asyncio."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env)
        async with support.transport_pair(rec, kind) as (transport, _peer):
            transport.abort()
            await rec.until("connection_lost")
            await turns(2)

        def attempt(name: str, *args: Any) -> None:
            try:
                env.log(name, getattr(transport, name)(*args))
            except Exception as exc:
                env.log(name, "raised", type(exc))

        attempt("close")
        attempt("abort")
        attempt("write", b"x")
        attempt("write", b"")
        if support.asyncio_writelines_has("_conn_lost"):
            attempt("writelines", [b"x", b"y"])
        attempt("writelines", [])
        attempt("write_eof")
        attempt("can_write_eof")
        attempt("is_closing")
        attempt("is_reading")
        attempt("pause_reading")
        attempt("resume_reading")
        attempt("get_write_buffer_size")
        attempt("get_write_buffer_limits")
        attempt("set_write_buffer_limits", 10, 1)
        attempt("get_write_buffer_limits")
        attempt("get_protocol")
        attempt("get_extra_info", "nothing", "default")
        attempt("get_extra_info", "socket")
        attempt("set_protocol", Recorder())
        await turns(2)

    support.compare(scenario)


def test_the_socket_handed_in_is_closed_by_the_transport(run: Any) -> None:
    async def main() -> None:
        sock, peer = support.tcp_pair()
        rec = Recorder()
        transport, _ = await attach(sock, rec)
        transport.close()
        await rec.until("connection_lost")
        await turns(1)
        assert sock.fileno() == -1
        assert await recv_exactly(peer, 1) == b""
        peer.close()

    run(main)


def test_many_connections_do_not_mix(run: Any) -> None:
    """Each connection gets its own bytes, while connections come and go."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def echo(rec: Recorder, data: bytes) -> None:
            rec.transport.write(data)

        server = await loop.create_server(
            lambda: Recorder(on={"data_received": echo}), "127.0.0.1", 0
        )
        address = server.sockets[0].getsockname()

        async def client(number: int) -> None:
            for round_ in range(4):
                tag = f"{number}:{round_};".encode()
                rec = Recorder()
                transport, _ = await loop.create_connection(lambda rec=rec: rec, *address)
                for _ in range(5):
                    transport.write(tag * 20)
                    await asyncio.sleep(0)
                await rec.until_received(len(tag) * 100)
                assert bytes(rec.received) == tag * 100
                (transport.close if number % 2 else transport.abort)()
                await rec.until("connection_lost")

        await asyncio.gather(*(client(number) for number in range(20)))
        server.close()
        await server.wait_closed()
        await turns(3)

    run(main)


@pytest.mark.parametrize("first", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("second", [Recorder, BufferedRecorder])
def test_set_protocol_to_either_kind(first: Any, second: Any) -> None:
    """set_protocol takes effect for the next event, whatever the kinds (aiosmtpd#34)."""

    async def scenario(env: Env) -> None:
        one, two = first(env, "one"), second(env, "two")
        async with support.transport_pair(one) as (transport, peer):
            peer.send(b"to one")
            await one.until_received(6)
            transport.set_protocol(two)
            env.log("protocol", transport.get_protocol() is two)
            peer.send(b"to two")
            await two.until_received(6)
            peer.close()
            await two.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize("first", [Recorder, BufferedRecorder])
@pytest.mark.parametrize("second", [Recorder, BufferedRecorder])
def test_set_protocol_inside_data_received(first: Any, second: Any) -> None:
    async def scenario(env: Env) -> None:
        two = second(env, "two")

        def switch(rec: Any, data: bytes) -> None:
            rec.transport.set_protocol(two)

        one = first(env, "one", on={"data_received": switch})
        async with support.transport_pair(one) as (_transport, peer):
            peer.send(b"to one")
            await one.until_received(6)
            peer.send(b"to two")
            await two.until_received(6)
            peer.shutdown(socket.SHUT_WR)
            await two.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize("callback", ["connection_made", "eof_received", "pause_writing"])
def test_set_protocol_inside_other_callbacks(callback: str) -> None:
    async def scenario(env: Env) -> None:
        two = Recorder(env, "two", on={"eof_received": lambda rec: True})

        def switch(rec: Any, *args: Any) -> Any:
            rec.transport.set_protocol(two)
            return True

        one = Recorder(env, "one", on={callback: switch})
        async with support.transport_pair(one) as (transport, peer):
            if callback == "pause_writing":
                size = await support.fill(transport)
                # The buffer holds at most one chunk more than the limit by now.
                transport.write(bytes(65537))
                await recv_exactly(peer, size + 65537)
            peer.send(b"data")
            if callback != "eof_received":
                await two.until_received(4)
            peer.shutdown(socket.SHUT_WR)
            await (one if callback == "eof_received" else two).until("eof_received")

    support.compare(scenario)


def test_protocol_methods_replaced_on_the_instance() -> None:
    """What asyncio sees of an instance patched after connection_made (bound once per protocol)."""

    async def scenario(env: Env) -> None:
        rec = Recorder(env, "original")
        other = Recorder(env, "patched")
        rec.data_received = other.data_received  # type: ignore[method-assign]
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"data")
            await other.until_received(4)

    support.compare(scenario)


def test_duck_typed_protocol(run: Any) -> None:
    """A protocol needs the methods, not the base class."""

    class Duck:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def connection_made(self, transport: Any) -> None:
            self.seen.append("made")

        def data_received(self, data: bytes) -> None:
            self.seen.append(data.decode())

        def eof_received(self) -> None:
            self.seen.append("eof")

        def connection_lost(self, exc: Any) -> None:
            self.seen.append("lost")

    async def main() -> None:
        sock, peer = support.tcp_pair()
        duck = Duck()
        await attach(sock, duck)  # type: ignore[arg-type]
        peer.send(b"data")
        await eventually(lambda: "data" in duck.seen)
        peer.close()
        await eventually(lambda: "lost" in duck.seen)
        assert duck.seen == ["made", "data", "eof", "lost"]

    run(main)


def test_callbacks_run_in_the_loop_thread_with_a_running_loop(run: Any) -> None:
    async def main(env: Env) -> None:
        seen = []

        def check(rec: Recorder, *args: Any) -> None:
            seen.append((threading.get_ident(), asyncio.get_running_loop()))

        names = ("connection_made", "data_received", "eof_received", "connection_lost")
        rec = Recorder(on=dict.fromkeys(names, check))
        async with support.transport_pair(rec) as (_transport, peer):
            peer.send(b"x")
            await rec.until_received(1)
            peer.close()
            await rec.until("connection_lost")
        assert seen == [(threading.get_ident(), env.loop)] * 4

    run(main)


def test_second_transport_on_a_used_descriptor() -> None:
    """A descriptor owned by an open transport is refused to add_reader and to a second one."""

    async def scenario(env: Env) -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, _peer):
            fd = transport.get_extra_info("socket").fileno()
            for name, args in (
                ("add_reader", (fd, print)),
                ("remove_reader", (fd,)),
                ("add_writer", (fd, print)),
                ("remove_writer", (fd,)),
            ):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    getattr(env.loop, name)(*args)
            env.log("still open", transport.is_closing())

    support.compare(scenario)


def test_native_types_are_not_built_half_made(loop_name: str, run: Any) -> None:
    """C6: a transport type called from Python with nonsense raises and never crashes."""
    support.needs_cpploop(loop_name, "its transport is a Python class")

    async def main() -> None:
        rec = Recorder()
        async with support.transport_pair(rec) as (transport, _peer):
            cls = type(transport)
            for args in ((), (None,), (1, 2), (None, None, None), (object(),) * 5):
                with pytest.raises((TypeError, ValueError)):
                    cls(*args)
            with pytest.raises((TypeError, ValueError)):
                cls(loop=None)
            # Half-made by __new__ of the class or of a base: every use must raise, not crash.
            for make in (lambda: cls.__new__(cls), lambda: asyncio.Transport.__new__(cls)):
                try:
                    half = make()
                except TypeError:
                    continue
                for name in ("write", "close", "abort", "is_closing", "get_write_buffer_size"):
                    try:
                        getattr(half, name)(*((b"x",) if name == "write" else ()))
                    except (RuntimeError, TypeError, AttributeError, ValueError):
                        pass
                repr(half)

    run(main)


@pytest.mark.skipif(support.FREE_THREADED, reason="other threads are refused there")
def test_another_thread_is_heard_while_the_loop_waits(run: Any) -> None:
    """asyncio promises nothing, and hears at once what its transports are asked for."""
    size = 4 << 20

    async def main(env: Env) -> None:
        rec = Recorder()
        sock, other = support.tcp_pair()
        other.settimeout(5 * support.TIME_SCALE)
        transport, _ = await env.loop.create_connection(lambda: rec, sock=sock)
        received: list[int] = []

        def write_and_receive() -> None:
            time.sleep(0.05)  # The loop waits by now, for nothing but its timer.
            transport.write(bytes(size))
            got = 0
            while got < size:
                got += len(other.recv(1 << 20))
            received.append(got)

        transport.pause_reading()
        thread = threading.Thread(target=write_and_receive)
        thread.start()
        deadline = time.monotonic() + 5 * support.TIME_SCALE
        # Blocked in one wait, which nothing ends but what the thread has asked for.
        await asyncio.sleep(2 * support.TIME_SCALE)
        assert received == [size] and time.monotonic() < deadline
        thread.join()

        def resume() -> None:
            time.sleep(0.05)
            transport.resume_reading()

        other.sendall(b"x")
        thread = threading.Thread(target=resume)
        thread.start()
        await asyncio.wait_for(rec.until_received(1), 2 * support.TIME_SCALE)
        thread.join()
        other.close()
        await rec.until("connection_lost")

    run(main, check_warnings=False)


@pytest.mark.parametrize("extra", [[1, 2], 5, types.MappingProxyType({"x": 1}), {"x": 1}])
def test_extra_information_that_is_no_dict(run: Any, loop_name: str, extra: Any) -> None:
    async def main(env: Env) -> None:
        sock, other = support.tcp_pair()
        sock.setblocking(False)
        make: Any = env.loop._make_socket_transport  # type: ignore[attr-defined]
        if isinstance(extra, dict) or (
            loop_name == "cpploop" and isinstance(extra, types.MappingProxyType)
        ):
            # A dict becomes the transport's own.
            given = dict(extra) if isinstance(extra, dict) else extra
            transport = make(sock, Recorder(), None, extra=given)
            assert transport.get_extra_info("x") == 1
            assert transport.get_extra_info("socket").fileno() == sock.fileno()
            assert "sockname" in transport._extra
            transport.abort()
        else:
            with pytest.raises(TypeError):
                make(sock, Recorder(), None, extra=extra)
            sock.close()
        await asyncio.sleep(0.01)
        other.close()

    run(main, check_warnings=False)


def test_extra_information_exchanged_past_the_attribute(run: Any, loop_name: str) -> None:
    """The base class's slot takes anything; asking is an error then, and no crash."""
    support.needs_cpploop(loop_name, "asyncio raises whatever the object does")

    async def main(env: Env) -> None:
        sock, other = support.tcp_pair()
        transport, _ = await env.loop.create_connection(Recorder, sock=sock)
        slot: Any = asyncio.BaseTransport._extra  # type: ignore[attr-defined]
        slot.__set__(transport, [1])
        for ask in (lambda: transport.get_extra_info("x"), lambda: transport._extra):
            with pytest.raises(TypeError, match="no dict any more"):
                ask()
        transport.abort()
        await asyncio.sleep(0.01)
        other.close()

    run(main, check_warnings=False)


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="not of this system")
def test_names_of_another_family() -> None:
    """Addresses that the socket module alone can write."""
    try:
        trial = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as exc:
        pytest.skip(f"no AF_VSOCK here: {exc}")
    with trial:
        trial.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        port = trial.getsockname()[1]

    async def scenario(env: Env) -> None:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.bind((socket.VMADDR_CID_ANY, port))
        transport, _ = await env.loop.connect_accepted_socket(asyncio.Protocol, sock)
        for name in ("sockname", "peername", "nothing"):
            env.log(name, transport.get_extra_info(name))
        transport.abort()
        await turns(2)
        env.log(transport.get_extra_info("sockname"))

    support.compare(scenario)
