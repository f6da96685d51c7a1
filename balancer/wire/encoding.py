"""Content codings, as far as we must look inside a body that we otherwise leave as it is (RFC 9110 section 8.4)."""

from __future__ import annotations

import zlib


def inflate(data: bytes, coding: str, limit: int) -> bytes | None:
    """The first `limit` bytes behind a coding; None if the coding is not known here or the data does not follow it.

    Never more than `limit` bytes are produced, whatever the ratio.
    """
    match coding.strip().lower():
        case "" | "identity":
            return data[:limit]
        case "gzip" | "x-gzip":
            return _unpack(data, 31, limit)
        case "deflate":
            whole = _unpack(data, 15, limit)
            return _unpack(data, -15, limit) if whole is None else whole
        case _:
            return None


def _unpack(data: bytes, window: int, limit: int) -> bytes | None:
    unpacker = zlib.decompressobj(window)
    try:
        return unpacker.decompress(data, limit)
    except zlib.error:
        return None
