"""The client's side of a WebSocket: its handshake (RFC 6455 section 4.2), and the reply that becomes a socket.

Browsers can set no header, so their tokens and other words for the proxy come as subprotocols. Those are for us, and are neither
passed on nor answered; of the others the upstream chooses.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import WS_KEY
from aiohttp.streams import EmptyStreamReader

from balancer.errors import ClientGone
from balancer.model import Headers, Record
from balancer.relay.tunnel import Socket
from balancer.surfaces.base import ClientReply, RelayedResponse, _head
from balancer.wire.headers import first

OURS = ("openai-insecure-api-key.", "bearer.", "openai-organization.", "openai-project.")
"""Beginnings of subprotocols that are credentials, or say whose account is meant."""
FLUSH = 30.0
"""Seconds in which the last bytes of a socket must have left."""

_NOT_PASSED = ("sec-websocket-", "content-length", "date")


def flaw(request: web.Request) -> str | None:
    """What a request lacks of a WebSocket handshake, for people; None if nothing."""
    if (
        request.version < (1, 1)
        or not request._message.upgrade
        or request.headers.get("Upgrade", "").lower() != "websocket"
    ):
        return "This URL is a WebSocket: call it with `Connection: Upgrade` and `Upgrade: websocket`."
    if request.headers.get("Sec-WebSocket-Version") != "13":
        return "The only version of WebSocket that is spoken here is 13."
    try:
        key = base64.b64decode(request.headers.get("Sec-WebSocket-Key", ""), validate=True)
    except binascii.Error:
        key = b""
    return None if len(key) == 16 else "Sec-WebSocket-Key must be 16 bytes in base64."


def offered(request: web.Request) -> tuple[str, ...]:
    """The subprotocols that the client offers to the upstream, in its order."""
    names = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    return tuple(name for each in names if (name := each.strip()) and not name.lower().startswith(OURS))


class UpgradeReply(ClientReply):
    """A `relay.tunnel.Door`: an error is answered as ever, 101 makes a socket of the connection."""

    __slots__ = ("_socket", "offered", "stopping", "text")

    def __init__(self, request: web.Request, record: Record) -> None:
        """`request`: a handshake without a flaw."""
        super().__init__(request, record)
        self.offered = offered(request)
        self.stopping = asyncio.Event()
        self.text = False
        self._socket: Socket | None = None
        request._payload = _Parting(self._part)

    @property
    def socket(self) -> Socket:
        assert self._socket is not None  # it was started
        return self._socket

    def _part(self) -> None:
        if self._protocol.transport is not None:
            self.stopping.set()

    async def start(self, status: int, reason: str, headers: Headers) -> None:
        """As its parent, and ClientGone."""
        if status != 101:
            await super().start(status, reason, headers)
            return
        key = self._request.headers["Sec-WebSocket-Key"].strip()
        accept = base64.b64encode(hashlib.sha1(key.encode() + WS_KEY, usedforsecurity=False).digest()).decode()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}",
        ]
        # Browsers give up where they have offered some and none was chosen.
        chosen = first(headers, "sec-websocket-protocol") or next(iter(self.offered), None)
        if chosen is not None:
            lines.append(f"Sec-WebSocket-Protocol: {chosen}")
        lines += [f"{name}: {value}" for name, value in headers if not name.lower().startswith(_NOT_PASSED)]
        lines += [f"{name}: {value}" for name, value in self._record.fields]
        if first(headers, "x-request-id") is None:
            lines.append(f"X-Request-Id: {self._record.request_id}")
        lines.append(f"Date: {rfc822_formatted_time()}")
        self._head = _head(lines)
        try:
            self._socket = Socket(self._protocol, masked=False)
        except ConnectionError as gone:
            raise ClientGone from gone
        self._record.status = status
        self.response = RelayedResponse(status, reason, keep_alive=False)
        self._send(b"")
        self._protocol.set_parser(self._socket.parser, self._socket.hear)
        self._protocol.keep_alive(False)

    async def write(self, data: bytes) -> None:
        """Of a socket, one message. Raises `relay.tunnel.Lost` there."""
        if self._socket is None:
            await super().write(data)
        else:
            await self._socket.send(data, text=self.text)

    async def finish(self) -> None:
        if self._socket is None:
            await super().finish()
        else:
            self._limit_flush()

    def cut(self) -> None:
        """Of a socket: what was written still arrives, and then the end without a close frame, which is code 1006."""
        if self._socket is None:
            super().cut()
        else:
            self._limit_flush()
            self._protocol.force_close()

    def _limit_flush(self) -> None:
        """The connection is about to be closed behind what was written; a client that takes none of it must not keep it open."""
        transport = self._protocol.transport
        if transport is not None and transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH, transport.abort)


class _Parting(EmptyStreamReader):
    """The body of a request that becomes a socket: none. It is how aiohttp tells a request that the client has left or the server
    stops, the latter a moment before it closes the connection.
    """

    __slots__ = ("_told",)

    def __init__(self, told: Callable[[], None]) -> None:
        super().__init__()
        self._told = told

    def set_exception(self, exc: BaseException, exc_cause: BaseException | None = None) -> None:
        self._told()
