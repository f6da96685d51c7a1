"""Which conversation a request means, place by place."""

from __future__ import annotations

from typing import Any

import pytest

from balancer.wire.session_ids import Derived, Explicit, Fresh, SessionId, choose

BIG = 1 << 53


def test_the_first_place_with_an_explicit_id_wins() -> None:
    places: dict[str, Any] = {
        "header": "1",
        "query": "2",
        "body": "3",
        "metadata": {"sessionId": 4},
        "prefix": "5",
        "user": "6",
    }
    for number in range(1, 6):
        assert choose(**places) == Explicit(number)
        del places[next(iter(places))]
    assert choose(**places) == Derived("6")


def test_the_first_place_with_a_handle_wins_where_no_id_is_explicit() -> None:
    places: dict[str, Any] = {
        "header": "a",
        "query": "b",
        "body": "c",
        "metadata": {"sessionId": "d"},
        "prefix": "e",
        "user": "f",
    }
    for handle in "abcdef":
        assert choose(**places) == Derived(handle)
        del places[next(iter(places))]
    assert choose() == Fresh()


def test_an_explicit_id_in_a_later_place_counts_before_a_handle_in_an_earlier_one() -> None:
    assert choose(header="abc", prefix="296270") == Explicit(296270)
    assert choose(header="abc", metadata={"sessionId": 296270.0}, user="u") == Explicit(296270)


@pytest.mark.parametrize("text", ["abc", "0", "-5", "12.9", "1e3", "+5", str(BIG), "９", "000", "0x10", "1 2", "1_000"])
def test_a_text_that_is_no_such_number_is_a_handle(text: str) -> None:
    assert choose(header=text) == Derived(text.casefold())


@pytest.mark.parametrize(
    ("text", "number"), [(" 296270 ", 296270), ("1", 1), ("007", 7), (str(BIG - 1), BIG - 1), ("0" * 200 + "9", 9)]
)
def test_digits_within_the_range_are_explicit(text: str, number: int) -> None:
    assert choose(header=text) == Explicit(number)
    assert choose(metadata={"sessionId": text}) == Explicit(number)
    assert choose(prefix=text) == Explicit(number)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (296270, Explicit(296270)),
        (296270.0, Explicit(296270)),
        ("296270", Explicit(296270)),
        ("Talk", Derived("talk")),
        (0.5, Fresh()),
        (True, Fresh()),
        (None, Fresh()),
        (-1, Fresh()),
        (0, Fresh()),
        (BIG, Fresh()),
        (float("inf"), Fresh()),
        (float("nan"), Fresh()),
        ([1], Fresh()),
        ({"id": 1}, Fresh()),
    ],
)
def test_a_json_value_counts_as_a_whole_number_or_a_text(value: Any, expected: SessionId) -> None:
    assert choose(metadata={"sessionId": value}) == expected
    assert choose(body=value) == expected


@pytest.mark.parametrize("metadata", [7, "296270", None, [], {}, {"sessionid": 5}])
def test_metadata_of_another_form_is_passed_over(metadata: Any) -> None:
    assert choose(metadata=metadata, user="u") == Derived("u")


@pytest.mark.parametrize("user", ["", "  ", 5, None, "a\nb", "x" * 257, "\udcff"])
def test_a_user_that_cannot_be_a_handle_is_passed_over(user: Any) -> None:
    assert choose(user=user) == Fresh()


def test_a_handle_is_trimmed_and_case_folded() -> None:
    assert choose(user="  Straße ") == choose(user="STRASSE") == Derived("strasse")
    assert choose(user="x" * 256) == Derived("x" * 256)


@pytest.mark.parametrize("place", ["header", "query", "body", "prefix", "user"])
def test_where_conversations_are_not_numbered_digits_are_a_handle(place: str) -> None:
    given: dict[str, Any] = {place: " 296270 "}
    assert choose(**given, numbered=False) == Derived("296270")


@pytest.mark.parametrize(
    ("value", "expected"), [(296270, Derived("296270")), ("7", Derived("7")), (True, Fresh()), (0.5, Fresh())]
)
def test_where_conversations_are_not_numbered_a_whole_number_is_a_handle_too(value: Any, expected: SessionId) -> None:
    assert choose(metadata={"sessionId": value}, header=None, numbered=False) == expected
    assert choose(body=value, numbered=False) == expected
