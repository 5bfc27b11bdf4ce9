"""What the behaviour tests share: running a scenario on a loop, recording, comparing, peers.

The usual shapes of a test:

    def test_something(run):                       # once on asyncio, once on cpploop
        async def main(env):                       # env may be left out
            ...
            assert env.take_errors() == []         # reports to the exception handler, summarised
        run(main)

    def test_same_as_asyncio():                    # both loops in one test, traces compared
        async def scenario(env):
            env.log("step", value)                 # anything comparable
            rec = Recorder(env, "server")          # logs each callback into the same trace
        support.compare(scenario)

``run`` fails the test when the scenario outlives its time-out, when the exception handler or the
asyncio logger was called and the test did not take the report, when a ResourceWarning or an
unraisable exception appeared, and when a file descriptor is still open afterwards.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import difflib
import functools
import gc
import inspect
import logging
import os
import re
import select
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import portable

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

TIME_SCALE = float(os.environ.get("CPPLOOP_TIME_SCALE", "1"))
LONG = os.environ.get("CPPLOOP_LONG", "") not in ("", "0")
# Whether each test runs in several threads at once (pytest-run-parallel), as conftest finds out.
PARALLEL = False
FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()


# --------------------------------------------------------------------------- the loops


def selected_loops() -> list[str]:
    """The loops this run tests, the oracle first."""
    choice = os.environ.get("CPPLOOP_TESTS", "")
    if choice in ("", "both", "all"):
        return ["asyncio", "cpploop"]
    if choice in ("asyncio", "cpploop"):
        return [choice]
    raise ValueError(f"CPPLOOP_TESTS={choice!r}: expected asyncio, cpploop or both")


def factory(name: str) -> LoopFactory:
    """The loop factory called NAME; ImportError when cpploop is asked for and not installed.

    "cpploop-bio" and the like name a loop whose TLS is forced by CPPLOOP_TLS, which the fixtures of
    the TLS tests set: see tls_loops().
    """
    if name == "asyncio":
        # Not asyncio.new_event_loop: a policy installed by some other test must not change it.
        return asyncio.SelectorEventLoop
    import cpploop

    _, _, tier = name.partition("-")
    if tier and os.environ.get("CPPLOOP_TLS") != tier:
        raise ValueError(f"{name} needs CPPLOOP_TLS={tier} in the environment")
    return cpploop.new_event_loop  # type: ignore[no-any-return]


TLS_TIERS = ("asyncio", "bio", "direct")


@functools.cache
def tls_loops() -> list[str]:
    """The loops that the TLS tests run on: the oracle, and cpploop with each way of doing TLS.

    CPPLOOP_TLS in the environment leaves only that one of the ways.
    """
    names = selected_loops()
    if "cpploop" not in names:
        return names
    names = [name for name in names if name != "cpploop"]
    try:
        import cpploop
    except ImportError:
        # Its tests fail and say so.
        return [*names, "cpploop"]
    if "tls" not in cpploop.build_info():
        return [*names, "cpploop"]
    forced = os.environ.get("CPPLOOP_TLS")
    return names + [f"cpploop-{tier}" for tier in TLS_TIERS if forced in (None, "", tier)]


@functools.cache
def native_types() -> dict[str, type]:
    """Every class of the extension module, exposed or not."""
    if "cpploop" not in selected_loops():
        return {}
    try:
        import cpploop  # noqa: F401  (its module defines the classes)
    except ImportError:
        return {}
    found: dict[str, type] = {}
    to_visit: list[type] = [object]
    # By identity: some of typing's classes warn when they are compared.
    seen: set[int] = set()
    while to_visit:
        for kind in type.__subclasses__(to_visit.pop()):
            if id(kind) in seen:
                continue
            seen.add(id(kind))
            to_visit.append(kind)
            if kind.__module__ == "cpploop._native":
                found[kind.__name__] = kind
    return found


def tls_contenders() -> list[str]:
    """What is compared with the oracle; the oracle itself when nothing else is selected."""
    return [name for name in tls_loops() if name != "asyncio"] or ["asyncio"]


# --------------------------------------------------------------------------- running


def open_fds() -> dict[int, str]:
    """The process's descriptors and what each refers to."""
    portable.settle()
    result = {}
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of this very listing is gone again: its link cannot be read.
        with contextlib.suppress(OSError):
            result[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return result


def new_fds(before: dict[int, str]) -> dict[int, str]:
    """What is open now and was not in BEFORE; what an earlier test left may vanish meanwhile."""
    return {fd: what for fd, what in open_fds().items() if before.get(fd) != what}


def new_threads(before: Iterable[threading.Thread]) -> set[threading.Thread]:
    """Which threads run now and are not among BEFORE; an earlier test's may end meanwhile."""
    return {*threading.enumerate()}.difference(before)


def summarise(value: Any) -> Any:
    """VALUE as something that compares equal between two runs."""
    if isinstance(value, BaseException):
        return f"{type(value).__name__}({normalise(str(value))})"
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return data if len(data) <= 64 else f"<{len(data)} bytes>"
    if isinstance(value, asyncio.BaseTransport):
        return "<transport>"
    if isinstance(value, str):
        return normalise(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, tuple):
        return tuple(summarise(item) for item in value)
    if isinstance(value, list):
        return [summarise(item) for item in value]
    if isinstance(value, dict):
        return {summarise(key): summarise(item) for key, item in value.items()}
    return f"<{type(value).__name__}>"


def normalise(text: str) -> str:
    """TEXT without what differs from run to run: addresses, descriptors, ports, class names."""
    # The callback's repr names classes and lines that only the interpreter's own loop has.
    text = re.sub(r"^Exception in callback .*", "Exception in callback …", text, flags=re.DOTALL)
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)
    text = re.sub(r"\bfd=-?\d+", "fd=…", text)
    text = re.sub(r"\bpid([= ])\d+", r"pid\1…", text)
    # Which line of _ssl.c an error names depends on the call that met it.
    text = re.sub(r" \(_ssl\.c:\d+\)", "", text)
    text = re.sub(r"('(?:127\.0\.0\.1|::1|localhost)', )\d+", r"\1…", text)
    text = re.sub(
        r"<(?:asyncio\.sslproto|cpploop\._tls)\._SSLProtocolTransport", "<TLS transport", text
    )
    text = re.sub(r"<(?:_Unix)?(Read|Write)PipeTransport\b", r"<\1 pipe transport", text)
    return re.sub(
        r"<_Selector(?:Socket|Datagram)Transport"
        r"|<(?:cpploop\.)?(?:_native\.)?(?:Stream|Datagram)Transport",
        "<transport",
        text,
    )


class Env:
    """What one run of a scenario collects, handed to the scenario as its argument."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self.trace: list[Any] = []
        self.errors: list[dict[str, Any]] = []
        self.logs: list[str] = []
        self.unraisable: list[str] = []
        # compare() traces reports instead of wanting each taken.
        self.tracing = False

    def log(self, *entry: Any) -> None:
        """Append one entry to the trace, its values made comparable."""
        self.trace.append(tuple(summarise(item) for item in entry))

    def take_errors(self) -> list[tuple[str, str | None]]:
        """The exception handler's reports so far, as (message, exception), and forget them."""
        taken = [
            (
                normalise(context.get("message", "")),
                summarise(context["exception"]) if "exception" in context else None,
            )
            for context in self.errors
        ]
        self.errors.clear()
        return taken

    def take_contexts(self) -> list[dict[str, Any]]:
        """The exception handler's raw contexts so far, and forget them."""
        taken, self.errors = self.errors, []
        return taken

    def take_logs(self) -> list[str]:
        """The messages logged at WARNING and above by asyncio's logger, and forget them."""
        taken, self.logs = self.logs, []
        return taken

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self.tracing:
            keys = sorted(key for key in context if key not in ("message", "exception"))
            self.log("exception handler", context.get("message"), context.get("exception"), keys)
        else:
            self.errors.append(context)

    def _on_log(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # Debug mode's slow-callback line depends on the machine.
        if re.search(r"\btook \d+\.\d+ seconds$", message):
            return
        if self.tracing:
            self.log("log", record.levelname, message)
        else:
            self.logs.append(message)


def blackhole() -> tuple[list[socket.socket], tuple[str, int]]:
    """An address whose connects neither succeed nor fail: a listener with a full backlog."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    sockets = [listener]
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        sockets.append(filler)
    return sockets, listener.getsockname()


def needs_cpploop(loop_name: str, reason: str) -> None:
    """Skip on the oracle a test of something cpploop promises and asyncio does not."""
    if loop_name == "asyncio":
        import pytest

        pytest.skip(f"asyncio does not promise this: {reason}")


def asyncio_writelines_has(what: str) -> bool:
    """Whether the running asyncio's writelines() knows WHAT; 3.12 to 3.14 learnt it by and by.

    "_conn_lost": it may be called on a lost connection. "_maybe_pause_protocol": it obeys the
    watermarks (cpy#127655). "if data": it never queues empty pieces. 3.11 goes through write().
    """
    from asyncio import selector_events

    own = vars(selector_events._SelectorSocketTransport).get("writelines")
    return own is None or what in inspect.getsource(own)


def asyncio_flushes_soundly() -> bool:
    """Whether the running asyncio knows gh-156512: resume_writing may close the transport.

    Where it does not, connection_lost is called twice and the second call fails.
    """
    from asyncio import selector_events

    members = vars(selector_events._SelectorSocketTransport)
    flush = members.get("_write_sendmsg") or members["_write_ready"]
    return "not self._conn_lost" in inspect.getsource(flush)


class _Capture(logging.Handler):
    def __init__(self, env: Env) -> None:
        super().__init__(logging.WARNING)
        self._env = env
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if not PARALLEL or record.thread == self._thread:
            self._env._on_log(record)


@contextlib.contextmanager
def _listening(env: Env) -> Iterator[list[warnings.WarningMessage]]:
    """Hear what asyncio logs, what nobody could raise, and the warnings, which are yielded.

    Of tests that run in several threads at once the last two belong to nobody: they are left.
    """
    logger = logging.getLogger("asyncio")
    capture = _Capture(env)
    logger.addHandler(capture)
    try:
        if PARALLEL:
            yield []
            return
        propagate, logger.propagate = logger.propagate, False
        unraisable_hook, sys.unraisablehook = sys.unraisablehook, _unraisable_into(env)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ResourceWarning)
                yield caught
        finally:
            logger.propagate = propagate
            sys.unraisablehook = unraisable_hook
    finally:
        logger.removeHandler(capture)


def peer_is_gone(exc: BaseException | None) -> bool:
    """Whether EXC, which ended a connection, is what a peer that goes may cause.

    Within TLS foreign bytes show as an SSLError, which is an OSError. Of those few have another
    cause: an early end, and what the peer still sends while this side closes already.
    """
    if isinstance(exc, ssl.SSLError):
        early = isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
        return early or exc.reason == "APPLICATION_DATA_AFTER_CLOSE_NOTIFY"
    return exc is None or isinstance(exc, ConnectionError)


Scenario = Callable[..., Awaitable[Any]]


def _accepts_env(scenario: Scenario) -> bool:
    return bool(inspect.signature(scenario).parameters)


def run(
    loop_factory: LoopFactory,
    scenario: Scenario,
    *,
    timeout: float = 20.0,
    debug: bool | None = None,
    check_fds: bool = True,
    check_warnings: bool = True,
    env: Env | None = None,
) -> Any:
    """Run SCENARIO (a coroutine function, of no argument or of Env) in asyncio.Runner.

    Returns what the scenario returns. See the module's text for what fails the test.
    """
    env = env or Env(getattr(loop_factory, "__module__", "?"))
    timeout *= TIME_SCALE
    leaked: dict[int, str] = {}
    before = open_fds()
    with _listening(env) as caught:
        try:
            result = _run_in_runner(loop_factory, scenario, env, timeout, debug)
        except BaseException as exc:
            # What went wrong is known: leaks are no news then. The frames let go of their
            # sockets here, so that the next test does not inherit them.
            _add_context_note(exc, env)
            traceback.clear_frames(exc.__traceback__)
            gc.collect()
            raise
        gc.collect()
        leaked = new_fds(before)
    problems = [
        f"exception handler called: {message!r} {exc}" for message, exc in env.take_errors()
    ]
    problems += [f"asyncio logged: {message}" for message in env.take_logs()]
    problems += [f"unraisable: {text}" for text in env.unraisable]
    for warning in caught:
        if not issubclass(warning.category, ResourceWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif check_warnings:
            problems.append(f"ResourceWarning: {warning.message}")
    if check_fds and not PARALLEL:
        problems += [f"fd {fd} leaked: {what}" for fd, what in leaked.items()]
    # Each once: some of them come by the hundred.
    assert not problems, "after the scenario:\n  " + "\n  ".join(dict.fromkeys(problems))
    return result


def _run_in_runner(
    loop_factory: LoopFactory, scenario: Scenario, env: Env, timeout: float, debug: bool | None
) -> Any:
    async def main() -> Any:
        env.loop = asyncio.get_running_loop()
        env.loop.set_exception_handler(env._on_error)
        if debug:
            # A machine under load must not fail a test by what it has debug mode log.
            env.loop.slow_callback_duration = 60
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await (scenario(env) if _accepts_env(scenario) else scenario())
        except TimeoutError:
            if limit.expired():
                raise AssertionError(f"the scenario still ran after {timeout} s") from None
            raise

    try:
        with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
            return runner.run(main())
    finally:
        env.loop = None  # type: ignore[assignment]


def _add_context_note(exc: BaseException, env: Env) -> None:
    notes = [f"trace: {entry}" for entry in env.trace[-30:]]
    notes += [f"exception handler called: {message!r} {err}" for message, err in env.take_errors()]
    notes += [f"asyncio logged: {message}" for message in env.take_logs()]
    for note in dict.fromkeys(notes):
        exc.add_note(note)


def _unraisable_into(env: Env) -> Callable[[Any], None]:
    def hook(args: Any) -> None:
        env.unraisable.append(f"{args.err_msg or 'ignored in'} {args.object!r}: {args.exc_value!r}")

    return hook


def compare(
    scenario: Scenario,
    *,
    timeout: float = 20.0,
    debug: bool | None = None,
    check_fds: bool = True,
    check_warnings: bool = True,
    names: Iterable[str] | None = None,
) -> list[Any]:
    """Run SCENARIO on asyncio and on cpploop and assert equal traces; returns the trace.

    NAMES are the two loops instead, where a test is about another pair.

    Reports to the exception handler and warnings of asyncio's logger are part of the trace, and so
    is the scenario's result. With only the oracle selected it runs twice on it, which proves that
    the scenario is deterministic.
    """
    names = list(names or selected_loops())
    if "asyncio" not in names:
        names = ["asyncio", *names]
    if len(names) == 1:
        names = names * 2
    traces = []
    for name in names:
        env = Env(name)
        env.tracing = True
        try:
            result = run(
                factory(name),
                scenario,
                timeout=timeout,
                debug=debug,
                check_fds=check_fds,
                check_warnings=check_warnings,
                env=env,
            )
        except BaseException as exc:
            exc.add_note(f"while running on {name}")
            raise
        env.log("result", result)
        traces.append(env.trace)
    expected, actual = traces
    if actual != expected:
        lines = difflib.unified_diff(
            [repr(entry) for entry in expected],
            [repr(entry) for entry in actual],
            names[0],
            names[1],
            n=30,
            lineterm="",
        )
        raise AssertionError("the traces differ:\n" + "\n".join(lines))
    return expected


# --------------------------------------------------------------------------- recorders


class _RecorderBase:
    """Logs each callback in order; behaviour is added per callback through ``on``.

    ``on={"data_received": fn}``: fn(recorder, *args) runs after the call was logged; what it
    returns (or raises) is what the callback returns (or raises). Adjacent data_received calls are
    merged in the log, because where a stream is cut is nobody's promise.
    """

    def __init__(
        self,
        env: Env | None = None,
        name: str = "",
        on: dict[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.name = name
        self.env = env
        self.on = dict(on or {})
        self.calls: list[tuple[Any, ...]] = []
        self.received = bytearray()
        self.transport: Any = None
        self.exc: BaseException | None = None
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    # -- looking

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def count(self, name: str) -> int:
        return self.names().count(name)

    async def until(self, name: str, count: int = 1) -> None:
        """Wait until the callback NAME was called COUNT times in all."""
        await self._until(lambda: self.count(name) >= count)

    async def until_received(self, size: int) -> bytes:
        """Wait until SIZE bytes came in all; returns all bytes so far."""
        await self._until(lambda: len(self.received) >= size)
        return bytes(self.received)

    async def _until(self, condition: Callable[[], bool]) -> None:
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((condition, future))
        await future

    # -- logging

    def _call(self, name: str, *args: Any) -> Any:
        entry = (name, *(summarise(arg) for arg in args))
        self.calls.append(entry)
        if self.env is not None:
            traced = (self.name, *entry) if self.name else entry
            self.env.trace.append(traced)
        return self._behave(name, args)

    def _data(self, data: bytes) -> Any:
        merged = bytes(data)
        for log, prefix in (
            (self.calls, ()),
            (self.env.trace if self.env is not None else [], (self.name,) if self.name else ()),
        ):
            head = (*prefix, "data_received")
            if log and log[-1][: len(head)] == head:
                entry = (*head, _join(log[-1][len(head)], merged))
                log[-1] = entry
            else:
                log.append((*head, summarise(merged)))
        self.received += data
        return self._behave("data_received", (data,))

    def _behave(self, name: str, args: tuple[Any, ...]) -> Any:
        try:
            handler = self.on.get(name)
            return handler(self, *args) if handler is not None else None
        finally:
            ready = [item for item in self._waiters if item[0]()]
            for item in ready:
                self._waiters.remove(item)
                if not item[1].done():
                    item[1].set_result(None)

    # -- callbacks common to both kinds

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._call("connection_made", transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.exc = exc
        self._call("connection_lost", exc)

    def eof_received(self) -> Any:
        return self._call("eof_received")

    def pause_writing(self) -> None:
        self._call("pause_writing")

    def resume_writing(self) -> None:
        self._call("resume_writing")


def _join(earlier: Any, data: bytes) -> Any:
    if isinstance(earlier, str):
        return f"<{int(earlier[1:].split()[0]) + len(data)} bytes>"
    return summarise(earlier + data)


class Recorder(_RecorderBase, asyncio.Protocol):
    """A streaming protocol that records."""

    def data_received(self, data: bytes) -> None:
        self._data(data)


class BufferedRecorder(_RecorderBase, asyncio.BufferedProtocol):
    """A buffered protocol that records; its memory is ``memory``, ``size`` bytes long.

    The data is logged as data_received, so that its trace equals a Recorder's; get_buffer calls
    are counted in ``hints`` and not logged.
    """

    def __init__(self, *args: Any, size: int = 65536, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: Any = bytearray(size)
        self.hints: list[int] = []

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        handler = self.on.get("get_buffer")
        return handler(self, sizehint) if handler is not None else self.memory

    def buffer_updated(self, nbytes: int) -> None:
        handler = self.on.get("buffer_updated")
        if handler is not None:
            handler(self, nbytes)
        else:
            self._data(bytes(memoryview(self.memory)[:nbytes]))


# --------------------------------------------------------------------------- sockets and peers


def free_port(family: int = socket.AF_INET) -> int:
    """A TCP port that was free a moment ago. Prefer binding to port 0 where a test can."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return int(sock.getsockname()[1])


def refused_port() -> tuple[socket.socket, int]:
    """A port that refuses connections for as long as the returned socket is open."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    return sock, int(sock.getsockname()[1])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def tcp_pair(sndbuf: int = 1 << 17, rcvbuf: int = 1 << 17) -> tuple[socket.socket, ...]:
    """Two connected TCP sockets, non-blocking: (client, accepted).

    The first has a send buffer and the second a receive buffer of fixed size: a full connection
    then stays full until the peer reads, which the kernel's own tuning would not promise.
    """
    # The protocol is named because asyncio sets TCP_NODELAY only where it is.
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with socket.socket(*kind) as listener:
        # Accepted sockets inherit it, and only so does it bound the window from the start.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        first = socket.socket(*kind)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        first.connect(listener.getsockname())
        second, _ = listener.accept()
    first.setblocking(False)
    second.setblocking(False)
    return first, second


def unix_pair(kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, ...]:
    """Two connected Unix sockets, non-blocking."""
    first, second = socket.socketpair(socket.AF_UNIX, kind)
    first.setblocking(False)
    second.setblocking(False)
    return first, second


PAIRS: dict[str, Callable[[], tuple[socket.socket, ...]]] = {"tcp": tcp_pair, "unix": unix_pair}


def reset(sock: socket.socket) -> None:
    """Close SOCK with a TCP reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def readable(sock: socket.socket, timeout: float = 0) -> bool:
    """Whether SOCK has something to read; asks the kernel, whatever the loop is doing."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(timeout * 1000))


def recv_now(sock: socket.socket, size: int = 1 << 20) -> bytes:
    """What is in SOCK's receive queue at this moment, without waiting."""
    chunks = []
    with contextlib.suppress(BlockingIOError):
        while size > 0 and (chunk := sock.recv(size)):
            chunks.append(chunk)
            size -= len(chunk)
    return b"".join(chunks)


async def recv_exactly(sock: socket.socket, size: int) -> bytes:
    """SIZE bytes from a peer's non-blocking socket, fewer only at its end.

    Polls with short sleeps: nothing of the loop but its timers is involved.
    """
    data = bytearray()
    while len(data) < size:
        try:
            chunk = sock.recv(min(size - len(data), 1 << 18))
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not chunk:
            break
        data += chunk
        # Let the other side write on.
        await asyncio.sleep(0)
    return bytes(data)


async def recv_to_end(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream; a reset raises."""
    return await recv_exactly(sock, 1 << 62)


async def send_all(sock: socket.socket, data: bytes) -> None:
    """Send DATA on a peer's non-blocking socket."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await asyncio.sleep(0.001)


async def attach(
    sock: socket.socket, protocol: asyncio.BaseProtocol, **kwargs: Any
) -> tuple[Any, Any]:
    """A client transport over a connected socket."""
    loop = asyncio.get_running_loop()
    return await loop.create_connection(lambda: protocol, sock=sock, **kwargs)


@contextlib.asynccontextmanager
async def transport_pair(
    protocol: asyncio.BaseProtocol, kind: str = "tcp", **pair_options: Any
) -> AsyncIterator[tuple[Any, socket.socket]]:
    """(transport, the peer's plain socket); both are closed at the end, and the loss awaited."""
    sock, peer = PAIRS[kind](**pair_options)
    try:
        transport, _ = await attach(sock, protocol)
    except BaseException:
        peer.close()
        raise
    # Who holds it could close it, and nothing is gathered or held back then.
    del sock
    try:
        yield transport, peer
    finally:
        peer.close()
        # Older asyncios fail in abort() after a close that had to flush first.
        if transport.get_protocol() is not None:
            transport.abort()
        await turns(3)


@contextlib.asynccontextmanager
async def stream_pair(kind: str = "tcp", **kwargs: Any) -> Any:
    """(reader, writer, the peer's plain socket)."""
    sock, peer = PAIRS[kind]()
    reader, writer = await asyncio.open_connection(sock=sock, **kwargs)
    try:
        yield reader, writer, peer
    finally:
        peer.close()
        # Older asyncios fail in abort() after a close that had to flush first.
        if writer.transport.get_protocol() is not None:
            writer.transport.abort()
        await turns(3)
        # Its exception, where there is one, was the test's to look at.
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def turns(count: int = 1) -> None:
    """Let the loop turn COUNT times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], Any], timeout: float = 5.0) -> None:
    """Wait until CONDITION() is true."""
    deadline = time.monotonic() + timeout * TIME_SCALE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.001)


async def fill(transport: Any, chunk: bytes = bytes(65536), limit: int = 1 << 26) -> int:
    """Write until the transport has to buffer; returns the number of bytes written."""
    written = 0
    while transport.get_write_buffer_size() == 0:
        transport.write(chunk)
        written += len(chunk)
        assert written <= limit, "the peer's kernel buffer seems endless"
    return written


async def assert_idle(seconds: float = 0.15, share: float = 0.4) -> None:
    """Wait and fail if this thread used more than SHARE of the time: a spinning loop uses all."""
    cpu = time.thread_time()
    wall = time.monotonic()
    await asyncio.sleep(seconds)
    used = time.thread_time() - cpu
    allowed = share * (time.monotonic() - wall)
    assert used <= allowed, f"the loop used {used:.3f} s of processor time while it was idle"


def noncontiguous_view() -> tuple[Any, bytes]:
    """A memoryview with gaps, and the bytes it stands for."""
    view = memoryview(bytearray(b"a-b-c-d-"))[::2]
    return view, b"abcd"


def multidimensional_view(rows: int = 4, columns: int = 8) -> tuple[Any, bytes]:
    """A two-dimensional memoryview of ints, and its bytes."""
    values = array.array("i", range(rows * columns))
    return memoryview(values).cast("B").cast("i", (rows, columns)), values.tobytes()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cl-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --------------------------------------------------------------------------- certificates


@dataclass
class Certificates:
    """Paths of a CA and of a server certificate with its key, for localhost and 127.0.0.1."""

    ca: Path
    server: Path
    contexts: dict[str, ssl.SSLContext] = field(default_factory=dict)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context

    def client_context(self, verify: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if verify:
            context.load_verify_locations(self.ca)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def make_certificates(directory: Path) -> Certificates:
    """Make them with trustme, or with the openssl command where trustme cannot be installed."""
    result = Certificates(directory / "ca.pem", directory / "server.pem")
    try:
        import trustme
    except ImportError:
        _openssl_certificates(directory, result)
    else:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(result.ca))
        leaf = authority.issue_cert("localhost", "127.0.0.1", "::1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(result.server))
    return result


def _openssl_certificates(directory: Path, result: Certificates) -> None:
    if shutil.which("openssl") is None:
        import pytest

        pytest.skip("neither trustme nor the openssl command is installed")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], check=True, capture_output=True, cwd=directory)

    extensions = directory / "leaf.ext"
    extensions.write_text(
        "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n"
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        "authorityKeyIdentifier=keyid\n"
    )
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/O=cpploop tests/CN=test CA")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *key, *authority, "-days", "30", *usage)
    openssl("req", *key, "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/O=cpploop tests")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "leaf.ext")
    openssl("x509", "-req", "-in", "leaf.csr", *signing, "-days", "30", "-out", "leaf.pem")
    result.server.write_bytes(
        (directory / "leaf.key").read_bytes() + (directory / "leaf.pem").read_bytes()
    )


# --------------------------------------------------------------------------- child processes


@dataclass
class ScriptResult:
    returncode: int
    stdout: str
    stderr: str


def script_command(source: str, loop: str, flags: Iterable[str] = ()) -> list[str]:
    """The command line that runs Python SOURCE, which finds ``factory``, the loop's factory."""
    prelude = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import support; factory = support.factory({loop!r})\n"
    )
    return [
        sys.executable,
        "-X",
        "faulthandler",
        *flags,
        "-c",
        prelude + textwrap.dedent(source),
    ]


def run_script(
    source: str,
    *args: str,
    loop: str = "asyncio",
    timeout: float = 30.0,
    env: dict[str, str] | None = None,
    flags: Iterable[str] = (),
    check: bool = True,
) -> ScriptResult:
    """Run Python SOURCE in a process of its own; it finds ``factory``, the loop's factory.

    For what cannot be tried in the test's own process: resource limits, fork, crashes, signals.
    """
    completed = subprocess.run(
        [*script_command(source, loop, flags), *args],
        capture_output=True,
        text=True,
        timeout=timeout * TIME_SCALE,
        env={**os.environ, **(env or {})},
    )
    result = ScriptResult(completed.returncode, completed.stdout, completed.stderr)
    if check:
        assert result.returncode == 0, (
            f"exit status {result.returncode}\n--- stdout\n{result.stdout}\n"
            f"--- stderr\n{result.stderr}"
        )
    return result


def living_children() -> dict[int, str]:
    """This process's children: their numbers, and their states as /proc has them (Z: a zombie)."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                children[int(stat.parent.name)] = state
    return children


SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")


def rss_kib() -> int:
    """The resident set of this process."""
    if SANITIZED:
        # AddressSanitizer keeps what is freed, on purpose: growth says nothing there.
        return 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS in /proc/self/status")
