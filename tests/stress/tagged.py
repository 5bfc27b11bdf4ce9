"""Payloads of which every byte tells whose it is, and what checks them.

Each direction of each connection has a stream of its own: a header that names the connection, then
random bytes that only this direction of this connection has. A byte of another connection, one that
is lost, doubled or exchanged shows at its place.
"""

from __future__ import annotations

import random
import ssl
import struct
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import support

HEADER = struct.Struct(">4sQI")
MAGIC = b"tag!"
REQUEST, RESPONSE = 0, 1


class WrongBytes(AssertionError):
    """Bytes arrived that were never sent on this connection, or not in this order."""


def payload(number: int, direction: int, size: int) -> bytes:
    """A stream of SIZE bytes, the header included."""
    body = random.Random(number * 2 + direction).randbytes(size - HEADER.size)
    return HEADER.pack(MAGIC, number * 2 + direction, size) + body


def has_a_reason(exc: BaseException | None, hard: bool) -> bool:
    """Whether EXC is what a peer that goes may cause, or, where HARD, a system call that fails."""
    if support.peer_is_gone(exc):
        return True
    return hard and isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError)


@dataclass
class Account:
    """What a run has done and what went wrong."""

    # Whether system calls fail for good at the moment.
    hard: bool = False
    number: int = 0
    bytes_checked: int = 0
    connections: Counter[str] = field(default_factory=Counter)
    cancelled: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def next_number(self) -> int:
        self.number += 1
        return self.number

    def problem(self, text: str) -> None:
        if len(self.problems) < 50:
            self.problems.append(text)

    def ended_by(self, exc: BaseException | None, what: str) -> None:
        """WHAT came to its end by EXC, or in order."""
        if not has_a_reason(exc, self.hard):
            text = "".join(traceback.format_exception(exc))
            self.problem(f"{what}: an error without a reason\n{text}")


class Receiver:
    """Checks what arrives on one direction of one connection, byte for byte, as it comes.

    NUMBER is None where the header is to tell: a server does not know who calls.
    """

    def __init__(self, account: Account, direction: int, number: int | None = None) -> None:
        self._account = account
        self._direction = direction
        self._head = bytearray()
        self._expected: bytes | None = None
        self.number = number
        self.at = 0
        self.done = False

    def feed(self, data: Any) -> None:
        data = bytes(data)
        if self._expected is None:
            self._head += data
            if len(self._head) < HEADER.size:
                return
            self._begin()
            data, self._head = bytes(self._head), bytearray()
        expected = self._expected
        assert expected is not None
        if data != expected[self.at : self.at + len(data)]:
            self._wrong(data, expected)
        self.at += len(data)
        self._account.bytes_checked += len(data)
        self.done = self.at == len(expected)

    def _begin(self) -> None:
        magic, tag, size = HEADER.unpack_from(self._head)
        number, direction = divmod(tag, 2)
        if magic != MAGIC or direction != self._direction or self.number not in (None, number):
            raise WrongBytes(
                f"connection {self.number} ({self._direction}) begins with "
                f"{bytes(self._head[:32])!r}: connection {number} ({direction})"
            )
        self.number = number
        self._expected = payload(number, direction, size)

    def _wrong(self, data: bytes, expected: bytes) -> None:
        right = expected[self.at : self.at + len(data)]
        pairs = enumerate(zip(data, right, strict=False))
        first = next((i for i, (got, want) in pairs if got != want), len(right))
        raise WrongBytes(
            f"connection {self.number} ({self._direction}): byte {self.at + first} of "
            f"{len(expected)} is wrong: {data[first : first + 16]!r} "
            f"where {right[first : first + 16]!r} was sent"
        )
