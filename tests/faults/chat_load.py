"""Clients of stored chats that work until the proxy is killed, and what they were told by then.

Each has a session of its own and another that it shares. What was acknowledged is noted when its last byte was read, and not
before: the answer of a POST, the `[DONE]` of a stream, the `message_stop` of a socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp

MODEL = "oa/gpt-5.1"
_numbers = count()


@dataclass(slots=True)
class Told:
    """What clients were told is stored."""

    messages: list[tuple[str, str, str]] = field(default_factory=list)
    """Session, id and content of messages that were posted."""
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Session and question of answers that were told to their end."""
    asked: set[str] = field(default_factory=set)
    """Questions that were sent, answered or not."""


Work = Callable[[aiohttp.ClientSession, str, str, Told], Awaitable[None]]


class Away(Exception):
    """The proxy says that its database cannot be used."""


def _check(status: int, body: Any) -> None:
    if status == 503 and body["error"]["code"] == "storage_unavailable":
        raise Away
    assert status == 200, body


def _text(told: Told) -> str:
    text = f"question {next(_numbers)}"
    told.asked.add(text)
    return text


async def post(http: aiohttp.ClientSession, url: str, session: str, told: Told) -> None:
    text = f"note {next(_numbers)}"
    body = {"role": "note", "content": text}
    async with http.post(f"{url}/api/sessions/{session}/messages", json=body) as answer:
        made = await answer.json()
        _check(answer.status, made)
    told.messages.append((session, made["id"], text))


async def ask(http: aiohttp.ClientSession, url: str, session: str, told: Told, stream: bool = False) -> None:
    text = _text(told)
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream}
    async with http.post(f"{url}/api/chat/completions?session_id={session}", json=body) as answer:
        if answer.status != 200:
            _check(answer.status, await answer.json())
        if stream:
            async for line in answer.content:
                if line.strip() == b"data: [DONE]":
                    break
            else:
                return
        else:
            await answer.read()
    told.answers.append((session, text))


async def stream(http: aiohttp.ClientSession, url: str, session: str, told: Told) -> None:
    await ask(http, url, session, told, stream=True)


async def socket(http: aiohttp.ClientSession, url: str, session: str, told: Told) -> None:
    try:
        at = await http.ws_connect(f"{url}/ws/chat?session_id={session}")
    except aiohttp.WSServerHandshakeError as refused:  # whose body aiohttp does not show
        if refused.status == 503:
            raise Away from refused
        raise
    async with at:
        for _ in range(3):
            text = _text(told)
            await at.send_json({"type": "chat.message", "content": text, "model": MODEL})
            event = ""
            while event != "message_stop":
                said = json.loads(await at.receive_str())
                event = said["event"]
                if event == "error":
                    _check(503, {"error": said["data"]})
            told.answers.append((session, text))


WORKS: Sequence[Work] = (post, ask, stream, socket)


async def load(
    url: str, sessions: Sequence[str], told: Told, clients: int, dead: asyncio.Event, away: asyncio.Event | None = None
) -> None:
    """Works until everything is refused because the proxy is `dead`. Any other failure is raised, but for those of a database
    that is away, which are told by `away`.
    """

    async def client(number: int) -> None:
        work, session = WORKS[number % len(WORKS)], sessions[number // len(WORKS) % len(sessions)]
        async with aiohttp.ClientSession() as http:
            while not dead.is_set():
                try:
                    await work(http, url, session, told)
                except (Away, aiohttp.ClientError, aiohttp.WSMessageTypeError, OSError) as broken:
                    expected = away is not None and isinstance(broken, Away | aiohttp.ClientPayloadError)
                    if away is not None and expected:
                        away.set()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.1 if expected else 2):
                            await dead.wait()
                    if not (expected or dead.is_set()):
                        raise

    await asyncio.gather(*(client(number) for number in range(clients)))


async def stored(url: str, session: str) -> list[dict[str, Any]]:
    """All turns of a session, page by page."""
    found: list[dict[str, Any]] = []
    async with aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{url}/api/sessions/{session}/messages?skip={len(found)}&limit=1000") as answer:
                assert answer.status == 200, await answer.text()
                page = await answer.json()
            found += page
            if len(page) < 1000:
                return found
