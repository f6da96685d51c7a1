"""What takes its time: runs of threads and evals, fine-tuning, videos. Queued when made, done when someone looks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from functools import partial

from balancer.standin.answers import Json, Reply
from balancer.standin.files import VIDEO as VIDEO_BYTES
from balancer.standin.gemini import thirds
from balancer.standin.openai import answers
from balancer.standin.openai.answers import SSE, event, ok
from balancer.standin.openai.ask import Ask, several
from balancer.standin.openai.files import media
from balancer.standin.openai.lists import page
from balancer.standin.openai.said import text_of
from balancer.standin.shelf import Resource

ASSISTANT: Json = {"name": None, "description": None, "instructions": None, "tools": [], "tool_resources": {}}
RUN: Json = {
    "status": "queued", "model": "gpt-4o", "instructions": "", "tools": [], "required_action": None, "last_error": None,
    "expires_at": None, "started_at": None, "cancelled_at": None, "failed_at": None, "completed_at": None, "usage": None,
}  # fmt: skip
JOB: Json = {
    "status": "validating_files", "fine_tuned_model": None, "finished_at": None, "result_files": [], "trained_tokens": None,
    "error": None, "hyperparameters": {"n_epochs": "auto"}, "organization_id": "org-standin", "seed": 1, "validation_file": None,
}  # fmt: skip
VIDEO: Json = {"status": "queued", "progress": 0, "model": "sora-2", "size": "720x1280", "seconds": "4", "error": None}


async def check_model(ask: Ask, made: Resource, body: Json) -> None:
    ask.known_model(body)


async def fill_thread(ask: Ask, made: Resource, body: Json) -> None:
    """The messages that a thread was made with."""
    made.data.pop("messages", None)
    for message in several(body, "messages"):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise answers.missing("messages[0].content")
        _say(ask, made.name, str(message["role"]), text_of(message["content"]))


async def place_message(ask: Ask, made: Resource, body: Json) -> None:
    made.data |= _message(made.name.split("/")[1], str(body["role"]), text_of(body["content"]))


def _message(thread: str, role: str, text: str) -> Json:
    return {
        "thread_id": thread,
        "role": role,
        "content": [{"type": "text", "text": {"value": text, "annotations": []}}],
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
    }


def _say(ask: Ask, thread: str, role: str, text: str) -> Resource:
    name, identity = ask.fresh(f"{thread}/messages", "msg_")
    about = {"id": identity, "object": "thread.message", "created_at": ask.now, "metadata": {}}
    return ask.put(name, about | _message(thread.rpartition("/")[2], role, text))


async def queue_run(ask: Ask, made: Resource, body: Json) -> None:
    """A run belongs to its thread; its assistant must be the project's."""
    ask.require(f"assistants/{body['assistant_id']}", "assistant_id")
    made.data["thread_id"] = made.name.split("/")[1]
    made.data.pop("stream", None)
    made.settle = partial(_finish_run, ask, made)


async def _finish_run(ask: Ask, made: Resource) -> None:
    thread = "/".join(made.name.split("/")[:2])
    messages = ask.world.shelf.children(made.project, f"{thread}/messages")
    last = next((each.data for each in messages if each.data["role"] == "user"), None)
    text = last["content"][0]["text"]["value"] if last else "nothing"
    reply = _say(ask, thread, "assistant", f"You said: {text}")
    reply.data |= {"assistant_id": made.data["assistant_id"], "run_id": made.data["id"]}
    spent = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    made.data |= {"status": "completed", "started_at": ask.now, "completed_at": ask.now, "usage": spent}


async def stream_run(ask: Ask, made: Resource) -> AsyncGenerator[bytes, None]:
    """A run as its events tell it."""
    for name in ("thread.run.created", "thread.run.queued"):
        yield event(made.data, name)
    await made.looked_at()
    for name, data in _told(ask, made):
        yield event(data, name)
    yield b"event: done\ndata: [DONE]\n\n"


def _told(ask: Ask, made: Resource) -> Iterator[tuple[str, Json]]:
    yield "thread.run.in_progress", made.data | {"status": "in_progress"}
    newest = ask.world.shelf.children(made.project, f"threads/{made.data['thread_id']}/messages")[0].data
    yield "thread.message.created", newest | {"content": []}
    for piece in thirds(newest["content"][0]["text"]["value"]):
        part = {"index": 0, "type": "text", "text": {"value": piece}}
        yield (
            "thread.message.delta",
            {"id": newest["id"], "object": "thread.message.delta", "delta": {"content": [part]}},
        )
    yield "thread.message.completed", newest
    yield "thread.run.completed", made.data


async def nothing_below(ask: Ask) -> Reply:
    """An empty list below something of the project: steps, events, checkpoints, output items."""
    ask.require(ask.name.rpartition("/")[0])
    return page(ask, [])


async def go_on(ask: Ask) -> Reply:
    """Tool outputs for a run, which is then done."""
    found = ask.require(ask.name.rpartition("/")[0])
    body = await ask.json()
    if body.get("stream"):
        return Reply(stream_run(ask, found), content_type=SSE)
    return ok(await found.looked_at())


async def cancel(ask: Ask) -> Reply:
    """What was not done yet will not be."""
    found = ask.require(ask.name.removesuffix("/cancel"))
    _end(ask, found)
    return ok(found.data)


async def cancel_eval(ask: Ask) -> Reply:
    """POST on a run of an eval is its cancellation."""
    found = ask.require(ask.name)
    _end(ask, found)
    return ok(found.data)


def _end(ask: Ask, found: Resource) -> None:
    if found.settle is not None:
        found.settle = None
        found.data |= {"status": "cancelled", "cancelled_at": ask.now}


async def pause(ask: Ask) -> Reply:
    found = ask.require(ask.name.rpartition("/")[0])
    found.data["status"] = "paused" if ask.name.endswith("/pause") else "running"
    return ok(found.data)


async def queue_eval(ask: Ask, made: Resource, body: Json) -> None:
    made.data["eval_id"] = made.name.split("/")[1]
    made.settle = partial(_finish_eval, made)


async def _finish_eval(made: Resource) -> None:
    made.data |= {"status": "completed", "result_counts": {"total": 1, "errored": 0, "failed": 0, "passed": 1}}


async def queue_job(ask: Ask, made: Resource, body: Json) -> None:
    ask.known_model(body)
    ask.require(f"files/{body['training_file']}", "training_file")
    made.settle = partial(_finish_job, ask, made)


async def _finish_job(ask: Ask, made: Resource) -> None:
    """A model of the project alone comes of it."""
    model = f"ft:{made.data['model']}:org-standin::{made.data['id'][-8:]}"
    entry = {"id": model, "object": "model", "created": ask.now, "owned_by": "org-standin"}
    ask.world.shelf.put(made.project, f"models/{model}", entry)
    made.data |= {"status": "succeeded", "fine_tuned_model": model, "finished_at": ask.now, "trained_tokens": 1}


async def queue_video(ask: Ask, made: Resource, body: Json) -> None:
    ask.known_model({"model": "sora-2"} | body)
    if made.blob is not None:
        ask.world.shelf.discard(made.blob)
    made.blob = ask.world.shelf.blob()
    made.settle = partial(_finish_video, ask, made)


async def _finish_video(ask: Ask, made: Resource) -> None:
    if made.blob is not None:
        await made.blob.write(VIDEO_BYTES)
    made.data |= {"status": "completed", "progress": 100, "completed_at": ask.now, "expires_at": ask.now + 3600}


async def video_content(ask: Ask) -> Reply:
    found = ask.require(ask.name.removesuffix("/content"))
    await found.looked_at()
    return media(found, "video/mp4")
