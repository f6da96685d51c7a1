"""The wire of Coze: bodies of its calls, its envelope, and what the events of a chat say.

https://www.coze.cn/open/docs/developer_guides/chat_v3 and its neighbours. A chat is one turn in a conversation:

    POST /v3/chat[?conversation_id=]      {"bot_id", "user_id", "stream", "auto_save_history", "additional_messages"}   events
    GET  /v3/chat/retrieve, …/message/list      of a chat that was answered by a plain JSON object instead
    POST /v3/chat/cancel                  {"chat_id", "conversation_id"}
    GET  /v1/conversation/retrieve
    POST /v1/files/upload                 a form with one `file`

Every answer but a stream is an envelope {"code", "msg", "data", "detail": {"logid"}}; code 0 is success, whatever the HTTP
status says. Events of a stream, each `event:<name>` and `data:<json>`:

    conversation.chat.created, .in_progress    → Began, once
    conversation.message.delta                 of an answer: → Delta, Reasoning
    conversation.message.completed             of an answer that came in no delta: → the same
    conversation.chat.completed                → Completed
    conversation.chat.failed, .requires_action → Failed
    error                                      → Failed; without a code it counts as 5000
    done                                       → Done
    anything else, and messages of any other type (function_call, tool_response, verbose, follow_up …)    → nothing

Texts are handed on as they are. Of two answers in one chat the second begins with a Delta of two newlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from balancer.model import Headers
from balancer.wire import sse
from balancer.wire.chat_chunks import Usage
from balancer.wire.headers import first
from balancer.wire.loose_json import dump, load, whole_number

CHAT_PATH = "/v3/chat"
RETRIEVE_PATH = "/v3/chat/retrieve"
MESSAGES_PATH = "/v3/chat/message/list"
CANCEL_PATH = "/v3/chat/cancel"
LOOK_UP_PATH = "/v1/conversation/retrieve"
UPLOAD_PATH = "/v1/files/upload"

INTERNAL: Final = 5000
"""The code of a failure that tells none."""
REQUIRES_ACTION: Final = "requires_action"
CANCELED: Final = "canceled"
BETWEEN_ANSWERS: Final = "\n\n"

_QUOTED = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Coze said no. `code` is its number, None where it gave none; `msg` its words, which may be empty and may hold secrets.

    `reason` is REQUIRES_ACTION or CANCELED where that is how the chat ended, else "".
    """

    code: int | None
    msg: str = field(default="", repr=False)
    logid: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Began:
    """The chat was accepted: from here on it exists, and its conversation does."""

    chat: str
    conversation: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thought before it answered, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer is whole."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer, or no more of it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing follows."""


Event = Began | Delta | Reasoning | Completed | Failed | Done


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat as an object: the reply to a chat that is not streamed, or to a look at it. `outcome`: None while it runs."""

    began: Began
    outcome: Completed | Failed | None


@dataclass(frozen=True, slots=True)
class Good:
    """The `data` of an envelope that says yes."""

    data: Any = field(repr=False)


# what is sent


def chat(bot: str, user: str, messages: Sequence[Any]) -> bytes:
    """The body of a turn. `messages` as `coze_messages.rendered` makes them; the last is the query."""
    return dump(
        {
            "bot_id": bot,
            "user_id": user,
            "stream": True,
            "auto_save_history": True,
            "additional_messages": list(messages),
        }
    )


def cancel(began: Began) -> bytes:
    """The body that ends a chat."""
    return dump({"chat_id": began.chat, "conversation_id": began.conversation})


def upload(name: str, media_type: str, data: bytes, boundary: str) -> bytes:
    """A form with one file (RFC 7578; quotes and line ends in names as browsers write them). `boundary`: nowhere in `data`."""
    disposition = f'form-data; name="file"; filename="{name.translate(_QUOTED)}"'
    head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {media_type}\r\n\r\n"
    return b"%b%b\r\n--%b--\r\n" % (head.encode("utf-8", "replace"), data, boundary.encode())


# what comes back whole


def streams(headers: Headers) -> bool:
    """Whether the body of a 2xx answer to a chat is events; any other is read whole, by `reply`."""
    return (first(headers, "content-type") or "").partition(";")[0].strip().lower() == "text/event-stream"


def reply(body: bytes) -> Good | Failure | None:
    """What a whole body says; None if it is no envelope."""
    value = load(body)
    if not isinstance(value, dict):
        return None
    for member in ("code", "error_code"):
        code = value.get(member)
        number = whole_number(code)
        if number or (number is None and code not in (None, "", False)):
            return _failure(value, number)
    return Good(value.get("data")) if "data" in value or "code" in value else None


def logid_of(headers: Headers, failure: Failure | None) -> str | None:
    """What people name to Coze when they ask about an answer."""
    return (failure.logid if failure is not None else None) or _short(first(headers, "x-tt-logid"))


def chat_of(data: Any) -> Chat | None:
    """The chat that the `data` of a reply describes."""
    began = _began(data)
    if began is None:
        return None
    match data.get("status"):
        case "completed":
            return Chat(began, Completed(_usage(data)))
        case "failed":
            return Chat(began, Failed(_last_error(data)))
        case "requires_action":
            return Chat(began, Failed(Failure(None, reason=REQUIRES_ACTION)))
        case "canceled":
            return Chat(began, Failed(Failure(None, reason=CANCELED)))
        case _:
            return Chat(began, None)


def answers(data: Any) -> list[Delta | Reasoning]:
    """The answers in a list of a chat's messages, as the stream would have told them."""
    telling = _Telling()
    items = data if isinstance(data, list) else []
    return [
        event
        for item in items
        if isinstance(item, dict) and item.get("role") == "assistant"
        for event in telling.completed(item)
    ]


def id_of(data: Any) -> str | None:
    """The id of what a reply describes: a conversation, a file."""
    found = data.get("id") if isinstance(data, dict) else None
    return _id(found)


# what comes as events


class Reading:
    """The events of one chat, read as they come. Behind Failed and Done nothing is read."""

    __slots__ = ("_began", "_ended", "_events", "_telling", "whole")

    def __init__(self, limit: int = sse.LONGEST) -> None:
        """`limit`: bytes of one event."""
        self._events = sse.Events(limit)
        self._telling = _Telling()
        self._began = False
        self._ended = False
        self.whole = False
        """Whether the answer is: where the connection ends without it, it was cut."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete. Raises AnswerBroken for one over the limit."""
        return self._read(self._events.feed(data))

    def end(self) -> list[Event]:
        """The connection has ended: the last event, if its empty line is missing."""
        return self._read(self._events.end())

    def _read(self, events: Iterable[sse.Event]) -> list[Event]:
        found: list[Event] = []
        for event in events:
            if self._ended:
                break
            told = _TOLD.get(event.name)
            if told is not None:
                found += told(self, load(event.data))
        return found

    def _begins(self, data: Any) -> list[Event]:
        began = None if self._began else _began(data)
        self._began |= began is not None
        return [began] if began is not None else []

    def _delta(self, data: Any) -> list[Event]:
        return [*self._telling.delta(data)]

    def _message(self, data: Any) -> list[Event]:
        return [*self._telling.completed(data)]

    def _completes(self, data: Any) -> list[Event]:
        if self.whole:
            return []
        self.whole = True
        return [*self._begins(data), Completed(_usage(data))]

    def _fails(self, data: Any) -> list[Event]:
        return self._failed(_last_error(data))

    def _waits(self, data: Any) -> list[Event]:
        return self._failed(Failure(None, reason=REQUIRES_ACTION))

    def _errs(self, data: Any) -> list[Event]:
        value = data if isinstance(data, dict) else {}
        return self._failed(_failure(value, whole_number(value.get("code")) or INTERNAL))

    def _failed(self, failure: Failure) -> list[Event]:
        self._ended = True
        self.whole = False
        return [Failed(failure)]

    def _done(self, data: Any) -> list[Event]:
        self._ended = True
        return [Done()]


_TOLD: Final[dict[str, Callable[[Reading, Any], list[Event]]]] = {
    "conversation.chat.created": Reading._begins,
    "conversation.chat.in_progress": Reading._begins,
    "conversation.message.delta": Reading._delta,
    "conversation.message.completed": Reading._message,
    "conversation.chat.completed": Reading._completes,
    "conversation.chat.failed": Reading._fails,
    "conversation.chat.requires_action": Reading._waits,
    "error": Reading._errs,
    "done": Reading._done,
}


class _Telling:
    """The messages of one chat that are answers, joined to one text."""

    __slots__ = ("_reasoned", "_spoken")

    def __init__(self) -> None:
        self._spoken: set[str] = set()
        """Ids of messages of which text came."""
        self._reasoned: set[str] = set()

    def delta(self, message: Any) -> Iterable[Delta | Reasoning]:
        if _is_answer(message):
            identity = str(message.get("id"))
            if thought := _text(message, "reasoning_content"):
                self._reasoned.add(identity)
                yield Reasoning(thought)
            if text := _text(message, "content"):
                yield from self._said(identity, text)

    def completed(self, message: Any) -> Iterable[Delta | Reasoning]:
        """The whole of a message, unless its text has come already."""
        if _is_answer(message) and (identity := str(message.get("id"))) not in self._spoken:
            if identity not in self._reasoned and (thought := _text(message, "reasoning_content")):
                self._reasoned.add(identity)
                yield Reasoning(thought)
            if text := _text(message, "content"):
                yield from self._said(identity, text)

    def _said(self, identity: str, text: str) -> Iterable[Delta]:
        if identity not in self._spoken:
            if self._spoken:
                yield Delta(BETWEEN_ANSWERS)
            self._spoken.add(identity)
        yield Delta(text)


def _is_answer(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("type") != "answer":
        return False
    return bool(message.get("content_type", "text") == "text")


def _text(message: Any, member: str) -> str:
    value = message.get(member)
    return value if isinstance(value, str) else ""


def _began(data: Any) -> Began | None:
    if not isinstance(data, dict):
        return None
    identity, conversation = _id(data.get("id")), _id(data.get("conversation_id"))
    return Began(identity, conversation) if identity is not None and conversation is not None else None


def _usage(data: Any) -> Usage:
    usage = data.get("usage") if isinstance(data, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    numbers = (whole_number(counts.get(name)) for name in ("input_count", "output_count", "token_count"))
    prompt, completion, total = (max(0, number or 0) for number in numbers)
    return Usage(prompt, completion, total)


def _last_error(data: Any) -> Failure:
    """Why a chat failed. Some tell it by the members of an error instead."""
    value = data if isinstance(data, dict) else {}
    error = value.get("last_error")
    told = error if isinstance(error, dict) else value
    return _failure(value | told, whole_number(told.get("code")) or INTERNAL)


def _failure(value: dict[str, Any], code: int | None) -> Failure:
    detail = value.get("detail")
    logid = detail.get("logid") if isinstance(detail, dict) else None
    words = value.get("msg") or value.get("error_message") or ""
    text = words if isinstance(words, str) else dump(words).decode()
    return Failure(code, text.encode("utf-8", "replace").decode(), _short(logid))


def _id(value: Any) -> str | None:
    """An id, written as text or as a number."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _short(value)


def _short(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable() else None
