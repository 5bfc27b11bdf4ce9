"""scripts/second_try.sh: what runs again, what never does, and who passed only then is named."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/second_try.sh"
# The first run prints what is in this file and fails; the second one passes.
FAILS_ONCE = "if [ -e ran ]; then echo again; else : >ran; cat says; exit 1; fi"
ONE = "FAILED tests/python/test_x.py::test_y[a b] - assert 1 == 2\n1 failed, 9 passed in 1.00s\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that the script takes for its checkout, with a cache of its own."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def second_try(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    script = checkout / "scripts/second_try.sh"
    return subprocess.run([script, *command], capture_output=True, text=True, check=False)


def test_what_failed_runs_again_alone_and_is_named(checkout: Path) -> None:
    """With pytest itself: of three tests the second run has the one that failed."""
    tests = checkout / "tests"
    tests.mkdir()
    (tests / "test_once.py").write_text(
        "import pathlib, pytest\n"
        "@pytest.mark.parametrize('name', ['a b', 'c'])\n"
        "def test_it(name):\n"
        "    ran = pathlib.Path('ran')\n"
        "    first, _ = not ran.exists(), ran.touch()\n"
        "    assert not first\n"
        "def test_other(): pass\n"
    )
    done = second_try(checkout, sys.executable, "-m", "pytest", "-q", "-ra", "tests")
    assert done.returncode == 0, done.stdout
    first, _, second = done.stdout.partition("== once more, what failed\n")
    assert "1 failed, 2 passed" in first
    assert "1 passed" in second and "failed" not in second.replace("last-failed", "")
    assert second.endswith("NOTE: passed only when run again: tests/test_once.py::test_it[a b]\n")


def test_what_fails_again_fails(checkout: Path) -> None:
    done = second_try(checkout, "sh", "-c", f"echo run; echo {shlex.quote(ONE)}; exit 1")
    assert done.returncode == 1
    assert done.stdout.count("run\n") == 2 and "NOTE" not in done.stdout


def test_nothing_runs_twice_that_passed(checkout: Path) -> None:
    done = second_try(checkout, "echo", "run")
    assert (done.returncode, done.stdout) == (0, "run\n")


@pytest.mark.parametrize(
    "said",
    [
        "worker 'gw1' crashed while running 'tests/python/test_x.py::test_y'\n",
        "E   AssertionError: exit status -11\n",
        "Fatal Python error: Segmentation fault\n",
        "==7==ERROR: AddressSanitizer: heap-use-after-free\n",
        "core/x.cc:1:2: runtime error: signed integer overflow\n",
        "E   Failed: Timeout (>60.0s) from pytest-timeout.\n",
        "99% tests passed, 1 tests failed out of 514\n",
        ONE.replace("test_y", "a") + ONE.replace("test_y", "b") + ONE.replace("test_y", "c"),
    ],
)
def test_no_second_try(checkout: Path, said: str) -> None:
    (checkout / "says").write_text(said + ONE)
    done = second_try(checkout, "sh", "-c", FAILS_ONCE)
    assert done.returncode == 1
    assert "no second try" in done.stdout and "again" not in done.stdout


def test_three_failures_are_bad_luck(checkout: Path) -> None:
    """The other side of the limit."""
    (checkout / "says").write_text(ONE.replace("test_y", "a") + ONE.replace("test_y", "b") + ONE)
    done = second_try(checkout, "sh", "-c", FAILS_ONCE)
    assert done.returncode == 0
    assert "again\nNOTE: passed only when run again: " in done.stdout
