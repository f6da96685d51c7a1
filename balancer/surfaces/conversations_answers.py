"""What clients of stored chats are told: sessions and messages as JSON, and errors in this surface's shape.

Errors are `{"error": {"type", "message", "param", "code"}, "detail": text}`. What the table of the specification fixes is
said in its words; an upstream's refusal that is the caller's fault passes as it came.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from aiohttp import web

from balancer.conversations.base import Session, StorageUnavailable, Turn
from balancer.errors import ProxyError
from balancer.relay.speech import Refused
from balancer.web import BAD_CREDENTIAL, NO_CREDENTIAL, error_answer
from balancer.wire.loose_json import dump

NO_SESSION = "会话不存在"
NOT_FOUND = "请求的资源不存在"
FAILED = "生成聊天完成响应失败"
STREAM_FAILED = "生成流式响应失败"
DELETED = "会话删除成功"
INTERNAL = "服务器内部错误"
UNKNOWN_MODEL = "模型不存在"

STORAGE_BACK = 60.0
"""Seconds after which to ask again where the database will not come back by itself."""

_TYPES = {404: "not_found_error", 409: "conflict_error", 429: "rate_limit_error"}
_CREDENTIALS = {"missing_api_key": NO_CREDENTIAL, "invalid_api_key": BAD_CREDENTIAL}


def session_shown(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "title": session.title or "",
        "created_at": time_shown(session.created_at),
        "updated_at": time_shown(session.updated_at),
        "is_active": session.is_active,
    }


def turn_shown(session: Session, turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "session_id": session.id,
        "role": turn.role,
        "content": turn.content,
        "created_at": time_shown(turn.created_at),
        "tokens": turn.tokens,
        "metadata_info": turn.metadata_info,
    }


def time_shown(time: datetime) -> str:
    """`2023-01-01T00:00:00`: UTC, whole seconds, no offset."""
    return time.replace(tzinfo=None).isoformat(timespec="seconds")


def no_session() -> ProxyError:
    """The client has no such session (any more)."""
    return ProxyError(404, "not_found", NO_SESSION)


def unavailable(error: StorageUnavailable) -> ProxyError:
    """How the caller learns that the database cannot be used."""
    seconds = STORAGE_BACK if error.retry_after is None else error.retry_after
    return ProxyError(503, "storage_unavailable", f"Stored chats cannot be used: {error.reason}.", retry_after=seconds)


def refusal(error: ProxyError) -> web.Response:
    """The answer that tells of an error."""
    if isinstance(error, Refused) and error.status < 500:
        return error_answer(error, error.body)
    body = {"error": (told := error_told(error)), "detail": _detail(error, told["message"])}
    if error.code == "model_not_found":
        error.status = 400
    elif isinstance(error, Refused):
        error.status = 502
    return error_answer(error, dump(body))


def error_told(error: ProxyError) -> dict[str, Any]:
    """The error object. Of an upstream's own refusal it tells only that there was one."""
    status, code, message = error.status, error.code, error.message
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    match code:
        case "not_found" | "unknown_url":
            code, message = "not_found", NOT_FOUND
        case "model_not_found":
            kind, message = "invalid_request_error", UNKNOWN_MODEL
        case "missing_api_key" | "invalid_api_key":
            message = _CREDENTIALS[code]
        case "backend_error" if status < 500:
            kind = "api_error"
        case "internal_error":
            code, message = "server_error", INTERNAL
        case "invalid_body" | "invalid_json" | "bad_request":
            code = "invalid_request"
        case _ if status >= 502:
            message = FAILED
        case _:
            pass
    return {"type": kind, "message": _text(message), "param": error.param, "code": code}


def _detail(error: ProxyError, message: str) -> str:
    match error.code:
        case "unknown_url":
            return "Not Found"
        case "not_found" | "storage_unavailable" | "draining":
            return _text(error.message)
        case _:
            return message


def _text(message: str) -> str:
    return message.encode("utf-8", "backslashreplace").decode()
