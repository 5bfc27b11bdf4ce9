"""The life of a loop, from open to closed, and what a closed loop answers.

A loop made by hand is closed by hand; asyncio.run() and asyncio.Runner do it for you. What was
still waiting when the loop closed never runs, and a closed loop takes no new work: it says so.

    python examples/closed_loop.py
    python -m cpploop examples/closed_loop.py
"""

import asyncio
import socket
from collections.abc import Callable


def state(loop: asyncio.AbstractEventLoop) -> str:
    if loop.is_closed():
        return "closed"
    return "running" if loop.is_running() else "open"


def attempt(what: str, action: Callable[[], object]) -> None:
    """Do something that should fail, and print how it fails."""
    try:
        action()
    except RuntimeError as exc:
        print(f"{what}: RuntimeError: {exc}")
    else:
        print(f"{what}: no error")


async def look_around(loop: asyncio.AbstractEventLoop) -> int:
    print("inside a coroutine:", state(loop))
    return 42


def main() -> None:
    loop = asyncio.new_event_loop()
    print("made:", state(loop))
    print("result:", loop.run_until_complete(look_around(loop)))
    print("after running:", state(loop))

    # stop() before the future is done: the caller hears of it, and the loop is good for more.
    never_done = loop.create_future()
    loop.call_soon(loop.stop)
    attempt("stopped early", lambda: loop.run_until_complete(never_done))
    print("after stopping:", state(loop))

    # These two are dropped by close().
    loop.call_soon(print, "this callback never runs")
    loop.call_later(0, print, "nor does this timer")
    loop.close()
    print("after close():", state(loop))
    loop.close()
    print("closing again does no harm")

    with socket.socket() as unused:
        attempt("call_soon", lambda: loop.call_soon(print, "nope"))
        attempt("call_soon_threadsafe", lambda: loop.call_soon_threadsafe(print, "nope"))
        attempt("call_later", lambda: loop.call_later(1, print, "nope"))
        attempt("call_at", lambda: loop.call_at(loop.time(), print, "nope"))
        attempt("add_reader", lambda: loop.add_reader(unused, print, "nope"))
        attempt("run_forever", loop.run_forever)
        attempt("run_in_executor", lambda: loop.run_in_executor(None, print, "nope"))


if __name__ == "__main__":
    main()
