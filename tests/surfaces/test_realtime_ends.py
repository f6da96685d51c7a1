"""How a WebSocket ends, who is told what of it, and what passes until then."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from balancer.relay.tunnel import LARGEST
from tests.surfaces.sockets import (
    ANN,
    HANDSHAKE,
    MIB,
    MODEL,
    Visit,
    closed,
    dial,
    frame,
    in_flight,
    keys_of,
    opened,
    proxied,
    settled,
    shake,
    sockets,
)
from tests.upstream import WAIT, Peer, raw_upstream

# How it ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "bye"), (1008, "\u4e0d\u884c"), (1011, "x" * 123), (4001, "own")]
)
async def test_what_the_upstream_closes_with_reaches_the_client(code: int, reason: str) -> None:
    async def play(visit: Visit) -> None:
        await visit.socket.send_str("last")
        await visit.socket.close(code=code, message=reason.encode())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            assert await socket.receive_str(timeout=WAIT) == "last"
            assert await closed(socket) == (code, reason)
        await settled(proxy)
        assert await in_flight(proxy) == 0


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (4005, "client bye")])
async def test_what_the_client_closes_with_reaches_the_upstream_and_its_answer_the_client(
    code: int, reason: str
) -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        await visit.socket.send_str("ready")
        seen.append(await visit.closing())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            assert await socket.receive_str(timeout=WAIT) == "ready"
            await socket.close(code=code, message=reason.encode())
            assert socket.close_code == 1000  # the upstream's answer
        await upstream.end()
        assert seen == [(code, reason)]
        await settled(proxy)
        assert await in_flight(proxy) == 0


@pytest.mark.parametrize(("answer", "code"), [(b"\x88\x00", 0), (b"\x88\x02\x0b\xb9", 3001), (b"", 4001)])
async def test_the_clients_close_frame_is_answered_by_the_upstreams_or_where_that_just_leaves_by_its_own(
    answer: bytes, code: int
) -> None:
    async def script(peer: Peer) -> None:
        await shake(peer)
        assert await frame(peer.reader) == (8, b"\x0f\xa1own")
        await peer.write(answer)

    async with raw_upstream(script) as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        await raw.send(b"\x88\x85\x00\x00\x00\x00\x0f\xa1own")
        kind, payload = await frame(raw.reader)
        assert (kind, int.from_bytes(payload[:2], "big")) == (8, code)
        assert await raw.rest() == b""
        raw.close()
        await settled(proxy)


async def test_an_upstream_that_drops_the_connection_is_a_cut_behind_what_it_said() -> None:
    async def play(visit: Visit) -> None:
        await visit.socket.send_bytes(b"z" * MIB)
        await visit.socket.send_str("half a thought")
        visit.request.protocol.force_close()

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            assert len(await socket.receive_bytes(timeout=WAIT)) == MIB
            assert await socket.receive_str(timeout=WAIT) == "half a thought"
            assert await closed(socket) == (1006, "")
        await settled(proxy)
        assert await in_flight(proxy) == 0


@pytest.mark.parametrize("bad", [b"\x83\x00", b"\x88\x02\x03\xee", b"\x88\x02\x13\x88", b"\xc1\x00"])
async def test_an_upstream_that_breaks_the_protocol_is_told_and_cut(bad: bytes) -> None:
    told: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        await shake(peer)
        await peer.write(bad)
        told.set_result(await frame(peer.reader))

    async with raw_upstream(script) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            assert await closed(socket) == (1006, "")
        kind, payload = await asyncio.wait_for(told, WAIT)
        assert (kind, payload[:2]) == (8, b"\x03\xea")


@pytest.mark.parametrize("bad", [b"\x83\x80aaaa", b"\x88\x82\x00\x00\x00\x00\x03\xee"])
async def test_a_client_that_breaks_the_protocol_is_told_and_the_upstream_is_left(bad: bytes) -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        seen.append(await visit.closing())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        await raw.send(bad)
        kind, payload = await frame(raw.reader)
        assert (kind, payload[:2]) == (8, b"\x03\xea")
        await upstream.end()
        assert seen == [(1001, "")]
        raw.close()
        await settled(proxy)
        assert await in_flight(proxy) == 0


async def test_a_client_that_leaves_frees_the_upstream_at_once() -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        await visit.socket.send_str("ready")
        seen.append(await visit.closing())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        assert await frame(raw.reader) == (1, b"ready")
        raw.writer.transport.abort()
        async with asyncio.timeout(5):
            await upstream.ended.acquire()
        assert seen in ([(1006, "")], [])  # or the handler was cancelled before it was told
        await settled(proxy)
        assert await in_flight(proxy) == 0
        assert [key["counts"]["upstream"] for key in await keys_of(proxy)] == [0, 0]


async def test_a_client_that_closes_and_does_not_wait_for_the_answer_has_still_said_why() -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        seen.append(await visit.closing())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        await raw.send(b"\x88\x85\x00\x00\x00\x00\x0f\xa5bye")
        raw.close()
        await upstream.end()
        assert seen == [(4005, "bye")]


async def test_a_client_that_leaves_on_a_close_frame_without_answering_it_has_not_left_early(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        await shake(peer)
        await peer.write(b"\x88\x05\x0f\xa1own")
        answered.set_result(await frame(peer.reader))

    async with raw_upstream(script) as upstream, proxied(upstream.url, logging={"level": "info"}) as proxy:
        raw = await opened(proxy)
        assert await frame(raw.reader) == (8, b"\x0f\xa1own")
        raw.close()
        assert await asyncio.wait_for(answered, WAIT) == (8, b"\x0f\xa1own")
        await settled(proxy)
        proxy.server.runtime.logs.flush()
    (line,) = [line for line in "".join(capsys.readouterr()).splitlines() if '"path":"/v1/realtime"' in line]
    assert '"status":101' in line
    assert '"error"' not in line


async def test_a_client_that_leaves_while_keys_are_tried_frees_the_upstream() -> None:
    gone = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.gone()
        gone.set()

    async with raw_upstream(script) as upstream, proxied(upstream.url) as proxy:
        raw = await proxy.raw()
        await raw.send(HANDSHAKE)
        await upstream.arrival()
        raw.writer.transport.abort()
        async with asyncio.timeout(5):
            await gone.wait()
        await settled(proxy)
        assert await in_flight(proxy) == 0


async def test_a_process_that_stops_says_so_to_both_sides() -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        await visit.socket.send_str("ready")
        seen.append(await visit.closing())

    async with sockets(play) as upstream, aiohttp.ClientSession() as client:
        async with proxied(upstream.url) as proxy:
            socket = await client.ws_connect(proxy.url + MODEL, headers=ANN)
            assert await socket.receive_str(timeout=WAIT) == "ready"
        assert await closed(socket) == (1001, "")
        await upstream.end()
        assert seen == [(1001, "")]


async def test_a_reload_leaves_open_sockets_alone() -> None:
    async with sockets() as upstream, sockets() as other, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            async with proxied(other.url) as second:
                proxy.server.runtime.apply(second.server.runtime.settings)
            await socket.send_str("still here")
            assert await socket.receive_str(timeout=WAIT) == "still here"
            async with dial(proxy):
                assert len(other.requests) == 1


# Sizes and speeds -----------------------------------------------------------------------------------------------------


async def test_a_message_of_the_largest_size_passes_both_ways() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy, dial(proxy) as socket:
        await socket.send_bytes(b"x" * LARGEST)
        assert len(await socket.receive_bytes(timeout=WAIT)) == LARGEST


async def test_a_message_of_the_client_that_is_larger_is_refused_with_1009() -> None:
    seen: list[tuple[int, str]] = []

    async def play(visit: Visit) -> None:
        seen.append(await visit.closing())

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            await socket.send_bytes(b"x" * (LARGEST + 1))
            code, reason = await closed(socket)
            assert code == 1009
            assert str(LARGEST) in reason
        await upstream.end()
        assert seen == [(1001, "")]
        await settled(proxy)


async def test_a_message_of_the_upstream_that_is_larger_closes_both_with_1009() -> None:
    told: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        await shake(peer)
        await peer.write(b"\x82\x7f" + (LARGEST + 1).to_bytes(8, "big"))
        told.set_result(await frame(peer.reader))

    async with raw_upstream(script) as upstream, proxied(upstream.url) as proxy, dial(proxy) as socket:
        code, reason = await closed(socket)
        assert code == 1009
        assert str(LARGEST) in reason
        kind, payload = await asyncio.wait_for(told, WAIT)
        assert (kind, payload[:2]) == (8, b"\x03\xf1")


async def test_fragments_are_joined_and_pings_answered_between_them() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        mask = b"\x80\x00\x00\x00\x00"
        await raw.send(b"\x01\x82\x00\x00\x00\x00he" + b"\x89\x81\x00\x00\x00\x00!" + b"\x80\x82\x00\x00\x00\x00y!")
        assert await frame(raw.reader) == (10, b"!")
        assert await frame(raw.reader) == (1, b"hey!")
        await raw.send(b"\x82" + mask)
        assert await frame(raw.reader) == (2, b"")
        raw.close()


async def test_messages_sent_before_the_handshake_is_answered_arrive_in_order() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        raw = await proxy.raw()
        frames = [b"\x81\x81\x00\x00\x00\x00" + bytes([letter]) for letter in b"abc"]
        await raw.send(HANDSHAKE + b"".join(frames))
        assert (await raw.head()).startswith(b"HTTP/1.1 101 ")
        assert [await frame(raw.reader) for _ in frames] == [(1, b"a"), (1, b"b"), (1, b"c")]
        raw.close()


async def test_a_slow_reader_slows_the_upstream_and_misses_nothing() -> None:
    count, size = 400, 250_000
    sent = 0
    stuck = asyncio.Event()

    async def play(visit: Visit) -> None:
        nonlocal sent
        while sent < count:
            sending = asyncio.ensure_future(visit.socket.send_bytes(sent.to_bytes(4, "big") * (size // 4)))
            if not (await asyncio.wait({sending}, timeout=0.5))[0]:
                stuck.set()
            await sending
            sent += 1
        await visit.socket.close()

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        raw = await opened(proxy)
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(WAIT):
            await stuck.wait()
        assert sent * size < 40 * MIB
        raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for number in range(count):
            kind, data = await frame(raw.reader)
            assert (kind, len(data), data[:4]) == (2, size, number.to_bytes(4, "big"))
        raw.close()


async def test_a_slow_upstream_slows_the_client() -> None:
    go = asyncio.Event()
    taken = 0

    async def play(visit: Visit) -> None:
        nonlocal taken
        await go.wait()
        async for message in visit.socket:
            taken += len(message.data)

    async with sockets(play) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            sent = 0
            while (await asyncio.wait({sending := asyncio.ensure_future(socket.send_bytes(b"x" * MIB))}, timeout=0.5))[
                0
            ]:
                sent += MIB
                assert sent < 60 * MIB
            go.set()
            async with asyncio.timeout(WAIT):
                await sending
                await socket.send_bytes(b"end")
                await socket.close()
        await upstream.end()
        assert taken == sent + MIB + 3
