"""What middlewares and surfaces share about one HTTP request: its record, its caller, its surface, answers of ours."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Protocol
from urllib.parse import urlsplit

from aiohttp import web

from balancer.errors import ProxyError
from balancer.model import Client, Record

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


class Surface(Protocol):
    """A family of routes that speaks one dialect to its callers."""

    name: str

    def claims(self, request: web.Request) -> bool:
        """Whether this request is this surface's to answer, errors included."""
        ...

    def recognise(self, request: web.Request) -> Client | None:
        """The caller, where something else than a credential tells who it is. Raises ProxyError where that is no good."""
        ...

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        """An error answer in this surface's dialect."""
        ...

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer it. Raises ProxyError while nothing has been sent."""
        ...


RECORD = web.RequestKey("record", Record)
CLIENT = web.RequestKey("client", Client)
SURFACE = web.RequestKey("surface", Surface)


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
    if error.close:
        answer.force_close()
    return answer


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
