"""What a key has made of OpenAI's resources stays with that key and with its maker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.fakes import FakeClock
from tests.proxy import KEYS, proxying
from tests.surfaces.openai_calls import APART, GPT, MESSAGES, OA_KEYS, Answer, Caller, caller, scripted, world
from tests.upstream import Peer, Seen, serving


async def completed_upload(ann: Caller) -> Answer:
    about = {"bytes": 4, "filename": "a.txt", "mime_type": "text/plain", "purpose": "user_data"}
    upload = (await ann.post("uploads", about)).id
    form = aiohttp.FormData()
    form.add_field("data", b"four", filename="part")
    part = (await ann.call("POST", f"/v1/uploads/{upload}/parts", data=form)).id
    return await ann.post(f"uploads/{upload}/complete", {"part_ids": [part]})


async def tuning(ann: Caller) -> Answer:
    source = await ann.upload(purpose="fine-tune")
    return await ann.post("fine_tuning/jobs", {"model": "oa/gpt-4o-mini", "training_file": source})


async def skill(ann: Caller) -> Answer:
    form = aiohttp.FormData()
    form.add_field("files", b"how to", filename="SKILL.md")
    return await ann.call("POST", "/v1/skills", data=form)


EVAL = {"data_source_config": {"type": "custom", "item_schema": {}}, "testing_criteria": [{"type": "string_check"}]}
MAKERS: dict[str, Callable[[Caller], Awaitable[Answer]]] = {
    "responses": lambda ann: ann.respond(),
    "conversations": lambda ann: ann.post("conversations", {}),
    "vector_stores": lambda ann: ann.post("vector_stores", {"name": "x"}),
    "assistants": lambda ann: ann.post("assistants", {"model": GPT}),
    "threads": lambda ann: ann.post("threads", {}),
    "containers": lambda ann: ann.post("containers", {"name": "x"}),
    "videos": lambda ann: ann.post("videos", {"model": "oa/sora-2", "prompt": "x"}),
    "chat/completions": lambda ann: ann.chat(store=True),
    "evals": lambda ann: ann.post("evals", EVAL),
    "skills": skill,
    "fine_tuning/jobs": tuning,
}


@pytest.mark.parametrize("collection", [*MAKERS, "files"])
async def test_what_was_made_is_read_and_deleted_with_its_own_key_by_its_maker_alone(collection: str) -> None:
    async with world(affinity=APART) as here:
        for number in range(4):
            name = await here.ann.upload() if collection == "files" else (await MAKERS[collection](here.ann)).id
            await here.turn(number % 3 + 1)
            key = here.key_of(f"{collection}/{name}")
            here.oa.forget()
            assert (await here.bob.get(f"{collection}/{name}")).code == (404, "resource_not_found")
            assert (await here.bob.delete(f"{collection}/{name}")).code == (404, "resource_not_found")
            assert not here.oa.requests
            assert (await here.ann.get(f"{collection}/{name}")).id == name
            if collection != "fine_tuning/jobs":  # which nobody can delete
                assert (await here.ann.delete(f"{collection}/{name}")).status == 200
            assert set(here.keys()) == {key}


async def test_a_file_its_batch_content_and_results_stay_with_one_key_and_are_not_anothers() -> None:
    async with world(affinity=APART) as here:
        for number in range(3):
            source = await here.ann.batch_input()
            await here.turn(number + 1)
            batch = (await here.ann.batch(source)).id
            await here.turn(1)
            done = (await here.ann.get(f"batches/{batch}")).json
            assert done["status"] == "completed"
            await here.turn(1)
            result = await here.ann.get(f"files/{done['output_file_id']}/content")
            assert b"You said: hello" in result.body
            assert (await here.ann.get(f"files/{source}/content")).status == 200
            key = here.key_of(f"files/{source}")
            assert key == here.key_of(f"batches/{batch}") == here.key_of(f"files/{done['output_file_id']}")
            here.oa.forget()
            for path in (f"batches/{batch}", f"files/{source}", f"files/{done['output_file_id']}/content"):
                assert (await here.bob.get(path)).code == (404, "resource_not_found")
            assert (await here.bob.batch(source)).code == (404, "resource_not_found")
            assert not here.oa.requests
            assert (await here.ann.delete(f"files/{source}")).status == 200


async def test_a_response_is_continued_where_it_was_made() -> None:
    async with world() as here:
        for number in range(4):
            first = (await here.ann.respond()).id
            key = here.key_of(f"responses/{first}")
            await here.turn(number % 3)
            second = await here.ann.respond(previous_response_id=first)
            assert here.key_of(f"responses/{second.id}") == key
            assert (await here.bob.respond(previous_response_id=first)).code == (404, "resource_not_found")


async def test_a_response_that_was_streamed_is_known_from_its_first_event() -> None:
    go_on = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if "previous" in seen.body.decode():
            await peer.answer(b'{"id": "resp_2", "object": "response"}')
            return
        await peer.stream()
        event = {"type": "response.created", "response": {"id": "resp_first", "conversation": {"id": "conv_1"}}}
        text = b"event: response.created\ndata: " + json.dumps(event).encode() + b"\n\n"
        await peer.chunk(text[:20])
        await peer.chunk(text[20:])
        await go_on.wait()
        await peer.chunk(b"event: response.completed\ndata: {}\n\n")
        await peer.end()

    async with scripted(serving(answer)) as here:
        async with here.ann.stream("responses", {"model": GPT, "input": "x", "stream": True}) as given:
            async with asyncio.timeout(10):
                await given.content.readuntil(b"\n\n")  # the stream goes on
            made_with = here.upstream.requests[0].get("authorization")
            for members in ({"previous_response_id": "resp_first"}, {"conversation": "conv_1", "x": "previous"}) * 2:
                assert (await here.ann.respond(**members)).status == 200
                assert here.upstream.requests[-1].get("authorization") == made_with
            go_on.set()
            assert (await given.read()).endswith(b"{}\n\n")


async def test_a_streamed_answer_that_is_coded_all_the_same_is_not_held_back() -> None:
    go_on = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream("Content-Encoding: zstd")
        await peer.chunk(b"some bytes")
        await go_on.wait()
        await peer.end()

    async with scripted(serving(answer)) as here:
        async with aiohttp.ClientSession(auto_decompress=False) as plain:
            ann = Caller(plain, here.proxy.url)
            async with ann.stream("responses", {"model": GPT, "input": "x"}) as given:
                async with asyncio.timeout(10):
                    assert await given.content.readany() == b"some bytes"
                go_on.set()
                assert await given.read() == b""


@pytest.mark.parametrize("declared", [True, False])
async def test_an_answer_too_long_to_be_held_back_is_known_by_its_beginning(declared: bool) -> None:
    body = b'{"object": "response", "id": "resp_long", "output": "%b"}' % (b"x" * (3 << 20))

    async def answer(peer: Peer, seen: Seen) -> None:
        if b"previous" in seen.body or not declared:
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            for place in range(0, len(body), 100_000):
                await peer.chunk(body[place : place + 100_000])
            await peer.end()
        else:
            await peer.answer(body)

    async with scripted(serving(answer)) as here:
        assert (await here.ann.respond()).body == body
        made_with = here.upstream.requests[-1].get("authorization")
        for _ in range(3):
            assert (await here.ann.respond(previous_response_id="resp_long")).body == body
            assert here.upstream.requests[-1].get("authorization") == made_with


async def test_a_completion_is_remembered_only_if_it_was_stored() -> None:
    async with world() as here:
        options = {"model": GPT, "messages": MESSAGES, "stream": True}
        async with here.ann.stream("chat/completions", {**options, "store": True}) as given:
            stored = json.loads((await given.read()).split(b"\n\n")[0].removeprefix(b"data: "))["id"]
        key = here.keys()[-1]
        here.oa.forget()
        assert (await here.ann.get(f"chat/completions/{stored}")).id == stored
        assert (await here.ann.get(f"chat/completions/{stored}/messages")).json["data"]
        assert (await here.ann.post(f"chat/completions/{stored}", {"metadata": {"a": "b"}})).id == stored
        assert here.keys() == [key] * 3
        plain = (await here.ann.chat()).id
        here.oa.forget()
        assert (await here.ann.get(f"chat/completions/{plain}")).status == 404
        assert len(here.oa.requests) > 1  # it was looked for


async def test_uploads_in_parts_and_what_becomes_of_them_are_of_one_key() -> None:
    async with world(affinity=APART) as here:
        for _ in range(3):
            done = await completed_upload(here.ann)
            assert done.status == 200, done.body
            file = done.json["file"]["id"]
            await here.turn(1)
            here.oa.forget()
            assert (await here.ann.get(f"files/{file}/content")).body == b"four"
            assert len(here.oa.requests) == 1


async def test_threads_runs_stores_and_their_files_are_one() -> None:
    async with world(affinity=APART) as here:
        for _ in range(3):
            assistant = (await here.ann.post("assistants", {"model": GPT})).id
            begun = await here.ann.post("threads/runs", {"assistant_id": assistant, "thread": {"messages": MESSAGES}})
            thread, run = begun.json["thread_id"], begun.id
            await here.turn(1)
            assert (await here.ann.get(f"threads/{thread}/runs/{run}")).id == run
            assert (await here.ann.get(f"threads/{thread}/messages")).status == 200
            file = await here.ann.upload()
            store = (await here.ann.post("vector_stores", {"file_ids": [file]})).id
            await here.turn(1)
            assert (await here.ann.get(f"vector_stores/{store}/files/{file}")).status == 200
            assert (await here.bob.get(f"vector_stores/{store}/files")).code == (404, "resource_not_found")


async def test_things_of_two_keys_cannot_be_used_together() -> None:
    async with world(affinity=APART) as here:
        names = [await here.ann.upload() for _ in range(2)]
        here.oa.forget()
        parts = [{"type": "input_file", "file_id": name} for name in names]
        answer = await here.ann.respond(input=[{"role": "user", "content": parts}])
        assert answer.code == (400, "resources_on_different_keys")
        assert all(name in answer.error["message"] for name in names)
        assert not here.oa.requests


async def test_what_is_not_known_here_is_looked_for_once_where_a_path_names_it_and_nowhere_else() -> None:
    async with world(affinity=APART) as here:
        name = await here.ann.upload()
        key = here.key_of(f"files/{name}")
        auth: dict[str, Any] = {"auth": {"tokens": []}}
        oa = {"kind": "openai", "base_url": here.url, "keys": list(OA_KEYS), "models": ["gpt-5.1"]}
        async with proxying(here.google, KEYS, upstreams={"oa": oa}, **auth) as again:
            restarted = caller(again)
            here.oa.forget()
            assert (await restarted.get(f"files/{name}/content")).body == b"some text"
            asked = [target for target in here.targets() if not target.endswith("/content")]
            assert asked == [f"GET /v1/files/{name}"] * len(asked)
            assert 1 <= len(asked) <= len(OA_KEYS)
            assert here.keys()[-1] == key
            here.oa.forget()
            assert (await restarted.get(f"files/{name}/content")).status == 200
            assert len(here.oa.requests) == 1
            here.oa.forget()
            assert (await restarted.get("files/file-nobodyhasthis")).status == 404
            assert len(here.oa.requests) == len(OA_KEYS) + 1  # each owner, and then the call itself
            here.oa.forget()
            told = await restarted.respond(previous_response_id="resp_nobodyhasthis")
            assert told.error["code"] == "previous_response_not_found"
            assert len(here.oa.requests) == 1


async def test_what_two_upstreams_do_not_know_is_looked_for_in_both() -> None:
    async with world(keys=("sk-other-pool-key-1", "sk-other-pool-key-2")) as other:
        name = await other.ann.upload()
        more = {
            "oa2": {"kind": "openai", "base_url": other.url, "keys": ["sk-other-pool-key-1", "sk-other-pool-key-2"]}
        }
        async with world(more=more) as here:
            other.oa.forget()
            assert (await here.ann.get(f"files/{name}/content")).body == b"some text"
            assert len(here.oa.requests) == 3
            here.oa.forget()
            assert (await here.ann.get(f"files/{name}")).id == name
            assert not here.oa.requests
            assert (await here.bob.get(f"files/{name}")).code == (404, "resource_not_found")
            source = await other.ann.batch_input()
            assert (await here.ann.get(f"files/{source}")).id == source
            other.oa.forget()
            assert (await here.ann.batch(source)).status == 200  # and goes where its input is
            assert [arrival.target for arrival in other.oa.requests] == ["/v1/batches"]


async def test_what_was_deleted_is_unbound_and_looked_for_again() -> None:
    async with world() as here:
        name = await here.ann.upload()
        assert (await here.ann.delete(f"files/{name}")).status == 200
        here.oa.forget()
        answer = await here.ann.get(f"files/{name}")
        assert (answer.status, answer.error["message"]) == (404, f"No such File object: {name}")  # the upstream's words
        assert len(here.oa.requests) == len(OA_KEYS) + 1
        assert (await here.bob.get(f"files/{name}")).error["message"] == f"No such File object: {name}"


async def test_a_delete_that_fails_unbinds_nothing() -> None:
    async with world() as here:
        name = await here.ann.upload()
        here.oa.script("*", "error-500", times=1)
        assert (await here.ann.delete(f"files/{name}")).status == 500
        here.oa.forget()
        assert (await here.ann.get(f"files/{name}")).status == 200
        assert len(here.oa.requests) == 1


async def test_a_resource_waits_for_its_owner_and_never_goes_to_another_key() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        name = await here.ann.upload()
        key = here.key_of(f"files/{name}")
        here.oa.script(key, "rate-retry-after", times=1, seconds=30, target="/files/")
        here.oa.forget()
        for _ in range(2):
            answer = await here.ann.get(f"files/{name}")
            assert answer.code == (429, "keys_resting")
            assert answer.headers["Retry-After"] == "30"
        assert here.keys() == [key]
        clock.advance(30)
        assert (await here.ann.get(f"files/{name}")).status == 200
        assert here.keys() == [key] * 2


async def test_any_key_of_a_project_will_do_for_what_is_the_projects() -> None:
    keys = {OA_KEYS[0]: "proj_one", OA_KEYS[1]: "proj_one", OA_KEYS[2]: "proj_two"}
    oa = {"keys": [{"key": key, "project": project} for key, project in keys.items()]}
    async with world(keys=keys, oa=oa, affinity=APART) as here:
        names = [await here.ann.upload() for _ in range(6)]
        ones = [name for name in names if here.oa.world.shelf.get("proj_one", f"files/{name}") is not None]
        here.oa.forget()
        for _ in range(2):
            for name in ones:
                assert (await here.ann.get(f"files/{name}")).status == 200
        assert set(here.keys()) == set(OA_KEYS[:2])
        here.oa.script(OA_KEYS[0], "key-invalid")
        for name in ones:
            assert (await here.ann.get(f"files/{name}")).status == 200


async def test_uploads_follow_the_session_or_the_clients_last_upload() -> None:
    async with world() as here:
        one = [await here.ann.upload() for _ in range(4)]
        assert len({here.key_of(f"files/{name}") for name in one}) == 1
        await here.turn(1)
        inside = [await here.ann.within("apart").upload() for _ in range(3)]
        assert len({here.key_of(f"files/{name}") for name in inside}) == 1


async def test_a_session_that_owns_something_stays_with_its_key() -> None:
    async with world() as here:
        name = await here.ann.within("s").upload()
        key = here.key_of(f"files/{name}")
        here.oa.script(key, "rate-retry-after", times=1, seconds=30)
        assert (await here.ann.within("s").chat()).code == (429, "keys_resting")
        assert (await here.ann.chat()).status == 200


async def test_bindings_last_as_long_as_they_are_used() -> None:
    clock = FakeClock()
    async with world(clock=clock, openai={"resource_ttl": "30d"}) as here:
        name = await here.ann.upload()
        for _ in range(3):
            clock.advance(20 * 86400)
            assert (await here.bob.get(f"files/{name}")).code == (404, "resource_not_found")
            assert (await here.ann.get(f"files/{name}")).status == 200
        clock.advance(31 * 86400)
        assert (await here.bob.get(f"files/{name}")).status == 200  # nobody's: whoever names it first has it


async def test_a_name_in_a_body_counts_wherever_it_stands_and_in_escapes_too() -> None:
    async with world() as here:
        name = await here.ann.upload()
        escaped = name.replace("-", "\\u002d")
        for spelled in (name, escaped):
            body = f'{{"model": "{GPT}", "input": [{{"any": {{"depth": ["{spelled}"]}}}}]}}'.encode()
            assert (await here.bob.post("responses", body)).code == (404, "resource_not_found")
        fine = {"model": GPT, "input": f"the text {name} is no name", "metadata": {name: "x"}}
        assert (await here.bob.post("responses", fine)).status == 200
