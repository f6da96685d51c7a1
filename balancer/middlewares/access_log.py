"""One line and one count for each request, when its last byte has gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.clock import Clock
from balancer.model import Record
from balancer.web import CLIENT, RECORD


def access_log(clock: Clock, finished: Callable[[dict[str, Any], Record], None]) -> Middleware:
    """`finished` gets the fields of the line, and the record they were made from."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = request[RECORD]
        try:
            response = await handler(request)
            if not response.prepared:
                record.status = response.status
                record.bytes_out = response.content_length or 0
            return response
        finally:
            client = request.get(CLIENT)
            if client is not None:
                record.client = client.name
            if record.surface or record.status != 200:  # health checks that find nothing wrong are no news
                finished(fields(record, clock.monotonic()), record)

    return middleware


def fields(record: Record, now: float) -> dict[str, Any]:
    """The access line. Durations in milliseconds, sizes in bytes; status 499: the client left before an answer."""
    line: dict[str, Any] = {
        "request_id": record.request_id,
        "client": record.client,
        "surface": record.surface,
        "method": record.method,
        "path": record.path,
        "model": record.model,
        "upstream": record.upstream,
        "key": record.key,
        "attempts": record.attempts,
        "status": record.status or 499,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "ms": round((now - record.started) * 1000, 2),
    }
    if record.first_byte is not None:
        line["ttfb_ms"] = round((record.first_byte - record.started) * 1000, 2)
        line["overhead_ms"] = round(overhead(record) * 1000, 3)
    if record.error is not None:
        line["error"] = record.error
    return line


def overhead(record: Record) -> float:
    """Seconds of the time to first byte that are our own doing: not the upstream's, the client's, or a wait for a key."""
    if record.first_byte is None:
        return 0.0
    return max(0.0, record.first_byte - record.started - record.upstream_wait - record.other_wait)
