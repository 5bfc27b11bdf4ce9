"""Child processes: Popen starts them, asyncio's transports drive them, the loop hears of their end.

The transport, its pipes' protocols and the order of their callbacks are the running Python's own.
What is ours is how the end is noticed: each child has a process descriptor among the loop's
watchers, or its number is in the loop's kqueue, so there is no signal handler and no thread, and
loops in several threads do not meet. Where the kernel has neither (or a sandbox refuses it) a
thread waits for each child instead.

A child is reaped in one place, under Popen's own lock: a number that the kernel may have given to
somebody else is then never signalled, and a status that Popen took itself is not lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import signal as signals
import sys
import threading
from asyncio import events, selector_events, unix_events
from asyncio.log import logger
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _native

if TYPE_CHECKING:
    from asyncio.base_subprocess import BaseSubprocessTransport as _AsyncioTransport
else:
    _AsyncioTransport = unix_events._UnixSubprocessTransport

_SECONDS_BETWEEN_LOOKS = 0.05

# What asyncio reports when somebody else's wait() took the status.
_STATUS_UNKNOWN = 255

# Python 3.11 waits for each child in a thread, also where there are process descriptors. What shows
# of that is kept: its texts, the empty context of what it reports, and that the thread (and with it
# the child and its transport) outlives the loop.
_ASYNCIO_WAITS_IN_THREADS = sys.version_info < (3, 12)

# Whether a cancelled start shields its wait for the killed child from a second cancellation.
_private: Any = unix_events._UnixSelectorEventLoop
_SHIELDS_ITS_WAIT = "shield" in _private._make_subprocess_transport.__code__.co_names

_exit_code = unix_events.waitstatus_to_exitcode  # type: ignore[attr-defined]
_thread_numbers = itertools.count()
# A build for kqueue does without, also where there are some.
_DOES_WITHOUT = "epoll" not in _native._backends()
_threads_forced = False


def _force_threads(forced: bool) -> None:
    """Have a thread wait for each child, as on an old kernel; for tests."""
    global _threads_forced
    _threads_forced = forced


def _open_pidfd(pid: int) -> int:
    """A descriptor of the process, or -1 where there is none to be had."""
    if _DOES_WITHOUT or not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        # An old kernel, a sandbox, no descriptor left, or a child that somebody else has reaped: a
        # thread copes with all of them.
        return -1


# Named as asyncio's, because its name is what shows of it: in logs and warnings.
class _UnixSubprocessTransport(_AsyncioTransport):
    """asyncio's subprocess transport, which watches its child itself.

    It owns the process descriptor, if there is one. The loop holds it from start to end of the
    child.
    """

    if TYPE_CHECKING:
        _loop: Any
        _proc: Any

    _pidfd = -1
    _watched_by_number = False

    def __del__(self) -> None:
        try:
            # In a forked process the child is the parent's: nothing to warn of, nobody to kill.
            if self._loop is None or not self._loop._forked():
                super().__del__()
        finally:
            self._close_pidfd()

    # ---- signals ----

    def send_signal(self, signal: int) -> None:
        """Send a signal; nothing happens when the child has exited (asyncio's method).

        ProcessLookupError once the transport is done with its child.
        """
        self._check_proc()
        if self._proc.returncode is not None:
            return
        if self._pidfd < 0 or not hasattr(signals, "pidfd_send_signal"):
            super().send_signal(signal)
            return
        # As os.kill() does, whose place this takes: by number, a stranger might be hit when
        # somebody else has reaped the child.
        sys.audit("os.kill", self._pid, signal)
        try:
            signals.pidfd_send_signal(self._pidfd, signal)
        except ProcessLookupError:
            pass
        except OSError:
            # A sandbox that knows no such call; or what is wrong is told by the ordinary one.
            super().send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM (asyncio's method)."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL (asyncio's method)."""
        self.send_signal(signals.SIGKILL)

    # ---- the end of the child ----

    def _watch(self) -> None:
        """Have the loop told of the child's end."""
        if _threads_forced:
            self._watch_in_thread()
            return
        watch: Callable[..., object] = self._loop._add_reader
        number = self._pidfd = _open_pidfd(self._proc.pid)
        if self._pidfd < 0:
            watch, number = self._loop._watch_process, self._proc.pid
            self._watched_by_number = True
        try:
            # asyncio's thread has an empty context to report from, and without process descriptors
            # every asyncio has a thread.
            if _ASYNCIO_WAITS_IN_THREADS or self._watched_by_number:
                contextvars.Context().run(watch, number, self._ended)
            else:
                watch(number, self._ended)
        except OSError:
            self._watched_by_number = False
            self._close_pidfd()
            self._watch_in_thread()
        except BaseException:
            self._stop_watching()
            raise
        else:
            self._loop._children.add(self)

    def _watch_in_thread(self) -> None:
        name = f"cpploop-waitpid-{next(_thread_numbers)}"
        arguments = (self._loop, self, self._proc.pid)
        threading.Thread(target=_wait_for, args=arguments, name=name, daemon=True).start()

    def _ended(self) -> None:
        returncode = self._reap(self._loop)
        if returncode is None:
            # Woken for nothing; or told by a kqueue, which tells once, before there was a status.
            if self._pidfd < 0:
                self._stop_watching()
                try:
                    self._watch_in_thread()
                except RuntimeError:
                    # No thread to be had yet, and nobody else tells of the end any more.
                    self._loop.call_later(_SECONDS_BETWEEN_LOOKS, self._ended)
            return
        self._stop_watching()
        self._loop._child_watcher_callback(self._pid, returncode, self)

    def _stop_watching(self) -> None:
        if self._pidfd >= 0:
            self._loop._children.discard(self)
            self._loop._remove_reader(self._pidfd)
            self._close_pidfd()
        elif self._watched_by_number:
            self._watched_by_number = False
            self._loop._children.discard(self)
            self._loop._unwatch_process(self._proc.pid)

    def _close_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def _reap(self, loop: Any) -> int | None:
        """The child's return code, taken from the kernel once; None while it lives."""
        in_thread = _ASYNCIO_WAITS_IN_THREADS or self._pidfd < 0
        stolen = False
        proc = self._proc
        with proc._waitpid_lock:
            returncode: int | None = proc.returncode
            if returncode is None:
                try:
                    returncode = self._take_status()
                except ChildProcessError:
                    stolen = True
                    returncode = _STATUS_UNKNOWN
                proc.returncode = returncode
        if stolen:
            text = "child process pid %d exit status already read:  will report returncode 255"
            if in_thread:
                text = "Unknown child process pid %d, will report returncode 255"
            logger.warning(text, proc.pid)
        elif in_thread and returncode is not None and loop.get_debug():
            logger.debug("process %s exited with returncode %s", proc.pid, returncode)
        return returncode

    def _take_status(self) -> int | None:
        if self._pidfd >= 0 and hasattr(os, "P_PIDFD"):
            try:
                result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                raise
            except OSError:
                # Linux 5.3 gives the descriptor but does not wait for it.
                pass
            else:
                if result is None:
                    return None
                by_exit = result.si_code == os.CLD_EXITED
                return result.si_status if by_exit else -result.si_status
        pid, status = os.waitpid(self._proc.pid, os.WNOHANG)
        return _exit_code(status) if pid else None


def _wait_for(loop: Any, transport: _UnixSubprocessTransport, pid: int) -> None:
    """Wait for a child's end in a thread of its own; the loop's thread reaps it."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        # Somebody else has reaped it, which is noticed again where the status is taken.
        pass
    try:
        loop.call_soon_threadsafe(transport._ended)
    except RuntimeError:
        transport._reap(loop)
        logger.warning("Loop %r that handles pid %r is closed", loop, pid)


# ---- what asyncio would use to watch a child -----------------------------------------------------

# typeshed leaves out what is private of the module.
_unix: Any = unix_events

if sys.version_info >= (3, 14):
    _PidfdWatcher: Any = _unix._PidfdChildWatcher
    _can_use_pidfd = _unix.can_use_pidfd

    # All that asyncio's constructor for Unix is known to do. One that does more is called as it is.
    _constructor: Any = _private.__init__
    _CONSTRUCTOR_IS_KNOWN = set(_constructor.__code__.co_names) == {
        *("super", "__init__", "_signal_handlers", "_unix_server_sockets"),
        *("can_use_pidfd", "_PidfdChildWatcher", "_ThreadedChildWatcher", "_watcher"),
    }

    def _program_chose_watcher(loop: Any) -> bool:
        return type(loop._watcher) is not _PidfdWatcher

else:
    _DefaultPolicy = unix_events._UnixDefaultEventLoopPolicy
    _DefaultWatcher: type = (
        unix_events.ThreadedChildWatcher
        if _ASYNCIO_WAITS_IN_THREADS
        else unix_events.PidfdChildWatcher
    )

    def _program_chose_watcher(loop: Any) -> bool:
        """Whether a child watcher of the program's own choice is in force."""
        policy: Any = events.get_event_loop_policy()
        getter = getattr(policy.get_child_watcher, "__func__", None)
        if getter is not _DefaultPolicy.get_child_watcher:
            return True
        # Not asked for by the method, which would make one and, on some Pythons, warn.
        watcher = policy._watcher
        return watcher is not None and type(watcher) is not _DefaultWatcher


class SpawningLoop(asyncio.SelectorEventLoop):
    """The part of the loop that starts children."""

    def __init__(self, selector: Any = None) -> None:
        self._children: set[_UnixSubprocessTransport] = set()
        if (
            sys.version_info >= (3, 14)
            and _CONSTRUCTOR_IS_KNOWN
            and _unix.can_use_pidfd is _can_use_pidfd
        ):
            # asyncio's would open a process descriptor, to see whether it can, for every loop; a
            # program that never starts a child need not pay for that.
            selector_events.BaseSelectorEventLoop.__init__(self, selector)
            self._signal_handlers: dict[int, asyncio.Handle] = {}
            self._unix_server_sockets: dict[Any, int] = {}
            self._watcher = _PidfdWatcher()
        else:
            super().__init__(selector)

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        if _program_chose_watcher(self):
            return await super()._make_subprocess_transport(  # type: ignore[misc]
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra=extra, **kwargs
            )
        connected = self.create_future()
        transport = _UnixSubprocessTransport(
            self,
            protocol,
            args,
            shell,
            stdin,
            stdout,
            stderr,
            bufsize,
            waiter=connected,
            extra=extra,
            **kwargs,
        )
        try:
            transport._watch()
        except BaseException:
            # Nobody would hear of its end.
            transport.close()
            raise
        try:
            await connected
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            ended = transport._wait()
            await (asyncio.shield(ended) if _SHIELDS_ITS_WAIT else ended)
            raise
        return transport

    def _let_go_of_children(self, *, forked: bool) -> list[_UnixSubprocessTransport]:
        """Stop watching, because the loop closes; the caller drops the result once it is closed."""
        children = list(self._children)
        self._children.clear()
        for transport in children:
            if forked:
                # The number is ours, what it stands for is the parent's.
                transport._close_pidfd()
                continue
            waits_in_thread = _ASYNCIO_WAITS_IN_THREADS or transport._watched_by_number
            transport._stop_watching()
            if waits_in_thread:
                # No thread to be had is no reason not to close.
                with contextlib.suppress(RuntimeError):
                    transport._watch_in_thread()
        return children
