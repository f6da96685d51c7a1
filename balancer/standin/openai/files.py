"""Files, and uploads that become one: parts in any order, put together by `complete`."""

from __future__ import annotations

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.lists import listing
from balancer.standin.openai.multipart import discard, form
from balancer.standin.shelf import Blob, Resource

_PURPOSES = frozenset({
    "assistants", "assistants_output", "batch", "batch_output", "fine-tune", "fine-tune-results", "vision", "user_data", "evals",
})  # fmt: skip
_UPLOAD_LIFETIME = 3600


async def create(ask: Ask) -> Reply:
    sent = await form(ask)
    try:
        purpose = _purpose(sent.fields)
        file = sent.file("file")
    except BaseException:
        discard(ask, sent)
        raise
    return ok(add(ask, file.blob, file.name, purpose).data)


def _purpose(fields: Json) -> str:
    if "purpose" not in fields:
        raise answers.missing("purpose")
    if not isinstance(fields["purpose"], str) or fields["purpose"] not in _PURPOSES:
        text = f"'{fields['purpose']}' is not one of {sorted(_PURPOSES)} - 'purpose'"
        raise answers.refuse(400, text, param="purpose", code="invalid_value")
    return str(fields["purpose"])


def add(ask: Ask, blob: Blob, filename: str, purpose: str, project: str | None = None) -> Resource:
    """A finished file of the asker's project, or of the one named."""
    name, identity = ask.fresh("files", "file-")
    data: Json = {
        "object": "file",
        "id": identity,
        "purpose": purpose,
        "filename": filename,
        "bytes": blob.size,
        "created_at": ask.now,
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }
    return ask.world.shelf.put(project or ask.project, name, data, blob=blob)


async def index(ask: Ask) -> Reply:
    purpose = ask.query.get("purpose")
    return listing(
        ask, "files", limit=10_000, most=10_000, where=lambda data: purpose is None or data["purpose"] == purpose
    )


async def get(ask: Ask) -> Reply:
    return ok(ask.require(ask.name).data)


async def content(ask: Ask) -> Reply:
    """The bytes as they were given, at constant memory."""
    return media(ask.require(ask.name.removesuffix("/content")))


def media(found: Resource, kind: str = "application/octet-stream") -> Reply:
    blob = found.blob or Blob()
    shown = [("content-disposition", f'attachment; filename="{found.data.get("filename", "file")}"')]
    return Reply(blob.chunks(), content_type=kind, headers=shown, length=blob.size)


async def delete(ask: Ask) -> Reply:
    found = ask.require(ask.name)
    ask.world.shelf.remove(found)
    return ok({"object": "file", "id": found.data["id"], "deleted": True})


async def create_upload(ask: Ask) -> Reply:
    body = await ask.json()
    for param in ("bytes", "filename", "mime_type", "purpose"):
        if param not in body:
            raise answers.missing(param)
    if not isinstance(body["bytes"], int):
        raise answers.wrong_type("bytes", "an integer", body["bytes"])
    name, identity = ask.fresh("uploads", "upload_")
    data: Json = {
        "id": identity,
        "object": "upload",
        "bytes": body["bytes"],
        "created_at": ask.now,
        "filename": body["filename"],
        "purpose": _purpose(body),
        "status": "pending",
        "expires_at": ask.now + _UPLOAD_LIFETIME,
        "file": None,
    }
    return ok(ask.put(name, data).data)


def _upload(ask: Ask) -> Resource:
    """The upload that the path begins with, still open."""
    found = ask.require("/".join(ask.name.split("/")[:2]))
    if found.data["status"] != "pending":
        raise answers.refuse(400, f"Upload {found.data['id']} is already {found.data['status']}.", param="id")
    return found


async def add_part(ask: Ask) -> Reply:
    upload = _upload(ask)
    sent = await form(ask)
    blob = sent.file("data").blob
    name, identity = ask.fresh(f"{upload.name}/parts", "part_")
    data = {"id": identity, "object": "upload.part", "created_at": ask.now, "upload_id": upload.data["id"]}
    return ok(ask.put(name, data, blob=blob).data)


async def complete_upload(ask: Ask) -> Reply:
    upload = _upload(ask)
    wanted = (await ask.json()).get("part_ids")
    if not isinstance(wanted, list) or not wanted:
        raise answers.missing("part_ids")
    parts = [ask.require(f"{upload.name}/parts/{each}", "part_ids") for each in wanted]
    total = sum(part.blob.size for part in parts if part.blob is not None)
    if total != upload.data["bytes"]:
        text = f"Upload has {total} bytes where {upload.data['bytes']} were announced."
        raise answers.refuse(400, text, param="bytes", code="invalid_value")
    whole = ask.world.shelf.blob()
    for part in parts:
        async for piece in (part.blob or Blob()).chunks():
            await whole.write(piece)
    for part in ask.world.shelf.children(ask.project, f"{upload.name}/parts"):
        ask.world.shelf.remove(part)
    made = add(ask, whole, str(upload.data["filename"]), str(upload.data["purpose"]))
    upload.data |= {"status": "completed", "file": made.data}
    return ok(upload.data)


async def cancel_upload(ask: Ask) -> Reply:
    upload = _upload(ask)
    for part in ask.world.shelf.children(ask.project, f"{upload.name}/parts"):
        ask.world.shelf.remove(part)
    upload.data["status"] = "cancelled"
    return ok(upload.data)
