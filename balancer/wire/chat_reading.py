"""Chat answers in OpenAI's dialect, read by us: where what a model says is stored or told in another dialect.

https://platform.openai.com/docs/api-reference/chat/streaming: `data:` lines with `chat.completion.chunk`, of which the first
choice counts, then `[DONE]`. Servers differ in what they leave out: the usage frame, the marker, the last `finish_reason`. An
answer is whole with either of the latter two; without both it was cut. A server that does not stream answers with one
`chat.completion` in spite of being asked to: it is read as an answer of one delta.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from balancer.errors import AnswerBroken
from balancer.model import Headers
from balancer.wire import sse
from balancer.wire.chat_chunks import Usage
from balancer.wire.headers import first
from balancer.wire.loose_json import load, whole_number

MOST_TOOL_CALLS = 128
"""Calls of one answer: as many as a request may declare tools."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought before it answered, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The upstream gave up in the middle of its answer. `text` is its words, which may hold secrets."""

    text: str


Event = Delta | Reasoning | Failed


class ChatReading:
    """One answer, read as it comes. Behind the marker and behind Failed nothing is read."""

    __slots__ = ("_calls", "_ended", "_events", "_pieces", "_size", "finish_reason", "usage", "whole")

    def __init__(self, headers: Headers) -> None:
        """`headers`: of the answer."""
        kind = (first(headers, "content-type") or "").partition(";")[0].strip().lower()
        self._events = sse.Events() if kind != "application/json" else None
        self._pieces: list[bytes] = []
        self._size = 0
        self._calls: list[dict[str, Any]] = []
        self._ended = False
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.whole = False
        """Whether the answer is: where the connection ends without it, it was cut."""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tools that the model wants called, put together."""
        return [{name: value for name, value in call.items() if name != "index"} for call in self._calls]

    def feed(self, data: bytes) -> list[Event]:
        """What these bytes complete. Raises AnswerBroken for an event, or a whole answer, that is too long."""
        if self._events is not None:
            return [*self._read(self._events.feed(data))]
        self._size += len(data)
        if self._size > sse.LONGEST:
            raise AnswerBroken(f"it is longer than {sse.LONGEST} bytes")
        self._pieces.append(data)
        return []

    def end(self) -> list[Event]:
        """The connection has ended: what its last event was, or the answer that is not streamed."""
        if self._events is not None:
            return [*self._read(self._events.end())]
        return [*self._told(load(b"".join(self._pieces)))]

    def _read(self, events: Iterable[sse.Event]) -> Iterator[Event]:
        for event in events:
            if self._ended:
                return
            if event.data.strip() == b"[DONE]":
                self._ended = self.whole = True
                return
            yield from self._told(load(event.data))

    def _told(self, value: Any) -> Iterator[Event]:
        if isinstance(value, list) and len(value) == 1:  # Google writes its errors so
            value = value[0]
        if not isinstance(value, dict):
            return
        if value.get("error"):
            self._ended, self.whole = True, False
            yield Failed(_words(value["error"]))
            return
        self._count(value.get("usage"))
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and not choice.get("index"):
                yield from self._said(choice)

    def _said(self, choice: dict[str, Any]) -> Iterator[Event]:
        message = choice.get("delta") or choice.get("message")
        if isinstance(message, dict):
            thought = message.get("reasoning_content") or message.get("reasoning")
            if isinstance(thought, str) and thought:
                yield Reasoning(thought)
            text = message.get("content")
            if isinstance(text, str) and text:
                yield Delta(text)
            self._call(message.get("tool_calls"))
        reason = choice.get("finish_reason")
        if isinstance(reason, str) and reason:
            self.finish_reason, self.whole = reason, True

    def _count(self, usage: Any) -> None:
        if isinstance(usage, dict):
            counts = (whole_number(usage.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
            self.usage = Usage(*(max(0, count or 0) for count in counts))

    def _call(self, calls: Any) -> None:
        """Calls come in pieces: name and id once, the arguments bit by bit, each piece with the call's index."""
        for piece in calls if isinstance(calls, list) else ():
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            known = next((call for call in self._calls if index is not None and call.get("index") == index), None)
            if known is not None:
                _join(known, piece)
            elif len(self._calls) < MOST_TOOL_CALLS:
                self._calls.append(piece)


def _join(call: dict[str, Any], piece: dict[str, Any]) -> None:
    function, more = call.get("function"), piece.get("function")
    if isinstance(function, dict) and isinstance(more, dict):
        said = (function.get("arguments"), more.get("arguments"))
        joined = {"arguments": "".join(each for each in said if isinstance(each, str))}
        piece = {**piece, "function": {**function, **{k: v for k, v in more.items() if v is not None}, **joined}}
    call.update({name: value for name, value in piece.items() if value is not None})


def _words(error: Any) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else "no reason given"
