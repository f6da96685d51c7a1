"""The steps of a turn: what is done next after each outcome, for each sort of session."""

from __future__ import annotations

import pytest

from balancer.errors import (
    AnswerBroken,
    AnswerLost,
    AnswerStalled,
    ConnectFailed,
    FirstByteTimeout,
    ProxyError,
    UpstreamError,
)
from balancer.model import OK, Disable, Judgement, Verdict
from balancer.upstreams.conversing import Finding, Trouble
from balancer.upstreams.turns import (
    Answered,
    Failed,
    Forget,
    Known,
    Made,
    Make,
    Orphaned,
    Outcome,
    Plan,
    Resting,
    Say,
    Step,
    steps,
)

OLD, NEW, NEWER = Known("1", "alice"), Known("2", "bob"), Known("3", "carol")
MISSING = ProxyError(404, "session_not_found", "对话不存在: 1")
EXPLICIT = Plan(MISSING, OLD)
DERIVED = Plan(MISSING, OLD, renews=True)
UNMADE = Plan(MISSING, renews=True)
FRESH = Plan(MISSING, renews=True, fresh=True)
UNBOUND = Plan(MISSING, id="1", accounts=("alice", "bob", "carol"))

ERROR = ProxyError(502, "backend_error", "后端错误(500): no")
GONE = ProxyError(503, "no_usable_key", "No usable key.")


def failed(verdict: Verdict, trouble: Trouble | None = None, *, refused: bool = False) -> Failed:
    judgement = Judgement(verdict, "", Disable()) if verdict is Verdict.KEY else Judgement(verdict)
    return Failed(Finding(judgement, trouble, refused=refused), ERROR)


STALE = failed(Verdict.OK, Trouble.STALE, refused=True)
KEY = failed(Verdict.KEY)
CALLER = failed(Verdict.CALLER)
BROKEN = failed(Verdict.UPSTREAM)
REFUSED = failed(Verdict.UPSTREAM, refused=True)
DIAL = Failed(ConnectFailed("x"), ERROR)
LOST = Failed(AnswerLost("x"), ERROR)
LATE = Failed(FirstByteTimeout("x"), ERROR)
STALLED = Failed(AnswerStalled("x"), ERROR)
ORPHANED = Orphaned(GONE)
DONE = Answered()


def run(plan: Plan, *outcomes: Outcome) -> tuple[list[Step], ProxyError | None]:
    """The steps that were asked for while these outcomes were told, and how it ended. Every outcome must be used."""
    way = steps(plan)
    told = iter(outcomes)
    asked: list[Step] = []
    ended: ProxyError | None = None
    try:
        step = next(way)
        while True:
            asked.append(step)
            step = way.send(None if isinstance(step, Forget) else next(told))
    except StopIteration:
        pass
    except ProxyError as error:
        ended = error
    assert not list(told)
    return asked, ended


def test_a_known_session_is_spoken_to_at_once_and_not_for_the_first_time() -> None:
    for plan in (EXPLICIT, DERIVED):
        assert run(plan, DONE) == ([Say(OLD)], None)


def test_a_session_is_made_before_anything_is_said_in_it() -> None:
    for plan in (UNMADE, FRESH):
        assert run(plan, Made(NEW), DONE) == ([Make(), Say(NEW, first=True)], None)


def test_who_gets_another_request_s_new_session_does_not_open_it() -> None:
    assert run(UNMADE, Made(NEW, first=False), DONE) == ([Make(), Say(NEW)], None)


def test_a_stale_explicit_session_is_forgotten_and_never_replaced() -> None:
    assert run(EXPLICIT, STALE) == ([Say(OLD), Forget(OLD)], MISSING)


def test_a_stale_derived_session_is_replaced_once() -> None:
    renewed = [Say(OLD), Forget(OLD), Make(), Say(NEW, first=True)]
    assert run(DERIVED, STALE, Made(NEW), DONE) == (renewed, None)
    assert run(DERIVED, STALE, Made(NEW), STALE) == ([*renewed, Forget(NEW)], ERROR)


def test_a_session_whose_account_has_no_key_is_replaced_if_it_may_be() -> None:
    assert run(DERIVED, ORPHANED, Made(NEW), DONE)[1] is None
    assert run(DERIVED, ORPHANED, Made(NEW), ORPHANED)[1] is GONE
    assert run(EXPLICIT, ORPHANED) == ([Say(OLD)], GONE)


def test_a_key_s_fault_moves_a_known_session_to_another_key_of_its_account() -> None:
    for plan in (EXPLICIT, DERIVED):
        assert run(plan, KEY, KEY, KEY, KEY, KEY, DONE) == ([Say(OLD)] * 6, None)


def test_a_key_s_fault_moves_a_fresh_request_to_a_new_session_on_any_key() -> None:
    expected = [Make(), Say(NEW, first=True), Make(), Say(NEWER, first=True)]
    assert run(FRESH, Made(NEW), KEY, Made(NEWER), DONE) == (expected, None)


def test_a_new_derived_session_whose_only_key_dies_is_made_anew_elsewhere() -> None:
    asked, ended = run(UNMADE, Made(NEW), KEY, ORPHANED, Made(NEWER), DONE)
    assert asked == [
        Make(),
        Say(NEW, first=True),
        Say(NEW, first=True),
        Forget(NEW),
        Make(),
        Say(NEWER, first=True),
    ]
    assert ended is None


def test_connecting_is_tried_as_often_as_is_allowed_and_no_more() -> None:
    assert run(EXPLICIT, DIAL, DIAL, DIAL, DONE) == ([Say(OLD)] * 4, None)
    assert run(EXPLICIT, DIAL, DIAL, DIAL, DIAL) == ([Say(OLD)] * 4, ERROR)
    assert run(UNBOUND, DIAL, DIAL, DIAL, DIAL)[1] is ERROR


@pytest.mark.parametrize("outcome", [BROKEN, LOST, REFUSED, LATE, CALLER])
@pytest.mark.parametrize("plan", [EXPLICIT, DERIVED])
def test_what_may_stand_in_a_session_already_is_not_sent_again(plan: Plan, outcome: Outcome) -> None:
    assert run(plan, outcome) == ([Say(OLD)], ERROR)


@pytest.mark.parametrize("outcome", [BROKEN, LOST, Failed(AnswerBroken("x"), ERROR)])
def test_a_fresh_request_that_was_lost_is_repeated_once_in_a_new_session(outcome: Outcome) -> None:
    expected = [Make(), Say(NEW, first=True), Make(), Say(NEWER, first=True)]
    assert run(FRESH, Made(NEW), outcome, Made(NEWER), DONE) == (expected, None)
    assert run(FRESH, Made(NEW), outcome, Made(NEWER), outcome) == (expected, ERROR)


@pytest.mark.parametrize("outcome", [REFUSED, LATE, STALLED, CALLER])
def test_a_fresh_request_that_was_refused_or_took_too_long_is_not_repeated(outcome: Outcome) -> None:
    assert run(FRESH, Made(NEW), outcome) == ([Make(), Say(NEW, first=True)], ERROR)


# explicit sessions that nobody here has met


def asked(*owners: str) -> list[Step]:
    return [Say(Known("1", owner), asks=True) for owner in owners]


def test_each_account_is_asked_until_one_knows_the_session() -> None:
    assert run(UNBOUND, STALE, STALE, DONE) == (asked("alice", "bob", "carol"), None)
    assert run(UNBOUND, STALE, DONE) == (asked("alice", "bob"), None)


def test_a_session_that_no_account_knows_does_not_exist() -> None:
    assert run(UNBOUND, STALE, STALE, STALE) == (asked("alice", "bob", "carol"), MISSING)


def test_a_session_that_no_account_knows_is_replaced_if_it_may_be() -> None:
    renewing = Plan(MISSING, id="1", accounts=("alice", "bob"), renews=True)
    new = [Make(), Say(NEW, first=True)]
    assert run(renewing, STALE, STALE, Made(NEW), DONE) == (asked("alice", "bob") + new, None)


def test_an_account_that_rests_may_be_the_one() -> None:
    steps_asked, ended = run(UNBOUND, Resting(30.0), STALE, Resting(12.5))
    assert steps_asked == asked("alice", "bob", "carol")
    assert ended is not None
    assert (ended.status, ended.code, ended.retry_after) == (429, "keys_resting", 12.5)
    again = run(UNBOUND, Resting(12.5), Resting(30.0), STALE)[1]
    assert again is not None
    assert again.retry_after == 12.5
    assert run(UNBOUND, Resting(30.0), DONE)[1] is None


def test_an_account_without_a_living_key_is_passed_over() -> None:
    assert run(UNBOUND, KEY, ORPHANED, STALE, STALE) == (asked("alice", "alice", "bob", "carol"), MISSING)


def test_where_no_account_has_a_living_key_nobody_could_say_that_there_is_no_such_session() -> None:
    assert run(UNBOUND, ORPHANED, ORPHANED, ORPHANED) == (asked("alice", "bob", "carol"), GONE)


@pytest.mark.parametrize("outcome", [BROKEN, LOST, REFUSED, LATE, CALLER])
def test_a_search_ends_where_the_message_may_have_been_taken(outcome: Outcome) -> None:
    assert run(UNBOUND, STALE, outcome) == (asked("alice", "bob"), ERROR)


def test_an_outcome_that_is_none_of_its_step_is_a_mistake_and_is_told() -> None:
    for plan in (EXPLICIT, UNBOUND):
        with pytest.raises(AssertionError):
            run(plan, Made(NEW))


def test_the_rows_cover_every_failure_of_a_transport() -> None:
    causes: set[type[UpstreamError]] = {ConnectFailed, AnswerLost, AnswerBroken, FirstByteTimeout}
    for cause in causes:
        assert run(EXPLICIT, *([Failed(cause("x"), ERROR)] * (4 if cause is ConnectFailed else 1)))[1] is ERROR
    assert Finding(OK).refused is False
