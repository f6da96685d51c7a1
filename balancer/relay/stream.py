"""The way of an answer to the client, byte for byte.

Head and first bytes leave together when they came together, else the head goes ahead. A slow client slows the upstream;
an upstream that breaks off breaks the client's answer off too: never a clean end, never a second head.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from balancer.model import Headers, Record
from balancer.relay.keepalive import KeepAlive
from balancer.relay.learning import Lesson
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Watchdog
from balancer.wire.headers import end_to_end

_TOTAL_TOKENS = re.compile(rb'"totalTokenCount"\s*:\s*(\d{1,12})')
_TAIL = 40
"""Bytes kept between two pieces: longer than any text the pattern above matches."""
_LARGE = 4096
"""Bytes of a piece from which on two looks cost less than a copy."""


class Reply(Protocol):
    """The client's side of an exchange. Raises ClientGone once the client has left."""

    @property
    def started(self) -> bool:
        """The head is out, or on its way: no other answer can be given."""
        ...

    async def start(self, status: int, reason: str, headers: Headers) -> None: ...

    def flush(self) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def finish(self) -> None:
        """The body is whole."""
        ...

    def cut(self) -> None:
        """End the connection so that the client sees a broken body."""
        ...


class Passing:
    """Sink that hands each piece of an answer to the client and counts what passes."""

    __slots__ = ("_counts", "_tail", "flush", "keepalive", "record", "reply", "tokens")

    def __init__(self, reply: Reply, record: Record, *, counts: bool) -> None:
        """`counts`: tokens too, as the answer tells of them."""
        self.reply = reply
        self.record = record
        self.flush = reply.flush
        self.keepalive: KeepAlive | None = None
        self.tokens: int | None = None
        """The last `usageMetadata.totalTokenCount` that has passed."""
        self._counts = counts
        self._tail = b""

    def write(self, data: bytes) -> Awaitable[None]:
        self.record.bytes_out += len(data)
        if self._counts:
            self._look(data)
        return self.reply.write(data) if self.keepalive is None else self._between(data, self.keepalive)

    async def _between(self, data: bytes, keepalive: KeepAlive) -> None:
        """Write between two comments."""
        keepalive.passing(data)
        await self.reply.write(data)
        keepalive.passed()

    def _look(self, data: bytes) -> None:
        if len(data) > _LARGE:
            self._find(self._tail + data[:_TAIL])
            text = data
        else:
            text = self._tail + data
        self._find(text)
        self._tail = text[-_TAIL:]

    def _find(self, text: bytes) -> None:
        place = text.rfind(b'"totalTokenCount"')
        if place >= 0 and (found := _TOTAL_TOKENS.match(text, place)) is not None:
            self.tokens = int(found[1])


class _Held:
    """Sink that holds a small body back, so that it can be read before it goes on; a longer one it lets go."""

    __slots__ = ("_lesson", "_passing", "_start", "body", "released")

    def __init__(self, passing: Passing, start: Callable[[], Awaitable[None]], lesson: Lesson) -> None:
        self._lesson = lesson
        self._passing = passing
        self._start = start
        self.body = bytearray()
        self.released = False

    def flush(self) -> None:
        if self.released:
            self._passing.flush()

    async def write(self, data: bytes) -> None:
        if self.released:
            await self._passing.write(data)
            return
        self.body += data
        longer = len(self.body) > self._lesson.limit
        if longer:
            self._lesson.too_long()
        if longer or (self._lesson.streamed and await self._lesson.of_part(data)):
            self.released = True
            await self._start()
            await self._passing.write(bytes(self.body))
            self.body.clear()


async def copy(
    answer: Answer, passing: Passing, watchdog: Watchdog, lesson: Lesson | None, keepalive: float | None = None
) -> None:
    """Pass on a whole answer, and learn from it. Raises AnswerCut; if the client's answer has begun, the caller cuts it.

    `keepalive`: seconds of silence after which an event stream gets a comment; None: never.
    """
    reply = passing.reply
    if lesson is None and keepalive is None:
        await reply.start(answer.status, answer.reason, answer.headers)
        await answer.pump(passing, watchdog)
        await reply.finish()
        return

    async def start(headers: Headers = answer.headers) -> None:
        await reply.start(answer.status, answer.reason, headers)
        if keepalive is not None and KeepAlive.fits(headers):
            passing.keepalive = KeepAlive(reply, passing.record, keepalive)

    try:
        if lesson is not None:
            await lesson.of_head()
        if lesson is None or not lesson.wanted(answer.headers):
            await start()
            await answer.pump(passing, watchdog)
        else:
            held = _Held(passing, start, lesson)
            await answer.pump(held, watchdog)
            if not held.released:
                await _taught(answer, bytes(held.body), lesson, passing, start)
    finally:
        if passing.keepalive is not None:
            passing.keepalive.stop()
    await reply.finish()


async def _taught(
    answer: Answer, body: bytes, lesson: Lesson, passing: Passing, start: Callable[[Headers], Awaitable[None]]
) -> None:
    """Learn from an answer that is here whole, and send it on."""
    headers = answer.headers
    instead = await lesson.of_body(headers, body)
    if instead is not None:
        body = instead
        headers = end_to_end(headers, frozenset({"content-encoding", "content-length"}))
        headers.append(("Content-Length", str(len(body))))
    await start(headers)
    if body:
        await passing.write(body)
