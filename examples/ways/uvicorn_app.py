"""An application for any ASGI server that takes a loop factory.

uvicorn --app-dir examples/ways uvicorn_app:app --loop cpploop:new_event_loop
"""

import asyncio
from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer every request with the name of the loop that serves it."""
    if scope["type"] != "http":
        # A server takes this for "no lifespan here", and goes on.
        raise NotImplementedError(scope["type"])
    loop = asyncio.get_running_loop()
    body = f"served on {type(loop).__module__.partition('.')[0]}\n".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
