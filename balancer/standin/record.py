"""What arrived, and a way to wait for it: tests ask for an event here and never sleep."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import orjson
from aiohttp import web

from balancer.clock import Clock
from balancer.model import fingerprint

KEPT_BODY = 1 << 20
KEPT_ARRIVALS = 10_000
KEPT_BODIES = 256 << 20
"""Bytes of all bodies together: the oldest are let go first, so that a long load test stays flat."""


@dataclass(slots=True, eq=False)
class Arrival:
    """One request as it came. Times are the clock's monotonic seconds, None while the thing has not happened.

    `body` is None once the request turns out larger than 1 MiB; `size` and `sha256` go on counting. `cancelled` is when
    the client left before its answer was whole; `finished` is when the handler ended for whatever reason. `key` is whose
    request it was: a chunk of an upload counts as its starter's though it brought none (what it brought is in `headers`).
    """

    number: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    connection: int
    arrived: float
    key: str | None = field(default=None, repr=False)
    project: str | None = None
    size: int = 0
    status: int | None = None
    fault: str | None = None
    sent: int = 0
    """Bytes of the answer's body that were handed to the socket."""
    cancelled: float | None = None
    finished: float | None = None
    _hash: Any = field(default_factory=hashlib.sha256, repr=False)
    _pieces: list[bytes] = field(default_factory=list, repr=False)

    @property
    def sha256(self) -> str:
        """Hex digest of what has arrived of the body."""
        return str(self._hash.hexdigest())

    @property
    def body(self) -> bytes | None:
        return b"".join(self._pieces) if self.kept == self.size else None

    @property
    def kept(self) -> int:
        """Bytes of the body that are still held."""
        return sum(map(len, self._pieces))

    def let_go(self) -> None:
        self._pieces.clear()

    @property
    def fingerprint(self) -> str | None:
        return None if self.key is None else fingerprint(self.key)

    @property
    def path(self) -> str:
        """The target without its query, percent-encoding untouched."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first field of that name, None if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def json(self) -> Any:
        if (body := self.body) is None:
            raise ValueError("the body was too large to keep, or too old")
        return orjson.loads(body)

    def feed(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
        if self.size <= KEPT_BODY:
            self._pieces.append(data)
        else:
            self.let_go()


Wanted = int | Callable[[Arrival], object]


class Record:
    """The last arrivals in order. With `enabled=False` nothing is kept and nothing can be waited for."""

    def __init__(self, clock: Clock, *, enabled: bool = True, budget: int = KEPT_BODIES) -> None:
        self.arrivals: deque[Arrival] = deque(maxlen=KEPT_ARRIVALS)
        self.count = 0
        self._clock = clock
        self._enabled = enabled
        self._budget = budget
        self._bodies: deque[tuple[Arrival, int]] = deque()
        self._kept = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._connections: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._connection = itertools.count(1)

    def open(self, request: web.BaseRequest) -> Arrival:
        self.count += 1
        arrival = Arrival(
            number=self.count,
            method=request.method,
            target=request.raw_path,
            headers=tuple(
                (name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape"))
                for name, value in request.raw_headers
            ),
            connection=self._connection_of(request),
            arrived=self._clock.monotonic(),
        )
        if self._enabled:
            self.arrivals.append(arrival)
            self.touch()
        return arrival

    def cancel(self, arrival: Arrival) -> None:
        """The client left. Says nothing about an arrival that had already ended."""
        if arrival.finished is None and arrival.cancelled is None:
            arrival.cancelled = self._clock.monotonic()

    def finish(self, arrival: Arrival) -> None:
        if arrival.finished is None:
            arrival.finished = self._clock.monotonic()
            if self._enabled:
                self._keep_within_budget(arrival)
            self.touch()

    def _keep_within_budget(self, arrival: Arrival) -> None:
        self._bodies.append((arrival, arrival.kept))
        self._kept += arrival.kept
        while self._kept > self._budget or len(self._bodies) > KEPT_ARRIVALS:
            oldest, size = self._bodies.popleft()
            oldest.let_go()
            self._kept -= size

    def touch(self) -> None:
        """Something changed: whoever waits looks again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_for(self, wanted: Wanted, timeout: float = 5.0) -> Arrival:
        """The first arrival that `wanted` says yes to, or with a number N the Nth since `clear`. TimeoutError else."""
        async with asyncio.timeout(timeout):
            while (found := self._find(wanted)) is None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
            return found

    def clear(self) -> None:
        """Forget the arrivals : what comes next starts a clean list."""
        self.arrivals.clear()
        self._bodies.clear()
        self._kept = 0

    def _find(self, wanted: Wanted) -> Arrival | None:
        if isinstance(wanted, int):
            return self.arrivals[wanted - 1] if 0 < wanted <= len(self.arrivals) else None
        return next((a for a in self.arrivals if wanted(a)), None)

    def _connection_of(self, request: web.BaseRequest) -> int:
        """aiohttp runs one task per connection: a number for each."""
        number = self._connections.get(request.task)
        if number is None:
            number = self._connections[request.task] = next(self._connection)
        return number
