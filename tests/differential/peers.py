"""The far ends: sockets and pipes that a script moves by hand, between the turns of the loop.

Nothing here waits and no loop is involved, so a peer does the same beside every loop. ``pump``
is called after each turn and says whether anything moved.
"""

from __future__ import annotations

import errno
import os
import random
import socket
import ssl
import struct
import zlib
from typing import Any

_BLOCK_SIZE = 1 << 20
_BLOCK = random.Random(20).randbytes(_BLOCK_SIZE)
_PATTERN = _BLOCK + _BLOCK
EVERYTHING = 1 << 60
CHUNK = 1 << 16


class Source:
    """A stream of bytes without repetition: what is lost, doubled or exchanged shows in its sum."""

    def __init__(self, start: int) -> None:
        self._start = self._at = start

    def take(self, size: int) -> bytes:
        start = self._at % _BLOCK_SIZE
        self._at += size
        return _PATTERN[start : start + size]

    def began_with(self, received: Sum) -> bool:
        """Whether RECEIVED is the beginning of what was taken."""
        taken = self._at - self._start
        again = Source(self._start)
        known = Sum()
        while known.size < min(received.size, taken):
            known.add(again.take(min(received.size - known.size, _BLOCK_SIZE)))
        return known.value() == received.value()


class Sum:
    """The length and the check sum of a stream that arrives in pieces."""

    def __init__(self) -> None:
        self.size = 0
        self.crc = 0

    def add(self, data: Any) -> None:
        self.size += len(data)
        self.crc = zlib.crc32(data, self.crc)

    def value(self) -> tuple[int, int]:
        return self.size, self.crc


class Peer:
    """A stream's far end: sends what it is told to, reads as much as it is allowed to."""

    def __init__(self) -> None:
        self.source = Source(500_000)
        self.received = Sum()
        self.sent = 0
        self.end = "open"  # Of what arrives: open, eof, or the error's name.
        self.sends = "open"
        self._outbox = bytearray()
        self._budget = 0
        self._then: str | None = None

    # -- what a script may ask

    def send(self, size: int) -> None:
        self._outbox += self.source.take(size)
        self._flush()

    def recv(self, size: int | None) -> None:
        self._budget += EVERYTHING if size is None else size
        self._read()

    def shutdown(self) -> None:
        self._after_outbox("shutdown")

    def close(self) -> None:
        self._after_outbox("close")

    def reset(self) -> None:
        """Go at once, with a reset where the kind knows one."""
        self._outbox.clear()
        self._reset()

    # -- between turns

    def pump(self) -> bool:
        before = self.received.size, self.sent, self.end, self.sends
        self._flush()
        self._read()
        return before != (self.received.size, self.sent, self.end, self.sends)

    def snapshot(self) -> tuple[Any, ...]:
        return (*self.received.value(), self.end, self.sends)

    def dispose(self) -> None:
        self._outbox.clear()
        self._close()

    # -- how

    def _after_outbox(self, what: str) -> None:
        self._then = what
        self._flush()

    def _flush(self) -> None:
        while self._outbox and self.sends == "open":
            try:
                count = self._raw_send(memoryview(self._outbox)[:CHUNK])
            except BlockingIOError:
                return
            except OSError as exc:
                self.sends = errno.errorcode.get(exc.errno or 0, "error")
                break
            self.sent += count
            del self._outbox[:count]
        if self._then is not None:
            then, self._then = self._then, None
            self._outbox.clear()
            self._finish(then)

    def _finish(self, then: str) -> None:
        if then == "close":
            self._close()
        elif self.sends == "open":
            self.sends = "shut"
            self._shutdown()

    def _read(self) -> None:
        while self._budget > 0 and self.end == "open":
            try:
                data = self._raw_recv(min(self._budget, CHUNK))
            except BlockingIOError:
                return
            except OSError as exc:
                self.end = errno.errorcode.get(exc.errno or 0, "error")
                return
            if not data:
                self.end = "eof"
                return
            self._budget -= len(data)
            self.received.add(data)

    def _raw_send(self, data: Any) -> int:
        raise NotImplementedError

    def _raw_recv(self, size: int) -> bytes:
        raise NotImplementedError

    def _shutdown(self) -> None:
        raise NotImplementedError

    def _reset(self) -> None:
        self._close()

    def _close(self) -> None:
        raise NotImplementedError


class SocketPeer(Peer):
    """A TCP or Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self.sock = sock

    def _raw_send(self, data: Any) -> int:
        return self.sock.send(data)

    def _raw_recv(self, size: int) -> bytes:
        return self.sock.recv(size)

    def _shutdown(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.sends = errno.errorcode.get(exc.errno or 0, "error")

    def _reset(self) -> None:
        if self.sock.fileno() >= 0 and self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _close(self) -> None:
        self.sock.close()
        self.end = self.sends = "closed"


class PipePeer(Peer):
    """One end of an os.pipe(): it reads or it writes."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        os.set_blocking(fd, False)
        self.fd = fd

    def _raw_send(self, data: Any) -> int:
        return os.write(self.fd, data)

    def _raw_recv(self, size: int) -> bytes:
        return os.read(self.fd, size)

    def _shutdown(self) -> None:
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1
        self.end = self.sends = "closed"


class TlsPeer(SocketPeer):
    """A TLS session over memory BIOs, its records moved between turns."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, server_side: bool, name: str | None
    ) -> None:
        super().__init__(sock)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side, name)
        self.shaken = False
        self._records = bytearray()

    def unwrap(self) -> None:
        """Send close_notify."""
        self._after_outbox("unwrap")

    def garbage(self, size: int) -> None:
        """Send bytes that are no TLS record."""
        self._records += b"\x00" * size
        self._move_records()

    def pump(self) -> bool:
        before = self.shaken, self._progress
        moved = super().pump()
        return moved or before != (self.shaken, self._progress)

    _progress = 0

    def _flush(self) -> None:
        if not self.shaken:
            self._shake()
        if self.shaken:
            super()._flush()
        self._move_records()

    def _finish(self, then: str) -> None:
        if then == "unwrap":
            self.sends = "unwrapped"
            try:
                self.tls.unwrap()
            except (ssl.SSLError, ValueError):
                pass
            return
        self._move_records()
        super()._finish(then)

    def _raw_send(self, data: Any) -> int:
        try:
            count = self.tls.write(data)
        except ssl.SSLError as exc:
            raise OSError(errno.EPROTO, str(exc)) from None
        self._move_records()
        if len(self._records) > 4 * CHUNK:
            raise BlockingIOError
        return count

    def _raw_recv(self, size: int) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                if not self._fill():
                    raise BlockingIOError from None
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError:
                raise OSError(errno.EPROTO, "tls") from None

    def _read(self) -> None:
        if self.shaken:
            super()._read()
            self._move_records()

    def _shake(self) -> None:
        while not self.shaken and self.sends == "open":
            try:
                self.tls.do_handshake()
                self.shaken = True
            except ssl.SSLWantReadError:
                self._move_records()
                try:
                    if not self._fill():
                        return
                except OSError as exc:
                    self.end = self.sends = errno.errorcode.get(exc.errno or 0, "error")
            except ssl.SSLError:
                self.end = self.sends = "EPROTO"
        self._move_records()

    def _fill(self) -> bool:
        """Whether more records came in."""
        if self.sock.fileno() < 0:
            return False
        try:
            data = self.sock.recv(CHUNK)
        except BlockingIOError:
            return False
        self._progress += 1
        if not data:
            self._in.write_eof()
        self._in.write(data)
        return True

    def _move_records(self) -> None:
        self._records += self._out.read()
        while self._records and self.sock.fileno() >= 0:
            try:
                count = self.sock.send(memoryview(self._records)[:CHUNK])
            except BlockingIOError:
                return
            except OSError:
                self._records.clear()
                return
            self._progress += 1
            del self._records[:count]


class DatagramPeer:
    """A datagram socket; it keeps what came as one entry each."""

    def __init__(self, sock: socket.socket, to: Any) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.to = to
        self.source = Source(500_000)
        self.got: list[tuple[int, int]] = []
        self.sent = 0
        self.end = "open"
        self._budget = 0

    @property
    def received(self) -> Sum:
        total = Sum()
        total.size = sum(size for size, _ in self.got)
        return total

    def send(self, size: int) -> None:
        if self.sock.fileno() < 0:
            return
        data = self.source.take(min(size, 60000))
        try:
            self.sent += self.sock.sendto(data, self.to) if self.to else self.sock.send(data)
        except OSError as exc:
            self.end = errno.errorcode.get(exc.errno or 0, "error")

    def recv(self, size: int | None) -> None:
        self._budget = EVERYTHING
        self.pump()

    def close(self) -> None:
        self.dispose()

    reset = shutdown = close

    def pump(self) -> bool:
        moved = False
        while self._budget and self.sock.fileno() >= 0:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:
                # A refused datagram of ours, told once.
                moved = True
                continue
            self.got.append((len(data), zlib.crc32(data)))
            moved = True
        return moved

    def snapshot(self) -> tuple[Any, ...]:
        return (tuple(self.got), self.end)

    def dispose(self) -> None:
        self.sock.close()
        self.end = "closed"
