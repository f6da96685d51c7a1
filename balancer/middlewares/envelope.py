"""What is around every request: its id and record, the drain, errors in the caller's dialect, and its line at the end.

Each part is a function of its own module; here they are one coroutine, because every request pays for each that is nested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.clock import Clock
from balancer.middlewares.access_log import end
from balancer.middlewares.drain import Drain
from balancer.middlewares.errors import answer_to
from balancer.middlewares.request_id import begin, mark
from balancer.model import Record
from balancer.web import Surface


def envelope(
    clock: Clock,
    surfaces: Callable[[], Sequence[Surface]],
    drain: Drain,
    default: Callable[[], Surface],
    finished: Callable[[Record, float], None],
) -> Middleware:
    """`default` answers errors of requests that no surface claims; `finished` gets each record and the monotonic end."""
    monotonic = clock.monotonic

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = begin(request, monotonic(), surfaces())
        drain.enter(record)
        try:
            try:
                response = await handler(request)
                if drain.draining and not response.prepared:
                    response.force_close()
            except asyncio.CancelledError:
                record.error = "client left"
                raise
            except Exception as failure:
                response = answer_to(failure, request, record, default)
            finally:
                drain.leave()
            if not response.prepared:
                record.status = response.status
                record.bytes_out = response.content_length or 0
                mark(response, record)
            return response
        finally:
            end(request, record, monotonic(), finished)

    return middleware
