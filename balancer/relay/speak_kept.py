"""Saying a turn to upstreams that keep the conversation: where it is kept is the surface's to remember."""

from __future__ import annotations

from dataclasses import replace

from balancer.conversations.base import Binding
from balancer.errors import ProxyError, UpstreamError
from balancer.model import Choice, Client, Record
from balancer.relay.chatting import ChatTurn, Tell, chat, look_up
from balancer.relay.converse import Turn, converse
from balancer.relay.exchange import Rooms
from balancer.relay.speech import Refused, Speech, Told, Voice
from balancer.routing.stored_conversation import StoredConversation
from balancer.upstreams import coze_turns
from balancer.upstreams.conversing import Finding, Trouble
from balancer.upstreams.coze import CozeFinding, CozeKind
from balancer.upstreams.turns import Known
from balancer.wire import coze_messages, openai_errors
from balancer.wire.chat_chunks import Usage
from balancer.wire.chat_messages import newest, opening
from balancer.wire.session_ids import Fresh


async def find_conversation(
    conversation: str, client: Client, choice: Choice, rooms: Rooms, record: Record
) -> Binding | None:
    """Where a conversation is kept that nobody here has met: each owner of a key is asked for it.

    None: the upstream is of a kind whose names for conversations clients never learn. Raises ProxyError: 404 where no owner knows
    it, 429 where one rests that might.
    """
    upstream = rooms.upstreams[choice.upstream]
    if not isinstance(upstream.kind, CozeKind):
        return None
    plan = coze_turns.Plan(
        upstream.kind.missing(conversation), unmet=conversation, owners=upstream.pool.owners(), attempts=rooms.attempts
    )
    turn = ChatTurn(client, choice, plan, (), (), None, _tells(upstream.kind), record)
    found = await look_up(turn, rooms)
    return Binding(choice.upstream, choice.model or "", found.owner, found.id)


def _known(binding: Binding | None, choice: Choice) -> Known | None:
    """The conversation that goes on; that of another upstream or model does not."""
    if binding is None or (binding.upstream, binding.model) != (choice.upstream, choice.model or ""):
        return None
    return Known(binding.remote, binding.owner)


async def say_to_bot(
    speech: Speech, choice: Choice, kind: CozeKind, voice: Voice, told: Told, rooms: Rooms, record: Record
) -> None:
    """To an upstream whose conversations are made by what is said in them first."""
    known = _known(speech.binding, choice)
    plan = coze_turns.Plan(
        kind.missing(known.id if known is not None else ""),
        known,
        renews=not speech.explicit,
        turn_wait=rooms.backend_sessions.turn_wait,
        attempts=rooms.attempts,
    )
    turn = ChatTurn(
        client=speech.client,
        choice=choice,
        plan=plan,
        newest=coze_messages.opening(speech.messages[-speech.new :]),
        whole=coze_messages.opening(speech.messages),
        user=speech.user,
        tell=_tells(kind),
        record=record,
        blames_keys=speech.surface == "chat",
    )
    await chat(turn, _Chatting(voice, told, choice), rooms)


def _tells(kind: CozeKind) -> Tell:
    """How a surface learns of Coze's failures."""

    def tell(cause: Finding | UpstreamError, text: str) -> ProxyError:
        error = kind.told(cause, text)
        if not isinstance(cause, CozeFinding) or cause.trouble is Trouble.BUSY:
            return error
        body = openai_errors.render(error)
        return Refused(cause.shown, body, number=cause.code, logid=cause.logid, callers=cause.of_message)

    return tell


class _Chatting:
    """A `relay.chatting.ChatVoice` for a voice of ours."""

    def __init__(self, voice: Voice, told: Told, choice: Choice) -> None:
        self._voice = voice
        self._told = told
        self._choice = choice

    async def begin(self, session: Known) -> None:
        choice = self._choice
        self.begun = True
        await self._voice.accepted(Binding(choice.upstream, choice.model or "", session.owner, session.id))

    async def delta(self, text: str) -> None:
        self._told.said(text)
        await self._voice.delta(text)

    async def reasoning(self, text: str) -> None:
        self._told.thought(text)
        await self._voice.reasoning(text)

    async def end(self, usage: Usage) -> None:
        self._told.usage = usage if usage.total else None
        await self._voice.end(self._told)

    async def fail(self, error: ProxyError) -> None:
        await self._voice.fail(error)


async def say_in_session(
    speech: Speech, choice: Choice, voice: Voice, told: Told, rooms: Rooms, record: Record
) -> None:
    """To an upstream that keeps the conversation."""
    known = _known(speech.binding, choice)
    conversation = StoredConversation(rooms.backend_sessions, known, explicit=speech.explicit)
    telling = _Telling(voice, told, record, choice, conversation)
    messages = [dict(each) for each in speech.messages]
    new = messages[-speech.new :]
    turn = Turn(
        client=speech.client,
        choice=choice,
        session=Fresh(),
        message=newest(new) if speech.new == 1 else opening(new, transcript=True),
        opening=opening(messages, transcript=True),
        deadline=None,
        record=record,
    )
    await converse(turn, telling, replace(rooms, backend_sessions=conversation))


class _Telling:
    """A `relay.listening.Voice` for a voice of ours."""

    def __init__(
        self, voice: Voice, told: Told, record: Record, choice: Choice, conversation: StoredConversation
    ) -> None:
        self._voice = voice
        self._told = told
        self._record = record
        self._choice = choice
        self._conversation = conversation
        self.begun = False

    def known(self, conversation: str | None) -> None:
        """It is told when it has answered."""

    async def begin(self) -> None:
        session, choice = self._conversation.session, self._choice
        assert session is not None  # it has just answered
        self.begun = True
        await self._voice.accepted(Binding(choice.upstream, choice.model or "", session.owner, session.id))

    async def delta(self, text: str) -> None:
        self._told.said(text)
        await self._voice.delta(text)

    async def end(self, text: str) -> None:
        await self._voice.end(self._told)

    async def fail(self, message: str) -> None:
        stalled = self._record.error == "cut: upstream_timeout"  # as the turn has just noted
        status, code = (504, "upstream_timeout") if stalled else (502, "upstream_error")
        await self._voice.fail(ProxyError(status, code, message))
