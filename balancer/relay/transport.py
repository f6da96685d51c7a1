"""The seam to the network: one request out, one answer head back, its body handed to a sink.

Everything above this file sees `Transport`, `Answer` and `Sink`; everything aiohttp's client does unasked is switched off
here: no header of its own, no decoding, no redirect, no cookie, no repetition. A faster transport takes this one's place
by offering the same two methods.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from balancer.errors import AnswerBroken, AnswerCut, AnswerLost, ConnectFailed
from balancer.model import Outbound
from balancer.relay.watchdog import Phase, Watchdog

POOL_IDLE = 30.0
"""Seconds an unused connection is kept: below every provider's own limit, so that it is seldom found dead."""
FIELD_LIMIT = 65536
"""Bytes of one header field of an answer."""


class Sink(Protocol):
    """What takes the bytes of an answer's body."""

    def flush(self) -> None:
        """Nothing follows at once: let the head go now."""
        ...

    async def write(self, data: bytes) -> None:
        """Take these bytes; returns when more may come."""
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

    def set_exception(self, exc: BaseException, exc_cause: BaseException = aiohttp.helpers._EXC_SENTINEL) -> None:
        payload = self._payload
        super().set_exception(exc, exc_cause)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(aiohttp.ClientPayloadError(f"broken body: {type(exc).__name__}"), exc)
            # A reader that the end of the last good chunk has just woken looks for data and end, not for exceptions.
            payload.feed_eof()

    def is_connected(self) -> bool:
        return super().is_connected() and not self._buffer and not self._tail


class _Request(aiohttp.ClientRequest):
    """No `Content-Length: 0` on a DELETE that had none."""

    GET_METHODS = {*aiohttp.ClientRequest.GET_METHODS, "DELETE"}  # noqa: RUF012 - as the base class has it


class HttpTransport:
    """Transport over aiohttp's client: one pool of connections an upstream, HTTP/1.1, TLS and CONNECT proxies."""

    def __init__(self, *, connect_timeout: float | None, proxy: str | None = None, ca_file: str | None = None) -> None:
        """Must be made inside the running loop. Raises OSError, ssl.SSLError if `ca_file` cannot be read."""
        context: bool | ssl.SSLContext = ssl.create_default_context(cafile=ca_file) if ca_file else True
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=POOL_IDLE, ssl=context)
        connector._factory = functools.partial(_Connection, loop=asyncio.get_running_loop())  # type: ignore[assignment]
        self._proxy = proxy
        self._busy = 0
        self._retired = False
        self._closing: asyncio.Future[None] | None = None
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
            max_line_size=FIELD_LIMIT,
            max_field_size=FIELD_LIMIT,
        )

    async def send(
        self, outbound: Outbound, content: bytes | AsyncIterator[bytes] | None, length: int | None
    ) -> HttpAnswer:
        headers = CIMultiDict(outbound.headers)
        self._busy += 1
        if length is not None:
            headers["Content-Length"] = str(length)
        answer: HttpAnswer | None = None
        try:
            response = await self._session.request(
                outbound.method,
                URL(outbound.url, encoded=True),
                data=content,
                headers=headers,
                allow_redirects=False,
                proxy=self._proxy,
            )
            answer = HttpAnswer(response, self._done)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError) as broken:
            raise ConnectFailed(_describe(broken)) from broken
        except aiohttp.ClientConnectionError as broken:
            raise AnswerLost(_describe(broken)) from broken
        except aiohttp.ClientError as broken:
            raise AnswerBroken("its answer is not HTTP") from broken
        finally:
            if answer is None:
                self._done()
        return answer

    def _done(self) -> None:
        self._busy -= 1
        if self._retired and not self._busy:
            self._closing = asyncio.ensure_future(self._session.close())

    def retire(self) -> None:
        self._retired = True
        self._busy += 1
        self._done()

    async def close(self) -> None:
        await self._session.close()


class HttpAnswer:
    """Answer over aiohttp's client."""

    __slots__ = ("_done", "_response", "headers", "reason", "status")

    def __init__(self, response: aiohttp.ClientResponse, done: Callable[[], None]) -> None:
        self._response = response
        self._done: Callable[[], None] | None = done
        self.status = response.status
        self.reason = response.reason or ""
        self.headers = [
            (name.decode("ascii", "replace"), value.decode("utf-8", "surrogateescape"))
            for name, value in response.raw_headers
        ]

    async def gather(self, limit: int, watchdog: Watchdog) -> bytes:
        whole = _Gathered(limit)
        await self.pump(whole, watchdog)
        return b"".join(whole.pieces)

    async def pump(self, sink: Sink, watchdog: Watchdog) -> None:
        content = self._response.content
        while True:
            watchdog.phase(Phase.IDLE)
            try:
                piece = content.read_nowait(-1)
                if not piece:
                    if content.at_eof():
                        return
                    sink.flush()
                    piece = await content.readany()
            except (aiohttp.ClientError, OSError) as broken:
                raise AnswerCut(_describe(broken)) from broken
            if piece:
                watchdog.phase(Phase.CLIENT)
                await sink.write(piece)

    def close(self) -> None:
        self._response.close()
        if self._done is not None:
            self._done()
            self._done = None


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
