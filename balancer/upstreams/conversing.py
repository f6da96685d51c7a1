"""What kinds of upstream share that keep the conversation on their side: requests of several steps, and what an answer means
for the conversation beside what it means for the key.

Which step comes next is decided in turns.py; `relay/converse.py` carries the steps out. A conversation goes by the upstream's
own word for it, as text.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from balancer.errors import ProxyError, UpstreamError
from balancer.model import Headers, Judgement, Key, Outbound
from balancer.upstreams.base import UpstreamKind
from balancer.wire.achuan import Created, Reading, Refused
from balancer.wire.chat_messages import Message


class Trouble(enum.Enum):
    """What is the matter with a conversation, though the key is fine."""

    STALE = "stale"
    """The upstream does not know it, or no longer."""
    BUSY = "busy"
    """Another request is at work in it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an answer means. `trouble` is only ever there beside a verdict of OK.

    `status` and `text` are for whoever must tell the caller: the number that the upstream gave (an HTTP status, or the code in
    its refusal) and its words. The words may hold secrets: mask them first. `refused`: it said no in so many words, in its own
    protocol, and was not merely broken.
    """

    judgement: Judgement
    trouble: Trouble | None = None
    status: int = 0
    text: str = field(default="", repr=False)
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """One step: a request whose body is ours."""

    outbound: Outbound
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keeping:
    """How the conversations of one upstream are kept, as its configuration says. `session_ttl`: seconds from the last use.

    `renew_explicit`: one that the client named by its number is replaced too when it is no more. `adopt_unknown`: one that nobody
    here has met is looked for. `transcript`: a new one begins with what was said before.
    """

    session_ttl: float = 86400.0
    renew_explicit: bool = False
    adopt_unknown: bool = True
    transcript: bool = False


AS_USUAL = Keeping()


@runtime_checkable
class ConversingKind(UpstreamKind, Protocol):
    """Speaks to one sort of upstream that keeps the conversation. One object an upstream, shared by all calls."""

    keeping: Keeping

    def find(self, status: int, headers: Headers, body: bytes) -> Finding:
        """What an answer means that was read whole: one of error, one without events, or the answer to a probe."""
        ...

    def probe(self, key: Key) -> Question:
        """A free question that a live key gets an answer to: `find` of that is OK."""
        ...

    def told(self, cause: Finding | UpstreamError, text: str) -> ProxyError:
        """How the caller learns of a failure. `text`: the finding's words, masked, or what the error says."""
        ...

    def missing(self, conversation: str) -> ProxyError:
        """How the caller learns that nobody knows the conversation that it named."""
        ...

    def seconds_left(self, key: Key, wall: float) -> float | None:
        """Seconds until the key ends by itself, negative once it has; None if it does not tell. `wall`: POSIX seconds."""
        ...


@runtime_checkable
class SessionKind(ConversingKind, Protocol):
    """One whose conversations are made before anything is said in them."""

    def create(self, model: str, key: Key, members: Mapping[str, Any] | None = None) -> Question:
        """Asks for a new conversation. `members`: what a caller wants beside the model."""
        ...

    def created(self, status: int, headers: Headers, body: bytes) -> Created | Finding:
        """What the answer to `create` says."""
        ...

    def complete(self, conversation: str, message: Message, key: Key) -> Question:
        """Says the next thing in a conversation."""
        ...

    def reading(self) -> Reading:
        """Reads the answer to that as it comes."""
        ...

    def refused(self, refused: Refused, status: int, headers: Headers) -> Finding:
        """What a refusal means that the reading came upon."""
        ...
