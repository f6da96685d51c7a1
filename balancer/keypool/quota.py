"""Limits that the configuration declares for a key, so that it is not refused in the first place.

rpm and tpm hold for **any** 60 s: a `Window` keeps amounts in buckets of at most one second and forgets a bucket 60 s after
its *last* entry. What is counted is therefore never less than what the provider can count, a sparse window is exact, and
a limit of a million costs 62 buckets, not a million timestamps.

rpd holds per quota day, which ends at midnight of America/Los_Angeles whatever the length of the day. The calendar follows the
wall clock: crossing its midnight forwards starts a new count; a clock set back finds the day anew and keeps the count,
because those requests were made.

tpm counts an estimate when the key is lent and is corrected when the answer told the truth: a surplus counts from then
on, an overestimate is taken back from where it was counted. A request larger than the whole limit goes when the
window is empty; otherwise it could never go. A full window admits nothing, however small.
"""

from __future__ import annotations

import math
from collections import deque
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from balancer.clock import Clock
from balancer.model import Key

MINUTE = 60.0
BUCKET = 1.0
CALENDAR_SLACK = 0.001
"""Seconds added to a wait for midnight: wall and monotonic seconds do not add up to the last bit."""

QUOTA_ZONE = ZoneInfo("America/Los_Angeles")


def quota_day(wall: float) -> tuple[float, float]:
    """Start and end (POSIX seconds) of the quota day that `wall` lies in: 23, 24 or 25 hours."""
    date = datetime.fromtimestamp(wall, QUOTA_ZONE).date()
    start = datetime(date.year, date.month, date.day, tzinfo=QUOTA_ZONE)
    after = date + timedelta(days=1)
    return start.timestamp(), datetime(after.year, after.month, after.day, tzinfo=QUOTA_ZONE).timestamp()


class Window:
    """A sum over the last 60 s that never counts too little. Times must not decrease."""

    __slots__ = ("_buckets", "_newest", "amount")

    def __init__(self) -> None:
        self._buckets: deque[_Bucket] = deque()
        self._newest = _Bucket(-math.inf)
        """The bucket that takes what comes now; one that is none of them where there is nothing yet."""
        self.amount = 0
        """What was counted and not forgotten yet: at least the sum of the last 60 s."""

    def total(self, now: float) -> int:
        buckets = self._buckets
        while buckets and buckets[0].last + MINUTE <= now:
            self.amount -= buckets.popleft().amount
        return self.amount

    def add(self, amount: int, now: float) -> None:
        if not amount:
            return
        newest = self._newest
        if now - newest.first >= BUCKET:
            self.total(now)
            newest = self._newest = _Bucket(now)
            self._buckets.append(newest)
        newest.last = now
        newest.amount += amount
        self.amount += amount

    def take_back(self, amount: int, counted: float, now: float) -> bool:
        """Undo up to `amount` of what was counted at that time; False if that is forgotten already."""
        self.total(now)
        for bucket in reversed(self._buckets):
            if bucket.first <= counted:
                amount = min(amount, bucket.amount) if counted <= bucket.last else 0
                bucket.amount -= amount
                self.amount -= amount
                return amount > 0
        return False

    def at_most(self, target: int, now: float) -> float:
        """The first time from `now` on at which the sum is no more than `target` (0 or more) if nothing is added."""
        left = self.total(now)
        when = now
        for bucket in self._buckets:
            if left <= target:
                break
            left -= bucket.amount
            when = bucket.last + MINUTE
        return when


class _Bucket:
    """What was counted between `first` and `last`, less than a second apart."""

    __slots__ = ("amount", "first", "last")

    def __init__(self, now: float) -> None:
        self.first = self.last = now
        self.amount = 0


class DayCount:
    """Requests of the current quota day."""

    __slots__ = ("_start", "count", "ends")

    def __init__(self) -> None:
        self._start = self.ends = 0.0
        self.count = 0

    def end(self, wall: float) -> float:
        """When the day ends (POSIX seconds); starts a new count if `wall` is past the day last seen."""
        if not self._start <= wall < self.ends:
            if wall >= self.ends:
                self.count = 0
            self._start, self.ends = quota_day(wall)
        return self.ends


class Quota:
    """The declared limits of one key and what was used of them. A limit of None or 0 does not limit."""

    __slots__ = ("_day", "_requests", "_rpd", "_rpm", "_tokens", "_tpm", "_wall", "concurrency")

    def __init__(self, key: Key, clock: Clock) -> None:
        self._wall = clock.wall
        self._requests = Window()
        self._tokens = Window()
        self._day = DayCount()
        self.declare(key)

    @staticmethod
    def declared(key: Key) -> bool:
        return bool(key.rpm or key.rpd or key.tpm or key.concurrency)

    def declare(self, key: Key) -> None:
        """Take the limits of `key`. What was used stays used; a limit that is new counts from now on."""
        self._rpm, self._rpd, self._tpm = key.rpm, key.rpd, key.tpm
        self.concurrency = key.concurrency

    def full(self, in_flight: int) -> bool:
        """Whether the limit of concurrent requests is reached: only the end of one changes that."""
        return bool(self.concurrency) and in_flight >= (self.concurrency or 0)

    def roomy(self, tokens: int, in_flight: int) -> bool:
        """Whether all limits admit it even if nothing of what was counted is old yet: the cheap half of `full` and `back`."""
        day = self._day
        return (
            (not self.concurrency or in_flight < self.concurrency)
            and (not self._rpm or self._requests.amount < self._rpm)
            and (not self._tpm or self._tokens.amount + tokens < self._tpm)
            and (not self._rpd or (day.count < self._rpd and self._wall() < day.ends))
        )

    def back(self, tokens: int, now: float) -> tuple[float, str]:
        """When the timed limits admit a request of that many tokens, and which limit says so; (`now`, "") for at once."""
        when, why = now, ""
        if self._rpm:
            when, why = max((when, why), (self._requests.at_most(self._rpm - 1, now), "rpm limit"))
        if self._tpm:
            room = max(0, min(self._tpm - 1, self._tpm - tokens))
            when, why = max((when, why), (self._tokens.at_most(room, now), "tpm limit"))
        if self._rpd:
            wall = self._wall()
            end = self._day.end(wall)
            if self._day.count >= self._rpd:
                when, why = max((when, why), (now + (end - wall) + CALENDAR_SLACK, "rpd limit"))
        return (when, why) if when > now else (now, "")

    def take(self, tokens: int, now: float) -> None:
        if self._rpm:
            self._requests.add(1, now)
        if self._tpm:
            self._tokens.add(tokens, now)
        if self._rpd:
            self._day.end(self._wall())
            self._day.count += 1

    def correct(self, estimate: int, actual: int, *, counted: float, now: float) -> bool:
        """Put the true number of tokens for the estimate counted then; True if that made room."""
        if not self._tpm or actual == estimate:
            return False
        if actual < estimate:
            return self._tokens.take_back(estimate - actual, counted, now)
        self._tokens.add(actual - estimate, now)
        return False
