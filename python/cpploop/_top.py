"""``python -m cpploop top``: a look at a running program that called cpploop.expose()."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._expose import default_path, folder, peer

USAGE = """\
usage: python -m cpploop top [--once] [PID | PID-N | SOCKET]

Show what the loop of a running program does, twice a second. The program must have called
cpploop.expose(). Without a PID or SOCKET, list the programs that have; PID-2 and so on are
further loops of a program.

  --once   print one look and end
"""

_NAME = re.compile(r"([0-9]{1,9})(-[0-9]+)?")

_RATES = ("turns", "callbacks", "events", "accepted", "bytes_received", "bytes_sent")


def main(arguments: list[str]) -> int:
    """Run the command; the exit status."""
    once = "--once" in arguments
    rest = [one for one in arguments if one != "--once"]
    if len(rest) > 1 or any(one.startswith("-") for one in rest):
        sys.stdout.write(USAGE)
        return 0 if rest and rest[0] in ("-h", "--help") else 2
    if not rest:
        return _list()
    try:
        looks = _looks(rest[0])
        if once:
            first = next(looks)
            second = next(looks)
            print("\n".join(f"{name:16} {value}" for name, value in _rows(first, second)))
            return 0
        return _live(looks)
    except (OSError, StopIteration) as exc:
        reason = str(exc) or "the program ended"
        print(f"cpploop top: {rest[0]}: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _list() -> int:
    found = sorted(path.stem for path in folder().glob("*.sock") if _is_alive(path))
    for name in found:
        print(name)
    if not found:
        print("no program of this user has called cpploop.expose()", file=sys.stderr)
    return 0 if found else 1


def _is_alive(path: Path) -> bool:
    """Whether its program still runs. One that was killed has left its socket, which is removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(str(path))
        except BlockingIOError:
            # As many wait as may: it is there, and blocked.
            return True
        except ConnectionRefusedError:
            _remove_if_left(path)
            return False
        except OSError:
            # Closed since the folder was read.
            return False
        # Children by fork() keep the socket open without answering.
        pid, _ = peer(connection)
        return pid == 0 or _is_process(pid)


def _remove_if_left(path: Path) -> None:
    """Remove a socket that nobody listens to, if it is this user's and its process is gone."""
    name = _NAME.fullmatch(path.stem)
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        is_ours = stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid()
        # A process that is there may be about to listen.
        if is_ours and name is not None and not _is_process(int(name[1])):
            path.unlink()


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # Somebody else's.
    return True


def _looks(where: str) -> Iterator[dict[str, Any]]:
    path = str(default_path(where)) if _NAME.fullmatch(where) else where
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(path)
        with connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def _rows(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is shown of two looks, one after the other."""
    yield "program", f"{new['pid']}: {' '.join(new['command'])[:100]}"
    yield "Python", new["python"]
    stuck = new["state"] == "busy" and old.get("callback") == new.get("callback")
    yield "loop", f"{new['state']}, in the same callback for a while" if stuck else new["state"]
    if "metrics" not in new or "metrics" not in old:
        return
    before, now = old["metrics"], new["metrics"]
    seconds = max(new["time"] - old["time"], 1e-9)
    busy, waited = now["busy"] - before["busy"], now["waited"] - before["waited"]
    yield "utilisation", f"{busy / (busy + waited) if busy + waited else 0:.0%}"
    longest = f"{_time(now['busy_periods'][-2][0])} or more"
    p50, p99, worst = (
        longest if now["lag"][quantile] is None else _time(now["lag"][quantile])
        for quantile in ("0.5", "0.99", "1.0")
    )
    yield "lag", f"p50 {p50}, p99 {p99}, worst {worst}"
    for name in _RATES:
        yield name, f"{(now[name] - before[name]) / seconds:,.0f}/s, {now[name]:,} in all"
    yield "ready", f"{now['ready']:,}, at most {now['ready_peak']:,}"
    yield "timers", f"{now['timers']:,}"
    if "tasks" in new:
        yield "tasks", f"{new['tasks']:,}"
    transports = ", ".join(f"{count:,} {kind}" for kind, count in now["transports"].items())
    yield "transports", transports or "none"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _live(looks: Iterator[dict[str, Any]]) -> int:
    try:
        from rich.live import Live
        from rich.table import Table
    except ImportError:
        print("cpploop top: the live view needs rich, cpploop's extra top", file=sys.stderr)
        return 1
    old = next(looks)
    with Live(auto_refresh=False, screen=True) as live:
        for new in looks:
            table = Table.grid(padding=(0, 2))
            for name, value in _rows(old, new):
                table.add_row(f"[bold]{name}[/bold]", value.replace("[", "\\["))
            live.update(table, refresh=True)
            old = new
    return 0
