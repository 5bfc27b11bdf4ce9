"""What the pages show is true: their Python blocks run, and print what they say they print.

A Python block of any page is run as a program of its own: one that imports cpploop with python, any
other with python and with `python -m cpploop`. Of the commands of console blocks the launcher's are
run; what the others name has to exist (shown_commands.py). An indented block is one of commands. A
comment in front of a block may say more:

    <!-- not run: REASON -->     it is only shown
    <!-- needs: PACKAGE -->      it is run where that package is installed
    <!-- python: >=3.12 -->      it is run on these Pythons
    <!-- file: NAME -->          test_recipes.py or test_readme.py runs it by the commands behind it

A ```text block right behind a Python block is what the block prints. Blocks of other languages
(`LANGUAGES`) are prose.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import shown_commands
import support

DOCS = Path(__file__).resolve().parents[2] / "docs"
TESTS = Path(__file__).resolve().parent
PAGES = [
    *(DOCS.parent / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")),
    *(DOCS.parent / name for name in ("CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *(DOCS.parent / f"tests/{name}/README.md" for name in ("conformance", "differential")),
    DOCS.parent / "tests/ecosystem/README.md",
    *sorted(DOCS.rglob("*.md")),
]
# Every fenced block has one of these; `python` and `sh` are checked, the others are shown only.
LANGUAGES = {"python", "sh", "text", "mermaid", "toml", "yaml", "json"}

# Fenced, or else indented by four spaces behind an empty line. The latter cannot name its language:
# all that we have are commands.
BLOCK = re.compile(
    r"^```(?P<language>\w*)\n(?P<fenced>(?s:.*?))^```$"
    r"|(?<=\n\n)(?P<indented>(?: {4}.*\n|\n(?= {4}))+)",
    re.MULTILINE,
)
NOTE = re.compile(r"<!-- (.*?) -->\s*")


@dataclass
class Block:
    """One block of code and the notes in front of it."""

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str]
    # What the block is said to print; None when the page does not say.
    output: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(DOCS.parent)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of PAGE in order, each with the notes right before it."""
    source = page.read_text()
    blocks: list[Block] = []
    end = 0
    for found in BLOCK.finditer(source):
        before = source[end : found.start()]
        # Only the notes that nothing but blanks separates from the block are the block's.
        tail = re.search(r"((?:<!-- .*? -->\s*)*)\Z", before)
        assert tail is not None
        notes: dict[str, str] = {}
        for note in NOTE.findall(tail[1]):
            for part in note.split("; "):
                key, _, value = part.partition(": ")
                notes[key] = value
        language, text = found["language"], found["fenced"]
        if found["indented"] is not None:
            language, text = "sh", textwrap.dedent(found["indented"])
        line = source.count("\n", 0, found.start()) + 1
        if language == "text" and blocks and not before.strip():
            blocks[-1].output = text
        else:
            blocks.append(Block(page, line, language, text, notes))
        end = found.end()
    return blocks


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page)]


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
    return loop_name == "cpploop" or not re.search(r"^ *(import|from) cpploop", block.text, re.M)


PYTHON_BLOCKS = [
    block for block in all_blocks() if block.language == "python" and "file" not in block.notes
]
COMMANDS = [
    pytest.param(command, id=f"{block.name}:{command[:40]}")
    for block in all_blocks()
    if block.language == "sh" and "not run" not in block.notes
    for command in shown_commands.commands_in(block.text)
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


LAUNCHES = [
    pytest.param(line, id=f"{page}:{line}")
    for page in ("launcher.md", "observability.md")
    for block in blocks_of(DOCS / "guide" / page)
    if block.language == "sh"
    for line in block.text.splitlines()
    if re.search(r"python -m cpploop (?!top\b)", line)
]


@pytest.mark.skipif("cpploop" not in support.selected_loops(), reason="it is cpploop's launcher")
@pytest.mark.parametrize("line", LAUNCHES)
def test_a_command_that_launches(line: str, tmp_path: Path) -> None:
    """The shell runs it as it is shown; where it leaves a program out, there is one."""
    (program,) = (
        block.text
        for block in blocks_of(DOCS / "guide" / "launcher.md")
        if "# Prints" in block.text
    )
    (tmp_path / "package").mkdir()
    for name in ("app.py", "package/module.py"):
        (tmp_path / name).write_text(program)
    # Not a link: an interpreter finds its environment by the path that it was started by.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    line = line.replace("; ...", "; import runpy; runpy.run_path('app.py', run_name='__main__')")
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30 * support.TIME_SCALE,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpploop\n", "")
    if "CPPLOOP_TRACE=trace.json" in line:
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        assert any(event["name"] == "turn 1" for event in events)


def test_the_commands_that_launch_are_found() -> None:
    assert len(LAUNCHES) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_names_exists(command: str) -> None:
    # DIR/run COMMAND of an environment made by scripts/venv.sh just runs the command.
    command = re.sub(r"^build/venvs/\w+/run ", "", command)
    assert shown_commands.problem_of(command) is None


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "make docs NO_SUCH=1",
        ".ci/run no-such-step",
        "python -m no_such_module",
        "python -m cpploop -m no_such_module",
        "python -m cpploop --no-such-option",
        "python -m cpploop top --no-such-option",
        "python examples/no_such_file.py",
        "python tests/differential/run.py --replay corpus/tls_ends.txt",
        "pip install cpploop[no-such-extra]",
        "CPPLOOP_NO_SUCH=1 python app.py",
        "uvicorn app:app --loop cpploop:no_such_factory",
        "no-such-program",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    assert shown_commands.problem_of(command) is not None


def test_every_block_says_what_it_is() -> None:
    assert [block.name for block in all_blocks() if block.language not in LANGUAGES] == []


def test_the_blocks_are_found() -> None:
    assert len(PYTHON_BLOCKS) >= 50
    assert len(COMMANDS) >= 30


def test_indented_blocks_are_found() -> None:
    indented = "text\n\n    make a\n\n      make b\n\n```sh\n\n    make c\n```\n"
    page = DOCS.parent / "CONTRIBUTING.md"
    assert [found["indented"] for found in BLOCK.finditer(indented)] == [
        "    make a\n\n      make b\n",
        None,
    ]
    assert "make test" in next(block.text for block in blocks_of(page) if block.language == "sh")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_the_packages_that_a_page_lists_are_enough(name: str, tmp_path: Path) -> None:
    """Where nothing is installed, `make test` asks for no package that the page leaves out."""
    makefile = (DOCS.parent / "Makefile").read_text()
    (asks,) = re.findall(r"^test-core:.*\n\t@(scripts/need\.sh .*)$", makefile, re.M)
    bash = shutil.which("bash")
    assert bash is not None
    told = subprocess.run(
        [bash, *shlex.split(asks)],
        cwd=DOCS.parent,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    ).stderr
    # CMake asks for the library without which io_uring is left out.
    told += (DOCS.parent / "cmake" / "Liburing.cmake").read_text()
    asked = {
        word for line in re.findall(r"apt-get install ([\w+ -]+)", told) for word in line.split()
    }
    assert {"g++", "ninja-build", "libgtest-dev", "liburing-dev"} <= asked
    (listed,) = re.findall(r"`(?:apt-get install )?(g\+\+ .*)`", (DOCS.parent / name).read_text())
    assert asked | {"make"} <= set(listed.split())


def measured() -> dict[str, dict[str, str]]:
    """The rows of the performance page that say how cpploop stands, by column."""
    rows: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in (DOCS / "performance.md").read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if line.startswith("| row "):
            header = cells
        elif line.startswith("| `") and {"x uvloop", "best rival", "x best rival"} <= set(header):
            rows[cells[0]] = dict(zip(header, cells, strict=True))
    return rows


def test_the_figures_of_the_readme_are_measured() -> None:
    """They say "`row` 1.23x", times uvloop's, or "`row` (0.98x zuvloop's)", of the best rival."""
    rows = measured()
    said = (DOCS.parent / "README.md").read_text()

    def corrected(found: re.Match[str]) -> str:
        name, gap = found["row"], found["gap"]
        assert name in rows, (
            f"docs/performance.md has no row `{name}`, of which README.md has a figure"
        )
        row = rows[name]
        if found["rival"] is None:
            return f"`{name}`{gap}{row['x uvloop']}"
        return f"`{name}`{gap}({row['x best rival']} {row['best rival']}'s)"

    pattern = r"`(?P<row>[\w-]+)`(?P<gap>\s+)(?:\(\d+\.\d\dx (?P<rival>[\w-]+)'s\)|\d+\.\d\dx\b)"
    right, count = re.subn(pattern, corrected, said)
    wrong = [
        f"README.md has {old[0]}, docs/performance.md has {corrected(old)}"
        for old in re.finditer(pattern, said)
        if old[0] != corrected(old)
    ]
    paragraph = next(part for part in right.split("\n\n") if re.search(pattern, part))
    assert not wrong, "\n".join([*wrong, "", "which makes the paragraph", "", paragraph])
    assert count >= 10
    # None may be written in a form that is not compared.
    assert re.findall(r"\d[\d.,]*x\b", re.sub(pattern, "", said)) == []


def test_what_the_readme_calls_lost_is() -> None:
    """Of a row that is compared with a rival, the rival is not behind."""
    compared = re.findall(r"`([\w-]+)`\s+\(\d", (DOCS.parent / "README.md").read_text())
    rows = measured()
    ahead = [name for name in compared if float(rows[name]["x best rival"][:-1]) > 1]
    assert ahead == [], "no rival is ahead in these, and README.md says that one is, or level"


def test_the_commands_for_servers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite that runs the guide's commands, which few runs do, finds them there."""
    monkeypatch.syspath_prepend(DOCS.parent / "tests" / "ecosystem")
    suite = importlib.import_module("servers.test_servers")
    command = suite.SERVERS["gunicorn"][0]("1234")
    assert "worker.CpploopWorker" in command and "127.0.0.1:1234" in command
    assert "class CpploopWorker" in suite.worker_of_guide()
    program = suite.SERVERS["uvicorn-run"][0]("1234")[-1]
    assert 'uvicorn.run("served_app:app", port=1234, loop="cpploop:new_event_loop")' in program
    program = suite.SERVERS["aiohttp"][0]("1234")[-1]
    assert "served_app.make_aiohttp()" in program and "port=1234, loop=" in program
    # The other page's table shows the same calls, of an application by its name.
    start, servers = ((DOCS / f"guide/{name}.md").read_text() for name in ("start", "http-servers"))
    for call in re.findall(r"^(?:uvicorn|web)\.run.*$", start, re.M):
        assert f"`{call.replace('web.Application()', 'app')}`" in servers


def test_the_licence_of_what_is_linked_in() -> None:
    """liburing's asks for its notice in every copy; test_wheels.py looks that wheels have it."""
    notice = (DOCS.parent / "licenses" / "liburing.txt").read_text()
    assert "Jens Axboe" in notice and "Permission is hereby granted" in notice
    with (DOCS.parent / "pyproject.toml").open("rb") as file:
        assert "licenses/liburing.txt" in tomllib.load(file)["project"]["license-files"]


def test_the_reference_has_every_public_name() -> None:
    """docs/api.md is made from the docstrings, of the names that it lists."""
    cpploop = pytest.importorskip("cpploop")
    listed = set(re.findall(r"^::: cpploop\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    # Another name of Loop, and a string.
    assert set(cpploop.__all__) - listed == {"EventLoop", "__version__"}


def test_the_site_has_every_page_of_the_guide() -> None:
    """A page that the site's navigation leaves out is one that nobody finds."""
    with (DOCS.parent / "zensical.toml").open("rb") as file:
        listed = re.findall(r"'(\w[\w/.-]*\.md)'", str(tomllib.load(file)["project"]["nav"]))
    assert [name for name in listed if not (DOCS.parent / name).is_file()] == []
    guide = {f"docs/guide/{page.name}" for page in (DOCS / "guide").glob("*.md")}
    assert guide - set(listed) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link, and every file of the repository a page names, exists."""
    source = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", source):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for named in re.findall(r"`((?:examples|tests|docs|benchmarks)/[\w./-]+)`", source):
        assert (DOCS.parent / named).exists(), named


@pytest.mark.parametrize("name", ["differences-from-seeds.md", "reliability.md"])
def test_tests_that_are_named_exist(name: str) -> None:
    """The pages that cite tests: each is there under that name."""
    source = (DOCS / name).read_text()
    cited = re.findall(r"`(test_\w+)(?:\.py)?::(test_\w+)`", source)
    assert len(cited) >= 10
    for module, test in cited:
        text = (TESTS / f"{module}.py").read_text()
        assert re.search(rf"^(async )?def {test}\(", text, re.M), f"{module}::{test}"
    for module, test in re.findall(r"`(\w+_test\.cc)::(\w+)`", source):
        text = (TESTS.parent / "core" / module).read_text()
        assert re.search(rf"^TEST(_F|_P)?\(\w+, {test}\)", text, re.M), f"{module}::{test}"
    # A citation whose form the patterns above do not know would not be checked.
    assert not re.findall(r"`[\w.]*::[\w.]+`", re.sub(r"`\w+(\.cc|\.py)?::\w+`", "", source))
