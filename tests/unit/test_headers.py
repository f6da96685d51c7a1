"""Header fields and request targets."""

from __future__ import annotations

import pytest

from balancer.wire.headers import (
    CLIENT_CREDENTIALS,
    REQUEST_DROP,
    RESPONSE_DROP,
    end_to_end,
    first,
    parse_date,
    parse_retry_after,
    sieve,
    strip_query,
)
from balancer.wire.often import LONGEST_NAME, LONGEST_TARGET, MOST_NAMES, MOST_TARGETS, of_target

NOW = 1_790_000_000.0
NONE: frozenset[str] = frozenset()


def test_order_spelling_and_duplicates_are_kept() -> None:
    fields = [("Vary", "Origin"), ("X-B", "2"), ("vary", "Referer"), ("x-a", ""), ("X-B", "2")]
    assert end_to_end(fields, NONE) == fields


@pytest.mark.parametrize(
    "name",
    [
        "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "TE", "Trailer",
        "Transfer-Encoding", "Upgrade",
    ],
)  # fmt: skip
def test_hop_by_hop_fields_do_not_travel(name: str) -> None:
    assert end_to_end([(name, "x"), ("Accept", "*/*")], NONE) == [("Accept", "*/*")]


@pytest.mark.parametrize(
    "connection",
    ["X-Secret", "close, x-secret", "keep-alive,\tX-SECRET ,", ",x-secret"],
)
def test_fields_named_by_connection_do_not_travel_wherever_they_stand(connection: str) -> None:
    fields = [("x-Secret", "1"), ("Connection", connection), ("X-Secret", "2"), ("X-Secret-2", "stays")]
    assert end_to_end(fields, NONE) == [("X-Secret-2", "stays")]


def test_several_connection_fields_count_together() -> None:
    fields = [
        ("Connection", "a"),
        ("Connection", "keep-alive"),
        ("connection", "b"),
        ("A", "1"),
        ("B", "2"),
        ("C", "3"),
    ]
    assert end_to_end(fields, NONE) == [("C", "3")]


@pytest.mark.parametrize(
    "name",
    [
        *sorted(CLIENT_CREDENTIALS),
        "Host", "Content-Length", "Cookie", "X-Session-Id", "Expect", "X-Goog-User-Project", "Forwarded",
        "Via", "X-Forwarded-For", "X-Forwarded-Anything", "x-original-url", "X-Real-IP", "CF-Connecting-IP", "CF-Connecting-IPv6",
        "True-Client-IP", "Proxy-Anything", "X-GOOG-API-KEY", "AUTHORIZATION",
    ],
)  # fmt: skip
def test_what_no_upstream_may_see_is_dropped(name: str) -> None:
    assert end_to_end([(name, "secret")], REQUEST_DROP) == []


@pytest.mark.parametrize(
    "name",
    [
        "Accept-Encoding",
        "X-Goog-Api-Client",
        "X-Server-Timeout",
        "X-Goog-Upload-Offset",
        "X-Forward",
        "Forwarded-By",
        "Referer",
    ],
)
def test_what_is_the_callers_own_travels(name: str) -> None:
    assert end_to_end([(name, "x")], REQUEST_DROP) == [(name, "x")]


def test_what_speaks_for_our_origin_is_dropped_from_answers() -> None:
    fields = [
        ("Set-Cookie", "a=b"),
        ("Alt-Svc", "h3"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Retry-After", "3"),
    ]
    assert end_to_end(fields, RESPONSE_DROP) == [("Retry-After", "3")]


def test_the_first_value_of_a_field_is_found_in_any_spelling() -> None:
    assert first([("A", "1"), ("b", "2"), ("B", "3")], "b") == "2"
    assert first([("A", "1")], "b") is None


@pytest.mark.parametrize(
    ("target", "rest", "removed"),
    [
        ("/v1beta/models", "/v1beta/models", {}),
        ("/m?", "/m?", {}),
        ("/m?alt=sse", "/m?alt=sse", {}),
        ("/m?key=K", "/m", {"key": "K"}),
        ("/m?key", "/m", {"key": ""}),
        ("/m?key=", "/m", {"key": ""}),
        ("/m?key=a&alt=sse&key=b", "/m?alt=sse", {"key": "a"}),
        ("/m?alt=sse&key=K&pageSize=3", "/m?alt=sse&pageSize=3", {"key": "K"}),
        ("/m?k%65y=a%2Bb+c%20d", "/m", {"key": "a+b c d"}),
        ("/m?key=K=&x=%2F", "/m?x=%2F", {"key": "K="}),
        ("/m?a=1&&b=%zz&key=K&", "/m?a=1&&b=%zz&", {"key": "K"}),
        ("/m?KEY=1&monkey=2&key%20=3", "/m?KEY=1&monkey=2&key%20=3", {}),
        ("/m?x=?key=K&session_id=S", "/m?x=?key=K", {"session_id": "S"}),
        ("/m%3Fkey=K", "/m%3Fkey=K", {}),
        ("/m?key=\udcff", "/m", {"key": "\udcff"}),
    ],
)
def test_members_are_taken_out_of_a_query_and_the_rest_keeps_its_bytes(
    target: str, rest: str, removed: dict[str, str]
) -> None:
    assert strip_query(target, frozenset({"key", "session_id"})) == (rest, removed)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2026 14:13:50 -0000", 30.0),
        ("Mon Sep 21 14:13:50 2026", 30.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("٣", None),
        ("9" * 400, None),
        ("Mon, 99 Sep 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_nothing_else(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


def test_a_date_says_nothing_where_the_time_is_not_known() -> None:
    assert parse_retry_after("Mon, 21 Sep 2026 14:13:50 GMT", float("nan")) is None
    assert parse_date("Mon, 21 Sep 2026 14:13:50 GMT") == NOW + 30


@pytest.mark.parametrize("length", [LONGEST_NAME, LONGEST_NAME + 1])
def test_callers_names_are_remembered_while_they_are_short_and_not_too_many(length: int) -> None:
    passes = sieve({"x-ours"})
    for number in range(2 * MOST_NAMES):
        assert passes[f"x-{number:0{length - 2}}"] is True
    assert len(passes) == (MOST_NAMES if length == LONGEST_NAME else 0)
    assert [passes[name] for name in ("X-Ours", "Connection")] == [False, None]


@pytest.mark.parametrize("length", [LONGEST_TARGET, LONGEST_TARGET + 1])
def test_targets_are_remembered_while_they_are_short_and_not_too_many(length: int) -> None:
    asked: list[str] = []
    decide = of_target(asked.append)
    targets = [f"/{number:0{length - 1}}" for number in range(MOST_TARGETS)]
    for target in targets * 2:
        decide(target)
    assert len(asked) == MOST_TARGETS * (1 if length == LONGEST_TARGET else 2)
    decide("/one-more")
    decide(targets[0])
    assert asked[-1] == targets[0]
