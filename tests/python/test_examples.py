"""The programs of examples/ run unchanged on asyncio and on cpploop, and print the same.

Each is started as a user would start it: `python example.py` for asyncio, `python -m cpploop
example.py` for cpploop. What it prints is compared with the text kept here, so both loops are held
to the same words; a witness outside the program tells which loop it was given.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import support

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

PRINTED = {
    "echo_server.py": """\
Serving.
Connection from 127.0.0.1.
Received: Hello, transports!
Echoing: Hello, transports!
Connection closed.
The visitor heard: Hello, transports!
""",
    "echo_client.py": """\
Sending: Hello, world!
Received: Hello, world!
The connection is closed.
The echo was the message: True
""",
    "line_protocol.py": """\
Connection established.
Complete line: first line
Complete line: second line
Complete line: third line
Connection lost.
The client heard: Processed: first line
The client heard: Processed: second line
The client heard: Processed: third line
Connection established.
Complete line: good line
A line is too long, hanging up.
Connection lost.
The client heard: Processed: good line
The client heard: Error: line too long
""",
    "flow_control.py": """\
Paused: the buffer has passed the high-water mark.
The reader wakes up.
Resumed: the buffer has drained to the low-water mark.
Sent 8388608 bytes, received 8388608, intact: True
Every pause was followed by a resume: True
Never held more than the mark and one chunk: True
""",
    "tls_echo.py": """\
Connection from 127.0.0.1.
Received: A secret.
Echoing: A secret.
The client heard: A secret.
Spoken over: TLSv1.3
The certificate is for: 127.0.0.1, localhost
The context is ours: True
Half-close is possible: False
Connection closed.
A stranger's client: SSLCertVerificationError
""",
    "streams_echo.py": """\
readline: b'one line\\n'
readuntil: b'name: value; '
readexactly: b'more\\n'
in order: True
the rest: b'1002 lines'
at the end: True
""",
    "subprocess_protocol.py": """\
The child runs, with pipes for: stdin, stdout, stderr
Standard output: 3 lines, HELLO first
Standard error: The child has counted 3 lines.
The child exited with status 0.
Its pipes were lost: stdin, stdout, stderr
Exit and pipes were reported before the end: True
A signal afterwards: ProcessLookupError
The child runs, with pipes for: stdout
Standard output: ready
Terminated by: SIGTERM
Exit and pipes were reported before the end: True
A signal afterwards: ProcessLookupError
""",
    "udp_echo_server.py": """\
Serving.
Received from 127.0.0.1: Hello, datagrams!
Echoing: Hello, datagrams!
Endpoint closed.
The visitor heard: Hello, datagrams!
And from the address it had asked: True
""",
    "udp_echo_client.py": """\
Sending: Hello, world!
Received: Hello, world!
The endpoint is closed.
The echo was the message: True
Sending: Anybody there?
Error: ConnectionRefusedError
The endpoint is closed.
Nobody.
""",
    "closed_loop.py": """\
made: open
inside a coroutine: running
result: 42
after running: open
stopped early: RuntimeError: Event loop stopped before Future completed.
after stopping: open
after close(): closed
closing again does no harm
call_soon: RuntimeError: Event loop is closed
call_soon_threadsafe: RuntimeError: Event loop is closed
call_later: RuntimeError: Event loop is closed
call_at: RuntimeError: Event loop is closed
add_reader: RuntimeError: Event loop is closed
run_forever: RuntimeError: Event loop is closed
run_in_executor: RuntimeError: Event loop is closed
""",
}

# Each way of naming cpploop, and what its example prints.
WAYS = {
    "run_factory.py": "asyncio.run(loop_factory=...) runs on cpploop\n",
    "cpploop_run.py": "cpploop.run() runs on cpploop\n",
    "runner.py": """\
asyncio.Runner runs on cpploop
both coroutines had the same loop: True
closed afterwards: True
""",
    "by_hand.py": "a loop by hand: 42\nclosed: True\n",
    "install.py": "after install(), asyncio.run() runs on cpploop\n",
}

# Run in the example's process before the example: notes the type of every default loop made.
WITNESS = """
import asyncio, asyncio.events, os

def spy(original=asyncio.events.new_event_loop):
    loop = original()
    with open(os.environ["LOOP_WITNESS"], "a") as file:
        print(type(loop).__module__.partition(".")[0], file=file)
    return loop

asyncio.new_event_loop = asyncio.events.new_event_loop = spy
"""

TIMEOUT_S = 30 * support.TIME_SCALE


def command_for(loop_name: str, script: Path, *args: str) -> list[str]:
    """How a user runs SCRIPT on the loop; warnings, forgotten transports among them, are errors."""
    launcher = ["-m", "cpploop"] if loop_name == "cpploop" else []
    return [sys.executable, "-W", "error", *launcher, str(script), *args]


def run_program(
    command: Sequence[str], env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize("name", PRINTED)
def test_prints_the_same_on_every_loop(name: str, loop_name: str, tmp_path: Path) -> None:
    """The guide's programs, by protocols and by streams, word for word."""
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    witness = tmp_path / "loops"
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run_program(
        command_for(loop_name, EXAMPLES / name),
        {"PYTHONPATH": search, "LOOP_WITNESS": str(witness)},
    )
    assert done.stderr == ""
    assert done.stdout == PRINTED[name]
    assert done.returncode == 0
    assert set(witness.read_text().split()) == {loop_name}


def test_every_example_is_tested() -> None:
    helpers = {"certificates.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == PRINTED.keys() | helpers
    unchanged = {"any_program.py", "uvicorn_app.py"}
    assert {path.name for path in (EXAMPLES / "ways").glob("*.py")} == WAYS.keys() | unchanged


@pytest.mark.parametrize("name", PRINTED)
def test_debug_mode_finds_nothing(name: str, loop_name: str) -> None:
    """In Python's development mode an example works, prints the same and forgets nothing."""
    done = run_program(
        command_for(loop_name, EXAMPLES / name), {"PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1"}
    )
    assert done.stdout == PRINTED[name]
    assert done.returncode == 0
    # TLS is the one that fails a handshake on purpose, which debug mode logs.
    if name != "tls_echo.py":
        assert "Warning" not in done.stderr
        assert "Traceback" not in done.stderr


def serve_and_ask(loop_name: str, server_name: str, client_name: str, ask: str) -> list[str]:
    """What the server printed to its client, and to a Ctrl-C at the end."""
    server = subprocess.Popen(
        command_for(loop_name, EXAMPLES / server_name, "--serve", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            announced = re.fullmatch(r"Serving on 127\.0\.0\.1:(\d+)\n", server.stdout.readline())
            assert announced is not None
            client = run_program(command_for(loop_name, EXAMPLES / client_name, ask, announced[1]))
            assert client.stderr == ""
            wanted = PRINTED[client_name].splitlines(keepends=True)[:3]
            assert client.stdout == "".join(wanted)
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=TIMEOUT_S)
        finally:
            server.kill()
    assert err == ""
    assert server.returncode == 0
    return out.splitlines()


def test_server_and_client_as_two_programs(loop_name: str) -> None:
    printed = serve_and_ask(loop_name, "echo_server.py", "echo_client.py", "--connect")
    assert printed == [
        "Connection from 127.0.0.1.",
        "Received: Hello, world!",
        "Echoing: Hello, world!",
        "Connection closed.",
        "Server shut down.",
    ]


def test_client_without_a_server(loop_name: str) -> None:
    with socket.socket() as bound:
        # Bound and not listening: nobody else can take the port, and connecting is refused.
        bound.bind(("127.0.0.1", 0))
        port = str(bound.getsockname()[1])
        done = run_program(command_for(loop_name, EXAMPLES / "echo_client.py", "--connect", port))
    assert done.stdout == ""
    assert done.stderr == f"Nothing listens on port {port}.\n"
    assert done.returncode == 1


def test_udp_server_and_client_as_two_programs(loop_name: str) -> None:
    printed = serve_and_ask(loop_name, "udp_echo_server.py", "udp_echo_client.py", "--ask")
    assert printed == [
        "Received from 127.0.0.1: Hello, world!",
        "Echoing: Hello, world!",
        "Endpoint closed.",
        "Server shut down.",
    ]


needs_cpploop = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="an example of using cpploop"
)


@needs_cpploop
@pytest.mark.parametrize("name", WAYS)
def test_ways_of_use(name: str) -> None:
    if name == "run_factory.py" and sys.version_info < (3, 12):
        pytest.skip("asyncio.run() has loop_factory from Python 3.12 on")
    if name == "install.py" and sys.version_info >= (3, 16):
        pytest.skip("asyncio has no policies from Python 3.16 on")
    done = run_program([sys.executable, "-W", "error", str(EXAMPLES / "ways" / name)])
    assert done.stderr == ""
    assert done.stdout == WAYS[name]
    assert done.returncode == 0


def test_any_program(loop_name: str) -> None:
    """The launcher gives cpploop to a program that does not mention it; python itself does not."""
    done = run_program(command_for(loop_name, EXAMPLES / "ways" / "any_program.py"))
    assert done.stderr == ""
    assert done.stdout == f"this program runs on {loop_name}\n"


@contextlib.contextmanager
def uvicorn_serving(folder: Path, app: str, loop: str) -> Iterator[int]:
    """A uvicorn of its own process; yields its port."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(folder), app, "--loop", loop]
    process = subprocess.Popen(
        [*command, "--port", "0", "--no-use-colors"], stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                    yield int(found[1])
                    break
            else:
                pytest.fail("uvicorn did not start:\n" + "".join(lines))
        finally:
            process.kill()


def test_uvicorn_takes_the_factory(loop_name: str) -> None:
    """`uvicorn --loop cpploop:new_event_loop`, as the application's own docstring says."""
    pytest.importorskip("uvicorn")
    loop = "cpploop:new_event_loop" if loop_name == "cpploop" else "asyncio"
    with uvicorn_serving(EXAMPLES / "ways", "uvicorn_app:app", loop) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.read() == f"served on {loop_name}\n".encode()


def demo_needs() -> None:
    for package in ("uvicorn", "httptools", "websockets", "httpx", "trustme"):
        pytest.importorskip(package)


@pytest.mark.slow
@pytest.mark.timeout(120 * support.TIME_SCALE)
def test_demo_checks(loop_name: str) -> None:
    """The demo's own checks, over TCP, a Unix socket and TLS."""
    demo_needs()
    command = [sys.executable, str(EXAMPLES / "demo" / "run.py"), "--only-checks"]
    done = subprocess.run(
        [*command, "--loop", loop_name], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every answer right") == 3


# Ways to break the demo's application: the text to replace, its replacement, what must be reported.
SABOTAGE = {
    "wrong digest": ("digest.hexdigest()", "'0' * 64", "upload"),
    "lost chunk": ("for index in range(chunks):", "for index in range(chunks - 1):", "stream"),
    "exception": ('"method": method', '"method": 1 // 0', "json"),
    "no start": ("import hashlib", "import hashlib_is_not_there", "ended at start"),
    "no shutdown": ('lifespan_steps.append("shutdown")', "1 // 0", "ended badly"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SABOTAGE)
@pytest.mark.timeout(120 * support.TIME_SCALE)
def test_demo_fails_when_an_answer_is_wrong(kind: str, tmp_path: Path) -> None:
    """The demo's exit status is honest: each kind of wrong answer makes it 1."""
    demo_needs()
    old, new, reported = SABOTAGE[kind]
    demo = tmp_path / "demo"
    shutil.copytree(EXAMPLES / "demo", demo, ignore=shutil.ignore_patterns("__pycache__"))
    app = (demo / "app.py").read_text()
    assert old in app
    # The client takes what it expects from app.py too: leave that in place for it.
    (demo / "expected.py").write_text(app)
    (demo / "app.py").write_text(app.replace(old, new))
    for name in ("client.py", "load.py"):
        source = (demo / name).read_text()
        (demo / name).write_text(source.replace("from app import", "from expected import"))
    command = [sys.executable, str(demo / "run.py"), "--only-checks", "--loop", "asyncio"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    assert reported in done.stdout
    assert "WRONG after" in done.stdout


def test_demo_without_its_loop(tmp_path: Path) -> None:
    """A loop that is not installed is one line and a failure, not a comparison without it."""
    demo_needs()
    blocker = "import sys, importlib.util as u; f = u.find_spec\n"
    blocker += "u.find_spec = lambda name, *a: None if name == 'uvloop' else f(name, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run_program(
        [sys.executable, str(EXAMPLES / "demo" / "run.py"), "--loop", "uvloop"],
        {"PYTHONPATH": search},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("uvloop is not installed for ")
