"""The surface itself: log in, bind a model, log out, and what each of them is refused with."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.proxy import GENERATE
from tests.surfaces.logins import ANN, BOB, GOOD, here

LOGGED_IN = "登录成功，请使用此 token 进行后续请求。使用 /auth/bind-model 绑定模型。"
NO_KEY = "请提供 API Key（通过请求体 api_key 字段或 Authorization 头）"
BAD_KEY = "无效的 API Key"
NO_TOKEN = "缺少 Session Token"
NO_SESSION = "Session 不存在或已过期"
NOT_JSON = "请求体必须是有效的 JSON 格式"
EMPTY = "请求体不能为空"
NO_OBJECT = "请求体必须是 JSON 对象"
NO_MODEL = "请提供 provider_name 和 model_name"
UNAVAILABLE = "会话存储暂不可用"


# Log in ---------------------------------------------------------------------------------------------------------------


async def test_a_client_token_buys_a_session_token_of_47_characters() -> None:
    async with here() as at:
        answer = await at.post("/auth/login", {"api_key": ANN})
        assert answer.status == 200
        token = answer.json.pop("token")
        assert re.fullmatch(r"bal_[A-Za-z0-9_-]{43}", token)
        assert len(base64.urlsafe_b64decode(token.removeprefix("bal_") + "=")) == 32
        assert answer.json == {"expires_in": 86400, "message": LOGGED_IN}
        assert (await at.generate(token)).status == 200
        assert await at.login() != token


async def test_a_login_with_a_model_echoes_it_and_binds_it() -> None:
    async with here() as at:
        answer = await at.post("/auth/login", {"api_key": ANN, **GOOD})
        token = answer.json.pop("token")
        assert answer.json == {"expires_in": 86400, "message": LOGGED_IN, **GOOD}
        assert await at.bound(token) == ("openai", "gpt-5.1")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {ANN}"},
        {"Authorization": ANN},
        {"x-goog-api-key": ANN},
        {"x-api-key": ANN},
        {"X-Session-Token": ANN},
        {"Authorization": "Bearer wrong", "api-key": ANN},
    ],
)
@pytest.mark.parametrize("body", [None, b"", b"{}", b"no json", b'{"api_key": null, "model_name": null}', b"\xff"])
async def test_the_key_may_stand_in_any_place_when_the_body_has_none(headers: dict[str, str], body: Any) -> None:
    async with here() as at:
        assert (await at.post("/auth/login", body, **headers)).status == 200


async def test_the_key_may_stand_in_the_query_too_and_a_key_in_the_body_goes_first() -> None:
    async with here() as at:
        assert (await at.post(f"/auth/login?key={ANN}")).status == 200
        answer = await at.post("/auth/login", {"api_key": f" {ANN} "}, "wrong")
        assert answer.status == 200
        assert (await at.post("/auth/login", {"api_key": "wrong"}, ANN)).said == (403, BAD_KEY)


LOGIN_ERRORS: dict[str, tuple[Any, int, str]] = {
    "a list": (b"[]", 400, NO_OBJECT),
    "a text": (b'"x"', 400, NO_OBJECT),
    "nothing as JSON": (b"null", 400, NO_OBJECT),
    "a number": (b"5", 400, NO_OBJECT),
    "no body": (None, 401, NO_KEY),
    "no JSON": (b"{", 401, NO_KEY),
    "no key": ({}, 401, NO_KEY),
    "a key that is no text": ({"api_key": 5}, 401, NO_KEY),
    "a blank key": ({"api_key": " \t"}, 401, NO_KEY),
    "an unknown key": ({"api_key": "wrong"}, 403, BAD_KEY),
    "a key in odd case": ({"api_key": ANN.upper()}, 403, BAD_KEY),
    "a key of a megabyte, nearly": ({"api_key": "k" * 60_000}, 403, BAD_KEY),
    "no such key before half a model": ({"api_key": "wrong", "model_name": "m"}, 403, BAD_KEY),
    "a provider alone": ({"api_key": ANN, "provider_name": "openai"}, 400, NO_MODEL),
    "a model alone": ({"api_key": ANN, "model_name": "gpt-5.1"}, 400, NO_MODEL),
    "numbers": ({"api_key": ANN, "provider_name": 1, "model_name": 2}, 400, NO_MODEL),
    "blank names": ({"api_key": ANN, "provider_name": "", "model_name": " "}, 400, NO_MODEL),
    "an unknown provider": (
        {"api_key": ANN, "provider_name": "nobody", "model_name": "gpt-5.1"},
        404,
        "模型 nobody/gpt-5.1 不存在",
    ),
    "an unknown model": (
        {"api_key": ANN, "provider_name": "openai", "model_name": "gpt-9"},
        404,
        "模型 openai/gpt-9 不存在",
    ),
    "a model of another": (
        {"api_key": ANN, "provider_name": "gemini", "model_name": "gpt-5.1"},
        404,
        "模型 gemini/gpt-5.1 不存在",
    ),
    "a model that is off": (
        {"api_key": ANN, "provider_name": "openai", "model_name": "gpt-off"},
        400,
        "模型 openai/gpt-off 未激活",
    ),
    "a forbidden model": (
        {"api_key": BOB, "provider_name": "gemini", "model_name": "gemini-2.5-flash"},
        403,
        "API Key 不允许访问模型 gemini/gemini-2.5-flash",
    ),
}


@pytest.mark.parametrize("case", LOGIN_ERRORS)
async def test_a_login_that_fails_says_why_and_gives_no_token(case: str) -> None:
    body, status, text = LOGIN_ERRORS[case]
    async with here() as at:
        answer = await at.post("/auth/login", body)
        assert (answer.status, answer.json) == (status, {"detail": text})
        assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert len(at.proxy.server.runtime.login_sessions) == 0  # type: ignore[arg-type]
        assert not at.upstream.requests


async def test_a_session_token_buys_no_other() -> None:
    async with here() as at:
        token = await at.login()
        assert (await at.post("/auth/login", {"api_key": token})).said == (403, BAD_KEY)
        assert (await at.post("/auth/login", None, token)).said == (403, BAD_KEY)


async def test_without_tokens_every_key_logs_in_as_anonymous_but_a_session_token() -> None:
    async with here(auth={"tokens": []}) as at:
        token = await at.login("sk-anything")
        assert (await at.generate(token)).status == 200
        assert (await at.post("/auth/login", {"api_key": "bal_" + "x" * 43})).said == (403, BAD_KEY)
        assert (await at.post("/auth/login", {"api_key": " "})).said == (401, NO_KEY)
        behind = await at.post("/auth/login", {"api_key": "any"}, **{"X-Forwarded-For": "192.0.2.1"})
        assert behind.status == 401
        assert (await at.post("/auth/login", {"api_key": "any"}, Origin="https://evil.example")).status == 403
        foreign = await at.post(GENERATE, {}, token, Origin="https://evil.example")
        assert foreign.status == 403
        passed = await at.post(GENERATE, {}, token, **{"X-Forwarded-For": "192.0.2.1"})
        assert passed.status == 401


# Bind a model ---------------------------------------------------------------------------------------------------------


async def test_a_bound_model_is_confirmed_in_the_words_that_were_sent() -> None:
    async with here() as at:
        token = await at.login()
        answer = await at.post("/auth/bind-model", {**GOOD, "binding_type": "x", "other": [1]}, token)
        assert answer.status == 200
        assert answer.json == {"message": "模型 openai/gpt-5.1 已绑定到 session", **GOOD}
        answer = await at.bind(token, "openai", "deepseek/v3")
        assert answer.json["message"] == "模型 openai/deepseek/v3 已绑定到 session"
        assert await at.bound(token) == ("openai", "deepseek/v3")


BIND_ERRORS: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"{", 400, NOT_JSON),
    "blanks": (b"  ", 400, NOT_JSON),
    "no body": (None, 400, EMPTY),
    "no bytes": (b"", 400, EMPTY),
    "nothing as JSON": (b"null", 400, EMPTY),
    "an empty object": (b"{}", 400, EMPTY),
    "a list": (b"[]", 400, NO_OBJECT),
    "a text": (b'"x"', 400, NO_OBJECT),
    "zero": (b"0", 400, NO_OBJECT),
    "no names": ({"a": 1}, 400, NO_MODEL),
    "an empty name": ({"provider_name": "", "model_name": "m"}, 400, NO_MODEL),
    "numbers": ({"provider_name": 1, "model_name": 2}, 400, NO_MODEL),
    "a model alone": ({"model_name": "gpt-5.1"}, 400, NO_MODEL),
    "an unknown model": ({"provider_name": "openai", "model_name": "gpt-9"}, 404, "模型 openai/gpt-9 不存在"),
    "a model that is off": ({"provider_name": "openai", "model_name": "gpt-off"}, 400, "模型 openai/gpt-off 未激活"),
}


@pytest.mark.parametrize("case", BIND_ERRORS)
async def test_a_binding_that_fails_says_why_and_leaves_the_one_there_is(case: str) -> None:
    body, status, text = BIND_ERRORS[case]
    async with here() as at:
        token = await at.login(**GOOD)
        answer = await at.post("/auth/bind-model", body, token)
        assert (answer.status, answer.json) == (status, {"detail": text})
        assert await at.bound(token) == ("openai", "gpt-5.1")


async def test_a_client_may_bind_what_it_may_use() -> None:
    async with here() as at:
        token = await at.login(BOB)
        refused = await at.bind(token, "gemini", "shared")
        assert refused.said == (403, "API Key 不允许访问模型 gemini/shared")
        assert (await at.bind(token, "openai", "shared")).status == 200


async def test_the_name_of_a_model_is_that_of_this_very_upstream() -> None:
    models = {
        "gemini": {"models": ["openai/x", "openai/y", "openai/z"], "disabled_models": ["openai/y"]},
        "openai": {"models": ["gpt-5.1"]},
    }
    async with here(models=models) as at:
        token = await at.login()
        for model in ("x", "y"):
            assert (await at.bind(token, "openai", model)).said == (404, f"模型 openai/{model} 不存在")
        assert (await at.bind(token, "gemini", "openai/x")).status == 200


async def test_a_name_of_endless_length_is_no_model() -> None:
    async with here(models={"openai": {}}) as at:
        answer = await at.bind(await at.login(), "openai", "m" * 50_000)
        assert answer.status == 404
        assert len(answer.json["detail"]) < 600


async def test_binding_wants_a_session_token_before_it_looks_at_the_body_and_a_valid_one_after() -> None:
    async with here() as at:
        assert (await at.post("/auth/bind-model", b"{")).said == (401, NO_TOKEN)
        assert (await at.post("/auth/bind-model", b"{", "bal_wrong")).said == (400, NOT_JSON)
        for wrong in (ANN, "wrong", "bal_" + "x" * 43):
            assert (await at.post("/auth/bind-model", GOOD, wrong)).said == (404, NO_SESSION)
            unknown = {"provider_name": "nobody", "model_name": "m"}
            assert (await at.post("/auth/bind-model", unknown, wrong)).said == (404, NO_SESSION)


# Log out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, b"no json", b"{}", b"x" * 60_000])
async def test_a_logout_ends_the_session_at_once_and_a_second_one_finds_none(body: Any) -> None:
    async with here() as at:
        token = await at.login()
        answer = await at.post("/auth/logout", body, token)
        assert (answer.status, answer.json) == (200, {"message": "登出成功"})
        assert (await at.post("/auth/logout", body, token)).said == (404, NO_SESSION)
        assert (await at.post("/auth/bind-model", GOOD, token)).said == (404, NO_SESSION)
        assert (await at.generate(token)).status == 401
        assert (await at.chat(token)).status == 401
        assert not at.upstream.requests


async def test_a_logout_without_a_session_token_ends_nothing() -> None:
    async with here() as at:
        assert (await at.post("/auth/logout")).said == (401, NO_TOKEN)
        assert (await at.post("/auth/logout", None, ANN)).said == (404, NO_SESSION)


# All routes -----------------------------------------------------------------------------------------------------------

ROUTES = ["/auth/login", "/auth/bind-model", "/auth/logout"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_another_method_is_told_which_one_there_is(path: str, method: str) -> None:
    async with here() as at, at.proxy.client.request(method, at.proxy.url + path) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert set(await answer.json()) == {"detail"}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_over_64_kib_is_refused(path: str, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b" " * 1024

    async with here() as at:
        token = await at.login()
        data: Any = pieces() if chunked else b" " * (64 * 1024 + 1)
        headers = {"Authorization": f"Bearer {token}"}
        async with at.proxy.client.post(at.proxy.url + path, data=data, headers=headers) as answer:
            assert answer.status == 413
            assert set(await answer.json()) == {"detail"}
        assert (await at.generate(token)).status == 200


async def test_what_is_no_route_of_the_surface_is_a_404_in_its_dialect() -> None:
    async with here() as at:
        answer = await at.post("/auth/nothing", {})
        assert answer.status == 404
        assert set(answer.json) == {"detail"}


@pytest.mark.parametrize("target", ["/auth/login?a=b", "http://proxy.example/auth/login", "/auth/%6Cogin"])
async def test_a_route_is_found_however_its_target_is_written(target: str) -> None:
    async with here() as at:
        raw = await at.proxy.raw()
        head = f"POST {target} HTTP/1.1\r\nHost: proxy.example\r\nx-api-key: {ANN}\r\nContent-Length: 0\r\n\r\n"
        await raw.send(head.encode())
        assert (await raw.answer())[0].startswith(b"HTTP/1.1 200")
        raw.close()


async def test_a_body_that_is_awaited_is_asked_for() -> None:
    async with here() as at:
        raw = await at.proxy.raw()
        body = json.dumps({"api_key": ANN}).encode()
        head = f"POST /auth/login HTTP/1.1\r\nHost: p\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
        await raw.send(head.encode())
        assert await raw.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await raw.send(body)
        assert (await raw.answer())[0].startswith(b"HTTP/1.1 200")
        raw.close()
