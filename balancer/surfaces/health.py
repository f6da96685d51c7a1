"""Liveness and readiness on the main listener: for load balancers, supervisors and `balancer health`."""

from __future__ import annotations

from collections.abc import Callable

import orjson
from aiohttp import web

from balancer.relay.exchange import Rooms
from balancer.web import json_answer


def routes(rooms: Callable[[], Rooms], draining: Callable[[], bool]) -> list[web.RouteDef]:
    """`/healthz`: 200 while the process can answer. `/readyz`: 503 with the reason while it should get no traffic."""

    async def healthz(request: web.Request) -> web.Response:
        return json_answer(200, b'{"status":"ok"}')

    async def readyz(request: web.Request) -> web.Response:
        reason = "draining" if draining() else keyless(rooms())
        if reason is None:
            return json_answer(200, b'{"status":"ready"}')
        answer = json_answer(503, orjson.dumps({"status": "not ready", "reason": reason}))
        answer.headers["Retry-After"] = "1"
        return answer

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


def keyless(rooms: Rooms) -> str | None:
    """Why no call can be served: every key of every upstream is disabled. A resting key comes back, so it counts."""
    for upstream in rooms.upstreams.values():
        states = upstream.pool.states()
        if states.ready or states.resting:
            return None
    return "no upstream has a usable key"
