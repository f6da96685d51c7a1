"""Gives each request its id and its record: the outermost middleware, so that all others find them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from itertools import count

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import istr

from balancer.clock import Clock
from balancer.model import Record
from balancer.web import RECORD, SURFACE, Surface

_FIELD = istr("X-Request-Id")
_USABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


_PROCESS = secrets.token_hex(5)
_numbers = count()


def new_id() -> str:
    """10 random hex digits of this process, and a number: unique among the requests that one log holds."""
    return f"{_PROCESS}{next(_numbers):06x}"


def begin(request: web.Request, now: float, surfaces: Sequence[Surface]) -> Record:
    """The request's record, begun `now` (monotonic), and the surface that claims it.

    `X-Request-Id` of the caller is kept where it is harmless in a log; else one is made.
    """
    given = request.headers.get(_FIELD)
    if given is not None and _USABLE.fullmatch(given) is not None:
        record = Record(now, given, request.method)
    else:
        record = Record(now, new_id(), request.method, own_id=True)
    record.path = request.raw_path.partition("?")[0]
    request[RECORD] = record
    for surface in surfaces:
        if surface.claims(request):
            request[SURFACE] = surface
            record.surface = surface.name
            return record
    request[SURFACE] = None
    return record


def mark(response: web.StreamResponse, record: Record) -> None:
    """Tell the caller the id, and what else the record has for it, in an answer that has not begun."""
    if response.prepared:
        return
    if "X-Request-Id" not in response.headers:
        response.headers["X-Request-Id"] = record.request_id
    response.headers.extend(record.fields)


def request_id(clock: Clock, surfaces: Callable[[], Sequence[Surface]]) -> Middleware:
    """The same as a middleware of its own."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        record = begin(request, clock.monotonic(), surfaces())
        response = await handler(request)
        mark(response, record)
        return response

    return middleware
