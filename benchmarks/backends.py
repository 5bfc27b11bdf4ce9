"""The page's table of cpploop's two ways to the kernel, and what io_uring's is to reach.

io_uring stays what one asks for until it is nowhere behind epoll and ahead where requests come. By
itself this prints the loops that are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import report
from loops import SUBJECT
from report import RowSummary

RING = f"{SUBJECT}-io_uring"
# blazio's and rsloop's default is a ring, zloop's is asked for.
RIVALS = ("blazio", "rsloop", "zloop-io_uring")
# A run of these, by name: what `make bench-ring` compares.
LOOPS = ("asyncio", "uvloop", SUBJECT, RING, *RIVALS)


@dataclass(frozen=True)
class Target:
    """What is asked of a row on the ring; `is_met` gives None where that was not measured."""

    text: str
    is_met: Callable[[RowSummary], bool | None]


def _at_least(factor: float, other: str, text: str) -> Target:
    def is_met(row: RowSummary) -> bool | None:
        ratio = row.ratio(RING, other)
        return None if ratio is None else ratio >= factor

    return Target(f"{factor:g}x {text}", is_met)


def _few_calls(row: RowSummary) -> bool | None:
    calls = row.data["counts"].get(RING, {}).get("syscalls")
    return None if calls is None else calls < 0.1


NOT_BEHIND = _at_least(0.95, SUBJECT, "epoll")
AHEAD_OF_EPOLL = _at_least(1.1, SUBJECT, "epoll")
AHEAD_OF_BLAZIO = _at_least(1.1, "blazio", "blazio")
FEW_CALLS = Target("fewer than 0.1 system calls a request", _few_calls)


def targets_of(row: RowSummary) -> list[Target]:
    """What the row is to reach on the ring."""
    if re.fullmatch(r"(uvicorn|aiohttp)-(64|256)", row.name):
        return [AHEAD_OF_BLAZIO, NOT_BEHIND]
    if row.name == "proto-1k-64":
        return [AHEAD_OF_EPOLL, FEW_CALLS]
    return [NOT_BEHIND]


def best_rival(row: RowSummary) -> str | None:
    """Of the rivals on a ring, the one that ours on a ring stands worst against."""
    return row.hardest(RING, RIVALS)


def table(rows: Sequence[RowSummary]) -> str:
    """Every row that was measured on both backends; the missed ones and then the worst first."""
    lines = []
    for row in rows:
        ratio = row.ratio(RING, SUBJECT)
        if ratio is None:
            continue
        known = [
            (target, met) for target in targets_of(row) if (met := target.is_met(row)) is not None
        ]
        missed = [target.text for target, met in known if not met]
        rival = best_rival(row)
        cells = [
            f"`{row.name}`",
            row.measure.unit,
            report.short(row.median(SUBJECT)),
            report.short(row.median(RING)),
            report.times(ratio),
            rival or "-",
            report.times(row.ratio(RING, rival) if rival else None),
            ", ".join(target.text for target, _ in known),
            f"missed: {', '.join(missed)}" if missed else "met",
        ]
        lines.append((not missed, ratio, cells))
    lines.sort(key=lambda line: line[:2])
    head = [
        "row",
        "figure",
        "epoll",
        "io_uring",
        "x epoll",
        "best ring rival",
        "x that",
        "target",
        "",
    ]
    return report.render([head, *(cells for *_, cells in lines)]) if lines else ""


if __name__ == "__main__":
    print(",".join(LOOPS))
