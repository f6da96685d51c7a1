"""What is counted about requests, attempts and keys, in the exposition format of Prometheus.

Counting is an increment in a dict: prometheus-client is imported at the first scrape and only writes the text. Labels are
words of ours or of the configuration, never a client's, so that the number of series is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
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

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the exposition format has them."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class Metrics:
    """Everything counted in one process. `in_flight` and `log_drops` are asked at each scrape."""

    def __init__(self, in_flight: Callable[[], int] = int, log_drops: Callable[[], int] = int) -> None:
        self._in_flight = in_flight
        self._log_drops = log_drops
        self._requests: Counter[tuple[str, str]] = Counter()
        self._bytes_in: Counter[str] = Counter()
        self._bytes_out: Counter[str] = Counter()
        self._first_byte: dict[str, Histogram] = {}
        self._overhead: dict[str, Histogram] = {}

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
        self._requests[surface, _STATUSES.get(status) or _class(status)] += 1
        self._bytes_in[surface] += bytes_in
        self._bytes_out[surface] += bytes_out
        if ttfb_s is not None:
            _observe(self._first_byte, surface, FIRST_BYTE_BUCKETS, ttfb_s)
        if overhead_s is not None:
            _observe(self._overhead, surface, OVERHEAD_BUCKETS, overhead_s)

    def exposition(self, pools: Pools) -> bytes:
        """Everything as text (version 0.0.4)."""
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - memory and start-up time

        page = _Page(lambda: self._families(pools))
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

    def _families(self, pools: Pools) -> Iterator[Metric]:
        from prometheus_client.metrics_core import (  # noqa: PLC0415
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        def counter(
            name: str, text: str, labels: tuple[str, ...], counts: Iterable[tuple[tuple[str, ...], int]]
        ) -> Metric:
            family = CounterMetricFamily(name, text, labels=labels)
            for values, count in counts:
                family.add_metric(values, count)
            return family

        def histogram(name: str, text: str, by_surface: Mapping[str, Histogram]) -> Metric:
            family = HistogramMetricFamily(name, text, labels=("surface",))
            for surface, each in by_surface.items():
                family.add_metric((surface,), each.buckets(), each.total)
            return family

        def single(counts: Mapping[str, int]) -> Iterator[tuple[tuple[str], int]]:
            return (((surface,), count) for surface, count in counts.items())

        yield counter("balancer_requests", "Requests answered.", ("surface", "status"), self._requests.items())
        yield counter("balancer_received_bytes", "Bytes of request bodies.", ("surface",), single(self._bytes_in))
        yield counter("balancer_sent_bytes", "Bytes of answer bodies.", ("surface",), single(self._bytes_out))
        yield histogram("balancer_first_byte_seconds", "Time to the first byte of the answer.", self._first_byte)
        yield histogram("balancer_overhead_seconds", "The proxy's own part of that time.", self._overhead)
        keys = GaugeMetricFamily("balancer_keys", "Keys by state.", labels=("upstream", "state"))
        attempts = CounterMetricFamily(
            "balancer_attempts", "Requests sent to upstreams.", labels=("upstream", "verdict")
        )
        for upstream, states, verdicts in pools():
            for state, count in states.items():
                keys.add_metric((upstream, state), count)
            for verdict, count in verdicts.items():
                attempts.add_metric((upstream, verdict), count)
        yield keys
        yield attempts
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


def _observe(histograms: dict[str, Histogram], surface: str, bounds: tuple[float, ...], value: float) -> None:
    histogram = histograms.get(surface)
    if histogram is None:
        histogram = histograms[surface] = Histogram(bounds)
    histogram.observe(value)
