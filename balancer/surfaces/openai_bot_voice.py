"""Answers of bots in OpenAI's dialect, streamed and whole: what a model thought before it answered is told beside its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Record
from balancer.relay.replay import Budget
from balancer.surfaces.base import ClientReply
from balancer.surfaces.openai_voice import OneAnswer, OneStream
from balancer.upstreams.turns import Known
from balancer.wire import chat_chunks
from balancer.wire.chat_chunks import Usage

CONVERSATION_FIELD = "x-conversation-id"

Remember = Callable[[Known], Awaitable[None]]
"""Keeps a conversation, before the client learns of it."""


class StreamedBot(OneStream):
    """`relay.chatting.ChatVoice` as frames of one stream."""

    field = CONVERSATION_FIELD

    def __init__(
        self,
        reply: ClientReply,
        record: Record,
        clock: Clock,
        model: str,
        remember: Remember,
        *,
        usage: bool,
        keepalive: float | None,
    ) -> None:
        super().__init__(reply, record, clock, model, usage=usage, keepalive=keepalive)
        self._remember = remember

    async def begin(self, session: Known) -> None:
        await self._remember(session)
        self.known(session.id)
        await self._open()

    async def reasoning(self, text: str) -> None:
        await self._write(self._chunks.reasoning(text))

    async def end(self, usage: Usage) -> None:
        await self._whole(usage)

    async def fail(self, error: ProxyError) -> None:
        await self._last(chat_chunks.error_frame(error.message))


class GatheredBot(OneAnswer):
    """`relay.chatting.ChatVoice` as one answer at the end."""

    field = CONVERSATION_FIELD

    def __init__(self, record: Record, clock: Clock, model: str, remember: Remember, budget: Budget) -> None:
        super().__init__(record, clock, model, budget)
        self._remember = remember
        self._thoughts: list[str] = []

    async def begin(self, session: Known) -> None:
        await self._remember(session)
        self.known(session.id)

    async def reasoning(self, text: str) -> None:
        self._take(text)
        self._thoughts.append(text)

    async def end(self, usage: Usage) -> None:
        self._answer("".join(self._deltas), reasoning="".join(self._thoughts), usage=usage)

    async def fail(self, error: ProxyError) -> None:
        """Until the end the client has been told nothing: it gets the error."""
        raise error
