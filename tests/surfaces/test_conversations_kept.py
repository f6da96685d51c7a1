"""Stored chats with an upstream that keeps the conversation: the stored turns are the truth, and only what is new travels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from balancer.standin.achuan import AchuanStandIn, token
from balancer.standin.base import running as standing_in
from tests.surfaces.conversations_calls import GPT, Chats, Events, chats

ALICE, BOB = token("alice"), token("bob")
MODEL = "ac/claude-sonnet-4-5-20250929"
OTHER = "ac/gpt-5.1-high"
ERROR = {"type": "server_error", "message": "生成流式响应失败", "param": None, "code": "server_error"}


@asynccontextmanager
async def kept(folder: Path) -> AsyncIterator[tuple[Chats, AchuanStandIn]]:
    """Each answer is `re ` and what was said."""
    backend = AchuanStandIn([ALICE, BOB])
    backend.says = lambda text: ["re ", text.rpartition("\n")[2]]
    async with standing_in(backend) as url:
        models = [each.partition("/")[2] for each in (MODEL, OTHER)]
        achuan = {"kind": "achuan", "base_url": url, "keys": [ALICE, BOB], "models": models}
        async with chats(folder, more={"ac": achuan}) as at:
            yield at, backend
    assert not backend.overlaps


def said(backend: AchuanStandIn) -> list[tuple[int, str]]:
    """Session and text of each turn that arrived."""
    bodies = [json.loads(each.body or b"") for each in backend.requests if each.target.endswith("/completions")]
    return [(body["sessionId"], body["text"]) for body in bodies]


async def test_the_second_turn_sends_the_new_text_alone(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        session = await at.ann.make()
        await at.ann.add(session, "system", "be brief")
        first = await at.ann.chat(session, "one", model=MODEL)
        assert first.text == "re one"
        assert first.json["model"] == MODEL.partition("/")[2]
        async with at.ann.stream(session, "two", model=MODEL) as streamed:
            frames = (await streamed.read()).split(b"\n\n")
        assert frames[-2:] == [b"data: [DONE]", b""]
        (one, text), (two, again) = said(backend)
        assert one == two
        assert (text, again) == ("be brief\n\none", "two")
        assert first.headers["x-session-id"] == streamed.headers["x-session-id"] == str(one)
        assert [text for _, text in await at.ann.said(session)] == ["be brief", "one", "re one", "two", "re two"]


async def test_a_conversation_that_is_gone_is_replaced_once_and_told_the_history(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        session = await at.ann.make()
        await at.ann.chat(session, {"role": "system", "content": "be brief"}, "one", model=MODEL)
        backend.forget_session(said(backend)[0][0])
        assert (await at.ann.chat(session, "two", model=MODEL)).text == "re two"
        assert (await at.ann.chat(session, "three", model=MODEL)).text == "re three"
        turns = said(backend)
        assert turns[1][0] == turns[0][0]
        assert turns[2][0] == turns[3][0] != turns[0][0]
        assert turns[2][1] == "be brief\n\nuser: one\n\nassistant: re one\n\ntwo"
        assert turns[3][1] == "three"


async def test_another_model_begins_a_conversation_that_knows_the_history(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        session = await at.ann.make()
        await at.ann.chat(session, "one", model=MODEL)
        await at.ann.chat(session, "two", model=OTHER)
        await at.ann.chat(session, "three", model=GPT)
        assert [text for _, text in at.told()] == ["one", "re one", "two", "re two", "three"]
        await at.ann.chat(session, "four", model=OTHER)
        texts = [text for _, text in said(backend)]
        assert texts[1] == "user: one\n\nassistant: re one\n\ntwo"
        assert texts[2].endswith("user: three\n\nassistant: You said: three\n\nfour")
        assert len({number for number, _ in said(backend)}) == 3


async def test_a_restart_goes_on_with_the_same_conversation(tmp_path: Path) -> None:
    backend = AchuanStandIn([ALICE])
    async with standing_in(backend) as url:
        achuan = {"kind": "achuan", "base_url": url, "keys": [ALICE], "models": [MODEL.partition("/")[2]]}
        async with chats(tmp_path, more={"ac": achuan}) as at:
            session = await at.ann.make()
            await at.ann.chat(session, "one", model=MODEL)
        async with chats(tmp_path, more={"ac": achuan}) as at:
            await at.ann.chat(session, "two", model=MODEL)
    (one, _), (two, text) = said(backend)
    assert (one, text) == (two, "two")


async def test_a_stream_that_breaks_off_ends_with_an_error_frame_and_is_kept_in_part(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        for key in (ALICE, BOB):
            backend.script(key, "cut-fin", after=2, target="completions")
        session = await at.ann.make()
        for stored in (session, None):
            async with at.ann.stream(stored, "one", model=MODEL) as streamed:
                body = await streamed.read()
            assert b"[DONE]" not in body
            assert json.loads(body.split(b"\n\n")[-2].removeprefix(b"data: ")) == {"error": ERROR}
        stored_turns = await at.ann.messages(session)
        assert stored_turns[-1]["metadata_info"] == {"partial": True}
        assert len(stored_turns) == 2


async def test_a_call_without_a_session_is_translated_as_elsewhere(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        for headers in ({}, {"X-Session-Id": "mine"}, {"X-Session-Id": "mine"}):
            answer = await at.ann.chat(None, "hello", model=MODEL, headers=headers)
            assert answer.text == "re hello"
        one, two, three = [number for number, _ in said(backend)]
        assert one != two == three
        async with at.ann.stream(None, "hello", model=MODEL) as streamed:
            assert (await streamed.read()).endswith(b"data: [DONE]\n\n")


async def test_a_socket_speaks_with_it_too(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend), at.ann.dial("s") as socket:
        events = Events(socket)
        for text in ("one", "two"):
            await events.say(text, model=MODEL)
            assert await events.answer() == f"re {text}"
        assert [text for _, text in said(backend)] == ["one", "two"]
        assert len({number for number, _ in said(backend)}) == 1


async def test_sessions_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with kept(tmp_path) as (at, backend):
        sessions = [await at.ann.make() for _ in range(4)]
        answers: list[Any] = await asyncio.gather(*(at.ann.chat(each, each, model=MODEL) for each in sessions))
        assert [each.text for each in answers] == [f"re {each}" for each in sessions]
        assert len({number for number, _ in said(backend)}) == 4
