"""The state of an upstream as a whole, against any order of events."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balancer.keypool.reach import CAP, FAILURES, SPREAD, Reach, Turn
from tests.fakes import FakeClock

SECONDS = st.sampled_from([0.0, 0.01, 0.3, 1.0, 5.0, 61.0])


class ReachMachine(RuleBasedStateMachine):
    @initialize(chance=st.floats(0, 1, exclude_max=True))
    def begin(self, chance: float) -> None:
        self.clock = FakeClock()
        self.reach = Reach(self.clock, lambda: chance)
        self.turns: list[Turn] = []
        self.reach.on_turn = self.turns.append
        self.row = 0
        self.probing = False

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(took=SECONDS, sent=st.booleans())
    def an_attempt_fails(self, took: float, sent: bool) -> None:
        begun = self.clock.monotonic()
        self.clock.advance(took)
        self.reach.failed("broken", begun=begun, sent=sent)
        self.row += 1

    @rule()
    def an_attempt_is_answered(self) -> None:
        self.reach.answered()
        self.row = 0
        assert not self.reach.troubled

    @precondition(lambda self: not self.probing)
    @rule()
    def a_probe_begins(self) -> None:
        due = self.reach.troubled and self.clock.monotonic() >= self.reach.next_probe
        self.probing = self.reach.begin_probe()
        assert self.probing == due

    @precondition(lambda self: self.probing)
    @rule(end=st.sampled_from(["answered", "broken", "no key"]))
    def a_probe_ends(self, end: str) -> None:
        self.probing = False
        if end == "no key":
            self.reach.unprobed()
        else:
            self.reach.probed(None if end == "answered" else "broken")
        if end == "answered":
            self.row = 0
            assert not self.reach.troubled

    @precondition(lambda self: self.reach.blind)
    @rule()
    def a_call_takes_the_place_of_a_probe(self) -> None:
        self.reach.tried()
        assert not self.reach.blind

    @invariant()
    def it_is_in_trouble_only_after_a_row_of_failures(self) -> None:
        assert not self.reach.troubled or self.row >= FAILURES

    @invariant()
    def what_is_in_trouble_is_probed_within_its_longest_delay(self) -> None:
        if self.reach.troubled:
            assert self.reach.next_probe - self.clock.monotonic() <= CAP * (1 + SPREAD)
        assert self.reach.down or not self.reach.blind

    @invariant()
    def each_change_is_told_once(self) -> None:
        downs_and_ups = [turn.kind for turn in self.turns if turn.kind != "doubted"]
        assert all(kind == ("down", "up")[number % 2] for number, kind in enumerate(downs_and_ups))
        assert self.reach.down == (len(downs_and_ups) % 2 == 1)


TestReach = ReachMachine.TestCase
