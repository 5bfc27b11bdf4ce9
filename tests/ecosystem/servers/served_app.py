"""What the servers serve: the loop that answers, and requests that take their time."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

SLOW_S = 1.5


def _describe() -> bytes:
    kind = type(asyncio.get_running_loop())
    return json.dumps(
        {"loop": f"{kind.__module__}.{kind.__qualname__}", "pid": os.getpid()}
    ).encode()


async def _answer(path: str) -> bytes:
    if path.startswith("/slow/"):
        # A file per request says that it has arrived.
        Path(os.environ["SERVED_MARKS"], path.rpartition("/")[2]).touch()
        await asyncio.sleep(SLOW_S)
    if path.startswith("/held/"):
        # Until whoever asked takes the file away.
        mark = Path(os.environ["SERVED_MARKS"], path.rpartition("/")[2])
        mark.touch()
        while mark.exists():
            await asyncio.sleep(0.05)
    return _describe()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve over ASGI."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    body = await _answer(scope["path"])
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_aiohttp(arguments: list[str] | None = None) -> Any:
    """Make an application of aiohttp's, as `python -m aiohttp.web` calls it."""
    from aiohttp import web

    async def handle(request: Any) -> Any:
        return web.Response(body=await _answer(request.path))

    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    return application


def __getattr__(name: str) -> Any:
    # Gunicorn's worker class, in an importable place as its users would have it.
    if name != "CpploopWorker":
        raise AttributeError(name)
    from uvicorn_worker import UvicornWorker

    class CpploopWorker(UvicornWorker):  # type: ignore[misc]
        CONFIG_KWARGS = {"loop": "cpploop:new_event_loop", "http": "h11"}  # noqa: RUF012

    return CpploopWorker
