"""What an answer tells of resources, learned before its client can use them.

A small JSON answer of a call that creates, looks up or lists is held back until it is whole (at most LESSON_LIMIT bytes; a
longer one passes on as it comes), its names are bound, and then it goes on its way byte for byte. In a dialect whose streams
tell, only the first event of one is held back, which names what the stream is about, and of a long answer the beginning is read.
Only a list that holds what other clients made is written anew, without those; and a list that cannot be read does not go on at
all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from balancer.errors import AnswerBroken
from balancer.model import Call, Effect, Headers
from balancer.routing.affinity import Affinity, Want
from balancer.wire.encoding import inflate
from balancer.wire.headers import first
from balancer.wire.naming import Naming
from balancer.wire.resources import Born
from balancer.wire.sse import Events

LESSON_LIMIT = 1 << 20
"""Bytes of an answer that are read for names, behind any content coding."""
LIST_LIMIT = 16 << 20
"""The same of a list, which must be read whole."""
BEGINNING = 1 << 14
"""Bytes of an answer in which its own name must stand, where the answer is too long to be held back."""
_UNREADABLE = frozenset({"application/x-protobuf", "application/protobuf"})


class Lesson:
    """One answer's lesson: who asked, who answered, and where to write it down."""

    def __init__(
        self,
        call: Call,
        want: Want,
        upstream: str,
        owner: str,
        affinity: Affinity,
        naming: Naming,
        now_called: Callable[[str], str] = str,
    ) -> None:
        """`owner`: who answered, by its present name; `now_called`: the present name of any owner."""
        self._call = call
        self._want = want
        self._upstream = upstream
        self._owner = owner
        self._affinity = affinity
        self._naming = naming
        self._now_called = now_called
        self._events = Events(LESSON_LIMIT)
        self._beginning: bytearray | None = None
        self._long = False
        self.streamed = False
        """The parts of the answer are to be shown as they come (`of_part`): the first ones may tell enough."""

    @property
    def limit(self) -> int:
        """Bytes of the answer that may be held back."""
        return LIST_LIMIT if self._call.effect is Effect.LIST else LESSON_LIMIT

    def wanted(self, headers: Headers) -> bool:
        """Whether this answer is to be held back and read. Raises AnswerBroken for a list that cannot be."""
        if self._call.effect not in (Effect.READ, Effect.LIST, Effect.CREATE):
            return False
        kind = (first(headers, "content-type") or "").partition(";")[0].strip().lower()
        plain = (first(headers, "content-encoding") or "identity").strip().lower() == "identity"
        tells = plain and self._call.effect is Effect.CREATE and self._naming.streams
        if kind == "text/event-stream":
            self.streamed = tells
            return tells
        if kind == "application/json":
            self._long = int(first(headers, "content-length") or 0) > self.limit
            if tells:
                self.streamed, self._beginning = True, bytearray()
            if not self._long or tells:
                return True
        if kind == "application/json" or kind in _UNREADABLE:
            self.too_long()
        return False

    async def of_part(self, part: bytes) -> bool:
        """Whether the body, with this next part of it, is all that there is to learn from; then it has been learned."""
        if self._beginning is not None:
            return await self._of_beginning(self._beginning, part)
        events = self._events.feed(part)
        if events:
            await self._learn(events[0].data)
        return bool(events)

    async def _of_beginning(self, known: bytearray, part: bytes) -> bool:
        """Learn once from the beginning of a JSON answer that may turn out too long; one that says so is let go on then."""
        missing = BEGINNING - len(known)
        if missing <= 0:
            return False
        known += part[:missing]
        if len(part) < missing:
            return False
        await self._learn(bytes(known))
        return self._long

    def too_long(self) -> None:
        """Raises AnswerBroken if the answer may hold what is not for this client."""
        if self._call.effect is Effect.LIST:
            raise AnswerBroken("its list cannot be read, and so not be checked for what other clients made")

    async def of_head(self) -> None:
        """What the status alone tells: something is gone, something was there, an upload has begun."""
        call = self._call
        root = self._naming.subject(call.path.partition("?")[0])
        if call.effect is Effect.DELETE and root is not None:
            await self._affinity.deleted(call, self._upstream, root)
        elif call.effect in (Effect.READ, Effect.CREATE):
            met = [Born(root)] if root is not None and root not in self._want.by_name else []
            if met or call.uploads:
                await self._affinity.learned(call, self._want, self._upstream, self._owner, met)

    async def of_body(self, headers: Headers, body: bytes) -> bytes | None:
        """Learn from a whole body. The text to be sent in its place, without content coding, if it must not go as it is.

        Raises AnswerBroken for a list that cannot be read.
        """
        text = inflate(body, first(headers, "content-encoding") or "", self.limit)
        if text is None or len(text) == self.limit > len(body):
            self.too_long()
        if not text:
            return None
        await self._learn(text)
        if self._call.effect is not Effect.LIST:
            return None
        return await self._without_hidden(text)

    async def _learn(self, text: bytes) -> None:
        resources = self._naming.born(text)
        await self._affinity.learned(self._call, self._want, self._upstream, self._owner, resources)

    async def _without_hidden(self, text: bytes) -> bytes | None:
        """A list answer without what other clients made; None if it holds nothing of them."""
        try:
            tree: Any = orjson.loads(text)
        except orjson.JSONDecodeError:
            self.too_long()
            return None
        changed = False
        for member, items in list(self._naming.items_of(tree)):
            kept = [item for item in items if not await self._hidden(item)]
            if len(kept) < len(items):
                tree[member], changed = kept, True
        return orjson.dumps(tree) if changed else None

    async def _hidden(self, item: Any) -> bool:
        root = self._naming.root_of(item)
        if root is None:
            return False
        return await self._affinity.hidden(self._call, self._upstream, root, self._owner, self._now_called)
