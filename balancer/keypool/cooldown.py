"""When a key may not be used: two state machines without a clock. Times are monotonic seconds and are given in.

**A rest** lies on a subject, which is a key or the project whose quota several keys share, for one model or for every model.
Which subject and which model a refusal means is its scope (project x model, key x model, project). `Cooldown` is the state
of one such pair, `Rests` all those of a subject:

    state            refused for d seconds           success of a lease      t reached
                                                     begun after `since`
    ready            resting until now + d           ready, step 0           -
    resting until t  resting until max(t, now + d)   ready, step 0           ready, step kept

`since` is the time of the last refusal: an answer to a request that was on its way by then is no news. That holds for successes,
which end nothing, and for refusals, which do not escalate: ten requests in flight that are refused together are one
refusal. An escalating rest is `first` seconds at step 1, doubled with each step, at most `cap`. A rest until the end of the
quota day is kept as time of day, because that is what ends it; when the machine's clock is corrected, its monotonic end is
found anew, and never lies beyond the next midnight that the corrected clock knows.

Model names come from clients, so their number is bounded: a cooldown is forgotten when it is over (one that escalated:
`ESCALATION_MEMORY` seconds later, and the escalation with it), and past `MAX_MODELS` of a subject the one that ends first goes.

**A disabled key** is dead for every model:

    state            due             probe: alive    probe: refused                 probe: no answer
    disabled         probing         enabled         disabled, delay doubled        disabled, same delay
                                                     (1 h up to 24 h)

A further refusal of a disabled key changes nothing: only probes count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Final

from balancer.keypool.quota import quota_day
from balancer.model import Disable, Judgement, Rest, Verdict

ESCALATION_MEMORY = 3600.0
MAX_MODELS = 128
FIRST_PROBE = 3600.0
LAST_PROBE = 86400.0


class Every:
    """The model of a rest that covers every model: no name that a client could send."""

    __slots__ = ()


EVERY: Final = Every()

Model = str | Every | None
"""What a rest covers; None: calls that name no model."""


@dataclass(slots=True)
class Cooldown:
    """The rest of one subject for one model. Resting while `now < until`."""

    until: float = 0.0
    since: float = 0.0
    step: int = 0
    reason: str = ""
    timed: float = 0.0
    """End of the rests that were given in seconds."""
    day_end: float | None = None
    """End of the rest that lasts for a quota day, POSIX seconds."""

    def refuse(self, rest: Rest, reason: str, *, begun: float, now: float, wall: float) -> bool:
        """Lay a rest for an answer to a lease begun then. True if it is news: resting at last, or longer for another reason."""
        before, resting = self.until, now < self.until
        if not resting:
            self.day_end = None
            self.step = 0 if self.forgettable(now) else self.step
        if rest.until_quota_day:
            self.day_end = max(self.day_end or 0.0, quota_day(wall)[1])
        else:
            self.timed = max(self.timed, now + self._seconds(rest, begun))
        self.since = now
        self.retime(now, wall)
        if self.until <= max(before, now):
            return False
        news = not resting or self.reason != reason
        self.reason = reason
        return news

    def _seconds(self, rest: Rest, begun: float) -> float:
        if rest.seconds is not None:
            return rest.seconds
        if not self.step or begun > self.since:
            self.step += 1
        return min(rest.cap, rest.first * 2.0 ** min(self.step - 1, 64))

    def retime(self, now: float, wall: float) -> None:
        """Find `until` by the wall clock as it goes now."""
        self.until = self.timed
        if self.day_end is not None:
            self.day_end = min(self.day_end, quota_day(wall)[1])
            self.until = max(self.timed, now + (self.day_end - wall))

    def merge(self, other: Cooldown, now: float) -> None:
        """Take over another's rest: of each two the longer."""
        if other.until > self.until:
            self.until, self.reason = other.until, other.reason
        self.timed = max(self.timed, other.timed)
        self.since = max(self.since, other.since)
        self.step = max(self.step, other.step)
        if other.day_end is not None and now < other.until:
            self.day_end = max(self.day_end or 0.0, other.day_end)

    def forgettable(self, now: float) -> bool:
        return now >= self.until + (ESCALATION_MEMORY if self.step else 0.0)


class Rests:
    """The cooldowns of one subject, by model."""

    __slots__ = ("by_model",)

    def __init__(self) -> None:
        self.by_model: dict[Model, Cooldown] = {}

    def until(self, model: Model) -> float:
        """Monotonic end of the rest for exactly this model; 0 where there is none."""
        cooldown = self.by_model.get(model)
        return cooldown.until if cooldown is not None else 0.0

    def refuse(self, model: Model, rest: Rest, reason: str, *, begun: float, now: float, wall: float) -> bool:
        """See `Cooldown.refuse`."""
        cooldown = self.by_model.get(model)
        if cooldown is None:
            self._make_room(now)
            cooldown = self.by_model[model] = Cooldown()
        return cooldown.refuse(rest, reason, begun=begun, now=now, wall=wall)

    def succeed(self, model: Model, *, begun: float, now: float) -> bool:
        """A lease begun then was answered. True if that ended a rest that was still on."""
        cooldown = self.by_model.get(model)
        if cooldown is None or begun <= cooldown.since:
            return False
        del self.by_model[model]
        return now < cooldown.until

    def resting(self, now: float) -> Iterator[tuple[Model, Cooldown]]:
        return ((model, cooldown) for model, cooldown in self.by_model.items() if now < cooldown.until)

    def saved(self, model: Model) -> Rests:
        """The rest for this model alone, as it is: for `restore`."""
        saved, cooldown = Rests(), self.by_model.get(model)
        if cooldown is not None:
            saved.by_model[model] = replace(cooldown)
        return saved

    def restore(self, model: Model, saved: Rests) -> None:
        """Take back what was laid since."""
        cooldown = saved.by_model.get(model)
        if cooldown is None:
            self.by_model.pop(model, None)
        else:
            self.by_model[model] = cooldown

    def merge(self, other: Rests, now: float, only: Collection[Model] | None = None) -> None:
        """Take over another's rests, of each two the longer; `only` those of these models."""
        for model, cooldown in other.by_model.items():
            if only is not None and model not in only:
                continue
            mine = self.by_model.get(model)
            if mine is None:
                self._make_room(now)
                self.by_model[model] = replace(cooldown)
            else:
                mine.merge(cooldown, now)

    def retime(self, now: float, wall: float) -> None:
        """Follow a wall clock that was set. A rest that is over stays over."""
        for _, cooldown in self.resting(now):
            cooldown.retime(now, wall)

    def _make_room(self, now: float) -> None:
        for model in [model for model, cooldown in self.by_model.items() if cooldown.forgettable(now)]:
            del self.by_model[model]
        if len(self.by_model) >= MAX_MODELS:
            del self.by_model[min(self.by_model, key=self.until)]


@dataclass(slots=True)
class Disabled:
    """Why a key is dead and when it is asked again."""

    reason: str
    alert: bool
    next_probe: float
    delay: float = FIRST_PROBE
    probing: bool = False

    def due(self, now: float) -> bool:
        return not self.probing and now >= self.next_probe

    def probed(self, judgement: Judgement, now: float) -> bool:
        """Take a probe's judgement; True if the key lives."""
        if judgement.verdict is Verdict.OK:
            return True
        self.probing = False
        if judgement.verdict is Verdict.KEY:
            self.delay = min(2 * self.delay, LAST_PROBE)
            self.reason = judgement.reason or self.reason
            self.alert |= isinstance(judgement.action, Disable) and judgement.action.alert
        self.next_probe = now + self.delay
        return False


def disabled(judgement: Judgement, now: float) -> Disabled:
    """The state of a key that this judgement killed."""
    alert = isinstance(judgement.action, Disable) and judgement.action.alert
    return Disabled(judgement.reason, alert, now + FIRST_PROBE)
