"""Generation, counting, embedding, prediction and the list of models.

Answers are deterministic: the text is "You said: " and the last text of the request, token counts are characters / 4, vectors are
a hash of the text, `responseId` is a hash of the request. Beside Google's model names these exist, each for one purpose:

    stand-in-bytes-N      (or bytes-1GiB, bytes-64KiB …) generate answers N bytes of JSON; a stream has N bytes in 64 KiB events
    stand-in-events-N     a stream of N events
    stand-in-slow         a stream of `?events=10` events, one every `?interval=1` seconds; unary waits one interval
    stand-in-sink         takes a body of any size at constant memory and answers how much arrived, and its SHA-256
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Iterator

from balancer.standin import answers
from balancer.standin.answers import JSON, SSE, Json, Refusal, Reply, compact, ok, pretty, refuse
from balancer.standin.ask import Ask
from balancer.standin.sizes import EVENT_BYTES, filled, wanted_bytes, wanted_events

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
"""A PNG of one pixel."""
_EMBEDDERS = ("embedding",)
_PREDICTORS = ("imagen", "veo")


def model_data(model: str) -> Json:
    """One entry of models.list."""
    if any(word in model for word in _EMBEDDERS):
        methods = ["embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent"]
    elif model.startswith("imagen"):
        methods = ["predict"]
    elif model.startswith("veo"):
        methods = ["predictLongRunning"]
    else:
        methods = ["generateContent", "countTokens", "createCachedContent", "batchGenerateContent"]
    return {
        "name": f"models/{model}",
        "version": "001",
        "displayName": model.replace("-", " ").title(),
        "description": f"{model}, played by the stand-in",
        "inputTokenLimit": 1048576,
        "outputTokenLimit": 65536,
        "supportedGenerationMethods": methods,
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "maxTemperature": 2,
    }


async def get_model(ask: Ask) -> Reply:
    return ok(model_data(known_model(ask).removeprefix("models/")))


def known_model(ask: Ask) -> str:
    """The model that the path names, `models/M` or `tunedModels/T`, or the refusal it deserves."""
    if ask.name.startswith("tunedModels/"):
        ask.require_named(ask.name)
    elif not ask.world.has_model(ask.name.removeprefix("models/")):
        raise Refusal(answers.model_not_found(ask.name, ask.version, ask.verb or "GetModel"))
    return ask.name


async def generate(ask: Ask) -> Reply:
    model = known_model(ask).partition("/")[2]
    if model == "stand-in-sink":
        await ask.drain()
        text = f"{ask.arrival.size} bytes, sha256 {ask.arrival.sha256}"
        return ok(answer(model, text, ask.arrival.sha256, ask.arrival.size // 4))
    data = await asked(ask)
    if model == "stand-in-slow":
        await asyncio.sleep(_number(ask, "interval", 1.0))
    if size := wanted_bytes(model):
        head, tail = _filler_frame(model, ask.arrival.sha256)
        size = max(size, len(head) + len(tail))
        return Reply(filled(head, size, tail), length=size)
    return ok(generated(model, data, ask.arrival.sha256))


async def stream(ask: Ask) -> Reply:
    model = known_model(ask).partition("/")[2]
    data = await asked(ask)
    events = _events(ask, model, data)
    if ask.sse:
        return Reply(_sse(events), content_type=SSE, headers=[("Content-Disposition", "attachment")])
    return Reply(_array(events), content_type=JSON)


async def asked(ask: Ask) -> Json:
    """The body of a generate call."""
    data = await ask.json()
    if not data.get("contents") and not data.get("continuationToken"):
        raise refuse(400, "* GenerateContentRequest.contents: contents is not specified\n")
    return data


def generated(model: str, data: Json, digest: str) -> Json:
    """The whole answer to one generate request, also as a batch has it."""
    made = answer(model, f"You said: {last_text(data)}", digest, tokens(data))
    if data.get("cachedContent") or data.get("cached_content"):
        made["usageMetadata"]["cachedContentTokenCount"] = 1024
    return made


def answer(model: str, text: str, digest: str, prompt: int, finish: str | None = "STOP") -> Json:
    candidate: Json = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish:
        candidate["finishReason"] = finish
    candidate["index"] = 0
    said = (len(text) + 3) // 4
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "candidatesTokenCount": said,
            "totalTokenCount": prompt + said,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
        },
        "modelVersion": model,
        "responseId": response_id(digest),
    }


def response_id(digest: str) -> str:
    return base64.urlsafe_b64encode(bytes.fromhex(digest)[:16]).decode().rstrip("=")


def texts(data: Json) -> Iterator[str]:
    """Every text part of a request, in order."""
    contents = data.get("contents") or data.get("content") or []
    for content in contents if isinstance(contents, list) else [contents]:
        parts = content.get("parts", []) if isinstance(content, dict) else []
        for part in parts if isinstance(parts, list) else [parts]:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]


def last_text(data: Json) -> str:
    return next(reversed(list(texts(data))), "nothing")


def tokens(data: Json) -> int:
    return sum((len(text) + 3) // 4 for text in texts(data)) or 1


async def count_tokens(ask: Ask) -> Reply:
    known_model(ask)
    data = await ask.json()
    inner = data.get("generateContentRequest")
    total = tokens(inner if isinstance(inner, dict) else data)
    return ok({"totalTokens": total, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": total}]})


async def embed(ask: Ask) -> Reply:
    known_model(ask)
    return ok({"embedding": vector(await ask.json())})


async def batch_embed(ask: Ask) -> Reply:
    known_model(ask)
    requests = (await ask.json()).get("requests", [])
    return ok({"embeddings": [vector(request) for request in requests if isinstance(request, dict)]})


def vector(data: Json) -> Json:
    """The same text gives the same numbers between -1 and 1."""
    size = data.get("outputDimensionality") or data.get("output_dimensionality") or 8
    digest = hashlib.sha256(last_text(data).encode()).digest()
    return {"values": [digest[i % 32] / 127.5 - 1 for i in range(int(size))]}


async def predict(ask: Ask) -> Reply:
    known_model(ask)
    data = await ask.json()
    count = (data.get("parameters") or {}).get("sampleCount", 1)
    return ok({"predictions": [{"mimeType": "image/png", "bytesBase64Encoded": PIXEL}] * int(count)})


async def _events(ask: Ask, model: str, data: Json) -> AsyncGenerator[Json | bytes, None]:
    """What a stream says, event by event; bytes are events that are already JSON."""
    digest, prompt = ask.arrival.sha256, tokens(data)
    if size := wanted_bytes(model):
        head, tail = _filler_frame(model, digest)
        filler = b"x" * (EVENT_BYTES - len(head) - len(tail) - len(b"data: \r\n\r\n"))
        event = b"".join((head, filler, tail)).replace(b"\n", b"")
        for _ in range(max(1, size // EVENT_BYTES)):
            yield event
        return
    if count := wanted_events(model):
        pieces = [f"event {n} " for n in range(count)]
        interval = 0.0
    elif model == "stand-in-slow":
        pieces = [f"event {n} " for n in range(int(_number(ask, "events", 10)))]
        interval = _number(ask, "interval", 1.0)
    else:
        pieces = thirds(f"You said: {last_text(data)}")
        interval = 0.0
    for n, piece in enumerate(pieces):
        if interval and n:
            await asyncio.sleep(interval)
        yield answer(model, piece, digest, prompt, "STOP" if n == len(pieces) - 1 else None)


def thirds(text: str) -> list[str]:
    """A text in three pieces that join to itself, so that every stream has a first, a middle and a last event."""
    step = max(1, len(text) // 3)
    return [text[:step], text[step : 2 * step], text[2 * step :]]


async def _sse(events: AsyncGenerator[Json | bytes, None]) -> AsyncGenerator[bytes, None]:
    async for event in events:
        yield b"data: %b\r\n\r\n" % (event if isinstance(event, bytes) else compact(event))


async def _array(events: AsyncGenerator[Json | bytes, None]) -> AsyncGenerator[bytes, None]:
    between = b"["
    async for event in events:
        yield between + (event if isinstance(event, bytes) else pretty(event).rstrip())
        between = b"\n,\r\n"
    yield b"]" if between != b"[" else b"[]"


def _filler_frame(model: str, digest: str) -> tuple[bytes, bytes]:
    head, _, tail = compact(answer(model, "\0", digest, 1)).partition(b"\\u0000")
    return head, tail


def _number(ask: Ask, name: str, default: float) -> float:
    try:
        return float(ask.query.get(name, default))
    except ValueError:
        raise refuse(400, f"Invalid value at '{name}'") from None
