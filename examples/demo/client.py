"""Drive the demo application with real clients, and check every answer.

httpx speaks HTTP and `websockets` speaks WebSocket, over TCP, over a Unix socket or over TLS. Both
are used through their blocking interfaces: no event loop runs on this side.

    python examples/demo/client.py http://127.0.0.1:8000
    python examples/demo/client.py --expect-loop cpploop http://127.0.0.1:8000
"""

import argparse
import faulthandler
import hashlib
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import httpx
import websockets.exceptions
import websockets.sync.client as websocket_client
from app import PLAIN_BODY, stream_chunk

# How long any single answer may take before it counts as wrong.
PATIENCE_S = 20.0
# How long a whole check may take; all of them together take about three seconds.
LIMIT_S = 45.0


@dataclass(frozen=True)
class Target:
    """Where a server listens and what it should say about itself."""

    base_url: str
    unix_path: str | None = None
    tls: ssl.SSLContext | None = None
    # The first part of the dotted name of the loop's type: "cpploop", "asyncio", "uvloop".
    expect_loop: str | None = None

    def http(self) -> httpx.Client:
        """An HTTP client with a connection pool of its own, deaf to proxies in the environment."""
        transport = httpx.HTTPTransport(
            uds=self.unix_path,
            verify=self.tls if self.tls is not None else True,
            limits=httpx.Limits(max_connections=64),
        )
        return httpx.Client(base_url=self.base_url, transport=transport, timeout=PATIENCE_S)

    def websocket(self, path: str) -> websocket_client.ClientConnection:
        """One open WebSocket connection."""
        uri = self.base_url.replace("http", "ws", 1) + path
        options: dict[str, Any] = {"ssl": self.tls, "open_timeout": PATIENCE_S}
        if self.unix_path is not None:
            return cast(
                websocket_client.ClientConnection,
                websocket_client.unix_connect(self.unix_path, uri, **options),
            )
        return cast(
            websocket_client.ClientConnection,
            websocket_client.connect(uri, proxy=None, **options),
        )


class WrongAnswer(Exception):
    """The server answered, and the answer was not the right one."""


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise WrongAnswer(f"{what}: got {shorten(got)}, wanted {shorten(wanted)}")


def shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def check_loop(target: Target) -> None:
    """The server runs on the loop it was told to, and its lifespan has started."""
    with target.http() as client:
        answer = client.get("/loop").json()
    if target.expect_loop is not None:
        expect("event loop", answer["loop"].split(".")[0], target.expect_loop)
    expect("scheme", answer["scheme"], target.base_url.partition(":")[0])
    expect("lifespan", answer["lifespan"], ["startup"])


def check_plain(target: Target) -> None:
    """Status, headers and body of small responses, many on one connection."""
    with target.http() as client:
        for _ in range(50):
            answer = client.get("/plain")
            expect("status", answer.status_code, 200)
            expect("length header", answer.headers["content-length"], str(len(PLAIN_BODY)))
            expect("body", answer.content, PLAIN_BODY)


def check_json(target: Target) -> None:
    """JSON back and forth, non-ASCII text in the query, and the method as it was sent."""
    with target.http() as client:
        for method in ("GET", "POST", "PUT", "DELETE"):
            query = {"who": "Zoë & Łukasz", "n": "42"}
            answer = client.request(method, "/echo", params=query)
            expect("content type", answer.headers["content-type"], "application/json")
            expect("echo", answer.json(), {"method": method, "query": query})


def check_missing(target: Target) -> None:
    """An unknown path is 404, and the connection stays good afterwards."""
    with target.http() as client:
        expect("status of an unknown path", client.get("/nowhere").status_code, 404)
        expect("status afterwards", client.get("/plain").status_code, 200)


def check_head(target: Target) -> None:
    """HEAD has the header of GET and no body."""
    with target.http() as client:
        answer = client.head("/plain")
        expect("length header", answer.headers["content-length"], str(len(PLAIN_BODY)))
        expect("body", answer.content, b"")


def check_stream(target: Target) -> None:
    """A streamed body arrives whole and in order."""
    chunks, size = 300, 20_011
    with target.http() as client:
        answer = client.get("/stream", params={"chunks": chunks, "size": size, "pause": 0})
        expect("encoding", answer.headers["transfer-encoding"], "chunked")
        wanted = b"".join(stream_chunk(index, size) for index in range(chunks))
        expect("body", digest(answer.content), digest(wanted))


def check_stream_is_live(target: Target) -> None:
    """The first piece arrives while the server is still making the others."""
    chunks, size, pause_s = 5, 1000, 0.1
    query = {"chunks": chunks, "size": size, "pause": pause_s}
    with target.http() as client, client.stream("GET", "/stream", params=query) as answer:
        received, first_at = b"", 0.0
        for data in answer.iter_raw():
            first_at = first_at or time.monotonic()
            received += data
    wanted = b"".join(stream_chunk(index, size) for index in range(chunks))
    expect("body", received, wanted)
    spread_s = time.monotonic() - first_at
    # The pauses are the server's timers: never early, so the whole takes at least their sum.
    expect("the pieces came one by one", spread_s > pause_s * (chunks - 1) * 0.75, True)


def check_slow_reader(target: Target) -> None:
    """A reader slower than the server: flow control holds the body back, and none of it is lost."""
    chunks, size = 200, 65_536
    query = {"chunks": chunks, "size": size, "pause": 0}
    seen, length = hashlib.sha256(), 0
    with target.http() as client, client.stream("GET", "/stream", params=query) as answer:
        time.sleep(0.3)
        for data in answer.iter_raw():
            seen.update(data)
            length += len(data)
    expect("length", length, chunks * size)
    wanted = b"".join(stream_chunk(index, size) for index in range(chunks))
    expect("digest", seen.hexdigest(), digest(wanted))


def check_upload(target: Target) -> None:
    """Uploads with a length header, from empty to megabytes, come back with their own digest."""
    with target.http() as client:
        for size in (0, 1, 65_536, 5_000_000):
            body = random.Random(size).randbytes(size)
            answer = client.post("/upload", content=body)
            expect("upload", answer.json(), {"length": size, "sha256": digest(body)})


def check_chunked_upload(target: Target) -> None:
    """An upload of unknown length, in chunks of uneven size."""
    pieces = [random.Random(size).randbytes(size) for size in (1, 100_000, 7, 70_001, 300_000)]

    def body() -> Iterator[bytes]:
        yield from pieces

    with target.http() as client:
        answer = client.post("/upload", content=body())
    whole = b"".join(pieces)
    expect("upload", answer.json(), {"length": len(whole), "sha256": digest(whole)})


def check_crowd(target: Target) -> None:
    """Many connections at once: each gets the answers to its own questions and to no other's."""

    def one_visitor(name: int) -> None:
        with target.http() as client:
            for turn in range(20):
                tag = f"visitor {name} turn {turn}"
                answer = client.get("/echo", params={"tag": tag}).json()
                expect("tag", answer["query"]["tag"], tag)
                body = tag.encode() * 997
                answer = client.post("/upload", content=body).json()
                expect("digest", answer, {"length": len(body), "sha256": digest(body)})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one_visitor, range(16)))


def check_websocket(target: Target) -> None:
    """Text, bytes, an empty message and a large one come back as they went."""
    with target.websocket("/ws") as connection:
        messages: list[str | bytes] = ["hello", "Zoë ☕", "", b"\x00\xff" * 10, "x" * 1_000_000]
        for message in messages:
            connection.send(message)
            expect("echo", connection.recv(PATIENCE_S), message)


def check_websocket_pipelined(target: Target) -> None:
    """A burst of messages is answered in order."""
    with target.websocket("/ws") as connection:
        burst = [f"message {number}" for number in range(500)]
        for message in burst:
            connection.send(message)
        expect("echoes", [connection.recv(PATIENCE_S) for _ in burst], burst)


def check_websocket_close(target: Target) -> None:
    """The server closes with the code and the reason it was asked for."""
    with target.websocket("/ws") as connection:
        connection.send("close")
        try:
            connection.recv(PATIENCE_S)
        except websockets.exceptions.ConnectionClosed as closed:
            received = closed.rcvd
            expect("close code", received and received.code, 4000)
            expect("close reason", received and received.reason, "as you asked")
        else:
            raise WrongAnswer("the server sent a message where it should have closed")


def check_websocket_refused(target: Target) -> None:
    """A WebSocket at another path is refused before it opens."""
    try:
        with target.websocket("/elsewhere"):
            raise WrongAnswer("the server accepted a WebSocket it should refuse")
    except websockets.exceptions.InvalidStatus as refused:
        expect("status", refused.response.status_code, 403)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


CHECKS: list[Callable[[Target], None]] = [
    check_loop,
    check_plain,
    check_json,
    check_missing,
    check_head,
    check_stream,
    check_stream_is_live,
    check_slow_reader,
    check_upload,
    check_chunked_upload,
    check_crowd,
    check_websocket,
    check_websocket_pipelined,
    check_websocket_close,
    check_websocket_refused,
]


def check_all(target: Target) -> list[str]:
    """Run every check, and return one line for each that failed."""
    failures: list[str] = []
    for check in CHECKS:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        # A check that waits for ever must be a failure too, so each has a thread and a limit.
        worker = threading.Thread(
            target=run_check, args=(check, target, name, failures), daemon=True
        )
        worker.start()
        worker.join(LIMIT_S)
        if worker.is_alive():
            failures.append(f"{name}: no end after {LIMIT_S:.0f} s")
            # Where everybody waits; after this the server is in no state to be asked more.
            faulthandler.dump_traceback(all_threads=True)
            break
    return failures


def run_check(
    check: Callable[[Target], None], target: Target, name: str, failures: list[str]
) -> None:
    try:
        check(target)
    except Exception as exc:  # Whatever went wrong is a wrong answer, and the rest still runs.
        failures.append(f"{name}: {type(exc).__name__}: {exc}")


def main() -> int:
    parser = argparse.ArgumentParser(description="check a running demo server")
    parser.add_argument("url", help="for example http://127.0.0.1:8000")
    parser.add_argument("--uds", metavar="PATH", help="connect through this Unix socket")
    parser.add_argument("--ca", metavar="FILE", help="trust this certificate authority")
    parser.add_argument("--expect-loop", metavar="NAME", help="package of the loop: cpploop, ...")
    options = parser.parse_args()
    tls = ssl.create_default_context(cafile=options.ca) if options.ca else None
    target = Target(options.url.rstrip("/"), options.uds, tls, options.expect_loop)
    failures = check_all(target)
    for failure in failures:
        print("WRONG", failure)
    print(f"{len(CHECKS) - len(failures)} of {len(CHECKS)} checks passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
