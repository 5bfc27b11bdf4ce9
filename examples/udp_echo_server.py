"""A UDP echo server: no connections, one protocol for everybody, a datagram in, a datagram out.

Alone, it plays one short scene with a visitor and ends:

    python examples/udp_echo_server.py
    python -m cpploop examples/udp_echo_server.py

Or it keeps serving, for udp_echo_client.py in another terminal, until Ctrl-C:

    python examples/udp_echo_server.py --serve 9999
"""

import argparse
import asyncio
import socket
from typing import cast


class EchoServerProtocol(asyncio.DatagramProtocol):
    """One instance serves the whole endpoint: UDP knows senders, not connections."""

    transport: asyncio.DatagramTransport

    def __init__(self, gone: asyncio.Event | None = None) -> None:
        # Set when the endpoint is closed, for a caller that wants to wait for that.
        self.gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # "Made" once for the endpoint, when it is ready to receive; nobody has called yet. A cast,
        # because before Python 3.12 asyncio's own transport is no instance of the class.
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        # A datagram comes whole or not at all, and says who sent it. The answer needs no more.
        message = data.decode(errors="replace")
        print(f"Received from {addr[0]}: {message}")
        print(f"Echoing: {message}")
        self.transport.sendto(data, addr)

    def error_received(self, exc: Exception) -> None:
        # An answer could not be sent. The endpoint goes on: the next sender is another one.
        print(f"Could not answer: {exc!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        print("Endpoint closed." if exc is None else f"Endpoint lost: {exc!r}")
        if self.gone is not None:
            self.gone.set()


async def serve(port: int) -> None:
    """Serve until cancelled; asyncio.run cancels this when Ctrl-C is pressed."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: EchoServerProtocol(gone), local_addr=("127.0.0.1", port)
    )
    host, port = transport.get_extra_info("sockname")
    print(f"Serving on {host}:{port}", flush=True)
    try:
        await gone.wait()
    finally:
        transport.close()


def visit(address: tuple[str, int]) -> tuple[bytes, bool]:
    """A visitor with a plain blocking socket; the answer, and whether it came from the server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as visitor:
        visitor.settimeout(10)
        visitor.sendto(b"Hello, datagrams!", address)
        answer, sender = visitor.recvfrom(1024)
        return answer, sender == address


async def scene() -> None:
    """Serve one visitor and close."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    # Port 0 lets the kernel choose a free one. The factory is called once, for the endpoint.
    transport, _ = await loop.create_datagram_endpoint(
        lambda: EchoServerProtocol(gone), local_addr=("127.0.0.1", 0)
    )
    print("Serving.")
    answer, from_server = await asyncio.to_thread(visit, transport.get_extra_info("sockname"))
    transport.close()
    await gone.wait()
    print(f"The visitor heard: {answer.decode()}")
    print(f"And from the address it had asked: {from_server}")


def main() -> None:
    parser = argparse.ArgumentParser(description="UDP echo server")
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
