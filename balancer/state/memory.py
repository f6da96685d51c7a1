"""State in this process: TTL maps, bounded; when full, the longest unused entry goes."""

from __future__ import annotations

from collections.abc import Mapping

from cachetools import TLRUCache

from balancer.clock import Clock
from balancer.state.base import UNCLAIMED, Handle, Pin

MOST_CLIENTS = 16
"""Clients that one resource name is remembered for: names that callers choose can exist once for each key."""


class MemoryPins:
    """`state.base.Pins` in a map."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._pins: TLRUCache[Handle, tuple[Pin, float]] = TLRUCache(
            limit, ttu=lambda handle, entry, now: now + entry[1], timer=clock.monotonic
        )

    def __len__(self) -> int:
        return len(self._pins)

    async def claim(self, handle: Handle, pin: Pin, ttl: float) -> Pin:
        entry = self._pins.get(handle)
        if entry is not None:
            pin = entry[0]
        self._pins[handle] = (pin, ttl)
        return pin

    async def get(self, handle: Handle, ttl: float) -> Pin | None:
        entry = self._pins.get(handle)
        if entry is None:
            return None
        self._pins[handle] = (entry[0], ttl)
        return entry[0]

    async def put(self, handle: Handle, pin: Pin, ttl: float) -> None:
        self._pins[handle] = (pin, ttl)


class MemoryBindings:
    """`state.base.Bindings` in a map. An entry lives as long as its longest binding; each binding ends by itself."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._clock = clock
        self._bound: TLRUCache[tuple[str, str], dict[str, tuple[str, float]]] = TLRUCache(
            limit, ttu=lambda name, entry, now: max(end for _, end in entry.values()), timer=clock.monotonic
        )

    def __len__(self) -> int:
        return len(self._bound)

    async def owners(self, upstream: str, root: str) -> Mapping[str, str]:
        entry = self._bound.get((upstream, root))
        if not entry:
            return {}
        now = self._clock.monotonic()
        return {client: owner for client, (owner, end) in entry.items() if end > now}

    async def bind(self, upstream: str, root: str, client: str, owner: str, ttl: float) -> None:
        if ttl <= 0:
            return
        entry = dict(self._bound.get((upstream, root)) or {})
        if client != UNCLAIMED:
            entry.pop(UNCLAIMED, None)
        entry[client] = (owner, self._clock.monotonic() + ttl)
        while len(entry) > MOST_CLIENTS:
            del entry[min(entry, key=lambda each: entry[each][1])]
        self._bound[upstream, root] = entry

    async def claim(self, upstream: str, root: str, client: str) -> None:
        entry = dict(self._bound.get((upstream, root)) or {})
        bound = entry.pop(UNCLAIMED, None)
        if bound is not None:
            self._bound[upstream, root] = {**entry, client: entry.get(client, bound)}

    async def unbind(self, upstream: str, root: str, client: str) -> None:
        entry = {
            each: bound
            for each, bound in (self._bound.get((upstream, root)) or {}).items()
            if each not in (client, UNCLAIMED)
        }
        if entry:
            self._bound[upstream, root] = entry
        else:
            self._bound.pop((upstream, root), None)
