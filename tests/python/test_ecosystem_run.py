"""How tests/ecosystem/run.py judges a suite, and what its page says of that."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ECOSYSTEM = Path(__file__).resolve().parents[1] / "ecosystem"


@pytest.fixture(scope="module", autouse=True)
def script() -> Iterator[ModuleType]:
    """The script as a module; others of ours have modules of the same names."""
    with pytest.MonkeyPatch.context() as patch:
        for path in ECOSYSTEM.glob("*.py"):
            patch.delitem(sys.modules, path.stem, raising=False)
        patch.syspath_prepend(str(ECOSYSTEM))
        yield importlib.import_module("run")
        for path in ECOSYSTEM.glob("*.py"):
            sys.modules.pop(path.stem, None)


class Bench:
    """Stands for a workshop: tables say what each run finds, the first run on a loop first."""

    def __init__(self, script: ModuleType, folder: Path, **arguments: Any) -> None:
        self.script = script
        self.folder = folder
        defaults = {"short": False, "shard": None, "pattern": None, "loop": "cpploop"}
        self.arguments = argparse.Namespace(**{**defaults, **arguments})
        self.suite = script.Suite("uvicorn", (script.Part("uvicorn"),))
        self.versions = {"uvicorn": "1.0", "other": "2.0"}
        self.python = Path(sys.executable)
        self.commit = "c0ffee1"
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.reasons: dict[str, str] = {}
        self.asked: list[tuple[str, str]] = []

    def prepare(self) -> None:
        pass

    def run(
        self,
        part: Any,
        loop: str,
        *,
        only: Iterable[str] | None = None,
        but: Iterable[str] | None = None,
    ) -> Any:
        tables = self.tables[loop]
        found = tables.pop(0) if len(tables) > 1 else tables[0]
        # As pytest does: a module's name is no test's, so it can be neither asked for nor left out.
        tests = {test for test in found if "::" in test}
        if only is not None:
            tests &= set(only)
            self.asked.append((loop, "only"))
        if but is not None:
            tests -= set(but)
            self.asked.append((loop, "but"))
        outcomes = {test: how for test, how in found.items() if test in tests or "::" not in test}
        reasons = {test: why for test, why in self.reasons.items() if test in outcomes}
        return self.script.Record(outcomes, reasons, Counter({"a loop": 3}), Counter(), 1, 2.0)

    def judge(self, *entries: Any) -> Any:
        return self.script.judge(self, self.suite.parts[0], list(entries))


@pytest.fixture
def bench(script: ModuleType, tmp_path: Path) -> Bench:
    return Bench(script, tmp_path)


GOOD = {"t.py::a": "passed", "t.py::b": "passed", "u.py::c": "passed", "u.py::d": "skipped"}
# The whole module u.py is skipped, and nothing tells which tests it holds.
MODULE_SKIPPED = {"t.py::a": "passed", "t.py::b": "passed", "u.py": "skipped"}
MODULE_GONE = {"t.py::a": "passed", "t.py::b": "passed"}


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("found", [MODULE_SKIPPED, MODULE_GONE])
def test_a_module_left_out_on_cpploop_alone(
    bench: Bench, short: bool, found: dict[str, str]
) -> None:
    bench.arguments.short = short
    bench.tables = {"asyncio": [GOOD], "cpploop": [found]}
    verdict = bench.judge()
    assert verdict.failures == ["u.py::c"] and not verdict.good
    assert (("asyncio", "but") in bench.asked) == short


@pytest.mark.parametrize("short", [True, False])
def test_a_module_left_out_on_both(bench: Bench, short: bool) -> None:
    bench.arguments.short = short
    bench.tables = {"asyncio": [MODULE_SKIPPED], "cpploop": [MODULE_SKIPPED]}
    verdict = bench.judge()
    assert verdict.good and verdict.asyncio_passes == {"t.py::a", "t.py::b"}


@pytest.mark.parametrize("short", [True, False])
def test_tests_that_fail_on_both_or_on_cpploop_alone(bench: Bench, short: bool) -> None:
    bench.arguments.short = short
    bench.reasons = {"t.py::a": "OSError: no network"}
    bench.tables = {
        "asyncio": [GOOD | {"t.py::a": "failed"}],
        "cpploop": [GOOD | {"t.py::a": "failed", "t.py::b": "failed", "u.py::c": "skipped"}],
    }
    verdict = bench.judge()
    assert verdict.failures == ["t.py::b", "u.py::c"]
    assert verdict.fails_on_asyncio == {"t.py::a": "OSError: no network"}


def test_a_test_that_passes_at_a_later_try_is_named(
    bench: Bench, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.tables = {
        "asyncio": [GOOD | {"u.py::c": "failed"}, GOOD],
        "cpploop": [
            GOOD | {"t.py::a": "failed", "t.py::b": "failed"},
            GOOD | {"t.py::b": "failed"},
            GOOD,
        ],
    }
    verdict = bench.judge()
    assert verdict.good
    assert verdict.alone == {"asyncio": {"u.py::c": 2}, "cpploop": {"t.py::a": 2, "t.py::b": 3}}
    script.report(verdict)
    assert "passed on cpploop only alone, at try 3: t.py::b" in capsys.readouterr().out
    result = json.loads(json.dumps(script.summary(bench, verdict)))
    assert result["alone"] == verdict.alone
    assert result["asyncio"] == result["cpploop"] == 3


def test_entries_excuse_what_fails_and_are_stale_when_it_passes(
    bench: Bench, script: ModuleType
) -> None:
    entry = script.Entry("uvicorn", "t.py::*", "why")
    bench.tables = {"asyncio": [GOOD], "cpploop": [GOOD | {"t.py::a": "failed"}]}
    verdict = bench.judge(entry)
    assert verdict.listed == {"t.py::a": entry}
    assert verdict.stale == ["t.py::b"] and not verdict.good
    bench.tables["cpploop"] = [GOOD | {"t.py::a": "failed", "t.py::b": "failed"}]
    assert bench.judge(entry).good


def test_which_entries_match_no_test(script: ModuleType) -> None:
    entries = [
        script.Entry("uvicorn", "t.py::a[x-*]", ""),
        script.Entry("uvicorn", "t.py::gone", ""),
        script.Entry("httpx", "t.py::of_another_suite", ""),
    ]
    tests = ["t.py::a[x-1]", "t.py::b"]
    assert script.without_a_test(entries, "uvicorn", tests) == [entries[1]]
    assert script.without_a_test(entries, "uvicorn", []) == entries[:2]


@pytest.mark.parametrize(
    ("arguments", "good"),
    [
        ({}, False),
        ({"short": True}, False),
        ({"shard": "1/8"}, True),
        ({"pattern": "t"}, True),
        ({"loop": "asyncio"}, True),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_an_entry_without_a_test_fails_a_whole_run(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: dict[str, Any],
    good: bool,
) -> None:
    bench = Bench(script, tmp_path, **arguments)
    bench.tables = {"asyncio": [GOOD], "cpploop": [GOOD]}
    # Entries are of a suite, and a test of any of its parts will do.
    parts = (script.Part("uvicorn"), script.Part("other"))
    bench.suite = script.Suite("uvicorn", parts)
    monkeypatch.setattr(script, "Workshop", lambda suite, arguments: bench)
    entry = script.Entry("uvicorn", "t.py::gone", "why")
    assert script.run_suite("uvicorn", bench.arguments, []) is True
    capsys.readouterr()
    assert script.run_suite("uvicorn", bench.arguments, [entry]) is good
    said = capsys.readouterr().out
    assert ("FAILED, an exception matches no test, take it out: t.py::gone" in said) is not good
    if arguments == {}:
        assert "ecosystem uvicorn 1.0: 3 of 3\n3 passed, 0 failed, 1 skipped\n" in said
        assert json.loads((tmp_path / "other.json").read_text())["version"] == "2.0"


def test_a_module_skipped_on_cpploop_alone_in_a_real_run(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setattr(script, "REPO", tmp_path)
    monkeypatch.setattr(script, "BUILD", tmp_path)
    monkeypatch.setattr(script, "TRIES", 1)
    monkeypatch.setattr(script, "with_localhost", list)
    arguments = script.parse_arguments(["uvicorn", "--short"])
    part = script.Part("uvicorn", processes=1)
    workshop = script.Workshop(script.Suite("uvicorn", (part,)), arguments)
    workshop.python = Path(sys.executable)
    workshop.versions["uvicorn"] = "1.0"
    workshop.venv.mkdir(parents=True)
    state = workshop.venv / script.only_loop.STATE
    part.environment["STATE"] = str(state)
    # What else is installed is of no use here, and takes time.
    part.environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    tests = workshop.folder / "uvicorn" / "tests"
    tests.mkdir(parents=True)
    (tests.parent / "pytest.ini").write_text("[pytest]\n")
    (tests / "test_a.py").write_text("def test_a(): pass\n")
    (tests / "test_b.py").write_text(
        "import os, pathlib, pytest\n"
        "if 'cpploop' in pathlib.Path(os.environ['STATE']).read_text().split('record')[0]:\n"
        "    pytest.skip('not on this loop', allow_module_level=True)\n"
        "def test_b(): pass\n"
    )
    verdict = script.judge(workshop, part, [])
    assert verdict.failures == ["tests/test_b.py::test_b"]
    assert verdict.subject.outcomes["tests/test_b.py"] == "skipped"
    assert verdict.subject.reasons == {"tests/test_b.py": "not on this loop"}
    # Asyncio was asked no test that passed before.
    assert set(verdict.control.outcomes) == {"tests/test_b.py::test_b"}
    assert "1 pass, 0 fail, 1 are skipped" in capsys.readouterr().out


# --- the page -------------------------------------------------------------------------------------


def page_of(script: ModuleType, folder: Path, *results: dict[str, Any]) -> str:
    suites = list(dict.fromkeys(result["suite"] for result in results))
    for result in results:
        (folder / result["suite"]).mkdir(exist_ok=True)
        name = result.get("project", result["suite"])
        (folder / result["suite"] / f"{name}.json").write_text(json.dumps(result))
    page = folder / "page.md"
    script.results_page.write(folder, page, suites)
    return page.read_text()


def table_rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_says_what_ran_and_names_what_did_not_pass(
    bench: Bench, script: ModuleType, tmp_path: Path
) -> None:
    bench.reasons = {
        "t.py::a": "OSError: no `network` in <here>",
        "u.py::d": "no other loop",
        "u.py::e": "no other loop",
        "v.py": "not on this system",
    }
    tests = GOOD | {"t.py::a": "failed", "u.py::e": "skipped", "w.py::f": "skipped"}
    tests |= {"v.py": "skipped"}
    bench.tables = {
        "asyncio": [tests],
        "cpploop": [tests | {"t.py::b": "failed", "u.py::c": "failed"}, tests | {"t.py::b": "no"}],
    }
    result = script.summary(bench, bench.judge())
    assert result["skips"] == {"no other loop": 2, "": 1, "not on this system": 1}
    page = page_of(script, tmp_path, result)
    head, _, row = table_rows(page)
    cells = dict(zip(head, row, strict=True))
    assert cells["project"] == "uvicorn 1.0" and cells["commit"] == "c0ffee1"
    assert cells["Python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert cells["date"] == result["date"] and len(result["date"]) == len("2026-01-31")
    assert (cells["on asyncio"], cells["on cpploop"], cells["skipped"]) == ("2", "1", "4")
    assert "uvicorn: 1 of its tests failed on asyncio itself, with:\n\n- `t.py::a`:" in page
    assert "- `t.py::a`: `OSError: no 'network' in <here>`\n" in page
    assert "- uvicorn: 2: `no other loop`\n" in page
    assert "- uvicorn: 1: no reason given\n" in page
    assert "- uvicorn: 1: `not on this system`\n" in page
    assert "- uvicorn on cpploop, at try 2: `u.py::c`\n" in page
    assert page.endswith("\nFAILED on cpploop: `t.py::b`\n")
    assert "Exceptions" not in page


def test_the_page_of_our_own_suites(script: ModuleType, bench: Bench, tmp_path: Path) -> None:
    bench.suite = script.Suite("servers", ())
    outcomes = {
        "t.py::a[asyncio]": "passed",
        "t.py::a[cpploop]": "passed",
        "t.py::b[cpploop]": "failed",
        "u.py": "skipped",
    }
    part = script.Part("servers", ours=True)
    result = script.summary_of_ours(bench, part, outcomes, {"u.py": "no server"})
    assert (result["asyncio"], result["cpploop"], result["skipped"]) == (1, 1, 1)
    page = page_of(script, tmp_path, result)
    *_, row = table_rows(page)
    assert row == ["servers", "", result["python"], "1", "1", "1", "c0ffee1", result["date"]]
    assert "- servers: 1: `no server`\n" in page
    assert page.endswith("\nFAILED: `t.py::b[cpploop]`\n")


def test_the_page_of_results_without_these_fields(script: ModuleType, tmp_path: Path) -> None:
    theirs = {
        "suite": "anyio",
        "project": "anyio",
        "version": "4.16.0",
        "from": "sdist",
        "python": "3.13.0",
        "asyncio": 2387,
        "asyncio_fails": 17,
        "skipped": 1199,
        "cpploop": 2387,
        "loops": 19240,
        "processes": 12,
        "exceptions": [],
        "listed": 0,
        "failures": [],
        "seconds": 100,
    }
    ours = {
        "ours": True,
        "suite": "dask",
        "with": {"dask": "1"},
        "python": "3.13.0",
        "asyncio": 7,
        "cpploop": 7,
        "skipped": 2,
        "failures": [],
    }
    page = page_of(script, tmp_path, theirs, ours)
    rows = table_rows(page)
    assert rows[2][-4:] == ["19240", "12", "-", "-"] and rows[-1][-3:] == ["2", "-", "-"]
    assert "anyio: 17 failed on asyncio itself, not stored which.\n" in page
    assert "- anyio: 1199, not stored why\n" in page and "- dask: 2, not stored why\n" in page


def test_the_commit_is_one_of_this_checkout(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "REPO", tmp_path)
    assert script.current_commit() == ""
