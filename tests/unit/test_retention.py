"""Stored sessions that were idle for too long are forgotten; where nothing is to be forgotten, no database is opened."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from balancer.conversations import retention
from balancer.conversations.base import SessionName, StorageUnavailable
from balancer.conversations.opening import Conversations
from balancer.conversations.retention import purge, purge_forever
from tests.fakes import FakeClock

WAIT = 10.0


async def test_only_idle_sessions_of_the_surface_go_in_any_number(tmp_path: Path) -> None:
    clock = FakeClock()
    conversations = Conversations(f"sqlite:///{tmp_path}/chats.db", clock)
    store = await conversations.store()
    for number in range(retention.BATCH + 5):
        await store.get_or_create(SessionName("ann", "chat", f"old-{number}"))
    await store.get_or_create(SessionName("ann", "conversations", "old"))
    clock.advance(100)
    await store.get_or_create(SessionName("ann", "chat", "young"))
    assert await purge(conversations, "chat", 50.0, clock) == retention.BATCH + 5
    assert [each.id for each in await store.sessions("ann", "chat")] == ["young"]
    assert await store.count("ann", "conversations") == 1
    await conversations.close()


async def test_without_a_time_no_database_is_made(tmp_path: Path) -> None:
    asked = asyncio.Event()

    def never() -> None:
        asked.set()

    file = tmp_path / "chats.db"
    conversations = Conversations(f"sqlite:///{file}", FakeClock())
    task = asyncio.create_task(purge_forever(lambda: conversations, "chat", never, FakeClock()))
    async with asyncio.timeout(WAIT):
        await asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not file.exists()


async def test_a_database_that_is_away_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "EVERY", 0.0)
    tries, again = 0, asyncio.Event()

    class Away(Conversations):
        async def store(self) -> object:  # type: ignore[override]
            nonlocal tries
            tries += 1
            if tries > 1:
                again.set()
            raise StorageUnavailable("the database is away")

    clock = FakeClock()
    conversations = Away(f"sqlite:///{tmp_path}/chats.db", clock)
    task = asyncio.create_task(purge_forever(lambda: conversations, "chat", lambda: 1.0, clock))
    async with asyncio.timeout(WAIT):
        await again.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
