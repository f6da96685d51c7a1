"""Uploads: addresses that come back to us, chunks that carry nothing but them, and files that land together."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest
import trustme

from balancer.standin.app import StandIn
from balancer.standin.app import running as standing_in
from tests.fakes import FakeClock
from tests.proxy import KEYS, proxying
from tests.surfaces.calls import ANN, BOB, EVE, FILES, TOKENS, Caller, World, caller, elsewhere, moved, restarted, world
from tests.upstream import Peer, Seen, raw_upstream, serving

CHUNK = 8 << 20
SECRETS = (*KEYS, ANN, BOB, EVE)


async def begin(client: Caller, size: int | None = None) -> str:
    """Start an upload: its address."""
    begun = await client.start(size=size)
    assert begun.status == 200, begun.body
    assert begun.headers["X-Goog-Upload-Status"] == "active"
    return begun.headers["X-Goog-Upload-URL"]


async def content(client: Caller, name: str) -> bytes:
    answer = await client.get(f"{name}:download?alt=media")
    assert answer.status == 200, answer.body
    return answer.body


def spread(here: World, names: list[str]) -> set[str]:
    return {here.key_of(name) for name in names}


# Addresses


async def test_an_upload_goes_up_through_us_and_down_again() -> None:
    async with world() as here:
        url = await begin(here.ann, 9)
        assert url.startswith(here.proxy.url + FILES + "?")
        ended = await here.ann.chunk(url, b"some text")
        assert ended.headers["X-Goog-Upload-Status"] == "final"
        file = ended.json["file"]
        assert file["uri"] == f"https://generativelanguage.googleapis.com/v1beta/{file['name']}"
        assert await content(here.ann, file["name"]) == b"some text"


async def test_every_address_of_the_start_s_answer_is_ours() -> None:
    async with world() as here:
        begun = await here.ann.start()
        for name in ("X-Goog-Upload-URL", "X-Goog-Upload-Control-URL"):
            assert begun.headers[name].startswith(here.proxy.url)
        assert begun.headers["X-Goog-Upload-Chunk-Granularity"] == str(CHUNK)
        assert not any(here.url in value for value in begun.headers.values())


@pytest.mark.parametrize("prefix", ["/gemini", "/s/x", "/s/x/gemini", "/gemini/s/x"])
async def test_a_path_prefix_of_the_client_is_in_the_address_and_may_be_left_out_of_it(prefix: str) -> None:
    async with world() as here:
        client = here.ann.below(prefix)
        url = await begin(client)
        assert url.startswith(f"{here.proxy.url}{prefix}{FILES}?")
        assert (await client.chunk(url, b"some ", "upload")).status == 200
        assert (await client.chunk(url.replace(prefix, "", 1), b"text", offset=5)).status == 200
        assert all(arrival.path == FILES for arrival in here.standin.requests)


async def test_the_address_has_the_host_that_the_client_used() -> None:
    async with world() as here:
        begun = await here.ann.start(headers={"Host": "proxy.internal:8443"})
        assert begun.headers["X-Goog-Upload-URL"].startswith("http://proxy.internal:8443/upload/")


async def test_forwarded_fields_count_from_trusted_proxies_only() -> None:
    forwarded = {"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "api.example.com", "Host": "inside:80"}
    for trusted, expected in (("127.0.0.0/8", "https://api.example.com/"), ("10.0.0.0/8", "http://inside:80/")):
        async with world(server={"trusted_proxies": [trusted]}) as here:
            begun = await here.ann.start(headers=forwarded)
            assert begun.headers["X-Goog-Upload-URL"].startswith(expected)
            assert (await here.ann.chunk(moved(begun.headers["X-Goog-Upload-URL"], here.proxy), b"x")).status == 200


async def test_the_public_url_counts_before_everything_and_may_have_a_path() -> None:
    async with world(server={"public_url": "https://llm.example.com/api/"}) as here:
        begun = await here.ann.below("/s/x").start(headers={"X-Forwarded-Host": "elsewhere"})
        url = begun.headers["X-Goog-Upload-URL"]
        assert url.startswith("https://llm.example.com/api/s/x/upload/v1beta/files?")
        proxied = url.replace("https://llm.example.com/api", here.proxy.url)  # as the proxy in front turns it
        assert (await here.ann.chunk(proxied, b"x")).status == 200


async def test_over_tls_the_address_says_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    issued.cert_chain_pems[0].write_to_path(cert)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = {"tls": {"cert": str(cert), "key": str(key)}}
    async with (
        world(server=tls) as here,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http,
    ):
        base = here.proxy.url.replace("http:", "https:")
        client = Caller(http, base, ANN)
        url = await begin(client)
        assert url.startswith(f"{base}/upload/")
        assert (await client.chunk(url, b"x")).status == 200


async def test_an_upstream_below_a_path_is_called_there_and_the_path_stays_out_of_our_addresses() -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if "upload_id" in seen.line:
            await peer.answer(b'{"file": {"name": "files/a"}}', headers=("X-Goog-Upload-Status: final",))
        else:
            url = f"X-Goog-Upload-URL: {peer.upstream.url}/some/base/upload/v1beta/files?upload_id=u1"
            await peer.answer(b"", headers=("X-Goog-Upload-Status: active", url))

    async with raw_upstream(serving(answer)) as upstream, proxying(f"{upstream.url}/some/base/") as proxy:
        client = caller(proxy)
        url = await begin(client)
        assert url.startswith(f"{proxy.url}/upload/v1beta/files?upload_id=u1&")
        assert (await client.chunk(url, b"x")).status == 200
        assert [seen.line for seen in upstream.requests] == [
            "POST /some/base/upload/v1beta/files HTTP/1.1",
            "POST /some/base/upload/v1beta/files?upload_id=u1 HTTP/1.1",
        ]


async def test_neither_keys_nor_tokens_stand_in_an_address_and_nothing_of_ours_reaches_the_upstream() -> None:
    async with world() as here:
        begun = await here.ann.call(
            "POST", FILES + f"?key={ANN}&session_id=s&x=1", {}, {"X-Goog-Upload-Protocol": "resumable"}
        )
        assert begun.status == 200
        url = begun.headers["X-Goog-Upload-URL"]
        assert (await here.ann.chunk(url, b"a", "upload")).status == 200
        assert (await here.ann.chunk(f"{url}&key={ANN}", b"b", offset=1)).status == 200
        for text in (url, *(arrival.target for arrival in here.standin.requests)):
            assert not any(secret in text for secret in SECRETS)
            assert "session_id" not in text
        assert here.standin.requests[0].target == FILES + "?x=1"
        for arrival in here.standin.requests:
            assert "balancer" not in arrival.target
            assert arrival.header("x-goog-api-key") in KEYS
            assert not any(token in value for _, value in arrival.headers for token in (ANN, BOB))


# Chunks and their credential


async def test_chunks_need_no_credential_and_go_to_the_upload_s_own_key() -> None:
    async with world() as here:
        urls = [await begin(client) for client in (here.ann.within("1"), here.bob, here.ann.within("2"))]
        for url in urls:
            assert (await here.ann.chunk(url, b"some ", "upload")).status == 200
        for url in urls:
            assert (await here.ann.chunk(url, b"text", offset=5)).status == 200
        starts, first, second = here.keys()[:3], here.keys()[3:6], here.keys()[6:]
        assert sorted(key or "" for key in starts) == sorted(KEYS)
        assert starts == first == second
        assert [arrival.header("x-goog-api-key") for arrival in here.standin.requests] == here.keys()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-goog-api-key": ANN},
        {"x-goog-api-key": BOB},
        {"x-goog-api-key": "nonsense"},
        {"Authorization": "Bearer no"},
    ],
)
async def test_what_else_a_chunk_brings_along_makes_no_difference(headers: dict[str, str]) -> None:
    async with world() as here:
        url = await begin(here.ann)
        ended = await here.ann.send("POST", url, {"X-Goog-Upload-Command": "upload, finalize", **headers}, b"x")
        assert ended.status == 200
        assert (await here.ann.get(ended.json["file"]["name"])).status == 200
        assert (await here.bob.get(ended.json["file"]["name"])).status == 404


def spoil(url: str, how: str) -> str:
    head, _, grant = url.partition("&balancer=")
    owner, client, signature = grant.split(".")
    match how:
        case "another upload":
            return url.replace("upload_id=", "upload_id=x")
        case "another target":
            return url.replace("/files?", "/fileSearchStores/s:uploadToFileSearchStore?")
        case "a member more":
            return url + "&extra=1"
        case "no signature":
            return f"{head}&balancer={owner}.{client}."
        case "another signature":
            return f"{head}&balancer={owner}.{client}.{signature[::-1]}"
        case "another owner":
            return f"{head}&balancer={client}.{client}.{signature}"
        case "no grant":
            return head
        case _:
            return f"{head}&balancer=nonsense"


HOW = (
    "another upload",
    "another target",
    "a member more",
    "no signature",
    "another signature",
    "another owner",
    "no grant",
    "nonsense",
)


@pytest.mark.parametrize("how", HOW)
async def test_an_address_that_does_not_hold_is_a_404_that_ends_the_upload_and_reaches_no_upstream(how: str) -> None:
    async with world() as here:
        url = await begin(here.ann)
        before = len(here.standin.requests)
        refused = await here.ann.send(
            "POST", spoil(url, how), {"X-Goog-Upload-Command": "upload, finalize", "x-goog-api-key": ANN}, b"x"
        )
        assert refused.status == 404
        assert refused.error["status"] == "NOT_FOUND"
        assert refused.headers["X-Goog-Upload-Status"] == "cancelled"
        assert len(here.standin.requests) == before
        assert (await here.ann.chunk(url, b"x")).status == 200


async def test_the_address_of_a_client_that_is_no_more_does_not_hold() -> None:
    async with world() as here:
        url = await begin(here.ann)
        async with restarted(here, auth={"tokens": f"bob={BOB}"}) as there:
            refused = await there.bob.chunk(moved(url, there.proxy), b"x")
            assert (refused.status, refused.headers["X-Goog-Upload-Status"]) == (404, "cancelled")
        assert len(here.standin.requests) == 1


async def test_an_address_signed_with_another_secret_does_not_hold() -> None:
    async with world(server={"secret": "one-secret-of-ours-0001"}) as here:
        url = await begin(here.ann)
        async with restarted(here, server={"secret": "one-secret-of-ours-0002"}) as there:
            refused = await there.ann.chunk(moved(url, there.proxy), b"x")
            assert (refused.status, refused.headers["X-Goog-Upload-Status"]) == (404, "cancelled")


async def test_an_upload_survives_a_restart_of_the_proxy() -> None:
    standin = StandIn(KEYS)
    async with standing_in(standin) as upstream:
        url = ""
        for number in range(3):
            async with proxying(upstream, auth={"tokens": TOKENS}) as proxy:
                client = caller(proxy, ANN)
                url = moved(url, proxy) if url else await begin(client, 9)
                last = number == 2
                answer = await client.chunk(url, b"abc", "upload, finalize" if last else "upload", 3 * number)
                assert answer.status == 200, answer.body
                if last:
                    name = answer.json["file"]["name"]
                    assert await content(client, name) == b"abcabcabc"
                    assert (await caller(proxy, BOB).get(name)).status == 404
        assert len({arrival.key for arrival in standin.requests}) == 1


async def test_a_chunk_may_reach_any_replica_with_the_same_configuration() -> None:
    async with world() as here, restarted(here, keys=KEYS[::-1]) as there:
        url = await begin(here.ann, 6)
        assert (await here.ann.chunk(url, b"abc", "upload")).status == 200
        ended = await there.ann.chunk(moved(url, there.proxy), b"def", offset=3)
        assert ended.status == 200
        assert await content(there.ann, ended.json["file"]["name"]) == b"abcdef"


async def test_replicas_with_different_keys_share_a_secret() -> None:
    secret = {"secret": "one-secret-of-ours-0001"}
    async with world(server=secret, keys=KEYS[:2]) as here, restarted(here, server=secret, keys=KEYS[:1]) as there:
        url = await begin(here.ann)
        assert here.keys() == [KEYS[0]]
        assert (await there.ann.chunk(moved(url, there.proxy), b"x")).status == 200
        gone = await begin(here.bob)
        assert here.keys()[-1] == KEYS[1]
        refused = await there.ann.chunk(moved(gone, there.proxy), b"x")
        assert refused.status == 503
        assert "not configured" in refused.error["message"]
        assert refused.headers["X-Goog-Upload-Status"] == "cancelled"


# The protocol


async def test_chunks_of_eight_mebibytes_arrive_as_they_were_sent() -> None:
    data = bytes(range(256)) * (20 << 12)  # 20 MiB
    async with world() as here:
        url = await begin(here.ann, len(data))
        name = ""
        for offset in range(0, len(data), CHUNK):
            last = offset + CHUNK >= len(data)
            answer = await here.ann.chunk(
                url, data[offset : offset + CHUNK], "upload, finalize" if last else "upload", offset
            )
            assert answer.headers["X-Goog-Upload-Status"] == ("final" if last else "active")
            name = answer.json["file"]["name"] if last else ""
        chunks = here.asked("upload_id=")
        assert [arrival.size for arrival in chunks] == [CHUNK, CHUNK, len(data) - 2 * CHUNK]
        assert all(arrival.header("content-length") == str(arrival.size) for arrival in chunks)
        assert [arrival.header("x-goog-upload-offset") for arrival in chunks] == ["0", str(CHUNK), str(2 * CHUNK)]
        back = await content(here.ann, name)
        assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()


async def test_a_chunk_is_passed_on_while_it_still_arrives() -> None:
    async with world() as here:
        url = await begin(here.ann)
        gate = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"a" * 100_000
            await gate.wait()
            yield b"b"

        sending = asyncio.create_task(here.ann.chunk(url, slowly()))
        await here.standin.wait_for(lambda arrival: arrival.size >= 100_000)
        gate.set()
        assert (await sending).json["file"]["sizeBytes"] == "100001"


async def test_an_empty_file_is_one_empty_chunk() -> None:
    async with world() as here:
        name = await here.ann.upload(b"")
        assert await content(here.ann, name) == b""


async def test_a_finalize_without_bytes_ends_an_upload() -> None:
    async with world() as here:
        url = await begin(here.ann)
        await here.ann.chunk(url, b"all of it", "upload")
        ended = await here.ann.chunk(url, None, "finalize")
        assert await content(here.ann, ended.json["file"]["name"]) == b"all of it"


async def test_query_tells_how_much_is_there_and_cancel_ends_it() -> None:
    async with world() as here:
        url = await begin(here.ann)
        await here.ann.chunk(url, b"12345", "upload")
        asked = await here.ann.chunk(url, None, "query")
        assert (asked.headers["X-Goog-Upload-Status"], asked.headers["X-Goog-Upload-Size-Received"]) == ("active", "5")
        cancelled = await here.ann.chunk(url, None, "cancel")
        assert (cancelled.status, cancelled.headers["X-Goog-Upload-Status"]) == (200, "cancelled")
        after = await here.ann.chunk(url, b"678", offset=5)
        assert (after.status, after.headers["X-Goog-Upload-Status"]) == (404, "cancelled")
        assert len(set(here.keys())) == 1


async def test_a_raw_upload_is_learned_from() -> None:
    async with world() as here:
        fields = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "text/x-python"}
        answer = await here.ann.call("POST", FILES, headers=fields, data=b"print()")
        file = answer.json["file"]
        assert file["mimeType"] == "text/x-python"
        assert await content(here.ann, file["name"]) == b"print()"
        assert (await here.ann.generate(file["name"])).status == 200
        assert (await here.bob.get(file["name"])).status == 404


async def test_a_large_raw_upload_streams() -> None:
    data = b"0123456789abcdef" * 65536
    async with world(relay={"replay_limit": "64KiB"}) as here:
        answer = await here.ann.call("POST", FILES, headers={"X-Goog-Upload-Protocol": "raw"}, data=data)
        assert await content(here.ann, answer.json["file"]["name"]) == data


@pytest.mark.parametrize("how", ["header", "query"])
async def test_a_multipart_upload_is_learned_from(how: str) -> None:
    about = json.dumps({"file": {"displayName": "two parts"}}).encode()
    body = (
        b"--xyz\r\nContent-Type: application/json\r\n\r\n%b\r\n--xyz\r\nContent-Type: text/plain\r\n\r\nthe bytes\r\n--xyz--"
        % about
    )
    fields = {"Content-Type": "multipart/related; boundary=xyz"}
    fields |= {"X-Goog-Upload-Protocol": "multipart"} if how == "header" else {}
    async with world() as here:
        answer = await here.ann.call(
            "POST", FILES + ("" if how == "header" else "?uploadType=multipart"), headers=fields, data=body
        )
        file = answer.json["file"]
        assert file["displayName"] == "two parts"
        assert await content(here.ann, file["name"]) == b"the bytes"


async def test_the_older_protocol_with_location_and_308_works() -> None:
    data = b"x" * 300_000
    async with world() as here:
        begun = await here.ann.call(
            "POST", FILES + "?uploadType=resumable", {"file": {}}, {"X-Upload-Content-Length": str(len(data))}
        )
        url = begun.headers["Location"]
        assert url.startswith(here.proxy.url + FILES)
        half = {"Content-Range": f"bytes 0-149999/{len(data)}"}
        answer = await here.ann.send("PUT", url, half, data[:150_000])
        assert (answer.status, answer.headers["Range"]) == (308, "bytes=0-149999")
        asked = await here.ann.send("PUT", url, {"Content-Range": f"bytes */{len(data)}"}, b"")
        assert (asked.status, asked.headers["Range"]) == (308, "bytes=0-149999")
        rest = {"Content-Range": f"bytes 150000-299999/{len(data)}"}
        answer = await here.ann.send("PUT", url, rest, data[150_000:])
        assert answer.status == 200
        assert await content(here.ann, answer.json["file"]["name"]) == data
        assert "balancer" not in "".join(arrival.target for arrival in here.standin.requests)


async def test_a_store_and_a_file_made_without_a_session_can_be_used_together() -> None:
    async with world() as here:
        for _ in range(3):
            store = await here.ann.make("fileSearchStores")
            imported = await here.ann.post(f"{store}:importFile", {"fileName": await here.ann.upload()})
            assert imported.status == 200, imported.body


async def test_an_upload_into_a_store_goes_to_the_store_s_key() -> None:
    async with world(affinity={"uploads": "none"}) as here:
        for _ in range(4):
            store = await here.ann.make("fileSearchStores")
            path = f"/upload/v1beta/{store}:uploadToFileSearchStore"
            begun = await here.ann.start({"mimeType": "text/plain"}, path)
            assert begun.headers["X-Goog-Upload-URL"].startswith(here.proxy.url + path)
            ended = await here.ann.chunk(begun.headers["X-Goog-Upload-URL"], b"words")
            assert ended.json["name"].startswith(f"{store}/upload/operations/")
            assert (await here.ann.get(ended.json["name"])).json["done"]
        assert len({arrival.key for arrival in here.asked("POST /v1beta/fileSearchStores")}) == 3


async def test_a_path_upload_by_put_is_rewritten_too() -> None:
    async with world() as here:
        environment = await here.ann.make("environments")
        path = f"/upload/v1beta/{environment}/files/src/main.py"
        fields = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
        begun = await here.ann.call("PUT", path + "?overwrite=true", {}, fields)
        url = begun.headers["X-Goog-Upload-URL"]
        assert url.startswith(here.proxy.url + path)
        assert (await here.ann.chunk(url, b"print()")).status == 200
        assert len(set(here.keys())) == 1


# Chunks that fail


async def test_a_chunk_sent_again_is_taken_for_what_it_is() -> None:
    async with world() as here:
        url = await begin(here.ann, 8)
        for _ in range(2):
            assert (await here.ann.chunk(url, b"abcd", "upload")).status == 200
        finals = [await here.ann.chunk(url, b"efgh", offset=4) for _ in range(3)]
        assert [final.headers["X-Goog-Upload-Status"] for final in finals] == ["final"] * 3
        assert len({final.json["file"]["name"] for final in finals}) == 1
        assert await content(here.ann, finals[0].json["file"]["name"]) == b"abcdefgh"


async def test_a_chunk_whose_answer_was_lost_is_not_repeated_by_us_but_may_be_by_the_client() -> None:
    async with world() as here:
        url = await begin(here.ann, 8)
        here.standin.script("*", "lost", times=1, target="upload_id=")
        lost = await here.ann.chunk(url, b"abcd", "upload")
        assert lost.status == 502
        assert lost.headers["X-Goog-Upload-Status"] == "cancelled"
        assert len(here.asked("upload_id=")) == 1
        assert (await here.ann.chunk(url, b"abcd", "upload")).status == 200
        ended = await here.ann.chunk(url, b"efgh", offset=4)
        assert await content(here.ann, ended.json["file"]["name"]) == b"abcdefgh"


async def test_a_chunk_that_fails_before_a_byte_of_it_was_sent_is_invisible() -> None:
    """The port is closed at the first try and open at a later one: the body still lies there untouched."""
    standin = StandIn(KEYS)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    async with (
        standing_in(standin) as upstream,
        proxying(upstream) as before,
        proxying(f"http://127.0.0.1:{port}", relay={"attempts": 12}) as proxy,
    ):
        url = moved(await begin(caller(before), 1_000_000), proxy)
        pool = proxy.server.runtime.rooms.upstreams["gemini"].pool
        sending = asyncio.create_task(caller(proxy).chunk(url, b"x" * 1_000_000))
        while pool.snapshot().requests < 2:  # the second try begins: the first found no connection
            await proxy.keys()
        async with standing_in(standin, port=port):
            ended = await sending
            assert ended.status == 200, ended.body
            assert ended.json["file"]["sizeBytes"] == "1000000"
            assert [arrival.size for arrival in standin.requests if "upload_id" in arrival.target] == [1_000_000]


@pytest.mark.parametrize("fault", ["error-500", "error-503", "rate-minute", "location"])
async def test_later_failures_are_answered_with_the_upstream_s_own_words(fault: str) -> None:
    async with world() as here:
        url = await begin(here.ann)
        here.standin.script("*", fault, times=1, target="upload_id=")
        failed = await here.ann.chunk(url, b"x" * 1000, "upload")
        assert failed.status == {"error-500": 500, "error-503": 503, "rate-minute": 429, "location": 400}[fault]
        assert "keys" not in failed.error["message"]
        assert len(here.asked("upload_id=")) == 1


async def test_the_upstream_s_upload_status_comes_with_its_errors() -> None:
    async with world() as here:
        url = await begin(here.ann)
        hole = await here.ann.chunk(url, b"x", "upload", offset=100)
        assert (hole.status, hole.headers["X-Goog-Upload-Status"]) == (400, "active")
        assert hole.headers["X-Goog-Upload-Size-Received"] == "0"


async def test_our_own_errors_to_chunks_carry_a_status_too() -> None:
    async with world(server={"max_upload": 1000}) as here:
        url = await begin(here.ann)
        large = await here.ann.chunk(url, b"x" * 1001)
        assert (large.status, large.headers["X-Goog-Upload-Status"]) == (413, "cancelled")
        method = await here.ann.send("OPTIONS", url, {})
        assert (method.status, method.headers["X-Goog-Upload-Status"]) == (405, "cancelled")
        owner = here.keys()[0] or ""
        here.standin.script(owner, "key-leaked", times=1)
        assert (await here.ann.generate()).status == 200
        while here.asked(":generateContent")[-1].key != owner and (await here.ann.generate()).status == 200:
            if any(arrival.fault for arrival in here.standin.requests):
                break
        dead = await here.ann.chunk(url, b"x")
        assert (dead.status, dead.headers["X-Goog-Upload-Status"]) == (503, "cancelled")
        assert not any(key in dead.body.decode() for key in KEYS)


async def test_errors_to_other_calls_carry_no_upload_status() -> None:
    async with world() as here:
        for answer in (await caller(here.proxy, "wrong").start(), await caller(here.proxy, "wrong").generate()):
            assert answer.status == 401
            assert "X-Goog-Upload-Status" not in answer.headers


async def test_an_unreachable_upstream_is_a_502_with_a_status() -> None:
    standin = StandIn(KEYS)
    async with standing_in(standin) as upstream, proxying(upstream, relay={"attempts": 2}) as proxy:
        url = await begin(caller(proxy))
        spoiled = proxying("http://127.0.0.1:9", relay={"attempts": 2})
        async with spoiled as there:
            failed = await caller(there).chunk(moved(url, there), b"x")
            assert (failed.status, failed.headers["X-Goog-Upload-Status"]) == (502, "cancelled")
            assert failed.error["status"] == "UNAVAILABLE"


# Together


async def test_uploads_of_one_client_land_together_without_a_session() -> None:
    async with world() as here:
        names = []
        for _ in range(4):
            names.append(await here.ann.upload())
            await here.bob.generate()
        assert len(spread(here, names)) == 1
        assert (await here.ann.generate(*names)).status == 200


async def test_uploads_that_overlap_land_together() -> None:
    async with world() as here:
        gate = asyncio.Event()
        here.standin.script("*", "stall-head", gate=gate, target=FILES, times=6)
        uploads = [asyncio.create_task(here.ann.upload()) for _ in range(6)]
        await here.standin.wait_for(6)
        gate.set()
        assert len(spread(here, list(await asyncio.gather(*uploads)))) == 1


async def test_clients_and_addresses_are_apart() -> None:
    async with world() as here, elsewhere(here.proxy) as far:
        clients = [here.ann, here.bob, far]
        keys = [here.key_of(await client.upload()) for client in clients * 3]
        assert sorted(keys[:3]) == sorted(KEYS)
        assert keys == keys[:3] * 3


async def test_behind_a_trusted_proxy_the_client_s_own_address_counts() -> None:
    async with world(server={"trusted_proxies": ["127.0.0.1"]}) as here:
        near, far = ({"X-Forwarded-For": f"9.9.9.9, 10.0.0.{n}"} for n in (1, 2))
        clients = [Caller(here.proxy.client, here.proxy.url, ANN, fields) for fields in (near, far)]
        names = [await client.upload() for client in clients * 2]
        keys = [here.key_of(name) for name in names]
        assert keys[:2] == keys[2:]
        assert keys[0] != keys[1]


async def test_uploads_of_one_session_land_together_wherever_they_come_from() -> None:
    async with world(affinity={"uploads": "none"}) as here, elsewhere(here.proxy) as far:
        names = [await client.within("s").upload() for client in (here.ann, far, here.ann, far)]
        names.append(await here.ann.below("/s/s").upload())
        assert len(spread(here, names)) == 1
        assert (await here.ann.generate(*names)).status == 200


async def test_two_sessions_of_one_client_are_apart() -> None:
    async with world() as here:
        one, two = here.ann.within("one"), here.ann.within("two")
        for _ in range(2):
            names = [await one.upload(), await two.upload()]
            assert len(spread(here, names)) == 2


@pytest.mark.parametrize("setting", ["session", "none"])
async def test_without_the_setting_uploads_rotate(setting: str) -> None:
    async with world(affinity={"uploads": setting}) as here:
        assert spread(here, [await here.ann.upload() for _ in range(3)]) == set(KEYS)


async def test_uploads_part_when_the_last_is_long_ago() -> None:
    clock = FakeClock()
    async with world(clock=clock, affinity={"session_ttl": "1h"}) as here:
        names = []
        for _ in range(3):
            names.append(await here.ann.upload())
            clock.advance(3599)
        assert len(spread(here, names)) == 1
        clock.advance(2)
        assert here.key_of(await here.ann.upload()) not in spread(here, names)


@pytest.mark.parametrize("session", [False, True])
async def test_a_key_that_rests_for_some_model_is_not_chosen_for_a_new_upload(session: bool) -> None:
    """The call that the file is for will name a model, and that may be the one that the key rests for."""
    async with world() as here:
        client = here.ann.within("s") if session else here.ann
        if session:
            assert (await client.generate()).status == 200
        else:
            await client.upload()
        first = here.keys()[0] or ""
        here.standin.script(first, "rate-minute", times=1, model="gemini-2.5-flash", seconds=3600)
        while not here.asked(":generateContent") or not any(arrival.fault for arrival in here.standin.requests):
            assert (await here.bob.generate()).status == 200
        names = [await client.upload() for _ in range(3)]
        (key,) = spread(here, names)
        assert key != first


async def test_where_every_key_rests_for_something_uploads_still_land_together() -> None:
    async with world(relay={"max_wait": "0s"}) as here:
        names = [await here.ann.upload()]
        for key in KEYS:
            here.standin.script(key, "rate-minute", times=1, model="gemini-2.5-flash", seconds=3600)
        assert (await here.bob.generate()).status == 429
        names += [await here.ann.upload() for _ in range(3)]
        assert len(spread(here, names)) == 1


async def test_a_refused_start_moves_to_another_key() -> None:
    async with world() as here:
        here.standin.script(KEYS[0], "rate-bare", times=1)
        names = [await here.ann.upload() for _ in range(2)]
        assert spread(here, names) == {KEYS[1]}


async def test_a_session_is_hard_as_soon_as_its_upload_has_begun() -> None:
    async with world(relay={"max_wait": "0s"}) as here:
        session = here.ann.within("s")
        url = await begin(session)
        here.standin.script(here.keys()[0] or "", "rate-minute", times=1, model="gemini-2.5-flash", seconds=3600)
        assert (await session.generate()).status == 429
        assert (await here.ann.chunk(url, b"x")).status == 200
        assert (await session.generate()).status == 429
        assert len(set(here.keys())) == 1


def query_of(url: str) -> dict[str, Any]:
    return dict(parse_qsl(urlsplit(url).query))


async def test_the_grant_names_owner_and_client_and_no_secret() -> None:
    async with world(keys=[{"key": KEYS[0], "name": "main", "project": "quota-1"}]) as here:
        grant = query_of(await begin(here.ann))["balancer"]
        assert grant.count(".") == 2
        assert not any(secret in grant for secret in SECRETS)
        assert len(grant) < 80
