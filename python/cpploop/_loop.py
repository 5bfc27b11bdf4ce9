"""The public loop: cpploop's native mechanism in front of asyncio's own Python.

What happens per callback or per packet is native (``_native.Loop``). What happens once per
connection or once per loop is the running Python's own ``asyncio.SelectorEventLoop``, inherited
and not copied, so that it behaves as that very Python does. This module joins the two: it says
where the native half stands in for a hook of asyncio's.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
import sys
import threading
import weakref
from asyncio import base_events, constants, events, selector_events
from asyncio.log import logger
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import _backend, _native, _tls, _writes
from ._connect import ConnectingLoop
from ._datagrams import takes_natively
from ._observed import ObservedLoop
from ._private import ReadyView, ScheduledView, SelectorView
from ._processes import SpawningLoop
from ._resolve import ResolvingLoop

if TYPE_CHECKING:
    from typing import Self, TypeVarTuple

    _Ts = TypeVarTuple("_Ts")

_SERVES_IN_CONTEXT = sys.version_info >= (3, 15)


class Loop(_native.Loop, ConnectingLoop, _tls.TlsLoop, ResolvingLoop, SpawningLoop, ObservedLoop):
    """An asyncio event loop with a native engine.

    Make one with ``cpploop.new_event_loop()``, or hand that function to ``asyncio.run``,
    ``asyncio.Runner`` or a server as their loop factory. Everything that ``asyncio``'s own loop
    does, this one does in the same way; one thread runs it at a time.
    """

    def __new__(cls, *args: Any, backend: str | None = None, **kwargs: Any) -> Self:
        # An error in the environment is met here, not in a connection, and leaves no half a loop.
        _tls.asked_for()
        hold_writes = _writes.may_be_held()
        loop = super().__new__(cls, _backend.chosen_name(backend))
        loop._hold_writes(hold_writes)
        return loop

    def __init__(self, *, backend: str | None = None) -> None:
        # The engine is the selector; asyncio's constructor would make one of its own for None.
        super().__init__(SelectorView(self))
        self._listeners: dict[int, _native.Listener] = {}
        self._trace_if_asked_for()

    def __repr__(self) -> str:
        name = "cpploop.Loop" if type(self) is Loop else type(self).__name__
        return (
            f"<{name} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )

    # ---- running ----

    def run_forever(self) -> None:
        """Run until stop() is called (asyncio's loop.run_forever)."""
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            events._set_running_loop(self)
            self._run()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)

    def close(self) -> None:
        """Drop what is queued and release everything (asyncio's loop.close).

        RuntimeError while the loop runs. A second call does nothing.
        """
        forked = self._forked()
        if self.is_running() and not forked:
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._debug:
            logger.debug("Close %r", self)
        if self._trace is not None and not forked:
            self._trace.stop()
        if not forked:
            self._stop_listeners()
        children = self._let_go_of_children(forked=forked)
        self._close_self_pipe()
        self._close()
        self._handshakes.clear()
        # Dropped when the loop is closed, which is what their finalisers look at.
        del children
        self._selector = None
        self._executor_shutdown_called = True
        executor = self._default_executor
        if executor is not None:
            self._default_executor = None
            if not forked:
                executor.shutdown(wait=False)
        if not forked:
            self._stop_resolver(wait=False)
        if forked:
            # The handlers and the wake-up descriptor are the parent's arrangement.
            self._signal_handlers.clear()
            return
        # asyncio finds the loop closed, and takes the signal handlers away in its own way.
        super().close()

    # ---- asyncio's private names (docs/private-habits.md) ----

    @property
    def _ready(self) -> ReadyView:
        return ReadyView(self)

    @_ready.setter
    def _ready(self, handles: Iterable[events.Handle]) -> None:
        # asyncio's constructor makes an empty queue, and programs exchange it for another.
        self._clear_ready()
        for handle in handles:
            self._append_ready(handle)

    @property
    def _scheduled(self) -> ScheduledView:
        return ScheduledView(self)

    @_scheduled.setter
    def _scheduled(self, timers: Sequence[events.TimerHandle]) -> None:
        if timers:
            raise AttributeError("loop._scheduled cannot be set: add timers with loop.call_at()")
        self._clear_scheduled()

    @property
    def _transports(self) -> weakref.WeakValueDictionary[int, Any]:
        for transport in self._open_transports():
            # Pipes have none, and asyncio keeps no account of them either.
            fd = getattr(transport, "_sock_fd", None)
            if fd is not None:
                self._known_transports[fd] = transport
        return self._known_transports

    @_transports.setter
    def _transports(self, transports: weakref.WeakValueDictionary[int, Any]) -> None:
        self._known_transports = transports

    def _add_callback(self, handle: events.Handle) -> None:
        # The handles of signals are asyncio's own and know their context themselves.
        if not handle._cancelled:
            self._append_ready(handle)

    def _call_soon(
        self,
        callback: Callable[[*_Ts], object],
        args: tuple[*_Ts],
        context: contextvars.Context | None,
    ) -> asyncio.Handle:
        # The native one by name: an overriding call_soon() may be who calls.
        return _native.Loop.call_soon(self, callback, *args, context=context)

    # ---- the socket pair that signals write to; made for the first signal handler ----

    def add_signal_handler(self, sig: int, callback: Callable[[*_Ts], Any], *args: *_Ts) -> None:
        """Call callback(*args) in the loop when a signal comes (asyncio's method)."""
        self._check_closed()
        if self._csock is None:
            super()._make_self_pipe()
            self._internal_fds -= 1
        super().add_signal_handler(sig, callback, *args)

    def _make_self_pipe(self) -> None:
        # asyncio's constructor wants one for waking the loop. The engine has its own descriptor for
        # that, which is the one counted here.
        self._ssock: socket.socket | None = None
        self._csock: socket.socket | None = None
        self._internal_fds += 1

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1
        if self._ssock is None or self._csock is None:
            return
        if not self._forked():
            self._remove_reader(self._ssock.fileno())
        self._ssock.close()
        self._ssock = None
        self._csock.close()
        self._csock = None

    # ---- serving ----

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: base_events.Server | None = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
        context: contextvars.Context | None = None,
    ) -> None:
        fd = sock.fileno()
        accept_tls = None
        if sslcontext is not None:

            def accept_tls(
                conn: socket.socket, address: Any, conn_context: contextvars.Context | None
            ) -> None:
                if self._debug:
                    logger.debug("%r got a new connection from %r: %r", server, address, conn)
                conn.setblocking(False)
                extra = {"peername": address}
                arguments: dict[str, Any] = {}
                if _SERVES_IN_CONTEXT:
                    arguments["context"] = conn_context
                accept = _tls.accept(
                    self,
                    protocol_factory,
                    conn,
                    server,
                    extra=extra,
                    sslcontext=sslcontext,
                    ssl_handshake_timeout=ssl_handshake_timeout,
                    ssl_shutdown_timeout=ssl_shutdown_timeout,
                    **arguments,
                )
                self.create_task(accept, **arguments)

        old = self._listeners.pop(fd, None)
        if old is not None:
            old.stop()
        self._listeners[fd] = _native.Listener(
            self, sock, fd, protocol_factory, server, accept_tls, context, backlog
        )

    def _stop_serving(self, sock: socket.socket) -> None:
        if _tls.FREE_THREADED and self._thread_id not in (None, threading.get_ident()):
            # Server.close() has let go of its sockets by now. If this refused another thread, there
            # would be nobody left who could close them.
            self.call_soon_threadsafe(self._stop_serving, sock)
            return
        listener = self._listeners.pop(sock.fileno(), None)
        if listener is not None:
            listener.stop()
        super()._stop_serving(sock)

    def _stop_listeners(self) -> None:
        # A loop that was never finished, for want of memory, is closed by its __del__().
        listeners = getattr(self, "_listeners", {})
        while listeners:
            listeners.popitem()[1].stop()

    # ---- datagrams ----

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        if takes_natively(sock):
            return self._make_native_datagram_transport(sock, protocol, address, waiter, extra)
        self._ensure_fd_no_transport(sock)
        self._expect_transports_of_asyncio()
        inherited: Any = super()
        transport: asyncio.DatagramTransport = inherited._make_datagram_transport(
            sock, protocol, address, waiter, extra
        )
        return transport

    # ---- sendfile ----

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        if self._forked():
            self._check_closed()  # Raises: the connection is the parent's.
        inherited: Any = super()
        sent: int = await inherited._sock_sendfile_native(sock, file, offset, count)
        return sent

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        """Send a file by the kernel, behind what the transport has queued."""
        if not issubclass(type(transp), _native.StreamTransport):
            # asyncio's own, over a socket with methods of its own.
            inherited: Any = super()
            sent: int = await inherited._sendfile_native(transp, file, offset, count)
            return sent
        resume_reading = transp.is_reading()
        # RuntimeError while another file is being sent.
        drained = transp._make_empty_waiter()
        transp.pause_reading()
        try:
            await drained
            # A duplicate, because the kernel's epoll knows a descriptor once: waiting for this one
            # and the transport's own reading must not get into each other's way.
            sock = transp._sock.dup()
            sock.setblocking(False)
            transp._lend(True)
            try:
                return await self.sock_sendfile(sock, file, offset, count, fallback=False)
            finally:
                transp._lend(False)
                sock.close()
        finally:
            # Also when cancelled while earlier writes were still going out: asyncio's transport
            # would refuse every write from then on.
            transp._reset_empty_waiter()
            if resume_reading:
                transp.resume_reading()


# Named so that a missing hook of asyncio's is an error at import and not in production: these are
# what this module stands in for.
for _hook in (
    "_start_serving",
    "_stop_serving",
    "_make_ssl_transport",
    "_make_datagram_transport",
    "_ensure_resolved",
    "_connect_sock",
    "_create_connection_transport",
    "_accept_connection2",
):
    if not hasattr(selector_events.BaseSelectorEventLoop, _hook):
        raise ImportError(f"cpploop does not know this Python: asyncio's loop has no {_hook}")
