"""How the tables came to be: numbered steps, forward only. A step that was released is never changed; a new one is added.

Each runs in one transaction that holds the writers' lock of the database, under which the version is read again, so that
processes that start at once wait for each other and find the work done.

| index | for |
|---|---|
| chat_sessions_name | a session by its name; one row for each |
| chat_sessions_active, chat_sessions_recent | the lists, with and without inactive sessions |
| chat_sessions_idle | what has been idle for longest, for retention |
| chat_sessions_conversation | who has a conversation; it is one session's |
| chat_messages_pkey | pages: a range over (session, sequence) |
| chat_messages_role | the newest of some roles, however many others came after them |
| chat_messages_id | one row for each id |
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from balancer.conversations.base import DatabaseRefused

KEYS = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
"""A number that is never given again: AUTOINCREMENT, since SQLite gives the highest again when its row has gone."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE chat_sessions (
            number {key},
            edition BIGINT NOT NULL,
            client TEXT NOT NULL,
            surface TEXT NOT NULL,
            folded TEXT NOT NULL,
            id TEXT NOT NULL,
            title TEXT,
            is_active BOOLEAN NOT NULL,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            turns BIGINT NOT NULL,
            user_id TEXT,
            conversation TEXT,
            upstream TEXT,
            model TEXT,
            owner TEXT,
            remote TEXT
        )
        """,
        "CREATE UNIQUE INDEX chat_sessions_name ON chat_sessions (client, surface, folded)",
        "CREATE INDEX chat_sessions_active ON chat_sessions (client, surface, is_active, updated_at, number)",
        "CREATE INDEX chat_sessions_recent ON chat_sessions (client, surface, updated_at, number)",
        "CREATE INDEX chat_sessions_idle ON chat_sessions (surface, updated_at)",
        "CREATE UNIQUE INDEX chat_sessions_conversation ON chat_sessions (surface, conversation)",
        """
        CREATE TABLE chat_messages (
            session BIGINT NOT NULL REFERENCES chat_sessions (number) ON DELETE CASCADE,
            sequence BIGINT NOT NULL,
            id TEXT NOT NULL,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            tokens BIGINT NOT NULL,
            metadata_info TEXT,
            created_at BIGINT NOT NULL,
            CONSTRAINT chat_messages_pkey PRIMARY KEY (session, sequence)
        )
        """,
        "CREATE UNIQUE INDEX chat_messages_id ON chat_messages (id)",
        "CREATE INDEX chat_messages_role ON chat_messages (session, role, sequence)",
    ),
)


def step(lock: Callable[[Connection], None], connection: Connection) -> bool:
    """Runs the next migration in this transaction, which `lock` makes the only one. False: there was none to run.

    Raises DatabaseRefused: the database is newer than the program, or holds other tables of these names.
    """
    lock(connection)
    connection.execute(text("CREATE TABLE IF NOT EXISTS chat_schema (version INTEGER NOT NULL PRIMARY KEY)"))
    version = connection.execute(text("SELECT coalesce(max(version), 0) FROM chat_schema")).scalar_one()
    if version > len(MIGRATIONS):
        raise DatabaseRefused(
            f"the database was written by a newer version of this program: its schema is {version}, "
            f"this version knows {len(MIGRATIONS)}"
        )
    if version == len(MIGRATIONS):
        return False
    for statement in MIGRATIONS[version]:
        connection.execute(text(statement.format(key=KEYS[connection.dialect.name])))
    connection.execute(text("INSERT INTO chat_schema (version) VALUES (:version)"), {"version": version + 1})
    return True


def refused(error: DBAPIError) -> DatabaseRefused:
    """What a migration that the database does not take comes to."""
    first = str(error.orig).partition("\n")[0]
    return DatabaseRefused(f"the tables of stored chats cannot be made or changed: {first}")
