"""The state tables of balancer/keypool/cooldown.py, row by row."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from balancer.keypool.cooldown import (
    ESCALATION_MEMORY,
    EVERY,
    FIRST_PROBE,
    LAST_PROBE,
    MAX_MODELS,
    Cooldown,
    Rests,
    disabled,
)
from balancer.model import OK, Disable, Judgement, Rest, Scope, Verdict

WALL = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()  # five in the morning in Los Angeles
TO_MIDNIGHT = 19 * 3600.0
ESCALATING = Rest(Scope.PROJECT_MODEL)
TODAY = Rest(Scope.PROJECT_MODEL, until_quota_day=True)
REFUSED = Judgement(Verdict.KEY, "API_KEY_INVALID", Disable())


def seconds(length: float) -> Rest:
    return Rest(Scope.PROJECT_MODEL, seconds=length)


def refuse(cooldown: Cooldown, rest: Rest, now: float, *, begun: float | None = None, reason: str = "429") -> bool:
    """The wall clock shows WALL at 100."""
    return cooldown.refuse(rest, reason, begun=now if begun is None else begun, now=now, wall=WALL + now - 100)


@pytest.mark.parametrize(
    ("rests", "until"),
    [
        ([(seconds(30), 100)], 130),
        ([(seconds(30), 100), (seconds(10), 101)], 130),
        ([(seconds(10), 100), (seconds(30), 101)], 131),
        ([(seconds(0), 100)], 100),
        ([(ESCALATING, 100)], 105),
        ([(TODAY, 100)], 100 + TO_MIDNIGHT),
        ([(TODAY, 100), (seconds(30), 101)], 100 + TO_MIDNIGHT),
        ([(seconds(86400), 100), (TODAY, 101)], 100 + 86400),
        ([(seconds(30), 100), (ESCALATING, 101)], 130),
    ],
)
def test_a_shorter_rest_never_shortens_a_longer_one(rests: list[tuple[Rest, float]], until: float) -> None:
    cooldown = Cooldown()
    for rest, now in rests:
        refuse(cooldown, rest, now)
    assert cooldown.until == until


@pytest.mark.parametrize(
    ("rest", "lengths"),
    [
        (ESCALATING, [5, 10, 20, 40, 80, 160, 300, 300]),
        (Rest(Scope.PROJECT_MODEL, first=1, cap=3), [1, 2, 3, 3]),
        (Rest(Scope.PROJECT_MODEL, first=10, cap=4), [4, 4]),
    ],
)
def test_refusals_in_a_row_double_the_rest_up_to_its_cap(rest: Rest, lengths: list[float]) -> None:
    cooldown, now, seen = Cooldown(), 100.0, []
    for _ in lengths:
        refuse(cooldown, rest, now)
        seen.append(cooldown.until - now)
        now = cooldown.until + 1
    assert seen == lengths


def test_a_thousand_refusals_in_a_row_overflow_nothing() -> None:
    cooldown, now = Cooldown(), 0.0
    for _ in range(2000):
        refuse(cooldown, ESCALATING, now)
        now = cooldown.until + 1
    assert now - cooldown.since == 301


def test_requests_that_were_on_their_way_together_are_one_refusal() -> None:
    cooldown = Cooldown()
    for answered in (101, 102, 103):
        refuse(cooldown, ESCALATING, answered, begun=100)
    assert cooldown.step == 1
    assert cooldown.until == 103 + 5


def test_a_refusal_is_news_only_when_it_changes_the_state() -> None:
    cooldown = Cooldown()
    assert refuse(cooldown, seconds(30), 100)
    assert not refuse(cooldown, seconds(30), 101), "longer by a second for the same reason"
    assert not refuse(cooldown, seconds(1), 102, reason="other"), "shorter"
    assert refuse(cooldown, TODAY, 103, reason="429 per day")
    assert cooldown.reason == "429 per day"
    assert not refuse(cooldown, seconds(1), 104, reason="429 per minute")
    assert cooldown.reason == "429 per day"


def test_the_same_reason_is_news_again_after_the_rest() -> None:
    cooldown = Cooldown()
    assert refuse(cooldown, seconds(30), 100)
    assert refuse(cooldown, seconds(30), 130)


@pytest.mark.parametrize(
    ("jump", "until"),
    [
        (3600, 100 + TO_MIDNIGHT - 3600),
        (-3600, 100 + TO_MIDNIGHT + 3600),
        (TO_MIDNIGHT, 100),
        (TO_MIDNIGHT + 5000, 100),
        (-20 * 86400, 100 + TO_MIDNIGHT),
    ],
    ids=["forward", "back", "to midnight", "past midnight", "to another day: not beyond the next midnight"],
)
def test_a_rest_for_the_quota_day_ends_by_the_wall_clock(jump: float, until: float) -> None:
    cooldown = Cooldown()
    refuse(cooldown, TODAY, 100)
    cooldown.retime(100, WALL + jump)
    assert max(cooldown.until, 100) == until


def test_a_jump_of_the_wall_clock_leaves_a_rest_in_seconds_alone() -> None:
    cooldown = Cooldown()
    refuse(cooldown, seconds(30), 1000)
    cooldown.retime(1001, WALL + 1e6)
    assert cooldown.until == 1030


def test_a_success_ends_the_rest_and_the_escalation() -> None:
    rests = Rests()
    rests.refuse("m", ESCALATING, "429", begun=99, now=100, wall=WALL)
    assert not rests.succeed("m", begun=106, now=107), "the rest was over already"
    rests.refuse("m", ESCALATING, "429", begun=108, now=110, wall=WALL)
    assert rests.until("m") == 115


@pytest.mark.parametrize(("begun", "ends"), [(99, False), (100, False), (101, True)])
def test_a_success_ends_only_a_rest_that_is_older_than_its_lease(begun: float, ends: bool) -> None:
    rests = Rests()
    rests.refuse("m", seconds(30), "429", begun=99, now=100, wall=WALL)
    assert rests.succeed("m", begun=begun, now=102) is ends
    assert (rests.until("m") == 0) is ends


def test_rests_of_different_models_are_apart_and_no_name_means_every_model() -> None:
    rests = Rests()
    for model in ("a", None, EVERY):
        rests.refuse(model, seconds(30), "429", begun=0, now=100, wall=WALL)
    assert [rests.until(model) for model in ("a", None, EVERY, "b", "*")] == [130, 130, 130, 0, 0]


def test_merging_takes_the_longer_of_each_two_rests() -> None:
    mine, theirs = Rests(), Rests()
    for rests, model, length in (
        (mine, "a", 10),
        (theirs, "a", 20),
        (mine, "b", 20),
        (theirs, "b", 10),
        (theirs, "c", 5),
    ):
        rests.refuse(model, seconds(length), f"{length} s", begun=0, now=100, wall=WALL)
    mine.merge(theirs, 101)
    assert {model: (each.until, each.reason) for model, each in mine.resting(101)} == {
        "a": (120, "20 s"),
        "b": (120, "20 s"),
        "c": (105, "5 s"),
    }
    mine.by_model["c"].until = 0
    assert theirs.until("c") == 105, "a copy"


def test_what_was_laid_can_be_taken_back() -> None:
    rests = Rests()
    for model in ("new", "longer"):
        if model == "longer":
            rests.refuse(model, seconds(10), "before", begun=0, now=100, wall=WALL)
        saved = rests.saved(model)
        rests.refuse(model, ESCALATING, "after", begun=0, now=107, wall=WALL)
        rests.restore(model, saved)
    assert rests.until("new") == 0
    assert (rests.until("longer"), rests.by_model["longer"].step) == (110, 0)


def test_models_named_by_clients_do_not_fill_the_memory() -> None:
    rests = Rests()
    for number in range(10 * MAX_MODELS):
        rests.refuse(f"model-{number}", seconds(1000), "429", begun=0, now=number, wall=WALL)
    assert len(rests.by_model) == MAX_MODELS
    assert rests.until(f"model-{10 * MAX_MODELS - 1}") > 0
    rests.refuse("later", seconds(1), "429", begun=0, now=1e6, wall=WALL)
    assert list(rests.by_model) == ["later"]


def test_an_escalation_is_remembered_past_its_rest_and_then_forgotten() -> None:
    rests = Rests()
    rests.refuse("m", ESCALATING, "429", begun=0, now=100, wall=WALL)
    rests.refuse("x", seconds(10), "429", begun=0, now=105 + ESCALATION_MEMORY - 1, wall=WALL)
    assert "m" in rests.by_model
    rests.refuse("y", seconds(1), "429", begun=0, now=105 + ESCALATION_MEMORY, wall=WALL)
    assert list(rests.by_model) == ["x", "y"]


def test_a_disabled_key_is_probed_after_an_hour_then_at_doubled_delays_up_to_a_day() -> None:
    state, now, delays = disabled(REFUSED, 0), 0.0, []
    for _ in range(7):
        delays.append(state.next_probe - now)
        assert not state.due(state.next_probe - 1)
        assert state.due(state.next_probe)
        now = state.next_probe
        assert not state.probed(REFUSED, now)
    assert delays == [3600 * hours for hours in (1, 2, 4, 8, 16, 24, 24)]
    assert (FIRST_PROBE, LAST_PROBE) == (3600, 86400)


@pytest.mark.parametrize(
    ("judgement", "alive", "delay", "reason"),
    [
        (OK, True, None, None),
        (Judgement(Verdict.KEY, "suspended", Disable(alert=True)), False, 7200, "suspended"),
        (Judgement(Verdict.KEY, "429 per day", TODAY), False, 7200, "429 per day"),
        (Judgement(Verdict.UPSTREAM, "503"), False, 3600, "API_KEY_INVALID"),
        (Judgement(Verdict.CALLER, "404"), False, 3600, "API_KEY_INVALID"),
        (Judgement(Verdict.GONE), False, 3600, "API_KEY_INVALID"),
    ],
)
def test_what_a_probe_does_to_a_disabled_key(
    judgement: Judgement, alive: bool, delay: float | None, reason: str | None
) -> None:
    state = disabled(REFUSED, 0)
    state.probing = True
    assert state.probed(judgement, 4000) is alive
    if not alive:
        assert (state.next_probe - 4000, state.reason, state.probing) == (delay, reason, False)
