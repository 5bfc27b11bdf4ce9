"""What our own suites share: patience, free ports, and programs that run beside the tests."""

from __future__ import annotations

import contextlib
import glob
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCALE = float(os.environ.get("CPPLOOP_TIME_SCALE", "1"))
PATIENCE_S = 40 * SCALE
# Where Debian keeps what it does not put on the path, because several versions may be installed.
ELSEWHERE = "/usr/lib/postgresql/*/bin"


def find_program(name: str) -> str | None:
    """Return where the program is installed."""
    return shutil.which(name) or max(glob.glob(f"{ELSEWHERE}/{name}"), default=None)


def free_port() -> str:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def eventually(holds: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true and return it; a server that is not there yet is asked again."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if result := holds():
                return result
        time.sleep(0.05)
    raise AssertionError(f"in vain: {what}")


def start(command: list[str], log: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, with what it says added to LOG."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # So that Ctrl-C reaches all of it, as a terminal's does.
            start_new_session=True,
            **options,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and the children that stayed in its group, in whatever state they are."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
