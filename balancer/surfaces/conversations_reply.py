"""The ways of an answer back to a client of stored chats, where upstream and client speak the same dialect.

Bytes pass as they come. Those of a stored session are read on their way: what says that the answer is whole (`[DONE]`, or the
whole of an answer that is not streamed) is held back until the answer is committed. An upstream's 5xx is an error of ours.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from balancer.errors import AnswerBroken, ProxyError
from balancer.model import Headers, Record
from balancer.relay.replay import Budget
from balancer.relay.speech import Told
from balancer.surfaces.base import ClientReply, RelayedResponse
from balancer.wire.chat_reading import ChatReading, Delta, Event, Failed, Reasoning
from balancer.wire.headers import first

_MARK = re.compile(rb"[\r\n]data:[ \t]{0,8}\[DONE\]")
_BEGUN = re.compile(rb"[\r\n](?:d(?:a(?:t(?:a(?::[ \t]{0,8}(?:\[(?:D(?:O(?:N(?:E)?)?)?)?)?)?)?)?)?)?\Z")
"""The beginning of such a line, at the end of what is there."""


class PassingReply(ClientReply):
    """Passes all but an upstream's own 5xx, which is raised as ProxyError."""

    __slots__ = ()

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        if status >= 500:
            raise ProxyError(502, "upstream_error", f"The upstream answered {status}.")
        await super().start(status, reason, headers)


class Marker:
    """Finds `data: [DONE]` in a stream of any chunking."""

    __slots__ = ("_held", "found")

    def __init__(self) -> None:
        self._held = b"\n"
        """The last byte that has passed, as if a line had ended before the first, and what may become the marker."""
        self.found = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What may pass, and what is to be held back from the marker on; all behind that passes."""
        if self.found:
            return data, b""
        text = self._held + data
        mark = _MARK.search(text)
        if mark is not None:
            self.found = True
            return text[1 : mark.start() + 1], text[mark.start() + 1 :]
        begun = _BEGUN.search(text)
        place = len(text) - 1 if begun is None else begun.start()
        self._held = text[place:]
        return text[1 : place + 1], b""

    def end(self) -> bytes:
        """What was held back, and is no marker after all."""
        return b"" if self.found else self._held[1:]


class StoringReply:
    """A `relay.stream.Reply` that reads what passes to another. `commit` stores what `told` has; it is told whether the
    answer broke off. What it raises ends the call.
    """

    def __init__(
        self,
        request: web.Request,
        record: Record,
        told: Told,
        budget: Budget,
        commit: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._reply = PassingReply(request, record)
        self._told = told
        self._budget = budget
        self._commit = commit
        self._reading: ChatReading | None = None
        self._marker = Marker()
        self._whole: tuple[int, str, Headers] | None = None
        """The head of an answer that is not streamed: it waits for its body."""
        self._body: list[bytes] = []
        self._taken = 0
        self._failed = False

    @property
    def started(self) -> bool:
        return self._reply.started

    @property
    def response(self) -> RelayedResponse | None:
        return self._reply.response

    def flush(self) -> None:
        if self.started:
            self._reply.flush()

    def cut(self) -> None:
        self._reply.cut()

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """Raises ProxyError, AnswerBroken."""
        if status >= 300:
            await self._reply.start(status, reason, headers)
            return
        if (first(headers, "content-encoding") or "identity").strip().lower() != "identity":
            raise AnswerBroken("it has a content coding that was not asked for")
        self._reading = ChatReading(headers)
        if (first(headers, "content-type") or "").partition(";")[0].strip().lower() == "application/json":
            self.release()  # of an earlier attempt
            self._whole = (status, reason, headers)
        else:
            await self._reply.start(status, reason, headers)

    async def write(self, data: bytes) -> None:
        if self._reading is None:
            await self._reply.write(data)
        elif self._whole is not None:
            if not self._budget.take(len(data)):
                raise AnswerBroken("there is no room left to keep it (relay.buffer_budget)")
            self._taken += len(data)
            self._body.append(data)
        else:
            self._hear(self._reading.feed(data))
            passes, held = self._marker.feed(data)
            if passes:
                await self._reply.write(passes)
            if held:
                self._note()
                await self._commit(self._failed)
                await self._reply.write(held)

    async def finish(self) -> None:
        if self._reading is not None:
            if self._whole is not None:
                for piece in self._body:
                    self._reading.feed(piece)
            self._hear(self._reading.end())
            self._note()
            if not self._marker.found and self._said:
                await self._commit(self._failed or not self._reading.whole)
        if self._whole is not None:
            await self._reply.start(*self._whole)
            for piece in self._body:
                await self._reply.write(piece)
        elif rest := self._marker.end():
            await self._reply.write(rest)
        await self._reply.finish()

    @property
    def _said(self) -> bool:
        """Whether there is an answer to be stored: an empty one is one too, if it is whole."""
        assert self._reading is not None
        return bool(self._told.pieces or self._told.tool_calls) or (self._reading.whole and not self._failed)

    def _hear(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Delta(text=text):
                    self._told.said(text)
                case Failed():
                    self._failed = True
                case Reasoning():
                    pass

    def _note(self) -> None:
        assert self._reading is not None
        self._told.usage, self._told.tool_calls = self._reading.usage, self._reading.tool_calls

    def broke_off(self) -> None:
        """There will be no more of it: `told` has what there was."""
        if self._reading is not None:
            self._note()

    def release(self) -> None:
        """Forget the body."""
        self._budget.give(self._taken)
        self._taken = 0
        self._body.clear()
