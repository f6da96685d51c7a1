"""The way out and the way in, encrypted: CONNECT proxies, certificate authorities, and serving TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from balancer.config import parse
from balancer.server import reload
from balancer.server import running as serving_with
from balancer.standin.app import StandIn, make_app
from balancer.standin.app import settings as runner_settings
from tests.proxy import GENERATE, KEYS, STREAM, Proxy, Raw, error_of, post_bytes, proxying, settings
from tests.upstream import WAIT, raw_upstream, serving

NAME = "upstream.invalid"
"""A host that no resolver knows: only a proxy that is asked for it by name gets there."""


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@asynccontextmanager
async def tls_upstream(authority: trustme.CA, standin: StandIn, *names: str) -> AsyncIterator[int]:
    """The stand-in behind TLS. Yields its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*(names or ("127.0.0.1", "localhost", NAME))).configure_cert(context)
    runner = web.AppRunner(make_app(standin), **runner_settings())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@dataclass
class Tunnel:
    """A CONNECT proxy: what it was asked for, and every byte that went through it."""

    port: int = 0
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    heads: list[bytes] = field(default_factory=list)
    passed: bytearray = field(default_factory=bytearray)
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set: the tunnels break."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def tunneling(to: int) -> AsyncIterator[Tunnel]:
    """A CONNECT proxy that leads every name to one port here."""
    tunnel = Tunnel()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            tunnel.passed += data
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(writer.close)
            tunnel.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(tunnel.answer)
            if b" 200 " not in tunnel.answer:
                return
            there, back = await asyncio.open_connection("127.0.0.1", to)
            stack.callback(back.close)
            ways = [asyncio.ensure_future(way) for way in (pump(reader, back), pump(there, writer), _until(tunnel.cut))]
            for way in ways:
                stack.callback(way.cancel)
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    tunnel.port = server.sockets[0].getsockname()[1]
    try:
        yield tunnel
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until(event: asyncio.Event) -> None:
    await event.wait()


@asynccontextmanager
async def proxying_in(environ: Mapping[str, str], upstream: Mapping[str, Any], **sections: Any) -> AsyncIterator[Proxy]:
    """The proxy as it is configured in an environment."""
    tree = {
        "server": {"port": 0},
        "admin": {"port": 0},
        "upstreams": {"gemini": {"keys": list(KEYS), **upstream}},
        "relay": {"attempts": 1},
        "logging": {"format": "json", "level": "warning"},
    } | sections
    async with serving_with(parse(json.dumps(tree), environ)) as server, aiohttp.ClientSession() as client:
        yield Proxy(server, client)


async def refused(proxy: Proxy) -> str:
    """The message of the 502 that a call gets."""
    async with proxy.post() as response:
        assert response.status == 502
        error = error_of(await response.read())
        assert error["status"] == "UNAVAILABLE"
        return str(error["message"])


# CONNECT proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["setting", "HTTPS_PROXY", "https_proxy"])
async def test_an_egress_proxy_sees_a_tunnel_and_nothing_of_what_is_in_it(
    by: str, authority: trustme.CA, ca_file: str
) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin) as port, tunneling(port) as tunnel:
        upstream = {"base_url": f"https://{NAME}", "ca_file": ca_file}
        if by == "setting":
            upstream["proxy"] = tunnel.url
        environ = {} if by == "setting" else {by: tunnel.url}
        async with proxying_in(environ, upstream) as proxy:
            for path in (GENERATE, STREAM):
                async with proxy.post(path) as response:
                    assert response.status == 200
                    assert b"You" in await response.read()
        assert [head.split(b"\r\n")[0] for head in tunnel.heads] == [f"CONNECT {NAME}:443 HTTP/1.1".encode()]
        seen = b"".join(tunnel.heads) + bytes(tunnel.passed)
        assert not any(key.encode() in seen for key in KEYS)
        assert b"generateContent" not in seen
        assert [arrival.status for arrival in standin.requests] == [200, 200]
        assert standin.requests[0].header("host") == NAME


async def test_the_proxys_password_goes_to_the_proxy_and_nowhere_else(authority: trustme.CA, ca_file: str) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin) as port, tunneling(port) as tunnel:
        url = f"http://user:pass-of-proxy@127.0.0.1:{tunnel.port}"
        upstream = {"base_url": f"https://{NAME}", "ca_file": ca_file, "proxy": url}
        async with proxying_in({}, upstream) as proxy, proxy.post() as response:
            assert response.status == 200
        assert b"\r\nProxy-Authorization: Basic dXNlcjpwYXNzLW9mLXByb3h5\r\n" in tunnel.heads[0]
        (arrival,) = standin.requests
        assert arrival.header("proxy-authorization") is None
        assert arrival.header("authorization") is None


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden", "502 Bad Gateway"])
async def test_a_proxy_that_refuses_is_a_502_without_its_password(
    status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with tunneling(9) as tunnel:
        tunnel.answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
        url = f"http://user:pass-of-proxy@127.0.0.1:{tunnel.port}"
        async with proxying_in({}, {"base_url": f"https://{NAME}", "proxy": url}) as proxy:
            message = await refused(proxy)
            assert "egress proxy" in message
            assert "pass-of-proxy" not in message
            assert {key["counts"]["key"] for key in await proxy.keys()} == {0}
    assert "pass-of-proxy" not in "".join(capsys.readouterr())


async def test_a_proxy_that_is_not_there_is_a_502() -> None:
    async with tunneling(9) as tunnel:
        pass
    async with proxying_in({}, {"base_url": f"https://{NAME}", "proxy": tunnel.url}) as proxy:
        assert "cannot be reached" in await refused(proxy)


async def test_a_tunnel_that_breaks_in_the_middle_is_a_cut(authority: trustme.CA, ca_file: str) -> None:
    standin = StandIn(KEYS)
    standin.script("*", "stall-stream")
    async with tls_upstream(authority, standin) as port, tunneling(port) as tunnel:
        upstream = {"base_url": f"https://{NAME}", "ca_file": ca_file, "proxy": tunnel.url}
        async with proxying_in({}, upstream) as proxy, proxy.post(STREAM) as response:
            assert response.status == 200
            assert await response.content.readany()
            tunnel.cut.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()


@pytest.mark.parametrize(
    "environ",
    [
        {"NO_PROXY": NAME},
        {"no_proxy": f"elsewhere.example, .{NAME.partition('.')[2]}"},
        {"NO_PROXY": "*"},
    ],
)
async def test_no_proxy_is_honoured(environ: dict[str, str]) -> None:
    async with tunneling(9) as tunnel:
        both = environ | {"HTTPS_PROXY": tunnel.url}
        async with proxying_in(both, {"base_url": f"https://{NAME}"}) as proxy:
            assert "does not resolve" in await refused(proxy)
        assert not tunnel.heads


async def test_proxy_off_overrules_the_environment_and_loopback_needs_none() -> None:
    async with tunneling(9) as tunnel, raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        environ = {"HTTPS_PROXY": tunnel.url, "HTTP_PROXY": tunnel.url}
        async with proxying_in(environ, {"base_url": f"https://{NAME}", "proxy": "off"}) as proxy:
            assert "does not resolve" in await refused(proxy)
        async with proxying_in(environ, {"base_url": upstream.url}) as proxy, proxy.post() as response:
            assert response.status == 200
        assert not tunnel.heads


# Whom we trust --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["setting", "SSL_CERT_FILE"])
async def test_a_ca_file_makes_an_upstream_trusted(by: str, authority: trustme.CA, ca_file: str) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin) as port:
        upstream = {"base_url": f"https://localhost:{port}"}
        environ = {"SSL_CERT_FILE": ca_file} if by == "SSL_CERT_FILE" else {}
        async with proxying_in(environ, upstream | ({} if environ else {"ca_file": ca_file})) as proxy:
            async with proxy.post() as response:
                assert response.status == 200


@pytest.mark.parametrize("trusted", [False, True], ids=["unknown authority", "another name"])
async def test_a_certificate_that_does_not_hold_is_a_502_and_gets_no_key(
    trusted: bool, authority: trustme.CA, ca_file: str
) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin, "elsewhere.example") as port:
        upstream = {"base_url": f"https://localhost:{port}"} | ({"ca_file": ca_file} if trusted else {})
        async with proxying_in({}, upstream) as proxy:
            assert "certificate" in await refused(proxy)
        assert not standin.requests


async def test_an_upstream_that_speaks_no_tls_is_a_502() -> None:
    async with raw_upstream(lambda peer: peer.answer()) as upstream:
        async with proxying_in({}, {"base_url": upstream.url.replace("http:", "https:")}) as proxy:
            assert "no TLS connection" in await refused(proxy)
        assert not upstream.requests


# Serving TLS ----------------------------------------------------------------------------------------------------------


def issue(authority: trustme.CA, folder: Path, *names: str) -> dict[str, str]:
    """`server.tls` with a certificate for these names, in the same two files each time."""
    made = authority.issue_cert(*names)
    cert, key = folder / "cert.pem", folder / "key.pem"
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    return {"cert": str(cert), "key": str(key)}


def trusting(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


async def test_the_proxy_serves_tls_by_itself(authority: trustme.CA, ca_file: str, tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin) as port:
        upstream = {"gemini": {"base_url": f"https://127.0.0.1:{port}", "ca_file": ca_file}}
        tls = {"tls": issue(authority, tmp_path, "localhost", "127.0.0.1")}
        async with proxying("", server=tls, upstreams=upstream) as proxy:
            url = proxy.url.replace("http:", "https:")
            context = trusting(ca_file)
            async with proxy.client.post(url + STREAM, json={"contents": [{}]}, ssl=context) as response:
                assert response.status == 200
                assert (await response.read()).startswith(b"data: ")
            async with proxy.client.get(url + "/readyz", ssl=context) as response:
                assert response.status == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await proxy.client.get(url + "/readyz")


async def test_a_stream_over_tls_is_cut_visibly_and_a_leaving_client_frees_the_upstream(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    standin = StandIn(KEYS)
    standin.script("*", "cut-rst", times=1)
    standin.script("*", "stall-stream")
    tls = {"tls": issue(authority, tmp_path, "127.0.0.1")}
    async with tls_upstream(authority, standin) as port:
        upstream = {"gemini": {"base_url": f"https://127.0.0.1:{port}", "ca_file": ca_file}}
        async with proxying("", server=tls, upstreams=upstream) as proxy:
            url = proxy.url.replace("http:", "https:")
            async with proxy.client.post(url + STREAM, json={"contents": [{}]}, ssl=trusting(ca_file)) as response:
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
            response = await proxy.client.post(url + STREAM, json={"contents": [{}]}, ssl=trusting(ca_file))
            assert await response.content.readany()
            response.close()
            await standin.wait_for(lambda arrival: arrival.cancelled is not None and arrival.number == 2)


async def test_plain_http_and_silence_on_the_tls_port_are_cut(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    server = {"tls": issue(authority, tmp_path, "127.0.0.1"), "header_timeout": "500ms"}
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server=server) as proxy:
            plain, silent, begun = [await proxy.raw() for _ in range(3)]
            with contextlib.suppress(ConnectionError):
                await plain.send(post_bytes(b"{}"))
                assert b"HTTP/1.1 200" not in await plain.rest()
            await begun.send(b"\x16\x03\x01\x02\x00\x01\x00")
            for raw in (silent, begun):
                with contextlib.suppress(ConnectionError):
                    await raw.rest()
            encrypted = await _encrypted(proxy, ca_file)
            await encrypted.send(b"GET /readyz HTTP/1.1\r\nHost:")
            assert await encrypted.rest() == b""
            for raw in (plain, silent, begun, encrypted):
                raw.close()
        assert not upstream.requests


async def _encrypted(proxy: Proxy, ca_file: str) -> Raw:
    async with asyncio.timeout(WAIT):
        return Raw(*await asyncio.open_connection(*proxy.server.address, ssl=trusting(ca_file)))


async def test_malformed_requests_over_tls_are_refused_in_dialect(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    server = {"tls": issue(authority, tmp_path, "127.0.0.1")}
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with proxying(upstream.url, server=server) as proxy:
            raw = await _encrypted(proxy, ca_file)
            await raw.send(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n")
            whole = await raw.rest()
            assert whole.split()[1] == b"400"
            error_of(whole.partition(b"\r\n\r\n")[2])
            raw.close()


async def test_a_reload_takes_a_replaced_certificate_and_keeps_the_old_one_where_the_new_is_broken(
    authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    tree = {
        "server": {"port": 0, "tls": issue(authority, tmp_path, "127.0.0.1", "first.example")},
        "admin": {"port": 0},
        "upstreams": {"gemini": {"base_url": "http://127.0.0.1:9", "keys": list(KEYS)}},
        "logging": {"level": "error"},
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(tree))
    async with serving_with(parse(file.read_text(), {})) as server, aiohttp.ClientSession() as client:
        proxy = Proxy(server, client)
        assert await _names(proxy, ca_file) == {"127.0.0.1", "first.example"}
        held = await _encrypted(proxy, ca_file)
        issue(authority, tmp_path, "127.0.0.1", "second.example")
        assert reload(server, file, {})
        assert await _names(proxy, ca_file) == {"127.0.0.1", "second.example"}
        (tmp_path / "cert.pem").write_text("half a certificate")
        assert not reload(server, file, {})
        assert await _names(proxy, ca_file) == {"127.0.0.1", "second.example"}
        await held.send(b"GET /healthz HTTP/1.1\r\nHost: p\r\n\r\n")
        assert (await held.answer())[0].startswith(b"HTTP/1.1 200")
        held.close()


async def _names(proxy: Proxy, ca_file: str) -> set[str]:
    """For whom the certificate is that the proxy shows now."""
    raw = await _encrypted(proxy, ca_file)
    shown: dict[str, Any] = raw.writer.get_extra_info("peercert")
    raw.close()
    return {value for _, value in shown["subjectAltName"]}


async def test_a_reload_exchanges_the_way_out(authority: trustme.CA, ca_file: str) -> None:
    standin = StandIn(KEYS)
    async with tls_upstream(authority, standin) as port, tunneling(port) as tunnel:
        upstream = {"base_url": f"https://localhost:{port}", "proxy": "off"}
        async with proxying("", upstreams={"gemini": upstream}, relay={"attempts": 1}) as proxy:
            assert "certificate" in await refused(proxy)
            new = settings("", upstreams={"gemini": upstream | {"ca_file": ca_file, "proxy": tunnel.url}})
            proxy.server.runtime.apply(new)
            async with proxy.post() as response:
                assert response.status == 200
            assert len(tunnel.heads) == 1
