"""Which tests of the running interpreter's `test.test_asyncio` make the conformance run.

A module is taken whole, less the classes that hand asyncio's loop a selector of their own (our
loop has none to give) and the Windows ones; the mixins behind those classes get one concrete class
here. Tests keep the names they have upstream: `MODULE.CLASS.METHOD`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import re
import unittest
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

PACKAGE = "test.test_asyncio"
EVERY_CLASS = r".*"
MEMORY_LIMIT_BYTES = 3 << 30
SELECTOR_CLASSES = r"(Select|Poll|EPoll|Devpoll|Kqueue)EventLoopTests|.*(Proactor|Windows|Win32).*"


@dataclass(frozen=True)
class Suite:
    """One upstream module: the classes wanted of it, and the mixins that need a class of ours."""

    name: str
    classes: str = EVERY_CLASS
    # Concrete class -> its mixins, each given as alternatives: the first that is there is taken.
    mixins: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    # False for what is written in Python over call_soon and call_later alone.
    short: bool = True


SUITES = (
    Suite(
        "test_events",
        # The rest of the module tests Handle, TimerHandle and policies on mocks: no loop runs.
        r"Test(Py|C)GetEventLoop|TestServer|UnixPipeObjectSupportTests",
        {
            "EventLoopTests": (
                ("UnixEventLoopTestsMixin", "EventLoopTestsMixin"),
                ("SubprocessTestsMixin",),
            )
        },
    ),
    Suite("test_sock_lowlevel", mixins={"SockTests": (("BaseSockTestsMixin",),)}),
    Suite("test_server"),
    Suite("test_server_context"),
    Suite("test_buffered_proto"),
    Suite("test_sendfile", mixins={"SendfileTests": (("SendfileTestsBase",),)}),
    Suite("test_streams"),
    Suite("test_ssl"),
    Suite("test_sslproto"),
    Suite("test_subprocess"),
    Suite(
        "test_unix_events",
        # The rest tests private methods and pipe transports on mocks.
        r"TestFork|TestFunctional|PidfdChildWatcherTests"
        r"|SelectorEventLoop(Signal|UnixSocket)Tests",
    ),
    Suite("test_tasks"),
    Suite("test_futures"),
    Suite("test_taskgroups"),
    Suite("test_timeouts"),
    Suite("test_pep492"),
    Suite("test_waitfor"),
    Suite("test_eager_task_factory"),
    Suite("test_locks", short=False),
    Suite("test_queues", short=False),
    Suite("test_runners"),
    Suite("test_threads"),
    Suite("test_context", short=False),
    Suite("test_futures2", short=False),
    Suite("test_graph", short=False),
    Suite("test_staggered", short=False),
    Suite("test_free_threading"),
)


# Left out of the short form: the same tests once more on the pure-Python task or on another child
# watcher, and those that mostly wait, half a second and more, where a quicker neighbour asks the
# same of the loop.
TWICE_OR_SLOW = re.compile(
    r"test_subprocess\.Subprocess(Threaded|Safe|Fast|MultiLoop)Watcher.*"
    r"|test_subprocess\..*\.test_kill_issue43884"
    r"|.*\.(Test)?(Eager|NonEager)?Py[A-Z].*|.*\.(Eager|NonEager)PyTaskTests\..*"
    r"|test_(tasks|futures)\.C(Sub|Task_?(CFuture_)?Sub|Task_Py).*"
    r"|test_taskgroups\.TestEagerTaskTaskGroup\..*"
    r"|test_taskgroups\..*\.test_taskgroup_(02|03|15|16|23|24)"
    r"|test_eager_task_factory\..*\.test_staggered_race_with_eager_tasks.*"
    # test_ssl has each of these too.
    r"|test_sslproto\..*\.test_(create_connection_ssl_slow_handshake|start_tls_slow_client_cancel"
    r"|create_connection_memory_leak|start_tls_client_(reg|buf)_proto_1)"
)


def is_left_out_of_short_form(test_id: str) -> bool:
    suite = next(suite for suite in SUITES if suite.name == test_id.partition(".")[0])
    return not suite.short or TWICE_OR_SLOW.fullmatch(test_id) is not None


@dataclass
class Collection:
    """What was found: tests by name in running order, and what the installation lacks."""

    tests: dict[str, unittest.TestCase] = field(default_factory=dict)
    suite_of: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)


def collect(names: list[str] | None = None) -> Collection:
    """Imports the wanted modules and lists their tests. Call after the injection."""
    found = Collection()
    lacking = _what_is_lacking()
    if lacking:
        found.lacking = lacking
        return found
    support: Any = importlib.import_module("test.support")
    support.verbose = 0  # As under regrtest: no chatter from test_ssl.
    # Newer Pythons declare two TLS tests to need 2.2 GiB, by a generous estimate, and skip them
    # unless told that there is so much.
    if _memory_bytes() >= MEMORY_LIMIT_BYTES:
        support.set_memlimit(f"{MEMORY_LIMIT_BYTES >> 30}g")
    for suite in SUITES:
        if names and suite.name not in names:
            continue
        if importlib.util.find_spec(f"{PACKAGE}.{suite.name}") is None:
            found.absent.append(suite.name)
            continue
        try:
            module = importlib.import_module(f"{PACKAGE}.{suite.name}")
        except unittest.SkipTest as skip:
            found.absent.append(f"{suite.name} ({skip})")
            continue
        except ImportError as error:
            found.lacking.append(f"{suite.name} does not import: {error}")
            continue
        _let_mocked_loops_be_real(suite.name, module)
        for cls in _classes(suite, module):
            for method in unittest.defaultTestLoader.getTestCaseNames(cls):
                test_id = f"{suite.name}.{cls.__name__}.{method}"
                found.tests[test_id] = cls(method)
                found.suite_of[test_id] = suite.name
    return found


def _classes(suite: Suite, module: ModuleType) -> list[type[unittest.TestCase]]:
    classes = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, unittest.TestCase)
        and value.__module__ == module.__name__
        and re.fullmatch(suite.classes, name)
        and not re.fullmatch(SELECTOR_CLASSES, name)
    ]
    return [_combine(name, mixins, module) for name, mixins in suite.mixins.items()] + classes


def _combine(
    name: str, mixins: tuple[tuple[str, ...], ...], module: ModuleType
) -> type[unittest.TestCase]:
    """A concrete class of the mixins, a member of their module so that its fixtures apply."""
    utils = importlib.import_module(f"{PACKAGE}.utils")
    bases = []
    for alternatives in mixins:
        present = [getattr(module, mixin) for mixin in alternatives if hasattr(module, mixin)]
        if not present:
            raise LookupError(f"{module.__name__} has none of {', '.join(alternatives)}")
        bases.append(present[0])

    def create_event_loop(self: unittest.TestCase) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    body = {"create_event_loop": create_event_loop, "__module__": module.__name__}
    return type(name, (*bases, utils.TestCase), body)


def _let_mocked_loops_be_real(name: str, module: Any) -> None:
    """Three modules test their subject on a BaseEventLoop with a mocked selector.

    The subject (run, await, the subprocess transport) works on any loop, so it gets a real one
    here, on asyncio as well as on the loop under test.
    """
    if name == "test_pep492":
        utils = importlib.import_module(f"{PACKAGE}.utils")

        def set_up(self: Any) -> None:
            utils.TestCase.setUp(self)
            self.loop = asyncio.new_event_loop()
            self.set_event_loop(self.loop)

        module.BaseTest.setUp = set_up
    elif name == "test_runners":

        def new_loop(self: Any) -> asyncio.AbstractEventLoop:
            loop = asyncio.SelectorEventLoop()
            attributes: Any = loop
            own_shutdown = loop.shutdown_asyncgens
            attributes.shutdown_ag_run = False

            async def shutdown_asyncgens() -> None:
                attributes.shutdown_ag_run = True
                await own_shutdown()

            attributes.shutdown_asyncgens = shutdown_asyncgens
            return loop

        module.BaseTest.new_loop = new_loop
    elif name in ("test_tasks", "test_futures"):
        utils = importlib.import_module(f"{PACKAGE}.utils")

        def new_timed_loop(self: Any, gen: Any = None) -> asyncio.AbstractEventLoop:
            loop = _timed_loop(gen)
            self.set_event_loop(loop)
            return loop

        utils.TestCase.new_test_loop = new_timed_loop
    elif name == "test_subprocess":

        def new_test_loop(self: Any, gen: object = None) -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            self.set_event_loop(loop)
            return loop

        module.SubprocessTransportTests.new_test_loop = new_test_loop


def _timed_loop(gen: Any) -> asyncio.AbstractEventLoop:
    """A real loop whose clock stands still but for what the test's generator says.

    As upstream's TestLoop, which is a BaseEventLoop without a selector: for each timer the
    generator is sent its time and yields by how much the clock moves on.
    """
    base: Any = asyncio.SelectorEventLoop

    class TimedLoop(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._now = 0.0
            self._steps = gen() if gen is not None else None
            if self._steps is not None:
                next(self._steps)

        def time(self) -> float:
            return self._now

        def advance_time(self, advance: float) -> None:
            self._now += advance or 0.0

        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            if self._steps is not None:
                self.call_soon(self._move_on, when)
            return super().call_at(when, callback, *args, context=context)

        def _move_on(self, when: float) -> None:
            self.advance_time(self._steps.send(when))

        def close(self) -> None:
            super().close()
            if self._steps is not None:
                try:
                    self._steps.send(0)
                except StopIteration:
                    pass
                else:
                    raise AssertionError("the generator of times is not finished")

    # What is recorded of it is that a loop of its base's kind was made.
    TimedLoop.__module__, TimedLoop.__qualname__ = base.__module__, base.__qualname__
    return TimedLoop()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _what_is_lacking() -> list[str]:
    """The parts of CPython's test package that this installation does not have."""
    for name in ("test.support", PACKAGE, f"{PACKAGE}.utils", f"{PACKAGE}.functional"):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # utils looks its certificates up at import.
            return [
                f"{name} does not import ({error}): this Python came without CPython's own tests;"
                " Debian has them in libpython3.X-testsuite, Fedora in python3-test"
            ]
    utils: Any = importlib.import_module(f"{PACKAGE}.utils")
    package_dir = os.path.dirname(os.path.abspath(utils.__file__))
    files = [os.path.join(package_dir, name) for name in ("echo.py", "echo2.py", "echo3.py")]
    files += [
        getattr(utils, name)
        for name in ("ONLYCERT", "ONLYKEY", "SIGNED_CERTFILE", "SIGNING_CA")
        if hasattr(utils, name)
    ]
    lacking = [f"file {path} is missing" for path in files if not os.path.exists(path)]
    for name in ("ssl", "_posixsubprocess", "_multiprocessing"):
        if importlib.util.find_spec(name) is None:
            lacking.append(f"this Python was built without {name}")
    return lacking
