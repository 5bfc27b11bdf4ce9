"""What the tests of the loop itself share: both loops side by side, outside of any coroutine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import support


def loop_names() -> list[str]:
    """The two loops to compare; with only the oracle selected, the oracle twice."""
    names = support.selected_loops()
    return names * 2 if names == ["asyncio"] else ["asyncio", "cpploop"]


def outcome(function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
    """What calling FUNCTION came to, as something that compares equal between two loops."""
    try:
        result = function(*args)
    except BaseException as exc:
        return ("raised", type(exc).__name__, plain(str(exc)))
    return ("returned", comparable(result))


def comparable(value: Any) -> Any:
    """VALUE as something that compares equal between two runs, its texts kept as they are."""
    if isinstance(value, str):
        return plain(value)
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(comparable(item) for item in value)
    if isinstance(value, dict):
        return {comparable(key): comparable(item) for key, item in value.items()}
    if isinstance(value, BaseException):
        return f"{type(value).__name__}({plain(str(value))})"
    if isinstance(value, type):
        return value.__name__
    return f"<{type(value).__name__}>"


def same_on_both(function: Callable[[support.LoopFactory], Any]) -> Any:
    """Call FUNCTION with each loop's factory, assert that the same came of it, and return it."""
    names = loop_names()
    expected, actual = (outcome(function, support.factory(name)) for name in names)
    assert actual == expected, (
        f"{names[1]} differs from {names[0]}\n{names[0]}: {expected}\n{names[1]}: {actual}"
    )
    return expected[-1] if expected[0] == "returned" else expected


def plain(text: str) -> str:
    """TEXT without addresses, times, line numbers and the loop's class."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)
    text = re.sub(r"\bfd=-?\d+", "fd=…", text)
    text = re.sub(r"\d+\.\d{3,} seconds", "… seconds", text)
    text = re.sub(r"<[\w.]*(EventLoop|Loop)\b[^<>]* running=", "<Loop running=", text)
    return text


@contextlib.contextmanager
def open_loop(factory: support.LoopFactory) -> Iterator[Any]:
    """A new loop, closed at the end."""
    loop = factory()
    try:
        yield loop
    finally:
        loop.close()


@contextlib.contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[tuple[str, str]]]:
    """(level, message) of each record of asyncio's logger, which are kept from going further."""
    records: list[tuple[str, str]] = []

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((record.levelname, record.getMessage()))

    logger = logging.getLogger("asyncio")
    capture = Capture(level)
    before = logger.level, logger.propagate
    logger.addHandler(capture)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(capture)
        # Not by assignment: the logger remembers what it let through.
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextlib.contextmanager
def reported(loop: asyncio.AbstractEventLoop) -> Iterator[list[dict[str, Any]]]:
    """The contexts that the loop's exception handler is called with."""
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    try:
        yield contexts
    finally:
        loop.set_exception_handler(None)


def run_once(loop: asyncio.AbstractEventLoop, turns: int = 1) -> None:
    """Let the loop turn without waiting for anything."""
    for _ in range(turns):
        loop.stop()
        loop.run_forever()
