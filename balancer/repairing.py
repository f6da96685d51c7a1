"""Request heads that aiohttp's parser refuses for a field that stands twice, although popular clients send them so."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError

_HEAD_LIMIT = 65536
_DUPLICATE = re.compile(r"Duplicate '(User-Agent|Content-Type)' header", re.IGNORECASE)


def repair(head: bytes) -> bytes | None:
    """A request head with its repeated User-Agent and Content-Type lines made one; None if that would not be safe.

    User-Agents are joined by a space, which is that field's own syntax (RFC 9110 section 10.1.5: products separated by
    space). Equal Content-Types become one; different ones stay refused. Nothing is touched in a head with a folded line.
    """
    lines = head.split(b"\r\n")
    if any(line[:1] in (b" ", b"\t") for line in lines[1:]):
        return None
    kept: list[bytes] = []
    places: dict[bytes, int] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name = name.lower()
        if not colon or name not in (b"user-agent", b"content-type"):
            kept.append(line)
            continue
        value = value.strip(b" \t")
        if name not in places:
            places[name] = len(kept)
            kept.append(line)
        elif name == b"user-agent":
            kept[places[name]] = kept[places[name]].rstrip(b" \t") + b" " + value
        elif kept[places[name]].partition(b":")[2].strip(b" \t") != value:
            return None
    return b"\r\n".join(kept)


class RepairingParser:
    """aiohttp's request parser, given a second chance at heads that it refuses for a duplicate field.

    The bytes of an unfinished head are kept, at most 64 KiB of them and only where a message begins. When the parser
    refuses such a head for one of the two fields, the head is repaired and fed once to a fresh parser with the same limits:
    nothing is accepted that it would not accept without the second line. A head that was pipelined behind another request in
    one read stays refused.
    """

    __slots__ = ("_awaited", "_feed", "_fresh", "_head", "_on_head", "_parser", "_payload", "message_consumed")

    def __init__(self, fresh: Callable[[], Any], on_head: Callable[[bool], None]) -> None:
        """`on_head(complete)` is told when a head has begun (False) and when it is complete (True)."""
        self._fresh = fresh
        self._on_head = on_head
        self._awaited = True
        self._head = b""
        self._payload: Any = None
        self._adopt(fresh())

    def _adopt(self, parser: Any) -> None:
        self._parser = parser
        self._feed = parser.feed_data
        self.message_consumed = parser.message_consumed

    def __getattr__(self, name: str) -> Any:
        """Everything else of aiohttp's parser, as it is."""
        return getattr(self._parser, name)

    def feed_data(self, data: bytes) -> tuple[Sequence[Any], bool, bytes]:
        payload = self._payload
        between = payload is None or payload.is_eof()
        if between and len(self._head) <= _HEAD_LIMIT:
            self._head = self._head + data if self._head else data
        try:
            result = self._feed(data)
        except HttpProcessingError as refused:
            result = self._again(refused)
        messages = result[0]
        if messages:
            if messages[0][0].version[0] != 1:
                raise BadHttpMessage("not HTTP/1")
            self._head = b""
            self._payload = messages[-1][1]
            if self._awaited:
                self._await_head(False)
        elif between and data and not self._awaited:
            self._await_head(True)
        return result  # type: ignore[no-any-return]

    def _await_head(self, awaited: bool) -> None:
        self._awaited = awaited
        self._on_head(not awaited)

    def _again(self, refused: HttpProcessingError) -> Any:
        head, rest = self._head, b""
        self._head = b""
        self._await_head(False)
        if _DUPLICATE.search(str(refused.message)) is None or len(head) > _HEAD_LIMIT:
            raise refused
        head, end, rest = head.partition(b"\r\n\r\n")
        repaired = repair(head)
        if not end or repaired is None:
            raise refused
        self._adopt(self._fresh())
        return self._feed(repaired + end + rest)
