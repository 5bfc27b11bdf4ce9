"""What the loop asks about datagram sockets before it takes one over."""

from __future__ import annotations

import socket
from asyncio import selector_events
from collections import deque
from typing import Any

_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6, socket.AF_UNIX})
_SOCKET = socket.socket
_METHODS = frozenset({"recvfrom", "send", "sendto"})


def takes_natively(sock: socket.socket) -> bool:
    """Whether the engine may read and write SOCK itself.

    Not when that would pass over somebody's own methods, and not for families whose addresses only
    the socket module knows: those keep asyncio's own transport.
    """
    return (
        type(sock) is _SOCKET
        and sock.type == socket.SOCK_DGRAM
        and sock.family in _FAMILIES
        and _METHODS.isdisjoint(vars(_SOCKET))
    )


class _Anything:
    """A loop and a socket whose every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def datagram_rules() -> tuple[int, int, bool, bool]:
    """What the running asyncio does with datagrams that its releases do differently.

    What a queued datagram counts beside its bytes when it comes and when it goes (releases of 3.13
    forget to take off what they added), whether abort() forgets that size, and whether an empty
    datagram is sent. Asked of asyncio's transport itself, because patch releases differ.
    """
    transport: Any = object.__new__(
        selector_events._SelectorDatagramTransport  # type: ignore[attr-defined]
    )
    transport._loop = transport._protocol = _Anything()
    transport._sock = None  # Or its __del__() would want to close it.
    transport._sock_fd = -1
    transport._extra = {"peername": "somebody"}
    transport._address = transport._context = None
    transport._high_water = transport._low_water = 1 << 30
    transport._protocol_paused = transport._closing = False
    transport._conn_lost = 0

    transport._buffer = deque([(b"", None)])
    transport._buffer_size = 0
    transport.sendto(b"1234")
    header_in = transport._buffer_size - 4
    transport.sendto(b"")
    sends_empty = len(transport._buffer) == 3

    transport._buffer = deque([(b"", None)])
    transport._buffer_size = 0
    transport._sock = _Anything()
    transport._sendto_ready()
    transport._sock = None
    header_out = -transport._buffer_size

    transport._buffer = deque([(b"", None)])
    transport._buffer_size = 1
    transport._force_close(None)
    return header_in, header_out, transport._buffer_size == 0, sends_empty
