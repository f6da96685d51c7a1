"""Requests that begin in one turn of the event loop leave together."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit

import pytest

from balancer.relay.departures import Departures
from tests.upstream import WAIT, Peer, RawUpstream, raw_upstream


async def connected(upstream: RawUpstream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(upstream.url).port)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def reading(peer: Peer) -> None:
    await peer.request()
    await peer.answer()


@pytest.mark.parametrize("trouble", ["closed", "cannot be written to"])
async def test_requests_leave_past_a_connection_that_takes_none(trouble: str) -> None:
    async with raw_upstream(reading) as upstream, asyncio.timeout(WAIT):
        opened = [await connected(upstream) for _ in range(3)]
        departures = Departures(asyncio.get_running_loop())
        for number, (_, writer) in enumerate(opened):
            departures.add(writer.transport, f"GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert not upstream.requests
        if trouble == "closed":
            opened[1][1].transport.abort()
        else:
            opened[1][1].write_eof()
        for reader, _ in (opened[0], opened[2]):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert not await opened[1][0].read()
        assert sorted(seen.line for seen in upstream.requests) == ["GET /0 HTTP/1.1", "GET /2 HTTP/1.1"]
        for _, writer in opened:
            await closed(writer)


async def test_the_next_turn_has_its_own() -> None:
    async with raw_upstream(reading) as upstream, asyncio.timeout(WAIT):
        departures = Departures(asyncio.get_running_loop())
        for number in range(2):
            reader, writer = await connected(upstream)
            departures.add(writer.transport, f"GET /{number} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await closed(writer)
        assert [seen.line for seen in upstream.requests] == ["GET /0 HTTP/1.1", "GET /1 HTTP/1.1"]
