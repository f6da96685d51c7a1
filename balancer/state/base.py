"""What processes share, as narrow protocols: who belongs to which key, who is logged in, how much a client has asked, which
conversation is meant and whose turn it is in it.

Methods are coroutines because a backend may be another process. All of them are atomic. Lifetimes are seconds from now; what
has outlived its lifetime is gone. Owners are the pool's words (a project, a key's name, or its fingerprint), never secrets.
Session tokens and client tokens appear as their SHA-256 digests and as nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


class StateUnavailable(Exception):
    """The backend does not answer. Raised by those behind a network, and only where a method says so."""


Handle = tuple[str, ...]
"""What a pin hangs on: upstream, client and session, for example."""

UNCLAIMED = "*"
"""Stands for the client of a resource that was only seen in a list: its owner is known, its maker is not."""


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a session's calls go. Soft: it moves when its key rests. Hard: the session owns something there."""

    owner: str
    hard: bool = False


class Pins(Protocol):
    """Sessions, and the upload keys of clients without one."""

    async def claim(self, handle: Handle, pin: Pin, ttl: float) -> Pin:
        """The pin there is, its lifetime renewed; else this one, which then is the pin."""
        ...

    async def get(self, handle: Handle, ttl: float) -> Pin | None:
        """The pin there is, its lifetime renewed."""
        ...

    async def put(self, handle: Handle, pin: Pin, ttl: float) -> None: ...


class Bindings(Protocol):
    """Which key owns a resource, for each client that may use it."""

    async def owners(self, upstream: str, root: str) -> Mapping[str, str]:
        """Owner by client name (or UNCLAIMED); empty if nothing is known."""
        ...

    async def owners_of(self, upstream: str, client: str) -> Collection[str]:
        """Who owns anything that is bound to a client, and perhaps some who did until of late."""
        ...

    async def bind(self, upstream: str, root: str, client: str, owner: str, ttl: float) -> None: ...

    async def claim(self, upstream: str, root: str, client: str) -> None:
        """What was nobody's in particular is this client's from now on, for as long as it was bound."""
        ...

    async def unbind(self, upstream: str, root: str, client: str) -> None:
        """Forget the resource for this client, and for nobody in particular."""
        ...


@dataclass(frozen=True, slots=True)
class LoginSession:
    """What is kept of a session token. `bought_with` is the digest of the client token that was shown for it.

    `provider` and `model`: what is bound to it, both or neither. `created`, `expires`: POSIX seconds, for people; what ends a
    session is the lifetime that it was added with.
    """

    client: str
    bought_with: bytes
    created: float
    expires: float
    provider: str | None = None
    model: str | None = None


class LoginSessions(Protocol):
    """Sessions by the digest of their token. Every method may raise StateUnavailable."""

    async def add(self, digest: bytes, session: LoginSession, ttl: float, most: int) -> None:
        """Keep it for `ttl` seconds, whatever happens to it. Where `most` were bought with that client token already, those go
        that would expire first, and of those the oldest.
        """
        ...

    async def get(self, digest: bytes) -> LoginSession | None: ...

    async def bind(self, digest: bytes, provider: str, model: str, ago: float = 0.0) -> None:
        """Bind a model to a session that there is. `ago`: seconds since whoever asks for it began; of two, the later counts."""
        ...

    async def remove(self, digest: bytes) -> bool:
        """Whether there was one: of two who remove it at once, one is told so."""
        ...


class Limit(enum.Enum):
    """Which of a client's limits a request meets."""

    RPM = "rpm"
    CONCURRENCY = "concurrency"


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit is reached. `seconds`: until one more fits; None where only the end of another request tells."""

    limit: Limit
    seconds: float | None = None


class Counters(Protocol):
    """Requests of each client, by its name. A backend that cannot be reached counts what its own process sees."""

    async def enter(self, client: str, rpm: int | None, concurrency: int | None) -> Reached | None:
        """Count one request, in flight until `leave`; None when it was. What a limit refuses is counted nowhere.

        `rpm`: requests in any 60 s, exact to the moment; `concurrency`: in flight. None: no such limit, nothing to count for it.
        Where both are reached, CONCURRENCY is told.
        """
        ...

    async def leave(self, client: str, concurrency: int | None) -> None:
        """The end of a request that was counted, with the limit that it was counted under."""
        ...


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation that an upstream keeps: its own word for it, and the account that it belongs to."""

    id: str
    owner: str


class Talks(Protocol):
    """Conversations that upstreams keep, by what clients call them."""

    async def get(self, handle: Handle, ttl: float) -> Talk | None:
        """The one there is, its lifetime renewed."""
        ...

    async def put(self, handle: Handle, talk: Talk, ttl: float) -> None: ...

    async def drop(self, handle: Handle, talk: Talk) -> None:
        """Forget it, if it is still this one: of two who find it gone, the later must not take its successor away."""
        ...


class Busy(Exception):
    """It was not one's turn within the time that one would wait."""


class Locks(Protocol):
    """Turns: who asks first has the first one. What a holder that died held is free again by itself."""

    def hold(self, name: Handle, wait: float) -> AbstractAsyncContextManager[None]:
        """Have it for the time of the block. Raises Busy after `wait` seconds; who leaves before gives up its place."""
        ...
