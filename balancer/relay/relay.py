"""A call's way through the proxy. Read `relay()` first: its lines are the steps, in the order they happen on the wire.

Whose fault a failure was (`Verdict`) decides everything: the caller's is passed on, a key's moves the call to another key,
the upstream's is repeated where that is safe (`retry`), and after the first byte to the client nothing is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from balancer.errors import ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import GONE, Call, Record, Verdict
from balancer.relay.attempt import attempt
from balancer.relay.exchange import Exchange, Refusal, Rooms, Upstream
from balancer.relay.leasing import choose, lease, no_key, resting
from balancer.relay.replay import Body
from balancer.relay.retry import Failure, Tries
from balancer.relay.stream import Reply
from balancer.routing.affinity import Want
from balancer.wire.encoding import inflate
from balancer.wire.headers import RESPONSE_DROP, end_to_end, first
from balancer.wire.resources import NOTHING, with_model

_SCANNED = 32 << 20
"""Bytes behind a body's content coding that are looked through for names."""


async def relay(call: Call, body: Body, reply: Reply, rooms: Rooms, record: Record) -> None:
    """Give `call` its answer through `reply`, or raise the ProxyError that is to be its answer.

    Also raises ClientGone and ClientStalled. If the reply has begun, an error has cut it already.
    """
    exchange = Exchange(call, body, reply, record, rooms, _route(call, rooms, record))
    try:
        await _gather(exchange)
        exchange.want = await _find(exchange)
        tries = Tries(exchange)
        while True:
            leased = await lease(exchange)
            failure = await attempt(exchange, leased)
            if failure is None:
                return
            pause = tries.pause_after(failure, leased.key.fingerprint)
            if pause is None:
                await _deliver(failure, exchange)
                return
            record.other_wait += pause
            await asyncio.sleep(pause)
    finally:
        record.bytes_in = body.size
        body.release()


def _route(call: Call, rooms: Rooms, record: Record) -> Upstream:
    """The upstream for the call's model; an alias becomes the model's own name, in the call and in its path."""
    choice = rooms.router.choose(call.model, call.dialect, call.client)
    if call.model is not None and choice.model != call.model:
        call.model = choice.model or call.model
        call.path = with_model(call.path, call.model)
    record.model, record.upstream = call.model, choice.upstream
    return rooms.upstreams[choice.upstream]


async def _gather(exchange: Exchange) -> None:
    """Read the body ahead where it may name something, or may have to be sent again."""
    call, body = exchange.call, exchange.body
    if call.streams or not (call.scans or body.fits):
        return
    began = exchange.now()
    await body.gather()
    exchange.record.other_wait += exchange.now() - began


async def _find(exchange: Exchange) -> Want:
    """Where the call must or would rather go; the owners of resources that nobody here knows are looked for."""
    call, rooms, upstream = exchange.call, exchange.rooms, exchange.upstream
    mentions = exchange.naming.mentions(_readable(exchange)) if call.scans else NOTHING
    if mentions is NOTHING and not (call.names or call.owner or call.session or call.uploads or call.address):
        return Want()
    want = await rooms.affinity.find(call, upstream.name, mentions, upstream.pool.owner_now)
    began = exchange.now()
    for root in want.unknown:
        owner = await _search(exchange, root)
        if owner is not None:
            await rooms.affinity.found(call, want, upstream.name, root, owner)
    exchange.record.other_wait += exchange.now() - began
    return want


def _readable(exchange: Exchange) -> Iterable[bytes]:
    """What is here of the body, behind its content coding, in overlapping windows."""
    coding = first(exchange.call.headers, "content-encoding")
    if coding is None:
        return exchange.body.windows()
    return [inflate(exchange.body.kept(), coding, _SCANNED) or b""]


async def _search(exchange: Exchange, root: str) -> str | None:
    deadline = exchange.call.deadline
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - exchange.now())):
            return await exchange.rooms.finder.find(exchange.call, exchange.upstream, exchange.naming, root)
    except TimeoutError:
        raise ProxyError(
            504, "upstream_timeout", f"The owner of {root} was not found within the time allowed."
        ) from None


async def _deliver(failure: Failure, exchange: Exchange) -> None:
    """Make a failure the call's answer: the upstream's own words where the fault is the caller's or the upstream's."""
    match failure:
        case Refusal(judgement=judgement) if judgement.verdict is Verdict.KEY and not exchange.call.streams:
            raise _refused_unrepeatable(exchange)
        case Refusal():
            await _pass_on(failure, exchange)
        case _:
            raise _failed(failure, exchange.upstream.name) from failure


def _refused_unrepeatable(exchange: Exchange) -> ProxyError:
    """The key was refused and the body is gone: the caller may send it again, and when that helps."""
    match choose(exchange):
        case Lease() as leased:
            exchange.upstream.pool.report(leased, GONE)
            message = "The key was refused and the body is too large to repeat; send it again."
            return ProxyError(429, "keys_resting", message, retry_after=1)
        case Wait(until, why):
            return resting(why, until, exchange.now())
        case NoKey(reasons):
            return no_key(reasons, exchange.want.owner)


async def _pass_on(refusal: Refusal, exchange: Exchange) -> None:
    """An upstream's error answer, untouched but for key text in it."""
    if refusal.text is None:
        name = exchange.upstream.name
        message = f"The upstream {name} answered {refusal.status} in a coding that cannot be checked for secrets."
        raise ProxyError(refusal.status, "upstream_error", message)
    body, drop = refusal.body, RESPONSE_DROP
    masked = exchange.rooms.mask(refusal.text)
    if masked is not refusal.text:
        body, drop = masked, drop | {"content-encoding", "content-length"}
    headers = [(name, _masked(value, exchange)) for name, value in end_to_end(refusal.headers, drop)]
    record, reply = exchange.record, exchange.reply
    record.first_byte = exchange.now()
    record.bytes_out = len(body)
    record.error = refusal.judgement.reason or None
    await reply.start(refusal.status, _masked(refusal.reason, exchange), headers)
    await reply.write(body)
    await reply.finish()


def _masked(text: str, exchange: Exchange) -> str:
    return exchange.rooms.mask(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _failed(failure: UpstreamError, upstream: str) -> ProxyError:
    match failure:
        case FirstByteTimeout():
            return ProxyError(504, "upstream_timeout", f"The upstream {upstream} gave {failure}.")
        case ConnectFailed():
            return ProxyError(502, "upstream_unreachable", f"The upstream {upstream} cannot be reached: {failure}.")
        case _:
            return ProxyError(502, "upstream_error", f"The upstream {upstream} gave no usable answer: {failure}.")
