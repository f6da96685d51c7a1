"""Models that are made for sizes and counts, named after what they answer: bytes-1MiB, stand-in-bytes-300, stand-in-events-7."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

EVENT_BYTES = 64 << 10
"""The size of one event of a stream of bytes."""
_BYTES = re.compile(r"(?:stand-in-)?bytes-(\d+)(KiB|MiB|GiB)?")
_EVENTS = re.compile(r"stand-in-events-(\d+)")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def scripted(model: str) -> bool:
    """Whether the name itself says what the model does."""
    return _BYTES.fullmatch(model) is not None or _EVENTS.fullmatch(model) is not None


def wanted_bytes(model: str) -> int:
    """Bytes that the model's name asks for, 0 if it asks for none."""
    match = _BYTES.fullmatch(model)
    return int(match[1]) * _UNITS[match[2]] if match else 0


def wanted_events(model: str) -> int:
    """Events that the model's name asks for, 0 if it asks for none."""
    match = _EVENTS.fullmatch(model)
    return int(match[1]) if match else 0


async def filled(head: bytes, size: int, tail: bytes) -> AsyncGenerator[bytes, None]:
    """`size` bytes in all: the head, as much filler as it takes, the tail."""
    yield head
    left = size - len(head) - len(tail)
    piece = b"x" * EVENT_BYTES
    while left > 0:
        yield piece[: min(left, EVENT_BYTES)]
        left -= EVENT_BYTES
    yield tail
