"""What web pages of other origins see of a surface that lists their origin, and of one that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.proxy import Proxy, proxying
from tests.upstream import raw_upstream, serving

PAGE = "https://page.example"
CHAT = "/v1/chat/completions"
BODY = {"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": "hi"}]}
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}


@asynccontextmanager
async def listing(*origins: str, **more: Any) -> AsyncIterator[Proxy]:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, openai={"allowed_origins": list(origins)}, **more) as proxy:
            yield proxy


@pytest.mark.parametrize(("origins", "allowed", "vary"), [((PAGE,), PAGE, "Origin"), (("*",), "*", None)])
async def test_a_page_of_a_listed_origin_may_read_answers_and_errors(
    origins: tuple[str, ...], allowed: str, vary: str | None
) -> None:
    async with listing(*origins) as proxy:
        for body, status in ((BODY, 200), ({"model": "gemini-2.5-flash"}, 400)):
            async with proxy.post(CHAT, json=body, headers={"Origin": PAGE}) as answer:
                assert answer.status == status
                assert answer.headers["Access-Control-Allow-Origin"] == allowed
                assert answer.headers.get("Vary") == vary
                assert "x-request-id" in answer.headers["Access-Control-Expose-Headers"]
                assert "Access-Control-Allow-Credentials" not in answer.headers


async def test_a_preflight_of_a_listed_origin_needs_no_credential() -> None:
    async with listing(PAGE, auth={"tokens": "ann=token-of-ann-1"}) as proxy:
        async with proxy.client.options(proxy.url + CHAT, headers=PREFLIGHT) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization, content-type"
            assert answer.headers["Access-Control-Max-Age"] == "600"


async def test_a_page_of_another_origin_sees_nothing_and_may_not_call_without_a_token() -> None:
    async with listing("https://other.example") as proxy:
        async with proxy.post(CHAT, json=BODY, headers={"Origin": PAGE}) as answer:
            assert answer.status == 403
            assert (await answer.json())["error"]["code"] == "origin_not_allowed"
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
        async with proxy.client.options(proxy.url + CHAT, headers=PREFLIGHT) as answer:
            assert not [name for name in answer.headers if name.startswith("Access-Control")]
            assert answer.status == 403


async def test_a_surface_that_lists_no_origin_says_nothing_of_them() -> None:
    async with listing("*", auth={"tokens": "ann=token-of-ann-1"}) as proxy:
        headers = {"Origin": PAGE, "x-goog-api-key": "token-of-ann-1"}
        async with proxy.post(headers=headers) as answer:
            assert answer.status == 200
            assert "Access-Control-Allow-Origin" not in answer.headers
