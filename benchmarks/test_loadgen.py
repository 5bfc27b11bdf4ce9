"""The load generator must notice every wrong answer: a figure is only as good as its check.

python benchmarks/test_loadgen.py      (or pytest benchmarks)
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness

Answer = Callable[[int, bytes], bytes]  # (message number, request) -> what to send back
TOOLS = harness.build_tools(harness.HERE / "build")
SIZE = 100 * 1024


def run_against(
    answer: Answer, *load: str, context: ssl.SSLContext | None = None
) -> dict[str, Any]:
    """Serve connections with `answer` and return what the load generator says of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve() -> None:
        # Until the listener is shut down; a connection that breaks off is what its other end wants.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                thread = threading.Thread(target=converse, args=(connection,))
                thread.start()
                threads.append(thread)

    def converse(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            with connection:
                for number in range(1 << 30):
                    reply = answer(number, read_request(connection, load))
                    if not reply:
                        return
                    connection.sendall(reply)

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    port = listener.getsockname()[1]
    command = [str(TOOLS / "loadgen"), *load, "--port", str(port)]
    command += ["--seconds", "0.2", "--warmup", "0.05", "--connections", "1"]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    listener.close()
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if result["errors"] else 0)
    return result


def read_request(connection: socket.socket, load: tuple[str, ...]) -> bytes:
    """A whole request: a fixed size of bytes, or up to the empty line."""
    size = int(load[load.index("--size") + 1]) if "--size" in load else 0
    request = b""
    while not (len(request) == size if size else request.endswith(b"\r\n\r\n")):
        piece = connection.recv(size - len(request) if size else 65536)
        if not piece:
            raise ConnectionError("closed")
        request += piece
    return request


def flipped_at(index: int, at: int) -> Answer:
    """An echo with one bit wrong at `index` of each message from number `at` on."""

    def answer(number: int, request: bytes) -> bytes:
        if number < at:
            return request
        return request[:index] + bytes([request[index] ^ 1]) + request[index + 1 :]

    return answer


def same(number: int, request: bytes) -> bytes:
    return request


def echo(answer: Answer, size: int = 1024, *more: str) -> dict[str, Any]:
    return run_against(answer, "--mode", "echo", "--size", str(size), *more)


def http(reply: bytes, body_size: int = 13) -> dict[str, Any]:
    load = ("--mode", "http", "--path", "/", "--body-size", str(body_size))
    return run_against(lambda number, request: reply, *load)


def with_length(body: bytes, extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-LENGTH:%d\r\n%s\r\n%s" % (len(body), extra, body)


def test_right_echo() -> None:
    for size in (1, 31, 1024, SIZE):
        result = echo(same, size)
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


def test_wrong_bytes_in_an_open_loop() -> None:
    rate = ("--rate", "500")
    assert echo(same, 1024, *rate)["errors"] == 0
    assert echo(flipped_at(500, at=5), 1024, *rate)["error"].startswith("wrong bytes")


def test_wrong_bytes_for_the_slow_consumer() -> None:
    def wrong_in_the_alphabet(number: int, request: bytes) -> bytes:
        return request.replace(b"abcdefgh", b"abcdEfgh")

    slow = ("--slow", "1")
    assert echo(same, 1024, *slow)["errors"] == 0
    assert "slow consumer" in echo(wrong_in_the_alphabet, 1024, *slow)["error"]


def test_wrong_bytes_over_tls() -> None:
    with server_context() as context:
        echo_load = ("--mode", "echo", "--size", "1024", "--tls", "1")
        # For this file's server: the load generator says 64 bytes there whatever --size is.
        hello = ("--mode", "handshake", "--size", "64")
        for load in (echo_load, (*hello, "--resume", "0"), (*hello, "--resume", "1")):
            right = run_against(same, *load, context=context)
            assert right["errors"] == 0 and right["requests"] > 0, right
            assert 0 < right["p50_us"] <= right["p999_us"] <= 1.02 * right["max_us"]
            wrong = run_against(flipped_at(40, at=0), *load, context=context)
            assert wrong["error"].startswith("wrong bytes"), wrong


@contextlib.contextmanager
def server_context() -> Iterator[ssl.SSLContext]:
    with tempfile.TemporaryDirectory(prefix="cpploop-bench-") as folder:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(harness.make_certificate(Path(folder)))
        yield context


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
