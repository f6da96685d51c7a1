"""Answers of upstreams that keep the conversation, made here in OpenAI's dialect for clients of stored chats.

`Frames`, `BotFrames` and `Gathered` are those of the openai surface, for calls that store nothing. The others store the answer
before its end is told, and where its conversation is kept as soon as that is known.
"""

from __future__ import annotations

import orjson
from aiohttp import web

from balancer.clock import Clock
from balancer.conversations.base import Binding
from balancer.errors import ProxyError
from balancer.model import Record
from balancer.relay.speech import Told
from balancer.surfaces.base import ClientReply
from balancer.surfaces.conversations_answers import STREAM_FAILED, no_session
from balancer.surfaces.conversations_turns import StoredTurn
from balancer.surfaces.openai_bot_voice import StreamedBot
from balancer.surfaces.openai_voice import SESSION_FIELD, Gathered, Streamed
from balancer.web import json_answer
from balancer.wire import chat_chunks

__all__ = ["BotFrames", "Frames", "Gathered", "StoredFrames", "StoredWhole"]

_ERROR = {"type": "server_error", "message": STREAM_FAILED, "param": None, "code": "server_error"}
ERROR_FRAME = b"data: " + orjson.dumps({"error": _ERROR}) + b"\n\n"
"""The last frame of a stream that broke off."""


class Frames(Streamed):
    """Frames of one stream, with this surface's word for a failure."""

    async def fail(self, message: str) -> None:
        await self._last(ERROR_FRAME)


class BotFrames(StreamedBot):
    """The same for a bot's answer."""

    async def fail(self, error: ProxyError) -> None:
        await self._last(ERROR_FRAME)


class StoredFrames:
    """`relay.speak.Voice` as frames of one stream."""

    def __init__(
        self,
        reply: ClientReply,
        record: Record,
        clock: Clock,
        model: str,
        turn: StoredTurn,
        told: Told,
        *,
        usage: bool,
    ) -> None:
        self._reply = reply
        self._record = record
        self._clock = clock
        self._chunks = chat_chunks.Chunks(chat_chunks.new_id(), int(clock.wall()), model)
        self._turn = turn
        self._told = told
        self._usage = usage

    async def accepted(self, binding: Binding | None) -> None:
        await _bound(self._turn, binding, self._record)
        self._record.first_byte = self._clock.monotonic()
        await self._reply.start(200, "OK", chat_chunks.HEADERS)
        await self._write(self._chunks.role())

    async def delta(self, text: str) -> None:
        await self._write(self._chunks.content(text))

    async def reasoning(self, text: str) -> None:
        await self._write(self._chunks.reasoning(text))

    async def end(self, told: Told) -> None:
        if not await self._turn.commit(told):
            raise no_session()
        usage = self._chunks.usage(told.usage or chat_chunks.Usage()) if self._usage else b""
        await self._write(self._chunks.final() + usage + chat_chunks.DONE)
        await self._reply.finish()

    async def fail(self, error: ProxyError) -> None:
        await self._turn.spare(self._told)
        await self._write(ERROR_FRAME)
        await self._reply.finish()

    async def _write(self, data: bytes) -> None:
        self._record.bytes_out += len(data)
        await self._reply.write(data)


class StoredWhole:
    """`relay.speak.Voice` as one answer at the end."""

    def __init__(self, record: Record, clock: Clock, model: str, turn: StoredTurn) -> None:
        self._record = record
        self._clock = clock
        self._model = model
        self._turn = turn
        self.response: web.Response | None = None

    async def accepted(self, binding: Binding | None) -> None:
        await _bound(self._turn, binding, self._record)

    async def delta(self, text: str) -> None:
        """It waits for the end, in what was told."""

    async def reasoning(self, text: str) -> None:
        """As `delta`."""

    async def end(self, told: Told) -> None:
        if not await self._turn.commit(told):
            raise no_session()
        self._record.first_byte = self._clock.monotonic()
        whole = chat_chunks.completion(
            chat_chunks.new_id(),
            int(self._clock.wall()),
            self._model,
            told.text,
            reasoning=told.reasoning,
            usage=told.usage,
        )
        self.response = json_answer(200, whole)

    async def fail(self, error: ProxyError) -> None:
        """Until the end the client has been told nothing: it gets the error."""
        raise error


async def _bound(turn: StoredTurn, binding: Binding | None, record: Record) -> None:
    """The conversation is remembered, and its id told, before anything of the answer is."""
    await turn.bind(binding)
    if binding is not None:
        record.fields = (*(each for each in record.fields if each[0] != SESSION_FIELD), (SESSION_FIELD, binding.remote))
