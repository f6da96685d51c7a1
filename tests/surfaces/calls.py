"""Gemini calls as clients put them on the wire, for the tests of what belongs together."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from balancer.clock import Clock
from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from balancer.standin.record import Arrival
from tests.proxy import GENERATE, KEYS, Proxy, proxying

GOOGLE = "https://generativelanguage.googleapis.com"
FILES = "/upload/v1beta/files"
TOKENS = "ann=token-of-ann-1,bob=token-of-bob-2,eve=token-of-eve-3"
ANN, BOB, EVE = "token-of-ann-1", "token-of-bob-2", "token-of-eve-3"


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
        error: dict[str, Any] = self.json["error"]
        return error

    @property
    def text(self) -> str:
        text: str = self.json["candidates"][0]["content"]["parts"][0]["text"]
        return text


@dataclass
class Caller:
    """A client: where it calls (path prefix included), its token, and what it sends with every call but chunks."""

    http: aiohttp.ClientSession
    base: str
    token: str | None = "any"
    headers: dict[str, str] = field(default_factory=dict)

    def within(self, session: str) -> Caller:
        """The same client with a session id in its headers."""
        return Caller(self.http, self.base, self.token, {**self.headers, "X-Session-Id": session})

    def below(self, prefix: str) -> Caller:
        """The same client with a path in its base URL."""
        return Caller(self.http, self.base + prefix, self.token, self.headers)

    async def send(self, method: str, url: str, headers: Mapping[str, str], data: Any = None) -> Answer:
        """Exactly this, without a credential."""
        if isinstance(data, bytes) and len(data) > 1 << 18:
            data = io.BytesIO(data)
        async with self.http.request(
            method, url, headers=headers, data=data, allow_redirects=False, skip_auto_headers=("Content-Type",)
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, data: Any = None
    ) -> Answer:
        fields = {**self.headers, **(headers or {})}
        if self.token is not None:
            fields = {"x-goog-api-key": self.token, **fields}
        if body is not None:
            data = json.dumps(body).encode()
            fields.setdefault("Content-Type", "application/json")
        return await self.send(method, self.base + path, fields, data)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", f"/v1beta/{path}", headers=headers)

    async def post(self, path: str, body: Any = None) -> Answer:
        return await self.call("POST", f"/v1beta/{path}", {} if body is None else body)

    async def delete(self, path: str) -> Answer:
        return await self.call("DELETE", f"/v1beta/{path}")

    async def make(self, collection: str, body: Any = None) -> str:
        """POST to a collection: the name of what was made."""
        answer = await self.post(collection, body)
        assert answer.status == 200, answer.body
        name: str = answer.json["name"]
        return name

    async def start(
        self, about: Any = None, path: str = FILES, size: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Begin a resumable upload."""
        fields = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start", **(headers or {})}
        if size is not None:
            fields["X-Goog-Upload-Header-Content-Length"] = str(size)
        return await self.call("POST", path, about or {"file": {"mimeType": "text/plain"}}, fields)

    async def chunk(self, url: str, data: Any, command: str = "upload, finalize", offset: int = 0) -> Answer:
        """One chunk, as Python's SDK sends it: with nothing that tells who calls."""
        return await self.send(
            "POST", url, {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}, data
        )

    async def upload(self, data: bytes = b"some text", name: str | None = None) -> str:
        """A whole upload: the file's name."""
        about = {"mimeType": "text/plain"} | ({"name": name} if name else {})
        begun = await self.start({"file": about}, size=len(data))
        assert begun.status == 200, begun.body
        ended = await self.chunk(begun.headers["X-Goog-Upload-URL"], data)
        assert ended.status == 200, ended.body
        made: str = ended.json["file"]["name"]
        return made

    async def generate(self, *files: str, text: str = "hello", **more: Any) -> Answer:
        """generateContent with these files as parts."""
        parts: list[dict[str, Any]] = [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/{name}"}} for name in files]
        return await self.call("POST", GENERATE, {"contents": [{"parts": [*parts, {"text": text}]}], **more})


def caller(proxy: Proxy, token: str | None = "any", **headers: str) -> Caller:
    return Caller(proxy.client, proxy.url, token, headers)


@dataclass
class World:
    """A proxy on a stand-in with three keys."""

    standin: StandIn
    url: str
    proxy: Proxy
    ann: Caller
    bob: Caller

    def keys(self) -> list[str | None]:
        """The keys that requests arrived with, in order."""
        return [arrival.key for arrival in self.standin.requests]

    def asked(self, part: str) -> list[Arrival]:
        """The arrivals whose method and target hold this text."""
        return [arrival for arrival in self.standin.requests if part in f"{arrival.method} {arrival.target}"]

    def key_of(self, name: str) -> str:
        """The key whose project has this resource."""
        shelf = self.standin.world.shelf
        (key,) = [key for key, project in self.standin.world.keys.items() if shelf.get(project, name) is not None]
        return key


@asynccontextmanager
async def world(
    *,
    clock: Clock | None = None,
    keys: Any = KEYS,
    projects: Mapping[str, str] | Iterable[str] = KEYS,
    **overrides: Mapping[str, Any],
) -> AsyncIterator[World]:
    """A stand-in and a proxy with two clients."""
    standin = StandIn(projects, clock=clock)
    overrides.setdefault("auth", {"tokens": TOKENS})
    async with (
        standing_in(standin) as url,
        proxying(url, keys, clock=clock, **overrides) as proxy,
    ):
        yield World(standin, url, proxy, caller(proxy, ANN), caller(proxy, BOB))


@asynccontextmanager
async def restarted(
    before: World, keys: Any = KEYS, *, clock: Clock | None = None, **overrides: Mapping[str, Any]
) -> AsyncIterator[World]:
    """A second proxy that knows nothing of the first: what a restart leaves, or another replica."""
    overrides.setdefault("auth", {"tokens": TOKENS})
    async with proxying(before.url, keys, clock=clock, **overrides) as proxy:
        yield World(before.standin, before.url, proxy, caller(proxy, ANN), caller(proxy, BOB))


def moved(url: str, proxy: Proxy) -> str:
    """An upload address of one proxy, at another."""
    parts = urlsplit(url)
    return f"{proxy.url}{parts.path}?{parts.query}"


@asynccontextmanager
async def elsewhere(proxy: Proxy, token: str | None = ANN, address: str = "127.0.0.2") -> AsyncIterator[Caller]:
    """The same client token from another address."""
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Caller(http, proxy.url, token)
