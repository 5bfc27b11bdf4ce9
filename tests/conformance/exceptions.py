"""Reads exceptions.toml: the tests cpploop may fail, each with its reason."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

SECTIONS = ("exception", "later")


@dataclass(frozen=True)
class Entry:
    section: str
    test: str
    reason: str
    pythons: tuple[str, ...]
    tls: tuple[str, ...] = ()

    def covers(self, test_id: str, label: str) -> bool:
        return self.is_about(label) and fnmatch.fnmatchcase(test_id, self.test)

    def is_about(self, label: str) -> bool:
        if self.tls and os.environ.get("CPPLOOP_TLS", "auto") not in self.tls:
            return False
        return not self.pythons or label in self.pythons


def load(path: Path) -> list[Entry]:
    """Raises ValueError with the entry at fault: a typing error must not excuse a test."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    unknown = set(document) - set(SECTIONS)
    if unknown:
        raise ValueError(f"{path.name}: unknown section {', '.join(sorted(unknown))}")
    entries = []
    for section in SECTIONS:
        for raw in document.get(section, []):
            test, reason, pythons = raw.get("test"), raw.get("reason"), raw.get("python", [])
            tls = raw.get("tls", [])
            lists = (
                [*pythons, *tls] if isinstance(pythons, list) and isinstance(tls, list) else [None]
            )
            strings = [test, reason, *lists]
            if not all(isinstance(text, str) and text for text in strings):
                raise ValueError(f"{path.name}: bad [[{section}]] entry {raw}")
            if set(raw) - {"test", "reason", "python", "tls"}:
                raise ValueError(f"{path.name}: unknown key in [[{section}]] entry {raw}")
            entries.append(Entry(section, test, reason, tuple(pythons), tuple(tls)))
    return entries
