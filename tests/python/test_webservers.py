"""uvicorn and aiohttp serve many connections for a while; descriptors and memory stay flat.

Short by default; with CPPLOOP_LONG=1 each server works for a minute under 64 connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
import support

CONNECTIONS = 64
SECONDS = 60.0 if support.LONG else 1.5
# What a heap may still grow by after the warm-up: arenas and caches, not one leak per request.
GROWTH_KIB = 6 * 1024

APPLICATION = """
import asyncio, gc, json, os, sys

def stats():
    gc.collect()
    return json.dumps({"fds": len(os.listdir("/proc/self/fd")), "rss": support.rss_kib(),
                       "loop": type(asyncio.get_running_loop()).__module__}).encode()
"""

UVICORN = (
    APPLICATION
    + """
import uvicorn

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    path = scope["path"]
    headers = []
    if path == "/stats":
        parts = [stats()]
    elif path == "/echo":
        parts = [body]
    elif path.startswith("/stream/"):
        parts = [b"x" * 1000] * int(path.rpartition("/")[2])
    else:
        parts = [b"y" * int(path.rpartition("/")[2])]
    if not path.startswith("/stream/"):
        headers = [(b"content-length", b"%d" % sum(map(len, parts)))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

async def main():
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off",
                            http=sys.argv[1], ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.should_exit = True
    await task

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
)

AIOHTTP = (
    APPLICATION
    + """
from aiohttp import web

async def echo(request):
    return web.Response(body=await request.read())

async def fixed(request):
    return web.Response(body=b"y" * int(request.match_info["size"]))

async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(int(request.match_info["count"])):
        await response.write(b"x" * 1000)
    await response.write_eof()
    return response

async def send_stats(request):
    return web.Response(body=stats())

async def main():
    app = web.Application()
    app.router.add_post("/echo", echo)
    app.router.add_get("/size/{size}", fixed)
    app.router.add_get("/stream/{count}", stream)
    app.router.add_get("/stats", send_stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()

with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""
)


class Client:
    """One keep-alive connection of a plain HTTP/1.1 client, over asyncio's own loop."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert status.startswith("HTTP/1.1 200"), status
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        assert headers["transfer-encoding"] == "chunked"
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)


async def load(port: int, seconds: float) -> int:
    """Requests of every kind over many connections, each answer checked; returns their number."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    done = 0

    async def connection(number: int) -> None:
        nonlocal done
        rng = random.Random(number)
        while loop.time() < end:
            async with Client(port) as client:
                # Some connections live long and some come and go.
                for _ in range(20 if number % 2 else 100_000):
                    if loop.time() >= end:
                        break
                    match rng.randrange(4):
                        case 0:
                            body = rng.randbytes(rng.choice([0, 10, 3000, 70_000]))
                            assert await client.request("POST", "/echo", body) == body
                        case 1:
                            count = rng.choice([0, 1, 20])
                            got = await client.request("GET", f"/stream/{count}")
                            assert got == b"x" * 1000 * count
                        case _:
                            size = rng.choice([0, 2, 1000, 200_000])
                            got = await client.request("GET", f"/size/{size}")
                            assert got == b"y" * size
                    done += 1

    await asyncio.gather(*(connection(number) for number in range(CONNECTIONS)))
    return done


async def stats(port: int) -> dict[str, Any]:
    async with Client(port) as client:
        result: dict[str, Any] = json.loads(await client.request("GET", "/stats"))
        return result


@contextlib.asynccontextmanager
async def server(source: str, loop_name: str, *args: str) -> AsyncIterator[int]:
    """The server in a process of its own; yields its port and checks how it ends."""
    process = subprocess.Popen(
        [*support.script_command(source, loop_name), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    try:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.stderr.read())
        yield int(line)
        _, errors = process.communicate("", timeout=30 * support.TIME_SCALE)
        assert process.returncode == 0, errors
        assert errors == ""
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


async def soak(source: str, loop_name: str, *args: str) -> None:
    async with server(source, loop_name, *args) as port:
        await load(port, max(1.0, SECONDS / 3))
        await asyncio.sleep(0.2)
        before = await stats(port)
        assert before["loop"].startswith(loop_name)
        done = await load(port, SECONDS)
        deadline = time.monotonic() + 10 * support.TIME_SCALE
        # The server closes its ends in its own time.
        while (after := await stats(port))["fds"] > before["fds"] and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        assert done > CONNECTIONS
        assert after["fds"] <= before["fds"], (before, after)
        assert after["rss"] - before["rss"] < GROWTH_KIB, (before, after, done)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_uvicorn(loop_name: str, http: str) -> None:
    """uvicorn#2435"""
    pytest.importorskip("uvicorn")
    pytest.importorskip(http)
    asyncio.run(soak(UVICORN, loop_name, http))


@pytest.mark.timeout(300)
def test_aiohttp(loop_name: str) -> None:
    pytest.importorskip("aiohttp")
    asyncio.run(soak(AIOHTTP, loop_name))
