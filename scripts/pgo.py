#!/usr/bin/env python3
"""Builds cpploop so that it counts what it does, has it do what loops do, and keeps the counts.

    python scripts/pgo.py FOLDER [PIP OPTION...]

FOLDER gets the profile, and is emptied first; a build of the same sources by the same compiler
takes it with the options of CMake CPPLOOP_PGO=use and CPPLOOP_PGO_PROFILE=FOLDER. It is made for
the Python that runs this, from the sources around this file; what else is given goes to pip
(--no-build-isolation, where what the build requires is installed). Needs GCC.

scripts/venv.sh --pgo, scripts/wheels.py and cibuildwheel (pyproject.toml) call it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# By CPPLOOP_TLS: both ways of doing TLS that are ours.
TLS_PATHS = ("direct", "bio")


def build(profile: Path, folder: Path, pip_options: list[str]) -> Path:
    """Builds and installs what counts; returns where it can be imported from."""
    target = folder / "installed"
    settings = {
        "cmake.define.CPPLOOP_PGO": "generate",
        "cmake.define.CPPLOOP_PGO_PROFILE": str(profile),
        "build-dir": str(folder / "build"),
    }
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(target), *pip_options]
    for name, value in settings.items():
        command += ["-C", f"{name}={value}"]
    subprocess.run([*command, str(REPO)], check=True)
    return target


def train(installed: Path) -> None:
    # In front of anything else of that name; and -P: nothing of the current folder's.
    folders = [str(installed), str(REPO / "benchmarks")]
    code = f"import sys; sys.path[:0] = {folders!r}; import training; training.main()"
    for path in TLS_PATHS:
        subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, "CPPLOOP_TLS": path, "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            timeout=600,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("profile", type=Path, metavar="FOLDER")
    options, pip_options = parser.parse_known_args()
    profile = options.profile.resolve()
    shutil.rmtree(profile, ignore_errors=True)
    profile.mkdir(parents=True)
    # Beside the profile: an interpreter in a chroot sees no other folder for certain.
    with tempfile.TemporaryDirectory(dir=profile.parent, prefix="profile-") as folder:
        train(build(profile, Path(folder), pip_options))
    counts = len(list(profile.glob("*.gcda")))
    if not counts:
        print(f"cpploop: the training left nothing in {profile}", file=sys.stderr)
        return 1
    print(f"cpploop: a profile of {counts} sources is in {options.profile}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
