"""What the tests of pipe transports share: both ends of everything that counts as a pipe."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import Recorder


def pipe_files() -> tuple[Any, Any]:
    """The reading and the writing end of a pipe, as files without buffers."""
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)


def fifo_files(path: Path) -> tuple[Any, Any]:
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(path, os.O_WRONLY)
    return os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)


def terminal_files() -> tuple[Any, Any]:
    """Both ends of a terminal in raw mode, each to read and to write."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    return os.fdopen(master, "rb+", 0), os.fdopen(slave, "rb+", 0)


# (reading end, writing end) by name; a FIFO needs a place.
PAIRS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "pipe": lambda _: pipe_files(),
    "fifo": lambda tmp: fifo_files(tmp / "fifo"),
    "socket": lambda _: socket.socketpair(),
    "terminal master": lambda _: terminal_files(),
    "terminal slave": lambda _: terminal_files()[::-1],
}


async def reader(pipe: Any, rec: Any = None) -> tuple[Any, Any]:
    """A read pipe transport over PIPE and its recorder."""
    rec = rec or Recorder()
    return await asyncio.get_running_loop().connect_read_pipe(lambda: rec, pipe)


async def writer(pipe: Any, rec: Any = None) -> tuple[Any, Any]:
    """A write pipe transport over PIPE and its recorder."""
    rec = rec or Recorder()
    return await asyncio.get_running_loop().connect_write_pipe(lambda: rec, pipe)


def read_now(file: Any, size: int = 1 << 20) -> bytes:
    """What FILE has to read; b"" also for a non-blocking one that has nothing."""
    fd = file if isinstance(file, int) else file.fileno()
    os.set_blocking(fd, False)
    data = bytearray()
    try:
        while chunk := os.read(fd, size):
            data += chunk
    except BlockingIOError:
        pass
    return bytes(data)
