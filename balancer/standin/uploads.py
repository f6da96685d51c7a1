"""Uploads: Google's resumable protocol, its one-shot forms, and the older one with Location and 308.

    start           POST /upload/V/files, X-Goog-Upload-Protocol: resumable, -Command: start -> X-Goog-Upload-URL
    chunk           POST that URL, -Command: upload | upload, finalize, -Offset: N -> X-Goog-Upload-Status: active | final
    query, cancel   POST that URL -> X-Goog-Upload-Size-Received; -Status: cancelled
    raw, multipart  X-Goog-Upload-Protocol (or uploadType=media | multipart): everything in one request
    old             POST ?uploadType=resumable -> Location; PUT with Content-Range -> 308 and Range, at last 200

A chunk may come twice: what is there already is skipped, and a finished upload repeats its last answer. A chunk that
would leave a hole is refused. Bytes of a chunk that broke off stay, as with Google; `query` tells how many. Every answer to
a chunk, errors too, carries the status field, because clients send a chunk again when it is missing.
"""

from __future__ import annotations

import re
import secrets
from contextlib import aclosing

import orjson

from balancer.standin import answers, files, stores
from balancer.standin.answers import Json, Refusal, Reply, error, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.shelf import Blob, Upload

GRANULARITY = 8 << 20
_HEAD = 64 << 10
_REMEMBERED = 10_000
"""Uploads, under way or finished, whose chunks are still known."""
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_STATUS = "X-Goog-Upload-Status"


async def answer_to(ask: Ask) -> Reply:
    if ask.method not in ("POST", "PUT"):
        raise Refusal(answers.no_such_page())
    if identity := ask.query.get("upload_id"):
        upload = ask.world.uploads.get(identity)
        if upload is None:
            return error(404, "Requested entity was not found.", headers=[(_STATUS, "cancelled")])
        async with upload.lock:
            if ask.arrival.header("x-goog-upload-command") is None and ask.query.get("uploadType") == "resumable":
                return await _old_chunk(ask, upload)
            return await _chunk(ask, upload)
    _require_target(ask)
    protocol = (ask.arrival.header("x-goog-upload-protocol") or ask.query.get("uploadType") or "").lower()
    if protocol in ("raw", "media"):
        blob = await _spooled(ask)
        return ok(_finish(ask, ask.project, _target(ask), _wanted(ask, {}, ask.arrival.header("content-type")), blob))
    if protocol == "multipart":
        return await _multipart(ask)
    if protocol == "resumable":
        return await _start(ask)
    raise refuse(400, "Upload protocol is not specified.")


def _target(ask: Ask) -> str:
    return f"{ask.name}:{ask.verb}" if ask.verb else ask.name


def _require_target(ask: Ask) -> None:
    if ask.name != "files":
        ask.require("/".join(ask.name.split("/")[:2]))


async def _start(ask: Ask) -> Reply:
    commands = _commands(ask)
    body = {} if "upload" in commands else await ask.json()
    old = ask.arrival.header("x-goog-upload-protocol") is None
    size = ask.arrival.header("x-upload-content-length" if old else "x-goog-upload-header-content-length")
    kind = ask.arrival.header("x-upload-content-type" if old else "x-goog-upload-header-content-type")
    upload = Upload(
        identity=f"AOCed{secrets.token_urlsafe(24)}",
        key=ask.arrival.key or "",
        project=ask.project,
        target=_target(ask),
        wanted=_wanted(ask, body, kind),
        declared=int(size) if size and size.isdigit() else None,
        blob=ask.world.shelf.blob(),
    )
    ask.world.uploads[upload.identity] = upload
    if len(ask.world.uploads) > _REMEMBERED:
        oldest = ask.world.uploads.pop(next(iter(ask.world.uploads)))
        if oldest.final is None:
            ask.world.shelf.discard(oldest.blob)
    path = ask.request.raw_path.partition("?")[0]
    how = "uploadType=resumable" if old else "upload_protocol=resumable"
    url = f"{ask.request.scheme}://{ask.request.host}{path}?upload_id={upload.identity}&{how}"
    if old:
        return Reply(content_type="text/plain", headers=[("Location", url), ("X-GUploader-UploadID", upload.identity)])
    if "upload" in commands:
        return await _chunk(ask, upload)
    headers = [
        ("X-GUploader-UploadID", upload.identity),
        (_STATUS, "active"),
        ("X-Goog-Upload-URL", url),
        ("X-Goog-Upload-Control-URL", url),
        ("X-Goog-Upload-Chunk-Granularity", str(GRANULARITY)),
    ]
    return Reply(content_type="text/plain", headers=headers)


def _wanted(ask: Ask, body: Json, kind: str | None) -> Json:
    """What the client chose: members of `file`, or of the body itself where the target is a store."""
    inner = body.get("file")
    wanted = dict(inner) if isinstance(inner, dict) else {k: v for k, v in body.items() if k != "file"}
    if not wanted.get("mimeType") and not wanted.get("mime_type"):
        wanted["mimeType"] = kind
    name = ask.arrival.header("x-goog-upload-file-name")
    if name and not wanted.get("displayName") and not wanted.get("display_name"):
        wanted["displayName"] = name
    return wanted


def _commands(ask: Ask) -> set[str]:
    return {word.strip().lower() for word in (ask.arrival.header("x-goog-upload-command") or "").split(",")} - {""}


async def _chunk(ask: Ask, upload: Upload) -> Reply:
    commands = _commands(ask)
    if upload.final is not None:
        await ask.drain()
        return _final(upload.final)
    if "cancel" in commands:
        del ask.world.uploads[upload.identity]
        ask.world.shelf.discard(upload.blob)
        return Reply(content_type="text/plain", headers=[(_STATUS, "cancelled")])
    if "query" in commands:
        return _active(upload)
    if not commands & {"upload", "finalize"}:
        return _refused(upload, 400, "Invalid X-Goog-Upload-Command.")
    if "upload" in commands and (
        refusal := await _append(ask, upload, ask.arrival.header("x-goog-upload-offset") or "0")
    ):
        return refusal
    if "finalize" not in commands:
        return _active(upload)
    if upload.declared is not None and upload.declared != upload.blob.size:
        return _refused(upload, 400, f"Upload has {upload.blob.size} bytes where {upload.declared} were announced.")
    try:
        upload.final = _finish(ask, upload.project, upload.target, upload.wanted, upload.blob)
    except Refusal as refusal:
        refusal.reply.headers.append((_STATUS, "cancelled"))
        raise
    return _final(upload.final)


async def _append(ask: Ask, upload: Upload, offset: str) -> Reply | None:
    """The body to the end of the upload, without what it has already. A refusal where that would leave a hole."""
    blob = upload.blob
    if not offset.isdigit() or int(offset) > blob.size:
        await ask.drain()
        return _refused(upload, 400, f"Upload offset {offset} does not follow the {blob.size} bytes received.")
    skip = blob.size - int(offset)
    async with aclosing(ask.chunks()) as body:
        async for data in body:
            fresh = data[skip:]
            skip = max(0, skip - len(data))
            if fresh:
                await blob.write(fresh)
    return None


def _active(upload: Upload) -> Reply:
    headers = [(_STATUS, "active"), ("X-Goog-Upload-Size-Received", str(upload.blob.size))]
    return Reply(content_type="text/plain", headers=headers)


def _final(answer: Json) -> Reply:
    return ok(answer, [(_STATUS, "final")])


def _refused(upload: Upload, status: int, message: str) -> Reply:
    headers = [(_STATUS, "active"), ("X-Goog-Upload-Size-Received", str(upload.blob.size))]
    return error(status, message, headers=headers)


async def _old_chunk(ask: Ask, upload: Upload) -> Reply:
    """PUT with Content-Range: 308 and the range received, until the last byte is there."""
    if upload.final is not None:
        await ask.drain()
        return ok(upload.final)
    given = ask.arrival.header("content-range")
    match = _RANGE.fullmatch(given) if given else None
    if given and match is None:
        await ask.drain()
        return error(400, "Failed to parse Content-Range header.")
    total: str | None = None
    if match is None or match[1] is not None:
        if await _append(ask, upload, match[1] if match else "0"):
            return error(503, "Content-Range does not follow what was received.")
        total = str(upload.blob.size) if match is None else match[3]
    else:
        total = match[3]
    if total == str(upload.blob.size):
        upload.final = _finish(ask, upload.project, upload.target, upload.wanted, upload.blob)
        return ok(upload.final)
    received = [("Range", f"bytes=0-{upload.blob.size - 1}")] if upload.blob.size else []
    return Reply(status=308, content_type="text/plain", headers=received)


async def _spooled(ask: Ask) -> Blob:
    """The whole body; nothing of it when the client leaves half-way."""
    blob = ask.world.shelf.blob()
    try:
        async for data in ask.chunks():
            await blob.write(data)
    except BaseException:
        ask.world.shelf.discard(blob)
        raise
    return blob


async def _multipart(ask: Ask) -> Reply:
    """multipart/related of two parts, JSON and bytes: spooled as it comes, then taken apart."""
    kind = ask.arrival.header("content-type") or ""
    found = re.search(r'boundary="?([^";]+)"?', kind)
    if found is None:
        raise refuse(400, "Multipart body has no boundary.")
    shelf = ask.world.shelf
    whole = await _spooled(ask)
    boundary = b"--" + found[1].encode()
    head = await whole.read(0, _HEAD)
    tail = await whole.read(max(0, whole.size - len(boundary) - 16))
    try:
        _, about, media = head.split(boundary, 2)
        fields, _, start = media.lstrip(b"\r\n").partition(b"\r\n\r\n")
        body = orjson.loads(about.partition(b"\r\n\r\n")[2])
        begin = len(head) - len(start)
        end = whole.size - len(tail) + tail.rindex(b"\r\n" + boundary)
    except (ValueError, orjson.JSONDecodeError):
        shelf.discard(whole)
        raise refuse(400, "Malformed multipart body.") from None
    blob = shelf.blob()
    async for piece in whole.chunks(begin, end):
        await blob.write(piece)
    shelf.discard(whole)
    mime = re.search(rb"(?i)content-type:\s*([^\r\n]+)", fields)
    return ok(_finish(ask, ask.project, _target(ask), _wanted(ask, body, mime[1].decode() if mime else None), blob))


def _finish(ask: Ask, project: str, target: str, wanted: Json, blob: Blob) -> Json:
    """The bytes are all there: make what they were sent for."""
    if target == "files":
        return {"file": files.add(ask, project, blob, wanted).data}
    name, _, verb = target.partition(":")
    store = ask.world.shelf.get(project, name)
    if verb == "uploadToFileSearchStore" and store is not None:
        return stores.add_document(ask, store, blob, wanted, uploaded=True)
    if verb or store is not None:
        raise Refusal(answers.not_found())
    data = {"name": name, "mimeType": wanted.get("mimeType"), "sizeBytes": str(blob.size)}
    return ask.world.shelf.put(project, name, data, blob=blob).data
