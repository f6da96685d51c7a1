"""What belongs together stays together: from a call to the key it must, or would rather, go to.

In this order: a resource named in the path · resources named in query or body · the session's hard pin · a file that longer
text points to · the session's soft pin · for uploads, the key of the client's last upload (lists go there too, since they
show one key's things) · nothing, and the pool decides.

| pin | made | moves | ends |
|---|---|---|---|
| soft | by a session's first call, before it is sent | when its key rests or is gone | `session_ttl` after the last use |
| hard | when the session has created something | when its key is gone for good | the same |
| upload | by a client's upload without a session | when its key rests or is gone | `session_ttl` after the last upload |
| pages | by a client's list without a session: its next page is of the same key | the same | `session_ttl` after the last page |

A resource is bound to (client, owner). One that another client made is a missing one. One that nobody is known to have made
is looked for (`relay.ownership`), because it may have been made before a restart or elsewhere; the first client to name it
is taken for its maker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call, Client, Effect
from balancer.state.base import UNCLAIMED, Bindings, Handle, Pin, Pins
from balancer.wire.naming import Naming
from balancer.wire.resources import MOST_NAMED, Born, Mentions

MOST_SEARCHED = 16
"""Resources of unknown owner that one request may have looked for."""


@dataclass(slots=True, eq=False)
class Want:
    """Where a call goes. `owner`: only there. `prefer`: there while it is ready. `unknown`: resources to look for first."""

    owner: str | None = None
    prefer: str | None = None
    unknown: list[str] = field(default_factory=list)
    handle: Handle | None = None
    """Where the pin hangs that this call makes or follows."""
    pin: Pin | None = None
    """That pin as it was found or made. A hard one is left only when its key is gone for good."""
    by_name: dict[str, str] = field(default_factory=dict)
    """Owners of the resources that it names, as far as they are known."""

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


ANYWHERE = Want()
"""What a call wants that nothing binds. Shared by all of them, so it is never written to."""


class Affinity:
    """The rules above, over the state that holds pins and bindings."""

    def __init__(
        self,
        pins: Pins,
        bindings: Bindings,
        namings: Mapping[str, Naming],
        clock: Clock,
        *,
        session_ttl: float,
        uploads: str,
    ) -> None:
        """`namings`: by dialect. `session_ttl`: seconds. `uploads`: what keeps uploads without a session together, "client",
        "session" or "none".
        """
        self._pins = pins
        self._bindings = bindings
        self._namings = namings
        self._clock = clock
        self._session_ttl = session_ttl
        self._uploads = uploads

    async def find(self, call: Call, upstream: str, mentions: Mentions, now_called: Callable[[str], str] = str) -> Want:
        """Where the call goes. Raises ProxyError 404 (another client's resource) and 400 (two owners, too many names).

        `now_called`: the present name of an owner that was written down earlier.
        """
        want = Want()
        if call.owner is not None:
            want.owner = call.owner
            return want
        if mentions.crowded:
            raise ProxyError(400, "too_many_resources", f"The request names more than {MOST_NAMED} resources.")
        if call.names or mentions.named:
            await self._named(want, call, upstream, dict.fromkeys((*call.names, *mentions.named)), now_called)
        want.handle = self._handle(call, upstream)
        if want.handle is not None:
            pin = await self._pins.get(want.handle, self._session_ttl)
            want.pin = None if pin is None else Pin(now_called(pin.owner), pin.hard)
        if mentions.attracting and not (want.pin is not None and want.pin.hard):
            want.prefer = await self._attracted(call, upstream, mentions.attracting, now_called)
        listed = call.effect is Effect.LIST and self._uploads == "client"
        if want.prefer is None and listed and (want.pin is None or call.session is None):
            last = await self._pins.get(self._uploads_handle(call, upstream), self._session_ttl)
            want.prefer = last.owner if last is not None else None
        if want.prefer is None and want.pin is not None:
            want.prefer = want.pin.owner
        return want

    async def _named(
        self, want: Want, call: Call, upstream: str, roots: Iterable[str], now_called: Callable[[str], str]
    ) -> None:
        naming = self._namings[call.dialect]
        for root in roots:
            owners = await self._bindings.owners(upstream, root)
            if not self._may_use(call, owners):
                raise missing(root)
            owner = owners.get(call.client.name)
            if owner is None and (owner := owners.get(UNCLAIMED)) is not None:
                await self._bindings.claim(upstream, root, call.client.name)
            if owner is not None:
                want.by_name[root] = now_called(owner)
                if naming.sliding:
                    await self._bindings.bind(upstream, root, call.client.name, owner, naming.ttl)
            elif (naming.searched or root in call.names) and len(want.unknown) < MOST_SEARCHED:
                want.unknown.append(root)
        want.settle()

    @staticmethod
    def _may_use(call: Call, owners: Mapping[str, str]) -> bool:
        return not owners or call.client.name in owners or UNCLAIMED in owners

    async def found(self, call: Call, want: Want, upstream: str, root: str, owner: str) -> None:
        """A resource that was looked for has this owner. Raises ProxyError as `find` does.

        Another client may have named it meanwhile; then it is that client's.
        """
        if not self._may_use(call, await self._bindings.owners(upstream, root)):
            raise missing(root)
        await self._bindings.bind(upstream, root, call.client.name, owner, self._namings[call.dialect].ttl)
        want.by_name[root] = owner
        want.settle()

    async def _attracted(
        self, call: Call, upstream: str, roots: Sequence[str], now_called: Callable[[str], str]
    ) -> str | None:
        for root in reversed(roots):
            owner = (await self._bindings.owners(upstream, root)).get(call.client.name)
            if owner is not None:
                return now_called(owner)
        return None

    async def home(self, upstreams: Sequence[str], roots: Iterable[str]) -> str | None:
        """The first of these upstreams where one of the resources is known: for calls whose model does not say where they go."""
        for root in roots:
            for upstream in upstreams:
                if await self._bindings.owners(upstream, root):
                    return upstream
        return None

    async def owners_of(self, client: Client, upstream: str) -> Collection[str]:
        """Who owns anything of this client's there, and perhaps some who once did."""
        return await self._bindings.owners_of(upstream, client.name)

    async def has(
        self, client: Client, upstream: str, root: str, owner: str, now_called: Callable[[str], str] = str
    ) -> bool:
        """Whether a resource of this owner's is known to be this client's."""
        bound = (await self._bindings.owners(upstream, root)).get(client.name)
        return bound is not None and now_called(bound) == owner

    def _handle(self, call: Call, upstream: str) -> Handle | None:
        if call.session is not None:
            return ("session", upstream, call.client.name, call.session)
        if call.uploads and self._uploads == "client":
            return self._uploads_handle(call, upstream)
        if call.pages:
            return ("pages", upstream, call.client.name, call.address)
        return None

    @staticmethod
    def _uploads_handle(call: Call, upstream: str) -> Handle:
        return ("uploads", upstream, call.client.name, call.address)

    async def pin(self, want: Want, owner: str) -> Pin:
        """Bind the call's session to the key that it was given, before it is sent; where the call is to go now.

        Another first call of the session may have been quicker: then its key is the session's.
        """
        if want.handle is None:
            return Pin(owner)
        if want.pin is None:
            want.pin = await self._pins.claim(want.handle, Pin(owner), self._session_ttl)
            if want.owner is not None or want.prefer is not None:
                return Pin(owner)
            want.prefer = want.pin.owner
            return want.pin
        if want.owner is None and want.prefer == want.pin.owner != owner:
            await self._pins.put(want.handle, Pin(owner), self._session_ttl)
        return Pin(owner)

    async def learned(self, call: Call, want: Want, upstream: str, owner: str, resources: Sequence[Born]) -> None:
        """An answer told of resources: they are this client's, on this owner; the session that made them stays there.

        What is another client's stays so, however often an answer to this one mentions it, unless this call has made a
        second one of the same name, which can only be with another key.
        """
        if call.effect is Effect.LIST:
            for born in resources:
                if not await self._bindings.owners(upstream, born.root):
                    await self._bindings.bind(upstream, born.root, UNCLAIMED, owner, self._ttl(call, born))
            return
        made = call.uploads
        for born in resources:
            known = await self._bindings.owners(upstream, born.root)
            if self._may_use(call, known) or (born.own and call.effect is Effect.CREATE):
                await self._bindings.bind(upstream, born.root, call.client.name, owner, self._ttl(call, born))
                made = True
        if made and call.effect is Effect.CREATE and call.session is not None and want.handle is not None:
            await self._harden(want.handle, owner)

    async def _harden(self, handle: Handle, owner: str) -> None:
        """The session owns something there. What it owned first decides, since a new upload is to join that."""
        pin = await self._pins.get(handle, self._session_ttl)
        if pin is None or not pin.hard:
            await self._pins.put(handle, Pin(owner, hard=True), self._session_ttl)

    def _ttl(self, call: Call, born: Born) -> float:
        return self._namings[call.dialect].ttl if born.expires is None else born.expires - self._clock.wall()

    async def deleted(self, call: Call, upstream: str, root: str) -> None:
        await self._bindings.unbind(upstream, root, call.client.name)

    async def hidden(
        self, call: Call, upstream: str, root: str, owner: str, now_called: Callable[[str], str] = str
    ) -> bool:
        """Whether a resource in a list of this owner's is another client's: a name may exist once for each key."""
        owners = await self._bindings.owners(upstream, root)
        mine = {now_called(owners[client]) for client in (call.client.name, UNCLAIMED) if client in owners}
        return bool(owners) and owner not in mine


def missing(root: str) -> ProxyError:
    """What a resource that does not exist, or not for this client, is answered with."""
    return ProxyError(404, "resource_not_found", f"{root} does not exist or is not accessible with these credentials.")
