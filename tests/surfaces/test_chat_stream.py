"""The chat surface as a stream of events: what is told when, and what becomes of a turn that does not come to its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.surfaces.chats import ANN, DONE, Bot, Waiting, bot, chunk, event_of, telling
from tests.upstream import WAIT, Peer, Seen


async def stored(here: Bot, session: str = "S") -> list[tuple[str, Any, Any]]:
    """Role, content and metadata of the session's turns."""
    from balancer.conversations.base import SessionName

    store = await here.proxy.server.runtime.conversations.store()
    found = await store.get(SessionName("ann", "chat", session))
    assert found is not None
    return [(each.role, each.content, each.metadata_info) for each in await store.turns(found)]


def heard(here: Bot, text: str) -> asyncio.Event:
    """Set when the proxy keeps so much of an answer."""
    budget, event = here.proxy.server.runtime.budget, asyncio.Event()
    take = budget.take

    def noting(size: int) -> bool:
        kept = take(size)
        if budget.used == len(text):
            event.set()
        return kept

    budget.take = noting  # type: ignore[method-assign]
    return event


async def test_deltas_arrive_unchanged_and_complete_repeats_them(tmp_path: Path) -> None:
    async with bot(tmp_path, telling("a ", " b", "\n")) as here:
        answer = await here.stream(session_id=" Mine ")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-session-id"] == "Mine"
    *chunks, complete = answer.events
    assert [(each["type"], each["data"]["content"]) for each in chunks] == [
        ("chunk", "a "),
        ("chunk", " b"),
        ("chunk", "\n"),
    ]
    assert [each["data"]["chunk_index"] for each in chunks] == [0, 1, 2]
    named = {"session_id", "message_id", "conversation_id", "timestamp"}
    assert set(chunks[0]["data"]) == {"content", "chunk_index"} | named
    assert complete["type"] == "complete"
    assert set(complete["data"]) == {"total_chunks", "full_content"} | named
    assert (complete["data"]["total_chunks"], complete["data"]["full_content"]) == (3, "a  b\n")
    for name in named - {"timestamp"}:
        assert len({event["data"][name] for event in answer.events}) == 1
    assert complete["data"]["session_id"] == " Mine "


@pytest.mark.parametrize("size", [1, 2, 7, 64])
async def test_any_split_of_the_upstream_s_bytes_gives_the_same_events(tmp_path: Path, size: int) -> None:
    whole = b"".join(chunk({"content": text}) for text in ("a ", " b", "\n", "你好")) + chunk({}, "stop") + DONE

    async def split(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        for start in range(0, len(whole), size):
            await peer.chunk(whole[start : start + size])
        await peer.end()

    async with bot(tmp_path, split) as here:
        answer = await here.stream()
    assert [each["data"]["content"] for each in answer.events[:-1]] == ["a ", " b", "\n", "你好"]
    assert answer.events[-1]["data"]["full_content"] == "a  b\n你好"


async def test_a_delta_is_told_while_the_next_is_withheld(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def gated(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(chunk({"content": "first"}))
        await gate.wait()
        await peer.chunk(chunk({"content": "second"}) + DONE)
        await peer.end()

    async with bot(tmp_path, gated) as here, here.open() as answer:
        assert (await event_of(answer))["data"]["content"] == "first"
        gate.set()
        assert (await event_of(answer))["data"]["content"] == "second"
        assert (await event_of(answer))["type"] == "complete"
        assert await answer.content.read() == b""


async def test_an_event_is_one_write(tmp_path: Path) -> None:
    async with bot(tmp_path, telling("one", "two")) as here:
        raw = await here.proxy.raw()
        body = b'{"message": "m"}'
        head = (
            f"POST /chat/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ANN}\r\nContent-Length: {len(body)}\r\n"
        )
        await raw.send(head.encode() + b"Connection: close\r\n\r\n" + body)
        await raw.head()
        for _ in range(3):
            size = int(await raw.until(b"\r\n"), 16)
            event = await raw.exactly(size)
            assert event.startswith(b"data: {")
            assert event.endswith(b"}\n\n")
            await raw.exactly(2)
        assert await raw.rest() == b"0\r\n\r\n"
        raw.close()


async def test_reasoning_is_an_event_of_its_own_and_no_chunk(tmp_path: Path) -> None:
    async def thinking(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(chunk({"reasoning_content": "hm"}) + chunk({"content": "yes"}) + DONE)
        await peer.end()

    async with bot(tmp_path, thinking) as here:
        answer = await here.stream()
    assert answer.kinds == ["reasoning", "chunk", "complete"]
    assert set(answer.events[0]["data"]) == {"content", "session_id", "message_id"}
    assert answer.events[-1]["data"]["total_chunks"] == 1
    assert answer.events[-1]["data"]["reasoning_content"] == "hm"


async def test_the_answer_is_stored_when_complete_is_told(tmp_path: Path) -> None:
    async with bot(tmp_path, telling("yes", usage={"completion_tokens": 7})) as here:
        async with here.open(session_id="S") as answer:
            while (await event_of(answer))["type"] != "complete":
                pass
            assert await stored(here) == [("user", "hello", None), ("assistant", "yes", None)]


@pytest.mark.parametrize("ending", ["cut", "end", "error"])
async def test_an_upstream_that_breaks_off_ends_in_an_error_event(tmp_path: Path, ending: str) -> None:
    told = asyncio.Event()

    async def breaking(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(chunk({"content": "one"}))
        await peer.chunk(chunk({"content": "two"}))
        await told.wait()
        if ending == "error":
            await peer.chunk(b'data: {"error": {"message": "secret", "code": 500}}\n\n')
        if ending == "cut":
            peer.reset()
        else:
            await peer.end()

    async with bot(tmp_path, breaking) as here:
        async with here.open(session_id="S") as answer:
            assert answer.status == 200
            assert [(await event_of(answer))["data"]["content"] for _ in range(2)] == ["one", "two"]
            told.set()
            error = await event_of(answer)
            assert await answer.content.read() == b""
        assert error["type"] == "error"
        assert set(error["data"]) == {"message", "session_id", "message_id", "conversation_id", "timestamp"}
        assert error["data"]["message"] == "openai API请求失败: 502 Bad Gateway"
        assert await stored(here) == [("user", "hello", None)]
        whole = await here.chat(session_id="S")
        assert whole.said == (500, "openai API请求失败: 502 Bad Gateway")
        assert await stored(here) == [("user", "hello", None)]


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_an_upstream_that_never_answers_is_a_timeout(tmp_path: Path, path: str) -> None:
    async def silent(peer: Peer, seen: Seen) -> None:
        await peer.gone()

    async with bot(tmp_path, silent, relay={"timeouts": {"first_byte": "100ms"}}) as here:
        answer = await here.call("POST", path, {"message": "m"})
        assert answer.said == (500, "同步聊天失败: timeout" if path == "/chat" else "流式聊天失败: timeout")


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_an_upstream_that_falls_silent_is_a_timeout(tmp_path: Path, path: str) -> None:
    async def falling_silent(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(chunk({"content": "one"}))
        await peer.gone()

    async with bot(tmp_path, falling_silent, relay={"timeouts": {"idle": "100ms"}}) as here:
        answer = await here.call("POST", path, {"message": "m"})
        if path == "/chat":
            assert answer.said == (500, "同步聊天失败: timeout")
        else:
            assert answer.kinds == ["chunk", "error"]
            assert answer.events[-1]["data"]["message"] == "流式聊天失败: timeout"


@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_who_leaves_ends_the_upstream_s_answer_and_the_text_so_far_is_kept(tmp_path: Path, path: str) -> None:
    left = asyncio.Event()

    async def endless(peer: Peer, seen: Seen) -> None:
        if b"again" in seen.body:
            await telling("fine")(peer, seen)
            return
        await peer.stream()
        await peer.chunk(chunk({"content": "half a "}))
        await peer.chunk(chunk({"content": "sentence"}))
        await peer.gone()
        left.set()

    async with bot(tmp_path, endless) as here:
        kept = heard(here, "half a sentence")
        if path == "/chat":
            leaving = asyncio.create_task(here.call("POST", path, {"message": "m", "session_id": "S"}))
            async with asyncio.timeout(WAIT):
                await kept.wait()
            leaving.cancel()
        else:
            async with here.open("m", session_id="S") as answer:
                assert (await event_of(answer))["data"]["content"] == "half a "
                assert (await event_of(answer))["data"]["content"] == "sentence"
                answer.close()
        async with asyncio.timeout(5):
            await left.wait()
        assert (await here.chat("again", session_id="S")).json["response"] == "fine"
        assert here.said() == [("user", "m"), ("assistant", "half a sentence"), ("user", "again")]
        assert (await stored(here))[:2] == [("user", "m", None), ("assistant", "half a sentence", {"partial": True})]


async def test_who_leaves_before_the_first_delta_leaves_the_user_s_turn(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def silent(peer: Peer, seen: Seen) -> None:
        if b"again" in seen.body:
            await telling("fine")(peer, seen)
            return
        await peer.gone()
        left.set()

    async with bot(tmp_path, silent) as here:
        leaving = asyncio.create_task(here.stream("m", session_id="S"))
        await here.upstream.arrival()
        leaving.cancel()
        async with asyncio.timeout(WAIT):
            await left.wait()
        assert (await here.chat("again", session_id="S")).status == 200
        assert [role for role, _, _ in await stored(here)] == ["user", "user", "assistant"]


async def test_who_waits_for_a_turn_and_leaves_takes_none(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(peer: Peer, seen: Seen) -> None:
        await gate.wait()
        await telling("done")(peer, seen)

    async with bot(tmp_path, slow) as here:
        waiting = Waiting(here)
        first = asyncio.create_task(here.chat("one", session_id="S"))
        await here.upstream.arrival()
        second = asyncio.create_task(here.chat("two", session_id="S"))
        await waiting.until(1)
        second.cancel()
        await waiting.until(0)
        gate.set()
        assert (await first).status == 200
        assert (await here.chat("three", session_id="S")).status == 200
        assert [each["content"] for each in here.seen[-1]["messages"]] == ["one", "done", "three"]


async def test_clearing_stops_the_running_turn(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def endless(peer: Peer, seen: Seen) -> None:
        if b"again" in seen.body:
            await telling("fine")(peer, seen)
            return
        await peer.stream()
        await peer.chunk(chunk({"content": "half"}))
        await peer.gone()
        left.set()

    async with bot(tmp_path, endless) as here:
        async with here.open("m", session_id="S") as answer:
            assert (await event_of(answer))["type"] == "chunk"
            assert (await here.call("POST", "/session/s/clear")).status == 200
            error = await event_of(answer)
            assert (error["type"], error["data"]["message"]) == ("error", "服务不可用: 会话已被清除")
            assert await answer.content.read() == b""
        async with asyncio.timeout(WAIT):
            await left.wait()
        assert (await here.info("S"))["message_count"] == 0
        kept = heard(here, "half")
        whole = asyncio.create_task(here.chat("m", session_id="S"))
        async with asyncio.timeout(WAIT):
            await kept.wait()
        assert (await here.call("POST", "/session/S/clear")).status == 200
        assert (await whole).said == (503, "服务不可用: 会话已被清除")
        assert (await here.stream("again", session_id="S")).kinds == ["chunk", "complete"]
        assert here.said() == [("user", "again")]


async def test_a_failure_before_the_upstream_accepts_is_a_plain_error(tmp_path: Path) -> None:
    async with bot(tmp_path, chat={"upstream": None, "model": None}) as here:
        answer = await here.stream()
        assert answer.status == 503
        assert answer.headers["Content-Type"].startswith("application/json")


async def test_the_answer_counts_against_the_budget_for_what_is_kept(tmp_path: Path) -> None:
    async with bot(tmp_path, telling(*["x" * 600] * 40), relay={"buffer_budget": 8192}) as here:
        answer = await here.stream()
        assert answer.kinds[-1] == "error"
        assert here.proxy.server.runtime.budget.used == 0
        assert (await here.chat()).status == 500
        assert here.proxy.server.runtime.budget.used == 0


async def test_clients_of_http_1_0_get_the_same_events(tmp_path: Path) -> None:
    async with bot(tmp_path, telling("one")) as here:
        body = b'{"message": "m"}'
        head = f"POST /chat/stream HTTP/1.0\r\nAuthorization: Bearer {ANN}\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = await here.proxy.exchange(head.encode() + body)
        events = [json.loads(line[6:]) for line in answer.partition(b"\r\n\r\n")[2].split(b"\n\n") if line]
        assert [event["type"] for event in events] == ["chunk", "complete"]


async def test_sample_clients_that_look_at_lines_stop_at_complete(tmp_path: Path) -> None:
    async with bot(tmp_path, telling("a", "b")) as here, here.open() as answer:
        said = []
        async for line in answer.content:
            text = line.decode().strip()
            if not text.startswith("data: "):
                continue
            event = json.loads(text[6:])
            if event["type"] == "complete":
                break
            said.append(event["data"]["content"])
        assert said == ["a", "b"]
        assert isinstance(answer, aiohttp.ClientResponse)


async def test_halves_of_characters_and_nul_are_told_as_they_came_and_stored_as_can_be(tmp_path: Path) -> None:
    async def odd(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        frames = (r'{"content":"\ud83d"}', r'{"content":"\ude00"}', r'{"content":"\u0000"}', r'{"content":"\ud83d"}')
        for delta in frames:
            await peer.chunk(b'data: {"choices":[{"index":0,"delta":' + delta.encode() + b"}]}\n\n")
        await peer.chunk(DONE)
        await peer.end()

    async with bot(tmp_path, odd) as here:
        answer = await here.stream(session_id="S")
        assert [each["data"]["content"] for each in answer.events[:-1]] == ["\ud83d", "\ude00", "\0", "\ud83d"]
        assert answer.kinds[-1] == "complete"
        assert (await stored(here))[1][1] == "\U0001f600\ufffd\ufffd"
