"""PostgreSQL: a pool of connections, each write a transaction of its own.

A transaction that the server threw away (deadlock, two that made the same row), or whose connection turned out to be dead
before it was committed, is run again. One whose connection is lost while it is committed is not: it may have been.

| SQLSTATE | to the caller |
|---|---|
| none, 08, 57P, 58 | cannot be reached, or does not let us in: libpq tells that in words only, which the log repeats |
| 53100 | disk full |
| 53 | overloaded |
| 25006 | a read-only replica |
| 42501 | we may not do what is needed |
| 55P03, 57014 | locked for too long |
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Self

from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import create_async_engine

from balancer.conversations.base import StorageUnavailable
from balancer.conversations.database import CLOSED, POOL_WAIT, Outages, Running, T, Work
from balancer.conversations.migrations import refused, step

CONNECTIONS = 10
ATTEMPTS = 4
MIGRATION_LOCK = 0x62616C616E636572
"""An advisory lock of ours: "balancer" in ASCII."""
_CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "prepare_threshold": None,  # a pooler between may hand each transaction to another server process
    "application_name": "balancer",
}
"""For libpq, in seconds (`tcp_user_timeout`: milliseconds): a server that is gone is noticed. The URL's own settings win."""

_AWAY = ("the database cannot be reached", 5.0)
_REASONS: tuple[tuple[str, tuple[str, float | None]], ...] = (
    ("53100", ("the disk of the database is full", 30.0)),
    ("53", ("the database is overloaded", 5.0)),
    ("25006", ("the database is read-only", 30.0)),
    ("42501", ("the database does not give the rights that are needed", None)),
    ("55P03", ("the database is locked", 5.0)),
    ("57014", ("the database is locked", 5.0)),
    ("57P", _AWAY),
    ("08", _AWAY),
    ("58", _AWAY),
)
_THROWN_AWAY = ("40001", "40P01", "23505")
"""Serialization failure, deadlock, and a unique row that another transaction was quicker to make."""


class PostgresDatabase:
    """`database.Database` on a server. Made by `open`."""

    def __init__(self, url: str) -> None:
        address = make_url(url).set(drivername="postgresql+psycopg")
        self._engine = create_async_engine(
            address,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_WAIT,
            hide_parameters=True,
            connect_args={name: value for name, value in _CONNECT.items() if name not in address.query},
        )
        self._readers = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._reading, self._writing = Outages("read"), Outages("written")
        self._running = Running()
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Self:
        """Brings the tables up to date. Raises StorageUnavailable and DatabaseRefused."""
        database = await asyncio.to_thread(cls, url)
        try:
            while await database.write(partial(step, _lock)):
                pass
        except DBAPIError as error:
            await database.close()
            raise refused(error) from None
        except BaseException:
            await database.close()
            raise
        return database

    async def read(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable(CLOSED)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._readers.connect() as connection:
                    result = await connection.run_sync(work)
            except (DBAPIError, PoolTimeout) as error:
                if attempt == ATTEMPTS or not _dropped(error):
                    raise _told(error, self._reading) from None
            else:
                self._reading.worked()
                return result
        raise AssertionError("the last attempt returns or raises")

    async def write(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable(CLOSED)
        return await self._running.finish(self._write(work))

    async def close(self) -> None:
        self._closed = True
        await self._running.wait()
        await self._engine.dispose()

    async def _write(self, work: Work[T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            committing = False
            try:
                async with self._engine.connect() as connection:
                    result = await connection.run_sync(work)
                    committing = True
                    await connection.commit()
            except (DBAPIError, PoolTimeout) as error:
                if attempt == ATTEMPTS or committing or not (_dropped(error) or _state(error) in _THROWN_AWAY):
                    raise _told(error, self._writing) from None
            else:
                self._writing.worked()
                return result
        raise AssertionError("the last attempt returns or raises")


def _lock(connection: Connection) -> None:
    """Held to the end of the transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})


def _state(error: BaseException) -> str | None:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return state if isinstance(state, str) else None


def _dropped(error: DBAPIError | PoolTimeout) -> bool:
    """The connection had died; all that were made before it are thrown away, so the next one is new."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _told(error: DBAPIError | PoolTimeout, outages: Outages) -> Exception:
    told = _unavailable(error)
    return error if told is None else outages.failed(told, error)


def _unavailable(error: DBAPIError | PoolTimeout) -> StorageUnavailable | None:
    """What callers are told of the database's own failure; None: the error is no such failure."""
    if isinstance(error, PoolTimeout):
        return StorageUnavailable("the database is too slow for its load", 5.0)
    state = _state(error)
    if state is None:
        # libpq gives no state to what the server never said: no connection, or a lost one.
        lost = error.connection_invalidated or type(error.orig).__name__ in ("OperationalError", "ConnectionTimeout")
        return StorageUnavailable(*_AWAY) if lost else None
    return next((StorageUnavailable(*told) for prefix, told in _REASONS if state.startswith(prefix)), None)
