"""Name look-ups: libc's answers, from threads of the loop's own.

Look-ups have their own few threads, so that a default executor full of other work does not look
like a name server that is down. What needs no name server (an address written out, with a port
number) is asked of libc at once, which answers without waiting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from socket import _GetAddrInfoResult

_THREADS = 8
_ADDRESS_LETTERS = frozenset("0123456789abcdefABCDEF.:xX%")
_getaddrinfo = socket.getaddrinfo
# What libc made of addresses written out: it takes its time, and says the same each time.
_known_addresses: dict[tuple[Any, ...], _GetAddrInfoResult] = {}
_KNOWN_MAX = 256


def _may_be_address(host: object) -> bool:
    """Whether libc has a chance to read this as an address; it has the last word."""
    if not isinstance(host, str) or not host:
        return False
    if ":" in host:
        return True
    return host[0] in "0123456789" and _ADDRESS_LETTERS.issuperset(host)


def _is_number(port: object) -> bool:
    return type(port) is int


def _written_out(
    host: object, port: object, family: int, type: int, proto: int, flags: int
) -> _GetAddrInfoResult | None:
    """What libc makes of an address written out with a port number; None for anything else."""
    # Neither flags nor scopes, whose meaning changes with the interfaces.
    lasting = flags == 0 and isinstance(host, str) and _is_number(port)
    key = (host, port, family, type, proto)
    if lasting and (known := _known_addresses.get(key)):
        sys.audit("socket.getaddrinfo", host, port, family, type, proto)
        return known.copy()
    if not (port is None or _is_number(port)) or not _may_be_address(host):
        return None
    numeric = flags | socket.AI_NUMERICHOST
    try:
        found = _getaddrinfo(host, port, family, type, proto, numeric)  # type: ignore[arg-type]
    except (OSError, ValueError):
        # Not an address after all, or an error that the look-up in a thread tells in full.
        return None
    if lasting and "%" not in str(host):
        _remember(key, found)
    return found


def _remember(key: tuple[Any, ...], found: _GetAddrInfoResult) -> None:
    if len(_known_addresses) >= _KNOWN_MAX:
        _known_addresses.clear()
    _known_addresses[key] = found.copy()


class ResolvingLoop(asyncio.SelectorEventLoop):
    """The part of the loop that resolves names."""

    if TYPE_CHECKING:
        # asyncio's own, which typeshed leaves out: what this class uses, then what Loop does.
        _debug: bool
        _getaddrinfo_debug: Callable[..., _GetAddrInfoResult]

        def _check_closed(self) -> None: ...
        def _check_default_executor(self) -> None: ...

        _accept_connection2: Callable[..., Coroutine[Any, Any, None]]
        _default_executor: concurrent.futures.Executor | None
        _executor_shutdown_called: bool
        _internal_fds: int
        _selector: Any
        _signal_handlers: dict[int, asyncio.Handle]

        def _asyncgen_finalizer_hook(self, agen: Any) -> None: ...
        def _asyncgen_firstiter_hook(self, agen: Any) -> None: ...
        def _check_running(self) -> None: ...
        def _make_self_pipe(self) -> None: ...
        def _set_coroutine_origin_tracking(self, enabled: bool) -> None: ...
        def _stop_serving(self, sock: socket.socket) -> None: ...

    def __init__(self, selector: Any = None) -> None:
        super().__init__(selector)
        self._resolver: concurrent.futures.ThreadPoolExecutor | None = None
        self._user_executor = False

    def set_default_executor(self, executor: concurrent.futures.ThreadPoolExecutor) -> None:  # type: ignore[override]
        """Use this executor where None is given, for name look-ups too (asyncio's method)."""
        super().set_default_executor(executor)
        self._user_executor = True

    def _resolver_executor(self) -> concurrent.futures.Executor | None:
        if self._user_executor:
            return None
        self._check_default_executor()
        if self._resolver is None:
            self._resolver = concurrent.futures.ThreadPoolExecutor(
                max_workers=_THREADS, thread_name_prefix="cpploop-resolver"
            )
        return self._resolver

    def _stop_resolver(self, *, wait: bool) -> None:
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            resolver.shutdown(wait=wait)

    if sys.version_info >= (3, 12):

        async def shutdown_default_executor(self, timeout: float | None = None) -> None:
            """Wait for the threads of the executor and of name look-ups (asyncio's method).

            timeout: seconds for each of the two, None for no limit. A RuntimeWarning says that it
            is over.
            """
            shut_down = super().shutdown_default_executor
            await self._shut_down_both(lambda: shut_down(timeout))

    else:

        async def shutdown_default_executor(self) -> None:
            """Wait for the threads of the executor and of name look-ups (asyncio's method)."""
            await self._shut_down_both(super().shutdown_default_executor)

    async def _shut_down_both(self, shut_down: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """asyncio's way of ending the default executor, and then the look-ups' in its place."""
        await shut_down()
        resolver, self._resolver = self._resolver, None
        if resolver is not None:
            own, self._default_executor = self._default_executor, resolver
            try:
                await shut_down()
            finally:
                self._default_executor = own

    async def getaddrinfo(
        self,
        host: str | bytes | None,
        port: str | bytes | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> _GetAddrInfoResult:
        """socket.getaddrinfo() without blocking the loop (asyncio's loop.getaddrinfo).

        Raises socket.gaierror as that does. The function is looked up at each call, so a program
        that exchanges socket.getaddrinfo is heard.
        """
        self._check_closed()
        if self._executor_shutdown_called:
            self._check_default_executor()
        look_up: Callable[..., _GetAddrInfoResult] = socket.getaddrinfo
        if look_up is _getaddrinfo:
            written_out = _written_out(host, port, family, type, proto, flags)
            if written_out is not None:
                return written_out
        if self._debug:
            look_up = self._getaddrinfo_debug
        return await self.run_in_executor(
            self._resolver_executor(), look_up, host, port, family, type, proto, flags
        )

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """socket.getnameinfo() without blocking the loop (asyncio's loop.getnameinfo)."""
        self._check_closed()
        return await self.run_in_executor(
            self._resolver_executor(), socket.getnameinfo, sockaddr, flags
        )
