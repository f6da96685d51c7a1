"""Lists of what a client has, out of the lists of several keys."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from balancer.standin.openai.app import OpenAIStandIn, running
from tests.fakes import FakeClock
from tests.proxy import KEYS, proxying
from tests.surfaces.openai_calls import APART, GPT, OA_KEYS, World, caller, scripted, world
from tests.upstream import Peer, Seen, serving


async def several(here: World, clock: FakeClock, count: int = 6) -> list[str]:
    """Files of all three keys, newest first, each made a second after the one before."""
    names = []
    for _ in range(count):
        clock.advance(1)
        names.append(await here.ann.upload())
    assert {here.key_of(f"files/{name}") for name in names} == set(OA_KEYS)
    return names[::-1]


async def pages(here: World, query: str, path: str = "files") -> list[list[str]]:
    """Every page, as SDKs ask for them: the last item's id is where the next one begins."""
    found: list[list[str]] = []
    after = ""
    while True:
        answer = await here.ann.get(f"{path}?{query}{after}")
        assert answer.status == 200, answer.body
        page = [item["id"] for item in answer.json["data"]]
        found.append(page)
        if page:
            assert (answer.json["first_id"], answer.json["last_id"]) == (page[0], page[-1])
        if not answer.json["has_more"]:
            return found
        after = f"&after={page[-1]}"


async def test_files_of_several_keys_are_one_list_newest_first_on_pages_of_any_size() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        names = await several(here, clock)
        for limit in (1, 2, 4, 6, 100):
            expected = [names[place : place + limit] for place in range(0, 6, limit)]
            assert await pages(here, f"limit={limit}") == expected
        assert await pages(here, "limit=4&order=asc") == [names[::-1][:4], names[::-1][4:]]
        assert await pages(here, "") == [names]


async def test_a_list_goes_back_from_a_cursor_too_and_a_cursor_must_be_in_it() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        names = await several(here, clock)
        answer = await here.ann.get(f"files?before={names[4]}&limit=2")
        assert [item["id"] for item in answer.json["data"]] == names[2:4]
        for member in ("after", "before"):
            wrong = await here.ann.get(f"files?{member}=file-nowhere")
            assert wrong.code == (404, "resource_not_found")
            assert wrong.error["param"] == member


async def test_a_client_sees_its_own_things_alone() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        names = await several(here, clock)
        clock.advance(1)
        bobs = await here.bob.upload()
        assert (await pages(here, ""))[0] == names
        assert [item["id"] for item in (await here.bob.get("files")).json["data"]] == [bobs]
        here.oa.forget()
        await here.bob.get("files")
        assert here.keys() == [here.key_of(f"files/{bobs}")]  # and nobody else is asked


async def test_a_client_without_anything_has_an_empty_list_and_nobody_is_asked() -> None:
    async with world() as here:
        for path in ("files", "batches", "vector_stores", "assistants", "chat/completions", "fine_tuning/jobs"):
            answer = await here.ann.get(path)
            assert answer.json == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
            assert "x-balancer-partial" not in answer.headers
        assert not here.oa.requests


async def test_without_tokens_everybody_sees_everything() -> None:
    clock = FakeClock()
    tokens: dict[str, Any] = {"tokens": []}
    async with world(clock=clock, affinity=APART) as here:
        names = await several(here, clock)
        oa = {"kind": "openai", "base_url": here.url, "keys": list(OA_KEYS), "models": ["gpt-5.1"]}
        async with proxying(here.google, KEYS, clock=clock, auth=tokens, upstreams={"oa": oa}) as open_to_all:
            listed = await caller(open_to_all).get("files")
        assert [item["id"] for item in listed.json["data"]] == names


@pytest.mark.parametrize("path", ["batches", "vector_stores", "assistants", "chat/completions", "videos"])
async def test_other_collections_are_merged_in_the_same_way(path: str) -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        names = []
        for _ in range(4):
            clock.advance(1)
            match path:
                case "batches":
                    made = await here.ann.batch(await here.ann.batch_input())
                case "chat/completions":
                    made = await here.ann.chat(store=True)
                case "videos":
                    made = await here.ann.post("videos", {"model": "oa/sora-2", "prompt": "x"})
                case _:
                    made = await here.ann.post(path, {"model": GPT} if path == "assistants" else {})
            names.append(made.id)
        assert len({here.key_of(f"{path}/{name}") for name in names}) > 1
        listed = [name for page in await pages(here, "limit=3&order=desc", path) for name in page]
        assert listed == names[::-1]


async def test_filters_of_a_list_reach_every_key() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        await several(here, clock)
        source = await here.ann.batch_input()
        answer = await here.ann.get("files?purpose=batch")
        assert [item["id"] for item in answer.json["data"]] == [source]
        assert all("purpose=batch" in arrival.target for arrival in list(here.oa.requests)[-3:])


@pytest.mark.parametrize("fault", ["error-500", "rst", "rate-retry-after", "key-invalid", "redirect"])
async def test_a_key_that_fails_is_left_out_and_the_list_says_so(fault: str) -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity=APART) as here:
        names = await several(here, clock)
        gone = here.key_of(f"files/{names[0]}")
        here.oa.script(gone, fault)
        left = [name for name in names if here.key_of(f"files/{name}") != gone]
        for _ in range(2):  # the second time the key is known to rest, or to be dead
            answer = await here.ann.get("files")
            assert answer.headers["x-balancer-partial"] == "true"
            assert [item["id"] for item in answer.json["data"]] == left
        here.oa.script("*", "error-500")
        assert (await here.ann.get("files")).code[0] in (429, 502, 503)


async def test_a_list_that_is_none_leaves_its_key_out() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.line.startswith("POST"):
            await peer.answer(b'{"id": "vs_1", "object": "vector_store", "created_at": 5}')
        else:
            await peer.answer(b'{"object": "page"}')

    async with scripted(serving(answer)) as here:
        assert (await here.ann.post("vector_stores", {})).status == 200
        assert (await here.ann.get("vector_stores")).code == (502, "upstream_error")


async def test_a_list_that_the_upstream_finds_wrong_is_the_callers_fault() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.line.startswith("POST"):
            await peer.answer(b'{"id": "vs_1", "object": "vector_store", "created_at": 5}')
        else:
            await peer.answer(b'{"error": {"code": "invalid_value"}}', "400 Bad Request")

    async with scripted(serving(answer)) as here:
        assert (await here.ann.post("vector_stores", {})).status == 200
        refused = await here.ann.get("vector_stores?filter=none")
        assert refused.code == (400, "unsupported_parameter")
        assert "400 invalid_value" in refused.error["message"]


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=-1", "order=up"])
async def test_a_page_that_cannot_be_is_refused(query: str) -> None:
    async with world() as here:
        answer = await here.ann.get(f"files?{query}")
        assert answer.code == (400, "unsupported_parameter")
        assert answer.error["param"] == query.partition("=")[0]
        assert not here.oa.requests


async def test_what_a_client_has_with_a_second_upstream_is_in_its_list() -> None:
    clock = FakeClock()
    second = OpenAIStandIn(["sk-other-pool-key-1"], clock=clock)
    async with running(second) as url:
        more = {"oa2": {"kind": "openai", "base_url": f"{url}/v1", "keys": ["sk-other-pool-key-1"]}}
        async with world(clock=clock, more=more) as here:
            first = (await here.ann.post("assistants", {"model": GPT})).id
            clock.advance(1)
            other = (await here.ann.post("assistants", {"model": "oa2/gpt-4o"})).id
            assert second.requests[-1].target == "/v1/assistants"
            second.forget()
            listed = await here.ann.get("assistants")
            assert [item["id"] for item in listed.json["data"]] == [other, first]
            assert "x-balancer-partial" not in listed.headers
            assert [item["id"] for item in (await here.bob.get("assistants")).json["data"]] == []
            assert [arrival.target for arrival in second.requests] == ["/v1/assistants?limit=100"]
            second.script("*", "error-500")
            listed = await here.ann.get("assistants")
            assert listed.headers["x-balancer-partial"] == "true"
            assert [item["id"] for item in listed.json["data"]] == [first]


async def test_a_client_that_leaves_ends_the_questions_of_its_list() -> None:
    left = asyncio.Semaphore(0)
    numbers = itertools.count()

    async def answer(peer: Peer) -> None:
        while True:
            seen = await peer.request()
            if seen.line.startswith("GET"):
                break
            await peer.answer(b'{"id": "vs_%d", "object": "vector_store"}' % next(numbers))
        await peer.gone()
        left.release()

    async with scripted(answer, affinity=APART) as here:
        for _ in OA_KEYS:
            assert (await here.ann.post("vector_stores", {})).status == 200
            await here.upstream.arrival()
        owners = {seen.get("authorization") for seen in here.upstream.requests}
        assert len(owners) == len(OA_KEYS)
        asked = asyncio.create_task(here.ann.get("vector_stores"))
        for _ in owners:
            await here.upstream.arrival()
        asked.cancel()
        async with asyncio.timeout(5):
            for _ in owners:
                await left.acquire()
        states = await here.proxy.keys()
        assert {key["state"] for key in states} == {"ready"}


async def test_a_list_takes_no_longer_than_its_client_waits() -> None:
    async with world() as here:
        await here.ann.upload()
        here.oa.script("*", "stall-head", target="/files?")
        answer = await here.ann.get("files", **{"x-stainless-timeout": "0.2"})
        assert answer.code == (504, "upstream_timeout")


async def test_what_stands_below_a_resource_is_a_list_of_its_owners_alone() -> None:
    async with world(affinity=APART) as here:
        store = (await here.ann.post("vector_stores", {})).id
        await here.turn(1)
        here.oa.forget()
        listed = await here.ann.get(f"vector_stores/{store}/files?limit=1")
        assert listed.json["data"] == []
        assert here.keys() == [here.key_of(f"vector_stores/{store}")]
        assert here.last().target == f"/v1/vector_stores/{store}/files?limit=1"
