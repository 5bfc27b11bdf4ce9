"""Framing: making messages out of TCP's stream of bytes.

The client cuts its bytes in the most awkward places; the server still sees whole lines, because it
keeps what is incomplete until the rest has come. A line that never ends must not fill the memory,
so there is a limit.

    python examples/line_protocol.py
    python -m cpploop examples/line_protocol.py
"""

import asyncio
import functools

MAX_LINE = 1024


class LineBasedProtocol(asyncio.Protocol):
    """Splits the stream at newlines and answers each line."""

    transport: asyncio.Transport

    def __init__(self, gone: asyncio.Event) -> None:
        self.gone = gone
        # The beginning of a line whose end has not come yet.
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        print("Connection established.")

    def data_received(self, data: bytes) -> None:
        # One call may bring half a line or many: cut at every newline, keep the last piece.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.process_line(line.decode(errors="replace").strip())
        if len(self._rest) > MAX_LINE:
            print("A line is too long, hanging up.")
            self._rest = b""
            self.transport.write(b"Error: line too long\n")
            self.transport.close()

    def process_line(self, line: str) -> None:
        print(f"Complete line: {line}")
        self.transport.write(f"Processed: {line}\n".encode())

    def connection_lost(self, exc: Exception | None) -> None:
        print("Connection lost.")
        self.gone.set()


async def send_in_pieces(address: tuple[str, int], pieces: list[bytes]) -> str:
    """Send each piece by itself, then read all that the server says until it hangs up."""
    reader, writer = await asyncio.open_connection(*address)
    for piece in pieces:
        writer.write(piece)
        # A moment for the piece to arrive alone; the server must not need it.
        await asyncio.sleep(0.01)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def main() -> None:
    loop = asyncio.get_running_loop()
    scenes = [
        [b"first li", b"ne\nsecond line\nth", b"ird", b" line\n"],
        [b"good line\n" + b"x" * (MAX_LINE + 1)],
    ]
    for pieces in scenes:
        gone = asyncio.Event()
        async with await loop.create_server(
            functools.partial(LineBasedProtocol, gone), "127.0.0.1", 0
        ) as server:
            answer = await send_in_pieces(server.sockets[0].getsockname(), pieces)
            await gone.wait()
        for line in answer.splitlines():
            print(f"The client heard: {line}")


if __name__ == "__main__":
    asyncio.run(main())
