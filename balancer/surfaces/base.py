"""What all surfaces share: the client's side of an exchange, over aiohttp's server."""

from __future__ import annotations

import asyncio
import socket
import struct

from aiohttp import hdrs, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11
from aiohttp.web_exceptions import HTTPException
from multidict import istr

from balancer.errors import AnswerBroken, ClientGone, ClientStalled, ProxyError
from balancer.model import Headers, Record
from balancer.wire.often import BySpelling


class ClientBody:
    """A request's body as a `relay.replay.Source`: bounded in size, and in how long it may stay silent."""

    __slots__ = ("_continue", "_idle", "_left", "_request")

    def __init__(self, request: web.Request, limit: int, idle: float | None) -> None:
        """`limit`: bytes; `idle`: seconds without a byte. Raises ProxyError if the declared length is over the limit."""
        self._request = request
        self._left = limit
        self._idle = idle
        expect = request.headers.get(hdrs.EXPECT)
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
    """What aiohttp's server is told of an answer that `ClientReply` has written itself: only whether the connection stays."""

    prepared = True

    def __init__(self, status: int, reason: str, keep_alive: bool) -> None:
        # The parent's own constructor makes maps for fields and cookies, of which an answer that is written has no use.
        self._status = status
        self._reason = reason
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing: it is."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing: what is missing was cut."""


class ClientReply:
    """The answer's way back, as a `relay.stream.Reply`: the upstream's fields, our framing, and nothing that aiohttp would add.

    The head waits for the first bytes of the body, so that both leave in one write.
    """

    __slots__ = ("_chunked", "_empty", "_head", "_left", "_protocol", "_record", "_request", "_writer", "response")

    def __init__(self, request: web.Request, record: Record) -> None:
        self._request = request
        self._record = record
        self._protocol = request.protocol
        self._writer = request.writer
        self._head = b""
        self._left: int | None = None
        """Bytes of the body still to come, where Content-Length says so."""
        self._chunked = False
        self._empty = False
        self.response: RelayedResponse | None = None

    @property
    def started(self) -> bool:
        return self.response is not None

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """Raises AnswerBroken for fields that would end early or begin another answer."""
        request, record = self._request, self._record
        modern = request.version >= HttpVersion11
        if status == 204:
            headers = [field for field in headers if field[0].lower() != "content-length"]  # RFC 9110 section 8.6
        lines = [f"HTTP/1.{1 if modern else 0} {status} {reason}"]
        lines += map(": ".join, headers)  # not by an f-string, which is slow with aiohttp's sort of str
        said = {noted: field[1] for field in headers if (noted := _noted[field[0]])}
        if "content-length" in said:
            self._left = int(said["content-length"])
        if "x-request-id" not in said:
            lines.append(f"X-Request-Id: {record.request_id}")
        if record.fields:
            lines += map(": ".join, record.fields)
        keep_alive = request.keep_alive and not record.close
        self._empty = status in (204, 304) or request.method == "HEAD"
        if self._left is None and not self._empty:
            self._chunked = modern
            keep_alive = keep_alive and modern
            if modern:
                lines.append("Transfer-Encoding: chunked")
        if "date" not in said:
            lines.append(f"Date: {rfc822_formatted_time()}")
        if not keep_alive:
            lines.append("Connection: close")
        elif not modern:
            lines.append("Connection: keep-alive")
        self._head = _head(lines)
        record.status = status
        self.response = RelayedResponse(status, reason, keep_alive)

    def flush(self) -> None:
        if self._head:
            self._send(b"")

    async def write(self, data: bytes) -> None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if not data or self._empty:
            return
        self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        if self._protocol.writing_paused:
            await self._drain()

    async def finish(self) -> None:
        if self._chunked:
            self._send(b"0\r\n\r\n")
        else:
            self.flush()
        if self._protocol.writing_paused:
            await self._drain()

    def _send(self, data: bytes) -> None:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if self._head:
            data, self._head = self._head + data, b""
        self._writer.output_size += len(data)
        transport.write(data)

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError as gone:
            raise ClientGone from gone

    def cut(self) -> None:
        """What was written still arrives; the missing end is seen. Where no framing would show it, the connection is reset."""
        transport = self._protocol.transport
        if transport is None or self.response is None:
            return
        if self._left is None and not self._chunked:
            _reset(transport)
        self._protocol.force_close()


_NO_LINGER = struct.pack("ii", 1, 0)


def _reset(transport: asyncio.Transport) -> None:
    """Closed with nothing to linger for, a connection ends with RST; `abort()` alone would end it as a clean end does."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


_NOTED = frozenset({"date", "x-request-id", "content-length"})
"""Names, in lower case, of the fields that decide what is added to a head."""
_noted = BySpelling(lambda name: name if name in _NOTED else "")
_CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code != 0x09)


def _head(lines: list[str]) -> bytes:
    """A head as it goes on the wire; names and values keep the bytes that the upstream sent."""
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * (len(lines) + 1):
        raise AnswerBroken("its head holds control characters")
    return head


_DEADLINE_FIELDS = (istr("x-stainless-read-timeout"), istr("x-stainless-timeout"))


def stainless_deadline(request: web.Request, started: float) -> float | None:
    """`x-stainless-read-timeout` or `x-stainless-timeout` (seconds, sent by OpenAI's SDKs) as monotonic time."""
    for name in _DEADLINE_FIELDS:
        given = request.headers.get(name)
        try:
            seconds = float(given) if given is not None else 0.0
        except ValueError:
            continue
        if 0 < seconds < float("inf"):
            return started + seconds
    return None
