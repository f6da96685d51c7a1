"""What the achuan kind sends, and what it makes of every answer: one row for each line of the table of verdicts."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest

from balancer.errors import AnswerCut, ConnectFailed, FirstByteTimeout
from balancer.model import ANONYMOUS, OK, Call, Disable, Headers, Judgement, Key, Rest, Scope, Verdict
from balancer.upstreams import achuan
from balancer.upstreams.achuan import AchuanKind, backend_error, origin, with_account
from balancer.upstreams.conversing import Finding, Trouble
from balancer.wire.achuan import Created
from balancer.wire.chat_messages import File, Message
from balancer.wire.jwt_claims import LONGEST, Claims, read


def jwt(**claims: Any) -> str:
    encoded = [json.dumps(each).encode() for each in ({"alg": "HS256", "typ": "JWT"}, claims)]
    return ".".join(base64.urlsafe_b64encode(each).decode().rstrip("=") for each in [*encoded, b"signature"])


KEY = Key(jwt(userId=22447, exp=1_790_086_400))
KIND = AchuanKind("achuan", "https://ai.achuanai.cn", {"x-app-version": "2.1", "Authorization": "Bearer x"})

DEAD = Judgement(Verdict.KEY, "401 expired or revoked", Disable())
FORBIDDEN = Judgement(Verdict.KEY, "403", Rest(Scope.KEY, first=300.0, cap=3600.0))
UNPAID = Judgement(Verdict.KEY, "402", Rest(Scope.KEY, first=3600.0, cap=86400.0))
STALE = Judgement(Verdict.OK, "no such session")


def limited(seconds: float) -> Judgement:
    return Judgement(Verdict.KEY, "429", Rest(Scope.KEY, seconds=seconds))


def refused(**members: Any) -> bytes:
    return json.dumps(members, ensure_ascii=False).encode()


# requests


@pytest.mark.parametrize(
    "given",
    [
        "https://h:8443",
        "https://h:8443/",
        "https://h:8443/api",
        "https://h:8443/api/",
        "https://h:8443/api/chat",
        "https://h:8443/api/chat/",
        "https://h:8443/api/chat/completions",
        "https://h:8443/api/chat/completions/",
    ],
)
def test_a_base_url_is_cut_to_the_origin_however_it_was_pasted(given: str) -> None:
    assert origin(given) == "https://h:8443"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("https://h/proxy", "https://h/proxy"),
        ("https://h/proxy/api/chat", "https://h/proxy"),
        ("https://h/apis", "https://h/apis"),
        ("https://h/api/api", "https://h/api"),
        ("https://api/", "https://api"),
    ],
)
def test_only_the_end_of_a_base_url_is_cut(given: str, left: str) -> None:
    assert origin(given) == left


def test_a_session_is_asked_for_with_the_bare_token() -> None:
    question = KIND.create("gpt-5.1-high", KEY, {"plugins": ["p"]})
    assert (question.outbound.method, question.outbound.url) == ("POST", "https://ai.achuanai.cn/api/chat/session")
    assert dict(question.outbound.headers) == {
        "x-app-version": "2.1",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "authorization": KEY.secret,
    }
    assert json.loads(question.content) == {"model": "gpt-5.1-high", "plugins": ["p"], "mcp": []}


def test_a_turn_asks_for_events_and_names_its_session() -> None:
    question = KIND.complete("296270", Message("hi", (File("n", "data:,x"),)), KEY)
    assert question.outbound.url == "https://ai.achuanai.cn/api/chat/completions"
    fields = [(name.lower(), value) for name, value in question.outbound.headers]
    assert len(dict(fields)) == len(fields)
    assert dict(fields) == {
        "x-app-version": "2.1",
        "content-type": "application/json",
        "accept": "text/event-stream",
        "accept-encoding": "identity",
        "authorization": KEY.secret,
    }
    assert json.loads(question.content) == {
        "text": "hi",
        "sessionId": 296270,
        "files": [{"name": "n", "data": "data:,x"}],
    }


def test_a_probe_speaks_to_a_session_that_nobody_has() -> None:
    question = KIND.probe(KEY)
    assert question.outbound.url.endswith("/api/chat/completions")
    assert json.loads(question.content)["sessionId"] == achuan.NO_SESSION


def test_neither_token_nor_text_is_shown_in_a_repr() -> None:
    question = KIND.complete("1", Message("something private"), KEY)
    assert "something private" not in repr(question)
    assert KEY.secret not in question.outbound.url


# verdicts

Row = tuple[int, Headers, bytes, Judgement, Trouble | None, int, str]
NO_HEADERS: Headers = ()
GONE = "对话不存在"
TABLE: dict[str, Row] = {
    # a session that does not exist, whatever code and status
    "stale": (200, (), refused(err=GONE), STALE, Trouble.STALE, 200, GONE),
    "stale with code": (200, (), refused(err=GONE, code=401), STALE, Trouble.STALE, 401, GONE),
    "stale as an event": (200, (), b": x\ndata: " + refused(err=GONE), STALE, Trouble.STALE, 200, GONE),
    "stale in English": (
        200, (), refused(code=404, err="Session not found"), STALE, Trouble.STALE, 404, "Session not found"
    ),
    "stale in 404": (404, (), refused(err=GONE), STALE, Trouble.STALE, 404, GONE),
    "stale in 500": (500, (), refused(err="X " + GONE), STALE, Trouble.STALE, 500, "X " + GONE),
    "stale in 401": (401, (), refused(err=GONE), STALE, Trouble.STALE, 401, GONE),
    # 401
    "401": (401, (), b"Unauthorized", DEAD, None, 401, "Unauthorized"),
    "401 without words": (401, (), b"", DEAD, None, 401, ""),
    "code 401": (200, (), refused(code=401, err="登录已过期"), DEAD, None, 401, "登录已过期"),
    "code 401 as text": (200, (), refused(code="401", msg="login"), DEAD, None, 401, "login"),
    # 403
    "403": (403, (), b"<html>denied</html>", FORBIDDEN, None, 403, "<html>denied</html>"),
    "code 403": (200, (), refused(code=403, err="origin"), FORBIDDEN, None, 403, "origin"),
    # 429
    "429": (429, (), b"", limited(60), None, 429, ""),
    "429 with seconds": (429, (("Retry-After", "7"),), b"slow down", limited(7), None, 429, "slow down"),
    "429 with a date": (
        429,
        (("Date", "Sun, 06 Nov 1994 08:49:37 GMT"), ("Retry-After", "Sun, 06 Nov 1994 08:50:07 GMT")),
        b"",
        limited(30),
        None,
        429,
        "",
    ),
    "429 at once": (429, (("Retry-After", "0"),), b"", limited(60), None, 429, ""),
    "429 for ever": (429, (("Retry-After", "9" * 15),), b"", limited(86400), None, 429, ""),
    "429 with nonsense": (429, (("Retry-After", "soon"),), b"", limited(60), None, 429, ""),
    "code 429": (200, (("retry-after", "5"),), refused(code=429, err="busy"), limited(5), None, 429, "busy"),
    # 402
    "402": (402, (), refused(code=402, msg="余额不足"), UNPAID, None, 402, "余额不足"),
    "code 402": (200, (), refused(code=402, err="余额不足"), UNPAID, None, 402, "余额不足"),
    # the caller's
    **{
        str(status): (status, (), b"no", Judgement(Verdict.CALLER, str(status)), None, status, "no")
        for status in (400, 404, 405, 409, 413, 415, 422)
    },
    # the upstream's
    **{
        str(status): (status, (), b"no", Judgement(Verdict.UPSTREAM, str(status)), None, status, "no")
        for status in (301, 302, 304, 307, 308, 408, 425, 500, 502, 503, 504, 599)
    },
    "another refusal": (200, (), refused(err="no"), Judgement(Verdict.UPSTREAM, "refusal"), None, 200, "no"),
    "code 500": (200, (), refused(code=500, err="no"), Judgement(Verdict.UPSTREAM, "refusal 500"), None, 500, "no"),
    "code 400": (200, (), refused(code=400), Judgement(Verdict.UPSTREAM, "refusal 400"), None, 400, ""),
    "code of its own": (200, (), refused(code=-3), Judgement(Verdict.UPSTREAM, "refusal -3"), None, -3, ""),
    "the marker alone": (200, (), b"data: [DONE]", Judgement(Verdict.UPSTREAM, "empty answer"), None, 200, ""),
    "a page": (200, (), b"<html>", Judgement(Verdict.UPSTREAM, "unreadable answer"), None, 200, ""),
    "half an answer": (
        200, (), b'data: {"type":"string","data":"po"}\n', Judgement(Verdict.UPSTREAM, "unreadable answer"), None, 200, ""
    ),
    "empty": (200, (), b"\n", Judgement(Verdict.UPSTREAM, "empty answer"), None, 200, ""),
    # a status speaks louder than the code in its body
    "403 with code 401": (403, (), refused(code=401, err="x"), FORBIDDEN, None, 403, "x"),
    # fine
    "200": (200, (), b'data: {"type":"string","data":"pong"}\n\ndata: [DONE]', OK, None, 200, ""),
    "text is never a refusal": (
        200, (), b'data: {"type":"string","data":"{\\"err\\":\\"' + GONE.encode() + b'\\"}"}\ndata: [DONE]', OK, None, 200, ""
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "headers", "body", "judgement", "trouble", "number", "text"), TABLE.values(), ids=TABLE
)
def test_every_answer_has_its_verdict(
    status: int, headers: Headers, body: bytes, judgement: Judgement, trouble: Trouble | None, number: int, text: str
) -> None:
    found = KIND.find(status, headers, body)
    assert dataclasses.replace(found, refused=False) == Finding(judgement, trouble, number, text)
    assert found.refused == (trouble is not None or (status == 200 and body.startswith(b'{"')))


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[0] != 200])
def test_a_creation_fails_as_any_call_does(name: str) -> None:
    status, headers, body, judgement, *_ = TABLE[name]
    assert KIND.created(status, headers, body) == KIND.find(status, headers, body)
    assert KIND.find(status, headers, body).judgement == judgement


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (refused(code=0, data={"id": 296270}), Created(296270)),
        (refused(code=403, msg="origin"), Finding(FORBIDDEN, None, 403, "origin", True)),
        (refused(code=9, msg="x"), Finding(Judgement(Verdict.UPSTREAM, "refusal 9"), None, 9, "x", True)),
        (refused(data={}), Finding(Judgement(Verdict.UPSTREAM, "unreadable answer"), None, 201)),
        (b"<html>", Finding(Judgement(Verdict.UPSTREAM, "unreadable answer"), None, 201)),
        (b"", Finding(Judgement(Verdict.UPSTREAM, "empty answer"), None, 201)),
    ],
)
def test_a_creation_is_judged_by_its_body_where_the_status_is_fine(body: bytes, expected: object) -> None:
    assert KIND.created(201, NO_HEADERS, body) == expected


def test_a_reason_never_repeats_the_backend_s_words() -> None:
    for status, headers, body, *_ in TABLE.values():
        reason = KIND.find(status, headers, body).judgement.reason
        assert reason.isascii()
        assert len(reason) < 40
    assert "对话" not in repr(KIND.find(200, (), refused(err="对话 secret")))


# what the caller is told


def test_the_caller_s_fault_keeps_its_status_and_the_upstream_s_becomes_502() -> None:
    fault = backend_error(KIND.find(422, (), b"no"), "x" * 600)
    assert (fault.status, fault.code, fault.message) == (422, "backend_error", f"后端错误(422): {'x' * 500}")
    for status, body in ((503, b"no"), (200, refused(code=9))):
        assert backend_error(KIND.find(status, (), body), "no").status == 502


def test_a_stale_session_is_named_in_its_error() -> None:
    error = KIND.missing("296270")
    assert (error.status, error.code, error.message) == (404, "session_not_found", "对话不存在: 296270")


def test_an_empty_answer_and_none_at_all_are_told_in_words_of_their_own() -> None:
    rows = (
        (KIND.find(200, (), b""), 502, "backend_empty_body", "后端返回空内容"),
        (ConnectFailed("refused"), 502, "backend_connection_error", "后端连接失败: refused"),
        (AnswerCut("cut"), 502, "backend_connection_error", "后端连接失败: cut"),
        (FirstByteTimeout("no answer"), 504, "upstream_timeout", "The upstream achuan gave no answer."),
        (KIND.find(500, (), b"x"), 502, "backend_error", "后端错误(500): x"),
    )
    for cause, status, code, message in rows:
        told = KIND.told(cause, cause.text if isinstance(cause, Finding) else str(cause))
        assert (told.status, told.code, told.message) == (status, code, message)


# raw calls


def test_a_raw_call_carries_the_bare_token_and_no_credential_of_the_client() -> None:
    fields = [("Authorization", "Bearer mine"), ("X-App-Version", "9"), ("x-other", "1")]
    call = Call("raw", "achuan", "GET", "/api/user?x=1", headers=fields, client=ANONYMOUS)
    outbound = KIND.prepare(call, KEY)
    assert (outbound.method, outbound.url) == ("GET", "https://ai.achuanai.cn/api/user?x=1")
    assert outbound.headers == [("x-other", "1"), ("x-app-version", "2.1"), ("authorization", KEY.secret)]
    assert KIND.judge(call, 204, (), b"") == OK
    assert KIND.judge(call, 401, (), b"{}") == DEAD
    assert KIND.judge(call, 404, (), b"{}").verdict is Verdict.CALLER


# claims


def test_claims_are_read_without_verification() -> None:
    assert read(KEY.secret) == Claims(1_790_086_400.0, "22447")
    assert read(jwt(userId=" u-1 ", exp=1.5)) == Claims(1.5, "u-1")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "sk-plain",
        "a.b",
        "a.b.c.d",
        "a.!!!.c",
        "a." + base64.urlsafe_b64encode(b'{"exp":1}').decode().replace("e", "!e", 1) + ".c",
        "a.é.c",
        "a." + base64.urlsafe_b64encode(b"[1]").decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"{").decode() + ".c",
        "a." + base64.urlsafe_b64encode(b"\xff").decode() + ".c",
        jwt(userId="x" * LONGEST),
        jwt(),
        jwt(userId=None, exp=None),
        jwt(userId=True, exp=True),
        jwt(userId=1.5, exp="1790086400"),
        jwt(userId="", exp=[]),
        jwt(userId="a\nb"),
        jwt(userId="x" * 129),
        jwt(userId={"id": 1}, exp={}),
    ],
)
def test_what_is_no_token_or_does_not_tell_has_no_claims(token: str) -> None:
    assert read(token) == Claims()


def test_keys_of_one_user_own_what_they_make_together() -> None:
    renewed = Key(jwt(userId=22447, exp=1_799_999_999), name="renewed")
    assert with_account(KEY).stable_owner == with_account(renewed).stable_owner == "22447"
    assert with_account(renewed).name == "renewed"


def test_without_a_user_or_with_a_project_the_configuration_s_owner_stays() -> None:
    for key in (Key("opaque"), Key("opaque", name="n"), Key(KEY.secret, project="p")):
        assert with_account(key) == key


def test_a_token_tells_how_long_it_lives() -> None:
    assert KIND.seconds_left(KEY, 1_790_000_000.0) == 86_400.0
    assert KIND.seconds_left(KEY, 1_790_086_401.0) == -1.0
    assert KIND.seconds_left(Key("opaque"), 0.0) is None
