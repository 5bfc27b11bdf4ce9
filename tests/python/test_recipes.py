"""The recipes of docs/guide/testing.md work, and the loop that runs their tests is cpploop's.

The files of each recipe are taken from the page itself, and run by the command the page gives. Each
holds a test that asserts which loop it runs on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import support
import test_docs

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="recipes for testing on cpploop"
)


def recipes() -> dict[str, list[test_docs.Block]]:
    """The blocks of each recipe: its files and then its command."""
    found: dict[str, list[test_docs.Block]] = {}
    current = ""
    for block in test_docs.blocks_of(test_docs.DOCS / "guide" / "testing.md"):
        current = block.notes.get("recipe", current)
        found.setdefault(current, []).append(block)
    return found


RECIPES = recipes()


def write_files(recipe: list[test_docs.Block], folder: Path, leave_out: str = "") -> None:
    for block in recipe:
        name = block.notes.get("file")
        if name is not None and name != leave_out:
            (folder / name).write_text(block.text)


def run_recipe(recipe: list[test_docs.Block], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the page's command in FOLDER, with nothing of this test run's own configuration."""
    (command,) = (block.text.strip() for block in recipe if block.language == "sh")
    program, *arguments = shlex.split(command)
    assert program == "python"
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50 * support.TIME_SCALE,
        env={**env, "PYTEST_ADDOPTS": "-p no:cacheprovider --rootdir=."},
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_on_cpploop(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    test_docs.respect(recipe[0].notes)
    write_files(recipe, tmp_path)
    done = run_recipe(recipe, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"^Ran 1 test\b.*^OK$|\b1 passed\b", said, re.MULTILINE | re.DOTALL), said


@pytest.mark.parametrize("name", [name for name in RECIPES if "launcher" not in name])
def test_recipe_makes_the_difference(name: str, tmp_path: Path) -> None:
    """Without its decisive part the recipe's own test fails: the assertion is worth something."""
    recipe = RECIPES[name]
    test_docs.respect(recipe[0].notes)
    write_files(recipe, tmp_path, leave_out="conftest.py")
    for path in tmp_path.glob("test_*.py"):
        text = path.read_text()
        text = text.replace("loop_factory = cpploop", "some_factory = cpploop")
        path.write_text(text.replace("def setUpModule", "def set_up_nothing"))
    done = run_recipe(recipe, tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert re.search(r"FAILED \(failures=1\)|\b\d failed\b", said), said


def test_every_recipe_is_complete() -> None:
    assert RECIPES.keys() == {
        "unittest-factory",
        "unittest-policy",
        "pytest-asyncio",
        "pytest-asyncio-policy",
        "anyio",
        "launcher",
    }
    for recipe in RECIPES.values():
        assert [block.language for block in recipe].count("sh") == 1
        assert any("file" in block.notes for block in recipe)
