"""The one timer of an attempt: which wait it ends, as what, and that it ends no other."""

from __future__ import annotations

import asyncio

import pytest

from balancer.errors import AnswerCut, ClientStalled, FirstByteTimeout
from balancer.model import Timeouts
from balancer.relay.watchdog import Phase, Watchdog, _sweep_of

SOON = 0.03
LATER = 300.0
"""A test that has to wait for it fails by the time limit of all tests."""
OFF = Timeouts(None, None, None, None)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def waiting(
    timeouts: Timeouts, *phases: Phase, remaining: float | None = None, spent: float = 0.0, pause: float = 0.0
) -> None:
    """Goes through these phases, with a pause behind each but the last, and then waits forever."""
    with Watchdog(timeouts, remaining, spent) as watchdog:
        for number, phase in enumerate(phases, 1):
            watchdog.phase(phase)
            if number < len(phases):
                await passing(pause)
        await forever()


async def passing(seconds: float) -> None:
    """Real time goes by: it is what a watchdog watches."""
    gone = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, gone.set)
    await gone.wait()


WAITS: dict[Phase, tuple[Timeouts, type[Exception]]] = {
    Phase.FIRST_BYTE: (Timeouts(first_byte=SOON, idle=LATER), FirstByteTimeout),
    Phase.IDLE: (Timeouts(first_byte=LATER, idle=SOON), AnswerCut),
    Phase.CLIENT: (Timeouts(first_byte=LATER, idle=SOON), ClientStalled),
}


@pytest.mark.parametrize("phase", WAITS)
async def test_a_wait_that_lasts_too_long_ends_as_what_it_was(phase: Phase) -> None:
    timeouts, error = WAITS[phase]
    with pytest.raises(error):
        await waiting(timeouts, phase)


async def test_the_first_wait_is_for_the_first_byte() -> None:
    with pytest.raises(FirstByteTimeout):
        await waiting(Timeouts(first_byte=SOON))


@pytest.mark.parametrize("phase", Phase)
async def test_the_total_ends_every_wait_as_what_it_was(phase: Phase) -> None:
    expected = {Phase.IDLE: AnswerCut, Phase.CLIENT: ClientStalled}.get(phase, FirstByteTimeout)
    with pytest.raises(expected):
        await waiting(Timeouts(first_byte=LATER, idle=LATER, total=SOON), phase)


async def test_what_of_the_total_is_spent_counts() -> None:
    with pytest.raises(FirstByteTimeout):
        await waiting(Timeouts(first_byte=LATER, total=LATER), spent=LATER - SOON)


async def test_a_total_that_is_spent_already_ends_at_once() -> None:
    with pytest.raises(FirstByteTimeout):
        await waiting(Timeouts(total=1.0), spent=2.0)


@pytest.mark.parametrize("phase", [Phase.FIRST_BYTE, Phase.UPLOAD])
async def test_the_callers_patience_ends_the_wait_for_the_first_byte(phase: Phase) -> None:
    for timeouts in (OFF, Timeouts(first_byte=LATER, idle=LATER)):
        with pytest.raises(FirstByteTimeout):
            await waiting(timeouts, phase, remaining=SOON)


@pytest.mark.parametrize("phase", [Phase.IDLE, Phase.CLIENT])
async def test_the_callers_patience_ends_nothing_after_the_first_byte(phase: Phase) -> None:
    with Watchdog(Timeouts(first_byte=LATER, idle=LATER), remaining=SOON) as watchdog:
        watchdog.phase(phase)
        await passing(3 * SOON)


@pytest.mark.parametrize("remaining", [0.0, -1.0])
async def test_patience_that_is_over_ends_at_once(remaining: float) -> None:
    with pytest.raises(FirstByteTimeout):
        await waiting(OFF, remaining=remaining)


async def test_signs_of_life_keep_it_quiet_for_longer_than_any_limit() -> None:
    with Watchdog(Timeouts(first_byte=3 * SOON, idle=3 * SOON)) as watchdog:
        for phase in (Phase.FIRST_BYTE, Phase.IDLE, Phase.IDLE, Phase.CLIENT, Phase.IDLE, Phase.CLIENT):
            watchdog.phase(phase)
            await passing(SOON)


async def test_it_looks_again_after_it_was_kept_quiet() -> None:
    with pytest.raises(AnswerCut):
        await waiting(Timeouts(first_byte=SOON, idle=SOON), *[Phase.IDLE] * 4, pause=SOON / 2)


async def test_a_wait_whose_limit_is_shorter_than_the_one_before_is_ended_by_its_own() -> None:
    with pytest.raises(AnswerCut):
        await waiting(Timeouts(first_byte=LATER, idle=SOON), Phase.FIRST_BYTE, Phase.IDLE, pause=SOON / 2)


async def test_an_upload_is_not_ended_by_the_limit_of_the_first_byte() -> None:
    with Watchdog(Timeouts(first_byte=SOON, idle=SOON)) as watchdog:
        watchdog.phase(Phase.UPLOAD)
        await passing(3 * SOON)


async def test_with_every_limit_off_nothing_is_ended() -> None:
    with Watchdog(OFF) as watchdog:
        for phase in Phase:
            watchdog.phase(phase)
            await passing(SOON / 2)


async def test_a_cancellation_from_outside_stays_one() -> None:
    began = asyncio.Event()

    async def work() -> None:
        with Watchdog(Timeouts(first_byte=LATER)):
            began.set()
            await forever()

    task = asyncio.create_task(work())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", [ValueError("x"), AnswerCut("own"), TimeoutError("own")])
async def test_an_error_of_the_block_passes_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        with Watchdog(Timeouts(first_byte=LATER)):
            raise error
    assert raised.value is error


async def test_it_is_not_watched_any_more_when_its_block_is_left() -> None:
    with Watchdog(Timeouts(first_byte=SOON, idle=SOON)) as watchdog:
        pass
    assert watchdog not in _sweep_of(asyncio.get_running_loop()).watched
    await passing(2 * SOON)
