"""Requests and answers of the chat surface as types: what validates them, and what its documentation is made of.

Unknown members are ignored, and no member is taken for what it nearly is: a number is no text.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from balancer.errors import ProxyError

LONGEST_ID = 256
"""Characters of ids that clients choose."""

_NUMBER = re.compile(r"-?[0-9]{1,18}")


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character")
    return value


def _spoken(value: str) -> str:
    if not value.strip():
        raise ValueError("is blank")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return value


def _name(value: str | None) -> str | None:
    """A blank id is as if there was none."""
    if value is None or not value.strip():
        return None
    if len(value.strip()) > LONGEST_ID:
        raise ValueError(f"is longer than {LONGEST_ID} characters")
    return _printable(value)


def _number(value: Any) -> Any:
    """A whole number as it stands in a query."""
    return int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


Text = Annotated[str, AfterValidator(_storable)]
SessionId = Annotated[
    str | None, AfterValidator(_name), Field(description="1-256 printable characters; blank or null: a fresh session")
]
ConversationId = Annotated[str, Field(min_length=10, max_length=LONGEST_ID), AfterValidator(_printable)]
WholeNumber = Annotated[int, BeforeValidator(_number)]
Moment = Annotated[str, Field(description="UTC", examples=["2024-01-15T10:30:15.123456"])]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class ChatRequest(_Request):
    """One message."""

    message: Annotated[Text, AfterValidator(_spoken), Field(min_length=1, pattern=r"\S")]
    user_id: Annotated[Text, Field(max_length=128)] | None = None
    session_id: SessionId = None
    conversation_id: ConversationId | None = None


class BindRequest(_Request):
    """The conversation that a session is to go on with."""

    conversation_id: ConversationId


class PageQuery(_Request):
    """A page of sessions."""

    limit: Annotated[WholeNumber, Field(ge=1, le=50)] = 10
    offset: Annotated[WholeNumber, Field(ge=0)] = 0


class SessionQuery(_Request):
    """A session's id where it is named outside a body."""

    session_id: SessionId = None


class ChatAnswer(BaseModel):
    """`reasoning_content` only if the model gave any."""

    response: str
    session_id: str
    message_id: str
    timestamp: Moment
    conversation_id: str
    reasoning_content: str | None = None


class SessionInfo(BaseModel):
    session_id: str
    user_id: str | None
    conversation_id: str | None
    last_activity: Moment
    message_count: int
    status: str = "active"


class Cleared(BaseModel):
    message: str
    session_id: str
    cleared_at: Moment


class Bound(BaseModel):
    message: str
    session_id: str
    conversation_id: str
    timestamp: Moment


class HolderInfo(BaseModel):
    user_id: str | None
    last_activity: Moment


class Holder(BaseModel):
    conversation_id: str
    session_id: str
    session_info: HolderInfo
    timestamp: Moment


class ListedSession(BaseModel):
    session_id: str
    user_id: str | None
    conversation_id: str | None
    last_activity: Moment


class SessionPage(BaseModel):
    total: int
    limit: int
    offset: int
    sessions: list[ListedSession]
    timestamp: Moment


class Root(BaseModel):
    message: str
    version: str
    status: str
    docs: str


class Health(BaseModel):
    status: str
    timestamp: Moment
    coze_client_status: str


class Detail(BaseModel):
    """`code` and `logid`: the upstream's number for an error, and its log, where known."""

    detail: str
    code: int | None = None
    logid: str | None = None


_Model = TypeVar("_Model", bound=BaseModel)


def checked(model: type[_Model], value: Any) -> _Model:
    """The value as the model has it. Raises ProxyError 400 that names the member and what is wrong with it."""
    try:
        return model.model_validate(value)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
        member = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ProxyError(400, "invalid_parameter", f"{member or 'body'}: {reason}", param=member or None) from None
