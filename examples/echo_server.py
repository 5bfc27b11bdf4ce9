"""An echo server written as a protocol: the loop calls its methods as things happen.

Alone, it plays one short scene with a visitor and ends:

    python examples/echo_server.py
    python -m cpploop examples/echo_server.py

Or it keeps serving, for echo_client.py or netcat in another terminal, until Ctrl-C:

    python examples/echo_server.py --serve 8888
"""

import argparse
import asyncio
import socket


class EchoServerProtocol(asyncio.Protocol):
    """One instance serves one connection and sends back whatever arrives on it."""

    transport: asyncio.Transport

    def __init__(self, gone: asyncio.Event | None = None) -> None:
        # Set when the connection is over, for a caller that wants to wait for that.
        self.gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Called once, before any data: the place to keep the transport.
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # The port is the kernel's choice, so only the host is worth printing.
        host = transport.get_extra_info("peername")[0]
        print(f"Connection from {host}.")

    def data_received(self, data: bytes) -> None:
        # TCP is a stream of bytes: an echo may ignore where messages begin and end, most protocols
        # may not (see line_protocol.py).
        message = data.decode(errors="replace").rstrip()
        print(f"Received: {message}")
        print(f"Echoing: {message}")
        self.transport.write(data)

    def eof_received(self) -> bool | None:
        # The peer will send no more. A false value lets the transport close itself, once what we
        # wrote has been sent; True would keep our direction open until we close it.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # Called once, at the end: None after an orderly close, else what went wrong.
        print("Connection closed." if exc is None else f"Connection lost: {exc!r}")
        if self.gone is not None:
            self.gone.set()


async def serve(port: int) -> None:
    """Serve until cancelled; asyncio.run cancels this when Ctrl-C is pressed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoServerProtocol, "127.0.0.1", port)
    host, port = server.sockets[0].getsockname()
    print(f"Serving on {host}:{port}", flush=True)
    async with server:
        await server.serve_forever()


def visit(address: tuple[str, int]) -> bytes:
    """A visitor with a plain blocking socket, so that the loop is the server's alone."""
    with socket.create_connection(address, timeout=10) as visitor:
        visitor.sendall(b"Hello, transports!\n")
        return visitor.recv(1024)


async def scene() -> None:
    """Serve one visitor, from the first byte to the last."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    # Port 0 lets the kernel choose a free one. The factory is called for each new connection.
    server = await loop.create_server(lambda: EchoServerProtocol(gone), "127.0.0.1", 0)
    async with server:
        print("Serving.")
        answer = await asyncio.to_thread(visit, server.sockets[0].getsockname())
        await gone.wait()
    print(f"The visitor heard: {answer.decode().rstrip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="echo server by protocols")
    parser.add_argument("--serve", type=int, metavar="PORT", help="serve until Ctrl-C")
    options = parser.parse_args()
    if options.serve is None:
        asyncio.run(scene())
        return
    try:
        asyncio.run(serve(options.serve))
    except KeyboardInterrupt:
        print("Server shut down.")


if __name__ == "__main__":
    main()
