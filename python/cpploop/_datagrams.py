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
    """A loop and a protocol whose every method does nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def datagram_rules() -> tuple[int, bool]:
    """What the running asyncio does with datagrams that its releases do differently.

    What a queued datagram counts beside its bytes, and whether an empty one is sent. Asked of
    asyncio's transport itself, because patch releases differ.
    """
    transport: Any = object.__new__(
        selector_events._SelectorDatagramTransport  # type: ignore[attr-defined]
    )
    transport._loop = transport._protocol = _Anything()
    transport._sock = None  # Or its __del__() would want to close it.
    transport._extra = {"peername": "somebody"}
    transport._address = None
    transport._high_water = 1 << 30
    transport._protocol_paused = False
    transport._conn_lost = 0
    # Something is queued already, so what follows is queued as well.
    transport._buffer = deque([(b"", None)])
    transport._buffer_size = 0
    transport.sendto(b"1234")
    header = transport._buffer_size - 4
    transport.sendto(b"")
    return header, len(transport._buffer) == 3
