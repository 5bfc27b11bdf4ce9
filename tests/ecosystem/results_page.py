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
control and once with cpploop as the only loop of every process, with the commit and on the day
that its row names. "On asyncio" is how many tests pass there, "on cpploop" how many of these pass
on cpploop, "loops" how many loops ran in the second run: each was looked at when it started to run,
and each was cpploop's. A test that passed only when it was run again, alone, counts as passed and
is named below. "Skipped" is on cpploop; a module that was skipped whole counts once. The variants
of tests for trio are left out, and so are websockets' and httpcore's tests of their synchronous
halves.

| project | Python | on asyncio | on cpploop | exceptions | skipped | loops | processes \
| commit | date |
|---|---|---:|---:|---:|---:|---:|---:|---|---|
"""


OURS = """
## Our own tests with other projects' servers and clients

The suites `servers`, `services` and `dask` (`tests/ecosystem/README.md`). Each test asserts which
loop served or ran it; those with a control run on asyncio, too, with the same assertions.

| suite | with | Python | on asyncio | on cpploop | skipped | commit | date |
|---|---|---|---:|---:|---:|---|---|
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
            f" {row['processes']} | {_when(row)} |\n"
        )
    text += _list(
        "Exceptions (`tests/ecosystem/exceptions.toml`):",
        [f"{row['project']}: {reason}" for row in rows for reason in row["exceptions"]],
    )
    text += _list(
        "Passed only when run again, alone:", [line for row in rows for line in _alone(row)]
    )
    for row in rows:
        text += _fails_on_asyncio(row)
    return text + _skips(rows)


def _of_ours(rows: list[dict[str, Any]]) -> str:
    text = OURS
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["with"].items())
        text += (
            f"| {row['suite']} | {versions} | {row['python']} | {row['asyncio'] or '-'} |"
            f" {row['cpploop']} | {row['skipped']} | {_when(row)} |\n"
        )
    return text + _skips(rows)


def _when(row: dict[str, Any]) -> str:
    # Results of earlier versions do not say it, nor some of what is asked for below.
    return f"{row.get('commit') or '-'} | {row.get('date') or '-'}"


def _alone(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['project']} on {loop}, at try {attempt}: {_code(test)}"
        for loop, tests in row.get("alone", {}).items()
        for test, attempt in tests.items()
    ]


def _fails_on_asyncio(row: dict[str, Any]) -> str:
    tests: dict[str, str] = row.get("fails_on_asyncio", {})
    if tests:
        head = f"{row['project']}: {len(tests)} of its tests failed on asyncio itself, with:"
        return _list(head, [f"{_code(test)}: {_reason(why)}" for test, why in tests.items()])
    if count := row.get("asyncio_fails"):
        return f"\n{row['project']}: {count} failed on asyncio itself, not stored which.\n"
    return ""


def _skips(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        name = row.get("project", row["suite"])
        if "skips" in row:
            lines += [f"{name}: {count}: {_reason(why)}" for why, count in row["skips"].items()]
        elif row["skipped"]:
            lines.append(f"{name}: {row['skipped']}, not stored why")
    return _list("Skipped, and why:", lines)


def _failures(rows: list[dict[str, Any]]) -> str:
    return "".join(
        f"\nFAILED{'' if 'ours' in row else ' on cpploop'}: {_code(test)}\n"
        for row in rows
        for test in row["failures"]
    )


def _list(head: str, lines: list[str]) -> str:
    return f"\n{head}\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _reason(text: str) -> str:
    return _code(text) if text else "no reason given"


def _code(text: str) -> str:
    # As code, because names and messages hold what Markdown would take for its own.
    return f"`{text.replace('`', chr(39))}`"
