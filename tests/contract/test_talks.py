"""What every backend of conversations and turns must do. A backend is a line in MAKERS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from balancer.state.base import Busy, Locks, Talk, Talks
from balancer.state.memory import MemoryLocks, MemoryTalks
from tests.fakes import FakeClock

Maker = Callable[[int, FakeClock], tuple[Talks, Locks]]
MAKERS: dict[str, Maker] = {"memory": lambda limit, clock: (MemoryTalks(limit, clock), MemoryLocks())}
HANDLE = ("talk", "achuan", "ann", "u", "m")
NAME = ("turn", "achuan", "296270")
ONE, TWO = Talk("1", "alice"), Talk("2", "bob")
LONG = 10.0


@pytest.fixture(params=sorted(MAKERS))
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def talks(maker: Maker, clock: FakeClock) -> Talks:
    return maker(3, clock)[0]


@pytest.fixture
def locks(maker: Maker, clock: FakeClock) -> Locks:
    return maker(3, clock)[1]


async def test_a_talk_is_found_by_its_handle_and_by_no_other(talks: Talks) -> None:
    assert await talks.get(HANDLE, 10) is None
    await talks.put(HANDLE, ONE, 10)
    assert await talks.get(HANDLE, 10) == ONE
    assert await talks.get((*HANDLE[:-1], "other"), 10) is None
    await talks.put(HANDLE, TWO, 10)
    assert await talks.get(HANDLE, 10) == TWO


async def test_a_talk_lives_from_use_to_use(talks: Talks, clock: FakeClock) -> None:
    await talks.put(HANDLE, ONE, 10)
    for _ in range(5):
        clock.advance(9)
        assert await talks.get(HANDLE, 10) == ONE
    clock.jump(1e6)
    assert await talks.get(HANDLE, 10) == ONE
    clock.advance(11)
    assert await talks.get(HANDLE, 10) is None


async def test_only_the_talk_that_was_meant_is_dropped(talks: Talks) -> None:
    await talks.drop(HANDLE, ONE)
    await talks.put(HANDLE, TWO, 10)
    await talks.drop(HANDLE, ONE)
    assert await talks.get(HANDLE, 10) == TWO
    await talks.drop(HANDLE, TWO)
    assert await talks.get(HANDLE, 10) is None


async def test_the_longest_unused_talk_goes_when_there_are_too_many(talks: Talks) -> None:
    for name in ("a", "b", "c"):
        await talks.put((name,), Talk(name, "alice"), 10)
    await talks.get(("a",), 10)
    await talks.put(("d",), Talk("d", "alice"), 10)
    assert [name for name in "abcd" if await talks.get((name,), 10) is not None] == ["a", "c", "d"]


# Turns ----------------------------------------------------------------------------------------------------------------


class Line:
    """People who want the same thing, and the order in which they had it."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self.had: list[str] = []
        self.inside = 0
        self._changed = asyncio.Event()
        self.gates: dict[str, asyncio.Event] = {}

    def join(self, who: str, wait: float = LONG) -> asyncio.Task[None]:
        self.gates[who] = asyncio.Event()
        return asyncio.ensure_future(self._have(who, wait))

    async def _have(self, who: str, wait: float) -> None:
        async with self._locks.hold(NAME, wait):
            self.had.append(who)
            self._changed.set()
            self.inside += 1
            assert self.inside == 1
            try:
                await self.gates[who].wait()
            finally:
                self.inside -= 1

    def leave(self, who: str) -> None:
        self.gates[who].set()

    async def until(self, *had: str) -> None:
        """These and no others have had it by now."""
        async with asyncio.timeout(LONG):
            while self.had != list(had):
                self._changed.clear()
                await self._changed.wait()


async def test_who_comes_first_has_the_first_turn_and_one_has_it_at_a_time(locks: Locks) -> None:
    line = Line(locks)
    tasks = [line.join("a")]
    await line.until("a")
    tasks += [line.join(who) for who in "bcd"]
    for place, who in enumerate("abcd"):
        await line.until(*"abcd"[: place + 1])
        line.leave(who)
    await asyncio.gather(*tasks)
    assert line.had == list("abcd")


async def test_other_names_are_never_waited_for(locks: Locks) -> None:
    async with locks.hold(NAME, LONG), locks.hold(("turn", "achuan", "1"), 0.01):
        pass


async def test_one_that_leaves_gives_up_its_place(locks: Locks) -> None:
    line = Line(locks)
    first = line.join("a")
    await line.until("a")
    left, last = line.join("b"), line.join("c")
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    line.leave("a")
    await line.until("a", "c")
    line.leave("c")
    await asyncio.gather(first, last)


async def test_one_whose_turn_comes_just_as_it_leaves_hands_it_on(locks: Locks) -> None:
    line = Line(locks)
    first = line.join("a")
    await line.until("a")
    left, last = line.join("b"), line.join("c")
    await asyncio.sleep(0)
    line.leave("a")
    await first  # the turn is b's by now, who has not run since
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    line.leave("b")
    async with asyncio.timeout(LONG):
        line.leave("c")
        await last
    assert line.had[-1] == "c"


async def test_one_that_fails_frees_it(locks: Locks) -> None:
    with pytest.raises(ZeroDivisionError):
        async with locks.hold(NAME, LONG):
            raise ZeroDivisionError
    async with locks.hold(NAME, 0.01):
        pass


async def test_who_has_waited_long_enough_is_told_so_and_is_out_of_the_line(locks: Locks) -> None:
    line = Line(locks)
    first = line.join("a")
    await line.until("a")
    for wait in (0.0, 0.01):
        with pytest.raises(Busy):
            await line.join("b", wait)
    last = line.join("c")
    await asyncio.sleep(0)
    line.leave("a")
    await line.until("a", "c")
    line.leave("c")
    await asyncio.gather(first, last)


async def test_nothing_is_left_of_turns_that_are_over(locks: Locks) -> None:
    for number in range(1000):
        async with locks.hold(("turn", "achuan", str(number)), LONG):
            pass
    assert isinstance(locks, MemoryLocks)
    assert len(locks) == 0
