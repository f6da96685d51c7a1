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

    __slots__ = (
        "_cancelling",
        "_deadline",
        "_end",
        "_expired",
        "_handle",
        "_limits",
        "_loop",
        "_phase",
        "_shortest",
        "_since",
        "_task",
    )

    def __init__(self, timeouts: Timeouts, remaining: float | None = None, spent: float = 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._limits, self._shortest = _limits(timeouts)
        self._phase = Phase.FIRST_BYTE
        self._since = now = self._loop.time()
        self._deadline = None if remaining is None else now + remaining
        self._end = None if timeouts.total is None else now + timeouts.total - spent
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        self._cancelling = 0
        self._expired = False
        self._handle: asyncio.TimerHandle | None = None

    def phase(self, phase: Phase) -> None:
        """Begin this wait now; also the sign of life within one."""
        self._phase = phase
        self._since = self._loop.time()

    def __enter__(self) -> Watchdog:
        self._cancelling = self._task.cancelling()
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.cancel()
        # As asyncio.timeout does it: a cancellation is ours if we asked for it and nobody else has.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._verdict() from value

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
            self._expired = True
            self._task.cancel()
        else:
            self._arm()
