"""Two sockets joined, and when the other end of one is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from balancer.clock import Clock, SystemClock
from balancer.relay.replay import Body, Budget
from balancer.relay.tunnel import Lost, Socket, Tunnel
from tests.fakes import FakeClock
from tests.proxy import Raw
from tests.surfaces.sockets import (
    MIB,
    frame,
)
from tests.upstream import WAIT


class Held(aiohttp.client_proto.ResponseHandler):
    """A connection behind its handshake that tells when a direction of it is held back."""

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self._upgraded = True
        self.made = asyncio.Event()
        self.held = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.held.set()

    def pause_reading(self) -> None:
        super().pause_reading()
        self.held.set()


@asynccontextmanager
async def pair(clock: Clock | None = None) -> AsyncIterator[tuple[Socket, Raw]]:
    """A socket of ours, over a `Held`, and its other end raw."""
    protocol = Held()
    server = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
    raw = Raw(*await asyncio.open_connection(*server.sockets[0].getsockname()[:2]))
    await protocol.made.wait()
    socket = Socket(protocol, masked=False, now=(clock or SystemClock()).monotonic)
    protocol.set_parser(socket.parser, socket.queue, socket.hear)
    try:
        yield socket, raw
    finally:
        raw.close()
        socket.abort()
        server.close()


async def held(socket: Socket) -> None:
    protocol = socket._protocol
    assert isinstance(protocol, Held)
    async with asyncio.timeout(WAIT):
        await protocol.held.wait()


async def _answer_pings(raw: Raw) -> None:
    while True:
        assert await frame(raw.reader) == (9, b"")
        await raw.send(b"\x8a\x00")


class Ajar:
    """A door that stands open: what passes is sent on."""

    offered: tuple[str, ...] = ()
    text = False

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.stopping = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not expected of a tunnel's door")

    async def write(self, data: bytes) -> None:
        await self.socket.send(data, text=self.text)


BODY = Body(None, None, 0, Budget(0))


@pytest.mark.parametrize("first", ["client", "upstream"])
async def test_a_close_frame_that_nobody_answers_in_time_is_answered_by_us(first: str) -> None:
    async with pair() as (near, client), pair() as (far, upstream):
        tunnel = asyncio.create_task(Tunnel(near, far, Ajar(near), BODY, Ajar(near)).run(30, None, close_wait=0.05))
        closing, other = (client, upstream) if first == "client" else (upstream, client)
        await closing.send(b"\x88\x05\x0f\xa1own")
        assert await frame(other.reader) == (8, b"\x0f\xa1own")
        assert await frame(closing.reader) == (8, b"\x0f\xa1own")
        await asyncio.wait_for(tunnel, WAIT)


@pytest.mark.parametrize("silent", ["client", "upstream"])
async def test_a_side_that_answers_no_ping_ends_the_tunnel(silent: str) -> None:
    async with pair() as (near, client), pair() as (far, upstream):
        tunnel = asyncio.create_task(Tunnel(near, far, Ajar(near), BODY, Ajar(near)).run(0.2, None))
        answering = asyncio.create_task(_answer_pings(upstream if silent == "client" else client))
        with pytest.raises(Lost, match="no sign of life") as lost:
            await asyncio.wait_for(tunnel, WAIT)
        assert lost.value.socket is (near if silent == "client" else far)
        answering.cancel()


async def test_a_silent_side_is_pinged_and_then_given_up() -> None:
    clock = FakeClock()
    async with pair(clock) as (socket, raw):
        clock.advance(29)
        await socket.tend(30, None)
        clock.advance(1)
        await socket.tend(30, None)
        assert await frame(raw.reader) == (9, b"")  # and none for the first look
        clock.advance(30)
        with pytest.raises(Lost, match="no sign of life"):
            await socket.tend(30, None)


async def test_a_pong_is_a_sign_of_life() -> None:
    clock = FakeClock()
    async with pair(clock) as (socket, raw):
        clock.advance(30)
        await socket.tend(30, None)
        await frame(raw.reader)
        await raw.send(b"\x8a\x80\x00\x00\x00\x00" + b"\x81\x82\x00\x00\x00\x00ok")
        async with asyncio.timeout(WAIT):
            assert await socket.receive() == (b"ok", True)
        clock.advance(59)
        await socket.tend(30, None)
        assert await frame(raw.reader) == (9, b"")


async def test_a_side_that_takes_nothing_is_given_up_when_patience_ends_and_not_for_its_silence() -> None:
    clock = FakeClock()
    async with pair(clock) as (socket, raw):
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sending = asyncio.create_task(_send_forever(socket))
        await held(socket)
        clock.advance(299)
        await socket.tend(30, 300)
        clock.advance(1)
        with pytest.raises(Lost, match="takes nothing"):
            await socket.tend(30, 300)
        sending.cancel()


async def _send_forever(socket: Socket) -> None:
    while True:
        await socket.send(b"x" * MIB, text=False)


async def test_a_side_that_we_do_not_listen_to_is_not_given_up_for_its_silence() -> None:
    clock = FakeClock()
    async with pair(clock) as (socket, raw):
        for _ in range(8):
            await raw.send(b"\x82\xfe\xff\x00\x00\x00\x00\x00" + bytes(0xFF00))
        await held(socket)
        clock.advance(1000)
        await socket.tend(30, 300)
