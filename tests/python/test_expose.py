"""A program tells its loop's metrics over a Unix socket; ``python -m cpploop top`` shows them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support

cpploop = pytest.importorskip("cpploop")

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="asyncio's loops tell nothing"
)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with support.short_directory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
        loop = cpploop.new_event_loop()
        yield loop
        loop.close()


def not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def looks(path: Path, count: int) -> list[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(path))
        with connection.makefile() as lines:
            return [json.loads(next(lines), parse_constant=not_json) for _ in range(count)]


def in_thread(function: Any, *arguments: Any) -> Any:
    """The result of a blocking function, with the loop running beside it."""
    return asyncio.to_thread(function, *arguments)


def test_tells_what_metrics_says(loop: Any) -> None:
    async def main() -> None:
        with cpploop.expose() as exposure:
            assert exposure.path.name == f"{os.getpid()}.sock"
            first, second = await in_thread(looks, exposure.path, 2)
            for look in (first, second):
                assert look["pid"] == os.getpid()
                assert look["command"] == sys.orig_argv
                assert look["state"] in ("busy", "waiting")
                assert look["tasks"] == 1
            assert second["metrics"]["turns"] <= loop.metrics().turns
            assert set(second["metrics"]["lag"]) == {"0.5", "0.99", "1.0"}
        assert not exposure.path.exists()

    loop.run_until_complete(main())


def having_been_busy(loop: Any, bucket: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop have been busy once, for as long as that bucket holds."""
    counters = loop._counters()
    counters["busy_periods"] = [int(n == bucket) for n in range(len(counters["busy_periods"]))]
    monkeypatch.setattr(type(loop), "_counters", lambda loop: dict(counters))


def test_what_is_infinite_is_null(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    having_been_busy(loop, 23, monkeypatch)
    with cpploop.expose(loop=loop) as exposure:
        (look,) = looks(exposure.path, 1)
    assert look["metrics"]["busy_periods"][-2:] == [[4.194304, 0], [None, 1]]
    assert look["metrics"]["lag"] == {"0.5": None, "0.99": None, "1.0": None}


def test_several_loops_of_a_process(loop: Any) -> None:
    """Each has a socket, and closing one leaves the others'."""
    other = cpploop.new_event_loop()
    name = f"{os.getpid()}.sock"
    with cpploop.expose(loop=loop) as first:
        second = cpploop.expose(loop=other)
        assert [first.path.name, second.path.name] == [name, f"{os.getpid()}-2.sock"]
        assert len(looks(first.path, 1)) == len(looks(second.path, 1)) == 1
        second.close()
        assert first.path.exists() and not second.path.exists()
        with cpploop.expose(loop=other) as third:
            assert third.path == second.path
            second.close()  # A second call does nothing, to the next one neither.
            assert len(looks(third.path, 1)) == 1
    other.close()
    with cpploop.expose(loop=loop) as again:
        assert again.path == first.path


@pytest.mark.parametrize("state", ["not running", "closed"])
def test_states(loop: Any, state: str) -> None:
    with cpploop.expose(loop=loop) as exposure:
        if state == "closed":
            loop.close()
        (look,) = looks(exposure.path, 1)
        assert look["state"] == state
        assert ("metrics" in look) == (state != "closed")


def test_a_blocked_loop_is_seen_to_be(loop: Any) -> None:
    async def main() -> None:
        with cpploop.expose() as exposure:
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.extend(looks(exposure.path, 2)))
            thread.start()
            thread.join()
            assert {look["state"] for look in found} <= {"busy", "blocked"}
            assert found[0]["callback"] == found[1]["callback"]

    loop.run_until_complete(main())


def test_only_this_user_can_connect(loop: Any) -> None:
    with cpploop.expose(loop=loop) as exposure:
        assert stat.S_IMODE(exposure.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(exposure.path.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(loop: Any) -> None:
    """Even where the permissions were opened."""
    with cpploop.expose(loop=loop) as exposure:
        exposure.path.chmod(0o777)
        for parent in (exposure.path.parent, exposure.path.parent.parent):
            parent.chmod(0o755)
        program = (
            "import os, socket, sys\n"
            "os.setuid(65534)\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            f"s.connect({str(exposure.path)!r})\n"
            "print(s.recv(10))\n"
        )
        done = subprocess.run(
            [sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "b''\n", done.stderr


def test_a_system_that_does_not_tell_who_connects(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED")
    before = threading.enumerate()
    with pytest.raises(NotImplementedError, match="SO_PEERCRED"):
        cpploop.expose(loop=loop)
    assert not support.new_threads(before)
    assert list(Path(os.environ["XDG_RUNTIME_DIR"]).iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(
    loop: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "cpploop").mkdir(mode=0o777)
    (tmp_path / "cpploop").chmod(0o777)
    with pytest.raises(PermissionError, match="open to other users"):
        cpploop.expose(loop=loop)
    (tmp_path / "cpploop").rmdir()
    (tmp_path / "cpploop").symlink_to("/")
    with pytest.raises(PermissionError, match="not a folder of this user's"):
        cpploop.expose(loop=loop)


def test_what_cannot_be_exposed(loop: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        cpploop.expose()
    other = asyncio.SelectorEventLoop()
    with pytest.raises(TypeError, match="only a cpploop loop can be exposed"):
        cpploop.expose(loop=other)
    other.close()
    with support.short_directory() as directory:
        path = Path(directory, "x.sock")
        path.touch()
        with pytest.raises(OSError, match="in use"):
            cpploop.expose(path, loop)


def test_leaves_nothing_behind(loop: Any) -> None:
    before, fds = threading.enumerate(), support.open_fds()
    exposure = cpploop.expose(loop=loop)
    looks(exposure.path, 1)
    exposure.close()
    exposure.close()
    deadline = time.monotonic() + 10
    while support.new_threads(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not support.new_threads(before)
    assert not support.new_fds(fds)


# --------------------------------------------------------------------------- the command


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cpploop", "top", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_top_once(loop: Any) -> None:
    async def main() -> None:
        with cpploop.expose() as exposure:
            for where in (str(os.getpid()), str(exposure.path)):
                done = await in_thread(top, "--once", where)
                assert done.stderr == ""
                assert done.returncode == 0
                rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
                assert rows["program"].startswith(f"{os.getpid()}: ")
                assert rows["tasks"] == "1"
                assert "in all" in rows["turns"]
            assert (await in_thread(top)).stdout == f"{os.getpid()}\n"

    loop.run_until_complete(main())


@pytest.mark.parametrize(("bucket", "shown"), [(22, "4.2 s"), (23, "4.2 s or more")])
def test_top_shows_a_lag_without_a_bound(
    loop: Any, monkeypatch: pytest.MonkeyPatch, bucket: int, shown: str
) -> None:
    having_been_busy(loop, bucket, monkeypatch)
    with cpploop.expose(loop=loop) as exposure:
        rows = dict(
            line.split(maxsplit=1) for line in top("--once", str(exposure.path)).stdout.splitlines()
        )
    assert rows["lag"] == f"p50 {shown}, p99 {shown}, worst {shown}"


def test_top_takes_the_names_that_it_lists(loop: Any) -> None:
    other = cpploop.new_event_loop()
    with cpploop.expose(loop=other), cpploop.expose(loop=loop):
        other.close()
        names = top().stdout.split()
        assert names == [f"{os.getpid()}", f"{os.getpid()}-2"]
        shown = [top("--once", name).stdout.splitlines() for name in names]
    # Each its own loop.
    states = [dict(line.split(maxsplit=1) for line in rows)["loop"] for rows in shown]
    assert states == ["closed", "not running"]


EXPOSING = """
import os, sys
import cpploop
loop = cpploop.new_event_loop()
exposure = cpploop.expose(loop=loop)
if "fork" not in sys.argv or os.fork() != 0:
    print(exposure.path, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def killed_program(*arguments: str) -> Iterator[Path]:
    """The socket that a program left which was killed while it was exposed."""
    # The end of its input is the end of its child, too.
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", EXPOSING, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert top().stdout.split() == [str(process.pid)]
        process.kill()
        process.wait()
        yield path


def test_top_leaves_out_a_killed_program(loop: Any) -> None:
    """And clears away what it left."""
    with killed_program() as path:
        assert path.exists()
        done = top()
        assert (done.returncode, done.stdout) == (1, "")
        assert not path.exists()


def test_top_leaves_out_a_killed_program_with_a_child(loop: Any) -> None:
    """The child has the socket, but not the thread that answers."""
    with killed_program("fork"):
        assert top().stdout == ""


def test_top_removes_nothing_else(loop: Any) -> None:
    with killed_program() as left, socket.socket(socket.AF_UNIX) as unheard:
        folder = left.parent
        # Its process is there: it may listen yet.
        unheard.bind(str(folder / f"{os.getpid()}.sock"))
        # Not named for a process; and no socket, though for one that is gone.
        left.rename(folder / "mine.sock")
        left.write_text("a file")
        before = sorted(folder.iterdir())
        assert len(before) == 3
        assert top().stdout == ""
        assert sorted(folder.iterdir()) == before


def test_top_lists_a_program_that_is_too_busy_to_answer(loop: Any) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as waiting:
        path = cpploop._expose.default_path(os.getpid())
        server.bind(str(path))
        server.listen(1)
        with pytest.raises(BlockingIOError):
            while True:
                connection = waiting.enter_context(socket.socket(socket.AF_UNIX))
                connection.setblocking(False)
                connection.connect(str(path))
        assert top().stdout == f"{os.getpid()}\n"


def test_top_without_a_program(loop: Any) -> None:
    done = top("--once", str(os.getpid()))
    assert done.returncode == 1
    assert "No such file or directory" in done.stderr
    done = top()
    assert done.returncode == 1
    assert "has called cpploop.expose()" in done.stderr


@pytest.mark.parametrize("arguments", [("--twice",), ("1", "2"), ("-h",)])
def test_top_usage(arguments: tuple[str, ...]) -> None:
    done = top(*arguments)
    assert done.stdout.startswith("usage: python -m cpploop top")
    assert done.returncode == (0 if arguments == ("-h",) else 2)


def test_a_script_called_top_is_run(tmp_path: Path) -> None:
    (tmp_path / "top").write_text("print('a script')\n")
    done = subprocess.run(
        [sys.executable, "-m", "cpploop", "top"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.stdout == "a script\n"


def test_live_view(loop: Any) -> None:
    pytest.importorskip("rich")
    import pty

    async def main() -> None:
        with cpploop.expose():
            controller, terminal = pty.openpty()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cpploop", "top", str(os.getpid())),
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
            )
            os.close(terminal)
            os.set_blocking(controller, False)
            shown = b""

            def has_shown() -> bool:
                nonlocal shown
                try:
                    shown += os.read(controller, 65536)
                except BlockingIOError:
                    pass
                return b"utilisation" in shown and b"transports" in shown

            await support.eventually(has_shown, timeout=20)
        # The program's end is the view's.
        assert await process.wait() == 0
        os.close(controller)

    loop.run_until_complete(main())
