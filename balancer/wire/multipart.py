"""The `model` field of a multipart/form-data body, found in its bytes (RFC 7578, RFC 2046 section 5.1).

Read strictly: a lenient upstream must never find another model in a body than the one that was checked here. So whatever
could be read in two ways is refused: text before the first delimiter, bare line feeds, folded fields, two fields of that
name, encodings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from balancer.errors import ProxyError

MOST_PARTS = 1024
LONGEST_HEAD = 16 << 10
"""Bytes of one part's header fields."""
LONGEST_VALUE = 1024
"""Bytes of a model's name."""

_BOUNDARY = re.compile(r""";[ \t]*boundary=(?:"([^"\\\r\n]{1,70})"|([^\s";,]{1,70}))[ \t]*(?:;|$)""", re.IGNORECASE)
_DISPOSITION = re.compile(rb"(?i:content-disposition):[ \t]*(?i:form-data)[ \t]*((?:;.*)?)")
_PARAMETER = re.compile(rb';[ \t]*([A-Za-z0-9_*-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s";]+)[ \t]*')
_PLAIN = frozenset({b"7bit", b"8bit", b"binary"})


@dataclass(frozen=True, slots=True)
class Field:
    """A form field's value, and where its bytes are in the body."""

    value: str
    start: int
    end: int


def is_form(content_type: str | None) -> bool:
    """Whether a content type announces a form whose fields `model_field` reads."""
    return (content_type or "").partition(";")[0].strip().lower() == "multipart/form-data"


def model_field(body: bytes, content_type: str, complete: bool = True) -> Field | None:
    """The field named `model`; None where the body, or the first part of it that is here, has none.

    With `complete` False a field that the cut goes through is not found. Raises ProxyError 400 invalid_body.
    """
    boundary = _BOUNDARY.search(content_type)
    if boundary is None or content_type.lower().count("boundary=") > 1:
        raise _invalid("its content type names no boundary, or two")
    delimiter = b"\r\n--" + (boundary[1] or boundary[2]).encode("utf-8", "surrogateescape")
    at = _begin(body, delimiter, complete)
    found: Field | None = None
    for _ in range(MOST_PARTS):
        if at is None or body.startswith(b"--", at):
            return found
        head_end = body.find(b"\r\n\r\n", at, at + LONGEST_HEAD)
        if head_end < 0:
            if not complete and len(body) < at + LONGEST_HEAD:
                return found
            raise _invalid("a part has no head, or a very long one")
        if body.startswith(delimiter[2:], head_end + 4):
            raise _invalid("a part has no body")
        end = _part_end(body, delimiter, head_end + 4)
        name, encoding = _head(body[at:head_end])
        if name == b"model" and end >= 0:
            if found is not None or encoding not in _PLAIN:
                raise _invalid("its field model stands twice or is encoded")
            found = _field(body, head_end + 4, end)
        if end < 0 and complete:
            raise _invalid("it has no end")
        at = _behind(body, end + len(delimiter), complete) if end >= 0 else None
    raise _invalid(f"it has more than {MOST_PARTS} parts")


def _part_end(body: bytes, delimiter: bytes, start: int) -> int:
    """Where the part that begins at `start` ends; -1 where that is not here."""
    line_feed = body.find(delimiter[1:], start)
    if line_feed >= 0 and (line_feed == start or body[line_feed - 1] != 0x0D):
        raise _invalid("a delimiter stands behind a bare line feed")
    return line_feed - 1 if line_feed >= 0 else -1


def _begin(body: bytes, delimiter: bytes, complete: bool) -> int | None:
    """Where the first part begins; line ends before its delimiter do not count."""
    start = len(body) - len(body.lstrip(b"\r\n"))
    if not body.startswith(delimiter[2:], start):
        raise _invalid("it does not begin with its delimiter")
    return _behind(body, start + len(delimiter) - 2, complete)


def _behind(body: bytes, place: int, complete: bool) -> int | None:
    """Where what a delimiter opens begins: the next part, or the closing "--"; None behind the cut."""
    if body.startswith(b"--", place):
        return place
    start = place + len(body[place : place + 256]) - len(body[place : place + 256].lstrip(b" \t"))
    if body.startswith(b"\r\n", start):
        return start + 2
    if not complete and len(body) < start + 2:
        return None
    raise _invalid("a delimiter is followed by text")


def _head(head: bytes) -> tuple[bytes, bytes]:
    """A part's name, and its transfer encoding."""
    name, encoding = None, b"binary"
    for line in head.split(b"\r\n"):
        if line.startswith((b" ", b"\t")) or b"\n" in line or b"\r" in line or b":" not in line:
            raise _invalid("a part's head is malformed")
        label, _, value = line.partition(b":")
        match label.strip().lower():
            case b"content-disposition":
                if name is not None:
                    raise _invalid("a part has two names")
                name = _name(line)
            case b"content-transfer-encoding":
                encoding = value.strip().lower()
            case _:
                pass
    if name is None:
        raise _invalid("a part has no name")
    return name, encoding


def _name(line: bytes) -> bytes:
    disposition = _DISPOSITION.fullmatch(line)
    if disposition is None:
        raise _invalid("a part is no form field")
    rest = disposition[1].rstrip(b"; \t")
    names = []
    at = 0
    while at < len(rest):
        parameter = _PARAMETER.match(rest, at)
        if parameter is None:
            raise _invalid("a part's name is malformed")
        label = parameter[1].lower()
        if label == b"name*":
            raise _invalid("a part's name is encoded")
        if label == b"name":
            names.append(parameter[2])
        at = parameter.end()
    if len(names) != 1:
        raise _invalid("a part has no name, or two")
    name = bytes(names[0])
    return re.sub(rb"\\(.)", rb"\1", name[1:-1]) if name.startswith(b'"') else name


def _field(body: bytes, start: int, end: int) -> Field:
    if end - start > LONGEST_VALUE:
        raise _invalid("its field model is very long")
    try:
        return Field(body[start:end].decode(), start, end)
    except UnicodeDecodeError:
        raise _invalid("its field model is not UTF-8") from None


def _invalid(why: str) -> ProxyError:
    return ProxyError(400, "invalid_body", f"The multipart body cannot be read: {why}.")
