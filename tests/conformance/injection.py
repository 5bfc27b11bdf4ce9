"""Makes the loop under test the one asyncio makes, and keeps a record that proves it.

Everything here happens in a warm process that has not imported a test module yet: some of them
read `asyncio.EventLoop` while their classes are built.
"""

from __future__ import annotations

import asyncio
import asyncio.base_events
import asyncio.unix_events
import collections
import functools
import importlib
import os
import pickle
import unittest
from collections.abc import Callable
from typing import Any

Factory = Callable[[], asyncio.AbstractEventLoop]

# asyncio's own class under the names it is known by, taken before anything is replaced.
ASYNCIO_LOOP: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
PUBLIC_NAMES = ("SelectorEventLoop", "EventLoop")
POLICY_NAMES = ("_DefaultEventLoopPolicy", "DefaultEventLoopPolicy")

KNOWN_LOOPS = {
    "asyncio": "asyncio:SelectorEventLoop",
    "cpploop": "cpploop:new_event_loop",
}


class InjectionError(Exception):
    """The loop under test cannot be made asyncio's default loop."""


class Injection:
    """The loop under test: its factory, its class, and the loops made since `forget()`.

    Owned by the warm process; each forked test has its own copy of the record.
    """

    def __init__(self, spec: str) -> None:
        self.spec = KNOWN_LOOPS.get(spec, spec)
        module_name, _, attribute = self.spec.partition(":")
        if not attribute:
            raise InjectionError(f"--loop {spec}: expected asyncio, cpploop or MODULE:FACTORY")
        try:
            module = importlib.import_module(module_name)
            self.factory: Factory = getattr(module, attribute)
        except (ImportError, AttributeError) as error:
            raise InjectionError(f"--loop {spec}: {error}") from error
        self.loop_class = _class_made_by(self.factory)
        self.made: collections.Counter[str] = collections.Counter()

    @property
    def is_control(self) -> bool:
        return self.loop_class is ASYNCIO_LOOP

    @property
    def name(self) -> str:
        return _full_name(self.loop_class)

    def install(self) -> None:
        self._record_loops()
        if self.is_control:
            return
        for namespace in (asyncio, asyncio.unix_events):
            for name in PUBLIC_NAMES:
                if hasattr(namespace, name):
                    setattr(namespace, name, self.loop_class)
        policies = {
            policy
            for name in POLICY_NAMES
            if (policy := vars(asyncio.unix_events).get(name)) is not None
        }
        if policies:
            for policy in policies:
                policy._loop_factory = staticmethod(self.factory)
        else:
            asyncio.new_event_loop = asyncio.events.new_event_loop = self.factory

    def _record_loops(self) -> None:
        """Notes the exact class of every loop made from here on.

        asyncio's loops all pass through BaseEventLoop.__init__. A loop of our own need not, so
        its class is wrapped as well, and counted only there.
        """
        made = self.made
        ours = self.loop_class
        base: Any = asyncio.base_events.BaseEventLoop
        base_init = base.__init__
        own: Any = ours
        own_init = own.__init__

        @functools.wraps(base_init)
        def recorded_base_init(loop: Any, *args: Any, **kwargs: Any) -> None:
            if self.is_control or not isinstance(loop, ours):
                made[_full_name(type(loop))] += 1
            base_init(loop, *args, **kwargs)

        base.__init__ = recorded_base_init
        if self.is_control:
            return

        @functools.wraps(own_init)
        def recorded_own_init(loop: Any, *args: Any, **kwargs: Any) -> None:
            made[_full_name(ours if isinstance(loop, ours) else type(loop))] += 1
            own_init(loop, *args, **kwargs)

        try:
            own.__init__ = recorded_own_init
        except TypeError as error:
            raise InjectionError(f"{self.name} takes no __init__ to record with") from error

    def forget(self) -> None:
        self.made.clear()

    def prove(self) -> list[str]:
        """Runs a coroutine in every way asyncio offers; returns the ways that missed the loop.

        Runs in a forked child, because it makes loops and the warm process must not.
        """
        wrong: list[str] = []

        def check(way: str, loop: asyncio.AbstractEventLoop) -> None:
            if type(loop) is not self.loop_class:
                wrong.append(f"{way} ran {_full_name(type(loop))}, not {self.name}")

        async def running() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        def run_on(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
            try:
                return loop.run_until_complete(running())
            finally:
                loop.close()

        check("asyncio.run", asyncio.run(running()))
        with asyncio.Runner() as runner:
            check("asyncio.Runner", runner.run(running()))
        check("asyncio.new_event_loop", run_on(asyncio.new_event_loop()))
        for name in PUBLIC_NAMES:
            if hasattr(asyncio, name):
                check(f"asyncio.{name}", run_on(getattr(asyncio, name)()))

        class Case(unittest.IsolatedAsyncioTestCase):
            async def test(self) -> None:
                check("IsolatedAsyncioTestCase", asyncio.get_running_loop())

        outcome = unittest.TestResult()
        Case("test").run(outcome)
        wrong += [trace for _, trace in outcome.errors + outcome.failures]
        if not self.is_control and self.made[_full_name(ASYNCIO_LOOP)]:
            wrong.append(f"asyncio's own {_full_name(ASYNCIO_LOOP)} was made on the way")
        return wrong


def asyncio_loop_name() -> str:
    return _full_name(ASYNCIO_LOOP)


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_made_by(factory: Any) -> type[asyncio.AbstractEventLoop]:
    """The class of the factory's loops. A function is called in a forked child to find out."""
    if isinstance(factory, type):
        return factory
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            loop = factory()
            with os.fdopen(write_end, "wb") as sink:
                pickle.dump(type(loop), sink)
            loop.close()
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as source:
        data = source.read()
    _, status = os.waitpid(pid, 0)
    if status or not data:
        raise InjectionError(f"{factory!r} did not make a loop (wait status {status})")
    cls: type[asyncio.AbstractEventLoop] = pickle.loads(data)
    return cls
