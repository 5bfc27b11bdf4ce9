"""Cells that are one process: a small program repeated until the time is up, or measured once.

    python benchmarks/in_process.py repeat MODULE FUNCTION LOOP SECONDS
    python benchmarks/in_process.py probe FUNCTION LOOP

The function of a module of rows is given the running loop and returns a batch: something to await
that does its work and says how many operations that was. A probe is a function of footprint_rows.
Either prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import harness
import loops
from catalogue import Probed, Repeated

Loop = asyncio.AbstractEventLoop
# Does one batch on the running loop and returns how many operations that was.
Batch = Callable[[], Awaitable[int]]
# Prepares what the batches share.
Maker = Callable[[Loop], Batch]

PROBE_LIMIT_SECONDS = 60.0


def children_cpu_seconds() -> float:
    """CPU time of the children that were waited for; the rows that spawn some wait for each."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def repeat(maker: Maker, loop_name: str, seconds: float) -> dict[str, float]:
    """Run batches on a fresh loop for that long."""

    async def measure() -> dict[str, float]:
        batch = maker(loops.check_running(loop_name))
        await batch()  # Caches, freelists and pool threads exist from here on.
        operations = 0
        busy = harness.machine_busy_seconds()
        children = children_cpu_seconds()
        cpu, start = time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            operations += await batch()
        cpu = time.process_time() - cpu
        ours = cpu + children_cpu_seconds() - children
        others = max(0.0, harness.machine_busy_seconds() - busy - ours) / elapsed
        return {
            "value": operations / elapsed,
            "cpu_us": cpu / operations * 1e6,
            "operations": operations,
            "elapsed": elapsed,
            "cpu": cpu,
            "others_busy": others,
        }

    with asyncio.Runner(loop_factory=loops.LOOPS[loop_name].load()) as runner:
        return runner.run(measure())


def cell(run: Repeated | Probed, loop_name: str, seconds: float, cpu: int) -> dict[str, Any]:
    """Measure one cell in a fresh process."""
    if isinstance(run, Repeated):
        arguments = ["repeat", run.module, run.function, loop_name, str(seconds)]
        limit = seconds * 10 + 60
    else:
        arguments = ["probe", run.function, loop_name]
        limit = PROBE_LIMIT_SECONDS
    try:
        done = subprocess.run(
            [sys.executable, __file__, *arguments],
            capture_output=True,
            text=True,
            env=harness.child_environment(),
            preexec_fn=harness.pin(cpu),
            timeout=limit,
            check=False,
        )
        result: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": "hangs"}
    except json.JSONDecodeError:
        return {"error": f"exits with {done.returncode}: {harness.last_line(done.stderr)}"}
    return result


def main() -> None:
    match sys.argv[1:]:
        case ["repeat", module, function, loop_name, seconds]:
            maker: Maker = getattr(importlib.import_module(module), function)
            result = repeat(maker, loop_name, float(seconds))
        case ["probe", function, loop_name]:
            probe: Callable[[str], dict[str, float]] = getattr(
                importlib.import_module("footprint_rows"), function
            )
            result = probe(loop_name)
        case _:
            sys.exit(__doc__)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
