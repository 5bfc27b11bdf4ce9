"""A server of two processes that multiprocessing starts and that share a listening socket.

    python -m cpploop served_by_processes.py METHOD PORT

No process names a loop: each serves on what asyncio makes by default.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import sys
from typing import Any


def serve(listener: socket.socket) -> None:
    """Serve until a signal says otherwise, and answer first what has been asked."""
    import served_app
    from aiohttp import web

    web.run_app(served_app.make_aiohttp(), sock=listener, print=None)


def main(method: str, port: str) -> None:
    """Start the processes, tell them to end when this one is told to, and wait for them."""
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=128)
    context: Any = multiprocessing.get_context(method)
    processes = [context.Process(target=serve, args=(listener,)) for _ in range(2)]
    for process in processes:
        process.start()

    def end(number: int, frame: object) -> None:
        for process in processes:
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    # Ctrl-C reaches them without us; only waiting for them goes on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.closing(listener):
        for process in processes:
            process.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
