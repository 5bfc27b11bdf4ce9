"""Servers and launchers: which loop serves, and what becomes of requests when they are told to end.

Run by `tests/ecosystem/run.py servers`, in an environment of its own. gunicorn, hypercorn and
granian are started by the commands of docs/guide/http-servers.md, aiohttp and one uvicorn by the
programs of docs/guide/start.md.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, eventually, free_port, kill, start

HERE = Path(__file__).resolve().parent
GUIDE = HERE.parents[2] / "docs" / "guide" / "http-servers.md"
START = GUIDE.with_name("start.md")
REQUESTS = 8

PYTHON = [sys.executable]
LAUNCHER = [*PYTHON, "-m", "cpploop"]
FACTORY = "cpploop:new_event_loop"
APP = "served_app:app"


def from_guide(program: str, *more: str) -> Callable[[str], list[str]]:
    """The command that the guide shows for PROGRAM, for our application and a port of ours."""
    (shown,) = re.findall(rf"^python ((?:.* )?-m {program} .*)$", GUIDE.read_text(), re.MULTILINE)
    words = [APP if word == "app:app" else word for word in shlex.split(shown)]
    assert APP in words and "8000" in shown, shown
    return lambda port: [*PYTHON, *(word.replace("8000", port) for word in words), *more]


def program_of_guide(theirs: str, ours: str) -> Callable[[str], list[str]]:
    """The program of start.md that serves THEIRS; it serves OURS instead, and on a port of ours."""
    blocks = re.findall(r"^```python\n(.*?)^```$", START.read_text(), re.M | re.S)
    (shown,) = (block for block in blocks if f"({theirs}, loop=" in block)
    program = f"import served_app\n{shown.replace(theirs, ours)}"
    return lambda port: [*PYTHON, "-c", program.replace("loop=", f"port={port}, loop=")]


def worker_of_guide() -> str:
    """The module worker.py that the guide has gunicorn's users write."""
    (found,) = re.findall(
        r"^```python\n(from uvicorn_worker .*?)^```$", GUIDE.read_text(), re.M | re.S
    )
    return str(found)


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
    "uvicorn-run": (program_of_guide('"app:app"', f'"{APP}"'), 1),
    # Without its socket for control, which would lie in a folder of the user's.
    "gunicorn": (from_guide("gunicorn", "--no-control-socket"), 2),
    # By itself it waits for three seconds, of which the slow requests take half.
    "hypercorn": (from_guide("hypercorn", "--graceful-timeout", "10"), 1),
    "granian": (from_guide("granian"), 2),
    "aiohttp": (
        program_of_guide("web.Application()", 'served_app.make_aiohttp(), host="127.0.0.1"'),
        1,
    ),
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
        (folder / "worker.py").write_text(worker_of_guide())
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

    def loops_of(self, processes: int) -> dict[int, str]:
        """Ask until each process has answered; the kernel deals connections out as it likes."""
        loops: dict[int, str] = {}

        def all_have() -> bool:
            loops.update(self.loops())
            return len(loops) >= processes

        eventually(all_have, f"an answer of each of {processes} processes")
        return loops

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
    with serving(name, tmp_path) as server:
        loops = server.loops_of(SERVERS[name][1])
        assert set(loops.values()) == {"cpploop._loop.Loop"}


@pytest.mark.parametrize("way", ["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize("name", SERVERS)
def test_requests_in_flight_are_answered(name: str, way: str, tmp_path: Path) -> None:
    with serving(name, tmp_path) as server, ThreadPoolExecutor(REQUESTS) as threads:
        # One that is still importing when Ctrl-C comes ends by a traceback.
        server.loops_of(SERVERS[name][1])
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


@contextlib.contextmanager
def held(server: Server, name: str) -> Iterator[Future[Any]]:
    """A request that is in flight while uvicorn is told to end, and is answered after the block."""
    waiting = "Waiting for connections to close"
    before = server.log.read_text().count(waiting)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, server.port, f"/held/{name}")
        try:
            eventually((server.marks / name).exists, "a request in flight")
            yield answer
            # So it says itself, whichever way it was told.
            eventually(
                lambda: server.log.read_text().count(waiting) > before,
                f"waiting for the request; {server.log.read_text()}",
            )
            assert not answer.done()
        finally:
            (server.marks / name).unlink(missing_ok=True)
        assert answer.result(PATIENCE_S)["loop"] == "cpploop._loop.Loop"


def test_uvicorn_reload(tmp_path: Path) -> None:
    """After a change another process serves, on cpploop again; nobody goes without an answer."""
    (tmp_path / "changing.py").write_text("from served_app import app\n")
    port = free_port()
    command = [*PYTHON, "-m", "uvicorn", "changing:app", "--loop", FACTORY, "--port", port]
    server = Server([*command, "--reload", "--reload-dir", str(tmp_path)], port, tmp_path)
    try:
        ((first, loop),) = server.loops().items()
        assert loop == "cpploop._loop.Loop"

        # Once: a second reload under way would be what Ctrl-C interrupts.
        with held(server, "reload") as answer:
            (tmp_path / "changing.py").write_text("from served_app import app\n# changed\n")
        assert answer.result()["pid"] == first
        eventually(lambda: first not in server.loops(), "another process")
        assert set(server.loops().values()) == {"cpploop._loop.Loop"}
        with held(server, "Ctrl-C"):
            os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(PATIENCE_S) == 0, server.log.read_text()
        assert "Traceback" not in server.log.read_text()
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
