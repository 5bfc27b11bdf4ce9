"""call_later and call_at: never early, in order, cancelled for good, cheap to cancel."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import support
from parity import open_loop, outcome, run_once, same_on_both


@pytest.fixture
def loop(loop_factory: support.LoopFactory) -> Iterator[Any]:
    with open_loop(loop_factory) as loop:
        yield loop


def run_for(loop: Any, seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


# --------------------------------------------------------------------------- punctuality


def assert_never_early(loop: Any, delays: list[float]) -> None:
    """Each fires at or after when(), by the loop's clock, which is time.monotonic()'s."""
    late: list[float] = []

    def fired(index: int) -> None:
        now = time.monotonic()
        late.append(now - handles[index].when())
        assert loop.time() >= handles[index].when()
        if len(late) == len(delays):
            loop.stop()

    before = time.monotonic()
    handles = [loop.call_later(delay, fired, index) for index, delay in enumerate(delays)]
    for handle, delay in zip(handles, delays, strict=True):
        assert handle.when() >= before + delay
    loop.run_forever()
    assert len(late) == len(delays)
    # asyncio's own loop counts what is due within its clock's resolution as due now.
    assert min(late) >= -time.get_clock_info("monotonic").resolution


def test_never_early(loop: Any) -> None:
    """uv#739, uv#755, uv#233: timers of other loops fire up to a millisecond early."""
    generator = random.Random(20261122)
    for _ in range(20):
        delays = [
            generator.choice([0.0, generator.uniform(0, 0.004), generator.expovariate(2000)])
            for _ in range(generator.randint(1, 30))
        ]
        assert_never_early(loop, delays)


def test_never_early_for_any_delays(loop_factory: support.LoopFactory) -> None:
    """uv#739, uv#755"""
    hypothesis = pytest.importorskip("hypothesis")
    strategies = pytest.importorskip("hypothesis.strategies")

    @hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @hypothesis.given(
        strategies.lists(
            strategies.floats(min_value=-1.0, max_value=0.003), min_size=1, max_size=20
        )
    )
    def check(delays: list[float]) -> None:
        with open_loop(loop_factory) as loop:
            assert_never_early(loop, delays)

    check()


@pytest.mark.parametrize("delay", [1e-9, 1e-7, 1e-6, 1e-4, 0.0005, 0.001, 0.0015, 0.01, 0.05])
def test_one_sleep_of_every_size(loop: Any, delay: float) -> None:
    for _ in range(5):
        started = time.monotonic()
        loop.run_until_complete(asyncio.sleep(delay))
        elapsed = time.monotonic() - started
        assert elapsed >= delay
        assert elapsed < delay + 1.0 * support.TIME_SCALE


def test_timers_fire_while_callbacks_keep_coming(loop: Any) -> None:
    fired: list[float] = []
    stopped = False

    def busy() -> None:
        if not stopped:
            loop.call_soon(busy)

    started = time.monotonic()
    loop.call_later(0.02, lambda: fired.append(time.monotonic() - started))
    loop.call_soon(busy)
    run_for(loop, 0.05)
    stopped = True
    run_once(loop)
    assert len(fired) == 1 and fired[0] >= 0.02


# --------------------------------------------------------------------------- order


def test_earlier_deadlines_first(loop: Any) -> None:
    order: list[float] = []
    now = loop.time()
    offsets = [number / 10000 for number in range(100)]
    random.Random(1).shuffle(offsets)
    for offset in offsets:
        loop.call_at(now + offset, order.append, offset)
    run_for(loop, 0.03)
    assert order == sorted(offsets)


def test_equal_deadlines_in_the_order_of_scheduling() -> None:
    """asyncio's heap is not stable; cpploop's order is that of scheduling."""
    name = "cpploop"
    if name not in support.selected_loops():
        pytest.skip("only cpploop promises it")
    with open_loop(support.factory(name)) as loop:
        order: list[int] = []
        when = loop.time() + 0.005
        for number in range(300):
            loop.call_at(when, order.append, number)
        run_for(loop, 0.02)
        assert order == list(range(300))


def test_equal_deadlines_all_fire_in_one_turn(loop: Any) -> None:
    fired: list[int] = []
    when = loop.time() + 0.002
    for number in range(50):
        loop.call_at(when, fired.append, number)
    time.sleep(0.005)
    run_once(loop)
    assert sorted(fired) == list(range(50))


def test_due_timers_run_behind_what_is_ready(loop: Any) -> None:
    order: list[str] = []
    loop.call_at(loop.time() - 1, order.append, "timer")
    loop.call_soon(order.append, "soon")
    run_once(loop)
    assert order == ["soon", "timer"]


def test_a_timer_set_by_a_timer_waits_for_the_next_turn(loop: Any) -> None:
    order: list[str] = []

    def first() -> None:
        order.append("first")
        loop.call_later(0, order.append, "second")
        loop.call_at(loop.time() - 5, order.append, "third")

    loop.call_later(0, first)
    time.sleep(0.001)
    run_once(loop)
    assert order == ["first"]
    time.sleep(0.001)
    run_once(loop)
    assert sorted(order) == ["first", "second", "third"]


# --------------------------------------------------------------------------- delays


def test_zero_delay_gives_a_timer_handle(loop: Any) -> None:
    """uv#482, uv#704: call_later(0) too has a handle with when()."""
    called: list[int] = []
    for delay in (0, 0.0, -0.0, -1, -1e300, False):
        before = loop.time()
        handle = loop.call_later(delay, called.append, 1)
        assert isinstance(handle, asyncio.TimerHandle)
        assert isinstance(handle.when(), float)
        assert before + delay <= handle.when() <= loop.time() + delay
    # A turn counts as due what its clock has reached, so let it tick.
    time.sleep(0.001)
    run_once(loop)
    assert called == [1] * 6


@pytest.mark.parametrize("when", [0, 1, -5, 10**9, 2.5])
def test_when_is_what_was_asked_for(loop: Any, when: float) -> None:
    handle = loop.call_at(when, print)
    assert handle.when() == when
    handle.cancel()
    assert handle.when() == when


@pytest.mark.parametrize(
    "delay", [1e6, 1e9, 2.0**31, 2.0**32, 1e10, 1e15, 1e18, 1e19, 1e100, 1e308, math.inf]
)
def test_huge_delays(loop: Any, delay: float) -> None:
    """uv#259: far beyond what any system call can wait for, and never now."""
    fired: list[str] = []
    handles = [loop.call_later(delay, fired.append, "huge") for _ in range(3)]
    assert handles[0].when() >= delay
    loop.call_later(0.01, fired.append, "soon")
    run_for(loop, 0.02)
    assert fired == ["soon"]
    handles[1].cancel()
    run_for(loop, 0.005)
    assert fired == ["soon"]


@pytest.mark.parametrize("only", [1e10, 1e19, math.inf])
def test_a_huge_delay_alone_does_not_make_the_loop_spin(loop: Any, only: float) -> None:
    loop.call_later(only, print)

    async def main() -> None:
        import threading

        future = loop.create_future()
        timer = threading.Timer(0.15, lambda: loop.call_soon_threadsafe(future.set_result, None))
        timer.start()
        used = time.thread_time()
        await future
        used = time.thread_time() - used
        timer.join()
        assert used < 0.08 * support.TIME_SCALE

    loop.run_until_complete(main())


class Number:
    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


class Fraction_(float):
    pass


def test_kinds_of_numbers(loop: Any) -> None:
    import decimal
    import fractions

    fired: list[str] = []
    loop.call_later(Fraction_(0.001), fired.append, "float subclass")
    loop.call_later(True, fired.append, "bool").cancel()
    loop.call_at(int(loop.time()), fired.append, "int")
    loop.call_at(fractions.Fraction(1, 3), fired.append, "fraction")
    time.sleep(0.002)
    run_once(loop)
    assert sorted(fired) == ["float subclass", "fraction", "int"]

    def attempt(factory: support.LoopFactory) -> Any:
        with open_loop(factory) as loop:
            return outcome(lambda: loop.call_later(decimal.Decimal(1), print).cancel())

    same_on_both(attempt)


@pytest.mark.parametrize("method", ["call_later", "call_at"])
def test_not_a_number_is_no_crash(loop: Any, method: str) -> None:
    """NaN compares false with everything. asyncio takes it, and its heap is out of order until it
    is gone; refusing it with a ValueError is as good. Nothing else may be disturbed."""
    fired: list[str] = []
    try:
        handle = getattr(loop, method)(math.nan, fired.append, "nan")
    except ValueError:
        pass
    else:
        assert isinstance(handle, asyncio.TimerHandle) and math.isnan(handle.when())
        handle.cancel()
    loop.call_later(0.002, fired.append, "other")
    run_for(loop, 0.01)
    assert fired == ["other"]


# --------------------------------------------------------------------------- cancelling


def test_cancelled_timers_do_not_fire(loop: Any) -> None:
    fired: list[int] = []
    handles = [loop.call_later(0.001 * (number % 7), fired.append, number) for number in range(200)]
    for handle in handles[::2]:
        handle.cancel()
        handle.cancel()
    run_for(loop, 0.03)
    assert sorted(fired) == list(range(1, 200, 2))


def test_cancelled_in_the_turn_in_which_it_is_due(loop: Any) -> None:
    fired: list[str] = []
    when = loop.time()
    first = loop.call_at(when, lambda: second.cancel())
    second = loop.call_at(when + 1e-7, fired.append, "second")
    time.sleep(0.001)
    run_once(loop, 3)
    assert fired == [] and second.cancelled() and not first.cancelled()


def test_cancel_after_it_fired(loop: Any) -> None:
    fired: list[int] = []
    handle = loop.call_later(0, fired.append, 1)
    run_for(loop, 0.005)
    handle.cancel()
    run_for(loop, 0.005)
    assert fired == [1] and handle.cancelled()


def test_cancelled_timers_do_not_pile_up(loop: Any) -> None:
    """A time-out per request, set and cancelled: memory must stay flat without waiting for it."""

    class Thing:
        pass

    def round_of(count: int) -> None:
        for _ in range(count):
            loop.call_later(3600, print, Thing()).cancel()

    round_of(1000)
    run_once(loop)
    gc.collect()
    before = support.rss_kib()
    for _ in range(100):
        round_of(1000)
        run_once(loop)
    gc.collect()
    assert support.rss_kib() - before < 4096


def test_cancelling_many_is_quick(loop: Any) -> None:
    """Amortised O(1): one rival's cancel searches its whole heap."""
    count = 100_000

    def spent(order: Callable[[list[Any]], None]) -> float:
        handles = [loop.call_later(100 + number, print) for number in range(count)]
        order(handles)
        started = time.perf_counter()
        for handle in handles:
            handle.cancel()
        run_once(loop)
        return time.perf_counter() - started

    for order in (lambda handles: None, list.reverse, random.Random(3).shuffle):
        assert spent(order) < 2.0 * support.TIME_SCALE


def test_cancelled_among_live_ones(loop: Any) -> None:
    """Compaction must not disturb the order or lose what is alive."""
    generator = random.Random(5)
    fired: list[float] = []
    alive: list[float] = []
    now = loop.time()
    for _ in range(5000):
        offset = generator.uniform(0, 0.02)
        handle = loop.call_at(now + offset, fired.append, offset)
        if generator.random() < 0.8:
            handle.cancel()
        else:
            alive.append(offset)
    run_for(loop, 0.1)
    assert fired == sorted(alive)


def test_a_cancelled_timer_is_collected_with_its_loop(loop_factory: support.LoopFactory) -> None:
    loop = loop_factory()
    handle = loop.call_later(3600, print)
    alive = weakref.ref(handle)
    handle.cancel()
    del handle
    loop.close()
    gc.collect()
    assert alive() is None


# --------------------------------------------------------------------------- the handles


def test_comparisons_are_by_deadline(loop: Any) -> None:
    early, late = loop.call_at(1.0, print), loop.call_at(2.0, print)
    same, other = loop.call_at(1.0, print), loop.call_at(1.0, id)
    try:
        assert early < late and early <= late and not early > late and not early >= late
        assert late > early and late >= early
        assert early == same and early <= same and early >= same
        assert (early != same) is False
        assert early != other
        assert not early < other and not early > other
        assert early != 1.0 and (early == object()) is False
        for operation in (lambda: early < 1.0, lambda: early >= None, lambda: early > object()):
            with pytest.raises(TypeError):
                operation()
        assert sorted([late, early])[0] is early
    finally:
        for handle in (early, late, same, other):
            handle.cancel()


def test_comparison_with_asyncios_own_handles(loop: Any) -> None:
    ours = loop.call_at(1.0, print)
    theirs = asyncio.TimerHandle(2.0, print, (), loop)
    assert ours < theirs and theirs > ours and ours <= theirs and not ours >= theirs
    assert ours != theirs
    ours.cancel()


def test_hash_and_equality(loop: Any) -> None:
    first, second = loop.call_at(7.5, print, 1), loop.call_at(7.5, print, 1)
    assert hash(first) == hash(first) == hash(second)
    assert first == second
    assert len({first, second}) == 1
    first.cancel()
    assert first != second
    second.cancel()


def test_comparison_traces() -> None:
    import operator

    def attempt(factory: support.LoopFactory) -> list[Any]:
        with open_loop(factory) as loop:
            handles = [
                loop.call_at(1, print),
                loop.call_at(1.0, print),
                loop.call_at(2, print, 1),
                loop.call_at(2, print, 2),
                loop.call_soon(print),
                5,
                None,
            ]
            operators = [
                operator.lt,
                operator.le,
                operator.eq,
                operator.ne,
                operator.gt,
                operator.ge,
            ]
            results = [
                outcome(operation, left, right)[:2]
                for operation in operators
                for left in handles
                for right in handles
            ]
            handles[2].cancel()
            handles[3].cancel()
            return [*results, handles[2] == handles[3], hash(handles[0]) == hash(1.0)]

    same_on_both(attempt)


# --------------------------------------------------------------------------- overridden time


def test_a_subclass_own_clock_is_honoured(loop_factory: support.LoopFactory) -> None:
    """Tests that fake the clock override time(); deadlines are then judged by it."""
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()

    class Slow(base):  # type: ignore[misc]
        def time(self) -> float:
            return 1e6 + super().time() / 2

    with open_loop(Slow) as loop:
        before, started = loop.time(), time.monotonic()
        assert before >= 1e6
        loop.run_until_complete(asyncio.sleep(0.02))
        assert loop.time() - before >= 0.02
        assert time.monotonic() - started >= 0.039


def test_a_clock_that_stands_still(loop_factory: support.LoopFactory) -> None:
    """A fake clock moved by hand: nothing is due until it is moved."""
    probe = loop_factory()
    base: Any = type(probe)
    probe.close()

    class Manual(base):  # type: ignore[misc]
        now = 50.0

        def time(self) -> float:
            return self.now

    with open_loop(Manual) as loop:
        fired: list[str] = []
        handle = loop.call_later(10, fired.append, "late")
        loop.call_later(5, fired.append, "early")
        assert handle.when() == 60.0
        run_once(loop, 2)
        assert fired == []
        loop.now = 55.0
        run_once(loop, 2)
        assert fired == ["early"]
        loop.now = 1e9
        run_once(loop, 2)
        assert fired == ["early", "late"]
