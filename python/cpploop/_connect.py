"""Connections to addresses written out: the short way to where asyncio's create_connection() goes.

For a host that is an address, and nothing else asked for, asyncio's coroutine finds out that there
is nothing to resolve, in three coroutines more, twice. What it does then is done here in the same
order, by the same methods of the loop; everything else is its own to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import socket
import sys
from asyncio import base_events, coroutines
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._loop import Loop

_Connected = tuple[asyncio.Transport, asyncio.BaseProtocol]


async def _connect_to(loop: Loop, protocol_factory: Any, address: tuple[Any, ...]) -> _Connected:
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    sock = None
    try:
        sock = socket.socket(family=family, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
    except BaseException:
        if sock is not None:
            # Why it is not connected is what the caller is to learn.
            with contextlib.suppress(OSError):
                sock.close()
        raise
    create: Any = loop._create_connection_transport
    transport, protocol = await create(
        sock, protocol_factory, None, None, ssl_handshake_timeout=None, ssl_shutdown_timeout=None
    )
    return transport, protocol


_connect_to.__name__ = "create_connection"
_connect_to.__qualname__ = "BaseEventLoop.create_connection"


class ConnectingLoop(asyncio.SelectorEventLoop):
    """The part of the loop that makes connections."""

    # For type checkers it is asyncio's, whose types say more.
    if not TYPE_CHECKING:

        @functools.wraps(base_events.BaseEventLoop.create_connection)
        def create_connection(self, *args, **options):
            create = super().create_connection
            if len(args) == 3 and not options and _is_asyncios_own(create):
                protocol_factory, host, port = args
                address = self._literal_destination(host, port)
                if address is not None:
                    return _connect_to(self, protocol_factory, address)
            return create(*args, **options)

        # It is one to those who ask, as asyncio's is; on 3.11 only asyncio can be told.
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(create_connection)
        else:
            create_connection._is_coroutine = coroutines._is_coroutine


def _is_asyncios_own(method: Any) -> bool:
    """Whether it is asyncio's code, and nobody's in its place, now or before this was imported."""
    return getattr(method, "__globals__", None) is vars(base_events)
