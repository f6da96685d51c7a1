"""What an upstream kind is: the pure steps between a call and one upstream request, and what the answer means.

A kind does no I/O and knows neither aiohttp nor asyncio. A new kind is one file beside this one and one line in
the table that `app.py` makes kinds from. There are two sorts: those that speak a dialect of clients, so that calls pass to them
(`PassingKind`), and those that keep the conversation themselves (`conversing.ConversingKind`).
"""

from __future__ import annotations

import math
from typing import Protocol

from balancer.model import ANONYMOUS, Call, Headers, Judgement, Key, Outbound
from balancer.wire.headers import first, parse_date, parse_retry_after

ERROR_BODY_LIMIT = 1 << 20
"""Bytes of an error answer's body that are read before it is judged. No provider's API errors are larger."""


class UpstreamKind(Protocol):
    """Speaks to one sort of upstream. One object an upstream, made from its configuration, shared by all calls.

    What calls need that are passed on as they are: of every kind the raw ones.
    """

    name: str
    """The upstream's name in the configuration."""

    def prepare(self, call: Call, key: Key) -> Outbound:
        """The request for this key. Called anew for each attempt, from the untouched call."""
        ...

    def judge(self, call: Call, status: int, headers: Headers, body: bytes) -> Judgement:
        """What an answer means for the key. `body` is b"" for a 2xx, else the decoded body up to ERROR_BODY_LIMIT."""
        ...


class PassingKind(UpstreamKind, Protocol):
    """One that speaks a dialect of clients."""

    def probe(self) -> Call:
        """A free call that only a live key answers with 2xx."""
        ...

    def catalogue(self) -> Call | None:
        """The call for the upstream's list of models, in the openai dialect; None where it has no such list."""
        ...


def own_call(surface: str, dialect: str, path: str) -> Call:
    """A GET of our own, on no client's behalf."""
    return Call(surface, dialect, "GET", path, headers=[], client=ANONYMOUS, repeatable=True)


def model_list() -> Call:
    """The catalogue of a kind whose servers speak OpenAI's dialect."""
    return own_call("catalogue", "openai", "/models")


def retry_after(headers: Headers) -> float | None:
    """Seconds that an answer asks to wait. A date is measured from its own Date, so that no clock of ours comes into it."""
    sent = parse_date(first(headers, "date") or "")
    return parse_retry_after(first(headers, "retry-after"), math.nan if sent is None else sent)
