"""A UDP echo client: a remote address instead of a connection, and a time-out instead of a promise.

Alone, it brings a small server of its own, and then asks where nobody answers; or it talks to
udp_echo_server.py in another terminal:

    python examples/udp_echo_client.py
    python -m cpploop examples/udp_echo_client.py
    python examples/udp_echo_client.py --ask 9999
"""

import argparse
import asyncio
from typing import cast


class EchoClientProtocol(asyncio.DatagramProtocol):
    """Send one message and resolve `answer` with what comes back, or with the error that does."""

    transport: asyncio.DatagramTransport

    def __init__(self, message: str, answer: asyncio.Future[str]) -> None:
        self.message = message
        self.answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before Python 3.12 asyncio's own transport is no instance of the class.
        self.transport = cast(asyncio.DatagramTransport, transport)
        print(f"Sending: {self.message}")
        # The endpoint has its one remote address, so none is given here.
        self.transport.sendto(self.message.encode())

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        print(f"Received: {data.decode()}")
        # Datagrams may come twice, or late; whoever waited may have given up.
        if not self.answer.done():
            self.answer.set_result(data.decode())

    def error_received(self, exc: Exception) -> None:
        # "Connection refused" is how the other machine says that nothing listens on that port. The
        # transport stays usable: a server may be there next time.
        print(f"Error: {type(exc).__name__}")
        if not self.answer.done():
            self.answer.set_exception(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        print("The endpoint is closed.")


class SilentEcho(asyncio.DatagramProtocol):
    """The server of the short scene: echoes and prints nothing."""

    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def ask(port: int, message: str) -> str:
    """Send the message and wait for the answer, but not for ever: UDP may lose either."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: EchoClientProtocol(message, answer), remote_addr=("127.0.0.1", port)
    )
    try:
        async with asyncio.timeout(10):
            return await answer
    finally:
        transport.close()
        # connection_lost() runs in the next turn.
        await asyncio.sleep(0)


async def scene() -> None:
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(SilentEcho, local_addr=("127.0.0.1", 0))
    port = server.get_extra_info("sockname")[1]
    echo = await ask(port, "Hello, world!")
    print(f"The echo was the message: {echo == 'Hello, world!'}")
    server.close()
    await asyncio.sleep(0)
    # The server is gone.
    try:
        await ask(port, "Anybody there?")
    except ConnectionRefusedError:
        print("Nobody.")


def main() -> None:
    parser = argparse.ArgumentParser(description="UDP echo client")
    parser.add_argument("--ask", type=int, metavar="PORT", help="a server that is running")
    options = parser.parse_args()
    if options.ask is None:
        asyncio.run(scene())
        return
    try:
        asyncio.run(ask(options.ask, "Hello, world!"))
    except (ConnectionRefusedError, TimeoutError):
        raise SystemExit(f"Nobody answers on port {options.ask}.") from None


if __name__ == "__main__":
    main()
