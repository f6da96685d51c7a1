"""State in this process: TTL maps, bounded; when full, the longest unused entry goes, of login sessions the oldest."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from cachetools import TLRUCache

from balancer.clock import Clock
from balancer.state.base import UNCLAIMED, Busy, Handle, Limit, LoginSession, Pin, Reached, Talk

MOST_CLIENTS = 16
"""Clients that one resource name is remembered for: names that callers choose can exist once for each key."""

WINDOW = 60.0
"""Seconds in which `rpm` counts."""


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

        self._owners: dict[tuple[str, str], dict[str, float]] = {}
        """By upstream and client: each owner of something, and when the last of it ends. Both are few: they are configured."""

    def __len__(self) -> int:
        return len(self._bound)

    async def owners_of(self, upstream: str, client: str) -> Collection[str]:
        known = self._owners.get((upstream, client), {})
        now = self._clock.monotonic()
        for owner in [owner for owner, end in known.items() if end <= now]:
            del known[owner]
        return tuple(known)

    def _owns(self, upstream: str, client: str, owner: str, end: float) -> None:
        known = self._owners.setdefault((upstream, client), {})
        known[owner] = max(end, known.get(owner, end))

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
        end = self._clock.monotonic() + ttl
        entry[client] = (owner, end)
        self._owns(upstream, client, owner, end)
        while len(entry) > MOST_CLIENTS:
            del entry[min(entry, key=lambda each: entry[each][1])]
        self._bound[upstream, root] = entry

    async def claim(self, upstream: str, root: str, client: str) -> None:
        entry = dict(self._bound.get((upstream, root)) or {})
        bound = entry.pop(UNCLAIMED, None)
        if bound is not None:
            self._bound[upstream, root] = {**entry, client: entry.get(client, bound)}
            self._owns(upstream, client, *bound)

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


@dataclass(slots=True)
class _Kept:
    """A session, when it ends, and when the request began that bound its model (monotonic)."""

    session: LoginSession
    end: float
    bound: float = float("-inf")


class MemoryLoginSessions:
    """`state.base.LoginSessions` in a map; for each client token beside it the order in which its sessions end.

    A session that is removed leaves its place in that order behind until it comes to the front, or until such places are the
    greater part.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[bytes, _Kept] = {}
        self._ends: dict[bytes, list[tuple[float, int, bytes]]] = {}
        self._counts: dict[bytes, int] = {}
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._kept)

    async def add(self, digest: bytes, session: LoginSession, ttl: float, most: int) -> None:
        now, owner = self._clock.monotonic(), session.bought_with
        self._make_room(owner, most, now)
        self._kept[digest] = _Kept(session, now + ttl)
        self._counts[owner] = self._counts.get(owner, 0) + 1
        heapq.heappush(self._ends.setdefault(owner, []), (now + ttl, next(self._numbers), digest))

    def _make_room(self, owner: bytes, most: int, now: float) -> None:
        """Forget what has ended, and what ends first while there are `most`."""
        ends = self._ends.get(owner, [])
        while ends and (ends[0][2] not in self._kept or ends[0][0] <= now or self._counts[owner] >= most):
            self._forget(heapq.heappop(ends)[2])

    async def get(self, digest: bytes) -> LoginSession | None:
        kept = self._living(digest)
        return None if kept is None else kept.session

    async def bind(self, digest: bytes, provider: str, model: str, ago: float = 0.0) -> None:
        kept, began = self._living(digest), self._clock.monotonic() - ago
        if kept is not None and began >= kept.bound:
            kept.session = dataclasses.replace(kept.session, provider=provider, model=model)
            kept.bound = began

    async def remove(self, digest: bytes) -> bool:
        kept = self._living(digest)
        if kept is None:
            return False
        self._forget(digest)
        return True

    def _living(self, digest: bytes) -> _Kept | None:
        kept = self._kept.get(digest)
        if kept is not None and kept.end <= self._clock.monotonic():
            self._forget(digest)
            return None
        return kept

    def _forget(self, digest: bytes) -> None:
        kept = self._kept.pop(digest, None)
        if kept is None:
            return
        owner = kept.session.bought_with
        self._counts[owner] -= 1
        ends = self._ends[owner]
        if not self._counts[owner]:
            del self._counts[owner], self._ends[owner]
        elif len(ends) > 2 * self._counts[owner] + 64:
            ends[:] = [each for each in ends if each[2] in self._kept]
            heapq.heapify(ends)


@dataclass(slots=True)
class _Asked:
    """Requests of one client: when those of the last 60 s came (monotonic), and how many run."""

    times: deque[float] = field(default_factory=deque)
    running: int = 0


class MemoryCounters:
    """`state.base.Counters` in a map. A client takes as many numbers as its `rpm`, and nothing once it has been silent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked: dict[str, _Asked] = {}

    def __len__(self) -> int:
        return len(self._asked)

    async def enter(self, client: str, rpm: int | None, concurrency: int | None) -> Reached | None:
        now = self._clock.monotonic()
        asked = self._asked.get(client)
        if asked is None:
            self._forget_silent(now)
            asked = self._asked[client] = _Asked()
        times = asked.times
        while times and times[0] + WINDOW <= now:
            times.popleft()
        if concurrency is not None and asked.running >= concurrency:
            return Reached(Limit.CONCURRENCY)
        if rpm is not None:
            if len(times) >= rpm:
                return Reached(Limit.RPM, times[-rpm] + WINDOW - now)
            times.append(now)
        if concurrency is not None:
            asked.running += 1
        return None

    async def leave(self, client: str, concurrency: int | None) -> None:
        asked = self._asked.get(client)
        if asked is not None and concurrency is not None:
            asked.running -= 1

    def _forget_silent(self, now: float) -> None:
        for client, asked in tuple(self._asked.items()):
            if not asked.running and not (asked.times and asked.times[-1] + WINDOW > now):
                del self._asked[client]


class MemoryTalks:
    """`state.base.Talks` in a map."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._talks: TLRUCache[Handle, tuple[Talk, float]] = TLRUCache(
            limit, ttu=lambda handle, entry, now: now + entry[1], timer=clock.monotonic
        )

    def __len__(self) -> int:
        return len(self._talks)

    async def get(self, handle: Handle, ttl: float) -> Talk | None:
        entry = self._talks.get(handle)
        if entry is None:
            return None
        self._talks[handle] = (entry[0], ttl)
        return entry[0]

    async def put(self, handle: Handle, talk: Talk, ttl: float) -> None:
        self._talks[handle] = (talk, ttl)

    async def drop(self, handle: Handle, talk: Talk) -> None:
        entry = self._talks.get(handle)
        if entry is not None and entry[0] == talk:
            del self._talks[handle]


class MemoryLocks:
    """`state.base.Locks` in this process: a line of those who wait, for each name that is held. A free one is taken at once,
    without letting anybody else run.
    """

    def __init__(self) -> None:
        self._lines: dict[Handle, deque[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @asynccontextmanager
    async def hold(self, name: Handle, wait: float) -> AsyncIterator[None]:
        line = self._lines.get(name)
        if line is None:
            self._lines[name] = deque()
        else:
            await self._queue(line, name, wait)
        try:
            yield
        finally:
            self._hand_over(name)

    async def _queue(self, line: deque[asyncio.Future[None]], name: Handle, wait: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            async with asyncio.timeout(wait):
                await turn
        except BaseException as ended:
            if turn in line:
                line.remove(turn)
            elif not turn.cancelled():  # it came to be ours just as we left
                self._hand_over(name)
            if isinstance(ended, TimeoutError):
                raise Busy from None
            raise

    def _hand_over(self, name: Handle) -> None:
        line = self._lines[name]
        while line:
            turn = line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        del self._lines[name]
