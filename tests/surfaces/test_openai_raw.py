"""Paths of one upstream as they are (`/proxy/{upstream}/…`), and those that it adds to the API, in Anthropic's dialect."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.proxy import KEYS
from tests.surfaces.openai_calls import ANN, BOB, MESSAGES, OA_KEYS, TOKENS, Answer, request_bytes, scripted, world
from tests.upstream import Peer, Seen, serving

RAW = {"raw": True}
ODD = b' {"model":"gpt-5.1", "session_id" : "kept", "messages":[{"role":"user","content":"x"}],"seed":1.0}\n'


async def echo(peer: Peer, seen: Seen) -> None:
    """What arrived, in a JSON object."""
    await peer.answer(
        json.dumps({"line": seen.line, "body": seen.body.decode(), "headers": dict(seen.headers)}).encode()
    )


# /proxy/{upstream}


async def test_a_raw_path_is_unknown_unless_its_upstream_opens_it() -> None:
    async with world(
        more={"globbed": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "keys": ["sk-k-000000001"]}}
    ) as here:
        for path in ("/proxy/oa/models", "/proxy/gemini/v1beta/models", "/proxy/nobody/x", "/proxy/", "/proxy/oa"):
            for method in ("GET", "POST"):
                answer = await here.ann.call(method, path)
                assert answer.code == (404, "unknown_url")
        assert not here.oa.requests


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_path_query_and_body_of_a_raw_request_arrive_unchanged(method: str) -> None:
    async with scripted(serving(echo), oa=RAW) as here:
        path = "/proxy/oa/any/p%61th/%E4%BD%A0;v=1?a=1&b=%20x&&c"
        body = None if method == "GET" else ODD
        answer = await here.ann.call(
            method, path, body, {"X-Own": "kept", "OpenAI-Organization": "org", "Cookie": "a=b"}
        )
        seen = answer.json
        assert seen["line"] == f"{method} /v1/any/p%61th/%E4%BD%A0;v=1?a=1&b=%20x&&c HTTP/1.1"
        assert seen["body"] == (ODD.decode() if body else "")
        headers = {name.lower(): value for name, value in seen["headers"].items()}
        assert headers["authorization"] in {f"Bearer {key}" for key in OA_KEYS}
        assert headers["x-own"] == "kept"
        assert not {"openai-organization", "cookie"} & set(headers)


async def test_a_raw_request_keeps_its_content_coding_and_loses_every_credential() -> None:
    async with world(oa=RAW) as here:
        coded = gzip.compress(ODD)
        headers = {"Content-Encoding": "gzip", "x-api-key": ANN, "Authorization": ""}
        answer = await here.ann.call("POST", f"/proxy/oa/chat/completions?key={BOB}&a=1&session_id=s", coded, headers)
        seen = here.last()
        assert seen.body == coded
        assert seen.target == "/v1/chat/completions?a=1"
        assert ANN not in str(seen.headers)
        assert answer.status == 400  # the stand-in reads no gzip: its own words
        assert "parse" in answer.error["message"]


async def test_a_raw_call_of_a_gemini_upstream_has_googles_key_field() -> None:
    async with world(more={"gemini": RAW}) as here:
        answer = await here.ann.call("GET", "/proxy/gemini/v1beta/models?pageSize=2")
        assert len(answer.json["models"]) == 2
        seen = here.gemini.requests[-1]
        assert seen.header("x-goog-api-key") in KEYS
        assert seen.header("authorization") is None


async def test_globs_open_what_they_match_and_nothing_else() -> None:
    async with world(oa={"raw": ["/models*", "/files/*/content"]}) as here:
        assert (await here.ann.call("GET", "/proxy/oa/models")).json["object"] == "list"
        assert (await here.ann.call("GET", "/proxy/oa/models/gpt-5.1")).status == 200
        assert (
            (await here.ann.call("GET", "/proxy/oa/files/file-1/content")).error["message"].startswith("No such File")
        )
        for path in ("/files", "/chat/completions", "", "/", "/files/file-1"):
            assert (await here.ann.call("GET", f"/proxy/oa{path}")).code == (404, "unknown_url")


@pytest.mark.parametrize(
    "path",
    [
        "/../x",
        "/a/../x",
        "/a/./x",
        "/a//x",
        "//x",
        "/a\\x",
        "/%2e%2e/x",
        "/a/%2E./x",
        "/a%2f..%2fx",
        "/a%5cx",
        "/a%2f%2fx",
        "/..",
        "/a/..",
    ],
)
@pytest.mark.parametrize("upstream", ["oa", "closed"])
async def test_a_path_that_could_lead_out_is_refused(path: str, upstream: str) -> None:
    async with world(oa=RAW) as here:
        told = await here.proxy.exchange(
            request_bytes(None, f"/proxy/{upstream}{path}", "Connection: close", method="GET")
        )
        assert told.startswith(b"HTTP/1.1 400 ")
        assert json.loads(told.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert not here.oa.requests


async def test_the_host_is_the_configured_one_whatever_the_request_says() -> None:
    async with world(oa=RAW) as here:
        raw = (
            "GET http://elsewhere.example/proxy/oa/models HTTP/1.1\r\nHost: elsewhere.example\r\nConnection: close\r\n"
        )
        told = await here.proxy.exchange(f"{raw}Authorization: Bearer {ANN}\r\n\r\n".encode())
        assert told.startswith(b"HTTP/1.1 200 ")
        host = here.last().header("host") or ""
        assert here.url == f"http://{host}/v1"


async def test_a_client_with_an_allow_list_names_a_model_that_is_on_it() -> None:
    auth = {"tokens": [{"name": "ann", "token": ANN, "models": ["oa/gpt-4*"]}, TOKENS[1]]}
    async with world(oa=RAW, auth=auth) as here:

        async def asked(body: Any, method: str = "POST") -> Answer:
            return await here.ann.call(method, "/proxy/oa/chat/completions", body)

        assert (await asked({"model": "gpt-4o", "messages": MESSAGES})).status == 200
        assert (await asked({"model": "gpt-5.1", "messages": MESSAGES})).code == (403, "model_not_allowed")
        assert (await asked({"messages": MESSAGES})).code == (400, "missing_required_parameter")
        assert (await asked(b'{"model": "gpt-5.1", "model": "gpt-4o"}')).code == (400, "missing_required_parameter")
        assert (await asked(b'{"mod\\u0065l": "gpt-4o"}')).code == (400, "missing_required_parameter")
        assert (await asked(b"no json")).code == (400, "invalid_json")
        assert (await asked(None, "GET")).code == (400, "invalid_json")
        assert len(here.oa.requests) == 1
        assert here.proxy.server.runtime.budget.used == 0  # a body that was refused is not kept
        assert (await here.bob.call("GET", "/proxy/oa/models")).status == 200


async def test_raw_calls_of_a_session_share_a_key() -> None:
    async with world(oa=RAW) as here:
        for number in range(4):
            await here.turn(number % 2)
            assert (await here.ann.call("GET", "/s/mine/proxy/oa/models")).status == 200
            assert (await here.ann.within("mine").call("GET", "/proxy/oa/models")).status == 200
            assert (await here.ann.call("GET", "/proxy/oa/models?session_id=mine")).status == 200
        assert len({arrival.key for arrival in here.oa.requests if arrival.method == "GET"}) == 1


async def test_a_raw_refusal_moves_to_another_key_and_a_raw_error_passes() -> None:
    async with world(oa=RAW) as here:
        met = here.oa.script("*", "key-invalid", times=1)
        assert (await here.ann.call("GET", "/proxy/oa/models")).status == 200
        assert met.used == 1
        here.oa.script("*", "error-503")
        assert (await here.ann.call("GET", "/proxy/oa/models")).status == 503


# Paths that an upstream adds

CLAUDE = {
    "kind": "openai",
    "key_header": "x-api-key",
    "models": ["claude-opus"],
    "paths": ["/messages", "/messages/count_tokens"],
}
VERSION = {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-1"}
ASKED: dict[str, Any] = {"model": "claude-opus", "max_tokens": 100, "messages": MESSAGES}


def claude(**more: Any) -> dict[str, Any]:
    return {"standin": {"key_header": "x-api-key"}, "oa": {**CLAUDE, **more}}


async def test_messages_pass_to_the_upstream_that_adds_them_with_its_key_alone() -> None:
    async with world(**claude()) as here:
        for model in ("claude-opus", "oa/claude-opus"):
            answer = await here.ann.call("POST", "/v1/messages", {**ASKED, "model": model}, VERSION)
            assert answer.json["content"][0]["text"] == "You said: hello"
            seen = here.last()
            assert seen.header("x-api-key") in OA_KEYS
            assert seen.header("authorization") is None
            assert (seen.header("anthropic-version"), seen.header("anthropic-beta")) == ("2023-06-01", "tools-1")
            assert seen.json() == ASKED
        counted = await here.ann.call("POST", "/v1/messages/count_tokens", ASKED, VERSION)
        assert counted.json["input_tokens"] > 0
        async with here.ann.stream("messages", {**ASKED, "stream": True}, **VERSION) as streamed:
            assert (await streamed.read()).endswith(b'{"type":"message_stop"}\n\n')


async def test_a_clients_credential_may_stand_where_anthropics_sdk_puts_it() -> None:
    async with world(**claude()) as here:
        here.ann.token = None
        answer = await here.ann.call("POST", "/v1/messages", ASKED, {**VERSION, "x-api-key": ANN})
        assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind"),
    [
        (ASKED, {"Authorization": "Bearer wrong"}, 401, "authentication_error"),
        ({**ASKED, "model": "nope"}, {}, 404, "not_found_error"),
        ({"messages": MESSAGES}, {}, 400, "invalid_request_error"),
        (b"{", {}, 400, "invalid_request_error"),
    ],
)
async def test_our_own_errors_there_are_anthropics(body: Any, headers: dict[str, str], status: int, kind: str) -> None:
    async with world(**claude()) as here:
        answer = await here.ann.call("POST", "/v1/messages", body, headers)
        assert answer.status == status
        assert set(answer.json) == {"type", "error"}
        assert answer.json["type"] == "error"
        assert set(answer.json["error"]) == {"type", "message"}
        assert answer.json["error"]["type"] == kind
        assert not here.oa.requests


async def test_what_the_upstream_refuses_there_comes_in_its_own_words() -> None:
    async with world(**claude()) as here:
        answer = await here.ann.call("POST", "/v1/messages", {"model": "claude-opus", "messages": MESSAGES}, VERSION)
        assert answer.status == 400
        assert answer.json["error"]["message"] == "max_tokens: Field required"


async def test_resting_keys_are_told_of_in_anthropics_words_too() -> None:
    async with world(**claude()) as here:
        here.oa.script("*", "rate-retry-after", seconds=20)
        answer = await here.ann.call("POST", "/v1/messages", ASKED, VERSION)
        assert (answer.status, answer.json["error"]["type"]) == (429, "rate_limit_error")
        assert answer.headers["Retry-After"] == "20"


async def test_a_path_that_nobody_adds_for_this_model_is_unknown() -> None:
    more = {
        "plain": {
            "kind": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "keys": ["sk-k-000000001"],
            "models": ["gpt-x"],
        }
    }
    async with world(more=more, **claude()) as here:
        assert (await here.ann.call("POST", "/v1/messages", {**ASKED, "model": "plain/gpt-x"})).status == 404
        assert (await here.ann.call("POST", "/v1/messages/batches", ASKED)).code == (404, "unknown_url")
        wrong = await here.ann.call("GET", "/v1/messages")
        assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")


async def test_a_limit_of_tokens_lowers_what_a_message_asks_for() -> None:
    auth = {"tokens": [{"name": "ann", "token": ANN, "max_tokens": 50}]}
    async with world(auth=auth, **claude()) as here:
        assert (await here.ann.call("POST", "/v1/messages", ASKED, VERSION)).status == 200
        assert here.last().json()["max_tokens"] == 50


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
async def test_a_key_is_sent_bare_in_the_field_that_its_upstream_wants(name: str) -> None:
    async with world(standin={"key_header": name}, oa={"key_header": name}) as here:
        assert (await here.ann.chat()).status == 200
        assert here.last().header(name) in OA_KEYS
        assert here.last().header("authorization") is None
