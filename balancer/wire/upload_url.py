"""Upload addresses that carry their own credential.

The chunk calls of a resumable upload come without any credential and with nothing but the address that the start call was
answered with. So that address gains `balancer=<owner>.<client>.<signature>`: which key's owner holds the upload, who began
it, and a proof that we wrote it. Nothing has to be remembered: a chunk survives a restart and may reach any replica with the
same secret. (Protocol: https://ai.google.dev/api/files, header fields `X-Goog-Upload-*`; `Location` of the older protocol.)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from balancer.wire.headers import strip_query

MEMBER = "balancer"
"""The query member that holds the grant; it never reaches an upstream."""
INTERNAL = frozenset({"key", "api_key", "session_token", "session_id", MEMBER})
"""Query members that never reach an upstream nor stand in an upload address: client credentials, the session, the grant."""
URL_FIELDS = frozenset({"x-goog-upload-url", "x-goog-upload-control-url", "location"})
"""Header fields of a start call's answer that hold an upload address."""
_SIGNATURE_BYTES = 18


@dataclass(frozen=True, slots=True)
class Grant:
    """What an upload address says: the owner of the key that holds the upload, and the client that began it."""

    owner: str
    client: str


def rewrite(
    headers: list[tuple[str, str]], grant: Grant, key: bytes, public: str, upstream_prefix: str
) -> list[tuple[str, str]]:
    """The same fields, with upload addresses turned to ourselves and signed.

    `public`: our address as the client knows it, path prefix included, without trailing slash. `upstream_prefix`: the path of
    the upstream's base URL, which the upstream's addresses may begin with.
    """
    return [
        (name, _signed(value, grant, key, public, upstream_prefix) if name.lower() in URL_FIELDS else value)
        for name, value in headers
    ]


def _signed(address: str, grant: Grant, key: bytes, public: str, upstream_prefix: str) -> str:
    parts = urlsplit(address)
    path = parts.path
    if upstream_prefix and path.startswith(upstream_prefix + "/"):
        path = path[len(upstream_prefix) :]
    target, _ = strip_query(f"{path}?{parts.query}" if parts.query else path, INTERNAL)
    mark = "&" if "?" in target else "?"
    owner, client = _pack(grant.owner), _pack(grant.client)
    return f"{public}{target}{mark}{MEMBER}={owner}.{client}.{_signature(target, owner, client, key)}"


def verify(target: str, value: str, keys: Iterable[bytes]) -> Grant | None:
    """The grant in `value`, the member's decoded text, if one of the keys signed it for this target; else None.

    `target` is the path and query without the INTERNAL members.
    """
    owner, _, rest = value.partition(".")
    client, _, signature = rest.partition(".")
    given = signature.encode("utf-8", "replace")
    # Every key is tried, so that the time taken does not tell which one fits.
    fits = [hmac.compare_digest(_signature(target, owner, client, key).encode(), given) for key in keys]
    if not any(fits):
        return None
    try:
        return Grant(_unpack(owner), _unpack(client))
    except ValueError:
        return None


def _signature(target: str, owner: str, client: str, key: bytes) -> str:
    """Over path, query members in any order (clients take addresses apart and put them together again), and the grant."""
    path, _, query = target.partition("?")
    members = sorted(parse_qsl(query, keep_blank_values=True))
    text = repr((path, members, owner, client)).encode()
    return _encode(hmac.digest(key, b"upload\n" + text, hashlib.sha256)[:_SIGNATURE_BYTES])


def _pack(text: str) -> str:
    return _encode(text.encode())


def _unpack(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
