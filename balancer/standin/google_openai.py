"""Google's own OpenAI-compatible paths, as far as clients of Gemini use them. Errors here are a list of one (app.py).

Source: ai.google.dev/gemini-api/docs/openai: chat completions with tools and streams, embeddings, images, models. There are no
files, and nothing is stored: such paths are Google's 404.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from balancer.standin import answers
from balancer.standin.answers import SSE, Json, Refusal, Reply, compact, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.gemini import PIXEL, response_id, vector
from balancer.standin.openai.said import Said, deltas, said, usage, whole

_CREATED = 1_760_000_000


async def chat(ask: Ask) -> Reply:
    body = await ask.json()
    model = _model(ask, body)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse(400, "contents is not specified")
    spoken = said(messages, body)
    times = _times(body)
    if body.get("stream"):
        return Reply(_chunks(ask, model, body, spoken, times), content_type=SSE)
    choices = {"choices": whole(spoken, times), "usage": _usage(spoken, times)}
    return ok(_frame(ask, model, "chat.completion") | choices)


def _times(body: Json) -> int:
    n = body.get("n") or 1
    if not isinstance(n, int) or not 1 <= n <= 8:
        raise refuse(400, "Invalid value at 'generation_config.candidate_count'")
    return n


async def _chunks(ask: Ask, model: str, body: Json, spoken: Said, times: int) -> AsyncGenerator[bytes, None]:
    """With `include_usage` a last chunk has the numbers, as OpenAI's has."""
    frame = _frame(ask, model, "chat.completion.chunk")
    options = body.get("stream_options")
    counted = isinstance(options, dict) and options.get("include_usage") is True
    for choices in deltas(spoken, times):
        yield b"data: %b\n\n" % compact(frame | {"choices": choices})
        await asyncio.sleep(0)
    if counted:
        yield b"data: %b\n\n" % compact(frame | {"choices": [], "usage": _usage(spoken, times)})
    yield b"data: [DONE]\n\n"


def _usage(spoken: Said, times: int) -> Json:
    """Google counts no details."""
    return {name: value for name, value in usage(spoken, times).items() if not name.endswith("_details")}


async def embeddings(ask: Ask) -> Reply:
    body = await ask.json()
    model = _model(ask, body)
    given = body.get("input")
    inputs = given if isinstance(given, list) else [given]
    size = {"outputDimensionality": body["dimensions"]} if body.get("dimensions") else {}
    data = [{"object": "embedding", "index": n, "embedding": _vector(each, size)} for n, each in enumerate(inputs)]
    return ok({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 1, "total_tokens": 1}})


def _vector(text: Any, size: Json) -> list[float]:
    values: list[float] = vector({"content": {"parts": [{"text": str(text)}]}} | size)["values"]
    return values


async def images(ask: Ask) -> Reply:
    body = await ask.json()
    _model(ask, body)
    if not body.get("prompt"):
        raise refuse(400, "prompt is not specified")
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 4:
        raise refuse(400, "Invalid value at 'parameters.sample_count'")
    return ok({"created": _CREATED, "data": [{"b64_json": PIXEL}] * count})


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
