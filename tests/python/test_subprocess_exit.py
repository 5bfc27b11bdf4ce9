"""The end of children: noticed, reported and reaped once, whoever else has a hand in it.

Rows of the users' list: uv#64, zuv#82, anyio#1174, cpy#119710. cpploop is tried in both of its
ways to notice an end: a process descriptor, and a thread where the kernel has none.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from asyncio import base_subprocess, unix_events
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from support import eventually

PIPE = subprocess.PIPE
REPEATS = 400 if support.LONG else 100

# What the running asyncio does, which differs from one patch release to the next.
WAIT_ENDS_WITH_THE_CHILD = "_exit_waiters" in inspect.getsource(
    base_subprocess.BaseSubprocessTransport._process_exited
)
# 3.11's Popen looks whether the child lives; later the transport learnt to look.
_send_signal = inspect.getsource(base_subprocess.BaseSubprocessTransport.send_signal)
ASYNCIO_KNOWS_OF_THE_END = "_returncode" in _send_signal or "_proc.send_signal" in _send_signal
ASYNCIO_USES_THREADS = sys.version_info < (3, 12)

RUNS = support.selected_loops()
if "cpploop" in RUNS:
    RUNS.append("cpploop-threads")


def only(*ways: str) -> pytest.MarkDecorator:
    """For a test of what cpploop promises and asyncio does not, or of one way to watch."""
    return pytest.mark.parametrize("way", [way for way in RUNS if way in ways], indirect=True)


ours = only("cpploop", "cpploop-threads")
pidfd_only = only("cpploop")
threads_only = only("cpploop-threads")


@pytest.fixture(params=RUNS)
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """The loop under test, cpploop's in both ways of watching."""
    if request.param != "cpploop-threads":
        yield request.param
        return
    from cpploop import _processes

    _processes._force_threads(True)
    try:
        yield request.param
    finally:
        _processes._force_threads(False)


@pytest.fixture
def loop_factory(way: str) -> support.LoopFactory:
    return support.factory(way.partition("-")[0])


@pytest.fixture
def run(loop_factory: support.LoopFactory) -> Callable[..., Any]:
    """support.run, which also fails when a child is left over."""

    def run_and_look(scenario: support.Scenario, **options: Any) -> Any:
        before = support.living_children()
        result = support.run(loop_factory, scenario, **options)
        left = {pid: state for pid, state in support.living_children().items() if pid not in before}
        assert not left, f"children left over: {left}"
        return result

    return run_and_look


def pidfds() -> int:
    return sum("pidfd" in what for what in support.open_fds().values())


# --------------------------------------------------------------------------- return codes


def test_return_codes(run: Any) -> None:
    async def main() -> None:
        for script, expected in [
            ("exit 0", 0),
            ("exit 1", 1),
            ("exit 255", 255),
            ("kill -TERM $$", -signal.SIGTERM),
            ("kill -KILL $$", -signal.SIGKILL),
            ("kill -ABRT $$", -signal.SIGABRT),
        ]:
            process = await asyncio.create_subprocess_shell(script)
            assert await process.wait() == expected
            assert process.returncode == expected

    run(main)


def test_popen_learns_the_status(run: Any) -> None:
    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().subprocess_shell(
            asyncio.SubprocessProtocol, "exit 7", stdin=None, stdout=None, stderr=None
        )
        popen = transport.get_extra_info("subprocess")
        assert isinstance(popen, subprocess.Popen)
        await eventually(lambda: transport.get_returncode() == 7)
        assert popen.returncode == 7
        assert popen.poll() == 7
        transport.close()

    run(main)


def test_stopped_child_has_not_ended(run: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: "T" in support.living_children()[process.pid])
        await asyncio.sleep(0.02)
        assert process.returncode is None
        process.send_signal(signal.SIGCONT)
        await process.communicate(b"")
        assert process.returncode == 0

    run(main)


def test_no_descriptor_and_no_zombie_after_hundreds(run: Any) -> None:
    """uv#64, uv#185."""

    async def main() -> None:
        descriptors = len(support.open_fds())
        for _ in range(REPEATS // 20):
            batch = [
                await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
                for _ in range(20)
            ]
            results = await asyncio.gather(*(one.communicate(b"x") for one in batch))
            assert results == [(b"x", None)] * 20
            assert [one.returncode for one in batch] == [0] * 20
            del batch
            await support.turns(3)
            assert len(support.open_fds()) == descriptors
        assert "Z" not in support.living_children().values()

    run(main)


@pidfd_only
def test_descriptors_of_living_children(run: Any) -> None:
    """cpploop has one descriptor for each child that lives, and none for those that have ended."""

    async def main() -> None:
        batch = [await asyncio.create_subprocess_exec("cat", stdin=PIPE) for _ in range(5)]
        threads = threading.enumerate()
        assert pidfds() == 5
        batch[0].kill()
        await batch[0].wait()
        assert pidfds() == 4
        for process in batch[1:]:
            await process.communicate(b"")
        assert pidfds() == 0
        assert not support.new_threads(threads)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL

    run(main)


# --------------------------------------------------------------------------- signals and races


def test_kill_races_with_the_end(run: Any, way: str) -> None:
    """A signal at any moment of a child's end: no exception, one return code, nobody else hit."""

    async def main(env: support.Env) -> None:
        codes = set()
        for index in range(REPEATS):
            process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
            assert process.stdin is not None
            process.stdin.close()
            for _ in range(index % 7):
                await asyncio.sleep(0)
            if index % 3 == 0:
                time.sleep(0.0002 * (index % 11))
            try:
                (process.kill, process.terminate)[index % 2]()
                process.send_signal(0)
            except ProcessLookupError:
                # The transport is done with its child already.
                assert process.returncode is not None
            codes.add(await process.wait())
            with pytest.raises(ProcessLookupError):
                # wait() ended, and what ends a transport comes with it, or a turn later.
                for _ in range(5):
                    process.kill()
                    await asyncio.sleep(0)
        if way == "asyncio":
            # Some asyncios lose the status to the Popen that they ask before they send.
            codes.discard(255)
            env.take_logs()
        assert codes <= {0, -9, -15}

    run(main)


def test_signals_after_the_end_reach_nobody(run: Any, way: str) -> None:
    """zuv#82: the number of a child that has been reaped may be a stranger's."""
    if way == "asyncio" and not ASYNCIO_KNOWS_OF_THE_END:
        pytest.skip("this asyncio signals the number of a child that has ended")

    async def main() -> None:
        held, holder = os.pipe()
        # The grandchild keeps the transport from its end, for as long as it takes.
        process = await asyncio.create_subprocess_shell(
            f"(head -c1 /proc/self/fd/{held} >/dev/null; true) & exit 3",
            stdout=PIPE,
            pass_fds=[held],
        )
        os.close(held)
        await eventually(lambda: process.returncode == 3)
        popen: Any = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
        with subprocess.Popen(["cat"], stdin=PIPE) as stranger:
            # As if the kernel had given it the number: nothing may arrive there.
            popen.pid = stranger.pid
            process.kill()
            process.terminate()
            process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
            assert stranger.poll() is None
            stranger.communicate()
        assert stranger.returncode == 0
        os.close(holder)
        await process.communicate()
        with pytest.raises(ProcessLookupError):
            process.kill()

    run(main)


@pidfd_only
def test_signal_to_a_child_that_somebody_reaped(run: Any) -> None:
    """Reaped by somebody else and not noticed yet: no signal goes to the number.

    Only a process descriptor can tell.
    """

    async def main(env: support.Env) -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.terminate()
        os.waitid(os.P_PID, process.pid, os.WEXITED)
        # Such a number names nobody, or a stranger.
        process.kill()
        assert await process.wait() == 255
        env.take_logs()

    run(main)


def test_audit_event_of_signals(loop_name: str) -> None:
    """An audit hook sees signals to children, as it would see os.kill()."""
    script = """
    import asyncio, sys
    seen = []
    sys.addaudithook(lambda name, args: seen.append(args) if name == "os.kill" else None)

    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.kill()
        assert seen == [(process.pid, 9)], seen
        await process.wait()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    support.run_script(script, loop=loop_name)


@pytest.mark.parametrize("bad", [10_000, -1, "TERM", None, 1.5], ids=repr)
def test_bad_signals(bad: Any) -> None:
    async def scenario(env: support.Env) -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        try:
            process.send_signal(bad)
        except Exception as exc:
            env.log("raised", exc)
        process.kill()
        env.log("code", await process.wait())

    assert support.compare(scenario)[0][0] == "raised"


# --------------------------------------------------------------------------- wait()


def test_wait_from_several_tasks(run: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        waits = [asyncio.create_task(process.wait()) for _ in range(5)]
        await asyncio.sleep(0.01)
        waits[2].cancel()
        await asyncio.sleep(0)
        assert waits[2].cancelled()
        assert process.stdin is not None
        process.stdin.close()
        del waits[2]
        assert await asyncio.gather(*waits) == [0, 0, 0, 0]
        assert await process.wait() == 0

    run(main)


def test_wait_and_pipes(run: Any) -> None:
    """anyio#1174, cpy#119710: whether wait() ends with the child or only with its pipes.

    A patch release changed it; what the running asyncio does is what counts.
    """

    async def main() -> None:
        held, holder = os.pipe()
        process = await asyncio.create_subprocess_shell(
            f"(head -c1 /proc/self/fd/{held} >/dev/null; true) & read line; exit 4",
            stdin=PIPE,
            stdout=PIPE,
            pass_fds=[held],
        )
        os.close(held)
        early = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        assert process.stdin is not None
        process.stdin.close()
        await eventually(lambda: process.returncode == 4)
        await support.turns(3)
        assert early.done() is WAIT_ENDS_WITH_THE_CHILD
        # One that starts when the code is known never waits.
        assert await process.wait() == 4
        os.close(holder)
        assert await process.communicate(b"") == (b"", None)
        assert await early == 4

    run(main)


def test_wait_with_a_full_pipe(run: Any) -> None:
    """A child that nobody reads from does not end, and wait() waits for it."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("yes", stdout=PIPE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.05)
        process.kill()
        await process.communicate()
        assert process.returncode == -9

    run(main)


# --------------------------------------------------------------------------- cancellation


def test_cancelled_start(run: Any) -> None:
    """A start that is cancelled while the pipes are connected kills the child and reaps it."""

    async def main() -> None:
        for rounds in range(8):
            before = support.living_children()
            task = asyncio.create_task(
                asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE, stderr=PIPE)
            )
            await support.turns(rounds)
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                process = task.result()
                process.kill()
                await process.communicate(b"")
            await support.turns(5)
            assert support.living_children() == before

    run(main)


def test_wait_for_around_a_start(run: Any) -> None:
    async def main() -> None:
        for _ in range(REPEATS // 10):
            try:
                async with asyncio.timeout(0):
                    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
            except TimeoutError:
                continue
            await process.communicate(b"")

    run(main)


@only("cpploop")
@pytest.mark.parametrize("refusals", [0, 2], ids=["a thread", "no thread at first"])
def test_an_end_told_before_there_is_a_status(
    run: Any, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """A kqueue may do that, and tells once: a thread waits then, as soon as there is one."""
    import cpploop
    from cpploop import _processes

    told: list[Callable[[], None]] = []
    waits: list[object] = []
    wait = _processes._UnixSubprocessTransport._watch_in_thread

    def wait_if_there_is_a_thread(transport: Any) -> None:
        waits.append(transport)
        if len(waits) <= refusals:
            raise RuntimeError("can't start new thread")
        wait(transport)

    monkeypatch.setattr(_processes, "_open_pidfd", lambda pid: -1)
    monkeypatch.setattr(
        cpploop.Loop, "_watch_process", lambda loop, pid, callback: told.append(callback)
    )
    monkeypatch.setattr(cpploop.Loop, "_unwatch_process", lambda loop, pid: None)
    monkeypatch.setattr(
        _processes._UnixSubprocessTransport, "_watch_in_thread", wait_if_there_is_a_thread
    )

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        (tell,) = told
        tell()
        await eventually(lambda: len(waits) == refusals + 1)
        assert process.returncode is None
        await process.communicate(b"")
        assert process.returncode == 0

    run(main)


# --------------------------------------------------------------------------- other people's wait()


def test_status_taken_by_somebody_else(run: Any, way: str) -> None:
    """255 and asyncio's warning, in the words of what watches."""

    async def main(env: support.Env) -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.terminate()
        os.waitpid(process.pid, 0)
        assert await process.wait() == 255
        assert process.returncode == 255
        text = "child process pid … exit status already read:  will report returncode 255"
        if ASYNCIO_USES_THREADS or way == "cpploop-threads":
            text = "Unknown child process pid …, will report returncode 255"
        assert [support.normalise(line) for line in env.take_logs()] == [text]

    # asyncio's thread on 3.11 may have taken it first.
    if ASYNCIO_USES_THREADS and way == "asyncio":
        pytest.skip("whether asyncio's thread or the test reaps is not decided")
    run(main)


@ours
def test_children_that_the_kernel_reaps(way: str) -> None:
    """With SIGCHLD ignored there are no statuses: 255, also for one that was over at once.

    asyncio may raise ProcessLookupError out of the start.
    """
    script = """
    import asyncio, logging, signal, subprocess
    from cpploop import _processes
    logging.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    async def main():
        for _ in range(50):
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 255, process.returncode
        process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        assert await process.communicate(b"x") == (b"x", None)
        assert process.returncode == 255

    _processes._force_threads(FORCED)
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    support.run_script(script.replace("FORCED", str(way != "cpploop")), loop="cpploop")


@ours
def test_popen_waits_in_another_thread(run: Any) -> None:
    """The Popen of a child may be waited for by the program: both get the status.

    asyncio reports 255, or makes Popen report 0.
    """

    async def main() -> None:
        for _ in range(REPEATS // 5):
            transport, _ = await asyncio.get_running_loop().subprocess_shell(
                asyncio.SubprocessProtocol, "read x; exit 9", stdout=None, stderr=None
            )
            popen = transport.get_extra_info("subprocess")
            waiting = asyncio.get_running_loop().run_in_executor(None, popen.wait)
            transport.get_pipe_transport(0).close()
            assert await waiting == 9
            await eventually(lambda transport=transport: transport.get_returncode() == 9)
            transport.close()

    run(main)


@ours
def test_close_finds_the_end_first(run: Any) -> None:
    """close() looks by itself whether the child lives; the status it finds is the one reported.

    asyncio reports 255 when its own close() has taken the status.
    """

    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().subprocess_exec(
            asyncio.SubprocessProtocol, "sleep", "60", stdin=None, stdout=None, stderr=None
        )
        transport.terminate()
        os.waitid(os.P_PID, transport.get_pid(), os.WEXITED | os.WNOWAIT)
        transport.close()
        await eventually(lambda: transport.get_returncode() is not None)
        assert transport.get_returncode() == -15

    run(main)


# --------------------------------------------------------------------------- the loop ends first


CLOSED_LOOP = """
    import asyncio, gc, logging, os, re, signal, subprocess, sys, threading, time, warnings
    import support
    if "WAY" == "cpploop-threads":
        from cpploop import _processes
        _processes._force_threads(True)
    lines = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(support.normalise(record.getMessage()))

    logging.getLogger("asyncio").addHandler(Keep())
    sys.unraisablehook = lambda args: lines.append("unraisable " + repr(args.exc_value))
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *rest: lines.append(support.normalise(str(message)))

    async def start():
        return await asyncio.create_subprocess_exec("sleep", "60")

    before = support.open_fds()
    loop = factory()
    process = loop.run_until_complete(start())
    pid = process.pid
    loop.close()
    """


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_loop_closed_with_a_living_child(way: str, kept: bool) -> None:
    """The warnings, whether the child lives on, and that it is no zombie in the end."""
    script = (
        CLOSED_LOOP
        + f"""
    if not {kept}:
        del process
        gc.collect()
    deadline = time.monotonic() + 5 * support.TIME_SCALE
    # It may be starting or ending yet: neither lasts.
    while (state := support.living_children().get(pid)) not in ("S", "Z", None):
        assert time.monotonic() < deadline, state
    print("alive" if state == "S" else "ended")
    if state == "S":
        os.kill(pid, signal.SIGKILL)
    if {kept}:
        time.sleep(0.05 * support.TIME_SCALE)
        print("returncode", process.returncode)
        del process
        gc.collect()
    # The next start sweeps up what Popen was left with.
    deadline = time.monotonic() + 5
    while support.living_children() and time.monotonic() < deadline:
        subprocess.Popen(["true"]).wait()
        time.sleep(0.01)
    print("children", support.living_children())
    # Whoever waited in a thread says so a moment after the child is gone.
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(5 * support.TIME_SCALE)
    for line in lines:
        if "Loop <" in line:
            line = "Loop … that handles" + line.split("that handles")[1].split()[0] + " is closed"
        # Popen's own warning depends on which of the two the collector comes to first.
        if not re.fullmatch("subprocess [0-9]+ is still running", line):
            print(line)
    """
    )
    outputs = {}
    for name in ("asyncio", way):
        text = script.replace("WAY", name)
        done = support.run_script(text, loop=name.partition("-")[0])
        assert "Traceback" not in done.stderr
        outputs[name] = done.stdout.splitlines()
    if way == "cpploop-threads" and not ASYNCIO_USES_THREADS:
        # The thread keeps the child, as asyncio's own threads do.
        assert outputs[way][0] == "alive"
        assert "children {}" in outputs[way]
        return
    assert outputs[way] == outputs["asyncio"]
    assert "children {}" in outputs[way]


@ours
def test_closed_loop_keeps_no_descriptor(way: str) -> None:
    """The process descriptor goes with the loop (asyncio's stays open for good)."""
    script = (
        CLOSED_LOOP.replace("WAY", way)
        + """
    left = support.new_fds(before)
    assert not left, left
    os.kill(pid, signal.SIGKILL)
    try:
        process.kill()
    except ProcessLookupError:
        pass
    """
    )
    support.run_script(script, loop="cpploop")


@ours
def test_dropped_loop(way: str) -> None:
    """A loop that nobody closes and nobody has: its descriptors are closed all the same."""
    script = (
        CLOSED_LOOP.replace("WAY", way).replace("loop.close()", "")
        + """
    process._transport._proc.kill()
    del process, loop
    gc.collect()
    time.sleep(0.1)
    gc.collect()
    left = support.new_fds(before)
    assert not left, left
    """
    )
    support.run_script(script, loop="cpploop")


@ours
def test_fork_with_a_living_child(way: str) -> None:
    """A forked process that closes the inherited loop leaves the parent's watching alone."""
    script = """
    import asyncio, gc, os

    class Protocol(asyncio.SubprocessProtocol):
        def connection_lost(self, exc):
            lost.set_result(None)

    async def main():
        global lost
        loop = asyncio.get_running_loop()
        lost = loop.create_future()
        transport, _ = await loop.subprocess_exec(Protocol, "cat", stdout=None, stderr=None)
        pid = os.fork()
        if pid == 0:
            loop.close()
            del transport
            gc.collect()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert transport.get_returncode() is None
        transport.get_pipe_transport(0).close()
        await lost
        assert transport.get_returncode() == 0
        transport.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    # Newer Pythons warn of any fork beside threads.
    flags = ["-W", "ignore::DeprecationWarning"]
    assert support.run_script(script, loop="cpploop", flags=flags).stderr == ""


def test_child_that_outlives_its_program(loop_name: str, tmp_path: Any) -> None:
    """Nothing of the loop ties a detached child to it."""
    mark = tmp_path / "mark"
    script = f"""
    import asyncio, warnings
    warnings.simplefilter("ignore")

    async def main():
        process = await asyncio.create_subprocess_shell(
            "(sleep 0.3; echo done > {mark}) &", start_new_session=True
        )
        assert await process.wait() == 0

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    support.run_script(script, loop=loop_name)
    deadline = time.monotonic() + 10 * support.TIME_SCALE
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mark.exists()


# --------------------------------------------------------------------------- transports dropped


def test_dropped_transport(run: Any) -> None:
    """While the child lives the loop holds the transport; afterwards nothing does."""

    class Protocol(asyncio.SubprocessProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def connection_lost(self, exc: Exception | None) -> None:
            self.transport.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(Protocol, "cat", stdout=None, stderr=None)
        stdin = transport.get_pipe_transport(0)
        watch = weakref.ref(transport)
        del transport, protocol
        gc.collect()
        assert watch() is not None
        stdin.close()
        del stdin
        await eventually(lambda: gc.collect() is not None and watch() is None)

    run(main)


# --------------------------------------------------------------------------- context, debug mode


def test_context_of_the_callbacks() -> None:
    """process_exited() and connection_lost() see what the running asyncio has them see."""
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

    async def scenario(env: support.Env) -> None:
        class Protocol(asyncio.SubprocessProtocol):
            def connection_made(self, transport: Any) -> None:
                env.log("made", var.get())

            def process_exited(self) -> None:
                env.log("exited", var.get())

            def connection_lost(self, exc: Exception | None) -> None:
                env.log("lost", var.get())
                done.set()

        done = asyncio.Event()
        var.set("of the start")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.subprocess_exec(
            Protocol, "true", stdin=None, stdout=None, stderr=None
        )
        var.set("afterwards")
        await done.wait()
        transport.close()

    trace = support.compare(scenario)
    assert [entry[0] for entry in trace[:3]] == ["made", "exited", "lost"]


def test_debug_mode_logs() -> None:
    """What debug mode logs about a child, word for word and level for level."""
    if "cpploop" not in support.selected_loops():
        pytest.skip("compares both loops")
    logs = {name: _debug_logs(name) for name in ("asyncio", "cpploop")}
    assert logs["cpploop"] == logs["asyncio"]
    text = "\n".join(line for _, line in logs["cpploop"])
    for part in ("execute program 'cat'", "process 'cat' created", "exited with return code 0"):
        assert part in text
    assert "Close running child process: kill" in text


def _debug_logs(name: str) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = support.normalise(record.getMessage())
            # The pipes and the loop, with names of their own, are another test's business.
            if not text.startswith(("Read pipe", "Write pipe", "Using selector", "Close <")):
                text = re.sub(r" std(in|out|err)=<[^>]*>", "", text)
                text = re.sub(r"(process|<Process) \d+", r"\1 …", text)
                lines.append((record.levelname, text))

    async def main(env: support.Env) -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        await process.communicate(b"x")
        process = await asyncio.create_subprocess_shell("exec cat", stdin=PIPE)
        process._transport.close()  # type: ignore[attr-defined]
        await process.wait()
        env.take_logs()

    logger = logging.getLogger("asyncio")
    handler = Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        support.run(support.factory(name), main, debug=True)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return sorted(lines)


# --------------------------------------------------------------------------- the program's watcher


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no child watchers from Python 3.14 on")
def test_watcher_of_the_program(loop_factory: support.LoopFactory) -> None:
    """A watcher set by the program is asked, as asyncio asks it."""
    calls: list[Any] = []

    def make_watcher() -> Any:
        class Watcher(unix_events.ThreadedChildWatcher):
            def __enter__(self) -> Any:
                calls.append("enter")
                return super().__enter__()

            def __exit__(self, *args: object) -> None:
                calls.append("exit")

            def is_active(self) -> bool:
                calls.append("is_active")
                return active

            def add_child_handler(self, pid: int, callback: Any, *args: Any) -> None:
                calls.append("add_child_handler")
                super().add_child_handler(pid, callback, *args)

        return Watcher()

    async def main() -> None:
        process = await asyncio.create_subprocess_shell("exit 2")
        assert await process.wait() == 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_child_watcher(make_watcher())
        try:
            active = True
            support.run(loop_factory, main)
            assert calls == ["enter", "is_active", "add_child_handler", "exit"]
            active = False
            with pytest.raises(
                RuntimeError, match=r"^asyncio\.get_child_watcher\(\) is not activa"
            ):
                support.run(loop_factory, main)
        finally:
            asyncio.set_child_watcher(None)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no child watchers from Python 3.14 on")
def test_policy_of_the_program(loop_factory: support.LoopFactory) -> None:
    """So is a policy that brings its own watcher, and one that has none."""
    asked = []

    class Policy(asyncio.DefaultEventLoopPolicy):
        def get_child_watcher(self) -> Any:
            asked.append(True)
            return unix_events.ThreadedChildWatcher()

    class Bare(asyncio.events.BaseDefaultEventLoopPolicy):
        _loop_factory = asyncio.SelectorEventLoop

    async def main() -> None:
        process = await asyncio.create_subprocess_shell("exit 2")
        assert await process.wait() == 2

    asyncio.set_event_loop_policy(Policy())
    try:
        support.run(loop_factory, main)
        assert asked == [True]
        asyncio.set_event_loop_policy(Bare())
        with pytest.raises(NotImplementedError):
            support.run(loop_factory, main)
    finally:
        asyncio.set_event_loop_policy(None)


# --------------------------------------------------------------------------- kernels that refuse


@pytest.mark.parametrize("error", [38, 1, 24, 22], ids=["ENOSYS", "EPERM", "EMFILE", "EINVAL"])
@pidfd_only
def test_kernels_without_process_descriptors(
    way: str, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """A thread does it then, for that child alone."""

    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(error, os.strerror(error))

    async def main() -> None:
        process = await asyncio.create_subprocess_shell("cat; exit 3", stdin=PIPE, stdout=PIPE)
        assert await process.communicate(b"x") == (b"x", None)
        assert process.returncode == 3
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.kill()
        assert await process.wait() == -9

    monkeypatch.setattr(os, "pidfd_open", refuse)
    support.run(support.factory("cpploop"), main)
    monkeypatch.delattr(os, "pidfd_open")
    support.run(support.factory("cpploop"), main)


@pidfd_only
def test_kernel_that_does_not_wait_for_descriptors(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 5.3 has process descriptors and no P_PIDFD; a sandbox may refuse to signal by them."""
    waitid, refused = os.waitid, []

    def without_descriptors(kind: int, number: int, options: int) -> Any:
        if kind == os.P_PIDFD:
            refused.append(number)
            raise OSError(22, "Invalid argument")
        return waitid(kind, number, options)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.terminate()
        assert await process.wait() == -15
        assert refused

    def refuse(fd: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "waitid", without_descriptors)
    support.run(support.factory("cpploop"), main)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    support.run(support.factory("cpploop"), main)
    monkeypatch.delattr(signal, "pidfd_send_signal")
    support.run(support.factory("cpploop"), main)


@threads_only
def test_no_thread_to_be_had(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that nobody could watch is killed, and the error is raised."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = support.living_children()

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await asyncio.create_subprocess_exec("sleep", "60")

    support.run(support.factory("cpploop"), main, check_warnings=False)
    gc.collect()
    # Killed, and swept up by the next starts, as everything that Popen is left with.
    deadline = time.monotonic() + 5 * support.TIME_SCALE
    while support.living_children().keys() - before and time.monotonic() < deadline:
        subprocess.Popen(["true"]).wait()
    assert not support.living_children().keys() - before
