"""One list of what a client has with several owners of keys: each is asked for its own, what is the client's is merged.

| upstream | owners that are asked |
|---|---|
| the first, where the client's things go by themselves | those of the client's things; without tokens all |
| another one, where a model or a resource may have led | those of the client's things |

Only where a client's token says who it is there is something to leave out; without tokens everybody sees everything. An owner
that does not answer, or whose keys rest, is left out, and the answer says that it is partial; another upstream that has no such
list has nothing to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from balancer.errors import ClientStalled, ProxyError, UpstreamError
from balancer.keypool.pool import Lease, Wait
from balancer.model import GONE, Call, Judgement, Record, Timeouts, Verdict
from balancer.relay.exchange import Rooms, Upstream
from balancer.relay.leasing import no_key, resting
from balancer.relay.probe import fetch
from balancer.routing.limits import limited
from balancer.wire.openai_lists import Merge, Page, Paging, read_page

PAGE_LIMIT = 16 << 20
"""Bytes of one owner's page."""
TIMEOUTS = Timeouts(first_byte=30.0, idle=30.0, total=60.0)
AT_ONCE = 8
"""Owners that are asked at the same time."""


_Place = tuple[Upstream, str]
"""An upstream and one of its owners."""
_NOTHING = Page([])


async def merged_list(
    call: Call,
    collection: str,
    asked: Paging,
    upstreams: Sequence[Upstream],
    rooms: Rooms,
    record: Record,
    *,
    filtered: bool,
) -> tuple[bytes, bool]:
    """The answer's body, and whether it is partial. `filtered`: what is not bound to the client is not shown.

    Raises ProxyError: the client's own limits, a cursor that is nowhere in the list, what stood in the way of every owner, or 504
    at the call's deadline.
    """
    places: dict[str, _Place] = {}
    for upstream in upstreams:
        known = {upstream.pool.owner_now(each) for each in await rooms.affinity.owners_of(call.client, upstream.name)}
        for owner in upstream.pool.owners():
            if owner in known or not (filtered or upstream is not upstreams[0]):
                places[f"{upstream.name}/{owner}"] = (upstream, owner)
    if limited(call.client):
        await rooms.limits.admit(call.client)
    remaining = None if call.deadline is None else max(0.0, call.deadline - rooms.clock.monotonic())
    try:
        async with asyncio.timeout(remaining):
            listing = _Listing(call, places, upstreams[0], rooms, record, filtered)
            return await listing.merge(Merge(collection, asked, places))
    except TimeoutError:
        raise ProxyError(504, "upstream_timeout", "The list was not complete within the time allowed.") from None
    finally:
        if limited(call.client):
            await rooms.limits.release(call.client)


class _Listing:
    """One merged list on its way. `places` are asked, by the names that its Merge has for them."""

    def __init__(
        self, call: Call, places: dict[str, _Place], first: Upstream, rooms: Rooms, record: Record, filtered: bool
    ) -> None:
        self._call = call
        self._places = places
        self._first = first
        self._rooms = rooms
        self._record = record
        self._filtered = filtered
        self._room = asyncio.Semaphore(AT_ONCE)
        self._failure: ProxyError | None = None
        self._answered = False

    async def merge(self, merge: Merge) -> tuple[bytes, bool]:
        began = self._rooms.clock.monotonic()
        while wanted := merge.wanting():
            pages = await asyncio.gather(*(self._page(self._places[each], query) for each, query in wanted.items()))
            for each, page in zip(wanted, pages, strict=True):
                if page is None:
                    merge.leave_out(each)
                else:
                    merge.add(each, page, await self._hidden(self._places[each], page))
        self._record.upstream_wait += self._rooms.clock.monotonic() - began
        if self._failure is not None and not self._answered:
            raise self._failure
        return merge.page(), self._failure is not None

    async def _page(self, place: _Place, query: str) -> Page | None:
        """One owner's next page; None if it cannot be had."""
        try:
            async with self._room:
                page = await self._ask(place, query)
        except ProxyError as failure:
            self._failure = self._failure or failure
            return None
        self._answered = True
        return page

    async def _ask(self, place: _Place, query: str) -> Page:
        """The page as any key of this owner shows it. Raises ProxyError."""
        (upstream, owner), call = place, self._call
        question = Call(
            surface=call.surface,
            dialect=call.dialect,
            method="GET",
            path=f"{call.path.partition('?')[0]}?{query}",
            headers=call.headers,
            client=call.client,
            repeatable=True,
        )
        while True:
            lease = upstream.pool.lease(owner=owner)
            if isinstance(lease, Wait):
                raise resting(lease.why, lease.until, self._rooms.clock.monotonic())
            if not isinstance(lease, Lease):
                raise no_key(lease.reasons, owner)
            self._record.attempts += 1
            judgement, body = GONE, b""
            try:
                told = await fetch(upstream, question, lease.key, TIMEOUTS, wanted=PAGE_LIMIT)
                judgement, body = told.judgement, told.body
            except (UpstreamError, ClientStalled) as broken:
                judgement = Judgement(Verdict.UPSTREAM, str(broken))
            finally:
                upstream.pool.report(lease, judgement)
            if judgement.verdict is Verdict.OK:
                return _read(upstream, body)
            if judgement.verdict is Verdict.CALLER:
                if upstream is not self._first:
                    return _NOTHING
                message = f"The upstream {upstream.name} refused the list: {judgement.reason}."
                raise ProxyError(400, "unsupported_parameter", message)
            if judgement.verdict is not Verdict.KEY or judgement.action is None:
                message = f"The upstream {upstream.name} gave no list: {judgement.reason}."
                raise ProxyError(502, "upstream_error", message)

    async def _hidden(self, place: _Place, page: Page) -> set[str]:
        if not self._filtered:
            return set()
        (upstream, owner), affinity, call = place, self._rooms.affinity, self._call
        return {
            item["id"]
            for item in page.items
            if not await affinity.has(call.client, upstream.name, item["id"], owner, upstream.pool.owner_now)
        }


def _read(upstream: Upstream, body: bytes) -> Page:
    page = read_page(body)
    if page is None:
        message = f"The upstream {upstream.name} answered with something that is no list."
        raise ProxyError(502, "upstream_error", message)
    return page
