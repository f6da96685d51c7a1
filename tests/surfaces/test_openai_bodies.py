"""Bodies on the openai surface: what is refused before anybody is called, what is unpacked, and what is too long to be kept."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import brotli  # type: ignore[import-untyped]
import pytest

from balancer.standin.openai.app import OpenAIStandIn, running
from tests.bench.process import family, resident
from tests.faults.test_server import started
from tests.surfaces.openai_calls import ANN, CHAT, GPT, MESSAGES, OA_KEYS, chat_bytes, request_bytes, scripted, world
from tests.upstream import Peer

# Refused before anybody is called

DEEP = b'{"model": "oa/gpt-5.1", "messages": %b%b}' % (b"[" * 600, b"]" * 600)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b"", b"null", b"5", b'{"model": "\xff"}', b'{"a": 1,}', b'{"a": 1} {}', DEEP]
)
async def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    async with world() as here:
        for path in ("chat/completions", "embeddings", "responses", "completions"):
            answer = await here.ann.post(path, body)
            assert answer.code == (400, "invalid_json")
            assert answer.error["message"] == "请求体必须是 JSON 对象"
            assert answer.error["type"] == "invalid_request_error"
        assert not here.oa.requests


@pytest.mark.parametrize("messages", [{}, {"messages": []}, {"messages": None}, {"messages": "hi"}, {"messages": {}}])
async def test_a_chat_without_messages_is_refused(messages: dict[str, Any]) -> None:
    async with world() as here:
        answer = await here.ann.post("chat/completions", {"model": GPT, **messages})
        assert answer.code == (400, "missing_required_parameter")
        assert (answer.error["param"], answer.error["message"]) == ("messages", "messages 必须是非空数组")
        assert not here.oa.requests


@pytest.mark.parametrize("model", [{}, {"model": 5}, {"model": ""}, {"model": None}, {"model": ["x"]}, {"model": " "}])
async def test_a_call_without_a_model_is_refused_where_one_is_needed(model: dict[str, Any]) -> None:
    async with world() as here:
        for path, rest in (
            ("chat/completions", {"messages": MESSAGES}),
            ("embeddings", {"input": "x"}),
            ("responses", {}),
        ):
            answer = await here.ann.post(path, {**model, **rest})
            assert answer.code == (400, "missing_required_parameter")
            assert answer.error["param"] == "model"
        assert not here.oa.requests


async def test_the_first_condition_that_applies_is_the_one_that_is_told() -> None:
    async with world() as here:
        assert (await here.ann.post("chat/completions", b"{", Authorization="Bearer wrong")).code[0] == 401
        assert (await here.ann.post("chat/completions", {"model": "nope/no"})).error["param"] == "messages"
        assert here.proxy.server.runtime.budget.used == 0
        for model, code in (
            ("no-such-model", (404, "model_not_found")),
            ("oa/no-such-model", (404, "model_not_found")),
            ("nobody/gpt-5.1", (404, "model_not_found")),
        ):
            answer = await here.ann.chat(model)
            assert answer.code == code
            assert answer.error["param"] == "model"
        assert not here.oa.requests


async def test_a_call_that_takes_no_body_needs_none() -> None:
    async with world() as here:
        batch = (await here.ann.batch(await here.ann.batch_input())).id
        assert (await here.ann.call("POST", f"/v1/batches/{batch}/cancel")).status == 200
        assert (await here.ann.post("vector_stores")).status == 200
        empty = await here.ann.call("POST", "/v1/threads", headers={"Content-Length": "0"})
        assert empty.status == 200


async def test_json_counts_whatever_its_content_type_says() -> None:
    async with world() as here:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8", None):
            headers = {} if kind is None else {"Content-Type": kind}
            answer = await here.ann.call("POST", CHAT, headers=headers, data=chat_bytes())
            assert answer.status == 200, answer.body
            assert here.last().header("content-type") == kind


SMALL = {"replay_limit": "64KiB"}
BIG = 4 << 20
"""Bytes beyond that limit, and beyond what a connection holds."""

# Content codings

CODINGS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZIP": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_coded_body_arrives_plain_with_a_right_length(coding: str) -> None:
    async with world() as here:
        body = chat_bytes(seed=7)
        coded = CODINGS[coding](body)
        answer = await here.ann.call("POST", CHAT, headers={"Content-Encoding": coding}, data=coded)
        assert answer.status == 200, answer.body
        seen = here.last()
        assert seen.body == body.replace(b"oa/", b"")
        assert seen.header("content-length") == str(len(seen.body))
        assert seen.header("content-encoding") is None


@pytest.mark.parametrize("coding", ["zstd", "compress", "gzip, br", "gzip, gzip", "nonsense"])
async def test_a_coding_that_is_not_known_is_refused(coding: str) -> None:
    async with world() as here:
        answer = await here.ann.call("POST", CHAT, headers={"Content-Encoding": coding}, data=chat_bytes())
        assert answer.code == (415, "unsupported_encoding")
        assert not here.oa.requests


async def test_two_fields_that_name_codings_are_one_list() -> None:
    async with world() as here:
        body = gzip.compress(gzip.compress(chat_bytes()))
        fields = ("Content-Encoding: gzip", "Content-Encoding: gzip", "Connection: close")
        told = await here.proxy.exchange(request_bytes(body, CHAT, *fields))
        assert told.startswith(b"HTTP/1.1 415 ")


async def test_a_body_that_unpacks_to_more_than_is_allowed_is_refused_while_it_is_small() -> None:
    async with world(server={"max_body": "1MiB"}) as here:
        for coding, pack in (
            ("gzip", gzip.compress),
            ("br", partial(brotli.compress, quality=1)),
            ("deflate", zlib.compress),
        ):
            bomb = pack(b" " * (50 << 20))
            answer = await here.ann.call("POST", CHAT, headers={"Content-Encoding": coding}, data=bomb)
            assert answer.code == (413, "request_too_large")
        assert not here.oa.requests


async def test_a_coded_body_that_is_cut_or_no_such_thing_is_refused() -> None:
    async with world() as here:
        whole = gzip.compress(chat_bytes())
        for body in (whole[:-4], whole[:5], b"not gzip", b"", whole + b"more", whole[:-6] + bytes(6)):
            answer = await here.ann.call("POST", CHAT, headers={"Content-Encoding": "gzip"}, data=body)
            assert answer.code == (400, "invalid_json")
        assert not here.oa.requests


async def test_a_coded_body_beyond_the_replay_limit_streams_plain() -> None:
    async with world(relay=SMALL) as here:
        body = b'{"model": "oa/stand-in-sink", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * BIG)
        answer = await here.ann.call("POST", CHAT, headers={"Content-Encoding": "gzip"}, data=gzip.compress(body))
        assert answer.status == 200, answer.body
        assert here.last().size == len(body) - 3
        assert here.last().header("content-encoding") is None


# Large bodies


async def test_a_body_beyond_the_replay_limit_streams_and_is_spliced_in_its_first_part() -> None:
    async with world(relay=SMALL) as here:
        body = b'{"model": "oa/stand-in-sink", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * BIG)
        assert (await here.ann.post("chat/completions", body)).status == 200
        assert here.last().header("content-length") == str(len(body) - 3)
        assert here.last().size == len(body) - 3


async def test_a_body_beyond_the_replay_limit_is_sent_once() -> None:
    async with world(relay=SMALL) as here:
        body = b'{"model": "oa/gpt-5.1", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * BIG)
        fault = here.oa.script("*", "rate-retry-after", seconds=20)
        answer = await here.ann.post("chat/completions", body)
        assert answer.code == (429, "keys_resting")  # and not the key's own words
        assert answer.headers["Retry-After"] == "1"  # there are other keys
        assert fault.used == 1
        here.oa.clear()
        fault = here.oa.script("*", "error-500")
        failed = await here.ann.post("chat/completions", body)
        assert (failed.status, failed.error["type"]) == (500, "server_error")
        assert fault.used == 1


async def test_a_model_behind_the_first_part_of_a_body_is_too_far_away() -> None:
    async with world(relay=SMALL) as here:
        body = b'{"messages": [{"role": "user", "content": "%b"}], "model": "oa/gpt-5.1"}' % (b"x" * BIG)
        answer = await here.ann.post("chat/completions", body)
        assert answer.code == (413, "request_too_large")
        assert answer.error["param"] == "model"
        form = aiohttp.FormData()
        form.add_field("file", io.BytesIO(bytes(BIG)), filename="a.wav")
        form.add_field("model", "oa/whisper-1")
        late = await here.ann.call("POST", "/v1/audio/transcriptions", data=form)
        assert late.code == (413, "request_too_large")
        early = aiohttp.FormData()
        early.add_field("model", "oa/whisper-1")
        early.add_field("file", io.BytesIO(bytes(BIG)), filename="a.wav")
        assert (await here.ann.call("POST", "/v1/audio/transcriptions", data=early)).status == 200
        assert len(here.oa.requests) == 1


async def test_a_client_that_may_not_use_every_model_shows_its_whole_body() -> None:
    tokens = [{"name": "ann", "token": ANN, "models": ["oa/gpt-*"]}]
    async with world(relay=SMALL, auth={"tokens": tokens}) as here:
        body = b'{"model": "oa/gpt-5.1", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * BIG)
        assert (await here.ann.post("chat/completions", body)).code == (413, "request_too_large")
        assert not here.oa.requests


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_its_limit_is_refused_by_its_length_or_as_it_comes(declared: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(32 << 10)

    async with world(server={"max_body": "1MiB", "max_upload": "2MiB"}) as here:
        data: Any = io.BytesIO(bytes(3 << 20)) if declared else pieces()
        with contextlib.suppress(aiohttp.ClientConnectionError):  # the answer may come while the body is being written
            answer = await here.ann.call("POST", CHAT, data=data)
            assert answer.code == (413, "request_too_large")
        assert not here.oa.requests


async def test_forms_have_a_limit_of_their_own() -> None:
    async with world(server={"max_body": "1MiB", "max_upload": "4MiB"}) as here:
        assert await here.ann.upload(bytes(2 << 20))


async def test_a_client_whose_body_stops_is_told_so() -> None:
    async with world(server={"body_idle_timeout": "0.2s"}) as here:
        body = chat_bytes()
        raw = await here.proxy.raw()
        await raw.send(request_bytes(body)[:-10])
        head, told = await raw.answer()
        assert head.startswith(b"HTTP/1.1 408 ")
        error = json.loads(told)["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_timeout")
        raw.close()


async def test_a_client_that_leaves_while_it_sends_ends_the_call() -> None:
    async def reading(peer: Peer) -> None:
        await peer.head()
        await peer.gone()
        left.set()

    left = asyncio.Event()
    async with scripted(reading, relay=SMALL) as here:
        raw = await here.proxy.raw()
        body = b'{"model": "oa/gpt-5.1", "messages": ["%b"]}' % (b"x" * BIG)
        await raw.send(request_bytes(body)[:-100_000])
        await here.upstream.arrival()
        raw.close()
        async with asyncio.timeout(5):
            await left.wait()


MANY = 300 << 20


async def test_an_upload_of_300_mib_passes_through_little_memory(tmp_path: Path) -> None:
    """A process of its own, as it is served: 300 MiB go up, and what it holds more than before is looked at all the while."""
    standin = OpenAIStandIn(OA_KEYS[:1])
    async with running(standin) as url, aiohttp.ClientSession() as http:
        upstreams = {"oa": {"kind": "openai", "base_url": f"{url}/v1", "keys": list(OA_KEYS[:1])}}
        tree = {"server": {"port": 0}, "admin": {"port": 0}, "upstreams": upstreams, "logging": {"format": "json"}}
        async with started(tmp_path, tree) as process, asyncio.timeout(120):
            await process.greeted()
            form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b\r\n'
            form += b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            await _send(http, process.url, form, 1 << 20)  # what is made once is made
            before = resident(family(process._process.pid))
            held: list[int] = []
            await _send(http, process.url, form, MANY, lambda: held.append(resident(family(process._process.pid))))
            assert standin.requests[-1].size > MANY
            assert len(held) > 10
            assert max(held) - before < 32 << 20, (before, max(held))


async def _send(http: aiohttp.ClientSession, base: str, form: bytes, size: int, look: Any = None) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield form
        for place in range(0, size, 1 << 20):
            if look is not None and place % (16 << 20) == 0:
                look()
            yield bytes(1 << 20)
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b", "Authorization": "Bearer any"}
    async with http.post(f"{base}/v1/files", data=pieces(), headers=headers) as answer:
        assert answer.status == 200, await answer.read()
