"""What echoes, for all that measure with it: the servers, the gate, the training."""

from __future__ import annotations

import asyncio
from typing import cast

READ_SIZE = 256 * 1024


class EchoProtocol(asyncio.Protocol):
    """Writes each piece as it arrives."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoBufferedProtocol(asyncio.BufferedProtocol):
    """Receives into its own buffer.

    What it writes is a copy: the buffer is filled again by the next read, and asyncio itself keeps
    a reference to a memoryview it could not send at once.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray(READ_SIZE)
        self.view = memoryview(self.buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.view[:nbytes]))


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one connection of start_server()."""
    try:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # A client may leave with answers in flight.
    finally:
        writer.close()
