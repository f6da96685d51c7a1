"""`POST /api/chat/completions`: OpenAI's call, whose turns are stored where the query names a session.

| | no session | a stored session |
|---|---|---|
| the upstream speaks the dialect | request and answer pass | what is stored goes up, the answer is read on its way |
| it keeps the conversation | as on the openai surface | the new turns go up, the answer is made here |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from balancer.clock import Clock
from balancer.conversations.base import SessionName
from balancer.conversations.opening import Conversations
from balancer.model import Call, Choice, Client, Edit, Effect
from balancer.relay.converse import Turn, converse
from balancer.relay.exchange import Rooms
from balancer.relay.relay import relay
from balancer.relay.replay import Body, Budget, Given
from balancer.relay.speak import speak
from balancer.relay.speech import Means, Speech, Told
from balancer.routing.router import missing_model
from balancer.state.base import Locks
from balancer.surfaces.base import ClientReply, stainless_deadline
from balancer.surfaces.conversations_answers import no_session
from balancer.surfaces.conversations_reply import PassingReply, StoringReply
from balancer.surfaces.conversations_requests import Chat, received
from balancer.surfaces.conversations_turns import SURFACE, Context, Generations, Stopped, StoredTurn, turn_of
from balancer.surfaces.conversations_voice import BotFrames, Frames, Gathered, StoredFrames, StoredWhole
from balancer.surfaces.openai_bot import Asker, answer_bot_said, read_bot_said
from balancer.upstreams.conversing import ConversingKind
from balancer.upstreams.coze import CozeKind
from balancer.web import CLIENT, LOGIN, RECORD
from balancer.wire import openai, openai_ids
from balancer.wire.chat_chunks import wants_usage
from balancer.wire.chat_messages import newest, opening, refuse_unsupported
from balancer.wire.headers import REQUEST_DROP, end_to_end, strip_query
from balancer.wire.loose_json import dump
from balancer.wire.session_ids import choose, handle_of

if TYPE_CHECKING:
    from balancer.conversations.store import Store

INTERNAL = frozenset({"key", "api_key", "session_token", "session_id"})
"""Query members that are for us and for no upstream."""
PATH = "/chat/completions"

_DROP = REQUEST_DROP | {"openai-organization", "openai-project", "content-encoding", "content-type"}
_JSON = ("Content-Type", "application/json")


@dataclass(frozen=True, slots=True)
class ConversationsSettings:
    """What this surface takes from the configuration. Sizes in bytes, times in seconds.

    `history`: turns that a model is told. `members`: by upstream, its word for a limit of output tokens.
    """

    model: str | None
    history: int
    max_body: int
    body_idle: float | None
    turn_wait: float
    allowed_origins: Collection[str]
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes work with. `rooms` and `settings` are asked anew for each request: a reload changes the next one.

    `draining` is set when the process is about to end.
    """

    rooms: Callable[[], Rooms]
    settings: Callable[[], ConversationsSettings]
    conversations: Callable[[], Conversations]
    locks: Callable[[], Locks]
    budget: Budget
    draining: asyncio.Event
    clock: Clock
    generations: Generations

    @asynccontextmanager
    async def turn(self, name: SessionName) -> AsyncIterator[StoredTurn]:
        """The session's next turn. Raises ProxyError 404 (also where it is deleted meanwhile) and 409, StorageUnavailable."""
        store = await self.store()
        async with turn_of(name, store, self.locks(), self.settings().turn_wait) as turn:
            yield turn

    async def store(self) -> Store:
        """The open database. Raises StorageUnavailable."""
        return await self.conversations().store()

    async def choices(self, model: str | None, client: Client) -> tuple[Choice, ...]:
        """The upstreams that a model means. Raises ProxyError where that is none, or where there is no model."""
        wanted = model if model is not None and model.strip() else self.settings().model
        if wanted is None:
            raise missing_model()
        return await self.rooms().router.resolve(wanted, client)

    def kept_by(self, choices: Sequence[Choice]) -> ConversingKind | None:
        """The kind of the upstream, where that keeps the conversation."""
        kind = self.rooms().upstreams[choices[0].upstream].kind
        return kind if isinstance(kind, ConversingKind) else None

    def passing(self, choices: Sequence[Choice]) -> tuple[Choice, ...]:
        """Those of the choices that speak the dialect."""
        upstreams = self.rooms().upstreams
        return tuple(each for each in choices if not isinstance(upstreams[each.upstream].kind, ConversingKind))

    def means(self) -> Means:
        return Means(self.rooms(), self.budget, self.settings().members)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read. `members`: what of it travels, but for the messages. `given`: the model as it was asked for."""

    members: dict[str, Any]
    messages: list[dict[str, Any]]
    given: str | None
    choices: tuple[Choice, ...]
    prefix: str | None

    @property
    def stream(self) -> bool:
        return self.members.get("stream") is True

    @property
    def shown(self) -> str:
        """The model as an answer of ours shows it: without its provider."""
        choice = self.choices[0]
        return self.given.removeprefix(f"{choice.upstream}/") if self.given else choice.model or ""


async def complete(request: web.Request, body: bytes, prefix: str | None, backend: Backend) -> web.StreamResponse:
    """Answer a call. `prefix`: the session that its path names, for affinity. Raises ProxyError, StorageUnavailable."""
    chat, tree = await received(Chat, body)
    login, client = request.get(LOGIN), request[CLIENT]
    given = chat.model if chat.model is not None and chat.model.strip() else None
    named = request.query.get("session_id")
    if named and handle_of(named) is None:
        raise no_session()
    bound = login.bound if login is not None else None
    choices = await backend.choices(given or bound, client)
    members = {name: value for name, value in tree.items() if value is not None and name != "messages"}
    asked = Asked(members, tree["messages"], given, choices, prefix)
    if not named:
        kind = backend.kept_by(choices)
        return await (_pass(request, asked, backend) if kind is None else _translate(request, asked, kind, backend))
    return await _stored(request, asked, SessionName(client.name, SURFACE, named), backend)


# Nothing is stored


async def _pass(request: web.Request, asked: Asked, backend: Backend) -> web.StreamResponse:
    record = request[RECORD]
    call, body = _call(request, asked, asked.messages, backend)
    reply = PassingReply(request, record)
    await relay(call, body, reply, backend.rooms(), record)
    assert reply.response is not None
    return reply.response


async def _translate(request: web.Request, asked: Asked, kind: ConversingKind, backend: Backend) -> web.StreamResponse:
    refuse_unsupported(asked.members)
    record, members = request[RECORD], asked.members
    session = choose(
        header=request.headers.get("X-Session-Id"),
        body=members.get("session_id"),
        metadata=members.get("metadata"),
        prefix=asked.prefix,
        user=members.get("user"),
        numbered=not isinstance(kind, CozeKind),
    )
    if isinstance(kind, CozeKind):
        said = read_bot_said(request, members, asked.messages, session, asked.shown)
        asker = Asker(request[CLIENT], asked.choices[0], stainless_deadline(request, request[RECORD].started))
        return await answer_bot_said(request, asker, said, backend.rooms(), backend.budget, backend.clock, BotFrames)
    turn = Turn(
        request[CLIENT],
        asked.choices[0],
        session,
        newest(asked.messages),
        opening(asked.messages, transcript=kind.keeping.transcript),
        stainless_deadline(request, request[RECORD].started),
        record,
    )
    rooms = backend.rooms()
    if not asked.stream:
        gathered = Gathered(record, backend.clock, asked.shown, backend.budget)
        try:
            await converse(turn, gathered, rooms)
        finally:
            gathered.close()
        assert gathered.response is not None
        return gathered.response
    reply = ClientReply(request, record)
    usage = wants_usage(members)
    frames = Frames(reply, record, backend.clock, asked.shown, usage=usage, keepalive=rooms.keepalive)
    try:
        await converse(turn, frames, rooms)
    finally:
        frames.close()
    assert reply.response is not None
    return reply.response


# In a stored session


async def _stored(request: web.Request, asked: Asked, name: SessionName, backend: Backend) -> web.StreamResponse:
    try:
        async with backend.generations.running(name), backend.turn(name) as turn:
            context = await turn.begin(asked.messages, backend.settings().history)
            if backend.kept_by(asked.choices) is None:
                return await _pass_stored(request, asked, turn, context, backend)
            return await _speak_stored(request, asked, turn, context, backend)
    except Stopped:
        raise no_session() from None


async def _pass_stored(
    request: web.Request, asked: Asked, turn: StoredTurn, context: Context, backend: Backend
) -> web.StreamResponse:
    record, told = request[RECORD], Told(backend.budget)

    async def commit(partial: bool) -> None:
        if not await turn.commit(told, partial=partial):
            raise no_session()

    await turn.bind(None)
    call, body = _call(request, asked, context.messages, backend, turn)
    reply = StoringReply(request, record, told, backend.budget, commit)
    try:
        await relay(call, body, reply, backend.rooms(), record)
    finally:
        reply.release()
        reply.broke_off()
        await turn.spare(told)
        told.release()
    assert reply.response is not None
    return reply.response


async def _speak_stored(
    request: web.Request, asked: Asked, turn: StoredTurn, context: Context, backend: Backend
) -> web.StreamResponse:
    refuse_unsupported(asked.members)
    record, told = request[RECORD], Told(backend.budget)
    reply = ClientReply(request, record)
    voice = (
        StoredFrames(reply, record, backend.clock, asked.shown, turn, told, usage=wants_usage(asked.members))
        if asked.stream
        else StoredWhole(record, backend.clock, asked.shown, turn)
    )
    user = asked.members.get("user")
    speech = Speech(
        surface=SURFACE,
        client=request[CLIENT],
        choices=asked.choices,
        messages=context.messages,
        session=turn.session.name.folded,
        new=context.new,
        user=user if isinstance(user, str) else None,
        binding=turn.session.binding,
    )
    try:
        await speak(speech, voice, told, backend.means(), record)
    finally:
        await turn.spare(told)
        told.release()
    response = voice.response if isinstance(voice, StoredWhole) else reply.response
    assert response is not None
    return response


# What travels


def _call(
    request: web.Request,
    asked: Asked,
    messages: Sequence[Mapping[str, Any]],
    backend: Backend,
    turn: StoredTurn | None = None,
) -> tuple[Call, Body]:
    """The call and its body, for upstreams that speak the dialect. A stored session is its own affinity."""
    client = request[CLIENT]
    text = dump({**asked.members, "messages": messages})
    looked = openai.read(text)
    place = openai_ids.place("POST", PATH)
    creates = place.effect if looked.store or not place.if_stored else Effect.NONE
    path, _ = strip_query(
        f"{PATH}?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else PATH, INTERNAL
    )
    call = Call(
        surface=SURFACE,
        dialect="openai",
        method="POST",
        path=path,
        headers=_headers(request, identity=turn is not None or creates is Effect.CREATE),
        client=client,
        choices=backend.passing(asked.choices),
        edits=partial(_edits, looked, client, backend.settings().members),
        session=_affinity(request, asked, turn),
        deadline=stainless_deadline(request, request[RECORD].started),
        repeatable=place.repeatable and creates is not Effect.CREATE,
        effect=creates,
        scans=place.scans,
    )
    return call, Body(Given(text), len(text), len(text), backend.budget)


def _edits(looked: openai.Asked, client: Client, members: Mapping[str, str], choice: Choice) -> list[Edit]:
    limit = members.get(choice.upstream)
    return openai.edits(looked, model=choice.model, maximum=client.max_tokens, limit_member=limit)


def _headers(request: web.Request, *, identity: bool) -> list[tuple[str, str]]:
    headers = end_to_end(request.headers.items(), _DROP)
    if identity:
        headers = [field for field in headers if field[0].lower() != "accept-encoding"]
        headers.append(("Accept-Encoding", "identity"))
    return [*headers, _JSON]


def _affinity(request: web.Request, asked: Asked, turn: StoredTurn | None) -> str | None:
    if turn is not None:
        return turn.session.name.folded
    metadata = asked.members.get("metadata")
    inner = metadata.get("sessionId") if isinstance(metadata, dict) else None
    given = (request.headers.get("X-Session-Id"), asked.members.get("session_id"), inner, asked.prefix)
    return next((found for each in given if (found := handle_of(each)) is not None), None)
