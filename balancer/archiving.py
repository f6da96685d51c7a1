"""`balancer conversations`: stored chats written out, or deleted, with a word now and then on how far that is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from balancer.clock import SystemClock
from balancer.conversations.archive import Archive, Place, Which, resume, written
from balancer.conversations.opening import Conversations

EVERY = 10_000
"""Lines between two words of progress."""

Tell = Callable[[str], None]


def chosen(client: str | None, older_than: float | None) -> Which:
    """`older_than`: seconds without activity."""
    since = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    return Which(client, since)


async def export(url: str, which: Which, to: Path | BinaryIO, tell: Tell, *, dry: bool = False) -> None:
    """Write them to a file, behind what is there, or to a stream. `dry`: only tell how many there are.

    Raises StorageUnavailable, OSError, and ValueError where the file is no export.
    """
    conversations = Conversations(url, SystemClock())
    try:
        archive = await Archive.of(conversations)
        tell(f"{await archive.count(which)} sessions")
        if dry:
            return
        if not isinstance(to, Path):
            await _write(archive, which, to, Place(), tell)
            return
        file, place = resume(to)
        with file:
            await _write(archive, which, file, place, tell)
    finally:
        await conversations.close()


async def _write(archive: Archive, which: Which, file: BinaryIO, after: Place, tell: Tell) -> None:
    sessions = messages = 0
    async for line in archive.lines(which, after):
        file.write(written(line))
        if "sequence" in line:
            messages += 1
        else:
            sessions += 1
        if (sessions + messages) % EVERY == 0:
            tell(f"{sessions} sessions and {messages} messages written")
    file.flush()
    tell(f"{sessions} sessions and {messages} messages written: done")


async def purge(url: str, which: Which, tell: Tell, *, dry: bool = False) -> None:
    """Delete them. `dry`: only tell how many there are. Raises StorageUnavailable."""
    conversations = Conversations(url, SystemClock())
    try:
        archive = await Archive.of(conversations)
        count, done = await archive.count(which), 0
        tell(f"{count} sessions")
        while not dry and (gone := await archive.purge(which)):
            done += gone
            tell(f"{done} of {count} sessions deleted")
    finally:
        await conversations.close()
