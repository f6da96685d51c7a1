"""What the steps of the relay hand each other: one call's exchange, and what one configuration gives it to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from balancer.clock import Clock
from balancer.keypool.pool import KeyPool
from balancer.keypool.reach import Reach
from balancer.model import Call, Choice, Edit, Judgement, Record, Timeouts
from balancer.relay.replay import Body
from balancer.relay.stream import Reply
from balancer.relay.transport import Transport
from balancer.routing.affinity import ANYWHERE, Affinity, Want
from balancer.routing.backend_sessions import BackendSessions
from balancer.routing.bot_conversations import BotConversations
from balancer.routing.limits import Limits
from balancer.routing.router import Router
from balancer.upstreams.base import PassingKind
from balancer.upstreams.conversing import ConversingKind
from balancer.wire.naming import Naming
from balancer.wire.resources import with_model

if TYPE_CHECKING:
    from balancer.relay.ownership import Finder


@dataclass(slots=True)
class Upstream:
    """A server we forward to: its kind, its keys, the way there, and whether that leads anywhere.

    `kind` is one of two sorts, and of `passing` and `conversing` the one that it is.
    """

    name: str
    kind_name: str
    base_url: str
    kind: PassingKind | ConversingKind
    pool: KeyPool
    reach: Reach
    transport: Transport
    timeouts: Timeouts

    passing: PassingKind | None = field(init=False, default=None)
    conversing: ConversingKind | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if isinstance(self.kind, ConversingKind):  # asked here alone: telling protocols apart takes long
            self.conversing = self.kind
        else:
            self.passing = self.kind


@dataclass(frozen=True, slots=True)
class Rooms:
    """What one configuration gives the relay: ways to go, and how patient and persistent to be.

    `attempts`: connections tried for one call; `max_wait`: seconds that a call waits for a key to come back; `keepalive`: seconds
    of silence of an event stream in the openai dialect before a comment; `mask` blots key text out of error bodies; `namings` are
    by dialect. A reload makes a new one; calls in flight keep theirs.
    """

    router: Router
    affinity: Affinity
    finder: Finder
    limits: Limits
    backend_sessions: BackendSessions
    bot_conversations: BotConversations
    namings: Mapping[str, Naming]
    upstreams: Mapping[str, Upstream]
    attempts: int
    max_wait: float
    keepalive: float | None
    mask: Callable[[bytes], bytes]
    clock: Clock


@dataclass(slots=True, eq=False)
class Way:
    """One upstream that a call may go to, and what has come of it so far."""

    upstream: Upstream
    choice: Choice
    want: Want = ANYWHERE
    tried: bool = False
    """A request was sent there, or was to be."""
    dials: int = 0
    """Attempts that found no connection."""
    repeated: bool = False
    """The one repetition of what was sent is used up."""
    refused_by: frozenset[str] = frozenset()
    """Fingerprints of keys to avoid while another is ready."""
    spurned_by: frozenset[str] = frozenset()
    """Fingerprints of keys that do not rest and yet refuse this call: none is asked twice."""


class Exchange:
    """One call: what was asked, where it may go and goes now, and how the answer gets back.

    `ways` are the upstreams that are left to it, best first; `take` says which one it is on.
    """

    __slots__ = (
        "_asked", "body", "call", "edits", "now", "record", "reply", "rooms", "upstream", "want", "way", "ways",
    )  # fmt: skip

    way: Way
    upstream: Upstream

    def __init__(self, call: Call, body: Body, reply: Reply, record: Record, rooms: Rooms, ways: list[Way]) -> None:
        self.call = call
        self.body = body
        self.reply = reply
        self.record = record
        self.rooms = rooms
        self.ways = ways
        self.now = rooms.clock.monotonic
        self.edits: Sequence[Edit] = ()
        """Splices of the body for this upstream."""
        self._asked = call.model, call.path
        """The model and the path of the call as they came."""
        self._turn_to(ways[0])
        self.want = ways[0].want

    def take(self, way: Way) -> None:
        """Go this way, with what is known of it now."""
        if way is not self.way:
            self._turn_to(way)
        self.want = way.want

    def _turn_to(self, way: Way) -> None:
        """The call names the model as that upstream knows it, and its body is spliced for it."""
        call, record, model = self.call, self.record, way.choice.model
        self.way, self.upstream = way, way.upstream
        if model is not None and model != call.model:
            asked, path = self._asked
            call.model = model
            if call.dialect == "gemini":  # no other has the model in its paths
                call.path = path if model == asked else with_model(path, model)
        if call.edits is not None:
            self.edits = call.edits(way.choice)
        record.model, record.upstream = call.model, way.upstream.name

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
