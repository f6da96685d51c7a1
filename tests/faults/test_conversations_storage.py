"""A disk that is full while clients chat: nobody is told that what was not stored is stored, and later it goes on."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.surfaces.conversations_calls import (
    DONE,
    RAW,
    STOP,
    Chats,
    Events,
    assistant,
    chats,
    delta,
    error_of,
    refused,
)
from tests.upstream import Peer, Seen

LARGE = "x" * 60_000


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file of the database can grow."""
    size = max(file.stat().st_size for file in folder.iterdir() if file.name.startswith("chats.db"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def fill(at: Chats, session: str) -> None:
    """Until what waits to be written has no room left."""
    for _ in range(200):
        if (
            await at.ann.call("POST", f"/sessions/{session}/messages", {"role": "note", "content": LARGE})
        ).status != 200:
            return
    raise AssertionError("the disk does not fill up")


def whole(text: str) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": assistant(text), "finish_reason": "stop"}]}).encode()


async def test_a_question_that_cannot_be_stored_is_not_asked(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        with full_disk(tmp_path):
            await fill(at, session)
            answer = await at.ann.chat(session, LARGE)
            assert refused(answer) == (503, "storage_unavailable", None)
            assert error_of(answer)["type"] == "server_error"
            assert int(answer.headers["Retry-After"]) > 0
            assert not at.oa.requests
            assert (await at.ann.chat(None, "nothing is stored of this")).status == 200
            assert (await at.ann.call("GET", f"/sessions/{session}")).status == 200
        assert (await at.ann.chat(session, LARGE)).status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_stored_is_not_told_to_its_end(tmp_path: Path, stream: bool) -> None:
    gate = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await gate.wait()
        if json.loads(seen.body).get("stream"):
            await peer.stream()
            await peer.chunk(delta(LARGE) + STOP)
            await peer.chunk(DONE)
            await peer.end()
        else:
            await peer.answer(whole(LARGE))

    async with chats(tmp_path, answer) as at:
        session, other = await at.ann.make(), await at.ann.make()
        call = asyncio.create_task(at.ann.chat(session, "hello", model=RAW, stream=stream))
        await at.raw.arrival()
        with full_disk(tmp_path):
            await fill(at, other)
            gate.set()
            if stream:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await call
            else:
                assert refused(await call) == (503, "storage_unavailable", None)
        assert await at.ann.said(session) == [("user", "hello")]


async def test_a_socket_is_told_and_stays_open(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial("s") as socket:
        events = Events(socket)
        await events.next()
        with full_disk(tmp_path):
            await fill(at, "s")
            await events.say(LARGE)
            error = await events.until("error")
            assert (error["type"], error["message"]) == ("server_error", "处理消息时出错")
            assert error["code"] == "storage_unavailable"
            assert error["retry_after"] > 0
        await events.say("hello")
        assert await events.answer() == "You said: hello"
