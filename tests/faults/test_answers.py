"""What an upstream can do with its answer, and what the client then sees."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest

from tests.proxy import KEYS, STREAM, error_of, post_bytes, proxying
from tests.upstream import Peer, Seen, raw_upstream, serving

ONE_KEY = KEYS[:1]


async def test_an_event_arrives_while_the_next_one_is_withheld() -> None:
    gate = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(b"data: 1\r\n\r\n")
        await gate.wait()
        await peer.chunk(b"data: 2\r\n\r\n")
        await peer.end()

    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert await response.content.readany() == b"data: 1\r\n\r\n"
        gate.set()
        assert await response.content.read() == b"data: 2\r\n\r\n"


async def test_a_head_goes_ahead_of_a_body_that_is_not_there_yet() -> None:
    gate = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await gate.wait()
        await peer.end()

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        async with asyncio.timeout(5), proxy.post(STREAM) as response:
            assert response.status == 200
            gate.set()
            assert await response.read() == b""


async def test_a_stream_sent_byte_by_byte_arrives_identical() -> None:
    text = 'data: {"text": "héllo ☃ \U0001f600"}\r\n\r\n: comment\r\ndata: x\n\n'.encode()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        for byte in text:
            await peer.chunk(bytes([byte]))
        await peer.end()

    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert await response.read() == text


@pytest.mark.parametrize(
    "body", [b"{}", b'{"odd": "\\ud83d \xff\xfe bytes",   "spaces" :1}\n\n', b"", bytes(range(256)) * 1000]
)
async def test_bodies_pass_byte_for_byte_both_ways(body: bytes) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(seen.body)

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post(json=None, data=body) as response:
            assert await response.read() == body
            assert response.headers["Content-Length"] == str(len(body))
        assert upstream.requests[0].body == body


async def test_a_gzip_answer_stays_gzip_and_keeps_its_header() -> None:
    packed = gzip.compress(b'{"candidates": []}')

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(packed, headers=("Content-Encoding: gzip",))

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}", STREAM, "Accept-Encoding: gzip"))
        head, body = await raw.answer()
        assert b"Content-Encoding: gzip" in head
        assert body == packed
        raw.close()


async def test_a_gzip_bomb_is_not_inflated() -> None:
    bomb = gzip.compress(bytes(50_000_000))

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(bomb, status="400 Bad Request", headers=("Content-Encoding: gzip",))

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}"))
        head, body = await raw.answer()
        assert head.startswith(b"HTTP/1.1 400")
        assert len(body) <= len(bomb)
        raw.close()


async def test_the_head_holds_what_the_upstream_sent_and_nothing_else_of_ours_but_the_request_id() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.write(
            b"HTTP/1.1 200 Fine By Me\r\nContent-Length: 2\r\nX-Twice: a\r\nX-Twice: b\r\nServer: ESF\r\nDate: today\r\n"
            b"Connection: X-Named, keep-alive\r\nX-Named: no\r\nKeep-Alive: timeout=5\r\nSet-Cookie: a=b\r\n"
            b'Alt-Svc: h3=":443"\r\nStrict-Transport-Security: x\r\n\r\n{}'
        )

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}"))
        head, _ = await raw.answer()
        lines = head.decode().split("\r\n")
        assert lines[0] == "HTTP/1.1 200 Fine By Me"
        names = [line for line in lines[1:] if line and not line.startswith("X-Request-Id: ")]
        assert names == ["Content-Length: 2", "X-Twice: a", "X-Twice: b", "Server: ESF", "Date: today"]
        raw.close()


async def test_interim_answers_are_skipped() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        await peer.answer(b"final")

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy, proxy.post() as response:
        assert await response.read() == b"final"


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 404 Not Found\r\nContent-Length: 99\r\n\r\n"),
    ],
)
async def test_answers_without_a_body_stay_in_step(method: str, head: bytes) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.line.startswith("GET /v1beta/models/second"):
            await peer.answer(b"second")
        else:
            await peer.write(head)

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(f"{method} /v1beta/models/x HTTP/1.1\r\nHost: p\r\n\r\n".encode())
        first = await raw.head()
        assert first.split()[1] == head.split()[1]
        if method == "HEAD":
            assert head.split(b"\r\n")[1] in first
        await raw.send(b"GET /v1beta/models/second HTTP/1.1\r\nHost: p\r\n\r\n")
        assert (await raw.answer())[1] == b"second"
        raw.close()


async def test_chunk_extensions_and_trailers_leave_the_body_exact_and_the_connection_usable() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n"
            b"3;ext=1\r\nabc\r\n4\r\ndefg\r\n0\r\nX-T: trailing\r\n\r\n"
        )

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, ONE_KEY) as proxy:
        for _ in range(2):
            async with proxy.post() as response:
                assert await response.read() == b"abcdefg"
        assert upstream.connections == 1


async def test_a_body_until_the_end_of_the_connection_is_whole() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy, proxy.post() as response:
        assert await response.read() == b"until the end"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(seen.body)

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(b"".join(post_bytes(str(number).encode()) for number in range(50)))
        assert [(await raw.answer())[1] for _ in range(50)] == [str(number).encode() for number in range(50)]
        raw.close()


async def test_an_http_1_0_client_gets_a_body_that_ends_with_the_connection() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.end()

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        whole = await proxy.exchange(post_bytes(b"{}", STREAM, version="1.0"))
        head, _, body = whole.partition(b"\r\n\r\n")
        assert b"chunked" not in head.lower()
        assert body == b"data: 1\n\n"


CUTS: dict[str, bytes] = {
    "a FIN in the middle of chunks": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    "a FIN inside a chunk": b"Transfer-Encoding: chunked\r\n\r\n9\r\nabcde",
    "a FIN before the declared length": b"Content-Length: 100\r\n\r\nabcde",
    "a bad chunk size": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nnonsense\r\n",
    "a bad chunk end": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeXX5\r\nabcde\r\n",
    "a negative chunk size": b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n-5\r\nabcde\r\n",
}


@pytest.mark.parametrize(
    ("cut", "by"),
    [(cut, by) for cut in CUTS for by in ("FIN", "RST", "silence") if not (by == "silence" and "FIN" in cut)],
)
async def test_a_cut_in_the_middle_keeps_the_bytes_and_is_seen_as_a_cut(cut: str, by: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + CUTS[cut].partition(b"abcde")[0] + b"abcde"
        )
        await gate.wait()
        await peer.write(CUTS[cut].partition(b"abcde")[2])
        if by == "RST":
            peer.reset()
        elif by == "FIN":
            peer.close()
        else:
            await peer.gone()

    gate = asyncio.Event()
    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy, proxy.post(STREAM) as response:
        assert response.status == 200
        assert await response.content.readexactly(5) == b"abcde"
        gate.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
        assert len(upstream.requests) == 1


JUNK = {
    "nothing like HTTP": b"\x00\x01\x02 rubbish\r\n\r\n",
    "a second status line": b"HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK\r\n\r\n",
    "an impossible version": b"HTTP/9.9 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "two lengths that differ": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
    "a length in words": b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nabc",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nrubbish\r\n\r\n",
    "a header with a blank in its name": b"HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nX-Y: a\x00b\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nX-Y: " + b"a" * 200_000 + b"\r\n\r\n",
    "a redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("junk", JUNK)
async def test_junk_instead_of_an_answer_is_a_502_in_the_callers_dialect(junk: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(JUNK[junk])
        await peer.gone()

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy, proxy.post() as response:
        assert response.status == 502
        assert response.content_type == "application/json"
        assert error_of(await response.read())["status"] == "UNAVAILABLE"
        assert len(upstream.requests) <= 2


async def test_an_answer_nobody_asked_for_never_reaches_another_request() -> None:
    said = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.body == b"first":
            await peer.answer(b"first")
            await peer.answer(b"stray")
            said.set()
        else:
            await peer.answer(b"second")

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, ONE_KEY) as proxy:
        async with proxy.post(json=None, data=b"first") as response:
            assert await response.read() == b"first"
        await said.wait()
        async with proxy.post(json=None, data=b"second") as response:
            assert await response.read() == b"second"


async def test_an_error_event_inside_a_stream_is_passed_on_and_not_repeated() -> None:
    event = b'data: {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}\r\n\r\n'

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        await peer.chunk(event)
        await peer.end()

    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert await response.read() == event
        assert len(upstream.requests) == 1


async def test_an_error_of_the_callers_passes_untouched() -> None:
    body = json.dumps({"error": {"code": 400, "message": "bad field", "status": "INVALID_ARGUMENT"}}, indent=2).encode()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.write(
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )

    async with (
        raw_upstream(serving(answer)) as upstream,
        proxying(upstream.url) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert response.status == 400
        assert response.content_type == "text/event-stream"
        assert await response.read() == body
        assert len(upstream.requests) == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("status", [400, 403, 404, 500])
async def test_key_text_in_an_error_body_is_masked(status: int, packed: bool) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        key = seen.get("x-goog-api-key") or ""
        body = json.dumps(
            {"error": {"code": status, "message": f"api_key:{key} has no access", "status": "X"}}
        ).encode()
        headers = ("Content-Encoding: gzip",) if packed else ()
        await peer.answer(gzip.compress(body) if packed else body, f"{status} Bad", headers)

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy, proxy.post() as response:
        assert response.status == status
        body = await response.read()
        assert b"has no access" in body
        assert not any(key.encode() in body for key in KEYS)


async def test_a_silent_upstream_is_a_504_in_time_and_is_let_go() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        gone.set()

    quick = {"timeouts": {"first_byte": "200ms"}}
    async with raw_upstream(script) as upstream, proxying(upstream.url, relay=quick) as proxy, proxy.post() as response:
        assert response.status == 504
        assert error_of(await response.read())["status"] == "DEADLINE_EXCEEDED"
        async with asyncio.timeout(5):
            await gone.wait()
        assert len(upstream.requests) == 1


async def test_a_stream_that_falls_silent_is_cut_within_the_idle_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.gone()

    quick = {"timeouts": {"idle": "200ms"}}
    async with (
        raw_upstream(script) as upstream,
        proxying(upstream.url, relay=quick) as proxy,
        proxy.post(STREAM) as response,
    ):
        assert await response.content.readany() == b"data: 1\n\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_a_stream_that_talks_longer_than_every_timeout_is_not_cut() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        for number in range(10):
            await peer.chunk(b"%d" % number)
            await pause.wait_for_tick()
        await peer.end()

    pause = _Ticks(0.06)
    quick: dict[str, Any] = {"timeouts": {"first_byte": "200ms", "idle": "200ms"}}
    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url, relay=quick) as proxy:
        async with proxy.post(STREAM, headers={"X-Server-Timeout": "0.3"}) as response:
            assert await response.read() == b"0123456789"


class _Ticks:
    """Real time where it is the point of a test: a stream has to outlast a timeout of the proxy's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def wait_for_tick(self) -> None:
        ticked = asyncio.Event()
        asyncio.get_running_loop().call_later(self._seconds, ticked.set)
        await ticked.wait()


async def test_the_callers_own_deadline_bounds_the_wait() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post(headers={"X-Server-Timeout": "0.2"}) as response:
            assert response.status == 504
        assert upstream.requests[0].get("x-server-timeout") == "0.2"
