"""A request's body: kept while it is small, passed on when it is not, and always within one budget."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from balancer.errors import ClientGone, ClientStalled, ProxyError
from balancer.relay.replay import JOIN_LIMIT, OVERLAP, Body, Budget


class Pieces:
    """A client that sends these pieces, and at the end may break."""

    def __init__(self, *pieces: bytes, broken: BaseException | None = None) -> None:
        self._left = list(pieces)
        self._broken = broken
        self.reads = 0

    async def read(self) -> bytes:
        self.reads += 1
        if self._left:
            return self._left.pop(0)
        if self._broken is not None:
            raise self._broken
        return b""


async def whole(content: bytes | AsyncIterator[bytes] | None) -> bytes:
    if content is None or isinstance(content, bytes):
        return content or b""
    return b"".join([piece async for piece in content])


def body(source: Pieces | None, limit: int = 100, budget: Budget | None = None, length: int | None = None) -> Body:
    return Body(source, length, limit, budget or Budget(1000))


async def test_a_request_without_a_body_has_none_to_send() -> None:
    none = body(None)
    await none.gather()
    assert (none.present, none.complete, none.repeatable, none.size) == (False, True, True, 0)
    assert none.content() is None
    assert none.kept() == b""
    none.release()
    assert none.repeatable


async def test_an_empty_body_is_a_body() -> None:
    empty = body(Pieces())
    await empty.gather()
    assert (empty.present, empty.complete, empty.size) == (True, True, 0)
    assert empty.content() == b""


async def test_a_small_body_is_sent_whole_any_number_of_times() -> None:
    budget = Budget(1000)
    small = body(Pieces(b"one ", b"two ", b"three"), budget=budget)
    await small.gather()
    assert (small.complete, small.size, budget.used) == (True, 13, 13)
    for _ in range(3):
        assert small.content() == b"one two three"
        assert small.repeatable
    small.release()
    assert budget.used == 0
    assert not small.repeatable


async def test_a_larger_body_is_repeated_in_the_pieces_it_came_in() -> None:
    piece = bytes(JOIN_LIMIT // 2 + 1)
    large = body(Pieces(piece, piece), limit=1 << 24, budget=Budget(1 << 24))
    await large.gather()
    assert large.complete
    for _ in range(2):
        content = large.content()
        assert isinstance(content, AsyncIterator)
        assert [each async for each in content] == [piece, piece]
        assert large.repeatable


@pytest.mark.parametrize("size", [JOIN_LIMIT, JOIN_LIMIT + 1])
async def test_the_join_limit_itself_is_still_one_piece(size: int) -> None:
    edge = body(Pieces(bytes(size)), limit=1 << 24, budget=Budget(1 << 24))
    await edge.gather()
    assert isinstance(edge.content(), bytes) == (size <= JOIN_LIMIT)


async def test_a_body_over_the_limit_is_sent_once_and_keeps_no_more_than_it_must() -> None:
    budget = Budget(1000)
    source = Pieces(b"a" * 60, b"b" * 60, b"c" * 60)
    large = body(source, limit=100, budget=budget, length=180)
    await large.gather()
    assert (large.complete, large.size, source.reads, budget.used) == (False, 120, 2, 120)
    assert large.repeatable
    content = large.content()
    assert large.repeatable  # nothing was taken: it can still go elsewhere
    assert isinstance(content, AsyncIterator)
    used = []
    got = []
    async for piece in content:
        got.append(piece)
        used.append(budget.used)
        assert not large.repeatable
    assert got == [b"a" * 60, b"b" * 60, b"c" * 60]
    assert used == [60, 0, 0]
    assert large.size == 180
    large.release()
    assert budget.used == 0


async def test_a_body_that_ends_on_the_limit_is_not_known_to_be_complete_but_arrives_whole() -> None:
    edge = body(Pieces(b"a" * 100), limit=100)
    await edge.gather()
    assert await whole(edge.content()) == b"a" * 100


async def test_without_a_limit_to_keep_under_nothing_is_kept() -> None:
    budget = Budget(1000)
    source = Pieces(b"abc", b"def")
    none = body(source, limit=0, budget=budget)
    await none.gather()
    assert await whole(none.content()) == b"abcdef"
    assert not none.repeatable
    none.release()
    assert budget.used == 0


async def test_where_the_budget_is_spent_a_body_is_passed_on_and_takes_none_of_it() -> None:
    budget = Budget(100)
    first, second = body(Pieces(b"a" * 80), budget=budget), body(Pieces(b"b" * 40, b"c" * 40), budget=budget)
    await first.gather()
    await second.gather()
    assert (first.complete, second.complete, budget.used) == (True, False, 80)
    assert await whole(second.content()) == b"b" * 40 + b"c" * 40
    second.release()
    assert budget.used == 80
    first.release()
    assert budget.used == 0


async def test_a_budget_that_runs_out_in_the_middle_gives_back_what_it_gave() -> None:
    budget = Budget(100)
    middle = body(Pieces(b"a" * 60, b"b" * 60, b"c" * 60), limit=1000, budget=budget)
    await middle.gather()
    assert (middle.size, budget.used) == (120, 60)
    content = middle.content()
    assert isinstance(content, AsyncIterator)
    assert await anext(content) == b"a" * 60
    assert budget.used == 0
    assert await anext(content) == b"b" * 60
    assert budget.used == 0
    middle.release()
    assert budget.used == 0
    assert [piece async for piece in content] == [b"c" * 60]


async def test_an_attempt_that_broke_off_in_the_middle_leaves_the_budget_whole() -> None:
    budget = Budget(1000)
    broken = body(Pieces(b"a" * 60, b"b" * 60), limit=100, budget=budget)
    await broken.gather()
    content = broken.content()
    assert isinstance(content, AsyncIterator)
    await anext(content)
    broken.release()
    assert budget.used == 0
    assert not broken.repeatable


@pytest.mark.parametrize(
    "failure", [ProxyError(413, "request_too_large", "x"), ClientStalled("x"), ClientGone(), ProxyError(400, "y", "z")]
)
@pytest.mark.parametrize("limit", [10, 1000])
async def test_a_client_that_breaks_breaks_the_call_and_is_remembered(failure: Exception, limit: int) -> None:
    budget = Budget(1000)
    broken = body(Pieces(b"a" * 60, broken=failure), limit=limit, budget=budget)

    async def send() -> None:
        await broken.gather()
        await whole(broken.content())

    with pytest.raises(type(failure)) as raised:
        await send()
    assert raised.value is failure
    assert broken.failure is (failure if limit == 10 else None)
    broken.release()
    assert budget.used == 0


async def test_releasing_twice_gives_back_once() -> None:
    budget = Budget(1000)
    other = body(Pieces(b"x" * 10), budget=budget)
    await other.gather()
    twice = body(Pieces(b"a" * 60), budget=budget)
    await twice.gather()
    twice.release()
    twice.release()
    assert budget.used == 10


async def test_looking_at_what_was_gathered_leaves_it_to_be_sent() -> None:
    large = body(Pieces(b"a" * 60, b"b" * 60, b"c"), limit=100)
    await large.gather()
    for _ in range(2):
        assert large.kept() == b"a" * 60 + b"b" * 60
        assert list(large.windows()) == [b"a" * 60 + b"b" * 60]
    assert await whole(large.content()) == b"a" * 60 + b"b" * 60 + b"c"


@pytest.mark.parametrize("step", [1, 7, OVERLAP - 1, OVERLAP, 3 * OVERLAP])
async def test_no_word_of_a_large_body_falls_between_its_windows(step: int) -> None:
    word = bytes(range(256)) * (OVERLAP // 256)
    text = bytes(JOIN_LIMIT) + word + bytes(OVERLAP)
    start = JOIN_LIMIT - OVERLAP
    pieces = [text[:start], *(text[at : at + step] for at in range(start, len(text), step))]
    large = body(Pieces(*pieces), limit=1 << 24, budget=Budget(1 << 24))
    await large.gather()
    windows = list(large.windows())
    assert any(word in window for window in windows)
    assert max(map(len, windows)) <= start + OVERLAP
    assert await whole(large.content()) == text


@pytest.mark.parametrize(("length", "fits"), [(None, True), (0, True), (100, True), (101, False)])
def test_a_declared_length_tells_whether_the_body_can_be_kept(length: int | None, fits: bool) -> None:
    assert body(Pieces(), limit=100, length=length).fits == fits


def test_a_budget_counts_to_its_limit_and_no_further() -> None:
    budget = Budget(100)
    assert budget.take(60)
    assert not budget.take(41)
    assert budget.take(40)
    assert budget.used == 100
    budget.give(100)
    budget.limit = 10  # a reload
    assert not budget.take(11)
    assert budget.take(10)
