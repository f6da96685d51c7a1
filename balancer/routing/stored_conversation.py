"""Which conversation of an upstream a stored session goes on with: the one that the database says, or a new one.

The counterpart of `BackendSessions`' table for sessions whose binding is not in the shared state: nothing is looked up, and what
is made is left in `session` for whoever stores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from balancer.errors import ProxyError
from balancer.routing.backend_sessions import BackendSessions, Wanted
from balancer.upstreams.turns import Known, Plan


class StoredConversation(BackendSessions):
    """For one turn. `session`: the conversation, None while there is none. `explicit`: the caller named it itself, so that no
    other one may take its place.
    """

    def __init__(self, shared: BackendSessions, session: Known | None, *, explicit: bool) -> None:
        self._shared = shared
        self._irreplaceable = explicit
        self.session = session
        self.turn_wait = shared.turn_wait

    async def plan(self, wanted: Wanted, accounts: Sequence[str], attempts: int) -> Plan:
        if self.session is None:
            return Plan(_nothing(), renews=True, fresh=True, attempts=attempts)
        missing = wanted.kind.missing(self.session.id)
        return Plan(missing, self.session, renews=not self._irreplaceable, attempts=attempts)

    async def known(self, wanted: Wanted) -> Known | None:
        return self.session

    async def made(self, wanted: Wanted, session: Known) -> None:
        self.session = session
        await self._shared.made(wanted, session)

    async def used(self, wanted: Wanted, session: Known) -> None:
        self.session = session
        await self._shared.used(wanted, session)

    async def forget(self, wanted: Wanted, session: Known) -> None:
        self.session = None
        await self._shared.forget(wanted, session)

    async def nobody_knows(self, wanted: Wanted) -> None:
        """The database goes on knowing it."""

    def turn(self, upstream: str, session: Known, wait: float) -> AbstractAsyncContextManager[None]:
        return self._shared.turn(upstream, session, wait)

    def making(self, handle: tuple[str, ...], wait: float) -> AbstractAsyncContextManager[None]:
        return self._shared.making(handle, wait)


def _nothing() -> ProxyError:
    """What would be told of a conversation that nobody named: nobody is."""
    return ProxyError(404, "session_not_found", "The session does not exist.")
