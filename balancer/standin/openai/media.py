"""Pictures and speech: a PNG of one pixel, a short MP3, and transcripts that say what was sent."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator

from balancer.standin.answers import Json, Reply
from balancer.standin.gemini import PIXEL, thirds
from balancer.standin.openai import answers
from balancer.standin.openai.answers import SSE, event, ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.chat import DONE
from balancer.standin.openai.multipart import Form, discard, form
from balancer.standin.openai.said import count
from balancer.standin.sizes import filled, wanted_bytes

_KINDS = {
    "mp3": "audio/mpeg", "opus": "audio/opus", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm",
}  # fmt: skip
_SPEECH_MODEL = "gpt-4o-mini-tts"


async def generate(ask: Ask) -> Reply:
    body = await ask.json()
    if not isinstance(body.get("prompt"), str):
        raise answers.missing("prompt")
    model = ask.known_model({"model": "dall-e-2"} | body)
    if body.get("stream"):
        return Reply(_drawn(ask, body), content_type=SSE)
    return _pictures(ask, model, body.get("n"), body.get("response_format"))


async def edit(ask: Ask) -> Reply:
    """`/images/edits`, whose pictures come as a form or as a JSON body that names files."""
    return await _changed(ask, needs_prompt=True)


async def vary(ask: Ask) -> Reply:
    """`/images/variations`."""
    return await _changed(ask, needs_prompt=False)


async def _changed(ask: Ask, *, needs_prompt: bool) -> Reply:
    if ask.multipart:
        sent = await form(ask)
        discard(ask, sent)
        sent.file("image")
        body = sent.fields
    else:
        body = await ask.json()
        if not body.get("images"):
            raise answers.missing("images")
    if needs_prompt and "prompt" not in body:
        raise answers.missing("prompt")
    model = ask.known_model({"model": "dall-e-2"} | body)
    return _pictures(ask, model, body.get("n"), body.get("response_format"))


def _pictures(ask: Ask, model: str, n: object, wanted: object) -> Reply:
    times = int(str(n)) if str(n).isdigit() else 1
    if not 1 <= times <= 10:
        raise answers.refuse(400, "Invalid 'n': expected an integer from 1 to 10.", param="n", code="invalid_value")
    as_url = wanted == "url" or (wanted is None and model.startswith("dall-e"))
    url = "https://oaidalleapiprodscus.blob.core.windows.net/private/stand-in.png"
    picture: Json = {"url": url} if as_url else {"b64_json": PIXEL}
    spent = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    return ok({"created": ask.now, "data": [picture] * times, "usage": spent})


async def _drawn(ask: Ask, body: Json) -> AsyncGenerator[bytes, None]:
    """Streamed pictures: the partial ones that were asked for, and the whole."""
    about: Json = {"b64_json": PIXEL, "created_at": ask.now, "size": "1024x1024", "quality": "high"}
    about |= {"background": "opaque", "output_format": "png"}
    partial = body.get("partial_images")
    for n in range(partial if isinstance(partial, int) else 0):
        name = "image_generation.partial_image"
        yield event({"type": name, "partial_image_index": n} | about, name)
    name = "image_generation.completed"
    spent = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    yield event({"type": name, "usage": spent} | about, name)


async def speak(ask: Ask) -> Reply:
    """Bytes of the format that was asked for. A model made of bytes gives that many."""
    body = await ask.json()
    model = ask.known_model({"model": _SPEECH_MODEL} | body)
    for param in ("input", "voice"):
        if not body.get(param):
            raise answers.missing(param)
    kind = _KINDS.get(str(body.get("response_format") or "mp3"))
    if kind is None:
        raise answers.refuse(400, "Invalid value for 'response_format'.", param="response_format", code="invalid_value")
    head = b"ID3\x04\x00\x00\x00\x00\x00\x00" + str(body["input"]).encode()
    if body.get("stream_format") == "sse":
        return Reply(_spoken(head), content_type=SSE)
    return Reply(filled(head, max(wanted_bytes(model), len(head)), b""), content_type=kind)


async def _spoken(data: bytes) -> AsyncGenerator[bytes, None]:
    yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    spent = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    yield event({"type": "speech.audio.done", "usage": spent})


async def transcribe(ask: Ask) -> Reply:
    return await _heard(ask, "transcribe")


async def translate(ask: Ask) -> Reply:
    return await _heard(ask, "translate")


async def _heard(ask: Ask, task: str) -> Reply:
    """What was heard: name, size and SHA-256 of the file that was sent."""
    sent = await form(ask)
    try:
        text = _transcript(sent)
    finally:
        discard(ask, sent)
    ask.known_model(sent.fields)
    if sent.fields.get("stream") == "true":
        return Reply(_heard_stream(text), content_type=SSE)
    wanted = sent.fields.get("response_format", "json")
    if wanted in ("text", "srt", "vtt"):
        return Reply(f"{text}\n".encode(), content_type="text/plain; charset=utf-8")
    answer: Json = {"text": text}
    if wanted == "verbose_json":
        answer |= {"task": task, "language": "english", "duration": 1.0, "segments": []}
    return ok(answer | {"usage": {"type": "duration", "seconds": 1}})


def _transcript(sent: Form) -> str:
    file = sent.file("file")
    return f"You sent: {file.name}, {file.blob.size} bytes, sha256 {file.blob.sha256}"


async def _heard_stream(text: str) -> AsyncGenerator[bytes, None]:
    for piece in thirds(text):
        yield event({"type": "transcript.text.delta", "delta": piece})
    spent = {"type": "tokens", "input_tokens": 1, "output_tokens": count(text), "total_tokens": count(text) + 1}
    yield event({"type": "transcript.text.done", "text": text, "usage": spent})
    yield DONE
