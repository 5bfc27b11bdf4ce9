"""Faults for both loops: in cpploop's system calls, and in what asyncio calls in their place.

cpploop's are those of a build with CPPLOOP_FAULTS (docs/dev/stress.md). asyncio gets the like from
here: its sockets, its pipes and its selector answer that nothing is there, bring less than there
is, take less than they could, or tell of what is not there. A script that comes out differently on
such an asyncio tells nothing under faults.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import socket
import sys
from asyncio import unix_events
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from select import PIPE_BUF
from typing import Any

from cpploop import _native


@dataclass(frozen=True)
class Rates:
    """Shares of the system calls that meet a fault of each kind."""

    benign: float = 0.0
    pressure: float = 0.0
    # Of these asyncio has none: what a script comes to then is judged by itself.
    hard: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Rates:
        """From "benign=0.1,pressure=0.05"."""
        pairs = (part.partition("=") for part in text.split(",") if part)
        rates = {name: float(value or 0.1) for name, _, value in pairs}
        if unknown := rates.keys() - {"benign", "pressure", "hard"}:
            raise ValueError(f"no such kind of fault: {', '.join(sorted(unknown))}")
        return cls(**rates)


def available() -> bool:
    return hasattr(_native, "_set_faults")


def figures() -> dict[str, int]:
    counted: dict[str, int] = _native._fault_figures()  # type: ignore[attr-defined]
    return counted


@contextlib.contextmanager
def of_cpploop(seed: int, rates: Rates) -> Iterator[None]:
    configure = _native._set_faults  # type: ignore[attr-defined]
    configure(seed, rates.benign, rates.pressure, rates.hard)
    try:
        yield
    finally:
        configure(0)


# --------------------------------------------------------------------------- asyncio's


class _Shaker:
    def __init__(self, seed: int, rates: Rates) -> None:
        self.random = random.Random(seed)
        self.rates = rates

    def less(self, size: int, rate: float) -> int:
        """How much of SIZE there is this time; BlockingIOError for nothing."""
        if self.random.random() >= rate:
            return size
        if size < 2 or self.random.random() < 0.4:
            raise BlockingIOError
        return self.random.randrange(1, min(size, self.random.choice((16, size))))

    def receives(self, size: int) -> int:
        return self.less(size, self.rates.benign)

    def sends(self, size: int) -> int:
        return self.less(size, self.rates.pressure)


def _by_asyncio(depth: int = 2) -> bool:
    """Whether the call comes from asyncio; the peers' own sockets are left alone."""
    return str(sys._getframe(depth).f_globals.get("__name__")).startswith("asyncio")


def _socket_methods(shaker: _Shaker) -> dict[str, Callable[..., Any]]:
    base: Any = socket.socket.__base__

    def is_stream(sock: socket.socket) -> bool:
        return sock.type == socket.SOCK_STREAM and _by_asyncio(3)

    def recv(sock: Any, size: int, *flags: int) -> Any:
        return base.recv(sock, shaker.receives(size) if is_stream(sock) else size, *flags)

    def recv_into(sock: Any, buffer: Any, *args: int) -> Any:
        if not is_stream(sock) or args:
            return base.recv_into(sock, buffer, *args)
        view = memoryview(buffer).cast("B")
        return base.recv_into(sock, view, shaker.receives(len(view)) if len(view) else 0)

    def send(sock: Any, data: Any, *flags: int) -> Any:
        if is_stream(sock):
            data = memoryview(data).cast("B")
            data = data[: shaker.sends(len(data))] if len(data) else data
        elif _by_asyncio():
            shaker.sends(1)
        return base.send(sock, data, *flags)

    def sendmsg(sock: Any, buffers: Any, *args: Any) -> Any:
        if is_stream(sock):
            whole = b"".join(buffers)
            buffers = [whole[: shaker.sends(len(whole))]]
        return base.sendmsg(sock, buffers, *args)

    def recvfrom(sock: Any, *args: Any) -> Any:
        if _by_asyncio():
            shaker.receives(1)
        return base.recvfrom(sock, *args)

    def sendto(sock: Any, *args: Any) -> Any:
        if _by_asyncio():
            shaker.sends(1)
        return base.sendto(sock, *args)

    methods = (recv, recv_into, send, sendmsg, recvfrom, sendto)
    return {method.__name__: method for method in methods}


class _Os:
    """The module os, as asyncio's pipes see it."""

    def __init__(self, shaker: _Shaker) -> None:
        self._shaker = shaker

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, self._shaker.receives(size))

    def write(self, fd: int, data: Any) -> int:
        # What a pipe takes whole or not at all is not cut.
        size = self._shaker.sends(len(data)) if data else 0
        return os.write(fd, data if len(data) <= PIPE_BUF else memoryview(data)[:size])


@contextlib.contextmanager
def of_asyncio(seed: int, rates: Rates) -> Iterator[None]:
    shaker = _Shaker(seed, rates)
    select = selectors.EpollSelector.select

    def otherwise(self: Any, timeout: float | None = None) -> Any:
        if shaker.random.random() >= rates.benign:
            return select(self, timeout)
        way = shaker.random.randrange(4)
        if way < 2:
            return []
        found = select(self, timeout)
        if way == 2:
            return found[:1]
        # What has nothing to read: the polls of a ring may say so of it, too.
        told = {key.fd for key, _ in found}
        reading = selectors.EVENT_READ
        keys = [k for k in self.get_map().values() if k.events & reading and k.fd not in told]
        return found + [(key, reading) for key in keys if shaker.random.random() < 0.5]

    methods = _socket_methods(shaker)
    for name, method in methods.items():
        setattr(socket.socket, name, method)
    unix: Any = unix_events
    unix.os = _Os(shaker)
    selectors.EpollSelector.select = otherwise  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        selectors.EpollSelector.select = select  # type: ignore[method-assign]
        unix.os = os
        for name in methods:
            delattr(socket.socket, name)
