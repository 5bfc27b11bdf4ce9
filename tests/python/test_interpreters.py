"""Sub-interpreters: the module is loaded in several at once, each with loops of its own.

Each test is a child process, because what goes wrong here goes wrong as a crash.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# The module that makes interpreters has had three names.
PRELUDE = """
import sys, textwrap, threading
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

def make():
    # The default is an interpreter with a GIL of its own where this Python has them.
    return interpreters.create()

def run(interpreter, source):
    failure = interpreters.run_string(interpreter, textwrap.dedent(source))
    assert failure is None, failure

PROGRAM = '''
import asyncio, cpploop

async def serve(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()

async def main():
    loop = asyncio.get_running_loop()
    assert type(loop) is cpploop.Loop, type(loop)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    async with server:
        for number in range(50):
            reader, writer = await asyncio.open_connection(*address)
            message = b"%d" % number * 100
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
            writer.close()
            await writer.wait_closed()
    called = []
    loop.call_later(0.001, called.append, 1)
    await asyncio.sleep(0.01)
    assert called == [1]

for _ in range(3):
    cpploop.run(main())
'''
"""


def run_child(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PRELUDE + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 13),
    reason="asyncio itself: loads once per process before 3.12, and 3.12's frees memory twice here",
)


def test_one_after_the_other() -> None:
    run_child("""
        for _ in range(3):
            interpreter = make()
            run(interpreter, PROGRAM)
            interpreters.destroy(interpreter)
        exec(PROGRAM, {})
        print("done")
    """)


def test_at_the_same_time() -> None:
    """Two interpreters and the main one, each in a thread, with loops that serve."""
    out = run_child("""
        made = [make() for _ in range(2)]
        failures = []

        def work(interpreter):
            try:
                run(interpreter, PROGRAM)
            except BaseException as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=work, args=(one,)) for one in made]
        for thread in threads:
            thread.start()
        exec(PROGRAM, {})
        for thread in threads:
            thread.join()
        assert not failures, failures
        for interpreter in made:
            interpreters.destroy(interpreter)
        print("done")
    """)
    assert out == "done\n"


def test_types_are_each_interpreters_own() -> None:
    run_child("""
        import cpploop
        first = make()
        run(first, '''
            import asyncio, cpploop
            loop = cpploop.new_event_loop()
            handle = loop.call_soon(print)
            assert isinstance(handle, asyncio.Handle)
            handle.cancel()
            loop.close()
        ''')
        loop = cpploop.new_event_loop()
        interpreters.destroy(first)
        handle = loop.call_soon(print)
        handle.cancel()
        loop.close()
    """)


def test_an_interpreter_that_ends_with_an_open_loop() -> None:
    """Its loop, server and transports are taken apart with it; nothing of the others' is."""
    run_child(f"""
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import support

        before = support.open_fds()
        interpreter = make()
        run(interpreter, '''
            import asyncio, cpploop, warnings
            warnings.simplefilter("ignore", ResourceWarning)
            loop = cpploop.new_event_loop()

            async def open_all():
                global server, streams
                server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
                streams = await asyncio.open_connection(*server.sockets[0].getsockname())
                loop.call_later(60, print)
                await asyncio.sleep(0.01)

            loop.run_until_complete(open_all())
        ''')
        # The loop's own, the listener, and both ends of a connection.
        assert len(support.new_fds(before)) >= 4
        interpreters.destroy(interpreter)
        assert support.new_fds(before) == {{}}
        exec(PROGRAM, {{}})
    """)
