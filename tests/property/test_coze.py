"""Properties of Coze's stream reader: the split of the bytes changes nothing, and nothing that stands in a stream breaks it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from balancer.wire import coze
from balancer.wire.chat_messages import Attachment
from balancer.wire.coze import BETWEEN_ANSWERS, Began, Completed, Delta, Done, Event, Failed, Good, Reading, Reasoning
from balancer.wire.coze_messages import MOST, Entry, opening, rendered

CUTS = st.lists(st.integers(0, 400), max_size=12)
TEXTS = st.text(max_size=8) | st.sampled_from(
    ['"hi"', " ", "", "\n", "\n\n", '"[DONE]"', "event:done\ndata:x\n\n", "\u2028", "好"]
)
KINDS = st.sampled_from(["answer", "answer", "answer", "verbose", "follow_up", "function_call", "tool_response"])
MESSAGES = st.builds(
    lambda identity, kind, text, thought, form: {
        "id": identity,
        "role": "assistant",
        "type": kind,
        "content": text,
        "content_type": form,
        "reasoning_content": thought,
    },
    st.sampled_from(["m1", "m2", "m3"]),
    KINDS,
    TEXTS,
    st.none() | TEXTS,
    st.sampled_from(["text", "text", "text", "card"]),
)
CHATS = st.sampled_from([{"id": "7001", "conversation_id": "7002", "usage": {"token_count": 3}}, {}, {"id": "7001"}])
JUNK: st.SearchStrategy[Any] = st.sampled_from([None, 5, [], "text", {"last_error": 5}, {"code": 4016}, {"data": {}}])
NAMES = st.sampled_from(
    [
        "conversation.chat.created",
        "conversation.chat.in_progress",
        "conversation.chat.completed",
        "conversation.audio.delta",
        "conversation.unheard.of",
    ]
)
SPOKEN = st.sampled_from(["conversation.message.delta", "conversation.message.completed"])
ENDS = st.sampled_from(["conversation.chat.failed", "conversation.chat.requires_action", "error", "done"])
EVENTS = st.one_of(
    st.tuples(NAMES, CHATS | JUNK),
    st.tuples(SPOKEN, MESSAGES),
    st.tuples(SPOKEN, MESSAGES),
    st.tuples(SPOKEN | NAMES | ENDS, JUNK),
)


def written(events: list[tuple[str, Any]], blank: str, *, ascii_only: bool = False) -> bytes:
    return "".join(
        f"event:{blank}{name}\ndata:{blank}{json.dumps(value, ensure_ascii=ascii_only)}\n\n" for name, value in events
    ).encode()


STREAMS = st.builds(written, st.lists(EVENTS, max_size=10), st.sampled_from(["", " "]))


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data in pieces, empty ones among them."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def read(data: list[bytes]) -> tuple[list[Event], bool]:
    reading = Reading()
    found: list[Event] = []
    for piece in data:
        found += reading.feed(piece)
    return found + reading.end(), reading.whole


@given(STREAMS, CUTS)
def test_a_chat_says_the_same_however_it_is_split(stream: bytes, cuts: list[int]) -> None:
    assert read(pieces(stream, cuts)) == read([stream])
    assert read([stream.rstrip(b"\n")]) == read([stream])


@given(STREAMS)
def test_a_chat_begins_once_ends_once_and_its_pieces_are_never_empty(stream: bytes) -> None:
    found, whole = read([stream])
    assert sum(isinstance(event, Began) for event in found) <= 1
    assert sum(isinstance(event, Completed) for event in found) <= 1
    assert not any(isinstance(event, Failed | Done) for event in found[:-1])
    assert all(event.text for event in found if isinstance(event, Delta | Reasoning))
    assert whole == (any(isinstance(event, Completed) for event in found) and not isinstance(found[-1], Failed))


@given(st.lists(st.lists(TEXTS, max_size=4), max_size=4), CUTS, st.booleans())
def test_texts_come_out_verbatim_and_messages_are_joined(
    answers: list[list[str]], cuts: list[int], ascii_only: bool
) -> None:
    def message(place: int, content: str) -> dict[str, str]:
        return {
            "id": f"m{place}", "role": "assistant", "type": "answer", "content": content, "content_type": "text"
        }  # fmt: skip

    events = []
    for place, texts in enumerate(answers):
        events += [("conversation.message.delta", message(place, text)) for text in texts]
        events += [("conversation.message.completed", message(place, "".join(texts)))]
    found, _ = read(pieces(written(events, "", ascii_only=ascii_only), cuts))
    assert all(isinstance(event, Delta) for event in found)
    told = "".join(event.text for event in found if isinstance(event, Delta))
    assert told == BETWEEN_ANSWERS.join(whole for texts in answers if (whole := "".join(texts)))
    listed = [message(place, "".join(texts)) for place, texts in enumerate(answers)]
    assert "".join(event.text for event in coze.answers(listed)) == told


@given(st.binary(max_size=80) | STREAMS)
def test_any_bytes_are_an_envelope_or_none(data: bytes) -> None:
    assert isinstance(coze.reply(data), Good | coze.Failure | None)
    read([data])


PARTS = st.one_of(
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.sampled_from(["https://h/a.png", "data:image/png;base64,AAEC", "file:///x"]).map(
        lambda url: {"type": "image_url", "image_url": {"url": url}}
    ),
)
SAID = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        TEXTS | st.lists(PARTS, max_size=3) | st.none(),
    ),
    max_size=120,
)


@given(SAID)
def test_whatever_was_said_the_last_message_is_a_query_and_none_is_empty(messages: list[Any]) -> None:
    messages.append({"role": "user", "content": "last"})
    entries: tuple[Entry, ...] = opening(messages)
    ids = {file.data: "f1" for entry in entries for file in entry.files}
    travelling = rendered(entries, ids)
    assert 1 <= len(travelling) <= MOST
    assert travelling[-1]["type"] == "question"
    assert travelling[-1]["content"].endswith("last")
    for entry, sent in zip(entries, travelling, strict=True):
        attached = any(isinstance(part, Attachment) for part in entry.parts)
        assert sent["content_type"] == ("object_string" if attached else "text")
        assert sent["content"].strip()
