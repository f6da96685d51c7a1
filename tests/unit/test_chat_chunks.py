"""Answers written in OpenAI's dialect, read back as a client reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.wire import chat_chunks
from balancer.wire.chat_chunks import DONE, Chunks, Usage, completion, error_frame, new_id, wants_usage

CHUNKS = Chunks("chatcmpl-1", 1_790_000_000, "achuan/gpt")
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_790_000_000, "model": "achuan/gpt"}
TEXTS = ["a", " ", '"hi"', "\n\r\t\0", "对话 \U0001f600", "\u2028", "data: [DONE]\n\n", "\\", ""]


def frame(data: bytes) -> Any:
    """The JSON of one frame, which is one line in one event."""
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    line = data[6:-2]
    assert b"\n" not in line
    assert b"\r" not in line
    return json.loads(line)


def test_the_first_frame_gives_the_role() -> None:
    choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    assert frame(CHUNKS.role()) == {**HEAD, "choices": [choice]}


@pytest.mark.parametrize("text", TEXTS)
def test_a_delta_is_a_frame_with_its_text_verbatim(text: str) -> None:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    assert frame(CHUNKS.content(text)) == {**HEAD, "choices": [choice]}


@pytest.mark.parametrize("text", TEXTS)
def test_reasoning_is_a_member_of_its_own(text: str) -> None:
    choice = {"index": 0, "delta": {"reasoning_content": text}, "finish_reason": None}
    assert frame(CHUNKS.reasoning(text)) == {**HEAD, "choices": [choice]}


def test_halves_of_a_surrogate_pair_in_two_deltas_join_to_one_character() -> None:
    halves = [frame(CHUNKS.content(half))["choices"][0]["delta"]["content"] for half in ("\ud83d", "\ude00")]
    assert "".join(halves).encode("utf-16", "surrogatepass").decode("utf-16") == "\U0001f600"


def test_the_final_frame_alone_has_a_finish_reason() -> None:
    assert frame(CHUNKS.final()) == {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_the_usage_frame_has_no_choices() -> None:
    counted = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert frame(CHUNKS.usage(Usage(1, 2, 3))) == {**HEAD, "choices": [], "usage": counted}


def test_the_marker_is_the_one_that_clients_look_for() -> None:
    assert DONE == b"data: [DONE]\n\n"


def test_a_model_s_name_cannot_break_a_frame() -> None:
    assert frame(Chunks("i", 1, '"},\n"').content("x"))["model"] == '"},\n"'


def test_an_error_frame_has_openai_s_shape() -> None:
    error = {"message": "后端 \n", "type": "api_error", "param": None, "code": "stream_error"}
    assert frame(error_frame("后端 \n")) == {"error": error}


def test_a_whole_answer_has_zeros_where_nothing_was_counted() -> None:
    assert json.loads(completion("chatcmpl-1", 5, "m", "text")) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "text"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def test_a_whole_answer_shows_reasoning_and_usage_where_there_is_any() -> None:
    answer = json.loads(completion("i", 5, "m", "text", reasoning="why", usage=Usage(1, 2, 3)))
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "text", "reasoning_content": "why"}
    assert answer["usage"]["total_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"stream_options": {"include_usage": True}}, True),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": 1}}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": None}, False),
        ({"stream_options": "include_usage"}, False),
        ({}, False),
    ],
)
def test_usage_is_told_to_those_who_asked(body: dict[str, Any], wanted: bool) -> None:
    assert wants_usage(body) is wanted


def test_ids_are_new_each_time() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(each.startswith("chatcmpl-") for each in made)


def test_a_stream_s_head_forbids_to_gather_it() -> None:
    assert dict(chat_chunks.HEADERS) == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
    }
