"""What web pages of other origins may do, where a surface lists their origin (https://fetch.spec.whatwg.org/#http-cors-protocol).

Credentials of the browser are never allowed: a page shows a token of its own, or is let in by its origin. A preflight says
nothing that a page could not find out by trying, so it is answered before anybody is asked who they are.
"""

from __future__ import annotations

from collections.abc import Awaitable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from balancer.web import RECORD, SURFACE, is_listed

METHODS = "GET, POST, PUT, PATCH, DELETE"
EXPOSED = "x-session-id, x-conversation-id, x-request-id, retry-after"
MAX_AGE = "600"
"""Seconds for which a browser may remember a preflight."""


def cors() -> Middleware:
    """Answers preflights, and marks every answer to a page of a listed origin, errors included."""

    @web.middleware
    def middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        origin = request.headers.get(hdrs.ORIGIN)  # nearly no caller is a web page: the others pay for no coroutine
        return handler(request) if origin is None else crossing(request, handler, origin)

    async def crossing(request: web.Request, handler: Handler, origin: str) -> web.StreamResponse:
        surface = request[SURFACE]
        if surface is None:
            return await handler(request)
        allowed = surface.allowed_origins()
        if not is_listed(origin, allowed):
            return await handler(request)
        fields = [("Access-Control-Allow-Origin", "*" if "*" in allowed else origin)]
        if "*" not in allowed:
            fields.append(("Vary", "Origin"))
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return _preflight(request, fields)
        fields.append(("Access-Control-Expose-Headers", EXPOSED))
        request[RECORD].fields += tuple(fields)
        return await handler(request)

    return middleware


def _preflight(request: web.Request, fields: list[tuple[str, str]]) -> web.Response:
    answer = web.Response(status=204, headers=fields)
    answer.headers["Access-Control-Allow-Methods"] = METHODS
    answer.headers["Access-Control-Max-Age"] = MAX_AGE
    asked = request.headers.get("Access-Control-Request-Headers")
    if asked:
        answer.headers["Access-Control-Allow-Headers"] = asked
    return answer
