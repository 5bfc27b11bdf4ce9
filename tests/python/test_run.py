"""cpploop.run and cpploop.new_event_loop: the same as asyncio.run with a loop_factory."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import io
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import outcome

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="these are cpploop's own functions"
)


def asyncio_run(main: Any, **kwargs: Any) -> Any:
    """asyncio.run on asyncio's own loop, also where it takes no loop_factory."""
    if sys.version_info >= (3, 12):
        return asyncio.run(main, loop_factory=asyncio.SelectorEventLoop, **kwargs)
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, **kwargs) as runner:
        return runner.run(main)


def cpploop_run(main: Any, **kwargs: Any) -> Any:
    import cpploop

    return cpploop.run(main, **kwargs)


RUNS = [asyncio_run, cpploop_run]


def same_by_both(attempt: Callable[[Callable[..., Any]], Any]) -> Any:
    expected, actual = (outcome(attempt, run) for run in RUNS)
    assert actual == expected
    return expected


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    gc.collect()


def test_result() -> None:
    async def main() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        return "result", type(loop).__module__.partition(".")[0]

    assert cpploop_run(main()) == ("result", "cpploop")


def test_exceptions() -> None:
    async def fails(kind: type[BaseException]) -> None:
        await asyncio.sleep(0)
        raise kind("from main")

    for kind in (LookupError, SystemExit, KeyboardInterrupt, asyncio.CancelledError):
        result = same_by_both(lambda run, kind=kind: run(fails(kind)))
        assert result[1] == kind.__name__


@pytest.mark.parametrize("value", [None, 1, "text", print], ids=repr)
def test_what_is_no_coroutine(value: Any) -> None:
    assert same_by_both(lambda run: run(value))[0] == "raised"


def test_an_awaitable_that_is_no_coroutine() -> None:
    """Accepted from 3.14 on."""

    class Awaitable:
        def __await__(self) -> Iterator[Any]:
            yield
            return "awaited"

    same_by_both(lambda run: run(Awaitable()))


def test_a_coroutine_function_given_by_mistake() -> None:
    async def main() -> None:
        pass

    assert same_by_both(lambda run: run(main))[0] == "raised"


def test_inside_a_running_loop() -> None:
    def attempt(run: Callable[..., Any]) -> Any:
        async def inner() -> None:
            pass

        async def main() -> Any:
            coroutine = inner()
            try:
                return outcome(run, coroutine)
            finally:
                coroutine.close()

        return run(main())

    result = same_by_both(attempt)
    assert result[1][1:] == (
        "RuntimeError",
        "asyncio.run() cannot be called from a running event loop",
    )


@pytest.mark.parametrize("debug", [True, False, None])
def test_debug(debug: bool | None) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert cpploop_run(main(), debug=debug) is bool(debug)


def test_debug_is_keyword_only() -> None:
    async def main() -> None:
        pass

    for args in ((True,), (None, None)):
        coroutine = main()
        with pytest.raises(TypeError):
            cpploop_run_positional(coroutine, *args)
        coroutine.close()


def cpploop_run_positional(*args: Any) -> Any:
    import cpploop

    return cpploop.run(*args)


def test_the_loop_is_closed_and_nothing_stays_current() -> None:
    import cpploop

    loops: list[Any] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        asyncio.create_task(asyncio.sleep(60))

    before = support.open_fds()
    cpploop.run(main())
    assert loops[0].is_closed()
    assert asyncio._get_running_loop() is None
    assert support.new_fds(before) == {}


def test_it_does_not_set_the_current_loop() -> None:
    """As loop_factory does: a loop that the program has set stays set."""
    mine = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(mine)
    try:
        for run in RUNS:

            async def main() -> None:
                pass

            run(main())
            assert asyncio.get_event_loop() is mine
    finally:
        asyncio.set_event_loop(None)
        mine.close()


def test_context_and_several_runs() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")

    def attempt(run: Callable[..., Any]) -> list[str]:
        async def main() -> str:
            before = variable.get()
            variable.set("inside")
            return before

        return [run(main()), run(main()), variable.get()]

    assert same_by_both(attempt) == ("returned", ["outside", "outside", "outside"])


def test_shutdown_of_tasks_generators_and_executor() -> None:
    def attempt(run: Callable[..., Any]) -> list[str]:
        trace: list[str] = []

        async def numbers() -> Any:
            try:
                yield 1
            finally:
                trace.append("generator")

        async def child() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                trace.append("task")

        async def main() -> None:
            held.append(asyncio.create_task(child()))
            held.append(numbers())
            await anext(held[1])
            await asyncio.to_thread(int)
            trace.append("main")

        held: list[Any] = []
        run(main())
        trace.append(str([t.name for t in threading.enumerate() if "asyncio" in t.name]))
        return trace

    assert same_by_both(attempt)[1] == ["main", "task", "generator", "[]"]


def test_in_another_thread() -> None:
    import cpploop

    results: list[Any] = []

    async def main() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    thread = threading.Thread(target=lambda: results.append(cpploop.run(main())), name="other")
    thread.start()
    thread.join()
    assert results == ["other"]


def test_ctrl_c() -> None:
    import cpploop

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        seen: list[str] = []

        async def main() -> None:
            signal.raise_signal(signal.SIGINT)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        with pytest.raises(KeyboardInterrupt):
            cpploop.run(main())
        assert seen == ["cancelled"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, previous)


def test_loop_factory_of_a_subclass() -> None:
    import cpploop

    class Own(cpploop.Loop):  # type: ignore[misc]
        pass

    async def main() -> type:
        return type(asyncio.get_running_loop())

    assert cpploop.run(main(), loop_factory=Own) is Own


def test_new_event_loop() -> None:
    import cpploop

    loop = cpploop.new_event_loop()
    try:
        assert type(loop) is cpploop.Loop is cpploop.EventLoop
        assert not loop.is_running() and not loop.is_closed()
    finally:
        loop.close()
    with pytest.raises(TypeError):
        cpploop.new_event_loop(1)


def test_public_names_and_signatures() -> None:
    import cpploop

    assert list(inspect.signature(cpploop.run).parameters) == ["main", "debug", "loop_factory"]
    assert isinstance(cpploop.__version__, str)
    info = cpploop.build_info()
    assert isinstance(info, dict) and all(isinstance(key, str) for key in info)
    assert info["build_type"] in ("Release", "RelWithDebInfo", "Debug")
    assert info["lto"] in (True, False) and info["pgo"] in ("", "generate", "use")
    documented = (inspect.getdoc(cpploop.build_info) or "").partition("Keys: ")[2].partition(".")[0]
    assert {key.split()[0] for key in documented.split(",")} == set(info)
    for name in ("new_event_loop", "EventLoop", "Loop", "run", "install", "EventLoopPolicy"):
        assert name in cpploop.__all__ and hasattr(cpploop, name)


def test_a_factory_everywhere_a_factory_is_taken() -> None:
    import unittest

    import cpploop

    with asyncio.Runner(loop_factory=cpploop.new_event_loop) as runner:
        assert isinstance(runner.get_loop(), cpploop.Loop)
    with asyncio.Runner(loop_factory=cpploop.EventLoop) as runner:
        assert isinstance(runner.get_loop(), cpploop.Loop)
    if sys.version_info >= (3, 13):
        seen: list[Any] = []

        class Case(unittest.IsolatedAsyncioTestCase):
            # A class: a function found on a class becomes a method.
            loop_factory = cpploop.EventLoop

            async def test(self) -> None:
                seen.append(asyncio.get_running_loop())

        unittest.TextTestRunner(stream=io.StringIO()).run(Case("test"))
        gc.collect()
        assert [type(loop) for loop in seen] == [cpploop.Loop]


def test_importing_changes_nothing() -> None:
    """aegis-stack#1200"""
    source = """
        import asyncio, signal, sys, threading, warnings
        warnings.simplefilter("error")
        hooks = (sys.get_asyncgen_hooks(), sys.excepthook, sys.unraisablehook, sys.meta_path[:],
                 signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD),
                 threading.enumerate(), threading.excepthook, sys.getswitchinterval())
        names = {name: getattr(asyncio, name) for name in asyncio.__all__}
        import cpploop
        assert hooks == (sys.get_asyncgen_hooks(), sys.excepthook, sys.unraisablehook,
                         sys.meta_path[:], signal.getsignal(signal.SIGINT),
                         signal.getsignal(signal.SIGCHLD), threading.enumerate(),
                         threading.excepthook, sys.getswitchinterval())
        assert names == {name: getattr(asyncio, name) for name in asyncio.__all__}
        if hasattr(asyncio.events, "_event_loop_policy"):
            assert asyncio.events._event_loop_policy is None
        loop = asyncio.new_event_loop()
        assert not isinstance(loop, cpploop.Loop)
        loop.close()
        if hasattr(sys, "_is_gil_enabled"):
            import sysconfig
            print(sys._is_gil_enabled() != bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
        else:
            print(True)
        """
    assert support.run_script(source, loop="cpploop").stdout == "True\n"


def test_no_warning_with_warnings_as_errors() -> None:
    source = """
        import asyncio, cpploop
        print(cpploop.run(asyncio.sleep(0.001, "fine")))
        """
    result = support.run_script(source, loop="cpploop", flags=("-W", "error", "-X", "dev"))
    assert (result.stdout, result.stderr) == ("fine\n", "")


def test_forgotten_coroutines_are_the_callers_fault() -> None:
    """A refused call leaves the coroutine to its owner, as asyncio.run does."""

    async def main() -> None:
        pass

    async def outer(run: Callable[..., Any]) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                run(main())
            except RuntimeError:
                pass
            gc.collect()
        return [str(item.message).rpartition(".")[2] for item in caught]

    assert same_by_both(lambda run: run(outer(run)))[0] == "returned"
