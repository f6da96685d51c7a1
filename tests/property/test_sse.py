"""Properties of the stream readers: the split of the bytes changes nothing, and nothing that stands in a stream breaks them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from balancer.errors import AnswerBroken
from balancer.wire.achuan import Delta, Done, Ending, Event, Reading, Refused, Whole, event_of
from balancer.wire.sse import Event as ServerSent
from balancer.wire.sse import Events, Lines

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
WORDS = st.sampled_from(
    [b"data:", b"data: ", b"data", b"event:x", b"event: delta", b": note", b"id:1", b"", b" ", b":"]
)
STREAMS = st.lists(
    st.tuples(WORDS, st.sampled_from([b"", b"a", b"{}", "好".encode(), b"\xff", b"\xef\xbb\xbf", b"x: y"]), ENDS),
    max_size=12,
).map(lambda rows: b"".join(b"".join(row) for row in rows)) | st.binary(max_size=60)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, empty ones among them."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


T = TypeVar("T")


def read(feed: Callable[[bytes], list[T]], end: Callable[[], list[T]], data: list[bytes]) -> list[T]:
    found: list[T] = []
    for piece in data:
        found += feed(piece)
    return found + end()


def lines_of(data: list[bytes]) -> list[bytes]:
    lines = Lines()
    return read(lines.feed, lines.end, data)


def by_the_book(stream: bytes) -> list[ServerSent]:
    """The events of a whole stream, read slowly and plainly."""
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    events: list[ServerSent] = []
    name, data = b"", list[bytes]()
    for line in [*lines, b""]:
        if not line:
            events += [ServerSent(name.decode(errors="replace"), b"\n".join(data))] if data else []
            name, data = b"", []
        key, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if key == b"data":
            data.append(value)
        elif key == b"event":
            name = value
    return events


@given(STREAMS, CUTS)
def test_lines_are_those_of_the_whole_stream_however_it_is_split(stream: bytes, cuts: list[int]) -> None:
    expected = re.split(rb"\r\n|\r|\n", stream)
    if not expected[-1]:
        expected.pop()
    if expected:
        expected[0] = expected[0].removeprefix(b"\xef\xbb\xbf")
    found = lines_of(pieces(stream, cuts))
    assert found == expected


@given(STREAMS, CUTS)
def test_a_line_is_out_as_soon_as_its_end_has_come(stream: bytes, cuts: list[int]) -> None:
    lines, begun = Lines(), b""
    out = 0
    for piece in pieces(stream, cuts):
        out += len(lines.feed(piece))
        begun += piece
        assert out == len(re.findall(rb"\r\n|\r|\n", begun))


@given(STREAMS, CUTS)
@example(b"event: a\n\ndata: 1\n\n", [])
@example(b"data: 1\nevent: a\n\ndata: 2\n\n", [9])
@example(b"event: a\nevent:b\ndata:\ndata: 1\n\n", [1])
@example(b"\xef\xbb\xbfdata: 1\n\xef\xbb\xbfdata: 2\n", [1, 11])
def test_events_are_those_of_the_standard_however_the_stream_is_split(stream: bytes, cuts: list[int]) -> None:
    events = Events()
    assert read(events.feed, events.end, pieces(stream, cuts)) == by_the_book(stream)


@given(CUTS)
def test_a_line_over_the_limit_is_given_up_and_one_within_it_is_not(cuts: list[int]) -> None:
    assert read(Lines(100).feed, lambda: [], pieces(b"x" * 100 + b"\n" + b"y" * 100, cuts)) == [b"x" * 100]
    lines = Lines(100)
    for piece in pieces(b"x" * 100, cuts):
        lines.feed(piece)
    with pytest.raises(AnswerBroken):
        lines.feed(b"x")


def test_an_event_of_many_lines_has_a_limit_too() -> None:
    events = Events(100)
    assert events.feed(b"data:" + b"x" * 60 + b"\n\n" + b"data:" + b"x" * 60 + b"\n") == [ServerSent("", b"x" * 60)]
    with pytest.raises(AnswerBroken):
        events.feed(b"data:" + b"x" * 60 + b"\n")


TEXTS = st.text(max_size=8) | st.sampled_from(
    ['"hi"', "[user] x", " ", "", "\n", "[DONE]", "data: [DONE]", '{"err":"对话不存在"}', "session not found", "\u2028"]
)
VALUES = st.one_of(
    TEXTS.map(lambda text: {"type": "string", "data": text}),
    TEXTS.map(lambda text: {"type": "object", "data": {"aiText": text, "id": 1}}),
    st.sampled_from(
        [
            {"err": "对话不存在"},
            {"code": 500, "msg": "x"},
            {"code": 0},
            {"type": "ping"},
            {"type": "string", "data": 5},
            [1],
            "text",
            None,
        ]
    ),
)
LINES = st.one_of(
    st.tuples(st.sampled_from(["data: ", "data:"]), VALUES, st.booleans()).map(
        lambda row: row[0] + json.dumps(row[1], ensure_ascii=row[2], separators=(",", ":"))
    ),
    st.sampled_from(
        ["data: [DONE]", "data:[DONE]", ": ping", "", "event: x", "data: {broken", '{"err":"no"}', "<html>"]
    ),
)
ANSWERS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\n\n"])), max_size=8).map(
    lambda rows: "".join(line + end for line, end in rows).encode()
)


def events_of(data: list[bytes]) -> tuple[list[Event], Ending]:
    reading = Reading()
    found = read(reading.feed, reading.end, data)
    return found, reading.ending


@given(ANSWERS, CUTS)
def test_an_answer_says_the_same_however_it_is_split(answer: bytes, cuts: list[int]) -> None:
    assert events_of(pieces(answer, cuts)) == events_of([answer])
    assert events_of([answer.rstrip(b"\r\n")])[0] == events_of([answer])[0]


@given(st.lists(TEXTS, max_size=6), CUTS, st.booleans())
def test_deltas_come_out_verbatim(texts: list[str], cuts: list[int], ascii_only: bool) -> None:
    rows = [json.dumps({"type": "string", "data": text}, ensure_ascii=ascii_only) for text in texts]
    answer = "".join(f"data: {row}\n" for row in rows).encode() + b"data: [DONE]"
    found, ending = events_of(pieces(answer, cuts))
    assert found == [*(Delta(text) for text in texts), Done()]
    assert ending is (Ending.WHOLE if texts else Ending.EMPTY)


@given(ANSWERS)
def test_nothing_is_read_behind_the_end(answer: bytes) -> None:
    found, _ = events_of([answer])
    assert Done() not in found[:-1]


@given(ANSWERS)
def test_deltas_are_there_wherever_the_answer_has_text(answer: bytes) -> None:
    found, ending = events_of([answer])
    whole = [each.text for each in found if isinstance(each, Whole)]
    if any(whole):
        assert any(isinstance(each, Delta) for each in found)
    if ending is Ending.EMPTY:
        assert not any(isinstance(each, Delta | Whole) for each in found)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_event_or_nothing(data: bytes) -> None:
    assert isinstance(event_of(data), Delta | Whole | Done | Refused | None)
    events_of([data])
