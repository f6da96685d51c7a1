"""Answers in OpenAI's dialect that are made here, from what an upstream says that keeps the conversation: streamed, and whole."""

from __future__ import annotations

from aiohttp import web

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Record
from balancer.relay.keepalive import KeepAlive
from balancer.relay.replay import Budget
from balancer.surfaces.base import ClientReply
from balancer.web import json_answer
from balancer.wire import chat_chunks
from balancer.wire.achuan import answer_text

SESSION_FIELD = "x-session-id"


class _Known:
    """Tells the client which conversation the answer is of, whatever the answer turns out to be, in a header `field`."""

    field = SESSION_FIELD

    def __init__(self, record: Record) -> None:
        self._record = record

    def known(self, conversation: str | None) -> None:
        fields = tuple(field for field in self._record.fields if field[0] != self.field)
        self._record.fields = fields if conversation is None else (*fields, (self.field, conversation))


class OneStream(_Known):
    """The frames of one stream. `usage`: its frame was asked for; `keepalive`: seconds of silence before a comment."""

    def __init__(
        self, reply: ClientReply, record: Record, clock: Clock, model: str, *, usage: bool, keepalive: float | None
    ) -> None:
        super().__init__(record)
        self._reply = reply
        self._clock = clock
        self._chunks = chat_chunks.Chunks(chat_chunks.new_id(), int(clock.wall()), model)
        self._usage = usage
        self._silence = keepalive
        self._keepalive: KeepAlive | None = None

    @property
    def begun(self) -> bool:
        return self._reply.started

    async def delta(self, text: str) -> None:
        await self._write(self._chunks.content(text))

    def close(self) -> None:
        """Nothing is told any more."""
        if self._keepalive is not None:
            self._keepalive.stop()

    async def _open(self) -> None:
        self._record.first_byte = self._clock.monotonic()
        await self._reply.start(200, "OK", chat_chunks.HEADERS)
        if self._silence is not None:
            self._keepalive = KeepAlive(self._reply, self._record, self._silence)
        await self._write(self._chunks.role())

    async def _whole(self, usage: chat_chunks.Usage) -> None:
        counted = self._chunks.usage(usage) if self._usage else b""
        await self._last(self._chunks.final() + counted + chat_chunks.DONE)

    async def _last(self, data: bytes) -> None:
        self.close()
        await self._write(data)
        await self._reply.finish()

    async def _write(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        if self._keepalive is None:
            await self._reply.write(data)
            return
        self._keepalive.passing(data)
        await self._reply.write(data)
        self._keepalive.passed()


class Streamed(OneStream):
    """`relay.listening.Voice` as frames of one stream."""

    async def begin(self) -> None:
        await self._open()

    async def end(self, text: str) -> None:
        await self._whole(chat_chunks.Usage())

    async def fail(self, message: str) -> None:
        await self._last(chat_chunks.error_frame(message))


class OneAnswer(_Known):
    """One answer at the end. What is gathered until then counts against `budget`."""

    begun = False

    def __init__(self, record: Record, clock: Clock, model: str, budget: Budget) -> None:
        super().__init__(record)
        self._clock = clock
        self._model = model
        self._budget = budget
        self._deltas: list[str] = []
        self._taken = 0
        self.response: web.Response | None = None

    async def delta(self, text: str) -> None:
        self._take(text)
        self._deltas.append(text)

    def close(self) -> None:
        """Nothing is gathered any more."""
        self._deltas.clear()
        self._budget.give(self._taken)
        self._taken = 0

    def _take(self, text: str) -> None:
        if not self._budget.take(len(text)):
            message = "Too many answers are being gathered at the moment. Ask again, or ask for a stream."
            raise ProxyError(503, "buffer_exhausted", message, retry_after=1)
        self._taken += len(text)

    def _answer(self, content: str, *, reasoning: str = "", usage: chat_chunks.Usage | None = None) -> None:
        self._record.first_byte = self._clock.monotonic()
        created = int(self._clock.wall())
        identity = chat_chunks.new_id()
        body = chat_chunks.completion(identity, created, self._model, content, reasoning=reasoning, usage=usage)
        self.response = json_answer(200, body)


class Gathered(OneAnswer):
    """`relay.listening.Voice` as one answer at the end."""

    async def begin(self) -> None:
        self.close()

    async def end(self, text: str) -> None:
        self._answer(answer_text(self._deltas, text))

    async def fail(self, message: str) -> None:
        """Never: until the end the client has been told nothing."""
        raise AssertionError(message)
