"""Chat completions, whole and streamed, and those that were stored; completions of the older kind.

What is said: said.py. Models made for sizes and speeds: sizes.py, and

    stand-in-slow    a stream of `?events=10` chunks, one every `?interval=1` seconds; unary waits one interval
    stand-in-sink    named within what the client sends first: takes a body of any size at constant memory, says how much came
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

import orjson

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import SSE, event, ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.lists import listing, page
from balancer.standin.openai.said import Said, count, deltas, said, text_of, usage, whole
from balancer.standin.shelf import Resource
from balancer.standin.sizes import EVENT_BYTES, filled, wanted_bytes, wanted_events

DONE = b"data: [DONE]\n\n"
_STORED = "chat/completions"


async def create(ask: Ask) -> Reply:
    if (sunk := await sink(ask)) is not None:
        return ok(_frame(ask, "stand-in-sink", "chat.completion") | {"choices": whole(sunk), "usage": usage(sunk)})
    body = await ask.json()
    messages = _messages(body)
    model = ask.known_model(body)
    times = _times(body)
    spoken = said(messages, body)
    if body.get("stream"):
        return Reply(_stream(ask, model, body, spoken, times), content_type=SSE)
    if model == "stand-in-slow":
        await asyncio.sleep(number(ask, "interval", 1.0))
    answer = _frame(ask, model, "chat.completion") | {"choices": whole(spoken, times), "usage": usage(spoken, times)}
    if size := wanted_bytes(model):
        return _sized(ask, answer, size)
    if body.get("store") is True:
        await _keep(ask, body, answer, messages)
    return ok(answer)


async def sink(ask: Ask) -> Said | None:
    """The answer of the model that reads and forgets, if it is asked."""
    if b'"stand-in-sink"' not in await ask.first():
        return None
    await ask.drain()
    return Said(f"{ask.arrival.size} bytes, sha256 {ask.arrival.sha256}", (), ask.arrival.size // 4, cut=False)


def number(ask: Ask, name: str, default: float) -> float:
    """A number of the query: what the slow model is told."""
    try:
        return float(ask.query.get(name, default))
    except ValueError:
        raise answers.refuse(400, f"Invalid value for '{name}'.", param=name) from None


def _messages(body: Json) -> list[object]:
    messages = body.get("messages")
    if messages is None:
        raise answers.missing("messages")
    if not isinstance(messages, list):
        raise answers.wrong_type("messages", "an array of objects", messages)
    if not messages:
        text = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
        )
        raise answers.refuse(400, text, param="messages", code="empty_array")
    for n, message in enumerate(messages):
        if not isinstance(message, dict):
            raise answers.wrong_type(f"messages[{n}]", "an object", message)
        if not isinstance(message.get("role"), str):
            raise answers.missing(f"messages[{n}].role")
    return messages


def _times(body: Json) -> int:
    n = body.get("n") or 1
    if not isinstance(n, int) or not 1 <= n <= 128:
        raise answers.refuse(400, "Invalid 'n': expected an integer from 1 to 128.", param="n", code="invalid_value")
    return n


def _frame(ask: Ask, model: str, kind: str) -> Json:
    return {
        "id": f"chatcmpl-{ask.arrival.sha256[:29]}",
        "object": kind,
        "created": ask.now,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }


def _sized(ask: Ask, answer: Json, size: int) -> Reply:
    answer["choices"][0]["message"]["content"] = "\0"
    head, _, tail = orjson.dumps(answer).partition(b"\\u0000")
    size = max(size, len(head) + len(tail))
    return Reply(filled(head, size, tail), content_type=answers.JSON, length=size)


async def _stream(ask: Ask, model: str, body: Json, spoken: Said, times: int) -> AsyncGenerator[bytes, None]:
    options = body.get("stream_options")
    counted = isinstance(options, dict) and options.get("include_usage") is True
    frame = _frame(ask, model, "chat.completion.chunk")
    extra: Json = {"usage": None} if counted else {}
    interval = number(ask, "interval", 1.0) if model == "stand-in-slow" else 0.0
    if body.get("store") is True:
        stored = _frame(ask, model, "chat.completion") | {
            "choices": whole(spoken, times),
            "usage": usage(spoken, times),
        }
        await _keep(ask, body, stored, body["messages"])
        frame["id"] = stored["id"]
    for n, choices in enumerate(_choices(ask, model, frame, spoken, times)):
        if interval and n:
            await asyncio.sleep(interval)
        yield event(frame | {"choices": choices} | extra)
    if counted:
        yield event(frame | {"choices": [], "usage": usage(spoken, times)})
    yield DONE


def _choices(ask: Ask, model: str, frame: Json, spoken: Said, times: int) -> Iterator[list[Json]]:
    if size := wanted_bytes(model):
        empty = len(event(frame | {"choices": [_delta("")]}))
        for _ in range(max(1, size // EVENT_BYTES)):
            yield [_delta("x" * (EVENT_BYTES - empty))]
    elif events := (int(number(ask, "events", 10)) if model == "stand-in-slow" else wanted_events(model)):
        for n in range(events):
            yield [_delta(f"event {n} ")]
    else:
        yield from deltas(spoken, times)


def _delta(text: str) -> Json:
    return {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}


async def _keep(ask: Ask, body: Json, answer: Json, messages: list[object]) -> None:
    """Stored for the project, with the messages beside it. Gives it an id of its own."""
    name, identity = ask.fresh(_STORED, "chatcmpl-")
    answer["id"] = identity
    kept: Json = {"metadata": body.get("metadata") or {}, "request_id": ask.request_id}
    kept |= {key: body.get(key) for key in ("tools", "temperature", "top_p", "tool_choice", "response_format", "seed")}
    made = ask.put(name, answer | kept)
    made.aside = ask.world.shelf.blob()
    shown = [{"id": f"{identity}-{n}", "content_parts": None, "name": None} | _shown(m) for n, m in enumerate(messages)]
    await made.aside.write(orjson.dumps(shown))


def _shown(message: object) -> Json:
    data = message if isinstance(message, dict) else {}
    return data | {"content": text_of(data.get("content"))}


async def list_stored(ask: Ask) -> Reply:
    return listing(ask, _STORED)


def _stored(ask: Ask) -> Resource:
    return ask.require("/".join(ask.name.split("/")[:3]))


async def get_stored(ask: Ask) -> Reply:
    return ok(_stored(ask).data)


async def update_stored(ask: Ask) -> Reply:
    found = _stored(ask)
    found.data["metadata"] = (await ask.json()).get("metadata") or {}
    return ok(found.data)


async def delete_stored(ask: Ask) -> Reply:
    found = _stored(ask)
    ask.world.shelf.remove(found)
    return ok({"object": "chat.completion.deleted", "id": found.data["id"], "deleted": True})


async def stored_messages(ask: Ask) -> Reply:
    found = _stored(ask)
    entries = orjson.loads(await found.aside.read()) if found.aside is not None else []
    return page(ask, entries, order="asc")


async def complete(ask: Ask) -> Reply:
    """`/completions`: a text for each prompt."""
    body = await ask.json()
    model = ask.known_model(body)
    prompts = body.get("prompt", "")
    prompts = prompts if isinstance(prompts, list) and all(isinstance(each, str) for each in prompts) else [prompts]
    texts = [f"You said: {each}" for each in prompts]
    frame = _frame(ask, model, "text_completion") | {"id": f"cmpl-{ask.arrival.sha256[:29]}"}
    if body.get("stream"):
        return Reply(_complete_stream(frame, texts), content_type=SSE)
    prompt, out = sum(count(str(each)) for each in prompts), sum(map(count, texts))
    spent = {"prompt_tokens": prompt, "completion_tokens": out, "total_tokens": prompt + out}
    choices = [{"text": text, "index": n, "logprobs": None, "finish_reason": "stop"} for n, text in enumerate(texts)]
    return ok(frame | {"choices": choices, "usage": spent})


async def _complete_stream(frame: Json, texts: list[str]) -> AsyncGenerator[bytes, None]:
    for n, text in enumerate(texts):
        for part, finish in ((text, None), ("", "stop")):
            yield event(frame | {"choices": [{"text": part, "index": n, "logprobs": None, "finish_reason": finish}]})
    yield DONE
