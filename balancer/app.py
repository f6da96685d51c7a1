"""The composition root: the only place that names concrete parts and puts them together.

    listener → middlewares (request id, access log, errors, drain, auth) → surface → Call
      → relay.relay():  router.choose → pool.lease → kind.prepare → transport.send → kind.judge
                        → (again with another key, while no byte has reached the client) | stream.copy → pool.report

`Runtime` holds what one process has; `apply()` makes everything that depends on the configuration anew and swaps it in one
assignment, so that a request sees the old settings or the new ones and never a mixture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from balancer.clock import Clock, SystemClock
from balancer.config import Settings
from balancer.config import Upstream as UpstreamSettings
from balancer.errors import ProxyError
from balancer.keypool.pool import Event, KeyPool
from balancer.middlewares.access_log import access_log, overhead
from balancer.middlewares.auth import PUBLIC_PATHS, Callers, auth
from balancer.middlewares.drain import Drain, drain
from balancer.middlewares.errors import errors
from balancer.middlewares.request_id import request_id
from balancer.model import ANONYMOUS, Client, Record
from balancer.observe.logs import Logs
from balancer.observe.metrics import Metrics
from balancer.observe.redaction import Redactor
from balancer.relay.exchange import Rooms, Upstream
from balancer.relay.ownership import Finder
from balancer.relay.replay import Budget
from balancer.relay.transport import HttpTransport
from balancer.routing.affinity import Affinity
from balancer.routing.router import Route, Router
from balancer.state.memory import MemoryBindings, MemoryPins
from balancer.surfaces import admin, health
from balancer.surfaces.gemini import GeminiSettings, GeminiSurface, base_path
from balancer.upstreams.base import UpstreamKind
from balancer.upstreams.gemini import GeminiKind
from balancer.web import SURFACE, Surface
from balancer.wire.naming import GoogleNaming, Naming

log = structlog.get_logger()

KINDS: dict[str, Callable[[UpstreamSettings], UpstreamKind]] = {
    "gemini": lambda settings: GeminiKind(settings.name, settings.base_url, settings.headers),
}
"""The table of upstream kinds: a new one is a file in `upstreams/` and a line here."""

KEPT_SIGNING_KEYS = 4
"""Signing keys whose upload addresses still hold: a reload that adds a pool key changes the derived one."""


class Runtime:
    """What one process has. Made inside the running loop; `apply()` before first use, `close()` at the end."""

    def __init__(self, logs: Logs, clock: Clock | None = None) -> None:
        self.logs = logs
        self.clock: Clock = clock or SystemClock()
        self.drain = Drain()
        self.metrics = Metrics(in_flight=lambda: self.drain.in_flight, log_drops=lambda: self.logs.dropped)
        self.budget = Budget(0)
        self.settings: Settings
        self.rooms: Rooms
        self.callers: Callers
        self.admin_callers: Callers
        self.gemini: GeminiSettings
        self.pins: MemoryPins | None = None
        self.bindings: MemoryBindings | None = None
        self.finder = Finder(self.clock)
        self.namings: dict[str, Naming] = {"gemini": GoogleNaming()}
        self._signing_keys: tuple[bytes, ...] = ()
        self.surfaces: tuple[Surface, ...] = (
            GeminiSurface(lambda: self.rooms, lambda: self.gemini, self.budget, self.clock),
        )
        """The table of surfaces, in the order in which they are asked whether a request is theirs."""
        self._transports: dict[str, tuple[tuple[Any, ...], HttpTransport]] = {}

    def apply(self, settings: Settings) -> None:
        """Take these settings from the next request on. Raises OSError (a CA file that cannot be read), changing nothing."""
        transports = {each.name: self._transport(each, settings) for each in settings.upstreams.values()}
        redactor = Redactor(settings.secret_texts())
        known = self.rooms.upstreams if hasattr(self, "rooms") else {}
        upstreams = {
            each.name: self._upstream(each, settings, transports[each.name][1], known.get(each.name))
            for each in settings.upstreams.values()
        }
        self.logs.set_redactor(redactor)
        self.budget.limit = settings.relay.buffer_budget
        if self.pins is None or self.bindings is None:
            self.pins = MemoryPins(settings.affinity.max_sessions, self.clock)
            self.bindings = MemoryBindings(settings.affinity.max_bindings, self.clock)
        # Uploads that began under the old keys go on under the new ones.
        self._signing_keys = tuple(dict.fromkeys((settings.signing_key, *self._signing_keys)))[:KEPT_SIGNING_KEYS]
        self.gemini = self._gemini_settings(settings)
        self.callers = _callers(settings)
        self.admin_callers = _admin_callers(settings)
        self.rooms = Rooms(
            router=Router([_route(each) for each in settings.upstreams.values()]),
            affinity=Affinity(
                self.pins,
                self.bindings,
                self.namings,
                self.clock,
                session_ttl=settings.affinity.session_ttl,
                uploads=settings.affinity.uploads,
            ),
            finder=self.finder,
            namings=self.namings,
            upstreams=upstreams,
            attempts=settings.relay.attempts,
            max_wait=settings.relay.max_wait,
            mask=redactor.data,
            clock=self.clock,
        )
        self.settings = settings
        kept = {id(transport) for _, transport in transports.values()}
        for _, transport in self._transports.values():
            if id(transport) not in kept:
                transport.retire()
        self._transports = transports

    def _gemini_settings(self, settings: Settings) -> GeminiSettings:
        clients = {client.name: client for client in settings.clients().values()}
        if not clients:
            clients = {ANONYMOUS.name: ANONYMOUS}
        elif settings.auth.exempt_loopback:
            clients[ANONYMOUS.name] = ANONYMOUS
        return GeminiSettings(
            max_body=settings.server.max_body,
            max_upload=settings.server.max_upload,
            body_idle=settings.server.body_idle_timeout,
            replay=settings.relay.replay_limit,
            public_url=settings.server.public_url,
            trusted_proxies=settings.server.trusted_proxies,
            signing_keys=self._signing_keys,
            base_paths=[base_path(each.base_url) for each in settings.upstreams.values()],
            client=clients.get,
        )

    def _transport(self, upstream: UpstreamSettings, settings: Settings) -> tuple[tuple[Any, ...], HttpTransport]:
        """The upstream's connections: those it has, while nothing about the way there has changed."""
        way = (upstream.base_url, upstream.egress_proxy, upstream.egress_ca_file, settings.relay.timeouts.connect)
        had = self._transports.get(upstream.name)
        if had is not None and had[0] == way:
            return had
        base_url, proxy, ca_file, connect = way
        return way, HttpTransport(base_url, connect_timeout=connect, proxy=proxy, ca_file=ca_file)

    def _upstream(
        self, upstream: UpstreamSettings, settings: Settings, transport: HttpTransport, known: Upstream | None
    ) -> Upstream:
        """The upstream with its pool: the one it has, so that rests and reasons survive a reload."""
        keys = upstream.pool
        if known is not None and known.kind_name == upstream.kind:
            pool = known.pool
            pool.replace(keys)
        else:
            pool = KeyPool(upstream.name, keys, self.clock)
            pool.on_event = lambda event: _log_key_event(upstream.name, event)
        return Upstream(
            name=upstream.name,
            kind_name=upstream.kind,
            base_url=upstream.base_url,
            kind=KINDS[upstream.kind](upstream),
            pool=pool,
            transport=transport,
            timeouts=settings.relay.timeouts.as_timeouts(),
        )

    def request_finished(self, line: dict[str, Any], record: Record) -> None:
        self.logs.access(line)
        ttfb = None if record.first_byte is None else record.first_byte - record.started
        self.metrics.request_done(
            record.surface or "none",
            record.status or 499,
            ttfb,
            None if ttfb is None else overhead(record),
            record.bytes_in,
            record.bytes_out,
        )

    async def close(self) -> None:
        for _, transport in self._transports.values():
            await transport.close()


def make_app(runtime: Runtime) -> web.Application:
    """The application of the main listener."""
    app = web.Application(
        middlewares=[
            request_id(runtime.clock, lambda: runtime.surfaces),
            access_log(runtime.clock, runtime.request_finished),
            errors(lambda: runtime.surfaces[0]),
            drain(runtime.drain),
            auth(lambda: runtime.callers),
        ]
    )
    app.add_routes(health.routes(lambda: runtime.rooms, lambda: runtime.drain.draining))
    app.router.add_route("*", "/{path:.*}", _dispatch, expect_handler=_expect_later)
    return app


def make_admin_app(runtime: Runtime) -> web.Application:
    """The application of the admin listener."""
    app = web.Application(
        middlewares=[
            request_id(runtime.clock, tuple),
            errors(lambda: runtime.surfaces[0]),
            admin.guard(lambda: runtime.admin_callers),
        ]
    )
    app.add_routes(admin.routes(lambda: runtime.rooms, runtime.metrics, runtime.clock))
    return app


RequestHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def beside_router(app: web.Application, routed: RequestHandler) -> RequestHandler:
    """What the main listener calls: all but the few routes of its own goes through the same middlewares without aiohttp's
    router, which would cost every call for what it never finds. `routed` is the application's ordinary handler.
    """
    handler: Handler = _dispatch
    for middleware in reversed(tuple(app.middlewares)):
        handler = partial(middleware, handler=handler)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        assert isinstance(request, web.Request)
        if request.raw_path.partition("?")[0] in PUBLIC_PATHS:
            return await routed(request)
        return await handler(request)

    return handle


async def _dispatch(request: web.Request) -> web.StreamResponse:
    surface = request.get(SURFACE)
    if surface is None:
        raise ProxyError(404, "unknown_url", f"Invalid URL ({request.method} {request.path})")
    response: web.StreamResponse = await surface.handle(request)
    return response


async def _expect_later(request: web.Request) -> None:
    """`100 Continue` waits until the caller is known and the body is wanted (`surfaces.base.ClientBody`)."""


def _route(upstream: UpstreamSettings) -> Route:
    return Route(
        upstream=upstream.name,
        kind=upstream.kind,
        models=tuple(upstream.models),
        disabled=tuple(upstream.disabled_models),
        aliases=dict(upstream.aliases),
    )


def _callers(settings: Settings) -> Callers:
    public = settings.server.public_url
    return Callers(settings.clients(), settings.auth.exempt_loopback, urlsplit(public).hostname if public else None)


def _admin_callers(settings: Settings) -> Callers:
    token = settings.admin.token
    if token is None:
        return Callers({})
    return Callers({hashlib.sha256(token.get_secret_value().encode()).digest(): Client("admin")})


def _log_key_event(upstream: str, event: Event) -> None:
    fields: dict[str, Any] = {"upstream": upstream, "key": event.fingerprint, "reason": event.reason}
    if event.model is not None:
        fields["model"] = event.model
    if event.seconds is not None:
        fields["seconds"] = round(event.seconds, 1)
    if event.alert:
        log.critical("key leaked: revoke it and make a new one", **fields)
    elif event.kind in ("enabled", "backoff_over"):
        log.info(f"key {event.kind}" if event.kind == "enabled" else "upstream usable again", **fields)
    else:
        log.warning({"rest": "key rests", "disabled": "key disabled"}.get(event.kind, "upstream backs off"), **fields)
