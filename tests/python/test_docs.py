"""What the guide shows is true: its Python blocks run, and print what it says they print.

A block in docs/guide is run as a program of its own: one that imports cpploop with python, any
other with python and with `python -m cpploop`. A comment in front of the block may say more:

    <!-- not run: REASON -->     it is only shown
    <!-- needs: PACKAGE -->      it is run where that package is installed
    <!-- python: >=3.12 -->      it is run on these Pythons
    <!-- file: NAME -->          it is part of a recipe, which test_recipes.py runs

A ```text block right behind a Python block is what the block prints.
"""

from __future__ import annotations

import operator
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import support

DOCS = Path(__file__).resolve().parents[2] / "docs"
TESTS = Path(__file__).resolve().parent

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOTE = re.compile(r"<!-- (.*?) -->\s*")


@dataclass
class Block:
    """One fenced block and the notes in front of it."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]
    # What the block is said to print; None when the page does not say.
    output: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of PAGE in order, each with the notes right before it."""
    source = page.read_text()
    blocks: list[Block] = []
    end = 0
    for found in FENCE.finditer(source):
        before = source[end : found.start()]
        # Only the notes that nothing but blanks separates from the block are the block's.
        tail = re.search(r"((?:<!-- .*? -->\s*)*)\Z", before)
        assert tail is not None
        notes: dict[str, str] = {}
        for note in NOTE.findall(tail[1]):
            for part in note.split("; "):
                key, _, value = part.partition(": ")
                notes[key] = value
        language, text = found.groups()
        line = source.count("\n", 0, found.start()) + 1
        if language == "text" and blocks and not before.strip():
            blocks[-1].output = text
        else:
            blocks.append(Block(page, line, language, text, notes))
        end = found.end()
    return blocks


def guide_blocks() -> list[Block]:
    return [block for page in sorted((DOCS / "guide").glob("*.md")) for block in blocks_of(page)]


def python_allows(condition: str) -> bool:
    """Whether the running Python meets a condition such as ">=3.12"."""
    found = re.fullmatch(r"(>=|<)(\d+)\.(\d+)", condition)
    assert found is not None, condition
    compare = {">=": operator.ge, "<": operator.lt}[found[1]]
    return bool(compare(sys.version_info[:2], (int(found[2]), int(found[3]))))


def respect(notes: dict[str, str]) -> None:
    """Skip where the notes say that something cannot run here."""
    if "python" in notes and not python_allows(notes["python"]):
        pytest.skip(f"for Python {notes['python']}")
    for package in filter(None, notes.get("needs", "").split(", ")):
        pytest.importorskip(package)


def runs_on(block: Block, loop_name: str) -> bool:
    return loop_name == "cpploop" or not re.search(r"^(import|from) cpploop", block.text, re.M)


PYTHON_BLOCKS = [
    block for block in guide_blocks() if block.language == "python" and "file" not in block.notes
]


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: block.name)
def test_python_block(block: Block, loop_name: str, tmp_path: Path) -> None:
    if "not run" in block.notes:
        assert len(block.notes["not run"]) > 10, "a block that is not run needs a reason"
        compile(block.text, block.name, "exec")
        pytest.skip(f"only shown: {block.notes['not run']}")
    respect(block.notes)
    if not runs_on(block, loop_name):
        pytest.skip("the block itself names cpploop")
    script = tmp_path / "block.py"
    script.write_text(block.text)
    imports_cpploop = not runs_on(block, "asyncio")
    launcher = ["-m", "cpploop"] if loop_name == "cpploop" and not imports_cpploop else []
    done = subprocess.run(
        [sys.executable, "-W", "error", *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=30 * support.TIME_SCALE,
        cwd=tmp_path,
        env=os.environ,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    if block.output is not None:
        assert done.stdout == block.output


def test_launcher_page_says_which_loop(loop_name: str, tmp_path: Path) -> None:
    """The one block whose output depends on how it is run."""
    block = next(
        block for block in blocks_of(DOCS / "guide" / "launcher.md") if "# Prints" in block.text
    )
    (tmp_path / "block.py").write_text(block.text)
    launcher = ["-m", "cpploop"] if loop_name == "cpploop" else []
    command = [sys.executable, *launcher, str(tmp_path / "block.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{loop_name}\n"


def test_guide_is_there() -> None:
    names = {page.name for page in (DOCS / "guide").glob("*.md")}
    assert names >= {
        "start.md",
        "testing.md",
        "transports.md",
        "launcher.md",
        "streams.md",
        "tls.md",
    }
    assert len(PYTHON_BLOCKS) >= 10


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link, and every file of the repository a page names, exists."""
    source = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", source):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:examples|tests|docs|benchmarks)/[\w./-]+)`", source):
        assert (DOCS.parent / named).exists(), named


def test_tests_that_are_named_exist() -> None:
    """docs/differences-from-seeds.md cites tests, and each is there under that name."""
    source = (DOCS / "differences-from-seeds.md").read_text()
    cited = re.findall(r"`(test_\w+)(?:\.py)?::(test_\w+)`", source)
    assert len(cited) >= 10
    for module, test in cited:
        text = (TESTS / f"{module}.py").read_text()
        assert re.search(rf"^(async )?def {test}\(", text, re.M), f"{module}::{test}"
