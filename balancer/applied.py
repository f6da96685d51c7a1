"""The settings as upstreams, routes, surfaces and callers take them: what `Runtime.apply()` hands to each part.

Nothing is kept here: every function makes its part's share anew from what was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from balancer.config import Settings
from balancer.config import Upstream as UpstreamSettings
from balancer.config.upstream import OPENAI_KINDS
from balancer.middlewares.auth import Callers
from balancer.model import ANONYMOUS, Choice, Client
from balancer.routing.logins import Logins
from balancer.routing.router import Route
from balancer.surfaces.chat_turn import ChatSettings
from balancer.surfaces.conversations_chat import ConversationsSettings
from balancer.surfaces.gemini import GeminiSettings, base_path
from balancer.surfaces.openai import OpenAISettings
from balancer.upstreams import achuan, coze
from balancer.upstreams.conversing import Keeping


def base_url(upstream: UpstreamSettings) -> str:
    """Where the upstream is called, without what people paste along with it."""
    match upstream.kind:
        case "achuan":
            return achuan.origin(upstream.base_url)
        case "coze":
            return coze.origin(upstream.base_url)
        case _:
            return upstream.base_url


def keeping(settings: UpstreamSettings) -> Keeping:
    """How the upstream's conversations are kept."""
    return Keeping(
        settings.session_ttl,
        settings.renew_explicit,
        settings.adopt_unknown_sessions,
        transcript=settings.fresh_history == "transcript",
    )


def route(upstream: UpstreamSettings, dialects: frozenset[str]) -> Route:
    """What the upstream serves. `dialects`: those its kind can be asked in."""
    return Route(
        upstream=upstream.name,
        kind=upstream.kind,
        dialects=dialects,
        models=tuple(upstream.bot_ids) if upstream.kind == "coze" else upstream.models,
        bots=tuple(upstream.bot_ids),
        disabled=tuple(upstream.disabled_models),
        aliases=dict(upstream.aliases),
    )


def gemini_settings(settings: Settings, signing_keys: Sequence[bytes], ours: Callable[[str], bool]) -> GeminiSettings:
    """`signing_keys`, `ours`: as `GeminiSettings` says; they outlive one reading of the settings."""
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
        signing_keys=signing_keys,
        base_paths=[base_path(each.base_url) for each in settings.upstreams.values()],
        client=clients.get,
        ours=ours,
    )


def chat_settings(settings: Settings) -> ChatSettings:
    """What the chat surface takes; without a choice where no upstream is named for it."""
    chat, choice = settings.chat, None
    upstream = settings.upstreams.get(chat.upstream or "")
    if upstream is not None:
        model = chat.model or next(iter(upstream.bot_ids))  # which the checks see to
        choice = Choice(upstream.name, upstream.aliases.get(model, model))
    return ChatSettings(
        choice=choice,
        kind="" if upstream is None else upstream.kind,
        user=upstream.user_id if upstream is not None and upstream.kind == "coze" else None,
        turn_wait=chat.turn_wait,
        history=settings.conversations.history,
        max_body=chat.max_body,
        body_idle=settings.server.body_idle_timeout,
        allowed_origins=chat.allowed_origins,
        members={each.name: each.max_tokens_member for each in settings.upstreams.values()},
    )


def conversations_settings(settings: Settings) -> ConversationsSettings:
    """What the conversations surface takes."""
    return ConversationsSettings(
        model=settings.conversations.model,
        history=settings.conversations.history,
        max_body=settings.conversations.max_body,
        body_idle=settings.server.body_idle_timeout,
        turn_wait=settings.chat.turn_wait,
        allowed_origins=settings.conversations.allowed_origins,
        members={each.name: each.max_tokens_member for each in settings.upstreams.values()},
    )


def openai_settings(settings: Settings) -> OpenAISettings:
    """What the openai surface takes; a path that several upstreams add is all of theirs."""
    upstreams = settings.upstreams.values()
    added: dict[str, tuple[str, ...]] = {}
    for each in upstreams:
        for path in each.paths:
            added[path] = (*added.get(path, ()), each.name)
    return OpenAISettings(
        max_body=settings.server.max_body,
        max_upload=settings.server.max_upload,
        body_idle=settings.server.body_idle_timeout,
        replay=settings.relay.replay_limit,
        trusted_proxies=settings.server.trusted_proxies,
        allowed_origins=settings.openai.allowed_origins,
        default_upstream=settings.openai.default_upstream,
        filtered=bool(settings.auth.tokens),
        members={each.name: each.max_tokens_member for each in upstreams},
        paths=added,
        raw={each.name: each.raw for each in upstreams},
        passing={each.name: each.kind for each in upstreams if each.kind in OPENAI_KINDS},
    )


def callers(settings: Settings, logins: Logins) -> Callers:
    """Who may call the main listener."""
    public = settings.server.public_url
    host = urlsplit(public).hostname if public else None
    return Callers(settings.clients(), settings.auth.exempt_loopback, host, logins)


def admin_callers(settings: Settings) -> Callers:
    """Who may call the admin listener: whoever has its one token."""
    token = settings.admin.token
    if token is None:
        return Callers({})
    return Callers({hashlib.sha256(token.get_secret_value().encode()).digest(): Client("admin")})
