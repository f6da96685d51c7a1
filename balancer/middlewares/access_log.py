"""One line and one count for each request, when its last byte has gone."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from balancer.model import Record
from balancer.web import CLIENT


def end(request: web.Request, record: Record, now: float, finished: Callable[[Record, float], None]) -> None:
    """Complete the record and hand it on, `now` (monotonic); health checks that find nothing wrong are no news."""
    try:  # noqa: SIM105 - a context manager of Python costs more than all of this
        record.client = request[CLIENT].name
    except KeyError:
        pass  # refused
    if record.surface or record.status != 200:
        finished(record, now)
