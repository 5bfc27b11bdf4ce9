"""A child process written as a protocol: the loop tells what it prints, and when it ends.

The first child turns what it is sent into capitals, the second one is told to stop.

    python examples/subprocess_protocol.py
    python -m cpploop examples/subprocess_protocol.py
"""

import asyncio
import signal
import sys

PIPES = {0: "stdin", 1: "stdout", 2: "stderr"}

CAPITALS = """
import sys
count = 0
for line in sys.stdin:
    print(line.strip().upper())
    count += 1
print(f"The child has counted {count} lines.", file=sys.stderr)
"""

ENDLESS = """
import signal
print("ready", flush=True)
while True:
    signal.pause()
"""


class ChildProtocol(asyncio.SubprocessProtocol):
    """Collects what a child prints; `ended` is set when there is nothing more to come."""

    transport: asyncio.SubprocessTransport

    def __init__(self) -> None:
        self.printed = {1: b"", 2: b""}
        self.lost: list[int] = []
        self.exited = False
        self.said_something = asyncio.Event()
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The child runs by now, and its pipes are connected. What is no PIPE has no transport.
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport
        pipes = [name for fd, name in PIPES.items() if transport.get_pipe_transport(fd)]
        print(f"The child runs, with pipes for: {', '.join(pipes)}")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        # As with sockets, a piece of a stream: what is printed at once may come in several.
        self.printed[fd] += data
        self.said_something.set()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        # One pipe has ended: the child closed its side, or we closed ours.
        self.lost.append(fd)

    def process_exited(self) -> None:
        # May come before the last of the data, whose pipes can outlive the child.
        self.exited = True

    def connection_lost(self, exc: Exception | None) -> None:
        # The child has exited and all of its pipes have ended: nothing comes after this.
        self.ended.set()


def report_end(protocol: ChildProtocol, pipes: int) -> None:
    transport = protocol.transport
    complete = protocol.exited and len(protocol.lost) == pipes
    print(f"Exit and pipes were reported before the end: {complete}")
    transport.close()
    try:
        transport.terminate()
    except ProcessLookupError:
        print("A signal afterwards: ProcessLookupError")


async def capitals() -> None:
    loop = asyncio.get_running_loop()
    # PIPE is the default of all three when a protocol drives the child.
    transport, protocol = await loop.subprocess_exec(ChildProtocol, sys.executable, "-c", CAPITALS)
    stdin = transport.get_pipe_transport(0)
    assert isinstance(stdin, asyncio.WriteTransport)
    stdin.writelines([b"hello\n", b"from\n", b"outside\n"])
    # The child reads to the end of its input, so there has to be one.
    stdin.write_eof()
    await protocol.ended.wait()

    lines = protocol.printed[1].decode().split()
    print(f"Standard output: {len(lines)} lines, {lines[0]} first")
    print(f"Standard error: {protocol.printed[2].decode().strip()}")
    print(f"The child exited with status {transport.get_returncode()}.")
    # The order in which pipes end is the kernel's choice.
    print(f"Its pipes were lost: {', '.join(PIPES[fd] for fd in sorted(protocol.lost))}")
    report_end(protocol, pipes=3)


async def told_to_stop() -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        ChildProtocol, sys.executable, "-c", ENDLESS, stdin=None, stderr=None
    )
    await protocol.said_something.wait()
    print(f"Standard output: {protocol.printed[1].decode().strip()}")
    transport.terminate()
    await protocol.ended.wait()

    # Ended by a signal: the return code is its number, negative.
    code = transport.get_returncode()
    assert code is not None
    print(f"Terminated by: {signal.Signals(-code).name}")
    report_end(protocol, pipes=1)


async def main() -> None:
    await capitals()
    await told_to_stop()


if __name__ == "__main__":
    asyncio.run(main())
