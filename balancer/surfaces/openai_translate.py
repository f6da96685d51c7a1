"""`/v1/chat/completions` with an upstream that keeps the conversation: the newest message goes up, its answer comes back in
OpenAI's dialect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from balancer.clock import Clock
from balancer.errors import ProxyError
from balancer.model import Call, Choice
from balancer.relay.converse import Turn, converse
from balancer.relay.exchange import Rooms
from balancer.relay.replay import Body, Budget
from balancer.surfaces.base import ClientReply
from balancer.surfaces.openai_bot import Asker, BotSaid, answer_bot_said, read_bot_said
from balancer.surfaces.openai_voice import Gathered, Streamed
from balancer.upstreams.coze import CozeKind
from balancer.web import RECORD
from balancer.wire import openai
from balancer.wire.chat_chunks import wants_usage
from balancer.wire.chat_messages import Message, newest, opening, refuse_unsupported
from balancer.wire.json_object import load_object
from balancer.wire.json_places import Malformed
from balancer.wire.session_ids import SessionId, choose


@dataclass(frozen=True, slots=True)
class Said:
    """What of a chat request travels, and how its answer is wanted. `model`: the name that the answer shows."""

    session: SessionId
    message: Message
    opening: Message
    model: str
    stream: bool
    usage: bool


def read_said(
    request: web.Request, body: Body, prefix: str | None, choice: Choice, rooms: Rooms, most: int
) -> Said | BotSaid:
    """Read a request whose body was gathered. `prefix`: the session that its path names; `most`: bytes of a body that is read.

    Raises ProxyError 400, 413.
    """
    if not body.complete or body.size > most:
        message = f"The upstream {choice.upstream} takes bodies of {most} bytes at most, if there is room for them."
        raise ProxyError(413, "request_too_large", message, close=True)
    try:
        members, _ = load_object(body.kept())
    except Malformed:
        raise openai.no_object() from None
    messages = members.get("messages")
    if not isinstance(messages, list) or not messages:
        raise openai.no_messages()
    refuse_unsupported(members)
    kind = rooms.upstreams[choice.upstream].conversing
    assert kind is not None
    session = choose(
        header=request.headers.get("X-Session-Id"),
        query=request.rel_url.query.get("session_id"),
        body=members.get("session_id"),
        metadata=members.get("metadata"),
        prefix=prefix,
        user=members.get("user"),
        numbered=not isinstance(kind, CozeKind),
    )
    shown = _shown(members.get("model"), choice)
    if isinstance(kind, CozeKind):
        return read_bot_said(request, members, messages, session, shown)
    return Said(
        session,
        newest(messages),
        opening(messages, transcript=kind.keeping.transcript),
        shown,
        stream=members.get("stream") is True,
        usage=wants_usage(members),
    )


def _shown(asked: Any, choice: Choice) -> str:
    """The model as it was asked for, without its provider; the bound one where none was."""
    if not isinstance(asked, str) or not asked.strip():
        return choice.model or ""
    return asked.removeprefix(f"{choice.upstream}/")


async def answer_said(
    request: web.Request, call: Call, said: Said | BotSaid, rooms: Rooms, budget: Budget, clock: Clock
) -> web.StreamResponse:
    """Say it, and answer with what is said to that. `budget`: for answers that are gathered. Raises ProxyError."""
    if isinstance(said, BotSaid):
        asker = Asker(call.client, call.choices[0], call.deadline)
        return await answer_bot_said(request, asker, said, rooms, budget, clock)
    record = request[RECORD]
    turn = Turn(call.client, call.choices[0], said.session, said.message, said.opening, call.deadline, record)
    if not said.stream:
        gathered = Gathered(record, clock, said.model, budget)
        try:
            await converse(turn, gathered, rooms)
        finally:
            gathered.close()
        assert gathered.response is not None
        return gathered.response
    reply = ClientReply(request, record)
    streamed = Streamed(reply, record, clock, said.model, usage=said.usage, keepalive=rooms.keepalive)
    try:
        await converse(turn, streamed, rooms)
    finally:
        streamed.close()
    assert reply.response is not None
    return reply.response
