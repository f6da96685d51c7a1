"""Session tokens: given for a client token, known by their digest, bound to a model, ended by time, logout or configuration.

A token is `bal_` and 43 base64url characters of 32 random bytes; only its SHA-256 is kept. A session is as good as the client
token that it was bought with: at every use that token must still be configured, under the same name, and what the client may do
is what the configuration says now. Sessions of callers without a token (`auth.tokens` empty) end when tokens are configured.

A session that was found is remembered for a minute, and used only while the state does not answer: an outage logs nobody out,
and a token not seen here before is not refused but told to come again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from cachetools import TTLCache

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import ANONYMOUS, Client
from balancer.state.base import LoginSession, LoginSessions, StateUnavailable

log = structlog.get_logger()

PREFIX = "bal_"
"""What session tokens begin with, and no client token does."""
LONGEST_MODEL = 512
"""Characters of a model's name that is bound; sessions are many, and names are the callers'."""
REMEMBERED = 60.0
"""Seconds for which a session that was found may stand in for a state that does not answer."""

_MOST_REMEMBERED = 10_000
_NOBODY = b""
"""Stands for the client token of sessions that were given out while there were none."""


def digest_of(credential: str) -> bytes:
    """SHA-256 of a credential as it came: what it is kept and compared by."""
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Login:
    """A session token that a request showed: its digest, its client as configured now, and what is bound to it.

    `at`: when the request showed it (monotonic).
    """

    digest: bytes
    client: Client
    provider: str | None = None
    model: str | None = None
    at: float = 0.0

    @property
    def bound(self) -> str | None:
        """`provider/model`; None where nothing is bound."""
        return None if self.provider is None else f"{self.provider}/{self.model}"


class Memory:
    """Sessions that were found of late. One for the whole process: it outlives a reload."""

    def __init__(self, clock: Clock) -> None:
        self.found: TTLCache[bytes, LoginSession] = TTLCache(_MOST_REMEMBERED, REMEMBERED, timer=clock.monotonic)


class Logins:
    """The rules above for one configuration, over the state that holds the sessions."""

    def __init__(
        self,
        sessions: LoginSessions,
        memory: Memory,
        clients: Mapping[bytes, Client],
        clock: Clock,
        *,
        ttl: float,
        most: int,
    ) -> None:
        """`clients`: by digest of their token. `ttl`: seconds a session lives. `most`: sessions of one client token."""
        self._sessions = sessions
        self._memory = memory
        self._clients = clients
        self._clock = clock
        self._most = most
        self.ttl = ttl

    def client_of(self, credential: str) -> Client | None:
        """Who may log in with this; without client tokens everybody, with anything that is no session token."""
        if self._clients:
            return self._clients.get(digest_of(credential))
        return None if credential.startswith(PREFIX) else ANONYMOUS

    async def issue(
        self, credential: str, client: Client, provider: str | None = None, model: str | None = None
    ) -> str:
        """A new token for a client that showed this credential. Raises ProxyError 503."""
        token = PREFIX + secrets.token_urlsafe(32)
        bought_with = digest_of(credential) if self._clients else _NOBODY
        created = self._clock.wall()
        session = LoginSession(client.name, bought_with, created, created + self.ttl, provider, model)
        try:
            await self._sessions.add(digest_of(token), session, self.ttl, self._most)
        except StateUnavailable:
            raise _unavailable() from None
        return token

    async def find(self, token: str) -> Login | None:
        """The session of a token; None: there is none (any more). Raises ProxyError 503 where that cannot be told."""
        digest, found = digest_of(token), self._memory.found
        try:
            session = await self._sessions.get(digest)
        except StateUnavailable:
            session = found.get(digest)
            if session is None:
                raise _unavailable() from None
        else:
            if session is None:
                found.pop(digest, None)
                return None
            found[digest] = session
        client = self._client_now(session)
        if client is None:
            await self._drop(digest)
            return None
        return Login(digest, client, session.provider, session.model, self._clock.monotonic())

    def _client_now(self, session: LoginSession) -> Client | None:
        if session.bought_with == _NOBODY:
            return None if self._clients else ANONYMOUS
        client = self._clients.get(session.bought_with)
        return client if client is not None and client.name == session.client else None

    async def _drop(self, digest: bytes) -> None:
        self._memory.found.pop(digest, None)
        try:
            await self._sessions.remove(digest)
        except StateUnavailable:
            log.warning("a session of a client token that is gone could not be removed: the state does not answer")

    async def bind(self, login: Login, provider: str, model: str) -> None:
        """Bind a model, unless it is bound already. Raises ProxyError 503."""
        try:
            await self._bind(login, provider, model)
        except StateUnavailable:
            raise _unavailable() from None

    async def rebind(self, login: Login, provider: str, model: str) -> None:
        """The same for a call that names its model and goes on in any case."""
        if len(model) > LONGEST_MODEL:
            return
        try:
            await self._bind(login, provider, model)
        except StateUnavailable:
            log.warning("a model was bound for this process alone: the state does not answer", client=login.client.name)
            known = self._memory.found.get(login.digest)
            if known is not None:
                self._memory.found[login.digest] = dataclasses.replace(known, provider=provider, model=model)

    async def _bind(self, login: Login, provider: str, model: str) -> None:
        if (login.provider, login.model) != (provider, model):
            await self._sessions.bind(login.digest, provider, model, self._clock.monotonic() - login.at)

    async def end(self, token: str) -> bool:
        """Log out; whether there was such a session. Raises ProxyError 503."""
        digest = digest_of(token)
        try:
            there_was = await self._sessions.remove(digest)
        except StateUnavailable:
            raise _unavailable() from None
        self._memory.found.pop(digest, None)
        return there_was


def _unavailable() -> ProxyError:
    return ProxyError(
        503, "session_store_unavailable", "Session tokens cannot be checked at the moment.", retry_after=1
    )
