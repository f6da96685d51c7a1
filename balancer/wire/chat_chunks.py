"""Chat answers in OpenAI's dialect, written by us: what kinds of upstream that speak another one are translated into.

https://platform.openai.com/docs/api-reference/chat/object and …/chat/streaming: one `chat.completion`, or frames of
`chat.completion.chunk` with one id: role, a frame a delta, the final one with its `finish_reason`, usage where it was asked
for, `[DONE]`. A failure in between is one error frame, and then nothing: the closing marker would call the answer whole.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

import orjson

HEADERS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)
"""Fields of a translated stream's head: nothing on its way may store, change or gather it."""
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; zeros where the upstream does not count them."""

    prompt: int = 0
    completion: int = 0
    total: int = 0


def new_id() -> str:
    """A fresh `chatcmpl-…`."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def completion(
    identity: str, created: int, model: str, content: str, *, reasoning: str = "", usage: Usage | None = None
) -> bytes:
    """A whole answer. `created`: POSIX seconds; `model`: the name that the client is to see."""
    message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": identity, "object": "chat.completion", "created": created, "model": model}
    return _json(head | {"choices": [choice], "usage": _usage(usage or Usage())})


class Chunks:
    """The frames of one streamed answer; what they have in common is written once."""

    __slots__ = ("_begin", "_content", "_reasoning")

    def __init__(self, identity: str, created: int, model: str) -> None:
        head = _json({"id": identity, "object": "chat.completion.chunk", "created": created, "model": model})
        self._begin = b"data: " + head[:-1] + b',"choices":['
        self._content = self._begin + b'{"index":0,"delta":{"content":'
        self._reasoning = self._begin + b'{"index":0,"delta":{"reasoning_content":'

    def role(self) -> bytes:
        """The first frame."""
        delta = b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
        return self._begin + delta + b"]}\n\n"

    def content(self, text: str) -> bytes:
        """One delta of the answer, verbatim."""
        return self._content + _json(text) + b'},"finish_reason":null}]}\n\n'

    def reasoning(self, text: str) -> bytes:
        """One delta of what the model thought before it answered."""
        return self._reasoning + _json(text) + b'},"finish_reason":null}]}\n\n'

    def final(self) -> bytes:
        """The answer is whole."""
        return self._begin + b'{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'

    def usage(self, usage: Usage) -> bytes:
        """The frame behind the final one, for those who asked for it (`wants_usage`)."""
        return self._begin + b'],"usage":' + _json(_usage(usage)) + b"}\n\n"


def wants_usage(body: dict[str, Any]) -> bool:
    """Whether a request asks for the usage frame: `stream_options.include_usage`."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def error_frame(message: str) -> bytes:
    """The last frame of an answer that broke after its first. `message` is shown to the caller: no secret."""
    error = {"message": message, "type": "api_error", "param": None, "code": "stream_error"}
    return b"data: " + _json({"error": error}) + b"\n\n"


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
    }


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # half a surrogate pair, whose other half is the next delta's: the reader joins them
        return json.dumps(value, separators=(",", ":")).encode()
