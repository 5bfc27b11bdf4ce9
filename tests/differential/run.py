"""Differential tests: random scripts on asyncio and on cpploop, their traces compared.

    python tests/differential/run.py --seconds 600 [--seed N] [--kind tcp,tls,...]
    python tests/differential/run.py --replay FILE...      # saved scripts only

The corpus is replayed first, always. A difference is shrunk and printed as a Python literal, with
both traces; put it into a file of corpus/ when it is mended. The exit status is 1 then.
"""

from __future__ import annotations

import argparse
import ast
import gc
import pprint
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hypothesis
import kinds
import oracle
import shaken
from compare import Comparer, Difference, Tally
from planted import FAULTS
from script import scripts

CORPUS = Path(__file__).resolve().parent / "corpus"
ROUND = 400


class _Over(BaseException):
    """The time for a kind is over; no Exception, so that Hypothesis does not look into it."""


def load(path: Path) -> dict[str, Any]:
    script: dict[str, Any] = ast.literal_eval(path.read_text())
    return script


def show(script: dict[str, Any]) -> str:
    return pprint.pformat(script, width=100, sort_dicts=False)


def replay(comparer: Comparer, paths: list[Path]) -> list[str]:
    """The saved scripts that differ, with their traces."""
    failures = []
    for path in paths:
        try:
            comparer.check(load(path))
        except Difference as exc:
            failures.append(f"{path.name} differs\n{exc.text}")
    return failures


def unnoticed(comparer: Comparer, paths: list[Path]) -> list[str]:
    """The planted faults that no saved script tells from asyncio."""
    ours, tally = comparer.loops["cpploop"], comparer.tally
    comparer.tally = Tally()
    try:
        result = []
        for name, factory in FAULTS.items():
            comparer.loops["cpploop"] = oracle.Loop(name, factory)
            # Twice: on a busy machine a script may come out as unstable.
            if not replay(comparer, paths) and not replay(comparer, paths):
                result.append(name)
        return result
    finally:
        comparer.loops["cpploop"], comparer.tally = ours, tally


def search(comparer: Comparer, kind: str, seed: int, deadline: float) -> Difference | None:
    """One round of random scripts of KIND; the smallest script that differs, if any."""
    found: list[Difference] = []

    def one(script: dict[str, Any]) -> None:
        if time.monotonic() > deadline and not found:
            raise _Over
        try:
            comparer.check(script)
        except Difference as exc:
            found.append(exc)
            raise

    test: Callable[[], None] = hypothesis.seed(seed)(
        hypothesis.settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=False,
        )(hypothesis.given(scripts(kind))(one))
    )
    try:
        test()
    except _Over:
        return None
    except (Difference, hypothesis.errors.Flaky, BaseExceptionGroup):
        if not found:
            raise
    # A script that differs only now and then makes Hypothesis complain; the smallest one counts.
    return min(found, key=lambda item: len(repr(item.script)), default=None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kind", default=",".join(kinds.KINDS), help="some of %(default)s")
    parser.add_argument("--replay", nargs="*", type=Path, help="only these saved scripts")
    parser.add_argument("--keep-going", action="store_true", help="search on after a difference")
    parser.add_argument(
        "--faults",
        metavar="benign=0.1,pressure=0.1",
        help="in the system calls; with hard=0.02, too, what breaks is looked at, not what differs",
    )
    parser.add_argument("--plant", choices=FAULTS, help="search a loop with a planted fault")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    chosen = arguments.kind.split(",")
    unknown = set(chosen) - set(kinds.KINDS)
    if unknown:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")

    faults = None
    if arguments.faults is not None:
        if not shaken.available():
            parser.error("this cpploop was built without CPPLOOP_FAULTS (docs/dev/stress.md)")
        faults = oracle.Faults(seed, shaken.Rates.parse(arguments.faults))
    comparer = Comparer(faults)
    print("Python", sys.version.split()[0], "· seed", seed, flush=True)
    for text in comparer.mended:
        print("mended in this asyncio:", text)
    kinds.certificates()
    gc.freeze()
    saved = sorted(CORPUS.glob("*.txt")) if arguments.replay is None else arguments.replay
    failures = replay(comparer, saved)
    print(f"{len(saved)} saved scripts replayed, {len(failures)} differ", flush=True)
    for text in failures:
        print(text)
    if arguments.plant is not None:
        comparer.loops["cpploop"] = oracle.Loop(arguments.plant, FAULTS[arguments.plant])
    elif arguments.replay is None and faults is None:
        missed = unnoticed(comparer, saved)
        print(f"{len(FAULTS) - len(missed)} of {len(FAULTS)} planted faults noticed", flush=True)
        if missed:
            print("not noticed:", ", ".join(missed))
        failures += missed
    if arguments.replay is None:
        failures += _search_all(comparer, chosen, seed, arguments)
    for kind, text in comparer.tally.wobble.items():
        print(f"one of {comparer.tally.wobbled[kind]} that differed once ({kind}):\n{text}")
    print("\n".join(comparer.tally.lines()))
    if comparer.tally.too_many_excused():
        failures.append("too many scripts differ under faults as no asyncio under faults does")
        print(f"{failures[-1]}, as the last of them:\n{comparer.tally.last_excused}")
    if faults is not None:
        print("faults:", ", ".join(f"{name} {count:,}" for name, count in shaken.figures().items()))
    print(f"differential: {comparer.tally.scripts.total()} scripts, {len(failures)} differences")
    return 1 if failures else 0


def _search_all(comparer: Comparer, chosen: list[str], seed: int, arguments: Any) -> list[str]:
    failures: list[str] = []
    deadline = time.monotonic() + arguments.seconds
    number = 0
    while time.monotonic() < deadline and chosen:
        # Short runs come to every kind, too.
        share = max(min(3.0, arguments.seconds / len(chosen)), arguments.seconds / 60)
        slice_end = min(deadline, time.monotonic() + share)
        kind = chosen[number % len(chosen)]
        difference = search(comparer, kind, seed + number, slice_end)
        number += 1
        if difference is None:
            continue
        failures.append(difference.text)
        print(f"cpploop differs from asyncio ({kind}):\n{show(difference.script)}")
        print(difference.text, flush=True)
        if not arguments.keep_going:
            chosen = [name for name in chosen if name != kind]
    return failures


if __name__ == "__main__":
    sys.exit(main())
