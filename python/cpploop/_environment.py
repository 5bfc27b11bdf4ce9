"""What the environment asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence


def choice(variable: str, choices: Sequence[str], default: str) -> str:
    """What the variable says, or `default` where it is unset or empty.

    ValueError for a value that means nothing.
    """
    return checked(variable, os.environ.get(variable, "") or default, choices)


def checked(name: str, value: str, choices: Sequence[str]) -> str:
    """The value, if it is one of those; ValueError with the name if not."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value
