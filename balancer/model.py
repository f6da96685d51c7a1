"""The words of the program as types: what a surface asks, what an upstream is sent, what its answer means.

Plain data, no behaviour beyond what the data itself decides. Imported by every layer, imports none.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class Client:
    """Who calls. Everything that is kept for a caller is scoped by `name`; `models` are the globs it may use."""

    name: str
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    concurrency: int | None = None
    max_tokens: int | None = None


ANONYMOUS = Client("anonymous")


@dataclass(slots=True)
class Call:
    """What a surface asks of the relay, in the upstream's dialect where surface and upstream share it.

    `path` is the raw request target (path and query, percent-encoding untouched) with everything internal removed;
    `headers` are end-to-end fields only, free of every client credential. `deadline` is on the monotonic clock.
    `repeatable`: may be sent again although it was sent and not answered (design rule 5).
    """

    surface: str
    method: str
    path: str
    headers: list[tuple[str, str]]
    client: Client
    model: str | None = None
    session: str | None = None
    deadline: float | None = None
    repeatable: bool = False
    upstream: str | None = None


@dataclass(frozen=True, slots=True)
class Outbound:
    """One upstream request but for its body. `url` is absolute and already percent-encoded; it never holds a key."""

    method: str
    url: str
    headers: list[tuple[str, str]]
