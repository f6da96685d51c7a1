"""The composition root: the only place that names concrete parts and puts them together.

    listener → middlewares (request id, access log, errors, drain, auth) → surface → Call
      → relay.relay():  router.choose → pool.lease → kind.prepare → transport.send → kind.judge
                        → (again with another key or upstream, while no byte has reached the client)
                        | stream.copy → pool.report

`Runtime` holds what one process has; `apply()` makes everything that depends on the configuration anew and swaps it in one
assignment, so that a request sees the old settings or the new ones and never a mixture.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from balancer import applied
from balancer.clock import Clock, SystemClock
from balancer.config import Settings
from balancer.config import Upstream as UpstreamSettings
from balancer.conversations.base import DatabaseRefused, StorageUnavailable
from balancer.conversations.opening import Conversations, sqlite_path
from balancer.errors import ProxyError
from balancer.keypool.pool import KeyPool
from balancer.keypool.reach import Reach, Turn
from balancer.middlewares.auth import Callers, auth
from balancer.middlewares.cors import cors
from balancer.middlewares.drain import Drain
from balancer.middlewares.envelope import envelope
from balancer.middlewares.errors import errors
from balancer.middlewares.request_id import request_id
from balancer.model import Record
from balancer.notices import log_key_event, log_turn
from balancer.observe.access import overhead
from balancer.observe.logs import Logs
from balancer.observe.metrics import Metrics
from balancer.observe.redaction import Redactor
from balancer.relay.catalogue import FetchedCatalogues
from balancer.relay.exchange import Rooms, Upstream
from balancer.relay.expiry import Expiry
from balancer.relay.ownership import Finder
from balancer.relay.probe import ReachProbes
from balancer.relay.replay import Budget
from balancer.relay.transport import HttpTransport
from balancer.routing.affinity import Affinity
from balancer.routing.backend_sessions import BackendSessions
from balancer.routing.bot_conversations import BotConversations
from balancer.routing.limits import Limits
from balancer.routing.logins import PREFIX as SESSION_TOKEN
from balancer.routing.logins import Logins, Memory, digest_of
from balancer.routing.router import Router
from balancer.state.base import Counters, Locks, LoginSessions, Talks
from balancer.state.memory import (
    MemoryBindings,
    MemoryCounters,
    MemoryLocks,
    MemoryLoginSessions,
    MemoryPins,
    MemoryTalks,
)
from balancer.surfaces import admin, health
from balancer.surfaces.achuan_session import AchuanSessionSurface
from balancer.surfaces.chat import ChatSurface
from balancer.surfaces.chat_turn import ChatSettings, Turns
from balancer.surfaces.conversations import ConversationsSurface
from balancer.surfaces.conversations_chat import Backend, ConversationsSettings
from balancer.surfaces.conversations_turns import Generations
from balancer.surfaces.gemini import GeminiSettings, GeminiSurface
from balancer.surfaces.login import LoginSurface
from balancer.surfaces.openai import OpenAISettings, OpenAISurface
from balancer.upstreams import achuan
from balancer.upstreams.achuan import AchuanKind
from balancer.upstreams.base import PassingKind
from balancer.upstreams.conversing import ConversingKind
from balancer.upstreams.coze import CozeKind
from balancer.upstreams.gemini import GeminiKind
from balancer.upstreams.openai import OpenAIKind
from balancer.web import PUBLIC_PATHS, SURFACE, Surface
from balancer.wire.naming import GoogleNaming, Naming
from balancer.wire.openai_ids import OpenaiNaming

log = structlog.get_logger()

KINDS: dict[str, Callable[[UpstreamSettings], PassingKind | ConversingKind]] = {
    "gemini": lambda settings: GeminiKind(settings.name, settings.base_url, settings.headers),
    "openai": lambda settings: OpenAIKind(settings.name, settings.base_url, settings.headers, settings.key_header),
    "achuan": lambda settings: AchuanKind(
        settings.name, settings.base_url, settings.headers, applied.keeping(settings)
    ),
    "coze": lambda settings: CozeKind(
        settings.name, settings.base_url, settings.headers, settings.bot_ids, settings.user_id, SystemClock()
    ),
}
"""The table of upstream kinds: a new one is a file in `upstreams/` and a line here."""

DIALECTS: dict[str, frozenset[str]] = {
    "gemini": frozenset({"gemini", "openai"}),
    "openai": frozenset({"openai"}),
    "achuan": frozenset({"openai"}),
    "coze": frozenset({"openai"}),
}
"""In which dialects each kind can be asked."""

KEPT_SIGNING_KEYS = 4
"""Signing keys whose upload addresses still hold: a reload that adds a pool key changes the derived one."""
OPENING = 5.0
"""Seconds for which the start waits for a database."""
STORING = 5.0
"""Seconds at the end for what was said of answers that were cut off to be stored."""


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
        self.chat: ChatSettings
        self.stored: ConversationsSettings
        self.openai: OpenAISettings
        self.pins: MemoryPins | None = None
        self.bindings: MemoryBindings | None = None
        self.login_sessions: LoginSessions = MemoryLoginSessions(self.clock)
        self.login_memory = Memory(self.clock)
        self.logins: Logins
        self.counters: Counters = MemoryCounters(self.clock)
        self.talks: Talks | None = None
        self.locks: Locks = MemoryLocks()
        self.conversations: Conversations
        self.generations = Generations()
        self.finder = Finder(self.clock)
        self.catalogues = FetchedCatalogues(lambda: self.rooms.upstreams, self.clock)
        self.reach_probes = ReachProbes(lambda: self.rooms.upstreams, self.clock)
        self.expiry = Expiry(lambda: tuple(self.rooms.upstreams.values()), self.clock)
        self._started = self.clock.wall()
        self.namings: dict[str, Naming] = {"gemini": GoogleNaming()}
        self._signing_keys: tuple[bytes, ...] = ()
        self.surfaces: tuple[Surface, ...] = (
            GeminiSurface(lambda: self.rooms, lambda: self.gemini, self.budget, self.clock),
            LoginSurface(
                lambda: self.rooms,
                lambda: self.logins,
                lambda: self.callers,
                lambda: self.settings.server.body_idle_timeout,
            ),
            AchuanSessionSurface(lambda: self.rooms, lambda: self.settings.server.body_idle_timeout),
            ChatSurface(
                Turns(
                    lambda: self.rooms,
                    lambda: self.chat,
                    lambda: self.conversations,
                    lambda: self.locks,
                    self.budget,
                    self.clock,
                ),
                lambda: self.rooms,
                lambda: self.chat,
                self.budget,
                self.clock,
            ),
            ConversationsSurface(
                Backend(
                    lambda: self.rooms,
                    lambda: self.stored,
                    lambda: self.conversations,
                    lambda: self.locks,
                    self.budget,
                    self.drain.begun,
                    self.clock,
                    self.generations,
                ),
                lambda: self.callers,
            ),
            OpenAISurface(lambda: self.rooms, lambda: self.openai, lambda: self.logins, self.budget, self.clock),
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
        if not hasattr(self, "conversations"):  # opened where it is, a database stays until a restart
            self.conversations = Conversations(settings.database.url, self.clock)
        if self.talks is None:
            self.talks = MemoryTalks(settings.affinity.max_sessions, self.clock)
        # Uploads that began under the old keys go on under the new ones.
        self._signing_keys = tuple(dict.fromkeys((settings.signing_key, *self._signing_keys)))[:KEPT_SIGNING_KEYS]
        self.gemini = applied.gemini_settings(settings, self._signing_keys, self._is_ours)
        self.chat = applied.chat_settings(settings)
        self.stored = applied.conversations_settings(settings)
        self.openai = applied.openai_settings(settings)
        self.namings["openai"] = OpenaiNaming(settings.openai.resource_ttl)
        self.logins = Logins(
            self.login_sessions,
            self.login_memory,
            settings.clients(),
            self.clock,
            ttl=settings.auth.login_ttl,
            most=settings.auth.max_sessions,
        )
        self.callers = applied.callers(settings, self.logins)
        self.admin_callers = applied.admin_callers(settings)
        self.rooms = Rooms(
            router=Router(
                [applied.route(each, DIALECTS[each.kind]) for each in settings.upstreams.values()],
                self.catalogues,
                started=self._started,
            ),
            affinity=Affinity(
                self.pins,
                self.bindings,
                self.namings,
                self.clock,
                session_ttl=settings.affinity.session_ttl,
                uploads=settings.affinity.uploads,
            ),
            finder=self.finder,
            limits=Limits(self.counters),
            backend_sessions=BackendSessions(self.talks, self.bindings, self.locks, turn_wait=settings.chat.turn_wait),
            bot_conversations=BotConversations(
                self.talks, self.bindings, self.locks, turn_wait=settings.chat.turn_wait
            ),
            namings=self.namings,
            upstreams=upstreams,
            attempts=settings.relay.attempts,
            max_wait=settings.relay.max_wait,
            keepalive=settings.relay.keepalive,
            mask=redactor.data,
            clock=self.clock,
        )
        self.settings = settings
        kept = {id(transport) for _, transport in transports.values()}
        for _, transport in self._transports.values():
            if id(transport) not in kept:
                transport.retire()
        self._transports = transports
        self.expiry.look()

    def _is_ours(self, credential: str) -> bool:
        return credential.startswith(SESSION_TOKEN) or digest_of(credential) in self.callers.by_digest

    def _transport(self, upstream: UpstreamSettings, settings: Settings) -> tuple[tuple[Any, ...], HttpTransport]:
        """The upstream's connections: those it has, while nothing about the way there has changed."""
        base_url, proxy, ca_file = applied.base_url(upstream), upstream.egress_proxy, upstream.egress_ca_file
        connect = settings.relay.timeouts.connect
        way = (base_url, proxy, ca_file, connect)
        had = self._transports.get(upstream.name)
        if had is not None and had[0] == way:
            return had
        return way, HttpTransport(base_url, connect_timeout=connect, proxy=proxy, ca_file=ca_file)

    def _upstream(
        self, upstream: UpstreamSettings, settings: Settings, transport: HttpTransport, known: Upstream | None
    ) -> Upstream:
        """The upstream with its pool: the one it has, so that rests and reasons survive a reload."""
        keys = upstream.pool
        if upstream.kind == "achuan":  # whose keys say themselves which of them are one account
            keys = tuple(map(achuan.with_account, keys))
        if known is not None and known.kind_name == upstream.kind:
            pool = known.pool
            pool.replace(keys)
        else:
            pool = KeyPool(upstream.name, keys, self.clock)
            pool.on_event = lambda event: log_key_event(upstream.name, event)
        if known is not None and known.transport is transport:
            reach = known.reach
        else:
            reach = Reach(self.clock)
            reach.on_turn = lambda turn: self._reach_turned(upstream.name, turn)
        return Upstream(
            name=upstream.name,
            kind_name=upstream.kind,
            base_url=applied.base_url(upstream),
            kind=KINDS[upstream.kind](upstream),
            pool=pool,
            reach=reach,
            transport=transport,
            timeouts=settings.relay.timeouts.as_timeouts(),
        )

    def request_finished(self, record: Record, now: float) -> None:
        """Log and count a request that is over at `now` (monotonic)."""
        self.logs.access(record, now)
        ttfb = own = None
        if record.first_byte is not None:
            ttfb, own = record.first_byte - record.started, overhead(record)
        self.metrics.request_done(
            record.surface or "none", record.status or 499, ttfb, own, record.bytes_in, record.bytes_out
        )

    def _reach_turned(self, upstream: str, turn: Turn) -> None:
        log_turn(upstream, turn)
        if turn.kind != "up":
            self.reach_probes.begin(upstream)

    async def open_database(self) -> None:
        """Open a database that is there already, or is a server's. Raises DatabaseRefused, where this program must not use it.

        One that cannot be reached now is no reason not to start: what needs it tries again.
        """
        url = self.settings.database.url
        if url.startswith("sqlite:") and not await asyncio.to_thread(sqlite_path(url).exists):
            return
        try:
            async with asyncio.timeout(OPENING):
                await self.conversations.store()
        except DatabaseRefused:
            raise
        except (StorageUnavailable, TimeoutError) as error:
            log.warning("the database cannot be used yet", reason=getattr(error, "reason", "it does not answer"))

    async def close(self) -> None:
        await self.reach_probes.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STORING):
                await self.generations.ended()
        if hasattr(self, "conversations"):
            await self.conversations.close()
        await self.catalogues.close()
        for _, transport in self._transports.values():
            await transport.close()


def make_app(runtime: Runtime) -> web.Application:
    """The application of the main listener."""
    app = web.Application(
        middlewares=[
            envelope(
                runtime.clock,
                lambda: runtime.surfaces,
                runtime.drain,
                lambda: runtime.surfaces[-1],
                runtime.request_finished,
            ),
            cors(),
            auth(lambda: runtime.callers),
        ]
    )

    async def open_database(_: web.Application) -> None:
        await runtime.open_database()

    app.on_startup.append(open_database)
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
    handler: Handler = _answer
    for middleware in reversed(tuple(app.middlewares)):
        handler = partial(middleware, handler=handler)

    def handle(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        assert isinstance(request, web.Request)
        return (routed if request.raw_path.partition("?")[0] in PUBLIC_PATHS else handler)(request)

    return handle


async def _dispatch(request: web.Request) -> web.StreamResponse:
    return await _answer(request)


def _answer(request: web.Request) -> Awaitable[web.StreamResponse]:
    surface = request[SURFACE]
    if surface is None:
        raise ProxyError(404, "unknown_url", f"Invalid URL ({request.method} {request.path})")
    handled: Awaitable[web.StreamResponse] = surface.handle(request)
    return handled


async def _expect_later(request: web.Request) -> None:
    """`100 Continue` waits until the caller is known and the body is wanted (`surfaces.base.ClientBody`)."""
