"""Runs one script on one loop and returns its trace.

A script is a plain Python literal (see script.py). Its steps are taken one after the other, each
followed by a barrier: the loop is turned, and the peer moved, until nothing has happened for a few
turns. No step waits for time, and no time is in a trace.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import kinds
from oracle import Loop
from peers import Source, Sum

QUIET_TURNS = 6
MAX_TURNS = 5000
LOOP_TRIES = 20
ENDLESS = "the script never comes to rest"
EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("raised by the script"),
    "OSError": lambda: OSError(5, "raised by the script"),
    "ConnectionResetError": lambda: ConnectionResetError("raised by the script"),
    "CancelledError": lambda: asyncio.CancelledError("raised by the script"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("raised by the script"),
    "SystemExit": lambda: SystemExit("raised by the script"),
}


class Result:
    """What one run came to: the trace to compare, and what is counted."""

    def __init__(self) -> None:
        self.trace: list[Any] = []
        self.bytes = 0
        self.broken: list[str] = []
        # Bytes that were never sent to the one that got them, or not as the next ones.
        self.foreign: list[str] = []


def normalise(text: Any) -> str:
    """TEXT without addresses, descriptors, ports and the names of classes that only one has."""
    text = str(text)
    text = re.sub(r"^Exception in callback .*", "Exception in callback …", text, flags=re.DOTALL)
    text = re.sub(r"^Fatal error on SSL transport.*", "Fatal error on SSL transport", text)
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)
    text = re.sub(r"<[\w.]*Transport\b(?:[^<>]|<[^<>]*>)*>", "<transport>", text)
    text = re.sub(r"<[\w.]*Loop\b(?:[^<>]|<[^<>]*>)*>", "<loop>", text)
    text = re.sub(r"\b(fd=|name=|fd |pipe )-?\d+", r"\1…", text)
    text = re.sub(r"<[\w.]*SSLProtocol object", "<SSLProtocol object", text)
    text = re.sub(r"took [\d.]+ ms", "took … ms", text)
    # The line of OpenSSL's source that an error of TLS came from.
    text = re.sub(r"\(_ssl\.c:\d+\)", "(_ssl.c)", text)
    return re.sub(r"('127\.0\.0\.1', )\d+", r"\1…", text)


def summarise(value: Any) -> Any:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}({normalise(value)})"
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, tuple):
        return tuple(summarise(item) for item in value)
    return normalise(value)


# --------------------------------------------------------------------------- protocols


class _Recording:
    """Tells its end of every callback; the end knows how the script reacts."""

    def __init__(self, end: End, label: str) -> None:
        self.end = end
        self.label = label

    def connection_made(self, transport: Any) -> Any:
        self.end.transport = transport
        return self.end.called(self.label, "connection_made")

    def connection_lost(self, exc: BaseException | None) -> Any:
        self.end.losses += 1
        return self.end.called(self.label, "connection_lost", summarise(exc))

    def eof_received(self) -> Any:
        return self.end.called(self.label, "eof_received")

    def pause_writing(self) -> Any:
        return self.end.called(self.label, "pause_writing")

    def resume_writing(self) -> Any:
        return self.end.called(self.label, "resume_writing")


class StreamProtocol(_Recording, asyncio.Protocol):
    def data_received(self, data: bytes) -> Any:
        return self.end.data(self.label, data)


class BufferedProtocol(_Recording, asyncio.BufferedProtocol):
    def __init__(self, end: End, label: str, size: int) -> None:
        super().__init__(end, label)
        self.memory = bytearray(size)

    def get_buffer(self, sizehint: int) -> Any:
        result = self.end.reaction(self.label, "get_buffer")
        return self.memory if result is None else result

    def buffer_updated(self, nbytes: int) -> Any:
        return self.end.data(self.label, memoryview(self.memory)[:nbytes])


class DatagramProtocol(_Recording, asyncio.DatagramProtocol):
    def datagram_received(self, data: bytes, addr: Any) -> Any:
        total = Sum()
        total.add(data)
        self.end.received += len(data)
        where = self.end.name_address(addr)
        return self.end.called(self.label, "datagram_received", total.value(), where)

    def error_received(self, exc: BaseException) -> Any:
        return self.end.called(self.label, "error_received", summarise(exc))


# --------------------------------------------------------------------------- an end under test


class End:
    """One transport under test, its protocols, and what the script does with them."""

    def __init__(self, run: Run, name: str, setup: dict[str, Any]) -> None:
        self.run = run
        self.name = name
        self.setup = setup
        self.trace: list[Any] = []
        self.transport: Any = None
        self.received = 0
        self.sum = Sum()
        # Whether bytes may go into another buffer than the protocol's that is told of them.
        self.other_buffers = "get_buffer" in run.script.get("reactions", {})
        self.losses = 0
        self.source = Source(0 if name == "a" else 250_000)
        self._labels = 0
        self._reactions = {k: list(v) for k, v in run.script.get("reactions", {}).items()}
        self._depth = 0

    def protocol(self, kind: str) -> Any:
        self._labels += 1
        label = f"{self.name}{self._labels}"
        if kind == "datagram":
            return DatagramProtocol(self, label)
        if kind == "buffered":
            return BufferedProtocol(self, label, self.setup.get("memory", 65536))
        return StreamProtocol(self, label)

    def name_address(self, address: Any) -> str:
        if address == self.run.addresses.get("peer"):
            return "peer"
        return "none" if not address else "other"

    # -- callbacks

    def log(self, *entry: Any) -> None:
        self.trace.append(entry)
        self.run.active = True

    def called(self, label: str, name: str, *args: Any) -> Any:
        self.log(label, name, *args)
        return self.reaction(label, name)

    def data(self, label: str, data: Any) -> Any:
        self.received += len(data)
        self.sum.add(data)
        last = self.trace[-1] if self.trace else ()
        # Where a stream is cut is nobody's promise: what arrives in one go is one entry.
        if last[:2] == (label, "data"):
            self.trace.pop()
            total = last[2]
        else:
            total = Sum()
        total.add(data)
        self.log(label, "data", total)
        return self.reaction(label, "data_received")

    def reaction(self, label: str, name: str) -> Any:
        queue = self._reactions.get(name)
        if not queue or self._depth > 3:
            return None
        reaction = queue.pop(0)
        if reaction is None:
            return None
        self._depth += 1
        try:
            self.run.perform(reaction["do"], f"in {name}")
        finally:
            self._depth -= 1
        then = reaction.get("then")
        if then is None:
            return None
        what, value = then
        if what == "raise":
            raise EXCEPTIONS[value]()
        return bytearray(value) if what == "buffer" else value

    def lines(self) -> list[Any]:
        """The trace, its sums as values."""
        return [
            tuple(item.value() if isinstance(item, Sum) else item for item in entry)
            for entry in self.trace
        ]

    # -- what is asked of the transport

    def level(self) -> str:
        """The write buffer's size against its marks: how much the kernel takes is its affair."""
        size = self.transport.get_write_buffer_size()
        if size == 0:
            return "empty"
        low, high = kinds.limits(self.transport)
        return "low" if size <= low else "middle" if size <= high else "high"

    def look(self) -> tuple[Any, ...]:
        """What a program can see of the transport."""
        transport = self.transport
        if transport is None:
            return ("no transport",)
        seen = []
        for name in ("is_closing", "is_reading", "can_write_eof"):
            method = getattr(transport, name, None)
            seen.append(_outcome(method) if method is not None else "none")
        if hasattr(transport, "get_write_buffer_size"):
            seen.append(_outcome(self.level))
        try:
            protocol = transport.get_protocol()
        except AttributeError:
            # A TLS transport of older asyncios, after its end.
            protocol = None
        seen.append(getattr(protocol, "label", None))
        return tuple(seen)


def _outcome(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return summarise(function(*args))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        return ("raised", summarise(exc))


# --------------------------------------------------------------------------- a run


class Run:
    """One script on one loop."""

    def __init__(self, script: dict[str, Any], loop: Loop) -> None:
        self.script = script
        self.sizes = loop
        self.result = Result()
        self.active = False
        self.addresses: dict[str, Any] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.ends: dict[str, End] = {}
        self.peer: Any = None
        self.common: list[Any] = []
        self._turns = 0

    # -- the life of a run

    def go(self) -> Result:
        fds = set(os.listdir("/proc/self/fd"))
        logger = logging.getLogger("asyncio")
        saved = logger.level, logger.propagate, sys.unraisablehook
        debug = self.script.get("debug", False)
        capture = _Capture(self)
        logger.addHandler(capture)
        logger.setLevel(logging.DEBUG if debug else logging.WARNING)
        logger.propagate = False
        sys.unraisablehook = self._unraisable
        # What this run leaves behind is then in the youngest generation, whose collection is quick.
        gc.disable()
        with warnings.catch_warnings(record=True) as caught, self.sizes.sizes():
            warnings.simplefilter("always")
            try:
                self._whole(debug)
            finally:
                logger.removeHandler(capture)
            self._forget()
            gc.collect(0)
            gc.enable()
            sys.unraisablehook = saved[2]
        logger.level, logger.propagate = saved[:2]
        for text in sorted(f"{w.category.__name__}: {normalise(w.message)}" for w in caught):
            self.common.append(("warning", text))
        left = len(set(os.listdir("/proc/self/fd")) - fds)
        self.common.append(("descriptors left", left))
        return self._finished(left)

    def _finished(self, left: int) -> Result:
        result = self.result
        for end in self.ends.values():
            result.bytes += end.received
            if end.losses != (1 if end.transport is not None else 0):
                result.broken.append(f"{end.name}: {end.losses} calls of connection_lost()")
        if left:
            result.broken.append(f"{left} descriptors left open")
        if self.peer is not None:
            result.bytes += self.peer.received.size
        result.foreign = self._foreign()
        traces = [end.lines() for end in self.ends.values()]
        if len(traces) == 1:
            result.trace = traces[0] + self.common
        else:
            for name, trace in zip(self.ends, traces, strict=True):
                result.trace += [(name, "trace"), *trace]
            result.trace += [("both", "trace"), *self.common]
        return result

    def _foreign(self) -> list[str]:
        """A stream brings the beginning of what was sent, whatever ends it."""
        ends, peer = list(self.ends.values()), self.peer
        if self.script["kind"] in kinds.DATAGRAMS:
            return []
        found = []
        sources = [peer.source] if peer is not None else [end.source for end in reversed(ends)]
        for end, source in zip(ends, sources, strict=True):
            if not end.other_buffers and not source.began_with(end.sum):
                found.append(f"{end.name} received what was not sent: {end.sum.value()}")
        if peer is not None and not ends[0].source.began_with(peer.received):
            found.append(f"the peer received what was not sent: {peer.received.value()}")
        return found

    def _whole(self, debug: bool) -> None:
        self.loop = self._new_loop()
        self.loop.set_debug(debug)
        self.loop.slow_callback_duration = 1e9
        self.loop.set_exception_handler(self._on_error)
        try:
            kinds.start(self)
            self.barrier()
            self._mark("begin")
            for step in self.script["steps"]:
                self._take(step)
                self.barrier()
                self._mark("step")
            self._epilogue()
        finally:
            if self.peer is not None:
                self.peer.dispose()
            self.loop.close()

    def _new_loop(self) -> Any:
        for _ in range(LOOP_TRIES):
            try:
                return self.sizes.factory()
            except OSError as exc:
                # Under hard faults there may be no descriptor for it just then.
                refused = exc
        raise refused

    def _epilogue(self) -> None:
        """Everything comes to an end: what is queued goes out, then each end is closed."""
        for task in self.tasks:
            task.cancel()
        if self.peer is not None:
            self.peer.recv(None)
        self.barrier()
        self._mark("drained")
        for what in ("close", "abort"):
            for end in self.ends.values():
                method = getattr(end.transport, what, None)
                # What is over already some of asyncio's transports cannot abort.
                if method is not None and end.look()[-1] is not None:
                    end.log("end", what, self._from_outside(method))
            self.barrier()
            self._mark("closed")
        if self.peer is not None:
            self.peer.dispose()
        self.barrier()
        self._mark("end")

    def _from_outside(self, function: Callable[[], Any]) -> Any:
        try:
            return _outcome(function)
        except (KeyboardInterrupt, SystemExit) as exc:
            return ("left", summarise(exc))

    def _forget(self) -> None:
        for end in self.ends.values():
            # Whether there was one is still asked.
            end.transport = None if end.transport is None else "gone"
            end.run = None  # type: ignore[assignment]
        self.tasks.clear()
        self.loop = None

    def _mark(self, name: str) -> None:
        for end in self.ends.values():
            end.log("--", name, end.look())
        if self.peer is not None:
            next(iter(self.ends.values())).log("peer", self.peer.snapshot())

    # -- turning

    def turn(self) -> None:
        self.loop.stop()
        try:
            self.loop.run_forever()
        except BaseException as exc:
            self.report("left run_forever()", summarise(exc))
            if not isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise

    def barrier(self) -> None:
        quiet = turns = 0
        while quiet < QUIET_TURNS:
            self.active = False
            sizes = self._queued()
            self.turn()
            if self.peer is not None and self.peer.pump():
                self.active = True
            quiet = 0 if self.active or sizes != self._queued() else quiet + 1
            turns += 1
            if turns > MAX_TURNS:
                self.report(ENDLESS)
                return

    def _queued(self) -> list[Any]:
        return [
            _outcome(end.transport.get_write_buffer_size)
            for end in self.ends.values()
            if hasattr(end.transport, "get_write_buffer_size")
        ]

    # -- taking steps

    def _take(self, step: dict[str, Any]) -> None:
        where, operations = step["where"], step["do"]
        if where == "outside":
            try:
                self.perform(operations, "outside")
            except (KeyboardInterrupt, SystemExit) as exc:
                self.report("left the step", summarise(exc))
        elif where == "callback":
            self.loop.call_soon(self.perform, operations, "in a callback")
        else:
            number = len(self.tasks)
            self.tasks.append(self.loop.create_task(self._in_task(number, operations)))

    async def _in_task(self, number: int, operations: list[Any]) -> None:
        try:
            for operation in operations:
                self.perform([operation], "in a task")
                await asyncio.sleep(0)
        except BaseException as exc:
            self.report(f"task {number}", summarise(exc))
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            self.report(f"task {number} is done")

    def perform(self, operations: list[Any], where: str) -> None:
        for operation in operations:
            name, *args = operation
            end = next(iter(self.ends.values()))
            if name.startswith("b."):
                end, name = self.ends["b"], name[2:]
            if name == "cancel":
                if args[0] < len(self.tasks):
                    self.report(f"cancel {args[0]}", self.tasks[args[0]].cancel())
            elif name == "stop":
                self.loop.stop()
            elif name.startswith("peer_"):
                self._move_peer(name[5:], args)
            else:
                self._on_transport(end, name, args, where)
        if len(self.ends) > 1:
            self._send_what_waits()

    def _send_what_waits(self) -> None:
        """On cpploop a callback's writes may wait for its turn's end; this question sends them.

        A real peer acts neither in the middle of a callback nor in the middle of a turn.
        """
        for end in self.ends.values():
            if hasattr(end.transport, "get_write_buffer_size"):
                _outcome(end.transport.get_extra_info, "socket")

    def _move_peer(self, name: str, args: list[Any]) -> None:
        method = getattr(self.peer, name, None)
        if method is None:
            return
        self._send_what_waits()
        method(*args)

    def _on_transport(self, end: End, name: str, args: list[Any], where: str) -> None:
        if end.transport is None:
            end.log("no transport", name)
            return
        operation = kinds.OPERATIONS[name]
        # Before it is called: a callback may come from within.
        end.log(where, name)
        outcome = _outcome(operation, end, *args)
        end.log(name, "->", outcome)
        if self.script.get("peek", True) and name != "look":
            end.log("look", end.look())

    # -- reports

    def report(self, *entry: Any) -> None:
        self.active = True
        if len(self.ends) == 1:
            next(iter(self.ends.values())).trace.append(entry)
        else:
            self.common.append(entry)

    def _on_error(self, loop: Any, context: dict[str, Any]) -> None:
        keys = sorted(key for key in context if key not in ("message", "exception"))
        message = normalise(context.get("message"))
        exception = summarise(context.get("exception"))
        if "handle" in keys or "task" in keys:
            keys = [key for key in keys if key != "source_traceback"]
        self.report("exception handler", message, exception, tuple(keys))

    def _unraisable(self, args: Any) -> None:
        self.report("unraisable", summarise(args.exc_value))


class _Capture(logging.Handler):
    def __init__(self, run: Run) -> None:
        super().__init__(logging.DEBUG)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        # Which selector asyncio chose, and what it watched, is not part of any promise.
        if text.startswith(("Using selector", "poll ")):
            return
        self._run.report("log", record.levelname, normalise(text))


def run(script: dict[str, Any], loop: Loop) -> Result:
    return Run(script, loop).go()
