"""Requests of OpenAI's dialect, looked at and spliced as bytes (https://platform.openai.com/docs/api-reference).

`read()` finds the few top-level members that a proxy must know, `edits()` says which bytes of the body to exchange for one
upstream; every other byte travels as it came. A body is checked to be JSON by parsing it once, which is the quickest way
there is, and the objects are dropped at once; where its members stand is found in the bytes (`wire.json_places`):

    the whole body, up to LARGEST_PARSED      parsed, and every check made
    a larger one                              outlined: brackets must match, the rest is the upstream's to check
    the first part of one                     outlined; what stands behind the cut is not known, and not removed

A looked-at member that stands twice, or whose name is written with escapes, would be read differently by different servers.
Such a body is written anew from what was parsed, without the session members; the last one of a name counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from balancer.errors import ProxyError
from balancer.model import Edit
from balancer.wire.json_object import load_object
from balancer.wire.json_places import BLANKS, Malformed, Outline, blank_end, members, value_end

TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Members that limit the length of an answer."""
LOOKED_AT = (
    *TOKEN_LIMITS, "model", "stream", "user", "session_id", "metadata", "store", "messages", "n",
)  # fmt: skip
LARGEST_PARSED = 1 << 21
"""Bytes beyond which a body is not made into objects."""

_NAMES = "|".join(LOOKED_AT)
_MEMBER = re.compile(rf'"(?<!\\")({_NAMES})"[ \t\r\n]*+:[ \t\r\n]*+'.encode())
_ESCAPED = re.compile(rb'"(?<!\\")((?:[A-Za-z_]|\\u00[4-7][0-9A-Fa-f])++)"[ \t\r\n]*+:[ \t\r\n]*+')
_LETTER = re.compile(rb"\\u00([4-7][0-9A-Fa-f])")
_MOST_PLACES = 20_000
_NO_OBJECT = "请求体必须是 JSON 对象"


@dataclass(frozen=True, slots=True)
class Place:
    """A top-level member's bytes: from its name's quote, its value's first byte, to behind its value."""

    start: int
    value: int
    end: int


@dataclass(slots=True)
class Asked:
    """What a request's body says, and where. Values are as JSON gives them, None where absent (or behind the cut).

    `text`: the body, or as it was written anew. `size`: bytes of the body as it came. `metadata`: of an outlined body only its
    `sessionId`. `inner`: where the members of metadata are, if it holds a `sessionId`.
    """

    text: bytes
    size: int
    complete: bool
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    inner: list[tuple[bytes, int, int, int]] = field(default_factory=list)
    rewritten: bool = False

    @property
    def model(self) -> str | None:
        """The model's name; None where the member is absent, null or blank."""
        model = self.values.get("model")
        return model if isinstance(model, str) and model.strip() else None

    @property
    def model_wrong(self) -> bool:
        """Whether `model` is neither a string nor null."""
        return not isinstance(self.values.get("model"), str | None)

    @property
    def model_hidden(self) -> bool:
        """Whether `model` may stand behind the cut: then nobody can say where the request goes (413)."""
        return not self.complete and "model" not in self.values

    @property
    def no_messages(self) -> bool:
        """Whether `messages` is missing, no list, or empty. Behind the cut it counts as given."""
        messages = self.values.get("messages")
        given = isinstance(messages, list) and bool(messages)
        return not given and (self.complete or "messages" in self.values)

    @property
    def stream(self) -> bool:
        return self.values.get("stream") is True

    @property
    def store(self) -> bool:
        return self.values.get("store") is True

    @property
    def session_id(self) -> Any:
        return self.values.get("session_id")

    @property
    def metadata(self) -> Any:
        return self.values.get("metadata")

    @property
    def user(self) -> Any:
        return self.values.get("user")


def no_object() -> ProxyError:
    return ProxyError(400, "invalid_json", _NO_OBJECT)


def no_messages() -> ProxyError:
    return ProxyError(400, "missing_required_parameter", "messages 必须是非空数组", param="messages")


def read(body: bytes, complete: bool = True) -> Asked:
    """Look at a request's body, or at its first part.

    Raises ProxyError 400 invalid_json (no JSON object, not UTF-8, nested deeper than DEEPEST), 413 request_too_large
    (members that stand twice, or too many to tell apart, in a body that is not here whole).
    """
    if not complete or len(body) > LARGEST_PARSED:
        return _outlined(body, complete)
    tree, exact = _load(body)
    asked = Asked(body, len(body), True, {name: tree[name] for name in LOOKED_AT if name in tree})
    return asked if _locate(asked) else _written_anew(tree, exact, len(body))


def _load(body: bytes) -> tuple[dict[str, Any], bool]:
    try:
        return load_object(body)
    except Malformed:
        raise no_object() from None


def _candidates(text: bytes) -> Iterator[tuple[str, int, int, bool]]:
    """Looked-at names with a colon behind them, at any depth: name, its place, its value's place, whether it has escapes."""
    for found in _MEMBER.finditer(text):
        yield found[1].decode(), found.start(), found.end(), False
    if _escaped(text):
        for found in _ESCAPED.finditer(text):
            name = _LETTER.sub(lambda letter: bytes([int(letter[1], 16)]), found[1]).decode()
            if name in LOOKED_AT and b"\\" in found[1]:
                yield name, found.start(), found.end(), True


def _locate(asked: Asked) -> bool:
    """Find the places of a parsed body's members; False if the body must be written anew."""
    text = asked.text
    once: dict[str, tuple[int, int]] = {}
    count = 0
    for found in _MEMBER.finditer(text):
        once[found[1].decode()] = found.span()
        count += 1
        if count > _MOST_PLACES:
            return False
    if (count > len(once) or _escaped(text)) and not _only_top(asked, once):
        return False
    for name in asked.values:
        if name in _SPLICED or (name == "metadata" and _has_session(asked.metadata)):
            start, value = once[name]
            end = value_end(text, value)
            if end is None:
                return False
            asked.places[name] = Place(start, value, end)
    return "metadata" not in asked.places or _locate_inner(asked)


def _escaped(text: bytes) -> bool:
    """Whether a name may be written with escapes of its letters."""
    return b"\\" in text and b"\\u00" in text and _LETTER.search(text) is not None


def _only_top(asked: Asked, once: dict[str, tuple[int, int]]) -> bool:
    """Keep the top-level one of several places of a name; False unless each member stands plainly at exactly one such."""
    found = list(islice(_candidates(asked.text), _MOST_PLACES + 1))
    if len(found) > _MOST_PLACES:
        return False
    places = sorted((start, value, name, escaped) for name, start, value, escaped in found if name in asked.values)
    outline = Outline(asked.text)
    top: set[str] = set()
    for start, value, name, escaped in places:
        if outline.depth(start) == 1:
            if escaped or name in top:
                return False
            top.add(name)
            once[name] = (start, value)
    return True


_SPLICED = frozenset({*TOKEN_LIMITS, "model", "session_id"})


def _has_session(metadata: Any) -> bool:
    return isinstance(metadata, dict) and "sessionId" in metadata


def _locate_inner(asked: Asked) -> bool:
    """Find the members of metadata; False if its `sessionId` does not stand there plainly and once."""
    inner = members(asked.text, asked.places["metadata"].value)
    if inner is None or any(b"\\u00" in name for name, *_ in inner):
        return False
    asked.inner = inner
    return sum(name == b"sessionId" for name, *_ in inner) == 1


def _written_anew(tree: dict[str, Any], exact: bool, size: int) -> Asked:
    """The body written by orjson, without session members; the values are still those of the body as it came."""
    if not exact:
        raise no_object()
    asked = Asked(b"", size, True, {name: tree[name] for name in LOOKED_AT if name in tree}, rewritten=True)
    pieces = []
    place = 1
    try:
        for name, value in tree.items():
            kept = value
            if name == "metadata" and _has_session(value):
                kept = {member: each for member, each in value.items() if member != "sessionId"}
            if name == "session_id" or (name == "metadata" and kept is not value and not kept):
                continue
            label, text = orjson.dumps(name) + b":", orjson.dumps(kept)
            if name in _SPLICED:
                asked.places[name] = Place(place, place + len(label), place + len(label) + len(text))
            pieces.append(label + text)
            place += len(label) + len(text) + 1
    except orjson.JSONEncodeError:  # nested deeper than orjson writes
        raise no_object() from None
    asked.text = b"{" + b",".join(pieces) + b"}"
    return asked


def _outlined(body: bytes, complete: bool) -> Asked:
    """Look at a body without parsing it."""
    asked = Asked(body, len(body), complete)
    if _next(body, 0) != b"{":
        raise no_object()
    found = sorted(islice(_candidates(body), _MOST_PLACES + 1), key=lambda each: each[1])
    plain = len(found) <= _MOST_PLACES
    outline = Outline(body)
    try:
        for name, start, value, escaped in found if plain else ():
            if outline.depth(start) == 1 and not _note(asked, name, start, value, escaped):
                plain = False
                break
        if not plain:
            return _only_whole(body, complete)
        if complete and (outline.depth(len(body)) or not body.rstrip(BLANKS).endswith(b"}")):
            raise no_object()
    except Malformed:
        raise no_object() from None
    return asked


def _only_whole(body: bytes, complete: bool) -> Asked:
    """A body whose members cannot be told apart by their bytes."""
    if complete:
        return _written_anew(*_load(body), len(body))
    message = "A member stands twice, or too many look alike, in a body too large to be written anew."
    raise ProxyError(413, "request_too_large", message)


def _next(text: bytes, place: int) -> bytes:
    """The first byte behind blanks; b"" at the text's end."""
    place = blank_end(text, place)
    return text[place : place + 1]


def _note(asked: Asked, name: str, start: int, value: int, escaped: bool) -> bool:
    """Write down a top-level member of an outlined body, if all of it is here; False if it does not stand there plainly."""
    text = asked.text
    if escaped or name in asked.values:
        return False
    if name == "messages":
        _note_messages(asked, value)
        return True
    end = value_end(text, value)
    if end is None or _next(text, end) not in (b",", b"}"):
        return True
    try:
        asked.values[name] = orjson.loads(text[value:end])
    except orjson.JSONDecodeError:
        raise no_object() from None
    if name in _SPLICED:
        asked.places[name] = Place(start, value, end)
    elif name == "metadata" and _has_session(asked.values[name]):
        asked.places[name] = Place(start, value, end)
        return _locate_inner(asked)
    return True


def _note_messages(asked: Asked, value: int) -> None:
    """Write down a list that is empty or not as `messages` is; None for anything else, nothing where the cut hides it."""
    text = asked.text
    first, item = text[value : value + 1], _next(text, value + 1)
    if first and first != b"[":
        asked.values["messages"] = None
    elif item:
        asked.values["messages"] = [] if item == b"]" else [None]


def edits(
    asked: Asked, *, model: str | None = None, maximum: int | None = None, limit_member: str | None = None
) -> list[Edit]:
    """What to exchange in the body as it came, in order and without overlap; the session members always go.

    `model`: the name that the upstream is to see, set where none was sent; None: stays. `maximum`: the client's `max_tokens`;
    `limit_member`: under which name to set it where the request has none of TOKEN_LIMITS; None: nowhere.
    """
    found: list[Edit] = []
    added: list[bytes] = []
    if model is not None and model != asked.values.get("model"):
        _put(asked, "model", orjson.dumps(model), found, added)
    if maximum is not None:
        _limit(asked, maximum, limit_member, found, added)
    gone = [(place.start, place.end) for place in _session_places(asked)]
    removed = _removals(asked.text, gone)
    found += removed
    if added:
        found.append(_insertion(asked.text, added, removed))
    found.sort()
    if asked.rewritten:
        return [(0, asked.size, apply(asked.text, found))]
    return found


def _put(asked: Asked, name: str, value: bytes, found: list[Edit], added: list[bytes]) -> None:
    place = asked.places.get(name)
    if place is None:
        added.append(b'"' + name.encode() + b'":' + value)
    else:
        found.append((place.value, place.end, value))


def _limit(asked: Asked, maximum: int, member: str | None, found: list[Edit], added: list[bytes]) -> None:
    """Whatever is no number between 0 and the maximum is replaced by it: -1 and the like mean "no limit" to some servers."""
    given = [name for name in TOKEN_LIMITS if asked.values.get(name) is not None]
    for name in given:
        value = asked.values[name]
        kept = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= maximum
        if not kept:
            _put(asked, name, str(maximum).encode(), found, added)
    if not given and member is not None:
        _put(asked, member, str(maximum).encode(), found, added)


def _session_places(asked: Asked) -> list[Place]:
    """What to remove: `session_id`, and `metadata.sessionId` or all of metadata."""
    places = [asked.places["session_id"]] if "session_id" in asked.places else []
    if len(asked.inner) == 1:
        places.append(asked.places["metadata"])
    else:
        places += [Place(start, value, end) for name, start, value, end in asked.inner if name == b"sessionId"]
    return sorted(places, key=lambda place: place.start)


def _removals(text: bytes, gone: Sequence[tuple[int, int]]) -> list[Edit]:
    """Edits that remove members, given in order, each with the comma that nobody needs any more."""
    runs: list[tuple[int, int]] = []
    for start, end in gone:
        if runs and text[runs[-1][1] : start].strip(BLANKS) == b",":
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    found: list[Edit] = []
    for start, end in runs:
        behind = blank_end(text, end)
        if text[behind : behind + 1] == b",":
            found.append((start, blank_end(text, behind + 1), b""))
            continue
        before = len(text[:start].rstrip(BLANKS)) - 1
        found.append((before if text[before] == 0x2C else start, end, b""))
    return found


def _insertion(text: bytes, added: list[bytes], removed: Sequence[Edit]) -> Edit:
    """The edit that puts members first in the object."""
    place = text.index(b"{") + 1
    first = blank_end(text, place)
    if removed and removed[0][0] == first:
        first = blank_end(text, removed[0][1])
    comma = b"" if text[first : first + 1] == b"}" else b","
    return (place, place, b",".join(added) + comma)


def apply(body: bytes, changes: Sequence[Edit]) -> bytes:
    """A whole body with edits done, which are in order and do not overlap."""
    pieces: list[bytes] = []
    place = 0
    for start, end, new in changes:
        pieces += (body[place:start], new)
        place = end
    pieces.append(body[place:])
    return b"".join(pieces)
