"""What the process remembers about who belongs to which key, as narrow protocols.

Methods are coroutines because a backend may be another process. All of them are atomic. Lifetimes are seconds from now; what
has outlived its lifetime is gone. Owners are the pool's words (a project, a key's name, or its fingerprint), never secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

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

    async def bind(self, upstream: str, root: str, client: str, owner: str, ttl: float) -> None: ...

    async def claim(self, upstream: str, root: str, client: str) -> None:
        """What was nobody's in particular is this client's from now on, for as long as it was bound."""
        ...

    async def unbind(self, upstream: str, root: str, client: str) -> None:
        """Forget the resource for this client, and for nobody in particular."""
        ...
