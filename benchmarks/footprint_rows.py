"""Rows about memory and the start: what an idle connection holds, what a timer, what a loop costs.

Each function is called once in a fresh process and measures on its own. The other side of the
connections is a child process, so that what it holds is not counted.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
import loops

CONNECTIONS = 2000
TLS_CONNECTIONS = 300
TIMERS = 100_000
LOOPS_MADE = 200
IMPORTS = 5
PAGE = os.sysconf("SC_PAGE_SIZE")

Figures = dict[str, float]


class Idle(asyncio.Protocol):
    """A connection on which nothing happens."""


def connection_memory(name: str) -> Figures:
    """What the process grows by for each idle connection to a server of the loop's."""
    return _per_connection(name, CONNECTIONS, None)


def tls_connection_memory(name: str) -> Figures:
    """The same over TLS, after the handshake."""
    with tempfile.TemporaryDirectory(prefix="cpploop-bench-") as folder:
        certificate = harness.make_certificate(Path(folder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    return _per_connection(name, TLS_CONNECTIONS, context)


def _per_connection(name: str, count: int, context: ssl.SSLContext | None) -> Figures:
    _allow_descriptors(count + 100)
    arrived = 0
    all_there: asyncio.Future[None]

    class Counted(Idle):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal arrived
            arrived += 1
            if arrived in (1, count + 1):
                all_there.set_result(None)

    async def measure(ask: Callable[[int, int], None]) -> Figures:
        nonlocal all_there
        loop = loops.check_running(name)
        server = await loop.create_server(Counted, "127.0.0.1", 0, backlog=1024, ssl=context)
        port = server.sockets[0].getsockname()[1]
        # The first one pays for what all of them share.
        for wanted in (1, count):
            before = _rss_bytes()
            all_there = loop.create_future()
            ask(port, wanted)
            await asyncio.wait_for(all_there, 30)
            await asyncio.sleep(0.05)
        return {"value": (_rss_bytes() - before) / count / 1024, "connections": count}

    with _Clients(context is not None) as clients:
        with asyncio.Runner(loop_factory=loops.LOOPS[name].load()) as runner:
            return runner.run(measure(clients.ask))


class _Clients:
    """A child process that holds connections; forked before the loop exists."""

    def __init__(self, tls: bool) -> None:
        self._tls = tls

    def __enter__(self) -> _Clients:
        read_end, self._orders = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._orders)
            with open(read_end) as orders:
                self._work(orders)
            os._exit(0)
        os.close(read_end)
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._orders)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def ask(self, port: int, count: int) -> None:
        """Open that many more connections and keep them."""
        os.write(self._orders, f"{port} {count}\n".encode())

    def _work(self, orders: object) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        kept: list[socket.socket] = []
        for line in orders:  # type: ignore[attr-defined]
            port, count = map(int, line.split())
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", port))
                kept.append(context.wrap_socket(sock) if self._tls else sock)


def timer_memory(name: str) -> Figures:
    """What each pending call_later() holds, the handle that nobody keeps included."""

    async def measure() -> Figures:
        loop = loops.check_running(name)
        loop.call_later(3600, _nothing)
        before = _rss_bytes()
        for number in range(TIMERS):
            loop.call_later(3600 + number, _nothing)
        return {"value": (_rss_bytes() - before) / TIMERS, "timers": TIMERS}

    with asyncio.Runner(loop_factory=loops.LOOPS[name].load()) as runner:
        return runner.run(measure())


def import_time(name: str) -> Figures:
    """CPU time of a Python that imports asyncio and the loop, and ends: the least of some."""
    spec = loops.LOOPS[name]
    modules = [module for module in ("asyncio", spec.module, spec.addon) if module]
    times = []
    for _ in range(IMPORTS):
        before = _children_cpu()
        subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
        times.append((_children_cpu() - before) * 1e3)
    return {"value": min(times)}


def loop_creation(name: str) -> Figures:
    """Loops made and closed per second, one after the other."""
    factory = loops.LOOPS[name].load()
    factory().close()
    cpu, start = time.process_time(), time.perf_counter()
    for _ in range(LOOPS_MADE):
        factory().close()
    elapsed = time.perf_counter() - start
    cpu = time.process_time() - cpu
    return {"value": LOOPS_MADE / elapsed, "cpu_us": cpu / LOOPS_MADE * 1e6}


def _nothing() -> None:
    pass


def _rss_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _allow_descriptors(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY and hard < count else count
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
