"""``python -m cpploop``: run any program, unchanged, with cpploop as asyncio's default loop.

The program finds cpploop wherever asyncio would have made its default loop: asyncio.run(),
asyncio.Runner(), asyncio.new_event_loop() and what is built on them. All of these end, on every
Python from 3.11 to 3.15, in the loop factory of the default event loop policy, a class attribute.
That attribute is the one thing changed. A loop_factory, a policy of the program's own, or
asyncio.SelectorEventLoop called by name are the program's explicit choice, and keep their effect.

Children. Forked ones inherit the change. Those that multiprocessing starts by spawn or forkserver
(process pools included) are told by what multiprocessing sends them anyway, the preparation data,
and pass it on to theirs. Nothing is put into the environment and no start-up file is installed,
so any other program that is started is not concerned: to run it with cpploop too, start it with
``python -m cpploop`` as well. Interpreters made by concurrent.interpreters import an asyncio of
their own and are not covered either; cpploop._launch.make_default() does it there.

Everything else is as ``python`` itself would leave it: sys.argv, sys.path[0], the names in
__main__, tracebacks, exit statuses, death by SIGINT. What remains visible is sys.orig_argv, and
that the program's outermost frame has callers.
"""

from __future__ import annotations

import builtins
import io
import marshal
import os
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import (
    BuiltinImporter,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import MAGIC_NUMBER
from types import CodeType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cpploop._loop import Loop

USAGE = """\
usage: python [PYTHON OPTIONS] -m cpploop [-m MODULE | -c CODE | SCRIPT | -] [ARGS ...]
       python -m cpploop top [--once] [PID | SOCKET]

Run a Python program with cpploop as asyncio's default event loop; or look at one that runs.

  -m MODULE   a module or package, as python -m does
  -c CODE     the program itself
  SCRIPT      a file, or a directory or zip file that holds a __main__.py
  -           the program is read from standard input
  -h, --help      show this text
  -V, --version   show cpploop's and Python's version

A loop_factory or policy that the program itself chooses wins.
"""


# ------------------------------------------------------------------ cpploop as the default loop


def make_default() -> None:
    """Make cpploop the default loop of this interpreter and of its multiprocessing children.

    Neither asyncio nor multiprocessing is imported for it: a module that is not there yet is
    changed when it is.
    """
    waiting = {}
    for name, change in _CHANGES.items():
        module = sys.modules.get(name)
        if module is None:
            waiting[name] = change
        else:
            change(module)
    if waiting and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(waiting))


def _new_event_loop() -> Loop:
    from cpploop._loop import Loop

    return Loop()


def _change_asyncio(module: ModuleType) -> None:
    # Set on the class, so that set_event_loop_policy(None) and a fresh DefaultEventLoopPolicy,
    # which both ask for the default, get it too.
    module._UnixDefaultEventLoopPolicy._loop_factory = staticmethod(_new_event_loop)


def _change_multiprocessing(module: ModuleType) -> None:
    inner = module.get_preparation_data
    if getattr(inner, "_cpploop", False):
        return

    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = inner(name)
        # The child ignores keys it does not know, but only after it has unpickled their values.
        data["cpploop"] = _Mark()
        return data

    get_preparation_data._cpploop = True  # type: ignore[attr-defined]
    module.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]


class _Mark:
    """Unpickling one calls make_default() in the process that does it."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return make_default, ()


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "asyncio.unix_events": _change_asyncio,
    "multiprocessing.spawn": _change_multiprocessing,
}


class _Finder(MetaPathFinder):
    """Changes the modules it waits for when they are imported, and leaves after the last."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ChangingLoader(spec.loader, self)
                return spec
        return None

    def done(self, module: ModuleType) -> None:
        change = self.waiting.pop(module.__name__, None)
        if change is not None:
            change(module)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _ChangingLoader(Loader):
    """Stands in for a module's loader until the module has been executed."""

    def __init__(self, inner: Loader, finder: _Finder) -> None:
        self.inner = inner
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        # What typeshed asks of a module's loader is another protocol from Python 3.15 on.
        inner: Any = self.inner
        module.__loader__ = inner
        self.inner.exec_module(module)
        self.finder.done(module)


# ------------------------------------------------------------------ the command


def main() -> None:
    """Run the program that sys.argv describes, as the interpreter would have."""
    args = sys.argv[1:]
    if args and args[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return
    if args and args[0] in ("-V", "--version"):
        _print_version()
        return
    if args and args[0] == "top" and not os.path.exists("top"):
        from cpploop._top import main as top

        sys.exit(top(args[1:]))
    program = _parse(args)
    make_default()
    namespace = _fresh_main().__dict__
    try:
        program(namespace)
    except SystemExit:
        raise
    except BaseException as exc:
        _hide_launcher(exc)
        raise


def _parse(args: list[str]) -> Callable[[dict[str, Any]], None]:
    """What runs the program; sys.argv and sys.path[0] are the program's when it returns."""
    if not args:
        if sys.stdin is not None and sys.stdin.isatty():
            _fail(USAGE, 2)
        sys.argv[:] = [""]
        _set_path0("")
        return _run_stdin
    first = args[0]
    if first.startswith(("-m", "-c")):
        option, value, rest = first[:2], first[2:], args[1:]
        if not value:
            if not rest:
                _fail(f"Argument expected for the {option} option\n{USAGE}", 2)
            value, rest = rest[0], rest[1:]
        if option == "-m":
            sys.argv[:] = ["-m", *rest]
            # sys.path[0] stays: it was set for the -m that started this.
            return lambda namespace: _run_module(value)
        sys.argv[:] = ["-c", *rest]
        _set_path0("")
        return lambda namespace: _run_command(value, namespace)
    if first == "-":
        sys.argv[:] = args
        _set_path0("")
        return _run_stdin
    if first.startswith("-"):
        _fail(f"unknown option {first} (python's own options go before -m cpploop)\n{USAGE}", 2)
    sys.argv[:] = args
    path = os.path.join(os.getcwd(), first)
    if _holds_main(path):
        # Imports come from it, whatever -P says: it was named.
        if not sys.flags.safe_path:
            del sys.path[0]
        sys.path.insert(0, path)
        return lambda namespace: _run_main_of_path0()
    code, loader = _read_script(path)
    _set_path0(os.path.dirname(os.path.realpath(path)))
    return lambda namespace: _run_script(path, code, loader, namespace)


def _set_path0(entry: str) -> None:
    # -P and -I leave the program's directory out, and there is no sys.path[0] of -m to replace.
    if not sys.flags.safe_path:
        sys.path[0] = entry


def _holds_main(path: str) -> bool:
    """Whether PATH is what imports can come from: a directory or a zip file."""
    if os.path.isdir(path):
        return True
    import pkgutil

    return pkgutil.get_importer(path) is not None


def _fresh_main() -> ModuleType:
    """A new __main__ with the names the interpreter gives it, in place of the launcher's own."""
    old = sys.modules["__main__"]
    module = ModuleType("__main__")
    module.__builtins__ = builtins  # type: ignore[attr-defined]
    loader: Any = BuiltinImporter
    module.__loader__ = loader
    if "__annotations__" in old.__dict__:
        module.__annotations__ = {}
    sys.modules["__main__"] = module
    return module


# ------------------------------------------------------------------ kinds of programs


def _run_module(name: str) -> None:
    # What the interpreter itself calls for -m, down to its messages and its traceback lines.
    import runpy

    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _run_main_of_path0() -> None:
    import runpy

    runpy._run_module_as_main("__main__", False)  # type: ignore[attr-defined]


def _run_command(source: str, namespace: dict[str, Any]) -> None:
    if sys.version_info >= (3, 14):
        import textwrap

        source = textwrap.dedent(source)
    source += "\n"
    code = compile(source, "<string>", "exec", dont_inherit=True)
    if sys.version_info >= (3, 13):
        # The lines that a traceback shows come from here. The first 3.13 releases found them by
        # the file's name, later ones by the code object.
        import linecache

        key = code if hasattr(linecache, "_interactive_cache") else "<string>"
        linecache._register_code(key, source, "<string>")  # type: ignore[attr-defined]
    exec(code, namespace)


def _run_stdin(namespace: dict[str, Any]) -> None:
    source = sys.stdin.buffer.read()
    code = compile(source, "<stdin>", "exec", dont_inherit=True)
    _set_file(namespace, "<stdin>")
    exec(code, namespace)


def _run_script(
    path: str, source: CodeType | bytes, loader: Any, namespace: dict[str, Any]
) -> None:
    _set_file(namespace, path)
    namespace["__loader__"] = loader("__main__", path)
    code = source
    if not isinstance(code, CodeType):
        code = compile(code, path, "exec", dont_inherit=True)
    exec(code, namespace)


def _set_file(namespace: dict[str, Any], name: str) -> None:
    namespace["__file__"] = name
    if sys.version_info < (3, 15):
        namespace["__cached__"] = None


def _read_script(path: str) -> tuple[CodeType | bytes, Any]:
    """The contents of a file, and the loader its __main__ is given."""
    program = sys.orig_argv[0] if sys.orig_argv else "python"
    try:
        with io.open_code(path) as file:
            data = file.read()
    except OSError as exc:
        _fail(f"{program}: can't open file {path!r}: [Errno {exc.errno}] {exc.strerror}\n", 2)
    if data[:4] == MAGIC_NUMBER:
        return marshal.loads(data[16:]), SourcelessFileLoader
    return data, SourceFileLoader


# ------------------------------------------------------------------ ends


def _hide_launcher(exc: BaseException) -> None:
    """Let the interpreter report EXC, on its way out, without the launcher's own frames.

    It must travel on to the interpreter, which knows what else an unhandled exception means (a
    KeyboardInterrupt: dying by SIGINT). The frames it passes are added to its traceback on the
    way, so they are taken away at the end, where it is reported.
    """
    outermost = exc.__traceback__
    program = _below_this_file(outermost)
    hook = sys.excepthook

    def excepthook(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> Any:
        sys.excepthook = hook
        if value is exc:
            traceback = sys.last_traceback = program
            value.__traceback__ = program
        return hook(kind, value, traceback)

    sys.excepthook = excepthook


def _below_this_file(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback


def _print_version() -> None:
    import platform

    import cpploop

    implementation, version = platform.python_implementation(), platform.python_version()
    print(f"cpploop {cpploop.__version__} ({implementation} {version})")


def _fail(message: str, status: int) -> NoReturn:
    sys.stderr.write(message)
    sys.exit(status)
