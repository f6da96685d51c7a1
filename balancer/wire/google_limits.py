"""The output limit of a generateContent request, lowered or set in its bytes: `generationConfig.maxOutputTokens`.

https://ai.google.dev/api/generate-content#generationconfig. The body is not made anew; what is given back are splices of it.

Google reads more than JSON (RFC 8259): names in `'` or without quotes, and a member given twice. A limit that the upstream would
read and we would not is none, so this reads all of that too, and every member of the name counts. Both spellings of protocol
buffers do, and numbers in quotes. What is wrong in any other way is the upstream's to refuse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from balancer.model import Edit

MOST_PARTS = 1 << 18
"""Members, brackets and strings after which a body is no request of anybody's; reading them takes a fifth of a second."""

_CONFIGS = ("generationConfig", "generation_config")
_LIMITS = ("maxOutputTokens", "max_output_tokens")

_TEXT = rb'"(?:[^"\\]++|\\.)*+"' + rb"|'(?:[^'\\]++|\\.)*+'"
_NAME = re.compile(rb"[\s,]*+(" + _TEXT + rb"|[\w$]++)\s*+:\s*+", re.DOTALL)
_WORD = re.compile(rb"[^\s,\"'{}\[\]]++")
_PART = re.compile(rb"[\"'{}\[\]]")
_ESCAPED_TEXT = re.compile(_TEXT, re.DOTALL)
_BEFORE = re.compile(rb"(?:\xef\xbb\xbf)?\s*+")
_NUMBER = re.compile(rb"""(["']?)([-+]?[0-9][-+.0-9eE]*+)\1""")
_QUOTES = b"\"'"


class TooLarge(Exception):
    """The body has more than MOST_PARTS members, brackets and strings."""


def edits(body: bytes, most: int) -> list[Edit]:
    """The splices after which `body` asks for `most` tokens of output, or for fewer where it did; in order. Raises TooLarge."""
    before = _BEFORE.match(body)
    start = before.end() if before is not None else 0
    if body[start : start + 1] != b"{":
        return []
    found: list[Edit] = []
    budget = _Budget()
    configured, empty = False, _NAME.match(body, start + 1) is None
    for name, value, end in _members(body, start, budget) if _may_hold_a_config(body) else ():
        if name not in _CONFIGS:
            continue
        configured = True
        if body[value : value + 1] == b"{":
            found += _in_config(body, value, most, budget)
        elif body[value:end] == b"null":
            found.append((value, end, b'{"maxOutputTokens":%d}' % most))
    if not configured:
        found.append(
            (start + 1, start + 1, b'"generationConfig":{"maxOutputTokens":%d}' % most + (b"" if empty else b","))
        )
    return found


def _may_hold_a_config(body: bytes) -> bool:
    """False for most bodies that hold none, at the speed of memory."""
    return b"eneration" in body or b"\\u" in body


def _in_config(body: bytes, start: int, most: int, budget: _Budget) -> list[Edit]:
    found: list[Edit] = []
    limited, empty = False, True
    for name, value, end in _members(body, start, budget):
        empty = False
        if name in _LIMITS:
            limited = True
            if _exceeds(body[value:end], most):
                found.append((value, end, b"%d" % most))
    if not limited:
        found.append((start + 1, start + 1, b'"maxOutputTokens":%d' % most + (b"" if empty else b",")))
    return found


def _exceeds(value: bytes, most: int) -> bool:
    """Whether a limit allows more than `most`, or says nothing: null, zero and less are no limit."""
    if value == b"null":
        return True
    number = _NUMBER.fullmatch(value)
    try:
        return number is not None and not 1 <= float(number[2]) <= most
    except ValueError:
        return False


class _Budget:
    """Parts that may still be read of one body."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MOST_PARTS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooLarge


def _members(body: bytes, start: int, budget: _Budget) -> Iterator[tuple[str, int, int]]:
    """The members of the object that opens at `start`: name, and where the value begins and ends."""
    at = start + 1
    while (found := _NAME.match(body, at)) is not None:
        budget.spend()
        at = _value_end(body, found.end(), budget)
        yield _text(found[1]), found.end(), at


def _text(name: bytes) -> str:
    if b"\\" not in name:
        return name.strip(b"\"'").decode("utf-8", "replace")
    try:
        return str(json.loads(b'"' + name[1:-1] + b'"', strict=False))
    except ValueError:
        return ""


def _value_end(body: bytes, at: int, budget: _Budget) -> int:
    """The end of the value that begins at `at`; that of the body where it has none."""
    word = _WORD.match(body, at)
    if word is not None:
        return word.end()
    depth = 0
    while (part := _PART.search(body, at)) is not None:
        budget.spend()
        at = part.end()
        mark = body[at - 1]
        if mark in _QUOTES:
            at = _text_end(body, at - 1)
        elif mark in b"{[":
            depth += 1
        else:
            depth -= 1
        if depth <= 0:
            return at
    return len(body)


def _text_end(body: bytes, start: int) -> int:
    """The end of the text that the quote at `start` begins: found at the speed of memory where no quote in it is escaped."""
    end = body.find(body[start], start + 1)
    if end >= 0 and body[end - 1] == 0x5C:
        text = _ESCAPED_TEXT.match(body, start)
        end = -1 if text is None else text.end() - 1
    return len(body) if end < 0 else end + 1
