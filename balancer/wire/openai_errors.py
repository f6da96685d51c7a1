"""Errors in OpenAI's dialect, and in Anthropic's where a route speaks that.

OpenAI (https://platform.openai.com/docs/guides/error-codes): `{"error": {"message", "type", "param", "code"}}`, where the
type follows from the status. Anthropic (https://docs.anthropic.com/en/api/errors): `{"type": "error", "error": {"type",
"message"}}`. Google's OpenAI-compatible endpoints put their own error into a list of one.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from balancer.errors import ProxyError
from balancer.wire.json_places import BLANKS

_TYPE = {409: "conflict_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPE = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def render(error: ProxyError) -> bytes:
    """An error of ours as OpenAI would write it; a backend's own, whose dialect is another, is told of as one of the API's."""
    kind = _TYPE.get(error.status) or ("server_error" if error.status >= 500 else "invalid_request_error")
    if error.code == "backend_error" and error.status < 500:
        kind = "api_error"
    content = {"message": _message(error), "type": kind, "param": error.param, "code": error.code}
    return orjson.dumps({"error": content})


def render_anthropic(error: ProxyError) -> bytes:
    """An error of ours as Anthropic would write it."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    content = {"type": _ANTHROPIC_TYPE.get(error.status, other), "message": _message(error)}
    return orjson.dumps({"type": "error", "error": content})


def _message(error: ProxyError) -> str:
    return error.message.encode("utf-8", "backslashreplace").decode()


def unbracket(body: bytes) -> bytes | None:
    """The error object in a list that holds nothing else, byte for byte; None for any other body."""
    text = body.strip(BLANKS)
    if not (text.startswith(b"[") and text.endswith(b"]")):
        return None
    tree = _load(text)
    alone = isinstance(tree, list) and len(tree) == 1 and isinstance(tree[0], dict) and "error" in tree[0]
    return text[1:-1].strip(BLANKS) if alone else None


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:  # halves of surrogate pairs, which a cut made in a message leaves behind
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
