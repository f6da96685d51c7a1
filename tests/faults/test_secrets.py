"""Keys and tokens are marked, everything that can happen happens, and then the marks are looked for everywhere.

Everywhere: log lines of level debug, both outputs of the process, heads and bodies of answers, metrics, what the admin
listener says, and, for what clients present, the requests that upstreams get.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from balancer.errors import ProxyError
from balancer.model import Client
from balancer.server import reload
from balancer.standin.app import StandIn, running
from balancer.standin.faults import NAMES
from tests.proxy import GENERATE, STREAM, Proxy, Raw, post_bytes, proxying
from tests.upstream import Peer, Seen, raw_upstream, serving

KEY_MARK, TOKEN_MARK, WRONG_MARK, OTHER_MARK = "pOoLkEy", "cLiEnTtOkEn", "wRoNgToKeN", "oThErSeCrEt"
KEYS = (
    f"AIzaSy{KEY_MARK}0123456789012345678901234",
    f"AQ.Ab8RN6{KEY_MARK}-_0123456789012345678901234567",
    f"{KEY_MARK}/with+odd=\"chars'&<b>\\%41",
    f"k-{KEY_MARK}",
)
TOKENS = (f"{TOKEN_MARK}-one-0123456789", f"{TOKEN_MARK}/two+odd=&chars%41")
WRONG = f"{WRONG_MARK}-0123456789-abcdef"
SECRET, ADMIN, HEADER, PASSWORD = (f"{OTHER_MARK}-{name}-0123456789" for name in ("sign", "admin", "header", "pass"))
HELLO = b'{"contents":[{"parts":[{"text":"hello"}]}]}'
PLACES = ("Authorization", "X-Session-Token", "x-goog-api-key", "x-api-key", "api-key")


def spellings(mark: str) -> Iterator[bytes]:
    """The mark as it would show in text, and in the base64 of any text around it."""
    yield mark.encode()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + mark.encode())
        yield coded[4 if shift else 0 : -4]


class Seeker:
    """Keeps what came out of the proxy, by where it came out."""

    def __init__(self) -> None:
        self.found: list[tuple[str, bytes]] = []

    def take(self, where: str, data: bytes) -> None:
        texts = [data]
        head, _, body = data.partition(b"\r\n\r\n")
        if b"content-encoding: gzip" in head.lower():
            texts.append(zlib.decompressobj(31).decompress(_unchunked(head, body)))
        self.found += [(where, text) for text in texts]

    def nothing_of(self, *marks: str) -> None:
        leaks = [
            (where, text[max(0, at - 200) : at + 100])
            for where, text in self.found
            for mark in marks
            for spelling in spellings(mark)
            if (at := text.find(spelling)) >= 0
        ]
        assert not leaks


def _unchunked(head: bytes, body: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


@dataclasses.dataclass
class Watched:
    """A proxy of which everything that it says is kept."""

    proxy: Proxy
    seeker: Seeker
    log: Path

    async def send(self, where: str, request: bytes) -> bytes:
        """Everything that comes back for these bytes."""
        raw = await self.proxy.raw()
        return await self._exchange(where, raw, request)

    async def ask_admin(self, where: str, *lines: str) -> bytes:
        assert self.proxy.server.admin_address is not None
        raw = Raw(*await asyncio.open_connection(*self.proxy.server.admin_address))
        request = "\r\n".join([*lines, "Host: localhost", "Connection: close"]).encode() + b"\r\n\r\n"
        return await self._exchange(where, raw, request)

    async def _exchange(self, where: str, raw: Raw, request: bytes) -> bytes:
        whole = b""
        try:
            await raw.send(request)
            while data := await raw.reader.read(65536):
                whole += data
        except ConnectionError:
            pass  # cut: what had come counts all the same
        finally:
            raw.close()
        self.seeker.take(where, whole)
        return whole

    async def call(self, where: str, path: str = GENERATE, token: str = TOKENS[0], *headers: str) -> bytes:
        request = post_bytes(HELLO, path, "Connection: close", *headers)
        return await self.send(where, request.replace(b": any", b": " + token.encode(), 1))


@asynccontextmanager
async def watched(upstream: str, folder: Path, **overrides: Any) -> AsyncIterator[Watched]:
    """A proxy with marked secrets whose log is read when it has ended."""
    seeker, log = Seeker(), folder / "balancer.log"
    sections: dict[str, Any] = {
        "server": {"secret": SECRET},
        "admin": {"token": ADMIN},
        "auth": {"tokens": [{"name": "one", "token": TOKENS[0]}, {"name": "two", "token": TOKENS[1]}]},
        "relay": {"max_wait": "0s", "timeouts": {"first_byte": "300ms", "idle": "300ms"}},
        "upstreams": {"gemini": {"headers": {"X-Auth-Extra": HEADER}}},
        "logging": {"level": "debug", "file": str(log)},
    }
    async with proxying(upstream, KEYS, **(sections | overrides)) as proxy:
        yield Watched(proxy, seeker, log)
        whole = await proxy_pages(Watched(proxy, seeker, log))
        assert b"fingerprint" in whole
    lines = log.read_bytes()
    assert lines.count(b"\n") > 0
    for line in lines.splitlines():
        json.loads(line)
        seeker.take("log", line)


async def proxy_pages(watched: Watched) -> bytes:
    """The pages of the operators, rightly and wrongly asked for."""
    whole = b""
    for path in ("/api/keys", "/metrics", "/no-such-page"):
        for token in (ADMIN, WRONG, TOKENS[0], KEYS[0]):
            whole += await watched.ask_admin(f"admin {path}", f"GET {path} HTTP/1.1", f"x-api-key: {token}")
            whole += await watched.ask_admin(f"admin {path}", f"GET {path}?key={quote(token)} HTTP/1.1")
    whole += await watched.ask_admin("admin malformed", f"GET /api/keys?key={ADMIN} HTTP/1.1", f"X-Y : {ADMIN}")
    return whole


@contextmanager
def outputs(capfd: pytest.CaptureFixture[str], seeker: Callable[[], Seeker]) -> Iterator[None]:
    yield
    for name, text in zip(("stdout", "stderr"), capfd.readouterr(), strict=True):
        seeker().take(name, text.encode())


ALL = (KEY_MARK, TOKEN_MARK, WRONG_MARK, OTHER_MARK)


def assert_upstream_saw_no_client_secret(standin: StandIn) -> None:
    """And of pool keys only the one field they belong in."""
    assert standin.requests
    for arrival in standin.requests:
        fields = [(name.lower(), value) for name, value in arrival.headers]
        named = [value for name, value in fields if name == "x-goog-api-key"]
        assert named == [arrival.key]
        rest = repr([arrival.target, arrival.body, [field for field in fields if field[0] != "x-goog-api-key"]])
        for mark in (TOKEN_MARK, WRONG_MARK, KEY_MARK):
            assert mark not in rest
        assert SECRET not in rest
        assert ADMIN not in rest


SLOW = frozenset({"drip", "gzip-bomb"})


@pytest.mark.parametrize(("path", "times"), [(GENERATE, None), (STREAM, 1)], ids=["all keys", "one key, a stream"])
async def test_no_fault_of_an_upstream_brings_a_secret_to_light(
    path: str, times: int | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, watched(url, tmp_path) as proxy:
        whole = await proxy.call("good", path)
        assert whole.startswith(b"HTTP/1.1 200")
        for name in sorted(NAMES - SLOW):
            proxy.proxy.server.runtime.apply(_fresh(proxy.proxy))
            standin.clear()
            fault = standin.script("*", name, times=times, size=20_000, data=_junk(name))
            await proxy.call(name, path)
            fault.open()
        standin.clear()
    with outputs(capfd, lambda: proxy.seeker):
        pass
    proxy.seeker.nothing_of(*ALL)
    assert_upstream_saw_no_client_secret(standin)


def _fresh(proxy: Proxy) -> Any:
    """The same settings; and pools without rests, so that each fault meets every key."""
    runtime = proxy.server.runtime
    runtime.rooms = dataclasses.replace(runtime.rooms, upstreams={})
    return runtime.settings


def _junk(name: str) -> bytes:
    return b"/elsewhere" if name == "redirect" else b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\n\r\n"


def coded(key: str) -> dict[str, tuple[str, tuple[str, ...], bytes]]:
    """Error answers that tell a key: status line, more fields, body."""
    said = json.dumps({"error": {"code": 400, "message": f"api_key:{key} is bad", "status": "X"}}).encode()
    url = f'{{"url": "https://h/v1?key={quote(key, safe="")}&x=y"}}'.encode()
    return {
        "in JSON": ("400 Bad Request", (), said),
        "of a server": ("500 Internal Server Error", (), said),
        "of a dead key": ("401 Unauthorized", (), said),
        "of a limit": ("429 Too Many Requests", (), said),
        "in a URL": ("404 Not Found", (), url),
        "in plain text": ("403 Forbidden", (), f"no: {key}!".encode()),
        "in bytes around": ("400 Bad Request", (), b"\xff\xfe" + key.encode() + b"\x80"),
        "in gzip": ("400 Bad Request", ("Content-Encoding: gzip",), gzip.compress(said)),
        "in deflate": ("400 Bad Request", ("Content-Encoding: deflate",), zlib.compress(said)),
        "in an unknown coding": ("400 Bad Request", ("Content-Encoding: br",), said),
        "in two codings": ("400 Bad Request", ("Content-Encoding: gzip, gzip",), gzip.compress(gzip.compress(said))),
        "in a coding that is a lie": ("400 Bad Request", ("Content-Encoding: gzip",), said),
        "in a large body": ("400 Bad Request", (), said.ljust(900_000) + said),
        "in a body that is too large": ("400 Bad Request", (), said.ljust(1_200_000) + said),
    }


@pytest.mark.parametrize("number", range(len(KEYS)))
@pytest.mark.parametrize("case", coded(""))
async def test_a_key_in_an_error_answer_does_not_reach_the_client(number: int, case: str, tmp_path: Path) -> None:
    status, fields, body = coded(KEYS[number])[case]
    async with raw_upstream(serving(lambda peer, seen: peer.answer(body, status, fields))) as upstream:
        async with watched(upstream.url, tmp_path) as proxy:
            whole = await proxy.call(case)
            assert int(whole.split()[1]) >= 400
        proxy.seeker.nothing_of(*ALL)


@pytest.mark.parametrize("place", ["a field", "a field of a coded body", "the reason"])
async def test_a_key_in_the_head_of_an_error_answer_does_not_reach_the_client(place: str, tmp_path: Path) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        key = seen.get("x-goog-api-key") or ""
        reason = f"Bad {key}" if place == "the reason" else "Bad Request"
        fields = [] if place == "the reason" else [f"X-Debug-Info: consumer api_key:{key}"]
        if place == "a field of a coded body":
            fields.append("Content-Encoding: gzip")
        await peer.answer(gzip.compress(b"{}") if "coded" in place else b"{}", f"400 {reason}", tuple(fields))

    async with raw_upstream(serving(answer)) as upstream, watched(upstream.url, tmp_path) as proxy:
        whole = await proxy.call(place)
        assert whole.startswith(b"HTTP/1.1 400")
    proxy.seeker.nothing_of(*ALL)


async def test_no_way_of_showing_a_token_brings_it_to_light(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    standin = StandIn(KEYS)
    async with running(standin) as url, watched(url, tmp_path) as proxy:
        for token in (*TOKENS, WRONG, KEYS[0]):
            bare = post_bytes(HELLO, GENERATE, "Connection: close")
            for place in PLACES:
                shown = [f"{place}: {token}"]
                if place == "Authorization":
                    shown += [f"{place}: {scheme} {token}" for scheme in ("Bearer", "Basic", "Token", "Odd")]
                for line in shown:
                    await proxy.send(line.partition(":")[0], bare.replace(b"x-goog-api-key: any", line.encode(), 1))
            bare = bare.replace(b"x-goog-api-key: any\r\n", b"")
            for name in ("session_token", "key", "api_key", "%6bey"):
                target = f"{GENERATE}?{name}={quote(token)}&alt=json"
                for path in (target, target.replace("?", "/extra?", 1), f"/v1/models?{name}={quote(token)}"):
                    await proxy.send(name, bare.replace(GENERATE.encode(), path.encode(), 1))
                await proxy.send(name, f"GET /no-such-page?{name}={quote(token)} HTTP/1.0\r\n\r\n".encode())
    with outputs(capfd, lambda: proxy.seeker):
        pass
    proxy.seeker.nothing_of(*ALL)
    assert_upstream_saw_no_client_secret(standin)


MALFORMED: dict[str, str] = {
    "a blank before the colon": "GET /v1beta/models HTTP/1.1\r\nHost: h\r\nx-goog-api-key : {}\r\n\r\n",
    "a NUL": "GET /v1beta/models HTTP/1.1\r\nHost: h\r\nx-goog-api-key: {}\x00\r\n\r\n",
    "a folded line": "GET /v1beta/models HTTP/1.1\r\nHost: h\r\nx-goog-api-key:\r\n {}\r\n\r\n",
    "a bad target": "GET v1beta/models?key={} HTTP/1.1\r\nHost: h\r\n\r\n",
    "a bad authority": "GET http://user:{}@[/v1beta/models HTTP/1.1\r\nHost: h\r\n\r\n",
    "a bad version": "GET /v1beta/models?key={} HTTP/9.9\r\nHost: h\r\n\r\n",
    "a bad method": "{} /v1beta/models HTTP/1.1\r\nHost: h\r\n\r\n",
    "a long field": "GET /v1beta/models HTTP/1.1\r\nHost: h\r\nx-goog-api-key: {0}" + "a" * 40_000 + "{0}\r\n\r\n",
    "two lengths": "POST /v1beta/models?key={} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "two agents": "GET /v1beta/models HTTP/1.1\r\nHost: h\r\nUser-Agent: {0}\r\nUser-Agent : {0}\r\n\r\n",
    "a bad chunk": "POST {1} HTTP/1.1\r\nHost: h\r\nx-goog-api-key: {0}\r\nTransfer-Encoding: chunked\r\n\r\n{0}\r\n",
    "a bad expectation": "POST {1} HTTP/1.1\r\nHost: h\r\nx-goog-api-key: {0}\r\nExpect: {0}\r\nContent-Length: 1\r\n"
    "Connection: close\r\n\r\n",
    "a bad coding": "POST {1} HTTP/1.1\r\nHost: h\r\nAuthorization: {0}\r\nTransfer-Encoding: {0}\r\n\r\n",
    "the wrong protocol": "\x16\x03\x01{0}\r\n\r\n",
    "an unfinished head": "GET /v1beta/models?key={0} HTTP/1.1\r\nx-goog-api-key: {0}",
    "a body too large": "POST {1}?key={0} HTTP/1.1\r\nContent-Length: 999999999999\r\nConnection: close\r\n\r\n{0}",
}


async def test_no_malformed_request_brings_a_secret_to_light(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    standin = StandIn(KEYS)
    quick = {"secret": SECRET, "header_timeout": "300ms", "body_idle_timeout": "200ms"}
    async with running(standin) as url, watched(url, tmp_path, server=quick) as proxy:
        sent = [
            proxy.send(case, text.format(token, GENERATE).encode("latin-1"))
            for case, text in MALFORMED.items()
            for token in (TOKENS[0], WRONG, KEYS[0])
        ]
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*sent)
        assert not any(answer.split()[1] in (b"200", b"500") for answer in answers if answer)
        assert not standin.requests
    with outputs(capfd, lambda: proxy.seeker):
        pass
    proxy.seeker.nothing_of(*ALL)


class Broken:
    """A surface with a bug whose exception tells everything."""

    name = "broken"

    def claims(self, request: web.Request) -> bool:
        return request.path == "/broken"

    def recognise(self, request: web.Request) -> Client | None:
        return None

    def allowed_origins(self) -> tuple[str, ...]:
        return ()

    def refuse(self, error: ProxyError, request: web.BaseRequest | None = None) -> web.Response:
        return web.json_response({"error": error.message}, status=error.status)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            raise ValueError(f"no use for {request.raw_path} with {dict(request.headers)}")
        except ValueError as error:
            raise RuntimeError(f"key {KEYS[1]!r}, {[ADMIN, SECRET.encode(), TOKENS[1]]}, {quote(KEYS[2])}") from error


async def test_no_bug_of_ours_brings_a_secret_to_light(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with raw_upstream(serving(lambda peer, seen: peer.answer())) as upstream:
        async with watched(upstream.url, tmp_path) as proxy:
            runtime = proxy.proxy.server.runtime
            runtime.surfaces = (Broken(), *runtime.surfaces)
            whole = await proxy.call("a bug", f"/broken?key={TOKENS[0]}", TOKENS[0], f"X-Echo: {KEYS[0]}")
            assert whole.startswith(b"HTTP/1.1 500")
            runtime.rooms = dataclasses.replace(runtime.rooms, upstreams={})
            whole = await proxy.call("another bug")
            assert whole.startswith(b"HTTP/1.1 500")
            assert b"Traceback" not in whole
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": f"lost {KEYS[0]}", "exception": ValueError(TOKENS[0])})
            runtime.apply(runtime.settings)
    with outputs(capfd, lambda: proxy.seeker):
        pass
    assert b"RuntimeError" in proxy.log.read_bytes()
    proxy.seeker.nothing_of(*ALL)


BAD_FILES: dict[str, str] = {
    "a key too many": '{{"upstreams": {{"gemini": {{"keys": ["{0}", "{0}"]}}}}}}',
    "a key in two": '{{"upstreams": {{"gemini": {{"keys": ["{0} and more"]}}}}}}',
    "a key as a name": '{{"upstreams": {{"gemini": {{"{0}": 1}}}}}}',
    "a key as a section": '{{"{0}": {{"{0}": 1}}}}',
    "a key as a model": '{{"upstreams": {{"gemini": {{"keys": "{0}", "models": 7, "weight": "{0}"}}}}}}',
    "a token too many": '{{"auth": {{"tokens": "a={0},b={0}"}}}}',
    "a token that is none": '{{"auth": {{"tokens": [{{"token": "bal_{0}"}}]}}}}',
    "a password": '{{"upstreams": {{"gemini": {{"proxy": "ftp://u:{0}@h:1"}}}}}}',
    "no YAML": "upstreams: {{gemini: {{keys: [{0}",
    "no YAML at all": "{0}: : :\n\t{0}",
    "no mapping": "- {0}",
    "a list of it": '{{"upstreams": ["{0}"]}}',
    "an environment that is not there": '{{"upstreams": {{"gemini": {{"keys": "${{{0}:?}}"}}}}}}',
}


async def test_no_bad_file_brings_a_secret_to_light(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    standin = StandIn(KEYS)
    file = tmp_path / "new.yaml"
    new = f"{WRONG_MARK}newKeyOfThePool0123456789"
    async with running(standin) as url, watched(url, tmp_path) as proxy:
        for text in BAD_FILES.values():
            for key in (new, KEYS[0]):
                file.write_text(text.format(key))
                assert not reload(proxy.proxy.server, file, {})
                assert (await proxy.call("after a bad file")).startswith(b"HTTP/1.1 200")
    with outputs(capfd, lambda: proxy.seeker):
        pass
    assert b"not reloaded" in proxy.log.read_bytes()
    proxy.seeker.nothing_of(*ALL)


async def test_keys_that_a_reload_brings_are_masked_from_then_on(tmp_path: Path) -> None:
    added = f"an-added-{KEY_MARK}-key"

    async def answer(peer: Peer, seen: Seen) -> None:
        await peer.answer(f"no {added}".encode(), "400 Bad Request")

    async with raw_upstream(serving(answer)) as upstream, watched(upstream.url, tmp_path) as proxy:
        tree = {
            "server": {"port": 0},
            "admin": {"port": 0, "token": ADMIN},
            "upstreams": {"gemini": {"base_url": upstream.url, "keys": added}},
            "logging": {"level": "debug", "file": str(proxy.log), "format": "json"},
        }
        file = tmp_path / "new.yaml"
        file.write_text(json.dumps(tree))
        assert reload(proxy.proxy.server, file, {})
        whole = await proxy.call("after the reload", token="any")
        assert b"no [key:" in whole
    proxy.seeker.nothing_of(*ALL)


async def test_the_password_of_an_egress_proxy_stays_here(tmp_path: Path) -> None:
    upstreams = {"gemini": {"proxy": f"http://user:{PASSWORD}@127.0.0.1:9", "headers": {"X-Auth-Extra": HEADER}}}
    async with watched("https://upstream.invalid", tmp_path, upstreams=upstreams, relay={"attempts": 1}) as proxy:
        assert (await proxy.call("no proxy")).startswith(b"HTTP/1.1 502")
    proxy.seeker.nothing_of(*ALL)


async def test_keys_show_as_fingerprints_where_they_show(tmp_path: Path) -> None:
    standin = StandIn(KEYS)
    standin.script("*", "key-leaked")
    async with running(standin) as url, watched(url, tmp_path) as proxy:
        whole = await proxy.call("leaked")
        assert whole.startswith(b"HTTP/1.1 503")
        shown = [key["fingerprint"].encode() for key in _told(await proxy.ask_admin("keys", *_AS_OPERATOR))]
        assert len(shown) == len(KEYS)
    log = proxy.log.read_bytes()
    for fingerprint in shown:
        assert fingerprint in whole
        assert fingerprint in log
    assert log.count(b"key leaked") == len(KEYS)
    proxy.seeker.nothing_of(*ALL)


_AS_OPERATOR = ("GET /api/keys HTTP/1.1", f"x-api-key: {ADMIN}")


def _told(whole: bytes) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(whole.partition(b"\r\n\r\n")[2])["upstreams"][0]["keys"]
    return keys
