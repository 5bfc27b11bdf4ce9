"""A load client for one small HTTP response: keep-alive connections, sockets, no asyncio.

It asks the next question on a connection as soon as the last answer is complete, and it checks
every answer. The client is the same for every server: what differs in the figures is the server.

    python examples/demo/load.py 127.0.0.1 8000 --connections 32 --seconds 2
"""

import argparse
import contextlib
import selectors
import socket
import sys
import time
from dataclasses import dataclass

from app import PLAIN_BODY

REQUEST = b"GET /plain HTTP/1.1\r\nHost: demo\r\nAccept: */*\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """What one round measured."""

    requests: int
    wrong: int
    seconds: float
    # How much of the time this client was computing: near 1, the figure is the client's limit.
    client_busy: float

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def response_length(connection: socket.socket) -> int:
    """Ask once, and return the length of the answer; later answers must have the same."""
    connection.sendall(REQUEST)
    received = b""
    while b"\r\n\r\n" not in received or not received.endswith(PLAIN_BODY):
        data = connection.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection during its first answer")
        received += data
    return len(received)


def is_right(answer: bytes) -> bool:
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n" + PLAIN_BODY)


def drive(host: str, port: int, connections: int, seconds: float) -> Load:
    """Keep `connections` busy for `seconds`, and count the answers that came in that time."""
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        sockets = [
            stack.enter_context(socket.create_connection((host, port), timeout=20))
            for _ in range(connections)
        ]
        length = max(response_length(connection) for connection in sockets)
        partial: dict[socket.socket, bytes] = dict.fromkeys(sockets, b"")
        for connection in sockets:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        requests, wrong = 0, 0
        busy_start, start = time.process_time(), time.monotonic()
        deadline = start + seconds
        for connection in sockets:
            connection.send(REQUEST)
        now = start
        while now < deadline and partial:
            ready = selector.select(deadline - now)
            for key, _ in ready:
                connection = key.fileobj  # type: ignore[assignment]
                try:
                    data = connection.recv(65536)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                answer = partial[connection] + data
                if data and len(answer) < length:
                    partial[connection] = answer
                    continue
                if not data or len(answer) > length or not is_right(answer):
                    # A broken answer leaves the connection in no state to ask again.
                    wrong += 1
                    selector.unregister(connection)
                    del partial[connection]
                    continue
                requests += 1
                partial[connection] = b""
                connection.send(REQUEST)
            now = time.monotonic()
        return Load(
            requests, wrong, now - start, (time.process_time() - busy_start) / (now - start)
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="measure a running demo server")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    load = drive(options.host, options.port, options.connections, options.seconds)
    print(
        f"{load.requests_per_s:.0f} requests/s, {load.wrong} wrong, client {load.client_busy:.0%}"
    )
    return 1 if load.wrong or not load.requests else 0


if __name__ == "__main__":
    sys.exit(main())
