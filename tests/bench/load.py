"""The load: protocols on keep-alive connections that do as little per answer as can be done in Python.

A request is bytes, made once. An answer is counted and not looked at, but for its status: anything else than 200 ends the
measurement with `Broken`, which holds what came instead.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, cast

Address = tuple[str, int]

_BUFFER = memoryview(bytearray(1 << 18))
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_STREAM_END = b"\r\n0\r\n\r\n"
_PIECE = bytes(1 << 18)
ANSWER_WAIT = 30.0
"""Seconds after which an answer that does not come is a failure."""


class Broken(Exception):
    """The target did not answer as it must."""


class Connection(asyncio.BufferedProtocol):
    """A client's connection with at most one request on it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.head = b""
        """The head of the latest answer."""
        self.first = self.ended = 0.0
        """When the first bytes of the latest body came, and its last."""
        self.pieces = 0
        self.lost: BaseException | None = None
        self._unread = b""
        self._left = 0
        self._chunked = False
        self._waiter: asyncio.Future[None] | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.transport.set_write_buffer_limits(high=1 << 20)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Broken(f"the connection was closed ({exc or 'no error'})"))

    def _fail(self, failure: Broken) -> None:
        self.lost = self.lost or failure
        self._can_write.set()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self.lost)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._left:
            self._left -= nbytes
            if self._left <= 0:
                self._end()
            return
        data = bytes(_BUFFER[:nbytes])
        if self._chunked:
            self._chunk(data)
            return
        data = self._unread + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._unread = data
            return
        if data[9:12] != b"200":
            self._fail(Broken(repr(data[:300])))
            self.transport.abort()
            return
        self._unread = b""
        self.head = head = data[: end - 2]
        length = _LENGTH.search(head)
        if length is not None:
            self.first = perf_counter()
            self._left = int(length[1]) - (len(data) - end)
            if not self._left:
                self._end()
        else:
            self._chunked = True
            self.first = 0.0
            self._chunk(data[end:])

    def _chunk(self, data: bytes) -> None:
        if not data:
            return
        if not self.first:
            self.first = perf_counter()
        self.pieces += data.count(b"data: {")
        self._unread = (self._unread + data[-7:])[-7:]
        if self._unread == _STREAM_END:
            self._chunked, self._unread = False, b""
            self._end()

    def _end(self) -> None:
        self._left = 0
        self.ended = perf_counter()
        self.answered()

    def answered(self) -> None:
        """The latest answer is whole."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    async def ask(self, request: bytes, body: int = 0) -> None:
        """Send one request, with so many bytes of body behind it, and wait for its answer."""
        if self.lost is not None:
            raise self.lost
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(ANSWER_WAIT):
            while body and self.lost is None:
                piece = _PIECE if body >= len(_PIECE) else _PIECE[:body]
                body -= len(piece)
                self.transport.write(piece)
                await self._can_write.wait()
            await self._waiter


class Repeating(Connection):
    """Sends its request again as soon as it is answered."""

    def __init__(self, request: bytes, failed: Callable[[BaseException], None]) -> None:
        super().__init__()
        self._request = request
        self._failed = failed
        self._sent = 0.0
        self.going = True
        self.busy = False
        self.times: list[float] = []
        """Seconds to the end of each answer."""
        self.first_times: list[float] = []
        """Seconds to the first bytes of each body."""

    def start(self) -> None:
        self.busy = True
        self._sent = perf_counter()
        self.transport.write(self._request)

    def answered(self) -> None:
        self.times.append(self.ended - self._sent)
        self.first_times.append(self.first - self._sent)
        if self.going:
            self._sent = perf_counter()
            self.transport.write(self._request)
        else:
            self.busy = False

    def _fail(self, failure: Broken) -> None:
        if self.going:
            self._failed(failure)
        self.going = self.busy = False


class Crowd:
    """Connections that repeat one request in a closed loop."""

    def __init__(self) -> None:
        self.callers: list[Repeating] = []
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def failed(self, failure: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(failure)

    @property
    def pieces(self) -> int:
        """Events received so far."""
        return sum(caller.pieces for caller in self.callers)

    def forget(self) -> None:
        """Count from here on."""
        for caller in self.callers:
            caller.times.clear()
            caller.first_times.clear()
            caller.pieces = 0

    def times(self) -> list[float]:
        return [each for caller in self.callers for each in caller.times]

    def first_times(self) -> list[float]:
        return [each for caller in self.callers for each in caller.first_times]

    async def during(self, seconds: float) -> None:
        """Let it run. Raises what went wrong meanwhile."""
        await asyncio.wait([self._failure], timeout=seconds)
        if self._failure.done():
            self._failure.result()


async def connect(address: Address) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, *address)
    return connection


@asynccontextmanager
async def repeating(address: Address, request: bytes, connections: int) -> AsyncIterator[Crowd]:
    """A crowd at work. At the end, requests that are out are waited for, but not streams without end."""
    loop = asyncio.get_running_loop()
    crowd = Crowd()
    try:
        for _ in range(connections):
            _, caller = await loop.create_connection(lambda: Repeating(request, crowd.failed), *address)
            crowd.callers.append(caller)
        for caller in crowd.callers:
            caller.start()
        yield crowd
    finally:
        for caller in crowd.callers:
            caller.going = False
        for _ in range(20):
            if not any(caller.busy for caller in crowd.callers):
                break
            await asyncio.sleep(0.005)
        for caller in crowd.callers:
            caller.transport.abort()


def request(method: str, target: str, token: str, *fields: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request as Google's SDK makes it. `length`: what Content-Length says if not the length of `body`."""
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: */*",
        "Accept-Encoding: gzip, deflate",
        "User-Agent: google-genai-sdk/2.34.0 gl-python/3.11.7",
        "x-goog-api-client: google-genai-sdk/2.34.0 gl-python/3.11.7",
        f"x-goog-api-key: {token}",
        *fields,
    ]
    if body or length is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat_request(target: str, token: str, body: bytes) -> bytes:
    """A POST as OpenAI's SDK makes it."""
    lines = [
        f"POST {target} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept-Encoding: gzip, deflate",
        "Connection: keep-alive",
        "Accept: application/json",
        "Content-Type: application/json",
        "User-Agent: OpenAI/Python 3.54.0",
        "X-Stainless-Lang: python",
        "X-Stainless-Async: false",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie. NaN where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")


def field(head: bytes, name: str) -> str | None:
    """The value of a header field."""
    found: Any = re.search(rb"\r\n%b: *([^\r]*)" % name.encode(), head, re.IGNORECASE)
    return found[1].decode() if found else None
