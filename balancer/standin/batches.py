"""What takes its time: batches and long-running predictions. Both are pending when made and done when first looked at."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import orjson

from balancer.standin import answers, files
from balancer.standin.answers import Json, Refusal, Reply, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.gemini import generated, known_model, vector
from balancer.standin.made import now
from balancer.standin.shelf import Blob, Resource

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main"


async def create(ask: Ask) -> Reply:
    """batchGenerateContent and asyncBatchEmbedContent, with requests inline or in a file of JSON lines."""
    model = known_model(ask)
    batch = (await ask.json()).get("batch") or {}
    source = batch.get("inputConfig") or batch.get("input_config") or {}
    file_name = source.get("fileName") or source.get("file_name")
    inline: list[Any] = (source.get("requests") or {}).get("requests") or []
    if not file_name and not inline:
        raise refuse(400, "batch.input_config is not specified")
    embeds = ask.verb == "asyncBatchEmbedContent"
    shelf = ask.world.shelf
    name = shelf.fresh("batches")
    count = len(inline) or 1
    metadata: Json = {
        "@type": f"{_TYPE}.{'EmbedContentBatch' if embeds else 'GenerateContentBatch'}",
        "model": model,
        "displayName": batch.get("displayName") or batch.get("display_name") or "",
        "inputConfig": {"fileName": file_name} if file_name else {},
        "createTime": now(ask),
        "updateTime": now(ask),
        "batchStats": {"requestCount": str(count), "pendingRequestCount": str(count)},
        "state": "BATCH_STATE_PENDING",
        "name": name,
    }
    made = shelf.put(ask.project, name, {"name": name, "metadata": metadata})
    short = model.partition("/")[2]
    if file_name:
        lines = ask.require_named(file_name)
        made.settle = partial(_settle_file, ask, made, lines, short, embeds)
    else:
        made.settle = partial(_settle_inline, ask, made, list(inline), short, embeds)
    return ok(made.data)


def _answer(model: str, request: Any, embeds: bool) -> Json:
    request = request if isinstance(request, dict) else {}
    if embeds:
        return {"embedding": vector(request)}
    return generated(model, request, hashlib.sha256(orjson.dumps(request)).hexdigest())


async def _settle_inline(ask: Ask, made: Resource, requests: list[Any], model: str, embeds: bool) -> None:
    entries = []
    for each in requests:
        entry: Json = {"response": _answer(model, each.get("request"), embeds)}
        if each.get("metadata"):
            entry["metadata"] = each["metadata"]
        entries.append(entry)
    _done(ask, made, {"inlinedResponses": {"inlinedResponses": entries}}, len(entries))


async def _settle_file(ask: Ask, made: Resource, lines: Resource, model: str, embeds: bool) -> None:
    """One line of answer per line of the input file, as a file of the same project."""
    out = ask.world.shelf.blob()
    count = 0
    async for line in _lines(lines.blob or Blob()):
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            request = {}
        answer = {"key": request.get("key", ""), "response": _answer(model, request.get("request"), embeds)}
        await out.write(orjson.dumps(answer) + b"\n")
        count += 1
    wanted = {"mimeType": "application/jsonl"}
    result = files.add(ask, made.project, out, wanted, prefix="batch-", source="GENERATED")
    _done(ask, made, {"responsesFile": result.name}, count)


async def _lines(blob: Blob) -> AsyncGenerator[bytes, None]:
    rest = b""
    async for piece in blob.chunks():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
    if rest.strip():
        yield rest


def _done(ask: Ask, made: Resource, output: Json, count: int) -> None:
    metadata = made.data["metadata"]
    metadata |= {
        "state": "BATCH_STATE_SUCCEEDED",
        "endTime": now(ask),
        "updateTime": now(ask),
        "batchStats": {"requestCount": str(count), "successfulRequestCount": str(count)},
        "output": output,
    }
    made.data |= {"done": True, "response": {"@type": metadata["@type"] + "Output", **output}}


async def cancel(ask: Ask) -> Reply:
    found = ask.require(ask.name)
    if not found.data.get("done"):
        found.settle = None
        found.data["metadata"] |= {"state": "BATCH_STATE_CANCELLED", "endTime": now(ask)}
    return ok({})


async def predict_long_running(ask: Ask) -> Reply:
    """A video: the operation is named below the model, its result is a file of the same project."""
    model = known_model(ask)
    if model.startswith("tunedModels/"):
        raise Refusal(answers.model_not_found(model, ask.version, ask.verb))
    await ask.json()
    made = ask.world.shelf.put(ask.project, ask.world.shelf.fresh(f"{model}/operations"), {})
    made.data["name"] = made.name
    made.settle = partial(_settle_video, ask, made)
    return ok({"name": made.name})


async def _settle_video(ask: Ask, made: Resource) -> None:
    blob = ask.world.shelf.blob()
    await blob.write(files.VIDEO)
    file = files.add(ask, made.project, blob, {"mimeType": "video/mp4"}, source="GENERATED")
    sample = {"video": {"uri": file.data["downloadUri"]}}
    response = {"@type": f"{_TYPE}.PredictLongRunningResponse", "generateVideoResponse": {"generatedSamples": [sample]}}
    made.data |= {"done": True, "response": response}
