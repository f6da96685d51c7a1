"""Header fields and request targets, as far as a proxy must look at them (RFC 9110, sections 7.6.1 and 10.2.3)."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import compress
from urllib.parse import unquote_plus

from balancer.wire.often import BySpelling

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
"""Fields that speak of one connection and never travel on."""

CLIENT_CREDENTIALS = frozenset({"authorization", "x-session-token", "x-goog-api-key", "x-api-key", "api-key"})
"""Every header field in which a client may show its token."""

FORWARDING = frozenset({
    "forwarded", "via", "x-forwarded-", "x-original-", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip",
    "fastly-client-ip", "x-envoy-external-address", "cf-connecting-", "cf-ipcountry", "cf-ray", "cf-visitor",
})  # fmt: skip
"""What proxies in front of us say of the client. Names that end in a hyphen are prefixes."""

REQUEST_DROP = (
    CLIENT_CREDENTIALS
    | FORWARDING
    | {"host", "content-length", "expect", "cookie", "x-session-id", "x-goog-user-project", "proxy-", "sec-websocket-"}
)
"""What of a client's request no upstream may see, beside hop-by-hop fields. Framing and host are the transport's to write."""

RESPONSE_DROP = frozenset({"set-cookie", "alt-svc", "strict-transport-security"})
"""What of an upstream's answer would speak for our own origin."""

_SECONDS = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?")


def sieve(drop: Collection[str]) -> BySpelling[bool | None]:
    """Whether a field passes, by its name as it was spelled. None is False for a Connection field.

    `drop`: names in lower case, and prefixes, which end in a hyphen, of fields that stay behind.
    """
    names, prefixes = frozenset(drop), tuple(each for each in drop if each.endswith("-"))

    def passes(name: str) -> bool | None:
        return None if name == "connection" else not (name in names or name.startswith(prefixes))

    return BySpelling(passes)


def end_to_end(headers: Iterable[tuple[str, str]], drop: frozenset[str]) -> list[tuple[str, str]]:
    """The fields that travel on, in order, spelling and number as they came.

    Left out are hop-by-hop fields, those that a Connection field names, and those in `drop`: names in lower case, and
    prefixes, which end in a hyphen.
    """
    fields = headers if isinstance(headers, list) else list(headers)
    travels = _travels(drop)
    passes = [travels[field[0]] for field in fields]
    kept = list(compress(fields, passes))
    if None not in passes:
        return kept
    named: set[str] = set()
    for name, value in fields:
        if travels[name] is None:
            named |= _named(value)
    return [field for field in kept if field[0].lower() not in named] if named else kept


@lru_cache(maxsize=64)
def _travels(drop: frozenset[str]) -> BySpelling[bool | None]:
    return sieve(HOP_BY_HOP | drop)


def _named(connection: str) -> set[str]:
    """The field names of a Connection value."""
    value = connection.lower()
    return set() if value in ("keep-alive", "close") else {option.strip(" \t") for option in value.split(",")}


def first(headers: Iterable[tuple[str, str]], name: str) -> str | None:
    """The first value of a field. `name` in lower case."""
    size = len(name)
    for field, value in headers:
        if len(field) == size and field.lower() == name:
            return value
    return None


def strip_query(target: str, names: frozenset[str]) -> tuple[str, dict[str, str]]:
    """A raw request target without the query members called one of `names`; what was removed, decoded, first value each.

    All that stays keeps its bytes: order, encoding, empty members. The `?` goes when nothing stays behind it. Names and
    values are decoded as HTML forms are (`+` is a space), which is how servers read them.
    """
    path, mark, query = target.partition("?")
    if not mark:
        return target, {}
    kept = []
    removed: dict[str, str] = {}
    for member in query.split("&"):
        name, _, value = member.partition("=")
        if "%" in name or "+" in name:
            name = unquote_plus(name)
        if name in names:
            removed.setdefault(name, unquote_plus(value))
        else:
            kept.append(member)
    if not removed:
        return target, removed
    rest = "&".join(kept)
    return (f"{path}?{rest}" if rest else path), removed


def parse_retry_after(value: str | None, now_wall: float) -> float | None:
    """Seconds to wait, from delay seconds (fractions too) or an HTTP date; 0 for a date past, None for anything else."""
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    date = parse_date(value)
    return None if date is None or not math.isfinite(now_wall) else max(0.0, date - now_wall)


def parse_date(value: str) -> float | None:
    """POSIX seconds of an HTTP date in any of its forms (RFC 9110 section 5.6.7); None for anything else."""
    try:
        date = parsedate_to_datetime(value)
        return date.replace(tzinfo=date.tzinfo or UTC).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
