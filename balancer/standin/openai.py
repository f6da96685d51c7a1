"""Google's own OpenAI-compatible paths, as far as clients of Gemini use them. Errors here are a list of one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from balancer.standin import answers
from balancer.standin.answers import SSE, Json, Refusal, Reply, compact, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.gemini import response_id, thirds, vector

_CREATED = 1_760_000_000


async def chat(ask: Ask) -> Reply:
    body = await ask.json()
    model = _model(ask, body)
    text = f"You said: {_last(body)}"
    if not body.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return ok(_frame(ask, model, "chat.completion") | {"choices": [choice], "usage": _usage(text)})
    return Reply(_chunks(ask, model, text), content_type=SSE)


async def _chunks(ask: Ask, model: str, text: str) -> AsyncGenerator[bytes, None]:
    for piece in thirds(text):
        choice: Json = {"index": 0, "delta": {"role": "assistant", "content": piece}}
        yield b"data: %b\n\n" % compact(_frame(ask, model, "chat.completion.chunk") | {"choices": [choice]})
        await asyncio.sleep(0)
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield b"data: %b\n\n" % compact(_frame(ask, model, "chat.completion.chunk") | {"choices": [last]})
    yield b"data: [DONE]\n\n"


async def embeddings(ask: Ask) -> Reply:
    body = await ask.json()
    model = _model(ask, body)
    given = body.get("input")
    inputs = given if isinstance(given, list) else [given]
    size = {"outputDimensionality": body["dimensions"]} if body.get("dimensions") else {}
    data = [
        {
            "object": "embedding",
            "index": n,
            "embedding": vector({"content": {"parts": [{"text": str(each)}]}} | size)["values"],
        }
        for n, each in enumerate(inputs)
    ]
    return ok({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 1, "total_tokens": 1}})


async def models(ask: Ask) -> Reply:
    return ok({"object": "list", "data": [_entry(f"models/{model}") for model in ask.world.models]})


async def model(ask: Ask) -> Reply:
    name = ask.name.removeprefix("openai/models/")
    if not ask.world.has_model(name.removeprefix("models/")):
        raise Refusal(answers.not_found())
    return ok(_entry(name))


def _model(ask: Ask, body: Json) -> str:
    name = str(body.get("model", ""))
    if not ask.world.has_model(name.removeprefix("models/")):
        raise Refusal(answers.model_not_found(f"models/{name.removeprefix('models/')}", "v1main", "generateContent"))
    return name


def _entry(name: str) -> Json:
    return {"id": name, "object": "model", "owned_by": "google"}


def _frame(ask: Ask, model: str, kind: str) -> Json:
    return {"id": response_id(ask.arrival.sha256), "object": kind, "created": _CREATED, "model": model}


def _usage(text: str) -> Json:
    said = (len(text) + 3) // 4
    return {"prompt_tokens": 1, "completion_tokens": said, "total_tokens": said + 1}


def _last(body: Json) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse(400, "contents is not specified")
    content = messages[-1].get("content") if isinstance(messages[-1], dict) else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")
