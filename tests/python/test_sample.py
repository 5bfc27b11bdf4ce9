"""This suite's own option --sample: each test function once, with a set that a word decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Some tests with parameters, some without.
FILES = ("test_transport_close.py", "test_sock_calls.py")


def collected(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *options, *(str(HERE / name) for name in FILES)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def functions(items: list[str]) -> list[str]:
    return [item.partition("[")[0] for item in items]


def test_each_function_once_with_a_set_that_the_word_decides() -> None:
    everything = collected()
    one, same, other = (collected("--sample", word) for word in ("one", "one", "other"))
    for sample in (one, other):
        assert set(sample) <= set(everything)
        assert sorted(functions(sample)) == sorted(set(functions(everything)))
    assert one == same
    assert one != other
