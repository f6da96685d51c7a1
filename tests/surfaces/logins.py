"""A proxy with two upstreams, and clients that log in to it: for the tests of session tokens and of what clients may do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.fakes import FakeClock
from tests.proxy import GENERATE, KEYS, Proxy, proxying
from tests.upstream import Peer, RawUpstream, Seen, raw_upstream, serving

ANN, BOB = "token-of-ann-1", "token-of-bob-2"
TOKENS: list[dict[str, Any]] = [
    {"name": "ann", "token": ANN},
    {"name": "bob", "token": BOB, "models": ["openai/*"]},
]
MODELS: dict[str, Any] = {
    "gemini": {"models": ["gemini-2.5-flash", "shared"], "disabled_models": ["gemini-off"]},
    "openai": {"models": ["gpt-5.1", "gpt-off", "shared", "deepseek/v3"], "disabled_models": ["gpt-off"]},
}
GOOD = {"provider_name": "openai", "model_name": "gpt-5.1"}
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    json: Any

    @property
    def said(self) -> tuple[int, Any]:
        return self.status, self.json.get("detail")

    @property
    def code(self) -> tuple[int, Any]:
        return self.status, self.json["error"]["code"]


@dataclass
class Here:
    """A proxy on an upstream that answers everything, and its clients."""

    proxy: Proxy
    upstream: RawUpstream

    async def post(self, path: str, body: Any = None, token: str | None = None, **headers: str) -> Answer:
        """`body`: bytes as they are, else JSON."""
        fields = {**headers, **({} if token is None else {"Authorization": f"Bearer {token}"})}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            fields = {"Content-Type": "application/json", **fields}
        async with self.proxy.client.post(self.proxy.url + path, data=data, headers=fields) as answer:
            return Answer(answer.status, answer.headers, json.loads(await answer.read()))

    async def login(self, key: str = ANN, **members: Any) -> str:
        answer = await self.post("/auth/login", {"api_key": key, **members})
        assert answer.status == 200, answer.json
        token: str = answer.json["token"]
        return token

    async def bind(self, token: str, provider: str = "openai", model: str = "gpt-5.1") -> Answer:
        return await self.post("/auth/bind-model", {"provider_name": provider, "model_name": model}, token)

    async def chat(self, token: str | None, model: str | None = None, **members: Any) -> Answer:
        named = {} if model is None else {"model": model}
        return await self.post(CHAT, {**named, "messages": MESSAGES, **members}, token)

    async def generate(self, token: str, **body: Any) -> Answer:
        return await self.post(GENERATE, {"contents": [], **body}, token)

    @property
    def seen(self) -> list[dict[str, Any]]:
        """The bodies that upstreams received."""
        return [json.loads(each.body) for each in self.upstream.requests]

    async def bound(self, token: str) -> tuple[str | None, str | None]:
        found = await self.proxy.server.runtime.logins.find(token)
        assert found is not None
        return found.provider, found.model

    def reload(self, **auth: Any) -> None:
        runtime = self.proxy.server.runtime
        new = runtime.settings.auth.model_validate(auth)
        runtime.apply(runtime.settings.model_copy(update={"auth": new}))


async def completing(peer: Peer, seen: Seen) -> None:
    await peer.answer(b'{"id":"x","object":"chat.completion","choices":[]}')


@asynccontextmanager
async def here(
    *,
    clock: FakeClock | None = None,
    auth: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] = MODELS,
    answer: Any = completing,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Here]:
    async with raw_upstream(serving(answer)) as upstream:
        upstreams = {
            "gemini": {**models.get("gemini", {})},
            "openai": {
                "kind": "openai",
                "base_url": f"{upstream.url}/v1",
                "keys": ["openai-pool-key-0001"],
                **models.get("openai", {}),
            },
        }
        sections = {"auth": {"tokens": TOKENS, **(auth or {})}, "upstreams": upstreams, **sections}
        async with proxying(upstream.url, KEYS[:1], clock=clock, **sections) as proxy:
            yield Here(proxy, upstream)


@asynccontextmanager
async def limited(clock: FakeClock | None = None, answer: Any = completing, **limits: Any) -> AsyncIterator[Here]:
    tokens = [{"name": "ann", "token": ANN, **limits}, TOKENS[1]]
    async with here(clock=clock, auth={"tokens": tokens}, answer=answer) as at:
        yield at
