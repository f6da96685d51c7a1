"""Declared limits: windows that never count too little, quota days that follow the calendar."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta

import pytest

from balancer.keypool.quota import QUOTA_ZONE, DayCount, Quota, Window, quota_day
from balancer.model import Key
from tests.fakes import FakeClock


def pacific(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=QUOTA_ZONE).timestamp()


def spend(quota: Quota, clock: FakeClock, tokens: int = 0) -> bool:
    """Take a request if the limits admit it."""
    now = clock.monotonic()
    admitted = quota.back(tokens, now) == (now, "")
    if admitted:
        quota.take(tokens, now)
    return admitted


def test_a_sparse_window_forgets_after_exactly_a_minute() -> None:
    window = Window()
    window.add(1, 1000.25)
    assert window.total(1060.24) == 1
    assert window.at_most(0, 1001) == 1060.25
    assert window.total(1060.25) == 0


def test_a_window_counts_whole_buckets_until_their_last_entry_is_a_minute_old() -> None:
    window = Window()
    window.add(2, 1000.0)
    window.add(3, 1000.9)
    window.add(5, 1001.0)
    assert [window.total(at) for at in (1060.0, 1060.89, 1060.9, 1060.99, 1061.0)] == [10, 10, 5, 5, 0]


def test_a_window_knows_when_it_will_be_down_to_a_sum() -> None:
    window = Window()
    for at in (1000, 1010, 1020):
        window.add(4, at)
    assert [window.at_most(target, 1030) for target in (12, 11, 8, 7, 4, 3, 0)] == [
        1030,
        1060,
        1060,
        1070,
        1070,
        1080,
        1080,
    ]


def test_a_limit_of_a_million_costs_62_buckets() -> None:
    window = Window()
    for tick in range(100_000):
        window.add(10, 1000 + tick / 500)
    assert len(window._buckets) <= 62
    assert window.total(1200) >= 300_000


@pytest.mark.parametrize("gap", [0.0, 0.013, 0.5, 0.999, 1.0, 3.7, 19.0])
def test_no_window_of_60_seconds_holds_more_requests_than_rpm(gap: float) -> None:
    clock, taken = FakeClock(), list[float]()
    quota = Quota(Key("k", rpm=7), clock)
    for step in range(int(200 / (gap or 0.1))):
        if spend(quota, clock):
            taken.append(clock.monotonic())
        clock.advance(gap or step % 3 / 7)
    assert len(taken) > 7
    assert all(later - first >= 60 for first, later in zip(taken, taken[7:], strict=False))


def test_the_time_told_is_true() -> None:
    clock = FakeClock()
    quota = Quota(Key("k", rpm=3), clock)
    for _ in range(3):
        assert spend(quota, clock)
        clock.advance(5)
    until, why = quota.back(0, clock.monotonic())
    assert (until, why) == (1060, "rpm limit")
    clock.advance(until - clock.monotonic() - 0.001)
    assert not spend(quota, clock)
    clock.advance(0.0011)
    assert spend(quota, clock)


def test_tpm_counts_the_estimate_and_admits_what_fits_beside_it() -> None:
    clock = FakeClock()
    quota = Quota(Key("k", tpm=100), clock)
    assert spend(quota, clock, 60)
    assert not spend(quota, clock, 41)
    assert quota.back(41, clock.monotonic()) == (1060, "tpm limit")
    assert spend(quota, clock, 40)
    assert not spend(quota, clock, 0), "a full window admits nothing, however small"


def test_a_request_larger_than_the_limit_goes_when_the_window_is_empty() -> None:
    clock = FakeClock()
    quota = Quota(Key("k", tpm=100), clock)
    assert spend(quota, clock, 5)
    assert not spend(quota, clock, 1000)
    clock.advance(60)
    assert spend(quota, clock, 1000)
    assert not spend(quota, clock, 1)


def test_an_overestimate_is_taken_back_from_where_it_was_counted() -> None:
    clock = FakeClock()
    quota = Quota(Key("k", tpm=100), clock)
    assert spend(quota, clock, 90)
    clock.advance(30)
    assert spend(quota, clock, 10)
    assert quota.correct(90, 20, counted=1000, now=1030)
    assert quota.back(70, 1030) == (1030, "")
    assert quota.back(71, 1030) == (1060, "tpm limit")


def test_an_underestimate_counts_from_the_time_it_is_known() -> None:
    quota = Quota(Key("k", tpm=100), FakeClock())
    quota.take(10, 1000)
    assert not quota.correct(10, 100, counted=1000, now=1030)
    assert quota.back(11, 1030) == (1090, "tpm limit")
    assert quota.back(10, 1030) == (1060, "tpm limit")


def test_a_correction_of_something_forgotten_takes_nothing_from_others() -> None:
    quota = Quota(Key("k", tpm=100), FakeClock())
    quota.take(90, 1000)
    quota.take(80, 1070)
    assert not quota.correct(90, 0, counted=1000, now=1071)
    assert quota.back(20, 1071) == (1071, "")
    assert quota.back(21, 1071) == (1130, "tpm limit")


def test_a_correction_between_buckets_takes_nothing() -> None:
    window = Window()
    window.add(5, 1000)
    assert not window.take_back(5, 1000.5, 1001)
    assert window.total(1001) == 5


@pytest.mark.parametrize(
    ("wall", "end", "hours"),
    [
        ("2026-06-01T00:00:00", "2026-06-02T00:00:00", 24),
        ("2026-06-01T23:59:59", "2026-06-02T00:00:00", 24),
        ("2026-03-08T01:30:00", "2026-03-09T00:00:00", 23),
        ("2026-03-08T12:00:00", "2026-03-09T00:00:00", 23),
        ("2026-11-01T00:30:00", "2026-11-02T00:00:00", 25),
        ("2026-11-01T23:00:00", "2026-11-02T00:00:00", 25),
        ("2026-12-31T23:00:00", "2027-01-01T00:00:00", 24),
        ("2028-02-28T08:00:00", "2028-02-29T00:00:00", 24),
    ],
)
def test_a_quota_day_ends_at_midnight_in_los_angeles_also_when_the_clocks_change(
    wall: str, end: str, hours: int
) -> None:
    start, found = quota_day(pacific(wall))
    assert found == pacific(end)
    assert found - start == hours * 3600
    assert start <= pacific(wall) < found


def test_the_second_pass_of_the_doubled_hour_is_the_same_day() -> None:
    second_pass = datetime(2026, 11, 1, 1, 30, fold=1, tzinfo=QUOTA_ZONE).timestamp()
    assert quota_day(second_pass) == quota_day(second_pass - 3600)


def test_rpd_ends_with_the_day_and_not_after_24_hours() -> None:
    clock = FakeClock(wall=pacific("2026-11-01T00:00:00"))
    quota = Quota(Key("k", rpd=2), clock)
    assert [spend(quota, clock) for _ in range(3)] == [True, True, False]
    clock.advance(24 * 3600)
    assert not spend(quota, clock), "this day has 25 hours"
    until, why = quota.back(0, clock.monotonic())
    assert why == "rpd limit"
    assert until - clock.monotonic() == pytest.approx(3600, abs=0.01)
    clock.advance(until - clock.monotonic())
    assert [spend(quota, clock) for _ in range(3)] == [True, True, False]


def test_a_clock_set_forward_over_midnight_starts_a_new_count() -> None:
    clock = FakeClock(wall=pacific("2026-06-01T22:00:00"))
    quota = Quota(Key("k", rpd=1), clock)
    assert spend(quota, clock)
    clock.jump(3 * 3600)
    assert spend(quota, clock)
    assert not spend(quota, clock)


@pytest.mark.parametrize("back", [3600, 3 * 3600, 30 * 3600, 400 * 86400])
def test_a_clock_set_back_keeps_the_count_and_ends_the_day_that_it_shows(back: float) -> None:
    clock = FakeClock(wall=pacific("2026-06-02T02:00:00"))
    quota = Quota(Key("k", rpd=1), clock)
    assert spend(quota, clock)
    clock.jump(-back)
    assert not spend(quota, clock)
    until, _ = quota.back(0, clock.monotonic())
    assert clock.wall() + until - clock.monotonic() == pytest.approx(quota_day(clock.wall())[1], abs=0.01)
    clock.advance(until - clock.monotonic())
    assert spend(quota, clock)


def test_a_day_count_looks_at_the_calendar_once_a_day() -> None:
    day = DayCount()
    noon = pacific("2026-06-01T12:00:00")
    ends = {day.end(noon + minutes * 60) for minutes in range(11 * 60)}
    assert ends == {pacific("2026-06-02T00:00:00")}


def test_of_several_limits_the_last_to_admit_decides() -> None:
    clock = FakeClock(wall=pacific("2026-06-01T12:00:00"))
    quota = Quota(Key("k", rpm=1, tpm=10, rpd=5), clock)
    assert spend(quota, clock, 1)
    clock.advance(1)
    quota.correct(1, 10, counted=1000, now=1001)
    assert quota.back(5, 1001) == (1061, "tpm limit")
    quota.declare(Key("k", rpm=1, tpm=10, rpd=1))
    assert quota.back(5, 1001)[1] == "rpd limit"


def test_new_limits_keep_what_was_used() -> None:
    clock = FakeClock()
    quota = Quota(Key("k", rpm=2), clock)
    assert spend(quota, clock)
    quota.declare(Key("k", rpm=1))
    assert not spend(quota, clock)
    quota.declare(Key("k", rpm=3))
    assert [spend(quota, clock) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("limit", "in_flight", "full"), [(None, 10, False), (0, 10, False), (2, 1, False), (2, 2, True)]
)
def test_concurrency_is_full_at_its_limit(limit: int | None, in_flight: int, full: bool) -> None:
    assert Quota(Key("k", concurrency=limit, rpm=1), FakeClock()).full(in_flight) is full


def test_days_follow_each_other_without_gap_for_years() -> None:
    ends = [quota_day(pacific("2026-01-01T12:00:00") + day * 86400) for day in range(3 * 365)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    assert {timedelta(seconds=end - start) for start, end in ends} == {timedelta(hours=hours) for hours in (23, 24, 25)}
