"""Cells that are one process: a small program repeated until the time is up, or measured once.

    python benchmarks/in_process.py repeat MODULE FUNCTION LOOP
    python benchmarks/in_process.py probe FUNCTION LOOP

The function of a module of rows is given the running loop and returns a batch: something to await
that does its work and says how many operations that was. It is repeated for as many seconds as
each line of stdin says, after a first line that says it is ready. A probe is a function of
footprint_rows. What is measured is a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import harness
import loops
from catalogue import Probed, Repeated
from rounds import take_turns

Loop = asyncio.AbstractEventLoop
# Does one batch on the running loop and returns how many operations that was.
Batch = Callable[[], Awaitable[int]]
# Prepares what the batches share.
Maker = Callable[[Loop], Batch]

PROBE_LIMIT_SECONDS = 60.0
PREPARING_LIMIT_SECONDS = 60.0


def children_cpu_seconds() -> float:
    """CPU time of the children that were waited for; the rows that spawn some wait for each."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def repeat(maker: Maker, loop_name: str, orders: Iterable[str], say: Callable[[str], None]) -> None:
    """Prepare on a fresh loop and say so; then run batches for as long as each order says."""

    async def measure() -> None:
        batch = maker(loops.check_running(loop_name))
        await batch()  # Caches, freelists and pool threads exist from here on.
        say("{}")
        # The loop waits with us: nothing of it runs between two slices.
        for order in orders:
            say(json.dumps(await slice_of(batch, float(order))))

    with asyncio.Runner(loop_factory=loops.LOOPS[loop_name].load()) as runner:
        runner.run(measure())


async def slice_of(batch: Batch, seconds: float) -> dict[str, float]:
    """What batches do in that time, the last one's rest included."""
    operations = 0
    busy = harness.machine_busy_seconds()
    children = children_cpu_seconds()
    cpu, start = time.process_time(), time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        operations += await batch()
    cpu = time.process_time() - cpu
    ours = cpu + children_cpu_seconds() - children
    others = max(0.0, harness.machine_busy_seconds() - busy - ours)
    return {"operations": operations, "elapsed": elapsed, "cpu": cpu, "others": others}


def joined(slices: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A cell of what was measured in several slices, with each one's own figures."""
    whole = {name: sum(part[name] for part in slices) for name in slices[0]}
    return {
        **_figures(whole),
        "operations": whole["operations"],
        "elapsed": whole["elapsed"],
        "cpu": whole["cpu"],
        "others_busy": whole["others"] / whole["elapsed"],
        "slices": [_figures(part) for part in slices],
    }


def _figures(part: dict[str, float]) -> dict[str, float]:
    return {
        "value": part["operations"] / part["elapsed"],
        "cpu_us": part["cpu"] / part["operations"] * 1e6,
    }


class Worker:
    """A process that repeats a row's program whenever it is told to."""

    def __init__(self, run: Repeated, loop_name: str, cpu: int, prefix: Sequence[str] = ()) -> None:
        command = [sys.executable, __file__, "repeat", run.module, run.function, loop_name]
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=harness.child_environment(),
            preexec_fn=harness.pin(cpu),
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        # What it prepared may have threads that never end.
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def answer(self, limit: float) -> dict[str, Any]:
        """Its next line, or the reason why there is none."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], limit)
        if not readable:
            return {"error": "hangs"}
        try:
            found: dict[str, Any] = json.loads(self._process.stdout.readline())
        except json.JSONDecodeError:
            status = self._process.wait()
            self._errors.seek(0)
            return {"error": f"exits with {status}: {harness.last_line(self._errors.read())}"}
        return found

    def work(self, seconds: float) -> dict[str, Any]:
        """One slice."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # Its answer says why it is gone.
            self._process.stdin.write(f"{seconds}\n".encode())
            self._process.stdin.flush()
        return self.answer(seconds * 10 + 60)

    def ended(self, limit: float) -> str:
        """What it wrote to stderr, when it has come to its end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(limit)
        self._errors.seek(0)
        return self._errors.read()


def cells_in_turns(
    run: Repeated, loop_names: Sequence[str], seconds: float, slices: int, cpu: int
) -> dict[str, dict[str, Any]]:
    """A cell for each loop, in a fresh process each, whose slices are made in turns."""
    workers: dict[str, Worker] = {}
    failed: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        for name in loop_names:
            # One after the other, so that none prepares while another one does.
            worker = stack.enter_context(Worker(run, name, cpu))
            ready = worker.answer(PREPARING_LIMIT_SECONDS)
            if "error" in ready:
                failed[name] = ready
            else:
                workers[name] = worker
        answers = take_turns(
            list(workers), slices, lambda name, number: workers[name].work(seconds / slices)
        )
    return failed | {
        name: own[0] if "error" in own[0] else joined(own) for name, own in answers.items()
    }


def probe(run: Probed, loop_name: str, cpu: int) -> dict[str, Any]:
    """Measure once in a fresh process."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "probe", run.function, loop_name],
            capture_output=True,
            text=True,
            env=harness.child_environment(),
            preexec_fn=harness.pin(cpu),
            timeout=PROBE_LIMIT_SECONDS,
            check=False,
        )
        result: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": "hangs"}
    except json.JSONDecodeError:
        return {"error": f"exits with {done.returncode}: {harness.last_line(done.stderr)}"}
    return result


def main() -> None:
    def say(line: str) -> None:
        print(line, flush=True)

    match sys.argv[1:]:
        case ["repeat", module, function, loop_name]:
            maker: Maker = getattr(importlib.import_module(module), function)
            repeat(maker, loop_name, iter(sys.stdin.readline, ""), say)
        case ["probe", function, loop_name]:
            probe_function: Callable[[str], dict[str, float]] = getattr(
                importlib.import_module("footprint_rows"), function
            )
            say(json.dumps(probe_function(loop_name)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
