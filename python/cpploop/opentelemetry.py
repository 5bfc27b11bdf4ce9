"""OpenTelemetry instruments for loops: the extra ``opentelemetry``.

from opentelemetry import metrics
from cpploop.opentelemetry import observe

observe(metrics.get_meter("my program"), api=loop)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from ._exported import COUNTERS, GAUGES
from ._loop import Loop
from ._metrics import LoopMetrics, look_from_any_thread

__all__ = ("observe",)

_UNITS = {"waited": "s", "busy": "s", "bytes_received": "By", "bytes_sent": "By"}


def observe(meter: Meter, **loops: Loop) -> None:
    """Register observable instruments for loops, each under the name it is given here.

    Names begin with ``cpploop.``, the attribute ``loop`` tells the loops apart, and a loop that
    was closed is left out from then on; on a free-threaded Python, where the loop itself has to
    answer another thread, so is one that is blocked. See cpploop.LoopMetrics for what is counted.
    How late a loop is comes as gauges for the quantiles 0.5, 0.9 and 0.99, since observable
    histograms do not exist.
    """

    def instrument(
        read: Callable[[LoopMetrics], Iterable[tuple[float, dict[str, str]]]],
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observations(options: CallbackOptions) -> Iterable[Observation]:
            for name, loop in loops.items():
                metrics = look_from_any_thread(loop)
                if metrics is not None:
                    for value, attributes in read(metrics):
                        yield Observation(value, {"loop": name, **attributes})

        return observations

    def field(name: str) -> Callable[[LoopMetrics], Iterable[tuple[float, dict[str, str]]]]:
        return lambda metrics: [(getattr(metrics, name), {})]

    for name, text in COUNTERS.items():
        meter.create_observable_counter(
            f"cpploop.{name}", [instrument(field(name))], _UNITS.get(name, ""), text
        )
    for name, text in GAUGES.items():
        meter.create_observable_gauge(f"cpploop.{name}", [instrument(field(name))], "", text)
    meter.create_observable_gauge(
        "cpploop.transports",
        [instrument(lambda look: [(n, {"kind": kind}) for kind, n in look.transports.items()])],
        "",
        "Open transports.",
    )
    meter.create_observable_gauge(
        "cpploop.lag",
        [instrument(lambda look: [(look.lag(q), {"quantile": str(q)}) for q in (0.5, 0.9, 0.99)])],
        "s",
        "How long the loop did not look at the kernel.",
    )
