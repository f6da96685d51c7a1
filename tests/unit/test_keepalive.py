"""Comments in a silent stream: only between two events, only where they can be told from the text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import ClientGone
from balancer.model import Record
from balancer.relay.keepalive import COMMENT, KeepAlive
from balancer.wire.event_boundary import EventBoundary

SILENCE = 0.01
WAIT = 5.0


class Client:
    """The client's end: what was written, and an event for the next comment."""

    def __init__(self) -> None:
        self.got = b""
        self.comments = asyncio.Semaphore(0)
        self.gone = False

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise ClientGone
        self.got += data
        if data == COMMENT:
            self.comments.release()

    async def comment(self) -> None:
        async with asyncio.timeout(WAIT):
            await self.comments.acquire()


class Stream:
    """What the relay does with a stream: each piece is announced, written, and done."""

    def __init__(self, client: Client, kept: KeepAlive) -> None:
        self._client, self._kept = client, kept

    async def send(self, data: bytes) -> None:
        self._kept.passing(data)
        await self._client.write(data)
        self._kept.passed()


@asynccontextmanager
async def stream(client: Client) -> AsyncIterator[Stream]:
    record = Record(0.0, "id")
    kept = KeepAlive(client, record, SILENCE)
    try:
        yield Stream(client, kept)
    finally:
        kept.stop()
        assert record.bytes_out == client.got.count(COMMENT) * len(COMMENT)


async def test_silence_between_two_events_gets_comments_again_and_again() -> None:
    client = Client()
    async with stream(client) as told:
        await client.comment()  # before the first event too
        await told.send(b"data: 1\n\n")
        for _ in range(3):
            await client.comment()
    assert client.got.replace(COMMENT, b"") == b"data: 1\n\n"


async def test_silence_inside_an_event_gets_none_until_it_has_ended() -> None:
    clock, client = Client(), Client()
    async with stream(clock), stream(client) as told:
        await told.send(b"data: 1\n")
        for _ in range(4):
            await clock.comment()
        assert client.got == b"data: 1\n"
        await told.send(b"\n")
        await client.comment()
        assert client.got.startswith(b"data: 1\n\n" + COMMENT)


async def test_a_comment_that_was_about_to_be_written_stays_out_of_an_event_that_begins() -> None:
    """The timer has fired and the comment's task waits for its turn, while the first half of an event is passed on."""
    client = Client()
    record = Record(0.0, "id")
    kept = KeepAlive(client, record, WAIT)
    kept._seconds = 0.0
    kept._look()
    kept.passing(b"data: ha")
    kept.passed()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    kept.stop()
    assert client.got == b""
    assert record.bytes_out == 0


async def test_a_client_that_is_slow_to_read_gets_none() -> None:
    clock, client = Client(), Client()
    kept = KeepAlive(client, Record(0.0, "id"), SILENCE)
    async with stream(clock):
        kept.passing(b"data: 1\n\n")  # and is not done writing
        for _ in range(4):
            await clock.comment()
    kept.stop()
    assert client.got == b""


async def test_a_client_that_has_left_is_found_out_by_whoever_writes_next() -> None:
    clock, client = Client(), Client()
    client.gone = True
    kept = KeepAlive(client, Record(0.0, "id"), SILENCE)
    async with stream(clock):
        for _ in range(4):
            await clock.comment()
    kept.stop()


async def test_nothing_is_written_after_the_end() -> None:
    clock, client = Client(), Client()
    async with stream(client) as told:
        await told.send(b"data: [DONE]\n\n")
    got = client.got
    async with stream(clock):
        for _ in range(4):
            await clock.comment()
    assert client.got == got


@pytest.mark.parametrize(
    ("headers", "fits"),
    [
        ([("Content-Type", "text/event-stream")], True),
        ([("content-type", "Text/Event-Stream; charset=utf-8")], True),
        ([("Content-Type", "text/event-stream"), ("Content-Encoding", "identity")], True),
        ([("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip")], False),
        ([("Content-Type", "text/event-stream"), ("Content-Length", "100")], False),
        ([("Content-Type", "application/json")], False),
        ([], False),
    ],
)
def test_only_a_plain_event_stream_without_a_length_takes_comments(headers: list[tuple[str, str]], fits: bool) -> None:
    assert KeepAlive.fits(headers) is fits


LINE_ENDS = ("\n", "\r\n", "\r")


@given(
    events=st.lists(
        st.lists(st.sampled_from(["data: x", ": c", "id: 1", "data:"]), min_size=1, max_size=3), max_size=4
    ),
    end=st.sampled_from(LINE_ENDS),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_a_boundary_is_seen_however_the_stream_is_cut(events: list[list[str]], end: str, cuts: list[int]) -> None:
    text = b""
    ends = {0}
    for event in events:
        text += (end.join(event) + end + end).encode()
        ends.add(len(text))
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    boundary = EventBoundary()
    for start, stop in pairwise(places):
        between = boundary.feed(text[start:stop])
        inside = stop not in ends and not (end == "\r\n" and stop + 1 in ends)  # the LF of the empty line may follow
        assert between is not inside
