"""Compares the loops on a script, and says what a difference is worth."""

from __future__ import annotations

import difflib
import zlib
from collections import Counter
from typing import Any

import engine
import oracle


class Difference(AssertionError):
    """cpploop does not do what asyncio does."""

    def __init__(self, script: dict[str, Any], text: str) -> None:
        super().__init__(text)
        self.script = script
        self.text = text


# How often cpploop must differ again before it counts; a busy machine shifts what the kernel does.
AGAIN = 3
# What no fault of the system looks like, unless the script itself brings asyncio to it.
CODE_ERRORS = ("AttributeError(", "TypeError(", "SystemError(", "AssertionError(", "KeyError(")
REPORTS = ("exception handler", "unraisable", "left run_forever()", "setup")
LOST_WRITES = ("log", "WARNING", "socket.send() raised exception.")
# The share of scripts that may come out in a way of their own under faults. Measured: 0.001 where
# the faults are benign, 0.008 under pressure as well.
EXCUSED_MAX = 0.02


class Tally:
    """What was compared, by kind."""

    def __init__(self) -> None:
        self.scripts: Counter[str] = Counter()
        self.steps: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.unstable: Counter[str] = Counter()
        self.wobbled: Counter[str] = Counter()
        # Under faults: an asyncio that met some did just as cpploop, or something else again.
        self.alike: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        self.last_excused = ""
        # The last of each kind, to be looked at when there are many.
        self.wobble: dict[str, str] = {}

    def too_many_excused(self) -> bool:
        # A few in a short run say nothing.
        return self.excused.total() > max(5, EXCUSED_MAX * self.scripts.total())

    def lines(self) -> list[str]:
        names = ("scripts", "steps", "bytes", "unstable", "wobbled", "alike", "excused")
        counters = [getattr(self, name) for name in names]
        rows = [("kind", *names)]
        for kind in sorted(self.scripts):
            rows.append((kind, *(f"{counter[kind]:,}" for counter in counters)))
        rows.append(("all", *(f"{counter.total():,}" for counter in counters)))
        return ["".join(f"{cell:>16}" for cell in row) for row in rows]


class Comparer:
    """Runs scripts on both loops."""

    def __init__(self, faults: oracle.Faults | None = None) -> None:
        self.mended = oracle.mend()
        self.loops = oracle.loops()
        self.faults = faults
        if faults is not None:
            faults.add_to(self.loops)
        self.tally = Tally()

    def run(self, script: dict[str, Any], loop: str) -> engine.Result:
        return engine.run(script, self.loops[loop])

    def check(self, script: dict[str, Any]) -> None:
        """Raise Difference when cpploop differs from an asyncio that agrees with itself."""
        kind = script["kind"]
        if self.faults is not None:
            self.faults.script = zlib.crc32(repr(script).encode())
            if self.faults.rates.hard:
                self._survives(script)
                return
        expected = self.run(script, "asyncio")
        actual = self.run(script, "cpploop")
        tally = self.tally
        tally.scripts[kind] += 1
        tally.steps[kind] += len(script["steps"])
        tally.bytes[kind] += expected.bytes
        if self._same(script, expected, actual):
            return
        if self._unstable(script, expected, actual):
            tally.unstable[kind] += 1
            return
        if self.faults is not None:
            counter = self._under_faults(self.faults, script, expected, actual)
            if counter is not None:
                counter[kind] += 1
                if counter is tally.excused:
                    tally.last_excused = f"{script}\n{self._explain(script, expected, actual)}"
                return
        again = (self.run(script, "cpploop") for _ in range(AGAIN))
        if any(self._same(script, expected, actual) for actual in again):
            # The kernel's timing, most likely: asyncio agreed with itself four times.
            tally.wobbled[kind] += 1
            tally.wobble[kind] = f"{script}\n{self._explain(script, expected, actual)}"
            return
        raise Difference(script, self._explain(script, expected, actual))

    def _survives(self, script: dict[str, Any]) -> None:
        """Under faults that end connections, what comes is no fault's to decide: nothing breaks.

        One connection_lost() for each connection_made(), no descriptor left, no byte that was not
        sent, an end, and no error that is the code's.
        """
        actual = self.run(script, "cpploop")
        kind, tally = script["kind"], self.tally
        tally.scripts[kind] += 1
        tally.steps[kind] += len(script["steps"])
        tally.bytes[kind] += actual.bytes
        wrong = actual.broken + actual.foreign
        suspects = [entry for entry in actual.trace if _is_suspect(entry)]
        if suspects:
            known = self.run(script, "asyncio").trace
            wrong += [
                f"as without faults never: {entry}" for entry in suspects if entry not in known
            ]
        if wrong:
            lines = [*map(repr, actual.trace), *(f"wrong: {text}" for text in wrong)]
            raise Difference(script, "\n".join(lines))

    def _same(self, script: dict[str, Any], expected: Any, actual: Any) -> bool:
        # asyncio's own failing of an invariant is no excuse for ours.
        return self._trace(script, expected) == self._trace(script, actual) and not actual.broken

    def _unstable(self, script: dict[str, Any], expected: engine.Result, actual: Any) -> bool:
        mine = self._trace(script, expected)
        if (engine.ENDLESS,) in mine:
            return True
        if _counts_differently(script) and _was_paused(actual):
            return True
        # One after the other, and no further than it takes.
        runs = (self.run(script, name) for name in ("asyncio", "larger", "smaller", "like ours"))
        if any(self._trace(script, run) != mine for run in runs):
            return True
        # Where asyncio falls over itself it is no oracle any more; up to there it is.
        end = _failure(expected, mine)
        return end is not None and mine[:end] == self._trace(script, actual)[:end]

    def _under_faults(
        self, faults: oracle.Faults, script: dict[str, Any], expected: engine.Result, actual: Any
    ) -> Counter[str] | None:
        """What counts a script that faults bring asyncio to do otherwise, too; None for others."""
        mine = self._trace(script, expected)
        differs = False
        for name in faults.SHAKEN:
            run = self.run(script, name)
            if self._same(script, run, actual):
                return self.tally.alike
            differs = differs or self._trace(script, run) != mine
        return self.tally.excused if differs and not actual.broken else None

    def _trace(self, script: dict[str, Any], result: engine.Result) -> list[Any]:
        if _counts_differently(script):
            # Nor are writes to a lost connection counted alike: asyncio hands its transport all
            # that one call has encrypted, cpploop as much as its buffer holds.
            return [_without_levels(e) for e in self._drop(script, result) if e != LOST_WRITES]
        return self._drop(script, result)

    def _drop(self, script: dict[str, Any], result: engine.Result) -> list[Any]:
        if script.get("peek", True):
            return result.trace
        # Several writes of one callback are one send of ours at its end: fewer of them fail on
        # their own, and what fails is told when they have all returned.
        dropped = (
            LOST_WRITES,
            ("log", "DEBUG", "<transport>: Fatal write error on socket transport"),
        )
        return [
            entry for entry in result.trace if entry not in dropped and entry[1:] != ("->", None)
        ]

    def _explain(self, script: dict[str, Any], expected: Any, actual: Any) -> str:
        lines = difflib.unified_diff(
            [repr(entry) for entry in self._trace(script, expected)],
            [repr(entry) for entry in self._trace(script, actual)],
            "asyncio",
            "cpploop",
            n=100,
            lineterm="",
        )
        return "\n".join([*lines, *(f"broken: {text}" for text in actual.broken)])


def _is_suspect(entry: Any) -> bool:
    if entry == (engine.ENDLESS,) or entry[0] == "unraisable":
        return True
    told = entry[0] in REPORTS and any(name in repr(entry) for name in CODE_ERRORS)
    return bool(told)


def _counts_differently(script: dict[str, Any]) -> bool:
    """asyncio's TLS forgets what it has handed to the transport below; cpploop counts it.

    So the levels are others, and what cpploop's pause_writing() led to has no counterpart.
    """
    return str(script["kind"]).startswith("tls")


def _was_paused(result: engine.Result) -> bool:
    return any("pause_writing" in entry for entry in result.trace)


def _without_levels(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return tuple(_without_levels(item) for item in entry)
    return "any" if entry in ("empty", "low", "middle", "high") else entry


def _failure(result: engine.Result, trace: list[Any]) -> int | None:
    """Where in its TRACE asyncio met an error of its own code, or broke an invariant."""
    for index, entry in enumerate(trace):
        if "'NoneType' object" in repr(entry):
            return index
    return len(trace) if result.broken else None
