"""Which upstreams a call may go to, and where in each: before anything is sent.

The surface or the router says which, best first. What the call names or its session owns narrows them down to the one that has
it: only there is the owner, and it is never left (design, rule 1). Where two of them have what it names, it cannot go anywhere.
What nobody is known to have made is looked for in each.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

from balancer.errors import ProxyError
from balancer.model import Call
from balancer.relay.exchange import Exchange, Rooms, Way
from balancer.routing.affinity import Want
from balancer.wire.encoding import inflate
from balancer.wire.headers import first
from balancer.wire.resources import NOTHING, Mentions

_SCANNED = 32 << 20
"""Bytes behind a body's content coding that are looked through for names."""


def ways_of(call: Call, rooms: Rooms) -> list[Way]:
    """An upstream for each choice. Raises ProxyError where the router has none."""
    choices = call.choices or rooms.router.choose(call.model, call.dialect, call.client)
    return [Way(rooms.upstreams[choice.upstream], choice) for choice in choices]


def mentions_of(exchange: Exchange) -> Mentions | None:
    """What the call's body names; None where nothing binds the call at all, as it is of most."""
    call = exchange.call
    mentions = exchange.naming.mentions(_readable(exchange)) if call.scans else NOTHING
    if mentions is NOTHING and not (call.names or call.owner or call.session or call.uploads or call.address):
        return None
    return mentions


async def find_owner(exchange: Exchange, mentions: Mentions) -> None:
    """Where in each way the call must or would rather go; of several ways, only the owner's is left, if there is one.

    Raises ProxyError: what it names is another client's, of several owners, or cannot be looked for now.
    """
    call = exchange.call
    if len(exchange.ways) == 1:
        exchange.way.want = await _want(exchange, exchange.way, mentions)
    else:
        await _narrow(exchange, mentions)
    began = exchange.now()
    for root in dict.fromkeys(root for way in exchange.ways for root in way.want.unknown):
        await _look_for(exchange, root)
    exchange.record.other_wait += exchange.now() - began
    exchange.take(exchange.ways[0])
    call.owned = exchange.want.owner is not None


def _readable(exchange: Exchange) -> Iterable[bytes]:
    """What is here of the body, behind its content coding, in overlapping windows."""
    coding = first(exchange.call.headers, "content-encoding")
    if coding is None:
        return exchange.body.windows()
    return [inflate(exchange.body.kept(), coding, _SCANNED) or b""]


async def _want(exchange: Exchange, way: Way, mentions: Mentions) -> Want:
    upstream = way.upstream
    return await exchange.rooms.affinity.find(exchange.call, upstream.name, mentions, upstream.pool.owner_now)


async def _narrow(exchange: Exchange, mentions: Mentions) -> None:
    """Ask the bindings of all ways; if one of them has what the call is bound to, it is the only one left."""
    refusals: list[ProxyError] = []
    for way in exchange.ways:
        try:
            way.want = await _want(exchange, way, mentions)
        except ProxyError as refused:  # another client's there, and perhaps this one's elsewhere
            refusals.append(refused)
    home = _home(exchange.call, exchange.ways)
    if home is not None:
        exchange.ways = [home]
    elif refusals:
        raise refusals[0]


def _home(call: Call, ways: Sequence[Way]) -> Way | None:
    """The way that the call is bound to. Raises ProxyError 400 if it names what is in two of them."""
    if call.owner is not None:
        return next(
            (way for way in ways if way.upstream.pool.owner_now(call.owner) in way.upstream.pool.owners()), ways[0]
        )
    owners = {root: f"{way.upstream.name}/{owner}" for way in ways for root, owner in way.want.by_name.items()}
    Want(by_name=owners).settle()
    owned = next((way for way in ways if way.want.owner is not None), None)
    return owned or next((way for way in ways if way.want.pin is not None and way.want.pin.hard), None)


async def _look_for(exchange: Exchange, root: str) -> None:
    """Find the way that has a resource. One that cannot say leaves the question open, unless another has it."""
    unsaid: ProxyError | None = None
    for way in exchange.ways:
        if root not in way.want.unknown:
            continue
        try:
            owner = await _search(exchange, way, root)
        except ProxyError as error:
            unsaid = unsaid or error
            continue
        if owner is not None:
            await exchange.rooms.affinity.found(exchange.call, way.want, way.upstream.name, root, owner)
            exchange.ways = [way]
            return
    if unsaid is not None:
        raise unsaid


async def _search(exchange: Exchange, way: Way, root: str) -> str | None:
    deadline = exchange.call.deadline
    if way.upstream.reach.down:
        raise unreachable([way], exchange.now())
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - exchange.now())):
            return await exchange.rooms.finder.find(exchange.call, way.upstream, exchange.naming, root)
    except TimeoutError:
        raise ProxyError(
            504, "upstream_timeout", f"The owner of {root} was not found within the time allowed."
        ) from None


def unreachable(ways: Sequence[Way], now: float) -> ProxyError:
    """All that the call may go to are down; the first is asked again when `retry_after` says."""
    soonest = min(ways, key=lambda way: way.upstream.reach.next_probe).upstream
    after = max(1.0, math.ceil(soonest.reach.next_probe - now))
    message = f"The upstream {soonest.name} cannot be reached: {soonest.reach.reason}."
    return ProxyError(502, "upstream_unreachable", message, retry_after=after)
