"""Which call is which: by shape, in order. What no line knows is an unknown URL; what only another method knows is a 405."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from balancer.standin.answers import Refusal, Reply
from balancer.standin.openai import (
    answers,
    batches,
    chat,
    conversations,
    files,
    media,
    messages,
    models,
    realtime,
    responses,
    runs,
    shelves,
    stores,
    vectors,
)
from balancer.standin.openai.ask import Ask

Handler = Callable[[Ask], Awaitable[Reply | web.StreamResponse]]

_TABLE: tuple[tuple[str, re.Pattern[str], Handler], ...] = tuple(
    (method, re.compile(pattern.replace("*", "[^/]+")), handler)
    for method, pattern, handler in (
        ("POST", "chat/completions", chat.create),
        ("GET", "chat/completions", chat.list_stored),
        ("GET", "chat/completions/*", chat.get_stored),
        ("POST", "chat/completions/*", chat.update_stored),
        ("DELETE", "chat/completions/*", chat.delete_stored),
        ("GET", "chat/completions/*/messages", chat.stored_messages),
        ("POST", "completions", chat.complete),
        ("POST", "embeddings", vectors.embed),
        ("POST", "moderations", vectors.moderate),
        ("POST", "images/generations", media.generate),
        ("POST", "images/edits", media.edit),
        ("POST", "images/variations", media.vary),
        ("POST", "audio/speech", media.speak),
        ("POST", "audio/transcriptions", media.transcribe),
        ("POST", "audio/translations", media.translate),
        ("POST", "messages", messages.create),
        ("POST", "messages/count_tokens", messages.count_tokens),
        ("POST", "responses", responses.create),
        ("POST", "responses/input_tokens", responses.input_tokens),
        ("POST", "responses/compact", responses.compact),
        ("GET", "responses/*", responses.get),
        ("DELETE", "responses/*", responses.delete),
        ("POST", "responses/*/cancel", responses.cancel),
        ("GET", "responses/*/input_items", responses.input_items),
        ("POST", "conversations", conversations.create),
        ("GET", "conversations/*", conversations.get),
        ("POST", "conversations/*", conversations.update),
        ("DELETE", "conversations/*", conversations.delete),
        ("POST", "conversations/*/items", conversations.add_items),
        ("GET", "conversations/*/items", conversations.list_items),
        ("GET", "conversations/*/items/*", conversations.get_item),
        ("DELETE", "conversations/*/items/*", conversations.delete_item),
        ("POST", "files", files.create),
        ("GET", "files", files.index),
        ("GET", "files/*", files.get),
        ("DELETE", "files/*", files.delete),
        ("GET", "files/*/content", files.content),
        ("POST", "uploads", files.create_upload),
        ("POST", "uploads/*/parts", files.add_part),
        ("POST", "uploads/*/complete", files.complete_upload),
        ("POST", "uploads/*/cancel", files.cancel_upload),
        ("POST", "batches", batches.create),
        ("GET", "batches", batches.index),
        ("GET", "batches/*", batches.get),
        ("POST", "batches/*/cancel", batches.cancel),
        ("GET", "realtime", realtime.connect),
        ("POST", "realtime/client_secrets", realtime.client_secret),
        ("POST", "realtime/(?:transcription_)?sessions", realtime.session),
        ("POST", "realtime/calls", realtime.call),
        ("POST", "realtime/calls/*/(?:accept|hangup|refer|reject)", realtime.act),
        ("POST", "threads/runs", shelves.create_thread_and_run),
        ("POST", "threads/*/runs", shelves.create_run),
        ("POST", "threads/*/runs/*/cancel", runs.cancel),
        ("POST", "threads/*/runs/*/submit_tool_outputs", runs.go_on),
        ("GET", "threads/*/runs/*/steps", runs.nothing_below),
        ("POST", "evals/*/runs/*", runs.cancel_eval),
        ("GET", "evals/*/runs/*/output_items", runs.nothing_below),
        ("POST", "fine_tuning/jobs/*/cancel", runs.cancel),
        ("POST", "fine_tuning/jobs/*/(?:pause|resume)", runs.pause),
        ("GET", "fine_tuning/jobs/*/(?:events|checkpoints)", runs.nothing_below),
        ("GET", "videos/*/content", runs.video_content),
        ("POST", "videos/*/remix", shelves.remix),
        ("GET", "skills/*/content", stores.content),
        ("GET", "containers/*/files/*/content", stores.content),
        ("POST", "vector_stores/*/search", stores.search),
        ("GET", "vector_stores/*/files/*/content", stores.stored_content),
        ("GET", "vector_stores/*/file_batches/*/files", stores.batch_files),
        ("POST", "vector_stores/*/file_batches/*/cancel", stores.cancel_batch),
        *shelves.ROUTES,
        ("GET", "models", models.index),
        ("GET", "models/.+", models.get),
        ("DELETE", "models/.+", models.delete),
    )
)


async def answer_to(ask: Ask) -> Reply | web.StreamResponse:
    method = "GET" if ask.method == "HEAD" else ask.method
    allowed: set[str] = set()
    for known, pattern, handler in _TABLE:
        if pattern.fullmatch(ask.name):
            if known == method:
                return await handler(ask)
            allowed.add(known)
    path = ask.path
    raise Refusal(answers.wrong_method(method, path, allowed) if allowed else answers.unknown_url(method, path))
