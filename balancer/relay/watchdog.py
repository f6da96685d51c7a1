"""One timer for everything that one attempt may wait for.

The waits: for the client's body (limited where it is read), for the first byte, between bytes, and for a client that
takes what it is sent; connecting is limited by the transport. `phase()` says which wait begins and costs two attribute
writes; the timer looks at them when it fires and goes back to sleep if something has happened since. It never runs
against a stream that is talking, nor against an upstream that we ourselves hold back for a slow reader: that wait belongs
to the client.
"""

from __future__ import annotations

import asyncio
import enum
from functools import lru_cache
from types import TracebackType

from balancer.errors import AnswerCut, ClientStalled, FirstByteTimeout
from balancer.model import Timeouts


class Phase(enum.Enum):
    """What is being waited for."""

    UPLOAD = "the client's body"
    """Limited by whoever reads it, and by the caller's deadline."""
    FIRST_BYTE = "first byte"
    IDLE = "next byte"
    CLIENT = "client"


_NEVER = float("inf")


@lru_cache(maxsize=64)
def _limits(timeouts: Timeouts) -> tuple[dict[Phase, float | None], float]:
    """Seconds by phase, and the fewest of them."""
    limits = {
        Phase.UPLOAD: None,
        Phase.FIRST_BYTE: timeouts.first_byte,
        Phase.IDLE: timeouts.idle,
        Phase.CLIENT: timeouts.idle,
    }
    return limits, min((limit for limit in limits.values() if limit is not None), default=_NEVER)


class Watchdog:
    """Ends its block with FirstByteTimeout, AnswerCut or ClientStalled when the present wait lasts too long.

    `remaining` is the caller's own patience in seconds: it ends any wait for the first byte, and nothing later. `spent` is
    what of `timeouts.total`, which ends everything, is already gone.
    """

    __slots__ = ("_deadline", "_end", "_handle", "_limits", "_loop", "_phase", "_scope", "_shortest", "_since")

    def __init__(self, timeouts: Timeouts, remaining: float | None = None, spent: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits, self._shortest = _limits(timeouts)
        self._phase = Phase.FIRST_BYTE
        self._since = now = self._loop.time()
        self._deadline = None if remaining is None else now + remaining
        self._end = None if timeouts.total is None else now + timeouts.total - spent
        self._scope = asyncio.timeout(None)
        self._handle: asyncio.TimerHandle | None = None

    def phase(self, phase: Phase) -> None:
        """Begin this wait now; also the sign of life within one."""
        self._phase = phase
        self._since = self._loop.time()

    async def __aenter__(self) -> Watchdog:
        await self._scope.__aenter__()
        self._arm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        try:
            await self._scope.__aexit__(kind, value, trace)
        except TimeoutError as expired:
            raise self._verdict() from expired

    def _verdict(self) -> Exception:
        match self._phase:
            case Phase.FIRST_BYTE | Phase.UPLOAD:
                return FirstByteTimeout("no answer within the time allowed")
            case Phase.IDLE:
                return AnswerCut("the upstream fell silent in the middle of its answer")
            case Phase.CLIENT:
                return ClientStalled("the client takes nothing of its answer")

    def _due(self) -> float | None:
        limit = self._limits[self._phase]
        ends = [self._since + limit] if limit is not None else []
        if self._deadline is not None and self._phase in (Phase.FIRST_BYTE, Phase.UPLOAD):
            ends.append(self._deadline)
        if self._end is not None:
            ends.append(self._end)
        return min(ends, default=None)

    def _arm(self) -> None:
        """Sleep until the present wait could end, and no longer than the shortest limit: the next wait may be that one."""
        wake = self._loop.time() + self._shortest
        due = self._due()
        if due is not None and due < wake:
            wake = due
        if wake < _NEVER:
            self._handle = self._loop.call_at(wake, self._wake)

    def _wake(self) -> None:
        due = self._due()
        if due is not None and due <= self._loop.time():
            self._handle = None
            self._scope.reschedule(self._loop.time())
        else:
            self._arm()
