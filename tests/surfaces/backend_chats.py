"""A proxy on a stand-in of achuan, and chats with it as OpenAI's clients have them: for the tests of that kind of upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from balancer.standin.achuan import AchuanStandIn, token
from balancer.standin.base import running as standing_in
from balancer.standin.record import Arrival
from balancer.state.base import Handle
from tests.fakes import FakeClock
from tests.proxy import Proxy, proxying

ALICE, ALICE_TOO = token("alice"), token("alice", expires=4_000_000_000)
BOB, CAROL = token("bob"), token("carol")
MODEL = "gpt-5.1-high"
OTHER_MODEL = "claude-sonnet-4-5-20250929"
CHAT = "/v1/chat/completions"
CREATE = "/api/chat/session"
WAIT = 10.0
"""Seconds after which something that should have happened has not."""
ANN_TOKEN, BEN_TOKEN = "token-of-ann-1", "token-of-ben-2"
TOKENS: list[dict[str, Any]] = [{"name": "ann", "token": ANN_TOKEN}, {"name": "ben", "token": BEN_TOKEN}]


def user(text: Any = "hello") -> dict[str, Any]:
    return {"role": "user", "content": text}


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
    def session(self) -> str | None:
        return self.headers.get("x-session-id")

    @property
    def text(self) -> str:
        assert self.status == 200, self.body
        text: str = self.json["choices"][0]["message"]["content"]
        return text

    @property
    def code(self) -> tuple[int, str]:
        return self.status, self.json["error"]["code"]

    @property
    def message(self) -> str:
        message: str = self.json["error"]["message"]
        return message

    @property
    def frames(self) -> list[Any]:
        """What a stream said, frame by frame; its end as it stands."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines), lines
        return [text if text == "[DONE]" else json.loads(text) for text in (line[6:] for line in lines)]

    @property
    def deltas(self) -> list[str]:
        """The text of a stream's content frames."""
        choices = [frame["choices"][0] for frame in self.frames if frame != "[DONE]" and frame.get("choices")]
        deltas = [each["delta"] for each in choices if "role" not in each["delta"]]
        return [delta["content"] for delta in deltas if "content" in delta]


@dataclass
class Chat:
    """A client of the proxy."""

    proxy: Proxy
    token: str = ANN_TOKEN

    async def say(
        self, *messages: Any, path: str = CHAT, headers: Mapping[str, str] | None = None, **more: Any
    ) -> Answer:
        """A chat request; a message that is no object is the user's text."""
        given = [each if isinstance(each, dict) else user(each) for each in messages or ("hello",)]
        body = {"model": MODEL, "messages": given} | more
        return await self.post(path, body, headers)

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        fields = {"Authorization": f"Bearer {self.token}", **(headers or {})}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.proxy.client.post(self.proxy.url + path, data=data, headers=fields) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    @asynccontextmanager
    async def streaming(self, **more: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A streamed answer as it comes."""
        body = {"model": MODEL, "messages": [user()], "stream": True} | more
        fields = {"Authorization": f"Bearer {self.token}"}
        async with self.proxy.client.post(self.proxy.url + CHAT, json=body, headers=fields) as answer:
            yield answer


@dataclass
class Here:
    """A proxy on a stand-in, and two clients of it."""

    standin: AchuanStandIn
    url: str
    proxy: Proxy
    ann: Chat
    ben: Chat

    def asked(self, part: str) -> list[Arrival]:
        """What arrived at one of the backend's two calls."""
        return [each for each in self.standin.requests if each.path.endswith(part)]

    @property
    def created(self) -> list[Arrival]:
        return self.asked("/session")

    @property
    def completed(self) -> list[Arrival]:
        return self.asked("/completions")

    @property
    def texts(self) -> list[str]:
        """What was said, in order."""
        return [each.json()["text"] for each in self.completed]

    @property
    def sessions(self) -> list[int]:
        """The session of each thing that was said."""
        return [each.json()["sessionId"] for each in self.completed]


def upstreams_of(url: str, keys: Sequence[Any], **more: Any) -> dict[str, Any]:
    achuan = {"kind": "achuan", "base_url": url, "keys": list(keys), "models": [MODEL, OTHER_MODEL], **more}
    return {"gemini": {"models": ["gemini-2.5-flash"]}, "achuan": achuan}


@asynccontextmanager
async def here(
    keys: Sequence[Any] = (ALICE,),
    *,
    known: Iterable[str] = (ALICE, ALICE_TOO, BOB, CAROL),
    clock: FakeClock | None = None,
    settings: Mapping[str, Any] | None = None,
    required: Mapping[str, str] | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Here]:
    """`keys`: the proxy's; `known`: those of the backend. `settings`: of the upstream. No turn may meet another in a session."""
    standin = AchuanStandIn(list(known), required=required)
    sections = {"auth": {"tokens": TOKENS}, **sections}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(standing_in(standin))
        upstreams = upstreams_of(url, keys, **(settings or {}))
        proxy = await stack.enter_async_context(
            proxying(url, ["unused-gemini-key"], clock=clock, upstreams=upstreams, **sections)
        )
        yield Here(standin, url, proxy, Chat(proxy), Chat(proxy, BEN_TOKEN))
    assert standin.overlaps == []


@asynccontextmanager
async def beside(first: Here, keys: Sequence[Any] = (ALICE,), **settings: Any) -> AsyncIterator[Here]:
    """Another process on the same backend, with the same state."""
    sections: dict[str, Any] = {"auth": {"tokens": TOKENS}, "upstreams": upstreams_of(first.url, keys, **settings)}
    async with proxying(first.url, ["unused-gemini-key"], **sections) as proxy:
        one, other = first.proxy.server.runtime, proxy.server.runtime
        other.talks, other.locks, other.bindings = one.talks, one.locks, one.bindings
        other.apply(other.settings)
        yield Here(first.standin, first.url, proxy, Chat(proxy), Chat(proxy, BEN_TOKEN))


async def next_frame(answer: aiohttp.ClientResponse) -> Any:
    """The next frame of a stream."""
    async with asyncio.timeout(WAIT):
        data = await answer.content.readuntil(b"\n\n")
    return json.loads(data.removeprefix(b"data: "))


async def text_of(answer: aiohttp.ClientResponse) -> str:
    content: str = (await next_frame(answer))["choices"][0]["delta"]["content"]
    return content


class Watched:
    """The turns of a proxy, from now on with a count of those who wait for one."""

    def __init__(self, at: Here) -> None:
        runtime = at.proxy.server.runtime
        self._locks, runtime.locks = runtime.locks, self
        runtime.apply(runtime.settings)
        self._waiting = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, name: Handle, wait: float) -> AsyncIterator[None]:
        self._count(+1)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._locks.hold(name, wait))
            finally:
                self._count(-1)
            yield

    def _count(self, more: int) -> None:
        self._waiting += more
        self._changed.set()

    async def until(self, waiting: int) -> None:
        async with asyncio.timeout(WAIT):
            while self._waiting != waiting:
                self._changed.clear()
                await self._changed.wait()
