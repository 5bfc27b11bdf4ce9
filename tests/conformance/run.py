"""Runs CPython's own asyncio tests with cpploop as the loop, and with asyncio as control.

    python tests/conformance/run.py                    everything, two tests at a time
    python tests/conformance/run.py --short            the form for every push
    python tests/conformance/run.py --suite test_ssl -k handshake

What asyncio passes, cpploop must pass, save what exceptions.toml lists with its reason. Exits 0
when that holds, 1 when it does not, 2 when the run itself could not be made.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import control
import exceptions
import suites
from forkpool import Outcome, run_forked
from injection import Injection, InjectionError, asyncio_loop_name

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 30.0
# More failures than this are no accident of timing, and running them again would only take long.
RETRY_LIMIT = 40
FAILING = ("fail", "error", "timeout", "crash")


class RunError(Exception):
    """The run cannot be made; the text says why."""


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [suite.name for suite in suites.SUITES]
    add = parser.add_argument
    add("--loop", default="cpploop", help="cpploop (default), asyncio, or MODULE:FACTORY")
    add("--suite", action="append", metavar="NAME", choices=names, help=", ".join(names))
    add("-k", dest="pattern", metavar="PATTERN", help="part of a name, or an fnmatch pattern")
    add("--short", action="store_true", help="without what is slow or asked twice")
    add("--jobs", type=int, default=2, metavar="N", help="tests at a time (default 2)")
    add("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds a test may take")
    add("--list", action="store_true", help="list the tests and run none")
    add("--json", type=Path, metavar="OUT", help="write every outcome to this file")
    add("--fresh", action="store_true", help="run asyncio anew, ignoring what the cache holds")
    add("--exceptions", type=Path, default=HERE / "exceptions.toml", metavar="FILE")
    add("-v", "--verbose", action="store_true", help="name also what neither loop passes")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1 or arguments.timeout <= 0:
        parser.error("--jobs and --timeout must be positive")
    return arguments


# --- the warm process -----------------------------------------------------------------------------


def warm_process(
    loop: str, arguments: argparse.Namespace, leave_out: set[str], list_only: bool = False
) -> Iterator[dict[str, Any]]:
    """Forks a process that imports the tests for one loop and runs them; yields its messages.

    The first message tells what was collected; every other one is an outcome.
    """
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _live_as_warm_process(write_end, loop, arguments, leave_out, list_only)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as source:
        for line in source:
            message: dict[str, Any] = json.loads(line)
            if "problem" in message:
                os.waitpid(pid, 0)
                raise RunError(message["problem"])
            yield message
    _, status = os.waitpid(pid, 0)
    if status:
        raise RunError(f"the process that runs the tests on {loop} ended with status {status}")


def _live_as_warm_process(
    write_end: int,
    loop: str,
    arguments: argparse.Namespace,
    leave_out: set[str],
    list_only: bool,
) -> NoReturn:
    status = 70
    try:
        with os.fdopen(write_end, "w", encoding="utf-8") as sink:

            def send(message: dict[str, Any]) -> None:
                sink.write(json.dumps(message) + "\n")
                sink.flush()

            try:
                _serve(send, loop, arguments, leave_out, list_only)
            except (InjectionError, RunError) as error:
                send({"problem": str(error)})
        status = 0
    except (KeyboardInterrupt, BrokenPipeError):
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _serve(
    send: Any,
    loop: str,
    arguments: argparse.Namespace,
    leave_out: set[str],
    list_only: bool,
) -> None:
    injection = Injection(loop)
    if injection.is_control and loop != "asyncio":
        raise RunError(f"NOT-INJECTED: {loop} makes asyncio's own {injection.name}")
    injection.install()
    _prove_in_child(injection)
    found = suites.collect(arguments.suite)
    if found.lacking:
        raise RunError("\n".join(found.lacking))
    wanted = {
        test_id: test
        for test_id, test in found.tests.items()
        if _is_wanted(test_id, arguments) and test_id not in leave_out
    }
    send(
        {
            "loop": injection.name,
            "tests": {i: s for i, s in found.suite_of.items() if _is_wanted(i, arguments)},
            "absent": found.absent,
        }
    )
    if list_only:
        return
    failed: dict[str, Outcome] = {}
    for outcome in run_forked(wanted, injection, arguments.jobs, arguments.timeout):
        if outcome.status in FAILING:
            failed[outcome.test] = outcome
        else:
            send(outcome.to_json())
    # A busy machine fails timing tests that are sound. Each failure gets one more try, alone; a
    # test that only then passes is named in the report.
    again = {i: wanted[i] for i in failed} if len(failed) <= RETRY_LIMIT else {}
    for outcome in run_forked(again, injection, 1, arguments.timeout):
        outcome.retried = True
        first = failed.pop(outcome.test)
        if outcome.status not in FAILING:
            outcome.detail = f"first try, {first.status}: {first.detail}"
            outcome.output = first.output
        send(outcome.to_json())
    for outcome in failed.values():
        send(outcome.to_json())


def _prove_in_child(injection: Injection) -> None:
    """Raises when some way of running a coroutine does not run it on the loop under test."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "the proof of injection did not end"
        try:
            text = "\n".join(injection.prove())
        except BaseException:
            text = traceback.format_exc()
        finally:
            os.write(write_end, text.encode())
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as source:
        wrong = source.read()
    _, status = os.waitpid(pid, 0)
    if status and not wrong:
        wrong = f"running a coroutine on {injection.name} killed the process (status {status})"
    if wrong:
        raise RunError(f"NOT-INJECTED: {wrong}")


def _is_wanted(test_id: str, arguments: argparse.Namespace) -> bool:
    if arguments.short and suites.is_left_out_of_short_form(test_id):
        return False
    pattern: str | None = arguments.pattern
    if pattern is None:
        return True
    if any(letter in pattern for letter in "*?["):
        return fnmatch.fnmatchcase(test_id, pattern)
    return pattern in test_id


# --- the two runs ---------------------------------------------------------------------------------


class Report:
    """Both loops' outcomes for the wanted tests, and what follows from them."""

    def __init__(self, entries: list[exceptions.Entry]) -> None:
        self.label = control.python_label()
        self.entries = entries
        self.loop_name = ""
        self.absent: list[str] = []
        self.suite_of: dict[str, str] = {}
        self.asyncio: dict[str, dict[str, Any]] = {}
        self.subject: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def asyncio_passes(self) -> list[str]:
        return [i for i in self.suite_of if self.asyncio.get(i, {}).get("status") == "pass"]

    def passes(self, test_id: str) -> bool:
        return bool(self.subject[test_id]["status"] == "pass")

    def entry_for(self, test_id: str) -> exceptions.Entry | None:
        return next((e for e in self.entries if e.covers(test_id, self.label)), None)

    def judge_injection(self) -> None:
        """A pass counts only when the loop under test was made wherever asyncio makes its own."""
        own = asyncio_loop_name()
        for test_id, outcome in self.subject.items():
            if outcome["status"] != "pass" or self.loop_name == own:
                continue
            made = outcome["made"]
            if made.get(own):
                why = f"asyncio's own {own} was made"
            elif self.asyncio[test_id]["made"].get(own) and not made.get(self.loop_name):
                why = f"asyncio makes its loop here, but no {self.loop_name} was made ({made})"
            else:
                continue
            outcome["status"], outcome["detail"] = "not-injected", why


def run_control(arguments: argparse.Namespace, report: Report) -> None:
    """Fills in asyncio's outcomes, from the cache where it has them."""
    cache = control.ControlCache()
    known = cache.outcomes
    kept = set() if arguments.fresh else set(known)
    started = time.monotonic()
    ran = 0
    for message in warm_process("asyncio", arguments, kept):
        if "tests" in message:
            report.suite_of, report.absent = message["tests"], message["absent"]
            missing = [i for i in report.suite_of if i not in kept]
            if missing:
                say(f"asyncio, {len(missing)} tests as control ...")
            continue
        ran += 1
        known[message["test"]] = message
    if ran:
        report.seconds["asyncio"] = time.monotonic() - started
        cache.save()
    report.asyncio = {i: known[i] for i in report.suite_of if i in known}


def run_subject(arguments: argparse.Namespace, report: Report) -> None:
    started = time.monotonic()
    passed_by_asyncio = set(report.asyncio_passes())
    leave_out = set(report.suite_of) - passed_by_asyncio
    for message in warm_process(arguments.loop, arguments, leave_out):
        if "tests" in message:
            report.loop_name = message["loop"]
            say(f"{report.loop_name}, {len(passed_by_asyncio)} tests ...")
            continue
        if message["status"] in FAILING:
            say(f"  {message['status']}: {message['test']} ({message['seconds']:.1f} s)")
        report.subject[message["test"]] = message
    report.seconds["subject"] = time.monotonic() - started
    report.judge_injection()


# --- the report -----------------------------------------------------------------------------------


def say(text: str = "") -> None:
    print(text, flush=True)


def print_suites(report: Report) -> None:
    asyncio_passes = report.asyncio_passes()
    of_suite = Counter(report.suite_of[i] for i in asyncio_passes)
    passed = Counter(report.suite_of[i] for i in asyncio_passes if report.passes(i))
    say()
    for suite in dict.fromkeys(report.suite_of.values()):
        outcomes = [o for i, o in report.subject.items() if report.suite_of[i] == suite]
        seconds = sum(outcome["seconds"] for outcome in outcomes)
        mark = "" if passed[suite] == of_suite[suite] else "   <--"
        say(f"{suite:26}{passed[suite]:5} of {of_suite[suite]:4}{seconds:9.1f} s{mark}")
    if report.absent:
        say(f"not in this Python: {', '.join(report.absent)}")


def print_failures(report: Report, failures: list[str]) -> None:
    for test_id in failures:
        outcome = report.subject[test_id]
        say(f"\n{'=' * 100}\n{outcome['status'].upper()}: {test_id}")
        if outcome["detail"]:
            say(outcome["detail"].rstrip())
        if outcome["output"].strip():
            say(f"{'-' * 40} its output\n{outcome['output'].rstrip()}")


def names(title: str, lines: list[str]) -> None:
    if lines:
        say(f"\n{title}:")
        for line in lines:
            say(f"  {line}")


def print_report(report: Report, arguments: argparse.Namespace) -> bool:
    """Prints the verdict; true when everything asyncio passes is passed or rightly listed."""
    asyncio_passes = report.asyncio_passes()
    missed = [i for i in asyncio_passes if not report.passes(i)]
    failures = [i for i in missed if report.entry_for(i) is None]
    listed = {i: entry for i in asyncio_passes if (entry := report.entry_for(i)) is not None}
    stale = [i for i in listed if report.passes(i)]

    print_failures(report, failures)
    print_suites(report)
    for section, title in (("exception", "Exceptions"), ("later", "Waiting for a later step")):
        lines = [
            f"{i}: {e.reason}" for i, e in listed.items() if e.section == section and i not in stale
        ]
        names(title, lines)
    flaky = [i for i in asyncio_passes if report.passes(i) and report.subject[i]["retried"]]
    names("Passed only on the second try", flaky)
    louder = [
        i
        for i in asyncio_passes
        if report.passes(i)
        and report.subject[i]["output"].strip()
        and not report.asyncio[i]["output"].strip()
        and i not in flaky
    ]
    names("Passed, but with output where asyncio prints none", louder)
    if arguments.verbose:
        others = [i for i in report.suite_of if i not in set(asyncio_passes)]
        lines = []
        for i in others:
            outcome = report.asyncio.get(i, {"status": "missing", "detail": ""})
            last_line = (outcome["detail"].strip().splitlines() or [""])[-1]
            lines.append(f"{i}: {outcome['status']}: {last_line}")
        names("Not passed by asyncio itself, so not asked of the loop", lines)
    filtered = arguments.suite or arguments.pattern or arguments.short
    unused = [
        f"{e.test}: {e.reason}"
        for e in report.entries
        if e.is_about(report.label) and not any(e.covers(i, report.label) for i in asyncio_passes)
    ]
    if not filtered:
        names(f"Listed in {arguments.exceptions.name}, but no test of this Python", unused)
    names(f"Listed in {arguments.exceptions.name}, but passed: take the entry out", stale)
    names("FAILED", [f"{i} ({report.subject[i]['status']})" for i in failures])

    loop_free = sum(1 for i in asyncio_passes if not report.asyncio[i]["made"])
    statuses = Counter(outcome["status"] for outcome in report.asyncio.values())
    say(
        f"\nasyncio: {len(asyncio_passes)} of {len(report.suite_of)} pass"
        f" ({statuses['skip']} skipped, {sum(statuses[s] for s in FAILING)} fail);"
        f" {loop_free} of those that pass make no loop"
    )
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    passed = len(asyncio_passes) - len(missed)
    say(
        f"{len(listed) - len(stale)} listed, {len(failures)} failed, {len(stale)} wrongly listed,"
        f" {len(flaky)} on the second try; {report.loop_name}; {times}"
    )
    say(f"conformance {report.label}: {passed} of {len(asyncio_passes)}")
    return bool(asyncio_passes) and not failures and not stale


def write_json(path: Path, report: Report) -> None:
    asyncio_passes = report.asyncio_passes()
    document = {
        "python": report.label,
        "version": sys.version,
        "loop": report.loop_name,
        "passed": sum(report.passes(i) for i in asyncio_passes),
        "of": len(asyncio_passes),
        "seconds": report.seconds,
        "absent": report.absent,
        "tests": [
            {
                "test": i,
                "suite": suite,
                "asyncio": report.asyncio.get(i),
                "subject": report.subject.get(i),
            }
            for i, suite in report.suite_of.items()
        ],
    }
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def list_tests(arguments: argparse.Namespace) -> None:
    for message in warm_process("asyncio", arguments, set(), list_only=True):
        for test_id in message["tests"]:
            say(test_id)
        for name in message["absent"]:
            print(f"not in this Python: {name}", file=sys.stderr)


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.list:
            list_tests(arguments)
            return 0
        report = Report(exceptions.load(arguments.exceptions))
        if arguments.loop == "asyncio":
            arguments.fresh = True
        run_control(arguments, report)
        if not report.suite_of:
            raise RunError("no test has such a name")
        if arguments.loop == "asyncio":
            report.loop_name, report.subject = asyncio_loop_name(), report.asyncio
            report.entries = []
        else:
            run_subject(arguments, report)
        good = print_report(report, arguments)
        if arguments.json:
            write_json(arguments.json, report)
    except (RunError, OSError, ValueError) as error:
        print(f"conformance {control.python_label()}: cannot run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
