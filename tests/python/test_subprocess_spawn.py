"""Starting children: every option of Popen, what is refused, and what goes wrong.

Rows of the users' list: uv#185, uv#118, zuv#39, zuv#56, zuv#32.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import support

SHELL = "/bin/sh"
NOBODY = 65534


async def output(*command: Any, **options: Any) -> bytes:
    """What a child prints; it has to succeed."""
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, **options)
    printed, _ = await process.communicate()
    assert process.returncode == 0
    assert isinstance(printed, bytes)
    return printed


async def stat_of_child(**options: Any) -> dict[str, int]:
    """The child's own view of who it is."""
    fields = (await output("cat", "/proc/self/stat", **options)).decode().rpartition(")")[2].split()
    return {"parent": int(fields[1]), "group": int(fields[2]), "session": int(fields[3])}


# --------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "command",
    [
        [SHELL, "-c", "echo $1", "sh", "ok"],
        [SHELL.encode(), b"-c", b"echo $1", b"sh", b"ok"],
        [Path(SHELL), "-c", "echo $1", "sh", Path("ok")],
        ["sh", b"-c", "echo $1", b"sh", "ok"],
    ],
    ids=["str", "bytes", "path", "mixed"],
)
def test_kinds_of_arguments(run: Any, command: list[Any]) -> None:
    async def main() -> None:
        assert await output(*command) == b"ok\n"

    run(main)


@pytest.mark.parametrize("command", ["echo $0 ok", b"echo $0 ok"], ids=["str", "bytes"])
def test_shell_command(run: Any, command: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(command, stdout=subprocess.PIPE)
        assert await process.communicate() == (b"/bin/sh ok\n", None)

    run(main)


def test_executable(run: Any) -> None:
    """The program run may be another than the one named: argument zero is what was named."""

    async def main() -> None:
        assert await output("a name", "-c", "echo $0", executable=SHELL) == b"a name\n"
        assert await output("a name", "-c", "echo $0", executable=Path(SHELL)) == b"a name\n"
        process = await asyncio.create_subprocess_shell(
            "echo $0", stdout=subprocess.PIPE, executable=SHELL
        )
        assert (await process.communicate())[0] == SHELL.encode() + b"\n"

    run(main)


def test_long_arguments_and_environment(run: Any) -> None:
    """zuv#32: what is handed to exec is whole, however much of it there is."""

    async def main() -> None:
        words = [f"{index:05d}-{'x' * 60}" for index in range(2000)]
        env = {**os.environ, **{f"V{index}": "y" * 500 for index in range(500)}}
        env["LAST"] = "z" * 50_000
        script = 'echo $# "$2000" ${#V0} ${#V499} ${#LAST}'
        script = script.replace('"$2000"', '"${2000}"')
        printed = await output(SHELL, "-c", script, "sh", *words, env=env)
        assert printed.decode() == f"2000 {words[-1]} 500 500 50000\n"

    run(main)


# --------------------------------------------------------------------------- Popen's options


def test_cwd(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        for cwd in (str(tmp_path), os.fsencode(tmp_path), tmp_path):
            assert await output("pwd", cwd=cwd) == os.fsencode(tmp_path) + b"\n"

    run(main)


def test_env(run: Any) -> None:
    async def main() -> None:
        assert await output("/usr/bin/env", env={}) == b""
        printed = await output("/usr/bin/env", env={"A": "1", b"B": b"\xff"})
        assert sorted(printed.splitlines()) == [b"A=1", b"B=\xff"]
        assert os.fsencode(os.environ["PATH"]) in await output("/usr/bin/env")

    run(main)


def test_start_new_session(run: Any) -> None:
    async def main() -> None:
        inherited = await stat_of_child()
        assert inherited["parent"] == os.getpid()
        assert inherited["group"] == os.getpgid(0)
        assert inherited["session"] == os.getsid(0)
        own = await stat_of_child(start_new_session=True)
        assert own["session"] == own["group"] != os.getsid(0)

    run(main)


def test_process_group(run: Any) -> None:
    async def main() -> None:
        own = await stat_of_child(process_group=0)
        assert own["group"] != os.getpgid(0)
        assert own["session"] == os.getsid(0)

        leader = await asyncio.create_subprocess_exec("cat", stdin=-1, process_group=0)
        joined = await stat_of_child(process_group=leader.pid)
        assert joined["group"] == leader.pid
        await leader.communicate(b"")

    run(main)


def test_umask(run: Any) -> None:
    async def main() -> None:
        assert await output(SHELL, "-c", "umask", umask=0o027) == b"0027\n"

    run(main)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_user_and_groups(run: Any) -> None:
    async def main() -> None:
        assert await output("id", "-u", user=NOBODY) == b"65534\n"
        assert await output("id", "-g", group=NOBODY) == b"65534\n"
        both = {"user": NOBODY, "group": NOBODY, "extra_groups": [1, 2]}
        assert await output("id", "-u", **both) == b"65534\n"
        assert sorted((await output("id", "-G", **both)).split()) == [b"1", b"2", b"65534"]
        assert await output("id", "-u", user="root") == b"0\n"

    run(main)


def test_restore_signals(run: Any) -> None:
    """Python ignores SIGPIPE; a child does not, unless it is asked to inherit that."""

    async def ignored(**options: Any) -> int:
        status = await output("grep", "SigIgn", "/proc/self/status", **options)
        return int(status.split()[1], 16)

    async def main() -> None:
        pipe = 1 << (signal.SIGPIPE - 1)
        assert not await ignored() & pipe
        assert await ignored(restore_signals=False) & pipe

    run(main)


def test_preexec_fn(run: Any) -> None:
    async def main() -> None:
        def in_the_child() -> None:
            os.write(1, b"before ")

        assert await output("echo", "after", preexec_fn=in_the_child) == b"before after\n"

    run(main)


def test_preexec_fn_that_raises(run: Any) -> None:
    async def main() -> None:
        def in_the_child() -> None:
            raise ZeroDivisionError

        with pytest.raises(subprocess.SubprocessError, match=r"^Exception occurred in preexec_fn"):
            await output("echo", preexec_fn=in_the_child)

    run(main)


def test_plain_spawn_calls_no_fork_hooks(loop_name: str) -> None:
    """uv#749: hooks of os.register_at_fork are for forks of the interpreter, not for spawning."""
    script = """
    import asyncio, os
    calls = []
    os.register_at_fork(before=lambda: calls.append("before"))

    async def main():
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        assert calls == []
        process = await asyncio.create_subprocess_exec("true", preexec_fn=int)
        await process.wait()
        assert calls == ["before"]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    support.run_script(script, loop=loop_name)


def test_pass_fds_and_close_fds(run: Any) -> None:
    """zuv#39, zuv#56: what is passed arrives, and nothing else does."""

    async def main() -> None:
        passed, kept = os.pipe()
        os.write(kept, b"passed")
        for fd in (passed, kept):
            os.set_inheritable(fd, True)
        try:
            listing = (await output("ls", "/proc/self/fd")).split()
            assert str(passed).encode() not in listing
            listing = (await output("ls", "/proc/self/fd", pass_fds=[passed])).split()
            assert str(passed).encode() in listing
            assert str(kept).encode() not in listing
            listing = (await output("ls", "/proc/self/fd", close_fds=False)).split()
            assert {str(passed).encode(), str(kept).encode()} <= set(listing)
            path = f"/proc/self/fd/{passed}"
            assert await output("head", "-c6", path, pass_fds=(passed,)) == b"passed"
        finally:
            os.close(passed)
            os.close(kept)

    run(main)


def test_nothing_of_the_loop_is_inherited(run: Any) -> None:
    """With close_fds=False: neither the loop's own descriptors nor other children's are passed."""

    async def main() -> None:
        other = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        listing = await output(
            SHELL, "-c", "ls -l /proc/self/fd", close_fds=False, stdin=subprocess.DEVNULL
        )
        assert b"eventpoll" not in listing
        assert b"eventfd" not in listing
        assert b"pidfd" not in listing
        await other.communicate(b"")

    run(main)


def test_pipesize(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.subprocess_exec(
            asyncio.SubprocessProtocol, "cat", stderr=None, pipesize=1 << 17
        )
        for fd in (0, 1):
            pipe = transport.get_pipe_transport(fd).get_extra_info("pipe")
            assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == 1 << 17
        transport.get_pipe_transport(0).close()
        await transport._wait()
        await asyncio.sleep(0.01)
        transport.close()

    run(main)


# --------------------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[str, Any]] = {
    "universal_newlines": ("exec", {"universal_newlines": True}),
    "shell's universal_newlines": ("shell", {"universal_newlines": True}),
    "text": ("exec", {"text": True}),
    "shell's text": ("shell", {"text": True}),
    "encoding": ("exec", {"encoding": "utf-8"}),
    "shell's encoding": ("shell", {"encoding": "utf-8"}),
    "errors": ("exec", {"errors": "strict"}),
    "shell's errors": ("shell", {"errors": "strict"}),
    "bufsize": ("exec", {"bufsize": 1}),
    "shell's bufsize": ("shell", {"bufsize": -1}),
    "shell": ("exec", {"shell": True}),
    "no shell": ("shell", {"shell": False}),
    "startupinfo": ("exec", {"startupinfo": object()}),
    "creationflags": ("exec", {"creationflags": 1}),
    "unknown": ("exec", {"no_such_option": 1}),
    "stdout=STDOUT": ("exec", {"stdout": subprocess.STDOUT}),
    "stdin=STDOUT": ("exec", {"stdin": subprocess.STDOUT}),
    "an int as stdout": ("exec", {"stdout": 10**6}),
    "a str as stdin": ("exec", {"stdin": "a name"}),
    "pass_fds": ("exec", {"pass_fds": [-1]}),
    "env": ("exec", {"env": {"A=B": "1"}}),
    "env's nul": ("exec", {"env": {"A": "\0"}}),
    "cwd's nul": ("exec", {"cwd": "\0"}),
    "cwd's type": ("exec", {"cwd": 1.5}),
    "user": ("exec", {"user": "nobody of this name"}),
    "user's type": ("exec", {"user": 1.5}),
    "negative user": ("exec", {"user": -1}),
    "group": ("exec", {"group": "no group of this name"}),
    "extra_groups": ("exec", {"extra_groups": "a string"}),
    "preexec_fn": ("exec", {"preexec_fn": 1}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_options(name: str) -> None:
    """The exceptions and their texts are asyncio's, and no descriptor is left."""
    kind, options = REFUSED[name]

    async def scenario(env: support.Env) -> None:
        loop = asyncio.get_running_loop()
        start: Any = loop.subprocess_exec if kind == "exec" else loop.subprocess_shell
        before = support.open_fds()
        try:
            await start(asyncio.SubprocessProtocol, "true", **options)
        except Exception as exc:
            env.log("raised", exc)
        assert not support.new_fds(before)

    trace = support.compare(scenario)
    assert trace[0][0] == "raised"


@pytest.mark.parametrize(
    "command", [["a", "list"], 1, None, bytearray(b"true"), Path("true")], ids=repr
)
def test_shell_command_of_wrong_type(run: Any, command: Any) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"^cmd must be a string$"):
            await asyncio.create_subprocess_shell(command)

    run(main)


@pytest.mark.parametrize("command", [[1], ["true", 1], ["tr\0ue"], [b"\0"], [None]], ids=repr)
def test_program_of_wrong_type(command: list[Any]) -> None:
    async def scenario(env: support.Env) -> None:
        try:
            await asyncio.create_subprocess_exec(*command)
        except Exception as exc:
            env.log("raised", exc)

    assert support.compare(scenario)[0][0] == "raised"


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("piped", [None, subprocess.PIPE], ids=["inherited", "piped"])
def test_bad_programs(run: Any, tmp_path: Path, piped: int | None) -> None:
    """uv#185: a child that could not be started leaves no descriptor and no zombie."""
    script = tmp_path / "not executable"
    script.write_text("#!/bin/sh\n")
    nonsense = tmp_path / "no program"
    nonsense.write_bytes(b"\0\1\2")
    nonsense.chmod(0o755)
    cases: list[tuple[type[OSError], list[Any], dict[str, Any]]] = [
        (FileNotFoundError, ["/no/such/program"], {}),
        (FileNotFoundError, ["no-such-program-in-path"], {}),
        (FileNotFoundError, ["true"], {"cwd": tmp_path / "missing"}),
        (NotADirectoryError, ["true"], {"cwd": script}),
        (NotADirectoryError, [script / "below"], {}),
        (PermissionError, [script], {}),
        (PermissionError, [tmp_path], {}),
        (OSError, [nonsense], {}),
    ]

    async def main() -> None:
        fds, children = support.open_fds(), support.living_children()
        for expected, command, options in cases:
            with pytest.raises(expected) as caught:
                await asyncio.create_subprocess_exec(
                    *command, stdin=piped, stdout=piped, stderr=piped, **options
                )
            assert type(caught.value) is expected
            assert str(caught.value.filename) == str(options.get("cwd", command[0]))
            assert support.new_fds(fds) == {}
            assert support.living_children().keys() <= children.keys()

    run(main)


def test_shell_reports_what_it_cannot_find(run: Any) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "no-such-program-in-path", stderr=subprocess.PIPE
        )
        _, errors = await process.communicate()
        assert process.returncode == 127
        assert b"not found" in errors

    run(main)


def test_protocol_factory_that_raises(run: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = support.living_children()
        with pytest.raises(ZeroDivisionError):
            await loop.subprocess_exec(lambda: 1 // 0, "true")  # type: ignore[arg-type,return-value]
        assert support.living_children() == before

    run(main)


def test_out_of_descriptors(loop_name: str) -> None:
    """Not a descriptor too few is an error, and the loop works on."""
    script = """
    import asyncio, os, resource

    async def main():
        process = await asyncio.create_subprocess_exec("true")
        await process.wait()
        lowest = os.dup(0)
        os.close(lowest)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        failures = 0
        for room in range(1, 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + room, hard))
            try:
                process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            except OSError as exc:
                assert exc.errno == 24, exc
                failures += 1
            else:
                assert await process.communicate(b"x") == (b"x", None)
                assert process.returncode == 0
        assert 2 <= failures <= 10, failures
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert os.dup(0) == lowest

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    """
    if loop_name == "asyncio":
        pytest.skip("asyncio leaves a child unwatched when the last descriptor went to its pipes")
    support.run_script(script, loop=loop_name)


def test_subclass_may_make_the_transport(loop_name: str) -> None:
    """_make_subprocess_transport() is a hook, as on asyncio's loop."""
    asked = []
    base: Any = asyncio.SelectorEventLoop
    if loop_name == "cpploop":
        import cpploop

        base = cpploop.Loop

    class Loop(base):  # type: ignore[misc]
        async def _make_subprocess_transport(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(args[1])
            return await super()._make_subprocess_transport(*args, **kwargs)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0

    support.run(Loop, main)
    assert asked == [("true",)]


def test_environment_of_this_interpreter(run: Any) -> None:
    """A child that is Python itself, as most are in tests of asyncio."""

    async def main() -> None:
        printed = await output(sys.executable, "-c", "print('hello from the child')")
        assert printed == b"hello from the child\n"

    run(main)
