"""TLS: asyncio's own protocol with a native data path, and the choice of how native it is.

Handshake, closing, time-outs, end of stream and errors are the running Python's
``asyncio.sslproto``, inherited. What happens per record is native (``_native.TlsProtocolBase``,
``_native.TlsTransportBase``): reading, decrypting, delivering; encrypting, gathering, sending.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import ssl
import sys
from asyncio import constants, sslproto
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _environment, _native

if TYPE_CHECKING:
    import socket
    from asyncio import base_events
    from collections.abc import Callable, Coroutine

    from ._loop import Loop

_CHOICES = ("asyncio", "bio", "direct", "auto")
FREE_THREADED = _native.build_info()["free_threaded"]


class TlsTier(NamedTuple):
    """Who moves the bytes of a TLS connection, and why not somebody faster.

    tier: "direct" (OpenSSL's functions, called on Python's own connection), "bio" (the methods of
    ssl.SSLObject and ssl.MemoryBIO) or "asyncio" (asyncio.sslproto, all of it).
    reason: empty for "direct".
    """

    tier: str
    reason: str


# ---- gates ----


def _closed_gate() -> str | None:
    """What forbids to call OpenSSL directly in this process, or None.

    CPPLOOP_TLS_GATE names one that is to be taken for closed; that is for tests.
    """
    forced = os.environ.get("CPPLOOP_TLS_GATE")
    if forced:
        return f"{forced}: closed by CPPLOOP_TLS_GATE"
    if not ssl.OPENSSL_VERSION.startswith("OpenSSL "):
        return f"library: {ssl.OPENSSL_VERSION} is not OpenSSL"
    path = getattr(sys.modules.get("_ssl"), "__file__", None)
    if not path:
        return "symbols: OpenSSL is part of the interpreter's executable"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    trial = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    return _native._tls_closed_gate(path, trial)


_gate_known = False
_gate: str | None = None


def asked_for() -> str:
    """What CPPLOOP_TLS says. ValueError for a value that means nothing."""
    return _environment.choice("CPPLOOP_TLS", _CHOICES, "auto")


def chosen_tier() -> TlsTier:
    """What CPPLOOP_TLS asks for, as far as this process allows it.

    ValueError for a value that means nothing. The gates are tried when somebody asks for the first
    time: a program without TLS does not pay for them.
    """
    global _gate_known, _gate
    choice = asked_for()
    if choice in ("asyncio", "bio"):
        return TlsTier(choice, f"CPPLOOP_TLS={choice}")
    if not _gate_known:
        _gate = _closed_gate()
        _gate_known = True
    return TlsTier("direct", "") if _gate is None else TlsTier("bio", _gate)


def _tier_for(context: ssl.SSLContext) -> TlsTier:
    tier = chosen_tier()
    if tier.tier == "direct":
        if type(context) is not ssl.SSLContext:
            return TlsTier("bio", "context: a subclass of ssl.SSLContext")
        if context.sslobject_class is not ssl.SSLObject:
            return TlsTier("bio", "context: makes a subclass of ssl.SSLObject")
        if context._msg_callback is not None:  # type: ignore[attr-defined]
            return TlsTier("bio", "context: has a message callback")
    return tier


# ---- the protocol and its transport ----


class _SSLProtocolTransport(_native.TlsTransportBase, sslproto._SSLProtocolTransport):
    """The transport of a TLS connection (asyncio's own, with native writing)."""


def _refusing_other_threads(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._loop._check_thread()
        return method(self, *args, **kwargs)

    return checked


if FREE_THREADED:
    # As the native transports do there. Half of a close() in another thread would be worse than
    # none: it fails where it sets its time-out, and the next one finds that it was done.
    for _name in (
        *("abort", "close", "get_protocol", "get_write_buffer_limits", "get_write_buffer_size"),
        *("is_reading", "pause_reading", "resume_reading", "set_protocol"),
        *("set_read_buffer_limits", "set_write_buffer_limits"),
    ):
        _checked = _refusing_other_threads(getattr(sslproto._SSLProtocolTransport, _name))
        setattr(_SSLProtocolTransport, _name, _checked)


class SSLProtocol(_native.TlsProtocolBase, sslproto.SSLProtocol):
    """asyncio's SSLProtocol with a native data path."""

    # asyncio allocates as much for every connection; the loop has one buffer for all of them.
    max_size = 0

    # A step of the handshake waits for a later turn; and the peer's end behind it.
    _deferred = False
    _deferred_eof = False

    def __init__(self, loop: TlsLoop, *args: Any, **kwargs: Any) -> None:
        super().__init__(loop, *args, **kwargs)
        tier = _tier_for(self._sslcontext)
        if not self._open_session(tier.tier == "direct") and tier.tier == "direct":
            tier = TlsTier("bio", "layout: OpenSSL does not know this connection")
        self._extra["cpploop.tls"] = tier

    if TYPE_CHECKING:
        # What typeshed leaves out of asyncio's class.
        _app_transport_created: bool

    def _get_app_transport(self) -> _SSLProtocolTransport:
        if self._app_transport is None:
            if self._app_transport_created:
                raise RuntimeError("Creating _SSLProtocolTransport twice")
            self._app_transport = _SSLProtocolTransport(self._loop, self)
            self._app_transport_created = True
        return self._app_transport  # type: ignore[no-any-return]

    # A handshake's cryptography takes longer than anything else a loop does: so many a turn, and
    # those who are served already do not wait for all who come.

    def _do_handshake(self) -> None:
        if not self._deferred and self._loop._handshakes.admit(self):
            super()._do_handshake()  # type: ignore[misc]
            return
        # Its turn comes. What has arrived is kept, and until then no more is read: many who wait
        # and send without end must not fill the memory.
        self._deferred = True
        if self._transport is not None:
            self._transport.pause_reading()

    def _do_deferred_handshake(self) -> None:
        self._deferred = False
        if self._transport is not None:
            self._transport.resume_reading()
        if self._state is not sslproto.SSLProtocolState.DO_HANDSHAKE:
            return
        # Nobody above reads for a transport here: an exception of the application's ends its own
        # connection, as if the transport had read these bytes now.
        called = "buffer_updated"
        try:
            super()._do_handshake()  # type: ignore[misc]
            # The end may have come meanwhile, behind all that the peer had to say.
            if self._deferred_eof and self._transport is not None:
                called = "eof_received"
                if not super().eof_received():
                    self._transport.close()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, f"Fatal error: protocol.{called}() call failed.")

    if sys.version_info < (3, 13):

        def _on_handshake_complete(self, handshake_exc: Any) -> None:
            super()._on_handshake_complete(handshake_exc)
            # These versions' method leaves the exception in a frame that it leads to itself, and
            # so would this one.
            forget_locals(handshake_exc)
            del handshake_exc

    def eof_received(self) -> Any:
        if self._deferred:
            self._deferred_eof = True
            return True  # The transport stays open until then.
        return super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        # Nobody will take what still waits.
        self._write_backlog.clear()
        self._write_buffer_size = 0

    def _do_flush(self) -> None:
        # close_notify is behind everything that was written.
        self._encrypt_backlog()
        super()._do_flush()  # type: ignore[misc]


_native._tls_register(SSLProtocol)


class HandshakeQueue:
    """How many steps of handshakes a turn of the loop makes; the others wait for the next.

    Belongs to the loop's thread.
    """

    PER_TURN = 12

    def __init__(self) -> None:
        self._waiting: deque[tuple[SSLProtocol, contextvars.Context]] = deque()
        self._left = self.PER_TURN
        self._armed = False

    def admit(self, protocol: SSLProtocol) -> bool:
        """Whether the step may be made now; otherwise it is made in a later turn."""
        if protocol._server_side and not protocol._get_read_buffer_size():
            return True  # Nothing to work on: it only asks for more.
        self._arm(protocol._loop)
        if self._left > 0:
            self._left -= 1
            return True
        # The application hears of the connection in the context of its reading, now and later.
        context = getattr(protocol._transport, "_read_context", None)
        self._waiting.append((protocol, context or contextvars.copy_context()))
        return False

    def clear(self) -> None:
        """Forget who waits: the loop is closed."""
        self._waiting.clear()

    def _arm(self, loop: Loop) -> None:
        if not self._armed:
            loop.call_soon(self._next_turn, loop)
            self._armed = True

    def _next_turn(self, loop: Loop) -> None:
        self._armed = False
        self._left = self.PER_TURN
        if self._waiting:
            self._arm(loop)
        while self._waiting and self._left > 0:
            self._left -= 1
            protocol, context = self._waiting.popleft()
            context.run(protocol._do_deferred_handshake)


# ---- making them ----


def make_protocol(loop: TlsLoop, *args: Any, **kwargs: Any) -> sslproto.SSLProtocol:
    """An SSLProtocol of the tier in use."""
    if chosen_tier().tier == "asyncio":
        return sslproto.SSLProtocol(loop, *args, **kwargs)
    return SSLProtocol(loop, *args, **kwargs)


async def accept(
    loop: Loop,
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    sock: socket.socket,
    server: Any,
    **options: Any,
) -> None:
    """Make an accepted socket a TLS connection; whoever fails at it is gone without a trace.

    asyncio's _accept_connection2(), which on some versions leaves the connection in a cycle with
    its exception.
    """
    protocol = transport = None
    try:
        protocol = protocol_factory()
        waiter = loop.create_future()
        transport = loop._make_ssl_transport(
            sock, protocol, waiter=waiter, server_side=True, server=server, **options
        )
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        finally:
            del waiter
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        if loop.get_debug():
            report = {
                "message": "Error on transport creation for incoming connection",
                "exception": exc,
                "protocol": protocol,
                "transport": transport,
            }
            loop.call_exception_handler(
                {key: value for key, value in report.items() if value is not None}
            )


# Functions of asyncio's that leave an exception, or a future that has it, in a variable: the frame
# leads to the exception, and its traceback to the frame.
_LEAVE_CYCLES = {
    ("asyncio.sslproto", "_on_handshake_complete"),
    ("asyncio.base_events", "_create_connection_transport"),
}


def forget_locals(exc: object) -> None:
    """Empty those functions' finished frames in an exception's traceback."""
    step = exc.__traceback__ if isinstance(exc, BaseException) else None
    while step is not None:
        frame = step.tb_frame
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in _LEAVE_CYCLES:
            with contextlib.suppress(RuntimeError):  # It still runs: then it is not over.
                frame.clear()
        step = step.tb_next


async def _clean_after_failure(creating: Coroutine[Any, Any, Any]) -> Any:
    """Await it; a failed handshake is not to keep the connection until the collector runs."""
    try:
        return await creating
    except BaseException as exc:
        forget_locals(exc)
        raise


def _move_buffered_bytes(protocol: Any, ssl_protocol: Any) -> None:
    """A ClientHello that came together with what preceded it is in the stream reader by now."""
    from asyncio import StreamReaderProtocol

    if isinstance(protocol, StreamReaderProtocol):
        reader: Any = protocol._stream_reader  # type: ignore[attr-defined]
        if reader is not None and reader._buffer:
            ssl_protocol._incoming.write(reader._buffer)
            reader._buffer.clear()


def _exchange_protocol(transport: Any, protocol: Any, ssl_protocol: Any) -> None:
    """Set the new protocol, which will be told to resume if the old one was paused."""
    same = transport.get_protocol() is protocol
    # What was written until now is sent by this, and may be what pauses the old one.
    transport.set_protocol(ssl_protocol)
    if getattr(transport, "_protocol_paused", False):
        ssl_protocol._ssl_writing_paused = True
        if same:
            ssl_protocol._app_writing_paused = True


# ---- the loop's part ----


class TlsLoop(asyncio.SelectorEventLoop):
    """The part of the loop that makes TLS connections."""

    if TYPE_CHECKING:
        # asyncio's own, which typeshed leaves out.
        def _ensure_fd_no_transport(self, fd: Any) -> None: ...

    def __init__(self, selector: Any = None) -> None:
        super().__init__(selector)
        self._handshakes = HandshakeQueue()

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext | None,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: base_events.Server | None = None,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: contextvars.Context | None = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        # typeshed allows neither None nor float where asyncio passes them.
        ssl_protocol: Any = make_protocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        # Not through the hook for plain connections, which asyncio does not ask here either.
        native: Any = _native.Loop
        native._make_socket_transport(
            self, rawsock, ssl_protocol, extra=extra, server=server, context=context
        )
        transport: asyncio.Transport = ssl_protocol._app_transport
        return transport

    def _create_connection_transport(
        self, sock: socket.socket, protocol_factory: Any, ssl: Any, *args: Any, **kwargs: Any
    ) -> Coroutine[Any, Any, tuple[Any, Any]]:
        create: Any = super()._create_connection_transport  # type: ignore[misc]
        created: Coroutine[Any, Any, Any] = create(sock, protocol_factory, ssl, *args, **kwargs)
        return _clean_after_failure(created) if ssl else created

    async def start_tls(
        self,
        transport: Any,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport:
        """Upgrade a connection to TLS; the new transport (asyncio's loop.start_tls).

        Bytes and flow control are carried over from the old transport.
        """
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")

        waiter = self.create_future()
        ssl_protocol: Any = make_protocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )

        # Nothing may be received before connection_made().
        transport.pause_reading()
        if server_side:
            _move_buffered_bytes(protocol, ssl_protocol)
        _exchange_protocol(transport, protocol, ssl_protocol)
        made = self.call_soon(ssl_protocol.connection_made, transport)
        resume = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            made.cancel()
            resume.cancel()
            # Its exception leads back to this frame.
            del waiter
            raise
        return ssl_protocol._app_transport  # type: ignore[no-any-return]
