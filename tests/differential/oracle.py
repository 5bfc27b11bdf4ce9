"""The two loops, and what must be known of asyncio to use it as the oracle.

``asyncio`` is the asyncio of the running interpreter, with its known bugs mended where a later
patch release has mended them: cpploop follows the mended one on every Python. ``larger``,
``smaller`` and ``like ours`` are the same asyncio with other sizes in the kernel or in its reads. A
script whose trace depends on such sizes tells nothing, and comes out differently on one of these.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from asyncio import constants, selector_events, sslproto, unix_events
from asyncio.log import logger
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import shaken

_Socket: Any = selector_events._SelectorSocketTransport
_ReadPipe: Any = unix_events._UnixReadPipeTransport
_Tls: Any = sslproto.SSLProtocol
_WritePipe: Any = unix_events._UnixWritePipeTransport

BUFFER = 1 << 16
LARGER_BUFFER = 3 << 15
SMALLER_BUFFER = 3 << 14
SHAKEN_READ = 16 * 1024
CPPLOOP_READ = 64 * 1024


class Loop:
    """How to make one of the loops, and the sizes it runs with."""

    def __init__(
        self,
        name: str,
        factory: Callable[[], Any],
        buffer: int = BUFFER,
        read: int | None = None,
        faults: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.name = name
        self.factory = factory
        self.buffer = buffer
        self.read = read
        self.faults = faults

    @contextlib.contextmanager
    def sizes(self) -> Iterator[None]:
        if self.read is None:
            with self.faults():
                yield
            return
        # The base class of TCP and datagram transports holds the size; datagrams are left alone.
        saved = selector_events._SelectorTransport.max_size, _ReadPipe.max_size, _Tls.max_size
        _Socket.max_size = _ReadPipe.max_size = self.read
        _Tls.max_size = 2 * self.read
        try:
            yield
        finally:
            del _Socket.max_size
            _, _ReadPipe.max_size, _Tls.max_size = saved


def loops() -> dict[str, Loop]:
    import cpploop

    def other(name: str, buffer: int, read: int) -> Loop:
        return Loop(f"asyncio, {name}", asyncio.SelectorEventLoop, buffer, read)

    return {
        "asyncio": Loop("asyncio", asyncio.SelectorEventLoop),
        "larger": other("larger buffers", LARGER_BUFFER, SHAKEN_READ),
        "smaller": other("smaller buffers", SMALLER_BUFFER, SHAKEN_READ),
        "like ours": other("cpploop's reads", BUFFER, CPPLOOP_READ),
        "cpploop": Loop("cpploop", cpploop.new_event_loop),
    }


class Faults:
    """Adds faults to cpploop, and to an asyncio beside the ones that have none.

    The seed of a run is its script's own, so that a run can be had again. asyncio is shaken often
    and hard, because one fault of ours in the right place is to be met by one of its own.
    """

    SHAKEN = tuple(f"shaken {number}" for number in range(40))

    def __init__(self, seed: int, rates: shaken.Rates) -> None:
        self.seed = seed
        self.rates = rates
        self.script = 0

    def add_to(self, loops: dict[str, Loop]) -> None:
        import cpploop

        def of_cpploop() -> contextlib.AbstractContextManager[None]:
            return shaken.of_cpploop(self.seed ^ self.script, self.rates)

        loops["cpploop"] = Loop("cpploop", cpploop.new_event_loop, faults=of_cpploop)
        for number, name in enumerate(self.SHAKEN):
            loops[name] = Loop(
                f"asyncio, {name}", asyncio.SelectorEventLoop, faults=self._of(number)
            )

    def _of(self, number: int) -> Callable[[], contextlib.AbstractContextManager[None]]:
        rates = shaken.Rates(*(min(4 * rate, 0.4) for rate in astuple(self.rates)))
        return lambda: shaken.of_asyncio(self.seed + number, rates)


# --------------------------------------------------------------------------- mended bugs


def mend() -> list[str]:
    """Mend the running asyncio where it needs it; returns what was mended."""
    mended = []
    own = vars(_Socket).get("writelines")
    if own is not None:
        source = inspect.getsource(own)
        if not all(part in source for part in ("_conn_lost", "_maybe_pause_protocol", "if data")):
            _Socket.writelines = _writelines
            mended.append("writelines() after a lost connection, over the high mark, empty pieces")
    flush = vars(_Socket).get("_write_sendmsg") or vars(_Socket)["_write_ready"]
    if "not self._conn_lost" not in inspect.getsource(flush):
        _mend_close_while_flushing()
        mended.append("connection_lost() twice after closing in resume_writing()")
    if "buf[offset:]" in inspect.getsource(_Tls._do_read__buffered):
        _mend_tls_into_bytearrays()
        mended.append("TLS into a bytearray: only the first record of a read arrives")
    if "SSLZeroReturnError" not in inspect.getsource(_Tls._do_read__buffered):
        _mend_closing_in_get_buffer()
        mended.append("TLS: closing in get_buffer() behind the peer's end is an error")
    if "_process_outgoing" not in inspect.getsource(_Tls._on_handshake_complete):
        _mend_withheld_handshake()
        mended.append("TLS: the handshake's end withheld when connection_made() pauses reading")
    if "_told" not in vars(_WritePipe):
        _mend_second_end_of_a_pipe()
        mended.append("abort() of a write pipe that has ended or is about to")
    return mended


def _mend_second_end_of_a_pipe() -> None:
    lost, close = _WritePipe._call_connection_lost, _WritePipe._close

    def _call_connection_lost(self: Any, exc: BaseException | None) -> None:
        if not self._told:
            self._told = True
            lost(self, exc)

    def _close(self: Any, exc: BaseException | None = None) -> None:
        if not self._told:
            close(self, exc)

    _WritePipe._told = False
    _WritePipe._call_connection_lost = _call_connection_lost
    _WritePipe._close = _close


def _mend_withheld_handshake() -> None:
    """asyncio sends the end of its handshake with what it does next, and paused it does nothing."""
    on_handshake_complete = _Tls._on_handshake_complete

    def mended(self: Any, handshake_exc: BaseException | None) -> None:
        on_handshake_complete(self, handshake_exc)
        if type(self) is _Tls and self._app_reading_paused and self._transport is not None:
            self._process_outgoing()

    _Tls._on_handshake_complete = mended


def _mend_closing_in_get_buffer() -> None:
    """asyncio reads on into the buffer though both ends have said by then that they are done."""
    read = _Tls._do_read__buffered

    def _do_read__buffered(self: Any) -> None:
        try:
            read(self)
        except ssl.SSLZeroReturnError:
            if self._state is sslproto.SSLProtocolState.WRAPPED:
                raise

    _Tls._do_read__buffered = _do_read__buffered


def _mend_tls_into_bytearrays() -> None:
    """asyncio's TLS reads the second record into a slice of the buffer: of a bytearray, a copy."""
    set_app_protocol = _Tls._set_app_protocol

    def mended(self: Any, app_protocol: Any) -> None:
        set_app_protocol(self, app_protocol)
        if type(self) is _Tls and self._app_protocol_is_buffer:
            get_buffer = self._app_protocol_get_buffer

            def get_view(hint: int) -> Any:
                buffer = get_buffer(hint)
                return memoryview(buffer) if isinstance(buffer, bytearray) else buffer

            self._app_protocol_get_buffer = get_view

    _Tls._set_app_protocol = mended


def _writelines(self: Any, pieces: Any) -> None:
    if self._eof:
        raise RuntimeError("Cannot call writelines() after write_eof()")
    if self._empty_waiter is not None:
        raise RuntimeError("unable to writelines; sendfile is in progress")
    if not pieces:
        return
    if self._conn_lost:
        if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._conn_lost += 1
        return
    views = [view for view in map(memoryview, pieces) if view.nbytes]
    if not views:
        return
    self._buffer.extend(views)
    # close() takes the instance's writer away while the class still has it.
    _Socket._write_sendmsg(self)
    if self._buffer and self._loop is not None and not self._conn_lost:
        self._loop._add_writer(self._sock_fd, self._write_sendmsg)
        self._maybe_pause_protocol()


def _mend_close_while_flushing() -> None:
    lost, resume = _Socket._call_connection_lost, _Socket._maybe_resume_protocol

    def _maybe_resume_protocol(self: Any) -> None:
        before = self._conn_lost
        resume(self)
        if self._conn_lost and not before:
            # The loss is scheduled: the flush that called us must not tell it as well.
            self._told_later = True

    def _call_connection_lost(self: Any, exc: BaseException | None) -> None:
        if getattr(self, "_told_later", False):
            self._told_later = False
            return
        if not self._conn_lost:
            self._conn_lost = 1
        lost(self, exc)

    _Socket._maybe_resume_protocol = _maybe_resume_protocol
    _Socket._call_connection_lost = _call_connection_lost
