"""A thread beside the loop that notices when a descriptor is closed twice."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator


class FdThief(threading.Thread):
    """A second thread that takes freed descriptor numbers at once and checks they stay its own.

    A descriptor closed twice closes one of its pipes, which it notices by the token that does
    not come back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.damage: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.stop.is_set() and not self.damage:
            pipes = []
            try:
                for _ in range(8):
                    pipes.append(os.pipe())
                for reading, writing in pipes:
                    number += 1
                    token = number.to_bytes(8, "little")
                    # Between the two lies the moment in which a wrong close would hit.
                    self.stop.wait(0.0002)
                    os.write(writing, token)
                    if os.read(reading, 100) != token:
                        self.damage.append("foreign bytes in a pipe")
            except OSError as exc:
                self.damage.append(f"a pipe was closed by somebody else: {exc!r}")
            finally:
                for fds in pipes:
                    for fd in fds:
                        try:
                            os.close(fd)
                        except OSError as exc:
                            self.damage.append(f"a pipe was closed by somebody else: {exc!r}")


@contextlib.contextmanager
def fd_thief() -> Iterator[FdThief]:
    thief = FdThief()
    thief.start()
    try:
        yield thief
    finally:
        thief.stop.set()
        thief.join()
    assert thief.damage == []
