"""What the native code asks of Python: rare events that read better here than in C++.

Nothing in this module runs per callback or per packet. The texts are asyncio's, so that programs
that look for them in logs find them.
"""

from __future__ import annotations

import contextlib
import contextvars
import socket
import sys
import warnings
from asyncio import (
    BaseProtocol,
    Future,
    Handle,
    StreamReader,
    Transport,
    constants,
    format_helpers,
    selector_events,
    trsock,
)
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

from ._datagrams import datagram_rules

if TYPE_CHECKING:
    from ._loop import Loop
    from ._native import (
        DatagramTransport,
        Listener,
        ReadPipeTransport,
        StreamTransport,
        WritePipeTransport,
        _AnyHandle,
    )

    _AnyTransport = StreamTransport | DatagramTransport | ReadPipeTransport | WritePipeTransport

SENDFILE_TRY_NATIVE = constants._SendfileMode.TRY_NATIVE
DATAGRAM_RULES = datagram_rules()


def _describe_callback(handle: _AnyHandle, debug: bool) -> str:
    describe: Any = format_helpers._format_callback_source
    try:
        return str(describe(handle._callback, handle._args, debug=debug))
    except TypeError:
        # Before Python 3.12.4 the function shows the arguments always.
        return str(describe(handle._callback, handle._args))


def _callback_failed(loop: Loop, handle: _AnyHandle, exc: BaseException) -> None:
    """Report a callback that raised, as asyncio.Handle._run() does."""
    context: dict[str, Any] = {
        "message": f"Exception in callback {_describe_callback(handle, loop.get_debug())}",
        "exception": exc,
        "handle": handle,
    }
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    loop.call_exception_handler(context)


def _run_unless_cancelled(handle: Handle) -> None:
    """Run a handle that is not the native loop's own, as asyncio's loop does in its turn."""
    if not handle._cancelled:
        handle._run()


class _Named:
    """A callback by name alone: asyncio's report is not to point at a line of ours."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = name

    def __call__(self) -> None: ...


def _io_callback_failed(loop: Loop, name: str, exc: BaseException) -> None:
    """The same for a callback of the engine's, under the name of asyncio's method for it."""
    handle: Any = Handle(_Named(name), (), loop)
    _callback_failed(loop, handle, exc)


def _names_of(sock: socket.socket) -> tuple[Any, Any]:
    """A socket's own name and its peer's, each None where asyncio's transports have None."""
    local = peer = None
    with contextlib.suppress(OSError):
        local = sock.getsockname()
    with contextlib.suppress(OSError):
        peer = sock.getpeername()
    return local, peer


def log_if_slow(loop: Loop, what: object, seconds: float) -> None:
    """Log a callback that blocked the loop for long (debug mode)."""
    if seconds >= loop.slow_callback_duration:
        from asyncio.base_events import _format_handle  # type: ignore[attr-defined]

        text = _format_handle(what) if isinstance(what, Handle) else repr(what)
        logger.warning("Executing %s took %.3f seconds", text, seconds)


def _make_asyncios_transport(
    loop: Loop,
    sock: socket.socket,
    protocol: BaseProtocol,
    waiter: Future[None] | None,
    extra: dict[str, Any] | None,
    server: Any,
    context: contextvars.Context | None,
) -> Transport:
    """Make asyncio's own transport, for a socket whose class has a recv() or send() of its own."""
    make: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    loop._expect_transports_of_asyncio()
    settings = {"context": context} if sys.version_info >= (3, 15) else {}
    transport: Transport = make(loop, sock, protocol, waiter, extra, server, **settings)
    return transport


def _refuse_used_descriptor(loop: Loop, fd: int, file: object) -> None:
    """Raise what asyncio raises for the descriptor of one of its own transports."""
    transport = loop._known_transports.get(fd)
    # A native one is here if somebody looked at loop._transports, and asked about elsewhere.
    if transport is None or type(transport).__module__ != selector_events.__name__:
        return
    if not transport.is_closing():
        raise RuntimeError(f"File descriptor {file!r} is used by transport {transport!r}")


def _refuse_data(data: object) -> None:
    """Raise what the running asyncio raises for data that is not bytes."""
    # It looks at its argument before it looks at the transport.
    selector_events._SelectorSocketTransport.write(None, data)  # type: ignore[attr-defined]
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")


def _refuse_datagram(data: object) -> None:
    """The same for sendto()."""
    selector_events._SelectorDatagramTransport.sendto(None, data)  # type: ignore[attr-defined]
    raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")


def _log_closed_write() -> None:
    logger.warning("socket.send() raised exception.")


def _refuse_pipe_data(data: object) -> None:
    """Raise what asyncio's pipe transport raises for data that is not bytes: it asserts."""
    if __debug__:
        raise AssertionError(repr(data))
    raise TypeError(f"a bytes-like object is required, not {type(data).__name__!r}")


def _log_closed_pipe_write() -> None:
    logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")


def _log_fatal_error(transport: _AnyTransport, message: str, exc: BaseException) -> None:
    logger.debug("%r: %s", transport, message, exc_info=exc)


def _log_debug(text: str, transport: _AnyTransport) -> None:
    logger.debug(text, transport)


def _log_info(text: str, transport: _AnyTransport) -> None:
    logger.info(text, transport)


def _unclosed(transport: _AnyTransport) -> None:
    warnings.warn(f"unclosed transport {transport!r}", ResourceWarning, source=transport)


def _fail_empty_waiter(waiter: Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(ConnectionError("Connection is closed by peer"))


def _socket_from(fd: int) -> socket.socket:
    """A socket object for a descriptor, or a closed one for -1."""
    if fd >= 0:
        sock = socket.socket(fileno=fd)
        # It is so already; the object has to know.
        sock.setblocking(False)
        return sock
    sock = socket.socket()
    sock.close()
    return sock


def _transport_socket(sock: socket.socket) -> trsock.TransportSocket:
    return trsock.TransportSocket(sock)


def _accept_exhausted(loop: Loop, listener: Listener, sock: socket.socket, exc: OSError) -> None:
    """Report that accept() ran out of descriptors or memory, and try again in a while."""
    loop.call_exception_handler(
        {
            "message": "socket.accept() out of system resource",
            "exception": exc,
            "socket": trsock.TransportSocket(sock),
        }
    )
    loop.call_later(constants.ACCEPT_RETRY_DELAY, listener.resume)


def _pause_reader(reader: StreamReader) -> None:
    """Pause the transport of a reader whose buffer has grown past twice its limit.

    The end of StreamReader.feed_data(), which the native code leaves to here.
    """
    private: Any = reader
    if private._transport is None or private._paused:
        return
    if len(private._buffer) <= 2 * private._limit:
        return
    try:
        private._transport.pause_reading()
    except NotImplementedError:
        # The transport cannot be paused: all data has to be buffered. Do not try again.
        private._transport = None
    else:
        private._paused = True
