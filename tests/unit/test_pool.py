"""The key pool: whose turn it is, what an answer does to a key, when several refusals blame nobody."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from balancer.keypool.pool import Event, KeyPool, KeySnapshot, Lease, NoKey, States, Wait
from balancer.keypool.rotation import MAX_TURNS
from balancer.model import GONE, OK, Disable, Judgement, Key, Rest, Scope, Verdict
from tests.fakes import FakeClock

NOON = datetime(2026, 6, 1, 19, tzinfo=UTC).timestamp()  # noon in Los Angeles
A, B, C, D, E = (Key(letter, name=letter) for letter in "abcde")
DEAD = Judgement(Verdict.KEY, "API_KEY_INVALID", Disable())
LEAKED = Judgement(Verdict.KEY, "leaked", Disable(alert=True))
DAY = Judgement(Verdict.KEY, "429 per day", Rest(Scope.PROJECT_MODEL, until_quota_day=True))
PLAIN = Judgement(Verdict.KEY, "429", Rest(Scope.PROJECT_MODEL))
CORRELATED = Judgement(Verdict.KEY, "429", Rest(Scope.PROJECT_MODEL), correlates="429")
DOWN = Judgement(Verdict.UPSTREAM, "503", correlates="503")
CALLER = Judgement(Verdict.CALLER, "400")


def rest(seconds: float, scope: Scope = Scope.PROJECT_MODEL, reason: str = "429", **more: Any) -> Judgement:
    return Judgement(Verdict.KEY, reason, Rest(scope, seconds=seconds), **more)


class Desk:
    """A pool under test with its clock and its events."""

    def __init__(self, *keys: Key) -> None:
        self.clock = FakeClock(NOON)
        self.pool = KeyPool("gemini", keys, self.clock)
        self.events: list[Event] = []
        self.pool.on_event = self.events.append

    def take(self, model: str | None = "m", **how: Any) -> Lease:
        lease = self.pool.lease(model, **how)
        assert isinstance(lease, Lease), lease
        return lease

    def refused(self, model: str | None = "m", **how: Any) -> Wait | NoKey:
        said = self.pool.lease(model, **how)
        assert not isinstance(said, Lease)
        return said

    def ask(self, judgement: Judgement = OK, model: str | None = "m", **how: Any) -> str:
        """Lend a key, report, and return the key's secret."""
        lease = self.take(model, **how)
        self.pool.report(lease, judgement)
        return lease.key.secret

    def ask_each(self, judgement: Judgement, *keys: Key, model: str | None = "m") -> None:
        for key in keys:
            assert self.ask(judgement, model, owner=key.fingerprint) == key.secret

    def lent(self, times: int, model: str | None = "m", **how: Any) -> str:
        return "".join(self.ask(OK, model, **how) for _ in range(times))

    def shown(self, key: Key) -> KeySnapshot:
        return next(each for each in self.pool.snapshot().keys if each.fingerprint == key.fingerprint)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


# Rotation


def test_ready_keys_take_turns() -> None:
    assert Desk(A, B, C).lent(7) == "abcabca"


def test_turns_are_taken_across_models() -> None:
    desk = Desk(A, B, C)
    assert [desk.ask(OK, model) for model in ("x", "y", None, "x")] == list("abca")


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 1), (2, 4, 6), (3, 2, 1), (7, 1, 13), (0, 1, 2)])
def test_weights_are_exact_over_a_round_and_spread_within_it(weights: tuple[int, ...]) -> None:
    keys = [Key(letter, weight=weight) for letter, weight in zip("abc", weights, strict=True)]
    effective = [max(1, weight) for weight in weights]
    got = Counter(Desk(*keys).lent(sum(effective)))
    assert [got[letter] for letter in "abc"] == effective


def test_a_heavy_key_does_not_take_all_its_turns_at_once() -> None:
    order = Desk(Key("a", weight=3), Key("b", weight=3)).lent(12)
    assert "aa" not in order
    assert "bb" not in order
    assert "bb" in Desk(Key("a"), Key("b", weight=2)).lent(6)


def test_a_weight_of_a_million_makes_no_long_list() -> None:
    desk = Desk(Key("a", weight=1_000_000), Key("b", weight=999_999), C)
    assert len(desk.pool._roster.order) <= MAX_TURNS + 3
    assert Counter(desk.lent(1000))["b"] == pytest.approx(500, abs=5)


def test_a_resting_key_leaves_its_turns_evenly_to_the_others_and_takes_them_up_again() -> None:
    desk = Desk(A, B, C)
    desk.ask_each(rest(30), A)
    assert sorted(Counter(desk.lent(10)).items()) == [("b", 5), ("c", 5)]
    desk.clock.advance(30)
    assert Counter(desk.lent(9)) == {"a": 3, "b": 3, "c": 3}


def test_the_rotation_goes_on_where_it_was_when_states_change() -> None:
    desk = Desk(A, B, C, D, E)
    assert desk.lent(2) == "ab"
    desk.ask_each(rest(30), E)
    assert desk.lent(3) == "cda"
    desk.clock.advance(30)
    assert desk.lent(5) == "bcdea"


def test_a_model_that_rests_somewhere_does_not_start_all_over_at_the_first_key() -> None:
    desk = Desk(A, B, C)
    assert desk.lent(1, "x") == "a"
    desk.ask_each(rest(30), C, model="y")
    assert desk.lent(2, "y") == "ba"


def test_a_key_given_twice_takes_one_turn() -> None:
    assert Desk(A, A, B).lent(4) == "abab"


# prefer, avoid, owner


def test_a_preferred_key_is_taken_while_it_is_ready_and_does_not_disturb_the_turns() -> None:
    desk = Desk(A, B, C)
    assert desk.lent(2, prefer=C.fingerprint) == "cc"
    assert desk.lent(3) == "abc"
    desk.ask_each(rest(30), C)
    assert desk.lent(2, prefer=C.fingerprint) == "ab"


@pytest.mark.parametrize("judgement", [DEAD, rest(30), rest(30, Scope.PROJECT), rest(30, Scope.KEY_MODEL)])
def test_a_preferred_key_is_not_taken_when_it_is_not_ready(judgement: Judgement) -> None:
    desk = Desk(A, B)
    desk.ask_each(judgement, A)
    assert desk.lent(2, prefer=A.fingerprint) == "bb"


def test_a_preferred_key_that_is_unknown_or_of_another_owner_does_not_count() -> None:
    desk = Desk(A, B)
    assert desk.lent(2, prefer="ffffffff") == "ab"
    assert desk.lent(2, prefer=A.fingerprint, owner="b") == "bb"


def test_an_avoided_key_is_taken_only_if_no_other_is_ready() -> None:
    desk = Desk(A, B, C)
    assert desk.lent(4, avoid={A.fingerprint}) == "bcbc"
    assert desk.lent(2, avoid={A.fingerprint}, prefer=A.fingerprint) in ("bc", "cb")
    desk.ask_each(rest(30), B, C)
    assert desk.lent(1, avoid={A.fingerprint}) == "a"
    assert desk.lent(1, avoid=[A.fingerprint, B.fingerprint, C.fingerprint]) == "a"


def test_an_owner_is_any_of_project_name_and_fingerprint() -> None:
    desk = Desk(Key("a", name="first", project="p"), Key("b", project="p"), Key("c", name="third"), Key("d"))
    fingerprint = Key("a").fingerprint
    assert desk.lent(4, owner="p") == "abab"
    assert desk.lent(2, owner="first") == "aa"
    assert desk.lent(2, owner=fingerprint) == "aa"
    assert desk.lent(2, owner="third") == "cc"
    assert desk.pool.owners() == ["p", "third", Key("d").fingerprint]
    assert [desk.pool.owner_of(Key(letter).fingerprint) for letter in "abcd"] == [
        "p",
        "p",
        "third",
        Key("d").fingerprint,
    ]
    assert desk.pool.owner_of("ffffffff") == "ffffffff"


def test_a_call_bound_to_a_resting_owner_waits_for_it_though_others_are_ready() -> None:
    desk = Desk(A, B)
    desk.ask_each(rest(30), A)
    assert desk.refused(owner="a") == Wait(desk.clock.monotonic() + 30, "429")


def test_no_such_owner_is_no_key_without_reasons() -> None:
    assert Desk(A).refused(owner="nobody") == NoKey(())
    assert Desk().refused() == NoKey(())


# Wait and NoKey


def test_all_resting_is_a_wait_for_the_first_one_back_and_true() -> None:
    desk = Desk(A, B, C)
    for key, seconds in ((A, 30), (B, 10), (C, 20)):
        desk.ask_each(rest(seconds, reason=f"{seconds} s"), key)
    now = desk.clock.monotonic()
    assert desk.refused() == Wait(now + 10, "10 s")
    desk.clock.advance(9.99)
    assert desk.refused() == Wait(now + 10, "10 s")
    desk.clock.advance(0.0101)
    assert desk.ask() == "b"


def test_a_wait_told_twice_is_still_found_anew_when_something_changed() -> None:
    desk = Desk(A, B)
    desk.ask_each(rest(30), A, B)
    assert desk.refused() == desk.refused()
    desk.pool.replace([A, B, C])
    assert desk.ask() == "c"


def test_a_wait_told_before_is_told_anew_when_the_rest_grew() -> None:
    desk = Desk(A)
    in_flight = desk.take()
    desk.ask(rest(30))
    now = desk.clock.monotonic()
    assert desk.refused() == Wait(now + 30, "429")
    desk.pool.report(in_flight, rest(90))
    assert desk.refused() == Wait(now + 90, "429")


def test_all_disabled_is_no_key_with_each_reason() -> None:
    desk = Desk(A, B)
    desk.ask_each(DEAD, A)
    desk.ask_each(LEAKED, B)
    assert desk.refused() == NoKey(((A.fingerprint, "API_KEY_INVALID"), (B.fingerprint, "leaked")))
    assert desk.refused(owner="a") == NoKey(((A.fingerprint, "API_KEY_INVALID"),))


def test_it_is_never_no_key_while_one_will_be_back() -> None:
    desk = Desk(A, B)
    desk.ask_each(DEAD, A)
    desk.ask_each(rest(30), B)
    assert desk.refused() == Wait(desk.clock.monotonic() + 30, "429")


def test_a_model_that_no_tier_serves_is_a_wait_of_a_day_for_that_model_only() -> None:
    desk = Desk(Key("a", project="p"), Key("b", project="p"))
    limit0 = rest(86400, Scope.KEY_MODEL, "limit: 0")
    desk.ask_each(limit0, Key("a"))
    assert desk.lent(2) == "bb", "the other key of the project may still serve it"
    desk.ask_each(limit0, Key("b"))
    assert desk.refused() == Wait(desk.clock.monotonic() + 86400, "limit: 0")
    assert desk.lent(2, "other") == "ab"


# What an answer does (gemini.md section 6)


@pytest.mark.parametrize("verdict", [Verdict.GONE, Verdict.CALLER, Verdict.UPSTREAM, Verdict.OK])
def test_only_a_key_answer_touches_the_key_whatever_action_comes_with_it(verdict: Verdict) -> None:
    desk = Desk(A)
    for action in (None, Rest(Scope.PROJECT), Disable()):
        desk.ask(Judgement(verdict, "said", action))
        assert desk.ask() == "a"
    assert desk.events == []


def test_a_key_answer_without_action_only_counts() -> None:
    desk = Desk(A)
    desk.ask(Judgement(Verdict.KEY, "odd"))
    assert desk.ask() == "a"
    assert desk.shown(A).counts["key"] == 1


@pytest.mark.parametrize(
    ("scope", "resting"),
    [
        (Scope.PROJECT_MODEL, {("a", "m"), ("b", "m")}),
        (Scope.KEY_MODEL, {("a", "m")}),
        (Scope.KEY, {("a", "m"), ("a", "n"), ("a", None)}),
        (Scope.PROJECT, {("a", "m"), ("b", "m"), ("a", "n"), ("b", "n"), ("a", None), ("b", None)}),
    ],
)
def test_the_scope_of_a_rest(scope: Scope, resting: set[tuple[str, str | None]]) -> None:
    desk = Desk(Key("a", project="p"), Key("b", project="p"), Key("c", project="q"))
    desk.ask_each(rest(30, scope), Key("a"))
    found = {
        (letter, model)
        for letter in "abc"
        for model in ("m", "n", None)
        if not isinstance(desk.pool.lease(model, owner=Key(letter).fingerprint), Lease)
    }
    assert found == resting


def test_a_rest_until_the_quota_day_ends_at_midnight_in_los_angeles() -> None:
    desk = Desk(A)
    desk.ask(DAY)
    assert desk.refused() == Wait(desk.clock.monotonic() + 12 * 3600, "429 per day")
    desk.clock.advance(12 * 3600)
    assert desk.ask() == "a"


def test_a_rest_until_the_quota_day_follows_a_wall_clock_that_is_set() -> None:
    desk = Desk(A)
    desk.ask(DAY)
    desk.clock.jump(3600)
    assert desk.refused() == Wait(desk.clock.monotonic() + 11 * 3600, "429 per day")
    desk.clock.jump(-2 * 3600)
    assert desk.refused() == Wait(desk.clock.monotonic() + 13 * 3600, "429 per day")
    desk.clock.jump(13 * 3600)
    assert desk.ask() == "a"


def test_a_set_wall_clock_ends_a_rest_though_another_key_is_ready_from_the_next_change_on() -> None:
    desk = Desk(A, B)
    desk.ask_each(DAY, A)
    desk.clock.jump(12 * 3600)
    assert desk.pool.states() == States(2, 0, 0)
    assert sorted(desk.lent(2)) == ["a", "b"]


def test_plain_refusals_escalate_and_a_success_starts_over() -> None:
    desk = Desk(A)
    waits = []
    for judgement in (PLAIN, PLAIN, PLAIN, OK, PLAIN):
        desk.ask(judgement)
        said = desk.pool.lease("m")
        if isinstance(said, Lease):
            desk.pool.report(said, GONE)
        else:
            assert said.until is not None  # type: ignore[union-attr]
            waits.append(said.until - desk.clock.monotonic())  # type: ignore[union-attr]
            desk.clock.advance(waits[-1])
    assert waits == [5, 10, 20, 5]


def test_a_success_of_a_request_older_than_the_refusal_ends_nothing() -> None:
    desk = Desk(A)
    older = desk.take()
    desk.clock.advance(1)
    desk.ask(rest(30))
    desk.clock.advance(1)
    desk.pool.report(older, OK)
    assert isinstance(desk.refused(), Wait)


def test_a_success_of_a_request_younger_than_the_refusal_ends_the_rest() -> None:
    desk = Desk(Key("a", project="p"), Key("b"))
    desk.ask_each(rest(30), Key("a"))
    desk.clock.advance(1)
    younger = desk.take(owner=Key("b").fingerprint)
    desk.pool.report(younger, Judgement(Verdict.OK, project="p"))
    assert sorted(desk.lent(2)) == ["a", "b"]


def test_ten_requests_refused_together_escalate_once() -> None:
    desk = Desk(A)
    leases = [desk.take() for _ in range(10)]
    for lease in leases:
        desk.clock.advance(0.1)
        desk.pool.report(lease, PLAIN)
    assert desk.refused() == Wait(desk.clock.monotonic() + 5, "429")
    assert desk.kinds() == ["rest"]


def test_a_lease_is_ended_once() -> None:
    desk = Desk(A)
    lease = desk.take()
    desk.pool.report(lease, OK)
    desk.pool.report(lease, DEAD)
    shown = desk.shown(A)
    assert (shown.state, shown.in_flight, shown.requests, shown.counts["ok"], shown.counts["key"]) == (
        "ready",
        0,
        1,
        1,
        0,
    )


# Projects


def test_a_learned_project_shares_its_rests() -> None:
    desk = Desk(A, B)
    desk.ask_each(Judgement(Verdict.CALLER, project="projects/7"), A, B)
    desk.ask_each(rest(30), A)
    assert desk.refused() == Wait(desk.clock.monotonic() + 30, "429")
    assert desk.pool.owners() == ["projects/7"]


def test_a_refusal_that_reveals_the_project_rests_all_its_keys() -> None:
    desk = Desk(A, Key("b", project="projects/7"))
    desk.ask_each(rest(30, project="projects/7"), A)
    assert isinstance(desk.refused(), Wait)


def test_rests_that_were_there_are_merged_and_the_longest_wins() -> None:
    desk = Desk(A, B)
    desk.ask_each(rest(30, reason="A's"), A)
    desk.ask_each(rest(20, reason="B's"), B)
    desk.ask_each(rest(50, reason="B's"), B, model="n")
    desk.ask_each(Judgement(Verdict.OK, project="p"), A, B, model="other")
    now = desk.clock.monotonic()
    for key in (A, B):
        assert desk.refused(owner=key.fingerprint) == Wait(now + 30, "A's")
        assert desk.refused("n", owner=key.fingerprint) == Wait(now + 50, "B's")


def test_a_key_that_turns_out_to_belong_to_a_resting_project_rests_at_once() -> None:
    desk = Desk(A, Key("b", project="p"))
    desk.ask_each(rest(30), Key("b", project="p"))
    assert desk.lent(2) == "aa"
    desk.ask(Judgement(Verdict.CALLER, project="p"))
    assert isinstance(desk.refused(), Wait)


def test_bindings_made_before_a_project_was_learned_keep_working() -> None:
    desk = Desk(A, Key("b"))
    owners = {letter: desk.pool.owner_of(Key(letter).fingerprint) for letter in "ab"}
    desk.ask_each(Judgement(Verdict.OK, project="p"), A, Key("b"))
    assert desk.pool.owner_of(A.fingerprint) == "p"
    assert {letter: desk.ask(owner=owner) for letter, owner in owners.items()} == {"a": "a", "b": "b"}
    assert sorted(desk.lent(2, owner="p")) == ["a", "b"]


def test_a_declared_project_wins_over_what_answers_say() -> None:
    desk = Desk(Key("a", project="mine"))
    desk.ask(Judgement(Verdict.OK, project="theirs"))
    assert desk.pool.owners() == ["mine"]
    assert desk.refused(owner="theirs") == NoKey(())


# Disabled keys and probes


@pytest.mark.parametrize("model", ["m", "n", None])
def test_a_disabled_key_is_lent_for_no_model(model: str | None) -> None:
    desk = Desk(A, B)
    desk.ask_each(DEAD, A)
    assert desk.lent(3, model, prefer=A.fingerprint) == "bbb"


def test_probes_come_due_once_after_an_hour_and_their_results_count() -> None:
    desk = Desk(A, B)
    desk.ask_each(DEAD, A)
    start = desk.clock.monotonic()
    assert desk.pool.next_probe() == start + 3600
    assert desk.pool.due_probes() == []
    desk.clock.advance(3600)
    assert desk.pool.due_probes() == [A]
    assert desk.pool.due_probes() == []
    assert desk.pool.next_probe() is None
    desk.pool.probe_result(A, DEAD)
    assert desk.pool.next_probe() == start + 3600 + 7200
    desk.clock.advance(7200)
    assert desk.pool.due_probes() == [A]
    desk.pool.probe_result(A, Judgement(Verdict.UPSTREAM, "503"))
    assert desk.pool.next_probe() == start + 3600 + 7200 + 7200
    desk.clock.advance(7200)
    assert desk.pool.due_probes() == [A]
    desk.pool.probe_result(A, OK)
    assert desk.pool.next_probe() is None
    assert sorted(desk.lent(2)) == ["a", "b"]


def test_a_key_can_be_disabled_for_what_is_known_and_is_not_probed_while_it_is_hopeless() -> None:
    desk = Desk(A, B)
    assert desk.pool.keys == (A, B)
    for _ in range(2):
        desk.pool.disable(A, Judgement(Verdict.KEY, "expired", Disable()))
    desk.pool.disable(C, DEAD)  # not of this pool
    assert desk.kinds() == ["disabled"]
    assert desk.shown(A).reason == "expired"
    assert desk.lent(3) == "bbb"
    desk.clock.advance(3600)
    assert desk.pool.due_probes(lambda key: key == A) == []
    assert desk.pool.due_probes(lambda key: key == B) == [A]


def test_a_key_disabled_again_after_a_good_probe_is_probed_after_an_hour_again() -> None:
    desk = Desk(A)
    for _ in range(2):
        desk.ask(DEAD)
        assert desk.pool.next_probe() == desk.clock.monotonic() + 3600
        desk.clock.advance(3600)
        desk.pool.due_probes()
        desk.pool.probe_result(A, OK)
    assert desk.kinds() == ["disabled", "enabled"] * 2


def test_late_refusals_of_a_disabled_key_change_nothing_but_an_alert_does() -> None:
    desk = Desk(A)
    leases = [desk.take() for _ in range(4)]
    desk.pool.report(leases[0], DEAD)
    desk.clock.advance(10)
    for lease, judgement in zip(leases[1:], (DEAD, LEAKED, LEAKED), strict=True):
        desk.pool.report(lease, judgement)
    assert [(event.reason, event.alert) for event in desk.events] == [("API_KEY_INVALID", False), ("leaked", True)]
    assert desk.pool.next_probe() == desk.clock.monotonic() - 10 + 3600


def test_a_late_success_does_not_revive_a_disabled_key() -> None:
    desk = Desk(A)
    late = desk.take()
    desk.ask(DEAD)
    desk.clock.advance(1)
    desk.pool.report(late, OK)
    assert isinstance(desk.refused(), NoKey)


def test_a_probe_result_of_a_key_that_is_not_disabled_or_gone_is_ignored() -> None:
    desk = Desk(A)
    desk.pool.probe_result(A, DEAD)
    desk.pool.probe_result(B, OK)
    assert desk.ask() == "a"
    assert desk.events == []


# Refusals of several keys


def test_three_keys_refused_alike_blame_nobody_and_the_pool_backs_off() -> None:
    desk = Desk(A, B, C, D)
    desk.ask_each(CORRELATED, A, B)
    assert desk.lent(2) in ("cd", "dc")
    desk = Desk(A, B, C, D)
    desk.ask_each(CORRELATED, A, B, C)
    now = desk.clock.monotonic()
    assert desk.refused() == Wait(now + 1, "backing off: 429")
    assert desk.refused("other", owner="d") == Wait(now + 1, "backing off: 429")
    snapshot = desk.pool.snapshot()
    assert (snapshot.backoff_reason, snapshot.backoff_until_wall) == ("429", desk.clock.wall() + 1)
    assert snapshot.states == States(4, 0, 0), "the pool keeps its keys"
    desk.clock.advance(1)
    assert desk.pool.snapshot().backoff_until_wall is None
    assert sorted(desk.lent(4)) == ["a", "b", "c", "d"]


def test_what_is_lifted_is_the_rest_of_the_correlated_refusals_alone() -> None:
    desk = Desk(A, B, C)
    desk.ask_each(rest(3, reason="before"), A, B)
    desk.clock.advance(3)
    desk.ask_each(rest(40, Scope.KEY_MODEL, "own fault"), A, model="n")
    desk.ask_each(rest(40, Scope.KEY_MODEL, "limit: 0"), B)
    in_flight = desk.take(owner="c")
    desk.ask_each(CORRELATED, A, model="n2")
    desk.pool.report(in_flight, CORRELATED)
    desk.ask_each(CORRELATED, B, model="n2")
    desk.clock.advance(1)
    assert desk.refused("n", owner="a") == Wait(desk.clock.monotonic() + 39, "own fault")
    assert desk.refused(owner="b") == Wait(desk.clock.monotonic() + 39, "limit: 0")
    assert sorted(desk.lent(3, "n2")) == ["a", "b", "c"]


def test_a_rest_that_something_else_confirms_is_not_lifted() -> None:
    desk = Desk(A, B, C)
    both = [desk.take(owner="a") for _ in range(2)]
    desk.pool.report(both[0], CORRELATED)
    desk.pool.report(both[1], rest(30, reason="429 per minute"))
    desk.ask_each(CORRELATED, B, C)
    desk.clock.advance(1)
    assert desk.refused(owner="a") == Wait(desk.clock.monotonic() + 29, "429 per minute")
    assert desk.ask(owner="b") == "b"


def test_a_rest_that_another_key_brings_into_the_project_is_not_lifted() -> None:
    desk = Desk(A, B, C, D)
    of_project = Judgement(Verdict.CALLER, "400", project="q")
    desk.ask_each(of_project, A)
    in_flight = desk.take(owner="b")
    desk.ask_each(rest(60, reason="429 per minute"), B)
    desk.ask_each(CORRELATED, A)
    desk.pool.report(in_flight, of_project)
    desk.ask_each(CORRELATED, C, D)
    assert desk.pool.snapshot().backoff_reason == "429"
    desk.clock.advance(1)
    assert desk.refused(owner="a") == Wait(desk.clock.monotonic() + 59, "429 per minute")
    assert sorted(desk.lent(2)) == ["c", "d"]


def test_a_rest_of_one_kind_of_refusal_is_not_lifted_with_those_of_another() -> None:
    desk = Desk(A, B)
    desk.ask_each(rest(0, correlates="503"), A)
    desk.ask_each(rest(5, correlates="429"), A)
    desk.ask_each(DOWN, B)
    assert desk.pool.snapshot().backoff_reason == "503"
    assert desk.refused(owner="a") == Wait(desk.clock.monotonic() + 5, "429")


def test_keys_disabled_by_correlated_refusals_are_enabled_again() -> None:
    desk = Desk(A, B, C)
    desk.ask_each(Judgement(Verdict.KEY, "blocked", Disable(), correlates="403"), A, B, C)
    desk.clock.advance(1)
    assert desk.lent(3) == "abc"


@pytest.mark.parametrize(
    ("count", "refusals", "backs_off"),
    [(1, 5, False), (2, 1, False), (2, 2, True), (3, 2, False), (3, 3, True), (10, 2, False), (10, 3, True)],
)
@pytest.mark.parametrize("judgement", [DOWN, CORRELATED])
def test_how_many_keys_it_takes(count: int, refusals: int, backs_off: bool, judgement: Judgement) -> None:
    desk = Desk(*(Key(str(number)) for number in range(count)))
    leases = [desk.take() for _ in range(refusals)]
    for lease in leases:
        desk.pool.report(lease, judgement)
    assert (desk.pool.snapshot().backoff_reason != "") is backs_off


def test_one_key_refused_often_is_one_witness() -> None:
    desk = Desk(A, B, C)
    for lease in [desk.take(owner="a") for _ in range(5)]:
        desk.pool.report(lease, DOWN)
    assert desk.pool.snapshot().backoff_reason == ""


def test_keys_of_one_project_refused_together_are_one_witness_against_their_quota() -> None:
    keys = [Key(letter, name=letter, project="p") for letter in "abc"]
    desk = Desk(*keys, D, E)
    for lease in [desk.take(owner="p") for _ in range(3)]:
        desk.pool.report(lease, CORRELATED)
    assert desk.pool.snapshot().backoff_reason == ""
    assert isinstance(desk.refused(owner="p"), Wait)
    for lease in [desk.take("other", owner="p") for _ in range(3)]:
        desk.pool.report(lease, DOWN)
    assert desk.pool.snapshot().backoff_reason == "503", "an upstream's failure is no matter of quota"


def test_different_kinds_do_not_add_up() -> None:
    desk = Desk(A, B, C)
    desk.ask_each(DOWN, A, B)
    desk.ask_each(CORRELATED, C)
    assert desk.pool.snapshot().backoff_reason == ""


@pytest.mark.parametrize(("gap", "backs_off"), [(5.0, True), (5.1, False)])
def test_refusals_count_together_for_ten_seconds(gap: float, backs_off: bool) -> None:
    desk = Desk(A, B, C)
    for key in (A, B, C):
        desk.clock.advance(gap)
        desk.ask_each(DOWN, key)
    assert (desk.pool.snapshot().backoff_reason != "") is backs_off


def test_a_success_in_between_clears_the_suspicion() -> None:
    desk = Desk(A, B, C, D)
    desk.ask_each(DOWN, A, B)
    desk.ask_each(OK, D)
    desk.ask_each(DOWN, C)
    assert desk.pool.snapshot().backoff_reason == ""


def test_the_end_of_a_long_stream_clears_no_suspicion() -> None:
    desk = Desk(A, B, C, D)
    stream = desk.take(owner="d")
    desk.clock.advance(60)
    desk.ask_each(DOWN, A, B)
    desk.pool.report(stream, OK)
    desk.ask_each(DOWN, C)
    assert desk.pool.snapshot().backoff_reason == "503"


def back_off(desk: Desk, judgement: Judgement = CORRELATED) -> None:
    desk.ask_each(judgement, A, B, C)


def test_a_backoff_doubles_to_a_minute_while_refusals_go_on() -> None:
    desk = Desk(A, B, C, D)
    back_off(desk)
    waits = []
    for _ in range(8):
        said = desk.refused()
        assert isinstance(said, Wait)
        assert said.until is not None
        waits.append(said.until - desk.clock.monotonic())
        desk.clock.advance(waits[-1])
        desk.ask(CORRELATED)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert desk.kinds() == ["rest", "rest"] + ["backoff"] * 9
    assert desk.pool.snapshot().states == States(4, 0, 0)


def test_refusals_that_were_on_their_way_when_it_began_neither_double_it_nor_rest_keys() -> None:
    desk = Desk(A, B, C, D)
    late = [desk.take(owner="d") for _ in range(3)]
    desk.clock.advance(0.1)
    back_off(desk)
    desk.clock.advance(0.1)
    for lease in late:
        desk.pool.report(lease, CORRELATED)
    assert desk.kinds().count("backoff") == 1
    assert desk.pool.snapshot().states == States(4, 0, 0)


def test_the_first_success_begun_after_it_ends_a_backoff() -> None:
    desk = Desk(A, B, C, D)
    older = desk.take()
    desk.clock.advance(0.1)
    back_off(desk)
    desk.pool.report(older, OK)
    assert isinstance(desk.refused(), Wait)
    desk.clock.advance(1)
    first, second = desk.take(), desk.take()
    desk.clock.advance(0.1)
    desk.pool.report(first, CORRELATED)
    assert isinstance(desk.refused(), Wait)
    desk.pool.report(second, OK)
    assert desk.ask()
    assert desk.kinds()[-1] == "backoff_over"
    desk.clock.advance(1)
    back_off(desk)
    assert desk.events[-1] == Event("backoff", seconds=1, reason="429"), "starts over"


def test_a_backoff_that_nothing_was_heard_of_for_a_minute_is_over() -> None:
    desk = Desk(A, B, C, D)
    back_off(desk)
    desk.clock.advance(62)
    desk.ask_each(CORRELATED, A)
    assert desk.pool.snapshot().backoff_reason == ""
    assert desk.ask() != "a"


def test_a_backoff_does_not_hide_that_every_key_is_dead_or_resting_longer() -> None:
    desk = Desk(A, B, C, D)
    desk.ask_each(DEAD, D)
    desk.ask_each(rest(30), A, model="n")
    back_off(desk, DOWN)
    assert desk.refused(owner="d") == NoKey(((D.fingerprint, "API_KEY_INVALID"),))
    assert desk.refused("n", owner="a") == Wait(desk.clock.monotonic() + 30, "429")


# Declared limits


@pytest.mark.parametrize(
    ("limits", "wait"),
    [({"rpm": 2}, 60), ({"rpd": 2}, 12 * 3600), ({"tpm": 20}, 60), ({"rpm": 2, "rpd": 2}, 12 * 3600)],
)
def test_a_key_is_not_lent_over_its_declared_limits(limits: dict[str, int], wait: float) -> None:
    limited = Key("a", **limits)  # type: ignore[arg-type]
    desk = Desk(limited, B)
    assert desk.lent(6, tokens=10) == "ababbb"
    said = desk.refused(owner=limited.fingerprint, tokens=10)
    assert isinstance(said, Wait)
    assert said.until is not None
    assert said.until - desk.clock.monotonic() == pytest.approx(wait, abs=0.01)
    assert desk.shown(limited).state == "resting"
    assert desk.lent(1, prefer=limited.fingerprint, tokens=10) == "b"
    desk.clock.advance(said.until - desk.clock.monotonic())
    assert desk.shown(limited).state == "ready"
    assert Counter(desk.lent(4, tokens=10))["a"] == 2


def test_a_rest_and_a_limit_hold_until_the_later_of_the_two() -> None:
    desk = Desk(Key("a", rpm=1))
    desk.ask(rest(30))
    assert desk.refused() == Wait(desk.clock.monotonic() + 60, "rpm limit")
    desk = Desk(Key("a", rpm=1))
    desk.ask(rest(90))
    assert desk.refused() == Wait(desk.clock.monotonic() + 90, "429")


def test_a_request_that_does_not_fit_beside_the_others_goes_to_a_key_where_it_does() -> None:
    desk = Desk(Key("a", tpm=100), Key("b", tpm=1000))
    assert [desk.ask(tokens=60) for _ in range(4)] == list("abbb")
    assert [desk.ask(tokens=30) for _ in range(2)] == list("ab")


def test_a_wait_for_tokens_holds_for_that_many_tokens() -> None:
    desk = Desk(Key("a", tpm=100))
    desk.ask(tokens=60)
    assert desk.refused(tokens=60) == Wait(desk.clock.monotonic() + 60, "tpm limit")
    assert desk.ask(tokens=40) == "a"


def test_a_corrected_estimate_makes_room_at_once() -> None:
    desk = Desk(Key("a", tpm=100))
    lease = desk.take(tokens=100)
    calls: list[int] = []
    desk.pool.subscribe(lambda: calls.append(1))
    assert isinstance(desk.refused(tokens=10), Wait)
    desk.pool.report(lease, OK, tokens=20)
    assert calls
    assert desk.ask(tokens=80) == "a"
    assert isinstance(desk.refused(tokens=1), Wait)


def test_a_report_without_tokens_lets_the_estimate_stand() -> None:
    desk = Desk(Key("a", tpm=100))
    desk.ask(tokens=100)
    assert isinstance(desk.refused(tokens=1), Wait)


def test_concurrency_is_waited_out_by_the_end_of_a_request() -> None:
    desk = Desk(Key("a", concurrency=2))
    first, second = desk.take(), desk.take()
    assert desk.refused() == Wait(None, "concurrency limit")
    calls: list[int] = []
    desk.pool.subscribe(lambda: calls.append(1))
    desk.pool.report(first, OK)
    assert len(calls) == 1
    third = desk.take()
    assert isinstance(desk.refused(), Wait)
    for lease in (second, third):
        desk.pool.report(lease, GONE)
    assert desk.shown(Key("a")).in_flight == 0


def test_a_resting_key_is_back_by_itself_though_another_is_full() -> None:
    desk = Desk(Key("a", concurrency=1), B)
    desk.take(owner=Key("a").fingerprint)
    desk.ask_each(rest(30), B)
    assert desk.refused() == Wait(desk.clock.monotonic() + 30, "429")


def test_a_day_limit_follows_a_wall_clock_that_is_set() -> None:
    desk = Desk(Key("a", rpd=1))
    desk.ask()
    assert isinstance(desk.refused(), Wait)
    desk.clock.jump(12 * 3600)
    assert desk.ask() == "a"


def test_a_wall_clock_that_runs_a_little_fast_makes_no_wait_that_is_over_already() -> None:
    desk = Desk(Key("a", rpd=1))
    desk.ask()
    said = desk.refused()
    assert isinstance(said, Wait)
    assert said.until is not None
    desk.clock.advance(said.until - desk.clock.monotonic() - 0.3)
    desk.clock.jump(0.5)
    again = desk.refused()
    assert isinstance(again, Wait)
    assert again.until == said.until
    desk.clock.advance(0.3001)
    assert desk.ask() == "a"


# Calls without a model


def test_a_call_without_a_model_prefers_keys_that_rest_for_no_model() -> None:
    desk = Desk(A, B, C)
    desk.ask_each(rest(30), A)
    assert desk.lent(4, None) in ("bcbc", "cbcb")
    assert desk.ask(OK, None, prefer=A.fingerprint) != "a"
    desk.clock.advance(30)
    assert Counter(desk.lent(3, None)) == {"a": 1, "b": 1, "c": 1}


def test_a_call_without_a_model_takes_a_key_that_rests_for_some_if_there_is_no_other() -> None:
    desk = Desk(A, Key("b", concurrency=1))
    desk.ask_each(rest(30), A)
    assert desk.take(None).key.secret == "b"
    assert desk.ask(OK, None) == "a"
    assert desk.ask(OK, None, owner="a") == "a"
    desk.ask_each(rest(30), A, model=None)
    assert isinstance(desk.refused(None, owner="a"), Wait)


# Subscriptions


@pytest.mark.parametrize(
    ("act", "calls"),
    [
        (lambda desk: desk.pool.report(desk.take(), OK), 0),
        (lambda desk: desk.ask(rest(30)), 0),
        (lambda desk: desk.ask(DEAD), 0),
        (lambda desk: desk.pool.replace([B]), 1),
        (lambda desk: (desk.ask_each(DEAD, A), desk.pool.probe_result(A, OK)), 1),
        (lambda desk: desk.ask_each(DOWN, A, B, C), 1),
    ],
    ids=["success", "rest", "disabled", "replace", "enabled", "backoff lifts rests"],
)
def test_subscribers_hear_of_what_may_be_ready_earlier_and_of_nothing_else(
    act: Callable[[Desk], object], calls: int
) -> None:
    desk = Desk(A, B, C)
    heard: list[int] = []
    desk.pool.subscribe(lambda: heard.append(1))
    act(desk)
    assert len(heard) == calls


def test_an_unsubscribed_callback_hears_nothing_and_may_leave_twice() -> None:
    desk = Desk(A)
    heard: list[str] = []

    def callback() -> None:
        heard.append("x")

    first, _second = desk.pool.subscribe(callback), desk.pool.subscribe(callback)
    first()
    first()
    desk.pool.replace([A])
    assert heard == ["x"]


def test_a_subscriber_may_unsubscribe_and_lease_from_within() -> None:
    desk = Desk(A)
    leases: list[object] = []

    def callback() -> None:
        unsubscribe()
        leases.append(desk.pool.lease("m"))

    unsubscribe = desk.pool.subscribe(callback)
    desk.pool.replace([A, B])
    assert [type(lease) for lease in leases] == [Lease]


# Events


def test_each_change_of_state_is_told_once() -> None:
    desk = Desk(A)
    leases = [desk.take() for _ in range(4)]
    desk.pool.report(leases[0], rest(30, reason="429 per minute"))
    desk.pool.report(leases[1], rest(30, reason="429 per minute"))
    desk.pool.report(leases[2], DAY)
    desk.pool.report(leases[3], rest(5))
    assert desk.events == [
        Event("rest", A.fingerprint, "m", 30, "429 per minute"),
        Event("rest", A.fingerprint, "m", 12 * 3600, "429 per day"),
    ]


def test_a_rest_of_every_model_names_none() -> None:
    desk = Desk(A)
    desk.ask(rest(30, Scope.PROJECT))
    assert desk.events == [Event("rest", A.fingerprint, None, 30, "429")]
    assert [each.model for each in desk.shown(A).models] == ["*"]


# Reload


def test_a_reload_keeps_the_state_of_keys_that_stay() -> None:
    desk = Desk(A, B, C)
    in_flight = desk.take(owner="b")
    desk.ask_each(rest(30), A)
    desk.ask_each(DEAD, C)
    desk.ask_each(Judgement(Verdict.OK, project="p"), B)
    desk.pool.replace([D, C, B, A])
    assert [(each.name, each.state) for each in desk.pool.snapshot().keys] == [
        ("d", "ready"),
        ("c", "disabled"),
        ("b", "ready"),
        ("a", "resting"),
    ]
    assert (desk.shown(B).in_flight, desk.pool.owner_of(B.fingerprint)) == (1, "p")
    desk.pool.report(in_flight, OK)
    assert desk.shown(B).in_flight == 0


def test_leases_of_a_removed_key_are_reported_harmlessly_even_when_it_came_back() -> None:
    desk = Desk(A, B)
    outstanding = [desk.take(owner="a") for _ in range(2)]
    desk.pool.replace([B])
    desk.pool.report(outstanding[0], rest(30))
    assert desk.refused(owner="a") == NoKey(())
    desk.pool.replace([A, B])
    desk.pool.report(outstanding[1], DEAD)
    shown = desk.shown(A)
    assert (shown.state, shown.in_flight, shown.counts["key"]) == ("ready", 0, 0)
    assert desk.events == []


def test_the_rotation_goes_on_over_a_reload() -> None:
    desk = Desk(A, B, C)
    assert desk.lent(1) == "a"
    desk.pool.replace([E, A, C, D])
    assert desk.lent(4) == "cdea"


def test_a_reload_changes_limits_projects_and_weights() -> None:
    desk = Desk(A, B)
    desk.ask_each(rest(30), A)
    desk.pool.replace([Key("a", project="p"), Key("b", project="p", rpm=2), Key("c", weight=2)])
    assert desk.lent(3) == "ccc", "the rest is the project's now"
    desk.clock.advance(30)
    assert Counter(desk.lent(4)) == {"a": 1, "b": 1, "c": 2}
    desk.pool.replace([Key("b", rpm=1)])
    assert isinstance(desk.refused(), Wait)
    desk.pool.replace([Key("b")])
    assert desk.ask() == "b"


def test_a_project_that_is_no_longer_declared_is_left_with_its_rests() -> None:
    desk = Desk(Key("a", project="p"), Key("b", project="p"))
    desk.ask_each(rest(30), Key("a"))
    desk.pool.replace([Key("a"), Key("b", project="p")])
    assert isinstance(desk.refused(), Wait)
    desk.clock.advance(30)
    desk.ask_each(rest(30), Key("a"))
    assert desk.lent(2) == "bb"


def test_a_pool_may_lose_all_its_keys_and_get_new_ones() -> None:
    desk = Desk(A)
    desk.pool.replace([])
    assert desk.refused() == NoKey(())
    desk.pool.replace([B])
    assert desk.lent(2) == "bb"


# Looking on


def test_the_snapshot_shows_everything_but_the_secret() -> None:
    key = Key("s3cr3t-value", name="main", project="p")
    desk = Desk(key, B, C)
    desk.ask_each(rest(30), key)
    desk.ask_each(DAY, key, model="n")
    desk.ask_each(DEAD, B)
    desk.take(owner="c")
    snapshot = desk.pool.snapshot()
    wall, now = desk.clock.wall(), desk.clock.monotonic()
    shown = snapshot.keys[0]
    assert (shown.fingerprint, shown.name, shown.project, shown.owner) == (key.fingerprint, "main", "p", "p")
    assert (shown.state, shown.reason, shown.until, shown.until_wall) == (
        "resting",
        "429 per day",
        now + 12 * 3600,
        wall + 12 * 3600,
    )
    assert [(each.model, each.until_wall, each.reason) for each in shown.models] == [
        ("m", wall + 30, "429"),
        ("n", wall + 12 * 3600, "429 per day"),
    ]
    assert (shown.requests, shown.counts["key"], shown.next_probe_wall) == (2, 2, None)
    assert (snapshot.keys[1].state, snapshot.keys[1].reason) == ("disabled", "API_KEY_INVALID")
    assert snapshot.keys[1].next_probe_wall == wall + 3600
    assert (snapshot.keys[2].state, snapshot.keys[2].in_flight) == ("ready", 1)
    assert (snapshot.upstream, snapshot.in_flight, snapshot.requests, snapshot.counts["key"]) == ("gemini", 1, 4, 3)
    assert snapshot.states == desk.pool.states() == States(1, 1, 1)
    assert "s3cr3t" not in repr(snapshot)
    assert "s3cr3t" not in repr(desk.take("x", owner="main"))


def test_keys_are_found_by_fingerprint() -> None:
    pool = Desk(A).pool
    assert pool.key(A.fingerprint) is A
    assert pool.key(B.fingerprint) is None


def test_models_and_owners_named_by_clients_do_not_fill_the_memory() -> None:
    desk, dice = Desk(A, B), random.Random(7)
    for number in range(3000):
        desk.pool.lease(f"model-{number}", owner=f"owner-{number}")
        said = desk.pool.lease(f"model-{number}")
        if isinstance(said, Lease):
            desk.pool.report(said, rest(dice.random() * 100))
        desk.clock.advance(0.2)
    assert len(desk.pool._rings) <= 512
    assert len(desk.pool._rested) <= 1024
    assert all(len(slot.project.rests.by_model) <= 128 for slot in desk.pool._roster.slots.values())
