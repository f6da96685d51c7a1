"""Questions of our own to upstreams, outside any client's way: free calls, each with one key and a limit of time.

Two sorts are asked by themselves: whether a disabled key is alive again (at growing intervals of hours), and whether an
upstream that gave no answer can be reached again (within seconds, with any ready key; `keypool.reach` says when). What comes of
any question is told to the upstream's reach, as it is of clients' calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from balancer.clock import Clock
from balancer.errors import AnswerCut, ClientStalled, ConnectFailed, UpstreamError
from balancer.keypool.pool import Lease
from balancer.model import GONE, OK, Call, Headers, Judgement, Key, Outbound, Timeouts, Verdict
from balancer.relay.exchange import Upstream
from balancer.relay.expiry import ended
from balancer.relay.watchdog import Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.wire.encoding import inflate
from balancer.wire.headers import first

LOOK_EVERY = 5.0
"""Seconds between two looks at what is due; probes of keys are hours apart, so nothing finer is needed."""
PROBE_TIMEOUTS = Timeouts(first_byte=30.0, idle=30.0, total=60.0)
REACH_TIMEOUTS = Timeouts(first_byte=5.0, idle=5.0, total=5.0)
"""Connecting included: an upstream that is up lists one model well within that."""
REACH_LOOK = 0.2
"""Seconds between two looks at an upstream that is down: a call's answer may bring it up before its next probe is due."""


async def probe_forever(upstreams: Callable[[], Iterable[Upstream]], clock: Clock) -> None:
    """Runs until cancelled."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        for upstream in tuple(upstreams()):
            await probe_due(upstream, clock)


async def probe_due(upstream: Upstream, clock: Clock) -> None:
    """Probe every disabled key of one upstream whose time has come, and tell its pool: none that has ended by itself."""
    for key in upstream.pool.due_probes(lambda key: ended(upstream, key, clock.wall())):
        upstream.pool.probe_result(key, await probe(upstream, key))


async def probe(upstream: Upstream, key: Key) -> Judgement:
    """What a free call says of a key. No answer at all: UPSTREAM."""
    try:
        return await _asked_after(upstream, key, PROBE_TIMEOUTS)
    except (UpstreamError, ClientStalled) as broken:
        return Judgement(Verdict.UPSTREAM, str(broken))


async def ask(upstream: Upstream, call: Call, key: Key, timeouts: Timeouts) -> Judgement:
    """What the answer to a call of our own, without a body, means. None at all: UPSTREAM."""
    try:
        return (await fetch(upstream, call, key, timeouts)).judgement
    except (UpstreamError, ClientStalled) as broken:
        return Judgement(Verdict.UPSTREAM, str(broken))


async def _asked_after(upstream: Upstream, key: Key, timeouts: Timeouts) -> Judgement:
    """What the answer to its kind's own free call says of a key. Raises UpstreamError, ClientStalled."""
    if upstream.passing is not None:
        return (await fetch(upstream, upstream.passing.probe(), key, timeouts)).judgement
    kind = upstream.conversing
    assert kind is not None
    question = kind.probe(key)
    answer = await _read(upstream, question.outbound, question.content, timeouts, ERROR_BODY_LIMIT)
    return kind.find(*answer).judgement


@dataclass(frozen=True, slots=True)
class Told:
    """An answer to a question of ours, read and judged. `body`: behind its content coding, b"" where that is unknown."""

    judgement: Judgement
    headers: Headers
    body: bytes


async def fetch(upstream: Upstream, call: Call, key: Key, timeouts: Timeouts, wanted: int = 0) -> Told:
    """Ask, and read an error's body, or up to `wanted` bytes of a good answer's. Raises UpstreamError, ClientStalled."""
    status, headers, text = await _read(upstream, upstream.kind.prepare(call, key), None, timeouts, wanted)
    return Told(OK if status < 300 else upstream.kind.judge(call, status, headers, text), headers, text)


async def _read(
    upstream: Upstream, outbound: Outbound, content: bytes | None, timeouts: Timeouts, wanted: int
) -> tuple[int, Headers, bytes]:
    """Status, fields and body of an answer, as far as `fetch` reads it."""
    reach = upstream.reach
    begun = reach.now()
    try:
        with Watchdog(timeouts) as watchdog:
            answer = await upstream.transport.send(outbound, content, None)
            try:
                reach.answered()
                if answer.status < 300 and not wanted:
                    return answer.status, answer.headers, b""
                limit = wanted if answer.status < 300 else ERROR_BODY_LIMIT
                body = await answer.gather(limit, watchdog)
            finally:
                answer.close()
    except AnswerCut:
        raise
    except UpstreamError as broken:
        reach.failed(str(broken), begun=begun, sent=not isinstance(broken, ConnectFailed))
        raise
    return answer.status, answer.headers, inflate(body, first(answer.headers, "content-encoding") or "", limit) or b""


class ReachProbes:
    """Keeps asking the upstreams that gave no answer, until they do: one task an upstream, only while that lasts."""

    def __init__(self, upstreams: Callable[[], Mapping[str, Upstream]], clock: Clock) -> None:
        """`upstreams`: those of the configuration of now, by name."""
        self._upstreams = upstreams
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str) -> None:
        """This upstream wants probes."""
        running = self._running.get(name)
        if running is None or running.done():
            self._running[name] = asyncio.get_running_loop().create_task(self._until_reached(name))

    async def _until_reached(self, name: str) -> None:
        while (upstream := self._upstreams().get(name)) is not None and upstream.reach.troubled:
            if upstream.reach.begin_probe():
                await probe_reach(upstream)
            else:
                await asyncio.sleep(min(max(upstream.reach.next_probe - self._clock.monotonic(), 0.01), REACH_LOOK))

    async def close(self) -> None:
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def probe_reach(upstream: Upstream) -> None:
    """Ask an upstream whether it is there, after `reach.begin_probe()`, and tell its reach and the key's pool."""
    pool, reach = upstream.pool, upstream.reach
    leased = pool.lease()
    if not isinstance(leased, Lease):
        reach.unprobed()
        return
    judgement, finished, reason = GONE, False, None
    try:
        try:
            judgement = await _asked_after(upstream, leased.key, REACH_TIMEOUTS)
        except AnswerCut:
            pass  # the head of an answer came
        except (UpstreamError, ClientStalled) as broken:
            reason = str(broken)
        finished = True
    finally:
        pool.report(leased, judgement, free=True)
        if finished:
            reach.probed(reason)
        else:
            reach.unprobed()
