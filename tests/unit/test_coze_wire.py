"""What the calls of Coze are sent, and what its answers and events are taken for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.errors import AnswerBroken
from balancer.wire import coze
from balancer.wire.chat_chunks import Usage
from balancer.wire.coze import (
    CANCELED,
    REQUIRES_ACTION,
    Began,
    Chat,
    Completed,
    Delta,
    Done,
    Event,
    Failed,
    Failure,
    Good,
    Reading,
    Reasoning,
)
from balancer.wire.loose_json import load, whole_number

BEGAN = Began("7001", "7002")
COUNTS = {"input_count": 4, "output_count": 2, "token_count": 6}
USAGE = Usage(4, 2, 6)


def event(name: str, value: Any, *, blank: str = "") -> bytes:
    return f"event:{blank}{name}\ndata:{blank}{json.dumps(value, ensure_ascii=False)}\n\n".encode()


def chat_object(status: str = "created", **more: Any) -> dict[str, Any]:
    return {"id": "7001", "conversation_id": "7002", "status": status} | more


def message(content: str, identity: str = "m1", **more: Any) -> dict[str, Any]:
    made = {"id": identity, "role": "assistant", "type": "answer", "content": content, "content_type": "text"}
    return made | {"conversation_id": "7002", "chat_id": "7001"} | more


CREATED = event("conversation.chat.created", chat_object())
COMPLETED = event("conversation.chat.completed", chat_object("completed", usage=COUNTS))
DONE = b'event:done\ndata:"[DONE]"\n\n'


def delta(content: str, identity: str = "m1", **more: Any) -> bytes:
    return event("conversation.message.delta", message(content, identity, **more))


def said(content: str, identity: str = "m1", **more: Any) -> bytes:
    return event("conversation.message.completed", message(content, identity, **more))


def read(*pieces: bytes) -> tuple[list[Event], bool]:
    reading = Reading()
    events = [found for piece in pieces for found in reading.feed(piece)] + reading.end()
    return events, reading.whole


# what is sent


def test_a_turn_is_streamed_saved_and_has_its_messages_and_nothing_else() -> None:
    query = {"role": "user", "type": "question", "content": ' "hi"\n', "content_type": "text"}
    assert json.loads(coze.chat("b", "u", [query])) == {
        "bot_id": "b",
        "user_id": "u",
        "stream": True,
        "auto_save_history": True,
        "additional_messages": [query],
    }


def test_half_a_surrogate_pair_does_not_lose_the_turn() -> None:
    assert json.loads(coze.chat("b", "u", [{"content": "a\ud83d"}]))["additional_messages"][0]["content"] == "a\ud83d"


def test_a_chat_is_canceled_by_both_its_ids() -> None:
    assert json.loads(coze.cancel(BEGAN)) == {"chat_id": "7001", "conversation_id": "7002"}


def test_an_upload_is_a_form_with_one_file_whose_name_ends_no_line() -> None:
    form = coze.upload('a"b\r\nc好.png', "image/png", b"\x00\r\n--x", "edge")
    head, _, rest = form.partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"--edge",
        'Content-Disposition: form-data; name="file"; filename="a%22b%0D%0Ac好.png"'.encode(),
        b"Content-Type: image/png",
    ]
    assert rest == b"\x00\r\n--x\r\n--edge--\r\n"


# envelopes


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"code":0,"msg":"","data":{"id":"1"}}', Good({"id": "1"})),
        (b'{"data":{"id":"1"},"msg":""}', Good({"id": "1"})),
        (b'{"code":0,"msg":""}', Good(None)),
        (b'{"code":"0","data":[]}', Good([])),
        (b'{"code":4100,"msg":"no","data":{}}', Failure(4100, "no")),
        (b'{"code":"4016"}', Failure(4016)),
        (b'{"code":4000,"msg":"x","detail":{"logid":"L1"}}', Failure(4000, "x", "L1")),
        (b'{"error_code":"invalid_client","error_message":"who"}', Failure(None, "who")),
        (b'{"code":0,"error_code":4101,"msg":"x"}', Failure(4101, "x")),
        (b'{"code":-1,"msg":{"a":1}}', Failure(-1, '{"a":1}')),
        (b'{"code":700012006,"msg":"\xff"}', Failure(700012006, "\ufffd")),
        (b'{"code":4000,"detail":{"logid":5}}', Failure(4000)),
        (b'{"code":4000,"detail":"x","msg":null}', Failure(4000)),
        (b'{"msg":"x"}', None),
        (b"[]", None),
        (b"", None),
        (b"<html>", None),
        (b"null", None),
        (b'{"code":', None),
    ],
)
def test_an_envelope_says_yes_only_with_code_0(body: bytes, expected: object) -> None:
    assert coze.reply(body) == expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("application/json; charset=utf-8", False),
        ("", False),
    ],
)
def test_the_content_type_tells_events_from_an_envelope(content_type: str, expected: bool) -> None:
    assert coze.streams([("Content-Type", content_type)]) is expected
    assert not coze.streams([])


def test_the_log_id_of_the_body_comes_before_that_of_the_head() -> None:
    headers = [("X-Tt-Logid", "head")]
    assert coze.logid_of(headers, Failure(1, logid="body")) == "body"
    assert coze.logid_of(headers, Failure(1)) == "head"
    assert coze.logid_of([], None) is None
    assert coze.logid_of([("x-tt-logid", "x" * 129)], None) is None


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (chat_object("in_progress"), Chat(BEGAN, None)),
        (chat_object("created"), Chat(BEGAN, None)),
        (chat_object("what next"), Chat(BEGAN, None)),
        (chat_object("completed", usage=COUNTS), Chat(BEGAN, Completed(USAGE))),
        (chat_object("completed", usage=None), Chat(BEGAN, Completed(Usage()))),
        (chat_object("failed", last_error={"code": 4014, "msg": "x"}), Chat(BEGAN, Failed(Failure(4014, "x")))),
        (chat_object("failed"), Chat(BEGAN, Failed(Failure(5000)))),
        (chat_object("requires_action"), Chat(BEGAN, Failed(Failure(None, reason=REQUIRES_ACTION)))),
        (chat_object("canceled"), Chat(BEGAN, Failed(Failure(None, reason=CANCELED)))),
        (chat_object("completed", id=7001, conversation_id=7002), Chat(BEGAN, Completed(Usage()))),
        ({"id": "7001", "status": "completed"}, None),
        (chat_object(id=""), None),
        (chat_object(id=True), None),
        (chat_object(id="a\nb"), None),
        ([], None),
        (None, None),
    ],
)
def test_a_chat_object_tells_whether_it_runs_and_how_it_ended(data: Any, expected: object) -> None:
    assert coze.chat_of(data) == expected


def test_the_messages_of_a_chat_are_told_as_the_stream_would_have() -> None:
    listed = [
        message("{}", "v", type="verbose"),
        message("first", "a", reasoning_content="hm"),
        message("mine", "q", role="user"),
        message("{}", "c", content_type="card"),
        message("", "e"),
        message("second", "b"),
        message("Why?", "f", type="follow_up"),
        "x",
    ]
    assert coze.answers(listed) == [Reasoning("hm"), Delta("first"), Delta("\n\n"), Delta("second")]
    assert coze.answers({"id": 1}) == []


@pytest.mark.parametrize(("data", "expected"), [({"id": "f1"}, "f1"), ({"id": 5}, "5"), ({}, None), ([], None)])
def test_an_id_is_text_or_a_number(data: Any, expected: str | None) -> None:
    assert coze.id_of(data) == expected


# events


def test_a_chat_is_told_from_its_beginning_to_its_end() -> None:
    in_progress = event("conversation.chat.in_progress", chat_object("in_progress"))
    whole = said("a  b\n")
    found = read(CREATED, in_progress, delta("a "), delta(" b"), delta("\n"), whole, COMPLETED, DONE)
    assert found == ([BEGAN, Delta("a "), Delta(" b"), Delta("\n"), Completed(USAGE), Done()], True)


def test_blanks_behind_the_colons_and_a_missing_empty_line_change_nothing() -> None:
    blank = event("conversation.message.delta", message(" x"), blank=" ")
    assert read(CREATED + blank + COMPLETED.rstrip()) == ([BEGAN, Delta(" x"), Completed(USAGE)], True)
    assert read(CREATED + COMPLETED + DONE.rstrip()) == ([BEGAN, Completed(USAGE), Done()], True)


def test_the_first_sight_of_a_chat_is_its_beginning_whatever_the_event() -> None:
    assert read(event("conversation.chat.in_progress", chat_object()), CREATED)[0] == [BEGAN]
    assert read(COMPLETED)[0] == [BEGAN, Completed(USAGE)]
    assert read(event("conversation.chat.created", {"id": "7001"}))[0] == []


@pytest.mark.parametrize(
    "noise",
    [
        *(delta("secret", type=kind) for kind in ("function_call", "tool_output", "tool_response", "verbose")),
        *(said("secret", type=kind) for kind in ("follow_up", "verbose", "knowledge", "function_call", "")),
        delta("secret", content_type="card"),
        said("secret", content_type="object_string"),
        delta("", "m9"),
        event("conversation.audio.delta", message("AAAA", content_type="audio")),
        event("conversation.unheard.of", message("secret")),
        event("conversation.message.delta", "text"),
        event("conversation.message.delta", {"type": "answer", "content": 5}),
        b"event:conversation.message.delta\ndata:{broken\n\n",
        b": comment\n\n",
        b'data:{"content":"no name"}\n\n',
        b"event:conversation.message.delta\n\n",
    ],
)
def test_what_is_no_answer_is_dropped(noise: bytes) -> None:
    expected = [BEGAN, Delta("x"), Delta("y"), Completed(USAGE)]
    assert read(CREATED, noise, delta("x"), noise, delta("y"), noise, COMPLETED, noise) == (expected, True)


def test_reasoning_has_deltas_of_its_own() -> None:
    thinking = delta("", reasoning_content="好") + delta("", reasoning_content="，")
    both = delta("yes", reasoning_content="so")
    assert read(thinking, both)[0] == [Reasoning("好"), Reasoning("，"), Reasoning("so"), Delta("yes")]


def test_a_message_without_deltas_is_one_delta() -> None:
    assert read(said("whole", reasoning_content="hm"))[0] == [Reasoning("hm"), Delta("whole")]
    assert read(said("whole"), said("whole"))[0] == [Delta("whole")]
    assert read(delta("", reasoning_content="hm"), said("whole", reasoning_content="hm"))[0] == [
        Reasoning("hm"),
        Delta("whole"),
    ]
    assert read(delta("w"), said("whole"))[0] == [Delta("w")]


def test_two_answers_are_joined_by_two_newlines() -> None:
    streamed = read(delta("a"), said("a"), delta("b", "m2"), delta("c", "m2"), said("bc", "m2"))[0]
    assert streamed == [Delta("a"), Delta("\n\n"), Delta("b"), Delta("c")]
    assert read(said("a"), said("b", "m2"))[0] == [Delta("a"), Delta("\n\n"), Delta("b")]
    assert read(said("", "m0"), said("b", "m2"))[0] == [Delta("b")]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (
            event("conversation.chat.failed", chat_object("failed", last_error={"code": 4013, "msg": "model"})),
            Failure(4013, "model"),
        ),
        (event("conversation.chat.failed", chat_object("failed", last_error={"code": 0})), Failure(5000)),
        (event("conversation.chat.failed", {}), Failure(5000)),
        (event("conversation.chat.failed", {"code": 4011, "msg": "x"}), Failure(4011, "x")),
        (event("conversation.chat.failed", None), Failure(5000)),
        (
            event("conversation.chat.requires_action", chat_object("requires_action")),
            Failure(None, reason=REQUIRES_ACTION),
        ),
        (event("error", {"code": 4016, "msg": "busy"}), Failure(4016, "busy")),
        (event("error", {"code": "4100", "msg": "x", "detail": {"logid": "L"}}), Failure(4100, "x", "L")),
        (event("error", {}), Failure(5000)),
        (event("error", "gone"), Failure(5000)),
        (b"event:error\ndata:oops\n\n", Failure(5000)),
    ],
)
def test_a_failure_ends_the_chat(stream: bytes, expected: Failure) -> None:
    assert read(CREATED, delta("x"), stream, delta("y"), COMPLETED) == ([BEGAN, Delta("x"), Failed(expected)], False)


def test_an_answer_is_whole_only_behind_its_completed_event() -> None:
    assert read(CREATED, delta("x"), COMPLETED) == ([BEGAN, Delta("x"), Completed(USAGE)], True)
    assert read(CREATED, delta("x")) == ([BEGAN, Delta("x")], False)
    assert read(CREATED, delta("x"), DONE) == ([BEGAN, Delta("x"), Done()], False)
    assert read() == ([], False)
    assert read(b'{"code":4100}') == ([], False)


def test_nothing_is_read_behind_the_end() -> None:
    assert read(CREATED, COMPLETED, COMPLETED, DONE, delta("late"), DONE)[0] == [BEGAN, Completed(USAGE), Done()]


def test_the_end_is_told_by_the_event_s_name_and_not_by_its_data() -> None:
    for data in (b'"[DONE]"', b"[DONE]", b'{"debug_url":"x"}'):
        assert read(b"event:done\ndata:" + data)[0] == [Done()]
    assert read(b"data: [DONE]\n\n")[0] == []


def test_halves_of_a_character_in_two_deltas_are_handed_on() -> None:
    halves = [json.dumps(message(half)).encode() for half in ("\ud83d", "\ude00")]
    stream = b"".join(b"event:conversation.message.delta\ndata:%b\n\n" % half for half in halves)
    assert read(stream)[0] == [Delta("\ud83d"), Delta("\ude00")]


def test_an_event_over_the_limit_is_given_up() -> None:
    reading = Reading(limit=100)
    with pytest.raises(AnswerBroken):
        reading.feed(b"event:x\ndata:" + b"x" * 200)


@pytest.mark.parametrize("usage", [{}, {"input_count": -1, "output_count": "x", "token_count": True}, [], 5])
def test_usage_that_makes_no_sense_is_zero(usage: Any) -> None:
    assert read(event("conversation.chat.completed", chat_object(usage=usage)))[0][-1] == Completed(Usage())


def test_words_of_a_failure_are_not_in_its_repr() -> None:
    assert "secret" not in repr(Failed(Failure(1, "secret")))
    assert "secret" not in repr(Good("secret"))


# loose JSON


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a":1}', {"a": 1}),
        (b'{"a":"\\ud83d"}', {"a": "\ud83d"}),
        (b'{"a":"\xff"}', {"a": "\ufffd"}),
        (b'"\xff"', None),
        (b"{", None),
        (b"{" * 5000, None),
        (b'{"a":' + b"9" * 5000 + b"}", None),
    ],
)
def test_json_is_read_as_far_as_it_can_be(text: bytes, expected: Any) -> None:
    assert load(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5), ("5", 5), (" -5 ", -5), (5.0, 5), (1 << 62, 1 << 62),
        (True, None), (5.5, None), ("5.5", None), ("５", None), (1 << 63, None), ("9" * 20, None), ([], None), (None, None),
    ],
)  # fmt: skip
def test_a_whole_number_is_one_however_it_is_written(value: Any, expected: int | None) -> None:
    assert whole_number(value) == expected
