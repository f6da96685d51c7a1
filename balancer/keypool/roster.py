"""Which keys a pool has, the order in which they take turns, and who belongs to whom: projects and owners."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from balancer.clock import Clock
from balancer.keypool.cooldown import Rests
from balancer.keypool.rotation import schedule
from balancer.keypool.slot import Project, Slot
from balancer.model import Key


class Roster:
    """The keys, each once. `order` is one round of the rotation, in which a key stands as often as it weighs."""

    __slots__ = ("_clock", "_merging", "_owners", "_projects", "order", "slots")

    def __init__(self, clock: Clock, merging: Callable[[Rests, Rests], None]) -> None:
        """`merging` (rests of a project, rests of a key that turns out to be one of its): about to become one."""
        self._clock = clock
        self._merging = merging
        self.slots: dict[str, Slot] = {}
        """By fingerprint."""
        self.order: list[Slot] = []
        self._projects: dict[str, Project] = {}
        self._owners: dict[str, list[Slot]] = {}

    def of(self, owner: str | None) -> Sequence[Slot]:
        """The keys that answer to this owner; all for None."""
        return tuple(self.slots.values()) if owner is None else self._owners.get(owner, ())

    def round_of(self, owner: str | None) -> Sequence[Slot]:
        """One round of these keys' rotation."""
        return self.order if owner is None else schedule(self.of(owner))

    def has(self, slot: Slot) -> bool:
        return self.slots.get(slot.fingerprint) is slot

    def take(self, keys: Sequence[Key], place: int) -> int:
        """Have these keys from now on; those that were there keep what is known of them.

        `place` in `order` is whose turn it was; returns the place of the first one from there on that is still here.
        """
        upcoming = self.order[place:] + self.order[:place]
        known, self.slots = self.slots, {}
        for key in keys:
            if key.fingerprint in self.slots:
                continue
            slot = known.get(key.fingerprint) or Slot(key, self._clock)
            slot.declare(key, self._clock)
            self.slots[key.fingerprint] = slot
            self._join(slot)
        self._index()
        self.order = schedule(tuple(self.slots.values()))
        return next((self.order.index(slot) for slot in upcoming if self.has(slot)), 0)

    def learn(self, slot: Slot, project: str) -> bool:
        """The key belongs to this quota project, unless the configuration names one; False if that is nothing new."""
        if slot.key.project is not None or slot.learned == project:
            return False
        slot.learned = project
        self._join(slot)
        self._index()
        return True

    def _join(self, slot: Slot) -> None:
        """Put the key to the keys of its project; rests of both hold for all of them."""
        name = slot.project_name
        if slot.project.name == name:
            return
        project = Project() if name is None else self._projects.setdefault(name, Project(name))
        self._merging(project.rests, slot.project.rests)
        project.rests.merge(slot.project.rests, self._clock.monotonic())
        slot.project = project

    def _index(self) -> None:
        self._projects = {slot.project.name: slot.project for slot in self.slots.values() if slot.project.name}
        self._owners = {}
        for slot in self.slots.values():
            for name in slot.answers_to:
                self._owners.setdefault(name, []).append(slot)
