"""The bytes of an answer on its way to the client: head, framing, and what of them a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from balancer.errors import AnswerBroken, ClientGone
from balancer.model import Record
from balancer.surfaces.base import ClientReply

DATE = ("Date", "Sat, 21 Nov 2026 14:14:33 GMT")
MARK = b"X-Request-Id: id-1\r\n"
STAMP = b"Date: Sat, 21 Nov 2026 14:14:33 GMT\r\n"

Use = Callable[[ClientReply], Awaitable[None]]


@asynccontextmanager
async def answering(
    use: Use, *, close: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection whose requests are answered by `use`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        reply = ClientReply(request, Record(0.0, "id-1", close=close))
        await use(reply)
        assert reply.response is not None
        return reply.response

    app = web.Application()
    app.router.add_route("*", "/", handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        yield reader, writer
        writer.transport.abort()
    finally:
        await runner.cleanup()


def whole(status: int, headers: list[tuple[str, str]], *pieces: bytes) -> Use:
    async def use(reply: ClientReply) -> None:
        await reply.start(status, "Fine", headers)
        for piece in pieces:
            await reply.write(piece)
        await reply.finish()

    return use


async def asked(use: Use, request: bytes, *, close: bool = False) -> bytes:
    """All that comes back for one request and a second one, which asks to close."""
    async with asyncio.timeout(5), answering(use, close=close) as (reader, writer):
        writer.write(request)
        return await reader.read()


GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
OLD = b"GET / HTTP/1.0\r\nHost: x\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "use", "sent"),
    [
        (GET, whole(200, [("content-LENGTH", "3"), DATE], b"ab", b"c"),
         b"HTTP/1.1 200 Fine\r\ncontent-LENGTH: 3\r\n" + STAMP + MARK + CLOSE + b"abc"),
        (GET, whole(200, [DATE], b"ab", b"", b"c" * 17),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + MARK + b"Transfer-Encoding: chunked\r\n" + CLOSE
         + b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n"),
        (GET, whole(200, [DATE]),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + MARK + b"Transfer-Encoding: chunked\r\n" + CLOSE + b"0\r\n\r\n"),
        (GET, whole(200, [DATE, ("x-request-id", "theirs"), ("Content-Length", "0")]),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + b"x-request-id: theirs\r\nContent-Length: 0\r\n" + CLOSE),
        (GET, whole(200, [DATE, ("Content-Length", "2")], b"abc", b"d"),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + b"Content-Length: 2\r\n" + MARK + CLOSE + b"ab"),
        (GET, whole(204, [DATE, ("Content-Length", "0")]), b"HTTP/1.1 204 Fine\r\n" + STAMP + MARK + CLOSE),
        (GET, whole(304, [DATE, ("Content-Length", "9")]),
         b"HTTP/1.1 304 Fine\r\n" + STAMP + b"Content-Length: 9\r\n" + MARK + CLOSE),
        (HEAD, whole(200, [DATE, ("Content-Length", "9")]),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + b"Content-Length: 9\r\n" + MARK + CLOSE),
        (HEAD, whole(200, [DATE]), b"HTTP/1.1 200 Fine\r\n" + STAMP + MARK + CLOSE),
        (OLD, whole(200, [DATE], b"abc"), b"HTTP/1.0 200 Fine\r\n" + STAMP + MARK + CLOSE + b"abc"),
        (GET, whole(200, [DATE, ("X-Odd", "\udcff\udcfe é"), ("Content-Length", "0")]),
         b"HTTP/1.1 200 Fine\r\n" + STAMP + b"X-Odd: \xff\xfe \xc3\xa9\r\nContent-Length: 0\r\n" + MARK + CLOSE),
    ],
    ids=["length", "chunked", "chunked and empty", "an id of the upstream's", "more than its length", "204", "304",
         "HEAD", "HEAD without length", "HTTP/1.0", "bytes that are no text"],
)  # fmt: skip
async def test_an_answer_is_framed_as_its_request_and_status_ask(request_: bytes, use: Use, sent: bytes) -> None:
    assert await asked(use, request_) == sent


async def test_a_connection_is_kept_where_the_client_may_know_the_end() -> None:
    use = whole(200, [DATE, ("Content-Length", "1")], b"a")
    kept = b"HTTP/1.1 200 Fine\r\n" + STAMP + b"Content-Length: 1\r\n" + MARK
    modern = GET.replace(b"Connection: close\r\n", b"")
    assert await asked(use, modern + GET) == kept + b"\r\na" + kept + CLOSE + b"a"
    old = OLD.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
    first, second = (await asked(use, old + OLD)).replace(b"HTTP/1.0", b"HTTP/1.1").split(b"a" + kept[:4], 1)
    assert (first, kept[:4] + second) == (kept + b"Connection: keep-alive\r\n\r\n", kept + CLOSE + b"a")


async def test_while_draining_every_answer_closes_its_connection() -> None:
    use = whole(200, [DATE, ("Content-Length", "1")], b"a")
    assert CLOSE in await asked(use, GET.replace(b"Connection: close\r\n", b""), close=True)


async def test_a_date_is_added_where_the_upstream_gave_none() -> None:
    assert b"\r\nDate: " in await asked(whole(200, [("Content-Length", "0")]), GET)


@pytest.mark.parametrize("text", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\x00b", "\x7f"], ids=ascii)
async def test_a_field_that_would_end_early_begins_no_answer(text: str) -> None:
    async def use(reply: ClientReply) -> None:
        for reason, headers in (("Fine", [("X", text)]), (text, []), ("Fine", [(text, "x")])):
            with pytest.raises(AnswerBroken):
                await reply.start(200, reason, headers)
            assert not reply.started
        await whole(200, [DATE, ("Content-Length", "0")])(reply)

    assert (await asked(use, GET)).startswith(b"HTTP/1.1 200 Fine\r\n" + STAMP)


@pytest.mark.parametrize("headers", [[DATE, ("Content-Length", "9")], [DATE]], ids=["length", "chunked"])
async def test_a_cut_keeps_what_was_written_and_adds_no_end(headers: list[tuple[str, str]]) -> None:
    async def use(reply: ClientReply) -> None:
        await reply.start(200, "Fine", headers)
        await reply.write(b"abc")
        reply.cut()

    came = await asked(use, GET)
    assert came.endswith((b"\r\n\r\nabc", b"\r\n\r\n3\r\nabc\r\n"))


async def test_a_cut_that_no_framing_shows_is_a_reset() -> None:
    written = asyncio.Event()
    seen = asyncio.Event()

    async def use(reply: ClientReply) -> None:
        await reply.start(200, "Fine", [DATE])
        await reply.write(b"abc")
        written.set()
        await seen.wait()
        reply.cut()

    async with asyncio.timeout(5), answering(use) as (reader, writer):
        writer.write(OLD)
        await reader.readuntil(b"abc")
        seen.set()
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_slow_reader_holds_the_writer_up_and_a_departed_one_ends_it() -> None:
    held = asyncio.Event()
    ended: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def use(reply: ClientReply) -> None:
        await reply.start(200, "Fine", [])
        try:
            while True:
                writing = asyncio.ensure_future(reply.write(bytes(1 << 20)))
                done, _ = await asyncio.wait([writing], timeout=0.2)
                if not done:
                    held.set()
                await writing
        except BaseException as gone:
            ended.set_result(gone)
            raise

    async with asyncio.timeout(10), answering(use) as (_, writer):
        writer.write(GET)
        await held.wait()
        writer.transport.abort()
        assert isinstance(await ended, ClientGone | asyncio.CancelledError)
