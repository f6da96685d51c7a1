"""What is decided of texts that callers choose and that come again and again: once, and within bounds of memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

T = TypeVar("T")

MOST_TARGETS = 1024
LONGEST_TARGET = 2048
"""Characters of a request target beyond which nothing is remembered of it."""
MOST_NAMES = 2048
LONGEST_NAME = 128
"""The same of spellings of a field's name."""


def of_target(decide: Callable[[str], T]) -> Callable[[str], T]:
    """Decorates what tells something of a request target, and of nothing else."""
    known = lru_cache(MOST_TARGETS)(decide)

    @wraps(decide)
    def asked(target: str) -> T:
        return known(target) if len(target) <= LONGEST_TARGET else decide(target)

    return asked


class BySpelling(dict[str, T]):
    """What `decide` tells of a header field by its name in lower case, as a mapping by the name as it was spelled."""

    def __init__(self, decide: Callable[[str], T]) -> None:
        super().__init__()
        self._decide = decide

    def __missing__(self, name: str) -> T:
        decided = self._decide(name.lower())
        if len(name) <= LONGEST_NAME:
            if len(self) >= MOST_NAMES:
                self.clear()
            self[name] = decided
        return decided
