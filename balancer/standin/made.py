"""What clients make and what then belongs to their project: any collection, and those with a shape of their own.

A collection that the stand-in has never heard of works like the others: POST makes `newThings/x1`, GET, PATCH and DELETE find it
for its project and answer 404 to everybody else.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from datetime import datetime

from balancer.standin import answers
from balancer.standin.answers import Json, Refusal, Reply, ok, refuse
from balancer.standin.ask import Ask
from balancer.standin.gemini import model_data, tokens
from balancer.standin.shelf import Resource, timestamp

_COLLECTION = re.compile(r"[a-z][A-Za-z0-9_]*")
_LIST_FIELDS = {"batches": "operations"}
_HOUR = 3600.0


async def generic(ask: Ask, method: str) -> Reply:
    parts = ask.name.replace("/upload/operations", "/operations").split("/")
    if not all(parts) or not all(_COLLECTION.fullmatch(part) for part in parts[::2]):
        raise Refusal(answers.no_such_page())
    if ask.verb:
        return await _act(ask, method)
    if len(parts) % 2:
        if len(parts) > 1:
            ask.require(ask.name.rpartition("/")[0])
        if method == "POST":
            return await _create(ask)
        if method == "GET":
            return listing(ask, ask.name)
    else:
        found = ask.require(ask.name)
        if method == "GET":
            return await _get(found)
        if method in ("PATCH", "PUT"):
            found.data |= await ask.json() | {"name": found.name}
            return ok(found.data)
        if method == "DELETE":
            ask.world.shelf.remove(found)
            return ok({})
    raise Refusal(answers.no_such_page())


async def _get(found: Resource) -> Reply:
    return ok(await found.looked_at())


async def _create(ask: Ask) -> Reply:
    body = await ask.json()
    chosen = body.get("name")
    name = (
        chosen if isinstance(chosen, str) and chosen.startswith(f"{ask.name}/") else ask.world.shelf.numbered(ask.name)
    )
    made = ask.world.shelf.put(ask.project, name, body | {"name": name, "createTime": now(ask)})
    return ok(made.data)


async def _act(ask: Ask, method: str) -> Reply:
    """A verb that nobody knows, on a resource: it exists, so be it."""
    if method not in ("POST", "GET"):
        raise Refusal(answers.no_such_page())
    found = ask.require(ask.name)
    await ask.json()
    return ok({} if ask.verb == "cancel" else found.data)


def listing(ask: Ask, collection: str) -> Reply:
    """One page of what the project has in a collection, newest first."""
    found = ask.world.shelf.children(ask.project, collection)
    entries = [(resource.serial, resource.data) for resource in found]
    return page(ask, _LIST_FIELDS.get(collection, collection.rpartition("/")[2]), entries, limit=100)


async def list_models(ask: Ask) -> Reply:
    entries = [(-n, model_data(model)) for n, model in enumerate(ask.world.models, 1)]
    return page(ask, "models", entries, limit=1000)


def page(ask: Ask, member: str, entries: list[tuple[int, Json]], limit: int) -> Reply:
    """A page of entries that come with falling serial numbers. A token is good for one collection of one project."""
    size = _page_size(ask, limit)
    if token := ask.query.get("pageToken") or ask.query.get("page_token"):
        last = _serial(ask, token)
        entries = [entry for entry in entries if entry[0] < last]
    answer: Json = {}
    if entries:
        answer[member] = [data for _, data in entries[:size]]
    if len(entries) > size:
        answer["nextPageToken"] = _token(ask, entries[size - 1][0])
    return ok(answer)


def _page_size(ask: Ask, limit: int) -> int:
    given = ask.query.get("pageSize") or ask.query.get("page_size") or "50"
    if not given.isdigit():
        raise refuse(400, f"Invalid value at 'page_size' (TYPE_INT32), \"{given}\"")
    return min(int(given) or 50, limit)


def _token(ask: Ask, serial: int) -> str:
    return base64.urlsafe_b64encode(f"{ask.project}\n{ask.name}\n{serial}".encode()).decode()


def _serial(ask: Ask, token: str) -> int:
    try:
        project, collection, serial = base64.urlsafe_b64decode(token).decode().split("\n")
        if (project, collection) == (ask.project, ask.name):
            return int(serial)
    except (ValueError, binascii.Error):
        pass
    raise refuse(400, "Page token is invalid.")


def now(ask: Ask) -> str:
    return timestamp(ask.world.clock.wall())


async def create_cache(ask: Ask) -> Reply:
    body = await ask.json()
    model = str(body.get("model", ""))
    if not ask.world.has_model(model.removeprefix("models/")):
        raise Refusal(answers.model_not_found(model or "models/", ask.version, "createCachedContent"))
    name = ask.world.shelf.fresh("cachedContents")
    lifetime = _lifetime(ask, body)
    kept: Json = {key: body[key] for key in ("model", "displayName") if key in body}
    data: Json = {
        "name": name,
        **kept,
        "createTime": now(ask),
        "updateTime": now(ask),
        "expireTime": timestamp(ask.world.clock.wall() + lifetime),
        "usageMetadata": {"totalTokenCount": max(tokens(body), 1024)},
    }
    return ok(ask.world.shelf.put(ask.project, name, data, lifetime=lifetime).data)


async def patch_cache(ask: Ask) -> Reply:
    found = ask.require(ask.name)
    lifetime = _lifetime(ask, await ask.json())
    found.expires = ask.world.clock.wall() + lifetime
    found.data |= {"updateTime": now(ask), "expireTime": timestamp(found.expires)}
    return ok(found.data)


def _lifetime(ask: Ask, body: Json) -> float:
    """Seconds that a cache lives: from `ttl` ("3600s") or `expireTime`, else an hour."""
    try:
        if ttl := body.get("ttl"):
            return float(str(ttl).removesuffix("s"))
        if expires := body.get("expireTime") or body.get("expire_time"):
            return datetime.fromisoformat(str(expires)).timestamp() - ask.world.clock.wall()
    except ValueError as wrong:
        raise refuse(400, f"Invalid value at 'cached_content': {wrong}") from None
    return _HOUR


async def tune(ask: Ask) -> Reply:
    """Tuning ends at once: the model exists, and the operation is done when someone looks."""
    body = await ask.json()
    shelf = ask.world.shelf
    chosen = ask.query.get("tunedModelId") or ask.query.get("tuned_model_id")
    name = f"tunedModels/{chosen}" if chosen else shelf.fresh("tunedModels")
    base = body.get("baseModel", "models/gemini-2.0-flash")
    model = {
        "name": name,
        "baseModel": base,
        "displayName": body.get("displayName", ""),
        "state": "ACTIVE",
        "createTime": now(ask),
        "updateTime": now(ask),
        "tuningTask": {"startTime": now(ask), "completeTime": now(ask)},
    }
    shelf.put(ask.project, name, model)
    kind = "type.googleapis.com/google.ai.generativelanguage.v1beta"
    metadata = {"@type": f"{kind}.CreateTunedModelMetadata", "tunedModel": name, "totalSteps": 1}
    operation: Json = {"name": shelf.fresh(f"{name}/operations"), "metadata": metadata}
    done = operation | {"done": True, "response": {"@type": f"{kind}.TunedModel", **model}}
    shelf.put(ask.project, operation["name"], done)
    return ok(operation)


async def create_token(ask: Ask) -> Reply:
    body = await ask.json()
    name = f"auth_tokens/{secrets.token_hex(32)}"
    ask.world.shelf.put(ask.project, name, {"name": name} | body)
    return ok({"name": name})
