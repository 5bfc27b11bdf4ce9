"""Instructions and system calls per request, in runs of their own: both slow the server down.

A server is loaded twice, for a short and for a longer time, and the difference of the counts is
divided by the difference of the requests, so that the start and the connections fall out. Rows of
one process are repeated for as long, and counted per operation.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import callgrind
import harness
from catalogue import Repeated, Row, Served
from in_process import Worker
from served import ServedCells, ServerFailed, Window

if TYPE_CHECKING:
    from run import RowRun

# What repeats something; what is measured once has no operations to divide by.
Counted = Served | Repeated

# The seconds of load of the two runs. Under callgrind a server is some fifty times slower.
SYSCALL_WINDOWS = (0.5, 1.5)
INSTRUCTION_WINDOWS = (2.0, 6.0)
PATIENCE_SECONDS = 120.0
TABLE_SECONDS = 10.0
# The last line of strace -c: 100.00, seconds, microseconds a call, calls, perhaps errors, "total".
_TOTAL = re.compile(r"^100\.00 .*? (\d+)(?: +\d+)? total$", re.MULTILINE)


class CountFailed(Exception):
    """No figure; the message is the reason."""


def fill(runs: Sequence[RowRun], cells: ServedCells) -> None:
    """Count every row and loop that is asked for, into the rows' results."""
    lacking = [callgrind.missing()] if callgrind.missing() else []
    if shutil.which("strace") is None:
        lacking.append("strace is missing; on Debian: apt-get install strace")
    if lacking:
        raise SystemExit("\n".join(text for text in lacking if text))
    for run in runs:
        for name in run.loops:
            found = count(run.row, name, cells)
            run.results.data["counts"][name] = found
            run.results.save()
            harness.note(f"{run.row.name:22} {name:20} {found}")


def can_count(row: Row) -> bool:
    """Whether --counts has something to say of the row."""
    return isinstance(row.run, Counted)


def count(row: Row, name: str, cells: ServedCells) -> dict[str, Any]:
    """Both counts of a cell, or the reason why one is not there."""
    assert isinstance(row.run, Counted), f"{row.name} repeats nothing"
    found: dict[str, Any] = {}
    for kind, tool in (("syscalls", _syscalls), ("instructions", _instructions)):
        try:
            found[kind] = tool(row.run, name, cells)
        except CountFailed as error:
            found[f"{kind}_error"] = str(error)
    return found


def per_request(short: tuple[int, int], long: tuple[int, int]) -> float:
    """From (count, requests) of two runs."""
    requests = long[1] - short[1]
    if requests <= 0:
        raise CountFailed("the longer run did not answer more requests")
    return round((long[0] - short[0]) / requests, 3)


def _syscalls(run: Counted, name: str, cells: ServedCells) -> float:
    pairs = []
    with tempfile.TemporaryDirectory(prefix="cpploop-bench-") as folder:
        for seconds in SYSCALL_WINDOWS:
            table = Path(folder) / f"strace-{seconds}"
            # -D: the server itself is our child, and strace watches it from aside.
            prefix = ("strace", "-D", "-f", "-c", "-o", str(table))
            requests, _ = _made(run, name, cells, prefix, seconds)
            pairs.append((_total(table), requests))
    return per_request(*pairs)


def _total(table: Path) -> int:
    """The calls in what strace writes some time after the process it watched has ended."""
    deadline = time.monotonic() + TABLE_SECONDS
    while time.monotonic() < deadline:
        found = _TOTAL.search(table.read_text()) if table.exists() else None
        if found is not None:
            return int(found[1])
        time.sleep(0.05)
    raise CountFailed("strace gives no total")


def _instructions(run: Counted, name: str, cells: ServedCells) -> float:
    pairs = []
    for seconds in INSTRUCTION_WINDOWS:
        requests, stderr = _made(run, name, cells, callgrind.command(), seconds)
        collected = callgrind.instructions(stderr)
        if collected is None:
            raise CountFailed(f"callgrind gives no count: {harness.last_line(stderr)}")
        pairs.append((collected, requests))
    return per_request(*pairs)


def _made(
    run: Counted, name: str, cells: ServedCells, prefix: Sequence[str], seconds: float
) -> tuple[int, str]:
    """Requests or operations of a process that is started through `prefix`, and what it wrote."""
    if isinstance(run, Served):
        return _loaded(run, name, cells, prefix, seconds)
    return _repeated(run, name, cells, prefix, seconds)


def _loaded(
    run: Served, name: str, cells: ServedCells, prefix: Sequence[str], seconds: float
) -> tuple[int, str]:
    """Load a server that is started through `prefix`: the requests, and what it wrote."""
    try:
        with cells.serving(run, name, prefix, PATIENCE_SECONDS) as server:
            result = cells.load(run, server, Window(seconds, 0.0))
    except ServerFailed as error:
        raise CountFailed(str(error)) from None
    if result.get("errors", 1):
        raise CountFailed(result.get("error", "the load generator gave no answer"))
    return result["requests"], server.written()


def _repeated(
    run: Repeated, name: str, cells: ServedCells, prefix: Sequence[str], seconds: float
) -> tuple[int, str]:
    with Worker(run, name, cells.cores.server, prefix) as worker:
        for result in (worker.answer(PATIENCE_SECONDS), worker.work(seconds)):
            if "error" in result:
                raise CountFailed(result["error"])
        try:
            return result["operations"], worker.ended(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise CountFailed("it does not end") from None
