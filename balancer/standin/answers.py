"""Answers in Google's shape: the frame of headers, the JSON, and every error text that the stand-in can give.

Header fields and bodies are those of recorded traffic; key-fatal and quota texts are Google's own sentences, because a
proxy has to tell them apart by their words.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from multidict import CIMultiDict

Json = dict[str, Any]

JSON = "application/json; charset=UTF-8"
SSE = "text/event-stream"
SERVICE = "generativelanguage.googleapis.com"

FRAME: tuple[tuple[str, str], ...] = (
    ("Vary", "Origin"),
    ("Vary", "X-Origin"),
    ("Vary", "Referer"),
    ("Server", "scaffolding on HTTPServer2"),
    ("X-XSS-Protection", "0"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("X-Content-Type-Options", "nosniff"),
    ("Server-Timing", "gfet4t7; dur=1"),
)

_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass(slots=True)
class Reply:
    """One answer before it meets the socket. `length` is the size of a streamed body where it is known (else chunked)."""

    body: bytes | AsyncGenerator[bytes, None] = b""
    status: int = 200
    content_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = None
    frame: tuple[tuple[str, str], ...] = FRAME
    """The fields that every answer of its server has."""

    def head(self) -> CIMultiDict[str]:
        head = CIMultiDict(self.frame)
        if self.content_type:
            head["Content-Type"] = self.content_type
        head.extend(self.headers)
        return head


class Refusal(Exception):
    """An error answer, raised from wherever the reason is found."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def pretty(value: object) -> bytes:
    """JSON as Google's unary answers have it: two spaces of indent, a newline at the end."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def compact(value: object) -> bytes:
    """JSON on one line as Google's events have it."""
    return json.dumps(value, separators=(",", ": "), ensure_ascii=False).encode()


def ok(value: object, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    return Reply(pretty(value), headers=list(headers))


def error(
    status: int,
    message: str,
    details: Iterable[Json] = (),
    *,
    code: str | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> Reply:
    """`code` is the canonical status word where it is not the usual one of the HTTP status."""
    body: Json = {"code": status, "message": message, "status": code or _STATUS.get(status, "UNKNOWN")}
    if found := list(details):
        body["details"] = found
    return Reply(pretty({"error": body}), status, headers=list(headers))


def refuse(status: int, message: str, details: Iterable[Json] = (), *, code: str | None = None) -> Refusal:
    return Refusal(error(status, message, details, code=code))


def error_info(reason: str, **metadata: str) -> Json:
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": SERVICE, **metadata},
    }


def unregistered() -> Reply:
    return error(
        403,
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    )


def key_invalid(message: str = "API key not valid. Please pass a valid API key.") -> Reply:
    localized = {
        "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
        "locale": "en-US",
        "message": message,
    }
    return error(400, message, [error_info("API_KEY_INVALID"), localized])


def unauthenticated() -> Reply:
    return error(
        401,
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
        "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project.",
        [error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED")],
    )


def not_found() -> Reply:
    return error(404, "Requested entity was not found.")


def no_such_page() -> Reply:
    """What Google says to a path that is none of its API's: HTML, not JSON."""
    html = b"<!DOCTYPE html><html lang=en><title>Error 404 (Not Found)!!1</title><p>The requested URL was not found."
    return Reply(html, 404, "text/html; charset=UTF-8")


def model_not_found(model: str, version: str, method: str) -> Reply:
    text = (
        f"{model} is not found for API version {version}, or is not supported for {method}. "
        "Call ListModels to see the list of available models and their supported methods."
    )
    debug = {
        "@type": "type.googleapis.com/google.rpc.DebugInfo",
        "detail": f"[ORIGINAL ERROR] generic::not_found: {text}",
    }
    return error(404, text, [debug])


def file_denied(name: str) -> Reply:
    file = name.removeprefix("files/")
    return error(403, f"You do not have permission to access the File {file} or it may not exist.")


def cache_denied() -> Reply:
    return error(403, "CachedContent not found (or permission denied)")


def quota(
    model: str,
    *,
    period: str = "Minute",
    limit: int = 10,
    retry: str | None = "17s",
    violations: bool = True,
    info: Iterable[Json] = (),
) -> Reply:
    """429 as the free tier gives it. `period` is Minute or Day; `retry` is the RetryInfo delay."""
    metric = f"{SERVICE}/generate_content_free_tier_requests"
    message = (
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
        f"* Quota exceeded for metric: {metric}, limit: {limit}, model: {model}"
    )
    message += f"\nPlease retry in {retry}." if retry else ""
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    details: list[Json] = [{"@type": "type.googleapis.com/google.rpc.Help", "links": [link]}]
    if violations:
        violation = {
            "quotaMetric": metric,
            "quotaId": f"GenerateRequestsPer{period}PerProjectPerModel-FreeTier",
            "quotaDimensions": {"location": "global", "model": model},
        }
        violation |= {"quotaValue": str(limit)} if limit else {}
        details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]})
    details.extend(info)
    if retry:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry})
    return error(429, message, details)
