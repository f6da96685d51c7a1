"""What of an OpenAI chat request travels to an upstream that keeps the conversation itself: the newest message of the user.

https://platform.openai.com/docs/api-reference/chat/create: `content` is a text or a list of parts. In a conversation that is
made for the request what came before goes into its first message: instructions, and a transcript if that is wanted.

Nothing is fetched here: an address in a part becomes a line of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from balancer.errors import ProxyError

_EXTENSIONS = {
    "image/jpeg": "jpg",
    "image/jpg": "jpg",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "application/pdf": "pdf",
    "text/plain": "txt",
    "text/csv": "csv",
    "application/json": "json",
    "application/xml": "xml",
    "text/xml": "xml",
}
_DATA_URL = re.compile(r"data:([^;,]{0,255})[;,]", re.IGNORECASE)
_SUBTYPE = re.compile(r"[^/]+/([a-z0-9][a-z0-9.+-]{0,31})")
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_INSTRUCTIONS = ("system", "developer")
_SPOKEN = ("user", "assistant")


@dataclass(frozen=True, slots=True)
class Text:
    """A part that is text."""

    text: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part that is an image or another file: `url` is its address, or a `data:` URL with the thing itself."""

    image: bool
    url: str = field(repr=False)
    name: str | None = None


Part = Text | Attachment


@dataclass(frozen=True, slots=True)
class File:
    """A file that travels: `data` is a whole `data:` URL."""

    name: str
    data: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent: one text, and files beside it."""

    text: str
    files: tuple[File, ...] = ()


def newest(messages: Sequence[Any]) -> Message:
    """The last message of the user, whatever follows it. Raises ProxyError 400 if it has neither text nor file."""
    place = _last_of_user(messages)
    content = parts(messages[place]) if place is not None else ()
    message = Message(_text(content), tuple(_files(content)))
    if not message.text.strip() and not message.files:
        raise ProxyError(400, "missing_required_parameter", "无法从 messages 提取文本", param="messages")
    return message


def opening(messages: Sequence[Any], *, transcript: bool = False) -> Message:
    """The same for a conversation that is made for this request: after the instructions and, if wanted, all that was said."""
    message = newest(messages)
    before = [*_paragraphs(messages, transcript), message.text]
    return Message("\n\n".join(before), message.files)


def instructions(messages: Sequence[Any]) -> str:
    """The texts of all `system` and `developer` messages, a line each; "" if there are none."""
    texts = (_text(parts(each)) for each in messages if _role(each) in _INSTRUCTIONS)
    return "\n".join(text for text in texts if text)


def parts(message: Any) -> tuple[Part, ...]:
    """The content of one message, part by part; what has another form than these is left out."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str):
        return (Text(content),)
    if not isinstance(content, list):
        return ()
    return tuple(part for each in content if (part := _part(each)) is not None)


def refuse_unsupported(body: dict[str, Any]) -> None:
    """Raises ProxyError 400 for what such an upstream cannot do and a caller would miss: more than one choice."""
    count = body.get("n")
    if isinstance(count, int | float) and not isinstance(count, bool) and count > 1:
        raise ProxyError(400, "unsupported_parameter", "n must be 1: this upstream gives one answer.", param="n")


def _paragraphs(messages: Sequence[Any], transcript: bool) -> Iterator[str]:
    if told := instructions(messages):
        yield told
    if transcript:
        for each in messages[: _last_of_user(messages)]:
            role, text = _role(each), _text(parts(each))
            if role in _SPOKEN and text:
                yield f"{role}: {text}"


def _last_of_user(messages: Sequence[Any]) -> int | None:
    return next((place for place in reversed(range(len(messages))) if _role(messages[place]) == "user"), None)


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _part(value: Any) -> Part | None:
    if not isinstance(value, dict):
        return None
    match value.get("type"):
        case "text":
            text = value.get("text")
            return Text(text) if isinstance(text, str) else None
        case "image_url":
            return _attachment(value.get("image_url"), image=True)
        case "file":
            return _attachment(value.get("file"), image=False)
        case _:
            return None


def _attachment(value: Any, *, image: bool) -> Attachment | None:
    """`{"url", "file_data", "filename" or "name"}`; older clients write the address alone."""
    inner = {"url": value} if isinstance(value, str) else value
    if not isinstance(inner, dict):
        return None
    urls = (inner.get("url"), None if image else inner.get("file_data"))
    names = (inner.get("filename"), inner.get("name"))
    url = next((each for each in urls if isinstance(each, str) and each), None)
    name = next((each for each in names if isinstance(each, str) and each.strip()), None)
    return Attachment(image, url, name) if url is not None else None


def _text(content: Sequence[Part]) -> str:
    return "\n".join(_lines(content))


def _lines(content: Sequence[Part]) -> Iterator[str]:
    for part in content:
        match part:
            case Text(text=text):
                yield text
            case Attachment(url=url) if _ADDRESS.match(url):
                yield url
            case Attachment():
                pass


def _files(content: Sequence[Part]) -> Iterator[File]:
    unnamed = 0
    for part in content:
        if not isinstance(part, Attachment) or (found := _DATA_URL.match(part.url)) is None:
            continue
        name = part.name
        if name is None:
            name = f"file{unnamed:03d}.{_extension(found[1])}"
            unnamed += 1
        yield File(name, part.url)


def _extension(media_type: str) -> str:
    media_type = media_type.strip().lower()
    subtype = _SUBTYPE.fullmatch(media_type)
    return _EXTENSIONS.get(media_type) or (subtype[1] if subtype else "bin")
