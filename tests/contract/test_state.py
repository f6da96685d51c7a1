"""What every backend of `state.base` must do. A new one is a line in MAKERS."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from balancer.state.base import UNCLAIMED, Bindings, Pin, Pins
from balancer.state.memory import MOST_CLIENTS, MemoryBindings, MemoryPins
from tests.fakes import FakeClock

Maker = Callable[[int, FakeClock], tuple[Pins, Bindings]]
MAKERS: dict[str, Maker] = {
    "memory": lambda limit, clock: (MemoryPins(limit, clock), MemoryBindings(limit, clock)),
}
HANDLE = ("session", "gemini", "ann", "s")
UP = "gemini"


@pytest.fixture(params=sorted(MAKERS))
def maker(request: pytest.FixtureRequest) -> Maker:
    return MAKERS[request.param]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pins(maker: Maker, clock: FakeClock) -> Pins:
    return maker(3, clock)[0]


@pytest.fixture
def bindings(maker: Maker, clock: FakeClock) -> Bindings:
    return maker(3, clock)[1]


async def test_the_first_claim_is_the_pin(pins: Pins) -> None:
    assert await pins.get(HANDLE, 10) is None
    assert await pins.claim(HANDLE, Pin("k1"), 10) == Pin("k1")
    assert await pins.claim(HANDLE, Pin("k2", hard=True), 10) == Pin("k1")
    assert await pins.get(HANDLE, 10) == Pin("k1")
    assert await pins.get((*HANDLE[:-1], "other"), 10) is None


async def test_a_pin_that_is_put_replaces_the_one_there_is(pins: Pins) -> None:
    await pins.claim(HANDLE, Pin("k1"), 10)
    await pins.put(HANDLE, Pin("k2", hard=True), 10)
    assert await pins.get(HANDLE, 10) == Pin("k2", hard=True)


async def test_a_pin_lives_from_use_to_use(pins: Pins, clock: FakeClock) -> None:
    await pins.put(HANDLE, Pin("k1"), 10)
    for _ in range(5):
        clock.advance(9)
        assert await pins.get(HANDLE, 10) == Pin("k1")
    for _ in range(5):
        clock.advance(9)
        assert await pins.claim(HANDLE, Pin("k2"), 10) == Pin("k1")
    clock.advance(11)
    assert await pins.get(HANDLE, 10) is None
    assert await pins.claim(HANDLE, Pin("k2"), 10) == Pin("k2")


async def test_a_jump_of_the_wall_clock_ends_no_pin(pins: Pins, clock: FakeClock) -> None:
    await pins.put(HANDLE, Pin("k1"), 10)
    clock.jump(1e6)
    assert await pins.get(HANDLE, 10) == Pin("k1")


async def test_the_longest_unused_pin_goes_when_there_are_too_many(pins: Pins) -> None:
    for name in ("a", "b", "c"):
        await pins.put((name,), Pin(name), 10)
    await pins.get(("a",), 10)
    await pins.put(("d",), Pin("d"), 10)
    found = [name for name in ("a", "b", "c", "d") if await pins.get((name,), 10) is not None]
    assert found == ["a", "c", "d"]


async def test_a_binding_is_each_client_s_own(bindings: Bindings) -> None:
    assert await bindings.owners(UP, "files/a") == {}
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 10)
    await bindings.bind("other", "files/a", "eve", "k3", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k1", "bob": "k2"}
    await bindings.bind(UP, "files/a", "ann", "k3", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k3", "bob": "k2"}


async def test_each_binding_ends_by_itself(bindings: Bindings, clock: FakeClock) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 20)
    clock.advance(11)
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    clock.advance(10)
    assert await bindings.owners(UP, "files/a") == {}


async def test_a_binding_that_has_ended_already_is_none(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 0)
    await bindings.bind(UP, "files/b", "ann", "k1", -5)
    assert await bindings.owners(UP, "files/a") == await bindings.owners(UP, "files/b") == {}


async def test_the_longest_unused_resource_goes_when_there_are_too_many(bindings: Bindings) -> None:
    for name in ("a", "b", "c"):
        await bindings.bind(UP, name, "ann", "k1", 10)
    await bindings.owners(UP, "a")
    await bindings.bind(UP, "d", "ann", "k1", 10)
    assert [name for name in ("a", "b", "c", "d") if await bindings.owners(UP, name)] == ["a", "c", "d"]


async def test_one_name_is_kept_for_a_bounded_number_of_clients(bindings: Bindings) -> None:
    for number in range(MOST_CLIENTS + 5):
        await bindings.bind(UP, "files/a", f"client-{number}", "k1", 10 + number)
    owners = await bindings.owners(UP, "files/a")
    assert len(owners) == MOST_CLIENTS
    assert "client-0" not in owners
    assert f"client-{MOST_CLIENTS + 4}" in owners


async def test_unbinding_takes_the_client_and_nobody_in_particular(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    await bindings.bind(UP, "files/a", "bob", "k2", 10)
    await bindings.unbind(UP, "files/a", "ann")
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    await bindings.unbind(UP, "files/a", "eve")
    assert await bindings.owners(UP, "files/a") == {"bob": "k2"}
    await bindings.bind(UP, "files/b", UNCLAIMED, "k1", 10)
    await bindings.unbind(UP, "files/b", "ann")
    assert await bindings.owners(UP, "files/b") == {}
    await bindings.unbind(UP, "files/none", "ann")


async def test_a_maker_takes_the_place_of_nobody_in_particular(bindings: Bindings) -> None:
    await bindings.bind(UP, "files/a", UNCLAIMED, "k1", 10)
    await bindings.bind(UP, "files/a", "ann", "k1", 10)
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}


async def test_what_is_claimed_lives_as_long_as_it_was_bound(bindings: Bindings, clock: FakeClock) -> None:
    await bindings.bind(UP, "files/a", UNCLAIMED, "k1", 10)
    clock.advance(6)
    await bindings.claim(UP, "files/a", "ann")
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}
    await bindings.claim(UP, "files/a", "bob")
    assert await bindings.owners(UP, "files/a") == {"ann": "k1"}
    clock.advance(5)
    assert await bindings.owners(UP, "files/a") == {}
    await bindings.claim(UP, "files/none", "ann")
    assert await bindings.owners(UP, "files/none") == {}


async def test_a_hundred_thousand_renewals_leave_one_pin(maker: Maker, clock: FakeClock) -> None:
    pins = maker(10, clock)[0]
    for _ in range(100_000):
        await pins.put(HANDLE, Pin("k1"), 10)
    assert isinstance(pins, MemoryPins)
    assert len(pins) == 1
