"""Answers in the shape of Coze's API: its envelope, the events of a chat, and every refusal, by name.

an envelope that says no, in HTTP 200     code-4000 … code-5000 code-700012006: every code that Coze documents for chats
the same as the first and only event      error-4000 … error-5000 error-700012006 error-empty
an HTTP error                             status-400 status-401 status-403 status-404 status-429 status-500 status-502 status-503
                                          (without a code; code-4020, status-429 with Retry-After) early-413 redirect names-key
an answer that is none                    empty html html-502 no-chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from dataclasses import dataclass

import orjson

from balancer.standin.answers import Json, Refusal, Reply
from balancer.standin.faults import Refusals, Victim

JSON = "application/json; charset=utf-8"
SSE = "text/event-stream"
FRAME = (("Server", "volc-dcdn"), ("Cache-Control", "no-cache"))

WORDS = {
    4000: "Request parameter error",
    4001: "Invalid chat",
    4002: "Invalid conversation",
    4003: "The metadata exceeds the limit.",
    4004: "The additional messages exceed the limit.",
    4005: "Invalid message",
    4006: "Invalid bot",
    4007: "Streaming is only allowed to be disabled when auto_save_history is enabled.",
    4008: "Request limit of the day reached.",
    4009: "The system is busy, please try again later.",
    4010: "The number of prompt tokens exceeds the limit of the model.",
    4011: "Coze Token balance is insufficient.",
    4012: "Invalid model",
    4013: "Model error",
    4014: "The question cannot be answered.",
    4015: "The bot_id is not published to the API channel.",
    4016: "The conversation already has a running chat.",
    4019: "The pay-as-you-go balance is insufficient.",
    4020: "The request rate exceeds the RPM limit.",
    4021: "The workflow is not configured.",
    4022: "The model service is in arrears.",
    4100: "Authentication is invalid.",
    4101: "The token you entered is incorrect or lacks permission.",
    4102: "Risk control interception.",
    4104: "The current chat cannot be canceled.",
    4105: "The content contains sensitive information.",
    4200: "The requested resource was not found.",
    4300: "The uploaded file is empty.",
    4301: "Only one file can be uploaded.",
    4302: "The file is too large.",
    4303: "The file type is not supported.",
    4304: "The file is invalid.",
    4314: "The execution record was not found.",
    4315: "The execution has ended.",
    5000: "Internal server error",
    700012006: "access token invalid",
}
"""Coze's codes and what it says to them."""


def ok(data: object) -> Reply:
    return _reply({"code": 0, "msg": "", "data": data})


def no(code: int, message: str | None = None, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """An envelope that says no."""
    return _reply({"code": code, "msg": message or WORDS[code]}, status, headers)


def refuse(code: int, message: str | None = None, status: int = 200) -> Refusal:
    return Refusal(no(code, message, status))


def _reply(value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    return Reply(orjson.dumps(value), status, JSON, list(headers), frame=FRAME)


def event(name: str, value: object) -> bytes:
    """One event as Coze writes it: no blanks after the colons."""
    return b"event:%b\ndata:%b\n\n" % (name.encode(), orjson.dumps(value))


FAILED = event("error", {"code": 5000, "msg": WORDS[5000]})
"""What a stream says in its middle when it fails."""


@dataclass(frozen=True, slots=True)
class Play:
    """What a chat says and how it is written: all of it is within what its readers must take.

    `messages`: the deltas of each answer, one tuple a message; None: "You said: …" in thirds. `reasoning`: deltas of what comes
    before the first answer. `deltas`: False leaves only what is said once a message is complete. `extras`: messages of all the
    other types, audio, cards and events of unknown names around the answers. `outcome`: completed, failed (with
    `code`) or requires_action. `plain`: a JSON object, to be polled `polls` times. `split`: bytes per write, 0 for a write an
    event. `blanks`, `comments`: behind the colons, between the events. `done`, `closed`: the marker at the end, and the empty
    line of the last event, are there.
    """

    messages: tuple[tuple[str, ...], ...] | None = None
    reasoning: tuple[str, ...] = ()
    deltas: bool = True
    extras: bool = False
    outcome: str = "completed"
    code: int = 5000
    plain: bool = False
    polls: int = 1
    split: int = 0
    blanks: bool = False
    comments: bool = False
    done: bool = True
    closed: bool = True


_VERBOSE = '{"msg_type":"generate_answer_finish","data":"","from_module":null,"from_unit":null}'
_KNOWLEDGE = '{"msg_type":"knowledge_recall","data":"{\\"chunks\\":[]}"}'
_BEFORE = (
    ("function_call", '{"name":"search","arguments":{"q":"x"},"plugin_id":1,"api_id":2}'),
    ("tool_output", '{"output":"a secret of the tool"}'),
    ("tool_response", '{"code":0,"msg":"success"}'),
    ("verbose", _KNOWLEDGE),
    ("knowledge", "recalled"),
)
_AFTER = (("verbose", _VERBOSE), ("follow_up", "And then?"), ("follow_up", "Why?"))


def spoken(play: Play, message: Callable[..., Json]) -> Iterator[tuple[str, Json]]:
    """The events of a chat between its beginning and its end. `message` (type, content, place, …) makes a message object."""
    if play.extras:
        for kind, content in _BEFORE:
            yield "conversation.message.completed", message(kind, content)
        yield "conversation.audio.delta", message("answer", "AAAA", content_type="audio")
        yield "conversation.message.delta", message("answer", '{"card":1}', content_type="card")
        yield "conversation.unheard.of", {"content": "nothing"}
    for place, texts in enumerate(play.messages or ()):
        thoughts = play.reasoning if place == 0 else ()
        if play.deltas:
            for thought in thoughts:
                yield "conversation.message.delta", message("answer", "", place, reasoning_content=thought)
            for text in texts:
                yield "conversation.message.delta", message("answer", text, place)
        more = {"reasoning_content": "".join(thoughts)} if thoughts else {}
        if play.outcome == "completed" or place + 1 < len(play.messages or ()):
            yield "conversation.message.completed", message("answer", "".join(texts), place, **more)
    if play.extras:
        for kind, content in _AFTER:
            yield "conversation.message.completed", message(kind, content)


async def written(events: Iterable[tuple[str, object]], play: Play) -> AsyncGenerator[bytes, None]:
    """The body of a stream. A generator, so that what goes wrong can go wrong between two events."""
    waiting = b""
    for name, value in events:
        if waiting:
            for piece in _split(waiting, play.split):
                yield piece
        blank = b" " if play.blanks else b""
        waiting = b"event:%b%b\ndata:%b%b\n\n" % (blank, name.encode(), blank, orjson.dumps(value))
        if play.comments:
            waiting = b":keep-alive\n\n" + waiting
    for piece in _split(waiting if play.closed else waiting[:-2], play.split):
        yield piece


def _split(data: bytes, size: int) -> Iterator[bytes]:
    size = size or len(data)
    return (data[start : start + size] for start in range(0, len(data), size))


def _code(code: int) -> Callable[[Victim], Reply]:
    def make(victim: Victim) -> Reply:
        return no(code, headers=[("Retry-After", str(victim.fault.seconds))] if code == 4020 else ())

    return make


def _only_event(value: object) -> Callable[[Victim], Reply]:
    return lambda victim: Reply(event("error", value), content_type=SSE, frame=FRAME)


def _status(status: int) -> Callable[[Victim], Reply]:
    def make(victim: Victim) -> Reply:
        headers = [("Retry-After", str(victim.fault.seconds))] if status == 429 else []
        return _reply({"msg": f"HTTP {status}"}, status, headers)

    return make


def _all_refusals() -> Refusals:
    made: Refusals = {}
    for code, words in WORDS.items():
        made[f"code-{code}"] = _code(code)
        made[f"error-{code}"] = _only_event({"code": code, "msg": words})
    for status in (400, 401, 403, 404, 429, 500, 502, 503):
        made[f"status-{status}"] = _status(status)
    html = b"<html><title>maintenance</title>"
    return made | {
        "error-empty": _only_event({}),
        "early-413": lambda victim: _reply({"msg": "too large"}, 413, [("Connection", "close")]),
        "redirect": lambda victim: Reply(b"", 302, "text/html", [("Location", "/login")], frame=FRAME),
        "names-key": lambda victim: no(4000, f"bad token {victim.key}"),
        "empty": lambda victim: Reply(b"", content_type=JSON, frame=FRAME),
        "html": lambda victim: Reply(html, content_type="text/html", frame=FRAME),
        "html-502": lambda victim: Reply(html, 502, "text/html", frame=FRAME),
        "no-chat": lambda victim: ok({"status": "created"}),
    }


REFUSALS = _all_refusals()
