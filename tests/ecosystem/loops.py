"""Runs the coroutine tests of our own suites on each loop, and holds them to the one they name.

A plugin of ours, because two suites want the same: asyncio is the control of every test, and a test
that is a coroutine function runs on the loop that the fixture `loop_name` says.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from processes import PATIENCE_S

import cpploop

FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "cpploop": cpploop.new_event_loop,
}
CLASSES = {"asyncio": asyncio.SelectorEventLoop, "cpploop": cpploop.Loop}


@pytest.fixture(params=FACTORIES, autouse=True)
def loop_name(request: pytest.FixtureRequest) -> str:
    """Name the loop of this variant of the test."""
    name: str = request.param
    return name


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Run a coroutine function on its loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run_on(pyfuncitem.funcargs["loop_name"], pyfuncitem.obj(**arguments))
    return True


def run_on(loop_name: str, main: Coroutine[Any, Any, Any]) -> Any:
    """Run MAIN on the loop, and return what it does.

    What a callback raises is reported to the loop's exception handler only; here it fails the test.
    """
    reported: list[dict[str, Any]] = []

    async def watched() -> Any:
        loop = asyncio.get_running_loop()
        assert type(loop) is CLASSES[loop_name]
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        async with asyncio.timeout(PATIENCE_S):
            return await main

    with asyncio.Runner(loop_factory=FACTORIES[loop_name]) as runner:
        result = runner.run(watched())
    assert not reported
    return result


async def until(holds: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Ask until the answer is true and return it; the test's own time limit ends it."""
    while not (result := await holds()):
        await asyncio.sleep(0.01)
    return result
