"""Request targets of the Gemini API, recognised by shape and not from a list: a collection that does not exist yet works too.

    [/s/{session}] [/gemini] [/upload|/download] /v1… /collection… [:method]      (the first two in either order)

`/v1beta/models/M:generateContent`, `/upload/v1beta/files`, `/v1alpha/auth_tokens`. Under plain `/v1/…` and without a version
OpenAI's clients call as well: there a request is Gemini's if it says so (`x-goog-api-key`, `x-goog-api-client`, `?key=`, or
a `:method` in the path).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote

from balancer.model import Effect
from balancer.wire import often, upload_url
from balancer.wire.headers import strip_query
from balancer.wire.resources import PUBLIC, in_path, in_query

_PREFIX = re.compile(r"(?:/s/([^/]+)(/+gemini)?|(/gemini)(?:/+s/([^/]+))?)(?=/)")
_VERSIONED = re.compile(r"/(?:(?:upload|download)/)?(v1\w*)/[A-Za-z][\w.-]*(?:[:/].*)?")
_BARE = re.compile(r"/(?:upload/)?(?:models|tunedModels|files|cachedContents|batches|fileSearchStores)(?:[:/].*)?")
_OPENAI = re.compile(r"/v1\w*/openai(?:/.*)?")
_MODEL = re.compile(r"(/(?:tunedM|m)odels/)([^/:]+)")
_METHOD = re.compile(r"[^/]:([A-Za-z]+)$")
_FORBIDDEN = re.compile(
    r"(?:^|/|%2f)(?:\.|%2e){1,2}(?:/|%2f|$)"  # a way up
    r"|//|/:|%3a"  # nothing where a name belongs, or a `:` in disguise: the model could be read in two ways
    r"|\\|%5c|%00|#|[\x00-\x20\x7f]",
    re.IGNORECASE,
)

_REPEATABLE = frozenset(
    {"generateContent", "streamGenerateContent", "countTokens", "embedContent", "batchEmbedContents"}
)
"""Methods that cost tokens at most when they are sent twice."""
_MAKES_NOTHING = _REPEATABLE | {
    "predict",
    "generateAnswer",
    "generateText",
    "embedText",
    "countTextTokens",
    "download",
    "cancel",
}
"""Methods whose answer tells of no resource."""


@dataclass(frozen=True, slots=True)
class Errand:
    """What a request with one HTTP method is about, as far as its target tells: see the methods of `Target` of these names.

    `path` is the target without what is ours in its query, and `removed` is that.
    """

    path: str
    removed: dict[str, str]
    effect: Effect
    repeatable: bool
    pages: bool
    gathers: bool
    names: tuple[str, ...]
    """The resources that path and query name."""


@dataclass(frozen=True)
class Target:
    """A request target: `path` and `query` are raw, without what stood before them."""

    path: str
    query: str
    version: str
    """`v1beta`; empty where the path has none."""
    prefix: str
    """What stood before the path: `/gemini`, `/s/{session}`."""
    session: str | None
    says_gemini: bool
    """`/gemini` was one of them."""
    _errands: dict[str, Errand] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def raw(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @cached_property
    def is_upload(self) -> bool:
        return self.path.startswith("/upload/")

    @cached_property
    def is_chunk(self) -> bool:
        """Whether it is the address of an upload under way, as upstreams and we write it."""
        of_one = "upload_id=" in self.query or f"{upload_url.MEMBER}=" in self.query
        return of_one and "/upload/" in f"{self.prefix}{self.path}"

    @cached_property
    def method(self) -> str | None:
        """The `:method` of the path."""
        found = _METHOD.search(self.path)
        return found[1] if found else None

    @cached_property
    def model(self) -> str | None:
        found = _MODEL.search(self.path)
        if found is None:
            return None
        name = unquote(found[2])
        return name if found[1] == "/models/" else f"tunedModels/{name}"

    @cached_property
    def ours(self) -> bool:
        """Whether the target alone says that it is Gemini's, and no OpenAI client's."""
        if self.says_gemini or self.method is not None:
            return True
        return bool(self.version) and not (self.version == "v1" and self.path.startswith("/v1/"))

    @cached_property
    def named(self) -> str | None:
        """The resource that the path names."""
        return in_path(self.path)

    def pages(self, method: str) -> bool:
        """Whether the answer is a page of a list, be it of what everybody sees."""
        return self.effect(method) is Effect.LIST or (method == "GET" and self.path.endswith("/models"))

    def gathers(self, method: str) -> bool:
        """Whether it makes a place that files will be put into, so that they should be on one key."""
        return method == "POST" and self._collection == "fileSearchStores" and self.named is None

    def repeatable(self, method: str) -> bool:
        return method in ("GET", "HEAD") or self.method in _REPEATABLE

    def errand(self, method: str) -> Errand:
        """All that is decided by target and HTTP method, decided once: targets come again and again."""
        known = self._errands.get(method)
        if known is None:
            known = self._errands[method] = self._errand(method)
        return known

    def _errand(self, method: str) -> Errand:
        path, removed = strip_query(self.raw, upload_url.INTERNAL)
        names = [self.named] if self.named is not None else []
        if "%2" in path or "/" in self.query:
            names += [root for root in in_query(path.partition("?")[2]) if root not in names]
        effect, repeatable = self.effect(method), self.repeatable(method)
        return Errand(path, removed, effect, repeatable, self.pages(method), self.gathers(method), tuple(names))

    def effect(self, method: str) -> Effect:
        """What a request with this HTTP method does to resources."""
        named = self.named
        match method:
            case "GET":
                if self.method == "download" or "alt=media" in self.query or self.path.startswith("/download/"):
                    return Effect.NONE
                if named is not None:
                    return Effect.READ
                return Effect.NONE if self._collection in PUBLIC else Effect.LIST
            case "DELETE":
                whole = named is not None and self.path.endswith(f"/{named}")
                return Effect.DELETE if whole else Effect.NONE
            case "POST" | "PUT" | "PATCH":
                return Effect.NONE if self.method in _MAKES_NOTHING else Effect.CREATE
            case _:
                return Effect.NONE

    @cached_property
    def _collection(self) -> str:
        segments = self.path.split("/")
        return segments[2 if self.version else 1].partition(":")[0]


@often.of_target
def read_target(raw: str) -> Target | None:
    """A raw request target of a shape that the Gemini API has, else None."""
    if not raw.startswith("/"):  # absolute form, RFC 9112 section 3.2.2: the host is ours all the same
        scheme, mark, rest = raw.partition("://")
        if not mark or scheme.lower() not in ("http", "https"):
            return None
        raw = "/" + rest.partition("/")[2]
    path, _, query = raw.partition("?")
    if "#" in query:
        return None
    path = "/" + path.lstrip("/")
    prefix, session = "", None
    if (found := _PREFIX.match(path)) is not None:
        prefix, session = found[0], found[1] or found[4]
        path = "/" + path[found.end() :].lstrip("/")
    if _FORBIDDEN.search(path) or _OPENAI.fullmatch(path):
        return None
    versioned = _VERSIONED.fullmatch(path)
    if versioned is None and _BARE.fullmatch(path) is None:
        return None
    says_gemini = found is not None and (found[2] or found[3]) is not None
    session = None if session is None else unquote(session)
    return Target(path, query, versioned[1] if versioned else "", prefix, session, says_gemini)


def session_of(header: str | None, query: str | None, path: str | None) -> tuple[str, str] | None:
    """The session id of a request and where it came from; None if none is given that counts.

    First that is there: header, query, path. Trimmed, case-folded; 1 to 256 printable characters, else it is ignored.
    """
    for source, given in (("header", header), ("query", query), ("path", path)):
        if given is None:
            continue
        session = given.strip().casefold()
        if 1 <= len(session) <= 256 and session.isprintable():
            return session, source
        return None
    return None
