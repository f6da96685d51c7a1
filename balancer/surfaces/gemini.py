"""The Gemini API as Google's SDKs call it: every path of its shapes, of any version, passed through byte for byte.

Paths are recognised by shape and not from a list, so that a collection that does not exist yet works too:
`/v1beta/models/M:generateContent`, `/upload/v1beta/files`, `/v1alpha/auth_tokens`, each also behind `/gemini`. Under plain
`/v1/…` and without a version OpenAI clients call as well: there a request is ours if it says so (`x-goog-api-key`,
`x-goog-api-client`, `?key=`, or a `:method` in the path).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote

from aiohttp import web

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call
from balancer.relay.relay import Rooms, relay
from balancer.relay.replay import Body, Budget
from balancer.surfaces.base import ClientBody, ClientReply
from balancer.web import CLIENT, RECORD
from balancer.wire import google
from balancer.wire.headers import REQUEST_DROP, end_to_end, strip_query

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
INTERNAL_QUERY = frozenset({"key", "api_key", "session_token", "session_id"})
"""Query members that never reach an upstream: places of client credentials, and the session."""

_VERSIONED = re.compile(r"/(?:(?:upload|download)/)?(v1\w*)/[A-Za-z][\w.-]*(?:[:/].*)?")
_BARE = re.compile(r"/(?:upload/)?(?:models|tunedModels|files|cachedContents|batches|fileSearchStores)(?:[:/].*)?")
_OPENAI = re.compile(r"/v1\w*/openai(?:/.*)?")
_MODEL = re.compile(r"(/(?:tunedM|m)odels/)([^/:]+)")
_METHOD = re.compile(r"[^/]:([A-Za-z]+)$")
_TRAVERSAL = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)|\\|%5c|%00|[\x00-\x20\x7f]", re.IGNORECASE)
_REPEATABLE = frozenset(
    {"generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents"}
)
"""Methods that cost tokens at most when they are sent twice."""


class Target(NamedTuple):
    """A request target as this surface reads it: the path without `/gemini`, the query without what is internal."""

    path: str
    query: str
    versioned: bool
    version: str

    @property
    def method(self) -> str | None:
        """The `:method` of the path."""
        found = _METHOD.search(self.path)
        return found[1] if found else None

    @property
    def model(self) -> str | None:
        found = _MODEL.search(self.path)
        if found is None:
            return None
        name = unquote(found[2])
        return name if found[1] == "/models/" else f"tunedModels/{name}"


def read_target(raw: str) -> Target | None:
    """A raw request target of a shape that the Gemini API has, else None."""
    if not raw.startswith("/"):  # absolute form, RFC 9112 section 3.2.2: the host is ours all the same
        scheme, mark, rest = raw.partition("://")
        if not mark or scheme.lower() not in ("http", "https"):
            return None
        raw = "/" + rest.partition("/")[2]
    path, _, query = raw.partition("?")
    path = "/" + path.lstrip("/")
    if path.startswith("/gemini/"):
        path = "/" + path[len("/gemini/") :].lstrip("/")
    if _TRAVERSAL.search(path) or _OPENAI.fullmatch(path):
        return None
    versioned = _VERSIONED.fullmatch(path)
    if versioned is None and _BARE.fullmatch(path) is None:
        return None
    return Target(path, query, versioned is not None, versioned[1] if versioned else "")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds that a client's request must keep to."""

    max_body: int
    max_upload: int
    body_idle: float | None
    replay: int


class GeminiSurface:
    """Serves the Gemini API. `rooms` and `limits` are asked anew for each request: a reload changes the next one."""

    name = "gemini"

    def __init__(self, rooms: Callable[[], Rooms], limits: Callable[[], Limits], budget: Budget, clock: Clock) -> None:
        self._rooms = rooms
        self._limits = limits
        self._budget = budget
        self._clock = clock

    def claims(self, request: web.Request) -> bool:
        target = read_target(request.raw_path)
        if target is None:
            return request.raw_path.startswith(("/gemini/", "/v1beta/", "/v1alpha/", "/upload/", "/download/"))
        if target.versioned and (target.version != "v1" or not target.path.startswith("/v1/")):
            return True
        headers = request.headers
        return (
            request.raw_path.startswith("/gemini/")
            or "x-goog-api-key" in headers
            or "x-goog-api-client" in headers
            or target.method is not None
            or "key" in request.rel_url.query
        )

    def render(self, error: ProxyError) -> bytes:
        return google.render(error)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        target = read_target(request.raw_path)
        if target is None:
            raise ProxyError(
                404, "unknown_url", f"The Gemini API has no URL of this shape ({request.method} {request.path})."
            )
        if request.method not in METHODS:
            raise ProxyError(
                405, "method_not_allowed", f"{request.method} is not a method of this URL.", allow=", ".join(METHODS)
            )
        record, rooms, limits = request[RECORD], self._rooms(), self._limits()
        upload = target.path.startswith("/upload/")
        limit = limits.max_upload if upload else limits.max_body
        source = ClientBody(request, limit, limits.body_idle) if request.body_exists else None
        body = Body(source, request.content_length, limits.replay, self._budget)
        reply = ClientReply(request, record)
        await relay(self._call(request, target), body, reply, rooms, record)
        assert reply.response is not None
        return reply.response

    def _call(self, request: web.Request, target: Target) -> Call:
        path, _ = strip_query(f"{target.path}?{target.query}" if target.query else target.path, INTERNAL_QUERY)
        method = target.method
        return Call(
            surface=self.name,
            kind="gemini",
            method=request.method,
            path=path,
            headers=end_to_end(_raw_headers(request), REQUEST_DROP),
            client=request[CLIENT],
            model=target.model,
            deadline=self._deadline(request),
            repeatable=request.method in ("GET", "HEAD") or method in _REPEATABLE,
        )

    def _deadline(self, request: web.Request) -> float | None:
        """`X-Server-Timeout` (seconds, sent by the SDKs where a timeout is set) as monotonic time."""
        given = request.headers.get("X-Server-Timeout")
        try:
            seconds = float(given) if given is not None else 0.0
        except ValueError:
            return None
        return request[RECORD].started + seconds if 0 < seconds < float("inf") else None


def _raw_headers(request: web.Request) -> list[tuple[str, str]]:
    return [
        (name.decode("ascii", "replace"), value.decode("utf-8", "surrogateescape"))
        for name, value in request.raw_headers
    ]
