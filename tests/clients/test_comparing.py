"""The comparison of bytes itself: it finds what it is there to find, and reads the wire rightly."""

from __future__ import annotations

import asyncio

import pytest

from tests.clients.comparing import Compared, Server, compare
from tests.clients.tap import Exchange, Message, Tap
from tests.upstream import Peer, Seen, raw_upstream, serving

KEY, TOKEN = "sk-pool-key-1", "token-of-ann"
SENT = Message(
    "POST /v1/chat/completions?session_id=s&x=1 HTTP/1.1",
    (
        ("Host", "proxy"),
        ("Authorization", f"Bearer {TOKEN}"),
        ("X-Own", "1"),
        ("Cookie", "a=b"),
        ("Accept-Encoding", "gzip"),
    ),
    b'{"model": "oa/gpt", "messages": [1]}',
)
ARRIVED = Message(
    "POST /v1/chat/completions?x=1 HTTP/1.1",
    (("Host", "up"), ("authorization", f"Bearer {KEY}"), ("x-own", "1"), ("Accept-Encoding", "gzip")),
    b'{"model": "gpt", "messages": [1]}',
)
ANSWERED = Message("HTTP/1.1 200 OK", (("x-request-id", "r"), ("set-cookie", "c"), ("server", "up")), b"data")
GOT = Message("HTTP/1.1 200 OK", (("X-Request-ID", "r"), ("Server", "up")), b"data")


def seen(
    sent: Message = SENT, arrived: Message = ARRIVED, answered: Message = ANSWERED, got: Message = GOT
) -> Compared:
    server = Server(("oa",), "/v1", (KEY,), [Exchange(arrived, answered)], {"fast": "gpt"})
    return compare([Exchange(sent, got)], [server], [TOKEN])


def changed(message: Message, *, body: bytes | None = None, **fields: str) -> Message:
    """Fields with that name exchanged, or put at the end; "" leaves one out."""
    new = {name.replace("_", "-"): value for name, value in fields.items()}
    kept = [(name, new.pop(name.lower(), value)) for name, value in message.fields]
    both = tuple((name, value) for name, value in (*kept, *new.items()) if value)
    return Message(message.start, both, message.body if body is None else body)


def test_what_may_differ_is_no_difference() -> None:
    assert seen() == Compared(1, ())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "gpt", "messages": [1]}',
        b'{"model": "fast", "messages": [1]}',
        b'{"session_id": "s", "model": "oa/gpt", "messages": [1]}',
        b'{"metadata": {"sessionId": "s"}, "model": "oa/gpt", "messages": [1]}',
    ],
)
def test_a_bare_model_an_alias_and_the_sessions_members_are_no_difference(body: bytes) -> None:
    assert seen(changed(SENT, body=body)) == Compared(1, ())


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt", "messages": [1]}',
        b'{"model": "oa/gpt", "messages": [1]}',
        b'{"messages": [1], "model": "gpt"}',
        b'{"model": "gpt", "messages": [1.0]}',
    ],
    ids=["a blank", "the prefix", "the order", "a number"],
)
def test_a_body_that_was_touched_is_a_difference(body: bytes) -> None:
    assert len(seen(arrived=changed(ARRIVED, body=body)).differences) == 1


@pytest.mark.parametrize(
    ("arrived", "word"),
    [
        (changed(ARRIVED, x_own=""), "fields up"),
        (changed(ARRIVED, x_own="2"), "fields up"),
        (changed(ARRIVED, x_forwarded_for="1"), "fields up"),
        (changed(ARRIVED, accept_encoding="identity"), "Accept-Encoding"),
        (changed(ARRIVED, authorization="Bearer sk-other"), "key of the pool"),
        (changed(ARRIVED, authorization=""), "key of the pool"),
        (changed(ARRIVED, authorization=f"Bearer {TOKEN}"), "what a client showed"),
    ],
)
def test_fields_that_were_touched_on_the_way_up_are_differences(arrived: Message, word: str) -> None:
    assert any(word in each for each in seen(arrived=arrived).differences)


@pytest.mark.parametrize(
    "got",
    [
        changed(GOT, body=b"dat"),
        changed(GOT, x_request_id="other"),
        changed(GOT, set_cookie="c"),
        changed(GOT, via="1"),
    ],
)
def test_an_answer_that_was_touched_is_a_difference(got: Message) -> None:
    assert len(seen(got=got).differences) == 1


def test_a_request_that_went_to_another_upstream_is_a_difference() -> None:
    assert len(seen(changed(SENT, body=SENT.body.replace(b"oa/", b"gemini/"))).differences) == 1


def test_an_answer_of_the_proxys_own_is_a_difference_where_it_has_none_to_give() -> None:
    own = changed(GOT, server="balancer")
    assert seen(got=own).differences == ("POST /v1/chat/completions?session_id=s&x=1 200: answered by the proxy",)
    refused = Message("HTTP/1.1 404 Not Found", own.fields, b"{}")
    assert seen(got=refused) == Compared(0, ())


def test_an_error_of_googles_comes_without_its_brackets() -> None:
    answered = Message("HTTP/1.1 400 Bad Request", (("server", "up"), ("content-length", "13")), b'[{"error":1}]')
    got = Message("HTTP/1.1 400 Bad Request", (("server", "up"), ("x-request-id", "ours")), b'{"error":1}')
    assert seen(answered=answered, got=got) == Compared(1, ())
    assert len(seen(answered=answered, got=changed(got, body=answered.body)).differences) == 1


async def test_a_tap_reads_what_both_ends_send_however_it_is_framed() -> None:
    async def answering(peer: Peer, asked: Seen) -> None:
        await peer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        if asked.line.startswith("GET"):
            await peer.answer(b'{"a": 1}', headers=("X-Two: 1", "x-two: 2"))
            return
        await peer.stream()
        for piece in (b"data: 1\r\n", asked.body):
            await peer.chunk(piece)
        await peer.end()

    tap = Tap()
    async with raw_upstream(serving(answering)) as upstream, tap.before(upstream.url) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /a HTTP/1.1\r\nHost: h\r\nX-Own:  1 \r\n\r\n")
        await _until(reader, b'{"a": 1}')
        writer.write(
            b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        await _until(reader, b"0\r\n\r\n")
        writer.write(b"POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf")
        for _ in range(3):
            await upstream.arrival()
        writer.close()
    first, second = tap.exchanges()
    assert (first.method, first.target, first.status, first.answer.body) == ("GET", "/a", 200, b'{"a": 1}')
    assert (first.request.get("x-own"), first.answer.count("x-two")) == ("1", 2)
    assert (second.target, second.request.body, second.answer.body) == ("/b", b"abcde", b"data: 1\r\nabcde")


async def _until(reader: asyncio.StreamReader, mark: bytes) -> None:
    async with asyncio.timeout(10):
        await reader.readuntil(mark)
