"""The pool as people and metrics see it: frozen, and without secrets. `until` is monotonic, `…_wall` are POSIX seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from balancer.keypool.cooldown import Cooldown, Every, Model
from balancer.keypool.slot import Slot

State = Literal["ready", "resting", "disabled"]
ReachState = Literal["up", "doubted", "down"]


@dataclass(frozen=True, slots=True)
class RestSnapshot:
    """A rest; `model` is "*" for every model and None for the calls that name none."""

    model: str | None
    until_wall: float
    reason: str


@dataclass(frozen=True, slots=True)
class KeySnapshot:
    """One key. Resting: for one model at least (`models` says which; `until` and `reason` are of the longest rest), or kept
    back by a timed limit that the configuration declares."""

    fingerprint: str
    name: str | None
    project: str | None
    owner: str
    state: State
    reason: str
    until: float | None
    until_wall: float | None
    models: tuple[RestSnapshot, ...]
    next_probe_wall: float | None
    in_flight: int
    requests: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class States:
    """How many keys are in which state."""

    ready: int
    resting: int
    disabled: int


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The pool. `counts` are answers by verdict of the keys it has now."""

    upstream: str
    keys: tuple[KeySnapshot, ...]
    backoff_until_wall: float | None
    backoff_reason: str
    states: States
    in_flight: int
    requests: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ReachSnapshot:
    """Whether the upstream can be reached (reach.py), since when, and why not. `next_probe_wall`: where it is not simply up."""

    state: ReachState
    since_wall: float
    reason: str
    next_probe_wall: float | None


def condition(slot: Slot, now: float) -> tuple[State, str, float | None]:
    """State of a key, its reason, and when a rest ends."""
    if slot.disabled is not None:
        return "disabled", slot.disabled.reason, None
    until, reason = now, ""
    for _, cooldown in _rests(slot, now):
        if cooldown.until > until:
            until, reason = cooldown.until, cooldown.reason
    if slot.quota is not None:
        until, reason = max((until, reason), slot.quota.back(0, now))
    return ("resting", reason, until) if until > now else ("ready", "", None)


def key_snapshot(slot: Slot, now: float, wall: float) -> KeySnapshot:
    state, reason, until = condition(slot, now)
    rests = tuple(
        RestSnapshot("*" if isinstance(model, Every) else model, wall + cooldown.until - now, cooldown.reason)
        for model, cooldown in _rests(slot, now)
    )
    return KeySnapshot(
        fingerprint=slot.fingerprint,
        name=slot.key.name,
        project=slot.project_name,
        owner=slot.owner,
        state=state,
        reason=reason,
        until=until,
        until_wall=None if until is None else wall + until - now,
        models=rests,
        next_probe_wall=None if slot.disabled is None else wall + slot.disabled.next_probe - now,
        in_flight=slot.in_flight,
        requests=slot.requests,
        counts=dict(slot.verdicts),
    )


def _rests(slot: Slot, now: float) -> list[tuple[Model, Cooldown]]:
    return [*slot.project.rests.resting(now), *slot.rests.resting(now)]
