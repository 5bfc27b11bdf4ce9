"""The end of the interpreter, with loops in every state."""

from __future__ import annotations

import pytest
import support

# Each prints "end" as its last act in the main program; what matters is a clean exit behind it.
PROGRAMS = {
    "loop open": """
        loop = factory()
        loop.call_later(100, print)
        """,
    "loop open in a cycle": """
        loop = factory()
        loop.me = loop
        loop.call_soon(print, loop)
        """,
    "closed by atexit": """
        import atexit
        loop = factory()
        loop.call_soon(print, "never")
        atexit.register(loop.close)
        """,
    "run by atexit": """
        import asyncio, atexit
        loop = factory()

        def at_the_end():
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()

        atexit.register(at_the_end)
        """,
    "made by atexit": """
        import asyncio, atexit

        def at_the_end():
            loop = factory()
            loop.run_until_complete(asyncio.sleep(0.001))
            loop.close()

        atexit.register(at_the_end)
        """,
    "daemon thread blocked in the poll": """
        import threading, time
        loop = factory()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        time.sleep(0.05)
        """,
    "daemon thread that is busy": """
        import threading, time
        loop = factory()

        def busy():
            loop.call_soon(busy)

        loop.call_soon(busy)
        threading.Thread(target=loop.run_forever, daemon=True).start()
        time.sleep(0.05)
        """,
    "daemon thread with timers and transports": """
        import asyncio, threading, time

        async def main():
            async def serve(reader, writer):
                while data := await reader.read(100):
                    writer.write(data)

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            while True:
                writer.write(b"ping")
                await reader.readexactly(4)
                await asyncio.sleep(0)

        def work():
            loop = factory()
            loop.run_until_complete(main())

        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
    "several daemon threads": """
        import threading, time

        def work():
            loop = factory()

            def tick():
                loop.call_later(0.0005, tick)

            tick()
            loop.run_forever()

        for _ in range(6):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
    "daemon thread that schedules into the main loop": """
        import asyncio, threading
        loop = factory()

        def work():
            while True:
                try:
                    loop.call_soon_threadsafe(int)
                except RuntimeError:
                    return

        threading.Thread(target=work, daemon=True).start()
        loop.run_until_complete(asyncio.sleep(0.05))
        """,
    "executor thread still works": """
        import asyncio, time
        loop = factory()
        loop.run_in_executor(None, time.sleep, 0.2)
        loop.run_until_complete(asyncio.sleep(0.01))
        """,
    "exit inside a callback": """
        import sys
        loop = factory()

        def leave():
            print("end", flush=True)
            sys.exit(0)

        loop.call_soon(leave)
        loop.run_forever()
        """,
    "tasks and transports left open": """
        import asyncio, socket
        loop = factory()
        first, second = socket.socketpair()

        async def main():
            global keep
            keep = await asyncio.open_connection(sock=first)
            keep += (asyncio.ensure_future(asyncio.sleep(100)),)

        loop.run_until_complete(main())
        """,
    "kept by a module": """
        import builtins, sys
        loop = factory()
        sys.kept_loop = loop
        builtins.kept_handle = loop.call_soon(print)
        """,
    "destructors that use the loop at the end": """
        loop = factory()

        class Last:
            def __init__(self, loop):
                self.loop = loop

            def __del__(self):
                try:
                    self.loop.call_soon(int)
                    self.loop.close()
                except RuntimeError:
                    pass

        last = Last(loop)
        loop.call_later(10, print, last)
        """,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_clean_end(loop_name: str, name: str) -> None:
    import textwrap

    source = textwrap.dedent(PROGRAMS[name]) + '\nprint("end", flush=True)\n'
    flags = ("-W", "ignore::ResourceWarning")
    result = support.run_script(source, loop=loop_name, flags=flags)
    assert result.stdout == "end\n"
    for word in ("Fatal", "Segmentation", "terminate called", "Aborted", "SystemError"):
        assert word not in result.stderr, result.stderr


def test_the_end_with_a_running_daemon_loop_many_times(loop_name: str) -> None:
    """The race between finalisation and a thread that takes the GIL back has many outcomes."""
    source = """
        import subprocess, sys, textwrap
        program = textwrap.dedent('''
            import sys, threading, time
            sys.path.insert(0, {path!r})
            import support
            factory = support.factory({name!r})

            def work(period):
                loop = factory()

                def tick():
                    loop.call_later(period, tick)

                tick()
                loop.run_forever()

            for period in (0, 0.00005, 0.0005):
                threading.Thread(target=work, args=(period,), daemon=True).start()
            time.sleep(float(sys.argv[1]))
        ''').format(path=support.__file__.rpartition("/")[0], name=sys.argv[1])
        for number in range(12):
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", program, str(0.01 + number * 0.0007)],
                capture_output=True, text=True, timeout=60,
            )
            if done.returncode or "Fatal" in done.stderr:
                print(done.returncode, done.stderr)
        print("end")
        """
    result = support.run_script(source, loop_name, loop=loop_name, timeout=120)
    assert result.stdout == "end\n"


def test_modules_are_unloaded_with_an_open_loop(loop_name: str) -> None:
    """The loop is found by the collector only after its own modules were taken apart (C5)."""
    source = """
        import asyncio, gc, sys
        gc.disable()
        loop = factory()
        loop.cycle = [loop, loop.call_later(5, print), loop.create_future()]
        del loop
        for name in list(sys.modules):
            if name.partition(".")[0] in ("asyncio", "cpploop", "support"):
                del sys.modules[name]
        """
    result = support.run_script(source, loop=loop_name, flags=("-W", "ignore"))
    assert "Fatal" not in result.stderr


def test_resource_warning_at_the_end(loop_name: str) -> None:
    """A loop still open at the end is reported as asyncio's is: on standard error, status 0."""
    source = """
        loop = factory()
        loop.call_soon(print)
        """
    result = support.run_script(source, loop=loop_name, flags=("-W", "always::ResourceWarning"))
    assert "unclosed event loop" in result.stderr
