"""A request's body: kept for repetition while it is small, passed on as it comes when it is not.

`gather()` reads ahead up to the replay limit, under one budget for the whole process. What ended within it can be sent any
number of times. What did not is sent once: its kept part first (given back piece by piece as it goes), the rest straight
from the client. Until the first piece of such a body has been taken, it can still go elsewhere.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

JOIN_LIMIT = 1 << 18
"""Bytes up to which a kept body is sent as one piece; a larger one goes in the pieces it came in, under back-pressure."""

OVERLAP = 1100
"""Bytes that two windows share: longer than any resource name or URI that is looked for (wire.resources.LONGEST)."""


class Source(Protocol):
    """Where a body comes from."""

    async def read(self) -> bytes:
        """The next piece; b"" at the end, again and again. Raises ProxyError (too large), ClientStalled, ClientGone."""
        ...


class Budget:
    """Bytes that all kept bodies together may take."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Whether `size` more bytes may be kept; counts them if so."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        self.used -= size


class Body:
    """One request's body. Use `gather()`, then `content()` once an attempt while `repeatable`, then `release()`."""

    __slots__ = (
        "_budget",
        "_limit",
        "_pieces",
        "_source",
        "_taken",
        "complete",
        "failure",
        "length",
        "size",
        "touched",
    )

    def __init__(self, source: Source | None, length: int | None, limit: int, budget: Budget) -> None:
        """`length`: the declared Content-Length, None for a chunked body; `source` None: there is no body at all."""
        self._source = source
        self._limit = limit
        self._budget = budget
        self._pieces: deque[bytes] = deque()
        self._taken = 0
        self.length = length
        self.size = 0
        """Bytes received from the client so far."""
        self.complete = source is None
        """The whole body is here."""
        self.touched = False
        """Part of it was handed on and not kept."""
        self.failure: BaseException | None = None
        """What the client's side broke with while a transport was reading."""

    @property
    def present(self) -> bool:
        """Whether the request has a body, an empty one included."""
        return self._source is not None

    @property
    def repeatable(self) -> bool:
        """Whether `content()` may be called (again)."""
        return not self.touched

    @property
    def fits(self) -> bool:
        """Whether it can be kept whole, as far as its declared length tells."""
        return self.length is None or self.length <= self._limit

    async def gather(self) -> None:
        """Read ahead up to the replay limit, the end, or the budget."""
        source = self._source
        while not self.complete and source is not None:
            piece = await source.read()
            if not piece:
                self.complete = True
                break
            self.size += len(piece)
            self._pieces.append(piece)
            self.complete = self.size == self.length
            if not self._budget.take(len(piece)):
                break
            self._taken += len(piece)
            if self._taken >= self._limit:
                break

    def kept(self) -> bytes:
        """What has been gathered, as one piece that is nobody else's."""
        return b"".join(self._pieces)

    def windows(self) -> Iterator[bytes]:
        """What has been gathered, in pieces that overlap by OVERLAP bytes: for looking at it without a second copy."""
        if self.size <= JOIN_LIMIT:
            yield self._joined()
            return
        tail = b""
        for piece in self._pieces:
            yield tail + piece
            tail = (tail + piece)[-OVERLAP:] if len(piece) < OVERLAP else piece[-OVERLAP:]

    def _joined(self) -> bytes:
        if len(self._pieces) > 1:
            whole = b"".join(self._pieces)
            self._pieces.clear()
            self._pieces.append(whole)
        return self._pieces[0] if self._pieces else b""

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """The body for one attempt: whole where it is small, else an iterator; None where the request has none."""
        if self._source is None:
            return None
        if self.complete and self.size <= JOIN_LIMIT:
            return self._joined()
        return self._replay() if self.complete else self._stream()

    async def _replay(self) -> AsyncIterator[bytes]:
        for piece in tuple(self._pieces):
            yield piece

    async def _stream(self) -> AsyncIterator[bytes]:
        assert self._source is not None
        self.touched = True
        while self._pieces:
            piece = self._pieces.popleft()
            self._give(len(piece))
            yield piece
        try:
            while piece := await self._source.read():
                self.size += len(piece)
                yield piece
        except BaseException as broken:
            self.failure = broken
            raise

    def _give(self, size: int) -> None:
        size = min(size, self._taken)
        self._taken -= size
        self._budget.give(size)

    def release(self) -> None:
        """Forget what is kept: the answer has begun, or nobody waits for one any more."""
        self._pieces.clear()
        self._give(self._taken)
        self.touched = self.touched or self._source is not None
