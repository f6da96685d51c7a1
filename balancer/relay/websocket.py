"""WebSockets through the proxy (RFC 6455): the upstream's handshake is a call like any other, its answer two endless streams.

A handshake that succeeds is an answer with status 101; so the relay's own loop leases the key, judges a refusal, asks another key
or upstream, counts the client's limits and ends the lease, as it does for every call. Only sending (`SocketTransport`), the body
(`SocketAnswer.pump`) and the client's side (a `Door`) differ. The upstream answers before the client is answered: a refusal can
still be an HTTP answer. What passes behind the two heads is in `relay.tunnel`.

    what ends it                            the client sees               the upstream sees           the key
    a close frame of either side            the upstream's code, reason   the client's code, reason   OK
    the client's connection breaks                                        its connection closed       GONE
    the upstream's connection breaks        its connection closed (1006)                              UPSTREAM
    a side is silent, or takes nothing      as if that side had broken    the same                    the same
    the client breaks the protocol          1002; 1009: too large         1001                        OK
    the upstream sends what is too large    1009                          1009                        OK
    the upstream breaks the protocol        its connection closed (1006)  1002                        UPSTREAM
    this process stops                      1001                          1001                        OK
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import cast

import aiohttp
from aiohttp.connector import Connection
from aiohttp.http import WS_KEY

from balancer.errors import AnswerBroken, AnswerCut, ClientGone
from balancer.model import Call, Outbound, Record
from balancer.relay.exchange import Rooms, Upstream
from balancer.relay.relay import relay
from balancer.relay.replay import Body, Budget
from balancer.relay.transport import Answer, HttpAnswer, HttpTransport, Sink, _Connection
from balancer.relay.tunnel import (
    CLOSE_WAIT,
    GOING_AWAY,
    TOO_LARGE,
    Broken,
    Closing,
    Door,
    Lost,
    Socket,
    Tunnel,
    has_left,
)
from balancer.relay.watchdog import Phase, Watchdog
from balancer.wire.headers import first

HEARTBEAT = 30.0
"""Seconds of silence after which a side is pinged; after as many more it counts as gone."""


async def relay_socket(call: Call, door: Door, rooms: Rooms, record: Record) -> None:
    """Open a socket to one of the upstreams in `call.choices` and pass messages until it ends. Raises as `relay` does."""
    call.headers = [*call.headers, ("Upgrade", "websocket")]
    body = Body(None, None, 0, Budget(0))
    upstreams = dict(rooms.upstreams)
    for choice in call.choices:
        upstream = upstreams[choice.upstream]
        upstreams[choice.upstream] = replace(upstream, transport=SocketTransport(upstream, door, body, record))
    await relay(call, body, door, replace(rooms, upstreams=upstreams), record)


class SocketTransport:
    """An upstream's transport for one client's socket: makes the handshake, and leaves other requests to the upstream's own."""

    def __init__(self, upstream: Upstream, door: Door, body: Body, record: Record) -> None:
        self._plain = cast(HttpTransport, upstream.transport)
        self._idle = upstream.timeouts.idle
        self._door = door
        self._body = body
        self._record = record

    async def send(
        self, outbound: Outbound, content: bytes | AsyncIterator[bytes] | None, length: int | None
    ) -> Answer:
        """Raises as every transport does, and AnswerBroken where the answer is neither an error nor a socket."""
        plain = self._plain
        if first(outbound.headers, "upgrade") is None:
            return await plain.send(outbound, content, length)
        key = base64.b64encode(os.urandom(16)).decode()
        outbound.headers += [
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key),
        ]
        if self._door.offered:
            outbound.headers.append(("Sec-WebSocket-Protocol", ", ".join(self._door.offered)))

        def answering(connection: Connection, done: Callable[[Connection | None], None]) -> SocketAnswer:
            return SocketAnswer(connection, done, key, self._door, self._body, self._record, self._idle)

        return await plain.send(outbound, None, None, answering)

    def retire(self) -> None:
        self._plain.retire()

    async def close(self) -> None:
        await self._plain.close()


class SocketAnswer(HttpAnswer):
    """The answer to a handshake: a socket (101), or an error like any other."""

    __slots__ = ("_body", "_door", "_idle", "_key", "_record")

    def __init__(
        self,
        connection: Connection,
        done: Callable[[Connection | None], None],
        key: str,
        door: Door,
        body: Body,
        record: Record,
        idle: float | None,
    ) -> None:
        super().__init__(connection, done)
        self._key = key
        self._door = door
        self._body = body
        self._record = record
        self._idle = idle

    async def ask(
        self, method: str, head: bytes, content: bytes | AsyncIterator[bytes] | None, length: int | None
    ) -> None:
        """Send the handshake and wait for the head of its answer. Raises what aiohttp's protocol raises."""
        protocol = self._connection.protocol
        if protocol is None or protocol.transport is None:
            raise aiohttp.ServerDisconnectedError
        assert isinstance(protocol, _Connection)
        protocol.expect(body=True)
        protocol.transport.write(head)
        while True:
            message, self._content = await protocol.read()
            if message.code == 101 or not 100 <= message.code < 200:
                break
        self.status = message.code
        self.reason = message.reason or ""
        self.headers = list(message.headers.items())
        if self.status == 101:  # it has no content, whatever it says of it
            self.headers = [field for field in self.headers if not field[0].lower().startswith("content-")]

        self._check()

    def _check(self) -> None:
        """Raises AnswerBroken for a success that opens no socket (RFC 6455 section 4.1)."""
        if self.status >= 300:
            return
        if self.status != 101:
            raise AnswerBroken(f"it answered {self.status} to a WebSocket handshake")
        accept = base64.b64encode(hashlib.sha1(self._key.encode() + WS_KEY, usedforsecurity=False).digest()).decode()
        chosen = first(self.headers, "sec-websocket-protocol")
        if (
            (first(self.headers, "upgrade") or "").lower() != "websocket"
            or first(self.headers, "sec-websocket-accept") != accept
            or first(self.headers, "sec-websocket-extensions") is not None
            or (chosen is not None and chosen not in self._door.offered)
        ):
            raise AnswerBroken("its answer to the WebSocket handshake is not valid")

    async def pump(self, sink: Sink, watchdog: Watchdog) -> None:
        """Pass messages both ways until the socket ends; of an error, the body. Raises AnswerCut and ClientGone."""
        if self.status != 101:
            await super().pump(sink, watchdog)
            return
        watchdog.phase(Phase.UPLOAD)  # silence is no failure here: `tend` tells who is alive
        protocol = self._connection.protocol
        if protocol is None or protocol.transport is None:
            raise AnswerCut("it closed the connection behind its handshake")
        near, far = self._door.socket, Socket(protocol, masked=True)
        protocol.set_parser(far.parser, far.queue, far.hear)
        try:
            await Tunnel(near, far, self._door, self._body, sink).run(HEARTBEAT, self._idle)
        except Lost as lost:
            lost.socket.abort()
            if lost.socket is near:
                raise ClientGone from lost
            raise AnswerCut(str(lost)) from lost
        except Broken as broken:
            await self._break(broken, near, far)

    async def _break(self, broken: Broken, near: Socket, far: Socket) -> None:
        """One side broke the protocol, or sent more than passes."""
        ours = Closing(broken.code, str(broken))
        if broken.socket is near:
            self._record.error = f"the client sent {broken}"
            await near.close(ours)
            await far.close(Closing(GOING_AWAY))
            self.close()
            await _read_by(near)
            return
        await far.close(ours)
        if broken.code != TOO_LARGE:
            raise AnswerCut(f"it sent {broken}") from broken
        self._record.error = f"the upstream sent {broken}"
        await near.close(ours)


async def _read_by(near: Socket) -> None:
    """Give the client CLOSE_WAIT to read our close frame, and to leave."""
    near.ignore()
    try:
        await asyncio.sleep(CLOSE_WAIT)
    except asyncio.CancelledError:
        if not has_left(near):
            raise
