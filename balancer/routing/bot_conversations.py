"""Which conversation with a bot a request goes on with, and whose it is: over the state that remembers both.

The counterpart of backend_sessions.py for upstreams whose conversations are made by the first thing said in them.

| the request names | looked up in | not found |
|---|---|---|
| the upstream's own id | what is bound to the client: its owner | each owner is asked |
| a handle | what the handle of (upstream, client, bot) stands for | what is said makes one |
| nothing | nowhere | what is said makes one |

An id is one client's: to the others it does not exist. It is known from the moment on in which its conversation was first told
to that client, whatever the request had named. Lifetimes begin anew with each use.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from balancer.model import Choice, Client
from balancer.state.base import Bindings, Busy, Handle, Locks, Talk, Talks
from balancer.upstreams.conversing import ConversingKind
from balancer.upstreams.coze import busy_error
from balancer.upstreams.coze_turns import Plan
from balancer.upstreams.turns import Known


@dataclass(frozen=True, slots=True)
class Sought:
    """Whose conversation with which bot, and what the request calls it: by the upstream's id (`named`), by a `handle`, or not."""

    client: Client
    choice: Choice
    kind: ConversingKind
    named: str | None = None
    handle: str | None = None

    @property
    def talk(self) -> Handle | None:
        """What a conversation hangs on that the request does not name by its id."""
        if self.named is not None or self.handle is None:
            return None
        return ("talk", self.choice.upstream, self.client.name, self.handle, self.choice.model or "")

    @property
    def line(self) -> Handle | None:
        """Where requests for the same conversation wait for each other; None where there can be no other."""
        if self.named is not None:
            return ("chat", self.choice.upstream, self.named)
        return self.talk


class BotConversations:
    """The table above. `turn_wait`: seconds that a request waits for those before it in the same conversation."""

    def __init__(self, talks: Talks, bindings: Bindings, locks: Locks, *, turn_wait: float) -> None:
        self._talks = talks
        self._bindings = bindings
        self._locks = locks
        self.turn_wait = turn_wait

    @asynccontextmanager
    async def line(self, sought: Sought, wait: float) -> AsyncIterator[None]:
        """Be the only one at work in a conversation, its making included. Raises ProxyError 409 after `wait` seconds."""
        if sought.line is None:
            yield
            return
        try:
            async with self._locks.hold(sought.line, wait):
                yield
        except Busy:
            raise busy_error() from None

    async def plan(self, sought: Sought, owners: Sequence[str], attempts: int, turn_wait: float) -> Plan:
        """What is known before the first step. Raises ProxyError for an id that is another client's.

        `owners`: those that the upstream's keys are of. `attempts`: how often connecting is tried. `turn_wait`: seconds that are
        left of it.
        """
        missing = sought.kind.missing(sought.named or "")
        if sought.named is None:
            session = await self._known(sought)
            return Plan(missing, session, renews=True, turn_wait=turn_wait, attempts=attempts)
        bound = await self._bindings.owners(sought.choice.upstream, _root(sought.named))
        if (owner := bound.get(sought.client.name)) is not None:
            return Plan(missing, Known(sought.named, owner), turn_wait=turn_wait, attempts=attempts)
        if bound:
            raise missing
        return Plan(missing, unmet=sought.named, owners=tuple(owners), turn_wait=turn_wait, attempts=attempts)

    async def _known(self, sought: Sought) -> Known | None:
        talk = None
        if sought.talk is not None:
            talk = await self._talks.get(sought.talk, sought.kind.keeping.session_ttl)
        return Known(talk.id, talk.owner) if talk is not None else None

    async def began(self, sought: Sought, session: Known) -> None:
        """It has answered: it is this client's, and what the handle stands for."""
        upstream, ttl = sought.choice.upstream, sought.kind.keeping.session_ttl
        await self._bindings.bind(upstream, _root(session.id), sought.client.name, session.owner, ttl)
        if sought.talk is not None:
            await self._talks.put(sought.talk, Talk(session.id, session.owner), ttl)

    async def forget(self, sought: Sought, session: Known) -> None:
        """The upstream does not know it any more, or nobody is left who could ask for it."""
        await self._bindings.unbind(sought.choice.upstream, _root(session.id), sought.client.name)
        if sought.talk is not None:
            await self._talks.drop(sought.talk, Talk(session.id, session.owner))


def _root(conversation: str) -> str:
    return f"conversations/{conversation}"
