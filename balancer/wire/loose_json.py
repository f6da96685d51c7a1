"""JSON as upstreams write it that keep to no schema: read as far as it can be, for answers that would be lost otherwise."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_LARGEST = (1 << 63) - 1
_DIGITS = re.compile(r"-?[0-9]+")


def load(text: bytes) -> Any:
    """A JSON value; None if it is none. Halves of surrogate pairs, and in an object bytes that are not UTF-8, do not lose it."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    if not text.lstrip().startswith(b"{"):
        return None
    try:
        return json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def dump(value: Any) -> bytes:
    """Compact JSON, halves of surrogate pairs as escapes."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":")).encode()


def whole_number(value: Any) -> int | None:
    """A whole number of 64 bits, also as digits or with a fraction of nothing."""
    match value:
        case bool():
            return None
        case str() if len(value) <= 20 and _DIGITS.fullmatch(value.strip()):
            value = int(value)
        case float() if value.is_integer():
            value = int(value)
        case int():
            pass
        case _:
            return None
    return value if abs(value) <= _LARGEST else None
