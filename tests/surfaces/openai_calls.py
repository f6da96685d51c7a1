"""OpenAI calls as clients put them on the wire, and a proxy between them and two strict stand-ins."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from balancer.clock import Clock
from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from balancer.standin.openai.app import OpenAIStandIn
from balancer.standin.record import Arrival
from tests.proxy import KEYS, Proxy, proxying
from tests.upstream import RawUpstream, Script, raw_upstream

OA_KEYS = ("sk-first-pool-key-01", "sk-second-pool-key-02", "sk-third-pool-key-003")
ANN, BOB = "token-of-ann-1", "token-of-bob-2"
TOKENS: list[dict[str, Any]] = [{"name": "ann", "token": ANN}, {"name": "bob", "token": BOB}]
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
GPT = "oa/gpt-5.1"
APART = {"uploads": "none"}
"""Affinity settings with which uploads rotate, so that things of several owners are at hand."""


@dataclass
class Answer:
    """One whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object of OpenAI's dialect; fails where the body is anything else."""
        tree = self.json
        assert set(tree) == {"error"}, tree
        error: dict[str, Any] = tree["error"]
        assert set(error) >= {"message", "type", "param", "code"}, error
        return error

    @property
    def code(self) -> tuple[int, Any]:
        return self.status, self.error["code"]

    @property
    def id(self) -> str:
        assert self.status == 200, self.body
        found: str = self.json["id"]
        return found

    @property
    def text(self) -> str:
        """What the model said."""
        assert self.status == 200, self.body
        said: str = self.json["choices"][0]["message"]["content"]
        return said


@dataclass
class Caller:
    """A client: where it calls (path prefix included), its token, and what it sends with every call."""

    http: aiohttp.ClientSession
    base: str
    token: str | None = ANN
    headers: dict[str, str] = field(default_factory=dict)

    def within(self, session: str) -> Caller:
        """The same client with a session id in its headers."""
        return Caller(self.http, self.base, self.token, {**self.headers, "X-Session-Id": session})

    def below(self, prefix: str) -> Caller:
        """The same client with a path in its base URL."""
        return Caller(self.http, self.base + prefix, self.token, self.headers)

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> Answer:
        """`body` is sent as JSON, or as it is where it is bytes; `data` as aiohttp makes it."""
        fields = {**self.headers, **(headers or {})}
        if self.token is not None and "Authorization" not in fields:
            fields["Authorization"] = f"Bearer {self.token}"
        if body is not None:
            fields.setdefault("Content-Type", "application/json")
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            data = io.BytesIO(data) if len(data) > 1 << 18 else data
        untyped = () if isinstance(data, aiohttp.FormData) else ("Content-Type",)
        async with self.http.request(
            method,
            URL(self.base + path, encoded=True),
            headers=fields,
            data=data,
            allow_redirects=False,
            skip_auto_headers=untyped,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", f"/v1/{path}", headers=headers)

    async def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.call("POST", f"/v1/{path}", body, headers)

    async def delete(self, path: str) -> Answer:
        return await self.call("DELETE", f"/v1/{path}")

    async def chat(self, model: str = GPT, text: str = "hello", **members: Any) -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **members}
        return await self.post("chat/completions", body)

    async def upload(self, content: bytes = b"some text", purpose: str = "user_data", name: str = "a.txt") -> str:
        """A whole upload: the file's id."""
        form = aiohttp.FormData()
        form.add_field("purpose", purpose)
        form.add_field("file", io.BytesIO(content), filename=name)
        return (await self.call("POST", "/v1/files", data=form)).id

    async def batch_input(self) -> str:
        line = {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": "gpt-5.1", "messages": MESSAGES}}
        return await self.upload(json.dumps(line).encode() + b"\n", purpose="batch")

    async def batch(self, source: str) -> Answer:
        about = {"input_file_id": source, "endpoint": CHAT, "completion_window": "24h"}
        return await self.post("batches", about)

    async def respond(self, **members: Any) -> Answer:
        return await self.post("responses", {"model": GPT, "input": "hello", **members})

    def stream(self, path: str, body: Any, **headers: str) -> Any:
        """A call whose answer is read as it comes: aiohttp's context manager."""
        fields = {"Authorization": f"Bearer {self.token}", **self.headers, **headers}
        return self.http.post(f"{self.base}/v1/{path}", json=body, headers=fields)


@dataclass
class World:
    """A proxy on a stand-in of OpenAI with three keys and one of Gemini with three. `url`, `google`: where they are."""

    url: str
    google: str
    oa: OpenAIStandIn
    gemini: StandIn
    proxy: Proxy
    ann: Caller
    bob: Caller

    def keys(self) -> list[str | None]:
        """The keys that requests arrived with at OpenAI, in order."""
        return [arrival.key for arrival in self.oa.requests]

    def last(self) -> Arrival:
        """What arrived last at OpenAI."""
        return self.oa.requests[-1]

    def targets(self) -> list[str]:
        return [f"{arrival.method} {arrival.target}" for arrival in self.oa.requests]

    def key_of(self, name: str) -> str:
        """The key whose project has this resource (`files/file-abc`)."""
        shelf = self.oa.world.shelf
        (key,) = [key for key, project in self.oa.world.keys.items() if shelf.get(project, name) is not None]
        return key

    async def key_states(self, upstream: str = "oa") -> dict[str, dict[str, Any]]:
        """What the admin listener says of an upstream's keys, by fingerprint."""
        async with self.proxy.client.get(self.proxy.admin_url + "/api/keys") as answer:
            upstreams = (await answer.json())["upstreams"]
        (found,) = [each for each in upstreams if each["name"] == upstream]
        return {key["fingerprint"]: key for key in found["keys"]}

    async def turn(self, times: int) -> None:
        """Let the rotation go on, so that a key that is met is met for a reason."""
        for _ in range(times):
            assert (await self.bob.chat()).status == 200


def caller(proxy: Proxy, token: str | None = ANN, **headers: str) -> Caller:
    return Caller(proxy.client, proxy.url, token, headers)


@asynccontextmanager
async def world(
    *,
    clock: Clock | None = None,
    keys: Mapping[str, str] | Iterable[str] = OA_KEYS,
    oa: Mapping[str, Any] | None = None,
    standin: Mapping[str, Any] | None = None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
    warm: bool = True,
    **overrides: Mapping[str, Any],
) -> AsyncIterator[World]:
    """`oa`: settings of the upstream; `standin`: options of its stand-in; `more`: upstreams beside the two.

    `warm`: the upstreams' lists of models were had before, so that what arrives is the test's own.
    """
    openai, gemini = OpenAIStandIn(keys, clock=clock, **(standin or {})), StandIn(KEYS, clock=clock)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(standing_in(openai))
        google = await stack.enter_async_context(standing_in(gemini))
        upstreams = {
            "oa": {"kind": "openai", "base_url": f"{url}/v1", "keys": list(keys), **(oa or {})},
            **(more or {}),
        }
        overrides = {"auth": {"tokens": TOKENS}, "upstreams": upstreams, **overrides}
        proxy = await stack.enter_async_context(proxying(google, KEYS, clock=clock, **overrides))
        here = World(f"{url}/v1", google, openai, gemini, proxy, caller(proxy), caller(proxy, BOB))
        if warm:
            assert (await here.ann.get("models")).status == 200
            openai.forget()
            gemini.forget()
        yield here


@dataclass
class Scripted:
    """A proxy on an upstream whose every byte is the test's; it is called `oa` and has one model, `gpt-5.1`."""

    upstream: RawUpstream
    proxy: Proxy
    ann: Caller


@asynccontextmanager
async def scripted(script: Script, *, oa: Mapping[str, Any] | None = None, **overrides: Any) -> AsyncIterator[Scripted]:
    """`oa`: settings of the upstream."""
    async with raw_upstream(script) as upstream:
        about = {"kind": "openai", "base_url": f"{upstream.url}/v1", "keys": list(OA_KEYS), "models": ["gpt-5.1"]}
        overrides = {"auth": {"tokens": TOKENS}, "upstreams": {"oa": {**about, **(oa or {})}}, **overrides}
        async with proxying(upstream.url, KEYS, **overrides) as proxy:
            yield Scripted(upstream, proxy, caller(proxy))


def request_bytes(
    body: bytes | None = b"", path: str = CHAT, *headers: str, method: str = "POST", token: str | None = ANN
) -> bytes:
    """A raw request; `body` None: without one, and without a length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: proxy"]
    lines += [] if token is None else [f"Authorization: Bearer {token}"]
    lines += [] if body is None else [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + (body or b"")


def chat_bytes(**members: Any) -> bytes:
    return json.dumps({"model": GPT, "messages": MESSAGES, **members}).encode()
