"""Flow control: a writer that stops when its peer is slow, and goes on when the peer catches up.

The transport keeps what the kernel does not take. When that grows past the high-water mark it
calls pause_writing(), and when it has drained to the low-water mark, resume_writing(). A protocol
that obeys never holds more than the mark and one chunk, however much it has to say.

    python examples/flow_control.py
    python -m cpploop examples/flow_control.py
"""

import asyncio
import hashlib
import socket
from collections.abc import Iterator

CHUNK = 32 * 1024
CHUNKS = 256


def some_data() -> Iterator[bytes]:
    """8 MiB, far more than the kernel buffers between two sockets."""
    for index in range(CHUNKS):
        yield hashlib.sha256(index.to_bytes(4, "big")).digest() * (CHUNK // 32)


class FlowControlledProtocol(asyncio.Protocol):
    """Sends all of its data, but never faster than the transport can pass it on."""

    transport: asyncio.Transport

    def __init__(self, paused_once: asyncio.Event, gone: asyncio.Event) -> None:
        self._data = some_data()
        self._paused = False
        self._paused_once = paused_once
        self._gone = gone
        self.pauses = self.resumes = self.sent = self.fullest = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # The kernel's own buffer could grow to any size; a fixed one makes the transport's matter.
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * CHUNK)
        # Start writing. Not by calling resume_writing(): that one is the transport's to call, and
        # only after a pause_writing() of the same transport.
        self._write_more()

    def pause_writing(self) -> None:
        # Often called from inside transport.write(), so it does no more than take a note.
        self._paused = True
        self.pauses += 1
        if self.pauses == 1:
            print("Paused: the buffer has passed the high-water mark.")
            self._paused_once.set()

    def resume_writing(self) -> None:
        self._paused = False
        self.resumes += 1
        if self.resumes == 1:
            print("Resumed: the buffer has drained to the low-water mark.")
        self._write_more()

    def _write_more(self) -> None:
        # write() may call pause_writing(), which ends the loop; the transport will call back.
        while not self._paused and not self.transport.is_closing():
            chunk = next(self._data, None)
            if chunk is None:
                # What is still buffered is sent before the connection closes. Not from in here:
                # asyncio tells a protocol twice that it is over when it closes in resume_writing().
                asyncio.get_running_loop().call_soon(self.transport.close)
                return
            self.transport.write(chunk)
            self.sent += len(chunk)
            self.fullest = max(self.fullest, self.transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()


class SlowReader(asyncio.Protocol):
    """Reads nothing at first, so that the writer has to wait, and then everything."""

    transport: asyncio.Transport

    def __init__(self, gone: asyncio.Event) -> None:
        self.received = 0
        self.digest = hashlib.sha256()
        self._gone = gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self.digest.update(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()


async def main() -> None:
    loop = asyncio.get_running_loop()
    paused_once, writer_gone, reader_gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
    writer = FlowControlledProtocol(paused_once, writer_gone)
    async with await loop.create_server(lambda: writer, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        _, reader = await loop.create_connection(lambda: SlowReader(reader_gone), *address)
        await paused_once.wait()
        _, high = writer.transport.get_write_buffer_limits()
        print("The reader wakes up.")
        reader.transport.resume_reading()
        await writer_gone.wait()
        await reader_gone.wait()

    intact = reader.digest.digest() == hashlib.sha256(b"".join(some_data())).digest()
    print(f"Sent {writer.sent} bytes, received {reader.received}, intact: {intact}")
    print(f"Every pause was followed by a resume: {writer.pauses == writer.resumes}")
    print(f"Never held more than the mark and one chunk: {writer.fullest <= high + CHUNK}")


if __name__ == "__main__":
    asyncio.run(main())
