"""The list of models: everybody's, and those that a project has tuned."""

from __future__ import annotations

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask

_CREATED = 1_760_000_000


async def index(ask: Ask) -> Reply:
    own = [each.data for each in ask.world.shelf.children(ask.project, "models")]
    return ok({"object": "list", "data": [*map(_entry, ask.world.models), *own]})


async def get(ask: Ask) -> Reply:
    model = _named(ask)
    own = ask.find(f"models/{model}")
    return ok(_entry(model) if own is None else own.data)


async def delete(ask: Ask) -> Reply:
    """Only what the project has tuned."""
    model = _named(ask)
    own = ask.find(f"models/{model}")
    if own is None:
        raise answers.refuse(403, "You have insufficient permissions for this operation.")
    ask.world.shelf.remove(own)
    return ok({"id": model, "object": "model", "deleted": True})


def _named(ask: Ask) -> str:
    model = ask.name.removeprefix("models/")
    if not ask.world.has_model(model, ask.project):
        raise answers.no_model(model)
    return model


def _entry(model: str) -> Json:
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": "system"}
