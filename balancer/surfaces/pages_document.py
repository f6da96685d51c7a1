"""The OpenAPI 3.1 document of our own routes (https://spec.openapis.org/oas/v3.1.0).

It is made of the models that validate (`chat_models`, `conversations_requests`) and, where a surface checks by hand, of
`pages_models`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from balancer import __version__
from balancer.surfaces import chat_models as chat
from balancer.surfaces import conversations_requests as stored
from balancer.surfaces import pages_models as plain

Json = dict[str, Any]
Model = type[BaseModel]

_REF = "#/components/schemas/{model}"
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. `says`: its answer; `many`: a list of those. `optional`: it takes no body too. `query`: schemas by name."""

    method: str
    path: str
    summary: str
    tag: str
    says: Model | None = None
    many: bool = False
    body: Model | None = None
    optional: bool = False
    streams: bool = False
    query: tuple[tuple[str, Json], ...] = ()
    public: bool = False
    errors: tuple[int, ...] = (400,)
    error: Model = chat.Detail


def _count(default: int, least: int, most: int | None = None) -> Json:
    return {"type": "integer", "default": default, "minimum": least, **({} if most is None else {"maximum": most})}


_SESSION = ("session_id", {"type": "string", "maxLength": chat.LONGEST_ID, "description": "names the session"})
_PAGE = (("skip", _count(0, 0)), ("limit", _count(100, 1, stored.LARGEST_PAGE)))
_ACTIVE = ("active_only", {"type": "boolean", "default": True})
_AT_CHAT = (400, 403, 404, 413, 429, 500, 503)

OPERATIONS = (
    Operation(
        "post",
        "/chat",
        "Say something",
        "chat",
        chat.ChatAnswer,
        body=chat.ChatRequest,
        query=(_SESSION,),
        errors=_AT_CHAT,
    ),
    Operation(
        "post",
        "/chat/stream",
        "Say something, and get the answer as events",
        "chat",
        body=chat.ChatRequest,
        streams=True,
        query=(_SESSION,),
        errors=_AT_CHAT,
    ),
    Operation("get", "/session/{session_id}/info", "A session", "chat", chat.SessionInfo, errors=(400, 404, 503)),
    Operation("post", "/session/{session_id}/clear", "Begin anew", "chat", chat.Cleared, errors=(400, 503)),
    Operation(
        "post",
        "/session/{session_id}/bind",
        "Go on with another conversation",
        "chat",
        chat.Bound,
        body=chat.BindRequest,
        errors=(400, 404, 413, 429, 500, 503),
    ),
    Operation(
        "get", "/conversation/{conversation_id}/session", "Whose it is", "chat", chat.Holder, errors=(404, 503)
    ),
    Operation(
        "get",
        "/sessions",
        "Your sessions",
        "chat",
        chat.SessionPage,
        query=(("limit", _count(10, 1, 50)), ("offset", _count(0, 0))),
        errors=(400, 503),
    ),
    Operation("get", "/", "What this is", "health", chat.Root, public=True, errors=()),
    Operation("get", "/health", "Whether the chat bot is set up", "health", chat.Health, public=True, errors=()),
    Operation("get", "/healthz", "Whether the process answers", "health", plain.State, public=True, errors=()),
    Operation("get", "/readyz", "Whether it can serve", "health", plain.State, public=True, errors=(503,), error=plain.State),
    Operation(
        "post",
        "/auth/login",
        "Trade a client token for a session token",
        "login",
        plain.LoggedIn,
        body=plain.Login,
        optional=True,
        public=True,
        errors=(400, 401, 403, 404, 413),
    ),
    Operation(
        "post",
        "/auth/bind-model",
        "Bind a model to the session token",
        "login",
        plain.ModelBound,
        body=plain.ModelBinding,
        errors=(400, 403, 404, 413),
    ),
    Operation("post", "/auth/logout", "End the session token", "login", plain.LoggedOut, errors=(404, 413)),
    Operation(
        "post",
        "/api/chat/session",
        "Make a session of an achuan backend",
        "achuan",
        plain.BackendSession,
        body=plain.NewBackendSession,
        errors=(400, 403, 404, 413, 429, 502, 503),
        error=plain.OpenAIError,
    ),
    Operation("get", "/api/health", "Whether stored chats are served", "conversations", plain.State, public=True, errors=()),
    *(
        Operation(method, path, summary, "conversations", error=plain.OpenAIError, **more)
        for method, path, summary, more in (
            ("get", "/api/models", "The models", {"says": plain.ModelList, "errors": ()}),
            ("post", "/api/sessions", "Make a session", {"says": plain.StoredSession, "body": stored.NewSession}),
            ("get", "/api/sessions", "Your sessions", {"says": plain.StoredSession, "many": True, "query": (*_PAGE, _ACTIVE)}),
            ("get", "/api/sessions/{id}", "A session", {"says": plain.StoredSession, "errors": (404,)}),
            (
                "put",
                "/api/sessions/{id}",
                "Change a session",
                {"says": plain.StoredSession, "body": stored.SessionChange, "errors": (400, 404)},
            ),
            ("delete", "/api/sessions/{id}", "Delete a session", {"says": plain.Message, "errors": (404,)}),
            (
                "post",
                "/api/sessions/{id}/messages",
                "Store a message",
                {"says": plain.StoredMessage, "body": stored.NewMessage, "errors": (400, 404)},
            ),
            (
                "get",
                "/api/sessions/{id}/messages",
                "The messages of a session",
                {"says": plain.StoredMessage, "many": True, "query": _PAGE, "errors": (400, 404)},
            ),
            (
                "get",
                "/api/sessions/{id}/history",
                "The newest messages of a session",
                {
                    "says": plain.HistoryEntry,
                    "many": True,
                    "query": (("limit", _count(100, 1, stored.LARGEST_PAGE)),),
                    "errors": (400, 404),
                },
            ),
            (
                "post",
                "/api/chat/completions",
                "Chat as OpenAI's clients do",
                {
                    "says": plain.Completion,
                    "body": stored.Chat,
                    "query": (_SESSION,),
                    "errors": (400, 403, 404, 409, 413, 429, 500, 502, 503, 504),
                },
            ),
        )
    ),
)  # fmt: skip


@cache
def document() -> bytes:
    """The OpenAPI document, as JSON."""
    models = {model for each in OPERATIONS for model in (each.says, each.body, each.error) if model is not None}
    _, defined = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)], ref_template=_REF
    )
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "balancer",
                "version": __version__,
                "description": "The routes that are this program's own. Those of the Gemini and of the OpenAI API are described "
                "by their providers.",
            },
            "servers": [{"url": "/"}],
            "security": [{"bearer": []}, {"header": []}],
            "paths": paths,
            "components": {
                "schemas": defined["$defs"],
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                },
            },
        }
    )


def _described(operation: Operation) -> Json:
    answers = {"200": _answer(operation)}
    statuses = operation.errors if operation.public else (401, *operation.errors)
    for status in sorted(set(statuses)):
        answers[str(status)] = {"description": HTTPStatus(status).phrase, "content": _json(_of(operation.error))}
    shown: Json = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "tags": [operation.tag],
        "responses": answers,
    }
    parameters = [*_parameters(operation)]
    if parameters:
        shown["parameters"] = parameters
    if operation.body is not None:
        shown["requestBody"] = {"required": not operation.optional, "content": _json(_of(operation.body))}
    if operation.public:
        shown["security"] = []
    return shown


def _answer(operation: Operation) -> Json:
    if operation.streams:
        text = 'Lines `data: {"type": "chunk" | "reasoning" | "complete" | "error", "data": {…}}`.'
        return {"description": text, "content": {_EVENTS: {"schema": {"type": "string"}}}}
    assert operation.says is not None  # what does not stream says something
    schema = {"type": "array", "items": _of(operation.says)} if operation.many else _of(operation.says)
    return {"description": "OK", "content": _json(schema)}


def _parameters(operation: Operation) -> Iterator[Json]:
    for part in operation.path.split("/"):
        if part.startswith("{"):
            schema = {"type": "string", "minLength": 1, "maxLength": chat.LONGEST_ID}
            yield {"name": part[1:-1], "in": "path", "required": True, "schema": schema}
    for name, schema in operation.query:
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _of(model: Model) -> Json:
    return {"$ref": _REF.format(model=model.__name__)}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
