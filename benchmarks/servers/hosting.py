"""What the servers have in common: their options, their loop and the line that says "ready"."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import loops

BACKLOG = 1024
LARGE_BLOCK = 4 << 20
_ALPHABET = b"abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Place:
    """Where to serve: a port of the loopback interface (0 picks one) or a Unix path."""

    port: int
    unix: str | None
    certificate: str | None = None

    def tls(self) -> ssl.SSLContext | None:
        """The context to serve with; None for plain TCP."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context

    def listen(self) -> socket.socket:
        """A listening socket at this place."""
        if self.unix is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(self.unix)
        else:
            sock = socket.socket(socket.AF_INET)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", self.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
        return sock


def parser() -> argparse.ArgumentParser:
    """The options every server takes."""
    result = argparse.ArgumentParser()
    result.add_argument("--loop", required=True, choices=sorted(loops.LOOPS))
    result.add_argument("--port", type=int, default=0)
    result.add_argument("--unix", metavar="PATH")
    result.add_argument("--tls", metavar="PEM", help="serve TLS with this certificate and key")
    result.add_argument("--cold-malloc", action="store_true", help="see warm_malloc")
    return result


def warm_malloc() -> None:
    """Free one large block, as every process that lives a while does sooner or later.

    glibc gives blocks above a threshold (128 KiB at first) pages of their own, and raises the
    threshold when it sees one freed. A loop that reads into 256 KiB and shrinks the result never
    lets it see that, so until something else does, each of its reads costs mmap, page faults,
    mremap and munmap: four times the CPU of a small echo. Whether that happens hangs on what the
    program imported, so the figures are made with it settled in favour of all loops.
    """
    block = bytearray(LARGE_BLOCK)
    del block


def body(size: int) -> bytes:
    """The body the load generator expects: the alphabet over and over."""
    return (_ALPHABET * (size // len(_ALPHABET) + 1))[:size]


def settle_collector() -> None:
    """Begin the collector's counting afresh, as if the server had run for a while.

    The first collection of the middle generation goes through all that the imports made, for
    milliseconds, and comes when the allocations since the start have reached a number. With some
    loops' imports that is just before the server is ready, with others' it is among the first
    requests. Later as many objects go as come, and on most loops nothing is collected.
    """
    gc.collect()


def ready(port: int | None) -> None:
    """Tell the runner that connections are accepted from now on."""
    settle_collector()
    loop = type(asyncio.get_running_loop())
    line = {"ready": True, "loop": f"{loop.__module__}.{loop.__qualname__}", "port": port}
    print(json.dumps(line), flush=True)


def port_of(sock: socket.socket) -> int | None:
    """The port of a listening TCP socket, None of a Unix one."""
    return sock.getsockname()[1] if sock.family == socket.AF_INET else None


def host(options: argparse.Namespace, main: Callable[[Place], Awaitable[None]]) -> None:
    """Run `main` on the loop the options name, and nothing on any other."""
    name = options.loop

    async def checked() -> None:
        loops.check_running(name)
        await main(Place(options.port, options.unix, options.tls))

    try:
        factory = loops.LOOPS[name].load()
    except loops.LoopUnavailableError as error:
        sys.exit(f"{name}: {error}")
    if not options.cold_malloc:
        warm_malloc()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(checked())
