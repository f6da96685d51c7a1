"""A key for a call: where it must or would rather go, and otherwise whose turn it is; waiting where that can succeed."""

from __future__ import annotations

import asyncio
import math

import structlog

from balancer.errors import ProxyError
from balancer.keypool.pool import KeyPool, Lease, NoKey, Wait
from balancer.model import GONE, Effect
from balancer.relay.exchange import Exchange
from balancer.state.base import Pin

log = structlog.get_logger()


async def lease(exchange: Exchange) -> Lease:
    """The next ready key that the call may go to, its session bound to it before anything is sent.

    Waits for the first key back, up to `rooms.max_wait` and the caller's deadline; a wait that cannot succeed is not begun.
    Raises ProxyError 429 with the true Retry-After, or 503 where no key will come back.
    """
    limit = exchange.now() + exchange.rooms.max_wait
    if exchange.call.deadline is not None:
        limit = min(limit, exchange.call.deadline)
    while True:
        match choose(exchange):
            case Lease() as leased:
                if exchange.want.handle is None or await _pinned(exchange, leased):
                    return leased
            case Wait(until, why):
                now = exchange.now()
                if now >= limit or (until is not None and until > limit):
                    raise resting(why, until, now)
                await _change(exchange.upstream.pool, min(limit, until or limit) - now)
                exchange.record.other_wait += exchange.now() - now
            case NoKey(reasons):
                raise no_key(reasons, exchange.want.owner)


def choose(exchange: Exchange) -> Lease | Wait | NoKey:
    """What the pool has for this call now. A soft pin is left when its key is not ready, a hard one when it is gone."""
    pool, model, want = exchange.upstream.pool, exchange.call.model, exchange.want
    avoid, tokens = exchange.refused_by, exchange.body.size // 4
    if want.owner is not None:
        return pool.lease(model, owner=want.owner, avoid=avoid, tokens=tokens)
    if want.prefer is not None:
        hard = want.pin is not None and want.pin.hard
        if hard or not (_begins_something(exchange) and pool.outshone(want.prefer)):
            preferred = pool.lease(model, owner=want.prefer, avoid=avoid, tokens=tokens)
            if isinstance(preferred, Lease) or (hard and isinstance(preferred, Wait)):
                return preferred
    return pool.lease(model, avoid=avoid, tokens=tokens)


def _begins_something(exchange: Exchange) -> bool:
    """Whether the call makes something that later calls, of models that it does not name, will have to follow."""
    return exchange.call.model is None and exchange.call.effect is Effect.CREATE


async def _pinned(exchange: Exchange, leased: Lease) -> bool:
    """Whether the session may use this key: False if another call of it was quicker and has bound it to another."""
    call, want, pool = exchange.call, exchange.want, exchange.upstream.pool
    owner = pool.owner_of(leased.key.fingerprint)
    known = want.pin
    pinned = await exchange.rooms.affinity.pin(want, owner)
    pinned = Pin(pool.owner_now(pinned.owner), pinned.hard)
    if pinned.owner != owner:
        pool.report(leased, GONE)
        want.prefer, want.pin = pinned.owner, pinned
        return False
    if call.session is not None and known is not None and known.owner == owner:
        log.info(f"Reusing API key for session {call.session}", key=leased.key.fingerprint, client=call.client.name)
    return True


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


def resting(why: str, until: float | None, now: float) -> ProxyError:
    """Every key that the call may go to rests; `until` (monotonic) is when the first is back."""
    after = 1.0 if until is None else max(1.0, math.ceil(until - now))
    message = f"Every key is resting ({why}); the first is back in {after:.0f} s."
    return ProxyError(429, "keys_resting", message, retry_after=after)


def no_key(reasons: tuple[tuple[str, str], ...], owner: str | None) -> ProxyError:
    """No key that the call may go to will come back by itself. `reasons`: by fingerprint."""
    if owner is not None and not reasons:
        return ProxyError(503, "no_usable_key", "The key that owns what this request names is not configured any more.")
    said = "; ".join(f"{fingerprint}: {reason}" for fingerprint, reason in reasons[:10]) or "none is configured"
    return ProxyError(503, "no_usable_key", f"No usable key ({said}).")
