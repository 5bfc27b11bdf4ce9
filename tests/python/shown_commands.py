"""What can be said about a command that a page shows, without running it.

Every word of it that names something of ours has to name something that exists: a target of the
Makefile, a step of .ci/run, a file, an extra, an environment variable, an option of the launcher or
of one of our scripts.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# What stands for the reader's own things.
THEIRS = re.compile(
    r"^(app|main|program|server|worker)[.:]|^(test_|conftest)|^package\.|ARGS|^app\.py$"
)
SOURCES = (
    "python/cpploop/**/*.py",
    "core/**/*.cc",
    "binding/**/*.cc",
    "cmake/*.cmake",
    "CMakeLists.txt",
)
SOURCES += ("tests/python/conftest.py", "tests/python/support.py", "scripts/*")


def commands_in(block: str) -> Iterator[str]:
    """The commands of a console block: its lines, without prompts, comments and continuations."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield shlex.join(words)


def problem_of(command: str) -> str | None:
    """What is wrong with a shown command, or None."""
    words = shlex.split(command)
    while words and re.match(r"^[A-Z_]+=", words[0]):
        name = words.pop(0).partition("=")[0]
        if name.startswith("CPPLOOP_") and name not in environment_variables():
            return f"no source reads {name}"
    if not words:
        return None
    program = Path(words[0]).name
    if program in PROGRAMS:
        return PROGRAMS[program](words[1:])
    if (REPO / words[0]).is_file():
        return options_problem(words[0], words[1:])
    return f"nobody knows how to check {words[0]!r}; see tests/python/shown_commands.py"


@cache
def environment_variables() -> frozenset[str]:
    """The names beginning with CPPLOOP_ that some source holds."""
    texts = (path.read_text() for glob in SOURCES for path in REPO.glob(glob) if path.is_file())
    return frozenset(name for text in texts for name in re.findall(r"\bCPPLOOP_\w+", text))


@cache
def extras() -> frozenset[str]:
    with (REPO / "pyproject.toml").open("rb") as file:
        return frozenset(tomllib.load(file)["project"]["optional-dependencies"])


def options_problem(script: str, words: list[str]) -> str | None:
    """Every option is one that the script's own text has, every saved script is there."""
    text = (REPO / script).read_text()
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in text:
            return f"{script} has no option {word}"
        # Commands are shown as they are given in the repository's top folder.
        if "corpus/" in word and not (REPO / word).exists():
            return f"there is no {word}"
    return None


def make(words: list[str]) -> str | None:
    makefile = (REPO / "Makefile").read_text()
    for word in words:
        name, assigned, _ = word.partition("=")
        pattern = rf"^{name} \?=|\$\({name}\)" if assigned else rf"^{re.escape(name)}:"
        if not name.startswith("-") and not re.search(pattern, makefile, re.MULTILINE):
            return f"the Makefile has no {word}"
    return None


def ci(words: list[str]) -> str | None:
    listed = subprocess.run(
        [REPO / ".ci/run", "--list"], capture_output=True, text=True, check=True
    )
    steps = {line.split()[0] for line in listed.stdout.splitlines()} | {"--list"}
    unknown = [word for word in words if word not in steps]
    return f".ci/run has no step {unknown[0]}" if unknown else None


def python(words: list[str]) -> str | None:
    while words and words[0].startswith("-") and words[0] not in {"-m", "-c", "-"}:
        words = words[2 if words[0] in {"-X", "-W"} else 1 :]
    if words[:2] == ["-m", "cpploop"]:
        return launcher(words[2:])
    if words[:2] == ["-m", "pip"]:
        return pip(words[2:])
    if words[:1] == ["-m"]:
        return module_problem(words[1])
    if words[:1] == ["-c"]:
        compile(words[1], "the page", "exec")
        return None
    if not words or THEIRS.search(words[0]):
        return None
    if not (REPO / words[0]).is_file():
        return f"there is no {words[0]}"
    return options_problem(words[0], words[1:])


def module_problem(name: str) -> str | None:
    """A module that is run is Python's own, the reader's, or one of a package that we pin."""
    pinned = "".join(path.read_text() for path in REPO.glob("requirements/*.txt"))
    top = name.partition(".")[0]
    known = top in sys.stdlib_module_names or THEIRS.search(name)
    if known or re.search(rf"^{re.escape(top)}==", pinned, re.MULTILINE | re.IGNORECASE):
        return None
    return f"no package that we pin has a module {name}"


def launcher(words: list[str]) -> str | None:
    if words[:1] == ["top"]:
        text = (REPO / "python/cpploop/_top.py").read_text()
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in text]
        return f"top has no option {unknown[0]}" if unknown else None
    if words[:1] == ["-c"]:
        compile(words[1].replace("...", "pass"), "the page", "exec")
        return None
    if words[:1] == ["-m"]:
        return module_problem(words[1])
    if words[:1] in (["-"], ["<"]) or (words and not words[0].startswith("-")):
        return None
    return f"the launcher does not take {words}"


def pip(words: list[str]) -> str | None:
    for word in words:
        for extra in re.findall(r"^(?:cpploop|\.)\[([\w,-]+)\]", word):
            if unknown := set(extra.split(",")) - extras():
                return f"there is no extra {sorted(unknown)[0]}"
    return None


def uvicorn(words: list[str]) -> str | None:
    loop = words[words.index("--loop") + 1] if "--loop" in words else "cpploop:new_event_loop"
    known = {"cpploop:new_event_loop", "uvloop", "asyncio"}
    return None if loop in known else f"{loop} is no loop factory"


PROGRAMS: dict[str, Callable[[list[str]], str | None]] = {
    "make": make,
    "run": ci,
    "python": python,
    "python3": python,
    "uvicorn": uvicorn,
    "pip": pip,
    # Nothing of ours is named by these.
    "git": lambda words: None,
    "tar": lambda words: None,
    "cd": lambda words: None,
    "curl": lambda words: None,
}
