"""WebSockets for the tests: an upstream that has a Realtime API, a proxy in front of it, and clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from tests.proxy import Proxy, Raw, proxying
from tests.upstream import WAIT, Peer

KEYS = ("sk-first-0001", "sk-second-0002")
TOKENS = "ann=token-of-ann-1,bob=token-of-bob-2"
ANN = {"Authorization": "Bearer token-of-ann-1"}
MODEL = "/v1/realtime?model=openai/gpt-realtime"
MIB = 1 << 20

Play = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One socket at the upstream."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self.request = request
        self.socket = socket

    async def closing(self) -> tuple[int, str]:
        """Code and reason of the close frame that comes next. Code 1006: the connection ended without."""
        async with asyncio.timeout(WAIT):
            message = await self.socket.receive()
        if message.type is WSMsgType.CLOSE:
            return message.data, message.extra or ""
        assert message.type in (WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR), message
        return 1006, ""


async def echo(visit: Visit) -> None:
    async for message in visit.socket:
        if message.type is WSMsgType.TEXT:
            await visit.socket.send_str(message.data)
        else:
            await visit.socket.send_bytes(message.data)


@dataclass
class Sockets:
    """An upstream with a Realtime API. `refusals` are answered to handshakes, by key, before `play` gets any."""

    play: Play = echo
    url: str = ""
    protocols: tuple[str, ...] = ("realtime",)
    requests: list[web.Request] = field(default_factory=list)
    refusals: dict[str, tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=dict)
    ended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    """Handlers that have ended, for whatever reason."""

    @property
    def keys(self) -> list[str]:
        """Of all handshakes, in order."""
        return [request.headers["Authorization"].removeprefix("Bearer ") for request in self.requests]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        refusal = self.refusals.get(self.keys[-1]) or self.refusals.get("*")
        if refusal is not None:
            status, error, headers = refusal
            return web.json_response({"error": error}, status=status, headers=headers)
        socket = web.WebSocketResponse(protocols=self.protocols, max_msg_size=64 * MIB, compress=False)
        socket.headers["x-request-id"] = "req_of_upstream"
        await socket.prepare(request)
        try:
            await self.play(Visit(request, socket))
        finally:
            self.ended.release()
        return socket

    async def end(self) -> None:
        """Returns when one more handler has ended."""
        async with asyncio.timeout(WAIT):
            await self.ended.acquire()


@asynccontextmanager
async def sockets(play: Play = echo, tls: ssl.SSLContext | None = None, **settings: Any) -> AsyncIterator[Sockets]:
    upstream = Sockets(play, **settings)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", upstream.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        yield upstream
    finally:
        await runner.cleanup()


def proxied(upstream: str, *, kind: str = "openai", **overrides: Any) -> contextlib.AbstractAsyncContextManager[Proxy]:
    """The proxy in front of one upstream called `openai`."""
    openai = {"kind": kind, "base_url": upstream, "keys": list(KEYS), "models": ["*"], **overrides.pop("openai", {})}
    overrides.setdefault("auth", {"tokens": TOKENS})
    return proxying("http://127.0.0.1:9", upstreams={"openai": openai, **overrides.pop("upstreams", {})}, **overrides)


def dial(proxy: Proxy, path: str = MODEL, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
    """A client's socket that leaves frames as they come."""
    return proxy.client.ws_connect(
        proxy.url + path, headers=ANN if headers is None else headers, max_msg_size=64 * MIB, **kwargs
    )


async def refusal(
    proxy: Proxy, path: str = MODEL, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any], Any]:
    """Status, error and fields of the answer to a handshake that opens no socket."""
    fields = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **(ANN if headers is None else headers),
    }
    async with proxy.get(path, headers={name: value for name, value in fields.items() if value}) as answer:
        error: dict[str, Any] = json.loads(await answer.read())["error"]
        return answer.status, error, answer.headers


async def closed(socket: Any) -> tuple[int, str]:
    """Code and reason of what ends a client's socket; 1006: no close frame came."""
    async with asyncio.timeout(WAIT):
        message = await socket.receive()
    if message.type is WSMsgType.CLOSE:
        return message.data, message.extra or ""
    assert message.type in (WSMsgType.CLOSED, WSMsgType.ERROR), message
    return socket.close_code, ""


async def in_flight(proxy: Proxy) -> int:
    """Leases of the upstream's keys that have not ended."""
    upstream = proxy.server.runtime.rooms.upstreams["openai"]
    return sum(key.in_flight for key in upstream.pool.snapshot().keys)


async def settled(proxy: Proxy) -> None:
    """Returns when no request is in flight."""
    async with asyncio.timeout(WAIT):
        await proxy.server.runtime.drain.idle()


async def keys_of(proxy: Proxy) -> list[dict[str, Any]]:
    async with proxy.client.get(proxy.admin_url + "/api/keys") as answer:
        found = (await answer.json())["upstreams"]
    keys: list[dict[str, Any]] = next(each["keys"] for each in found if each["name"] == "openai")
    return keys


HANDSHAKE = (
    f"GET {MODEL} HTTP/1.1\r\nHost: proxy\r\nAuthorization: Bearer token-of-ann-1\r\nConnection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()


async def opened(proxy: Proxy) -> Raw:
    """A client's socket whose frames the test writes itself."""
    raw = await proxy.raw()
    await raw.send(HANDSHAKE)
    head = await raw.head()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455 section 1.3
    return raw


async def frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next frame: its opcode and its payload, unmasked."""
    async with asyncio.timeout(WAIT):
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
        mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
        payload = await reader.readexactly(size)
    return first & 0xF, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if second & 0x80 else payload


async def shake(peer: Peer) -> None:
    """The upstream's side of a handshake."""
    seen = await peer.head()
    digest = hashlib.sha1(
        ((seen.get("sec-websocket-key") or "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()
    ).digest()
    await peer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
