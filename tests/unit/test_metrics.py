"""What a scrape shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from balancer.observe.metrics import OVERHEAD_BUCKETS, Metrics


def scrape(
    metrics: Metrics, keys: Mapping[str, Mapping[str, int]] | None = None, verdicts: Mapping[str, int] | None = None
) -> dict[tuple[str, ...], float]:
    """Every sample: its name and its labels' values, in the order of their names."""
    pools = [(upstream, states, verdicts or {}) for upstream, states in (keys or {}).items()]
    text = metrics.exposition(lambda: pools).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_surface_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 429, 499, 299, 999, 0):
        metrics.request_done("gemini", status, None, None, 10, 20)
    samples = scrape(metrics)
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "balancer_requests_total"}
    assert counted == {
        ("200", "gemini"): 2,
        ("429", "gemini"): 1,
        ("499", "gemini"): 1,
        ("2xx", "gemini"): 1,
        ("other", "gemini"): 2,
    }
    assert samples["balancer_received_bytes_total", "gemini"] == 70
    assert samples["balancer_sent_bytes_total", "gemini"] == 140


def test_attempts_are_counted_by_upstream_and_verdict() -> None:
    samples = scrape(Metrics(), {"gemini": {}}, {"ok": 2, "key": 1, "gone": 0})
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "balancer_attempts_total"}
    assert counted == {("gemini", "ok"): 2, ("gemini", "key"): 1, ("gemini", "gone"): 0}


def test_keys_are_shown_as_the_pools_are_at_that_moment() -> None:
    metrics = Metrics()
    assert scrape(metrics, {"gemini": {"ready": 2, "resting": 1}})["balancer_keys", "ready", "gemini"] == 2
    assert scrape(metrics, {"gemini": {"ready": 0}})["balancer_keys", "ready", "gemini"] == 0


def test_times_fall_into_the_bucket_whose_bound_they_do_not_pass() -> None:
    metrics = Metrics()
    for overhead in (0.0, OVERHEAD_BUCKETS[0], OVERHEAD_BUCKETS[0] * 1.01, 99.0):
        metrics.request_done("gemini", 200, 0.3, overhead, 0, 0)
    samples = scrape(metrics)
    assert samples["balancer_overhead_seconds_bucket", "0.0001", "gemini"] == 2
    assert samples["balancer_overhead_seconds_bucket", "0.00025", "gemini"] == 3
    assert samples["balancer_overhead_seconds_bucket", "1.0", "gemini"] == 3
    assert samples["balancer_overhead_seconds_bucket", "+Inf", "gemini"] == 4
    assert samples["balancer_overhead_seconds_count", "gemini"] == 4
    assert samples["balancer_overhead_seconds_sum", "gemini"] == pytest.approx(99.000201)
    assert samples["balancer_first_byte_seconds_bucket", "0.25", "gemini"] == 0
    assert samples["balancer_first_byte_seconds_bucket", "0.5", "gemini"] == 4


def test_requests_in_flight_and_lost_log_lines_are_asked_for_at_the_scrape() -> None:
    metrics = Metrics(in_flight=lambda: 3, log_drops=lambda: 7)
    samples = scrape(metrics)
    assert samples["balancer_in_flight",] == 3
    assert samples["balancer_log_lines_dropped_total",] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_the_process_itself_is_shown() -> None:
    samples = scrape(Metrics())
    assert samples["process_resident_memory_bytes",] > 1_000_000
    assert samples["process_open_fds",] > 2


def test_counting_does_not_load_the_library_that_writes_the_text() -> None:
    code = (
        "import sys; from balancer.observe.metrics import Metrics; Metrics().request_done('g', 200, 0.1, 0.1, 1, 1); "
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
