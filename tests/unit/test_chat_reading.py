"""Chat answers in OpenAI's dialect, as servers of many makes write them, read piece by piece."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import AnswerBroken
from balancer.wire import sse
from balancer.wire.chat_chunks import Usage
from balancer.wire.chat_reading import MOST_TOOL_CALLS, ChatReading, Delta, Event, Failed, Reasoning

STREAM = (("Content-Type", "text/event-stream; charset=utf-8"),)
WHOLE = (("Content-Type", "application/json"),)
DONE = b"data: [DONE]\n\n"


def frame(delta: Any, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choices = [{"index": index, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **more}).encode() + b"\n\n"


def read(*pieces: bytes, headers: Any = STREAM) -> tuple[list[Event], ChatReading]:
    reading = ChatReading(headers)
    events = [event for piece in pieces for event in reading.feed(piece)]
    return events + reading.end(), reading


@given(st.lists(st.integers(1, 400), max_size=8))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    whole = (
        frame({"role": "assistant", "content": ""})
        + frame({"content": "你 "})
        + frame({"content": "\n"}, "stop")
        + DONE
    )
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    events, reading = read(*(whole[start:end] for start, end in pairwise(places)))
    assert events == [Delta("你 "), Delta("\n")]
    assert reading.whole


@pytest.mark.parametrize("member", ["reasoning_content", "reasoning"])
def test_thoughts_come_apart_from_the_answer(member: str) -> None:
    events, _ = read(frame({member: "hm"}), frame({"content": "yes"}), DONE)
    assert events == [Reasoning("hm"), Delta("yes")]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ((frame({"content": "a"}), DONE), True),
        ((frame({"content": "a"}, "stop"),), True),
        ((frame({"content": "a"}),), False),
        ((), False),
        ((DONE,), True),
    ],
)
def test_an_answer_is_whole_with_its_marker_or_its_reason(pieces: tuple[bytes, ...], whole: bool) -> None:
    assert read(*pieces)[1].whole is whole


def test_the_reason_and_the_usage_are_the_upstream_s() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 5.0, "total_tokens": "8"}
    _, reading = read(frame({}, "length"), b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
    assert (reading.finish_reason, reading.usage) == ("length", Usage(3, 5, 8))


def test_only_the_first_choice_counts() -> None:
    events, reading = read(frame({"content": "a"}), frame({"content": "b"}, "stop", index=1))
    assert events == [Delta("a")]
    assert not reading.whole


@pytest.mark.parametrize("error", [{"message": "words", "code": 500}, "words"])
def test_an_error_in_the_stream_ends_it(error: Any) -> None:
    said = b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    events, reading = read(frame({"content": "a"}, "stop"), said, frame({"content": "b"}), DONE)
    assert events == [Delta("a"), Failed("words")]
    assert not reading.whole


def test_google_s_error_in_a_list_is_one() -> None:
    assert read(b'data: [{"error": {"message": "words"}}]\n\n')[0] == [Failed("words")]


def test_behind_the_marker_nothing_is_read() -> None:
    assert read(DONE, frame({"content": "late"}))[0] == []


def test_what_keeps_to_no_schema_is_skipped() -> None:
    strange = (
        b"data: 5\n\n",
        b"data: {\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [7, {"delta": "x"}]}\n\n',
    )
    events, _ = read(*strange, frame({"content": 5, "tool_calls": "x"}), frame({"content": "a"}), b": comment\n\n")
    assert events == [Delta("a")]


def test_pieces_of_tool_calls_are_put_together() -> None:
    first = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "search", "arguments": '{"q"'}}
    rest = {"index": 0, "id": None, "function": {"name": None, "arguments": ': "x"}'}}
    other = {"index": 1, "id": "call-2", "function": {"name": "f", "arguments": "{}"}}
    _, reading = read(frame({"tool_calls": [first]}), frame({"tool_calls": [rest, other, 5]}, "tool_calls"))
    assert reading.tool_calls == [
        {"id": "call-1", "type": "function", "function": {"name": "search", "arguments": '{"q": "x"}'}},
        {"id": "call-2", "function": {"name": "f", "arguments": "{}"}},
    ]


def test_no_more_tool_calls_are_kept_than_a_request_may_declare() -> None:
    calls = [{"index": n, "id": str(n)} for n in range(MOST_TOOL_CALLS + 5)]
    assert len(read(frame({"tool_calls": calls}))[1].tool_calls) == MOST_TOOL_CALLS


def test_an_answer_that_is_not_streamed_is_one_delta() -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "all", "reasoning_content": "hm"},
        "finish_reason": "stop",
    }
    body = json.dumps({"choices": [choice], "usage": {"total_tokens": 2}}).encode()
    events, reading = read(body[:9], body[9:], headers=WHOLE)
    assert events == [Reasoning("hm"), Delta("all")]
    assert (reading.whole, reading.usage) == (True, Usage(0, 0, 2))


def test_an_answer_that_is_no_json_is_cut() -> None:
    events, reading = read(b"<html>", headers=WHOLE)
    assert (events, reading.whole) == ([], False)


def test_an_answer_without_an_end_is_given_up() -> None:
    reading = ChatReading(WHOLE)
    reading.feed(b"x" * sse.LONGEST)
    with pytest.raises(AnswerBroken):
        reading.feed(b"x")
