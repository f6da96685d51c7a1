"""What a session token is worth on every surface: as much as its client, until it ends; and when the state does not answer."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from balancer.state.base import LoginSession, LoginSessions, StateUnavailable
from tests.fakes import FakeClock
from tests.proxy import GENERATE
from tests.surfaces.logins import ANN, BOB, GOOD, TOKENS, Here, here

NO_SESSION = "Session 不存在或已过期"
UNAVAILABLE = "会话存储暂不可用"


# What a session is worth ----------------------------------------------------------------------------------------------


def places(token: str) -> list[tuple[str, dict[str, str]]]:
    names = ("X-Session-Token", "x-goog-api-key", "x-api-key", "api-key")
    headers = [{"Authorization": f"Bearer {token}"}, {"Authorization": token}, *({name: token} for name in names)]
    queries = [f"?{name}={token}" for name in ("session_token", "key", "api_key")]
    return [*(("", fields) for fields in headers), *((query, {}) for query in queries)]


async def test_a_session_token_is_its_client_in_every_place_and_travels_no_further(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with here(logging={"level": "info", "file": str(log)}) as at:
        token = await at.login()
        for query, headers in places(token):
            assert (await at.post(GENERATE + query, {}, **headers)).status == 200
        assert len(at.upstream.requests) == len(places(token))
        for seen in at.upstream.requests:
            assert token not in seen.line
            assert not any(token in value for _, value in seen.headers)
    written = log.read_text()
    assert token not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert {line["client"] for line in lines if line["event"] == "request"} == {"ann"}


async def test_the_first_valid_one_of_session_tokens_and_client_tokens_names_the_caller(tmp_path: Path) -> None:
    log = tmp_path / "log"
    wrong = "bal_" + "x" * 43
    async with here(logging={"level": "info", "file": str(log)}) as at:
        ann, bob = await at.login(ANN), await at.login(BOB)
        for first, second in ((ann, BOB), (BOB, ann), (wrong, bob), (wrong, ANN), ("wrong", bob), (bob, "wrong")):
            headers = {"Authorization": f"Bearer {first}", "x-api-key": second}
            assert (await at.post("/v1beta/files", {}, **headers)).status == 200
        refused = await at.post("/v1beta/files", {}, wrong, **{"x-api-key": "wrong"})
        assert refused.status == 401
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    callers = [line["client"] for line in lines if line["event"] == "request" and line["surface"] == "gemini"]
    assert callers[:6] == ["ann", "bob", "bob", "ann", "bob", "bob"]


async def test_neither_the_state_nor_its_memory_holds_the_token() -> None:
    async with here() as at:
        token = await at.login(**GOOD)
        assert (await at.generate(token)).status == 200
        runtime = at.proxy.server.runtime
        kept: Any = runtime.login_sessions
        dump = pickle.dumps((kept._kept, kept._ends, kept._counts, dict(runtime.login_memory.found.items())))
        digest = hashlib.sha256(token.encode()).digest()
        assert dump.count(digest) >= 1
        for secret in (token.encode(), token.removeprefix("bal_").encode(), ANN.encode()):
            assert secret not in dump
        raw = base64.urlsafe_b64decode(token.removeprefix("bal_") + "=")
        assert raw not in dump
        assert token not in repr(kept._kept) + repr(await runtime.logins.find(token))


async def test_a_session_ends_when_its_client_token_is_removed_and_is_gone_for_good() -> None:
    async with here() as at:
        token, other = await at.login(ANN), await at.login(BOB)
        at.reload(tokens=[TOKENS[1]])
        assert (await at.generate(token)).status == 401
        assert (await at.post("/v1beta/files", {}, other)).status == 200
        at.reload(tokens=TOKENS)
        assert (await at.generate(token)).status == 401
        assert not await at.proxy.server.runtime.login_sessions.remove(hashlib.sha256(token.encode()).digest())


@pytest.mark.parametrize(
    "tokens",
    [
        [{"name": "ann", "token": "another-secret-1"}],
        [{"name": "anna", "token": ANN}],
        [{"name": "ann", "token": BOB}, {"name": "bob", "token": ANN}],
    ],
    ids=["another secret", "another name", "secrets exchanged"],
)
async def test_a_session_is_good_for_the_secret_and_the_name_that_it_was_bought_with(tokens: Any) -> None:
    async with here() as at:
        token = await at.login(ANN)
        at.reload(tokens=tokens)
        assert (await at.generate(token)).status == 401
        assert (await at.post("/auth/bind-model", GOOD, token)).said == (404, NO_SESSION)


async def test_sessions_of_nobody_end_when_client_tokens_are_configured() -> None:
    async with here(auth={"tokens": []}) as at:
        token = await at.login("any")
        at.reload(tokens=TOKENS, exempt_loopback=True)
        assert (await at.generate(token)).status == 401


async def test_what_a_session_may_do_is_what_the_configuration_says_now() -> None:
    async with here() as at:
        token = await at.login(ANN)
        assert (await at.generate(token)).status == 200
        at.reload(tokens=[{"name": "ann", "token": ANN, "models": ["openai/*"]}])
        assert (await at.generate(token)).status == 403
        at.reload(tokens=[{"name": "ann", "token": f"sha256:{hashlib.sha256(ANN.encode()).hexdigest()}", "rpm": 1}])
        assert [(await at.generate(token)).status for _ in range(2)] == [200, 429]


async def test_a_session_ends_on_time_however_recently_it_was_used() -> None:
    clock = FakeClock()
    async with here(clock=clock, auth={"login_ttl": "1h"}) as at:
        answer = await at.post("/auth/login", {"api_key": ANN})
        token = answer.json["token"]
        assert answer.json["expires_in"] == 3600
        for _ in range(59):
            clock.advance(60)
            assert (await at.generate(token)).status == 200
            assert (await at.bind(token)).status == 200
        clock.advance(60)
        assert (await at.generate(token)).status == 401
        assert (await at.bind(token)).said == (404, NO_SESSION)
        assert (await at.post("/auth/logout", None, token)).said == (404, NO_SESSION)


async def test_one_client_token_has_no_more_sessions_than_are_allowed() -> None:
    clock = FakeClock()
    async with here(clock=clock, auth={"max_sessions": 2}) as at:
        other = await at.login(BOB)
        tokens = []
        for _ in range(4):
            tokens.append(await at.login(ANN))
            clock.advance(1)
        assert [(await at.generate(token)).status for token in tokens] == [401, 401, 200, 200]
        assert (await at.bind(other)).status == 200


async def test_two_applications_on_one_state_act_on_each_other_s_sessions_with_the_next_request() -> None:
    async with here() as one, here() as two:
        runtime, other = one.proxy.server.runtime, two.proxy.server.runtime
        other.login_sessions, other.counters = runtime.login_sessions, runtime.counters
        other.apply(other.settings)
        token = await one.login()
        assert (await two.generate(token)).status == 200
        assert (await two.bind(token, "openai", "gpt-5.1")).status == 200
        assert await one.bound(token) == ("openai", "gpt-5.1")
        one.reload(tokens=[{"name": "ann", "token": ANN, "rpm": 2}])
        two.reload(tokens=[{"name": "ann", "token": ANN, "rpm": 2}])
        statuses = [(await each.generate(ANN)).status for each in (one, two, one, two)]
        assert statuses == [200, 200, 429, 429]
        assert (await one.post("/auth/logout", None, token)).status == 200
        assert (await two.generate(token)).status == 401
        assert (await two.post("/auth/logout", None, token)).said == (404, NO_SESSION)


# A state that does not answer -----------------------------------------------------------------------------------------


class Faltering:
    """Login sessions in a backend that can be switched off."""

    def __init__(self, sessions: LoginSessions) -> None:
        self._sessions = sessions
        self.down = False

    def _reach(self) -> LoginSessions:
        if self.down:
            raise StateUnavailable
        return self._sessions

    async def add(self, digest: bytes, session: LoginSession, ttl: float, most: int) -> None:
        await self._reach().add(digest, session, ttl, most)

    async def get(self, digest: bytes) -> LoginSession | None:
        return await self._reach().get(digest)

    async def bind(self, digest: bytes, provider: str, model: str, ago: float = 0.0) -> None:
        await self._reach().bind(digest, provider, model, ago)

    async def remove(self, digest: bytes) -> bool:
        return await self._reach().remove(digest)


@asynccontextmanager
async def faltering(clock: FakeClock) -> AsyncIterator[tuple[Here, Faltering]]:
    async with here(clock=clock) as at:
        runtime = at.proxy.server.runtime
        state = Faltering(runtime.login_sessions)
        runtime.login_sessions = state
        runtime.apply(runtime.settings)
        yield at, state


async def test_while_the_state_is_silent_a_session_used_within_a_minute_goes_on_and_an_unseen_one_is_put_off() -> None:
    clock = FakeClock()
    async with faltering(clock) as (at, state):
        seen, unseen = await at.login(), await at.login()
        assert (await at.generate(seen)).status == 200
        state.down = True
        clock.advance(59)
        at.reload(tokens=TOKENS)
        assert (await at.generate(seen)).status == 200
        put_off = await at.generate(unseen)
        assert (put_off.status, put_off.headers["Retry-After"]) == (503, "1")
        assert (await at.generate(ANN)).status == 200
        clock.advance(1)
        assert (await at.generate(seen)).status == 503
        state.down = False
        assert [(await at.generate(token)).status for token in (seen, unseen)] == [200, 200]


async def test_while_the_state_is_silent_the_surface_says_so_and_promises_nothing() -> None:
    async with faltering(FakeClock()) as (at, state):
        token = await at.login()
        state.down = True
        for path, body in (("/auth/login", {"api_key": ANN}), ("/auth/bind-model", GOOD), ("/auth/logout", None)):
            answer = await at.post(path, body, None if path == "/auth/login" else token)
            assert (answer.status, answer.json) == (503, {"detail": UNAVAILABLE})
            assert answer.headers["Retry-After"] == "1"
        state.down = False
        assert (await at.generate(token)).status == 200
        state.down = True
        assert (await at.bind(token)).said == (503, UNAVAILABLE)
        assert (await at.post("/auth/logout", None, token)).said == (503, UNAVAILABLE)
        state.down = False
        assert await at.bound(token) == (None, None)


async def test_a_logout_is_not_undone_by_a_state_that_falls_silent() -> None:
    async with faltering(FakeClock()) as (at, state):
        token = await at.login()
        assert (await at.generate(token)).status == 200
        assert (await at.post("/auth/logout", None, token)).status == 200
        state.down = True
        assert (await at.generate(token)).status == 503


async def test_a_session_whose_client_token_is_gone_is_refused_even_while_the_state_is_silent() -> None:
    async with faltering(FakeClock()) as (at, state):
        token = await at.login()
        assert (await at.generate(token)).status == 200
        state.down = True
        at.reload(tokens=[TOKENS[1]])
        assert (await at.generate(token)).status == 401
