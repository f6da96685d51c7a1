"""Which failures a caller never sees, and which are never repeated."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from tests.proxy import GENERATE, KEYS, STREAM, error_of, post_bytes, proxying
from tests.upstream import Peer, Seen, raw_upstream, serving

ONE_KEY = KEYS[:1]


def google_error(code: int, message: str, *details: dict[str, Any]) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "status": "X", "details": list(details)}}).encode()


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}
PER_MINUTE = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}],
}
INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}


def per_key(answers: dict[str, tuple[str, bytes]]) -> Any:
    """A script that answers by key; keys that are not named get 200."""

    async def answer(peer: Peer, seen: Seen) -> None:
        status, body = answers.get(seen.get("x-goog-api-key") or "", ("200 OK", b'{"fine": true}'))
        await peer.answer(body, status)

    return serving(answer)


async def test_a_limited_and_an_invalid_key_are_invisible_to_the_caller() -> None:
    script = per_key(
        {
            KEYS[0]: ("429 Too Many Requests", google_error(429, "quota", PER_MINUTE, RETRY_INFO)),
            KEYS[1]: ("400 Bad Request", google_error(400, "API key not valid.", INVALID)),
        }
    )
    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy:
        for _ in range(4):
            async with proxy.post() as response:
                assert response.status == 200
        assert [seen.get("x-goog-api-key") for seen in upstream.requests] == [*KEYS, KEYS[2], KEYS[2], KEYS[2]]
        states = {key["fingerprint"]: key["state"] for key in await proxy.keys()}
        assert sorted(states.values()) == ["disabled", "ready", "resting"]


async def test_a_refused_stream_moves_to_another_key_before_its_first_byte() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.get("x-goog-api-key") == KEYS[0]:
            await peer.answer(google_error(429, "quota", PER_MINUTE, RETRY_INFO), "429 Too Many Requests")
        else:
            await peer.stream()
            await peer.chunk(b"data: 1\n\n")
            await peer.end()

    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert response.status == 200
        assert await response.read() == b"data: 1\n\n"


async def test_every_key_resting_beyond_the_wait_is_a_429_that_tells_the_truth() -> None:
    quota = ("429 Too Many Requests", google_error(429, "quota", PER_MINUTE, RETRY_INFO))
    async with raw_upstream(per_key(dict.fromkeys(KEYS, quota))) as upstream, proxying(upstream.url) as proxy:
        for expected in (len(KEYS), len(KEYS)):  # the second call asks nobody
            async with proxy.post() as response:
                assert response.status == 429
                assert 15 <= int(response.headers["Retry-After"]) <= 17
                error = error_of(await response.read())
                assert error["status"] == "RESOURCE_EXHAUSTED"
                assert any(detail["@type"].endswith("RetryInfo") for detail in error["details"])
            assert len(upstream.requests) == expected


async def test_a_call_waits_for_the_first_key_back() -> None:
    delay = {"@type": RETRY_INFO["@type"], "retryDelay": "0.3s"}
    refused = False

    async def answer(peer: Peer, seen: Seen) -> None:
        nonlocal refused
        if not refused:
            refused = True
            await peer.answer(google_error(429, "quota", PER_MINUTE, delay), "429 Too Many Requests")
        else:
            await peer.answer()

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, ONE_KEY) as proxy:
        async with proxy.post() as response:
            assert response.status == 200
        assert len(upstream.requests) == 2


async def test_a_wait_longer_than_the_callers_deadline_is_not_begun() -> None:
    quota = ("429 Too Many Requests", google_error(429, "quota", PER_MINUTE, {**RETRY_INFO, "retryDelay": "1.5s"}))
    async with raw_upstream(per_key(dict.fromkeys(KEYS, quota))) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post(headers={"X-Server-Timeout": "1"}) as response:
            assert response.status == 429


async def test_every_key_disabled_is_a_503_that_names_the_reasons_by_fingerprint() -> None:
    invalid = ("400 Bad Request", google_error(400, "API key not valid.", INVALID))
    async with raw_upstream(per_key(dict.fromkeys(KEYS, invalid))) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post() as response:
            assert response.status == 503
            text = (await response.read()).decode()
        for key in await proxy.keys():
            assert key["state"] == "disabled"
            assert key["fingerprint"] in text
        assert not any(key in text for key in KEYS)
        async with proxy.get("/readyz") as response:
            assert response.status == 503


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_an_upstream_fault_is_repeated_once_for_a_call_that_changes_nothing(status: int) -> None:
    broken = True

    async def answer(peer: Peer, seen: Seen) -> None:
        nonlocal broken
        if broken:
            broken = False
            await peer.answer(google_error(status, "oops"), f"{status} Oops")
        else:
            await peer.answer()

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy, proxy.post() as response:
        assert response.status == 200
        keys = [seen.get("x-goog-api-key") for seen in upstream.requests]
        assert len(keys) == 2
        assert keys[0] != keys[1]


async def test_an_upstream_fault_that_stays_is_passed_on_in_its_own_words() -> None:
    body = google_error(503, "The model is overloaded.")
    broken = ("503 Service Unavailable", body)
    async with raw_upstream(per_key(dict.fromkeys(KEYS, broken))) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post() as response:
            assert response.status == 503
            assert await response.read() == body
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("path", ["/v1beta/cachedContents", "/v1beta/models/m:predict", "/v1beta/interactions"])
async def test_what_creates_something_is_not_repeated_once_it_was_sent(path: str) -> None:
    broken = ("503 Service Unavailable", google_error(503, "oops"))
    async with raw_upstream(per_key(dict.fromkeys(KEYS, broken))) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post(path) as response:
            assert response.status == 503
        assert len(upstream.requests) == 1


async def test_what_creates_something_moves_to_another_key_when_its_key_is_refused() -> None:
    script = per_key({KEYS[0]: ("400 Bad Request", google_error(400, "API key not valid.", INVALID))})
    async with (
        raw_upstream(script) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post("/v1beta/cachedContents") as r,
    ):
        assert r.status == 200
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_connection_that_dies_before_an_answer_is_tried_once_more(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.upstream.connections > 1:
            await peer.answer()
        elif how == "RST":
            peer.reset()
        else:
            peer.close()

    async with raw_upstream(script) as upstream, proxying(upstream.url, ONE_KEY) as proxy, proxy.post() as response:
        assert response.status == 200
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_an_upstream_that_always_dies_is_a_502_after_bounded_attempts(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if how == "RST":
            peer.reset()
        else:
            peer.close()

    async with raw_upstream(script) as upstream, proxying(upstream.url, ONE_KEY) as proxy, proxy.post() as response:
        assert response.status == 502
        assert len(upstream.requests) == 2


async def test_a_pooled_connection_that_died_is_invisible_to_a_post() -> None:
    killed = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.answer()
        if peer.upstream.connections == 1:
            await peer.head()  # the second request arrives and is never answered
            peer.reset()
            killed.set()
        else:
            await peer.request()
            await peer.answer()

    async with raw_upstream(script) as upstream, proxying(upstream.url, ONE_KEY) as proxy:
        for _ in range(2):
            async with proxy.post() as response:
                assert response.status == 200
        assert killed.is_set()
        assert upstream.connections == 2


async def test_a_closed_port_is_a_quick_502_and_works_as_soon_as_it_opens() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    async with proxying(f"http://127.0.0.1:{port}") as proxy:
        async with asyncio.timeout(5), proxy.post() as response:
            assert response.status == 502
            assert error_of(await response.read())["status"] == "UNAVAILABLE"

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", port)
        async with proxy.post() as response:
            assert response.status == 200
        server.close()


async def test_a_body_beyond_the_replay_limit_streams_and_is_not_repeated() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(google_error(400, "API key not valid.", INVALID), "400 Bad Request")

    small = {"replay_limit": "64KiB"}
    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, relay=small) as proxy:
        async with proxy.post(json=None, data=bytes(1_000_000)) as response:
            assert response.status == 429, await response.text()
            assert int(response.headers["Retry-After"]) == 1
        assert len(upstream.requests) == 1
        assert len(upstream.requests[0].body) == 1_000_000


async def test_a_large_body_that_was_never_sent_goes_to_the_next_connection() -> None:
    """Nothing of a streamed body is taken before there is a connection, so a refused one costs nothing."""

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(str(len(seen.body)).encode())

    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(f"http://127.0.0.1:{port}", relay={"replay_limit": 1024}) as proxy,
    ):
        raw = await proxy.raw()
        body = bytes(300_000)
        await raw.send(post_bytes(body, GENERATE)[: -len(body)])
        await raw.send(body[:5000])
        opened = asyncio.Event()
        relay_server: list[asyncio.Server] = []

        async def open_late() -> None:
            host, target = upstream.url.removeprefix("http://").split(":")

            async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                up_reader, up_writer = await asyncio.open_connection(host, int(target))

                async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                    while data := await source.read(65536):
                        sink.write(data)
                        await sink.drain()

                await asyncio.wait(
                    [asyncio.ensure_future(copy(reader, up_writer)), asyncio.ensure_future(copy(up_reader, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                writer.close()
                up_writer.close()

            relay_server.append(await asyncio.start_server(pipe, "127.0.0.1", port))
            opened.set()

        asyncio.get_running_loop().call_later(0.15, lambda: asyncio.ensure_future(open_late()))
        await opened.wait()
        await raw.send(body[5000:])
        head, answered = await raw.answer()
        assert head.startswith(b"HTTP/1.1 200")
        assert answered == b"300000"
        raw.close()
        relay_server[0].close()
