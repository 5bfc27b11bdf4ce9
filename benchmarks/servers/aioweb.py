"""The same answers under aiohttp.web, with aiohttp's compiled parser."""

from __future__ import annotations

import asyncio

import hosting
from aiohttp import http_parser, web

CHUNKS = 4

_bodies: dict[str, bytes] = {}


def body_for(request: web.Request) -> bytes:
    size = request.match_info["size"]
    if size not in _bodies:
        _bodies[size] = hosting.body(int(size))
    return _bodies[size]


async def whole(request: web.Request) -> web.Response:
    return web.Response(body=body_for(request), content_type="text/plain")


async def chunked(request: web.Request) -> web.StreamResponse:
    body = body_for(request)
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    step = -(-len(body) // CHUNKS)
    for start in range(0, len(body), step):
        await response.write(body[start : start + step])
    await response.write_eof()
    return response


async def serve(place: hosting.Place) -> None:
    parser = http_parser.HttpRequestParser
    assert parser is not http_parser.HttpRequestParserPy, "aiohttp runs without its C parser"
    application = web.Application()
    application.router.add_get("/bytes/{size}", whole)
    application.router.add_get("/chunked/{size}", chunked)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    if place.unix is not None:
        await web.UnixSite(
            runner, place.unix, backlog=hosting.BACKLOG, ssl_context=place.tls()
        ).start()
        hosting.ready(None)
    else:
        await web.TCPSite(
            runner, "127.0.0.1", place.port, backlog=hosting.BACKLOG, ssl_context=place.tls()
        ).start()
        hosting.ready(runner.addresses[0][1])
    await asyncio.Event().wait()


def main() -> None:
    hosting.host(hosting.parser().parse_args(), serve)


if __name__ == "__main__":
    main()
