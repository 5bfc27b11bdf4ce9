"""The thread that reports a callback while it blocks the loop."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import contract
import pytest
import support
from support import Recorder

cpploop = pytest.importorskip("cpploop")

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="asyncio's loops have no watchdog"
)
THRESHOLD = 0.05 * support.TIME_SCALE


@pytest.fixture
def loop() -> Iterator[Any]:
    loop = cpploop.new_event_loop()
    yield loop
    loop.close()


def run_blocked(loop: Any, block: Any, **options: Any) -> list[Any]:
    """What was reported, with the time at which it was, of a coroutine that calls BLOCK."""
    reports: list[Any] = []

    async def the_culprit() -> None:
        await asyncio.sleep(0)
        block()
        await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.create_task(the_culprit(), name="culprit")

    with loop.watch_slow_callbacks(THRESHOLD, reports.append, **options):
        loop.run_until_complete(main())
    return reports


def test_reports_while_the_callback_still_blocks(loop: Any) -> None:
    reported = threading.Event()
    seen: list[Any] = []

    def report(slow: Any) -> None:
        seen.append(slow)
        reported.set()

    async def block_until_reported() -> None:
        # Nothing but the report ends this.
        assert reported.wait(20)

    with loop.watch_slow_callbacks(THRESHOLD, report):
        loop.run_until_complete(block_until_reported())
    (slow,) = seen
    assert isinstance(slow, cpploop.SlowCallback)
    assert slow.seconds >= THRESHOLD
    assert slow.coroutine is not None and slow.coroutine.endswith("block_until_reported")
    (own,) = [frame for frame in slow.stack if frame.name == "block_until_reported"]
    assert own.filename == __file__
    assert own.line is not None and "reported.wait(20)" in own.line


def test_names_the_task_and_the_line(loop: Any) -> None:
    (slow,) = run_blocked(loop, lambda: time.sleep(4 * THRESHOLD))
    assert slow.task_name == "culprit"
    assert "the_culprit" in slow.coroutine
    assert slow.stack[-1].name == "<lambda>"
    assert "time.sleep(4 * THRESHOLD)" in str(slow)
    assert str(slow).startswith("task 'culprit' (")


def test_one_report_for_each_episode(loop: Any) -> None:
    def block() -> None:
        time.sleep(6 * THRESHOLD)

    reports: list[Any] = []

    async def main() -> None:
        for _ in range(2):
            block()
            await asyncio.sleep(THRESHOLD)

    with loop.watch_slow_callbacks(THRESHOLD, reports.append):
        loop.run_until_complete(main())
    assert len(reports) == 2


def test_many_quick_callbacks_and_waiting_are_not_slow(loop: Any) -> None:
    reports: list[Any] = []

    async def main() -> None:
        end = time.monotonic() + 3 * THRESHOLD
        while time.monotonic() < end:
            await asyncio.sleep(0)
        await asyncio.sleep(3 * THRESHOLD)

    with loop.watch_slow_callbacks(THRESHOLD, reports.append):
        loop.run_until_complete(main())
    assert reports == []


def test_a_plain_callback_has_no_task(loop: Any) -> None:
    reports: list[Any] = []
    loop.call_soon(time.sleep, 4 * THRESHOLD)
    loop.call_soon(loop.stop)
    with loop.watch_slow_callbacks(THRESHOLD, reports.append):
        loop.run_forever()
    (slow,) = reports
    assert (slow.task_name, slow.coroutine) == (None, None)
    assert str(slow).startswith("a callback has blocked the loop for")


@contextlib.asynccontextmanager
async def armed(
    culprit: str, function: Callable[..., None], certs: support.Certificates
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """What makes the running loop call FUNCTION, as the kind of callback that CULPRIT says."""
    loop = asyncio.get_running_loop()
    if culprit == "timer":

        async def fire() -> None:
            loop.call_later(0.01, function)

        yield fire
    elif culprit == "reader":
        first, second = support.unix_pair()
        with first, second:
            loop.add_reader(first, lambda: function(first.recv(1)))
            yield functools.partial(support.send_all, second, b"x")
            loop.remove_reader(first)
    else:
        receiver = Recorder(on={"data_received": function})
        async with contract.opened(culprit.partition("-")[0], receiver, certs) as (_, peer):
            yield functools.partial(peer.send, b"x")


# Over TLS once for each way of doing it.
TLS = [name.replace("cpploop", "tls") for name in support.tls_loops() if name != "asyncio"]


@pytest.mark.parametrize("culprit", ["timer", "reader", "tcp", "read pipe", *TLS])
def test_a_culprit_outside_tasks(
    loop: Any, culprit: str, certs: support.Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, tier = culprit.partition("-")
    if tier:
        monkeypatch.setenv("CPPLOOP_TLS", tier)
    reports: list[Any] = []
    reported, returned = threading.Event(), threading.Event()

    def report(slow: Any) -> None:
        reports.append(slow)
        reported.set()

    def the_culprit(*_: object) -> None:
        assert reported.wait(20)
        # Time for a second report, which must not come.
        time.sleep(2 * THRESHOLD)
        returned.set()

    async def main() -> None:
        async with armed(culprit, the_culprit, certs) as fire:
            with loop.watch_slow_callbacks(THRESHOLD, report):
                await fire()
                await support.eventually(returned.is_set, 30)

    loop.run_until_complete(main())
    (slow,) = reports
    assert (slow.task_name, slow.coroutine) == (None, None)
    names = [frame.name for frame in slow.stack]
    assert "the_culprit" in names
    assert ("data_received" in names) == (culprit not in ("timer", "reader"))


def test_is_logged_by_default(loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        time.sleep(4 * THRESHOLD)

    with caplog.at_level(logging.WARNING, "cpploop"), loop.watch_slow_callbacks(THRESHOLD):
        loop.run_until_complete(main())
    (record,) = [one for one in caplog.records if one.name == "cpploop"]
    assert "has blocked the loop for" in record.getMessage()
    assert "time.sleep(4 * THRESHOLD)" in record.getMessage()


def test_a_report_that_fails_is_logged(loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(slow: Any) -> None:
        raise ValueError("no")

    async def main() -> None:
        time.sleep(4 * THRESHOLD)

    with caplog.at_level(logging.ERROR, "cpploop"), loop.watch_slow_callbacks(THRESHOLD, fail):
        loop.run_until_complete(main())
    assert "the report of a slow callback failed" in caplog.text


@pytest.mark.parametrize("threshold", [0, -1, float("nan")])
def test_wrong_thresholds(loop: Any, threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be positive seconds"):
        loop.watch_slow_callbacks(threshold)


def test_ends_with_its_loop_and_when_stopped(loop: Any) -> None:
    before = threading.enumerate()
    watchdog = loop.watch_slow_callbacks(THRESHOLD)
    assert len(support.new_threads(before)) == 1
    watchdog.stop()
    watchdog.stop()
    assert not support.new_threads(before)
    other = cpploop.new_event_loop()
    other.watch_slow_callbacks(0.001)
    other.close()
    deadline = time.monotonic() + 10
    while support.new_threads(before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not support.new_threads(before)


@pytest.fixture
def dump_timer(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """After how many seconds the stacks would be dumped, each time that is said; None: never."""
    said: list[float | None] = [None]
    monkeypatch.setattr(faulthandler, "dump_traceback_later", said.append)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: said.append(None))
    return said


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_dumps_nothing_while_it_reports(loop: Any, dump_timer: list[float | None]) -> None:
    reported = threading.Event()
    during: list[float | None] = []

    def report(slow: Any) -> None:
        time.sleep(3 * THRESHOLD)
        during.append(dump_timer[-1])
        reported.set()

    async def block() -> None:
        assert reported.wait(20)
        # The callback is watched on: it may take the lock yet.
        wait_until(lambda: dump_timer[-1] == 2 * THRESHOLD)

    with loop.watch_slow_callbacks(THRESHOLD, report, dump=True):
        loop.run_until_complete(block())
    assert during == [None]
    assert dump_timer[-1] is None


def test_dumps_an_idle_loop_only_when_it_is_very_late(
    loop: Any, dump_timer: list[float | None]
) -> None:
    """A thread that a busy machine runs late must not have a loop that waits dumped."""
    done = loop.create_future()

    def end() -> None:
        wait_until(lambda: len(dump_timer) > 8)
        loop.call_soon_threadsafe(done.set_result, None)

    ending = threading.Thread(target=end)
    with loop.watch_slow_callbacks(THRESHOLD, dump=True):
        ending.start()
        loop.run_until_complete(done)
    ending.join()
    # Not the first, when the loop began to run.
    assert min(said for said in dump_timer[3:7] if said) >= 2 * THRESHOLD + 0.5


@pytest.mark.skipif(support.FREE_THREADED, reason="nobody can keep a lock that is not there")
def test_dumps_when_the_lock_is_not_given_up() -> None:
    program = """
import asyncio, re, cpploop

async def main():
    with asyncio.get_running_loop().watch_slow_callbacks(0.1, lambda slow: None, dump=True):
        await asyncio.sleep(0.05)
        # A regular expression that takes seconds and keeps the lock.
        re.match("(a?){26}a{26}", "a" * 26)

cpploop.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Timeout" in done.stderr
    assert "in main" in done.stderr
