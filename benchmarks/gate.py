"""The regression gate: instructions per operation, counted by callgrind, against a stored baseline.

    python benchmarks/gate.py                count, compare, fail on a loss
    python benchmarks/gate.py --update       write what was counted as the new baseline
    python benchmarks/gate.py --rows echo_1k --loop asyncio

A machine whose clock moves by 10 % still executes the same instructions, so a loss of 10 % shows
here on the first run. Every row runs twice, with different numbers of operations, each in a fresh
process; the difference of the two counts holds the operations and nothing of the start.

Two figures a row: all instructions, and those in the extension itself, which are fewer and show a
smaller change. Either fails when it has grown by more than 10 %.

Instructions are not time: they do not see a cache miss or a system call that waits. The gate finds
what somebody put into a hot path by accident; the benchmarks say what a loop is worth.

A baseline belongs to one Python and one compiler, because most of the instructions are CPython's
own. Without one for those at hand the gate says so and ends with status 77.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import re
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import callgrind
import loops
from protocols import EchoProtocol

Loop = asyncio.AbstractEventLoop
# Does that many operations on the running loop.
Program = Callable[[Loop, int], Awaitable[None]]
# By row: everything that was executed, and what of it is in the extension.
Counts = dict[str, dict[str, float]]

BASELINE = Path(__file__).resolve().parent / "gate_baseline.json"
LIMIT = 0.10
NO_BASELINE = 77
EXTENSION = "_native."  # What the extension's file name begins with.
# A gain of 100 % is none.
NOTHING_COUNTED = "nothing was counted; another name of the extension, or other callgrind output?"
TIMEOUT_SECONDS = 120
BATCH = 500
MESSAGE = bytes(1024)


# ---- what is counted ----------------------------------------------------------------------------


def nothing() -> None:
    """A callback that does nothing."""


async def call_soon(loop: Loop, count: int) -> None:
    """Callbacks scheduled and run, some hundreds a turn."""
    for _ in range(count // BATCH):
        for _ in range(BATCH):
            loop.call_soon(nothing)
        await asyncio.sleep(0)


async def timer_cancelled(loop: Loop, count: int) -> None:
    """Time-outs that are cancelled long before they are due, some hundreds pending."""
    pending = [loop.call_later(60.0, nothing) for _ in range(BATCH)]
    for number in range(count):
        pending[number % BATCH].cancel()
        pending[number % BATCH] = loop.call_later(60.0, nothing)
    for handle in pending:
        handle.cancel()


async def timer_fired(loop: Loop, count: int) -> None:
    """Timers made in no order of their deadlines, which are past: no clock decides which fire."""
    start = loop.time() - 1.0
    delays = [number * 1e-6 for number in range(BATCH)]
    random.Random(42).shuffle(delays)
    for _ in range(count // BATCH):
        for delay in delays:
            loop.call_at(start + delay, nothing)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


class Client(EchoProtocol):
    """Sends the next message when the last one is back, as often as it is told."""

    def start(self, loop: Loop, count: int) -> asyncio.Future[None]:
        self.done: asyncio.Future[None] = loop.create_future()
        self.left = count
        self.received = 0
        self.transport.write(MESSAGE)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.received < len(MESSAGE):
            return
        assert self.received == len(MESSAGE), "more came back than was sent"
        self.received = 0
        self.left -= 1
        if self.left:
            self.transport.write(MESSAGE)
        else:
            self.done.set_result(None)


async def echo_1k(loop: Loop, count: int) -> None:
    """Messages of 1 KiB to and fro between two transports, whose sockets nobody else has."""
    await _echo(loop, count, list(socket.socketpair()))


async def echo_1k_held(loop: Loop, count: int) -> None:
    """The same with sockets that the program keeps, and so could close at any moment."""
    sockets = socket.socketpair()
    await _echo(loop, count, list(sockets))


async def echo_1k_metrics(loop: Loop, count: int) -> None:
    """echo_1k, while the loop measures the times of its turns."""
    getattr(loop, "metrics", nothing)()
    await echo_1k(loop, count)


async def _echo(loop: Loop, count: int, sockets: list[socket.socket]) -> None:
    echo, _ = await loop.connect_accepted_socket(EchoProtocol, sockets.pop())
    transport, client = await loop.connect_accepted_socket(Client, sockets.pop())
    await client.start(loop, count)
    transport.close()
    echo.close()


# Each with the numbers of operations of its two runs: enough of them to drown what differs from
# run to run, such as the size a dictionary has grown to.
PROGRAMS: dict[str, tuple[Program, int, int]] = {
    "call_soon": (call_soon, 10_000, 60_000),
    "timer_cancelled": (timer_cancelled, 10_000, 60_000),
    "timer_fired": (timer_fired, 10_000, 60_000),
    "echo_1k": (echo_1k, 2_000, 8_000),
    "echo_1k_held": (echo_1k_held, 2_000, 8_000),
    "echo_1k_metrics": (echo_1k_metrics, 2_000, 8_000),
}


def child(row: str, name: str, count: int) -> None:
    """One run, in a process that callgrind watches."""

    async def run() -> None:
        await PROGRAMS[row][0](loops.check_running(name), count)

    with asyncio.Runner(loop_factory=loops.LOOPS[name].load()) as runner:
        runner.get_loop()
        # A full collection falls into one run or the other by chance, and must not look at all that
        # was imported.
        gc.collect()
        gc.freeze()
        runner.run(run())
        gc.unfreeze()


# ---- counting -----------------------------------------------------------------------------------


def instructions(row: str, name: str, count: int) -> dict[str, int]:
    """What a whole process executes that does `count` operations."""
    with tempfile.TemporaryDirectory(prefix="cpploop-gate-") as folder:
        out = Path(folder) / "callgrind.out"
        done = subprocess.run(
            [
                *callgrind.command(str(out)),
                sys.executable,
                __file__,
                "--child",
                row,
                name,
                str(count),
            ],
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0 or not out.exists():
            words = done.stderr[-2000:]
            raise RuntimeError(f"{row} on {name} exits with {done.returncode}:\n{words}")
        with out.open() as lines:
            counts = callgrind.by_object(lines)
    own = sum(value for file, value in counts.items() if file.startswith(EXTENSION))
    return {"all": sum(counts.values()), "own": own}


def _environment() -> dict[str, str]:
    """Nothing of the caller's.

    Its size decides where the stack begins, and a seed how strings fall into dictionaries.
    """
    environment = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return environment


def count(rows: list[str], name: str, jobs: int) -> Counts:
    """Instructions per operation of each row. Runs beside each other do not disturb the counts."""
    with ThreadPoolExecutor(jobs) as pool:
        pairs = {
            row: [pool.submit(instructions, row, name, size) for size in PROGRAMS[row][1:]]
            for row in rows
        }
    result = {}
    for row, (short, long) in pairs.items():
        _, least, most = PROGRAMS[row]
        before, after = short.result(), long.result()
        operations = most - least
        result[row] = {key: round((after[key] - before[key]) / operations, 1) for key in before}
    return result


# ---- judging ------------------------------------------------------------------------------------


def build_key() -> str:
    """Whose instructions these are: another Python or compiler has a baseline of its own.

    The patch release is not part of it: it changes little of what runs here.
    """
    import cpploop

    known = {
        "free-threaded": sysconfig.get_config_var("Py_GIL_DISABLED"),
        "optimised": "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
        "shared": sysconfig.get_config_var("Py_ENABLE_SHARED"),
    }
    version = "CPython {}.{}".format(*sys.version_info[:2])
    python = " ".join([version, *(name for name, value in known.items() if value)])
    compiler = re.sub(r"\..*", "", str(cpploop.build_info()["compiler"]))
    return f"{python}, {compiler}, {platform.machine()}"


def verdicts(counted: Counts, baseline: Counts) -> tuple[list[str], int]:
    """A line for each figure, and how many of them fail."""
    lines = []
    failed = 0
    for row, figures in counted.items():
        for key, value in figures.items():
            name = row if key == "all" else f"{row}, the extension"
            if value <= 0:
                lines.append(f"{name}: {value:.0f}: {NOTHING_COUNTED}")
                failed += 1
                continue
            before = baseline.get(row, {}).get(key)
            if before is None:
                lines.append(f"{name}: {value:.0f}, and the baseline lacks it: --update")
                failed += 1
                continue
            change = value / before - 1
            verdict = "ok"
            if change > LIMIT:
                verdict = f"LOST more than {LIMIT:.0%}"
                failed += 1
            elif change < -LIMIT:
                verdict = "ok, and the BASELINE IS STALE: --update"
            lines.append(f"{name}: {value:.0f} instead of {before:.0f}, {change:+.1%}: {verdict}")
    return lines, failed


def shown(counted: Counts) -> str:
    """The figures without a baseline."""
    return "\n".join(
        f"{row}: {figures['all']:.0f}, of which {figures['own']:.0f} in the extension"
        for row, figures in counted.items()
    )


def stored(path: Path) -> dict[str, Counts]:
    """The baselines by key; none where there is no file yet."""
    result: dict[str, Counts] = json.loads(path.read_text()) if path.exists() else {}
    return result


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(PROGRAMS), help="names, comma-separated")
    parser.add_argument("--loop", default="cpploop", help="only counted, unless it is cpploop")
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE, metavar="FILE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return 0
    options = parse_options()
    if lacking := callgrind.missing():
        sys.exit(lacking)
    counted = count(options.rows.split(","), options.loop, options.jobs)
    if options.loop != "cpploop":
        print(shown(counted))
        return 0
    key = build_key()
    print(f"instructions per operation, {key}")
    baselines = stored(options.baseline)
    if options.update:
        if any(value <= 0 for figures in counted.values() for value in figures.values()):
            sys.exit(f"{shown(counted)}\n{NOTHING_COUNTED}")
        baselines[key] = baselines.get(key, {}) | counted
        options.baseline.write_text(json.dumps(baselines, indent=2, sort_keys=True) + "\n")
        print(shown(counted))
        return 0
    if key not in baselines:
        print(shown(counted))
        print(f"skipped: no baseline for {key}; --update writes one")
        return NO_BASELINE
    lines, failed = verdicts(counted, baselines[key])
    print("\n".join(lines))
    if stale := sum("STALE" in line for line in lines):
        print(f"NOTE: the baseline is stale, {stale} figures beat it by more than {LIMIT:.0%}")
    print(f"{len(lines) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
