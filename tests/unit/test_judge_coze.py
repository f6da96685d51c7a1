"""What the coze kind sends, and what it makes of every answer: one row for each line of the table of verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.errors import AnswerCut, AnswerStalled, ConnectFailed, FirstByteTimeout, UpstreamError
from balancer.model import ANONYMOUS, OK, Call, Disable, Headers, Judgement, Key, Rest, Scope, Verdict
from balancer.upstreams import coze
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.upstreams.conversing import Finding, Keeping, Trouble
from balancer.upstreams.coze import (
    CozeFinding,
    CozeKind,
    busy_error,
    busy_pause,
    chat_error,
    cut,
    openai_error,
    origin,
    request_failed,
    status_line,
    until_midnight,
)
from balancer.wire.coze import CANCELED, REQUIRES_ACTION, Began, Failure, Good
from balancer.wire.coze_messages import Upload
from tests.fakes import FakeClock

WALL = 1_790_000_000.0
"""2026-09-21 22:13:20 in UTC+8: 6400 s before midnight."""
KEY = Key("pat_secret")
BOTS = {"coze": "7379", "poet": "7380"}
EXTRA = {"x-tenant": "t", "Authorization": "Bearer x", "Accept": "text/html"}
KIND = CozeKind("coze", "https://api.coze.cn/v3", EXTRA, BOTS, "default_user", FakeClock(WALL))
BEGAN = Began("7001", "7002")
NO_HEADERS: Headers = ()

DEAD = Disable()
HOURS = Rest(Scope.KEY, first=3600.0, cap=86400.0)


def resting(seconds: float) -> Rest:
    return Rest(Scope.KEY, seconds=seconds)


def no(code: Any, msg: str = "", **more: Any) -> bytes:
    return json.dumps({"code": code, "msg": msg} | more).encode()


# requests


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("https://api.coze.cn/v3", "https://api.coze.cn"),
        ("https://api.coze.cn/v3/", "https://api.coze.cn"),
        ("https://api.coze.cn/v1", "https://api.coze.cn"),
        ("https://api.coze.cn/v1//", "https://api.coze.cn"),
        ("https://api.coze.cn/", "https://api.coze.cn"),
        ("https://api.coze.cn", "https://api.coze.cn"),
        ("https://h/proxy/v3", "https://h/proxy"),
        ("https://h/v3/v1", "https://h/v3"),
        ("https://h/v2", "https://h/v2"),
        ("https://h/xv3", "https://h/xv3"),
        ("https://v3/", "https://v3"),
    ],
)
def test_only_the_end_of_a_base_url_is_cut(given: str, left: str) -> None:
    assert origin(given) == left
    assert origin(left) == left or given == "https://h/v3/v1"


def test_a_turn_carries_the_key_and_asks_for_events() -> None:
    question = KIND.chat("poet", [{"role": "user"}], KEY)
    assert (question.outbound.method, question.outbound.url) == ("POST", "https://api.coze.cn/v3/chat")
    assert [(name.lower(), value) for name, value in question.outbound.headers] == [
        ("x-tenant", "t"),
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
        ("accept-encoding", "identity"),
        ("authorization", "Bearer pat_secret"),
    ]
    body = json.loads(question.content)
    assert (body["bot_id"], body["user_id"], body["additional_messages"]) == (
        "7380",
        "default_user",
        [{"role": "user"}],
    )


def test_a_turn_names_its_conversation_and_its_user() -> None:
    question = KIND.chat("coze", [], KEY, "70&x=好 /", "u-1")
    assert question.outbound.url == "https://api.coze.cn/v3/chat?conversation_id=70%26x%3D%E5%A5%BD%20%2F"
    assert json.loads(question.content)["user_id"] == "u-1"
    assert KIND.chat("coze", [], KEY, "\ud83d").outbound.url.endswith("?conversation_id=%3F")


def test_the_other_calls_are_where_coze_has_them() -> None:
    both = "?conversation_id=7002&chat_id=7001"
    expected = {
        "GET https://api.coze.cn/v3/chat/retrieve" + both: KIND.retrieve(BEGAN, KEY),
        "GET https://api.coze.cn/v3/chat/message/list" + both: KIND.messages(BEGAN, KEY),
        "GET https://api.coze.cn/v1/conversation/retrieve?conversation_id=70": KIND.look_up("70", KEY),
        "POST https://api.coze.cn/v3/chat/cancel": KIND.cancel(BEGAN, KEY),
    }
    for target, question in expected.items():
        assert f"{question.outbound.method} {question.outbound.url}" == target
        fields = {name.lower(): value for name, value in question.outbound.headers}
        assert fields["authorization"] == "Bearer pat_secret"
        assert fields["accept"] == "application/json"
        assert ("content-type" in fields) == bool(question.content)
    assert json.loads(KIND.cancel(BEGAN, KEY).content) == {"chat_id": "7001", "conversation_id": "7002"}


def test_an_upload_is_a_form_whose_boundary_is_new_each_time() -> None:
    file = Upload("data:,x", "a.txt", "text/plain", b"x")
    questions = [KIND.upload(file, KEY) for _ in range(2)]
    types = [dict(question.outbound.headers)["content-type"] for question in questions]
    assert types[0] != types[1]
    boundary = types[0].removeprefix("multipart/form-data; boundary=").encode()
    assert questions[0].content.startswith(b"--" + boundary + b"\r\n")
    assert questions[0].outbound.url == "https://api.coze.cn/v1/files/upload"


def test_a_probe_looks_up_what_nobody_has() -> None:
    assert KIND.probe(KEY).outbound.url.endswith(f"/v1/conversation/retrieve?conversation_id={coze.NO_CONVERSATION}")
    assert KIND.find(200, NO_HEADERS, no(4200)).judgement.verdict is Verdict.OK
    assert KIND.find(200, NO_HEADERS, no(4100)).judgement.verdict is Verdict.KEY


def test_neither_key_nor_text_is_shown_in_a_repr() -> None:
    question = KIND.chat("coze", [{"content": "private"}], KEY)
    assert "private" not in repr(question)
    assert KEY.secret not in question.outbound.url
    assert "secret" not in repr(KIND.find(200, NO_HEADERS, no(4000, "secret")))


# verdicts

OF_THE_MESSAGE = (4003, 4004, 4005, 4010, 4014, 4105)
OF_A_SETTING = (4000, 4001, 4006, 4007, 4012, 4015, 4021, 4104, 4201, 4300, 4301, 4302, 4303, 4304, 4999)
Row = tuple[Judgement, Trouble | None, int]
TABLE: dict[int, Row] = {
    **{code: (Judgement(Verdict.CALLER, str(code)), None, 400) for code in (*OF_THE_MESSAGE, *OF_A_SETTING)},
    **{code: (Judgement(Verdict.OK, "no such conversation"), Trouble.STALE, 404) for code in (4002, 4200)},
    4016: (Judgement(Verdict.OK, "conversation busy"), Trouble.BUSY, 409),
    4008: (Judgement(Verdict.KEY, "4008 per day", resting(6400.0)), None, 429),
    4020: (Judgement(Verdict.KEY, "4020", resting(60.0)), None, 429),
    **{code: (Judgement(Verdict.KEY, f"{code} unpaid", HOURS), None, 429) for code in (4011, 4019, 4022)},
    4102: (Judgement(Verdict.KEY, "4102", resting(3600.0)), None, 403),
    4100: (Judgement(Verdict.KEY, "4100 refused", DEAD), None, 401),
    700012006: (Judgement(Verdict.KEY, "700012006 refused", DEAD), None, 401),
    4101: (Judgement(Verdict.KEY, "4101 refused", DEAD), None, 403),
    **{code: (Judgement(Verdict.UPSTREAM, f"{code} overloaded"), None, 429) for code in (4009, 4013)},
    **{
        code: (Judgement(Verdict.UPSTREAM, str(code)), None, 500)
        for code in (4314, 4315, 5000, 5001, 702093018, 3999, 1, -1)
    },
}


@pytest.mark.parametrize("code", sorted(TABLE))
def test_codes_decide_whatever_carries_them(code: int) -> None:
    judgement, trouble, shown = TABLE[code]
    expected = CozeFinding(judgement, trouble, code, "words", True, code, shown, "L")
    headers = [("X-Tt-Logid", "L")]
    assert KIND.find(200, headers, no(code, "words")) == expected
    assert KIND.read(200, headers, no(str(code), "words")) == expected
    assert KIND.failed(Failure(code, "words", "L"), NO_HEADERS, named=True) == expected
    for status in (400, 401, 429, 500, 503):
        found = KIND.find(status, headers, no(code, "words"))
        assert (found.judgement, found.trouble, found.shown) == (judgement, trouble, status)


def test_a_finding_tells_whether_the_message_or_a_setting_was_wrong() -> None:
    assert {code for code in TABLE if KIND.find(200, NO_HEADERS, no(code)).of_message} == set(OF_THE_MESSAGE)
    assert {code for code in TABLE if KIND.find(200, NO_HEADERS, no(code)).overloaded} == {4009, 4013}


@pytest.mark.parametrize("code", [4002, 4200])
def test_nothing_is_stale_where_no_conversation_was_named(code: int) -> None:
    finding = KIND.find(200, NO_HEADERS, no(code), named=False)
    assert (finding.judgement.verdict, finding.trouble, finding.shown) == (Verdict.CALLER, None, 400)
    assert KIND.read(200, NO_HEADERS, no(code), named=False) == finding
    assert KIND.failed(Failure(code), NO_HEADERS, named=False).trouble is None


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (401, (), b"", (Judgement(Verdict.KEY, "401", DEAD), 401)),
        (401, (), b'{"error_code":"invalid_token","error_message":"x"}', (Judgement(Verdict.KEY, "401", DEAD), 401)),
        (429, (), b"<html>", (Judgement(Verdict.KEY, "429", resting(60.0)), 429)),
        (429, (("Retry-After", "7"),), b"{}", (Judgement(Verdict.KEY, "429", resting(7.0)), 429)),
        (429, (("Retry-After", "0"),), b"{}", (Judgement(Verdict.KEY, "429", resting(60.0)), 429)),
        (429, (("Retry-After", "999999"),), b"{}", (Judgement(Verdict.KEY, "429", resting(86400.0)), 429)),
        (200, (("Retry-After", "9"),), no(4020), (Judgement(Verdict.KEY, "4020", resting(9.0)), 429)),
        (400, (), b'{"code":0,"msg":"x","data":null}', (Judgement(Verdict.CALLER, "400"), 400)),
        (403, (), b'{"code":0}', (Judgement(Verdict.CALLER, "403"), 403)),
        (403, (), b"<html>denied</html>", (Judgement(Verdict.UPSTREAM, "403"), 403)),
        (408, (), b'{"code":0}', (Judgement(Verdict.UPSTREAM, "408"), 408)),
        (500, (), b"", (Judgement(Verdict.UPSTREAM, "500"), 500)),
        (503, (), b'{"code":0,"data":{}}', (Judgement(Verdict.UPSTREAM, "503"), 503)),
        (302, (), b"", (Judgement(Verdict.UPSTREAM, "302"), 500)),
        (302, (), b'{"code":0,"data":{}}', (Judgement(Verdict.UPSTREAM, "302"), 500)),
        (200, (), b"", (Judgement(Verdict.UPSTREAM, "unreadable answer"), 500)),
        (200, (), b"<html>", (Judgement(Verdict.UPSTREAM, "unreadable answer"), 500)),
        (200, (), b'{"error_code":"slow_down"}', (Judgement(Verdict.UPSTREAM, "refusal"), 500)),
    ],
)
def test_without_a_code_the_status_decides(
    status: int, headers: Headers, body: bytes, expected: tuple[Judgement, int]
) -> None:
    finding = KIND.find(status, headers, body)
    assert (finding.judgement, finding.shown) == expected
    assert finding.trouble is None
    assert KIND.read(status, headers, body) == finding


def test_how_a_chat_ended_decides_where_it_has_no_code() -> None:
    waits = KIND.failed(Failure(None, reason=REQUIRES_ACTION), NO_HEADERS, named=True)
    assert (waits.judgement, waits.shown) == (Judgement(Verdict.CALLER, "requires_action"), 400)
    ended = KIND.failed(Failure(None, reason=CANCELED), NO_HEADERS, named=True)
    assert (ended.judgement, ended.shown) == (Judgement(Verdict.UPSTREAM, "canceled"), 500)


def test_good_answers_are_good() -> None:
    body = b'{"code":0,"msg":"","data":{"id":"1"}}'
    assert KIND.read(200, NO_HEADERS, body) == Good({"id": "1"})
    assert KIND.find(200, [("x-tt-logid", "L")], body) == CozeFinding(OK, status=200, logid="L")


def test_a_chat_that_cannot_be_canceled_has_ended() -> None:
    assert KIND.canceled(200, NO_HEADERS, no(4104)).judgement == OK
    assert KIND.canceled(200, NO_HEADERS, no(0)).judgement == OK
    assert KIND.canceled(200, NO_HEADERS, no(4100)).judgement.verdict is Verdict.KEY


def test_a_cut_is_the_upstream_s_doing() -> None:
    assert cut(began=False).judgement == Judgement(Verdict.UPSTREAM, "cut before the chat began")
    assert cut(began=True).judgement == Judgement(Verdict.UPSTREAM, "cut")
    assert request_failed(cut(began=True)) == "Coze API请求失败: 500 Internal Server Error"


def test_a_reason_never_repeats_coze_s_words() -> None:
    for code in TABLE:
        reason = KIND.find(200, NO_HEADERS, no(code, "秘密 " + "x" * 100)).judgement.reason
        assert reason.isascii()
        assert len(reason) < 40


def test_any_bytes_are_judged() -> None:
    for body in (b"\xff" * 100, b"[" * 5000, b"{" * 5000, b'{"code":' + b"9" * 500 + b"}", b"x" * ERROR_BODY_LIMIT):
        assert KIND.find(200, NO_HEADERS, body).judgement.verdict is Verdict.UPSTREAM


# time


@pytest.mark.parametrize(
    ("wall", "seconds"),
    [
        (WALL, 6400.0),
        (WALL + 6399.5, 0.5),
        (WALL + 6400.0, 86400.0),
        (0.0, 16 * 3600.0),
    ],
)
def test_coze_s_day_ends_at_midnight_east_of_here(wall: float, seconds: float) -> None:
    assert until_midnight(wall) == pytest.approx(seconds)


def test_a_day_s_rest_is_measured_by_the_clock_that_was_given() -> None:
    clock = FakeClock(WALL)
    kind = CozeKind("coze", "https://h", {}, BOTS, "u", clock)
    clock.advance(6000.0)
    assert kind.find(200, NO_HEADERS, no(4008)).judgement.action == resting(400.0)


def test_a_busy_conversation_is_asked_again_at_growing_intervals() -> None:
    assert [busy_pause(attempt) for attempt in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


# what the caller is told


@pytest.mark.parametrize(
    ("status", "line"),
    [(400, "400 Bad Request"), (401, "401 Unauthorized"), (429, "429 Too Many Requests"), (599, "599")],
)
def test_a_status_has_its_words(status: int, line: str) -> None:
    assert status_line(status) == line


@pytest.mark.parametrize(
    ("status", "code", "told", "detail"),
    [
        (200, 4014, 400, "Coze API请求失败: 400 Bad Request"),
        (422, 4014, 400, "Coze API请求失败: 422 Unprocessable Entity"),
        (200, 4006, 500, "Coze API请求失败: 400 Bad Request"),
        (200, 4100, 500, "Coze API请求失败: 401 Unauthorized"),
        (200, 4101, 500, "Coze API请求失败: 403 Forbidden"),
        (200, 5000, 500, "Coze API请求失败: 500 Internal Server Error"),
    ],
)
def test_the_chat_surface_tells_the_status_and_no_words(status: int, code: int, told: int, detail: str) -> None:
    error = chat_error(KIND.find(status, NO_HEADERS, no(code, "where is /etc")))
    assert (error.status, error.code, error.message) == (told, f"coze_{code}", detail)


def test_the_openai_surface_tells_whose_fault_it_was() -> None:
    fault = openai_error(KIND.find(200, NO_HEADERS, no(4006)), "Invalid bot")
    assert (fault.status, fault.code) == (400, "coze_4006")
    assert fault.message == "Coze API请求失败: 400 Bad Request: Invalid bot"
    broken = openai_error(KIND.find(200, NO_HEADERS, no(5000)), "x" * 600)
    assert (broken.status, broken.code) == (502, "coze_5000")
    assert broken.message == f"Coze API请求失败: 500 Internal Server Error: {'x' * 500}"
    unread = openai_error(KIND.find(200, NO_HEADERS, b"<html>"), "")
    assert (unread.status, unread.code) == (502, "upstream_error")
    waits = openai_error(KIND.failed(Failure(None, reason=REQUIRES_ACTION), NO_HEADERS, named=True), "")
    assert (waits.status, waits.code) == (400, "coze_requires_action")


def test_missing_and_busy_conversations_have_errors_of_their_own() -> None:
    missing = KIND.missing("7002")
    assert (missing.status, missing.code) == (404, "session_not_found")
    assert missing.message == "会话不存在 - conversation_id: 7002"
    assert (busy_error().status, busy_error().code, busy_error().retry_after) == (409, "session_busy", 5.0)


@pytest.mark.parametrize(
    ("cause", "status", "code"),
    [
        (KIND.find(200, NO_HEADERS, no(4016)), 409, "session_busy"),
        (KIND.find(200, NO_HEADERS, no(4006)), 400, "coze_4006"),
        (KIND.find(200, NO_HEADERS, no(4013)), 502, "coze_4013"),
        (FirstByteTimeout("no answer within 1 s"), 504, "upstream_timeout"),
        (AnswerStalled("nothing for 1 s"), 504, "upstream_timeout"),
        (ConnectFailed("refused"), 502, "upstream_unreachable"),
        (AnswerCut("cut"), 502, "upstream_error"),
    ],
)
def test_every_failure_is_told_in_openai_s_dialect(cause: Finding | UpstreamError, status: int, code: str) -> None:
    error = KIND.told(cause, "words")
    assert (error.status, error.code) == (status, code)


# raw calls


def call(*headers: tuple[str, str]) -> Call:
    return Call("raw", "raw", "GET", "/v1/bots?x=1", list(headers), ANONYMOUS)


def test_a_raw_call_has_the_key_and_no_credential_of_the_client() -> None:
    outbound = KIND.prepare(call(("Authorization", "Bearer mine"), ("X-Tenant", "u"), ("accept", "a/b")), KEY)
    assert outbound.url == "https://api.coze.cn/v1/bots?x=1"
    assert outbound.headers == [("accept", "a/b"), ("x-tenant", "t"), ("authorization", "Bearer pat_secret")]


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, no(4100), Verdict.OK),
        (304, b"", Verdict.OK),
        (401, no(4100), Verdict.KEY),
        (404, no(4200), Verdict.CALLER),
        (409, no(4016), Verdict.CALLER),
        (500, b"", Verdict.UPSTREAM),
    ],
)
def test_a_raw_answer_is_judged_where_it_is_one_of_error(status: int, body: bytes, verdict: Verdict) -> None:
    assert KIND.judge(call(), status, NO_HEADERS, body).verdict is verdict


def test_keys_tell_nothing_of_their_end_and_conversations_are_kept_a_day() -> None:
    assert KIND.seconds_left(KEY, WALL) is None
    assert KIND.keeping == Keeping(session_ttl=86400.0)
    assert KIND.reading() is not KIND.reading()
