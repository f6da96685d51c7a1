"""The access line: what one request came to, in JSON or for people.

Every request pays for it, so it is made as text at once, and what comes again and again in it is masked and quoted once. Times
of day are POSIX seconds, durations in a line milliseconds, sizes bytes. Status 499: the client left before an answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import lru_cache

import orjson

from balancer.model import Record

REMEMBERED = 1024
"""Beginnings of lines that are kept."""
LONG_PATH = 512
"""Characters of a path beyond which none is kept: callers choose them."""


class AccessLines:
    """Makes lines. `mask` blots secrets out of what comes from outside; the other fields are words of ours."""

    def __init__(self, mask: Callable[[str], str]) -> None:
        self._mask = mask
        self._masked_often = lru_cache(REMEMBERED)(mask)
        self._said_often = lru_cache(REMEMBERED)(self._said)

    def json(self, record: Record, now: float, wall: float) -> bytes:
        """`now` is monotonic, as the record's times are; `wall` is the same moment's time of day."""
        said = self._said_often if len(record.path) <= LONG_PATH else self._said
        second, micro = divmod(round(wall * 1e6), 1_000_000)
        number = f'"{record.request_id}"' if record.own_id else quoted(self._mask(record.request_id))
        text = (
            f'{{"timestamp":"{_second(second)}.{str(1_000_000 + micro)[1:]}Z","level":"info","event":"request",'
            f'"request_id":{number},'
            f"{said(record.client, record.surface, record.method, record.path, record.model, record.upstream, record.key)},"
        )
        if record.error is not None:
            text += f'"error":{quoted(self._mask(record.error))},'
        began, first_byte = record.started, record.first_byte
        figures = {
            "attempts": record.attempts,
            "status": record.status or 499,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "ms": int((now - began) * 1e5 + 0.5) / 100,  # not by `round` or a format, which take five times as long
        }
        if first_byte is not None:
            figures["ttfb_ms"] = int((first_byte - began) * 1e5 + 0.5) / 100
            figures["overhead_ms"] = int(overhead(record) * 1e6 + 0.5) / 1000
        return text.encode("utf-8", "replace") + orjson.dumps(figures, option=orjson.OPT_APPEND_NEWLINE)[1:]

    def _said(
        self,
        client: str,
        surface: str,
        method: str,
        path: str,
        model: str | None,
        upstream: str | None,
        key: str | None,
    ) -> str:
        """The part that many lines share."""
        mask = self._mask
        model = model if model is None else mask(model)
        return (
            f'"client":{quoted(client)},"surface":{quoted(surface)},"method":{quoted(mask(method))},'
            f'"path":{quoted(mask(path))},"model":{quoted(model)},"upstream":{quoted(upstream)},"key":{quoted(key)}'
        )

    def console(self, record: Record, now: float, wall: float) -> bytes:
        """`12:30:05 200 POST /v1beta/… 812 ms (first byte 640, own 0.4) client gemini/ab12cd34 …`."""
        mask, often = self._mask, self._masked_often
        text = (
            f"{time.strftime('%H:%M:%S', time.localtime(wall))} {record.status or 499} {often(record.method)} "
            f"{often(record.path)} {round((now - record.started) * 1000, 2)} ms"
        )
        if record.first_byte is not None:
            waited = round((record.first_byte - record.started) * 1000, 2)
            text += f" (first byte {waited}, own {round(overhead(record) * 1000, 3)})"
        text += f" {record.client or '-'}"
        if record.upstream:
            text += f" → {record.upstream}/{record.key}"
        if record.attempts > 1:
            text += f" in {record.attempts} attempts"
        if record.error:
            text += f" {mask(record.error)}"
        return printable(f"{text} [{mask(record.request_id)}]").encode("utf-8", "backslashreplace") + b"\n"


def overhead(record: Record) -> float:
    """Seconds of the time to first byte that are our own doing: not the upstream's, the client's, or a wait for a key."""
    first_byte = record.first_byte
    if first_byte is None:
        return 0.0
    own = first_byte - record.started - record.upstream_wait - record.other_wait
    return own if own > 0.0 else 0.0


def quoted(text: str | None) -> str:
    """The text as JSON. Lone surrogates stay what they are."""
    try:
        return orjson.dumps(text).decode()
    except TypeError:
        return json.dumps(text, ensure_ascii=False)


def printable(text: str) -> str:
    """The text with control characters escaped: nobody's request steers the operator's terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@lru_cache(2)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
