#!/usr/bin/env python3
"""Many small tasks on a Dask cluster of this machine: its default loop and others.

    benchmarks/dask_tasks.py                             all loops that are there, five rounds
    benchmarks/dask_tasks.py --loops asyncio,cpploop --rounds 9 --tasks 5000
    benchmarks/dask_tasks.py --quick                     a smoke test

Needs distributed and cpploop in the Python that runs it (requirements/ecosystem-dask.txt). A
cluster has a scheduler and two workers of one thread; every round starts one for each loop, in an
order that turns with the rounds. Which loop runs in each process is asked, not believed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

LAUNCHERS = {
    "asyncio": [sys.executable],
    "uvloop": [sys.executable],
    "cpploop": [sys.executable, "-m", "cpploop"],
}
WORKERS = 2
CHAIN = 200


def add(left: int, right: int) -> int:
    """Do next to nothing, because the time of what is around it is asked for."""
    return left + right


async def loop_here(dask_scheduler: Any = None) -> str:
    """Return the package of the loop that runs this; the scheduler passes itself."""
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def independent(client: Any, tasks: int) -> int:
    """Tasks that wait for nobody: the scheduler hands them out as fast as it can."""
    futures = client.map(add, range(tasks), [1] * tasks, pure=False)
    assert sum(client.gather(futures)) == tasks * (tasks + 1) // 2
    return tasks


def tree(client: Any, tasks: int) -> int:
    """A sum by pairs: half of the tasks wait for others, and values go between the workers."""
    layer, count = client.map(add, range(tasks), [0] * tasks, pure=False), tasks
    while len(layer) > 1:
        odd = layer[len(layer) // 2 * 2 :]
        layer = client.map(add, layer[:-1:2], layer[1::2], pure=False) + odd
        count += len(layer) - len(odd)
    assert layer[0].result() == tasks * (tasks - 1) // 2
    return count


def chain(client: Any, tasks: int) -> int:
    """One task after the other, each asked for when its forerunner has answered."""
    value = 0
    for _ in range(CHAIN):
        value = client.submit(add, value, 1, pure=False).result()
    assert value == CHAIN
    return CHAIN


WORKLOADS: dict[str, Callable[[Any, int], int]] = {
    "independent": independent,
    "tree": tree,
    "chain": chain,
}


def measure(loop: str, tasks: int) -> dict[str, float]:
    """Make a cluster on the loop, and return the tasks per second of each workload."""
    import dask
    from distributed import Client, LocalCluster

    settings = {"distributed.admin.event-loop": "uvloop" if loop == "uvloop" else "tornado"}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        loops = [client.run_on_scheduler(loop_here), *client.run(loop_here).values()]
        assert loops == [loop] * (1 + WORKERS), f"{loop}: {loops}"
        # Connections are made and modules imported by the first tasks.
        independent(client, 200)
        rates = {}
        for name, workload in WORKLOADS.items():
            started = time.perf_counter()
            done = workload(client, tasks)
            rates[name] = done / (time.perf_counter() - started)
        return rates


def run_in_a_process(loop: str, tasks: int) -> dict[str, float]:
    command = [*LAUNCHERS[loop], __file__, "--measure", loop, "--tasks", str(tasks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def available(loop: str) -> bool:
    if loop == "asyncio":
        return True
    tried = subprocess.run([sys.executable, "-c", f"import {loop}"], capture_output=True)
    return tried.returncode == 0


def print_table(results: dict[str, list[dict[str, float]]]) -> None:
    """Medians in tasks per second, and the ratio to the default loop in the same round."""
    print(f"{'tasks/s':14}" + "".join(f"{loop:>22}" for loop in results))
    for name in WORKLOADS:
        line = f"{name:14}"
        for rounds in results.values():
            rates = [rates[name] for rates in rounds]
            line += f"{statistics.median(rates):12.0f}"
            if "asyncio" in results:
                base = [rates[name] for rates in results["asyncio"]]
                ratio = statistics.median(a / b for a, b in zip(rates, base, strict=True))
                line += f"  x {ratio:4.2f}  "
        print(line)


def main() -> None:
    """Run the rounds; each measurement is a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loops", default=",".join(LAUNCHERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="one round of few tasks")
    parser.add_argument("--measure", choices=LAUNCHERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tasks)))
        return
    if arguments.quick:
        arguments.rounds, arguments.tasks = 1, 300
    loops = [loop for loop in arguments.loops.split(",") if available(loop)]
    results: dict[str, list[dict[str, float]]] = {loop: [] for loop in loops}
    for turn in range(arguments.rounds):
        first = turn % len(loops)
        for loop in loops[first:] + loops[:first]:
            results[loop].append(run_in_a_process(loop, arguments.tasks))
            print(f"round {turn + 1}, {loop}: {results[loop][-1]}", file=sys.stderr)
    print_table(results)


if __name__ == "__main__":
    main()
