"""The key pool of one upstream: lends a key for each request and learns from its answer. Pure; one thread at a time.

    lease() ─→ Lease ─→ report(judgement)      what the judgement does
       │                                        OK      ends the key's rests that are older than the lease, and a backoff
       ├─→ Wait: one comes back by itself       KEY     rests or disables the key, or its project's keys (cooldown.py)
       └─→ NoKey: none will                     either  of KEY and UPSTREAM, seen at several keys: backoff (outage.py)
                                                CALLER, GONE: nothing

A key is lent only while it is not disabled, no rest covers the model, its declared limits admit the request (quota.py),
and the pool does not back off. Whose turn it is says rotation.py. Every change of state counts `_version` up, which makes
the rings of ready keys be found anew at their next use; whatever may make a key ready **earlier** than a `Wait` said counts
`_freed` up and calls the subscribers. Nothing here is proportional to the number of keys while no state changes.

The monotonic clock decides everything but the end of quota days. A jump of the wall clock is noticed wherever the answer
would be "not now", and those ends are found anew.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from balancer.clock import Clock
from balancer.keypool.answers import Event, Lease, NoKey, Wait
from balancer.keypool.cooldown import EVERY, Model, Rests, disabled
from balancer.keypool.outage import Finding, Outage, TakeBack
from balancer.keypool.roster import Roster
from balancer.keypool.rotation import Ring
from balancer.keypool.slot import Slot
from balancer.keypool.snapshot import KeySnapshot, PoolSnapshot, RestSnapshot, States, condition, key_snapshot
from balancer.model import Disable, Judgement, Key, Rest, Scope, Verdict

__all__ = [
    "Event",
    "KeyPool",
    "KeySnapshot",
    "Lease",
    "NoKey",
    "PoolSnapshot",
    "RestSnapshot",
    "States",
    "Wait",
]

JUMP = 1.0
"""Seconds by which the wall clock must depart from the monotonic one to have jumped."""
MAX_RINGS = 512
_OK = Verdict.OK
_OF_ONE_KEY = (Scope.KEY_MODEL, Scope.KEY)
_OF_EVERY_MODEL = (Scope.PROJECT, Scope.KEY)


class KeyPool:
    """The keys of one upstream. Keys given twice count once."""

    on_event: Callable[[Event], None] | None = None
    """Called once per change of state, for the log."""

    def __init__(self, upstream: str, keys: Sequence[Key], clock: Clock) -> None:
        self.upstream = upstream
        self._clock = clock
        self._monotonic = clock.monotonic
        self._offset = clock.wall() - clock.monotonic()
        self._roster = Roster(clock, self._merging)
        self._rested: dict[Model, float] = {}
        """Models that some rest names or named lately, with its end; all others share one ring."""
        self._rings: dict[tuple[str | None, Model], Ring] = {}
        self._outage = Outage()
        self._subscribers: list[Callable[[], None]] = []
        self._version = 0
        self._freed = 0
        self.replace(keys)

    # Lending

    def lease(
        self,
        model: str | None = None,
        *,
        owner: str | None = None,
        prefer: str | None = None,
        avoid: Collection[str] = (),
        tokens: int = 0,
    ) -> Lease | Wait | NoKey:
        """Lend the next ready key; end it with `report`.

        `owner`: only keys that answer to this project, name or fingerprint. `prefer`: fingerprint of the key to take if it
        is ready. `avoid`: fingerprints to skip while another key is ready. `tokens`: the estimate that a tpm limit counts.
        """
        now = self._monotonic()
        ring = self._ring(owner, model, now)
        nothing = None if ring.said is None else ring.nothing(self._freed, now)
        if nothing is None and now >= self._outage.until:
            slot = None
            if prefer is not None and prefer not in avoid:
                slot = self._preferred(prefer, ring, owner, model, tokens=tokens, now=now)
            slot = slot or ring.choose(avoid, tokens, now)
            if slot is not None:
                slot.in_flight += 1
                slot.requests += 1
                if slot.quota is not None:
                    slot.quota.take(tokens, now)
                return Lease(slot.key, model, now, tokens, slot)
        if self._follow_wall_clock(now):
            return self.lease(model, owner=owner, prefer=prefer, avoid=avoid, tokens=tokens)
        return nothing or self._nothing(ring, owner, model, tokens, now)

    def _ring(self, owner: str | None, model: str | None, now: float) -> Ring:
        """The ring of this owner and model, up to date."""
        covers: Model = EVERY
        if self._rested and (model is None or model in self._rested):
            covers = model
        ring = self._rings.get((owner, covers))
        if ring is None:
            ring = self._new_ring(owner, covers)
        if ring.stale(self._version, now):
            self._follow_wall_clock(now)
            roster = self._roster
            ring.fill(roster.round_of(owner), roster.of(owner), covers, self._version, now)
        return ring

    def _new_ring(self, owner: str | None, covers: Model) -> Ring:
        if owner is not None and not self._roster.of(owner):
            return Ring(0)
        if len(self._rings) >= MAX_RINGS:
            self._rings = {(None, EVERY): self._rings[None, EVERY]}
        start = self._rings[None, EVERY].unrested.place if owner is None else 0
        ring = self._rings[owner, covers] = Ring(start)
        return ring

    def _preferred(
        self, prefer: str, ring: Ring, owner: str | None, model: str | None, *, tokens: int, now: float
    ) -> Slot | None:
        slot = self._roster.slots.get(prefer)
        if slot is None or slot.disabled is not None or (owner is not None and owner not in slot.answers_to):
            return None
        if slot.rest(model, now)[0] > now or not slot.admits(tokens, now):
            return None
        if model is None and ring.unrested.slots and slot.first_rest_over(now) is not None:
            return None  # see rotation.py: what has no model yet should not start at a key that rests for some
        return slot

    def _nothing(self, ring: Ring, owner: str | None, model: str | None, tokens: int, now: float) -> Wait | NoKey:
        """Why there is no key, and when the first is back."""
        slots = self._roster.of(owner)
        alive = [slot for slot in slots if slot.disabled is None]
        answer: Wait | NoKey
        if alive:
            backs = [slot.back(model, tokens, now) for slot in alive if not slot.full]
            answer = Wait(*min(backs)) if backs else Wait(None, "concurrency limit")
            if answer.until is not None and answer.until < self._outage.until:
                answer = Wait(self._outage.until, f"backing off: {self._outage.reason}")
        else:
            answer = NoKey(
                tuple((slot.fingerprint, slot.disabled.reason) for slot in slots if slot.disabled is not None)
            )
        if not any(slot.key.tpm for slot in alive):
            ring.say(answer, self._freed)
        return answer

    # Learning

    def report(self, lease: Lease, judgement: Judgement, *, tokens: int | None = None, free: bool = False) -> None:
        """End a lease and learn from its answer. `tokens` is the true number. A second report of a lease is ignored.

        `free`: it cost nothing, so that its success says nothing of what the key may spend and ends no rest.
        """
        if lease.ended:
            return
        lease.ended = True
        slot = lease.slot
        slot.in_flight -= 1
        if self._roster.slots.get(slot.fingerprint) is not slot:
            return
        slot.verdicts[judgement.verdict._value_] += 1
        freed = slot.quota is not None and self._settle(slot, lease, tokens)
        if judgement.project is not None:
            self._version += self._roster.learn(slot, judgement.project)
        if judgement.verdict is _OK:
            if not free and (self._outage.watching or slot.rests.by_model or slot.project.rests.by_model):
                self._succeeded(slot, lease)
        elif judgement.verdict is Verdict.KEY or judgement.verdict is Verdict.UPSTREAM:
            self._refused(slot, lease, judgement)
        if freed:
            self._wake()

    def _settle(self, slot: Slot, lease: Lease, tokens: int | None) -> bool:
        """Give back what the lease held of the declared limits; True if that made room."""
        quota = slot.quota
        if quota is None:
            return False
        freed = quota.concurrency == slot.in_flight + 1  # it was full until now
        if tokens is not None:
            now = self._monotonic()
            estimate = lease.tokens if lease.key.tpm else 0  # the limit may be younger than the lease
            if quota.correct(estimate, tokens, counted=lease.started, now=now):
                slot.shut_until = 0.0
                self._version += 1
                return True
        return freed

    def _succeeded(self, slot: Slot, lease: Lease) -> None:
        now = self._monotonic()
        ended = False
        for rests in (slot.project.rests, slot.rests):
            for model in (lease.model, EVERY):
                ended |= rests.succeed(model, begun=lease.started, now=now)
        calm = self._outage.succeeded(begun=lease.started, now=now)
        if calm:
            self._emit(Event("backoff_over"))
        if ended or calm:
            self._version += 1
            self._wake()

    def _refused(self, slot: Slot, lease: Lease, judgement: Judgement) -> None:
        now = self._monotonic()
        if judgement.correlates is not None and self._correlated(slot, lease, judgement, judgement.correlates, now):
            return
        if judgement.verdict is not Verdict.KEY:
            return
        match judgement.action:
            case Rest() as rest:
                self._rest(slot, lease, rest, judgement, now)
            case Disable():
                self._disable(slot, judgement, now)
            case None:
                pass

    def _correlated(self, slot: Slot, lease: Lease, judgement: Judgement, kind: str, now: float) -> bool:
        """Whether the address or the provider is to blame rather than the key."""
        finding = self._outage.refused(
            kind,
            slot,
            (each for each in self._roster.slots.values() if each.disabled is None),
            by_project=isinstance(judgement.action, Rest) and judgement.action.scope not in _OF_ONE_KEY,
            reason=judgement.reason or kind,
            begun=lease.started,
            now=now,
        )
        if finding is Finding.BACKOFF:
            self._outage.acquit(kind)
            self._version += 1
            self._emit(Event("backoff", seconds=self._outage.seconds, reason=self._outage.reason))
            self._wake()
        return finding is not Finding.ALONE

    def _rest(self, slot: Slot, lease: Lease, rest: Rest, judgement: Judgement, now: float) -> None:
        rests = slot.rests if rest.scope in _OF_ONE_KEY else slot.project.rests
        model: Model = EVERY if rest.scope in _OF_EVERY_MODEL else lease.model
        before = rests.saved(model)
        wall = self._clock.wall()
        news = rests.refuse(model, rest, judgement.reason, begun=lease.started, now=now, wall=wall)
        self._blame((rests, model), judgement, TakeBack(partial(self._restore, rests, model, before), before), now)
        self._mark_rested(((model, rests.until(model)),), now)
        self._version += 1
        if news:
            until, named = rests.until(model), None if model is EVERY else lease.model
            self._emit(Event("rest", slot.fingerprint, named, until - now, judgement.reason))

    def _disable(self, slot: Slot, judgement: Judgement, now: float) -> None:
        state = disabled(judgement, now)
        if slot.disabled is None:
            slot.disabled = state
            self._blame(slot, judgement, TakeBack(partial(self._enable, slot)), now)
        elif state.alert and not slot.disabled.alert:
            slot.disabled.reason, slot.disabled.alert = state.reason, True
        else:
            return
        self._version += 1
        self._emit(Event("disabled", slot.fingerprint, reason=state.reason, alert=state.alert))

    def _blame(self, subject: Slot | tuple[Rests, Model], judgement: Judgement, undo: TakeBack, now: float) -> None:
        """Tell the outage what a refusal did, so that it can be taken back if it was not the key's doing."""
        if judgement.correlates is None:
            self._outage.confirm(subject)
        else:
            self._outage.remember(judgement.correlates, subject, undo, now)

    def _restore(self, rests: Rests, model: Model, saved: Rests) -> None:
        rests.restore(model, saved)
        self._version += 1

    def _merging(self, rests: Rests, other: Rests) -> None:
        """What may be taken back of `rests` later must leave it with what it gets from the other."""
        now = self._monotonic()
        for model in other.by_model:
            for undo in self._outage.remembered((rests, model)):
                if undo.before is not None:
                    undo.before.merge(other, now, (model,))

    def _enable(self, slot: Slot) -> None:
        if slot.disabled is None:
            return
        slot.disabled = None
        self._version += 1
        self._emit(Event("enabled", slot.fingerprint))
        self._wake()

    def _mark_rested(self, rests: Iterable[tuple[Model, float]], now: float) -> None:
        if len(self._rested) >= MAX_RINGS:
            self._rested = {model: until for model, until in self._rested.items() if until > now}
        for model, until in rests:
            self._rested[model] = max(until, self._rested.get(model, 0.0))

    def _follow_wall_clock(self, now: float) -> bool:
        """If the wall clock jumped, find anew what ends with the quota day, and say so."""
        wall = self._clock.wall()
        if abs(wall - now - self._offset) < JUMP:
            return False
        self._offset = wall - now
        for slot in self._roster.slots.values():
            slot.shut_until = 0.0
            for rests in (slot.project.rests, slot.rests):
                rests.retime(now, wall)
                self._mark_rested(((model, cooldown.until) for model, cooldown in rests.resting(now)), now)
        self._version += 1
        self._wake()
        return True

    def disable(self, key: Key, judgement: Judgement) -> None:
        """Disable a key for what is known without asking: nothing where it is disabled, or not of this pool."""
        slot = self._roster.slots.get(key.fingerprint)
        if slot is not None and slot.disabled is None:
            self._disable(slot, judgement, self._monotonic())

    # Probes

    def due_probes(self, hopeless: Callable[[Key], bool] = lambda key: False) -> list[Key]:
        """Disabled keys to be asked now, each once until `probe_result` is told; none that are `hopeless`."""
        now = self._monotonic()
        due = [slot for slot in self._roster.slots.values() if slot.disabled is not None and slot.disabled.due(now)]
        due = [slot for slot in due if not hopeless(slot.key)]
        for slot in due:
            if slot.disabled is not None:
                slot.disabled.probing = True
        return [slot.key for slot in due]

    def next_probe(self) -> float | None:
        """Monotonic time at which the next disabled key is due; None if there is none."""
        states = (slot.disabled for slot in self._roster.slots.values())
        return min((state.next_probe for state in states if state is not None and not state.probing), default=None)

    def probe_result(self, key: Key, judgement: Judgement) -> None:
        """OK: the key lives. KEY: it stays disabled and is asked after twice the delay. Else: after the same delay."""
        slot = self._roster.slots.get(key.fingerprint)
        if slot is None or slot.disabled is None:
            return
        if slot.disabled.probed(judgement, self._monotonic()):
            self._enable(slot)

    # Configuration and looking on

    def replace(self, keys: Sequence[Key]) -> None:
        """Take these keys: those that stay keep their state and their leases, and the rotation goes on."""
        place = self._rings[None, EVERY].unrested.place if self._rings else 0
        turn = self._roster.take(keys, place)
        self._rings = {(None, EVERY): Ring(turn)}
        self._version += 1
        self._wake()

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back whenever a key may be ready earlier than a `Wait` said; returns what ends that."""
        entry = partial(callback)  # so that the same callback twice is two subscriptions
        self._subscribers.append(entry)

        def unsubscribe() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)

        return unsubscribe

    def _wake(self) -> None:
        self._freed += 1
        for callback in tuple(self._subscribers):
            callback()

    def _emit(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All of them, in the order of the configuration."""
        return tuple(slot.key for slot in self._roster.slots.values())

    def key(self, fingerprint: str) -> Key | None:
        slot = self._roster.slots.get(fingerprint)
        return slot.key if slot is not None else None

    def owner_of(self, fingerprint: str) -> str:
        """The key's project where known, else its name, else the fingerprint itself."""
        slot = self._roster.slots.get(fingerprint)
        return slot.owner if slot is not None else fingerprint

    def owner_now(self, owner: str) -> str:
        """What an owner is called now, whatever it was called when it was written down (its project may have been learned)."""
        slots = self._roster.of(owner)
        return slots[0].owner if slots else owner

    def outshone(self, owner: str) -> bool:
        """Whether all keys of this owner rest for some model while another key rests for none."""
        now = self._monotonic()

        def calm(slots: Iterable[Slot]) -> bool:
            return any(slot.disabled is None and slot.first_rest_over(now) is None for slot in slots)

        return not calm(self._roster.of(owner)) and calm(self._roster.slots.values())

    def owners(self) -> list[str]:
        """Each owner once, in the order of the keys."""
        return list(dict.fromkeys(slot.owner for slot in self._roster.slots.values()))

    def states(self) -> States:
        now = self._monotonic()
        self._follow_wall_clock(now)
        states = [condition(slot, now)[0] for slot in self._roster.slots.values()]
        return States(states.count("ready"), states.count("resting"), states.count("disabled"))

    def snapshot(self) -> PoolSnapshot:
        now, wall = self._monotonic(), self._clock.wall()
        backoff = self._outage.until if now < self._outage.until else None
        states = self.states()
        keys = tuple(key_snapshot(slot, now, wall) for slot in self._roster.slots.values())
        return PoolSnapshot(
            upstream=self.upstream,
            keys=keys,
            backoff_until_wall=None if backoff is None else wall + backoff - now,
            backoff_reason="" if backoff is None else self._outage.reason,
            states=states,
            in_flight=sum(key.in_flight for key in keys),
            requests=sum(key.requests for key in keys),
            counts={verdict.value: sum(key.counts[verdict.value] for key in keys) for verdict in Verdict},
        )
