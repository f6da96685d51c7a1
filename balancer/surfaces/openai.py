"""The OpenAI API over every upstream that speaks it: routed by model, spliced where it must be, else passed byte for byte.

A request becomes a `Call` in four steps: its target (`openai_target`), what of its body is looked at (`wire.openai`), the
upstreams that its model or its resources lead to, and the splices for each of them. Everything that no other surface
claims ends here too, and gets its error in this dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any
from urllib.parse import unquote

import orjson
import structlog
from aiohttp import web
from multidict import istr

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call, Choice, Client, Edit, Effect
from balancer.relay.exchange import Rooms
from balancer.relay.merging import merged_list
from balancer.relay.relay import relay
from balancer.relay.replay import Body, Budget, Source
from balancer.routing.logins import Logins
from balancer.routing.router import may_use, may_use_some, missing_model
from balancer.surfaces.base import ClientBody, ClientReply, stainless_deadline
from balancer.surfaces.coded_body import CodedBody
from balancer.surfaces.openai_realtime import realtime
from balancer.surfaces.openai_target import RawTarget, Route, Target, read_target, route_of
from balancer.surfaces.openai_translate import answer_said, read_said
from balancer.web import (
    BAD_CREDENTIAL,
    CLIENT,
    LOGIN,
    NO_CREDENTIAL,
    PUBLIC_PATHS,
    RECORD,
    Network,
    client_address,
    error_answer,
    json_answer,
)
from balancer.wire import multipart, openai, openai_errors, openai_ids, openai_lists
from balancer.wire.headers import REQUEST_DROP, end_to_end, strip_query
from balancer.wire.resources import NOTHING
from balancer.wire.session_ids import handle_of

log = structlog.get_logger()

INTERNAL = frozenset({"key", "api_key", "session_token", "session_id"})
"""Query members that are for us and for no upstream."""
UPLOADS = ("/files", "/uploads", "/vector_stores", "/containers")
"""Where uploads begin, or the places they are put into: what is made after one another should be usable together."""
_DROP = REQUEST_DROP | {"openai-organization", "openai-project"}


@dataclass(frozen=True, slots=True)
class OpenAISettings:
    """What this surface takes from the configuration. Sizes in bytes, times in seconds.

    `filtered`: clients have tokens, so that each sees its own things alone.
    `members`: the upstream's word for a limit of output tokens. `paths`: upstreams by path that they add to the API.
    `raw`: globs of what `/proxy/{upstream}` opens, by upstream. `passing`: upstreams to which the dialect passes untouched, and
    what their raw calls are judged as.
    """

    max_body: int
    max_upload: int
    body_idle: float | None
    replay: int
    trusted_proxies: tuple[Network, ...]
    allowed_origins: tuple[str, ...]
    default_upstream: str | None
    filtered: bool
    members: Mapping[str, str]
    paths: Mapping[str, tuple[str, ...]]
    raw: Mapping[str, tuple[str, ...]]
    passing: Mapping[str, str]


Asked = openai.Asked | multipart.Field
"""What was found in a body."""


class OpenAISurface:
    """Serves the OpenAI API. `rooms` and `settings` are asked anew for each request: a reload changes the next one."""

    name = "openai"

    def __init__(
        self,
        rooms: Callable[[], Rooms],
        settings: Callable[[], OpenAISettings],
        logins: Callable[[], Logins],
        budget: Budget,
        clock: Clock,
    ) -> None:
        self._rooms = rooms
        self._settings = settings
        self._logins = logins
        self._budget = budget
        self._clock = clock

    def claims(self, request: web.Request) -> bool:
        """All that is left: a URL that nobody knows has an error in this dialect."""
        return request.raw_path.partition("?")[0] not in PUBLIC_PATHS

    def recognise(self, request: web.Request) -> Client | None:
        return None

    def allowed_origins(self) -> Collection[str]:
        return self._settings().allowed_origins

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        """In OpenAI's dialect; on the paths that an upstream of another one adds, in Anthropic's."""
        if error.code in _CREDENTIAL_TEXTS:
            error.message = _CREDENTIAL_TEXTS[error.code]
        target = read_target(request.raw_path) if request is not None else None
        added = isinstance(target, Target) and target.path in self._settings().paths
        return error_answer(error, (openai_errors.render_anthropic if added else openai_errors.render)(error))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        target = read_target(request.raw_path)
        if target is None:
            raise _unknown_url(request)
        if isinstance(target, RawTarget):
            return await self._raw(request, target)
        added = self._settings().paths.get(target.path)
        route = Route(("POST",), model=True, upstreams=added) if added else route_of(target.path, request.method)
        if route is None:
            raise _unknown_url(request)
        if request.method not in route.methods:
            allow = ", ".join(route.methods)
            raise ProxyError(405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow=allow)
        if route.api == "models":
            return await self._models(request, target)
        if route.api == "realtime":
            return await realtime(request, target, self._rooms(), self._settings().default_upstream)
        if request.method == "GET" and (listed := openai_ids.place("GET", target.path).listed) is not None:
            return await self._list(request, target, route, listed)
        return await self._pass(request, target, route)

    async def _pass(self, request: web.Request, target: Target, route: Route) -> web.StreamResponse:
        """One request of the API, to an upstream that speaks the dialect."""
        settings, rooms, record = self._settings(), self._rooms(), request[RECORD]
        form = not route.model and multipart.is_form(request.headers.get("Content-Type"))
        body = self._body(request, settings, settings.max_upload if form else settings.max_body)
        reply = ClientReply(request, record)
        try:
            asked = await self._look(request, route, body, form)
            call = self._call(request, target, route, asked)
            call.choices = await self._choices(request, call, route, asked, body, rooms)
            choice = call.choices[0]
            said = None
            if route.translated and choice.upstream not in settings.passing:
                said = read_said(request, body, target.session, choice, rooms, settings.replay)
            await self._rebind(request, route, asked, choice)
            if asked is not None:
                call.edits = partial(self._edits, route, asked, call.client)
        except BaseException:
            body.release()
            raise
        if said is not None:
            record.bytes_in = body.size
            body.release()
            return await answer_said(request, call, said, rooms, self._budget, self._clock)
        await relay(call, body, reply, rooms, record)
        assert reply.response is not None
        return reply.response

    def _body(self, request: web.Request, settings: OpenAISettings, limit: int) -> Body:
        source: Source | None = None
        length = request.content_length
        if request.body_exists:
            source = ClientBody(request, limit, settings.body_idle)
            coding = ", ".join(request.headers.getall("Content-Encoding", ()))
            if coding.strip().lower() not in ("", "identity"):
                source, length = CodedBody(source, coding, limit), None
        return Body(source, length, settings.replay, self._budget)

    async def _look(self, request: web.Request, route: Route, body: Body, form: bool) -> Asked | None:
        """What of the body decides where it goes and how it is spliced; None where nothing in it does."""
        if not (route.forms if form else route.looks) or not (body.present or route.model):
            return None
        began = self._clock.monotonic()
        await body.gather()
        request[RECORD].other_wait += self._clock.monotonic() - began
        kept = body.kept()
        limited = request[CLIENT].models != ("*",)
        if form:
            field = multipart.model_field(kept, request.headers.get("Content-Type", ""), body.complete)
            if not body.complete and (field is None or limited):
                raise _too_long_to_look(kept)
            return field
        asked = openai.read(kept, body.complete)
        if asked.model_hidden or (limited and not body.complete):
            raise _too_long_to_look(kept)
        if route.api == "chat" and asked.no_messages:
            raise openai.no_messages()
        asked.values.pop("messages", None)  # the largest part by far, and nobody needs it any more
        return asked

    def _call(self, request: web.Request, target: Target, route: Route, asked: Asked | None) -> Call:
        raw = f"{target.path}?{target.query}" if target.query else target.path
        path, removed = strip_query(raw, INTERNAL)
        client, record = request[CLIENT], request[RECORD]
        place = openai_ids.place(request.method, target.path)
        effect = place.effect
        given: list[Any] = [request.headers.get(_SESSION_FIELD), removed.get("session_id"), target.session]
        if isinstance(asked, openai.Asked):
            given[2:2] = [asked.session_id, _text(_member(asked.metadata, "sessionId"))]
            if place.if_stored and not asked.store:
                effect = Effect.NONE
        call = Call(
            surface=self.name,
            dialect="openai",
            method=request.method,
            path=path,
            headers=_headers(request, identity=effect in (Effect.CREATE, Effect.READ, Effect.LIST)),
            client=client,
            session=_first_handle(given),
            deadline=stainless_deadline(request, record.started),
            repeatable=place.repeatable and effect is not Effect.CREATE,
            effect=effect,
            names=list(place.ids),
            scans=place.scans and isinstance(asked, openai.Asked),
            uploads=effect is Effect.CREATE and target.path in UPLOADS,
        )
        if call.uploads:
            call.address = client_address(request, self._settings().trusted_proxies)
        return call

    async def _choices(
        self, request: web.Request, call: Call, route: Route, asked: Asked | None, body: Body, rooms: Rooms
    ) -> tuple[Choice, ...]:
        """The upstreams that the request may go to. Raises ProxyError where its model leads nowhere, or where it has none."""
        if isinstance(asked, openai.Asked) and asked.model_wrong:
            raise missing_model()
        name = _model_of(asked)
        login = request.get(LOGIN)
        if name is None and not route.model:
            return await self._homes(call, body, rooms)
        bound = login.bound if login is not None and route.binds else None
        wanted = name or bound
        if wanted is None:
            raise missing_model()
        return self._serving(request, route, await rooms.router.resolve(wanted, call.client))

    async def _rebind(self, request: web.Request, route: Route, asked: Asked | None, choice: Choice) -> None:
        """A model that is named is the session token's from now on, on the routes that bind."""
        name, login = _model_of(asked), request.get(LOGIN)
        if login is not None and route.binds and name is not None:
            await self._logins().rebind(login, choice.upstream, choice.model or name)

    def _serving(self, request: web.Request, route: Route, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
        """Those of the upstreams that serve the route; one that keeps the conversation alone. Raises ProxyError if none does."""
        opening = route.upstreams or self._settings().passing
        if route.translated and choices[0].upstream not in opening:
            return choices[:1]
        found = tuple(choice for choice in choices if choice.upstream in opening)
        if found:
            return found
        if route.upstreams:
            raise _unknown_url(request)
        message = f"{choices[0].upstream} keeps conversations itself and serves /v1/chat/completions alone."
        raise ProxyError(400, "unsupported_endpoint", message)

    async def _homes(self, call: Call, body: Body, rooms: Rooms) -> tuple[Choice, ...]:
        """Where a request without a model goes: to the upstream of what it names, else to the default one.

        What a path names may be anywhere, so that the relay looks for it everywhere; what a body names counts where it is known.
        """
        settings = self._settings()
        default = rooms.router.default_choice(call.client, settings.default_upstream)
        others = [name for name in settings.passing if name != default.upstream and may_use_some(call.client, name)]
        if not others:
            return (default,)
        names = (default.upstream, *others)
        if call.names:
            return tuple(Choice(name, None) for name in names)
        mentions = rooms.namings["openai"].mentions(body.windows()) if call.scans else NOTHING
        home = await rooms.affinity.home(names, mentions.named)
        return (default if home is None else Choice(home, None),)

    def _edits(self, route: Route, asked: Asked, client: Client, choice: Choice) -> list[Edit]:
        """The splices of a body for one upstream."""
        if isinstance(asked, multipart.Field):
            model = choice.model
            return [(asked.start, asked.end, model.encode())] if model is not None and model != asked.value else []
        member = self._settings().members.get(choice.upstream) if route.limit == "" else route.limit
        return openai.edits(asked, model=choice.model, maximum=client.max_tokens, limit_member=member)

    async def _models(self, request: web.Request, target: Target) -> web.Response:
        """The models that the client may use, or one of them; the id's slashes may be raw or encoded."""
        shown = await self._rooms().router.models_for(request[CLIENT])
        if target.path == "/models":
            return json_answer(200, orjson.dumps({"object": "list", "data": shown}))
        wanted = unquote(target.path.removeprefix("/models/"))
        for model in shown:
            if model["id"] == wanted:
                return json_answer(200, orjson.dumps(model))
        raise ProxyError(404, "model_not_found", f"模型 {wanted} 不存在", param="model")

    async def _list(self, request: web.Request, target: Target, route: Route, collection: str) -> web.Response:
        """What the client has of one collection, whichever keys made it."""
        rooms, settings, record = self._rooms(), self._settings(), request[RECORD]
        call = self._call(request, target, route, None)
        default = rooms.router.default_choice(call.client, settings.default_upstream).upstream
        record.upstream = default
        others = [name for name, kind in settings.passing.items() if kind == "openai" and name != default]
        upstreams = [
            rooms.upstreams[name] for name in (default, *others) if name == default or may_use_some(call.client, name)
        ]
        asked = openai_lists.paging(collection, call.path.partition("?")[2])
        body, partial = await merged_list(call, collection, asked, upstreams, rooms, record, filtered=settings.filtered)
        return json_answer(200, body, [("x-balancer-partial", "true")] if partial else ())

    async def _raw(self, request: web.Request, target: RawTarget) -> web.StreamResponse:
        """Any path of one upstream, with a key and nothing else changed."""
        settings, rooms, record, client = self._settings(), self._rooms(), request[RECORD], request[CLIENT]
        if target.bad:
            message = "The path holds `..`, `//`, a backslash or one of their encodings."
            raise ProxyError(400, "invalid_request", message, close=True)
        globs = settings.raw.get(target.upstream, ())
        if not any(fnmatchcase(target.path, glob) for glob in globs):
            raise _unknown_url(request)
        source = ClientBody(request, settings.max_upload, settings.body_idle) if request.body_exists else None
        body = Body(source, request.content_length, settings.replay, self._budget)
        model = None
        if client.models != ("*",):
            try:
                model = await self._allowed_model(client, target.upstream, body)
            except BaseException:
                body.release()
                raise
        path, removed = strip_query(f"{target.path}?{target.query}" if target.query else target.path, INTERNAL)
        given = (request.headers.get(_SESSION_FIELD), removed.get("session_id"), target.session)
        call = Call(
            surface="raw",
            dialect=settings.passing.get(target.upstream, "openai"),
            method=request.method,
            path=path,
            headers=end_to_end(request.headers.items(), _DROP),
            client=client,
            model=model,
            choices=(Choice(target.upstream, model),),
            session=_first_handle(given),
            deadline=stainless_deadline(request, record.started),
            repeatable=request.method in ("GET", "HEAD"),
        )
        reply = ClientReply(request, record)
        await relay(call, body, reply, rooms, record)
        assert reply.response is not None
        return reply.response

    async def _allowed_model(self, client: Client, upstream: str, body: Body) -> str:
        """The model that a raw request names. Raises ProxyError where that is none, or none that this client may use."""
        await body.gather()
        asked = openai.read(body.kept(), body.complete)
        if asked.model_hidden or not body.complete:
            raise _too_long_to_look(body.kept())
        model = asked.model
        if model is None or asked.rewritten:  # two models in one body: the upstream may read the other
            raise missing_model()
        if not may_use(client, upstream, model):
            message = f"API Key 不允许访问模型 {upstream}/{model}"
            raise ProxyError(403, "model_not_allowed", message, param="model")
        return model


_SESSION_FIELD = istr("X-Session-Id")
_CREDENTIAL_TEXTS = {"missing_api_key": NO_CREDENTIAL, "invalid_api_key": BAD_CREDENTIAL}


def _too_long_to_look(kept: bytes) -> ProxyError:
    """The model may stand, or stand a second time, behind what was read ahead of a body."""
    message = f"The body is too large: the model must be seen, and only its first {len(kept)} bytes are read ahead."
    return ProxyError(413, "request_too_large", message, param="model", close=True)


def _model_of(asked: Asked | None) -> str | None:
    if isinstance(asked, multipart.Field):
        return asked.value.strip() or None
    return asked.model if asked is not None else None


def _member(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _first_handle(given: Iterable[Any]) -> str | None:
    """The first that is a session id, of all places where one may be given."""
    for each in given:
        if each is not None and (found := handle_of(each)) is not None:
            return found
    return None


def _text(value: Any) -> Any:
    """A session id that is written as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _unknown_url(request: web.Request) -> ProxyError:
    return ProxyError(404, "unknown_url", f"Invalid URL ({request.method} {request.path})")


def _headers(request: web.Request, *, identity: bool) -> list[tuple[str, str]]:
    """The end-to-end fields. `identity`: the answer will be read for ids, so it is asked for without content coding."""
    headers = end_to_end(request.headers.items(), _DROP)
    dropped = {"content-encoding"} if "Content-Encoding" in request.headers else set()
    if identity:
        dropped.add("accept-encoding")
    if dropped:
        headers = [field for field in headers if field[0].lower() not in dropped]
    if identity:
        headers.append(("Accept-Encoding", "identity"))
    return headers
