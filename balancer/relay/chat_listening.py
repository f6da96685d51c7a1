"""A bot's answer, read as it comes and told to the client in the client's dialect: events, or looks at a chat that has none.

Nothing of it reaches the client before the event that says that the chat was made. A slow client slows the upstream, since the
next piece is read when the last one has been told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from balancer.errors import AnswerBroken, AnswerCut, AnswerLost, AnswerStalled, ConnectFailed, ProxyError, UpstreamError
from balancer.model import OK, Headers, Judgement, Key, Verdict
from balancer.relay.asking import Asking, whole
from balancer.relay.listening import LINGER
from balancer.relay.transport import Answer
from balancer.relay.watchdog import FIRST_BYTE, Watchdog
from balancer.upstreams.base import ERROR_BODY_LIMIT
from balancer.upstreams.conversing import Finding, Question
from balancer.upstreams.coze import POLL, CozeFinding, CozeKind, cut
from balancer.upstreams.coze_turns import Outcome
from balancer.upstreams.turns import Answered, Failed, Known
from balancer.wire import coze
from balancer.wire.chat_chunks import Usage
from balancer.wire.headers import first

LONGEST_LIST = 16 << 20
"""Bytes of a list of messages: an answer, where that is no stream."""

Tell = Callable[[Finding | UpstreamError, str], ProxyError]
"""How the caller learns of a failure. The text is the finding's words, masked, or what the error says."""


class ChatVoice(Protocol):
    """The client's side of a turn, in its dialect. Raises ClientGone once the client has left."""

    @property
    def begun(self) -> bool:
        """The client is told what comes as it comes."""
        ...

    async def begin(self, session: Known) -> None:
        """The chat was made, in this conversation: what follows is the answer."""
        ...

    async def delta(self, text: str) -> None: ...

    async def reasoning(self, text: str) -> None: ...

    async def end(self, usage: Usage) -> None:
        """The answer is whole."""
        ...

    async def fail(self, error: ProxyError) -> None:
        """It broke off."""
        ...


@dataclass(slots=True, eq=False)
class Sides:
    """Both sides of a turn on its way: the client's, and the upstream's."""

    voice: ChatVoice
    asking: Asking
    kind: CozeKind
    tell: Tell
    began: bool = False
    """The chat was made: nothing is sent again, and the voice is told of what becomes of it."""

    def told(self, cause: Finding | UpstreamError) -> ProxyError:
        """How the client learns of a failure. Key text in the upstream's words is masked before anything is cut off them."""
        words = cause.text if isinstance(cause, Finding) else str(cause)
        masked = self.asking.rooms.mask(words.encode("utf-8", "replace")).decode("utf-8", "replace")
        return self.tell(cause, masked)

    async def broke_off(self, cause: Finding | UpstreamError) -> Outcome:
        """What it means that there will be no answer, or no more of it."""
        error = self.told(cause)
        if not self.began:
            return Failed(cause, error)
        self.asking.record.error = f"cut: {error.code}"
        await self.voice.fail(error)
        return Answered()

    async def send(self, question: Question) -> Answer:
        """Raises as `Transport.send` does."""
        content = question.content or None
        return await self.asking.upstream.transport.send(
            question.outbound, content, None if content is None else len(content)
        )

    async def exchange(
        self, question: Question, watchdog: Watchdog, limit: int = ERROR_BODY_LIMIT
    ) -> tuple[int, Headers, bytes]:
        """A question whose answer is read whole. `limit`: its bytes."""
        watchdog.phase(FIRST_BYTE)
        answer = await self.send(question)
        try:
            self.asking.upstream.reach.answered()
            return answer.status, answer.headers, await whole(answer, watchdog, limit)
        finally:
            answer.close()


class ChatListener:
    """One answer to a chat. A sink for its bytes. `named`: the chat was asked for in a conversation."""

    def __init__(self, sides: Sides, key: Key, *, named: bool) -> None:
        self._sides = sides
        self._key = key
        self._named = named
        self._reading = sides.kind.reading()
        self._patience: asyncio.Timeout | None = None
        self._usage = Usage()
        self._failure: coze.Failure | None = None
        self._told = False
        self.began: coze.Began | None = None
        self.over = False
        """The chat has ended, as far as was heard."""
        self.silent = False
        """Nobody listens any more: only the chat's id is wanted."""

    async def hear(self, answer: Answer, watchdog: Watchdog) -> tuple[Judgement, Outcome]:
        """What the answer comes to, for the key and for the turn. Raises UpstreamError."""
        kind, status, headers = self._sides.kind, answer.status, answer.headers
        if status >= 300 or not coze.streams(headers):
            found = kind.read(status, headers, await whole(answer, watchdog), named=self._named)
            if isinstance(found, CozeFinding):
                return found.judgement, Failed(found, self._sides.told(found))
            return await self._polled(found.data, headers, watchdog)
        if (first(headers, "content-encoding") or "identity").strip().lower() != "identity":
            raise AnswerBroken("its answer has a content coding that was not asked for")
        await self._take(answer, watchdog)
        if self._failure is not None:
            return await self._failed(kind.failed(self._failure, headers, named=self._named))
        if self._reading.whole:
            await self._end()
            return OK, Answered()
        self.over = True
        return await self._failed(cut(began=self.began is not None))

    async def identify(self, answer: Answer, watchdog: Watchdog) -> None:
        """Read no further than to the chat's id, and tell nobody. Raises UpstreamError."""
        if coze.streams(answer.headers):
            with contextlib.suppress(_Identified):
                await answer.pump(_UntilBegan(self), watchdog)
            return
        found = self._sides.kind.read(answer.status, answer.headers, await whole(answer, watchdog), named=self._named)
        seen = coze.chat_of(found.data) if isinstance(found, coze.Good) else None
        self.began = seen.began if seen is not None else None

    async def _take(self, answer: Answer, watchdog: Watchdog) -> None:
        """Read the events to their end, or to the one that makes the answer whole and a moment longer."""
        try:
            async with asyncio.timeout(None) as self._patience:
                await answer.pump(self, watchdog)
        except TimeoutError:
            pass  # of ours: what has ended may stay open
        except AnswerCut as broken:
            await self.write(answer.unread())  # the chat may have been made all the same
            ended = self.over or self._reading.whole
            if not ended and (isinstance(broken, AnswerStalled) or self.began is not None):
                raise
        finally:
            self._patience = None
        await self._each(self._reading.end())

    async def _failed(self, finding: CozeFinding) -> tuple[Judgement, Outcome]:
        return finding.judgement, await self._sides.broke_off(finding)

    def flush(self) -> None:
        """Nothing is held back."""

    async def write(self, data: bytes) -> None:
        if not self.over:
            await self._each(self._reading.feed(data))

    async def _each(self, events: Iterable[coze.Event]) -> None:
        for event in events:
            if self.over or (self.silent and self.began is not None):
                return
            match event:
                case coze.Began():
                    await self._begin(event)
                case coze.Failed(failure=failure):
                    self._failure = failure
                    self._finish()
                case coze.Done():
                    if self._reading.whole and not self.silent:
                        await self._end()
                    self._finish()
                case coze.Completed(usage=usage):
                    self._usage = usage
                    self._soon()
                case _:
                    await self._tell(event)

    async def _begin(self, began: coze.Began) -> None:
        self.began = began
        if self.silent:
            return
        sides = self._sides
        sides.began = True
        owner = sides.asking.upstream.pool.owner_of(self._key.fingerprint)
        await sides.voice.begin(Known(began.conversation, owner))
        if sides.voice.begun:
            sides.asking.heard()
            sides.asking.record.first_byte = sides.asking.now()

    async def _tell(self, event: coze.Delta | coze.Reasoning) -> None:
        if self.silent or self.began is None:
            return
        match event:
            case coze.Delta(text=text):
                await self._sides.voice.delta(text)
            case coze.Reasoning(text=text):
                await self._sides.voice.reasoning(text)

    async def _end(self) -> None:
        if not self._told:
            self._told = True
            self._sides.asking.heard()
            await self._sides.voice.end(self._usage)

    def _finish(self) -> None:
        """Nothing that follows counts."""
        self.over = True
        self._soon()

    def _soon(self) -> None:
        """What is still to come must come within a moment."""
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + LINGER)

    # A chat that is no stream

    async def _polled(self, data: object, headers: Headers, watchdog: Watchdog) -> tuple[Judgement, Outcome]:
        """Look at it until it has ended, then at what it said."""
        kind, key, now = self._sides.kind, self._key, self._sides.asking.now
        seen = coze.chat_of(data)
        if seen is None:
            return await self._failed(kind.find(200, headers, b""))
        began = seen.began
        await self._begin(began)
        limit = self._sides.asking.upstream.timeouts.first_byte
        until = None if limit is None else now() + limit
        while seen is None or seen.outcome is None:
            if until is not None and now() > until:
                raise AnswerStalled("no answer within the time allowed")
            await asyncio.sleep(POLL)
            found = await self._look(kind.retrieve(began, key), watchdog)
            if isinstance(found, CozeFinding):
                return await self._failed(found)
            seen = coze.chat_of(found.data)
        self.over = True
        if isinstance(seen.outcome, coze.Failed):
            return await self._failed(kind.failed(seen.outcome.failure, headers, named=self._named))
        self._usage = seen.outcome.usage
        found = await self._look(kind.messages(began, key), watchdog, LONGEST_LIST)
        if isinstance(found, CozeFinding):
            return await self._failed(found)
        for event in coze.answers(found.data):
            await self._tell(event)
        await self._end()
        return OK, Answered()

    async def _look(
        self, question: Question, watchdog: Watchdog, limit: int = ERROR_BODY_LIMIT
    ) -> coze.Good | CozeFinding:
        """What the upstream says of the chat: asked again where that is lost, since looking changes nothing."""
        left = self._sides.asking.rooms.attempts
        while True:
            left -= 1
            try:
                found = self._sides.kind.read(*await self._sides.exchange(question, watchdog, limit))
            except (ConnectFailed, AnswerLost):
                if left <= 0:
                    raise
            else:
                if isinstance(found, coze.Good) or found.judgement.verdict is not Verdict.UPSTREAM or left <= 0:
                    return found
            await asyncio.sleep(POLL)


class _Identified(Exception):
    """The chat's id is known, or there will be none."""


class _UntilBegan:
    """Sink that reads no further than to the chat's id."""

    def __init__(self, listener: ChatListener) -> None:
        self._listener = listener

    def flush(self) -> None:
        """Nothing is held back."""

    async def write(self, data: bytes) -> None:
        await self._listener.write(data)
        if self._listener.began is not None or self._listener.over:
            raise _Identified
