"""From cells to tables: medians, spread, paired ratios, and what the reader must be told.

Ratios are paired: taken within a slice of a round, where both loops met the same machine, and
their median is printed. They say how many times as good a loop is, also where a lower figure is
better.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from catalogue import FAMILIES, ROWS, Served
from harness import BUSY_LIMIT
from loops import BASE, CONTROL, FLOOR, SUBJECT
from rounds import moved_rounds, void_rounds
from store import Cell, machine_key

FAIR_SHARE = 0.5

Table = list[list[str]]


class RowSummary:
    """One row's cells by loop, without the rounds that do not count."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.row = ROWS[data["row"]]
        self.measure = self.row.measure
        self.failures: dict[str, str] = {}
        self._cells: dict[str, dict[int, Cell]] = defaultdict(dict)
        for cell in data["cells"]:
            if "error" in cell:
                # The first one is the reason; later rounds may only say "not tried again".
                self.failures.setdefault(cell["loop"], cell["error"])
            else:
                self._cells[cell["loop"]][cell["round"]] = cell
        field = self.measure.control_field or self.measure.field
        control = {n: cell[field] for n, cell in self._cells[CONTROL].items() if cell.get(field)}
        self.moved = moved_rounds(control)
        self.void = void_rounds(control)

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def is_latency(self) -> bool:
        """Whether an open loop of requests makes the figure."""
        return self.measure.is_tail

    @property
    def loops(self) -> list[str]:
        """Those that took part, in the order of the registry."""
        present = {name for name, cells in self._cells.items() if cells}
        present |= self.failures.keys() | self.data["counts"].keys()
        return [name for name in self.data["loops"] if name in present]

    def cells(self, name: str) -> dict[int, Cell]:
        """The cells that count, by round; none if any of the loop's rounds failed."""
        if name in self.failures:
            return {}
        cells = self._cells.get(name, {})
        return {number: cell for number, cell in cells.items() if number not in self.void}

    def values(self, name: str, field: str | None = None) -> dict[int, float]:
        """One field by round: the row's own figure unless another one is asked for."""
        field = field or self.measure.field
        return {n: cell[field] for n, cell in self.cells(name).items() if cell.get(field)}

    def parts(self, name: str, field: str | None = None) -> dict[tuple[int, int], float]:
        """One field by round and slice: what was measured close together in time."""
        field = field or self.measure.field
        return {
            (number, index): part[field]
            for number, cell in self.cells(name).items()
            for index, part in enumerate(cell.get("slices", [cell]))
            if part.get(field)
        }

    def median(self, name: str, field: str | None = None) -> float | None:
        values = self.values(name, field).values()
        return statistics.median(values) if values else None

    def spread(self, name: str) -> float:
        """Half of the range, as a part of the median."""
        values = self.values(name).values()
        return (max(values) - min(values)) / 2 / statistics.median(values)

    def quotient(self, name: str, other: str, field: str | None = None) -> float | None:
        """The median of this loop's figure in multiples of another's, in each round's slices."""
        mine, theirs = self.parts(name, field), self.parts(other, field)
        paired = [mine[key] / theirs[key] for key in mine.keys() & theirs.keys()]
        return statistics.median(paired) if paired else None

    def ratio(self, name: str, other: str) -> float | None:
        """How many times as good as the other this loop is."""
        if self.measure.lower_is_better:
            return self.quotient(other, name)
        return self.quotient(name, other)

    def ranked(self) -> list[str]:
        """The loops with a figure, the best first; the floor is none of them."""
        found = {
            name: value
            for name in self.loops
            if name != FLOOR and (value := self.median(name)) is not None
        }
        return sorted(found, key=found.__getitem__, reverse=not self.measure.lower_is_better)

    def rivals(self) -> list[str]:
        """The same without ours."""
        return [name for name in self.ranked() if name.partition("-")[0] != SUBJECT]

    def hardest(self, name: str, others: Iterable[str]) -> str | None:
        """Of the others the one that this loop stands worst against, slice by slice."""
        against = {
            other: ratio for other in others if (ratio := self.ratio(name, other)) is not None
        }
        return min(against, key=against.__getitem__, default=None)

    def best_rival(self) -> str | None:
        """The hardest one for ours; without ours, the best."""
        return self.hardest(SUBJECT, self.rivals()) or next(iter(self.rivals()), None)

    def against_best(self) -> float | None:
        """Ours beside the best rival; below 1 the row is lost."""
        rival = self.best_rival()
        return self.ratio(SUBJECT, rival) if rival else None


def summaries(data: Iterable[dict[str, Any]]) -> list[RowSummary]:
    """One for each row with figures, in the order of the catalogue; the last of a name counts."""
    found = {row["row"]: RowSummary(row) for row in data if row["row"] in ROWS}
    return [found[name] for name in ROWS if name in found and found[name].loops]


# ---- the whole ----------------------------------------------------------------------------------


def markdown(data: Iterable[dict[str, Any]]) -> str:
    """The report of one run, or of several."""
    rows = summaries(data)
    sections = [headings(rows)]
    for title, own in by_family(rows):
        sections += [f"### {title}", family_tables(own)]
    notes = all_notes(rows)
    if notes:
        sections += ["### Notes", "\n".join(f"- {text}" for text in notes)]
    return "\n\n".join(sections) + "\n"


def by_family(rows: Sequence[RowSummary]) -> list[tuple[str, list[RowSummary]]]:
    """Families that have rows, by title."""
    found = []
    for family, title in FAMILIES.items():
        own = [row for row in rows if row.row.family == family]
        if own:
            found.append((title, own))
    return found


def family_tables(rows: Sequence[RowSummary]) -> str:
    """Every table that has something to say about these rows."""
    floor = ", x the bare C++ server" if any(FLOOR in row.loops for row in rows) else ""
    tables = {
        f"Medians ± half the range, x {BASE}:": _figure_text,
        f"CPU in µs per request or operation{floor}:": _cpu_text,
        "Latency in µs, p50 / p99 / p99.9:": _latency_text,
        "Instructions and system calls per request, in runs of their own:": _counts_text,
    }
    parts = [subject_table(rows)]
    for title, text in tables.items():
        table = _matrix(rows, text)
        if table:
            parts += [title, table]
    return "\n\n".join(part for part in parts if part)


def headings(rows: Sequence[RowSummary]) -> str:
    """What each run was made with, and which rows are of it where there were several."""
    runs: dict[tuple[str, ...], list[RowSummary]] = defaultdict(list)
    for row in rows:
        runs[_run_of(row)].append(row)
    if len(runs) == 1:
        return "\n".join(f"- {line}" for line in _facts(rows))
    parts = []
    for number, own in enumerate(runs.values(), 1):
        names = ", ".join(f"`{row.name}`" for row in own)
        lines = [f"- {line}" for line in [*_facts(own), f"rows: {names}"]]
        parts.append("\n".join([f"Run {number}:\n", *lines]))
    return "\n\n".join(parts)


def _run_of(row: RowSummary) -> tuple[str, ...]:
    """What rows of the same run have in common. A run that went on later is one, too."""
    data = row.data
    when = data["commit"] or data["machine"]["date"]
    return (when, machine_key(data["machine"]), str(sorted(data["plan"].items())))


def _facts(rows: Sequence[RowSummary]) -> list[str]:
    first = rows[0].data
    facts, plan = first["machine"], first["plan"]
    dates = sorted({row.data["machine"]["date"] for row in rows})
    versions = {
        name: found["version"]
        for row in rows
        for name, found in row.data["loops"].items()
        if "version" in found
    }
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines = [
        when
        + (f", commit {first['commit']}" if first["commit"] else "")
        + f", {facts['kernel']}, {facts['cpus']} x {facts['cpu']}"
        + (f", governor {facts['governor']}" if facts["governor"] else "")
        + f", load {facts['load']} at the start",
        f"{facts['python']} ({facts['python_build']}"
        + (", optimised build" if facts["optimised"] else "")
        + f"), {facts['openssl']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
    if first.get("libraries"):
        lines.append(", ".join(f"{k} {v}" for k, v in first["libraries"].items()))
    if facts["environment"]:
        lines.append(", ".join(f"{k}={v}" for k, v in facts["environment"].items()))
    cold = ", cold malloc" if plan.get("cold_malloc") else ""
    seconds = plan.get("served_seconds", plan.get("seconds"))
    alone = plan.get("repeated_seconds", seconds)
    other = f", {alone:g} s one without a server" if alone != seconds else ""
    turns = f", in {plan['slices']} turns" if plan.get("slices", 1) > 1 else ""
    lines.append(f"rounds: {plan['rounds']}, interleaved, {seconds:g} s a cell{other}{turns}{cold}")
    if "latency_seconds" in plan and any(row.is_latency for row in rows):
        lines.append(f"rows of latency: {plan['latency_seconds']:g} s a cell")
    return lines


# ---- tables -------------------------------------------------------------------------------------


def subject_table(rows: Sequence[RowSummary]) -> str:
    """Ours against the best rival, row by row."""
    own = [row for row in rows if SUBJECT in row.loops and row.ranked()]
    if not own:
        return ""
    with_floor = any(FLOOR in row.loops for row in own)
    table: Table = [["row", "figure", SUBJECT, f"x {BASE}", "best rival", "x best rival"]]
    if with_floor:
        table[0].append("CPU x floor")
    for row in own:
        line = [
            f"`{row.name}`",
            row.measure.unit,
            _missing(row, SUBJECT) or short(row.median(SUBJECT)),
            times(row.ratio(SUBJECT, BASE)),
            row.best_rival() or "-",
            times(row.against_best()),
        ]
        if with_floor:
            line.append(times(row.quotient(SUBJECT, FLOOR, "cpu_us")))
        table.append(line)
    return render(table)


def lost_table(rows: Sequence[RowSummary]) -> str:
    """The rows in which a rival was ahead, the worst first; empty when there is none."""
    found = [(ratio, row) for row in rows if (ratio := row.against_best()) and ratio < 1]
    table: Table = [["row", "rival ahead", f"{SUBJECT} / rival"]]
    for ratio, row in sorted(found, key=lambda pair: pair[0]):
        table.append([f"`{row.name}`", row.best_rival() or "-", times(ratio)])
    return render(table) if found else ""


def _matrix(rows: Sequence[RowSummary], text: Callable[[RowSummary, str], str]) -> str:
    """A table of these rows by loop, without those of which nothing can be said."""
    order = [FLOOR, *(name for row in rows for name in row.data["loops"])]
    present = {name for row in rows for name in row.loops}
    names = [name for name in dict.fromkeys(order) if name in present]
    lines = [[f"`{row.name}`", *(text(row, name) for name in names)] for row in rows]
    lines = [line for line in lines if any(cell not in ("-", "FAILED") for cell in line[1:])]
    return render([["row", *names], *lines]) if lines else ""


def _figure_text(row: RowSummary, name: str) -> str:
    missing = _missing(row, name)
    if missing:
        return missing
    text = short(row.median(name))
    if len(row.values(name)) > 1:
        text += f" ±{row.spread(name):.0%}"
    ratio = row.ratio(name, BASE)
    if ratio is not None and name not in (BASE, FLOOR):
        text += f", {times(ratio)}"
    return f"**{text}**" if name == row.ranked()[0] else text


def _cpu_text(row: RowSummary, name: str) -> str:
    if isinstance(row.row.run, Served) and row.row.run.never_idle:
        return "-"
    cpu = row.median(name, "cpu_us")
    if cpu is None:
        return _missing(row, name) or "-"
    ratio = row.quotient(name, FLOOR, "cpu_us") if name != FLOOR else None
    return f"{cpu:.3g}" + (f", {times(ratio)}" if ratio else "")


def _latency_text(row: RowSummary, name: str) -> str:
    missing = _missing(row, name)
    if missing or not isinstance(row.row.run, Served):
        return missing or "-"
    fields = ("p50_us", "p99_us", "p999_us")
    return " / ".join(f"{row.median(name, field) or 0:.0f}" for field in fields)


def _counts_text(row: RowSummary, name: str) -> str:
    found = row.data["counts"].get(name, {})
    instructions, calls = found.get("instructions"), found.get("syscalls")
    if instructions is None and calls is None:
        return "-"
    return f"{short(instructions)} / " + ("-" if calls is None else f"{calls:.2f}")


def _missing(row: RowSummary, name: str) -> str | None:
    if name in row.failures:
        return "FAILED"
    return None if row.values(name) else "-"


# ---- what the reader must be told ---------------------------------------------------------------


def all_notes(rows: Sequence[RowSummary]) -> list[str]:
    """Who stayed away, what failed, what moved, what was disturbed."""
    notes = [*_absent(rows), *_left_out(rows)]
    for row in rows:
        notes += [f"`{row.name}`, {name}: {why}." for name, why in row.failures.items()]
        notes += [*_moved(row), *_starved(row), *_client_bound(row), *_disturbed(row)]
        notes += _other_rivals(row)
        if row.data.get("rate"):
            notes.append(f"`{row.name}`: {row.data['rate']} requests/s, {row.data['rate_is']}.")
    return notes


def _absent(rows: Sequence[RowSummary]) -> list[str]:
    reasons = {
        (name, found["reason"]): None
        for row in rows
        for name, found in row.data["loops"].items()
        if "reason" in found
    }
    return [f"{name} did not take part: {reason}." for name, reason in reasons]


def _left_out(rows: Sequence[RowSummary]) -> list[str]:
    """Loops that are not asked to do some rows."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        for who_and_why in row.row.stays_away.items():
            found[who_and_why].append(f"`{row.name}`")
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, why), own in found.items():
        alike[_list(own), why].append(name)
    return [
        f"{_list(names)} {'is' if len(names) == 1 else 'are'} left out of {own}: {why}."
        for (own, why), names in alike.items()
    ]


def _moved(row: RowSummary) -> list[str]:
    if not row.moved:
        return []
    listed = ", ".join(f"{move:+.0%} in round {n + 1}" for n, move in sorted(row.moved.items()))
    verdict = "left out" if row.void else "kept: too few rounds would remain"
    again = row.data.get("made_again", 0)
    more = f", {again} made again" if again else ""
    return [f"`{row.name}`: {CONTROL} moved by {listed} ({verdict}{more})."]


def _starved(row: RowSummary) -> list[str]:
    """Loops that let one connection wait for the others: no row is won in that way."""
    notes = []
    for name in row.loops:
        least = row.median(name, "least_per_connection")
        most = row.median(name, "most_per_connection")
        if least and most and not row.is_latency and least < FAIR_SHARE * most:
            notes.append(
                f"`{row.name}`, {name}: one connection got {least / most:.0%} of what another got."
            )
    return notes


def _client_bound(row: RowSummary) -> list[str]:
    """Rows where the client, not the server, was the limit: only CPU per request counts there."""
    bound = [
        name
        for name in row.loops
        if not row.is_latency  # An open loop's client never rests.
        and (row.median(name, "client_busy") or 0) > 0.95
        and (row.median(name, "server_busy") or 1) < 0.95
    ]
    if not bound:
        return []
    return [f"`{row.name}`: the load generator's core was full before {_list(bound)}'s."]


def _disturbed(row: RowSummary) -> list[str]:
    """Rows during which other programs had a say."""
    shares = [
        cell["others_busy"]
        for name in row.loops
        for cell in row.cells(name).values()
        if "others_busy" in cell
    ]
    if not shares or statistics.median(shares) <= BUSY_LIMIT:
        return []
    return [f"`{row.name}`: other programs used {statistics.median(shares):.0%} of a core."]


def _other_rivals(row: RowSummary) -> list[str]:
    """Where a run of everything has found other best rivals than those the short run takes."""
    best = [name for name in row.rivals() if name not in (CONTROL, BASE)][:2]
    if row.data["plan"].get("set") != "full" or not row.row.in_bench:
        return []
    if len(best) < 2 or set(best) == set(row.row.rivals):
        return []
    return [f"`{row.name}`: the best two rivals are {_list(best)}; catalogue.py says others."]


# ---- text ---------------------------------------------------------------------------------------


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def short(value: float | None) -> str:
    """Three digits and a letter for the size."""
    if value is None:
        return "-"
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if value < 1000 * limit else f"{value:.0f}"
    return f"{value:.3g}"


def render(table: Table) -> str:
    """A Markdown table whose columns line up in the source, too."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in table
    ]
    rule = "|" + "|".join(
        "-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])
