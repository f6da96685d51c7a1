"""What the steps of the relay hand each other: one call's exchange, and what one configuration gives it to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.clock import Clock
from balancer.keypool.pool import KeyPool
from balancer.model import Call, Judgement, Record, Timeouts
from balancer.relay.replay import Body
from balancer.relay.stream import Reply
from balancer.relay.transport import Transport
from balancer.routing.affinity import Affinity, Want
from balancer.routing.router import Router
from balancer.upstreams.base import UpstreamKind
from balancer.wire.naming import Naming

if TYPE_CHECKING:
    from balancer.relay.ownership import Finder


@dataclass(slots=True)
class Upstream:
    """A server we forward to: its kind, its keys, and the way there."""

    name: str
    kind_name: str
    base_url: str
    kind: UpstreamKind
    pool: KeyPool
    transport: Transport
    timeouts: Timeouts


@dataclass(frozen=True, slots=True)
class Rooms:
    """What one configuration gives the relay: ways to go, and how patient and persistent to be.

    `attempts`: connections tried for one call; `max_wait`: seconds that a call waits for a key to come back; `mask` blots
    key text out of error bodies; `namings` are by dialect. A reload makes a new one; calls in flight keep theirs.
    """

    router: Router
    affinity: Affinity
    finder: Finder
    namings: Mapping[str, Naming]
    upstreams: Mapping[str, Upstream]
    attempts: int
    max_wait: float
    mask: Callable[[bytes], bytes]
    clock: Clock


@dataclass(slots=True)
class Exchange:
    """One call on its way: what was asked, where it goes, and how the answer gets back."""

    call: Call
    body: Body
    reply: Reply
    record: Record
    rooms: Rooms
    upstream: Upstream
    want: Want = field(default_factory=Want)
    refused_by: set[str] = field(default_factory=set)
    """Fingerprints of keys to avoid while another is ready."""

    now: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.rooms.clock.monotonic

    @property
    def naming(self) -> Naming:
        """How the call's dialect names resources."""
        return self.rooms.namings[self.call.dialect]


@dataclass(slots=True)
class Refusal:
    """An error answer, read whole. `text` is its body behind any content coding; None where the coding is not known."""

    judgement: Judgement
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    text: bytes | None
