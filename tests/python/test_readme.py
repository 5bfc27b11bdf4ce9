"""A stranger who follows the README gets an answer, a look into the server, and a picture of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import support
import test_docs

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="what the README shows is cpploop"
)
LIMIT_S = 20 * support.TIME_SCALE


def journey() -> tuple[str, list[str]]:
    """The application that the README has the reader save, and the commands behind it."""
    blocks = test_docs.blocks_of(test_docs.DOCS.parent / "README.md")
    number = next(i for i, block in enumerate(blocks) if block.notes.get("file") == "app.py")
    return blocks[number].text, blocks[number + 1].text.splitlines()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def started(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The README's server, on a port of its own; ended by Ctrl-C."""
    app, (start, *_) = journey()
    (folder / "app.py").write_text(app)
    assignment, program, *arguments = shlex.split(start)
    name, _, value = assignment.partition("=")
    assert program == "uvicorn"
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *arguments, "--port", str(port)],
        cwd=folder,
        env={**os.environ, name: value, "XDG_RUNTIME_DIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield server
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=LIMIT_S)


def test_start_in_one_minute(tmp_path: Path) -> None:
    """The page that one starts with: its program runs, and leaves the trace that is looked at."""
    blocks = test_docs.blocks_of(test_docs.DOCS / "guide" / "start.md")
    number = next(i for i, block in enumerate(blocks) if block.notes.get("file") == "main.py")
    program, commands = blocks[number], blocks[number + 1]
    (tmp_path / "main.py").write_text(program.text)
    plain, traced = (shlex.split(line, comments=True) for line in commands.text.splitlines())
    name, _, value = traced.pop(0).partition("=")
    assert plain == traced == ["python", "main.py"]
    done = subprocess.run(
        [sys.executable, *traced[1:]],
        cwd=tmp_path,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert program.output is not None and done.stdout == program.output
    with (tmp_path / value).open() as file:
        named = {event["name"] for event in json.load(file)["traceEvents"]}
    assert {"hello: hello", "turn 1", "poll"} <= named, named


def answer(address: str) -> str:
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=LIMIT_S) as response:
                return str(response.read(), "ascii")
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_five_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)
    _, (_, ask, list_them, look) = journey()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = shlex.split(ask)[1].replace(":8000", f":{port}")
    with started(tmp_path, port) as server:
        assert answer(address) == "hello from cpploop"
        listed = run(sys.executable, *shlex.split(list_them, comments=True)[1:])
        assert listed.split() == [str(server.pid)]
        command = shlex.split(look)[1:-1]
        shown = run(sys.executable, *command, str(server.pid))
        # That program, which has served one request so far.
        assert re.search(rf"^program +{server.pid}: ", shown, re.M), shown
        assert re.search(r"^accepted +\d+/s, 1 in all$", shown, re.M), shown
    with (tmp_path / "trace.json").open() as file:
        assert len(json.load(file)["traceEvents"]) > 10
