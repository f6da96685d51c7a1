"""Responses: made, streamed, stored, continued; their input items; and what is asked without storing.

A response is its project's unless `store` is false. `previous_response_id` and `conversation` must be its project's too. One that
was made with `background` is queued, and done when someone looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial

import orjson

from balancer.standin.answers import Json, Reply
from balancer.standin.gemini import thirds
from balancer.standin.openai import answers, conversations
from balancer.standin.openai.answers import SSE, event, ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.chat import number, sink
from balancer.standin.openai.lists import page
from balancer.standin.openai.said import Said, said
from balancer.standin.shelf import Resource
from balancer.standin.sizes import EVENT_BYTES, filled, wanted_bytes, wanted_events

_ECHOED = (
    "instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt", "prompt_cache_key", "reasoning",
    "safety_identifier", "user",
)  # fmt: skip
_DEFAULTS: Json = {
    "metadata": {},
    "parallel_tool_calls": True,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "background": False,
}


async def create(ask: Ask) -> Reply:
    if (sunk := await sink(ask)) is not None:
        return ok(_frame(ask, "stand-in-sink", {"store": False}) | _done(ask, sunk))
    body = await ask.json()
    model = ask.known_model(body)
    given = items(body)
    if not given and not any(body.get(name) for name in ("previous_response_id", "conversation", "prompt")):
        raise answers.missing("input")
    spoken = said(given, body)
    frame = _frame(ask, model, body)
    kept = await _keep(ask, frame, given) if frame["store"] is not False else None
    if body.get("stream"):
        return Reply(_stream(ask, model, frame, spoken, partial(_remember, ask, given, kept)), content_type=SSE)
    if body.get("background") is True and kept is not None:
        kept.data["status"] = "queued"
        kept.settle = partial(_settle, ask, frame, spoken, given, kept)
        return ok(kept.data)
    if model == "stand-in-slow":
        await asyncio.sleep(number(ask, "interval", 1.0))
    answer = frame | _done(ask, spoken)
    if not spoken.calls and (size := wanted_bytes(model)):
        return _sized(answer, size)
    _remember(ask, given, kept, answer)
    return ok(answer)


def items(body: Json) -> list[Json]:
    """`input` as a list of items, each a copy."""
    given = body.get("input")
    if isinstance(given, str):
        return (
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}] if given else []
        )
    if given is not None and not isinstance(given, list):
        raise answers.wrong_type("input", "a string or an array", given)
    return [{"type": "message"} | each for each in given or [] if isinstance(each, dict)]


def _frame(ask: Ask, model: str, body: Json) -> Json:
    """A response that has not said anything yet."""
    frame: Json = {
        "id": ask.fresh("responses", "resp_")[1],
        "object": "response",
        "created_at": ask.now,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }
    frame |= {name: body.get(name) for name in _ECHOED}
    frame |= {name: usual if body.get(name) is None else body[name] for name, usual in _DEFAULTS.items()}
    if held := conversations.named(body):
        frame["conversation"] = {"id": held}
    return frame


def _done(ask: Ask, spoken: Said) -> Json:
    """What a finished response has more."""
    cut: Json = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    ended: Json = cut if spoken.cut else {"status": "completed", "completed_at": ask.now}
    return ended | {
        "output": list(_output(ask, spoken)),
        "usage": {
            "input_tokens": spoken.prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": spoken.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": spoken.prompt + spoken.tokens,
        },
    }


def _output(ask: Ask, spoken: Said) -> Iterator[Json]:
    status = "incomplete" if spoken.cut else "completed"
    mark = ask.arrival.sha256[:40]
    for call in spoken.calls:
        yield {
            "id": f"fc_{call.identity[5:]}{mark}",
            "type": "function_call",
            "status": status,
            "call_id": call.identity,
            "name": call.name,
            "arguments": call.arguments,
        }
    if not spoken.calls:
        part = {"type": "output_text", "text": spoken.text, "annotations": [], "logprobs": []}
        yield {"id": f"msg_{mark}", "type": "message", "status": status, "role": "assistant", "content": [part]}


async def _keep(ask: Ask, frame: Json, given: list[Json]) -> Resource:
    made = ask.put(f"responses/{frame['id']}", dict(frame))
    made.aside = ask.world.shelf.blob()
    shown = [{"id": f"msg_{ask.arrival.sha256[:32]}{n}", "status": "completed"} | each for n, each in enumerate(given)]
    await made.aside.write(orjson.dumps(shown))
    return made


def _remember(ask: Ask, given: list[Json], kept: Resource | None, answer: Json) -> None:
    """The finished answer where it is stored, and in the conversation that it belongs to."""
    if kept is not None:
        kept.data |= answer
    if "conversation" in answer:
        conversations.extend(ask, answer["conversation"]["id"], [*given, *answer["output"]])


async def _settle(ask: Ask, frame: Json, spoken: Said, given: list[Json], kept: Resource) -> None:
    _remember(ask, given, kept, frame | _done(ask, spoken))


def _sized(answer: Json, size: int) -> Reply:
    answer["output"][0]["content"][0]["text"] = "\0"
    head, _, tail = orjson.dumps(answer).partition(b"\\u0000")
    size = max(size, len(head) + len(tail))
    return Reply(filled(head, size, tail), content_type=answers.JSON, length=size)


async def _stream(
    ask: Ask, model: str, frame: Json, spoken: Said, remember: Callable[[Json], None]
) -> AsyncGenerator[bytes, None]:
    interval = number(ask, "interval", 1.0) if model == "stand-in-slow" else 0.0
    answer = frame | _done(ask, spoken)
    pieces = None
    if size := wanted_bytes(model):
        pieces = ["x" * EVENT_BYTES] * max(1, size // EVENT_BYTES)
    elif count := int(number(ask, "events", 10)) if interval else wanted_events(model):
        pieces = [f"event {n} " for n in range(count)]
    for n, data in enumerate(events(frame, answer, pieces)):
        if interval and data["type"] == "response.output_text.delta":
            await asyncio.sleep(interval)
        if data["type"] in ("response.completed", "response.incomplete"):
            remember(answer)
        yield event(data | {"sequence_number": n}, str(data["type"]))


def events(frame: Json, answer: Json, pieces: list[str] | None = None) -> Iterator[Json]:
    """The typed events of a response, in order. `pieces` are deltas instead of thirds of what is said."""
    yield {"type": "response.created", "response": frame}
    yield {"type": "response.in_progress", "response": frame}
    for n, item in enumerate(answer["output"]):
        place = {"output_index": n, "item_id": item["id"]}
        if item["type"] == "function_call":
            yield {"type": "response.output_item.added", "output_index": n, "item": item | {"arguments": ""}}
            for piece in thirds(item["arguments"]):
                yield {"type": "response.function_call_arguments.delta", "delta": piece} | place
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done"} | done | place
        else:
            yield {"type": "response.output_item.added", "output_index": n, "item": item | {"content": []}}
            part = item["content"][0]
            place["content_index"] = 0
            yield {"type": "response.content_part.added", "part": part | {"text": ""}} | place
            for piece in thirds(part["text"]) if pieces is None else pieces:
                yield {"type": "response.output_text.delta", "delta": piece, "logprobs": []} | place
            yield {"type": "response.output_text.done", "text": part["text"], "logprobs": []} | place
            yield {"type": "response.content_part.done", "part": part} | place
        yield {"type": "response.output_item.done", "output_index": n, "item": item}
    yield {"type": f"response.{answer['status']}", "response": answer}


def _stored(ask: Ask) -> Resource:
    return ask.require("/".join(ask.name.split("/")[:2]), "response_id")


async def get(ask: Ask) -> Reply:
    """As it is, or with `?stream=true` its events once more."""
    found = _stored(ask)
    data = await found.looked_at()
    if ask.query.get("stream") == "true":
        return Reply(_again(data), content_type=SSE)
    return ok(data)


async def _again(data: Json) -> AsyncGenerator[bytes, None]:
    for n, each in enumerate(events(data | {"status": "in_progress", "output": []}, data)):
        yield event(each | {"sequence_number": n}, str(each["type"]))


async def delete(ask: Ask) -> Reply:
    found = _stored(ask)
    ask.world.shelf.remove(found)
    return ok({"id": found.data["id"], "object": "response", "deleted": True})


async def cancel(ask: Ask) -> Reply:
    found = _stored(ask)
    if not found.data["background"]:
        raise answers.refuse(400, "Cannot cancel a synchronous response.", param="response_id")
    if found.settle is not None:
        found.settle = None
        found.data["status"] = "cancelled"
    return ok(found.data)


async def input_items(ask: Ask) -> Reply:
    found = _stored(ask)
    entries = orjson.loads(await found.aside.read()) if found.aside is not None else []
    return page(ask, entries[::-1])


async def input_tokens(ask: Ask) -> Reply:
    body = await ask.json()
    return ok({"object": "response.input_tokens", "input_tokens": said(items(body), {}).prompt})


async def compact(ask: Ask) -> Reply:
    """The conversation so far as one opaque item. What it makes is nobody's to ask for later."""
    body = await ask.json()
    ask.known_model(body)
    spoken = said(items(body), {})
    folded = {
        "id": f"cmp_{ask.arrival.sha256[:40]}",
        "type": "compaction",
        "encrypted_content": ask.arrival.sha256,
    }
    return ok(
        {
            "id": ask.fresh("responses", "resp_")[1],
            "object": "response.compaction",
            "created_at": ask.now,
            "output": [folded],
            "usage": _done(ask, spoken)["usage"],
        }
    )
