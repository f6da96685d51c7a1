"""What clients of stored chats send, as models: they check requests, and the document of the API is made of them.

JSON counts whatever the content type says. A member that is wrong is named: in the message, and as `param`. Texts that no
database keeps alike (NUL, halves of surrogate pairs) are refused wherever they stand. Members that no model knows travel.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SkipValidation, ValidationError

from balancer.conversations.base import MOST_TOKENS
from balancer.errors import ProxyError
from balancer.wire.json_object import load_object
from balancer.wire.json_places import Malformed

LARGEST_PAGE = 1000
LONGEST_ROLE = 32
LARGEST_METADATA = 64 << 10
"""Bytes of `metadata_info` as compact JSON."""
INSTRUCTIONS = ("system", "developer")
"""Roles of what a model is told about its task; of one session the newest counts."""

_HEAVY = 256 * 1024
"""Bytes of a body from which on it is read in a thread: a few milliseconds."""
_LONG = 19
"""Digits of the shortest number that orjson may round, because it takes more than 64 bits."""
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_NO_DIGITS = bytes(code for code in range(256) if not 0x30 <= code <= 0x39)
_WHOLE = re.compile(r"[0-9]{1,18}")
_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("blank")
    return value


def _not_large(value: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > LARGEST_METADATA:
        raise ValueError("large")
    return value


def _something_said(value: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if not value:
        raise ValueError("empty")
    return value


Title = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_not_blank)]
Parts = list[dict[str, Any]]


class Asked(BaseModel):
    """A request's body. The description of a field says what its value must be."""

    model_config = ConfigDict(strict=True, extra="ignore")


class NewSession(Asked):
    """POST /api/sessions"""

    title: Title = Field(description="a text of 1 to 500 characters that is not blank")


class SessionChange(Asked):
    """PUT /api/sessions/{id}: at least one of them."""

    title: Title | None = Field(None, description="a text of 1 to 500 characters that is not blank")
    is_active: bool | None = Field(None, description="true or false")


class NewMessage(Asked):
    """POST /api/sessions/{id}/messages"""

    role: str = Field(min_length=1, max_length=LONGEST_ROLE, description=f"a text of 1 to {LONGEST_ROLE} characters")
    content: str | Annotated[Parts, Field(min_length=1)] = Field(
        description="a text, or a list of parts that is not empty"
    )
    tokens: int = Field(0, ge=0, le=MOST_TOKENS, description="a whole number from 0 on")
    metadata_info: Annotated[dict[str, Any], AfterValidator(_not_large)] | None = Field(
        None, description=f"an object of at most {LARGEST_METADATA} bytes, or null"
    )


class ChatMessage(Asked):
    """One of the messages of a chat; `content` may be null beside `tool_calls`."""

    role: Annotated[str, Field(min_length=1, max_length=LONGEST_ROLE)]
    content: str | Parts | None = None
    tool_calls: list[dict[str, Any]] | None = None
    name: str | None = None
    tool_call_id: str | None = None


def _complete(messages: list[Any]) -> list[Any]:
    """Checked by hand: a model of each of many would cost more than all else."""
    if not all(map(_is_message, messages)):
        raise ValueError("not a message")
    if all(each["role"] in INSTRUCTIONS for each in messages):
        raise ValueError("only instructions")
    return messages


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    role, content = value.get("role"), value.get("content")
    if not (isinstance(role, str) and 0 < len(role) <= LONGEST_ROLE):
        return False
    if content is None:
        return isinstance(value.get("tool_calls"), list) and bool(value["tool_calls"])
    return isinstance(content, str) or (isinstance(content, list) and all(isinstance(part, dict) for part in content))


Temperature = Annotated[float, Field(ge=0, le=2)]
MaxTokens = Annotated[int, Field(ge=1)]
_TEMPERATURE = "a number from 0 to 2"
_MAX_TOKENS = "a whole number from 1 on, or null"


class Chat(Asked):
    """POST /api/chat/completions. Other members travel as they are."""

    messages: Annotated[list[SkipValidation[ChatMessage]], Field(min_length=1), AfterValidator(_complete)] = Field(
        description="a list of objects with `role` and `content`, at least one of them not of the role system"
    )
    model: str | None = Field(None, description="the name of a model, or null")
    temperature: Temperature | None = Field(None, description=_TEMPERATURE)
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="a number from 0 to 1")
    max_tokens: MaxTokens | None = Field(None, description=_MAX_TOKENS)
    stream: bool | None = Field(None, description="true or false")
    stop: str | Annotated[list[str], Field(max_length=4)] | None = Field(
        None, description="a text, a list of at most 4 texts, or null"
    )
    user: str | None = Field(None, description="a text, or null")


class SocketMessage(Asked):
    """`{"type": "chat.message"}` on the socket."""

    content: Annotated[str | Parts, AfterValidator(_something_said)] = Field(
        description="a text or a list of parts, not empty"
    )
    model: str | None = Field(None, description="the name of a model, or null")
    temperature: Temperature | None = Field(None, description=_TEMPERATURE)
    max_tokens: MaxTokens | None = Field(None, description=_MAX_TOKENS)


_Model = TypeVar("_Model", bound=Asked)


async def received(model: type[_Model], body: bytes) -> tuple[_Model, dict[str, Any]]:
    """As `parsed`; one that is large is read beside the event loop."""
    return parsed(model, body) if len(body) <= _HEAVY else await asyncio.to_thread(parsed, model, body)


def parsed(model: type[_Model], body: bytes | str) -> tuple[_Model, dict[str, Any]]:
    """A body as its model, and as the object that it is. Raises ProxyError 400."""
    tree = read_object(model, body)
    return checked(model, tree), tree


def checked(model: type[_Model], tree: dict[str, Any]) -> _Model:
    """An object as its model. Raises ProxyError 400."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        member = str(error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0])
        refuse(member, f"{member} must be {model.model_fields[member].description}.")


def read_object(model: type[Asked], body: bytes | str) -> dict[str, Any]:
    """The JSON object that a body is. Raises ProxyError 400, which names the first member that it ought to have."""
    text = body if isinstance(body, bytes) else body.encode("utf-8", "replace")
    first = next(iter(model.model_fields))
    try:
        tree, exact = load_object(text)
    except Malformed:
        refuse(first, f"The body must be a JSON object with {first}.")
    if not exact or (b"\\u0000" in text and _holds_nul(tree)):
        refuse(_place_of_flaw(tree), "Texts must not hold NUL or halves of surrogate pairs.")
    exactly: dict[str, Any] = json.loads(text) if _may_be_rounded(text) else tree
    return exactly


def _may_be_rounded(text: bytes) -> bool:
    """Whether it holds a long run of digits: then one of its digits is among each so many bytes, which is looked at first."""
    return bool(text[_LONG - 1 :: _LONG].translate(None, _NO_DIGITS)) and _LONG_NUMBER.search(text) is not None


def _holds_nul(value: Any) -> bool:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += each
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
        elif isinstance(each, str) and "\0" in each:
            return True
    return False


def _place_of_flaw(tree: dict[str, Any]) -> str | None:
    """The member with NUL, or with what took the place of half a pair."""
    for name, value in tree.items():
        text = orjson.dumps([name, value], default=str)
        if b"\\u0000" in text or "\ufffd".encode() in text:
            return name.replace("\0", "")
    return None


def refuse(param: str | None, message: str) -> NoReturn:
    raise ProxyError(400, "invalid_request", message, param=param)


def page(request: web.Request) -> tuple[int, int]:
    """`skip` and `limit` of the query. Raises ProxyError 400."""
    return number(request, "skip", 0, 0, None), number(request, "limit", 100, 1, LARGEST_PAGE)


def number(request: web.Request, name: str, default: int, least: int, most: int | None) -> int:
    """A whole number of the query. Raises ProxyError 400."""
    text = request.query.get(name)
    if text is None:
        return default
    value = int(text) if _WHOLE.fullmatch(text) else -1
    if value < least or (most is not None and value > most):
        refuse(name, f"{name} must be a whole number from {least} {'on' if most is None else f'to {most}'}.")
    return value


def flag(request: web.Request, name: str, default: bool) -> bool:
    """Yes or no of the query. Raises ProxyError 400."""
    text = request.query.get(name)
    if text is None:
        return default
    value = _FLAGS.get(text.strip().lower())
    if value is None:
        refuse(name, f"{name} must be true or false.")
    return value
