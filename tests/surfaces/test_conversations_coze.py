"""Stored chats with a bot of Coze, and calls of that surface that store nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from balancer.standin.base import running as standing_in
from balancer.standin.coze import BOT, CozeStandIn
from balancer.standin.coze_answers import Play
from balancer.standin.record import Arrival
from tests.surfaces.conversations_calls import Chats, chats
from tests.surfaces.coze_chats import ONE, TWO
from tests.surfaces.test_conversations_kept import ERROR

MODEL = "bots/poet"


@asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[tuple[Chats, CozeStandIn]]:
    backend = CozeStandIn([ONE, TWO])
    async with standing_in(backend) as url:
        bots = {"kind": "coze", "base_url": url, "keys": [ONE, TWO], "bots": [{"name": "poet", "bot_id": BOT}]}
        async with chats(folder, more={"bots": bots}) as at:
            yield at, backend
    assert not backend.overlaps


def asked(backend: CozeStandIn) -> list[Arrival]:
    return [each for each in backend.requests if each.path == "/v3/chat"]


def texts(arrival: Arrival) -> list[str]:
    return [each["content"] for each in arrival.json()["additional_messages"]]


async def test_a_stored_session_goes_on_with_its_conversation(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        session = await at.ann.make()
        await at.ann.add(session, "system", "be brief")
        first = await at.ann.chat(session, "one", model=MODEL, user="Kim")
        assert (first.text, first.json["model"]) == ("You said: be brief\n\none", "poet")
        async with at.ann.stream(session, "two", model=MODEL) as streamed:
            assert (await streamed.read()).endswith(b"data: [DONE]\n\n")
        (one, two) = asked(backend)
        (conversation,) = backend.conversations
        assert (one.target, two.target) == ("/v3/chat", f"/v3/chat?conversation_id={conversation}")
        assert [texts(one), texts(two)] == [["be brief\n\none"], ["two"]]
        assert one.json()["user_id"] == "Kim"
        assert [text for _, text in await at.ann.said(session)][-2:] == ["two", "You said: two"]


async def test_a_conversation_that_is_gone_is_replaced_once_and_told_the_history(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        session = await at.ann.make()
        await at.ann.chat(session, "one", model=MODEL)
        backend.forget_conversation(next(iter(backend.conversations)))
        assert (await at.ann.chat(session, "two", model=MODEL)).text == "You said: two"
        assert texts(asked(backend)[-1]) == ["one", "You said: one", "two"]
        assert (await at.ann.chat(session, "three", model=MODEL)).text == "You said: three"
        assert texts(asked(backend)[-1]) == ["three"]


async def test_a_call_without_a_stored_session_is_one_of_the_openai_surface(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        first = await at.ann.chat(None, "one", model=MODEL, user="u")
        async with at.ann.stream(None, "one", "two", model=MODEL, user="u") as second:
            assert (await second.read()).endswith(b"data: [DONE]\n\n")
        identity = first.headers["x-conversation-id"]
        assert second.headers["x-conversation-id"] == identity
        assert [texts(each) for each in asked(backend)] == [["one"], ["two"]]
        named: dict[str, Any] = {"x-conversation-id": identity}
        assert (await at.bob.chat(None, "three", model=MODEL, headers=named)).status == 404


@pytest.mark.parametrize("stored", [False, True])
async def test_a_chat_that_fails_in_its_middle_ends_in_the_surface_s_own_words(tmp_path: Path, stored: bool) -> None:
    async with kept(tmp_path) as (at, backend):
        backend.play = Play(messages=(("a",),), outcome="failed", code=4013)
        session = await at.ann.make() if stored else None
        async with at.ann.stream(session, "one", model=MODEL) as answer:
            frames = (await answer.read()).split(b"\n\n")
        assert str(ERROR["message"]).encode() in frames[-2]
        assert b"[DONE]" not in b"".join(frames)
