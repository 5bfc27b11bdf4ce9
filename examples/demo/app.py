"""A small ASGI application without any framework.

It shows a server everything that the demo wants to see work: plain JSON, a streaming response, an
upload, a WebSocket and the lifespan messages. `/loop` names the event loop that runs it, so that a
client can tell whether it is really talking to the loop it asked for.

    uvicorn --app-dir examples/demo app:app --loop cpploop:new_event_loop
"""

import asyncio
import hashlib
import json
import platform
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qsl

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PLAIN_BODY = b"Hello from an ASGI application.\n"

# What the lifespan has been through so far; /loop reports it.
lifespan_steps: list[str] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application: one branch for each kind of connection a server can announce."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope, receive, send)
    else:
        await http(scope, receive, send)


async def lifespan(receive: Receive, send: Send) -> None:
    """Answer the server's start-up and shutdown messages, and say so on standard output."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            lifespan_steps.append("startup")
            await send({"type": "lifespan.startup.complete"})
        else:
            lifespan_steps.append("shutdown")
            print("lifespan:", ", ".join(lifespan_steps), flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return


async def http(scope: Scope, receive: Receive, send: Send) -> None:
    """Route one HTTP request."""
    method, path = scope["method"], scope["path"]
    query = dict(parse_qsl(scope["query_string"].decode("ascii")))
    if path == "/plain":
        await respond(send, 200, PLAIN_BODY, b"text/plain; charset=utf-8")
    elif path == "/loop":
        await respond_json(send, 200, describe_loop(scope))
    elif path == "/echo":
        await respond_json(send, 200, {"method": method, "query": query})
    elif path == "/stream":
        await stream(send, int(query["chunks"]), int(query["size"]), float(query["pause"]))
    elif path == "/upload" and method == "POST":
        await upload(receive, send)
    else:
        await respond_json(send, 404, {"error": f"nothing at {path}"})


def describe_loop(scope: Scope) -> dict[str, Any]:
    """Name the loop, and how this request reached it."""
    loop_type = type(asyncio.get_running_loop())
    return {
        "loop": f"{loop_type.__module__}.{loop_type.__qualname__}",
        "python": platform.python_version(),
        "scheme": scope["scheme"],
        "lifespan": lifespan_steps,
    }


def stream_chunk(index: int, size: int) -> bytes:
    """Chunk number `index`: recognisable, so that a lost or swapped one cannot pass."""
    return (f"chunk {index:06d} ".encode() * (size // 13 + 1))[:size]


async def stream(send: Send, chunks: int, size: int, pause: float) -> None:
    """Send a body piece by piece, with a pause before each piece but the first."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/octet-stream")],
        }
    )
    for index in range(chunks):
        if index and pause:
            await asyncio.sleep(pause)
        body = stream_chunk(index, size)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def upload(receive: Receive, send: Send) -> None:
    """Read a body of any length without holding it, and return its length and its SHA-256."""
    length, digest, more = 0, hashlib.sha256(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body = message.get("body", b"")
        length += len(body)
        digest.update(body)
        more = message.get("more_body", False)
    await respond_json(send, 200, {"length": length, "sha256": digest.hexdigest()})


async def respond_json(send: Send, status: int, value: object) -> None:
    await respond(send, status, json.dumps(value).encode(), b"application/json")


async def respond(send: Send, status: int, body: bytes, content_type: bytes) -> None:
    """Send one complete response: its header and its body, as every framework does."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """Echo each message; the text "close" makes the server end the conversation with code 4000."""
    await receive()
    if scope["path"] != "/ws":
        await send({"type": "websocket.close", "code": 4404})
        return
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        text, data = message.get("text"), message.get("bytes")
        if text == "close":
            await send({"type": "websocket.close", "code": 4000, "reason": "as you asked"})
            return
        if text is not None:
            await send({"type": "websocket.send", "text": text})
        else:
            await send({"type": "websocket.send", "bytes": data})
