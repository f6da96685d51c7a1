"""The OpenAI API as it passes: which routes there are, what of a request is changed, and what an answer keeps."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
from typing import Any

import aiohttp
import pytest

from tests.surfaces.openai_calls import (
    ANN,
    BOB,
    CHAT,
    GPT,
    MESSAGES,
    OA_KEYS,
    TOKENS,
    Answer,
    chat_bytes,
    request_bytes,
    scripted,
    world,
)
from tests.upstream import Peer, Seen, serving

# Routes

PREFIXES = ("/v1", "/openai/v1", "/v1beta/openai", "/s/a-session/v1", "/openai/s/a-session/v1", "/s/x/openai", "//v1/")


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_every_base_url_leads_to_the_same_routes(prefix: str) -> None:
    async with world() as here:
        chat = {"model": GPT, "messages": MESSAGES}
        assert (await here.ann.call("POST", f"{prefix}/chat/completions", chat)).text == "You said: hello"
        embedded = await here.ann.call(
            "POST", f"{prefix}/embeddings", {"model": "oa/text-embedding-3-small", "input": "x"}
        )
        assert embedded.json["data"][0]["object"] == "embedding"
        assert (await here.ann.call("GET", f"{prefix}/models")).json["object"] == "list"
        assert (await here.ann.call("GET", f"{prefix}/files/")).json["data"] == []
        made = await here.ann.call("POST", f"{prefix}/responses", {"model": GPT, "input": "hello"})
        assert (await here.ann.call("GET", f"{prefix}/responses/{made.id}")).id == made.id
        assert {arrival.path.partition("/v1/")[0] for arrival in here.oa.requests} == {""}


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses", "models"])
async def test_a_base_url_without_a_version_has_the_paths_that_nobody_else_claims(path: str) -> None:
    async with world() as here:
        bodies: dict[str, dict[str, Any]] = {
            "chat/completions": {"messages": MESSAGES},
            "completions": {"prompt": "x"},
            "embeddings": {"input": "x"},
            "responses": {"input": "x"},
        }
        method = "GET" if path == "models" else "POST"
        body = {"model": GPT, **bodies[path]} if path in bodies else None
        answer = await here.ann.call(method, f"/{path}", body)
        assert answer.status == 200, answer.body
        assert (await here.ann.call("GET", "/files")).code == (404, "unknown_url")


async def test_what_google_sdks_send_under_v1_is_theirs_and_under_a_prefix_it_is_openais() -> None:
    async with world() as here:
        goog = {"x-goog-api-key": ANN, "Authorization": ""}
        listed = await here.ann.call("GET", "/v1/models", headers=goog)
        assert "models" in listed.json  # Google's shape
        for path in ("/v1/models", "/v1/models?page=1"):
            assert (await here.ann.call("GET", path)).json["object"] == "list"
        for path in ("/openai/v1/models", "/v1beta/openai/models", "/s/x/openai/models"):
            assert (await here.ann.call("GET", path, headers=goog)).json["object"] == "list"
            no_credential = {"Authorization": ""}
            assert (await here.ann.call("GET", f"{path}?key={ANN}", headers=no_credential)).json["object"] == "list"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "models", "GET, HEAD"),
        ("DELETE", "models/oa/gpt-5.1", "GET, HEAD"),
        ("GET", "embeddings", "POST"),
        ("PUT", "chat/completions", "GET, HEAD, POST"),
        ("DELETE", "chat/completions", "GET, HEAD, POST"),
        ("PATCH", "chat/completions/chatcmpl-1", "GET, HEAD, POST, DELETE"),
        ("POST", "chat/completions/chatcmpl-1/messages", "GET, HEAD"),
        ("GET", "images/edits", "POST"),
        ("GET", "audio/speech", "POST"),
        ("OPTIONS", "files", "GET, HEAD, POST, PUT, PATCH, DELETE"),
    ],
)
async def test_another_method_than_a_route_has_is_told_which_ones_it_has(method: str, path: str, allow: str) -> None:
    async with world() as here:
        answer = await here.ann.call(method, f"/v1/{path}")
        assert answer.code == (405, "method_not_allowed")
        assert answer.headers["Allow"] == allow
        assert not here.oa.requests


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completionz",
        "/v1/organization/users",
        "/v1/projects",
        "/v1",
        "/nowhere",
        "/v1/models/..%2Fx",
        "/v1/messages",
    ],
)
async def test_any_other_path_is_an_unknown_url(path: str) -> None:
    async with world() as here:
        for method in ("GET", "POST"):
            answer = await here.ann.call(method, path)
            assert answer.code == (404, "unknown_url")
            assert answer.error["type"] == "invalid_request_error"
            assert answer.error["message"].startswith(f"Invalid URL ({method} /")
        assert not here.oa.requests


FORMS: dict[str, dict[str, str]] = {
    "images/edits": {"model": "oa/gpt-image-1", "prompt": "a cat", "image": "FILE"},
    "images/variations": {"model": "oa/dall-e-2", "image": "FILE"},
    "audio/transcriptions": {"model": "oa/whisper-1", "file": "FILE"},
    "audio/translations": {"file": "FILE", "model": "oa/whisper-1"},
    "videos": {"prompt": "a film", "model": "oa/sora-2"},
}
CALLS: dict[str, dict[str, Any]] = {
    "completions": {"model": "oa/gpt-3.5-turbo-instruct", "prompt": "x"},
    "embeddings": {"model": "oa/text-embedding-3-small", "input": ["x", "y"]},
    "moderations": {"model": "oa/omni-moderation-latest", "input": "x"},
    "images/generations": {"model": "oa/gpt-image-1", "prompt": "a cat"},
    "audio/speech": {"model": "oa/tts-1", "input": "x", "voice": "alloy"},
    "responses": {"model": GPT, "input": "x"},
    "responses/input_tokens": {"model": GPT, "input": "x"},
    "conversations": {"metadata": {"a": "b"}},
    "vector_stores": {"name": "x"},
    "assistants": {"model": GPT},
    "threads": {},
    "containers": {"name": "x"},
    "videos": {"model": "oa/sora-2", "prompt": "a film"},
}


@pytest.mark.parametrize("path", CALLS)
async def test_a_json_route_passes_with_the_bare_name_of_its_model(path: str) -> None:
    async with world() as here:
        answer = await here.ann.post(path, CALLS[path])
        assert answer.status == 200, answer.body
        seen = here.last()
        expected = {**CALLS[path], "model": CALLS[path].get("model", "").removeprefix("oa/")}
        assert seen.json() == (expected if "model" in CALLS[path] else CALLS[path])
        assert seen.target == f"/v1/{path}"


@pytest.mark.parametrize("path", FORMS)
async def test_the_model_field_of_a_form_decides_and_loses_its_prefix(path: str) -> None:
    async with world() as here:
        form = aiohttp.FormData()
        for name, value in FORMS[path].items():
            if value == "FILE":
                form.add_field(name, b"\x89PNG\r\n--not a boundary\r\n", filename="a.png", content_type="image/png")
            else:
                form.add_field(name, value)
        if path == "videos":  # aiohttp writes a form of texts as urlencoded
            form.add_field("input_reference", b"pixels", filename="a.png", content_type="image/png")
        answer = await here.ann.call("POST", f"/v1/{path}", data=form)
        assert answer.status == 200, answer.body
        seen = here.last()
        body = seen.body or b""
        assert b"oa/" not in body
        assert FORMS[path]["model"].removeprefix("oa/").encode() in body
        assert seen.header("content-length") == str(len(body))


async def test_a_form_without_a_model_goes_to_the_default_upstream_however_long_it_is() -> None:
    async with world(relay={"replay_limit": "64KiB"}) as here:
        container = (await here.ann.post("containers", {"name": "x"})).id
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(bytes(4 << 20)), filename="a.bin")
        made = await here.ann.call("POST", f"/v1/containers/{container}/files", data=form)
        assert made.status == 200, made.body
        assert here.last().size > 4 << 20


async def test_head_requests_are_get_requests_without_a_body() -> None:
    async with world() as here:
        name = await here.ann.upload()
        for path in (f"files/{name}", "models", "models/oa/gpt-5.1", "files"):
            answer = await here.ann.call("HEAD", f"/v1/{path}")
            assert (answer.status, answer.body) == (200, b"")
        assert [arrival.method for arrival in here.oa.requests if f"files/{name}" in arrival.target] == ["HEAD"]


# What is changed in a body

ODD = (
    b' {"messages" :[ {"role":"user","content":"\\u00e9\\ud83d\\ude00 \\/ \xc3\xa9 \\"model\\": \\"oa/x\\""}],\n\t"model"\r\n:  '
    b'"oa/gpt-5.1" , "seed":123456789012345678901234567890, "x_unknown": {"a" :[1.50, -0.0],"model": "oa/gpt-5.1" } ,'
    b'"logit_bias":{"50256":-100}, "stream_options":null,"n":1 }\n '
)


async def test_a_body_arrives_byte_for_byte_but_for_the_prefix_of_its_model() -> None:
    async with world() as here:
        assert (await here.ann.post("chat/completions", ODD)).status == 200
        assert here.last().body == ODD.replace(b'"oa/gpt-5.1" , "seed"', b'"gpt-5.1" , "seed"')
        bare = ODD.replace(b'"oa/gpt-5.1" , "seed"', b'"gpt-5.1" , "seed"')
        assert (await here.ann.post("chat/completions", bare)).status == 200
        assert here.last().body == bare
        escaped = ODD.replace(b'"oa/gpt-5.1" , "seed"', b'"oa\\/gpt\\u002d5.1" , "seed"')
        assert (await here.ann.post("chat/completions", escaped)).status == 200
        assert here.last().body == bare


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b'{"session_id": "s1", %b}', b"{%b}"),
        (b'{%b, "session_id": "s1"}', b"{%b}"),
        (b'{"metadata": {"sessionId": "s1"}, %b}', b"{%b}"),
        (b'{"metadata": {"a": "b", "sessionId": "s1"},%b}', b'{"metadata": {"a": "b"},%b}'),
        (b'{"metadata": {"a": "b"},%b}', b'{"metadata": {"a": "b"},%b}'),
        (b'{"session_id": 5,"metadata":{"sessionId":"x"},%b}', b"{%b}"),
        (b'{"user": "u1",%b}', b'{"user": "u1",%b}'),
    ],
)
async def test_the_session_members_of_a_body_are_for_us_alone(sent: bytes, expected: bytes) -> None:
    rest = b'"model": "%b", "messages": [{"role": "user", "content": "x"}]'
    async with world() as here:
        assert (await here.ann.post("chat/completions", sent % (rest % b"oa/gpt-5.1"))).status == 200
        assert here.last().body == expected % (rest % b"gpt-5.1")


async def test_a_model_that_stands_twice_or_in_escapes_is_read_as_it_is_written_anew() -> None:
    async with world() as here:
        twice = b'{"model": "oa/gpt-4o", "messages": [{"role": "user", "content": "x"}], "model": "oa/gpt-5.1"}'
        assert (await here.ann.post("chat/completions", twice)).status == 200
        seen = here.last().body or b""
        assert seen.count(b'"model"') == 1
        assert json.loads(seen)["model"] == "gpt-5.1"
        escaped = b'{"mod\\u0065l": "oa/gpt-5.1", "messages": [{"role": "user", "content": "x"}]}'
        assert (await here.ann.post("chat/completions", escaped)).status == 200
        assert here.last().json() == {"model": "gpt-5.1", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "members", "expected"),
    [
        ("chat/completions", {"messages": MESSAGES}, {"max_tokens": 50}),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 40}, {"max_tokens": 40}),
        ("chat/completions", {"messages": MESSAGES, "max_tokens": 400}, {"max_tokens": 50}),
        ("chat/completions", {"messages": MESSAGES, "max_completion_tokens": 400}, {"max_completion_tokens": 50}),
        ("completions", {"prompt": "x"}, {"max_tokens": 50}),
        ("responses", {"input": "x"}, {"max_output_tokens": 50}),
        ("responses", {"input": "x", "max_output_tokens": 60}, {"max_output_tokens": 50}),
        ("embeddings", {"input": "x"}, {}),
    ],
)
async def test_a_clients_limit_of_tokens_bounds_and_sets_what_the_route_calls_it(
    path: str, members: dict[str, Any], expected: dict[str, int]
) -> None:
    model = {"completions": "oa/gpt-3.5-turbo-instruct", "embeddings": "oa/text-embedding-3-small"}.get(path, GPT)
    auth = {"tokens": [{"name": "ann", "token": ANN, "max_tokens": 50}]}
    async with world(auth=auth) as here:
        assert (await here.ann.post(path, {"model": model, **members})).status == 200
        limits = {name: value for name, value in here.last().json().items() if name.startswith("max_")}
        assert limits == expected


async def test_a_limit_is_set_under_the_upstreams_own_word_for_it() -> None:
    auth = {"tokens": [{"name": "ann", "token": ANN, "max_tokens": 50}]}
    async with world(auth=auth, oa={"max_tokens_member": "max_completion_tokens"}) as here:
        assert (await here.ann.chat()).status == 200
        assert here.last().json()["max_completion_tokens"] == 50


async def test_an_alias_of_two_upstreams_is_called_by_its_name_at_each() -> None:
    async with world() as other:
        more = {
            "oa2": {"kind": "openai", "base_url": other.url, "keys": list(OA_KEYS), "aliases": {"fast": "gpt-4o-mini"}},
        }
        async with world(oa={"aliases": {"fast": "gpt-5-mini"}}, more=more) as here:
            fault = here.oa.script("*", "error-500")
            other.oa.forget()
            answer = await here.ann.chat("fast", text="to whom?")
            assert answer.json["model"] == "gpt-4o-mini"
            assert fault.used == 2  # once, and once again
            assert {arrival.json()["model"] for arrival in here.oa.requests} == {"gpt-5-mini"}
            assert [arrival.json()["model"] for arrival in other.oa.requests] == ["gpt-4o-mini"]
            limits = [int(arrival.header("content-length") or 0) for arrival in other.oa.requests]
            assert limits == [other.last().size]


# Header fields

SENT = {
    "OpenAI-Organization": "org-of-ann",
    "OpenAI-Project": "proj-of-ann",
    "OpenAI-Beta": "assistants=v2",
    "Cookie": "a=b",
    "X-Session-Id": "s-1",
    "X-Forwarded-For": "10.0.0.9",
    "Via": "1.1 somewhere",
    "Idempotency-Key": "once",
    "x-stainless-lang": "python",
    "x-api-key": BOB,
    "api-key": BOB,
    "X-Session-Token": "x",
}


async def test_the_fields_of_a_request_travel_but_those_that_tell_of_the_client() -> None:
    async with world() as here:
        answer = await here.ann.call("POST", CHAT, {"model": GPT, "messages": MESSAGES}, SENT)
        assert answer.status == 200, answer.body
        seen = {name.lower(): value for name, value in here.last().headers}
        dropped = {"openai-organization", "openai-project", "cookie", "x-session-id", "x-forwarded-for", "via"}
        dropped |= {"x-api-key", "api-key", "x-session-token", "expect", "x-goog-api-key"}
        assert not dropped & set(seen)
        assert seen["authorization"] == f"Bearer {here.last().key}"
        assert (seen["openai-beta"], seen["idempotency-key"], seen["x-stainless-lang"]) == (
            "assistants=v2",
            "once",
            "python",
        )
        assert "gzip" in seen["accept-encoding"]


async def test_no_credential_of_a_client_reaches_an_upstream_from_any_place() -> None:
    async with world(auth={"tokens": TOKENS}) as here:
        places: list[tuple[str, dict[str, str]]] = [
            ("", {"Authorization": f"Bearer {ANN}"}),
            ("", {"Authorization": ANN}),
            ("", {"X-Session-Token": ANN}),
            ("", {"x-api-key": ANN}),
            ("", {"api-key": ANN}),
            (f"?key={ANN}", {}),
            (f"?api_key={ANN}&api-version=1", {}),
            (f"?session_token={ANN}&a=%20b", {}),
            (f"?a=1&k%65y={ANN}", {}),
        ]
        body = {"model": GPT, "messages": MESSAGES}
        here.ann.token = None
        for query, headers in places:
            answer = await here.ann.call("POST", f"/openai/v1/chat/completions{query}", body, headers)
            assert answer.status == 200, (query, headers, answer.body)
            seen = here.last()
            assert ANN not in str(seen.headers) + seen.target
        assert here.oa.requests[6].target == "/v1/chat/completions?api-version=1"
        assert here.oa.requests[7].target == "/v1/chat/completions?a=%20b"


async def test_an_answer_keeps_its_fields_but_those_that_would_speak_for_our_origin() -> None:
    async with world() as here:
        answer = await here.ann.chat()
        headers = {name.lower() for name in answer.headers}
        assert not headers & {"set-cookie", "alt-svc", "strict-transport-security"}
        assert answer.headers["x-ratelimit-remaining-requests"] == "9999"
        assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.headers["openai-version"] == "2020-10-01"


async def test_an_answer_without_a_request_id_gets_ours() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(b'{"choices": []}')

    async with scripted(serving(answer)) as here:
        given = await here.ann.chat()
        assert given.headers["x-request-id"]


async def test_the_answer_of_a_creation_is_asked_for_without_a_coding() -> None:
    async with world() as here:
        await here.ann.respond()
        assert here.last().header("accept-encoding") == "identity"
        await here.ann.chat()
        assert here.last().header("accept-encoding") != "identity"
        await here.ann.chat(store=True)
        assert here.last().header("accept-encoding") == "identity"


# Answers

PIECES = (1, 7, 64, 1 << 16)
EVENTS = b"".join(b'data: {"n":%d}\n\n' % n for n in range(40)) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", PIECES)
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_an_answer_of_any_chunking_arrives_byte_for_byte(size: int, coded: bool, framing: str) -> None:
    body = gzip.compress(EVENTS) if coded else EVENTS
    kind = "text/event-stream" if framing == "chunked" else "application/json"

    async def answer(peer: Peer, seen: Seen) -> None:
        lines = ["HTTP/1.1 200 OK", f"Content-Type: {kind}"]
        lines += ["Content-Encoding: gzip"] if coded else []
        lines += {"chunked": ["Transfer-Encoding: chunked"], "length": [f"Content-Length: {len(body)}"], "close": []}[
            framing
        ]
        await peer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for place in range(0, len(body), size):
            piece = body[place : place + size]
            await (peer.chunk(piece) if framing == "chunked" else peer.write(piece))
        if framing == "chunked":
            await peer.end()
        elif framing == "close":
            peer.close()

    async with scripted(serving(answer)) as here:
        connector = here.proxy.client
        headers = {"Authorization": f"Bearer {ANN}", "Content-Type": "application/json"}
        async with aiohttp.ClientSession(auto_decompress=False) as plain:
            async with plain.post(here.proxy.url + CHAT, data=chat_bytes(), headers=headers) as given:
                assert await given.read() == body
                assert given.headers.get("Content-Encoding") == ("gzip" if coded else None)
        async with connector.post(here.proxy.url + CHAT, data=chat_bytes(), headers=headers) as given:
            assert await given.read() == EVENTS


async def test_a_model_of_a_gemini_upstream_is_asked_where_google_speaks_openai() -> None:
    async with world() as here:
        answer = await here.ann.chat("gemini/gemini-2.5-flash")
        assert answer.text == "You said: hello"
        seen = here.gemini.requests[-1]
        assert seen.target == "/v1beta/openai/chat/completions"
        assert seen.json()["model"] == "gemini-2.5-flash"
        assert seen.header("authorization") == f"Bearer {seen.key}"
        assert seen.key is not None
        assert ANN not in str(seen.headers) + str(seen.body)
        assert not {name.lower() for name, _ in seen.headers} & {"x-goog-api-key", "x-api-key"}
        gone = await here.ann.post("moderations", {"model": "gemini/gemini-2.5-flash", "input": "x"})
        assert gone.status == 404  # Google's own


@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
async def test_a_client_waits_no_longer_than_it_says(name: str) -> None:
    async with world() as here:
        here.oa.script("*", "stall-head")
        answer = await here.ann.call("POST", CHAT, {"model": GPT, "messages": MESSAGES}, {name: "0.2"})
        assert answer.code == (504, "upstream_timeout")


async def test_a_session_keeps_its_key_and_leaves_it_at_once_when_that_rests() -> None:
    async with world() as here:
        ways: list[Any] = [
            here.ann.within("one").chat,
            here.ann.below("/s/one").chat,
            lambda: here.ann.call("POST", f"{CHAT}?session_id=ONE", {"model": GPT, "messages": MESSAGES}),
            lambda: here.ann.chat(session_id="one"),
            lambda: here.ann.chat(metadata={"sessionId": " One "}),
        ]
        met = set()
        for way in ways:
            await here.turn(1)
            answer: Answer = await way()
            assert answer.status == 200
            met.add(here.last().key)
        (first,) = met
        await here.turn(1)
        here.oa.script(str(first), "rate-retry-after", times=1, seconds=30)
        here.oa.forget()
        assert (await here.ann.within("one").chat()).status == 200
        _, moved = here.keys()
        assert moved != first
        for _ in range(3):
            await here.turn(1)
            assert (await here.ann.within("one").chat()).status == 200
            assert here.keys()[-1] == moved
        bobs = [await here.bob.within("one").chat() for _ in range(3)]
        assert {each.status for each in bobs} == {200}


async def test_expect_100_continue_is_answered_when_the_body_is_wanted_and_a_refusal_comes_before_it() -> None:
    body = chat_bytes()
    async with world() as here:
        raw = await here.proxy.raw()
        head = request_bytes(body, CHAT, "Expect: 100-continue", "Content-Type: application/json")[: -len(body)]
        await raw.send(head)
        assert (await raw.head()).startswith(b"HTTP/1.1 100 ")
        await raw.send(body)
        assert (await raw.head()).startswith(b"HTTP/1.1 200 ")
        raw.close()
        for path, token, status in ((CHAT, "wrong", b"401"), ("/v1/nowhere", ANN, b"404"), ("/v1/models", ANN, b"405")):
            raw = await here.proxy.raw()
            await raw.send(request_bytes(body, path, "Expect: 100-continue", token=token)[: -len(body)])
            assert (await raw.head()).split()[1] == status  # and no 100 before it
            raw.close()
        assert len(here.oa.requests) == 1


async def test_concurrent_first_calls_of_a_session_share_one_key() -> None:
    async with world() as here:
        fault = here.oa.script("*", "stall-head")
        calls = [asyncio.create_task(here.ann.within("new").chat()) for _ in range(4)]
        await here.oa.wait_for(4)
        fault.open()
        assert [(await call).status for call in calls] == [200] * 4
        assert len(set(here.keys())) == 1
