"""Which requests are the Gemini surface's, what it refuses, and that everything else passes byte for byte."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession

from balancer.standin.app import StandIn, running
from balancer.surfaces.gemini_target import read_target
from tests.proxy import GENERATE, KEYS, Proxy, Raw, error_of, post_bytes, proxying
from tests.upstream import raw_upstream, serving

MODEL = "/v1beta/models/gemini-2.5-flash"
ONE_KEY = KEYS[:1]

# What is ours ---------------------------------------------------------------------------------------------------------

SHAPES: dict[str, str | None] = {
    "/v1beta/models": "/v1beta/models",
    "/v1/models/m:generateContent": "/v1/models/m:generateContent",
    "/v1alpha/auth_tokens": "/v1alpha/auth_tokens",
    "/v1beta7/models/m": "/v1beta7/models/m",
    "/v1main/newThings/x/parts/y:doIt": "/v1main/newThings/x/parts/y:doIt",
    "/v1beta/new-things/x": "/v1beta/new-things/x",
    "/upload/v1beta/files": "/upload/v1beta/files",
    "/upload/v1beta/environments/E/files/a/b c": None,
    "/upload/v1beta/environments/E/files/a/b%20c": "/upload/v1beta/environments/E/files/a/b%20c",
    "/download/v1beta/files/F:download": "/download/v1beta/files/F:download",
    "/gemini/v1beta/models": "/v1beta/models",
    "/gemini/upload/v1beta/files": "/upload/v1beta/files",
    "/gemini//v1beta/models": "/v1beta/models",
    "//v1beta/models": "/v1beta/models",
    "///gemini/v1beta/models": "/v1beta/models",
    "/models/m:generateContent": "/models/m:generateContent",
    "/files": "/files",
    "http://elsewhere.example/v1beta/models": "/v1beta/models",
    "HTTPS://elsewhere.example:1/gemini/v1beta/models": "/v1beta/models",
    "/v1beta/models/a%2Fb": "/v1beta/models/a%2Fb",
    "/v1beta/models/%zz": "/v1beta/models/%zz",
    "/v1beta/files/f.v1:x?": "/v1beta/files/f.v1:x",
    "": None,
    "/": None,
    "*": None,
    "/v1beta": None,
    "/v1beta/": None,
    "/v1beta//models": None,
    "/v2/models": None,
    "/v1beta/7": None,
    "/newThings/x": None,
    "/openai/v1/models": None,
    "/v1beta/openai": None,
    "/v1beta/openai/chat/completions": None,
    "/gemini/v1beta/openai/models": None,
    "/V1beta/models": None,
    "/Gemini/v1beta/models": None,
    "ftp://h/v1beta/models": None,
    "h:443": None,
    "http://h": None,
    "/v1beta/models/..": None,
    "/v1beta/models/.": None,
    "/v1beta/../v1beta/models": None,
    "/v1beta/models/%2e%2E/x": None,
    "/v1beta/models/.%2e": None,
    "/v1beta/models/a\\b": None,
    "/v1beta/models/a%5cb": None,
    "/v1beta/models/a%00b": None,
    "/v1beta/models/a\tb": None,
    "/v1beta/models/a\x7fb": None,
    "/v1beta/models/...": "/v1beta/models/...",
    "/v1beta/files/a..b": "/v1beta/files/a..b",
}


@pytest.mark.parametrize("target", SHAPES)
def test_targets_are_recognised_by_their_shape(target: str) -> None:
    read = read_target(target)
    assert (None if read is None else read.path) == SHAPES[target]


@pytest.mark.parametrize(
    "target",
    [
        "/v1beta/models/..%2fx",
        "/v1beta/models/x%2F..",
        "/v1beta/models/allowed%2f%2e%2e%2fforbidden:generateContent",
    ],
)
def test_a_way_up_stays_refused_however_its_slash_is_written(target: str) -> None:
    assert read_target(target) is None


@pytest.mark.parametrize(
    ("target", "model", "method"),
    [
        ("/v1beta/models/m:generateContent", "m", "generateContent"),
        ("/v1beta/models/a%2Fb:countTokens?x=:y", "a/b", "countTokens"),
        ("/v1beta/models/m", "m", None),
        ("/v1beta/models", None, None),
        ("/v1beta/tunedModels/t:generateContent", "tunedModels/t", "generateContent"),
        ("/models/m:embedContent", "m", "embedContent"),
        ("/v1beta/files/F:download", None, "download"),
        ("/v1beta/models/m:a/b", "m", None),
        ("/v1beta/models/m:", "m", None),
    ],
)
def test_model_and_method_are_read_from_the_path(target: str, model: str | None, method: str | None) -> None:
    read = read_target(target)
    assert read is not None
    assert (read.model, read.method) == (model, method)


CLAIMS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "a version of Google's": ("/v1beta/models", (), True),
    "plain v1 with Google's key": ("/v1/models", ("x-goog-api-key: k",), True),
    "plain v1 with Google's agent": ("/v1/models", ("x-goog-api-client: genai",), True),
    "plain v1 with a key in the query": ("/v1/models?key=k", (), True),
    "plain v1 with a method": ("/v1/models/m:generateContent", (), True),
    "plain v1 behind the prefix": ("/gemini/v1/models", (), True),
    "plain v1 behind the prefix and a slash more": ("//gemini/v1/models", (), True),
    "plain v1 behind the prefix in absolute form": ("http://h/gemini/v1/models", (), True),
    "uploads of plain v1": ("/upload/v1/files", (), True),
    "plain v1 without a mark": ("/v1/models", (), False),
    "plain v1 with a bearer": ("/v1/files/f", ("Authorization: Bearer k",), False),
    "plain v1 with a colon inside": ("/v1/files/a:b/c", (), False),
    "no version, with Google's key": ("/models/m", ("x-goog-api-key: k",), True),
    "no version, with a method": ("/models/m:generateContent", (), True),
    "no version and no mark": ("/models", (), False),
    "no version, another collection": ("/newThings/x", ("x-goog-api-key: k",), False),
    "the OpenAI paths of Google": ("/v1beta/openai/models", (), False),
}


@pytest.mark.parametrize("case", CLAIMS)
async def test_requests_are_claimed_by_version_prefix_or_mark(case: str) -> None:
    target, headers, ours = CLAIMS[case]
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        head = "\r\n".join([f"GET {target} HTTP/1.1", "Host: p", "Connection: close", *headers])
        answer = await proxy.exchange(head.encode() + b"\r\n\r\n")
        assert [seen.line.split()[1] for seen in upstream.requests if seen.get("x-goog-api-key")] == (
            [urlsplit(target).path.replace("/gemini", "").replace("//", "/")] if ours else []
        )
        assert (int(answer.split()[1]) == 200) or not ours


# What is refused ------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, int]] = {
    "up": ("GET /v1beta/../admin", 404),
    "up, encoded": ("GET /v1beta/%2e%2e/admin", 404),
    "up, half encoded": ("GET /v1beta/.%2E/admin", 404),
    "up at the end": ("GET /v1beta/models/..", 404),
    "up behind upload": ("POST /upload/v1beta/../x", 404),
    "a backslash": ("GET /v1beta/models/a\\..\\b", 404),
    "an encoded backslash": ("GET /v1beta/models/a%5Cb", 404),
    "a NUL": ("GET /v1beta/models/a%00b", 404),
    "another host in the path": ("GET //evil.example/v1beta/models", 404),
    "another host before an @": ("GET /@evil.example/v1beta/models", 404),
    "another scheme": ("GET gopher://evil.example/v1beta/models", 404),
    "authority form": ("CONNECT evil.example:443", 404),
    "a tunnel to a path": ("CONNECT /v1beta/models", 405),
    "asterisk form": ("OPTIONS *", 404),
    "authority form of another method": ("GET evil.example:443", 400),
    "a broken authority": ("GET http://[/v1beta/models", 400),
    "raw UTF-8": ("GET /v1beta/models/\u2603", 400),
    "a blank": ("GET /v1beta/models/a b", 400),
    "TRACE": ("TRACE /v1beta/models", 405),
    "OPTIONS": ("OPTIONS /v1beta/models", 405),
    "PROPFIND": ("PROPFIND /v1beta/models", 405),
    "an unknown method": ("BREW /v1beta/models", 400),
    "a method in lower case": ("get /v1beta/models", 400),
    "no such shape": ("GET /v1beta//models", 404),
    "a version of others": ("GET /v2/models", 404),
}


OF_NOBODY = {
    "another host in the path", "another host before an @", "another scheme", "authority form", "asterisk form",
    "a version of others",
}  # fmt: skip
"""Shapes that no surface knows: the error is in the dialect of the one that is asked last."""


@pytest.mark.parametrize("case", REFUSED)
async def test_what_has_no_shape_of_the_gemini_api_is_refused_in_its_dialect(case: str) -> None:
    line, status = REFUSED[case]
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        request = f"{line} HTTP/1.1\r\nHost: p\r\nx-goog-api-key: k\r\nConnection: close\r\n\r\n"
        whole = await proxy.exchange(request.encode())
        head, _, body = whole.partition(b"\r\n\r\n")
        assert int(head.split()[1]) == status
        assert b"Content-Type: application/json" in head
        if case in OF_NOBODY:
            assert json.loads(body)["error"]["code"] == "unknown_url"
        else:
            assert error_of(body)["code"] == status
        assert (b"\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE" in head) == (status == 405)
        assert not upstream.requests


@pytest.mark.parametrize("target", ["/v1beta/files/a#b", "/v1beta/models/forbidden#:generateContent"])
async def test_a_fragment_is_no_part_of_a_target(target: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        whole = await proxy.exchange(f"GET {target} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
        assert int(whole.split()[1]) in (400, 404)
        assert not upstream.requests


# What passes ----------------------------------------------------------------------------------------------------------

PASSED: dict[str, str] = {
    "/v1beta/models/a%2Fb:generateContent": "/v1beta/models/a%2Fb:generateContent",
    "/v1beta/models/a%2fb%20c%E2%98%83": "/v1beta/models/a%2fb%20c%E2%98%83",
    "/v1beta/models?a=%zz&b=+&c&&d==&e=%2f&f=%E2%98%83&": "/v1beta/models?a=%zz&b=+&c&&d==&e=%2f&f=%E2%98%83&",
    "/v1beta/models?url=http://h/../x&q=a\\b": "/v1beta/models?url=http://h/../x&q=a\\b",
    "/v1beta/models?": "/v1beta/models",
    "/v1beta/models?pageSize=1&key=k&x=y": "/v1beta/models?pageSize=1&x=y",
    "/v1beta/models?%6bey=k&session_id=s": "/v1beta/models",
    "/v1beta/models?Key=k&keys=k": "/v1beta/models?Key=k&keys=k",
    "/gemini/v1beta/newThings/x:doIt?a=1": "/v1beta/newThings/x:doIt?a=1",
    "//v1beta/models": "/v1beta/models",
    "http://elsewhere.example/v1beta/models?a=b": "/v1beta/models?a=b",
    "/v1beta/environments/E/files/a/b/c.txt?alt=media": "/v1beta/environments/E/files/a/b/c.txt?alt=media",
    "/v1beta/files/a;b=c,d@e!$'()*": "/v1beta/files/a;b=c,d@e!$'()*",
}


@pytest.mark.parametrize("target", PASSED)
@pytest.mark.parametrize("prefix", ["", "/a/prefix"])
async def test_targets_arrive_as_they_were_written(target: str, prefix: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url + prefix) as proxy:
            await proxy.exchange(f"GET {target} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
        # A resource that nobody has asked for yet is looked for first.
        assert upstream.requests[-1].line == f"GET {prefix}{PASSED[target]} HTTP/1.1"
        assert upstream.requests[0].get("host") == upstream.url.removeprefix("http://")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_passes_with_and_without_a_body(method: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer(seen.body))) as upstream:
        async with proxying(upstream.url) as proxy:
            raw = await proxy.raw()
            await raw.send(f"{method} /v1beta/models/m HTTP/1.1\r\nHost: p\r\n\r\n".encode())
            assert (await raw.answer())[1] == b""
            body = b'{"odd" : "\\u00e9\xff"}'
            await raw.send(post_bytes(body, "/v1beta/models/m").replace(b"POST", method.encode(), 1))
            assert (await raw.answer())[1] == body
            raw.close()
        assert [seen.line.split()[0] for seen in upstream.requests] == [method, method]
        assert [seen.body for seen in upstream.requests] == [b"", body]


@pytest.mark.parametrize("given", ["0.2", "1", " 1 ", "0", "-1", "nan", "inf", "1e999", "soon", ""])
async def test_the_clients_own_timeout_travels_on_and_no_value_of_it_breaks_a_call(given: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}", GENERATE, f"X-Server-Timeout: {given}"))
        assert (await raw.answer())[0].startswith(b"HTTP/1.1 200")
        assert upstream.requests[0].get("x-server-timeout") == given.strip()
        raw.close()


async def test_the_clients_own_timeout_bounds_the_wait_for_a_resting_key() -> None:
    standin = StandIn(ONE_KEY)
    standin.script("*", "rate-minute", seconds=1, times=1)
    async with running(standin) as url, proxying(url, ONE_KEY, relay={"max_wait": "30s"}) as proxy:
        async with proxy.post(headers={"X-Server-Timeout": "0.5"}) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            details = error_of(await response.read())["details"]
            assert "RetryInfo" in details[0]["@type"]
        async with proxy.post(headers={"X-Server-Timeout": "5"}) as response:
            assert response.status == 200
        assert len(standin.requests) == 2


# Models ---------------------------------------------------------------------------------------------------------------

TOKENS = {"tokens": [{"name": "narrow", "token": "narrow-token", "models": ["gemini-2.5-flash*"]}]}
RENAMED: dict[str, Any] = {
    "aliases": {"fast": "gemini-2.5-flash", "m": "gemini-2.5-flash", "pro": "gemini-2.5-pro"},
    "disabled_models": ["gemini-1.*", "gemini-2.5-pro"],
}


async def ask(proxy: Proxy, model: str, token: str = "any", method: str = ":generateContent") -> tuple[int, bytes]:
    raw = await proxy.raw()
    request = post_bytes(b'{"contents":[]}', f"/v1beta/models/{model}{method}")
    await raw.send(request.replace(b"x-goog-api-key: any", f"x-goog-api-key: {token}".encode()))
    head, body = await raw.answer()
    raw.close()
    return int(head.split()[1]), body


@pytest.mark.parametrize("alias", ["fast", "m", "fa%73t"])
async def test_an_alias_reaches_the_upstream_as_the_models_own_name(alias: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, upstreams={"gemini": RENAMED}) as proxy:
            assert (await ask(proxy, alias))[0] == 200
        assert upstream.requests[0].line == "POST /v1beta/models/gemini-2.5-flash:generateContent HTTP/1.1"


@pytest.mark.parametrize("model", ["gemini-1.5-pro", "gemini-2.5-pro", "pro", "gemini-2.5-pr%6f"])
async def test_a_model_that_is_switched_off_is_a_400_and_reaches_no_upstream(model: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, upstreams={"gemini": RENAMED}) as proxy:
            status, body = await ask(proxy, model)
            assert status == 400
            assert error_of(body)["status"] == "FAILED_PRECONDITION"
        assert not upstream.requests


@pytest.mark.parametrize("model", ["gemini-2.5-pro", "x/gemini-2.5-flash", "gemini-2.5-Flash", "%67emini-2.5-pro"])
async def test_a_model_that_the_client_may_not_use_is_a_403_and_reaches_no_upstream(model: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, auth=TOKENS) as proxy:
            status, body = await ask(proxy, model, "narrow-token")
            assert status == 403
            assert error_of(body)["status"] == "PERMISSION_DENIED"
            assert (await ask(proxy, "gemini-2.5-flash-lite", "narrow-token"))[0] == 200
            assert (await ask(proxy, "gemini-2.5-fl%61sh", "narrow-token"))[0] == 200
        assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    "model", ["/gemini-2.5-pro", "//gemini-2.5-pro", "gemini-2.5-flash%2f..%2fgemini-2.5-pro", ":/gemini-2.5-pro"]
)
async def test_no_spelling_of_the_path_hides_a_model_from_the_allow_list(model: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, auth=TOKENS) as proxy:
            assert (await ask(proxy, model, "narrow-token"))[0] in (400, 403, 404)
        assert not upstream.requests


async def test_an_encoded_colon_hides_no_model_that_is_switched_off() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, upstreams={"gemini": RENAMED}) as proxy:
            assert (await ask(proxy, "gemini-2.5-pro", method="%3AgenerateContent"))[0] in (400, 404)
        assert not upstream.requests


async def test_a_model_that_no_upstream_lists_is_a_404() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, upstreams={"gemini": {"models": ["gemini-*"]}}) as proxy:
            status, body = await ask(proxy, "other-model")
            assert (status, error_of(body)["status"]) == (404, "NOT_FOUND")
        assert not upstream.requests


# Bad input (gemini.md 7); limits of size and time are in tests/faults -------------------------------------------------


async def test_every_key_disabled_is_a_503_that_names_fingerprints_and_no_key() -> None:
    standin = StandIn(KEYS)
    standin.script("*", "key-invalid")
    async with running(standin) as url, proxying(url) as proxy, proxy.post() as response:
        assert response.status == 503
        body = await response.read()
        assert error_of(body)["status"] == "UNAVAILABLE"
        assert "API key not valid" in body.decode()
        for key in await proxy.keys():
            assert key["fingerprint"] in body.decode()
        assert not any(key.encode() in body for key in KEYS)
        assert len(standin.requests) == 3


async def test_every_key_resting_past_the_longest_wait_is_a_429_that_tells_when() -> None:
    standin = StandIn(KEYS)
    standin.script("*", "rate-minute", seconds=17)
    async with running(standin) as url, proxying(url) as proxy, proxy.post() as response:
        assert response.status == 429
        assert 15 <= int(response.headers["Retry-After"]) <= 17
        error = error_of(await response.read())
        assert error["status"] == "RESOURCE_EXHAUSTED"
        assert any(detail["@type"].endswith("RetryInfo") for detail in error["details"])
        assert len(standin.requests) == 3


async def test_an_upstream_that_is_not_there_is_a_502() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    async with proxying(url, relay={"attempts": 1}) as proxy, proxy.post() as response:
        assert response.status == 502
        assert error_of(await response.read())["status"] == "UNAVAILABLE"


async def test_no_upstream_of_the_kind_is_a_404() -> None:
    kind: dict[str, Any] = {"upstreams": {"gemini": {"kind": "openai"}}}
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream,
        proxying(upstream.url, **kind) as proxy,
    ):
        async with proxy.post() as response:
            assert response.status == 404
            assert error_of(await response.read())["status"] == "NOT_FOUND"
        assert not upstream.requests


async def test_a_broken_chunk_of_a_body_is_a_400() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        request = post_bytes(b"", GENERATE, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        await raw.send(request + b"3\r\nabc\r\n")
        await asyncio.sleep(0)
        await raw.send(b"nonsense\r\n")
        whole = await raw.rest()
        assert whole.split()[1] == b"400"
        assert error_of(whole.partition(b"\r\n\r\n")[2])["status"] == "INVALID_ARGUMENT"
        assert not upstream.requests
        raw.close()


async def test_an_expectation_that_nobody_can_meet_is_a_417() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        whole = await proxy.exchange(post_bytes(b"{}", GENERATE, "Expect: the-moon"))
        assert whole.startswith(b"HTTP/1.1 417")
        error_of(whole.partition(b"\r\n\r\n")[2])
        assert not upstream.requests


async def test_error_answers_keep_the_connection_and_name_the_request() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer(b"fine"))) as upstream:
        async with proxying(upstream.url) as proxy:
            raw = await proxy.raw()
            await raw.send(post_bytes(b"{}", "/v1beta//no", "X-Request-Id: mine-1"))
            head, _ = await raw.answer()
            assert head.startswith(b"HTTP/1.1 404")
            assert b"\r\nX-Request-Id: mine-1\r\n" in head
            await raw.send(post_bytes(b"{}", GENERATE, "X-Request-Id: bad id\tof mine"))
            head, body = await raw.answer()
            assert body == b"fine"
            assert b"\r\nX-Request-Id: " in head
            assert b"of mine" not in head
            raw.close()


# The stand-in directly, and through the proxy -------------------------------------------------------------------------

HELLO: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Grüß dich \u2603 \U0001f600"}]}]}
EMBED: dict[str, Any] = {"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "hello"}]}}
CALLS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "generateContent": ("POST", f"{MODEL}:generateContent", HELLO),
    "generateContent of another version": ("POST", "/v1/models/gemini-2.5-flash:generateContent", HELLO),
    "a large answer": ("POST", "/v1beta/models/stand-in-bytes-3MiB:generateContent", HELLO),
    "streamGenerateContent": ("POST", f"{MODEL}:streamGenerateContent?alt=sse", HELLO),
    "streamGenerateContent as an array": ("POST", f"{MODEL}:streamGenerateContent", HELLO),
    "a long stream": ("POST", "/v1beta/models/stand-in-events-200:streamGenerateContent?alt=sse", HELLO),
    "countTokens": ("POST", f"{MODEL}:countTokens", HELLO),
    "embedContent": ("POST", "/v1beta/models/gemini-embedding-001:embedContent", EMBED),
    "batchEmbedContents": (
        "POST",
        "/v1beta/models/gemini-embedding-001:batchEmbedContents",
        {"requests": [EMBED, EMBED]},
    ),
    "predict": ("POST", "/v1beta/models/imagen-4.0-generate-001:predict", {"instances": [{"prompt": "a cat"}]}),
    "models.list": ("GET", "/v1beta/models?pageSize=3", None),
    "models.get": ("GET", MODEL, None),
    "an unknown model": ("POST", "/v1beta/models/no-such-model:generateContent", HELLO),
    "an unknown model in a stream": ("POST", "/v1beta/models/no-such-model:streamGenerateContent?alt=sse", HELLO),
    "a body without contents": ("POST", f"{MODEL}:generateContent", {}),
}


async def exchange(url: str, call: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, what both sides send of the head, and the body as it came."""
    method, target, content = CALLS[call]
    body = b"" if content is None else json.dumps(content, ensure_ascii=False).encode()
    request = post_bytes(body, target, "Content-Type: application/json").replace(b"POST", method.encode(), 1)
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 24)
    raw = Raw(reader, writer)
    await raw.send(request.replace(b"x-goog-api-key: any", f"x-goog-api-key: {KEYS[0]}\r\nConnection: close".encode()))
    head, _, rest = (await raw.rest()).partition(b"\r\n\r\n")
    raw.close()
    first, *lines = head.decode().split("\r\n")
    fields = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    fields = [field for field in fields if field[0] not in ("date", "x-request-id", "connection", "keep-alive")]
    if ("transfer-encoding", "chunked") in fields:
        rest = _unchunked(rest)
    return int(first.split()[1]), sorted(fields), rest


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        whole += data[:length]
        if length == 0:
            assert data == b"\r\n"
            return whole
        data = data[length + 2 :]


@pytest.mark.parametrize("call", CALLS)
async def test_an_answer_through_the_proxy_is_the_upstreams_own_byte_for_byte(call: str) -> None:
    async with running(StandIn(ONE_KEY)) as url, proxying(url, ONE_KEY) as proxy:
        direct, relayed = await exchange(url, call), await exchange(proxy.url, call)
        assert relayed == direct


async def test_a_request_through_the_proxy_is_the_clients_own_byte_for_byte() -> None:
    standin = StandIn(ONE_KEY)
    async with running(standin) as url, proxying(url, ONE_KEY) as proxy:
        await exchange(url, "generateContent")
        await exchange(proxy.url, "generateContent")
        direct, relayed = standin.requests
        assert (relayed.method, relayed.target, relayed.body) == (direct.method, direct.target, direct.body)
        fields = {(name.lower(), value) for name, value in relayed.headers if name.lower() != "host"}
        own = {(name.lower(), value) for name, value in direct.headers if name.lower() not in ("host", "connection")}
        assert fields == own


async def test_calls_go_to_the_keys_in_turn() -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, proxying(url) as proxy:
        for _ in range(6):
            async with proxy.post() as response:
                assert response.status == 200
        keys = [arrival.key for arrival in standin.requests]
        assert sorted(key for key in keys[:3] if key) == sorted(KEYS)
        assert keys[:3] == keys[3:]


async def test_the_public_pages_need_nothing_and_tell_nothing() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, auth={"tokens": "team=the-right-token"}) as proxy, ClientSession() as client:
            for path, said in (("/healthz", "ok"), ("/readyz", "ready"), ("/readyz?verbose=1", "ready")):
                async with client.get(proxy.url + path) as response:
                    assert response.status == 200
                    assert await response.json() == {"status": said}
        assert not upstream.requests


async def test_readiness_tells_that_no_key_is_left() -> None:
    standin = StandIn(ONE_KEY)
    standin.script("*", "key-expired")
    async with running(standin) as url, proxying(url, ONE_KEY) as proxy:
        async with proxy.post() as response:
            assert response.status == 503
        async with proxy.get("/readyz") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert await response.json() == {"status": "not ready", "reason": "no upstream has a usable key"}
        async with proxy.get("/healthz") as response:
            assert response.status == 200
