"""An echo client written as a protocol, with a future to tell the coroutine that it is done.

Alone, it brings a small server of its own; or it talks to echo_server.py in another terminal:

    python examples/echo_client.py
    python -m cpploop examples/echo_client.py
    python examples/echo_client.py --connect 8888
"""

import argparse
import asyncio


class EchoClientProtocol(asyncio.Protocol):
    """Send one message, collect the echo, and resolve `on_con_lost` when the connection is over."""

    def __init__(self, message: str, on_con_lost: asyncio.Future[str]) -> None:
        self.message = message
        self.on_con_lost = on_con_lost
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        print(f"Sending: {self.message}")
        transport.write(self.message.encode())
        # "That was all": the server sees our end of file, and can still answer. Without it both
        # sides would wait for each other for ever.
        transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool | None:
        # The server has sent everything. Nothing returned means: close.
        print(f"Received: {self.received.decode()}")
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        print("The connection is closed.")
        # Whoever waits may have given up meanwhile.
        if self.on_con_lost.done():
            return
        if exc is None:
            self.on_con_lost.set_result(self.received.decode())
        else:
            self.on_con_lost.set_exception(exc)


class SilentEcho(asyncio.Protocol):
    """The server of the short scene: echoes and prints nothing."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def talk(port: int, message: str) -> str:
    """Connect, and wait until the protocol says that the conversation is over."""
    loop = asyncio.get_running_loop()
    on_con_lost: asyncio.Future[str] = loop.create_future()
    transport, _ = await loop.create_connection(
        lambda: EchoClientProtocol(message, on_con_lost), "127.0.0.1", port
    )
    try:
        return await on_con_lost
    finally:
        # Closing twice does no harm, and a cancelled wait leaves nothing open.
        transport.close()


async def scene() -> None:
    loop = asyncio.get_running_loop()
    async with await loop.create_server(SilentEcho, "127.0.0.1", 0) as server:
        echo = await talk(server.sockets[0].getsockname()[1], "Hello, world!")
    print(f"The echo was the message: {echo == 'Hello, world!'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="echo client by protocols")
    parser.add_argument("--connect", type=int, metavar="PORT", help="a server that is running")
    options = parser.parse_args()
    if options.connect is None:
        asyncio.run(scene())
        return
    try:
        asyncio.run(talk(options.connect, "Hello, world!"))
    except ConnectionRefusedError:
        raise SystemExit(f"Nothing listens on port {options.connect}.") from None


if __name__ == "__main__":
    main()
