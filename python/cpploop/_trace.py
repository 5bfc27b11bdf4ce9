"""A trace of what a loop does, as Chrome trace events: Perfetto and chrome://tracing open it."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from typing import Self

    from ._loop import Loop

# 20 to 40 MB of JSON: every turn is drawn too, and a task's step in two rows.
DEFAULT_LIMIT = 100_000

# The limit bounds how many events there are, and this how long each is: a program's names are as
# long as it likes. Characters of a task's name, and of a function's.
_NAME_LIMIT = 200

_LOOP_ROW = 1
_FIRST_TASK_ROW = 100


class Trace:
    """A trace under way; made by cpploop.trace(). Ends with stop(), with its block, or its loop."""

    def __init__(self, loop: Loop, path: Path, limit: int, *, overwrite: bool = True) -> None:
        loop._trace_start(_Names().name_of, limit)
        self._loop = loop
        self._path = path
        self._overwrite = overwrite
        loop._trace = self

    def stop(self) -> None:
        """Stop recording and write the file. A second call does nothing.

        OSError when it cannot be written; what was recorded is gone then.
        """
        if self._loop._trace is not self:
            return
        self._loop._trace = None
        recorded = self._loop._trace_stop()
        if recorded is not None:
            with self._open() as file:
                _write(file, *recorded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()

    def _open(self) -> TextIO:
        mode: Literal["w", "x"] = "w" if self._overwrite else "x"
        number = 1
        path = self._path
        while True:
            try:
                # Half a surrogate pair in a name is no text, and no reason to lose the trace.
                return path.open(mode, encoding="utf-8", errors="replace")
            except FileExistsError:
                number += 1
                path = self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")


def trace(
    path: str | os.PathLike[str],
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
) -> Trace:
    """Record what a loop does, from now until the block ends, and write it to a file.

    path: of the JSON file, in Chrome's trace event format; overwritten.
    loop: a cpploop loop; by default the running one.
    limit: how many events are kept; what comes after them is counted and left out.

    Returns a Trace: a context manager with stop(). RuntimeError when the loop is traced already or
    none is running, TypeError for a loop that is not cpploop's.
    """
    from ._loop import Loop

    chosen = asyncio.get_running_loop() if loop is None else loop
    if not isinstance(chosen, Loop):
        raise TypeError(f"only a cpploop loop can be traced, not {type(chosen).__name__}")
    return Trace(chosen, Path(path), limit)


def trace_from_environment(loop: Loop) -> None:
    """CPPLOOP_TRACE=FILE: every loop writes one; a file that is there already is not touched."""
    path = os.environ.get("CPPLOOP_TRACE")
    if path:
        Trace(loop, Path(path), DEFAULT_LIMIT, overwrite=False)


class _Step(str):
    """How the loop's row calls a step of a task, with what the task's own row needs."""

    __slots__ = ("coroutine", "row", "task")

    coroutine: str
    row: int
    task: str


class _Names:
    """How handles, transports and listeners are called in one trace."""

    def __init__(self) -> None:
        # By task, not by name, for names need not differ. One object serves all the steps of a
        # task, and none keeps it alive.
        self._steps: weakref.WeakKeyDictionary[asyncio.Task[Any], _Step] = (
            weakref.WeakKeyDictionary()
        )
        self._next_row = _FIRST_TASK_ROW

    def name_of(self, what: Any) -> str:
        if not isinstance(what, asyncio.Handle):
            fd = getattr(what, "_sock_fd", None)
            name = _cut(type(what).__name__)
            return name if fd is None else f"{name} fd={fd}"
        callback: Any = what._callback  # type: ignore[attr-defined]
        while isinstance(callback, functools.partial):
            callback = callback.func
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Task):
            return self._step_of(owner)
        return _name_of_function(callback)

    def _step_of(self, task: asyncio.Task[Any]) -> _Step:
        name = _cut(task.get_name())
        known = self._steps.get(task)
        if known is not None and known.task == name:
            return known
        coroutine = _name_of_function(task.get_coro())
        step = _Step(f"{name}: {coroutine}")
        step.task = name
        step.coroutine = coroutine
        if known is not None:
            step.row = known.row
        else:
            step.row = self._next_row
            self._next_row += 1
        self._steps[task] = step
        return step


def _name_of_function(what: Any) -> str:
    name = getattr(what, "__qualname__", None)
    return _cut(type(what).__name__ if name is None else str(name))


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_LIMIT else name[: _NAME_LIMIT - 1] + "…"


_Event = tuple[str, str | None, int, int, int]


def _slice(name: str, category: str, row: int, from_ns: int, to_ns: int) -> dict[str, object]:
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": from_ns / 1000,
        "dur": (to_ns - from_ns) / 1000,
        "pid": os.getpid(),
        "tid": row,
    }


def _row_name(row: int, name: str) -> dict[str, object]:
    return {
        "name": "thread_name",
        "ph": "M",
        "pid": os.getpid(),
        "tid": row,
        "args": {"name": name},
    }


def _turns(events: list[_Event]) -> Iterator[tuple[int, int, int]]:
    """(number, from_ns, to_ns) of each turn that ran something."""
    number, first, last = -1, 0, 0
    for kind, _, from_ns, to_ns, turn in events:
        if kind == "poll":
            continue
        if turn != number:
            if number >= 0:
                yield number, first, last
            number, first = turn, from_ns
        last = to_ns
    if number >= 0:
        yield number, first, last


def _slices(events: list[_Event]) -> Iterator[dict[str, object]]:
    yield _row_name(_LOOP_ROW, "loop")
    for turn, from_ns, to_ns in _turns(events):
        yield _slice(f"turn {turn}", "turn", _LOOP_ROW, from_ns, to_ns)
    names: dict[int, str] = {}
    for kind, name, from_ns, to_ns, _ in events:
        yield _slice(name or kind, kind, _LOOP_ROW, from_ns, to_ns)
        if isinstance(name, _Step):
            yield _slice(name.coroutine, "task", name.row, from_ns, to_ns)
            # Its last name: many a task gives itself one in its first step.
            names[name.row] = name.task
    for row, name in names.items():
        yield _row_name(row, name)


def _write(file: TextIO, events: list[_Event], left_out: int) -> None:
    # Piece by piece: the whole as Python objects would be many times the file.
    file.write('{"displayTimeUnit": "ms", "otherData": ')
    json.dump({"events left out": left_out}, file)
    file.write(', "traceEvents": [\n')
    separator = ""
    for entry in _slices(events):
        file.write(separator)
        # Perfetto ends its import at the escape of a surrogate pair, which ASCII would need.
        file.write(json.dumps(entry, ensure_ascii=False))
        separator = ",\n"
    file.write("\n]}\n")
