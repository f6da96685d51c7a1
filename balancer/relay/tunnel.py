"""Two WebSockets joined (RFC 6455): messages pass in both directions, in order, as they are.

Fragments of a message are joined. While a reader is slow, QUEUED bytes of messages, or one message, wait for it here; then the
other side is not read any more. Pings and pongs are each side's own, and there is no compression. A close frame is passed on and
answered by the side it is meant for; if that does not happen within CLOSE_WAIT, by us.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import WebSocketError, WebSocketWriter
from aiohttp.streams import EofStream

from balancer.relay.replay import Body
from balancer.relay.stream import Reply
from balancer.relay.transport import Sink

LARGEST = 32 << 20
"""Bytes of one message."""
QUEUED = 128 << 10
CLOSE_WAIT = 5.0
"""Seconds for which the answer to a close frame is awaited."""

GOING_AWAY, PROTOCOL_ERROR, TOO_LARGE = 1001, 1002, 1009
_NO_CODE = 0


class Lost(Exception):
    """The connection of a socket ended without a close frame, or its other end shows no life. The text says how."""

    def __init__(self, socket: Socket, how: str = "the connection ended without a close frame") -> None:
        super().__init__(how)
        self.socket = socket


class Broken(Exception):
    """The other end of a socket broke the protocol. `code`: what the socket is to be closed with."""

    def __init__(self, socket: Socket, code: int) -> None:
        super().__init__(f"a message of more than {LARGEST} bytes" if code == TOO_LARGE else "a breach of the protocol")
        self.socket = socket
        self.code = code


class Message(NamedTuple):
    """A whole message, as bytes whatever it is."""

    data: bytes
    text: bool


class Closing(NamedTuple):
    """What a close frame says. Code 0: nothing."""

    code: int = _NO_CODE
    reason: str = ""


class Socket:
    """One side: messages in order, under back-pressure both ways, over a connection whose handshake is done."""

    def __init__(self, protocol: BaseProtocol, *, masked: bool, now: Callable[[], float] = time.monotonic) -> None:
        """`masked`: we are the client there. The connection is to feed `parser`, and to call `hear` when bytes come."""
        transport = protocol.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        self._now = now
        self._protocol = protocol
        self._queue = WebSocketDataQueue(protocol, QUEUED // 2, loop=asyncio.get_running_loop())
        # Text stays bytes: whether it is UTF-8 is for its reader to say. The limit is the smallest size that is refused.
        self.parser = WebSocketReader(self._queue, LARGEST + 1, compress=False, decode_text=False)
        self._writer = WebSocketWriter(protocol, transport, use_mask=masked)
        self._heard = self._now()
        self._blocked: float | None = None
        """Since when a frame has waited for the other end to take it."""
        self.received: Closing | None = None
        self.sent: Closing | None = None

    @property
    def queue(self) -> WebSocketDataQueue:
        """Where `parser` puts what it reads."""
        return self._queue

    @property
    def open(self) -> bool:
        transport = self._protocol.transport
        return transport is not None and not transport.is_closing()

    def hear(self) -> None:
        """Bytes have come."""
        self._heard = self._now()

    async def receive(self) -> Message | Closing:
        """The next message, or the close frame, behind which nothing comes. Raises Lost and Broken."""
        while True:
            try:
                frame = await self._queue.read()
            except WebSocketError as broken:
                raise Broken(self, broken.code) from None
            except (EofStream, OSError):
                raise Lost(self) from None
            match frame.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    return Message(frame.data, frame.type is WSMsgType.TEXT)
                case WSMsgType.CLOSE:
                    if not _may_be_sent(frame.data):
                        raise Broken(self, PROTOCOL_ERROR)
                    self.received = Closing(frame.data, frame.extra or "")
                    return self.received
                case WSMsgType.PING:
                    await self._write(frame.data, WSMsgType.PONG)
                case _:
                    pass  # a pong: it has been heard

    async def send(self, data: bytes, *, text: bool) -> None:
        """Returns when more may come. Raises Lost."""
        await self._write(data, WSMsgType.TEXT if text else WSMsgType.BINARY)

    async def close(self, closing: Closing) -> None:
        """Send a close frame, unless one was. The connection stays."""
        if self.sent is not None:
            return
        self.sent = closing
        code = closing.code.to_bytes(2, "big") if closing.code != _NO_CODE else b""
        with contextlib.suppress(Lost):
            await self._write(code + closing.reason.encode(), WSMsgType.CLOSE)

    async def _write(self, data: bytes, kind: WSMsgType) -> None:
        if self._blocked is None:
            self._blocked = self._now()
        try:
            await self._writer.send_frame(data, kind)
        except ConnectionError:
            raise Lost(self) from None
        self._blocked = None

    async def tend(self, every: float, patience: float | None) -> None:
        """Ping it after `every` seconds of silence. Raises Lost after twice as many, or where it takes nothing for `patience`."""
        now = self._now()
        if self._blocked is not None and self._protocol.writing_paused:
            self._heard = now  # no ping would reach it
            if patience is not None and now - self._blocked >= patience:
                raise Lost(self, "it takes nothing")
        elif self._protocol._reading_paused:
            self._heard = now  # we do not listen
        elif now - self._heard >= 2 * every:
            raise Lost(self, "it gives no sign of life")
        elif now - self._heard >= every and self.sent is None:
            await self._write(b"", WSMsgType.PING)

    def abort(self) -> None:
        """End the connection, whatever was still to be sent."""
        if self._protocol.transport is not None:
            self._protocol.transport.abort()

    def ignore(self) -> None:
        """Send the end of our side, and throw away what still comes: closed with bytes unread, the connection would be reset,
        and our last frame be lost in that (RFC 9112 section 9.6).
        """
        self._protocol.resume_reading()
        transport = self._protocol.transport
        if transport is not None and not transport.is_closing() and transport.can_write_eof():
            transport.write_eof()


def _may_be_sent(code: int) -> bool:
    """Whether a close frame may say so (RFC 6455 section 7.4)."""
    return code in (_NO_CODE, 1000, 1001, 1002, 1003) or 1007 <= code <= 1014 or 3000 <= code <= 4999


class Door(Reply, Protocol):
    """A reply that becomes a socket when it is started with 101; then `write` sends one message."""

    offered: tuple[str, ...]
    """Subprotocols of the client that may travel."""
    text: bool
    """What the next message is."""
    stopping: asyncio.Event
    """This process stops, and the client is still there."""

    @property
    def socket(self) -> Socket: ...


class Tunnel:
    """Two sockets, joined. `near` is the client's, `far` the upstream's; `body` counts what comes from the client."""

    def __init__(self, near: Socket, far: Socket, door: Door, body: Body, sink: Sink) -> None:
        self._near = near
        self._far = far
        self._door = door
        self._body = body
        self._sink = sink

    async def run(self, heartbeat: float, patience: float | None, close_wait: float = CLOSE_WAIT) -> None:
        """Returns when both are closed, each with a frame. Raises Lost and Broken.

        `heartbeat` and `patience` (seconds) are those of `Socket.tend`; for `close_wait` the answer to a close frame is awaited.
        """
        near, far = self._near, self._far
        up, down = asyncio.create_task(self._up()), asyncio.create_task(self._down())
        tending = asyncio.create_task(self._tend(heartbeat, patience))
        tasks = (up, down, tending, asyncio.create_task(self._door.stopping.wait()))
        try:
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if near.received or far.received:
                    await asyncio.wait((up, down), timeout=close_wait, return_when=asyncio.FIRST_EXCEPTION)
            except asyncio.CancelledError:
                if not ((near.received or far.received) and has_left(near)):
                    raise
            await self._settle([failed for task in (up, down, tending) if task.done() and (failed := task.exception())])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self, failures: Sequence[BaseException]) -> None:
        """Answer the close frames that the other side has not, or say that we go; raise what has ended the tunnel else."""
        near, far = self._near, self._far
        for failure in failures:
            if not (isinstance(failure, Lost) and (near.received or far.received)):
                raise failure
        for each in (near, far):
            await each.close(each.received or Closing(GOING_AWAY))

    async def _up(self) -> None:
        near, far, body = self._near, self._far, self._body
        while isinstance(message := await near.receive(), Message):
            body.size += len(message.data)
            await far.send(message.data, text=message.text)
        await far.close(message)

    async def _down(self) -> None:
        far, door, sink = self._far, self._door, self._sink
        while isinstance(message := await far.receive(), Message):
            door.text = message.text
            await sink.write(message.data)
        await self._near.close(message)

    async def _tend(self, every: float, patience: float | None) -> None:
        while True:
            await asyncio.sleep(every / 4)
            for each in (self._near, self._far):
                await each.tend(every, patience)


def has_left(near: Socket) -> bool:
    """Whether it was the client's leaving that has cancelled us; then that counts as dealt with."""
    task = asyncio.current_task()
    if near.open or task is None:
        return False
    task.uncancel()
    return True
