"""What a client can do: leave, read slowly, send badly, send too much, or stop in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket

import pytest

from tests.proxy import GENERATE, KEYS, STREAM, error_of, post_bytes, proxying
from tests.upstream import WAIT, Peer, Seen, raw_upstream, serving


async def test_a_client_that_leaves_mid_stream_frees_the_upstream_at_once_and_nobody_is_blamed() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.stream()
        await peer.chunk(b"data: 1\n\n")
        await peer.gone()
        gone.set()

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}", STREAM))
        await raw.until(b"data: 1\n\n")
        raw.close()
        async with asyncio.timeout(3):
            await gone.wait()
        assert len(upstream.requests) == 1
        counts = [key["counts"] for key in await proxy.keys()]
        assert sum(count["gone"] for count in counts) == 1, counts
        assert sum(count["upstream"] + count["key"] for count in counts) == 0


async def test_a_client_that_leaves_while_the_upstream_is_silent_frees_it() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        gone.set()

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}"))
        await upstream.arrival()
        raw.close()
        async with asyncio.timeout(3):
            await gone.wait()
        assert len(upstream.requests) == 1


async def test_a_client_that_leaves_in_the_middle_of_its_upload_leaves_no_complete_request() -> None:
    ended = asyncio.Event()
    whole: list[Seen] = []

    async def script(peer: Peer) -> None:
        await peer.head()
        try:
            await peer.reader.readexactly(1_000_000)
            whole.append(peer.upstream.requests[-1])
        finally:
            ended.set()

    async with raw_upstream(script) as upstream, proxying(upstream.url, relay={"replay_limit": 1024}) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(bytes(1_000_000))[:500_000])
        await upstream.arrival()
        raw.close()
        async with asyncio.timeout(3):
            await ended.wait()
        assert not whole


async def test_fifty_streams_dropped_at_once_are_all_freed() -> None:
    freed = asyncio.Semaphore(0)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.stream()
        await peer.chunk(b"x")
        await peer.gone()
        freed.release()

    async with raw_upstream(script) as upstream, proxying(upstream.url) as proxy:
        raws = [await proxy.raw() for _ in range(50)]
        for raw in raws:
            await raw.send(post_bytes(b"{}", STREAM))
        for raw in raws:
            await raw.head()
        for raw in raws:
            raw.close()
        async with asyncio.timeout(WAIT):
            for _ in raws:
                await freed.acquire()


async def test_a_reader_that_does_not_read_pauses_the_upstream_and_still_gets_everything_later() -> None:
    piece, pieces = bytes(1 << 20), 48
    stuck = asyncio.Event()
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * pieces))
        for _ in range(pieces):
            peer.writer.write(piece)
            try:
                async with asyncio.timeout(0.5):
                    await peer.writer.drain()
            except TimeoutError:
                stuck.set()
                await peer.writer.drain()
            sent += len(piece)

    # The idle timeout is far shorter than the pause: it must not run while we hold the upstream back.
    quick = {"timeouts": {"idle": "1s"}}
    async with raw_upstream(script) as upstream, proxying(upstream.url, relay=quick) as proxy:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, proxy.server.address)
        reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
        writer.write(post_bytes(b"{}"))
        async with asyncio.timeout(WAIT):
            await reader.readuntil(b"\r\n\r\n")
            await stuck.wait()
            assert sent < 32 << 20
            assert len(await reader.readexactly(len(piece) * pieces)) == len(piece) * pieces
        writer.close()


async def test_a_client_that_takes_nothing_at_all_is_given_up() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                await peer.write(bytes(1 << 20))
        except ConnectionError:
            gone.set()

    quick = {"timeouts": {"idle": "300ms"}}
    async with raw_upstream(script) as upstream, proxying(upstream.url, relay=quick) as proxy:
        raw = await proxy.raw()
        raw.reader._limit = 1024  # type: ignore[attr-defined]
        await raw.send(post_bytes(b"{}"))
        async with asyncio.timeout(WAIT):
            await gone.wait()
        raw.close()


async def test_a_body_that_stops_is_given_up_with_a_408() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server={"body_idle_timeout": "200ms"}) as proxy:
            whole = await proxy.exchange(post_bytes(bytes(1000))[:-500])
            assert whole.startswith(b"HTTP/1.1 408")
            error_of(whole.partition(b"\r\n\r\n")[2])
        assert not upstream.requests


@pytest.mark.parametrize("framing", ["declared", "chunked"])
async def test_a_body_over_the_limit_is_a_413_in_dialect_and_reaches_no_upstream(framing: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server={"max_body": "100KiB"}) as proxy:
            if framing == "declared":
                request = post_bytes(bytes(200_000))
            else:
                request = post_bytes(b"", GENERATE, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
                request += (b"8000\r\n" + bytes(0x8000) + b"\r\n") * 6 + b"0\r\n\r\n"
            whole = await proxy.exchange(request)
            assert whole.startswith(b"HTTP/1.1 413")
            assert error_of(whole.partition(b"\r\n\r\n")[2])["code"] == 413
        assert not upstream.requests


async def test_an_early_refusal_reaches_a_client_that_is_still_sending() -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.answer(b'{"error": {"code": 413, "message": "too big", "status": "X"}}', "413 Too Large")
        await peer.gone()

    async with raw_upstream(script) as upstream, proxying(upstream.url, relay={"replay_limit": 1024}) as proxy:
        async with proxy.post(json=None, data=io.BytesIO(bytes(6 << 20))) as response:
            assert response.status == 413
            assert b"too big" in await response.read()
        assert len(upstream.requests) == 1


async def test_expect_is_answered_once_the_body_is_wanted() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        assert seen.get("expect") is None
        await peer.answer(seen.body)

    async with raw_upstream(serving(answer)) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        request = post_bytes(b"body", GENERATE, "Expect: 100-continue")
        await raw.send(request[:-4])
        assert await raw.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await raw.send(b"body")
        assert (await raw.answer())[1] == b"body"
        raw.close()


async def test_expect_with_a_wrong_token_is_refused_before_any_body() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, auth={"tokens": "team=the-right-token-of-team"}) as proxy:
            raw = await proxy.raw()
            await raw.send(post_bytes(b"body", GENERATE, "Expect: 100-continue")[:-4])
            assert (await raw.head()).startswith(b"HTTP/1.1 401")
            raw.close()
        assert not upstream.requests


async def test_a_chunked_request_body_arrives_whole_under_one_framing() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        request = post_bytes(b"", GENERATE, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
        await raw.send(request + b"3;x=y\r\nabc\r\n5\r\ndefgh\r\n0\r\nTrailer: x\r\n\r\n")
        await raw.answer()
        seen = upstream.requests[0]
        assert seen.body == b"abcdefgh"
        assert (seen.get("content-length") is None) != (seen.get("transfer-encoding") is None)
        raw.close()


async def test_a_compressed_request_body_is_left_as_it_is() -> None:
    packed = b"\x1f\x8b\x08 not really gzip, and none of our business"
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        async with proxy.post(json=None, data=packed, headers={"Content-Encoding": "gzip"}) as response:
            assert response.status == 200
        assert upstream.requests[0].body == packed
        assert upstream.requests[0].get("content-encoding") == "gzip"


async def test_what_is_internal_never_reaches_the_upstream_and_nothing_is_added() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        tokens = {"tokens": "team=the-right-token-of-team"}
        async with proxying(upstream.url, KEYS[:1], auth=tokens) as proxy:
            raw = await proxy.raw()
            await raw.send(
                post_bytes(
                    b"{}",
                    GENERATE + "?key=the-right-token-of-team&alt=json&api_key=x&session_token=y&session_id=s&%6bey=z",
                    "Authorization: Bearer the-right-token-of-team",
                    "X-Session-Token: t",
                    "x-api-key: a",
                    "api-key: b",
                    "X-Session-Id: s",
                    "Cookie: c=d",
                    "X-Forwarded-For: 1.2.3.4",
                    "Forwarded: for=1.2.3.4",
                    "Via: 1.1 front",
                    "X-Real-IP: 1.2.3.4",
                    "Proxy-Authorization: Basic x",
                    "TE: trailers",
                    "Connection: X-Mine, keep-alive",
                    "X-Mine: 1",
                    "Keep-Alive: 1",
                    "X-Kept: yes",
                )
            )
            await raw.answer()
            raw.close()
        seen = upstream.requests[0]
        assert seen.line == f"POST {GENERATE}?alt=json HTTP/1.1"
        names = sorted(name.lower() for name, _ in seen.headers)
        assert names == ["content-length", "host", "x-goog-api-key", "x-kept"]
        assert seen.get("x-goog-api-key") == KEYS[0]


MALFORMED = {
    "both framings": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n123456",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
    "a length with a sign": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx",
    "a blank before the colon": b"GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    "a folded field": b"GET / HTTP/1.1\r\nHost: h\r\nX-Y: a\r\n b\r\n\r\n",
    "a NUL in a field": b"GET / HTTP/1.1\r\nHost: h\r\nX-Y: a\x00secret-in-junk\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "an odd version": b"GET / HTTP/3.7\r\nHost: h\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked in disguise": b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a bad chunk size": b"POST /v1beta/models/m:generateContent HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a field that is too long": b"GET / HTTP/1.1\r\nHost: h\r\nX-Y: secret-in-junk" + b"a" * 70_000 + b"\r\n\r\n",
    "a target that is too long": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    "too many fields": b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X-Y: 1\r\n" * 1000 + b"\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret-in-junk\r\n\r\n",
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_malformed_requests_are_refused_in_dialect_and_nothing_of_them_is_repeated(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        whole = await proxy.exchange(MALFORMED[kind])
        assert whole.split()[1] == b"400", whole[:200]
        head, _, body = whole.partition(b"\r\n\r\n")
        assert b"application/json" in head
        assert error_of(body)["status"] == "INVALID_ARGUMENT"
        assert b"secret-in-junk" not in whole
        assert not upstream.requests
    assert "secret-in-junk" not in "".join(capsys.readouterr())


REPEATED = {
    "two agents": (["User-Agent: pydantic-ai/2", "user-agent: google-genai-sdk/2"], b"200"),
    "two equal types": (["Content-Type: application/json", "content-type: application/json"], b"200"),
    "two different types": (["Content-Type: application/json", "content-type: text/plain"], b"400"),
    "two agents and two lengths": (["User-Agent: a", "User-Agent: b", "Content-Length: 7"], b"400"),
    "two agents and both framings": (["User-Agent: a", "User-Agent: b", "Transfer-Encoding: chunked"], b"400"),
    "two agents, one folded": (["User-Agent: a", "User-Agent: b\r\n c"], b"400"),
    "an agent with a blank before the colon": (["User-Agent: a", "User-Agent : b"], b"400"),
    "an agent with a NUL": (["User-Agent: a", "User-Agent: b\x00"], b"400"),
    "two agents over the limit together": (["User-Agent: " + "a" * 20_000, "User-Agent: " + "b" * 20_000], b"400"),
}


@pytest.mark.parametrize("kind", REPEATED)
async def test_repeated_agents_and_types_are_joined_where_that_is_safe(kind: str) -> None:
    lines, status = REPEATED[kind]
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(post_bytes(b"{}", GENERATE, *lines))
        head = await raw.head()
        assert head.split()[1] == status
        if kind == "two agents":
            assert upstream.requests[0].all("user-agent") == ["pydantic-ai/2 google-genai-sdk/2"]
        raw.close()


async def test_two_agents_are_joined_wherever_the_head_is_split() -> None:
    request = post_bytes(b'{"a": 1}', GENERATE, "User-Agent: one", "User-Agent: two")
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer(seen.body))) as upstream,
        proxying(upstream.url) as proxy,
    ):
        for split in range(1, len(request), 7):
            raw = await proxy.raw()
            await raw.send(request[:split])
            await asyncio.sleep(0)
            await raw.send(request[split:])
            assert (await raw.answer())[1] == b'{"a": 1}'
            await raw.send(post_bytes(b"again"))
            assert (await raw.answer())[1] == b"again"
            raw.close()


async def test_silent_and_dripping_heads_are_cut_and_others_are_served() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server={"header_timeout": "500ms"}) as proxy:
            silent = [await proxy.raw() for _ in range(20)]
            dripping = [await proxy.raw() for _ in range(20)]
            for raw in dripping:
                await raw.send(b"GET /v1beta/models HTTP/1.1\r\nHost:")
            async with proxy.post() as response:
                assert response.status == 200
            for raw in silent + dripping:
                assert await raw.rest() == b""
                raw.close()


async def test_connections_beyond_the_limit_are_refused_and_room_comes_back() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server={"max_connections": 3}) as proxy:
            held = [await proxy.raw() for _ in range(3)]
            for raw in held:
                await raw.send(post_bytes(b"{}"))
                await raw.answer()
            extra = await proxy.raw()
            with contextlib.suppress(ConnectionError):
                await extra.send(post_bytes(b"{}"))
                assert await extra.rest() == b""
            extra.close()
            left = held.pop()
            left.close()
            async with asyncio.timeout(WAIT):
                await left.writer.wait_closed()
                while len(proxy.server.main.server.connections) >= 3:  # noqa: ASYNC110 - aiohttp's server tells nobody
                    await asyncio.sleep(0)
            async with proxy.post() as response:
                assert response.status == 200
            for raw in held:
                raw.close()
