"""What the two calls of achuan are sent, and what their answers are taken for."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from balancer.errors import AnswerBroken
from balancer.wire.achuan import (
    Created,
    Delta,
    Done,
    Ending,
    Event,
    Reading,
    Refused,
    Whole,
    answer_text,
    completion,
    created,
    creation,
    error_text,
    event_of,
    is_stale,
    read_whole,
    refusal,
)
from balancer.wire.chat_messages import File

STALE = Refused(None, "对话不存在")


def string(text: str) -> bytes:
    return b"data: " + json.dumps({"type": "string", "data": text}, ensure_ascii=False).encode() + b"\n"


def whole(text: str) -> bytes:
    return b"data: " + json.dumps({"type": "object", "data": {"aiText": text, "id": 7}}).encode() + b"\n"


def read(*pieces: bytes) -> tuple[list[Event], Ending]:
    reading = Reading()
    events = [event for piece in pieces for event in reading.feed(piece)] + reading.end()
    return events, reading.ending


# what is sent


def test_a_session_is_asked_for_with_a_model_and_empty_defaults() -> None:
    assert json.loads(creation("gpt-5.1-high")) == {"model": "gpt-5.1-high", "plugins": [], "mcp": []}


def test_members_of_a_creation_travel_as_sent_but_the_model_is_the_resolved_one() -> None:
    given = {"model": "achuan/m", "plugins": ["search"], "title": "好", "mcp": [{"id": 1}]}
    assert json.loads(creation("m", given)) == {**given, "model": "m"}


def test_a_turn_is_text_session_and_files_and_nothing_else() -> None:
    body = completion(296270, ' "hi"\n', [File("a.png", "data:image/png;base64,AAAA")])
    files = [{"name": "a.png", "data": "data:image/png;base64,AAAA"}]
    assert json.loads(body) == {"text": ' "hi"\n', "sessionId": 296270, "files": files}
    assert json.loads(completion(1, "x")) == {"text": "x", "sessionId": 1, "files": []}


def test_half_a_surrogate_pair_in_a_text_does_not_lose_the_turn() -> None:
    assert json.loads(completion(1, "a\ud83d"))["text"] == "a\ud83d"


# the reply to a creation


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"code": 0, "data": {"id": 296270, "uid": 22447}, "msg": ""}, Created(296270)),
        ({"data": {"id": "296270"}}, Created(296270)),
        ({"code": None, "data": {"id": 1.0}}, Created(1)),
        ({"code": "0", "data": {"id": 9007199254740993}}, Created(9007199254740993)),
        ({"data": {"id": 0}}, None),
        ({"data": {"id": -5}}, None),
        ({"data": {"id": 1.5}}, None),
        ({"data": {"id": True}}, None),
        ({"data": {"id": "x1"}}, None),
        ({"data": {"id": "９"}}, None),
        ({"data": {"id": 1 << 63}}, None),
        ({"data": {"id": "9" * 20}}, None),
        ({"data": {"id": str((1 << 63) - 1)}}, Created((1 << 63) - 1)),
        ({"data": {}}, None),
        ({"data": [296270]}, None),
        ({}, None),
        ([{"data": {"id": 1}}], None),
        ({"code": 403, "data": {"id": 1}, "msg": "no"}, Refused(403, "no")),
        ({"code": "500", "data": None}, Refused(500, "")),
        ({"code": "DENIED"}, Refused(None, "")),
        ({"code": 10**30}, Refused(None, "")),
        ({"code": 10**5000, "err": "x"}, None),
        ({"code": 1.5, "err": "x"}, Refused(None, "x")),
        ({"err": "余额不足", "data": {"id": 1}}, Refused(None, "余额不足")),
    ],
)
def test_a_session_was_created_only_if_its_number_is_there_and_nothing_says_no(reply: Any, expected: object) -> None:
    sys.set_int_max_str_digits(0)  # the test's own writing of a number that the reader must survive
    try:
        body = json.dumps(reply).encode()
    finally:
        sys.set_int_max_str_digits(4300)
    assert created(body) == expected


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"data":{"id":1}', b"\xff", b"null"])
def test_what_is_no_json_object_creates_nothing(body: bytes) -> None:
    assert created(body) is None


def test_a_creation_that_is_refused_with_an_event_is_refused() -> None:
    assert created(b'data: {"code":401,"err":"x"}\n\n') == Refused(401, "x")


# refusals


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"err": "对话不存在"}, STALE),
        ({"code": 401, "err": "login"}, Refused(401, "login")),
        ({"code": 7}, Refused(7, "")),
        ({"code": -1, "msg": "words"}, Refused(-1, "words")),
        ({"code": 0, "err": "x"}, Refused(None, "x")),
        ({"err": {"why": "好"}}, Refused(None, '{"why": "好"}')),
        ({"err": ""}, None),
        ({"err": None, "code": 0}, None),
        ({"code": 0, "data": {}}, None),
        ({"msg": "hello"}, None),
        ({}, None),
        ({"type": "string", "err": "x", "code": 500}, None),
        ({"type": "error", "err": "对话不存在"}, None),
        ({"type": None, "err": "对话不存在"}, None),
        ([], None),
        ("对话不存在", None),
        (None, None),
    ],
)
def test_a_refusal_is_an_object_without_type_that_has_an_err_or_a_code(value: Any, expected: Refused | None) -> None:
    assert refusal(value) == expected


@pytest.mark.parametrize(
    ("err", "stale"),
    [
        ("对话不存在", True),
        ("错误: 对话不存在!", True),
        ("Session Not Found", True),
        ("session not found: 5", True),
        ("session expired", False),
        ("", False),
    ],
)
def test_a_session_is_stale_by_the_words_of_the_refusal(err: str, stale: bool) -> None:
    assert is_stale(Refused(500, err)) is stale


@pytest.mark.parametrize(
    "body",
    [
        '{"err":"对话不存在"}',
        '{\n  "code": 0,\n  "err": "对话不存在"\n}\n',
        'data: {"err":"对话不存在"}\n\n',
        ': ping\n\ndata:{"err":"对话不存在"}',
        '\ufeff{"err":"对话不存在"}',
        '{"err":"对话不存在"}\ndata: [DONE]\n',
        ': ping\n{"err":"对话不存在"}\n',
    ],
)
def test_a_refusal_is_found_in_a_whole_body_in_any_of_its_forms(body: str) -> None:
    assert read_whole(body.encode())[0] == STALE


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b'{"code":0,"data":{"id":1}}', string('{"err":"no"}'), string("hi") + b'data: {"err":"no"}\n'],
)
def test_what_is_no_refusal_is_not_taken_for_one(body: bytes) -> None:
    assert read_whole(body)[0] is None


# the events of an answer


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"type":"string","data":" lone blanks "}', Delta(" lone blanks ")),
        (b'{"type":"string","data":"\\"hi\\""}', Delta('"hi"')),
        (b'{"type":"string","data":"[DONE]"}', Delta("[DONE]")),
        (b'{"type":"string","data":""}', Delta("")),
        (b'{"type":"string","data":"\\ud83d"}', Delta("\ud83d")),
        (b'{"type":"string","data":"a\xff"}', Delta("a\ufffd")),
        (b'{"type":"string","data":5}', None),
        (b'{"type":"string"}', None),
        (b'{"type":"object","data":{"aiText":"all","id":1}}', Whole("all")),
        (b'{"type":"object","data":{"id":1}}', Whole("")),
        (b'{"type":"object"}', Whole("")),
        (b'{"type":"ping","data":"x"}', None),
        (b'{"type":["string"],"data":"x"}', None),
        (b"[DONE]", Done()),
        (b" [DONE] ", Done()),
        (b'"[DONE]"', None),
        (b'{"err":"no","code":429}', Refused(429, "no")),
        (b"", None),
        (b"{", None),
        (b"[1]", None),
    ],
)
def test_a_data_line_is_one_of_four_things_or_nothing(data: bytes, expected: Event | None) -> None:
    assert event_of(data) == expected


def test_the_texts_of_a_stream_come_out_as_they_went_in() -> None:
    texts = ['"hi"', "[user] x", " ", "对话不存在", '{"err":"session not found"}', "\n"]
    events, ending = read(*(string(text) for text in texts), b"data: [DONE]")
    assert events == [*map(Delta, texts), Done()]
    assert ending is Ending.WHOLE


def test_an_answer_that_comes_only_in_one_piece_is_one_delta() -> None:
    assert read(whole("all"), b"data: [DONE]\n") == ([Delta("all"), Whole("all"), Done()], Ending.WHOLE)


def test_a_whole_text_behind_its_deltas_is_not_said_twice() -> None:
    assert read(string("al"), string("l"), whole("all"))[0] == [Delta("al"), Delta("l"), Whole("all")]


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        (string("a") + b"data: [DONE]\n", Ending.WHOLE),
        (string("a") + whole("a"), Ending.WHOLE),
        (whole("") + b"data: [DONE]\n", Ending.WHOLE),
        (string("a"), Ending.CUT),
        (string("a")[:-4], Ending.CUT),
        (b"", Ending.EMPTY),
        (b"\n \r\n", Ending.EMPTY),
        (b"data: [DONE]\n", Ending.EMPTY),
        (b": ping\n\ndata: [DONE]\n", Ending.EMPTY),
        (b": ping\n", Ending.CUT),
        (b"<html>", Ending.CUT),
        (b'data: {"type":"ping"}\n', Ending.CUT),
    ],
)
def test_only_the_marker_or_the_repetition_makes_an_answer_whole(body: bytes, ending: Ending) -> None:
    assert read(body)[1] is ending


def test_a_refusal_behind_text_is_one_too_but_no_longer_the_first_event() -> None:
    assert read(string("a"), b'data: {"err":"x"}\n')[0] == [Delta("a"), Refused(None, "x")]


def test_the_first_event_is_known_as_soon_as_its_line_ends_whatever_stands_before_it() -> None:
    reading = Reading()
    assert reading.feed(b": ping\n\nevent: x\n") == []
    assert reading.feed('data: {"err":"对话'.encode()) == []
    assert reading.feed('不存在"}\n'.encode()) == [STALE]


def test_a_plain_refusal_without_a_line_end_is_known_when_the_connection_ends() -> None:
    reading = Reading()
    assert reading.feed('{"err":"对话不存在"}'.encode()) == []
    assert reading.end() == [STALE]


def test_lines_without_their_prefix_say_nothing_once_the_answer_has_begun() -> None:
    assert read(string("a"), b'{"err":"no"}\n', b"data: [DONE]\n")[0] == [Delta("a"), Done()]


def test_a_line_without_end_is_given_up_at_the_limit() -> None:
    reading = Reading(limit=100)
    for _ in range(10):
        assert reading.feed(b"data: xxxx") == []
    with pytest.raises(AnswerBroken):
        reading.feed(b"x")


# what is made of them


def test_an_unstreamed_answer_is_the_repetition_or_else_what_was_said() -> None:
    assert answer_text(["a", "b"], "whole") == "whole"
    assert answer_text(["a", "b"], "") == "ab"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"err":"余额不足","msg":"x"}', "余额不足"),
        ('{"code":400,"msg":"bad"}', "bad"),
        ('{"error":{"message":"m"}}', "m"),
        ('{"error":"e","message":" "}', "e"),
        (" plain words \n", "plain words"),
        ('{"x":1}', '{"x":1}'),
        ("", ""),
    ],
)
def test_the_words_of_an_error_are_found_where_they_usually_stand(body: str, text: str) -> None:
    assert error_text(body.encode()) == text
