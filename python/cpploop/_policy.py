"""The event loop policy, for as long as asyncio has policies.

Python 3.14 and 3.15 deprecate policies and 3.16 has none. The base class is therefore taken from
where asyncio defines it and not from its public name, which warns there: importing this module
is silent on every Python.
"""

from __future__ import annotations

import asyncio.events
import asyncio.unix_events
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpploop._loop import Loop

__all__ = ("EventLoopPolicy", "install")


class EventLoopPolicy(asyncio.unix_events._UnixDefaultEventLoopPolicy):
    """asyncio's default policy, except that the loops it makes are cpploop's.

    What get_event_loop() does where no loop is set is for the running Python to say: 3.13 and
    older may make one, newer ones raise RuntimeError.
    """

    def new_event_loop(self) -> Loop:
        """Create a cpploop event loop and return it."""
        from cpploop._loop import Loop

        return Loop()


def install() -> None:
    """Make cpploop the loop of every program part that leaves the choice to asyncio.

    It sets the process's event loop policy, which is all it does; asyncio deprecates that from
    3.14 on. cpploop.run() and the factory cpploop.new_event_loop need no policy, and
    ``python -m cpploop`` runs a program that cannot be changed.
    """
    policy = EventLoopPolicy()
    if sys.version_info >= (3, 14):
        # asyncio's own warning would name this file; the caller's line is the one to change.
        warnings.warn(
            "cpploop.install() sets an event loop policy, which Python deprecates and 3.16 "
            "removes; use cpploop.run() or pass loop_factory=cpploop.new_event_loop",
            DeprecationWarning,
            stacklevel=2,
        )
        asyncio.events._set_event_loop_policy(policy)
    else:
        asyncio.set_event_loop_policy(policy)
