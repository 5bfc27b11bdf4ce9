"""install() and EventLoopPolicy, while asyncio has policies."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import support
from parity import outcome

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="these are cpploop's own functions"
)

DEPRECATED = sys.version_info >= (3, 14)


@pytest.fixture(autouse=True)
def _policy_as_before() -> Iterator[None]:
    """Whatever a test installs is taken out again, its current loop included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        before = asyncio.events._event_loop_policy  # type: ignore[attr-defined]
        yield
        asyncio.set_event_loop_policy(before)


def install() -> None:
    import cpploop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        cpploop.install()


def running_loop_type() -> type:
    async def main() -> type:
        return type(asyncio.get_running_loop())

    return asyncio.run(main())


def test_install() -> None:
    import cpploop

    assert running_loop_type() is not cpploop.Loop
    install()
    assert running_loop_type() is cpploop.Loop
    loop = asyncio.new_event_loop()
    assert type(loop) is cpploop.Loop
    loop.close()
    with asyncio.Runner() as runner:
        assert type(runner.get_loop()) is cpploop.Loop
    install()
    assert running_loop_type() is cpploop.Loop


def test_an_explicit_factory_wins() -> None:
    install()
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert type(runner.get_loop()) is asyncio.SelectorEventLoop


def test_in_threads() -> None:
    import cpploop

    install()
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(running_loop_type()))
    thread.start()
    thread.join()
    assert seen == [cpploop.Loop]


def test_warnings_of_install() -> None:
    """Where asyncio deprecates policies, the warning names the caller's own line (uv#637)."""
    import cpploop

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cpploop.install()
    assert len(caught) == (1 if DEPRECATED else 0)
    if DEPRECATED:
        assert caught[0].category is DeprecationWarning
        assert caught[0].filename == __file__
        assert "cpploop.run()" in str(caught[0].message)


def test_the_policy_is_asyncios_but_for_the_loops() -> None:
    """No more than new_event_loop: everything else is inherited."""
    import cpploop

    default = asyncio.unix_events._UnixDefaultEventLoopPolicy  # type: ignore[attr-defined]
    assert issubclass(cpploop.EventLoopPolicy, default)
    own = {name for name in vars(cpploop.EventLoopPolicy) if not name.startswith("__")}
    assert own - {"_abc_impl"} == {"new_event_loop"}


def test_set_and_get() -> None:
    import cpploop

    policy = cpploop.EventLoopPolicy()
    loop = policy.new_event_loop()
    try:
        assert type(loop) is cpploop.Loop
        policy.set_event_loop(loop)
        assert policy.get_event_loop() is loop
        policy.set_event_loop(None)
        with pytest.raises(RuntimeError):
            policy.get_event_loop()
    finally:
        loop.close()


def test_get_event_loop_without_a_loop_as_this_python_does() -> None:
    """uv#702: 0.22 raised where asyncio did not; here the outcome is the default policy's."""
    import cpploop

    default: Any = asyncio.unix_events._UnixDefaultEventLoopPolicy  # type: ignore[attr-defined]

    def attempt(policy: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = outcome(policy.get_event_loop)
            if result[0] == "returned":
                policy.get_event_loop().close()
                result = ("returned",)
        return result, [(item.category.__name__, str(item.message)) for item in caught]

    assert attempt(cpploop.EventLoopPolicy()) == attempt(default())


def test_a_policy_set_by_hand() -> None:
    import cpploop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(cpploop.EventLoopPolicy())
        assert isinstance(asyncio.get_event_loop_policy(), cpploop.EventLoopPolicy)
    assert running_loop_type() is cpploop.Loop


def test_importing_warns_of_nothing() -> None:
    source = "import cpploop\nfrom cpploop import install, EventLoopPolicy\nprint('fine')"
    result = support.run_script(source, loop="asyncio", flags=("-W", "error"))
    assert (result.stdout, result.stderr) == ("fine\n", "")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.11 has child watchers of the policy")
def test_subprocesses_under_the_policy() -> None:
    install()

    async def main() -> tuple[bytes, int | None]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", "print('child')", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        return out, process.returncode

    assert asyncio.run(main()) == (b"child\n", 0)
