"""A turn with Coze, whose conversations are made by the first chat in them. Read `chat()` first: its steps are those of
`upstreams/coze_turns.py`, which decides what is next; here they are carried out.

    looking up     whether an owner knows a conversation that nobody here has met
    a chat         what must be uploaded first, the request, and its answer (chat_listening.py), all with one key
    departure      a chat goes on when its reader leaves: it is canceled, which takes its id, for which the events are read on

From the event that says that the chat was made nothing is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from balancer.errors import AnswerCut, AnswerLost, AnswerStalled, ConnectFailed, ProxyError, UpstreamError
from balancer.keypool.pool import Lease, NoKey, Wait
from balancer.model import GONE, OK, Choice, Client, Judgement, Key, Record, Verdict
from balancer.relay.asking import asking_of, borrow, lent, pause
from balancer.relay.chat_listening import ChatListener, ChatVoice, Sides, Tell
from balancer.relay.exchange import Rooms
from balancer.relay.finishing import to_the_end
from balancer.relay.leasing import no_key
from balancer.relay.transport import Answer
from balancer.relay.watchdog import FIRST_BYTE, Watchdog
from balancer.routing.limits import limited
from balancer.upstreams.coze import CozeFinding, CozeKind
from balancer.upstreams.coze_turns import Chat, Knows, LookUp, Outcome, Pause, Plan, Step, Steps, steps
from balancer.upstreams.turns import Failed, Forget, Known, Orphaned, Resting
from balancer.wire import coze
from balancer.wire.chat_chunks import Usage
from balancer.wire.coze_messages import Entry, rendered, uploads

__all__ = ["ChatTurn", "ChatVoice", "Tell", "chat", "look_up"]

READ_ON = 5.0
"""Seconds for which a chat that nobody waits for is read on, until its id is known."""
CANCELING = 5.0
"""Seconds that canceling a chat may take."""


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """What a surface asks: to say `newest` in the conversation of the plan, or `whole` in a new one.

    `user`: who speaks, None: as configured. `blames_keys`: where this very turn made the last key unusable, its refusal is told.
    `deadline` is on the monotonic clock.
    """

    client: Client
    choice: Choice
    plan: Plan
    newest: Sequence[Entry]
    whole: Sequence[Entry]
    user: str | None
    tell: Tell
    record: Record
    blames_keys: bool = False
    deadline: float | None = None


@dataclass(slots=True, eq=False)
class _Run:
    """A turn on its way."""

    turn: ChatTurn
    sides: Sides
    refused: CozeFinding | None = None
    """The last refusal that was a key's fault."""
    last: str | None = None
    """Fingerprint of the key that had the chat last."""
    uploaded: dict[str, dict[str, str]] = field(default_factory=dict)
    """By key, the id of each uploaded file by its `data:` URL."""


async def _unmoved(session: Known) -> None:
    """Nobody keeps what a conversation was known by."""


async def chat(
    turn: ChatTurn, voice: ChatVoice, rooms: Rooms, forget: Callable[[Known], Awaitable[None]] = _unmoved
) -> None:
    """Give the turn its answer through `voice`, or raise the ProxyError that is to be its answer.

    Whoever calls holds the turn's place in its conversation. `forget` is told of a conversation that is no more. Also raises
    ClientGone and ClientStalled.
    """
    run = _run(turn, voice, rooms)
    admitted = limited(turn.client)
    if admitted:
        await rooms.limits.admit(turn.client)
    try:
        way, outcome = steps(turn.plan), None
        while (step := _next(way, outcome)) is not None:
            if isinstance(step, Forget):
                await forget(step.session)
            outcome = await _carry_out(step, run, outcome)
    finally:
        if admitted:
            await rooms.limits.release(turn.client)


async def look_up(turn: ChatTurn, rooms: Rooms) -> Known:
    """The conversation of the plan, with the owner that knows it. Raises ProxyError."""
    run = _run(turn, _Nobody(), rooms)
    way, outcome = steps(turn.plan), None
    while not isinstance(step := _next(way, outcome), Chat):
        assert step is not None  # a chat is what a look-up is for
        outcome = await _carry_out(step, run, outcome)
    assert step.session is not None
    return step.session


def _run(turn: ChatTurn, voice: ChatVoice, rooms: Rooms) -> _Run:
    upstream = rooms.upstreams[turn.choice.upstream]
    assert isinstance(upstream.kind, CozeKind)
    turn.record.model = turn.choice.model
    asking = asking_of(upstream, rooms, turn.record, turn.deadline)
    return _Run(turn, Sides(voice, asking, upstream.kind, turn.tell))


def _next(way: Steps, outcome: Outcome) -> Step | None:
    """The step after this outcome; None where the client has its answer. Raises the ProxyError that is to be it."""
    try:
        return way.send(outcome)
    except StopIteration:
        return None


async def _carry_out(step: Step, run: _Run, before: Outcome) -> Outcome:
    asking = run.sides.asking
    if isinstance(before, Failed) and not isinstance(step, Pause):
        await pause(asking, before.cause)
    match step:
        case Pause(seconds=seconds):
            began = asking.now()
            await asyncio.sleep(asking.within(seconds))
            asking.record.other_wait += asking.now() - began
        case LookUp(session=session):
            return await _looked_up(session, run)
        case Chat():
            return await _chatted(step, run)
        case Forget():
            pass
    return None


async def _attempted(
    leased: Lease, run: _Run, work: Callable[[Watchdog], Coroutine[Any, Any, tuple[Judgement, Outcome]]]
) -> Outcome:
    """Do it with the leased key, and end the lease whatever happens."""
    asking, upstream = run.sides.asking, run.sides.asking.upstream
    asking.record.attempts += 1
    asking.record.key = leased.key.fingerprint
    asking.waits()
    begun = asking.now()
    remaining = None if asking.deadline is None else asking.deadline - begun
    judgement, outcome = GONE, None
    try:
        with Watchdog(upstream.timeouts, remaining, begun - asking.record.started) as watchdog:
            judgement, outcome = await work(watchdog)
    except UpstreamError as broken:
        judgement = Judgement(Verdict.UPSTREAM, str(broken))
        if not isinstance(broken, AnswerCut):
            upstream.reach.failed(str(broken), begun=begun, sent=not isinstance(broken, ConnectFailed))
        outcome = await run.sides.broke_off(broken)
    finally:
        asking.heard()
        upstream.pool.report(leased, judgement)
    if isinstance(outcome, Failed) and judgement.verdict in (Verdict.KEY, Verdict.UPSTREAM):
        asking.refused_by |= {leased.key.fingerprint}
        if judgement.verdict is Verdict.KEY and isinstance(outcome.cause, CozeFinding):
            run.refused = outcome.cause
    return outcome


# Looking up


async def _looked_up(session: Known, run: _Run) -> Outcome:
    asking, sides = run.sides.asking, run.sides

    async def work(watchdog: Watchdog) -> tuple[Judgement, Outcome]:
        found = sides.kind.read(*await sides.exchange(sides.kind.look_up(session.id, leased.key), watchdog))
        if isinstance(found, CozeFinding):
            return found.judgement, Failed(found, sides.told(found))
        return OK, Knows()

    match await borrow(asking, session.owner, waits=False):
        case NoKey(reasons=reasons):
            return Orphaned(no_key(reasons, session.owner))
        case Wait(until=until):
            return Resting(1.0 if until is None else max(1.0, until - asking.now()))
        case Lease() as leased:
            return await _attempted(leased, run, work)


# A chat


async def _chatted(step: Chat, run: _Run) -> Outcome:
    asking, owner = run.sides.asking, step.session.owner if step.session is not None else None
    said = await borrow(asking, owner, prefer=run.last if step.same else None)
    if isinstance(said, NoKey):
        if step.session is None and run.refused is not None and run.turn.blames_keys:
            return Orphaned(run.sides.told(run.refused))
        return Orphaned(no_key(said.reasons, owner))
    leased = lent(said, owner, asking.now())
    run.last = leased.key.fingerprint
    return await _attempted(leased, run, lambda watchdog: _said(step, leased.key, run, watchdog))


async def _said(step: Chat, key: Key, run: _Run, watchdog: Watchdog) -> tuple[Judgement, Outcome]:
    """One request with the message, and what came of it."""
    turn, sides = run.turn, run.sides
    entries = turn.newest if step.session is not None else turn.whole
    refused = await _upload(entries, key, run, watchdog)
    if refused is not None:
        return refused.judgement, Failed(refused, sides.told(refused))
    conversation = step.session.id if step.session is not None else None
    messages = rendered(entries, run.uploaded[key.fingerprint])
    question = sides.kind.chat(turn.choice.model or "", messages, key, conversation, turn.user)
    listener = ChatListener(sides, key, named=conversation is not None)
    watchdog.phase(FIRST_BYTE)
    # The request goes on where the client leaves: only its answer tells which chat is to be canceled.
    sending = asyncio.ensure_future(sides.send(question))
    try:
        answer = await asyncio.shield(sending)
        sides.asking.upstream.reach.answered()
        return await listener.hear(answer, watchdog)
    except BaseException as ended:
        if not _over(ended):
            left = isinstance(ended, asyncio.CancelledError) and not watchdog.expired
            await to_the_end(_depart(sending, listener, sides, key, READ_ON if left else 0.0))
        raise
    finally:
        if sending.done() and not sending.cancelled() and sending.exception() is None:
            sending.result().close()
        sending.cancel()


def _over(ended: BaseException) -> bool:
    """Whether it was the upstream that hung up, and not this side."""
    return isinstance(ended, ConnectFailed | AnswerLost | AnswerCut) and not isinstance(ended, AnswerStalled)


async def _upload(entries: Iterable[Entry], key: Key, run: _Run, watchdog: Watchdog) -> CozeFinding | None:
    """Make files of what must be one, with the key that gets the chat. What was refused, if something was."""
    ids, kind = run.uploaded.setdefault(key.fingerprint, {}), run.sides.kind
    for file in uploads(entries):
        if file.url in ids:
            continue
        status, headers, body = await run.sides.exchange(kind.upload(file, key), watchdog)
        found = kind.read(status, headers, body, named=False)
        if isinstance(found, CozeFinding):
            return found
        identity = coze.id_of(found.data)
        if identity is None:
            return kind.find(status, headers, b"", named=False)
        ids[file.url] = identity
    return None


# Departure


async def _depart(
    sending: asyncio.Future[Answer], listener: ChatListener, sides: Sides, key: Key, patience: float
) -> None:
    """Nobody waits for the answer any more: cancel the chat, which would go on by itself. `patience`: seconds for its id."""
    listener.silent = True
    timeouts = sides.asking.upstream.timeouts
    if listener.began is None and patience:
        with contextlib.suppress(TimeoutError, UpstreamError):
            async with asyncio.timeout(patience):
                with Watchdog(timeouts) as watchdog:
                    await listener.identify(await sending, watchdog)
    if listener.began is None or listener.over:
        return
    with contextlib.suppress(TimeoutError, UpstreamError):
        async with asyncio.timeout(CANCELING):
            with Watchdog(timeouts) as watchdog:
                await sides.exchange(sides.kind.cancel(listener.began, key), watchdog)


class _Nobody:
    """The voice of a turn that says nothing."""

    begun = False

    async def begin(self, session: Known) -> None: ...

    async def delta(self, text: str) -> None: ...

    async def reasoning(self, text: str) -> None: ...

    async def end(self, usage: Usage) -> None: ...

    async def fail(self, error: ProxyError) -> None: ...
