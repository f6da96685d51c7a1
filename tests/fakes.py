"""Time and other things under the test's hand. Nothing here stands in for the network: that is always real."""

from __future__ import annotations


class FakeClock:
    """A clock that moves when told. `jump` moves the time of day alone, as a corrected machine clock does."""

    def __init__(self, wall: float = 1_790_000_000.0) -> None:
        self._monotonic = 1000.0
        self._wall = wall

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        self._wall += seconds

    def jump(self, seconds: float) -> None:
        self._wall += seconds
