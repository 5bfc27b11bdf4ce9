"""``python -m cpploop PROGRAM`` behaves as ``python PROGRAM``, but for the loop.

Each program is run both ways and what can be seen from outside is compared: standard output,
standard error and the exit status.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import zipapp
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import support

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="asyncio has no launcher of this kind"
)

Result = tuple[int, str, str]

WHICH_LOOP = """
import asyncio

async def main():
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]
"""


def python(
    *args: str,
    cwd: Path,
    flags: Sequence[str] = (),
    stdin: str = "",
    launcher: bool = False,
    env: dict[str, str] | None = None,
) -> Result:
    process = start(*args, cwd=cwd, flags=flags, launcher=launcher, env=env)
    return finish(process, stdin)


def start(
    *args: str,
    cwd: Path,
    flags: Sequence[str] = (),
    launcher: bool = False,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *flags, *(["-m", "cpploop"] if launcher else []), *args],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def finish(process: subprocess.Popen[str], stdin: str) -> Result:
    try:
        out, err = process.communicate(stdin, timeout=40 * support.TIME_SCALE)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def both(*args: str, cwd: Path, flags: Sequence[str] = (), stdin: str = "") -> Result:
    """Run python ARGS with and without the launcher; assert equality and return the outcome."""
    processes = [
        start(*args, cwd=cwd, flags=flags, launcher=launcher) for launcher in (False, True)
    ]
    expected, actual = (finish(process, stdin) for process in processes)
    assert actual == expected
    return actual


def write(path: Path, source: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source))
    return path


# How the same source is handed to the interpreter; each returns the arguments and the stdin.
Way = Callable[[Path, str], tuple[list[str], str]]


def as_script(folder: Path, source: str) -> tuple[list[str], str]:
    write(folder / "sub" / "program.py", source)
    return [os.path.join("sub", "program.py")], ""


def as_module(folder: Path, source: str) -> tuple[list[str], str]:
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "program.py", source)
    return ["-m", "package.program"], ""


def as_package(folder: Path, source: str) -> tuple[list[str], str]:
    write(folder / "package" / "__init__.py", "")
    write(folder / "package" / "__main__.py", source)
    return ["-m", "package"], ""


def as_command(folder: Path, source: str) -> tuple[list[str], str]:
    return ["-c", textwrap.dedent(source)], ""


def as_stdin(folder: Path, source: str) -> tuple[list[str], str]:
    return ["-"], textwrap.dedent(source)


def as_directory(folder: Path, source: str) -> tuple[list[str], str]:
    write(folder / "application" / "__main__.py", source)
    return ["application"], ""


def as_zipapp(folder: Path, source: str) -> tuple[list[str], str]:
    write(folder / "zipped" / "__main__.py", source)
    zipapp.create_archive(folder / "zipped", folder / "program.pyz")
    return ["program.pyz"], ""


WAYS = [as_script, as_module, as_package, as_command, as_stdin, as_directory, as_zipapp]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)

INSPECT = """
import sys
module = sys.modules["__main__"]
print(sys.argv)
print(sys.path)
print(sorted(globals()), module.__dict__ is globals())
print(globals().get("__file__"), __name__, __package__, __doc__, __builtins__)
print(__spec__ and (__spec__.name, __spec__.origin, __spec__.parent))
print(type(__loader__), getattr(__loader__, "name", None), getattr(__loader__, "path", None))
print(globals().get("__cached__"), globals().get("__annotations__"))
print(sys.flags)
print(sys._getframe().f_code.co_filename, sys._getframe().f_code.co_name)
"""

OUTCOMES = {
    "nothing": "",
    "exit_default": "import sys; sys.exit()",
    "exit_none": "raise SystemExit(None)",
    "exit_7": "import sys; sys.exit(7)",
    "exit_300": "import sys; sys.exit(300)",
    "exit_minus_1": "import sys; sys.exit(-1)",
    "exit_true": "import sys; sys.exit(True)",
    "exit_text": "import sys; sys.exit('no luck')",
    "exit_object": "import sys; sys.exit([1, 2])",
    "exit_tuple": "raise SystemExit(1, 2)",
    "error": "def f():\n    1 / 0\n\nf()\n",
    "error_at_once": "raise ValueError('at once')",
    "chained": "try:\n    {}['key']\nexcept KeyError as exc:\n    raise ValueError('x') from exc\n",
    "context": "try:\n    {}['key']\nexcept KeyError:\n    undefined_name\n",
    "suggestion": "import sys\nsys.exot()\n",
    "group": "raise ExceptionGroup('several', [ValueError(1), TypeError(2)])",
    "note": "exc = ValueError('x')\nexc.add_note('a note')\nraise exc\n",
    "base_exception": "class Stop(BaseException): pass\nraise Stop('now')\n",
    "import_error": "import a_module_that_does_not_exist",
    "recursion": "import sys\nsys.tracebacklimit = 3\ndef f(): f()\nf()\n",
    "generator_exit": "raise GeneratorExit",
    "hook": "import sys\nsys.excepthook = lambda *args: print('hook', args[0], args[1])\n1 / 0\n",
    "hook_traceback": """
        import sys, traceback
        def hook(kind, value, tb):
            print(kind is type(value), tb is value.__traceback__)
            print("".join(traceback.format_exception(kind, value, tb)))
            print(sys.last_type, sys.last_value is value, sys.last_traceback is tb)
            print(sys.excepthook is hook)
        sys.excepthook = hook
        def f():
            raise RuntimeError("seen by the hook")
        f()
        """,
    "atexit": "import atexit\natexit.register(print, 'bye')\n1 / 0\n",
    "atexit_error": "import atexit\natexit.register(divmod, 1, 0)\n",
    "thread_outlives": """
        import threading, time
        def work():
            time.sleep(0.1)
            print("done")
        threading.Thread(target=work).start()
        """,
    "thread_error": """
        import threading
        threading.excepthook = lambda args: print(args.exc_type)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        """,
    "unflushed": "import sys\nsys.stdout.write('no newline')\nsys.stderr.write('error')\n",
    "asyncio_error": """
        import asyncio
        async def inner():
            raise LookupError("inside the loop")
        async def main():
            await inner()
        def run():
            try:
                asyncio.run(main())
            except LookupError as exc:
                raise exc.with_traceback(None)
        run()
        """,
    "asyncio_exit": "import asyncio\n"
    "async def main():\n    raise SystemExit(5)\nasyncio.run(main())",
}


@every_way
@pytest.mark.parametrize("outcome", ["error", "exit_7", "exit_text", "nothing"])
def test_ends_as_python_itself_would(way: Way, outcome: str, tmp_path: Path) -> None:
    args, stdin = way(tmp_path, OUTCOMES[outcome])
    both(*args, cwd=tmp_path, stdin=stdin)


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
@pytest.mark.parametrize("way", [as_script, as_module], ids=lambda way: way.__name__)
def test_outcomes(way: Way, outcome: str, tmp_path: Path) -> None:
    args, stdin = way(tmp_path, OUTCOMES[outcome])
    both(*args, cwd=tmp_path, stdin=stdin)


@every_way
def test_main_module_argv_and_path(way: Way, tmp_path: Path) -> None:
    args, stdin = way(tmp_path, INSPECT)
    status, out, err = both(*args, "one", "-x", "--two=2", "-", cwd=tmp_path, stdin=stdin)
    assert status == 0 and err == ""
    assert "'one', '-x', '--two=2', '-']" in out.splitlines()[0]


@every_way
@pytest.mark.parametrize("flags", [["-P"], ["-I"], ["-X", "dev"], ["-W", "error", "-O"]], ids=str)
def test_interpreter_flags(way: Way, flags: list[str], tmp_path: Path) -> None:
    if "-I" in flags and "PYTHONPATH" in os.environ:
        pytest.skip("-I ignores the PYTHONPATH that cpploop is found by")
    if way in (as_module, as_package) and ("-P" in flags or "-I" in flags):
        # Neither finds a module in the working directory: the message must be the same too.
        args, stdin = way(tmp_path, INSPECT)
        status, _, err = both(*args, cwd=tmp_path, flags=flags)
        assert status == 1 and "No module named" in err
        return
    args, stdin = way(tmp_path, INSPECT)
    status, _, err = both(*args, "x", cwd=tmp_path, flags=flags, stdin=stdin)
    assert status == 0 and err == ""


@every_way
def test_keyboard_interrupt_dies_by_the_signal(way: Way, tmp_path: Path) -> None:
    """The parent sees death by SIGINT (-2), and the traceback is python's."""
    args, stdin = way(tmp_path, "def f():\n    raise KeyboardInterrupt\n\nf()\n")
    status, _, err = both(*args, cwd=tmp_path, stdin=stdin)
    assert status == -signal.SIGINT
    assert err.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("way", [as_script, as_module], ids=lambda way: way.__name__)
def test_ctrl_c_while_the_loop_sleeps(way: Way, tmp_path: Path) -> None:
    """Ctrl-C cancels the main task, which may clean up; then the process dies by SIGINT."""
    source = """
        import asyncio, signal
        # Whoever started the tests may have had it ignored, as a shell does in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        async def main():
            print("ready", flush=True)
            try:
                await asyncio.sleep(60)
            finally:
                print("cleaned up", flush=True)
        asyncio.run(main())
        """
    args, _ = way(tmp_path, source)
    process = start(*args, cwd=tmp_path, launcher=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process, "")
    assert (status, out) == (-signal.SIGINT, "cleaned up\n")
    assert "KeyboardInterrupt" in err and "cpploop/__main__" not in err and "_launch" not in err


@pytest.mark.parametrize(
    "source",
    ["def f(:\n    pass\n", "x = \n", "if True:\npass\n", "print('a'\n", "return 1\n", "'\\xq\n"],
)
@pytest.mark.parametrize("way", [as_script, as_command, as_module], ids=lambda way: way.__name__)
def test_syntax_errors(way: Way, source: str, tmp_path: Path) -> None:
    args, stdin = way(tmp_path, source)
    status, _, err = both(*args, cwd=tmp_path, stdin=stdin)
    assert (status == 1 and "SyntaxError" in err) or "IndentationError" in err


def test_command_is_dedented_where_python_does_so(tmp_path: Path) -> None:
    both("-c", "\n    x = 1\n    print(x)\n    1 / 0\n", cwd=tmp_path)
    both("-c", "    def f():\n        1 / 0\n    f()", cwd=tmp_path)


@pytest.mark.parametrize(
    "args",
    [
        ["missing.py"],
        ["missing/also.py"],
        ["-m", "missing_module"],
        ["-m", "package_without_main"],
        ["-m", "missing_package.module"],
        ["-m", "broken"],
        ["empty_directory"],
        ["unreadable.py/x.py"],
    ],
    ids=" ".join,
)
def test_programs_that_cannot_start(args: list[str], tmp_path: Path) -> None:
    write(tmp_path / "package_without_main" / "__init__.py", "")
    write(tmp_path / "broken.py", "import missing_module_inside")
    write(tmp_path / "unreadable.py", "")
    (tmp_path / "empty_directory").mkdir()
    status, out, err = both(*args, cwd=tmp_path)
    assert status in (1, 2) and out == "" and err


def test_symbolic_link_and_absolute_path(tmp_path: Path) -> None:
    """sys.path[0] is where the script is, not where the link to it is."""
    write(tmp_path / "real" / "program.py", INSPECT + "import neighbour\n")
    write(tmp_path / "real" / "neighbour.py", "print('imported')")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "link.py").symlink_to(tmp_path / "real" / "program.py")
    (tmp_path / "bin" / "relative.py").symlink_to(os.path.join("..", "real", "program.py"))
    for name in ("bin/link.py", "./bin/relative.py", str(tmp_path / "bin" / "link.py")):
        assert "imported" in both(name, cwd=tmp_path)[1]


def test_script_with_a_coding_line_and_one_without_an_extension(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n")
    (tmp_path / "bom.py").write_bytes(b"\xef\xbb\xbfprint('after the mark')\n")
    (tmp_path / "windows.py").write_bytes(b"print(1)\r\nprint('''a\r\nb'''.encode())\r\n")
    for name in ("latin", "bom.py", "windows.py"):
        assert both(name, cwd=tmp_path)[0] == 0


def test_compiled_script(tmp_path: Path) -> None:
    import py_compile

    source = write(tmp_path / "program.py", INSPECT)
    py_compile.compile(str(source), cfile=str(tmp_path / "compiled.pyc"))
    assert both("compiled.pyc", "x", cwd=tmp_path)[0] == 0


def test_program_on_standard_input_without_an_argument(tmp_path: Path) -> None:
    assert both(cwd=tmp_path, stdin=INSPECT)[0] == 0


def test_joined_options(tmp_path: Path) -> None:
    write(tmp_path / "module.py", "import sys; print(sys.argv)")
    assert both("-mmodule", "x", cwd=tmp_path)[0] == 0
    assert both("-cimport sys; print(sys.argv)", "x", cwd=tmp_path)[0] == 0


def test_program_reads_its_own_standard_input(tmp_path: Path) -> None:
    write(tmp_path / "program.py", "print(input().upper())")
    assert both("program.py", cwd=tmp_path, stdin="text\n")[1] == "TEXT\n"


def test_wrong_usage(tmp_path: Path) -> None:
    for args in (["-m"], ["-c"], ["--no-such-option"], ["-X", "dev"]):
        status, out, err = python(*args, cwd=tmp_path, launcher=True)
        assert (status, out) == (2, "") and "usage: python" in err
    status, out, err = python("--help", cwd=tmp_path, launcher=True)
    assert (status, err) == (0, "") and out.startswith("usage: python")
    status, out, err = python("--version", cwd=tmp_path, launcher=True)
    assert (status, err) == (0, "") and out.startswith("cpploop ")


# --------------------------------------------------------------------------- which loop


@every_way
def test_every_kind_of_program_gets_cpploop(way: Way, tmp_path: Path) -> None:
    args, stdin = way(tmp_path, WHICH_LOOP + "print(asyncio.run(main()))\n")
    assert python(*args, cwd=tmp_path, stdin=stdin, launcher=True) == (0, "cpploop\n", "")
    assert python(*args, cwd=tmp_path, stdin=stdin) == (0, "asyncio\n", "")


DEFAULT_LOOP = {
    "run": "print(asyncio.run(main()))",
    "run in debug mode": "print(asyncio.run(main(), debug=True))",
    "Runner": "with asyncio.Runner() as runner:\n    print(runner.run(main()))",
    "Runner twice": "for _ in range(2):\n    with asyncio.Runner() as runner:\n"
    "        result = runner.run(main())\nprint(result)",
    "new_event_loop": "loop = asyncio.new_event_loop()\n"
    "print(loop.run_until_complete(main()))\nloop.close()",
    "set_event_loop": "loop = asyncio.new_event_loop()\nasyncio.set_event_loop(loop)\n"
    "print(asyncio.get_event_loop().run_until_complete(main()))\nloop.close()",
    "in a thread": "import threading\n"
    "thread = threading.Thread(target=lambda: print(asyncio.run(main())))\n"
    "thread.start()\nthread.join()",
    "imported earlier": "from asyncio import run, new_event_loop\nprint(run(main()))",
    "IsolatedAsyncioTestCase": "import unittest\n"
    "class Test(unittest.IsolatedAsyncioTestCase):\n"
    "    async def test(self):\n        print(await main())\n"
    "unittest.TextTestRunner(stream=open('/dev/null', 'w')).run(Test('test'))",
    "default policy set again": "import warnings\nwarnings.simplefilter('ignore')\n"
    "asyncio.set_event_loop_policy(None)\nprint(asyncio.run(main()))\n"
    "asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())\nasyncio.run(main())",
}


@pytest.mark.parametrize("name", sorted(DEFAULT_LOOP))
def test_wherever_asyncio_would_make_its_default_loop(name: str, tmp_path: Path) -> None:
    write(tmp_path / "program.py", WHICH_LOOP + DEFAULT_LOOP[name] + "\n")
    status, out, err = python("program.py", cwd=tmp_path, launcher=True)
    assert (status, out) == (0, "cpploop\n"), err
    assert "Warning" not in err


def test_get_event_loop_without_a_loop_is_as_in_this_python(tmp_path: Path) -> None:
    """3.13 and older make one (3.12 and 3.13 may warn), newer raise: uv#702."""
    source = """
        import asyncio, warnings
        warnings.simplefilter("ignore")
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError as exc:
            print(exc)
        else:
            print("made one")
            assert asyncio.get_event_loop() is loop
            loop.close()
        """
    write(tmp_path / "program.py", source)
    both("program.py", cwd=tmp_path)


EXPLICIT_CHOICE = {
    "loop_factory": "with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:\n"
    "    print(runner.run(main()))",
    "by name": "loop = asyncio.SelectorEventLoop()\n"
    "print(loop.run_until_complete(main()))\nloop.close()",
    "policy": "import warnings\nwarnings.simplefilter('ignore')\n"
    "class Policy(asyncio.DefaultEventLoopPolicy):\n"
    "    def new_event_loop(self):\n        return asyncio.SelectorEventLoop()\n"
    "asyncio.set_event_loop_policy(Policy())\nprint(asyncio.run(main()))",
    "_loop_factory of a policy": "import warnings\nwarnings.simplefilter('ignore')\n"
    "class Policy(asyncio.DefaultEventLoopPolicy):\n"
    "    _loop_factory = asyncio.SelectorEventLoop\n"
    "asyncio.set_event_loop_policy(Policy())\nprint(asyncio.run(main()))",
}


@pytest.mark.parametrize("name", sorted(EXPLICIT_CHOICE))
def test_an_explicit_choice_wins(name: str, tmp_path: Path) -> None:
    write(tmp_path / "program.py", WHICH_LOOP + EXPLICIT_CHOICE[name] + "\n")
    status, out, err = python("program.py", cwd=tmp_path, launcher=True)
    assert (status, out) == (0, "asyncio\n"), err


def test_asyncio_is_only_changed_not_imported(tmp_path: Path) -> None:
    """multiprocessing.spawn is left alone until the program imports it, and then only patched."""
    source = """
        import sys
        print("multiprocessing.spawn" in sys.modules)
        import multiprocessing.spawn, asyncio.unix_events
        for module in (multiprocessing.spawn, asyncio.unix_events):
            print(type(module.__loader__).__name__, type(module.__spec__.loader).__name__)
        print([finder for finder in sys.meta_path if "cpploop" in type(finder).__module__])
        """
    write(tmp_path / "program.py", source)
    status, out, _ = python("program.py", cwd=tmp_path, launcher=True)
    assert status == 0
    assert out.splitlines() == [
        "False",
        "SourceFileLoader SourceFileLoader",
        "SourceFileLoader SourceFileLoader",
        "[]",
    ]


# --------------------------------------------------------------------------- children

CHILDREN = (
    WHICH_LOOP
    + """
import multiprocessing, sys

def child(queue, depth):
    queue.put(asyncio.run(main()))
    if depth:
        process = multiprocessing.Process(target=child, args=(queue, depth - 1))
        process.start()
        process.join()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    queue = multiprocessing.SimpleQueue()
    child(queue, 2)
    print([queue.get() for _ in range(3)])
"""
)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("way", [as_script, as_module, as_package], ids=lambda way: way.__name__)
def test_multiprocessing_children_and_grandchildren(way: Way, method: str, tmp_path: Path) -> None:
    args, _ = way(tmp_path, CHILDREN)
    if way is as_package:
        # What is defined in a __main__.py cannot be found by a spawned child, on any loop.
        write(tmp_path / "package" / "work.py", CHILDREN)
        write(
            tmp_path / "package" / "__main__.py",
            "import sys, multiprocessing\nfrom package.work import child\n"
            "if __name__ == '__main__':\n"
            "    multiprocessing.set_start_method(sys.argv[1])\n"
            "    queue = multiprocessing.SimpleQueue()\n"
            "    child(queue, 2)\n"
            "    print([queue.get() for _ in range(3)])\n",
        )
    flags = ["-W", "ignore::DeprecationWarning"]  # of fork in a process with threads
    status, out, err = python(*args, method, cwd=tmp_path, flags=flags, launcher=True)
    assert (status, out, err) == (0, "['cpploop', 'cpploop', 'cpploop']\n", "")
    status, out, err = python(*args, method, cwd=tmp_path, flags=flags)
    assert (status, out, err) == (0, "['asyncio', 'asyncio', 'asyncio']\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_process_pool(method: str, tmp_path: Path) -> None:
    source = (
        WHICH_LOOP
        + """
import concurrent.futures, multiprocessing, sys

def child(_):
    return asyncio.run(main())

async def parent():
    context = multiprocessing.get_context(sys.argv[1])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, child, 0)

if __name__ == "__main__":
    print(asyncio.run(parent()))
"""
    )
    write(tmp_path / "program.py", source)
    flags = ["-W", "ignore::DeprecationWarning"]
    status, out, err = python("program.py", method, cwd=tmp_path, flags=flags, launcher=True)
    assert (status, out, err) == (0, "cpploop\n", "")


def test_other_programs_are_not_concerned(tmp_path: Path) -> None:
    """Nothing is left in the environment: a program the program starts gets asyncio's loop."""
    write(tmp_path / "other.py", WHICH_LOOP + "print(asyncio.run(main()))\n")
    source = """
        import os, subprocess, sys
        print(sorted(name for name in os.environ if "CPPLOOP" in name), flush=True)
        subprocess.run([sys.executable, "other.py"], check=True)
        """
    write(tmp_path / "program.py", source)
    status, out, err = python("program.py", cwd=tmp_path, launcher=True)
    names = sorted(name for name in os.environ if "CPPLOOP" in name)
    assert (status, out, err) == (0, f"{names}\nasyncio\n", "")


def test_forked_child_inherits(tmp_path: Path) -> None:
    source = (
        WHICH_LOOP
        + """
import os
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
print(asyncio.run(main()), flush=True)
"""
    )
    write(tmp_path / "program.py", source)
    status, out, err = python("program.py", cwd=tmp_path, launcher=True)
    assert (status, out, err) == (0, "cpploop\ncpploop\n", "")


def test_asyncio_repl_runs_on_cpploop(tmp_path: Path) -> None:
    """``python -m cpploop -m asyncio``: the interactive console is a program like any other."""
    lines = "import asyncio\nprint(type(asyncio.get_running_loop()).__module__)\n"
    status, out, err = python(
        "-m",
        "asyncio",
        cwd=tmp_path,
        stdin=lines,
        launcher=True,
        env={"PYTHON_BASIC_REPL": "1", "TERM": "dumb"},
    )
    assert status == 0 and "cpploop" in out, err
