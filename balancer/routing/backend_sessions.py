"""Which conversation of an upstream a request goes on with, and whose it is: over the state that remembers both.

| the request names | looked up in | not found |
|---|---|---|
| the upstream's own number | what is bound to the client: its account | with `adopt_unknown` each account is asked |
| a handle | what the handle of (upstream, client, model) stands for | one is made |
| nothing | nowhere | one is made, and is this request's alone |

A number is one client's: to the others it does not exist, and that nobody knows one is remembered for a minute. With
`renew_explicit` a number that is no more is a handle like any other. Lifetimes begin anew with each use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from balancer.errors import ProxyError
from balancer.model import Choice, Client
from balancer.state.base import Bindings, Busy, Handle, Locks, Talk, Talks
from balancer.upstreams.conversing import ConversingKind
from balancer.upstreams.turns import Known, Plan
from balancer.wire.session_ids import Derived, Explicit, Fresh, SessionId

MISSING_TTL = 60.0
"""Seconds for which it is remembered that nobody knows a number."""
BUSY_RETRY = 5.0
"""Seconds after which one whose turn did not come may ask again: when the others end is not known."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose conversation with which upstream, what the request calls it, and the upstream's kind."""

    client: Client
    choice: Choice
    session: SessionId
    kind: ConversingKind

    @property
    def handle(self) -> Handle | None:
        """What a handle hangs on; None where the request has none."""
        match self.session:
            case Derived(handle=text):
                return self._handle(text)
            case Explicit(number=number) if self.kind.keeping.renew_explicit:
                return self._handle(str(number))
            case _:
                return None

    def _handle(self, text: str) -> Handle:
        return ("talk", self.choice.upstream, self.client.name, text, self.choice.model or "")


class BackendSessions:
    """The table above. `turn_wait`: seconds that a request waits for those before it in the same conversation."""

    def __init__(self, talks: Talks, bindings: Bindings, locks: Locks, *, turn_wait: float) -> None:
        self._talks = talks
        self._bindings = bindings
        self._locks = locks
        self.turn_wait = turn_wait

    async def plan(self, wanted: Wanted, accounts: Sequence[str], attempts: int) -> Plan:
        """What is known before the first step. Raises ProxyError for a number that does not exist, as far as this client goes.

        `accounts`: those that the upstream's keys are of. `attempts`: how often connecting is tried.
        """
        match wanted.session:
            case Fresh():
                return Plan(_nothing(), renews=True, fresh=True, attempts=attempts)
            case Derived():
                return Plan(_nothing(), await self.known(wanted), renews=True, attempts=attempts)
            case Explicit(number=number):
                return await self._explicit(wanted, str(number), accounts, attempts)

    async def _explicit(self, wanted: Wanted, number: str, accounts: Sequence[str], attempts: int) -> Plan:
        upstream, client, keeping = wanted.choice.upstream, wanted.client.name, wanted.kind.keeping
        missing, renews = wanted.kind.missing(number), keeping.renew_explicit
        known = await self.known(wanted)
        if known is not None:
            return Plan(missing, known, renews=renews, attempts=attempts)
        owners = await self._bindings.owners(upstream, _root(number))
        if (owner := owners.get(client)) is not None:
            return Plan(missing, Known(number, owner), renews=renews, attempts=attempts)
        sought = not owners and keeping.adopt_unknown
        if not sought or client in await self._bindings.owners(upstream, _nowhere(number)):
            if renews:
                return Plan(missing, renews=True, attempts=attempts)
            raise missing
        if len(accounts) <= 1:
            return Plan(missing, Known(number, next(iter(accounts), "")), renews=renews, attempts=attempts)
        return Plan(missing, id=number, accounts=tuple(accounts), renews=renews, attempts=attempts)

    async def known(self, wanted: Wanted) -> Known | None:
        """The conversation that the handle stands for now."""
        handle = wanted.handle
        talk = await self._talks.get(handle, wanted.kind.keeping.session_ttl) if handle is not None else None
        return Known(talk.id, talk.owner) if talk is not None else None

    async def made(self, wanted: Wanted, session: Known) -> None:
        """There is a new conversation: the client's, and from now on what its handle stands for."""
        await self.used(wanted, session)
        if (handle := wanted.handle) is not None:
            await self._talks.put(handle, Talk(session.id, session.owner), wanted.kind.keeping.session_ttl)

    async def used(self, wanted: Wanted, session: Known) -> None:
        """The upstream has answered in it: it is this client's, so that it can be named by its number too."""
        upstream, client = wanted.choice.upstream, wanted.client.name
        await self._bindings.bind(upstream, _root(session.id), client, session.owner, wanted.kind.keeping.session_ttl)

    async def forget(self, wanted: Wanted, session: Known) -> None:
        """The upstream does not know it any more."""
        await self._bindings.unbind(wanted.choice.upstream, _root(session.id), wanted.client.name)
        if (handle := wanted.handle) is not None:
            await self._talks.drop(handle, Talk(session.id, session.owner))

    async def nobody_knows(self, wanted: Wanted) -> None:
        """Remember for a while that the number was asked for in vain."""
        if isinstance(wanted.session, Explicit):
            name = _nowhere(str(wanted.session.number))
            await self._bindings.bind(wanted.choice.upstream, name, wanted.client.name, "-", MISSING_TTL)

    def turn(self, upstream: str, session: Known, wait: float) -> AbstractAsyncContextManager[None]:
        """Be the only one at work in a conversation. Raises ProxyError 409 after `wait` seconds."""
        return self._alone(("turn", upstream, session.id), wait)

    def making(self, handle: Handle, wait: float) -> AbstractAsyncContextManager[None]:
        """Be the only one who makes the conversation of this handle. Raises ProxyError 409 after `wait` seconds."""
        return self._alone(("make", *handle), wait)

    @asynccontextmanager
    async def _alone(self, name: Handle, wait: float) -> AsyncIterator[None]:
        try:
            async with self._locks.hold(name, wait):
                yield
        except Busy:
            message = "Other requests of this session are not done yet; ask again."
            raise ProxyError(409, "session_busy", message, retry_after=BUSY_RETRY) from None


def _root(number: str) -> str:
    return f"sessions/{number}"


def _nowhere(number: str) -> str:
    return f"no-session/{number}"


def _nothing() -> ProxyError:
    """What would be told of a conversation that the request did not name: nobody is."""
    return ProxyError(404, "session_not_found", "The session does not exist.")
