"""Who is the caller: client tokens, where they may stand, and who may call without one.

A credential is looked for in every place where any SDK puts one; blank values and the schemes Basic, Digest, Negotiate and
Token count as absent. The first valid one names the client; one or more given and none valid is a refusal. Without tokens
in the configuration every local caller is `anonymous`: local means a loopback peer, no sign of a proxy in between, and no
web page of a foreign origin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.web import CLIENT, FORWARDING_FIELDS, SURFACE, is_loopback, is_own_host, peer_address

PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})

SESSION_TOKEN = "bal_"  # noqa: S105 - what session tokens begin with
"""A credential that begins so is never a client token."""

_NO_CREDENTIAL_SCHEMES = frozenset({"basic", "digest", "negotiate", "token"})
_PLACES = (
    ("header", "X-Session-Token"),
    ("query", "session_token"),
    ("header", "x-goog-api-key"),
    ("header", "x-api-key"),
    ("header", "api-key"),
    ("query", "key"),
    ("query", "api_key"),
)
"""Where a credential may stand, behind Authorization, in the order in which they count."""


@dataclass(frozen=True, slots=True)
class Callers:
    """The client tokens of one configuration. Keys of `by_digest` are SHA-256 digests; secrets are not kept."""

    by_digest: Mapping[bytes, Client]
    exempt_loopback: bool = False
    public_host: str | None = None

    def identify(self, request: web.Request) -> Client:
        """The caller. Raises ProxyError 401 or 403."""
        refused = False
        for credential in credentials(request):
            client = self._client(credential)
            if client is not None:
                return client
            # Without client tokens whatever an SDK insists on sending is fine, but a session token was given out or it was not.
            refused = refused or bool(self.by_digest) or credential.startswith(SESSION_TOKEN)
        if refused:
            raise ProxyError(
                401, "invalid_api_key", "The API key is not valid here. It must be a client token of this proxy."
            )
        if self.by_digest and not (self.exempt_loopback and is_local(request)):
            raise ProxyError(
                401,
                "missing_api_key",
                "No API key given. Send a client token of this proxy, for example as x-goog-api-key or Authorization: Bearer.",
            )
        if not is_local(request):
            raise ProxyError(
                401,
                "missing_api_key",
                "Without client tokens (auth.tokens) this proxy serves callers on its own machine only.",
            )
        self._check_origin(request)
        return ANONYMOUS

    def _client(self, credential: str) -> Client | None:
        digest = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()
        # A digest tells nothing of the secret's text, so how long its look-up takes tells nothing either.
        return self.by_digest.get(digest)

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            return
        host = request.headers.get("Host", "")
        own = origin.lower().partition("://")[2] == host.lower() and is_own_host(host, self.public_host)
        if not own:
            raise ProxyError(
                403, "origin_not_allowed", "Web pages of another origin may not use this proxy without a token."
            )


def credentials(request: web.Request) -> Iterator[str]:
    """Every credential that a request carries, in the order in which they count."""
    headers = request.headers
    authorization = headers.get("Authorization")
    if authorization:
        scheme, blank, rest = authorization.strip().partition(" ")
        if not blank:
            if scheme and scheme.lower() not in (_NO_CREDENTIAL_SCHEMES | {"bearer"}):
                yield scheme
        elif scheme.lower() == "bearer":
            if rest.strip():
                yield rest.strip()
        elif scheme.lower() not in _NO_CREDENTIAL_SCHEMES:
            yield authorization.strip()
    query: Mapping[str, str] = request.rel_url.query if "?" in request.raw_path else {}
    for source, name in _PLACES:
        value = (headers if source == "header" else query).get(name)
        if value and value.strip():
            yield value.strip()


def is_local(request: web.Request) -> bool:
    """Whether the caller is on this machine and no proxy stands in between."""
    return is_loopback(peer_address(request)) and not any(name in request.headers for name in FORWARDING_FIELDS)


def auth(callers: Callable[[], Callers]) -> Middleware:
    """Names the caller of every request that a surface claims; nothing else tells more than whether the process lives."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        surface = request.get(SURFACE)
        if surface is not None:
            request[CLIENT] = surface.recognise(request) or callers().identify(request)
        return await handler(request)

    return middleware
