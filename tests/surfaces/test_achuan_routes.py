"""What is around turns with an upstream that keeps the conversation: bad requests, other endpoints, the route for sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from balancer.model import fingerprint
from tests.surfaces.backend_chats import (
    ALICE,
    ANN_TOKEN,
    BEN_TOKEN,
    BOB,
    CHAT,
    CREATE,
    MODEL,
    OTHER_MODEL,
    here,
    user,
)

# The rest of the surface -----------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Any, int, str, str | None]] = {
    "a list": (b"[]", 400, "invalid_json", None),
    "no model": ({"messages": [user()]}, 400, "missing_required_parameter", "model"),
    "no messages": ({"model": MODEL}, 400, "missing_required_parameter", "messages"),
    "empty messages": ({"model": MODEL, "messages": []}, 400, "missing_required_parameter", "messages"),
    "messages no list": ({"model": MODEL, "messages": "x"}, 400, "missing_required_parameter", "messages"),
    "only the assistant": (
        {"model": MODEL, "messages": [{"role": "assistant", "content": "a"}]},
        400,
        "missing_required_parameter",
        "messages",
    ),
    "content null": ({"model": MODEL, "messages": [user(None)]}, 400, "missing_required_parameter", "messages"),
    "content empty": ({"model": MODEL, "messages": [user([])]}, 400, "missing_required_parameter", "messages"),
}


@pytest.mark.parametrize("case", sorted(BAD))
async def test_bad_requests_are_told_what_is_wrong_and_reach_nobody(case: str) -> None:
    body, status, code, param = BAD[case]
    async with here() as at:
        answer = await at.ann.post(CHAT, body)
        assert (answer.code, answer.json["error"]["param"]) == ((status, code), param)
        if "content" in case or "assistant" in case:
            assert answer.message == "无法从 messages 提取文本"
        assert not at.standin.requests


IGNORED: dict[str, tuple[Mapping[str, str], Mapping[str, Any]]] = (
    {f"header {value}": ({"x-session-id": value}, {}) for value in ("abc", "0", "-5", "12.9", "1e3")}
    | {f"metadata {value}": ({}, {"metadata": {"sessionId": value}}) for value in (0.5, True, None, -1)}
    | {"metadata 7": ({}, {"metadata": 7}), "user blank": ({}, {"user": ""}), "user number": ({}, {"user": 7})}
)


@pytest.mark.parametrize("case", sorted(IGNORED))
async def test_what_is_no_session_number_is_a_handle_or_nothing(case: str) -> None:
    headers, more = IGNORED[case]
    async with here() as at:
        answers = [await at.ann.say(headers=headers, **more) for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200]
        handle = case.startswith("header")
        assert len(at.created) == (1 if handle else 2)


async def test_a_handle_gives_way_to_a_number_in_a_later_place() -> None:
    async with here() as at:
        number = at.standin.begin_session("alice", MODEL).number
        answer = await at.ann.say(headers={"x-session-id": "abc"}, metadata={"sessionId": number})
        assert answer.session == str(number)


async def test_a_body_that_cannot_be_kept_whole_is_too_large() -> None:
    async with here(relay={"replay_limit": "16KiB"}) as at:
        answer = await at.ann.say("x" * 20_000)
        assert answer.code == (413, "request_too_large")
        assert not at.standin.requests


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses", "/v1/embeddings"])
async def test_other_endpoints_are_not_served(path: str) -> None:
    async with here() as at:
        answer = await at.ann.post(path, {"model": MODEL, "input": "x", "prompt": "x"})
        assert answer.code == (400, "unsupported_endpoint")
        assert not at.standin.requests


async def test_the_configured_models_are_listed() -> None:
    async with here() as at:
        async with at.proxy.get("/v1/models", headers={"Authorization": f"Bearer {ANN_TOKEN}"}) as answer:
            shown = {each["id"]: each["owned_by"] for each in (await answer.json())["data"]}
        assert {f"achuan/{MODEL}", MODEL, f"achuan/{OTHER_MODEL}", OTHER_MODEL} <= set(shown)
        assert {shown[MODEL], shown[OTHER_MODEL]} == {"achuan"}


async def test_a_client_s_own_limits_hold_here_too() -> None:
    tokens = [{"name": "ann", "token": ANN_TOKEN, "rpm": 2}, {"name": "ben", "token": BEN_TOKEN}]
    async with here(auth={"tokens": tokens}) as at:
        assert (await at.ann.say()).status == 200
        assert (await at.ann.post(CREATE, {"model": MODEL})).status == 200
        for refused in (await at.ann.say(), await at.ann.post(CREATE, {"model": MODEL})):
            assert refused.code == (429, "rate_limit_exceeded")
            assert refused.headers["x-ratelimit-limit-requests"] == "2"


async def test_a_model_that_is_named_is_bound_once_the_request_is_good_whatever_becomes_of_it() -> None:
    async with here() as at:
        login = await at.ann.post("/auth/login", {"api_key": ANN_TOKEN})
        session = {"Authorization": f"Bearer {login.json['token']}"}
        assert (await at.ann.post(CHAT, {"messages": [user()]}, session)).status == 400
        assert (await at.ann.post(CHAT, {"model": MODEL, "messages": [user(None)]}, session)).status == 400
        assert (await at.ann.post(CHAT, {"messages": [user()]}, session)).status == 400
        at.standin.script(ALICE, "status-400", times=1)
        assert (await at.ann.post(CHAT, {"model": MODEL, "messages": [user()]}, session)).status == 400
        bound = await at.ann.post(CHAT, {"messages": [user()]}, session)
        assert bound.json["model"] == MODEL


async def test_raw_calls_carry_the_bare_token() -> None:
    async with here(settings={"raw": True}) as at:
        body = {"model": MODEL, "plugins": [], "mcp": []}
        answer = await at.ann.post(f"/proxy/achuan{CREATE}", body, {"content-type": "application/json"})
        assert answer.status == 200
        assert at.created[0].header("authorization") == ALICE


async def test_the_access_line_tells_model_upstream_key_attempts_and_whose_time_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with here([ALICE, BOB], logging={"level": "info"}) as at:
        at.standin.script(ALICE, "status-401", times=1)
        for stream in (False, True):
            assert (await at.ann.say(stream=stream)).status == 200
        at.proxy.server.runtime.logs.flush()
        lines = [json.loads(each) for each in capfd.readouterr().err.splitlines() if '"event":"request"' in each]
    assert [(each["model"], each["upstream"], each["status"]) for each in lines] == [(MODEL, "achuan", 200)] * 2
    assert [each["attempts"] for each in lines] == [3, 2]
    assert {each["key"] for each in lines} == {fingerprint(BOB)}
    assert all(each["bytes_in"] > 0 and each["bytes_out"] > 0 and each["ttfb_ms"] > 0 for each in lines)
    assert ALICE not in json.dumps(lines)


# POST /api/chat/session ------------------------------------------------------------------------------------------------


async def test_the_curl_flow_works_with_a_client_token_and_no_other() -> None:
    async with here() as at:
        made = await at.ann.post(CREATE, {"model": MODEL})
        assert made.status == 200
        number = made.body.decode().split('"id":')[1].split(",")[0]
        assert made.session == number
        assert made.json["data"]["id"] == int(number)
        assert made.json["code"] == 0
        assert (await at.ann.say("hi", headers={"x-session-id": number})).text == "You said: hi"
        assert (await at.ben.say(headers={"x-session-id": number})).status == 404
        assert len(at.created) == 1


async def test_a_session_is_made_with_what_the_client_wants_beside_the_model() -> None:
    async with here() as at:
        made = await at.ann.post(CREATE, {"model": f"achuan/{MODEL}", "plugins": ["p"], "extra": 1})
        assert made.status == 200
        assert at.created[0].json() == {"model": MODEL, "plugins": ["p"], "mcp": [], "extra": 1}


async def test_a_line_of_text_is_the_answer_where_that_is_asked_for() -> None:
    async with here() as at:
        made = await at.ann.post(CREATE, {"model": MODEL}, {"Accept": "text/plain", "Authorization": ANN_TOKEN})
        assert made.body == f"Session ID: {made.session}\n".encode()
        assert made.headers["content-type"].startswith("text/plain")


SESSION_ERRORS: dict[str, tuple[Any, dict[str, str], str | None, tuple[int, str]]] = {
    "no object": (b"[", {}, None, (400, "invalid_json")),
    "no model": ({}, {}, None, (400, "missing_required_parameter")),
    "model no text": ({"model": 5}, {}, None, (400, "missing_required_parameter")),
    "no token": ({"model": MODEL}, {"Authorization": ""}, None, (401, "missing_api_key")),
    "wrong token": ({"model": MODEL}, {"Authorization": "Bearer nobody"}, None, (401, "invalid_api_key")),
    "unknown model": ({"model": "nope"}, {}, None, (404, "model_not_found")),
    "model of another kind": ({"model": "gemini-2.5-flash"}, {}, None, (404, "model_not_found")),
    "the backend fails": ({"model": MODEL}, {}, "status-500", (502, "backend_error")),
    "the backend is away": ({"model": MODEL}, {}, "rst", (502, "backend_connection_error")),
    "the backend refuses": ({"model": MODEL}, {}, "status-400", (400, "backend_error")),
    "no key is left": ({"model": MODEL}, {}, "status-401", (503, "no_usable_key")),
    "all keys rest": ({"model": MODEL}, {}, "status-429", (429, "keys_resting")),
}


@pytest.mark.parametrize("case", sorted(SESSION_ERRORS))
async def test_errors_of_that_route_have_the_backend_s_shape_and_nothing_that_looks_like_an_id(case: str) -> None:
    body, headers, fault, code = SESSION_ERRORS[case]
    async with here(relay={"attempts": 1}) as at:
        if fault is not None:
            at.standin.script(ALICE, fault, seconds=600)
        answer = await at.ann.post(CREATE, body, headers)
        assert answer.code == code
        assert list(answer.json) == ["code", "data", "msg", "error"]
        assert (answer.json["code"], answer.json["data"]) == (answer.status, None)
        assert answer.json["msg"] == answer.message
        assert b'"id":' not in answer.body
        assert answer.status != 429 or answer.headers["Retry-After"] == "600"


async def test_that_route_takes_nothing_but_posts() -> None:
    async with here() as at, at.proxy.get(CREATE, headers={"Authorization": f"Bearer {ANN_TOKEN}"}) as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST"
