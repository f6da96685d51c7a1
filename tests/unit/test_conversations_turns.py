"""What of a request is stored already: the longest beginning that is the newest stored turns."""

from __future__ import annotations

from datetime import UTC, datetime
from time import perf_counter

from hypothesis import given
from hypothesis import strategies as st

from balancer.conversations.base import Turn
from balancer.surfaces.conversations_turns import MOST_COMPARED, _known, storable

ROLES = st.sampled_from(["user", "assistant"])
TEXTS = st.sampled_from(["a", "b", "", [{"type": "text", "text": "a"}]])
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def turn(role: str, content: object) -> Turn:
    return Turn("id", 1, role, content, 0, None, NOW)  # type: ignore[arg-type]


@given(st.lists(st.tuples(ROLES, TEXTS), max_size=8), st.lists(st.tuples(ROLES, TEXTS), max_size=8), st.integers(0, 8))
def test_it_is_what_comparing_all_would_find(
    before: list[tuple[str, object]], rest: list[tuple[str, object]], resent: int
) -> None:
    said = [*before[-resent:], *rest] if resent else rest
    expected = next(
        size for size in range(min(len(said), len(before)), -1, -1) if size == 0 or said[:size] == before[-size:]
    )
    messages = [{"role": role, "content": content} for role, content in said]
    assert _known(messages, [turn(role, content) for role, content in before]) == expected


def test_a_call_of_tools_without_text_is_what_was_stored_of_it() -> None:
    assert _known([{"role": "assistant", "content": None}], [turn("assistant", "")]) == 1


def test_the_largest_comparison_takes_no_time_worth_mentioning() -> None:
    messages = [{"role": "user", "content": "a"}] * MOST_COMPARED
    stored = [turn("user", "a")] * (MOST_COMPARED - 1) + [turn("user", "b")]
    began = perf_counter()
    assert _known(messages, stored) == 0
    assert perf_counter() - began < 1


def test_texts_are_made_such_as_databases_keep() -> None:
    assert storable("a\ud83d\ude00\0") == "a😀\ufffd"
    assert storable([{"x\ud83d": "\ud83d"}, 5, None]) == [{"x\ufffd": "\ufffd"}, 5, None]
    assert storable("plain") == "plain"
