"""File search stores: documents come in by upload or from a file, by way of an operation; their bytes go out as media."""

from __future__ import annotations

from balancer.standin.answers import Json, Reply, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.files import media
from balancer.standin.made import now
from balancer.standin.shelf import Blob, Resource

_TYPE = "type.googleapis.com/google.ai.generativelanguage.v1main"


async def create(ask: Ask) -> Reply:
    body = await ask.json()
    name = ask.world.shelf.fresh("fileSearchStores")
    data: Json = {"name": name, "createTime": now(ask), "updateTime": now(ask)}
    data |= {key: body[key] for key in ("displayName", "embeddingModel") if key in body}
    return ok(ask.world.shelf.put(ask.project, name, data).data)


async def delete(ask: Ask) -> Reply:
    """Only an empty store, or any with `force`."""
    found = ask.require(ask.name)
    full = ask.world.shelf.children(ask.project, f"{found.name}/documents")
    if full and ask.query.get("force", "").lower() != "true":
        raise refuse(400, "Cannot delete non-empty FileSearchStore.", code="FAILED_PRECONDITION")
    ask.world.shelf.remove(found)
    return ok({})


async def import_file(ask: Ask) -> Reply:
    store = ask.require(ask.name)
    body = await ask.json()
    name = body.get("fileName") or body.get("file_name")
    if not isinstance(name, str):
        raise refuse(400, "file_name is not specified")
    source = ask.require_named(name)
    blob = ask.world.shelf.blob()
    if source.blob is not None:
        async for piece in source.blob.chunks():
            await blob.write(piece)
    return ok(add_document(ask, store, blob, source.data, uploaded=False))


def add_document(ask: Ask, store: Resource, blob: Blob, wanted: Json, *, uploaded: bool) -> Json:
    """A document and the operation that made it: pending for the caller, done for whoever asks later."""
    shelf = ask.world.shelf
    name = shelf.fresh(f"{store.name}/documents")
    short = name.rpartition("/")[2]
    data = {
        "name": name,
        "displayName": wanted.get("displayName") or wanted.get("display_name") or short,
        "mimeType": wanted.get("mimeType") or wanted.get("mime_type") or "application/octet-stream",
        "sizeBytes": str(blob.size),
        "state": "STATE_ACTIVE",
        "createTime": now(ask),
        "updateTime": now(ask),
    }
    shelf.put(store.project, name, data)
    shelf.put(store.project, f"{store.name}/media/{short}", {"mimeType": data["mimeType"]}, blob=blob)
    documents = len(shelf.children(store.project, f"{store.name}/documents"))
    store.data |= {"activeDocumentsCount": str(documents), "updateTime": now(ask)}
    operation = shelf.fresh(f"{store.name}/upload/operations" if uploaded else f"{store.name}/operations")
    kind = "UploadToFileSearchStoreResponse" if uploaded else "ImportFileResponse"
    answer = {"@type": f"{_TYPE}.{kind}", "parent": store.name, "documentName": name}
    shelf.put(store.project, operation, {"name": operation, "done": True, "response": answer})
    return {"name": operation, "response": answer} if uploaded else {"name": operation}


async def download(ask: Ask) -> Reply:
    return media(ask, ask.require(ask.name))
