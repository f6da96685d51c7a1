"""Looking for the owner of what nobody here has heard of: after a restart, or because it was made elsewhere."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from balancer.relay.ownership import NOBODY_TTL
from balancer.routing.affinity import MOST_SEARCHED
from tests.fakes import FakeClock
from tests.proxy import GENERATE, KEYS, proxying
from tests.surfaces.calls import GOOGLE, World, caller, restarted, world
from tests.upstream import Peer, Seen, raw_upstream, serving

APART = {"uploads": "none"}


def searches(here: World, name: str) -> list[str | None]:
    return [arrival.key for arrival in here.asked(f"GET /v1beta/{name}")]


async def test_after_a_restart_a_get_finds_the_owner_and_remembers_it() -> None:
    async with world(affinity=APART) as before:
        names = [await before.ann.upload(f"file {n}".encode()) for n in range(3)]
        async with restarted(before) as here:
            for number, name in enumerate(names):
                got = await here.ann.get(f"{name}:download?alt=media")
                assert got.body == f"file {number}".encode()
                here.standin.forget()
                assert (await here.ann.get(name)).status == 200
                assert here.keys() == [here.key_of(name)]


async def test_after_a_restart_a_post_finds_the_owner_before_it_is_sent() -> None:
    async with world(affinity=APART) as before:
        names = [await before.ann.upload() for _ in KEYS]
        async with restarted(before) as here:
            for name in names:
                here.standin.forget()
                assert (await here.ann.generate(name)).status == 200
                assert [arrival.key for arrival in here.asked("POST")] == [here.key_of(name)]
                here.standin.forget()
                assert (await here.ann.generate(name)).status == 200
                assert len(here.standin.requests) == 1


@pytest.mark.parametrize("collection", ["cachedContents", "fileSearchStores", "batches", "tunedModels", "newThings"])
async def test_every_collection_is_found_again(collection: str) -> None:
    bodies: dict[str, Any] = {"cachedContents": {"model": "models/gemini-2.5-flash"}}
    async with world() as before:
        names = []
        for _ in KEYS:
            made = (await before.ann.post(collection, bodies.get(collection, {}))).json
            names.append(made.get("metadata", {}).get("tunedModel") or made["name"])
        distinct = dict.fromkeys(names)  # an unknown collection counts per project
        async with restarted(before) as here:
            for name in distinct:
                assert (await here.ann.get(name)).status == 200
                assert (await here.ann.delete(name)).status == 200


async def test_operations_are_found_again_by_their_path() -> None:
    async with world() as before:
        made = [await before.ann.post("models/veo-3.0-generate-001:predictLongRunning") for _ in KEYS]
        async with restarted(before) as here:
            for each in made:
                assert (await here.ann.get(each.json["name"])).json["done"]


async def test_the_questions_carry_nothing_of_the_caller() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            here.standin.forget()
            fields = {"X-Own": "mine", "X-Session-Id": "s", "Cookie": "a=b"}
            assert (
                await here.ann.call("GET", f"/v1beta/{name}?view=full&key={here.ann.token}", headers=fields)
            ).status == 200
            *questions, asked = here.standin.requests
            assert asked.header("x-own") == "mine"
            for question in questions:
                assert question.target == f"/v1beta/{name}"
                assert question.header("x-own") is None


async def test_concurrent_requests_share_one_search() -> None:
    async with world(affinity=APART) as before:
        name = [await before.ann.upload() for _ in KEYS][2]
        async with restarted(before) as here:
            here.standin.forget()
            gate = asyncio.Event()
            here.standin.script("*", "stall-head", gate=gate, method="GET", target=name)
            calls = [asyncio.create_task(here.ann.generate(name)) for _ in range(20)]
            await here.standin.wait_for(1)
            gate.set()
            assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
            assert searches(here, name) == list(KEYS)


async def test_a_caller_that_leaves_does_not_end_the_search_of_the_others() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            here.standin.forget()
            gate = asyncio.Event()
            here.standin.script("*", "stall-head", gate=gate, method="GET", target=name)
            first = asyncio.create_task(here.ann.generate(name))
            await here.standin.wait_for(1)
            second = asyncio.create_task(here.ann.generate(name))
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            gate.set()
            assert (await second).status == 200


async def test_of_two_clients_that_name_it_at_once_one_is_its_maker() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            here.standin.forget()
            gate = asyncio.Event()
            here.standin.script("*", "stall-head", gate=gate, method="GET", target=name)
            calls = [asyncio.create_task(client.generate(name)) for client in (here.ann, here.bob)]
            await here.standin.wait_for(1)
            gate.set()
            assert sorted(answer.status for answer in await asyncio.gather(*calls)) == [200, 404]


async def test_sixteen_names_of_one_request_are_looked_for() -> None:
    async with world() as here:
        names = [f"files/unknown{n}" for n in range(40)]
        await here.ann.generate(*names)
        asked = {arrival.path for arrival in here.asked("GET /v1beta/files/")}
        assert asked == {f"/v1beta/{name}" for name in names[:MOST_SEARCHED]}


async def test_that_nobody_has_it_is_remembered_for_a_while() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        for _ in range(3):
            refused = await here.ann.get("files/nowhere")
            assert refused.status == 403  # the upstream's own words
        assert len(searches(here, "files/nowhere")) == len(KEYS) + 3
        clock.advance(NOBODY_TTL + 1)
        await here.ann.generate("files/nowhere")
        assert len(searches(here, "files/nowhere")) == 2 * len(KEYS) + 3


async def test_what_is_made_meanwhile_is_known_at_once() -> None:
    async with world() as here:
        assert (await here.ann.get("files/soon")).status == 403
        await here.ann.upload(name="files/soon")
        assert (await here.ann.get("files/soon")).status == 200


async def test_what_nobody_has_is_the_upstream_s_to_refuse() -> None:
    async with world() as here:
        refused = await here.ann.generate("files/nowhere")
        assert refused.status == 403
        assert "do not have permission to access the File nowhere" in refused.error["message"]


@pytest.mark.parametrize("fault", ["error-500", "error-503", "rst", "fin", "garbage"])
async def test_a_key_that_does_not_answer_leaves_the_question_open(fault: str) -> None:
    """Its request is not sent to a key that may not own what it names, and the next one asks again."""
    async with world(affinity=APART) as before:
        name = [await before.ann.upload() for _ in KEYS][1]
        async with restarted(before) as here:
            here.standin.forget()
            here.standin.script(KEYS[1], fault, method="GET", target=name, times=2)
            refused = await here.ann.generate(name)
            assert (refused.status, refused.error["status"]) == (502, "UNAVAILABLE")
            assert not here.asked("POST")
            here.standin.clear()
            assert (await here.ann.generate(name)).status == 200


async def test_a_key_that_rests_for_all_leaves_it_open_with_the_true_429() -> None:
    async with world(affinity=APART) as before:
        name = [await before.ann.upload() for _ in KEYS][1]
        async with restarted(before, relay={"max_wait": "0s"}) as here:
            here.standin.forget()
            here.standin.script(KEYS[1], "rate-minute", method="GET", times=1, seconds=40)
            for _ in range(2):
                limited = await here.ann.generate(name)
                assert limited.status == 429
                assert 35 <= int(limited.headers["Retry-After"]) <= 40
            assert not here.asked("POST")


async def test_a_key_that_rests_for_a_model_is_asked_all_the_same() -> None:
    async with world(affinity=APART) as before:
        name = [await before.ann.upload() for _ in KEYS][1]
        async with restarted(before, relay={"max_wait": "0s"}) as here:
            here.standin.script(KEYS[1], "rate-minute", method="POST", seconds=40)
            for _ in KEYS:
                assert (await here.bob.generate()).status == 200
            limited = await here.ann.generate(name)
            assert limited.status == 429
            assert (await here.ann.get(name)).status == 200


async def test_a_dead_key_is_passed_over_and_that_nobody_else_has_it_is_not_remembered() -> None:
    async with world() as here:
        here.standin.script(KEYS[0], "key-invalid")
        assert (await here.ann.generate()).status == 200
        for number in range(1, 4):
            assert (await here.ann.get("files/nowhere")).status == 403
            assert len(searches(here, "files/nowhere")) == number * len(KEYS)


async def test_the_caller_s_deadline_bounds_the_search() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            fault = here.standin.script("*", "stall-head", method="GET", target=name)
            body = {"contents": [{"parts": [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/{name}"}}]}]}
            late = await here.ann.call("POST", GENERATE, body, {"X-Server-Timeout": "0.2"})
            assert (late.status, late.error["status"]) == (504, "DEADLINE_EXCEEDED")
            assert not here.asked("POST /v1beta")
            fault.open()
            assert (await here.ann.generate(name)).status == 200


async def test_names_of_two_owners_are_refused_after_a_restart_too() -> None:
    async with world(affinity=APART) as before:
        one, two, _ = [await before.ann.upload() for _ in KEYS]
        async with restarted(before) as here:
            here.standin.forget()
            refused = await here.ann.generate(one, two)
            assert (refused.status, refused.error["status"]) == (400, "FAILED_PRECONDITION")
            assert not here.asked("POST")


async def test_after_a_restart_the_first_client_to_name_it_is_its_maker() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            assert (await here.bob.get(name)).status == 200
            assert (await here.ann.get(name)).status == 404


async def test_deleting_after_a_restart_finds_the_owner() -> None:
    async with world(affinity=APART) as before:
        names = [await before.ann.upload() for _ in KEYS]
        async with restarted(before) as here:
            for name in names:
                assert (await here.ann.delete(name)).status == 200
            assert {arrival.status for arrival in here.asked("DELETE")} == {200}


async def test_a_uri_in_longer_text_starts_no_search() -> None:
    async with world() as before:
        name = await before.ann.upload()
        async with restarted(before) as here:
            here.standin.forget()
            assert (await here.ann.generate(text=f"See {GOOGLE}/v1beta/{name} there.")).status == 200
            assert len(here.standin.requests) == 1


async def test_a_search_goes_through_the_base_path_of_the_upstream_and_the_caller_s_version() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(b"{}", "404 Not Found")

    async with raw_upstream(serving(answer)) as upstream, proxying(f"{upstream.url}/some/base") as proxy:
        assert (await caller(proxy).call("GET", "/v1alpha/files/nowhere")).status == 404
        assert {seen.line for seen in upstream.requests} == {"GET /some/base/v1alpha/files/nowhere HTTP/1.1"}
        assert len(upstream.requests) == len(KEYS) + 1
