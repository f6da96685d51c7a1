"""What operators do with all stored chats of a database: write them out, and delete old ones. Both a batch at a time.

An export is JSON Lines: each session, and behind it its messages, in the order in which they were made. Its last whole line says
how far it came, so that one that was broken off goes on from there.

    {"session": 7, "client", "surface", "id", "title", "is_active", "created_at", "updated_at", "user_id"}
    {"session": 7, "sequence": 1, "id", "role", "content", "tokens", "metadata_info", "created_at"}
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import ColumnElement, and_, delete, func, select

from balancer.conversations.base import Session, Turn
from balancer.conversations.database import Database
from balancer.conversations.opening import Conversations
from balancer.conversations.rows import microseconds, session_of, turns_of
from balancer.conversations.schema import messages, sessions

BATCH = 100
"""Sessions of one look."""
TURNS = 200
"""Turns of one look."""
_TAIL = 1 << 16
_BEGINNING = b'{"session":'
"""Of every line."""


@dataclass(frozen=True, slots=True)
class Which:
    """Sessions of one client, or of all; without activity since then, or any."""

    client: str | None = None
    idle_since: datetime | None = None

    def where(self) -> list[ColumnElement[bool]]:
        found = []
        if self.client is not None:
            found.append(sessions.c.client == self.client)
        if self.idle_since is not None:
            found.append(sessions.c.updated_at < microseconds(self.idle_since))
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """How far an export came: the session's number, and the sequence of its last turn that was written."""

    session: int = 0
    sequence: int = 0


class Archive:
    """Looks at the tables behind a store, which stays its owner's to close."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def of(cls, conversations: Conversations) -> Archive:
        """Raises StorageUnavailable."""
        return cls((await conversations.store())._database)

    async def count(self, which: Which) -> int:
        """How many sessions there are."""
        wanted = select(func.count()).select_from(sessions).where(*which.where())
        return await self._database.read(lambda at: at.execute(wanted).scalar_one())

    async def lines(self, which: Which, after: Place) -> AsyncIterator[dict[str, Any]]:
        """What of the sessions comes behind that place, line by line."""
        number = after.session
        for session in await self._sessions(which, sessions.c.number == number):
            async for turn in self._turns(session, after.sequence):
                yield turn
        while page := await self._sessions(which, sessions.c.number > number):
            for session in page:
                yield _session_line(session)
                async for turn in self._turns(session, 0):
                    yield turn
            number = page[-1].number

    async def purge(self, which: Which) -> int:
        """Deletes one batch of sessions with their turns, and tells how many: none, when none is left."""
        some = select(sessions.c.number).where(*which.where()).order_by(sessions.c.number).limit(BATCH)
        gone = delete(sessions).where(sessions.c.number.in_(some)).returning(sessions.c.number)
        return await self._database.write(lambda at: len(at.execute(gone).all()))

    async def _sessions(self, which: Which, where: ColumnElement[bool]) -> list[Session]:
        wanted = select(sessions).where(where, *which.where()).order_by(sessions.c.number).limit(BATCH)
        return [session_of(row) for row in await self._database.read(lambda at: at.execute(wanted).all())]

    async def _turns(self, session: Session, after: int) -> AsyncIterator[dict[str, Any]]:
        while page := await self._page(session.number, after):
            for turn in page:
                yield _turn_line(session, turn)
            after = page[-1].sequence

    async def _page(self, session: int, after: int) -> list[Turn]:
        behind = and_(messages.c.session == session, messages.c.sequence > after)
        wanted = select(messages).where(behind).order_by(messages.c.sequence).limit(TURNS)
        return await turns_of(await self._database.read(lambda at: at.execute(wanted).mappings().all()))


def _session_line(session: Session) -> dict[str, Any]:
    return {
        "session": session.number,
        "client": session.client,
        "surface": session.surface,
        "id": session.id,
        "title": session.title,
        "is_active": session.is_active,
        "created_at": session.created_at.isoformat(),
        "updated_at": session.updated_at.isoformat(),
        "user_id": session.user_id,
    }


def _turn_line(session: Session, turn: Turn) -> dict[str, Any]:
    return {
        "session": session.number,
        "sequence": turn.sequence,
        "id": turn.id,
        "role": turn.role,
        "content": turn.content,
        "tokens": turn.tokens,
        "metadata_info": turn.metadata_info,
        "created_at": turn.created_at.isoformat(),
    }


def written(line: dict[str, Any]) -> bytes:
    """A line as it stands in the file."""
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def resume(path: Path) -> tuple[BinaryIO, Place]:
    """The file of an export, to be written on, and how far it came; a last line that was cut off is removed.

    Raises OSError, and ValueError where it is no such file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    file = os.fdopen(descriptor, "r+b")
    try:
        end = _behind_last_line(file, file.seek(0, os.SEEK_END))
        place = Place()
        if end:
            start = _behind_last_line(file, end - 1)
            file.seek(start)
            line = json.loads(file.read(end - start))
            place = Place(int(line["session"]), int(line.get("sequence", 0)))
        file.seek(end)
        _check_torn(file.read(len(_BEGINNING)))
        file.seek(end)
        file.truncate(end)
    except (KeyError, TypeError, ValueError):
        file.close()
        raise ValueError(f"{path} is no export of stored chats") from None
    return file, place


def _check_torn(text: bytes) -> None:
    """Raises ValueError where this is not the beginning of a line of ours."""
    if not _BEGINNING.startswith(text):
        raise ValueError(text)


def _behind_last_line(file: BinaryIO, end: int) -> int:
    """The place behind the last line end before `end`."""
    while end:
        start = max(0, end - _TAIL)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
