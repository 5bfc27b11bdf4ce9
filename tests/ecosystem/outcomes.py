"""A pytest plugin of ours: which tests of a suite run, and how each of them ended.

In the environment: ECOSYSTEM_OUTCOMES names the file that the outcomes go to, as JSON;
ECOSYSTEM_ONLY, when set, a file with the names of the tests to run; ECOSYSTEM_SHARD, when set,
which part of them, 2/8 for the second eighth.
"""

from __future__ import annotations

import asyncio
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest

# From good to bad: a test that passes and whose teardown fails has failed.
ORDER = ("xfailed", "passed", "skipped", "failed")

outcomes: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    # Known by a plugin that nothing here needs.
    config.addinivalue_line("markers", "trio: left out, because no loop of asyncio's runs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = os.environ.get("ECOSYSTEM_ONLY")
    wanted = set(Path(only).read_text().splitlines()) if only else None
    shard, shards = map(int, os.environ.get("ECOSYSTEM_SHARD", "1/1").split("/"))
    kept, left_out = [], []
    for item in items:
        asked = not _is_of_trio(item) and (wanted is None or item.nodeid in wanted)
        # By the name, so that a new test does not move the others.
        asked = asked and zlib.crc32(item.nodeid.encode()) % shards == shard - 1
        (kept if asked else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


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
    # Subtests report under their test's name.
    before = outcomes.get(report.nodeid, "xfailed")
    outcomes[report.nodeid] = max(before, outcome, key=ORDER.index)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        outcomes[f"{report.nodeid} (collecting)"] = "failed"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    # The processes of pytest-xdist report to the one that started them, and only that one writes.
    if not hasattr(session.config, "workerinput"):
        Path(os.environ["ECOSYSTEM_OUTCOMES"]).write_text(json.dumps(outcomes, indent=0))
