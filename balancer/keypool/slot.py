"""A key's place in the pool: all that is known of it. A `Project` is what keys with one quota share."""

from __future__ import annotations

from balancer.clock import Clock
from balancer.keypool.cooldown import EVERY, Disabled, Model, Rests
from balancer.keypool.quota import Quota
from balancer.model import Key, Verdict


class Project:
    """Keys that share a quota; a key whose project is not known has a nameless one to itself."""

    __slots__ = ("name", "rests")

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.rests = Rests()


class Slot:
    """One key: what it is, what it did, what keeps it back. Compared by identity."""

    __slots__ = (
        "disabled",
        "fingerprint",
        "in_flight",
        "key",
        "learned",
        "project",
        "quota",
        "requests",
        "rests",
        "shut_until",
        "verdicts",
    )

    def __init__(self, key: Key, clock: Clock) -> None:
        self.fingerprint = key.fingerprint
        self.project = Project()
        self.learned: str | None = None
        self.rests = Rests()
        self.disabled: Disabled | None = None
        self.quota: Quota | None = None
        self.shut_until = 0.0
        """Until then its declared limits admit nothing, however small. Found when tried, so it may be too early."""
        self.in_flight = 0
        self.requests = 0
        self.verdicts = dict.fromkeys((verdict.value for verdict in Verdict), 0)
        self.declare(key, clock)

    def declare(self, key: Key, clock: Clock) -> None:
        """Take what the configuration says of the key now."""
        self.key = key
        self.shut_until = 0.0
        if not Quota.declared(key):
            self.quota = None
        elif self.quota is None:
            self.quota = Quota(key, clock)
        else:
            self.quota.declare(key)

    @property
    def project_name(self) -> str | None:
        return self.key.project or self.learned

    @property
    def owner(self) -> str:
        return self.project_name or self.key.name or self.fingerprint

    @property
    def answers_to(self) -> tuple[str, ...]:
        """Every owner that this key is, was or may have been."""
        names = (self.key.project, self.learned, self.key.name, self.fingerprint)
        return tuple(dict.fromkeys(name for name in names if name))

    def rest(self, model: Model, now: float) -> tuple[float, str]:
        """The longest rest that covers calls of this model: its end and its reason; (0, "") for none."""
        until, reason = 0.0, ""
        for rests in (self.project.rests, self.rests):
            for each in (model, EVERY):
                cooldown = rests.by_model.get(each)
                if cooldown is not None and cooldown.until > max(until, now):
                    until, reason = cooldown.until, cooldown.reason
        return until, reason

    def first_rest_over(self, now: float) -> float | None:
        """When the first of its rests ends; None if it has none for any model."""
        if not (self.rests.by_model or self.project.rests.by_model):
            return None
        ends = [cooldown.until for rests in (self.project.rests, self.rests) for _, cooldown in rests.resting(now)]
        return min(ends, default=None)

    @property
    def full(self) -> bool:
        """Whether it has as many requests in flight as it may: only the end of one changes that."""
        return self.quota is not None and self.quota.full(self.in_flight)

    def admits(self, tokens: int, now: float) -> bool:
        """Whether the declared limits allow a request of that many tokens now."""
        quota = self.quota
        if quota is None:
            return True
        if now < self.shut_until:
            return False
        if quota.roomy(tokens, self.in_flight):
            return True
        if quota.full(self.in_flight):
            return False
        if quota.back(tokens, now)[0] <= now:
            return True
        self.shut_until = quota.back(0, now)[0]
        return False

    def back(self, model: Model, tokens: int, now: float) -> tuple[float, str]:
        """When neither rest nor timed limit keeps the key back, and what does until then; (`now`, "") for at once."""
        until, reason = self.rest(model, now)
        if self.quota is not None:
            limited, limit = self.quota.back(tokens, now)
            limited = max(limited, self.shut_until)
            if limited > max(until, now):
                return limited, limit or "declared limit"
        return (until, reason) if until else (now, "")
