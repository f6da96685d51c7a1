"""Work that goes on to its end though whoever waits for it has left."""

from __future__ import annotations

import asyncio

import pytest

from balancer.relay.finishing import to_the_end


async def test_what_is_done_is_given_back() -> None:
    async def work() -> int:
        return 7

    assert await to_the_end(work()) == 7


async def test_its_failure_is_raised() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await to_the_end(work())


@pytest.mark.parametrize("fails", [False, True])
async def test_who_is_cancelled_twice_still_sees_the_end(fails: bool) -> None:
    gate, begun, ended = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await gate.wait()
        ended = True
        if fails:
            raise ValueError("nobody hears this")

    waiting = asyncio.ensure_future(to_the_end(work()))
    await begun.wait()
    for _ in range(2):
        waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended
