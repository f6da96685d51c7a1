"""The Gemini API as Google's SDKs call it: every path of its shapes, of any version, passed through byte for byte.

What a target looks like is read in `gemini_target`; here it becomes a `Call`, and answers of ours get Google's dialect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web
from multidict import istr

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call, Client, Effect
from balancer.observe import logs
from balancer.relay.exchange import Rooms
from balancer.relay.relay import relay
from balancer.relay.replay import Body, Budget, Source
from balancer.surfaces.base import ClientBody, ClientReply
from balancer.surfaces.coded_body import CodedBody
from balancer.surfaces.gemini_target import Target, read_target, session_of
from balancer.web import CLIENT, RECORD, Network, client_address, error_answer, public_origin
from balancer.wire import google, google_limits, upload_url
from balancer.wire.headers import REQUEST_DROP, end_to_end, first, strip_query

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_REGISTER_DROP = REQUEST_DROP - {"x-goog-user-project"}
_OAUTH = ("Bearer ", "bearer ")


@dataclass(frozen=True, slots=True)
class GeminiSettings:
    """What this surface takes from the configuration. Sizes in bytes, times in seconds.

    `signing_keys`: the first signs upload addresses, all are accepted. `base_paths`: the path of each upstream's base URL.
    `client`: the client of a name, None where there is none any more. `ours`: whether a credential is one that we gave out.
    """

    max_body: int
    max_upload: int
    body_idle: float | None
    replay: int
    public_url: str | None
    trusted_proxies: tuple[Network, ...]
    signing_keys: Sequence[bytes]
    base_paths: Sequence[str]
    client: Callable[[str], Client | None]
    ours: Callable[[str], bool]


class GeminiSurface:
    """Serves the Gemini API. `rooms` and `settings` are asked anew for each request: a reload changes the next one."""

    name = "gemini"

    def __init__(
        self, rooms: Callable[[], Rooms], settings: Callable[[], GeminiSettings], budget: Budget, clock: Clock
    ) -> None:
        self._rooms = rooms
        self._settings = settings
        self._budget = budget
        self._clock = clock

    def claims(self, request: web.Request) -> bool:
        target = read_target(request.raw_path)
        if target is None:
            raw = request.raw_path
            ours = raw.startswith(("/gemini/", "/v1beta/", "/v1alpha/", "/upload/", "/download/"))
            return ours and not raw.startswith(("/v1beta/openai/", "/v1alpha/openai/"))
        if target.ours:
            return True
        headers = request.headers
        return "x-goog-api-key" in headers or "x-goog-api-client" in headers or "key" in request.rel_url.query

    def recognise(self, request: web.Request) -> Client | None:
        """The client of a chunk call, by the grant in its address. Raises ProxyError 404 if that does not hold."""
        if "/upload/" not in request.raw_path:
            return None
        target = read_target(request.raw_path)
        if target is None or not target.is_upload:
            return None
        bare, removed = strip_query(target.raw, upload_url.INTERNAL)
        if upload_url.MEMBER not in removed:
            return None
        settings = self._settings()
        grant = upload_url.verify(bare, removed[upload_url.MEMBER], settings.signing_keys)
        client = settings.client(grant.client) if grant is not None else None
        if grant is None or client is None:
            raise _no_such_upload()
        request[GRANT] = grant
        return client

    def allowed_origins(self) -> Collection[str]:
        """None: Google's own API is not for web pages either."""
        return ()

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        """In Google's dialect. The SDKs send a chunk again, three times, whose answer lacks an upload status."""
        answer = error_answer(error, google.render(error))
        target = read_target(request.raw_path) if request is not None else None
        if target is not None and target.is_chunk:
            answer.headers["X-Goog-Upload-Status"] = "cancelled"
        return answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        target = read_target(request.raw_path)
        if target is None:
            raise ProxyError(
                404, "unknown_url", f"The Gemini API has no URL of this shape ({request.method} {request.path})."
            )
        if request.method not in METHODS:
            allow = ", ".join(METHODS)
            raise ProxyError(405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow=allow)
        if target.is_chunk and GRANT not in request:
            raise _no_such_upload()
        record, rooms, settings = request[RECORD], self._rooms(), self._settings()
        limit = settings.max_upload if target.is_upload else settings.max_body
        source = ClientBody(request, limit, settings.body_idle) if request.body_exists else None
        reply, call = ClientReply(request, record), self._call(request, target, settings)
        most = call.client.max_tokens
        if most is not None and source is not None and target.method in _GENERATING:
            began = self._clock.monotonic()
            body = await self._bounded(call, source, limit, settings.replay, most)
            record.other_wait += self._clock.monotonic() - began
        else:
            body = Body(source, request.content_length, settings.replay, self._budget)
        await relay(call, body, reply, rooms, record)
        assert reply.response is not None
        return reply.response

    def _call(self, request: web.Request, target: Target, settings: GeminiSettings) -> Call:
        method, client = request.method, request[CLIENT]
        errand = target.errand(method)
        grant = request.get(GRANT) if target.is_upload else None
        headers = _headers(request, target, settings.ours, identity=errand.effect in _TELLING)
        # By position, the rest below: with eleven keywords it takes twice as long to make.
        call = Call(self.name, "gemini", method, errand.path, headers, client, target.model)
        call.session = self._session(request, target, errand.removed, client)
        call.deadline = self._deadline(request)
        call.repeatable = errand.repeatable
        call.effect = errand.effect
        if grant is not None:
            call.owner, call.streams = grant.owner, True
            return call
        starts = target.is_upload and method in ("POST", "PUT")
        call.names = errand.names
        call.pages = errand.pages
        call.uploads = starts or errand.gathers
        if call.uploads or call.pages:
            call.address = client_address(request, settings.trusted_proxies)
        if starts:
            call.rewrite = self._rewriting(request, target, settings, client)
        else:
            call.scans = request.body_exists
        return call

    async def _bounded(self, call: Call, source: Source, limit: int, replay: int, most: int) -> Body:
        """The body, read whole and out of its content coding, so that it asks for `most` tokens of output and no more.

        Raises ProxyError 413 where it is too large for that, 503 where too much else is kept, and what reading it raises.
        """
        coding = first(call.headers, "content-encoding") or "identity"
        if coding.strip().lower() != "identity":
            source = CodedBody(source, coding, limit)
            call.headers = [field for field in call.headers if field[0].lower() != "content-encoding"]
        body = Body(source, None, replay, self._budget)
        try:
            await body.gather()
            edits = google_limits.edits(body.kept(), most) if body.complete else None
        except google_limits.TooLarge:
            edits = None
        except BaseException:
            body.release()
            raise
        if edits is None:
            body.release()
            raise _unread(too_large=body.complete or body.size >= replay)
        call.edits = lambda choice: edits
        return body

    def _session(self, request: web.Request, target: Target, removed: dict[str, str], client: Client) -> str | None:
        header = request.headers.get(_SESSION_FIELD)
        if header is None and target.session is None and not removed:
            return None
        found = session_of(header, removed.get("session_id"), target.session)
        if found is None:
            return None
        session, source = found
        logs.info(f"Received session_id: {session} (from {source})", client=client.name)
        return session

    def _deadline(self, request: web.Request) -> float | None:
        """`X-Server-Timeout` (seconds, sent by the SDKs where a timeout is set) as monotonic time."""
        given = request.headers.get(_DEADLINE_FIELD)
        if given is None:
            return None
        try:
            seconds = float(given)
        except ValueError:
            return None
        return request[RECORD].started + seconds if 0 < seconds < float("inf") else None

    def _rewriting(
        self, request: web.Request, target: Target, settings: GeminiSettings, client: Client
    ) -> Callable[[list[tuple[str, str]], str], list[tuple[str, str]]]:
        public = public_origin(request, settings.public_url, settings.trusted_proxies) + target.prefix
        base_path = next(iter(settings.base_paths), "")

        def rewrite(headers: list[tuple[str, str]], owner: str) -> list[tuple[str, str]]:
            grant = upload_url.Grant(owner, client.name)
            return upload_url.rewrite(headers, grant, settings.signing_keys[0], public, base_path)

        return rewrite


GRANT = web.RequestKey("grant", upload_url.Grant)
_SESSION_FIELD, _DEADLINE_FIELD = istr("X-Session-Id"), istr("X-Server-Timeout")
_GENERATING = ("generateContent", "streamGenerateContent")
"""Methods whose bodies hold a limit of output tokens."""
_TELLING = (Effect.CREATE, Effect.READ, Effect.LIST)


def _unread(*, too_large: bool) -> ProxyError:
    """A body that cannot be looked through for its limit of output tokens; `too_large`: whatever else is kept."""
    if too_large:
        message = "The request body is too large to apply this client's limit of output tokens to it."
        return ProxyError(413, "request_too_large", message, close=True)
    message = "Too many request bodies are held at the moment to look through another one."
    return ProxyError(503, "overloaded", message, retry_after=1, close=True)


def _no_such_upload() -> ProxyError:
    return ProxyError(404, "upload_not_found", "This upload address is not valid here (any more).", close=True)


def _headers(
    request: web.Request, target: Target, ours: Callable[[str], bool], *, identity: bool
) -> list[tuple[str, str]]:
    """The end-to-end fields. `identity`: the answer will be read for names, so it is asked for without content coding.

    `files:register` needs the caller's own OAuth token beside the key; one of our client tokens is not that.
    """
    fields = request.headers.items()
    if target.method == "register" and (oauth := _oauth(request, ours)) is not None:
        headers = [*end_to_end(fields, _REGISTER_DROP), ("Authorization", oauth)]
    else:
        headers = end_to_end(fields, REQUEST_DROP)
    if identity:
        headers = [field for field in headers if field[0].lower() != "accept-encoding"]
        headers.append(("Accept-Encoding", "identity"))
    return headers


def _oauth(request: web.Request, ours: Callable[[str], bool]) -> str | None:
    """The Authorization field, where another place has already told who calls, and unless it is a token of ours."""
    value = request.headers.get("Authorization", "")
    known_by_other = any(name in request.headers for name in ("x-goog-api-key", "x-api-key", "api-key"))
    if not (value.startswith(_OAUTH) and known_by_other):
        return None
    return None if ours(value.partition(" ")[2].strip()) else value


def base_path(base_url: str) -> str:
    """The path of a base URL, without trailing slash."""
    return urlsplit(base_url).path.rstrip("/")
