"""How the store reaches its database: transactions, each a function of a connection, and what their failures mean.

A function may be run again in a new transaction when the first did not commit, so it changes nothing but the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import structlog
from sqlalchemy import Connection

from balancer.conversations.base import StorageUnavailable

T = TypeVar("T")
Work = Callable[[Connection], T]
"""Statements of one transaction, and what they come to."""

POOL_WAIT = 20.0
"""Seconds for which a call waits for a connection while all are at work."""

CLOSED = "the database is closed"

log = structlog.get_logger()


class Database(Protocol):
    """Where transactions run. Both methods raise StorageUnavailable; any other error is a mistake in the work."""

    async def read(self, work: Work[T]) -> T:
        """One statement that changes nothing, beside whatever else is running."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Returns when it is committed, and not before. Goes on to its end when the caller is cancelled."""
        ...

    async def close(self) -> None:
        """Waits for the writes that were begun."""
        ...


class Outages:
    """Tells the log when the database goes away and when it is back, and not for each call between.

    One for what is read and one for what is written: a full disk can be read.
    """

    def __init__(self, what: str) -> None:
        """`what`: "read" or "written"."""
        self._what = what
        self._reason: str | None = None

    def failed(self, error: StorageUnavailable, cause: BaseException) -> StorageUnavailable:
        if error.reason != self._reason:
            self._reason = error.reason
            told = str(getattr(cause, "orig", None) or cause)
            log.error(f"stored chats cannot be {self._what}", reason=error.reason, error=told)
        return error

    def worked(self) -> None:
        if self._reason is not None:
            self._reason = None
            log.info(f"stored chats can be {self._what} again")


class Running:
    """Tasks that outlive the callers who wait for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of the work, which goes on to its end when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    async def wait(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
