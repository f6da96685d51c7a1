"""Asks upstreams for their lists of models (`routing.catalogue` says when): one free call with a pooled key at a time.

Whoever needs a list that was never had waits for it, at most TIMEOUTS; an old list is shown while it is asked for anew.
Nothing of it can fail a call: what cannot be had is None, and the configuration's own names go on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from balancer.clock import Clock
from balancer.errors import ClientStalled, UpstreamError
from balancer.keypool.pool import Lease
from balancer.model import GONE, Call, Judgement, Timeouts, Verdict
from balancer.relay.exchange import Upstream
from balancer.relay.probe import fetch
from balancer.routing.catalogue import Catalogue, Listing, Unsettled, entries_of

log = structlog.get_logger()

LIMIT = 16 << 20
"""Bytes of a list, behind any content coding."""
TIMEOUTS = Timeouts(first_byte=5.0, idle=5.0, total=5.0)

_Where = tuple[str, str, str]
"""Name, kind and base URL: another place is another catalogue, though the name in the configuration stays."""


class FetchedCatalogues:
    """The catalogues of this process (`routing.catalogue.Catalogues`), kept over reloads."""

    def __init__(self, upstreams: Callable[[], Mapping[str, Upstream]], clock: Clock) -> None:
        """`upstreams`: those of the configuration of now, by name."""
        self._upstreams = upstreams
        self._clock = clock
        self._known: dict[_Where, Catalogue] = {}
        self._running: dict[_Where, asyncio.Task[None]] = {}

    def kept(self, upstream: str) -> Listing | Unsettled | None:
        there = self._upstreams().get(upstream)
        if there is None:
            return None
        known = self._known.get((upstream, there.kind_name, there.base_url))
        if known is None:
            return None if _list_of(there) is None else Unsettled.DUE
        return Unsettled.DUE if known.due(self._clock.monotonic()) else known.entries

    async def listing(self, upstream: str) -> Listing | None:
        there = self._upstreams().get(upstream)
        call = _list_of(there) if there is not None else None
        if there is None or call is None:
            return None
        where = (upstream, there.kind_name, there.base_url)
        known = self._known.get(where)
        if known is None:
            known = self._known[where] = Catalogue()
        task = self._running.get(where)
        if task is None and known.due(self._clock.monotonic()) and not there.reach.down:
            task = self._running[where] = asyncio.create_task(
                self._ask(there, call, known), name=f"models of {upstream}"
            )
            task.add_done_callback(lambda done: self._running.pop(where, None))
        if task is not None and known.entries is None:
            await asyncio.shield(task)
        return known.entries

    async def _ask(self, upstream: Upstream, call: Call, known: Catalogue) -> None:
        entries, why = await _entries(upstream, call)
        if entries is not None:
            known.had(entries, self._clock.monotonic())
            return
        known.failed(self._clock.monotonic())
        log.warning("no list of models could be had", upstream=upstream.name, reason=why)

    async def close(self) -> None:
        tasks = tuple(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _list_of(upstream: Upstream) -> Call | None:
    """The call for its list of models; None where it has none."""
    return None if upstream.passing is None else upstream.passing.catalogue()


async def _entries(upstream: Upstream, call: Call) -> tuple[Listing | None, str]:
    """The list, or None and why."""
    leased = upstream.pool.lease()
    if not isinstance(leased, Lease):
        return None, "no key is ready"
    judgement, body = GONE, b""
    try:
        told = await fetch(upstream, call, leased.key, TIMEOUTS, wanted=LIMIT)
        judgement, body = told.judgement, told.body
    except (UpstreamError, ClientStalled) as broken:
        judgement = Judgement(Verdict.UPSTREAM, str(broken))
    finally:
        upstream.pool.report(leased, judgement, free=True)
    if judgement.verdict is not Verdict.OK:
        return None, judgement.reason
    return entries_of(body), "it is no list of models"
