"""Runs everything that must hold, on every Python at hand, and writes what came of it.

    python scripts/matrix.py                   the whole matrix; some hours, most of them ASan's
    python scripts/matrix.py --resume          what has not passed with the code as it is now
    python scripts/matrix.py --only 3.13t      one Python
    python scripts/matrix.py --what TLS        only what has this in its name
    python scripts/matrix.py --jobs 4          so many tests at once: much of their time is waiting
    python scripts/matrix.py --out FILE        the table (default: docs/dev/matrix.md)
    CPPLOOP_TESTS=cpploop python scripts/matrix.py   without asyncio's own run of each test

For each Python: all Python tests, which take every way of doing TLS, and the interpreter's own
asyncio tests with cpploop as the loop, those of TLS once for each way. The TLS tests of
both kinds again under AddressSanitizer and UBSan, on each Python. Once, on the newest ordinary one:
all Python tests and all of asyncio's own under these, and plain other projects' suites, each with
its control on asyncio. The engine's tests run plain, with ASan+UBSan and with TSan. What is not run
keeps its rows in the table; the column `code` is a hash of what is built and installed, so that
rows of several days can be seen to be of one and the same.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LOGS = REPO / "build" / "matrix-logs"
TLS_PATHS = ("asyncio", "bio", "direct")
FREE_THREADED = ("3.13t", "3.14t", "3.15t")
COLUMNS = ("Python", "what", "outcome", "result", "s", "code", "commit", "date")
# What an installed cpploop is made of.
CODE = ("core", "binding", "python", "cmake", "CMakeLists.txt")
# The suites of tests/ecosystem, and what else some hold than their name says.
ECOSYSTEM = {
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "anyio": "anyio",
    "httpx": "httpx and httpcore",
    "aiohttp": "aiohttp",
    "servers": "servers",
    "services": "services",
    "dask": "dask",
}
# The exit status of what was skipped, because what it takes is not to be had.
SKIPPED = 77
# In front of a Python's name: its TLS tests under sanitizers.
SANITIZED = "asan-"


@dataclass
class Row:
    python: str
    what: str
    outcome: str = ""
    result: str = ""
    seconds: float = 0.0
    code: str = ""
    commit: str = ""
    date: str = ""

    def cells(self) -> list[str]:
        outcome = [self.outcome, self.result, f"{self.seconds:.0f}"]
        return [self.python, self.what, *outcome, self.code, self.commit, self.date]


@dataclass
class Matrix:
    out: Path
    resume: bool = False
    wanted: str = ""
    # Tests at once.
    jobs: int = 2
    rows: list[Row] = field(default_factory=list)
    # Before the table itself makes the checkout another one.
    commit: str = field(default_factory=lambda: current_commit())
    code: str = field(default_factory=lambda: current_code())

    def pytest_options(self) -> list[str]:
        """Each file's tests in one process and in order, several files at a time."""
        return ["-q", "-n", str(self.jobs), "--dist", "loadfile"]

    def run(
        self,
        python: str,
        what: str,
        command: list[str],
        *,
        may_skip: bool = False,
        **environment: str,
    ) -> bool:
        """Runs one cell; its whole output goes to a log, its last figures into the table."""
        if self.wanted not in what and what != "build":
            return True
        if self.resume and what != "build" and self.has_passed(python, what):
            return True
        name = re.sub(r"[^\w.]+", "-", f"{python}-{what}").strip("-")
        row = Row(python, what, code=self.code, commit=self.commit, date=today())
        self.rows.append(row)
        print(f"== {python}: {what}", flush=True)
        started = time.monotonic()
        log = LOGS / f"{name}.log"
        with log.open("wb") as output:
            done = subprocess.run(
                command,
                cwd=REPO,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                preexec_fn=hear_interrupts,
                check=False,
            )
        row.seconds = time.monotonic() - started
        row.outcome = "pass" if done.returncode == 0 else "FAIL"
        if may_skip and done.returncode == SKIPPED:
            row.outcome = "skip"
        row.result = figures(log.read_text(errors="replace"))
        alone = {**os.environ, **environment}.get("CPPLOOP_TESTS") == "cpploop"
        if alone and re.match(r"\d+ passed", row.result):
            row.result += ", without the control on asyncio"
        print(f"   {row.outcome}  {row.result}  {row.seconds:.0f} s", flush=True)
        # At once: the whole takes hours, and what stops it must not take the rows with it.
        self.write()
        return done.returncode == 0

    def has_passed(self, python: str, what: str) -> bool:
        """Whether the table has a row of this that passed with the code as it is now."""
        return any(
            cells[:3] == [python, what, "pass"] and cells[COLUMNS.index("code")] == self.code
            for cells in kept_rows(self.out)
        )

    def write(self) -> None:
        again = {(row.python, row.what) for row in self.rows}
        lines = [
            "# The matrix",
            "",
            "Written by `make matrix`; do not edit. What passed where. `code` is a hash of what is",
            f"built and installed; the last row that was run was of {self.code}.",
            "",
            f"{platform.system()} {platform.release()}, {os.cpu_count()} cores.",
            "",
            *not_at_hand(),
            table_line(COLUMNS),
            "|" + "---|" * len(COLUMNS),
        ]
        new = [row.cells() for row in self.rows if row.what != "build" or row.outcome != "pass"]
        kept = [row for row in kept_rows(self.out) if (row[0], row[1]) not in again]
        rows = sorted([*new, *kept], key=lambda row: (row[0] != "none", row[:2]))
        lines += map(table_line, rows)
        self.out.write_text("\n".join(lines) + "\n")


def hear_interrupts() -> None:
    """A job in the background ignores Ctrl-C, and so would what its tests start."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def today() -> str:
    return datetime.datetime.now(tz=datetime.UTC).date().isoformat()


def current_commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True
    )
    return done.stdout.strip()


def current_code() -> str:
    """A hash of what is built and installed, with a + where the checkout is not its commit's."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", *command], cwd=REPO, capture_output=True, text=True, check=True
        ).stdout

    trees = git("rev-parse", *(f"HEAD:{path}" for path in CODE))
    changed = git("status", "--porcelain", "--", *CODE)
    return hashlib.sha256(trees.encode()).hexdigest()[:8] + ("+" if changed else "")


def figures(text: str) -> str:
    """The line in which a run says how much passed."""
    # A suite of other projects' may have several parts, each with such a line.
    parts = re.findall(r"^ecosystem ([^\n]*: \d+ of \d+)$", text, re.MULTILINE)
    if parts:
        return f"ecosystem {'; '.join(parts)}"
    patterns = (
        r"^conformance [^\n]*: \d+ of \d+$",
        r"^=* ?\d+ (?:passed|failed)[^\n]* in [\d.]+s",
        r"^\d+% tests passed[^\n]*",
    )
    for pattern in patterns:
        found = re.findall(pattern, text, re.MULTILINE)
        if found:
            last: str = found[-1].strip("= ")
            return re.sub(r" in [\d.]+s.*$", "", last)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:100] if lines else ""


def pythons() -> list[str]:
    listed = subprocess.run(
        ["scripts/pythons.sh", "list"], cwd=REPO, capture_output=True, text=True, check=True
    )
    return [line.split("\t")[0] for line in listed.stdout.splitlines()]


def run_python(matrix: Matrix, name: str) -> None:
    venv = f"build/venvs/{name}"
    if not matrix.run(name, "build", ["scripts/venv.sh", "--try", "demo", name, venv]):
        return
    python = [f"{venv}/run", f"{venv}/bin/python"]
    matrix.run(name, "Python tests", [*python, "-m", "pytest", *matrix.pytest_options()])
    matrix.run(name, "asyncio's own tests", [*python, "tests/conformance/run.py"])
    # The TLS tests take every path by themselves; CPython's own have to be told.
    suites = ["--suite", "test_ssl", "--suite", "test_sslproto"]
    for path in TLS_PATHS:
        matrix.run(
            name,
            f"asyncio's own TLS tests, {path}",
            [*python, "tests/conformance/run.py", *suites],
            CPPLOOP_TLS=path,
        )


def run_engine(matrix: Matrix) -> None:
    matrix.run("none", "engine tests", ["make", "test-core"])
    matrix.run("none", "engine tests, ASan and UBSan", ["make", "asan"])
    matrix.run("none", "engine tests, TSan", ["make", "tsan"])


def run_sanitized(matrix: Matrix) -> None:
    options = f"PYTEST_ARGS={' '.join(matrix.pytest_options())}"
    matrix.run("newest", "Python tests, ASan and UBSan", ["make", "asan-python", options])
    what = "asyncio's own tests, ASan and UBSan"
    matrix.run("newest", what, ["make", "asan-conformance"])


def run_sanitized_tls(matrix: Matrix, name: str) -> None:
    suites = ["--suite", "test_ssl", "--suite", "test_sslproto"]
    for path in TLS_PATHS:
        matrix.run(
            name,
            f"asyncio's own TLS tests, {path}, ASan and UBSan",
            ["scripts/sanitized.sh", "conformance", name, *suites],
            CPPLOOP_TLS=path,
        )
    files = sorted(str(path.relative_to(REPO)) for path in REPO.glob("tests/python/test_tls*.py"))
    matrix.run(
        name,
        "TLS tests, ASan and UBSan",
        ["scripts/sanitized.sh", "python", name, *matrix.pytest_options(), *files],
        CPPLOOP_TESTS="cpploop",
    )


def run_ecosystem(matrix: Matrix) -> None:
    for suite, holds in ECOSYSTEM.items():
        # aiohttp's takes half an hour, once on each loop.
        command = [sys.executable, "tests/ecosystem/run.py", "--limit", "7200", suite]
        # Their control runs, whatever this says of our own tests'.
        matrix.run("newest", f"ecosystem, {holds}", command, may_skip=True, CPPLOOP_TESTS="")


def kept_rows(out: Path) -> list[list[str]]:
    """The cells of the table's rows."""
    text = out.read_text() if out.exists() else ""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    heads = (COLUMNS[0], "---")
    return [cells for cells in rows if len(cells) == len(COLUMNS) and cells[0] not in heads]


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def not_at_hand() -> list[str]:
    """A paragraph about the free-threaded builds that this machine lacks, if there are any."""
    at_hand = pythons()
    lacking = [name for name in FREE_THREADED if name not in at_hand]
    if not lacking:
        return []
    return [
        f"Free-threaded builds that were not at hand and have not been run: {', '.join(lacking)}.",
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        action="append",
        help="a Python, `engine`, `asan`, `asan-` and a Python: its TLS, or `ecosystem`",
    )
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "dev" / "matrix.md")
    parser.add_argument("--what", default="", help="a part of the name of what is to run")
    parser.add_argument("--jobs", type=int, default=2, help="Python tests at once (default: 2)")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what has passed with this code"
    )
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    matrix = Matrix(
        out=arguments.out,
        resume=arguments.resume,
        wanted=arguments.what,
        jobs=arguments.jobs,
    )
    at_hand = pythons()
    sanitized = [f"{SANITIZED}{name}" for name in at_hand]
    wanted = arguments.only or ["engine", *at_hand, "asan", *sanitized, "ecosystem"]
    for name in wanted:
        if name == "engine":
            run_engine(matrix)
        elif name == "asan":
            run_sanitized(matrix)
        elif name == "ecosystem":
            run_ecosystem(matrix)
        elif name.startswith(SANITIZED):
            run_sanitized_tls(matrix, name.removeprefix(SANITIZED))
        else:
            run_python(matrix, name)
    failed = [f"{row.python}: {row.what}" for row in matrix.rows if row.outcome == "FAIL"]
    passed = sum(row.outcome == "pass" for row in matrix.rows)
    print(f"{passed} of {len(matrix.rows)} passed")
    for line in failed:
        print(f"FAIL {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
