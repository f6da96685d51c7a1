"""One turn with Coze, step by step: what is to be done next, never how. The counterpart of turns.py, whose outcomes it shares.

A conversation is made by the first chat in it, so there is no step for that. `steps()` is a generator: it yields a step, is
sent what came of it, and returns when the chat has begun or raises the ProxyError that is to be the answer. The turn's place in
its session's line is held around all of it by whoever runs it.

    conversation    the answer says                      next
    any             the chat has begun                   nothing: what follows is the client's
    any             the caller's fault                   shown
    any             no connection                        again, `attempts` times in all
    any             overloaded                           again after 1 s and 2 s, then shown
    any             another chat runs there              again with the same key after 0.5, 1, 2, 4, 4 … s, within `turn_wait`
    none            a key's fault                        again with another key
    none            broken, or sent and then lost        again, once
    known           a key's fault                        again with its owner's next key, which is waited for
    known           broken, or sent and then lost        shown: the message may stand in it already
    known           no such conversation; no such key    a new one with all that was said, once
    explicit        no such conversation; no such key    404, as for one that nobody knows
    unmet           -                                    each owner is asked whether it knows it; then as explicit

When time ran out, nothing is sent again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from balancer.errors import AnswerStalled, ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.model import Judgement, Verdict
from balancer.upstreams.conversing import Finding, Trouble
from balancer.upstreams.coze import OVERLOADED_PAUSES, CozeFinding, busy_error, busy_pause
from balancer.upstreams.turns import Answered, Failed, Forget, Known, Orphaned, Resting


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask an owner whether it knows the conversation. Keys that rest are not waited for."""

    session: Known


@dataclass(frozen=True, slots=True)
class Chat:
    """Say the caller's message: in the conversation, with a key of its owner; without one all that was said, with any ready key.

    `same`: with the key that had it last, if that is ready. What must be uploaded is uploaded with that key first, and a failure
    of that is a failure of this.
    """

    session: Known | None
    same: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Step = LookUp | Chat | Pause | Forget


@dataclass(frozen=True, slots=True)
class Knows:
    """The owner knows the conversation."""


Outcome = Answered | Knows | Resting | Orphaned | Failed | None
Steps = Generator[Step, Outcome, None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before the first step.

    `missing`: what the caller is told of a conversation that nobody knows. `session`: the conversation, where it is known.
    `unmet`, `owners`: an explicit one that nobody here has met, and whom to ask for it. `renews`: a new one may take its place if
    it is no more; not for one that this request named. `turn_wait`: seconds. `attempts`: how often connecting is tried.
    """

    missing: ProxyError
    session: Known | None = None
    unmet: str = ""
    owners: Sequence[str] = ()
    renews: bool = False
    turn_wait: float = 120.0
    attempts: int = 4


def steps(plan: Plan) -> Steps:
    """The table above."""
    session = (yield from _found(plan)) if plan.unmet else plan.session
    tries = _Tries(plan)
    step = Chat(session)
    while True:
        outcome = yield step
        match outcome:
            case Answered():
                return
            case Orphaned(error=error) | Failed(cause=Finding(trouble=Trouble.STALE), error=error):
                if step.session is None:
                    raise error
                yield Forget(step.session)
                if not plan.renews:
                    raise plan.missing
                step = Chat(None)
            case Failed(cause=cause, error=error):
                pause = tries.pause(cause, error, known=step.session is not None)
                if pause:
                    yield Pause(pause)
                step = Chat(step.session, same=_keeps_its_key(cause))
            case Knows() | Resting() | None:
                raise AssertionError(outcome)


class _Tries:
    """How often what was tried again in one turn."""

    __slots__ = ("_busy", "_dials", "_overloaded", "_plan", "_repeated", "_waited")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._busy = 0
        self._waited = 0.0
        self._overloaded = 0
        self._dials = 0
        self._repeated = False

    def pause(self, cause: Finding | UpstreamError, error: ProxyError, *, known: bool) -> float:
        """Seconds after which it may be tried again. `known`: in a conversation. Raises ProxyError where it may not."""
        match cause:
            case Finding(trouble=Trouble.BUSY):
                return self._until_free()
            case CozeFinding(overloaded=True):
                return self._until_less_loaded(error)
            case Finding(judgement=Judgement(verdict=Verdict.KEY)):
                return 0.0  # ends by itself: a key at fault rests or is disabled, until there is none to lend
            case ConnectFailed():
                self._dials += 1
                if self._dials >= self._plan.attempts:
                    raise error
                return 0.0
            case Finding(judgement=Judgement(verdict=Verdict.CALLER)) | FirstByteTimeout() | AnswerStalled():
                raise error
            case _:
                if known or self._repeated:
                    raise error
                self._repeated = True
                return 0.0

    def _until_free(self) -> float:
        seconds = busy_pause(self._busy)
        self._busy += 1
        self._waited += seconds
        if self._waited > self._plan.turn_wait:
            raise busy_error()
        return seconds

    def _until_less_loaded(self, error: ProxyError) -> float:
        if self._overloaded >= len(OVERLOADED_PAUSES):
            raise error
        self._overloaded += 1
        return OVERLOADED_PAUSES[self._overloaded - 1]


def _keeps_its_key(cause: Finding | UpstreamError) -> bool:
    return isinstance(cause, Finding) and cause.trouble is Trouble.BUSY


def _found(plan: Plan) -> Generator[Step, Outcome, Known]:
    """The conversation with the owner that knows it: each is asked in turn."""
    rests: float | None = None
    dials = 0
    owners = list(plan.owners)
    while owners:
        session = Known(plan.unmet, owners[0])
        match (yield LookUp(session)):
            case Knows():
                return session
            case Orphaned() | Failed(cause=Finding(trouble=Trouble.STALE)):
                owners.pop(0)
            case Failed(cause=Finding(judgement=Judgement(verdict=Verdict.CALLER))):
                owners.pop(0)  # what is no id of Coze's is nobody's
            case Resting(seconds=seconds):
                rests = min(seconds, rests if rests is not None else seconds)
                owners.pop(0)
            case Failed(cause=Finding(judgement=Judgement(verdict=Verdict.KEY))):
                pass  # another key of the owner, while there is one
            case Failed(cause=ConnectFailed(), error=error):
                dials += 1
                if dials >= plan.attempts:
                    raise error
            case Failed(error=error):
                raise error
            case Answered() | None as other:
                raise AssertionError(other)
    if rests is not None:
        message = f"The conversation {plan.unmet} may be of a key that rests; ask again."
        raise ProxyError(429, "keys_resting", message, retry_after=max(1.0, rests))
    raise plan.missing
