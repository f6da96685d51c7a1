"""Which conversation a request means, for upstreams that keep the conversation themselves and number it.

    place, in order              an explicit id                                a handle
    header, query, body member   digits, 0 < N < 2^53                          any other text
    metadata.sessionId           the same, or a JSON number that is whole      any other text
    path prefix                  digits                                        any other text
    user                         never                                         any text

An explicit id in any place counts before a handle in any other. A text is trimmed and has 1 to 256 printable characters; a
handle is case-folded. What does not count is as if absent. No id at all: the request begins a conversation of its own. With
upstreams that do not number their conversations nothing is an explicit id, and whole numbers are handles as their digits are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

BELOW = 1 << 53
"""Explicit ids are smaller: what a JSON number holds exactly everywhere."""
LONGEST = 256

_DIGITS = re.compile(r"0*([1-9][0-9]{0,15})")


@dataclass(frozen=True, slots=True)
class Explicit:
    """The upstream's own number of a conversation."""

    number: int


@dataclass(frozen=True, slots=True)
class Derived:
    """The client's word for a conversation: the upstream's number is ours to find or make."""

    handle: str


@dataclass(frozen=True, slots=True)
class Fresh:
    """The request names no conversation."""


SessionId = Explicit | Derived | Fresh


def choose(
    header: str | None = None,
    query: str | None = None,
    body: Any = None,
    metadata: Any = None,
    prefix: str | None = None,
    user: Any = None,
    *,
    numbered: bool = True,
) -> SessionId:
    """The table above. `body` and `user` are the JSON values of those members, `metadata` the value of `metadata` itself.

    `numbered`: the upstream numbers its conversations.
    """
    inner = metadata.get("sessionId") if isinstance(metadata, dict) else None
    places = (header, query, body, inner, prefix)
    for place in places:
        if numbered and (number := _number(place)) is not None:
            return Explicit(number)
    for place in (*places, user):
        if (handle := handle_of(place if numbered else _digits(place))) is not None:
            return Derived(handle)
    return Fresh()


def handle_of(value: Any) -> str | None:
    """A handle as it is compared; None if the value is none."""
    if not isinstance(value, str):
        return None
    text = value.strip()
    return text.casefold() if 0 < len(text) <= LONGEST and text.isprintable() else None


def _digits(value: Any) -> Any:
    """A whole number as the text that it is written with."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number(value: Any) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        found = _DIGITS.fullmatch(text) if len(text) <= LONGEST else None
        number = int(found[1]) if found is not None else 0
    elif isinstance(value, float):
        number = int(value) if value.is_integer() else 0
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        return None
    return number if 0 < number < BELOW else None
