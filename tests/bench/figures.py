"""The figures: what is done to a target to get each of them. A figure is measured in rounds, all targets in each round."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from urllib.parse import urlsplit

from tests.bench import load
from tests.bench.load import Broken, chat_request, connect, percentile, repeating, request
from tests.bench.process import cpu_seconds, family, resident
from tests.bench.targets import TOKENS, Target

Figures = dict[str, float]

GENERATE = "/v1beta/models/gemini-2.5-flash:generateContent"
_PROMPT = b'{"contents": [{"parts": [{"text": "%b"}], "role": "user"}], "generationConfig": {"temperature": 0.2}}' % (
    b"Tell me of the quick brown fox and the lazy dog. " * 6
)
_NAMING = (
    b'{"contents": [{"parts": [{"fileData": {"fileUri": "https://generativelanguage.googleapis.com/v1beta/files/bench-7"}}, '
    b'{"text": "What is it?"}], "role": "user"}]}'
)
UNARY = request("POST", GENERATE, TOKENS[1], body=_PROMPT)
SESSION = request("POST", GENERATE, TOKENS[1], "X-Session-Id: bench-session", body=_PROMPT)
NAMING = request("POST", GENERATE, TOKENS[1], body=_NAMING)
_CHAT = b'{"model": "gemini/gemini-2.5-flash", "messages": [{"role": "user", "content": "%b"}], "temperature": 0.2}' % (
    b"Tell me of the quick brown fox and the lazy dog. " * 6
)
CHAT = chat_request("/v1/chat/completions", TOKENS[1], _CHAT)
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how large. Seconds of one measurement, its warm-up, connections, streams, bytes."""

    seconds: float = 0.5
    short: float = 0.75
    warm: float = 0.25
    connections: int = 64
    streams: int = 64
    stream_interval: int = 8
    idle_streams: int = 700
    transfer: int = GIB
    bindings: int = 100_000
    slices: int = 3
    """Rounds of unary requests for each round of the other figures."""
    little: int = 1000
    """Turns, and sessions, of a store with little in it; those of one with much follow."""
    turns: int = 200_000
    sessions: int = 100_000
    calls: int = 30
    settle: float = 1.0
    """Seconds for which streams have been idle when they are weighed."""


def stream(events: int, every: int = 0) -> bytes:
    target = f"/v1beta/models/events-{events}-every-{every}ms:streamGenerateContent?alt=sse"
    return request("POST", target, TOKENS[1], body=_PROMPT)


def cpu_of(target: Target) -> float:
    return cpu_seconds(target.pid) if target.pid is not None else math.nan


async def throughput(target: Target, scale: Scale, what: bytes = UNARY) -> Figures:
    """Unary requests in a closed loop."""
    async with repeating(target.address, what, scale.connections) as crowd:
        await crowd.during(scale.warm)
        crowd.forget()
        cpu, began = cpu_of(target), perf_counter()
        await crowd.during(scale.seconds)
        times, spent, took = crowd.times(), cpu_of(target) - cpu, perf_counter() - began
    count = len(times)
    if not count:
        raise Broken("no answer")
    return {"rps": count / took, "cpu_us": spent / count * 1e6, "p50_ms": percentile(times, 0.5) * 1e3} | {
        "p99_ms": percentile(times, 0.99) * 1e3
    }


async def chat(target: Target, scale: Scale) -> Figures:
    """The same in OpenAI's dialect: the model's prefix is cut out of the body on the way."""
    found = await throughput(target, scale, CHAT)
    return {"chat_rps": found["rps"], "chat_cpu_us": found["cpu_us"]}


async def latency(target: Target, scale: Scale) -> Figures:
    """One client that waits for each answer."""
    async with repeating(target.address, UNARY, 1) as crowd:
        await crowd.during(scale.warm)
        crowd.forget()
        await crowd.during(scale.short)
        times = crowd.times()
    return {"c1_p50_us": percentile(times, 0.5) * 1e6, "c1_p99_us": percentile(times, 0.99) * 1e6}


async def chat_events(target: Target, scale: Scale) -> Figures:
    """Streams in OpenAI's dialect."""
    where = f"/v1/chat/completions?events-0-every-{scale.stream_interval}ms"
    asked = chat_request(where, TOKENS[1], _CHAT.replace(b'"temperature"', b'"stream": true, "temperature"'))
    found = await events(target, scale, asked)
    return {"chat_event_us": found["event_us"]}


async def events(target: Target, scale: Scale, what: bytes = b"") -> Figures:
    """Streams that talk all the time, one event at a time; opened before the clock starts."""
    async with repeating(target.address, what or stream(0, scale.stream_interval), scale.streams) as crowd:
        await crowd.during(scale.warm * 2)
        crowd.forget()
        cpu, began = cpu_of(target), perf_counter()
        await crowd.during(scale.seconds)
        count, spent, took = crowd.pieces, cpu_of(target) - cpu, perf_counter() - began
    if not count:
        raise Broken("no event")
    return {"event_us": spent / count * 1e6, "events_s": count / took}


async def first_byte(target: Target, scale: Scale) -> Figures:
    """One client that opens one short stream after the other."""
    async with repeating(target.address, stream(2, 2), 1) as crowd:
        await crowd.during(scale.warm)
        crowd.forget()
        await crowd.during(scale.short)
        times = crowd.first_times()
    return {"ttfb_us": percentile(times, 0.5) * 1e6, "ttfb_p99_us": percentile(times, 0.99) * 1e6}


async def upload(target: Target, scale: Scale) -> Figures:
    """A resumable upload in one piece. Its address comes through the target, as a client would follow it."""
    begin = request(
        "POST",
        "/upload/v1beta/files",
        TOKENS[1],
        "X-Goog-Upload-Protocol: resumable",
        "X-Goog-Upload-Command: start",
        body=b'{"file": {"displayName": "bench"}}',
    )
    client = await connect(target.address)
    try:
        await client.ask(begin)
        where = urlsplit(load.field(client.head, "X-Goog-Upload-URL") or "")
        if not where.query:
            raise Broken("no upload address")
        command = "X-Goog-Upload-Command: upload, finalize"
        piece = request("POST", f"{where.path}?{where.query}", TOKENS[1], command, length=scale.transfer)
        return await _transfer("up", target, scale, lambda: client.ask(piece, scale.transfer))
    finally:
        client.transport.abort()


async def download(target: Target, scale: Scale) -> Figures:
    """One file. The target has met its name before, as it has where the file was made through it."""
    client = await connect(target.address)
    try:
        await client.ask(request("GET", f"/v1beta/files/bytes-{scale.transfer}", TOKENS[1]))
        asked = request("GET", f"/v1beta/files/bytes-{scale.transfer}:download?alt=media", TOKENS[1])
        return await _transfer("down", target, scale, lambda: client.ask(asked))
    finally:
        client.transport.abort()


async def _transfer(way: str, target: Target, scale: Scale, move: Callable[[], Awaitable[None]]) -> Figures:
    async with _peak(target) as peak:
        cpu, began = cpu_of(target), perf_counter()
        await move()
        spent, took = cpu_of(target) - cpu, perf_counter() - began
    gib = scale.transfer / GIB
    figures = {f"{way}_s_gib": spent / gib, f"{way}_gib_s": gib / took}
    if target.pid is not None:
        figures |= {f"{way}_before_mb": peak[0] / 1e6, f"{way}_growth_mb": (max(peak) - peak[0]) / 1e6}
    return figures


@asynccontextmanager
async def _peak(target: Target) -> AsyncIterator[list[int]]:
    """Resident bytes of a target: before, and then every 20 ms."""
    if target.pid is None:
        yield []
        return
    members = family(target.pid)
    seen = [resident(members)]

    async def look() -> None:
        while True:
            await asyncio.sleep(0.02)
            seen.append(resident(members))

    looking = asyncio.ensure_future(look())
    try:
        yield seen
    finally:
        looking.cancel()


async def life(target: Target, scale: Scale, began: float) -> Figures:
    """A process that was started at `began`: how soon it answers, what it weighs at rest, and what idle streams add."""
    await until_answer(target)
    start = monotonic() - began
    await asyncio.sleep(scale.warm)
    assert target.pid is not None
    members = family(target.pid)
    rest = resident(members)
    for what in (UNARY, stream(2, 1)):
        async with repeating(target.address, what, 4) as crowd:
            await crowd.during(scale.warm)
    before, cpu = resident(members), cpu_of(target)
    clients = []
    try:
        for _ in range(scale.idle_streams):
            client = await connect(target.address)
            clients.append(client)
            client.transport.write(stream(0, 5000))
        async with asyncio.timeout(30):
            while not all(client.pieces for client in clients):
                if (lost := next((client.lost for client in clients if client.lost), None)) is not None:
                    raise lost
                await asyncio.sleep(0.02)
        opened = cpu_of(target) - cpu
        await asyncio.sleep(scale.settle)
        grown = resident(members) - before
    finally:
        for client in clients:
            client.transport.abort()
    return {
        "start_s": start,
        "rest_mb": rest / 1e6,
        "stream_kb": grown / scale.idle_streams / 1e3,
        "open_us": opened / scale.idle_streams * 1e6,
    }


async def until_answer(target: Target, patience: float = 30.0) -> None:
    """Wait for the first answer of status 200. Raises Died, and Broken where it has another answer, or none in time."""
    end = perf_counter() + patience
    while True:
        try:
            client = await connect(target.address)
        except OSError:
            target.check()
            if perf_counter() > end:
                raise Broken("it does not listen") from None
            await asyncio.sleep(0.002)
            continue
        try:
            await client.ask(UNARY)
            return
        finally:
            client.transport.abort()


async def meet(target: Target, names: int) -> None:
    """Have the target bind this many names, by listing them through it."""
    client = await connect(target.address)
    try:
        for page in range(max(1, names // 1000)):
            await client.ask(request("GET", f"/v1beta/files?pageSize=1000&pageToken={page}", TOKENS[1]))
    finally:
        client.transport.abort()
