"""An answer of an upstream that keeps the conversation, read as it comes and told to the client in the client's dialect.

The first event decides: until it is known to be no refusal, nothing of the answer reaches the client. A slow client slows the
upstream, since the next piece is read when the last one has been told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from balancer.errors import AnswerBroken, AnswerCut
from balancer.model import OK, Judgement, Verdict
from balancer.relay.asking import Asking, whole
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Watchdog
from balancer.upstreams.conversing import Finding
from balancer.wire.achuan import Delta, Done, Ending, Event, Refused, Whole
from balancer.wire.headers import first

LINGER = 0.5
"""Seconds that an upstream may take to end its answer behind the marker that ends it. Until then it is at work there, and its
connection cannot be used again."""


class Voice(Protocol):
    """The client's side of a turn, in its dialect. Raises ClientGone once the client has left."""

    @property
    def begun(self) -> bool:
        """The client has been told something: no other answer can be given."""
        ...

    def known(self, conversation: str | None) -> None:
        """This is the conversation that the answer is of; None: it turned out to be none."""
        ...

    async def begin(self) -> None:
        """What follows is the answer; of an earlier one nothing counts."""
        ...

    async def delta(self, text: str) -> None:
        """The next piece of the answer."""
        ...

    async def end(self, text: str) -> None:
        """The answer is whole. `text`: all of it, where the upstream repeated it, else ""."""
        ...

    async def fail(self, message: str) -> None:
        """It broke off after it had begun."""
        ...


class Listener:
    """Sink for one answer. `begin` is called before the first of it is told."""

    def __init__(self, asking: Asking, voice: Voice, begin: Callable[[], Awaitable[None]]) -> None:
        self._asking = asking
        self._voice = voice
        self._begin = begin
        self._reading = asking.session_kind.reading()
        self._patience: asyncio.Timeout | None = None
        self._said = ""
        self._refused: Refused | None = None
        self._over = False
        self.begun = False
        """It is an answer, and no refusal."""
        self.ended = False
        """The client has been told the whole of it."""

    async def hear(self, answer: Answer, watchdog: Watchdog) -> tuple[Judgement, Finding | None]:
        """What the answer means: for the key, and, where it is no whole answer, for the turn. Raises AnswerCut, AnswerBroken."""
        kind, status, headers = self._asking.session_kind, answer.status, answer.headers
        if not 200 <= status < 300:
            finding = kind.find(status, headers, await whole(answer, watchdog))
            return finding.judgement, finding
        if (first(headers, "content-encoding") or "identity").strip().lower() != "identity":
            raise AnswerBroken("its answer has a content coding that was not asked for")
        await self._take(answer, watchdog)
        if self._refused is not None:
            finding = kind.refused(self._refused, status, headers)
            if self.begun:  # whatever it says, something was said and done
                judgement = Judgement(Verdict.UPSTREAM, "refusal in the middle of an answer")
                finding = Finding(judgement, None, finding.status, finding.text, refused=True)
            return finding.judgement, finding
        match self._reading.ending:
            case Ending.WHOLE:
                await self._end()
                return OK, None
            case Ending.EMPTY:
                finding = kind.find(status, headers, b"")
                return finding.judgement, finding
            case Ending.CUT:
                raise AnswerCut("its answer ended too early")

    async def _take(self, answer: Answer, watchdog: Watchdog) -> None:
        """Read the body to its end, or to what ends the answer and a moment longer."""
        try:
            async with asyncio.timeout(None) as self._patience:
                await answer.pump(self, watchdog)
        except TimeoutError:
            pass
        except AnswerCut:
            await self.write(answer.unread())  # what came together with the cut
            if not self._over and self._reading.ending is not Ending.WHOLE:
                raise
        finally:
            self._patience = None
        await self._each(self._reading.end())

    def flush(self) -> None:
        """Nothing is held back."""

    async def write(self, data: bytes) -> None:
        if not self._over:
            await self._each(self._reading.feed(data))

    async def _each(self, events: Iterable[Event]) -> None:
        for event in events:
            if self._over:
                return
            match event:
                case Delta(text=text):
                    await self._answers()
                    await self._voice.delta(text)
                case Whole(text=text):
                    await self._answers()
                    self._said = text
                case Done():
                    if self._reading.ending is Ending.WHOLE:
                        await self._end()
                    self._finish()
                case Refused():
                    self._refused = event
                    self._finish()

    async def _answers(self) -> None:
        if self.begun:
            return
        self.begun = True
        await self._begin()
        await self._voice.begin()
        if self._voice.begun:
            self._asking.heard()

    async def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._asking.heard()
            await self._voice.end(self._said)

    def _finish(self) -> None:
        """Nothing that follows counts."""
        self._over = True
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + LINGER)
