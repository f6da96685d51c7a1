"""The events of the socket of stored chats: those of one turn, in their order, and how an error is told.

content_block_start → content_block_delta … → (the answer is stored) → content_block_stop → message_delta → message_stop
"""

from __future__ import annotations

from typing import Any, Protocol

from balancer.conversations.base import Binding
from balancer.errors import ProxyError
from balancer.relay.speech import Told, Voice
from balancer.surfaces.conversations_answers import NOT_FOUND, no_session
from balancer.surfaces.conversations_turns import StoredTurn

PROCESSING_FAILED = "处理消息时出错"


class Socket(Protocol):
    """Where events go."""

    def ends(self) -> None:
        """The answer is whole: there is nothing left to cancel."""
        ...

    async def send(self, event: str, data: Any) -> None:
        """Returns when it has left."""
        ...


class Events(Voice):
    """`relay.speak.Voice` as events of a socket. `turn`: whose answer it is, once that is known."""

    turn: StoredTurn

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._started = False

    async def start(self) -> None:
        if not self._started:
            self._started = True
            await self._socket.send("content_block_start", {"type": "text", "index": 0})

    async def accepted(self, binding: Binding | None) -> None:
        await self.turn.bind(binding)

    async def delta(self, text: str) -> None:
        await self._socket.send("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})

    async def reasoning(self, text: str) -> None:
        """The protocol has no word for it."""

    async def end(self, told: Told) -> None:
        self._socket.ends()
        if not await self.turn.commit(told):
            raise no_session()
        await self.finish(told)

    async def finish(self, told: Told) -> None:
        """The answer is stored: tell that it is whole, or was cancelled."""
        tokens = told.pieces if told.usage is None else told.usage.completion
        await self._socket.send("content_block_stop", {"index": 0})
        said = {"delta": {"finish_reason": told.finish_reason}, "usage": {"output_tokens": tokens}}
        await self._socket.send("message_delta", said)
        await self._socket.send("message_stop", {})

    async def fail(self, error: ProxyError) -> None:
        raise error


def error_data(error: ProxyError) -> dict[str, Any]:
    """The data of an error event."""
    retry = {} if error.retry_after is None else {"retry_after": max(1, -int(-error.retry_after // 1))}
    if error.status >= 500 or error.code == "upstream_error":
        code = "server_error" if error.code == "internal_error" else error.code
        return {"type": "server_error", "message": PROCESSING_FAILED, "code": code, **retry}
    if error.code == "not_found":
        return {"type": "not_found_error", "message": NOT_FOUND, "code": "not_found"}
    message = error.message.encode("utf-8", "backslashreplace").decode()
    if error.status == 429 and error.code == "keys_resting":
        return {"type": "server_error", "message": PROCESSING_FAILED, "code": error.code, **retry}
    if error.status in (409, 429):
        return {"type": "rate_limit_error", "message": message, "code": error.code, **retry}
    return {"type": "invalid_request_error", "message": message, "code": error.code}
