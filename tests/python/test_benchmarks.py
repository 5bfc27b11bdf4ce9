"""The benchmarks' own arithmetic: a figure is only as good as what was counted into it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks/servers"))

import hosting

import backends
import callgrind
import catalogue
import counts
import gate
import in_process
import performance_page
import report
import rounds
import run
import served
import store
import targets
from loops import BASE, CONTROL, FLOOR, LOOPS, SUBJECT
from rounds import SETTINGS, Settings

MACHINE = {
    "date": "2026-11-23T00:00:00+00:00",
    "kernel": "Linux 6.18 x86_64",
    "cpu": "A processor",
    "cpus": 2,
    "governor": None,
    "load": 0.1,
    "python": "CPython 3.14.8",
    "python_build": "GCC 16, GIL",
    "optimised": True,
    "openssl": "OpenSSL 3.6",
    "environment": {},
}
PLAN = {"set": "bench", "rounds": 3, "served_seconds": 1.0, "repeated_seconds": 0.3}


def facts(*names: str) -> dict[str, Any]:
    return {
        "commit": "0123456789",
        "machine": MACHINE,
        "plan": PLAN,
        "libraries": {},
        "loops": {name: {"version": "1"} for name in names},
    }


def results(row: str, values: dict[str, list[float]], field: str = "value") -> dict[str, Any]:
    """A stored row with these figures by loop and round."""
    cells = [
        {"row": row, "loop": name, "round": number, field: value}
        for name, figures in values.items()
        for number, value in enumerate(figures)
    ]
    return {"format": 2, "row": row, **facts(*values), "cells": cells, "moved": {}, "counts": {}}


# ---- rounds -------------------------------------------------------------------------------------


def test_each_round_begins_with_another_loop() -> None:
    names = ["a", "b", "c"]
    firsts = [rounds.rotated(names, number, 0)[0] for number in range(3)]
    assert sorted(firsts) == names
    assert all(sorted(rounds.rotated(names, n, i)) == names for n in range(4) for i in range(4))


def test_a_round_whose_control_moves_is_void() -> None:
    control = {0: 100.0, 1: 111.0, 2: 101.0, 3: 89.0}
    # The median is 100.5: up by 10.4 % and down by 11.4 %.
    assert sorted(rounds.moved_rounds(control)) == [1, 3]
    assert rounds.void_rounds(control) == {1, 3}
    assert rounds.void_rounds({0: 100.0, 1: 109.0, 2: 101.0}) == set()


def test_rounds_are_kept_where_too_few_would_remain() -> None:
    control = {0: 50.0, 1: 100.0, 2: 200.0}
    assert sorted(rounds.moved_rounds(control)) == [0, 2]
    assert rounds.void_rounds(control) == set()


def test_two_rounds_cannot_say_which_of_them_is_wrong() -> None:
    assert rounds.moved_rounds({0: 1.0, 1: 9.0}) == {}


def test_void_rounds_are_made_again_within_the_bound() -> None:
    settings = Settings("test", 3, 1.0, 0.0, 1.0, again=2)
    calm = {0: 100.0, 1: 101.0, 2: 99.0}
    assert rounds.missing_rounds({}, 0, settings) == 3
    assert rounds.missing_rounds({0: 100.0}, 1, settings) == 2
    assert rounds.missing_rounds(calm, 3, settings) == 0
    moved = {0: 100.0, 1: 101.0, 2: 150.0}
    assert rounds.missing_rounds(moved, 3, settings) == 1
    assert rounds.missing_rounds(moved | {3: 100.0}, 4, settings) == 0
    # The one that was made instead moves as well: once more, and then never again.
    assert rounds.missing_rounds(moved | {3: 50.0}, 4, settings) == 1
    wild = {0: 100.0, 1: 100.0, 2: 200.0, 3: 50.0, 4: 300.0}
    assert rounds.missing_rounds(wild, 5, settings) == 0


def test_names_globs_and_groups() -> None:
    names, groups = ["proto-1", "proto-8", "sock-1"], {"all": ["proto-1", "sock-1"]}
    assert rounds.choose("*-1", names, groups) == ["proto-1", "sock-1"]
    assert rounds.choose("sock-1,proto-*", names, groups) == names
    assert rounds.choose("all", names, groups) == ["proto-1", "sock-1"]
    with pytest.raises(LookupError, match="'nothing'"):
        rounds.choose("proto-1,nothing", names, groups)


# ---- the catalogue and the plan -----------------------------------------------------------------


def test_every_row_is_sound() -> None:
    for row in catalogue.ROWS.values():
        assert row.family in catalogue.FAMILIES
        assert row.rivals and set(row.rivals) <= set(LOOPS), row.name
        assert not set(row.rivals) & {CONTROL, BASE, SUBJECT}, row.name
        for rival in row.rivals:
            assert row.can_run(rival, LOOPS[rival].addon is not None), (row.name, rival)
    assert set(catalogue._RIVALS) <= set(catalogue.ROWS)
    assert set(catalogue._BENCH_SERVERS | catalogue._COUNTED) <= set(catalogue.ROWS)
    families = {row.family for row in catalogue.ROWS.values() if row.in_bench}
    assert families == set(catalogue.FAMILIES)


def test_functions_of_the_rows_exist() -> None:
    folder = Path(catalogue.__file__).parent
    for row in catalogue.ROWS.values():
        match row.run:
            case catalogue.Repeated(module, function):
                assert (
                    f"\ndef {function}(loop: Loop) -> Batch:"
                    in (folder / f"{module}.py").read_text()
                )
            case catalogue.Probed(function):
                assert (
                    f"\ndef {function}(name: str) -> Figures:"
                    in (folder / "footprint_rows.py").read_text()
                )
            case catalogue.Served(server):
                assert (folder / "servers" / server[0]).exists()


def options(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    return run.parse_options()


def test_the_short_run_stays_under_half_an_hour(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = options(monkeypatch)
    rows = run.planned(chosen)
    settings = run.settings_of(chosen)
    seconds = sum(rounds.expected_seconds(row, len(names), settings) for row, names in rows)
    assert seconds * (settings.rounds + settings.again) / settings.rounds < 30 * 60
    for row, names in rows:
        assert {CONTROL, BASE, SUBJECT, *row.rivals} == set(names) - {FLOOR}
    monkeypatch.setattr(sys, "argv", ["run.py", "--plan"])
    assert run.main() == 0
    assert capsys.readouterr().out == run.plan_text(rows, settings) + "\n"


def test_the_long_run_has_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.name: names for row, names in run.planned(options(monkeypatch, "--set=full"))}
    assert set(rows) == set(catalogue.ROWS)
    assert set(rows["proto-1k-64"]) == {FLOOR, *LOOPS} - {catalogue.TIER_0}
    assert "aiofastnet-uvloop" not in rows["call_soon"] and FLOOR not in rows["call_soon"]
    assert "zloop" not in rows["tls-proto-1k-64"]


def test_a_tail_is_measured_for_longer() -> None:
    settings = SETTINGS["bench"]
    tail, plain = catalogue.ROWS["latency-uvicorn-64"], catalogue.ROWS["uvicorn-64"]
    factor = rounds.window_seconds(tail, settings) / rounds.window_seconds(plain, settings)
    assert factor == rounds.TAIL_WINDOWS > 1
    assert rounds.cell_seconds(tail, settings) > rounds.cell_seconds(plain, settings)


def test_options_change_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options(
        monkeypatch, "--rows=call_soon*", "--loops=uvloop", "--rounds=9", "--seconds=7"
    )
    settings = run.settings_of(chosen)
    assert (settings.rounds, settings.served_seconds, settings.repeated_seconds) == (9, 7.0, 7.0)
    assert settings.warmup == SETTINGS["bench"].warmup
    assert {names[0] for _, names in run.planned(chosen)} == {"uvloop"}
    assert len(run.planned(chosen)) == 4


# ---- stored results -----------------------------------------------------------------------------


def round_of(values: dict[str, float], number: int) -> list[store.Cell]:
    return [
        {"row": "call_soon", "loop": name, "round": number, "value": value}
        for name, value in values.items()
    ]


def test_results_are_kept_until_they_do_not_fit(tmp_path: Path) -> None:
    own = facts(CONTROL, SUBJECT)
    first = store.RowResults.resume(tmp_path, "call_soon", own)
    assert first.rounds_made == 0 and not first.path.exists()
    first.add_round(round_of({CONTROL: 100.0, SUBJECT: 300.0}, 0), CONTROL, "value")
    again = store.RowResults.resume(tmp_path, "call_soon", own)
    assert again.rounds_made == 1
    assert again.values(SUBJECT, "value") == {0: 300.0}
    assert store.RowResults.resume(tmp_path, "sleep_0", own).rounds_made == 0
    # Another plan, or another version of a loop, is another measurement.
    for other in (own | {"plan": PLAN | {"rounds": 5}}, facts(CONTROL, SUBJECT, BASE)):
        assert store.RowResults.resume(tmp_path, "call_soon", other).rounds_made == 0
    assert store.RowResults.start(tmp_path, "call_soon", own).rounds_made == 0


def test_a_broken_file_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "call_soon.json").write_text("{")
    assert store.RowResults.resume(tmp_path, "call_soon", facts(CONTROL)).rounds_made == 0


def test_moved_rounds_are_counted_in_the_file(tmp_path: Path) -> None:
    kept = store.RowResults.start(tmp_path, "call_soon", facts(CONTROL, SUBJECT))
    for number, value in enumerate((100.0, 101.0, 150.0, 99.0)):
        kept.add_round(round_of({CONTROL: value, SUBJECT: 300.0}, number), CONTROL, "value")
    data = json.loads((tmp_path / "call_soon.json").read_text())
    assert data["moved"] == {"2": 0.4925}
    assert data["made_again"] == 1


def test_a_loop_that_never_ran_is_not_tried_again(tmp_path: Path) -> None:
    kept = store.RowResults.start(tmp_path, "call_soon", facts(CONTROL, SUBJECT))
    assert not kept.failed(SUBJECT)
    cells = round_of({CONTROL: 1.0}, 0)
    cells.append({"row": "call_soon", "loop": SUBJECT, "round": 0, "error": "hangs"})
    kept.add_round(cells, CONTROL, "value")
    assert kept.failed(SUBJECT) and not kept.failed(CONTROL)


def test_machines_are_told_apart() -> None:
    key = store.machine_key(MACHINE)
    assert key == store.machine_key(MACHINE | {"date": "later", "load": 2.0})
    for change in ({"kernel": "Linux 7"}, {"environment": {"CPPLOOP_TLS": "bio"}}):
        assert key != store.machine_key(MACHINE | change)


def test_sources_stand_for_the_commit_where_there_is_no_git(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    source = tmp_path / "core" / "engine.cc"
    source.write_text("int a;\n")
    first = store.sources_key(tmp_path)
    (tmp_path / "README.md").write_text("changes no figure\n")
    assert store.sources_key(tmp_path) == first
    source.write_text("int b;\n")
    assert store.sources_key(tmp_path) != first


def test_a_package_of_other_sources_is_noticed(tmp_path: Path) -> None:
    ours, installed = tmp_path / "python" / "cpploop", tmp_path / "site" / "cpploop"
    for folder in (ours, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("one = 1\n")
    assert not store.installed_differs(tmp_path, installed)
    assert not store.installed_differs(tmp_path, None), "no cpploop, nothing wrong with it"
    (ours / "_new.py").write_text("two = 2\n")
    assert store.installed_differs(tmp_path, installed)
    (installed / "_new.py").write_text("two = 3\n")
    assert store.installed_differs(tmp_path, installed)


@pytest.mark.skipif(shutil.which("git") is None, reason="git tells what was changed")
def test_changes_and_new_files_change_the_name_of_the_commit(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "engine.cc").write_text("int a;\n")
    (tmp_path / "pyproject.toml").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    names = [store.checkout(tmp_path)]
    for path, text in (
        ("pyproject.toml", "[project]\n"),
        ("core/new.h", "int b;\n"),
        ("core/new.h", "int c;\n"),
    ):
        (tmp_path / path).write_text(text)
        names.append(store.checkout(tmp_path))
    assert len(set(names)) == 4 and len({name.partition("+")[0] for name in names}) == 1
    (tmp_path / "README.md").write_text("changes no figure\n")
    assert store.checkout(tmp_path) == names[-1]


def test_a_run_with_settings_of_its_own_overwrites_nothing() -> None:
    usual = store.folder_for("0123456789", MACHINE, "bench", "")
    assert usual.name == "bench" and usual.parent.name.startswith("0123456789-")
    others = {store.folder_for("0123456789", MACHINE, "bench", text).name for text in ("a", "b")}
    assert len(others | {"bench"}) == 3


def test_files_of_the_older_kind_are_read(tmp_path: Path) -> None:
    old = {
        "kind": "micro",
        "machine": MACHINE,
        "plan": {"rounds": 1, "seconds": 0.5},
        "rows": ["call_soon", "no such row any more"],
        "loops": {CONTROL: {"version": "3.14.8"}, SUBJECT: {"version": "0.1.0"}},
        "cells": round_of({CONTROL: 100.0, SUBJECT: 300.0}, 0),
    }
    (tmp_path / "old.json").write_text(json.dumps(old))
    (row,) = report.summaries(store.read([tmp_path]))
    assert row.name == "call_soon" and row.ratio(SUBJECT, CONTROL) == 3.0


# ---- figures ------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round() -> None:
    """The machine gets slower from round to round; who is faster does not change."""
    values = {CONTROL: [100.0, 95.0, 92.0], BASE: [200.0, 190.0, 184.0], SUBJECT: [300.0, 285, 276]}
    (row,) = report.summaries([results("call_soon", values)])
    assert row.ratio(SUBJECT, BASE) == pytest.approx(1.5)
    assert row.ratio(SUBJECT, CONTROL) == pytest.approx(3.0)
    assert row.ranked() == [SUBJECT, BASE, CONTROL]
    assert row.best_rival() == BASE and row.against_best() == pytest.approx(1.5)


def test_ratios_are_taken_within_a_slice() -> None:
    """The machine halves its speed within the round: the sums say something else than the pairs."""
    speeds = [1.0, 1.0, 0.5, 1.0, 0.5]

    def cell(loop: str, speed: float, at: list[float]) -> store.Cell:
        slices = [{"value": speed * now} for now in at]
        value = sum(part["value"] for part in slices) / len(slices)
        return {"row": "call_soon", "loop": loop, "round": 0, "value": value, "slices": slices}

    data = results("call_soon", {SUBJECT: [], CONTROL: []})
    data["cells"] = [cell(SUBJECT, 300, speeds), cell(CONTROL, 100, speeds)]
    (row,) = report.summaries([data])
    assert row.ratio(SUBJECT, CONTROL) == pytest.approx(3.0)
    assert sorted(row.parts(SUBJECT)) == [(0, number) for number in range(5)]
    # A change between the two in one slice decides nothing.
    data["cells"][1] = cell(CONTROL, 100, [1.0, 1.0, 0.5, 0.5, 0.5])
    (row,) = report.summaries([data])
    assert row.ratio(SUBJECT, CONTROL) == pytest.approx(3.0)
    assert row.median(SUBJECT) == pytest.approx(240.0)


def test_the_best_rival_is_the_one_that_ours_stands_worst_against() -> None:
    """Medians of figures are not paired: a rival that met the slow machine is still the best."""
    values = {SUBJECT: [100.0, 50.0, 50.0], "zuvloop": [90.0, 60.0, 70.0], "rloop": [95.0, 80, 40]}
    (row,) = report.summaries([results("call_soon", values)])
    assert row.best_rival() == "zuvloop" and row.against_best() == pytest.approx(50 / 60)


def test_slices_take_turns() -> None:
    names = ["a", "b", "c"]
    made = [rounds.turn(names, number) for number in range(6)]
    assert {order[0] for order in made} == {order[-1] for order in made} == set(names)
    assert all(sorted(order) == names for order in made)
    assert all(made[number] == made[number - 1][::-1] for number in (1, 3, 5))
    assert rounds.turn([], 3) == []


def test_which_rows_are_cut_into_slices() -> None:
    cut = {name for name in catalogue.GROUPS["bench"] if rounds.sliced(catalogue.ROWS[name])}
    assert {"proto-1k-64", "uvicorn-tls-64", "call_soon", "spawn_wait"} <= cut
    assert {name for name in catalogue.GROUPS["bench"] if name.startswith("latency-")} <= cut
    whole = set(catalogue.GROUPS["bench"]) - cut
    assert whole == {
        *("callback-flood", "slow-consumer-memory"),
        *catalogue.GROUPS["footprint"],
    }


def test_a_row_is_repeated_in_slices() -> None:
    repeated = catalogue.ROWS["call_soon"].run
    assert isinstance(repeated, catalogue.Repeated)
    cpu = min(os.sched_getaffinity(0))
    made = in_process.cells_in_turns(repeated, [CONTROL, "no-such-loop"], 0.06, 3, cpu)
    cell = made[CONTROL]
    assert len(cell["slices"]) == 3 and all(part["value"] > 0 for part in cell["slices"])
    assert cell["operations"] % 10_000 == 0 and cell["operations"] >= 30_000
    values = [part["value"] for part in cell["slices"]]
    assert min(values) <= cell["value"] <= max(values)
    assert made["no-such-loop"]["error"].startswith("exits with 1: KeyError")


def test_windows_of_a_server_are_joined() -> None:
    answer = {
        "requests": 100,
        "seconds": 0.5,
        "rps": 200.0,
        "errors": 0,
        "max_us": 9.0,
        "p50_us": 1.0,
        "p99_us": 5.0,
        "p999_us": 8.0,
        "server_cpu_seconds": 0.4,
        "client_cpu_seconds": 0.3,
        "other_cpu_seconds": 0.0,
        "least_per_connection": 10,
        "most_per_connection": 14,
    }
    slower = {**answer, "requests": 50, "rps": 100.0, "p99_us": 7.0, "max_us": 20.0}
    assert served.joined([answer]) == answer
    whole = served.joined([answer, slower, answer])
    assert (whole["requests"], whole["seconds"], whole["least_per_connection"]) == (250, 1.5, 30)
    assert whole["rps"] == pytest.approx(250 / 1.5)
    assert (whole["p99_us"], whole["max_us"]) == (5.0, 20.0)
    first = {"value": 200.0, "cpu_us": pytest.approx(4000), "p50_us": 1.0, "p99_us": 5.0}
    other = {"value": 100.0, "cpu_us": pytest.approx(8000), "p50_us": 1.0, "p99_us": 7.0}
    assert whole["slices"] == [part | {"p999_us": 8.0} for part in (first, other, first)]


def test_a_void_round_is_in_no_figure() -> None:
    values = {CONTROL: [100.0, 10.0, 101.0, 99.0], SUBJECT: [300.0, 9999.0, 300.0, 300.0]}
    (row,) = report.summaries([results("call_soon", values)])
    assert sorted(row.cells(SUBJECT)) == [0, 2, 3]
    assert row.median(SUBJECT) == 300.0 and row.spread(SUBJECT) == 0.0
    assert any("left out" in note for note in report.all_notes([row]))


def test_less_is_better_where_the_row_says_so() -> None:
    values = {CONTROL: [8.0], BASE: [4.0], "zuvloop": [3.0], SUBJECT: [2.0]}
    (row,) = report.summaries([results("connection_memory", values)])
    assert row.ranked() == [SUBJECT, "zuvloop", BASE, CONTROL]
    assert row.ratio(SUBJECT, BASE) == 2.0
    assert row.against_best() == 1.5
    assert report.lost_table([row]) == ""


def test_lost_rows_are_listed_the_worst_first() -> None:
    rows = report.summaries(
        [
            results("call_soon", {"rloop": [100.0], SUBJECT: [90.0]}),
            results("sleep_0", {"rloop": [100.0], SUBJECT: [50.0]}),
            results("gather_100", {"rloop": [100.0], SUBJECT: [101.0]}),
        ]
    )
    lines = report.lost_table(rows).splitlines()[2:]
    assert ["sleep_0" in lines[0], "call_soon" in lines[1], len(lines)] == [True, True, 2]


def test_targets_by_row() -> None:
    rows = report.summaries(
        [
            results("call_soon", {"rloop": [100.0], SUBJECT: [109.0]}),
            results("sleep_0", {"rloop": [100.0], SUBJECT: [111.0]}),
            results("loop_creation", {"rloop": [100.0], SUBJECT: [101.0]}),
            results("tls-proto-1k-64", {"rloop": [100.0], SUBJECT: [114.0]}),
            results("aiohttp-tls-64", {BASE: [80.0], "rloop": [100.0], SUBJECT: [119.0]}),
            results("uvicorn-tls-64", {BASE: [80.0], "rloop": [100.0], SUBJECT: [121.0]}),
        ]
    )
    verdicts = {row.name: targets.target_of(row).is_met(row) for row in rows}
    assert verdicts == {
        "call_soon": False,
        "sleep_0": True,
        "loop_creation": True,
        "tls-proto-1k-64": False,
        "aiohttp-tls-64": False,
        "uvicorn-tls-64": True,
    }
    assert "1.19x, 1.49x uvloop" in targets.table(rows)
    assert all(targets.reason_for(row) for row in rows if not verdicts[row.name])


def test_an_echo_row_is_measured_against_the_bare_server() -> None:
    data = results("proto-1k-8", {"rloop": [100.0], SUBJECT: [99.0], FLOOR: [120.0]})
    for cell in data["cells"]:
        cell["cpu_us"] = 4.3 if cell["loop"] == SUBJECT else 4.0
    (row,) = report.summaries([data])
    assert targets.target_of(row).is_met(row)
    for cell in data["cells"]:
        cell["cpu_us"] = 4.4 if cell["loop"] == SUBJECT else 4.0
    (row,) = report.summaries([data])
    assert not targets.target_of(row).is_met(row)


def test_a_loop_that_failed_once_has_no_figure() -> None:
    data = results("call_soon", {CONTROL: [1.0, 1.0], SUBJECT: [2.0]})
    data["cells"].append({"row": "call_soon", "loop": SUBJECT, "round": 1, "error": "hangs"})
    (row,) = report.summaries([data])
    assert row.median(SUBJECT) is None and row.failures == {SUBJECT: "hangs"}
    assert run.exit_status([data]) == 1
    assert run.exit_status([results("call_soon", {CONTROL: [1.0]})]) == 0


def test_a_loop_that_starves_a_connection_is_named() -> None:
    data = results("proto-1k-8", {CONTROL: [9.0], SUBJECT: [9.0]})
    for cell in data["cells"]:
        cell["least_per_connection"] = 40 if cell["loop"] == SUBJECT else 60
        cell["most_per_connection"] = 100
    notes = report.all_notes(report.summaries([data]))
    assert notes == ["`proto-1k-8`, cpploop: one connection got 40% of what another got."]


def test_who_is_left_out_is_named_with_the_reason() -> None:
    tls = [results(name, {CONTROL: [9.0]}) for name in ("tls-proto-1k-8", "uvicorn-tls-64")]
    (note,) = report.all_notes(report.summaries([*tls, results("call_soon", {CONTROL: [9.0]})]))
    names = "`tls-proto-1k-8` and `uvicorn-tls-64`"
    left_out = "zloop and zloop-io_uring are left out of"
    assert note == f"{left_out} {names}: its TLS stalls (0.0.1 was tried)."


def test_a_server_that_is_never_idle_has_no_cpu_per_request() -> None:
    data = results("callback-flood", {CONTROL: [9.0] * 3, SUBJECT: [8.0] * 3}, "p99_us")
    for cell in data["cells"]:
        cell["cpu_us"] = 250.0
        cell["p50_us"] = 5.0 if cell["round"] else 6.0
    (row,) = report.summaries([data])
    assert "CPU in" not in report.family_tables([row])
    assert sorted(row.moved) == [0], "the median latency is what must not move"


def test_tier_0_takes_part_where_there_is_tls() -> None:
    assert catalogue.ROWS["tls-proto-1k-64"].can_run(catalogue.TIER_0)
    assert not catalogue.ROWS["proto-1k-64"].can_run(catalogue.TIER_0)
    assert not catalogue.ROWS["call_soon"].can_run(catalogue.TIER_0)


def test_our_other_backend_is_no_rival() -> None:
    values = {"cpploop-io_uring": [9.0], FLOOR: [10.0], BASE: [5.0], SUBJECT: [6.0]}
    (row,) = report.summaries([results("proto-1k-8", values)])
    assert row.best_rival() == BASE
    assert FLOOR not in row.ranked()


def test_a_row_on_the_ring_beside_epoll_and_the_rivals_on_a_ring() -> None:
    values = {
        SUBJECT: [100.0, 100.0],
        backends.RING: [90.0, 92.0],
        "blazio": [50.0, 50.0],
        "rsloop": [130.0, 130.0],
        "zuvloop": [500.0, 500.0],
    }
    (row,) = report.summaries([results("aiohttp-256", values)])
    assert backends.best_rival(row) == "rsloop", "not one that has no ring"
    assert [target.is_met(row) for target in backends.targets_of(row)] == [True, False]
    line = backends.table([row]).splitlines()[2]
    assert "0.91x" in line and "0.70x" in line and "missed: 0.95x epoll" in line


def test_what_was_not_counted_is_neither_met_nor_missed() -> None:
    data = results("proto-1k-64", {SUBJECT: [100.0], backends.RING: [120.0]})
    (row,) = report.summaries([data])
    assert backends.FEW_CALLS.is_met(row) is None
    assert "system calls" not in backends.table([row])
    data["counts"] = {backends.RING: {"instructions": 2000.0, "syscalls": 0.05}}
    (row,) = report.summaries([data])
    assert backends.FEW_CALLS.is_met(row) is True
    (call_soon,) = report.summaries([results("call_soon", {SUBJECT: [1.0]})])
    assert backends.table([call_soon]) == "", "measured on one backend only"


def test_the_page_is_made_of_results_alone() -> None:
    rows = report.summaries([results("call_soon", {BASE: [100.0, 100.0], SUBJECT: [250.0, 260.0]})])
    text = performance_page.page(
        rows, "### Found\n", {"Callbacks, timers and tasks": "plots/a.svg"}
    )
    assert "2.55x" in text and "### Found" in text
    assert "No rival was ahead" in text
    assert performance_page.drawn_before(text) == {"Callbacks, timers and tasks": "plots/a.svg"}
    assert "epoll and io_uring" not in text
    ring = report.summaries([results("call_soon", {SUBJECT: [2.0], backends.RING: [3.0]})])
    assert "1.50x" in performance_page.page(rows, "", {}, ring)


# ---- servers -------------------------------------------------------------------------------------


def test_a_server_does_not_begin_with_its_imports_collection_due(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(3):
        gc.collect(0)
    assert gc.get_count()[1] > 0 or not getattr(sys, "_is_gil_enabled", lambda: True)()

    async def begin() -> tuple[int, int, int]:
        hosting.ready(None)
        return gc.get_count()

    assert asyncio.run(begin())[1:] == (0, 0)
    assert json.loads(capsys.readouterr().out)["ready"]


# ---- counts and the gate ------------------------------------------------------------------------


def test_counts_are_shown_without_times_beside_them() -> None:
    data = results("proto-1k-64", {SUBJECT: []})
    data["counts"] = {SUBJECT: {"instructions": 2956.7, "syscalls": 2.021}}
    assert "2.96k / 2.02" in report.markdown([data])


def test_counts_are_of_the_requests_and_not_of_the_start() -> None:
    assert counts.per_request((5_000, 100), (25_000, 1_100)) == 20.0
    with pytest.raises(counts.CountFailed):
        counts.per_request((5_000, 100), (25_000, 100))


def test_rows_of_one_process_are_counted_through_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool is put before the process, and what it writes at the end is its count."""
    written = iter((2_000, 52_000))
    tool = 'echo start >&2; "$@"; echo Collected : 0 >&2'
    monkeypatch.setattr(callgrind, "command", lambda: ("sh", "-c", tool, "sh"))
    monkeypatch.setattr(
        callgrind, "instructions", lambda text: next(written) + text.count("Collected")
    )
    monkeypatch.setattr(counts, "INSTRUCTION_WINDOWS", (0.02, 0.4))
    monkeypatch.setattr(counts, "_syscalls", lambda *args: 0.0)
    row = catalogue.ROWS["call_soon"]
    assert counts.can_count(row)
    cells = served.ServedCells(Path(), served.Cores(min(os.sched_getaffinity(0)), 0))
    found = counts.count(row, CONTROL, cells)
    cells._folder.cleanup()
    assert found["syscalls"] == 0.0
    assert 0 < found["instructions"] < 50_000


def test_what_is_measured_once_is_not_counted() -> None:
    assert not counts.can_count(catalogue.ROWS["import_time"])


CALLGRIND = """\
version: 1
events: Ir

ob=(1) /usr/lib/libpython3.13.so.1.0
fl=(1) ceval.c
fn=(1) eval
16 100
+2 20
cob=(2) /a/folder/cpploop/_native.cpython-313-x86_64-linux-gnu.so
cfi=(2) loop.cc
cfn=(2) call_soon
calls=3 10
* 900
-1 5

ob=(2)
fl=(2)
fn=(2)
10 70
cob=(1)
cfn=(1)
calls=1 16
* 4000
+4 7

ob=(1)
fn=(1)
* 1
totals: 203
"""


def test_instructions_by_object() -> None:
    counts = callgrind.by_object(CALLGRIND.splitlines())
    assert counts == {
        "libpython3.13.so.1.0": 126,
        "_native.cpython-313-x86_64-linux-gnu.so": 77,
    }


@pytest.mark.parametrize("key", ["all", "own"])
@pytest.mark.parametrize(
    ("value", "good", "says"),
    [(100.0, True, "ok"), (109.9, True, "ok"), (110.1, False, "LOST"), (89.0, True, "STALE")],
)
def test_the_gate_fails_on_a_loss(key: str, value: float, good: bool, says: str) -> None:
    lines, failed = gate.verdicts({"echo_1k": {key: value}}, {"echo_1k": {key: 100.0}})
    assert failed == (0 if good else 1) and says in lines[0]


def test_the_gate_fails_on_a_figure_that_the_baseline_lacks() -> None:
    counted = {"echo_1k": {"all": 1.0, "own": 1.0}}
    for baseline, expected in (({}, 2), ({"echo_1k": {"all": 1.0}}, 1)):
        lines, failed = gate.verdicts(counted, baseline)
        assert failed == expected and "--update" in lines[-1]


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_the_gate_fails_where_nothing_was_counted(value: float) -> None:
    counted = {"echo_1k": {"all": 100.0, "own": value}}
    lines, failed = gate.verdicts(counted, {"echo_1k": {"all": 100.0, "own": 50.0}})
    assert failed == 1 and lines[1].endswith(gate.NOTHING_COUNTED)


def test_the_programs_of_the_gate_run() -> None:
    """Without valgrind, and with as many operations as one batch has."""
    for row, name in itertools.product(gate.PROGRAMS, (CONTROL, SUBJECT)):
        gate.child(row, name, gate.BATCH)
