"""What every backend of `state.base` must do. A new one is a line in MAKERS."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from balancer.state.base import (
    UNCLAIMED,
    Bindings,
    Counters,
    Limit,
    LoginSession,
    LoginSessions,
    Pin,
    Pins,
    Reached,
)
from balancer.state.memory import MOST_CLIENTS, MemoryBindings, MemoryCounters, MemoryLoginSessions, MemoryPins
from tests.fakes import FakeClock

Maker = Callable[[int, FakeClock], tuple[Pins, Bindings, LoginSessions, Counters]]
MAKERS: dict[str, Maker] = {
    "memory": lambda limit, clock: (
        MemoryPins(limit, clock),
        MemoryBindings(limit, clock),
        MemoryLoginSessions(clock),
        MemoryCounters(clock),
    ),
}
HANDLE = ("session", "gemini", "ann", "s")
UP = "gemini"


@pytest.fixture(params=sorted(MAKERS))
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pins(maker: Maker, clock: FakeClock) -> Pins:
    return maker(3, clock)[0]


@pytest.fixture
def bindings(maker: Maker, clock: FakeClock) -> Bindings:
    return maker(3, clock)[1]


@pytest.fixture
def sessions(maker: Maker, clock: FakeClock) -> LoginSessions:
    return maker(3, clock)[2]


@pytest.fixture
def counters(maker: Maker, clock: FakeClock) -> Counters:
    return maker(3, clock)[3]


async def test_the_first_claim_is_the_pin(pins: Pins) -> None:
    assert await pins.get(HANDLE, 10) is None
    assert await pins.claim(HANDLE, Pin("k1"), 10) == Pin("k1")
    assert await pins.claim(HANDLE, Pin("k2", hard=True), 10) == Pin("k1")
    assert await pins.get(HANDLE, 10) == Pin("k1")
    assert await pins.get((*HANDLE[:-1], "other"), 10) is None


async def test_a_pin_that_is_put_replaces_the_one_there_is(pins: Pins) -> None:
    await pins.claim(HANDLE, Pin("k1"), 10)
    await pins.put(HANDLE, Pin("k2", hard=True), 10)
    assert await pins.get(HANDLE, 10) == Pin("k2", hard=True)


async def test_a_pin_lives_from_use_to_use(pins: Pins, clock: FakeClock) -> None:
    await pins.put(HANDLE, Pin("k1"), 10)
    for _ in range(5):
        clock.advance(9)
        assert await pins.get(HANDLE, 10) == Pin("k1")
    for _ in range(5):
        clock.advance(9)
        assert await pins.claim(HANDLE, Pin("k2"), 10) == Pin("k1")
    clock.advance(11)
    assert await pins.get(HANDLE, 10) is None
    assert await pins.claim(HANDLE, Pin("k2"), 10) == Pin("k2")


async def test_a_jump_of_the_wall_clock_ends_no_pin(pins: Pins, clock: FakeClock) -> None:
    await pins.put(HANDLE, Pin("k1"), 10)
    clock.jump(1e6)
    assert await pins.get(HANDLE, 10) == Pin("k1")


async def test_the_longest_unused_pin_goes_when_there_are_too_many(pins: Pins) -> None:
    for name in ("a", "b", "c"):
        await pins.put((name,), Pin(name), 10)
    await pins.get(("a",), 10)
    await pins.put(("d",), Pin("d"), 10)
    found = [name for name in ("a", "b", "c", "d") if await pins.get((name,), 10) is not None]
    assert found == ["a", "c", "d"]


async def test_a_binding_is_each_client_s_own(bindings: Bindings) -> None:
    assert await bindings.owners(UP, "files/a") == {}
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 10)
    await bindings.bind("other", "files/a", "eve", "k3", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k1", "bob": "k2"}
    await bindings.bind(UP, "files/a", "ann", "k3", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k3", "bob": "k2"}


async def test_each_binding_ends_by_itself(bindings: Bindings, clock: FakeClock) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 20)
    clock.advance(11)
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    clock.advance(10)
    assert await bindings.owners(UP, "files/a") == {}


async def test_a_binding_that_has_ended_already_is_none(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 0)
    await bindings.bind(UP, "files/b", "ann", "k1", -5)
    assert await bindings.owners(UP, "files/a") == await bindings.owners(UP, "files/b") == {}


async def test_the_longest_unused_resource_goes_when_there_are_too_many(bindings: Bindings) -> None:
    for name in ("a", "b", "c"):
        await bindings.bind(UP, name, "ann", "k1", 10)
    await bindings.owners(UP, "a")
    await bindings.bind(UP, "d", "ann", "k1", 10)
    assert [name for name in ("a", "b", "c", "d") if await bindings.owners(UP, name)] == ["a", "c", "d"]


async def test_one_name_is_kept_for_a_bounded_number_of_clients(bindings: Bindings) -> None:
    for number in range(MOST_CLIENTS + 5):
        await bindings.bind(UP, "files/a", f"client-{number}", "k1", 10 + number)
    owners = await bindings.owners(UP, "files/a")
    assert len(owners) == MOST_CLIENTS
    assert "client-0" not in owners
    assert f"client-{MOST_CLIENTS + 4}" in owners


async def test_unbinding_takes_the_client_and_nobody_in_particular(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 10)
    await bindings.unbind(UP, "files/a", "ann")
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    await bindings.unbind(UP, "files/a", "eve")
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    await bindings.bind(UP, "files/b", UNCLAIMED, "k1", 10)
    await bindings.unbind(UP, "files/b", "ann")
    assert await bindings.owners(UP, "files/b") == {}
    await bindings.unbind(UP, "files/none", "ann")


async def test_a_maker_takes_the_place_of_nobody_in_particular(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", UNCLAIMED, "k1", 10)
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}


async def test_what_is_claimed_lives_as_long_as_it_was_bound(bindings: Bindings, clock: FakeClock) -> None:
    await bindings.bind(UP, "files/a", UNCLAIMED, "k1", 10)
    clock.advance(6)
    await bindings.claim(UP, "files/a", "ann")
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}
    await bindings.claim(UP, "files/a", "bob")
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}
    clock.advance(5)
    assert await bindings.owners(UP, "files/a") == {}
    await bindings.claim(UP, "files/none", "ann")
    assert await bindings.owners(UP, "files/none") == {}


async def test_a_hundred_thousand_renewals_leave_one_pin(maker: Maker, clock: FakeClock) -> None:
    pins = maker(10, clock)[0]
    for _ in range(100_000):
        await pins.put(HANDLE, Pin("k1"), 10)
    assert isinstance(pins, MemoryPins)
    assert len(pins) == 1


# Login sessions -------------------------------------------------------------------------------------------------------


def session(client: str = "ann", bought_with: bytes = b"token of ann") -> LoginSession:
    return LoginSession(client, bought_with, created=1.0, expires=11.0)


async def living(sessions: LoginSessions, *digests: bytes) -> list[bytes]:
    return [digest for digest in digests if await sessions.get(digest) is not None]


async def test_a_session_is_found_by_its_digest_and_by_no_other(sessions: LoginSessions) -> None:
    await sessions.add(b"1", session(), 10, 5)
    assert await sessions.get(b"1") == session()
    assert await sessions.get(b"2") is None


async def test_a_session_ends_when_it_was_to_end_however_much_it_is_used(
    sessions: LoginSessions, clock: FakeClock
) -> None:
    await sessions.add(b"1", session(), 10, 5)
    for _ in range(9):
        clock.advance(1)
        clock.jump(1000)
        assert await sessions.get(b"1") is not None
        await sessions.bind(b"1", "openai", "m")
    clock.advance(1)
    assert await sessions.get(b"1") is None
    assert await sessions.remove(b"1") is False


async def test_a_binding_stays_until_the_next_one_and_touches_nothing_else(sessions: LoginSessions) -> None:
    await sessions.add(b"1", session(), 10, 5)
    await sessions.add(b"2", session(), 10, 5)
    await sessions.bind(b"1", "openai", "gpt-5.1")
    await sessions.bind(b"1", "gemini", "a/b")
    assert await sessions.get(b"1") == LoginSession("ann", b"token of ann", 1.0, 11.0, "gemini", "a/b")
    assert await sessions.get(b"2") == session()


async def test_of_two_bindings_the_one_asked_for_later_counts_in_whatever_order_they_arrive(
    sessions: LoginSessions, clock: FakeClock
) -> None:
    await sessions.add(b"1", session(), 100, 5)
    clock.advance(10)
    await sessions.bind(b"1", "openai", "later", ago=2)
    await sessions.bind(b"1", "openai", "earlier", ago=5)
    found = await sessions.get(b"1")
    assert found is not None
    assert found.model == "later"
    await sessions.bind(b"1", "openai", "last", ago=1)
    found = await sessions.get(b"1")
    assert found is not None
    assert found.model == "last"


async def test_binding_makes_no_session(sessions: LoginSessions, clock: FakeClock) -> None:
    await sessions.bind(b"1", "openai", "m")
    assert await sessions.get(b"1") is None
    await sessions.add(b"1", session(), 10, 5)
    clock.advance(11)
    await sessions.bind(b"1", "openai", "m")
    assert await sessions.get(b"1") is None


async def test_a_session_is_removed_once(sessions: LoginSessions) -> None:
    await sessions.add(b"1", session(), 10, 5)
    assert await sessions.remove(b"1") is True
    assert await sessions.remove(b"1") is False
    assert await sessions.get(b"1") is None


async def test_of_too_many_sessions_of_one_token_the_one_that_expires_first_goes(sessions: LoginSessions) -> None:
    await sessions.add(b"long", session(), 30, 3)
    await sessions.add(b"short", session(), 10, 3)
    await sessions.add(b"middle", session(), 20, 3)
    await sessions.add(b"other", session("bob", b"token of bob"), 5, 3)
    await sessions.add(b"new", session(), 40, 3)
    assert await living(sessions, b"long", b"short", b"middle", b"new", b"other") == [
        b"long",
        b"middle",
        b"new",
        b"other",
    ]
    await sessions.add(b"newer", session(), 50, 2)
    assert await living(sessions, b"long", b"middle", b"new", b"newer", b"other") == [b"new", b"newer", b"other"]


async def test_a_new_session_goes_for_no_other_however_short_it_is(sessions: LoginSessions) -> None:
    for number in range(20):
        await sessions.add(b"%d" % number, session(), 30, 20)
    await sessions.add(b"short", session(), 10, 20)
    assert await living(sessions, b"0", b"1", b"19", b"short") == [b"1", b"19", b"short"]


async def test_sessions_that_ended_or_were_removed_take_nobody_s_place(
    sessions: LoginSessions, clock: FakeClock
) -> None:
    await sessions.add(b"1", session(), 10, 2)
    await sessions.add(b"2", session(), 100, 2)
    clock.advance(11)
    await sessions.add(b"3", session(), 100, 2)
    await sessions.remove(b"3")
    await sessions.add(b"4", session(), 100, 2)
    assert await living(sessions, b"2", b"4") == [b"2", b"4"]


async def test_a_hundred_thousand_logins_leave_no_more_than_are_allowed(maker: Maker, clock: FakeClock) -> None:
    sessions = maker(3, clock)[2]
    assert isinstance(sessions, MemoryLoginSessions)
    for number in range(100_000):
        digest = number.to_bytes(4, "big")
        await sessions.add(digest, session(), 1000, 100)
        if number % 2:
            await sessions.remove(digest)
    assert len(sessions) <= 100
    assert sum(map(len, sessions._ends.values())) <= 300
    clock.advance(1001)
    await sessions.add(b"last", session(), 1000, 100)
    assert len(sessions) == 1


# Counters -------------------------------------------------------------------------------------------------------------

FULL = Reached(Limit.CONCURRENCY)


async def test_without_limits_nothing_is_refused(counters: Counters) -> None:
    for _ in range(50):
        assert await counters.enter("ann", None, None) is None


async def test_any_sixty_seconds_hold_so_many_requests_to_the_moment(counters: Counters, clock: FakeClock) -> None:
    for _ in range(3):
        assert await counters.enter("ann", 3, None) is None
        await counters.leave("ann", None)
        clock.advance(10)
    assert await counters.enter("ann", 3, None) == Reached(Limit.RPM, 30.0)
    clock.advance(29.75)
    assert await counters.enter("ann", 3, None) == Reached(Limit.RPM, 0.25)
    clock.advance(0.25)
    assert await counters.enter("ann", 3, None) is None
    assert await counters.enter("ann", 3, None) == Reached(Limit.RPM, 10.0)


async def test_what_was_refused_counts_nowhere(counters: Counters, clock: FakeClock) -> None:
    assert await counters.enter("ann", 2, 1) is None
    for _ in range(10):
        assert await counters.enter("ann", 2, 1) == FULL
    await counters.leave("ann", 1)
    assert await counters.enter("ann", 2, 1) is None
    await counters.leave("ann", 1)
    for _ in range(10):
        assert await counters.enter("ann", 2, 1) == Reached(Limit.RPM, 60.0)
    clock.advance(60)
    assert await counters.enter("ann", 2, 1) is None


async def test_requests_in_flight_are_counted_until_they_leave_however_long(
    counters: Counters, clock: FakeClock
) -> None:
    assert await counters.enter("ann", None, 2) is None
    clock.advance(3600)
    assert await counters.enter("bob", None, 2) is None
    assert await counters.enter("ann", None, 2) is None
    assert await counters.enter("ann", None, 2) == FULL
    await counters.leave("ann", 2)
    assert await counters.enter("ann", None, 2) is None


async def test_each_client_is_counted_by_itself(counters: Counters) -> None:
    assert await counters.enter("ann", 1, None) is None
    assert await counters.enter("bob", 1, None) is None
    assert await counters.enter("ann", 1, None) == Reached(Limit.RPM, 60.0)


async def test_one_that_began_without_a_limit_ends_without_one(counters: Counters) -> None:
    assert await counters.enter("ann", None, 1) is None
    assert await counters.enter("ann", None, None) is None
    await counters.leave("ann", None)
    assert await counters.enter("ann", None, 1) == FULL


async def test_a_jump_of_the_wall_clock_frees_nobody(counters: Counters, clock: FakeClock) -> None:
    assert await counters.enter("ann", 1, None) is None
    clock.jump(1e6)
    assert await counters.enter("ann", 1, None) == Reached(Limit.RPM, 60.0)


async def test_clients_that_fell_silent_are_forgotten_when_another_comes(maker: Maker, clock: FakeClock) -> None:
    counters = maker(3, clock)[3]
    assert isinstance(counters, MemoryCounters)
    for number in range(100):
        await counters.enter(f"client-{number}", 5, 5)
        await counters.leave(f"client-{number}", 5)
    await counters.enter("runs", None, 1)
    clock.advance(61)
    await counters.enter("new", 5, None)
    assert len(counters) == 2
    assert await counters.enter("runs", None, 1) == FULL
