"""The load generator must notice every wrong answer: a figure is only as good as its check.

python benchmarks/test_loadgen.py      (or pytest benchmarks)
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import harness

Answer = Callable[[int, bytes], bytes]  # (message number, request) -> what to send back
TOOLS = harness.build_tools(harness.HERE / "build")
SIZE = 100 * 1024


def run_against(answer: Answer, *load: str) -> dict[str, Any]:
    """Serve one connection with `answer` and return what the load generator says of it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                for number in range(1 << 30):
                    request = read_request(connection, load)
                    if not request:
                        return
                    reply = answer(number, request)
                    if not reply:
                        return
                    connection.sendall(reply)
            except ConnectionError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    command = [str(TOOLS / "loadgen"), *load, "--port", str(port)]
    command += ["--seconds", "0.2", "--warmup", "0.05", "--connections", "1"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    thread.join()
    listener.close()
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if result["errors"] else 0)
    return result


def read_request(connection: socket.socket, load: tuple[str, ...]) -> bytes:
    """A whole request: a fixed size of bytes, or up to the empty line."""
    if "http" in load:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            piece = connection.recv(65536)
            if not piece:
                return b""
            request += piece
        return request
    return connection.recv(int(load[load.index("--size") + 1]), socket.MSG_WAITALL)


def flipped_at(index: int, at: int) -> Answer:
    """An echo with one bit wrong at `index` of each message from number `at` on."""

    def answer(number: int, request: bytes) -> bytes:
        if number < at:
            return request
        return request[:index] + bytes([request[index] ^ 1]) + request[index + 1 :]

    return answer


def echo(answer: Answer, size: int = 1024) -> dict[str, Any]:
    return run_against(answer, "--mode", "echo", "--size", str(size))


def http(reply: bytes, body_size: int = 13) -> dict[str, Any]:
    load = ("--mode", "http", "--path", "/", "--body-size", str(body_size))
    return run_against(lambda number, request: reply, *load)


def with_length(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-LENGTH:%d\r\n%s\r\n%s" % (len(body), extra, body)


def test_right_echo() -> None:
    for size in (1, 31, 1024, SIZE):
        result = echo(lambda number, request: request, size)
        assert result["errors"] == 0 and result["requests"] > 0
        assert 0 < result["p50_us"] <= result["p99_us"] <= result["p999_us"]
        assert result["p999_us"] <= 1.02 * result["max_us"]


def test_one_wrong_byte_anywhere_in_a_small_message() -> None:
    for index in (0, 500, 1023):
        result = echo(flipped_at(index, at=50))
        assert result["error"].startswith("wrong bytes")


def test_wrong_bytes_in_a_large_message() -> None:
    """At the ends at once, in the middle within kFullCheckEvery messages."""
    for index in (0, SIZE // 2, SIZE - 1):
        result = echo(flipped_at(index, at=0), SIZE)
        assert result["error"].startswith("wrong bytes")


def test_an_earlier_message_again() -> None:
    for size in (1024, SIZE):
        first: list[bytes] = []

        def replay(number: int, request: bytes, first: list[bytes] = first) -> bytes:
            first.append(request)
            return first[0]

        assert echo(replay, size)["error"].startswith("wrong bytes")


def test_too_much_and_too_little() -> None:
    assert echo(lambda number, request: request + b"x")["error"].startswith("wrong bytes")
    assert "closed" in echo(lambda number, request: b"")["error"]


def test_right_responses() -> None:
    body = b"abcdefghijklm"
    chunks = b"5;name=value\r\nabcde\r\n8\r\nfghijklm\r\n0\r\nTrailer: x\r\n\r\n"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunks
    for reply in (with_length(body), with_length(body, b"X: y\r\n"), chunked):
        result = http(reply)
        assert result["errors"] == 0 and result["requests"] > 0
    assert http(with_length(b""), 0)["errors"] == 0
    big = (b"abcdefghijklmnopqrstuvwxyz" * 12_000)[:300_000]
    assert http(with_length(big), len(big))["errors"] == 0


def test_wrong_responses() -> None:
    body = b"abcdefghijklm"
    head = b"HTTP/1.1 200 OK\r\n"
    chunked = head + b"transfer-encoding: chunked\r\n\r\n"
    for reply in (
        with_length(body[:-1] + b"x"),  # a wrong byte
        with_length(body[:-1]),  # a short body
        with_length(body) + b"x",  # bytes after the end
        head + b"\r\n" + body,  # no framing
        head.replace(b"200", b"500") + b"Content-Length: 13\r\n\r\n" + body,
        with_length(body, b"Connection: close\r\n"),
        with_length(body, b"Transfer-Encoding: chunked\r\n"),
        with_length(body, b"Content-Length: 14\r\n"),
        chunked + b"d\r\n" + body + b"x\r\n0\r\n\r\n",  # a chunk longer than its size
        chunked + b"c\r\n" + body[:-1] + b"\r\n0\r\n\r\n",  # a short body, chunked
        chunked + b"g\r\n" + body + b"\r\n0\r\n\r\n",  # no number
        head + b"no colon\r\n\r\n",
    ):
        assert http(reply)["errors"] == 1, reply


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(f"{name}: ok")
    sys.exit(0)
