"""A call's way through the proxy. Read `relay()` first: its lines are the steps, in the order they happen on the wire.

Whose fault a failure was (`Verdict`) decides everything: the caller's is passed on, a key's moves the call to another key,
the upstream's is repeated where that is safe (`retry`), there or at the next upstream that serves the model (`ways`), and after
the first byte to the client nothing is.
"""

from __future__ import annotations

import asyncio

from balancer.errors import AnswerCut, ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.model import Call, Record
from balancer.relay.attempt import attempt
from balancer.relay.exchange import Exchange, Refusal, Rooms
from balancer.relay.leasing import lease, lease_at_once, nothing_ready
from balancer.relay.replay import Body
from balancer.relay.retry import Failure, pause_after, shows
from balancer.relay.stream import Reply
from balancer.relay.ways import find_owner, mentions_of, unreachable, ways_of
from balancer.routing.limits import limited
from balancer.wire.headers import RESPONSE_DROP, end_to_end
from balancer.wire.openai_errors import unbracket


async def relay(call: Call, body: Body, reply: Reply, rooms: Rooms, record: Record) -> None:
    """Give `call` its answer through `reply`, or raise the ProxyError that is to be its answer.

    Also raises ClientGone and ClientStalled. If the reply has begun, an error has cut it already.
    """
    exchange = Exchange(call, body, reply, record, rooms, ways_of(call, rooms))
    admitted = False
    try:
        if not (body.complete or call.streams) and (call.scans or body.fits):
            await _gather(exchange)
        mentions = mentions_of(exchange)
        if mentions is not None:
            await find_owner(exchange, mentions)
        if limited(call.client):
            await rooms.limits.admit(call.client)
            admitted = True
        failure: Failure | None = None
        while (leased := lease_at_once(exchange) or await lease(exchange, failure)) is not None:
            begun = exchange.now()
            failure = await attempt(exchange, leased, begun)
            _learn_reach(exchange, failure, begun)
            if failure is None:
                return
            pause = pause_after(failure, exchange, leased.key.fingerprint)
            if pause is None:
                break
            record.other_wait += pause
            await asyncio.sleep(pause)
        assert failure is not None  # else there would be a key, or a ProxyError
        await _deliver(failure, exchange)
    finally:
        record.bytes_in = body.size
        body.release()
        if admitted:
            await rooms.limits.release(call.client)


async def _gather(exchange: Exchange) -> None:
    """Read the body ahead: it may name something, or may have to be sent again."""
    began = exchange.now()
    await exchange.body.gather()
    exchange.record.other_wait += exchange.now() - began


def _learn_reach(exchange: Exchange, failure: Failure | None, begun: float) -> None:
    """What an attempt begun then says of the upstream as a whole: that it answered, if only with an error, or did not."""
    reach = exchange.upstream.reach
    match failure:
        case None:
            reach.answered(exchange.record.first_byte)
        case Refusal() | AnswerCut():
            reach.answered()
        case _:
            reach.failed(str(failure), begun=begun, sent=not isinstance(failure, ConnectFailed))


async def _deliver(failure: Failure, exchange: Exchange) -> None:
    """Make a failure the call's answer: the upstream's own words where the fault is the caller's or the upstream's."""
    match failure:
        case Refusal() if not shows(failure) and not exchange.call.streams:
            again = ProxyError(
                429, "keys_resting", "The key was refused and the body is too large to repeat.", retry_after=1
            )
            raise nothing_ready(exchange) or again
        case Refusal():
            await _pass_on(failure, exchange)
        case ConnectFailed() if exchange.upstream.reach.down:
            raise unreachable([exchange.way], exchange.now()) from failure
        case _:
            raise _failed(failure, exchange.upstream.name) from failure


async def _pass_on(refusal: Refusal, exchange: Exchange) -> None:
    """An upstream's error answer, untouched but for key text in it."""
    if refusal.text is None:
        name = exchange.upstream.name
        message = f"The upstream {name} answered {refusal.status} in a coding that cannot be checked for secrets."
        raise ProxyError(refusal.status, "upstream_error", message)
    body, drop = refusal.body, RESPONSE_DROP
    text = refusal.text
    if exchange.call.surface == "openai":  # Google puts its error into a list there; SDKs look for an object
        text = unbracket(text) or text
    masked = exchange.rooms.mask(text)
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
