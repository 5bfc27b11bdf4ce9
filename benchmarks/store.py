"""Stored results: one JSON file a row, in a folder for the commit and the machine that made it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loops import SUBJECT
from rounds import moved_rounds

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
RESULTS = HERE / "results"
FORMAT = 2
# What decides about the figures; a changed page or guide does not.
_MEASURED = (
    *("core", "binding", "python", "cmake", "CMakeLists.txt", "pyproject.toml"),
    "benchmarks",
)
_SOURCES = {".h", ".cc", ".py", ".txt", ".toml", ".cmake"}
OTHER_INSTALLED = "-other-installed"

Cell = dict[str, Any]


def commit() -> str:
    """The commit that is measured, marked where sources or the installed package differ from it.

    Where there is no git, as in a chroot or an archive, what the sources hold stands for it.
    """
    return checkout(REPO) + (OTHER_INSTALLED if installed_differs(REPO, _installed()) else "")


def _installed() -> Path | None:
    """Where cpploop would be imported from; it is not imported here."""
    spec = importlib.util.find_spec(SUBJECT)
    return Path(spec.origin).parent if spec and spec.origin else None


def installed_differs(repo: Path, installed: Path | None) -> bool:
    """Whether a package's Python files are not this checkout's.

    The extension does not say what it was made of, so one that is older than core/ and binding/
    passes: what makes the environment rebuilds it.
    """
    if installed is None:
        return False
    return any(
        not (found := installed / path.name).is_file() or found.read_bytes() != path.read_bytes()
        for path in (repo / "python" / SUBJECT).glob("*.py")
    )


def checkout(repo: Path) -> str:
    """A name for what is in a checkout."""

    def git(*arguments: str) -> str:
        # Inside a chroot the repository may belong to somebody else.
        command = ["git", "-c", "safe.directory=*", *arguments]
        return subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True).stdout

    try:
        head = git("rev-parse", "--short=10", "HEAD").strip()
        changes = git("diff", "HEAD", "--", *_MEASURED)
        for name in git("ls-files", "--others", "--exclude-standard", "--", *_MEASURED).split("\n"):
            changes += f"{name} {git('hash-object', '--', name)}" if name else ""
    except (OSError, subprocess.CalledProcessError):
        return "sources-" + sources_key(repo)
    return head + ("+" + hashlib.sha256(changes.encode()).hexdigest()[:6] if changes else "")


def sources_key(repo: Path) -> str:
    """A short name for what is in the files that decide about the figures."""
    digest = hashlib.sha256()
    for name in _MEASURED:
        top = repo / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in _SOURCES and path.is_file():
                digest.update(f"{path.relative_to(repo)} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def machine_key(machine: Mapping[str, Any]) -> str:
    """A short name for what the figures hang on beside the commit."""
    names = ("cpu", "cpus", "kernel", "python", "python_build", "environment")
    parts = [machine[name] for name in names]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def folder_for(measured: str, machine: Mapping[str, Any], kind: str, changed: str) -> Path:
    """Where a run's rows are kept; one with settings of its own does not overwrite the usual."""
    own = "-" + hashlib.sha256(changed.encode()).hexdigest()[:6] if changed else ""
    return RESULTS / f"{measured}-{machine_key(machine)}" / f"{kind}{own}"


class RowResults:
    """The cells of one row. A round is written when all of it is there, so none is ever half."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path = path
        self.data = data

    @classmethod
    def start(cls, folder: Path, row: str, facts: Mapping[str, Any]) -> RowResults:
        data = {"format": FORMAT, "row": row, **facts, "cells": [], "moved": {}, "counts": {}}
        return cls(folder / f"{row}.json", data)

    @classmethod
    def resume(cls, folder: Path, row: str, facts: Mapping[str, Any]) -> RowResults:
        """What is stored of this row, if it was measured in the same way with the same loops."""
        path = folder / f"{row}.json"
        with contextlib.suppress(OSError, json.JSONDecodeError):
            data = json.loads(path.read_text())
            same = all(data.get(name) == facts[name] for name in ("plan", "loops"))
            if data.get("format") == FORMAT and same:
                return cls(path, data)
        return cls.start(folder, row, facts)

    @property
    def rounds_made(self) -> int:
        """How many rounds are there; they are numbered from 0 without a gap."""
        return len({cell["round"] for cell in self.data["cells"]})

    def values(self, loop: str, field: str) -> dict[int, float]:
        """A field of a loop's cells by round, without the failed ones."""
        return {
            cell["round"]: cell[field]
            for cell in self.data["cells"]
            if cell["loop"] == loop and cell.get(field)
        }

    def failed(self, loop: str) -> bool:
        """Whether the loop could not do this row even once."""
        own = [cell for cell in self.data["cells"] if cell["loop"] == loop]
        return bool(own) and all("error" in cell for cell in own)

    def add_round(self, cells: Iterable[Cell], control: str, control_field: str) -> None:
        """Keep a round, and say anew in which rounds the control moved."""
        self.data["cells"] += cells
        moved = moved_rounds(self.values(control, control_field))
        self.data["moved"] = {str(number): round(move, 4) for number, move in moved.items()}
        self.data["made_again"] = max(0, self.rounds_made - self.data["plan"]["rounds"])
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self.path)


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Every row of these files and folders. A file of the older kind holds many rows."""
    rows: list[dict[str, Any]] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        for file in files:
            data = json.loads(file.read_text())
            rows += [data] if data.get("format") == FORMAT else _rows_of_old(data)
    return rows


def _rows_of_old(data: dict[str, Any]) -> list[dict[str, Any]]:
    """A file with all rows of a run, as they were written before there was one a row."""
    from catalogue import ROWS

    rows = []
    for name in data["rows"]:
        cells = [cell for cell in data["cells"] if cell["row"] == name]
        if name not in ROWS or not cells:
            continue
        row = {key: data[key] for key in ("machine", "loops")} | {
            "format": FORMAT,
            "row": name,
            "commit": None,
            "plan": data["plan"] | {"set": "older"},
            "libraries": data.get("libraries", {}),
            "cells": cells,
            "moved": {},
            "counts": {},
        }
        rows.append(row)
    return rows
