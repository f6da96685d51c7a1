"""Keeps secrets out of everything that people and machines can read.

All known secrets are one pattern, a tree of their characters, so that a text is scanned once whatever their number: letters
and digits stand for themselves, any other character also for its percent-encoded and its JSON-escaped forms. A secret
becomes `[key:<fingerprint>]`. What then still has the shape of a credential becomes `[redacted]`. In both patterns every
branch at the root begins with a plain character, which is what lets `re` skip from one possible beginning to the next.

Secrets shorter than 8 characters are masked as whole words only: a key `k1` must not destroy every text that holds `k12`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from urllib.parse import quote

from balancer.model import fingerprint

SHORT = 8
"""Secrets of fewer characters are masked as whole words only."""

_PROSE = r"(?!(?:auth\w*|tokens?|credentials?|realm|scheme)[.,:;]?(?![\w~+/=-]))"
_TOKEN = r"(?i:earer)\s+" + _PROSE + r"[\w.~+/=-]+"
_MEMBER = r"(?:key|api_key|session_token|access_token|balancer)=(?!\[key:)[^&\s\"'<>#\\]+"
_SHAPES = "|".join((
    r"AIza[0-9A-Za-z_-]{30,}",
    r"AQ\.[0-9A-Za-z_-]{30,}",
    r"bal_[A-Za-z0-9_-]{43}",
    "B" + _TOKEN,
    "b" + _TOKEN,
    r"\?" + _MEMBER,
    "&" + _MEMBER,
    r"\\u0026" + _MEMBER,
))  # fmt: skip
"""Google keys of both sorts, our session tokens, and the places where credentials stand (JSON may write & as \\u0026)."""
_PLACE = r"(?i:bearer)\s+|(?:[?&]|\\u0026)\w+="
"""What of a shape stays readable."""
_TEXT_SHAPES = re.compile(_SHAPES, re.ASCII)
_DATA_SHAPES = re.compile(_SHAPES.encode())
_TEXT_PLACE = re.compile(_PLACE, re.ASCII)
_DATA_PLACE = re.compile(_PLACE.encode())

_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_HEX_LETTER = re.compile(r"[a-f]", re.IGNORECASE)
_WORD = re.compile(r"\w", re.ASCII)


class Redactor:
    """Masks the given secrets, and what looks like one. Immutable; its patterns are compiled at first use."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({secret for secret in secrets if secret.strip()})

    def text(self, text: str) -> str:
        """The text without secrets; the same object if there was none."""
        known = self._text
        if known is not None and known.search(text) is not None:
            text = known.sub(self._label, text)
        if _TEXT_SHAPES.search(text) is not None:
            text = _TEXT_SHAPES.sub(_shape, text)
        return text

    def data(self, data: bytes) -> bytes:
        """The bytes without secrets; the same object if there was none."""
        known = self._data
        if known is not None and known.search(data) is not None:
            data = known.sub(self._label_data, data)
        if _DATA_SHAPES.search(data) is not None:
            data = _DATA_SHAPES.sub(_shape_data, data)
        return data

    def contains(self, data: bytes) -> bool:
        """Whether `data()` would change anything."""
        known = self._data
        return (known is not None and known.search(data) is not None) or _DATA_SHAPES.search(data) is not None

    @cached_property
    def _text(self) -> re.Pattern[str] | None:
        pattern = self._tree[0]
        return re.compile(pattern, re.ASCII) if pattern else None

    @cached_property
    def _data(self) -> re.Pattern[bytes] | None:
        pattern = self._tree[0]
        return re.compile(pattern.encode()) if pattern else None

    @cached_property
    def _tree(self) -> tuple[str, list[str]]:
        """The pattern, and the label of each of its groups: the empty group behind a secret tells which one it was."""
        ends: list[str] = []
        branches = _roots([each for each in self._secrets if len(each) >= SHORT], ends)
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) < SHORT:
                branches += _words(secret, ends)
        return "|".join(branches), [f"[key:{fingerprint(secret)}]" for secret in ends]

    def _label(self, found: re.Match[str]) -> str:
        assert found.lastindex is not None
        return self._tree[1][found.lastindex - 1]

    def _label_data(self, found: re.Match[bytes]) -> bytes:
        assert found.lastindex is not None
        return self._tree[1][found.lastindex - 1].encode()


def _shape(found: re.Match[str]) -> str:
    place = _TEXT_PLACE.match(found[0])
    return (place[0] if place else "") + "[redacted]"


def _shape_data(found: re.Match[bytes]) -> bytes:
    place = _DATA_PLACE.match(found[0])
    return (place[0] if place else b"") + b"[redacted]"


def _roots(secrets: Sequence[str], ends: list[str]) -> list[str]:
    """Branches for sorted secrets, one for each form of each first character. Appends to `ends` what each group ends."""
    branches = []
    for char, family in groupby(secrets, key=lambda secret: secret[0]):
        members = list(family)
        branches += [form + _subtree(members, 1, ends) for form in _forms(char)]
    return branches


def _subtree(secrets: Sequence[str], depth: int, ends: list[str]) -> str:
    """Pattern for sorted secrets that share their first `depth` characters: longer ones first."""
    shared = _shared(secrets[0], secrets[-1])
    pattern = "".join(_any_form(char) for char in shared[depth:])
    depth = len(shared)
    branches = []
    for char, family in groupby((each for each in secrets if len(each) > depth), key=lambda secret: secret[depth]):
        branches.append(_any_form(char) + _subtree(list(family), depth + 1, ends))
    if secrets[0] == shared:
        ends.append(shared)
        branches.append("()")
    return pattern + (branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})")


def _shared(low: str, high: str) -> str:
    """The common beginning of two texts, and so of all that sort between them."""
    for index, (one, other) in enumerate(zip(low, high, strict=False)):
        if one != other:
            return low[:index]
    return low


def _words(secret: str, ends: list[str]) -> Iterator[str]:
    """Branches for a short secret. Its left edge is checked behind its first character, so that this comes first.

    A letter that ends an escape (the n of \\n, a digit of %20) is no part of the word behind it.
    """
    rest = "".join(_any_form(char) for char in secret[1:]) + (r"(?!\w)" if _WORD.match(secret[-1]) else "") + "()"
    for form in _forms(secret[0]):
        edge = ""
        if _WORD.match(secret[0]):
            hexes = r"%[0-9A-Fa-f]{2}", r"\\u[0-9A-Fa-f]{4}", r"\\[bfnrt]"
            edge = rf"(?:(?<!\w{form})" + "".join(rf"|(?<={escape}{form})" for escape in hexes) + ")"
        ends.append(secret)
        yield form + edge + rest


def _any_form(char: str) -> str:
    forms = _forms(char)
    return forms[0] if len(forms) == 1 else f"(?:{'|'.join(forms)})"


def _forms(char: str) -> list[str]:
    """Patterns of the ways in which a character is written, longest first; each begins with a plain character."""
    if _PLAIN.match(char):
        return [char]
    percent = quote(char, safe="")
    if percent == char:
        percent = f"%{ord(char):02X}"
    escaped = json.dumps(char)[1:-1]
    forms = {re.escape(char), _hex(percent), _hex(escaped) if escaped.startswith("\\u") else re.escape(escaped)}
    if ord(char) < 0x80:
        forms.add(_hex(f"\\u{ord(char):04x}"))
    if char == "/":
        forms.add(r"\\/")
    if char == " ":
        forms.add(r"\+")
    return sorted(forms, key=len, reverse=True)


def _hex(escape: str) -> str:
    """Pattern of %XX or \\uXXXX sequences, whose hex digits may be of either case."""
    digits = _HEX_LETTER.sub(lambda found: f"[{found[0].upper()}{found[0].lower()}]", escape)
    return digits.replace("\\", "\\\\")
