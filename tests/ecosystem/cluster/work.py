"""What the cluster's processes are asked to do; they import it from here, too."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any


async def loop_here() -> tuple[int, str]:
    """Return the process, and the class of the loop that runs this."""
    kind = type(asyncio.get_running_loop())
    return os.getpid(), f"{kind.__module__}.{kind.__qualname__}"


async def loop_of_scheduler(dask_scheduler: Any) -> tuple[int, str]:
    """Answer for the scheduler, which passes itself to those who ask for it by this name."""
    return await loop_here()


def primes_in(start: int, stop: int) -> int:
    """Count primes, and take so long that a worker can be killed meanwhile."""
    time.sleep(0.05)
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))


def add(left: int, right: int) -> int:
    return left + right
