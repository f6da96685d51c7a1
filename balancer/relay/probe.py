"""Asks disabled keys, at growing intervals, whether they are alive again: one free call each, outside any client's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from balancer.clock import Clock
from balancer.errors import ClientStalled, UpstreamError
from balancer.model import OK, Call, Judgement, Key, Timeouts, Verdict
from balancer.relay.exchange import Upstream
from balancer.relay.watchdog import Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.wire.encoding import inflate
from balancer.wire.headers import first

LOOK_EVERY = 5.0
"""Seconds between two looks at what is due; probes are hours apart, so nothing finer is needed."""
PROBE_TIMEOUTS = Timeouts(first_byte=30.0, idle=30.0, total=60.0)


async def probe_forever(upstreams: Callable[[], Iterable[Upstream]], clock: Clock) -> None:
    """Runs until cancelled."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for upstream in tuple(upstreams()):
            await probe_due(upstream)


async def probe_due(upstream: Upstream) -> None:
    """Probe every disabled key of one upstream whose time has come, and tell its pool."""
    for key in upstream.pool.due_probes():
        upstream.pool.probe_result(key, await probe(upstream, key))


async def probe(upstream: Upstream, key: Key) -> Judgement:
    """What a free call says of a key."""
    return await ask(upstream, upstream.kind.probe(), key, PROBE_TIMEOUTS)


async def ask(upstream: Upstream, call: Call, key: Key, timeouts: Timeouts) -> Judgement:
    """What the answer to a call of our own, without a body and outside any client's way, means. None at all: UPSTREAM."""
    try:
        with Watchdog(timeouts) as watchdog:
            answer = await upstream.transport.send(upstream.kind.prepare(call, key), None, None)
            try:
                if answer.status < 300:
                    return OK
                body = await answer.gather(ERROR_BODY_LIMIT, watchdog)
            finally:
                answer.close()
    except (UpstreamError, ClientStalled) as broken:
        return Judgement(Verdict.UPSTREAM, str(broken))
    text = inflate(body, first(answer.headers, "content-encoding") or "", ERROR_BODY_LIMIT)
    return upstream.kind.judge(call, answer.status, answer.headers, text or b"")
