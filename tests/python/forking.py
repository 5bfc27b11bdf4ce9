"""What tests of forked processes share: scripts that fork, each in a process of its own."""

from __future__ import annotations

import textwrap

import support

# Forking pytest would take its threads along.
PRELUDE = """
import asyncio, functools, gc, os, pathlib, signal, socket, sys, threading, time, warnings
warnings.simplefilter("ignore")

def in_child(function, *args):
    \"\"\"Run FUNCTION in a forked child; returns what it printed and its exit status.\"\"\"
    reader, writer = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(writer, 1)
            signal.alarm(20)
            function(*args)
            sys.stdout.flush()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    data = b""
    while chunk := os.read(reader, 65536):
        data += chunk
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return data.decode(), os.waitstatus_to_exitcode(status)

def attempt(call):
    try:
        return call()
    except RuntimeError as exc:
        return f"RuntimeError: {exc}"
"""


def script(source: str, loop: str, *args: str) -> str:
    result = support.run_script(PRELUDE + textwrap.dedent(source), *args, loop=loop, timeout=60)
    assert "Traceback" not in result.stderr, result.stderr
    return result.stdout
