"""From cells to tables: medians, spread, paired ratios, and what the reader must be told.

A cell's "value" is a rate (requests or operations per second). Ratios are paired: taken within a
round, where both loops met the same machine, and the median of those is printed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from harness import BUSY_LIMIT, CONTROL, FLOOR, Cell

BASE = "uvloop"
SUBJECT = "cpploop"
CONTROL_LIMIT = 0.10

Table = list[list[str]]


class Summary:
    """All cells of one result file, by row and loop, without the rounds that do not count."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.failures: dict[tuple[str, str], str] = {}
        self._cells: dict[tuple[str, str], dict[int, Cell]] = defaultdict(dict)
        for cell in data["cells"]:
            if "error" in cell:
                self.failures[cell["row"], cell["loop"]] = cell["error"]
            else:
                self._cells[cell["row"], cell["loop"]][cell["round"]] = cell
        self.rows = [row for row in data["rows"] if self._measured_loops(row, data["loops"])]
        self.loops = [
            name
            for name in data["loops"]
            if any((row, name) in self._cells or (row, name) in self.failures for row in self.rows)
        ]
        self.control_notes: list[str] = []
        self._void = {row: self._void_rounds(row) for row in self.rows}

    def _measured_loops(self, row: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._cells.get((row, name))]

    def _void_rounds(self, row: str) -> set[int]:
        """The rounds whose control moved, unless too few would be left to say anything."""
        control = {n: cell["value"] for n, cell in self._cells.get((row, CONTROL), {}).items()}
        if len(control) < 2:
            return set()
        middle = statistics.median(control.values())
        moves = {n: value / middle - 1 for n, value in control.items()}
        void = {n for n, move in moves.items() if abs(move) > CONTROL_LIMIT}
        if not void:
            return set()
        kept = len(control) - len(void)
        enough = kept >= 2 and kept * 2 >= len(control)
        listed = ", ".join(f"{moves[n]:+.0%} in round {n + 1}" for n in sorted(void))
        verdict = "left out" if enough else "kept: too few rounds would remain"
        self.control_notes.append(f"`{row}`: {CONTROL} moved by {listed} ({verdict}).")
        return void if enough else set()

    def cells(self, row: str, name: str) -> dict[int, Cell]:
        """The cells that count, by round; none if any of the row's rounds failed."""
        if (row, name) in self.failures:
            return {}
        cells = self._cells.get((row, name), {})
        return {number: cell for number, cell in cells.items() if number not in self._void[row]}

    def median(self, row: str, name: str, field: str = "value") -> float | None:
        values = [cell[field] for cell in self.cells(row, name).values() if cell.get(field)]
        return statistics.median(values) if values else None

    def spread(self, row: str, name: str) -> float:
        """Half of the range, as a part of the median."""
        values: list[float] = [cell["value"] for cell in self.cells(row, name).values()]
        return (max(values) - min(values)) / 2 / statistics.median(values)

    def ratio(self, row: str, name: str, other: str, field: str = "value") -> float | None:
        """The median over rounds of this loop's value in multiples of another's."""
        mine, theirs = self.cells(row, name), self.cells(row, other)
        paired = [
            mine[number][field] / theirs[number][field]
            for number in mine.keys() & theirs.keys()
            if mine[number].get(field) and theirs[number].get(field)
        ]
        return statistics.median(paired) if paired else None

    def best_rival(self, row: str) -> str | None:
        """The fastest loop of a row that is neither ours nor the floor."""
        rivals = {
            name: value
            for name in self.loops
            if name.split("-")[0] not in (SUBJECT, FLOOR)
            and (value := self.median(row, name)) is not None
        }
        return max(rivals, key=lambda name: rivals[name]) if rivals else None


def markdown(data: dict[str, Any]) -> str:
    """The whole report."""
    summary = Summary(data)
    unit = data["unit"]
    sections = [_heading(data)]
    if SUBJECT in summary.loops:
        sections += [f"### {SUBJECT} against the best rival", _subject_table(summary)]
    sections += [
        f"### {unit.capitalize()}s per second: median ± half range, x {BASE} (paired)",
        _matrix(summary, lambda row, name: _rate_text(summary, row, name)),
    ]
    if data["kind"] == "servers":
        sections += [
            "### Server CPU per request in µs, x the bare C++ server",
            _matrix(summary, lambda row, name: _cpu_text(summary, row, name)),
            "### Latency in µs: p50 / p99 / p99.9",
            _matrix(summary, lambda row, name: _latency_text(summary, row, name)),
        ]
    else:
        sections += [
            "### CPU per operation in ns",
            _matrix(summary, lambda row, name: _cpu_text(summary, row, name)),
        ]
    notes = _notes(summary)
    if notes:
        sections += ["### Notes", "\n".join(f"- {text}" for text in notes)]
    return "\n\n".join(sections) + "\n"


def _heading(data: dict[str, Any]) -> str:
    facts, plan = data["machine"], data["plan"]
    versions = ", ".join(
        f"{name} {found['version']}" for name, found in data["loops"].items() if "version" in found
    )
    lines = [
        f"- {facts['date']}, {facts['kernel']}, {facts['cpus']} x {facts['cpu']}"
        + (f", governor {facts['governor']}" if facts["governor"] else "")
        + f", load {facts['load']} at the start",
        f"- {facts['python']} ({facts['python_build']}"
        + (", optimised build" if facts["optimised"] else "")
        + f"), {facts['openssl']}",
        f"- {versions}",
    ]
    if data.get("libraries"):
        lines.append("- " + ", ".join(f"{k} {v}" for k, v in data["libraries"].items()))
    if facts["environment"]:
        lines.append("- " + ", ".join(f"{k}={v}" for k, v in facts["environment"].items()))
    cold = ", cold malloc" if plan.get("cold_malloc") else ""
    lines.append(f"- rounds: {plan['rounds']}, {plan['seconds']:g} s a cell, interleaved{cold}")
    return "\n".join(lines)


def _subject_table(summary: Summary) -> str:
    with_floor = FLOOR in summary.loops
    table: Table = [["row", SUBJECT, f"x {BASE}", "best rival", "x best rival"]]
    if with_floor:
        table[0].append("CPU x floor")
    for row in summary.rows:
        rival = summary.best_rival(row)
        line = [
            f"`{row}`",
            _missing(summary, row, SUBJECT) or _short(summary.median(row, SUBJECT)),
            _times(summary.ratio(row, SUBJECT, BASE)),
            rival or "-",
            _times(summary.ratio(row, SUBJECT, rival) if rival else None),
        ]
        if with_floor:
            line.append(_times(summary.ratio(row, SUBJECT, FLOOR, "cpu_us")))
        table.append(line)
    return _render(table)


def _matrix(summary: Summary, text: Callable[[str, str], str]) -> str:
    table: Table = [["row", *summary.loops]]
    for row in summary.rows:
        table.append([f"`{row}`", *(text(row, name) for name in summary.loops)])
    return _render(table)


def _rate_text(summary: Summary, row: str, name: str) -> str:
    missing = _missing(summary, row, name)
    if missing:
        return missing
    text = _short(summary.median(row, name))
    if len(summary.cells(row, name)) > 1:
        text += f" ±{summary.spread(row, name):.0%}"
    ratio = summary.ratio(row, name, BASE)
    if ratio is not None and name not in (BASE, FLOOR):
        text += f", {_times(ratio)}"
    entrants = [other for other in summary.loops if other != FLOOR]
    best = max(entrants, key=lambda other: summary.median(row, other) or 0.0)
    return f"**{text}**" if name == best else text


def _cpu_text(summary: Summary, row: str, name: str) -> str:
    cpu = summary.median(row, name, "cpu_us")
    if cpu is None:
        return _missing(summary, row, name) or "-"
    if summary.data["kind"] != "servers":
        return f"{cpu * 1000:.0f}"
    ratio = summary.ratio(row, name, FLOOR, "cpu_us")
    return f"{cpu:.1f}" + (f", {_times(ratio)}" if ratio and name != FLOOR else "")


def _latency_text(summary: Summary, row: str, name: str) -> str:
    missing = _missing(summary, row, name)
    if missing:
        return missing
    fields = ("p50_us", "p99_us", "p999_us")
    return " / ".join(f"{summary.median(row, name, field) or 0:.0f}" for field in fields)


def _missing(summary: Summary, row: str, name: str) -> str | None:
    if (row, name) in summary.failures:
        return "FAILED"
    return None if summary.cells(row, name) else "-"


def _notes(summary: Summary) -> list[str]:
    notes = [
        f"{name} did not take part: {found['reason']}."
        for name, found in summary.data["loops"].items()
        if "reason" in found
    ]
    notes += [f"`{row}`, {name}: {reason}." for (row, name), reason in summary.failures.items()]
    notes += summary.control_notes
    notes += _client_bound(summary)
    notes += _disturbed(summary)
    return notes


def _client_bound(summary: Summary) -> list[str]:
    """Rows where the client, not the server, was the limit: only CPU per request counts there."""
    notes = []
    for row in summary.rows:
        bound = [
            name
            for name in summary.loops
            if (summary.median(row, name, "client_busy") or 0) > 0.95
            and (summary.median(row, name, "server_busy") or 1) < 0.95
        ]
        if bound:
            notes.append(f"`{row}`: the load generator's core was full before {_list(bound)}'s.")
    return notes


def _disturbed(summary: Summary) -> list[str]:
    """Rows during which other programs had a say."""
    notes = []
    for row in summary.rows:
        shares = [
            cell["others_busy"]
            for name in summary.loops
            for cell in summary.cells(row, name).values()
            if "others_busy" in cell
        ]
        if shares and statistics.median(shares) > BUSY_LIMIT:
            share = statistics.median(shares)
            notes.append(f"`{row}`: other programs used {share:.0%} of a core meanwhile.")
    return notes


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}" if value < 1000 * limit else f"{value:.0f}"
    return f"{value:.3g}"


def _render(table: Table) -> str:
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
