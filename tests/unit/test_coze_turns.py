"""What is done next in a turn with Coze: a row for each line of the table, driven without any network."""

from __future__ import annotations

import json

import pytest

from balancer.errors import (
    AnswerCut,
    AnswerLost,
    AnswerStalled,
    ConnectFailed,
    FirstByteTimeout,
    ProxyError,
    UpstreamError,
)
from balancer.upstreams.conversing import Finding
from balancer.upstreams.coze import CozeKind
from balancer.upstreams.coze_turns import Chat, Knows, LookUp, Outcome, Pause, Plan, Step, steps
from balancer.upstreams.turns import Answered, Failed, Forget, Known, Orphaned, Resting
from tests.fakes import FakeClock

KIND = CozeKind("coze", "https://h", {}, {"coze": "1"}, "u", FakeClock())
MISSING = ProxyError(404, "session_not_found", "missing")
ERROR = ProxyError(500, "coze", "no")
A, B = Known("70000000001", "a"), Known("70000000001", "b")
ANSWERED = Answered()
ORPHANED = Orphaned(ProxyError(503, "no_usable_key", "none"))


def failed(cause: int | UpstreamError) -> Failed:
    found: Finding | UpstreamError
    found = KIND.find(200, (), json.dumps({"code": cause}).encode()) if isinstance(cause, int) else cause
    return Failed(found, ERROR)


STALE, BUSY, DEAD, SETTING, BROKEN, LOADED = map(failed, (4200, 4016, 4100, 4006, 5000, 4009))
LOST, UNREACHED = failed(AnswerLost("lost")), failed(ConnectFailed("refused"))


def drive(plan: Plan, outcomes: list[Outcome]) -> tuple[list[Step], ProxyError | None]:
    """The steps of a turn in which these are the outcomes, of pauses and forgetting aside; and the error that it ends with."""
    taken: list[Step] = []
    way, outcome = steps(plan), None
    left = iter(outcomes)
    try:
        while True:
            step = way.send(outcome)
            taken.append(step)
            outcome = None if isinstance(step, Pause | Forget) else next(left)
    except StopIteration:
        assert next(left, None) is None
        return taken, None
    except ProxyError as error:
        assert next(left, None) is None
        return taken, error


FRESH = Plan(MISSING)
BOUND = Plan(MISSING, A, renews=True)
NAMED = Plan(MISSING, A)
UNMET = Plan(MISSING, unmet=A.id, owners=("a", "b"))
ANEW = [Forget(A), Chat(None)]


@pytest.mark.parametrize(
    ("plan", "outcomes", "expected", "error"),
    [
        (FRESH, [ANSWERED], [Chat(None)], None),
        (BOUND, [ANSWERED], [Chat(A)], None),
        # the caller's fault
        (FRESH, [SETTING], [Chat(None)], ERROR),
        (BOUND, [SETTING], [Chat(A)], ERROR),
        # no connection
        (FRESH, [UNREACHED] * 3 + [ANSWERED], [Chat(None)] * 4, None),
        (BOUND, [UNREACHED] * 4, [Chat(A)] * 4, ERROR),
        # a key's fault
        (FRESH, [DEAD, DEAD, ANSWERED], [Chat(None)] * 3, None),
        (FRESH, [DEAD, ORPHANED], [Chat(None)] * 2, ORPHANED.error),
        (BOUND, [DEAD, ANSWERED], [Chat(A)] * 2, None),
        (BOUND, [DEAD, ORPHANED, ANSWERED], [Chat(A), Chat(A), *ANEW], None),
        (NAMED, [DEAD, ORPHANED], [Chat(A), Chat(A), Forget(A)], MISSING),
        # no such conversation
        (BOUND, [STALE, ANSWERED], [Chat(A), *ANEW], None),
        (BOUND, [STALE, BROKEN, ANSWERED], [Chat(A), *ANEW, Chat(None)], None),
        (NAMED, [STALE], [Chat(A), Forget(A)], MISSING),
        (FRESH, [STALE], [Chat(None)], ERROR),
        # broken, or sent and then lost
        (FRESH, [BROKEN, ANSWERED], [Chat(None)] * 2, None),
        (FRESH, [LOST, ANSWERED], [Chat(None)] * 2, None),
        (FRESH, [failed(AnswerCut("cut")), BROKEN], [Chat(None)] * 2, ERROR),
        (BOUND, [BROKEN], [Chat(A)], ERROR),
        (BOUND, [LOST], [Chat(A)], ERROR),
        # time ran out
        (FRESH, [failed(FirstByteTimeout("slow"))], [Chat(None)], ERROR),
        (FRESH, [failed(AnswerStalled("slow"))], [Chat(None)], ERROR),
        # overloaded
        (BOUND, [LOADED, LOADED, ANSWERED], [Chat(A), Pause(1.0), Chat(A), Pause(2.0), Chat(A)], None),
        (FRESH, [LOADED] * 3, [Chat(None), Pause(1.0), Chat(None), Pause(2.0), Chat(None)], ERROR),
        # an explicit one that nobody here has met
        (UNMET, [STALE, Knows(), ANSWERED], [LookUp(A), LookUp(B), Chat(B)], None),
        (UNMET, [Knows(), STALE], [LookUp(A), Chat(A), Forget(A)], MISSING),
        (UNMET, [SETTING, STALE], [LookUp(A), LookUp(B)], MISSING),
        (UNMET, [DEAD, ORPHANED, Knows(), ANSWERED], [LookUp(A), LookUp(A), LookUp(B), Chat(B)], None),
        (UNMET, [UNREACHED, Knows(), ANSWERED], [LookUp(A), LookUp(A), Chat(A)], None),
        (UNMET, [UNREACHED] * 4, [LookUp(A)] * 4, ERROR),
        (UNMET, [BROKEN], [LookUp(A)], ERROR),
        (Plan(MISSING, unmet="x"), [], [], MISSING),
    ],
)
def test_each_outcome_has_its_next_step(
    plan: Plan, outcomes: list[Outcome], expected: list[Step], error: ProxyError | None
) -> None:
    assert drive(plan, outcomes) == (expected, error)


def test_a_busy_conversation_is_asked_again_with_the_same_key() -> None:
    taken, error = drive(BOUND, [BUSY] * 5 + [ANSWERED])
    assert error is None
    assert [step.seconds for step in taken if isinstance(step, Pause)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert [step for step in taken if isinstance(step, Chat)] == [Chat(A), *[Chat(A, same=True)] * 5]


def test_a_conversation_that_stays_busy_is_given_up_in_time() -> None:
    taken, error = drive(Plan(MISSING, A, renews=True, turn_wait=7.5), [BUSY] * 5)
    assert sum(step.seconds for step in taken if isinstance(step, Pause)) == 7.5
    assert error is not None
    assert (error.status, error.code) == (409, "session_busy")


def test_whether_a_resting_key_knows_a_conversation_is_not_known() -> None:
    taken, error = drive(UNMET, [Resting(9.0), STALE])
    assert taken == [LookUp(A), LookUp(B)]
    assert error is not None
    assert (error.status, error.code, error.retry_after) == (429, "keys_resting", 9.0)
    assert drive(UNMET, [Resting(9.0), Resting(4.0)])[1].retry_after == 4.0  # type: ignore[union-attr]
    assert drive(UNMET, [Resting(9.0), Knows(), ANSWERED])[1] is None


def test_a_new_conversation_takes_the_place_of_a_lost_one_only_once() -> None:
    again = Plan(MISSING, A, renews=True)
    assert drive(again, [ORPHANED, STALE]) == ([Chat(A), *ANEW], ERROR)
