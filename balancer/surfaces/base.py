"""What all surfaces share: the client's side of an exchange, over aiohttp's server."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.web_exceptions import HTTPException
from multidict import CIMultiDict

from balancer.errors import ClientGone, ClientStalled, ProxyError
from balancer.model import Headers, Record


class ClientBody:
    """A request's body as a `relay.replay.Source`: bounded in size, and in how long it may stay silent."""

    __slots__ = ("_continue", "_idle", "_left", "_request")

    def __init__(self, request: web.Request, limit: int, idle: float | None) -> None:
        """`limit`: bytes; `idle`: seconds without a byte. Raises ProxyError if the declared length is over the limit."""
        self._request = request
        self._left = limit
        self._idle = idle
        expect = request.headers.get("Expect")
        if expect is not None and expect.lower() != "100-continue":
            raise ProxyError(
                417, "expectation_failed", "The only expectation that can be met is 100-continue.", close=True
            )
        self._continue = expect is not None
        if (request.content_length or 0) > limit:
            raise self._too_large(limit)

    @staticmethod
    def _too_large(limit: int) -> ProxyError:
        return ProxyError(413, "request_too_large", f"The request body is larger than {limit} bytes.", close=True)

    async def read(self) -> bytes:
        content = self._request.content
        try:
            piece = content.read_nowait(-1)
            if not piece and not content.at_eof():
                self._invite()
                async with asyncio.timeout(self._idle):
                    piece = await content.readany()
        except TimeoutError:
            raise ClientStalled("the request body stopped") from None
        except web.RequestPayloadError:
            raise ProxyError(400, "invalid_body", "The request body's framing is broken.", close=True) from None
        except (ConnectionError, OSError, HTTPException) as broken:
            raise ClientGone from broken
        self._left -= len(piece)
        if self._left < 0:
            raise self._too_large(self._left + len(piece))
        return piece

    def _invite(self) -> None:
        """Answer `Expect: 100-continue`, now that the body is really wanted (RFC 9110 section 10.1.1)."""
        if self._continue:
            self._continue = False
            transport = self._request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


class RelayedResponse(web.StreamResponse):
    """A response that adds nothing to its head, and lets the head wait for the first bytes of the body."""

    _send_headers_immediately = False

    async def _start(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """The head without what aiohttp would add to it: the upstream's fields, our framing, and Connection where it closes."""
        self._req = request
        writer = self._payload_writer = request.writer
        headers = self._headers
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        modern = request.version >= (1, 1)
        if self._must_be_empty_body:
            headers.popall("Transfer-Encoding", None)
            if request.method != "HEAD" and self.status != 304:
                headers.popall("Content-Length", None)  # RFC 9110 section 8.6: 1xx and 204 have none
        elif (length := headers.get("Content-Length")) is not None:
            writer.length = int(length)
        elif modern:
            writer.enable_chunking()
            headers["Transfer-Encoding"] = "chunked"
        else:
            self._keep_alive = False
        if "Date" not in headers:
            headers["Date"] = rfc822_formatted_time()
        if not self._keep_alive:
            headers["Connection"] = "close"
        elif not modern:
            headers["Connection"] = "keep-alive"
        await writer.write_headers(f"HTTP/1.{1 if modern else 0} {self._status} {self._reason}", headers)
        return writer

    def send_head(self) -> None:
        if self._payload_writer is not None:
            self._payload_writer.send_headers()


class ClientReply:
    """The answer's way back, as a `relay.stream.Reply`."""

    __slots__ = ("_record", "_request", "response")

    def __init__(self, request: web.Request, record: Record) -> None:
        self._request = request
        self._record = record
        self.response: RelayedResponse | None = None

    @property
    def started(self) -> bool:
        return self.response is not None

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        self._record.status = status
        response = self.response = RelayedResponse(status=status, reason=reason, _real_headers=CIMultiDict(headers))
        if "X-Request-Id" not in response.headers:
            response.headers["X-Request-Id"] = self._record.request_id
        if self._record.close:
            response.force_close()
        await response.prepare(self._request)

    def flush(self) -> None:
        assert self.response is not None
        try:
            self.response.send_head()
        except ConnectionError as gone:
            raise ClientGone from gone

    async def write(self, data: bytes) -> None:
        assert self.response is not None
        try:
            await self.response.write(data)
        except ConnectionError as gone:
            raise ClientGone from gone

    async def finish(self) -> None:
        assert self.response is not None
        try:
            await self.response.write_eof()
        except ConnectionError as gone:
            raise ClientGone from gone

    def cut(self) -> None:
        """What was written still arrives; the missing end is seen. Where no framing would show it, the connection is reset."""
        response, transport = self.response, self._request.transport
        if transport is None or response is None:
            return
        framed = response.content_length is not None or self._request.version >= (1, 1)
        if not framed:
            transport.abort()
        self._request.protocol.force_close()
