"""What belongs together stays together: from a call to the key it must, or would rather, go to.

In this order: a resource named in the path · resources named in query or body · the session's hard pin · a file that longer
text points to · the session's soft pin · for uploads, the key of the client's last upload (lists go there too, since they
show one key's things) · nothing, and the pool decides.

| pin | made | moves | ends |
|---|---|---|---|
| soft | by a session's first call, before it is sent | when its key rests or is gone | `session_ttl` after the last use |
| hard | when the session has created something | when its key is gone for good | the same |
| upload | by a client's upload without a session | when its key rests or is gone | `session_ttl` after the last upload |

A resource is bound to (client, owner). One that another client made is a missing one. One that nobody is known to have made
is looked for (`relay.ownership`), because it may have been made before a restart or elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call, Effect
from balancer.state.base import UNCLAIMED, Bindings, Handle, Pin, Pins
from balancer.wire.resources import Born, Mentions

RESOURCE_TTL = 48 * 3600.0
"""Seconds for which a binding is kept whose resource does not tell its own lifetime: as long as Google keeps files."""
MOST_SEARCHED = 16
"""Resources of unknown owner that one request may have looked for."""


@dataclass(slots=True)
class Want:
    """Where a call goes. `owner`: only there. `prefer`: there while it is ready. `unknown`: resources to look for first."""

    owner: str | None = None
    prefer: str | None = None
    unknown: list[str] = field(default_factory=list)
    handle: Handle | None = None
    """Where the pin hangs that this call makes or follows."""
    pin: Pin | None = None
    """That pin as it was found. A hard one is left only when its key is gone for good."""
    by_name: dict[str, str] = field(default_factory=dict)
    """Owners of the resources that it names, as far as they are known."""

    def found(self, root: str, owner: str) -> None:
        """A resource that was looked for has this owner."""
        self.by_name[root] = owner
        self.settle()

    def settle(self) -> None:
        """All that is named must have one owner. Raises ProxyError 400 if it has not."""
        owners = list(dict.fromkeys(self.by_name.values()))
        if len(owners) > 1:
            named = {owner: root for root, owner in reversed(self.by_name.items())}
            raise ProxyError(
                400,
                "resources_on_different_keys",
                f"{named[owners[0]]} and {named[owners[1]]} belong to different API keys and cannot be used in one request. "
                "Upload files that belong together with the same X-Session-Id header, and they land on one key.",
            )
        self.owner = owners[0] if owners else None


class Affinity:
    """The rules above, over the state that holds pins and bindings."""

    def __init__(self, pins: Pins, bindings: Bindings, clock: Clock, *, session_ttl: float, uploads: str) -> None:
        """`session_ttl`: seconds; `uploads`: what keeps uploads without a session together, "client", "session" or "none"."""
        self._pins = pins
        self._bindings = bindings
        self._clock = clock
        self._session_ttl = session_ttl
        self._uploads = uploads

    async def find(self, call: Call, upstream: str, mentions: Mentions) -> Want:
        """Where the call goes. Raises ProxyError 404 (another client's resource) and 400 (two owners)."""
        want = Want()
        if call.owner is not None:
            want.owner = call.owner
            return want
        if call.names or mentions.named:
            await self._named(want, call, upstream, dict.fromkeys((*call.names, *mentions.named)))
        want.handle = self._handle(call, upstream)
        if want.handle is not None:
            want.pin = await self._pins.get(want.handle, self._session_ttl)
        if mentions.attracting and not (want.pin is not None and want.pin.hard):
            want.prefer = await self._attracted(call, upstream, mentions.attracting)
        if want.prefer is None and want.pin is not None:
            want.prefer = want.pin.owner
        if want.prefer is None and call.effect is Effect.LIST and self._uploads == "client":
            last = await self._pins.get(self._uploads_handle(call, upstream), self._session_ttl)
            want.prefer = last.owner if last is not None else None
        return want

    async def _named(self, want: Want, call: Call, upstream: str, roots: Iterable[str]) -> None:
        for root in roots:
            owners = await self._bindings.owners(upstream, root)
            owner = owners.get(call.client.name) or owners.get(UNCLAIMED)
            if owner is not None:
                want.by_name[root] = owner
            elif owners:
                raise missing(root)
            elif len(want.unknown) < MOST_SEARCHED:
                want.unknown.append(root)
        want.settle()

    async def _attracted(self, call: Call, upstream: str, roots: Sequence[str]) -> str | None:
        for root in reversed(roots):
            owner = (await self._bindings.owners(upstream, root)).get(call.client.name)
            if owner is not None:
                return owner
        return None

    def _handle(self, call: Call, upstream: str) -> Handle | None:
        if call.session is not None:
            return ("session", upstream, call.client.name, call.session)
        if call.uploads and self._uploads == "client":
            return self._uploads_handle(call, upstream)
        return None

    @staticmethod
    def _uploads_handle(call: Call, upstream: str) -> Handle:
        return ("uploads", upstream, call.client.name, call.address)

    async def pin(self, want: Want, owner: str) -> str:
        """Bind the call's session to the key that it was given, before it is sent; the owner that the pin now says.

        Another first call of the session may have been quicker: then its key is the session's.
        """
        if want.handle is None:
            return owner
        if want.pin is None:
            pinned = await self._pins.claim(want.handle, Pin(owner), self._session_ttl)
            return pinned.owner if want.owner is None and want.prefer is None else owner
        if want.owner is None and want.prefer == want.pin.owner != owner:
            await self._pins.put(want.handle, Pin(owner), self._session_ttl)
        return owner

    async def learned(self, call: Call, want: Want, upstream: str, owner: str, resources: Sequence[Born]) -> None:
        """An answer told of resources: they are this client's, on this owner; the session that made them stays there."""
        if call.effect is Effect.LIST:
            for born in resources:
                if not await self._bindings.owners(upstream, born.root):
                    await self._bindings.bind(upstream, born.root, UNCLAIMED, owner, self._ttl(born))
            return
        for born in resources:
            await self._bindings.bind(upstream, born.root, call.client.name, owner, self._ttl(born))
        made = call.effect is Effect.CREATE and (resources or call.uploads)
        if made and call.session is not None and want.handle is not None:
            await self._pins.put(want.handle, Pin(owner, hard=True), self._session_ttl)

    def _ttl(self, born: Born) -> float:
        return RESOURCE_TTL if born.expires is None else born.expires - self._clock.wall()

    async def deleted(self, call: Call, upstream: str, root: str) -> None:
        await self._bindings.unbind(upstream, root, call.client.name)

    async def hidden(self, call: Call, upstream: str, root: str) -> bool:
        """Whether a resource in a list is another client's."""
        owners = await self._bindings.owners(upstream, root)
        return bool(owners) and call.client.name not in owners and UNCLAIMED not in owners


def missing(root: str) -> ProxyError:
    """What a resource that does not exist, or not for this client, is answered with."""
    return ProxyError(404, "resource_not_found", f"{root} does not exist or is not accessible with these credentials.")
