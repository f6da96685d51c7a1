"""When the database is opened: at the first use of what needs it. Until then no file is made and SQLAlchemy is not imported.

`Conversations` is what the composition root holds. An opening that failed is tried again by the next call; calls that come
while one is under way wait for that one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import structlog

from balancer.clock import Clock
from balancer.conversations.base import DatabaseRefused, StorageUnavailable

if TYPE_CHECKING:
    from balancer.conversations.database import Database
    from balancer.conversations.store import Store

    Opener = Callable[[str], Coroutine[Any, Any, Database]]

log = structlog.get_logger()


class Conversations:
    """The store of a database, opened when it is first asked for."""

    def __init__(self, url: str, clock: Clock) -> None:
        """`url`: sqlite:///file or postgresql://user@host/name."""
        self._url = url
        self._clock = clock
        self._opening: asyncio.Task[Store] | None = None
        self._store: Store | None = None
        self._closed = False

    async def store(self) -> Store:
        """The open store. Raises StorageUnavailable; DatabaseRefused where this program will never be able to use it."""
        if self._store is not None:
            return self._store
        if self._closed:
            raise StorageUnavailable("the database is closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def close(self) -> None:
        """Waits for the writes that were begun."""
        self._closed = True
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def _open(self) -> Store:
        opener, make = await asyncio.to_thread(_imported, urlsplit(self._url).scheme)
        return make(await opener(self._url), self._clock)

    def _opened(self, task: asyncio.Task[Store]) -> None:
        self._opening = None
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._store = task.result()
        elif isinstance(error, DatabaseRefused):
            log.error("stored chats cannot be used", reason=error.reason)


def sqlite_path(url: str) -> Path:
    """The file of an sqlite:/// URL; what follows the third slash is taken as it stands."""
    return Path(url.removeprefix("sqlite:///"))


def _imported(scheme: str) -> tuple[Opener, Callable[[Database, Clock], Store]]:
    """What opens such a database. Takes a few hundred milliseconds the first time; runs in a thread."""
    try:
        from balancer.conversations.store import Store  # noqa: PLC0415

        if scheme == "sqlite":
            from balancer.conversations.sqlite import SqliteDatabase  # noqa: PLC0415

            return lambda url: SqliteDatabase.open(sqlite_path(url)), Store
        import psycopg  # noqa: F401, PLC0415

        from balancer.conversations.postgres import PostgresDatabase  # noqa: PLC0415
    except ImportError:
        raise DatabaseRefused(DRIVER_MISSING if scheme != "sqlite" else "SQLAlchemy or aiosqlite is missing") from None
    return PostgresDatabase.open, Store


DRIVER_MISSING = "postgresql:// needs a driver that is not installed: pip install 'balancer[postgres]'"
