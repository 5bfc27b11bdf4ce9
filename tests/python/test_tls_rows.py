"""docs/dev/tls-rows.md names tests; they must exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "dev" / "tls-rows.md"


def named() -> dict[str, list[str]]:
    """The tests listed on the page, by row."""
    rows: dict[str, list[str]] = {}
    row = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.match(r"## (T\d+)\b", line):
            row = heading[1]
            rows[row] = []
        elif entry := re.fullmatch(r"- (\w+\.py::\w+)", line):
            rows[row].append(entry[1])
    return rows


def test_every_row_is_there() -> None:
    rows = named()
    assert list(rows) == [f"T{number}" for number in range(1, 11)]
    assert all(tests for row, tests in rows.items() if row != "T10")


@pytest.mark.parametrize("row", [f"T{number}" for number in range(1, 10)])
def test_named_tests_exist(row: str) -> None:
    for entry in named()[row]:
        file, _, name = entry.partition("::")
        tree = ast.parse((HERE / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{row}: {entry} does not exist"


FEATURES = (
    "SNI callback",
    "keylog",
    "message callback",
    "ALPN",
    "client certificate",
    "bad host name, expired certificate",
    "resumption",
    "half-close",
    "garbage before the handshake",
    "garbage during the handshake",
    "garbage after the handshake",
    "truncated records",
)


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_tried_on_every_way(feature: str) -> None:
    """Its tests are there, and each takes every way of doing TLS, which a fixture brings."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {feature} |")]
    assert len(lines) == 1
    cited = re.findall(r"`(\w+\.py)::(\w+)`", lines[0])
    assert cited
    for file, name in cited:
        body = ast.parse((HERE / file).read_text()).body
        found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
        assert len(found) == 1, f"{file}::{name}"
        fixtures = {argument.arg for argument in found[0].args.args}
        assert fixtures & {"tls_run", "tls_name", "tls_compare"}, f"{file}::{name}"
