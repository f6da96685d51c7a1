"""Anthropic's dialect, as servers beside OpenAI's speak it: /messages, whole and streamed, and /messages/count_tokens.

Source: docs.anthropic.com/en/api/messages and /messages-streaming. `anthropic-version` must be there, as must `max_tokens`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import orjson

from balancer.standin.answers import Json, Reply
from balancer.standin.gemini import thirds
from balancer.standin.openai import answers
from balancer.standin.openai.answers import SSE, event, ok
from balancer.standin.openai.ask import Ask, several
from balancer.standin.openai.said import Said, said, text_of


async def create(ask: Ask) -> Reply:
    body = await _body(ask)
    if not isinstance(body.get("max_tokens"), int):
        raise answers.refuse(400, "max_tokens: Field required")
    spoken = said(body["messages"], body | {"tools": _tools(body)})
    frame = _frame(ask, body, spoken)
    if body.get("stream"):
        return Reply(_stream(frame, spoken), content_type=SSE)
    ends = {"content": _content(spoken), "stop_reason": _reason(spoken)}
    return ok(frame | ends | {"usage": frame["usage"] | {"output_tokens": spoken.tokens}})


async def count_tokens(ask: Ask) -> Reply:
    body = await _body(ask)
    return ok({"input_tokens": said(body["messages"], {}).prompt})


async def _body(ask: Ask) -> Json:
    if ask.arrival.header("anthropic-version") is None:
        raise answers.refuse(400, "anthropic-version: header is required")
    body = await ask.json()
    model = body.get("model")
    if not isinstance(model, str):
        raise answers.refuse(400, "model: Field required")
    if not model.startswith("claude-") and not ask.world.has_model(model):
        raise answers.refuse(404, f"model: {model}")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise answers.refuse(400, "messages: Field required")
    if any(not isinstance(each, dict) or each.get("role") not in ("user", "assistant") for each in messages):
        raise answers.refuse(400, "messages.0.role: Input should be 'user' or 'assistant'")
    return body | {"messages": [_flat(each) for each in messages]}


def _flat(message: Json) -> Json:
    """A message with its text as content, that of its tool results too; `answers` if it has such."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    results = [part for part in parts if isinstance(part, dict) and part.get("type") == "tool_result"]
    text = text_of(content) + "".join(text_of(each.get("content")) for each in results)
    return {"role": message["role"], "content": text, "answers": bool(results)}


def _tools(body: Json) -> list[Json]:
    """Anthropic's tools as functions; none where the client's last word is the result of one."""
    if body["messages"][-1].get("answers"):
        return []
    return [{"type": "function", "name": each.get("name")} for each in several(body, "tools") if isinstance(each, dict)]


def _frame(ask: Ask, body: Json, spoken: Said) -> Json:
    spent = {
        "input_tokens": spoken.prompt,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1,
    }
    return {
        "id": f"msg_{ask.arrival.sha256[:24]}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": spent,
    }


def _reason(spoken: Said) -> str:
    return "max_tokens" if spoken.cut else "tool_use" if spoken.calls else "end_turn"


def _content(spoken: Said) -> list[Json]:
    if not spoken.calls:
        return [{"type": "text", "text": spoken.text}]
    return [
        {
            "type": "tool_use",
            "id": f"toolu_{call.identity[5:]}",
            "name": call.name,
            "input": orjson.loads(call.arguments),
        }
        for call in spoken.calls
    ]


async def _stream(frame: Json, spoken: Said) -> AsyncGenerator[bytes, None]:
    for data in _events(frame, spoken):
        yield event(data, str(data["type"]))


def _events(frame: Json, spoken: Said) -> Iterator[Json]:
    yield {"type": "message_start", "message": frame}
    for n, part in enumerate(_content(spoken)):
        if part["type"] == "text":
            yield {"type": "content_block_start", "index": n, "content_block": part | {"text": ""}}
            yield {"type": "ping"}
            deltas: list[Json] = [{"type": "text_delta", "text": piece} for piece in thirds(part["text"])]
        else:
            yield {"type": "content_block_start", "index": n, "content_block": part | {"input": {}}}
            pieces = thirds(spoken.calls[n].arguments)
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        for delta in deltas:
            yield {"type": "content_block_delta", "index": n, "delta": delta}
        yield {"type": "content_block_stop", "index": n}
    ended = {"stop_reason": _reason(spoken), "stop_sequence": None}
    yield {"type": "message_delta", "delta": ended, "usage": {"output_tokens": spoken.tokens}}
    yield {"type": "message_stop"}
