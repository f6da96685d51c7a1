"""One turn of a conversation, said to an upstream of any kind: for surfaces that own the stored history.

A surface says what was said so far and what of it is new (`Speech`), and is told what comes (`Voice`):

    accepted → delta, reasoning … → end | fail

Until `accepted` a failure is a ProxyError that is raised; from then on it is told by `fail`, and `speak` returns. What has been
said until now stands in `Told`, also for one who stops listening: cancelling `speak` ends the call to the upstream.

| the upstream's kind | what travels |
|---|---|
| speaks OpenAI's dialect | a streamed `/chat/completions` with all messages, on the session's key while that is ready |
| keeps the conversation | the new messages, while the binding holds; else all, in a conversation that is made for them |
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from balancer.errors import AnswerBroken, AnswerCut, AnswerStalled, ProxyError
from balancer.model import Call, Choice, Edit, Headers, Record
from balancer.relay.relay import relay
from balancer.relay.replay import Body, Given
from balancer.relay.speak_kept import say_in_session, say_to_bot
from balancer.relay.speech import Means, Refused, Speech, Told, Voice
from balancer.upstreams.conversing import ConversingKind
from balancer.upstreams.coze import CozeKind
from balancer.wire import chat_reading, openai
from balancer.wire.chat_reading import ChatReading
from balancer.wire.headers import first
from balancer.wire.loose_json import dump

ERROR_LIMIT = 1 << 20
"""Bytes that are kept of an upstream's error."""


async def speak(speech: Speech, voice: Voice, told: Told, means: Means, record: Record) -> None:
    """Say it, and hand on what comes. Raises ProxyError (Refused among them) while the voice has not been told `accepted`."""
    choice = speech.choices[0]
    match means.rooms.upstreams[choice.upstream].kind:
        case CozeKind() as kind:
            await say_to_bot(speech, choice, kind, voice, told, means.rooms, record)
        case ConversingKind():
            await say_in_session(speech, choice, voice, told, means.rooms, record)
        case _:
            await _pass(speech, voice, told, means, record)


async def _pass(speech: Speech, voice: Voice, told: Told, means: Means, record: Record) -> None:
    """To an upstream that speaks the dialect."""
    text = dump(
        {
            **speech.members,
            "model": speech.choices[0].model or "",
            "messages": list(speech.messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    asked = openai.read(text)

    def edits(choice: Choice) -> Sequence[Edit]:
        limit = means.members.get(choice.upstream)
        return openai.edits(asked, model=choice.model, maximum=speech.client.max_tokens, limit_member=limit)

    call = Call(
        surface=speech.surface,
        dialect="openai",
        method="POST",
        path="/chat/completions",
        headers=[
            ("Content-Type", "application/json"),
            ("Accept", "text/event-stream"),
            ("Accept-Encoding", "identity"),
        ],
        client=speech.client,
        choices=speech.choices,
        edits=edits,
        session=speech.session,
        repeatable=True,
    )
    heard = _Heard(voice, told)
    await relay(call, Body(Given(text), len(text), len(text), means.budget), heard, means.rooms, record)
    await heard.conclude(record)


class _Heard:
    """A `relay.stream.Reply` that reads the answer instead of passing it on."""

    def __init__(self, voice: Voice, told: Told) -> None:
        self._voice = voice
        self._told = told
        self._reading: ChatReading | None = None
        self._refusal: Refused | None = None
        self._failure: ProxyError | None = None
        self.started = False

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        if status >= 300:
            self.started = True
            self._refusal = Refused(status, retry_after=_delay(headers))
            return
        if (first(headers, "content-encoding") or "identity").strip().lower() != "identity":
            raise AnswerBroken("it has a content coding that was not asked for")
        self._reading = ChatReading(headers)
        self.started = True
        await self._voice.accepted(None)

    def flush(self) -> None:
        """Nothing is held back."""

    async def write(self, data: bytes) -> None:
        if self._reading is not None:
            await self._hear(self._reading.feed(data))
        elif self._refusal is not None and len(self._refusal.body) < ERROR_LIMIT:
            self._refusal.body += data

    async def finish(self) -> None:
        if self._reading is None:
            return
        await self._hear(self._reading.end())
        if self._failure is None and not self._reading.whole:
            raise AnswerCut("it ended without its last event")

    def cut(self) -> None:
        """The relay does so while it handles what went wrong."""
        self._failure = self._failure or _broken_off(sys.exception())

    async def _hear(self, events: Sequence[chat_reading.Event]) -> None:
        for event in events:
            if self._failure is not None:
                return
            match event:
                case chat_reading.Delta(text=text):
                    self._told.said(text)
                    await self._voice.delta(text)
                case chat_reading.Reasoning(text=text):
                    self._told.thought(text)
                    await self._voice.reasoning(text)
                case chat_reading.Failed():
                    self._failure = _broken_off(None)

    async def conclude(self, record: Record) -> None:
        """The relay is done: the voice learns how it ended. Raises Refused."""
        if self._refusal is not None:
            raise self._refusal
        reading = self._reading
        assert reading is not None  # the relay raises what is no answer
        if self._failure is not None:
            record.error = record.error or "the upstream gave up in the middle of its answer"
            await self._voice.fail(self._failure)
            return
        told = self._told
        told.finish_reason, told.usage, told.tool_calls = (
            reading.finish_reason or "stop",
            reading.usage,
            reading.tool_calls,
        )
        await self._voice.end(told)


def _broken_off(cause: BaseException | None) -> ProxyError:
    if isinstance(cause, AnswerStalled):
        return ProxyError(504, "upstream_timeout", "The upstream fell silent in the middle of its answer.")
    return ProxyError(502, "upstream_error", "The upstream's answer broke off.")


def _delay(headers: Headers) -> float | None:
    value = first(headers, "retry-after")
    return float(value) if value is not None and value.strip().isdigit() else None
