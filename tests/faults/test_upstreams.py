"""Several upstreams that serve one model: who is asked, who is asked next, and who is left out."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from balancer.clock import Clock
from balancer.keypool.reach import FAILURES, Reach, Turn
from tests.fakes import FakeClock
from tests.proxy import GENERATE, Proxy, error_of, post_bytes, proxying, settings
from tests.upstream import WAIT, Peer, RawUpstream, Seen, raw_upstream, serving

FIRST = ("first-upstream-key-1", "first-upstream-key-2")
SECOND = ("second-upstream-key-1", "second-upstream-key-2")
OK_BODY = b'{"fine": true}'


def google_error(code: int, message: str, *details: dict[str, Any]) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "status": "X", "details": list(details)}}).encode()


def quota(delay: str) -> tuple[str, bytes]:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    violation = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}
    failure = {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}
    return "429 Too Many Requests", google_error(429, "quota", failure, info)


INVALID = ("400 Bad Request", google_error(400, "API key not valid."))
OVERLOADED = ("503 Service Unavailable", google_error(503, "The model is overloaded."))


@dataclass
class Says:
    """An upstream's script: one answer to every request, to be exchanged at any time. None: the connection just ends."""

    answer: tuple[str, bytes] | None = ("200 OK", OK_BODY)

    async def __call__(self, peer: Peer) -> None:
        async def answer(peer: Peer, seen: Seen) -> None:
            if self.answer is None:
                peer.reset()
                return
            status, body = self.answer
            await peer.answer(body, status)

        await serving(answer)(peer)


def closed_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        return port


@dataclass
class Two:
    """The proxy before two upstreams; `first` is the one that the configuration names first."""

    proxy: Proxy
    first: RawUpstream
    second: RawUpstream
    says: tuple[Says, Says]

    def reach(self, name: str = "gemini") -> Reach:
        return self.proxy.server.runtime.rooms.upstreams[name].reach

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.first.requests), len(self.second.requests)

    async def status(self, path: str = GENERATE, **more: Any) -> int:
        async with self.proxy.post(path, **more) as response:
            await response.read()
            status: int = response.status
            return status


@asynccontextmanager
async def two(
    first: tuple[str, bytes] | None = ("200 OK", OK_BODY),
    second: tuple[str, bytes] | None = ("200 OK", OK_BODY),
    *,
    first_url: str | None = None,
    clock: Clock | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    **overrides: Mapping[str, Any],
) -> AsyncIterator[Two]:
    """`more`: settings of the upstreams "gemini", which is the first, and "second"."""
    says = Says(first), Says(second)
    async with raw_upstream(says[0]) as one, raw_upstream(says[1]) as other:
        upstreams: dict[str, dict[str, Any]] = {
            "gemini": {},
            "second": {"kind": "gemini", "base_url": other.url, "keys": list(SECOND)},
        }
        for name, entry in (more or {}).items():
            upstreams[name] |= entry
        async with proxying(first_url or one.url, FIRST, clock=clock, upstreams=upstreams, **overrides) as proxy:
            yield Two(proxy, one, other, says)


@asynccontextmanager
async def turning(reach: Reach, kind: str) -> AsyncIterator[None]:
    """Its block ends when the upstream has turned so."""
    turned = asyncio.Event()
    told = reach.on_turn
    assert told is not None

    def listen(turn: Turn) -> None:
        told(turn)
        if turn.kind == kind:
            turned.set()

    reach.on_turn = listen
    try:
        yield
        async with asyncio.timeout(WAIT):
            await turned.wait()
    finally:
        reach.on_turn = told


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that has come back: one answer a connection."""
    peer = Peer(RawUpstream(Says()), reader, writer)
    await peer.request()
    await peer.answer(headers=("Connection: close",))
    peer.close()


def url_of(port: int) -> str:
    return f"http://127.0.0.1:{port}"


# The next upstream ----------------------------------------------------------------------------------------------------


async def test_the_first_in_the_file_is_asked_while_it_serves() -> None:
    async with two() as both:
        assert [await both.status() for _ in range(3)] == [200, 200, 200]
        assert both.asked == (3, 0)


async def test_an_upstream_without_a_connection_is_tried_through_and_then_the_next_is_asked() -> None:
    async with two(first_url=url_of(closed_port()), relay={"attempts": 3}) as both:
        async with asyncio.timeout(5), both.proxy.post() as response:
            assert await response.read() == OK_BODY
        assert both.asked == (0, 1)
        assert sum(key["counts"]["upstream"] for key in await both.proxy.keys()) == 3


@pytest.mark.parametrize("fault", [OVERLOADED, None, ("302 Found", b"")])
async def test_a_fault_of_the_upstream_is_hidden_by_the_next_after_its_repetition(
    fault: tuple[str, bytes] | None,
) -> None:
    async with two(fault) as both:
        assert await both.status() == 200
        assert both.asked == (1 if fault and fault[0].startswith("302") else 2, 1)


async def test_the_last_failure_is_the_answer() -> None:
    second = ("500 Internal Server Error", google_error(500, "second"))
    async with two(OVERLOADED, second) as both, both.proxy.post() as response:
        assert response.status == 500
        assert await response.read() == second[1]


async def test_what_was_sent_and_may_have_changed_something_is_not_sent_to_another_upstream() -> None:
    async with two(OVERLOADED) as both:
        assert await both.status("/v1beta/cachedContents") == 503
        assert both.asked == (1, 0)


async def test_the_callers_fault_is_not_tried_elsewhere() -> None:
    async with two(("404 Not Found", google_error(404, "no such model"))) as both:
        assert await both.status() == 404
        assert both.asked == (1, 0)


async def test_an_upstream_without_a_usable_key_is_passed_over() -> None:
    async with two(INVALID) as both:
        assert [await both.status() for _ in range(2)] == [200, 200]
        assert both.asked == (2, 2)


async def test_where_all_keys_rest_the_next_upstream_is_asked_at_once() -> None:
    async with two(quota("30s")) as both:
        async with asyncio.timeout(1.5):
            assert [await both.status() for _ in range(2)] == [200, 200]
        assert both.asked == (2, 2)


async def test_where_all_keys_of_all_rest_the_first_one_back_is_waited_for() -> None:
    async with two(quota("30s"), quota("0.3s"), relay={"max_wait": "5s"}) as both:
        async with asyncio.timeout(WAIT):
            asking = asyncio.ensure_future(both.status())
            for _ in range(4):
                await (both.second if len(both.first.requests) == 2 else both.first).arrival()
            both.says[1].answer = ("200 OK", OK_BODY)
            assert await asking == 200
        assert both.asked == (2, 3)


async def test_where_all_keys_of_all_rest_too_long_the_first_one_back_is_told() -> None:
    async with two(quota("50s"), quota("30s")) as both, both.proxy.post() as response:
        assert response.status == 429
        assert 28 <= int(response.headers["Retry-After"]) <= 30
        assert error_of(await response.read())["status"] == "RESOURCE_EXHAUSTED"


async def test_an_upstreams_own_words_are_told_where_no_other_could_be_asked() -> None:
    clock = FakeClock()
    async with two(quota("1s"), quota("500s"), clock=clock, relay={"max_wait": "0.1s"}) as both:
        assert await both.status() == 429
        clock.advance(2.0)
        both.says[0].answer = OVERLOADED
        async with both.proxy.post() as response:
            assert response.status == 503
            assert await response.read() == OVERLOADED[1]
        assert both.asked == (4, 2)


async def test_a_large_body_of_which_nothing_was_taken_goes_to_the_next_upstream_whole() -> None:
    body = bytes(300_000)
    async with two(first_url=url_of(closed_port()), relay={"replay_limit": 1024, "attempts": 2}) as both:
        raw = await both.proxy.raw()
        await raw.send(post_bytes(body))
        head, _ = await raw.answer()
        assert head.startswith(b"HTTP/1.1 200")
        assert both.second.requests[0].body == body
        raw.close()


async def test_a_large_body_that_was_sent_is_not_sent_to_the_next_upstream() -> None:
    async with two(OVERLOADED, relay={"replay_limit": 1024}) as both:
        assert await both.status(json=None, data=bytes(300_000)) == 503
        assert both.asked == (1, 0)


async def test_each_upstream_gets_the_models_name_there() -> None:
    aliases = {"gemini": {"aliases": {"best": "gemini-2.5-pro"}}, "second": {"aliases": {"best": "own/pro"}}}
    async with two(OVERLOADED, more=aliases) as both:
        assert await both.status("/v1beta/models/best:generateContent?alt=json") == 200
        paths = [seen.line.split()[1] for seen in (*both.first.requests, *both.second.requests)]
        assert paths == [
            "/v1beta/models/gemini-2.5-pro:generateContent?alt=json",
            "/v1beta/models/gemini-2.5-pro:generateContent?alt=json",
            "/v1beta/models/own%2Fpro:generateContent?alt=json",
        ]


async def test_a_deadline_that_has_passed_ends_at_the_first_upstream() -> None:
    async with two(OVERLOADED) as both:
        assert await both.status(headers={"X-Server-Timeout": "0.2"}) == 503
        assert both.asked == (1, 0)


# What belongs to an upstream --------------------------------------------------------------------------------------------


async def test_what_was_made_at_an_upstream_is_asked_for_there_and_nowhere_else() -> None:
    made = ("200 OK", b'{"name": "cachedContents/c1"}')
    async with two(INVALID, made) as both:
        assert await both.status("/v1beta/cachedContents") == 200
        both.says[0].answer = both.says[1].answer = ("200 OK", OK_BODY)
        asked = len(both.first.requests)
        use = {"contents": [{"parts": [{"text": "x"}]}], "cachedContent": "cachedContents/c1"}
        assert await both.status(json=use) == 200
        both.says[1].answer = OVERLOADED
        assert await both.status(json=use) == 503
        both.says[1].answer = None
        assert await both.status(json=use) == 502
        assert len(both.first.requests) == asked


async def test_what_nobody_is_known_to_have_made_is_looked_for_at_every_upstream() -> None:
    async def second(peer: Peer) -> None:
        async def answer(peer: Peer, seen: Seen) -> None:
            mine = seen.get("x-goog-api-key") == SECOND[1]
            await peer.answer(OK_BODY, "200 OK" if mine else "404 Not Found")

        await serving(answer)(peer)

    async with two(("404 Not Found", google_error(404, "none"))) as both:
        both.second.script = second
        use = {"contents": [{"parts": [{"text": "x"}]}], "cachedContent": "cachedContents/c9"}
        assert await both.status(json=use) == 200
        assert [seen.get("x-goog-api-key") for seen in both.first.requests] == list(FIRST)
        asked = len(both.first.requests)
        assert await both.status(json=use) == 200
        assert len(both.first.requests) == asked
        assert both.second.requests[-1].get("x-goog-api-key") == SECOND[1]


async def test_a_session_that_owns_something_stays_at_its_upstream() -> None:
    made = ("200 OK", b'{"name": "cachedContents/c1"}')
    session = {"X-Session-Id": "s1"}
    async with two(made) as both:
        assert await both.status("/v1beta/cachedContents", headers=session) == 200
        both.says[0].answer = OVERLOADED
        assert await both.status(headers=session) == 503
        assert both.asked[1] == 0
        assert await both.status(headers={"X-Session-Id": "s2"}) == 200


# Upstreams that are down ------------------------------------------------------------------------------------------------


async def take_down(both: Two, clock: FakeClock) -> None:
    """The first upstream gives no answer until it is down."""
    async with turning(both.reach(), "down"):
        for _ in range(FAILURES):
            await both.status()
            clock.advance(0.3)


async def test_an_upstream_that_is_down_is_left_out_until_a_probe_succeeds() -> None:
    clock = FakeClock()
    async with two(None, clock=clock) as both:
        await take_down(both, clock)
        asked = len(both.first.requests)
        for _ in range(5):
            assert await both.status() == 200
        assert len(both.first.requests) == asked
        both.says[0].answer = ("200 OK", OK_BODY)
        async with turning(both.reach(), "up"):
            clock.advance(2.0)
        assert both.first.requests[-1].line == "GET /v1beta/models?pageSize=1 HTTP/1.1"
        asked = len(both.first.requests)
        assert await both.status() == 200
        assert len(both.first.requests) == asked + 1


async def test_a_probe_that_is_refused_proves_that_the_upstream_is_there() -> None:
    clock = FakeClock()
    async with two(None, clock=clock) as both:
        await take_down(both, clock)
        both.says[0].answer = OVERLOADED
        async with turning(both.reach(), "up"):
            clock.advance(2.0)


async def test_requests_that_kill_their_connection_do_not_take_an_upstream_down() -> None:
    clock = FakeClock()

    async def picky(peer: Peer) -> None:
        while (await peer.request()).line.startswith("GET"):
            await peer.answer()
        peer.reset()

    async with two(clock=clock) as both:
        both.first.script = picky
        async with turning(both.reach(), "doubted"):
            for _ in range(FAILURES):
                assert await both.status() == 200
                clock.advance(0.3)
        while not any(seen.line.startswith("GET") for seen in both.first.requests):
            await both.first.arrival()
        async with both.proxy.get("/v1beta/models") as response:
            assert response.status == 200
        assert both.reach().snapshot().state == "up"
        assert await both.status() == 200


async def test_the_only_upstream_down_is_a_502_at_once_and_works_after_the_first_probe() -> None:
    clock, port = FakeClock(), closed_port()
    async with proxying(url_of(port), FIRST, clock=clock, relay={"attempts": 2}) as proxy:
        reach = proxy.server.runtime.rooms.upstreams["gemini"].reach
        async with turning(reach, "down"):
            for _ in range(FAILURES):
                async with proxy.post() as response:
                    assert response.status == 502
                    assert ("Retry-After" in response.headers) == reach.down
                clock.advance(0.3)
        counted = sum(key["counts"]["upstream"] for key in await proxy.keys())
        async with proxy.post() as response:
            assert response.status == 502
            assert 1 <= int(response.headers["Retry-After"]) <= 3
            assert error_of(await response.read())["status"] == "UNAVAILABLE"
        assert sum(key["counts"]["upstream"] for key in await proxy.keys()) == counted

        server = await asyncio.start_server(answer_once, "127.0.0.1", port)
        async with turning(reach, "up"):
            clock.advance(3.0)
        async with proxy.post() as response:
            assert response.status == 200
        server.close()


async def test_where_nothing_can_probe_one_call_at_a_time_is_let_through() -> None:
    clock, port = FakeClock(), closed_port()
    async with proxying(url_of(port), FIRST, clock=clock, relay={"attempts": 1}) as proxy:
        runtime = proxy.server.runtime
        reach = runtime.rooms.upstreams["gemini"].reach

        async def failed() -> int:
            async with proxy.post() as response:
                assert response.status == 502
            return sum(key["counts"]["upstream"] for key in await proxy.keys())

        while not reach.down:
            await failed()
            clock.advance(0.3)
        await runtime.reach_probes.close()
        before = await failed()
        reach.unprobed()
        assert await failed() == before + 1
        assert await failed() == before + 1
        reach.unprobed()
        server = await asyncio.start_server(answer_once, "127.0.0.1", port)
        async with proxy.post() as response:
            assert response.status == 200
        assert not reach.troubled
        server.close()


async def test_a_reload_forgets_that_an_upstream_is_down_only_where_the_way_there_has_changed() -> None:
    clock = FakeClock()
    async with two(None, clock=clock) as both:
        await take_down(both, clock)
        runtime = both.proxy.server.runtime
        runtime.apply(runtime.settings)
        assert both.reach().down
        runtime.apply(settings(url_of(closed_port()), FIRST))
        assert not both.reach().down


async def test_what_belongs_to_an_upstream_that_is_down_waits_for_it() -> None:
    clock = FakeClock()
    made = ("200 OK", b'{"name": "cachedContents/c1"}')
    async with two(made, clock=clock) as both:
        assert await both.status("/v1beta/cachedContents") == 200
        both.says[0].answer = None
        await take_down(both, clock)
        asked = both.asked
        use = {"contents": [{"parts": [{"text": "x"}]}], "cachedContent": "cachedContents/c1"}
        async with both.proxy.post(json=use) as response:
            assert response.status == 502
            assert int(response.headers["Retry-After"]) >= 1
        assert both.asked == asked


async def test_an_ambiguous_name_stays_ambiguous_while_an_upstream_is_down() -> None:
    clock = FakeClock()
    async with two(None, clock=clock, more={"gemini": {"models": ["m"]}, "second": {"models": ["m"]}}) as both:
        call = "/v1beta/models/m:generateContent"
        async with turning(both.reach(), "down"):
            for _ in range(FAILURES):
                assert await both.status(call) == 200
                clock.advance(0.3)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        async with both.proxy.post("/v1/chat/completions", json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "model_ambiguous"


async def test_operators_see_an_upstream_that_is_down(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    async with two(None, clock=clock, logging={"level": "info"}) as both:

        async def seen() -> tuple[dict[str, Any], float]:
            async with both.proxy.client.get(both.proxy.admin_url + "/api/keys") as answer:
                told: dict[str, Any] = (await answer.json())["upstreams"][0]["reach"]
            async with both.proxy.client.get(both.proxy.admin_url + "/metrics") as answer:
                (line,) = [each for each in (await answer.text()).splitlines() if 'up{upstream="gemini"}' in each]
            return told, float(line.rpartition(" ")[2])

        told, up = await seen()
        assert (told["state"], told["next_probe"], up) == ("up", None, 1.0)
        await take_down(both, clock)
        told, up = await seen()
        assert (told["state"], up) == ("down", 0.0)
        assert told["reason"]
        assert told["since"] <= told["next_probe"]
        both.says[0].answer = ("200 OK", OK_BODY)
        async with turning(both.reach(), "up"):
            clock.advance(2.0)
    lines = [json.loads(line) for line in "".join(capsys.readouterr()).splitlines() if '"upstream' in line]
    events = [
        line["event"] for line in lines if line.get("upstream") == "gemini" and line["event"].startswith("upstream")
    ]
    assert events == ["upstream down: left out until a probe succeeds", "upstream up again"]


# A refusal that costs the key nothing -----------------------------------------------------------------------------------

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
NOT_YOURS = ("403 Forbidden", b'{"error": {"message": "not for this key", "code": "model_not_allowed"}}')


@pytest.mark.parametrize("allowed", [None, SECOND[1]])
async def test_a_refusal_that_costs_the_key_nothing_is_shown_when_every_key_has_refused(allowed: str | None) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        mine = allowed is not None and seen.get("authorization") == f"Bearer {allowed}"
        await (peer.answer() if mine else peer.answer(NOT_YOURS[1], NOT_YOURS[0]))

    kind = {"gemini": {"kind": "openai", "models": ["m"]}}
    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, SECOND, upstreams=kind) as proxy:
        async with proxy.post("/v1/chat/completions", json=CHAT) as response:
            assert response.status == (403 if allowed is None else 200)
            assert await response.read() == (NOT_YOURS[1] if allowed is None else b"{}")
        assert sorted(seen.get("authorization") or "" for seen in upstream.requests) == [
            f"Bearer {key}" for key in SECOND
        ]
        assert [key["state"] for key in await proxy.keys()] == ["ready", "ready"]


async def test_an_alias_of_several_upstreams_falls_back_over_kinds_with_each_ones_name() -> None:
    aliases: dict[str, dict[str, Any]] = {
        "gemini": {"aliases": {"best": "gemini-2.5-pro"}},
        "second": {"kind": "openai", "aliases": {"best": "gpt-5.1"}},
    }
    async with two(OVERLOADED, more=aliases) as both:
        async with both.proxy.post("/v1/chat/completions", json={**CHAT, "model": "best"}) as response:
            assert response.status == 200
        assert [seen.line for seen in both.first.requests] == ["POST /v1beta/openai/chat/completions HTTP/1.1"] * 2
        assert json.loads(both.first.requests[0].body)["model"] == "gemini-2.5-pro"
        (last,) = both.second.requests
        assert last.line == "POST /chat/completions HTTP/1.1"
        assert last.get("authorization") in {f"Bearer {key}" for key in SECOND}
        assert json.loads(last.body) == {**CHAT, "model": "gpt-5.1"}
