"""An upstream far faster than any proxy in front of it: one protocol, canned answers, no HTTP library.

python upstream.py  listens on a free port of 127.0.0.1 and prints that port. What it answers:

    …:generateContent                                   one JSON answer of about 1 kB
    …/models/NAME:streamGenerateContent                 SSE; NAME may hold `events-N` (default 3) and `every-Nms` (default:
                                                        as fast as they are taken); `events-0` never ends
    …/chat/completions                                  the same JSON answer
    …/chat/completions?events-N-every-Nms               the same stream
    /upload/…                                           the beginning of a resumable upload
    /upload/…upload_id=…                                a sink: any number of bytes, then a file's JSON
    GET …/files?…pageToken=N                            a list of 1,000 files, files/bench-(N*1000) and on
    GET …/bytes-N:download                              N bytes
"""

from __future__ import annotations

import asyncio
import re
import sys
from functools import lru_cache
from typing import NamedTuple, cast

import uvloop

_TEXT = "The quick brown fox jumps over the lazy dog. " * 12
_META = (
    b'"usageMetadata": {"promptTokenCount": 120, "candidatesTokenCount": 140, "totalTokenCount": 260},'
    b'"modelVersion": "gemini-2.5-flash", "responseId": "mAZGaOaYDLKNmtkPjLqWcA"}'
)
_JSON = (
    b'{"candidates": [{"content": {"parts": [{"text": "%b"}], "role": "model"}, "finishReason": "STOP", "index": 0}],%b'
    % (_TEXT.encode(), _META)
)
EVENT = (
    b'data: {"candidates": [{"content": {"parts": [{"text": "The quick brown fox"}], "role": "model"}, "index": 0}],%b\r\n\r\n'
    % _META
)
_CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
_FIELDS = (
    b"Content-Type: %b\r\nVary: Origin\r\nVary: X-Origin\r\nVary: Referer\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
    b"Server: scaffolding on HTTPServer2\r\nX-XSS-Protection: 0\r\nX-Frame-Options: SAMEORIGIN\r\n"
    b"X-Content-Type-Options: nosniff\r\nServer-Timing: gfet4t7; dur=812\r\n"
)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\n" + _FIELDS % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n"
_PIECE = bytes(1 << 18)
_BUFFER = memoryview(bytearray(1 << 18))
"""One for all connections: what is read is looked at before the next read."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)


def answer(body: bytes, kind: bytes = b"application/json; charset=UTF-8", more: bytes = b"") -> bytes:
    """A whole answer of status 200."""
    return b"HTTP/1.1 200 OK\r\n%b%bContent-Length: %d\r\n\r\n%b" % (_FIELDS % kind, more, len(body), body)


_UNARY = answer(_JSON)
_FILE = answer(
    b'{"file": {"name": "files/bench-0", "uri": "https://generativelanguage.googleapis.com/v1beta/files/bench-0"}}',
    more=b"X-Goog-Upload-Status: final\r\n",
)


class Stream(NamedTuple):
    """A stream of so many events (0: without end), one every `interval` milliseconds (0: at once)."""

    events: int
    interval: int


class Download(NamedTuple):
    size: int


@lru_cache(maxsize=4096)
def wanted(method: bytes, target: bytes, host: bytes) -> bytes | Stream | Download:
    """What a request is answered with."""
    if b":streamGenerateContent" in target or b"/chat/completions?" in target:
        count, interval = re.search(rb"events-(\d+)", target), re.search(rb"every-(\d+)ms", target)
        return Stream(int(count[1]) if count else 3, int(interval[1]) if interval else 0)
    if target.startswith(b"/upload/"):
        if b"upload_id=" in target:
            return _FILE
        where = b"http://%b/upload/v1beta/files?upload_id=bench&upload_protocol=resumable" % host
        return answer(b"", b"text/plain", b"X-Goog-Upload-Status: active\r\nX-Goog-Upload-URL: %b\r\n" % where)
    if (size := re.search(rb"bytes-(\d+):download", target)) is not None:
        return Download(int(size[1]))
    if method == b"GET" and (page := re.search(rb"/files\?.*pageToken=(\d+)", target)) is not None:
        first = int(page[1]) * 1000
        names = b",".join(b'{"name": "files/bench-%d"}' % number for number in range(first, first + 1000))
        return answer(b'{"files": [%b]}' % names)
    return _UNARY


class Pacer:
    """Gives each stream of one interval its next event, spread evenly over the interval."""

    def __init__(self, interval: int) -> None:
        self._slots: list[set[Connection]] = [set() for _ in range(max(1, min(interval, 250)))]
        self._tick = interval / 1000 / len(self._slots)
        self._turn = 0
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._advance()

    def add(self, stream: Connection) -> set[Connection]:
        slot = self._slots[self._next % len(self._slots)]
        self._next += 1
        slot.add(stream)
        return slot

    def _advance(self) -> None:
        self._turn = (self._turn + 1) % len(self._slots)
        for stream in tuple(self._slots[self._turn]):
            stream.event()
        self._due = max(self._due + self._tick, self._loop.time())
        self._loop.call_at(self._due, self._advance)


_PACERS: dict[int, Pacer] = {}


class Connection(asyncio.BufferedProtocol):
    """One connection: reads requests, and throws their bodies away."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._unread = b""
        self._left = 0
        """Bytes of the body that are still to come; -1: chunked."""
        self._then: bytes | Stream | Download = b""
        self._slot: set[Connection] | None = None
        self._events = 0
        self._bytes = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self._transport.set_write_buffer_limits(high=1 << 20)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._events = self._bytes = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._left > 0:
            self._left -= nbytes
            if self._left <= 0:
                self._answer()
            return
        data = bytes(_BUFFER[:nbytes])
        if self._left < 0:
            self._unread = (self._unread + data)[-7:]
            if self._unread == b"\r\n0\r\n\r\n":
                self._unread, self._left = b"", 0
                self._answer()
            return
        data = self._unread + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._unread = data
            return
        self._unread = b""
        head = data[: end + 2]
        method, target, _ = head.split(b" ", 2)
        host = head.partition(b"\r\nHost: ")[2].partition(b"\r\n")[0]
        self._then = wanted(method, target, host)
        length = _LENGTH.search(head)
        body = len(data) - end - 4
        if length is not None:
            self._left = int(length[1]) - body
        elif _CHUNKED.search(head) is not None and not data.endswith(b"0\r\n\r\n"):
            self._left, self._unread = -1, data[-7:]
        if not self._left:
            self._answer()

    def _answer(self) -> None:
        match self._then:
            case bytes() as whole:
                self._transport.write(whole)
            case Stream(count, interval):
                self._transport.write(_STREAM_HEAD + _CHUNK)
                self._events = count - 1
                if not self._events:
                    self._transport.write(b"0\r\n\r\n")
                elif interval:
                    pacer = _PACERS.get(interval)
                    if pacer is None:
                        pacer = _PACERS[interval] = Pacer(interval)
                    self._slot = pacer.add(self)
                else:
                    self._pour()
            case Download(size):
                self._transport.write(
                    b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (_FIELDS % b"application/octet-stream", size)
                )
                self._bytes = size
                self._pour()

    def event(self) -> None:
        """Send the next event of a paced stream."""
        self._transport.write(_CHUNK)
        self._events -= 1
        if not self._events:
            self._transport.write(b"0\r\n\r\n")
            self._leave()

    def _leave(self) -> None:
        if self._slot is not None:
            self._slot.discard(self)
            self._slot = None

    def _pour(self) -> None:
        """Send what is left as fast as it is taken."""
        while self._bytes and not self._paused:
            piece = _PIECE if self._bytes >= len(_PIECE) else _PIECE[: self._bytes]
            self._bytes -= len(piece)
            self._transport.write(piece)
        while self._events and not self._paused:
            self._events -= 1
            self._transport.write(_CHUNK if self._events else _CHUNK + b"0\r\n\r\n")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._slot is None:
            self._pour()


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
