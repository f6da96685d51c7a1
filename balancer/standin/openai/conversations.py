"""Conversations: items that responses add to and that clients read, add and take away."""

from __future__ import annotations

from typing import Any

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask
from balancer.standin.openai.lists import listing
from balancer.standin.shelf import Resource

_MOST = 20
"""Items that one call may add."""


def named(body: Json) -> str | None:
    """The conversation that a body names, by its id or as an object."""
    given = body.get("conversation")
    found = given.get("id") if isinstance(given, dict) else given
    return found if isinstance(found, str) else None


async def create(ask: Ask) -> Reply:
    body = await ask.json()
    given = _given(body)
    name, identity = ask.fresh("conversations", "conv_")
    data = {"id": identity, "object": "conversation", "created_at": ask.now, "metadata": body.get("metadata") or {}}
    made = ask.put(name, data)
    extend(ask, identity, given)
    return ok(made.data)


def _given(body: Json) -> list[Json]:
    given: Any = body.get("items") or []
    if not isinstance(given, list):
        raise answers.wrong_type("items", "an array of objects", given)
    if len(given) > _MOST:
        text = f"Invalid 'items': array too long. Expected an array with maximum length {_MOST}."
        raise answers.refuse(400, text, param="items", code="array_above_max_length")
    return [each for each in given if isinstance(each, dict)]


def extend(ask: Ask, identity: str, given: list[Json]) -> list[Json]:
    """Add items to a conversation of the asker's project, each with an id and content in parts."""
    return [_put(ask, identity, item) for item in given]


def _put(ask: Ask, identity: str, item: Json) -> Json:
    prefix = "fc_" if item.get("type") == "function_call" else "msg_"
    name, fresh = ask.fresh(f"conversations/{identity}/items", prefix)
    data: Json = {"type": "message", "status": "completed"} | item | {"id": fresh}
    if isinstance(data.get("content"), str):
        kind = "output_text" if data.get("role") == "assistant" else "input_text"
        data["content"] = [{"type": kind, "text": data["content"]}]
    return ask.put(name, data).data


def _held(ask: Ask) -> Resource:
    return ask.require("/".join(ask.name.split("/")[:2]))


async def get(ask: Ask) -> Reply:
    return ok(_held(ask).data)


async def update(ask: Ask) -> Reply:
    found = _held(ask)
    found.data["metadata"] = (await ask.json()).get("metadata") or {}
    return ok(found.data)


async def delete(ask: Ask) -> Reply:
    found = _held(ask)
    ask.world.shelf.remove(found)
    return ok({"id": found.data["id"], "object": "conversation.deleted", "deleted": True})


async def add_items(ask: Ask) -> Reply:
    found = _held(ask)
    made = extend(ask, str(found.data["id"]), _given(await ask.json()))
    ends = {"first_id": made[0]["id"], "last_id": made[-1]["id"]} if made else {"first_id": None, "last_id": None}
    return ok({"object": "list", "data": made, "has_more": False} | ends)


async def list_items(ask: Ask) -> Reply:
    return listing(ask, f"{_held(ask).name}/items")


async def get_item(ask: Ask) -> Reply:
    _held(ask)
    return ok(ask.require(ask.name, "item_id").data)


async def delete_item(ask: Ask) -> Reply:
    found = _held(ask)
    ask.world.shelf.remove(ask.require(ask.name, "item_id"))
    return ok(found.data)
