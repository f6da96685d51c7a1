"""Vector stores and containers: what files do in them."""

from __future__ import annotations

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask, several
from balancer.standin.openai.files import media
from balancer.standin.shelf import Blob, Resource

_SHOWN = 1 << 20
"""Bytes of a file that its content page shows."""
VECTOR_STORE: Json = {
    "name": "",
    "usage_bytes": 0,
    "status": "completed",
    "expires_after": None,
    "expires_at": None,
    "last_active_at": None,
}
STORED_FILE: Json = {"status": "completed", "usage_bytes": 0, "last_error": None, "attributes": {}}


def _counts(n: int) -> Json:
    return {"in_progress": 0, "completed": n, "failed": 0, "cancelled": 0, "total": n}


async def fill_vector_store(ask: Ask, made: Resource, body: Json) -> None:
    """The files that it was made with."""
    made.data.pop("file_ids", None)
    identities = several(body, "file_ids")
    for identity in identities:
        _store(ask, made, str(identity))
    made.data["file_counts"] = _counts(len(identities))


def _store(ask: Ask, store: Resource, identity: str) -> None:
    name = f"{store.name}/files/{identity}"
    ask.require(f"files/{identity}", "file_id")
    if ask.find(name) is None:
        about = {"id": identity, "object": "vector_store.file", "created_at": ask.now}
        ask.put(name, about | STORED_FILE | {"vector_store_id": store.data["id"]})


async def count(ask: Ask, made: Resource, body: Json) -> None:
    """A file was added: it says where it is, and its store how many there are."""
    ask.require(f"files/{made.data['id']}", "file_id")
    store = ask.require("/".join(made.name.split("/")[:2]))
    made.data.pop("file_id", None)
    made.data["vector_store_id"] = store.data["id"]
    store.data["file_counts"] = _counts(len(ask.world.shelf.children(ask.project, f"{store.name}/files")))


async def fill_batch(ask: Ask, made: Resource, body: Json) -> None:
    files = [each.get("file_id") for each in several(body, "files") if isinstance(each, dict)]
    identities = several(body, "file_ids") or files
    if not identities:
        raise answers.missing("file_ids")
    store = ask.require("/".join(made.name.split("/")[:2]))
    for identity in identities:
        _store(ask, store, str(identity))
    for member in ("file_ids", "files"):
        made.data.pop(member, None)
    made.data |= {"vector_store_id": store.data["id"], "file_counts": _counts(len(identities))}
    store.data["file_counts"] = _counts(len(ask.world.shelf.children(ask.project, f"{store.name}/files")))


async def cancel_batch(ask: Ask) -> Reply:
    return ok(ask.require(ask.name.removesuffix("/cancel")).data)


async def batch_files(ask: Ask) -> Reply:
    """The files of the store that the batch went into."""
    batch = ask.require("/".join(ask.name.split("/")[:4]))
    found = ask.world.shelf.children(ask.project, f"vector_stores/{batch.data['vector_store_id']}/files")
    return ok({"object": "list", "data": [each.data for each in found], "has_more": False})


async def search(ask: Ask) -> Reply:
    """Every file of the store, with what was asked for as its text."""
    store = ask.require(ask.name.removesuffix("/search"))
    query = (await ask.json()).get("query")
    if not query:
        raise answers.missing("query")
    queries = query if isinstance(query, list) else [query]
    data = [
        {
            "file_id": each.data["id"],
            "filename": each.data["id"],
            "score": 0.5,
            "attributes": {},
            "content": [{"type": "text", "text": f"You said: {queries[0]}"}],
        }
        for each in ask.world.shelf.children(ask.project, f"{store.name}/files")
    ]
    page = {"search_query": queries, "data": data, "has_more": False, "next_page": None}
    return ok({"object": "vector_store.search_results.page"} | page)


async def stored_content(ask: Ask) -> Reply:
    found = ask.require(ask.name.removesuffix("/content"))
    blob = ask.require(f"files/{found.data['id']}").blob or Blob()
    text = (await blob.read(0, _SHOWN)).decode("utf-8", "replace")
    page = {"data": [{"type": "text", "text": text}], "has_more": False, "next_page": None}
    return ok({"object": "vector_store.file_content.page"} | page)


async def fill_container(ask: Ask, made: Resource, body: Json) -> None:
    """Copies of the files that it was made with."""
    made.data.pop("file_ids", None)
    for identity in several(body, "file_ids"):
        name, fresh = ask.fresh(f"{made.name}/files", "cfile_")
        copy = ask.put(name, {"id": fresh, "object": "container.file", "created_at": ask.now, "source": "user"})
        await place_file(ask, copy, {"file_id": identity})


async def place_file(ask: Ask, made: Resource, body: Json) -> None:
    """A file in a container: uploaded there, or copied from the project's files."""
    if made.blob is None:
        if not isinstance(body.get("file_id"), str):
            raise answers.missing("file_id")
        source = ask.require(f"files/{body['file_id']}", "file_id")
        made.blob = ask.world.shelf.blob()
        async for piece in (source.blob or Blob()).chunks():
            await made.blob.write(piece)
        made.data["filename"] = source.data["filename"]
    for member in ("file_id", "metadata"):
        made.data.pop(member, None)
    made.data |= {
        "container_id": made.name.split("/")[1],
        "bytes": made.blob.size,
        "path": f"/mnt/data/{made.data.pop('filename', 'file')}",
    }


async def content(ask: Ask) -> Reply:
    """Bytes of what was made with bytes: a container's file, a skill."""
    return media(ask.require(ask.name.removesuffix("/content")))
