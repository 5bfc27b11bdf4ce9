"""The order of cells, which rounds count, how many are made again, and what all that takes.

Only arithmetic: what runs the cells is elsewhere.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalogue import Probed, Repeated, Row, Served

# What was measured, or {"error": ...}.
Answer = dict[str, Any]

CONTROL_LIMIT = 0.10
SERVER_START_SECONDS = 0.6  # About what starting a server and ending it takes.
PROCESS_SECONDS = 0.35  # About what starting the process and importing the loop takes.
SLICE_START_SECONDS = 0.05  # Of the load generator.
# The 99th percentile takes more answers than a mean; a slice has its own.
TAIL_WINDOWS = 2


@dataclass(frozen=True)
class Settings:
    """How long and how often is measured."""

    name: str  # Which of the runs this is: its results are kept apart from the others'.
    rounds: int
    served_seconds: float
    warmup: float
    repeated_seconds: float
    again: int  # How many rounds of a row may be made again when its control moved.
    # Into how many pieces a cell's time is cut; between two of them all other loops have theirs.
    slices: int = 1

    @property
    def latency_seconds(self) -> float:
        """As served_seconds, where the figure is a percentile."""
        return self.served_seconds * TAIL_WINDOWS


SETTINGS = {
    settings.name: settings
    for settings in (
        Settings("bench", 3, 1.0, 0.2, 0.4, 1, slices=5),
        Settings("full", 3, 2.4, 0.4, 0.8, 1, slices=8),
        Settings("row", 3, 2.4, 0.4, 0.8, 1, slices=8),
        Settings("quick", 2, 0.4, 0.1, 0.1, 0, slices=2),
    )
}


def choose(
    pattern_list: str, names: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """The names that a comma-separated list of names, globs and groups asks for, in our order.

    Raises LookupError for a part that nothing is called.
    """
    wanted: set[str] = set()
    for pattern in pattern_list.split(","):
        matches = groups.get(pattern) or fnmatch.filter(names, pattern)
        if not matches:
            raise LookupError(f"nothing is called {pattern!r}; --list prints every name")
        wanted.update(matches)
    return [name for name in names if name in wanted]


def rotated(names: Sequence[str], number: int, index: int) -> list[str]:
    """The loops of one row in one round, each time another one first.

    A machine that slows down for a minute then slows all loops of a few rows, not one loop.
    """
    first = (number + index) % len(names)
    return [*names[first:], *names[:first]]


def turn(names: Sequence[str], number: int) -> list[str]:
    """The loops in one slice of a round: another one first each time, every other time backwards.

    None is always behind the same one, and none always early while the machine changes its speed.
    """
    if not names:
        return []
    order = rotated(names, number // 2, 0)
    return order[::-1] if number % 2 else order


def take_turns(
    names: Sequence[str], slices: int, ask: Callable[[str, int], Answer]
) -> dict[str, list[Answer]]:
    """What each loop answers in each slice; of one that fails its error, and nothing more is asked.

    `ask` is given the loop's name and the number of the slice.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    left = list(names)
    for number in range(slices):
        for name in turn(left, number):
            answer = ask(name, number)
            if "error" in answer:
                answers[name] = [answer]
                left.remove(name)
            else:
                answers[name].append(answer)
    return answers


def moved_rounds(control: Mapping[int, float]) -> dict[int, float]:
    """The rounds in which the control is more than CONTROL_LIMIT from its median, and how far.

    Two rounds cannot say which of them is wrong.
    """
    if len(control) < 3:
        return {}
    middle = statistics.median(control.values())
    moves = {number: value / middle - 1 for number, value in control.items()}
    return {number: move for number, move in moves.items() if abs(move) > CONTROL_LIMIT}


def void_rounds(control: Mapping[int, float]) -> set[int]:
    """The rounds to leave out: those that moved, unless too few would be left to say anything."""
    moved = set(moved_rounds(control))
    kept = len(control) - len(moved)
    return moved if kept >= 2 and kept * 2 >= len(control) else set()


def missing_rounds(control: Mapping[int, float], made: int, settings: Settings) -> int:
    """How many rounds of a row are still to be made, of which `made` have been.

    First as many as asked for; then as many more as moved, within the bound.
    """
    if made < settings.rounds:
        return settings.rounds - made
    wanted = len(moved_rounds(control))
    already = made - settings.rounds
    return max(0, min(wanted, settings.again) - already)


def sliced(row: Row) -> bool:
    """Whether the row's loops take turns within a round.

    Not where a server is never idle and would disturb the next one, nor where the figure is of the
    whole time: a peak, a process that does its work once.
    """
    match row.run:
        case Served(never_idle=False):
            return row.measure.field == "value" or row.measure.is_tail
        case Repeated():
            return True
    return False


def window_seconds(row: Row, settings: Settings) -> float:
    """How long the load generator measures."""
    return settings.latency_seconds if row.measure.is_tail else settings.served_seconds


def cell_seconds(row: Row, settings: Settings) -> float:
    """About what one cell of a row takes."""
    match row.run:
        case Served():
            starts = settings.slices if sliced(row) else 1
            load = window_seconds(row, settings) + starts * SLICE_START_SECONDS
            # Each further slice has half of the first one's warm-up.
            return settings.warmup * (starts + 1) / 2 + load + SERVER_START_SECONDS
        case Repeated():
            return settings.repeated_seconds + PROCESS_SECONDS
        case Probed(seconds=seconds):
            return seconds + PROCESS_SECONDS


def expected_seconds(row: Row, loops: int, settings: Settings) -> float:
    """About what a row takes with that many loops, without rounds that are made again."""
    seconds = cell_seconds(row, settings) * loops * settings.rounds
    if isinstance(row.run, Served) and row.run.load_share is not None:
        seconds += cell_seconds(row, settings)  # What the load is a share of is measured first.
    return seconds
