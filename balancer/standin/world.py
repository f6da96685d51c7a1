"""What every stand-in is made of: the world that requests share, and one request as it comes in, recorded on the way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from aiohttp import web

from balancer.clock import Clock
from balancer.standin.faults import Fault
from balancer.standin.record import Arrival, Record
from balancer.standin.shelf import Shelf

SEEN = web.RequestKey("seen", bytes)
"""Where a request keeps the bytes of its body that somebody has read already."""


class World:
    """Keys and their projects, models, and everything that was made."""

    def __init__(
        self,
        keys: Mapping[str, str],
        models: tuple[str, ...],
        clock: Clock,
        record: Record,
        shelf: Shelf,
        *,
        open_to_all: bool = False,
    ) -> None:
        self.keys = dict(keys)
        self.open_to_all = open_to_all
        """Any key will do, and all share one project."""
        self.models = models
        self.clock = clock
        self.record = record
        self.shelf = shelf

    def close(self) -> None:
        self.shelf.close()


class Incoming:
    """A request, its record, and its body in the three ways that handlers want it."""

    def __init__(self, record: Record, request: web.BaseRequest, arrival: Arrival) -> None:
        self.request = request
        self.arrival = arrival
        self.method = request.method
        self.query = request.query
        self.model: str | None = None
        """The model as the script knows it."""
        self.fault: Fault | None = None
        """What will happen to the answer, for handlers that send it themselves."""
        self._record = record

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives."""
        if seen := self.request.pop(SEEN, b""):
            self._take(seen)
            yield seen
        async for data in self.request.content.iter_any():
            self._take(data)
            yield data

    async def first(self) -> bytes:
        """What has come of the body, at least a byte unless it is empty. It stays to be read."""
        if SEEN not in self.request:
            self.request[SEEN] = await self.request.content.readany()
        return self.request[SEEN]

    async def drain(self) -> None:
        async for _ in self.chunks():
            pass

    async def gathered(self, limit: int) -> bytes | None:
        """The whole body; None where it is longer than `limit` bytes, which are then let go."""
        pieces: list[bytes] = []
        size = 0
        async for data in self.chunks():
            size += len(data)
            if size <= limit:
                pieces.append(data)
            else:
                pieces.clear()
        return b"".join(pieces) if size <= limit else None

    def _take(self, data: bytes) -> None:
        self.arrival.feed(data)
        self._record.touch()
