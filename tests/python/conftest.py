"""Fixtures that run every behaviour test on asyncio (the oracle) and on cpploop.

Environment:

``CPPLOOP_TESTS=asyncio`` or ``=cpploop`` selects one loop; by default both run, and a cpploop
that cannot be imported fails its tests rather than hiding them.
``CPPLOOP_TIME_SCALE=4`` multiplies every time-out (sanitizer builds, slow machines).
``CPPLOOP_LONG=1`` turns the short soak tests into their full length.
``CPPLOOP_SEED=7`` has the tests that draw a seed (it is shown when they fail) draw that one.

``--sample=WORD`` runs each test function once, with one of its parameter sets; the word decides
which, so that runs on different Pythons, each with a word of its own, cover different ones.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import signal
import sys
import sysconfig
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import portable
import support
import tls_support

# A test that hangs is killed by pytest-timeout; support.run's own time-out, which is shorter and
# tells what was going on, normally comes first. The full lengths of the soak tests are minutes.
CEILING_S = 240.0 if support.LONG else 60.0
# The property of a test's report that holds what it measured.
FIGURE = "figure"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample",
        metavar="WORD",
        help="run each test function with one of its parameter sets, chosen by WORD",
    )


def pytest_configure(config: pytest.Config) -> None:
    # What scripts/second_try.sh asks of this run is meant for its workers, not for a pytest that a
    # test starts.
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("PYTEST_ADDOPTS", None)
    # A shell's background job ignores Ctrl-C, and so would every program that a test starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    support.PARALLEL = config.getoption("parallel_threads", 1) not in (1, "1")
    if portable.is_portable():
        # libkqueue has a thread, which makes every fork() one of a process with several threads.
        config.addinivalue_line(
            "filterwarnings", "ignore:This process .* is multi-threaded:DeprecationWarning"
        )
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): needs pytest-timeout to have effect")


def pytest_sessionstart() -> None:
    refuse_a_lock()


def pytest_runtest_teardown() -> None:
    refuse_a_lock()


def refuse_a_lock() -> None:
    """Modules that cannot do without the lock switch it on, and threads prove nothing from then."""
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED") and sys.flags.gil != 1
    assert not (free_threaded and sys._is_gil_enabled()), "something has switched the lock on"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    word = config.getoption("sample")
    if word is not None:
        take_sample(config, items, word)
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(CEILING_S * support.TIME_SCALE))
        # What is not run by one of these has one loop for the whole test, which is one thread's,
        # or is about the process.
        if support.PARALLEL and not {"run", "tls_run"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.thread_unsafe(reason="one loop, or one process"))
    portable.mark_exceptions(items)


def take_sample(config: pytest.Config, items: list[pytest.Item], word: str) -> None:
    """Deselects all but one item of each test function."""

    def lot(item: pytest.Item) -> tuple[bool, int]:
        # What is skipped beforehand would take the place of one that runs.
        return is_skipped(item), zlib.crc32(f"{word} {item.nodeid}".encode())

    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = {min(function, key=lot) for function in functions.values()}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def is_skipped(item: pytest.Item) -> bool:
    if item.get_closest_marker("skip") is not None:
        return True
    return any(mark.args and mark.args[0] is True for mark in item.iter_markers("skipif"))


def pytest_collection_finish() -> None:
    """What exists by now stays: support.run collects twice per test and need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests have measured, in any of the processes that ran them."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == FIGURE
    ]
    if lines:
        terminalreporter.section("figures")
        terminalreporter.write_line("\n".join(sorted(lines)))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes what a test has measured, for the end of the run's output."""
    return functools.partial(record_property, FIGURE)


@pytest.fixture
def seed() -> int:
    """What a test's random numbers begin with: a plan of its own in every run.

    A failure shows it, and CPPLOOP_SEED brings it again.
    """
    drawn = int(os.environ.get("CPPLOOP_SEED") or random.randrange(1 << 32))
    print(f"CPPLOOP_SEED={drawn}")
    return drawn


def pytest_runtest_setup() -> None:
    """Sweep up after a failure: what its frames held must not be found by the next test."""
    failure = getattr(sys, "last_value", None)
    if failure is None:
        return
    traceback.clear_frames(failure.__traceback__)
    sys.last_value = failure = None
    sys.last_exc = sys.last_traceback = None  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(params=support.selected_loops())
def loop_name(request: pytest.FixtureRequest) -> str:
    """The name of the loop under test: "asyncio" or "cpploop"."""
    name: str = request.param
    try:
        support.factory(name)
    except ImportError as exc:
        pytest.fail(f"the loop under test cannot be imported: {exc}", pytrace=False)
    return name


@pytest.fixture
def loop_factory(loop_name: str) -> support.LoopFactory:
    """A callable that makes a new event loop; the test runs once per loop."""
    return support.factory(loop_name)


@pytest.fixture
def run(loop_factory: support.LoopFactory) -> Callable[..., Any]:
    """``support.run`` bound to the loop under test: ``run(main)``, ``run(main, debug=True)``."""
    return functools.partial(support.run, loop_factory)


def force_tls(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the loop called NAME needs in the environment, for the length of the test."""
    _, _, tier = name.partition("-")
    if tier:
        monkeypatch.setenv("CPPLOOP_TLS", tier)


@pytest.fixture(params=support.tls_loops())
def tls_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the loop under test, once per way of doing TLS: "asyncio", "cpploop-bio", ..."""
    name: str = request.param
    force_tls(name, monkeypatch)
    try:
        support.factory(name)
    except ImportError as exc:
        pytest.fail(f"the loop under test cannot be imported: {exc}", pytrace=False)
    return name


@pytest.fixture
def tls_run(tls_name: str) -> Callable[..., Any]:
    """``support.run`` bound to the loop under test, once per way of doing TLS."""
    return functools.partial(support.run, support.factory(tls_name))


@pytest.fixture(params=support.tls_contenders())
def tls_compare(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Any]]:
    """``support.compare`` of the oracle with cpploop, once per way of doing TLS."""
    force_tls(request.param, monkeypatch)
    names = ["asyncio", request.param] if request.param != "asyncio" else ["asyncio"]
    return functools.partial(support.compare, names=names)


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tls_support.Pki:
    """Certificates for every purpose, good and bad, made once per process."""
    return tls_support.make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> support.Certificates:
    """A certificate authority and a server certificate for localhost, made once per process."""
    return support.make_certificates(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory whose name is short enough for Unix socket paths (at most 107 bytes)."""
    with support.short_directory() as path:
        yield path
