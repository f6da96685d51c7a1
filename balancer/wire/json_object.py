"""A JSON object, checked and read by orjson, with what orjson has no setting for: how deep it may nest, and lone surrogates."""

from __future__ import annotations

import re
from typing import Any

import orjson

from balancer.wire.json_places import DEEPEST, Malformed

_WRAPS = 1024 - DEEPEST  # orjson refuses what nests deeper than 1024
_COUNTED = 1 << 16  # bytes beyond which a copy costs less than counting brackets
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


def load_object(text: bytes) -> tuple[dict[str, Any], bool]:
    """The object that a text is, and whether its strings are exact: halves of surrogate pairs, which JSON allows and orjson
    does not, are replaced. Raises Malformed for any other text, one that nests deeper than DEEPEST, and numbers that no
    double holds.

    A text that may nest too deep is parsed with the rest of what orjson allows wrapped around it.
    """
    wraps = 0
    if len(text) > _COUNTED or (len(text) > DEEPEST and text.count(b"{") + text.count(b"[") > DEEPEST):
        wraps = _WRAPS
        text = b"".join((b"[" * wraps, text, b"]" * wraps))
    tree, exact = _parse(text)
    for _ in range(wraps):
        if len(tree) != 1:  # the text had brackets of its own for these
            raise Malformed
        tree = tree[0]
    if not isinstance(tree, dict):
        raise Malformed
    return tree, exact


def _parse(text: bytes) -> tuple[Any, bool]:
    try:
        return orjson.loads(text), True
    except orjson.JSONDecodeError:
        pass
    replaced = _SURROGATE.sub(rb"\\ufffd", text)
    if replaced != text:
        try:
            return orjson.loads(replaced), False
        except orjson.JSONDecodeError:
            pass
    raise Malformed
