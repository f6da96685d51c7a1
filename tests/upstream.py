"""An upstream whose every byte is the test's: a real TCP server that runs one script a connection.

A script gets a `Peer`: it reads requests as they came and writes whatever it likes, HTTP or not. What happened is in
`requests` and in events that a test can wait for; nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

WAIT = 10.0
"""Seconds after which something that should have happened has not."""


@dataclass
class Seen:
    """A request as it arrived."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if found else None


class Peer:
    """The upstream's end of one connection."""

    def __init__(self, upstream: RawUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer

    async def head(self) -> Seen:
        """Read a request's head."""
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("utf-8", "surrogateescape").split("\r\n")[:-2]
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        seen = Seen(first, headers)
        self.upstream.requests.append(seen)
        self.upstream.arrived.release()
        return seen

    async def request(self) -> Seen:
        """Read a whole request."""
        seen = await self.head()
        if seen.get("transfer-encoding") == "chunked":
            while size := int((await self.reader.readline()).split(b";")[0], 16):
                seen.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readline()
        else:
            seen.body = await self.reader.readexactly(int(seen.get("content-length") or 0))
        return seen

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"{}", status: str = "200 OK", headers: tuple[str, ...] = ()) -> None:
        """A whole answer with Content-Length."""
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
        await self.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def stream(self, *headers: str) -> None:
        """The head of a chunked event stream."""
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *headers]
        await self.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    def reset(self) -> None:
        """End the connection with RST."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """End the connection with FIN."""
        self.writer.close()

    async def gone(self) -> None:
        """Returns when the proxy has closed this connection; the bytes that still came are thrown away."""
        async with asyncio.timeout(WAIT):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class RawUpstream:
    """The server. `script` may be exchanged at any time; it is run for each new connection."""

    script: Script
    url: str = ""
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    closed: int = 0
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def arrival(self) -> None:
        """Returns when one more request has arrived."""
        async with asyncio.timeout(WAIT):
            await self.arrived.acquire()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.script(Peer(self, reader, writer))
        finally:
            self.closed += 1
            writer.close()


@asynccontextmanager
async def raw_upstream(script: Script) -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream(script)
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(upstream._connected(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield upstream
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def serving(answer: Callable[[Peer, Seen], Awaitable[None]]) -> Script:
    """A script that answers every request on a kept connection."""

    async def script(peer: Peer) -> None:
        while True:
            await answer(peer, await peer.request())

    return script
