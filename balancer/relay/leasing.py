"""A key for a call: where it must or would rather go, and otherwise whose turn it is; waiting where that can succeed.

The upstreams that are left to the call are asked in order. One that is down is left out while another is not (keypool/reach.py);
where all are, only a call that has begun there may use up its attempts, or one call at a time where nothing can probe.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from balancer.errors import ProxyError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import GONE, Effect
from balancer.observe import logs
from balancer.relay.exchange import Exchange, Way
from balancer.relay.retry import Failure, shows
from balancer.relay.ways import unreachable
from balancer.state.base import Pin


def lease_at_once(exchange: Exchange) -> Lease | None:
    """A key that is ready, for a call that no session binds: most calls, which so pay for no waiting. Else None: see `lease`."""
    for way in exchange.ways:
        if way.want.handle is not None:
            return None
    leased = _first_ready(exchange, [])
    if leased is not None:
        exchange.way.tried = True
    return leased


async def lease(exchange: Exchange, failure: Failure | None) -> Lease | None:
    """The next ready key that the call may go to, its session bound to it before anything is sent; the exchange is on its way.

    Waits for the first key back, up to `rooms.max_wait` and the caller's deadline; a wait that cannot succeed is not begun.
    `failure` is what the last attempt met. Where there is no key, that is the answer (None) if it may be shown; else raises
    ProxyError: 429 with the true Retry-After, 503 where no key will come back, 502 where every upstream is down.
    """
    limit = exchange.now() + exchange.rooms.max_wait
    if exchange.call.deadline is not None:
        limit = min(limit, exchange.call.deadline)
    while True:
        nothing: list[Wait | NoKey] = []
        leased = _first_ready(exchange, nothing)
        if leased is None:
            now = exchange.now()
            until = _worth_waiting(nothing, limit, now)
            if until is not None:
                await until_change(_changing(exchange.ways), until - now)
                exchange.record.other_wait += exchange.now() - now
                continue
            leased = _last_resort(exchange)
        if leased is None:
            if failure is not None and shows(failure):
                return None
            raise _no_lease(exchange, nothing)
        if exchange.want.handle is None or await _pinned(exchange, leased):
            exchange.way.tried = True
            return leased


def nothing_ready(exchange: Exchange) -> ProxyError | None:
    """Why another such call would find no key now; None if it would find one."""
    way, nothing = exchange.way, list[Wait | NoKey]()
    leased = _first_ready(exchange, nothing)
    if leased is None:
        return _no_lease(exchange, nothing)
    exchange.upstream.pool.report(leased, GONE)
    exchange.take(way)
    return None


def _first_ready(exchange: Exchange, nothing: list[Wait | NoKey]) -> Lease | None:
    """A key of the first way that has one; what the others said instead goes into `nothing`."""
    for way in exchange.ways:
        if way.upstream.reach.down:
            continue
        match _choose(exchange, way):
            case Lease() as leased:
                exchange.take(way)
                return leased
            case said:
                nothing.append(said)
    return None


def _last_resort(exchange: Exchange) -> Lease | None:
    """A key of a way that is down: for a call that was on it already, or in place of a probe that has no key."""
    for way in exchange.ways:
        reach = way.upstream.reach
        if not reach.down or not (way.tried or reach.blind):
            continue
        leased = _choose(exchange, way)
        if isinstance(leased, Lease):
            exchange.take(way)
            if reach.blind:
                reach.tried()
            return leased
    return None


def _worth_waiting(nothing: Sequence[Wait | NoKey], limit: float, now: float) -> float | None:
    """Until when (monotonic) to wait for what may become ready; None where that is too late or never."""
    waits = [said for said in nothing if isinstance(said, Wait)]
    if not waits or now >= limit:
        return None
    first = min((wait.until for wait in waits if wait.until is not None), default=limit)
    if first > limit and all(wait.until is not None for wait in waits):
        return None
    return min(first, limit)


def _no_lease(exchange: Exchange, nothing: Sequence[Wait | NoKey]) -> ProxyError:
    waits = [said for said in nothing if isinstance(said, Wait)]
    if waits:
        first = min(waits, key=lambda wait: math.inf if wait.until is None else wait.until)
        return resting(first.why, first.until, exchange.now())
    down = [way for way in exchange.ways if way.upstream.reach.down]
    if down:
        return unreachable(down, exchange.now())
    reasons = tuple(reason for said in nothing if isinstance(said, NoKey) for reason in said.reasons)
    return no_key(reasons, exchange.want.owner)


def _choose(exchange: Exchange, way: Way) -> Lease | Wait | NoKey:
    """What the pool has for this call now. A soft pin is left when its key is not ready, a hard one when it is gone."""
    want = way.want
    if want.owner is not None:
        return _lend(exchange, way, want.owner)
    if want.prefer is not None:
        hard = want.pin is not None and want.pin.hard
        if hard or not (_begins_something(exchange, way) and way.upstream.pool.outshone(want.prefer)):
            preferred = _lend(exchange, way, want.prefer)
            if isinstance(preferred, Lease) or (hard and isinstance(preferred, Wait)):
                return preferred
    return _lend(exchange, way)


def _lend(exchange: Exchange, way: Way, owner: str | None = None) -> Lease | Wait | NoKey:
    """A key of the pool, or of this owner; none where all that are ready have refused this very call."""
    pool = way.upstream.pool
    leased = pool.lease(way.choice.model, owner=owner, avoid=way.refused_by, tokens=exchange.body.size // 4)
    if way.spurned_by and isinstance(leased, Lease) and leased.key.fingerprint in way.spurned_by:
        pool.report(leased, GONE)
        return NoKey(())
    return leased


def _begins_something(exchange: Exchange, way: Way) -> bool:
    """Whether the call makes something that later calls, of models that it does not name, will have to follow."""
    return way.choice.model is None and exchange.call.effect is Effect.CREATE


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
        logs.info(f"Reusing API key for session {call.session}", key=leased.key.fingerprint, client=call.client.name)
    return True


class Changes(Protocol):
    """What tells of changes: a pool (a key may be ready), a reach (an upstream is up again)."""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]: ...


def _changing(ways: Sequence[Way]) -> list[Changes]:
    return [each for way in ways for each in (way.upstream.pool, way.upstream.reach)]


async def until_change(subjects: Iterable[Changes], seconds: float) -> None:
    """Wait until one of them tells of a change, or for `seconds`."""
    changed = asyncio.get_running_loop().create_future()

    def tell() -> None:
        if not changed.done():
            changed.set_result(None)

    forget = [each.subscribe(tell) for each in subjects]
    try:
        async with asyncio.timeout(seconds):
            await changed
    except TimeoutError:
        pass
    finally:
        for end in forget:
            end()


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
