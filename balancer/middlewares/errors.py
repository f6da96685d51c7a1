"""Turns whatever went wrong into an answer in the caller's dialect, or into a cut where an answer has begun."""

from __future__ import annotations

from collections.abc import Callable

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.errors import ClientGone, ClientStalled, ProxyError
from balancer.model import Record
from balancer.web import RECORD, SURFACE, Surface

log = structlog.get_logger()


def errors(default: Callable[[], Surface]) -> Middleware:
    """`default` answers errors of requests that no surface claims."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Exception as failure:
            return answer_to(failure, request, request[RECORD], default)

    return middleware


def answer_to(
    failure: Exception, request: web.Request, record: Record, default: Callable[[], Surface]
) -> web.StreamResponse:
    """The answer that tells of a failure. Raises ConnectionResetError where there is nobody, or no way, to tell."""
    match failure:
        case ProxyError():
            return _answer(request, record, failure, default)
        case web.HTTPException():
            return _answer(request, record, _from_aiohttp(request, failure), default)
        case ClientStalled():
            stalled = ProxyError(408, "request_timeout", f"The client fell silent: {failure}.", close=True)
            return _answer(request, record, stalled, default)
        case ClientGone() | ConnectionError():
            record.error = "client left"
            raise ConnectionResetError("client left") from failure
        case _:
            log.error("internal error", exc_info=failure, request_id=record.request_id, surface=record.surface)
            told = ProxyError(500, "internal_error", "An internal error; the log has it under this request id.")
            return _answer(request, record, told, default)


def _answer(
    request: web.Request, record: Record, failure: ProxyError, default: Callable[[], Surface]
) -> web.StreamResponse:
    record.error = failure.code
    if record.status:
        # The head of another answer is out: what follows would be read as its body.
        request.protocol.force_close()
        raise ConnectionResetError("answer cut")
    record.status = failure.status
    return (request[SURFACE] or default()).refuse(failure, request)


def _from_aiohttp(request: web.Request, refused: web.HTTPException) -> ProxyError:
    match refused.status:
        case 405:
            allow = refused.headers.get("Allow")
            return ProxyError(405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow=allow)
        case 404:
            return ProxyError(404, "unknown_url", f"Invalid URL ({request.method} {request.path})")
        case status:
            return ProxyError(status, "invalid_request", refused.reason)
