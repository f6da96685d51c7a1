"""Request targets of the OpenAI API, and which of them there are.

    [/s/{session}] [/openai | /v1beta/openai] [/v1] /path

`/openai/v1/…` and `/v1beta/openai/…` are the same routes as `/v1/…`, and so are the few paths of ROOTED without any version:
base URLs are written with and without `/v1`. A doubled slash, as a base URL with a trailing one makes it, counts as one.
`/proxy/{upstream}/…` stands beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from balancer.wire import often

ANY = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ROOTED = ("chat/completions", "completions", "embeddings", "responses", "models")
"""Paths that are ours without a version too."""

_PREFIX = re.compile(r"(?:/s/([^/]+))?(/openai|/v1\w*/openai)?(?:/s/([^/]+))?(?=/|$)")
_RAW = re.compile(r"(?:/s/([^/]+))?/proxy/([^/]+)(/.*)?")
_FORBIDDEN = re.compile(
    r"(?:^|/|%2f)(?:\.|%2e){1,2}(?:/|%2f|$)"  # a way up
    r"|//|/%2f|%2f/|%2f%2f|\\|%5c|%00|#|[\x00-\x20\x7f]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Target:
    """A request target of the OpenAI API. `path` is raw and what stands behind `/v1`; `query` is raw.

    `decided`: its prefix says whose it is, whatever the credentials.
    """

    path: str
    query: str
    session: str | None
    decided: bool


@dataclass(frozen=True, slots=True)
class RawTarget:
    """A request target below `/proxy/`. `path` and `query` are raw; `path` may lead out of the upstream if `bad`."""

    upstream: str
    path: str
    query: str
    session: str | None
    bad: bool


@dataclass(frozen=True, slots=True)
class Route:
    """One of the API's routes: its methods, and what is to be known of it.

    `model`: it wants a model, and takes the bound one; `binds`: an explicit model becomes the bound one; `limit`: the member
    that bounds its output ("": the upstream's own word for it). `looks`: its body is JSON, of which a few members are looked at;
    `forms`: it may be a form as well, and a field of that names the model. `translated`: upstreams that keep the conversation
    serve it. `api`: one word for what it is.
    `upstreams`: those that add it to the API; empty for a route of the API itself.
    """

    methods: tuple[str, ...]
    model: bool = False
    binds: bool = False
    limit: str | None = None
    looks: bool = True
    forms: bool = False
    translated: bool = False
    api: str = ""
    upstreams: tuple[str, ...] = ()


_CHAT = Route(("POST",), model=True, binds=True, limit="", translated=True, api="chat")
_TABLE: tuple[tuple[re.Pattern[str], Route], ...] = tuple(
    (re.compile(pattern), route)
    for pattern, route in (
        (r"/chat/completions", Route(("GET", "HEAD", "POST"), api="stored")),
        (r"/chat/completions/[^/]+", Route(("GET", "HEAD", "POST", "DELETE"))),
        (r"/chat/completions/[^/]+/messages", Route(("GET", "HEAD"))),
        (r"/completions", Route(("POST",), model=True, binds=True, limit="")),
        (r"/embeddings", Route(("POST",), model=True)),
        (r"/moderations|/images/generations|/audio/speech", Route(("POST",))),
        (r"/images/(?:edits|variations)|/audio/(?:transcriptions|translations)", Route(("POST",), forms=True)),
        (r"/responses", Route(("POST",), model=True, binds=True, limit="max_output_tokens")),
        (r"/(?:responses|conversations)(?:/.*)?", Route(ANY)),
        (r"/uploads(?:/[^/]+/(?:complete|cancel))?", Route(ANY)),
        (r"/(?:files|uploads)(?:/.*)?", Route(ANY, looks=False)),
        (r"/videos(?:/.*)?", Route(ANY, forms=True)),
        (r"/(?:batches|fine_tuning|vector_stores|assistants|threads|containers|evals|skills)(?:/.*)?", Route(ANY)),
        (r"/realtime", Route(("GET",), api="realtime")),
        (r"/realtime/.+", Route(ANY, looks=False)),
        (r"/models(?:/.+)?", Route(("GET", "HEAD"), api="models")),
    )
)  # fmt: skip


def route_of(path: str, method: str) -> Route | None:
    """The route of a path; None if the API has none of this shape."""
    if path == "/chat/completions" and method == "POST":
        return _CHAT
    return next((route for pattern, route in _TABLE if pattern.fullmatch(path)), None)


@often.of_target
def read_target(raw: str) -> Target | RawTarget | None:
    """What a raw request target asks for; None if it is of no shape of ours."""
    if not raw.startswith("/"):  # absolute form, RFC 9112 section 3.2.2: the host is ours all the same
        scheme, mark, rest = raw.partition("://")
        if not mark or scheme.lower() not in ("http", "https"):
            return None
        raw = "/" + rest.partition("/")[2]
    path, _, query = raw.partition("?")
    if (found := _RAW.fullmatch(path)) is not None:
        return _raw_target(found, query)
    path = re.sub("/{2,}", "/", path)
    prefix = _PREFIX.match(path)
    assert prefix is not None
    rest = path[prefix.end() :]
    versioned = rest.startswith("/v1/")
    rest = rest[3:] if versioned else rest
    if len(rest) > 1 and rest.endswith("/"):
        rest = rest[:-1]
    if _FORBIDDEN.search(rest) or not (versioned or prefix[2] or rest[1:].startswith(ROOTED)):
        return None
    session = prefix[1] or prefix[3]
    return Target(rest, query, None if session is None else unquote(session), prefix[2] is not None)


def _raw_target(found: re.Match[str], query: str) -> RawTarget:
    path = found[3] or ""
    session = None if found[1] is None else unquote(found[1])
    return RawTarget(unquote(found[2]), path, query, session, _FORBIDDEN.search(path) is not None or "#" in query)
