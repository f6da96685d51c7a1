"""Who is the caller: client tokens, session tokens, and who may call without either.

The first valid credential of a request names the client (`web.credentials` tells where they may stand); one or more given and
none valid is a refusal. Without tokens in the configuration every local caller is `anonymous`: local means a loopback peer, no
sign of a proxy in between, and no web page of a foreign origin.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.routing.logins import PREFIX, Logins, digest_of
from balancer.web import CLIENT, LOGIN, PUBLIC_PATHS, SURFACE, Surface, credentials, is_listed, is_local, is_own_host


@dataclass(frozen=True, slots=True)
class Callers:
    """The callers of one configuration. Keys of `by_digest` are SHA-256 digests of client tokens; secrets are not kept. A digest
    tells nothing of the secret's text, so how long its look-up takes tells nothing either.

    `logins`: the session tokens; None where none are given out.
    """

    by_digest: Mapping[bytes, Client]
    exempt_loopback: bool = False
    public_host: str | None = None
    logins: Logins | None = None

    def identify(self, request: web.Request) -> Client:
        """The caller where no session tokens are given out. Raises ProxyError 401 or 403."""
        client = self.known(request)
        assert client is not None
        return client

    def known(self, request: web.Request, surface: Surface | None = None) -> Client | None:
        """The caller; None where that takes a look at a session token. Raises as `identify` does."""
        refused = False
        for credential in credentials(request):
            client = self.by_digest.get(digest_of(credential))
            if client is not None:
                return client
            ours = credential.startswith(PREFIX)
            if ours and self.logins is not None:
                return None
            # Without client tokens whatever an SDK insists on sending is fine, but a session token was given out or it was not.
            refused = refused or ours or bool(self.by_digest)
        return self.without(request, surface, refused=refused)

    async def looked_up(self, request: web.Request, surface: Surface) -> Client:
        """The caller, session tokens included; one that names it is left in `request[LOGIN]`. Raises as `identify`, and 503."""
        for credential in credentials(request):
            client = self.by_digest.get(digest_of(credential))
            if client is not None:
                return client
            if self.logins is not None and credential.startswith(PREFIX):
                login = await self.logins.find(credential)
                if login is not None:
                    if login.client is ANONYMOUS:
                        self.without(request, surface)
                    request[LOGIN] = login
                    return login.client
        raise _invalid()

    def without(self, request: web.Request, surface: Surface | None, *, refused: bool = False) -> Client:
        """The caller that no credential names. `refused`: it gave some, which are not valid."""
        if refused:
            raise _invalid()
        local = is_local(request)
        if self.by_digest and not (self.exempt_loopback and local):
            raise ProxyError(
                401,
                "missing_api_key",
                "No API key given. Send a client token of this proxy, for example as x-goog-api-key or Authorization: Bearer.",
            )
        if not local:
            raise ProxyError(
                401,
                "missing_api_key",
                "Without client tokens (auth.tokens) this proxy serves callers on its own machine only.",
            )
        self._check_origin(request, surface)
        return ANONYMOUS

    def _check_origin(self, request: web.Request, surface: Surface | None) -> None:
        origin = request.headers.get("Origin")
        if origin is None:
            return
        host = request.headers.get("Host", "")
        own = origin.lower().partition("://")[2] == host.lower() and is_own_host(host, self.public_host)
        if not (own or (surface is not None and is_listed(origin, surface.allowed_origins()))):
            raise ProxyError(
                403, "origin_not_allowed", "Web pages of another origin may not use this proxy without a token."
            )


def _invalid() -> ProxyError:
    return ProxyError(
        401,
        "invalid_api_key",
        "The API key is not valid here. It must be a client token of this proxy, or a session token.",
    )


def auth(callers: Callable[[], Callers]) -> Middleware:
    """Names the caller of every request that a surface claims; what is public tells no more than whether the process lives."""

    @web.middleware
    def middleware(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
        surface = request[SURFACE]
        if surface is not None:
            try:
                client = surface.recognise(request)
                if client is None:
                    rules = callers()
                    client = rules.known(request, surface)
                    if client is None:  # only this has to wait: the other callers pay for no coroutine
                        return looking_up(request, handler, rules, surface)
                request[CLIENT] = client
            except ProxyError:  # asked only now: nearly nothing is public, and every call passes here
                if not _is_public(request):
                    raise
        return handler(request)

    async def looking_up(
        request: web.Request, handler: Handler, rules: Callers, surface: Surface
    ) -> web.StreamResponse:
        try:
            request[CLIENT] = await rules.looked_up(request, surface)
        except ProxyError:
            if not _is_public(request):
                raise
        return await handler(request)

    return middleware


def _is_public(request: web.Request) -> bool:
    return request.raw_path.partition("?")[0] in PUBLIC_PATHS
