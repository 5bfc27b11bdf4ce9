"""A running program tells its loops' metrics over a Unix socket, to its own user only.

A thread answers, so that a loop that is blocked can be seen to be. Each connection gets one JSON
object a line, twice a second, until it closes. JSON has no infinity: null stands for it, as the
last bound of busy_periods and as a lag that has no other bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import os
import socket
import stat
import struct
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._metrics import look_from_any_thread

if TYPE_CHECKING:
    from typing import Self

    from ._loop import Loop

INTERVAL_S = 0.5
# The sockets of this process by default names, and their lock.
_taken: set[Path] = set()
_taking = threading.Lock()


def folder() -> Path:
    """Where the sockets are by default; made if it is missing. PermissionError if it is not ours.

    In XDG_RUNTIME_DIR where there is one, else in the folder for temporary files.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    path = (
        Path(runtime, "cpploop")
        if runtime
        else Path(tempfile.gettempdir(), f"cpploop-{os.getuid()}")
    )
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    # Somebody else may have made it first, where everybody may write.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{path} is not a folder of this user's")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{path} is open to other users: chmod 700 it")
    return path


def default_path(name: int | str) -> Path:
    """Of the socket that ``top`` finds by this name: a process's number, or that and "-2"."""
    return folder() / f"{name}.sock"


class Exposure:
    """Metrics on offer; made by cpploop.expose(). Ends with close(), its block, or the process."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self.path = path
        self._loop = weakref.ref(loop)
        self._closed = threading.Event()
        self._pid = os.getpid()
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._server.bind(str(path))
            # Nobody can connect before it listens.
            path.chmod(0o600)
            self._server.listen(8)
        except BaseException:
            self._server.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="cpploop-expose", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and remove the socket. A second call does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        _taken.discard(self.path)
        if self._pid == os.getpid():
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            if not _is_allowed(connection):
                connection.close()
                continue
            threading.Thread(
                target=self._answer, args=(connection,), name="cpploop-expose", daemon=True
            ).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            try:
                while True:
                    line = json.dumps(self._look(), allow_nan=False)
                    connection.sendall(line.encode() + b"\n")
                    if self._closed.wait(INTERVAL_S):
                        return
            except OSError:
                return

    def _look(self) -> dict[str, Any]:
        loop = self._loop()
        about: dict[str, Any] = {
            "pid": os.getpid(),
            "command": sys.orig_argv,
            "python": sys.version.split()[0],
            "time": time.monotonic(),
            "state": "closed",
        }
        if loop is None or loop.is_closed():
            return about
        busy, callback = loop._progress()
        about["state"] = "busy" if busy else "waiting" if loop.is_running() else "not running"
        about["callback"] = callback
        metrics = look_from_any_thread(loop)
        if metrics is None:
            about["state"] = "blocked"
            return about
        about["metrics"] = dataclasses.asdict(metrics)
        about["metrics"]["busy_periods"] = [
            (_finite(bound), count) for bound, count in metrics.busy_periods
        ]
        about["metrics"]["lag"] = {str(q): _finite(metrics.lag(q)) for q in (0.5, 0.99, 1.0)}
        about["metrics"]["utilisation"] = metrics.utilisation
        with contextlib.suppress(RuntimeError):  # The set of tasks changed while it was walked.
            about["tasks"] = len(asyncio.all_tasks(loop))
        return about


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end: who connected, or who listened.

    The process is 0 where this one's namespace does not have it.
    """
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def _is_allowed(connection: socket.socket) -> bool:
    """Whether the other end is this user's, or root's."""
    _, uid = peer(connection)
    return uid in (os.getuid(), 0)


def expose(
    path: str | os.PathLike[str] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Exposure:
    """Let this user look at a loop from outside: ``python -m cpploop top PID``.

    path: of the Unix socket to make; by default one that ``top`` finds by the process's number. The
        next loop of the same process has ``-2`` behind the number, for ``top`` too. Only this user
        and root may connect.
    loop: a cpploop loop; by default the running one.

    Returns an Exposure: a context manager with close() and the socket's path. OSError when the
    socket cannot be made, TypeError for a loop that is not cpploop's, RuntimeError when none runs,
    NotImplementedError where the system has no SO_PEERCRED to say who connects (Linux has).
    """
    from ._loop import Loop

    if not hasattr(socket, "SO_PEERCRED"):
        raise NotImplementedError(
            "cpploop.expose() asks the kernel who connects, by SO_PEERCRED, which this system lacks"
        )
    chosen = asyncio.get_running_loop() if loop is None else loop
    if not isinstance(chosen, Loop):
        raise TypeError(f"only a cpploop loop can be exposed, not {type(chosen).__name__}")
    if path is not None:
        return Exposure(chosen, Path(path))
    with _taking:
        first = default_path(os.getpid())
        further = (first.with_stem(f"{first.stem}-{n}") for n in itertools.count(2))
        free = next(path for path in itertools.chain([first], further) if path not in _taken)
        # What an earlier process of the same number left.
        with contextlib.suppress(FileNotFoundError):
            free.unlink()
        exposure = Exposure(chosen, free)
        _taken.add(free)
    return exposure
