"""Whose turn it is: a smooth weighted schedule, and rings of those in it that are ready.

The schedule is made once per set of keys: a key of weight w stands in it w times, evenly spread, each key with a phase of its
own. A `Ring` is the schedule without the keys that cannot be lent for some model now, kept until the next change of state or
the end of the first rest, so that choosing costs the same with 10 keys and with 200, all ready or most of them resting.

A ring has two tiers, because a call that names no model (an upload, most of all) may belong to a later one that does: keys that
rest for no model at all go first, keys that rest for some model only when none of those is free.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence

from balancer.keypool.answers import NoKey, Wait
from balancer.keypool.cooldown import Model
from balancer.keypool.slot import Slot

MAX_TURNS = 4096
"""Longest schedule: beyond it weights are scaled down, so that 1 and 1000000 do not make a list of a million."""


def schedule(slots: Sequence[Slot]) -> list[Slot]:
    """The order of one round. Every key stands in it at least once."""
    weights = [max(1, slot.key.weight) for slot in slots]
    divisor = max(1, math.gcd(*weights))
    excess = max(1.0, sum(weights) / divisor / MAX_TURNS)
    turns: list[tuple[float, int]] = []
    for index, weight in enumerate(weights):
        times = max(1, round(weight / divisor / excess))
        phase = (index + 0.5) / len(slots)
        turns.extend(((turn + phase) / times, index) for turn in range(times))
    return [slots[index] for _, index in sorted(turns)]


class Tier:
    """Slots that take turns. `places` are their places in the schedule, ascending; `turn` indexes both."""

    __slots__ = ("_start", "places", "shut", "slots", "turn")

    def __init__(self, start: int) -> None:
        self.slots: Sequence[Slot] = ()
        self.places: Sequence[int] = ()
        self.turn = 0
        self.shut = False
        """One of them was found to be kept back by its limits for a while: better without it."""
        self._start = start

    @property
    def place(self) -> int:
        """Where in the schedule the next turn stands."""
        return self.places[self.turn] if self.places else self._start

    def fill(self, order: Sequence[Slot], members: Collection[Slot], *, whole: bool) -> None:
        """Take the members out of a schedule (`whole`: they are all of it). The rotation goes on where it was."""
        self._start = self.place
        if whole:
            self.slots, self.places = order, range(len(order))
        else:
            self.places = [place for place, slot in enumerate(order) if slot in members] if members else ()
            self.slots = [order[place] for place in self.places]
        self.shut = False
        self.turn = bisect_left(self.places, self._start) % max(1, len(self.places))

    def choose(self, avoid: Collection[str], tokens: int, now: float) -> Slot | None:
        """The next slot that its limits admit and that is not to be avoided."""
        slots, size = self.slots, len(self.slots)
        index = self.turn
        for _ in range(size):
            slot = slots[index]
            index = index + 1 if index + 1 < size else 0
            if slot.quota is not None and not slot.admits(tokens, now):
                self.shut = self.shut or slot.shut_until > now
            elif slot.fingerprint not in avoid:
                self.turn = index
                return slot
        return None


class Ring:
    """Who can be lent for one model to one owner, as of `version`, until `good_until`."""

    __slots__ = ("_good_until", "_nothing_mark", "_version", "rested", "said", "unrested")

    def __init__(self, start: int) -> None:
        self.unrested = Tier(start)
        self.rested = Tier(start)
        self._version = -1
        self._good_until = 0.0
        self.said: Wait | NoKey | None = None
        """What was said when none could be lent: see `nothing`."""
        self._nothing_mark = -1

    def stale(self, version: int, now: float) -> bool:
        return version != self._version or now >= self._good_until or self.unrested.shut or self.rested.shut

    def fill(self, order: Sequence[Slot], slots: Sequence[Slot], model: Model, version: int, now: float) -> None:
        """Sort the slots (each once; `order` is their schedule) into the tiers."""
        unrested: set[Slot] = set()
        rested: set[Slot] = set()
        changes = math.inf
        for slot in slots:
            if slot.disabled is not None:
                continue
            until = max(slot.rest(model, now)[0], slot.shut_until)
            if until > now:
                changes = min(changes, until)
            elif model is None and (over := slot.first_rest_over(now)) is not None:
                changes = min(changes, over)
                rested.add(slot)
            else:
                unrested.add(slot)
        self.unrested.fill(order, unrested, whole=len(unrested) == len(slots))
        self.rested.fill(order, rested, whole=False)
        self._version, self._good_until = version, changes
        self.said = None

    def choose(self, avoid: Collection[str], tokens: int, now: float) -> Slot | None:
        slot = self.unrested.choose(avoid, tokens, now) or self.rested.choose(avoid, tokens, now)
        if slot is None and avoid:
            return self.choose((), tokens, now)
        return slot

    def nothing(self, mark: int, now: float) -> Wait | NoKey | None:
        """What was said when none could be lent, if that still holds: a crowd of waiters costs one search."""
        said = self.said
        if said is None or mark != self._nothing_mark:
            return None
        if isinstance(said, Wait) and said.until is not None and now >= said.until:
            return None
        return said

    def say(self, nothing: Wait | NoKey, mark: int) -> None:
        self.said, self._nothing_mark = nothing, mark
