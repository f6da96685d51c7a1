"""Lets what is running finish before the process ends, and tells clients to go elsewhere for the next request."""

from __future__ import annotations

import asyncio

from balancer.model import Record


class Drain:
    """Counts requests in flight. Once `begin()` is called every answer closes its connection, and `idle` is awaitable."""

    def __init__(self) -> None:
        self.draining = False
        self.begun = asyncio.Event()
        """Set with `draining`: for those who hold a connection and would not end by themselves."""
        self.in_flight = 0
        self._idle: asyncio.Event | None = None
        """There while somebody waits."""

    def begin(self) -> None:
        self.draining = True
        self.begun.set()

    async def idle(self) -> None:
        """Returns when nothing is in flight."""
        while self.in_flight:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()

    def enter(self, record: Record) -> None:
        record.close = self.draining
        self.in_flight += 1

    def leave(self) -> None:
        self.in_flight -= 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()
            self._idle = None
