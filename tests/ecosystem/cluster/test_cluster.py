"""Dask distributed: scheduler, nannies, workers and client, all on the loop that is asked for.

The processes are started as its own command would start them. Under `python -m cpploop` they need
nothing else, the workers included: a nanny starts them by multiprocessing, which passes it on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from subprocess import Popen

import pytest
import work
from distributed import Client, as_completed
from processes import PATIENCE_S, free_port, kill, start

from loops import until

HERE = Path(__file__).resolve().parent
LAUNCHERS = {"asyncio": [sys.executable], "cpploop": [sys.executable, "-m", "cpploop"]}
LOOPS = {"asyncio": "asyncio.unix_events._UnixSelectorEventLoop", "cpploop": "cpploop._loop.Loop"}
WORKERS = 2


class Cluster:
    """A scheduler, and one more process with a nanny for each of two workers."""

    def __init__(self, loop_name: str, folder: Path) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.log = folder / "log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *python_path()])}

        def dask(*arguments: str) -> Popen[bytes]:
            command = [*LAUNCHERS[loop_name], "-m", "dask", *arguments, "--no-dashboard"]
            return start(command, self.log, cwd=folder, env=environment)

        port = self.address.rpartition(":")[2]
        self.scheduler = dask("scheduler", "--host", "127.0.0.1", "--port", port)
        self.workers = dask(
            *("worker", self.address, "--host", "127.0.0.1"),
            *("--nworkers", str(WORKERS), "--nthreads", "1", "--local-directory", str(folder)),
        )

    def end(self) -> None:
        for process in (self.workers, self.scheduler):
            kill(process)


def python_path() -> list[str]:
    return list(filter(None, [os.environ.get("PYTHONPATH")]))


@pytest.fixture
def cluster(loop_name: str, tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(loop_name, tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def connected(cluster: Cluster) -> Client:
    """Return a client of the cluster, on the loop that runs."""
    return Client(cluster.address, asynchronous=True, timeout=PATIENCE_S)


async def workers_there(client: Client, without: int | None = None) -> dict[int, str]:
    """Wait for both workers, and not for process WITHOUT; their processes, and the loop of each."""

    async def found() -> dict[int, str]:
        answers = await client.run(work.loop_here, on_error="ignore")
        loops = dict(answers.values())
        return loops if len(loops) == WORKERS and without not in loops else {}

    loops: dict[int, str] = await until(found)
    return loops


async def test_the_loop_of_each_process(cluster: Cluster, loop_name: str) -> None:
    async with connected(cluster) as client:
        workers = await workers_there(client)
        scheduler = await client.run_on_scheduler(work.loop_of_scheduler)
        nannies = dict((await client.run(work.loop_here, nanny=True)).values())
    assert scheduler == (cluster.scheduler.pid, LOOPS[loop_name])
    assert nannies == {cluster.workers.pid: LOOPS[loop_name]}
    assert set(workers.values()) == {LOOPS[loop_name]}
    assert len({cluster.scheduler.pid, cluster.workers.pid, os.getpid(), *workers}) == 5


async def test_a_worker_is_killed_in_the_middle(cluster: Cluster, loop_name: str) -> None:
    """What it had done and what it was doing is done again elsewhere, and the sum is right."""
    async with connected(cluster) as client:
        workers = await workers_there(client)
        parts = [client.submit(work.primes_in, i, i + 2000) for i in range(0, 120_000, 2000)]
        total = reduce(lambda left, right: client.submit(work.add, left, right), parts)
        done = as_completed(parts)
        for _ in range(15):
            await anext(done)
        assert not total.done()
        victim = next(iter(workers))
        os.kill(victim, signal.SIGKILL)
        assert await total == 11_301  # How many primes there are below 120,000.
        # Its nanny starts another in its place, on the same loop.
        after = await workers_there(client, without=victim)
        assert set(after.values()) == {LOOPS[loop_name]}
        assert len(after.keys() - workers.keys()) == 1
        # Data goes from worker to worker, and not only to those who ask.
        keys = list(await client.scatter([bytes([i]) * 1_000_000 for i in range(8)]))
        sizes = client.map(len, keys, pure=False)
        assert await client.gather(sizes) == [1_000_000] * 8


async def test_many_small_tasks(cluster: Cluster) -> None:
    async with connected(cluster) as client:
        await workers_there(client)
        futures = client.map(work.add, range(2000), range(2000))
        assert await client.gather(futures) == [2 * i for i in range(2000)]


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_ends_in_good_order(cluster: Cluster, way: signal.Signals) -> None:
    """Told so, first the workers and then the scheduler end, and leave nobody behind."""
    async with connected(cluster) as client:
        workers = await workers_there(client)
    for process in (cluster.workers, cluster.scheduler):
        process.send_signal(way)
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0, cluster.log.read_text()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in cluster.log.read_text()
