"""A pytest plugin of ours: which tests of a suite run, and how each of them ended.

In the environment: ECOSYSTEM_OUTCOMES names the file that the outcomes go to, as JSON, and why
tests were skipped or failed; ECOSYSTEM_ONLY, when set, a file with the names of the tests to run;
ECOSYSTEM_BUT, when set, one with the names of those that are left out; ECOSYSTEM_SHARD, when set,
which part of them, 2/8 for the second eighth.

A module that is skipped while it is collected is an outcome, too, under the module's name.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

# From good to bad: a test that passes and whose teardown fails has failed.
ORDER = ("xfailed", "passed", "skipped", "failed")

# The folders of an absolute path, which differ from machine to machine; not those of an URL.
FOLDERS = re.compile(r"(?<![\w:/])/(?:[^\s/'\":]+/)+")
REASON_LENGTH = 160

outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    # Known by a plugin that nothing here needs.
    config.addinivalue_line("markers", "trio: left out, because no loop of asyncio's runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only, but = _names_in("ECOSYSTEM_ONLY"), _names_in("ECOSYSTEM_BUT")
    shard, shards = map(int, os.environ.get("ECOSYSTEM_SHARD", "1/1").split("/"))
    kept, left_out = [], []
    for item in items:
        asked = not _is_of_trio(item) and (only is None or item.nodeid in only)
        asked = asked and (but is None or item.nodeid not in but)
        # By the name, so that a new test does not move the others.
        asked = asked and zlib.crc32(item.nodeid.encode()) % shards == shard - 1
        (kept if asked else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def _names_in(variable: str) -> set[str] | None:
    file = os.environ.get(variable)
    return set(Path(file).read_text().splitlines()) if file else None


def _is_of_trio(item: pytest.Item) -> bool:
    """Whether the test is a suite's variant for the other library: no loop of asyncio's runs."""
    if item.get_closest_marker("trio"):
        return True
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    backend = parameters.get("anyio_backend")
    return (backend[0] if isinstance(backend, tuple) else backend) == "trio"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names a loop's class alike on every loop, because pytest makes it part of a test's name."""
    is_loop = isinstance(val, type) and issubclass(val, asyncio.AbstractEventLoop)
    return "loop-class" if is_loop else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    outcome = "xfailed" if hasattr(report, "wasxfail") else str(report.outcome)
    if outcome == "xfailed" and report.outcome == "passed":
        outcome = "passed"  # Expected to fail, and did not: not asked to be strict about.
    _note(report.nodeid, outcome, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[f"{report.nodeid} (collecting)"] = "failed"
    elif report.skipped:
        _note(report.nodeid, "skipped", report)


def _note(name: str, outcome: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    # Subtests report under their test's name.
    before = outcomes.get(name, "xfailed")
    outcomes[name] = max(before, outcome, key=ORDER.index)
    if outcomes[name] != before and outcome in ("skipped", "failed"):
        reasons[name] = _reason(report)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The first line of why a test was skipped, or of what it failed with."""
    longrepr: Any = report.longrepr
    if isinstance(longrepr, (tuple, list)):  # A skip: file, line and message.
        text = str(longrepr[-1]).removeprefix("Skipped: ")
    elif isinstance(longrepr, str):
        text = longrepr
    else:
        text = getattr(getattr(longrepr, "reprcrash", None), "message", "")
    return FOLDERS.sub("", text.strip().partition("\n")[0])[:REASON_LENGTH].strip()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # The processes of pytest-xdist report to the one that started them, and only that one writes.
    if not hasattr(session.config, "workerinput"):
        found = {"outcomes": outcomes, "reasons": reasons}
        Path(os.environ["ECOSYSTEM_OUTCOMES"]).write_text(json.dumps(found, indent=0))
