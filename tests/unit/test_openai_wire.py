"""Requests of OpenAI's dialect as bytes: what is read of them, how they are spliced, and how errors are written."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from balancer.errors import ProxyError
from balancer.relay.replay import spliced
from balancer.web import span
from balancer.wire.event_boundary import EventBoundary
from balancer.wire.google import parse
from balancer.wire.json_places import DEEPEST, members, value_end
from balancer.wire.openai import LARGEST_PARSED, apply, edits, no_messages, read
from balancer.wire.openai_errors import render, render_anthropic, unbracket

ODD = (
    b'\r\n{ "x" : 12345678901234567890123 ,\t"model":"openai\\/gpt-5.1" , "seed":1.0e+2,\n'
    b'"messages":[{"role":"user","content":"\\u4f60 \\"model\\": \\\\"}], "unknown":{"model":"a","max_tokens":1} }\n'
)


def spliced_body(body: bytes, **wanted: Any) -> bytes:
    return apply(body, edits(read(body), **wanted))


def test_only_the_models_bytes_change() -> None:
    assert spliced_body(ODD, model="gpt-5.1") == ODD.replace(b'"openai\\/gpt-5.1"', b'"gpt-5.1"')


def test_a_body_that_needs_no_edit_has_none() -> None:
    assert edits(read(ODD)) == []
    assert edits(read(ODD), model="openai/gpt-5.1") == []


def test_a_body_in_pieces_is_spliced_alike() -> None:
    changes = edits(read(ODD), model="m", maximum=5, limit_member="max_tokens")
    for size in (1, 2, 7, 1000):
        pieces = [ODD[at : at + size] for at in range(0, len(ODD), size)]
        assert b"".join(spliced(pieces, changes)) == apply(ODD, changes)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ('{"session_id":"s"}', "{}"),
        ('{ "session_id" : "s" }', "{  }"),
        ('{"session_id":"s", "a":1}', '{"a":1}'),
        ('{"a":1, "session_id":"s"}', '{"a":1}'),
        ('{"a":1 , "session_id":"s" , "b":2}', '{"a":1 , "b":2}'),
        ('{"a":1,"metadata":{"sessionId":"s"}}', '{"a":1}'),
        ('{"a":1,"metadata":{"sessionId":"s","k":"v"}}', '{"a":1,"metadata":{"k":"v"}}'),
        ('{"a":1,"metadata":{"k":"v", "sessionId":5 }}', '{"a":1,"metadata":{"k":"v" }}'),
        ('{"a":1,"session_id":"s","metadata":{"sessionId":"s"}}', '{"a":1}'),
        ('{"session_id":"s" , "metadata":{"sessionId":"s"} , "a":1}', '{"a":1}'),
        ('{"metadata":{"sessionId":"s"},"a":1,"session_id":null}', '{"a":1}'),
        ('{"metadata":{},"a":{"session_id":"s"}}', '{"metadata":{},"a":{"session_id":"s"}}'),
        ('{"metadata":"sessionId"}', '{"metadata":"sessionId"}'),
    ],
)
def test_session_members_go_with_their_commas(body: str, after: str) -> None:
    assert spliced_body(body.encode()) == after.encode()


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("{}", '{"model":"m"}'),
        ('{ "a":1}', '{"model":"m", "a":1}'),
        ('{"session_id":"s"}', '{"model":"m"}'),
        ('{"session_id":"s","metadata":{"sessionId":"t"}}', '{"model":"m"}'),
        ('{"session_id":"s","a":1}', '{"model":"m","a":1}'),
        ('{"a":1,"model":null}', '{"a":1,"model":"m"}'),
        ('{"a":1,"model":" "}', '{"a":1,"model":"m"}'),
    ],
)
def test_a_bound_model_is_set_where_none_was_sent(body: str, after: str) -> None:
    assert read(body.encode()).model is None
    assert spliced_body(body.encode(), model="m") == after.encode()


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ('{"max_tokens":500}', '{"max_tokens":100}'),
        ('{"max_tokens":50}', '{"max_tokens":50}'),
        ('{"max_tokens":100.5}', '{"max_tokens":100}'),
        ('{"max_tokens":-1}', '{"max_tokens":100}'),
        ('{"max_tokens":"500"}', '{"max_tokens":100}'),
        ('{"max_tokens":{"a":"}"}}', '{"max_tokens":100}'),
        ('{"max_completion_tokens":500,"max_tokens":null}', '{"max_completion_tokens":100,"max_tokens":null}'),
        ('{"max_output_tokens":500,"max_tokens":99}', '{"max_output_tokens":100,"max_tokens":99}'),
        ('{"a":{"max_tokens":500}}', '{"max_tokens":100,"a":{"max_tokens":500}}'),
        ('{"max_tokens":null}', '{"max_tokens":100}'),
        ('{"max_output_tokens":null}', '{"max_tokens":100,"max_output_tokens":null}'),
        ("{}", '{"max_tokens":100}'),
    ],
)
def test_token_limits_are_lowered_to_the_clients(body: str, after: str) -> None:
    assert spliced_body(body.encode(), maximum=100, limit_member="max_tokens") == after.encode()


def test_a_limit_is_not_set_where_the_route_has_none() -> None:
    assert edits(read(b'{"input":"x"}'), maximum=100) == []


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b'{"model":"a", "x":1, "model":"b"}', b'{"model":"m","x":1}'),
        (b'{"mod\\u0065l":"a", "x":1}', b'{"model":"m","x":1}'),
        (b'{"model":"a","\\u006dodel":"b","metadata":{"sessionId":"s"}}', b'{"model":"m"}'),
        (
            b'{"model":"a","metadata":{"sessionI\\u0064":"s","sessionId":"t","k":1}}',
            b'{"model":"m","metadata":{"k":1}}',
        ),
        (b'{"session_id":"s","session_id":"t","model":"a"}', b'{"model":"m"}'),
        (b'{"max_tokens":5,"max_tokens":500,"model":"a"}', b'{"max_tokens":100,"model":"m"}'),
    ],
)
def test_what_servers_might_read_differently_is_written_anew(body: bytes, after: bytes) -> None:
    asked = read(body)
    assert asked.rewritten
    changes = edits(asked, model="m", maximum=100)
    assert changes == [(0, len(body), after)]


def test_the_last_member_of_a_name_counts() -> None:
    assert read(b'{"model":"a","model":"b"}').model == "b"
    assert read(b'{"session_id":"a","session_id":"b"}').session_id == "b"


def test_escapes_elsewhere_leave_a_body_as_it_is() -> None:
    body = b'{"model":"a","messages":[{"content":"\\u0041 \\u00e9","n\\u0061me":"x"}],"x\\u0061":1}'
    assert spliced_body(body, model="m") == body.replace(b'"a"', b'"m"', 1)


def test_half_a_surrogate_pair_travels() -> None:
    body = b'{"model":"a","messages":[{"content":"cut \\ud83d"}]}'
    assert spliced_body(body, model="m") == body.replace(b'"a"', b'"m"')
    with pytest.raises(ProxyError, match="JSON"):
        read(b'{"model":"a","model":"\\ud83d"}')


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[]", b'"x"', b"5", b"null", b"{}{}", b'{"a":1}x', b'{"a":"\xff"}', b"{'a':1}", b'{"a":NaN}',
        b'{"a":1,}', b"\xef\xbb\xbf{}", b"{},{}", b"{}],[{}", b"]" * 600 + b"[" * 600, b"{}" + b"],[" * 600 + b"{}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProxyError) as refused:
        read(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")
    assert refused.value.message == "请求体必须是 JSON 对象"


@pytest.mark.parametrize("padding", [0, 1 << 17])
def test_nesting_has_a_limit(padding: int) -> None:
    def nested(depth: int) -> bytes:
        return b'{"a":' + b"[" * (depth - 1) + b'"%b"' % (b"x" * padding) + b"]" * (depth - 1) + b"}"

    assert read(nested(DEEPEST)).text
    with pytest.raises(ProxyError, match="JSON"):
        read(nested(DEEPEST + 1))
    with pytest.raises(ProxyError, match="JSON"):
        read(nested(100_000))


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ('{"messages":[{}]}', False),
        ('{"messages":[]}', True),
        ('{"messages":{}}', True),
        ('{"messages":null}', True),
        ('{"a":{"messages":[1]}}', True),
    ],
)
def test_messages_must_be_a_filled_list(body: str, missing: bool) -> None:
    assert read(body.encode()).no_messages == missing
    assert no_messages().message == "messages 必须是非空数组"


def test_a_model_that_is_no_text_is_wrong() -> None:
    assert read(b'{"model":5}').model_wrong
    assert read(b'{"model":["a"]}').model is None
    assert not read(b'{"model":null}').model_wrong
    assert not read(b"{}").model_wrong


def test_members_behind_the_cut_are_unknown() -> None:
    body = b'{"stream":true,"messages":[{"content":"' + b"x" * 100
    asked = read(body, complete=False)
    assert (asked.stream, asked.no_messages, asked.model_hidden) == (True, False, True)
    assert read(b'{"messages":[ ] ', complete=False).no_messages
    for cut in (b'{"mess', b'{"messages":', b'{"messages":[ '):
        assert not read(cut, complete=False).no_messages
    assert read(b'{"model":"a', complete=False).model_hidden
    assert read(b'{"max_tokens":50', complete=False).values == {}
    assert read(b'{"model":"a","x":1', complete=False).model == "a"


@pytest.mark.parametrize("body", [b"[1,", b'"x', b'{"a":]', b'{"a":{"b":1]', b'{}} "model":1'])
def test_a_first_part_that_cannot_become_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(ProxyError, match="JSON"):
        read(body + b',"model":"a",', complete=False)


def test_a_first_part_cannot_be_written_anew() -> None:
    with pytest.raises(ProxyError) as refused:
        read(b'{"model":"a","model":"b","messages":[', complete=False)
    assert (refused.value.status, refused.value.code) == (413, "request_too_large")


def test_a_large_body_is_not_made_into_objects() -> None:
    many = b'{"model":"a","input":[' + b"[]," * 100_000 + b'1],"x":"' + b"y" * LARGEST_PARSED
    asked = read(many + b'","session_id":"s"}')
    assert (asked.model, asked.session_id) == ("a", "s")
    assert apply(asked.text, edits(asked, model="m")) == many.replace(b'"a"', b'"m"', 1) + b'"}'
    twice = many + b'","model":"b"}'
    assert edits(read(twice), model="m")[0][:2] == (0, len(twice))
    with pytest.raises(ProxyError, match="JSON"):
        read(many + b'\\ud83d","model":"b"}')
    for end in (b'"', b'"]}', b'"}}', b'"} x', b'"}{"'):
        with pytest.raises(ProxyError, match="JSON"):
            read(many + end)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (b'"a\\"b\\\\",', 8),
        (b'"a\\\\\\", ', None),
        (b'"open', None),
        (b"-1.5e3}", 6),
        (b"12", None),
        (b"true,", 4),
        (b'{"a":["]}"]},', 12),
        (b'["open', None),
        (b"[[]", None),
        (b",", None),
    ],
)
def test_a_values_end(text: bytes, end: int | None) -> None:
    assert value_end(text, 0) == end


def test_members_of_a_small_object() -> None:
    text = b'{ "a" : 1 ,"b":{"c":2}}'
    assert members(text, 0) == [(b"a", 2, 8, 9), (b"b", 11, 15, 22)]
    for broken in (b'{"a" 1}', b'{"a":1', b'{"a":1 "b"', b'{"a"', b'{"a":[' + b'"",' * 20_000 + b"1]}"):
        assert members(broken, 0) is None


@pytest.mark.parametrize(
    ("status", "kind", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "invalid_request_error", "authentication_error"),
        (403, "invalid_request_error", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (405, "invalid_request_error", "invalid_request_error"),
        (408, "invalid_request_error", "invalid_request_error"),
        (409, "conflict_error", "invalid_request_error"),
        (413, "invalid_request_error", "request_too_large"),
        (415, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (502, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
        (504, "server_error", "timeout_error"),
    ],
)
def test_errors_have_the_type_of_their_status(status: int, kind: str, anthropic: str) -> None:
    error = ProxyError(status, "a_code", "Was \udc80?", param="model")
    assert orjson.loads(render(error)) == {
        "error": {"message": "Was \\udc80?", "type": kind, "param": "model", "code": "a_code"}
    }
    assert orjson.loads(render_anthropic(error)) == {
        "type": "error",
        "error": {"type": anthropic, "message": "Was \\udc80?"},
    }


def test_a_backend_s_own_refusal_of_the_request_is_an_error_of_the_api() -> None:
    for status, kind in ((400, "api_error"), (404, "api_error"), (502, "server_error")):
        assert orjson.loads(render(ProxyError(status, "backend_error", "no")))["error"]["type"] == kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (-1, "0ms"),
        (0.25, "250ms"),
        (0.9991, "1s"),
        (11.2, "12s"),
        (60, "1m0s"),
        (63, "1m3s"),
        (7201, "2h0m1s"),
    ],
)
def test_a_reset_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_googles_list_of_one_error_loses_its_brackets_and_nothing_else() -> None:
    inner = b'{ "error": {"code": 400,\n "message": "no \\ud83d"} }'
    assert unbracket(b"\n[ " + inner + b"\n]\n") == inner
    assert parse(inner) == parse(b"[" + inner + b"]")
    for other in (
        b"",
        b"[]",
        b"[1]",
        b'[{"a":1}]',
        b"[" + inner + b"," + inner + b"]",
        inner,
        b"[" + inner,
        b'[{"error":\xff}]',
    ):
        assert unbracket(other) is None


@pytest.mark.parametrize(
    ("stream", "boundary"),
    [
        (b"", True),
        (b"data: x", False),
        (b"data: x\n", False),
        (b"data: x\r\n", False),
        (b"data: x\n\n", True),
        (b"data: x\r\n\r\n", True),
        (b"data: x\r\r", True),
        (b"data: x\n\r\n", True),
        (b"data: x\r\n\n", True),
        (b"data: x\n\nd", False),
    ],
)
def test_an_event_ends_with_an_empty_line(stream: bytes, boundary: bool) -> None:
    assert EventBoundary().feed(stream) == boundary
    bytewise = EventBoundary()
    results = [bytewise.feed(stream[at : at + 1]) for at in range(len(stream))]
    assert (results or [True])[-1] == boundary


@pytest.mark.parametrize("content", ["", '"' * 50])
def test_a_body_with_too_many_places_to_tell_apart_is_written_anew(content: str) -> None:
    body = json.dumps({"messages": [{"model": "x", "content": content}] * 30_000, "model": "a"}).encode()
    assert (len(body) > LARGEST_PARSED) == bool(content)
    assert read(body).rewritten
    assert json.loads(spliced_body(body, model="m"))["model"] == "m"
    with pytest.raises(ProxyError) as refused:
        read(body, complete=False)
    assert refused.value.status == 413


def test_names_below_the_top_are_told_apart() -> None:
    body = json.dumps({"messages": [{"model": "x"}] * 3_000, "model": "a", "tools": [{"max_tokens": {}}]}).encode()
    after = json.dumps({"messages": [{"model": "x"}] * 3_000, "model": "m", "tools": [{"max_tokens": {}}]}).encode()
    assert spliced_body(body, model="m") == after
