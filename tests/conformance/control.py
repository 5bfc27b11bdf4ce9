"""asyncio's own results, kept between runs for one build of the interpreter on one machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# A change to any of these may change what asyncio is asked.
OWN_SOURCES = ("injection.py", "suites.py", "forkpool.py")


def python_label() -> str:
    """3.14, or 3.14t for a free-threaded build."""
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    return f"{sys.version_info.major}.{sys.version_info.minor}{'t' if free_threaded else ''}"


class ControlCache:
    """A JSON file of outcomes by test; unreadable or from elsewhere, it counts as empty."""

    def __init__(self) -> None:
        key = _build_key()
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        name = f"{python_label()}-{key[:16]}.json"
        self.path = Path(base) / "cpploop" / "conformance" / name
        self.outcomes: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored.get("key") == key:
                self.outcomes = stored["outcomes"]

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}")
        content = {"key": _build_key(), "version": sys.version, "outcomes": self.outcomes}
        partial.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        partial.replace(self.path)


def _build_key() -> str:
    digest = hashlib.sha256()
    conditions = [sys.version, platform.machine(), platform.release(), _openssl_version()]
    # Debug mode and warnings turned to errors change what asyncio passes.
    conditions += [str(sys.flags), str(sys.warnoptions), os.environ.get("PYTHONASYNCIODEBUG", "")]
    for text in conditions:
        digest.update(text.encode() + b"\0")
    for path in _build_files():
        digest.update(path.name.encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _build_files() -> list[Path]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    files = [Path(sys.executable).resolve()]
    library = sysconfig.get_config_var("LDLIBRARY")
    folder = sysconfig.get_config_var("LIBDIR")
    if library and folder and str(library).endswith(".so"):
        files += [path for path in Path(folder).glob(f"{library}*") if path.is_file()]
    for package in ("asyncio", "test/test_asyncio", "unittest"):
        files += sorted((stdlib / package).glob("*.py"))
    files += [HERE / name for name in OWN_SOURCES]
    return files


def _openssl_version() -> str:
    try:
        import ssl
    except ImportError:
        return "no ssl"
    return ssl.OPENSSL_VERSION
