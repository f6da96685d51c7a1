"""The real pool against a deliberately simple one: lists of what was said, looked through from the start at every question.

The simple pool knows no rings, versions, buckets or remembered answers. It may be more generous by one bucket of a limit's
window (`GRAIN`), because the real one counts whole buckets; nothing else may differ. `POOL_EXAMPLES=5000` runs it at length.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balancer.keypool.cooldown import ESCALATION_MEMORY
from balancer.keypool.pool import KeyPool, Lease, NoKey, Wait
from balancer.keypool.quota import CALENDAR_SLACK, quota_day
from balancer.model import Disable, Judgement, Key, Rest, Scope, Verdict
from tests.fakes import FakeClock

EXAMPLES = int(os.environ.get("POOL_EXAMPLES", "0"))
GRAIN = 1.0
TICK = 1 / 8  # all times are multiples of it, hence exact
START = datetime(2026, 10, 31, 20, tzinfo=UTC).timestamp()  # the day before the one of 25 hours

UNIVERSE = [
    [Key("a"), Key("a", rpm=3)],
    [Key("b", weight=3), Key("b", project="P")],
    [Key("c", project="P"), Key("c", name="see")],
    [Key("d", rpm=2, concurrency=2), Key("d", rpd=4)],
    [Key("e", tpm=50), Key("e", concurrency=1, project="Q")],
]
MODELS = st.sampled_from(["m", "m", "m", "m", "n", None])
KEYS = st.lists(st.sampled_from(range(5)), min_size=1, max_size=5, unique=True).flatmap(
    lambda chosen: st.tuples(*(st.sampled_from(UNIVERSE[number]) for number in chosen))
)
SCOPES = st.sampled_from(list(Scope))
LENGTHS = st.sampled_from([0.0, 1.0, 5.0, 30.0, 90.0, 86400.0])
RESTS = st.one_of(
    st.builds(lambda scope, seconds: Rest(scope, seconds=seconds), SCOPES, LENGTHS),
    st.builds(lambda scope: Rest(scope, until_quota_day=True), SCOPES),
    st.builds(lambda scope: Rest(scope, first=2.0, cap=16.0), SCOPES),
)
PROJECTS = st.sampled_from([None, None, None, None, "P", "Q"])
JUDGEMENTS = st.one_of(
    st.builds(
        Judgement,
        st.sampled_from([Verdict.OK, Verdict.OK, Verdict.CALLER, Verdict.GONE]),
        st.just("said"),
        project=PROJECTS,
    ),
    st.builds(Judgement, st.just(Verdict.KEY), st.sampled_from(["one", "two"]), RESTS, st.none(), PROJECTS),
    st.builds(
        lambda scope, seconds, kind: Judgement(Verdict.KEY, "plain", Rest(scope, seconds=seconds), correlates=kind),
        SCOPES,
        LENGTHS,
        st.sampled_from(["429", "503"]),
    ),
    st.builds(Judgement, st.just(Verdict.UPSTREAM), st.just("down"), correlates=st.sampled_from([None, "503"])),
    st.just(Judgement(Verdict.KEY, "dead", Disable())),
)


@dataclass
class Said:
    """A rest as it was said. `kind`: of a refusal that may still turn out not to be the key's doing."""

    until: float = 0.0
    day_end: float = 0.0
    kind: str | None = None


@dataclass
class Subject:
    """All rests of one subject for one model."""

    said: list[Said] = field(default_factory=list)
    since: list[tuple[float, str | None]] = field(default_factory=list)
    step: int = 0
    touched: dict[str, float] = field(default_factory=dict)

    def copied(self) -> Subject:
        return Subject(
            [Said(each.until, each.day_end) for each in self.said], [(at, None) for at, _ in self.since], self.step
        )

    def settle(self, kind: str | None = None) -> None:
        """What was said stands; of one kind, or of all."""
        for each in self.said:
            each.kind = None if kind in (None, each.kind) else each.kind
        self.since = [(at, None if kind in (None, was) else was) for at, was in self.since]
        self.touched = {} if kind is None else {k: at for k, at in self.touched.items() if k != kind}

    def lift(self, kind: str) -> None:
        self.said = [each for each in self.said if each.kind != kind]
        self.since = [(at, was) for at, was in self.since if was != kind]
        self.touched.pop(kind, None)


@dataclass
class Simple:
    """One key. `spent` is all that its limits counted: time, tokens, whether it is no request."""

    key: Key
    learned: str | None = None
    dead: list[float] | None = None  # next probe, delay, probing
    spent: list[list[float]] = field(default_factory=list)
    day: tuple[float, float] = (0.0, 0.0)
    today: int = 0
    in_flight: int = 0

    @property
    def group(self) -> str:
        return self.key.project or self.learned or f"alone {self.key.fingerprint}"


class PoolMachine(RuleBasedStateMachine):
    """Each rule does one thing to both and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(START)
        self.keys: dict[str, Simple] = {}
        self.subjects: dict[tuple[str, object], Subject] = {}
        self.leases: list[tuple[Lease, Simple, list[float]]] = []
        self.refusals: dict[str, dict[str, tuple[float, Simple]]] = {}
        self.backoff: dict[str, Any] | None = None
        self.wakes = 0
        self.promise: tuple[int, float, dict[str, Any]] = (-1, 0.0, {})

    @initialize(keys=KEYS)
    def begin(self, keys: tuple[Key, ...]) -> None:
        self.pool = KeyPool("u", keys, self.clock)
        self.pool.subscribe(self.woken)
        self.keys = {key.fingerprint: Simple(key) for key in keys}

    def woken(self) -> None:
        self.wakes += 1

    # What the simple pool knows

    def now(self) -> float:
        return self.clock.monotonic()

    def covering(self, simple: Simple, model: object) -> list[Subject]:
        subjects = (simple.group, "key " + simple.key.fingerprint)
        names = [(subject, each) for subject in subjects for each in (model, "*every*")]
        return [self.subjects[name] for name in names if name in self.subjects]

    def rested_until(self, simple: Simple, model: object) -> float:
        ends = [0.0]
        for subject in self.covering(simple, model):
            for said in subject.said:
                ends.append(said.until)
                if said.day_end:
                    ends.append(self.now() + said.day_end - self.clock.wall())
        return max(ends)

    def within(self, simple: Simple, tokens: int, *, window: float) -> bool:
        """Whether the declared limits admit a request; a window of more than 60 s: whether the real pool must say so too."""
        key, now = simple.key, self.now()
        recent = [each for each in simple.spent if each[0] + window > now]
        used = sum(each[1] for each in recent)
        self.roll(simple)
        young = window > 60 and self.clock.wall() < simple.day[0] + 2 * CALENDAR_SLACK
        return not (
            (key.rpm is not None and len([each for each in recent if not each[2]]) >= key.rpm)
            or (key.tpm is not None and used > 0 and (used >= key.tpm or used + tokens > key.tpm))
            or (key.rpd is not None and (young or simple.today >= key.rpd))
            or (key.concurrency is not None and simple.in_flight >= key.concurrency)
        )

    def roll(self, simple: Simple) -> None:
        wall = self.clock.wall()
        if simple.key.rpd is not None and not simple.day[0] <= wall < simple.day[1]:
            if wall >= simple.day[1]:
                simple.today = 0
            simple.day = quota_day(wall)

    def eligible(self, owner: str | None) -> list[Simple]:
        return [
            each
            for each in self.keys.values()
            if owner is None or owner in (each.key.project, each.learned, each.key.name, each.key.fingerprint)
        ]

    def ready(self, simple: Simple, model: object, tokens: int, *, window: float = 60.0) -> bool:
        return (
            simple.dead is None
            and self.rested_until(simple, model) <= self.now()
            and self.within(simple, tokens, window=window)
        )

    # Rules

    @rule(
        model=MODELS,
        owner=st.sampled_from([None, None, None, "P", "see", Key("a").fingerprint]),
        prefer=st.sampled_from([None, None, Key("a").fingerprint, Key("b").fingerprint]),
        avoid=st.sets(st.sampled_from([Key(letter).fingerprint for letter in "abc"])),
        tokens=st.sampled_from([0, 10, 30, 200]),
        patient=st.booleans(),
    )
    def lease(self, patient: bool, **how: Any) -> None:
        said = self.pool.lease(**how)
        match said:
            case Lease():
                self.check_lease(said, **how)
            case NoKey(reasons):
                alike = self.eligible(how["owner"])
                assert all(each.dead is not None for each in alike)
                assert {fingerprint for fingerprint, _ in reasons} == {each.key.fingerprint for each in alike}
            case Wait(until):
                self.check_wait(until, how["model"], how["owner"], how["tokens"])
                assert self.pool.lease(**how) == said, "asking changes nothing"
                self.promise = (self.wakes, math.inf if until is None else until, how)
                if patient and until is not None:
                    self.clock.advance(math.ceil((until - self.now()) / TICK) * TICK)
                    then = self.pool.lease(**how)
                    assert isinstance(then, Lease), (said, then)
                    self.check_lease(then, **how)

    def check_lease(
        self, lease: Lease, model: str | None, owner: str | None, prefer: str | None, avoid: set[str], tokens: int
    ) -> None:
        assert self.backoff is None or self.now() >= self.backoff["until"]
        simple = self.keys[lease.key.fingerprint]
        assert lease.key == simple.key
        assert simple in self.eligible(owner)
        assert self.ready(simple, model, tokens), "leased while resting, disabled or over its limits"
        others = [
            each
            for each in self.eligible(owner)
            if each is not simple and self.ready(each, model, tokens, window=60 + GRAIN)
        ]
        if lease.key.fingerprint in avoid:
            assert all(each.key.fingerprint in avoid for each in others)
        elif model is not None and prefer not in avoid:
            assert all(each.key.fingerprint != prefer for each in others)
        spent = [self.now(), tokens if simple.key.tpm else 0, not simple.key.rpm]
        simple.spent.append(spent)
        simple.today += simple.key.rpd is not None
        simple.in_flight += 1
        self.leases.append((lease, simple, spent))

    def check_wait(self, until: float | None, model: str | None, owner: str | None, tokens: int) -> None:
        alive = [each for each in self.eligible(owner) if each.dead is None]
        assert alive
        held = self.backoff is not None and self.now() < self.backoff["until"]
        assert held or not any(self.ready(each, model, tokens, window=60 + GRAIN) for each in alive)
        if until is None:
            assert all(each.key.concurrency is not None for each in alive)
            return
        assert until > self.now()
        if held and self.backoff is not None and until <= self.backoff["until"]:
            return
        free = [each for each in alive if not (each.key.rpm or each.key.rpd or each.key.tpm or each.key.concurrency)]
        assert all(self.rested_until(each, model) >= until - 1e-6 for each in free), "one is back earlier"

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), judgement=JUDGEMENTS, tokens=st.sampled_from([None, None, 5, 40, 70]))
    def report(self, data: st.DataObject, judgement: Judgement, tokens: int | None) -> None:
        self.end(data.draw(st.integers(0, len(self.leases) - 1)), judgement, tokens)

    def end(self, index: int, judgement: Judgement, tokens: int | None) -> None:
        lease, simple, spent = self.leases.pop(index)
        self.pool.report(lease, judgement, tokens=tokens)
        self.pool.report(lease, Judgement(Verdict.KEY, "again", Disable()))
        simple.in_flight -= 1
        if self.keys.get(simple.key.fingerprint) is not simple:
            return
        if tokens is not None and simple.key.tpm is not None:
            counted = lease.tokens if lease.key.tpm else 0
            if tokens < counted:
                spent[1] = tokens
            else:
                simple.spent.append([self.now(), tokens - counted, True])
        if judgement.project is not None and simple.key.project is None and simple.learned != judgement.project:
            self.join(simple, simple.key, judgement.project)
            self.forget_empty_groups()
        self.learn(simple, lease, judgement)

    def learn(self, simple: Simple, lease: Lease, judgement: Judgement) -> None:
        kind = judgement.correlates
        if judgement.verdict is Verdict.OK:
            self.succeeded(simple, lease)
        if judgement.verdict not in (Verdict.KEY, Verdict.UPSTREAM):
            return
        if kind is not None and self.correlated(simple, lease, judgement, kind):
            return
        if judgement.verdict is Verdict.UPSTREAM:
            return
        if isinstance(judgement.action, Disable):
            simple.dead = simple.dead or [self.now() + 3600, 3600, 0]
        if isinstance(judgement.action, Rest):
            self.rest(simple, lease, judgement.action, kind)

    def rest(self, simple: Simple, lease: Lease, rest: Rest, kind: str | None) -> None:
        group = "key " + simple.key.fingerprint if rest.scope in (Scope.KEY_MODEL, Scope.KEY) else simple.group
        subject = self.subjects.setdefault(
            (group, "*every*" if rest.scope in (Scope.PROJECT, Scope.KEY) else lease.model), Subject()
        )
        if kind is None:
            subject.settle()
        else:
            for other in subject.touched.keys() - {kind}:
                subject.settle(other)
            subject.touched[kind] = self.now()
        ends = [max(each.until, self.now() + each.day_end - self.clock.wall()) for each in subject.said]
        if self.now() >= max(ends, default=0.0) + ESCALATION_MEMORY:
            subject.step = 0
        if rest.until_quota_day:
            said = Said(day_end=quota_day(self.clock.wall())[1], kind=kind)
        elif rest.seconds is not None:
            said = Said(self.now() + rest.seconds, kind=kind)
        else:
            last = max((at for at, _ in subject.since), default=0.0)
            subject.step += not subject.step or lease.started > last
            said = Said(self.now() + min(rest.cap, rest.first * 2 ** (subject.step - 1)))
        subject.said.append(said)
        subject.since.append((self.now(), kind))

    def succeeded(self, simple: Simple, lease: Lease) -> None:
        for subject in self.covering(simple, lease.model):
            if subject.since and lease.started > max(at for at, _ in subject.since):
                subject.said, subject.since, subject.step = [], [], 0
        if lease.started >= self.now() - 10:
            self.refusals = {}
            for subject in self.subjects.values():
                subject.settle()
        if self.backoff is not None and lease.started > self.backoff["begun"]:
            self.backoff = None

    def correlated(self, simple: Simple, lease: Lease, judgement: Judgement, kind: str) -> bool:
        now = self.now()
        if self.backoff is not None and now > self.backoff["until"] + 60:
            self.backoff = None
        if self.backoff is not None and self.backoff["kind"] == kind:
            if lease.started > self.backoff["stepped"]:
                self.back_off(kind)
            return True
        for subject in self.subjects.values():
            if kind in subject.touched and now - subject.touched[kind] > 10:
                subject.settle(kind)
        witnesses = self.refusals.setdefault(kind, {})
        witnesses[simple.key.fingerprint] = (now, simple)
        recent = [each for at, each in witnesses.values() if now - at <= 10]
        by_project = isinstance(judgement.action, Rest) and judgement.action.scope not in (Scope.KEY_MODEL, Scope.KEY)
        names = {each.group if by_project else each.key.fingerprint for each in recent}
        alive = {e.group if by_project else e.key.fingerprint for e in self.keys.values() if e.dead is None}
        possible = len(names | alive)
        if possible < 2 or len(names) < min(3, possible):
            return False
        self.back_off(kind)
        return True

    def back_off(self, kind: str) -> None:
        now = self.now()
        if self.backoff is None:
            self.backoff = {"begun": now, "length": 0.5}
        length = min(60.0, 2 * self.backoff["length"])
        self.backoff.update(kind=kind, stepped=now, length=length, until=now + length)
        self.refusals.pop(kind, None)
        for subject in self.subjects.values():
            subject.lift(kind)

    def join(self, simple: Simple, key: Key, learned: str | None) -> None:
        """The key belongs to another group from now on: rests of both hold there."""
        before = simple.group
        simple.key, simple.learned = key, learned
        if simple.group == before:
            return
        for (group, model), subject in list(self.subjects.items()):
            if group == before:
                mine = self.subjects.setdefault((simple.group, model), Subject())
                copy = subject.copied()
                mine.said += copy.said
                mine.since += copy.since
                mine.step = max(mine.step, copy.step)

    @rule(keys=KEYS)
    def replace(self, keys: tuple[Key, ...]) -> None:
        self.pool.replace(keys)
        kept: dict[str, Simple] = {}
        for key in keys:
            simple = self.keys.get(key.fingerprint) or Simple(key)
            self.join(simple, key, simple.learned)
            kept[key.fingerprint] = simple
            if key.rpm is key.rpd is key.tpm is key.concurrency is None:
                simple.spent, simple.day, simple.today = [], (0.0, 0.0), 0
        self.keys = kept
        self.forget_empty_groups()

    def forget_empty_groups(self) -> None:
        groups = {each.group for each in self.keys.values()} | {"key " + fingerprint for fingerprint in self.keys}
        self.subjects = {name: subject for name, subject in self.subjects.items() if name[0] in groups}

    @rule(model=MODELS, judgements=st.lists(JUDGEMENTS, min_size=1, max_size=3), together=st.booleans())
    def ask(self, model: str | None, judgements: list[Judgement], together: bool) -> None:
        """Some requests in a row, or on their way together."""
        before = len(self.leases)
        for judgement in judgements:
            self.lease(patient=True, model=model, owner=None, prefer=None, avoid=set(), tokens=5)
            if not together and len(self.leases) > before:
                self.end(before, judgement, None)
        for judgement in judgements[: len(self.leases) - before]:
            self.end(before, judgement, None)

    @rule(seconds=st.sampled_from([TICK, 1.0, 2.0, 10.0, 59.0, 61.0, 3600.0, 50000.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-90000.0, -7200.0, -60.0, 60.0, 7200.0, 40000.0, 90000.0]))
    def jump(self, seconds: float) -> None:
        over = self.clock.wall()
        self.clock.jump(seconds)
        self.pool.states()
        for said in [said for subject in self.subjects.values() for said in subject.said]:
            if said.day_end > over:
                said.day_end = min(said.day_end, quota_day(self.clock.wall())[1])
            elif said.day_end:
                said.until, said.day_end = self.now() + said.day_end - over, 0.0

    @rule(verdict=st.sampled_from([Verdict.OK, Verdict.KEY, Verdict.KEY, Verdict.UPSTREAM]))
    def probe(self, verdict: Verdict) -> None:
        due = {key.fingerprint for key in self.pool.due_probes()}
        expected = {
            name for name, each in self.keys.items() if each.dead and not each.dead[2] and each.dead[0] <= self.now()
        }
        assert due == expected
        assert self.pool.due_probes() == []
        for name in due:
            simple = self.keys[name]
            self.pool.probe_result(simple.key, Judgement(verdict, "probed"))
            assert simple.dead is not None
            if verdict is Verdict.OK:
                simple.dead = None
            else:
                delay = min(86400, simple.dead[1] * (2 if verdict is Verdict.KEY else 1))
                simple.dead = [self.now() + delay, delay, 0]

    # Invariants

    @invariant()
    def what_is_shown_is_true(self) -> None:
        if not hasattr(self, "pool"):
            return
        snapshot = self.pool.snapshot()
        assert [each.fingerprint for each in snapshot.keys] == list(self.keys)
        for shown in snapshot.keys:
            simple = self.keys[shown.fingerprint]
            if simple.dead is None:
                self.roll(simple)
            assert shown.in_flight == simple.in_flight >= 0
            assert (shown.state == "disabled") == (simple.dead is not None)
            assert shown.project == (simple.key.project or simple.learned)
            rests = {each.model for each in shown.models}
            for model in ("m", "n", None):
                assert (model in rests or "*" in rests) == (self.rested_until(simple, model) > self.now())
        pending = [each.dead[0] for each in self.keys.values() if each.dead]
        assert self.pool.next_probe() == min(pending, default=None)
        held = self.backoff is not None and self.now() < self.backoff["until"]
        assert (snapshot.backoff_until_wall is not None) == held

    @invariant()
    def nothing_is_ready_earlier_than_told_unless_subscribers_heard_of_it(self) -> None:
        wakes, until, how = self.promise
        if wakes == self.wakes and self.now() < until:
            assert isinstance(self.pool.lease(**how), Wait | NoKey)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for lease, _, _ in self.leases:
            self.pool.report(lease, Judgement(Verdict.GONE))
        assert self.pool.snapshot().in_flight == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=EXAMPLES or 60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


@settings(max_examples=EXAMPLES or 50, deadline=None)
@given(
    weights=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    before=st.lists(st.tuples(st.sampled_from(["m", "n"]), st.booleans()), max_size=20),
)
def test_turns_are_fair_by_weight_whatever_happened_before(weights: list[int], before: list[tuple[str, bool]]) -> None:
    clock = FakeClock()
    keys = [Key(f"key {number}", weight=weight) for number, weight in enumerate(weights)]
    pool = KeyPool("u", keys, clock)
    for model, refused in before:
        lease = pool.lease(model)
        if isinstance(lease, Lease):
            action = Rest(Scope.PROJECT_MODEL, seconds=5)
            pool.report(lease, Judgement(Verdict.KEY, "429", action) if refused else Judgement(Verdict.OK))
        clock.advance(1)
    clock.advance(10)
    turns: Counter[str] = Counter()
    divisor = math.gcd(*weights)
    for _ in range(sum(weights) // divisor):
        lease = pool.lease("m")
        assert isinstance(lease, Lease)
        pool.report(lease, Judgement(Verdict.OK))
        turns[lease.key.secret] += 1
    assert turns == {key.secret: key.weight // divisor for key in keys}
