"""How far more loops in one process bring more requests: one loop, then one per core, in threads.

    python benchmarks/scaling.py                      # cpploop, asyncio, uvloop, where they run
    python benchmarks/scaling.py --loops cpploop --threads 1,2,4 --seconds 10

Every thread has a loop of its own, which serves an echo on one port that all share (SO_REUSEPORT)
and has clients of its own that ask there; so the kernel spreads the connections over the loops, and
no process beside this one computes. Every answer is looked at. On a free-threaded Python two loops
may come near to twice one loop's requests; with the lock they cannot, and that is the comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

from loops import LOOPS, LoopFactory, LoopUnavailableError
from protocols import EchoProtocol

MESSAGE = bytes(range(256)) * 4


class Client(asyncio.Protocol):
    """Asks, looks at the answer, and asks again."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.answers = 0
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def ask(self) -> None:
        self.transport.write(MESSAGE)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) >= len(MESSAGE):
            if self.received != MESSAGE:
                raise AssertionError("an answer is not what was asked")
            self.received = b""
            self.answers += 1
            self.ask()


class Worker(threading.Thread):
    """A thread with a loop: its server, its clients, and how many answers they got."""

    def __init__(
        self, factory: LoopFactory, port: int, plan: Plan, gate: threading.Barrier
    ) -> None:
        super().__init__(daemon=True)
        self.factory = factory
        self.port = port
        self.plan = plan
        self.gate = gate
        self.rate = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self.factory) as runner:
                self.rate = runner.run(self.measure())
        except BaseException as error:
            self.error = error
            self.gate.abort()

    async def measure(self) -> float:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(EchoProtocol, "127.0.0.1", self.port, reuse_port=True)
        # All listen before anybody connects, so that the connections are spread over all.
        await loop.run_in_executor(None, self.gate.wait)
        clients = [
            (await loop.create_connection(Client, "127.0.0.1", self.port))[1]
            for _ in range(self.plan.connections)
        ]
        await loop.run_in_executor(None, self.gate.wait)
        for client in clients:
            client.ask()
        await asyncio.sleep(self.plan.warm_up)
        before, started = sum(client.answers for client in clients), time.perf_counter()
        await asyncio.sleep(self.plan.seconds)
        rate = (sum(client.answers for client in clients) - before) / (
            time.perf_counter() - started
        )
        # The others measure until here, too, and some of their connections are served by this loop.
        await loop.run_in_executor(None, self.gate.wait)
        for client in clients:
            client.transport.abort()
        server.close()
        await asyncio.sleep(0.05)
        return rate


class Plan(argparse.Namespace):
    loops: str
    threads: str
    seconds: float
    warm_up: float
    connections: int
    one: str | None


def gil_enabled() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def measure_one(name: str, count: int, plan: Plan) -> dict[str, Any]:
    """Requests/s of COUNT loops called NAME in this process."""
    factory = LOOPS[name].load()
    gate = threading.Barrier(count)
    with socket.socket() as holder:
        # Bound and not listening: it reserves the port for the servers.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        workers = [Worker(factory, holder.getsockname()[1], plan, gate) for _ in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for worker in workers:
        if worker.error is not None and not isinstance(worker.error, threading.BrokenBarrierError):
            raise worker.error
    return {"rate": sum(worker.rate for worker in workers), "gil": gil_enabled()}


def measure_apart(name: str, count: int) -> dict[str, Any] | str:
    """The same in a process of its own, or the reason why there is no figure.

    A loop whose module needs the lock turns it on for the whole process.
    """
    done = subprocess.run(
        [sys.executable, *sys.argv, "--one", f"{name}:{count}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["no output"])[-1]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def parse() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", default="cpploop,asyncio,uvloop")
    parser.add_argument("--threads", default="1,2", help="how many loops, one measurement for each")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=32, help="of each loop's own clients")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(namespace=Plan())


def main() -> int:
    plan = parse()
    if plan.one is not None:
        name, count = plan.one.split(":")
        try:
            print(json.dumps(measure_one(name, int(count), plan)))
        except LoopUnavailableError as error:
            sys.exit(str(error))
        return 0
    print(
        f"Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} cores, the lock is "
        f"{'on' if gil_enabled() else 'off'}; {plan.connections} connections a loop, "
        f"{len(MESSAGE)} bytes, {plan.seconds:g} s each"
    )
    failed = False
    for name in plan.loops.split(","):
        single = None
        for count in map(int, plan.threads.split(",")):
            result = measure_apart(name, count)
            if isinstance(result, str):
                print(f"{name:10} {count} loops: no figure: {result}", flush=True)
                failed = failed or name == "cpploop"
                continue
            single = single or result["rate"]
            note = "" if result["gil"] == gil_enabled() else ", which turned the lock on"
            print(
                f"{name:10} {count} loops: {result['rate']:10,.0f} requests/s, "
                f"{result['rate'] / single:.2f} times the first{note}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
