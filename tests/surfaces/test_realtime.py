"""`/v1/realtime`: a WebSocket of the OpenAI surface, between a real client and a real upstream: how it begins, and who may."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from balancer.standin.app import running as standing_in
from balancer.standin.openai.app import OpenAIStandIn
from tests.surfaces.sockets import (
    ANN,
    KEYS,
    MODEL,
    closed,
    dial,
    in_flight,
    proxied,
    refusal,
    settled,
    sockets,
)
from tests.upstream import WAIT, Peer, raw_upstream

# The handshake --------------------------------------------------------------------------------------------------------


async def test_messages_pass_both_ways_as_they_are_and_the_key_goes_up_in_place_of_the_token() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy) as socket:
            for text in ('{"type": "session.update" }', "", "\u4f60\u597d \x00"):
                await socket.send_str(text)
                assert (await socket.receive_str(timeout=WAIT)) == text
            for data in (b"", bytes(range(256)) * 300):
                await socket.send_bytes(data)
                assert (await socket.receive_bytes(timeout=WAIT)) == data
        (request,) = upstream.requests
        assert request.path_qs == "/v1/realtime?model=gpt-realtime"
        assert upstream.keys == [KEYS[0]]
        assert "token-of-ann" not in str(request.raw_headers) + request.path_qs
        await settled(proxy)
        assert await in_flight(proxy) == 0


@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("/v1/realtime?model=gpt-realtime", "/v1/realtime?model=gpt-realtime"),
        ("/openai/v1/realtime?model=openai%2Fgpt-realtime&x=a%20b", "/v1/realtime?model=gpt-realtime&x=a%20b"),
        ("/s/mine/v1/realtime?a=1&model=fast", "/v1/realtime?model=gpt-realtime&a=1"),
        ("/v1/realtime?model=openai/a/b&model=other", "/v1/realtime?model=a%2Fb"),
        ("/v1/realtime?call_id=rtc_1&session_id=s", "/v1/realtime?call_id=rtc_1"),
        ("/v1/realtime?intent=transcription&model=", "/v1/realtime?intent=transcription"),
        ("/v1/realtime", "/v1/realtime"),
    ],
)
async def test_the_query_names_the_model_without_its_provider_and_keeps_the_rest(path: str, arrives: str) -> None:
    async with sockets() as upstream:
        async with proxied(upstream.url, openai={"aliases": {"fast": "gpt-realtime"}}) as proxy, dial(proxy, path):
            assert upstream.requests[0].raw_path == arrives


@pytest.mark.parametrize(
    "shown",
    [
        {"headers": {"api-key": "token-of-bob-2"}},
        {"path": "/openai" + MODEL + "&key=token-of-bob-2"},
        {"path": MODEL + "&api_key=token-of-bob-2"},
        {"path": MODEL + "&session_token=token-of-bob-2"},
        {"protocols": ("realtime", "openai-insecure-api-key.token-of-bob-2", "openai-beta.realtime-v1")},
        {"protocols": ("bearer.token-of-bob-2", "realtime", "openai-project.mine", "openai-organization.ours")},
    ],
)
async def test_a_caller_is_known_by_every_place_and_none_of_them_travels(shown: dict[str, Any]) -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy, **{"headers": {}, **shown}) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str(timeout=WAIT) == "hello"
            assert socket.protocol == ("realtime" if "protocols" in shown else None)
        (request,) = upstream.requests
        seen = request.raw_path + str(request.raw_headers)
        assert not any(word in seen for word in ("bob", "insecure", "bearer.", "openai-project", "openai-organization"))
        assert ("openai-beta.realtime-v1" in seen) == ("openai-beta" in str(shown))


async def test_a_session_token_opens_a_socket_too_and_does_not_travel() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        async with proxy.post("/auth/login", json={"api_key": "token-of-ann-1"}) as answer:
            token = (await answer.json())["token"]
        async with dial(proxy, headers={}, protocols=("realtime", f"openai-insecure-api-key.{token}")) as socket:
            assert socket.protocol == "realtime"
        assert token not in upstream.requests[0].raw_path + str(upstream.requests[0].raw_headers)


async def test_the_client_gets_the_subprotocol_that_the_upstream_chose() -> None:
    async with sockets(protocols=("openai-beta.realtime-v1",)) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy, protocols=("realtime", "openai-beta.realtime-v1")) as socket:
            assert socket.protocol == "openai-beta.realtime-v1"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(("openai-insecure-api-key.token-of-ann-1", "realtime"), "realtime"), (("bearer.token-of-ann-1",), None)],
)
async def test_where_the_upstream_chose_none_it_is_the_first_that_is_no_credential(
    offered: tuple[str, ...], chosen: str | None
) -> None:
    async with sockets(protocols=()) as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy, headers={}, protocols=offered) as socket:
            assert socket.protocol == chosen


async def test_fields_of_the_upstreams_answer_come_down_and_the_beta_field_goes_up() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        async with dial(
            proxy, headers={**ANN, "OpenAI-Beta": "realtime=v1", "OpenAI-Project": "p", "Cookie": "a=b"}
        ) as socket:
            assert socket._response.headers["x-request-id"] == "req_of_upstream"
        sent = upstream.requests[0].headers
        assert sent["OpenAI-Beta"] == "realtime=v1"
        assert "OpenAI-Project" not in sent
        assert "Cookie" not in sent
        assert "Sec-WebSocket-Extensions" not in sent


async def test_compression_is_not_agreed_on() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        async with dial(proxy, compress=15) as socket:
            assert not socket.compress
            await socket.send_str("plain")
            assert await socket.receive_str(timeout=WAIT) == "plain"


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"Upgrade": ""}, "Upgrade"),
        ({"Connection": ""}, "Upgrade"),
        ({"Sec-WebSocket-Version": "8"}, "13"),
        ({"Sec-WebSocket-Key": "c2hvcnQ="}, "16 bytes"),
        ({"Sec-WebSocket-Key": "!"}, "16 bytes"),
    ],
)
async def test_what_is_no_handshake_is_told_to_upgrade(headers: dict[str, str], word: str) -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        status, error, fields = await refusal(proxy, headers={**ANN, **headers})
        assert (status, error["code"], error["type"]) == (426, "upgrade_required", "invalid_request_error")
        assert word in error["message"]
        assert (fields["Upgrade"], fields["Sec-WebSocket-Version"]) == ("websocket", "13")
        assert not upstream.requests


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        (MODEL, {}, 401, "missing_api_key"),
        (MODEL, {"Authorization": "Bearer nobodys"}, 401, "invalid_api_key"),
        (MODEL, {"Sec-WebSocket-Protocol": "realtime, bearer.nobodys"}, 401, "invalid_api_key"),
        ("/v1/realtime?model=gemini/gemini-2.5-flash", ANN, 400, "unsupported_endpoint"),
        ("/v1/realtime?model=openai/gone", ANN, 400, "model_inactive"),
    ],
)
async def test_who_may_not_or_asks_for_what_is_not_there_reaches_no_upstream(
    path: str, headers: dict[str, str], status: int, code: str
) -> None:
    async with sockets() as upstream, proxied(upstream.url, openai={"disabled_models": ["gone"]}) as proxy:
        found, error, _ = await refusal(proxy, path, headers)
        assert (found, error["code"]) == (status, code)
        assert not upstream.requests


async def test_without_an_upstream_of_kind_openai_there_is_no_realtime() -> None:
    async with proxied("http://127.0.0.1:9", kind="gemini") as proxy:
        status, error, _ = await refusal(proxy, "/v1/realtime?intent=transcription")
        assert (status, error["code"]) == (400, "missing_required_parameter")


async def test_a_web_page_of_another_origin_is_refused_where_it_shows_no_token() -> None:
    async with sockets() as upstream, proxied(upstream.url, auth={"tokens": ""}) as proxy:
        status, error, _ = await refusal(proxy, headers={"Origin": "https://evil.example"})
        assert (status, error["code"]) == (403, "origin_not_allowed")
        async with dial(proxy, headers={}) as socket:
            await socket.send_str("local")
            assert await socket.receive_str(timeout=WAIT) == "local"
        assert len(upstream.requests) == 1


# Keys -----------------------------------------------------------------------------------------------------------------

Refused = tuple[int, dict[str, Any], dict[str, str]]
WRONG_KEY: Refused = (401, {"message": "Incorrect API key provided", "code": "invalid_api_key"}, {})
RATE_LIMIT: Refused = (429, {"message": "slow down", "code": "rate_limit_exceeded"}, {"retry-after": "7"})


async def test_a_key_that_the_handshake_is_refused_with_is_disabled_and_the_next_is_asked() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        upstream.refusals[KEYS[0]] = WRONG_KEY
        async with dial(proxy) as socket:
            await socket.send_str("hello")
            assert await socket.receive_str(timeout=WAIT) == "hello"
        assert upstream.keys == list(KEYS)
        async with dial(proxy), dial(proxy):
            assert upstream.keys[2:] == [KEYS[1]] * 2


async def test_all_keys_resting_is_a_429_that_says_until_when() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        upstream.refusals["*"] = RATE_LIMIT
        status, error, headers = await refusal(proxy)
        assert (status, error["code"]) == (429, "keys_resting")
        assert 1 <= int(headers["Retry-After"]) <= 7
        assert upstream.keys == list(KEYS)


async def test_the_upstreams_word_to_the_caller_passes_with_status_and_body() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        told = {"message": f"no such model for {KEYS[0]}", "code": "model_not_found", "param": None}
        upstream.refusals["*"] = (404, told, {"x-request-id": "req_7"})
        status, error, headers = await refusal(proxy)
        assert (status, error["code"], headers["x-request-id"]) == (404, "model_not_found", "req_7")
        assert KEYS[0] not in error["message"]
        assert len(upstream.requests) == 1


async def test_an_upstream_that_fails_is_asked_once_more_and_then_believed() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        upstream.refusals["*"] = (500, {"message": "broken"}, {})
        status, error, _ = await refusal(proxy)
        assert (status, error["message"]) == (500, "broken")
        assert upstream.keys == list(KEYS)


async def test_an_upstream_that_is_not_there_is_a_502() -> None:
    async with proxied("http://127.0.0.1:9", relay={"attempts": 2}) as proxy:
        status, error, _ = await refusal(proxy)
        assert (status, error["code"]) == (502, "upstream_unreachable")


async def test_a_session_stays_with_its_key() -> None:
    async with sockets() as upstream, proxied(upstream.url) as proxy:
        for headers, path in (
            ({"X-Session-Id": "mine"}, MODEL),
            ({}, MODEL + "&session_id=mine"),
            ({}, "/s/mine" + MODEL),
            ({"X-Session-Id": "MINE "}, MODEL),
        ):
            async with dial(proxy, path, headers={**ANN, **headers}):
                pass
        assert len(set(upstream.keys)) == 1
        assert "mine" not in "".join(request.raw_path + str(request.raw_headers) for request in upstream.requests)


async def test_an_alias_of_two_upstreams_goes_to_the_one_that_answers_under_its_own_name() -> None:
    async with sockets() as upstream:
        other = {
            "kind": "openai",
            "base_url": "http://127.0.0.1:9/v1",
            "keys": ["sk-other"],
            "models": ["*"],
            "aliases": {"rt": "theirs"},
        }
        openai = {"aliases": {"rt": "ours"}, "base_url": "http://127.0.0.1:9/v1"}
        second = {**other, "base_url": upstream.url}
        async with proxied("", openai=openai, upstreams={"second": second}, relay={"attempts": 1}) as proxy:
            async with dial(proxy, "/v1/realtime?model=rt"):
                assert upstream.requests[0].raw_path == "/v1/realtime?model=theirs"
                assert upstream.keys == ["sk-other"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm8=\r\n\r\n",
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"what?\r\n\r\n",
    ],
)
async def test_an_upstream_that_opens_no_socket_is_a_502(answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.write(answer)

    async with raw_upstream(script) as upstream, proxied(upstream.url) as proxy:
        status, error, _ = await refusal(proxy)
        assert (status, error["code"]) == (502, "upstream_error")
        assert await in_flight(proxy) == 0


# Real upstreams, real clients, and the way out --------------------------------------------------------------------------


async def test_the_stand_in_converses_with_the_websockets_client() -> None:
    standin = OpenAIStandIn(list(KEYS))
    async with standing_in(standin) as url, proxied(url + "/v1") as proxy:
        address = proxy.url.replace("http:", "ws:") + "/v1/realtime?model=openai/gpt-realtime"
        offers = [Subprotocol("realtime"), Subprotocol("openai-insecure-api-key.token-of-ann-1")]
        async with connect(address, subprotocols=offers, proxy=None, max_size=None) as socket:
            assert socket.subprotocol == "realtime"
            created = json.loads(await socket.recv())
            assert (created["type"], created["session"]["model"]) == ("session.created", "gpt-realtime")
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await socket.send(json.dumps({"type": "response.create", "response": {"metadata": {"bytes": "3000000"}}}))
            async with asyncio.timeout(WAIT):
                events = [json.loads(await socket.recv()) for _ in range(6)]
            assert [event["type"] for event in events][-1] == "response.done"
            assert max(len(event.get("delta", "")) for event in events) == 3_000_000
        await settled(proxy)
        (arrival,) = standin.requests
        assert (arrival.status, arrival.key) == (101, KEYS[0])


async def test_the_calls_that_prepare_a_socket_pass_as_they_are() -> None:
    standin = OpenAIStandIn(list(KEYS))
    async with standing_in(standin) as url, proxied(url + "/v1") as proxy:
        wanted = b'{"session": {"type": "realtime", "model": "openai/gpt-realtime"} }'
        for path in ("client_secrets", "transcription_sessions", "sessions"):
            async with proxy.post(f"/v1/realtime/{path}", json=None, data=wanted, headers=ANN) as answer:
                assert answer.status == 200
                assert b"ek_" in await answer.read()
        sdp = {**ANN, "Content-Type": "application/sdp"}
        async with proxy.post("/v1/realtime/calls", json=None, data=b"v=0\r\n", headers=sdp) as answer:
            assert (answer.status, answer.content_type) == (201, "application/sdp")
            assert "/realtime/calls/rtc_" in answer.headers["Location"]
        assert [arrival.body for arrival in standin.requests] == [wanted] * 3 + [b"v=0\r\n"]


@pytest.mark.parametrize("fault", ["cut-fin", "cut-rst"])
async def test_a_cut_of_the_stand_in_is_a_cut_of_the_client(fault: str) -> None:
    standin = OpenAIStandIn(list(KEYS))
    standin.script("*", fault, after=1)
    async with standing_in(standin) as url, proxied(url + "/v1") as proxy, dial(proxy) as socket:
        assert "session.created" in await socket.receive_str(timeout=WAIT)
        await socket.send_str('{"type": "session.update"}')
        assert await closed(socket) == (1006, "")


async def test_sockets_go_through_the_egress_proxy_and_trust_the_upstreams_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("upstream.invalid").configure_cert(context)
    heads: list[bytes] = []

    async with sockets(tls=context) as upstream:
        port = int(upstream.url.rpartition(":")[2].partition("/")[0])

        async def tunnel(peer: Peer) -> None:
            heads.append(await peer.reader.readuntil(b"\r\n\r\n"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await peer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pump(reader, peer.writer), _pump(peer.reader, writer))

        async with raw_upstream(tunnel) as egress:
            way = {"proxy": egress.url, "ca_file": str(file)}
            async with proxied("https://upstream.invalid/v1", openai=way) as proxy, dial(proxy) as socket:
                await socket.send_str("through")
                assert await socket.receive_str(timeout=WAIT) == "through"
        assert [head.split(b"\r\n")[0] for head in heads] == [b"CONNECT upstream.invalid:443 HTTP/1.1"]
        assert upstream.requests[0].host == "upstream.invalid"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


# Limits, and what is told of it ---------------------------------------------------------------------------------------


async def test_a_socket_counts_as_one_request_and_against_concurrency_while_it_lives() -> None:
    tokens = [{"name": "ann", "token": "token-of-ann-1", "concurrency": 1, "rpm": 2}]
    async with sockets() as upstream, proxied(upstream.url, auth={"tokens": tokens}) as proxy:
        async with dial(proxy) as socket:
            for _ in range(5):
                await socket.send_str("x")
                await socket.receive_str(timeout=WAIT)
            status, error, headers = await refusal(proxy)
            assert (status, error["code"]) == (429, "concurrency_exceeded")
            assert headers["Retry-After"]
            assert headers["x-ratelimit-limit-requests"] == "1"
        await settled(proxy)
        async with dial(proxy):
            pass
        await settled(proxy)
        status, error, _ = await refusal(proxy)
        assert (status, error["code"]) == (429, "rate_limit_exceeded")
        assert len(upstream.requests) == 2


async def test_the_access_line_comes_at_the_end_with_the_bytes_of_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    async with sockets() as upstream, proxied(upstream.url, logging={"level": "info"}) as proxy:
        async with dial(proxy, MODEL + "&api_key=token-of-bob-2") as socket:
            await socket.send_bytes(b"x" * 1000)
            await socket.receive_bytes(timeout=WAIT)
            await socket.send_str("yes")
            await socket.receive_str(timeout=WAIT)
        await settled(proxy)
        proxy.server.runtime.logs.flush()
    lines = [json.loads(line) for line in "".join(capsys.readouterr()).splitlines() if '"request"' in line]
    (line,) = [line for line in lines if line["path"] == "/v1/realtime"]
    assert (line["status"], line["bytes_in"], line["bytes_out"]) == (101, 1003, 1003)
    assert (line["client"], line["upstream"], line["model"]) == ("ann", "openai", "gpt-realtime")
    assert "error" not in line
    assert not any(key in str(lines) for key in (*KEYS, "token-of"))
