"""SQLite: one file, one writer task, readers beside it (WAL).

Writes that wait while one is committed are committed together: one flush to the disk for all. If that fails, each is tried by
itself, so that one that cannot be stored takes no other with it. `synchronous=FULL`: what is acknowledged is on the disk.

| result code | to the caller |
|---|---|
| BUSY, LOCKED after `busy_timeout` | locked by another process |
| FULL | disk full |
| IOERR, READONLY, CANTOPEN, PERM | cannot be read or written |
| CORRUPT, NOTADB | damaged, or no database |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from balancer.conversations.base import DatabaseRefused, StorageUnavailable
from balancer.conversations.database import CLOSED, POOL_WAIT, Outages, T, Work
from balancer.conversations.migrations import refused, step

BUSY_TIMEOUT = 5.0
"""Seconds for which a statement waits for another process's lock."""
READERS = 4
OLDEST = (3, 35)
"""The first SQLite that knows RETURNING."""
MOST_TOGETHER = 128
"""Writes that one commit acknowledges."""

_UNREACHABLE = ("the database file cannot be read or written", 30.0)
_DAMAGED = ("the database file is damaged, or is no SQLite database", None)
_REASONS: dict[int, tuple[str, float | None]] = {
    sqlite3.SQLITE_BUSY: ("the database is locked by another process", 5.0),
    sqlite3.SQLITE_LOCKED: ("the database is locked by another process", 5.0),
    sqlite3.SQLITE_FULL: ("the disk of the database is full", 30.0),
    sqlite3.SQLITE_IOERR: _UNREACHABLE,
    sqlite3.SQLITE_READONLY: _UNREACHABLE,
    sqlite3.SQLITE_CANTOPEN: _UNREACHABLE,
    sqlite3.SQLITE_PERM: _UNREACHABLE,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
}
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@dataclass(frozen=True, slots=True)
class _Write:
    work: Work[Any]
    outcome: asyncio.Future[Any]

    def succeed(self, result: Any) -> None:
        if not self.outcome.done():
            self.outcome.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class SqliteDatabase:
    """`database.Database` in a file. Made by `open`."""

    def __init__(self, path: Path) -> None:
        self._writer = _engine(path, connections=1, begin="BEGIN IMMEDIATE")
        self._readers = _engine(path, connections=READERS, begin=None)
        self._queue: asyncio.Queue[_Write | None] = asyncio.Queue()
        self._reading, self._writing = Outages("read"), Outages("written")
        self._path = path
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Makes the file and its folder if they are not there, and brings the tables up to date.

        Raises StorageUnavailable and DatabaseRefused.
        """
        if sqlite3.sqlite_version_info < OLDEST:
            wanted = ".".join(map(str, OLDEST))
            raise DatabaseRefused(f"SQLite {wanted} or newer is needed, and this Python has {sqlite3.sqlite_version}")
        database = await asyncio.to_thread(cls, path)
        try:
            await database._prepare()
        except BaseException:
            await database._dispose()
            raise
        database._task = asyncio.create_task(database._write_all())
        return database

    async def _prepare(self) -> None:
        try:
            await asyncio.to_thread(_make_file, self._path)
            async with self._writer.connect() as connection:
                await connection.run_sync(_write_ahead)
            migrate = partial(step, lambda connection: None)  # BEGIN IMMEDIATE has taken the lock
            while (await self._together([migrate]))[0]:
                pass
        except OSError as error:
            raise self._writing.failed(StorageUnavailable(*_UNREACHABLE), error) from None
        except DBAPIError as error:
            raise refused(error) if _unavailable(error) is None else _told(error, self._writing) from None

    async def read(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable(CLOSED)
        try:
            async with self._readers.connect() as connection:
                result = await connection.run_sync(work)
        except (DBAPIError, PoolTimeout) as error:
            raise _told(error, self._reading) from None
        self._reading.worked()
        return result

    async def write(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable(CLOSED)
        write = _Write(work, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(write)
        result: T = await write.outcome
        return result

    async def close(self) -> None:
        if self._task is not None and not self._closed:
            self._closed = True
            self._queue.put_nowait(None)
            await self._task
            await self._dispose()

    async def _dispose(self) -> None:
        await self._readers.dispose()
        await self._writer.dispose()

    async def _write_all(self) -> None:
        """The writer: takes what waits, commits it, acknowledges it."""
        while True:
            writes = [await self._queue.get()]
            while len(writes) < MOST_TOGETHER and not self._queue.empty():
                writes.append(self._queue.get_nowait())
            await self._commit([write for write in writes if write is not None])
            if None in writes:
                return

    async def _commit(self, writes: Sequence[_Write]) -> None:
        if not writes:
            return
        try:
            results = await self._together([write.work for write in writes])
        except Exception as error:
            if len(writes) == 1 or _code(error) in _BUSY:
                told = _told(error, self._writing)
                for write in writes:
                    write.fail(told)
                return
            for write in writes:
                await self._commit([write])
            return
        self._writing.worked()
        for write, result in zip(writes, results, strict=True):
            write.succeed(result)

    async def _together(self, works: Sequence[Work[Any]]) -> list[Any]:
        async with self._writer.connect() as connection:
            results = await connection.run_sync(lambda at: [work(at) for work in works])
            await connection.commit()
        return results


def _make_file(path: Path) -> None:
    """The file for its owner only; SQLite gives the files beside it the same mode.

    A file that is there is never opened here: closing it would end the locks that this process holds on it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        with contextlib.suppress(PermissionError):
            path.chmod(0o600)


def _engine(path: Path, *, connections: int, begin: str | None) -> AsyncEngine:
    """`begin` None: for reading only, each statement by itself."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=os.fspath(path)),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_WAIT,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("synchronous=FULL", "foreign_keys=ON", f"query_only={'ON' if begin is None else 'OFF'}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    if begin is not None:

        @event.listens_for(engine.sync_engine, "begin")
        def _begun(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

    return engine


def _write_ahead(connection: Connection) -> None:
    """The journal mode stays with the file. It cannot be changed inside a transaction."""
    driver = connection.connection.dbapi_connection
    assert driver is not None
    cursor = driver.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.close()


def _code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    extended = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return None if extended is None else extended & 0xFF


def _told(error: Exception, outages: Outages) -> Exception:
    told = _unavailable(error)
    return error if told is None else outages.failed(told, error)


def _unavailable(error: BaseException) -> StorageUnavailable | None:
    """What callers are told of the database's own failure; None: the error is no such failure."""
    if isinstance(error, PoolTimeout):
        return StorageUnavailable("the database is too slow for its load", 5.0)
    code = _code(error)
    return StorageUnavailable(*_REASONS[code]) if code in _REASONS else None
