"""The machine, its cores and what disturbs them; which loops are here; the C++ programs."""

from __future__ import annotations

import contextlib
import datetime
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUSY_LIMIT = 0.10  # Of one core, by programs that are not part of the benchmark.

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


def memory_kib(pid: int, field: str) -> int:
    """A figure of /proc/PID/status, such as VmRSS; 0 when the process is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    return 0


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
