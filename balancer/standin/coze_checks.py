"""What a chat and an upload must look like: as strict as Coze is documented to be, in Coze's codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from balancer.standin import coze_answers as answers
from balancer.standin.answers import Json

MOST_MESSAGES = 100
_MEMBERS = frozenset({
    "bot_id", "user_id", "stream", "auto_save_history", "additional_messages", "custom_variables", "meta_data", "parameters",
    "enable_card",
})  # fmt: skip
_OF_A_MESSAGE = frozenset({
    "role", "type", "content", "content_type", "meta_data", "id", "conversation_id", "section_id", "bot_id", "chat_id",
    "created_at", "updated_at", "reasoning_content",
})  # fmt: skip
_TYPES = {"user": ("question",), "assistant": ("answer", "function_call", "tool_output", "tool_response")}
_BOUNDARY = re.compile(r'multipart/form-data; *boundary=("?)([^";,]{1,70})\1\Z', re.IGNORECASE)
_FILE = re.compile(rb'(?im)^content-disposition: *form-data; *name="file"; *filename="([^"\r\n]+)" *\r?$')


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat as it was asked for."""

    bot: str
    user: str
    stream: bool
    saved: bool
    messages: list[Json]

    @property
    def text(self) -> str:
        """What the last message says."""
        content = self.messages[-1]["content"]
        if self.messages[-1]["content_type"] == "text":
            return str(content)
        return "".join(part["text"] for part in orjson.loads(content) if part["type"] == "text")


def asked(body: Json, owns: Callable[[str], bool]) -> Asked:
    """Raises Refusal. `owns`: whether the caller's account has a file of that id."""
    if set(body) - _MEMBERS:
        raise answers.refuse(4000, f"unknown: {', '.join(sorted(set(body) - _MEMBERS))}")
    bot, user, messages = body.get("bot_id"), body.get("user_id"), body.get("additional_messages")
    stream, saved = body.get("stream", False), body.get("auto_save_history", True)
    texts = all(isinstance(each, str) and each for each in (bot, user))
    if not texts or not isinstance(stream, bool) or not isinstance(saved, bool):
        raise answers.refuse(4000)
    if not stream and not saved:
        raise answers.refuse(4007)
    if not isinstance(messages, list) or not messages or not all(isinstance(each, dict) for each in messages):
        raise answers.refuse(4000)
    if len(messages) > MOST_MESSAGES:
        raise answers.refuse(4004)
    for message in messages:
        _check_message(message, owns)
    if messages[-1]["role"] != "user":
        raise answers.refuse(4000, "the last message is no query")
    return Asked(str(bot), str(user), stream, saved, messages)


def _check_message(message: Json, owns: Callable[[str], bool]) -> None:
    role, kind, content = message.get("role"), message.get("type"), message.get("content")
    if set(message) - _OF_A_MESSAGE or role not in _TYPES or kind not in _TYPES[role]:
        raise answers.refuse(4000)
    if not isinstance(content, str) or not content:
        raise answers.refuse(4005)
    match message.get("content_type"):
        case "text":
            pass
        case "object_string" if role == "user":
            if not _is_object_string(content, owns):
                raise answers.refuse(4005)
        case _:
            raise answers.refuse(4000)


def _is_object_string(content: str, owns: Callable[[str], bool]) -> bool:
    try:
        parts = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parts, list) and bool(parts) and all(_is_part(part, owns) for part in parts)


def _is_part(part: Any, owns: Callable[[str], bool]) -> bool:
    given = {name: value for name, value in part.items() if value is not None} if isinstance(part, dict) else {}
    kind = given.pop("type", None)
    if not all(isinstance(value, str) and value for value in given.values()):
        return False
    if kind == "text":
        return set(given) == {"text"}
    if kind not in ("image", "file", "audio") or set(given) - {"file_id", "file_url"} or not given:
        return False
    address = given.get("file_url")
    return (address is None or address.startswith(("http://", "https://"))) and (
        "file_id" not in given or owns(given["file_id"])
    )


def uploaded(body: bytes, content_type: str) -> tuple[str, bytes]:
    """Name and content of the one file in a form. Raises Refusal."""
    boundary = _BOUNDARY.match(content_type)
    if boundary is None:
        raise answers.refuse(4300)
    files = list(_files(body, boundary[2].encode()))
    if len(files) != 1:
        raise answers.refuse(4301 if files else 4300)
    if not files[0][1]:
        raise answers.refuse(4300)
    return files[0]


def _files(body: bytes, boundary: bytes) -> Iterator[tuple[str, bytes]]:
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary)
    if first or not parts or parts.pop().strip(b"\r\n") != b"--":
        raise answers.refuse(4000, "not a form")
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        found = _FILE.search(head)
        if not head.startswith(b"\r\n") or found is None:
            raise answers.refuse(4000, "a part that is not the file")
        yield found[1].decode("utf-8", "replace"), content
