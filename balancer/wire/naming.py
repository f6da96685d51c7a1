"""How a dialect names what belongs to keys, as the relay needs it: what a request names, and what an answer tells of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from balancer.wire.resources import Born, Mentions, Scanner, born, in_path, items_of, root_of

_VERSION = re.compile(r"/(?:(?:upload|download)/)?(v1\w*)/")


class Naming(Protocol):
    """One dialect's names of resources. A `root` is the name under which an owner is written down."""

    ttl: float
    """Seconds for which a binding is kept whose resource does not tell its own lifetime."""
    sliding: bool
    """Whether each use lengthens that."""
    searched: bool
    """Whether the owner of a name in a body that nobody here has met is looked for; one in a path always is."""

    streams: bool
    """Whether the first event of a stream names what a call has created."""

    def mentions(self, windows: Iterable[bytes]) -> Mentions:
        """What a request's body names. `windows`: the body in pieces that overlap (`relay.replay.OVERLAP`)."""
        ...

    def subject(self, path: str) -> str | None:
        """The root that a request is about: what a GET of the path reads and a DELETE deletes. `path` is raw, without query."""
        ...

    def question(self, path: str, root: str) -> str:
        """The path of a free GET that only a key of the root's owner answers with 2xx; `path`: of the request that names it."""
        ...

    def born(self, body: bytes) -> list[Born]:
        """The resources that a whole JSON answer tells of, or the first event of a stream."""
        ...

    def items_of(self, tree: Any) -> Iterator[tuple[str, list[Any]]]:
        """The lists of a list answer, by member."""
        ...

    def root_of(self, item: Any) -> str | None:
        """The root of one item of those."""
        ...


class GoogleNaming:
    """The Gemini API's names, `collection/id` (`wire.resources`). Kept for as long as Google keeps files."""

    ttl = 48 * 3600.0
    sliding = False
    searched = True
    streams = False

    def __init__(self) -> None:
        self._scanner = Scanner()

    def mentions(self, windows: Iterable[bytes]) -> Mentions:
        return self._scanner.scan(windows)

    def subject(self, path: str) -> str | None:
        return in_path(path)

    def question(self, path: str, root: str) -> str:
        version = _VERSION.match(path)
        return f"/{version[1] if version else 'v1beta'}/{root}"

    def born(self, body: bytes) -> list[Born]:
        found = born(body)
        for each in found:
            self._scanner.learn(each.root.partition("/")[0])
        return found

    def items_of(self, tree: Any) -> Iterator[tuple[str, list[Any]]]:
        return items_of(tree)

    def root_of(self, item: Any) -> str | None:
        return root_of(str(item.get("name", ""))) if isinstance(item, dict) else None
