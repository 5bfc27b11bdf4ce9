"""When what a callback writes leaves."""

from __future__ import annotations

import os

_CHOICES = ("together", "at-once")


def may_be_held() -> bool:
    """Whether a busy loop may send the writes of a turn's callbacks together: CPPLOOP_WRITES.

    ValueError for a value that means nothing.
    """
    choice = os.environ.get("CPPLOOP_WRITES", "") or "together"
    if choice not in _CHOICES:
        raise ValueError(f"CPPLOOP_WRITES must be one of {', '.join(_CHOICES)}, not {choice!r}")
    return choice == "together"
