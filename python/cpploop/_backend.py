"""Which way to the kernel a loop takes."""

from __future__ import annotations

from typing import NamedTuple

from . import _environment, _native

_DEFAULT = _native._backends()[0]
_CHOICES = ("auto", *_native._backends())


class Backend(NamedTuple):
    """What a loop made now would wait with, and why not with io_uring."""

    name: str
    reason: str


def chosen_name(backend: str | None = None) -> str:
    """What is asked for: by the caller, or else by CPPLOOP_BACKEND.

    ValueError for a name that means nothing.
    """
    if backend is not None:
        return _environment.checked("backend", backend, _CHOICES)
    return _environment.choice("CPPLOOP_BACKEND", _CHOICES, "auto")


def chosen_backend() -> Backend:
    """What CPPLOOP_BACKEND asks for, as far as this process allows it."""
    choice = chosen_name()
    if "io_uring" not in _CHOICES:
        return Backend(_DEFAULT, "io_uring is not of this system")
    refusal = _native._io_uring_refusal()
    if refusal:
        return Backend(_DEFAULT, f"io_uring {refusal}")
    if choice == "io_uring":
        return Backend("io_uring", "")
    return Backend(_DEFAULT, "io_uring is there for CPPLOOP_BACKEND=io_uring")
