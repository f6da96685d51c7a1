"""Who owns a resource that nobody here has heard of: made before a restart, or elsewhere.

One free GET of its name to each owner of keys in turn, until one has it. At most one search a name at a time, however many
requests ask; that nobody has it is remembered for a while too. A key that rests or does not answer leaves the question open:
then the request goes nowhere, because any other key would tell its caller that the resource does not exist. A disabled key is
passed over, and that nobody else has the resource is not remembered.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cachetools import TTLCache

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import GONE, Call, Timeouts, Verdict
from balancer.relay.exchange import Upstream
from balancer.relay.probe import ask
from balancer.wire.naming import Naming

NOBODY_TTL = 30.0
"""Seconds for which it is remembered that no key has a resource."""
SEARCH_TIMEOUTS = Timeouts(first_byte=15.0, idle=15.0, total=30.0)
"""Limits of one question; the caller's own deadline bounds the whole search."""


@dataclass(frozen=True, slots=True)
class Open:
    """Nobody who answered has it, and somebody did not answer. `until` (monotonic): when a resting key is back."""

    why: str
    until: float | None = None

    def error(self, root: str, now: float) -> ProxyError:
        message = f"Where {root} is cannot be said now, because a key that may own it"
        if self.until is None:
            return ProxyError(502, "upstream_error", f"{message} gave no answer: {self.why}.")
        after = max(1.0, self.until - now)
        return ProxyError(429, "keys_resting", f"{message} is resting ({self.why}).", retry_after=after)


class Finder:
    """Searches, shared by all requests of this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[tuple[str, str], asyncio.Task[str | Open | None]] = {}
        self._nobody: TTLCache[tuple[str, str], None] = TTLCache(10_000, NOBODY_TTL, timer=clock.monotonic)

    async def find(self, call: Call, upstream: Upstream, naming: Naming, root: str) -> str | None:
        """The owner of `root`, or None if no key has it. A caller that leaves does not end a search that others wait for.

        Raises ProxyError 429 or 502 where that cannot be said.
        """
        asked = (upstream.name, root)
        if asked in self._nobody:
            return None
        task = self._running.get(asked)
        if task is None:
            task = self._running[asked] = asyncio.create_task(self._search(call, upstream, naming, root))
            task.add_done_callback(lambda done: self._running.pop(asked, None))
        owner = await asyncio.shield(task)
        if isinstance(owner, Open):
            raise owner.error(root, self._clock.monotonic())
        return owner

    async def _search(self, call: Call, upstream: Upstream, naming: Naming, root: str) -> str | Open | None:
        question = Call(
            surface=call.surface,
            dialect=call.dialect,
            method="GET",
            path=naming.question(call.path, root),
            headers=[("Accept-Encoding", "identity")],
            client=call.client,
            repeatable=True,
        )
        left: Open | None = None
        everybody = True
        for owner in upstream.pool.owners():
            match await _has(upstream, owner, question):
                case True:
                    return owner
                case Open() as unanswered:
                    left = left or unanswered
                case None:
                    everybody = False
                case False:
                    pass
        if everybody and left is None:
            self._nobody[upstream.name, root] = None
        return left


async def _has(upstream: Upstream, owner: str, question: Call) -> bool | Open | None:
    """Whether a key of this owner has what is asked for; None if it has only dead keys."""
    match upstream.pool.lease(owner=owner):
        case Lease() as lease:
            return await _ask(upstream, owner, question, lease)
        case Wait(until, why):
            return Open(why, until)
        case NoKey():
            return None


async def _ask(upstream: Upstream, owner: str, question: Call, lease: Lease) -> bool | Open | None:
    judgement = GONE
    try:
        judgement = await ask(upstream, question, lease.key, SEARCH_TIMEOUTS)
    finally:
        upstream.pool.report(lease, judgement)
    match judgement.verdict:
        case Verdict.OK:
            return True
        case Verdict.CALLER:
            return False
        case Verdict.KEY:  # it rests now, or is dead; or another of the same owner is ready
            return await _has(upstream, owner, question)
        case Verdict.UPSTREAM | Verdict.GONE:
            return Open(judgement.reason)
