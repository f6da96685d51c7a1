"""Compares what a client sent with what arrived, and what was answered with what the client got, byte for byte.

What may differ, and nothing else (the proxy passes a dialect through untouched to upstreams that speak it):

    request line   the session's prefix and the place of the API; query members that are for the proxy
    body           the provider's prefix in `model` (or an alias), the bound model where none was named (`BOUND`), `session_id`,
                   `metadata.sessionId`; a coding is undone; where `model` stands twice all is written anew, the last one counts
    fields up      credentials, cookies, `x-session-id`, OpenAI's organization and project, framing; `Accept-Encoding` is
                   `identity` where the answer is looked at
    fields down    `set-cookie`, `alt-svc`, `strict-transport-security`, framing
    body down      an error of Google's is without its brackets

Answers that the proxy gives by itself have no counterpart: refusals, sign-ins, lists of models and of what was made.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.clients.tap import Exchange, Message

Fields = list[tuple[str, str]]

BOUND = "gpt-4o-mini"
"""The model that login sessions of these programs are bound to."""
_PREFIX = re.compile(r"(?:/s/[^/]+)?(?:/v1beta/openai|/openai)?(?:/v1(?=/))?/*")
"""What stands before a path of the API, its slash included."""
_INTERNAL = re.compile(r"(?<=[?&])(?:session_id|session_token|key|api_key)=[^&]*&?")
_MODEL = rb'("model"\s*:\s*"|name="model"(?:\r\n[^\r\n]+)*\r\n\r\n)(?:%b)/'
_SESSION = re.compile(rb'"session_id"\s*:\s*"[^"]*"\s*,\s*|"metadata"\s*:\s*\{\s*"sessionId"\s*:\s*"[^"]*"\s*\}\s*,\s*')
_OWN = re.compile(r"GET /models(?:/.*)?|GET /(?:files|batches|vector_stores)|POST /auth/.*")
"""What the proxy answers by itself when all is well."""
_UNREAD = re.compile(r"/(?:chat/completions|completions|embeddings|moderations|images/.*|audio/.*)")
"""Paths whose answers name nothing that is kept, so that nobody looks at them; with STORED in the body somebody does."""
_STORED = re.compile(rb'"store"\s*:\s*true')
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"})
_UP = _HOP | {
    "host", "content-length", "expect", "accept-encoding", "authorization", "x-api-key", "api-key", "x-session-token", "cookie",
    "x-session-id", "openai-organization", "openai-project",
}  # fmt: skip
_DOWN = _HOP | {"set-cookie", "alt-svc", "strict-transport-security"}


@dataclass(frozen=True)
class Server:
    """An upstream: its names in the configuration, where its API is, its keys, and what passed between it and the proxy.

    `aliases`: model by other name.
    """

    names: tuple[str, ...]
    base: str
    keys: tuple[str, ...]
    exchanges: list[Exchange]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """`count`: exchanges of the client that had a counterpart. `differences`: what nobody allowed."""

    count: int
    differences: tuple[str, ...]


def compare(sent: Iterable[Exchange], servers: Iterable[Server], secrets: Iterable[str]) -> Compared:
    """`secrets`: what clients show the proxy, and no upstream may see."""
    servers, found, differences = list(servers), 0, []
    left = {id(server): list(server.exchanges) for server in servers}
    for exchange in sent:
        if exchange.answer.get("server") == "balancer":
            if exchange.status < 400 and not _OWN.fullmatch(f"{exchange.method} {_path(exchange)}"):
                differences.append(f"{_short(exchange)}: answered by the proxy")
            continue
        for server in servers:
            if (other := _counterpart(exchange, server, left[id(server)])) is not None:
                differences += _differing(exchange, other, server)
                found += 1
                break
        else:
            differences.append(f"{_short(exchange)}: nothing like it arrived: {exchange.request.body[:300]!r}")
    for server in servers:
        for exchange in server.exchanges:
            seen = repr(exchange.request)
            differences += [f"{_short(exchange)}: shows what a client showed" for each in secrets if each in seen]
    return Compared(found, tuple(differences))


def _counterpart(exchange: Exchange, server: Server, left: list[Exchange]) -> Exchange | None:
    """The exchange upstream that came of it: of several (tried again with another key) the one with the same answer."""
    target, body = _target(exchange.target, server), _body(exchange.request, server)
    like = [
        each
        for each in left
        if (each.method, each.target, each.request.body) == (exchange.method, target, body)
        and each.status == exchange.status
    ]
    if not like:
        return None
    found = max(like, key=lambda each: _likeness(each.answer, exchange.answer))
    left.remove(found)
    return found


def _likeness(one: Message, other: Message) -> tuple[bool, bool]:
    """The same question may have been asked twice and answered alike."""
    return one.body == other.body, one.get("x-request-id") == other.get("x-request-id")


def _target(target: str, server: Server) -> str:
    rest = _INTERNAL.sub("", _PREFIX.sub("/", target, count=1)).rstrip("?&")
    return server.base + rest


def _body(request: Message, server: Server) -> bytes:
    body = gzip.decompress(request.body) if request.get("content-encoding") == "gzip" else request.body
    if _twice(body):
        body = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
    body = re.sub(_MODEL % "|".join(server.names).encode(), rb"\1", body, count=1)
    body = _SESSION.sub(b"", body)
    for name, model in server.aliases.items():
        body = re.sub(rb'("model"\s*:\s*)"%b"' % name.encode(), rb'\1"%b"' % model.encode(), body, count=1)
    if re.search(rb'"messages"\s*:', body) and b'"model"' not in body:
        return b'{"model":"%b",' % BOUND.encode() + body[1:]
    return body


def _twice(body: bytes) -> bool:
    """Whether `model` stands twice in the object that the body is."""
    if len(re.findall(rb'"model"\s*:', body)) < 2:
        return False
    pairs: tuple[tuple[str, object], ...] = json.loads(body, object_pairs_hook=tuple)
    return sum(name == "model" for name, _ in pairs) > 1


def _differing(exchange: Exchange, other: Exchange, server: Server) -> list[str]:
    found = []
    sent, arrived = exchange.request, other.request
    gone = _UP | {"content-encoding"} if sent.get("content-encoding") else _UP
    found += _changes("fields up", _kept(sent, gone), _kept(arrived, _UP))
    coding = arrived.get("accept-encoding")
    if coding != sent.get("accept-encoding") and not (coding == "identity" and _is_read(exchange)):
        found.append(f"Accept-Encoding: {sent.get('accept-encoding')} became {coding}")
    if (
        arrived.get("authorization") not in {f"Bearer {key}" for key in server.keys}
        or arrived.count("authorization") > 1
    ):
        found.append("not one key of the pool as Bearer")
    wanted, got = _answered(other), exchange.answer
    found += _changes("fields down", _kept(wanted, _DOWN), [f for f in _kept(got, _HOP) if f not in _ours(got, wanted)])
    if wanted.body != got.body:
        found.append(f"body down: {wanted.body[:300]!r} became {got.body[:300]!r}")
    return [f"{_short(exchange)}: {each}" for each in found]


def _changes(where: str, wanted: Fields, got: Fields) -> list[str]:
    """What is missing and what is new, or that only the order is another."""
    if wanted == got:
        return []
    gone, new = [each for each in wanted if each not in got], [each for each in got if each not in wanted]
    return [f"{where}: without {gone}, with {new}" if gone or new else f"{where}: {wanted} became {got}"]


def _is_read(exchange: Exchange) -> bool:
    """Whether the answer may name something that is kept."""
    return _UNREAD.fullmatch(_path(exchange)) is None or _STORED.search(exchange.request.body) is not None


def _answered(upstream: Exchange) -> Message:
    """The answer as it is to reach the client."""
    answer = upstream.answer
    if upstream.status < 400 or not answer.body.startswith(b"["):
        return answer
    fields = tuple((name, value) for name, value in answer.fields if name.lower() != "content-length")
    return Message(answer.start, fields, answer.body.strip()[1:-1].strip())


def _ours(got: Message, upstream: Message) -> Fields:
    """A request has an id, the proxy's own where the upstream gives none."""
    return [] if upstream.count("x-request-id") else [("x-request-id", got.get("x-request-id") or "")]


def _kept(message: Message, without: frozenset[str]) -> Fields:
    """The fields that travel, in order. How a name is spelled is nobody's business (RFC 9110, section 5.1)."""
    return [(name.lower(), value) for name, value in message.fields if name.lower() not in without]


def _path(exchange: Exchange) -> str:
    """Behind `/v1`."""
    return _PREFIX.sub("/", exchange.target, count=1).partition("?")[0]


def _short(exchange: Exchange) -> str:
    return f"{exchange.method} {exchange.target} {exchange.status}"
