"""What is counted about requests, attempts and keys, in the exposition format of Prometheus.

Counting is an increment in a dict: prometheus-client is imported at the first scrape and only writes the text. Labels are
words of ours or of the configuration, never a client's, so that the number of series is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import CollectorRegistry

Pools = Callable[[], Iterable[tuple[str, Mapping[str, int], Mapping[str, int]]]]
"""Asks for each upstream's name and the number of its keys in each state."""
Reached = Callable[[], Iterable[tuple[str, bool]]]
"""Asks for each upstream's name and whether it is up."""

FIRST_BYTE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. Models think long: the upper end is where first-byte timeouts stand."""
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
"""Seconds."""

_STATUSES = {status.value: str(status.value) for status in HTTPStatus} | {499: "499"}


class Histogram:
    """Counts of values up to each bound (inclusive) and beyond the last, and their sum."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def seen(self) -> bool:
        return any(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the exposition format has them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class _Served:
    """What was counted of one surface."""

    __slots__ = ("bytes_in", "bytes_out", "first_byte", "overhead", "statuses")

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.first_byte = Histogram(FIRST_BYTE_BUCKETS)
        self.overhead = Histogram(OVERHEAD_BUCKETS)


class Metrics:
    """Everything counted in one process. `in_flight` and `log_drops` are asked at each scrape."""

    def __init__(self, in_flight: Callable[[], int] = int, log_drops: Callable[[], int] = int) -> None:
        self._in_flight = in_flight
        self._log_drops = log_drops
        self._surfaces: defaultdict[str, _Served] = defaultdict(_Served)

    def request_done(
        self,
        surface: str,
        status: int,
        ttfb_s: float | None,
        overhead_s: float | None,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """One request, when it is over. Seconds are None where no byte was sent."""
        served = self._surfaces[surface]
        served.statuses[status] += 1
        served.bytes_in += bytes_in
        served.bytes_out += bytes_out
        if ttfb_s is not None:
            served.first_byte.observe(ttfb_s)
        if overhead_s is not None:
            served.overhead.observe(overhead_s)

    def exposition(self, pools: Pools, reached: Reached = tuple) -> bytes:
        """Everything as text (version 0.0.4)."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - memory and start-up time

        page = _Page(lambda: self._families(pools, reached))
        self._registry.register(page)
        try:
            return generate_latest(self._registry)
        finally:
            self._registry.unregister(page)

    @cached_property
    def _registry(self) -> CollectorRegistry:
        from prometheus_client.process_collector import ProcessCollector  # noqa: PLC0415
        from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        return registry

    def _families(self, pools: Pools, reached: Reached) -> Iterator[Metric]:
        from prometheus_client.metrics_core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        requests = CounterMetricFamily("balancer_requests", "Requests answered.", labels=("surface", "status"))
        received = CounterMetricFamily("balancer_received_bytes", "Bytes of request bodies.", labels=("surface",))
        sent = CounterMetricFamily("balancer_sent_bytes", "Bytes of answer bodies.", labels=("surface",))
        first_byte = HistogramMetricFamily(
            "balancer_first_byte_seconds", "Time to the first byte of the answer.", labels=("surface",)
        )
        overhead = HistogramMetricFamily(
            "balancer_overhead_seconds", "The proxy's own part of that time.", labels=("surface",)
        )
        for surface, served in self._surfaces.items():
            labelled: Counter[str] = Counter()
            for status, count in served.statuses.items():
                labelled[_STATUSES.get(status) or _class(status)] += count
            for label, count in labelled.items():
                requests.add_metric((surface, label), count)
            received.add_metric((surface,), served.bytes_in)
            sent.add_metric((surface,), served.bytes_out)
            for family, histogram in ((first_byte, served.first_byte), (overhead, served.overhead)):
                if histogram.seen:
                    family.add_metric((surface,), histogram.buckets(), histogram.total)
        yield from (requests, received, sent, first_byte, overhead)
        keys = GaugeMetricFamily("balancer_keys", "Keys by state.", labels=("upstream", "state"))
        attempts = CounterMetricFamily(
            "balancer_attempts", "Requests sent to upstreams.", labels=("upstream", "verdict")
        )
        for upstream, states, verdicts in pools():
            for state, count in states.items():
                keys.add_metric((upstream, state), count)
            for verdict, count in verdicts.items():
                attempts.add_metric((upstream, verdict), count)
        up = GaugeMetricFamily("balancer_upstream_up", "1 while the upstream can be reached.", labels=("upstream",))
        for upstream, reachable in reached():
            up.add_metric((upstream,), float(reachable))
        yield keys
        yield attempts
        yield up
        yield GaugeMetricFamily("balancer_in_flight", "Requests being served.", value=self._in_flight())
        yield CounterMetricFamily("balancer_log_lines_dropped", "Log lines lost.", value=self._log_drops())


class _Page:
    """The collector of one scrape."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self.collect = collect

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not collect."""
        return ()


def _class(status: int) -> str:
    return f"{status // 100}xx" if 100 <= status < 600 else "other"
