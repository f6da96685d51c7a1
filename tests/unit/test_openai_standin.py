"""The OpenAI stand-in over real sockets: its words, whose things are whose, streams, faults, realtime, and the plain mode.

That its answers are what the SDK expects is proved in tests/clients/test_openai_standin_sdk.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from balancer.standin.app import StandIn
from balancer.standin.base import BaseStandIn
from balancer.standin.faults import ANSWER, CONNECTION
from balancer.standin.openai.app import OpenAIStandIn, running
from balancer.standin.openai.ask import mentions
from balancer.standin.openai.multipart import _events
from balancer.standin.openai.refusals import REFUSALS
from balancer.standin.openai.shelves import KINDS
from balancer.standin.shelf import Shelf
from tests.fakes import FakeClock

KEYS = {"sk-a": "p1", "sk-a2": "p1", "sk-b": "p2"}
CHAT = "/v1/chat/completions"
ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "grüße 你好"}]}
SAID = "You said: grüße 你好"
CLAUDE = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}


class Caller:
    """A client of the stand-in that sends a key with each call."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    def request(self, method: str, target: str, key: str | None = "sk-a", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        headers |= options.pop("headers", {})
        return self.session.request(method, URL(self.url + target, encoded=True), headers=headers, **options)

    async def call(self, method: str, target: str, key: str | None = "sk-a", **options: Any) -> tuple[int, Any]:
        """Status and JSON (None for an empty body)."""
        async with self.request(method, target, key, **options) as answer:
            text = await answer.read()
            return answer.status, json.loads(text) if text else None

    async def upload(self, data: bytes = b"x", key: str = "sk-a", purpose: str = "user_data") -> str:
        """The id of a new file."""
        status, made = await self.call("POST", "/v1/files", key, data=form(file=data, purpose=purpose))
        assert status == 200, made
        return str(made["id"])

    async def events(self, target: str, body: Any, **options: Any) -> list[Any]:
        """The data of a stream's events, but for [DONE]."""
        async with self.request("POST", target, json=body | {"stream": True}, **options) as answer:
            assert answer.content_type == "text/event-stream"
            text = (await answer.read()).decode()
        lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


def form(**members: Any) -> aiohttp.FormData:
    """Bytes are files, the rest fields."""
    data = aiohttp.FormData()
    for name, value in members.items():
        if isinstance(value, bytes):
            data.add_field(name, value, filename=f"{name}.bin")
        else:
            data.add_field(name, value)
    return data


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def standin(clock: FakeClock) -> OpenAIStandIn:
    return OpenAIStandIn(KEYS, clock=clock)


@pytest.fixture
async def caller(standin: OpenAIStandIn) -> AsyncIterator[Caller]:
    async with calling(standin) as each:
        yield each


@asynccontextmanager
async def calling(standin: BaseStandIn[Any]) -> AsyncIterator[Caller]:
    """A stand-in on a socket and a client of it."""
    async with running(standin) as url, aiohttp.ClientSession(auto_decompress=False) as session:
        yield Caller(url, session)


def code(body: Any) -> Any:
    return body["error"]["code"]


# credentials


@pytest.mark.parametrize(
    ("headers", "query", "status", "wrong"),
    [
        ({"Authorization": "Bearer sk-a"}, "", 200, None),
        ({"authorization": "bearer sk-a"}, "", 200, None),
        ({}, "", 401, None),
        ({"Authorization": "Bearer "}, "", 401, None),
        ({"Authorization": "sk-a"}, "", 401, None),
        ({"Authorization": "Bearer sk-nobody"}, "", 401, "invalid_api_key"),
        ({"x-api-key": "sk-a"}, "", 401, None),
        ({"Authorization": "Bearer sk-a", "x-api-key": "sk-b"}, "", 400, None),
        ({"Authorization": "Bearer sk-a"}, "?key=other", 400, None),
        ({"Authorization": "Bearer sk-a", "OpenAI-Organization": "org-mine"}, "", 401, "mismatched_organization"),
        ({"Authorization": "Bearer sk-a", "OpenAI-Project": "p2"}, "", 401, "mismatched_project"),
        ({"Authorization": "Bearer sk-a", "OpenAI-Project": "p1"}, "", 200, None),
    ],
)
async def test_a_key_counts_only_as_bearer_and_alone(
    caller: Caller, headers: dict[str, str], query: str, status: int, wrong: str | None
) -> None:
    answered, body = await caller.call("GET", f"/v1/models{query}", None, headers=headers)
    assert answered == status
    assert status == 200 or (code(body), body["error"]["type"]) == (wrong, "invalid_request_error")


@pytest.mark.parametrize("place", ["x-api-key", "api-key"])
async def test_a_stand_in_may_look_for_keys_elsewhere(place: Any) -> None:
    async with calling(OpenAIStandIn(["k"], key_header=place)) as caller:
        assert (await caller.call("GET", "/v1/models", None, headers={place: "k"}))[0] == 200
        assert (await caller.call("GET", "/v1/models", "k"))[0] == 401


async def test_an_unknown_key_is_shown_by_its_ends_only(caller: Caller) -> None:
    _, body = await caller.call("GET", "/v1/models", "sk-nobody-at-all-1234")
    assert body["error"]["message"].startswith("Incorrect API key provided: sk-nobod********1234. You can find")


# answers


async def test_answers_carry_the_fields_of_the_edge(caller: Caller) -> None:
    ids = set()
    for _ in range(2):
        async with caller.request("POST", CHAT, json=ASK) as answer:
            assert answer.headers["Content-Type"] == "application/json"
            assert len(answer.headers.getall("set-cookie")) == 2
            assert answer.headers["alt-svc"] == 'h3=":443"; ma=86400'
            assert "strict-transport-security" in answer.headers
            assert answer.headers["x-ratelimit-remaining-requests"] == "9999"
            assert answer.headers["openai-processing-ms"].isdigit()
            ids.add(answer.headers["x-request-id"])
    assert len(ids) == 2
    async with caller.request("GET", "/v1/nothing") as answer:
        assert ("x-request-id" in answer.headers, "x-ratelimit-remaining-requests" in answer.headers) == (True, False)


@pytest.mark.parametrize(
    ("target", "body", "status", "param", "wrong"),
    [
        (CHAT, b"{", 400, None, None),
        (CHAT, b"[]", 400, None, None),
        (CHAT, {"model": "gpt-4o"}, 400, "messages", "missing_required_parameter"),
        (CHAT, ASK | {"messages": "hi"}, 400, "messages", "invalid_type"),
        (CHAT, ASK | {"messages": []}, 400, "messages", "empty_array"),
        (CHAT, ASK | {"messages": [{"content": "x"}]}, 400, "messages[0].role", "missing_required_parameter"),
        (CHAT, {"messages": ASK["messages"]}, 400, None, None),
        (CHAT, ASK | {"model": 5}, 400, "model", "invalid_type"),
        (CHAT, ASK | {"model": "openai/gpt-4o"}, 404, None, "model_not_found"),
        (CHAT, ASK | {"n": 0.5}, 400, "n", "invalid_value"),
        (CHAT, ASK | {"session_id": "s"}, 400, "session_id", "unknown_parameter"),
        ("/v1/responses", {"model": "gpt-4o"}, 400, "input", "missing_required_parameter"),
        ("/v1/responses", {"model": "gpt-4o", "input": 5}, 400, "input", "invalid_type"),
        ("/v1/embeddings", {"model": "text-embedding-3-small"}, 400, "input", "missing_required_parameter"),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": ""}, 400, "input", None),
        ("/v1/files", {"purpose": "batch"}, 400, None, None),
        ("/v1/batches", {"endpoint": "/v1/responses"}, 400, "input_file_id", "missing_required_parameter"),
        ("/v1/images/generations", {"model": "dall-e-3"}, 400, "prompt", "missing_required_parameter"),
        ("/v1/audio/speech", {"model": "tts-1", "input": "x"}, 400, "voice", "missing_required_parameter"),
        ("/v1/uploads", {"bytes": 1}, 400, "filename", "missing_required_parameter"),
        ("/v1/assistants", {"model": "gpt-0"}, 404, None, "model_not_found"),
    ],
)
async def test_bad_calls_are_refused_in_openai_s_words(
    caller: Caller, target: str, body: Any, status: int, param: str | None, wrong: str | None
) -> None:
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    answered, answer = await caller.call("POST", target, **sent)
    assert (answered, answer["error"]["param"], code(answer)) == (status, param, wrong)
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/vector_stores", {"file_ids": 5}),
        ("/v1/containers", {"name": "c", "file_ids": True}),
        ("/v1/threads", {"messages": 5}),
        ("/v1/threads", {"messages": [5]}),
        ("/v1/conversations", {"items": 5}),
        ("/v1/uploads", {"bytes": 1, "filename": "f", "mime_type": "m", "purpose": {}}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "x", "dimensions": -1}),
        (CHAT, ASK | {"messages": [5]}),
    ],
)
async def test_members_of_a_wrong_type_are_the_caller_s_mistake(caller: Caller, target: str, body: Any) -> None:
    status, answer = await caller.call("POST", target, json=body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/models", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("POST", "/v1/models", 405, "GET"),
        ("GET", "/v1/embeddings", 405, "POST"),
        ("PUT", "/v1/files/file-x", 405, "DELETE, GET"),
    ],
)
async def test_unknown_paths_and_methods(
    caller: Caller, method: str, target: str, status: int, allow: str | None
) -> None:
    async with caller.request(method, target) as answer:
        body = json.loads(await answer.read())
        assert (answer.status, answer.headers.get("Allow")) == (status, allow)
    if target != "/v1/models/":
        start = "Invalid URL" if status == 404 else "Not allowed to"
        assert body["error"]["message"].startswith(start)


async def test_a_stream_is_role_deltas_reason_usage_and_done(caller: Caller) -> None:
    body = ASK | {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    async with caller.request("POST", CHAT, json=body) as answer:
        text = (await answer.read()).decode()
    events = text.split("\n\n")
    assert (events.pop(), events.pop()) == ("", "data: [DONE]")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *rest, last = chunks
    assert (last["choices"], last["usage"]["total_tokens"] > 0) == ([], True)
    assert {chunk["usage"] for chunk in rest} == {None}
    for n in range(2):
        mine = [chunk["choices"][0] for chunk in rest if chunk["choices"][0]["index"] == n]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(each["delta"].get("content") or "" for each in mine) == SAID
        assert [each["finish_reason"] for each in mine if each["finish_reason"]] == ["stop"]


async def test_a_stored_stream_can_be_asked_for_by_its_id(caller: Caller) -> None:
    for target, body in ((CHAT, ASK), ("/v1/responses", {"model": "gpt-4o", "input": "x"})):
        first, *_ = await caller.events(target, body | {"store": True})
        identity = first["response"]["id"] if "response" in first else first["id"]
        status, stored = await caller.call("GET", f"{target}/{identity}")
        assert (status, stored["id"], "You said" in json.dumps(stored)) == (200, identity, True)


async def test_calls_of_tools_are_split_over_chunks(caller: Caller) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    events = await caller.events(CHAT, ASK | {"tools": [tool]})
    parts = [call for event in events for call in event["choices"][0]["delta"].get("tool_calls", [])]
    assert (parts[0]["function"], parts[0]["id"][:5]) == ({"name": "look", "arguments": ""}, "call_")
    assert (len(parts), {part["index"] for part in parts}) == (4, {0})
    assert json.loads("".join(part["function"]["arguments"] for part in parts)) == {"said": "grüße 你好"}
    forced = {"type": "function", "function": {"name": "hear"}}
    for choice, names in (("none", []), ("required", ["look"]), (forced, ["hear"])):
        _, answer = await caller.call("POST", CHAT, json=ASK | {"tools": [tool], "tool_choice": choice})
        (made,) = answer["choices"]
        assert [each["function"]["name"] for each in made["message"].get("tool_calls", [])] == names
        assert made["finish_reason"] == ("tool_calls" if names else "stop")


@pytest.mark.parametrize("target", [CHAT, "/v1/responses"])
async def test_models_made_for_sizes_and_counts(caller: Caller, target: str) -> None:
    ask = {"messages": ASK["messages"], "input": "x"}
    async with caller.request("POST", target, json=ask | {"model": "bytes-300KiB"}) as answer:
        assert len(await answer.read()) == 300 << 10 == answer.content_length
    events = await caller.events(target, ask | {"model": "bytes-256KiB"})
    filler = [
        event
        for event in events
        if "x" * 60_000 in json.dumps(event) and "output_text.done" not in event.get("type", "")
    ]
    assert len(filler) == 4
    for model, query in (("stand-in-events-7", ""), ("stand-in-slow", "?events=7&interval=0.001")):
        events = await caller.events(target + query, ask | {"model": model})
        words = [e for e in events if "event " in json.dumps(e.get("choices", e.get("delta", "")))]
        assert len(words) == 7


async def test_the_sink_takes_any_size_and_tells_what_came(standin: OpenAIStandIn, caller: Caller) -> None:
    body = json.dumps({"model": "stand-in-sink", "messages": ["x" * (3 << 20)]}).encode()
    with pytest.warns(ResourceWarning, match="large body"):
        status, answer = await caller.call("POST", CHAT, data=body)
    text = answer["choices"][0]["message"]["content"]
    assert (status, text) == (200, f"{len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}")
    assert standin.requests[-1].body is None


# whose things are whose


CREATIONS: dict[str, Any] = {
    "vector_stores": {}, "containers": {"name": "c"}, "assistants": {"model": "gpt-4o"}, "threads": {}, "videos": {"prompt": "x"},
    "evals": {"data_source_config": {}, "testing_criteria": []}, "skills": {}, "conversations": {},
    "responses": {"model": "gpt-4o", "input": "x"}, "chat/completions": ASK | {"store": True},
    "uploads": {"bytes": 1, "filename": "f", "mime_type": "text/plain", "purpose": "batch"},
}  # fmt: skip
PREFIXES = {kind: KINDS[kind].prefix for kind in KINDS} | {
    "conversations": "conv_", "responses": "resp_", "chat/completions": "chatcmpl-", "uploads": "upload_",
}  # fmt: skip
BELOW = {
    "vector_stores": ("files", "search"), "threads": ("messages", "runs"), "conversations": ("items",), "evals": ("runs",),
    "containers": ("files",), "responses": ("input_items", "cancel"), "chat/completions": ("messages",), "skills": ("versions",),
    "uploads": ("parts", "complete", "cancel"), "videos": ("content", "remix"),
}  # fmt: skip


@pytest.mark.parametrize("collection", CREATIONS)
async def test_what_a_key_makes_exists_for_its_project_only(caller: Caller, collection: str) -> None:
    status, made = await caller.call("POST", f"/v1/{collection}", json=CREATIONS[collection])
    assert (status, made["id"].startswith(PREFIXES[collection])) == (200, True)
    path = f"/v1/{collection}/{made['id']}"
    if collection != "uploads":
        assert (await caller.call("GET", path, "sk-a2"))[0] == 200
        for method in ("GET", "DELETE"):
            answered, foreign = await caller.call(method, path, "sk-b")
            assert (answered, made["id"] in foreign["error"]["message"]) == (404, True)
            assert foreign == (await caller.call(method, path, "sk-b"))[1]
    for below in BELOW.get(collection, ()):
        statuses = [
            (await caller.call(method, f"{path}/{below}", "sk-b", **_json(method)))[0] for method in ("GET", "POST")
        ]
        assert set(statuses) <= {404, 405}
        assert 404 in statuses
    if collection not in ("uploads", "threads", "responses", "conversations"):
        assert [each["id"] for each in (await caller.call("GET", f"/v1/{collection}", "sk-a2"))[1]["data"]] == [
            made["id"]
        ]
        assert (await caller.call("GET", f"/v1/{collection}", "sk-b"))[1]["data"] == []
    if collection != "uploads":
        status, gone = await caller.call("DELETE", path)
        assert (status, collection == "responses" or gone["deleted"]) == (200, True)
        assert (await caller.call("GET", path))[0] == 404


def _json(method: str) -> Any:
    return {"json": {}} if method == "POST" else {}


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/batches", {"input_file_id": "F", "endpoint": "/v1/responses", "completion_window": "24h"}),
        ("/v1/fine_tuning/jobs", {"training_file": "F", "model": "gpt-4o"}),
        ("/v1/vector_stores", {"file_ids": ["F"]}),
        ("/v1/containers", {"name": "c", "file_ids": ["F"]}),
        ("/v1/responses", {"model": "gpt-4o", "input": [{"role": "user", "content": [{"file_id": "F"}]}]}),
        (CHAT, ASK | {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "F"}}]}]}),
    ],
)
async def test_a_foreign_file_in_a_body_does_not_exist(caller: Caller, target: str, body: Any) -> None:
    file = await caller.upload()
    mine = json.loads(json.dumps(body).replace('"F"', f'"{file}"'))
    assert (await caller.call("POST", target, json=mine))[0] == 200
    answered, foreign = await caller.call("POST", target, "sk-b", json=mine)
    assert (answered, foreign["error"]["message"]) == (404, f"No such File object: {file}")


def test_names_count_in_their_members_and_never_in_metadata() -> None:
    body = {
        "metadata": {"file_id": "file-1"}, "input": "file-2", "conversation": {"id": "conv_3"},
        "tools": [{"vector_store_ids": ["vs_4"]}],
        "input_file_id": "elsewhere", "previous_response_id": "resp_5",
    }  # fmt: skip
    assert [name for name, _ in mentions(body)] == ["conversations/conv_3", "vector_stores/vs_4", "responses/resp_5"]


@pytest.mark.parametrize("how", [{}, {"stream": True}, {"background": True}])
async def test_a_response_adds_what_was_asked_and_said_to_its_conversation(caller: Caller, how: dict[str, Any]) -> None:
    _, held = await caller.call("POST", "/v1/conversations", json={})
    body = {"model": "gpt-4o", "input": "hi", "conversation": {"id": held["id"]}} | how
    async with caller.request("POST", "/v1/responses", json=body) as answer:
        text = await answer.text()
    if "background" in how:
        assert (await caller.call("GET", f"/v1/responses/{json.loads(text)['id']}"))[1]["status"] == "completed"
    _, items = await caller.call("GET", f"/v1/conversations/{held['id']}/items?order=asc")
    assert [each["content"][0]["text"] for each in items["data"]] == ["hi", "You said: hi"]


async def test_lists_page_by_cursor_within_their_project(caller: Caller) -> None:
    ids = [await caller.upload() for _ in range(3)]
    _, first = await caller.call("GET", "/v1/files?limit=2")
    assert ([each["id"] for each in first["data"]], first["has_more"]) == ([ids[2], ids[1]], True)
    assert (first["first_id"], first["last_id"]) == (ids[2], ids[1])
    _, second = await caller.call("GET", f"/v1/files?limit=2&after={first['last_id']}")
    assert ([each["id"] for each in second["data"]], second["has_more"]) == ([ids[0]], False)
    _, back = await caller.call("GET", f"/v1/files?order=asc&before={ids[1]}")
    assert [each["id"] for each in back["data"]] == [ids[0]]
    for query, key in (
        ("after=file-none", "sk-a"),
        (f"after={ids[0]}", "sk-b"),
        ("limit=0", "sk-a"),
        ("limit=many", "sk-a"),
    ):
        assert (await caller.call("GET", f"/v1/files?{query}", key))[0] == 400
    assert (await caller.call("GET", "/v1/files?order=up"))[0] == 400


async def test_the_oldest_things_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(FakeClock(), 2)
    blobs = [shelf.blob() for _ in range(3)]
    for n, blob in enumerate(blobs):
        shelf.put("p", f"files/{n}", {}, blob=blob)
    assert [shelf.get("p", f"files/{n}") is not None for n in range(3)] == [False, True, True]
    assert shelf._blobs == set(blobs[1:])
    monkeypatch.setattr("balancer.standin.shelf.KEPT_BYTES", 10)
    for blob in blobs[1:]:
        await blob.write(b"12345678")
    shelf.put("p", "files/3", {}, blob=shelf.blob())
    assert [shelf.get("p", f"files/{n}") is not None for n in range(4)] == [False, False, True, True]
    assert shelf.held.size == 8


# files


async def test_a_large_file_goes_to_disk_and_comes_back_the_same(standin: OpenAIStandIn, caller: Caller) -> None:
    data = bytes(range(256)) * 40_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 77_777):
            yield data[start : start + 77_777]

    file = aiohttp.FormData()
    file.add_field("purpose", "user_data")
    file.add_field("file", pieces(), filename="b.bin")
    status, made = await caller.call("POST", "/v1/files", data=file)
    assert (status, made["bytes"], made["filename"]) == (200, len(data), "b.bin")
    assert standin.requests[-1].body is None
    async with caller.request("GET", f"/v1/files/{made['id']}/content") as answer:
        assert await answer.read() == data
    found = standin.world.shelf.get("p1", f"files/{made['id']}")
    assert found is not None
    assert found.blob is not None
    assert len(found.blob._memory) < 2 << 20


@pytest.mark.parametrize(
    "body", [b"", b"--b\r\n", b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nhalf', b"x" * 99]
)
async def test_half_a_form_leaves_nothing_behind(standin: OpenAIStandIn, caller: Caller, body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert (await caller.call("POST", "/v1/files", data=body, headers=headers))[0] == 400
    assert standin.world.shelf._blobs == set()


async def test_a_form_without_its_file_or_with_a_wrong_purpose_is_refused(
    standin: OpenAIStandIn, caller: Caller
) -> None:
    for sent in (form(purpose="batch"), form(file=b"x"), form(file=b"x", purpose="fun")):
        assert (await caller.call("POST", "/v1/files", data=sent))[0] == 400
    assert standin.world.shelf._blobs == set()


PARTS = (
    b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\none\r\n'
    b'--b\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\n\r\n--c\r\n\r\n--b--\r\n'
)


@given(st.lists(st.integers(1, len(PARTS)), max_size=8))
def test_a_form_is_the_same_however_it_is_chunked(cuts: list[int]) -> None:
    async def taken() -> list[tuple[str, bytes]]:
        async def chunks() -> Any:
            marks = [0, *sorted(cuts), len(PARTS)]
            for start, stop in pairwise(marks):
                yield PARTS[start:stop]

        found: list[tuple[str, bytes]] = []
        async for event in _events(chunks(), b"b"):
            if isinstance(event, bytes):
                found[-1] = (found[-1][0], found[-1][1] + event)
            else:
                found.append((f"{event.name} {event.filename}", b""))
        return found

    assert asyncio.run(taken()) == [("a None", b"one"), ("f x", b"\r\n--c\r\n")]


# faults


RATE = {"seconds": 90}


@pytest.mark.parametrize(
    ("name", "status", "wrong", "fields"),
    [
        ("key-invalid", 401, "invalid_api_key", {}),
        ("names-key", 401, "invalid_api_key", {}),
        ("payment", 402, "payment_required", {}),
        ("account-deactivated", 403, "account_deactivated", {}),
        ("region", 403, "unsupported_country_region_territory", {}),
        ("forbidden", 403, None, {}),
        ("rate-retry-after-ms", 429, "rate_limit_exceeded", {"retry-after-ms": "90000", "retry-after": "91"}),
        ("rate-retry-after", 429, "rate_limit_exceeded", {"retry-after": "90"}),
        ("rate-date", 429, "rate_limit_exceeded", {"retry-after": "date"}),
        (
            "rate-reset",
            429,
            "rate_limit_exceeded",
            {
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-requests": "45000ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1m30s",
            },
        ),
        ("rate-bare", 429, "rate_limit_exceeded", {}),
        ("quota", 429, "insufficient_quota", {}),
        ("error-408", 408, "request_timeout", {}),
        ("error-500", 500, None, {}),
        ("error-503", 503, "overloaded", {}),
        ("error-504", 504, None, {}),
        ("error-529", 529, None, {}),
        ("early-413", 413, None, {}),
    ],
)
async def test_refusals_have_openai_s_words_and_fields(
    standin: OpenAIStandIn, caller: Caller, name: str, status: int, wrong: str | None, fields: dict[str, str]
) -> None:
    fault = standin.script("sk-a", name, times=1, **RATE)
    async with caller.request("POST", CHAT, json=ASK) as answer:
        body = json.loads(await answer.read())
        told = {k.lower(): v for k, v in answer.headers.items() if k.lower().startswith(("retry", "x-ratelimit"))}
    if fields.get("retry-after") == "date":
        assert told.pop("retry-after").endswith(" GMT")
        fields = {}
    assert (answer.status, code(body), told) == (status, wrong, fields)
    assert (fault.used, standin.requests[-1].fault) == (1, name)
    assert ("sk-a" in body["error"]["message"]) == (name == "names-key")
    assert (await caller.call("POST", CHAT, json=ASK))[0] == 200


@pytest.mark.parametrize(("name", "status"), [("error-502", 502), ("redirect", 307)])
async def test_some_refusals_are_no_json(standin: OpenAIStandIn, caller: Caller, name: str, status: int) -> None:
    standin.script("sk-a", name)
    async with caller.request("POST", CHAT, json=ASK, allow_redirects=False) as answer:
        assert (answer.status, answer.content_type) == (status, "text/html")


def test_every_fault_has_one_meaning(standin: OpenAIStandIn) -> None:
    assert standin.faults.names == set(REFUSALS) | CONNECTION | ANSWER
    assert len(standin.faults.names) == len(REFUSALS) + len(CONNECTION) + len(ANSWER)
    with pytest.raises(ValueError, match="no fault is called"):
        standin.script("sk-a", "rate-minute")  # Gemini's


async def test_a_fault_may_be_for_one_model_of_the_body(standin: OpenAIStandIn, caller: Caller) -> None:
    standin.script("*", "rate-bare", model="gpt-5.1")
    for model, status in (("gpt-5.1", 429), ("gpt-4o", 200)):
        answered, body = await caller.call("POST", CHAT, json=ASK | {"model": model})
        assert (answered, answered == 200 or "gpt-5.1" in body["error"]["message"]) == (status, True)
    assert await caller.upload()
    assert [arrival.json()["model"] for arrival in list(standin.requests)[:2]] == ["gpt-5.1", "gpt-4o"]


@pytest.mark.parametrize("name", ["cut-head", "cut-fin", "cut-rst", "short-body"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_answer_arrives_as_a_broken_body(
    standin: OpenAIStandIn, caller: Caller, name: str, stream: bool
) -> None:
    standin.script("sk-a", name, times=1)
    async with caller.request("POST", CHAT, json=ASK | {"stream": stream}) as answer:
        assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


async def test_a_stalled_stream_waits_at_its_gate(standin: OpenAIStandIn, caller: Caller) -> None:
    fault = standin.script("sk-a", "stall-stream", after=2)
    async with caller.request("POST", CHAT, json=ASK | {"stream": True}) as answer:
        got = b""
        while got.count(b"\n\n") < 2:
            got += await answer.content.readany()
        assert standin.requests[-1].finished is None
        fault.open()
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_is_noticed(standin: OpenAIStandIn, caller: Caller) -> None:
    standin.script("sk-a", "stall-stream")
    async with caller.request(
        "POST", "/v1/responses", json={"model": "gpt-4o", "input": "x", "stream": True}
    ) as answer:
        await answer.content.readany()
        answer.close()
    assert (await standin.wait_for(lambda arrival: arrival.cancelled is not None)).finished is not None


@pytest.mark.parametrize(
    ("target", "body", "start"),
    [
        (CHAT, ASK, b'data: {"error":{"message":'),
        ("/v1/responses", {"model": "gpt-4o", "input": "x"}, b'event: error\ndata: {"type":"'),
        ("/v1/messages", CLAUDE, b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"'),
    ],
)
async def test_an_error_event_is_of_its_dialect(
    standin: OpenAIStandIn, caller: Caller, target: str, body: Any, start: bytes
) -> None:
    standin.script("sk-a", "error-event", after=2)
    headers = {"anthropic-version": "2023-06-01"}
    async with caller.request("POST", target, json=body | {"stream": True}, headers=headers) as answer:
        *_, last, empty = (await answer.read()).split(b"\n\n")
    assert (answer.status, last.startswith(start), empty) == (200, True, b"")


async def test_the_remote_control_knows_these_faults(caller: Caller) -> None:
    fault = {"key": "sk-a", "fault": "quota", "times": 1}
    assert (await caller.call("POST", "/_standin/faults", None, json=fault))[0] == 200
    assert "quota" in (await caller.call("GET", "/_standin/faults", None))[1]["names"]
    assert (await caller.call("POST", CHAT, json=ASK))[0] == 429


# Anthropic's dialect


async def test_messages_speak_anthropic_s_dialect() -> None:
    async with calling(OpenAIStandIn(["k"], key_header="x-api-key")) as caller:
        headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
        status, answer = await caller.call("POST", "/v1/messages", None, json=CLAUDE, headers=headers)
        assert (status, answer["content"], answer["stop_reason"]) == (
            200, [{"type": "text", "text": "You said: hi"}], "end_turn",
        )  # fmt: skip
        tool = CLAUDE | {"tools": [{"name": "look", "input_schema": {}}]}
        _, answer = await caller.call("POST", "/v1/messages", None, json=tool, headers=headers)
        assert (answer["stop_reason"], answer["content"][0]["input"]) == ("tool_use", {"said": "hi"})
        result = {"type": "tool_result", "tool_use_id": answer["content"][0]["id"], "content": "a bird"}
        back = tool | {"messages": [*CLAUDE["messages"], {"role": "user", "content": [result]}]}  # type: ignore[misc]
        _, answer = await caller.call("POST", "/v1/messages", None, json=back, headers=headers)
        assert answer["content"][0]["text"] == "You said: a bird"
        events = await caller.events("/v1/messages", CLAUDE, key=None, headers=headers)
        assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]
        assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == "You said: hi"
        events = await caller.events("/v1/messages", tool, key=None, headers=headers)
        pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
        assert json.loads("".join(pieces)) == {"said": "hi"}
        counted = await caller.call("POST", "/v1/messages/count_tokens", None, json=CLAUDE, headers=headers)
        assert counted == (200, {"input_tokens": 1})


@pytest.mark.parametrize(
    ("headers", "change", "status", "kind"),
    [
        ({"x-api-key": "k"}, {}, 400, "invalid_request_error"),
        ({"anthropic-version": "1"}, {}, 401, "authentication_error"),
        ({"anthropic-version": "1", "x-api-key": "k"}, {"max_tokens": None}, 400, "invalid_request_error"),
        ({"anthropic-version": "1", "x-api-key": "k"}, {"messages": []}, 400, "invalid_request_error"),
        (
            {"anthropic-version": "1", "x-api-key": "k"},
            {"messages": [{"role": "system"}]},
            400,
            "invalid_request_error",
        ),
        ({"anthropic-version": "1", "x-api-key": "k"}, {"model": "gpt-0"}, 404, "not_found_error"),
    ],
)
async def test_errors_of_messages_are_anthropic_s(headers: Any, change: Any, status: int, kind: str) -> None:
    async with calling(OpenAIStandIn(["k"], key_header="x-api-key")) as caller:
        answered, body = await caller.call("POST", "/v1/messages", None, json=CLAUDE | change, headers=headers)
        assert (answered, body["type"], body["error"]["type"]) == (status, "error", kind)


# realtime


async def test_a_socket_says_who_it_is_and_answers(standin: OpenAIStandIn, caller: Caller) -> None:
    headers = {"Authorization": "Bearer sk-a"}
    async with caller.session.ws_connect(f"{caller.url}/v1/realtime?model=gpt-realtime", headers=headers) as socket:
        assert (await socket.receive_json())["type"] == "session.created"
        await socket.send_json({"type": "session.update", "session": {"instructions": "sing"}})
        assert (await socket.receive_json())["session"]["instructions"] == "sing"
        await socket.send_json({"type": "response.create", "response": {"metadata": {"bytes": str(2 << 20)}}})
        kinds = [await socket.receive_json() for _ in range(4)]
        assert [each["type"] for each in kinds][-1] == "response.done"
        assert len(kinds[1]["delta"]) == 2 << 20
        await socket.send_bytes(bytes(1 << 20))
        assert await socket.receive_bytes() == bytes(1 << 20)
        await socket.send_str("nonsense")
        assert (await socket.receive_json())["type"] == "error"
        assert standin.requests[-1].finished is None
    arrival = await standin.wait_for(lambda each: each.finished is not None)
    assert (arrival.status, arrival.size > 1 << 20, arrival.key) == (101, True, "sk-a")


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("?model=gpt-realtime", {}, 401),
        ("?model=gpt-0", {"Authorization": "Bearer sk-a"}, 404),
        ("", {"Authorization": "Bearer sk-a"}, 400),
    ],
)
async def test_a_handshake_is_refused_like_a_request(caller: Caller, query: str, headers: Any, status: int) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await caller.session.ws_connect(f"{caller.url}/v1/realtime{query}", headers=headers)
    assert refused.value.status == status


async def test_a_subprotocol_or_a_client_secret_opens_a_socket(caller: Caller) -> None:
    url = f"{caller.url}/v1/realtime?model=gpt-realtime"
    _, secret = await caller.call("POST", "/v1/realtime/client_secrets", json={})
    protocols = ("realtime", "openai-insecure-api-key.sk-a")
    async with caller.session.ws_connect(url, protocols=protocols) as socket:
        assert ((await socket.receive_json())["type"], socket.protocol) == ("session.created", "realtime")
    async with caller.session.ws_connect(url, headers={"Authorization": f"Bearer {secret['value']}"}) as socket:
        assert (await socket.receive_json())["type"] == "session.created"


async def test_a_handshake_can_wait_at_a_gate(standin: OpenAIStandIn, caller: Caller) -> None:
    fault = standin.script("sk-a", "stall-head", model="gpt-realtime")
    url, headers = f"{caller.url}/v1/realtime?model=gpt-realtime", {"Authorization": "Bearer sk-a"}
    opening = asyncio.ensure_future(caller.session.ws_connect(url, headers=headers))
    arrival = await standin.wait_for(lambda each: each.fault == "stall-head")
    assert (arrival.status, opening.done()) == (None, False)
    fault.open()
    async with await opening as socket:
        assert (await socket.receive_json())["type"] == "session.created"


@pytest.mark.parametrize("name", ["cut-rst", "cut-fin"])
async def test_a_socket_can_be_cut_between_its_frames(standin: OpenAIStandIn, caller: Caller, name: str) -> None:
    standin.script("sk-a", name, after=2)
    headers = {"Authorization": "Bearer sk-a"}
    async with caller.session.ws_connect(f"{caller.url}/v1/realtime?model=gpt-realtime", headers=headers) as socket:
        await socket.send_json({"type": "response.create"})
        assert [(await socket.receive_json())["type"] for _ in range(2)] == ["session.created", "response.created"]
        assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


async def test_a_call_has_a_place_of_its_own(caller: Caller) -> None:
    async with caller.request(
        "POST", "/v1/realtime/calls", data=b"v=0", headers={"content-type": "application/sdp"}
    ) as answer:
        assert (answer.status, answer.content_type) == (201, "application/sdp")
        place = answer.headers["location"]
    assert (await caller.call("POST", f"{place}/hangup"))[0] == 200
    assert (await caller.call("POST", f"{place}/hangup", "sk-b"))[0] == 404


# the plain mode, and Google's paths of this shape


async def test_the_plain_mode_answers_any_key_and_keeps_nothing() -> None:
    standin = OpenAIStandIn(["k"], plain=True)
    async with calling(standin) as caller:
        status, body = await caller.call("POST", CHAT, "whoever", json=ASK)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello from the stand-in.")
        events = await caller.events(CHAT, ASK)
        assert "".join(e["choices"][0]["delta"].get("content") or "" for e in events) == "Hello from the stand-in."
        async with caller.request("POST", CHAT, json=ASK | {"model": "bytes-64KiB"}) as answer:
            assert len(await answer.read()) == 64 << 10
        assert len(await caller.events(CHAT, ASK | {"model": "stand-in-events-9"})) == 9
        assert await caller.upload() == "file-plain"
        assert (await caller.call("GET", "/v1/models", "any"))[0] == 200
        assert len(standin.requests) == 0


async def test_google_s_paths_of_this_shape_have_tools_usage_and_pictures() -> None:
    async with calling(StandIn(["k"])) as caller:
        target, ask = "/v1beta/openai/chat/completions", ASK | {"model": "gemini-2.5-flash"}
        events = await caller.events(target, ask | {"stream_options": {"include_usage": True}}, key="k")
        assert (events[-1]["choices"], events[-1]["usage"]["total_tokens"] > 0) == ([], True)
        tool = {"tools": [{"type": "function", "function": {"name": "look"}}]}
        _, answer = await caller.call("POST", target, "k", json=ask | tool)
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
        pictures = {"model": "imagen-4.0-generate-001", "prompt": "a bird", "n": 2}
        _, answer = await caller.call("POST", "/v1beta/openai/images/generations", "k", json=pictures)
        assert len(answer["data"]) == 2
        for method, path, body, status in (
            ("POST", "images/generations", {"model": "imagen-4.0-generate-001"}, 400),
            ("POST", "chat/completions", {"model": "gemini-2.5-flash"}, 400),
            ("POST", "chat/completions", ask | {"n": 9}, 400),
            ("GET", "files", None, 404),
        ):
            answered, wrong = await caller.call(method, f"/v1beta/openai/{path}", "k", json=body)
            assert (answered, wrong[0]["error"]["code"]) == (status, status)
