"""The words of the program as types: what a surface asks, what an upstream is sent, what its answer means.

Plain data, no behaviour beyond what the data itself decides. Imported by every layer, imports none.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Headers = Sequence[tuple[str, str]]
"""Header fields in wire order, duplicates kept, names in the sender's spelling."""


def fingerprint(secret: str) -> str:
    """How a secret appears wherever people or machines can read it: 8 hex digits of its SHA-256."""
    return hashlib.sha256(secret.encode()).hexdigest()[:8]


class Verdict(enum.Enum):
    """Whose doing an answer (or the lack of one) was. It alone decides retry, blame and status."""

    OK = "ok"
    CALLER = "caller"
    """The request itself: pass the answer on, touch nothing."""
    KEY = "key"
    """The key: rest or disable it, ask another."""
    UPSTREAM = "upstream"
    """The upstream: repeat where that is safe."""
    GONE = "gone"
    """The client left: stop, blame nobody."""


class Scope(enum.Enum):
    """What a rest covers."""

    PROJECT_MODEL = "project x model"
    KEY_MODEL = "key x model"
    PROJECT = "project"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Rest:
    """Do not use the key within `scope` for a while.

    Exactly one of three forms: `seconds` given (that long); `until_quota_day` (until the provider's next quota day,
    midnight of America/Los_Angeles); neither (escalating: `first` seconds, doubled with each refusal in a row up to `cap`).
    """

    scope: Scope
    seconds: float | None = None
    until_quota_day: bool = False
    first: float = 5.0
    cap: float = 300.0


@dataclass(frozen=True, slots=True)
class Disable:
    """The key is dead for every model until a probe finds it alive. `alert`: people must act (the key was leaked)."""

    alert: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one answer means. `reason` is short, for people, and holds no secret ("429 per minute", "API_KEY_INVALID").

    `correlates` names the kind of refusal where the same refusal of several keys within seconds would mean that
    the address or the provider is at fault and not the keys ("429", "503"); None where it says nothing of that sort.
    `project` is the quota project (the provider's word for it) that the answer revealed.
    """

    verdict: Verdict
    reason: str = ""
    action: Rest | Disable | None = None
    correlates: str | None = None
    project: str | None = None


OK = Judgement(Verdict.OK)
GONE = Judgement(Verdict.GONE, "client left")


@dataclass(frozen=True, slots=True)
class Key:
    """One credential of an upstream. `project` is the declared quota project; limits are per key, None for no limit.

    rpm: requests in any 60 s; rpd: requests a quota day; tpm: tokens in any 60 s; concurrency: requests in flight.
    """

    secret: str = field(repr=False)
    name: str | None = None
    project: str | None = None
    weight: int = 1
    rpm: int | None = None
    rpd: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fingerprint", fingerprint(self.secret))

    @property
    def stable_owner(self) -> str:
        """The key's owner as the configuration alone tells it: the same after a restart and in every replica."""
        return self.project or self.name or self.fingerprint


@dataclass(frozen=True, slots=True)
class Client:
    """Who calls. Everything that is kept for a caller is scoped by `name`; `models` are the globs it may use."""

    name: str
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    concurrency: int | None = None
    max_tokens: int | None = None


ANONYMOUS = Client("anonymous")


class Effect(enum.Enum):
    """What a call does to things that belong to a key, as far as its request tells."""

    NONE = "none"
    READ = "read"
    """Looks at one: the answer may name others, such as the result file of a batch."""
    LIST = "list"
    CREATE = "create"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Choice:
    """An upstream that a call may go to, and the model's name there."""

    upstream: str
    model: str | None


Edit = tuple[int, int, bytes]
"""A splice of a body: from byte, to byte (exclusive), what stands there instead."""


@dataclass(slots=True)
class Call:
    """What a surface asks of the relay, in the upstream's dialect where surface and upstream share it.

    `path` is the raw request target (path and query, percent-encoding untouched) with everything internal removed, in the openai
    dialect also without `/v1`; `headers` are end-to-end fields only, free of every client credential. `deadline` is on the
    monotonic clock. `dialect` is what it speaks. `choices` are the upstreams that it may go to, best first, where the surface has
    settled that; else the router does. `repeatable`: it changes nothing, so that it may be sent again although it was sent once
    and not answered. `edits` gives the splices of the body for an upstream, in order and without overlap.

    Affinity: `names` are the resources that path and query name, `owner` is the one key owner it may go to where that is
    already settled, `owned` says that it names a resource whose owner is known, `scans` that the body may name resources,
    `uploads` that it begins an upload or a place for uploads, `address` is where the client calls from, `pages` that it shows
    a page of a list, whose next page only the same key can show. `streams`: the body is never kept. `rewrite` (fields, owner)
    exchanges fields of a good answer's head.
    """

    surface: str
    dialect: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    client: Client
    model: str | None = None
    choices: tuple[Choice, ...] = ()
    edits: Callable[[Choice], Sequence[Edit]] | None = None
    session: str | None = None
    deadline: float | None = None
    repeatable: bool = False
    effect: Effect = Effect.NONE
    names: Sequence[str] = ()
    owner: str | None = None
    owned: bool = False
    scans: bool = False
    uploads: bool = False
    streams: bool = False
    address: str = ""
    pages: bool = False
    rewrite: Callable[[list[tuple[str, str]], str], list[tuple[str, str]]] | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None: no limit. Connecting, waiting for the first byte, for the next one, and all together."""

    connect: float | None = 10.0
    first_byte: float | None = 300.0
    idle: float | None = 300.0
    total: float | None = None
    shortest: float = field(init=False, repr=False, compare=False)
    """The shorter of first byte and idle; infinity where neither is limited."""

    def __post_init__(self) -> None:
        shortest = min((each for each in (self.first_byte, self.idle) if each is not None), default=float("inf"))
        object.__setattr__(self, "shortest", shortest)


@dataclass(slots=True)
class Record:
    """What one request came to, for its access line and the metrics. Times are monotonic seconds; sizes are body bytes.

    `upstream_wait` is the time spent waiting for upstreams to answer (lost attempts included), `other_wait` the time spent
    on the client's body, on a key to come back and on pauses between attempts: what is left of the time to first byte is
    our own doing, the overhead.
    """

    started: float
    request_id: str
    method: str = ""
    path: str = ""
    surface: str = ""
    client: str = ""
    model: str | None = None
    upstream: str | None = None
    key: str | None = None
    attempts: int = 0
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    first_byte: float | None = None
    upstream_wait: float = 0.0
    other_wait: float = 0.0
    error: str | None = None
    own_id: bool = False
    """The id is none of the caller's: whoever writes it need not look for secrets in it."""
    close: bool = False
    """The connection is to be closed after this answer (drain)."""
    fields: tuple[tuple[str, str], ...] = ()
    """Header fields of ours that the answer gets, whoever makes it."""


@dataclass(slots=True)
class Outbound:
    """One upstream request but for its body. `url` is absolute and already percent-encoded; it never holds a key."""

    method: str
    url: str
    headers: list[tuple[str, str]]
