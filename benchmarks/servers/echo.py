"""Echo servers: what comes in goes out, by each of the ways asyncio offers.

proto     a Protocol whose data_received writes
buffered  a BufferedProtocol with one buffer per connection
streams   start_server, StreamReader.read and StreamWriter.write with drain
sock      loop.sock_recv and loop.sock_sendall, a task per connection

--flood N beside that keeps N callbacks ready at all times: each schedules itself again.
"""

from __future__ import annotations

import asyncio
import socket

import hosting

from protocols import READ_SIZE, EchoBufferedProtocol, EchoProtocol, echo_stream


async def echo_sock(connection: socket.socket) -> None:
    """One connection of the sock server."""
    loop = asyncio.get_running_loop()
    with connection:
        try:
            while data := await loop.sock_recv(connection, READ_SIZE):
                await loop.sock_sendall(connection, data)
        except ConnectionError:
            pass


async def serve_protocols(place: hosting.Place, factory: type[asyncio.BaseProtocol]) -> None:
    loop = asyncio.get_running_loop()
    if place.unix is not None:
        server = await loop.create_unix_server(
            factory, place.unix, backlog=hosting.BACKLOG, ssl=place.tls()
        )
        hosting.ready(None)
    else:
        server = await loop.create_server(
            factory, "127.0.0.1", place.port, backlog=hosting.BACKLOG, ssl=place.tls()
        )
        hosting.ready(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


async def serve_streams(place: hosting.Place) -> None:
    if place.unix is not None:
        server = await asyncio.start_unix_server(echo_stream, place.unix, backlog=hosting.BACKLOG)
        hosting.ready(None)
    else:
        server = await asyncio.start_server(
            echo_stream, "127.0.0.1", place.port, backlog=hosting.BACKLOG, ssl=place.tls()
        )
        hosting.ready(server.sockets[0].getsockname()[1])
    await asyncio.Event().wait()


async def serve_sock(place: hosting.Place) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with place.listen() as listener:
        hosting.ready(hosting.port_of(listener))
        while True:
            connection, _ = await loop.sock_accept(listener)
            if place.unix is None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(echo_sock(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def flood(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """Keep the loop busy with callbacks, so that I/O has to find its turn between them."""

    def again() -> None:
        loop.call_soon(again)

    for _ in range(count):
        loop.call_soon(again)


def main() -> None:
    parser = hosting.parser()
    parser.add_argument("mode", choices=["proto", "buffered", "streams", "sock"])
    parser.add_argument("--flood", type=int, default=0, metavar="N", help="callbacks beside it")
    options = parser.parse_args()

    async def serve(place: hosting.Place) -> None:
        flood(asyncio.get_running_loop(), options.flood)
        if options.mode == "proto":
            await serve_protocols(place, EchoProtocol)
        elif options.mode == "buffered":
            await serve_protocols(place, EchoBufferedProtocol)
        elif options.mode == "streams":
            await serve_streams(place)
        else:
            await serve_sock(place)

    hosting.host(options, serve)


if __name__ == "__main__":
    main()
