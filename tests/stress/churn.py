"""A thread that opens and closes descriptors all the time, so that numbers are used again at once.

A loop that closes a number once too often closes one of these, and one that sends to a number it
has lost sends to one of these: both show here.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

from tagged import Account


class Churn:
    """Runs the thread for the length of a with block."""

    def __init__(self, account: Account, seed: int) -> None:
        self._account = account
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="churn", daemon=True)
        self.opened = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        kinds: list[Callable[[], None]] = [self._pair, self._pipe, self._files, self._unconnected]
        while not self._stop.is_set():
            try:
                self._random.choice(kinds)()
            except OSError as exc:
                self._account.problem(f"the other thread's descriptor was taken from it: {exc!r}")
            except AssertionError as exc:
                self._account.problem(f"the other thread's descriptors: {exc}")
            # Fast enough to meet every number, slow enough to leave the loop its time.
            time.sleep(self._random.choice((0, 0, 0.0001, 0.001)))

    def _hold(self) -> None:
        time.sleep(self._random.choice((0, 0, 0, 0.0005)))

    def _unchanged(self, held: list[tuple[int, tuple[int, int]]]) -> None:
        for fd, was in held:
            status = os.fstat(fd)
            now = (status.st_dev, status.st_ino)
            assert now == was, f"number {fd} stands for another file: {now}, not {was}"
        self.opened += len(held)

    @staticmethod
    def _identity(fd: int) -> tuple[int, tuple[int, int]]:
        status = os.fstat(fd)
        return fd, (status.st_dev, status.st_ino)

    def _pair(self) -> None:
        first, second = socket.socketpair()
        with first, second:
            held = [self._identity(sock.fileno()) for sock in (first, second)]
            sent = self._random.randbytes(self._random.randrange(1, 2000))
            first.sendall(sent)
            self._hold()
            first.shutdown(socket.SHUT_WR)
            received = bytearray()
            while piece := second.recv(65536):
                received += piece
            assert received == sent, f"{len(received)} bytes instead of {len(sent)}, or others"
            second.setblocking(False)
            first.setblocking(False)
            self._unchanged(held)
            assert _silent(first), "bytes arrived that nobody here had sent"

    def _pipe(self) -> None:
        reader, writer = os.pipe()
        try:
            held = [self._identity(fd) for fd in (reader, writer)]
            os.write(writer, b"churn")
            self._hold()
            got = os.read(reader, 100)
            assert got == b"churn", f"a pipe brought {got!r}"
            self._unchanged(held)
        finally:
            os.close(reader)
            os.close(writer)

    def _files(self) -> None:
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(self._random.randrange(1, 9))]
        fds += [os.dup(fds[0])]
        try:
            held = [self._identity(fd) for fd in fds]
            self._hold()
            self._unchanged(held)
        finally:
            for fd in fds:
                os.close(fd)

    def _unconnected(self) -> None:
        socks = [socket.socket() for _ in range(self._random.randrange(1, 5))]
        held = [self._identity(sock.fileno()) for sock in socks]
        self._hold()
        try:
            self._unchanged(held)
        finally:
            for sock in socks:
                sock.close()


def _silent(sock: Any) -> bool:
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return True
