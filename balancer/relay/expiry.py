"""Keys that end by themselves, such as tokens with a date: disabled when it has come, and told of before.

No probe is needed to know, and none is sent: only a new key in the configuration helps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from balancer.clock import Clock
from balancer.model import Disable, Judgement, Key, Verdict
from balancer.relay.exchange import Upstream

log = structlog.get_logger()

EXPIRED = Judgement(Verdict.KEY, "expired", Disable())
WARN_BEFORE = 3 * 86400.0
"""Seconds before its end from which people are told of it."""
WARN_EVERY = 86400.0
"""Seconds between two times that they are."""
LOOK_EVERY = 60.0


def ended(upstream: Upstream, key: Key, wall: float) -> bool:
    """Whether a key has come to its end. `wall`: POSIX seconds."""
    left = _seconds_left(upstream, key, wall)
    return left is not None and left <= 0


class Expiry:
    """Looks at all keys now and then; what was told lately is not told again."""

    def __init__(self, upstreams: Callable[[], Iterable[Upstream]], clock: Clock) -> None:
        """`upstreams`: those of the configuration of now."""
        self._upstreams = upstreams
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}
        """By upstream and fingerprint: when people were told (monotonic)."""

    async def look_forever(self) -> None:
        """Runs until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY)

    def look(self) -> None:
        """Disable what has ended, and tell of what soon will."""
        wall = self._clock.wall()
        for upstream in self._upstreams():
            for key in upstream.pool.keys:
                left = _seconds_left(upstream, key, wall)
                if ended(upstream, key, wall):
                    upstream.pool.disable(key, EXPIRED)
                elif left is not None and left < WARN_BEFORE:
                    self._warn(upstream.name, key, left)

    def _warn(self, upstream: str, key: Key, left: float) -> None:
        now = self._clock.monotonic()
        if now - self._told.get((upstream, key.fingerprint), float("-inf")) < WARN_EVERY:
            return
        self._told[upstream, key.fingerprint] = now
        days = round(left / 86400.0, 1)
        log.warning("key expires soon: renew it", upstream=upstream, key=key.fingerprint, name=key.name, days=days)


def _seconds_left(upstream: Upstream, key: Key, wall: float) -> float | None:
    kind = upstream.conversing
    return None if kind is None else kind.seconds_left(key, wall)
