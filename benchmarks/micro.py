"""What a loop costs inside one process: scheduling, timers, tasks, threads, and the kernel rows.

    python benchmarks/micro.py [--quick] [--rows 'call_soon*'] [--loops uvloop,cpploop]

Each cell is a fresh process on one core that repeats one small program until the time is up.
Everything else is as in run.py: interleaved rounds, asyncio as the control, the same options.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import harness
import io_rows
import loops
import report
import sock_rows

Loop = asyncio.AbstractEventLoop
# Does one batch on the running loop and returns how many operations that was.
Batch = Callable[[], Awaitable[int]]
# Prepares what the batches share.
Maker = Callable[[Loop], Batch]

BATCH = 10_000
TIMERS = 100_000
BURST = 1_000
PENDING_TIMEOUTS = 1_000
PROCESS_SECONDS = 0.35  # About what starting the process and importing the loop takes.


class Counter:
    """A callback that counts its calls and ends the batch with the last one."""

    def __init__(self, loop: Loop, expected: int) -> None:
        self.done: asyncio.Future[None] = loop.create_future()
        self._left = expected

    def __call__(self, *args: object) -> None:
        self._left -= 1
        if self._left == 0:
            self.done.set_result(None)
        assert self._left >= 0, "a callback ran twice"


def nothing(*args: object) -> None:
    """A callback that does nothing."""


async def nothing_async() -> None:
    """A task that does nothing."""


def call_soon(loop: Loop) -> Batch:
    async def batch() -> int:
        schedule = loop.call_soon
        for _ in range(BATCH):
            schedule(nothing)
        await _behind(loop)
        return BATCH

    return batch


def call_soon_3_args(loop: Loop) -> Batch:
    async def batch() -> int:
        schedule = loop.call_soon
        for _ in range(BATCH):
            schedule(nothing, 1, 2, 3)
        await _behind(loop)
        return BATCH

    return batch


async def _behind(loop: Loop) -> None:
    """Wait for what is ready now: a callback queued last runs last."""
    done: asyncio.Future[None] = loop.create_future()
    loop.call_soon(done.set_result, None)
    await done


def call_soon_chained(loop: Loop) -> Batch:
    async def batch() -> int:
        done: asyncio.Future[None] = loop.create_future()
        schedule = loop.call_soon

        def step(left: int) -> None:
            if left:
                schedule(step, left - 1)
            else:
                done.set_result(None)

        schedule(step, BATCH)
        await done
        return BATCH

    return batch


def call_later_cancel(loop: Loop) -> Batch:
    """The life of time-outs: each is cancelled long before it is due, a thousand are pending."""
    pending: collections.deque[asyncio.TimerHandle] = collections.deque()

    async def batch() -> int:
        schedule = loop.call_later
        while len(pending) < PENDING_TIMEOUTS:
            pending.append(schedule(60.0, nothing))
        for _ in range(BATCH):
            pending.popleft().cancel()
            pending.append(schedule(60.0, nothing))
        await asyncio.sleep(0)
        return BATCH

    return batch


def timers_100k(loop: Loop) -> Batch:
    """Scheduling and firing, with deadlines in no order that are all past when firing begins."""
    rng = random.Random(42)
    delays = [rng.uniform(0, 0.005) for _ in range(TIMERS)]

    async def batch() -> int:
        counter = Counter(loop, TIMERS)
        schedule = loop.call_later
        for delay in delays:
            schedule(delay, counter)
        await counter.done
        return TIMERS

    return batch


def call_soon_threadsafe(loop: Loop) -> Batch:
    """Bursts from another thread, as a pool delivers its results."""
    orders: queue.SimpleQueue[Counter] = queue.SimpleQueue()

    def work() -> None:
        schedule = loop.call_soon_threadsafe
        while True:
            counter = orders.get()
            for _ in range(BURST):
                schedule(counter)

    threading.Thread(target=work, daemon=True).start()

    async def batch() -> int:
        counter = Counter(loop, BURST)
        orders.put(counter)
        await counter.done
        return BURST

    return batch


def sleep_0(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(BATCH):
            await asyncio.sleep(0)
        return BATCH

    return batch


def gather_100(loop: Loop) -> Batch:
    """Counted in tasks."""

    async def batch() -> int:
        for _ in range(10):
            await asyncio.gather(*[nothing_async() for _ in range(100)])
        return 1000

    return batch


def run_in_executor(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(100):
            await loop.run_in_executor(None, nothing)
        return 100

    return batch


def getaddrinfo_literal(loop: Loop) -> Batch:
    async def batch() -> int:
        for _ in range(100):
            found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
        assert tuple(found[0][4]) == ("127.0.0.1", 80), found
        return 100

    return batch


MAKERS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        call_soon,
        call_soon_3_args,
        call_soon_chained,
        call_later_cancel,
        timers_100k,
        call_soon_threadsafe,
        sleep_0,
        gather_100,
        run_in_executor,
        getaddrinfo_literal,
        *io_rows.MAKERS,
        *sock_rows.MAKERS,
    )
}
GROUPS = {"default": list(MAKERS), "all": list(MAKERS)}


def child(row: str, name: str, seconds: float) -> None:
    """Measure one cell in this process and print it."""

    async def repeat() -> dict[str, float]:
        batch = MAKERS[row](loops.check_running(name))
        await batch()  # Caches, freelists and pool threads exist from here on.
        operations = 0
        busy = harness.machine_busy_seconds()
        cpu, start = time.process_time(), time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            operations += await batch()
        cpu = time.process_time() - cpu
        others = max(0.0, harness.machine_busy_seconds() - busy - cpu) / elapsed
        return {"operations": operations, "elapsed": elapsed, "cpu": cpu, "others_busy": others}

    with asyncio.Runner(loop_factory=loops.LOOPS[name].load()) as runner:
        print(json.dumps(runner.run(repeat())), flush=True)


def cell(row: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell in a fresh process."""
    command = [sys.executable, __file__, "--child", row, name, str(options.seconds)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=harness.child_environment(),
            preexec_fn=harness.pin(options.server_cpu),
            timeout=options.seconds * 10 + 60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": "hangs"}
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError:
        return {"error": f"exits with {done.returncode}: {harness.last_line(done.stderr)}"}
    operations = result["operations"]
    return {
        "value": operations / result["elapsed"],
        "cpu_us": result["cpu"] / operations * 1e6,
        **result,
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_common_options(parser, rounds=5, seconds=0.5)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 0.2
    if options.loops == "*":
        # A package that only brings transports schedules as its host does.
        hosts = [name for name, spec in loops.LOOPS.items() if spec.addon is None]
        options.loops = "asyncio,uvloop,zuvloop,cpploop" if options.quick else ",".join(hosts)
    return options


def plan(options: argparse.Namespace) -> harness.Results:
    """The results file to fill: a new one, or the one to resume with its own settings."""
    if options.resume:
        results = harness.Results.load(options.resume)
        for name, value in results.data["plan"].items():
            setattr(options, name, value)
        return results
    facts = {
        "unit": "operation",
        "plan": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "server_cpu": options.server_cpu,
        },
        "rows": harness.choose(options.rows, list(MAKERS), GROUPS),
        "loops": harness.probe_loops(harness.choose(options.loops, list(loops.LOOPS), {})),
    }
    return harness.Results.start(options.json, "micro", facts)


def measure(options: argparse.Namespace, results: harness.Results) -> None:
    """Fill every cell that is not there yet."""
    data = results.data
    names = [name for name, found in data["loops"].items() if "version" in found]
    cells = [
        (number, row, name)
        for number, row, name in harness.interleave(data["rows"], names, options.rounds)
        if not results.has(row, name, number)
    ]
    minutes = len(cells) * (options.seconds + PROCESS_SECONDS) / 60
    harness.note(f"{len(cells)} cells, about {minutes:.0f} minutes, into {results.path.name}")
    for number, row, name in cells:
        harness.wait_until_idle(options.wait_idle)
        measured = cell(row, name, options)
        results.add({"row": row, "loop": name, "round": number, **measured})
        text = measured.get("error") or f"{measured['value']:12.0f}/s"
        harness.note(f"{number + 1}  {row:22} {name:20} {text}")


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3], float(sys.argv[4]))
        return 0
    options = parse_options()
    if options.list:
        print(f"rows: {' '.join(MAKERS)}\nloops: {' '.join(loops.LOOPS)}")
        return 0
    if options.report:
        results = harness.Results.load(options.report)
    else:
        harness.end_cleanly_on_sigterm()
        harness.check_cpus(options.server_cpu)
        results = plan(options)
        measure(options, results)
    text = report.markdown(results.data)
    if options.markdown:
        options.markdown.write_text(text)
    print(text)
    ours_failed = any(
        "error" in found and found["loop"] == report.SUBJECT for found in results.data["cells"]
    )
    return 1 if ours_failed else 0


if __name__ == "__main__":
    sys.exit(main())
