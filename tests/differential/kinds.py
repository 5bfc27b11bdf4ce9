"""The pairs a script can be run on, and the operations it can ask of the end under test."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import DatagramPeer, PipePeer, SocketPeer, TlsPeer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))

import support

# What a second end under test is added to; the plain kinds have a peer moved by hand.
DOUBLE = ("tcp2", "unix2", "tls2")
STREAMS = ("tcp", "unix", "tls", *DOUBLE)
DATAGRAMS = ("udp", "unixgram")
PIPES = ("pipe-read", "pipe-write")
KINDS = (*STREAMS, *DATAGRAMS, *PIPES)

# Small segments make the window of a small receive buffer open again in small steps. Otherwise TCP
# waits for a timer before it opens it, and no script can wait for that.
SEGMENT = 1400

_certificates: support.Certificates | None = None


def certificates() -> support.Certificates:
    global _certificates
    if _certificates is None:
        folder = tempfile.mkdtemp(prefix="cpploop-differential-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _certificates = support.make_certificates(Path(folder))
    return _certificates


# --------------------------------------------------------------------------- pairs


def tcp_pair(size: int) -> tuple[socket.socket, socket.socket]:
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with socket.socket(*kind) as listener:
        _fix(listener, size)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        first = socket.socket(*kind)
        _fix(first, size)
        first.connect(listener.getsockname())
        second, _ = listener.accept()
    for sock in (first, second):
        _fix(sock, size)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
    return first, second


def _fix(sock: socket.socket, size: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)


def unix_pair(size: int, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, socket.socket]:
    first, second = socket.socketpair(socket.AF_UNIX, kind)
    for sock in (first, second):
        _fix(sock, size)
        sock.setblocking(False)
    return first, second


def udp_pair() -> tuple[socket.socket, socket.socket]:
    first, second = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (first, second):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    return first, second


# --------------------------------------------------------------------------- beginning


def start(run: Any) -> None:
    """Make the pair and begin to make the transports; the barrier that follows finishes it."""
    from engine import End

    script = run.script
    kind, setup = script["kind"], script.get("setup", {})
    run.ends["a"] = a = End(run, "a", setup)
    if kind in DATAGRAMS:
        coroutine = _datagram(run, a, kind, setup)
    elif kind in PIPES:
        coroutine = _pipe(run, a, kind, setup)
    else:
        pair = tcp_pair if kind.startswith(("tcp", "tls")) else unix_pair
        first, second = pair(run.sizes.buffer)
        coroutine = _stream(run, a, kind, first, setup.get("server", False))
        if kind in DOUBLE:
            run.ends["b"] = b = End(run, "b", setup)
            _begin(run, b, _stream(run, b, kind, second, not setup.get("server", False)), None)
        elif kind == "tls":
            context, server, name = _tls_side(not setup.get("server", False))
            run.peer = TlsPeer(second, context, server, name)
        else:
            run.peer = SocketPeer(second)
    _begin(run, a, coroutine, setup.get("cancel"))


def _begin(run: Any, end: Any, coroutine: Any, cancel: int | None) -> None:
    task = run.loop.create_task(coroutine)

    def done(task: Any) -> None:
        if task.cancelled():
            end.log("setup", "cancelled")
            return
        exc = task.exception()
        from engine import summarise

        end.log("setup", "made" if exc is None else summarise(exc))

    task.add_done_callback(done)
    run.tasks.append(task)
    if cancel is not None:
        for _ in range(cancel):
            run.turn()
        end.log("setup", "cancel", task.cancel())


def _tls_side(server: bool) -> tuple[Any, bool, str | None]:
    certs = certificates()
    if server:
        return certs.server_context(), True, None
    return certs.client_context(), False, "localhost"


def _stream(run: Any, end: Any, kind: str, sock: socket.socket, server: bool) -> Any:
    protocol = end.protocol(end.setup.get("protocol", "stream"))
    options: dict[str, Any] = {}
    if kind.startswith("tls"):
        context, _, name = _tls_side(server)
        options["ssl"] = context
        if not server:
            options["server_hostname"] = name
    loop = run.loop
    if server:
        return loop.connect_accepted_socket(lambda: protocol, sock, **options)
    if kind.startswith("unix"):
        return loop.create_unix_connection(lambda: protocol, sock=sock, **options)
    return loop.create_connection(lambda: protocol, sock=sock, **options)


def _datagram(run: Any, end: Any, kind: str, setup: dict[str, Any]) -> Any:
    if kind == "udp":
        first, second = udp_pair()
        run.addresses["peer"] = second.getsockname()
        to = first.getsockname()
        if setup.get("connected", True):
            first.connect(second.getsockname())
    else:
        first, second = unix_pair(1 << 18, socket.SOCK_DGRAM)
        to = None
    run.peer = DatagramPeer(second, to)
    protocol = end.protocol("datagram")
    return run.loop.create_datagram_endpoint(lambda: protocol, sock=first)


def _pipe(run: Any, end: Any, kind: str, setup: dict[str, Any]) -> Any:
    if setup.get("socket", False):
        ours, other = unix_pair(run.sizes.buffer)
        run.peer = SocketPeer(other)
        file: Any = ours
    else:
        read, write = os.pipe()
        fcntl.fcntl(write, 1031, run.sizes.buffer)  # F_SETPIPE_SZ
        mine, far = (read, write) if kind == "pipe-read" else (write, read)
        file = os.fdopen(mine, "rb" if kind == "pipe-read" else "wb", 0)
        run.peer = PipePeer(far)
    protocol = end.protocol("stream")
    if kind == "pipe-read":
        return run.loop.connect_read_pipe(lambda: protocol, file)
    return run.loop.connect_write_pipe(lambda: protocol, file)


# --------------------------------------------------------------------------- operations


def limits(transport: Any) -> tuple[int, int]:
    return transport.get_write_buffer_limits()  # type: ignore[no-any-return]


_FORMS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "mutable view": lambda data: memoryview(bytearray(data)),
}
BAD: dict[str, Any] = {"str": "text", "none": None, "int": 7, "list": [b"x"]}


def _write(end: Any, form: str, size: int) -> Any:
    return end.transport.write(_FORMS[form](end.source.take(size)))


def _writelines(end: Any, form: str, sizes: list[int]) -> Any:
    return end.transport.writelines([_FORMS[form](end.source.take(size)) for size in sizes])


def _sendto(end: Any, form: str, size: int, to: str | None) -> Any:
    address = {"peer": end.run.addresses.get("peer"), "wrong": ("127.0.0.1", 9), None: None}[to]
    return end.transport.sendto(_FORMS[form](end.source.take(size)), address)


def _set_protocol(end: Any, kind: str) -> Any:
    return end.transport.set_protocol(end.protocol(kind))


def _simple(name: str) -> Callable[..., Any]:
    def operation(end: Any, *args: Any) -> Any:
        return getattr(end.transport, name)(*args)

    return operation


OPERATIONS: dict[str, Callable[..., Any]] = {
    "write": _write,
    "writelines": _writelines,
    "write_bad": lambda end, what: end.transport.write(BAD[what]),
    "sendto": _sendto,
    "set_protocol": _set_protocol,
    "limits": lambda end, high, low: end.transport.set_write_buffer_limits(high, low),
    "look": lambda end: end.look(),
    **{
        name: _simple(name)
        for name in ("pause_reading", "resume_reading", "write_eof", "close", "abort")
    },
}
