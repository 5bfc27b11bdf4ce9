"""Instructions of a process, as valgrind's callgrind counts them."""

from __future__ import annotations

import re
import shutil

COMMAND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
_COLLECTED = re.compile(r"Collected *: *(\d+)")


def missing() -> str | None:
    """What to do about a machine without it."""
    if shutil.which("valgrind") is None:
        return "valgrind is missing; on Debian: apt-get install valgrind"
    return None


def instructions(stderr: str) -> int | None:
    """The count in what callgrind wrote when the process ended."""
    found = _COLLECTED.search(stderr)
    return int(found[1]) if found else None
