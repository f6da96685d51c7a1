"""Time, given in rather than taken: what depends on it can be driven by a test.

`monotonic()` orders and measures (seconds, arbitrary zero, never jumps); `wall()` is the time of day (POSIX seconds) and may
jump. Durations and deadlines live on the first; only what people read or what a calendar decides uses the second.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The two clocks. Both return seconds."""

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
