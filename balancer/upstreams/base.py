"""What an upstream kind is: the pure steps between a call and one upstream request, and what the answer means.

A kind does no I/O and knows neither aiohttp nor asyncio. A new kind is one file beside this one and one line in
the table that `app.py` makes kinds from.
"""

from __future__ import annotations

from typing import Protocol

from balancer.model import Call, Headers, Judgement, Key, Outbound

ERROR_BODY_LIMIT = 1 << 20
"""Bytes of an error answer's body that are read before it is judged. No provider's API errors are larger."""


class UpstreamKind(Protocol):
    """Speaks to one sort of upstream. One object an upstream, made from its configuration, shared by all calls."""

    name: str
    """The upstream's name in the configuration."""

    def prepare(self, call: Call, key: Key) -> Outbound:
        """The request for this key. Called anew for each attempt, from the untouched call."""
        ...

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """What an answer means for the key. `body` is b"" for a 2xx, else the decoded body up to ERROR_BODY_LIMIT."""
        ...

    def probe(self) -> Call:
        """A free call that only a live key answers with 2xx."""
        ...
