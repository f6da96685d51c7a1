"""Stored chats as surfaces see them: records and errors. Imports no database.

A session is found by its name (client, surface, id). What belongs to one turn of it is done with the `Session` that was read
at the turn's begin, which also holds a number that is never given again and an edition that `clear` raises: an answer that
comes after its session was deleted or cleared finds neither, and is dropped.

Texts must be texts that both databases keep alike: surfaces refuse NUL and lone surrogates. `tokens` fits 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

Content = str | list[Any]
"""Text, or a list of parts as JSON has them."""
MOST_TOKENS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SessionName:
    """How a client names a session. `surface` keeps those of the chat surface and of conversations apart."""

    client: str
    surface: str
    id: str

    @property
    def folded(self) -> str:
        """The id as it is compared."""
        return self.id.strip().casefold()


@dataclass(frozen=True, slots=True)
class Binding:
    """Where an upstream that keeps the conversation keeps it: `remote` is its id there, `model` a bot's name for bots."""

    upstream: str
    model: str
    owner: str
    remote: str


@dataclass(frozen=True, slots=True)
class Session:
    """A stored session. Times are UTC, to the microsecond; `id` is as it was first given."""

    number: int
    edition: int
    client: str
    surface: str
    id: str
    title: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime
    """The last activity."""
    turns: int
    """How many are stored."""
    user_id: str | None
    conversation: str | None
    """The conversation's id that clients of the chat surface are told."""
    binding: Binding | None

    @property
    def name(self) -> SessionName:
        return SessionName(self.client, self.surface, self.id)


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn to be stored. `content` and `metadata_info` come back as they are: what JSON has, in its order."""

    role: str
    content: Content
    tokens: int = 0
    metadata_info: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A stored turn. `sequence` counts the turns of its session from 1, without gaps."""

    id: str
    sequence: int
    role: str
    content: Content
    tokens: int
    metadata_info: dict[str, Any] | None
    created_at: datetime


class StorageUnavailable(Exception):
    """The database cannot be used now; the next call tries again.

    `reason` is a sentence for callers, without address, file name or credential. `retry_after`: seconds, None where waiting
    alone will not help. What was to be written is not acknowledged; where the connection was lost while it was committed, it
    may be there all the same.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class DatabaseRefused(StorageUnavailable):
    """The database cannot be used by this program: it is newer, another program's, or its driver is missing."""
