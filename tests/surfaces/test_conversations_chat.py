"""Chats of stored sessions: what is stored and when, what the model is told, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.surfaces.conversations_calls import (
    DONE,
    RAW,
    STOP,
    assistant,
    chats,
    delta,
    error_of,
    frame,
    refused,
    user,
)
from tests.surfaces.openai_calls import ANN, MESSAGES
from tests.surfaces.test_conversations import fill
from tests.upstream import Peer, Seen

SYSTEM = {"role": "system", "content": "be brief"}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


async def test_two_chats_are_stored_by_turns_and_the_second_call_tells_the_first(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        assert (await at.ann.chat(session, "one")).text == "You said: one"
        assert (await at.ann.chat(session, "two")).text == "You said: two"
        stored = await at.ann.messages(session)
        assert [(each["role"], each["content"]) for each in stored] == [
            ("user", "one"),
            ("assistant", "You said: one"),
            ("user", "two"),
            ("assistant", "You said: two"),
        ]
        assert [each["tokens"] for each in stored] == [3, 4, 3, 4]
        assert at.told() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]


async def test_the_model_is_told_the_instructions_and_the_newest_hundred_turns(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        await at.ann.add(session, "system", "old")
        await at.ann.add(session, "system", "be brief")
        await fill(at, session, 250)
        await at.ann.add(session, "note", "of our own")
        assert (await at.ann.chat(session, "the new one")).status == 200
        told = at.told()
        assert told[0] == ("system", "be brief")
        assert [text for _, text in told[1:]] == [*(f"turn {n}" for n in range(151, 250)), "the new one"]


async def test_nothing_is_filled_in_and_what_was_null_does_not_travel(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        sent: dict[str, Any] = {
            "temperature": None,
            "max_tokens": None,
            "stop": None,
            "user": None,
            "seed": 5,
            "logit_bias": {"1": 2},
        }
        for stored in (None, session):
            assert (await at.ann.chat(stored, "hello", **sent)).status == 200
            expected = {"model": "gpt-5.1", "messages": [user("hello")], "seed": 5, "logit_bias": {"1": 2}}
            assert at.bodies()[-1] == expected


async def test_a_clients_own_limit_of_output_is_the_only_thing_that_is_added(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "max_tokens": 100}]
    async with chats(tmp_path, auth={"tokens": tokens}) as at:
        session = await at.ann.make()
        for given, seen in ((None, 100), (500, 100), (50, 50)):
            await at.ann.chat(session, f"hello {given}", max_tokens=given)
            body = at.bodies()[-1]
            assert body.get("max_tokens", body.get("max_completion_tokens")) == seen


async def test_a_client_that_resends_the_history_stores_and_sends_nothing_twice(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        said: list[Any] = [SYSTEM]
        for text in ("one", "two", "three"):
            said.append(user(text))
            said.append(assistant((await at.ann.chat(session, *said)).text))
            assert at.told() == [(each["role"], each["content"]) for each in said[:-1]]
        assert await at.ann.said(session) == [(each["role"], each["content"]) for each in said]


async def test_a_client_that_resends_part_of_the_history_is_understood(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        for text in ("one", "two"):
            await at.ann.chat(session, text)
        await at.ann.chat(session, user("two"), assistant("You said: two"), user("three"))
        assert [text for role, text in await at.ann.said(session) if role == "user"] == ["one", "two", "three"]


async def test_the_same_question_after_its_answer_is_a_new_turn(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        for _ in range(2):
            await at.ann.chat(session, "again")
        assert len(await at.ann.messages(session)) == 4


async def test_instructions_are_stored_when_they_change(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        for text in ("be brief", "be brief", "be long"):
            await at.ann.chat(session, {"role": "system", "content": text}, user("hello"))
        await at.ann.chat(session, "without")
        assert [text for role, text in await at.ann.said(session) if role == "system"] == ["be brief", "be long"]
        assert at.told()[0] == ("system", "be long")


async def limited(peer: Peer, seen: Seen) -> None:
    first = len(peer.upstream.requests) == 1
    if first:
        await peer.answer(b'{"error":{"message":"slow down"}}', "429 Too Many Requests", ("Retry-After: 0",))
    else:
        await peer.answer(
            json.dumps({"choices": [{"index": 0, "message": assistant("yes"), "finish_reason": "stop"}]}).encode()
        )


async def test_a_retry_after_a_429_stores_the_question_once(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "rpm": 1}, {"name": "bob", "token": "token-of-bob-2"}]
    async with chats(tmp_path, auth={"tokens": tokens}) as at:
        session = await at.ann.make()
        assert (await at.ann.chat(None, "used up")).status == 200
        for _ in range(2):
            answer = await at.ann.chat(session, "hello")
            assert refused(answer) == (429, "rate_limit_exceeded", None)
            assert error_of(answer)["type"] == "rate_limit_error"
            assert int(answer.headers["Retry-After"]) > 0
        assert await at.ann.said(session) == [("user", "hello")]


async def test_calls_of_tools_are_kept_and_told_again(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        for stream in (False, True):
            answer = await at.ann.chat(session, f"look {stream}", tools=TOOLS, stream=stream)
            assert answer.status == 200
            asked = (await at.ann.messages(session))[-1]
            assert (asked["role"], asked["content"]) == ("assistant", "")
            (call,) = asked["metadata_info"]["tool_calls"]
            assert json.loads(call["function"]["arguments"]) == {"said": f"look {stream}"}
            found = {"role": "tool", "content": "found", "tool_call_id": call["id"]}
            assert (await at.ann.chat(session, found, tools=TOOLS)).status == 200
            told = at.bodies()[-1]["messages"]
            assert told[-2]["tool_calls"] == [call]
            assert told[-1] == found


async def test_tool_turns_without_their_call_are_not_told(tmp_path: Path) -> None:
    async with chats(tmp_path, conversations={"history": 3}) as at:
        session = await at.ann.make()
        for role in ("assistant", "tool", "assistant"):
            await at.ann.add(session, role, role)
        await at.ann.chat(session, "hello")
        assert at.told() == [("assistant", "assistant"), ("user", "hello")]


async def test_an_unknown_session_or_model_asks_nobody_and_stores_nothing(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        assert refused(await at.ann.chat("nope", "hello")) == (404, "not_found", None)
        unknown = await at.ann.chat(session, "hello", model="nobody/x")
        assert refused(unknown) == (400, "model_not_found", "model")
        assert error_of(unknown)["message"] == "模型不存在"
        assert refused(await at.ann.chat(session, "hello", model=None)) == (400, "missing_required_parameter", "model")
        assert not at.oa.requests
        assert await at.ann.messages(session) == []
        assert len(await at.ann.get("/sessions")) == 1
        assert (await at.ann.chat("", "hello")).status == 200


async def test_the_configured_model_answers_where_none_is_named(tmp_path: Path) -> None:
    async with chats(tmp_path, conversations={"model": "oa/gpt-5.1"}) as at:
        for absent in ({"model": None}, {"model": " "}):
            answer = await at.ann.caller.call("POST", "/api/chat/completions", {"messages": MESSAGES, **absent})
            assert answer.status == 200
            assert at.bodies()[-1]["model"] == "gpt-5.1"


async def test_an_answer_that_is_not_stored_passes_untouched(tmp_path: Path) -> None:
    body = b'{ "choices":[ ],\n"big": 123456789012345678901234567890 }'

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(body, headers=("X-Of-Upstream: yes",))

    async with chats(tmp_path, answer) as at:
        answer_ = await at.ann.chat(None, "hello", model=RAW)
        assert answer_.body == body
        assert answer_.headers["X-Of-Upstream"] == "yes"


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
async def test_a_stored_stream_passes_untouched_under_any_split(tmp_path: Path, piece: int) -> None:
    whole = b": hi\n\n" + delta("a ") + delta("[DONE]") + frame({"choices": [], "x": "data: [DONE]"}) + STOP + DONE

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        for place in range(0, len(whole), piece):
            await peer.chunk(whole[place : place + piece])
        await peer.end()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        async with at.ann.stream(session, "hello", model=RAW) as streamed:
            assert await streamed.read() == whole
        assert await at.ann.said(session) == [("user", "hello"), ("assistant", "a [DONE]")]
        assert (await at.ann.messages(session))[-1]["tokens"] == 2


async def test_the_end_of_a_stream_is_told_after_the_answer_is_stored(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(delta("a") + STOP)
        await gate.wait()
        await peer.chunk(DONE)
        await peer.end()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        async with at.ann.stream(session, "hello", model=RAW) as streamed:
            assert await streamed.content.readuntil(b"\n\n") == delta("a")  # while the rest is to come
            assert await at.ann.said(session) == [("user", "hello")]
            gate.set()
            rest = b""
            while not rest.endswith(DONE):
                rest += await streamed.content.readany()
            assert await at.ann.said(session) == [("user", "hello"), ("assistant", "a")]


async def test_a_stream_left_halfway_cancels_the_upstream_and_keeps_what_was_said(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(delta("half of "))
        await peer.gone()
        gone.set()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        async with at.ann.stream(session, "hello", model=RAW) as streamed:
            await streamed.content.readuntil(b"\n\n")
            streamed.close()
        async with asyncio.timeout(5):
            await gone.wait()
        await at.settled()
        stored = await at.ann.messages(session)
        assert [(each["content"], each["metadata_info"]) for each in stored] == [
            ("hello", None),
            ("half of ", {"partial": True}),
        ]


@pytest.mark.parametrize("said", [0, 1])
@pytest.mark.parametrize("how", ["cut", "error"])
async def test_an_answer_that_breaks_off_is_kept_as_far_as_it_came(tmp_path: Path, said: int, how: str) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(b": hi\n\n" + delta("half") * said)
        if how == "cut":
            peer.close()
        else:
            await peer.chunk(frame({"error": {"message": "broken"}}))
            await peer.end()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        async with at.ann.stream(session, "hello", model=RAW) as streamed:
            if how == "cut":
                with pytest.raises(aiohttp.ClientPayloadError):
                    await streamed.read()
            else:
                assert b"broken" in await streamed.read()
        await at.settled()
        kept = [("assistant", "half")] * said
        assert await at.ann.said(session) == [("user", "hello"), *kept]


async def test_an_upstreams_5xx_is_a_502_of_ours_and_its_4xx_passes(tmp_path: Path) -> None:
    for session_wanted in (False, True):
        for status in ("500 Oops", "503 Oops", "418 Oops", "404 Oops"):

            async def answer(peer: Peer, seen: Seen, status: str = status) -> None:
                await peer.answer(b'{"error":{"message":"of the upstream"}}', status)

            async with chats(tmp_path, answer) as at:
                session = await at.ann.make() if session_wanted else None
                refusal = await at.ann.chat(session, "hello", model=RAW)
                if status[0] == "5":
                    assert refused(refusal) == (502, "upstream_error", None)
                    assert error_of(refusal)["message"] == "生成聊天完成响应失败"
                    assert error_of(refusal)["type"] == "server_error"
                else:
                    assert (refusal.status, refusal.body) == (
                        int(status[:3]),
                        b'{"error":{"message":"of the upstream"}}',
                    )
                if session is not None:
                    assert await at.ann.said(session) == [("user", "hello")]


async def test_an_upstream_that_is_down_is_a_502(tmp_path: Path) -> None:
    down = {"down": {"kind": "openai", "base_url": "http://127.0.0.1:9", "keys": ["k"], "models": ["d"]}}
    async with chats(tmp_path, more=down) as at:
        answer = await at.ann.chat(None, "hello", model="down/d")
        assert refused(answer) == (502, "upstream_unreachable", None)
        assert error_of(answer)["message"] == "生成聊天完成响应失败"


async def test_a_stored_session_keeps_its_key(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        for text in ("one", "two", "three"):
            assert (await at.bob.chat(None, "turns the rotation")).status == 200
            assert (await at.ann.chat(session, text)).status == 200
        keys = [each.key for each in at.oa.requests]
        assert len(set(keys[1::2])) == 1
        assert len(set(keys[0::2])) > 1


async def test_turns_of_one_session_come_one_after_the_other(tmp_path: Path) -> None:
    running: list[int] = []

    async def answer(peer: Peer, seen: Seen) -> None:
        running.append(1)
        assert len(running) == 1
        await asyncio.sleep(0)
        running.pop()
        last = json.loads(seen.body)["messages"][-1]["content"]
        await peer.answer(
            json.dumps({"choices": [{"message": assistant(f"re {last}"), "finish_reason": "stop"}]}).encode()
        )

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        await asyncio.gather(*(at.ann.chat(session, f"{n}", model=RAW) for n in range(5)))
        said = await at.ann.said(session)
        assert [role for role, _ in said] == ["user", "assistant"] * 5
        assert all(answer == f"re {question}" for (_, question), (_, answer) in zip(said[::2], said[1::2], strict=True))


async def test_a_session_that_is_busy_for_too_long_is_a_409(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await gate.wait()
        await peer.answer(json.dumps({"choices": [{"message": assistant("done"), "finish_reason": "stop"}]}).encode())

    async with chats(tmp_path, answer, chat={"turn_wait": "0.05s"}) as at:
        session = await at.ann.make()
        first = asyncio.create_task(at.ann.chat(session, "one", model=RAW))
        await at.raw.arrival()
        busy = await at.ann.chat(session, "two", model=RAW)
        assert refused(busy) == (409, "session_busy", None)
        assert busy.headers["Retry-After"] == "5"
        gate.set()
        assert (await first).text == "done"


async def test_deleting_a_session_stops_what_is_said_and_nothing_brings_it_back(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if json.loads(seen.body).get("stream"):
            await peer.stream()
            await peer.chunk(delta("half"))
        await peer.gone()
        gone.set()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        call = asyncio.create_task(at.ann.chat(session, "hello", model=RAW))
        await at.raw.arrival()
        assert (await at.ann.call("DELETE", f"/sessions/{session}")).status == 200
        assert refused(await call) == (404, "not_found", None)
        async with asyncio.timeout(5):
            await gone.wait()

        gone.clear()
        session = await at.ann.make()
        async with at.ann.stream(session, "hello", model=RAW) as streamed:
            await streamed.content.readuntil(b"\n\n")
            assert (await at.ann.call("DELETE", f"/sessions/{session}")).status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await streamed.read()
        async with asyncio.timeout(5):
            await gone.wait()
        await at.settled()
        assert await at.ann.get("/sessions?active_only=no") == []


async def test_an_answer_that_the_end_of_the_process_cuts_is_kept(tmp_path: Path) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(delta("half"))
        await peer.gone()

    async with chats(tmp_path, answer) as at:
        session = await at.ann.make()
        streamed = await at.ann.stream(session, "hello", model=RAW)
        await streamed.content.readuntil(b"\n\n")
    async with chats(tmp_path) as at:
        assert await at.ann.said(session) == [("user", "hello"), ("assistant", "half")]
