"""Where a call goes, by the rules alone: no network, real maps, a clock that moves when told."""

from __future__ import annotations

from typing import Any

import pytest

from balancer.errors import ProxyError
from balancer.model import Call, Client, Effect
from balancer.routing.affinity import MOST_SEARCHED, Affinity, Want
from balancer.state.base import UNCLAIMED, Pin
from balancer.state.memory import MemoryBindings, MemoryPins
from balancer.wire.naming import GoogleNaming
from balancer.wire.resources import NOTHING, Born, Mentions
from tests.fakes import FakeClock

UP = "gemini"


class Rules(Affinity):
    """Affinity over maps of its own."""

    def __init__(self, uploads: str = "client") -> None:
        self.clock = FakeClock()
        self.pins = MemoryPins(100, self.clock)
        self.bindings = MemoryBindings(100, self.clock)
        super().__init__(
            self.pins, self.bindings, {"gemini": GoogleNaming()}, self.clock, session_ttl=3600, uploads=uploads
        )

    async def bound(self, root: str, client: str, owner: str) -> None:
        await self.bindings.bind(UP, root, client, owner, 100)


def call(client: str = "ann", **fields: Any) -> Call:
    return Call("gemini", "gemini", "POST", "/v1beta/x", [], Client(client), **fields)


def named(*roots: str) -> Mentions:
    return Mentions(list(roots))


async def test_the_order_is_named_then_hard_pin_then_attraction_then_soft_pin() -> None:
    rules = Rules()
    session = call(session="s")
    for root, owner in (("files/path", "k1"), ("files/text", "k3")):
        await rules.bound(root, "ann", owner)
    handle = ("session", UP, "ann", "s")
    await rules.pins.put(handle, Pin("k4"), 100)
    attract = Mentions([], ["files/text"])
    want = await rules.find(call(session="s", names=["files/path"]), UP, attract)
    assert want.owner == "k1"
    want = await rules.find(session, UP, attract)
    assert (want.owner, want.prefer) == (None, "k3")
    want = await rules.find(session, UP, NOTHING)
    assert (want.owner, want.prefer) == (None, "k4")
    await rules.pins.put(handle, Pin("k4", hard=True), 100)
    want = await rules.find(session, UP, attract)
    assert (want.owner, want.prefer) == (None, "k4")
    want = await rules.find(call(session="s"), UP, named("files/path"))
    assert want.owner == "k1"


async def test_path_and_body_must_agree() -> None:
    rules = Rules()
    await rules.bound("fileSearchStores/s", "ann", "k1")
    await rules.bound("files/a", "ann", "k2")
    with pytest.raises(ProxyError) as refused:
        await rules.find(call(names=["fileSearchStores/s"]), UP, named("files/a"))
    assert (refused.value.status, refused.value.code) == (400, "resources_on_different_keys")
    assert "fileSearchStores/s" in refused.value.message
    assert "files/a" in refused.value.message
    assert "X-Session-Id" in refused.value.message


async def test_of_many_owners_the_first_two_are_named() -> None:
    rules = Rules()
    for number in range(4):
        await rules.bound(f"files/f{number}", "ann", f"k{number // 2}")
    with pytest.raises(ProxyError, match="files/f0 and files/f2 belong to different"):
        await rules.find(call(), UP, named(*(f"files/f{number}" for number in range(4))))


async def test_another_client_s_resource_is_a_missing_one_even_beside_one_s_own() -> None:
    rules = Rules()
    await rules.bound("files/mine", "ann", "k1")
    await rules.bound("files/theirs", "bob", "k1")
    for mentions in (named("files/theirs"), named("files/mine", "files/theirs")):
        with pytest.raises(ProxyError, match="files/theirs does not exist") as refused:
            await rules.find(call(), UP, mentions)
        assert refused.value.status == 404


async def test_another_client_s_resource_attracts_nobody() -> None:
    rules = Rules()
    await rules.bound("files/theirs", "bob", "k1")
    await rules.bound("files/mine", "ann", "k2")
    await rules.bindings.bind(UP, "files/nobodys", UNCLAIMED, "k3", 100)
    mentions = Mentions([], ["files/mine", "files/theirs", "files/nobodys", "files/unknown"])
    want = await rules.find(call(), UP, mentions)
    assert (want.prefer, want.unknown) == ("k2", [])


async def test_what_was_only_seen_in_a_list_is_its_first_user_s() -> None:
    rules = Rules()
    await rules.bindings.bind(UP, "files/a", UNCLAIMED, "k1", 100)
    assert (await rules.find(call("ann"), UP, named("files/a"))).owner == "k1"
    with pytest.raises(ProxyError):
        await rules.find(call("bob"), UP, named("files/a"))


async def test_what_nobody_knows_is_looked_for_up_to_a_bound() -> None:
    rules = Rules()
    roots = [f"files/f{number}" for number in range(40)]
    want = await rules.find(call(names=["batches/b"]), UP, named(*roots))
    assert want.unknown == ["batches/b", *roots][:MOST_SEARCHED]
    await rules.found(call(), want, UP, "batches/b", "k1")
    assert want.owner == "k1"
    with pytest.raises(ProxyError, match="different API keys"):
        await rules.found(call(), want, UP, "files/f0", "k2")


async def test_what_another_client_named_while_it_was_looked_for_is_that_client_s() -> None:
    rules = Rules()
    ann = await rules.find(call("ann"), UP, named("files/a"))
    bob = await rules.find(call("bob"), UP, named("files/a"))
    await rules.found(call("ann"), ann, UP, "files/a", "k1")
    with pytest.raises(ProxyError, match="does not exist"):
        await rules.found(call("bob"), bob, UP, "files/a", "k1")


async def test_too_many_names_are_refused() -> None:
    with pytest.raises(ProxyError) as refused:
        await Rules().find(call(), UP, Mentions(["files/a"], crowded=True))
    assert refused.value.status == 400


async def test_an_owner_that_goes_by_another_name_now_is_one_owner() -> None:
    rules = Rules()
    await rules.bound("files/old", "ann", "fingerprint")
    await rules.bound("files/new", "ann", "projects/1")
    now = {"fingerprint": "projects/1"}
    want = await rules.find(call(), UP, named("files/old", "files/new"), lambda owner: now.get(owner, owner))
    assert want.owner == "projects/1"


async def test_the_grant_of_a_chunk_settles_everything() -> None:
    rules = Rules()
    await rules.bound("files/a", "ann", "k2")
    want = await rules.find(call(owner="k1", session="s", names=["files/a"]), UP, NOTHING)
    assert (want.owner, want.handle) == ("k1", None)


async def test_a_pin_is_made_before_the_call_is_sent_and_the_first_wins() -> None:
    rules = Rules()
    first, second = [await rules.find(call(session="s"), UP, NOTHING) for _ in range(2)]
    assert await rules.pin(first, "k1") == Pin("k1")
    assert await rules.pin(second, "k2") == Pin("k1")
    assert (await rules.find(call(session="s"), UP, NOTHING)).prefer == "k1"


async def test_a_soft_pin_moves_with_the_call_that_had_to() -> None:
    rules = Rules()
    await rules.pin(await rules.find(call(session="s"), UP, NOTHING), "k1")
    await rules.pin(await rules.find(call(session="s"), UP, NOTHING), "k2")
    assert (await rules.find(call(session="s"), UP, NOTHING)).prefer == "k2"


async def test_a_call_that_a_resource_drew_elsewhere_moves_no_pin() -> None:
    rules = Rules()
    await rules.pin(await rules.find(call(session="s"), UP, NOTHING), "k1")
    await rules.bound("files/a", "ann", "k2")
    for mentions in (named("files/a"), Mentions([], ["files/a"])):
        assert await rules.pin(await rules.find(call(session="s"), UP, mentions), "k2") == Pin("k2")
    assert (await rules.find(call(session="s"), UP, NOTHING)).prefer == "k1"


async def test_what_a_session_makes_hardens_its_pin_where_it_was_made_first() -> None:
    rules = Rules()
    creates = call(session="s", effect=Effect.CREATE)
    want = await rules.find(creates, UP, NOTHING)
    await rules.learned(creates, want, UP, "k1", [Born("files/a")])
    await rules.learned(creates, want, UP, "k2", [Born("files/b")])
    want = await rules.find(creates, UP, NOTHING)
    assert want.pin == Pin("k1", hard=True)


@pytest.mark.parametrize("effect", [Effect.READ, Effect.LIST, Effect.NONE, Effect.DELETE])
async def test_looking_at_something_hardens_nothing(effect: Effect) -> None:
    rules = Rules()
    looks = call(session="s", effect=effect)
    want = await rules.find(looks, UP, NOTHING)
    await rules.pin(want, "k1")
    await rules.learned(looks, want, UP, "k1", [Born("files/a")])
    assert (await rules.find(looks, UP, NOTHING)).pin == Pin("k1")


@pytest.mark.parametrize(("setting", "together"), [("client", True), ("session", False), ("none", False)])
async def test_uploads_without_a_session_follow_each_other_as_configured(setting: str, together: bool) -> None:
    rules = Rules(setting)
    upload = call(uploads=True, address="10.0.0.1", effect=Effect.CREATE)
    await rules.pin(await rules.find(upload, UP, NOTHING), "k1")
    assert (await rules.find(upload, UP, NOTHING)).prefer == ("k1" if together else None)
    elsewhere = call(uploads=True, address="10.0.0.2", effect=Effect.CREATE)
    assert (await rules.find(elsewhere, UP, NOTHING)).prefer is None
    assert (await rules.find(call("bob", uploads=True, address="10.0.0.1"), UP, NOTHING)).prefer is None
    rules.clock.advance(3601)
    assert (await rules.find(upload, UP, NOTHING)).prefer is None


async def test_a_binding_lives_as_long_as_its_resource() -> None:
    rules = Rules()
    made = [Born("files/a", rules.clock.wall() + 50), Born("files/b"), Born("files/gone", rules.clock.wall() - 1)]
    await rules.learned(call(effect=Effect.CREATE), Want(), UP, "k1", made)
    assert (await rules.find(call(), UP, named("files/gone"))).unknown == ["files/gone"]
    rules.clock.advance(49)
    assert (await rules.find(call(), UP, named("files/a"))).owner == "k1"
    rules.clock.advance(2)
    assert (await rules.find(call(), UP, named("files/a"))).unknown == ["files/a"]
    rules.clock.advance(GoogleNaming.ttl - 60)
    assert (await rules.find(call(), UP, named("files/b"))).owner == "k1"
    rules.clock.advance(60)
    assert (await rules.find(call(), UP, named("files/b"))).unknown == ["files/b"]


async def test_an_answer_that_mentions_another_client_s_resource_gives_it_to_nobody() -> None:
    rules = Rules()
    await rules.bound("files/theirs", "bob", "k1")
    for effect in (Effect.CREATE, Effect.READ):
        await rules.learned(call(effect=effect), Want(), UP, "k1", [Born("files/theirs")])
    await rules.learned(call(effect=Effect.READ), Want(), UP, "k1", [Born("files/theirs", own=True)])
    with pytest.raises(ProxyError):
        await rules.find(call(), UP, named("files/theirs"))


async def test_two_keys_may_own_the_same_chosen_name_for_two_clients() -> None:
    rules = Rules()
    for client, owner in (("ann", "k1"), ("bob", "k2")):
        await rules.learned(call(client, effect=Effect.CREATE), Want(), UP, owner, [Born("files/mine", own=True)])
    assert (await rules.find(call("ann"), UP, named("files/mine"))).owner == "k1"
    assert (await rules.find(call("bob"), UP, named("files/mine"))).owner == "k2"


async def test_a_list_makes_nobody_a_maker_and_hides_what_has_one() -> None:
    rules = Rules()
    await rules.bound("files/theirs", "bob", "k1")
    lists = call(effect=Effect.LIST)
    await rules.learned(lists, Want(), UP, "k1", [Born("files/theirs"), Born("files/new")])
    assert await rules.hidden(lists, UP, "files/theirs", "k1")
    assert not await rules.hidden(lists, UP, "files/new", "k1")
    assert not await rules.hidden(call("bob"), UP, "files/new", "k1")
    assert not await rules.hidden(call("bob"), UP, "files/theirs", "k1")


async def test_of_two_owners_of_one_name_a_list_shows_each_client_its_own() -> None:
    rules = Rules()
    await rules.bound("files/mine", "ann", "k1")
    await rules.bound("files/mine", "bob", "k2")
    for client, shown, other in (("ann", "k1", "k2"), ("bob", "k2", "k1")):
        lists = call(client, effect=Effect.LIST)
        assert not await rules.hidden(lists, UP, "files/mine", shown)
        assert await rules.hidden(lists, UP, "files/mine", other)
    renamed = {"k1": "projects/1"}
    lists = call("ann", effect=Effect.LIST)
    assert not await rules.hidden(lists, UP, "files/mine", "projects/1", lambda owner: renamed.get(owner, owner))


async def test_what_was_deleted_is_unknown_again() -> None:
    rules = Rules()
    await rules.bound("files/a", "ann", "k1")
    await rules.deleted(call(effect=Effect.DELETE), UP, "files/a")
    assert (await rules.find(call(), UP, named("files/a"))).unknown == ["files/a"]
