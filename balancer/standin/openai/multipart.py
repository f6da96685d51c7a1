"""multipart/form-data (RFC 7578) taken apart as it comes, at constant memory: fields as text, files as blobs."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from balancer.standin.answers import Json
from balancer.standin.openai import answers
from balancer.standin.openai.ask import Ask, mentions
from balancer.standin.shelf import Blob

_FIELDS_LIMIT = 8 << 20
"""Bytes of all fields that are no files."""
_HEAD_LIMIT = 16 << 10
_BOUNDARY = re.compile(r'(?i)boundary=(?:"([^"]+)"|([^;\s]+))')
_PARAM = re.compile(r'(?i)[;\s](name|filename)="((?:[^"\\]|\\.)*)"')


@dataclass(slots=True)
class Sent:
    """A file of a form."""

    name: str
    kind: str
    blob: Blob


@dataclass(slots=True)
class Form:
    """Fields and files by name; a name such as `image[]` counts without its brackets, `a[b]` as it is."""

    fields: Json = field(default_factory=dict)
    files: dict[str, list[Sent]] = field(default_factory=dict)

    def file(self, name: str) -> Sent:
        """The first of that name; 400 if there is none."""
        if not self.files.get(name):
            raise answers.missing(name)
        return self.files[name][0]


@dataclass(slots=True)
class _Part:
    name: str
    filename: str | None
    kind: str


async def form(ask: Ask) -> Form:
    """The whole form; what it holds is gone again if the body is no form or its client leaves half-way."""
    match = _BOUNDARY.search(ask.arrival.header("content-type") or "")
    if not ask.multipart or match is None:
        raise answers.refuse(400, "Could not parse multipart form: expected content-type multipart/form-data.")
    found = Form()
    try:
        await _fill(ask, found, (match[1] or match[2]).encode())
        for name, param in mentions(found.fields):
            ask.require_named(name, param)
    except BaseException:
        discard(ask, found)
        raise
    return found


def discard(ask: Ask, found: Form) -> None:
    """Let go of the files that nobody took."""
    for sent in (each for several in found.files.values() for each in several):
        ask.world.shelf.discard(sent.blob)


async def _fill(ask: Ask, found: Form, boundary: bytes) -> None:
    part = _Part("", None, "")
    text, size = bytearray(), 0
    blob: Blob | None = None
    async with aclosing(_events(ask.chunks(), boundary)) as events:
        async for event in events:
            if isinstance(event, _Part):
                _add_field(found, part, text)
                part, text, blob = event, bytearray(), None
                if part.filename is not None:
                    blob = ask.world.shelf.blob()
                    found.files.setdefault(_plain(part.name), []).append(Sent(part.filename, part.kind, blob))
            elif blob is not None:
                await blob.write(event)
            else:
                text += event
                if (size := size + len(event)) > _FIELDS_LIMIT:
                    raise answers.refuse(413, "Maximum content size limit exceeded.")
    _add_field(found, part, text)


def _add_field(found: Form, part: _Part, text: bytearray) -> None:
    if part.name and part.filename is None:
        value = text.decode("utf-8", "replace")
        if part.name.endswith("[]"):
            found.fields.setdefault(_plain(part.name), []).append(value)
        else:
            found.fields[part.name] = value


def _plain(name: str) -> str:
    return name.removesuffix("[]")


async def _events(chunks: AsyncGenerator[bytes, None], boundary: bytes) -> AsyncGenerator[_Part | bytes, None]:
    """Each part's head, then its bytes in pieces. 400 where the body ends before its closing boundary."""
    mark = b"\r\n--" + boundary
    buffer = bytearray(b"\r\n")
    inside = False
    async with aclosing(_then_end(chunks)) as pieces:
        async for piece in pieces:
            if piece is None:
                raise answers.refuse(400, "Could not parse multipart form: unexpected end of the body.")
            buffer += piece
            while True:
                place = buffer.find(mark)
                if place < 0:
                    keep = len(mark) - 1
                    if inside and len(buffer) > keep:
                        yield bytes(buffer[:-keep])
                    del buffer[:-keep]
                    break
                head = buffer.find(b"\r\n\r\n", place + len(mark))
                closing = bytes(buffer[place + len(mark) : place + len(mark) + 2])
                if closing != b"--" and head < 0:
                    if len(buffer) - place > _HEAD_LIMIT:
                        raise answers.refuse(400, "Could not parse multipart form: the head of a part is too long.")
                    if inside and place:
                        yield bytes(buffer[:place])
                    del buffer[:place]
                    break
                if inside and place:
                    yield bytes(buffer[:place])
                if closing == b"--":
                    return
                yield _part(bytes(buffer[place + len(mark) : head]))
                inside = True
                del buffer[: head + 4]


async def _then_end(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes | None, None]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    yield None


def _part(head: bytes) -> _Part:
    name, filename, kind = "", None, "application/octet-stream"
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-type":
            kind = value.strip()
        elif key.strip().lower() == "content-disposition":
            found = {each[1].lower(): each[2] for each in _PARAM.finditer(value)}
            name, filename = found.get("name", ""), found.get("filename")
    return _Part(name, filename, kind)
