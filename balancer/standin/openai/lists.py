"""Lists as OpenAI pages them: `limit`, `after`, `before` and `order`, newest first unless asked otherwise."""

from __future__ import annotations

from collections.abc import Callable

from balancer.standin.answers import Json, Reply
from balancer.standin.openai import answers
from balancer.standin.openai.answers import ok
from balancer.standin.openai.ask import Ask


def listing(
    ask: Ask, collection: str, *, limit: int = 20, most: int = 100, where: Callable[[Json], bool] | None = None
) -> Reply:
    """One page of what the project has in a collection."""
    found = [each.data for each in ask.world.shelf.children(ask.project, collection)]
    return page(ask, [data for data in found if where is None or where(data)], limit=limit, most=most)


def page(ask: Ask, newest_first: list[Json], *, limit: int = 20, most: int = 100, order: str = "desc") -> Reply:
    """A page of entries. `order` is what the list has where the client does not say. A cursor must be one of the entries."""
    size = _limit(ask, limit, most)
    wanted = ask.query.get("order", order)
    if wanted not in ("asc", "desc"):
        text = f"Invalid value: '{wanted}'. Supported values are: 'asc' and 'desc'."
        raise answers.refuse(400, text, param="order", code="invalid_value")
    entries = newest_first if wanted == order else newest_first[::-1]
    if after := ask.query.get("after"):
        entries = entries[_place(entries, "after", after) + 1 :]
    if before := ask.query.get("before"):
        entries = entries[: _place(entries, "before", before)]
    shown = entries[:size]
    return ok(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(entries) > size,
        }
    )


def _limit(ask: Ask, default: int, most: int) -> int:
    given = ask.query.get("limit", str(default))
    if not given.isdigit():
        text = f"Invalid type for 'limit': expected an integer, but got '{given}' instead."
        raise answers.refuse(400, text, param="limit", code="invalid_type")
    if not 1 <= int(given) <= most:
        low = int(given) < 1
        words, bound = ("below minimum", ">= 1") if low else ("above maximum", f"<= {most}")
        text = f"Invalid 'limit': integer {words} value. Expected a value {bound}, but got {given} instead."
        code = "integer_below_min_value" if low else "integer_above_max_value"
        raise answers.refuse(400, text, param="limit", code=code)
    return int(given)


def _place(entries: list[Json], param: str, identity: str) -> int:
    for n, entry in enumerate(entries):
        if entry.get("id") == identity:
            return n
    raise answers.refuse(
        400, f"Invalid '{param}': no object found with id '{identity}'.", param=param, code="invalid_value"
    )
