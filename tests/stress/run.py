"""Thousands of short connections with tagged payloads, cancelled at every await, under faults.

    python tests/stress/run.py --seconds 300 [--seed N] [--only tls,sock_*] [--loop asyncio]

TCP, Unix and TLS connections, made in every way there is, are cancelled at random awaits, while a
second thread opens and closes descriptors so that their numbers are used again at once. A byte on
the wrong connection, a second connection_lost(), a descriptor that is left or closed for somebody
else, a hang, a loop that spins: each fails. On a cpploop that was built with CPPLOOP_FAULTS the
system calls fail as well (docs/dev/stress.md), and its account of descriptors must come out even.
The seed is printed; the exit status is 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import random
import socket
import ssl
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "python"))

import support
from churn import Churn
from clients import Clients
from tagged import Account

from servers import Servers

WORKERS = 24
# A loop lives so long; the next one finds the numbers of the one before.
PHASE_S = 4.0
# Longer than a rest of a server that is out of descriptors, and than asyncio's closing of TLS.
HANG_S = 40.0
CANCEL_SHARE = 0.5
# Awaits of one connection; what is cancelled later than that has come to its end.
AWAITS_MAX = 14
# The shares of the system calls that fail, by phase: benign, pressure, hard.
PLANS = ((0.05, 0.05, 0.0), (0.0, 0.0, 0.0), (0.02, 0.02, 0.015), (0.3, 0.3, 0.0))
# One loop in so many is in debug mode, where alone a server tells of handshakes that failed. Not a
# divisor of the number of plans: each plan has its turn.
DEBUG_EVERY = 3
IDLE_S = 0.3
IDLE_CPU_SHARE = 0.5


@types.coroutine
def _watched(coroutine: Any, at: int, cancel: Callable[[], object]) -> Iterator[Any]:
    """COROUTINE; when it waits for the AT-th time, CANCEL is called."""
    value, error, step = None, None, 0
    try:
        while True:
            try:
                waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            step += 1
            if step == at:
                cancel()
            value = error = None
            try:
                value = yield waits_for
            except GeneratorExit:
                raise
            except BaseException as exc:
                error = exc
    finally:
        coroutine.close()
        error = None


async def watched(coroutine: Any, at: int, cancel: Callable[[], object]) -> Any:
    return await _watched(coroutine, at, cancel)


def _waits_in(coroutine: Any) -> Iterator[str]:
    """Where a coroutine waits, from the outside to the inside."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        yield f"{frame.f_code.co_name}:{frame.f_lineno}" if frame is not None else repr(coroutine)
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


class Phase:
    """One loop, its servers and its clients."""

    def __init__(self, run: Run, rng: random.Random, hard: bool) -> None:
        self.run = run
        self.account = run.account
        self.random = rng
        self.hard = hard
        self.stop_at = 0.0

    async def main(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_error)
        self.stop_at = time.monotonic() + seconds
        with tempfile.TemporaryDirectory(prefix="st-") as folder:
            tls = self.run.contexts
            servers = Servers(self.account, self.random, Path(folder), tls[0])
            await servers.start()
            clients = Clients(self.account, self.random, servers, tls[1])
            await asyncio.gather(*(self._worker(clients) for _ in range(WORKERS)))
            await self._all_lost(clients, servers)
            await self._idles()
            await servers.stop()

    async def _worker(self, clients: Clients) -> None:
        while time.monotonic() < self.stop_at and not self.account.problems:
            await self._one(clients, self.random.choice(self.run.ways))

    async def _one(self, clients: Clients, way: str) -> None:
        loop = asyncio.get_running_loop()
        number = self.account.next_number()
        cancels = self.random.random() < CANCEL_SHARE
        at = self.random.randrange(1, AWAITS_MAX) if cancels else 0
        how = self.random.randrange(3)

        def cancel() -> None:
            if how == 0:
                task.cancel()
            elif how == 1:
                loop.call_soon(task.cancel)
            else:
                loop.call_later(self.random.random() * 0.002, task.cancel)

        coroutine = clients.ways[way](number)
        task = loop.create_task(watched(coroutine, at, cancel))
        done, _ = await asyncio.wait({task}, timeout=HANG_S)
        if not done:
            where = " / ".join(_waits_in(coroutine))
            self.account.problem(f"{way}: connection {number} hangs, cancelled={cancels}: {where}")
            task.cancel()
            return
        self._judge(way, task, cancels)

    def _judge(self, way: str, task: asyncio.Task[bool], cancels: bool) -> None:
        self.account.connections[way] += 1
        try:
            complete = task.result()
        except asyncio.CancelledError:
            self.account.cancelled[way] += 1
            return
        except OSError as exc:
            self.account.failed[way] += 1
            self.account.ended_by(exc, way)
            if not self.hard and not cancels:
                text = "".join(traceback.format_exception(exc))
                self.account.problem(f"{way}: failed although nobody disturbed it\n{text}")
            return
        if not complete:
            self.account.failed[way] += 1
            if not self.hard and not cancels:
                self.account.problem(f"{way}: the answer was cut short without a reason")

    async def _all_lost(self, clients: Clients, servers: Servers) -> None:
        """Every protocol is told of its end, and told once."""
        deadline = time.monotonic() + HANG_S
        while (clients.living or servers.open) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for name, left in (("client", clients.living), ("server", servers.open)):
            if left:
                self.account.problem(f"{len(left)} {name} protocols were never told of their end")

    async def _idles(self) -> None:
        cpu, wall = time.thread_time(), time.monotonic()
        await asyncio.sleep(IDLE_S)
        share = (time.thread_time() - cpu) / (time.monotonic() - wall)
        if share > IDLE_CPU_SHARE:
            self.account.problem(f"the idle loop uses {share:.0%} of a processor")

    def _on_error(self, loop: Any, context: dict[str, Any]) -> None:
        exc = context.get("exception")
        # What ends a handshake is told there, and what the faults have done to a server.
        if exc is None:
            self.account.problem(f"exception handler: {context.get('message')}")
        elif not isinstance(exc, asyncio.CancelledError):
            self.account.ended_by(exc, f"exception handler: {context.get('message')}")


class Run:
    """All phases, and the account of them."""

    def __init__(self, arguments: argparse.Namespace, contexts: Any) -> None:
        self.seed: int = arguments.seed
        self.account = Account()
        self.contexts = contexts
        self.factory = support.factory(arguments.loop)
        self.native = _native_of(arguments.loop)
        self.ways: list[str] = arguments.only
        self.churned = self.phases = 0

    def go(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.account.problems:
            self._phase(min(PHASE_S, end - time.monotonic()))
            self.phases += 1

    def _phase(self, seconds: float) -> None:
        seed = self.seed + self.phases
        rates = PLANS[self.phases % len(PLANS)] if self.native is not None else (0.0, 0.0, 0.0)
        phase = Phase(self, random.Random(seed), hard=rates[2] > 0)
        self.account.hard = phase.hard
        debug = self.phases % DEBUG_EVERY == DEBUG_EVERY - 1
        before = _descriptors()
        owned = self.native._ledger_figures()["owned"] if self.native is not None else 0
        with (
            Churn(self.account, seed) as churn,
            asyncio.Runner(loop_factory=self.factory, debug=debug) as runner,
        ):
            # The loop itself is made without faults: that it may fail is no news.
            runner.get_loop().slow_callback_duration = HANG_S
            self._inject(seed, rates)
            try:
                runner.run(phase.main(seconds))
            finally:
                self._inject(0, (0.0, 0.0, 0.0))
        self.churned += churn.opened
        gc.collect()
        left = _descriptors() - before
        if left > 0:
            self.account.problem(f"{left} descriptors are left open")
        if self.native is not None and self.native._ledger_figures()["owned"] != owned:
            self.account.problem(f"the account is uneven: {self.native._ledger_figures()}")

    def _inject(self, seed: int, rates: tuple[float, float, float]) -> None:
        if self.native is not None:
            self.native._set_faults(seed, *rates)

    def report(self, seconds: float) -> int:
        account = self.account
        print(f"{'way':<26}{'connections':>12}{'cancelled':>12}{'failed':>12}")
        for way in self.ways:
            counts = (account.connections[way], account.cancelled[way], account.failed[way])
            print(f"{way:<26}" + "".join(f"{count:>12,}" for count in counts))
        print(f"{self.churned:,} descriptors opened and closed by the other thread")
        if self.native is not None:
            for name, figures in (
                ("faults", self.native._fault_figures()),
                ("descriptors", self.native._ledger_figures()),
            ):
                print(f"{name}:", ", ".join(f"{key} {value:,}" for key, value in figures.items()))
        for problem in account.problems:
            print("WRONG:", problem)
        print(
            f"stress: seed {self.seed}, {seconds:.0f} s, {self.phases} loops, "
            f"{account.connections.total():,} connections, "
            f"{account.bytes_checked:,} bytes checked, "
            f"{account.cancelled.total():,} cancelled, {len(account.problems)} wrong"
        )
        return 1 if account.problems else 0


def _native_of(name: str) -> Any:
    """What sets the faults, where this build has it."""
    if name == "asyncio":
        return None
    from cpploop import _native

    if hasattr(_native, "_set_faults"):
        return _native
    print("no faults and no account: this cpploop was built without CPPLOOP_FAULTS")
    return None


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    with tempfile.TemporaryDirectory() as folder:
        certificates = support.make_certificates(Path(folder))
        return certificates.server_context(), certificates.client_context()


def main() -> int:
    ways = list(Clients(Account(), random.Random(), None, None).ways)  # type: ignore[arg-type]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--loop", choices=("cpploop", "asyncio"), default="cpploop")
    parser.add_argument("--only", default=",".join(ways), help="some of %(default)s")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(ways):
        parser.error(f"no such way to a connection: {', '.join(sorted(unknown))}")
    print(
        "Python", sys.version.split()[0], "·", arguments.loop, "· seed", arguments.seed, flush=True
    )
    faulthandler.enable()
    # A hang that even the time-outs do not end tells where it is.
    faulthandler.dump_traceback_later(arguments.seconds + 3 * HANG_S, exit=True)
    # The other thread is to come in between everywhere.
    sys.setswitchinterval(0.0005)
    socket.setdefaulttimeout(None)
    run = Run(arguments, _contexts())
    begun = time.monotonic()
    run.go(arguments.seconds)
    return run.report(time.monotonic() - begun)


if __name__ == "__main__":
    sys.exit(main())
