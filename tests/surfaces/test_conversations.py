"""Sessions and messages over HTTP: what is stored comes back, errors have their shape, and clients see their own rows alone."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from balancer.conversations.base import DatabaseRefused, NewTurn, SessionName
from tests.contract.databases import raw
from tests.fakes import FakeClock
from tests.surfaces.conversations_calls import Api, Chats, chats, error_of, refused, user
from tests.surfaces.openai_calls import ANN

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")


async def test_a_new_session_has_five_members_and_one_time(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        answer = await at.ann.call("POST", "/sessions", {"title": " My chat "})
        assert answer.status == 200
        session = answer.json
        assert set(session) == {"id", "title", "created_at", "updated_at", "is_active"}
        assert UUID(session["id"]).version == 4
        assert session["title"] == " My chat "
        assert session["created_at"] == session["updated_at"]
        assert TIME.fullmatch(session["created_at"])
        assert session["is_active"] is True
        assert await at.ann.get(f"/sessions/{session['id']}") == session


async def test_a_deleted_session_is_gone_on_every_route(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        await at.ann.add(session, "user", "hello")
        answer = await at.ann.call("DELETE", f"/sessions/{session}")
        assert (answer.status, answer.json) == (200, {"message": "会话删除成功"})
        await assert_unknown(at.ann, session)
        store = await at.store()
        rows = await store._database.read(lambda at: at.exec_driver_sql("SELECT count(*) FROM chat_messages").scalar())
        assert rows == 0


async def assert_unknown(api: Api, session: str) -> None:
    """On every route the session is as if it had never been."""
    for method, path, body in (
        ("GET", "", None),
        ("PUT", "", {"title": "new"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"role": "user", "content": "hello"}),
        ("GET", "/history", None),
    ):
        answer = await api.call(method, f"/sessions/{session}{path}", body)
        assert answer.status == 404, (method, path)
        told = {"type": "not_found_error", "message": "请求的资源不存在", "param": None, "code": "not_found"}
        assert answer.json == {"error": told, "detail": "会话不存在"}
    answer = await api.chat(session, "hello")
    assert (answer.status, answer.json["detail"]) == (404, "会话不存在")


async def test_another_clients_session_is_unknown_and_in_no_list(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        await assert_unknown(at.bob, session)
        assert await at.bob.get("/sessions?active_only=no") == []
        assert [each["id"] for each in await at.ann.get("/sessions")] == [session]
        assert not at.oa.requests


@pytest.mark.parametrize(
    "metadata", [None, {}, {"a": {"b": [1, 2.5, "x", None, True], "big": 12345678901234567890123}}]
)
@pytest.mark.parametrize(
    "content", ["text", "", [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:x"}}]]
)
async def test_contents_and_metadata_come_back_as_they_were(tmp_path: Path, metadata: Any, content: Any) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        made = await at.ann.add(session, "note", content, tokens=7, metadata_info=metadata)
        assert set(made) == {"id", "session_id", "role", "content", "created_at", "tokens", "metadata_info"}
        assert (made["session_id"], made["role"], made["tokens"]) == (session, "note", 7)
        assert (made["content"], made["metadata_info"]) == (content, metadata)
        assert TIME.fullmatch(made["created_at"])
        assert await at.ann.messages(session) == [made]
        assert await at.ann.get(f"/sessions/{session}/history") == [{"role": "note", "content": content}]


async def test_history_is_the_newest_turns_oldest_first(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        await fill(at, session, 250)
        told = await at.ann.get(f"/sessions/{session}/history")
        assert [each["content"] for each in told] == [f"turn {n}" for n in range(150, 250)]
        assert len(await at.ann.get(f"/sessions/{session}/history?limit=1000")) == 250
        assert [each["content"] for each in await at.ann.messages(session, "?skip=248")] == ["turn 248", "turn 249"]
        assert await at.ann.messages(session, "?skip=99999999999999999") == []


async def fill(at: Chats, session: str, turns: int) -> None:
    """Turns of user and assistant by turns."""
    store = await at.store()
    found = await store.get(SessionName("ann", "conversations", session))
    assert found is not None
    roles = ("user", "assistant")
    assert await store.append(found, [NewTurn(roles[n % 2], f"turn {n}") for n in range(turns)])


async def test_lists_have_the_last_activity_first(tmp_path: Path) -> None:
    clock = FakeClock()
    async with chats(tmp_path, clock=clock) as at:
        made = []
        for n in range(4):
            made.append(await at.ann.make(f"title {n}"))
            clock.advance(10)
        before = await at.ann.get(f"/sessions/{made[0]}")
        await at.ann.add(made[0], "user", "hello")
        clock.advance(10)
        changed = await at.ann.call("PUT", f"/sessions/{made[1]}", {"is_active": False})
        assert changed.json["is_active"] is False
        assert changed.json["updated_at"] > before["updated_at"]
        assert [each["id"] for each in await at.ann.get("/sessions")] == [made[0], made[3], made[2]]
        for off in ("false", "0", "No", "OFF"):
            shown = await at.ann.get(f"/sessions?active_only={off}")
            assert [each["id"] for each in shown] == [made[1], made[0], made[3], made[2]]
        assert [each["id"] for each in await at.ann.get("/sessions?active_only=0&skip=1&limit=2")] == [made[0], made[3]]
        assert await at.ann.get("/sessions?skip=99") == []


async def test_an_inactive_session_can_be_read_and_chatted_with(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        await at.ann.call("PUT", f"/sessions/{session}", {"is_active": False, "title": "new"})
        assert (await at.ann.chat(session, "hello")).status == 200
        assert (await at.ann.get(f"/sessions/{session}"))["title"] == "new"
        assert len(await at.ann.messages(session)) == 2


async def test_ids_are_compared_without_case_and_blanks(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        assert (await at.ann.get(f"/sessions/%20{session.upper()}%20"))["id"] == session


Wrong = dict[str, Any]
TITLES: list[Any] = [
    b"",
    b"{",
    [],
    {},
    {"title": ""},
    {"title": "  "},
    {"title": "x" * 501},
    {"title": 5},
    {"title": None},
]
SESSIONS: list[tuple[str, str, Any, str | None]] = [("POST", "/sessions", body, "title") for body in TITLES]
QUERIES: list[tuple[str, str, Any, str | None]] = [
    ("GET", f"{path}?{name}={value}", None, name)
    for path in ("/sessions", "/sessions/ID/messages")
    for name, value in (
        ("skip", "-1"),
        ("skip", "x"),
        ("skip", ""),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "1.5"),
    )
]
WRONG_CHANGES: list[tuple[Wrong, str]] = [
    ({}, "title"),
    ({"title": None}, "title"),
    ({"title": " "}, "title"),
    ({"is_active": "yes"}, "is_active"),
]
CHANGES: list[tuple[str, str, Any, str | None]] = [
    ("PUT", "/sessions/ID", body, param) for body, param in WRONG_CHANGES
]
WRONG_MESSAGES: list[Wrong] = [
    {"content": 5},
    {"content": []},
    {"content": None},
    {"tokens": -1},
    {"tokens": 1.5},
    {"tokens": 2**63},
    {"tokens": True},
    {"metadata_info": []},
    {"metadata_info": "x"},
    {"metadata_info": {"x": "y" * 65536}},
    {"role": "r" * 40},
    {"role": ""},
    {"role": 5},
]
MESSAGES: list[tuple[str, str, Any, str | None]] = [
    ("POST", "/sessions/ID/messages", {"role": "user", "content": "hi", **wrong}, next(iter(wrong)))
    for wrong in WRONG_MESSAGES
] + [
    ("POST", "/sessions/ID/messages", {"role": "user"}, "content"),
    ("POST", "/sessions/ID/messages", b"{", "role"),
    ("POST", "/sessions/ID/messages", b'{"role":"user","content":"a\\u0000b"}', "content"),
    ("POST", "/sessions/ID/messages", b'{"role":"user","content":"a\\ud83d"}', "content"),
    ("POST", "/sessions", b'{"title":"\\ud83d"}', "title"),
    ("POST", "/sessions", b'{"title":"a\\u0000"}', "title"),
]
WRONG_CHATS: list[Wrong] = [
    {"messages": {}},
    {"messages": []},
    {"messages": None},
    {"messages": [{"role": "system", "content": "x"}]},
    {"messages": [{"role": 5, "content": "x"}]},
    {"messages": [{"content": "x"}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": ["hi"]},
    {"temperature": 3},
    {"temperature": -0.1},
    {"temperature": "1"},
    {"top_p": 2},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"stream": "yes"},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"stop": 5},
    {"user": 5},
    {"model": 5},
]
CHATS: list[tuple[str, str, Any, str | None]] = [
    ("POST", "/chat/completions", {"model": "oa/gpt-5.1", "messages": [user("hi")], **wrong}, next(iter(wrong)))
    for wrong in WRONG_CHATS
] + [
    ("POST", "/chat/completions", {"model": "oa/gpt-5.1"}, "messages"),
    ("POST", "/chat/completions", b"", "messages"),
    ("POST", "/chat/completions", b'{"messages":[{"role":"user","content":"\\u0000"}]}', "messages"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        *SESSIONS,
        *QUERIES,
        *CHANGES,
        *MESSAGES,
        *CHATS,
        ("GET", "/sessions?active_only=maybe", None, "active_only"),
        ("GET", "/sessions/ID/history?limit=0", None, "limit"),
        ("GET", "/sessions/ID/history?limit=1001", None, "limit"),
    ],
)
async def test_bad_input_is_refused_by_the_name_of_the_member(
    tmp_path: Path, method: str, path: str, body: Any, param: str
) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        answer = await at.ann.call(method, path.replace("ID", session), body)
        assert refused(answer) == (400, "invalid_request", param)
        assert error_of(answer)["type"] == "invalid_request_error"
        assert param in error_of(answer)["message"] or "NUL" in error_of(answer)["message"]
        assert await at.ann.messages(session) == []
        assert not at.oa.requests


@pytest.mark.parametrize("named", ["nope", "not-a-uuid%0a", "%00", "x" * 300, "%ff", "a%2fb"])
async def test_what_is_no_id_of_a_session_is_unknown(tmp_path: Path, named: str) -> None:
    async with chats(tmp_path) as at:
        answer = await at.ann.call("GET", f"/sessions/{named}")
        assert refused(answer) == (404, "not_found", None)


async def test_unknown_routes_and_methods_have_this_surfaces_shape(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        for path in ("/nope", "/sessions/a/b", "/sessions/a/messages/b", "/chat", "/v1/models"):
            answer = await at.ann.call("GET", path)
            assert refused(answer) == (404, "not_found", None)
            assert answer.json["detail"] == "Not Found"
        for method, path, allow in (
            ("DELETE", "/sessions", "GET, POST, OPTIONS"),
            ("PATCH", "/sessions/a", "GET, PUT, DELETE, OPTIONS"),
            ("GET", "/chat/completions", "POST, OPTIONS"),
            ("POST", "/ws/chat", "GET, OPTIONS"),
        ):
            answer = await at.ann.call(method, path)
            assert (answer.status, answer.headers["Allow"]) == (405, allow)
            assert error_of(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_refused(tmp_path: Path, declared: bool) -> None:
    async def pieces() -> Any:
        for _ in range(3):
            yield b"x" * 40_000

    async with chats(tmp_path, conversations={"max_body": "100KiB"}) as at:
        headers = {"Authorization": f"Bearer {ANN}"}
        data = b"x" * 120_000 if declared else pieces()
        async with at.proxy.client.post(f"{at.proxy.url}/api/sessions", data=data, headers=headers) as answer:
            assert answer.status == 413
            assert json.loads(await answer.read())["error"]["code"] == "request_too_large"


async def test_callers_without_a_valid_token_are_told_so(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        for token, code in ((None, "missing_api_key"), ("wrong", "invalid_api_key")):
            at.bob.caller.token = token
            answer = await at.bob.call("GET", "/sessions")
            assert refused(answer) == (401, code, None)
            assert answer.json["detail"] == error_of(answer)["message"]
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        at.bob.caller.token = None
        health = await at.bob.call("GET", "/health")
        assert (health.status, health.json) == (200, {"status": "healthy"})


async def test_the_default_model_comes_first(tmp_path: Path) -> None:
    more = {"oa2": {"kind": "openai", "base_url": "http://127.0.0.1:9", "keys": ["k"], "models": ["z", "a"]}}
    async with chats(tmp_path, conversations={"model": "oa2/z"}, more=more) as at:
        shown = await at.ann.get("/models")
        assert shown["object"] == "list"
        ids = [each["id"] for each in shown["data"]]
        assert ids[0] == "oa2/z"
        assert len(ids) == len(set(ids)) > 3
        assert {"id", "object", "created", "owned_by"} <= set(shown["data"][0])


async def test_pages_of_listed_origins_may_call(tmp_path: Path) -> None:
    async with chats(tmp_path, conversations={"allowed_origins": ["http://localhost:3000"]}) as at:
        preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "DELETE"}
        async with at.proxy.client.options(f"{at.proxy.url}/api/sessions/x", headers=preflight) as answer:
            assert answer.status == 204
            assert "DELETE" in answer.headers["Access-Control-Allow-Methods"]
        listed = await at.ann.call("GET", "/sessions/nope", Origin="http://localhost:3000")
        assert listed.status == 404
        assert listed.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        foreign = await at.ann.call("GET", "/sessions", Origin="http://evil.example")
        assert "Access-Control-Allow-Origin" not in foreign.headers


async def test_requests_that_store_nothing_touch_no_database(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        assert (await at.ann.chat(None, "hello")).status == 200
        await at.ann.get("/models")
        await at.ann.get("/health")
        assert not (tmp_path / "chats.db").exists()


async def test_a_database_that_cannot_be_used_is_told_with_the_time_to_come_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with chats(tmp_path, url=f"sqlite:///{tmp_path}/file/chats.db") as at:
        answer = await at.ann.call("POST", "/sessions", {"title": "x"})
        assert refused(answer) == (503, "storage_unavailable", None)
        assert int(answer.headers["Retry-After"]) > 0
        assert str(tmp_path) not in answer.body.decode()


async def test_messages_that_come_at_once_have_one_order(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        session = await at.ann.make()
        made = await asyncio.gather(*(at.ann.add(session, "user", f"{n}") for n in range(20)))
        stored = await at.ann.messages(session)
        assert {each["id"] for each in stored} == {each["id"] for each in made}
        assert len(stored) == 20


async def test_a_database_newer_than_the_program_stops_the_start(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        await at.ann.make()
    with raw(f"sqlite:///{tmp_path}/chats.db") as database:
        database.exec_driver_sql("INSERT INTO chat_schema (version) VALUES (99)")
    with pytest.raises(DatabaseRefused, match="newer version"):
        async with chats(tmp_path):
            pass


async def test_a_database_that_is_away_does_not_stop_the_start(tmp_path: Path) -> None:
    async with chats(tmp_path, url="postgresql://nobody@127.0.0.1:9/none") as at:
        assert refused(await at.ann.call("GET", "/sessions"))[:2] == (503, "storage_unavailable")
        assert (await at.ann.chat(None, "hello")).status == 200


async def test_the_documentation_is_open_to_anybody(tmp_path: Path) -> None:
    async with chats(tmp_path) as at:
        at.ann.caller.token = None
        described = await at.ann.call("GET", "/openapi.json")
        assert "/api/sessions/{id}/messages" in described.json["paths"]
        for path in ("/docs", "/redoc"):
            page = await at.ann.call("GET", path)
            assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert (await at.ann.call("POST", "/docs")).status == 405
