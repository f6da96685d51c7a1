"""A call's way through the proxy. Read `relay()` first: its lines are the steps, in the order they happen on the wire.

What may be repeated, and how often, stands in `Tries`; one attempt is `attempt.attempt()`; the copying is `stream.copy()`.
Whose fault a failure was (`Verdict`) decides everything: the caller's is passed on, a key's moves the call to another key,
the upstream's is repeated where that is safe, and after the first byte to the client nothing is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from balancer.clock import Clock
from balancer.errors import ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.keypool.pool import KeyPool, Lease, NoKey, Wait
from balancer.model import GONE, Call, Record, Verdict
from balancer.relay.attempt import Failure, Refusal, Upstream, attempt
from balancer.relay.replay import Body
from balancer.relay.stream import Reply
from balancer.routing.router import Router
from balancer.wire.headers import RESPONSE_DROP, end_to_end, first

REPEAT_PAUSE = 0.25
"""Seconds before a call is repeated after an upstream's fault."""
CONNECT_PAUSE = 0.1
"""Seconds before connecting is tried again, doubled each time."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """What one configuration gives the relay: ways to go, and how patient and persistent to be.

    `attempts`: connections tried for one call; `max_wait`: seconds that a call waits for a key to come back; `mask` blots
    key text out of error bodies. A reload makes a new one; calls in flight keep theirs.
    """

    router: Router
    upstreams: Mapping[str, Upstream]
    attempts: int
    max_wait: float
    mask: Callable[[bytes], bytes]
    clock: Clock


async def relay(call: Call, body: Body, reply: Reply, rooms: Rooms, record: Record) -> None:
    """Give `call` its answer through `reply`, or raise the ProxyError that is to be its answer.

    Also raises ClientGone and ClientStalled. If the reply has begun, an error has cut it already.
    """
    upstream = _route(call, rooms, record)
    try:
        began = rooms.clock.monotonic()
        await body.gather()
        record.other_wait += rooms.clock.monotonic() - began
        tries = Tries(call, body, rooms)
        while True:
            lease = await _lease(upstream.pool, call, body, tries, rooms, record)
            failure = await attempt(call, body, reply, upstream, lease, record, rooms.clock)
            if failure is None:
                return
            pause = tries.pause_after(failure, lease)
            if pause is None:
                await _deliver(failure, upstream, call, reply, rooms, record)
                return
            record.other_wait += pause
            await asyncio.sleep(pause)
    finally:
        record.bytes_in = body.size
        body.release()


def _route(call: Call, rooms: Rooms, record: Record) -> Upstream:
    """The upstream for the call's model; an alias becomes the model's own name, in the call and in its path."""
    choice = rooms.router.choose(call.model, call.kind, call.client)
    if call.model is not None and choice.model != call.model:
        call.path = call.path.replace(f"/{quote(call.model)}", f"/{quote(choice.model or '')}", 1)
        call.model = choice.model
    record.model, record.upstream = call.model, choice.upstream
    return rooms.upstreams[choice.upstream]


class Tries:
    """What of a call may still be repeated.

    | failure | repeated | how often | pause |
    |---|---|---|---|
    | the key's | any call whose body is at hand | as long as there are keys | none |
    | no connection: nothing was sent | any call whose body is at hand | `rooms.attempts` in all | 0.1 s, doubled |
    | sent, then lost or answered with the upstream's fault | calls that change nothing (`call.repeatable`) | once | 0.25 s |
    | sent and never answered, or answered with nonsense | none | | |
    | the caller's | none | | |
    """

    def __init__(self, call: Call, body: Body, rooms: Rooms) -> None:
        self._call = call
        self._body = body
        self._rooms = rooms
        self._dials = 0
        self._repeated = False
        self.refused_by: set[str] = set()
        """Fingerprints to avoid while another key is ready."""

    def pause_after(self, failure: Failure, lease: Lease) -> float | None:
        """Seconds until the next attempt; None if this failure is to be the call's answer."""
        pause = self._pause(failure)
        if pause is None or not self._body.repeatable:
            return None
        deadline = self._call.deadline
        if deadline is not None and self._rooms.clock.monotonic() + pause >= deadline:
            return None
        self.refused_by.add(lease.key.fingerprint)
        return pause

    def _pause(self, failure: Failure) -> float | None:
        match failure:
            case Refusal(judgement=judgement):
                match judgement.verdict:
                    case Verdict.KEY:
                        return 0.0
                    case Verdict.UPSTREAM:
                        return self._repeat()
                    case Verdict.OK | Verdict.CALLER | Verdict.GONE:
                        return None
            case ConnectFailed():
                self._dials += 1
                return CONNECT_PAUSE * 2 ** (self._dials - 1) if self._dials < self._rooms.attempts else None
            case _ if failure.repeatable:
                return self._repeat()
            case _:
                return None

    def _repeat(self) -> float | None:
        if self._repeated or not self._call.repeatable:
            return None
        self._repeated = True
        return REPEAT_PAUSE


async def _lease(pool: KeyPool, call: Call, body: Body, tries: Tries, rooms: Rooms, record: Record) -> Lease:
    """The next ready key; waits for the first one back where that can succeed in time."""
    clock = rooms.clock
    began = clock.monotonic()
    limit = began + rooms.max_wait
    if call.deadline is not None:
        limit = min(limit, call.deadline)
    while True:
        match pool.lease(call.model, avoid=tries.refused_by, tokens=body.size // 4):
            case Lease() as lease:
                return lease
            case Wait(until, why):
                now = clock.monotonic()
                if now >= limit or (until is not None and until > limit):
                    raise _resting(why, until, now)
                await _change(pool, min(limit, until or limit) - now)
                record.other_wait += clock.monotonic() - now
            case NoKey(reasons):
                raise _no_key(reasons)


async def _change(pool: KeyPool, seconds: float) -> None:
    """Wait until the pool says that a key may be ready, or for `seconds`."""
    changed = asyncio.get_running_loop().create_future()
    forget = pool.subscribe(lambda: None if changed.done() else changed.set_result(None))
    try:
        async with asyncio.timeout(seconds):
            await changed
    except TimeoutError:
        pass
    finally:
        forget()


def _resting(why: str, until: float | None, now: float) -> ProxyError:
    after = 1.0 if until is None else max(1.0, math.ceil(until - now))
    return ProxyError(
        429, "keys_resting", f"Every key is resting ({why}); the first is back in {after:.0f} s.", retry_after=after
    )


def _no_key(reasons: tuple[tuple[str, str], ...]) -> ProxyError:
    said = "; ".join(f"{fingerprint}: {reason}" for fingerprint, reason in reasons[:10]) or "none is configured"
    return ProxyError(503, "no_usable_key", f"No usable key ({said}).")


async def _deliver(
    failure: Failure, upstream: Upstream, call: Call, reply: Reply, rooms: Rooms, record: Record
) -> None:
    """Make a failure the call's answer: the upstream's own words where the fault is the caller's or the upstream's."""
    match failure:
        case Refusal(judgement=judgement) if judgement.verdict is Verdict.KEY:
            raise _refused_unrepeatable(upstream.pool, call, rooms.clock.monotonic())
        case Refusal():
            await _pass_on(failure, upstream, reply, rooms, record)
        case _:
            raise _failed(failure, upstream.name) from failure


def _refused_unrepeatable(pool: KeyPool, call: Call, now: float) -> ProxyError:
    """The key was refused and the body is gone: the caller may send it again, and when that helps."""
    match pool.lease(call.model):
        case Lease() as lease:
            pool.report(lease, GONE)
            return ProxyError(
                429,
                "keys_resting",
                "The key was refused and the body is too large to repeat; send it again.",
                retry_after=1,
            )
        case Wait(until, why):
            return _resting(why, until, now)
        case NoKey(reasons):
            return _no_key(reasons)


async def _pass_on(refusal: Refusal, upstream: Upstream, reply: Reply, rooms: Rooms, record: Record) -> None:
    """An upstream's error answer, untouched but for key text in it."""
    if refusal.text is None:
        message = (
            f"The upstream {upstream.name} answered {refusal.status} in a coding that cannot be checked for secrets."
        )
        raise ProxyError(refusal.status, "upstream_error", message)
    body, drop = refusal.body, RESPONSE_DROP
    masked = rooms.mask(refusal.text)
    if masked is not refusal.text:
        body, drop = masked, drop | {"content-encoding", "content-length"}
    headers = end_to_end(refusal.headers, drop)
    if body and first(headers, "content-length") is None:
        headers.append(("Content-Length", str(len(body))))
    record.first_byte = rooms.clock.monotonic()
    record.bytes_out = len(body)
    record.error = refusal.judgement.reason or None
    await reply.start(refusal.status, refusal.reason, headers)
    await reply.write(body)
    await reply.finish()


def _failed(failure: UpstreamError, upstream: str) -> ProxyError:
    match failure:
        case FirstByteTimeout():
            return ProxyError(504, "upstream_timeout", f"The upstream {upstream} gave {failure}.")
        case ConnectFailed():
            return ProxyError(502, "upstream_unreachable", f"The upstream {upstream} cannot be reached: {failure}.")
        case _:
            return ProxyError(502, "upstream_error", f"The upstream {upstream} gave no usable answer: {failure}.")
