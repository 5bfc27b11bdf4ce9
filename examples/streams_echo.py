"""Streams: the same transports, read and written in the order of the code.

A coroutine per connection instead of callbacks: simpler for request and answer, while a protocol is
better where messages come unasked. drain() is streams' flow control: it waits while the transport
has writing paused.

    python examples/streams_echo.py
    python -m cpploop examples/streams_echo.py
"""

import asyncio


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: send each line back until the client has no more."""
    lines = 0
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
        lines += 1
    writer.write(f"{lines} lines".encode())
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())

        # One line out, one line back.
        writer.write(b"one line\n")
        await writer.drain()
        print("readline:", await reader.readline())

        # The other ways to ask for a message: up to a separator, or an exact number of bytes.
        writer.writelines([b"name: value; ", b"more\n"])
        print("readuntil:", await reader.readuntil(b"; "))
        print("readexactly:", await reader.readexactly(5))

        # Many lines under way at once.
        for number in range(1000):
            writer.write(b"line %d\n" % number)
        await writer.drain()
        echoes = [await reader.readline() for _ in range(1000)]
        print("in order:", echoes == [b"line %d\n" % number for number in range(1000)])

        # Half-close: we have said everything, the server has not.
        writer.write_eof()
        print("the rest:", await reader.read())
        print("at the end:", reader.at_eof())
        writer.close()
        await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
