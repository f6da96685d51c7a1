"""The listening side: aiohttp's server, with what it leaves open closed.

- A request head must arrive within `header_timeout`, however slowly its bytes drip (aiohttp has no such limit).
- Two `User-Agent` lines, or two equal `Content-Type` lines, are joined instead of refused: popular clients send them, and
  aiohttp's parser has no setting for it. See `repairing` for the rules that keep this safe.
- What the parser refuses is answered in a surface's dialect, and neither the answer nor the log repeats a byte of it.
- Connections beyond `max_connections` are closed at once.
- A client that leaves cancels its handler, so that the upstream is freed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import structlog
from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser, RawRequestMessage, StreamWriter
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError, LineTooLong
from aiohttp.streams import EmptyStreamReader
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, _ErrInfo

from balancer.errors import ProxyError
from balancer.repairing import RepairingParser
from balancer.surfaces.base import RelayedResponse

log = structlog.get_logger()

FIELD_LIMIT = 32768
"""Bytes of a request line or of one header field."""
LINGER = 5.0
"""Seconds for which the rest of a request that was answered early is read and thrown away, so that the answer arrives."""


class _Request(web.Request):
    """aiohttp's request, with what every step asks it for as plain attributes: its cached properties take ten times as long."""

    __slots__ = ("body_exists", "headers", "keep_alive", "method", "raw_path", "version")
    ATTRS = web.Request.ATTRS.union(__slots__)

    def __init__(self, message: RawRequestMessage, payload: StreamReader, *rest: Any, **limits: Any) -> None:
        super().__init__(message, payload, *rest, **limits)
        self.body_exists = type(payload) is not EmptyStreamReader
        self.headers = message.headers
        self.keep_alive = not message.should_close
        self.method = message.method
        self.raw_path = message.path
        self.version = message.version


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

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Only where it was paused: aiohttp asks at the end of every body and parses nothing at all for it."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    async def start(self) -> None:
        """aiohttp's loop over the connection's requests, but for the task that it makes for each: to make one, to switch to it
        and to be woken by it is 2 % of a small request. What a task keeps apart, context variables, nothing of ours sets;
        a client that leaves cancels this one (`connection_lost`), and with it whatever its request awaits.
        """
        messages = self._messages
        while not self._force_close:
            if not messages:
                self._waiter = self._loop.create_future()
                try:
                    await self._waiter
                finally:
                    self._waiter = None
            message, payload = messages.popleft()
            request, answering = self._begun(message, payload)
            try:
                response, left = await answering
                if left:
                    break
                self._keepalive = bool(response.keep_alive)
                if not payload.is_eof():
                    await self._linger(payload)
                payload.set_exception(_PAYLOAD_ACCESS_ERROR)
            except ConnectionError:
                break
            except Exception as failure:
                # Its way, not `log`: what its parser quotes of the request is left out there.
                self.log_exception("Unhandled exception", exc_info=failure)
                self.force_close()
            except BaseException:
                self.force_close()
                raise
            finally:
                request._task = None  # type: ignore[assignment]  # a cycle else
            if not self._stays():
                break
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    def _begun(
        self, message: RawRequestMessage | _ErrInfo, payload: StreamReader
    ) -> tuple[web.BaseRequest, Coroutine[Any, Any, tuple[web.StreamResponse, bool]]]:
        """The next request, and what answers it."""
        loop, manager, factory, handler = self._loop, self._manager, self._request_factory, self._request_handler
        assert manager is not None
        assert factory is not None
        assert handler is not None
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        manager.requests_count += 1
        if isinstance(message, _ErrInfo):
            handler = self._make_error_handler(message)
            message = ERROR
        task = self._task_handler or asyncio.current_task(loop)
        assert task is not None
        request = factory(message, payload, self, StreamWriter(self, loop), task, _cls=_Request)  # type: ignore[call-arg]
        return request, self._handle_request(request, None, handler)

    def _stays(self) -> bool:
        """Whether the connection waits for another request; it does not do so for ever."""
        if not self._keepalive or self._close or self._force_close:
            return False
        self._next_keepalive_close_time = when = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(when, self._process_keepalive)
        return True

    async def _linger(self, payload: StreamReader) -> None:
        """Read and throw away what is left of a body for a while; close behind the answer what does not end in it."""
        if not self._force_close and self._lingering_time:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

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
        if isinstance(resp, RelayedResponse) and not self._upgraded:
            request._finish()
            sent: tuple[web.StreamResponse, bool] = resp, False  # it has been sent: aiohttp would find nothing to do
        else:
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
