"""Names of things that belong to a key: where they stand in paths, queries and JSON, and what an answer says of new ones.

A *name* is `collection/id`, with sub-resources behind it. What is owned is the *root*: `files/F`, `fileSearchStores/S` for
everything below a store, `models/M/operations/O` for an operation of a model (a model itself is nobody's). Sources: the
resource tables of ai.google.dev/api, and what the google-genai SDKs send.

A name counts as *named* where a whole JSON string, path segment or query value is a name or its URI. A full URI of a file
inside longer text only *attracts*: people paste them into prompts. Bodies are scanned as bytes and never parsed; a prompt of
a megabyte that is full of paths costs well under a millisecond, because only a quote followed by a known collection, or the
provider's host, makes the scan look closer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl, unquote

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

_ID = r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}"
_NAME = re.compile(rf"(?:models/[\w.-]{{1,128}}/operations|[A-Za-z][A-Za-z_]{{0,63}})/{_ID}(?:/[^\s\"\\]{{1,512}})?")
_URI = re.compile(r"https?://[^/\s\"\\]{1,255}/(?:(?:upload|download)/)?(?:v1\w*/)?([^\s\"\\?#]{1,700})")
_TEXT_END = re.compile(rb"/(?:(?:upload|download)/)?(?:v1\w*/)?(files/[A-Za-z0-9][A-Za-z0-9_-]{0,127})")
_ESCAPES = re.compile(rb"\\(?:/|u00[2-7])")
_ESCAPED = re.compile(rb"\\u00([2-7][0-9A-Fa-f])")
_VERSION = re.compile(r"v1\w*")
_MOST_COLLECTIONS = 64
_LIMIT = 64
"""Names looked at in one request."""


def root_of(text: str) -> str | None:
    """The owned root of a whole name or URI (`files/F`, `https://host/v1beta/files/F:download?alt=media`); None for neither."""
    if "://" in text:
        uri = _URI.match(text)
        if uri is None:
            return None
        text = uri[1]
    text = _without_method(text)
    if _NAME.fullmatch(text) is None:
        return None
    segments = text.split("/")
    if segments[0] == "models":
        return "/".join(segments[:4]) if len(segments) >= 4 and segments[2] == "operations" else None
    return None if segments[0] in PUBLIC else "/".join(segments[:2])


def _without_method(text: str) -> str:
    head, slash, last = text.rpartition("/")
    return head + slash + last.partition(":")[0]


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


def in_query(query: str) -> list[str]:
    """The roots that whole query values name."""
    if "%2F" not in query and "/" not in query and "%2f" not in query:
        return []
    return _distinct(root for _, value in parse_qsl(query) if (root := root_of(value)) is not None)


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a body mentions, in order and without repetition."""

    named: list[str] = field(default_factory=list)
    attracting: list[str] = field(default_factory=list)


NOTHING = Mentions()


class Scanner:
    """Finds resources in JSON bodies. `hosts`: those whose URIs count; `learn()` adds collections met in answers."""

    def __init__(self, hosts: Iterable[str] = (GOOGLE_HOST,)) -> None:
        self._hosts = tuple(f"://{host}/".encode() for host in dict.fromkeys((GOOGLE_HOST, *hosts)))
        self._collections = [*COLLECTIONS, "models"]
        self._whole = self._pattern()

    def _pattern(self) -> re.Pattern[bytes]:
        """A whole string value: no escaped quote before it, no colon behind it, and a known collection at its start."""
        known = "|".join(re.escape(collection) for collection in self._collections)
        return re.compile(rf'"(?<!\\")((?:{known})/[^"\\]{{1,1000}})"(?!\s*:)'.encode())

    def learn(self, collection: str) -> None:
        """From now on look for this collection's names too; bounded, because answers decide on it."""
        if collection not in self._collections and len(self._collections) < _MOST_COLLECTIONS:
            self._collections.append(collection)
            self._whole = self._pattern()

    def scan(self, windows: Iterable[bytes]) -> Mentions:
        """What a body names and what it is attracted to. `windows`: the body in pieces that overlap by a name's length."""
        named: list[str] = []
        attracting: list[str] = []
        for window in windows:
            if b"/" in window:
                self._look(window, named, attracting)
        return Mentions(_distinct(named), _distinct(attracting, last=True)) if named or attracting else NOTHING

    def _look(self, body: bytes, named: list[str], attracting: list[str]) -> None:
        if b"\\" in body and _ESCAPES.search(body) is not None:
            body = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), body.replace(b"\\/", b"/"))
        for found in islice(self._whole.finditer(body), _LIMIT):
            root = root_of(found[1].decode("utf-8", "replace"))
            if root is not None:
                named.append(root)
        for host in self._hosts:
            for position in _positions(body, host):
                whole = _string_around(body, position)
                root = root_of(whole) if whole is not None else None
                if root is not None:
                    named.append(root)
                elif (text := _TEXT_END.match(body, position + len(host) - 1)) is not None:
                    attracting.append(text[1].decode())


def _positions(body: bytes, needle: bytes) -> Iterator[int]:
    position, found = body.find(needle), 0
    while position >= 0 and found < _LIMIT:
        yield position
        found += 1
        position = body.find(needle, position + len(needle))


def _is_member_name(body: bytes, end: int) -> bool:
    return body[end + 1 : end + 32].lstrip()[:1] == b":"


def _string_around(body: bytes, position: int) -> str | None:
    """The whole JSON string that an URI's `://` at `position` stands in, if the URI begins it."""
    start = body.rfind(b'"', max(0, position - 6), position)
    if start < 0 or body[start + 1 : position] not in (b"https", b"http"):
        return None
    end = body.find(b'"', position, position + 1024)
    if end < 0 or _is_member_name(body, end):
        return None
    return body[start + 1 : end].decode("utf-8", "replace")


def _distinct(names: Iterable[str], last: bool = False) -> list[str]:
    ordered = list(names)
    if last:
        ordered.reverse()
    unique = list(dict.fromkeys(ordered))[:_LIMIT]
    if last:
        unique.reverse()
    return unique


@dataclass(frozen=True, slots=True)
class Born:
    """A resource that an answer tells of. `expires`: POSIX seconds, None where the answer does not say."""

    root: str
    expires: float | None = None


def born(body: bytes, limit: int = 1000) -> list[Born]:
    """The resources in a JSON answer of a call that creates, looks up or lists: every whole name in it, with its lifetime.

    Anything else than JSON tells of nothing.
    """
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    found: dict[str, float | None] = {}
    stack: list[Any] = [tree]
    while stack and len(found) < limit:
        node = stack.pop()
        if isinstance(node, dict):
            _learn_from(node, found)
            stack.extend(value for value in node.values() if isinstance(value, dict | list))
        elif isinstance(node, list):
            stack.extend(value for value in node if isinstance(value, dict | list))
            for value in node:
                if isinstance(value, str) and (root := root_of(value)) is not None and _known(root):
                    found.setdefault(root, None)
    return [Born(root, expires) for root, expires in found.items()]


def _learn_from(node: dict[str, Any], found: dict[str, float | None]) -> None:
    """`name` may be of any collection; another member counts where its collection is known, since texts look like names too."""
    for member, value in node.items():
        if not isinstance(value, str) or "/" not in value or len(value) > 1024:
            continue
        root = root_of(value)
        if root is None or not (member == "name" or _known(root)):
            continue
        own = member == "name" and "/" not in value.removeprefix(root)
        expires = _expiry(node) if own else None
        if expires is not None or root not in found:
            found[root] = expires


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
