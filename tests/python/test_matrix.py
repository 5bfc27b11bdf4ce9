"""What scripts/matrix.py keeps of its table, what it runs again, and its rows of other suites."""

from __future__ import annotations

import ast
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


PARTS = """\
httpx 0.28.1 on cpploop: 1283 pass, 5 fail, 1 are skipped in 33 s
ecosystem httpx 0.28.1: 1283 of 1284
1283 passed, 1 failed, 1 skipped
ecosystem httpcore 1.0.9: 84 of 84
84 passed, 0 failed, 0 skipped
"""


def test_the_figures_of_other_projects_suites(script: Any) -> None:
    assert script.figures(PARTS) == "ecosystem httpx 0.28.1: 1283 of 1284; httpcore 1.0.9: 84 of 84"
    assert (
        script.figures("ecosystem u 1.0: 3 of 3\n3 passed, 0 failed\n") == "ecosystem u 1.0: 3 of 3"
    )
    # One that broke off, and one of our own, whose last line is pytest's.
    text = "ecosystem u: cannot run: RunError: why\n0 passed, 1 failed, 0 skipped\n"
    assert script.figures(text) == "0 passed, 1 failed, 0 skipped"
    assert script.figures("33 passed, 2 skipped in 100.10s (0:01:40)") == "33 passed, 2 skipped"


def test_a_row_of_each_suite(
    script: Any, matrix_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(
        "#!/bin/sh\n"
        "case $4 in\n"
        "  httpx) echo 'ecosystem httpx 1: 2 of 2'; echo 'ecosystem httpcore 1: 3 of 3' ;;\n"
        "  dask) echo 'skipped: nothing that was asked for is to be had'; exit 77 ;;\n"
        "  anyio) echo 'ecosystem anyio 1: 2 of 3'; exit 1 ;;\n"
        "  *) echo '4 passed in 0.1s' ;;\n"
        "esac\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    # Says nothing of their control, which always runs.
    monkeypatch.setenv("CPPLOOP_TESTS", "cpploop")
    matrix = matrix_of()
    script.run_ecosystem(matrix)
    suites = ("uvicorn", "websockets", "anyio", "httpx and httpcore", "aiohttp")
    suites += ("servers", "services", "dask")
    assert [row.what for row in matrix.rows] == [f"ecosystem, {name}" for name in suites]
    rows = {row.what.removeprefix("ecosystem, "): (row.outcome, row.result) for row in matrix.rows}
    assert rows["uvicorn"] == ("pass", "4 passed")
    assert rows["httpx and httpcore"] == ("pass", "ecosystem httpx 1: 2 of 2; httpcore 1: 3 of 3")
    assert rows["anyio"] == ("FAIL", "ecosystem anyio 1: 2 of 3")
    assert rows["dask"] == ("skip", "skipped: nothing that was asked for is to be had")
    # What was skipped has not passed, and only what may be skipped is.
    again = matrix_of(resume=True)
    script.run_ecosystem(again)
    assert [row.what for row in again.rows] == ["ecosystem, anyio", "ecosystem, dask"]
    again.run("3.13", "tests", [str(stand_in), "", "", "", "dask"])
    assert ran(again)[-1] == ("tests", "FAIL")


def test_every_suite_has_a_row(script: Any) -> None:
    suites = SCRIPT.parents[1] / "tests" / "ecosystem" / "suites.py"
    calls = [node for node in ast.walk(ast.parse(suites.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Suite"]
    names = [ast.literal_eval(call.args[0]) for call in made]
    assert names and set(names) == set(script.ECOSYSTEM)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--only", "ecosystem"], ["ecosystem"]),
        ([], ["engine", "3.13", "asan", "asan-3.13", "ecosystem"]),
    ],
)
def test_what_is_run_by_default_and_on_request(
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: list[str],
    expected: list[str],
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(script, "LOGS", tmp_path)
    monkeypatch.setattr(script, "pythons", lambda: ["3.13"])
    monkeypatch.setattr(script, "current_code", lambda: "c0de")
    monkeypatch.setattr(script, "run_engine", lambda matrix: begun.append("engine"))
    monkeypatch.setattr(script, "run_sanitized", lambda matrix: begun.append("asan"))
    monkeypatch.setattr(script, "run_ecosystem", lambda matrix: begun.append("ecosystem"))
    monkeypatch.setattr(script, "run_python", lambda matrix, name: begun.append(name))
    monkeypatch.setattr(
        script, "run_sanitized_tls", lambda matrix, name: begun.append(f"asan-{name}")
    )
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--out", str(tmp_path / "m.md"), *options])
    assert script.main() == 0
    assert begun == expected
