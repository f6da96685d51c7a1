"""The limits of a client on the surfaces: requests in a minute, requests at a time, tokens of output."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from tests.fakes import FakeClock
from tests.proxy import GENERATE
from tests.surfaces.logins import ANN, BOB, TOKENS, completing, here, limited
from tests.upstream import Peer, Seen


async def test_of_three_requests_at_once_two_pass_and_the_third_does_when_it_was_told_to_come_again() -> None:
    clock = FakeClock()
    async with limited(clock, rpm=2) as at:
        answers = await asyncio.gather(*(at.generate(ANN) for _ in range(3)))
        assert sorted(answer.status for answer in answers) == [200, 200, 429]
        (refused,) = [answer for answer in answers if answer.status == 429]
        assert refused.json["error"]["status"] == "RESOURCE_EXHAUSTED"
        assert refused.headers["Retry-After"] == "60"
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"
        assert len(at.upstream.requests) == 2
        clock.advance(int(refused.headers["Retry-After"]))
        assert (await at.generate(ANN)).status == 200


async def test_a_session_counts_as_its_client_and_others_are_counted_apart() -> None:
    async with limited(FakeClock(), rpm=2) as at:
        token = await at.login()
        assert [(await at.generate(each)).status for each in (ANN, token, ANN, token)] == [200, 200, 429, 429]
        assert (await at.post("/v1beta/files", {}, BOB)).status == 200


async def test_what_reaches_no_upstream_counts_for_nothing() -> None:
    async with limited(FakeClock(), rpm=1) as at:
        assert (await at.post("/v1beta/models/no-such-model:generateContent", {}, ANN)).status == 404
        assert (await at.post("/v1beta//no", {}, ANN)).status in (400, 404)
        token = await at.login()
        assert (await at.bind(token)).status == 200
        assert (await at.generate(ANN)).status == 200
        assert (await at.generate(ANN)).status == 429


async def test_a_request_in_flight_takes_a_place_until_it_ends_however_it_ends() -> None:
    gate = asyncio.Event()

    async def waiting(peer: Peer, seen: Seen) -> None:
        await gate.wait()
        await completing(peer, seen)

    async with limited(concurrency=1, answer=waiting) as at:
        first = asyncio.create_task(at.generate(ANN))
        await at.upstream.arrival()
        refused = await at.generate(ANN)
        assert refused.status == 429
        assert refused.json["error"]["details"][-1]["reason"] == "CONCURRENCY_EXCEEDED"
        assert refused.headers["x-ratelimit-limit-requests"] == "1"
        gate.set()
        assert (await first).status == 200
        assert (await at.generate(ANN)).status == 200


async def test_a_client_that_leaves_gives_its_place_back() -> None:
    left = asyncio.Event()
    answers = iter([False, True])

    async def waiting(peer: Peer, seen: Seen) -> None:
        if next(answers):
            await completing(peer, seen)
            return
        await peer.gone()
        left.set()

    async with limited(concurrency=1, answer=waiting) as at:
        first = asyncio.create_task(at.generate(ANN))
        await at.upstream.arrival()
        first.cancel()
        async with asyncio.timeout(10):
            await left.wait()
        assert (await at.generate(ANN)).status == 200


async def test_a_request_that_fails_gives_its_place_back() -> None:
    async def failing(peer: Peer, seen: Seen) -> None:
        await peer.answer(b"{}", "404 Not Found")

    async with limited(concurrency=1, answer=failing) as at:
        assert [(await at.generate(ANN)).status for _ in range(3)] == [404, 404, 404]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"maxOutputTokens": 500}, {"maxOutputTokens": 100}),
        (None, {"maxOutputTokens": 100}),
        ({"maxOutputTokens": 50}, {"maxOutputTokens": 50}),
        ({"topK": 1}, {"maxOutputTokens": 100, "topK": 1}),
    ],
)
@pytest.mark.parametrize("path", [GENERATE, GENERATE.replace(":gen", ":streamGen")])
@pytest.mark.parametrize("coding", [None, "gzip"])
async def test_gemini_s_limit_of_output_is_the_smaller_of_both(
    config: Any, expected: Any, path: str, coding: str | None
) -> None:
    async with limited(max_tokens=100) as at:
        body = {"contents": [], **({} if config is None else {"generationConfig": config})}
        data, headers = json.dumps(body).encode(), {}
        if coding is not None:
            data, headers = gzip.compress(data), {"Content-Encoding": coding}
        assert (await at.post(path, data, await at.login(), **headers)).status == 200
        assert at.seen[0]["generationConfig"] == expected
        assert at.upstream.requests[0].get("content-encoding") is None


async def test_other_methods_and_other_clients_bodies_stay_as_they_came() -> None:
    body = b'{"contents": [], "generationConfig" : { "maxOutputTokens":500 } }'
    async with limited(max_tokens=100) as at:
        assert (await at.post(GENERATE.replace("generateContent", "countTokens"), body, ANN)).status == 200
        at.reload(tokens=TOKENS)
        assert (await at.post(GENERATE, body, ANN)).status == 200
        assert [seen.body for seen in at.upstream.requests] == [body, body]


async def test_a_body_that_cannot_be_looked_through_for_its_limit_is_refused() -> None:
    tokens = [{"name": "ann", "token": ANN, "max_tokens": 100}]
    async with here(auth={"tokens": tokens}, relay={"replay_limit": "1KiB"}) as at:
        assert (await at.post(GENERATE, b'{"contents":"' + b"x" * 2048 + b'"}', ANN)).status == 413
        assert (await at.post(GENERATE, b"{}", ANN, **{"Content-Encoding": "zstd"})).status == 415
        assert (await at.post(GENERATE, b"{}", ANN)).status == 200
        assert at.proxy.server.runtime.budget.used == 0
        assert len(at.upstream.requests) == 1


@pytest.mark.parametrize(("said", "expected"), [({"max_tokens": 500}, 100), ({}, 100), ({"max_tokens": 50}, 50)])
async def test_openai_s_limit_of_output_is_the_smaller_of_both(said: dict[str, int], expected: int) -> None:
    async with limited(max_tokens=100) as at:
        assert (await at.chat(ANN, "gpt-5.1", **said)).status == 200
        limits = [value for name, value in at.seen[0].items() if name in ("max_tokens", "max_completion_tokens")]
        assert limits == [expected]


async def test_over_its_limit_a_client_is_told_in_openai_s_dialect() -> None:
    async with limited(FakeClock(), rpm=1) as at:
        assert (await at.chat(ANN, "gpt-5.1")).status == 200
        refused = await at.chat(ANN, "gpt-5.1")
        assert refused.code == (429, "rate_limit_exceeded")
        assert refused.headers["Retry-After"] == "60"
        assert refused.headers["x-ratelimit-reset-requests"] == "1m0s"


async def test_a_body_that_finds_no_room_to_be_looked_through_is_told_to_come_again() -> None:
    tokens = [{"name": "ann", "token": ANN, "max_tokens": 100}]
    async with here(auth={"tokens": tokens}, relay={"buffer_budget": "1KiB"}) as at:
        refused = await at.post(GENERATE, b'{"contents":"' + b"x" * 2048 + b'"}', ANN)
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert (await at.generate(ANN)).status == 200
        assert at.proxy.server.runtime.budget.used == 0
