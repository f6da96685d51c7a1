"""A turn with an upstream that keeps the conversation. Read `converse()` first: its steps are those of `upstreams/turns.py`,
which decides what is next; here they are carried out.

    making a conversation    one at a time for each handle of a client's, and again for as long as that is safe
    saying something         one at a time in each conversation, first come first served, with a key of its account
    forgetting               what a handle stood for, and whose a number was

What a turn holds (its place in the line, a key, a connection) stands in `async with`, so that a client who leaves frees it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from balancer.errors import AnswerStalled, FirstByteTimeout, ProxyError, UpstreamError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import OK, Choice, Client, Judgement, Record, Verdict
from balancer.relay.asking import Asking, ask, asking_of, borrow, lent, pause, told, whole
from balancer.relay.exchange import Rooms
from balancer.relay.leasing import no_key
from balancer.relay.listening import Listener, Voice
from balancer.relay.transport import Answer
from balancer.relay.watchdog import Watchdog
from balancer.routing.backend_sessions import Wanted
from balancer.routing.limits import limited
from balancer.upstreams.conversing import Finding
from balancer.upstreams.turns import (
    Answered,
    Failed,
    Forget,
    Known,
    Made,
    Make,
    Orphaned,
    Outcome,
    Resting,
    Say,
    Step,
    Steps,
    steps,
)
from balancer.wire.achuan import Created
from balancer.wire.chat_messages import Message
from balancer.wire.session_ids import Fresh, SessionId


@dataclass(slots=True)
class Turn:
    """What a surface asks: to say `message` in the conversation that `session` means, or `opening` in one made for it.

    `deadline` is on the monotonic clock.
    """

    client: Client
    choice: Choice
    session: SessionId
    message: Message
    opening: Message
    deadline: float | None
    record: Record


@dataclass(slots=True, eq=False)
class _Talk:
    """A turn on its way."""

    turn: Turn
    voice: Voice
    rooms: Rooms
    asking: Asking
    wanted: Wanted


async def converse(turn: Turn, voice: Voice, rooms: Rooms) -> None:
    """Give the turn its answer through `voice`, or raise the ProxyError that is to be its answer.

    Also raises ClientGone and ClientStalled.
    """
    upstream = rooms.upstreams[turn.choice.upstream]
    asking = asking_of(upstream, rooms, turn.record, turn.deadline)
    turn.record.model = turn.choice.model
    wanted = Wanted(turn.client, turn.choice, turn.session, asking.kind)
    talk = _Talk(turn, voice, rooms, asking, wanted)
    plan = await rooms.backend_sessions.plan(wanted, upstream.pool.owners(), rooms.attempts)
    async with _Admitted(turn.client, rooms):
        try:
            await _carry_out(steps(plan), talk)
        except ProxyError as refused:
            if refused is plan.missing:
                await rooms.backend_sessions.nobody_knows(wanted)
            raise


async def _carry_out(way: Steps, talk: _Talk) -> None:
    outcome: Outcome = None
    while (step := _next(way, outcome)) is not None:
        if isinstance(outcome, Failed):
            await pause(talk.asking, outcome.cause)
        match step:
            case Make():
                outcome = await _make(talk)
            case Say():
                outcome = await _say(step, talk)
            case Forget(session=session):
                talk.voice.known(None)
                await talk.rooms.backend_sessions.forget(talk.wanted, session)
                outcome = None


def _next(way: Steps, outcome: Outcome) -> Step | None:
    """The step after this outcome; None where the client has its answer. Raises the ProxyError that is to be it."""
    try:
        return way.send(outcome)
    except StopIteration:
        return None


class _Admitted(AbstractAsyncContextManager[None]):
    """The client's own limits, for the time of the block. Raises ProxyError 429."""

    def __init__(self, client: Client, rooms: Rooms) -> None:
        self._client = client
        self._limits = rooms.limits if limited(client) else None

    async def __aenter__(self) -> None:
        if self._limits is not None:
            await self._limits.admit(self._client)

    async def __aexit__(self, *_: object) -> None:
        if self._limits is not None:
            await self._limits.release(self._client)


# Saying something


async def _say(step: Say, talk: _Talk) -> Outcome:
    """Say it when it is this turn's turn, with a key of the conversation's account."""
    asking, sessions = talk.asking, talk.rooms.backend_sessions
    owner, began = step.session.owner, asking.now()
    if not step.asks:
        talk.voice.known(step.session.id)
    async with sessions.turn(asking.upstream.name, step.session, asking.within(sessions.turn_wait)):
        asking.record.other_wait += asking.now() - began
        match await borrow(asking, owner, waits=not step.asks):
            case Lease() as leased:
                return await _speak(step, leased, talk)
            case NoKey(reasons=reasons):
                return Orphaned(no_key(reasons, owner))
            case Wait(until=until) as wait:
                if not step.asks:
                    lent(wait, owner, asking.now())
                return Resting(1.0 if until is None else max(1.0, until - asking.now()))


async def _speak(step: Say, leased: Lease, talk: _Talk) -> Outcome:
    """One request with the message. Once the client has been told something, there is no other outcome than that."""
    asking, voice, turn = talk.asking, talk.voice, talk.turn

    async def begin() -> None:
        await talk.rooms.backend_sessions.used(talk.wanted, step.session)
        voice.known(step.session.id)

    question = asking.session_kind.complete(step.session.id, turn.opening if step.first else turn.message, leased.key)
    listener = Listener(asking, voice, begin)
    cause: Finding | UpstreamError | None
    try:
        cause = await ask(asking, leased, question, listener.hear)
    except UpstreamError as broken:
        cause = broken
    if cause is None or listener.ended:
        return Answered()
    asking.refused_by |= {leased.key.fingerprint}
    error = told(asking, cause)
    if voice.begun:
        turn.record.error = f"cut: {error.code}"
        await voice.fail(error.message)
        return Answered()
    return Failed(cause, error)


# Making a conversation


@dataclass(frozen=True, slots=True)
class Creation:
    """A new conversation, and the upstream's own words about it."""

    session: Known
    body: bytes


async def create_session(
    client: Client, choice: Choice, members: Mapping[str, Any], rooms: Rooms, record: Record, deadline: float | None
) -> Creation:
    """Make a conversation that the client can name by its number from now on. `members`: what it wants beside the model.

    Raises ProxyError.
    """
    asking = asking_of(rooms.upstreams[choice.upstream], rooms, record, deadline)
    record.model = choice.model
    async with _Admitted(client, rooms):
        made = await _create(asking, choice, members)
    await rooms.backend_sessions.made(Wanted(client, choice, Fresh(), asking.kind), made.session)
    return made


async def _make(talk: _Talk) -> Made:
    """A new conversation, or the one that another request of the same handle has just made."""
    asking, wanted, sessions = talk.asking, talk.wanted, talk.rooms.backend_sessions
    handle = wanted.handle
    if handle is None:
        return Made(await _made(talk))
    began = asking.now()
    async with sessions.making(handle, asking.within(sessions.turn_wait)):
        asking.record.other_wait += asking.now() - began
        known = await sessions.known(wanted)
        return Made(known, first=False) if known is not None else Made(await _made(talk))


async def _made(talk: _Talk) -> Known:
    """A new conversation, remembered before anything is said in it."""
    made = (await _create(talk.asking, talk.turn.choice, {})).session
    await talk.rooms.backend_sessions.made(talk.wanted, made)
    return made


async def _create(asking: Asking, choice: Choice, members: Mapping[str, Any]) -> Creation:
    """Ask for it with any ready key. Nothing is lost if that is done twice: a key's fault moves it to the next key, and what is
    the upstream's it may meet `rooms.attempts` times. Only time that ran out is not spent again. Raises ProxyError.
    """
    failures = 0
    while True:
        leased = lent(await borrow(asking), None, asking.now())
        question = asking.session_kind.create(choice.model or "", leased.key, members)
        cause: Finding | UpstreamError
        try:
            outcome, body = await ask(asking, leased, question, _reads_creation(asking))
        except UpstreamError as broken:
            cause = broken
        else:
            if isinstance(outcome, Created):
                owner = asking.upstream.pool.owner_of(leased.key.fingerprint)
                return Creation(Known(str(outcome.number), owner), body)
            cause = outcome
        asking.refused_by |= {leased.key.fingerprint}
        failures += not _of_the_key(cause)
        if not _repeatable(cause) or failures >= asking.rooms.attempts:
            raise told(asking, cause)
        await pause(asking, cause)


def _reads_creation(asking: Asking) -> Any:
    async def hear(answer: Answer, watchdog: Watchdog) -> tuple[Judgement, tuple[Created | Finding, bytes]]:
        body = await whole(answer, watchdog)
        outcome = asking.session_kind.created(answer.status, answer.headers, body)
        return (OK if isinstance(outcome, Created) else outcome.judgement), (outcome, body)

    return hear


def _of_the_key(cause: Finding | UpstreamError) -> bool:
    return isinstance(cause, Finding) and cause.judgement.verdict is Verdict.KEY


def _repeatable(cause: Finding | UpstreamError) -> bool:
    """Whether making a conversation may be tried again after this."""
    match cause:
        case Finding(judgement=Judgement(verdict=Verdict.KEY | Verdict.UPSTREAM)):
            return True
        case Finding() | FirstByteTimeout() | AnswerStalled():
            return False
        case UpstreamError():
            return True
