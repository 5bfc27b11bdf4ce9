"""A Prometheus collector for loops: the extra ``prometheus``.

import prometheus_client
from cpploop.prometheus import LoopCollector

prometheus_client.REGISTRY.register(LoopCollector(api=loop))
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from ._exported import COUNTERS, GAUGES
from ._loop import Loop
from ._metrics import look_from_any_thread

__all__ = ("LoopCollector",)


class LoopCollector:
    """Collects the metrics of loops, each under the name it is given here (label ``loop``).

    A loop that was closed is left out from then on. See cpploop.LoopMetrics for what is counted;
    names begin with ``cpploop_`` and times are in seconds.
    """

    def __init__(self, **loops: Loop) -> None:
        self._loops = loops

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client calls at each scrape, in any thread.

        On a free-threaded Python the loop itself has to answer; one that is blocked is left out.
        """
        answers = {name: look_from_any_thread(loop) for name, loop in self._loops.items()}
        looks = {name: metrics for name, metrics in answers.items() if metrics is not None}
        for field, text in COUNTERS.items():
            counter = CounterMetricFamily(f"cpploop_{field}", text, labels=["loop"])
            for name, metrics in looks.items():
                counter.add_metric([name], getattr(metrics, field))
            yield counter
        for field, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"cpploop_{field}", text, labels=["loop"])
            for name, metrics in looks.items():
                gauge.add_metric([name], getattr(metrics, field))
            yield gauge
        transports = GaugeMetricFamily(
            "cpploop_transports", "Open transports.", labels=["loop", "kind"]
        )
        periods = HistogramMetricFamily(
            "cpploop_busy_period_seconds",
            "How long the loop did not look at the kernel.",
            labels=["loop"],
        )
        for name, metrics in looks.items():
            for kind, count in metrics.transports.items():
                transports.add_metric([name, kind], count)
            buckets = [
                ("+Inf" if bound == float("inf") else repr(bound), count)
                for bound, count in metrics.busy_periods
            ]
            periods.add_metric([name], buckets, sum_value=metrics.busy)
        yield transports
        yield periods
