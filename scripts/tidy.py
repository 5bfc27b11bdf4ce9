#!/usr/bin/env python3
"""Run clang-tidy over the engine and the binding, several files at a time, within a time budget.

    scripts/tidy.py --build build/tidy [--jobs 2] [--budget 360] [FILE ...]

Files changed since the base (CPPLOOP_TIDY_BASE, default HEAD~1) come first, the others in an order
that each commit has of its own, so that a budget leaves out other ones each time. What it leaves
out is named, so that a short run never looks like a whole one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "binding")


def clang_tidy() -> str:
    """Find clang-tidy: beside the running interpreter (requirements/lint.txt) or in PATH."""
    beside = Path(sys.executable).parent / "clang-tidy"
    found = str(beside) if beside.exists() else shutil.which("clang-tidy")
    if not found:
        sys.exit("cpploop: clang-tidy is missing; pip install -r requirements/lint.txt")
    return found


def compiled_files(build: Path) -> list[Path]:
    """List the sources of ours that the build folder knows how to compile."""
    try:
        entries = json.loads((build / "compile_commands.json").read_text())
    except OSError:
        sys.exit(f"cpploop: {build} holds no compile_commands.json; configure it first")
    files = {Path(entry["directory"], entry["file"]).resolve() for entry in entries}
    return sorted(
        path
        for path in files
        if path.is_relative_to(REPO) and path.relative_to(REPO).parts[0] in FOLDERS
    )


def git_lines(*command: str) -> list[str]:
    """Ask git; nothing where it cannot tell."""
    line = ["git", "-c", "safe.directory=*", *command]
    return subprocess.run(line, cwd=REPO, capture_output=True, text=True).stdout.splitlines()


def changed_files() -> set[Path]:
    """Name the files that differ from the base."""
    base = os.environ.get("CPPLOOP_TIDY_BASE", "HEAD~1")
    return {(REPO / name).resolve() for name in git_lines("diff", "--name-only", base)}


def main() -> int:
    """Check every file that the budget allows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--build", type=Path, required=True, help="folder of compile_commands.json")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--budget", type=float, default=0, help="seconds; 0 for no limit")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()

    tool = clang_tidy()
    files = [path.resolve() for path in options.files] or compiled_files(options.build)
    changed = changed_files()
    random.Random("".join(git_lines("rev-parse", "HEAD"))).shuffle(files)
    files.sort(key=lambda path: path not in changed)
    end = time.monotonic() + options.budget if options.budget else float("inf")

    def check(path: Path) -> tuple[Path, int | None, str, float]:
        start = time.monotonic()
        if start > end:
            return path, None, "", 0.0
        command = [tool, "-p", str(options.build), "--quiet", str(path)]
        # GCC's own warning options are in the compile commands.
        command.append("--extra-arg=-Wno-unknown-warning-option")
        result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
        # stderr holds a count of suppressed warnings, and what stopped the tool when it failed.
        text = result.stdout + (result.stderr if result.returncode else "")
        return path, result.returncode, text, time.monotonic() - start

    failed = left_out = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for path, status, text, seconds in pool.map(check, files):
            shown = path.relative_to(REPO)
            if status is None:
                left_out += 1
                print(f"left out  {shown} (the budget of {options.budget:.0f} s is spent)")
            else:
                failed += bool(status)
                print(f"{'FAILED' if status else 'ok':<8}{seconds:6.1f} s  {shown}")
                if status:
                    print(text)
    passed = len(files) - failed - left_out
    # pytest's words, so that what counts tests counts these; a file left out is one skipped.
    print(f"{passed} passed, {failed} failed, {left_out} skipped of clang-tidy's files")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
