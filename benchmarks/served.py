"""Cells with a server in a process and on a core of its own, and the load generator on another."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import harness
from catalogue import Served
from loops import FLOOR
from rounds import take_turns

START_SECONDS = 20.0
STOP_SHARE = 0.15  # Of the patience with its start: what it may take to end.


@dataclass(frozen=True)
class Cores:
    """Where things run."""

    server: int = 0
    client: int = 1


@dataclass(frozen=True)
class Window:
    """What the load generator is told beside the row's own load."""

    seconds: float
    warmup: float
    extra: Sequence[str] = ()


class ServerFailed(Exception):
    """The server did not start; the message says what it wrote last."""


class Server:
    """A server process on its core, from "ready" to its last resource figures."""

    place: Sequence[str] = ()  # Where it serves, in the load generator's options.
    loop_type = ""

    def __init__(self, command: Sequence[str], cpu: int, patience: float) -> None:
        self._patience = patience
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=harness.child_environment(),
            preexec_fn=harness.pin(cpu),
        )
        self.ready_rss_kib = 0
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
        readable, _, _ = select.select([self._process.stdout], [], [], self._patience)
        line = self._process.stdout.readline() if readable else b""
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            raise ServerFailed(f"the server does not start: {self.last_words()}") from None
        self._forget_peak()
        return answer

    @property
    def grown_kib(self) -> int:
        """How far memory rose above what it was when the server began to serve; 0 if unknown."""
        return self.peak_rss_kib - self.ready_rss_kib if self.ready_rss_kib else 0

    def _forget_peak(self) -> None:
        """The peak so far is of the imports, and of a large block that was freed on purpose."""
        # A kernel may be built without it.
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
            self.ready_rss_kib = harness.memory_kib(self.pid, "VmRSS")

    def last_words(self) -> str:
        """The last line the server wrote to stderr."""
        return harness.last_line(self.written())

    def written(self) -> str:
        """Everything the server wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def _stop(self) -> None:
        """End it and collect the peak of its memory and its whole life's CPU time."""
        # Not wait4's, which begins with this process's memory, before the server was executed.
        self.peak_rss_kib = harness.memory_kib(self.pid, "VmHWM")
        # By the number: terminate() would collect a server that has died at its start.
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._patience * STOP_SHARE
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
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        if self._process.stdout is not None:
            self._process.stdout.close()


class ServedCells:
    """Measures rows that are served, one cell at a time."""

    def __init__(self, tools: Path, cores: Cores, cold_malloc: bool = False) -> None:
        self._tools = tools
        self.cores = cores
        self._cold_malloc = cold_malloc
        self._folder = tempfile.TemporaryDirectory(prefix="cpploop-bench-")
        self._certificate: Path | None = None

    def measure(self, run: Served, loop: str, window: Window) -> dict[str, Any]:
        """One cell; {"error": ...} when the figures would not be worth having."""
        return self.measure_in_turns(run, [loop], window, 1)[loop]

    def measure_in_turns(
        self, run: Served, loops: Sequence[str], window: Window, slices: int
    ) -> dict[str, dict[str, Any]]:
        """A cell for each loop, whose window is cut into slices: all have one, then all the next.

        Their servers are there all the time, and wait while another one is asked.
        """
        servers: dict[str, Server] = {}
        failed: dict[str, dict[str, Any]] = {}

        def ask(loop: str, number: int) -> dict[str, Any]:
            warmup = window.warmup if number == 0 else window.warmup / 2
            part = dataclasses.replace(window, seconds=window.seconds / slices, warmup=warmup)
            return self._checked_load(run, servers[loop], part)

        with contextlib.ExitStack() as stack:
            for loop in loops:
                try:
                    servers[loop] = stack.enter_context(self.serving(run, loop))
                except ServerFailed as error:
                    failed[loop] = {"error": str(error)}
            answers = take_turns(list(servers), slices, ask)
        return failed | {
            loop: own[0] if "error" in own[0] else _derived(joined(own), servers[loop])
            for loop, own in answers.items()
        }

    def _checked_load(self, run: Served, server: Server, window: Window) -> dict[str, Any]:
        """As load(); {"error": ...}, with what the server wrote, when an answer was wrong."""
        result = self.load(run, server, window)
        if not result.get("errors", 1):
            return result
        words = server.last_words()
        reason = result.get("error", "the load generator gave no answer")
        return {"error": reason + ("" if words == "no message" else f" (server: {words})")}

    @contextlib.contextmanager
    def serving(
        self, run: Served, loop: str, prefix: Sequence[str] = (), patience: float = START_SECONDS
    ) -> Iterator[Server]:
        """A server that accepts connections, started through `prefix`; it ends with the block."""
        with tempfile.TemporaryDirectory(prefix="cpploop-bench-") as folder:
            unix = f"{folder}/socket" if run.unix else None
            place = ["--unix", unix] if unix else ["--port", "0"]
            if run.tls:
                place += ["--tls", str(self._certificate_file())]
            command = [*prefix, *self._server_command(run, loop), *place]
            with Server(command, self.cores.server, patience) as server:
                ready = server.wait_ready()
                server.place = ["--unix", unix] if unix else ["--port", str(ready["port"])]
                server.loop_type = ready["loop"]
                yield server

    def load(self, run: Served, server: Server, window: Window) -> dict[str, Any]:
        """What the load generator says of a server."""
        command = [
            *(str(self._tools / "loadgen"), *run.load, *server.place, *window.extra),
            *("--seconds", str(window.seconds), "--warmup", str(window.warmup)),
            *("--server-pid", str(server.pid)),
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                preexec_fn=harness.pin(self.cores.client),
                timeout=window.seconds + window.warmup + 30,
                check=False,
            )
            result: dict[str, Any] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            return {"error": "the load generator hangs"}
        except json.JSONDecodeError:
            return {"error": f"load generator: {harness.last_line(done.stderr.decode())}"}
        return result

    def _certificate_file(self) -> Path:
        """Made when the first row asks for it, because only TLS needs the openssl program."""
        if self._certificate is None:
            self._certificate = harness.make_certificate(Path(self._folder.name))
        return self._certificate

    def _server_command(self, run: Served, loop: str) -> list[str]:
        if loop == FLOOR:
            return [str(self._tools / "floor_server")]
        script, *arguments = run.server
        return [
            sys.executable,
            str(harness.HERE / "servers" / script),
            *arguments,
            *("--loop", loop),
            *(["--cold-malloc"] if self._cold_malloc else []),
        ]


# What a window's answers add up to, and what is the middle one of theirs: a percentile of the whole
# window would be that of its worst slice, which is the machine's.
_SUMS = (
    *("seconds", "requests", "server_cpu_seconds", "client_cpu_seconds", "other_cpu_seconds"),
    *("least_per_connection", "most_per_connection"),
)
_MEDIANS = ("p50_us", "p99_us", "p999_us")


def joined(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the load generator said of several windows, as of one, with each one's own figures."""
    whole = dict(answers[0])
    if len(answers) == 1:
        return whole
    for name in whole.keys() & set(_SUMS):
        whole[name] = sum(answer[name] for answer in answers)
    for name in whole.keys() & set(_MEDIANS):
        whole[name] = statistics.median(answer[name] for answer in answers)
    whole["max_us"] = max(answer["max_us"] for answer in answers)
    whole["rps"] = whole["requests"] / whole["seconds"]
    whole["slices"] = [_figures(answer) for answer in answers]
    return whole


def _figures(result: dict[str, Any]) -> dict[str, float]:
    return {
        "value": result["rps"],
        "cpu_us": result["server_cpu_seconds"] / max(result["requests"], 1) * 1e6,
        **{name: result[name] for name in _MEDIANS if name in result},
    }


def _derived(result: dict[str, Any], server: Server) -> dict[str, Any]:
    seconds = result["seconds"]
    return {
        **_figures(result),
        "server_busy": result["server_cpu_seconds"] / seconds,
        "client_busy": result["client_cpu_seconds"] / seconds,
        "others_busy": result["other_cpu_seconds"] / seconds,
        "peak_rss_kib": server.peak_rss_kib,
        "grown_kib": server.grown_kib,
        "life_cpu_seconds": server.cpu_seconds,
        "loop_type": server.loop_type,
        **result,
    }
