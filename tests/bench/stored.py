"""Stored chats: what a page, an append, a history and a list cost while little is stored, and while much is.

Both stores of a database are open at once and asked in turn: what disturbs the machine disturbs both. The store runs in this
process, the database on the same core. Ids are random, as the program's are, so that what is appended comes anywhere in their
index.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sized
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import CTE, Connection, Text, case, cast, func, insert, literal, null, select, text, true, update

from balancer.clock import SystemClock
from balancer.conversations.base import NewTurn, Session, SessionName
from balancer.conversations.opening import sqlite_path
from balancer.conversations.postgres import PostgresDatabase
from balancer.conversations.schema import messages, sessions
from balancer.conversations.sqlite import SqliteDatabase
from balancer.conversations.store import Store
from tests.bench.figures import Figures
from tests.bench.load import Broken

Pair = tuple[str, str]
"""The URLs of two databases that hold nothing."""
Stored = tuple[Store, Session]
"""A store, and the session with all the turns."""

PAGE = 100
SINGLY = 200
"""Turns that are appended one by one: until SQLite writes over its log, as it does from then on, and no longer makes it grow."""
_NAME = SessionName("bench", "conversations", "long")
_TEXT = "Tell me of the quick brown fox and the lazy dog. " * 4
_TURN = NewTurn("user", _TEXT, tokens=44)
_ROLES = ("user", "assistant")
_RANDOM: dict[str, Any] = {
    "sqlite": func.lower(func.hex(func.randomblob(16))),
    "postgresql": cast(func.gen_random_uuid(), Text),
}

ASKS: dict[str, Callable[[Store, Session], Awaitable[Sized | None]]] = {
    "stored_first_ms": lambda store, session: store.turns(session, limit=PAGE),
    "stored_last_ms": lambda store, session: store.turns(session, skip=session.turns - PAGE, limit=PAGE),
    "stored_history_ms": lambda store, session: store.newest(session, PAGE),
    "stored_roles_ms": lambda store, session: store.newest(session, PAGE, roles=_ROLES),
    "stored_append_ms": lambda store, session: store.append(session, [_TURN]),
    "stored_list_ms": lambda store, session: store.sessions(session.client, session.surface, limit=PAGE),
}
"""By figure."""


async def once(stored: Stored) -> Figures:
    """Each call once: milliseconds."""
    found = {}
    for figure, ask in ASKS.items():
        began = perf_counter()
        answer = await ask(*stored)
        found[figure] = (perf_counter() - began) * 1e3
        if not answer:
            raise Broken(f"{figure}: an empty answer")
    return found


def places(work: Path) -> dict[str, Callable[[], AbstractContextManager[Pair]]]:
    """The databases that can be measured here, and what makes two of each."""
    found: dict[str, Callable[[], AbstractContextManager[Pair]]] = {
        "SQLite": lambda: nullcontext((f"sqlite:///{work}/little.db", f"sqlite:///{work}/much.db"))
    }
    if _postgres_is_here():
        found["PostgreSQL"] = _two_on_a_server
    return found


def _postgres_is_here() -> bool:
    """Whether there is a server, or one can be started. What does so comes with the tests, and `make bench` needs no tests."""
    try:
        from tests.contract.databases import binaries
    except ImportError:
        return False
    return bool(os.environ.get("DATABASE_URL")) or binaries() is not None


@contextmanager
def _two_on_a_server() -> Iterator[Pair]:
    """Raises Broken where the server does not start, or does not let us in."""
    import psycopg

    from tests.contract.databases import any_server, new_database

    with ExitStack() as stack:
        try:
            server = stack.enter_context(any_server())
            pair = stack.enter_context(new_database(server)), stack.enter_context(new_database(server))
        except (AssertionError, psycopg.Error) as failure:
            raise Broken(str(failure)) from None
        yield pair


@asynccontextmanager
async def filled(url: str, turns: int, others: int) -> AsyncIterator[Stored]:
    """The store of a new database: so many turns in one session, and so many sessions of its client beside it."""
    database = await (SqliteDatabase.open(sqlite_path(url)) if url.startswith("sqlite") else PostgresDatabase.open(url))
    store = Store(database, SystemClock())
    try:
        made, _ = await store.get_or_create(_NAME)
        singly = min(turns, SINGLY)
        await database.write(lambda connection: _fill(connection, made, turns - singly, others))
        for _ in range(singly):
            await store.append(made, [_TURN])
        session = await store.get(_NAME)
        assert session is not None
        yield store, session
    finally:
        await store.close()


def _fill(connection: Connection, session: Session, turns: int, others: int) -> None:
    n = _numbers(turns).c.n
    turn: dict[str, Any] = {
        "session": literal(session.number),
        "sequence": n,
        "id": _RANDOM[connection.dialect.name],
        "role": case((n % 2 == 0, "assistant"), else_="user"),
        "content": literal(f'"{_TEXT}"'),
        "tokens": literal(44),
        "metadata_info": null(),
        "created_at": n,
    }
    connection.execute(insert(messages).from_select(list(turn), select(*turn.values())))
    connection.execute(update(sessions).where(sessions.c.number == session.number).values(turns=turns))
    n = _numbers(others).c.n
    name = literal("other-") + cast(n, Text)
    other: dict[str, Any] = {
        "edition": literal(1),
        "client": literal(session.client),
        "surface": literal(session.surface),
        "folded": name,
        "id": name,
        "is_active": true(),
        "created_at": n,
        "updated_at": n,
        "turns": literal(0),
    }
    connection.execute(insert(sessions).from_select(list(other), select(*other.values())))
    connection.execute(text("ANALYZE"))


def _numbers(count: int) -> CTE:
    """1, 2, 3 … as rows."""
    first = select(literal(1).label("n")).where(literal(count) > 0).cte("numbers", recursive=True)
    return first.union_all(select(first.c.n + 1).where(first.c.n < count))
