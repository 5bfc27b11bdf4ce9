"""The demo: real uvicorn on cpploop, real clients, every answer checked; then a small race.

First the application of app.py is served over TCP, over a Unix socket and over TLS, each by a
uvicorn of its own, and client.py checks all it says. Then the same application is served by
asyncio, uvloop and cpploop side by side, and load.py measures each in turn, several rounds. The
exit status is 0 only if every answer of both parts was right and every server stopped cleanly.

    python examples/demo/run.py                  # about one minute
    python examples/demo/run.py --only-checks
    python examples/demo/run.py --loop asyncio   # the same checks on another loop
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trustme
from client import CHECKS, Target, check_all
from load import Load, drive

HERE = Path(__file__).resolve().parent

# What `uvicorn --loop` is given for each name.
LOOPS = {
    "asyncio": "asyncio",
    "uvloop": "uvloop:new_event_loop",
    "cpploop": "cpploop:new_event_loop",
}
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0


class DemoFailed(Exception):
    """A server did not start, did not stop or complained; the message says which."""


@dataclass
class Server:
    """One uvicorn process and what it has said so far."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, name: str, loop: str, folder: Path, *bind: str) -> "Server":
        """Start uvicorn with `loop` and wait until it listens."""
        command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(HERE)]
        command += ["--loop", loop, "--http", "httptools", "--ws", "websockets-sansio"]
        command += ["--lifespan", "on", "--no-access-log", "--no-use-colors", *bind]
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        server = cls(name, process, log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Uvicorn running on" not in server.said():
            if process.poll() is not None:
                raise DemoFailed(f"{name}: uvicorn ended at start:\n{server.said()}")
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise DemoFailed(f"{name}: uvicorn does not listen:\n{server.said()}")
            time.sleep(0.02)
        return server

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def port(self) -> int:
        """The port the kernel chose, from uvicorn's own announcement."""
        found = re.search(r"Uvicorn running on \w+://[^:]+:(\d+)", self.said())
        if found is None:
            raise DemoFailed(f"{self.name}: no port in uvicorn's announcement:\n{self.said()}")
        return int(found[1])

    def stop(self) -> None:
        """Ask uvicorn to end as an operator would, and insist that it ends well."""
        if self.process.poll() is not None:
            raise DemoFailed(f"{self.name}: uvicorn had ended before it was asked:\n{self.said()}")
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DemoFailed(f"{self.name}: uvicorn did not stop:\n{self.said()}") from None
        said = self.said()
        # uvicorn finishes its shutdown and then lets the signal end it, as a shell expects.
        clean = status in (0, -signal.SIGTERM) and "lifespan: startup, shutdown" in said
        if not clean or re.search(r"^ERROR|Traceback", said, re.MULTILINE):
            raise DemoFailed(f"{self.name}: uvicorn ended badly (status {status}):\n{said}")


@contextlib.contextmanager
def serving(name: str, loop: str, folder: Path, *bind: str) -> Iterator[Server]:
    """A server for the length of a `with` block; it never outlives the block."""
    server = Server.start(name, loop, folder, *bind)
    try:
        yield server
        server.stop()
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def check_everywhere(loop: str, folder: Path) -> int:
    """Serve over TCP, a Unix socket and TLS, check all answers, and count what went wrong."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(chain)
    certificate.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    path = str(folder / "demo.sock")

    # The name of each place, where uvicorn binds for it, and the target once its port is known. Not
    # localhost but the address: the name may lead to ::1 first, where somebody else may listen.
    places: list[tuple[str, list[str], Callable[[Server], Target]]] = [
        (
            "tcp",
            ["--port", "0"],
            lambda server: Target(f"http://127.0.0.1:{server.port()}", expect_loop=loop),
        ),
        (
            "unix",
            ["--uds", path],
            lambda server: Target("http://localhost", path, expect_loop=loop),
        ),
        (
            "tls",
            ["--port", "0", "--ssl-certfile", str(chain), "--ssl-keyfile", str(key)],
            lambda server: Target(
                f"https://127.0.0.1:{server.port()}", tls=trusting, expect_loop=loop
            ),
        ),
    ]
    wrong = 0
    for name, bind, target in places:
        began = time.monotonic()
        try:
            with serving(name, LOOPS[loop], folder, *bind) as server:
                failures = check_all(target(server))
        except DemoFailed as exc:
            failures = [str(exc)]
        wrong += len(failures)
        took = time.monotonic() - began
        verdict = "every answer right" if not failures else f"{len(failures)} WRONG"
        print(f"  {name:5} {len(CHECKS)} checks in {took:4.1f} s: {verdict}", flush=True)
        for failure in failures:
            print(f"        {failure}")
    return wrong


def race(names: list[str], folder: Path, rounds: int, seconds: float, connections: int) -> int:
    """Measure each loop in turn, `rounds` times, print the medians, and count wrong answers."""
    loads: dict[str, list[Load]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        ports: dict[str, int] = {}
        servers: list[int] = []
        for name in names:
            server = stack.enter_context(serving(name, LOOPS[name], folder, "--port", "0"))
            servers.append(server.process.pid)
            ports[name] = server.port()
            drive("127.0.0.1", ports[name], connections, min(0.5, seconds))
        keep_apart(servers)
        for turn in range(rounds):
            # Each round starts with another loop, so that none is always first.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                loads[name].append(drive("127.0.0.1", ports[name], connections, seconds))
    medians = {
        name: statistics.median(load.requests_per_s for load in loads[name]) for name in names
    }
    print(f"  {'loop':10}{'requests/s':>12}{'from':>10}{'to':>9}{'client':>8}", end="")
    references = [name for name in ("asyncio", "uvloop") if name in names]
    print("".join(f"{'/ ' + name:>12}" for name in references))
    for name in names:
        speeds = [load.requests_per_s for load in loads[name]]
        busy = statistics.median(load.client_busy for load in loads[name])
        line = (
            f"  {name:10}{medians[name]:>12.0f}{min(speeds):>10.0f}{max(speeds):>9.0f}{busy:>8.0%}"
        )
        line += "".join(f"{medians[name] / medians[other]:>11.2f}x" for other in references)
        print(line)
    wrong = sum(load.wrong for name in names for load in loads[name])
    silent = sum(load.requests == 0 for name in names for load in loads[name])
    if wrong or silent:
        print(f"  {wrong} WRONG answers, {silent} rounds without any")
    return wrong + silent


def keep_apart(servers: list[int]) -> None:
    """Give the servers and the client a processor each, where there are two to give."""
    if not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) >= 2:
        os.sched_setaffinity(0, {processors[0]})
        for pid in servers:
            os.sched_setaffinity(pid, {processors[-1]})


def installed(name: str) -> str | None:
    """The version of an installed loop, or None."""
    if name == "asyncio":
        return ".".join(map(str, sys.version_info[:3]))
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not packaged"


def main() -> int:
    parser = argparse.ArgumentParser(description="cpploop's demo")
    parser.add_argument("--loop", choices=sorted(LOOPS), default="cpploop", help="loop to check")
    parser.add_argument("--only-checks", action="store_true", help="no race")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a round for one loop")
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    if installed(options.loop) is None:
        print(f"{options.loop} is not installed for {sys.executable}", file=sys.stderr)
        return 1

    began = time.monotonic()
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="cpploop-demo-") as folder_name:
        folder = Path(folder_name)
        uvicorn = importlib.metadata.version("uvicorn")
        print(f"uvicorn {uvicorn} on {options.loop} {installed(options.loop)}", flush=True)
        wrong += check_everywhere(options.loop, folder)
        if not options.only_checks:
            names = [name for name in LOOPS if installed(name) is not None]
            for name in LOOPS.keys() - set(names):
                print(f"{name} is not installed and stays out of the race")
            versions = ", ".join(f"{name} {installed(name)}" for name in names)
            print(
                f"the same application, {options.connections} connections: {versions}", flush=True
            )
            try:
                wrong += race(names, folder, options.rounds, options.seconds, options.connections)
            except (DemoFailed, OSError) as exc:
                print(f"  {exc}")
                wrong += 1
    verdict = "all right" if wrong == 0 else f"{wrong} WRONG"
    print(f"{verdict} after {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
