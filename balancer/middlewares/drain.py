"""Lets what is running finish before the process ends, and tells clients to go elsewhere for the next request."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.web import RECORD


class Drain:
    """Counts requests in flight. Once `begin()` is called every answer closes its connection, and `idle` is awaitable."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        self.draining = True

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        await self._idle.wait()

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()


def drain(state: Drain) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        state.enter()
        request[RECORD].close = state.draining
        try:
            response = await handler(request)
            if state.draining and not response.prepared:
                response.force_close()
            return response
        finally:
            state.leave()

    return middleware
