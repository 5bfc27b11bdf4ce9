"""Loops with a planted fault: what proves that the comparison would notice one.

Each is asyncio's own loop with one thing wrong, and stands where cpploop stands. The saved scripts
must tell every one of them from asyncio; ``run.py --plant NAME`` lets the search look for one.
"""

from __future__ import annotations

import asyncio
from asyncio import selector_events, unix_events
from collections.abc import Callable
from typing import Any

_Socket: Any = selector_events._SelectorSocketTransport
_WritePipe: Any = unix_events._UnixWritePipeTransport
_Datagram: Any = selector_events._SelectorDatagramTransport


class _LosesAByte(_Socket):  # type: ignore[misc]
    def write(self, data: Any) -> None:
        super().write(data[:-1] if len(data) > 50_000 else data)


class _NeverResumes(_Socket):  # type: ignore[misc]
    def _maybe_resume_protocol(self) -> None:
        pass


class _ClosesAtTheEnd(_Socket):  # type: ignore[misc]
    def _read_ready__on_eof(self) -> None:
        super()._read_ready__on_eof()
        self.close()


class _LosesInsideAbort(_Socket):  # type: ignore[misc]
    def abort(self) -> None:
        if not self._conn_lost:
            self._loop._remove_reader(self._sock_fd)
            self._loop._remove_writer(self._sock_fd)
            self._buffer.clear()
            self._closing = True
            self._conn_lost = 1
            self._call_connection_lost(None)


class _ReadsOnWhilePaused(_Socket):  # type: ignore[misc]
    def pause_reading(self) -> None:
        self._paused = True


class _FeedsTheOldProtocol(_Socket):  # type: ignore[misc]
    def set_protocol(self, protocol: Any) -> None:
        # The kind of the protocol is looked at once and never again.
        if self._read_ready_cb is None:
            super().set_protocol(protocol)
        else:
            self._protocol = protocol


class _SwallowsErrors(_Socket):  # type: ignore[misc]
    def _fatal_error(self, exc: BaseException, message: str = "") -> None:
        self._force_close(exc)


def _streams(transport: Any) -> Callable[[], Any]:
    # Debug mode logs its repr, which should not be what gives it away.
    transport.__name__ = _Socket.__name__

    class Loop(asyncio.SelectorEventLoop):
        def _make_socket_transport(self, *args: Any, **kwargs: Any) -> Any:
            return transport(self, *args, **kwargs)

    return Loop


class _PipeForgets(asyncio.SelectorEventLoop):
    def _make_write_pipe_transport(self, *args: Any, **kwargs: Any) -> Any:
        class Pipe(_WritePipe):  # type: ignore[misc]
            def close(self) -> None:
                self._buffer.clear()
                super().close()

        return Pipe(self, *args, **kwargs)


class _DatagramSwallows(asyncio.SelectorEventLoop):
    def _make_datagram_transport(self, *args: Any, **kwargs: Any) -> Any:
        class Datagram(_Datagram):  # type: ignore[misc]
            def sendto(self, data: Any, addr: Any = None) -> None:
                if data:
                    super().sendto(data, addr)

        return Datagram(self, *args, **kwargs)


FAULTS: dict[str, Callable[[], Any]] = {
    "loses a byte": _streams(_LosesAByte),
    "never resumes": _streams(_NeverResumes),
    "closes at the end": _streams(_ClosesAtTheEnd),
    "loses inside abort": _streams(_LosesInsideAbort),
    "reads on while paused": _streams(_ReadsOnWhilePaused),
    "feeds the old protocol": _streams(_FeedsTheOldProtocol),
    "swallows errors": _streams(_SwallowsErrors),
    "pipe forgets": _PipeForgets,
    "datagram swallows": _DatagramSwallows,
}
