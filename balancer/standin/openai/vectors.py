"""Numbers that come of a text: embeddings and moderations. The same text gives the same numbers."""

from __future__ import annotations

import base64
import hashlib
import struct

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.said import count, text_of

_DIMENSIONS = {"text-embedding-3-large": 3072}
_USUAL = 1536
_MOST = 2048
"""Inputs of one call."""
_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


async def embed(ask: Ask) -> Reply:
    """Numbers between -1 and 1, as a list or (base64) as little-endian floats of 32 bits."""
    body = await ask.json()
    model = ask.known_model(body)
    inputs = _inputs(body)
    size = body.get("dimensions") or _DIMENSIONS.get(model, _USUAL)
    if not isinstance(size, int) or not 1 <= size <= 1 << 14:
        raise answers.refuse(400, "Invalid value for 'dimensions'.", param="dimensions", code="invalid_value")
    packed = body.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": n, "embedding": _vector(each, size, packed=packed)}
        for n, each in enumerate(inputs)
    ]
    spent = sum(count(each) for each in inputs)
    usage = {"prompt_tokens": spent, "total_tokens": spent}
    return ok({"object": "list", "data": data, "model": model, "usage": usage})


def _inputs(body: Json) -> list[str]:
    """Each input as a text; lists of tokens count as the text of their numbers."""
    given = body.get("input")
    if given is None:
        raise answers.missing("input")
    several = given if isinstance(given, list) else [given]
    if several and all(isinstance(each, int) for each in several):
        several = [several]
    if not several or len(several) > _MOST or "" in several:
        raise answers.refuse(400, "'$.input' is invalid. Please check the API reference.", param="input")
    return [each if isinstance(each, str) else str(each) for each in several]


def _vector(text: str, size: int, *, packed: bool) -> list[float] | str:
    digest = hashlib.sha256(text.encode()).digest()
    period = [byte / 127.5 - 1 for byte in digest]
    numbers = (period * (size // len(period) + 1))[:size]
    return base64.b64encode(struct.pack(f"<{size}f", *numbers)).decode() if packed else numbers


async def moderate(ask: Ask) -> Reply:
    """Flags what has the word "violence" in it."""
    body = await ask.json()
    if body.get("input") is None:
        raise answers.missing("input")
    model = ask.known_model({"model": "omni-moderation-latest"} | body)
    given = body["input"]
    several = given if isinstance(given, list) and all(isinstance(each, str) for each in given) else [given]
    results = [_judged(each if isinstance(each, str) else text_of(each)) for each in several]
    return ok({"id": f"modr-{ask.arrival.sha256[:24]}", "model": model, "results": results})


def _judged(text: str) -> Json:
    flagged = "violence" in text
    found = {name: flagged and name == "violence" for name in _CATEGORIES}
    return {
        "flagged": flagged,
        "categories": found,
        "category_scores": {name: 0.99 if hit else 0.01 for name, hit in found.items()},
        "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
    }
