"""Standard input, output and error of children: every kind, communicate(), and who holds the pipes.

Rows of the users' list: uv#363, uv#505, uv#532, uv#136, uv#595.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import support
from support import eventually

PIPE = subprocess.PIPE


# --------------------------------------------------------------------------- kinds


def test_pipes_are_pipes(run: Any) -> None:
    """uv#505, uv#532: what a child is given as PIPE is a pipe and can be opened by its name."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            "cat", "/dev/stdin", "/proc/self/fd/0", stdin=PIPE, stdout=PIPE
        )
        assert await process.communicate(b"by name") == (b"by name", None)

        process = await asyncio.create_subprocess_shell(
            "echo one > /dev/stdout; echo two > /proc/self/fd/1; echo three > /dev/stderr",
            stdout=PIPE,
            stderr=PIPE,
        )
        assert await process.communicate() == (b"one\ntwo\n", b"three\n")

        process = await asyncio.create_subprocess_exec(
            *("stat", "-L", "-c", "%F", "/proc/self/fd/0", "/proc/self/fd/1"),
            stdin=PIPE,
            stdout=PIPE,
        )
        assert await process.communicate() == (b"fifo\nfifo\n", None)

    run(main)


def test_inherited(loop_name: str) -> None:
    """None: the child has what this process has."""
    script = """
    import asyncio

    async def main():
        process = await asyncio.create_subprocess_shell("cat; echo error >&2")
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert await process.communicate() == (None, None)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    command = support.script_command(script, loop_name)
    done = subprocess.run(command, input=b"inherited", capture_output=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (b"inherited", b"error\n", 0)


def test_sys_stdout(loop_name: str) -> None:
    """uv#136: stdout=sys.stdout and stderr=sys.stderr are the descriptors of these files."""
    script = """
    import asyncio, sys

    async def main():
        process = await asyncio.create_subprocess_shell(
            "echo out; echo err >&2", stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr
        )
        assert await process.wait() == 0
        process = await asyncio.create_subprocess_shell("echo swapped", stdout=sys.stderr)
        assert await process.wait() == 0

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    done = support.run_script(script, loop=loop_name)
    assert (done.stdout, done.stderr) == ("out\n", "err\nswapped\n")


def test_devnull(run: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            *("readlink", "/proc/self/fd/0", "/proc/self/fd/2"),
            stdin=subprocess.DEVNULL,
            stdout=PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert await process.communicate() == (b"/dev/null\n/dev/null\n", None)
        process = await asyncio.create_subprocess_exec("yes", stdout=subprocess.DEVNULL)
        assert process.stdout is None
        process.kill()
        await process.wait()

    run(main)


def test_stderr_to_stdout(run: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "echo 1; echo 2 >&2; echo 3", stdout=PIPE, stderr=subprocess.STDOUT
        )
        assert process.stderr is None
        assert await process.communicate() == (b"1\n2\n3\n", None)

    run(main)


def test_files_and_raw_descriptors(run: Any, tmp_path: Path) -> None:
    """The caller's files stay the caller's: open, and at the position the child left them at."""

    async def main() -> None:
        source = tmp_path / "source"
        source.write_bytes(b"line one\nline two\n")
        with (
            source.open("rb", buffering=0) as stdin,
            (tmp_path / "out").open("wb") as stdout,
            tempfile.TemporaryFile() as stderr,
        ):
            process = await asyncio.create_subprocess_shell(
                "head -c 9; echo error >&2", stdin=stdin, stdout=stdout, stderr=stderr.fileno()
            )
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
            assert await process.wait() == 0
            assert stdin.tell() == 9
            assert stdout.fileno() >= 0
            stderr.seek(0)
            assert stderr.read() == b"error\n"
        assert (tmp_path / "out").read_bytes() == b"line one\n"

    run(main)


def test_sockets(run: Any) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            process = await asyncio.create_subprocess_exec("cat", stdin=theirs, stdout=theirs)
            theirs.close()
            ours.sendall(b"through a socket")
            ours.shutdown(socket.SHUT_WR)
            assert await process.wait() == 0
            assert ours.recv(100) == b"through a socket"
            assert ours.recv(100) == b""

    run(main)


def test_pipe_between_two_children(run: Any) -> None:
    async def main() -> None:
        reading, writing = os.pipe()
        first = await asyncio.create_subprocess_exec("echo", "between", stdout=writing)
        os.close(writing)
        second = await asyncio.create_subprocess_exec(
            *("tr", "a-z", "A-Z"), stdin=reading, stdout=PIPE
        )
        os.close(reading)
        assert await second.communicate() == (b"BETWEEN\n", None)
        assert await first.wait() == 0

    run(main)


def test_extra_info_of_the_pipes(run: Any) -> None:
    """uv#595: the pipe itself, so that its options can be set and its number be known."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        transport: Any = process._transport  # type: ignore[attr-defined]
        for fd in (0, 1):
            pipe = transport.get_pipe_transport(fd).get_extra_info("pipe")
            assert stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode)
            assert os.get_blocking(pipe.fileno()) is False
        assert process.stdin.get_extra_info("pipe") is transport._proc.stdin
        assert process.stdin.get_extra_info("missing", "default") == "default"
        await process.communicate(b"")

    run(main)


# --------------------------------------------------------------------------- communicate()


def test_communicate_beyond_the_pipes_capacity(run: Any) -> None:
    """uv#363: megabytes both ways at once, and on all three."""

    async def main() -> None:
        data = os.urandom(1 << 20) * 4
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        out, err = await process.communicate(data)
        assert out == data
        assert err is None

        process = await asyncio.create_subprocess_shell(
            "tee /dev/stderr", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert await process.communicate(data) == (data, data)
        assert process.returncode == 0

    run(main)


def test_communicate_without_input(run: Any) -> None:
    """The child reads an empty file; with None only where the running asyncio closes the pipe."""

    async def main() -> None:
        for data in (b"", None):
            process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
            if data is None and sys.version_info < (3, 12):
                assert process.stdin is not None
                process.stdin.close()
            assert await process.communicate(data) == (b"", None)

    run(main)


def test_communicate_with_a_child_that_does_not_read(run: Any) -> None:
    """A broken pipe is no error of communicate()."""

    async def main() -> None:
        for script in ("exit 3", "exec 0<&-; exit 3", "head -c 10 >/dev/null; exit 3"):
            process = await asyncio.create_subprocess_shell(script, stdin=PIPE, stdout=PIPE)
            assert await process.communicate(bytes(1 << 20)) == (b"", None)
            assert process.returncode == 3

    run(main)


def test_cancelled_communicate_can_be_repeated(run: Any) -> None:
    """So can a cancelled wait(): neither takes anything away from the next."""

    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "read line; echo $line; exit 5", stdin=PIPE, stdout=PIPE
        )
        assert process.stdin is not None
        for cancelled in (process.wait(), process._read_stream(1)):  # type: ignore[attr-defined]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(cancelled, 0.02)
        process.stdin.write(b"after\n")
        task = asyncio.create_task(process.communicate(b""))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.communicate(b"") == (b"after\n", None)
        assert process.returncode == 5

    run(main)


def test_writing_with_flow_control(run: Any) -> None:
    """drain() waits while the child does not read."""

    async def main() -> None:
        process = await asyncio.create_subprocess_shell("read go; wc -c", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\n")
        await process.stdin.drain()
        process.stdin.write(bytes(1 << 20))
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
        assert int(await process.stdout.read()) == 1 << 20
        assert await process.wait() == 0

    run(main)


def test_reading_with_a_limit(run: Any) -> None:
    """A reader that nobody reads pauses its pipe, and the child waits."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("yes", stdout=PIPE, limit=1000)
        assert process.stdout is not None
        reader: Any = process.stdout
        await eventually(lambda: reader._paused)
        size = len(reader._buffer)
        await asyncio.sleep(0.02)
        assert len(reader._buffer) == size
        assert await process.stdout.readexactly(200_000) == b"y\n" * 100_000
        process.kill()
        await process.communicate()
        assert process.returncode == -9

    run(main)


def test_interactive_child(run: Any) -> None:
    """A question and an answer at a time, many times."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None and process.stdout is not None
        for index in range(300):
            line = b"%d\n" % index
            process.stdin.write(line)
            assert await process.stdout.readline() == line
        process.stdin.write_eof()
        assert await process.stdout.read() == b""
        assert await process.wait() == 0

    run(main)


def test_python_child_through_text_layers(run: Any) -> None:
    """A child that wraps its pipes in text files, line by line."""

    async def main() -> None:
        program = "for line in __import__('sys').stdin: print(line.upper(), end='', flush=True)"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=PIPE, stdout=PIPE
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("grüße\n".encode())
        assert (await process.stdout.readline()).decode() == "GRÜSSE\n"
        assert await process.communicate(b"end") == (b"END", None)

    run(main)


# --------------------------------------------------------------------------- who holds the pipes


def test_grandchild_that_holds_the_pipe(run: Any) -> None:
    """The child's end is known at once; the pipe ends with the last process that holds it."""

    async def main() -> None:
        held, holder = os.pipe()
        process = await asyncio.create_subprocess_shell(
            f"(head -c1 /proc/self/fd/{held} >/dev/null; echo late) & echo early",
            stdout=PIPE,
            pass_fds=[held],
        )
        os.close(held)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"early\n"
        await eventually(lambda: process.returncode == 0)
        assert not process.stdout.at_eof()
        os.write(holder, b"x")
        os.close(holder)
        assert await process.stdout.read() == b"late\n"
        assert await process.wait() == 0

    run(main)


def test_pipes_after_the_childs_end(run: Any) -> None:
    """What was written before the end is read after it."""

    async def main() -> None:
        process = await asyncio.create_subprocess_shell("printf '%060000d' 7", stdout=PIPE)
        assert process.stdout is not None
        await eventually(lambda: process.returncode == 0)
        assert await process.stdout.read() == b"7".rjust(60000, b"0")

    run(main)
