"""The turns of stored sessions: which of a request's messages are new, what the model is told, and how its answer is kept.

    lock → commit the new turns → the upstream is called → commit the answer → the client learns that it is whole → unlock

New are the request's messages but for, in this order:

    a beginning that repeats the newest stored turns, an answer among them       a client that resends the history
    a beginning that repeats the newest stored turns, which have no answer yet   a retry after a failure
    instructions that are the session's already

The model is told the current instructions, then the newest turns of the roles that models know, oldest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from balancer.conversations.base import Binding, NewTurn, Session, SessionName, StorageUnavailable, Turn
from balancer.errors import ProxyError
from balancer.relay.speech import Told
from balancer.state.base import Busy, Locks
from balancer.surfaces.conversations_answers import no_session
from balancer.surfaces.conversations_requests import INSTRUCTIONS

if TYPE_CHECKING:
    from balancer.conversations.store import Store

log = structlog.get_logger()

SURFACE = "conversations"
SPOKEN = ("user", "assistant", "tool")
"""Roles of turns that models are told, beside instructions."""
MOST_ROLES = 16
"""Roles of a request whose turns are looked at for what it repeats."""
MOST_COMPARED = 10_000
"""Turns that are looked at for what a request repeats: more than any model is told."""
BUSY_RETRY = 5.0
"""Seconds after which one whose turn did not come may ask again."""
PARTIAL = {"partial": True}

_KEPT = {"name": str, "tool_calls": list, "tool_call_id": str}
"""Members of a message that are kept beside its content, under their names."""

Message = Mapping[str, Any]


class Stopped(Exception):
    """A generation was stopped from outside. `why`: "deleted" or "cancelled"."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Stop:
    """What stops a block, from outside of its task."""

    def __init__(self, scope: asyncio.Timeout) -> None:
        self._scope = scope
        self.why: str | None = None

    def __call__(self, why: str) -> None:
        if self.why is None:
            self.why = why
            self._scope.reschedule(asyncio.get_running_loop().time())


class Generations:
    """The generations of this process, by session, so that who deletes one can stop them."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, str], set[Stop]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def running(self, name: SessionName) -> AsyncIterator[Stop]:
        """A block that can be stopped. Raises Stopped if it was."""
        key = (name.client, name.folded)
        stop = None
        try:
            async with asyncio.timeout(None) as scope:
                stop = Stop(scope)
                self._running.setdefault(key, set()).add(stop)
                self._idle.clear()
                try:
                    yield stop
                finally:
                    running = self._running[key]
                    running.discard(stop)
                    if not running:
                        del self._running[key]
                    if not self._running:
                        self._idle.set()
        except TimeoutError:
            if stop is None or stop.why is None:
                raise
            raise Stopped(stop.why) from None

    async def ended(self) -> None:
        """Returns when none runs, and what was said is stored."""
        await self._idle.wait()

    def stop(self, name: SessionName) -> None:
        """Stop those of a session."""
        for each in tuple(self._running.get((name.client, name.folded), ())):
            each("deleted")


@asynccontextmanager
async def turn_of(name: SessionName, store: Store, locks: Locks, wait: float) -> AsyncIterator[StoredTurn]:
    """The session's next turn, when those before it are done. Raises ProxyError 404, and 409 after `wait` seconds."""
    try:
        async with locks.hold(("stored", SURFACE, name.client, name.folded), wait):
            session = await store.get(name)
            if session is None:
                raise no_session()
            yield StoredTurn(store, session)
    except Busy:
        message = "An earlier turn of this session is not done yet; ask again."
        raise ProxyError(409, "session_busy", message, retry_after=BUSY_RETRY) from None


@dataclass(slots=True)
class StoredTurn:
    """One turn of a session, whose lock is held."""

    store: Store
    session: Session
    answered: bool = False
    """Its answer is stored, whole or in part, or was to be."""

    async def begin(self, messages: Sequence[Message], history: int) -> Context:
        """Commit what of the messages is new. `history`: how many turns the model is told. Raises ProxyError 404."""
        said = [each for each in messages if each["role"] not in INSTRUCTIONS]
        told = [each for each in messages if each["role"] in INSTRUCTIONS]
        roles = tuple(dict.fromkeys((*SPOKEN, *(str(each["role"]) for each in said))))[:MOST_ROLES]
        stored = await self.store.newest(self.session, max(history, min(len(said), MOST_COMPARED)), roles=roles)
        current = await self.store.newest(self.session, max(1, min(len(told), MOST_COMPARED)), roles=INSTRUCTIONS)
        known = _known(said, stored)
        answered = any(each["role"] == "assistant" for each in said[:known])
        repeated, unanswered = (known, 0) if answered else (0, known)
        new = [*([] if _known(told, current) == len(told) else told), *said[known:]]
        if new and await self.store.append(self.session, [new_turn(each) for each in new]) is None:
            raise no_session()
        before = [message_of(turn) for turn in stored[: len(stored) - unanswered] if turn.role in SPOKEN]
        heard = [*before, *(each for each in said[repeated:] if each["role"] in SPOKEN)][-history:]
        while heard and heard[0]["role"] == "tool":
            del heard[0]
        instructions = told or [message_of(turn) for turn in current[-1:]]
        return Context([*instructions, *heard], _unsaid(heard))

    async def commit(self, told: Told, *, partial: bool = False) -> bool:
        """Store the answer. False: the session is gone. Raises StorageUnavailable."""
        metadata: dict[str, Any] = {"tool_calls": storable(told.tool_calls)} if told.tool_calls else {}
        if partial:
            metadata |= PARTIAL
        tokens = told.pieces if told.usage is None else told.usage.completion
        turn = NewTurn("assistant", storable(told.text), tokens, metadata or None)
        self.answered = True
        writing = asyncio.ensure_future(self.store.append(self.session, [turn]))
        writing.add_done_callback(_seen)  # it goes on when the caller leaves meanwhile
        return await asyncio.shield(writing) is not None

    async def spare(self, told: Told) -> None:
        """Keep what was said until the answer broke off, if anything was."""
        if self.answered or not (told.text or told.tool_calls):
            return
        try:
            await _done(asyncio.ensure_future(self.commit(told, partial=True)))
        except StorageUnavailable as error:
            log.error("what was said of a broken answer could not be stored", reason=error.reason)

    async def bind(self, binding: Binding | None) -> None:
        """Remember where the conversation is kept; None: nowhere, so that one which lacks this turn is not gone on with.

        Raises ProxyError 404, StorageUnavailable.
        """
        if binding != self.session.binding:
            session = await self.store.bind(self.session, binding)
            if session is None:
                raise no_session()
            self.session = session


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told, the newest last. `new`: how many of the last messages were said to nobody yet."""

    messages: list[Message] = field(default_factory=list)
    new: int = 1


async def _done(writing: asyncio.Future[Any]) -> None:
    """Wait for it to its end, however often this task is cancelled meanwhile."""
    cancelled = False
    while not writing.done():
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            cancelled = True
    await writing
    if cancelled:
        raise asyncio.CancelledError


def _seen(writing: asyncio.Future[Any]) -> None:
    if not writing.cancelled():
        writing.exception()


def _unsaid(heard: Sequence[Message]) -> int:
    """How many of the last messages no model has answered."""
    answered = next((n for n, each in enumerate(reversed(heard)) if each["role"] == "assistant"), len(heard))
    return max(1, answered)


def _known(said: Sequence[Message], stored: Sequence[Turn]) -> int:
    """How many of the messages, from the first on, are the newest stored turns: as many as can be.

    By the prefix function of Knuth, Morris and Pratt: each message and each turn is looked at once, or a few times.
    """
    wanted = [_compared(each["role"], each.get("content")) for each in said[:MOST_COMPARED]]
    if not wanted:
        return 0
    borders, same = [0], 0
    for each in wanted[1:]:
        while same and each != wanted[same]:
            same = borders[same - 1]
        same += each == wanted[same]
        borders.append(same)
    same = 0
    for turn in stored:
        each = _compared(turn.role, turn.content)
        while same and (same == len(wanted) or each != wanted[same]):
            same = borders[same - 1]
        same += each == wanted[same]
    return same


def _compared(role: str, content: Any) -> tuple[str, Any]:
    """Messages that say the same have the same."""
    return role, content or ""


def new_turn(message: Message) -> NewTurn:
    """A message as it is stored."""
    metadata = {name: message[name] for name, kind in _KEPT.items() if isinstance(message.get(name), kind)}
    content = message.get("content") or ""
    return NewTurn(message["role"], content, _characters(content), metadata or None)


def message_of(turn: Turn) -> Message:
    """A stored turn as a model is told it."""
    kept = turn.metadata_info or {}
    return {
        "role": turn.role,
        "content": turn.content,
        **{name: kept[name] for name, kind in _KEPT.items() if isinstance(kept.get(name), kind)},
    }


def _characters(content: str | Sequence[Any]) -> int:
    if isinstance(content, str):
        return len(content)
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return sum(len(text) for text in texts if isinstance(text, str))


def storable(value: Any) -> Any:
    """The same, as databases keep it: pairs of surrogates joined, what is no character replaced."""
    match value:
        case str():
            if value.isascii() and "\0" not in value:
                return value
            text = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
            return text.replace("\0", "\ufffd")
        case list():
            return [storable(each) for each in value]
        case dict():
            return {storable(name): storable(each) for name, each in value.items()}
        case _:
            return value
