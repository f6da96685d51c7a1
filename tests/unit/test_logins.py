"""Session tokens over their state: what is written and when, and what goes on while the state does not answer."""

from __future__ import annotations

import hashlib

import pytest

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.routing.logins import LONGEST_MODEL, PREFIX, REMEMBERED, Login, Logins, Memory, digest_of
from balancer.state.base import LoginSession, StateUnavailable
from balancer.state.memory import MemoryLoginSessions
from tests.fakes import FakeClock

SECRET = "token-of-ann-1"
ANN = Client("ann", rpm=7)
CLIENTS = {digest_of(SECRET): ANN}


class Sessions(MemoryLoginSessions):
    """The state, with a list of what was bound in it, that can fall silent."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.bound: list[str] = []
        self.silent = False

    def _answer(self) -> None:
        if self.silent:
            raise StateUnavailable

    async def get(self, digest: bytes) -> LoginSession | None:
        self._answer()
        return await super().get(digest)

    async def bind(self, digest: bytes, provider: str, model: str, ago: float = 0.0) -> None:
        self._answer()
        self.bound.append(f"{provider}/{model}")
        await super().bind(digest, provider, model, ago)

    async def remove(self, digest: bytes) -> bool:
        self._answer()
        return await super().remove(digest)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sessions(clock: FakeClock) -> Sessions:
    return Sessions(clock)


@pytest.fixture
def logins(sessions: Sessions, clock: FakeClock) -> Logins:
    return Logins(sessions, Memory(clock), CLIENTS, clock, ttl=3600.0, most=10)


async def found(logins: Logins, token: str) -> Login:
    login = await logins.find(token)
    assert login is not None
    return login


async def test_what_is_kept_tells_who_when_and_what_and_no_secret(
    logins: Logins, sessions: Sessions, clock: FakeClock
) -> None:
    token = await logins.issue(SECRET, ANN, "openai", "a/b")
    kept = await sessions.get(hashlib.sha256(token.encode()).digest())
    now = clock.wall()
    assert kept == LoginSession("ann", digest_of(SECRET), now, now + 3600, "openai", "a/b")
    login = await found(logins, token)
    assert (login.client, login.bound) == (ANN, "openai/a/b")


async def test_nothing_bound_is_nothing_to_call(logins: Logins) -> None:
    assert (await found(logins, await logins.issue(SECRET, ANN))).bound is None


async def test_binding_what_is_bound_writes_nothing(logins: Logins, sessions: Sessions) -> None:
    token = await logins.issue(SECRET, ANN, "openai", "m")
    for _ in range(3):
        await logins.rebind(await found(logins, token), "openai", "m")
        await logins.bind(await found(logins, token), "openai", "m")
    assert sessions.bound == []
    await logins.rebind(await found(logins, token), "openai", "n")
    await logins.rebind(await found(logins, token), "openai", "n")
    assert sessions.bound == ["openai/n"]


async def test_of_two_requests_the_one_that_began_later_binds_whichever_ends_first(
    logins: Logins, clock: FakeClock
) -> None:
    token = await logins.issue(SECRET, ANN)
    earlier = await found(logins, token)
    clock.advance(0.5)
    later = await found(logins, token)
    clock.advance(3)
    await logins.rebind(later, "openai", "later")
    clock.advance(3)
    await logins.rebind(earlier, "openai", "earlier")
    assert (await found(logins, token)).bound == "openai/later"


async def test_a_name_of_endless_length_is_bound_by_no_request(logins: Logins, sessions: Sessions) -> None:
    token = await logins.issue(SECRET, ANN)
    login = await found(logins, token)
    await logins.rebind(login, "openai", "m" * (LONGEST_MODEL + 1))
    assert sessions.bound == []
    await logins.rebind(login, "openai", "m" * LONGEST_MODEL)
    assert len(sessions.bound) == 1


async def test_while_the_state_is_silent_a_process_binds_for_itself(
    logins: Logins, sessions: Sessions, clock: FakeClock
) -> None:
    token = await logins.issue(SECRET, ANN, "openai", "m")
    login = await found(logins, token)
    sessions.silent = True
    await logins.rebind(login, "gemini", "g")
    assert (await found(logins, token)).bound == "gemini/g"
    with pytest.raises(ProxyError, match="cannot be checked"):
        await logins.bind(login, "gemini", "h")
    sessions.silent = False
    assert (await found(logins, token)).bound == "openai/m"


async def test_what_was_found_is_remembered_for_a_minute_and_no_longer(
    logins: Logins, sessions: Sessions, clock: FakeClock
) -> None:
    token = await logins.issue(SECRET, ANN)
    await found(logins, token)
    sessions.silent = True
    clock.advance(REMEMBERED - 1)
    await found(logins, token)
    clock.advance(1)
    with pytest.raises(ProxyError) as caught:
        await logins.find(token)
    assert (caught.value.status, caught.value.retry_after) == (503, 1)


async def test_a_client_token_that_is_gone_ends_its_sessions_as_soon_as_the_state_can_be_told(
    sessions: Sessions, clock: FakeClock
) -> None:
    memory = Memory(clock)
    before = Logins(sessions, memory, CLIENTS, clock, ttl=3600.0, most=10)
    after = Logins(sessions, memory, {digest_of("another"): Client("bob")}, clock, ttl=3600.0, most=10)
    token = await before.issue(SECRET, ANN)
    await found(before, token)
    sessions.silent = True
    assert await after.find(token) is None
    sessions.silent = False
    assert len(sessions) == 1
    assert await after.find(token) is None
    assert len(sessions) == 0


async def test_who_may_log_in_is_who_has_a_token_or_everybody_where_nobody_has(
    logins: Logins, sessions: Sessions, clock: FakeClock
) -> None:
    assert logins.client_of(SECRET) is ANN
    assert logins.client_of("any") is None
    everybody = Logins(sessions, Memory(clock), {}, clock, ttl=1.0, most=1)
    assert everybody.client_of("any") is ANONYMOUS
    assert everybody.client_of(PREFIX + "x") is None
    first = await everybody.issue("one", ANONYMOUS)
    await everybody.issue("another", ANONYMOUS)
    assert await everybody.find(first) is None, "sessions of nobody count together, whatever was shown for them"
