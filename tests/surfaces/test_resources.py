"""What a key has made stays with that key and with its maker: every collection, every place where a name can stand."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest

from tests.fakes import FakeClock
from tests.proxy import GENERATE, KEYS, error_of, proxying
from tests.surfaces.calls import ANN, FILES, GOOGLE, Answer, Caller, World, caller, restarted, world
from tests.upstream import Peer, Seen, raw_upstream, serving

APART = {"uploads": "none"}
"""Affinity settings with which uploads rotate, so that names of several owners are at hand."""
JSON = {"Content-Type": "application/json"}


async def three(here: World) -> list[str]:
    """One file with each key."""
    names = [await here.ann.upload() for _ in KEYS]
    assert {here.key_of(name) for name in names} == set(KEYS)
    return names


async def turn(here: World, times: int) -> None:
    """Let the rotation go on, so that a key that is met is met for a reason."""
    for _ in range(times):
        assert (await here.bob.generate()).status == 200


# Collections


@pytest.mark.parametrize(
    "collection", ["files", "cachedContents", "fileSearchStores", "newThings", "agents2", "corpora"]
)
async def test_what_was_made_is_found_used_changed_and_deleted_with_its_own_key(collection: str) -> None:
    about = {"model": "models/gemini-2.5-flash"} if collection == "cachedContents" else {}
    async with world(affinity=APART) as here:
        for number in range(4):
            if collection == "files":
                name = await here.ann.upload()
            else:
                name = await here.ann.make(collection, about)
            await turn(here, number % 3 + 1)
            key = here.key_of(name)
            here.standin.forget()
            assert (await here.ann.get(name)).json["name"] == name
            assert (await here.ann.call("PATCH", f"/v1beta/{name}", {"displayName": "changed"})).status == 200
            assert (await here.ann.call("GET", f"/v1alpha/{name}")).status == 200
            assert (await here.ann.call("HEAD", f"/v1beta/{name}")).status == 200
            assert (await here.ann.delete(name)).status == 200
            assert here.keys() == [key] * 5


async def test_a_cache_is_used_where_it_is() -> None:
    async with world() as here:
        for _ in range(4):
            name = await here.ann.make("cachedContents", {"model": "models/gemini-2.5-flash"})
            used = await here.ann.generate(cachedContent=name)
            assert used.json["usageMetadata"]["cachedContentTokenCount"] == 1024
            assert (await here.ann.generate(cached_content=name)).status == 200


async def test_a_batch_its_input_and_its_result_file_stay_together() -> None:
    async with world(affinity=APART) as here:
        line = json.dumps({"key": "1", "request": {"contents": [{"parts": [{"text": "from a file"}]}]}}).encode()
        for _ in range(4):
            source = await here.ann.upload(line)
            path = "/v1beta/models/gemini-2.5-flash:batchGenerateContent"
            made = await here.ann.call("POST", path, {"batch": {"inputConfig": {"fileName": source}}})
            batch = made.json["name"]
            await turn(here, 1)
            done = (await here.ann.get(batch)).json
            result = done["metadata"]["output"]["responsesFile"]
            await turn(here, 1)
            downloaded = await here.ann.get(f"{result}:download?alt=media")
            assert b"You said: from a file" in downloaded.body
            assert here.key_of(source) == here.key_of(batch) == here.key_of(result)
            assert (await here.bob.get(f"{result}:download?alt=media")).status == 404
            assert (await here.ann.post(f"{batch}:cancel")).status == 200
            assert (await here.ann.delete(batch)).status == 200


async def test_operations_of_every_shape_are_asked_where_they_run() -> None:
    async with world(affinity=APART) as here:
        for _ in range(4):
            video = await here.ann.call("POST", "/v1beta/models/veo-3.0-generate-001:predictLongRunning", {})
            name = video.json["name"]
            assert name.startswith("models/veo-3.0-generate-001/operations/")
            await turn(here, 1)
            done = (await here.ann.get(name)).json
            uri = done["response"]["generateVideoResponse"]["generatedSamples"][0]["video"]["uri"]
            film = await here.ann.call("GET", uri.removeprefix(GOOGLE))
            assert film.body.startswith(b"\0\0\0\x18ftypmp42")
            tuned = (await here.ann.post("tunedModels", {"baseModel": "models/gemini-2.0-flash"})).json
            assert tuned["name"].startswith("tunedModels/")
            await turn(here, 1)
            assert (await here.ann.get(tuned["name"])).json["done"]
            model = tuned["metadata"]["tunedModel"]
            assert (await here.ann.call("POST", f"/v1beta/{model}:generateContent", HELLO)).status == 200
            assert (await here.ann.get(f"{model}/operations")).status == 200
            assert (await here.bob.get(tuned["name"])).status == 404
            assert (await here.bob.get(name)).status == 404


HELLO = {"contents": [{"parts": [{"text": "hello"}]}]}


async def test_a_store_its_documents_operations_and_media_are_one() -> None:
    async with world() as here:
        for _ in range(4):
            store = await here.ann.make("fileSearchStores")
            begun = await here.ann.start({"displayName": "doc"}, f"/upload/v1beta/{store}:uploadToFileSearchStore")
            ended = await here.ann.chunk(begun.headers["X-Goog-Upload-URL"], b"words of a document")
            operation, document = ended.json["name"], ended.json["response"]["documentName"]
            await turn(here, 1)
            assert (await here.ann.get(operation)).json["done"]
            assert (await here.ann.get(document)).status == 200
            listed = await here.ann.get(f"{store}/documents")
            assert [each["name"] for each in listed.json["documents"]] == [document]
            media = await here.ann.get(f"{document.replace('/documents/', '/media/')}?alt=media")
            assert media.body == b"words of a document"
            for spelling in (
                {"fileSearch": {"fileSearchStoreNames": [store]}},
                {"file_search": {"file_search_store_names": [store]}},
            ):
                assert (await here.ann.generate(tools=[spelling])).status == 200
                refused = await here.bob.generate(tools=[spelling])
                assert (refused.status, refused.error["status"]) == (404, "NOT_FOUND")
            assert (await here.ann.delete(f"{document}?force=true")).status == 200
            assert (await here.ann.get(store)).status == 200
            assert (await here.ann.delete(f"{store}?force=true")).status == 200


async def test_a_file_is_imported_where_file_and_store_are() -> None:
    async with world(affinity=APART) as here:
        session = here.ann.within("s")
        store = await session.make("fileSearchStores")
        file = await session.upload(b"to import")
        imported = await session.post(f"{store}:importFile", {"fileName": file})
        assert (await here.ann.get(imported.json["name"])).json["done"]
        far = next(name for name in await three(here) if here.key_of(name) != here.key_of(store))
        before = len(here.standin.requests)
        refused = await session.post(f"{store}:importFile", {"file_name": far})
        assert refused.status == 400
        assert store in refused.error["message"]
        assert far in refused.error["message"]
        assert len(here.standin.requests) == before


async def test_a_collection_never_heard_of_is_found_in_bodies_once_it_was_met() -> None:
    async with world() as here:
        things = [await here.ann.make("newThings") for _ in KEYS]
        assert {here.keys()[n] for n in range(3)} == set(KEYS)
        here.standin.forget()
        for _ in range(3):
            assert (await here.ann.post("otherThings", {"thing": things[1]})).status == 200
        assert set(here.keys()) == {KEYS[1]}
        # The stand-in numbers them per collection and project, as callers who choose names do.
        assert (await here.bob.post("otherThings", {"thing": things[0]})).status in (200, 404)


# Places


def places(uri: str, name: str) -> dict[str, Any]:
    return {
        "camelCase": {"fileData": {"fileUri": uri}},
        "snake_case": {"file_data": {"file_uri": uri}},
        "plain uri": {"inlineThing": {"uri": uri}},
        "name": {"fileData": {"fileUri": name}},
        "download uri": {"fileData": {"fileUri": f"{uri}:download?alt=media"}},
        "function response": {"functionResponse": {"name": "f", "response": {"file": uri}}},
    }


@pytest.mark.parametrize("place", list(places("", "")))
async def test_a_file_is_found_wherever_it_stands_in_a_body(place: str) -> None:
    async with world(affinity=APART) as here:
        for name in await three(here):
            parts = [places(f"{GOOGLE}/v1beta/{name}", name)[place], {"text": "hello"}]
            for path in (GENERATE, "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"):
                assert (await here.ann.call("POST", path, {"contents": [{"parts": parts}]})).status == 200
                assert here.keys()[-1] == here.key_of(name)


@pytest.mark.parametrize("escape", ["slash", "hex", "all"])
async def test_escapes_in_a_body_hide_nothing(escape: str) -> None:
    async with world(affinity=APART) as here:
        for name in await three(here):
            match escape:
                case "slash":
                    text = name.replace("/", "\\/")
                case "hex":
                    text = name.replace("/", "\\u002F")
                case _:
                    text = "".join(f"\\u{ord(letter):04x}" for letter in name)
            data = b'{"contents":[{"parts":[{"fileData":{"fileUri":"%b"}},{"text":"x"}]}]}' % text.encode()
            answer = await here.ann.call("POST", GENERATE, headers=JSON, data=data)
            assert answer.status == 200, answer.body
            refused = await here.bob.call("POST", GENERATE, headers=JSON, data=data)
            assert refused.status == 404


async def test_a_compressed_body_hides_nothing() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.line.startswith("GET"):
            await peer.answer(b"{}", "404 Not Found")
        else:
            await peer.answer(b'{"name": "cachedContents/c"}')

    tokens = {"tokens": f"ann={ANN},bob=token-of-bob-2"}
    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, auth=tokens) as proxy:
        ann, bob = caller(proxy, ANN), caller(proxy, "token-of-bob-2")
        assert (await ann.post("cachedContents")).status == 200
        owner = upstream.requests[0].get("x-goog-api-key")
        data = gzip.compress(json.dumps({**HELLO, "cachedContent": "cachedContents/c"}).encode())
        coded = {**JSON, "Content-Encoding": "gzip"}
        for _ in range(3):
            assert (await ann.call("POST", GENERATE, headers=coded, data=data)).status == 200
        assert {seen.get("x-goog-api-key") for seen in upstream.requests} == {owner}
        assert all(seen.body == data for seen in upstream.requests[1:])
        assert (await bob.call("POST", GENERATE, headers=coded, data=data)).status == 404
        assert len(upstream.requests) == 4


async def test_a_name_far_behind_in_a_large_body_is_found() -> None:
    async with world(affinity=APART) as here:
        filler = [{"text": "x" * 1000} for _ in range(2000)]
        for name in await three(here):
            parts = [*filler, {"fileData": {"fileUri": f"{GOOGLE}/v1beta/{name}"}}, *filler]
            body = json.dumps({"contents": [{"parts": parts}]}).encode()
            assert (await here.ann.call("POST", GENERATE, headers=JSON, data=body)).status == 200
            assert here.keys()[-1] == here.key_of(name)


async def test_a_name_in_the_query_is_found() -> None:
    async with world(affinity=APART) as here:
        for name in await three(here):
            for value in (name.replace("/", "%2F"), name):
                assert (await here.ann.call("POST", f"{GENERATE}?source={value}", HELLO)).status == 200
                assert here.keys()[-1] == here.key_of(name)
                assert (await here.bob.call("POST", f"{GENERATE}?source={value}", HELLO)).status == 404


async def test_an_encoded_path_names_the_same() -> None:
    async with world(affinity=APART) as here:
        for name in await three(here):
            encoded = "files/" + "".join(f"%{ord(letter):02x}" for letter in name.removeprefix("files/"))
            assert (await here.ann.get(encoded)).json["name"] == name
            assert (await here.bob.get(encoded)).status == 404


# Life and death


async def test_a_file_is_known_as_long_as_it_lives() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        name = await here.ann.upload()
        clock.advance(48 * 3600 - 1)
        before = len(here.standin.requests)
        assert (await here.ann.get(name)).status == 200
        assert len(here.standin.requests) == before + 1
        clock.advance(2)
        gone = await here.ann.get(name)
        assert gone.status == 403  # the upstream's own words, after nobody was found to have it
        assert len(here.asked(f"GET /v1beta/{name}")) == 1 + len(KEYS) + 1


async def test_a_cache_is_known_as_long_as_its_answers_say() -> None:
    clock = FakeClock()
    async with world(clock=clock) as here:
        name = await here.ann.make("cachedContents", {"model": "models/gemini-2.5-flash", "ttl": "100s"})
        clock.advance(60)
        assert (await here.ann.call("PATCH", f"/v1beta/{name}", {"ttl": "100s"})).status == 200
        clock.advance(99)
        before = len(here.standin.requests)
        assert (await here.ann.generate(cachedContent=name)).status == 200
        assert len(here.standin.requests) == before + 1
        clock.advance(2)
        assert (await here.bob.generate(cachedContent=name)).status == 403  # nobody's any more, so it was looked for
        assert len(here.asked(f"GET /v1beta/{name}")) == len(KEYS)


async def test_when_too_much_was_made_the_longest_unused_is_looked_for_again() -> None:
    async with world(affinity={"max_bindings": 5, "uploads": "none"}) as here:
        bindings = here.proxy.server.runtime.bindings
        assert bindings is not None
        kept = await here.ann.upload()
        others = []
        for _ in range(10):
            others.append(await here.ann.upload())
            assert (await here.ann.get(kept)).status == 200
            assert len(bindings) <= 5
        here.standin.forget()
        assert (await here.ann.get(kept)).status == 200
        assert len(here.standin.requests) == 1
        assert (await here.ann.get(others[0])).status == 200
        assert len(here.standin.requests) > 1


async def test_deleting_unbinds() -> None:
    async with world() as here:
        name = await here.ann.upload(name="files/chosen")
        assert (await here.bob.get(name)).status == 404
        assert (await here.ann.delete(name)).status == 200
        assert (await here.bob.upload(name="files/chosen")) == name
        assert (await here.bob.get(name)).status == 200
        assert (await here.ann.get(name)).status == 404


async def test_deleting_that_fails_unbinds_nothing() -> None:
    async with world() as here:
        name = await here.ann.upload()
        here.standin.script("*", "error-500", times=1, method="DELETE")
        assert (await here.ann.delete(name)).status == 500
        assert (await here.bob.get(name)).status == 404
        assert (await here.ann.get(name)).status == 200


async def test_deleting_a_document_does_not_unbind_its_store() -> None:
    async with world() as here:
        store = await here.ann.make("fileSearchStores")
        begun = await here.ann.start({}, f"/upload/v1beta/{store}:uploadToFileSearchStore")
        ended = await here.ann.chunk(begun.headers["X-Goog-Upload-URL"], b"words")
        assert (await here.ann.delete(ended.json["response"]["documentName"])).status == 200
        assert (await here.bob.get(store)).status == 404
        before = len(here.standin.requests)
        assert (await here.ann.get(store)).status == 200
        assert len(here.standin.requests) == before + 1


async def test_answers_that_come_compressed_are_learned_from_and_passed_on_as_they_came() -> None:
    async with world() as here:
        here.standin.script("*", "gzip")
        for _ in range(4):
            async with _Undecoded(here) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                name = json.loads(gzip.decompress(await answer.read()))["name"]
            assert (await here.ann.get(name)).json["name"] == name
        for arrival in here.standin.requests:
            assert arrival.header("accept-encoding") == "identity"


async def test_a_gzip_bomb_passes_and_teaches_nothing() -> None:
    async with world() as here:
        here.standin.script("*", "gzip-bomb", times=1, size=8 << 20)
        async with _Undecoded(here) as answer:
            assert len(gzip.decompress(await answer.read())) == 8 << 20


class _Undecoded:
    """A POST whose answer is left as it came."""

    def __init__(self, here: World) -> None:
        self._http = aiohttp.ClientSession(auto_decompress=False)
        self._here = here

    async def __aenter__(self) -> aiohttp.ClientResponse:
        headers = {"x-goog-api-key": ANN, "Accept-Encoding": "gzip"}
        return await self._http.post(f"{self._here.proxy.url}/v1beta/newThings", json={}, headers=headers)

    async def __aexit__(self, *exc: object) -> None:
        await self._http.close()


# Clients


async def test_another_client_s_resource_is_a_missing_one_and_no_upstream_is_asked() -> None:
    async with world() as here:
        file = await here.ann.upload()
        cache = await here.ann.make("cachedContents", {"model": "models/gemini-2.5-flash"})
        here.standin.forget()
        answers: list[Answer] = [
            await here.bob.get(file),
            await here.bob.get(f"{file}:download?alt=media"),
            await here.bob.call("GET", f"/download/v1beta/{file}:download?alt=media"),
            await here.bob.delete(file),
            await here.bob.call("PATCH", f"/v1beta/{cache}", {}),
            await here.bob.generate(file),
            await here.bob.generate(cachedContent=cache),
            await here.bob.within("s").generate(file),
            await here.bob.post("batches", {"batch": {"inputConfig": {"fileName": file}}}),
        ]
        for answer in answers:
            assert (answer.status, answer.error["status"]) == (404, "NOT_FOUND")
        assert not here.standin.requests
        mine = await here.bob.upload()
        here.standin.forget()
        assert (await here.bob.generate(mine, file)).status == 404
        assert not here.standin.requests


async def test_it_answers_like_one_that_does_not_exist_anywhere() -> None:
    async with world() as here:
        name = await here.ann.upload()
        refused = await here.bob.get(name)
        assert set(refused.error) == {"code", "message", "status", "details"}
        assert name in refused.error["message"]
        assert "ann" not in refused.body.decode()


async def test_the_same_chosen_name_of_two_clients_is_two_files() -> None:
    async with world() as here:
        for client, data in ((here.ann, b"ann's"), (here.bob, b"bob's")):
            assert await client.upload(data, name="files/mine") == "files/mine"
        for _ in range(2):
            for client, data in ((here.ann, b"ann's"), (here.bob, b"bob's")):
                assert (await client.get("files/mine:download?alt=media")).body == data
        assert (await here.ann.delete("files/mine")).status == 200
        assert (await here.bob.get("files/mine")).status == 200


async def test_an_echo_of_another_client_s_name_gives_no_access_to_it() -> None:
    async with world(keys=KEYS[:1]) as here:
        name = await here.ann.upload()
        about = {"model": "models/gemini-2.5-flash", "displayName": name}
        cache = await here.bob.post("cachedContents", about)
        assert cache.status in (200, 404)  # a display name that is wholly a name counts as one
        thing = await here.bob.post("newThings", {"note": f" {name}"})
        assert thing.status == 200
        assert (await here.bob.get(name)).status == 404
        assert (await here.ann.get(name)).status == 200


async def test_lists_hide_what_other_clients_made() -> None:
    async with world(keys=KEYS[:1]) as here:
        mine = [await here.ann.upload() for _ in range(3)]
        theirs = [await here.bob.upload() for _ in range(2)]
        for client, expected in ((here.ann, mine), (here.bob, theirs), (here.ann, mine)):
            listed = (await client.get("files")).json
            assert sorted(each["name"] for each in listed["files"]) == sorted(expected)
        stores = [await here.ann.make("fileSearchStores"), await here.bob.make("fileSearchStores")]
        listed = (await here.bob.get("fileSearchStores")).json
        assert [each["name"] for each in listed["fileSearchStores"]] == stores[1:]
        path = "models/gemini-2.5-flash:batchGenerateContent"
        batch = {"batch": {"inputConfig": {"requests": {"requests": [{"request": HELLO}]}}}}
        batches = [(await client.post(path, batch)).json["name"] for client in (here.ann, here.bob)]
        for number, client in enumerate((here.ann, here.bob)):
            assert [each["name"] for each in (await client.get("batches")).json["operations"]] == [batches[number]]


async def test_a_list_of_one_client_s_things_passes_byte_for_byte() -> None:
    async with world(keys=KEYS[:1]) as here:
        await here.ann.upload()
        listed = await here.ann.get("files")
        assert listed.body.startswith(b'{\n  "files"')
        assert int(listed.headers["Content-Length"]) == len(listed.body)


async def test_a_compressed_list_hides_them_as_well() -> None:
    async with world(keys=KEYS[:1]) as here:
        mine, _ = await here.ann.upload(), await here.bob.upload()
        here.standin.script("*", "gzip", target="/v1beta/files")
        listed = await here.ann.get("files")
        assert [each["name"] for each in listed.json["files"]] == [mine]
        assert "Content-Encoding" not in listed.headers


@pytest.mark.parametrize("how", ["long", "bomb", "coding", "protobuf"])
async def test_a_list_that_cannot_be_checked_is_not_passed_on(how: str) -> None:
    items = b'{"files": [' + b",".join(b'{"name": "files/f%d"}' % n for n in range(900_000)) + b"]}"

    async def answer(peer: Peer, seen: Seen) -> None:
        match how:
            case "long":
                await peer.answer(items)
            case "bomb":
                await peer.answer(gzip.compress(items, 1), headers=("Content-Encoding: gzip",))
            case "coding":
                await peer.answer(b"\x8b\x00\x80{}\x03", headers=("Content-Encoding: br",))
            case _:
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 3\r\n\r\nabc"
                await peer.write(head)

    assert len(items) > 16 << 20
    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.get("/v1beta/files") as got,
    ):
        assert got.status == 502
        assert error_of(await got.read())["status"] == "UNAVAILABLE"


async def test_a_long_list_is_read_whole() -> None:
    theirs = [f"files/their{n}" for n in range(3)]
    items = [{"name": f"files/f{n}", "displayName": "x" * 300} for n in range(5000)] + [
        {"name": name} for name in theirs
    ]

    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.line.startswith("POST"):
            await peer.answer(json.dumps({"files": [{"name": name} for name in theirs]}).encode())
        else:
            await peer.answer(json.dumps({"files": items}).encode())

    tokens = {"tokens": f"ann={ANN},bob=token-of-bob-2"}
    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, auth=tokens) as proxy:
        assert (await caller(proxy, "token-of-bob-2").post("files:register")).status == 200
        listed = await caller(proxy, ANN).get("files")
        assert len(listed.json["files"]) == 5000
        assert not any(name.encode() in listed.body for name in theirs)


async def test_what_a_list_showed_belongs_to_its_first_user() -> None:
    async with world(keys=KEYS[:1]) as before:
        name = await before.ann.upload()
        async with restarted(before, keys=KEYS[:1]) as here:
            for client in (here.bob, here.ann, here.bob):
                assert [each["name"] for each in (await client.get("files")).json["files"]] == [name]
            assert (await here.ann.generate(name)).status == 200
            assert (await here.bob.generate(name)).status == 404
            assert "files" not in (await here.bob.get("files")).json or not (await here.bob.get("files")).json["files"]


# Two owners


async def test_names_of_two_owners_are_a_precise_400_and_no_upstream_is_asked() -> None:
    async with world(affinity=APART) as here:
        one, two, _ = await three(here)
        here.standin.forget()
        for answer in (
            await here.ann.generate(one, two),
            await here.ann.within("s").generate(one, two),
            await here.ann.post(f"{one}:compare", {"fileName": two}),
        ):
            assert (answer.status, answer.error["status"]) == (400, "FAILED_PRECONDITION")
            message = answer.error["message"]
            assert one in message
            assert two in message
            assert "X-Session-Id" in message
        assert not here.standin.requests


async def test_two_keys_of_one_project_are_one_owner() -> None:
    keys = [{"key": KEYS[0], "project": "p"}, {"key": KEYS[1], "project": "p"}]
    async with world(keys=keys, projects=dict.fromkeys(KEYS, "p"), affinity=APART) as here:
        names = [await here.ann.upload() for _ in range(2)]
        assert set(here.keys()) == set(KEYS[:2])
        here.standin.forget()
        for _ in range(4):
            assert (await here.ann.generate(*names)).status == 200
        assert set(here.keys()) == set(KEYS[:2])


async def test_an_owner_whose_project_becomes_known_stays_one_owner() -> None:
    async with world(keys=KEYS[:1]) as here:
        before = await here.ann.upload()
        here.standin.script(KEYS[0], "rate-consumer", times=1, model="gemini-2.5-pro", seconds=60)
        limited = await here.ann.call("POST", "/v1beta/models/gemini-2.5-pro:generateContent", HELLO)
        assert limited.status == 429
        after = await here.ann.upload()
        assert (await here.ann.generate(before, after)).status == 200


# Longer text


async def test_a_uri_inside_longer_text_attracts_and_the_last_wins() -> None:
    async with world(affinity=APART) as here:
        one, two, _ = await three(here)
        for first, last in ((one, two), (two, one)):
            text = f"Compare {GOOGLE}/v1beta/{first} and {GOOGLE}/v1beta/{last}."
            for _ in range(3):
                assert (await here.ann.generate(text=text)).status == 200
                assert here.keys()[-1] == here.key_of(last)


async def test_a_uri_inside_longer_text_never_searches_waits_or_refuses() -> None:
    async with world(affinity=APART, relay={"max_wait": "0s"}) as here:
        mine, theirs = await here.ann.upload(), await here.bob.upload()
        here.standin.forget()
        text = f"See {GOOGLE}/v1beta/{theirs} and {GOOGLE}/v1beta/files/unknown and files/{'x' * 10} or {mine}."
        for _ in range(3):
            assert (await here.ann.generate(text=text)).status == 200
        assert here.keys() == [KEYS[2], *KEYS[:2]]  # as the rotation has it
        key = here.key_of(mine)
        here.standin.script(key, "rate-minute", times=1, seconds=3600)
        for _ in range(3):
            assert (await here.ann.generate(text=f"See {GOOGLE}/v1beta/{mine} again.")).status == 200
        assert key not in here.keys()[-2:]


async def test_a_session_that_owns_something_is_not_attracted_elsewhere() -> None:
    async with world(affinity=APART) as here:
        session = here.ann.within("s")
        own = await session.upload()
        other = next(name for name in await three(here) if here.key_of(name) != here.key_of(own))
        assert (await session.generate(text=f"See {GOOGLE}/v1beta/{other}.")).status == 200
        assert here.keys()[-1] == here.key_of(own)


async def test_a_uri_that_is_a_whole_text_is_named() -> None:
    async with world(affinity=APART) as here:
        one, two, _ = await three(here)
        assert (await here.ann.generate(one, text=f"{GOOGLE}/v1beta/{two}")).status == 400


async def test_a_prompt_full_of_paths_is_just_a_prompt() -> None:
    paths = " ".join(f"src/files/part{n}.py files/x{n} {GOOGLE}/v1beta/files/y{n}" for n in range(5000))
    async with world() as here:
        assert (await here.ann.generate(text=paths)).status == 200
        assert len(here.standin.requests) == 1


async def test_a_name_cannot_hide_behind_many_others() -> None:
    async with world() as here:
        theirs, mine = await here.bob.upload(), await here.ann.upload()
        here.standin.forget()
        uri = f"{GOOGLE}/v1beta/{mine}"
        parts: list[Any] = [{"fileData": {"fileUri": uri}}] * 500
        parts += [{"text": f"see {GOOGLE}/v1beta/files/f{n} "} for n in range(500)]
        parts += [{"fileData": {"fileUri": f"{GOOGLE}/v1beta/{theirs}"}}]
        refused = await here.ann.post("models/gemini-2.5-flash:generateContent", {"contents": [{"parts": parts}]})
        assert refused.status == 404
        crowd = await here.ann.post(
            "models/gemini-2.5-flash:generateContent", {"x": [f"files/f{n}" for n in range(5000)]}
        )
        assert (crowd.status, crowd.error["status"]) == (400, "INVALID_ARGUMENT")
        assert not here.standin.requests


# Rests


async def test_a_request_whose_owner_rests_waits_for_it() -> None:
    async with world(affinity=APART) as here:
        name = (await three(here))[0]
        key = here.key_of(name)
        here.standin.forget()
        here.standin.script(key, "rate-minute", times=1, seconds=1)
        assert (await here.ann.generate(name)).status == 200
        assert here.keys() == [key, key]


async def test_a_request_whose_owner_rests_too_long_gets_the_true_429_and_no_other_key() -> None:
    async with world(affinity=APART, relay={"max_wait": "0s"}) as here:
        name = (await three(here))[0]
        key = here.key_of(name)
        here.standin.forget()
        here.standin.script(key, "rate-minute", times=1, seconds=30)
        for _ in range(3):
            limited = await here.ann.generate(name)
            assert (limited.status, limited.error["status"]) == (429, "RESOURCE_EXHAUSTED")
            assert 25 <= int(limited.headers["Retry-After"]) <= 30
            assert any(detail["@type"].endswith("RetryInfo") for detail in limited.error["details"])
        assert here.keys() == [key]
        assert (await here.ann.generate()).status == 200
        assert (await here.ann.get(name)).status == 200  # the rest is the model's


async def test_a_request_whose_owner_is_dead_is_a_503() -> None:
    async with world(affinity=APART) as here:
        name = (await three(here))[0]
        key = here.key_of(name)
        here.standin.script(key, "key-invalid")
        here.standin.forget()
        for _ in range(2):
            dead = await here.ann.generate(name)
            assert (dead.status, dead.error["status"]) == (503, "UNAVAILABLE")
            assert "API key not valid" in dead.error["message"]
            assert not any(each in dead.error["message"] for each in KEYS)
        assert here.keys() == [key]


async def test_a_refusal_of_the_owner_moves_nothing_to_another_key() -> None:
    async with world(affinity=APART) as here:
        name = (await three(here))[0]
        here.standin.script(here.key_of(name), "error-503")
        here.standin.forget()
        assert (await here.ann.generate(name)).status == 503
        assert set(here.keys()) == {here.key_of(name)}


# Streams


async def test_a_download_is_a_stream() -> None:
    """The first bytes are here while the upstream holds the rest back."""
    data = bytes(range(256)) * 16384  # 4 MiB
    async with world() as here:
        name = await here.ann.upload(data)
        fault = here.standin.script("*", "stall-stream", times=1, target=":download")
        url = f"{here.proxy.url}/v1beta/{name}:download?alt=media"
        async with here.proxy.client.get(url, headers={"x-goog-api-key": ANN}) as answer:
            assert answer.status == 200
            assert int(answer.headers["Content-Length"]) == len(data)
            begun = await answer.content.readexactly(1000)
            assert not here.standin.requests[-1].finished
            fault.open()
            assert begun + await answer.content.read() == data


@pytest.mark.parametrize("path", ["/v1beta/{}:download?alt=media", "/download/v1beta/{}:download?alt=media"])
async def test_what_was_uploaded_comes_back_byte_for_byte(path: str) -> None:
    async with world(affinity=APART) as here:
        for size in (0, 1, 65536, 3_000_001, 9_000_000):
            data = bytes(n * 7 % 251 for n in range(1000)) * (size // 1000) + b"x" * (size % 1000)
            name = await here.ann.upload(data)
            await turn(here, 1)
            got = await here.ann.call("GET", path.format(name))
            assert got.status == 200
            assert got.body == data
            assert here.keys()[-1] == here.key_of(name)


async def test_register_sends_the_caller_s_oauth_token_there_and_nowhere_else() -> None:
    fields = {"Authorization": "Bearer ya29.oauth-of-the-caller", "x-goog-user-project": "bucket-project"}
    async with world() as here:
        made = await here.ann.call("POST", "/v1beta/files:register", {"uris": ["gs://a/1", "gs://a/2"]}, fields)
        assert made.status == 200, made.body
        arrival = here.standin.requests[-1]
        assert arrival.header("authorization") == fields["Authorization"]
        assert arrival.header("x-goog-user-project") == "bucket-project"
        assert arrival.header("x-goog-api-key") in KEYS
        for file in made.json["files"]:
            assert (await here.ann.get(file["name"])).status == 200
            assert (await here.bob.get(file["name"])).status == 404
        for path in ("files", "newThings", "models/gemini-2.5-flash:generateContent"):
            await here.ann.call("POST", f"/v1beta/{path}", HELLO, fields)
            arrival = here.standin.requests[-1]
            assert arrival.header("authorization") is None
            assert arrival.header("x-goog-user-project") is None


async def test_register_does_not_send_a_client_token_on() -> None:
    async with world() as here:
        client = Caller(here.proxy.client, here.proxy.url, None, {"Authorization": f"Bearer {ANN}"})
        refused = await client.post("files:register", {"uris": ["gs://a/1"]})
        assert refused.status == 401  # the upstream's: nobody gave an OAuth token
        assert here.standin.requests[-1].header("authorization") is None
        assert [key["state"] for key in await here.proxy.keys()] == ["ready"] * 3  # it said nothing of the key
        for ours in (ANN, "token-of-bob-2", "bal_" + "x" * 43):
            await here.ann.call("POST", "/v1beta/files:register", {"uris": []}, {"Authorization": f"Bearer {ours}"})
            assert here.standin.requests[-1].header("authorization") is None


async def test_many_requests_at_once_all_reach_their_owners() -> None:
    async with world(affinity=APART) as here:
        names = [name for _ in range(4) for name in await three(here)]
        answers = await asyncio.gather(*(here.ann.generate(name) for name in names * 5))
        assert [answer.status for answer in answers] == [200] * len(answers)


async def test_a_start_that_names_a_store_of_another_client_is_refused() -> None:
    async with world() as here:
        store = await here.ann.make("fileSearchStores")
        here.standin.forget()
        refused = await here.bob.start({}, f"/upload/v1beta/{store}:uploadToFileSearchStore")
        assert refused.status == 404
        assert not here.standin.requests
        assert FILES not in store
