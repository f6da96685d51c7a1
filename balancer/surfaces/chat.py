"""A chat bot with sessions: one call, one answer, or a stream of events; behind it one upstream of any kind.

    POST /chat            /chat/stream                     a message
    GET  /sessions        /session/{id}/info               what is stored of the caller's sessions
    POST /session/{id}/clear    /session/{id}/bind         begin anew; go on with another conversation
    GET  /conversation/{id}/session                        whose it is
    GET  /                /health                          public

Errors are `{"detail": text}`; the texts stand in `chat_errors`. Turns are taken in `chat_turn`, answers told in `chat_voice`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson
from aiohttp import web

from balancer import __version__
from balancer.clock import Clock
from balancer.conversations.base import Session, SessionName, StorageUnavailable
from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.relay.exchange import Rooms
from balancer.relay.finishing import to_the_end
from balancer.relay.replay import Body, Budget, Source
from balancer.surfaces.base import ClientBody, ClientReply
from balancer.surfaces.chat_errors import RETRY_AFTER, storage, told, unavailable
from balancer.surfaces.chat_models import BindRequest, ChatRequest, PageQuery, SessionQuery, checked
from balancer.surfaces.chat_turn import SURFACE, Asked, ChatSettings, Turns
from balancer.surfaces.chat_voice import StreamVoice, WholeVoice, fresh_message, moment, shown
from balancer.surfaces.coded_body import CodedBody
from balancer.surfaces.pages import pages
from balancer.web import CLIENT, RECORD, error_answer, json_answer
from balancer.wire.loose_json import dump

if TYPE_CHECKING:
    from balancer.conversations.store import Store

Members = dict[str, Any]

_PAGES = pages()
_PUBLIC = frozenset({"/", "/health", *_PAGES})
_PLAIN = frozenset({"/chat", "/chat/stream", "/sessions", "/session", "/conversation"})
_BELOW = ("/chat/", "/session/", "/conversation/")
_NAMES = {"coze": "Coze"}
"""What the texts call an upstream, by its kind, where that is not the kind's own name."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A request's path, decoded segment by segment, and the session that its prefix names."""

    path: tuple[str, ...]
    session: str | None


_Handler = Callable[[web.Request, _Target], Awaitable[web.StreamResponse]]


class ChatSurface:
    """Serves the chat bot. All it is given is asked anew for each request: a reload changes the next one."""

    name = SURFACE

    def __init__(
        self,
        turns: Turns,
        rooms: Callable[[], Rooms],
        settings: Callable[[], ChatSettings],
        budget: Budget,
        clock: Clock,
    ) -> None:
        self._turns = turns
        self._rooms = rooms
        self._settings = settings
        self._budget = budget
        self._clock = clock

    def claims(self, request: web.Request) -> bool:
        raw = request.raw_path
        if raw.startswith("/v1"):  # by far the most
            return False
        path = _path(raw)
        if path.startswith("/s/"):
            path = "/" + path[3:].partition("/")[2]
            return path in _PLAIN or (path.startswith(_BELOW) and not path.startswith("/chat/completions"))
        if path in _PUBLIC or path in _PLAIN:
            return True
        # The rest of that is the OpenAI API without its version.
        return path.startswith(_BELOW) and not path.startswith("/chat/completions")

    def recognise(self, request: web.Request) -> Client | None:
        return ANONYMOUS if _path(request.raw_path) in _PUBLIC else None

    def allowed_origins(self) -> Collection[str]:
        return self._settings().allowed_origins

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        streamed = request is not None and _path(request.raw_path).endswith("/stream")
        error.status, body = told(error, self._upstream_name(), streamed=streamed)
        if error.status == 503 and error.retry_after is None:
            error.retry_after = RETRY_AFTER
        return error_answer(error, dump(body))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        target = _target(request)
        method, handler = self._route(target)
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Allow": f"{method}, OPTIONS"})
        if request.method != method and not (request.method == "HEAD" and method == "GET"):
            message = f"{request.method} is not a method of this URL."
            raise ProxyError(405, "method_not_allowed", message, allow=f"{method}, OPTIONS")
        try:
            return await handler(request, target)
        except StorageUnavailable as failure:
            raise storage(failure) from failure

    def _route(self, target: _Target) -> tuple[str, _Handler]:
        match target.path:
            case ():
                return "GET", self._root
            case ("health",):
                return "GET", self._health
            case (page,) if f"/{page}" in _PAGES:
                return "GET", _page(f"/{page}")
            case ("chat",):
                return "POST", self._chat
            case ("chat", "stream"):
                return "POST", self._stream
            case ("sessions",):
                return "GET", self._sessions
            case ("session", identity, "info"):
                return "GET", partial(self._info, identity)
            case ("session", identity, "clear"):
                return "POST", partial(self._clear, identity)
            case ("session", identity, "bind"):
                return "POST", partial(self._bind, identity)
            case ("conversation", identity, "session"):
                return "GET", partial(self._holder, identity)
            case _:
                raise ProxyError(404, "unknown_url", "Not Found")

    # A message

    async def _chat(self, request: web.Request, target: _Target) -> web.StreamResponse:
        asked = await self._asked(request, target)

        def voice_of(store: Store, session: Session) -> WholeVoice:
            return WholeVoice(**self._spoken(request, asked, store, session))

        voice = await self._turns.take(asked, voice_of, request[RECORD])
        return json_answer(200, dump(voice.answer), [("x-session-id", asked.session_id.strip())])

    async def _stream(self, request: web.Request, target: _Target) -> web.StreamResponse:
        asked = await self._asked(request, target)
        reply = ClientReply(request, request[RECORD])

        def voice_of(store: Store, session: Session) -> StreamVoice:
            spoken = self._spoken(request, asked, store, session)
            return StreamVoice(**spoken, reply=reply, text_of=self._text_of)

        await self._turns.take(asked, voice_of, request[RECORD])
        assert reply.response is not None
        return reply.response

    def _spoken(self, request: web.Request, asked: Asked, store: Store, session: Session) -> Members:
        return {
            "store": store,
            "session": session,
            "session_id": asked.session_id,
            "names_itself": self._settings().kind == "coze",
            "record": request[RECORD],
            "wall": self._clock.wall,
            "message_id": fresh_message(),
        }

    def _text_of(self, error: ProxyError) -> str:
        detail: str = told(error, self._upstream_name(), streamed=True)[1]["detail"]
        return detail

    def _upstream_name(self) -> str:
        kind = self._settings().kind
        return _NAMES.get(kind, kind)

    async def _asked(self, request: web.Request, target: _Target) -> Asked:
        """The message. Raises ProxyError 400, 413 and, while the process drains, 503."""
        if request[RECORD].close:
            raise unavailable("draining", 1.0, code="draining")
        message = checked(ChatRequest, await self._json(request))
        places = (request.headers.get("X-Session-Id"), request.query.get("session_id"))
        given = next((each for each in places if each is not None and each.strip()), None)
        if given is None:
            given = message.session_id or target.session
        session = checked(SessionQuery, {"session_id": given}).session_id
        return Asked(request[CLIENT], session or f"session_{secrets.token_hex(6)}", message)

    # What is stored

    async def _info(self, identity: str, request: web.Request, target: _Target) -> web.StreamResponse:
        session = await (await self._turns.store()).get(_name(request, identity))
        if session is None:
            raise ProxyError(404, "session_not_found", f"会话不存在 - session_id: {identity}")
        return _answer(
            {
                "session_id": identity,
                "user_id": session.user_id,
                "conversation_id": session.conversation,
                "last_activity": shown(session.updated_at),
                "message_count": session.turns,
                "status": "active",
            }
        )

    async def _clear(self, identity: str, request: web.Request, target: _Target) -> web.StreamResponse:
        name = _name(request, identity)
        self._turns.stop(name)
        await to_the_end((await self._turns.store()).clear(name))
        return _answer({"message": "会话已成功清除", "session_id": identity, "cleared_at": self._now()})

    async def _bind(self, identity: str, request: web.Request, target: _Target) -> web.StreamResponse:
        conversation = checked(BindRequest, await self._json(request)).conversation_id
        name = _name(request, identity)
        store = await self._turns.store()
        async with self._turns.alone(name, self._settings().turn_wait):
            await self._turns.move(store, name, conversation, request[CLIENT], request[RECORD])
        return _answer(
            {
                "message": "会话ID绑定成功",
                "session_id": identity,
                "conversation_id": conversation,
                "timestamp": self._now(),
            }
        )

    async def _holder(self, identity: str, request: web.Request, target: _Target) -> web.StreamResponse:
        held = None
        if identity.isprintable():
            held = await (await self._turns.store()).by_conversation(SURFACE, identity)
        if held is None or held.client != request[CLIENT].name:
            raise ProxyError(404, "session_not_found", f"未找到绑定的会话 - conversation_id: {identity}")
        return _answer(
            {
                "conversation_id": identity,
                "session_id": held.id,
                "session_info": {"user_id": held.user_id, "last_activity": shown(held.updated_at)},
                "timestamp": self._now(),
            }
        )

    async def _sessions(self, request: web.Request, target: _Target) -> web.StreamResponse:
        given = {name: request.query[name] for name in ("limit", "offset") if name in request.query}
        page, client = checked(PageQuery, given), request[CLIENT].name
        store = await self._turns.store()
        total, sessions = await asyncio.gather(
            store.count(client, SURFACE), store.sessions(client, SURFACE, skip=page.offset, limit=page.limit)
        )
        listed = [
            {
                "session_id": each.id,
                "user_id": each.user_id,
                "conversation_id": each.conversation,
                "last_activity": shown(each.updated_at),
            }
            for each in sessions
        ]
        about = {"total": total, "limit": page.limit, "offset": page.offset}
        return _answer({**about, "sessions": listed, "timestamp": self._now()})

    # What anybody may ask

    async def _root(self, request: web.Request, target: _Target) -> web.StreamResponse:
        coze = self._settings().kind == "coze"
        message = "Coze聊天机器人API服务正在运行" if coze else "balancer is running"
        return _answer({"message": message, "version": __version__, "status": "healthy", "docs": "/docs"})

    async def _health(self, request: web.Request, target: _Target) -> web.StreamResponse:
        status = "initialized" if self._ready() else "uninitialized"
        return _answer({"status": "healthy", "timestamp": self._now(), "coze_client_status": status})

    def _ready(self) -> bool:
        """Whether the upstream behind the surface has a key that is not disabled."""
        choice = self._settings().choice
        if choice is None:
            return False
        states = self._rooms().upstreams[choice.upstream].pool.states()
        return bool(states.ready or states.resting)

    # Inside

    def _now(self) -> str:
        return moment(self._clock.wall())

    async def _json(self, request: web.Request) -> Any:
        """The body, whatever its content type says. Raises ProxyError 400, 413."""
        settings = self._settings()
        source: Source | None = None
        length = request.content_length
        if request.body_exists:
            source = ClientBody(request, settings.max_body, settings.body_idle)
            coding = ", ".join(request.headers.getall("Content-Encoding", ()))
            if coding.strip().lower() not in ("", "identity"):
                source, length = CodedBody(source, coding, settings.max_body), None
        body, record = Body(source, length, settings.max_body + 1, self._budget), request[RECORD]
        began = self._clock.monotonic()
        try:
            await body.gather()
            if not body.complete:
                raise unavailable("too many requests are being read")
            return orjson.loads(body.kept())
        except orjson.JSONDecodeError:
            raise ProxyError(400, "invalid_json", "body: is not JSON") from None
        finally:
            record.other_wait += self._clock.monotonic() - began
            record.bytes_in = body.size
            body.release()


def _page(path: str) -> _Handler:
    async def show(request: web.Request, target: _Target) -> web.StreamResponse:
        return await _PAGES[path](request)

    return show


def _answer(members: Members) -> web.Response:
    return json_answer(200, dump(members))


def _name(request: web.Request, identity: str) -> SessionName:
    """The caller's session of this id. Raises ProxyError 400."""
    session = checked(SessionQuery, {"session_id": identity}).session_id
    if session is None:
        raise ProxyError(400, "invalid_parameter", "session_id: is blank", param="session_id")
    return SessionName(request[CLIENT].name, SURFACE, session.strip())


def _path(raw: str) -> str:
    """The raw path of a request target, also where that is in absolute form (RFC 9112 section 3.2.2); of other forms none."""
    if not raw.startswith("/"):
        scheme, _, rest = raw.partition("://")
        if scheme.lower() not in ("http", "https"):
            return raw
        raw = "/" + rest.partition("/")[2]
    path = raw.partition("?")[0]
    return path.rstrip("/") or "/"


def _target(request: web.Request) -> _Target:
    segments = _path(request.raw_path).split("/")[1:]
    session = None
    if segments[0] == "s" and len(segments) > 2:
        session, segments = unquote(segments[1]), segments[2:]
    return _Target(tuple(unquote(each) for each in segments if each), session)
