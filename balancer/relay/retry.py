"""What of a call may still be repeated after a failure, and where.

| failure | repeated there | pause | then at the next upstream |
|---|---|---|---|
| the key's | while there are keys | none | yes |
| no connection: nothing was sent | `rooms.attempts` in all | 0.1 s, doubled | yes |
| sent, then lost or answered with the upstream's fault | once, if repeatable | 0.25 s | if repeatable |
| sent, then answered with nonsense | no | | if repeatable |
| sent and never answered | no | | no: the time is gone |
| the caller's | no | | no |

Nothing is repeated whose body is not at hand. Repeatable are calls that change nothing (`call.repeatable`).
The next upstream is the next of `exchange.ways`, where the call has more than one; its count begins anew, without a pause. After
the first byte to the client there is no failure that comes here.
"""

from __future__ import annotations

from balancer.errors import ConnectFailed, FirstByteTimeout, UpstreamError
from balancer.model import Verdict
from balancer.relay.exchange import Exchange, Refusal

REPEAT_PAUSE = 0.25
"""Seconds before a call is repeated after an upstream's fault."""
CONNECT_PAUSE = 0.1
"""Seconds before connecting is tried again, doubled each time."""

Failure = Refusal | UpstreamError


def pause_after(failure: Failure, exchange: Exchange, fingerprint: str) -> float | None:
    """Seconds until the next attempt; None if this failure is to be the call's answer. `fingerprint`: the key's.

    Where it is over with this upstream and another is left, the way there is given up.
    """
    if not exchange.body.repeatable:
        return None
    way = exchange.way
    pause = _pause(failure, exchange)
    leaves = pause is None and len(exchange.ways) > 1 and _may_leave(failure, exchange)
    if leaves:
        pause = 0.0
    deadline = exchange.call.deadline
    if pause is None or (deadline is not None and exchange.now() + pause >= deadline):
        return None
    if leaves:
        exchange.ways.remove(way)
    way.refused_by |= {fingerprint}
    if shows(failure) and isinstance(failure, Refusal) and failure.judgement.verdict is Verdict.KEY:
        way.spurned_by |= {fingerprint}
    return pause


def shows(failure: Failure) -> bool:
    """Whether it may be shown to the client. A key's refusal may not, unless it cost the key nothing."""
    if not isinstance(failure, Refusal) or failure.judgement.verdict is not Verdict.KEY:
        return True
    return failure.judgement.action is None


def _pause(failure: Failure, exchange: Exchange) -> float | None:
    """The same for the upstream that the call is on."""
    way = exchange.way
    match failure:
        case Refusal(judgement=judgement):
            match judgement.verdict:
                case Verdict.KEY:
                    return 0.0
                case Verdict.UPSTREAM:
                    return _repeat(exchange)
                case Verdict.OK | Verdict.CALLER | Verdict.GONE:
                    return None
        case ConnectFailed():
            way.dials += 1
            return CONNECT_PAUSE * 2 ** (way.dials - 1) if way.dials < exchange.rooms.attempts else None
        case _ if failure.repeatable:
            return _repeat(exchange)
        case _:
            return None


def _repeat(exchange: Exchange) -> float | None:
    if exchange.way.repeated or not exchange.call.repeatable:
        return None
    exchange.way.repeated = True
    return REPEAT_PAUSE


def _may_leave(failure: Failure, exchange: Exchange) -> bool:
    """Whether another upstream may be asked what this one failed at."""
    match failure:
        case Refusal(judgement=judgement):
            return judgement.verdict is Verdict.UPSTREAM and exchange.call.repeatable
        case ConnectFailed():
            return True
        case FirstByteTimeout():
            return False
        case _:
            return exchange.call.repeatable
