"""Signals: handlers of the loop, Ctrl-C, handlers of the signal module, the wake-up descriptor."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import logged, open_loop, outcome, reported, run_once, same_on_both

SIGNAL = signal.SIGUSR1


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    watched = (SIGNAL, signal.SIGUSR2, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in watched}
    # The shell that started the tests in the background may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = {number: signal.getsignal(number) for number in watched if number != signal.SIGINT}
    for number, handler in before.items():
        signal.signal(number, handler)
    wakeup = signal.set_wakeup_fd(-1)
    assert wakeup == -1, "the wake-up descriptor was left set"
    for number, handler in after.items():
        assert handler is before[number] or handler == signal.SIG_DFL


def send(number: int = SIGNAL) -> None:
    os.kill(os.getpid(), number)


def run_for(loop: Any, seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


def stopping(loop: Any, handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler that ends run_until_stopped()."""

    def called(*args: Any) -> None:
        loop.stop()
        handler(*args)

    return called


def run_until_stopped(loop: Any) -> None:
    """Runs until a handler stops the loop, and two turns more for what comes too often."""
    guard = loop.call_later(10 * support.TIME_SCALE, loop.stop)
    loop.run_forever()
    guard.cancel()
    run_once(loop, 2)


# --------------------------------------------------------------------------- add_signal_handler


def test_a_handler_runs_in_the_loop(loop: Any) -> None:
    seen: list[Any] = []

    def note(*args: Any) -> None:
        seen.append((args, loop.is_running()))

    loop.add_signal_handler(SIGNAL, stopping(loop, note), 1, "two")
    loop.call_soon(send)
    run_until_stopped(loop)
    assert seen == [((1, "two"), True)]
    assert loop.remove_signal_handler(SIGNAL) is True
    assert loop.remove_signal_handler(SIGNAL) is False
    assert signal.getsignal(SIGNAL) == signal.SIG_DFL


def test_wakes_a_loop_blocked_in_the_poll(loop: Any) -> None:
    loop.add_signal_handler(SIGNAL, loop.stop)
    timer = threading.Timer(0.05, send)
    timer.start()
    started = time.monotonic()
    loop.run_forever()
    timer.join()
    assert time.monotonic() - started < 10
    loop.remove_signal_handler(SIGNAL)


def test_a_signal_before_the_loop_runs(loop: Any) -> None:
    seen: list[int] = []
    loop.add_signal_handler(SIGNAL, stopping(loop, seen.append), 1)
    send()
    assert seen == []
    run_until_stopped(loop)
    assert seen == [1]
    loop.remove_signal_handler(SIGNAL)


def test_the_last_handler_set_wins(loop: Any) -> None:
    seen: list[str] = []
    loop.add_signal_handler(SIGNAL, stopping(loop, seen.append), "first")
    loop.add_signal_handler(SIGNAL, stopping(loop, seen.append), "second")
    loop.call_soon(send)
    run_until_stopped(loop)
    loop.remove_signal_handler(SIGNAL)
    assert seen == ["second"]


def test_removed_between_the_signal_and_its_turn() -> None:
    def attempt(factory: support.LoopFactory) -> list[Any]:
        seen: list[int] = []
        with open_loop(factory) as loop:
            loop.add_signal_handler(SIGNAL, seen.append, 1)
            loop.add_signal_handler(signal.SIGUSR2, stopping(loop, seen.append), 2)
            send()
            send(signal.SIGUSR2)
            loop.remove_signal_handler(SIGNAL)
            run_until_stopped(loop)
            loop.remove_signal_handler(signal.SIGUSR2)
        return seen

    assert same_on_both(attempt) == [2]


def test_several_signals(loop: Any) -> None:
    seen: list[int] = []
    numbers = (signal.SIGUSR2, SIGNAL, signal.SIGALRM, signal.SIGCHLD)

    def note(number: int) -> None:
        seen.append(number)
        if len(seen) == len(numbers):
            loop.stop()

    for number in numbers:
        loop.add_signal_handler(number, note, int(number))

    def send_all() -> None:
        for number in numbers:
            send(number)

    loop.call_soon(send_all)
    run_until_stopped(loop)
    assert sorted(seen) == sorted(map(int, numbers))
    for number in numbers:
        assert loop.remove_signal_handler(number)


def test_many_signals_in_a_row(loop: Any) -> None:
    seen: list[int] = []
    loop.add_signal_handler(SIGNAL, seen.append, 1)
    signal.setitimer(signal.ITIMER_REAL, 0)

    def storm(left: int) -> None:
        send()
        if left:
            loop.call_soon(storm, left - 1)
        else:
            # Each was sent and noted before the next; the loop has yet to read of the last.
            loop.call_later(0.05, loop.stop)

    loop.call_soon(storm, 3000)
    loop.run_forever()
    loop.remove_signal_handler(SIGNAL)
    # Signals of one kind may coalesce, but most come singly, and the last must arrive.
    assert len(seen) > 1000


def test_sigchld_is_allowed(loop: Any) -> None:
    """asyncio lets SIGCHLD have a handler; children run as well."""
    seen: list[int] = []
    loop.add_signal_handler(signal.SIGCHLD, stopping(loop, seen.append), 1)
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    run_until_stopped(loop)
    loop.remove_signal_handler(signal.SIGCHLD)
    assert seen


def test_a_handler_that_raises(loop: Any) -> None:
    def fail() -> None:
        raise LookupError("in the handler")

    with reported(loop) as contexts:
        loop.add_signal_handler(SIGNAL, stopping(loop, fail))
        for _ in range(2):
            loop.call_soon(send)
            run_until_stopped(loop)
        loop.remove_signal_handler(SIGNAL)
    assert [str(context["exception"]) for context in contexts] == ["in the handler"] * 2


def test_a_sigint_handler_replaces_keyboard_interrupt(loop: Any) -> None:
    seen: list[int] = []
    loop.add_signal_handler(signal.SIGINT, stopping(loop, seen.append), 1)
    loop.call_soon(send, signal.SIGINT)
    run_until_stopped(loop)
    assert seen == [1]
    loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop.call_soon(send, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()


async def coroutine_function() -> None:
    pass


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "number too large": lambda loop: loop.add_signal_handler(signal.NSIG + 5, print),
    "zero": lambda loop: loop.add_signal_handler(0, print),
    "negative": lambda loop: loop.add_signal_handler(-1, print),
    "text": lambda loop: loop.add_signal_handler("SIGINT", print),
    "float": lambda loop: loop.add_signal_handler(2.0, print),
    "none": lambda loop: loop.add_signal_handler(None, print),
    "SIGKILL": lambda loop: loop.add_signal_handler(signal.SIGKILL, print),
    "SIGSTOP": lambda loop: loop.add_signal_handler(signal.SIGSTOP, print),
    "coroutine function": lambda loop: loop.add_signal_handler(SIGNAL, coroutine_function),
    "no callback": lambda loop: loop.add_signal_handler(SIGNAL),
    "nothing": lambda loop: loop.add_signal_handler(),
    "remove too large": lambda loop: loop.remove_signal_handler(signal.NSIG + 5),
    "remove text": lambda loop: loop.remove_signal_handler("SIGINT"),
    "remove none set": lambda loop: loop.remove_signal_handler(signal.SIGUSR2),
    "remove SIGKILL": lambda loop: loop.remove_signal_handler(signal.SIGKILL),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_wrong_calls(name: str) -> None:
    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop, logged() as records:
            result = outcome(BAD_CALLS[name], loop)
            if result[:2] == ("raised", "TypeError"):
                result = result[:2]
            # A failed registration must leave no wake-up descriptor behind.
            wakeup = signal.set_wakeup_fd(-1)
            return result, records, wakeup

    assert same_on_both(attempt)[2] == -1


def test_not_in_the_main_thread() -> None:
    """zuv#62: loops of other threads run, but have no signal handlers."""

    def attempt(factory: support.LoopFactory) -> list[Any]:
        results: list[Any] = []

        def work() -> None:
            with open_loop(factory) as loop:
                results.append(outcome(loop.add_signal_handler, SIGNAL, print)[:2])
                results.append(outcome(loop.remove_signal_handler, SIGNAL))
                loop.run_until_complete(asyncio.sleep(0.001))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return results

    assert same_on_both(attempt)[0][1] in ("RuntimeError", "ValueError")


def test_close_removes_the_handlers(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    loop.add_signal_handler(SIGNAL, print)
    loop.add_signal_handler(signal.SIGUSR2, print)
    loop.close()
    assert signal.getsignal(SIGNAL) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


# --------------------------------------------------------------------------- wake-up descriptor


def test_a_wakeup_fd_set_by_the_program_before() -> None:
    """uv#505 and others: what the program had set is not lost by merely running a loop."""

    def attempt(factory: support.LoopFactory) -> list[bool]:
        first, second = socket.socketpair()
        with first, second:
            first.setblocking(False)
            second.setblocking(False)
            signal.set_wakeup_fd(first.fileno(), warn_on_full_buffer=False)
            try:
                with open_loop(factory) as loop:
                    loop.run_until_complete(asyncio.sleep(0))
                    during = signal.set_wakeup_fd(first.fileno(), warn_on_full_buffer=False)
                after = signal.set_wakeup_fd(-1)
                return [during == first.fileno(), after == first.fileno()]
            finally:
                signal.set_wakeup_fd(-1)

    assert same_on_both(attempt) == [True, True]


def test_wakeup_fd_is_set_only_while_it_is_needed() -> None:
    def attempt(factory: support.LoopFactory) -> list[bool]:
        def is_set() -> bool:
            current = signal.set_wakeup_fd(-1)
            if current != -1:
                signal.set_wakeup_fd(current, warn_on_full_buffer=False)
            return current != -1

        states = []
        with open_loop(factory) as loop:
            states.append(is_set())
            loop.add_signal_handler(SIGNAL, print)
            states.append(is_set())
            loop.remove_signal_handler(SIGNAL)
            states.append(is_set())
        states.append(is_set())
        return states

    assert same_on_both(attempt)[-1] is False


# --------------------------------------------------------------------------- signal.signal


def test_signal_module_handlers_run_while_the_loop_blocks(loop: Any) -> None:
    """A plain Python handler must not wait for the loop's next event."""
    seen: list[float] = []
    signal.signal(SIGNAL, lambda *args: seen.append(time.monotonic()))
    sent: list[float] = []
    timer = threading.Timer(0.05, lambda: (sent.append(time.monotonic()), send()))
    timer.start()
    run_for(loop, 0.5)
    timer.join()
    signal.signal(SIGNAL, signal.SIG_DFL)
    assert len(seen) == 1
    assert seen[0] - sent[0] < 0.2 * support.TIME_SCALE


def test_signal_module_handlers_run_in_a_busy_loop(loop: Any) -> None:
    seen: list[int] = []
    signal.signal(SIGNAL, lambda *args: seen.append(1))
    deadline = time.monotonic() + 10

    def busy() -> None:
        if seen or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.call_soon(busy)

    timer = threading.Timer(0.02, send)
    timer.start()
    loop.call_soon(busy)
    loop.run_forever()
    timer.join()
    signal.signal(SIGNAL, signal.SIG_DFL)
    assert seen == [1]


def send_when_blocked(loop: Any, number: int) -> threading.Thread:
    """A thread that sends once the loop has nothing left to run.

    Not before: what the handler raises would come out of what starts the thread, or of a callback.
    """
    running = threading.Event()

    def wait_and_send() -> None:
        running.wait()
        time.sleep(0.2)
        send(number)

    thread = threading.Thread(target=wait_and_send)
    thread.start()
    loop.call_soon(running.set)
    return thread


@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt, SystemExit])
def test_an_exception_from_a_signal_module_handler_leaves_the_loop(
    loop: Any, kind: type[BaseException]
) -> None:
    """Raised while the loop is blocked, it belongs to no callback: run_forever raises it."""

    def handler(*args: Any) -> None:
        raise kind("from the signal handler")

    sender = send_when_blocked(loop, SIGNAL)
    signal.signal(SIGNAL, handler)
    guard = loop.call_later(10 * support.TIME_SCALE, loop.stop)
    with pytest.raises(kind, match="from the signal handler"):
        loop.run_forever()
    guard.cancel()
    sender.join()
    signal.signal(SIGNAL, signal.SIG_DFL)
    run_once(loop)


def test_interrupted_polls_do_not_shorten_or_lengthen_timers(loop: Any) -> None:
    seen: list[int] = []
    signal.signal(signal.SIGALRM, lambda *args: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        started = time.monotonic()
        loop.run_until_complete(asyncio.sleep(0.1))
        elapsed = time.monotonic() - started
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert 0.1 <= elapsed < 2 * support.TIME_SCALE
    assert len(seen) >= 10


# --------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_leaves_run_forever(loop: Any) -> None:
    """uv#295, uv#94"""
    sender = send_when_blocked(loop, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    sender.join()
    assert not loop.is_running()
    run_once(loop)


def test_ctrl_c_cancels_the_main_task_of_a_runner(loop_factory: support.LoopFactory) -> None:
    """uv#335"""
    seen: list[str] = []

    async def main() -> None:
        threading.Timer(0.05, send, (signal.SIGINT,)).start()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(0.01)
            seen.append("cleaned up")
            raise

    with pytest.raises(KeyboardInterrupt):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    assert seen == ["cancelled", "cleaned up"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_callback_computes(loop_factory: support.LoopFactory) -> None:
    async def main() -> str:
        send(signal.SIGINT)
        # The interpreter notices between two instructions; the task is cancelled, not torn.
        for _ in range(1000):
            pass
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return "handled"
        return "not cancelled"

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == "handled"


def test_a_second_ctrl_c_interrupts_at_once(loop_factory: support.LoopFactory) -> None:
    """cpy PR#32105"""
    started = time.monotonic()

    async def main() -> None:
        send(signal.SIGINT)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            threading.Timer(0.05, send, (signal.SIGINT,)).start()
            await asyncio.sleep(30)

    with pytest.raises(KeyboardInterrupt):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(main())
    assert time.monotonic() - started < 15


def test_ctrl_c_again_and_again_with_one_runner(loop_factory: support.LoopFactory) -> None:
    async def main() -> None:
        send(signal.SIGINT)
        await asyncio.sleep(30)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                runner.run(main())


@pytest.mark.parametrize("how", ["sleeping", "busy", "reading"])
def test_ctrl_c_kills_a_program(loop_name: str, how: str) -> None:
    """uv#295, uv#335: from outside, with the loop blocked, busy, or waiting for a socket."""
    source = """
        import asyncio, signal, socket, sys
        signal.signal(signal.SIGINT, signal.default_int_handler)

        async def main():
            print("ready", flush=True)
            if sys.argv[1] == "sleeping":
                await asyncio.sleep(60)
            elif sys.argv[1] == "busy":
                while True:
                    await asyncio.sleep(0)
            else:
                first, second = socket.socketpair()
                reader, writer = await asyncio.open_connection(sock=first)
                await reader.read()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        """
    prelude = (
        f"import sys; sys.path.insert(0, {os.path.dirname(support.__file__)!r})\n"
        f"import support; factory = support.factory({loop_name!r})\n"
    )
    import textwrap

    process = subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(source), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20 * support.TIME_SCALE)
        finally:
            process.kill()
        assert "KeyboardInterrupt" in process.stderr.read()
        assert process.returncode == -signal.SIGINT
