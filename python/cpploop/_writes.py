"""When what a callback writes leaves."""

from __future__ import annotations

from . import _environment

_CHOICES = ("together", "at-once")


def may_be_held() -> bool:
    """Whether a busy loop may send the writes of a turn's callbacks together: CPPLOOP_WRITES.

    ValueError for a value that means nothing.
    """
    return _environment.choice("CPPLOOP_WRITES", _CHOICES, "together") == "together"
