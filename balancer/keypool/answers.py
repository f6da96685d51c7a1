"""What the pool says: to the one who asks for a key, and to whoever logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from balancer.keypool.slot import Slot
from balancer.model import Key


@dataclass(slots=True, eq=False)
class Lease:
    """A key lent for one request, to be ended by one `report`. `started` is monotonic; `tokens` is the estimate counted."""

    key: Key
    model: str | None
    started: float
    tokens: int
    slot: Slot = field(repr=False)
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """No key now. `until` is the monotonic time at which the first is back; None: when a request in flight ends."""

    until: float | None
    why: str


@dataclass(frozen=True, slots=True)
class NoKey:
    """No key will come back by itself: (fingerprint, reason) of each disabled one; none at all where no key has that owner."""

    reasons: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """A change of state, for the log. `fingerprint` is empty where the pool as a whole changed; `seconds` is how long."""

    kind: Literal["rest", "disabled", "enabled", "backoff", "backoff_over"]
    fingerprint: str = ""
    model: str | None = None
    seconds: float | None = None
    reason: str = ""
    alert: bool = False
