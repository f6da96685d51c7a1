"""Heads with repeated lines, and connections: what the listener adds to aiohttp's server."""

from __future__ import annotations

import asyncio
import socket

import pytest

from balancer.repairing import repair
from tests.proxy import GENERATE, KEYS, post_bytes, proxying
from tests.upstream import WAIT, raw_upstream, serving

LINE = b"POST /x HTTP/1.1\r\nHost: h\r\n"
REPAIRED: dict[str, tuple[bytes, bytes | None]] = {
    "nothing twice": (b"User-Agent: a\r\nContent-Type: t", b"User-Agent: a\r\nContent-Type: t"),
    "two agents": (b"User-Agent: a\r\nUser-Agent: b", b"User-Agent: a b"),
    "two agents, odd case, blanks": (b"user-agent:  a \t\r\nX: y\r\nUSER-AGENT:\tb ", b"user-agent:  a b\r\nX: y"),
    "three agents": (b"User-Agent: a\r\nUser-Agent: b\r\nUser-Agent: c", b"User-Agent: a b c"),
    "an empty agent": (b"User-Agent:\r\nUser-Agent: b", b"User-Agent: b"),
    "two equal types": (b"Content-Type: t\r\ncontent-type:t ", b"Content-Type: t"),
    "two types that differ": (b"Content-Type: t\r\nContent-Type: u", None),
    "two types that differ in case": (b"Content-Type: t/x\r\nContent-Type: T/x", None),
    "three types, the last another": (b"Content-Type: t\r\nContent-Type: t\r\nContent-Type: u", None),
    "a folded line": (b"User-Agent: a\r\nUser-Agent: b\r\n c", None),
    "a folded line elsewhere": (b"X: y\r\n\tz\r\nUser-Agent: a\r\nUser-Agent: b", None),
    "lengths are left alone": (b"Content-Length: 1\r\nContent-Length: 2", b"Content-Length: 1\r\nContent-Length: 2"),
    "names that look like it": (b"User-Agent : a\r\nUser-Agent: b", b"User-Agent : a\r\nUser-Agent: b"),
    "a line without a colon": (b"User-Agent\r\nUser-Agent: b", b"User-Agent\r\nUser-Agent: b"),
    "bytes of no language": (b"User-Agent: \xff\r\nUser-Agent: \x80", b"User-Agent: \xff \x80"),
}


@pytest.mark.parametrize("case", REPAIRED)
def test_repeated_lines_become_one_where_that_is_safe(case: str) -> None:
    head, expected = REPAIRED[case]
    assert repair(LINE + head) == (None if expected is None else LINE + expected)


@pytest.mark.parametrize("case", REPAIRED)
def test_a_repaired_head_needs_no_repair(case: str) -> None:
    repaired = repair(LINE + REPAIRED[case][0])
    assert repaired is None or repair(repaired) == repaired


def test_the_request_line_is_no_field() -> None:
    assert repair(b"GET user-agent: x HTTP/1.1\r\nUser-Agent: a") == b"GET user-agent: x HTTP/1.1\r\nUser-Agent: a"


async def test_a_repaired_request_keeps_its_body_and_what_is_pipelined_behind_it() -> None:
    two = ("User-Agent: one", "Content-Type: application/json", "User-Agent: two", "Content-Type: application/json")
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer(seen.body))) as upstream,
        proxying(upstream.url) as proxy,
    ):
        raw = await proxy.raw()
        await raw.send(post_bytes(b"first", GENERATE, *two) + post_bytes(b"second") + post_bytes(b"third"))
        assert [(await raw.answer())[1] for _ in range(3)] == [b"first", b"second", b"third"]
        await raw.send(post_bytes(b"fourth", GENERATE, *two))
        assert (await raw.answer())[1] == b"fourth"
        raw.close()
        assert upstream.requests[0].all("user-agent") == ["one two"]
        assert upstream.requests[0].all("content-type") == ["application/json"]


async def test_a_repaired_request_with_a_chunked_body_in_pieces_is_read_whole() -> None:
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer(seen.body))) as upstream,
        proxying(upstream.url) as proxy,
    ):
        raw = await proxy.raw()
        request = post_bytes(b"", GENERATE, "Transfer-Encoding: chunked", "User-Agent: a", "User-Agent: b")
        for piece in (
            request.replace(b"Content-Length: 0\r\n", b""),
            b"3\r\nabc\r\n",
            b"2\r\nde",
            b"\r\n0\r\n",
            b"\r\n",
        ):
            await raw.send(piece)
            await asyncio.sleep(0)
        assert (await raw.answer())[1] == b"abcde"
        raw.close()


@pytest.mark.parametrize("upgrade", ["websocket", "tcp", "h2c"])
async def test_a_body_behind_a_wish_to_change_the_protocol_is_never_taken_for_a_request(upgrade: str) -> None:
    hidden = b"GET /v1beta/hidden/x HTTP/1.1\r\nHost: h\r\n\r\n"
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer(b"ok"))) as upstream,
        proxying(upstream.url) as proxy,
    ):
        whole = await proxy.exchange(post_bytes(hidden, GENERATE, f"Upgrade: {upgrade}", "Connection: Upgrade, close"))
        assert whole.count(b"HTTP/1.1 ") == 1
        assert not any("hidden" in seen.line for seen in upstream.requests)


LARGE: dict[str, bytes] = {
    "a field": b"GET /v1beta/models HTTP/1.1\r\nHost: h\r\nX-Y: " + bytes(4 << 20).replace(b"\0", b"k") + b"\r\n\r\n",
    "a target": b"GET /v1beta/" + bytes(4 << 20).replace(b"\0", b"k") + b" HTTP/1.1\r\nHost: h\r\n\r\n",
    "junk": bytes(4 << 20),
}


@pytest.mark.parametrize("what", LARGE)
async def test_a_client_that_is_still_sending_what_was_refused_gets_its_answer(what: str) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream, proxying(upstream.url) as proxy:
        whole = await proxy.exchange(LARGE[what])
        assert whole.split()[1] == b"400"
        assert not upstream.requests


async def test_a_client_that_is_refused_sees_the_end_at_once_though_it_goes_on() -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server={"max_body": "1KiB"}) as proxy:
            raw = await proxy.raw()
            await raw.send(post_bytes(bytes(1 << 20))[: 1 << 16])
            assert (await raw.rest()).split()[1] == b"413"
            await raw.send(bytes(1 << 16))
            raw.close()
        assert not upstream.requests


async def test_a_flush_ends_when_the_last_byte_has_left_and_not_before() -> None:
    size = 8 << 20
    async with proxying("http://127.0.0.1:9", KEYS) as proxy:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, proxy.server.address)
        reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        async with asyncio.timeout(WAIT):
            await reader.readuntil(b'{"status":"ok"}')
            (connection,) = proxy.server.main.connections
            assert connection.transport is not None
            connection.transport.write(bytes(size))
            flush = asyncio.ensure_future(proxy.server.main.flush())
            for _ in range(100):
                await asyncio.sleep(0)
            assert not flush.done()
            assert await reader.read(-1) == bytes(size)
            await flush
        writer.close()


async def test_with_nobody_connected_a_flush_ends_at_once() -> None:
    async with proxying("http://127.0.0.1:9", KEYS) as proxy:
        await proxy.server.main.flush()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_head_in_single_bytes_is_a_head(version: str) -> None:
    request = post_bytes(b"{}", GENERATE, "Connection: close", version=version)
    async with (
        raw_upstream(serving(lambda peer, seen: peer.answer(seen.body))) as upstream,
        proxying(upstream.url) as proxy,
    ):
        raw = await proxy.raw()
        for number in range(len(request)):
            await raw.send(request[number : number + 1])
            await asyncio.sleep(0)
        assert (await raw.rest()).endswith(b"\r\n\r\n{}")
        raw.close()
