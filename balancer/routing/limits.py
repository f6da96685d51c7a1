"""What a client may ask in a minute, and at a time: admission of the calls that would reach an upstream.

Counted by the client's name in the state that processes share, for `rpm` and `concurrency` alone: `max_tokens` is the surfaces'
to apply, since it stands in their dialects' bodies. A client without these two limits is never looked up.
"""

from __future__ import annotations

from balancer.errors import ProxyError
from balancer.model import Client
from balancer.state.base import Counters, Limit, Reached

BACK_SOON = 1.0
"""Seconds after which a client over its concurrency may ask again: when another of its calls ends is not known."""


def limited(client: Client) -> bool:
    """Whether `admit` and `release` have anything to do for this client."""
    return client.rpm is not None or client.concurrency is not None


class Limits:
    """The rules above, over the state that counts."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    async def admit(self, client: Client) -> None:
        """Count a call that is about to be made. Raises ProxyError 429, and then it was not counted."""
        reached = await self._counters.enter(client.name, client.rpm, client.concurrency)
        if reached is not None:
            raise _refused(client, reached)

    async def release(self, client: Client) -> None:
        """The end of a call that was admitted, with the client as it was then."""
        await self._counters.leave(client.name, client.concurrency)


def _refused(client: Client, reached: Reached) -> ProxyError:
    seconds = BACK_SOON if reached.seconds is None else reached.seconds
    if reached.limit is Limit.RPM:
        most, code = client.rpm or 0, "rate_limit_exceeded"
        message = f"This client may make {most} requests in a minute."
    else:
        most, code = client.concurrency or 0, "concurrency_exceeded"
        message = f"This client may have {most} requests running at a time."
    return ProxyError(429, code, message, retry_after=seconds, limit=(most, 0, seconds))
