"""What of an OpenAI chat request, or of a stored conversation, travels to Coze as `additional_messages`.

    role        type       content_type     content
    user        question   text             the texts, a line each
    user        question   object_string    a JSON list of {"type": "text", "text"} and {"type": "image" | "file", "file_url" or
                                            "file_id"}, where something is attached
    assistant   answer     text             the same as for users

At most 100 of them, the last one the query. In a new conversation all that was said goes along, the newest hundred, with the
instructions before the first text of a user; later only the newest message of the user does.

An address stays an address. A `data:` URL is a file that must be uploaded first, with the key that gets the chat: `uploads`
says which, `rendered` takes the ids that came of it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from balancer.errors import ProxyError
from balancer.wire import chat_messages
from balancer.wire.chat_messages import Attachment, File, Part, Text, instructions, parts
from balancer.wire.loose_json import dump

MOST = 100
"""Messages that one chat takes."""

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_DATA = re.compile(r"data:[^;,]{0,255}[;,]", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")
_BASE64 = re.compile(r";[ ]*base64\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message. Parts that Coze cannot take are not in it; `files` are those of its parts that must be uploaded."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...] = field(repr=False)
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that must be uploaded. `url`: the `data:` URL that it came as."""

    url: str = field(repr=False)
    name: str
    media_type: str
    data: bytes = field(repr=False)


def said(role: Literal["user", "assistant"], text: str) -> Entry:
    """A message that is text, as stored ones are."""
    return Entry(role, (Text(text),))


def newest(messages: Sequence[Any]) -> tuple[Entry, ...]:
    """The last message of the user alone. Raises ProxyError 400 if it has neither text nor file."""
    return conversation(messages)[-1:]


def opening(messages: Sequence[Any]) -> tuple[Entry, ...]:
    """All that was said up to the last message of the user, for a new conversation. Raises ProxyError 400 as `newest`."""
    return _instructed(conversation(messages)[-MOST:], instructions(messages))


def conversation(messages: Sequence[Any]) -> tuple[Entry, ...]:
    """What users and assistants said that says something, up to the last message of a user. Raises ProxyError 400 as `newest`."""
    entries = [_entry(message) for message in messages]
    last = next((place for place in reversed(range(len(entries))) if _is_of_user(entries[place])), None)
    query = entries[last] if last is not None else None
    if last is None or query is None or not _says_something(query):
        raise ProxyError(400, "missing_required_parameter", "无法从 messages 提取文本", param="messages")
    return tuple(entry for entry in entries[: last + 1] if entry is not None and _says_something(entry))


def uploads(entries: Iterable[Entry]) -> tuple[Upload, ...]:
    """The files that must be uploaded, each once. Raises ProxyError 400 for a `data:` URL that holds nothing."""
    found: dict[str, Upload] = {}
    for file in (file for entry in entries for file in entry.files):
        if file.data not in found:
            found[file.data] = _opened(file)
    return tuple(found.values())


def rendered(entries: Sequence[Entry], ids: Mapping[str, str]) -> list[dict[str, str]]:
    """The messages as they travel, the newest MOST. `ids`: the id of each uploaded file by its `data:` URL."""
    return [_rendered(entry, ids) for entry in entries[-MOST:]]


def _rendered(entry: Entry, ids: Mapping[str, str]) -> dict[str, str]:
    head = {"role": entry.role, "type": "question" if entry.role == "user" else "answer"}
    attached = any(isinstance(part, Attachment) for part in entry.parts)
    if not attached:
        text = "\n".join(part.text for part in entry.parts if isinstance(part, Text))
        return head | {"content": text, "content_type": "text"}
    content = dump([_object(part, ids) for part in entry.parts]).decode()
    return head | {"content": content, "content_type": "object_string"}


def _object(part: Part, ids: Mapping[str, str]) -> dict[str, str]:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Attachment(image=image, url=url):
            place = {"file_id": ids[url]} if _DATA.match(url) else {"file_url": url}
            return {"type": "image" if image else "file"} | place


def _entry(message: Any) -> Entry | None:
    """A message of somebody who speaks; None for any other."""
    role = message.get("role") if isinstance(message, dict) else None
    if role == "user":
        taken = tuple(part for part in parts(message) if _travels(part))
        held = any(isinstance(part, Attachment) and _DATA.match(part.url) for part in taken)
        return Entry("user", taken, chat_messages.newest([message]).files if held else ())
    if role == "assistant":
        return Entry("assistant", tuple(part for part in parts(message) if isinstance(part, Text)))
    return None


def _is_of_user(entry: Entry | None) -> bool:
    return entry is not None and entry.role == "user"


def _travels(part: Part) -> bool:
    return isinstance(part, Text) or bool(_ADDRESS.match(part.url) or _DATA.match(part.url))


def _says_something(entry: Entry) -> bool:
    return any(isinstance(part, Attachment) or part.text.strip() for part in entry.parts)


def _instructed(entries: Sequence[Entry], told: str) -> tuple[Entry, ...]:
    """The same with the instructions before the first text of a user."""
    return tuple(_with(entries, told)) if told else tuple(entries)


def _with(entries: Sequence[Entry], told: str) -> Iterator[Entry]:
    first = next(place for place, entry in enumerate(entries) if entry.role == "user")
    for place, entry in enumerate(entries):
        yield _led(entry, told) if place == first else entry


def _led(entry: Entry, told: str) -> Entry:
    place = next((place for place, part in enumerate(entry.parts) if isinstance(part, Text)), None)
    if place is None:
        return dataclasses.replace(entry, parts=(Text(told), *entry.parts))
    part = entry.parts[place]
    assert isinstance(part, Text)
    led = (*entry.parts[:place], Text(f"{told}\n\n{part.text}"), *entry.parts[place + 1 :])
    return dataclasses.replace(entry, parts=led)


def _opened(file: File) -> Upload:
    """A `data:` URL (RFC 2397) taken apart."""
    head, comma, content = file.data[5:].partition(",")
    media_type = head.partition(";")[0].strip() or "text/plain"
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = "application/octet-stream"
    try:
        data = unquote_to_bytes(content)
        if _BASE64.search(head):
            data = b"".join(data.split())
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not comma or not data:
        raise ProxyError(400, "invalid_body", "A data: URL in messages holds no file.", param="messages")
    return Upload(file.data, file.name, media_type, data)
