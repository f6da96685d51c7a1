"""Who may call: every place of a credential, their order, and callers without one."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.proxy import GENERATE, KEYS, Proxy, error_of, post_bytes, proxying
from tests.upstream import RawUpstream, raw_upstream, serving

RIGHT, OTHER, WRONG = "the-right-token", "the-other-token", "no-token-at-all"
TWO: dict[str, Any] = {"tokens": f"team={RIGHT},other={OTHER}"}

Given = tuple[str, tuple[str, ...]]
"""A query and header lines."""


async def call(proxy: Proxy, query: str = "", *headers: str, host: str = "proxy") -> tuple[int, bytes, bytes]:
    """Status, head and body of one call that carries these and no other credential."""
    raw = await proxy.raw()
    request = post_bytes(b"{}", f"{GENERATE}{query}", *headers).replace(b"x-goog-api-key: any\r\n", b"")
    await raw.send(request.replace(b"Host: proxy", f"Host: {host}".encode()))
    head, body = await raw.answer()
    raw.close()
    return int(head.split()[1]), head, body


def upstreaming() -> Any:
    return raw_upstream(serving(lambda peer, seen: peer.answer()))


def clients(log: Path) -> list[str]:
    """Who called, by the access log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["client"] for line in lines if line["event"] == "request"]


# Places -------------------------------------------------------------------------------------------------------------------

PLACES: dict[str, Given] = {
    "a bearer": ("", (f"Authorization: Bearer {RIGHT}",)),
    "a bearer in odd case": ("", (f"authorization: bEARER   {RIGHT}  ",)),
    "a bare Authorization": ("", (f"Authorization: {RIGHT}",)),
    "X-Session-Token": ("", (f"X-Session-Token: {RIGHT}",)),
    "session_token": (f"?session_token={RIGHT}", ()),
    "x-goog-api-key": ("", (f"X-Goog-Api-Key:  {RIGHT} ",)),
    "x-api-key": ("", (f"x-api-key: {RIGHT}",)),
    "api-key": ("", (f"api-key: {RIGHT}",)),
    "key": (f"?alt=sse&key={RIGHT}", ()),
    "an encoded key": ("?%6Bey=the%2Dright%2dtoken", ()),
    "api_key": (f"?api_key=+{RIGHT}+", ()),
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_token_is_found_in_every_place_and_travels_no_further(place: str) -> None:
    query, headers = PLACES[place]
    async with upstreaming() as upstream, proxying(upstream.url, KEYS[:1], auth=TWO) as proxy:
        assert (await call(proxy, query, *headers))[0] == 200
        seen = upstream.requests[0]
        assert seen.all("x-goog-api-key") == [KEYS[0]]
        assert RIGHT not in seen.line
        assert "%2Dright" not in seen.line
        assert not any(RIGHT in value for _, value in seen.headers)


@pytest.mark.parametrize("place", PLACES)
async def test_a_wrong_token_is_refused_in_every_place_from_loopback_too(place: str) -> None:
    query, headers = PLACES[place]
    query = query.replace("right", "wrong").replace("%2Dright", "%2Dwrong")
    wrong = [line.replace(RIGHT, WRONG) for line in headers]
    async with upstreaming() as upstream:
        async with proxying(upstream.url, auth=TWO | {"exempt_loopback": True}) as proxy:
            assert_refused(await call(proxy, query, *wrong), "INVALID_API_KEY", upstream)


def assert_refused(answer: tuple[int, bytes, bytes], reason: str, upstream: RawUpstream) -> None:
    status, head, body = answer
    assert status == 401, head
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in head
    error = error_of(body)
    assert error["status"] == "UNAUTHENTICATED"
    assert error["details"][-1]["reason"] == reason
    assert not upstream.requests


ABSENT: dict[str, Given] = {
    "nothing": ("", ()),
    "blank places": ("?key=&api_key=%20&session_token=+", ("x-goog-api-key:", "x-api-key:  ", "Authorization:")),
    "a scheme alone": ("", ("Authorization: Bearer",)),
    "a scheme and blanks": ("", ("Authorization: Bearer    ",)),
    "Basic": ("", ("Authorization: Basic dGVhbTp0aGUtcmlnaHQtdG9rZW4=",)),
    "Digest": ("", ('Authorization: Digest username="team"',)),
    "Negotiate": ("", ("Authorization: NEGOTIATE abc",)),
    "Negotiate alone": ("", ("Authorization: Negotiate",)),
    "Token": ("", ("Authorization: Token auth_tokens/abc",)),
    "other names": (f"?Key={RIGHT}&token={RIGHT}", (f"X-Token: {RIGHT}", f"Proxy-Authorization: Bearer {RIGHT}")),
    "a cookie": ("", (f"Cookie: key={RIGHT}",)),
}


@pytest.mark.parametrize("case", ABSENT)
async def test_what_is_no_credential_counts_as_none(case: str) -> None:
    query, headers = ABSENT[case]
    async with upstreaming() as upstream:
        async with proxying(upstream.url, auth=TWO) as proxy:
            assert_refused(await call(proxy, query, *headers), "MISSING_API_KEY", upstream)
        async with proxying(upstream.url, auth=TWO | {"exempt_loopback": True}) as proxy:
            assert (await call(proxy, query, *headers))[0] == 200


PLACED = [
    "Authorization",
    "X-Session-Token",
    "session_token",
    "x-goog-api-key",
    "x-api-key",
    "api-key",
    "key",
    "api_key",
]


def at(place: str, token: str) -> Given:
    if "_" in place or place == "key":
        return f"{place}={token}", ()
    return "", (f"{place}: {token}",)


@pytest.mark.parametrize(("one", "next_one"), list(itertools.pairwise(PLACED)))
async def test_the_first_valid_credential_names_the_caller(one: str, next_one: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    tokens = [(RIGHT, OTHER), (OTHER, RIGHT), (WRONG, OTHER), (RIGHT, WRONG)]
    logging = {"level": "info", "file": str(log)}
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO, logging=logging) as proxy:
        for first, second in tokens:
            query, headers = at(next_one, second)
            earlier, ahead = at(one, first)
            # The later place stands first on the wire: the order of the rule counts, not that of the request.
            answer = await call(proxy, "?" + "&".join(filter(None, (query, earlier))), *headers, *ahead)
            assert answer[0] == 200
    assert clients(log) == ["team", "other", "other", "team"]


async def test_many_credentials_and_none_valid_are_refused() -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        headers = [f"{place}: {WRONG}" for place in ("Authorization", "x-goog-api-key", "x-api-key")]
        assert_refused(await call(proxy, f"?key={WRONG}", *headers), "INVALID_API_KEY", upstream)


@pytest.mark.parametrize("token", [RIGHT.upper(), RIGHT[:-1], f"{RIGHT}x", f"team={RIGHT}", "team", f'"{RIGHT}"'])
async def test_what_is_nearly_a_token_is_none(token: str) -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        assert_refused(await call(proxy, "", f"x-goog-api-key: {token}"), "INVALID_API_KEY", upstream)


# Tokens of the configuration ------------------------------------------------------------------------------------------


async def test_a_token_may_be_configured_as_its_digest_and_the_digest_itself_is_none(tmp_path: Path) -> None:
    log, digest = tmp_path / "log", hashlib.sha256(RIGHT.encode()).hexdigest()
    tokens = {"tokens": [{"name": "hashed", "token": f"sha256:{digest.upper()}"}, {"token": OTHER}]}
    logging = {"level": "info", "file": str(log)}
    async with upstreaming() as upstream, proxying(upstream.url, auth=tokens, logging=logging) as proxy:
        for wrong in (f"sha256:{digest}", digest):
            assert_refused(await call(proxy, "", f"x-goog-api-key: {wrong}"), "INVALID_API_KEY", upstream)
        assert (await call(proxy, "", f"x-goog-api-key: {RIGHT}"))[0] == 200
        assert (await call(proxy, "", f"x-goog-api-key: {OTHER}"))[0] == 200
    assert clients(log)[2:] == ["hashed", hashlib.sha256(OTHER.encode()).hexdigest()[:8]]


async def test_a_token_outside_ascii_is_compared_by_its_bytes() -> None:
    token = "schlüssel-☃"
    digest = hashlib.sha256(token.encode()).hexdigest()
    async with upstreaming() as upstream, proxying(upstream.url, auth={"tokens": f"sha256:{digest}"}) as proxy:
        assert (await call(proxy, "", f"x-goog-api-key: {token}"))[0] == 200
        assert (await call(proxy, "?key=schl%C3%BCssel-%E2%98%83"))[0] == 200
        assert (await call(proxy, "?key=schl%FCssel-%E2%98%83"))[0] == 401


# Hostile credentials --------------------------------------------------------------------------------------------------

HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "bytes that are no UTF-8": (b"", b"x-goog-api-key: \xff\xfe\x80abc"),
    "bytes that are no UTF-8, in a bearer": (b"", b"Authorization: Bearer \xed\xa0\x80"),
    "a surrogate in the query": (b"?key=%ED%A0%80", b"X-Y: 1"),
    "a broken escape in the query": (b"?key=%zz%", b"X-Y: 1"),
    "a NUL in the query": (b"?key=%00", b"X-Y: 1"),
    "thirty KiB": (b"", b"x-goog-api-key: " + b"k" * 30_000),
    "thirty KiB in the query": (b"?key=" + b"k" * 30_000, b"X-Y: 1"),
    "a thousand members": (b"?" + b"key=k&" * 1000, b"X-Y: 1"),
    "one MiB": (b"", b"x-goog-api-key: " + b"k" * (1 << 20)),
    "one MiB in the query": (b"?key=" + b"k" * (1 << 20), b"X-Y: 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("tokens", [True, False])
async def test_hostile_credentials_are_refused_in_dialect_and_reach_no_upstream(case: str, tokens: bool) -> None:
    query, header = HOSTILE[case]
    async with upstreaming() as upstream:
        async with proxying(upstream.url, auth=TWO if tokens else {}) as proxy:
            request = post_bytes(b"{}", GENERATE, "X-Header: here", "Connection: close")
            request = request.replace(b" HTTP/1.1", query + b" HTTP/1.1", 1).replace(b"X-Header: here", header)
            whole = await proxy.exchange(request.replace(b"x-goog-api-key: any\r\n", b""))
            status = int(whole.split()[1])
            assert status in ({400, 401} if tokens or "MiB" in case else {200}), whole[:300]
            if status != 200:
                assert error_of(whole.partition(b"\r\n\r\n")[2])["code"] == status
                assert not upstream.requests
                assert b"kkkk" not in whole


# Without tokens -------------------------------------------------------------------------------------------------------

FORWARDING = [
    "Forwarded: for=192.0.2.1",
    "X-Forwarded-For: 127.0.0.1",
    "X-Forwarded-Host: localhost",
    "X-Forwarded-Proto: https",
    "X-Real-IP: 192.0.2.1",
    "Via: 1.1 front",
    "CF-Connecting-IP: 192.0.2.1",
    "True-Client-IP: 192.0.2.1",
    "x-forwarded-for:",
]


@pytest.mark.parametrize("field", FORWARDING)
@pytest.mark.parametrize("auth", [{}, TWO | {"exempt_loopback": True}], ids=["no tokens", "exempt loopback"])
async def test_a_caller_behind_a_proxy_is_not_local(field: str, auth: Mapping[str, Any]) -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=auth) as proxy:
        assert_refused(await call(proxy, "", field), "MISSING_API_KEY", upstream)
        if auth:
            assert (await call(proxy, f"?key={RIGHT}", field))[0] == 200
        else:
            # SDKs insist on sending a key: it makes nobody local.
            assert (await call(proxy, "?key=any", field))[0] == 401
            assert not upstream.requests


@pytest.mark.parametrize("place", PLACES)
async def test_without_tokens_any_credential_is_accepted_ignored_and_kept_here(place: str, tmp_path: Path) -> None:
    query, headers = PLACES[place]
    log = tmp_path / "log"
    async with upstreaming() as upstream:
        async with proxying(upstream.url, KEYS[:1], logging={"level": "info", "file": str(log)}) as proxy:
            assert (await call(proxy, query, *headers))[0] == 200
        assert RIGHT not in upstream.requests[0].line
        assert not any(RIGHT in value for _, value in upstream.requests[0].headers)
    assert clients(log) == ["anonymous"]


@pytest.mark.parametrize("auth", [{}, TWO, TWO | {"exempt_loopback": True}], ids=["open", "tokens", "exempt"])
async def test_a_session_token_that_nobody_gave_out_is_refused(auth: Mapping[str, Any]) -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=auth) as proxy:
        for place in ("x-goog-api-key", "Authorization", "X-Session-Token"):
            answer = await call(proxy, "", f"{place}: bal_{'x' * 43}")
            assert_refused(answer, "INVALID_API_KEY", upstream)


# WebSocket handshakes -------------------------------------------------------------------------------------------------

HANDSHAKES: dict[str, tuple[tuple[str, ...], int]] = {
    "OpenAI's": ((f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{RIGHT}, openai-beta.realtime-v1",), 200),
    "a bearer": ((f"Sec-WebSocket-Protocol: bearer.{RIGHT}",), 200),
    "without blanks": ((f"Sec-WebSocket-Protocol: realtime,bearer.{RIGHT}",), 200),
    "in a second line": (("Sec-WebSocket-Protocol: realtime", f"Sec-WebSocket-Protocol: bearer.{RIGHT}"), 200),
    "a wrong one and a right one": (
        (f"Sec-WebSocket-Protocol: openai-insecure-api-key.{WRONG}, bearer.{RIGHT}",),
        200,
    ),
    "a wrong one": ((f"Sec-WebSocket-Protocol: bearer.{WRONG}",), 401),
    "an empty one": (("Sec-WebSocket-Protocol: bearer., openai-insecure-api-key.",), 401),
    "a token that is no subprotocol": ((f"Sec-WebSocket-Protocol: {RIGHT}",), 401),
    "another prefix": ((f"Sec-WebSocket-Protocol: token.{RIGHT}",), 401),
}


@pytest.mark.parametrize("case", HANDSHAKES)
async def test_a_websocket_client_may_offer_its_token_as_a_subprotocol(case: str) -> None:
    lines, expected = HANDSHAKES[case]
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        upgrade = ("Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13")
        assert await handshake(proxy, *upgrade, *lines) == expected
        # What is no handshake has no subprotocols.
        assert await handshake(proxy, *lines) == 401


async def handshake(proxy: Proxy, *lines: str) -> int:
    """The status of a GET that carries these lines and no other credential."""
    raw = await proxy.raw()
    await raw.send("\r\n".join(("GET /v1beta/models HTTP/1.1", "Host: proxy", *lines, "", "")).encode())
    status = int((await raw.head()).split()[1])
    raw.close()
    return status


async def test_a_page_of_a_foreign_origin_opens_no_websocket_either() -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    async with upstreaming() as upstream, proxying(upstream.url) as proxy:
        assert await handshake(proxy, *upgrade, "Origin: https://evil.example") == 403
        assert not upstream.requests
        assert await handshake(proxy, *upgrade) == 200


# Web pages ------------------------------------------------------------------------------------------------------------

ORIGINS: dict[str, tuple[str, str, int]] = {
    "the own origin on localhost": ("localhost:8000", "http://localhost:8000", 200),
    "the own origin on an address": ("127.0.0.1:8000", "http://127.0.0.1:8000", 200),
    "the own origin on IPv6": ("[::1]:8000", "http://[::1]:8000", 200),
    "the own origin in odd case": ("LocalHost:8000", "http://localhost:8000", 200),
    "the host of public_url": ("llm.example.net", "https://llm.example.net", 200),
    "a page of the web": ("localhost:8000", "https://evil.example", 403),
    "a page of the web that resolves to us": ("evil.example:8000", "http://evil.example:8000", 403),
    "another port here": ("localhost:8000", "http://localhost:3000", 403),
    "another name of ours": ("localhost:8000", "http://127.0.0.1:8000", 403),
    "a file": ("localhost:8000", "null", 403),
    "an empty origin": ("localhost:8000", "", 403),
    "a name in front": ("localhost:8000", "http://localhost:8000.evil.example", 403),
    "a user in front": ("localhost:8000", "http://localhost:8000@evil.example", 403),
    "a host that is none": ("[", "http://[", 403),
    "an origin that is none": ("localhost", "http://[::1", 403),
    "letters of all sorts": ("localhost", "http://☃.example/\x7f", 403),
}


@pytest.mark.parametrize("case", ORIGINS)
@pytest.mark.parametrize("auth", [{}, TWO | {"exempt_loopback": True}], ids=["no tokens", "exempt loopback"])
async def test_a_web_page_of_a_foreign_origin_spends_no_key(case: str, auth: Mapping[str, Any]) -> None:
    host, origin, expected = ORIGINS[case]
    server = {"public_url": "https://llm.example.net/prefix"}
    async with upstreaming() as upstream, proxying(upstream.url, auth=auth, server=server) as proxy:
        status, head, body = await call(proxy, "", f"Origin: {origin}", host=host)
        if status != 400:  # what is no HTTP at all never gets here
            assert status == expected
        if status == 403:
            assert error_of(body)["status"] == "PERMISSION_DENIED"
            assert b"WWW-Authenticate" not in head
        assert len(upstream.requests) == (status == 200)


LISTED: dict[str, tuple[list[str], str, int]] = {
    "a listed page": (["https://app.example"], "https://app.example", 200),
    "a listed page in odd case": (["https://app.example"], "https://App.Example", 200),
    "all pages": (["*"], "https://evil.example", 200),
    "another port of a listed page": (["https://app.example"], "https://app.example:8443", 403),
    "another scheme": (["https://app.example"], "http://app.example", 403),
    "a page below a listed one": (["https://app.example"], "https://evil.app.example", 403),
    "nobody is listed": ([], "https://app.example", 403),
}


@pytest.mark.parametrize("case", LISTED)
async def test_pages_that_a_surface_lists_may_call_it_and_no_other(case: str) -> None:
    origins, origin, expected = LISTED[case]
    async with upstreaming() as upstream:
        async with proxying(upstream.url, openai={"allowed_origins": origins}) as proxy:
            for path, status in (("/v1/models", expected), ("/v1beta/models", 403)):
                async with proxy.get(path, headers={"Origin": origin, "Host": "localhost:8000"}) as response:
                    assert response.status == status


async def test_a_web_page_that_shows_a_token_may_call_from_anywhere() -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        assert (await call(proxy, "", "Origin: https://a.example", f"Authorization: Bearer {RIGHT}"))[0] == 200


# Loopback, and other machines -----------------------------------------------------------------------------------------


async def test_a_local_caller_with_a_token_is_that_client(tmp_path: Path) -> None:
    log = tmp_path / "log"
    logging = {"level": "info", "file": str(log)}
    async with upstreaming() as upstream:
        async with proxying(upstream.url, auth=TWO | {"exempt_loopback": True}, logging=logging) as proxy:
            assert (await call(proxy, f"?key={OTHER}"))[0] == 200
            assert (await call(proxy))[0] == 200
    assert clients(log) == ["other", "anonymous"]


def _own_address() -> str | None:
    """An address of this machine that is not loopback. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if address.startswith("127.") else address


async def test_a_peer_that_is_not_loopback_is_not_exempt() -> None:
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    async with upstreaming() as upstream:
        exempt = TWO | {"exempt_loopback": True}
        async with proxying(upstream.url, auth=exempt, server={"host": "0.0.0.0"}) as proxy:
            proxy.server.address = (address, proxy.server.address[1])
            assert_refused(await call(proxy), "MISSING_API_KEY", upstream)
            assert (await call(proxy, f"?key={RIGHT}"))[0] == 200


@pytest.mark.parametrize("host", ["::1", "127.0.0.9"])
async def test_every_form_of_loopback_is_local(host: str) -> None:
    async with upstreaming() as upstream, proxying(upstream.url, server={"host": host}) as proxy:
        assert (await call(proxy))[0] == 200


EXEMPT: dict[str, tuple[bool, tuple[str, ...], int]] = {
    "exempt and local": (True, (), 200),
    "exempt behind a proxy": (True, ("X-Forwarded-For: 192.0.2.1",), 401),
    "exempt with a wrong key": (True, (f"x-api-key: {WRONG}",), 401),
    "exempt with a wrong session token": (True, (f"x-api-key: bal_{'x' * 43}",), 401),
    "by default": (False, (), 401),
}


@pytest.mark.parametrize("case", EXEMPT)
async def test_a_local_caller_passes_without_a_credential_where_that_is_allowed_and_with_a_wrong_one_nowhere(
    case: str,
) -> None:
    exempt, lines, expected = EXEMPT[case]
    async with upstreaming() as upstream:
        async with proxying(upstream.url, auth=TWO | ({"exempt_loopback": True} if exempt else {})) as proxy:
            assert (await call(proxy, "", *lines))[0] == expected
            assert len(upstream.requests) == (expected == 200)


# What a refusal says, and what is open to all -------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/v1beta/models", "/v1beta//no", "/upload/v1beta/files", "/v1beta/files/x"])
async def test_every_path_of_the_surface_wants_a_token_before_it_says_anything_else(target: str) -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
            whole = await proxy.exchange(f"{method} {target} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
            assert whole.startswith(b"HTTP/1.1 401"), (method, whole[:100])
            assert b"\r\nWWW-Authenticate: Bearer\r\n" in whole
        assert not upstream.requests


async def test_the_pages_for_supervisors_are_open_and_ask_for_nothing() -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        for path in ("/healthz", "/readyz"):
            async with proxy.get(path, headers={"x-goog-api-key": WRONG, "X-Forwarded-For": "192.0.2.1"}) as response:
                assert response.status == 200
        for other in ("/%68ealthz", "/healthz/", "//healthz", "/readyz/x"):
            whole = await proxy.exchange(f"GET {other} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
            assert whole.startswith(b"HTTP/1.1 401"), (other, whole[:100])


async def test_a_reload_exchanges_the_tokens_of_the_next_request() -> None:
    async with upstreaming() as upstream, proxying(upstream.url, auth=TWO) as proxy:
        old = proxy.server.runtime.settings
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}", GENERATE).replace(b"any", RIGHT.encode()))
        assert (await raw.answer())[0].startswith(b"HTTP/1.1 200")
        new = old.auth.model_validate({"tokens": "team=a-newer-token"})
        proxy.server.runtime.apply(old.model_copy(update={"auth": new}))
        for token, status in ((RIGHT, b"401"), ("a-newer-token", b"200")):
            await raw.send(post_bytes(b"{}", GENERATE).replace(b"any", token.encode()))
            assert (await raw.answer())[0].split()[1] == status
        raw.close()
