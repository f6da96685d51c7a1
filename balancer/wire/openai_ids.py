"""Resource ids of OpenAI's API: where they stand in paths, bodies and answers (https://platform.openai.com/docs/api-reference).

An id is its own root: it names the resource wherever it is used. Of a path the *root* resource decides which key gets the
request; what is made below it (messages, items, steps, versions) lives and dies with it and has no owner of its own, but for
runs and for the files of a vector store, whose ids are used elsewhere too. Google's compatible endpoints have ids that repeat
the collection: `files/abc`, so that a path may read `/files/files/abc`.

Bodies are scanned as bytes and never parsed. A candidate is any whole string that is shaped like an id: behind a prefix of
OpenAI's anything, behind another only what has a digit or a capital (`get_weather` has none), a UUID, and longer strings of
letters and digits. Only what is bound here counts, so that some other word among the candidates does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson

from balancer.model import Effect
from balancer.wire.resources import MOST_NAMED, NOTHING, Born, Mentions

LONGEST_ID = 128

LISTS = frozenset({
    "files", "batches", "vector_stores", "assistants", "containers", "evals", "fine_tuning/jobs", "videos", "skills",
    "chat/completions",
})  # fmt: skip
"""Collections that have a list of their own."""

_COLLECTIONS = LISTS | {
    "uploads", "responses", "conversations", "threads", "fine_tuning/checkpoints", "realtime/calls", "videos/characters",
}  # fmt: skip
_ACTIONS = {
    "responses": frozenset({"input_tokens", "compact"}),
    "threads": frozenset({"runs"}),
    "videos": frozenset({"edits", "extensions"}),
}
"""Segments that stand where an id would, and are none."""
_CREATES = frozenset({
    "files", "uploads", "batches", "responses", "conversations", "vector_stores", "assistants", "threads", "threads/runs",
    "containers", "videos", "videos/edits", "videos/extensions", "videos/characters", "evals", "fine_tuning/jobs", "skills",
    "chat/completions",
})  # fmt: skip
_CREATES_BELOW = frozenset({
    ("threads", "runs"), ("evals", "runs"), ("videos", "remix"), ("uploads", "complete"),
})  # fmt: skip
"""Collection and last segment of a POST below a resource that makes another one with an id of its own."""
_READS_BELOW = frozenset({
    ("batches", "cancel"), ("fine_tuning/jobs", "cancel"), ("fine_tuning/jobs", "pause"), ("fine_tuning/jobs", "resume"),
    ("responses", "cancel"),
})  # fmt: skip
"""The same where the answer is the resource itself."""
_NESTED = frozenset({("vector_stores", "files"), ("threads", "runs"), ("evals", "runs")})
"""Collections below a resource whose ids are names too."""
_REPEATABLE = frozenset({
    "chat/completions", "completions", "embeddings", "moderations", "messages", "messages/count_tokens",
    "responses/input_tokens",
})  # fmt: skip
"""POST routes that change nothing that anybody will ask for again."""

_UNSCANNED = frozenset({"completions", "embeddings", "moderations"})
"""POST routes whose bodies name nothing but are full of short texts."""
_TWO_WORDS = frozenset({
    ("fine_tuning", "jobs"), ("fine_tuning", "checkpoints"), ("chat", "completions"), ("realtime", "calls"),
    ("videos", "characters"),
})  # fmt: skip

_PREFIX = re.compile(r"/(?:v1beta/openai/|openai/v1/|v1/)?")
_KNOWN = (
    r"(?:file|batch|resp|conv|vs|asst|thread|run|cntr|video|char|eval|evalrun|ftjob|skill|upload|chatcmpl)[-_]"
    r"|(?:files|batches)/"
)
_ID = re.compile(
    (
        rf"(?:{_KNOWN})[A-Za-z0-9_-]{{1,128}}"
        r"|(?!(?:call|toolu|fc|msg|rs|gpt|claude|gemini)[-_])"
        r"[A-Za-z][A-Za-z0-9]{0,31}[-_/](?=[a-z_-]*[A-Z0-9])[A-Za-z0-9_-]{6,128}"
        r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[A-Za-z0-9]{16,64}"
    ).encode()
)
_WORD = re.compile(rb'"(?<!\\")([A-Za-z0-9][A-Za-z0-9_/-]{4,159}+)"(?![ \t\r\n]*+:)')
_BEGINNING = re.compile(
    rb"""[ \t\r\n]*+\{[ \t\r\n]*+
    (?:"(?!id")\w{1,64}"[ \t\r\n]*+:[ \t\r\n]*+(?:"[^"\\]*+"|[^"{}\[\],:]++)[ \t\r\n]*+,[ \t\r\n]*+)*+
    "id"[ \t\r\n]*+:[ \t\r\n]*+"([^"\\]*+)\"""",
    re.VERBOSE,
)
"""A JSON object up to its `id`, where only words and numbers stand in front of that."""
_ESCAPED = re.compile(rb"\\(?:/|u00(2[dDfF]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aA]))")


@dataclass(frozen=True, slots=True)
class Place:
    """What a method and a path are about. `ids`: the resources named, the root first. `listed`: of which collection it is
    the list. `if_stored`: a creation only if the request says `store: true`. `root_path`: of the root, for a GET that finds
    its owner, with the version prefix that the path had. `scans`: its body may name resources.
    """

    ids: tuple[str, ...] = ()
    effect: Effect = Effect.NONE
    repeatable: bool = False
    listed: str | None = None
    if_stored: bool = False
    root_path: str | None = None
    scans: bool = False


def place(method: str, path: str) -> Place:
    """`path` is raw and without query, with or without the version before it: "/v1/files/file-abc/content"."""
    prefix, segments = _split(path)
    repeatable = method in ("GET", "HEAD")
    collection, raw, tail = _parts(segments)
    if raw is None:
        route = "/".join(segments)
        if method == "GET" and collection in LISTS and route == collection:
            return Place(effect=Effect.LIST, repeatable=True, listed=collection)
        if method != "POST":
            return Place(repeatable=repeatable)
        effect = Effect.CREATE if route in _CREATES else Effect.NONE
        return Place(
            effect=effect,
            repeatable=route in _REPEATABLE,
            if_stored=route == "chat/completions",
            scans=route not in _UNSCANNED,
        )
    root = unquote(raw)
    nested = len(tail) > 1 and (collection, tail[0]) in _NESTED
    ids = (root, unquote(tail[1])) if nested else (root,)
    if collection == "fine_tuning/checkpoints":  # whose permissions are of a model
        return Place((root,), repeatable=repeatable, root_path=f"{prefix}models/{raw}")
    effect = _effect_below(method, collection, tail)
    return Place(ids, effect, repeatable, root_path=f"{prefix}{collection}/{raw}", scans=method == "POST")


def _split(path: str) -> tuple[str, list[str]]:
    found = _PREFIX.match(path)
    prefix = found[0] if found is not None else ""
    return prefix, path[len(prefix) :].rstrip("/").split("/")


def _parts(segments: list[str]) -> tuple[str, str | None, list[str]]:
    """Collection, raw id and what stands behind it; no id where the path names no resource."""
    collection, rest = segments[0], segments[1:]
    if rest and (collection, rest[0]) in _TWO_WORDS:
        collection, rest = f"{collection}/{rest[0]}", rest[1:]
    if collection not in _COLLECTIONS or not rest or not rest[0] or rest[0] in _ACTIONS.get(collection, ()):
        return collection, None, rest
    if rest[0] == collection and len(rest) > 1 and rest[1]:
        return collection, f"{rest[0]}/{rest[1]}", rest[2:]
    return collection, rest[0], rest[1:]


def _effect_below(method: str, collection: str, tail: list[str]) -> Effect:
    below = (collection, tail[-1]) if tail else None
    match method:
        case "GET":
            return Effect.READ if below is None else Effect.NONE
        case "DELETE":
            return Effect.DELETE if below is None else Effect.NONE
        case "POST" if below in _CREATES_BELOW and len(tail) == 1:
            return Effect.CREATE
        case "POST" if below is None or (below in _READS_BELOW and len(tail) == 1):
            return Effect.READ
        case _:
            return Effect.NONE


def in_windows(windows: Iterable[bytes]) -> Mentions:
    """Whole string values of a JSON body that are shaped like ids. `windows`: the body in pieces that overlap by 1100 bytes."""
    named: dict[bytes, None] = {}
    first = True
    for window in windows:
        text = window
        if b"\\" in window and _ESCAPED.search(window) is not None:
            text = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]) if found[1] else b"/", window)
        for found in _WORD.finditer(text):
            # What begins a later window was seen in the one before, together with what stands in front of it.
            if (first or found.start() > 0) and _ID.fullmatch(found[1]) is not None:
                named[found[1]] = None
                if len(named) > MOST_NAMED:
                    return Mentions([each.decode() for each in named], crowded=True)
        first = False
    return Mentions([each.decode() for each in named]) if named else NOTHING


class OpenaiNaming:
    """OpenAI's ids as the relay needs them (`wire.naming.Naming`)."""

    sliding = True
    searched = False
    streams = True

    def __init__(self, ttl: float = 30 * 86400.0) -> None:
        """`ttl`: seconds for which a binding is kept (`openai.resource_ttl`)."""
        self.ttl = ttl

    def mentions(self, windows: Iterable[bytes]) -> Mentions:
        return in_windows(windows)

    def subject(self, path: str) -> str | None:
        return next(iter(place("GET", path).ids), None)

    def question(self, path: str, root: str) -> str:
        """Of a name below the path's root too, the root's own path: they have one owner. A query in `path` is left out."""
        path = path.partition("?")[0]
        return place("GET", path).root_path or path

    def born(self, body: bytes) -> list[Born]:
        return born(body)

    def items_of(self, tree: Any) -> Iterator[tuple[str, list[Any]]]:
        return items_of(tree)

    def root_of(self, item: Any) -> str | None:
        return id_of(item)


def born(body: bytes) -> list[Born]:
    """The resources that a JSON answer tells of, or the data of a stream's first event; of anything else none.

    The answer's own id and those of a list's items are `own`; what they mention are the files that a job has written, the
    conversation of a response, the thread of a run, the container that a tool was given. Of the beginning of an answer: its id.
    """
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        begun = _BEGINNING.match(body)
        tree = {"id": begun[1].decode("utf-8", "replace")} if begun is not None else None
    if not isinstance(tree, dict):
        return []
    found: dict[str, Born] = {}
    about = tree.get("response") if str(tree.get("type", "")).startswith("response.") else tree
    items = [item for _, listed in items_of(tree) for item in listed]
    for node in (about, *items):
        _learn_from(node, found)
    return list(found.values())


def _learn_from(node: Any, found: dict[str, Born]) -> None:
    root = id_of(node)
    if root is None:
        return
    lifetime = node.get("expires_at") if node.get("object") in ("file", "upload") else None
    expires = float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else None
    found[root] = Born(root, expires, own=True)
    if (file := id_of(node.get("file"))) is not None:  # of a completed upload
        found[file] = Born(file, own=True)
    for mentioned in _mentioned(node):
        if _is_id(mentioned):
            found.setdefault(mentioned, Born(mentioned))


def _mentioned(node: dict[str, Any]) -> Iterator[Any]:
    yield from (node.get(member) for member in ("output_file_id", "error_file_id", "thread_id"))
    yield (node.get("conversation") or {}).get("id") if isinstance(node.get("conversation"), dict | None) else None
    for member in ("result_files", "output"):
        listed = node.get(member)
        for each in listed if isinstance(listed, list) else ():
            yield each.get("container_id") if isinstance(each, dict) else each


def items_of(tree: Any) -> Iterator[tuple[str, list[Any]]]:
    """The items of a list answer, by member."""
    if isinstance(tree, dict) and tree.get("object", "list") == "list" and isinstance(tree.get("data"), list):
        yield "data", tree["data"]


def id_of(item: Any) -> str | None:
    """A resource's own id."""
    root = item.get("id") if isinstance(item, dict) else None
    return root if _is_id(root) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 2 * LONGEST_ID and value.isprintable()
