"""The stand-in over real sockets: Google's shapes, ownership, uploads, faults, and the record that tests wait on."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from balancer.standin.app import StandIn, running
from balancer.standin.faults import ANSWER, CONNECTION, NAMES, REFUSALS
from balancer.standin.gemini import thirds
from balancer.standin.record import Arrival, Record
from balancer.standin.sending import RAW_ANSWERS
from balancer.standin.shelf import IN_MEMORY, Blob
from tests.fakes import FakeClock

KEYS = {"a": "101", "a2": "101", "b": "202"}
FLASH = "/v1beta/models/gemini-2.5-flash"
ASK = {"contents": [{"role": "user", "parts": [{"text": "grüße 你好"}]}]}
SAID = "You said: grüße 你好"


class Caller:
    """A client of the stand-in that sends a key with each call."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    def request(self, method: str, target: str, key: str | None = "a", **options: Any) -> Any:
        headers = {"x-goog-api-key": key} if key else {}
        headers |= options.pop("headers", {})
        if isinstance(options.get("data"), bytes):
            options["data"] = io.BytesIO(options["data"])  # aiohttp warns of large bytes
        return self.session.request(method, URL(self.url + target, encoded=True), headers=headers, **options)

    async def call(self, method: str, target: str, key: str | None = "a", **options: Any) -> tuple[int, Any]:
        """Status and JSON (None for an empty body)."""
        async with self.request(method, target, key, **options) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text else None

    async def upload(self, data: bytes, key: str = "a", name: str | None = None) -> dict[str, Any]:
        """A file by the raw protocol."""
        headers = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "video/mp4"}
        headers |= {"X-Goog-Upload-File-Name": name} if name else {}
        status, made = await self.call("POST", "/upload/v1beta/files", key, data=data, headers=headers)
        assert status == 200
        return dict(made["file"])


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def standin(clock: FakeClock) -> StandIn:
    return StandIn(KEYS, clock=clock)


@pytest.fixture
async def caller(standin: StandIn) -> AsyncIterator[Caller]:
    async with running(standin) as url, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Caller(url, session)


async def raw_exchange(caller: Caller, text: bytes) -> bytes:
    """Send bytes on a fresh connection, half-close, and read to the end of the connection."""
    url = URL(caller.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(text)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b"RESET"
    finally:
        writer.close()


def message(body: Any) -> str:
    return str(body["error"]["message"])


# credentials


async def test_a_missing_key_is_google_s_403(caller: Caller) -> None:
    status, body = await caller.call("POST", f"{FLASH}:generateContent", None, json=ASK)
    assert status == 403
    assert body["error"]["status"] == "PERMISSION_DENIED"
    assert message(body).startswith("Method doesn't allow unregistered callers")


async def test_an_unknown_key_is_invalid_with_its_reason(caller: Caller) -> None:
    status, body = await caller.call("POST", f"{FLASH}:generateContent", "nobody", json=ASK)
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert body["error"]["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }


@pytest.mark.parametrize(
    ("target", "headers", "expected"),
    [
        (f"{FLASH}?key=a", {}, 200),
        (FLASH, {"x-goog-api-key": "a"}, 200),
        (FLASH, {"authorization": "Bearer a"}, 401),
        ("/v1beta/openai/models", {"authorization": "Bearer a"}, 200),
        ("/v1beta/openai/models", {"authorization": "Bearer a", "x-goog-api-key": "a"}, 400),
    ],
)
async def test_a_key_counts_only_where_google_looks_for_it(
    caller: Caller, target: str, headers: dict[str, str], expected: int
) -> None:
    status, _ = await caller.call("GET", target, None, headers=headers)
    assert status == expected


# generation


async def test_generate_echoes_the_last_text_in_google_s_frame(caller: Caller) -> None:
    async with caller.request("POST", f"{FLASH}:generateContent", json=ASK) as answer:
        body = await answer.json()
    assert answer.headers["Server"] == "scaffolding on HTTPServer2"
    assert answer.headers.getall("Vary") == ["Origin", "X-Origin", "Referer"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    assert body["candidates"][0]["content"]["parts"][0]["text"] == SAID
    assert body["candidates"][0]["finishReason"] == "STOP"
    assert body["modelVersion"] == "gemini-2.5-flash"
    assert body["usageMetadata"]["totalTokenCount"] > 0


async def test_the_same_request_has_the_same_answer(caller: Caller) -> None:
    first = await caller.call("POST", f"{FLASH}:generateContent", json=ASK)
    assert first == await caller.call("POST", f"{FLASH}:generateContent", "b", json=ASK)


async def test_a_stream_is_events_with_crlf_and_joins_to_the_whole_text(caller: Caller) -> None:
    async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
        text = await answer.read()
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Content-Disposition"] == "attachment"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    events = text.split(b"\r\n\r\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: {") for event in events)
    parsed = [json.loads(event[6:]) for event in events]
    assert "".join(each["candidates"][0]["content"]["parts"][0]["text"] for each in parsed) == SAID
    assert [each["candidates"][0].get("finishReason") for each in parsed] == [None, None, "STOP"]


async def test_a_stream_without_alt_is_one_json_array(caller: Caller) -> None:
    status, events = await caller.call("POST", f"{FLASH}:streamGenerateContent", json=ASK)
    assert (status, len(events)) == (200, 3)


async def test_errors_of_event_streams_keep_the_stream_s_content_type(caller: Caller) -> None:
    target = "/v1beta/models/gemini-0:streamGenerateContent?alt=sse"
    async with caller.request("POST", target, json=ASK) as answer:
        body = json.loads(await answer.read())
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/event-stream")
    assert message(body) == (
        "models/gemini-0 is not found for API version v1beta, or is not supported for streamGenerateContent. "
        "Call ListModels to see the list of available models and their supported methods."
    )


@pytest.mark.parametrize(
    ("verb", "body", "member"),
    [
        ("countTokens", ASK, "totalTokens"),
        ("countTokens", {"generateContentRequest": ASK}, "totalTokens"),
        ("embedContent", {"content": ASK["contents"][0]}, "embedding"),
        ("batchEmbedContents", {"requests": [{"content": ASK["contents"][0]}] * 2}, "embeddings"),
        ("predict", {"instances": [{"prompt": "x"}], "parameters": {"sampleCount": 2}}, "predictions"),
    ],
)
async def test_calls_of_a_model_have_their_answers(caller: Caller, verb: str, body: Any, member: str) -> None:
    status, answer = await caller.call("POST", f"{FLASH}:{verb}", json=body)
    assert (status, next(iter(answer))) == (200, member)


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("POST", f"{FLASH}:generateContent", b"{nonsense", 400),
        ("POST", f"{FLASH}:generateContent", b"[]", 400),
        ("POST", f"{FLASH}:generateContent", b"{}", 400),
        ("POST", f"{FLASH}:doSomethingElse", b"{}", 404),
        ("GET", "/v1beta/models/gemini-0", b"", 404),
        ("GET", "/v1beta/newThings/x9", b"", 404),
        ("GET", "/v1beta/batches/none", b"", 404),
    ],
)
async def test_bad_calls_have_google_s_errors(
    caller: Caller, method: str, target: str, body: bytes, status: int
) -> None:
    answered, answer = await caller.call(method, target, data=body)
    assert (answered, answer["error"]["code"]) == (status, status)


async def test_a_path_of_no_known_shape_is_an_html_404(caller: Caller) -> None:
    async with caller.request("GET", "/nothing") as answer:
        assert (answer.status, answer.content_type) == (404, "text/html")


async def test_models_are_listed_in_pages(caller: Caller) -> None:
    names: list[str] = []
    token = ""
    while True:
        _, page = await caller.call("GET", f"/v1beta/models?pageSize=5{token}")
        names += [model["name"] for model in page["models"]]
        if "nextPageToken" not in page:
            break
        token = f"&pageToken={page['nextPageToken']}"
    assert len(names) == len(set(names)) > 10
    assert await caller.call("GET", f"/v1beta/{names[0]}") == (200, (await caller.call("GET", f"/v1/{names[0]}"))[1])


@pytest.mark.parametrize("path", ["stand-in-bytes-300000", "bytes-1MiB", "bytes-10"])
async def test_a_model_made_of_bytes_answers_that_many(caller: Caller, path: str) -> None:
    async with caller.request("POST", f"/v1beta/models/{path}:generateContent", json=ASK) as answer:
        body = await answer.read()
    wanted = {"stand-in-bytes-300000": 300_000, "bytes-1MiB": 1 << 20}.get(path, len(body))
    assert len(body) == wanted == answer.content_length
    assert json.loads(body)["candidates"]


async def test_a_stream_of_bytes_has_events_of_64_kib(caller: Caller) -> None:
    target = "/v1beta/models/bytes-256KiB:streamGenerateContent?alt=sse"
    async with caller.request("POST", target, json=ASK) as answer:
        body = await answer.read()
    assert len(body) == 256 << 10
    assert body.count(b"\r\n\r\n") == 4


@pytest.mark.parametrize(
    "target", ["stand-in-events-7:streamGenerateContent?", "stand-in-slow:streamGenerateContent?events=7&interval=0&"]
)
async def test_a_stream_can_have_as_many_events_as_asked_for(caller: Caller, target: str) -> None:
    async with caller.request("POST", f"/v1beta/models/{target}alt=sse", json=ASK) as answer:
        assert (await answer.read()).count(b"data: ") == 7


async def test_the_sink_takes_any_size_and_tells_what_came(standin: StandIn, caller: Caller) -> None:
    data = bytes(3 << 20)
    status, body = await caller.call("POST", "/v1beta/models/stand-in-sink:generateContent", data=data)
    text = body["candidates"][0]["content"]["parts"][0]["text"]
    assert (status, text) == (200, f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    assert standin.requests[-1].body is None


def test_thirds_join_to_the_text() -> None:
    for text in ("", "a", "ab", "abc", "abcdefgh"):
        assert "".join(thirds(text)) == text


# the OpenAI paths


async def test_openai_chat_whole_and_streamed_say_the_same(caller: Caller) -> None:
    target = "/v1beta/openai/chat/completions"
    ask = {"model": "gemini-2.5-flash", "messages": [{"role": "user", "content": "hi"}]}
    bearer = {"authorization": "Bearer a"}
    _, whole = await caller.call("POST", target, None, headers=bearer, json=ask)
    async with caller.request("POST", target, None, headers=bearer, json=ask | {"stream": True}) as answer:
        events = (await answer.read()).decode().split("\n\n")
    assert whole["choices"][0]["message"]["content"] == "You said: hi"
    assert events[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events[:-2]]
    assert "".join(parts) == "You said: hi"


async def test_openai_errors_are_a_list_of_one(caller: Caller) -> None:
    ask = {"model": "gemini-0", "messages": [{"role": "user", "content": "hi"}]}
    status, body = await caller.call("POST", "/v1beta/openai/chat/completions", json=ask)
    assert (status, len(body), body[0]["error"]["code"]) == (404, 1, 404)


async def test_openai_embeddings_and_models_answer(caller: Caller) -> None:
    ask = {"model": "gemini-embedding-001", "input": ["a", "b"], "dimensions": 4}
    _, body = await caller.call("POST", "/v1beta/openai/embeddings", json=ask)
    assert [len(entry["embedding"]) for entry in body["data"]] == [4, 4]
    _, listed = await caller.call("GET", "/v1beta/openai/models")
    assert listed["data"][0]["id"].startswith("models/")
    assert (await caller.call("GET", "/v1beta/openai/models/gemini-2.5-flash"))[0] == 200
    assert (await caller.call("GET", "/v1beta/openai/models/none"))[0] == 404


# ownership


async def test_a_collection_nobody_knows_keeps_its_owner(caller: Caller) -> None:
    status, made = await caller.call("POST", "/v1beta/newThings", json={"colour": "red"})
    assert (status, made["name"], made["colour"]) == (200, "newThings/x1", "red")
    path = "/v1beta/newThings/x1"
    assert (await caller.call("GET", path, "a2"))[0] == 200
    for method in ("GET", "PATCH", "DELETE"):
        assert (await caller.call(method, path, "b", json={}))[0] == 404
    assert (await caller.call("PATCH", path, json={"colour": "blue"}))[1]["colour"] == "blue"
    assert (await caller.call("POST", f"{path}/parts", json={}))[1]["name"] == "newThings/x1/parts/x1"
    assert (await caller.call("POST", f"{path}/parts", "b", json={}))[0] == 404
    assert [each["name"] for each in (await caller.call("GET", "/v1beta/newThings"))[1]["newThings"]] == [
        "newThings/x1"
    ]
    assert (await caller.call("GET", "/v1beta/newThings", "b"))[1] == {}
    assert (await caller.call("POST", f"{path}:polish", json={}))[0] == 200
    assert (await caller.call("DELETE", path))[0] == 200
    assert (await caller.call("GET", f"{path}/parts/x1"))[0] == 404


async def test_a_caller_chosen_name_is_unique_per_project_only(caller: Caller) -> None:
    chosen = {"name": "newThings/mine"}
    assert [(await caller.call("POST", "/v1beta/newThings", key, json=chosen))[0] for key in ("a", "b", "a2")] == [
        200,
        200,
        409,
    ]


async def test_a_foreign_file_is_403_in_google_s_words(caller: Caller) -> None:
    file = await caller.upload(b"x")
    short = file["name"].removeprefix("files/")
    words = f"You do not have permission to access the File {short} or it may not exist."
    for method, target in (("GET", ""), ("DELETE", ""), ("GET", ":download?alt=media")):
        status, body = await caller.call(method, f"/v1beta/{file['name']}{target}", "b")
        assert (status, message(body)) == (403, words)
    assert (await caller.call("GET", f"/v1beta/{file['name']}", "a2"))[0] == 200
    assert (await caller.call("DELETE", f"/v1beta/{file['name']}"))[0] == 200
    assert (await caller.call("GET", f"/v1beta/{file['name']}"))[0] == 403


@pytest.mark.parametrize("member", ["fileUri", "file_uri"])
async def test_generate_with_a_foreign_file_is_403(caller: Caller, member: str) -> None:
    file = await caller.upload(b"x")
    part = {"fileData" if member == "fileUri" else "file_data": {member: file["uri"], "mimeType": "video/mp4"}}
    ask = {"contents": [{"parts": [part, {"text": "hi"}]}]}
    assert (await caller.call("POST", f"{FLASH}:generateContent", json=ask))[0] == 200
    status, body = await caller.call("POST", f"{FLASH}:generateContent", "b", json=ask)
    assert status == 403
    assert "You do not have permission to access the File" in message(body)


async def test_addresses_that_are_not_google_files_are_nobody_s(caller: Caller) -> None:
    part = {"fileData": {"fileUri": "https://www.youtube.com/watch?v=1", "mimeType": "video/mp4"}}
    ask = {"contents": [{"parts": [part, {"text": "files/not-a-name"}]}]}
    assert (await caller.call("POST", f"{FLASH}:generateContent", "b", json=ask))[0] == 200


@pytest.mark.parametrize("member", ["cachedContent", "cached_content"])
async def test_a_foreign_cache_is_403_in_body_and_path(caller: Caller, member: str) -> None:
    _, cache = await caller.call("POST", "/v1beta/cachedContents", json=ASK | {"model": "models/gemini-2.5-flash"})
    ask = ASK | {member: cache["name"]}
    status, body = await caller.call("POST", f"{FLASH}:generateContent", json=ask)
    assert (status, body["usageMetadata"]["cachedContentTokenCount"]) == (200, 1024)
    status, body = await caller.call("POST", f"{FLASH}:generateContent", "b", json=ask)
    assert (status, message(body)) == (403, "CachedContent not found (or permission denied)")
    assert (await caller.call("GET", f"/v1beta/{cache['name']}", "b"))[0] == 403


async def test_a_cache_ends_when_its_time_is_over(caller: Caller, clock: FakeClock) -> None:
    body = ASK | {"model": "models/gemini-2.5-flash", "ttl": "60s"}
    _, cache = await caller.call("POST", "/v1beta/cachedContents", json=body)
    path = f"/v1beta/{cache['name']}"
    clock.advance(59)
    assert (await caller.call("PATCH", path, json={"ttl": "120s"}))[1]["expireTime"] > cache["expireTime"]
    clock.advance(119)
    assert (await caller.call("GET", path))[0] == 200
    clock.advance(2)
    assert (await caller.call("GET", path))[0] == 403
    until = body | {"expireTime": "2099-01-01T00:00:00Z", "ttl": None}
    assert (await caller.call("POST", "/v1beta/cachedContents", json=until))[1]["expireTime"].startswith("2099")
    assert (await caller.call("POST", "/v1beta/cachedContents", json=body | {"ttl": "soon"}))[0] == 400
    assert (await caller.call("POST", "/v1beta/cachedContents", json={"model": "models/none"}))[0] == 404


@pytest.mark.parametrize("member", ["fileSearchStoreNames", "file_search_store_names"])
async def test_a_foreign_store_is_403_in_a_body_and_404_in_a_path(caller: Caller, member: str) -> None:
    _, store = await caller.call("POST", "/v1beta/fileSearchStores", json={"displayName": "s"})
    ask = ASK | {"tools": [{"fileSearch": {member: [store["name"]]}}]}
    assert (await caller.call("POST", f"{FLASH}:generateContent", json=ask))[0] == 200
    assert (await caller.call("POST", f"{FLASH}:generateContent", "b", json=ask))[0] == 403
    assert (await caller.call("GET", f"/v1beta/{store['name']}", "b"))[0] == 404


async def test_a_store_takes_files_and_gives_media(caller: Caller) -> None:
    file = await caller.upload(b"words", name="w.txt")
    _, store = await caller.call("POST", "/v1beta/fileSearchStores", json={})
    path = f"/v1beta/{store['name']}"
    status, operation = await caller.call("POST", f"{path}:importFile", json={"fileName": file["name"]})
    assert (status, "done" in operation) == (200, False)
    assert (await caller.call("POST", f"{path}:importFile", "b", json={}))[0] == 404
    _, done = await caller.call("GET", f"/v1beta/{operation['name']}")
    document = done["response"]["documentName"]
    assert done["done"] is True
    assert (await caller.call("GET", f"/v1beta/{operation['name']}", "b"))[0] == 404
    assert (await caller.call("GET", f"/v1beta/{document}"))[1]["displayName"] == "w.txt"
    media = document.replace("/documents/", "/media/")
    async with caller.request("GET", f"/v1beta/{media}?alt=media") as answer:
        assert await answer.read() == b"words"
    status, body = await caller.call("DELETE", path)
    assert (status, body["error"]["status"]) == (400, "FAILED_PRECONDITION")
    assert (await caller.call("DELETE", f"{path}?force=true"))[0] == 200
    assert (await caller.call("GET", f"/v1beta/{document}"))[0] == 404


async def test_a_tuned_model_serves_its_project_only(caller: Caller) -> None:
    status, operation = await caller.call("POST", "/v1beta/tunedModels", json={"displayName": "t"})
    name = operation["metadata"]["tunedModel"]
    assert (status, operation["name"].startswith(f"{name}/operations/")) == (200, True)
    assert (await caller.call("GET", f"/v1beta/{operation['name']}"))[1]["done"] is True
    assert (await caller.call("GET", f"/v1beta/{name}"))[1]["state"] == "ACTIVE"
    assert (await caller.call("POST", f"/v1beta/{name}:generateContent", json=ASK))[0] == 200
    assert (await caller.call("POST", f"/v1beta/{name}:generateContent", "b", json=ASK))[0] == 403
    assert (await caller.call("GET", f"/v1beta/{name}", "b"))[0] == 404
    assert (await caller.call("POST", f"/v1beta/{name}:cancel", json={})) == (200, {})


async def test_an_auth_token_has_a_name(caller: Caller) -> None:
    status, token = await caller.call("POST", "/v1alpha/auth_tokens", json={"uses": 1})
    assert (status, token["name"].startswith("auth_tokens/")) == (200, True)


async def test_a_batch_of_inline_requests_is_done_when_looked_at(caller: Caller) -> None:
    requests = {"requests": {"requests": [{"request": ASK, "metadata": {"key": "1"}}]}}
    _, made = await caller.call("POST", f"{FLASH}:batchGenerateContent", json={"batch": {"inputConfig": requests}})
    assert made["metadata"]["state"] == "BATCH_STATE_PENDING"
    path = f"/v1beta/{made['name']}"
    assert (await caller.call("GET", path, "b"))[0] == 404
    _, done = await caller.call("GET", path)
    assert done["metadata"]["state"] == "BATCH_STATE_SUCCEEDED"
    (entry,) = done["metadata"]["output"]["inlinedResponses"]["inlinedResponses"]
    assert entry["response"]["candidates"][0]["content"]["parts"][0]["text"] == SAID
    assert (await caller.call("GET", "/v1beta/batches"))[1]["operations"][0]["name"] == made["name"]
    assert (await caller.call("DELETE", path)) == (200, {})
    assert (await caller.call("POST", f"{FLASH}:batchGenerateContent", json={}))[0] == 400


@pytest.mark.parametrize("verb", ["batchGenerateContent", "asyncBatchEmbedContent"])
async def test_a_batch_from_a_file_leaves_a_file_of_its_project(caller: Caller, verb: str) -> None:
    lines = b"".join(
        json.dumps({"key": str(n), "request": ASK | {"content": ASK["contents"][0]}}).encode() + b"\n" for n in range(3)
    )
    file = await caller.upload(lines)
    batch = {"batch": {"input_config": {"file_name": file["name"]}}}
    assert (await caller.call("POST", f"{FLASH}:{verb}", "b", json=batch))[0] == 403
    _, made = await caller.call("POST", f"{FLASH}:{verb}", json=batch)
    _, done = await caller.call("GET", f"/v1beta/{made['name']}")
    result = done["metadata"]["output"]["responsesFile"]
    assert result.startswith("files/batch-")
    async with caller.request("GET", f"/download/v1beta/{result}:download?alt=media") as answer:
        written = [json.loads(line) for line in (await answer.read()).splitlines()]
    assert [each["key"] for each in written] == ["0", "1", "2"]
    assert (await caller.call("GET", f"/v1beta/{result}:download?alt=media", "b"))[0] == 403


async def test_a_cancelled_batch_stays_cancelled(caller: Caller) -> None:
    requests = {"requests": {"requests": [{"request": ASK}]}}
    _, made = await caller.call("POST", f"{FLASH}:batchGenerateContent", json={"batch": {"inputConfig": requests}})
    assert (await caller.call("POST", f"/v1beta/{made['name']}:cancel", "b"))[0] == 404
    assert (await caller.call("POST", f"/v1beta/{made['name']}:cancel")) == (200, {})
    assert (await caller.call("GET", f"/v1beta/{made['name']}"))[1]["metadata"]["state"] == "BATCH_STATE_CANCELLED"


async def test_a_video_operation_is_named_below_its_model(caller: Caller) -> None:
    target = "/v1beta/models/veo-3.0-generate-001:predictLongRunning"
    _, operation = await caller.call("POST", target, json={"instances": [{"prompt": "x"}]})
    assert operation["name"].startswith("models/veo-3.0-generate-001/operations/")
    assert (await caller.call("GET", f"/v1beta/{operation['name']}", "b"))[0] == 404
    _, done = await caller.call("GET", f"/v1beta/{operation['name']}")
    (sample,) = done["response"]["generateVideoResponse"]["generatedSamples"]
    uri = sample["video"]["uri"]
    assert uri.startswith("https://generativelanguage.googleapis.com/v1beta/files/")
    async with caller.request("GET", URL(uri).raw_path_qs) as answer:
        assert (answer.status, answer.content_type) == (200, "video/mp4")


async def test_lists_are_newest_first_and_page_tokens_are_one_project_s(caller: Caller) -> None:
    names = [(await caller.upload(b"x"))["name"] for _ in range(3)]
    _, first = await caller.call("GET", "/v1beta/files?pageSize=2")
    assert [file["name"] for file in first["files"]] == [names[2], names[1]]
    token = first["nextPageToken"]
    _, second = await caller.call("GET", f"/v1beta/files?page_size=2&page_token={token}")
    assert ([file["name"] for file in second["files"]], "nextPageToken" in second) == ([names[0]], False)
    assert (await caller.call("GET", f"/v1beta/files?pageToken={token}", "b"))[0] == 400
    assert (await caller.call("GET", f"/v1beta/cachedContents?pageToken={token}"))[0] == 400
    assert (await caller.call("GET", "/v1beta/files?pageToken=nonsense"))[0] == 400
    assert (await caller.call("GET", "/v1beta/files?pageSize=many"))[0] == 400


async def test_registered_files_want_an_oauth_token_beside_the_key(caller: Caller) -> None:
    uris = {"uris": ["gs://b/1", "gs://b/2"]}
    assert (await caller.call("POST", "/v1beta/files:register", json=uris))[0] == 401
    oauth = {"authorization": "Bearer oauth"}
    _, made = await caller.call("POST", "/v1beta/files:register", json=uris, headers=oauth)
    assert len(made["files"]) == 2


# uploads


START = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}


async def start(caller: Caller, size: int | None = None, target: str = "files", **file: Any) -> str:
    """The path and query of a new upload's URL."""
    headers = dict(START)
    if size is not None:
        headers |= {"X-Goog-Upload-Header-Content-Length": str(size), "X-Goog-Upload-Header-Content-Type": "image/png"}
    async with caller.request("POST", f"/upload/v1beta/{target}", headers=headers, json={"file": file}) as answer:
        assert (answer.status, answer.headers["X-Goog-Upload-Status"]) == (200, "active")
        assert (answer.content_type, await answer.read()) == ("text/plain", b"")
        assert int(answer.headers["X-Goog-Upload-Chunk-Granularity"]) == 8 << 20
        url = str(answer.headers["X-Goog-Upload-URL"])
    assert url.startswith(caller.url)
    assert URL(url).query["upload_protocol"] == "resumable"
    return url.removeprefix(caller.url)


async def chunk(
    caller: Caller, target: str, data: bytes, offset: int | None, command: str = "upload", key: str | None = None
) -> tuple[int, str | None, Any]:
    """HTTP status, upload status and JSON of one chunk call; without a key, as the SDK sends it."""
    headers = {"X-Goog-Upload-Command": command}
    headers |= {} if offset is None else {"X-Goog-Upload-Offset": str(offset)}
    async with caller.request("POST", target, key, data=data, headers=headers) as answer:
        text = await answer.read()
        received = answer.headers.get("X-Goog-Upload-Size-Received")
        return answer.status, answer.headers.get("X-Goog-Upload-Status"), json.loads(text) if text else received


async def download(caller: Caller, name: str) -> bytes:
    async with caller.request("GET", f"/v1beta/{name}:download?alt=media") as answer:
        assert answer.status == 200
        data: bytes = await answer.read()
        assert answer.content_length == len(data)
        return data


async def test_a_resumable_upload_keeps_every_byte(caller: Caller) -> None:
    data = bytes(range(256)) * 12_000
    target = await start(caller, len(data), displayName="p.png")
    half = 1_000_001
    assert await chunk(caller, target, data[:half], 0) == (200, "active", str(half))
    status, state, body = await chunk(caller, target, data[half:], half, "upload, finalize")
    file = body["file"]
    assert (status, state) == (200, "final")
    assert (file["displayName"], file["mimeType"], file["sizeBytes"]) == ("p.png", "image/png", str(len(data)))
    assert file["uri"] == f"https://generativelanguage.googleapis.com/v1beta/{file['name']}"
    assert base64.b64decode(file["sha256Hash"]).decode() == hashlib.sha256(data).hexdigest()
    assert file["expirationTime"] > file["createTime"]
    assert await download(caller, file["name"]) == data


async def test_an_empty_file_is_one_finalizing_chunk(caller: Caller) -> None:
    target = await start(caller, 0)
    status, state, body = await chunk(caller, target, b"", 0, "upload, finalize")
    assert (status, state, body["file"]["sizeBytes"]) == (200, "final", "0")
    assert await download(caller, body["file"]["name"]) == b""


async def test_finalize_may_come_alone(caller: Caller) -> None:
    target = await start(caller)
    await chunk(caller, target, b"abc", 0)
    assert (await chunk(caller, target, b"", None, "finalize"))[:2] == (200, "final")


async def test_a_chunk_that_comes_twice_counts_once(caller: Caller) -> None:
    target = await start(caller, 6)
    await chunk(caller, target, b"abc", 0)
    assert await chunk(caller, target, b"abc", 0) == (200, "active", "3")
    first = await chunk(caller, target, b"cdef", 2, "upload, finalize")
    assert first[:2] == (200, "final")
    assert await chunk(caller, target, b"cdef", 2, "upload, finalize") == first
    assert await download(caller, first[2]["file"]["name"]) == b"abcdef"


async def test_a_chunk_that_leaves_a_hole_is_refused_with_the_status_field(caller: Caller) -> None:
    target = await start(caller)
    await chunk(caller, target, b"abc", 0)
    assert (await chunk(caller, target, b"x", 7))[:2] == (400, "active")
    assert (await chunk(caller, target, b"x", 0, "sing"))[:2] == (400, "active")
    assert await chunk(caller, target, b"", None, "query") == (200, "active", "3")


async def test_an_upload_of_another_size_than_announced_is_refused(caller: Caller) -> None:
    target = await start(caller, 5)
    assert (await chunk(caller, target, b"abc", 0, "upload, finalize"))[:2] == (400, "active")


async def test_a_cancelled_upload_is_gone(caller: Caller) -> None:
    target = await start(caller)
    assert (await chunk(caller, target, b"", None, "cancel"))[:2] == (200, "cancelled")
    assert (await chunk(caller, target, b"abc", 0))[:2] == (404, "cancelled")


@pytest.mark.parametrize(("key", "status"), [(None, 200), ("a", 200), ("a2", 200), ("b", 403), ("nobody", 400)])
async def test_a_chunk_needs_no_key_or_one_of_the_owner(caller: Caller, key: str | None, status: int) -> None:
    target = await start(caller)
    assert (await chunk(caller, target, b"abc", 0, key=key))[0] == status


async def test_a_chosen_file_name_is_kept_and_taken_once(caller: Caller) -> None:
    for status, state in ((200, "final"), (409, "cancelled")):
        target = await start(caller, 1, name="files/mine")
        assert (await chunk(caller, target, b"x", 0, "upload, finalize"))[:2] == (status, state)
    assert await download(caller, "files/mine") == b"x"


async def test_a_broken_off_chunk_can_be_taken_up_again(standin: StandIn, caller: Caller) -> None:
    target = await start(caller, 200_000)
    standin.script("a", "rst-in-body", times=1, target="upload_id=", after=1)
    with pytest.raises(aiohttp.ClientError):
        await chunk(caller, target, bytes(200_000), 0, "upload, finalize")
    status, _, received = await chunk(caller, target, b"", None, "query")
    assert status == 200
    rest = bytes(200_000)[int(received) :]
    assert (await chunk(caller, target, rest, int(received), "upload, finalize"))[:2] == (200, "final")


async def test_an_upload_into_a_store_answers_an_operation(caller: Caller) -> None:
    _, store = await caller.call("POST", "/v1beta/fileSearchStores", json={})
    target = await start(caller, 3, f"{store['name']}:uploadToFileSearchStore")
    status, state, operation = await chunk(caller, target, b"abc", 0, "upload, finalize")
    assert (status, state) == (200, "final")
    assert operation["name"].startswith(f"{store['name']}/upload/operations/")
    assert (await caller.call("GET", f"/v1beta/{operation['name']}"))[1]["done"] is True
    headers = {"x-goog-api-key": "b"} | START
    path = f"/upload/v1beta/{store['name']}:uploadToFileSearchStore"
    assert (await caller.call("POST", path, "b", headers=headers, json={}))[0] == 404


async def test_a_multipart_upload_is_taken_apart(caller: Caller) -> None:
    data = bytes(range(256)) * 6_000 + b"\r\n--"
    text = b'{"file": {"displayName": "m"}}'
    body = b"--BOUND\r\nContent-Type: application/json\r\n\r\n%b\r\n--BOUND\r\nContent-Type: audio/wav\r\n\r\n%b\r\n--BOUND--\r\n"
    headers = {"X-Goog-Upload-Protocol": "multipart", "Content-Type": "multipart/related; boundary=BOUND"}
    status, made = await caller.call("POST", "/upload/v1beta/files", data=body % (text, data), headers=headers)
    assert (status, made["file"]["displayName"], made["file"]["mimeType"]) == (200, "m", "audio/wav")
    assert await download(caller, made["file"]["name"]) == data
    assert (await caller.call("POST", "/upload/v1beta/files", data=b"nothing", headers=headers))[0] == 400


async def test_the_older_protocol_answers_308_until_the_last_byte(caller: Caller) -> None:
    target = "/upload/v1beta/files?uploadType=resumable"
    async with caller.request("POST", target, json={"file": {"displayName": "o"}}) as answer:
        assert answer.status == 200
        location = answer.headers["Location"].removeprefix(caller.url)

    async def put(data: bytes, span: str) -> tuple[int, str | None, bytes]:
        options: Any = {"data": data, "headers": {"Content-Range": span}, "allow_redirects": False}
        async with caller.request("PUT", location, None, **options) as answer:
            return answer.status, answer.headers.get("Range"), await answer.read()

    assert await put(b"", "bytes */6") == (308, None, b"")
    assert await put(b"abc", "bytes 0-2/6") == (308, "bytes=0-2", b"")
    assert await put(b"", "bytes */6") == (308, "bytes=0-2", b"")
    assert (await put(b"x", "bytes 5-5/6"))[0] == 503
    assert (await put(b"x", "five"))[0] == 400
    status, _, text = await put(b"def", "bytes 3-5/6")
    file = json.loads(text)["file"]
    assert (status, file["sizeBytes"]) == (200, "6")
    assert await put(b"def", "bytes 3-5/6") == (200, None, text)
    assert await download(caller, file["name"]) == b"abcdef"


async def test_an_upload_without_a_protocol_is_refused(caller: Caller) -> None:
    assert (await caller.call("POST", "/upload/v1beta/files", data=b"x"))[0] == 400


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY + 77])
async def test_a_blob_gives_back_what_it_was_given(size: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    blob = Blob()
    for at in range(0, size, 100_000):
        await blob.write(data[at : at + 100_000])
    assert (blob.size, await blob.read()) == (size, data)
    assert await blob.read(size // 3, size // 2) == data[size // 3 : size // 2]
    assert blob.sha256 == hashlib.sha256(data).hexdigest()
    blob.close()


# faults


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        (
            "rate-minute",
            429,
            ["GenerateRequestsPerMinutePerProjectPerModel-FreeTier", '"retryDelay": "17s"', "gemini-2.5-flash"],
        ),
        ("rate-day", 429, ["GenerateRequestsPerDayPerProjectPerModel-FreeTier"]),
        ("rate-zero", 429, ["limit: 0"]),
        ("rate-bare", 429, ["Resource has been exhausted (e.g. check quota)."]),
        ("rate-retry-after", 429, ["Resource has been exhausted"]),
        ("rate-consumer", 429, ["RATE_LIMIT_EXCEEDED", '"consumer": "projects/101"']),
        ("key-invalid", 400, ["API_KEY_INVALID"]),
        ("key-expired", 400, ["API key expired", "API_KEY_INVALID"]),
        ("key-leaked", 403, ["reported as leaked"]),
        ("key-suspended", 403, ["CONSUMER_SUSPENDED", "api_key:a", "projects/101"]),
        ("key-blocked", 403, ["API_KEY_SERVICE_BLOCKED"]),
        ("service-disabled", 403, ["SERVICE_DISABLED", '"consumer": "projects/101"']),
        ("project-denied", 403, ["Your project has been denied access"]),
        ("unauthenticated", 401, ["UNAUTHENTICATED"]),
        ("names-key", 403, ["api_key:a"]),
        ("location", 400, ["FAILED_PRECONDITION", "location"]),
        ("error-500", 500, ["INTERNAL"]),
        ("error-502", 502, ["<!DOCTYPE html>"]),
        ("error-503", 503, ["UNAVAILABLE", "overloaded"]),
        ("error-504", 504, ["DEADLINE_EXCEEDED"]),
        ("early-413", 413, ["exceeds the limit"]),
        ("redirect", 307, []),
    ],
)
async def test_refusals_have_google_s_words(
    standin: StandIn, caller: Caller, name: str, status: int, words: list[str]
) -> None:
    fault = standin.script("a", name, times=1)
    async with caller.request("POST", f"{FLASH}:generateContent", json=ASK, allow_redirects=False) as answer:
        text = (await answer.read()).decode()
    assert answer.status == status
    assert [word for word in words if word not in text] == []
    assert (answer.headers.get("Retry-After") == "17") == (name == "rate-retry-after")
    assert (fault.used, standin.requests[-1].fault, standin.requests[-1].status) == (1, name, status)
    assert (await caller.call("POST", f"{FLASH}:generateContent", json=ASK))[0] == 200


def test_every_fault_has_one_meaning() -> None:
    assert len(NAMES) == len(REFUSALS) + len(CONNECTION) + len(ANSWER)


async def test_a_script_is_a_queue_per_key_model_and_target(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "rate-minute", times=2, model="gemini-2.5-flash")
    standin.script("a", "error-503", times=1, skip=1)
    standin.script("*", "location", target=":countTokens")
    calls = [("a", "2.5-flash")] * 5 + [("a", "2.5-pro"), ("b", "2.5-flash")]
    got = [
        (await caller.call("POST", f"/v1beta/models/gemini-{m}:generateContent", key, json=ASK))[0] for key, m in calls
    ]
    assert got == [429, 429, 200, 503, 200, 200, 200]
    assert (await caller.call("POST", f"{FLASH}:countTokens", "b", json=ASK))[0] == 400
    standin.clear()
    assert (await caller.call("POST", f"{FLASH}:countTokens", "b", json=ASK))[0] == 200


def test_a_fault_or_key_that_does_not_exist_cannot_be_scripted(standin: StandIn) -> None:
    with pytest.raises(ValueError, match="no fault is called"):
        standin.script("a", "nothing")
    with pytest.raises(ValueError, match="no such key"):
        standin.script("c", "rst")


async def test_rst_and_fin_end_the_connection_before_any_byte(standin: StandIn, caller: Caller) -> None:
    body = json.dumps(ASK).encode()
    request = (
        f"POST {FLASH}:generateContent HTTP/1.1\r\nHost: h\r\nx-goog-api-key: a\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for name, expected in (("rst", b"RESET"), ("fin", b""), ("lost", b"RESET")):
        standin.script("a", name, times=1)
        assert await raw_exchange(caller, request.encode() + body) == expected
    assert [a.cancelled for a in standin.requests] == [None] * 3


@pytest.mark.parametrize("name", sorted(RAW_ANSWERS))
async def test_garbage_arrives_as_it_is(standin: StandIn, caller: Caller, name: str) -> None:
    standin.script("a", "garbage", kind=name)
    got = await raw_exchange(caller, f"GET {FLASH} HTTP/1.1\r\nHost: h\r\nx-goog-api-key: a\r\n\r\n".encode())
    assert got == RAW_ANSWERS[name]


async def test_raw_bytes_can_end_in_any_way(standin: StandIn, caller: Caller) -> None:
    request = f"GET {FLASH} HTTP/1.1\r\nHost: h\r\nx-goog-api-key: a\r\n\r\n".encode()
    gate = asyncio.Event()
    standin.script("a", "raw", times=1, data=b"half an ans", end="open", gate=gate)
    exchange = asyncio.create_task(raw_exchange(caller, request))
    await standin.wait_for(lambda a: a.fault == "raw")
    assert not exchange.done()
    gate.set()
    assert await exchange == b"half an ans"
    standin.script("a", "big-head", times=1, size=100_000)
    assert len(await raw_exchange(caller, request)) > 100_000


@pytest.mark.parametrize("name", ["cut-head", "cut-fin", "cut-rst", "cut-chunk", "short-body"])
@pytest.mark.parametrize("target", [f"{FLASH}:generateContent", f"{FLASH}:streamGenerateContent?alt=sse"])
async def test_a_cut_answer_arrives_as_a_broken_body(standin: StandIn, caller: Caller, name: str, target: str) -> None:
    gate = asyncio.Event()
    standin.script("a", name, times=1, gate=gate)
    got = b""
    async with caller.request("POST", target, json=ASK) as answer:
        assert answer.status == 200
        if name != "cut-head":
            got = await answer.content.readany()
        gate.set()
        with pytest.raises((aiohttp.ClientError, TimeoutError)):  # aiohttp's reader never ends on a bad chunk
            async with asyncio.timeout(0.2 if name == "cut-chunk" else 5):
                await answer.read()
    assert bool(got) == (name != "cut-head")
    arrival = await standin.wait_for(lambda a: a.finished is not None)
    assert (arrival.fault, arrival.cancelled) == (name, None)


async def test_a_stalled_stream_waits_at_its_gate(standin: StandIn, caller: Caller) -> None:
    fault = standin.script("a", "stall-stream", after=2)
    async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
        got = b""
        while got.count(b"\r\n\r\n") < 2:
            got += await answer.content.readany()
        assert standin.requests[-1].finished is None
        fault.open()
        got += await answer.read()
    assert got.count(b"\r\n\r\n") == 3


async def test_a_stalled_head_waits_at_its_gate(standin: StandIn, caller: Caller) -> None:
    fault = standin.script("a", "stall-head", times=1)
    task = asyncio.create_task(caller.call("POST", f"{FLASH}:generateContent", json=ASK))
    arrival = await standin.wait_for(lambda a: a.size > 0)
    assert not task.done()
    fault.open()
    assert (await task)[0] == 200
    assert arrival.status == 200


async def test_a_client_that_leaves_is_noticed(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "stall-stream")
    async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
        await answer.content.readany()
        answer.close()
    arrival = await standin.wait_for(lambda a: a.cancelled is not None)
    assert arrival.finished is not None


async def test_a_client_that_leaves_in_its_own_body_is_noticed(standin: StandIn, caller: Caller) -> None:
    url = URL(caller.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {FLASH}:generateContent HTTP/1.1\r\nHost: h\r\nx-goog-api-key: a\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b"{")
    arrival = await standin.wait_for(lambda a: a.size == 1)
    writer.close()
    assert await standin.wait_for(lambda a: a.cancelled is not None) is arrival


async def test_a_drip_is_whole(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "drip")
    assert (await caller.call("POST", f"{FLASH}:generateContent", json=ASK))[0] == 200
    async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
        assert (await answer.read()).count(b"\r\n\r\n") == 3


async def test_gzip_is_sent_unasked_whole_or_streamed(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "gzip")
    for target in (f"{FLASH}:generateContent", f"{FLASH}:streamGenerateContent?alt=sse"):
        async with caller.request("POST", target, json=ASK, headers={"Accept-Encoding": "identity"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
            assert b"modelVersion" in gzip.decompress(await answer.read())


async def test_a_gzip_bomb_is_small_on_the_wire(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "gzip-bomb", size=8 << 20)
    async with caller.request("POST", f"{FLASH}:generateContent", json=ASK) as answer:
        data = await answer.read()
    assert (len(data) < 100_000, len(gzip.decompress(data))) == (True, 8 << 20)


async def test_an_error_event_ends_a_stream_that_began_well(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "error-event")
    async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
        first, second, _ = (await answer.read()).split(b"\r\n\r\n")
    assert (answer.status, b"candidates" in first, second.startswith(b'data: {"error": ')) == (200, True, True)
    _, events = await caller.call("POST", f"{FLASH}:streamGenerateContent", json=ASK)
    assert "error" in events[-1]


async def test_interim_answers_and_trailers_leave_a_whole_answer(standin: StandIn, caller: Caller) -> None:
    for name in ("interim", "trailers"):
        standin.script("a", name, times=1)
        assert (await caller.call("POST", f"{FLASH}:generateContent", json=ASK))[0] == 200
    standin.script("a", "trailers", times=1)
    head = "Host: h\r\nx-goog-api-key: a\r\n"
    text = f"GET {FLASH} HTTP/1.1\r\n{head}\r\nGET {FLASH} HTTP/1.1\r\n{head}Connection: close\r\n\r\n"
    got = await raw_exchange(caller, text.encode())
    assert (got.count(b"HTTP/1.1 200 OK"), b";note=yes\r\n" in got, b"X-Checksum: abc" in got) == (2, True, True)


async def test_an_early_413_comes_before_the_body_is_read(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "early-413")
    url = URL(caller.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST {FLASH}:generateContent HTTP/1.1\r\nHost: h\r\nx-goog-api-key: a\r\nContent-Length: 6000000\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413")
    assert standin.requests[-1].size == 0
    writer.close()


async def test_a_raw_answer_can_leave_the_connection_open_for_the_next(standin: StandIn, caller: Caller) -> None:
    standin.script("a", "raw", times=1, data=b"HTTP/1.1 204 No Content\r\n\r\n", end="keep")
    assert await caller.call("GET", FLASH) == (204, None)
    assert (await caller.call("GET", FLASH))[0] == 200
    assert standin.requests[0].connection == standin.requests[1].connection


async def test_head_has_the_fields_and_no_body(caller: Caller) -> None:
    file = await caller.upload(b"abc")
    for target in (FLASH, f"/v1beta/{file['name']}:download?alt=media"):
        async with caller.request("HEAD", target) as answer:
            assert (answer.status, int(answer.headers["Content-Length"]) > 2) == (200, True)
            assert await answer.read() == b""
        assert (await caller.call("GET", FLASH))[0] == 200


# the record, the remote control, the plain mode


async def test_what_arrived_is_recorded_raw(standin: StandIn, caller: Caller) -> None:
    assert (await caller.call("GET", "/v1beta/models/gemini-2.5-flash?x=%2F%20", headers={"X-Odd": "Ä"}))[0] == 200
    await caller.call("POST", f"{FLASH}:generateContent", "b", data=json.dumps(ASK).encode())
    first, second = standin.requests
    assert (first.target, first.path) == ("/v1beta/models/gemini-2.5-flash?x=%2F%20", "/v1beta/models/gemini-2.5-flash")
    assert (first.header("x-odd"), first.header("none")) == ("Ä", None)
    assert (first.key, first.project, first.body, first.connection) == ("a", "101", b"", second.connection)
    assert (second.json(), second.size) == (ASK, len(json.dumps(ASK).encode()))
    assert second.sha256 == hashlib.sha256(json.dumps(ASK).encode()).hexdigest()
    assert "'a'" not in repr(first)
    assert await standin.wait_for(2) is second
    assert standin.connections == 1
    standin.forget()
    with pytest.raises(TimeoutError):
        await standin.wait_for(1, timeout=0.01)


async def test_the_remote_control_scripts_faults_and_shows_no_key(standin: StandIn, caller: Caller) -> None:
    fault = {"key": "a", "fault": "error-503", "times": 1}
    status, made = await caller.call("POST", "/_standin/faults", None, json=fault)
    assert (status, made["name"], made["key"]) == (200, "error-503", "ca978112")
    assert (await caller.call("POST", f"{FLASH}:generateContent", json=ASK))[0] == 503
    _, listed = await caller.call("GET", "/_standin/faults", None)
    assert (listed["faults"][0]["used"], "rate-minute" in listed["names"]) == (1, True)
    _, shown = await caller.call("GET", "/_standin/requests", None)
    assert (shown["requests"][0]["status"], shown["requests"][0]["fingerprint"]) == (503, "ca978112")
    assert (await caller.call("POST", "/_standin/gates", None))[0] == 200
    assert (await caller.call("DELETE", "/_standin/faults?key=a", None))[0] == 200
    assert (await caller.call("GET", "/_standin/faults", None))[1]["faults"] == []
    for wrong in (b"{", b"[]", b'{"fault": "none"}', b'{"fault": "rst", "times": "x"}'):
        assert (await caller.call("POST", "/_standin/faults", None, data=wrong))[0] == 400
    assert (await caller.call("GET", "/_standin/nothing", None))[0] == 404


async def test_the_plain_mode_answers_any_key_and_keeps_nothing() -> None:
    standin = StandIn(["k"], plain=True)
    async with running(standin) as url, aiohttp.ClientSession() as session:
        caller = Caller(url, session)
        status, body = await caller.call("POST", f"{FLASH}:generateContent", "whoever", json=ASK)
        assert (status, body["candidates"][0]["finishReason"]) == (200, "STOP")
        async with caller.request("POST", f"{FLASH}:streamGenerateContent?alt=sse", json=ASK) as answer:
            assert (await answer.read()).count(b"data: ") == 3
        async with caller.request("POST", "/v1beta/models/bytes-64KiB:generateContent", "x", json=ASK) as answer:
            assert len(await answer.read()) == 64 << 10
        async with caller.request("POST", "/upload/v1beta/files", headers=START, json={}) as answer:
            target = answer.headers["X-Goog-Upload-URL"].removeprefix(url)
        assert (await chunk(caller, target, b"abc", 0))[1] == "active"
        assert (await chunk(caller, target, b"abc", 3, "upload, finalize"))[1] == "final"
        assert len(standin.requests) == 0


def test_the_record_lets_go_of_the_oldest_bodies() -> None:
    kept = Record(FakeClock(), budget=5)
    arrivals = [Arrival(n, "POST", "/", (), 1, 0.0) for n in range(3)]
    for arrival in arrivals:
        arrival.feed(b"abc")
        kept.finish(arrival)
    assert [arrival.body for arrival in arrivals] == [None, None, b"abc"]
    with pytest.raises(ValueError, match="too large to keep"):
        arrivals[0].json()
