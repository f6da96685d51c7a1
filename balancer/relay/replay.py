"""A request's body: kept for repetition while it is small, passed on as it comes when it is not.

`gather()` reads ahead up to the replay limit, under one budget for the whole process. What ended within it can be sent any
number of times. What did not is sent once: its kept part first (given back piece by piece as it goes), the rest straight
from the client. Until the first piece of such a body has been taken, it can still go elsewhere.

Each attempt may splice the kept part (`Edit`): the kept bytes stay as they came, because the next upstream wants other splices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Protocol

from balancer.model import Edit

JOIN_LIMIT = 1 << 18
"""Bytes up to which a kept body is sent as one piece; a larger one goes in the pieces it came in, under back-pressure."""

OVERLAP = 1100
"""Bytes that two windows share: longer than any resource name or URI that is looked for (wire.resources.LONGEST)."""


class Source(Protocol):
    """Where a body comes from."""

    async def read(self) -> bytes:
        """The next piece; b"" at the end, again and again. Raises ProxyError (too large), ClientStalled, ClientGone."""
        ...


class Given:
    """A `Source` of what is here already."""

    __slots__ = ("_text",)

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def read(self) -> bytes:
        text, self._text = self._text, b""
        return text


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

    def windows(self) -> Iterable[bytes]:
        """What has been gathered, in pieces that overlap by OVERLAP bytes: for looking at it without a second copy."""
        return (self._joined(),) if self.size <= JOIN_LIMIT else self._overlapping()

    def _overlapping(self) -> Iterator[bytes]:
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

    def content(self, edits: Sequence[Edit] = ()) -> bytes | AsyncIterator[bytes] | None:
        """The body for one attempt: whole where it is small, else an iterator; None where the request has none.

        `edits` lie within the kept part, in order and without overlap.
        """
        if self._source is None:
            return None
        if self.complete and self.size <= JOIN_LIMIT:
            whole = self._joined()
            return b"".join(spliced((whole,), edits)) if edits else whole
        return self._replay(edits) if self.complete else self._stream(edits)

    def length_with(self, edits: Sequence[Edit]) -> int | None:
        """The length of `content(edits)` in bytes; None where the end is not here and was not declared."""
        length = self.size if self.complete else self.length
        return length if length is None else length + sum(len(new) - (end - start) for start, end, new in edits)

    async def _replay(self, edits: Sequence[Edit]) -> AsyncIterator[bytes]:
        for piece in spliced(tuple(self._pieces), edits):
            yield piece

    async def _stream(self, edits: Sequence[Edit]) -> AsyncIterator[bytes]:
        assert self._source is not None
        self.touched = True
        for piece in spliced(self._given_back(), edits):
            yield piece
        try:
            while piece := await self._source.read():
                self.size += len(piece)
                yield piece
        except BaseException as broken:
            self.failure = broken
            raise

    def _given_back(self) -> Iterator[bytes]:
        while self._pieces:
            piece = self._pieces.popleft()
            self._give(len(piece))
            yield piece

    def _give(self, size: int) -> None:
        size = min(size, self._taken)
        self._taken -= size
        self._budget.give(size)

    def release(self) -> None:
        """Forget what is kept: the answer has begun, or nobody waits for one any more."""
        if self._source is None or (self.touched and not self._pieces):
            return  # nothing is: it is called when the answer begins, and at the end
        self._pieces.clear()
        self._give(self._taken)
        self.touched = True


def spliced(pieces: Iterable[bytes], edits: Sequence[Edit]) -> Iterator[bytes]:
    """The pieces of a body with `edits` done, whose places count from the first piece's first byte."""
    if not edits:
        yield from pieces
        return
    waiting = iter((*edits, None))
    edit = next(waiting)
    place = 0  # of the byte behind all that was looked at
    for piece in pieces:
        begin, place, at = place, place + len(piece), 0
        while edit is not None and (edit[0] < place or edit[0] == edit[1] == place):
            start, end, new = edit
            if start >= begin:  # else its beginning was in an earlier piece
                if start - begin > at:
                    yield piece[at : start - begin]
                if new:
                    yield new
            at = max(at, min(end, place) - begin)
            if end > place:
                break
            edit = next(waiting)
        if at < len(piece):
            yield piece[at:] if at else piece
