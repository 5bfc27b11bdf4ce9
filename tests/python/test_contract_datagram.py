"""The contract of asyncio.DatagramTransport and of the BaseTransport below it, method by method.

Each with what it does, its errors and its no-ops, on both loops. What asyncio's own transport has
beyond the documented class (reading can be paused, the watermarks set) is part of it.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import support
from datagrams import (
    DatagramRecorder,
    address_of,
    endpoint,
    fill,
    narrow_pair,
    plain_socket,
    receive_all,
    receive_count,
)
from support import Env, eventually, turns

METHODS = (
    "abort",
    "close",
    "get_extra_info",
    "get_protocol",
    "get_write_buffer_limits",
    "get_write_buffer_size",
    "is_closing",
    "is_reading",
    "pause_reading",
    "resume_reading",
    "sendto",
    "set_protocol",
    "set_write_buffer_limits",
)


def test_every_public_name_of_asyncios_transport_is_there(run: Any) -> None:
    """Nothing that asyncio's own transport offers is missing, whatever the running Python added."""

    async def main() -> None:
        from asyncio import selector_events

        async with endpoint() as (transport, _):
            own = selector_events._SelectorDatagramTransport
            public = {name for name in dir(own) if not name.startswith("_")} - {"max_size"}
            assert public <= set(dir(transport))
            assert set(METHODS) <= public

    run(main)


def test_signatures() -> None:
    """The parameters are those of asyncio's classes, by place and by name."""
    import inspect

    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            for name in METHODS:
                env.log(name, str(inspect.signature(getattr(transport, name))))

    support.compare(scenario)


# --------------------------------------------------------------------------- BaseTransport


def test_get_extra_info() -> None:
    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            name = peer.getsockname()
            async with endpoint(remote_addr=name) as (transport, _):
                env.log(transport.get_extra_info("peername") == name)
                env.log(transport.get_extra_info("sockname")[0])
                sock = transport.get_extra_info("socket")
                env.log(type(sock), sock.type == socket.SOCK_DGRAM, sock.family == socket.AF_INET)
                env.log(sock is transport.get_extra_info("socket"))
                env.log(sock.getsockname() == transport.get_extra_info("sockname"))
                for unknown in ("cipher", "", None, 5, ("x",)):
                    env.log(transport.get_extra_info(unknown))
                    env.log(transport.get_extra_info(unknown, "default"))
                env.log(transport.get_extra_info("cipher", default=1))
                env.log(transport.get_extra_info(name="sockname")[0])
                for call in (
                    lambda: transport.get_extra_info(),
                    lambda: transport.get_extra_info("a", "b", "c"),
                    lambda: transport.get_extra_info([]),
                ):
                    with pytest.raises(TypeError):
                        call()
                transport.close()
                await turns(2)
                env.log(transport.get_extra_info("peername") == name, sock.fileno())

    support.compare(scenario)


def test_get_extra_info_without_a_peer() -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            env.log(transport.get_extra_info("peername"))
            env.log(transport.get_extra_info("peername", "default"))

    support.compare(scenario)


def test_is_closing_and_close() -> None:
    """close() twice is no error; connection_lost(None) comes once, and not from within."""

    async def scenario(env: Env) -> None:
        async with endpoint(DatagramRecorder(env)) as (transport, _):
            env.log(transport.is_closing())
            env.log(transport.close())
            env.log(transport.is_closing())
            env.log(transport.close())
            env.log("returned")
            await turns(3)
            env.log(transport.is_closing())
            env.log(transport.close())
            await turns(2)

    support.compare(scenario)


def test_close_flushes() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, recorder, peer):
            count = fill(transport)
            transport.sendto(b"last")
            transport.close()
            await turns(3)
            env.log(recorder.names())
            env.log((await receive_count(peer, count + 2))[-1])
            await recorder.until("connection_lost")

    support.compare(scenario)


def test_nothing_is_received_after_close() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, recorder, peer):
            peer.sendto(b"received", address_of(transport))
            await recorder.until("datagram_received")
            count = fill(transport)
            peer.sendto(b"too late", address_of(transport))
            transport.close()
            await turns(3)
            env.log(transport.is_reading())
            await receive_count(peer, count + 1)
            await recorder.until("connection_lost")

    support.compare(scenario)


def test_set_protocol_and_get_protocol() -> None:
    async def scenario(env: Env) -> None:
        first, second = DatagramRecorder(env, "first"), DatagramRecorder(env, "second")
        async with endpoint(first) as (transport, _):
            env.log(transport.get_protocol() is first)
            env.log(transport.set_protocol(second))
            env.log(transport.get_protocol() is second)
            with plain_socket() as peer:
                peer.sendto(b"x", address_of(transport))
                await second.until("datagram_received")
            transport.sendto(bytes(65508), ("127.0.0.1", 9))
            transport.set_protocol(protocol=first)
            for call in (lambda: transport.set_protocol(), lambda: transport.set_protocol(1, 2)):
                with pytest.raises(TypeError):
                    call()
            transport.close()
            transport.set_protocol(second)
            await turns(3)
            env.log(transport.get_protocol())

    trace = support.compare(scenario)
    # To the protocol that is set when it runs.
    assert ("second", "connection_lost", None) in trace


def test_set_protocol_takes_anything() -> None:
    """asyncio does not look at it; what it lacks is missed when it is needed."""

    async def scenario(env: Env) -> None:
        async with endpoint(DatagramRecorder(env)) as (transport, recorder):
            for odd in (5, "text", object()):
                transport.set_protocol(odd)
                env.log(transport.get_protocol() is odd)
            transport.set_protocol(recorder)

    support.compare(scenario)


# --------------------------------------------------------------------------- DatagramTransport


def test_sendto() -> None:
    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            async with endpoint(DatagramRecorder(env)) as (transport, _):
                for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view")):
                    env.log(transport.sendto(data, peer.getsockname()))
                await eventually(lambda: support.readable(peer))
                env.log(receive_all(peer))

    support.compare(scenario)


def test_sendto_without_an_address_on_a_connected_endpoint() -> None:
    """addr is None where the socket is connected; its own address is allowed, another is not."""

    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            name = peer.getsockname()
            async with endpoint(DatagramRecorder(env), remote_addr=name) as (transport, _):
                transport.sendto(b"1")
                transport.sendto(b"2", None)
                transport.sendto(b"3", name)
                with pytest.raises(ValueError) as caught:
                    transport.sendto(b"4", ("127.0.0.1", 1))
                env.log(str(caught.value) == f"Invalid address: must be None or {name}")
                await eventually(lambda: support.readable(peer))
                env.log(receive_all(peer))

    support.compare(scenario)


def test_sendto_without_an_address_on_a_free_endpoint() -> None:
    async def scenario(env: Env) -> None:
        async with endpoint(DatagramRecorder(env)) as (transport, recorder):
            env.log(transport.sendto(b"to whom?"))
            await recorder.until("connection_lost")

    support.compare(scenario)


@pytest.mark.parametrize(
    "data", ["text", 5, None, [], object()], ids=lambda value: type(value).__name__
)
def test_sendto_refuses_what_is_no_data(data: Any) -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            for moment in ("open", "closing", "closed"):
                with pytest.raises(TypeError) as caught:
                    transport.sendto(data)
                env.log(moment, caught.value)
                transport.close()
                await turns(2 if moment == "closing" else 0)

    support.compare(scenario)


def test_sendto_after_close_and_abort() -> None:
    async def scenario(env: Env) -> None:
        for how in ("close", "abort"):
            with plain_socket() as peer:
                async with endpoint(remote_addr=peer.getsockname()) as (transport, _):
                    getattr(transport, how)()
                    for _ in range(7):
                        env.log(transport.sendto(b"nothing"))
                    await turns(2)
                    env.log(transport.sendto(b"nothing"))
                    env.log(receive_all(peer))

    trace = support.compare(scenario)
    assert trace.count(("log", "WARNING", "socket.send() raised exception.")) == 8


def test_abort() -> None:
    """Drops the queue; connection_lost(None) comes once, and not from within; twice is no error."""

    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, _, peer):
            count = fill(transport)
            transport.sendto(b"never")
            env.log(transport.abort())
            env.log(transport.is_closing())
            env.log(transport.abort())
            env.log(transport.close())
            env.log("returned")
            await turns(3)
            env.log(transport.abort())
            env.log(len(receive_all(peer)) - count)

    support.compare(scenario)


def test_abort_after_close_with_a_queue() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, _, _peer):
            fill(transport)
            transport.close()
            transport.abort()
            await turns(3)
            env.log(transport.get_protocol())

    support.compare(scenario)


# --------------------------------------------------------------------------- what asyncio's adds


def test_reading_can_be_paused() -> None:
    async def scenario(env: Env) -> None:
        async with endpoint(DatagramRecorder(env)) as (transport, recorder):
            env.log(transport.is_reading())
            env.log(transport.resume_reading())  # No-op.
            env.log(transport.pause_reading())
            env.log(transport.pause_reading())  # No-op.
            env.log(transport.is_reading())
            with plain_socket() as peer:
                peer.sendto(b"x", address_of(transport))
                await turns(5)
                env.log(recorder.names())
                env.log(transport.resume_reading())
                env.log(transport.is_reading())
                await recorder.until("datagram_received")
            transport.close()
            env.log(transport.is_reading())
            env.log(transport.pause_reading())
            env.log(transport.resume_reading())
            await turns(2)
            env.log(transport.pause_reading(), transport.is_reading())

    support.compare(scenario)


def test_write_buffer_size() -> None:
    async def scenario(env: Env) -> None:
        async with narrow_pair() as (transport, _, _peer):
            env.log(transport.get_write_buffer_size())
            fill(transport)
            env.log(transport.get_write_buffer_size())
            transport.sendto(bytes(1000))
            transport.sendto(b"")
            env.log(transport.get_write_buffer_size())

    support.compare(scenario)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"high": 1000},
        {"low": 1000},
        {"high": 1000, "low": 1000},
        {"high": 0},
        {"high": 0, "low": 0},
        {"high": 10, "low": 11},
        {"high": -1},
        {"high": 5, "low": -5},
        {"high": 100.5},
        {"high": "1"},
        {"high": 1 << 80},
        {"high": True},
        {"limit": 5},
    ],
    ids=repr,
)
def test_write_buffer_limits(limits: dict[str, Any]) -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            env.log(transport.get_write_buffer_limits())
            try:
                env.log(transport.set_write_buffer_limits(**limits))
            except Exception as exc:
                # What parses the call words this one.
                env.log("raised", type(exc) if "limit" in limits else exc)
            env.log(transport.get_write_buffer_limits())

    support.compare(scenario)


def test_limits_by_place() -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            transport.set_write_buffer_limits(100, 50)
            env.log(transport.get_write_buffer_limits())
            with pytest.raises(TypeError):
                transport.set_write_buffer_limits(1, 2, 3)

    support.compare(scenario)


@pytest.mark.parametrize("high", [0, 100])
def test_flow_control(high: int) -> None:
    """pause_writing() above the high mark, once; resume_writing() at or below the low one, once."""

    async def scenario(env: Env) -> None:
        async with narrow_pair(DatagramRecorder(env)) as (transport, recorder, peer):
            transport.set_write_buffer_limits(high, 0)
            count = fill(transport)
            transport.sendto(bytes(200))
            transport.sendto(bytes(200))
            env.log(recorder.count("pause_writing"))
            transport.set_write_buffer_limits(1000, 500)
            await receive_count(peer, count + 3)
            await recorder.until("resume_writing")

    support.compare(scenario)


@pytest.mark.parametrize("method", ["write", "writelines", "write_eof", "can_write_eof"])
def test_stream_methods_are_not_implemented(method: str) -> None:
    async def scenario(env: Env) -> None:
        async with endpoint() as (transport, _):
            arguments = {"write": (b"x",), "writelines": ([b"x"],)}.get(method, ())
            with pytest.raises(NotImplementedError):
                getattr(transport, method)(*arguments)

    support.compare(scenario)


def test_a_transport_is_made_by_its_loop_only(loop_name: str) -> None:
    support.needs_cpploop(loop_name, "its transport is a plain class")
    from cpploop import _native

    for make in (
        lambda: _native.DatagramTransport(),
        lambda: object.__new__(_native.DatagramTransport),
        lambda: asyncio.DatagramTransport.__new__(_native.DatagramTransport),
    ):
        with pytest.raises(TypeError):
            make()


# --------------------------------------------------------------------------- DatagramProtocol


def test_every_callback_of_the_protocol() -> None:
    """Each at its moment, with asyncio's arguments."""

    async def scenario(env: Env) -> None:
        recorder = DatagramRecorder(env)
        async with narrow_pair(recorder) as (transport, _, peer):
            transport.set_write_buffer_limits(1000, 500)
            count = fill(transport)
            transport.sendto(bytes(2000))
            await receive_count(peer, count + 2)
            await recorder.until("resume_writing")
            peer.close()
            transport.sendto(b"refused")
            transport.close()
            await recorder.until("connection_lost")

    names = [entry[0] for entry in support.compare(scenario)]
    assert names[:-1] == [
        "connection_made",
        "pause_writing",
        "resume_writing",
        "error_received",
        "connection_lost",
    ]


def test_the_base_protocol_ignores_everything() -> None:
    """asyncio.DatagramProtocol itself: nothing to implement, nothing reported."""

    async def scenario(env: Env) -> None:
        with plain_socket() as peer:
            async with endpoint(asyncio.DatagramProtocol()) as (transport, _):
                peer.sendto(b"x", address_of(transport))
                transport.sendto(bytes(65508), peer.getsockname())
                await turns(4)
                transport.close()
                await turns(2)

    assert support.compare(scenario) == [("result", None)]
