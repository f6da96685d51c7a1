"""The seam to the network: one request out, one answer head back, its body handed to a sink.

Everything above this file sees `Transport`, `Answer` and `Sink`. Nothing happens unasked: no header of our own, no decoding,
no redirect, no cookie, no repetition. A faster transport takes this one's place by offering the same methods.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import aiohttp
from aiohttp import StreamReader
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from balancer.errors import AnswerBroken, AnswerCut, AnswerLost, ConnectFailed
from balancer.model import Outbound
from balancer.relay.departures import Departures
from balancer.relay.watchdog import CLIENT, IDLE, Watchdog

POOL_IDLE = 30.0
"""Seconds an unused connection is kept: below every provider's own limit, so that it is seldom found dead."""
FIELD_LIMIT = 65536
"""Bytes of one header field of an answer."""


class Sink(Protocol):
    """What takes the bytes of an answer's body."""

    def flush(self) -> None:
        """Nothing follows at once: let the head go now."""
        ...

    def write(self, data: bytes) -> Awaitable[None]:
        """Take these bytes; done when more may come."""
        ...


class Answer(Protocol):
    """An answer whose head has arrived. Exactly one of `gather`, `pump` and `close` is called."""

    status: int
    reason: str
    headers: list[tuple[str, str]]

    async def gather(self, limit: int, watchdog: Watchdog) -> bytes:
        """The whole body. Raises AnswerCut, and AnswerBroken if it is larger than `limit` bytes."""
        ...

    async def pump(self, sink: Sink, watchdog: Watchdog) -> None:
        """Hand the body to `sink` as it comes, to its true end. Raises AnswerCut."""
        ...

    def unread(self) -> bytes:
        """What had arrived when the body broke off, and was not handed on: all that will ever be known of it."""
        ...

    def close(self) -> None:
        """Drop the connection unless the answer was read to its end."""
        ...


class Transport(Protocol):
    """Sends requests to one upstream."""

    async def send(
        self, outbound: Outbound, content: bytes | AsyncIterator[bytes] | None, length: int | None
    ) -> Answer:
        """Send, and wait for the final answer's head. `length`: what Content-Length says of an iterator, None: chunked.

        Raises ConnectFailed, AnswerLost, AnswerBroken. Limits of time are the caller's, except for connecting.
        """
        ...

    def retire(self) -> None:
        """No new request will come: close once those in flight are done."""
        ...

    async def close(self) -> None: ...


class _Connection(ResponseHandler):
    """aiohttp's client connection, with two holes closed.

    A body whose framing breaks must wake its reader (aiohttp leaves it waiting for good), and a connection on which an
    upstream has said something unasked while idle must not carry another request: that answer would be taken for its own.
    """

    def __init__(self, departures: Departures, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.departures = departures

    def set_exception(self, exc: BaseException, exc_cause: BaseException = aiohttp.helpers._EXC_SENTINEL) -> None:
        payload = self._payload
        super().set_exception(exc, exc_cause)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError(f"broken body: {type(exc).__name__}"), exc)
            # A reader that the end of the last good chunk has just woken looks for data and end, not for exceptions.
            payload.feed_eof()

    def expect(self, *, body: bool) -> None:
        """Get ready for one answer; `body`: it may have one. The parser goes on where the last answer ended; a new one is
        made only where it must read differently.
        """
        if self._parser is None or self._skip_payload or not body:
            self.set_response_params(
                skip_payload=not body,
                read_until_eof=True,
                auto_decompress=False,
                max_line_size=FIELD_LIMIT,
                max_field_size=FIELD_LIMIT,
            )

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Only where it was paused: aiohttp asks for it at every read of a body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def is_connected(self) -> bool:
        transport = self.transport
        return transport is not None and not transport.is_closing() and not self._buffer and not self._tail


AnswerMaker = Callable[[Connection, Callable[[Connection | None], None]], "HttpAnswer"]
"""Of a connection, and what is to be called once with the connection, if it is left usable."""


class HttpTransport:
    """Transport over aiohttp's connector and its C parser: one pool of connections an upstream, HTTP/1.1, TLS, CONNECT proxies.

    aiohttp's ClientSession is left out: it makes half a dozen objects a request that a relay has no use for, and costs more
    than everything else that a request needs. Heads are written here, framing of streamed bodies is aiohttp's StreamWriter.
    """

    def __init__(
        self, base_url: str, *, connect_timeout: float | None, proxy: str | None = None, ca_file: str | None = None
    ) -> None:
        """Must be made inside the running loop. Raises OSError, ssl.SSLError if `ca_file` cannot be read."""
        self._loop = asyncio.get_running_loop()
        context: bool | ssl.SSLContext = ssl.create_default_context(cafile=ca_file) if ca_file else True
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, force_close=True, ssl=context)
        departures = Departures(self._loop)
        self._connector._factory = functools.partial(_Connection, departures, loop=self._loop)  # type: ignore[assignment]
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        url = URL(base_url)
        self._origin = str(url.origin())
        self._host_line = f"Host: {url.host_port_subcomponent or ''}"
        self._absolute = proxy is not None and url.scheme == "http"
        self._way = aiohttp.ClientRequest(
            "GET", url.origin(), loop=self._loop, proxy=URL(proxy) if proxy is not None else None
        )
        """What the connector is told of where to go; never sent itself."""
        self._idle: deque[tuple[Connection, float]] = deque()
        """Connections to use again, and since when they idle; the longest idle first."""
        self._busy = 0
        self._retired = False
        self._closing: asyncio.Future[None] | None = None

    async def send(
        self,
        outbound: Outbound,
        content: bytes | AsyncIterator[bytes] | None,
        length: int | None,
        answering: AnswerMaker | None = None,
    ) -> HttpAnswer:
        """As `Transport` says. `answering` makes the answer, where it is to be more than one that is read."""
        self._busy += 1
        answer: HttpAnswer | None = None
        try:
            connection = self._reusable()
            if connection is None:
                connection = await self._connector.connect(self._way, [], self._timeout)
            answer = (answering or HttpAnswer)(connection, self._done)
            await answer.ask(outbound.method, self._head(outbound, content, length), content, length)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as broken:
            raise ConnectFailed(_describe(broken)) from broken
        except (aiohttp.ClientConnectionError, OSError) as broken:
            raise AnswerLost(_describe(broken)) from broken
        except (HttpProcessingError, aiohttp.ClientError) as broken:
            raise AnswerBroken("its answer is not HTTP") from broken
        except BaseException:
            if answer is not None:
                answer.close()
            raise
        finally:
            if answer is None:
                self._done()
            elif not answer.status:
                answer.close()
        return answer

    def _head(self, outbound: Outbound, content: bytes | AsyncIterator[bytes] | None, length: int | None) -> bytes:
        """The request's head. No field can end early: what they are made of was parsed, or checked with the configuration."""
        target = outbound.url if self._absolute else outbound.url.removeprefix(self._origin)
        lines = [f"{outbound.method} {target} HTTP/1.1", self._host_line]
        lines += map(": ".join, outbound.headers)
        if isinstance(content, bytes):
            lines.append(f"Content-Length: {len(content)}")
        elif content is not None:
            lines.append("Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}")
        elif outbound.method in ("POST", "PUT", "PATCH"):
            lines.append("Content-Length: 0")
        if self._absolute and (credentials := self._way.headers.get("Proxy-Authorization")) is not None:
            lines.append(f"Proxy-Authorization: {credentials}")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("utf-8", "surrogateescape")

    def _reusable(self) -> Connection | None:
        """The connection that was used last, if it can be used again; those that have idled too long are closed."""
        idle, oldest = self._idle, self._loop.time() - POOL_IDLE
        while idle and idle[0][1] < oldest:
            idle.popleft()[0].close()
        while idle:
            connection, _ = idle.pop()
            protocol = connection.protocol
            if protocol is not None and protocol.is_connected():
                return connection
            connection.close()
        return None

    def _done(self, connection: Connection | None = None) -> None:
        """One request less; `connection` is the one that it leaves usable."""
        if connection is not None:
            self._idle.append((connection, self._loop.time()))
        self._busy -= 1
        if self._retired and not self._busy:
            self._closing = asyncio.ensure_future(self.close())

    def retire(self) -> None:
        self._retired = True
        self._busy += 1
        self._done()

    async def close(self) -> None:
        while self._idle:
            self._idle.pop()[0].close()
        await self._connector.close()


class HttpAnswer:
    """Answer on one connection, which is handed back to its transport if everything was read and sent."""

    __slots__ = ("_connection", "_content", "_done", "_protocol", "_upload", "headers", "reason", "status")

    def __init__(self, connection: Connection, done: Callable[[Connection | None], None]) -> None:
        self._connection = connection
        self._protocol = connection.protocol
        self._done: Callable[[Connection | None], None] | None = done
        self._upload: asyncio.Task[None] | None = None
        self._content: StreamReader
        self.status = 0
        self.reason = ""
        self.headers: list[tuple[str, str]] = []

    async def ask(
        self, method: str, head: bytes, content: bytes | AsyncIterator[bytes] | None, length: int | None
    ) -> None:
        """Send the request and wait for the head of the final answer. Raises what aiohttp's protocol raises."""
        protocol = self._protocol
        if protocol is None or protocol.transport is None:
            raise aiohttp.ServerDisconnectedError
        assert isinstance(protocol, _Connection)
        protocol.expect(body=method != "HEAD")
        if content is None or isinstance(content, bytes):
            protocol.departures.add(protocol.transport, head + content if content else head)
        else:
            protocol.transport.write(head)
            self._upload = asyncio.create_task(_send(content, protocol, chunked=length is None))
        while True:
            message, content_reader = await protocol.read()
            if message.code == 101:
                raise aiohttp.ClientError("switching protocols unasked")
            if not 100 <= message.code < 200:
                break
        self.status = message.code
        self.reason = message.reason or ""
        self.headers = list(message.headers.items())
        self._content = content_reader

    async def gather(self, limit: int, watchdog: Watchdog) -> bytes:
        whole = _Gathered(limit)
        await self.pump(whole, watchdog)
        return b"".join(whole.pieces)

    async def pump(self, sink: Sink, watchdog: Watchdog) -> None:
        content = self._content
        while not content.at_eof():
            watchdog.phase(IDLE)
            try:
                if content._buffer:  # aiohttp's own way to ask is to read
                    piece = content.read_nowait(-1)
                else:
                    sink.flush()
                    piece = await content.readany()
            except (aiohttp.ClientError, HttpProcessingError, OSError) as broken:
                raise AnswerCut(_describe(broken)) from broken
            if piece:
                watchdog.phase(CLIENT)
                await sink.write(piece)
        failure = content.exception()
        if failure is not None:  # a body whose framing broke is at its end too, and must not look whole
            raise AnswerCut(_describe(failure)) from failure

    def unread(self) -> bytes:
        return b"".join(self._content._read_nowait_chunk(-1) for _ in range(len(self._content._buffer)))

    def close(self) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        upload, protocol = self._upload, self._protocol
        sent = upload is None or upload.done()
        if upload is not None and not sent:
            upload.cancel()
        if sent and self.status and self._content.is_eof() and protocol is not None and not protocol.should_close:
            done(self._connection)  # whether it is still open is looked at when it is wanted again
        else:
            self._connection.close()
            done(None)


async def _send(content: AsyncIterator[bytes], protocol: ResponseHandler, *, chunked: bool) -> None:
    """Write a streamed body under back-pressure. What breaks is told to whoever waits for the answer."""
    writer = StreamWriter(protocol, asyncio.get_running_loop())
    if chunked:
        writer.enable_chunking()
    try:
        async for piece in content:
            await writer.write(piece)
        await writer.write_eof()
    except Exception as broken:
        protocol.set_exception(aiohttp.ClientConnectionError("the request's body ended early"), broken)


class _Gathered:
    """A sink that keeps what it is given, up to a limit."""

    def __init__(self, limit: int) -> None:
        self.pieces: list[bytes] = []
        self._left = limit

    def flush(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise AnswerBroken("the upstream's error answer is too large")
        self.pieces.append(data)


def _describe(broken: BaseException) -> str:
    """What happened, without addresses or headers: aiohttp's texts can name both."""
    match broken:
        case aiohttp.ClientConnectorDNSError():
            return "its name does not resolve"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "no TLS connection (certificate or protocol)"
        case aiohttp.ClientHttpProxyError() | aiohttp.ClientProxyConnectionError():
            return "the egress proxy refused the connection"
        case aiohttp.ConnectionTimeoutError():
            return "no connection within the time allowed"
        case aiohttp.ClientConnectorError():
            return f"no connection ({broken.os_error.strerror or type(broken.os_error).__name__})"
        case aiohttp.ServerDisconnectedError():
            return "it closed the connection without an answer"
        case aiohttp.ClientPayloadError():
            return "its answer ended too early or broke its framing"
        case _:
            return "the connection to it was lost"
