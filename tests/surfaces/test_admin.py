"""The operator's listener: what it tells of keys and traffic, and to whom."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from balancer.model import fingerprint
from balancer.standin.app import StandIn, running
from tests.proxy import GENERATE, KEYS, STREAM, Proxy, Raw, error_of, proxying

NAMED = [{"key": KEYS[0], "name": "main", "project": "p-one"}, KEYS[1], KEYS[2]]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@asynccontextmanager
async def troubled(**overrides: Any) -> AsyncIterator[tuple[Proxy, StandIn]]:
    """The proxy before a stand-in with three keys."""
    standin = StandIn(KEYS)
    async with running(standin) as url, proxying(url, NAMED, **overrides) as proxy:
        yield proxy, standin


async def admin(proxy: Proxy, target: str, *headers: str, host: str = "127.0.0.1") -> tuple[int, bytes, bytes]:
    """Status, head and body of a request on the admin listener."""
    assert proxy.server.admin_address is not None
    raw = Raw(*await asyncio.open_connection(*proxy.server.admin_address))
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    await raw.send("\r\n".join(lines).encode() + b"\r\n\r\n")
    head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    raw.close()
    return int(head.split()[1]), head, body


async def metrics(proxy: Proxy) -> Samples:
    status, head, body = await admin(proxy, "/metrics")
    assert status == 200
    assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def seconds_until(iso: str, now: str) -> float:
    return (datetime.fromisoformat(iso) - datetime.fromisoformat(now)).total_seconds()


# /api/keys ------------------------------------------------------------------------------------------------------------


async def test_fresh_keys_are_ready_and_told_by_fingerprint_name_and_project() -> None:
    async with troubled() as (proxy, _):
        status, head, body = await admin(proxy, "/api/keys")
        assert status == 200
        assert b"\r\nContent-Type: application/json" in head
        keys = await proxy.keys()
        assert [key["fingerprint"] for key in keys] == [fingerprint(key) for key in KEYS]
        assert [(key["name"], key["project"]) for key in keys] == [("main", "p-one"), (None, None), (None, None)]
        for key in keys:
            assert (key["state"], key["in_flight"], key["requests"], key["models"]) == ("ready", 0, 0, [])
            assert key["until"] is key["next_probe"] is None
        assert not any(key.encode() in body for key in KEYS)


RESTS: dict[str, tuple[str, float, float]] = {
    "rate-minute": ("minute", 15, 18),
    "rate-retry-after": ("429", 15, 18),
    "rate-bare": ("429", 3, 6),
    "rate-day": ("day", 0, 90_000),
    "rate-zero": ("limit 0", 86_000, 86_401),
}


@pytest.mark.parametrize("fault", RESTS)
async def test_a_resting_key_says_why_until_when_and_for_which_model(fault: str) -> None:
    why, least, most = RESTS[fault]
    async with troubled() as (proxy, standin):
        standin.script(KEYS[0], fault, times=1)
        for _ in range(3):
            async with proxy.post() as response:
                assert response.status == 200
        async with proxy.client.get(proxy.admin_url + "/api/keys") as answer:
            told = await answer.json()
        resting, *others = told["upstreams"][0]["keys"]
        assert resting["state"] == "resting"
        assert why in resting["reason"]
        assert least <= seconds_until(resting["until"], told["time"]) <= most
        (model,) = resting["models"]
        assert model["model"] == "gemini-2.5-flash"
        assert model["until"] == resting["until"]
        assert resting["counts"]["key"] == 1
        assert [key["state"] for key in others] == ["ready", "ready"]
        assert sum(key["counts"]["ok"] for key in others) == 3


DEAD: dict[str, str] = {
    "key-invalid": "API key not valid",
    "key-expired": "API key expired",
    "key-leaked": "key reported as leaked",
    "key-suspended": "consumer suspended",
    "key-blocked": "API_KEY_SERVICE_BLOCKED",
    "service-disabled": "SERVICE_DISABLED",
    "project-denied": "project denied access",
    "unauthenticated": "401",
}


@pytest.mark.parametrize("fault", DEAD)
async def test_a_disabled_key_says_why_and_when_it_is_asked_again(fault: str) -> None:
    async with troubled() as (proxy, standin):
        standin.script(KEYS[0], fault)
        for _ in range(4):
            async with proxy.post() as response:
                assert response.status == 200
        async with proxy.client.get(proxy.admin_url + "/api/keys") as answer:
            told = await answer.json()
        dead = told["upstreams"][0]["keys"][0]
        assert dead["state"] == "disabled"
        assert DEAD[fault] in dead["reason"]
        assert dead["until"] is None
        assert 3500 <= seconds_until(dead["next_probe"], told["time"]) <= 3601
        assert (dead["requests"], dead["counts"]["key"], dead["counts"]["ok"]) == (1, 1, 0)


FAULTS: dict[str, tuple[str, int, str]] = {
    "the caller's": ("location", 400, "caller"),
    "the upstream's": ("error-500", 500, "upstream"),
    "the upstream's, in words": ("error-502", 502, "upstream"),
    "the upstream's, without an answer": ("fin", 502, "upstream"),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_answers_are_counted_by_whose_fault_they_were_and_no_key_rests_for_anothers(case: str) -> None:
    fault, status, verdict = FAULTS[case]
    async with troubled() as (proxy, standin):
        standin.script("*", fault)
        async with proxy.post() as response:
            assert response.status == status
        keys = await proxy.keys()
        assert sum(key["counts"][verdict] for key in keys) == len(standin.requests)
        assert sum(sum(key["counts"].values()) for key in keys) == len(standin.requests)
        assert {key["state"] for key in keys} == {"ready"}


async def test_what_is_in_flight_is_told_while_it_is() -> None:
    async with troubled() as (proxy, standin):
        fault = standin.script("*", "stall-stream")
        async with proxy.post(STREAM) as response:
            assert await response.content.readany()
            keys = await proxy.keys()
            assert [key["in_flight"] for key in keys] == [1, 0, 0]
            assert [key["requests"] for key in keys] == [1, 0, 0]
            fault.open()
            await response.read()
        keys = await proxy.keys()
        assert [key["in_flight"] for key in keys] == [0, 0, 0]
        assert keys[0]["counts"]["ok"] == 1


async def test_a_provider_that_refuses_every_key_alike_is_told_as_its_own_state() -> None:
    async with troubled(relay={"max_wait": "100ms"}) as (proxy, standin):
        standin.script("*", "error-503")
        for _ in range(3):
            async with proxy.post() as response:
                assert response.status in (503, 429)
        async with proxy.client.get(proxy.admin_url + "/api/keys") as answer:
            upstream = (await answer.json())["upstreams"][0]
        assert "503" in upstream["backoff"]["reason"]
        assert upstream["backoff"]["until"]
        assert {key["state"] for key in upstream["keys"]} == {"ready"}


# /metrics -------------------------------------------------------------------------------------------------------------


async def test_metrics_count_requests_attempts_bytes_and_keys() -> None:
    async with troubled() as (proxy, standin):
        standin.script(KEYS[0], "rate-minute", times=1)
        standin.script(KEYS[1], "key-invalid", times=1)
        size = 0
        for _ in range(2):
            async with proxy.post() as response:
                assert response.status == 200
                size += len(await response.read())
        async with proxy.post("/v1beta//no") as response:
            assert response.status == 404
            errors = len(await response.read())
        async with proxy.get("/no/such/page") as response:
            assert response.status == 404
        seen = await metrics(proxy)

        def value(name: str, **labels: str) -> float:
            return seen[name, tuple(sorted(labels.items()))]

        assert value("balancer_requests_total", surface="gemini", status="200") == 2
        assert value("balancer_requests_total", surface="gemini", status="404") == 1
        assert value("balancer_requests_total", surface="openai", status="404") == 1
        assert value("balancer_sent_bytes_total", surface="gemini") == size + errors
        assert value("balancer_received_bytes_total", surface="gemini") > 0
        assert value("balancer_keys", upstream="gemini", state="ready") == 1
        assert value("balancer_keys", upstream="gemini", state="resting") == 1
        assert value("balancer_keys", upstream="gemini", state="disabled") == 1
        assert value("balancer_in_flight") == 0
        assert value("balancer_log_lines_dropped_total") == 0
        for histogram in ("first_byte", "overhead"):
            assert value(f"balancer_{histogram}_seconds_bucket", surface="gemini", le="+Inf") == 2
            assert value(f"balancer_{histogram}_seconds_count", surface="gemini") == 2
            assert value(f"balancer_{histogram}_seconds_sum", surface="gemini") > 0
        assert seen["process_open_fds", ()] > 0


async def test_metrics_count_attempts_by_verdict() -> None:
    async with troubled() as (proxy, standin):
        standin.script(KEYS[0], "rate-minute", times=1)
        standin.script(KEYS[1], "error-500", times=1)
        async with proxy.post() as response:
            assert response.status == 200
        seen = await metrics(proxy)
        counts = {
            dict(labels)["verdict"]: value
            for (name, labels), value in seen.items()
            if name == "balancer_attempts_total" and ("upstream", "gemini") in labels and value
        }
        assert counts == {"key": 1, "upstream": 1, "ok": 1}


async def test_metrics_tell_what_is_in_flight() -> None:
    async with troubled() as (proxy, standin):
        fault = standin.script("*", "stall-stream")
        async with proxy.post(STREAM) as response:
            assert await response.content.readany()
            assert (await metrics(proxy))["balancer_in_flight", ()] == 1
            fault.open()
            await response.read()


async def test_no_word_of_a_client_makes_a_series() -> None:
    async with troubled() as (proxy, _):
        before = len(await metrics(proxy))
        for number in range(20):
            async with proxy.post(f"/v1beta/models/made-up-{number}:generateContent") as response:
                assert response.status == 404
            async with proxy.get(f"/v1beta/newThings{number}/x", headers={"X-Request-Id": f"id-{number}"}) as response:
                assert response.status == 404
        one = len(await metrics(proxy))
        async with proxy.post("/v1beta/models/made-up-99:generateContent") as response:
            assert response.status == 404
        assert len(await metrics(proxy)) == one
        assert one - before < 100


# Who may look ---------------------------------------------------------------------------------------------------------

TOKEN = {"token": "the-operators-token"}
SHOWN: dict[str, tuple[str, str]] = {
    "a bearer": ("", "Authorization: Bearer {}"),
    "x-api-key": ("", "x-api-key: {}"),
    "the query": ("?key={}", "X-Y: 1"),
}


@pytest.mark.parametrize("path", ["/api/keys", "/metrics"])
@pytest.mark.parametrize("place", SHOWN)
async def test_with_an_admin_token_only_who_shows_it_may_look(place: str, path: str) -> None:
    query, header = SHOWN[place]
    async with troubled(admin=TOKEN, auth={"tokens": "team=a-client-token"}) as (proxy, _):
        shown = {token: (path + query.format(token), header.format(token)) for token in ("the-operators-token", "x")}
        assert (await admin(proxy, *shown["the-operators-token"], host="anything.example"))[0] == 200
        for attempt in ((path,), shown["x"], (path, "Authorization: Bearer a-client-token")):
            status, head, body = await admin(proxy, *attempt)
            assert status == 401
            assert b"\r\nWWW-Authenticate: Bearer\r\n" in head
            assert error_of(body)["status"] == "UNAUTHENTICATED"


FOREIGN: dict[str, tuple[str, tuple[str, ...], int]] = {
    "another name": ("evil.example", (), 403),
    "another name with the port": ("evil.example:8001", (), 403),
    "a name that is none": ("[", (), 403),
    "no name": ("", (), 403),
    "a page of another origin": ("localhost", ("Origin: https://evil.example",), 403),
    "a proxy in between": ("localhost", ("X-Forwarded-For: 192.0.2.1",), 401),
    "localhost": ("localhost:1", (), 200),
    "an address": ("127.0.0.1", (), 200),
    "IPv6": ("[::1]:8001", (), 200),
    "the own page": ("localhost:8001", ("Origin: http://localhost:8001",), 200),
}


@pytest.mark.parametrize("case", FOREIGN)
async def test_without_a_token_only_local_callers_that_know_where_they_are_may_look(case: str) -> None:
    host, headers, expected = FOREIGN[case]
    async with troubled() as (proxy, _):
        for path in ("/api/keys", "/metrics", "/no-such-page"):
            status, _, body = await admin(proxy, path, *headers, host=host)
            if status != 400:  # what the parser already refuses is refused too
                assert status == (404 if expected == 200 and path == "/no-such-page" else expected)
            if status >= 400:
                error_of(body)


async def test_a_local_operator_needs_no_token_while_none_is_set_whatever_clients_need() -> None:
    async with troubled(auth={"tokens": "team=a-client-token"}) as (proxy, _):
        assert (await admin(proxy, "/api/keys"))[0] == 200


@pytest.mark.parametrize("path", ["/api/keys", "/metrics", "/API/keys", "//api/keys", "/x/../api/keys"])
async def test_the_main_listener_has_no_page_of_the_operators(path: str) -> None:
    async with troubled() as (proxy, standin):
        whole = await proxy.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert whole.split()[1] == b"404"
        assert b"fingerprint" not in whole
        assert not standin.requests


async def test_the_admin_listener_relays_nothing_and_changes_nothing() -> None:
    async with troubled() as (proxy, standin):
        async with proxy.client.post(proxy.admin_url + GENERATE, json={}) as response:
            assert response.status == 404
        async with proxy.client.post(proxy.admin_url + "/api/keys", json={}) as response:
            assert response.status == 405
            assert "GET" in response.headers["Allow"]
            error_of(await response.read())
        async with proxy.client.head(proxy.admin_url + "/metrics") as response:
            assert response.status == 200
        assert not standin.requests


async def test_malformed_requests_to_the_admin_listener_are_refused() -> None:
    async with troubled() as (proxy, _):
        status, _, body = await admin(proxy, "/api/keys", "Bad Header")
        assert status == 400
        error_of(body)


async def test_a_reload_exchanges_the_operators_token() -> None:
    async with troubled(admin=TOKEN) as (proxy, _):
        old = proxy.server.runtime.settings
        new = old.admin.model_validate({"port": 0, "token": "another-operators-token"})
        proxy.server.runtime.apply(old.model_copy(update={"admin": new}))
        assert (await admin(proxy, "/api/keys", "x-api-key: the-operators-token"))[0] == 401
        assert (await admin(proxy, "/api/keys", "x-api-key: another-operators-token"))[0] == 200


async def test_times_are_utc_to_the_second() -> None:
    async with troubled() as (proxy, _), proxy.client.get(proxy.admin_url + "/api/keys") as answer:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", (await answer.json())["time"])
