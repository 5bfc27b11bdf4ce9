#!/usr/bin/env python3
"""Runs other projects' own test suites with cpploop as the only loop, and with asyncio as control.

    tests/ecosystem/run.py uvicorn                    control first, then cpploop, compared
    tests/ecosystem/run.py --short uvicorn anyio      asyncio is asked only what cpploop missed
    tests/ecosystem/run.py --loop asyncio aiohttp     the control alone
    tests/ecosystem/run.py anyio -k test_sockets      a part of it
    tests/ecosystem/run.py aiohttp --shard 2/8        another part: the second eighth of its tests
    tests/ecosystem/run.py --docs                     writes docs/dev/ecosystem.md from what has run

Whatever passes on asyncio must pass on cpploop, save what exceptions.toml lists with its reason.
Exits 0 when that holds, 1 when it does not, 2 when a run itself could not be made, and 77 when
every suite was skipped, because what it takes is not to be had.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import only_loop
import results_page
import sources
from suites import SUITES, Part, Suite

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
BUILD = REPO / "build" / "ecosystem"
PASSING = ("passed", "xfailed")
LOOPS = ("asyncio", "cpploop")
# More misses than this are no accident of timing, and running them again would only take long.
RETRY_LIMIT = 60
TRIES = 2
# What an index of packages refuses once, it may give a little later.
PAUSES_S = (5, 30)
# What pip says in the end when it could not fetch or find a package. Its warnings are of attempts
# that others may have followed.
UNOBTAINABLE = re.compile(
    r"^(?!\s*WARNING).*(Could not find a version|No matching distribution|HTTP error|Client Error"
    r"|Server Error|Max retries exceeded|timed out|Connection broken|incomplete-download)",
    re.MULTILINE,
)
SKIPPED = 77


class RunError(Exception):
    """A run cannot be made; the text says why."""


def say(text: str = "") -> None:
    print(text, flush=True)


# --- exceptions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    suite: str
    test: str
    reason: str


def load_exceptions(path: Path) -> list[Entry]:
    """Raises RunError with the entry at fault: a typing error must not excuse a test."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = []
    for raw in document.pop("exception", []):
        if set(raw) != {"suite", "test", "reason"} or raw["suite"] not in SUITES:
            raise RunError(f"{path.name}: bad entry {raw}")
        entries.append(Entry(**raw))
    if document:
        raise RunError(f"{path.name}: unknown section {', '.join(document)}")
    return entries


# --- one run of a part's tests --------------------------------------------------------------------


@dataclass
class Record:
    """How the tests of one run ended and why, and the loops that ran them."""

    outcomes: dict[str, str]
    reasons: dict[str, str]
    loops: Counter[str]
    strangers: Counter[str]
    processes: int
    seconds: float

    def passed(self) -> set[str]:
        return {test for test, outcome in self.outcomes.items() if outcome in PASSING}

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome in self.outcomes.values())


class Workshop:
    """The environment and the folder in which one suite's tests run."""

    def __init__(self, suite: Suite, arguments: argparse.Namespace) -> None:
        self.suite = suite
        self.arguments = arguments
        self.folder = BUILD / suite.name
        self.venv = self.folder / "venv"
        self.python = self.venv / "bin" / "python"
        self.versions: dict[str, str] = {}
        # Now, because a run is long and the checkout may become another one meanwhile.
        self.commit = current_commit()

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear_state()
        command = [REPO / "scripts/venv.sh", "--no-test"]
        for name in ("ecosystem-build", f"ecosystem-{self.suite.name}"):
            command += ["--with", name]
        make_environment([*command, self.arguments.python, self.venv])
        site = next((self.venv / "lib").glob("python*/site-packages"))
        (site / "cpploop_only_loop.pth").write_text(
            f"import sys; sys.path.append({str(HERE)!r}); import only_loop; only_loop.install()\n"
        )
        for part in self.suite.parts:
            if part.ours:
                continue
            archive = sources.fetch(part, self.python, BUILD)
            self.versions[part.project] = sources.version_of(archive)
            sources.install(part, archive, self.python, self.folder / part.project)

    def clear_state(self) -> None:
        (self.venv / only_loop.STATE).unlink(missing_ok=True)

    def run(
        self,
        part: Part,
        loop: str,
        *,
        only: Iterable[str] | None = None,
        but: Iterable[str] | None = None,
    ) -> Record:
        """Runs a part's tests; ONLY some, or all BUT some, one after the other.

        A run that broke off tells nothing of the tests, and is made once more.
        """
        chosen = {"ONLY": only, "BUT": but}
        choice = {how: sorted(names) for how, names in chosen.items() if names is not None}
        try:
            return self.run_once(part, loop, choice)
        except RunError as error:
            say(f"  once more, because it broke off: {error}")
            return self.run_once(part, loop, choice)

    def run_once(self, part: Part, loop: str, choice: dict[str, list[str]]) -> Record:
        folder = self.folder / part.project
        record, outcomes = folder / "loops.txt", folder / "outcomes.json"
        log = folder / f"{loop}{'-again' if choice else ''}.log"
        for path in (record, outcomes):
            path.unlink(missing_ok=True)
        environment = {**os.environ, **part.environment, "ECOSYSTEM_OUTCOMES": str(outcomes)}
        environment["PYTHONPATH"] = str(HERE)
        environment.pop("CI", None)  # Some suites leave tests out there.
        if self.arguments.shard:
            environment["ECOSYSTEM_SHARD"] = self.arguments.shard
        for how, names in choice.items():
            file = folder / f"{how.lower()}.txt"
            file.write_text("".join(f"{name}\n" for name in names))
            environment[f"ECOSYSTEM_{how}"] = str(file)
        state = {"loop": loop, "record": str(record)}
        (self.venv / only_loop.STATE).write_text(json.dumps(state))
        started = time.monotonic()
        try:
            with log.open("w") as output:
                status = subprocess.run(
                    [*with_localhost(), *self.pytest(part, alone=bool(choice))],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=self.arguments.limit,
                ).returncode
        except subprocess.TimeoutExpired:
            raise RunError(f"not done after {self.arguments.limit} s: {end_of(log)}") from None
        finally:
            self.clear_state()
        # 0 and 1: tests ran; 5: none was asked for.
        if status not in (0, 1, 5) or not outcomes.exists():
            raise RunError(f"pytest ended with {status}: {end_of(log)}")
        found = read_record(outcomes, record, time.monotonic() - started)
        if broken := [name for name in found.outcomes if name.endswith("(collecting)")]:
            raise RunError(f"{broken[0].split()[0]} cannot be imported: {end_of(log)}")
        return found

    def pytest(self, part: Part, *, alone: bool) -> list[str]:
        command = [str(self.python), "-m", "pytest", "-q", "-p", "outcomes"]
        command += [*part.pytest, "-p", "no:cacheprovider", "-o", "timeout=60"]
        if "PYTEST_DISABLE_PLUGIN_AUTOLOAD" in part.environment:
            command += ["-p", "xdist"]
        processes = 1 if alone else part.processes
        # Also where a project's own settings say otherwise.
        command += ["-n", str(processes if processes > 1 else 0)]
        if self.arguments.pattern:
            command += ["-k", self.arguments.pattern]
        return [*command, "tests"]


def read_record(outcomes: Path, record: Path, seconds: float) -> Record:
    loops: Counter[str] = Counter()
    strangers: Counter[str] = Counter()
    pids = set()
    for line in record.read_text().splitlines() if record.exists() else ():
        pid, kind, right = line.split()
        pids.add(pid)
        (loops if right == "1" else strangers)[kind] += 1
    return Record(*read_outcomes(outcomes), loops, strangers, len(pids), seconds)


def read_outcomes(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns how each test ended, and why some were skipped or failed."""
    found = json.loads(path.read_text())
    return found["outcomes"], found["reasons"]


def current_commit() -> str:
    """Names what is checked out; empty where git does not know.

    The pages that runs like this one write do not make it dirty.
    """

    def git(*command: str) -> str:
        whole = ["git", "-c", "safe.directory=*", *command]
        return subprocess.run(whole, cwd=REPO, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("describe", "--always")
        return f"{commit}-dirty" if git("status", "--porcelain", "--", ".", ":!docs") else commit
    except OSError:
        return ""


def end_of(log: Path) -> str:
    """The last lines of a log, for a message that must do without the file."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([f"the end of {log.relative_to(REPO)}", *lines[-20:]])


def make_environment(command: list[Any]) -> None:
    """Raises the end of what COMMAND said, when it failed and failed again.

    As GoneError where a package is not to be had, as RunError where anything else went wrong.
    """
    for pause_s in (*PAUSES_S, None):
        made = subprocess.run(
            [str(word) for word in command],
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if not made.returncode:
            return
        if pause_s is not None:
            time.sleep(pause_s)
    error = sources.GoneError if UNOBTAINABLE.search(made.stdout) else RunError
    raise error(f"the environment could not be made:\n{made.stdout[-2000:]}")


def with_localhost() -> list[str]:
    """What a command is prefixed with, so that localhost is an IPv6 address, too.

    AnyIO's tests expect it and some containers lack it; where root may, tests get a table of their
    own.
    """
    try:
        socket.getaddrinfo("localhost", 0, socket.AF_INET6)
        return []
    except OSError:
        pass
    table = BUILD / "hosts"
    # glibc answers with what stands first in the table, where IPv4 is expected first.
    own = Path("/etc/hosts").read_text()
    table.write_text(f"{own.rstrip()}\n::1 localhost ip6-localhost\n")
    prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" /etc/hosts && exec "$@"',
        str(table),
    ]
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except OSError:
        works = False
    return prefix if works else []


# --- the comparison -------------------------------------------------------------------------------


@dataclass
class Verdict:
    part: Part
    control: Record
    subject: Record
    asyncio_passes: set[str]
    failures: list[str]
    # For each loop, the tests that passed only when they were run again, and at which try.
    alone: dict[str, dict[str, int]]
    listed: dict[str, Entry]
    stale: list[str]

    @property
    def good(self) -> bool:
        proved = self.subject.loops and not self.subject.strangers
        return bool(proved and not self.failures and not self.stale)

    @property
    def tests(self) -> set[str]:
        """All tests that either loop's run knows."""
        return {*self.control.outcomes, *self.subject.outcomes}

    @property
    def fails_on_asyncio(self) -> dict[str, str]:
        """The tests that asyncio failed, also alone, and with what."""
        return {
            test: self.control.reasons.get(test, "")
            for test, how in sorted(self.control.outcomes.items())
            if how == "failed" and test not in self.asyncio_passes
        }


def judge(workshop: Workshop, part: Part, entries: list[Entry]) -> Verdict:
    alone: dict[str, dict[str, int]] = {loop: {} for loop in LOOPS}
    if workshop.arguments.short:
        subject = workshop.run(part, "cpploop")
        announce(workshop, part, "cpploop", subject)
        # Not only what cpploop's run names: of a module that was skipped, it knows no test.
        control = workshop.run(part, "asyncio", but=subject.passed())
        asyncio_passes = subject.passed() | control.passed()
    else:
        control = workshop.run(part, "asyncio")
        announce(workshop, part, "asyncio", control)
        # Some want a process of their own, or fell over a busy machine.
        failed = [test for test, how in control.outcomes.items() if how == "failed"]
        if failed and len(failed) <= RETRY_LIMIT:
            again = workshop.run(part, "asyncio", only=failed).passed()
            alone["asyncio"] = dict.fromkeys(sorted(again), 2)
        asyncio_passes = control.passed() | set(alone["asyncio"])
        subject = workshop.run(part, "cpploop")
        announce(workshop, part, "cpploop", subject)
    # In any order of trying: one that passes alone was spoilt by its neighbours or a busy machine.
    misses = sorted(asyncio_passes - subject.passed())
    for attempt in range(2, 2 + TRIES):
        if misses and len(misses) <= RETRY_LIMIT:
            passed = workshop.run(part, "cpploop", only=misses).passed()
            alone["cpploop"] |= {test: attempt for test in misses if test in passed}
            misses = [test for test in misses if test not in passed]
    mine = [entry for entry in entries if entry.suite == workshop.suite.name]
    listed = {test: entry for test in asyncio_passes if (entry := entry_for(mine, test))}
    alone["cpploop"] = {test: n for test, n in alone["cpploop"].items() if test not in listed}
    return Verdict(
        part,
        control,
        subject,
        asyncio_passes,
        failures=[test for test in misses if test not in listed],
        alone=alone,
        listed={test: entry for test, entry in listed.items() if test in misses},
        stale=sorted(test for test in listed if test not in misses),
    )


def entry_for(entries: list[Entry], test: str) -> Entry | None:
    # Names hold brackets, which fnmatch would take for a set of characters.
    return next((e for e in entries if fnmatch.fnmatchcase(test, e.test.replace("[", "[[]"))), None)


def without_a_test(entries: list[Entry], suite: str, tests: Iterable[str]) -> list[Entry]:
    """Returns a suite's entries that match none of its tests, those of all its parts."""
    tests = list(tests)
    mine = [entry for entry in entries if entry.suite == suite]
    return [entry for entry in mine if not any(entry_for([entry], test) for test in tests)]


def announce(workshop: Workshop, part: Part, loop: str, record: Record) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in record.loops.most_common())
    say(
        f"{part.project} {workshop.versions[part.project]} on {loop}:"
        f" {record.count(*PASSING)} pass, {record.count('failed')} fail,"
        f" {record.count('skipped')} are skipped in {record.seconds:.0f} s"
    )
    say(
        f"  loops that ran: {record.loops.total()} in {record.processes} processes ({kinds});"
        f" of another kind: {record.strangers.total()}"
    )
    for kind, count in record.strangers.items():
        say(f"  NOT {loop.upper()}'S: {count} {kind}")


def report(verdict: Verdict) -> None:
    for test, entry in sorted(verdict.listed.items()):
        say(f"  listed: {test}: {entry.reason}")
    for loop, tests in verdict.alone.items():
        for test, attempt in tests.items():
            say(f"  passed on {loop} only alone, at try {attempt}: {test}")
    for test in verdict.fails_on_asyncio:
        say(f"  fails on asyncio itself: {test}")
    for test in verdict.stale:
        say(f"  FAILED, listed but passes, take the entry out: {test}")
    for test in verdict.failures:
        outcome = verdict.subject.outcomes.get(test, "not run")
        say(f"  FAILED, and passes on asyncio: {test} ({outcome})")
    if not verdict.subject.loops:
        say("  FAILED, no loop of cpploop's ran")


def summary(workshop: Workshop, verdict: Verdict) -> dict[str, Any]:
    return {
        "suite": workshop.suite.name,
        "project": verdict.part.project,
        "version": workshop.versions[verdict.part.project],
        "from": "Debian" if verdict.part.debian else "sdist",
        **circumstances(workshop),
        "asyncio": len(verdict.asyncio_passes),
        "fails_on_asyncio": verdict.fails_on_asyncio,
        **skips(verdict.subject.outcomes, verdict.subject.reasons),
        "cpploop": len(verdict.asyncio_passes) - len(verdict.failures) - len(verdict.listed),
        "loops": verdict.subject.loops.total(),
        "processes": verdict.subject.processes,
        "exceptions": sorted({entry.reason for entry in verdict.listed.values()}),
        "listed": len(verdict.listed),
        "alone": verdict.alone,
        "failures": verdict.failures,
        "seconds": round(verdict.subject.seconds),
    }


def circumstances(workshop: Workshop) -> dict[str, str]:
    """What ran, and when."""
    return {
        "python": sources.python_version(workshop.python),
        "commit": workshop.commit,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }


def skips(outcomes: dict[str, str], reasons: dict[str, str]) -> dict[str, Any]:
    """How much was skipped, and for each reason how much."""
    skipped = [test for test, outcome in outcomes.items() if outcome == "skipped"]
    counts = Counter(reasons.get(test, "") for test in skipped)
    return {"skipped": len(skipped), "skips": dict(counts.most_common())}


def try_suite(name: str, arguments: argparse.Namespace, entries: list[Entry]) -> int:
    """Runs a suite and returns its exit status; what stops one suite does not stop the others."""
    try:
        return 0 if run_suite(name, arguments, entries) else 1
    except sources.GoneError as error:
        say(f"ecosystem {name}: SKIPPED: {error}")
        say("0 passed, 0 failed, 1 skipped")
        return SKIPPED
    except (RunError, sources.SourceError, OSError, ValueError) as error:
        say(f"ecosystem {name}: cannot run: {type(error).__name__}: {error}")
        say("0 passed, 1 failed, 0 skipped")
        return 2


def run_suite(name: str, arguments: argparse.Namespace, entries: list[Entry]) -> bool:
    workshop = Workshop(SUITES[name], arguments)
    workshop.prepare()
    good = True
    in_part = arguments.pattern or arguments.shard
    tests = set[str]()
    for part in workshop.suite.parts:
        if part.ours:
            good = run_ours(workshop, part) and good
            continue
        if arguments.loop == "asyncio":
            announce(workshop, part, "asyncio", workshop.run(part, "asyncio"))
            continue
        verdict = judge(workshop, part, entries)
        tests |= verdict.tests
        if in_part:
            verdict.stale.clear()
        report(verdict)
        result = summary(workshop, verdict)
        if not arguments.short and not in_part:
            path = workshop.folder / f"{part.project}.json"
            path.write_text(json.dumps(result, indent=1) + "\n")
        passed, asked = result["cpploop"], result["asyncio"]
        say(f"ecosystem {part.project} {result['version']}: {passed} of {asked}")
        say(f"{passed} passed, {len(verdict.failures)} failed, {result['skipped']} skipped")
        good = good and verdict.good
    if arguments.loop == "cpploop" and not in_part:
        for entry in without_a_test(entries, name, tests):
            say(f"  FAILED, an exception matches no test, take it out: {entry.test}")
            good = False
    return good


def run_ours(workshop: Workshop, part: Part) -> bool:
    """Runs tests of our own, which say themselves which loop they want."""
    sources.install_programs(part.programs)
    folder = HERE / part.project
    outcomes = workshop.folder / f"{part.project}.outcomes"
    outcomes.unlink(missing_ok=True)
    command = [workshop.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    # -rs: a test that is skipped says why, in what the run prints.
    command += ["-p", "outcomes", "-rs", "-o", "timeout=300", "--rootdir", folder, folder]
    if workshop.arguments.pattern:
        command += ["-k", workshop.arguments.pattern]
    # Its last line is of pytest's form.
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        cwd=workshop.folder,
        env={**os.environ, "ECOSYSTEM_OUTCOMES": str(outcomes)},
    )
    if not workshop.arguments.pattern:
        result = summary_of_ours(workshop, part, *read_outcomes(outcomes))
        path = workshop.folder / f"{part.project}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return ran.returncode == 0


def summary_of_ours(
    workshop: Workshop, part: Part, outcomes: dict[str, str], reasons: dict[str, str]
) -> dict[str, Any]:
    passed = [test for test, outcome in outcomes.items() if outcome in PASSING]
    # The loop is a part of the name where a test has a control.
    control = sum("asyncio" in re.split(r"[\[\]-]", test) for test in passed)
    return {
        "ours": True,
        "suite": workshop.suite.name,
        "with": sources.versions_in(workshop.python, part.packages),
        **circumstances(workshop),
        "asyncio": control,
        "cpploop": len(passed) - control,
        **skips(outcomes, reasons),
        "failures": [test for test, outcome in outcomes.items() if outcome == "failed"],
    }


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="; ".join((*SUITES, "or all")))
    parser.add_argument(
        "--loop", choices=LOOPS, default="cpploop", help="asyncio: the control alone"
    )
    parser.add_argument(
        "--short", action="store_true", help="asyncio runs only what cpploop missed"
    )
    parser.add_argument("-k", dest="pattern", help="only these tests, as pytest's -k")
    parser.add_argument(
        "--shard", type=a_shard, metavar="K/N", help="the K-th of N parts of each suite's tests"
    )
    parser.add_argument("--python", default="newest", help="as scripts/pythons.sh names it")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one run of a suite")
    parser.add_argument("--docs", action="store_true", help="write docs/dev/ecosystem.md")
    arguments = parser.parse_args(argv)
    if arguments.suites == ["all"]:
        arguments.suites = list(SUITES)
    for name in arguments.suites:
        if name not in SUITES:
            parser.error(f"no suite is named {name}; there are {', '.join(SUITES)}")
    if not arguments.suites and not arguments.docs:
        parser.error("which suite?")
    return arguments


def a_shard(text: str) -> str:
    shard, _, shards = text.partition("/")
    if not (shard.isdecimal() and shards.isdecimal() and 1 <= int(shard) <= int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 2/8")
    return text


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    try:
        entries = load_exceptions(HERE / "exceptions.toml")
        statuses = [try_suite(name, arguments, entries) for name in arguments.suites]
        if arguments.docs:
            results_page.write(BUILD, REPO / "docs/dev/ecosystem.md", SUITES)
    except (RunError, OSError, ValueError) as error:
        print(f"ecosystem: cannot run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if statuses and set(statuses) == {SKIPPED}:
        say("skipped: nothing that was asked for is to be had")
        return SKIPPED
    return max((status for status in statuses if status != SKIPPED), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
