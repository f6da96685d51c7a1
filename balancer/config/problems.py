"""What is wrong with a configuration, told in sentences that name the place and never a secret."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

Loc = tuple[int | str, ...]
"""Where a setting stands: names of mappings and positions in lists."""

SECRET_PLACES = frozenset({"keys", "key", "token", "tokens", "secret", "headers", "proxy", "url"})
"""Settings whose values are not repeated to anybody: they are secrets, or addresses that can hold a password."""

_WORDS = {
    "missing": "is required",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of settings",
    "model_attributes_type": "must be a mapping of settings",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
}
_LONGEST_ECHO = 60


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds every reason found, each `place: sentence`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def place(loc: Loc) -> str:
    """`upstreams.gemini.keys[2].key` of the tuple."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def is_secret(loc: Loc) -> bool:
    return any(step in SECRET_PLACES for step in loc)


def shown_name(name: str) -> str | None:
    """The name of an unknown setting, unless it could be a secret that slid to the left of a colon."""
    return name if re.fullmatch(r"[a-z_-]{1,32}|[A-Za-z0-9_.-]{1,15}", name) else None


def sentence(error: ErrorDetails) -> str:
    """One pydantic error in our words; what was written is repeated only where it cannot be a secret."""
    context: dict[str, Any] = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    words = _WORDS.get(error["type"])
    text = words.format_map(context) if words else error["msg"][:1].lower() + error["msg"][1:]
    written = error["input"]
    if not isinstance(written, str) or is_secret(error["loc"]) or error["type"] == "missing":
        return text
    if len(written) > _LONGEST_ECHO:
        return text
    return f'{text}, not "{written}"'
