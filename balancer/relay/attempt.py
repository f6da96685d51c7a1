"""One request to one upstream with one key: send, judge, and pass on what is no refusal.

`attempt()` ends its lease whatever happens. It returns None when the client has its answer, and what stood in the way
otherwise: a `Refusal` (an error answer, read whole) or an UpstreamError; nothing has reached the client then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from balancer.clock import Clock
from balancer.errors import AnswerBroken, ClientGone, ClientStalled, UpstreamError
from balancer.keypool.pool import KeyPool, Lease
from balancer.model import GONE, OK, Call, Judgement, Record, Timeouts, Verdict
from balancer.relay.replay import Body
from balancer.relay.stream import Reply, TokenCount, copy
from balancer.relay.transport import Answer, Transport
from balancer.relay.watchdog import Phase, Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT, UpstreamKind
from balancer.wire.encoding import inflate
from balancer.wire.headers import first


@dataclass(slots=True)
class Upstream:
    """A server we forward to: its kind, its keys, and the way there."""

    name: str
    kind_name: str
    base_url: str
    kind: UpstreamKind
    pool: KeyPool
    transport: Transport
    timeouts: Timeouts


@dataclass(slots=True)
class Refusal:
    """An error answer. `text` is its body behind any content coding; None where the coding is not known."""

    judgement: Judgement
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    text: bytes | None


Failure = Refusal | UpstreamError


async def attempt(
    call: Call, body: Body, reply: Reply, upstream: Upstream, lease: Lease, record: Record, clock: Clock
) -> Failure | None:
    """Send the call with the leased key. Raises ClientGone, ClientStalled, and ProxyError from the client's body."""
    record.attempts += 1
    record.key = lease.key.fingerprint
    tokens = TokenCount() if lease.key.tpm is not None else None
    judgement = GONE
    now = clock.monotonic()
    remaining = None if call.deadline is None else call.deadline - now
    try:
        async with Watchdog(upstream.timeouts, remaining, now - record.started) as watchdog:
            answer = await _ask(call, body, upstream, lease, record, watchdog, clock)
            try:
                refusal = await _refusal(call, upstream, answer, watchdog)
                if refusal is not None:
                    judgement = refusal.judgement
                    return refusal
                body.release()
                judgement = OK
                record.first_byte = clock.monotonic()
                await copy(answer, reply, watchdog, record, tokens)
                return None
            finally:
                answer.close()
    except UpstreamError as broken:
        if body.failure is not None:
            judgement = GONE
            raise body.failure from broken
        judgement = Judgement(Verdict.UPSTREAM, str(broken))
        if not reply.started:
            return broken
        reply.cut()
        record.error = f"cut: {broken}"
        return None
    except (asyncio.CancelledError, ClientGone, ClientStalled):
        judgement = GONE
        raise
    finally:
        upstream.pool.report(lease, judgement, tokens=tokens.total if tokens is not None else None)


async def _ask(
    call: Call, body: Body, upstream: Upstream, lease: Lease, record: Record, watchdog: Watchdog, clock: Clock
) -> Answer:
    """Send the request and wait for the answer's head."""
    content = body.content()
    length = None
    upload: _Upload | None = None
    if content is not None and not isinstance(content, bytes):
        upload = _Upload(watchdog)
        content = upload.pace(content)
        length = body.size if body.complete else body.length
    asked = clock.monotonic()
    try:
        return await upstream.transport.send(upstream.kind.prepare(call, lease.key), content, length)
    finally:
        record.upstream_wait += clock.monotonic() - asked
        if upload is not None:
            upload.answered = True


class _Upload:
    """Tells the watchdog whom we wait for while a body is being sent: the client, or an upstream that does not read."""

    __slots__ = ("_watchdog", "answered")

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self.answered = False

    async def pace(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._turn(Phase.UPLOAD)
        async for piece in pieces:
            self._turn(Phase.FIRST_BYTE)
            yield piece
            self._turn(Phase.UPLOAD)
        self._turn(Phase.FIRST_BYTE)

    def _turn(self, phase: Phase) -> None:
        if not self.answered:
            self._watchdog.phase(phase)


async def _refusal(call: Call, upstream: Upstream, answer: Answer, watchdog: Watchdog) -> Refusal | None:
    """The answer read whole and judged, if it is one of error; None if it is to be passed on as it comes."""
    status = answer.status
    if status < 300 or status == 304:
        return None
    if status < 400:
        raise AnswerBroken("it answered with a redirect")
    body = await answer.gather(ERROR_BODY_LIMIT, watchdog)
    text = inflate(body, first(answer.headers, "content-encoding") or "", ERROR_BODY_LIMIT)
    judgement = upstream.kind.judge(call, status, answer.headers, text or b"")
    return Refusal(judgement, status, answer.reason, answer.headers, body, text)
