"""What an answer tells of resources, learned before its client can use them.

A small JSON answer of a call that creates, looks up or lists is held back until it is whole (at most LESSON_LIMIT bytes; a
longer one passes on as it comes), its names are bound, and then it goes on its way byte for byte. Only a list that holds
what other clients made is written anew, without those.
"""

from __future__ import annotations

from typing import Any

import orjson

from balancer.model import Call, Effect, Headers
from balancer.routing.affinity import Affinity, Want
from balancer.wire.encoding import inflate
from balancer.wire.headers import first
from balancer.wire.resources import Born, Scanner, born, root_of

LESSON_LIMIT = 1 << 20
"""Bytes of an answer that are read for names, behind any content coding."""


class Lesson:
    """One answer's lesson: who asked, who answered, and where to write it down."""

    def __init__(self, call: Call, want: Want, upstream: str, owner: str, affinity: Affinity, scanner: Scanner) -> None:
        self._call = call
        self._want = want
        self._upstream = upstream
        self._owner = owner
        self._affinity = affinity
        self._scanner = scanner

    def wanted(self, headers: Headers) -> bool:
        """Whether this answer is to be held back and read."""
        if self._call.effect not in (Effect.READ, Effect.LIST, Effect.CREATE):
            return False
        kind = (first(headers, "content-type") or "").partition(";")[0].strip().lower()
        return kind == "application/json" and int(first(headers, "content-length") or 0) <= LESSON_LIMIT

    async def of_head(self) -> None:
        """What the status alone tells: something is gone, something was there, an upload has begun."""
        call = self._call
        if call.effect is Effect.DELETE:
            for root in call.names:
                await self._affinity.deleted(call, self._upstream, root)
        elif call.effect in (Effect.READ, Effect.CREATE):
            met = [Born(root) for root in call.names if root not in self._want.by_name]
            if met or call.uploads:
                await self._affinity.learned(call, self._want, self._upstream, self._owner, met)

    async def of_body(self, headers: Headers, body: bytes) -> bytes | None:
        """Learn from a whole body. The text to be sent in its place, without content coding, if it must not go as it is."""
        text = inflate(body, first(headers, "content-encoding") or "", LESSON_LIMIT)
        if not text:
            return None
        resources = born(text)
        for each in resources:
            self._scanner.learn(each.root.partition("/")[0])
        await self._affinity.learned(self._call, self._want, self._upstream, self._owner, resources)
        if self._call.effect is not Effect.LIST:
            return None
        hidden = {each.root for each in resources if await self._affinity.hidden(self._call, self._upstream, each.root)}
        return _without(text, hidden) if hidden else None


def _without(text: bytes, hidden: set[str]) -> bytes:
    """A list answer without the items whose name is hidden."""
    tree: dict[str, Any] = orjson.loads(text)
    for member, items in tree.items():
        if isinstance(items, list):
            tree[member] = [item for item in items if not _is_hidden(item, hidden)]
    return orjson.dumps(tree)


def _is_hidden(item: Any, hidden: set[str]) -> bool:
    return isinstance(item, dict) and root_of(str(item.get("name", ""))) in hidden
