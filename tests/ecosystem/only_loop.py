"""Makes the loop under test the only loop of a process, and writes down every loop that runs.

Each Python that starts in a suite's environment imports this before anything else (run.py puts a
.pth file there), so that the servers and workers which tests start as processes are covered like
the tests themselves. What to do is said by a file of the environment and not by a variable, because
tests start children with variables of their own.

The proof is made in asyncio.events._set_running_loop(), which asyncio's own run_forever() goes
through and cpploop's, too: a loop of another kind than was asked for does not run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

STATE = "only_loop.json"
NAMES = ("SelectorEventLoop", "EventLoop", "_UnixSelectorEventLoop")
POLICIES = ("_DefaultEventLoopPolicy", "DefaultEventLoopPolicy", "_UnixDefaultEventLoopPolicy")


def install() -> None:
    """Do what the environment's file says; nothing where there is none."""
    try:
        state = json.loads(Path(sys.prefix, STATE).read_text())
    except FileNotFoundError:
        return
    import asyncio.unix_events

    loop_class: Any = asyncio.SelectorEventLoop
    if state["loop"] == "cpploop":
        loop_class = _replace_asyncios_loop()
    _watch_running_loops(loop_class, state["record"])


def _replace_asyncios_loop() -> Any:
    """Put cpploop's loop wherever asyncio's is found; the policy, too, looks there."""
    import asyncio.unix_events

    import cpploop

    for namespace in (asyncio, asyncio.unix_events):
        for name in NAMES:
            if hasattr(namespace, name):
                setattr(namespace, name, cpploop.Loop)
    for name in POLICIES:
        if policy := vars(asyncio.unix_events).get(name):
            policy._loop_factory = cpploop.Loop
    return cpploop.Loop


def _watch_running_loops(loop_class: Any, record: str) -> None:
    import asyncio.events

    set_running_loop = asyncio.events._set_running_loop
    # Kept here: some tests replace functions of os.
    open_file, write, close, getpid = os.open, os.write, os.close, os.getpid
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC

    def watched_set_running_loop(loop: Any) -> None:
        if loop is not None:
            kind, right = type(loop), isinstance(loop, loop_class)
            line = f"{getpid()} {kind.__module__}.{kind.__qualname__} {int(right)}\n"
            # One short write at the end of a file is whole, whoever else writes there.
            descriptor = open_file(record, flags, 0o666)
            try:
                write(descriptor, line.encode())
            finally:
                close(descriptor)
            if not right:
                raise AssertionError(f"{kind} runs where {loop_class} is to be the only loop")
        set_running_loop(loop)

    asyncio.events._set_running_loop = watched_set_running_loop
