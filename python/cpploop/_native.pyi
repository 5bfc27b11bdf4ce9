# The extension module's types, as stubtest compares them with the module itself.
#
# Public methods have asyncio's parameters and types, so that cpploop.Loop fits both of its bases.
# Names with an underscore are what the Python half of the package uses, or what asyncio's own code
# reads of its loops, handles and transports.

import asyncio
import sys
from asyncio.base_events import Server
from asyncio.transports import _FlowControlMixin
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import Context
from socket import socket
from traceback import StackSummary
from types import TracebackType
from typing import (
    Any,
    ClassVar,
    Final,
    Self,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    final,
    type_check_only,
)

from _typeshed import FileDescriptorLike, ReadableBuffer, WriteableBuffer
from typing_extensions import disjoint_base

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

if sys.version_info >= (3, 12):
    _Coroutine: TypeAlias = Coroutine[Any, Any, _T]
else:
    _Coroutine: TypeAlias = Coroutine[Any, Any, _T] | Generator[Any, None, _T]

__version__: Final[str]

def build_info() -> dict[str, object]: ...

# ---- handles -------------------------------------------------------------------------------------

# Made by the loop's methods only; Handle() and the like raise TypeError.

@final
class Handle(asyncio.Handle):
    _callback: Callable[..., object] | None
    _context: Context | None
    _source_traceback: StackSummary | None
    @property
    def _loop(self) -> Loop: ...
    # asyncio's own has it from Python 3.12 on.
    def get_context(self) -> Context: ...

@final
class TimerHandle(asyncio.TimerHandle):
    _callback: Callable[..., object] | None
    _context: Context | None
    _source_traceback: StackSummary | None
    @property
    def _loop(self) -> Loop: ...
    @property
    def _scheduled(self) -> bool: ...
    def get_context(self) -> Context: ...

if sys.version_info >= (3, 14):
    # What call_soon_threadsafe() returns: asyncio's class of that name, which typeshed leaves out.
    @final
    class _ThreadSafeHandle(asyncio.Handle):
        _callback: Callable[..., object] | None
        _context: Context | None
        _source_traceback: StackSummary | None
        @property
        def _loop(self) -> Loop: ...

    _AnyHandle: TypeAlias = Handle | TimerHandle | _ThreadSafeHandle
else:
    _AnyHandle: TypeAlias = Handle | TimerHandle  # noqa: PYI047  (cpploop._support uses it)

# ---- servers and connections ---------------------------------------------------------------------

@final
class Listener:
    def __new__(
        cls,
        loop: Loop,
        sock: socket,
        fd: int,
        factory: Callable[[], asyncio.BaseProtocol],
        server: Server | None,
        tls_accept: Callable[[socket, Any, Context | None], object] | None,
        context: Context | None,
        backlog: int,
        /,
    ) -> Listener: ...
    def stop(self) -> None: ...
    def resume(self) -> None: ...

# What is native about a transport. The module shows it as StreamTransport's base only.
@type_check_only
@disjoint_base
class StreamTransportBase(_FlowControlMixin):
    @property
    def _extra(self) -> Mapping[str, Any]: ...
    @property
    def _loop(self) -> Loop | None: ...
    @property
    def _sock(self) -> socket | None: ...
    @property
    def _sock_fd(self) -> int: ...
    @property
    def _server(self) -> Server | None: ...
    _protocol: asyncio.BaseProtocol | None
    @property
    def _closing(self) -> bool: ...
    @property
    def _conn_lost(self) -> int: ...
    @property
    def _eof(self) -> bool: ...
    @property
    def _paused(self) -> bool: ...
    @property
    def _protocol_paused(self) -> bool: ...
    @property
    def _high_water(self) -> int: ...
    @property
    def _low_water(self) -> int: ...
    def _start_reading(self) -> None: ...
    def _force_close(self, exc: BaseException | None, /) -> None: ...
    def _call_connection_lost(self, exc: BaseException | None, /) -> None: ...
    def _make_empty_waiter(self) -> asyncio.Future[None]: ...
    def _reset_empty_waiter(self) -> None: ...
    def _lend(self, lent: bool, /) -> None: ...

# The public methods are those of asyncio.Transport, with its parameters and types.
class StreamTransport(StreamTransportBase):
    _start_tls_compatible: ClassVar[bool]
    _sendfile_compatible: ClassVar[Any]

# What is native about the two kinds of pipe transport; the module shows the children only.
@type_check_only
@disjoint_base
class ReadPipeTransportBase(asyncio.ReadTransport):
    _pipe: Any
    @property
    def _fileno(self) -> int: ...
    @property
    def _loop(self) -> Loop | None: ...
    _protocol: asyncio.BaseProtocol | None
    @property
    def _closing(self) -> bool: ...
    @property
    def _paused(self) -> bool: ...
    def _add_reader(self, fd: int, callback: Callable[[], object], /) -> None: ...
    def _read_ready(self) -> None: ...
    def _call_connection_lost(self, exc: BaseException | None, /) -> None: ...

@type_check_only
@disjoint_base
class WritePipeTransportBase(_FlowControlMixin):
    _pipe: Any
    @property
    def _fileno(self) -> int: ...
    _protocol: asyncio.BaseProtocol | None
    @property
    def _closing(self) -> bool: ...
    @property
    def _conn_lost(self) -> int: ...
    def _add_reader(self, fd: int, callback: Callable[[], object], /) -> None: ...
    def _read_ready(self) -> None: ...
    def _write_ready(self) -> None: ...
    def _call_connection_lost(self, exc: BaseException | None, /) -> None: ...

# The public methods are those of asyncio.ReadTransport and asyncio.WriteTransport.
class ReadPipeTransport(ReadPipeTransportBase): ...
class WritePipeTransport(WritePipeTransportBase): ...

# ---- sockets of the program's own ----------------------------------------------------------------

# What the loop's sock_*() return for the usual socket: a coroutine without a frame. It has no
# cr_await, by which asyncio's tools would take it for one with a frame.
@final
class SockOperation(Coroutine[Any, Any, Any]):
    @property
    def __name__(self) -> str: ...
    @property
    def __qualname__(self) -> str: ...
    @property
    def cr_running(self) -> bool: ...
    @property
    def cr_suspended(self) -> bool: ...
    @property
    def cr_state(self) -> str: ...
    @property
    def cr_code(self) -> None: ...
    @property
    def cr_frame(self) -> None: ...
    @property
    def cr_origin(self) -> None: ...
    def __await__(self) -> Generator[Any, Any, Any]: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any, /) -> Any: ...
    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any: ...
    def close(self) -> None: ...

# ---- the loop ------------------------------------------------------------------------------------

@disjoint_base
class Loop:
    # Whatever its child's __init__() takes.
    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle: ...
    def call_soon_threadsafe(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle: ...
    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle: ...
    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle: ...
    def time(self) -> float: ...
    def create_future(self) -> asyncio.Future[Any]: ...
    if sys.version_info >= (3, 13):
        def create_task(
            self,
            coro: _Coroutine[_T],
            *,
            name: object = None,
            context: Context | None = None,
            eager_start: bool | None = None,
        ) -> asyncio.Task[_T]: ...
    else:
        def create_task(
            self, coro: _Coroutine[_T], *, name: object = None, context: Context | None = None
        ) -> asyncio.Task[_T]: ...

    def stop(self) -> None: ...
    def is_running(self) -> bool: ...
    def is_closed(self) -> bool: ...
    def get_debug(self) -> bool: ...
    def add_reader(
        self,
        fd: FileDescriptorLike,
        callback: Callable[[*_Ts], Any],
        *args: *_Ts,
    ) -> None: ...
    def add_writer(
        self,
        fd: FileDescriptorLike,
        callback: Callable[[*_Ts], Any],
        *args: *_Ts,
    ) -> None: ...
    def remove_reader(self, fd: FileDescriptorLike) -> bool: ...
    def remove_writer(self, fd: FileDescriptorLike) -> bool: ...
    def _add_reader(
        self,
        fd: FileDescriptorLike,
        callback: Callable[[*_Ts], Any],
        *args: *_Ts,
    ) -> Handle: ...
    def _add_writer(
        self,
        fd: FileDescriptorLike,
        callback: Callable[[*_Ts], Any],
        *args: *_Ts,
    ) -> Handle: ...
    def _remove_reader(self, fd: FileDescriptorLike, /) -> bool: ...
    def _remove_writer(self, fd: FileDescriptorLike, /) -> bool: ...
    def _watched(self, fd: FileDescriptorLike, /) -> int: ...
    def _ensure_fd_no_transport(self, fd: FileDescriptorLike, /) -> None: ...
    def _make_socket_transport(
        self,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        server: Server | None = None,
        context: Context | None = None,
    ) -> StreamTransport: ...
    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ReadPipeTransport: ...
    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> WritePipeTransport: ...
    def sock_recv(self, sock: socket, n: int) -> Coroutine[Any, Any, bytes]: ...
    def sock_recv_into(self, sock: socket, buf: WriteableBuffer) -> Coroutine[Any, Any, int]: ...
    def sock_recvfrom(
        self, sock: socket, bufsize: int
    ) -> Coroutine[Any, Any, tuple[bytes, Any]]: ...
    def sock_recvfrom_into(
        self, sock: socket, buf: WriteableBuffer, nbytes: int = 0
    ) -> Coroutine[Any, Any, tuple[int, Any]]: ...
    def sock_sendall(self, sock: socket, data: ReadableBuffer) -> Coroutine[Any, Any, None]: ...
    def sock_sendto(
        self, sock: socket, data: ReadableBuffer, address: Any
    ) -> Coroutine[Any, Any, int]: ...
    def sock_connect(self, sock: socket, address: Any) -> Coroutine[Any, Any, None]: ...
    def sock_accept(self, sock: socket) -> Coroutine[Any, Any, tuple[socket, Any]]: ...
    def _check_closed(self) -> None: ...
    def _write_to_self(self) -> None: ...
    def _run(self) -> None: ...
    def _close(self) -> None: ...
    def _forked(self) -> bool: ...
    @property
    def _closed(self) -> bool: ...
    _debug: bool
    _stopping: bool
    _thread_id: int | None
    _task_factory: Callable[..., Any] | None
