"""A whole proxy in the test's event loop, on real sockets and the production runner, and ways to talk to it raw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from balancer.clock import Clock
from balancer.config import Settings, parse
from balancer.server import Server, running

KEYS = ("first-pool-key-0001", "second-pool-key-0002", "third-pool-key-0003")
GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


def settings(upstream: str, keys: Any = KEYS, **overrides: Mapping[str, Any]) -> Settings:
    """The defaults on ephemeral ports with one upstream; `overrides` are merged section by section."""
    tree: dict[str, Any] = {
        "server": {"port": 0},
        "admin": {"port": 0},
        "relay": {"max_wait": "2s"},
        "upstreams": {
            "gemini": {
                "kind": "gemini",
                "base_url": upstream,
                "keys": list(keys) if not isinstance(keys, str) else keys,
            }
        },
        "logging": {"format": "json", "level": "warning"},
    }
    for section, values in overrides.items():
        tree[section] = _merged(tree.get(section, {}), values)
    return parse(json.dumps(tree), {})


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for name, value in over.items():
        had = both.get(name)
        both[name] = _merged(had, value) if isinstance(had, dict) and isinstance(value, Mapping) else value
    return both


@dataclass
class Proxy:
    """The proxy under test."""

    server: Server
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self.server.address)

    @property
    def admin_url(self) -> str:
        return "http://{}:{}".format(*(self.server.admin_address or ("none", 0)))

    def post(self, path: str = GENERATE, **kwargs: Any) -> Any:
        kwargs.setdefault("json", {"contents": [{"parts": [{"text": "hello"}]}]})
        return self.client.post(self.url + path, **kwargs)

    def get(self, path: str, **kwargs: Any) -> Any:
        return self.client.get(self.url + path, **kwargs)

    async def keys(self) -> list[dict[str, Any]]:
        """What the admin listener says of the first upstream's keys."""
        async with self.client.get(self.admin_url + "/api/keys") as answer:
            found: list[dict[str, Any]] = (await answer.json())["upstreams"][0]["keys"]
            return found

    async def raw(self) -> Raw:
        reader, writer = await asyncio.open_connection(*self.server.address, limit=1 << 24)
        return Raw(reader, writer)

    async def exchange(self, request: bytes) -> bytes:
        """Send these bytes and return everything until the proxy closes the connection."""
        raw = await self.raw()
        try:
            await raw.send(request)
            return await raw.rest()
        finally:
            raw.close()


@dataclass
class Raw:
    """A client's socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readuntil(mark)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.readexactly(size)

    async def answer(self) -> tuple[bytes, bytes]:
        """One answer with Content-Length: its head and body."""
        head = await self.head()
        length = next(
            (
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ),
            0,
        )
        return head, await self.exactly(length)

    async def rest(self) -> bytes:
        async with asyncio.timeout(20):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.close()


def post_bytes(body: bytes, path: str = GENERATE, *headers: str, version: str = "1.1") -> bytes:
    """A raw POST."""
    lines = [
        f"POST {path} HTTP/{version}",
        "Host: proxy",
        "x-goog-api-key: any",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def error_of(body: bytes) -> dict[str, Any]:
    """The error object of Google's dialect; fails where the body is anything else."""
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) >= {"code", "message", "status"}
    return error


@asynccontextmanager
async def proxying(
    upstream: str, keys: Any = KEYS, *, clock: Clock | None = None, **overrides: Mapping[str, Any]
) -> AsyncIterator[Proxy]:
    async with running(settings(upstream, keys, **overrides), clock) as server, aiohttp.ClientSession() as client:
        yield Proxy(server, client)
