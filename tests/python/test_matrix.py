"""What scripts/matrix.py keeps of its table, and what it runs again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "matrix.py"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("matrix", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    sys.modules["matrix"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["matrix"]


@pytest.fixture
def matrix_of(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a matrix that keeps its table and its logs in a folder of the test's."""
    monkeypatch.setattr(script, "LOGS", tmp_path)
    monkeypatch.setattr(script, "not_at_hand", list)
    # A row says when the control did not run, and who runs these tests may have left it out.
    monkeypatch.delenv("CPPLOOP_TESTS", raising=False)

    def make(code: str = "c0de", **settings: Any) -> Any:
        return script.Matrix(out=tmp_path / "matrix.md", commit="abc", code=code, **settings)

    return make


def ran(matrix: Any) -> list[tuple[str, str]]:
    return [(row.what, row.outcome) for row in matrix.rows]


PASSES = [sys.executable, "-c", "print('3 passed in 0.1s')"]
FAILS = [sys.executable, "-c", "print('1 failed, 2 passed in 0.1s'); raise SystemExit(1)"]


def test_a_row_is_kept_as_soon_as_it_has_run(script: Any, matrix_of: Any) -> None:
    matrix = matrix_of()
    assert matrix.run("3.13", "tests", PASSES)
    assert not matrix.run("3.13", "other tests", FAILS)
    rows = script.kept_rows(matrix.out)
    assert [row[:4] for row in rows] == [
        ["3.13", "other tests", "FAIL", "1 failed, 2 passed"],
        ["3.13", "tests", "pass", "3 passed"],
    ]
    # A later run keeps what it does not run, and replaces what it does.
    later = matrix_of("0ther")
    assert later.run("3.13", "other tests", PASSES)
    rows = script.kept_rows(later.out)
    assert [(row[1], row[2], row[5]) for row in rows] == [
        ("other tests", "pass", "0ther"),
        ("tests", "pass", "c0de"),
    ]


def test_a_row_says_that_the_control_did_not_run(
    script: Any, matrix_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = matrix_of()
    monkeypatch.setenv("CPPLOOP_TESTS", "cpploop")
    assert matrix.run("3.13", "tests", PASSES)
    [row] = script.kept_rows(matrix.out)
    assert row[3] == "3 passed, without the control on asyncio"


def test_resuming_runs_what_has_not_passed_with_this_code(matrix_of: Any) -> None:
    first = matrix_of()
    first.run("3.13", "tests", PASSES)
    first.run("3.13", "other tests", FAILS)
    again = matrix_of(resume=True)
    for what in ("tests", "other tests", "new tests"):
        again.run("3.13", what, PASSES)
    assert ran(again) == [("other tests", "pass"), ("new tests", "pass")]
    other_code = matrix_of("0ther", resume=True)
    other_code.run("3.13", "tests", PASSES)
    assert ran(other_code) == [("tests", "pass")]
