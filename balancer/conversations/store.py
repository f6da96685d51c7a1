"""What can be done with stored chats. Every method raises StorageUnavailable; what it returned is committed.

Turns of a session are numbered 1, 2, 3 … in the transaction that stores them, under the lock of the session's row: the
number of the last one is raised, and the new rows take the numbers between. So a page is a range of numbers, and no page is
further away than another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, and_, delete, func, insert, select, true, union_all, update
from sqlalchemy.dialects import postgresql, sqlite

from balancer.clock import Clock
from balancer.conversations.base import Binding, NewTurn, Session, SessionName, Turn
from balancer.conversations.database import Database
from balancer.conversations.rows import bound_to, microseconds, rows_of, session_of, turns_of
from balancer.conversations.schema import messages, sessions

_FARTHEST = 2**62
"""Nothing stands beyond; numbers that callers choose may be larger than a database takes."""
_INSERT: dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}


class Store:
    """Sessions, turns and bindings in one database, which `close` closes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def close(self) -> None:
        """Waits for the writes that were begun."""
        await self._database.close()

    # Sessions ------------------------------------------------------------------------------------------------------------

    async def get(self, name: SessionName) -> Session | None:
        return await self._database.read(lambda connection: _found(connection, _named(name)))

    async def get_or_create(
        self, name: SessionName, *, title: str | None = None, user_id: str | None = None
    ) -> tuple[Session, bool]:
        """The session of this name, and whether it had to be made; title and user id are those of one that is."""
        session = await self.get(name)
        if session is not None:
            return session, False
        fresh = _fresh(name, self._now(), title=title, user_id=user_id)
        return await self._database.write(lambda connection: _made(connection, name, fresh))

    async def sessions(
        self, client: str, surface: str, *, skip: int = 0, limit: int = 100, active_only: bool = False
    ) -> list[Session]:
        """A page of the client's sessions: last activity first, of equal ones the one that was made last."""
        wanted = select(sessions).where(sessions.c.client == client, sessions.c.surface == surface)
        if active_only:
            wanted = wanted.where(sessions.c.is_active == true())
        wanted = wanted.order_by(sessions.c.updated_at.desc(), sessions.c.number.desc())
        page = wanted.offset(min(skip, _FARTHEST)).limit(limit)
        return [session_of(row) for row in await self._database.read(lambda connection: connection.execute(page).all())]

    async def count(self, client: str, surface: str) -> int:
        """How many sessions the client has."""
        wanted = select(func.count()).where(sessions.c.client == client, sessions.c.surface == surface)
        return await self._database.read(lambda connection: connection.execute(wanted).scalar_one())

    async def update(
        self, name: SessionName, *, title: str | None = None, is_active: bool | None = None
    ) -> Session | None:
        """The session with what was given changed, its last activity now. None: there is none."""
        given = {"title": title, "is_active": is_active}
        changes = {column: value for column, value in given.items() if value is not None}
        changed = update(sessions).where(_named(name)).values(updated_at=self._now(), **changes).returning(*sessions.c)
        return await self._one(changed)

    async def delete(self, name: SessionName) -> bool:
        """The session goes with its turns. False: there was none."""
        gone = delete(sessions).where(_named(name)).returning(sessions.c.number)
        return await self._database.write(lambda connection: connection.execute(gone).first() is not None)

    async def clear(self, name: SessionName) -> Session | None:
        """The turns go, and what the session was bound to; the session stays. None: there is none.

        Whoever read the session before stores no turn and no binding any more.
        """
        changed = (
            update(sessions)
            .where(_named(name))
            .values(
                turns=0, edition=sessions.c.edition + 1, updated_at=self._now(), conversation=None, **bound_to(None)
            )
            .returning(*sessions.c)
        )

        def work(connection: Connection) -> Session | None:
            row = connection.execute(changed).first()
            if row is None:
                return None
            connection.execute(delete(messages).where(messages.c.session == row.number))
            return session_of(row)

        return await self._database.write(work)

    async def purge(self, surface: str, idle_since: datetime, *, limit: int = 100) -> int:
        """Deletes sessions without activity since then, those idle for longest first, and tells how many.

        One batch; less than `limit` means that none is left.
        """
        idle = (
            select(sessions.c.number)
            .where(sessions.c.surface == surface, sessions.c.updated_at < microseconds(idle_since))
            .order_by(sessions.c.updated_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        gone = delete(sessions).where(sessions.c.number.in_(idle)).returning(sessions.c.number)
        return await self._database.write(lambda connection: len(connection.execute(gone).all()))

    # Turns ---------------------------------------------------------------------------------------------------------------

    async def append(
        self, session: Session, turns: Sequence[NewTurn], *, user_id: str | None = None
    ) -> list[Turn] | None:
        """Stores the turns (one or more) together, as the session's last ones; `user_id` then is its user.

        None: nothing was stored, because the session was deleted or cleared since it was read.
        """
        now = self._now()
        rows = await rows_of(turns, now)
        values: dict[str, Any] = {"turns": sessions.c.turns + len(rows), "updated_at": now}
        if user_id is not None:
            values["user_id"] = user_id
        counted = update(sessions).where(_unchanged(session)).values(values).returning(sessions.c.turns)

        def work(connection: Connection) -> list[dict[str, Any]] | None:
            last = connection.execute(counted).scalar_one_or_none()
            if last is None:
                return None
            numbered = [
                {"session": session.number, "sequence": sequence, **row}
                for sequence, row in enumerate(rows, last - len(rows) + 1)
            ]
            connection.execute(insert(messages), numbered)
            return numbered

        stored = await self._database.write(work)
        return None if stored is None else await turns_of(stored)

    async def turns(self, session: Session, *, skip: int = 0, limit: int = 100) -> list[Turn]:
        """A page, oldest first."""
        return await self._turns(_page(session, skip, limit))

    async def newest(self, session: Session, limit: int, *, roles: Sequence[str] | None = None) -> list[Turn]:
        """The newest `limit` turns, oldest first; with `roles`, of those that have one of them."""
        return await self._turns(_newest(session, limit, roles))

    async def _turns(self, wanted: Select[Any]) -> list[Turn]:
        rows = await self._database.read(lambda connection: connection.execute(wanted).mappings().all())
        return await turns_of(rows)

    # Conversations elsewhere ---------------------------------------------------------------------------------------------

    async def bind(
        self, session: Session, binding: Binding | None, *, conversation: str | None = None
    ) -> Session | None:
        """Binds the session to a conversation at an upstream; None: to no one. `conversation`: what clients know it as.

        Another session of the client that had this conversation goes. Returns None, and changes nothing, if the session was
        deleted or cleared since it was read, or if the conversation is another client's.
        """
        values = bound_to(binding) | ({} if conversation is None else {"conversation": conversation})
        changed = update(sessions).where(_unchanged(session)).values(values).returning(*sessions.c)

        def work(connection: Connection) -> Session | None:
            if conversation is not None:
                _reserve(connection, conversation)
            present = connection.execute(select(sessions.c.number).where(_unchanged(session)).with_for_update()).first()
            if present is None:
                return None
            if conversation is not None and not _freed(connection, session.name, conversation):
                return None
            return session_of(connection.execute(changed).one())

        return await self._database.write(work)

    async def take(
        self, name: SessionName, conversation: str, binding: Binding, *, user_id: str | None = None
    ) -> Session | None:
        """Gives the conversation to the session of this name, which is made if there is none: its last activity is now.

        Another session of the client that had it goes. None, and nothing changes: the conversation is another client's.
        """
        now = self._now()
        fresh = _fresh(name, now, title=None, user_id=user_id)
        changed = (
            update(sessions)
            .where(_named(name))
            .values(updated_at=now, conversation=conversation, **bound_to(binding))
            .returning(*sessions.c)
        )

        def work(connection: Connection) -> Session | None:
            _reserve(connection, conversation)
            if not _freed(connection, name, conversation):
                return None
            while True:
                _made(connection, name, fresh)
                row = connection.execute(changed).first()
                if row is not None:  # not deleted meanwhile
                    return session_of(row)

        return await self._database.write(work)

    async def by_conversation(self, surface: str, conversation: str) -> Session | None:
        """The session that has it, whose ever it is: callers compare the client."""
        held = and_(sessions.c.surface == surface, sessions.c.conversation == conversation)
        return await self._database.read(lambda connection: _found(connection, held))

    # Inside --------------------------------------------------------------------------------------------------------------

    def _now(self) -> int:
        """Microseconds since 1970."""
        return round(self._clock.wall() * 1_000_000)

    async def _one(self, statement: Any) -> Session | None:
        row = await self._database.write(lambda connection: connection.execute(statement).first())
        return None if row is None else session_of(row)


def _fresh(name: SessionName, now: int, *, title: str | None, user_id: str | None) -> dict[str, Any]:
    """The row of a new session."""
    return {
        "edition": 1,
        "client": name.client,
        "surface": name.surface,
        "folded": name.folded,
        "id": name.id,
        "title": title,
        "is_active": True,
        "created_at": now,
        "updated_at": now,
        "turns": 0,
        "user_id": user_id,
    }


def _named(name: SessionName) -> Any:
    return and_(sessions.c.client == name.client, sessions.c.surface == name.surface, sessions.c.folded == name.folded)


def _unchanged(session: Session) -> Any:
    return and_(sessions.c.number == session.number, sessions.c.edition == session.edition)


def _found(connection: Connection, where: Any) -> Session | None:
    row: Row[Any] | None = connection.execute(select(sessions).where(where)).first()
    return None if row is None else session_of(row)


def _made(connection: Connection, name: SessionName, fresh: dict[str, Any]) -> tuple[Session, bool]:
    """The session of this name, made of `fresh` if there is none; somebody else may make or delete it meanwhile."""
    make = _INSERT[connection.dialect.name](sessions).values(fresh).on_conflict_do_nothing().returning(*sessions.c)
    while True:
        row = connection.execute(make).first()
        if row is not None:
            return session_of(row), True
        session = _found(connection, _named(name))
        if session is not None:
            return session, False


def _reserve(connection: Connection, conversation: str) -> None:
    """Until the transaction ends nobody else gives the conversation away. SQLite's writers come one by one anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(conversation, 0))))


def _freed(connection: Connection, name: SessionName, conversation: str) -> bool:
    """Takes the conversation from the client's other session, which goes. False: it is another client's."""
    held = and_(sessions.c.surface == name.surface, sessions.c.conversation == conversation)
    holder = connection.execute(
        select(sessions.c.number, sessions.c.client, sessions.c.folded).where(held).with_for_update()
    ).first()
    if holder is None or (holder.client, holder.folded) == (name.client, name.folded):
        return True
    if holder.client != name.client:
        return False
    connection.execute(delete(sessions).where(sessions.c.number == holder.number))
    return True


def _page(session: Session, skip: int, limit: int) -> Select[Any]:
    first = min(skip, _FARTHEST) + 1
    inside = messages.c.sequence.between(first, first + limit - 1)
    return select(messages).where(messages.c.session == session.number, inside).order_by(messages.c.sequence)


def _newest(session: Session, limit: int, roles: Sequence[str] | None) -> Select[Any]:
    """Of some roles: the newest of each by its index, and of those the newest, so that other roles cost nothing."""
    mine = messages.c.session == session.number
    numbers = select(messages.c.sequence).where(mine).order_by(messages.c.sequence.desc()).limit(limit)
    if roles is not None:
        each = union_all(*(numbers.where(messages.c.role == role).subquery().select() for role in roles)).subquery()
        numbers = select(each.c.sequence).order_by(each.c.sequence.desc()).limit(limit)
    chosen = numbers.subquery()
    return (
        select(messages)
        .join(chosen, and_(mine, messages.c.sequence == chosen.c.sequence))
        .order_by(messages.c.sequence)
    )
