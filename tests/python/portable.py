"""A build for kqueue on Linux, which waits through libkqueue: what the tests have to know of it.

Its exceptions are in portable.toml, and each says why; a test that passes in spite of one fails.
"""

from __future__ import annotations

import ctypes
import fnmatch
import functools
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("portable.toml")


@functools.cache
def is_portable() -> bool:
    """Whether the cpploop that is tested is such a build."""
    try:
        from cpploop import _native
    except ImportError:
        return False
    return "kqueue" in _native._backends()


@functools.cache
def _drain() -> Callable[[], object]:
    import cpploop
    from cpploop import _native

    # What libkqueue opens once for the process is open from here on.
    cpploop.new_event_loop().close()
    drain: Callable[[], object] = ctypes.CDLL(_native.__file__).libkqueue_drain_pending_close
    return drain


def settle() -> None:
    """Wait until libkqueue's thread has closed what belongs to queues that are closed."""
    if is_portable():
        _drain()()


def mark_exceptions(items: list[pytest.Item]) -> None:
    """Expect failures of the tests that portable.toml lists."""
    if not is_portable():
        return
    with LIST.open("rb") as file:
        exceptions = tomllib.load(file).get("exception", [])
    for item in items:
        spec = getattr(item, "callspec", None)
        if spec is not None and spec.params.get("loop_name") == "asyncio":
            continue
        name = item.nodeid.rpartition("/")[2]
        for exception in exceptions:
            # Brackets stand for themselves.
            pattern = exception["test"].replace("[", "[[]")
            if fnmatch.fnmatchcase(name, pattern):
                item.add_marker(
                    pytest.mark.xfail(
                        reason=exception["reason"],
                        strict=True,
                        run=exception.get("run", True),
                    )
                )
