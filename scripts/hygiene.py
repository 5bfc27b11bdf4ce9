#!/usr/bin/env python3
"""Refuse what no tracked file may hold: stray whitespace, paths of one machine, leftovers.

    scripts/hygiene.py [FILE ...]     without arguments: every file git knows or would add

Prints one line a finding and exits 1 when there is any.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LIMIT_BYTES = 1 << 20

# Folders that exist on one machine only. Written so that this file does not find itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.$}>])/(?:root|work|home|Users|opt/wheels)(?:/|\b(?=[\s\"'`:,;)]))"
)
CONFLICT = re.compile(r"^(?:<{7}|={7}|>{7})(?: |$)")
# Markdown ends a line with two blanks on purpose, and a patch's context lines may be blank.
TRAILING_BLANKS_ALLOWED = {".md", ".patch", ".diff"}
TABS_REFUSED = {".cc", ".h", ".py", ".pyi", ".sh", ".cmake", ".toml", ".json", ".yml", ".yaml"}


def tracked_files() -> list[Path]:
    """List what git tracks or would track; everything but build folders where git is not there."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "-co", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=REPO, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        skipped = {"build", "__pycache__", "dist", ".git"}
        return sorted(
            path
            for path in REPO.rglob("*")
            if path.is_file()
            and not any(
                part in skipped or part.startswith(".venv") or part.endswith("_cache")
                for part in path.relative_to(REPO).parts
            )
        )
    return [REPO / os.fsdecode(name) for name in listed.split(b"\0") if name]


def findings(path: Path) -> Iterator[str]:
    """Say what is wrong with one file."""
    data = path.read_bytes()
    if len(data) > LIMIT_BYTES:
        yield f"holds {len(data)} bytes; large files do not belong into the repository"
        return
    if b"\0" in data:
        return  # A binary file has no lines to look at.
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield f"is not UTF-8: {error.reason} at byte {error.start}"
        return
    if text and not text.endswith("\n"):
        yield "does not end with a newline"
    if text.endswith("\n\n"):
        yield "ends with an empty line"
    if text.startswith("#!") and not os.access(path, os.X_OK):
        yield "has a #! line and is not executable"
    for number, line in enumerate(text.split("\n"), start=1):
        if line.endswith("\r"):
            yield f"{number}: ends with a carriage return"
        elif line != line.rstrip() and path.suffix not in TRAILING_BLANKS_ALLOWED:
            yield f"{number}: ends with a blank"
        if "\t" in line and path.suffix in TABS_REFUSED:
            yield f"{number}: holds a tab"
        if CONFLICT.match(line) and path.suffix not in {".md", ".rst"}:
            yield f"{number}: is a merge conflict's marker"
        if found := MACHINE_PATH.search(line):
            yield f"{number}: names a path of one machine ({found.group()})"


def main(arguments: list[str]) -> int:
    """Look at the given files, or at all of them."""
    files = [Path(name).resolve() for name in arguments] or tracked_files()
    count = 0
    for path in files:
        if path.is_symlink() or not path.is_file():
            continue
        for finding in findings(path):
            shown = path.relative_to(REPO) if path.is_relative_to(REPO) else path
            print(f"{shown}: {finding}")
            count += 1
    print(f"{len(files)} files looked at, {count} findings")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
