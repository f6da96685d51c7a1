"""A session's model on the openai surface: used where none is named, changed where one is, and looked at anew each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.surfaces.logins import ANN, BOB, CHAT, GOOD, here
from tests.upstream import Peer, Seen


async def test_a_session_without_a_model_is_asked_for_one() -> None:
    async with here() as at:
        for token in (await at.login(), ANN):
            answer = await at.chat(token)
            assert answer.code == (400, "missing_required_parameter")
            assert answer.json["error"]["param"] == "model"
        assert not at.upstream.requests


@pytest.mark.parametrize("absent", [{}, {"model": None}, {"model": ""}, {"model": "  "}])
async def test_a_bound_model_is_used_by_a_request_that_names_none(absent: dict[str, Any]) -> None:
    async with here() as at:
        token = await at.login()
        assert (await at.bind(token)).status == 200
        assert (await at.chat(token, **absent)).status == 200
        assert at.seen[0]["model"] == "gpt-5.1"
        assert at.upstream.requests[0].line.startswith("POST /v1/chat/completions ")


async def test_a_login_with_a_model_needs_none_in_its_first_call() -> None:
    async with here() as at:
        assert (await at.chat(await at.login(**GOOD))).status == 200
        assert at.seen[0]["model"] == "gpt-5.1"


async def test_a_model_that_is_named_wins_and_is_bound_from_then_on() -> None:
    async with here() as at:
        token = await at.login(**GOOD)
        for model in ("gemini/gemini-2.5-flash", None):
            assert (await at.chat(token, model)).status == 200
        assert [seen["model"] for seen in at.seen] == ["gemini-2.5-flash", "gemini-2.5-flash"]
        assert await at.bound(token) == ("gemini", "gemini-2.5-flash")


async def test_a_request_that_is_refused_binds_nothing() -> None:
    async with here() as at:
        token = await at.login(**GOOD)
        assert (await at.chat(token, "gpt-9")).code == (404, "model_not_found")
        assert (await at.chat(token, "gpt-off")).code == (400, "model_inactive")
        assert (await at.chat(token, "gemini/gemini-2.5-flash", messages=[])).status == 400
        no_messages = await at.post(CHAT, {"model": "gemini/gemini-2.5-flash"}, token)
        assert no_messages.status == 400
        assert await at.bound(token) == ("openai", "gpt-5.1")
        assert not at.upstream.requests


async def test_an_upstream_that_fails_leaves_the_model_bound() -> None:
    async def failing(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"error":{"message":"no"}}', "500 Internal Server Error")

    async with here(answer=failing) as at:
        token = await at.login(**GOOD)
        assert (await at.chat(token, "deepseek/v3")).status == 500
        assert await at.bound(token) == ("openai", "deepseek/v3")


async def test_no_other_route_rebinds() -> None:
    async with here() as at:
        token = await at.login(**GOOD)
        assert (await at.post("/v1/embeddings", {"model": "deepseek/v3", "input": "x"}, token)).status == 200
        assert (await at.generate(token)).status == 200
        assert await at.bound(token) == ("openai", "gpt-5.1")


async def test_a_bound_model_is_looked_at_anew_with_every_use() -> None:
    async with here() as at:
        token = await at.login(**GOOD)
        at.reload(tokens=[{"name": "ann", "token": ANN, "models": ["gemini/*"]}])
        assert (await at.chat(token)).code == (403, "model_not_allowed")
        assert not at.upstream.requests


async def test_a_model_of_two_upstreams_must_be_named_with_one_unless_only_one_is_allowed() -> None:
    async with here() as at:
        answer = await at.chat(ANN, "shared")
        assert answer.code == (400, "model_ambiguous")
        text = "模型 shared 不唯一，请使用 provider/model：gemini/shared、openai/shared"
        assert answer.json["error"]["message"] == text
        assert (await at.chat(BOB, "shared")).status == 200
        assert at.upstream.requests[0].line.startswith("POST /v1/chat/completions ")


async def test_a_refused_credential_is_told_in_the_words_of_the_surface() -> None:
    async with here() as at:
        none = await at.chat(None, "gpt-5.1")
        assert none.status == 401
        assert none.headers["WWW-Authenticate"] == "Bearer"
        assert none.json["error"] == {
            "message": "未认证。请先通过 /auth/login 登录获取 Session Token，或使用 API Key 进行认证。",
            "type": "invalid_request_error",
            "param": None,
            "code": "missing_api_key",
        }
        wrong = await at.chat("bal_" + "x" * 43, "gpt-5.1")
        assert (wrong.status, wrong.json["error"]["code"]) == (401, "invalid_api_key")
        assert wrong.json["error"]["message"] == "无效的 API Key 或 Session Token"


async def test_without_tokens_whatever_an_sdk_sends_passes_as_anonymous(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with here(auth={"tokens": []}, logging={"level": "info", "file": str(log)}) as at:
        assert (await at.chat("sk-anything", "gpt-5.1")).status == 200
    (line,) = [json.loads(each) for each in log.read_text().splitlines() if '"request"' in each]
    assert line["client"] == "anonymous"
