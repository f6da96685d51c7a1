"""Forgets stored sessions that were idle for too long: in batches, so that nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from balancer.clock import Clock
from balancer.conversations.base import StorageUnavailable
from balancer.conversations.opening import Conversations

EVERY = 60.0
"""Seconds between two looks."""
BATCH = 100

log = structlog.get_logger()


async def purge(conversations: Conversations, surface: str, idle: float, clock: Clock) -> int:
    """Delete the surface's sessions without activity for `idle` seconds; how many there were. Raises StorageUnavailable."""
    store = await conversations.store()
    since = datetime.fromtimestamp(clock.wall(), UTC) - timedelta(seconds=idle)
    gone = 0
    while True:
        batch = await store.purge(surface, since, limit=BATCH)
        gone += batch
        if batch < BATCH:
            return gone


async def purge_forever(
    conversations: Callable[[], Conversations], surface: str, retention: Callable[[], float | None], clock: Clock
) -> None:
    """Do so again and again. `retention`: seconds, None: nothing is forgotten, and no database is opened for it."""
    while True:
        idle = retention()
        if idle is not None:
            try:
                gone = await purge(conversations(), surface, idle, clock)
            except StorageUnavailable as failure:
                log.warning("idle sessions were not forgotten", surface=surface, reason=failure.reason)
            else:
                if gone:
                    log.info("idle sessions were forgotten", surface=surface, sessions=gone)
        await asyncio.sleep(EVERY)
