"""The socket of stored chats: its events in their order, what is stored behind them, and how it ends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from balancer.surfaces import conversations_ws
from tests.proxy import Raw
from tests.surfaces.conversations_calls import DONE, RAW, STOP, Api, Events, chats, delta, error_of, frame, refused
from tests.surfaces.openai_calls import ANN, TOKENS
from tests.upstream import WAIT, Peer, Seen

SHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


async def refusal(api: Api, query: str = "", **headers: str) -> Any:
    """The answer to a handshake that opens no socket."""
    return await api.caller.call("GET", f"/ws/chat{query}", headers={**SHAKE, **headers})


class Play:
    """An upstream that says one piece, waits at its gate, and then ends its answer."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gone = asyncio.Event()
        self.texts: list[str] = []

    async def __call__(self, peer: Peer, seen: Seen) -> None:
        self.texts.append(json.loads(seen.body)["messages"][-1]["content"])
        await peer.stream()
        await peer.chunk(delta("first "))
        waits = [asyncio.ensure_future(each) for each in (self.gate.wait(), peer.reader.read(1))]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not self.gate.is_set():
            self.gone.set()
            return
        waits[1].cancel()
        await peer.chunk(delta("second") + STOP + frame({"choices": [], "usage": {"completion_tokens": 42}}) + DONE)
        await peer.end()
        peer.close()


@pytest.mark.parametrize("path", ["/ws/chat", "/api/ws/chat"])
async def test_a_turn_is_told_in_events(tmp_path: Path, path: str) -> None:
    async with chats(tmp_path) as at, at.ann.dial(path=path) as socket:
        events = Events(socket)
        start = await events.next()
        assert start["event"] == "session_start"
        session = start["data"]["session_id"]
        assert UUID(session).version == 4
        assert (await at.ann.get(f"/sessions/{session}"))["title"] == f"WebSocket会话 {session[:8]}"
        assert await at.ann.messages(session) == []
        await events.say("hi")
        assert await events.answer() == "You said: hi"
        names = [each["event"] for each in events.seen]
        assert names[0] == "content_block_start"
        assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
        assert set(names[1:-3]) == {"content_block_delta"}
        assert events.seen[0]["data"] == {"type": "text", "index": 0}
        assert events.seen[1]["data"]["index"] == 0
        assert events.seen[1]["data"]["delta"]["type"] == "text_delta"
        assert events.seen[-3]["data"] == {"index": 0}
        assert events.seen[-2]["data"] == {"delta": {"finish_reason": "stop"}, "usage": {"output_tokens": 3}}
        assert events.seen[-1]["data"] == {}
        await events.say("again")
        await events.answer()
        assert at.told() == [("user", "hi"), ("assistant", "You said: hi"), ("user", "again")]
        assert [role for role, _ in await at.ann.said(session)] == ["user", "assistant"] * 2
        await socket.send_json({"type": "ping"})
        assert await events.next() == {"event": "pong", "data": {}}


async def test_an_unknown_id_is_made_under_that_id(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        async with at.ann.dial("My Own 会话") as socket:
            assert (await Events(socket).next())["data"] == {"session_id": "My Own 会话"}
        async with at.ann.dial("my own 会话 ") as socket:
            assert (await Events(socket).next())["data"] == {"session_id": "My Own 会话"}
        assert (await at.ann.get("/sessions/my%20own%20%E4%BC%9A%E8%AF%9D"))["id"] == "My Own 会话"
        async with at.bob.dial("My Own 会话") as socket:
            await Events(socket).next()
        assert len(await at.bob.get("/sessions")) == len(await at.ann.get("/sessions")) == 1


async def test_only_what_the_client_gave_travels(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial() as socket:
        events = Events(socket)
        await events.say([{"type": "text", "text": "hi"}])
        await events.answer()
        assert set(at.bodies()[-1]) == {"model", "messages", "stream", "stream_options"}
        await events.say("hi", temperature=0, max_tokens=9)
        await events.answer()
        assert (at.bodies()[-1]["temperature"], at.bodies()[-1]["max_tokens"]) == (0, 9)


async def test_what_is_no_message_is_an_error_and_the_next_message_works(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial() as socket:
        events = Events(socket)
        await events.next()
        await socket.send_str("{")
        await socket.send_bytes(b"{}")
        wrong: list[Any] = [
            {"type": "nope"},
            [],
            {"content": "hi"},
            {"type": "chat.message"},
            *({"type": "chat.message", "content": each} for each in ("", [], 5, None, ["x"], "a\0", "\ud83d")),
            {"type": "chat.message", "content": "hi", "temperature": 3},
            {"type": "chat.message", "content": "hi", "max_tokens": 0},
            {"type": "chat.message", "content": "hi", "model": 5},
        ]
        for each in wrong:
            await socket.send_json(each)
        for _ in range(len(wrong) + 2):
            event = await events.next()
            assert event["event"] == "error"
            assert set(event["data"]) == {"type", "message", "code"}
            assert (event["data"]["type"], event["data"]["code"]) == ("invalid_request_error", "invalid_request")
        await events.say("hi", model="nobody/x")
        assert (await events.next())["data"]["code"] == "model_not_found"
        await socket.send_json({"type": "chat.cancel"})
        await events.say("hi")
        assert await events.answer() == "You said: hi"


async def test_a_cancelled_answer_is_told_and_kept_and_the_next_message_works(tmp_path: Path) -> None:
    play = Play()
    async with chats(tmp_path, play) as at, at.ann.dial("s") as socket:
        events = Events(socket)
        await events.say("hi", model=RAW)
        await events.until("content_block_delta")
        await socket.send_json({"type": "chat.cancel"})
        assert await events.next() == {"event": "content_block_stop", "data": {"index": 0}}
        told = (await events.next())["data"]
        assert told == {"delta": {"finish_reason": "cancelled"}, "usage": {"output_tokens": 1}}
        assert (await events.next())["event"] == "message_stop"
        async with asyncio.timeout(5):
            await play.gone.wait()
        stored = await at.ann.messages("s")
        assert [(each["content"], each["metadata_info"]) for each in stored] == [
            ("hi", None),
            ("first ", {"partial": True}),
        ]
        play.gate.set()
        await events.say("more", model=RAW)
        assert await events.answer() == "first second"
        assert events.seen[-2]["data"]["usage"] == {"output_tokens": 42}


async def test_a_disconnect_cancels_the_upstream_keeps_what_was_said_and_drops_what_waits(tmp_path: Path) -> None:
    play = Play()
    async with chats(tmp_path, play) as at:
        socket = await at.ann.dial("s")
        events = Events(socket)
        await events.say("hi", model=RAW)
        await events.say("waits", model=RAW)
        await events.until("content_block_delta")
        socket._response.connection.transport.abort()
        async with asyncio.timeout(5):
            await play.gone.wait()
        await at.settled()
        assert await at.ann.said("s") == [("user", "hi"), ("assistant", "first ")]
        assert play.texts == ["hi"]


async def test_messages_wait_in_order_and_too_many_are_refused(tmp_path: Path) -> None:
    play = Play()
    async with chats(tmp_path, play) as at, at.ann.dial("s") as socket:
        events = Events(socket)
        await events.say("runs", model=RAW)
        await events.until("content_block_delta")
        for n in range(17):
            await events.say(f"{n}", model=RAW)
        refused_ = await events.until("error")
        assert (refused_["type"], refused_["code"]) == ("rate_limit_error", "too_many_pending")
        assert refused_["retry_after"] > 0
        play.gate.set()
        for _ in range(17):
            await events.until("message_stop")
        assert play.texts == ["runs", *(f"{n}" for n in range(16))]


async def test_two_sockets_of_one_session_take_turns(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial("s") as one, at.ann.dial("s") as two:
        sockets = [Events(one), Events(two)]
        await asyncio.gather(*(each.say(f"from {n}") for n, each in enumerate(sockets)))
        answers = await asyncio.gather(*(each.answer() for each in sockets))
        assert answers == ["You said: from 0", "You said: from 1"]
        said = await at.ann.said("s")
        assert [role for role, _ in said] == ["user", "assistant"] * 2
        assert all(
            answer == f"You said: {question}" for (_, question), (_, answer) in zip(said[::2], said[1::2], strict=True)
        )


async def test_a_session_that_is_deleted_ends_the_socket(tmp_path: Path) -> None:
    play = Play()
    async with chats(tmp_path, play) as at:
        for running in (True, False):
            async with at.ann.dial("s") as socket:
                events = Events(socket)
                if running:
                    await events.say("hi", model=RAW)
                    await events.until("content_block_delta")
                else:
                    await events.next()
                assert (await at.ann.call("DELETE", "/sessions/s")).status == 200
                if not running:
                    await events.say("hi", model=RAW)
                gone = {"type": "not_found_error", "message": "请求的资源不存在", "code": "not_found"}
                assert await events.until("error") == gone
                assert await events.closed() == 4404
            assert await at.ann.get("/sessions") == []


async def test_a_failed_answer_is_an_error_event_and_the_question_stays(tmp_path: Path) -> None:
    async def fails(peer: Peer, seen: Seen) -> None:
        if len(peer.upstream.requests) == 1:
            await peer.answer(b"{}", "418 Oops")
        else:
            await peer.stream()
            await peer.chunk(delta("half"))
            peer.close()

    async with chats(tmp_path, fails) as at, at.ann.dial("s") as socket:
        events = Events(socket)
        for kept in ([], [("assistant", "half")]):
            await events.say("hi", model=RAW)
            error = await events.until("error")
            assert (error["type"], error["message"], error["code"]) == (
                "server_error",
                "处理消息时出错",
                "upstream_error",
            )
            assert "content_block_stop" not in [each["event"] for each in events.seen]
            assert await at.ann.said("s") == [("user", "hi"), *kept]


async def test_a_clients_own_limits_are_told_with_the_time_to_come_back(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "rpm": 1}, TOKENS[1]]
    async with chats(tmp_path, auth={"tokens": tokens}) as at, at.ann.dial() as socket:
        events = Events(socket)
        await events.say("one")
        await events.answer()
        await events.say("two")
        error = await events.until("error")
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert 0 < error["retry_after"] <= 60


async def test_a_frame_that_is_too_large_ends_the_socket(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial() as socket:
        events = Events(socket)
        await events.next()
        await socket.send_str(json.dumps({"type": "chat.message", "content": "x" * (1 << 20)}))
        assert await events.closed() == 1009


async def test_a_token_that_is_no_longer_valid_ends_the_socket(tmp_path: Path) -> None:
    async with chats(tmp_path) as at, at.ann.dial() as socket:
        events = Events(socket)
        await events.say("hi")
        await events.answer()
        runtime = at.proxy.server.runtime
        auth = runtime.settings.auth.model_copy(update={"tokens": runtime.settings.auth.tokens[1:]})
        runtime.apply(runtime.settings.model_copy(update={"auth": auth}))
        await events.say("hi")
        assert await events.closed() == 4401


async def test_a_login_session_that_is_logged_out_ends_the_socket(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        login = (await at.ann.caller.call("POST", "/auth/login", {"provider_name": "oa", "model_name": "gpt-5.1"})).json
        at.bob.caller.token = login["token"]
        async with at.bob.dial("s") as socket:
            events = Events(socket)
            await socket.send_json({"type": "chat.message", "content": "hi"})
            assert await events.answer() == "You said: hi"
            assert len(await at.ann.messages("s")) == 2
            assert (await at.bob.caller.call("POST", "/auth/logout")).status == 200
            await events.say("hi")
            assert await events.closed() == 4401


async def test_a_handshake_is_refused_with_http(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        for named in ("", "%20", "x" * 257, "a%0ab", "%00"):
            answer = await refusal(at.ann, f"?session_id={named}")
            assert refused(answer) == (400, "invalid_request", "session_id")
        plain = await at.ann.caller.call("GET", "/ws/chat")
        assert plain.status == 426
        at.ann.caller.token = "wrong"
        assert refused(await refusal(at.ann))[:2] == (401, "invalid_api_key")
        at.ann.caller.token = None
        assert refused(await refusal(at.ann))[:2] == (401, "missing_api_key")
        assert await at.bob.get("/sessions") == []
        at.proxy.server.runtime.drain.begin()
        assert refused(await refusal(at.bob))[:2] == (503, "draining")


async def test_a_foreign_page_opens_no_socket_without_a_token(tmp_path: Path) -> None:
    listed = {"allowed_origins": ["http://localhost:3000"]}
    async with chats(tmp_path, auth={"tokens": []}, conversations=listed) as at:
        answer = await refusal(at.ann, Origin="http://evil.example")
        assert (answer.status, error_of(answer)["code"]) == (403, "origin_not_allowed")
        async with at.ann.dial(headers={"Origin": "http://localhost:3000"}) as socket:
            assert (await Events(socket).next())["event"] == "session_start"


@pytest.mark.parametrize(
    ("offered", "chosen"), [((f"bearer.{ANN}", "chat"), "chat"), ((f"bearer.{ANN}",), f"bearer.{ANN}"), ((), None)]
)
async def test_the_token_may_come_as_a_subprotocol_or_in_the_query(
    tmp_path: Path, offered: tuple[str, ...], chosen: str | None
) -> None:
    async with chats(tmp_path) as at:
        query = "" if offered else f"?key={ANN}"
        async with at.ann.dial(path=f"/ws/chat{query}", headers={}, protocols=offered) as socket:
            assert socket.protocol == chosen
            assert (await Events(socket).next())["event"] == "session_start"


async def test_a_drain_ends_what_runs_and_refuses_what_waits(tmp_path: Path) -> None:
    play = Play()
    async with chats(tmp_path, play) as at, at.ann.dial("s") as socket, at.ann.dial("idle") as idle:
        events = Events(socket)
        assert (await Events(idle).next())["event"] == "session_start"
        await events.say("runs", model=RAW)
        await events.until("content_block_delta")
        await events.say("waits", model=RAW)
        await socket.send_json({"type": "ping"})
        await events.until("pong")
        at.proxy.server.runtime.drain.begin()
        assert await Events(idle).closed() == 1001
        assert (await events.until("error"))["code"] == "draining"
        await events.say("new", model=RAW)
        assert (await events.until("error"))["code"] == "draining"
        play.gate.set()
        await events.until("message_stop")
        assert await events.closed() == 1001
        assert await said_of(at, "s") == [("user", "runs"), ("assistant", "first second")]


async def said_of(at: Any, session: str) -> list[tuple[str, Any]]:
    from balancer.conversations.base import SessionName

    store = await at.store()
    found = await store.get(SessionName("ann", "conversations", session))
    return [(turn.role, turn.content) for turn in await store.turns(found)]


async def test_a_client_that_answers_no_ping_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations_ws, "PING_EVERY", 0.5)
    async with chats(tmp_path) as at:
        async with at.ann.dial(autoping=False) as socket:
            await Events(socket).next()
            async with asyncio.timeout(WAIT):
                ping = await socket.receive()
                assert ping.type is aiohttp.WSMsgType.PING
                await socket.pong(ping.data)
                assert (await socket.receive()).type is aiohttp.WSMsgType.PING  # it is alive, and asked again
                end = await socket.receive()
            assert end.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await at.settled()


async def test_a_slow_reader_slows_the_upstream(tmp_path: Path) -> None:
    piece, written, stopped = "x" * 65536, 0, asyncio.Event()

    async def talks(peer: Peer, seen: Seen) -> None:
        nonlocal written
        await peer.stream()
        peer.writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(WAIT):
                while written < 2000:
                    async with asyncio.timeout(2):
                        await peer.chunk(delta(piece))
                    written += 1
        except TimeoutError:
            stopped.set()
        await peer.gone()

    async with chats(tmp_path, talks) as at:
        raw = Raw(*await asyncio.open_connection(*at.proxy.server.address, limit=1 << 16))
        head = "".join(f"{name}: {value}\r\n" for name, value in SHAKE.items())
        await raw.send(f"GET /ws/chat?session_id=s&key={ANN} HTTP/1.1\r\nHost: p\r\n{head}\r\n".encode())
        await raw.head()
        text = json.dumps({"type": "chat.message", "content": "hi", "model": RAW}).encode()
        await raw.send(bytes((0x81, 0x80 | len(text))) + bytes(4) + text)
        async with asyncio.timeout(WAIT):
            await stopped.wait()
        assert written * len(piece) < 32 << 20  # what the kernel holds of four sockets
        raw.close()
        await at.settled()
        assert [role for role, _ in await at.ann.said("s")] == ["user", "assistant"]
