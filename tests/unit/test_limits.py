"""What a client may ask: admission, what its refusal says, and the limit of output tokens in the bytes of a body."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ProxyError
from balancer.model import Client
from balancer.routing.limits import Limits, limited
from balancer.state.memory import MemoryCounters
from balancer.web import error_answer, span
from balancer.wire.google_limits import MOST_PARTS, TooLarge, edits
from tests.fakes import FakeClock

# Admission ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def limits(clock: FakeClock) -> Limits:
    return Limits(MemoryCounters(clock))


async def refused(limits: Limits, client: Client) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        await limits.admit(client)
    assert caught.value.status == 429
    return caught.value


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (Client("a"), False),
        (Client("a", max_tokens=5), False),
        (Client("a", rpm=5), True),
        (Client("a", concurrency=5), True),
    ],
)
def test_only_clients_with_rpm_or_concurrency_are_counted(client: Client, expected: bool) -> None:
    assert limited(client) is expected


async def test_over_rpm_the_refusal_says_when_the_oldest_request_leaves_the_minute(
    limits: Limits, clock: FakeClock
) -> None:
    client = Client("a", rpm=2)
    for _ in range(2):
        await limits.admit(client)
        await limits.release(client)
        clock.advance(10)
    error = await refused(limits, client)
    assert (error.code, error.retry_after, error.limit) == ("rate_limit_exceeded", 40.0, (2, 0, 40.0))
    clock.advance(40)
    await limits.admit(client)
    assert (await refused(limits, client)).retry_after == 10.0


async def test_over_concurrency_a_request_passes_as_soon_as_another_ends(limits: Limits) -> None:
    client = Client("a", concurrency=2)
    await limits.admit(client)
    await limits.admit(client)
    error = await refused(limits, client)
    assert (error.code, error.retry_after, error.limit) == ("concurrency_exceeded", 1.0, (2, 0, 1.0))
    await limits.release(client)
    await limits.admit(client)


async def test_a_lower_limit_of_a_reload_counts_at_once_and_a_higher_one_too(limits: Limits, clock: FakeClock) -> None:
    for _ in range(4):
        await limits.admit(Client("a", rpm=4))
        clock.advance(5)
    assert (await refused(limits, Client("a", rpm=2))).retry_after == 50.0
    await limits.admit(Client("a", rpm=5))


SPANS = {
    -1.0: "0ms",
    0.0: "0ms",
    0.0001: "1ms",
    0.25: "250ms",
    0.9999: "1s",
    1.0: "1s",
    11.2: "12s",
    59.01: "1m0s",
    63.0: "1m3s",
    3600.0: "1h0m0s",
    7322.5: "2h2m3s",
}


@pytest.mark.parametrize("seconds", SPANS)
def test_a_span_is_written_as_openai_writes_it_and_rounded_up(seconds: float) -> None:
    assert span(seconds) == SPANS[seconds]


async def test_a_refusal_for_a_limit_carries_its_numbers_in_every_dialect() -> None:
    error = ProxyError(429, "rate_limit_exceeded", "no", retry_after=62.1, limit=(600, 0, 62.1))
    headers = error_answer(error, b"{}").headers
    assert headers["Retry-After"] == "63"
    assert headers["x-ratelimit-limit-requests"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m3s"
    other = error_answer(ProxyError(429, "keys_resting", "no", retry_after=1), b"{}").headers
    assert not [name for name in other if name.lower().startswith("x-ratelimit")]


# The limit of output tokens in a body of generateContent --------------------------------------------------------------


def bounded(body: bytes, most: int = 100) -> bytes:
    for start, end, new in reversed(edits(body, most)):
        body = body[:start] + new + body[end:]
    return body


BODIES: dict[str, tuple[bytes, bytes]] = {
    "nothing": (b"{}", b'{"generationConfig":{"maxOutputTokens":100}}'),
    "blanks": (b" { } ", b' {"generationConfig":{"maxOutputTokens":100} } '),
    "no config": (b'{"contents":[]}', b'{"generationConfig":{"maxOutputTokens":100},"contents":[]}'),
    "an empty config": (b'{"generationConfig":{}}', b'{"generationConfig":{"maxOutputTokens":100}}'),
    "another member in it": (
        b'{"generationConfig": {"topK": 1}}',
        b'{"generationConfig": {"maxOutputTokens":100,"topK": 1}}',
    ),
    "no object": (b'{"generationConfig": null, "a": 1}', b'{"generationConfig": {"maxOutputTokens":100}, "a": 1}'),
    "more": (b'{"generationConfig":{"maxOutputTokens": 500 }}', b'{"generationConfig":{"maxOutputTokens": 100 }}'),
    "snake case": (
        b'{"generation_config":{"max_output_tokens":500}}',
        b'{"generation_config":{"max_output_tokens":100}}',
    ),
    "both spellings": (
        b'{"generation_config":{"maxOutputTokens":500,"max_output_tokens":600}}',
        b'{"generation_config":{"maxOutputTokens":100,"max_output_tokens":100}}',
    ),
    "no number": (
        b'{"generationConfig":{"maxOutputTokens":null}}',
        b'{"generationConfig":{"maxOutputTokens":100}}',
    ),
    "zero": (b'{"generationConfig":{"maxOutputTokens":0}}', b'{"generationConfig":{"maxOutputTokens":100}}'),
    "less than zero": (b'{"generationConfig":{"maxOutputTokens":-1}}', b'{"generationConfig":{"maxOutputTokens":100}}'),
    "a number in quotes": (
        b'{"generationConfig":{"maxOutputTokens":"500"}}',
        b'{"generationConfig":{"maxOutputTokens":100}}',
    ),
    "an exponent": (b'{"generationConfig":{"maxOutputTokens":5e2}}', b'{"generationConfig":{"maxOutputTokens":100}}'),
    "beyond all numbers": (
        b'{"generationConfig":{"maxOutputTokens":1e999}}',
        b'{"generationConfig":{"maxOutputTokens":100}}',
    ),
    "twice in a config": (
        b'{"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":500}}',
        b'{"generationConfig":{"maxOutputTokens":1,"maxOutputTokens":100}}',
    ),
    "two configs": (
        b'{"generationConfig":{"maxOutputTokens":9},"generation_config":{"topK":1}}',
        b'{"generationConfig":{"maxOutputTokens":9},"generation_config":{"maxOutputTokens":100,"topK":1}}',
    ),
    "escaped names": (
        rb'{"generation\u0043onfig":{"max\u004futputTokens":500}}',
        rb'{"generation\u0043onfig":{"max\u004futputTokens":100}}',
    ),
    "names in single quotes": (
        b"{'generationConfig':{'maxOutputTokens':'500'}}",
        b"{'generationConfig':{'maxOutputTokens':100}}",
    ),
    "names without quotes": (
        b"{a:1,generationConfig:{maxOutputTokens:500}}",
        b"{a:1,generationConfig:{maxOutputTokens:100}}",
    ),
    "a comma missing": (
        b'{"a":[1,{"b":2}] "generationConfig":{"maxOutputTokens":500}}',
        b'{"a":[1,{"b":2}] "generationConfig":{"maxOutputTokens":100}}',
    ),
    "brackets in texts": (
        rb'{"a":"}\"{[\\","b":["]}",{"c":"'
        rb"'"
        rb'"}],"generationConfig":{"stopSequences":["}"],"maxOutputTokens":500}}',
        rb'{"a":"}\"{[\\","b":["]}",{"c":"'
        rb"'"
        rb'"}],"generationConfig":{"stopSequences":["}"],"maxOutputTokens":100}}',
    ),
    "a mark of byte order": (
        b'\xef\xbb\xbf{"generationConfig":{"maxOutputTokens":500}}',
        b'\xef\xbb\xbf{"generationConfig":{"maxOutputTokens":100}}',
    ),
    "a config elsewhere": (
        b'{"a":{"generationConfig":{"maxOutputTokens":500}}}',
        b'{"generationConfig":{"maxOutputTokens":100},"a":{"generationConfig":{"maxOutputTokens":500}}}',
    ),
    "a limit elsewhere": (
        b'{"generationConfig":{"thinkingConfig":{"maxOutputTokens":500},"maxOutputTokens":50}}',
        b'{"generationConfig":{"thinkingConfig":{"maxOutputTokens":500},"maxOutputTokens":50}}',
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_the_limit_in_a_body_is_lowered_or_set_and_nothing_else_is_touched(case: str) -> None:
    body, expected = BODIES[case]
    assert bounded(body) == expected
    assert bounded(expected) == expected


@pytest.mark.parametrize("said", [b"1", b"50", b"100", b'"100"', b"1e2", b"true", b'"many"', b"{}", b"[5]", b'"1-2"'])
def test_a_limit_that_is_lower_or_none_of_ours_to_judge_stays(said: bytes) -> None:
    body = b'{"generationConfig":{"maxOutputTokens":' + said + b"}}"
    assert bounded(body) == body


@pytest.mark.parametrize(
    "body", [b"", b" ", b"[]", b'"x"', b"null", b"no json", b"\xff{}", b'[{"generationConfig":{}}]']
)
def test_what_is_no_object_is_the_upstream_s_to_refuse(body: bytes) -> None:
    assert edits(body, 100) == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"a',
        b'{"a":',
        b'{"a":}',
        b'{"a":]}',
        b'{"a":"x',
        b'{"a":"x\\',
        b'{"generationConfig":',
        b'{"generationConfig":{',
        b'{"generationConfig":{"maxOutputTokens":',
        b'{"generationConfig":{"maxOutputTokens":500',
        b'{"generationConfig":{"stop\\ud800":1,"maxOutputTokens":500}}',
        b"{" * 1000,
    ],
)
def test_a_body_that_ends_early_harms_nobody(body: bytes) -> None:
    assert b"500" not in bounded(body)


@pytest.mark.parametrize(
    "filler", [b'{"generationConfig":' + b"[" * MOST_PARTS, b"{" + b'"\\u0061":1,' * (MOST_PARTS + 1) + b"}"]
)
def test_a_body_of_very_many_parts_is_given_up(filler: bytes) -> None:
    with pytest.raises(TooLarge):
        edits(filler, 100)


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["maxOutputTokens", "a"]), inner),
    max_leaves=10,
)
bodies = st.dictionaries(
    st.text() | st.sampled_from(["contents", "generationConfigs"]), values
) | st.fixed_dictionaries(
    {"generationConfig": st.dictionaries(st.text(), values)},
    optional={"contents": values, "generation_config": st.just({"max_output_tokens": 7})},
)


@given(body=bodies, most=st.integers(1, 10**6), ascii_only=st.booleans(), indent=st.none() | st.just(2))
def test_any_body_asks_for_no_more_and_for_everything_else_as_before(
    body: dict[str, Any], most: int, ascii_only: bool, indent: int | None
) -> None:
    raw = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    after = json.loads(bounded(raw, most).decode("utf-8", "surrogatepass"))
    had = {**body.get("generationConfig", {}), **body.get("generation_config", {})}
    config = after.pop("generationConfig", {}) | after.pop("generation_config", {})
    limit = config.pop("maxOutputTokens", None) or config.pop("max_output_tokens", None)
    said = had.pop("maxOutputTokens", None)
    if said is None or (isinstance(said, int) and not isinstance(said, bool)):
        assert isinstance(limit, int)
        assert 1 <= limit <= most
    body.pop("generationConfig", None)
    body.pop("generation_config", None)
    had.pop("max_output_tokens", None)
    config.pop("max_output_tokens", None)
    assert (after, config) == (body, had)


def test_what_google_would_read_is_read_here_where_it_is_json_at_all() -> None:
    raw = orjson.dumps({"contents": [{"parts": [{"text": 'say "generationConfig": {"maxOutputTokens": 5}'}]}]})
    assert json.loads(bounded(raw))["generationConfig"] == {"maxOutputTokens": 100}
