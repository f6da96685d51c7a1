"""The stand-in without memory, for benchmarks: as little work per request as an upstream can do."""

from __future__ import annotations

from aiohttp import hdrs, web

from balancer.standin.answers import JSON, SSE, Reply, compact, pretty
from balancer.standin.gemini import answer

_DIGEST = "00" * 32
_WHOLE = Reply(pretty(answer("gemini-2.5-flash", "Hello from the stand-in.", _DIGEST, 4)))
_HEAD = _WHOLE.head()
_EVENTS = [
    b"data: %b\r\n\r\n" % compact(answer("gemini-2.5-flash", text, _DIGEST, 4, finish))
    for text, finish in (("Hello ", None), ("from the ", None), ("stand-in.", "STOP"))
]
_STREAM_HEAD = Reply(content_type=SSE).head()
_FILE = pretty({"file": {"name": "files/plain", "uri": "https://generativelanguage.googleapis.com/v1beta/files/plain"}})


async def answer_quickly(request: web.BaseRequest) -> web.StreamResponse | None:
    """The fixed answer, or None where the whole stand-in is wanted: models made for sizes and speeds, and other calls."""
    path = request.raw_path
    if "bytes-" in path or "/stand-in-" in path:
        return None
    if ":generateContent" in path:
        await _drain(request)
        return web.Response(body=_WHOLE.body, headers=_HEAD)
    if ":streamGenerateContent" in path:
        await _drain(request)
        response = web.StreamResponse(headers=_STREAM_HEAD)
        response.enable_chunked_encoding()
        await response.prepare(request)
        for event in _EVENTS:
            await response.write(event)
        return response
    if path.startswith("/upload/"):
        return await _upload(request)
    return None


async def _upload(request: web.BaseRequest) -> web.StreamResponse:
    await _drain(request)
    if "upload_id" not in request.query:
        url = f"{request.scheme}://{request.host}{request.path}?upload_id=plain&upload_protocol=resumable"
        return web.Response(
            headers={"X-Goog-Upload-Status": "active", "X-Goog-Upload-URL": url, hdrs.CONTENT_TYPE: "text/plain"}
        )
    if "finalize" not in request.headers.get("X-Goog-Upload-Command", ""):
        return web.Response(headers={"X-Goog-Upload-Status": "active", hdrs.CONTENT_TYPE: "text/plain"})
    return web.Response(body=_FILE, headers={"X-Goog-Upload-Status": "final", hdrs.CONTENT_TYPE: JSON})


async def _drain(request: web.BaseRequest) -> None:
    if request.can_read_body:
        async for _ in request.content.iter_any():
            pass
