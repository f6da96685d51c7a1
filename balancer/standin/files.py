"""The Files API but for uploading: data about files, their bytes, and their end."""

from __future__ import annotations

import base64

from balancer.standin import answers
from balancer.standin.answers import Json, Refusal, Reply, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.made import now
from balancer.standin.shelf import Blob, Resource, timestamp

LIFETIME = 48 * 3600.0
VIDEO = b"\x00\x00\x00\x18ftypmp42" + b"stand-in video " * 64


def add(ask: Ask, project: str, blob: Blob, wanted: Json, *, prefix: str = "", source: str = "UPLOADED") -> Resource:
    """A finished file. `wanted` holds what the client may choose: name, displayName, mimeType. 409 if it has the name."""
    world = ask.world
    chosen = str(wanted.get("name") or "")
    name = f"files/{chosen.removeprefix('files/')}" if chosen else world.shelf.fresh("files", prefix)
    uri = f"{world.host}/v1beta/{name}"
    data: Json = {"name": name}
    if shown := wanted.get("displayName") or wanted.get("display_name"):
        data["displayName"] = shown
    data |= {
        "mimeType": wanted.get("mimeType") or wanted.get("mime_type") or "application/octet-stream",
        "sizeBytes": str(blob.size),
        "createTime": now(ask),
        "updateTime": now(ask),
        "expirationTime": timestamp(world.clock.wall() + LIFETIME),
        "sha256Hash": base64.b64encode(blob.sha256.encode()).decode(),
        "uri": uri,
        "state": "ACTIVE",
        "source": source,
    }
    if source == "GENERATED":
        data["downloadUri"] = f"{uri}:download?alt=media"
    return world.shelf.put(project, name, data, blob=blob, lifetime=LIFETIME)


async def create(ask: Ask) -> Reply:
    """A file without bytes, as the metadata-only call makes it."""
    wanted = (await ask.json()).get("file") or {}
    return ok({"file": add(ask, ask.project, ask.world.shelf.blob(), wanted).data})


async def register(ask: Ask) -> Reply:
    """Files that stay in a bucket. Needs the caller's own OAuth token beside the key."""
    if not (ask.arrival.header("authorization") or "").startswith("Bearer "):
        raise Refusal(answers.unauthenticated())
    uris = (await ask.json()).get("uris") or []
    if not uris:
        raise refuse(400, "uris is not specified")
    made = [add(ask, ask.project, ask.world.shelf.blob(), {}, source="REGISTERED").data for _ in uris]
    return ok({"files": made})


async def download(ask: Ask) -> Reply:
    return media(ask, ask.require(ask.name))


def media(ask: Ask, found: Resource) -> Reply:
    """The bytes as they were given, at constant memory."""
    if ask.query.get("alt") != "media":
        raise refuse(400, "Only alt=media is supported for downloads.")
    blob = found.blob
    if blob is None:
        raise Refusal(answers.not_found())
    kind = str(found.data.get("mimeType", "application/octet-stream"))
    disposition = [("Content-Disposition", "attachment")]
    return Reply(blob.chunks(), content_type=kind, headers=disposition, length=blob.size)
