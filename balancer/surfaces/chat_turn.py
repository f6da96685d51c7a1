"""One turn of a chat session, from its place in the line to the committed answer.

    the session's lock → the user's turn is committed → the upstream is called → the answer is committed → the reply → release

A turn that fails leaves the user's turn behind; the same message sent next is not stored twice. Where the client leaves, what
was said so far is stored as partial; where the session is cleared, nothing is, and the turn ends with an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from balancer.clock import Clock
from balancer.conversations.base import NewTurn, Session, SessionName
from balancer.conversations.opening import Conversations
from balancer.errors import ClientGone, ClientStalled, ProxyError
from balancer.model import Choice, Client, Record
from balancer.relay.exchange import Rooms
from balancer.relay.finishing import to_the_end
from balancer.relay.replay import Budget
from balancer.relay.speak import speak
from balancer.relay.speak_kept import find_conversation
from balancer.relay.speech import Means, Speech, Told
from balancer.routing.router import may_use
from balancer.state.base import Busy, Handle, Locks
from balancer.surfaces.chat_errors import busy, no_conversation, unavailable
from balancer.surfaces.chat_models import ChatRequest
from balancer.surfaces.chat_voice import StreamVoice, WholeVoice, cleared

if TYPE_CHECKING:
    from balancer.conversations.store import Store

SURFACE = "chat"
SPOKEN = ("user", "assistant")

_Voice = TypeVar("_Voice", WholeVoice, StreamVoice)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """What this surface takes from the configuration. Sizes in bytes, times in seconds.

    `choice`: the upstream and the model behind the surface, None: it is not configured. `kind`: that upstream's. `history`: how
    many stored turns travel with a new one. `members`: by upstream, its word for a limit of output tokens. `user`: who speaks
    where neither request nor session say so.
    """

    choice: Choice | None
    kind: str
    user: str | None
    turn_wait: float
    history: int
    max_body: int
    body_idle: float | None
    allowed_origins: tuple[str, ...]
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A message, and the session that it is said in, as the request wrote its id and as it is compared."""

    client: Client
    session_id: str
    request: ChatRequest

    @property
    def name(self) -> SessionName:
        return SessionName(self.client.name, SURFACE, self.session_id.strip())


class Turns:
    """The turns of this process: one at a time in each session, first come first served."""

    def __init__(
        self,
        rooms: Callable[[], Rooms],
        settings: Callable[[], ChatSettings],
        conversations: Callable[[], Conversations],
        locks: Callable[[], Locks],
        budget: Budget,
        clock: Clock,
    ) -> None:
        self._rooms = rooms
        self._settings = settings
        self._conversations = conversations
        self._locks = locks
        self._budget = budget
        self._clock = clock
        self._running: dict[Handle, asyncio.Timeout] = {}

    async def store(self) -> Store:
        """The database, opened if it is not yet. Raises StorageUnavailable."""
        return await self._conversations().store()

    async def take(self, asked: Asked, voice_of: Callable[[Store, Session], _Voice], record: Record) -> _Voice:
        """Say the message, and have the voice tell what comes.

        Raises ProxyError and StorageUnavailable while the client has been told nothing.
        """
        rooms, settings = self._rooms(), self._settings()
        choice = _choice(settings, asked.client)
        began = self._clock.monotonic()
        async with self.alone(asked.name, settings.turn_wait):
            record.other_wait += self._clock.monotonic() - began
            store = await self.store()
            session, messages = await self._prepared(store, asked, settings, record)
            voice = voice_of(store, session)
            speech = Speech(
                surface=SURFACE,
                client=asked.client,
                choices=(choice,),
                messages=messages,
                session=f"{SURFACE}/{asked.name.folded}",
                user=asked.request.user_id or session.user_id or settings.user,
                binding=session.binding,
                explicit=voice.names_itself and asked.request.conversation_id is not None,
            )
            await self._said(speech, voice, Means(rooms, self._budget, settings.members), record)
            if voice.error is not None:
                raise voice.error
            return voice

    async def _said(self, speech: Speech, voice: WholeVoice | StreamVoice, means: Means, record: Record) -> None:
        told, scope, handle = Told(self._budget), asyncio.timeout(None), _handle(voice.session.name)
        try:
            async with scope:
                self._running[handle] = scope
                await speak(speech, voice, told, means, record)
        except TimeoutError:
            if not scope.expired():
                raise
            await _stopped(voice)
        except (asyncio.CancelledError, ClientGone, ClientStalled):
            if told.text and not voice.committed:
                await to_the_end(_partial(voice, told))
            raise
        finally:
            self._running.pop(handle, None)
            told.release()

    async def _prepared(
        self, store: Store, asked: Asked, settings: ChatSettings, record: Record
    ) -> tuple[Session, list[dict[str, Any]]]:
        """The session with the new turn in it, and what the upstream is to know, oldest first."""
        request = asked.request
        while True:
            session = await self._session(store, asked, settings, record)
            newest = await store.newest(session, 1)
            if newest and (newest[0].role, newest[0].content) == ("user", request.message):
                break  # said before, and not answered
            user = request.user_id or session.user_id or settings.user
            turn = NewTurn("user", request.message, len(request.message))
            if await to_the_end(store.append(session, [turn], user_id=user)) is not None:
                break  # else it was cleared just now, and is there anew
        turns = await store.newest(session, settings.history + 1, roles=SPOKEN)
        return session, [{"role": each.role, "content": each.content} for each in turns]

    async def _session(self, store: Store, asked: Asked, settings: ChatSettings, record: Record) -> Session:
        explicit = asked.request.conversation_id
        if explicit is None:
            user = asked.request.user_id or settings.user
            return (await store.get_or_create(asked.name, user_id=user))[0]
        return await self.move(store, asked.name, explicit, asked.client, record)

    async def move(self, store: Store, name: SessionName, conversation: str, client: Client, record: Record) -> Session:
        """The session of this name, which has the conversation from now on; another one of the client's that had it goes, and its
        newest turns come along. Raises ProxyError 404 for one that is another client's or nobody's.
        """
        held = await store.by_conversation(SURFACE, conversation)
        if held is None:
            return await self._adopted(store, name, conversation, client, record)
        if held.client != name.client:
            raise no_conversation(conversation)
        if held.name.folded == name.folded:
            return held
        session, _ = await store.get_or_create(name, user_id=held.user_id)
        turns = await store.newest(held, self._settings().history)
        if turns:
            copies = [NewTurn(each.role, each.content, each.tokens, each.metadata_info) for each in turns]
            await to_the_end(store.append(session, copies))
        moved = await to_the_end(store.bind(session, held.binding, conversation=conversation))
        if moved is None:
            raise no_conversation(conversation)
        return await store.get(name) or moved

    async def _adopted(
        self, store: Store, name: SessionName, conversation: str, client: Client, record: Record
    ) -> Session:
        """The session of this name with a conversation that nobody here has met, if the upstream knows it."""
        rooms, settings = self._rooms(), self._settings()
        binding = None
        if settings.choice is not None:
            binding = await find_conversation(conversation, client, settings.choice, rooms, record)
        taken = None
        if binding is not None:
            taken = await to_the_end(store.take(name, conversation, binding, user_id=settings.user))
        if taken is None:
            raise no_conversation(conversation)
        return taken

    def stop(self, name: SessionName) -> None:
        """End the turn that runs in the session, if one does in this process."""
        scope = self._running.pop(_handle(name), None)
        if scope is not None and not scope.expired():
            scope.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def alone(self, name: SessionName, wait: float) -> AsyncIterator[None]:
        """Be the only one at work in the session. Raises ProxyError 503 after `wait` seconds."""
        try:
            async with self._locks().hold(_handle(name), wait):
                yield
        except Busy:
            raise busy() from None


def _choice(settings: ChatSettings, client: Client) -> Choice:
    """Raises ProxyError 503 where nothing is behind the surface, 403 where the client may not use it."""
    choice = settings.choice
    if choice is None:
        raise unavailable("chat.upstream is not configured")
    if not may_use(client, choice.upstream, choice.model or ""):
        message = f"API Key 不允许访问模型 {choice.upstream}/{choice.model}"
        raise ProxyError(403, "model_not_allowed", message, param="model")
    return choice


def _handle(name: SessionName) -> Handle:
    return ("chat-turn", name.client, name.folded)


async def _stopped(voice: WholeVoice | StreamVoice) -> None:
    """The session was cleared while it was being answered."""
    if not isinstance(voice, StreamVoice) or not voice.reply.started:
        raise cleared()
    if not voice.over:
        await voice.fail(cleared())


async def _partial(voice: WholeVoice | StreamVoice, told: Told) -> None:
    try:
        await voice.commit(told, partial=True)
    except ProxyError:
        voice.record.error = "partial answer not stored"
