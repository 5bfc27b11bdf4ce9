"""Traces in Chrome's format: what is in them, and that they end well."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import os
import re
import subprocess
import sys
import time
import tracemalloc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import support

cpploop = pytest.importorskip("cpploop")

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="asyncio's loops write no trace"
)


@pytest.fixture
def loop() -> Iterator[Any]:
    loop = cpploop.new_event_loop()
    yield loop
    loop.close()


def slices(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The complete events of a trace by category."""
    found = collections.defaultdict(list)
    for event in json.loads(path.read_text())["traceEvents"]:
        if event["ph"] == "X":
            found[event["cat"]].append(event)
            assert event["dur"] >= 0
            assert event["pid"] == os.getpid()
    return found


async def napper(seconds: float) -> None:
    await asyncio.sleep(0.01)
    time.sleep(seconds)


def test_callbacks_tasks_polls_and_turns(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    async def main() -> None:
        with cpploop.trace(path):
            await asyncio.create_task(napper(0.02), name="sleepy")
        await asyncio.sleep(0.01)

    loop.run_until_complete(main())
    found = slices(path)
    assert set(found) == {"callback", "task", "poll", "turn"}
    tasks = [event["name"] for event in found["task"]]
    assert tasks.count("napper") == 2
    slowest = max(found["callback"], key=lambda event: event["dur"])
    assert slowest["name"] == "sleepy: napper"
    assert slowest["dur"] >= 20_000
    assert max(event["dur"] for event in found["poll"]) >= 5_000
    # Each callback lies in a turn, and no poll does.
    for event in found["callback"]:
        assert any(
            turn["ts"] <= event["ts"] and event["ts"] + event["dur"] <= turn["ts"] + turn["dur"]
            for turn in found["turn"]
        )
    for poll in found["poll"]:
        assert not any(
            turn["ts"] < poll["ts"] + poll["dur"] and poll["ts"] < turn["ts"] + turn["dur"]
            for turn in found["turn"]
        )


def test_io_is_named_by_its_transport(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"

    async def main() -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname()
        )
        with cpploop.trace(path, loop):
            transport.write(b"x")
            await support.eventually(lambda: loop.metrics().bytes_received == 1)
        transport.close()
        server.close()
        await support.eventually(lambda: loop.metrics().transports == {})

    loop.run_until_complete(main())
    (event,) = slices(path)["io"]
    assert event["name"].startswith("StreamTransport fd=")


def rows(path: Path) -> list[tuple[str, list[str]]]:
    """The name of each task's row, and the slices in it."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    found = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "task":
            found[event["tid"]].append(event["name"])
    return [(names[row], found[row]) for row in sorted(found)]


def test_rows_of_tasks(loop: Any, tmp_path: Path) -> None:
    """One for each task, whatever its name is, and none for a function with such a name."""
    path = tmp_path / "trace.json"

    def plain() -> None: ...

    plain.__qualname__ = "no task: at all"

    async def worker() -> None:
        await asyncio.sleep(0)

    async def self_named() -> None:
        asyncio.current_task().set_name("renamed")
        await asyncio.sleep(0)

    async def main() -> None:
        with cpploop.trace(path):
            loop.call_soon(plain)
            for name in ("db: pool: worker", "twin", "twin"):
                # Each is gone before the next: its place in memory is free for that one.
                await asyncio.create_task(worker(), name=name)
            await asyncio.create_task(self_named(), name="unnamed")

    task = loop.create_task(main(), name="main")
    loop.run_until_complete(task)
    steps = [worker.__qualname__] * 2
    assert [row for row in rows(path) if row[0] != "main"] == [
        ("db: pool: worker", steps),
        ("twin", steps),
        ("twin", steps),
        ("renamed", [self_named.__qualname__] * 2),
    ]
    names = [event["name"] for event in slices(path)["callback"]]
    assert "no task: at all" in names
    assert names.count(f"db: pool: worker: {worker.__qualname__}") == 2


def test_keeps_no_task_alive(loop: Any, tmp_path: Path) -> None:
    async def main() -> weakref.ref[Any]:
        task = asyncio.create_task(asyncio.sleep(0))
        await task
        return weakref.ref(task)

    with cpploop.trace(tmp_path / "trace.json", loop):
        gone = loop.run_until_complete(main())
        gc.collect()
        assert gone() is None


def test_is_bounded(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with cpploop.trace(path, loop, limit=10):
        for _ in range(50):
            loop.call_soon(int)
        loop.call_soon(loop.stop)
        loop.run_forever()
    trace = json.loads(path.read_text())
    assert trace["otherData"] == {"events left out": 41}
    assert len(slices(path)["callback"]) == 10


def test_names_are_cut(loop: Any, tmp_path: Path) -> None:
    """The limit would bound neither the file nor the memory otherwise."""
    path = tmp_path / "trace.json"

    async def worker() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        for number in range(10):
            await asyncio.create_task(worker(), name=f"{number} " + "x" * 1_000_000)

    tracemalloc.start()
    try:
        with cpploop.trace(path, loop, limit=10):
            loop.run_until_complete(main())
            held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
    assert path.stat().st_size < 20_000
    names = [event["name"] for event in slices(path)["callback"]]
    assert f"0 {'x' * 197}…: {worker.__qualname__}" in names
    assert max(map(len, names)) < 420


def test_names(loop: Any, tmp_path: Path) -> None:
    import functools

    class Callable:
        def __call__(self) -> None: ...

        def method(self) -> None: ...

        @property
        def __name__(self) -> str:
            raise RuntimeError("nobody's business")

    path = tmp_path / "trace.json"
    with cpploop.trace(path, loop):
        loop.call_soon(functools.partial(functools.partial(int, "1")))
        loop.call_soon(Callable())
        loop.call_soon(Callable().method)
        loop.call_soon(print).cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
    names = [event["name"] for event in slices(path)["callback"]]
    assert names[:2] == ["int", "Callable"]
    assert names[2].endswith("Callable.method")
    assert names[-1].endswith("stop")


def test_a_callback_that_raises_is_recorded(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    caught = []
    loop.set_exception_handler(lambda loop, context: caught.append(context["exception"]))

    def fail() -> None:
        raise ValueError("on purpose")

    with cpploop.trace(path, loop):
        loop.call_soon(fail)
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert [type(error) for error in caught] == [ValueError]
    assert any(event["name"].endswith("fail") for event in slices(path)["callback"])


def test_with_debug_mode(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    loop.set_debug(True)
    with cpploop.trace(path, loop):
        loop.run_until_complete(asyncio.sleep(0))
        loop.set_debug(False)
        loop.run_until_complete(asyncio.sleep(0))
    assert len(slices(path)["task"]) == 4


def test_stopped_within_a_callback_and_again(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    for _ in range(2):
        trace = cpploop.trace(path, loop)
        loop.call_soon(trace.stop)
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert "callback" not in slices(path)
        trace.stop()


def test_ends_with_its_loop(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    loop = cpploop.new_event_loop()
    trace = cpploop.trace(path, loop)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert slices(path)["callback"]
    path.unlink()
    trace.stop()
    assert not path.exists()


class Perfetto:
    """What the JSON importer of Perfetto's trace processor takes from a file, and asks of it.

    Whatever it would refuse or drop fails here: src/trace_processor/importers/json and
    importers/common/slice_tracker.cc in Perfetto's sources.
    """

    def __init__(self, path: Path) -> None:
        text = path.read_bytes().decode("utf-8")
        # Its parser ends at half a surrogate pair, and so does the import.
        assert not re.search(r"\\u[dD][89a-fA-F]", text)
        trace = json.loads(text, parse_constant=self.not_json)
        self.events = trace if isinstance(trace, list) else trace["traceEvents"]
        self.slices: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(list)
        for event in self.events:
            for member in ("pid", "tid"):
                assert type(event[member]) is int and 0 < event[member] < 1 << 32
            take = {"X": self.complete, "M": self.metadata, "C": self.counter}[event["ph"]]
            take(event)
        for row in self.slices.values():
            self.nest(row)

    @staticmethod
    def not_json(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    @staticmethod
    def nanoseconds(microseconds: float) -> int:
        assert type(microseconds) in (int, float)
        return round(microseconds * 1000)

    def complete(self, event: dict[str, Any]) -> None:
        begin, duration = self.nanoseconds(event["ts"]), self.nanoseconds(event["dur"])
        assert begin >= 0 and duration >= 0
        assert type(event["name"]) is str and event["name"]
        assert type(event["cat"]) is str and event["cat"]
        self.slices[event["pid"], event["tid"]].append((begin, begin + duration))

    def metadata(self, event: dict[str, Any]) -> None:
        assert event["name"] in ("thread_name", "process_name")
        assert type(event["args"]["name"]) is str and event["args"]["name"]

    def counter(self, event: dict[str, Any]) -> None:
        self.nanoseconds(event["ts"])
        assert event["args"]
        for value in event["args"].values():
            assert type(value) in (int, float)

    @staticmethod
    def nest(row: list[tuple[int, int]]) -> None:
        """A slice that begins in another and ends after it would be dropped."""
        open_until: list[int] = []
        # Sorted by its beginning as it is there: what begins together stays in the file's order.
        for begin, end in sorted(row, key=lambda one: one[0]):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1]
            open_until.append(end)


def test_perfetto_takes_every_event(loop: Any, tmp_path: Path, certs: support.Certificates) -> None:
    """Everything that the loop records: tasks, timers, readers, connections, TLS, threads."""
    path = tmp_path / "trace.json"

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async def talk(port: int, **options: Any) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        for _ in range(20):
            writer.write(b"x" * 1000)
            await reader.readexactly(1000)
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        plain = await loop.create_server(Echo, "127.0.0.1", 0)
        tls = await loop.create_server(Echo, "127.0.0.1", 0, ssl=certs.server_context())
        first, second = support.unix_pair()
        loop.add_reader(first, lambda: first.recv(100))
        second.send(b"x")
        secure = {"ssl": certs.client_context(), "server_hostname": "localhost"}
        await asyncio.gather(
            talk(plain.sockets[0].getsockname()[1]),
            talk(tls.sockets[0].getsockname()[1], **secure),
            asyncio.to_thread(time.sleep, 0.01),
            *(napper(0.001) for _ in range(10)),
        )
        loop.remove_reader(first)
        for one in (plain, tls, first, second):
            one.close()
        await loop.shutdown_default_executor()

    with cpploop.trace(path, loop):
        loop.run_until_complete(main())
    seen = Perfetto(path)
    assert {event["ph"] for event in seen.events} == {"X", "M"}
    assert {event.get("cat") for event in seen.events} == {
        *("callback", "task", "poll", "turn", "io", None)
    }
    named = {event["tid"] for event in seen.events if event["ph"] == "M"}
    assert {row for _, row in seen.slices} == named


@pytest.mark.parametrize("name", ["\N{SNAKE} ünïcode", "half \ud83d", '\\"\n\0'], ids=ascii)
def test_perfetto_takes_every_name(loop: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / "trace.json"

    async def main() -> None:
        await asyncio.create_task(asyncio.sleep(0), name=name)

    with cpploop.trace(path, loop):
        loop.run_until_complete(main())
    shown = name.encode("utf-8", "replace").decode()
    assert f"{shown}: sleep" in {event["name"] for event in Perfetto(path).events}


def test_what_cannot_be_traced(loop: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with pytest.raises(RuntimeError, match="no running event loop"):
        cpploop.trace(path)
    other = asyncio.SelectorEventLoop()
    with pytest.raises(TypeError, match="only a cpploop loop can be traced"):
        cpploop.trace(path, other)
    other.close()
    with pytest.raises(ValueError, match="less than no events"):
        cpploop.trace(path, loop, limit=-1)
    with cpploop.trace(path, loop):
        with pytest.raises(RuntimeError, match="traced already"):
            cpploop.trace(path, loop)
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        cpploop.trace(path, loop)


def test_a_file_that_cannot_be_written(loop: Any, tmp_path: Path) -> None:
    trace = cpploop.trace(tmp_path / "missing" / "trace.json", loop)
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.raises(FileNotFoundError):
        trace.stop()
    # The loop can be traced again.
    cpploop.trace(tmp_path / "trace.json", loop).stop()


def test_environment(tmp_path: Path) -> None:
    """Each loop writes a file of its own, and none writes over another's."""
    program = """
import asyncio, cpploop

async def main():
    await asyncio.sleep(0)

cpploop.run(main())
cpploop.run(main())
"""
    path = tmp_path / "trace.json"
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            env={**os.environ, "CPPLOOP_TRACE": str(path)},
            timeout=60,
        )
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == ["trace.2.json", "trace.3.json", "trace.4.json", "trace.json"]
    for one in tmp_path.iterdir():
        events = json.loads(one.read_text())["traceEvents"]
        assert any(event["name"].endswith(": main") for event in events)
