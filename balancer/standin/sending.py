"""How a reply meets the socket: whole, or as the fault says.

Cuts are made on the transport itself, so that what the peer sees is what a dying server shows: FIN, RST, half a body.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from balancer.standin.answers import Reply
from balancer.standin.faults import Fault
from balancer.standin.record import Arrival

_LINGER_NOT = struct.pack("ii", 1, 0)
_MIB = 1 << 20
_PATIENCE = 1000
"""Milliseconds that a reset waits for a slow reader to take what was written before it."""
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

RAW_ANSWERS: dict[str, bytes] = {
    "banner": b"SSH-2.0-OpenSSH_9.6\r\n",
    "binary": bytes(range(256)),
    "http-0.9": b"<html>hello</html>\r\n",
    "version": b"HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status-word": b"HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\n{}",
    "status-long": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "two-lengths": _OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length-negative": _OK + b"Content-Length: -2\r\n\r\n{}",
    "length-word": _OK + b"Content-Length: two\r\n\r\n{}",
    "no-colon": _OK + b"Nonsense\r\nContent-Length: 2\r\n\r\n{}",
    "name-space": _OK + b"X Bad : 1\r\nContent-Length: 2\r\n\r\n{}",
    "value-null": _OK + b"X-Bad: a\x00b\r\nContent-Length: 2\r\n\r\n{}",
    "chunk-size": _OK + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n{}\r\n0\r\n\r\n",
    "length-and-chunked": _OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "extra-data": _OK + b"Content-Length: 2\r\n\r\n{}surplus",
    "second-answer": (_OK + b"Content-Length: 2\r\n\r\n{}") * 2,
}
"""Answers that are none, for `garbage` (kind=…) and for tables of tests: the last three are smuggling, the others junk."""


class Silent(web.StreamResponse):
    """Tells aiohttp that the handler spoke to the socket by itself. `keep`: the connection can take another request."""

    def __init__(self, *, keep: bool = False) -> None:
        super().__init__()
        self._keep = keep

    @property
    def keep_alive(self) -> bool:
        return self._keep

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


async def send(request: web.BaseRequest, reply: Reply, arrival: Arrival) -> web.StreamResponse:
    """The reply as it is, one write per piece."""
    arrival.status = reply.status
    if isinstance(reply.body, bytes):
        whole = web.Response(status=reply.status, headers=reply.head(), body=reply.body)
        if ("Connection", "close") in reply.headers:
            whole.force_close()
        await whole.prepare(request)
        await whole.write_eof()
        arrival.sent += len(reply.body)
        return whole
    response = await _begin(request, reply)
    async with aclosing(pieces(reply.body)) as body:
        while request.method != "HEAD" and (piece := await anext(body, None)) is not None:
            await response.write(piece)
            arrival.sent += len(piece)
    await response.write_eof()
    return response


async def send_faulty(
    request: web.BaseRequest, reply: Reply, arrival: Arrival, fault: Fault, error_event: bytes
) -> web.StreamResponse:
    """The reply with something wrong about it. `error_event` is how a stream of its dialect says that it failed."""
    match fault.name:
        case "stall-head":
            await waiting(fault)
        case "lost":
            return await cut(request, fault, reset=True)
        case "gzip":
            reply = _gzipped(reply)
        case "gzip-bomb":
            reply = Reply(_bomb(fault.size or 200 * _MIB), headers=[("Content-Encoding", "gzip")], frame=reply.frame)
        case "interim":
            _transport(request).write(
                b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
            )
        case "error-event":
            reply = Reply(
                _with_error(pieces(reply.body), fault.after, error_event),
                reply.status,
                reply.content_type,
                reply.headers,
                frame=reply.frame,
            )
        case "drip":
            reply.length = len(reply.body) if isinstance(reply.body, bytes) else reply.length
            reply.body = _dripping(pieces(reply.body), fault)
        case "stall-stream":
            reply.length = len(reply.body) if isinstance(reply.body, bytes) else reply.length
            reply.body = _stalling(pieces(reply.body), fault)
        case "trailers":
            return await _with_trailers(request, reply, arrival)
        case _:
            return await _cut_short(request, reply, arrival, fault)
    return await send(request, reply, arrival)


async def pieces(body: bytes | AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """A streamed body as it comes, a unary one in two halves."""
    if isinstance(body, bytes):
        middle = len(body) // 2
        for half in (body[:middle], body[middle:]):
            if half:
                yield half
        return
    async for piece in body:
        yield piece


async def strike(request: web.BaseRequest, fault: Fault) -> web.StreamResponse:
    """A fault of the connection: no answer, or bytes that are none."""
    match fault.name:
        case "big-head":
            data = _OK + b"X-Big: " + b"x" * (fault.size or _MIB) + b"\r\nContent-Length: 2\r\n\r\n{}"
        case "garbage":
            data = RAW_ANSWERS[fault.kind]
        case "raw":
            data = fault.data
        case name:
            return await cut(request, fault, reset=name.startswith("rst"))
    _transport(request).write(data)
    if fault.end == "keep":
        return Silent(keep=True)
    if fault.end == "open":
        await waiting(fault)
    return await cut(request, fault, reset=fault.end == "rst", wait=False)


async def cut(request: web.BaseRequest, fault: Fault, *, reset: bool, wait: bool = True) -> web.StreamResponse:
    """End the connection: by RST, or by FIN after what was written."""
    if wait and fault.gate is not None:
        await fault.gate.wait()
    transport = _transport(request)
    if not reset:
        transport.close()
        return Silent()
    for _ in range(_PATIENCE):
        if not transport.get_write_buffer_size() or transport.is_closing():
            break
        await asyncio.sleep(0.001)
    raw: socket.socket | None = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()
    return Silent()


async def waiting(fault: Fault) -> None:
    """Until the gate opens; without a gate until the client leaves."""
    await (fault.gate or asyncio.Event()).wait()


async def _cut_short(request: web.BaseRequest, reply: Reply, arrival: Arrival, fault: Fault) -> web.StreamResponse:
    arrival.status = reply.status
    if isinstance(reply.body, bytes) and fault.name != "cut-chunk":
        reply.length = len(reply.body) + (10 if fault.name == "short-body" else 0)
    response = await _begin(request, reply)
    left = {"cut-head": 0, "short-body": 1 << 60}.get(fault.name, fault.after)
    async with aclosing(pieces(reply.body)) as body:
        async for piece in body:
            if left == 0:
                break
            await response.write(piece)
            arrival.sent += len(piece)
            left -= 1
    if fault.name == "cut-chunk":
        if fault.gate is not None:
            await fault.gate.wait()
        _transport(request).write(b"ZZZ\r\nno chunk\r\n")
        return await cut(request, fault, reset=False, wait=False)
    return await cut(request, fault, reset=fault.name == "cut-rst")


async def _begin(request: web.BaseRequest, reply: Reply) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.head())
    if reply.length is not None:
        response.content_length = reply.length
    elif request.version >= (1, 1):
        response.enable_chunked_encoding()
    await response.prepare(request)
    return response


async def _with_trailers(request: web.BaseRequest, reply: Reply, arrival: Arrival) -> web.StreamResponse:
    """Chunk extensions and trailer fields, which aiohttp itself never writes. The connection stays usable."""
    arrival.status = reply.status
    transport = _transport(request)
    head = "".join(f"{name}: {value}\r\n" for name, value in reply.head().items())
    start = f"HTTP/1.1 {reply.status} OK\r\n{head}Trailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n"
    transport.write(start.encode())
    async with aclosing(pieces(reply.body)) as body:
        async for piece in body:
            transport.write(b"%x;note=yes\r\n%b\r\n" % (len(piece), piece))
            arrival.sent += len(piece)
    transport.write(b"0\r\nX-Checksum: abc\r\n\r\n")
    return Silent(keep=True)


async def _with_error(body: AsyncGenerator[bytes, None], left: int, event: bytes) -> AsyncGenerator[bytes, None]:
    async for piece in body:
        if left == 0:
            break
        yield piece
        left -= 1
    yield event


async def _dripping(body: AsyncGenerator[bytes, None], fault: Fault) -> AsyncGenerator[bytes, None]:
    async for piece in body:
        for n in range(len(piece)):
            yield piece[n : n + 1]
            await asyncio.sleep(fault.interval)


async def _stalling(body: AsyncGenerator[bytes, None], fault: Fault) -> AsyncGenerator[bytes, None]:
    left = fault.after
    async for piece in body:
        if left == 0:
            await waiting(fault)
        yield piece
        left -= 1


def _gzipped(reply: Reply) -> Reply:
    headers = [*reply.headers, ("Content-Encoding", "gzip")]
    if isinstance(reply.body, bytes):
        whole = gzip.compress(reply.body, 1, mtime=0)
        return Reply(whole, reply.status, reply.content_type, headers, frame=reply.frame)
    return Reply(_deflating(reply.body), reply.status, reply.content_type, headers, frame=reply.frame)


async def _deflating(body: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    deflate = zlib.compressobj(1, wbits=31)
    async for piece in body:
        yield deflate.compress(piece) + deflate.flush(zlib.Z_SYNC_FLUSH)
    yield deflate.flush()


async def _bomb(size: int) -> AsyncGenerator[bytes, None]:
    deflate = zlib.compressobj(9, wbits=31)
    for _ in range(0, size, _MIB):
        if piece := deflate.compress(bytes(_MIB)):
            yield piece
        await asyncio.sleep(0)
    yield deflate.flush()


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    return transport
