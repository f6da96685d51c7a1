"""The operator's listener: the state of every upstream and key, and the metrics. Its own port, never the clients'."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.keypool.pool import KeySnapshot, PoolSnapshot
from balancer.model import ANONYMOUS, Client
from balancer.observe.metrics import Metrics
from balancer.relay.exchange import Rooms, Upstream
from balancer.web import is_own_host, json_answer


class Identifies(Protocol):
    """Knows callers by what they carry (`middlewares.auth.Callers`)."""

    def identify(self, request: web.Request) -> Client: ...


def routes(rooms: Callable[[], Rooms], metrics: Metrics, clock: Clock) -> list[web.RouteDef]:
    async def keys(request: web.Request) -> web.Response:
        upstreams = [_upstream(upstream) for upstream in rooms().upstreams.values()]
        return json_answer(200, orjson.dumps({"time": _iso(clock.wall()), "upstreams": upstreams}))

    async def exposition(request: web.Request) -> web.Response:
        def pools() -> Iterator[tuple[str, dict[str, int], Mapping[str, int]]]:
            for upstream in rooms().upstreams.values():
                snapshot = upstream.pool.snapshot()
                yield upstream.name, dataclasses.asdict(snapshot.states), snapshot.counts

        def reached() -> Iterator[tuple[str, bool]]:
            return ((upstream.name, not upstream.reach.down) for upstream in rooms().upstreams.values())

        return web.Response(
            body=metrics.exposition(pools, reached),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    return [web.get("/api/keys", keys), web.get("/metrics", exposition)]


def guard(callers: Callable[[], Identifies]) -> Middleware:
    """Who may look: with `admin.token` set, who shows it; else local callers, and no web page that reaches us by another name.

    A page can make a name of its own resolve to 127.0.0.1 and then read what is served there; the Host field gives it away.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if callers().identify(request) is ANONYMOUS and not is_own_host(request.headers.get("Host", "")):
            raise ProxyError(403, "origin_not_allowed", "Call this listener by its address or as localhost.")
        return await handler(request)

    return middleware


def _upstream(upstream: Upstream) -> dict[str, Any]:
    snapshot = upstream.pool.snapshot()
    return {
        "name": upstream.name,
        "kind": upstream.kind_name,
        "base_url": upstream.base_url,
        "reach": _reach(upstream),
        "backoff": _backoff(snapshot),
        "keys": [_key(key) for key in snapshot.keys],
    }


def _reach(upstream: Upstream) -> dict[str, Any]:
    reach = upstream.reach.snapshot()
    return {
        "state": reach.state,
        "since": _iso(reach.since_wall),
        "reason": reach.reason,
        "next_probe": _iso(reach.next_probe_wall),
    }


def _backoff(snapshot: PoolSnapshot) -> dict[str, Any] | None:
    if snapshot.backoff_until_wall is None:
        return None
    return {"until": _iso(snapshot.backoff_until_wall), "reason": snapshot.backoff_reason}


def _key(key: KeySnapshot) -> dict[str, Any]:
    return {
        "fingerprint": key.fingerprint,
        "name": key.name,
        "project": key.project,
        "state": key.state,
        "reason": key.reason,
        "until": _iso(key.until_wall),
        "next_probe": _iso(key.next_probe_wall),
        "in_flight": key.in_flight,
        "requests": key.requests,
        "counts": dict(key.counts),
        "models": [{"model": rest.model, "until": _iso(rest.until_wall), "reason": rest.reason} for rest in key.models],
    }


def _iso(wall: float | None) -> str | None:
    if wall is None:
        return None
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
