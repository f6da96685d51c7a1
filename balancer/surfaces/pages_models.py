"""Requests and answers of routes that check theirs by hand, for the documentation: `/auth/…` and `/api/chat/session`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field


class Login(BaseModel):
    """`provider_name` and `model_name`: both or neither. Without `api_key`, the credential of the request counts."""

    api_key: str | None = None
    provider_name: str | None = None
    model_name: str | None = None


class LoggedIn(BaseModel):
    token: Annotated[str, Field(pattern=r"^bal_")]
    expires_in: int
    message: str
    provider_name: str | None = None
    model_name: str | None = None


class ModelBinding(BaseModel):
    provider_name: Annotated[str, Field(min_length=1)]
    model_name: Annotated[str, Field(min_length=1)]


class ModelBound(BaseModel):
    message: str
    provider_name: str
    model_name: str


class LoggedOut(BaseModel):
    message: str


class NewBackendSession(BaseModel):
    """Other members travel as they are."""

    model: Annotated[str, Field(min_length=1)]
    plugins: list[Any] = []
    mcp: list[Any] = []


class BackendSession(BaseModel):
    """The backend's own answer."""

    code: int
    data: dict[str, Any] | None
    msg: str


class State(BaseModel):
    status: str


class ErrorObject(BaseModel):
    type: str
    message: str
    param: str | None
    code: str | int | None


class OpenAIError(BaseModel):
    """`detail`: below /api alone."""

    error: ErrorObject
    detail: str | None = None


class StoredSession(BaseModel):
    id: str
    title: str | None
    created_at: Annotated[str, Field(examples=["2023-01-01T00:00:00"])]
    updated_at: str
    is_active: bool


class StoredMessage(BaseModel):
    id: str
    session_id: str
    role: str
    content: str | list[Any]
    created_at: str
    tokens: int
    metadata_info: dict[str, Any] | None


class HistoryEntry(BaseModel):
    role: str
    content: str | list[Any]


class Message(BaseModel):
    message: str


class Model(BaseModel):
    id: str
    object: str = "model"
    created: int | None = None
    owned_by: str | None = None


class ModelList(BaseModel):
    object: str = "list"
    data: list[Model]


class Completion(BaseModel):
    """OpenAI's `chat.completion`; with `stream`, an event stream of its chunks."""

    id: str
    object: str
    choices: list[dict[str, Any]]
