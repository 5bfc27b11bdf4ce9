"""The public API as a typed program uses it: checked by mypy --strict, never imported by a test.

The types of public names are asserted, so that an Any that creeps in is an error; a line with
``type: ignore`` must be refused, which mypy says itself when it is not.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TypeVarTuple, assert_type

import cpploop
from cpploop import _native

_Ts = TypeVarTuple("_Ts")


async def answer() -> int:
    return 42


# ---- making loops, running programs


def runs() -> None:
    assert_type(cpploop.new_event_loop(), cpploop.Loop)
    assert_type(cpploop.EventLoop(), cpploop.Loop)
    assert_type(cpploop.run(answer()), int)
    assert_type(cpploop.run(answer(), debug=True, loop_factory=TimedLoop), int)
    if sys.version_info >= (3, 12):
        assert_type(asyncio.run(answer(), loop_factory=cpploop.new_event_loop), int)
        assert_type(asyncio.run(answer(), loop_factory=TimedLoop), int)
    with asyncio.Runner(loop_factory=cpploop.new_event_loop) as runner:
        assert_type(runner.run(answer()), int)

    cpploop.run(answer)  # type: ignore[arg-type]
    cpploop.run(answer(), True)  # type: ignore[call-arg]
    cpploop.Loop(None)  # type: ignore[call-arg]


def policies() -> None:
    policy = cpploop.EventLoopPolicy()
    assert_type(policy.new_event_loop(), cpploop.Loop)
    if sys.version_info < (3, 14):
        asyncio.set_event_loop_policy(policy)
    cpploop.install()


def facts() -> None:
    assert_type(cpploop.__version__, str)
    assert_type(cpploop.build_info(), dict[str, object])


# ---- looking into a loop


def looks(loop: cpploop.Loop) -> None:
    metrics = loop.metrics()
    assert_type(metrics, cpploop.LoopMetrics)
    assert_type(metrics.lag(0.99), float)
    assert_type(metrics.transports, dict[str, int])
    with loop.watch_slow_callbacks(0.1, lambda slow: slow.stack) as watchdog:
        assert_type(watchdog, cpploop.Watchdog)
    loop.watch_slow_callbacks(report=print, dump=True).stop()
    with cpploop.trace("trace.json", loop, limit=1000) as trace:
        assert_type(trace, cpploop.Trace)
    with cpploop.expose(loop=loop) as exposure:
        assert_type(exposure, cpploop.Exposure)
    loop.metrics(1)  # type: ignore[call-arg]


# ---- a loop is asyncio's loop


def as_asyncio(loop: cpploop.Loop) -> asyncio.AbstractEventLoop:
    selector_loop: asyncio.SelectorEventLoop = loop
    return selector_loop


def scheduling(loop: cpploop.Loop, context: contextvars.Context) -> None:
    def pair(first: int, second: str) -> None: ...

    assert_type(loop.call_soon(pair, 1, "two"), asyncio.Handle)
    assert_type(loop.call_soon_threadsafe(pair, 1, "two", context=context), asyncio.Handle)
    assert_type(loop.call_later(0.5, pair, 1, "two"), asyncio.TimerHandle)
    assert_type(loop.call_at(loop.time() + 1, pair, 1, "two").when(), float)
    assert_type(loop.create_task(answer(), name="answer"), asyncio.Task[int])
    assert_type(loop.run_until_complete(answer()), int)
    assert_type(loop.time(), float)
    assert_type(loop.get_debug(), bool)
    if sys.version_info >= (3, 13):
        loop.create_task(answer(), eager_start=True)

    loop.call_soon(pair, "one", 2)  # type: ignore[arg-type]
    loop.call_soon(pair, 1)  # type: ignore[arg-type]
    loop.call_later("soon", pair, 1, "two")  # type: ignore[arg-type]
    loop.call_soon(pair, 1, "two", context={})  # type: ignore[arg-type]
    loop.create_task(answer)  # type: ignore[arg-type]


def descriptors(loop: cpploop.Loop, sock: socket.socket) -> None:
    def ready(kind: str) -> None: ...

    loop.add_reader(sock, ready, "readable")
    loop.add_writer(sock.fileno(), ready, "writable")
    assert_type(loop.remove_reader(sock), bool)
    assert_type(loop.remove_writer(sock.fileno()), bool)
    loop.add_signal_handler(2, ready, "interrupted")

    loop.add_reader(sock, ready, 1)  # type: ignore[arg-type]
    loop.add_reader("0", ready, "readable")  # type: ignore[arg-type]
    loop.add_signal_handler(2, ready)  # type: ignore[arg-type]


# ---- loops of one's own


class TimedLoop(cpploop.Loop):
    """Overrides what is native, as pytest plugins and simulators do."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__()
        self.now = start

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self.now = max(self.now, when)
        return super().call_at(when, callback, *args, context=context)

    def close(self) -> None:
        super().close()


class WrongLoop(cpploop.Loop):
    def time(self) -> str:  # type: ignore[override]
        return "late"


# ---- protocols and transports


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.writelines([data, bytearray(data), memoryview(data)])
        assert_type(self.transport.get_write_buffer_limits(), tuple[int, int])


def native(transport: _native.StreamTransport) -> asyncio.Transport:
    assert_type(transport.get_write_buffer_size(), int)
    transport.write("text")  # type: ignore[arg-type]
    return transport


class Handle(_native.Handle):  # type: ignore[misc]
    """Handles are final, as the interpreter says too."""


async def connections(tls: ssl.SSLContext) -> None:
    loop = cpploop.new_event_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls)
    assert_type(server, asyncio.Server)
    transport, protocol = await loop.create_connection(Echo, "127.0.0.1", 80)
    assert_type(protocol, Echo)
    assert_type(transport, asyncio.Transport)
    transport.set_write_buffer_limits(high=1 << 16, low=1 << 14)
    transport.write("text")  # type: ignore[arg-type]
    addresses = await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    assert_type(addresses[0][3], str)
    assert_type(await loop.getnameinfo(("127.0.0.1", 80)), tuple[str, str])
