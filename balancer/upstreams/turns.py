"""One turn with an upstream that keeps the conversation, step by step: what is to be done next, never how.

`steps()` is a generator: it yields a step, is sent what came of it, and returns when the client has its answer or raises the
ProxyError that is to be it. Whoever runs it does the I/O: leases and waiting, single flights, turns, reading the answer.

    session    the answer says                       next
    any        it has begun                          nothing: what follows is the client's
    any        the caller's fault                    shown
    any        no connection                         again, `attempts` times in all
    known      a key's fault                         again, with another key of the account
    explicit   no such session                       404 (with `renew_explicit`: as derived)
    derived    no such session; its keys are gone    a new session, once
    fresh      a key's fault; sent and then lost     a new session; the latter once
    other      sent and then lost, a refusal         502, 504: the message may stand in the session already
    fresh      a refusal                             502
    unbound    no such session                       the next account; after the last 404 (with `renew_explicit`: a new
                                                     session), or 429 if one of them rests

Changing keys ends by itself: each key that is at fault rests or is disabled, until there is none to lend.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from balancer.errors import AnswerStalled, ConnectFailed, FirstByteTimeout, ProxyError, UpstreamError
from balancer.model import Judgement, Verdict
from balancer.upstreams.conversing import Finding, Trouble


@dataclass(frozen=True, slots=True)
class Known:
    """A conversation of the upstream, by the upstream's own word for it, and the account that it belongs to."""

    id: str
    owner: str


@dataclass(frozen=True, slots=True)
class Make:
    """Make a conversation with any ready key. Of several that want the same derived one, one makes it and all get it."""


@dataclass(frozen=True, slots=True)
class Say:
    """Say the caller's message with a key of the account. `first`: it is the first in a conversation made for this request.

    `asks`: it is only being found out whose the conversation is: keys that rest are not waited for.
    """

    session: Known
    first: bool = False
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """The conversation is no more: whoever looks it up is to find nothing, unless it is another one by now."""

    session: Known


Step = Make | Say | Forget


@dataclass(frozen=True, slots=True)
class Made:
    """There is a conversation. `first`: nothing has been said in it; another request's may have been the first."""

    session: Known
    first: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """The first event of an answer has come: all that follows goes to the client."""


@dataclass(frozen=True, slots=True)
class Resting:
    """The account's keys rest, and were not waited for. `seconds`: until the first is back."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Orphaned:
    """The account has no key that will ever be back."""

    error: ProxyError


@dataclass(frozen=True, slots=True)
class Failed:
    """A step came to nothing. `cause`: what the answer meant, or why there was none; `error`: how the caller would be told."""

    cause: Finding | UpstreamError
    error: ProxyError


Outcome = Made | Answered | Resting | Orphaned | Failed | None
Steps = Generator[Step, Outcome, None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known before the first step.

    `missing`: what the caller is told of a conversation that nobody knows. `session`: the conversation, where it is known.
    `id`, `accounts`: an explicit one that nobody here has met, and whom to ask for it. `renews`: a new one may take its place if
    it is no more; not for an explicit one. `fresh`: it is this request's alone. `attempts`: how often connecting is tried.
    """

    missing: ProxyError
    session: Known | None = None
    id: str = ""
    accounts: Sequence[str] = ()
    renews: bool = False
    fresh: bool = False
    attempts: int = 4


def steps(plan: Plan) -> Steps:
    """The table above."""
    return _asking_around(plan) if plan.accounts else _speaking(plan)


def _speaking(plan: Plan) -> Steps:
    """Say it in the conversation that is known, or in one that is made for it."""
    session, first = plan.session, False
    renewed = repeated = False
    dials = 0
    while True:
        if session is None:
            made = yield Make()
            assert isinstance(made, Made)  # what a creation fails with is raised by whoever makes it
            session, first = made.session, made.first
        match (yield Say(session, first)):
            case Answered():
                return
            case Orphaned(error=error) if not plan.renews:
                raise error
            case Orphaned(error=error) | Failed(cause=Finding(trouble=Trouble.STALE), error=error):
                yield Forget(session)
                if renewed or not plan.renews:
                    raise error if plan.renews else plan.missing
                renewed, session = True, None
            case Failed(cause=Finding(judgement=Judgement(verdict=Verdict.KEY))):
                session = None if plan.fresh else session
            case Failed(cause=ConnectFailed(), error=error):
                dials += 1
                if dials >= plan.attempts:
                    raise error
            case Failed(cause=cause, error=error):
                if repeated or not (plan.fresh and _lost(cause)):
                    raise error
                repeated, session = True, None
            case Made() | Resting() | None as other:
                raise AssertionError(other)


def _asking_around(plan: Plan) -> Steps:
    """Say it with each account in turn: the one that knows the conversation answers."""
    said: list[Outcome] = []
    dials = 0
    accounts = list(plan.accounts)
    while accounts:
        match (yield Say(Known(plan.id, accounts[0]), asks=True)):
            case Answered():
                return
            case Failed(cause=Finding(trouble=Trouble.STALE)) | Orphaned() | Resting() as outcome:
                said.append(outcome)
                accounts.pop(0)
            case Failed(cause=Finding(judgement=Judgement(verdict=Verdict.KEY))):
                pass  # another key of the account, while there is one
            case Failed(cause=ConnectFailed(), error=error):
                dials += 1
                if dials >= plan.attempts:
                    raise error
            case Failed(error=error):
                raise error
            case Made() | None as other:
                raise AssertionError(other)
    _check_found(plan, said)
    yield from _speaking(replace(plan, accounts=()))


def _check_found(plan: Plan, said: Sequence[Outcome]) -> None:
    """Raises ProxyError unless a new conversation may take the place of one that no account has: `said` is how each failed."""
    rests = [each.seconds for each in said if isinstance(each, Resting)]
    if rests:
        message = f"The session {plan.id} may be of an account that rests; ask again."
        raise ProxyError(429, "keys_resting", message, retry_after=max(1.0, min(rests)))
    unusable = [each.error for each in said if isinstance(each, Orphaned)]
    if len(unusable) == len(said):
        raise unusable[0]
    if not plan.renews:
        raise plan.missing


def _lost(cause: Finding | UpstreamError) -> bool:
    """Whether it was sent and then cut or answered 5xx. Behind a refusal, or when time ran out, nothing is sent again."""
    if isinstance(cause, Finding):
        return cause.judgement.verdict is Verdict.UPSTREAM and not cause.refused
    return not isinstance(cause, FirstByteTimeout | AnswerStalled)
