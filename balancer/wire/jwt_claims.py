"""What a JSON Web Token says of itself (RFC 7519), read without verification: good for planning, never for trust."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import orjson

LONGEST = 16 << 10
"""Characters of a token that is looked into."""
_LONGEST_USER = 128


@dataclass(frozen=True, slots=True)
class Claims:
    """`expires`: POSIX seconds (`exp`); `user`: who it stands for (`userId`). None where the token does not tell."""

    expires: float | None = None
    user: str | None = None


def read(token: str) -> Claims:
    """The claims of a token in compact form; nothing is known of one that is none. Raises nothing."""
    parts = token.split(".", 3)
    if len(token) > LONGEST or len(parts) != 3:
        return Claims()
    try:
        payload = orjson.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_", validate=True))
    except ValueError:  # not base64, not ASCII, not JSON
        return Claims()
    if not isinstance(payload, dict):
        return Claims()
    return Claims(_seconds(payload.get("exp")), _user(payload.get("userId")))


def _seconds(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _user(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip()
    return text if 0 < len(text) <= _LONGEST_USER and text.isprintable() else None
