"""Records and the rows they stand in. JSON is text here: what was stored comes back with its order and its numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Row

from balancer.conversations.base import Binding, Content, NewTurn, Session, Turn

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEAVY = 256 * 1024
"""Characters of JSON from which on its coding goes to a thread: a few milliseconds."""


def microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _time(stored: int) -> datetime:
    return _EPOCH + timedelta(microseconds=stored)


def session_of(row: Row[Any]) -> Session:
    bound = row.upstream is not None
    return Session(
        number=row.number,
        edition=row.edition,
        client=row.client,
        surface=row.surface,
        id=row.id,
        title=row.title,
        is_active=row.is_active,
        created_at=_time(row.created_at),
        updated_at=_time(row.updated_at),
        turns=row.turns,
        user_id=row.user_id,
        conversation=row.conversation,
        binding=Binding(row.upstream, row.model, row.owner, row.remote) if bound else None,
    )


def bound_to(binding: Binding | None) -> dict[str, str | None]:
    """The columns of a binding."""
    if binding is None:
        return dict.fromkeys(("upstream", "model", "owner", "remote"))
    return {
        "upstream": binding.upstream,
        "model": binding.model,
        "owner": binding.owner,
        "remote": binding.remote,
    }


async def rows_of(turns: Sequence[NewTurn], now: int) -> list[dict[str, Any]]:
    """Rows without session and sequence; `now` in microseconds."""
    heavy = sum(_weight(turn.content) for turn in turns) > _HEAVY
    return await asyncio.to_thread(_rows, turns, now) if heavy else _rows(turns, now)


def _weight(content: Content) -> int:
    """Characters of a text. Parts may hold whole files: any list counts as heavy enough for its texts to be looked at."""
    if isinstance(content, str):
        return len(content)
    return sum(len(text) for part in content if isinstance(part, dict) for text in _texts(part))


def _texts(part: dict[str, Any]) -> list[str]:
    """The texts in a part and in its members, where files stand as `data:` URLs."""
    inner = [member for member in part.values() if isinstance(member, dict)]
    return [text for each in (part, *inner) for text in each.values() if isinstance(text, str)]


def _rows(turns: Sequence[NewTurn], now: int) -> list[dict[str, Any]]:
    return [
        {
            "id": str(uuid4()),
            "role": turn.role,
            "content": _json(turn.content),
            "tokens": turn.tokens,
            "metadata_info": None if turn.metadata_info is None else _json(turn.metadata_info),
            "created_at": now,
        }
        for turn in turns
    ]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def turns_of(rows: Sequence[Any]) -> list[Turn]:
    """Turns of rows or of mappings that have their columns."""
    heavy = sum(len(row["content"]) for row in rows) > _HEAVY
    return await asyncio.to_thread(_turns, rows) if heavy else _turns(rows)


def _turns(rows: Sequence[Any]) -> list[Turn]:
    return [
        Turn(
            id=row["id"],
            sequence=row["sequence"],
            role=row["role"],
            content=json.loads(row["content"]),
            tokens=row["tokens"],
            metadata_info=None if row["metadata_info"] is None else json.loads(row["metadata_info"]),
            created_at=_time(row["created_at"]),
        )
        for row in rows
    ]
