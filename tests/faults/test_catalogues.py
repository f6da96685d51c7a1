"""Lists of models from real upstreams: when they are asked for, and that nothing hangs on them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from balancer.errors import ProxyError
from balancer.keypool.pool import Lease, Wait
from balancer.model import ANONYMOUS, Choice, Judgement, Rest, Scope, Verdict
from balancer.relay.catalogue import FetchedCatalogues
from balancer.routing.catalogue import KEPT, RETRY
from balancer.routing.router import Router
from tests.fakes import FakeClock
from tests.proxy import KEYS, Proxy, proxying
from tests.upstream import WAIT, Peer, RawUpstream, Seen, raw_upstream, serving


def listing(*ids: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": id_, "object": "model"} for id_ in ids]}).encode()


@dataclass
class Lists:
    """An upstream that lists these models, once the gate is open."""

    body: bytes
    status: str = "200 OK"
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, peer: Peer) -> None:
        async def answer(peer: Peer, seen: Seen) -> None:
            await self.gate.wait()
            await peer.answer(self.body, self.status)

        await serving(answer)(peer)


@dataclass
class World:
    proxy: Proxy
    upstream: RawUpstream
    lists: Lists
    clock: FakeClock

    @property
    def catalogues(self) -> FetchedCatalogues:
        return self.proxy.server.runtime.catalogues

    @property
    def router(self) -> Router:
        return self.proxy.server.runtime.rooms.router

    async def settled(self) -> None:
        """Returns when no list is being asked for."""
        asking = [task for task in asyncio.all_tasks() if task.get_name() == "models of gemini"]
        async with asyncio.timeout(WAIT):
            await asyncio.gather(*asking)

    async def ids(self) -> list[str] | None:
        async with asyncio.timeout(WAIT):
            found = await self.catalogues.listing("gemini")
        return None if found is None else list(found)


@asynccontextmanager
async def world(*ids: str, kind: str = "gemini", shut: bool = False) -> AsyncIterator[World]:
    clock, lists = FakeClock(), Lists(listing(*ids))
    if not shut:
        lists.gate.set()
    async with (
        raw_upstream(lists) as upstream,
        proxying(upstream.url, KEYS[:1], clock=clock, upstreams={"gemini": {"kind": kind}}) as proxy,
    ):
        yield World(proxy, upstream, lists, clock)
        lists.gate.set()


@pytest.mark.parametrize(("kind", "path"), [("gemini", "/v1beta/openai/models"), ("openai", "/models")])
async def test_a_list_is_fetched_with_a_pooled_key_once_in_an_hour(kind: str, path: str) -> None:
    async with world("models/m", "n", kind=kind) as w:
        for _ in range(3):
            assert await w.ids() == ["m", "n"]
        (seen,) = w.upstream.requests
        assert seen.line == f"GET {path} HTTP/1.1"
        assert seen.all("authorization") == [f"Bearer {KEYS[0]}"]
        assert sum(key["counts"]["ok"] for key in await w.proxy.keys()) == 1


async def test_everybody_waits_for_the_same_first_list() -> None:
    async with world("m", shut=True) as w:
        waiting = [asyncio.ensure_future(w.ids()) for _ in range(5)]
        await w.upstream.arrival()
        waiting[0].cancel()
        w.lists.gate.set()
        assert await asyncio.gather(*waiting[1:]) == [["m"]] * 4
        assert len(w.upstream.requests) == 1


async def test_an_old_list_is_shown_while_a_new_one_is_fetched() -> None:
    async with world("old") as w:
        assert await w.ids() == ["old"]
        w.lists.gate.clear()
        w.lists.body = listing("new")
        w.clock.advance(KEPT)
        assert await w.ids() == ["old"]
        async with asyncio.timeout(WAIT):
            await w.upstream.arrived.acquire()
            await w.upstream.arrived.acquire()
        assert await w.ids() == ["old"]
        w.lists.gate.set()
        await w.settled()
        assert await w.ids() == ["new"]
        assert len(w.upstream.requests) == 2


BROKEN: dict[str, tuple[str, bytes]] = {
    "an error": ("500 Internal Server Error", b"{}"),
    "nonsense": ("200 OK", b"<html>"),
    "too long a list": ("200 OK", b" " * ((16 << 20) + 1)),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_failure_keeps_the_old_list_and_is_repaired_half_a_minute_later(case: str) -> None:
    async with world("old") as w:
        assert await w.ids() == ["old"]
        w.lists.status, w.lists.body = BROKEN[case]
        w.clock.advance(KEPT)
        assert await w.ids() == ["old"]
        await w.upstream.arrival()
        await w.upstream.arrival()
        await w.settled()
        assert await w.ids() == ["old"]
        assert len(w.upstream.requests) == 2
        w.lists.status, w.lists.body = "200 OK", listing("new")
        w.clock.advance(RETRY)
        assert await w.ids() == ["old"]
        await w.settled()
        assert await w.ids() == ["new"]


async def test_an_upstream_whose_list_cannot_be_had_has_any_name_and_one_whose_list_is_there_only_those() -> None:
    async with world("m") as w:
        w.lists.status = "500 Internal Server Error"
        assert await w.router.resolve("gemini/anything", ANONYMOUS) == (Choice("gemini", "anything"),)
        assert await w.router.models_for(ANONYMOUS) == []
        w.lists.status = "200 OK"
        w.clock.advance(RETRY)
        assert [model["id"] for model in await w.router.models_for(ANONYMOUS)] == ["gemini/m", "m"]
        with pytest.raises(ProxyError) as refused:
            await w.router.resolve("gemini/anything", ANONYMOUS)
        assert refused.value.code == "model_not_found"


async def test_a_key_that_the_list_refuses_is_disabled_like_any_other() -> None:
    async with world(kind="openai") as w:
        w.lists.status, w.lists.body = "401 Unauthorized", b'{"error": {"message": "no", "code": "invalid_api_key"}}'
        assert await w.ids() is None
        assert [key["state"] for key in await w.proxy.keys()] == ["disabled"]


async def test_an_upstream_that_is_down_is_not_asked() -> None:
    async with world("m") as w:
        reach = w.proxy.server.runtime.rooms.upstreams["gemini"].reach
        reach.on_turn = None
        for _ in range(10):
            w.clock.advance(1.0)
            reach.failed("no connection", begun=w.clock.monotonic(), sent=False)
        assert reach.down
        assert await w.ids() is None
        assert w.upstream.requests == []


async def test_names_and_the_list_of_models_follow_a_catalogue_that_is_fetched_anew() -> None:
    async with world("old") as w:
        for _ in range(2):
            assert await w.router.resolve("old", ANONYMOUS) == (Choice("gemini", "old"),)
            assert [model["id"] for model in await w.router.models_for(ANONYMOUS)] == ["gemini/old", "old"]
        w.lists.body = listing("new")
        w.clock.advance(KEPT)
        assert await w.router.resolve("old", ANONYMOUS) == (Choice("gemini", "old"),)
        await w.settled()
        assert await w.router.resolve("new", ANONYMOUS) == (Choice("gemini", "new"),)
        assert [model["id"] for model in await w.router.models_for(ANONYMOUS)] == ["gemini/new", "new"]
        with pytest.raises(ProxyError):
            await w.router.resolve("old", ANONYMOUS)
        assert len(w.upstream.requests) == 2


async def test_a_list_that_could_be_had_says_nothing_of_what_its_key_may_spend() -> None:
    async with world("m", kind="openai") as w:
        pool = w.proxy.server.runtime.rooms.upstreams["gemini"].pool
        unpaid = Judgement(Verdict.KEY, "402", Rest(Scope.PROJECT, first=KEPT, cap=24 * KEPT))
        for seconds in (KEPT, 2 * KEPT):
            leased = pool.lease()
            assert isinstance(leased, Lease)
            pool.report(leased, unpaid)
            until = pool.lease()
            assert isinstance(until, Wait)
            assert until.until == w.clock.monotonic() + seconds
            w.clock.advance(seconds)
            assert await w.ids() == ["m"]
            await w.settled()
