"""What of a call may still be repeated after a failure.

| failure | repeated | how often | pause |
|---|---|---|---|
| the key's | any call whose body is at hand | as long as there are keys | none |
| no connection: nothing was sent | any call whose body is at hand | `rooms.attempts` in all | 0.1 s, doubled |
| sent, then lost or answered with the upstream's fault | calls that change nothing (`call.repeatable`) | once | 0.25 s |
| sent and never answered, or answered with nonsense | none | | |
| the caller's | none | | |

After the first byte to the client there is no failure that comes here.
"""

from __future__ import annotations

from balancer.errors import ConnectFailed, UpstreamError
from balancer.model import Verdict
from balancer.relay.exchange import Exchange, Refusal

REPEAT_PAUSE = 0.25
"""Seconds before a call is repeated after an upstream's fault."""
CONNECT_PAUSE = 0.1
"""Seconds before connecting is tried again, doubled each time."""

Failure = Refusal | UpstreamError


class Tries:
    """Counts one call's attempts by kind of failure."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._dials = 0
        self._repeated = False

    def pause_after(self, failure: Failure, fingerprint: str) -> float | None:
        """Seconds until the next attempt; None if this failure is to be the call's answer. `fingerprint`: the key's."""
        exchange = self._exchange
        pause = self._pause(failure)
        if pause is None or not exchange.body.repeatable:
            return None
        deadline = exchange.call.deadline
        if deadline is not None and exchange.now() + pause >= deadline:
            return None
        exchange.refused_by.add(fingerprint)
        return pause

    def _pause(self, failure: Failure) -> float | None:
        match failure:
            case Refusal(judgement=judgement):
                match judgement.verdict:
                    case Verdict.KEY:
                        return 0.0
                    case Verdict.UPSTREAM:
                        return self._repeat()
                    case Verdict.OK | Verdict.CALLER | Verdict.GONE:
                        return None
            case ConnectFailed():
                self._dials += 1
                return CONNECT_PAUSE * 2 ** (self._dials - 1) if self._dials < self._exchange.rooms.attempts else None
            case _ if failure.repeatable:
                return self._repeat()
            case _:
                return None

    def _repeat(self) -> float | None:
        if self._repeated or not self._exchange.call.repeatable:
            return None
        self._repeated = True
        return REPEAT_PAUSE
