"""Every loop against every other: the rows of catalogue.py, interleaved, each cell a fresh process.

    python benchmarks/run.py                        asyncio, uvloop, cpploop, each row's best rivals
    python benchmarks/run.py --set full             every row and loop; goes on where it was stopped
    python benchmarks/run.py --set row --rows NAME  one row, every loop, anew
    python benchmarks/run.py --set quick            a smoke test, about a minute
    python benchmarks/run.py --plan                 what would run, and for how long
    python benchmarks/run.py --counts               instructions and system calls per request
    python benchmarks/run.py --list

Run it with the Python of an environment made by benchmarks/setup.sh. The tables go to stdout as
Markdown, everything measured into one JSON file a row under benchmarks/results/. The exit status is
1 when cpploop failed a row or any loop sent a wrong byte.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import catalogue
import counts
import harness
import in_process
import loops
import report
import store
from catalogue import FAMILIES, ROWS, Probed, Repeated, Row, Served
from loops import BASE, CONTROL, FLOOR, SUBJECT
from rounds import (
    SETTINGS,
    Settings,
    choose,
    expected_seconds,
    missing_rounds,
    rotated,
    sliced,
    window_seconds,
)
from served import Cores, ServedCells, Window

WEB_LIBRARIES = ("uvicorn", "httptools", "aiohttp")
Probes = dict[str, dict[str, str]]


@dataclass
class RowRun:
    """A row, who takes part, and what has been measured so far."""

    row: Row
    loops: list[str]
    results: store.RowResults

    @property
    def control_field(self) -> str:
        return self.row.measure.control_field or self.row.measure.field

    def missing(self, settings: Settings) -> int:
        control = self.results.values(CONTROL, self.control_field)
        return missing_rounds(control, self.results.rounds_made, settings)


class Runner:
    """Fills the rows of a run, one round of one row after the other."""

    def __init__(self, options: argparse.Namespace, settings: Settings, cells: ServedCells) -> None:
        self._options = options
        self._settings = settings
        self._cells = cells

    def run(self, runs: Sequence[RowRun]) -> None:
        """Rounds over all rows first, so that a row's rounds lie far apart; then those again."""
        while any(run.missing(self._settings) for run in runs):
            for index, run in enumerate(runs):
                if run.missing(self._settings):
                    self._round(run, index)

    def _round(self, run: RowRun, index: int) -> None:
        number = run.results.rounds_made
        names = rotated(run.loops, number, index)
        living = [name for name in names if not run.results.failed(name)]
        made = self._in_turns(run, living) if sliced(run.row) else self._one_by_one(run, living)
        cells = []
        for name in names:
            cell = made.get(name, {"error": "not tried again"})
            if name in made:
                harness.note(f"{number + 1}  {run.row.name:22} {name:20} {_cell_text(run, cell)}")
            cells.append({"row": run.row.name, "loop": name, "round": number, **cell})
        run.results.add_round(cells, CONTROL, run.control_field)

    def _in_turns(self, run: RowRun, names: Sequence[str]) -> dict[str, store.Cell]:
        """All of a round's loops at once, each idle while another one has its slice."""
        settings = self._settings
        harness.wait_until_idle(self._options.wait_idle)
        match run.row.run:
            case Served() as served:
                window = self._window(run, served)
                return self._cells.measure_in_turns(served, names, window, settings.slices)
            case Repeated() as repeated:
                seconds, cpu = settings.repeated_seconds, self._options.server_cpu
                return in_process.cells_in_turns(repeated, names, seconds, settings.slices, cpu)
        raise AssertionError(f"{run.row.name} cannot be cut into slices")

    def _one_by_one(self, run: RowRun, names: Sequence[str]) -> dict[str, store.Cell]:
        cells = {}
        for name in names:
            harness.wait_until_idle(self._options.wait_idle)
            cells[name] = self._cell(run, name)
        return cells

    def _cell(self, run: RowRun, name: str) -> store.Cell:
        match run.row.run:
            case Served() as served:
                return self._cells.measure(served, name, self._window(run, served))
            case Probed() as probed:
                return in_process.probe(probed, name, self._options.server_cpu)
        raise AssertionError(f"{run.row.name} is cut into slices")

    def _window(self, run: RowRun, served: Served) -> Window:
        settings = self._settings
        extra: tuple[str, ...] = ()
        if served.load_share is not None:
            extra = ("--rate", f"{self._rate(run, served, served.load_share):.0f}")
        return Window(window_seconds(run.row, settings), settings.warmup, extra)

    def _rate(self, run: RowRun, served: Served, share: float) -> float:
        """Requests per second of an open loop: the same for all, measured once for the row."""
        data = run.results.data
        if "rate" not in data:
            base = BASE if BASE in run.loops else CONTROL
            settings = self._settings
            window = Window(settings.served_seconds, settings.warmup)
            full = self._cells.measure(served, base, window)
            if "error" in full:
                raise SystemExit(f"{run.row.name}: {base} cannot be measured: {full['error']}")
            data["rate"] = round(full["value"] * share)
            data["rate_is"] = f"{share:.0%} of what {base} did with a closed loop"
            harness.note(f"   {run.row.name}: {data['rate']} requests/s, {data['rate_is']}")
        rate: float = data["rate"]
        return rate


def _cell_text(run: RowRun, cell: store.Cell) -> str:
    if "error" in cell:
        return f"FAILED: {cell['error']}"
    measure = run.row.measure
    text = f"{cell[measure.field]:12.5g} {measure.unit}"
    if "cpu_us" in cell:
        text += f"  {cell['cpu_us']:7.2f} us CPU"
    if cell.get("others_busy", 0) > harness.BUSY_LIMIT:
        text += f"  (others used {cell['others_busy']:.0%} of a core)"
    return text


# ---- what is to be done -------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", choices=sorted(SETTINGS), default="bench", help="how long, and who takes part")
    add("--rows", help="names, globs, families or groups (see --list), comma-separated")
    add("--loops", help="names or globs, comma-separated")
    add("--rounds", type=int)
    add("--seconds", type=float, help="measured, per cell")
    add("--warmup", type=float, help="before that, where a server is measured")
    add("--again", action="store_true", help="measure also what is in the results already")
    add("--plan", action="store_true", help="print what would run and for how long, and stop")
    add("--counts", action="store_true", help="count instructions and system calls instead")
    add("--list", action="store_true", help="print the rows and loops, and stop")
    add("--results", type=Path, metavar="DIR", help="default: results/COMMIT-MACHINE/SET")
    add("--report", type=Path, nargs="+", metavar="PATH", help="only print the tables of results")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    add("--server-cpu", type=int, default=0)
    add("--client-cpu", type=int, default=1)
    add("--wait-idle", type=float, default=0.0, metavar="SECONDS", help="let others finish first")
    add("--cold-malloc", action="store_true", help="do not settle malloc first (see README.md)")
    add("--tools", type=Path, help="a folder with loadgen and floor_server")
    add("--build-dir", type=Path, default=harness.HERE / "build")
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> Settings:
    """The set's settings with what the options say otherwise."""
    settings = SETTINGS[options.set]
    changes: dict[str, Any] = {}
    if options.rounds is not None:
        changes["rounds"] = options.rounds
    if options.seconds is not None:
        changes["served_seconds"] = changes["repeated_seconds"] = options.seconds
    if options.warmup is not None:
        changes["warmup"] = options.warmup
    return dataclasses.replace(settings, **changes)


def rows_of(options: argparse.Namespace) -> list[Row]:
    groups = {"full": "all", "counts": "counted", "quick": "quick"}
    usual = groups.get("counts" if options.counts else options.set, "bench")
    names = choose(options.rows or usual, list(ROWS), catalogue.GROUPS)
    if options.counts:
        once = [name for name in names if not counts.can_count(ROWS[name])]
        if once:
            harness.note(f"measured once and not counted: {' '.join(once)}")
        names = [name for name in names if name not in once]
    return [ROWS[name] for name in names]


def loops_of(row: Row, options: argparse.Namespace) -> list[str]:
    """The loops that are asked for and can run the row."""
    names = [FLOOR, *loops.LOOPS]
    if options.loops:
        names = choose(options.loops, names, {})
    elif options.set in ("bench", "quick"):
        wanted = catalogue.best_known(row)
        names = [name for name in names if name in wanted]
    return [
        name
        for name in names
        if row.can_run(name, name in loops.LOOPS and loops.LOOPS[name].addon is not None)
    ]


def planned(options: argparse.Namespace) -> list[tuple[Row, list[str]]]:
    return [(row, names) for row in rows_of(options) if (names := loops_of(row, options))]


def plan_text(rows: Sequence[tuple[Row, Sequence[str]]], settings: Settings) -> str:
    """What runs, family by family, and about how long that takes."""
    lines = []
    for family, title in FAMILIES.items():
        own = [(row, names) for row, names in rows if row.family == family]
        if not own:
            continue
        minutes = sum(expected_seconds(row, len(names), settings) for row, names in own) / 60
        lines.append(f"{title}: {minutes:.1f} minutes")
        lines += [f"  {row.name:24} {' '.join(names)}" for row, names in own]
    minutes = sum(expected_seconds(row, len(names), settings) for row, names in rows) / 60
    worst = minutes * (settings.rounds + settings.again) / settings.rounds
    cells = sum(len(names) for _, names in rows) * settings.rounds
    lines.append(
        f"{len(rows)} rows, {cells} cells in {settings.rounds} rounds: "
        f"about {minutes:.0f} minutes, {worst:.0f} if the control of every row moves"
    )
    return "\n".join(lines)


def facts_of(options: argparse.Namespace, settings: Settings, found: Probes) -> dict[str, Any]:
    """What every row's file says beside its cells."""
    return {
        "commit": store.commit(),
        "machine": harness.machine(),
        "plan": {
            "set": settings.name,
            "rounds": settings.rounds,
            "served_seconds": settings.served_seconds,
            "latency_seconds": settings.latency_seconds,
            "repeated_seconds": settings.repeated_seconds,
            "slices": settings.slices,
            "warmup": settings.warmup,
            "server_cpu": options.server_cpu,
            "client_cpu": options.client_cpu,
            "cold_malloc": options.cold_malloc,
        },
        "libraries": _library_versions(),
        "loops": found,
    }


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in WEB_LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            harness.note(f"{name} is not installed: the rows that need it will fail")
    return versions


def prepare(
    options: argparse.Namespace, settings: Settings, rows: Sequence[tuple[Row, list[str]]]
) -> list[RowRun]:
    """Ask the loops who is here, and look what is stored already."""
    asked = {name: None for _, names in rows for name in names if name != FLOOR}
    found: Probes = {FLOOR: {"version": "(bare C++ server)"}, **harness.probe_loops(asked)}
    for name, answer in found.items():
        if "reason" in answer:
            harness.note(f"{name} does not take part: {answer['reason']}")
    facts = facts_of(options, settings, found)
    if facts["commit"].endswith(store.OTHER_INSTALLED):
        harness.note(f"the installed {SUBJECT} is not of these sources; the results say so")
    own = [options.loops, options.rounds, options.seconds, options.warmup, options.cold_malloc]
    changed = repr(own) if any(own) else ""
    folder = options.results or store.folder_for(
        facts["commit"], facts["machine"], settings.name, changed
    )
    harness.note(f"results are in {folder}")
    again = options.again or options.set in ("row", "quick")
    open_row = store.RowResults.start if again else store.RowResults.resume
    runs = []
    for row, names in rows:
        row_facts = facts | {"loops": {name: found[name] for name in names}}
        here = [name for name in names if "version" in found[name]]
        runs.append(RowRun(row, here, open_row(folder, row.name, row_facts)))
    return [run for run in runs if run.loops]


def exit_status(data: Sequence[dict[str, Any]]) -> int:
    """1 for figures that must not be shown to anybody."""
    errors = [cell for row in data for cell in row["cells"] if "error" in cell]
    ours = any(cell["loop"] == SUBJECT for cell in errors)
    wrong = any(cell["error"].startswith("wrong bytes") for cell in errors)
    return 1 if ours or wrong else 0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Do what the options ask for; the rows, measured or kept."""
    settings = settings_of(options)
    runs = prepare(options, settings, planned(options))
    tools = options.tools or harness.build_tools(options.build_dir)
    cells = ServedCells(tools, Cores(options.server_cpu, options.client_cpu), options.cold_malloc)
    if options.counts:
        counts.fill(runs, cells)
    else:
        kept = sum(not run.missing(settings) for run in runs)
        if kept:
            harness.note(f"{kept} rows are kept from before; --again measures them again")
        start = time.monotonic()
        Runner(options, settings, cells).run(runs)
        harness.note(f"done in {(time.monotonic() - start) / 60:.1f} minutes")
    return [run.results.data for run in runs]


def main() -> int:
    options = parse_options()
    if options.list:
        for group, members in catalogue.GROUPS.items():
            print(f"{group}: {' '.join(members)}")
        print(f"loops: {' '.join([FLOOR, *loops.LOOPS])}")
        return 0
    try:
        if not options.report:
            text = plan_text(planned(options), settings_of(options))
            print(text, file=sys.stdout if options.plan else sys.stderr)
    except LookupError as error:
        sys.exit(str(error))
    if options.plan:
        return 0
    if options.report:
        data = store.read(options.report)
    else:
        harness.end_cleanly_on_sigterm()
        harness.check_cpus(options.server_cpu, options.client_cpu)
        data = measure(options)
    text = report.markdown(data)
    if options.markdown:
        options.markdown.write_text(text)
    print(text)
    return exit_status(data)


if __name__ == "__main__":
    sys.exit(main())
