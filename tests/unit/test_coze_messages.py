"""What of a chat request travels to Coze as additional messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from balancer.errors import ProxyError
from balancer.wire.coze_messages import MOST, Upload, newest, opening, rendered, said, uploads

PNG = "data:image/png;base64,AAEC"
CSV = "data:text/csv,a%2Cb"


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def text(content: str, role: str = "user") -> dict[str, str]:
    kind = "question" if role == "user" else "answer"
    return {"role": role, "type": kind, "content": content, "content_type": "text"}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_later_only_the_newest_message_of_the_user_travels() -> None:
    messages = [message("system", "be brief"), message("user", "a"), message("assistant", "b"), message("user", " c\n")]
    assert rendered(newest(messages), {}) == [text(" c\n")]
    assert rendered(newest([*messages, message("assistant", "d")]), {}) == [text(" c\n")]


def test_a_new_conversation_begins_with_all_that_was_said_and_the_instructions() -> None:
    messages = [
        message("developer", "be brief"),
        message("assistant", "hello"),
        message("user", "a"),
        message("tool", "42"),
        message("assistant", None),
        message("system", "be kind"),
        message("assistant", [{"type": "text", "text": "b"}, {"type": "refusal", "refusal": "x"}]),
        message("user", "c"),
        message("assistant", "not said yet"),
        "x",
    ]
    assert rendered(opening(messages), {}) == [
        text("hello", "assistant"),
        text("be brief\nbe kind\n\na"),
        text("b", "assistant"),
        text("c"),
    ]


def test_of_many_messages_the_newest_hundred_travel_and_the_instructions_with_them() -> None:
    messages = [message("system", "be brief")]
    messages += [message(role, f"{role} {n}") for n in range(80) for role in ("user", "assistant")]
    travelling = rendered(opening([*messages, message("user", "last")]), {})
    assert len(travelling) == MOST
    assert travelling[0] == text("assistant 30", "assistant")
    assert travelling[1]["content"] == "be brief\n\nuser 31"
    assert travelling[-1] == text("last")


def test_parts_are_texts_a_line_each_where_nothing_is_attached() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "input_audio"}, 5]
    assert rendered(newest([message("user", parts)]), {}) == [text("a\nb")]


def test_addresses_of_images_and_files_travel_as_objects() -> None:
    parts = [
        {"type": "text", "text": "look"},
        image("https://h/a.png"),
        {"type": "file", "file": {"file_data": "http://h/b.pdf"}},
        image("ftp://h/c"),
    ]
    (sent,) = rendered(newest([message("user", parts)]), {})
    assert (sent["type"], sent["content_type"]) == ("question", "object_string")
    assert json.loads(sent["content"]) == [
        {"type": "text", "text": "look"},
        {"type": "image", "file_url": "https://h/a.png"},
        {"type": "file", "file_url": "http://h/b.pdf"},
    ]


def test_data_urls_are_uploaded_once_each_and_named_by_their_ids() -> None:
    parts = [image(PNG), {"type": "file", "file": {"file_data": CSV, "filename": "table.csv"}}, image(PNG)]
    entries = opening([message("user", parts), message("user", [image(PNG)])])
    assert uploads(entries) == (
        Upload(PNG, "file000.png", "image/png", b"\x00\x01\x02"),
        Upload(CSV, "table.csv", "text/csv", b"a,b"),
    )
    sent = rendered(entries, {PNG: "f1", CSV: "f2"})
    assert json.loads(sent[0]["content"]) == [
        {"type": "image", "file_id": "f1"},
        {"type": "file", "file_id": "f2"},
        {"type": "image", "file_id": "f1"},
    ]
    assert json.loads(sent[1]["content"]) == [{"type": "image", "file_id": "f1"}]


@pytest.mark.parametrize(
    ("url", "media_type", "data"),
    [
        ("data:,x", "text/plain", b"x"),
        ("DATA:image/png;name=a;BASE64,AAEC", "image/png", b"\x00\x01\x02"),
        ("data:image/png;base64,AA%0AE", "image/png", b"\x00\x01"),
        ("data:a b/c;base64,AA", "application/octet-stream", b"\x00"),
        ("data:a/b\r\nx: y,z", "application/octet-stream", b"z"),
    ],
)
def test_a_data_url_is_taken_apart(url: str, media_type: str, data: bytes) -> None:
    (upload,) = uploads(newest([message("user", [image(url)])]))
    assert (upload.media_type, upload.data) == (media_type, data)


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,", "data:image/png;base64,!!", "data:;base64", "data:;base64,A"]
)
def test_a_data_url_that_holds_nothing_is_the_caller_s_mistake(url: str) -> None:
    with pytest.raises(ProxyError) as refused:
        uploads(newest([message("user", [image(url)])]))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_body", "messages")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [message("assistant", "a")],
        [message("user", None)],
        [message("user", [])],
        [message("user", "  ")],
        [message("user", "a"), message("user", "")],
        [message("user", [image("data:nothing")])],
        [message("user", [image("file:///etc/passwd")])],
        [5],
    ],
)
def test_without_anything_of_the_user_there_is_no_chat(messages: list[Any]) -> None:
    for choose in (newest, opening):
        with pytest.raises(ProxyError) as refused:
            choose(messages)
        assert (refused.value.status, refused.value.message) == (400, "无法从 messages 提取文本")


def test_instructions_stand_before_what_has_no_text_too() -> None:
    entries = opening([message("system", "describe"), message("user", [image("https://h/a")])])
    assert json.loads(rendered(entries, {})[0]["content"]) == [
        {"type": "text", "text": "describe"},
        {"type": "image", "file_url": "https://h/a"},
    ]


def test_stored_turns_travel_as_context() -> None:
    turns = [said("user", "a"), said("assistant", "b"), said("user", " c ")]
    assert rendered(turns, {}) == [text("a"), text("b", "assistant"), text(" c ")]
    assert len(rendered(turns * 50, {})) == MOST


def test_what_people_say_and_send_is_in_no_repr() -> None:
    entries = newest([message("user", [{"type": "text", "text": "private"}, image("data:,secret")])])
    assert "private" not in repr(entries)
    assert "secret" not in repr(entries) + repr(uploads(entries))
