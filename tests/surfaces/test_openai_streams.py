"""Streams on the openai surface: passed as they come, kept alive between events, cut where they were cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from tests.surfaces.openai_calls import ANN, CHAT, GPT, MESSAGES, Scripted, chat_bytes, request_bytes, scripted, world
from tests.upstream import WAIT, Peer, Seen, serving

STREAMED = {"model": GPT, "messages": MESSAGES, "stream": True}
COMMENT = b": keep-alive\n\n"


async def test_a_stream_is_passed_chunk_by_chunk_with_its_end() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        for n, gate in enumerate(gates):
            await peer.chunk(b'data: {"n": %d}\n\n' % n)
            await gate.wait()
        await peer.chunk(b"data: [DONE]\n\n")
        await peer.end()

    async with scripted(serving(answer)) as here, here.ann.stream("chat/completions", STREAMED) as given:
        for n, gate in enumerate(gates):
            async with asyncio.timeout(WAIT):
                assert await given.content.readany() == b'data: {"n": %d}\n\n' % n
            gate.set()
        assert await given.read() == b"data: [DONE]\n\n"


async def test_usage_and_done_of_a_stream_arrive() -> None:
    async with world() as here:
        options = {"stream_options": {"include_usage": True}}
        async with here.ann.stream("chat/completions", {**STREAMED, **options}) as given:
            text = (await given.read()).decode()
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("fault", ["cut-fin", "cut-rst"])
async def test_a_stream_that_is_cut_is_a_cut_and_no_end(fault: str) -> None:
    async with world() as here:
        here.oa.script("*", fault, after=2)
        async with here.ann.stream("chat/completions", STREAMED) as given:
            assert given.status == 200
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
                await given.read()
        assert len(here.oa.requests) == 1


@pytest.mark.parametrize("where", ["head", "stream", "upload"])
async def test_a_client_that_leaves_has_its_upstream_request_ended_and_nobody_is_blamed(where: str) -> None:
    left = asyncio.Event()

    async def answer(peer: Peer) -> None:
        if where == "upload":
            await peer.head()
        else:
            await peer.request()
        if where == "stream":
            await peer.stream()
            await peer.chunk(b'data: {"n": 1}\n\n')
        await peer.gone()
        left.set()

    async with scripted(answer) as here:
        raw = await here.proxy.raw()
        body = chat_bytes(stream=True) + b" " * (64 << 20 if where == "upload" else 0)
        await raw.send(request_bytes(body)[: (22 << 20) if where == "upload" else None])
        await here.upstream.arrival()
        if where == "stream":
            await raw.until(b"\n\n")
        raw.close()
        async with asyncio.timeout(5):
            await left.wait()
        for key in await _settled(here):
            assert key["counts"]["key"] == key["counts"]["upstream"] == 0
            assert (key["state"], key["in_flight"]) == ("ready", 0)


async def _settled(here: Scripted) -> list[dict[str, Any]]:
    """The keys of `oa`, once the lease has ended."""
    async with asyncio.timeout(WAIT):
        while True:
            async with here.proxy.client.get(here.proxy.admin_url + "/api/keys") as answer:
                upstreams = (await answer.json())["upstreams"]
            found: list[dict[str, Any]]
            (found,) = [each["keys"] for each in upstreams if each["name"] == "oa"]
            if sum(key["counts"]["gone"] for key in found):
                return found


async def test_a_silent_stream_gets_comments_between_its_events_and_never_inside_one() -> None:
    """Two streams fall silent, one between two events and one inside of one: the first is the other one's clock."""
    more = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.stream()
        whole = b"between" in seen.body
        await peer.chunk(b'data: {"a": 1}\n\n' + (b"" if whole else b'data: {"b"'))
        await more.wait()
        await peer.chunk(b'data: {"b": 2}\n\n' if whole else b": 2}\n\n")
        await peer.end()

    async with scripted(serving(answer), relay={"keepalive": "0.05s"}) as here:
        inside, between = await here.proxy.raw(), await here.proxy.raw()
        await inside.send(request_bytes(chat_bytes(user="inside"), CHAT, "Connection: close"))
        await inside.until(b'data: {"b"')
        await between.send(request_bytes(chat_bytes(user="between"), CHAT, "Connection: close"))
        await between.until(b'{"a": 1}')
        for _ in range(4):
            await between.until(COMMENT)
        more.set()
        assert COMMENT not in await inside.rest()
        rest = await between.rest()
        assert rest.endswith(b"0\r\n\r\n")
        assert b'data: {"b": 2}\n\n' in rest
        inside.close()
        between.close()


async def test_an_answer_that_is_no_plain_event_stream_gets_no_comments() -> None:
    more = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        kind = json.loads(seen.body).get("user")
        if kind == "clock":
            await peer.stream()
            await peer.chunk(b"data: 1\n\n")
        elif kind == "coded":
            await peer.stream("Content-Encoding: zstd")
            await peer.chunk(b"\n\n")
        elif kind == "length":
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 4\r\n\r\n\n\n")
        else:
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            await peer.chunk(b"\n\n")
        await more.wait()
        await (peer.write(b"\n\n") if kind == "length" else peer.end())

    async with scripted(serving(answer), relay={"keepalive": "0.05s"}) as here:
        raws = {kind: await here.proxy.raw() for kind in ("coded", "length", "json", "clock")}
        for kind, raw in raws.items():
            await raw.send(request_bytes(chat_bytes(user=kind), CHAT, "Connection: close"))
            await raw.until(b"data: 1" if kind == "clock" else b"\r\n\r\n")
        for _ in range(4):
            await raws["clock"].until(COMMENT)
        more.set()
        for kind in ("coded", "length", "json"):
            assert COMMENT not in await raws[kind].rest()
        for raw in raws.values():
            raw.close()


async def test_no_comment_goes_ahead_of_an_answer() -> None:
    """Before its head is out an answer may still become an error."""
    refuse = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if b"clock" in seen.body:
            await peer.stream()
            await peer.chunk(b"data: 1\n\n")
            await peer.gone()
        await refuse.wait()
        await peer.answer(b'{"error": {"message": "no"}}', "400 Bad Request")

    async with scripted(serving(answer), relay={"keepalive": "0.05s"}) as here:
        waiting = asyncio.create_task(here.ann.chat(stream=True))
        await here.upstream.arrival()
        clock = await here.proxy.raw()
        await clock.send(request_bytes(chat_bytes(user="clock"), CHAT, "Connection: close"))
        for _ in range(4):
            await clock.until(COMMENT)
        refuse.set()
        assert (await waiting).status == 400
        clock.close()


async def test_comments_are_off_unless_they_are_asked_for() -> None:
    async with world() as here:
        assert here.proxy.server.runtime.rooms.keepalive is None


async def test_the_credential_of_a_browsers_websocket_counts_under_realtime_alone() -> None:
    async with world() as here:
        fields = ("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key." + ANN, "Connection: close")
        told = await here.proxy.exchange(request_bytes(None, "/v1/files", *fields, method="GET", token=None))
        assert told.startswith(b"HTTP/1.1 401 ")
