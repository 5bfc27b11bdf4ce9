"""Native types cannot be built half-made, and no wrong call crashes the process (C6).

Everything runs in one process per type, so that a crash names its type.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import support

pytestmark = pytest.mark.skipif(
    "cpploop" not in support.selected_loops(), reason="about cpploop's native types"
)


def native_types() -> list[str]:
    try:
        from cpploop import _native
    except ImportError:
        return []
    return sorted(
        name
        for name, value in vars(_native).items()
        if inspect.isclass(value) and value.__module__.startswith("cpploop")
    )


COMMON = """
import asyncio, gc, inspect, pickle, copy, sys, warnings
import cpploop
from cpploop import _native
warnings.simplefilter("ignore")
sys.unraisablehook = lambda args: None

ACCEPTABLE = (TypeError, ValueError, RuntimeError, AttributeError, OSError, OverflowError,
              NotImplementedError, LookupError, UnicodeError, SystemError,
              AssertionError)  # asyncio's base classes assert what they are given.

class Raises:
    def __getattr__(self, name):
        raise ValueError(name)
    def __index__(self):
        raise ValueError("index")
    def __float__(self):
        raise ValueError("float")
    def __bool__(self):
        raise ValueError("bool")
    def fileno(self):
        raise ValueError("fileno")
    def __iter__(self):
        raise ValueError("iter")

ODD = [None, 0, -1, 2**70, -(2**70), 1.5, float("nan"), "", "text", "nul\\0", b"", b"bytes",
       bytearray(b"x"), memoryview(b"x"), (), (1,), [], {}, object(), object, print, Raises(),
       type, asyncio, lambda *args, **kwargs: None, Exception("x"), Ellipsis, NotImplemented]

def poke(call):
    try:
        return call()
    except ACCEPTABLE as exc:
        assert not isinstance(exc, SystemError) or "half" in str(exc), repr(exc)
        return None
"""

EXERCISE = """
kind = getattr(_native, sys.argv[1], None)

def members(target):
    for name in dir(target):
        if name in ("__class__", "__init_subclass__", "__subclasshook__", "__reduce__",
                    "__reduce_ex__", "__getstate__", "__del__"):
            continue
        yield name

def exercise(target):
    \"\"\"Touch everything that TARGET has, with wrong arguments.\"\"\"
    poke(lambda: repr(target))
    poke(lambda: hash(target))
    poke(lambda: target == target)
    poke(lambda: target < target)
    poke(lambda: bool(target))
    for name in members(target):
        if name in ("run_forever", "_run", "run", "_run_once", "__init__"):
            continue
        attribute = poke(lambda: getattr(target, name))
        if not callable(attribute) or inspect.isclass(attribute):
            continue
        result = poke(attribute)
        if inspect.iscoroutine(result):
            result.close()
        for odd in ODD:
            result = poke(lambda: attribute(odd))
            if inspect.iscoroutine(result):
                result.close()
        for odd in (None, -1, "text", object()):
            result = poke(lambda: attribute(odd, odd))
            if inspect.iscoroutine(result):
                result.close()
            result = poke(lambda: attribute(odd, print, odd))
            if inspect.iscoroutine(result):
                result.close()
        poke(lambda: attribute(unknown_keyword=1))
    for name in members(target):
        if not name.startswith("__"):
            poke(lambda: setattr(target, name, None))
            poke(lambda: delattr(target, name))
"""


def run(source: str, *args: str) -> str:
    import textwrap

    result = support.run_script(
        COMMON + EXERCISE + textwrap.dedent(source), *args, loop="cpploop", timeout=60
    )
    return result.stdout


@pytest.mark.parametrize("name", native_types())
def test_built_from_python(name: str) -> None:
    """Either a type refuses to be built or what is built can be used and dropped safely."""
    run(
        """
        made = []
        made.append(poke(lambda: kind()))
        made.append(poke(lambda: kind.__new__(kind)))
        made.append(poke(lambda: object.__new__(kind)))
        for odd in ODD:
            made.append(poke(lambda: kind(odd)))
            made.append(poke(lambda: kind(odd, odd)))
            made.append(poke(lambda: kind(odd, print, (), odd)))
            made.append(poke(lambda: kind.__new__(kind, odd)))
        made.append(poke(lambda: kind(unknown=1)))
        made = [item for item in made if isinstance(item, kind)]
        for item in made:
            exercise(item)
        gc.collect()
        del made
        gc.collect()
        """,
        name,
    )


@pytest.mark.parametrize("name", native_types())
def test_subclassed_without_init(name: str) -> None:
    """A subclass whose __init__ never calls the base's leaves an object that must not crash."""
    run(
        """
        try:
            class Half(kind):
                def __init__(self, *args):
                    pass
        except TypeError:
            sys.exit(0)
        made = [poke(lambda: Half()), poke(lambda: Half(1, 2, 3)), poke(lambda: Half.__new__(Half))]
        for item in made:
            if item is not None:
                exercise(item)
                item.__dict__ if hasattr(item, "__dict__") else None
        del made
        gc.collect()
        """,
        name,
    )


@pytest.mark.parametrize("name", native_types())
def test_pickling_copying_and_changing_the_class(name: str) -> None:
    run(
        """
        made = poke(lambda: kind.__new__(kind))
        if made is None:
            sys.exit(0)

        class Other:
            pass

        poke(lambda: setattr(made, "__class__", Other))
        poke(lambda: setattr(Other(), "__class__", kind))
        for function in (copy.copy, copy.deepcopy):
            result = poke(lambda: function(made))
            if isinstance(result, kind):
                exercise(result)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            try:
                pickle.dumps(made, protocol)
            except (TypeError, pickle.PicklingError, AttributeError, RuntimeError):
                pass
        poke(lambda: setattr(kind, "call_soon", print))
        poke(lambda: kind.__dict__.clear())
        """,
        name,
    )


@pytest.mark.parametrize("name", native_types())
def test_methods_called_on_something_else(name: str) -> None:
    """Unbound methods check what they are called on."""
    run(
        """
        for attribute in list(vars(kind).values()):
            if not callable(attribute) or inspect.isclass(attribute):
                continue
            if getattr(attribute, "__name__", "") in ("__new__", "__init_subclass__"):
                continue
            for wrong in (None, object(), 1, kind, asyncio.SelectorEventLoop):
                poke(lambda: attribute(wrong))
                poke(lambda: attribute(wrong, None))
                poke(lambda: attribute(wrong, None, None))
        for attribute in vars(kind).values():
            if hasattr(attribute, "__get__") and hasattr(attribute, "__set__"):
                for wrong in (None, object(), 1):
                    poke(lambda: attribute.__get__(wrong))
                    poke(lambda: attribute.__set__(wrong, None))
        """,
        name,
    )


@pytest.mark.parametrize("name", native_types())
def test_object_new_is_refused(name: str) -> None:
    out = run(
        """
        try:
            object.__new__(kind)
        except TypeError:
            print("refused")
        """,
        name,
    )
    assert out == "refused\n"


def test_a_live_loop_survives_wrong_calls() -> None:
    out = run(
        """
        sys.argv[1:] = ["Loop"]
        loop = cpploop.new_event_loop()
        for name in members(loop):
            if name.startswith("_") or name in ("run_forever", "close", "stop"):
                continue
            attribute = getattr(loop, name)
            if not callable(attribute):
                continue
            for args in [()] + [(odd,) for odd in ODD] + [(odd, odd) for odd in ODD]:
                result = poke(lambda: attribute(*args))
                if inspect.iscoroutine(result):
                    result.close()
                elif isinstance(result, asyncio.Handle):
                    result.cancel()
                elif isinstance(result, asyncio.Future):
                    result.cancel()
        loop.set_exception_handler(None)
        loop.set_task_factory(None)
        loop.set_debug(False)
        print(loop.run_until_complete(asyncio.sleep(0.001, "alive")))
        loop.close()
        """,
        "Loop",
    )
    assert out == "alive\n"


def test_a_live_transport_survives_wrong_calls() -> None:
    out = run(
        """
        import socket

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda *args: None)
            names = [name for name in dir(_native.StreamTransport) if not name.startswith("__")]
            for name in names:
                first, second = socket.socketpair()
                second.setblocking(False)
                transport, protocol = await loop.create_connection(asyncio.Protocol, sock=first)
                attribute = poke(lambda: getattr(transport, name))
                if callable(attribute):
                    for args in [()] + [(odd,) for odd in ODD] + [(odd, odd) for odd in ODD]:
                        poke(lambda: attribute(*args))
                await asyncio.sleep(0)
                poke(transport.abort)
                await asyncio.sleep(0)
                second.close()
            return "alive"

        print(cpploop.run(main()))
        """,
        "StreamTransport",
    )
    assert out == "alive\n"


def test_handles_cannot_be_tampered_with() -> None:
    run(
        """
        loop = cpploop.new_event_loop()
        handles = [loop.call_soon(int), loop.call_later(0, int), loop.call_soon_threadsafe(int)]
        for handle in handles:
            for name in ("_callback", "_args", "_loop", "_context", "_cancelled", "_when",
                         "_scheduled", "_source_traceback", "_repr"):
                for odd in ODD:
                    poke(lambda: setattr(handle, name, odd))
                poke(lambda: delattr(handle, name))
                poke(lambda: getattr(handle, name))
            poke(lambda: repr(handle))
        loop.set_exception_handler(lambda *args: None)
        loop.call_later(0.01, loop.stop)
        try:
            loop.run_forever()
        except ACCEPTABLE:
            pass
        for handle in handles:
            poke(lambda: handle.__init__())
            poke(lambda: handle._run())
            poke(lambda: handle.cancel())
        poke(loop.close)
        """,
        "Handle",
    )


def test_the_module_itself() -> None:
    """Module functions are exercised like methods; the module can be imported twice."""
    run(
        """
        for name, value in list(vars(_native).items()):
            if callable(value) and not inspect.isclass(value):
                poke(value)
                for odd in ODD:
                    poke(lambda: value(odd))
                    poke(lambda: value(odd, odd))
        del sys.modules["cpploop._native"]
        try:
            import importlib
            second = importlib.import_module("cpploop._native")
        except ImportError:
            second = None
        del second
        gc.collect()
        """,
        "module",
    )


def test_there_are_native_types() -> None:
    names: list[Any] = native_types()
    assert "Loop" in names and "StreamTransport" in names
