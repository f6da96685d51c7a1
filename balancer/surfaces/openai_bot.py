"""`/v1/chat/completions` with a bot: all messages make a conversation, later ones go on in it, and its answer comes back in
OpenAI's dialect.

| the request names | goes on with |
|---|---|
| `x-conversation-id` | that conversation, which is never replaced by another |
| a session, in any place where sessions are named, or a user | the conversation that the session has had with this bot |
| nothing | none: one is made for it |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Choice, Client
from balancer.relay.chatting import ChatTurn, chat
from balancer.relay.exchange import Rooms
from balancer.relay.replay import Budget
from balancer.routing.bot_conversations import Sought
from balancer.surfaces.base import ClientReply
from balancer.surfaces.openai_bot_voice import CONVERSATION_FIELD, GatheredBot, StreamedBot
from balancer.upstreams.coze import CozeKind
from balancer.upstreams.turns import Known
from balancer.web import RECORD
from balancer.wire.chat_chunks import wants_usage
from balancer.wire.coze_messages import Entry, newest, opening, uploads
from balancer.wire.session_ids import Derived, SessionId, handle_of

SHORTEST, LONGEST = 10, 128
"""Characters of the id of a conversation."""


@dataclass(frozen=True, slots=True)
class BotSaid:
    """What of a chat request travels, and how its answer is wanted.

    `named`: the conversation that it names itself; `handle`: what it calls its session; `newest` goes on with a conversation,
    `whole` makes one; `model`: the name that the answer shows.
    """

    named: str | None
    handle: str | None
    newest: tuple[Entry, ...]
    whole: tuple[Entry, ...]
    user: str | None
    model: str
    stream: bool
    usage: bool


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks which bot. `deadline`: monotonic, the client's own; None: it is patient."""

    client: Client
    choice: Choice
    deadline: float | None


def read_bot_said(
    request: web.Request, members: dict[str, Any], messages: Sequence[Any], session: SessionId, model: str
) -> BotSaid:
    """Read a request. `session`: as it names one, digits included. Raises ProxyError 400: nothing has been sent yet."""
    whole = opening(messages)
    uploads(whole)  # what holds no file is refused before anything is asked for
    user = members.get("user")
    return BotSaid(
        _named(request.headers),
        session.handle if isinstance(session, Derived) else None,
        newest(messages),
        whole,
        user.strip() if isinstance(user, str) and handle_of(user) is not None else None,
        model,
        stream=members.get("stream") is True,
        usage=wants_usage(members),
    )


def _named(headers: Mapping[str, str]) -> str | None:
    """The conversation that a request names. Raises ProxyError 400 for what cannot be one: it is not to begin another."""
    given = headers.get(CONVERSATION_FIELD, "").strip()
    if not given:
        return None
    if not SHORTEST <= len(given) <= LONGEST or not given.isprintable():
        message = f"{CONVERSATION_FIELD} must be {SHORTEST} to {LONGEST} printable characters."
        raise ProxyError(400, "invalid_conversation_id", message, param=CONVERSATION_FIELD)
    return given


async def answer_bot_said(
    request: web.Request,
    asker: Asker,
    said: BotSaid,
    rooms: Rooms,
    budget: Budget,
    clock: Clock,
    frames: type[StreamedBot] = StreamedBot,
) -> web.StreamResponse:
    """Say it, and answer with what is said to that. `budget`: for answers that are gathered. Raises ProxyError."""
    record = request[RECORD]
    kind = rooms.upstreams[asker.choice.upstream].kind
    assert isinstance(kind, CozeKind)
    sought = Sought(asker.client, asker.choice, kind, said.named, said.handle)
    remember = partial(rooms.bot_conversations.began, sought)
    if not said.stream:
        gathered = GatheredBot(record, clock, said.model, remember, budget)
        try:
            await _say(request, asker, said, sought, gathered, rooms)
        finally:
            gathered.close()
        assert gathered.response is not None
        return gathered.response
    reply = ClientReply(request, record)
    usage, keepalive = said.usage, rooms.keepalive
    streamed = frames(reply, record, clock, said.model, remember, usage=usage, keepalive=keepalive)
    try:
        await _say(request, asker, said, sought, streamed, rooms)
    finally:
        streamed.close()
    assert reply.response is not None
    return reply.response


async def _say(
    request: web.Request,
    asker: Asker,
    said: BotSaid,
    sought: Sought,
    voice: StreamedBot | GatheredBot,
    rooms: Rooms,
) -> None:
    """When it is this request's turn in the conversation, find out which that is, and say it there."""
    record, conversations, upstream = request[RECORD], rooms.bot_conversations, rooms.upstreams[asker.choice.upstream]
    assert isinstance(upstream.kind, CozeKind)
    now = rooms.clock.monotonic
    began, patience = now(), conversations.turn_wait
    if asker.deadline is not None:
        patience = max(0.0, min(patience, asker.deadline - began))

    async def forget(session: Known) -> None:
        voice.known(None)
        await conversations.forget(sought, session)

    async with conversations.line(sought, patience):
        waited = now() - began
        record.other_wait += waited
        left = max(0.0, conversations.turn_wait - waited)
        plan = await conversations.plan(sought, upstream.pool.owners(), rooms.attempts, left)
        if plan.session is not None:
            voice.known(plan.session.id)
        turn = ChatTurn(
            client=asker.client,
            choice=asker.choice,
            plan=plan,
            newest=said.newest,
            whole=said.whole,
            user=said.user,
            tell=upstream.kind.told,
            record=record,
            deadline=asker.deadline,
        )
        await chat(turn, voice, rooms, forget)
