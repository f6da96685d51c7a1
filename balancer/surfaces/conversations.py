"""Stored chats for front-ends that need nothing else: sessions, their messages, a chat in OpenAI's shape, and a socket.

    [/s/{session}] /api/…      everything but /api/chat/session
                   /ws/chat    the socket, which is also at /api/ws/chat

Every row belongs to the client that made it; another client's is as if it were not there. What a route answers with is in the
database by then.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from aiohttp import web

from balancer.conversations.base import NewTurn, Session, SessionName, StorageUnavailable
from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.surfaces.base import ClientBody
from balancer.surfaces.coded_body import CodedBody
from balancer.surfaces.conversations_answers import (
    DELETED,
    no_session,
    refusal,
    session_shown,
    turn_shown,
    unavailable,
)
from balancer.surfaces.conversations_chat import Backend, complete
from balancer.surfaces.conversations_requests import (
    LARGEST_PAGE,
    NewMessage,
    NewSession,
    SessionChange,
    flag,
    number,
    page,
    received,
    refuse,
)
from balancer.surfaces.conversations_turns import SURFACE
from balancer.surfaces.conversations_ws import Admits, serve_socket
from balancer.surfaces.pages import pages
from balancer.web import CLIENT, RECORD, json_answer
from balancer.wire.loose_json import dump
from balancer.wire.session_ids import handle_of

_PAGES = pages("/api")
PUBLIC = frozenset({"/api/health", *_PAGES})
"""Paths that anybody may ask."""
SOCKETS = frozenset({"/ws/chat", "/api/ws/chat"})
ANOTHERS = "/api/chat/session"
"""The one path below /api that is another surface's."""

_PREFIX = re.compile(r"/s/([^/?]+)(?=/(?:api|ws)/)")
_SESSION = re.compile(r"/api/sessions/([^/]+)(/messages|/history)?")

Handler = Callable[[web.Request, str], Awaitable[Any]]


class ConversationsSurface:
    """Serves stored chats."""

    name = SURFACE

    def __init__(self, backend: Backend, callers: Callable[[], Admits]) -> None:
        self._backend = backend
        self._callers = callers
        self._routes: dict[str, dict[str, Handler]] = {
            "/api/health": {"GET": self._health},
            "/api/models": {"GET": self._models},
            "/api/sessions": {"GET": self._list, "POST": self._create},
            "": {"GET": self._show, "PUT": self._change, "DELETE": self._delete},
            "/messages": {"GET": self._messages, "POST": self._add},
            "/history": {"GET": self._history},
        }
        """By path; what stands behind a session's id by that alone."""

    def claims(self, request: web.Request) -> bool:
        raw = request.raw_path
        if raw.startswith("/v1"):  # nearly all that comes by
            return False
        if not raw.startswith(("/api", "/ws/", "/s/")) and raw.startswith("/"):
            return False
        path = _path(raw)[1]
        return path in SOCKETS or (path.startswith("/api/") and path != ANOTHERS) or path == "/api"

    def recognise(self, request: web.Request) -> Client | None:
        return ANONYMOUS if _path(request.raw_path)[1] in PUBLIC else None

    def allowed_origins(self) -> Collection[str]:
        return self._backend.settings().allowed_origins

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        return refusal(error)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._answer(request)
        except StorageUnavailable as error:
            raise unavailable(error) from error

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        prefix, path = _path(request.raw_path)
        if path in SOCKETS:
            _check_method(request, ("GET",))
            return await serve_socket(request, self._backend, self._callers, self)
        if path == "/api/chat/completions":
            _check_method(request, ("POST",))
            return await complete(request, await self._body(request), prefix, self._backend)
        if path in _PAGES:
            _check_method(request, ("GET",))
            return await _PAGES[path](request)
        found = _SESSION.fullmatch(path)
        named, route = (unquote(found[1]), found[2] or "") if found is not None else ("", path)
        handlers = self._routes.get(route) if route else self._routes[""] if found is not None else None
        if handlers is None or (found is None and not route.startswith("/api/")):
            raise ProxyError(404, "unknown_url", f"Invalid URL ({request.method} {request.path})")
        _check_method(request, tuple(handlers))
        return json_answer(200, dump(await handlers[request.method](request, named)))

    async def _body(self, request: web.Request) -> bytes:
        """The whole body, behind any content coding. Raises ProxyError 413, 415."""
        if not request.body_exists:
            return b""
        settings = self._backend.settings()
        source: Any = ClientBody(request, settings.max_body, settings.body_idle)
        coding = ", ".join(request.headers.getall("Content-Encoding", ()))
        if coding.strip().lower() not in ("", "identity"):
            source = CodedBody(source, coding, settings.max_body)
        pieces = []
        while piece := await source.read():
            pieces.append(piece)
        body = b"".join(pieces)
        request[RECORD].bytes_in = len(body)
        return body

    def _name(self, request: web.Request, named: str) -> SessionName:
        """Raises ProxyError 404 for what is no id of any session."""
        if handle_of(named) is None:
            raise no_session()
        return SessionName(request[CLIENT].name, SURFACE, named)

    async def _session(self, request: web.Request, named: str) -> Session:
        session = await (await self._backend.store()).get(self._name(request, named))
        if session is None:
            raise no_session()
        return session

    # Routes: each gives what is told as JSON

    async def _health(self, request: web.Request, _: str) -> Any:
        return {"status": "healthy"}

    async def _models(self, request: web.Request, _: str) -> Any:
        """As /v1/models shows them, the default one first."""
        models = await self._backend.rooms().router.models_for(request[CLIENT])
        default = self._backend.settings().model
        models.sort(key=lambda each: each["id"] != default)
        return {"object": "list", "data": models}

    async def _create(self, request: web.Request, _: str) -> Any:
        asked, _tree = await received(NewSession, await self._body(request))
        store = await self._backend.store()
        name = SessionName(request[CLIENT].name, SURFACE, str(uuid4()))
        session, _made = await store.get_or_create(name, title=asked.title)
        return session_shown(session)

    async def _list(self, request: web.Request, _: str) -> Any:
        skip, limit = page(request)
        active_only = flag(request, "active_only", True)
        store = await self._backend.store()
        client = request[CLIENT].name
        found = await store.sessions(client, SURFACE, skip=skip, limit=limit, active_only=active_only)
        return [session_shown(session) for session in found]

    async def _show(self, request: web.Request, named: str) -> Any:
        return session_shown(await self._session(request, named))

    async def _change(self, request: web.Request, named: str) -> Any:
        asked, _tree = await received(SessionChange, await self._body(request))
        if asked.title is None and asked.is_active is None:
            refuse("title", "Give title or is_active.")
        store = await self._backend.store()
        session = await store.update(self._name(request, named), title=asked.title, is_active=asked.is_active)
        if session is None:
            raise no_session()
        return session_shown(session)

    async def _delete(self, request: web.Request, named: str) -> Any:
        """What is generated for the session is stopped; a late answer finds nothing to be added to."""
        name = self._name(request, named)
        store = await self._backend.store()
        self._backend.generations.stop(name)
        if not await store.delete(name):
            raise no_session()
        return {"message": DELETED}

    async def _add(self, request: web.Request, named: str) -> Any:
        asked, tree = await received(NewMessage, await self._body(request))
        session = await self._session(request, named)
        turn = NewTurn(asked.role, tree["content"], asked.tokens, tree.get("metadata_info"))
        stored = await (await self._backend.store()).append(session, [turn])
        if stored is None:
            raise no_session()
        return turn_shown(session, stored[0])

    async def _messages(self, request: web.Request, named: str) -> Any:
        skip, limit = page(request)
        session = await self._session(request, named)
        turns = await (await self._backend.store()).turns(session, skip=skip, limit=limit)
        return [turn_shown(session, turn) for turn in turns]

    async def _history(self, request: web.Request, named: str) -> Any:
        limit = number(request, "limit", self._backend.settings().history, 1, LARGEST_PAGE)
        session = await self._session(request, named)
        turns = await (await self._backend.store()).newest(session, limit)
        return [{"role": turn.role, "content": turn.content} for turn in turns]


def _path(raw: str) -> tuple[str | None, str]:
    """The session that a path names before ours, if one does, and our path: raw, without query or a slash at its end."""
    if not raw.startswith("/"):  # absolute form, RFC 9112 section 3.2.2
        raw = "/" + raw.partition("://")[2].partition("/")[2]
    path = raw.partition("?")[0]
    prefix = None
    if (found := _PREFIX.match(path)) is not None:
        prefix, path = unquote(found[1]), path[found.end() :]
    return prefix, path.rstrip("/") if len(path) > 1 else path


def _check_method(request: web.Request, methods: tuple[str, ...]) -> None:
    """Raises ProxyError 405."""
    if request.method not in methods:
        allow = ", ".join((*methods, "OPTIONS"))
        raise ProxyError(405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow=allow)
