"""Servers and launchers: which loop serves, and what becomes of requests when they are told to end.

Run by `tests/ecosystem/run.py servers`, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, eventually, free_port, kill, start

HERE = Path(__file__).resolve().parent
REQUESTS = 8

PYTHON = [sys.executable]
LAUNCHER = [*PYTHON, "-m", "cpploop"]
FACTORY = "cpploop:new_event_loop"
APP = "served_app:app"

RUN_AIOHTTP = """
import sys, cpploop, served_app
from aiohttp import web
web.run_app(served_app.make_aiohttp(), host="127.0.0.1", port=int(sys.argv[1]),
            loop=cpploop.new_event_loop())
"""

# Each: the command that serves on a port, how many processes serve.
SERVERS: dict[str, tuple[Callable[[str], list[str]], int]] = {
    "uvicorn": (
        lambda port: [*PYTHON, "-m", "uvicorn", APP, "--loop", FACTORY, "--port", port],
        1,
    ),
    "uvicorn-workers": (
        lambda port: [
            *(*PYTHON, "-m", "uvicorn", APP, "--loop", FACTORY, "--port", port),
            *("--workers", "2"),
        ],
        2,
    ),
    "gunicorn": (
        lambda port: [
            *(*PYTHON, "-m", "gunicorn", APP, "-k", "served_app.CpploopWorker"),
            *("-b", f"127.0.0.1:{port}", "-w", "2", "--no-control-socket"),
        ],
        2,
    ),
    "hypercorn": (
        lambda port: [
            *(*LAUNCHER, "-m", "hypercorn", APP, "-b", f"127.0.0.1:{port}"),
            *("--graceful-timeout", "10"),
        ],
        1,
    ),
    "granian": (
        lambda port: [
            *(*LAUNCHER, "-m", "granian", "--interface", "asgi", "--loop", "asyncio"),
            *("--port", port, "--workers", "2", APP),
        ],
        2,
    ),
    "aiohttp": (lambda port: [*PYTHON, "-c", RUN_AIOHTTP, port], 1),
    "aiohttp-launcher": (
        lambda port: [
            *(*LAUNCHER, "-m", "aiohttp.web", "served_app:make_aiohttp"),
            *("-H", "127.0.0.1", "-P", port),
        ],
        1,
    ),
    **{
        f"multiprocessing-{method}": (
            lambda port, method=method: [
                *(*LAUNCHER, str(HERE / "served_by_processes.py"), method, port),
            ],
            2,
        )
        for method in ("spawn", "fork", "forkserver")
    },
}


def get(port: str, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        return json.loads(answer.read())
    finally:
        connection.close()


class Server:
    """A server in processes of its own."""

    def __init__(self, command: list[str], port: str, folder: Path) -> None:
        self.port = port
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.log = folder / "log"
        self.environment = {
            **os.environ,
            "SERVED_MARKS": str(self.marks),
            "PYTHONPATH": f"{folder}{os.pathsep}{HERE}",
        }
        self.process = start(command, self.log, env=self.environment, cwd=folder)

    def loops(self) -> dict[int, str]:
        """Ask until an answer came; the loop of the process that gave it."""
        answer = eventually(lambda: get(self.port, "/"), f"an answer; {self.log.read_text()}")
        return {answer["pid"]: answer["loop"]}

    def in_flight(self) -> int:
        return len(list(self.marks.iterdir()))


@contextlib.contextmanager
def serving(name: str, folder: Path) -> Iterator[Server]:
    command, _ = SERVERS[name]
    port = free_port()
    server = Server(command(port), port, folder)
    try:
        yield server
    finally:
        kill(server.process)


@pytest.mark.parametrize("name", SERVERS)
def test_the_loop_that_serves(name: str, tmp_path: Path) -> None:
    wanted = SERVERS[name][1]
    with serving(name, tmp_path) as server:
        loops = server.loops()
        # The kernel deals connections out as it likes: asked until each process has answered.
        eventually(
            lambda: loops.update(server.loops()) or len(loops) >= wanted,
            f"an answer of each of {wanted} processes",
        )
        assert set(loops.values()) == {"cpploop._loop.Loop"}


@pytest.mark.parametrize("way", ["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("name", SERVERS)
def test_requests_in_flight_are_answered(name: str, way: str, tmp_path: Path) -> None:
    if (name, way) in ENDS_AT_ONCE:
        pytest.skip(ENDS_AT_ONCE[name, way])
    with serving(name, tmp_path) as server, ThreadPoolExecutor(REQUESTS) as threads:
        server.loops()
        answers = [threads.submit(get, server.port, f"/slow/{i}") for i in range(REQUESTS)]
        eventually(lambda: server.in_flight() == REQUESTS, "all requests in flight")
        if way == "Ctrl-C":
            os.killpg(server.process.pid, signal.SIGINT)
        else:
            server.process.terminate()
        for answer in answers:
            assert answer.result(PATIENCE_S)["loop"] == "cpploop._loop.Loop", server.log.read_text()
        server.process.wait(PATIENCE_S)
        # Told to end, it ends as such a server does: at most by the signal it was told with.
        assert server.process.returncode in (0, -signal.SIGTERM, -signal.SIGINT, 130, 143)
        assert "Traceback" not in server.log.read_text()


# What these servers themselves do not promise, on any loop.
ENDS_AT_ONCE: dict[tuple[str, str], str] = {}


def test_uvicorn_reload(tmp_path: Path) -> None:
    """After a change another process serves, on cpploop again."""
    (tmp_path / "changing.py").write_text("from served_app import app\n")
    port = free_port()
    command = [*PYTHON, "-m", "uvicorn", "changing:app", "--loop", FACTORY, "--port", port]
    server = Server([*command, "--reload", "--reload-dir", str(tmp_path)], port, tmp_path)
    try:
        ((first, loop),) = server.loops().items()
        assert loop == "cpploop._loop.Loop"

        def another() -> bool:
            (tmp_path / "changing.py").write_text(f"from served_app import app\n# {time.time()}\n")
            time.sleep(1)
            ((pid, loop),) = server.loops().items()
            return pid != first and loop == "cpploop._loop.Loop"

        eventually(another, "another process")
        os.killpg(server.process.pid, signal.SIGINT)
        server.process.wait(PATIENCE_S)
    finally:
        kill(server.process)


IPYTHON = """
import asyncio
await asyncio.sleep(0.01)
reader = asyncio.create_task(asyncio.sleep(0.01, "done"))
print(type(asyncio.get_running_loop()), await reader)
"""


def test_ipython(tmp_path: Path) -> None:
    """IPython's loop runner awaits cells on the loop that asyncio makes by default."""
    script = tmp_path / "cell.ipy"
    script.write_text(IPYTHON)
    done = subprocess.run(
        [*LAUNCHER, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        env={**os.environ, "IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "<class 'cpploop._loop.Loop'> done" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


KERNEL = """
import asyncio
task = asyncio.create_task(asyncio.sleep(0.01, "done"))
print(type(asyncio.get_running_loop()), await task)
"""


def test_jupyter_kernel(tmp_path: Path) -> None:
    """A notebook's kernel awaits cells on asyncio's default loop, and Ctrl-C ends only the cell."""
    from jupyter_client import BlockingKernelClient, write_connection_file

    connection, _ = write_connection_file(str(tmp_path / "connection.json"))
    environment = {**os.environ, "IPYTHONDIR": str(tmp_path)}
    command = [*LAUNCHER, "-m", "ipykernel_launcher", "-f", connection]
    process = start(command, tmp_path / "log", env=environment)
    client = BlockingKernelClient(connection_file=connection)
    client.load_connection_file()
    client.start_channels()
    said: list[str] = []

    def run(cell: str) -> str:
        def output(message: dict[str, Any]) -> None:
            said.append(message["content"].get("text", ""))

        answer = client.execute_interactive(cell, timeout=PATIENCE_S, output_hook=output)
        status: str = answer["content"].get("ename", answer["content"]["status"])
        return status

    try:
        client.wait_for_ready(timeout=PATIENCE_S)
        assert run(KERNEL) == "ok"
        assert "".join(said) == "<class 'cpploop._loop.Loop'> done\n"
        # Cells share the loop: what one has started goes on, and the next may wait for it.
        assert run("task = asyncio.create_task(asyncio.sleep(0.2, 'later'))") == "ok"
        assert run("assert await task == 'later'") == "ok"
        cell = f"open({str(tmp_path / 'mark')!r}, 'w').close(); await asyncio.sleep(3600)"
        with ThreadPoolExecutor(1) as threads:
            interrupted = threads.submit(run, cell)
            eventually((tmp_path / "mark").exists, "a cell that runs")
            process.send_signal(signal.SIGINT)
            assert interrupted.result(PATIENCE_S) in ("CancelledError", "KeyboardInterrupt")
        assert run("assert await asyncio.sleep(0, 1)") == "ok"
        client.shutdown()
        assert process.wait(PATIENCE_S) == 0
    finally:
        client.stop_channels()
        kill(process)
