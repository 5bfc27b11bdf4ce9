"""docs/api-table.md is true of the Python that runs: signatures, places, and the tests it names."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support

TESTS = Path(__file__).resolve().parent
REPO = TESTS.parents[1]
sys.path.insert(0, str(REPO / "scripts"))

api_table = pytest.importorskip("api_table")

if "cpploop" not in support.selected_loops():
    pytest.skip("the table is about cpploop", allow_module_level=True)


def problems() -> list[str]:
    return list(api_table.problems())


def test_the_table_is_true_here() -> None:
    assert problems() == []


def test_a_new_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a newer Python may bring: it fails by name, with what to do."""

    def brand_new(self: Any, first: int, *, second: Any = None) -> None:
        pass

    monkeypatch.setattr(asyncio.AbstractEventLoop, "brand_new", brand_new, raising=False)
    found = [line for line in problems() if "brand_new" in line]
    assert len(found) == 1
    assert found[0].startswith("Loop.brand_new(first, *, second=None): new in asyncio of Python 3.")
    assert "scripts/api_table.py --collect --write" in found[0]


def test_a_new_parameter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def call_soon(
        self: Any, callback: Any, *args: Any, context: Any = None, urgent: Any = 0
    ) -> None:
        pass

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon", call_soon)
    found = [line for line in problems() if "urgent" in line]
    assert len(found) == 2
    assert "has (callback, *args, context=None, urgent=0)" in found[0]
    assert "ours is (callback, *args, context=None) (native)" in found[1]


def test_a_method_that_went_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(asyncio.Server, "is_serving")
    monkeypatch.delattr(asyncio.AbstractServer, "is_serving", raising=False)
    assert [line for line in problems() if line.startswith("Server.is_serving: gone")]


def test_a_test_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tests = json.loads(api_table.TESTS.read_text(encoding="utf-8"))
    tests["loop"]["call_at"] = "test_timers.py::test_of_old"
    tests["loop"]["time"] = "test_no_such_file.py::test_it"
    del tests["loop"]["call_soon"]
    tests["loop"]["no_such_method"] = "test_timers.py::test_never_early"
    monkeypatch.setattr(api_table, "TESTS", tmp_path / "api_tests.json")
    api_table.TESTS.write_text(json.dumps(tests), encoding="utf-8")
    found = "\n".join(problems())
    assert "Loop.call_at: test_timers.py::test_of_old is named" in found
    assert "no such file" in found
    assert "Loop.call_soon: no test is named" in found
    assert "Loop.no_such_method: named in" in found


def test_native_methods_have_signatures() -> None:
    """inspect.signature() works on every public native method."""
    for section, members in api_table.our_members().items():
        for name, (signature, where) in members.items():
            assert signature != "no signature", f"{section}.{name} ({where})"


@pytest.mark.slow
def test_the_tests_named_call_what_they_are_named_for(tmp_path: Path) -> None:
    named = api_table.load(api_table.TESTS)
    here = api_table.asyncio_signatures()
    wanted = {
        f"{section}.{name}": named[section][name]
        for section, names in here.items()
        for name in names
    }
    trace = tmp_path / "trace.json"
    environment = {
        **os.environ,
        "CPPLOOP_TESTS": "cpploop",
        "CPPLOOP_API_TRACE": str(trace),
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "api_trace", "-p", "no:cacheprovider"]
    command += sorted({str(TESTS / test.split("[")[0]) for test in wanted.values()})
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=REPO, timeout=50
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    called = json.loads(trace.read_text(encoding="utf-8"))
    missing = [
        f"{what}: not called by {test}"
        for what, test in wanted.items()
        if what not in called.get(test, ())
    ]
    assert not missing, "\n".join(missing)
