"""What run.py and micro.py share: the machine, its cores, the order of cells, stored results."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FLOOR = "floor"  # Stands among the loops where a row has a bare C++ server to compare with.
CONTROL = "asyncio"
BUSY_LIMIT = 0.10  # Of one core, by programs that are not part of the benchmark.

Cell = dict[str, Any]

# What would change a loop behind the figures' back.
_HOSTILE_VARIABLES = (
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONMALLOC",
    "PYTHONPROFILEIMPORTTIME",
)
# What changes a loop on purpose, and so belongs beside the figures.
_LOOP_PREFIXES = ("CPPLOOP_", "UVLOOP_", "ZUVLOOP_", "ZLOOP_", "RLOOP_", "RSLOOP_", "BLAZIO_")


def note(text: str) -> None:
    """Progress goes to stderr, so that stdout holds the Markdown and nothing else."""
    print(text, file=sys.stderr, flush=True)


# ---- the machine --------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Everything a reader needs to judge the figures, and nothing that names the machine."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python_build": f"{platform.python_compiler()}, {'GIL' if gil else 'free-threaded'}",
        "optimised": "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
        "openssl": ssl.OPENSSL_VERSION,
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(_LOOP_PREFIXES)
        },
    }


def _first_line(path: str) -> str | None:
    with contextlib.suppress(OSError), open(path) as file:
        return file.readline().strip()
    return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def check_cpus(*cpus: int) -> None:
    """Refuse a core this process may not use, before anything is measured."""
    usable = os.sched_getaffinity(0)
    for cpu in cpus:
        if cpu not in usable:
            sys.exit(f"CPU {cpu} cannot be used here, only {sorted(usable)}: see --help")


def pin(cpu: int) -> Callable[[], None]:
    """A preexec_fn that keeps the child, with every thread it starts, on one core."""
    return lambda: os.sched_setaffinity(0, {cpu})


def end_cleanly_on_sigterm() -> None:
    """Let a runner that is told to stop take its servers with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def child_environment() -> dict[str, str]:
    """The environment of servers and clients."""
    return {name: value for name, value in os.environ.items() if name not in _HOSTILE_VARIABLES}


def wait_until_idle(limit: float) -> None:
    """Wait up to `limit` seconds for other programs to leave the machine alone."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        before = machine_busy_seconds()
        time.sleep(0.3)
        if (machine_busy_seconds() - before) / 0.3 < BUSY_LIMIT:
            return


def machine_busy_seconds() -> float:
    """CPU time all cores spent on anything since the start."""
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# ---- what takes part ----------------------------------------------------------------------------


def probe_loops(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Ask each loop, in a process of its own, for its version or the reason it stays away."""
    found = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, str(HERE / "loops.py"), name],
            capture_output=True,
            text=True,
            env=child_environment(),
            timeout=60,
            check=False,
        )
        try:
            found[name] = json.loads(done.stdout)
        except json.JSONDecodeError:
            found[name] = {"reason": f"exits with {done.returncode}: {last_line(done.stderr)}"}
    return found


def last_line(text: str) -> str:
    """The last line with something on it, which is where Python names an exception."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"


def choose(
    pattern_list: str, names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """The names that a comma-separated list of names, globs and groups asks for, in our order."""
    wanted: set[str] = set()
    for pattern in pattern_list.split(","):
        matches = groups.get(pattern) or fnmatch.filter(names, pattern)
        if not matches:
            sys.exit(f"nothing is called {pattern!r}; --list prints every name")
        wanted.update(matches)
    return [name for name in names if name in wanted]


def interleave(
    rows: Sequence[str], names: Sequence[str], rounds: int
) -> Iterator[tuple[int, str, str]]:
    """Every loop in every row of every round, starting with another loop each time.

    A machine that slows down for a minute then slows all loops of a few rows, not one loop.
    """
    for number in range(rounds):
        for index, row in enumerate(rows):
            first = (number + index) % len(names)
            for name in (*names[first:], *names[:first]):
                yield number, row, name


def add_common_options(parser: argparse.ArgumentParser, rounds: int, seconds: float) -> None:
    """The options run.py and micro.py share."""
    parser.add_argument("--rows", default="default", help="names, globs, or a group (see --list)")
    parser.add_argument("--loops", default="*", help="names or globs, comma-separated")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="measured, per cell")
    parser.add_argument("--quick", action="store_true", help="a few rows, short: a smoke test")
    parser.add_argument("--server-cpu", type=int, default=0)
    parser.add_argument(
        "--wait-idle",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="on a shared machine: wait up to this long before each cell for others to pause",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: results/DATE-….json")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="finish an interrupted run")
    parser.add_argument("--report", type=Path, metavar="FILE", help="only print FILE's tables")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--list", action="store_true", help="print the rows and loops, and stop")


# ---- results ------------------------------------------------------------------------------------


class Results:
    """The cells measured so far, written after each one so that an interrupted run is not lost."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data
        self._done = {(cell["row"], cell["loop"], cell["round"]) for cell in data["cells"]}

    @classmethod
    def start(cls, path: Path | None, kind: str, facts: dict[str, Any]) -> Results:
        """A new file; `facts` says what is measured, and with what."""
        if path is None:
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
            path = RESULTS / f"{stamp}-{kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, {"kind": kind, "machine": machine(), **facts, "cells": []})

    @classmethod
    def load(cls, path: Path) -> Results:
        """The results of an earlier run."""
        return cls(path, json.loads(path.read_text()))

    def has(self, row: str, loop: str, number: int) -> bool:
        return (row, loop, number) in self._done

    def add(self, cell: Cell) -> None:
        self.data["cells"].append(cell)
        self._done.add((cell["row"], cell["loop"], cell["round"]))
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self.path)


# ---- the C++ programs ---------------------------------------------------------------------------


def compiler() -> str:
    """The C++ compiler: $CXX, or the first of the usual names."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(shlex.split(name)[0]):
            return name
    sys.exit("no C++ compiler: install g++ (or set CXX), or give --tools DIR")


def build_tools(build_dir: Path) -> Path:
    """Compile loadgen and floor_server unless this very source was; the folder they are in."""
    command = [*shlex.split(compiler()), "-std=c++20", "-O2"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    key = hashlib.sha256(f"{command} {version.stdout}".encode())
    sources = [HERE / "loadgen.cc", HERE / "floor_server.cc"]
    libraries = {"loadgen": ["-lssl", "-lcrypto"]}
    for source in sources:
        key.update(source.read_bytes())
    folder = build_dir / key.hexdigest()[:16]
    for source in sources:
        program = folder / source.stem
        if program.exists():
            continue
        note(f"compiling {source.name}")
        folder.mkdir(parents=True, exist_ok=True)
        partial = program.with_suffix(".partial")
        linked = libraries.get(source.stem, [])
        subprocess.run([*command, str(source), "-o", str(partial), *linked], check=True)
        partial.replace(program)
    return folder


def make_certificate(folder: Path) -> Path:
    """A certificate and its key in one PEM file, for servers that nobody checks."""
    path = folder / "certificate.pem"
    key = folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-keyout", str(key), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + key.read_text())
    return path
