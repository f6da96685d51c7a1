"""The stand-in without memory, for benchmarks: as little work per request as an upstream can do."""

from __future__ import annotations

from aiohttp import web

from balancer.standin.answers import Json, Reply
from balancer.standin.openai.answers import FRAME, JSON, SSE, event, ok
from balancer.standin.openai.chat import DONE
from balancer.standin.openai.said import Said, deltas, usage, whole
from balancer.standin.world import SEEN

_SMALL = 256 << 10
"""Bytes of a body that is looked at whole: those that are larger are read and forgotten."""
_SAID = Said("Hello from the stand-in.", (), 4, cut=False)


def _frame(kind: str) -> Json:
    return {"id": "chatcmpl-plain", "object": kind, "created": 1_760_000_000, "model": "gpt-4o-mini"}


def _head(kind: str) -> Reply:
    return Reply(content_type=kind, headers=[("x-request-id", "req_plain")], frame=FRAME)


_WHOLE = ok(_frame("chat.completion") | {"choices": whole(_SAID), "usage": usage(_SAID)}).body
_EVENTS = [*(event(_frame("chat.completion.chunk") | {"choices": each}) for each in deltas(_SAID)), DONE]
_WHOLE_HEAD = _head(JSON).head()
_STREAM_HEAD = _head(SSE).head()
_FILE = ok({"id": "file-plain", "object": "file", "purpose": "user_data", "filename": "plain", "bytes": 0}).body
_SCRIPTED = (b"stand-in-", b'"bytes-')
_STREAMED = (b'"stream":true', b'"stream": true')


async def answer_quickly(request: web.BaseRequest) -> web.StreamResponse | None:
    """The fixed answer, or None where the whole stand-in is wanted: models made for sizes and speeds, and other calls."""
    if request.method != "POST":
        return None
    path = request.raw_path.partition("?")[0]
    if path == "/v1/files":
        await _drain(request)
        return web.Response(body=_FILE, headers=_WHOLE_HEAD)
    if path != "/v1/chat/completions":
        return None
    length = request.content_length
    body = await request.content.read() if length is not None and length <= _SMALL else await request.content.readany()
    if any(word in body for word in _SCRIPTED):
        request[SEEN] = body
        return None
    await _drain(request)
    if not any(word in body for word in _STREAMED):
        return web.Response(body=_WHOLE, headers=_WHOLE_HEAD)
    response = web.StreamResponse(headers=_STREAM_HEAD)
    response.enable_chunked_encoding()
    await response.prepare(request)
    for each in _EVENTS:
        await response.write(each)
    return response


async def _drain(request: web.BaseRequest) -> None:
    if request.can_read_body:
        async for _ in request.content.iter_any():
            pass
