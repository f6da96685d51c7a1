"""Names of things that belong to a key: where they stand in paths, queries and JSON, and what an answer says of new ones.

A *name* is `collection/id`, with sub-resources behind it. What is owned is the *root*: `files/F`, `fileSearchStores/S` for
everything below a store, `models/M/operations/O` for an operation of a model (a model itself is nobody's). Sources: the
resource tables of ai.google.dev/api, and what the google-genai SDKs send.

A name counts as *named* where a whole JSON string, path segment or query value is a name or its URI. A full URI of a file
inside longer text only *attracts*: people paste them into prompts. Bodies are scanned as bytes and never parsed; a prompt of
a megabyte that is full of paths costs well under a millisecond, because only a quote followed by a known collection, or the
provider's host, makes the scan look closer. Every name counts, however many come before it: what the scan overlooked would
get past the check of who may use it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import orjson

GOOGLE_HOST = "generativelanguage.googleapis.com"
COLLECTIONS = (
    "files",
    "cachedContents",
    "batches",
    "fileSearchStores",
    "tunedModels",
    "operations",
    "auth_tokens",
    "corpora",
    "generatedFiles",
)
"""Collections whose names are recognised in bodies before anything of them has been learned."""
PUBLIC = frozenset({"models", "openai"})
"""Collections that every key sees."""

FLAT = frozenset({"files", "cachedContents", "batches", "auth_tokens"})
"""Collections whose resources have nothing below them: `files/src/main.py` is a path and no name."""

_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}"
_METHOD = r"(?::[A-Za-z]+)?(?:[?#]\S*)?"
_NAME = re.compile(
    rf"((?:models/[\w.-]{{1,128}}/operations|[A-Za-z][A-Za-z0-9_]{{0,63}})/{_ID}(?:/[^\s\"\\?#:]{{1,512}})?){_METHOD}"
)
_URI = re.compile(r"https?://[^/\s\"\\]{1,255}/(?:(?:upload|download)/)?(?:v1\w*/)?(\S{1,2000})", re.IGNORECASE)
_ESCAPES = re.compile(rb"\\(?:/|u00)")
_ESCAPED = re.compile(
    rb"\\u00(2[dDeEfF]|3[0-9aA]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA])"  # letters, digits and - . / : _
)
_MODEL_SEGMENT = re.compile(r"(/models/)[^/:?]+")
_VERSION = re.compile(r"v1\w*")
_MOST_COLLECTIONS = 64
MOST_NAMED = 4096
"""Different texts at which one request may make the scan look closer."""
_MOST_ATTRACTING = 64
LONGEST = 1100
"""Bytes beyond which nothing is taken for a name or its URI."""


def root_of(text: str) -> str | None:
    """The owned root of a whole name or URI (`files/F`, `https://host/v1beta/files/F:download?alt=media`); None for neither."""
    if "://" in text:
        uri = _URI.fullmatch(text)
        if uri is None:
            return None
        text = unquote(uri[1])
    name = _NAME.fullmatch(text)
    if name is None:
        return None
    segments = name[1].split("/")
    if segments[0] == "models":
        return "/".join(segments[:4]) if len(segments) >= 4 and segments[2] == "operations" else None
    if segments[0] in PUBLIC or (len(segments) > 2 and segments[0] in FLAT):
        return None
    return "/".join(segments[:2])


def in_path(path: str) -> str | None:
    """The root that a request path names: `/v1beta/files/F:download` → `files/F`; None where it names none.

    `path` is raw and without query, as `/[upload/|download/][version/]collection/…`.
    """
    segments = [unquote(segment) for segment in path.split("/")[1:]]
    if segments and segments[0] in ("upload", "download"):
        segments = segments[1:]
    if segments and _VERSION.fullmatch(segments[0]):
        segments = segments[1:]
    if len(segments) < 2 or any("/" in segment for segment in segments[:2]):
        return None
    collection, item = segments[0], segments[1].partition(":")[0]
    if not item:
        return None
    if collection == "models":
        tail = segments[3].partition(":")[0] if len(segments) > 3 and segments[2] == "operations" else ""
        return f"models/{item}/operations/{tail}" if tail else None
    return None if collection in PUBLIC else f"{collection}/{item}"


def with_model(path: str, model: str) -> str:
    """The same path with another model's name in it: for aliases."""
    return _MODEL_SEGMENT.sub(lambda found: found[1] + quote(model, safe=""), path, count=1)


def in_query(query: str) -> list[str]:
    """The roots that whole query values name."""
    if "%2F" not in query and "/" not in query and "%2f" not in query:
        return []
    return list(dict.fromkeys(root for _, value in parse_qsl(query) if (root := root_of(value)) is not None))


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a body mentions, in order and without repetition. `crowded`: it names more than MOST_NAMED resources."""

    named: list[str] = field(default_factory=list)
    attracting: list[str] = field(default_factory=list)
    crowded: bool = False


NOTHING = Mentions()


class Scanner:
    """Finds resources in JSON bodies. `hosts`: those whose URIs count; `learn()` adds collections met in answers."""

    def __init__(self, hosts: Iterable[str] = (GOOGLE_HOST,)) -> None:
        known = dict.fromkeys((GOOGLE_HOST, *hosts))
        self._hosts = "|".join(re.escape(host) for host in known)
        self._marks = [f"://{host}".encode() for host in known]
        self._collections = [*COLLECTIONS, "models"]
        self._whole = self._pattern()
        self._text = re.compile(
            rf"://(?:{self._hosts})(?::\d+)?/(?:(?:upload|download)/)?(?:v1\w*/)?(files/{_ID})(?=[^\w-])".encode()
        )

    def _pattern(self) -> re.Pattern[bytes]:
        """A whole string value: no escaped quote before it, no colon behind it, and a known collection or host at its start."""
        known = "|".join(re.escape(collection) for collection in self._collections)
        name = rf"(?:{known})/[^\"\\\s?#]{{1,500}}"
        uri = rf"(?i:https?://(?:{self._hosts}))(?::\d+)?/[^\"\\\s?#]{{1,500}}"
        tail = r"(?:[?#](?:[^\"\\\s]|\\[^\"\s]){0,200})?"
        return re.compile(rf'"(?<!\\")((?:{name}|{uri}){tail})"(?!\s*:)'.encode())

    def learn(self, collection: str) -> None:
        """From now on look for this collection's names too; bounded, because answers decide on it."""
        if collection not in self._collections and len(self._collections) < _MOST_COLLECTIONS:
            self._collections.append(collection)
            self._whole = self._pattern()

    def scan(self, windows: Iterable[bytes]) -> Mentions:
        """What a body names and what it is attracted to. `windows`: the body in pieces that overlap by LONGEST bytes."""
        named: dict[bytes, str | None] = {}
        attracting: dict[bytes, None] = {}
        first = True
        for window in windows:
            if b"/" in window or b"\\u00" in window:
                self._look(window, first, named, attracting)
                if len(named) > MOST_NAMED:
                    break
            first = False
        if not (named or attracting):
            return NOTHING
        roots = list(dict.fromkeys(root for root in named.values() if root is not None))
        last = [text.decode() for text in list(attracting)[-_MOST_ATTRACTING:]]
        return Mentions(roots, [root for root in last if root not in roots], crowded=len(named) > MOST_NAMED)

    def _look(self, window: bytes, first: bool, named: dict[bytes, str | None], attracting: dict[bytes, None]) -> None:
        if _ESCAPES.search(window) is not None:
            window = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), window.replace(b"\\/", b"/"))
        for found in self._whole.finditer(window):
            # What begins a later window was seen in the one before, together with what stands in front of it.
            if found[1] not in named and (first or found.start() > 0):
                named[found[1]] = root_of(found[1].decode("utf-8", "replace"))
                if len(named) > MOST_NAMED:
                    return
        if any(host in window for host in self._marks):
            for found in deque(self._text.finditer(window), _MOST_ATTRACTING):
                attracting.pop(found[1], None)
                attracting[found[1]] = None


@dataclass(frozen=True, slots=True)
class Born:
    """A resource that an answer tells of. `expires`: POSIX seconds, None where the answer does not say.

    `own`: the answer is about this resource or lists it, and does not merely mention it.
    """

    root: str
    expires: float | None = None
    own: bool = False


FREE = frozenset({
    "displayName", "display_name", "description", "title", "text", "args", "arguments", "key", "value", "stringValue",
    "string_value", "inlinedResponses", "inlined_responses",
})  # fmt: skip
"""Members that hold what people and models wrote: a name in there is an echo and tells of nothing."""


def born(body: bytes, limit: int = 10_000) -> list[Born]:
    """The resources in a JSON answer of a call that creates, looks up or lists: every whole name in it, with its lifetime.

    Anything else than JSON tells of nothing.
    """
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    found: dict[str, Born] = {}
    _own(tree, found)
    stack: list[Any] = [tree]
    while stack and len(found) < limit:
        node = stack.pop()
        if isinstance(node, dict):
            _learn_from(node, found)
            stack.extend(value for member, value in node.items() if member not in FREE and _holds(value))
        elif isinstance(node, list):
            stack.extend(value for value in node if _holds(value))
            for value in node:
                if isinstance(value, str) and (root := root_of(value)) is not None and _known(root):
                    found.setdefault(root, Born(root))
    return list(found.values())


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)


def items_of(tree: Any) -> Iterator[tuple[str, list[Any]]]:
    """The lists of a list answer, by member."""
    if isinstance(tree, dict):
        yield from ((member, value) for member, value in tree.items() if isinstance(value, list))


def _own(tree: Any, found: dict[str, Born]) -> None:
    """What the answer is about: itself, the file that an upload made, the items of a list."""
    subjects = [tree, tree.get("file")] if isinstance(tree, dict) else []
    subjects += [item for member, items in items_of(tree) if member not in FREE for item in items]
    for node in subjects:
        name = node.get("name") if isinstance(node, dict) else None
        if isinstance(name, str) and (root := root_of(name)) is not None:
            whole = name == root
            found[root] = Born(root, _expiry(node) if whole and isinstance(node, dict) else None, own=True)


def _learn_from(node: dict[str, Any], found: dict[str, Born]) -> None:
    """What a node mentions counts where its collection is known, since texts look like names too."""
    for member, value in node.items():
        if not isinstance(value, str) or "/" not in value or len(value) > LONGEST or member in FREE:
            continue
        root = root_of(value)
        if root is None or not (root in found or _known(root)):
            continue
        expires = _expiry(node) if member == "name" and value == root else None
        if root not in found or (expires is not None and found[root].expires is None):
            found[root] = Born(root, expires, own=root in found and found[root].own)


def _known(root: str) -> bool:
    return root.partition("/")[0] in COLLECTIONS or root.startswith("models/")


def _expiry(node: dict[str, Any]) -> float | None:
    for member in ("expirationTime", "expireTime", "expiration_time", "expire_time"):
        value = node.get(member)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value)).timestamp()
            except ValueError:
                return None
    return None
