"""Comment lines while an upstream's event stream is silent, so that nobody on the way takes the connection for dead.

A comment is written only between two events (`wire.event_boundary`), only into a body that has no declared length and no content
coding, and never to a client that is slow to read: it has not seen all that was said before.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from balancer.errors import ClientGone
from balancer.model import Headers, Record
from balancer.wire.event_boundary import EventBoundary
from balancer.wire.headers import first

COMMENT = b": keep-alive\n\n"


class _Writes(Protocol):
    async def write(self, data: bytes) -> None: ...


class KeepAlive:
    """For one stream: tell it what is `passing()` and has `passed()`, and `stop()` it at the end."""

    __slots__ = ("_between", "_boundary", "_ends", "_last", "_loop", "_record", "_reply", "_seconds", "_task", "_timer")

    def __init__(self, reply: _Writes, record: Record, seconds: float) -> None:
        """`seconds`: of silence. The head of the answer is out."""
        self._reply = reply
        self._record = record
        self._seconds = seconds
        self._boundary = EventBoundary()
        self._ends = self._between = True
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(seconds, self._look)

    @staticmethod
    def fits(headers: Headers) -> bool:
        """Whether comments may be put into an answer with this head."""
        kind = (first(headers, "content-type") or "").partition(";")[0].strip().lower()
        plain = (first(headers, "content-encoding") or "identity").strip().lower() == "identity"
        return kind == "text/event-stream" and plain and first(headers, "content-length") is None

    def passing(self, data: bytes) -> None:
        """These bytes are being written: nothing goes in between."""
        self._between = False
        self._ends = self._boundary.feed(data)

    def passed(self) -> None:
        """They are: where they ended between two events, a comment may follow."""
        self._between = self._ends
        self._last = self._loop.time()

    def _look(self) -> None:
        silent = self._loop.time() - self._last
        if silent < self._seconds:
            self._timer = self._loop.call_later(self._seconds - silent, self._look)
            return
        if self._between and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._comment())
        self._last = self._loop.time()
        self._timer = self._loop.call_later(self._seconds, self._look)

    async def _comment(self) -> None:
        if not self._between:  # something has begun to pass since this task was made
            return
        self._record.bytes_out += len(COMMENT)
        with contextlib.suppress(ClientGone):  # whoever writes next finds out
            await self._reply.write(COMMENT)

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
