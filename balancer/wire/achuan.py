"""The wire of achuan: bodies of its two calls, and what its answers say.

    POST /api/chat/session       {"model", "plugins", "mcp"}      {"code": 0, "data": {"id": 296270, …}, "msg": ""}
    POST /api/chat/completions   {"text", "sessionId", "files"}   lines of events, whatever was asked:
        data: {"type":"string","data":"<delta>"}                  → Delta
        data: {"type":"object","data":{"aiText":"<whole>",…}}     → Whole
        data: [DONE]                                              → Done
        a JSON object without `type`, with `err` or `code` ≠ 0    → Refused, as a `data:` line or as the plain body
        anything else                                             → nothing

Only where an object stands tells what it is, never its text: whatever a `string` event says is a model's words. The text of
deltas is handed on as it is.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from balancer.wire.chat_messages import File
from balancer.wire.loose_json import load, whole_number
from balancer.wire.sse import LONGEST, Lines, field

SESSION_PATH = "/api/chat/session"
COMPLETIONS_PATH = "/api/chat/completions"

_PLAIN_LIMIT = 1 << 20
"""Bytes of a plain body that are looked at: a refusal is a line."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Whole:
    """The answer once more in one piece; "" if the event did not have it."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the answer."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The backend said no. `code` is its number, None where it gave none; `err` its words, which may be empty."""

    code: int | None
    err: str


Event = Delta | Whole | Done | Refused


@dataclass(frozen=True, slots=True)
class Created:
    """A new session."""

    number: int


class Ending(enum.Enum):
    """How an answer ended, once its connection had."""

    WHOLE = "whole"
    """As answers do: with the marker, or after the event that repeats the answer."""
    EMPTY = "empty"
    """Nothing came, or the marker alone."""
    CUT = "cut"


def creation(model: str, members: Mapping[str, Any] | None = None) -> bytes:
    """The body that asks for a session. `members` travel as they are, beside the model and before the defaults."""
    return orjson.dumps({"plugins": [], "mcp": []} | dict(members or {}) | {"model": model})


def completion(session: int, text: str, files: Sequence[File] = ()) -> bytes:
    """The body of a turn. Text and files travel as they are."""
    body = {
        "text": text,
        "sessionId": session,
        "files": [{"name": each.name, "data": each.data} for each in files],
    }
    try:
        return orjson.dumps(body)
    except TypeError:  # half a surrogate pair in the caller's text
        return json.dumps(body, separators=(",", ":")).encode()


def created(body: bytes) -> Created | Refused | None:
    """What a 2xx answer to `creation` says; None if it makes no sense."""
    reply = load(body)
    if not isinstance(reply, dict):
        return read_whole(body)[0]
    refused = refusal(reply)
    if refused is not None:
        return refused
    data = reply.get("data")
    number = whole_number(data.get("id")) if isinstance(data, dict) else None
    return Created(number) if number is not None and number > 0 else None


def refusal(value: Any) -> Refused | None:
    """The refusal that a JSON value is, if it is one."""
    if not isinstance(value, dict) or "type" in value:
        return None
    err, code = value.get("err"), value.get("code")
    says_no = code not in (None, "", False) and whole_number(code) != 0
    if not err and not says_no:
        return None
    words = err or value.get("msg") or ""
    text = words if isinstance(words, str) else json.dumps(words, ensure_ascii=False)
    return Refused(whole_number(code) or None, text.encode("utf-8", "replace").decode())


def read_whole(body: bytes) -> tuple[Refused | None, Ending]:
    """The refusal that a whole body is, plain or as its first event; and how it ends where it is none."""
    reading = Reading(len(body))
    events = reading.feed(body) + reading.end()
    first = events[0] if events else None
    return first if isinstance(first, Refused) else None, reading.ending


def is_stale(refused: Refused) -> bool:
    """Whether a refusal says that the session does not exist."""
    return "对话不存在" in refused.err or "session not found" in refused.err.lower()


class Reading:
    """One answer to a turn, read as it comes. The first event that comes out decides whether it is an answer or a refusal.

    An answer whose text comes only in its `object` event has it as a Delta too, so that deltas are always the whole text.
    Behind Done nothing is read.
    """

    __slots__ = ("_done", "_lines", "_plain", "_seen", "_size", "_text", "_whole", "anything")

    def __init__(self, limit: int = LONGEST) -> None:
        """`limit`: bytes of one line."""
        self._lines = Lines(limit)
        self._plain: list[bytes] | None = None
        self._size = 0
        self._seen = False
        self._text = False
        self._whole = False
        self._done = False
        self.anything = False
        """Whether the body holds more than blanks."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises AnswerBroken for a line over the limit."""
        return self._read(self._lines.feed(data))

    def end(self) -> list[Event]:
        """The connection has ended: what its last line was, or a refusal that took several lines."""
        events = self._read(self._lines.end())
        if self._plain and not self._seen:
            plain = refusal(load(b"\n".join(self._plain)))
            events += [plain] if plain is not None else []
            self._seen |= plain is not None
        return events

    @property
    def ending(self) -> Ending:
        """What it means that the connection ended here."""
        if self._text or self._whole:
            return Ending.WHOLE if self._done or self._whole else Ending.CUT
        return Ending.EMPTY if self._done or not self.anything else Ending.CUT

    def _read(self, lines: Iterable[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if self._done:
                break
            self.anything = self.anything or bool(line.strip())
            event = self._event(line)
            if event is not None:
                self._seen = True
                events += self._noted(event)
        return events

    def _event(self, line: bytes) -> Event | None:
        name, value = field(line)
        if name == b"data":
            return event_of(value)
        if self._seen:
            return None
        if self._plain is not None:
            self._size += len(line)
            if self._size < _PLAIN_LIMIT:
                self._plain.append(line)
        elif line.lstrip().startswith(b"{"):
            self._plain = [line]
            self._size = len(line)
            return refusal(load(line))
        return None

    def _noted(self, event: Event) -> list[Event]:
        match event:
            case Delta():
                self._text = True
            case Whole(text=text):
                first = not self._text and bool(text)
                self._whole = True
                self._text |= first
                return [Delta(text), event] if first else [event]
            case Done():
                self._done = True
            case Refused():
                pass
        return [event]


def event_of(data: bytes) -> Event | None:
    """What a data line says; None for what is to be skipped."""
    if data.strip() == b"[DONE]":
        return Done()
    value = load(data)
    if not isinstance(value, dict):
        return None
    content = value.get("data")
    match value.get("type"):
        case "string" if isinstance(content, str):
            return Delta(content)
        case "object":
            text = content.get("aiText") if isinstance(content, dict) else None
            return Whole(text if isinstance(text, str) else "")
        case _:
            return refusal(value)


def answer_text(deltas: Iterable[str], whole: str) -> str:
    """The text of an answer that was not streamed: the one given in one piece, else the deltas joined."""
    return whole or "".join(deltas)


def error_text(body: bytes) -> str:
    """What an error body says to people: its member for that, else all of it. May hold secrets: mask it before it is shown."""
    value = load(body)
    if isinstance(value, dict):
        for member in ("err", "msg", "message", "error"):
            words = value.get(member)
            if isinstance(words, dict):
                words = words.get("message")
            if isinstance(words, str) and words.strip():
                return words
    return body.decode("utf-8", "replace").strip()
