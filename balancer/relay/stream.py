"""The way of an answer to the client, byte for byte.

Head and first bytes leave together when they came together, else the head goes ahead. A slow client slows the upstream;
an upstream that breaks off breaks the client's answer off too: never a clean end, never a second head.
"""

from __future__ import annotations

import re
from typing import Protocol

from balancer.model import Headers, Record
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Watchdog
from balancer.wire.headers import RESPONSE_DROP, end_to_end

_TOTAL_TOKENS = re.compile(rb'"totalTokenCount"\s*:\s*(\d{1,12})')
_TAIL = 40
"""Bytes kept between two pieces: longer than any text the pattern above matches."""


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


class TokenCount:
    """Reads the last `usageMetadata.totalTokenCount` of an answer as it passes."""

    __slots__ = ("_tail", "total")

    def __init__(self) -> None:
        self.total: int | None = None
        self._tail = b""

    def feed(self, data: bytes) -> None:
        window = self._tail + data
        for found in _TOTAL_TOKENS.finditer(window):
            self.total = int(found[1])
        self._tail = window[-_TAIL:]


class _Passing:
    """Sink that hands each piece to the client and keeps count."""

    __slots__ = ("_record", "_reply", "_tokens", "flush")

    def __init__(self, reply: Reply, record: Record, tokens: TokenCount | None) -> None:
        self._reply = reply
        self._record = record
        self._tokens = tokens
        self.flush = reply.flush

    async def write(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        if self._tokens is not None:
            self._tokens.feed(data)
        await self._reply.write(data)


async def copy(answer: Answer, reply: Reply, watchdog: Watchdog, record: Record, tokens: TokenCount | None) -> None:
    """Pass on a whole answer. Raises AnswerCut with the client's answer begun; the caller cuts it."""
    await reply.start(answer.status, answer.reason, end_to_end(answer.headers, RESPONSE_DROP))
    await answer.pump(_Passing(reply, record, tokens), watchdog)
    await reply.finish()
