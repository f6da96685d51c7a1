"""The client's side of one turn on the chat surface: the answer in one piece, or as events while it comes.

    data: {"type":"chunk", …}   data: {"type":"reasoning", …}   …   data: {"type":"complete", …}  or  {"type":"error", …}

What a client is told is committed first: the conversation before the first event that names it, the answer before `complete`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from balancer.conversations.base import Binding, NewTurn, Session, StorageUnavailable
from balancer.errors import ProxyError
from balancer.model import Record
from balancer.relay.finishing import to_the_end
from balancer.relay.speech import Told
from balancer.surfaces.base import ClientReply
from balancer.surfaces.chat_errors import CLEARED, storage, unavailable
from balancer.surfaces.conversations_turns import storable
from balancer.wire.loose_json import dump

if TYPE_CHECKING:
    from balancer.conversations.store import Store

EVENTS = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache, no-transform"),
    ("x-accel-buffering", "no"),
)

_WITHOUT_OFFSET = len("2024-01-15T10:30:15.123456")
_Result = TypeVar("_Result")


_BREAKS = re.compile(rb"\xe2\x80[\xa8\xa9]|\xc2\x85")
"""U+2028, U+2029 and U+0085: ends of lines to readers that split decoded text, as Python's `str.splitlines` does."""


def _escaped(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def moment(seconds: float) -> str:
    """POSIX seconds as this surface writes them: UTC, six digits, no offset."""
    return shown(datetime.fromtimestamp(seconds, UTC))


def shown(time: datetime) -> str:
    """A time in UTC."""
    return time.isoformat(timespec="microseconds")[:_WITHOUT_OFFSET]


def fresh_message() -> str:
    return f"msg_{secrets.token_hex(8)}"


def fresh_conversation() -> str:
    return f"conv_{secrets.token_hex(8)}"


@dataclass(slots=True, eq=False, kw_only=True)
class Spoken:
    """What both sorts of answers share: the session as it is stored, and how the client calls it.

    `names_itself`: the upstream's word for the conversation is the one that clients are told; else one of ours is.
    """

    store: Store
    session: Session
    session_id: str
    names_itself: bool
    record: Record
    wall: Callable[[], float]
    message_id: str
    conversation_id: str = ""
    committed: bool = False
    """The answer is stored, or is being stored."""
    error: ProxyError | None = None
    """What is to be the answer instead, of a turn that failed before anything was told."""

    async def accepted(self, binding: Binding | None) -> None:
        """Remember where the conversation is kept, and what it is called. Raises ProxyError."""
        session = self.session
        remote = binding.remote if binding is not None and self.names_itself else None
        self.conversation_id = remote or session.conversation or fresh_conversation()
        if (session.binding, session.conversation) == (binding, self.conversation_id):
            return
        bound = await self._stored(self.store.bind(session, binding, conversation=self.conversation_id))
        if bound is None:
            raise cleared()
        self.session = bound

    async def commit(self, told: Told, *, partial: bool = False) -> None:
        """Store what was said. Raises ProxyError."""
        self.committed = True
        tokens = told.usage.completion if told.usage is not None else told.pieces
        info = {"partial": True} if partial else None
        turn = NewTurn("assistant", storable(told.text), tokens or told.pieces, info)
        if await self._stored(self.store.append(self.session, [turn])) is None:
            raise cleared()

    async def _stored(self, writing: Coroutine[Any, Any, _Result]) -> _Result:
        try:
            return await to_the_end(writing)
        except StorageUnavailable as failure:
            raise storage(failure) from failure

    def _named(self) -> dict[str, Any]:
        return {
            "session_id": self.session_id,
            "message_id": self.message_id,
            "conversation_id": self.conversation_id,
            "timestamp": moment(self.wall()),
        }


@dataclass(slots=True, eq=False, kw_only=True)
class WholeVoice(Spoken):
    """A `relay.speech.Voice` whose answer is one JSON object, in `answer` when the turn is over."""

    answer: dict[str, Any] = field(default_factory=dict)

    async def delta(self, text: str) -> None:
        """It is told with the rest."""

    async def reasoning(self, text: str) -> None:
        """It is told with the rest."""

    async def end(self, told: Told) -> None:
        await self.commit(told)
        thoughts = {"reasoning_content": told.reasoning} if told.reasoning else {}
        self.answer = {"response": told.text, **self._named(), **thoughts}

    async def fail(self, error: ProxyError) -> None:
        self.error = error


@dataclass(slots=True, eq=False, kw_only=True)
class StreamVoice(Spoken):
    """A `relay.speech.Voice` that writes each piece as an event, at once. `text_of`: what the client is told of an error."""

    reply: ClientReply
    text_of: Callable[[ProxyError], str]
    over: bool = False
    """The last event is out, or on its way."""
    _chunks: int = 0
    _bytes: int = 0

    async def accepted(self, binding: Binding | None) -> None:
        await Spoken.accepted(self, binding)
        fields = [*EVENTS, ("x-session-id", self.session_id.strip())]
        await self.reply.start(200, "OK", fields)
        self.reply.flush()

    async def delta(self, text: str) -> None:
        data = {"content": text, "chunk_index": self._chunks, **self._named()}
        self._chunks += 1
        await self._event("chunk", data)

    async def reasoning(self, text: str) -> None:
        data = {"content": text, "session_id": self.session_id, "message_id": self.message_id}
        await self._event("reasoning", data)

    async def end(self, told: Told) -> None:
        try:
            await self.commit(told)
        except ProxyError as error:
            await self.fail(error)
            return
        thoughts = {"reasoning_content": told.reasoning} if told.reasoning else {}
        self.over = True
        data = {"total_chunks": self._chunks, "full_content": told.text, **self._named(), **thoughts}
        await self._event("complete", data)
        await self.reply.finish()

    async def fail(self, error: ProxyError) -> None:
        self.over = True
        self.record.error = self.record.error or error.code
        await self._event("error", {"message": self.text_of(error), **self._named()})
        await self.reply.finish()

    async def _event(self, kind: str, data: dict[str, Any]) -> None:
        event = b"data: %b\n\n" % _BREAKS.sub(_escaped, dump({"type": kind, "data": data}))
        self._bytes += len(event)
        self.record.bytes_out = self._bytes
        await self.reply.write(event)


def cleared() -> ProxyError:
    """The session was cleared, or given up, while it was being answered."""
    return unavailable(CLEARED, code="session_cleared")
