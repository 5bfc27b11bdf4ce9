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


OURS = """
## Our own tests with other projects' servers and clients

The suites `servers`, `services` and `dask` (`tests/ecosystem/README.md`). Each test asserts which
loop served or ran it; those with a control run on asyncio, too, with the same assertions.

| suite | with | Python | on asyncio | on cpploop | skipped |
|---|---|---|---:|---:|---:|
"""


def write(build: Path, page: Path, suites: Iterable[str]) -> None:
    """Write PAGE; the suites are in the order of their list."""
    rows: list[dict[str, Any]] = []
    for suite in suites:
        rows += [json.loads(path.read_text()) for path in sorted((build / suite).glob("*.json"))]
    theirs = [row for row in rows if "ours" not in row]
    ours = [row for row in rows if "ours" in row]
    page.write_text(_of_theirs(theirs) + (_of_ours(ours) if ours else "") + _failures(rows))


def _of_theirs(rows: list[dict[str, Any]]) -> str:
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
    return text


def _of_ours(rows: list[dict[str, Any]]) -> str:
    text = OURS
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["with"].items())
        text += (
            f"| {row['suite']} | {versions} | {row['python']} | {row['asyncio'] or '-'} |"
            f" {row['cpploop']} | {row['skipped']} |\n"
        )
    return text


def _failures(rows: list[dict[str, Any]]) -> str:
    return "".join(f"\nFAILED on cpploop: `{test}`\n" for row in rows for test in row["failures"])
