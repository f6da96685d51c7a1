"""Batches: validated when made, done when someone looks. Their answers are files of the same project."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import orjson

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.files import add
from balancer.standin.openai.lists import listing
from balancer.standin.openai.said import said, usage, whole
from balancer.standin.shelf import Blob, Resource

_ENDPOINTS = (
    "/v1/responses", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/moderations", "/v1/images/generations",
    "/v1/images/edits", "/v1/videos",
)  # fmt: skip
_WINDOW = 24 * 3600
_LONGEST = 4 << 20
"""Bytes of one line of the input."""
_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


async def create(ask: Ask) -> Reply:
    body = await ask.json()
    for param in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(param), str):
            raise answers.missing(param)
    if body["endpoint"] not in _ENDPOINTS:
        text = f"Invalid value: '{body['endpoint']}'. Supported values are: {', '.join(_ENDPOINTS)}."
        raise answers.refuse(400, text, param="endpoint", code="invalid_value")
    lines = ask.require(f"files/{body['input_file_id']}", "input_file_id")
    name, identity = ask.fresh("batches", "batch_")
    data: Json = {
        "id": identity,
        "object": "batch",
        "endpoint": body["endpoint"],
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": ask.now,
        "expires_at": ask.now + _WINDOW,
        **dict.fromkeys(_TIMES),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": body.get("metadata"),
    }
    made = ask.put(name, data)
    made.settle = partial(_settle, ask, made, lines)
    return ok(made.data)


async def _settle(ask: Ask, made: Resource, lines: Resource) -> None:
    """One line of answer per line of the input file; lines that are none go to the file of errors."""
    shelf = ask.world.shelf
    good, bad = shelf.blob(), shelf.blob()
    counts = {"total": 0, "completed": 0, "failed": 0}
    async for line in _lines(lines.blob or Blob()):
        answer = _answered(ask, counts["total"], line)
        counts["total"] += 1
        counts["failed" if answer["error"] else "completed"] += 1
        await (bad if answer["error"] else good).write(orjson.dumps(answer) + b"\n")
    about = {"status": "completed", "in_progress_at": ask.now, "finalizing_at": ask.now, "completed_at": ask.now}
    made.data |= about | {"request_counts": counts}
    for blob, member, kind in ((good, "output_file_id", "output"), (bad, "error_file_id", "error")):
        if blob.size:
            name = f"{made.data['id']}_{kind}.jsonl"
            made.data[member] = add(ask, blob, name, "batch_output", made.project).data["id"]
        else:
            shelf.discard(blob)


def _answered(ask: Ask, n: int, line: bytes) -> Json:
    frame: Json = {"id": f"batch_req_{n}", "custom_id": None, "response": None, "error": None}
    try:
        request: Any = orjson.loads(line)
        custom, body = request["custom_id"], request["body"]
        messages = body["messages"] if "messages" in body else [{"role": "user", "content": body["input"]}]
        spoken = said(messages, body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return frame | {"error": {"code": "invalid_request", "message": "This line is not a valid request."}}
    answer = {
        "id": f"chatcmpl-batch{n}",
        "object": "chat.completion",
        "created": ask.now,
        "model": body.get("model"),
        "choices": whole(spoken),
        "usage": usage(spoken),
    }
    response = {"status_code": 200, "request_id": ask.request_id, "body": answer}
    return frame | {"custom_id": custom, "response": response}


async def _lines(blob: Blob) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in blob.chunks():
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[:_LONGEST]
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


async def index(ask: Ask) -> Reply:
    return listing(ask, "batches")


async def get(ask: Ask) -> Reply:
    return ok(await ask.require(ask.name).looked_at())


async def cancel(ask: Ask) -> Reply:
    found = ask.require(ask.name.removesuffix("/cancel"))
    if found.data["status"] == "validating":
        found.settle = partial(_cancelled, ask, found)
        found.data |= {"status": "cancelling", "cancelling_at": ask.now}
    elif found.data["status"] != "cancelling":
        text = f"Cannot cancel a batch with status '{found.data['status']}'."
        raise answers.refuse(409, text)
    return ok(found.data)


async def _cancelled(ask: Ask, found: Resource) -> None:
    found.data |= {"status": "cancelled", "cancelled_at": ask.now}
