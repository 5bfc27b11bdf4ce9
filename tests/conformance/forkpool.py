"""Runs each test in a process forked from this one, with a time-out and its output captured.

The parent stays single-threaded and makes no loop, so a fork is a clean copy of a warm interpreter:
a few milliseconds instead of half a second of imports. A child leads a process group of its own,
which is killed with everything it started as soon as the test is over.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unittest
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from injection import Injection

POLL_S = 0.002
# How long a child that has timed out gets to write its stack before it is killed.
STACK_DUMP_S = 2.0
OUTPUT_LIMIT = 20_000


@dataclass
class Outcome:
    """What became of one test. `made` counts the loops it made, by class."""

    test: str
    status: str  # pass, fail, error, skip, timeout, crash, not-injected
    seconds: float = 0.0
    detail: str = ""
    output: str = ""
    made: dict[str, int] = field(default_factory=dict)
    retried: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Running:
    test: str
    folder: str
    started: float
    stack_dump_until: float | None = None


def run_forked(
    tests: dict[str, unittest.TestCase], injection: Injection, jobs: int, timeout_s: float
) -> Iterator[Outcome]:
    """Yields an outcome per test, in the order in which they end."""
    scratch = tempfile.mkdtemp(prefix="conformance-")
    waiting = list(reversed(tests.items()))
    running: dict[int, _Running] = {}
    gc.collect()
    gc.freeze()  # Keeps the shared pages shared: no child's collection touches them.
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                test_id, test = waiting.pop()
                folder = os.path.join(scratch, str(len(waiting)))
                os.makedirs(os.path.join(folder, "cwd"))
                sys.stdout.flush()
                sys.stderr.flush()
                pid = os.fork()
                if pid == 0:
                    _run_in_child(test, injection, folder)
                with contextlib.suppress(OSError):  # The child does the same; one is first.
                    os.setpgid(pid, pid)
                running[pid] = _Running(test_id, folder, time.monotonic())
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                _kill_group(pid)
                child = running.pop(pid)
                yield _read_outcome(child, wait_status)
                shutil.rmtree(child.folder, ignore_errors=True)
                continue
            for pid, child in running.items():
                _enforce_deadline(pid, child, timeout_s)
            time.sleep(POLL_S)
    finally:
        for pid in running:
            _kill_group(pid)
            os.waitpid(pid, 0)
        shutil.rmtree(scratch, ignore_errors=True)
        gc.unfreeze()


def _enforce_deadline(pid: int, child: _Running, timeout_s: float) -> None:
    now = time.monotonic()
    if child.stack_dump_until is None:
        if now - child.started > timeout_s:
            child.stack_dump_until = now + STACK_DUMP_S
            os.kill(pid, signal.SIGABRT)  # faulthandler prints every thread's stack, then dies.
    elif now > child.stack_dump_until:
        _kill_group(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _read_outcome(child: _Running, wait_status: int) -> Outcome:
    seconds = time.monotonic() - child.started
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(child.folder, "outcome.json"), encoding="utf-8") as file:
            outcome = Outcome(test=child.test, **json.load(file))
        outcome.output = _read_output(child.folder)
        return outcome
    code = os.waitstatus_to_exitcode(wait_status)
    if child.stack_dump_until is not None:
        status, detail = "timeout", f"still running after {seconds:.0f} s"
    elif code < 0:
        status, detail = "crash", f"died of {signal.Signals(-code).name}"
    else:
        status, detail = "crash", f"exited with status {code} before the test ended"
    return Outcome(child.test, status, round(seconds, 3), detail, _read_output(child.folder))


def _read_output(folder: str) -> str:
    with contextlib.suppress(OSError):
        with open(os.path.join(folder, "output"), encoding="utf-8", errors="replace") as file:
            text = file.read()
        if len(text) > OUTPUT_LIMIT:
            half = OUTPUT_LIMIT // 2
            text = f"{text[:half]}\n[... {len(text) - OUTPUT_LIMIT} characters ...]\n{text[-half:]}"
        return text
    return ""


def _run_in_child(test: unittest.TestCase, injection: Injection, folder: str) -> NoReturn:
    """The forked child's whole life. Ends by _exit: the parent's exit handlers are not ours."""
    exit_code = 70
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _redirect_standard_streams(folder)
        faulthandler.enable(file=2)
        # Names such as os_helper.TESTFN hold the parent's pid; a folder each keeps them apart.
        os.chdir(os.path.join(folder, "cwd"))
        tempfile.tempdir = None
        injection.forget()
        outcome = _run_one(test, injection)
        partial = os.path.join(folder, "outcome.part")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(outcome, file)
        sys.stdout.flush()
        sys.stderr.flush()
        os.rename(partial, os.path.join(folder, "outcome.json"))
        exit_code = 0
    except BaseException:
        traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stderr.flush()
    finally:
        os._exit(exit_code)


def _redirect_standard_streams(folder: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    output = os.open(os.path.join(folder, "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _run_one(test: unittest.TestCase, injection: Injection) -> dict[str, Any]:
    result = unittest.TestResult()
    started = time.monotonic()
    # A TestSuite, so that the module's and the class's own fixtures run too.
    unittest.TestSuite([test]).run(result)
    seconds = time.monotonic() - started
    gc.collect()  # What is dropped here dies inside the test, not unseen after it.
    if result.errors or result.failures:
        status = "error" if result.errors else "fail"
        detail = "\n".join(trace for _, trace in result.errors + result.failures)
    elif result.unexpectedSuccesses:
        status, detail = "fail", "unexpected success"
    elif result.skipped:
        status, detail = "skip", "; ".join(reason for _, reason in result.skipped)
    elif result.testsRun != 1:
        status, detail = "error", f"{result.testsRun} tests ran instead of one"
    else:
        status, detail = "pass", ""
    return {
        "status": status,
        "seconds": round(seconds, 3),
        "detail": detail,
        "made": dict(injection.made),
    }
