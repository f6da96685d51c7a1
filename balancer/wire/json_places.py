"""Where things stand in the bytes of a JSON text, without making objects of it (RFC 8259).

What makes this quick is what JSON promises: outside strings there is no backslash, so a quote behind a backslash begins
nothing; and `"name"` with a colon behind it is a member's name, at whatever depth. Long strings are passed over by searching
for quotes, which runs at the speed of memory. How deep a place is follows from the brackets in front of it, once the strings
are cut out; that too takes a handful of passes in C and no step per token.
"""

from __future__ import annotations

import re

DEEPEST = 512
"""Levels of nesting beyond which a text counts as malformed."""
BLANKS = b" \t\n\r"

_BLANK = re.compile(rb"[ \t\n\r]*+")
_SCALAR = re.compile(rb"[-+.0-9A-Za-z]++")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]|"', re.DOTALL)
_ESCAPES = re.compile(rb"\\*+.?", re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 1 << 16
_MOST_TOKENS = 10_000


class Malformed(Exception):
    """A text is no JSON, or nested too deep."""


def blank_end(text: bytes, place: int) -> int:
    """Where the blanks that may begin at `place` end."""
    found = _BLANK.match(text, place)
    assert found is not None
    return found.end()


def value_end(text: bytes, start: int) -> int | None:
    """The end of the value that begins at `start`; None where the text ends first, or after 10 000 brackets and strings."""
    first = text[start : start + 1]
    if first == b'"':
        return _string_end(text, start)
    if first in (b"{", b"["):
        return _container_end(text, start)
    scalar = _SCALAR.match(text, start)
    return None if scalar is None or scalar.end() == len(text) else scalar.end()


def _string_end(text: bytes, start: int) -> int | None:
    at = start + 1
    while (quote := text.find(b'"', at)) >= 0:
        if text[quote - 1] != 0x5C:
            return quote + 1
        before = text[at:quote]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        at = quote + 1
    return None


def _container_end(text: bytes, start: int) -> int | None:
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(text, start)):
        match text[token.start()]:
            case 0x7B | 0x5B:
                depth += 1
            case 0x7D | 0x5D:
                depth -= 1
                if depth == 0:
                    return token.end()
            case _ if token.end() - token.start() == 1:
                return None  # a string without its end
        if count == _MOST_TOKENS:
            break
    return None


def members(text: bytes, start: int) -> list[tuple[bytes, int, int, int]] | None:
    """The members of the object that begins at `start`: raw name, and where name, value and end of the value are.

    None where it has no end, is malformed, or is larger than `value_end` looks.
    """
    found: list[tuple[bytes, int, int, int]] = []
    at = blank_end(text, start + 1)
    while text[at : at + 1] == b'"' and len(found) < _MOST_TOKENS:
        name_end = _string_end(text, at)
        colon = blank_end(text, name_end) if name_end is not None else len(text)
        value = blank_end(text, colon + 1)
        end = value_end(text, value) if text[colon : colon + 1] == b":" else None
        if name_end is None or end is None:
            return None
        found.append((text[at + 1 : name_end - 1], at, value, end))
        at = blank_end(text, end)
        if text[at : at + 1] != b",":
            break
        at = blank_end(text, at + 1)
    return found if text[at : at + 1] == b"}" else None


class Outline:
    """How deep places of a text are nested, asked in rising order. Takes no more memory than a piece of the text does."""

    __slots__ = ("_at", "_inside", "_open", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0
        self._inside = 0
        self._open = b""

    def depth(self, place: int) -> int:
        """Brackets open at `place`. Raises Malformed, also where the place is within a string."""
        while self._at < place:
            end = min(self._at + _PIECE, place)
            if end < place and self._text[end - 1] == 0x5C:  # an escape is never cut in two
                escapes = _ESCAPES.match(self._text, end)
                end = min(escapes.end() if escapes is not None else end, place)
            self._pass(self._text[self._at : end])
            self._at = end
        if self._inside:
            raise Malformed
        return len(self._open)

    def _pass(self, piece: bytes) -> None:
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b"".join(parts[self._inside :: 2])
        self._inside ^= (len(parts) - 1) & 1
        self._open = _unmatched(self._open + outside.translate(None, _NOT_BRACKETS))


def _unmatched(brackets: bytes) -> bytes:
    """What is left when pairs are taken out, innermost first: brackets still open. Raises Malformed for anything else."""
    for _ in range(DEEPEST + 1):
        fewer = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if len(fewer) == len(brackets):
            if len(fewer) > DEEPEST or b"]" in fewer or b"}" in fewer:
                break
            return fewer
        brackets = fewer
    raise Malformed
