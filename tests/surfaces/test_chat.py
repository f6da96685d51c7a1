"""The chat surface, call by call: what it answers, what it stores, what it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from balancer import __version__
from tests.surfaces.chats import ANN, BOB, MODEL, Bot, bot, telling
from tests.upstream import Peer, Seen

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")


async def test_a_message_without_a_session_makes_one(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        answer = await here.chat("hello", session_id=None)
    assert answer.status == 200
    told = answer.json
    assert set(told) == {"response", "session_id", "message_id", "timestamp", "conversation_id"}
    assert told["response"] == "You said: hello"
    assert re.fullmatch(r"session_[0-9a-f]{12}", told["session_id"])
    assert re.fullmatch(r"msg_[0-9a-f]{16}", told["message_id"])
    assert re.fullmatch(r"conv_[0-9a-f]{16}", told["conversation_id"])
    assert MOMENT.fullmatch(told["timestamp"])
    assert answer.headers["x-session-id"] == told["session_id"]


async def test_the_second_turn_travels_with_the_first(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        first = (await here.chat("one")).json
        second = (await here.chat("two", session_id=first["session_id"])).json
        assert here.said() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
        assert (first["session_id"], first["conversation_id"]) == (second["session_id"], second["conversation_id"])
        assert len({each.get("authorization") for each in here.upstream.requests}) == 1
        assert (here.seen[0]["model"], here.seen[0]["stream"]) == (MODEL, True)


async def test_only_the_newest_turns_travel(tmp_path: Path) -> None:
    async with bot(tmp_path, conversations={"history": 2}) as here:
        for text in ("one", "two", "three"):
            await here.chat(text, session_id="s")
        assert here.said() == [("user", "two"), ("assistant", "You said: two"), ("user", "three")]


@pytest.mark.parametrize("name", ["X-Session-Id", "query", "body", "prefix"])
async def test_a_session_is_named_in_any_of_four_places(tmp_path: Path, name: str) -> None:
    async with bot(tmp_path) as here:
        path = {"query": "/chat?session_id=%20Mine", "prefix": "/s/%20Mine/chat"}.get(name, "/chat")
        headers = {"X-Session-Id": "Mine"} if name == "X-Session-Id" else {}
        body = {"message": "hello", **({"session_id": " Mine"} if name == "body" else {})}
        answer = await here.call("POST", path, body, **headers)
        assert answer.json["session_id"].strip() == "Mine"
        assert (await here.info("mINE"))["message_count"] == 2


async def test_the_first_place_that_names_a_session_counts(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        body = {"message": "hello", "session_id": "body"}
        answer = await here.call("POST", "/s/prefix/chat?session_id=query", body, **{"X-Session-Id": "header"})
        assert answer.json["session_id"] == "header"
        answer = await here.call("POST", "/s/prefix/chat?session_id=query", body)
        assert answer.json["session_id"] == "query"
        answer = await here.call("POST", "/s/prefix/chat", body)
        assert answer.json["session_id"] == "body"


async def test_reasoning_is_told_beside_the_answer(tmp_path: Path) -> None:
    async def thinking(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        frames = [{"reasoning_content": "hm"}, {"reasoning_content": "m"}, {"content": "yes"}]
        for delta in frames:
            frame = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            await peer.chunk(b"data: " + json.dumps(frame).encode() + b"\n\n")
        await peer.chunk(b"data: [DONE]\n\n")
        await peer.end()

    async with bot(tmp_path, thinking) as here:
        told = (await here.chat()).json
        assert (told["response"], told["reasoning_content"]) == ("yes", "hmm")


async def test_an_upstream_that_does_not_stream_is_understood(tmp_path: Path) -> None:
    async def whole(peer: Peer, seen: Seen) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "in one piece"}, "finish_reason": "stop"}
        await peer.answer(json.dumps({"object": "chat.completion", "choices": [choice]}).encode())

    async with bot(tmp_path, whole) as here:
        assert (await here.chat()).json["response"] == "in one piece"


async def test_info_tells_what_is_stored(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        told = (await here.chat(session_id="S", user_id="u-1")).json
        info = await here.info("S")
        assert set(info) == {
            "session_id",
            "user_id",
            "conversation_id",
            "last_activity",
            "message_count",
            "status",
        }
        assert MOMENT.fullmatch(info.pop("last_activity"))
        assert info == {
            "session_id": "S",
            "user_id": "u-1",
            "conversation_id": told["conversation_id"],
            "message_count": 2,
            "status": "active",
        }


async def test_another_client_s_session_is_not_there(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        conversation = (await here.chat(session_id="S")).json["conversation_id"]
        assert (await here.get("/session/S/info", BOB)).said == (404, "会话不存在 - session_id: S")
        assert (await here.get("/sessions", BOB)).json["sessions"] == []
        assert (await here.call("POST", "/session/S/clear", token=BOB)).status == 200
        missing = (404, f"会话不存在 - conversation_id: {conversation}")
        bind = await here.call("POST", "/session/T/bind", {"conversation_id": conversation}, BOB)
        assert bind.said == missing
        assert (await here.chat(token=BOB, conversation_id=conversation)).said == missing
        holder = await here.get(f"/conversation/{conversation}/session", BOB)
        assert holder.said == (404, f"未找到绑定的会话 - conversation_id: {conversation}")
        assert (await here.get("/sessions", BOB)).json["total"] == 0
        assert (await here.info("S"))["message_count"] == 2


async def test_a_cleared_session_begins_anew(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        first = (await here.chat("one", session_id="S")).json
        answer = await here.call("POST", "/session/S/clear", b"{")
        assert answer.status == 200
        assert MOMENT.fullmatch(answer.json["cleared_at"])
        assert {**answer.json, "cleared_at": ""} == {"message": "会话已成功清除", "session_id": "S", "cleared_at": ""}
        info = await here.info("S")
        assert (info["message_count"], info["conversation_id"]) == (0, None)
        second = (await here.chat("two", session_id="S")).json
        assert second["conversation_id"] != first["conversation_id"]
        assert here.said() == [("user", "two")]


async def test_clearing_a_session_that_never_was_is_no_error(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        answer = await here.call("POST", "/session/never/clear")
        assert (answer.status, set(answer.json)) == (200, {"message", "session_id", "cleared_at"})
        assert (await here.get("/session/never/info")).status == 404


async def test_a_conversation_moves_to_the_session_that_names_it(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        told = (await here.chat("one", session_id="old")).json
        conversation = told["conversation_id"]
        answer = await here.call("POST", "/session/new/bind", {"conversation_id": conversation})
        assert MOMENT.fullmatch(answer.json.pop("timestamp"))
        bound = {name: value for name, value in answer.json.items() if name != "timestamp"}
        assert bound == {"message": "会话ID绑定成功", "session_id": "new", "conversation_id": conversation}
        assert (await here.get("/session/old/info")).status == 404
        holder = (await here.get(f"/conversation/{conversation}/session")).json
        assert set(holder) == {"conversation_id", "session_id", "session_info", "timestamp"}
        assert holder["session_id"] == "new"
        assert set(holder["session_info"]) == {"user_id", "last_activity"}
        third = (await here.chat("two", session_id="third", conversation_id=conversation)).json
        assert (third["session_id"], third["conversation_id"]) == ("third", conversation)
        assert here.said() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]
        assert (await here.get("/session/new/info")).status == 404


async def test_a_conversation_that_nobody_knows_is_not_found(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        missing = (404, "会话不存在 - conversation_id: conv_unknown0")
        assert (await here.chat(conversation_id="conv_unknown0")).said == missing
        assert (await here.call("POST", "/session/S/bind", {"conversation_id": "conv_unknown0"})).said == missing
        assert here.upstream.requests == []
        assert (await here.get("/sessions")).json["total"] == 0


async def test_sessions_are_listed_with_the_last_activity_first(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        for name in ("a", "b", "c", "a"):
            await here.chat(f"to {name}", session_id=name)
        answer = await here.get("/sessions?limit=2")
        page = answer.json
        assert set(page) == {"total", "limit", "offset", "sessions", "timestamp"}
        assert (page["total"], page["limit"], page["offset"]) == (3, 2, 0)
        assert [each["session_id"] for each in page["sessions"]] == ["a", "c"]
        assert set(page["sessions"][0]) == {"session_id", "user_id", "conversation_id", "last_activity"}
        rest = (await here.get("/sessions?offset=2")).json
        assert [each["session_id"] for each in rest["sessions"]] == ["b"]
        assert rest["limit"] == 10


async def test_what_anybody_may_ask(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        root = await here.get("/", None)
        assert root.json == {
            "message": "balancer is running",
            "version": __version__,
            "status": "healthy",
            "docs": "/docs",
        }
        health = await here.get("/health", None)
        assert MOMENT.fullmatch(health.json.pop("timestamp"))
        assert (health.status, health.json["status"], health.json["coze_client_status"]) == (
            200,
            "healthy",
            "initialized",
        )
        assert (await here.get("/sessions", None)).status == 401
        assert here.upstream.requests == []


async def test_health_tells_when_every_key_is_disabled(tmp_path: Path) -> None:
    async def refusing(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"error":{"code":"invalid_api_key","message":"no"}}', "401 Unauthorized")

    async with bot(tmp_path, refusing) as here:
        assert (await here.chat()).status == 503
        assert (await here.get("/health", None)).json["coze_client_status"] == "uninitialized"
        answer = await here.chat()
        assert answer.said == (503, "服务不可用: no usable key")
        assert int(answer.headers["Retry-After"]) >= 1


async def test_without_an_upstream_chat_is_unavailable_and_the_rest_is_there(tmp_path: Path) -> None:
    async with bot(tmp_path, chat={"upstream": None, "model": None}) as here:
        for path in ("/chat", "/chat/stream"):
            answer = await here.call("POST", path, {"message": "hello"})
            assert answer.said == (503, "服务不可用: chat.upstream is not configured")
            assert "Retry-After" in answer.headers
        assert (await here.get("/health", None)).json["coze_client_status"] == "uninitialized"
        assert (await here.get("/sessions")).json["total"] == 0


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"[]",
        b"{",
        b"{}",
        b'{"message": null}',
        b'{"message": ""}',
        b'{"message": "  "}',
        b'{"message": 5}',
        b'{"message": "a\\u0000b"}',
        b'{"message": "\\ud800"}',
        b'{"message": "m", "user_id": 5}',
        json.dumps({"message": "m", "user_id": "u" * 129}).encode(),
        json.dumps({"message": "m", "session_id": "s" * 300}).encode(),
        b'{"message": "m", "session_id": "a\\nb"}',
        b'{"message": "m", "session_id": 5}',
        b'{"message": "m", "conversation_id": "123456789"}',
        b'{"message": "m", "conversation_id": 1234567890}',
    ],
)
async def test_a_message_that_cannot_be_is_refused(tmp_path: Path, body: bytes | None) -> None:
    async with bot(tmp_path) as here:
        for path in ("/chat", "/chat/stream"):
            status, detail = (await here.call("POST", path, body)).said
            assert status == 400
            assert detail.startswith("参数错误: ")
        assert here.upstream.requests == []
        assert (await here.get("/sessions")).json["total"] == 0


async def test_the_refusal_names_the_member(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        answer = await here.chat("m", session_id="s" * 300)
        assert answer.said == (400, "参数错误: session_id: is longer than 256 characters")
        answer = await here.call("POST", "/chat", {"message": "m"}, **{"X-Session-Id": "s" * 300})
        assert answer.said == (400, "参数错误: session_id: is longer than 256 characters")


@pytest.mark.parametrize("session", [None, "", "  "])
async def test_a_blank_session_id_means_a_fresh_session(tmp_path: Path, session: str | None) -> None:
    async with bot(tmp_path) as here:
        told = (await here.chat(session_id=session)).json
        assert told["session_id"].startswith("session_")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_the_content_decides_and_not_its_type(tmp_path: Path, kind: str) -> None:
    async with bot(tmp_path) as here:
        answer = await here.call("POST", "/chat", b'{"message": "hi", "unknown": 1}', **{"Content-Type": kind})
        assert answer.json["response"] == "You said: hi"


@pytest.mark.parametrize("body", [b"{}", b'{"conversation_id": "123456789"}', b'{"conversation_id": 1234567890}', b"["])
async def test_a_binding_that_cannot_be_is_refused(tmp_path: Path, body: bytes) -> None:
    async with bot(tmp_path) as here:
        status, detail = (await here.call("POST", "/session/S/bind", body)).said
        assert (status, detail.partition(" ")[0]) == (400, "参数错误:")


@pytest.mark.parametrize("query", ["limit=0", "limit=51", "limit=x", "offset=-1", "limit=5.0", "limit="])
async def test_a_page_that_cannot_be_is_refused(tmp_path: Path, query: str) -> None:
    async with bot(tmp_path) as here:
        status, detail = (await here.get(f"/sessions?{query}")).said
        assert (status, detail.startswith(f"参数错误: {query.partition('=')[0]}: ")) == (400, True)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/chat", "POST, OPTIONS"),
        ("PUT", "/chat/stream", "POST, OPTIONS"),
        ("POST", "/sessions", "GET, OPTIONS"),
        ("GET", "/session/S/clear", "POST, OPTIONS"),
        ("DELETE", "/health", "GET, OPTIONS"),
    ],
)
async def test_other_methods_are_told_which_there_are(tmp_path: Path, method: str, path: str, allow: str) -> None:
    async with bot(tmp_path) as here:
        answer = await here.call(method, path)
        assert (answer.status, answer.headers["Allow"]) == (405, allow)
        assert (await here.call("OPTIONS", path)).headers["Allow"] == allow


@pytest.mark.parametrize(
    "path", ["/auth/x", "/chat/x", "/session/S", "/session/S/x", "/session/", "/conversation/c", "/s/x/chat/y"]
)
async def test_unknown_paths_below_ours_are_not_found(tmp_path: Path, path: str) -> None:
    async with bot(tmp_path) as here:
        assert (await here.get(path)).said == (404, "Not Found")


async def test_who_shows_no_credential_is_told_where_to_get_one(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        answer = await here.call("POST", "/chat", {"message": "m"}, None)
        text = "未认证。请先通过 /auth/login 登录获取 Session Token，或使用 API Key 进行认证。"
        assert answer.said == (401, text)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert (await here.chat(token="wrong")).said == (401, "无效的 API Key 或 Session Token")


async def test_a_session_token_is_its_client(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        token = (await here.call("POST", "/auth/login", {"api_key": ANN}, None)).json["token"]
        await here.chat(session_id="S", token=token)
        assert (await here.info("S"))["message_count"] == 2


async def test_a_body_over_the_limit_is_refused_while_it_is_read(tmp_path: Path) -> None:
    async def pieces() -> Any:
        yield b'{"message": "'
        for _ in range(11):
            yield b"x" * (1 << 20)
        yield b'"}'

    async with bot(tmp_path) as here:
        headers = {"Authorization": f"Bearer {ANN}"}
        async with here.proxy.client.post(here.proxy.url + "/chat", data=pieces(), headers=headers) as answer:
            assert (answer.status, (await answer.json())["detail"]) == (413, "请求体过大")
        declared = await here.call("POST", "/chat", b'{"message": "' + b"x" * (11 << 20) + b'"}')
        assert declared.said == (413, "请求体过大")
        assert here.upstream.requests == []


async def test_a_client_over_its_limit_is_told_so(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "rpm": 1}]
    async with bot(tmp_path, auth={"tokens": tokens}) as here:
        assert (await here.chat(session_id="S")).status == 200
        for send in (here.chat, here.stream):
            answer = await send("more", session_id="S")
            assert answer.said == (429, "请求过于频繁")
            assert 1 <= int(answer.headers["Retry-After"]) <= 60
            assert answer.headers["x-ratelimit-limit-requests"] == "1"


async def test_a_client_s_limit_of_tokens_travels(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "max_tokens": 100}]
    async with bot(tmp_path, auth={"tokens": tokens}) as here:
        await here.chat()
        assert here.seen[0]["max_tokens"] == 100
        assert "temperature" not in here.seen[0]


async def test_a_client_that_may_not_use_the_model_is_refused(tmp_path: Path) -> None:
    tokens = [{"name": "ann", "token": ANN, "models": ["gemini/*"]}]
    async with bot(tmp_path, auth={"tokens": tokens}) as here:
        assert (await here.chat()).said == (403, f"API Key 不允许访问模型 oa/{MODEL}")


async def test_keys_that_rest_are_told_with_the_time(tmp_path: Path) -> None:
    async def limited(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"error":{"code":"rate_limit_exceeded"}}', "429 Too Many Requests", ("Retry-After: 77",))

    async with bot(tmp_path, limited) as here:
        answer = await here.chat(session_id="S")
        assert answer.said == (429, "openai API请求失败: 429 Too Many Requests")
        assert 70 <= int(answer.headers["Retry-After"]) <= 77


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        ("400 Bad Request", "openai API请求失败: 400 Bad Request"),
        ("404 Not Found", "openai API请求失败: 404 Not Found"),
        ("503 Service Unavailable", "openai API请求失败: 503 Service Unavailable"),
    ],
)
async def test_an_upstream_s_refusal_is_told_by_its_status_alone(tmp_path: Path, status: str, detail: str) -> None:
    async def refusing(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"error":{"message":"secret words of http://host"}}', status)

    async with bot(tmp_path, refusing) as here:
        for send in (here.chat, here.stream):
            assert (await send(session_id="S")).said == (500, detail)
        info = await here.info("S")
        assert info["message_count"] == 1


async def test_an_upstream_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with bot(tmp_path, oa={"base_url": "http://127.0.0.1:1/v1"}) as here:
        answer = await here.chat()
        assert answer.said == (503, "服务不可用: upstream cannot be reached")
        assert "Retry-After" in answer.headers


async def test_without_a_database_nothing_is_asked_of_the_upstream(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with bot(tmp_path, database={"url": f"sqlite:///{tmp_path}/file/chats.db"}) as here:
        for path in ("/chat", "/chat/stream"):
            answer = await here.call("POST", path, {"message": "m"})
            assert answer.status == 503
            assert answer.json["detail"].startswith("服务不可用: ")
            assert str(tmp_path) not in answer.json["detail"]
            assert "Retry-After" in answer.headers
        assert (await here.get("/session/S/info")).status == 503
        assert (await here.get("/health", None)).status == 200
        assert here.upstream.requests == []


async def test_what_stores_nothing_makes_no_database(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert (await here.get(path, None)).status == 200
        assert (await here.call("POST", "/chat", b"[")).status == 400
        assert not (tmp_path / "chats.db").exists()


async def test_a_message_that_failed_is_not_stored_twice(tmp_path: Path) -> None:
    good = False

    async def moody(peer: Peer, seen: Seen) -> None:
        if good:
            await telling("fine")(peer, seen)
        else:
            await peer.answer(b"{}", "400 Bad Request")

    async with bot(tmp_path, moody) as here:
        assert (await here.chat("same", session_id="S")).status == 500
        good = True
        assert (await here.chat("same", session_id="S")).status == 200
        assert (await here.info("S"))["message_count"] == 2
        assert here.said() == [("user", "same")]


async def test_turns_of_one_session_come_one_after_the_other(tmp_path: Path) -> None:
    gate, running = asyncio.Event(), 0

    async def slow(peer: Peer, seen: Seen) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await gate.wait()
        running -= 1
        await telling("answer to " + json.loads(seen.body)["messages"][-1]["content"])(peer, seen)

    async with bot(tmp_path, slow) as here:
        first = asyncio.create_task(here.chat("one", session_id="S"))
        await here.upstream.arrival()
        second = asyncio.create_task(here.chat("two", session_id=" s "))
        gate.set()
        told = [(await each).json for each in (first, second)]
        assert [each["response"] for each in told] == ["answer to one", "answer to two"]
        assert [each["session_id"] for each in told] == ["S", " s "]
        assert told[0]["conversation_id"] == told[1]["conversation_id"]
        assert here.said() == [("user", "one"), ("assistant", "answer to one"), ("user", "two")]


async def test_other_sessions_do_not_wait(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(peer: Peer, seen: Seen) -> None:
        if b"wait" in seen.body:
            await gate.wait()
        await telling("done")(peer, seen)

    async with bot(tmp_path, slow) as here:
        first = asyncio.create_task(here.chat("wait", session_id="A"))
        await here.upstream.arrival()
        assert (await here.chat("now", session_id="B")).status == 200
        gate.set()
        assert (await first).status == 200


async def test_who_waits_too_long_for_a_turn_is_told_to_come_back(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(peer: Peer, seen: Seen) -> None:
        await gate.wait()
        await telling("done")(peer, seen)

    async with bot(tmp_path, slow, chat={"turn_wait": "50ms"}) as here:
        first = asyncio.create_task(here.chat("one", session_id="S"))
        await here.upstream.arrival()
        for send in (here.chat, here.stream):
            answer = await send("two", session_id="S")
            assert answer.said == (503, "会话正忙，请稍后重试")
            assert "Retry-After" in answer.headers
        gate.set()
        assert (await first).status == 200


async def test_what_was_told_is_there_after_a_restart(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        conversation = (await here.chat("one", session_id="S")).json["conversation_id"]
    async with bot(tmp_path) as here:
        info = await here.info("S")
        assert (info["message_count"], info["conversation_id"]) == (2, conversation)
        assert (await here.chat("two", session_id="S")).json["conversation_id"] == conversation
        assert here.said() == [("user", "one"), ("assistant", "You said: one"), ("user", "two")]


async def test_a_draining_process_takes_no_new_message(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        here.proxy.server.runtime.drain.begin()
        assert (await here.chat()).said == (503, "服务不可用: draining")
        assert (await here.get("/sessions")).status == 200


async def test_a_page_of_another_origin_may_not_use_a_local_instance_without_a_token(tmp_path: Path) -> None:
    async with bot(tmp_path, auth={"tokens": []}) as here:
        answer = await here.call("POST", "/chat", {"message": "m"}, None, Origin="https://any.example")
        assert answer.status == 403
        assert set(answer.json) == {"detail"}
        assert (await here.call("POST", "/chat", {"message": "m"}, None)).status == 200
        assert len(here.upstream.requests) == 1


async def pages_may_call(here: Bot, origin: str) -> dict[str, str | None]:
    answer = await here.call("POST", "/chat", {"message": "m"}, Origin=origin)
    return {
        name: answer.headers.get(f"Access-Control-{name}")
        for name in ("Allow-Origin", "Expose-Headers", "Allow-Credentials")
    }


async def test_pages_of_every_origin_may_call_where_that_is_configured(tmp_path: Path) -> None:
    async with bot(tmp_path, chat={"allowed_origins": ["*"]}) as here:
        exposed = "x-session-id, x-conversation-id, x-request-id, retry-after"
        assert await pages_may_call(here, "https://any.example") == {
            "Allow-Origin": "*",
            "Expose-Headers": exposed,
            "Allow-Credentials": None,
        }
        ask = {"Origin": "https://any.example", "Access-Control-Request-Method": "POST"}
        assert (await here.call("OPTIONS", "/chat", token=None, **ask)).status == 204
        assert (await here.call("POST", "/chat", b"[", Origin="https://any.example")).headers[
            "Access-Control-Allow-Origin"
        ] == "*"


async def test_by_default_no_page_may_call(tmp_path: Path) -> None:
    async with bot(tmp_path) as here:
        assert set((await pages_may_call(here, "https://any.example")).values()) == {None}
