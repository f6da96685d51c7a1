"""When an upstream counts as down, when it is probed, and what brings it back."""

from __future__ import annotations

import pytest

from balancer.keypool.reach import CAP, FAILURES, QUIET, SPAN, Reach, Turn
from tests.fakes import FakeClock


class Subject:
    """A reach on a clock under the test's hand, and what it told. Probes are not spread."""

    def __init__(self, chance: float = 0.5) -> None:
        self.clock = FakeClock()
        self.reach = Reach(self.clock, lambda: chance)
        self.turns: list[Turn] = []
        self.reach.on_turn = self.turns.append

    @property
    def state(self) -> str:
        return self.reach.snapshot().state

    def fail(self, times: int = 1, *, sent: bool = False, seconds: float = 0.5) -> None:
        """Attempts one after the other, each taking so long."""
        for _ in range(times):
            begun = self.clock.monotonic()
            self.clock.advance(seconds)
            self.reach.failed("no connection", begun=begun, sent=sent)

    def go_down(self) -> None:
        self.fail(FAILURES)
        assert self.reach.down

    def until_probe(self) -> float:
        return self.reach.next_probe - self.clock.monotonic()

    def probe(self, reason: str | None) -> None:
        """The next probe, when it is due."""
        self.clock.advance(max(0.0, self.until_probe()))
        assert self.reach.begin_probe()
        self.reach.probed(reason)


def test_connections_that_fail_in_a_row_take_it_down() -> None:
    subject = Subject()
    subject.fail(FAILURES - 1)
    assert subject.state == "up"
    subject.fail()
    assert subject.reach.down
    assert subject.turns == [Turn("down", "no connection", 1.0)]


def test_an_answer_between_them_begins_the_row_anew() -> None:
    subject = Subject()
    for _ in range(3):
        subject.fail(FAILURES - 1)
        subject.reach.answered()
    assert subject.state == "up"
    assert subject.turns == []


def test_a_burst_that_fails_at_once_does_not_take_it_down() -> None:
    subject = Subject()
    subject.fail(50, seconds=0.0)
    assert subject.state == "up"
    subject.fail(seconds=SPAN)
    assert subject.reach.down


def test_requests_that_were_lost_only_have_it_probed() -> None:
    subject = Subject()
    subject.fail(FAILURES, sent=True)
    assert subject.state == "doubted"
    assert not subject.reach.down
    assert subject.until_probe() == 0.0
    subject.probe(None)
    assert subject.state == "up"
    assert [turn.kind for turn in subject.turns] == ["doubted"]


def test_it_is_down_when_it_does_not_answer_the_probe_either() -> None:
    subject = Subject()
    subject.fail(FAILURES, sent=True)
    subject.probe("it closed the connection")
    assert subject.reach.down
    assert subject.turns[-1] == Turn("down", "it closed the connection", 1.0)


def test_a_request_that_always_kills_its_connection_never_takes_it_down() -> None:
    subject = Subject()
    for _ in range(20):
        subject.fail(FAILURES, sent=True)
        if subject.reach.begin_probe():
            subject.reach.probed(None)
    assert "down" not in [turn.kind for turn in subject.turns]


def test_a_connection_that_was_made_interrupts_a_row_of_those_that_failed() -> None:
    subject = Subject()
    subject.fail(FAILURES - 1)
    subject.fail(sent=True)
    assert not subject.reach.down
    subject.fail(FAILURES)
    assert subject.reach.down


def test_an_answer_to_a_call_ends_the_doubt() -> None:
    subject = Subject()
    subject.fail(FAILURES, sent=True)
    subject.reach.answered()
    assert subject.state == "up"
    assert not subject.reach.begin_probe()


def test_a_probe_that_is_answered_brings_it_up_and_tells_how_long_it_was_down() -> None:
    subject = Subject()
    subject.go_down()
    woken: list[str] = []
    subject.reach.subscribe(lambda: woken.append("kept"))
    subject.reach.subscribe(lambda: woken.append("ended"))()
    subject.probe(None)
    assert subject.state == "up"
    assert subject.turns[-1] == Turn("up", seconds=1.0)
    assert woken == ["kept"]


def test_any_answer_brings_it_up() -> None:
    subject = Subject()
    subject.go_down()
    subject.clock.advance(0.1)
    subject.reach.answered()
    assert subject.state == "up"


def test_an_answer_that_came_before_the_last_failure_is_no_news() -> None:
    subject = Subject()
    came = subject.clock.monotonic()
    subject.go_down()
    subject.reach.answered(came)
    assert subject.reach.down


def test_a_failure_of_an_attempt_that_began_before_the_last_answer_is_no_news() -> None:
    subject = Subject()
    subject.go_down()
    begun = subject.clock.monotonic()
    subject.probe(None)
    subject.clock.advance(10.0)
    for _ in range(3 * FAILURES):
        subject.reach.failed("no connection", begun=begun, sent=False)
    assert subject.state == "up"


def test_probes_come_at_doubled_delays_up_to_a_minute() -> None:
    subject = Subject()
    subject.go_down()
    delays = []
    for _ in range(8):
        delays.append(subject.until_probe())
        subject.probe("no connection")
    assert delays == pytest.approx([1, 2, 4, 8, 16, 32, CAP, CAP])


@pytest.mark.parametrize(("chance", "delay"), [(0.0, 0.8), (0.5, 1.0), (0.999, 1.2)])
def test_probes_are_spread(chance: float, delay: float) -> None:
    subject = Subject(chance)
    subject.go_down()
    assert subject.until_probe() == pytest.approx(delay, abs=0.01)


def test_what_goes_down_again_soon_is_not_probed_as_often_as_at_first() -> None:
    subject = Subject()
    subject.go_down()
    for reason in ("no connection", "no connection", None):
        subject.probe(reason)
    subject.go_down()
    assert subject.until_probe() == pytest.approx(8.0)


def test_what_was_up_for_a_while_is_probed_after_a_second_again() -> None:
    subject = Subject()
    subject.go_down()
    for reason in ("no connection", "no connection", None):
        subject.probe(reason)
    subject.clock.advance(QUIET + 1)
    subject.go_down()
    assert subject.until_probe() == pytest.approx(1.0)


def test_one_probe_at_a_time_and_none_before_it_is_due() -> None:
    subject = Subject()
    assert not subject.reach.begin_probe()
    subject.go_down()
    assert not subject.reach.begin_probe()
    subject.clock.advance(1.0)
    assert subject.reach.begin_probe()
    assert not subject.reach.begin_probe()
    subject.reach.probed("no connection")
    assert not subject.reach.begin_probe()


def test_without_a_key_for_the_probe_one_call_takes_its_place() -> None:
    subject = Subject()
    subject.go_down()
    assert not subject.reach.blind
    subject.clock.advance(1.0)
    assert subject.reach.begin_probe()
    subject.reach.unprobed()
    assert subject.reach.blind
    subject.reach.tried()
    assert not subject.reach.blind
    assert subject.until_probe() == pytest.approx(2.0)
    subject.fail()
    assert subject.reach.down
    subject.reach.answered()
    assert subject.state == "up"


def test_the_snapshot_tells_since_when_why_and_when_it_is_probed() -> None:
    subject = Subject()
    fresh = subject.reach.snapshot()
    assert (fresh.state, fresh.reason, fresh.next_probe_wall) == ("up", "", None)
    subject.go_down()
    wall = subject.clock.wall()
    subject.clock.advance(0.25)
    down = subject.reach.snapshot()
    assert (down.state, down.reason) == ("down", "no connection")
    assert down.since_wall == pytest.approx(wall)
    assert down.next_probe_wall == pytest.approx(wall + 1.0)
