"""What of a chat request travels to an upstream that keeps the conversation."""

from __future__ import annotations

from typing import Any

import pytest

from balancer.errors import ProxyError
from balancer.wire.chat_messages import (
    Attachment,
    File,
    Message,
    Text,
    instructions,
    newest,
    opening,
    parts,
    refuse_unsupported,
)

PNG = "data:image/png;base64,iVBORw0K"


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(value: Any) -> dict[str, Any]:
    return {"type": "text", "text": value}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def file(**members: Any) -> dict[str, Any]:
    return {"type": "file", "file": members}


HISTORY = [
    {"role": "system", "content": "Be brief."},
    user("first"),
    {"role": "assistant", "content": "said"},
    {"role": "tool", "content": "42"},
    {"role": "developer", "content": [text("No lists."), text("No tables.")]},
    {"role": "assistant", "content": None, "tool_calls": []},
    user(" now "),
]


# the newest message


def test_only_the_last_message_of_the_user_travels_and_unchanged() -> None:
    assert newest(HISTORY) == Message(" now ")
    assert newest([user("a"), user('"b"\n')]) == Message('"b"\n')


def test_what_follows_the_user_s_message_does_not_hide_it() -> None:
    assert newest([user("a"), {"role": "assistant", "content": "b"}, {"role": "tool", "content": "c"}]) == Message("a")


def test_text_parts_are_joined_by_newline() -> None:
    assert newest([user([text("a"), text(""), text("b ")])]) == Message("a\n\nb ")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [user(None)],
        [user([])],
        [user("")],
        [user(" \n")],
        [user(5)],
        [{"role": "user"}],
        [user("a"), user(None)],
        [user([text(None), {"type": "audio"}, "a", None])],
        [user([image("gs://bucket/x")])],
        [user([file(file_id="file-1")])],
        ["hello", None, 7],
    ],
)
def test_without_text_and_file_there_is_nothing_to_send(messages: list[Any]) -> None:
    with pytest.raises(ProxyError) as refused:
        newest(messages)
    assert (refused.value.status, refused.value.param) == (400, "messages")
    assert refused.value.message == "无法从 messages 提取文本"


# files and addresses


@pytest.mark.parametrize("url", ["http://h/a.png", "https://h/a.png?x=1", "HTTPS://h/a"])
def test_an_address_is_a_line_of_the_text_and_never_a_file(url: str) -> None:
    assert newest([user([text("look"), image(url), text("well?")])]) == Message(f"look\n{url}\nwell?")
    assert newest([user([image(url)])]) == Message(url)
    assert newest([user([{"type": "image_url", "image_url": url}])]) == Message(url)
    assert newest([user([file(url=url)])]) == Message(url)


def test_data_urls_travel_as_files_whole_and_in_order() -> None:
    pdf = "DATA:application/pdf;base64,JVBERi0="
    message = newest([user([image(PNG), text("a"), file(file_data=pdf, filename="my report.pdf"), file(url=PNG)])])
    files = (File("file000.png", PNG), File("my report.pdf", pdf), File("file001.png", PNG))
    assert message == Message("a", files)


def test_a_file_alone_is_enough() -> None:
    assert newest([user([image(PNG)])]) == Message("", (File("file000.png", PNG),))


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [
        ("image/jpeg", "jpg"),
        ("image/png", "png"),
        ("image/gif", "gif"),
        ("image/webp", "webp"),
        ("application/pdf", "pdf"),
        ("text/plain", "txt"),
        ("text/csv", "csv"),
        ("application/json", "json"),
        ("application/xml", "xml"),
        ("text/xml", "xml"),
        ("IMAGE/PNG", "png"),
        ("text/markdown", "markdown"),
        ("image/svg+xml", "svg+xml"),
        ("", "bin"),
        ("png", "bin"),
        ("a/../b", "bin"),
        ("a/..", "bin"),
        ("a/" + "x" * 40, "bin"),
    ],
)
def test_a_file_without_a_name_is_called_by_its_type(media_type: str, extension: str) -> None:
    message = newest([user([image(f"data:{media_type};base64,AAAA")])])
    assert [each.name for each in message.files] == [f"file000.{extension}"]


def test_a_data_url_may_have_parameters_or_none() -> None:
    message = newest([user([image("data:text/plain;charset=utf-8,hi"), image("data:text/csv,a"), image("data:,x")])])
    assert [each.name for each in message.files] == ["file000.txt", "file001.csv", "file002.bin"]


def test_files_of_earlier_messages_stay_behind() -> None:
    assert newest([user([image(PNG)]), user("now")]) == Message("now")
    assert opening([user([image(PNG)]), user("now")], transcript=True) == Message("now")


def test_the_parts_of_a_message_keep_their_order() -> None:
    message = user([text("a"), image("https://h/i"), file(file_data=PNG, name="n")])
    assert parts(message) == (Text("a"), Attachment(True, "https://h/i"), Attachment(False, PNG, "n"))
    assert parts("no message") == ()


def test_contents_of_files_are_not_shown_in_a_repr() -> None:
    assert "iVBORw0K" not in repr(newest([user([image(PNG)])]))
    assert "iVBORw0K" not in repr(parts(user([image(PNG)])))


# a conversation made for the request


def test_instructions_stand_before_the_first_text_with_an_empty_line_between() -> None:
    assert opening(HISTORY) == Message("Be brief.\nNo lists.\nNo tables.\n\n now ")
    assert opening([user("a")]) == Message("a")


def test_a_transcript_tells_who_said_what() -> None:
    expected = "Be brief.\nNo lists.\nNo tables.\n\nuser: first\n\nassistant: said\n\n now "
    assert opening(HISTORY, transcript=True) == Message(expected)


def test_a_transcript_ends_where_the_newest_message_stands() -> None:
    messages = [user("a"), user("b"), {"role": "assistant", "content": "c"}]
    assert opening(messages, transcript=True) == Message("user: a\n\nb")


def test_instructions_alone_do_not_make_a_message() -> None:
    with pytest.raises(ProxyError):
        opening([{"role": "system", "content": "Be brief."}])
    assert instructions([{"role": "system", "content": ""}, None, user("x")]) == ""


# what such an upstream cannot do


@pytest.mark.parametrize("count", [2, 128, 1.5])
def test_more_than_one_choice_is_refused(count: float) -> None:
    with pytest.raises(ProxyError) as refused:
        refuse_unsupported({"n": count})
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unsupported_parameter", "n")


@pytest.mark.parametrize("body", [{}, {"n": 1}, {"n": None}, {"n": True}, {"n": "2"}, {"temperature": 2, "tools": []}])
def test_everything_else_is_accepted_without_effect(body: dict[str, Any]) -> None:
    refuse_unsupported(body)
