"""What middlewares and surfaces share about one HTTP request: its record, its caller and where a caller shows who it is, its
surface, answers of ours.

A credential is looked for in every place where any SDK puts one; blank values and the schemes Basic, Digest, Negotiate and
Token count as absent. WebSocket clients that cannot set a header offer theirs as a subprotocol.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from multidict import istr

from balancer.errors import ProxyError
from balancer.model import Client, Record
from balancer.routing.logins import Login

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDING_FIELDS = (
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
    "Via",
    "CF-Connecting-IP",
    "True-Client-IP",
)
"""Fields that a proxy in front of us adds: a request that carries one is not local, whoever its TCP peer is."""

_NO_CREDENTIAL_SCHEMES = frozenset({"basic", "digest", "negotiate", "token"})
_PLACES = (
    (False, istr("X-Session-Token")),
    (True, "session_token"),
    (False, istr("x-goog-api-key")),
    (False, istr("x-api-key")),
    (False, istr("api-key")),
    (True, "key"),
    (True, "api_key"),
)
"""Where a credential may stand behind Authorization, in the order in which they count: whether in the query, and its name."""
_FIELDS = tuple(place for place in _PLACES if not place[0])
"""The same of a request without a query, as nearly all are."""
_SUBPROTOCOLS = ("openai-insecure-api-key.", "bearer.")

NO_CREDENTIAL = "未认证。请先通过 /auth/login 登录获取 Session Token，或使用 API Key 进行认证。"
BAD_CREDENTIAL = "无效的 API Key 或 Session Token"
"""What `missing_api_key` and `invalid_api_key` say to callers of the chat, openai and conversations surfaces."""


class Surface(Protocol):
    """A family of routes that speaks one dialect to its callers."""

    name: str

    def claims(self, request: web.Request) -> bool:
        """Whether this request is this surface's to answer, errors included."""
        ...

    def recognise(self, request: web.Request) -> Client | None:
        """The caller, where something else than a credential tells who it is. Raises ProxyError where that is no good.

        ANONYMOUS where the surface looks at the credentials by itself.
        """
        ...

    def allowed_origins(self) -> Collection[str]:
        """Origins, in lower case, of web pages that may read answers, and call without a credential; `*` is all."""
        ...

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        """An error answer in this surface's dialect."""
        ...

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer it. Raises ProxyError while nothing has been sent."""
        ...


PUBLIC_PATHS = frozenset({"/healthz", "/readyz"})
"""Routes of no surface, that anybody may ask."""

RECORD = web.RequestKey("record", Record)
CLIENT = web.RequestKey("client", Client)
LOGIN = web.RequestKey("login", Login)
"""There where the caller showed a session token."""
SURFACE: web.RequestKey[Surface | None] = web.RequestKey("surface", object)  # type: ignore[arg-type]
"""None where no surface claims the request."""


def json_answer(status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> web.Response:
    """A JSON answer of ours."""
    answer = web.Response(status=status, body=body, content_type="application/json")
    answer.headers["Server"] = "balancer"
    for name, value in headers:
        answer.headers[name] = value
    return answer


def error_answer(error: ProxyError, body: bytes) -> web.Response:
    """An error answer of ours, with the fields that its kind asks for (RFC 9110 sections 10.2.3, 11.6.1, 15.5.6)."""
    answer = json_answer(error.status, body)
    if error.status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.allow is not None:
        answer.headers["Allow"] = error.allow
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(max(1, -int(-error.retry_after // 1)))
    if error.limit is not None:
        allowed, left, reset = error.limit
        answer.headers["x-ratelimit-limit-requests"] = str(allowed)
        answer.headers["x-ratelimit-remaining-requests"] = str(left)
        answer.headers["x-ratelimit-reset-requests"] = span(reset)
    if error.close:
        answer.force_close()
    return answer


def span(seconds: float) -> str:
    """A time as the x-ratelimit fields write it, rounded up: `250ms`, from one second on `12s`, `1m3s`, `1h0m0s`."""
    if seconds < 1:
        thousandths = max(0, math.ceil(seconds * 1000))
        return f"{thousandths}ms" if thousandths < 1000 else "1s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest}s"


def credentials(request: web.Request) -> Iterator[str]:
    """Every credential that a request carries, in the order in which they count."""
    headers = request.headers
    authorization = headers.get(hdrs.AUTHORIZATION)
    if authorization:
        scheme, blank, rest = authorization.strip().partition(" ")
        if not blank:
            if scheme and scheme.lower() not in (_NO_CREDENTIAL_SCHEMES | {"bearer"}):
                yield scheme
        elif scheme.lower() == "bearer":
            if rest.strip():
                yield rest.strip()
        elif scheme.lower() not in _NO_CREDENTIAL_SCHEMES:
            yield authorization.strip()
    query: Mapping[str, str] = request.rel_url.query if "?" in request.raw_path else {}
    for from_query, name in _PLACES if query else _FIELDS:
        value = (query if from_query else headers).get(name)
        if value and (value := value.strip()):
            yield value
    if hdrs.SEC_WEBSOCKET_PROTOCOL in headers and headers.get("Upgrade", "").lower() == "websocket":
        offers = ",".join(headers.getall("Sec-WebSocket-Protocol")).split(",")
        for prefix in _SUBPROTOCOLS:
            for offer in offers:
                token = offer.strip()
                if token.startswith(prefix) and token != prefix:
                    yield token.removeprefix(prefix)


def is_local(request: web.Request) -> bool:
    """Whether the caller is on this machine and no proxy stands in between."""
    return is_loopback(peer_address(request)) and not any(name in request.headers for name in FORWARDING_FIELDS)


def is_listed(origin: str, allowed: Collection[str]) -> bool:
    """Whether an Origin field is among configured ones (in lower case), of which `*` is all."""
    return "*" in allowed or origin.lower() in allowed


def peer_address(request: web.Request) -> str | None:
    """The address of the TCP peer; None for a unix socket."""
    transport = request.transport
    name = transport.get_extra_info("peername") if transport is not None else None
    return str(name[0]) if isinstance(name, tuple) else None


def is_loopback(address: str | None) -> bool:
    """Whether the peer is this machine: 127.0.0.0/8, ::1, their mapped forms, or a unix socket."""
    if address is None:
        return True
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def public_origin(request: web.Request, public_url: str | None, trusted: tuple[Network, ...]) -> str:
    """How the client reaches us: scheme and authority, without trailing slash; `public_url` may hold a path too.

    `X-Forwarded-Proto` and `-Host` are believed where the TCP peer is a trusted proxy.
    """
    if public_url is not None:
        return public_url.rstrip("/")
    scheme, host = request.url.scheme, request.headers.get("Host") or ""
    if trusted and _within(peer_address(request) or "", trusted):
        scheme = _first_of(request, "X-Forwarded-Proto") or scheme
        host = _first_of(request, "X-Forwarded-Host") or host
    return f"{scheme}://{host}"


def _first_of(request: web.Request, name: str) -> str:
    return request.headers.get(name, "").partition(",")[0].strip()


def client_address(request: web.Request, trusted: Iterable[Network]) -> str:
    """Who calls: the TCP peer, or, where that is a trusted proxy, the last address it vouches for in X-Forwarded-For."""
    address = peer_address(request) or "unix"
    networks = tuple(trusted)
    if not networks:
        return address
    hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", ()) for hop in line.split(",")]
    while hops and _within(address, networks):
        address = hops.pop()
    return address


def _within(address: str, networks: tuple[Network, ...]) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in networks)


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address; one that a dual-stack listener shows as IPv6 is the IPv4 address it stands for."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def host_name(url: str) -> str:
    """The host of a URL in lower case; "" where it has none or is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_own_host(host: str, public: str | None = None) -> bool:
    """Whether a Host field names this machine in a way that no foreign web page can have arranged."""
    name = host_name(f"//{host}")
    if name in ("localhost", public):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
