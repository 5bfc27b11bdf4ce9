"""Instructions of a process, as valgrind's callgrind counts them."""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping

_COLLECTED = re.compile(r"Collected *: *(\d+)")
_NAMED = re.compile(r"c?ob=\((\d+)\)(?: (.*))?")


def command(out: str = "/dev/null") -> tuple[str, ...]:
    """What to put before the program; where its instructions went is written to `out`."""
    return ("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}")


def missing() -> str | None:
    """What to do about a machine without it."""
    if shutil.which("valgrind") is None:
        return "valgrind is missing; on Debian: apt-get install valgrind"
    return None


def instructions(stderr: str) -> int | None:
    """The count in what callgrind wrote when the process ended."""
    found = _COLLECTED.search(stderr)
    return int(found[1]) if found else None


def by_object(lines: Iterable[str]) -> Mapping[str, int]:
    """Instructions by the file they are in, a library or the program, from callgrind's output.

    Names come once, with a number that stands for them from then on. The line behind calls= is
    what the called function took, and is counted there.
    """
    names: dict[str, str] = {}
    counts: dict[str, int] = defaultdict(int)
    current = ""
    skip = False
    for line in lines:
        if named := _NAMED.match(line):
            number, name = named.groups()
            if name is not None:
                names[number] = os.path.basename(name.strip())
            if not line.startswith("c"):
                current = names[number]
        elif line.startswith("calls="):
            skip = True
        elif line[:1].isdigit() or line[:1] in ("+", "-", "*"):
            if not skip:
                counts[current] += int(line.split()[-1])
            skip = False
    return counts
