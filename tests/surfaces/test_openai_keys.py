"""What upstreams answer, seen from both ends: which key is asked next, and what the client is shown."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from balancer.model import fingerprint
from tests.fakes import FakeClock
from tests.surfaces.openai_calls import ANN, CHAT, GPT, MESSAGES, OA_KEYS, TOKENS, World, scripted, world
from tests.upstream import Peer, Seen, serving

ONE = OA_KEYS[:1]


async def states(here: World, upstream: str = "oa") -> list[str]:
    """The states of the keys that are not ready."""
    return [key["state"] for key in (await here.key_states(upstream)).values() if key["state"] != "ready"]


# The caller's own faults


@pytest.mark.parametrize("status", [400, 404, 405, 409, 413, 415, 422, 418, 501])
async def test_what_is_the_callers_fault_is_passed_on_untouched_and_costs_no_key(status: int) -> None:
    body = b'{ "error": {"message": "as it came", "type": "x", "code": null, "odd": 1.0} }'

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(body, f"{status} Whatever", ("x-request-id: req_up", "Retry-After: 7"))

    async with scripted(serving(answer)) as here:
        given = await here.ann.chat()
        assert (given.status, given.body) == (status, body)
        assert (given.headers["x-request-id"], given.headers["Retry-After"]) == ("req_up", "7")
        assert len(here.upstream.requests) == 1
        assert {key["state"] for key in await here.proxy.keys()} == {"ready"}


# Keys


async def test_a_key_that_is_refused_is_disabled_and_the_client_sees_the_next_ones_answer() -> None:
    async with world(keys=OA_KEYS[:2]) as here:
        here.oa.script(OA_KEYS[0], "key-invalid")
        here.oa.script(OA_KEYS[1], "rate-retry-after", times=0)
        for _ in range(2):
            assert (await here.ann.chat()).status == 200
        assert here.keys().count(OA_KEYS[0]) == 1
        assert (await here.key_states())[fingerprint(OA_KEYS[0])]["state"] == "disabled"
        here.oa.script(OA_KEYS[1], "key-invalid")
        last = await here.ann.chat()
        assert last.code == (503, "no_usable_key")
        assert last.error["type"] == "server_error"
        assert "Retry-After" not in last.headers
        assert not any(key in last.body.decode() for key in OA_KEYS)
        here.oa.forget()
        assert (await here.ann.chat()).code == (503, "no_usable_key")
        assert not here.oa.requests


@pytest.mark.parametrize("fault", ["key-invalid", "account-deactivated", "region", "names-key"])
async def test_whatever_says_that_a_key_is_dead_disables_it(fault: str) -> None:
    async with world(keys=OA_KEYS[:2]) as here:
        met = here.oa.script("*", fault, times=1)
        assert (await here.ann.chat()).status == 200
        assert met.used == 1
        assert await states(here) == ["disabled"]


async def test_another_403_has_another_key_asked_and_the_last_answer_is_shown() -> None:
    async with world() as here:
        met = here.oa.script("*", "forbidden", times=2)
        assert (await here.ann.chat()).status == 200
        assert (met.used, len(set(here.keys()))) == (2, 3)
        met = here.oa.script("*", "forbidden")
        answer = await here.ann.chat()
        assert answer.status == 403
        assert answer.error["message"] == "You have insufficient permissions for this operation."
        assert met.used == 3  # each key once
        assert await states(here) == []


async def test_a_403_of_the_resources_owner_is_the_callers() -> None:
    async with world() as here:
        name = await here.ann.upload()
        here.oa.forget()
        met = here.oa.script("*", "forbidden")
        assert (await here.ann.get(f"files/{name}")).status == 403
        assert (
            await here.ann.post("responses", {"model": GPT, "input": [{"type": "input_file", "file_id": name}]})
        ).status == 403
        assert met.used == 2


@pytest.mark.parametrize("fault", ["payment", "quota"])
async def test_a_key_without_money_rests_for_an_hour_and_then_longer(fault: str) -> None:
    clock = FakeClock()
    async with world(clock=clock, keys=ONE, oa={"models": ["gpt-*"]}) as here:
        met = here.oa.script("*", fault, target="/chat/")
        for seconds in (3600, 7200):
            answer = await here.ann.chat()
            assert answer.code == (429, "keys_resting")
            assert answer.error["type"] == "rate_limit_error"
            assert answer.headers["Retry-After"] == str(seconds)
            clock.advance(seconds)
        assert met.used == 2


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [("rate-retry-after-ms", 40), ("rate-retry-after", 40), ("rate-date", 40), ("rate-reset", 40), ("rate-bare", 10)],
)
async def test_a_key_over_its_rate_rests_as_long_as_it_says(fault: str, seconds: int) -> None:
    clock = FakeClock(time.time())  # a date is read against the one that its answer has
    async with world(clock=clock, keys=ONE) as here:
        here.oa.script("*", fault, times=1, seconds=40)
        answer = await here.ann.chat()
        assert answer.code == (429, "keys_resting")
        assert answer.headers["Retry-After"] == str(seconds)
        assert not {name.lower() for name in answer.headers} & {"x-ratelimit-reset-tokens", "retry-after-ms"}
        clock.advance(seconds - 2.5)
        assert (await here.ann.chat()).headers["Retry-After"] == "3"
        clock.advance(2.5)
        assert (await here.ann.chat()).status == 200


async def test_a_rate_limit_is_of_one_model() -> None:
    async with world(keys=ONE) as here:
        here.oa.script("*", "rate-retry-after", times=1, seconds=40)
        assert (await here.ann.chat()).status == 429
        assert (await here.ann.chat("oa/gpt-4o")).status == 200


async def test_a_call_waits_for_the_first_key_back_where_that_is_soon() -> None:
    refusals = iter(range(3))

    async def answer(peer: Peer, seen: Seen) -> None:
        if next(refusals, None) is None:
            await peer.answer(b'{"choices": []}')
        else:
            limited = b'{"error": {"code": "rate_limit_exceeded"}}'
            await peer.answer(limited, "429 Too Many Requests", ("retry-after-ms: 300", "retry-after: 1"))

    async with scripted(serving(answer)) as here:
        began = asyncio.get_running_loop().time()
        assert (await here.ann.chat()).status == 200
        assert 0.29 < asyncio.get_running_loop().time() - began < 0.95
        assert len({seen.get("authorization") for seen in here.upstream.requests[:3]}) == 3


async def test_keys_that_rest_longer_than_a_call_may_wait_are_told_of_at_once() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        for key, seconds in zip(OA_KEYS, (90, 50, 70), strict=True):
            here.oa.script(key, "rate-retry-after", times=1, seconds=seconds)
        answer = await here.ann.chat()
        assert answer.code == (429, "keys_resting")
        assert answer.headers["Retry-After"] == "50"
        clock.advance(50)
        assert (await here.ann.chat()).status == 200
        assert here.keys()[-1] == OA_KEYS[1]


# The upstream's faults


@pytest.mark.parametrize(
    "fault", ["error-408", "error-500", "error-502", "error-503", "error-504", "error-529", "rst", "fin"]
)
async def test_what_is_the_upstreams_fault_is_asked_once_more_with_another_key(fault: str) -> None:
    async with world() as here:
        met = here.oa.script("*", fault, times=1)
        assert (await here.ann.chat()).status == 200
        assert met.used == 1
        assert len(set(here.keys())) == 2
        here.oa.forget()
        met = here.oa.script("*", fault)
        answer = await here.ann.chat()
        assert met.used == 2
        if fault in ("rst", "fin"):
            assert answer.code == (502, "upstream_error")
        else:
            assert answer.status == int(fault.removeprefix("error-"))  # the last answer, untouched
            assert b"keys" not in answer.body
        assert await states(here) == []


async def test_what_makes_something_is_not_sent_twice() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        met = here.oa.script("*", "error-500")
        for path, body in (
            ("responses", {"model": GPT, "input": "x"}),
            ("chat/completions", {"model": GPT, "messages": MESSAGES, "store": True}),
            ("images/generations", {"model": "oa/gpt-image-1", "prompt": "x"}),
            ("threads", {}),
        ):
            before = met.used
            assert (await here.ann.post(path, body)).status == 500
            assert met.used == before + 1
            clock.advance(60)  # else several keys that meet the same would have the upstream left alone for a while
        here.oa.clear("*")
        refused = here.oa.script("*", "rate-retry-after", times=1)
        assert (await here.ann.respond()).status == 200  # a key that refused has made nothing
        assert refused.used == 1


async def test_an_upstream_that_cannot_be_reached_is_named_as_such() -> None:
    more = {
        "dead": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "keys": ["sk-dead-key-00001"], "models": ["m"]}
    }
    async with world(more=more) as here:
        answer = await here.ann.chat("dead/m")
        assert answer.code == (502, "upstream_unreachable")
        assert answer.error["type"] == "server_error"


@pytest.mark.parametrize(("fault", "options"), [("redirect", {}), ("garbage", {}), ("big-head", {})])
async def test_an_answer_that_is_none_is_said_to_be_none(fault: str, options: dict[str, Any]) -> None:
    async with world() as here:
        met = here.oa.script("*", fault, **options)
        answer = await here.ann.chat()
        assert answer.code == (502, "upstream_error")
        assert met.used == 1
        assert "Location" not in answer.headers


async def test_an_upstream_that_says_nothing_is_not_asked_again() -> None:
    async with world(relay={"timeouts": {"first_byte": "0.2s"}}) as here:
        met = here.oa.script("*", "stall-head")
        assert (await here.ann.chat()).code == (504, "upstream_timeout")
        assert met.used == 1


async def test_a_pool_keys_text_in_an_error_is_masked() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        key = (seen.get("authorization") or "").removeprefix("Bearer ")
        await peer.answer(json.dumps({"error": {"message": f"{key} may not"}}).encode(), "400 Bad Request")

    async with scripted(serving(answer)) as here:
        given = await here.ann.chat()
        assert given.status == 400
        assert b"may not" in given.body
        assert not any(key.encode() in given.body for key in OA_KEYS)


# Google's list of one error


async def test_googles_list_of_one_error_rests_its_key_and_is_shown_as_an_object() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        met = here.gemini.script("*", "rate-minute", times=1, seconds=40)
        assert (await here.ann.chat("gemini/gemini-2.5-flash")).status == 200
        assert met.used == 1
        (resting,) = [key for key in (await here.key_states("gemini")).values() if key["state"] == "resting"]
        assert resting["fingerprint"] == fingerprint(here.gemini.requests[0].key or "")
        clock.advance(39)
        assert "resting" in await states(here, "gemini")
        clock.advance(1)
        assert await states(here, "gemini") == []
        wrong = await here.ann.chat("gemini/gemini-2.5-flash", n=99)
        assert wrong.status == 400
        error = wrong.json["error"]
        assert error["code"] == 400
        assert "candidate_count" in error["message"]


# A client's own limits


async def test_a_client_over_its_rate_is_told_when_to_come_again() -> None:
    clock = FakeClock()
    auth = {"tokens": [{"name": "ann", "token": ANN, "rpm": 1}, TOKENS[1]]}
    async with world(clock=clock, auth=auth) as here:
        assert (await here.ann.chat()).status == 200
        refused = await here.ann.call("POST", CHAT, {"model": GPT, "messages": MESSAGES})
        assert refused.code == (429, "rate_limit_exceeded")
        assert refused.error["type"] == "rate_limit_error"
        assert refused.headers["Retry-After"] == "60"
        told = {name: refused.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")}
        assert told == {"limit": "1", "remaining": "0", "reset": "1m0s"}
        listed = await here.ann.get("files")
        assert listed.code == (429, "rate_limit_exceeded")
        assert (await here.ann.get("models")).status == 200  # reaches no upstream
        clock.advance(60)
        assert (await here.ann.chat()).status == 200
