"""What clients of the chat surface are told of a failure: the table of its texts, which they compare.

| failure | status | detail |
|---|---|---|
| a request that cannot be | 400 | 参数错误: member and reason |
| the client's own limit | 429 | 请求过于频繁 |
| every key rests | 429 | … API请求失败: 429 Too Many Requests |
| the upstream refused | 500; 400 where it is the message that it will not have | … API请求失败: its status and phrase |
| time ran out | 500 | 同步聊天失败: timeout, of a stream 流式聊天失败: timeout |
| an earlier turn goes on | 503 | 会话正忙，请稍后重试 |
| nobody there to ask, nowhere to store | 503 | 服务不可用: reason |

None of them repeats an upstream's words: those may hold addresses, or what was asked.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from balancer.conversations.base import StorageUnavailable
from balancer.errors import ProxyError
from balancer.relay.speech import Refused
from balancer.web import BAD_CREDENTIAL, NO_CREDENTIAL

BUSY = "会话正忙，请稍后重试"
CLEARED = "会话已被清除"
RETRY_AFTER = 5.0
"""Seconds that a 503 asks to wait where nobody knows better."""

_TEXTS = {
    "missing_api_key": NO_CREDENTIAL,
    "invalid_api_key": BAD_CREDENTIAL,
    "rate_limit_exceeded": "请求过于频繁",
    "concurrency_exceeded": "请求过于频繁",
    "request_too_large": "请求体过大",
    "unknown_url": "Not Found",
    "method_not_allowed": "Method Not Allowed",
    "internal_error": "服务器内部错误",
    "session_store_unavailable": "会话存储暂不可用",
}
_UNAVAILABLE = {
    "upstream_unreachable": "upstream cannot be reached",
    "backend_connection_error": "upstream cannot be reached",
    "no_usable_key": "no usable key",
}
_PARAMETERS = frozenset({"invalid_parameter", "invalid_json", "invalid_body", "unsupported_encoding"})
_OF_THE_UPSTREAM = frozenset({"upstream_error", "backend_error", "backend_empty_body", "stream_error"})


def unavailable(reason: str, retry_after: float | None = None, code: str = "unavailable") -> ProxyError:
    """503 with a reason for people."""
    return ProxyError(503, code, f"服务不可用: {reason}", retry_after=retry_after or RETRY_AFTER)


def storage(failure: StorageUnavailable) -> ProxyError:
    """The database cannot be used."""
    return unavailable(failure.reason, failure.retry_after, "storage_unavailable")


def busy() -> ProxyError:
    """The session's earlier turn did not end in time."""
    return ProxyError(503, "session_busy", BUSY, retry_after=RETRY_AFTER)


def no_conversation(identity: str) -> ProxyError:
    """Nobody knows it, or it is another client's."""
    return ProxyError(404, "session_not_found", f"会话不存在 - conversation_id: {identity}")


def told(error: ProxyError, upstream: str, *, streamed: bool) -> tuple[int, dict[str, Any]]:
    """Status and body of an error. `upstream`: what the texts call the one behind the surface. `streamed`: of /chat/stream."""
    code = error.code
    if code in _PARAMETERS:
        return 400, {"detail": f"参数错误: {error.message}"}
    if code == "upstream_timeout":
        return 500, {"detail": f"{'流式' if streamed else '同步'}聊天失败: timeout"}
    if code == "keys_resting":
        return 429, {"detail": _refused(upstream, 429)}
    if code == "session_busy":
        return 503, {"detail": BUSY}
    if code in _UNAVAILABLE:
        return 503, {"detail": f"服务不可用: {_UNAVAILABLE[code]}"}
    if isinstance(error, Refused):
        known = {"code": error.number, "logid": error.logid}
        extra = {name: value for name, value in known.items() if value is not None}
        return 400 if error.callers else 500, {"detail": _refused(upstream, error.status), **extra}
    if code in _OF_THE_UPSTREAM:
        return 500, {"detail": _refused(upstream, error.status)}
    text = _TEXTS.get(code, error.message)
    return error.status, {"detail": text.encode("utf-8", "backslashreplace").decode()}


def _refused(upstream: str, status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"{upstream} API请求失败: {status} {phrase}".rstrip()
