"""Stored chats as clients call them: a proxy with a database of its own, in front of a stand-in and of an upstream whose every
byte is the test's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from balancer.clock import Clock
from balancer.conversations.store import Store
from balancer.standin.openai.app import OpenAIStandIn
from balancer.standin.openai.app import running as standing_in
from tests.proxy import Proxy, proxying
from tests.surfaces.openai_calls import ANN, BOB, OA_KEYS, TOKENS, Answer, Caller, caller
from tests.upstream import WAIT, Peer, RawUpstream, Seen, raw_upstream, serving

GPT = "oa/gpt-5.1"
RAW = "raw/m"
USER = {"role": "user", "content": "hello"}
ERRORS = {"type", "message", "param", "code"}

Script = Callable[[Peer, Seen], Awaitable[None]]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def delta(text: str) -> bytes:
    return frame({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def frame(tree: Any) -> bytes:
    return b"data: " + json.dumps(tree).encode() + b"\n\n"


STOP = frame({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
DONE = b"data: [DONE]\n\n"


def error_of(answer: Answer) -> dict[str, Any]:
    """The error object of this surface; fails where the body is anything else."""
    tree = answer.json
    assert set(tree) == {"error", "detail"}, tree
    error: dict[str, Any] = tree["error"]
    assert set(error) == ERRORS, error
    assert isinstance(tree["detail"], str)
    return error


def refused(answer: Answer) -> tuple[int, Any, Any]:
    """Status, code and param."""
    error = error_of(answer)
    return answer.status, error["code"], error["param"]


@dataclass
class Api:
    """One client of the surface."""

    caller: Caller

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        return await self.caller.call(method, f"/api{path}", body, headers)

    async def get(self, path: str) -> Any:
        answer = await self.call("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def make(self, title: str = "a title") -> str:
        answer = await self.call("POST", "/sessions", {"title": title})
        assert answer.status == 200, answer.body
        made: str = answer.json["id"]
        return made

    async def add(self, session: str, role: str, content: Any, **members: Any) -> dict[str, Any]:
        answer = await self.call("POST", f"/sessions/{session}/messages", {"role": role, "content": content, **members})
        assert answer.status == 200, answer.body
        message: dict[str, Any] = answer.json
        return message

    async def messages(self, session: str, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self.get(f"/sessions/{quote(session, safe='')}/messages{query}")
        return found

    async def said(self, session: str) -> list[tuple[str, Any]]:
        """Role and content of each turn."""
        return [(each["role"], each["content"]) for each in await self.messages(session)]

    async def chat(
        self, session: str | None, *messages: Any, model: str | None = GPT, headers: Any = None, **members: Any
    ) -> Answer:
        query = "" if session is None else f"?session_id={quote(session, safe='')}"
        body = {"messages": [*map(_message, messages)], **({} if model is None else {"model": model}), **members}
        return await self.caller.call("POST", f"/api/chat/completions{query}", body, headers)

    def stream(self, session: str | None, *messages: Any, model: str = GPT, **members: Any) -> Any:
        """A call whose answer is read as it comes: aiohttp's context manager."""
        query = "" if session is None else f"?session_id={quote(session, safe='')}"
        body = {"messages": [*map(_message, messages)], "model": model, "stream": True, **members}
        headers = {"Authorization": f"Bearer {self.caller.token}"}
        return self.caller.http.post(f"{self.caller.base}/api/chat/completions{query}", json=body, headers=headers)

    def dial(self, session: str | None = None, path: str = "/ws/chat", **kwargs: Any) -> Any:
        query = "" if session is None else f"?session_id={quote(session, safe='')}"
        kwargs.setdefault("headers", {"Authorization": f"Bearer {self.caller.token}"})
        return self.caller.http.ws_connect(f"{self.caller.base}{path}{query}", **kwargs)


def _message(given: Any) -> Any:
    return user(given) if isinstance(given, str) else given


@dataclass
class Chats:
    """A proxy with stored chats. `oa`: a stand-in; `raw`: an upstream of the test's."""

    proxy: Proxy
    oa: OpenAIStandIn
    raw: RawUpstream
    ann: Api
    bob: Api

    def bodies(self) -> list[dict[str, Any]]:
        """What arrived at the stand-in."""
        return [json.loads(each.body or b"") for each in self.oa.requests]

    def told(self) -> list[tuple[str, Any]]:
        """Roles and contents of what the stand-in was told last."""
        return [(each["role"], each["content"]) for each in self.bodies()[-1]["messages"]]

    def heard(self) -> list[dict[str, Any]]:
        """What arrived at the upstream of the test's."""
        return [json.loads(each.body) for each in self.raw.requests]

    async def store(self) -> Store:
        return await self.proxy.server.runtime.conversations.store()

    async def settled(self) -> None:
        """Returns when no request is in flight."""
        async with asyncio.timeout(WAIT):
            await self.proxy.server.runtime.drain.idle()


async def unasked(peer: Peer, seen: Seen) -> None:
    raise AssertionError(f"the upstream was asked: {seen.line}")


@asynccontextmanager
async def chats(
    folder: Path,
    script: Script = unasked,
    *,
    more: Any = None,
    url: str | None = None,
    clock: Clock | None = None,
    **overrides: Any,
) -> AsyncIterator[Chats]:
    """`script` answers the requests that `raw` gets."""
    oa = OpenAIStandIn(OA_KEYS)
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(standing_in(oa))
        raw = await stack.enter_async_context(raw_upstream(serving(script)))
        upstreams = {
            "oa": {"kind": "openai", "base_url": f"{at}/v1", "keys": list(OA_KEYS), "models": ["gpt-*", "o-*"]},
            "raw": {"kind": "openai", "base_url": f"{raw.url}/v1", "keys": ["raw-pool-key-0001"], "models": ["m"]},
            "gemini": {"models": ["gemini-*"]},
            **(more or {}),
        }
        overrides.setdefault("auth", {"tokens": TOKENS})
        overrides.setdefault("database", {"url": url or f"sqlite:///{folder}/chats.db"})
        proxy = await stack.enter_async_context(
            proxying("http://127.0.0.1:9", upstreams=upstreams, clock=clock, **overrides)
        )
        yield Chats(proxy, oa, raw, Api(caller(proxy, ANN)), Api(caller(proxy, BOB)))


@dataclass
class Events:
    """What a socket's server says."""

    socket: aiohttp.ClientWebSocketResponse
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(WAIT):
            message = await self.socket.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        event: dict[str, Any] = json.loads(message.data)
        assert set(event) == {"event", "data"}
        self.seen.append(event)
        return event

    async def until(self, name: str) -> dict[str, Any]:
        """The data of the next event of this name."""
        while (event := await self.next())["event"] != name:
            pass
        data: dict[str, Any] = event["data"]
        return data

    async def say(self, content: Any, **members: Any) -> None:
        await self.socket.send_json({"type": "chat.message", "content": content, "model": GPT, **members})

    async def answer(self) -> str:
        """The text of the next whole answer."""
        self.seen.clear()
        await self.until("message_stop")
        deltas = [each["data"]["delta"]["text"] for each in self.seen if each["event"] == "content_block_delta"]
        return "".join(deltas)

    async def closed(self) -> int | None:
        """The code of the close frame that comes next."""
        async with asyncio.timeout(WAIT):
            message = await self.socket.receive()
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR), message
        return self.socket.close_code
