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

from _typeshed import FileDescriptorLike
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
