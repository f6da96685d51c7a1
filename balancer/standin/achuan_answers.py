"""Answers in the shape of achuan's backend: its JSON, its events, and every refusal, by name.

an HTTP error                     status-400 status-401 status-402 status-403 status-404 status-413 status-429 status-500
                                  status-502 status-503 (429 with Retry-After) early-413 redirect names-key
a refusal in HTTP 200, plain      code-401 code-402 code-403 code-429 code-500 err stale stale-english
the same as the first event       event-401 event-402 event-403 event-429 event-500 event-err event-stale
an answer that is none            empty done-only html no-id
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass

import orjson

from balancer.standin.answers import Refusal, Reply
from balancer.standin.faults import Refusals, Victim

JSON = "application/json; charset=utf-8"
SSE = "text/event-stream; charset=utf-8"
FRAME = (("Server", "nginx"), ("X-Powered-By", "Express"), ("Access-Control-Allow-Origin", "*"))

GONE = "对话不存在"
_WORDS = {
    400: "参数错误",
    401: "登录已过期，请重新登录",
    402: "余额不足",
    403: "非法来源",
    404: "接口不存在",
    405: "方法不允许",
    413: "请求体过大",
    415: "类型错误",
    429: "请求过于频繁",
    500: "服务器内部错误",
    502: "Bad Gateway",
    503: "服务繁忙",
}


def ok(data: object) -> Reply:
    return _reply({"code": 0, "data": data, "msg": ""})


def error(status: int, message: str | None = None, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """An HTTP error."""
    body = {"code": status, "data": None, "msg": message or _WORDS[status]}
    return _reply(body, status, headers)


def refuse(status: int, message: str | None = None) -> Refusal:
    return Refusal(error(status, message))


def denied(err: str, code: int | None = None, *, event: bool = False, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    """A refusal in HTTP 200: the whole body, or its only event."""
    value: dict[str, object] = {"err": err} if code is None else {"code": code, "err": err}
    if not event:
        return _reply(value, headers=headers)
    return Reply(b"data: %b\n\n" % orjson.dumps(value), content_type=SSE, headers=list(headers), frame=FRAME)


def _reply(value: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Reply:
    return Reply(orjson.dumps(value), status, JSON, list(headers), frame=FRAME)


FAILED = b'data: {"code":500,"err":"%b"}\n\n' % _WORDS[500].encode()
"""What a stream says in its middle when it fails."""


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is written: all of it is within what its readers must take.

    `split`: bytes per write, 0 for a write per line. `blank`: the blank behind `data:`. `comments`: comments, empty lines and
    events of unknown types between the others. `repeat`, `done`: the object event and the marker at the end are there.
    `closed`: the last line has its end.
    """

    split: int = 0
    blank: bool = True
    comments: bool = False
    repeat: bool = True
    done: bool = True
    closed: bool = True
    end: bytes = b"\n\n"


async def events(deltas: Iterable[str], style: Style) -> AsyncGenerator[bytes, None]:
    """The body of an answer. A generator, so that what goes wrong can go wrong between two events."""
    texts = list(deltas)
    lines = [_data({"type": "string", "data": text}, style) for text in texts]
    if style.repeat:
        lines.append(_data({"type": "object", "data": {"aiText": "".join(texts), "status": 1}}, style))
    if style.done:
        lines.append(b"data: [DONE]" if style.blank else b"data:[DONE]")
    noise = (
        [b": ping", b"", _data({"type": "usage", "data": {"tokens": 3}}, style), b"event: x"] if style.comments else []
    )
    for place, line in enumerate(lines):
        last = place == len(lines) - 1
        written = (
            b"".join(each + style.end for each in noise) + line + (b"" if last and not style.closed else style.end)
        )
        step = style.split or len(written)
        for start in range(0, len(written), step):
            yield written[start : start + step]


def _data(value: object, style: Style) -> bytes:
    return (b"data: " if style.blank else b"data:") + orjson.dumps(value)


def _status(status: int) -> Callable[[Victim], Reply]:
    def make(victim: Victim) -> Reply:
        return error(status, headers=[("Retry-After", str(victim.fault.seconds))] if status == 429 else ())

    return make


def _denied(code: int | None, words: str, *, event: bool) -> Callable[[Victim], Reply]:
    def make(victim: Victim) -> Reply:
        headers = [("Retry-After", str(victim.fault.seconds))] if code == 429 else []
        return denied(words, code, event=event, headers=headers)

    return make


def _all_refusals() -> Refusals:
    made: dict[str, Callable[[Victim], Reply]] = {}
    for status in (400, 401, 402, 403, 404, 413, 429, 500, 502, 503):
        made[f"status-{status}"] = _status(status)
    for code in (401, 402, 403, 429, 500):
        made[f"code-{code}"] = _denied(code, _WORDS[code], event=False)
        made[f"event-{code}"] = _denied(code, _WORDS[code], event=True)
    return made | {
        "err": _denied(None, "模型繁忙", event=False),
        "event-err": _denied(None, "模型繁忙", event=True),
        "stale": _denied(None, GONE, event=False),
        "stale-english": _denied(404, "Session not found", event=False),
        "event-stale": _denied(None, GONE, event=True),
        "early-413": lambda victim: error(413, headers=[("Connection", "close")]),
        "redirect": lambda victim: Reply(b"", 302, "text/html", [("Location", "/login")], frame=FRAME),
        "names-key": lambda victim: error(400, f"bad token {victim.key}"),
        "empty": lambda victim: Reply(b"", content_type=SSE, frame=FRAME),
        "done-only": lambda victim: Reply(b"data: [DONE]\n\n", content_type=SSE, frame=FRAME),
        "html": lambda victim: Reply(b"<html><title>maintenance</title>", content_type="text/html", frame=FRAME),
        "no-id": lambda victim: ok({"created": "2025-12-19 10:24:21"}),
    }


REFUSALS = _all_refusals()
