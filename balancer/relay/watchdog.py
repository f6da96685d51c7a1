"""One timer for everything that one attempt may wait for.

The waits: for the client's body (limited where it is read), for the first byte, between bytes, and for a client that
takes what it is sent; connecting is limited by the transport. `phase()` says which wait begins and costs two attribute
writes. One timer a loop looks at all attempts when the first of them can be over its limit. It never runs against a
stream that is talking, nor against an upstream that we ourselves hold back for a slow reader: that wait belongs to the
client.
"""

from __future__ import annotations

import asyncio
import enum
from types import TracebackType

from balancer.errors import AnswerStalled, ClientStalled, FirstByteTimeout
from balancer.model import Timeouts


class Phase(enum.Enum):
    """What is being waited for."""

    UPLOAD = "the client's body"
    """Limited by whoever reads it, and by the caller's deadline."""
    FIRST_BYTE = "first byte"
    IDLE = "next byte"
    CLIENT = "client"


FIRST_BYTE, IDLE, CLIENT = Phase.FIRST_BYTE, Phase.IDLE, Phase.CLIENT
"""The same by their names alone: looking one up in its class costs as much as all else that `phase()` does."""

_NEVER = float("inf")

TICK = 0.02
"""Seconds between two looks at all attempts, at least."""


class _Sweep:
    """The attempts of one loop, and the one timer for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.watched: set[Watchdog] = set()
        self.wake = _NEVER
        self._handle: asyncio.TimerHandle | None = None

    def by(self, when: float) -> None:
        """Look at all no later than then, which is before `wake`."""
        if self._handle is not None:
            self._handle.cancel()
        self.wake = when
        self._handle = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        self._handle, self.wake = None, _NEVER
        now = self.loop.time()
        first = _NEVER
        for each in tuple(self.watched):
            due = each.due()
            if due <= now:
                self.watched.discard(each)
                each.expire()
            else:
                first = min(first, now + each.shortest(), due)
        if first < _NEVER:
            self.by(max(first, now + TICK))


_sweep: _Sweep | None = None


def _sweep_of(loop: asyncio.AbstractEventLoop) -> _Sweep:
    global _sweep  # noqa: PLW0603 - a process has one loop; tests have one after the other
    if _sweep is None or _sweep.loop is not loop:
        _sweep = _Sweep(loop)
    return _sweep


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
        "_phase",
        "_since",
        "_sweep",
        "_task",
        "_time",
        "_timeouts",
    )

    def __init__(self, timeouts: Timeouts, remaining: float | None = None, spent: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = _sweep_of(loop)
        self._time = loop.time
        self._timeouts = timeouts
        self._phase = FIRST_BYTE
        self._since = now = loop.time()
        self._deadline = _NEVER if remaining is None else now + remaining
        self._end = _NEVER if timeouts.total is None else now + timeouts.total - spent
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._cancelling = 0
        self._expired = False

    def phase(self, phase: Phase) -> None:
        """Begin this wait now; also the sign of life within one."""
        self._phase = phase
        self._since = self._time()

    def __enter__(self) -> Watchdog:
        self._cancelling = self._task.cancelling()
        self._sweep.watched.add(self)
        wake = min(self._since + self._timeouts.shortest, self._deadline, self._end)
        if wake < self._sweep.wake:
            self._sweep.by(wake)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweep.watched.discard(self)
        # As asyncio.timeout does it: a cancellation is ours if we asked for it and nobody else has.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self._verdict() from value

    def _verdict(self) -> Exception:
        match self._phase:
            case Phase.FIRST_BYTE | Phase.UPLOAD:
                return FirstByteTimeout("no answer within the time allowed")
            case Phase.IDLE:
                return AnswerStalled("the upstream fell silent in the middle of its answer")
            case Phase.CLIENT:
                return ClientStalled("the client takes nothing of its answer")

    @property
    def expired(self) -> bool:
        """The present wait has lasted too long: what cancels the block is this."""
        return self._expired

    def shortest(self) -> float:
        return self._timeouts.shortest

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()

    def due(self) -> float:
        """When the present wait has lasted too long; infinity where nothing limits it."""
        match self._phase:
            case Phase.UPLOAD:
                return min(self._deadline, self._end)
            case Phase.FIRST_BYTE:
                return min(self._since + _seconds(self._timeouts.first_byte), self._deadline, self._end)
            case Phase.IDLE | Phase.CLIENT:
                return min(self._since + _seconds(self._timeouts.idle), self._end)


def _seconds(limit: float | None) -> float:
    return _NEVER if limit is None else limit
