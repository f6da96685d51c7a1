"""What is said to an upstream of any kind, and who listens to what comes of it: the words of `speak`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from balancer.conversations.base import Binding
from balancer.errors import AnswerBroken, ProxyError
from balancer.model import Choice, Client
from balancer.relay.exchange import Rooms
from balancer.relay.replay import Budget
from balancer.wire.chat_chunks import Usage


class Refused(ProxyError):
    """The upstream's own refusal: `status` is the one it gave. `body`: its words, key text masked.

    `number`, `logid`: its number for the error, and what people name to its makers when they ask; None where it gave none.
    `callers`: it is the caller's message that it did not accept, and nothing else.
    """

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        number: int | None = None,
        logid: str | None = None,
        callers: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, "upstream_error", f"The upstream answered {status}.", retry_after=retry_after)
        self.body = body
        self.number = number
        self.logid = logid
        self.callers = callers


@dataclass(frozen=True, slots=True)
class Speech:
    """What a surface says. `messages`: OpenAI's, all that the upstream is to know, the newest last; the last `new` of them were
    not said to anybody yet.

    `choices`: what the router found for the model. `session`: what keeps the session's calls on one key, unique among the
    client's. `members`: of the request, beside model and messages, as the caller sent them. `user`: who speaks, for upstreams
    that want to know; None: as configured. `binding`: where the conversation is kept, if it is; one of another upstream or model
    does not count. `explicit`: the caller named that conversation itself: it is never replaced by another.
    """

    surface: str
    client: Client
    choices: tuple[Choice, ...]
    messages: Sequence[Mapping[str, Any]]
    session: str
    new: int = 1
    members: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None
    binding: Binding | None = None
    explicit: bool = False


class Told:
    """What has been said in answer. Counted against the process's budget until `release`."""

    __slots__ = ("_budget", "_pieces", "_taken", "_thoughts", "finish_reason", "pieces", "tool_calls", "usage")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0
        self._pieces: list[str] = []
        self._thoughts: list[str] = []
        self.pieces = 0
        """How many deltas came."""
        self.finish_reason = "stop"
        self.usage: Usage | None = None
        """None where the upstream does not count."""
        self.tool_calls: list[dict[str, Any]] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str:
        return "".join(self._thoughts)

    def said(self, text: str) -> None:
        """Raises AnswerBroken where the budget is used up."""
        self._keep(text, self._pieces)
        self.pieces += 1

    def thought(self, text: str) -> None:
        """Raises as `said` does."""
        self._keep(text, self._thoughts)

    def _keep(self, text: str, pieces: list[str]) -> None:
        if not self._budget.take(len(text)):
            raise AnswerBroken("there is no room left to keep it (relay.buffer_budget)")
        self._taken += len(text)
        pieces.append(text)

    def release(self) -> None:
        """The answer is stored, or given up."""
        self._budget.give(self._taken)
        self._taken = 0


class Voice(Protocol):
    """Whoever listens. Slow listening slows the upstream. What these raise ends the call to the upstream."""

    async def accepted(self, binding: Binding | None) -> None:
        """The upstream has taken the call: told once, before all else. `binding`: where the conversation is kept from now on, by
        upstreams that keep it.
        """
        ...

    async def delta(self, text: str) -> None:
        """Never empty."""
        ...

    async def reasoning(self, text: str) -> None:
        """Never empty."""
        ...

    async def end(self, told: Told) -> None:
        """The answer is whole."""
        ...

    async def fail(self, error: ProxyError) -> None:
        """There will be no more of it."""
        ...


@dataclass(frozen=True, slots=True)
class Means:
    """What one configuration gives to speak with. `members`: by upstream, its word for a limit of output tokens."""

    rooms: Rooms
    budget: Budget
    members: Mapping[str, str]
