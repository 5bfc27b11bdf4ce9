"""An ASGI application under uvicorn with the httptools parser.

/bytes/N    N bytes, Content-Length
/chunked/N  N bytes in four chunks
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import hosting
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

CHUNKS = 4


class Application:
    """Answers from bodies made once, so that a request costs the server and little else."""

    def __init__(self) -> None:
        self._bodies: dict[str, bytes] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        kind, body = self._answer(scope["path"])
        headers = [(b"content-type", b"text/plain")]
        if kind == "bytes":
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        step = -(-len(body) // CHUNKS)
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _answer(self, path: str) -> tuple[str, bytes]:
        _, kind, size = path.split("/")
        if path not in self._bodies:
            self._bodies[path] = hosting.body(int(size))
        return kind, self._bodies[path]


async def serve(place: hosting.Place) -> None:
    config = uvicorn.Config(
        Application(),
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        host="127.0.0.1",
        port=place.port,
        uds=place.unix,
        ssl_certfile=place.certificate,
    )
    config.load()
    assert config.http_protocol_class is HttpToolsProtocol
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if not serving.done():
        hosting.ready(hosting.port_of(server.servers[0].sockets[0]))
    await serving


def main() -> None:
    hosting.host(hosting.parser().parse_args(), serve)


if __name__ == "__main__":
    main()
