"""What tests/ecosystem/outcomes.py writes down of a suite, and which tests it lets run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ECOSYSTEM = Path(__file__).resolve().parents[1] / "ecosystem"
SUITE = {
    "test_whole.py": """
        import pytest

        def test_passes(): pass
        def test_fails(): raise OSError("no /some/folder/of/this/machine.txt")
        def test_skips(): pytest.skip("not today")
        @pytest.mark.skip
        def test_marked(): pass
        @pytest.mark.xfail
        def test_expected(): assert 0
        @pytest.fixture
        def spoilt():
            yield
            raise ValueError("at the end")
        def test_teardown(spoilt): pass
    """,
    "test_module_skips.py": """
        import pytest
        pytest.skip("nothing here\\nat all", allow_module_level=True)
        def test_unseen(): pass
    """,
    "package/__init__.py": "",
    "package/test_needs.py": """
        import pytest
        pytest.importorskip("no_such_module_anywhere", reason="see https://example.org/a/b/c")
    """,
}
WHOLE = {
    "tests/test_whole.py::test_passes": "passed",
    "tests/test_whole.py::test_fails": "failed",
    "tests/test_whole.py::test_skips": "skipped",
    "tests/test_whole.py::test_marked": "skipped",
    "tests/test_whole.py::test_expected": "xfailed",
    "tests/test_whole.py::test_teardown": "failed",
}
MODULES = {"tests/test_module_skips.py": "skipped", "tests/package/test_needs.py": "skipped"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in SUITE.items():
        file = tmp_path / "tests" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line[8:] for line in text.splitlines()))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(folder: Path, *options: str, **environment: str) -> dict[str, Any]:
    file = folder / "outcomes.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "outcomes", *options, "tests"],
        cwd=folder,
        env={
            **{name: text for name, text in os.environ.items() if not name.startswith("PYTEST")},
            # What else is installed is of no use here, and takes time.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ECOSYSTEM),
            "ECOSYSTEM_OUTCOMES": str(file),
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1, 5), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("processes", [0, 2])
def test_outcomes_and_reasons(folder: Path, processes: int) -> None:
    if processes:
        pytest.importorskip("xdist")
    found = run(folder, *(["-p", "xdist", "-n", str(processes)] if processes else []))
    assert found["outcomes"] == {**WHOLE, **MODULES}
    assert found["reasons"] == {
        "tests/test_whole.py::test_fails": "OSError: no machine.txt",
        "tests/test_whole.py::test_skips": "not today",
        "tests/test_whole.py::test_marked": "unconditional skip",
        "tests/test_whole.py::test_teardown": "ValueError: at the end",
        "tests/test_module_skips.py": "nothing here",
        "tests/package/test_needs.py": "see https://example.org/a/b/c",
    }


def test_a_module_that_cannot_be_imported(folder: Path) -> None:
    (folder / "tests/test_broken.py").write_text("import no_such_module_anywhere\n")
    found = run(folder, "--continue-on-collection-errors")
    assert found["outcomes"]["tests/test_broken.py (collecting)"] == "failed"


NAMES = ("tests/test_whole.py::test_passes", "tests/test_whole.py::test_skips")


@pytest.mark.parametrize(
    ("variable", "names", "kept"),
    [
        ("ECOSYSTEM_ONLY", NAMES, NAMES),
        ("ECOSYSTEM_BUT", NAMES, [test for test in WHOLE if test not in NAMES]),
        ("ECOSYSTEM_BUT", WHOLE, []),
    ],
    ids=["only", "but", "but all"],
)
def test_only_some_or_all_but_some(
    folder: Path, variable: str, names: Iterable[str], kept: Iterable[str]
) -> None:
    file = folder / "names.txt"
    file.write_text("".join(f"{name}\n" for name in names))
    found = run(folder, **{variable: str(file)})["outcomes"]
    assert found == {**{test: WHOLE[test] for test in kept}, **MODULES}
