"""What the stand-in says, and how a chat completion says it: pure, the same for OpenAI and for Google's compatible paths.

The text is "You said: " and the last text of the conversation, in characters / 4 tokens; an output limit cuts it ("length").
Where tools are offered and the client's is the last word, the answer is a call of the tool that `tool_choice` names, else of
the first, with `{"said": <that text>}` as its arguments (of the first two with `parallel_tool_calls: true`). Where JSON is
asked for, it is `{"said": <that text>}` too, or the smallest value that fits the schema.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from balancer.standin.answers import Json
from balancer.standin.gemini import thirds

_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that is to be called. `arguments` is JSON."""

    name: str
    arguments: str
    identity: str


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: a text or calls of tools."""

    text: str
    calls: tuple[Call, ...]
    prompt: int
    """Tokens of the question."""
    cut: bool
    """Whether the client's limit ended it."""

    @property
    def tokens(self) -> int:
        return count(self.text) + sum(count(call.arguments) for call in self.calls)

    @property
    def finish(self) -> str:
        return "length" if self.cut else "tool_calls" if self.calls else "stop"


def count(text: str) -> int:
    return (len(text) + 3) // 4


def text_of(content: Any) -> str:
    """A message's content as one text: a string, or its parts of text joined."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def said(messages: list[Any], body: Json) -> Said:
    """The answer to messages (or input items) under what the rest of the body asks for."""
    texts = [
        text_of(message.get("content", message.get("output"))) for message in messages if isinstance(message, dict)
    ]
    last = next((text for text in reversed(texts) if text), "nothing")
    prompt = sum(map(count, texts)) or 1
    if calls := _calls(messages, body, last):
        return Said("", calls, prompt, cut=False)
    text = _structured(body, last) or f"You said: {last}"
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), None)
    cut = limit is not None and limit < count(text)
    return Said(text[: 4 * limit] if cut and limit is not None else text, (), prompt, cut)


def _calls(messages: list[Any], body: Json, text: str) -> tuple[Call, ...]:
    choice = body.get("tool_choice")
    last = messages[-1] if messages and isinstance(messages[-1], dict) else {}
    answered = last.get("role") == "tool" or last.get("type") == "function_call_output"
    if choice == "none" or (choice in (None, "auto") and answered):
        return ()
    names = list(_names(body.get("tools")))
    if isinstance(choice, dict):
        inner = choice.get("function")
        names = [str((inner if isinstance(inner, dict) else choice).get("name"))]
    arguments = orjson.dumps({"said": text}).decode()
    wanted = 2 if body.get("parallel_tool_calls") is True else 1
    return tuple(
        Call(name, arguments, f"call_{hashlib.sha256(f'{n}{name}{text}'.encode()).hexdigest()[:24]}")
        for n, name in enumerate(names[:wanted])
    )


def _names(tools: Any) -> Iterator[str]:
    """Functions that are offered, as chat completions and as responses write them."""
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict) and tool.get("type", "function") == "function":
            inner = tool.get("function")
            yield str((inner if isinstance(inner, dict) else tool).get("name"))


def _structured(body: Json, text: str) -> str | None:
    wanted = body.get("response_format")
    if wanted is None and isinstance(body.get("text"), dict):
        wanted = body["text"].get("format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return orjson.dumps({"said": text}).decode()
    if wanted.get("type") == "json_schema":
        inner = wanted.get("json_schema")
        schema = (inner if isinstance(inner, dict) else wanted).get("schema")
        return orjson.dumps(_fitting(schema, text)).decode()
    return None


def _fitting(schema: Any, text: str) -> Any:
    """The smallest value of a JSON schema, with the text wherever a string may stand."""
    if not isinstance(schema, dict):
        return text
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    properties = schema.get("properties")
    if kind == "object" or isinstance(properties, dict):
        inner = properties if isinstance(properties, dict) else {}
        return {name: _fitting(each, text) for name, each in inner.items()}
    return {"array": [], "integer": 0, "number": 0, "boolean": True, "null": None}.get(str(kind), text)


def usage(spoken: Said, times: int = 1) -> Json:
    """`usage` of a chat completion with that many choices."""
    out = spoken.tokens * times
    return {
        "prompt_tokens": spoken.prompt,
        "completion_tokens": out,
        "total_tokens": spoken.prompt + out,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def whole(spoken: Said, times: int = 1) -> list[Json]:
    """`choices` of a unary answer."""
    message: Json = {"role": "assistant", "content": spoken.text or None, "refusal": None, "annotations": []}
    if spoken.calls:
        message["tool_calls"] = [
            {"id": call.identity, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in spoken.calls
        ]
    return [{"index": n, "message": message, "logprobs": None, "finish_reason": spoken.finish} for n in range(times)]


def deltas(spoken: Said, times: int = 1) -> Iterator[list[Json]]:
    """`choices` of the chunks of a stream: role, text or calls piece by piece, the reason of the end; all choices in turn."""
    first: Json = {"role": "assistant", "content": None if spoken.calls else "", "refusal": None}
    for step in (first, *_pieces(spoken)):
        for n in range(times):
            yield [{"index": n, "delta": step, "logprobs": None, "finish_reason": None}]
    for n in range(times):
        yield [{"index": n, "delta": {}, "logprobs": None, "finish_reason": spoken.finish}]


def _pieces(spoken: Said) -> Iterator[Json]:
    for piece in thirds(spoken.text) if spoken.text else ():
        yield {"content": piece}
    for n, call in enumerate(spoken.calls):
        function: Json = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": n, "id": call.identity, "type": "function", "function": function}]}
        for piece in thirds(call.arguments):
            yield {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}
