"""Whether refusals are the keys' doing at all.

The same refusal of several keys within seconds means that our address is blocked or the provider is down; resting or
losing the keys for it would be wrong. One state machine per pool:

    state       refused (kind k)                                         success of a lease
    calm        witness added; 3 distinct (2 of 2) in 10 s: backoff 1 s  begun within 10 s: witnesses forgotten
    backoff     begun after the last step: the backoff doubles (60 s)    begun after it all began: calm
                begun before: absorbed
    backoff     quiet for a minute after its end: calm

What counts as a witness: for a refusal that rests a project, the project, because keys that share a quota are refused together
and that blames nobody else; otherwise the key. Rests that the witnesses got are taken back when the backoff begins, and refusals
of its kind lay none until it is over.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from balancer.keypool.cooldown import Rests
from balancer.keypool.slot import Slot

WINDOW = 10.0
WITNESSES = 3
FIRST = 1.0
CAP = 60.0
QUIET = 60.0


class Finding(enum.Enum):
    """What one more refusal means."""

    ALONE = "blame the key"
    ABSORBED = "known already"
    BACKOFF = "a backoff begins or doubles"


@dataclass(frozen=True, slots=True)
class TakeBack:
    """What a refusal did, to be undone if it was not the key's doing. `before`: the rests that this leaves, if it was a rest."""

    undo: Callable[[], None]
    before: Rests | None = None


@dataclass(slots=True)
class _Suspicion:
    """Recent refusals of one kind: when each witness was refused last, and how to take back what it got for it."""

    witnesses: dict[str, tuple[float, Slot]] = field(default_factory=dict)
    undo: dict[Hashable, tuple[float, TakeBack]] = field(default_factory=dict)

    def prune(self, now: float) -> None:
        self.witnesses = {who: seen for who, seen in self.witnesses.items() if now - seen[0] <= WINDOW}
        self.undo = {what: entry for what, entry in self.undo.items() if now - entry[0] <= WINDOW}


class Outage:
    """The backoff of a pool as a whole. In force while `now < until`."""

    def __init__(self) -> None:
        self.until = 0.0
        self.seconds = 0.0
        self.reason = ""
        self._kind: str | None = None
        self._begun = 0.0
        self._stepped = 0.0
        self._suspicions: dict[str, _Suspicion] = {}

    @property
    def watching(self) -> bool:
        """Whether a success would tell anything."""
        return bool(self._suspicions) or self._kind is not None

    def refused(
        self, kind: str, slot: Slot, alive: Iterable[Slot], *, by_project: bool, reason: str, begun: float, now: float
    ) -> Finding:
        """A lease begun then was refused. `alive`: the keys that could be; `by_project`: the refusal blames a project."""
        if self._kind is not None and now > self.until + QUIET:
            self._calm()
        if kind == self._kind:
            return self._step(kind, reason, now) if begun > self._stepped else Finding.ABSORBED
        suspicion = self._suspicions.setdefault(kind, _Suspicion())
        suspicion.prune(now)
        suspicion.witnesses[slot.fingerprint] = (now, slot)
        witnesses = {_blamed(witness, by_project) for _, witness in suspicion.witnesses.values()}
        possible = len(witnesses.union(_blamed(each, by_project) for each in alive))
        if possible < 2 or len(witnesses) < min(WITNESSES, possible):
            return Finding.ALONE
        return self._step(kind, reason, now)

    def _step(self, kind: str, reason: str, now: float) -> Finding:
        if self._kind is None:
            self._begun, self.seconds = now, FIRST
        else:
            self.seconds = min(2 * self.seconds, CAP)
        self._kind, self.reason = kind, reason
        self._stepped, self.until = now, now + self.seconds
        return Finding.BACKOFF

    def remember(self, kind: str, subject: Hashable, undo: TakeBack, now: float) -> None:
        """How to take back what a refusal of that kind did to `subject`; the first one's way stays the way.

        For refusals of any other kind this one is something else that speaks against `subject`.
        """
        suspicion = self._suspicions.setdefault(kind, _Suspicion())
        known = suspicion.undo.get(subject)
        self.confirm(subject)
        suspicion.undo[subject] = (now, undo if known is None else known[1])

    def remembered(self, subject: Hashable) -> list[TakeBack]:
        """All that may yet be taken back of `subject`."""
        return [each.undo[subject][1] for each in self._suspicions.values() if subject in each.undo]

    def confirm(self, subject: Hashable) -> None:
        """Something else speaks against `subject`: nothing of it is to be taken back."""
        for suspicion in self._suspicions.values():
            suspicion.undo.pop(subject, None)

    def acquit(self, kind: str) -> None:
        """Take back what the witnesses of that kind got."""
        suspicion = self._suspicions.pop(kind, None)
        if suspicion is not None:
            for _, laid in suspicion.undo.values():
                laid.undo()

    def succeeded(self, *, begun: float, now: float) -> bool:
        """A lease begun then was answered; True if that ends a backoff."""
        if begun >= now - WINDOW:
            self._suspicions.clear()
        if self._kind is None or begun <= self._begun:
            return False
        self._calm()
        return True

    def _calm(self) -> None:
        self._kind = None
        self.until = self.seconds = 0.0
        self.reason = ""


def _blamed(slot: Slot, by_project: bool) -> str:
    return (by_project and slot.project_name) or slot.fingerprint
