"""The page about more than one machine: what it shows is run here, with Dask and Ray."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
import test_cluster

sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))

import test_docs

BLOCKS = test_docs.blocks_of(test_docs.DOCS / "guide" / "beyond-one-machine.md")
PYTHON_BLOCKS = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.name)
def test_program(
    block: test_docs.Block, loop_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A cluster is a dozen processes before it does anything.
    monkeypatch.setattr(test_docs.support, "TIME_SCALE", 4 * test_docs.support.TIME_SCALE)
    test_docs.test_python_block(block, loop_name, tmp_path)


def test_commands() -> None:
    """The commands that the page shows are those that make the other tests' cluster."""
    launcher = ["python", *test_cluster.LAUNCHERS["cpploop"][1:], "-m", "dask"]
    shown = [shlex.split(command) for command in COMMANDS]
    assert [command[: len(launcher)] for command in shown] == [launcher, launcher]
    assert [command[len(launcher)] for command in shown] == ["scheduler", "worker"]
    assert {"--port", "--nworkers"} <= {word for command in shown for word in command}
