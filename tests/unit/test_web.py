"""Whose address a request has, what names this machine, and what answers of ours look like."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from balancer.errors import ProxyError
from balancer.web import Network, client_address, error_answer, host_name, is_loopback, is_own_host, peer_address

LOOPBACK: dict[str | None, bool] = {
    "127.0.0.1": True,
    "127.255.255.254": True,
    "::1": True,
    "::ffff:127.0.0.1": True,
    "::ffff:127.9.9.9": True,
    "0:0:0:0:0:0:0:1": True,
    None: True,
    "::1%lo": True,
    "128.0.0.1": False,
    "0.0.0.0": False,
    "::": False,
    "::2": False,
    "::127.0.0.1": False,
    "::ffff:128.0.0.1": False,
    "fe80::1%lo": False,
    "10.0.0.1": False,
    "192.0.2.1": False,
    "localhost": False,
    "127.1": False,
    "2130706433": False,
    "0x7f.0.0.1": False,
    "127.0.0.1:80": False,
    "127.0.0.1, 192.0.2.1": False,
    "": False,
    "unknown": False,
}


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_is_told_by_the_address_of_the_peer(address: str | None) -> None:
    assert is_loopback(address) == LOOPBACK[address]


OWN: dict[str, bool] = {
    "localhost": True,
    "localhost:8000": True,
    "LOCALHOST:8000": True,
    "127.0.0.1": True,
    "192.0.2.1:8000": True,
    "[::1]": True,
    "[::1]:8000": True,
    "public.example": True,
    "Public.Example:443": True,
    "other.example": False,
    "public.example.evil.example": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "127.0.0.1@evil.example": False,
    "127.1": False,
    "2130706433": False,
    "": False,
    ":8000": False,
    "[": False,
    "[::1": False,
    "::1]": False,
    "[v1.x]": False,
    "a]b[c": False,
    "\udcff": False,
    "☃": False,
}


@pytest.mark.parametrize("host", OWN)
def test_only_names_that_no_page_can_have_arranged_are_our_own(host: str) -> None:
    assert is_own_host(host, "public.example") == OWN[host]


def test_without_a_public_address_no_other_name_is_our_own() -> None:
    assert not is_own_host("public.example")
    assert not is_own_host("")
    assert is_own_host("localhost")


@pytest.mark.parametrize(
    ("url", "host"),
    [("//h:1", "h"), ("http://u:p@H/x", "h"), ("//[::1]:1", "::1"), ("http://[", ""), ("//", ""), ("null", "")],
)
def test_the_host_of_what_is_no_url_is_none(url: str, host: str) -> None:
    assert host_name(url) == host


# Who calls ------------------------------------------------------------------------------------------------------------

Told = Callable[[web.Request], str]


@asynccontextmanager
async def asking(told: Told, path: Path | None = None) -> AsyncIterator[Callable[..., object]]:
    """A server that answers what `told` makes of a request, and a way to ask it with header lines."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=told(request))

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    if path is None:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    else:
        await web.UnixSite(runner, str(path)).start()

    async def ask(*headers: str) -> str:
        if path is None:
            reader, writer = await asyncio.open_connection(*runner.addresses[0])
        else:
            reader, writer = await asyncio.open_unix_connection(str(path))
        lines = ["GET / HTTP/1.1", "Host: h", "Connection: close", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        whole = await reader.read()
        writer.close()
        await writer.wait_closed()
        return whole.partition(b"\r\n\r\n")[2].decode()

    try:
        yield ask
    finally:
        await runner.cleanup()


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


CALLERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "nobody is trusted": ((), ("X-Forwarded-For: 192.0.2.1",), "127.0.0.1"),
    "another proxy is trusted": (("10.0.0.0/8",), ("X-Forwarded-For: 192.0.2.1",), "127.0.0.1"),
    "the peer is trusted and says nothing": (("127.0.0.0/8",), (), "127.0.0.1"),
    "the peer is trusted": (("127.0.0.0/8",), ("X-Forwarded-For: 192.0.2.1",), "192.0.2.1"),
    "a client that lies to a trusted proxy": (
        ("127.0.0.0/8",),
        ("X-Forwarded-For: 203.0.113.9, 192.0.2.1",),
        "192.0.2.1",
    ),
    "two trusted proxies": (
        ("127.0.0.0/8", "10.0.0.0/8"),
        ("X-Forwarded-For: 203.0.113.9, 192.0.2.1, 10.1.2.3",),
        "192.0.2.1",
    ),
    "two lines": (
        ("127.0.0.0/8", "10.0.0.0/8"),
        ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 192.0.2.1,10.1.2.3"),
        "192.0.2.1",
    ),
    "all are trusted": (("0.0.0.0/0", "::/0"), ("X-Forwarded-For: 203.0.113.9, 192.0.2.1",), "203.0.113.9"),
    "IPv6": (("127.0.0.0/8",), ("X-Forwarded-For: 2001:db8::1",), "2001:db8::1"),
    "a mapped proxy": (
        ("127.0.0.0/8", "10.0.0.0/8"),
        ("X-Forwarded-For: 192.0.2.1, ::ffff:10.0.0.1",),
        "192.0.2.1",
    ),
    "words": (("127.0.0.0/8",), ("X-Forwarded-For: 192.0.2.1, unknown",), "unknown"),
}


@pytest.mark.parametrize("case", CALLERS)
async def test_forwarded_addresses_are_believed_from_trusted_proxies_only(case: str) -> None:
    trusted, headers, expected = CALLERS[case]
    async with asking(lambda request: client_address(request, networks(*trusted))) as ask:
        assert await ask(*headers) == expected  # type: ignore[misc]


async def test_the_peer_of_a_unix_socket_has_no_address_and_is_local(tmp_path: Path) -> None:
    def told(request: web.Request) -> str:
        return f"{peer_address(request)} {is_loopback(peer_address(request))} {client_address(request, ())}"

    async with asking(told, tmp_path / "s") as ask:
        assert await ask() == "None True unix"  # type: ignore[misc]


# Answers of ours ------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[ProxyError, dict[str, str | None]]] = {
    "nothing special": (
        ProxyError(404, "c", "m"),
        {"WWW-Authenticate": None, "Retry-After": None, "Allow": None, "Content-Type": "application/json"},
    ),
    "who are you": (ProxyError(401, "c", "m"), {"WWW-Authenticate": "Bearer"}),
    "not so": (ProxyError(405, "c", "m", allow="GET, HEAD"), {"Allow": "GET, HEAD"}),
    "later": (ProxyError(429, "c", "m", retry_after=17), {"Retry-After": "17"}),
    "later, rounded up": (ProxyError(429, "c", "m", retry_after=16.01), {"Retry-After": "17"}),
    "at once is a second": (ProxyError(429, "c", "m", retry_after=0), {"Retry-After": "1"}),
    "in a moment": (ProxyError(503, "c", "m", retry_after=0.2), {"Retry-After": "1"}),
    "much later": (ProxyError(429, "c", "m", retry_after=86_400.0), {"Retry-After": "86400"}),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_error_answer_has_the_fields_of_its_kind(case: str) -> None:
    error, fields = ANSWERS[case]
    answer = error_answer(error, b"{}")
    assert answer.status == error.status
    assert answer.body == b"{}"
    assert answer.headers["Server"] == "balancer"
    assert {name: answer.headers.get(name) for name in fields} == fields


@pytest.mark.parametrize("close", [True, False])
def test_an_error_closes_the_connection_where_the_rest_is_not_wanted(close: bool) -> None:
    answer = error_answer(ProxyError(413, "c", "m", close=close), b"{}")
    assert (answer.keep_alive is False) == close
