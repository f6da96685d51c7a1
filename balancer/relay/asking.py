"""Requests of our own making on a client's behalf: a key for each, the request, and what its answer means.

The counterpart of leasing.py and attempt.py for upstreams that keep the conversation: what is sent is a `Question` of the kind's,
small and whole, and each answer is read here, never passed on as it comes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from balancer.errors import AnswerCut, ConnectFailed, ProxyError, UpstreamError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import GONE, Judgement, Record, Verdict
from balancer.relay.exchange import Rooms, Upstream
from balancer.relay.leasing import no_key, resting, until_change
from balancer.relay.retry import CONNECT_PAUSE, REPEAT_PAUSE
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.upstreams.conversing import ConversingKind, Finding, Question, SessionKind
from balancer.wire.encoding import inflate
from balancer.wire.headers import first

_Heard = TypeVar("_Heard")

Hear = Callable[[Answer, Watchdog], Awaitable[tuple[Judgement, _Heard]]]
"""Reads an answer: what it means for the key, and what came of it."""


@dataclass(slots=True, eq=False)
class Asking:
    """One client's call as far as it has come. `deadline`: monotonic, the client's own; None: it is patient."""

    upstream: Upstream
    kind: ConversingKind
    rooms: Rooms
    record: Record
    deadline: float | None

    now: Callable[[], float] = field(init=False)
    patience: float = field(init=False)
    """Seconds that it may still wait for keys to come back, all waits together."""
    refused_by: frozenset[str] = frozenset()
    """Fingerprints of keys to avoid while another is ready."""
    tried: bool = False
    """A request was sent, or was to be."""
    dials: int = 0
    """Requests that found no connection."""
    _asked: float | None = None
    """Since when an upstream is waited for."""

    def __post_init__(self) -> None:
        self.now = self.rooms.clock.monotonic
        self.patience = self.rooms.max_wait

    @property
    def session_kind(self) -> SessionKind:
        """The kind, where conversations are made before anything is said in them: whoever begins such a call knows that."""
        return cast(SessionKind, self.kind)

    def within(self, seconds: float) -> float:
        """So many seconds, or what is left until the deadline."""
        return seconds if self.deadline is None else max(0.0, min(seconds, self.deadline - self.now()))

    def waits(self) -> None:
        """From now on the upstream is waited for."""
        self._asked = self.now()

    def heard(self) -> None:
        """What the upstream says from now on goes to the client at once."""
        if self._asked is not None:
            self.record.upstream_wait += self.now() - self._asked
            self._asked = None


def asking_of(upstream: Upstream, rooms: Rooms, record: Record, deadline: float | None) -> Asking:
    """The beginning of a call. The upstream is one that keeps the conversation."""
    kind = upstream.conversing
    assert kind is not None
    record.upstream = upstream.name
    return Asking(upstream, kind, rooms, record, deadline)


async def borrow(
    asking: Asking, owner: str | None = None, *, waits: bool = True, prefer: str | None = None
) -> Lease | Wait | NoKey:
    """The next ready key, of this owner if one is given; waiting for the first one back where that can succeed.

    `prefer`: fingerprint of the key to take if it is ready.

    The lease names no model: that is the conversation's. Raises ProxyError 502 where the upstream is down.
    """
    pool = asking.upstream.pool
    _check_reach(asking)
    while True:
        said = pool.lease(None, owner=owner, prefer=prefer, avoid=asking.refused_by)
        if isinstance(said, Lease):
            asking.tried = True
        if not waits or not isinstance(said, Wait):
            return said
        now = asking.now()
        limit = now + asking.within(asking.patience)
        until = limit if said.until is None else said.until
        if now >= limit or until > limit:
            return said
        await until_change((pool,), until - now)
        waited = asking.now() - now
        asking.patience -= waited
        asking.record.other_wait += waited


def _check_reach(asking: Asking) -> None:
    """A call that was there already may use up its attempts, and where nothing can probe, one call at a time may try."""
    reach = asking.upstream.reach
    if not reach.down or asking.tried:
        return
    if not reach.blind:
        error = asking.kind.told(ConnectFailed(reach.reason), reach.reason)
        error.retry_after = max(1.0, math.ceil(reach.next_probe - asking.now()))
        raise error
    reach.tried()


def lent(said: Lease | Wait | NoKey, owner: str | None, now: float) -> Lease:
    """The lease. Raises ProxyError: 429 with the true Retry-After where keys rest, 503 where none will come back."""
    match said:
        case Lease():
            return said
        case Wait(until=until, why=why):
            raise resting(why, until, now)
        case NoKey(reasons=reasons):
            raise no_key(reasons, owner)


async def ask(asking: Asking, leased: Lease, question: Question, hear: Hear[_Heard]) -> _Heard:
    """Send a question and let `hear` read its answer; the lease ends with what that means for the key.

    Raises UpstreamError, and whatever the client's side raises in `hear`: then nobody is blamed.
    """
    upstream, record = asking.upstream, asking.record
    record.attempts += 1
    record.key = leased.key.fingerprint
    asking.waits()
    begun = asking.now()
    remaining = None if asking.deadline is None else asking.deadline - begun
    judgement = GONE
    try:
        with Watchdog(upstream.timeouts, remaining, begun - record.started) as watchdog:
            answer = await upstream.transport.send(question.outbound, question.content, len(question.content))
            upstream.reach.answered()
            try:
                judgement, heard = await hear(answer, watchdog)
            finally:
                answer.close()
        return heard
    except UpstreamError as broken:
        judgement = Judgement(Verdict.UPSTREAM, str(broken))
        if not isinstance(broken, AnswerCut):
            upstream.reach.failed(str(broken), begun=begun, sent=not isinstance(broken, ConnectFailed))
        raise
    finally:
        asking.heard()
        upstream.pool.report(leased, judgement)


async def whole(answer: Answer, watchdog: Watchdog, limit: int = ERROR_BODY_LIMIT) -> bytes:
    """A whole body, behind its content coding; b"" where that is unknown."""
    body = await answer.gather(limit, watchdog)
    return inflate(body, first(answer.headers, "content-encoding") or "", limit) or b""


def told(asking: Asking, cause: Finding | UpstreamError) -> ProxyError:
    """How the client learns of a failure. Key text in the upstream's words is masked before anything is cut off them."""
    words = cause.text if isinstance(cause, Finding) else str(cause)
    masked = asking.rooms.mask(words.encode("utf-8", "replace")).decode("utf-8", "replace")
    return asking.kind.told(cause, masked)


async def pause(asking: Asking, cause: Finding | UpstreamError) -> None:
    """Wait a moment before what met this is tried again: not at all where another key does it."""
    match cause:
        case Finding(judgement=Judgement(verdict=Verdict.UPSTREAM)):
            seconds = REPEAT_PAUSE
        case Finding():
            return
        case ConnectFailed():
            seconds = CONNECT_PAUSE * 2**asking.dials
            asking.dials += 1
        case _:
            seconds = REPEAT_PAUSE
    began = asking.now()
    await asyncio.sleep(asking.within(seconds))
    asking.record.other_wait += asking.now() - began
