"""Calls of the chat surface as clients write them, and a proxy between them and an upstream whose bytes are the test's."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from balancer.clock import Clock
from balancer.state.base import Handle
from tests.proxy import Proxy, proxying
from tests.upstream import WAIT, Peer, RawUpstream, Seen, raw_upstream, serving

ANN, BOB = "token-of-ann-1", "token-of-bob-2"
TOKENS: list[dict[str, Any]] = [{"name": "ann", "token": ANN}, {"name": "bob", "token": BOB}]
POOL = ("oa-pool-key-0001", "oa-pool-key-0002")
MODEL = "gpt-5.1"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def said(self) -> tuple[int, Any]:
        """Status and detail of an error."""
        assert self.headers["Content-Type"].startswith("application/json")
        return self.status, self.json["detail"]

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, which has nothing else in it."""
        *blocks, rest = self.body.split(b"\n\n")
        assert rest == b"", rest
        assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks), blocks
        return [json.loads(block.removeprefix(b"data: ")) for block in blocks]

    @property
    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]


@dataclass
class Bot:
    """A proxy on an upstream, and its clients."""

    proxy: Proxy
    upstream: RawUpstream

    async def call(self, method: str, path: str, body: Any = None, token: str | None = ANN, **headers: str) -> Answer:
        """`body`: bytes as they are, else JSON."""
        fields = {**headers, **({} if token is None else {"Authorization": f"Bearer {token}"})}
        data: Any = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            fields = {"Content-Type": "application/json", **fields}
            data = io.BytesIO(data) if len(data) > 1 << 18 else data
        async with self.proxy.client.request(method, self.proxy.url + path, data=data, headers=fields) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def get(self, path: str, token: str | None = ANN, **headers: str) -> Answer:
        return await self.call("GET", path, None, token, **headers)

    async def chat(self, message: str = "hello", token: str = ANN, **members: Any) -> Answer:
        return await self.call("POST", "/chat", {"message": message, **members}, token)

    async def stream(self, message: str = "hello", token: str = ANN, **members: Any) -> Answer:
        return await self.call("POST", "/chat/stream", {"message": message, **members}, token)

    def open(self, message: str = "hello", path: str = "/chat/stream", **members: Any) -> Any:
        """A message whose answer is read as it comes: aiohttp's context manager."""
        headers = {"Authorization": f"Bearer {ANN}"}
        return self.proxy.client.post(self.proxy.url + path, json={"message": message, **members}, headers=headers)

    async def info(self, session: str, token: str = ANN) -> Any:
        answer = await self.get(f"/session/{session}/info", token)
        assert answer.status == 200, answer.body
        return answer.json

    @property
    def seen(self) -> list[dict[str, Any]]:
        """The bodies that the upstream received."""
        return [json.loads(each.body) for each in self.upstream.requests]

    def said(self, number: int = -1) -> list[tuple[str, str]]:
        """The messages that the upstream received."""
        return [(each["role"], each["content"]) for each in self.seen[number]["messages"]]


class Waiting:
    """The turns of a proxy, from now on with a count of those who wait for one."""

    def __init__(self, here: Bot) -> None:
        runtime = here.proxy.server.runtime
        self._locks, runtime.locks = runtime.locks, self
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


async def event_of(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    """The next event of a stream, in one network read."""
    line = await answer.content.readline()
    assert await answer.content.readline() == b"\n"
    found: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return found


def chunk(delta: Mapping[str, Any] | None = None, finish: str | None = None, **members: Any) -> bytes:
    """A frame of an upstream's stream."""
    choices = [] if delta is None else [{"index": 0, "delta": dict(delta), "finish_reason": finish}]
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": choices, **members}
    return b"data: " + json.dumps(frame).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def telling(*deltas: str, usage: Mapping[str, int] | None = None) -> Callable[[Peer, Seen], Awaitable[None]]:
    """An upstream that answers everything with these deltas."""

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(chunk({"role": "assistant", "content": ""}))
        for delta in deltas:
            await peer.chunk(chunk({"content": delta}))
        await peer.chunk(chunk({}, "stop"))
        if usage is not None:
            await peer.chunk(chunk(usage=usage))
        await peer.chunk(DONE)
        await peer.end()

    return answer


async def echoing(peer: Peer, seen: Seen) -> None:
    """An upstream that repeats the last message."""
    said = json.loads(seen.body)["messages"][-1]["content"]
    await telling("You said: ", said)(peer, seen)


@asynccontextmanager
async def bot(
    folder: Path,
    answer: Callable[[Peer, Seen], Awaitable[None]] = echoing,
    *,
    clock: Clock | None = None,
    chat: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Bot]:
    """The surface on one upstream of kind openai with two keys, for ann and bob."""
    async with raw_upstream(serving(answer)) as upstream:
        sections = {
            "auth": {"tokens": TOKENS},
            "database": {"url": f"sqlite:///{folder}/chats.db"},
            "chat": {"upstream": "oa", "model": MODEL, **(chat or {})},
            "upstreams": {
                "gemini": {"models": ["gemini-2.5-flash"]},
                "oa": {
                    "kind": "openai",
                    "base_url": f"{upstream.url}/v1",
                    "keys": list(POOL),
                    "models": [MODEL],
                    **sections.pop("oa", {}),
                },
            },
            **sections,
        }
        async with proxying("http://127.0.0.1:9", ["gemini-key-0001"], clock=clock, **sections) as proxy:
            yield Bot(proxy, upstream)
