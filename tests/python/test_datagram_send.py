"""sendto(): addresses, errors, the queue behind a full kernel and its watermarks."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
import warnings
from typing import Any

import pytest
import support
from datagrams import (
    DatagramRecorder,
    Echo,
    abstract_name,
    address_of,
    endpoint,
    fill,
    narrow_pair,
    plain_socket,
    receive_all,
    receive_count,
)
from support import Env, eventually, turns


async def until_readable(sock: socket.socket) -> None:
    await eventually(lambda: support.readable(sock))


# --------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(bytearray(8)).cast("I"),
        memoryview(bytearray(b"0123456789"))[2:5],
        type("MyBytes", (bytes,), {})(b"mine"),
        b"",
        bytearray(),
    ],
    ids=lambda data: f"{type(data).__name__}-{bytes(data)!r}",
)
@pytest.mark.parametrize("connected", [True, False], ids=["connected", "addressed"])
def test_what_arrives(data: Any, connected: bool) -> None:
    """An empty datagram is sent where the running asyncio sends one."""

    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            arguments = (
                {"remote_addr": peer.getsockname()}
                if connected
                else {"local_addr": ("127.0.0.1", 0)}
            )
            address = None if connected else peer.getsockname()
            async with endpoint(**arguments) as (transport, _):
                env.log(transport.sendto(data, address))
                transport.sendto(b"end", address)
                await until_readable(peer)
                env.log(receive_all(peer))

    support.compare(scenario)


@pytest.mark.parametrize(
    "data", [None, "text", 5, [b"x"], object()], ids=lambda value: type(value).__name__
)
def test_what_is_no_data(data: Any) -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            with pytest.raises(TypeError) as caught:
                transport.sendto(data, ("127.0.0.1", 9))
            env.log(caught.value)
            env.log(transport.is_closing())

    support.compare(scenario)


@pytest.mark.parametrize("released", [False, True], ids=["gaps", "released"])
def test_views_the_socket_refuses(released: bool) -> None:
    """A fatal error, as with asyncio; before 3.13 a released view fails where it is looked at."""

    async def scenario(env: Env) -> None:
        view = memoryview(bytearray(b"a-b-c-"))[::2]
        if released:
            view.release()
        with plain_socket() as peer:
            async with endpoint(DatagramRecorder(env)) as (transport, _):
                try:
                    transport.sendto(view, peer.getsockname())
                except ValueError as exc:
                    env.log("raised", exc)
                await turns(3)

    support.compare(scenario)


def test_the_data_may_be_changed_after_the_call(run: Any) -> None:
    async def main() -> None:
        async with narrow_pair() as (transport, _, peer):
            count = fill(transport)
            data = bytearray(b"first")
            transport.sendto(data)
            data[:] = b"other"
            data.append(1)  # No export is left.
            datagrams = await receive_count(peer, count + 2)
            assert datagrams[-1] == b"first"

    run(main)


# --------------------------------------------------------------------------- whom to

ODD_ADDRESSES: list[Any] = [
    None,
    (),
    ("127.0.0.1",),
    ("127.0.0.1", 9, 0),
    ["127.0.0.1", 9],
    "127.0.0.1",
    b"127.0.0.1",
    ("127.0.0.1", "9"),
    ("127.0.0.1", 9.0),
    ("127.0.0.1", -1),
    ("127.0.0.1", 65536),
    ("127.0.0.1", 1 << 80),
    (None, 9),
    (b"127.0.0.1", 9),
    (bytearray(b"127.0.0.1"), 9),
    ("127.0.0.1\0", 9),
    ("", 9),
    ("127.1", 9),
    ("0x7f.1", 9),
    ("::1", 9),
    ("localhost", 9),
    ("no-such-name.invalid", 9),
    ("ä" * 100, 9),
    ("<broadcast>", 9),
    ("127.0.0.1", True),
    5,
]


@pytest.mark.parametrize("address", ODD_ADDRESSES, ids=repr)
def test_odd_addresses_meet_the_same_end(address: Any) -> None:
    """Whatever an address may be: the same errors, by the same way, with the same words."""

    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with endpoint(recorder) as (transport, _):
            try:
                env.log(transport.sendto(b"x", address))
            except Exception as exc:
                env.log("raised", exc)
            env.log("closing", transport.is_closing())
            await turns(3)

    support.compare(scenario)


@pytest.mark.skipif(not support.has_ipv6(), reason="this machine has no ::1")
@pytest.mark.parametrize(
    "address",
    [
        ("::1",),
        ("::1", 9, 1 << 20),
        ("::1", 9, -1),
        ("::1", 9, 0, 1 << 32),
        ("::1", 9, 0, 0, 0),
        ("::1", 9, 5.5),
        ("::1", 70000, 0, 0),
        ("::1%lo", 9),
        ("127.0.0.1", 9),
        ("fe80::1", 9),
        ("::1", 9, 0xFFFFF, 0),
        ("::1", 9, 0, 12345),
    ],
    ids=repr,
)
def test_odd_ipv6_addresses_meet_the_same_end(address: Any) -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with endpoint(recorder, local_addr=("::1", 0)) as (transport, _):
            try:
                env.log(transport.sendto(b"x", address))
            except Exception as exc:
                env.log("raised", exc)
            env.log("closing", transport.is_closing())
            await turns(3)

    support.compare(scenario)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "", b"127.0.0.1", "127.1"], ids=repr)
def test_hosts_that_arrive(run: Any, host: Any) -> None:
    """Names are looked up by the socket itself, as asyncio leaves it to do."""

    async def main() -> None:
        with plain_socket() as peer:
            async with endpoint(local_addr=("0.0.0.0", 0)) as (transport, _):
                for _ in range(2):
                    transport.sendto(b"x", (host, peer.getsockname()[1]))
                await until_readable(peer)
                assert receive_all(peer) == [b"x", b"x"]

    run(main)


def test_an_address_tuple_is_not_taken_for_another(run: Any) -> None:
    """Addresses are remembered; tuples die and others get their memory."""

    async def main() -> None:
        peers = [plain_socket() for _ in range(5)]
        async with endpoint() as (transport, _):
            for _ in range(200):
                for peer in peers:
                    host, port = peer.getsockname()
                    transport.sendto(b"%d" % port, (str(host), int(port)))
                await turns(1)
                for peer in peers:
                    await until_readable(peer)
                    assert receive_all(peer) == [b"%d" % peer.getsockname()[1]]
        for peer in peers:
            peer.close()

    run(main)


def test_a_tuple_of_ones_own_class_is_asked_each_time(run: Any) -> None:
    class Address(tuple):  # type: ignore[type-arg]
        pass

    async def main() -> None:
        with plain_socket() as peer:
            async with endpoint() as (transport, _):
                transport.sendto(b"x", Address(peer.getsockname()))
                await until_readable(peer)

    run(main)


def test_broadcast_without_permission_and_with() -> None:
    """uv#592, Home Assistant core#109022: "<broadcast>", and the error without allow_broadcast."""

    async def scenario(env: Env) -> None:
        for allowed in (False, True):
            recorder = DatagramRecorder(env)
            async with endpoint(recorder, local_addr=("127.0.0.1", 0), allow_broadcast=allowed) as (
                transport,
                _,
            ):
                sock = transport.get_extra_info("socket")
                env.log(sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))
                for host in ("<broadcast>", "255.255.255.255", "127.255.255.255"):
                    transport.sendto(b"x", (host, 9))
                env.log("closing", transport.is_closing())

    trace = support.compare(scenario)
    assert ("error_received", "PermissionError([Errno 13] Permission denied)") in trace


def test_a_remote_address_with_allow_broadcast_is_not_connected(run: Any) -> None:
    async def main() -> None:
        with plain_socket() as peer:
            async with endpoint(
                local_addr=("127.0.0.1", 0), remote_addr=peer.getsockname(), allow_broadcast=True
            ) as (transport, _):
                assert transport.get_extra_info("peername") is None
                transport.sendto(b"none given")
                transport.sendto(b"the one", peer.getsockname())
                with pytest.raises(ValueError, match="Invalid address: must be None or "):
                    transport.sendto(b"another", ("127.0.0.1", 9))
                await until_readable(peer)
                assert receive_all(peer) == [b"none given", b"the one"]

    run(main)


def test_addresses_on_a_connected_endpoint() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    class Fails:
        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("no comparison")

        __hash__ = None  # type: ignore[assignment]

    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            name = peer.getsockname()
            async with endpoint(remote_addr=name) as (transport, _):
                for address in (
                    None,
                    name,
                    (*name,),
                    list(name),
                    ("127.0.0.1", 1),
                    Equal(),
                    Fails(),
                ):
                    try:
                        transport.sendto(b"x", address)
                        env.log("sent", type(address).__name__)
                    except (ValueError, ZeroDivisionError) as exc:
                        env.log("raised", exc)
                await until_readable(peer)
                env.log(len(receive_all(peer)))

    support.compare(scenario)


def test_a_connected_socket_takes_any_address(run: Any) -> None:
    """sock= of a connected socket: asyncio looks at no address, and sends to the peer."""

    async def main() -> None:
        with plain_socket() as peer:
            sock = plain_socket()
            sock.connect(peer.getsockname())
            async with endpoint(sock=sock) as (transport, _):
                assert transport.get_extra_info("peername") == peer.getsockname()
                transport.sendto(b"x")
                transport.sendto(b"y", ("192.0.2.1", 9))
                transport.sendto(b"z", "nonsense")
                await until_readable(peer)
                assert receive_all(peer) == [b"x", b"y", b"z"]

    run(main)


def test_arguments_by_name() -> None:
    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            async with endpoint() as (transport, _):
                transport.sendto(addr=peer.getsockname(), data=b"x")
                transport.sendto(b"y", addr=peer.getsockname())
                for call in (
                    lambda: transport.sendto(),
                    lambda: transport.sendto(b"x", peer.getsockname(), 1),
                    lambda: transport.sendto(b"x", address=None),
                ):
                    with pytest.raises(TypeError):
                        call()
                await until_readable(peer)
                env.log(receive_all(peer))

    support.compare(scenario)


AUDIT = """
import asyncio, sys

seen = []

def hook(event, args):
    if event == "socket.sendto" and args[1] != 0:
        seen.append((type(args[0]).__name__, args[1]))
        if args[1][1] == 9:
            raise PermissionError("forbidden by the hook")
        if args[1][1] == 10:
            raise ZeroDivisionError("broken hook")

sys.addaudithook(hook)

class Protocol(asyncio.DatagramProtocol):
    def error_received(self, exc):
        print("error_received", repr(exc))
    def connection_lost(self, exc):
        print("connection_lost", repr(exc))

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: print(context["message"]))
    transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    other, _ = await loop.create_datagram_endpoint(
        Protocol, remote_addr=transport.get_extra_info("sockname"))
    other.sendto(b"no event on a connected socket")
    for address in (("127.0.0.1", 11), ("localhost", 11), ("127.0.0.1", 9), ("127.0.0.1", 10)):
        transport.sendto(b"x", address)
    await asyncio.sleep(0.01)
    other.close()
    await asyncio.sleep(0.01)
    print(seen)

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


def test_audit_events() -> None:
    """socket.sendto is raised as the socket's own method raises it, and may refuse."""
    outputs = [support.run_script(AUDIT, loop=name).stdout for name in support.selected_loops()]
    assert len(set(outputs)) == 1
    assert "('socket', ('127.0.0.1', 11)), ('socket', ('localhost', 11))" in outputs[0]
    assert "forbidden by the hook" in outputs[0]


# --------------------------------------------------------------------------- errors


def test_a_refusal_is_told_and_the_transport_lives(run: Any) -> None:
    """uv#109, uv#601: ECONNREFUSED comes to error_received, and the endpoint goes on."""

    async def main() -> None:
        peer = plain_socket()
        name = peer.getsockname()
        peer.close()
        async with endpoint(remote_addr=name) as (transport, recorder):
            transport.sendto(b"anybody?")
            await recorder.until("error_received")
            assert recorder.calls[-1] == (
                "error_received",
                "ConnectionRefusedError([Errno 111] Connection refused)",
            )
            assert not transport.is_closing()
            with plain_socket(name=name) as late:
                transport.sendto(b"you!")
                await until_readable(late)
                late.sendto(b"yes", address_of(transport))
                await recorder.until("datagram_received")

    run(main)


def test_a_refusal_met_by_the_next_sendto(run: Any) -> None:
    async def main() -> None:
        peer = plain_socket()
        name = peer.getsockname()
        peer.close()
        async with endpoint(remote_addr=name) as (transport, recorder):
            transport.sendto(b"x")
            transport.sendto(b"y")
            # The kernel tells it once, here: within the call.
            assert recorder.names() == ["connection_made", "error_received"]
            await turns(3)
            assert not transport.is_closing()

    run(main)


def test_too_large_a_datagram(run: Any) -> None:
    async def main() -> None:
        with plain_socket() as peer:
            async with endpoint() as (transport, recorder):
                transport.sendto(bytes(65508), peer.getsockname())
                assert recorder.calls[-1][0] == "error_received"
                assert "Message too long" in recorder.calls[-1][1]
                transport.sendto(bytes(65507), peer.getsockname())
                await until_readable(peer)
                assert [len(item) for item in receive_all(peer)] == [65507]

    run(main)


def test_what_error_received_raises_comes_out_of_sendto() -> None:
    async def scenario(env: Env) -> None:
        def fails(_: Any, exc: Exception) -> None:
            raise ZeroDivisionError("in error_received")

        recorder = DatagramRecorder(env, on={"error_received": fails})
        async with endpoint(recorder) as (transport, _):
            with pytest.raises(ZeroDivisionError) as caught:
                transport.sendto(bytes(70000), ("127.0.0.1", 9))
            env.log(caught.value.__context__)
            env.log("closing", transport.is_closing())

    support.compare(scenario)


def test_what_error_received_raises_in_the_loop_is_reported() -> None:
    async def scenario(env: Env) -> None:
        peer = plain_socket()
        name = peer.getsockname()
        peer.close()

        def fails(_: Any, exc: Exception) -> None:
            raise ZeroDivisionError("in error_received")

        recorder = DatagramRecorder(env, on={"error_received": fails})
        async with endpoint(recorder, remote_addr=name) as (transport, _):
            transport.sendto(b"x")
            await recorder.until("error_received")
            await turns(2)
            env.log("closing", transport.is_closing())

    trace = support.compare(scenario)
    assert any(entry[0] == "exception handler" for entry in trace)


@pytest.mark.parametrize("action", ["close", "abort"])
def test_closing_from_error_received(action: str) -> None:
    async def scenario(env: Env) -> None:
        def closes(recorder: Any, exc: Exception) -> None:
            getattr(recorder.transport, action)()
            recorder.transport.sendto(b"after", ("127.0.0.1", 9))

        recorder = DatagramRecorder(env, on={"error_received": closes})
        async with endpoint(recorder) as (transport, _):
            transport.sendto(bytes(70000), ("127.0.0.1", 9))
            await recorder.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_in_error_received_leave_sendto(loop_factory: Any, error: Any) -> None:
    async def main() -> None:
        def fails(_: Any, exc: Exception) -> None:
            raise error("in error_received")

        recorder = DatagramRecorder(on={"error_received": fails})
        async with endpoint(recorder) as (transport, _):
            with pytest.raises(error):
                transport.sendto(bytes(70000), ("127.0.0.1", 9))
            await turns(2)

    support.run(loop_factory, main)


# --------------------------------------------------------------------------- the queue


def test_a_full_kernel_queues_in_order() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, _, peer):
            count = fill(transport)
            sizes = [transport.get_write_buffer_size()]
            for number in range(20):
                transport.sendto(b"%d" % number)
                sizes.append(transport.get_write_buffer_size())
            env.log(sizes)
            env.log("write=<polling" in repr(transport))
            datagrams = await receive_count(peer, count + 21)
            env.log(datagrams[count:])

    support.compare(scenario)


def test_an_empty_queue_counts_nothing(run: Any, loop_name: str) -> None:
    """Also after views of larger items, which asyncio counts in two ways."""
    if not counts_soundly():
        support.needs_cpploop(loop_name, "this release counts headers in and not out")

    async def main() -> None:
        async with narrow_pair() as (transport, _, peer):
            for _ in range(3):
                count = fill(transport)
                transport.sendto(b"12345")
                if loop_name == "cpploop":
                    transport.sendto(memoryview(bytes(8)).cast("Q"))
                    count += 1
                await receive_count(peer, count + 2)
                await eventually(lambda: "write=<idle" in repr(transport))
                assert transport.get_write_buffer_size() == 0

    run(main)


def counts_soundly() -> bool:
    import inspect
    from asyncio import selector_events

    flush = selector_events._SelectorDatagramTransport._sendto_ready
    sends = selector_events._SelectorDatagramTransport.sendto
    counts_in = inspect.getsource(sends).count("len(data) +")
    return inspect.getsource(flush).count("len(data) +") == 2 * counts_in


def test_an_aborted_queue_counts_nothing(run: Any, loop_name: str) -> None:
    if sys.version_info < (3, 15):
        support.needs_cpploop(loop_name, "before 3.15 it forgets the queue and not its size")

    async def main() -> None:
        async with narrow_pair() as (transport, _, _peer):
            fill(transport)
            transport.abort()
            assert transport.get_write_buffer_size() == 0

    run(main)


def test_a_full_kernel_with_addresses() -> None:
    """Without a connection the kernel says writable at once: the loop asks until there is room."""

    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env), connected=False) as (transport, _, peer):
            name = peer.getsockname()
            count = fill(transport, name)
            for number in range(5):
                transport.sendto(b"%d" % number, name)
            transport.sendto(b"never", "\0nobody-is-here")
            transport.sendto(b"last", name)
            env.log(transport.get_write_buffer_size())
            datagrams = await receive_count(peer, count + 7)
            env.log(datagrams[count:])

    support.compare(scenario)


def test_empty_datagrams_in_the_queue() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair() as (transport, _, peer):
            count = fill(transport)
            transport.sendto(b"")
            transport.sendto(b"end")
            env.log(transport.get_write_buffer_size())
            datagrams: list[bytes] = []

            def ended() -> bool:
                datagrams.extend(receive_all(peer))
                return bool(datagrams) and datagrams[-1] == b"end"

            await eventually(ended)
            env.log(datagrams[count:])

    support.compare(scenario)


def test_watermarks() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 400)
            env.log(transport.get_write_buffer_limits())
            count = fill(transport)
            for number in range(12):
                transport.sendto(bytes(200))
                env.log(number, transport.get_write_buffer_size() > 1000)
            await receive_count(peer, count + 13)
            await turns(3)

    trace = support.compare(scenario)
    assert trace.count(("pause_writing",)) == 1


def test_limits_are_judged_at_once() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder) as (transport, _, peer):
            count = fill(transport)
            transport.sendto(bytes(2000))
            transport.set_write_buffer_limits(1000)
            transport.set_write_buffer_limits(1000)
            transport.set_write_buffer_limits()
            await receive_count(peer, count + 2)
            await turns(3)

    trace = support.compare(scenario)
    assert ("pause_writing",) in trace and ("resume_writing",) in trace


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
def test_flow_control_that_raises_is_reported(name: str) -> None:
    async def scenario(env: Env) -> None:
        def fails(_: Any) -> None:
            raise ZeroDivisionError(name)

        recorder = DatagramRecorder(env, on={name: fails})
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 500)
            count = fill(transport)
            transport.sendto(bytes(2000))
            await receive_count(peer, count + 2)
            await turns(3)
            env.log("closing", transport.is_closing())

    trace = support.compare(scenario)
    assert any(f"protocol.{name}() failed" in map(str, entry) for entry in trace)


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
@pytest.mark.parametrize("action", ["abort", "sendto"])
def test_acting_from_flow_control(name: str, action: str) -> None:
    async def scenario(env: Env) -> None:
        def acts(recorder: Any) -> None:
            if action == "sendto":
                recorder.transport.sendto(b"from within")
            else:
                recorder.transport.abort()

        recorder = DatagramRecorder(env, on={name: acts})
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 500)
            count = fill(transport)
            transport.sendto(bytes(2000))
            await turns(2)
            env.log(len(receive_all(peer)) - count)
            await turns(5)
            env.log(receive_all(peer))

    if name == "resume_writing" and action == "abort" and not aborts_soundly():
        pytest.skip("asyncio tells the end twice and fails")
    support.compare(scenario)


def aborts_soundly() -> bool:
    import inspect
    from asyncio import selector_events

    flush = selector_events._SelectorDatagramTransport._sendto_ready
    return "_conn_lost" in inspect.getsource(flush)


def test_closing_from_resume_writing_ends_it_once(run: Any, loop_name: str) -> None:
    if not aborts_soundly():
        support.needs_cpploop(loop_name, "it tells the end twice and fails")

    async def main() -> None:
        recorder = DatagramRecorder(on={"resume_writing": lambda rec: rec.transport.close()})
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 500)
            count = fill(transport)
            transport.sendto(bytes(2000))
            await receive_count(peer, count + 2)
            await recorder.until("connection_lost")
            await turns(3)
            assert recorder.count("connection_lost") == 1

    run(main)


def test_an_error_in_the_queue_costs_one_datagram() -> None:
    """The peer goes away and comes back while datagrams wait."""

    async def scenario(env: Env) -> None:
        name = abstract_name("other")
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder, connected=False) as (transport, _, peer):
            count = fill(transport, peer.getsockname())
            for target in (name, peer.getsockname(), name):
                transport.sendto(b"x", target)
            await receive_count(peer, count + 2)
            await recorder.until("error_received", 2)
            # asyncio notices that its queue is empty a turn later, and is not to be closed before.
            await support.turns(3)
            env.log("closing", transport.is_closing())

    support.compare(scenario)


def test_a_fatal_error_in_the_queue() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder, connected=False) as (transport, _, peer):
            fill(transport, peer.getsockname())
            transport.sendto(b"x", ("127.0.0.1", 9))
            transport.sendto(b"y", peer.getsockname())
            receive_all(peer)
            await recorder.until("connection_lost")
            env.log("closing", transport.is_closing())

    support.compare(scenario)


def test_close_sends_what_is_queued() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder) as (transport, _, peer):
            count = fill(transport)
            transport.sendto(b"before")
            transport.close()
            env.log("closing", transport.is_closing())
            transport.sendto(b"after close, while something is queued")
            transport.close()
            await turns(3)
            env.log("not lost", recorder.names())
            datagrams = await receive_count(peer, count + 3)
            env.log(datagrams[count:])
            await recorder.until("connection_lost")

    support.compare(scenario)


def test_abort_drops_what_is_queued() -> None:
    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder) as (transport, _, peer):
            count = fill(transport)
            transport.sendto(b"never")
            transport.abort()
            transport.abort()
            transport.close()
            await turns(3)
            env.log(len(receive_all(peer)) - count)

    support.compare(scenario)


def test_contexts() -> None:
    """Callbacks run in the contexts asyncio gives them."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    async def scenario(env: Env) -> None:
        def notes(name: str) -> Any:
            def note(*_: Any) -> None:
                env.log("context of", name, var.get())

            return note

        names = ("connection_made", "datagram_received", "error_received", "pause_writing")
        names += ("resume_writing", "connection_lost")
        recorder = DatagramRecorder(on={name: notes(name) for name in names})
        var.set("making")
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 500)
            var.set("filling")
            count = fill(transport)
            var.set("writing")
            transport.sendto(bytes(2000))
            var.set("receiving")
            await receive_count(peer, count + 2)
            await turns(2)
            transport.pause_reading()
            var.set("resuming")
            transport.resume_reading()
            await turns(1)
            var.set("closing")
            transport.close()
            await recorder.until("connection_lost")

    support.compare(scenario)


# --------------------------------------------------------------------------- after the end


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "free"])
@pytest.mark.parametrize("how", ["close", "abort"])
def test_sending_after_the_end(connected: bool, how: str) -> None:
    """Counted and warned of after the fifth where there is one address; else as asyncio."""

    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            arguments = (
                {"remote_addr": peer.getsockname()}
                if connected
                else {"local_addr": ("127.0.0.1", 0)}
            )
            address = None if connected else peer.getsockname()
            async with endpoint(DatagramRecorder(env), **arguments) as (transport, _):
                getattr(transport, how)()
                for _ in range(3):
                    transport.sendto(b"after", address)
                await turns(3)
                env.log(receive_all(peer))
                for _ in range(5):
                    try:
                        transport.sendto(b"gone", address)
                    except AttributeError as exc:
                        env.log("raised", exc)
                env.log(receive_all(peer))

    trace = support.compare(scenario)
    if connected:
        assert ("log", "WARNING", "socket.send() raised exception.") in trace


# --------------------------------------------------------------------------- many


def test_a_hundred_thousand_come_back(run: Any) -> None:
    """Echoed without loss where the kernel's queue holds them."""
    total = 100_000 if support.LONG or not support.SANITIZED else 10_000

    async def main(env: Env) -> None:
        done = env.loop.create_future()

        class Client(asyncio.DatagramProtocol):
            sent = received = 0

            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def send_more(self) -> None:
                while self.sent < min(total, self.received + 50):
                    self.transport.sendto(self.sent.to_bytes(4, "big"))
                    self.sent += 1

            def datagram_received(self, data: bytes, addr: Any) -> None:
                assert data == self.received.to_bytes(4, "big")
                self.received += 1
                if self.received == total:
                    done.set_result(None)
                else:
                    self.send_more()

        async with endpoint(Echo()) as (server, _):
            client: Any = Client()
            async with endpoint(client, remote_addr=address_of(server)):
                client.send_more()
                await done

    run(main, timeout=60)


def test_a_long_queue_keeps_its_order(run: Any) -> None:
    async def main() -> None:
        async with narrow_pair() as (transport, _, peer):
            count = fill(transport)
            for number in range(5000):
                transport.sendto(b"%d" % number)
            datagrams = await receive_count(peer, count + 5001)
            assert datagrams[count + 1 :] == [b"%d" % number for number in range(5000)]

    run(main)


def test_a_closed_loop_still_sends_what_the_kernel_takes(
    loop_factory: support.LoopFactory,
) -> None:
    loop = loop_factory()
    with plain_socket() as peer, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        transport, _ = loop.run_until_complete(
            loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=plain_socket())
        )
        loop.close()
        assert repr(transport).startswith(f"<{type(transport).__name__} fd=")
        assert "read=" not in repr(transport)
        transport.sendto(b"x", peer.getsockname())
        assert receive_all(peer) == [b"x"]
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            transport.close()
        del transport
        gc.collect()
