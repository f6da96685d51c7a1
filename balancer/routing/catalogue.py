"""What an upstream itself says that it serves: its list of models, kept for an hour.

    age             listed                  asked again
    never had       nothing yet             at the first need, which waits; after a failure 30 s later
    up to 1 h       the list                no
    older           the old list            in the background, at the next need; after a failure 30 s later

So a list that was had once is never lost, and whoever needs one waits for the first only. Pure: `relay.catalogue` asks.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Protocol

import orjson

KEPT = 3600.0
"""Seconds for which a list is good."""
RETRY = 30.0
"""Seconds after a failure until the upstream is asked again."""

Listing = Mapping[str, Mapping[str, Any]]
"""The entries of a catalogue by id, each with the members that the upstream gave it; ids without `models/`."""


class Unsettled(enum.Enum):
    """What is known of a catalogue that the upstream has to be asked for."""

    DUE = "due"


class Catalogues(Protocol):
    """Knows the catalogues of all upstreams."""

    def kept(self, upstream: str) -> Listing | Unsettled | None:
        """What `listing` would answer at once, without asking anybody; DUE where it has to ask."""
        ...

    async def listing(self, upstream: str) -> Listing | None:
        """What this upstream lists; None: it has no catalogue, or it could not be had yet. Raises nothing."""
        ...


class _NoCatalogues:
    def kept(self, upstream: str) -> Listing | None:
        return None

    async def listing(self, upstream: str) -> Listing | None:
        return None


NO_CATALOGUES: Catalogues = _NoCatalogues()


class Catalogue:
    """One upstream's list and its age. Times are monotonic seconds."""

    __slots__ = ("_again", "entries")

    def __init__(self) -> None:
        self.entries: Listing | None = None
        self._again = float("-inf")

    def due(self, now: float) -> bool:
        """Whether the upstream is to be asked."""
        return now >= self._again

    def had(self, entries: Listing, now: float) -> None:
        self.entries, self._again = entries, now + KEPT

    def failed(self, now: float) -> None:
        """The old list, if there is one, goes on being the list."""
        self._again = now + RETRY


def entries_of(body: bytes) -> Listing | None:
    """The entries of a list answer in OpenAI's dialect; None where it is none. What has no id is left out."""
    try:
        tree: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    data = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(data, list):
        return None
    entries: dict[str, Mapping[str, Any]] = {}
    for each in data:
        id_ = each.get("id") if isinstance(each, dict) else None
        if isinstance(id_, str) and (bare := id_.removeprefix("models/")):
            entries[bare] = {**each, "id": bare}
    return entries
