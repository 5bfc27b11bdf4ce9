"""docs/dev/user-rows.md names a test for every row, and each of them is there and cites the row."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parents[1] / "docs" / "dev" / "user-rows.md"
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ((?:`\w+::\w+`(?:, )?)+) \|$", re.MULTILINE)
# What a tracker's entry, or a row of the first table, looks like. Other rows have a name only.
TAG = re.compile(r"C\d+|[\w-]+(?: PR)?#\d+")

ROWS = [
    (row, re.findall(r"`(\w+)::(\w+)`", tests)) for row, _, tests in ROW.findall(PAGE.read_text())
]


@functools.cache
def docstrings(module: str) -> dict[str, str]:
    """The docstring of each test of MODULE, the module's own put before it."""
    tree = ast.parse((TESTS / f"{module}.py").read_text())
    own = ast.get_docstring(tree) or ""
    return {
        node.name: f"{own}\n{ast.get_docstring(node) or ''}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


@pytest.mark.parametrize(("row", "tests"), ROWS, ids=[row for row, _ in ROWS])
def test_a_row_has_its_tests(row: str, tests: list[tuple[str, str]]) -> None:
    cited = ""
    for module, test in tests:
        assert test in docstrings(module), f"no such test: {module}::{test}"
        cited += docstrings(module)[test]
    for tag in row.split(", "):
        if TAG.fullmatch(tag):
            assert re.search(rf"{re.escape(tag)}\b", cited), f"no test cites {tag}"


def test_all_rows_of_the_first_table_are_there() -> None:
    tags = {tag for row, _ in ROWS for tag in row.split(", ")}
    assert tags >= {f"C{number}" for number in range(1, 16)}
    # A row whose form the pattern above does not know would not be checked.
    text = PAGE.read_text()
    lines = [line for line in text.splitlines() if line.startswith("|") and "::" in line]
    assert len(lines) == len(ROWS)
