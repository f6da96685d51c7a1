"""What two ends of a connection really sent: a relay of bytes between them, and HTTP/1.1 read from what it kept (RFC 9112).

It reads neither with the proxy's parser nor with the stand-in's, so that neither can hide what it did. What is not there whole
(a request that was given up, an answer that was cut) is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_BODILESS = (204, 304)


@dataclass(frozen=True)
class Message:
    """A request or an answer. `body` is without its framing, its content coding untouched."""

    start: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def get(self, name: str) -> str | None:
        """The first field of this name."""
        return next((value for key, value in self.fields if key.lower() == name), None)

    def count(self, name: str) -> int:
        """How many fields there are of this name."""
        return sum(key.lower() == name for key, _ in self.fields)


@dataclass(frozen=True)
class Exchange:
    request: Message
    answer: Message

    @property
    def method(self) -> str:
        return self.request.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.request.start.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.answer.start.split(" ")[1])


@dataclass
class _Talk:
    """Both directions of one connection."""

    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)


class Tap:
    """A relay in front of a server; it keeps all that passes."""

    def __init__(self) -> None:
        self._talks: list[_Talk] = []

    @asynccontextmanager
    async def before(self, url: str) -> AsyncIterator[str]:
        """The address that leads to the server at `url` (which has no path)."""
        target = urlsplit(url)

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talk = _Talk()
            self._talks.append(talk)
            with contextlib.closing(writer):
                there, back = await asyncio.open_connection(target.hostname, target.port)
                with contextlib.closing(back):
                    await asyncio.gather(_copy(reader, back, talk.sent), _copy(there, writer, talk.got))

        relays: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            relays.add(asyncio.ensure_future(relay(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for each in relays:
                each.cancel()
            await asyncio.gather(*relays, return_exceptions=True)

    def requests(self) -> list[Message]:
        """Every whole request, in the order in which connections were made."""
        return [each for talk in self._talks for each in _messages(bytes(talk.sent))]

    def exchanges(self) -> list[Exchange]:
        """Every whole request with its whole answer."""
        return [
            Exchange(request, answer)
            for talk in self._talks
            for request, answer in zip(_messages(bytes(talk.sent)), _answers(bytes(talk.got)), strict=False)
        ]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()
    writer.close()


def _answers(data: bytes) -> Iterator[Message]:
    """The final answers; interim ones have no request of their own."""
    return (each for each in _messages(data) if not each.start.split(" ")[1].startswith("1"))


def _messages(data: bytes) -> Iterator[Message]:
    """Requests or answers, one behind the other."""
    place = 0
    while (end := data.find(b"\r\n\r\n", place)) >= 0:
        start, *lines = data[place:end].decode("latin-1").split("\r\n")
        fields = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        head = Message(start, fields, b"")
        place = end + 4
        if (found := _body(head, data, place)) is None:
            return
        body, place = found
        yield Message(start, fields, body)


def _body(head: Message, data: bytes, place: int) -> tuple[bytes, int] | None:
    """The body and where it ends; None if it is not whole."""
    if (head.get("transfer-encoding") or "").lower() == "chunked":
        return _unchunked(data, place)
    if (length := head.get("content-length")) is not None:
        end = place + int(length)
        return (data[place:end], end) if end <= len(data) else None
    if head.start.startswith("HTTP/") and not _bodiless(head.start):
        return data[place:], len(data)  # to the connection's end
    return b"", place


def _bodiless(status_line: str) -> bool:
    status = int(status_line.split(" ")[1])
    return status < 200 or status in _BODILESS


def _unchunked(data: bytes, place: int) -> tuple[bytes, int] | None:
    pieces: list[bytes] = []
    while (end := data.find(b"\r\n", place)) >= 0:
        size = int(data[place:end].split(b";")[0], 16)
        place = end + 2
        if size == 0:
            end = data.find(b"\r\n", place)
            return None if end < 0 else (b"".join(pieces), end + 2)  # nobody here sends trailers
        if place + size + 2 > len(data):
            return None
        pieces.append(data[place : place + size])
        place += size + 2
    return None
