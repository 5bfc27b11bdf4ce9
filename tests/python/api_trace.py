"""A pytest plugin: which methods of cpploop's loop, handles and transports does each test call?

scripts/api_table.py names the tests; test_api_table.py runs them with ``-p api_trace`` and looks.
``CPPLOOP_API_TRACE`` names the file that the answer is written to.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import api_table

_classes = api_table.our_classes()
_names = {name for names in api_table.load(api_table.DATA).values() for name in names}
# Test -> "section.name" of everything it called.
_called: dict[str, set[str]] = {}
_current: set[str] = set()


def _note(owner: object, name: str) -> None:
    for section, cls in _classes.items():
        if isinstance(owner, cls):
            _current.add(f"{section}.{name}")


def _profile(frame: Any, event: str, argument: Any) -> None:
    if event == "call":
        if frame.f_code.co_name in _names:
            _note(frame.f_locals.get("self"), frame.f_code.co_name)
    elif event == "c_call" and argument.__name__ in _names:
        _note(getattr(argument, "__self__", None), argument.__name__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    global _current
    _current = _called.setdefault(f"{item.path.name}::{item.originalname}", set())
    threading.setprofile(_profile)
    sys.setprofile(_profile)
    try:
        return (yield)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def pytest_sessionfinish() -> None:
    answer = {test: sorted(names) for test, names in _called.items()}
    Path(os.environ["CPPLOOP_API_TRACE"]).write_text(json.dumps(answer), encoding="utf-8")
