"""A request body behind a content coding, undone piece by piece (RFC 9110 section 8.4.1).

Never more than one piece is unpacked ahead, and never more than the limit in all: a bomb is refused while it is small.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

from balancer.errors import ProxyError
from balancer.relay.replay import Source

PIECE = 1 << 18
"""Bytes that are unpacked at a time."""


class _Unpacker(Protocol):
    def unpack(self, data: bytes) -> bytes:
        """Up to about PIECE bytes; `data` is b"" while `hungry` is False. Raises ValueError if the data is no good."""
        ...

    @property
    def hungry(self) -> bool:
        """All that was given is unpacked."""
        ...

    @property
    def whole(self) -> bool:
        """The end of the coded data has been seen."""
        ...


class _Zlib:
    """gzip and deflate; the latter with and without the zlib frame (RFC 9110 section 8.4.1.2)."""

    def __init__(self, gzip: bool) -> None:
        self._stream = zlib.decompressobj(31) if gzip else None
        self._waiting = b""
        self._full = False

    def unpack(self, data: bytes) -> bytes:
        data = self._waiting + data
        stream = self._stream
        if stream is None:
            if len(data) < 2:
                self._waiting = data
                return b""
            self._stream = stream = zlib.decompressobj(15 if _framed(data) else -15)
        try:
            piece = stream.decompress(data, PIECE)
        except zlib.error as broken:
            raise ValueError(str(broken)) from broken
        if stream.eof and stream.unused_data:
            raise ValueError("data behind the end")
        self._waiting = stream.unconsumed_tail
        self._full = len(piece) >= PIECE
        return piece

    @property
    def hungry(self) -> bool:
        return self._stream is None or not (self._waiting or self._full)

    @property
    def whole(self) -> bool:
        return self._stream is not None and self._stream.eof


def _framed(data: bytes) -> bool:
    """Whether deflated data begins with the two bytes of a zlib frame (RFC 1950 section 2.2)."""
    return data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0


class _Brotli:
    """RFC 7932."""

    def __init__(self) -> None:
        import brotli  # type: ignore[import-untyped]  # noqa: PLC0415 - few requests need it

        self._error: type[Exception] = brotli.error
        self._stream = brotli.Decompressor()
        self._full = False

    def unpack(self, data: bytes) -> bytes:
        try:
            piece: bytes = self._stream.process(data, output_buffer_limit=PIECE)
        except self._error as broken:
            raise ValueError(str(broken)) from broken
        self._full = len(piece) >= PIECE
        return piece

    @property
    def hungry(self) -> bool:
        return not self._full and bool(self._stream.can_accept_more_data())

    @property
    def whole(self) -> bool:
        return bool(self._stream.is_finished())


_CODINGS: dict[str, Callable[[], _Unpacker]] = {
    "gzip": lambda: _Zlib(gzip=True),
    "x-gzip": lambda: _Zlib(gzip=True),
    "deflate": lambda: _Zlib(gzip=False),
    "br": _Brotli,
}


class CodedBody:
    """A `relay.replay.Source` that undoes the coding of another one."""

    __slots__ = ("_ended", "_left", "_limit", "_source", "_unpacker")

    def __init__(self, source: Source, coding: str, limit: int) -> None:
        """`limit`: bytes of the result. Raises ProxyError 415 for a coding that is not known here."""
        made = _CODINGS.get(coding.strip().lower())
        if made is None:
            known = ", ".join(_CODINGS)
            message = f"The content coding {coding[:40]!r} is not understood here; known are {known}."
            raise ProxyError(415, "unsupported_encoding", message, close=True)
        self._source = source
        self._unpacker = made()
        self._limit = self._left = limit
        self._ended = False

    async def read(self) -> bytes:
        unpacker = self._unpacker
        while not self._ended:
            data = await self._source.read() if unpacker.hungry else b""
            if not data and unpacker.hungry:
                self._ended = True
                if not unpacker.whole:
                    raise _broken()
                break
            try:
                piece = unpacker.unpack(data)
            except ValueError:
                raise _broken() from None
            if piece:
                self._left -= len(piece)
                if self._left < 0:
                    message = f"The request body is larger than {self._limit} bytes when it is unpacked."
                    raise ProxyError(413, "request_too_large", message, close=True)
                return piece
        return b""


def _broken() -> ProxyError:
    return ProxyError(400, "invalid_json", "The request body does not follow its Content-Encoding.", close=True)
