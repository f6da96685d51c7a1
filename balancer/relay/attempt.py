"""One request to one upstream with one key: send, judge, and pass on what is no refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from balancer.errors import AnswerBroken, ClientGone, ClientStalled, UpstreamError
from balancer.keypool.pool import Lease
from balancer.model import GONE, OK, Effect, Judgement, Verdict
from balancer.relay.exchange import Exchange, Refusal
from balancer.relay.learning import Lesson
from balancer.relay.retry import Failure
from balancer.relay.stream import Passing, copy
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Phase, Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.wire.encoding import inflate
from balancer.wire.headers import RESPONSE_DROP, end_to_end, first


async def attempt(exchange: Exchange, lease: Lease, begun: float) -> Failure | None:
    """Send the call with the leased key, and end the lease whatever happens. `begun` is now (monotonic).

    Returns None when the client has its answer, whole or cut; else what stood in the way, and then nothing has reached the
    client. Raises ClientGone, ClientStalled, and the ProxyError of a client's body that breaks its limits.
    """
    call, body, reply, upstream, record = (
        exchange.call,
        exchange.body,
        exchange.reply,
        exchange.upstream,
        exchange.record,
    )
    record.attempts += 1
    record.key = lease.key.fingerprint
    passing = Passing(reply, record, counts=lease.key.tpm is not None)
    judgement = GONE
    remaining = None if call.deadline is None else call.deadline - begun
    try:
        with Watchdog(upstream.timeouts, remaining, begun - record.started) as watchdog:
            answer = await _ask(exchange, lease, watchdog)
            if upstream.reach.troubled:
                upstream.reach.answered()
            try:
                refusal = await _refusal(exchange, answer, watchdog) if answer.status >= 300 else None
                if refusal is not None:
                    judgement = refusal.judgement
                    return refusal
                body.release()
                judgement = OK
                record.first_byte = exchange.now()
                answer.headers = end_to_end(answer.headers, RESPONSE_DROP)
                if call.rewrite is not None:
                    answer.headers = call.rewrite(answer.headers, lease.key.stable_owner)
                keepalive = exchange.rooms.keepalive if call.surface == "openai" else None
                lesson = None if call.effect is Effect.NONE else _lesson(exchange, lease)
                await copy(answer, passing, watchdog, lesson, keepalive)
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
        upstream.pool.report(lease, judgement, tokens=passing.tokens)


async def _ask(exchange: Exchange, lease: Lease, watchdog: Watchdog) -> Answer:
    """Send the request and wait for the answer's head."""
    body, upstream = exchange.body, exchange.upstream
    edits = exchange.edits
    content = body.content(edits)
    length = None
    upload: _Upload | None = None
    if content is not None and not isinstance(content, bytes):
        upload = _Upload(watchdog)
        content = upload.pace(content)
        length = body.length_with(edits)
    asked = exchange.now()
    try:
        return await upstream.transport.send(upstream.kind.prepare(exchange.call, lease.key), content, length)
    finally:
        exchange.record.upstream_wait += exchange.now() - asked
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


async def _refusal(exchange: Exchange, answer: Answer, watchdog: Watchdog) -> Refusal | None:
    """The answer read whole and judged, if it is one of error; None if it is to be passed on as it comes."""
    status = answer.status
    if status == 304 or (status == 308 and first(answer.headers, "location") is None):
        return None  # 308 without Location: "resume incomplete" of the older upload protocol
    if status < 400:
        raise AnswerBroken("it answered with a redirect")
    body = await answer.gather(ERROR_BODY_LIMIT, watchdog)
    text = inflate(body, first(answer.headers, "content-encoding") or "", ERROR_BODY_LIMIT)
    judgement = exchange.upstream.kind.judge(exchange.call, status, answer.headers, text or b"")
    return Refusal(judgement, status, answer.reason, answer.headers, body, text)


def _lesson(exchange: Exchange, lease: Lease) -> Lesson:
    pool, affinity = exchange.upstream.pool, exchange.rooms.affinity
    owner = pool.owner_of(lease.key.fingerprint)
    return Lesson(
        exchange.call, exchange.want, exchange.upstream.name, owner, affinity, exchange.naming, pool.owner_now
    )
