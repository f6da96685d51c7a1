"""The listening side: aiohttp's server, with what it leaves open closed.

- A request head must arrive within `header_timeout`, however slowly its bytes drip (aiohttp has no such limit).
- Two `User-Agent` lines, or two equal `Content-Type` lines, are joined instead of refused: popular clients send them, and
  aiohttp's parser has no setting for it. See `RepairingParser` for the rules that keep this safe.
- What the parser refuses is answered in a surface's dialect, and neither the answer nor the log repeats a byte of it.
- Connections beyond `max_connections` are closed at once.
- A client that leaves cancels its handler, so that the upstream is freed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong

from balancer.errors import ProxyError

log = structlog.get_logger()

FIELD_LIMIT = 32768
"""Bytes of a request line or of one header field."""
LINGER = 5.0
"""Seconds for which the rest of a request that was answered early is read and thrown away, so that the answer arrives."""
_HEAD_LIMIT = 65536
_DUPLICATE = re.compile(r"Duplicate '(User-Agent|Content-Type)' header", re.IGNORECASE)


def repair(head: bytes) -> bytes | None:
    """A request head with its repeated User-Agent and Content-Type lines made one; None if that would not be safe.

    User-Agents are joined by a space, which is that field's own syntax (RFC 9110 section 10.1.5: products separated by
    space). Equal Content-Types become one; different ones stay refused. Nothing is touched in a head with a folded line.
    """
    lines = head.split(b"\r\n")
    if any(line[:1] in (b" ", b"\t") for line in lines[1:]):
        return None
    kept: list[bytes] = []
    places: dict[bytes, int] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or name not in (b"user-agent", b"content-type"):
            kept.append(line)
            continue
        value = value.strip(b" \t")
        if name not in places:
            places[name] = len(kept)
            kept.append(line)
        elif name == b"user-agent":
            kept[places[name]] = kept[places[name]].rstrip(b" \t") + b" " + value
        elif kept[places[name]].partition(b":")[2].strip(b" \t") != value:
            return None
    return b"\r\n".join(kept)


class RepairingParser:
    """aiohttp's request parser, given a second chance at heads that it refuses for a duplicate field.

    The bytes of an unfinished head are kept, at most 64 KiB of them and only where a message begins. When the parser
    refuses such a head for one of the two fields, the head is repaired and fed once to a fresh parser with the same limits:
    nothing is accepted that it would not accept without the second line. A head that was pipelined behind another request in
    one read stays refused.
    """

    __slots__ = ("_fresh", "_head", "_on_head", "_parser", "_payload", "message_consumed")

    def __init__(self, fresh: Callable[[], Any], on_head: Callable[[bool], None]) -> None:
        """`on_head(complete)` is told when a head has begun (False) and when it is complete (True)."""
        self._fresh = fresh
        self._on_head = on_head
        self._head = b""
        self._payload: Any = None
        self._adopt(fresh())

    def _adopt(self, parser: Any) -> None:
        self._parser = parser
        self.message_consumed = parser.message_consumed

    def __getattr__(self, name: str) -> Any:
        """Everything else of aiohttp's parser, as it is."""
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[Any], bool, bytes]:
        payload = self._payload
        between = payload is None or payload.is_eof()
        if between and len(self._head) <= _HEAD_LIMIT:
            self._head = self._head + data if self._head else data
        try:
            result = self._parser.feed_data(data)
        except HttpProcessingError as refused:
            result = self._again(refused)
        messages = result[0]
        if messages:
            if messages[0][0].version[0] != 1:
                raise BadHttpMessage("not HTTP/1")
            self._head = b""
            self._payload = messages[-1][1]
            self._on_head(True)
        elif between and data:
            self._on_head(False)
        return result  # type: ignore[no-any-return]

    def _again(self, refused: HttpProcessingError) -> Any:
        head, rest = self._head, b""
        self._head = b""
        self._on_head(True)
        if _DUPLICATE.search(str(refused.message)) is None or len(head) > _HEAD_LIMIT:
            raise refused
        head, end, rest = head.partition(b"\r\n\r\n")
        repaired = repair(head)
        if not end or repaired is None:
            raise refused
        self._adopt(self._fresh())
        return self._parser.feed_data(repaired + end + rest)


class Listeners:
    """The sockets of one application, and the connections that came in through them."""

    def __init__(
        self,
        runner: web.AppRunner,
        refuse: Callable[[ProxyError], web.Response],
        *,
        header_timeout: float | None,
        max_connections: int | None,
    ) -> None:
        """`runner` is set up. Must be made inside the running loop."""
        assert runner.server is not None
        self.server = runner.server
        self.refuse = refuse
        self.header_timeout = header_timeout
        self.max_connections = max_connections
        self.heads: dict[_Connection, float] = {}
        """Connections from which a request head is awaited that has begun, or is the first: since when."""
        self.connections: set[_Connection] = set()
        """Those that are open, bytes that are still to leave included."""
        self.emptied: asyncio.Future[None] | None = None
        """Ends when the last connection has: for `flush`."""
        self._sockets: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> list[tuple[str, int]]:
        """Listen. Returns the addresses, with the port that was chosen where `port` is 0. Raises OSError."""
        loop = asyncio.get_running_loop()
        patience = None if tls is None else self.header_timeout
        server = await loop.create_server(
            lambda: _Connection(self), host, port, ssl=tls, ssl_handshake_timeout=patience, backlog=1024
        )
        self._sockets.append(server)
        if self._sweeper is None:
            self._sweeper = loop.create_task(self._sweep())
        return [sock.getsockname()[:2] for sock in server.sockets]

    def close(self) -> None:
        """Accept nothing more; connections that are open stay."""
        for server in self._sockets:
            server.close()
        self._sockets.clear()

    async def flush(self) -> None:
        """Close every connection behind the last byte that was written to it. Returns when all have left."""
        for connection in self.connections:
            connection.force_close()
        if self.connections:
            self.emptied = asyncio.get_running_loop().create_future()
            await self.emptied

    async def stop(self) -> None:
        self.close()
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _sweep(self) -> None:
        """One look a second at all heads that are awaited, instead of a timer for each."""
        while True:
            await asyncio.sleep(1.0)
            if self.header_timeout is None:
                continue
            late = time.monotonic() - self.header_timeout
            for connection in [each for each, since in self.heads.items() if since < late]:
                self.heads.pop(connection, None)
                connection.force_close()


class _Connection(web.RequestHandler):
    """One connection of a client."""

    __slots__ = ("_listeners", "_refused")

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._refused = False
        super().__init__(listeners.server, loop=asyncio.get_running_loop(), **listeners.server._kwargs)
        self._parser = RepairingParser(self._fresh_parser, self._on_head)  # type: ignore[assignment]

    def _fresh_parser(self) -> HttpRequestParser:
        return HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        listeners = self._listeners
        if listeners.max_connections is not None and len(listeners.server._connections) >= listeners.max_connections:
            log.warning(
                "connection refused", reason="server.max_connections is reached", limit=listeners.max_connections
            )
            self._force_close = True
            cast(asyncio.Transport, transport).abort()  # uvloop's is one in all but name
            return
        super().connection_made(transport)
        listeners.connections.add(self)
        listeners.heads[self] = time.monotonic()
        if listeners.emptied is not None:  # accepted by the system before we closed the door
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        listeners = self._listeners
        listeners.heads.pop(self, None)
        super().connection_lost(exc)
        listeners.connections.discard(self)
        if listeners.emptied is not None and not listeners.connections and not listeners.emptied.done():
            listeners.emptied.set_result(None)

    def _on_head(self, complete: bool) -> None:
        heads = self._listeners.heads
        if complete:
            heads.pop(self, None)
        elif self not in heads:
            heads[self] = time.monotonic()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the answer. Where it ends the connection while bytes are still coming, our side is closed and they are
        thrown away until the client closes its own, for LINGER at most: a close with bytes unread would be a reset, and
        the answer lost in it (RFC 9112 section 9.6). aiohttp does so for what is left of a body."""
        sent = await super().finish_response(request, resp, start_time)
        transport = self.transport
        coming = self._refused or not (resp.keep_alive or request.content.is_eof())
        if not coming or transport is None or not transport.can_write_eof():
            return sent
        transport.write_eof()
        if self._refused:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    await asyncio.get_running_loop().create_future()  # cancelled when the connection ends
        return sent

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """An answer to what never became a request. `message` may hold raw bytes of it, so it is not repeated."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            self.force_close()
            raise ConnectionResetError("the answer has begun, or the client has left")
        match exc:
            case LineTooLong():
                error = ProxyError(400, "bad_request", "The request line or a header field is too long.", close=True)
            case BadHttpMessage() | HttpProcessingError():
                error = ProxyError(400, "bad_request", "The request is not valid HTTP.", close=True)
            case _:
                error = ProxyError(status, "internal_error", "An internal error.", close=True)
        if error.status == 400:
            log.warning("malformed request", error=type(exc).__name__)
            self._refused = self._close = True  # what still comes is not parsed
        else:
            log.error("request failed outside of the application", exc_info=exc)
        return self._listeners.refuse(error)
