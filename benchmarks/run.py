"""Echo and web servers on every loop, interleaved, each cell a fresh server on a core of its own.

    python benchmarks/run.py                        the whole comparison
    python benchmarks/run.py --quick                a smoke test, about two minutes
    python benchmarks/run.py --rows 'proto-1k-*,uvicorn-64' --loops uvloop,cpploop --rounds 7
    python benchmarks/run.py --list

Run it with the Python of an environment made by benchmarks/setup.sh. The tables go to stdout as
Markdown, everything measured into a JSON file under benchmarks/results/. The exit status is 1 when
cpploop failed a row or any loop sent a wrong byte.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import harness
import loops
import report

START_SECONDS = 20.0
STOP_SECONDS = 3.0
SIZES = {"1k": 1024, "100k": 100 * 1024}
TLS_SIZES = {"1k": 1024, "16k": 16 * 1024, "100k": 100 * 1024}
CONNECTIONS = (1, 8, 64)
STREAM_MODES = ("proto", "buffered", "streams")
ECHO_MODES = (*STREAM_MODES, "sock")
WEB_SERVERS = {"uvicorn": "asgi.py", "aiohttp": "aioweb.py"}
WEB_LIBRARIES = ("uvicorn", "httptools", "aiohttp")
HELLO = 13  # Bytes of "Hello, world!", the answer of everybody's plain-text benchmark.


@dataclass(frozen=True)
class Row:
    """What is served and how it is loaded."""

    name: str
    server: tuple[str, ...]  # The script under servers/ and its arguments.
    load: tuple[str, ...]  # The load generator's arguments.
    unix: bool = False
    tls: bool = False
    has_floor: bool = False


def all_rows() -> dict[str, Row]:
    """Every row there is, in the order of the tables."""
    rows = []
    for suffix in ("", "-unix"):
        for mode in ECHO_MODES:
            for size in SIZES:
                rows += [_echo_row(mode, size, count, suffix) for count in CONNECTIONS]
    for name in WEB_SERVERS:
        for kind, path, body in (
            ("", f"/bytes/{HELLO}", HELLO),
            ("-100k", f"/bytes/{SIZES['100k']}", SIZES["100k"]),
            ("-chunked", f"/chunked/{SIZES['1k']}", SIZES["1k"]),
        ):
            rows += [_web_row(name, kind, path, body, count) for count in CONNECTIONS]
    rows += _tls_rows()
    return {row.name: row for row in rows}


def _echo_row(mode: str, size: str, connections: int, suffix: str) -> Row:
    load = ("--mode", "echo", "--size", str(SIZES[size]), "--connections", str(connections))
    name = f"{mode}-{size}-{connections}{suffix}"
    return Row(name, ("echo.py", mode), load, unix=bool(suffix), has_floor=True)


def _web_row(name: str, kind: str, path: str, body: int, connections: int) -> Row:
    load = ("--mode", "http", "--path", path, "--body-size", str(body))
    count = ("--connections", str(connections))
    return Row(f"{name}{kind}-{connections}", (WEB_SERVERS[name],), load + count)


def _tls_rows() -> list[Row]:
    rows = []
    for mode in STREAM_MODES:
        for size, number in TLS_SIZES.items():
            for count in CONNECTIONS:
                load = ("--mode", "echo", "--size", str(number), "--connections", str(count))
                name = f"tls-{mode}-{size}-{count}"
                rows.append(Row(name, ("echo.py", mode), (*load, "--tls", "1"), tls=True))
    for name, resume in (("full", "0"), ("resumed", "1")):
        load = ("--mode", "handshake", "--connections", "8", "--resume", resume)
        rows.append(Row(f"tls-handshake-{name}", ("echo.py", "proto"), load, tls=True))
    for name in WEB_SERVERS:
        row = _web_row(name, "-tls", f"/bytes/{HELLO}", HELLO, 64)
        rows.append(Row(row.name, row.server, (*row.load, "--tls", "1"), tls=True))
    return rows


ROWS = all_rows()
GROUPS = {
    "default": [
        *(name for name in ROWS if name.startswith(STREAM_MODES) and not name.endswith("-unix")),
        "uvicorn-64",
        "aiohttp-64",
    ],
    "quick": ["proto-1k-1", "proto-1k-64", "proto-100k-8", "streams-1k-8", "uvicorn-64"],
    "tls": [name for name, row in ROWS.items() if row.tls],
    "all": list(ROWS),
}


class ServerFailed(Exception):
    """The server did not start; the message says what it wrote last."""


class Server:
    """A server process on its core, from "ready" to its last resource figures."""

    def __init__(self, command: list[str], cpu: int, place: list[str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [*command, *place],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=harness.child_environment(),
            preexec_fn=harness.pin(cpu),
        )
        self.peak_rss_kib = 0
        self.cpu_seconds = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def wait_ready(self) -> dict[str, Any]:
        """The server's own line about itself."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if readable else b""
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise ServerFailed(f"the server does not start: {self.last_words()}") from None
        return answer

    def last_words(self) -> str:
        """The last line the server wrote to stderr."""
        self._errors.seek(0)
        return harness.last_line(self._errors.read())

    def _stop(self) -> None:
        """End it and collect what wait4 knows: the whole life's CPU time and the peak of memory."""
        # By the number: terminate() would collect a server that has died at its start.
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        killed = False
        while True:
            pid, status, usage = os.wait4(self.pid, 0 if killed else os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self._process.kill()
                killed = True
            time.sleep(0.01)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_rss_kib = usage.ru_maxrss
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        if self._process.stdout is not None:
            self._process.stdout.close()


class Bench:
    """One comparison: which rows, which loops, and where the programs are."""

    def __init__(self, options: argparse.Namespace, tools: Path) -> None:
        self.options = options
        self.tools = tools
        self._folder = tempfile.TemporaryDirectory(prefix="cpploop-bench-")
        self._certificate: Path | None = None

    def certificate(self) -> Path:
        """Made when the first row asks for it, because only TLS needs the openssl program."""
        if self._certificate is None:
            self._certificate = harness.make_certificate(Path(self._folder.name))
        return self._certificate

    def cell(self, row: Row, name: str) -> dict[str, Any]:
        """Measure one cell; {"error": ...} when the figures would not be worth having."""
        with tempfile.TemporaryDirectory(prefix="cpploop-bench-") as folder:
            unix = f"{folder}/socket" if row.unix else None
            place = ["--unix", unix] if unix else ["--port", "0"]
            if row.tls:
                place += ["--tls", str(self.certificate())]
            server = Server(self._server_command(row, name), self.options.server_cpu, place)
            try:
                with server:
                    ready = server.wait_ready()
                    where = ["--unix", unix] if unix else ["--port", str(ready["port"])]
                    result = self._load(row, server.pid, where)
            except ServerFailed as error:
                return {"error": str(error), "fatal": True}
        if result.get("errors", 1):
            words = server.last_words()
            reason = result.get("error", "the load generator gave no answer")
            return {"error": reason + ("" if words == "no message" else f" (server: {words})")}
        return self._derive(result, server, ready)

    def _server_command(self, row: Row, name: str) -> list[str]:
        if name == harness.FLOOR:
            return [str(self.tools / "floor_server")]
        script, *arguments = row.server
        return [
            sys.executable,
            str(harness.HERE / "servers" / script),
            *arguments,
            *("--loop", name),
            *(["--cold-malloc"] if self.options.cold_malloc else []),
        ]

    def _load(self, row: Row, server_pid: int, where: list[str]) -> dict[str, Any]:
        options = self.options
        command = [
            str(self.tools / "loadgen"),
            *row.load,
            *where,
            *("--seconds", str(options.seconds), "--warmup", str(options.warmup)),
            *("--server-pid", str(server_pid)),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                preexec_fn=harness.pin(options.client_cpu),
                timeout=options.seconds + options.warmup + 30,
                check=False,
            )
            result: dict[str, Any] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            return {"error": "the load generator hangs"}
        except json.JSONDecodeError:
            return {"error": f"load generator: {harness.last_line(done.stderr.decode())}"}
        return result

    @staticmethod
    def _derive(result: dict[str, Any], server: Server, ready: dict[str, Any]) -> dict[str, Any]:
        seconds, cpu = result["seconds"], result["server_cpu_seconds"]
        return {
            "value": result["rps"],
            "cpu_us": cpu / max(result["requests"], 1) * 1e6,
            "server_busy": cpu / seconds,
            "client_busy": result["client_cpu_seconds"] / seconds,
            "others_busy": result["other_cpu_seconds"] / seconds,
            "peak_rss_kib": server.peak_rss_kib,
            "life_cpu_seconds": server.cpu_seconds,
            "loop_type": ready["loop"],
            **result,
        }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    harness.add_common_options(parser, rounds=5, seconds=3.0)
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before the window")
    parser.add_argument("--client-cpu", type=int, default=1)
    parser.add_argument(
        "--cold-malloc", action="store_true", help="do not settle malloc first (see README.md)"
    )
    parser.add_argument("--tools", type=Path, help="a folder with loadgen and floor_server")
    parser.add_argument("--build-dir", type=Path, default=harness.HERE / "build")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.warmup = 2, 1.0, 0.2
        if options.rows == "default":
            options.rows = "quick"
        if options.loops == "*":
            options.loops = "floor,asyncio,uvloop,zuvloop,cpploop"
    return options


def plan(options: argparse.Namespace) -> harness.Results:
    """The results file to fill: a new one, or the one to resume with its own settings."""
    if options.resume:
        results = harness.Results.load(options.resume)
        for name, value in results.data["plan"].items():
            setattr(options, name, value)
        return results
    names = harness.choose(options.loops, [harness.FLOOR, *loops.LOOPS], {})
    found = harness.probe_loops(name for name in names if name != harness.FLOOR)
    facts = {
        "unit": "request",
        "plan": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "warmup": options.warmup,
            "server_cpu": options.server_cpu,
            "client_cpu": options.client_cpu,
            "cold_malloc": options.cold_malloc,
        },
        "rows": harness.choose(options.rows, list(ROWS), GROUPS),
        "loops": {name: found.get(name, {"version": "(bare C++ server)"}) for name in names},
        "libraries": _library_versions(),
    }
    return harness.Results.start(options.json, "servers", facts)


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in WEB_LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            harness.note(f"{name} is not installed: the rows that need it will fail")
    return versions


def measure(options: argparse.Namespace, results: harness.Results) -> None:
    """Fill every cell that is not there yet."""
    data = results.data
    names = [name for name, found in data["loops"].items() if "version" in found]
    for name, found in data["loops"].items():
        if "reason" in found:
            harness.note(f"{name} does not take part: {found['reason']}")
    cells = [
        (number, row, name)
        for number, row, name in harness.interleave(data["rows"], names, options.rounds)
        if (name != harness.FLOOR or ROWS[row].has_floor) and not results.has(row, name, number)
    ]
    minutes = len(cells) * (options.seconds + options.warmup + 0.6) / 60
    harness.note(f"{len(cells)} cells, about {minutes:.0f} minutes, into {results.path.name}")
    bench = Bench(options, options.tools or harness.build_tools(options.build_dir))
    given_up: set[tuple[str, str]] = set()
    for number, row, name in cells:
        if (row, name) in given_up:
            continue
        harness.wait_until_idle(options.wait_idle)
        cell = bench.cell(ROWS[row], name)
        if cell.pop("fatal", False):
            given_up.add((row, name))
        results.add({"row": row, "loop": name, "round": number, **cell})
        harness.note(f"{number + 1}  {row:20} {name:20} {_cell_text(cell)}")


def _cell_text(cell: dict[str, Any]) -> str:
    if "error" in cell:
        return f"FAILED: {cell['error']}"
    text = f"{cell['value']:10.0f}/s  {cell['cpu_us']:7.1f} us CPU  p99 {cell['p99_us']:6.0f} us"
    if cell["others_busy"] > harness.BUSY_LIMIT:
        text += f"  (others used {cell['others_busy']:.0%} of a core)"
    return text


def exit_status(data: dict[str, Any]) -> int:
    """1 for figures that must not be shown to anybody."""
    errors = [cell for cell in data["cells"] if "error" in cell]
    ours = any(cell["loop"] == report.SUBJECT for cell in errors)
    wrong = any(cell["error"].startswith("wrong bytes") for cell in errors)
    return 1 if ours or wrong else 0


def main() -> int:
    options = parse_options()
    if options.list:
        for group, members in GROUPS.items():
            print(f"{group}: {' '.join(members)}")
        print(f"loops: {' '.join([harness.FLOOR, *loops.LOOPS])}")
        return 0
    if options.report:
        results = harness.Results.load(options.report)
    else:
        harness.end_cleanly_on_sigterm()
        harness.check_cpus(options.server_cpu, options.client_cpu)
        results = plan(options)
        measure(options, results)
    text = report.markdown(results.data)
    if options.markdown:
        options.markdown.write_text(text)
    print(text)
    return exit_status(results.data)


if __name__ == "__main__":
    sys.exit(main())
