"""Who owns a resource that nobody here has heard of: made before a restart, or elsewhere.

One free GET of its name to each owner of keys in turn, until one has it. At most one search a name at a time, however many
requests ask; that nobody has it is remembered for a while too. A key that does not answer leaves the question open.
"""

from __future__ import annotations

import asyncio
import re

from cachetools import TTLCache

from balancer.clock import Clock
from balancer.errors import ClientStalled, UpstreamError
from balancer.keypool.pool import Lease
from balancer.model import OK, Call, Judgement, Timeouts, Verdict
from balancer.relay.exchange import Upstream
from balancer.relay.watchdog import Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.wire.encoding import inflate
from balancer.wire.headers import first

NOBODY_TTL = 30.0
"""Seconds for which it is remembered that no key has a resource."""
SEARCH_TIMEOUTS = Timeouts(first_byte=15.0, idle=15.0, total=30.0)
"""Limits of one question; the caller's own deadline bounds the whole search."""

_VERSION = re.compile(r"/(?:(?:upload|download)/)?(v1\w*)/")


class Finder:
    """Searches, shared by all requests of this process."""

    def __init__(self, clock: Clock) -> None:
        self._running: dict[tuple[str, str], asyncio.Task[str | None]] = {}
        self._nobody: TTLCache[tuple[str, str], None] = TTLCache(10_000, NOBODY_TTL, timer=clock.monotonic)

    async def find(self, call: Call, upstream: Upstream, root: str) -> str | None:
        """The owner of `root`, or None if no key has it. A caller that leaves does not end a search that others wait for."""
        asked = (upstream.name, root)
        if asked in self._nobody:
            return None
        task = self._running.get(asked)
        if task is None:
            task = self._running[asked] = asyncio.create_task(self._search(call, upstream, root))
            task.add_done_callback(lambda done: self._running.pop(asked, None))
        return await asyncio.shield(task)

    async def _search(self, call: Call, upstream: Upstream, root: str) -> str | None:
        version = _VERSION.match(call.path)
        question = Call(
            surface=call.surface,
            kind=call.kind,
            method="GET",
            path=f"/{version[1] if version else 'v1beta'}/{root}",
            headers=[("Accept-Encoding", "identity")],
            client=call.client,
            repeatable=True,
        )
        open_question = False
        for owner in upstream.pool.owners():
            has_it = await _has(upstream, owner, question)
            if has_it:
                return owner
            open_question = open_question or has_it is None
        if not open_question:
            self._nobody[upstream.name, root] = None
        return None


async def _has(upstream: Upstream, owner: str, question: Call) -> bool | None:
    """Whether a key of this owner has what is asked for; None if it cannot be said."""
    lease = upstream.pool.lease(owner=owner)
    if not isinstance(lease, Lease):
        return None
    judgement = Judgement(Verdict.UPSTREAM, "owner search")
    try:
        async with Watchdog(SEARCH_TIMEOUTS) as watchdog:
            answer = await upstream.transport.send(upstream.kind.prepare(question, lease.key), None, None)
            try:
                if answer.status < 300:
                    judgement = OK
                    return True
                body = await answer.gather(ERROR_BODY_LIMIT, watchdog)
            finally:
                answer.close()
            text = inflate(body, first(answer.headers, "content-encoding") or "", ERROR_BODY_LIMIT)
            judgement = upstream.kind.judge(question, answer.status, answer.headers, text or b"")
            return False if judgement.verdict is Verdict.CALLER else None
    except (UpstreamError, ClientStalled):
        return None
    finally:
        upstream.pool.report(lease, judgement)
