"""Work that goes on to its end though whoever waits for it has left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def to_the_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Await it whole, also where the caller is cancelled meanwhile; then the cancellation goes on."""
    task = asyncio.ensure_future(work)
    gone: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as cancelled:
            if task.cancelled():
                raise
            gone = cancelled
        except BaseException:  # the work's own: it is raised below
            break
    if gone is not None:
        task.exception()
        raise gone
    return task.result()
