"""Writes docs/dev/ecosystem.md from what the suites' last full runs left."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = """\
# Other projects' own tests on cpploop

Written by `tests/ecosystem/run.py all --docs`; not to be edited. Each suite is its project's own,
from its source distribution (websockets' from Debian's source package), run once on asyncio as
control and once with cpploop as the only loop of every process. "On asyncio" is how many tests pass
there, "on cpploop" how many of these pass on cpploop, "loops" how many loops ran in the second run:
each was looked at when it started to run, and each was cpploop's. The variants of tests for trio
are left out, and so are websockets' and httpcore's tests of their synchronous halves.

| project | Python | on asyncio | on cpploop | exceptions | skipped | loops | processes |
|---|---|---:|---:|---:|---:|---:|---:|
"""


def write(build: Path, page: Path, suites: Iterable[str]) -> None:
    """Write PAGE; the suites are in the order of their list."""
    rows: list[dict[str, Any]] = []
    for suite in suites:
        rows += [json.loads(path.read_text()) for path in sorted((build / suite).glob("*.json"))]
    text = HEAD
    for row in rows:
        source = ", Debian's" if row["from"] == "Debian" else ""
        text += (
            f"| {row['project']} {row['version']}{source} | {row['python']} | {row['asyncio']} |"
            f" {row['cpploop']} | {row['listed']} | {row['skipped']} | {row['loops']} |"
            f" {row['processes']} |\n"
        )
    text += "\nExceptions (`tests/ecosystem/exceptions.toml`):\n\n"
    for row in rows:
        for reason in row["exceptions"]:
            text += f"- {row['project']}: {reason}\n"
    for row in rows:
        if row["asyncio_fails"]:
            text += (
                f"\n{row['project']}: {row['asyncio_fails']} of its tests failed on asyncio itself"
                " where this was written (no network, other versions of what they need).\n"
            )
        for test in row["failures"]:
            text += f"\nFAILED on cpploop: `{test}`\n"
    page.write_text(text)
