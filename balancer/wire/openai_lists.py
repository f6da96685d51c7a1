"""One list out of the lists of several owners, page by page (https://platform.openai.com/docs/api-reference/files/list).

Each owner of keys shows only its own things, and a cursor (`after`, `before`: an item's id) means something to one of them
alone. So each is read from its beginning, newest first or, if the client says so, oldest first, until what is here is sure to
fill the page: an item's place is settled once every owner has either shown an item that comes later or has no more. What is
hidden from the client is left out before anything is counted.

    merge = Merge(collection, paging, owners)
    while wanted := merge.wanting():              # owner and query of its next page
        merge.add(owner, read_page(answer), hidden) or merge.leave_out(owner)
    merge.page()
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from balancer.errors import ProxyError
from balancer.wire.openai_ids import id_of

MOST_PAGES = 100
"""Pages that are asked of one owner for one list."""
_CURSORS = frozenset({"limit", "after", "before", "order"})
_DEFAULT_LIMIT = 20
_LARGEST = 100
_FILES_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Paging:
    """What a client asks of a list. `filters`: its other query members, in order."""

    limit: int
    after: str | None = None
    before: str | None = None
    ascending: bool = False
    filters: tuple[tuple[str, str], ...] = ()


def paging(collection: str, query: str) -> Paging:
    """Read a list's query. Raises ProxyError 400 for a `limit` or an `order` that is none."""
    members = parse_qsl(query, keep_blank_values=True)
    given = dict(members)
    largest = _FILES_LIMIT if collection == "files" else _LARGEST
    limit = given.get("limit") or str(_FILES_LIMIT if collection == "files" else _DEFAULT_LIMIT)
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and int(limit) > 0):
        raise _wrong("limit", f"limit must be a whole number from 1 to {largest}.")
    order = given.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise _wrong("order", "order must be asc or desc.")
    return Paging(
        limit=min(int(limit), largest),
        after=given.get("after") or None,
        before=given.get("before") or None,
        ascending=order == "asc",
        filters=tuple(member for member in members if member[0] not in _CURSORS),
    )


def _wrong(member: str, message: str) -> ProxyError:
    return ProxyError(400, "unsupported_parameter", message, param=member)


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a list call. `last`: the cursor of the page behind it; None: there is none."""

    items: list[dict[str, Any]]
    last: str | None = None


def read_page(body: bytes) -> Page | None:
    """A list answer; None if the body is none."""
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        return None
    items = [item for item in tree["data"] if id_of(item) is not None]
    more = tree.get("has_more") is True and items
    return Page(items, id_of(items[-1]) if more else None)


@dataclass(slots=True)
class _Shown:
    """What one owner has shown so far."""

    items: list[dict[str, Any]] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    cursor: str | None = None
    settled: float | None = None
    """Made when its last item was made, hidden or not."""
    pages: int = 0
    ended: bool = False


class Merge:
    """One list call over several owners."""

    def __init__(self, collection: str, asked: Paging, owners: Iterable[str]) -> None:
        self._asked = asked
        self._size = max(asked.limit, _LARGEST)
        self._ordered = asked.ascending or collection in ("chat/completions", "evals")  # whose default is oldest first
        self._shown = {owner: _Shown() for owner in owners}

    def wanting(self) -> dict[str, str]:
        """The owners whose next page is needed, each with the query for it; none: `page()` can be called."""
        if self._enough():
            return {}
        return {owner: self._query(shown) for owner, shown in self._shown.items() if not shown.ended}

    def _query(self, shown: _Shown) -> str:
        members = [*self._asked.filters, ("limit", str(self._size))]
        if self._ordered:
            members.append(("order", "asc" if self._asked.ascending else "desc"))
        if shown.cursor is not None:
            members.append(("after", shown.cursor))
        return urlencode(members)

    def add(self, owner: str, page: Page, hidden: Collection[str] = ()) -> None:
        """An owner's page, and the ids in it that are not for this client."""
        shown = self._shown[owner]
        new = [item for item in page.items if item["id"] not in shown.met]
        shown.met.update(item["id"] for item in new)
        shown.items += [item for item in new if item["id"] not in hidden]
        shown.cursor = page.last
        shown.settled = _made(page.items[-1]) if page.items else None
        shown.pages += 1
        shown.ended = page.last is None or not new or shown.pages >= MOST_PAGES

    def leave_out(self, owner: str) -> None:
        """The owner's list failed: what it has shown stays, and no more is asked of it."""
        self._shown[owner].ended = True

    def _enough(self) -> bool:
        """Whether the page, and whether there is more behind it, follows from what is here."""
        open_ends = [shown.settled for shown in self._shown.values() if not shown.ended]
        if not open_ends:
            return True
        if any(end is None for end in open_ends):
            return False
        sign = 1 if self._asked.ascending else -1
        edge = min(sign * end for end in open_ends if end is not None)
        sure = [item for item in self._merged() if sign * _made(item) < edge]
        ids = [item["id"] for item in sure]
        if self._asked.before is not None:
            return self._asked.before in ids
        if self._asked.after is not None:
            if self._asked.after not in ids:
                return False
            ids = ids[ids.index(self._asked.after) + 1 :]
        return len(ids) > self._asked.limit

    def _merged(self) -> list[dict[str, Any]]:
        sign = 1 if self._asked.ascending else -1
        everything = {item["id"]: item for shown in self._shown.values() for item in shown.items}
        return sorted(everything.values(), key=lambda item: sign * _made(item))

    def page(self) -> bytes:
        """The answer. Raises ProxyError 404 for a cursor that is no item of the list."""
        items = self._merged()
        ids = [item["id"] for item in items]
        if self._asked.after is not None:
            first = _index(ids, self._asked.after, "after") + 1
            items, ids = items[first:], ids[first:]
        if self._asked.before is not None:
            items = items[: _index(ids, self._asked.before, "before")]
            chosen = items[-self._asked.limit :]
        else:
            chosen = items[: self._asked.limit]
        answer = {
            "object": "list",
            "data": chosen,
            "first_id": chosen[0]["id"] if chosen else None,
            "last_id": chosen[-1]["id"] if chosen else None,
            "has_more": len(items) > len(chosen),
        }
        return orjson.dumps(answer)


def _index(ids: list[str], cursor: str, member: str) -> int:
    if cursor not in ids:
        raise ProxyError(404, "resource_not_found", f"The list has no item {cursor}.", param=member)
    return ids.index(cursor)


def _made(item: dict[str, Any]) -> float:
    """When an item was made, in POSIX seconds; 0 where it does not say."""
    made = item.get("created_at", item.get("created"))
    return float(made) if isinstance(made, int | float) else 0.0
