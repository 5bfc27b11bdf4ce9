"""The loops that are compared: how each is made, which version it is, and what proves it runs.

A loop is only ever imported in the process that runs it, because some rivals change asyncio when
they are imported. `python loops.py NAME` makes the loop, runs a coroutine on it and prints one JSON
line: its version, or the reason why it cannot take part here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType

CONTROL = "asyncio"  # Runs along in every round: when it moves, the machine has.
BASE = "uvloop"  # Figures are given as multiples of this one's.
SUBJECT = "cpploop"
FLOOR = "floor"  # Stands among the loops where a row has a bare C++ server to compare with.

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class LoopUnavailableError(Exception):
    """The loop cannot run here; the message is the reason."""


@dataclass(frozen=True)
class LoopSpec:
    """One loop of the comparison."""

    name: str
    module: str  # The package that makes the loop, and that its type must come from.
    addon: str | None = None  # A package whose transports replace those of that loop.
    backend: str | None = None  # cpploop's way to the kernel, where it is not the default one.
    # What chooses between ways that a loop has, by itself or for TLS.
    environment: Mapping[str, str] = field(default_factory=dict)
    rings: bool = False  # A ring is what that chooses.

    def version(self) -> str:
        """The version, for example "0.23.0" or "1.2.0 on 0.23.0"."""
        versions = [_version_of(part) for part in (self.addon, self.module) if part]
        return " on ".join(versions)

    def load(self) -> LoopFactory:
        """Import what the loop needs and return its factory."""
        os.environ.update(self.environment)
        factory: LoopFactory = _import(self.module).new_event_loop
        if self.backend is not None:
            factory = functools.partial(factory, backend=self.backend)
        if self.addon is None:
            return factory
        patched: LoopFactory = _import(self.addon).loop_factory(factory)
        return patched

    def check(self, loop: object) -> None:
        """Raise AssertionError unless `loop` is the loop of this name."""
        owner = type(loop).__module__.partition(".")[0]
        assert owner == self.module, f"{self.name}: running on {type(loop)!r}"
        backend = getattr(loop, "_backend", None)
        # A kernel that refuses a backend gets the other one without a word.
        assert self.backend in (None, backend), f"{self.name}: runs on {backend}"
        assert not self.rings or _has_ring(), f"{self.name}: has made no ring"
        if tls := self.environment.get("CPPLOOP_TLS"):
            import cpploop

            tier = cpploop.build_info()["tls"]
            assert isinstance(tier, tuple) and tier[0] == tls, f"{self.name}: TLS by {tier}"
        # aiofastnet puts its functions on the instance; nothing else here does.
        patch = getattr(vars(loop).get("create_server"), "func", None) if self.addon else None
        patcher = getattr(patch, "__module__", "").partition(".")[0] or None
        assert patcher == self.addon, f"{self.name}: create_server comes from {patcher!r}"


def _has_ring() -> bool:
    """Whether this process has a ring of io_uring's, of whatever part of it."""
    folder = "/proc/self/fd"
    links = []
    for number in os.listdir(folder):
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"{folder}/{number}"))
    return "anon_inode:[io_uring]" in links


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        reason = "not installed" if error.name == module else f"needs {error.name}"
        raise LoopUnavailableError(reason) from error
    except ImportError as error:
        raise LoopUnavailableError(f"cannot be imported: {error}") from error


def _version_of(module: str) -> str:
    if module == "asyncio":
        return platform.python_version()
    version = importlib.metadata.version(module)
    if module == "cpploop":
        import cpploop

        # Without a profile it is not what a wheel holds, and slower.
        version += " by profile" if cpploop.build_info()["pgo"] == "use" else " without a profile"
    return version


LOOPS: dict[str, LoopSpec] = {
    spec.name: spec
    for spec in (
        LoopSpec("asyncio", "asyncio"),
        LoopSpec("uvloop", "uvloop"),
        LoopSpec("zuvloop", "zuvloop"),
        LoopSpec("rloop", "rloop"),
        LoopSpec("rsloop", "rsloop"),
        LoopSpec("blazio", "blazio"),
        LoopSpec("zloop", "zloop"),
        LoopSpec(
            "zloop-io_uring", "zloop", environment={"ZLOOP_IO_URING": "completion"}, rings=True
        ),
        LoopSpec("aiofastnet-asyncio", "asyncio", addon="aiofastnet"),
        LoopSpec("aiofastnet-uvloop", "uvloop", addon="aiofastnet"),
        LoopSpec("cpploop", "cpploop"),
        LoopSpec("cpploop-io_uring", "cpploop", backend="io_uring"),
        LoopSpec("cpploop-bio", "cpploop", environment={"CPPLOOP_TLS": "bio"}),
    )
}


def check_running(name: str) -> asyncio.AbstractEventLoop:
    """Return the running loop after asserting that it is the one called `name`."""
    loop = asyncio.get_running_loop()
    LOOPS[name].check(loop)
    return loop


def probe(name: str) -> dict[str, str]:
    """Run the loop once; {"version": ...} or {"reason": ...}."""

    async def nothing() -> None:
        check_running(name)
        await asyncio.sleep(0)

    try:
        with asyncio.Runner(loop_factory=LOOPS[name].load()) as runner:
            runner.run(nothing())
        return {"version": LOOPS[name].version()}
    except LoopUnavailableError as error:
        return {"reason": str(error)}
    except Exception as error:  # A rival may fail in any way; the reason is what matters.
        return {"reason": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
